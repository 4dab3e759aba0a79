//! The oracle: what the clients were told and what lies on the disks, judged without asking the cores.
//!
//! The bookkeeping is here; the checks are in `invariants`, under the numbers of docs/protocol.md.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tagalong::client::{CacheImage, Command};
use tagalong::error::{Code, Error, Result};
use tagalong::log::{Body, ClientId, Epoch, EpochStart, Level, Lsn, Record, Request, Tag, Target};
use tagalong::message::{NodeFrame, Outcome};
use tagalong::node::RecoveryPolicy;
use tagalong::primary::PrimarySettings;

use crate::client::{SimClient, number};
use crate::coverage::Damage;
use crate::node::Node;

/// The log of a reign, as its primary ordered it: from the first record on.
pub struct ReignLog {
    pub node: usize,
    pub log: Vec<Record>,
    /// Where each command of this reign is.
    pub places: BTreeMap<(ClientId, Request), Lsn>,
    pub start: Lsn,
    /// The stability targets that were named in it.
    pub named: Vec<(Lsn, Target)>,
    /// Where its primary, which logs before it sends, last went on.
    pub resumed: Lsn,
    pub report: EpochStart,
    /// The highest checkpoint that it told anybody.
    pub told: Lsn,
    /// More was lost than anybody promised, and nobody was missing: the caches of some had lost their end.
    pub beyond: bool,
    pub opened: Option<u64>,
}

/// A command, as its application sees it.
#[derive(Clone, Debug)]
pub struct Op {
    pub payload: Bytes,
    pub level: Level,
    pub withdrawn: bool,
    /// The process died with the outcome.
    pub unheard: bool,
    pub floor: Lsn,
    pub done: Option<Done>,
    /// When it was called, and when it was done.
    pub from: u64,
    pub to: u64,
}

impl Op {
    fn is_open(&self) -> bool {
        self.done.is_none() && !self.unheard
    }
}

#[derive(Clone, Debug)]
pub struct Done {
    pub reply: Option<Bytes>,
    pub at: Option<(Epoch, Lsn)>,
}

/// A query, as its application sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub key: u8,
    pub level: Level,
    pub floor: Lsn,
    pub from: u64,
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub client: usize,
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub key: u8,
    pub level: Level,
    pub result: Bytes,
    pub from: u64,
    pub to: u64,
    /// It came of a reign that was over, to somebody who is excused.
    pub outdated: bool,
}

#[derive(Default)]
pub struct ClientView {
    /// What it fails together with.
    pub domain: String,
    pub ops: BTreeMap<Request, Op>,
    pub asked: BTreeMap<u64, Asked>,
    pub flushes: BTreeMap<u64, Request>,
    /// Queries nobody waits for any more: they may still be answered.
    pub forgotten: BTreeSet<u64>,
    /// Headers and tags that died with the client.
    pub died_with: BTreeSet<(Epoch, Lsn)>,
    /// What its cache was when it died.
    pub died_image: Option<CacheImage>,
    pub failed: bool,
    /// Its cache lost its end, at some time.
    pub torn: bool,
    /// Acknowledged, held, superseded: to be returned to the application.
    pub owed: BTreeSet<Request>,
}

/// How large things became.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scale {
    /// Replies and results that were sent, and the headers that went with them in manifests.
    pub answers: u64,
    pub headers: u64,
    /// Of any one recovery: entries that were rebuilt, sessions that wrote them, sessions that were missing.
    pub rebuilt: u64,
    pub authors: u64,
    pub missing: u64,
}

impl Scale {
    pub fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.headers += other.headers;
        self.rebuilt = self.rebuilt.max(other.rebuilt);
        self.authors = self.authors.max(other.authors);
        self.missing = self.missing.max(other.missing);
    }

    pub fn sent(&mut self, frame: &NodeFrame) {
        let replies = frame.responses.iter().filter(|response| response.outcome.is_some()).count();
        self.answers += (replies + frame.results.len()) as u64;
        let placed: u64 = frame.places.iter().map(|places| u64::from(places.count)).sum();
        self.headers += frame.manifest.len() as u64 + placed;
    }

    pub fn recovered(&mut self, reign: &ReignLog) {
        let base = usize::try_from(reign.report.base.0).expect("small");
        let rebuilt = &reign.log[base..reign.log.len() - 1];
        let authors = rebuilt.iter().filter_map(|record| record.entry.header.origin.map(|origin| origin.client));
        self.rebuilt = self.rebuilt.max(rebuilt.len() as u64);
        self.authors = self.authors.max(authors.collect::<BTreeSet<_>>().len() as u64);
        self.missing = self.missing.max(reign.report.missing.len() as u64);
    }
}

pub struct Oracle {
    pub violation: Option<(&'static str, String)>,
    pub lowest: Level,
    /// How many failure domains `Covered` stands for.
    pub covering: u8,
    pub reigns: BTreeMap<Epoch, ReignLog>,
    pub views: Vec<ClientView>,
    pub seen: Vec<Seen>,
    /// The keys of commands by their payloads' digest: what a state machine knows of a lost command's header.
    pub keys: BTreeMap<u64, u8>,
    /// The highest LSN of anything that completed, in what is the log by now.
    pub floor: Lsn,
    pub forced: bool,
    pub policies: usize,
    /// Recoveries wait for an operator.
    pub waits: bool,
    /// Clients that lost what they had confirmed, as long as that matters.
    pub damages: BTreeMap<usize, Damage>,
    /// Those whose loss had been made good when the last primary was lost.
    pub repaired: BTreeSet<usize>,
    /// Whom an operator excluded from the recovery that is under way.
    pub excluded: BTreeSet<ClientId>,
    pub sampled: u64,
    /// Recoveries that concluded by themselves without somebody, and entries that shares supplied.
    pub alone: u64,
    pub decoded: u64,
    pub scale: Scale,
    pub now: u64,
    /// Operations that were found to be in some linear order.
    pub ordered: u64,
}

impl Oracle {
    pub fn new(settings: &PrimarySettings) -> Self {
        Self {
            violation: None,
            lowest: settings.lowest,
            covering: settings.covering(),
            reigns: BTreeMap::new(),
            views: Vec::new(),
            seen: Vec::new(),
            keys: BTreeMap::new(),
            floor: Lsn(0),
            forced: false,
            policies: 0,
            waits: settings.policy == RecoveryPolicy::Wait,
            damages: BTreeMap::new(),
            repaired: BTreeSet::new(),
            excluded: BTreeSet::new(),
            sampled: 0,
            alone: 0,
            decoded: 0,
            scale: Scale::default(),
            now: 0,
            ordered: 0,
        }
    }

    pub fn violate(&mut self, invariant: &'static str, what: String) {
        if self.violation.is_none() {
            self.violation = Some((invariant, what));
        }
    }

    pub fn on_forced(&mut self) {
        self.forced = true;
    }

    /// After a forced promotion, or an exclusion, reports may contradict what is left.
    pub fn may_conflict(&self) -> bool {
        self.forced || self.policies > 0 || self.damages.values().any(|damage| damage.torn)
    }

    /// The level a write or query is served at.
    pub fn effective(&self, asked: Level) -> Level {
        match (self.lowest, asked) {
            (Level::Local, Level::Tagged) => Level::Stable,
            (_, Level::Covered) if self.covering == 0 => Level::Stable,
            (lowest, asked) => lowest.max(asked),
        }
    }

    // Reigns.

    pub fn on_append(&mut self, nodes: &mut [Node], clients: &[SimClient], at: usize, records: &[Record]) {
        let node = &nodes[at];
        let Some(primary) = node.primary() else {
            self.check_prefix(node, at, records);
            return;
        };
        let epoch = primary.epoch();
        if node.serving.is_none() {
            let last = records.last().expect("records");
            let begins = matches!(last.entry.header.body, Body::EpochStart(_)) && last.entry.header.epoch == epoch;
            if !begins || self.reigns.contains_key(&epoch) {
                self.check_fetched(at, records);
                return;
            }
            let Body::EpochStart(report) = &last.entry.header.body else { unreachable!() };
            let report = (**report).clone();
            let mut log: Vec<Record> =
                node.disk.log.iter().filter(|record| record.lsn() <= report.base).cloned().collect();
            // What was appended ahead may still be on its way to the disk.
            let ahead = (report.base.0 + 1..records[0].lsn().0).map(Lsn);
            log.extend(ahead.map(|lsn| primary.unstable().get(lsn).expect("the log is dense").clone()));
            log.extend(records.iter().cloned());
            let (start, places, named) = (last.lsn(), BTreeMap::new(), Vec::new());
            let reign = ReignLog {
                node: at,
                log,
                places,
                start,
                named,
                resumed: start,
                report,
                told: Lsn(0),
                beyond: false,
                opened: None,
            };
            self.check_rebuilt(epoch, &reign);
            self.scale.recovered(&reign);
            self.reigns.insert(epoch, reign);
            self.check_recovered(nodes, clients, at, epoch);
            nodes[at].serving = Some(epoch);
            return;
        }
        let Some(reign) = self.reigns.get_mut(&epoch) else { return };
        for record in records {
            if record.lsn().0 != reign.log.len() as u64 + 1 || record.entry.header.epoch != epoch {
                let why = format!("node {at} orders {:?} after {}", record.entry.header, reign.log.len());
                self.violate("I1", why);
                return;
            }
            let origin = record.entry.header.origin.filter(|_| record.entry.header.body == Body::Command);
            reign.places.extend(origin.map(|origin| ((origin.client, origin.request), record.lsn())));
            if let Body::Config(target) = record.entry.header.body {
                reign.named.push((record.lsn(), target));
            }
            reign.log.push(record.clone());
        }
        self.check_suspends(nodes, at, records);
    }

    /// A primary that logs before it sends goes on with what its disk has.
    pub fn reign_goes_on(&mut self, epoch: Epoch, end: usize) {
        if let Some(reign) = self.reigns.get_mut(&epoch) {
            reign.log.truncate(end);
            reign.places.retain(|_, lsn| lsn.0 <= end as u64);
            reign.named.retain(|(lsn, _)| lsn.0 <= end as u64);
            reign.resumed = Lsn(end as u64);
        }
    }

    /// A reign that begins to serve without having said so before.
    pub fn unopened(&self, epoch: Epoch) -> Option<(Lsn, EpochStart)> {
        let reign = self.reigns.get(&epoch).filter(|reign| reign.opened.is_none())?;
        Some((reign.start, reign.report.clone()))
    }

    pub fn record(&self, epoch: Epoch, lsn: Lsn) -> Option<&Record> {
        let index = usize::try_from(lsn.0).ok()?.checked_sub(1)?;
        self.reigns.get(&epoch)?.log.get(index)
    }

    /// Whether this node's disk makes things stable: a backup that could be promoted without force.
    pub fn counts(&self, nodes: &[Node], at: usize) -> bool {
        let node = &nodes[at];
        let Some(marks) = &node.disk.marks else { return false };
        marks.in_sync && !node.lost && !node.founder && marks.promised.node != node.id && node.primary().is_none()
    }

    // Clients.

    pub fn on_client(&mut self, domain: String) {
        self.views.push(ClientView { domain, ..ClientView::default() });
    }

    pub fn last_request(&self, at: usize) -> Request {
        self.views[at].ops.last_key_value().map_or(Request(0), |(request, _)| *request)
    }

    pub fn on_write(&mut self, at: usize, request: Request, payload: Bytes, level: Level) {
        self.keys.insert(tagalong::log::Digest::crc32(&payload).value, payload[0]);
        let (floor, from) = (self.floor, self.now);
        let op = Op { payload, level, withdrawn: false, unheard: false, floor, done: None, from, to: from };
        if self.views[at].ops.insert(request, op).is_some() {
            self.violate("I6", format!("client {at} gives request {request} out twice"));
        }
    }

    pub fn on_withdraw(&mut self, at: usize, request: Request) {
        if let Some(op) = self.views[at].ops.get_mut(&request) {
            op.withdrawn = true;
        }
    }

    pub fn on_query(&mut self, at: usize, id: u64, key: u8, level: Level) {
        self.views[at].asked.insert(id, Asked { key, level, floor: self.floor, from: self.now });
    }

    pub fn asked(&self, at: usize, id: u64) -> Option<u8> {
        self.views[at].asked.get(&id).map(|asked| asked.key)
    }

    pub fn key_of(&self, at: usize, request: Request) -> Option<u8> {
        self.views[at].ops.get(&request).map(|op| op.payload[0])
    }

    pub fn on_forgotten(&mut self, at: usize, id: u64) {
        self.views[at].forgotten.insert(id);
    }

    pub fn on_flush(&mut self, at: usize, token: u64) {
        let last = self.last_request(at);
        self.views[at].flushes.insert(token, last);
    }

    /// What was never in the cache is gone with the process, and its numbers are free.
    pub fn on_client_start(&mut self, at: usize, image: &CacheImage) {
        let view = &mut self.views[at];
        view.ops.retain(|request, _| *request <= image.last);
        for (request, op) in view.ops.iter_mut().filter(|(_, op)| op.done.is_none()) {
            // Its outcome reached the cache, and the process died before the application heard of it.
            op.unheard = image.commands.get(request).is_none_or(|command| command.reply.is_some());
        }
        view.asked.clear();
        view.flushes.clear();
    }

    /// The entries whose places a cache knows.
    pub fn places(&self, image: &CacheImage) -> BTreeSet<(Epoch, Lsn)> {
        let tags = image.commands.values().filter_map(|command| command.tag.map(|tag| (tag.epoch, tag.lsn)));
        image.told().chain(tags).collect()
    }

    pub fn on_client_crash(&mut self, client: &SimClient) {
        if client.persistent {
            return;
        }
        let image = client.core.as_ref().map_or(&client.stored, |core| core.image());
        let held = self.places(image);
        let at = number(client.id);
        self.views[at].died_with.extend(held);
        self.views[at].died_image = Some(image.clone());
    }

    pub fn on_failed(&mut self, at: usize, error: &Error) {
        self.views[at].failed = true;
        if error.code() != Code::SessionExpired {
            self.violate("liveness", format!("client {at} fails: {error}"));
        }
    }

    pub fn on_closed(&mut self, at: usize) {
        if let Some((request, _)) = self.views[at].ops.iter().find(|(_, op)| op.is_open()) {
            self.violate("I9", format!("client {at} is closed, but request {request} has no outcome"));
        }
    }

    /// The epoch is older than one that has opened, and what the client still gets in it is excused.
    fn is_outdated(&self, epoch: Epoch, level: Level) -> bool {
        let excused = self.policies > 0 || self.forced || level == Level::Local;
        excused && self.reigns.range(epoch..).skip(1).any(|(_, reign)| reign.opened.is_some())
    }

    pub fn on_done(&mut self, client: &SimClient, at: usize, request: Request, outcome: &Outcome, tag: Option<Tag>) {
        let place = tag.map(|tag| (tag.epoch, tag.lsn));
        let reply = match outcome {
            Outcome::Reply(reply) => Some(reply.clone()),
            _ => None,
        };
        let now = self.now;
        let Some(op) = self.views[at].ops.get_mut(&request) else {
            self.violate("I6", format!("client {at} is told of request {request}, which it never made"));
            return;
        };
        if op.done.as_ref().is_none_or(|done| done.at != place) {
            op.to = now;
        }
        let before = op.done.replace(Done { reply: reply.clone(), at: place });
        let (floor, level) = (op.floor, op.level);
        if let Some(before) = before
            && (before.reply != reply)
        {
            // A process that crashed before its cache had the reply is told again, and must hear the same.
            self.check_same_reply(at, request, before.at, place);
        }
        let Some((_, lsn)) = place.filter(|_| reply.is_some()) else { return };
        let Some((epoch, sent)) = client.reply_sent.get(&request).copied() else { return };
        self.check_one_primary(at, epoch, sent, self.effective(level));
        if self.is_outdated(epoch, self.effective(level)) {
            return;
        }
        // The LSN of a repeated request may lie below what completed since it was first asked.
        if lsn <= floor {
            self.violate(
                "I8",
                format!("client {at}: request {request} is at {lsn}, but {floor} was complete when it was made"),
            );
        }
        self.floor = self.floor.max(lsn);
    }

    pub fn on_result(&mut self, client: &SimClient, at: usize, id: u64, result: &Result<Bytes>) {
        let Some(asked) = self.views[at].asked.remove(&id) else {
            self.violate("I6", format!("client {at} is told of query {id} twice, or never asked it"));
            return;
        };
        let Some((epoch, lsn, sent)) = client.result_at.get(&id).copied() else {
            self.violate("I8", format!("client {at}: query {id} is answered without a frame"));
            return;
        };
        let Ok(result) = result else { return };
        let level = self.effective(asked.level);
        let (key, result, outdated) = (asked.key, result.clone(), self.is_outdated(epoch, level));
        let (from, to) = (asked.from, self.now);
        self.seen.push(Seen { client: at, epoch, lsn, key, level, result, from, to, outdated });
        self.check_one_primary(at, epoch, sent, level);
        if self.is_outdated(epoch, level) {
            return;
        }
        if lsn < asked.floor {
            let floor = asked.floor;
            self.violate(
                "I8",
                format!("client {at}: query {id} saw {lsn}, but {floor} was complete when it was asked"),
            );
        }
        self.floor = self.floor.max(lsn);
    }

    pub fn on_flushed(&mut self, at: usize, token: u64) {
        let Some(upto) = self.views[at].flushes.remove(&token) else {
            self.violate("I9", format!("client {at}: flush {token} is answered, but was not asked"));
            return;
        };
        if let Some((request, _)) = self.views[at].ops.range(..=upto).find(|(_, op)| op.is_open()) {
            self.violate("I9", format!("client {at}: flush {token} is answered before request {request}"));
        }
    }

    pub fn unanswered(&self, at: usize) -> Option<String> {
        let open = self.views[at].ops.iter().find(|(_, op)| op.is_open());
        open.map(|(request, op)| format!("request {request} has no outcome: {op:?}"))
    }

    /// What a client has to hold, for comparison with later.
    pub fn held(&self, image: &CacheImage) -> Held {
        let tagged = image.commands.iter().filter(|(_, command)| command.tag.is_some());
        Held {
            commands: tagged.map(|(request, command)| (*request, command.clone())).collect(),
            headers: image.told().collect(),
        }
    }
}

pub struct Held {
    pub commands: Vec<(Request, Command)>,
    pub headers: Vec<(Epoch, Lsn)>,
}
