//! A wide-area link that can be cut: what is under way is lost with it, and nobody gets through until it is healed.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Link {
    cut: bool,
    streams: Vec<TcpStream>,
}

pub(crate) struct Relay {
    address: SocketAddr,
    link: Arc<Mutex<Link>>,
}

impl Relay {
    /// A link to the node at `endpoint`, whether it is there at the moment or not.
    pub(crate) fn to(endpoint: &str) -> Self {
        let target: SocketAddr = endpoint.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let link = Arc::<Mutex<Link>>::default();
        let theirs = Arc::clone(&link);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // Either way the caller sees its connection end, and comes again.
                let _ = join(near, target, &theirs);
            }
        });
        Self { address, link }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn cut(&self) {
        let mut link = self.link.lock().unwrap();
        link.cut = true;
        for stream in link.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn heal(&self) {
        self.link.lock().unwrap().cut = false;
    }
}

fn join(near: TcpStream, target: SocketAddr, link: &Mutex<Link>) -> io::Result<()> {
    let mut link = link.lock().unwrap();
    if link.cut {
        return Ok(());
    }
    let far = TcpStream::connect(target)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        link.streams.push(stream.try_clone()?);
    }
    let copies = [(near.try_clone()?, far.try_clone()?), (far, near)];
    for (mut from, mut to) in copies {
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}
