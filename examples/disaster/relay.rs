//! A link with a length: a TCP relay that delivers every byte a fixed time after it was sent, and that can be cut.
//!
//! Each direction of each connection is a lane: one thread reads and stamps, the other sleeps until stamp + delay and
//! writes. So the delay limits no bandwidth; what is on the wire is bounded, and beyond the bound the sender feels it.
//!
//! ```text
//!  near socket ─read─► [stamp│bytes][stamp│bytes]… ─sleep until stamp + delay─► far socket
//!                       └── on the wire: lost by a cut ──┘
//! ```
//!
//! A [`cut`](Relay::cut) is what a severed cable is: what is on the wire is gone, nothing goes through any more, in
//! either direction, and no socket hears of it. The connections stay open until [`close`](Relay::close).
//!
//! Threads that sleep, because an async timer's tick of a millisecond would be the whole delay of a short link; and
//! with the kernel's timer slack turned down ([`sharpen_sleep`]), because its 50 µs would be a tenth of it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Bytes on the wire of one lane; a sender waits beyond it.
const WIRE_BYTES_MAX: usize = 64 << 20;
/// One read.
const READ_BYTES: usize = 64 << 10;
/// One write, about.
const WRITE_BYTES: usize = 512 << 10;
/// Lengths of connections that are not all of one.
const STEPS: u32 = 8;
/// These threads hold a buffer and little else.
const STACK_BYTES: usize = 256 << 10;

/// Lets sleeping threads of this process wake within a few microseconds of the time they asked for. To be called
/// before the first of them is started: they inherit it. A kernel without this knob keeps its own precision.
pub(crate) fn sharpen_sleep() {
    let _ = std::fs::write("/proc/self/timerslack_ns", "1000");
}

/// What is on its way in one direction of one connection.
#[derive(Default)]
struct Wire {
    /// When it was sent, and how many bytes; none is the end of the stream.
    parcels: VecDeque<(Instant, usize)>,
    /// In memory that is used again: a longer link is to cost the machine no more than a short one.
    bytes: VecDeque<u8>,
}

#[derive(Default)]
struct Lane {
    one_way: Duration,
    wire: Mutex<Wire>,
    filled: Condvar,
    drained: Condvar,
}

struct Link {
    one_way: Duration,
    /// By how much the longest of a few connections is longer.
    spread: Duration,
    connections: AtomicU64,
    target: Mutex<Option<SocketAddr>>,
    cut: AtomicBool,
    closed: AtomicBool,
    lost: AtomicU64,
    /// Bytes taken from either end, by [`Way`].
    carried: [AtomicU64; 2],
    lanes: Mutex<Vec<Weak<Lane>>>,
    sockets: Mutex<Vec<TcpStream>>,
}

/// A direction.
#[derive(Clone, Copy)]
enum Way {
    /// From whoever connected to the target.
    Up,
    Down,
}

/// Bytes that a link took in, whether it delivered them or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// From those who connected.
    pub(crate) up: u64,
    /// To them.
    pub(crate) down: u64,
}

impl Carried {
    /// Both ways.
    pub(crate) fn both(self) -> u64 {
        self.up + self.down
    }
}

impl std::ops::Sub for Carried {
    type Output = Carried;

    fn sub(self, earlier: Carried) -> Carried {
        Carried { up: self.up - earlier.up, down: self.down - earlier.down }
    }
}

/// A listening end whose connections lead, with a delay, to a target.
pub(crate) struct Relay {
    link: Arc<Link>,
    address: SocketAddr,
}

impl Relay {
    /// A relay with this round trip on a port of the system's choice. Connections are refused until it has a target.
    pub(crate) fn start(round_trip: Duration) -> io::Result<Relay> {
        Relay::spread(round_trip, Duration::ZERO)
    }

    /// A relay whose connections are not all of one length: some have this round trip, some up to `spread` more.
    pub(crate) fn spread(round_trip: Duration, spread: Duration) -> io::Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let link = Arc::new(Link {
            one_way: round_trip / 2,
            spread: spread / 2,
            connections: AtomicU64::new(0),
            target: Mutex::new(None),
            cut: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            carried: Default::default(),
            lanes: Mutex::default(),
            sockets: Mutex::default(),
        });
        let accepting = Arc::clone(&link);
        spawn("relay-accept", move || accepting.accept(&listener))?;
        Ok(Relay { link, address })
    }

    /// Where connections lead from now on.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        *self.link.target.lock() = Some(target);
    }

    /// The near end, as gRPC names it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The near end.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes it took in so far.
    pub(crate) fn carried(&self) -> Carried {
        let [up, down] = &self.link.carried;
        Carried { up: up.load(Ordering::Relaxed), down: down.load(Ordering::Relaxed) }
    }

    /// Bytes on the wire now.
    #[allow(dead_code, reason = "the benchmarks share this file, and wait for it")]
    pub(crate) fn on_wire(&self) -> usize {
        self.link.lanes.lock().iter().filter_map(Weak::upgrade).map(|lane| lane.wire.lock().bytes.len()).sum()
    }

    /// Severs the link and returns how many bytes were on the wire.
    pub(crate) fn cut(&self) -> u64 {
        self.link.cut.store(true, Ordering::SeqCst);
        for lane in self.link.lanes.lock().iter().filter_map(Weak::upgrade) {
            let mut wire = lane.wire.lock();
            self.link.lost.fetch_add(wire.bytes.len() as u64, Ordering::SeqCst);
            *wire = Wire::default();
            lane.drained.notify_all();
        }
        self.link.lost.load(Ordering::SeqCst)
    }

    /// Ends every connection and stops listening.
    pub(crate) fn close(&self) {
        if self.link.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        for socket in self.link.sockets.lock().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for lane in self.link.lanes.lock().iter().filter_map(Weak::upgrade) {
            // Under the lock: a thread between its check and its wait must not miss this.
            let _wire = lane.wire.lock();
            lane.filled.notify_all();
            lane.drained.notify_all();
        }
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}

impl Link {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while let Ok((near, _)) = listener.accept() {
            if self.is_closed() {
                return;
            }
            // A connection that cannot be carried is dropped, which its maker sees as a refusal.
            let _ = self.connect(near);
        }
    }

    fn connect(self: &Arc<Self>, near: TcpStream) -> io::Result<()> {
        if self.is_cut() {
            // Into the void: accepted by this end of the cable, never heard of again.
            self.sockets.lock().push(near);
            return Ok(());
        }
        let target = self.target.lock().ok_or(io::ErrorKind::NotConnected)?;
        let far = TcpStream::connect(target)?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        {
            let mut sockets = self.sockets.lock();
            // What has ended has no peer any more; without this a client that retries would pile up sockets here.
            sockets.retain(|socket| socket.peer_addr().is_ok());
            sockets.push(near.try_clone()?);
            sockets.push(far.try_clone()?);
        }
        // In an order in which neighbours differ.
        let count = self.connections.fetch_add(1, Ordering::Relaxed) % u64::from(STEPS);
        let step = u32::try_from(count).unwrap_or_default() * 5 % STEPS;
        let one_way = self.one_way + self.spread * step / (STEPS - 1);
        self.lane(Way::Up, one_way, near.try_clone()?, far.try_clone()?)?;
        self.lane(Way::Down, one_way, far, near)
    }

    fn count(&self, way: Way, read: usize) {
        self.carried[way as usize].fetch_add(read as u64, Ordering::Relaxed);
    }

    /// One direction of a connection.
    fn lane(self: &Arc<Self>, way: Way, one_way: Duration, from: TcpStream, to: TcpStream) -> io::Result<()> {
        let link = Arc::clone(self);
        if one_way.is_zero() {
            return spawn("relay-pump", move || link.pump(way, from, to));
        }
        let lane = Arc::new(Lane { one_way, ..Lane::default() });
        {
            let mut lanes = self.lanes.lock();
            lanes.retain(|lane| lane.strong_count() > 0);
            lanes.push(Arc::downgrade(&lane));
        }
        let (reading, writing) = (Arc::clone(&lane), lane);
        spawn("relay-read", move || link.read(way, &reading, from))?;
        let link = Arc::clone(self);
        spawn("relay-write", move || link.write(&writing, to))
    }

    /// A link without length needs no clock.
    fn pump(&self, way: Way, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            self.count(way, read);
            if self.is_cut() {
                self.lost.fetch_add(read as u64, Ordering::SeqCst);
                return;
            }
            if read == 0 {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            if to.write_all(&buffer[..read]).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    fn read(&self, way: Way, lane: &Lane, mut from: TcpStream) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            let sent = Instant::now();
            self.count(way, read);
            let mut wire = lane.wire.lock();
            while wire.bytes.len() > WIRE_BYTES_MAX && !self.is_closed() && !self.is_cut() {
                lane.drained.wait(&mut wire);
            }
            if self.is_cut() {
                // Not read any further: the sender's own buffer fills, as it would.
                self.lost.fetch_add(read as u64, Ordering::SeqCst);
                return;
            }
            if self.is_closed() {
                return;
            }
            wire.bytes.extend(&buffer[..read]);
            wire.parcels.push_back((sent, read));
            lane.filled.notify_one();
            if read == 0 {
                return;
            }
        }
    }

    fn write(&self, lane: &Lane, mut to: TcpStream) {
        let mut bytes = Vec::new();
        while let Some(due) = self.next_due(lane) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let end = Self::take_due(lane, &mut bytes);
            if !bytes.is_empty() && to.write_all(&bytes).is_err() {
                // The receiver is gone; the sender is to see that too.
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            if end {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
        }
    }

    /// Waits until something is on the wire, and says when it arrives.
    fn next_due(&self, lane: &Lane) -> Option<Instant> {
        let mut wire = lane.wire.lock();
        loop {
            if self.is_closed() {
                return None;
            }
            if let Some((sent, _)) = wire.parcels.front() {
                return Some(*sent + lane.one_way);
            }
            lane.filled.wait(&mut wire);
        }
    }

    /// What has arrived by now, up to what one write takes, and whether the stream ends with it.
    fn take_due(lane: &Lane, bytes: &mut Vec<u8>) -> bool {
        let now = Instant::now();
        let (mut length, mut end) = (0, false);
        let mut wire = lane.wire.lock();
        while length < WRITE_BYTES
            && let Some((sent, parcel)) = wire.parcels.front().copied()
            && sent + lane.one_way <= now
        {
            wire.parcels.pop_front();
            length += parcel;
            end |= parcel == 0;
        }
        bytes.clear();
        let (head, tail) = wire.bytes.as_slices();
        let in_head = length.min(head.len());
        bytes.extend_from_slice(&head[..in_head]);
        bytes.extend_from_slice(&tail[..length - in_head]);
        wire.bytes.drain(..length);
        lane.drained.notify_one();
        end
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(work).map(|_| ())
}

/// The round trip through a relay of its own as a one-byte ping sees it: the median of `count`.
pub(crate) fn probe(round_trip: Duration, count: usize) -> io::Result<Duration> {
    let relay = Relay::start(round_trip)?;
    let (listener, target) = listen()?;
    relay.lead_to(target);
    spawn("relay-echo", move || {
        let _ = listener.accept().and_then(|(socket, _)| echo(socket));
    })?;
    let mut socket = TcpStream::connect(relay.address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut times = Vec::new();
    for _ in 0..count.max(1) {
        let sent = Instant::now();
        socket.write_all(&[7])?;
        socket.read_exact(&mut [0])?;
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn echo(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = socket.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        socket.write_all(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn some_connections_are_longer_than_others() {
        let (short, spread) = (Duration::from_millis(2), Duration::from_millis(140));
        let relay = Relay::spread(short, spread).expect("a relay");
        let (listener, target) = listen().expect("a listener");
        relay.lead_to(target);
        let mut times = Vec::new();
        for _ in 0..STEPS {
            let mut near = TcpStream::connect(relay.address()).expect("the relay listens");
            let (far, _) = listener.accept().expect("the relay connects");
            spawn("echo", move || echo(far).unwrap_or_default()).expect("a thread");
            near.set_nodelay(true).expect("an option");
            let sent = Instant::now();
            near.write_all(&[7]).and_then(|()| near.read_exact(&mut [0])).expect("an echo");
            times.push(sent.elapsed());
        }
        assert!(times.iter().all(|time| *time >= short) && times[0] < Duration::from_millis(100), "{times:?}");
        assert!(times.iter().max() >= Some(&(short + spread)), "{times:?}");
    }

    /// Both ends of one connection through a relay.
    fn ends(round_trip: Duration) -> (Relay, TcpStream, TcpStream) {
        let relay = Relay::start(round_trip).expect("a relay");
        let (listener, target) = listen().expect("a listener");
        relay.lead_to(target);
        let near = TcpStream::connect(relay.address()).expect("the relay listens");
        let (far, _) = listener.accept().expect("the relay connects");
        for socket in [&near, &far] {
            socket.set_nodelay(true).expect("an option");
            socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        }
        (relay, near, far)
    }

    fn is_silent(socket: &mut TcpStream) -> bool {
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
        let result = socket.read(&mut [0]);
        result.is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    #[test]
    fn nothing_arrives_before_its_time() {
        sharpen_sleep();
        for millis in [1, 20] {
            let round_trip = Duration::from_millis(millis);
            let seen = probe(round_trip, 21).expect("an echo");
            assert!(seen >= round_trip, "{millis} ms took {seen:?}");
            assert!(seen < round_trip + Duration::from_millis(15), "{millis} ms took {seen:?}");
        }
    }

    #[test]
    fn a_delay_limits_no_bandwidth_and_keeps_every_byte() {
        let (_relay, near, mut far) = ends(Duration::from_millis(100));
        let bytes: Vec<u8> = (0..8_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let sending = bytes.clone();
        let start = Instant::now();
        let sender = thread::spawn(move || {
            let mut near = near;
            near.write_all(&sending).expect("a write");
        });
        let mut got = vec![0; bytes.len()];
        far.read_exact(&mut got).expect("all of it");
        sender.join().expect("the sender");
        assert!(got == bytes);
        // With one 64 KiB read a round trip it would be 12 s.
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[test]
    fn what_a_link_took_in_is_counted_by_direction() {
        for millis in [0, 2] {
            let (relay, mut near, mut far) = ends(Duration::from_millis(millis));
            near.write_all(b"question").expect("a write");
            far.read_exact(&mut [0; 8]).expect("it arrives");
            let before = relay.carried();
            assert_eq!(before, Carried { up: 8, down: 0 });
            far.write_all(b"yes").expect("a write");
            near.read_exact(&mut [0; 3]).expect("it arrives");
            let answer = relay.carried() - before;
            assert_eq!((answer, answer.both()), (Carried { up: 0, down: 3 }, 3));
        }
    }

    #[test]
    fn a_cut_loses_what_is_on_the_wire_and_tells_nobody() {
        let (relay, mut near, mut far) = ends(Duration::from_secs(2));
        near.write_all(b"on the wire").expect("a write");
        let start = Instant::now();
        while relay.on_wire() < 11 && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(relay.cut(), 11);
        near.write_all(b"after").expect("the sender does not know");
        thread::sleep(Duration::from_millis(1200));
        assert!(is_silent(&mut far) && is_silent(&mut near));
        let mut late = TcpStream::connect(relay.address()).expect("a call into the void is not refused");
        assert!(is_silent(&mut late));
        relay.close();
        far.set_read_timeout(Some(PATIENCE)).expect("an option");
        assert_eq!(far.read(&mut [0]).unwrap_or(0), 0, "closed");
    }

    #[test]
    fn a_link_without_length_can_be_cut_too() {
        let (relay, mut near, mut far) = ends(Duration::ZERO);
        near.write_all(b"x").expect("a write");
        far.read_exact(&mut [0]).expect("it arrives");
        relay.cut();
        near.write_all(b"y").expect("the sender does not know");
        assert!(is_silent(&mut far));
    }

    #[test]
    fn an_end_of_either_side_reaches_the_other() {
        for millis in [0, 2] {
            let (_relay, near, mut far) = ends(Duration::from_millis(millis));
            drop(near);
            assert_eq!(far.read(&mut [0]).expect("an end"), 0);
        }
    }

    #[test]
    fn without_a_target_a_connection_is_dropped() {
        let relay = Relay::start(Duration::ZERO).expect("a relay");
        let mut near = TcpStream::connect(relay.address()).expect("the relay listens");
        near.set_read_timeout(Some(PATIENCE)).expect("an option");
        assert_eq!(near.read(&mut [0]).unwrap_or(0), 0);
    }
}
