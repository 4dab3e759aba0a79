//! Sessions, their streams, and the frames that go out on them. The manifest rule is in [`Primary::write_frames`].

use std::collections::VecDeque;

use super::order::{Asked, Queued, check_same};
use super::{Phase, Primary};
use crate::client::image::rolled_back;
use crate::error::{Code, Error};
use crate::log::{Body, ClientId, Epoch, HEADER_COST, Header, Level, Lsn, Places, Request, Target, Time};
use crate::message::{
    Attach, ClientFrame, ClientMessage, Hello, NodeFrame, NodeMessage, Outcome, QueryResult, Response, VERSION,
    Welcome, Write,
};
use crate::node::{Conn, NodeEvent, Output};
use crate::rule::{self, Rule};
use crate::session::Standing;
use crate::share::Share;

/// A client's stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Stream {
    /// Its hello was accepted.
    pub(super) greeted: bool,
    /// The session it asks for.
    pub(super) attach: Option<Attach>,
    /// The session was welcomed on it.
    pub(super) live: Option<Live>,
}

/// An established session's side of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Live {
    pub(super) client: ClientId,
    /// The request number that must come next.
    next: Request,
    /// Writes of this stream that wait for their LSN.
    pub(super) queued: u64,
    /// Queries under way.
    pub(super) queries: usize,
    /// The last frame's number.
    seq: u64,
    /// Up to here every entry was stable, confirmed, or written to this stream.
    manifest_upto: Lsn,
    /// The checkpoint last written, and how far it was settled.
    stable_sent: Lsn,
    settled_sent: Lsn,
    /// The highest LSN of a tag, header or share written: the client may wait for a checkpoint up to here.
    owes: Lsn,
    /// What unconfirmed frames carried.
    sent: VecDeque<Sent>,
    /// For the next frame, with the LSNs they reveal.
    pub(super) responses: Vec<(Lsn, Response)>,
    pub(super) results: Vec<QueryResult>,
    pub(super) shares: Vec<Share>,
    /// What the client writes cannot be covered.
    pub(super) short: bool,
    /// The round of echoes to be asked for with the next frame, and the last one that came back.
    pub(super) round: u64,
    pub(super) echoed: u64,
    closing: bool,
    push: bool,
    /// A frame is due, whether anything is in it or not.
    pub(super) tell: bool,
}

/// What a frame gave the client to hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sent {
    seq: u64,
    tags: Vec<Lsn>,
    shares: Vec<u64>,
    round: u64,
}

impl Primary {
    pub(super) fn on_client(&mut self, now: Time, conn: Conn, message: ClientMessage, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Deposed | Phase::Stopped) {
            out.push(Output::ToClient(conn, NodeMessage::Status(self.wire_status())));
            out.push(Output::Close(conn));
            return;
        }
        let greeted = self.streams.get(&conn).is_some_and(|stream| stream.greeted);
        let done = match message {
            ClientMessage::Hello(_) if greeted => Err(Error::new(Code::Protocol, "a second hello on a stream")),
            ClientMessage::Hello(hello) => self.on_hello(conn, &hello, out),
            _ if !greeted => Err(Error::new(Code::Protocol, "the first message of a stream is a hello")),
            ClientMessage::Attach(attach) => self.on_attach(now, conn, attach, out),
            ClientMessage::Frame(frame) => self.on_frame(conn, frame, out),
            ClientMessage::Report(report) => match (self.client_of(conn), &mut self.phase) {
                (Some(client), Phase::Recovering(recovery)) if report.epoch == self.epoch => {
                    recovery.report(now, client, report)
                }
                _ => Ok(()),
            },
            ClientMessage::Payloads(payloads) => match (self.client_of(conn), &mut self.phase) {
                (Some(client), Phase::Recovering(recovery)) if payloads.epoch == self.epoch => {
                    recovery.payloads(now, client, payloads)
                }
                _ => Ok(()),
            },
        };
        if let Err(error) = done {
            self.refuse(now, conn, error, out);
        }
    }

    fn client_of(&self, conn: Conn) -> Option<ClientId> {
        self.streams.get(&conn)?.attach.as_ref().map(|attach| attach.client)
    }

    fn on_hello(&mut self, conn: Conn, hello: &Hello, out: &mut Vec<Output>) -> Result<(), Error> {
        check_hello(hello, self.marks.cluster, self.marks.group)?;
        if hello.epoch > self.epoch.max(self.marks.promised) {
            self.streams.insert(conn, Stream { greeted: true, ..Stream::default() });
            self.depose(hello.epoch, out);
            return Ok(());
        }
        self.streams.insert(conn, Stream { greeted: true, ..Stream::default() });
        out.push(Output::ToClient(conn, NodeMessage::Status(self.wire_status())));
        Ok(())
    }

    fn on_attach(&mut self, now: Time, conn: Conn, attach: Attach, out: &mut Vec<Output>) -> Result<(), Error> {
        if attach.epoch != self.epoch {
            let why = format!("this node is in epoch {}, not {}", self.epoch, attach.epoch);
            return Err(Error::new(Code::WrongEpoch, why));
        }
        let client = attach.client;
        let known = self.state.session(client).map_or(0, |session| session.info.incarnation);
        let old = self.attached.get(&client).copied();
        let attached = old.and_then(|old| self.streams.get(&old)).and_then(|stream| stream.attach.as_ref());
        let welcomed = self.incarnations.get(&client).copied().unwrap_or_default();
        let newest = known.max(welcomed).max(attached.map_or(0, |attach| attach.incarnation));
        if attach.incarnation < newest {
            let why = format!("incarnation {} of this cache was replaced by {newest}", attach.incarnation);
            return Err(Error::new(Code::SessionReplaced, why));
        }
        if self.client_of(conn).is_some_and(|before| before != client) {
            return Err(Error::new(Code::Protocol, "a stream serves one session"));
        }
        if old.is_some_and(|old| old != conn) {
            self.detach(client, out);
        }
        self.renew_in_cover(client, attach.incarnation);
        let stream = self.streams.get_mut(&conn).expect("greeted");
        stream.live = None;
        stream.attach = Some(attach);
        self.writes.retain(|queued| queued.conn != conn);
        self.attached.insert(client, conn);
        self.disconnected.remove(&client);
        self.admissions.insert(client);
        match &mut self.phase {
            Phase::Open => self.admit(now, client, out),
            Phase::Recovering(recovery) if recovery.asks(client) => {
                recovery.begin(now, client, conn);
                let (of, base) = (recovery.of(), recovery.base());
                out.push(Output::ToClient(conn, NodeMessage::RollCall { epoch: self.epoch, of, base }));
            }
            _ => {
                let why = Error::new(Code::Recovering, "the node is recovering; the session is served when it opens");
                out.push(Output::ToClient(conn, NodeMessage::Waiting(why)));
            }
        }
        Ok(())
    }

    /// Ends a stream that cannot go on.
    fn refuse(&mut self, now: Time, conn: Conn, error: Error, out: &mut Vec<Output>) {
        out.push(Output::ToClient(conn, NodeMessage::Refused(error)));
        out.push(Output::Close(conn));
        self.on_gone(now, conn);
    }

    /// Takes a session's stream away from it.
    pub(super) fn detach(&mut self, client: ClientId, out: &mut Vec<Output>) {
        if let Some(conn) = self.attached.get(&client).copied() {
            let why =
                Error::new(Code::SessionReplaced, "another stream of this session took over, or it is being ended");
            out.push(Output::ToClient(conn, NodeMessage::Refused(why)));
            out.push(Output::Close(conn));
            self.forget_stream(conn);
        }
    }

    pub(super) fn on_gone(&mut self, now: Time, conn: Conn) {
        if self.follower.as_ref().is_some_and(|follower| follower.conn == conn) {
            self.follower = None;
            return;
        }
        if let Some(client) = self.forget_stream(conn) {
            self.leave_cover(client);
            self.lost_stream(now, client);
        }
    }

    fn lost_stream(&mut self, now: Time, client: ClientId) {
        if self.state.session(client).is_some_and(|session| session.standing == Standing::On) {
            self.disconnected.insert(client, now);
            self.keep_house_soon(now);
        }
    }

    fn forget_stream(&mut self, conn: Conn) -> Option<ClientId> {
        let stream = self.streams.remove(&conn)?;
        self.dirty.remove(&conn);
        self.writes.retain(|queued| queued.conn != conn);
        self.asked.retain(|asked| asked.conn != conn);
        self.reads.retain(|reading| reading.conn != conn);
        let client = stream.attach?.client;
        if self.attached.get(&client) != Some(&conn) {
            return None;
        }
        self.attached.remove(&client);
        self.admissions.remove(&client);
        self.closers.remove(&client);
        if let Phase::Recovering(recovery) = &mut self.phase {
            recovery.gone(client, conn);
        }
        Some(client)
    }

    /// The established stream of a session.
    pub(super) fn live(&mut self, client: ClientId) -> Option<(Conn, &mut Live)> {
        let conn = *self.attached.get(&client)?;
        let live = self.streams.get_mut(&conn)?.live.as_mut()?;
        Some((conn, live))
    }

    /// Takes an attached session as far as it can go: proposes its `Open` or `Resume`, or welcomes it once that is
    /// stable.
    pub(super) fn admit(&mut self, now: Time, client: ClientId, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::Open) || !self.admissions.contains(&client) {
            return;
        }
        let Some(conn) = self.attached.get(&client).copied() else {
            return;
        };
        let Some(attach) = self.streams.get(&conn).and_then(|stream| stream.attach.clone()) else {
            return;
        };
        let session = self.state.session(client).map(|session| (session.standing, session.since));
        let leaving = self.in_flight.contains(&client);
        let on = session.is_some_and(|(standing, _)| standing == Standing::On);
        if (leaving && (!on || rule::on(Rule::SuspendFinal)))
            || self.departing.contains_key(&client)
            || self.ending.contains(&client)
        {
            return;
        }
        let stable = self.water.stable();
        match session {
            None if !attach.fresh => {
                let why = "the session ended or expired; what it left unanswered has an unknown outcome";
                self.refuse(now, conn, Error::new(Code::SessionExpired, why), out);
            }
            None if self.state.sessions().len() + self.opening() >= self.settings.sessions_max => {
                let why = format!("{} sessions are open already", self.settings.sessions_max);
                self.refuse(now, conn, Error::new(Code::TooManySessions, why), out);
            }
            None if self.settings.require_backup && !self.counts_backup => self.wait_for_backup(conn, out),
            None => {
                let info = crate::log::SessionInfo {
                    incarnation: attach.incarnation,
                    domain: attach.domain,
                    role: attach.role,
                };
                self.propose(client, Body::Open(info));
                self.wait_for_backup(conn, out);
            }
            Some((Standing::On, since)) if since <= stable => self.welcome(conn, &attach, out),
            Some((Standing::On, _)) if !rule::on(Rule::OpenStable) => self.welcome(conn, &attach, out),
            Some((Standing::On, _)) => self.wait_for_backup(conn, out),
            Some((Standing::Suspended, _)) if !rule::on(Rule::ResumeStable) => self.welcome(conn, &attach, out),
            Some((Standing::Absent, _)) if !rule::on(Rule::LateResume) => self.welcome(conn, &attach, out),
            Some((Standing::Suspended | Standing::Absent, _)) => {
                self.propose(client, Body::Resume(attach.incarnation));
                self.wait_for_backup(conn, out);
            }
        }
    }

    /// Tells a client why it waits, where the backup is the reason.
    fn wait_for_backup(&self, conn: Conn, out: &mut Vec<Output>) {
        let missing = self.follower.is_none() && (self.settings.require_backup || self.state.target() != Target::Own);
        if missing {
            let why = "the backup is not connected, and a session has to be stable there before it is answered";
            out.push(Output::ToClient(conn, NodeMessage::Waiting(Error::new(Code::BackupUnavailable, why))));
        }
    }

    fn welcome(&mut self, conn: Conn, attach: &Attach, out: &mut Vec<Output>) {
        let client = attach.client;
        self.admissions.remove(&client);
        self.incarnations.insert(client, attach.incarnation);
        let reigns = self.state.reigns_from(attach.oldest).to_vec();
        if self.state.lowest() == Level::Local && rolled_back(&reigns, attach.observed_epoch, attach.observed) {
            let at = reigns.iter().position(|reign| reign.epoch == attach.observed_epoch);
            let end = at.and_then(|at| reigns.get(at + 1)).map_or(Lsn(0), |next| next.start.prev());
            out.push(Output::Event(NodeEvent::ObservedBeyond { client, end, observed: attach.observed }));
        }
        let stable = self.water.stable();
        let live = Live {
            client,
            next: attach.from,
            stable_sent: stable,
            // A welcome does not say how far everything is settled.
            settled_sent: Lsn(0),
            tell: self.settings.covering() > 0,
            manifest_upto: if rule::on(Rule::ManifestRestart) { Lsn(0) } else { self.water.head() },
            // It may hold from an earlier stream what no frame of this one will mention.
            owes: self.water.head(),
            ..Live::default()
        };
        if let Some(stream) = self.streams.get_mut(&conn) {
            self.dirty.extend(live.tell.then_some(conn));
            stream.live = Some(live);
        }
        let welcome = Welcome {
            epoch: self.epoch,
            stable,
            reigns,
            lowest: self.state.lowest(),
            f: self.settings.covering(),
            refuse_uncovered: self.settings.uncovered == super::Uncovered::Refuse,
            window: self.settings.window,
            window_bytes: self.settings.window_bytes,
            command_bytes_max: self.settings.command_bytes_max,
        };
        out.push(Output::ToClient(conn, NodeMessage::Welcome(welcome)));
        self.join_cover(attach);
    }

    /// Sessions that are about to open.
    fn opening(&self) -> usize {
        self.in_flight.iter().filter(|client| self.state.session(**client).is_none()).count()
    }

    /// Admits whoever waited for the checkpoint to pass its `Open` or `Resume`.
    pub(super) fn admit_waiting(&mut self, now: Time, out: &mut Vec<Output>) {
        for client in self.admissions.iter().copied().collect::<Vec<_>>() {
            self.admit(now, client, out);
        }
    }

    fn on_frame(&mut self, conn: Conn, frame: ClientFrame, out: &mut Vec<Output>) -> Result<(), Error> {
        if matches!(self.phase, Phase::Stopping) {
            self.confirm(conn, frame.confirm)?;
            return Ok(());
        }
        let Some(live) = self.streams.get_mut(&conn).and_then(|stream| stream.live.as_mut()) else {
            return Err(Error::new(Code::Protocol, "a frame on a stream without a session"));
        };
        if frame.epoch != self.epoch && rule::on(Rule::StreamEpoch) {
            let why = format!("a frame of epoch {} on a stream of epoch {}", frame.epoch, self.epoch);
            return Err(Error::new(Code::WrongEpoch, why));
        }
        if live.closing {
            // What was on its way to it is confirmed still.
            let idle = frame.writes.is_empty() && frame.queries.is_empty() && !frame.close;
            let why = "work after the close";
            return if idle { self.confirm(conn, frame.confirm) } else { Err(Error::new(Code::Protocol, why)) };
        }
        let client = live.client;
        if self.state.session(client).is_none_or(|session| session.standing != Standing::On)
            && rule::on(Rule::SuspendFinal)
        {
            return Err(Error::new(Code::SessionReplaced, "the session is not on the roster: attach again"));
        }
        self.confirm(conn, frame.confirm)?;
        for write in frame.writes {
            self.on_write(conn, client, write)?;
        }
        for query in frame.queries {
            let level = query.level;
            if let Err(error) = self.admit_query(conn, query.payload.len()) {
                // Not a reason to end the stream: the query would be asked again on the next one.
                let refused = QueryResult { id: query.id, lsn: Lsn(0), result: Err(error) };
                self.live_at(conn).results.push(refused);
                self.dirty.insert(conn);
                continue;
            }
            self.asked.push_back(Asked { conn, id: query.id, level, payload: query.payload });
        }
        if frame.close {
            self.live_at(conn).closing = true;
            let queued = self.writes.iter().any(|queued| queued.client == client);
            if queued || self.is_executing(client) || self.in_flight.contains(&client) {
                return Err(Error::new(Code::Protocol, "a close before everything was answered"));
            }
            self.retire(client);
            self.closers.insert(client);
            self.close_drained();
            self.wait_for_backup(conn, out);
        }
        Ok(())
    }

    fn live_at(&mut self, conn: Conn) -> &mut Live {
        let live = self.streams.get_mut(&conn).and_then(|stream| stream.live.as_mut());
        live.expect("checked when the frame came")
    }

    fn admit_query(&mut self, conn: Conn, length: usize) -> Result<(), Error> {
        let (bytes_max, queries_max) = (self.settings.command_bytes_max, self.settings.queries_max);
        if length as u64 > bytes_max {
            let why = format!("{length} bytes are more than the {bytes_max} of command_bytes_max");
            return Err(Error::new(Code::TooLarge, why));
        }
        let live = self.live_at(conn);
        if live.queries >= queries_max {
            return Err(Error::new(Code::Busy, format!("{queries_max} queries are under way on this stream")));
        }
        live.queries += 1;
        Ok(())
    }

    fn on_write(&mut self, conn: Conn, client: ClientId, write: Write) -> Result<(), Error> {
        // The limit on a command's size is kept at the call, by the client: what was admitted once is not refused by a
        // node with a smaller limit, for it would be sent again for ever.
        if u32::try_from(write.payload.len()).is_err() {
            return Err(Error::new(Code::TooLarge, "a command of 4 GiB or more"));
        }
        if !write.digest.verifies(&write.payload) {
            return Err(Error::new(Code::Protocol, format!("request {} does not have its checksum", write.request)));
        }
        if write.withdrawn && !write.payload.is_empty() {
            let why = format!("request {} was withdrawn, and has a payload all the same", write.request);
            return Err(Error::new(Code::Protocol, why));
        }
        let window = self.settings.window;
        let live = self.live_at(conn);
        if write.request > live.next || write.request == Request(u64::MAX) {
            let why = format!("request {} where {} is next: numbers are dense", write.request, live.next);
            return Err(Error::new(Code::Protocol, why));
        }
        let repeated = write.request < live.next;
        live.next = live.next.max(write.request.next());
        let session = self.state.session(client);
        let (next, handle) = session.map_or((Request(1), 0), |session| (session.next, session.handle));
        if write.request < next {
            self.respond_again(client, &write)?;
        } else if let Some(header) = self.executing_request(client, write.request) {
            check_same(&write, (header.length, header.digest))?;
        } else if !repeated {
            let live = self.live_at(conn);
            live.queued += 1;
            if live.queued > window {
                return Err(Error::new(Code::Protocol, format!("more than {window} requests in flight")));
            }
            self.writes.push_back(Queued { conn, client, handle, write });
        }
        Ok(())
    }

    /// The client's cache holds what the frames up to `seq` gave it.
    fn confirm(&mut self, conn: Conn, seq: u64) -> Result<(), Error> {
        let mut cover = self.sharing.as_mut().map(|sharing| &mut sharing.cover);
        let Some(live) = self.streams.get_mut(&conn).and_then(|stream| stream.live.as_mut()) else {
            return Ok(());
        };
        if seq > live.seq {
            let why = format!("frame {seq} confirmed, but only {} were sent", live.seq);
            return Err(Error::new(Code::Protocol, why));
        }
        while live.sent.front().is_some_and(|sent| sent.seq <= seq) {
            let Some(sent) = live.sent.pop_front() else {
                break;
            };
            live.echoed = live.echoed.max(sent.round);
            for lsn in sent.tags {
                self.unstable.confirm(lsn);
                if let Some(cover) = &mut cover {
                    cover.tagged(live.client, lsn);
                }
            }
            for share in sent.shares {
                if let Some(cover) = &mut cover {
                    cover.confirmed(live.client, share);
                }
            }
        }
        Ok(())
    }

    /// Asks for a frame on every stream whose client may wait for the checkpoint.
    pub(super) fn push_checkpoints(&mut self) {
        let (stable, settled) = (self.water.stable(), self.settled());
        for (conn, stream) in &mut self.streams {
            if let Some(live) = &mut stream.live
                && live.awaits(stable, settled)
            {
                live.push = true;
                self.dirty.insert(*conn);
            }
        }
    }

    /// The sessions whose end became stable hear of it.
    pub(super) fn tell_closed(&mut self, now: Time, out: &mut Vec<Output>) {
        let (stable, settled) = (self.water.stable(), self.settled());
        let gone = self.departing.iter().filter(|(_, lsn)| **lsn <= stable).map(|(client, _)| *client);
        for client in gone.collect::<Vec<_>>() {
            self.departing.remove(&client);
            let epoch = self.epoch;
            if let Some((conn, live)) = self.live(client) {
                live.seq += 1;
                let seq = live.seq;
                let frame = NodeFrame { epoch, seq, stable, settled, closed: true, ..NodeFrame::default() };
                out.push(Output::ToClient(conn, NodeMessage::Frame(frame)));
                out.push(Output::Close(conn));
                self.forget_stream(conn);
                self.leave_cover(client);
            } else {
                self.admit(now, client, out);
            }
        }
    }

    /// Writes to every stream that has something to say.
    ///
    /// The manifest rule: whatever a frame reveals up to LSN n, it (or one before it) names every entry up to n that is
    /// neither stable nor confirmed and was not yet written to this stream, as tag, header or place, the receiver's own
    /// among them. So these go first, and responses in LSN order, where they do not fit one frame.
    ///
    /// Places are shared by all that are told of them, and so are told as a whole: of what was confirmed meanwhile, and of what
    /// is not revealed yet, too.
    pub(super) fn write_frames(&mut self, out: &mut Vec<Output>) {
        let (stable, settled) = (self.water.stable(), self.settled());
        let manifests = self.state.lowest() != Level::Local && rule::on(Rule::Manifest);
        // Where nothing of an entry leaves before it is in the log, places do not either: the rest may be ordered anew.
        let placed_upto = if self.logs_first() { self.water.logged() } else { Lsn(u64::MAX) };
        let covering = self.settings.covering() > 0;
        for conn in std::mem::take(&mut self.dirty) {
            let Some(live) = self.streams.get(&conn).and_then(|stream| stream.live.as_ref()) else {
                continue;
            };
            // One for each reply that goes out: what is not a reply earns nothing.
            let replies = live.responses.iter().filter(|(lsn, response)| *lsn > stable && response.outcome.is_some());
            let (client, replies) = (live.client, replies.count());
            let windows: Vec<Share> = (0..replies).flat_map(|_| self.window_shares(client)).collect();
            let Some(live) = self.streams.get_mut(&conn).and_then(|stream| stream.live.as_mut()) else {
                continue;
            };
            let news = (live.push && live.awaits(stable, settled)) || std::mem::take(&mut live.tell);
            if live.responses.is_empty() && live.results.is_empty() && live.shares.is_empty() && !news {
                continue;
            }
            let mut responses = std::mem::take(&mut live.responses);
            responses.sort_by_key(|(lsn, _)| *lsn);
            let replied = responses.iter().filter(|(_, response)| response.outcome.is_some()).map(|(lsn, _)| *lsn);
            let revealed = replied.chain(live.results.iter().map(|result| result.lsn)).max().unwrap_or(Lsn(0));
            let tags: Vec<Lsn> = responses.iter().map(|(lsn, _)| *lsn).filter(|lsn| *lsn > stable).collect();
            let mut packer = Packer::new(self.epoch, stable, settled, live.short, self.settings.frame_bytes);
            if manifests {
                let mut told = live.manifest_upto.max(stable);
                for lsn in self.unstable.unconfirmed_in(told, revealed) {
                    if lsn <= told {
                        continue;
                    }
                    let Some(record) = self.unstable.get(lsn) else {
                        continue;
                    };
                    let header = &record.entry.header;
                    let own = header.origin.is_some_and(|origin| origin.client == live.client);
                    if tags.binary_search(&lsn).is_ok() || (own && !rule::on(Rule::ManifestOwn)) {
                        continue;
                    }
                    match self.unstable.places(lsn).filter(|places| places.last() <= placed_upto) {
                        Some(places) => {
                            packer.places(places);
                            told = places.last();
                        }
                        None => packer.header(header),
                    }
                }
                live.manifest_upto = told.max(revealed);
            }
            // Somebody waits for the confirm of what covers an entry, or of an echo.
            let round = std::mem::take(&mut live.round);
            let tagged = covering && tags.iter().any(|lsn| self.unstable.is_unconfirmed(*lsn));
            let prompt = tagged || round > 0 || !live.shares.is_empty();
            let shares = std::mem::take(&mut live.shares);
            let kept = shares.iter().chain(&windows).map(|share| share.hold_until).max().unwrap_or_default();
            shares.into_iter().for_each(|share| packer.share(share, true));
            responses.into_iter().for_each(|(lsn, response)| packer.response(lsn, response));
            windows.into_iter().for_each(|share| packer.share(share, false));
            std::mem::take(&mut live.results).into_iter().for_each(|result| packer.result(result));
            live.owes =
                live.owes.max(tags.last().copied().unwrap_or_default()).max(live.manifest_upto).max(revealed).max(kept);
            live.stable_sent = stable;
            live.settled_sent = settled;
            live.push = false;
            if let Some((frame, sent)) = packer.frames.last_mut() {
                frame.prompt = prompt;
                sent.round = round;
            }
            for (mut frame, mut sent) in packer.frames {
                live.seq += 1;
                (frame.seq, sent.seq) = (live.seq, live.seq);
                if !rule::on(Rule::ConfirmByOrigin) {
                    sent.tags.iter().for_each(|lsn| self.unstable.confirm(*lsn));
                    sent.tags.clear();
                }
                if !sent.tags.is_empty() || !sent.shares.is_empty() || sent.round > 0 {
                    live.sent.push_back(sent);
                }
                out.push(Output::ToClient(conn, NodeMessage::Frame(frame)));
            }
        }
    }
}

impl Live {
    /// Whether the client may be able to release something at this checkpoint that it was not told of.
    fn awaits(&self, stable: Lsn, settled: Lsn) -> bool {
        (self.owes > self.stable_sent && stable > self.stable_sent)
            || (self.owes > self.settled_sent && settled > self.settled_sent)
    }
}

/// Fills frames, each up to about `bytes_max`.
struct Packer {
    frames: Vec<(NodeFrame, Sent)>,
    bytes: u64,
    bytes_max: u64,
    /// Every frame begins as this.
    blank: NodeFrame,
}

impl Packer {
    fn new(epoch: Epoch, stable: Lsn, settled: Lsn, short: bool, bytes_max: u64) -> Self {
        let blank = NodeFrame { epoch, stable, settled, short, ..NodeFrame::default() };
        let mut packer = Self { frames: Vec::new(), bytes: 0, bytes_max, blank };
        packer.begin();
        packer
    }

    fn begin(&mut self) {
        let sent = Sent { seq: 0, tags: Vec::new(), shares: Vec::new(), round: 0 };
        self.frames.push((self.blank.clone(), sent));
        self.bytes = 0;
    }

    /// A share, which its holder has to confirm where somebody counts on it.
    fn share(&mut self, share: Share, counted: bool) {
        let (frame, sent) = self.room(share.body.len());
        sent.shares.extend(counted.then_some(share.id));
        frame.shares.push(share);
    }

    /// The frame that takes so many bytes more.
    fn room(&mut self, bytes: usize) -> &mut (NodeFrame, Sent) {
        if self.bytes >= self.bytes_max {
            self.begin();
        }
        self.bytes += bytes as u64 + HEADER_COST;
        self.frames.last_mut().expect("there is always one")
    }

    /// Nobody confirms a header: a command is its origin's to confirm, and a system entry nobody's.
    fn header(&mut self, header: &Header) {
        let (frame, _) = self.room(0);
        frame.manifest.push(header.clone());
    }

    fn places(&mut self, places: &Places) {
        let (frame, _) = self.room(places.who.len());
        frame.places.push(places.clone());
    }

    fn response(&mut self, lsn: Lsn, response: Response) {
        let stable = self.blank.stable;
        let length = match &response.outcome {
            Some(Outcome::Reply(reply)) => reply.len(),
            _ => 0,
        };
        let (frame, sent) = self.room(length);
        if lsn > stable {
            sent.tags.push(lsn);
        }
        frame.responses.push(response);
    }

    fn result(&mut self, result: QueryResult) {
        let length = result.result.as_ref().map_or(0, bytes::Bytes::len);
        self.room(length).0.results.push(result);
    }
}

/// Whether a client's hello fits this node.
pub(crate) fn check_hello(
    hello: &Hello,
    cluster: crate::log::ClusterId,
    group: crate::log::GroupId,
) -> Result<(), Error> {
    if hello.version != VERSION {
        let why = format!("this node speaks version {VERSION} of the protocol, the client {}", hello.version);
        return Err(Error::new(Code::WrongVersion, why));
    }
    let foreign =
        hello.cluster.is_some_and(|theirs| theirs != cluster) || hello.group.is_some_and(|theirs| theirs != group);
    if foreign {
        let why =
            format!("this node serves group {group} of cluster {cluster}: check the client's endpoints and cache");
        return Err(Error::new(Code::WrongCluster, why));
    }
    Ok(())
}
