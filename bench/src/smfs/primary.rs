//! The primary of the baseline: puts writes in order, logs them, and sends them through the egress gateway, whose callback is
//! the acknowledgement.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use parking_lot::{Condvar, Mutex};
use tagalong::log::Lsn;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::repair::Encoder;
use super::{Fragment, PACKET_BYTES};
use crate::disk::Disk;
use crate::plain::{Outgoing, server};
use crate::wire::{Write, Writes, plain_server};
use crate::{Result, datagrams, plain};

/// How the gateway works.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct GatewaySettings {
    /// How long a group waits for more packets before its repair packets go.
    #[arg(long, default_value_t = 500)]
    pub(crate) repair_wait_us: u64,
    /// Bytes sent and not confirmed, beyond which writes wait.
    #[arg(long, default_value_t = 64 << 20)]
    pub(crate) window_bytes: usize,
    /// An answer waits for the primary's own disk as well.
    #[arg(long)]
    pub(crate) logged: bool,
}

/// Who is told that a write is acknowledged.
struct Callback {
    stream: mpsc::UnboundedSender<Write>,
    number: u64,
    lsn: u64,
}

struct State {
    encoder: Encoder,
    packet: Vec<u8>,
    /// When the first packet of the open group left, and whether the clock sleeps because there is none.
    opened: Option<Instant>,
    sleeps: bool,
    /// Wholly in packets of the open group and of those before it: acknowledged when that one is on the link.
    waiting: Vec<Callback>,
    next: u64,
    /// What the backup has not confirmed, to be sent again if it asks.
    unconfirmed: BTreeMap<u64, Bytes>,
    bytes: usize,
}

/// The sequencer and the gateway, under one lock: what is ordered leaves in order.
struct Gateway {
    socket: UdpSocket,
    far: SocketAddr,
    settings: GatewaySettings,
    disk: Disk,
    state: Mutex<State>,
    room: Condvar,
    opened: Condvar,
}

impl Gateway {
    fn new(settings: GatewaySettings, far: SocketAddr, disk: Disk) -> std::io::Result<Gateway> {
        let state = State {
            encoder: Encoder::default(),
            packet: Vec::new(),
            opened: None,
            sleeps: false,
            waiting: Vec::new(),
            next: Lsn(1).0,
            unconfirmed: BTreeMap::new(),
            bytes: 0,
        };
        let (socket, state) = (datagrams::socket(None)?, Mutex::new(state));
        Ok(Gateway { socket, far, settings, disk, state, room: Condvar::new(), opened: Condvar::new() })
    }

    /// Orders a message's writes, and sends them.
    fn take(&self, writes: Vec<Write>, stream: &mpsc::UnboundedSender<Write>) {
        let mut state = self.state.lock();
        while state.bytes > self.settings.window_bytes {
            self.room.wait(&mut state);
        }
        // A payload is a part of the whole message it came in; what is kept is not.
        let entries: Vec<Bytes> = writes.iter().map(|write| Bytes::copy_from_slice(&write.payload)).collect();
        let first = state.next;
        state.next += entries.len() as u64;
        self.disk.append(state.next - 1, entries.clone());
        for ((lsn, payload), write) in (first..).zip(entries).zip(writes) {
            state.bytes += payload.len();
            self.send(&mut state, lsn, &payload);
            state.unconfirmed.insert(lsn, payload);
            state.waiting.push(Callback { stream: stream.clone(), number: write.number, lsn });
        }
        self.end_packet(&mut state);
        self.set_clock(&mut state);
    }

    /// A group that is open ends in time.
    fn set_clock(&self, state: &mut State) {
        if state.encoder.is_empty() || state.opened.is_some() {
            return;
        }
        state.opened = Some(Instant::now());
        if state.sleeps {
            self.opened.notify_one();
        }
    }

    fn send(&self, state: &mut State, lsn: u64, entry: &[u8]) {
        let mut offset = 0;
        loop {
            let room = PACKET_BYTES - state.packet.len();
            let Some(fragment) = Fragment::cut(lsn, entry, offset, room) else {
                self.end_packet(state);
                continue;
            };
            fragment.write(&mut state.packet);
            offset += fragment.bytes.len();
            if offset >= entry.len() {
                return;
            }
        }
    }

    fn end_packet(&self, state: &mut State) {
        if state.packet.is_empty() {
            return;
        }
        let packet = std::mem::replace(&mut state.packet, Vec::with_capacity(PACKET_BYTES));
        // A datagram that the kernel does not take is lost like any other.
        let _ = self.socket.send_to(&state.encoder.data(packet), self.far);
        if state.encoder.is_full() {
            self.close_group(state);
        }
    }

    /// Ends the open group. With its repair packets on the link, all that was handed over before is acknowledged: the
    /// gateway's callback.
    fn close_group(&self, state: &mut State) {
        for repair in state.encoder.close() {
            let _ = self.socket.send_to(&repair, self.far);
        }
        state.opened = None;
        let waiting = std::mem::take(&mut state.waiting);
        let Some(last) = waiting.last().map(|callback| callback.lsn) else { return };
        let answer = move || {
            for Callback { stream, number, .. } in waiting {
                // A client that is gone needs no answer.
                let _ = stream.send(Write { number, payload: Bytes::new() });
            }
        };
        if self.settings.logged { self.disk.after(last, answer) } else { answer() }
    }

    /// Ends groups that waited long enough, for as long as the process lives.
    fn tick(&self) {
        let wait = Duration::from_micros(self.settings.repair_wait_us);
        let mut state = self.state.lock();
        loop {
            let Some(opened) = state.opened else {
                state.sleeps = true;
                self.opened.wait(&mut state);
                state.sleeps = false;
                continue;
            };
            if opened.elapsed() >= wait {
                self.close_group(&mut state);
            } else {
                self.opened.wait_until(&mut state, opened + wait);
            }
        }
    }

    /// What the backup says: how far it is, and what it lacks.
    fn hear(&self) {
        let mut buffer = [0; 2048];
        while let Ok((length, _)) = self.socket.recv_from(&mut buffer) {
            let mut message = &buffer[..length];
            let Ok(upto) = message.try_get_u64() else { continue };
            let mut state = self.state.lock();
            let rest = state.unconfirmed.split_off(&(upto + 1));
            state.bytes -= std::mem::replace(&mut state.unconfirmed, rest).values().map(Bytes::len).sum::<usize>();
            while let Ok(lsn) = message.try_get_u64() {
                if let Some(entry) = state.unconfirmed.get(&lsn).cloned() {
                    self.send(&mut state, lsn, &entry);
                }
            }
            self.end_packet(&mut state);
            self.set_clock(&mut state);
            self.room.notify_all();
        }
    }
}

#[derive(Clone)]
struct Service(Arc<Gateway>);

#[tonic::async_trait]
impl plain_server::Plain for Service {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<Writes, Status>> + Send>>;

    async fn exchange(&self, request: Request<Streaming<Writes>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let (answers, queue) = mpsc::unbounded_channel();
        let gateway = Arc::clone(&self.0);
        let mut writes = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(message)) = writes.next().await {
                tokio::task::block_in_place(|| gateway.take(message.writes, &answers));
            }
        });
        Ok(Response::new(Box::pin(Outgoing::new(queue, true).map(Ok))))
    }
}

/// Serves until the process ends; tells the address first.
pub(crate) async fn serve(
    settings: GatewaySettings,
    far: SocketAddr,
    disk: Disk,
    tell: impl FnOnce(SocketAddr),
) -> Result<()> {
    let gateway = Arc::new(Gateway::new(settings, far, disk)?);
    for run in [Gateway::tick, Gateway::hear] {
        let gateway = Arc::clone(&gateway);
        std::thread::spawn(move || run(&gateway));
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    tell(listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = plain_server::PlainServer::new(Service(gateway)).max_decoding_message_size(plain::MESSAGE_BYTES_MAX);
    Ok(server().add_service(service).serve_with_incoming(incoming).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smfs::repair;

    /// A gateway whose groups end only when they are full, and the far end of its link.
    fn gateway(folder: &std::path::Path) -> (Gateway, UdpSocket) {
        let far = datagrams::socket(None).expect("a socket");
        let settings = GatewaySettings { repair_wait_us: 60_000_000, window_bytes: 64 << 20, logged: false };
        let disk = Disk::open(folder).expect("a log");
        let gateway = Gateway::new(settings, far.local_addr().expect("an address"), disk).expect("a gateway");
        (gateway, far)
    }

    fn writes(count: u64, bytes: usize) -> Vec<Write> {
        (1..=count).map(|number| Write { number, payload: vec![7; bytes].into() }).collect()
    }

    #[test]
    fn a_group_that_ends_within_a_message_is_called_back_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (gateway, _far) = gateway(folder.path());
        let (answers, mut queue) = mpsc::unbounded_channel();
        // One write a packet: the first group holds eight.
        gateway.take(writes(repair::DATA as u64 + 3, PACKET_BYTES - 100), &answers);
        let answered: Vec<u64> = std::iter::from_fn(|| queue.try_recv().ok()).map(|answer| answer.number).collect();
        assert_eq!(answered, (1..=repair::DATA as u64).collect::<Vec<_>>());
    }

    #[test]
    fn no_answer_is_lost_on_those_who_do_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (gateway, _far) = gateway(folder.path());
        let (answers, mut queue) = mpsc::unbounded_channel();
        gateway.take(writes(10_000, 100), &answers);
        gateway.close_group(&mut gateway.state.lock());
        let answered = std::iter::from_fn(|| queue.try_recv().ok()).map(|answer| answer.number);
        assert!(answered.eq(1..=10_000));
    }
}
