//! [`Primary`], [`Backup`] and [`TaggedClient`] over gRPC: the shells that carry out what the pure cores ask for.
//!
//! One bidirectional stream a client and endpoint, one for replication (over several connections, if need be), unary calls
//! for operators, and the standard health service, all on one address, whatever the node's role is at the moment.
//!
//! ```text
//!  stream tasks ──inputs──► sequencer (core + state machine) ──frames──► stream tasks
//!   (tokio)                     │ appends, marks    ▲ durable
//!                               ▼                   │
//!                            storage thread (the log, group commit)
//! ```
//!
//! The sequencer, a task or a thread, owns core and state machine and takes no lock: inputs come through one bounded
//! queue, frames leave through one bounded queue a stream. The storage thread syncs whatever has gathered, as soon as
//! somebody waits for it. Conversion to and from the wire happens on the stream tasks.
//!
//! Bounds: a stream task waits while the sequencer's queue is full, and gRPC's flow control pushes back on the peer;
//! a peer that does not read its frames loses the stream, and resumes on a new one; what waits for the disk is
//! bounded by `delta_bytes_max` (it counts what the own disk lacks), and at a backup by the replication window.
//!
//! Not here: any decision about the protocol.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Code, Error, Result};
use crate::log::Time;

mod admin;
mod alarm;
mod backup;
mod buffers;
mod client;
mod convert;
mod lanes;
mod link;
mod node;
#[allow(missing_docs, unreachable_pub, clippy::pedantic, clippy::all)]
#[rustfmt::skip]
mod pb;
mod primary;
mod seal;
mod server;
mod socket;
mod storage;

/// The wire's own types, whose conversions are what outside bytes meet first: for this crate's tests and fuzz targets,
/// which have to hand them bytes without a connection. Not part of the library: applications have no use for them, and
/// `seeded-bugs` is the feature that no application turns on.
#[cfg(feature = "seeded-bugs")]
#[doc(hidden)]
pub mod wire {
    pub use super::pb::*;
}

pub use admin::AdminClient;
pub use backup::{Backup, BackupBuilder};
pub use client::{
    ClientEvents, ClientStats, ReadOptions, TaggedClient, TaggedClientBuilder, WriteOptions, WriteOutcome, Writing,
};
pub use node::NodeEvents;
pub use primary::{Opened, Primary, PrimaryBuilder, Recovery};
pub use seal::{SEAL_BYTES, Sealer, ShareKey};

/// What may travel in one message with the largest command or result.
const JOINED_BYTES: usize = 2 << 20;

/// How streams are dialled and kept. Plain data; the defaults suit a local network and a WAN of up to some 200 ms.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetSettings {
    /// A connection that is not established within this is given up, and tried again.
    pub connect_timeout: Duration,
    /// A ping is sent on a connection that has been silent for this long.
    pub keepalive_interval: Duration,
    /// A connection whose ping is not answered within this is gone.
    pub keepalive_timeout: Duration,
    /// The first pause before an endpoint is dialled again; it doubles, with jitter, up to `backoff_max`.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// HTTP/2 flow-control window of a client's stream, in bytes.
    pub stream_window_bytes: u32,
    /// HTTP/2 flow-control window of a backup's link, in bytes: at least bandwidth × round trip. Its connections share it,
    /// and as much may wait at the backup for a piece that is late on one of them. The default fills 10 Gbit/s at 50 ms.
    pub replication_window_bytes: u32,
    /// Connections of a backup's link to its primary, from 1 to 64; the backup's setting counts. A TCP stream halves its rate
    /// at a loss and takes long to come back where the round trip is long; what that costs at 50 ms and 0.1 % of loss, and what
    /// several carry, is in docs/benchmarks. They also take as many shares of a path that others use. Where not all can be
    /// established within `connect_timeout`, the link makes do with those that can.
    pub replication_connections: u32,
    /// The congestion control of a link's connections, by the system's name, such as `bbr`, which does not take every loss
    /// for congestion; `None` for the system's default. Set on both nodes, it holds for what each of them sends. Where the
    /// system does not have it, or not for this process, that is logged, and the default stays.
    pub replication_congestion: Option<String>,
    /// The largest message taken from a peer, in bytes. A command of `command_bytes_max` must fit, with room for others,
    /// and so must whatever the state machine answers to one. A larger result of a query is refused. Clients should have
    /// the same value as the nodes, or a higher one.
    pub message_bytes_max: usize,
    /// Messages that wait for a node's sequencer or a client's driver, and messages that wait to be sent on one stream.
    pub queue_max: usize,
    /// Whether a node orders and applies commands on a thread of its own, instead of in a task of the runtime. It keeps
    /// the runtime's threads free where applying takes long, some hundred microseconds at once, and costs every message
    /// two changes of threads.
    pub sequencer_thread: bool,
}

impl Default for NetSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(4),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            stream_window_bytes: 4 << 20,
            replication_window_bytes: 64 << 20,
            replication_connections: 4,
            replication_congestion: None,
            message_bytes_max: 64 << 20,
            queue_max: 1024,
            sequencer_thread: false,
        }
    }
}

impl NetSettings {
    /// Whether the settings make sense.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        let wrong = |why: &str| Err(Error::new(Code::InvalidArgument, why));
        match self {
            _ if self.connect_timeout.is_zero() => wrong("connect_timeout must not be 0"),
            _ if self.keepalive_interval.is_zero() || self.keepalive_timeout.is_zero() => {
                wrong("keepalive_interval and keepalive_timeout must not be 0")
            }
            _ if self.backoff_min.is_zero() || self.backoff_max < self.backoff_min => {
                wrong("backoff_min must not be 0, nor above backoff_max")
            }
            // What HTTP/2 allows.
            _ if ![self.stream_window_bytes, self.replication_window_bytes]
                .iter()
                .all(|bytes| (65_535..1 << 31).contains(bytes)) =>
            {
                wrong("flow-control windows must lie between 65,535 bytes and 2 GiB")
            }
            _ if !(1..=lanes::LANES_MAX).contains(&self.replication_connections) => {
                wrong("replication_connections must lie between 1 and 64")
            }
            // The kernel's limit on such a name.
            _ if self.replication_congestion.as_ref().is_some_and(|name| !(1..16).contains(&name.len())) => {
                wrong("replication_congestion must be a name of 1 to 15 bytes")
            }
            _ if self.message_bytes_max < 4 << 20 => wrong("message_bytes_max must be at least 4 MiB"),
            _ if !(64..=1 << 20).contains(&self.queue_max) => wrong("queue_max must lie between 64 and 1,048,576"),
            _ => Ok(()),
        }
    }

    /// Whether they make sense for a node that takes commands of up to so many bytes.
    fn validate_for(&self, command_bytes_max: u64) -> Result<()> {
        self.validate()?;
        if command_bytes_max.saturating_add(JOINED_BYTES as u64) > self.message_bytes_max as u64 {
            let why = format!(
                "message_bytes_max of {} has no room for commands of {command_bytes_max} bytes and {JOINED_BYTES} more",
                self.message_bytes_max
            );
            return Err(Error::new(Code::InvalidArgument, why));
        }
        Ok(())
    }

    /// A channel to `endpoint`, established within the timeout, with the given flow-control window.
    async fn dial(&self, endpoint: &str, window: u32) -> Result<tonic::transport::Channel> {
        self.dial_tuned(endpoint, window, None).await
    }

    /// One of the connections of a backup's link.
    async fn dial_for_link(&self, endpoint: &str) -> Result<tonic::transport::Channel> {
        // What HTTP/2 begins with is the least.
        let window = (self.replication_window_bytes / self.replication_connections).max(65_535);
        let tuning = socket::Tuning { congestion: self.replication_congestion.clone(), short: false };
        self.dial_tuned(endpoint, window, tuning.congestion.is_some().then_some(tuning)).await
    }

    async fn dial_tuned(
        &self,
        endpoint: &str,
        window: u32,
        tuning: Option<socket::Tuning>,
    ) -> Result<tonic::transport::Channel> {
        let wrong = |error: &dyn std::fmt::Display| {
            Error::new(Code::InvalidArgument, format!("{endpoint} is no endpoint: {error}; give http://host:port"))
        };
        let target = tonic::transport::Endpoint::from_shared(endpoint.to_owned()).map_err(|error| wrong(&error))?;
        let target = target
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true)
            .max_frame_size(server::FRAME_BYTES)
            .initial_stream_window_size(window)
            .initial_connection_window_size(window);
        // Name resolution and the HTTP/2 handshake are not covered by the connector's own timeout.
        let connected = tokio::time::timeout(self.connect_timeout, async {
            match tuning {
                Some(tuning) => target.connect_with_connector(socket::Connector(tuning)).await,
                None => target.connect().await,
            }
        });
        let connected = connected.await;
        let unavailable = |why: String| Error::new(Code::Unavailable, format!("{endpoint}: {why}"));
        match connected {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(unavailable(with_causes(&error))),
            Err(_) => Err(unavailable(format!("no connection within {:?}", self.connect_timeout))),
        }
    }
}

/// An error with all its causes, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// A clock that counts microseconds from the Unix epoch and never goes back, whatever is done to the system's clock.
#[derive(Clone, Copy, Debug)]
struct Clock {
    started: Instant,
    epoch_us: u64,
}

impl Clock {
    fn new() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), epoch_us: micros(epoch) }
    }

    fn now(&self) -> Time {
        Time(self.epoch_us.saturating_add(micros(self.started.elapsed())))
    }

    /// When `time` will be, for a timer.
    fn instant(&self, time: Time) -> Instant {
        let ahead = time.0.saturating_sub(self.epoch_us);
        // Beyond a century a timer is as good as none, and must not overflow.
        self.started + Duration::from_micros(ahead.min(100 * 365 * 86_400 * 1_000_000))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Pauses between attempts: exponential, with jitter, so that a thousand clients do not come back in step.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    fn new(settings: &NetSettings) -> Self {
        Self { min: settings.backoff_min, max: settings.backoff_max, next: settings.backoff_min }
    }

    /// The attempt succeeded: the next pause is short again.
    fn reset(&mut self) {
        self.next = self.min;
    }

    /// The next pause: between half of its length and all of it.
    fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.max);
        let half = micros(full) / 2;
        let jitter = getrandom::u64().unwrap_or(0) % (half + 1);
        Duration::from_micros(half + jitter)
    }
}

/// Runs what may call the application's code, which may panic: whoever waits then has to hear that nothing more will
/// come. What was worked on is left as it is, and must not be used any more.
fn guarded<T>(what: &str, run: impl FnOnce() -> T) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Error::new(Code::Storage, format!("{what} panicked, so nothing more is served: {text}"))
    })
}

/// Random bits for an identity.
fn random_u128() -> Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(Code::Storage, format!("the system gives no random bytes: {error}")))?;
    Ok(u128::from_be_bytes(bytes))
}
