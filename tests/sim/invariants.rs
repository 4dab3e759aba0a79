//! The invariants of docs/protocol.md, each under its number, as the oracle checks them.

use std::collections::BTreeMap;

use bytes::Bytes;
use std::collections::BTreeSet;

use tagalong::client::ClientEvent;
use tagalong::log::{Body, Epoch, EpochStart, Header, Level, Lsn, Origin, Record, Request, Target, in_ranges};
use tagalong::message::{BackupMessage, NodeFrame, NodeMessage, Outcome, PrimaryMessage};
use tagalong::primary::Primary;

use crate::client::{SimClient, number};
use crate::machine::Machine;
use crate::node::Node;
use crate::oracle::{Held, Oracle, ReignLog};
use crate::plan::Plan;

impl Oracle {
    /// I1: what a backup appends is what the primary of that reign has there.
    pub fn check_prefix(&mut self, node: &Node, at: usize, records: &[Record]) {
        let Some(backup) = node.backup() else { return };
        let epoch = backup.marks().reign;
        for record in records {
            // Before a recovery concludes, what it streams is of the reigns before.
            let concluded = self.reigns.contains_key(&epoch);
            let theirs = self.record(if concluded { epoch } else { record.entry.header.epoch }, record.lsn());
            if theirs != Some(record) && (concluded || !self.is_substitute(record)) {
                let what = format!(
                    "I1: backup {at} appends {:?}, where the primary of {epoch} has {:?}",
                    record.entry.header,
                    theirs.map(|record| &record.entry.header)
                );
                self.violate("I1", what);
                return;
            }
        }
    }

    /// I1: what a restarting primary takes from its backup is what was ordered.
    pub fn check_fetched(&mut self, at: usize, records: &[Record]) {
        for record in records {
            let header = &record.entry.header;
            let other = self.record(header.epoch, header.lsn).is_some_and(|known| known != record);
            if other && !self.is_substitute(record) {
                self.violate("I1", format!("node {at} takes {header:?} from its backup, which was ordered otherwise"));
            }
        }
    }

    /// What a policy put in the place of an entry that was lost, under that one's epoch (seed 206383: the reign that did it
    /// ended before the backup had it, and the next one streams it).
    fn is_substitute(&self, record: &Record) -> bool {
        let Header { epoch, lsn, body, .. } = &record.entry.header;
        let rebuilt = |(of, reign): (&Epoch, &ReignLog)| {
            of > epoch && self.record(*of, *lsn) == Some(record) && in_ranges(&reign.report.gaps, *lsn)
        };
        *body == Body::Noop && self.reigns.iter().any(rebuilt)
    }

    /// I5: the recovered log is the old primary's, up to what anybody observed and as far as it can be supplied, or
    /// the difference is in the report. I10: nothing is missing without a decision.
    pub fn check_rebuilt(&mut self, epoch: Epoch, reign: &ReignLog) {
        let report = &reign.report;
        let Some(old) = self.reigns.get(&report.previous) else { return };
        let old_f = old.report.f;
        let at = |lsn: Lsn| usize::try_from(lsn.0).expect("small") - 1;
        let mut wrong = None;
        // What is promoted by force may have a part of what a policy put in the place of what was lost, and know nothing of the
        // policy (seed 467374).
        if report.base > Lsn(0) && !self.forced && old.log.get(at(report.base)) != reign.log.get(at(report.base)) {
            wrong = Some(format!("the base {} of {epoch} is not in the log of {}", report.base, report.previous));
        }
        let mut lsn = report.base.next();
        while lsn < reign.start && wrong.is_none() {
            let entry = &reign.log[at(lsn)].entry;
            let gap = in_ranges(&report.gaps, lsn);
            let noop = entry.header.body == Body::Noop && entry.header.origin.is_none();
            if gap != noop {
                wrong = Some(format!("entry {lsn} of {epoch} and the gaps {:?} disagree", report.gaps));
            } else if !gap && old.log.get(at(lsn)).map(|record| &record.entry) != Some(entry) {
                let theirs = old.log.get(at(lsn)).map(|record| &record.entry.header);
                wrong = Some(format!("entry {lsn} was rebuilt as {:?}, but was {theirs:?}", entry.header));
            }
            lsn = lsn.next();
        }
        if report.policy.is_none() && report.excluded.is_empty() && report.observed >= reign.start {
            wrong = Some(format!("{} was observed, but {epoch} starts at {}", report.observed, reign.start));
        }
        if let Some(wrong) = wrong {
            self.violate("I5", wrong);
        }
        // Without whom a recovery may conclude, and how many of them, is for `check_recovered` to say.
        let complete = report.gaps.is_empty() && (report.missing.is_empty() || old_f > 0);
        if report.policy.is_none() && !complete {
            self.violate("I10", format!("nobody decided on what is missing: {report:?}"));
        }
    }

    /// I5, I10, at the opening: with everybody heard, whatever a client saw or still holds is in the log.
    pub fn on_opened(
        &mut self,
        clients: &[SimClient],
        at: usize,
        epoch: Epoch,
        start: Lsn,
        report: &EpochStart,
        late: bool,
    ) {
        let now = self.now;
        let Some(reign) = self.reigns.get_mut(&epoch) else {
            self.violate("I7", format!("node {at} opens {epoch}, which it never began"));
            return;
        };
        if reign.opened.is_some() {
            // It goes on after a restart: it was judged when it began.
            return;
        }
        reign.opened = Some(now);
        self.excluded.clear();
        // A reign that was concluded and crashed before it opened decided for those after it.
        let is_decided = |report: &EpochStart| report.policy.is_some() || !report.excluded.is_empty();
        let (mut decided, mut start) = (reign.beyond || is_decided(report), start);
        let mut before = report.previous;
        while let Some(reign) = self.reigns.get(&before).filter(|reign| reign.opened.is_none()) {
            decided |= reign.beyond || is_decided(&reign.report);
            start = start.min(reign.start);
            before = reign.report.previous;
        }
        let lossy = decided || self.forced || self.lowest == Level::Local;
        if decided {
            self.policies += 1;
        }
        if lossy {
            // What completed past the end of the old reign may be gone, and its LSNs are given out again.
            self.floor = self.floor.min(start.prev());
            for view in &mut self.views {
                view.ops.values_mut().for_each(|op| op.floor = op.floor.min(start.prev()));
                view.asked.values_mut().for_each(|asked| asked.floor = asked.floor.min(start.prev()));
            }
        }
        self.check_once(epoch);
        self.check_kept(epoch);
        if lossy {
            return;
        }
        for (number, client) in clients.iter().enumerate().filter(|(_, client)| client.is_live()) {
            let image = client.image();
            if image.observed.0 == before && image.observed.1 >= start {
                let what = format!("client {number} observed {:?}, but {epoch} starts at {start}", image.observed);
                self.violate("I5", what);
            }
            let next = (before, start);
            let held = image.commands.iter().find(|(_, command)| {
                command.tag.is_some_and(|tag| (tag.epoch, tag.lsn) == next) && self.lowest == Level::Tagged
            });
            // Nor are payloads waited for at the hard cap, of what nobody has observed (seed 297820).
            let held = held.filter(|_| !late);
            if let Some((request, _)) = held {
                let what =
                    format!("client {number} could have supplied {start} (request {request}), where {epoch} starts");
                self.violate("I5", what);
            }
        }
    }

    /// I6: in the log of a reign a request is there at most once, and a client's are in order.
    fn check_once(&mut self, epoch: Epoch) {
        let Some(reign) = self.reigns.get(&epoch) else { return };
        if let Some(wrong) = twice(&reign.log) {
            self.violate("I6", wrong);
        }
    }

    /// I10: what was acknowledged is in the log of the reign that opens, where nobody decided otherwise.
    fn check_kept(&mut self, epoch: Epoch) {
        if self.forced || self.policies > 0 {
            return;
        }
        let Some(reign) = self.reigns.get(&epoch) else { return };
        let mut wrong = None;
        for (client, view) in self.views.iter().enumerate() {
            for (request, op) in &view.ops {
                let Some((of, lsn)) = op.done.as_ref().filter(|done| done.reply.is_some()).and_then(|done| done.at)
                else {
                    continue;
                };
                let promised = self.effective(op.level) != Level::Local;
                if promised && !is_at(&reign.log, client, *request, of, lsn) {
                    wrong = Some(format!(
                        "client {client}: request {request} was acknowledged at {lsn} of {of}; the log of {epoch} has {:?}",
                        reign.log.get(usize::try_from(lsn.0).unwrap_or(0).wrapping_sub(1)).map(|r| &r.entry.header)
                    ));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.violate("I10", wrong);
        }
    }

    /// A session is suspended only with everything it wrote stable.
    pub fn check_suspends(&mut self, nodes: &[Node], at: usize, records: &[Record]) {
        let Some(epoch) = nodes[at].serving else { return };
        for record in records.iter().filter(|record| record.entry.header.body == Body::Suspend) {
            let client = record.entry.header.origin.map(|origin| origin.client);
            let own = |other: &&Record| {
                other.entry.header.origin.map(|origin| origin.client) == client && other.lsn() < record.lsn()
            };
            let last = self.reigns[&epoch].log.iter().rev().find(own).map_or(Lsn(0), Record::lsn);
            if last > self.stable_of(nodes, epoch) {
                self.violate("I9", format!("node {at} suspends {client:?}, whose entry {last} is not stable"));
            }
        }
    }

    /// Up to where the log of a reign is durable at its stability target.
    pub fn stable_of(&self, nodes: &[Node], epoch: Epoch) -> Lsn {
        let Some(reign) = self.reigns.get(&epoch) else { return Lsn(0) };
        let target = reign.named.last().map_or(reign.report.target, |(_, target)| *target);
        let backup = nodes.iter().find(|node| Target::Backup(node.id) == target);
        let in_sync = backup.filter(|node| node.disk.marks.as_ref().is_some_and(|marks| marks.in_sync));
        let disk = &in_sync.unwrap_or(&nodes[reign.node]).disk;
        let mut upto = disk.synced.min(reign.log.len());
        while upto > 0 && disk.log[upto - 1] != reign.log[upto - 1] {
            upto -= 1;
        }
        Lsn(upto as u64)
    }

    /// I2: what leaves a primary for a client is at its level; I3: a checkpoint is durable at the stability target; I7: a
    /// promise is durable before anything of the epoch leaves, and a reign opens stable.
    pub fn on_sent_to_client(
        &mut self,
        nodes: &[Node],
        clients: &[SimClient],
        at: usize,
        client: Option<usize>,
        message: &NodeMessage,
    ) {
        let node = &nodes[at];
        match message {
            NodeMessage::Status(status) => self.check_promised(node, at, status.epoch),
            NodeMessage::Welcome(welcome) => {
                let start = self.reigns.get(&welcome.epoch).map_or(Lsn(u64::MAX), |reign| reign.start);
                if self.stable_of(nodes, welcome.epoch) < start || node.disk.durable() < start {
                    self.violate(
                        "I7",
                        format!("node {at} is open, but the EpochStart of {} is not stable", welcome.epoch),
                    );
                }
            }
            NodeMessage::Frame(frame) => {
                self.scale.sent(frame);
                self.check_frame(nodes, at, client, frame);
                self.check_covered(nodes, clients, frame);
            }
            _ => {}
        }
    }

    fn check_promised(&mut self, node: &Node, at: usize, epoch: Epoch) {
        let promised = node.disk.marks.as_ref().map_or(Epoch::ZERO, |marks| marks.promised);
        if epoch.node == node.id && epoch > promised {
            self.violate("I7", format!("node {at} speaks of {epoch}, but its disk knows only {promised}"));
        }
    }

    fn check_frame(&mut self, nodes: &[Node], at: usize, client: Option<usize>, frame: &NodeFrame) {
        let node = &nodes[at];
        let Some(primary) = node.primary() else { return };
        let (logs_first, after_log) = (primary.state().start().log_before_send, primary.settings().reply_after_log);
        let (stable, logged) = (self.stable_of(nodes, frame.epoch), node.disk.durable());
        if let Some(reign) = self.reigns.get_mut(&frame.epoch) {
            reign.told = reign.told.max(frame.stable);
        }
        if frame.stable > stable {
            self.violate("I3", format!("node {at} calls {} stable; the target has {stable}", frame.stable));
        }
        let mut named: Vec<Lsn> = frame.manifest.iter().map(|header| header.lsn).collect();
        // They are told of as a whole, also of what the frame does not reveal.
        named.extend(frame.places.iter().map(|places| places.first));
        for response in &frame.responses {
            let Some(tag) = response.tag else { continue };
            named.push(tag.lsn);
            let op = client.and_then(|client| self.views[client].ops.get(&response.request));
            // What is answered already is asked for once more, as a filler, where its number is spent.
            let spent = |op: &&crate::oracle::Op| op.done.is_some() || op.unheard;
            let level = self.effective(op.filter(|op| !spent(op)).map_or(Level::Local, |op| op.level));
            let replied = matches!(response.outcome, Some(Outcome::Reply(_)));
            let met = (level != Level::Stable || tag.lsn <= stable) && (tag.met >= level || level < Level::Covered);
            if replied && (!met || (after_log && tag.lsn > logged)) {
                let what = format!("node {at} acknowledges {} at {level:?}; stable {stable}, logged {logged}", tag.lsn);
                self.violate("I2", what);
            }
        }
        for result in &frame.results {
            named.push(result.lsn);
            let asked = client.and_then(|client| self.views[client].asked.get(&result.id));
            let level = self.effective(asked.map_or(Level::Local, |asked| asked.level));
            if level == Level::Stable && result.lsn > stable || (after_log && result.lsn > logged) {
                let what = format!("node {at} shows {} at {level:?}; stable {stable}, logged {logged}", result.lsn);
                self.violate("I2", what);
            }
        }
        if let Some(early) = named.iter().find(|lsn| logs_first && **lsn > logged) {
            self.violate("I2", format!("node {at} logs before it sends, but names {early} with {logged} logged"));
        }
    }

    pub fn on_sent_to_backup(&mut self, nodes: &[Node], at: usize, message: &PrimaryMessage) {
        let PrimaryMessage::Append { epoch, records, .. } = message else { return };
        self.check_promised(&nodes[at], at, *epoch);
        let logs_first = nodes[at].primary().is_some_and(|primary| primary.state().start().log_before_send);
        let logged = nodes[at].disk.durable();
        if let Some(record) = records.last().filter(|record| logs_first && record.lsn() > logged) {
            self.violate(
                "I2",
                format!("node {at} logs before it sends, but sends {} with {logged} logged", record.lsn()),
            );
        }
    }

    pub fn on_sent_to_primary(&mut self, nodes: &[Node], at: usize, message: &BackupMessage) {
        let BackupMessage::Promised { epoch, .. } = message else { return };
        let promised = nodes[at].disk.marks.as_ref().map_or(Epoch::ZERO, |marks| marks.promised);
        if *epoch > promised {
            self.violate("I7", format!("backup {at} promises {epoch}, but its disk knows only {promised}"));
        }
    }

    /// I3: what a client no longer holds is durable at the stability target, or superseded.
    pub fn check_released(&mut self, nodes: &[Node], clients: &[SimClient], at: usize, before: &Held) {
        let Some(core) = &clients[at].core else { return };
        let image = core.image();
        let epoch = image.reported;
        let stable = self.stable_of(nodes, epoch);
        let client = clients[at].id;
        let mut released: Vec<(Epoch, Lsn, Option<Request>)> = Vec::new();
        for (request, command) in &before.commands {
            let tag = command.tag.expect("only held ones");
            let kept = image.commands.get(request).and_then(|command| command.tag);
            let asked_to_hold = tag.hold_until != Some(Lsn(0)) || self.lowest != Level::Local;
            if kept.map(|tag| (tag.epoch, tag.lsn)) != Some((tag.epoch, tag.lsn)) && asked_to_hold {
                released.push((tag.epoch, tag.lsn, Some(*request)));
            }
        }
        // Both in their order: where clients are many, each holds many headers.
        let left: BTreeSet<(Epoch, Lsn)> = image.told().collect();
        let headers = before.headers.iter().filter(|place| !left.contains(place));
        released.extend(headers.map(|(epoch, lsn)| (*epoch, *lsn, None)));
        let answered = |request: &Request| {
            before.commands.iter().any(|(known, command)| known == request && command.reply.is_some())
        };
        for (of, lsn, request) in released {
            let record = self.record(epoch, lsn).filter(|record| record.entry.header.epoch == of);
            let same = record.is_some_and(|record| {
                request.is_none_or(|request| record.entry.header.origin == Some(Origin { client, request }))
            });
            if !same && let Some(request) = request.filter(answered) {
                // It was acknowledged, was held to this moment, and is not in the log: the application is owed word.
                self.views[at].owed.insert(request);
            }
            if same && lsn > stable {
                self.violate("I3", format!("client {at} lets go of {lsn} of {of}; in {epoch} {stable} is stable"));
            } else if !same && of >= epoch {
                self.violate("I3", format!("client {at} lets go of {lsn} of {of}, which was never ordered in {epoch}"));
            }
        }
    }

    /// I4: whoever observed n holds the header of every entry up to n that is neither stable nor held by its origin; in a
    /// covered service that is neither stable nor named by a share.
    pub fn check_order_known(&mut self, nodes: &[Node], clients: &[SimClient], at: usize, frame: &NodeFrame) {
        let epoch = frame.epoch;
        let Some(core) = &clients[at].core else { return };
        if self.lowest == Level::Local || self.reigns.keys().next_back() != Some(&epoch) {
            return;
        }
        let Some(reign) = self.reigns.get(&epoch) else { return };
        let replied = frame.responses.iter().filter(|response| response.outcome.is_some());
        let replied = replied.filter_map(|response| response.tag.map(|tag| tag.lsn));
        let seen = replied.chain(frame.results.iter().map(|result| result.lsn)).max().unwrap_or(Lsn(0));
        let image = core.image();
        let mut lsn = self.stable_of(nodes, epoch).max(reign.start).next();
        while lsn <= seen {
            let Some(record) = self.record(epoch, lsn) else { break };
            let header = &record.entry.header;
            let place = (epoch, lsn);
            let own = header.origin.filter(|origin| origin.client == clients[at].id);
            let tagged = own.and_then(|origin| image.commands.get(&origin.request)).and_then(|command| command.tag);
            let known = image.is_told(epoch, lsn) || tagged.is_some_and(|tag| (tag.epoch, tag.lsn) == place);
            let confirmed = || self.is_confirmed(clients, place, header.origin, &header.body);
            if !known && !confirmed() && !self.is_named(clients, place) {
                let what =
                    format!("client {at} sees the state at {seen}, but neither it nor the origin knows {header:?}");
                self.violate("I4", what);
                return;
            }
            lsn = lsn.next();
        }
    }

    fn is_confirmed(&self, clients: &[SimClient], place: (Epoch, Lsn), origin: Option<Origin>, body: &Body) -> bool {
        let died = |at: usize| self.views[at].died_with.contains(&place);
        if !matches!(body, Body::Command | Body::Noop) {
            let mut all = clients.iter().enumerate();
            return all.any(|(at, client)| died(at) || client.image().is_told(place.0, place.1) || client.ended);
        }
        let Some(origin) = origin else { return true };
        let at = number(origin.client);
        if clients[at].lost || clients[at].ended || died(at) {
            return clients[at].ended || died(at);
        }
        let image = clients[at].image();
        match image.commands.get(&origin.request) {
            Some(command) => command.tag.is_some_and(|tag| (tag.epoch, tag.lsn) == place),
            None => origin.request <= image.last,
        }
    }

    /// I6: a reply never changes.
    pub fn check_same_reply(
        &mut self,
        at: usize,
        request: Request,
        was: Option<(Epoch, Lsn)>,
        is: Option<(Epoch, Lsn)>,
    ) {
        if self.policies == 0 && !self.forced && self.lowest != Level::Local {
            self.violate(
                "I6",
                format!("client {at}: request {request} had another outcome before: {was:?}, now {is:?}"),
            );
        }
    }

    /// I7: after a later reign has opened, an older one acknowledges nothing, but to sessions it was concluded without.
    pub fn check_one_primary(&mut self, at: usize, epoch: Epoch, sent: u64, level: Level) {
        if level == Level::Local || self.lowest != Level::Tagged || self.forced {
            return;
        }
        let client = tagalong::log::ClientId(100 + at as u128);
        let later = self.reigns.range(epoch..).skip(1).find(|(_, reign)| {
            let named = reign.report.missing.contains(&client) || reign.report.excluded.contains(&client);
            reign.opened.is_some_and(|opened| opened < sent) && !named
        });
        if let Some((later, _)) = later
            && self.policies == 0
        {
            self.violate("I7", format!("{epoch} acknowledges to client {at} after {later} has opened"));
        }
    }

    /// I9: the delta stays within its budget.
    pub fn check_delta(&mut self, plan: &Plan, primary: &Primary) {
        let slack = plan.primary.command_bytes_max + 128 * (8 + 4 * self.views.len() as u64);
        let reign = primary.state().epoch() == primary.epoch() && primary.state().end() > primary.state().start().base;
        let resumed = self.reigns.get(&primary.epoch()).map_or(Lsn(0), |reign| reign.resumed);
        // What a primary reads back of its own log was admitted before.
        let started = reign && primary.watermarks().stable() >= resumed;
        if started && primary.unstable().bytes() > plan.primary.delta_bytes_max + slack {
            let bytes = primary.unstable().bytes();
            self.violate("I9", format!("the delta takes {bytes} of {} bytes", plan.primary.delta_bytes_max));
        }
    }

    /// I9: a client's cache and window stay within their bounds.
    pub fn check_client(&mut self, plan: &Plan, at: usize, client: &SimClient) {
        let Some(core) = &client.core else { return };
        let image = core.image();
        let places: u64 = image.places.values().map(tagalong::log::Places::cost).sum();
        let commands = image.bytes - 128 * image.headers.len() as u64 - places;
        let room = if client.roomless { 0 } else { plan.client.share_bytes_max };
        let allowed = plan.client.cache_bytes_max - plan.client.cache_bytes_max / 8 - room;
        if image.share_bytes > 2 * room {
            self.violate("I9", format!("client {at} keeps {} bytes of shares, and said {room}", image.share_bytes));
        }
        if commands > allowed && image.commands.len() > 1 {
            self.violate("I9", format!("client {at} holds {commands} of {allowed} bytes"));
        }
        let window = usize::try_from(plan.primary.window).unwrap_or(usize::MAX);
        if image.commands.len() > window && image.unanswered().count() > window {
            self.violate("I9", format!("client {at} has {} requests unanswered", image.unanswered().count()));
        }
    }

    /// At rest: I6, I8 and I10 on the whole history, against a replay of the final log.
    pub fn check_end(&mut self, clients: &[SimClient], log: &[Record]) {
        if let Some(wrong) = twice(log) {
            self.violate("I6", wrong);
        }
        for (at, client) in clients.iter().enumerate() {
            if let Some(core) = &client.core
                && client.persistent
                && client.stores.is_empty()
                && *core.image() != client.stored
            {
                self.violate("I9", format!("the cache of client {at} is not what its core has"));
            }
        }
        let mut seen: BTreeMap<Lsn, Vec<usize>> = BTreeMap::new();
        for (index, seen_there) in self.seen.iter().enumerate() {
            seen.entry(seen_there.lsn).or_default().push(index);
        }
        let mut machine = Machine::default();
        let mut replies: BTreeMap<Lsn, Bytes> = BTreeMap::new();
        let mut stale = Vec::new();
        for record in log {
            let lsn = record.lsn();
            if record.entry.header.body == Body::Command {
                replies.insert(lsn, machine.apply(&record.entry));
                self.check_genuine(record);
            }
            for index in seen.remove(&lsn).unwrap_or_default() {
                let result = machine.query(&Bytes::copy_from_slice(&[self.seen[index].key]));
                if result != self.seen[index].result {
                    stale.push(index);
                }
            }
        }
        stale.extend(seen.into_values().flatten());
        for index in stale {
            self.check_lost_sight(clients, index);
        }
        let placed = places(log);
        for (at, client) in clients.iter().enumerate() {
            for event in &client.told {
                let ClientEvent::Superseded { request, .. } = event else { continue };
                let origin = Origin { client: client.id, request: *request };
                // A forced promotion may go back to before the reign that superseded it.
                if !self.forced && placed.get(&origin).is_some_and(|record| record.entry.header.body == Body::Command) {
                    self.violate(
                        "I6",
                        format!("client {at} was told that {request} is superseded, but it is in the log"),
                    );
                }
            }
        }
        for (at, client) in clients.iter().enumerate().filter(|(_, client)| client.is_live()) {
            for request in self.views[at].owed.clone() {
                let told = |event: &ClientEvent| matches!(event, ClientEvent::Superseded { request: told, .. } if *told == request);
                if !client.told.iter().any(told) {
                    self.violate(
                        "I10",
                        format!(
                            "client {at} held the acknowledged {request}, which is not in the log, and was not told"
                        ),
                    );
                }
            }
        }
        for at in 0..clients.len() {
            for (request, op) in self.views[at].ops.clone() {
                let Some(done) = op.done else { continue };
                let placed = placed.get(&Origin { client: clients[at].id, request }).copied();
                self.check_outcome(clients, log, &replies, placed, at, request, op.level, op.withdrawn, &done);
            }
        }
        self.check_histories(log);
    }

    /// I8: what is in the log was issued, once, and just so.
    fn check_genuine(&mut self, record: &Record) {
        let header = &record.entry.header;
        let origin = header.origin.expect("a command");
        let at = number(origin.client);
        let op = self.views[at].ops.get(&origin.request);
        if op.is_none_or(|op| op.payload != record.entry.payload) {
            self.violate("I8", format!("{header:?} is in the log, but was never issued like that: {op:?}"));
        }
    }

    fn check_lost_sight(&mut self, clients: &[SimClient], index: usize) {
        let seen = self.seen[index].clone();
        let what = format!("client {} saw {:?} at {} of {}", seen.client, seen.key, seen.lsn, seen.epoch);
        let excused = self.policies > 0 || self.forced || seen.level == Level::Local;
        if !excused {
            self.violate("I8", format!("{what}, which is not what the log says"));
        } else if clients[seen.client].is_live()
            && !self.views[seen.client].torn
            && !self.is_told(clients, seen.client, None, seen.epoch)
        {
            self.violate("I10", format!("{what}, which did not survive, and was not told"));
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn check_outcome(
        &mut self,
        clients: &[SimClient],
        log: &[Record],
        replies: &BTreeMap<Lsn, Bytes>,
        placed: Option<&Record>,
        at: usize,
        request: Request,
        level: Level,
        withdrawn: bool,
        done: &crate::oracle::Done,
    ) {
        let Some(reply) = &done.reply else {
            if !self.forced && placed.is_some_and(|record| record.entry.header.body == Body::Command) {
                self.violate("I6", format!("client {at} was told that {request} is superseded, but it is in the log"));
            }
            return;
        };
        let (epoch, lsn) = done.at.expect("a reply comes with its tag");
        if is_at(log, at, request, epoch, lsn) {
            let expected = replies.get(&lsn).cloned().unwrap_or_default();
            let changed = *reply != expected && self.policies == 0 && !self.forced;
            if changed || (withdrawn && !reply.is_empty()) {
                self.violate(
                    "I8",
                    format!("client {at}: request {request} at {lsn} was answered {reply:?}, not {expected:?}"),
                );
            }
            return;
        }
        let what = format!("client {at}: request {request}, acknowledged at {lsn} of {epoch}, is not in the log");
        if self.policies == 0 && !self.forced && self.effective(level) != Level::Local {
            self.violate("I10", format!("{what}, and nobody decided that"));
        } else if clients[at].is_live() && !self.is_told(clients, at, Some(request), epoch) {
            self.violate("I10", format!("{what}, and its author was not told"));
        }
    }

    fn is_told(&self, clients: &[SimClient], at: usize, request: Option<Request>, epoch: Epoch) -> bool {
        clients[at].told.iter().any(|event| match event {
            ClientEvent::Superseded { request: told, .. } => Some(*told) == request,
            // What was stable is not held any more, and only a forced promotion, or a `Local` service, loses it.
            ClientEvent::RolledBack { epoch: of, .. } => {
                *of >= epoch && (request.is_none() || self.forced || self.lowest == Level::Local)
            }
            _ => false,
        })
    }
}

fn is_at(log: &[Record], client: usize, request: Request, epoch: Epoch, lsn: Lsn) -> bool {
    let index = usize::try_from(lsn.0).expect("small").wrapping_sub(1);
    let origin = Origin { client: tagalong::log::ClientId(100 + client as u128), request };
    log.get(index)
        .is_some_and(|record| record.entry.header.epoch == epoch && record.entry.header.origin == Some(origin))
}

/// Where each request is in a log.
fn places(log: &[Record]) -> BTreeMap<Origin, &Record> {
    log.iter().rev().filter_map(|record| Some((record.entry.header.origin?, record))).collect()
}

fn twice(log: &[Record]) -> Option<String> {
    let mut last: BTreeMap<u128, Request> = BTreeMap::new();
    for record in log {
        let header = &record.entry.header;
        if let (Body::Command | Body::Noop, Some(origin)) = (&header.body, header.origin)
            && let Some(before) = last.insert(origin.client.0, origin.request)
            && before >= origin.request
        {
            return Some(format!("{header:?} comes after request {before} of the same client"));
        }
    }
    None
}
