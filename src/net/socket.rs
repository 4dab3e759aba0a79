//! What is asked of single TCP connections: a congestion control, a short queue, and word of how much waits for them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tonic::codegen::{BoxFuture, Service, http::Uri};
use tonic::transport::server::Connected;

/// Bytes that the kernel takes of a lane beyond what its congestion window lets it send. What is here stays on its lane,
/// however slow that has become, and everything behind it waits at the other end.
const UNSENT_BYTES: u32 = 64 << 10;

/// How a connection is to behave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tuning {
    /// The congestion control's name; the system's default without.
    pub(super) congestion: Option<String>,
    /// Little is to wait in the socket: it is one lane of several.
    pub(super) short: bool,
}

impl Tuning {
    /// What the system does not offer is told, and done without.
    fn apply(&self, stream: &TcpStream) {
        let socket = socket2::SockRef::from(stream);
        if let Some(name) = &self.congestion
            && let Err(error) = set_congestion(&socket, name)
        {
            tracing::warn!(%error, "the system does not let this node use the congestion control {name}");
        }
        if self.short
            && let Err(error) = set_unsent(&socket)
        {
            tracing::debug!(%error, "what waits in the sockets of a link's lanes is not bounded on this system");
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn set_congestion(socket: &socket2::Socket, name: &str) -> io::Result<()> {
    socket.set_tcp_congestion(name.as_bytes())
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn set_congestion(_: &socket2::Socket, _: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn set_unsent(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn set_unsent(_: &socket2::Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// What the services of a node know of the connection that a call came on.
#[derive(Default)]
pub(super) struct Gauge {
    /// Given to its lanes, and not in the socket yet.
    waiting: AtomicUsize,
    /// Told when less waits.
    room: Mutex<Option<Arc<Notify>>>,
    /// What the connection is to become, by itself, before it writes the next time.
    tuning: Mutex<Option<Tuning>>,
    retuned: AtomicBool,
}

impl Gauge {
    /// The connection is to behave like this from its next write on.
    pub(super) fn tune(&self, tuning: Tuning) {
        *self.tuning.lock() = Some(tuning);
        self.retuned.store(true, Ordering::Release);
    }

    /// From now on `room` is notified when less waits.
    pub(super) fn watch(&self, room: Arc<Notify>) {
        *self.room.lock() = Some(room);
    }

    /// Bytes that were given to the connection's lanes and that the socket has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// So many bytes were given to a lane: at most what they are on the wire, for else the last would wait for ever.
    pub(super) fn give(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::AcqRel);
    }

    /// The socket took so many, of whatever the connection carries.
    pub(super) fn took(&self, bytes: usize) {
        let less = |waiting: usize| (waiting > 0).then(|| waiting.saturating_sub(bytes));
        let _ = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        // Even if nothing waited by this count, which leaves out the heads of frames: a lane's queue may have room again.
        if let Some(room) = &*self.room.lock() {
            room.notify_one();
        }
    }
}

/// A connection that was accepted.
pub(super) struct Accepted {
    stream: TcpStream,
    gauge: Arc<Gauge>,
}

impl Accepted {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, gauge: Arc::default() }
    }

    fn retune(&self) {
        if self.gauge.retuned.load(Ordering::Acquire) && self.gauge.retuned.swap(false, Ordering::AcqRel) {
            let tuning = self.gauge.tuning.lock().take();
            tuning.unwrap_or_default().apply(&self.stream);
        }
    }
}

impl Connected for Accepted {
    type ConnectInfo = Arc<Gauge>;

    fn connect_info(&self) -> Arc<Gauge> {
        Arc::clone(&self.gauge)
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.retune();
        let bytes = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.gauge.took(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.retune();
        let bytes = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.gauge.took(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Dials as the transport's own connector does, and tunes what it gets.
#[derive(Clone)]
pub(super) struct Connector(pub(super) Tuning);

impl Service<Uri> for Connector {
    type Response = hyper_util::rt::TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, io::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tuning = self.0.clone();
        Box::pin(async move {
            // An address of version 6 stands in brackets there.
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
            stream.set_nodelay(true)?;
            tuning.apply(&stream);
            Ok(hyper_util::rt::TokioIo::new(stream))
        })
    }
}
