//! The oracle: what clients were told and what lies on the disks, judged as things happen, under the numbers of
//! docs/protocol.md. It is a part of the state: two worlds with different pasts are different where the pasts will be judged.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tagalong::client::{CacheImage, ClientEvent};
use tagalong::error::Result;
use tagalong::log::{
    Body, ClientId, Epoch, EpochStart, Header, Level, Lsn, Origin, Record, Request, Tag, Target, in_ranges,
};
use tagalong::message::{BackupMessage, NodeFrame, NodeMessage, Outcome, PrimaryMessage};
use tagalong::primary::PrimarySettings;
use tagalong::share::Share;
use tagalong::share::body::Plain;

use crate::world::World;

/// The log of a reign, as its primary ordered it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ordered {
    pub node: usize,
    pub log: Vec<Header>,
    pub start: Lsn,
    pub report: EpochStart,
    pub opened: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Oracle {
    pub lowest: Level,
    pub covering: u8,
    pub reigns: BTreeMap<Epoch, Ordered>,
    /// The highest LSN of anything that completed, in what is the log by now.
    pub floor: Lsn,
    pub forced: bool,
    /// Recoveries that were concluded without everything, by decision.
    pub policies: u8,
    pub seen: Vec<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Op {
    pub payload: Bytes,
    pub level: Level,
    pub floor: Lsn,
    /// The process died with the outcome.
    pub unheard: bool,
    pub done: Option<Done>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Done {
    pub reply: Option<Bytes>,
    pub at: Option<(Epoch, Lsn)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    pub client: usize,
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub level: Level,
    pub result: Bytes,
}

/// What a client's application asked and was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct View {
    pub ops: BTreeMap<Request, Op>,
    pub asked: BTreeMap<u64, (Level, Lsn)>,
    /// Where each query's result was computed, and each reply sent: with the newest reign that was open then.
    results: BTreeMap<u64, (Epoch, Lsn, Epoch)>,
    replies: BTreeMap<Request, (Epoch, Epoch)>,
    pub superseded: BTreeSet<Request>,
    pub rolled_back: BTreeSet<Epoch>,
    /// Acknowledged, held, superseded: to be returned to the application.
    owed: BTreeSet<Request>,
    pub failed: bool,
    /// Headers and tags that died with the client.
    pub died_with: BTreeSet<(Epoch, Lsn)>,
}

/// What a client has to hold, for comparison with later.
pub struct Held {
    commands: Vec<(Request, Tag, bool)>,
    headers: Vec<(Epoch, Lsn)>,
}

impl View {
    /// What was never in the cache is gone with the process, and its numbers are free.
    pub fn on_start(&mut self, image: &CacheImage) {
        self.ops.retain(|request, _| *request <= image.last);
        for (request, op) in self.ops.iter_mut().filter(|(_, op)| op.done.is_none()) {
            op.unheard = image.commands.get(request).is_none_or(|command| command.reply.is_some());
        }
        self.asked.clear();
        self.results.clear();
    }

    pub fn on_write(&mut self, request: Request, payload: Bytes, level: Level, floor: Lsn) {
        self.ops.insert(request, Op { payload, level, floor, unheard: false, done: None });
    }

    pub fn on_query(&mut self, id: u64, level: Level, floor: Lsn) {
        self.asked.insert(id, (level, floor));
    }

    pub fn on_frame(&mut self, frame: &NodeFrame, opened: Epoch) {
        for result in &frame.results {
            self.results.insert(result.id, (frame.epoch, result.lsn, opened));
        }
        for response in frame.responses.iter().filter(|response| response.outcome.is_some()) {
            self.replies.insert(response.request, (frame.epoch, opened));
        }
    }

    pub fn first_open(&self) -> Option<Request> {
        self.ops.iter().find(|(_, op)| op.done.is_none() && !op.unheard).map(|(request, _)| *request)
    }
}

fn index(lsn: Lsn) -> usize {
    usize::try_from(lsn.0).unwrap_or(usize::MAX).wrapping_sub(1)
}

impl Oracle {
    pub fn new(settings: &PrimarySettings) -> Self {
        Self {
            lowest: settings.lowest,
            covering: settings.covering(),
            reigns: BTreeMap::new(),
            floor: Lsn(0),
            forced: false,
            policies: 0,
            seen: Vec::new(),
        }
    }

    /// The newest reign that has opened.
    pub fn newest(&self) -> Epoch {
        self.reigns.iter().rev().find(|(_, reign)| reign.opened).map_or(Epoch::ZERO, |(epoch, _)| *epoch)
    }

    fn effective(&self, asked: Level) -> Level {
        match (self.lowest, asked) {
            (Level::Local, Level::Tagged) => Level::Stable,
            (_, Level::Covered) if self.covering == 0 => Level::Stable,
            (lowest, asked) => lowest.max(asked),
        }
    }

    fn header(&self, epoch: Epoch, lsn: Lsn) -> Option<&Header> {
        self.reigns.get(&epoch)?.log.get(index(lsn))
    }

    fn is_at(&self, of: Epoch, client: ClientId, request: Request, epoch: Epoch, lsn: Lsn) -> bool {
        let origin = Some(Origin { client, request });
        self.header(of, lsn).is_some_and(|header| header.epoch == epoch && header.origin == origin)
    }

    fn lossy(&self) -> bool {
        self.forced || self.policies > 0
    }

    fn is_outdated(&self, epoch: Epoch, level: Level) -> bool {
        (self.lossy() || level == Level::Local) && self.newest() > epoch
    }
}

fn twice<'a>(log: impl Iterator<Item = &'a Header>) -> Option<String> {
    let mut last: BTreeMap<ClientId, Request> = BTreeMap::new();
    for header in log {
        if let (Body::Command | Body::Noop, Some(origin)) = (&header.body, header.origin)
            && let Some(before) = last.insert(origin.client, origin.request)
            && before >= origin.request
        {
            return Some(format!("{header:?} comes after request {before} of the same client"));
        }
    }
    None
}

impl World {
    // Reigns.

    /// A primary that logs before it sends goes on in its reign with what its disk has.
    pub fn on_node_start(&mut self, at: usize) {
        let Some(primary) = self.nodes[at].primary() else { return };
        let (epoch, state, marks) = (primary.epoch(), primary.state(), primary.marks());
        let (start, settings) = (state.start(), primary.settings());
        let opened = start.target == Target::Own
            || state.reigns_from(state.epoch()).first().is_some_and(|reign| marks.stable >= reign.start);
        let goes_on = start.log_before_send && settings.log_before_send && state.end() > Lsn(0) && opened;
        let own = state.epoch() == marks.promised && marks.reign == marks.promised && epoch.node == marks.node;
        if goes_on && own && self.oracle.reigns.contains_key(&epoch) {
            let length = self.nodes[at].log.len();
            self.nodes[at].edit().serving = Some(epoch);
            if let Some(reign) = self.oracle.edit().reigns.get_mut(&epoch) {
                reign.log.truncate(length);
            }
        }
    }

    pub fn on_append(&mut self, at: usize, records: &[Record]) {
        let node = &self.nodes[at];
        let headers = || records.iter().map(|record| record.entry.header.clone());
        let Some(primary) = node.primary() else {
            self.check_prefix(at, records);
            return;
        };
        let epoch = primary.epoch();
        if let Some(serving) = node.serving {
            let oracle = self.oracle.edit();
            let Some(reign) = oracle.reigns.get_mut(&serving) else { return };
            for header in headers() {
                if header.lsn.0 != reign.log.len() as u64 + 1 || header.epoch != epoch {
                    let why = format!("node {at} orders {header:?} after {}", reign.log.len());
                    self.violate("I1", why);
                    return;
                }
                reign.log.push(header);
            }
            self.check_suspends(epoch, records);
            return;
        }
        let last = &records[records.len() - 1].entry.header;
        let Body::EpochStart(report) = last.body.clone() else {
            for header in headers() {
                if self.oracle.header(header.epoch, header.lsn).is_some_and(|known| *known != header) {
                    let what = format!("node {at} takes {header:?} from its backup, which was ordered otherwise");
                    self.violate("I1", what);
                }
            }
            return;
        };
        if last.epoch != epoch {
            return;
        }
        let base = records[0].lsn().prev();
        let log = node.log.iter().map(|record| &record.entry.header).filter(|header| header.lsn <= base).cloned();
        let log: Vec<Header> = log.chain(headers()).collect();
        let start = last.lsn;
        let reign = Ordered { node: at, log, start, report: *report, opened: false };
        self.check_rebuilt(epoch, &reign);
        self.oracle.edit().reigns.insert(epoch, reign);
        self.nodes[at].edit().serving = Some(epoch);
    }

    /// I1: what a backup appends is what the primary of that reign has there.
    fn check_prefix(&mut self, at: usize, records: &[Record]) {
        let Some(backup) = self.nodes[at].backup() else { return };
        let epoch = backup.marks().reign;
        for header in records.iter().map(|record| &record.entry.header) {
            let of = if self.oracle.reigns.contains_key(&epoch) { epoch } else { header.epoch };
            let theirs = self.oracle.header(of, header.lsn);
            if theirs != Some(header) {
                let what = format!("backup {at} appends {header:?}, where the primary of {epoch} has {theirs:?}");
                self.violate("I1", what);
                return;
            }
        }
    }

    /// I5: the recovered log is the old primary's, up to what anybody observed and as far as it can be supplied, or the
    /// difference is in the report. I10: nothing is missing without a decision.
    fn check_rebuilt(&mut self, epoch: Epoch, reign: &Ordered) {
        let report = &reign.report;
        let Some(old) = self.oracle.reigns.get(&report.previous) else { return };
        let (old, old_f) = (&old.log, old.report.f);
        let mut wrong = None;
        if report.base > Lsn(0) && old.get(index(report.base)) != reign.log.get(index(report.base)) {
            wrong = Some(format!("the base {} of {epoch} is not in the log of {}", report.base, report.previous));
        }
        let mut lsn = report.base.next();
        while lsn < reign.start && wrong.is_none() {
            let header = &reign.log[index(lsn)];
            let gap = in_ranges(&report.gaps, lsn);
            if gap != (header.body == Body::Noop && header.origin.is_none()) {
                wrong = Some(format!("entry {lsn} of {epoch} and the gaps {:?} disagree", report.gaps));
            } else if !gap && old.get(index(lsn)) != Some(header) {
                wrong = Some(format!("entry {lsn} was rebuilt as {header:?}, but was {:?}", old.get(index(lsn))));
            }
            lsn = lsn.next();
        }
        let decided = report.policy.is_some() || !report.excluded.is_empty();
        if !decided && report.observed >= reign.start {
            wrong = Some(format!("{} was observed, but {epoch} starts at {}", report.observed, reign.start));
        }
        if let Some(wrong) = wrong {
            self.violate("I5", wrong);
        } else if report.policy.is_none()
            && !(report.gaps.is_empty() && (report.missing.is_empty() || old_f > 0 && !self.oracle.forced))
        {
            self.violate("I10", format!("nobody decided on what is missing: {report:?}"));
        }
    }

    /// A session is suspended only with everything it wrote stable.
    fn check_suspends(&mut self, epoch: Epoch, records: &[Record]) {
        for header in records.iter().map(|record| &record.entry.header).filter(|header| header.body == Body::Suspend) {
            let client = header.origin.map(|origin| origin.client);
            let own = |other: &&Header| other.origin.map(|origin| origin.client) == client && other.lsn < header.lsn;
            let last = self.oracle.reigns[&epoch].log.iter().rev().find(own).map_or(Lsn(0), |header| header.lsn);
            if last > self.stable_of(epoch) {
                self.violate("I9", format!("{client:?} is suspended, whose entry {last} is not stable"));
                return;
            }
        }
    }

    /// I5: a takeover begins with what was ordered in the reign that it recovers from.
    pub fn check_base(&mut self, at: usize) {
        let node = &self.nodes[at];
        let Some(primary) = node.primary() else { return };
        let of = primary.state().epoch();
        let Some(old) = self.oracle.reigns.get(&of) else { return };
        let other = node.log.iter().map(|record| &record.entry.header).zip(&old.log).find(|(ours, old)| ours != old);
        if let Some((ours, old)) = other {
            let what = format!("node {at} takes over with {ours:?}, where {of} had {old:?}");
            self.violate("I5", what);
        }
    }

    /// I5, I7, I10, at the opening: with everybody heard, whatever a client was told is in the log.
    pub fn on_opened(&mut self, at: usize, epoch: Epoch, start: Lsn, report: &EpochStart) {
        let oracle = self.oracle.edit();
        let Some(reign) = oracle.reigns.get_mut(&epoch) else {
            self.violate("I7", format!("node {at} opens {epoch}, which it never began"));
            return;
        };
        if std::mem::replace(&mut reign.opened, true) {
            return;
        }
        // A reign that was concluded and crashed before it opened decided for those after it.
        let is_decided = |report: &EpochStart| report.policy.is_some() || !report.excluded.is_empty();
        let (mut decided, mut start) = (is_decided(report), start);
        let mut before = report.previous;
        while let Some(reign) = oracle.reigns.get(&before).filter(|reign| !reign.opened) {
            decided |= is_decided(&reign.report);
            start = start.min(reign.start);
            before = reign.report.previous;
        }
        oracle.policies += u8::from(decided);
        let lossy = decided || oracle.forced || oracle.lowest == Level::Local;
        if lossy {
            // What completed past the end of the old reign may be gone, and its LSNs are given out again.
            let low = start.prev();
            oracle.floor = oracle.floor.min(low);
            for client in &mut self.clients {
                let view = &mut client.edit().view;
                view.ops.values_mut().for_each(|op| op.floor = op.floor.min(low));
                view.asked.values_mut().for_each(|(_, floor)| *floor = low.min(*floor));
            }
        }
        if let Some(wrong) = self.oracle.reigns.get(&epoch).and_then(|reign| twice(reign.log.iter())) {
            self.violate("I6", wrong);
        }
        if self.oracle.lossy() && !self.plan.0.firm {
            return;
        }
        self.check_kept(epoch);
        if lossy {
            return;
        }
        for number in 0..self.clients.len() {
            let client = &self.clients[number];
            let image = client.image(self.plan.0.volatile);
            if !client.is_live() || report.missing.contains(&client.id) {
                continue;
            }
            if image.observed.0 == before && image.observed.1 >= start {
                let what = format!("client {number} observed {:?}, but {epoch} starts at {start}", image.observed);
                self.violate("I5", what);
                return;
            }
            let next = |tag: Tag| (tag.epoch, tag.lsn) == (before, start);
            let held = image.commands.iter().find(|(_, command)| command.tag.is_some_and(next));
            if let Some((request, _)) = held.filter(|_| self.oracle.lowest == Level::Tagged) {
                let what = format!("client {number} could have supplied {start} ({request}), where {epoch} starts");
                self.violate("I5", what);
                return;
            }
        }
    }

    /// I10: what was acknowledged is in the log of the reign that opens, where nobody decided otherwise.
    fn check_kept(&mut self, epoch: Epoch) {
        for number in 0..self.clients.len() {
            let client = &self.clients[number];
            for (request, op) in &client.view.ops {
                let Some(done) = op.done.as_ref().filter(|done| done.reply.is_some()) else { continue };
                let Some((of, lsn)) = done.at else { continue };
                let promised = self.oracle.effective(op.level) != Level::Local;
                if promised && !self.oracle.is_at(epoch, client.id, *request, of, lsn) {
                    let what = format!(
                        "client {number}: {request} was acknowledged at {lsn} of {of}; the log of {epoch} has {:?}",
                        self.oracle.header(epoch, lsn)
                    );
                    self.violate("I10", what);
                    return;
                }
            }
        }
    }

    /// Up to where the log of a reign is durable at its stability target.
    pub fn stable_of(&self, epoch: Epoch) -> Lsn {
        let Some(reign) = self.oracle.reigns.get(&epoch) else { return Lsn(0) };
        let mut target = reign.report.target;
        for header in reign.log.iter().skip(index(reign.start) + 1) {
            if let Body::Config(named) = header.body {
                target = named;
            }
        }
        let backup = self.nodes.iter().find(|node| Target::Backup(node.id) == target && node.marks.in_sync);
        let log = &backup.unwrap_or(&self.nodes[reign.node]).log;
        let mut upto = log.len().min(reign.log.len());
        while upto > 0 && log[upto - 1].entry.header != reign.log[upto - 1] {
            upto -= 1;
        }
        Lsn(upto as u64)
    }

    // What is sent.

    /// I2: what leaves a primary for a client is at its level; I3: a checkpoint is durable at the stability target; I7: a
    /// promise is durable before anything of the epoch leaves, and a reign opens stable.
    pub fn on_sent_to_client(&mut self, at: usize, client: Option<usize>, message: &NodeMessage) {
        match message {
            NodeMessage::Status(status) => self.check_promised(at, status.epoch),
            NodeMessage::Welcome(welcome) => {
                let start = self.oracle.reigns.get(&welcome.epoch).map_or(Lsn(u64::MAX), |reign| reign.start);
                if self.stable_of(welcome.epoch) < start || self.nodes[at].durable() < start {
                    let what = format!("node {at} is open, but the EpochStart of {} is not stable", welcome.epoch);
                    self.violate("I7", what);
                }
            }
            NodeMessage::Frame(frame) => self.check_frame(at, client, frame),
            _ => {}
        }
    }

    fn check_promised(&mut self, at: usize, epoch: Epoch) {
        let node = &self.nodes[at];
        if epoch.node == node.id && epoch > node.marks.promised {
            let what = format!("node {at} speaks of {epoch}, but its disk knows only {}", node.marks.promised);
            self.violate("I7", what);
        }
    }

    fn check_frame(&mut self, at: usize, client: Option<usize>, frame: &NodeFrame) {
        let node = &self.nodes[at];
        let Some(primary) = node.primary() else { return };
        let logs_first = primary.state().start().log_before_send;
        let (stable, logged) = (self.stable_of(frame.epoch), node.durable());
        let view = client.map(|client| &self.clients[client].view);
        let mut wrong = None;
        if frame.stable > stable {
            wrong = Some(("I3", format!("node {at} calls {} stable; the target has {stable}", frame.stable)));
        }
        let mut named: Vec<Lsn> = frame.manifest.iter().map(|header| header.lsn).collect();
        // They are told of as a whole, also of what the frame does not reveal.
        named.extend(frame.places.iter().map(|places| places.first));
        for response in &frame.responses {
            let Some(tag) = response.tag else { continue };
            named.push(tag.lsn);
            let op = view.and_then(|view| view.ops.get(&response.request));
            let op = op.filter(|op| op.done.is_none() && !op.unheard);
            let level = self.oracle.effective(op.map_or(Level::Local, |op| op.level));
            let replied = matches!(response.outcome, Some(Outcome::Reply(_)));
            let met = (level != Level::Stable || tag.lsn <= stable) && (tag.met >= level || level < Level::Covered);
            if replied && op.is_some() && !met {
                wrong = Some(("I2", format!("node {at} acknowledges {} at {level:?}; stable is {stable}", tag.lsn)));
            }
        }
        for result in frame.results.iter().filter(|result| result.result.is_ok()) {
            named.push(result.lsn);
            let asked = view.and_then(|view| view.asked.get(&result.id));
            let level = self.oracle.effective(asked.map_or(Level::Local, |(level, _)| *level));
            if level == Level::Stable && result.lsn > stable {
                wrong = Some(("I2", format!("node {at} shows {} at {level:?}; stable is {stable}", result.lsn)));
            }
        }
        if let Some(early) = named.iter().find(|lsn| logs_first && **lsn > logged) {
            wrong = Some(("I2", format!("node {at} logs before it sends, but names {early} with {logged} logged")));
        }
        if let Some((invariant, what)) = wrong {
            self.violate(invariant, what);
        }
    }

    pub fn on_sent_to_backup(&mut self, at: usize, message: &PrimaryMessage) {
        let PrimaryMessage::Append { epoch, records, .. } = message else { return };
        self.check_promised(at, *epoch);
        let node = &self.nodes[at];
        let logs_first = node.primary().is_some_and(|primary| primary.state().start().log_before_send);
        if let Some(record) = records.last().filter(|record| logs_first && record.lsn() > node.durable()) {
            let what = format!("node {at} logs before it sends, but sends {}", record.lsn());
            self.violate("I2", what);
        }
    }

    pub fn on_sent_to_primary(&mut self, at: usize, message: &BackupMessage) {
        match message {
            BackupMessage::Promised { epoch, .. } if *epoch > self.nodes[at].marks.promised => {
                self.violate("I7", format!("backup {at} promises {epoch}, which is not on its disk"));
            }
            BackupMessage::Ack { durable, .. } if *durable > self.nodes[at].durable() => {
                self.violate("I3", format!("backup {at} acknowledges {durable}, which is not on its disk"));
            }
            _ => {}
        }
    }

    // Clients.

    pub fn held(&self, at: usize) -> Held {
        let Some(core) = &self.clients[at].core else { return Held { commands: Vec::new(), headers: Vec::new() } };
        let image = core.image();
        let tagged = |(request, command): (&Request, &tagalong::client::Command)| {
            command.tag.map(|tag| (*request, tag, command.reply.is_some()))
        };
        Held { commands: image.commands.iter().filter_map(tagged).collect(), headers: image.told().collect() }
    }

    /// I3: what a client no longer holds is durable at the stability target, or superseded.
    pub fn check_released(&mut self, at: usize, before: &Held) {
        let member = &self.clients[at];
        let Some(core) = &member.core else { return };
        let (image, client) = (core.image(), member.id);
        let epoch = image.reported;
        let stable = self.stable_of(epoch);
        let mut released = Vec::new();
        for (request, tag, answered) in &before.commands {
            let kept = image.commands.get(request).and_then(|command| command.tag);
            if kept.map(|tag| (tag.epoch, tag.lsn)) != Some((tag.epoch, tag.lsn)) {
                released.push((tag.epoch, tag.lsn, Some((*request, *answered))));
            }
        }
        let headers = before.headers.iter().filter(|(epoch, lsn)| !image.is_told(*epoch, *lsn));
        released.extend(headers.map(|(epoch, lsn)| (*epoch, *lsn, None)));
        let mut owed = Vec::new();
        for (of, lsn, request) in released {
            let header = self.oracle.header(epoch, lsn).filter(|header| header.epoch == of);
            let same = header.is_some_and(|header| {
                request.is_none_or(|(request, _)| header.origin == Some(Origin { client, request }))
            });
            owed.extend(request.filter(|(_, answered)| !same && *answered).map(|(request, _)| request));
            if same && lsn > stable {
                self.violate("I3", format!("client {at} lets go of {lsn} of {of}; in {epoch} {stable} is stable"));
            } else if !same && of >= epoch {
                self.violate("I3", format!("client {at} lets go of {lsn} of {of}, never ordered in {epoch}"));
            }
        }
        if !owed.is_empty() {
            self.clients[at].edit().view.owed.extend(owed);
        }
    }

    /// I4: whoever observed n holds the header of every entry up to n that is neither stable nor held by its origin; in a
    /// covered service that is neither stable nor named by a share.
    pub fn check_order_known(&mut self, at: usize, frame: &NodeFrame) {
        let epoch = frame.epoch;
        let Some(core) = &self.clients[at].core else { return };
        if self.oracle.reigns.keys().next_back() != Some(&epoch) {
            return;
        }
        let replied = frame.responses.iter().filter(|response| response.outcome.is_some());
        let replied = replied.filter_map(|response| response.tag.map(|tag| tag.lsn));
        let seen = replied.chain(frame.results.iter().map(|result| result.lsn)).max().unwrap_or(Lsn(0));
        let image = core.image();
        let mut lsn = self.stable_of(epoch).max(self.oracle.reigns[&epoch].start).next();
        while lsn <= seen {
            let Some(header) = self.oracle.header(epoch, lsn) else { break };
            let place = (epoch, lsn);
            let own = header.origin.filter(|origin| origin.client == self.clients[at].id);
            let tagged = own.and_then(|origin| image.commands.get(&origin.request)).and_then(|command| command.tag);
            let known = image.is_told(epoch, lsn) || tagged.is_some_and(|tag| (tag.epoch, tag.lsn) == place);
            if !known && !self.is_confirmed(place, header) && !self.is_named(place) {
                let what = format!("client {at} sees {seen}, but neither it nor the origin knows {header:?}");
                self.violate("I4", what);
                return;
            }
            lsn = lsn.next();
        }
    }

    fn is_named(&self, (epoch, lsn): (Epoch, Lsn)) -> bool {
        let names = |share: &Share| {
            let plain = Plain::decode(share.epoch, &share.body);
            share.epoch == epoch && plain.is_ok_and(|plain| plain.headers().any(|header| header.lsn == lsn))
        };
        let images = self.clients.iter().map(|client| client.image(self.plan.0.volatile));
        self.oracle.lowest == Level::Covered && images.flat_map(|image| image.shares.values()).any(names)
    }

    fn is_confirmed(&self, place: (Epoch, Lsn), header: &Header) -> bool {
        let volatile = self.plan.0.volatile;
        if !matches!(header.body, Body::Command | Body::Noop) {
            let knows = |image: &CacheImage| image.is_told(place.0, place.1);
            return self
                .clients
                .iter()
                .any(|client| client.ended || client.view.died_with.contains(&place) || knows(client.image(volatile)));
        }
        let Some(origin) = header.origin else { return true };
        let Some(client) = self.clients.iter().find(|client| client.id == origin.client) else { return false };
        if client.lost || client.ended {
            return client.ended || client.view.died_with.contains(&place);
        }
        let image = client.image(volatile);
        match image.commands.get(&origin.request) {
            Some(command) => command.tag.is_some_and(|tag| (tag.epoch, tag.lsn) == place),
            None => origin.request <= image.last,
        }
    }

    pub fn on_client_event(&mut self, at: usize, event: ClientEvent) {
        let view = &mut self.clients[at].edit().view;
        match event {
            ClientEvent::Superseded { request, .. } => {
                view.superseded.insert(request);
            }
            ClientEvent::RolledBack { epoch, .. } => {
                view.rolled_back.insert(epoch);
                if !self.oracle.lossy() && self.oracle.lowest != Level::Local {
                    self.violate(
                        "I10",
                        format!("client {at} is told that {epoch} was rolled back, and nobody decided"),
                    );
                }
            }
            _ => {}
        }
    }

    pub fn on_done(&mut self, at: usize, request: Request, outcome: &Outcome, tag: Option<Tag>) {
        let place = tag.map(|tag| (tag.epoch, tag.lsn));
        let reply = if let Outcome::Reply(reply) = outcome { Some(reply.clone()) } else { None };
        let (lossy, lowest) = (self.oracle.lossy(), self.oracle.lowest);
        let view = &mut self.clients[at].edit().view;
        let sent = view.replies.get(&request).copied();
        let Some(op) = view.ops.get_mut(&request) else {
            self.violate("I6", format!("client {at} is told of {request}, which it never made"));
            return;
        };
        let before = op.done.replace(Done { reply: reply.clone(), at: place });
        let (floor, level) = (op.floor, op.level);
        if let Some(before) = before.filter(|before| before.reply != reply)
            && !lossy
            && lowest != Level::Local
        {
            self.violate("I6", format!("client {at}: {request} had another outcome before: {before:?}"));
        }
        if reply.is_none() && !lossy && lowest != Level::Local {
            self.violate("I6", format!("client {at}: {request} is superseded, and nobody decided that"));
        }
        let Some((_, lsn)) = place.filter(|_| reply.is_some()) else { return };
        let Some((epoch, opened)) = sent else { return };
        let level = self.oracle.effective(level);
        self.check_one_primary(at, epoch, opened, level);
        if self.oracle.is_outdated(epoch, level) {
            return;
        }
        if lsn <= floor {
            self.violate(
                "I8",
                format!("client {at}: {request} is at {lsn}, but {floor} was complete when it was made"),
            );
        }
        let oracle = self.oracle.edit();
        oracle.floor = oracle.floor.max(lsn);
    }

    pub fn on_result(&mut self, at: usize, id: u64, result: &Result<Bytes>) {
        let view = &mut self.clients[at].edit().view;
        let (asked, sent) = (view.asked.remove(&id), view.results.remove(&id));
        let (Some((level, floor)), Some((epoch, lsn, opened))) = (asked, sent) else {
            self.violate("I6", format!("client {at} is told of query {id}, which it did not ask"));
            return;
        };
        let Ok(result) = result else { return };
        let level = self.oracle.effective(level);
        self.oracle.edit().seen.push(Seen { client: at, epoch, lsn, level, result: result.clone() });
        self.check_one_primary(at, epoch, opened, level);
        if self.oracle.is_outdated(epoch, level) {
            return;
        }
        if lsn < floor {
            self.violate(
                "I8",
                format!("client {at}: query {id} saw {lsn}, but {floor} was complete when it was asked"),
            );
        }
        let oracle = self.oracle.edit();
        oracle.floor = oracle.floor.max(lsn);
    }

    /// I7: after a later reign has opened, an older one acknowledges nothing, but to sessions it was concluded without.
    fn check_one_primary(&mut self, at: usize, epoch: Epoch, opened: Epoch, level: Level) {
        let oracle = &self.oracle;
        if level == Level::Local || oracle.lowest != Level::Tagged || oracle.lossy() || opened <= epoch {
            return;
        }
        let report = &oracle.reigns[&opened].report;
        if !report.missing.contains(&self.clients[at].id) {
            self.violate("I7", format!("{epoch} acknowledges to client {at} after {opened} has opened"));
        }
    }

    // At rest.

    /// I6, I8 and I10 on the whole history, against a replay of the log of the reign that stands.
    pub fn check_end(&mut self, sovereign: usize) {
        let log = self.nodes[sovereign].log.clone();
        let mut list = Vec::new();
        let mut replies: BTreeMap<Lsn, Vec<u8>> = BTreeMap::new();
        let mut states: BTreeMap<Lsn, Vec<u8>> = BTreeMap::new();
        for record in &log {
            list.extend_from_slice(&record.entry.payload);
            states.insert(record.lsn(), list.clone());
            if record.entry.header.body == Body::Command {
                replies.insert(record.lsn(), list.clone());
            }
        }
        let lossy = self.oracle.lossy() || self.oracle.lowest == Level::Local;
        let mut wrong = twice(log.iter().map(|record| &record.entry.header)).map(|wrong| ("I6", wrong));
        for seen in &self.oracle.seen {
            let Seen { client, epoch, lsn, ref result, .. } = *seen;
            if states.get(&lsn).map(Vec::as_slice) == Some(&result[..]) {
                continue;
            }
            let what = format!("client {client} saw {result:?} at {lsn} of {epoch}, which is not what the log says");
            let (member, level) = (&self.clients[client], seen.level);
            if !lossy && level != Level::Local {
                wrong = Some(("I8", what));
            } else if member.is_live() && !member.view.rolled_back.iter().any(|of| *of >= epoch) {
                wrong = Some(("I10", format!("{what}, and was not told")));
            }
        }
        for (at, client) in self.clients.iter().enumerate() {
            let view = &client.view;
            if let Some(request) = view.owed.difference(&view.superseded).next().filter(|_| client.is_live()) {
                wrong = Some(("I10", format!("client {at} held the acknowledged {request}, which is lost: not told")));
            }
            for (request, op) in &view.ops {
                let origin = Some(Origin { client: client.id, request: *request });
                let record = log
                    .iter()
                    .find(|record| record.entry.header.origin == origin && record.entry.header.body == Body::Command);
                if record.is_some_and(|record| record.entry.payload != op.payload) {
                    wrong = Some(("I8", format!("client {at}: {request} is in the log with another payload")));
                }
                let told = view.superseded.contains(request);
                if record.is_some() && !self.oracle.forced && told {
                    wrong =
                        Some(("I6", format!("client {at} was told that {request} is superseded; it is in the log")));
                }
                let Some(done) = &op.done else { continue };
                let Some(reply) = &done.reply else {
                    if record.is_some() && !self.oracle.forced {
                        wrong = Some(("I6", format!("client {at}: {request} ended as superseded; it is in the log")));
                    }
                    continue;
                };
                let Some((epoch, lsn)) = done.at else { continue };
                let there = record.is_some_and(|record| (record.entry.header.epoch, record.lsn()) == (epoch, lsn));
                if there && !lossy && replies.get(&lsn).map(Vec::as_slice) != Some(&reply[..]) {
                    wrong = Some(("I8", format!("client {at}: {request} at {lsn} was answered {reply:?}")));
                }
                let rolled = self.oracle.forced || self.oracle.lowest == Level::Local;
                let told = told || rolled && view.rolled_back.iter().any(|of| *of >= epoch);
                let what = format!("client {at}: {request}, acknowledged at {lsn} of {epoch}, is not in the log");
                if !there && !lossy && self.oracle.effective(op.level) != Level::Local {
                    wrong = Some(("I10", what));
                } else if !there && client.is_live() && !told {
                    wrong = Some(("I10", format!("{what}, and its author was not told")));
                }
            }
        }
        if let Some((invariant, what)) = wrong {
            self.violate(invariant, what);
        }
    }
}
