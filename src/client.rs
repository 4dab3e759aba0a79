//! The client: numbers commands, holds what is not stable, and hands it over after a disaster.
//!
//! Its other half is [`crate::primary`]. What the client must not forget is its [`CacheImage`]; the rest of this
//! core is about streams. A command passes through these hands:
//!
//! ```text
//!  unsent ──► in doubt ──tag──► held ──reply──► held, answered ──checkpoint──► released
//!     │          │ ▲                │
//!  withdrawn     │ └── conclusion ──┘
//!                └──reply──► (below the checkpoint already) released
//! ```
//!
//! A frame's tags, headers and replies go to the cache first; what follows from them (a confirm, a result shown to
//! the application) leaves only when the cache has them. Invariants: I3 (in [`image`]), I4, I6, I9.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::error::{Code, Error, Result};
use crate::log::{Digest, Epoch, HEADER_COST, Level, Lsn, Request, SessionRole, Tag, Time};
use crate::message::Conn;
use crate::message::{ClientMessage, NodeMessage, Outcome, Status};
use crate::ordered::Ordered;
use crate::rule::{self, Rule};

pub mod image;
mod stream;
mod traffic;

pub use image::{CacheImage, CacheOp, Command, Identity, Verdict, verdict};

/// The largest command taken before a service has said what it takes.
const COMMAND_BYTES_FIRST: u64 = 1 << 20;
/// Items in one part of a report, unless that were more parts than so many: all of them are queued at once.
pub(crate) const REPORT_ITEMS: usize = 1024;
const REPORT_PARTS: usize = 32;
/// And so many at most, about a megabyte and a half: a part is a message.
const REPORT_ITEMS_MAX: usize = 16 << 10;

/// How a client behaves. Plain data; every bound is in the unit its name ends in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientSettings {
    /// What is in doubt or held may take this much; writes beyond it wait before they are sent.
    pub cache_bytes_max: u64,
    /// Shares kept for others may take this much of `cache_bytes_max`; 0 to keep none. What an earlier connection left may
    /// take as much again for a while.
    pub share_bytes_max: u64,
    /// Commands that have a number and were not sent yet may take this much; a call beyond it is refused as busy.
    pub unsent_bytes_max: u64,
    /// How long a confirm waits for a frame to ride on.
    pub confirm_delay_us: u64,
    /// Queries under way at once.
    pub queries_max: usize,
    /// The cache is in memory only: no [`ClientOutput::Store`] is needed.
    pub volatile: bool,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            cache_bytes_max: 256 << 20,
            share_bytes_max: 64 << 20,
            unsent_bytes_max: 64 << 20,
            confirm_delay_us: 2_000,
            queries_max: 512,
            volatile: false,
        }
    }
}

impl ClientSettings {
    /// Whether the settings make sense.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        if self.cache_bytes_max < 64 * HEADER_COST || self.queries_max == 0 {
            let why = "cache_bytes_max must hold at least 8 KiB, and queries_max must not be 0";
            return Err(Error::new(Code::InvalidArgument, why));
        }
        if self.share_bytes_max > self.cache_bytes_max / 2 {
            let why = "share_bytes_max may take half of cache_bytes_max at most";
            return Err(Error::new(Code::InvalidArgument, why));
        }
        Ok(())
    }

    /// What commands may take: the rest is for headers and shares, which cannot be refused.
    fn commands_bytes_max(&self) -> u64 {
        self.cache_bytes_max - self.cache_bytes_max / 8 - self.share_bytes_max
    }
}

/// Into a client's core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientInput {
    /// A stream to an endpoint stands.
    Connected(Conn),
    /// A stream is gone.
    Gone(Conn),
    /// A message came.
    Message(Conn, NodeMessage),
    /// So many `Store` outputs are carried out, in all.
    Stored(u64),
    /// All inputs and calls at hand were delivered: send what is to be sent.
    Flush,
    /// The time asked for by `next_timeout` has come.
    Tick,
}

/// Out of a client's core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientOutput {
    /// Send on a stream.
    Send(Conn, ClientMessage),
    /// End a stream (it may be opened again).
    Close(Conn),
    /// Write to the cache, in order, and report `Stored`.
    Store(Vec<CacheOp>),
    /// A command's outcome is known.
    Done {
        /// The command.
        request: Request,
        /// How it ended.
        outcome: Outcome,
        /// Its tag, if it is in the log.
        tag: Option<Tag>,
    },
    /// A query's result.
    Result {
        /// As returned by [`Client::query`].
        id: u64,
        /// The application's answer.
        result: Result<Bytes>,
    },
    /// Everything issued before this flush is stable.
    Flushed(u64),
    /// Something the application may want to know.
    Event(ClientEvent),
    /// Endpoints of the group that a node named.
    Endpoints(Vec<String>),
    /// The session is over; whatever has no outcome yet never gets one.
    Failed(Error),
    /// The session was closed in good order.
    Closed,
}

/// Something the application may want to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClientEvent {
    /// The session is established in this reign.
    Attached {
        /// The reign.
        epoch: Epoch,
    },
    /// The client reports to a recovering node.
    Recovering {
        /// The epoch that is to begin.
        epoch: Epoch,
    },
    /// The session has to wait; why.
    Waiting(Error),
    /// A node refused the stream; why.
    Refused(Error),
    /// An *acknowledged* command did not survive a recovery that was concluded by policy. It may be issued again,
    /// as a new request.
    Superseded {
        /// Its number.
        request: Request,
        /// The application's bytes.
        payload: Bytes,
    },
    /// State that was revealed to this client did not survive.
    RolledBack {
        /// The reign in which it was observed.
        epoch: Epoch,
        /// The highest LSN observed.
        observed: Lsn,
    },
    /// The service forgot the session.
    Expired,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Unsent {
    payload: Bytes,
    level: Level,
    digest: Digest,
    withdrawn: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asking {
    payload: Bytes,
    level: Level,
    sent: bool,
    /// Nobody waits for the result any more.
    forgotten: bool,
}

/// The stream on which the session is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    conn: Conn,
    epoch: Epoch,
    /// The reign that a roll call is about.
    of: Epoch,
    live: Option<Live>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Live {
    /// The last frame taken.
    seq: u64,
    /// The last frame confirmed.
    confirmed: u64,
    /// The next number this stream carries.
    next: Request,
    window: u64,
    window_bytes: u64,
    lowest: Level,
    /// What cannot be covered is refused at the call.
    refuse_uncovered: bool,
    /// Too few failure domains are connected to cover what this client writes.
    short: bool,
    close_sent: bool,
}

/// The core of a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    settings: ClientSettings,
    image: CacheImage,
    /// The last number given out.
    last: Request,
    unsent: Ordered<Request, Unsent>,
    /// Bytes of `unsent`, by the cost their commands will have.
    unsent_bytes: u64,
    asking: BTreeMap<u64, Asking>,
    last_query: u64,
    flushes: BTreeMap<u64, Request>,
    last_flush: u64,
    command_bytes_max: u64,
    /// Nodes whose hello was answered.
    nodes: BTreeMap<Conn, Status>,
    session: Option<Session>,
    confirm_due: Option<Time>,
    ops: Vec<CacheOp>,
    stores: u64,
    stored: u64,
    /// What may leave once so many stores are done.
    gated: VecDeque<(u64, ClientOutput)>,
    closing: bool,
    ended: bool,
}

impl Client {
    /// A client on the content of its cache. The identity must be set (by a first [`CacheOp::Identity`]).
    ///
    /// # Panics
    /// If `image` has no identity.
    pub fn new(settings: ClientSettings, image: CacheImage, now: Time, out: &mut Vec<ClientOutput>) -> Self {
        let _ = now;
        assert!(image.identity.is_some(), "a client has an identity");
        let mut client = Self {
            settings,
            last: image.last,
            image,
            unsent: Ordered::new(),
            unsent_bytes: 0,
            asking: BTreeMap::new(),
            last_query: 0,
            flushes: BTreeMap::new(),
            last_flush: 0,
            command_bytes_max: COMMAND_BYTES_FIRST,
            nodes: BTreeMap::new(),
            session: None,
            confirm_due: None,
            ops: Vec::new(),
            stores: 0,
            stored: 0,
            gated: VecDeque::new(),
            closing: false,
            ended: false,
        };
        let identity = client.image.identity.clone().expect("asserted above");
        client.keep(CacheOp::Identity(identity));
        client.keep(CacheOp::Incarnation(client.image.incarnation + 1));
        client.store(out);
        client
    }

    /// Takes one input and pushes what has to be done about it, in order.
    pub fn step(&mut self, now: Time, input: ClientInput, out: &mut Vec<ClientOutput>) {
        match input {
            // What was gated still has to leave.
            ClientInput::Stored(stored) => self.stored = self.stored.max(stored),
            _ if self.ended => {}
            ClientInput::Connected(conn) => self.on_connected(conn, out),
            ClientInput::Gone(conn) => self.on_gone(conn, out),
            ClientInput::Message(conn, message) => self.on_message(now, conn, message, out),
            ClientInput::Flush | ClientInput::Tick => {
                let due = self.confirm_due.is_some_and(|at| now >= at);
                self.send(now, due, out);
            }
        }
        self.check_flushes(out);
        self.store(out);
        self.open_gate(out);
    }

    /// When to call [`step`](Client::step) with a `Tick` though nothing else happens.
    pub fn next_timeout(&self) -> Option<Time> {
        // One that ended is told nothing any more, and would ask for the same time for ever.
        self.confirm_due.filter(|_| !self.ended)
    }

    /// What the client must not forget.
    pub fn image(&self) -> &CacheImage {
        &self.image
    }

    /// The epoch of the established session.
    pub fn attached(&self) -> Option<Epoch> {
        self.session.as_ref().filter(|session| session.live.is_some()).map(|session| session.epoch)
    }

    /// How many commands have a number and were not sent yet.
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Takes the next number for a command. It is sent, in order, when window and cache have room.
    ///
    /// # Errors
    /// [`Code::TooLarge`], [`Code::Busy`] beyond `unsent_bytes_max`, [`Code::Uncovered`] where the service refuses what too few
    /// clients are there to cover, or [`Code::Closed`] after a close or the end of the session.
    pub fn write(&mut self, payload: Bytes, level: Level) -> Result<Request> {
        self.check_call(&payload)?;
        self.check_cover(level)?;
        let cost = payload.len() as u64 + HEADER_COST;
        if !self.unsent.is_empty() && self.unsent_bytes + cost > self.settings.unsent_bytes_max {
            return Err(Error::new(Code::Busy, format!("{} commands wait to be sent already", self.unsent.len())));
        }
        self.unsent_bytes += cost;
        self.last = self.last.next();
        let digest = Digest::crc32(&payload);
        self.unsent.insert(self.last, Unsent { payload, level, digest, withdrawn: false });
        Ok(self.last)
    }

    /// As [`write`](Client::write), but only if the command can be sent at once.
    ///
    /// # Errors
    /// As `write`, and [`Code::Busy`] with the cause.
    pub fn try_write(&mut self, payload: Bytes, level: Level) -> Result<Request> {
        self.check_call(&payload)?;
        let busy = |why: &str| Err(Error::new(Code::Busy, why));
        let Some(live) = self.session.as_ref().and_then(|session| session.live.as_ref()) else {
            return busy("no session is established");
        };
        let request = self.last.next();
        if !self.unsent.is_empty() || live.next < request {
            return busy("earlier commands wait to be sent");
        }
        if !self.fits_window(live, request, payload.len() as u64) {
            return busy("the request window is full");
        }
        if !self.fits_cache(payload.len() as u64) {
            return busy("the write cache is full: the backup is behind, or not there");
        }
        self.write(payload, level)
    }

    /// Withdraws a command that was not sent; its number is then consumed without effect. `false` if it was sent.
    pub fn withdraw(&mut self, request: Request) -> bool {
        let Some(unsent) = self.unsent.get_mut(&request) else {
            return false;
        };
        unsent.withdrawn = true;
        self.unsent_bytes -= unsent.payload.len() as u64;
        unsent.payload = Bytes::new();
        unsent.digest = Digest::crc32(&[]);
        true
    }

    /// Asks a query; the result comes with the id returned. It is asked again on a new stream.
    ///
    /// # Errors
    /// As [`write`](Client::write), and [`Code::Busy`] beyond `queries_max`.
    pub fn query(&mut self, payload: Bytes, level: Level) -> Result<u64> {
        self.check_call(&payload)?;
        if self.asking.len() >= self.settings.queries_max {
            return Err(Error::new(Code::Busy, format!("{} queries are under way", self.asking.len())));
        }
        self.last_query += 1;
        self.asking.insert(self.last_query, Asking { payload, level, sent: false, forgotten: false });
        Ok(self.last_query)
    }

    /// Forgets a query nobody waits for any more. One that is under way takes its place among `queries_max` until it is
    /// answered or its stream ends; it is not asked again.
    pub fn forget_query(&mut self, id: u64) {
        match self.asking.get_mut(&id) {
            Some(asking) if asking.sent => asking.forgotten = true,
            _ => drop(self.asking.remove(&id)),
        }
    }

    /// Whether the outcome of this request is still to come.
    pub fn is_open(&self, request: Request) -> bool {
        let command = self.image.commands.get(&request);
        self.unsent.contains_key(&request) || command.is_some_and(|command| command.reply.is_none())
    }

    /// Asks to be told when everything issued so far is stable (or superseded); the token comes back.
    pub fn flush(&mut self) -> u64 {
        self.last_flush += 1;
        self.flushes.insert(self.last_flush, self.last);
        self.last_flush
    }

    /// Forgets a flush nobody waits for any more.
    pub fn forget_flush(&mut self, token: u64) {
        self.flushes.remove(&token);
    }

    /// Ends the session once everything is answered and stable. No further calls are accepted.
    pub fn close(&mut self) {
        self.closing = true;
    }

    fn check_cover(&self, level: Level) -> Result<()> {
        let live = self.session.as_ref().and_then(|session| session.live.as_ref());
        let uncovered = |live: &Live| live.refuse_uncovered && live.short && live.lowest.max(level) == Level::Covered;
        if live.is_some_and(uncovered) {
            let why = "too few failure domains are connected to cover this write: try again when more clients, or holders, \
                       are there, or ask for Level::Stable";
            return Err(Error::new(Code::Uncovered, why));
        }
        Ok(())
    }

    fn check_call(&self, payload: &Bytes) -> Result<()> {
        if self.image.identity.as_ref().is_some_and(|identity| identity.role == SessionRole::Holder) {
            return Err(Error::new(
                Code::InvalidArgument,
                "a holder only keeps shares: open another session to read or write",
            ));
        }
        if self.closing || self.ended {
            return Err(Error::new(Code::Closed, "the session is closed"));
        }
        if payload.len() as u64 > self.command_bytes_max {
            let why =
                format!("{} bytes are more than the service's limit of {}", payload.len(), self.command_bytes_max);
            return Err(Error::new(Code::TooLarge, why));
        }
        Ok(())
    }

    fn keep(&mut self, op: CacheOp) {
        self.image.apply(&op);
        if !self.settings.volatile {
            self.ops.push(op);
        }
    }

    fn store(&mut self, out: &mut Vec<ClientOutput>) {
        if !self.ops.is_empty() {
            self.stores += 1;
            out.push(ClientOutput::Store(std::mem::take(&mut self.ops)));
        }
    }

    /// Queues what may leave only when the cache has everything kept so far.
    fn gate(&mut self, output: ClientOutput) {
        self.gated.push_back((self.stores, output));
    }

    fn open_gate(&mut self, out: &mut Vec<ClientOutput>) {
        let open = !rule::on(Rule::CacheBeforeConfirm);
        while self.gated.front().is_some_and(|(needed, _)| *needed <= self.stored || open) {
            out.extend(self.gated.pop_front().map(|(_, output)| output));
        }
    }

    fn check_flushes(&mut self, out: &mut Vec<ClientOutput>) {
        let _ = out;
        let first = self.unsent.keys().next().into_iter().chain(self.image.commands.keys().next()).min().copied();
        let done = self.flushes.iter().filter(|(_, upto)| first.is_none_or(|first| first > **upto));
        for token in done.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.flushes.remove(&token);
            self.gate(ClientOutput::Flushed(token));
        }
    }
}
