//! What goes into a node's core and what comes out: the whole of its contact with the world.
//!
//! A core is driven by `step(now, input, &mut out)`; the shell carries out the outputs in order. Nothing in the
//! core blocks, and storage never calls back: "durable" is an input.

use bytes::Bytes;

use crate::error::Error;
use crate::log::{ClientId, Commands, Entry, GapPolicy, Lsn, Record, Records, Time};
pub use crate::message::Conn;
use crate::message::{BackupMessage, ClientMessage, NodeMessage, PrimaryMessage};
use crate::store::{Marks, Missing};

/// Into a node's core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A message on a client's stream. The first one makes the stream known.
    Client(Conn, ClientMessage),
    /// To a primary, on a replication stream. The first one makes the stream known.
    FromBackup(Conn, BackupMessage),
    /// To a backup: its stream to the primary stands.
    Linked(Conn),
    /// To a backup, on its stream.
    FromPrimary(Conn, PrimaryMessage),
    /// A stream is gone, whoever ended it; the node's own `Close` included.
    Gone(Conn),
    /// Everything up to this LSN is durable in the node's own log.
    Persisted(Lsn),
    /// The latest marks are durable: how many `SaveMarks` were carried out in all.
    MarksSaved(u64),
    /// The result of the `Execute` in progress.
    Executed {
        /// One for each command.
        replies: Vec<Bytes>,
        /// One for each query.
        results: Vec<Bytes>,
    },
    /// The result of a `Read`.
    Read {
        /// As asked.
        conn: Conn,
        /// From the LSN asked for on.
        records: Vec<Record>,
    },
    /// The result of a `Judge`: which of the entries to keep.
    Judged(Vec<bool>),
    /// All inputs at hand were delivered: do the batched work now.
    Flush,
    /// The time asked for by `next_timeout` has come.
    Tick,
    /// From an operator.
    Admin(Admin),
}

/// An operator's act.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Admin {
    /// To a backup: become the primary.
    Promote {
        /// Even though the node is not in sync; raises the generation. The operator asserts that the other side is
        /// lost for good.
        force: bool,
        /// What to do when somebody does not come.
        policy: RecoveryPolicy,
    },
    /// To a recovering node: conclude now, with gaps handled like this.
    Resolve(GapPolicy),
    /// To a recovering node: drop what this client reported.
    Exclude(ClientId),
    /// End a session: its replies are dropped, its outcome unknown.
    EndSession(ClientId),
    /// Stop orderly: drain, and leave a mark that skips the next roll call.
    Stop,
}

/// What a recovery does when somebody does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RecoveryPolicy {
    /// Wait for them, or for an operator.
    #[default]
    Wait,
    /// Conclude without them after a while.
    Conclude {
        /// How to handle what is then missing.
        gaps: GapPolicy,
        /// Microseconds without progress, counted from the first report, after which to conclude.
        soft_us: u64,
        /// Microseconds from the promotion after which to conclude in any case.
        hard_us: u64,
    },
}

/// Out of a node's core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// To a client's stream.
    ToClient(Conn, NodeMessage),
    /// To a replication stream, from a primary.
    ToBackup(Conn, PrimaryMessage),
    /// To the replication stream, from a backup.
    ToPrimary(Conn, BackupMessage),
    /// End a stream, after what was sent on it.
    Close(Conn),
    /// Append to the log, sync, and report `Persisted`.
    Append(Records),
    /// Cut the log after this LSN, durably, before anything that follows.
    Truncate(Lsn),
    /// Replace the marks durably and report `MarksSaved`; in order with `Append`.
    SaveMarks(Marks),
    /// Apply these commands, then run these queries, and report `Executed`. One at a time.
    Execute {
        /// In log order; all are commands.
        commands: Commands,
        /// To be run on the state after them.
        queries: Vec<Bytes>,
    },
    /// Read the log for this stream from this LSN on, up to about so many bytes, and report `Read`.
    Read {
        /// To be echoed.
        conn: Conn,
        /// The first LSN wanted.
        from: Lsn,
        /// About how much.
        bytes_max: u64,
    },
    /// Ask the state machine which of these it wants to keep although others are missing; report `Judged`. In order
    /// with `Execute`, each answered, although the core may ask again before the answer comes.
    Judge {
        /// Candidates, in log order.
        entries: Vec<Entry>,
        /// What is lost for good.
        missing: Vec<Missing>,
    },
    /// The answer to the `Admin` input of this step: accepted, or why not.
    AdminDone(Result<(), Error>),
    /// Something an operator would like to know.
    Event(NodeEvent),
    /// The backup is to become a primary: turn its core into one and go on with that.
    Promote,
    /// The node serves nothing any more.
    Halt(Error),
}

/// Something an operator would like to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeEvent {
    /// A recovery ended and the node is primary: its report, as logged, and the LSN of its `EpochStart`.
    Opened {
        /// The report.
        report: Box<crate::log::EpochStart>,
        /// The reign that opens.
        epoch: crate::log::Epoch,
        /// The LSN of its `EpochStart`.
        start: Lsn,
    },
    /// A client observed state that a `Local` service lost: the client, the end of the log it was in, and what it saw.
    ObservedBeyond {
        /// The client.
        client: ClientId,
        /// The last LSN of the reign in the surviving log.
        end: Lsn,
        /// What the client had observed.
        observed: Lsn,
    },
    /// The backup became the stability target.
    InSync,
    /// The primary refused this backup's stream; it is tried again.
    Refused(Error),
    /// A rebuilt command at this LSN was answered otherwise than its client reported: the state machine is not
    /// deterministic.
    Diverged(Lsn),
    /// Whether enough failure domains are connected for what is to be covered; said at each change.
    Coverage {
        /// Some session's writes cannot be covered: they wait for the backup.
        short: bool,
        /// Failure domains that count: connected, outside the primary's own, with room for shares.
        domains: usize,
        /// How many they have to be.
        needed: usize,
    },
    /// A recovery decoded entries that nobody but the shares supplied.
    Decoded {
        /// How many.
        entries: u64,
        /// From how many shares.
        shares: u64,
    },
    /// The node learned of a higher epoch.
    Deposed(crate::log::Epoch),
    /// An orderly stop is complete; `true` if it left the mark that skips the next roll call.
    Stopped(bool),
}

/// The time that begins a core's life is handed in, like every later one.
pub(crate) fn elapsed(since: Time, now: Time) -> u64 {
    now.0.saturating_sub(since.0)
}
