//! The sequencer: from queued writes and proposals to LSNs, execution, the log, and the replies that wait.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Phase, Primary};
use crate::error::{Code, Error};
use crate::log::{
    Body, ClientId, Commands, Digest, Entry, Epoch, HEADER_COST, Header, Level, Lsn, Origin, Places, Placing, Record,
    Records, Request, Tag, Target, Time,
};
use crate::message::{Outcome, QueryResult, Response, Write};
use crate::node::{Conn, NodeEvent, Output};
use crate::recovery::Plan;
use crate::rule::{self, Rule};

/// Bytes of records appended at once.
const APPEND_BYTES: u64 = 8 << 20;

/// A system entry that waits for its LSN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Proposal {
    pub(super) client: Option<ClientId>,
    pub(super) body: Body,
}

/// A write that waits for room in the delta.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Queued {
    pub(super) conn: Conn,
    pub(super) client: ClientId,
    /// Of the session.
    pub(super) handle: u32,
    pub(super) write: Write,
}

/// A query that waits to be run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    pub(super) conn: Conn,
    pub(super) id: u64,
    pub(super) level: Level,
    pub(super) payload: Bytes,
}

/// A query's result that waits for its watermark, and an echo where one is needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reading {
    pub(super) conn: Conn,
    client: ClientId,
    id: u64,
    level: Level,
    lsn: Lsn,
    /// Of the backup; 0 for none.
    echo: u64,
    /// Of other sessions; 0 for none.
    pub(super) round: u64,
    result: Bytes,
}

impl Reading {
    /// Other sessions are asked for their echoes, as enough of them are there.
    pub(super) fn waits_for_others(&self) -> bool {
        self.round > 0 && self.echo == 0
    }
}

/// A response that waits for a watermark.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    client: ClientId,
    request: Request,
    pub(super) level: Level,
    tagged: bool,
}

/// Why a batch is being executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    Work,
    Conclusion,
    Fetched,
}

/// Entries with their LSNs, and queries, that the state machine is working on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    purpose: Purpose,
    records: Records,
    levels: Vec<Level>,
    asked: Vec<Asked>,
    /// Whose entries these are, and the last request number of each.
    origins: BTreeMap<ClientId, Request>,
}

impl Primary {
    /// Has a system entry of `client` ordered with the next batch. At most one is in flight per session.
    pub(super) fn propose(&mut self, client: ClientId, body: Body) {
        let news = self.in_flight.insert(client);
        assert!(news, "one session entry in flight per session");
        self.proposals.push_back(Proposal { client: Some(client), body });
    }

    /// Whether an entry of `client` has its LSN but is not in the log yet.
    pub(super) fn is_executing(&self, client: ClientId) -> bool {
        self.executing.as_ref().is_some_and(|batch| batch.origins.contains_key(&client))
    }

    /// The last LSN that was given out.
    pub(super) fn ordered(&self) -> Lsn {
        let executing = self.executing.as_ref().and_then(|batch| batch.records.last());
        executing.map_or(self.water.head(), Record::lsn)
    }

    /// The header of this request, if it has its LSN and is not in the log yet.
    pub(super) fn executing_request(&self, client: ClientId, request: Request) -> Option<&Header> {
        let batch = self.executing.as_ref()?;
        batch.origins.get(&client).filter(|last| request <= **last)?;
        let origin = Some(Origin { client, request });
        batch.records.iter().map(|record| &record.entry.header).find(|header| header.origin == origin)
    }

    fn header(&self, now: Time, lsn: Lsn, body: Body, origin: Option<Origin>) -> Header {
        Header {
            epoch: self.epoch,
            lsn,
            body,
            origin,
            time: now.max(self.state.time()),
            answered: Request(0),
            length: 0,
            digest: Digest::default(),
        }
    }

    /// Gives everything that may go the next LSNs and has it executed.
    pub(super) fn order(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.executing.is_some() {
            return;
        }
        let mut batch = Batch::new(Purpose::Work);
        let due = self.proposals.len() + self.writes.len().min(self.settings.batch_max);
        let mut records = Vec::with_capacity(due);
        batch.levels.reserve(due);
        let mut lsn = self.water.head();
        while let Some(Proposal { client, body }) = self.proposals.pop_front() {
            lsn = lsn.next();
            let origin = client.map(|client| Origin { client, request: Request(0) });
            let header = self.header(now, lsn, body, origin);
            batch.note(&header, Level::Local);
            records.push(Record { entry: Entry { header, payload: Bytes::new() }, reply: Digest::default() });
        }
        let delta = self.unstable.bytes() + self.cover_bytes();
        let mut room = self.settings.delta_bytes_max.saturating_sub(delta.max(self.unlogged_bytes));
        let mut taken = Vec::with_capacity(due - records.len());
        while records.len() + taken.len() < self.settings.batch_max && room > 0 {
            let Some(queued) = self.writes.pop_front() else {
                break;
            };
            room = room.saturating_sub(queued.write.payload.len() as u64 + HEADER_COST);
            taken.push(queued);
        }
        // Nobody can say which of them came first, and what manifests say of them is shorter like this. What one session
        // wrote stays in order.
        taken.sort_by_key(|queued: &Queued| queued.handle);
        for Queued { conn, client, write, .. } in taken {
            if let Some(live) = self.streams.get_mut(&conn).and_then(|stream| stream.live.as_mut()) {
                live.queued = live.queued.saturating_sub(1);
            }
            lsn = lsn.next();
            let body = if write.withdrawn { Body::Noop } else { Body::Command };
            let origin = Some(Origin { client, request: write.request });
            let header = Header {
                answered: write.answered,
                length: u32::try_from(write.payload.len()).expect("checked against command_bytes_max"),
                digest: write.digest,
                ..self.header(now, lsn, body, origin)
            };
            batch.note(&header, self.effective(write.level));
            records.push(Record { entry: Entry { header, payload: write.payload }, reply: Digest::default() });
        }
        batch.records = records.into();
        batch.asked = self.asked.drain(..).collect();
        if !batch.records.is_empty() || !batch.asked.is_empty() {
            self.execute(now, batch, out);
        }
    }

    /// The level a request is served at: what it asks for, and never weaker than what the service promises. What a
    /// `Local` service does not hold cannot be `Tagged`: it is made stable instead.
    fn effective(&self, asked: Level) -> Level {
        match (self.state.lowest(), asked) {
            (Level::Local, Level::Tagged) => Level::Stable,
            (_, Level::Covered) if self.settings.covering() == 0 => Level::Stable,
            (lowest, asked) => lowest.max(asked),
        }
    }

    fn execute(&mut self, now: Time, batch: Batch, out: &mut Vec<Output>) {
        let commands = Commands::of([batch.records.clone()]);
        let queries: Vec<Bytes> = batch.asked.iter().map(|asked| asked.payload.clone()).collect();
        self.executing = Some(batch);
        if commands.is_empty() && queries.is_empty() {
            self.on_executed(now, Vec::new(), Vec::new(), out);
        } else {
            out.push(Output::Execute { commands, queries });
        }
    }

    /// Executes the outcome of a recovery, and the `EpochStart` that ends it.
    pub(super) fn execute_plan(&mut self, now: Time, plan: Plan, start: Header, out: &mut Vec<Output>) {
        let start = Entry { header: start, payload: Bytes::new() };
        let mut records = plan.records;
        records.push(Record { entry: start, reply: Digest::default() });
        let records = records.into();
        self.execute(now, Batch { records, ..Batch::new(Purpose::Conclusion) }, out);
    }

    /// Executes what a restarting primary took from its backup.
    pub(super) fn execute_fetched(&mut self, now: Time, records: Vec<Record>, out: &mut Vec<Output>) {
        self.execute(now, Batch { records: records.into(), ..Batch::new(Purpose::Fetched) }, out);
    }

    pub(super) fn on_executed(&mut self, now: Time, replies: Vec<Bytes>, results: Vec<Bytes>, out: &mut Vec<Output>) {
        let Some(batch) = self.executing.take() else {
            return;
        };
        if matches!(self.phase, Phase::Deposed | Phase::Halted) {
            return;
        }
        let Batch { purpose, mut records, levels, asked, .. } = batch;
        let places = if purpose == Purpose::Work { self.places_of(&records) } else { Vec::new() };
        match self.apply_all(records.make_mut(), replies, purpose) {
            Ok(other) => out.extend(other.into_iter().map(|lsn| Output::Event(NodeEvent::Diverged(lsn)))),
            Err(error) => {
                self.halt(error, out);
                return;
            }
        }
        let head = records.last().map_or(self.water.head(), Record::lsn);
        for record in &records {
            self.water.append(record.lsn());
            self.unlogged.push_back((record.lsn(), record.cost()));
            self.unlogged_bytes += record.cost();
        }
        self.unstable.push(records.clone(), places);
        self.feed_cover(now);
        // In pieces, so that the first are on their way to the disk while the last are still being encoded.
        let mut from = if purpose == Purpose::Conclusion { self.keep_ahead(&records, out) } else { 0 };
        while from < records.len() {
            let mut bytes = 0;
            let fits = |record: &&Record| {
                bytes += record.cost();
                bytes <= APPEND_BYTES
            };
            let upto = from + records[from..].iter().take_while(fits).count().max(1);
            out.push(Output::Append(records.slice(from..upto)));
            from = upto;
        }
        match purpose {
            Purpose::Work => {
                for (record, level) in records.iter().zip(levels) {
                    self.on_ordered(now, &record.entry.header, level, out);
                }
                for (asked, result) in asked.into_iter().zip(results) {
                    self.on_result(asked, head, result);
                }
                self.release_reads();
            }
            Purpose::Conclusion => {
                self.log_ahead(now, out);
                self.on_concluded(now, head, out);
            }
            Purpose::Fetched => self.on_fetched(now, out),
        }
    }

    /// What manifests are to say of commands that are about to be applied.
    fn places_of(&self, records: &[Record]) -> Vec<Places> {
        let mut placing = Placing::new(self.epoch);
        if self.state.lowest() == Level::Local {
            return Vec::new();
        }
        for Header { lsn, body, origin, time, .. } in records.iter().map(|record| &record.entry.header) {
            let (Body::Command, Some(Origin { client, request })) = (body, *origin) else { continue };
            if placing.goes_on(*lsn, client, request, *time) {
                continue;
            }
            if let Some(session) = self.state.session(client) {
                placing.push(*lsn, *time, (client, request), session.handle, session.next);
            }
        }
        placing.finish()
    }

    /// Applies executed records to the log's state and notes the checksums of their replies. Returns what was rebuilt and
    /// answered otherwise than its client reported.
    fn apply_all(&mut self, records: &mut [Record], replies: Vec<Bytes>, purpose: Purpose) -> Result<Vec<Lsn>, Error> {
        let mut replies = replies.into_iter();
        let mut other = Vec::new();
        for record in records {
            let reply = (record.entry.header.body == Body::Command).then(|| replies.next().unwrap_or_default());
            if purpose != Purpose::Fetched {
                let answered = reply.as_ref().map(|reply| Digest::crc32(reply)).unwrap_or_default();
                let reported = std::mem::replace(&mut record.reply, answered);
                if reported.algorithm == answered.algorithm && reported != answered {
                    other.push(record.lsn());
                }
            }
            self.state.apply(record, reply)?;
        }
        assert!(replies.next().is_none(), "one reply for each command");
        Ok(other)
    }

    /// An entry of this reign is in the log: answer it, or have it wait.
    fn on_ordered(&mut self, now: Time, header: &Header, level: Level, out: &mut Vec<Output>) {
        let lsn = header.lsn;
        match (&header.body, header.origin) {
            (Body::Command | Body::Noop, Some(origin)) => self.respond(origin.client, origin.request, lsn, level),
            (Body::Config(target), _) => {
                self.config_lsn = lsn;
                self.config_proposed = false;
                self.dismiss_other(*target, out);
            }
            (Body::Suspend, Some(origin)) => {
                self.in_flight.remove(&origin.client);
                self.keep_house_soon(now);
                self.admit(now, origin.client, out);
            }
            (Body::Close | Body::Expire, Some(origin)) => {
                self.in_flight.remove(&origin.client);
                self.disconnected.remove(&origin.client);
                self.ending.remove(&origin.client);
                self.incarnations.remove(&origin.client);
                self.departing.insert(origin.client, lsn);
            }
            (_, Some(origin)) => {
                self.admitting = true;
                self.in_flight.remove(&origin.client);
                if !self.attached.contains_key(&origin.client) {
                    self.disconnected.insert(origin.client, now);
                    self.keep_house_soon(now);
                }
                self.admit(now, origin.client, out);
            }
            (_, None) => {}
        }
    }

    /// Whether a reply at `lsn` may go out at `level`.
    fn is_met(&self, level: Level, lsn: Lsn) -> bool {
        let logged = !(self.settings.reply_after_log || self.logs_first()) || lsn <= self.water.logged();
        logged && self.water.meets(level, lsn)
    }

    /// Whether anything waits for the backup: then what is sent to it should leave at once. Otherwise it only takes from
    /// what clients hold.
    pub fn waits_for_backup(&self) -> bool {
        // What is to be covered waits for clients, as long as there are enough of them.
        let covers = self.sharing.as_ref().is_some_and(|sharing| !sharing.is_short());
        let replies = self.stable_replies == 0 && (covers || self.replies.is_empty());
        let entries =
            replies && self.reads.iter().all(|reading| covers && reading.level < Level::Stable && reading.echo == 0);
        let sessions = self.admissions.is_empty() && self.in_flight.is_empty() && self.departing.is_empty();
        let attached = self.counts_backup && self.follower.as_ref().is_some_and(|follower| follower.in_sync);
        !(matches!(self.phase, Phase::Open) && attached && entries && sessions)
    }

    /// Whether anything waits for what is appended to be on the own disk. Where the backup alone moves the checkpoint and
    /// nothing waits for the disk besides, that only shortens the way back after a restart. Nor does anything wait for what
    /// a recovery appends before its conclusion.
    pub fn waits_for_disk(&self) -> bool {
        if matches!(self.phase, Phase::Recovering(_)) {
            return false;
        }
        let open = matches!(self.phase, Phase::Open) && self.counts_backup;
        let much = self.unlogged_bytes > self.settings.delta_bytes_max / 2;
        !open || self.settings.reply_after_log || self.logs_first() || much
    }

    /// Whether this reign lets nothing of an entry out before it is on the own disk.
    pub(super) fn logs_first(&self) -> bool {
        self.state.start().log_before_send && rule::on(Rule::LogBeforeSend)
    }

    /// Queues the response to a request that is in the log at `lsn`: tag and reply, or the tag alone at first.
    pub(super) fn respond(&mut self, client: ClientId, request: Request, lsn: Lsn, level: Level) {
        let met = self.is_met(level, lsn);
        let may_tag = met || (self.tags_first() && (!self.logs_first() || lsn <= self.water.logged()));
        if !met {
            let tagged = may_tag;
            let before = self.replies.insert(lsn, Waiting { client, request, level, tagged });
            self.stable_replies -= u64::from(before.is_some_and(|before| before.level == Level::Stable));
            self.stable_replies += u64::from(level == Level::Stable);
        }
        if may_tag {
            self.queue_response(client, request, lsn, met);
        }
    }

    /// Queues the tag of an entry whose reply has to wait, if it was not told yet.
    pub(super) fn tag_early(&mut self, lsn: Lsn) {
        if let Some(waiting) = self.replies.get_mut(&lsn).filter(|waiting| !waiting.tagged) {
            waiting.tagged = true;
            let Waiting { client, request, .. } = *waiting;
            self.queue_response(client, request, lsn, false);
        }
    }

    fn queue_response(&mut self, client: ClientId, request: Request, lsn: Lsn, with_reply: bool) {
        let tag = self.tag(client, lsn);
        let outcome = if with_reply {
            let session = self.state.session(client);
            let Some(reply) = session.and_then(|session| session.replies.get(&request)) else {
                return;
            };
            Some(Outcome::Reply(reply.reply.clone()))
        } else {
            None
        };
        if let Some((conn, live)) = self.live(client) {
            live.responses.push((lsn, Response { request, tag: Some(tag), outcome }));
            self.dirty.insert(conn);
        }
    }

    fn tag(&self, client: ClientId, lsn: Lsn) -> Tag {
        let stable = self.water.stable();
        let cover = self.sharing.as_ref().map(|sharing| &sharing.cover);
        // What is stable may have to be held for the sake of others, and is reported under its header.
        let kept = || cover.and_then(|cover| cover.header(lsn));
        let header = self.unstable.get(lsn).map(|record| &record.entry.header).or_else(kept);
        let elsewhere = self.state.session(client).is_some_and(|session| session.info.domain != self.settings.domain);
        let held = lsn > self.settled() && self.state.lowest() != Level::Local;
        let until = cover.map_or(Some(lsn), |cover| cover.hold_until(lsn));
        Tag {
            epoch: self.state.epoch_at(lsn),
            lsn,
            time: header.map_or(Time(0), |header| header.time),
            hold_until: if held { until } else { Some(Lsn(0)) },
            stable,
            protected: lsn <= stable || (held && elsewhere) || cover.is_some_and(|cover| cover.is_copied(lsn)),
            met: match () {
                () if lsn <= stable => Level::Stable,
                () if lsn <= self.water.covered() => Level::Covered,
                () => self.state.lowest().min(Level::Tagged),
            },
        }
    }

    /// The answer to a request that was ordered before: its reply once more, or that there will never be one.
    pub(super) fn respond_again(&mut self, client: ClientId, write: &Write) -> Result<(), Error> {
        let request = write.request;
        let reply = self.state.session(client).and_then(|session| session.replies.get(&request));
        match reply.map(|reply| (reply.lsn, reply.command)) {
            Some((lsn, command)) => {
                check_same(write, command)?;
                self.respond(client, request, lsn, self.effective(write.level));
                // What was confirmed on an older stream is void, and may be counted on.
                if !self.logs_first() || lsn <= self.water.logged() {
                    self.tag_early(lsn);
                }
            }
            None => {
                if let Some((conn, live)) = self.live(client) {
                    let response = Response { request, tag: None, outcome: Some(Outcome::Superseded) };
                    live.responses.push((Lsn(0), response));
                    self.dirty.insert(conn);
                }
            }
        }
        Ok(())
    }

    fn on_result(&mut self, asked: Asked, lsn: Lsn, result: Bytes) {
        let Asked { conn, id, level, .. } = asked;
        let level = if rule::on(Rule::ReadLevel) { self.effective(level) } else { Level::Local };
        let Some(client) = self.streams.get(&conn).and_then(|stream| stream.live.as_ref()).map(|live| live.client)
        else {
            return;
        };
        let (mut echo, round) = (self.ask_echo(level), self.next_round());
        if round > 0 && self.lacks_echoes(client) {
            // The backup's serves as well, whichever comes first.
            echo = self.next_echo();
        }
        if echo == 0 && round == 0 && self.is_met(level, lsn) {
            self.answer_query(conn, id, lsn, result);
        } else {
            self.reads.push_back(Reading { conn, client, id, level, lsn, echo, round, result });
        }
    }

    fn answer_query(&mut self, conn: Conn, id: u64, lsn: Lsn, result: Bytes) {
        if let Some(live) = self.streams.get_mut(&conn).and_then(|stream| stream.live.as_mut()) {
            live.queries = live.queries.saturating_sub(1);
            live.results.push(QueryResult { id, lsn, result: Ok(result) });
            self.dirty.insert(conn);
        }
    }

    /// I8 rests on this: where a takeover concludes without anybody's report, only the backup can tell that there was
    /// none, and a query waits for its echo. That is so at lowest level `Stable`, and for a query that asks for more in
    /// a `Local` service.
    fn ask_echo(&mut self, level: Level) -> u64 {
        let backed = matches!(self.state.target(), Target::Backup(_)) && self.counts_backup;
        let unheard = matches!(self.state.lowest(), Level::Local | Level::Stable) && level == Level::Stable;
        if !unheard || !backed || !rule::on(Rule::ReadEcho) {
            return 0;
        }
        self.next_echo()
    }

    /// Releases what waited for the watermarks as they are now.
    pub(super) fn release_waiting(&mut self) {
        let (stable, logged, covered) = (self.water.stable(), self.water.logged(), self.water.covered());
        // Only what is stable, or was logged or covered since the last time, can have something new to say.
        let (logged_before, covered_before) = std::mem::replace(&mut self.released, (logged, covered));
        let news = |before: Lsn, now: Lsn| {
            let from = before.max(stable).next();
            (from <= now).then(|| self.replies.range(from..=now)).into_iter().flatten()
        };
        let (mut ready, tags_first) = (Vec::new(), self.tags_first());
        let news = news(logged_before, logged).chain(news(covered_before, covered));
        for (lsn, waiting) in self.replies.range(..=stable).chain(news) {
            let met = self.is_met(waiting.level, *lsn);
            if met || (!waiting.tagged && tags_first && *lsn <= logged) {
                ready.push((*lsn, met));
            }
        }
        ready.sort_unstable();
        ready.dedup();
        for (lsn, met) in ready {
            let Some(waiting) = self.replies.get_mut(&lsn) else {
                continue;
            };
            waiting.tagged = true;
            let Waiting { client, request, level, .. } = *waiting;
            if met {
                self.stable_replies -= u64::from(level == Level::Stable);
                self.replies.remove(&lsn);
            }
            self.queue_response(client, request, lsn, met);
        }
        self.release_reads();
    }

    /// Echoes asked on an older stream will not come: ask again on the new one.
    pub(super) fn renew_echoes(&mut self) {
        if self.reads.iter().any(|reading| reading.echo > 0) {
            let echo = self.next_echo();
            self.reads.iter_mut().filter(|reading| reading.echo > 0).for_each(|reading| reading.echo = echo);
        }
    }

    pub(super) fn release_reads(&mut self) {
        let echoed = self.echoed();
        // They wait in LSN order, and none that is past both marks can be met.
        let reached = self.water.covered().max(self.water.logged());
        let least = self.reads.iter().map(|reading| reading.round).filter(|round| *round > 0).min();
        let echoes = least.map_or_else(Vec::new, |least| self.echoes(least));
        let mut kept = Vec::new();
        while let Some(mut reading) = self.reads.pop_front() {
            let met = self.is_met(reading.level, reading.lsn);
            let client = reading.client;
            let round = reading.round;
            if round > 0 && self.rounds_echoed(&echoes, client) >= round {
                (reading.round, reading.echo) = (0, 0);
            } else if round > 0 && reading.echo > 0 && reading.echo <= echoed {
                reading.round = 0;
            } else if round > 0 && self.lacks_echoes(client) != (reading.echo > 0) {
                // Those who were asked are gone: the backup can tell as well. Or others came, and are asked.
                reading.echo = if reading.echo > 0 { 0 } else { self.next_echo() };
            }
            if !met || reading.echo > echoed || reading.round > 0 {
                let past = reading.lsn > reached;
                kept.push(reading);
                if past {
                    break;
                }
                continue;
            }
            let Reading { conn, id, lsn, result, .. } = reading;
            self.answer_query(conn, id, lsn, result);
        }
        kept.into_iter().rev().for_each(|reading| self.reads.push_front(reading));
    }

    pub(super) fn on_persisted(&mut self, now: Time, upto: Lsn, out: &mut Vec<Output>) {
        let upto = self.note_persisted(upto);
        self.water.log(upto);
        self.feed_cover(now);
        while self.unlogged.front().is_some_and(|(lsn, _)| *lsn <= upto) {
            self.unlogged_bytes -= self.unlogged.pop_front().map_or(0, |(_, cost)| cost);
        }
        match self.phase {
            Phase::Open | Phase::Stopping => {
                self.release_waiting();
                self.advance_stable(now, out);
            }
            Phase::Concluding { .. } => {
                // Where nothing is sent before it is logged, the backup gets the outcome only now.
                self.pump(out);
                self.try_open(now, out);
            }
            Phase::Fetching { .. } => self.on_fetched(now, out),
            _ => {}
        }
    }

    /// Leaves the mark of an orderly stop once everything is stable.
    pub(super) fn check_stopped(&mut self, out: &mut Vec<Output>) {
        let head = self.water.head();
        let drained = self.executing.is_none() && self.water.stable() == head && self.water.logged() == head;
        if matches!(self.phase, Phase::Stopping) && drained && self.proposals.is_empty() {
            self.phase = Phase::Stopped;
            self.marks.clean = Some(head);
            self.save_marks(out);
        }
    }

    pub(super) fn on_stop_marked(&mut self, out: &mut Vec<Output>) {
        self.push_status(out);
        for conn in std::mem::take(&mut self.streams).into_keys() {
            out.push(Output::Close(conn));
        }
        self.attached.clear();
        self.admissions.clear();
        self.dirty.clear();
        if let Some(follower) = self.follower.take() {
            out.push(Output::Close(follower.conn));
        }
        out.push(Output::Event(NodeEvent::Stopped(true)));
    }

    pub(super) fn epoch_start_header(&self, now: Time, lsn: Lsn, epoch: Epoch, body: Body) -> Header {
        Header { epoch, ..self.header(now, lsn, body, None) }
    }
}

impl Batch {
    fn new(purpose: Purpose) -> Self {
        Self { purpose, records: Records::default(), levels: Vec::new(), asked: Vec::new(), origins: BTreeMap::new() }
    }

    /// One more entry; it is served at `level`.
    fn note(&mut self, header: &Header, level: Level) {
        if let Some(origin) = header.origin {
            let last = self.origins.entry(origin.client).or_default();
            *last = origin.request.max(*last);
        }
        self.levels.push(level);
    }
}

/// Whether a command that is sent again is the one that its number was used for, of this length and checksum.
///
/// # Errors
/// [`Code::Conflict`] if not: what its sender would be answered is another command's reply.
pub(super) fn check_same(write: &Write, command: (u32, Digest)) -> Result<(), Error> {
    if write.withdrawn || (write.payload.len() as u64, write.digest) == (u64::from(command.0), command.1) {
        return Ok(());
    }
    let why = format!(
        "request {} was used for another command: this cache is older than its session. It was restored from a copy, or its \
         machine went down before it was synced: open a new session",
        write.request
    );
    Err(Error::new(Code::Conflict, why))
}
