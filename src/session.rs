//! Sessions, request numbers, reply windows and the table of epochs: what the log says, apart from the
//! application's state.
//!
//! [`LogState`] is a pure function of the log and of the replies the state machine gave. Every node computes it,
//! so the roster of a recovery and the reply to a repeated request are the same wherever they are asked:
//!
//! * the **roster** is who may hold acknowledged or observed entries: `Open` and `Resume` put a session on,
//!   `Suspend`, `Close` and `Expire` take it off, and an `EpochStart` takes off whom its recovery did not wait for;
//! * the **reply window** holds the replies a client may still ask for: everything after the `answered` of its last
//!   entry.
//!
//! Invariants: I6 (exactly once) is decided here; I1 (dense, ordered epochs) is checked for every record, whether it
//! comes from a disk, a peer or a rebuild, and a violation is an error, since none of those is us.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::error::{Code, Error, Result};
use crate::log::{
    Body, ClientId, Digest, Epoch, EpochStart, Header, Level, Lsn, Record, Reign, Request, SessionInfo, Target, Time,
};
use crate::ordered::Ordered;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// On the roster.
    On,
    /// Off the roster: disconnected, with everything it wrote or saw stable.
    Suspended,
    /// Off the roster by a recovery that was concluded without it.
    Absent,
}

impl Standing {
    /// As operators read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Suspended => "suspended",
            Self::Absent => "absent",
        }
    }
}

/// A reply a client may still ask for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// Where the command stands in the log.
    pub lsn: Lsn,
    /// The length and checksum of the command.
    pub command: (u32, Digest),
    /// What the state machine answered.
    pub reply: Bytes,
}

/// A session as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// As opened; the incarnation is the newest one logged.
    pub info: SessionInfo,
    /// The lowest number that no other session had when it was opened; its own until it ends.
    pub handle: u32,
    /// Whether it is on the roster.
    pub standing: Standing,
    /// The entry that gave it its standing.
    pub since: Lsn,
    /// The primary's clock at that entry.
    pub since_time: Time,
    /// The lowest request number not yet used.
    pub next: Request,
    /// The last LSN of an entry of its own.
    pub last: Lsn,
    /// Replies it may still ask for.
    pub replies: Ordered<Request, Reply>,
}

/// What the log says, apart from the application's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct LogState {
    end: Lsn,
    time: Time,
    sessions: BTreeMap<ClientId, Session>,
    /// Sessions by their handles, and the handles that are free among them.
    handles: Vec<ClientId>,
    free: BTreeSet<u32>,
    reigns: Vec<Reign>,
    start: EpochStart,
    target: Target,
}

impl LogState {
    /// The state of an empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last LSN applied.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// The time of the last entry.
    pub fn time(&self) -> Time {
        self.time
    }

    /// The reign of the last `EpochStart`; `Epoch::ZERO` in an empty log.
    pub fn epoch(&self) -> Epoch {
        self.reigns.last().map_or(Epoch::ZERO, |reign| reign.epoch)
    }

    /// The reign in which the entry at `lsn` was ordered.
    pub fn epoch_at(&self, lsn: Lsn) -> Epoch {
        let after = self.reigns.partition_point(|reign| reign.start <= lsn);
        after.checked_sub(1).map_or(Epoch::ZERO, |at| self.reigns[at].epoch)
    }

    /// The last `EpochStart`.
    pub fn start(&self) -> &EpochStart {
        &self.start
    }

    /// The lowest level of the present reign.
    pub fn lowest(&self) -> Level {
        self.start.lowest
    }

    /// The stability target.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The table of epochs from the first one not below `oldest`.
    pub fn reigns_from(&self, oldest: Epoch) -> &[Reign] {
        let from = self.reigns.partition_point(|reign| reign.epoch < oldest);
        &self.reigns[from..]
    }

    /// A session.
    pub fn session(&self, client: ClientId) -> Option<&Session> {
        self.sessions.get(&client)
    }

    /// The session with this handle.
    pub fn holder(&self, handle: u32) -> Option<ClientId> {
        let client = self.handles.get(usize::try_from(handle).ok()?)?;
        (!self.free.contains(&handle)).then_some(*client)
    }

    /// All sessions.
    pub fn sessions(&self) -> &BTreeMap<ClientId, Session> {
        &self.sessions
    }

    /// Who may hold acknowledged or observed entries.
    pub fn roster(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.sessions.iter().filter(|(_, session)| session.standing == Standing::On).map(|(client, _)| *client)
    }

    /// A copy without the replies: enough to try headers on.
    pub fn outline(&self) -> LogState {
        let mut copy = self.clone();
        for session in copy.sessions.values_mut() {
            session.replies.clear();
        }
        copy
    }

    /// Applies the next record of the log, with the reply its command got (`None` for every other kind).
    ///
    /// # Errors
    /// [`Code::Corrupt`] if the record cannot follow what was applied before; [`Code::Diverged`] if the reply is
    /// not the one that was recorded. Nothing is changed then.
    pub fn apply(&mut self, record: &Record, reply: Option<Bytes>) -> Result<()> {
        let header = &record.entry.header;
        if record.reply.algorithm != 0 && !reply.as_ref().is_some_and(|reply| record.reply.verifies(reply)) {
            return Err(Error::new(
                Code::Diverged,
                format!(
                    "the state machine answered {} of {:?} otherwise than it was answered before: \
                     it is not deterministic, or not the same on every node",
                    header.lsn, header.origin
                ),
            ));
        }
        self.apply_header(header, reply)
    }

    /// Applies a header, with the reply its command got.
    ///
    /// # Errors
    /// As [`apply`](LogState::apply), but for the reply.
    pub fn apply_header(&mut self, header: &Header, reply: Option<Bytes>) -> Result<()> {
        self.check_follows(header)?;
        let lsn = header.lsn;
        match (&header.body, header.origin) {
            (Body::Noop, None) => {}
            (Body::Command | Body::Noop, Some(origin)) => {
                let session = self.standing_on(origin.client, header)?;
                if origin.request < session.next {
                    return Err(corrupt(header, "its request number was used before"));
                }
                session.next = origin.request.next();
                session.last = lsn;
                while session.replies.pop_upto(&header.answered).is_some() {}
                let (command, reply) = ((header.length, header.digest), reply.unwrap_or_default());
                session.replies.insert(origin.request, Reply { lsn, command, reply });
            }
            (Body::Open(info), Some(origin)) => {
                if self.sessions.contains_key(&origin.client) {
                    return Err(corrupt(header, "the session is open already"));
                }
                let handle = self.seat(origin.client);
                let session = Session {
                    info: info.clone(),
                    handle,
                    standing: Standing::On,
                    since: lsn,
                    since_time: header.time,
                    next: Request(1),
                    last: lsn,
                    replies: Ordered::new(),
                };
                self.sessions.insert(origin.client, session);
            }
            (Body::Suspend, Some(origin)) => {
                let session = self.standing_on(origin.client, header)?;
                session.stand(Standing::Suspended, header);
            }
            (Body::Resume(incarnation), Some(origin)) => {
                let session = self.known(origin.client, header)?;
                session.info.incarnation = session.info.incarnation.max(*incarnation);
                session.stand(Standing::On, header);
            }
            (Body::Close | Body::Expire, Some(origin)) => {
                let handle = self.known(origin.client, header)?.handle;
                self.sessions.remove(&origin.client);
                self.free.insert(handle);
            }
            (Body::Config(target), None) => self.target = *target,
            (Body::EpochStart(start), None) => self.begin(header, start),
            (_, _) => return Err(corrupt(header, "its origin does not fit its kind")),
        }
        self.end = lsn;
        self.time = self.time.max(header.time);
        Ok(())
    }

    fn check_follows(&self, header: &Header) -> Result<()> {
        if header.lsn != self.end.next() {
            return Err(corrupt(header, "it is not the next in the log"));
        }
        let fits = match &header.body {
            Body::EpochStart(start) => start.previous == self.epoch() && header.epoch > start.previous,
            _ => header.epoch == self.epoch() && self.epoch() != Epoch::ZERO,
        };
        if fits { Ok(()) } else { Err(corrupt(header, "its epoch does not fit the reign before it")) }
    }

    /// The handle of a session that is opened.
    fn seat(&mut self, client: ClientId) -> u32 {
        let new = u32::try_from(self.handles.len()).expect("a log of 2^32 sessions at once does not fit a memory");
        let handle = self.free.pop_first().unwrap_or(new);
        match self.handles.get_mut(handle as usize) {
            Some(seat) => *seat = client,
            None => self.handles.push(client),
        }
        handle
    }

    fn known(&mut self, client: ClientId, header: &Header) -> Result<&mut Session> {
        self.sessions.get_mut(&client).ok_or_else(|| corrupt(header, "its session is not open"))
    }

    fn standing_on(&mut self, client: ClientId, header: &Header) -> Result<&mut Session> {
        let session = self.known(client, header)?;
        if session.standing == Standing::On {
            Ok(session)
        } else {
            Err(corrupt(header, "its session is not on the roster"))
        }
    }

    fn begin(&mut self, header: &Header, start: &EpochStart) {
        for client in start.missing.iter().chain(&start.excluded) {
            if let Some(session) = self.sessions.get_mut(client) {
                session.stand(Standing::Absent, header);
            }
        }
        self.reigns.push(Reign { epoch: header.epoch, start: header.lsn, base: start.base, gaps: start.gaps.clone() });
        self.target = start.target;
        self.start = start.clone();
    }
}

impl Session {
    fn stand(&mut self, standing: Standing, header: &Header) {
        self.standing = standing;
        self.since = header.lsn;
        self.since_time = header.time;
        self.last = header.lsn;
    }
}

fn corrupt(header: &Header, why: &str) -> Error {
    let Header { epoch, lsn, origin, .. } = header;
    Error::new(Code::Corrupt, format!("entry {lsn} of epoch {epoch} (origin {origin:?}) cannot be in this log: {why}"))
}
