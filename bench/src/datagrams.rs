//! A link for datagrams: every one arrives a fixed time after it was sent, or is lost. Losses come in bursts, as they do.
//!
//! Two threads a direction, as in the relay for streams: one stamps, the other sleeps until stamp + delay and sends.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A datagram, at most.
const DATAGRAM_BYTES: usize = 2048;
/// Sockets are looked at so often whether they are to be closed.
const LOOK: Duration = Duration::from_millis(50);

/// A socket waits with so much: a window's worth, so that what is lost is lost by the link.
const BUFFER_BYTES: usize = 64 << 20;

/// A socket for datagrams on a port of the system's choice. Without the right to a large buffer it has a small one, and loses
/// more than the link does: [`overrun`] counts it.
pub(crate) fn socket(patience: Option<Duration>) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let forced = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES);
    forced.or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES))?;
    socket.set_read_timeout(patience)?;
    Ok(socket)
}

/// Datagrams that this machine dropped so far, because a socket's buffer was full.
pub(crate) fn overrun() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:")).map(str::split_whitespace);
    let (Some(mut names), Some(mut values)) = (lines.next(), lines.next()) else { return 0 };
    let at = names.position(|name| name == "RcvbufErrors");
    at.and_then(|at| values.nth(at)?.parse().ok()).unwrap_or(0)
}

/// How much is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Loss {
    /// The part of all datagrams, from 0 to below 1.
    pub(crate) rate: f64,
    /// How many in a row, on average; 1 at least where anything is lost.
    pub(crate) burst: f64,
}

/// The model of Gilbert (1960): a link is good or bad, and what is sent while it is bad is lost.
#[derive(Clone, Debug)]
struct Fate {
    loss: Loss,
    bad: bool,
    state: u64,
}

impl Fate {
    fn new(loss: Loss, seed: u64) -> Self {
        Self { loss, bad: false, state: seed }
    }

    /// SplitMix64, as a number from 0 to below 1.
    fn next(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
        let number = ((z ^ (z >> 31)) >> 11) as f64;
        number / (1_u64 << 53) as f64
    }

    fn is_lost(&mut self) -> bool {
        let Loss { rate, burst } = self.loss;
        if rate <= 0.0 {
            return false;
        }
        let change = if self.bad { 1.0 / burst.max(1.0) } else { rate / (burst.max(1.0) * (1.0 - rate)) };
        if self.next() < change {
            self.bad = !self.bad;
        }
        self.bad
    }
}

#[derive(Default)]
struct Wire {
    parcels: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    filled: Condvar,
}

struct Link {
    one_way: Duration,
    near: UdpSocket,
    far: UdpSocket,
    /// Who sends to the near end, and whom the far end sends to.
    ends: Mutex<[Option<SocketAddr>; 2]>,
    loss: Mutex<Loss>,
    cut: AtomicBool,
    closed: AtomicBool,
    /// From the near end, and from the far one.
    carried: [AtomicU64; 2],
    lost: AtomicU64,
    wires: [Wire; 2],
}

/// A link between whoever sends to it and a target.
pub(crate) struct Datagrams {
    link: Arc<Link>,
    pub(crate) address: SocketAddr,
}

impl Datagrams {
    /// A link to `target` with this round trip, on a port of the system's choice; `seed` decides what is lost.
    pub(crate) fn start(target: SocketAddr, round_trip: Duration, loss: Loss, seed: u64) -> io::Result<Datagrams> {
        let (near, far) = (socket(Some(LOOK))?, socket(Some(LOOK))?);
        let address = near.local_addr()?;
        let link = Arc::new(Link {
            one_way: round_trip / 2,
            near,
            far,
            ends: Mutex::new([None, Some(target)]),
            loss: Mutex::new(loss),
            cut: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            carried: Default::default(),
            lost: AtomicU64::new(0),
            wires: Default::default(),
        });
        for way in 0..2 {
            let (taking, giving) = (Arc::clone(&link), Arc::clone(&link));
            thread::spawn(move || taking.take(way, seed + way as u64));
            thread::spawn(move || giving.give(way));
        }
        Ok(Datagrams { link, address })
    }

    /// From now on so much is lost.
    pub(crate) fn lose(&self, loss: Loss) {
        *self.link.loss.lock() = loss;
    }

    /// From now on nothing goes through, and what is on its way is lost.
    pub(crate) fn cut(&self) {
        self.link.cut.store(true, Ordering::Relaxed);
        self.link.wires.iter().for_each(|wire| wire.parcels.lock().clear());
    }

    /// Bytes taken from either end.
    pub(crate) fn carried(&self) -> u64 {
        self.link.carried.iter().map(|way| way.load(Ordering::Relaxed)).sum()
    }

    /// Bytes taken from the near end, and whether all of them have arrived, or are lost.
    pub(crate) fn sent(&self) -> (u64, bool) {
        (self.link.carried[0].load(Ordering::Relaxed), self.link.wires[0].parcels.lock().is_empty())
    }

    /// Datagrams that were lost.
    #[cfg(test)]
    fn lost(&self) -> u64 {
        self.link.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.link.closed.store(true, Ordering::Relaxed);
        self.link.wires.iter().for_each(|wire| {
            wire.filled.notify_all();
        });
    }
}

impl Link {
    fn take(&self, way: usize, seed: u64) {
        let mut fate = Fate::new(Loss::default(), seed);
        let mut buffer = [0; DATAGRAM_BYTES];
        let socket = if way == 0 { &self.near } else { &self.far };
        while !self.closed.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            if way == 0 {
                self.ends.lock()[0] = Some(from);
            }
            self.carried[way].fetch_add(length as u64, Ordering::Relaxed);
            fate.loss = *self.loss.lock();
            if self.cut.load(Ordering::Relaxed) || fate.is_lost() {
                self.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let wire = &self.wires[way];
            wire.parcels.lock().push_back((Instant::now() + self.one_way, buffer[..length].to_vec()));
            wire.filled.notify_one();
        }
    }

    fn give(&self, way: usize) {
        let (socket, end) = if way == 0 { (&self.far, 1) } else { (&self.near, 0) };
        let wire = &self.wires[way];
        while !self.closed.load(Ordering::Relaxed) {
            let (due, parcel) = {
                let mut parcels = wire.parcels.lock();
                let Some(next) = parcels.pop_front() else {
                    wire.filled.wait_for(&mut parcels, LOOK);
                    continue;
                };
                next
            };
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let to = self.ends.lock()[end];
            if let (Some(to), false) = (to, self.cut.load(Ordering::Relaxed)) {
                let _ = socket.send_to(&parcel, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_late_both_ways_until_the_link_is_cut() {
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let target = far.local_addr().expect("an address");
        let link = Datagrams::start(target, Duration::from_millis(40), Loss::default(), 1).expect("a link");
        let begun = Instant::now();
        near.send_to(b"there", link.address).expect("sent");
        let mut buffer = [0; 100];
        let (length, from) = far.recv_from(&mut buffer).expect("it arrives");
        assert_eq!(&buffer[..length], b"there");
        assert!(begun.elapsed() >= Duration::from_millis(20));
        far.send_to(b"back", from).expect("sent");
        let (length, _) = near.recv_from(&mut buffer).expect("it arrives");
        assert_eq!(&buffer[..length], b"back");
        assert!(begun.elapsed() >= Duration::from_millis(40));
        assert_eq!((link.carried(), link.lost()), (9, 0));
        link.cut();
        near.send_to(b"lost", link.address).expect("sent");
        far.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        assert!(far.recv_from(&mut buffer).is_err());
        assert_eq!(link.lost(), 1);
    }

    #[test]
    fn as_much_is_lost_as_was_asked_for_and_in_bursts() {
        for (rate, burst) in [(0.001, 1.0), (0.01, 3.0), (0.1, 8.0)] {
            let mut fate = Fate::new(Loss { rate, burst }, 7);
            let (mut lost, mut bursts, mut before) = (0_u32, 0_u32, false);
            for _ in 0..2_000_000 {
                let now = fate.is_lost();
                lost += u32::from(now);
                bursts += u32::from(now && !before);
                before = now;
            }
            let (found, length) = (f64::from(lost) / 2e6, f64::from(lost) / f64::from(bursts));
            assert!((found / rate - 1.0).abs() < 0.1, "{found} of {rate}");
            assert!((length / burst - 1.0).abs() < 0.1, "{length} of {burst}");
        }
    }
}
