//! The log's vocabulary: epochs, LSNs, headers, entries, tags, and the unstable part of the log in memory.
//!
//! A primary's reign is an [`Epoch`]; within the log every record has the next [`Lsn`], dense from 1, across
//! epochs. A rebuilt entry keeps its own header, so an entry of epoch *e* may stand in the log of a later reign:
//!
//! ```text
//! lsn     1          2   3   4   5          6   7
//! epoch   e1         e1  e1  e1  e2         e2  e2
//! body    EpochStart Open c   c  EpochStart c   c
//!                            ^ valid end of e1
//! ```
//!
//! Invariants: I1 (prefix) by density, I4 through [`Unstable::unconfirmed_in`].
//! Not here: who may append ([`crate::primary`]), and where records are kept ([`crate::store`]).

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

mod places;
mod records;

pub use places::{PLACES_BYTES_MAX, PLACES_MAX, Places, Placing, Run};
pub use records::{Commands, Records, Tail, Unstable};

/// Defines an identity newtype over an integer that prints in hex.
macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $int);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:x})"), self.0)
            }
        }
    };
}

hex_id!(
    /// 128 random bits that name a cluster; made when its first log is created.
    ClusterId, u128
);
hex_id!(
    /// 128 random bits that name a replicated group within a cluster.
    GroupId, u128
);
hex_id!(
    /// 64 random bits that name a node (one log directory).
    NodeId, u64
);
hex_id!(
    /// 128 random bits that name a session; never reused, not even by the client that lost its cache.
    ClientId, u128
);

/// Defines a counter newtype over `u64` that prints in decimal.
macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub u64);
        impl $name {
            /// The one after this. Saturates: nothing ever gets there, and a forged value must not panic.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
            /// The one before this, or zero.
            #[must_use]
            pub const fn prev(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

counter!(
    /// Log sequence number, dense from 1. Zero means "before the first".
    Lsn
);
counter!(
    /// A client's number of a command: 1, 2, 3 … in the order of its calls. Zero means "before the first".
    Request
);
counter!(
    /// Microseconds on the node's or client's own clock; never goes back. A primary's counts from the Unix epoch.
    Time
);

impl Time {
    /// This time and `micros` more.
    #[must_use]
    pub const fn after(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}

/// A primary's reign, and the fencing token of everything done in it. Ordered by generation, number, node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch {
    /// Raised by a forced promotion, so that it outranks whatever the lost side may still mint.
    pub generation: u32,
    /// Raised by every takeover and restart.
    pub number: u64,
    /// The node that minted it: two nodes never mint the same epoch.
    pub node: NodeId,
}

impl Epoch {
    /// Before any reign.
    pub const ZERO: Epoch = Epoch { generation: 0, number: 0, node: NodeId(0) };

    /// The epoch `node` mints after `self`; a `forced` one raises the generation.
    #[must_use]
    pub fn successor(self, node: NodeId, forced: bool) -> Epoch {
        let generation = self.generation.saturating_add(u32::from(forced));
        Epoch { generation, number: self.number.saturating_add(1), node }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.generation > 0 {
            write!(f, "{}!{}@{}", self.generation, self.number, self.node)
        } else {
            write!(f, "{}@{}", self.number, self.node)
        }
    }
}

/// A checksum with the algorithm that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Digest {
    /// 0: none (system entries, whose body is in the header). 1: CRC-32 (IEEE), as in RFC 1952.
    pub algorithm: u8,
    /// The value, in the low bits.
    pub value: u64,
}

impl Digest {
    /// The identifier of CRC-32.
    pub const CRC32: u8 = 1;

    /// The CRC-32 of `bytes`.
    pub fn crc32(bytes: &[u8]) -> Self {
        Self { algorithm: Self::CRC32, value: u64::from(crc32fast::hash(bytes)) }
    }

    /// Whether `bytes` have this digest. An algorithm this build does not know verifies nothing.
    pub fn verifies(self, bytes: &[u8]) -> bool {
        self.algorithm == Self::CRC32 && self == Self::crc32(bytes)
    }
}

/// The client and request number of an entry: the key of exactly-once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Origin {
    /// The session.
    pub client: ClientId,
    /// Its number of the command; zero for session kinds (`Open`, `Suspend`, …).
    pub request: Request,
}

/// What a write waits for before it is acknowledged, and what it then survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Level {
    /// Applied. Survives what the primary's disk survives; nothing is held. A mode of the whole service.
    Local,
    /// Applied, and the tag sent. Survives the loss of the primary site as long as the writing clients live.
    #[default]
    Tagged,
    /// Covered: every entry up to this one is stable, or can be rebuilt without the primary's site and without any *f*
    /// failure domains of clients. Costs a round trip to other clients. Where the service sets *f* to 0, `Stable`.
    Covered,
    /// Durable at the stability target. Survives the loss of the primary site and of every client.
    Stable,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum SessionRole {
    /// Reads and writes.
    #[default]
    Writer,
    /// Reads only.
    Reader,
    /// Neither reads nor writes: it keeps shares for others.
    Holder,
}

/// Whose disk makes an entry stable. A logged fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Target {
    /// The primary's own disk: a service without a backup.
    #[default]
    Own,
    /// The disk of this backup.
    Backup(NodeId),
}

/// How a recovery treats the LSNs that nothing supplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GapPolicy {
    /// The log ends before the first gap: a consistent prefix. What followed is superseded.
    Stop,
    /// Later entries are kept where the state machine says that they do not depend on what is missing.
    Skip,
}

/// A session as its `Open` entry declares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct SessionInfo {
    /// The incarnation of the client's cache; raised each time a process opens it.
    pub incarnation: u64,
    /// The failure domain the client runs in.
    pub domain: String,
    /// What it is for.
    pub role: SessionRole,
}

/// A new reign's first entry. It carries the report of the recovery that led to it, so that every decision
/// about a gap is durable before anyone is answered, and the same after another crash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct EpochStart {
    /// The reign this one continues; `Epoch::ZERO` in a new log.
    pub previous: Epoch,
    /// The recovering node's durable LSN when it began: everything up to here came from its own log.
    pub base: Lsn,
    /// The highest LSN that anyone reported to have observed (at least `base`).
    pub observed: Lsn,
    /// How many failure domains of clients may be lost with the primary, and every acknowledged write of this reign
    /// survives: 0 where the lowest level is below `Covered`.
    pub f: u8,
    /// The lowest level the service accepts in this reign.
    pub lowest: Level,
    /// Whether this reign sends nothing of an entry to anyone before it is on the primary's own disk.
    pub log_before_send: bool,
    /// The stability target when the reign opens.
    pub target: Target,
    /// How gaps were handled, if the recovery was concluded without everything.
    pub policy: Option<GapPolicy>,
    /// Sessions that were awaited and did not come.
    pub missing: Vec<ClientId>,
    /// Reporters that an operator excluded.
    pub excluded: Vec<ClientId>,
    /// LSNs in `(base, valid end]` whose entries are lost, half-open ranges in order; each is a `Noop` in the log.
    pub gaps: Vec<Range<Lsn>>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// The application's opaque bytes, which are the entry's payload.
    Command,
    /// An LSN (and a request number, if it has an origin) consumed without effect.
    Noop,
    /// A session begins.
    Open(SessionInfo),
    /// A session is off the roster until it resumes.
    Suspend,
    /// A suspended or absent session is back, with this incarnation.
    Resume(u64),
    /// A session ended by its client.
    Close,
    /// A session ended by the service; its replies are dropped.
    Expire,
    /// A new stability target.
    Config(Target),
    /// A new reign.
    EpochStart(Box<EpochStart>),
}

/// Everything about an entry but a command's payload. System entries are wholly described by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// The reign in which the entry was ordered.
    pub epoch: Epoch,
    /// Its place in the log.
    pub lsn: Lsn,
    /// What it is.
    pub body: Body,
    /// Who issued it; `None` for entries of the node itself.
    pub origin: Option<Origin>,
    /// The primary's clock when it was ordered; what the state machine sees as "now".
    pub time: Time,
    /// Up to where the client had all its replies when it issued this.
    pub answered: Request,
    /// Length of the payload in bytes.
    pub length: u32,
    /// Of the payload.
    pub digest: Digest,
}

impl Header {
    /// Whether any payload could go with it: only a command has one, and an empty one has the digest of nothing.
    pub fn is_possible(&self) -> bool {
        let fits = match self.body {
            Body::Command => self.length > 0 || self.digest.verifies(&[]),
            _ => self.length == 0,
        };
        // Nothing could follow the last number there is.
        fits && self.lsn.next() > self.lsn
    }
}

/// An ordered record of the log: header and payload (empty unless it is a command).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The header.
    pub header: Header,
    /// The application's bytes.
    pub payload: Bytes,
}

/// An entry with the checksum of the reply it got: what is replicated and stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The entry.
    pub entry: Entry,
    /// Of the reply; the default (algorithm 0) for entries that have none.
    pub reply: Digest,
}

impl Record {
    /// For tests that need one at some place.
    #[cfg(test)]
    pub(crate) fn noop(lsn: Lsn) -> Self {
        let header = Header {
            epoch: Epoch::ZERO,
            lsn,
            body: Body::Noop,
            origin: None,
            time: Time(0),
            answered: Request(0),
            length: 0,
            digest: Digest::default(),
        };
        Self { entry: Entry { header, payload: Bytes::new() }, reply: Digest::default() }
    }

    /// Its place in the log.
    pub fn lsn(&self) -> Lsn {
        self.entry.header.lsn
    }

    /// Whether the payload is the one that the header announces.
    pub fn is_intact(&self) -> bool {
        let header = &self.entry.header;
        let length = self.entry.payload.len() as u64 == u64::from(header.length);
        length
            && if header.body == Body::Command {
                header.digest.verifies(&self.entry.payload)
            } else {
                header.length == 0
            }
    }

    /// What it counts against a budget, in bytes: payload and an allowance for the header.
    pub fn cost(&self) -> u64 {
        self.entry.payload.len() as u64 + HEADER_COST
    }
}

/// What a header counts against a budget, in bytes.
pub const HEADER_COST: u64 = 128;

/// What a response carries beside the reply, and what obliges a client to hold.
///
/// The reference protocol's tag lacks `time`; without it a client could not hand over its entry exactly as it
/// was ordered, so it is part of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// The reign.
    pub epoch: Epoch,
    /// The entry's place in the log.
    pub lsn: Lsn,
    /// The primary's clock when it was ordered.
    pub time: Time,
    /// Hold the entry until `stable` passes this, which lies past `lsn` where others' entries can only be decoded with
    /// the help of this one. `None`: not known yet; hold it until a frame's `settled` passes `lsn`.
    pub hold_until: Option<Lsn>,
    /// The checkpoint when the response was written.
    pub stable: Lsn,
    /// Whether the write is held outside the primary's failure domain, or stable.
    pub protected: bool,
    /// The strongest level that the entry met when the response was written. A write that asked for `Covered` and got
    /// `Stable` had to wait for the backup, for want of clients to cover it.
    pub met: Level,
}

/// One reign as the log's table of epochs records it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reign {
    /// The reign.
    pub epoch: Epoch,
    /// The LSN of its `EpochStart`.
    pub start: Lsn,
    /// The base of the recovery that led to it.
    pub base: Lsn,
    /// The lost LSNs of the *previous* reign that its recovery could not rebuild.
    pub gaps: Vec<Range<Lsn>>,
}

/// Whether `lsn` lies in one of the half-open `ranges`.
pub fn in_ranges(ranges: &[Range<Lsn>], lsn: Lsn) -> bool {
    ranges.iter().any(|range| range.contains(&lsn))
}
