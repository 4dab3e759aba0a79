//! The storage a node and a client stand on: traits, and in the submodules what the crate ships.
//!
//! Everything here is blocking and object safe, and `io::Result` throughout; a node calls it from threads of its
//! own. The protocol core never reads storage: durability reaches it as an input. Any error stops the node from
//! serving; nothing that was acknowledged as durable may be lost by it.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::client::CacheOp;
use crate::error::{Code, Error};
use crate::log::{ClusterId, Entry, Epoch, GroupId, Lsn, NodeId, Record};

pub mod conformance;
mod encoded;
pub mod file;
pub mod kv;
pub mod memory;

pub use encoded::Encoded;

/// The few facts a node must not forget, kept apart from the log and replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Marks {
    /// Whose log this is.
    pub cluster: ClusterId,
    /// Whose log this is.
    pub group: GroupId,
    /// The node itself.
    pub node: NodeId,
    /// The highest epoch this node promised: it refuses every lower one.
    pub promised: Epoch,
    /// The newest reign this node took part in, with that reign's base: without the reign's `EpochStart` in the
    /// log, what lies past the base is provisional.
    pub reign: Epoch,
    /// The base of `reign`.
    pub base: Lsn,
    /// The backup was granted to be the stability target, and may be promoted.
    pub in_sync: bool,
    /// An orderly stop with everything stable, at this last LSN; erased before the next acknowledgement.
    pub clean: Option<Lsn>,
    /// A lower bound of `stable`, saved now and then by a primary that logs before it sends.
    pub stable: Lsn,
}

/// An append-only log of records with dense LSNs, and an atomic place for the node's [`Marks`].
///
/// `append` may buffer. What [`sync`](LogStore::sync) returned survives a crash of process and machine; what was
/// appended after it may survive or not, but only as a prefix.
pub trait LogStore: Send + 'static {
    /// The marks last saved, or `None` in a new store.
    ///
    /// # Errors
    /// If they cannot be read, or are damaged.
    fn marks(&mut self) -> io::Result<Option<Marks>>;

    /// Replaces the marks; durable when it returns.
    ///
    /// # Errors
    /// If they could not be made durable; the old ones are then still in place.
    fn save_marks(&mut self, marks: &Marks) -> io::Result<()>;

    /// First and next LSN: the log holds the records of this half-open range, appended ones included.
    fn bounds(&self) -> Range<Lsn>;

    /// Records from `from` on in order, appended ones included: at least one if there is any, then as many as fit
    /// about `bytes_max` bytes.
    ///
    /// # Errors
    /// If the store cannot be read or a record is damaged (the error names the place).
    fn read(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Vec<Record>>;

    /// As [`read`](LogStore::read), and leaves it to the caller to take them apart. A store that keeps records in the form of
    /// [`codec`](crate::codec) does better than the default, which decodes them: a node starts sooner.
    ///
    /// # Errors
    /// As [`read`](LogStore::read), but that what is in a record may be found damaged only when it is decoded.
    fn read_encoded(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Encoded> {
        self.read(from, bytes_max).map(Encoded::from)
    }

    /// Appends records; the first must have the next LSN.
    ///
    /// # Errors
    /// If the store is full or fails. Nothing appended before is lost, and the log still ends where it did.
    fn append(&mut self, records: &[Record]) -> io::Result<()>;

    /// Makes everything appended durable and returns the last durable LSN.
    ///
    /// # Errors
    /// If it could not. The store must not be used further: what the last appends left behind is unknown.
    fn sync(&mut self) -> io::Result<Lsn>;

    /// Cuts everything after `last`, durably. What is cut is set aside for inspection where the store can.
    ///
    /// # Errors
    /// If the cut could not be made durable.
    fn truncate_after(&mut self, last: Lsn) -> io::Result<()>;
}

/// An entry that a recovery could not rebuild: its LSN, and its header where somebody had it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Missing {
    /// Its place.
    pub lsn: Lsn,
    /// What is known of it.
    pub header: Option<crate::log::Header>,
}

/// The application: a deterministic function of the commands applied to it, in order.
///
/// Same commands, same headers (the time included), same replies: on every node and at every replay. A node
/// whose replies differ from the recorded ones stops with [`Code::Diverged`].
pub trait StateMachine: Send + 'static {
    /// Applies commands in order and pushes exactly one reply for each.
    ///
    /// A payload may be a part of a larger buffer, which it keeps alive: what the state remembers of it, or answers with, is
    /// better a copy.
    ///
    /// # Errors
    /// Only of its own storage: the node then stops. A command that makes no sense gets a reply that says so.
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()>;

    /// Answers a query from the state as it is, changing nothing.
    ///
    /// # Errors
    /// Only of its own storage: the node then stops.
    fn query(&mut self, query: &Bytes) -> io::Result<Bytes>;

    /// The LSN up to which the state survives a restart by itself; zero for a state in memory.
    ///
    /// Nodes of this version rebuild the state from the log and refuse to start on a value above zero.
    fn durable(&self) -> Lsn {
        Lsn(0)
    }

    /// Allows the state to make itself durable up to `upto`, never above. Not called by this version.
    ///
    /// # Errors
    /// Of its own storage.
    fn persist(&mut self, upto: Lsn) -> io::Result<()> {
        let _ = upto;
        Ok(())
    }

    /// Writes the whole state.
    ///
    /// # Errors
    /// Of `out`.
    fn snapshot(&self, out: &mut dyn io::Write) -> io::Result<()>;

    /// Replaces the state by one that [`snapshot`](StateMachine::snapshot) wrote.
    ///
    /// # Errors
    /// Of `from`, or if it is no such snapshot; the state is then as it was.
    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()>;

    /// Whether `later` means the same although `missing`, in LSN order, was lost before or after it. Asked at a conclusion
    /// that skips gaps; what depends on a loss is lost with it, and then missing itself: the rest is asked about again, until
    /// nothing more is given up. The default keeps nothing.
    fn independent(&self, later: &Entry, missing: &[Missing]) -> bool {
        let _ = (later, missing);
        false
    }
}

/// Where a client keeps what it holds, so that a restarted process continues its session.
///
/// The content is a sequence of [`CacheOp`]s; applying them in order to an empty
/// [`CacheImage`](crate::client::CacheImage) gives the state.
pub trait ClientCache: Send + 'static {
    /// Every operation needed to rebuild the state (the store may have compacted them), in order.
    ///
    /// # Errors
    /// If the cache cannot be read or is damaged before its last write.
    fn load(&mut self) -> io::Result<Vec<CacheOp>>;

    /// Appends operations. When it returns they survive a crash of the process, and of the machine where the
    /// implementation says so.
    ///
    /// # Errors
    /// If it could not; the client stops with the error.
    fn write(&mut self, ops: &[CacheOp]) -> io::Result<()>;
}

/// What every log has to refuse: records that do not follow each other, or do not follow what is there.
fn check_dense(next: Lsn, records: &[Record]) -> io::Result<()> {
    for (expected, record) in (next.0..).zip(records) {
        if record.lsn() != Lsn(expected) {
            let why = format!("record {} was appended where {expected} is next: a log is dense", record.lsn());
            return Err(Error::new(Code::InvalidArgument, why).into());
        }
    }
    Ok(())
}
