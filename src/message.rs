//! What nodes and clients say to each other: plain data, without a wire format.
//!
//! A client stream: `Hello` → `Status` (again at each change of role) → `Attach` → one of
//!
//! ```text
//! Waiting* → Welcome → Frame* both ways         the node is the primary
//! RollCall → Report* / Pull* → Payloads* → Welcome → Frame*     the node is recovering
//! Refused                                        and the stream ends
//! ```
//!
//! A replication stream is opened by the backup: `Hello` → `Welcome` → (`Promise` → `Promised`) →
//! (`Fetch` → `Records`)* → `Append`* / `Ack`*, `Grant` once.

use std::ops::Range;

use bytes::Bytes;

use crate::error::Error;
use crate::log::{
    ClientId, ClusterId, Digest, Epoch, GroupId, Header, Level, Lsn, NodeId, Places, Record, Records, Reign, Request,
    SessionRole, Tag,
};
use crate::share::Share;

/// The protocol version this build speaks.
pub const VERSION: u32 = 1;
/// The optional features this build has, as bits. None is defined yet.
pub const FEATURES: u64 = 0;

/// A stream, numbered by the shell; never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn(pub u64);

/// About how many bytes one frame, or one answer to a pull, takes: what is more goes into the next. A single payload or
/// reply may be larger. With all heads it fits into 256 KiB, for which allocators have a place.
pub const FRAME_BYTES: u64 = 240 << 10;

/// A node's role as it tells clients and operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Follows a primary.
    Backup,
    /// Collects reports after a disaster or restart; serves nothing yet.
    Recovering,
    /// Orders writes.
    Primary,
    /// Was primary, and knows of a higher epoch.
    Deposed,
    /// Stopped by an error or an operator.
    Stopped,
}

/// The first message of every client stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Features the sender has; those both have are used.
    pub features: u64,
    /// The cluster the client belongs to, once it knows.
    pub cluster: Option<ClusterId>,
    /// The group, once it knows.
    pub group: Option<GroupId>,
    /// The highest epoch the client knows of.
    pub epoch: Epoch,
}

/// A node's answer to a hello; pushed again when its role or epoch changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// [`VERSION`] of the node.
    pub version: u32,
    /// Features the node has.
    pub features: u64,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its group.
    pub group: GroupId,
    /// The node.
    pub node: NodeId,
    /// Its failure domain.
    pub domain: String,
    /// What it does now.
    pub role: Role,
    /// Its reign, or as a backup the highest epoch it promised.
    pub epoch: Epoch,
    /// Endpoints of the group's nodes as far as the node knows them.
    pub endpoints: Vec<String>,
}

/// Asks the node to serve (or take the report of) a session on this stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attach {
    /// The epoch the client attaches to: the one in the node's last status.
    pub epoch: Epoch,
    /// The session.
    pub client: ClientId,
    /// The incarnation of its cache.
    pub incarnation: u64,
    /// Its failure domain.
    pub domain: String,
    /// What it is for.
    pub role: SessionRole,
    /// The session was never welcomed: open it if it is not known.
    pub fresh: bool,
    /// Its first request without a reply; numbers are dense on this stream from here on.
    pub from: Request,
    /// The lowest epoch of anything it holds or observed: it needs the table of epochs from there on.
    pub oldest: Epoch,
    /// The reign of `observed`.
    pub observed_epoch: Epoch,
    /// The highest LSN whose state was revealed to it.
    pub observed: Lsn,
    /// How many bytes of shares its cache takes in all, by [`Share::cost`]; 0 to hold none.
    pub share_bytes: u64,
    /// How many bytes of shares of this epoch it holds already: a primary that goes on in its own epoch after a restart
    /// does not know.
    pub shares_held: u64,
}

/// A command on its way to the primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Its number.
    pub request: Request,
    /// Up to where the client has all its replies.
    pub answered: Request,
    /// The level it asks for (the service's lowest applies where that is higher).
    pub level: Level,
    /// The number was withdrawn before it was sent: order it without effect.
    pub withdrawn: bool,
    /// Of the payload, made when the application handed it over.
    pub digest: Digest,
    /// The application's bytes.
    pub payload: Bytes,
}

/// A query on its way to the primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// Echoed with the result; chosen by the client, unique on the stream.
    pub id: u64,
    /// The level it asks for.
    pub level: Level,
    /// The application's bytes.
    pub payload: Bytes,
}

/// A batch from a client on an established session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ClientFrame {
    /// The stream's epoch.
    pub epoch: Epoch,
    /// The client's cache holds everything in the node's frames up to this sequence number.
    pub confirm: u64,
    /// Commands, in request order.
    pub writes: Vec<Write>,
    /// Queries.
    pub queries: Vec<Query>,
    /// End the session once everything is answered.
    pub close: bool,
}

/// One item of a report's index. Its payload stays with the client until it is pulled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReportItem {
    /// A held entry of the client's own.
    Held {
        /// The header, as the tag and the command give it.
        header: Header,
        /// Checksum of the reply, where the client had it.
        reply: Option<Digest>,
    },
    /// A command without a tag, and the level it asked for.
    InDoubt {
        /// Its number.
        request: Request,
        /// Length of the payload in bytes.
        length: u32,
        /// Of the payload.
        digest: Digest,
        /// Up to where the client had all its replies when it first sent it.
        answered: Request,
    },
    /// A header that came in a manifest.
    Header(Header),
    /// Places that came in a manifest.
    Places(Places),
    /// A share; its body is pulled where it is needed.
    Share {
        /// The reign whose entries it combines.
        epoch: Epoch,
        /// Its number.
        id: u64,
        /// Until which checkpoint it is kept: no entry past this is in it.
        hold_until: Lsn,
        /// Length of the body in bytes.
        length: u32,
    },
}

/// A part of a client's report.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    /// The recovering node's epoch.
    pub epoch: Epoch,
    /// Items, in any order.
    pub items: Vec<ReportItem>,
    /// Reign and highest LSN whose state was revealed to the client.
    pub observed: (Epoch, Lsn),
    /// Reign and highest checkpoint the client knows.
    pub stable: (Epoch, Lsn),
    /// "That is all": mandatory on the last part, even of an empty report.
    pub end: bool,
}

/// Payloads a recovering node asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Payloads {
    /// The recovering node's epoch.
    pub epoch: Epoch,
    /// Request number and bytes.
    pub items: Vec<(Request, Bytes)>,
    /// Shares that were asked for.
    pub shares: Vec<Share>,
}

/// From a client to a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientMessage {
    /// First on every stream.
    Hello(Hello),
    /// Makes this stream the session's.
    Attach(Attach),
    /// Work.
    Frame(ClientFrame),
    /// What the client vouches for.
    Report(Report),
    /// What was pulled.
    Payloads(Payloads),
}

/// The session is established; its table of epochs gives the verdict on whatever older reigns left behind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Welcome {
    /// The reign.
    pub epoch: Epoch,
    /// The checkpoint.
    pub stable: Lsn,
    /// The table of epochs from the client's `oldest` on, in order, the present reign last.
    pub reigns: Vec<Reign>,
    /// The lowest level of the service.
    pub lowest: Level,
    /// How many failure domains of clients a `Covered` write survives.
    pub f: u8,
    /// What cannot be covered for want of clients is refused at the call, rather than met when it is stable.
    pub refuse_uncovered: bool,
    /// How many requests may be unanswered at once.
    pub window: u64,
    /// How many bytes of them.
    pub window_bytes: u64,
    /// The largest command, in bytes.
    pub command_bytes_max: u64,
}

/// Of one request: its tag, its reply, or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Response {
    /// The request.
    pub request: Request,
    /// Its tag.
    pub tag: Option<Tag>,
    /// The reply, when the level is met; or that the request was superseded.
    pub outcome: Option<Outcome>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Executed, with this reply.
    Reply(Bytes),
    /// Never executed in the surviving log, and never will be under this number.
    Superseded,
}

/// Of one query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryResult {
    /// As the client chose it.
    pub id: u64,
    /// The LSN at which the query ran.
    pub lsn: Lsn,
    /// The application's answer, or why there is none.
    pub result: Result<Bytes, Error>,
}

/// A batch from the primary on an established session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct NodeFrame {
    /// The stream's epoch.
    pub epoch: Epoch,
    /// Counts the node's frames on this stream from 1; confirmed by the client.
    pub seq: u64,
    /// The checkpoint.
    pub stable: Lsn,
    /// Up to here nobody needs an entry any more to decode another: what has a tag that does not say how long to hold is
    /// released. At most `stable`.
    pub settled: Lsn,
    /// Headers the client may have to vouch for. To be held before anything else in this frame is used.
    pub manifest: Vec<Header>,
    /// The places of commands, for the same: who is in doubt about one has the rest of its header.
    pub places: Vec<Places>,
    /// Shares to be kept for others.
    pub shares: Vec<Share>,
    /// The node waits for the confirm of this frame: it is to be sent at once.
    pub prompt: bool,
    /// Too few failure domains are connected to cover what this client writes.
    pub short: bool,
    /// Tags and replies.
    pub responses: Vec<Response>,
    /// Query results.
    pub results: Vec<QueryResult>,
    /// The session's `Close` is stable: it has ended.
    pub closed: bool,
}

/// From a node to a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeMessage {
    /// What the node is; first on every stream.
    Status(Status),
    /// The attach is accepted but has to wait; why.
    Waiting(Error),
    /// The node is recovering from the reign `of`, above `base`: report.
    RollCall {
        /// The epoch being recovered into.
        epoch: Epoch,
        /// The reign whose items take part.
        of: Epoch,
        /// What is durable there already.
        base: Lsn,
    },
    /// Send the payloads of these requests of yours.
    Pull {
        /// The recovering node's epoch.
        epoch: Epoch,
        /// In LSN order as far as known.
        requests: Vec<Request>,
        /// Shares of the reign being recovered, by number.
        shares: Vec<u64>,
    },
    /// The session is established.
    Welcome(Welcome),
    /// Work.
    Frame(NodeFrame),
    /// No, and the stream ends.
    Refused(Error),
}

/// A backup introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerHello {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Features the sender has.
    pub features: u64,
    /// Its cluster, unless its log is new.
    pub cluster: Option<ClusterId>,
    /// Its group, unless its log is new.
    pub group: Option<GroupId>,
    /// The node.
    pub node: NodeId,
    /// Its failure domain.
    pub domain: String,
    /// Where clients reach it; may be empty.
    pub endpoint: String,
    /// Its last durable LSN.
    pub end: Lsn,
    /// The reign of the last `EpochStart` up to `end`.
    pub last: Epoch,
    /// The highest epoch it promised.
    pub promised: Epoch,
    /// Whether it holds the in-sync mark.
    pub in_sync: bool,
}

/// From a backup to its primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackupMessage {
    /// First on the stream.
    Hello(PeerHello),
    /// `epoch` is promised durably; the log, cut back to where it is certain, ends at `end`, in the reign `last`.
    Promised {
        /// The epoch asked for.
        epoch: Epoch,
        /// The last durable LSN.
        end: Lsn,
        /// The reign of the last `EpochStart` up to `end`.
        last: Epoch,
    },
    /// Records a restarting primary asked for.
    Records {
        /// The epoch promised.
        epoch: Epoch,
        /// In order.
        records: Vec<Record>,
    },
    /// Everything up to `durable` is on the backup's disk.
    Ack {
        /// The stream's epoch.
        epoch: Epoch,
        /// Cumulative.
        durable: Lsn,
        /// The highest echo received.
        echo: u64,
        /// Whether the in-sync mark is durable.
        in_sync: bool,
    },
    /// The backup stops; why.
    Failed(Error),
}

/// From a primary to its backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PrimaryMessage {
    /// The hello is accepted; a new backup takes these identities.
    Welcome {
        /// [`VERSION`] of the primary.
        version: u32,
        /// The cluster.
        cluster: ClusterId,
        /// The group.
        group: GroupId,
        /// The primary's node.
        node: NodeId,
        /// Where clients reach it; may be empty.
        endpoint: String,
    },
    /// A restarting primary asks for a new epoch.
    Promise {
        /// The epoch.
        epoch: Epoch,
    },
    /// A restarting primary asks for what the backup has beyond it.
    Fetch {
        /// The epoch promised.
        epoch: Epoch,
        /// The first LSN wanted.
        from: Lsn,
    },
    /// The next records of the log; empty to carry `echo` or `stable`.
    Append {
        /// The reign.
        epoch: Epoch,
        /// Its base.
        base: Lsn,
        /// The checkpoint.
        stable: Lsn,
        /// To be echoed.
        echo: u64,
        /// In order, the first having the LSN after the last one sent.
        records: Records,
    },
    /// From now on this backup is the stability target: persist the in-sync mark.
    Grant {
        /// The reign.
        epoch: Epoch,
    },
    /// No, and the stream ends.
    Refused(Error),
}

/// Progress of a roll call, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct RecoveryStatus {
    /// What the recovery is doing, in a word: `promising`, `fetching`, `roll-call`, `pulling`, `judging`,
    /// `concluding`, `conflict`.
    pub phase: String,
    /// The base.
    pub base: Lsn,
    /// The highest LSN observed by anyone who reported.
    pub observed: Lsn,
    /// The highest LSN of which a header is known.
    pub known: Lsn,
    /// How many sessions have reported completely, of how many awaited.
    pub reported: usize,
    /// The roster's size.
    pub roster: usize,
    /// Sessions still awaited.
    pub awaited: Vec<ClientId>,
    /// Bytes of payload pulled, of how many wanted.
    pub pulled_bytes: u64,
    /// Bytes of payload wanted.
    pub wanted_bytes: u64,
    /// Shares pulled, of how many reported.
    pub pulled_shares: u64,
    /// Shares reported.
    pub shares: u64,
    /// Entries that only shares supply.
    pub decoded: u64,
    /// LSNs up to `observed` that nothing supplies, as of now.
    pub missing: Vec<Range<Lsn>>,
    /// How many entries known or observed would be lost if the recovery were concluded now with `Stop`.
    pub lost_by_stop: u64,
    /// Why the recovery cannot go on, if two reports contradict each other.
    pub conflict: Option<Error>,
    /// Who said so.
    pub accused: Vec<ClientId>,
}

/// What a node is doing, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeStatus {
    /// As clients see it.
    pub status: Status,
    /// The last LSN of the log.
    pub head: Lsn,
    /// The last LSN durable on the node's own disk.
    pub logged: Lsn,
    /// The checkpoint, as far as the node knows it.
    pub stable: Lsn,
    /// Up to where everything is stable or covered; as `stable` where *f* is 0.
    pub covered: Lsn,
    /// How many failure domains of clients what is covered survives.
    pub f: u8,
    /// Too few failure domains are connected to cover what some session writes.
    pub short: bool,
    /// Shares that clients keep, for what is not stable yet.
    pub shares: u64,
    /// Their bytes.
    pub share_bytes: u64,
    /// Entries of this reign that were covered before they were stable.
    pub covered_entries: u64,
    /// How long these waited, in all, for their stripes to be sealed, in microseconds.
    pub fill_us: u64,
    /// And from then on for the holders' and authors' confirmations, and for the entries before them, in microseconds.
    pub confirm_us: u64,
    /// The stability target.
    pub target: crate::log::Target,
    /// Entries in the delta.
    pub delta_entries: u64,
    /// Bytes in the delta.
    pub delta_bytes: u64,
    /// Age of the oldest entry in the delta, in microseconds.
    pub delta_age_us: u64,
    /// Writes that wait for room in the delta.
    pub waiting_writes: u64,
    /// Whether the backup is connected and in sync (on a backup: whether this node is).
    pub in_sync: bool,
    /// Whether the peer is connected.
    pub connected: bool,
    /// The sessions.
    pub sessions: Vec<SessionStatus>,
    /// In recovery.
    pub recovery: Option<RecoveryStatus>,
    /// Why the node stopped.
    pub failure: Option<Error>,
}

/// A session, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionStatus {
    /// The session.
    pub client: ClientId,
    /// Its failure domain.
    pub domain: String,
    /// What it is for.
    pub role: SessionRole,
    /// Where it stands: `on`, `suspended`, `absent`.
    pub state: String,
    /// Whether a stream of it stands.
    pub connected: bool,
    /// The last LSN of an entry of its own.
    pub last: Lsn,
    /// Unstable entries of its own, which it holds.
    pub held_entries: u64,
    /// Their bytes.
    pub held_bytes: u64,
    /// Bytes of shares it keeps for others, as far as the node counts on them.
    pub share_bytes: u64,
}
