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
use crate::log::{Digest, Epoch, HEADER_COST, Level, Lsn, Request, Tag, Time};
use crate::message::{
    Attach, ClientFrame, ClientMessage, FEATURES, Hello, NodeFrame, NodeMessage, Outcome, Payloads,
    Query, Report, ReportItem, Response, Role, Status, VERSION, Welcome, Write,
};
use crate::node::Conn;
use crate::rule::{self, Rule};

pub mod image;

pub use image::{CacheImage, CacheOp, Command, Identity, Verdict, verdict};

/// Items in one part of a report.
const REPORT_ITEMS: usize = 1024;
/// Bytes of payload in one answer to a pull, and of commands in one frame.
const FRAME_BYTES: u64 = 256 << 10;

/// How a client behaves. Plain data; every bound is in the unit its name ends in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientSettings {
    /// What is in doubt or held may take this much; writes beyond it wait before they are sent.
    pub cache_bytes_max: u64,
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
        Ok(())
    }

    /// What commands may take: the rest is for headers, which cannot be refused.
    fn commands_bytes_max(&self) -> u64 {
        self.cache_bytes_max - self.cache_bytes_max / 8
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
}

/// The stream on which the session is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    conn: Conn,
    epoch: Epoch,
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
    close_sent: bool,
}

/// The core of a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    settings: ClientSettings,
    image: CacheImage,
    /// The last number given out.
    last: Request,
    unsent: BTreeMap<Request, Unsent>,
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
    pub fn new(
        settings: ClientSettings,
        image: CacheImage,
        now: Time,
        out: &mut Vec<ClientOutput>,
    ) -> Self {
        let _ = now;
        assert!(image.identity.is_some(), "a client has an identity");
        let mut client = Self {
            settings,
            last: image.last,
            image,
            unsent: BTreeMap::new(),
            asking: BTreeMap::new(),
            last_query: 0,
            flushes: BTreeMap::new(),
            last_flush: 0,
            command_bytes_max: u64::from(u32::MAX),
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
        if self.ended {
            return;
        }
        match input {
            ClientInput::Connected(conn) => self.on_connected(conn, out),
            ClientInput::Gone(conn) => self.on_gone(conn, out),
            ClientInput::Message(conn, message) => self.on_message(now, conn, message, out),
            ClientInput::Stored(stored) => self.stored = self.stored.max(stored),
            ClientInput::Flush => self.send(now, false, out),
            ClientInput::Tick => {
                let due = self.confirm_due.is_some_and(|at| now >= at);
                self.send(now, due, out);
            }
        }
        self.check_flushes(out);
        self.open_gate(out);
    }

    /// When to call [`step`](Client::step) with a `Tick` though nothing else happens.
    pub fn next_timeout(&self) -> Option<Time> {
        self.confirm_due
    }

    /// What the client must not forget.
    pub fn image(&self) -> &CacheImage {
        &self.image
    }

    /// The epoch of the established session.
    pub fn attached(&self) -> Option<Epoch> {
        self.session
            .as_ref()
            .filter(|session| session.live.is_some())
            .map(|session| session.epoch)
    }

    /// How many commands have a number and were not sent yet.
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Takes the next number for a command. It is sent, in order, when window and cache have room.
    ///
    /// # Errors
    /// [`Code::TooLarge`], or [`Code::Closed`] after a close or the end of the session.
    pub fn write(&mut self, payload: Bytes, level: Level) -> Result<Request> {
        self.check_call(&payload)?;
        self.last = self.last.next();
        let digest = Digest::crc32(&payload);
        self.unsent.insert(
            self.last,
            Unsent {
                payload,
                level,
                digest,
                withdrawn: false,
            },
        );
        Ok(self.last)
    }

    /// As [`write`](Client::write), but only if the command can be sent at once.
    ///
    /// # Errors
    /// As `write`, and [`Code::Busy`] with the cause.
    pub fn try_write(&mut self, payload: Bytes, level: Level) -> Result<Request> {
        self.check_call(&payload)?;
        let busy = |why: &str| Err(Error::new(Code::Busy, why));
        let Some(live) = self
            .session
            .as_ref()
            .and_then(|session| session.live.as_ref())
        else {
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
            return Err(Error::new(
                Code::Busy,
                format!("{} queries are under way", self.asking.len()),
            ));
        }
        self.last_query += 1;
        self.asking.insert(
            self.last_query,
            Asking {
                payload,
                level,
                sent: false,
            },
        );
        Ok(self.last_query)
    }

    /// Forgets a query nobody waits for any more.
    pub fn forget_query(&mut self, id: u64) {
        if self.asking.get(&id).is_some_and(|asking| !asking.sent) {
            self.asking.remove(&id);
        }
    }

    /// Asks to be told when everything issued so far is stable (or superseded); the token comes back.
    pub fn flush(&mut self) -> u64 {
        self.last_flush += 1;
        self.flushes.insert(self.last_flush, self.last);
        self.last_flush
    }

    /// Ends the session once everything is answered and stable. No further calls are accepted.
    pub fn close(&mut self) {
        self.closing = true;
    }

    fn check_call(&self, payload: &Bytes) -> Result<()> {
        if self.closing || self.ended {
            return Err(Error::new(Code::Closed, "the session is closed"));
        }
        if payload.len() as u64 > self.command_bytes_max {
            let why = format!(
                "{} bytes are more than the service's limit of {}",
                payload.len(),
                self.command_bytes_max
            );
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
        while self
            .gated
            .front()
            .is_some_and(|(needed, _)| *needed <= self.stored || open)
        {
            out.extend(self.gated.pop_front().map(|(_, output)| output));
        }
    }

    fn on_connected(&mut self, conn: Conn, out: &mut Vec<ClientOutput>) {
        let _ = out;
        let identity = self
            .image
            .identity
            .as_ref()
            .expect("a client has an identity");
        let hello = Hello {
            version: VERSION,
            features: FEATURES,
            cluster: identity.cluster,
            group: identity.group,
            epoch: self.image.reported,
        };
        self.gate(ClientOutput::Send(conn, ClientMessage::Hello(hello)));
    }

    fn on_gone(&mut self, conn: Conn, out: &mut Vec<ClientOutput>) {
        self.nodes.remove(&conn);
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.conn == conn)
        {
            self.end_stream();
        }
        self.choose(out);
    }

    fn end_stream(&mut self) {
        self.session = None;
        self.confirm_due = None;
        self.asking
            .values_mut()
            .for_each(|asking| asking.sent = false);
    }

    fn on_message(
        &mut self,
        now: Time,
        conn: Conn,
        message: NodeMessage,
        out: &mut Vec<ClientOutput>,
    ) {
        if let NodeMessage::Status(status) = message {
            self.on_status(conn, status, out);
            return;
        }
        if self
            .session
            .as_ref()
            .is_none_or(|session| session.conn != conn)
        {
            if let NodeMessage::Refused(error) = message {
                self.gate(ClientOutput::Event(ClientEvent::Refused(error)));
                self.nodes.remove(&conn);
            }
            return;
        }
        match message {
            NodeMessage::Status(_) => {}
            NodeMessage::Waiting(error) => {
                self.gate(ClientOutput::Event(ClientEvent::Waiting(error)))
            }
            NodeMessage::RollCall { epoch, of, base } => self.on_roll_call(epoch, of, base),
            NodeMessage::Pull { epoch, requests } => self.on_pull(epoch, &requests),
            NodeMessage::Welcome(welcome) => self.on_welcome(welcome, out),
            NodeMessage::Frame(frame) => self.on_frame(now, frame, out),
            NodeMessage::Refused(error) => self.on_refused(conn, error, out),
        }
    }

    fn on_status(&mut self, conn: Conn, status: Status, out: &mut Vec<ClientOutput>) {
        let identity = self
            .image
            .identity
            .as_ref()
            .expect("a client has an identity");
        let ours = (identity.cluster, identity.group);
        if ours == (None, None) {
            let known = Identity {
                cluster: Some(status.cluster),
                group: Some(status.group),
                ..identity.clone()
            };
            self.keep(CacheOp::Identity(known));
        } else if ours != (Some(status.cluster), Some(status.group)) || status.version != VERSION {
            let why = format!(
                "node {} belongs to cluster {} (protocol {})",
                status.node, status.cluster, status.version
            );
            self.gate(ClientOutput::Event(ClientEvent::Refused(Error::new(
                Code::WrongCluster,
                why,
            ))));
            out.push(ClientOutput::Close(conn));
            return;
        }
        if !status.endpoints.is_empty() {
            self.gate(ClientOutput::Endpoints(status.endpoints.clone()));
        }
        self.nodes.insert(conn, status);
        self.choose(out);
    }

    /// Attaches to the node of the highest epoch that serves or recovers, never to one below what was reported to.
    fn choose(&mut self, out: &mut Vec<ClientOutput>) {
        let serves = |status: &Status| matches!(status.role, Role::Primary | Role::Recovering);
        let nodes = self
            .nodes
            .iter()
            .filter(|(_, status)| serves(status) && status.epoch >= self.image.reported);
        let Some((conn, status)) = nodes.max_by_key(|(conn, status)| (status.epoch, **conn)) else {
            return;
        };
        let (conn, epoch) = (*conn, status.epoch);
        if let Some(session) = &self.session {
            if epoch < session.epoch
                || (epoch == session.epoch && self.nodes.contains_key(&session.conn))
            {
                return;
            }
            if session.conn != conn {
                // Let the older primary see that this client is gone.
                out.push(ClientOutput::Close(session.conn));
                self.nodes.remove(&session.conn);
            }
            self.end_stream();
        }
        if epoch > self.image.reported {
            self.keep(CacheOp::Reported(epoch));
        }
        self.session = Some(Session {
            conn,
            epoch,
            live: None,
        });
        let identity = self
            .image
            .identity
            .as_ref()
            .expect("a client has an identity");
        let attach = Attach {
            epoch,
            client: identity.client,
            incarnation: self.image.incarnation,
            domain: identity.domain.clone(),
            role: identity.role,
            fresh: !self.image.welcomed,
            from: self.image.first_unanswered(),
            oldest: self.image.oldest_epoch(),
            observed_epoch: self.image.observed.0,
            observed: self.image.observed.1,
        };
        self.store(out);
        self.gate(ClientOutput::Send(conn, ClientMessage::Attach(attach)));
    }

    fn to_session(&mut self, message: ClientMessage) {
        if let Some(session) = &self.session {
            let conn = session.conn;
            self.gate(ClientOutput::Send(conn, message));
        }
    }

    fn is_session_epoch(&self, epoch: Epoch) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.epoch == epoch)
    }

    /// Reports everything above `base` that this client may vouch for, and that it is all.
    fn on_roll_call(&mut self, epoch: Epoch, of: Epoch, base: Lsn) {
        if !self.is_session_epoch(epoch) {
            return;
        }
        self.gate(ClientOutput::Event(ClientEvent::Recovering { epoch }));
        let client = self
            .image
            .identity
            .as_ref()
            .expect("a client has an identity")
            .client;
        let mut items = Vec::new();
        for (request, command) in &self.image.commands {
            let in_doubt = ReportItem::InDoubt {
                request: *request,
                length: u32::try_from(command.payload.len()).unwrap_or(u32::MAX),
                digest: command.digest,
            };
            match command.header(client, *request) {
                Some(header) if header.epoch == of && header.lsn > base => {
                    items.push(ReportItem::Held {
                        header,
                        reply: command.reply,
                    });
                }
                _ if command.reply.is_none() => items.push(in_doubt),
                Some(header) if !rule::on(Rule::ReportEpoch) => {
                    items.push(ReportItem::Held {
                        header,
                        reply: command.reply,
                    });
                }
                _ => {}
            }
        }
        let vouched = self
            .image
            .headers
            .range((of, base.next())..)
            .take_while(|((epoch, _), _)| *epoch == of);
        items.extend(vouched.map(|(_, header)| ReportItem::Header(header.clone())));
        let (observed, stable) = (self.image.observed, self.image.stable);
        let mut items = items.into_iter().peekable();
        loop {
            let part: Vec<ReportItem> = items.by_ref().take(REPORT_ITEMS).collect();
            let end = items.peek().is_none();
            self.to_session(ClientMessage::Report(Report {
                epoch,
                items: part,
                observed,
                stable,
                end,
            }));
            if end {
                break;
            }
        }
    }

    fn on_pull(&mut self, epoch: Epoch, requests: &[Request]) {
        if !self.is_session_epoch(epoch) {
            return;
        }
        let mut items = Vec::new();
        let mut bytes = 0;
        for request in requests {
            let Some(command) = self.image.commands.get(request) else {
                continue;
            };
            bytes += command.payload.len() as u64;
            items.push((*request, command.payload.clone()));
            if bytes >= FRAME_BYTES {
                bytes = 0;
                let items = std::mem::take(&mut items);
                self.to_session(ClientMessage::Payloads(Payloads { epoch, items }));
            }
        }
        if !items.is_empty() {
            self.to_session(ClientMessage::Payloads(Payloads { epoch, items }));
        }
    }

    /// The session is established; whatever older reigns left behind gets its verdict.
    fn on_welcome(&mut self, welcome: Welcome, out: &mut Vec<ClientOutput>) {
        let Welcome {
            epoch,
            stable,
            reigns,
            window,
            window_bytes,
            command_bytes_max,
            ..
        } = welcome;
        if !self.is_session_epoch(epoch) {
            return;
        }
        self.tell_lost(epoch, &reigns);
        if !self.image.welcomed {
            self.keep(CacheOp::Welcomed);
        }
        self.keep(CacheOp::Verdict(epoch, reigns));
        self.keep(CacheOp::Stable(epoch, stable));
        self.store(out);
        self.command_bytes_max = command_bytes_max;
        let next = self.image.first_unanswered();
        if let Some(session) = &mut self.session {
            session.live = Some(Live {
                seq: 0,
                confirmed: 0,
                next,
                window,
                window_bytes,
                close_sent: false,
            });
        }
        self.gate(ClientOutput::Event(ClientEvent::Attached { epoch }));
    }

    /// Tells the application what of its own, and of what it saw, did not survive.
    fn tell_lost(&mut self, epoch: Epoch, reigns: &[crate::log::Reign]) {
        let mut lost = Vec::new();
        for (request, command) in &self.image.commands {
            let Some(tag) = command.tag.filter(|tag| tag.epoch < epoch) else {
                continue;
            };
            if command.reply.is_some() && verdict(reigns, tag.epoch, tag.lsn) == Verdict::Superseded
            {
                lost.push(ClientEvent::Superseded {
                    request: *request,
                    payload: command.payload.clone(),
                });
            }
        }
        let (of, observed) = self.image.observed;
        if of < epoch && image::rolled_back(reigns, of, observed) && rule::on(Rule::TellRolledBack)
        {
            lost.push(ClientEvent::RolledBack {
                epoch: of,
                observed,
            });
        }
        for event in lost {
            self.gate(ClientOutput::Event(event));
        }
    }

    fn on_frame(&mut self, now: Time, frame: NodeFrame, out: &mut Vec<ClientOutput>) {
        let Some(session) = &mut self.session else {
            return;
        };
        let Some(live) = session
            .live
            .as_mut()
            .filter(|_| session.epoch == frame.epoch)
        else {
            return;
        };
        let NodeFrame {
            epoch,
            seq,
            stable,
            manifest,
            responses,
            results,
            closed,
        } = frame;
        live.seq = seq;
        let mut to_hold = !manifest.is_empty();
        if !manifest.is_empty() {
            self.keep(CacheOp::Headers(manifest));
        }
        let replied = responses
            .iter()
            .filter(|response| response.outcome.is_some());
        let replied = replied.filter_map(|response| response.tag.map(|tag| tag.lsn));
        let observed = replied.chain(results.iter().map(|result| result.lsn)).max();
        if let Some(lsn) = observed.filter(|lsn| (epoch, *lsn) > self.image.observed) {
            self.keep(CacheOp::Observed(epoch, lsn));
        }
        let mut done = Vec::new();
        for response in responses {
            to_hold |= response.tag.is_some_and(|tag| tag.lsn > stable);
            done.extend(self.on_response(response));
        }
        if (epoch, stable) > self.image.stable {
            self.keep(CacheOp::Stable(epoch, stable));
        }
        self.store(out);
        for output in done {
            self.gate(output);
        }
        for result in results {
            if self.asking.remove(&result.id).is_some() {
                self.gate(ClientOutput::Result {
                    id: result.id,
                    result: result.result,
                });
            }
        }
        if to_hold {
            self.confirm_due
                .get_or_insert(now.after(self.settings.confirm_delay_us));
        }
        if closed && self.closing {
            self.ended = true;
            self.gate(ClientOutput::Closed);
        }
    }

    /// Keeps a response's tag and reply. What the application is to hear follows once the cache has them.
    fn on_response(&mut self, response: Response) -> Option<ClientOutput> {
        let Response {
            request,
            tag,
            outcome,
        } = response;
        let command = self.image.commands.get(&request)?;
        if command.reply.is_some() {
            return None;
        }
        if let Some(tag) = tag
            && command.tag != Some(tag)
        {
            self.keep(CacheOp::Tag { request, tag });
        }
        let outcome = outcome?;
        match &outcome {
            Outcome::Reply(reply) => {
                let reply = Digest::crc32(reply);
                self.keep(CacheOp::Answered { request, reply });
            }
            Outcome::Superseded => self.keep(CacheOp::Superseded(request)),
        }
        Some(ClientOutput::Done {
            request,
            outcome,
            tag,
        })
    }

    fn on_refused(&mut self, conn: Conn, error: Error, out: &mut Vec<ClientOutput>) {
        self.nodes.remove(&conn);
        self.end_stream();
        if error.code() == Code::SessionExpired {
            self.ended = true;
            if self.closing && self.unsent.is_empty() && self.image.unanswered().next().is_none() {
                self.gate(ClientOutput::Closed);
            } else {
                self.gate(ClientOutput::Event(ClientEvent::Expired));
                self.gate(ClientOutput::Failed(error));
            }
            return;
        }
        self.gate(ClientOutput::Event(ClientEvent::Refused(error)));
        out.push(ClientOutput::Close(conn));
    }

    fn fits_window(&self, live: &Live, request: Request, length: u64) -> bool {
        let low = self.image.first_unanswered().min(request);
        let unanswered = self
            .image
            .unanswered()
            .take_while(|(earlier, _)| *earlier < request);
        let bytes: u64 = unanswered
            .map(|(_, command)| command.payload.len() as u64)
            .sum();
        request.0 - low.0 < live.window && (bytes == 0 || bytes + length <= live.window_bytes)
    }

    fn fits_cache(&self, length: u64) -> bool {
        let idle = self.image.commands.is_empty();
        idle || self.image.bytes + length + HEADER_COST <= self.settings.commands_bytes_max()
    }

    /// Sends what window and cache have room for, with the confirm that is owed.
    fn send(&mut self, now: Time, confirm: bool, out: &mut Vec<ClientOutput>) {
        loop {
            let Some(session) = &self.session else { return };
            let (epoch, Some(live)) = (session.epoch, session.live.clone()) else {
                return;
            };
            let mut frame = ClientFrame {
                epoch,
                confirm: live.seq,
                ..ClientFrame::default()
            };
            self.gather_writes(&mut frame);
            for (id, asking) in self.asking.iter_mut().filter(|(_, asking)| !asking.sent) {
                asking.sent = true;
                frame.queries.push(Query {
                    id: *id,
                    level: asking.level,
                    payload: asking.payload.clone(),
                });
            }
            let idle = self.unsent.is_empty()
                && self.image.unanswered().next().is_none()
                && self.asking.is_empty();
            frame.close = self.closing && idle && !live.close_sent;
            let work = !frame.writes.is_empty() || !frame.queries.is_empty() || frame.close;
            if !work && !(confirm && live.confirmed < live.seq) {
                if confirm || live.confirmed == live.seq {
                    self.confirm_due = None;
                }
                let _ = now;
                return;
            }
            if let Some(live) = self
                .session
                .as_mut()
                .and_then(|session| session.live.as_mut())
            {
                live.confirmed = live.seq;
                live.close_sent |= frame.close;
            }
            self.confirm_due = None;
            self.store(out);
            self.to_session(ClientMessage::Frame(frame));
        }
    }

    /// Moves commands into `frame`: what is to be sent again first, in order, then what is new.
    fn gather_writes(&mut self, frame: &mut ClientFrame) {
        let mut bytes = 0;
        while bytes < FRAME_BYTES {
            let Some(live) = self
                .session
                .as_ref()
                .and_then(|session| session.live.as_ref())
            else {
                return;
            };
            let request = live.next;
            let write = if let Some(command) = self
                .image
                .commands
                .get(&request)
                .filter(|command| command.reply.is_none())
            {
                if !self.fits_window(live, request, command.payload.len() as u64) {
                    return;
                }
                to_write(request, command)
            } else if request <= self.image.last {
                // Answered, or superseded: the number is spent, and only keeps the stream's numbers dense.
                filler(request)
            } else if let Some(unsent) = self.unsent.get(&request) {
                let length = unsent.payload.len() as u64;
                if !self.fits_window(live, request, length) || !self.fits_cache(length) {
                    return;
                }
                self.first_send(request)
            } else {
                return;
            };
            bytes += write.payload.len() as u64 + HEADER_COST;
            frame.writes.push(write);
            if let Some(live) = self
                .session
                .as_mut()
                .and_then(|session| session.live.as_mut())
            {
                live.next = request.next();
            }
        }
        if !rule::on(Rule::ResendInOrder) {
            frame.writes.reverse();
        }
    }

    /// A command leaves for the first time: from now on it is in doubt, and the cache has to have it.
    fn first_send(&mut self, request: Request) -> Write {
        let unsent = self
            .unsent
            .remove(&request)
            .expect("looked up by the caller");
        let command = Command {
            answered: self.image.first_unanswered().min(request).prev(),
            level: unsent.level,
            withdrawn: unsent.withdrawn,
            digest: unsent.digest,
            payload: unsent.payload,
            tag: None,
            reply: None,
        };
        let write = to_write(request, &command);
        self.keep(CacheOp::Command { request, command });
        write
    }

    fn check_flushes(&mut self, out: &mut Vec<ClientOutput>) {
        let _ = out;
        let first = self
            .unsent
            .keys()
            .next()
            .into_iter()
            .chain(self.image.commands.keys().next())
            .min()
            .copied();
        let done = self
            .flushes
            .iter()
            .filter(|(_, upto)| first.is_none_or(|first| first > **upto));
        for token in done.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.flushes.remove(&token);
            self.gate(ClientOutput::Flushed(token));
        }
    }
}

fn to_write(request: Request, command: &Command) -> Write {
    Write {
        request,
        answered: command.answered,
        level: command.level,
        withdrawn: command.withdrawn,
        digest: command.digest,
        payload: command.payload.clone(),
    }
}

fn filler(request: Request) -> Write {
    Write {
        request,
        answered: Request(0),
        level: Level::Local,
        withdrawn: true,
        digest: Digest::crc32(&[]),
        payload: Bytes::new(),
    }
}
