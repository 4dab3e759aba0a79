//! What must hold in every scenario, beside what it says itself. Judged from what clients were told and what lies on the
//! disks: I1 and I5 (one entry, the same wherever and whenever), I3 (release after stable), I6 (exactly once, one reply),
//! I7 (nobody answers in an older epoch once a later one is open), I8 (reads and writes see what was complete before them),
//! I9 (everything drains), I10 (what is lost is named to whom it concerns).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tagalong::client::CacheImage;
use tagalong::log::{Body, ClientId, Epoch, GapPolicy, Header, Level, Lsn, Record, Request, Tag, Target};
use tagalong::message::{NodeMessage, Outcome, Role};
use tagalong::primary::Primary;

use crate::client::{Member, Told};
use crate::node::{Core, Machine, Node};

/// A command, as its application knows it.
pub struct Written {
    pub client: usize,
    pub request: Request,
    /// The process died before the command was in its cache, or with its outcome: nobody waits for it.
    pub void: bool,
    /// What was complete when it was made.
    floor: Lsn,
}

pub struct Asked {
    /// Words that were acknowledged when it was asked.
    must: Vec<String>,
    /// Empty if the query was refused.
    result: Option<String>,
}

type Place = (Epoch, Lsn);

#[derive(Default)]
pub struct Judge {
    pub violation: Option<String>,
    pub words: BTreeMap<String, Written>,
    numbers: BTreeMap<(usize, Request), String>,
    asked: BTreeMap<(usize, u64, u64), Asked>,
    /// Every entry that was ever ordered.
    ordered: BTreeMap<Place, (Header, Bytes)>,
    targets: BTreeMap<Epoch, Target>,
    /// Reigns that opened, and whether the recovery before lost anything or did without anybody.
    opened: BTreeMap<Epoch, bool>,
    /// The last LSN of anything that is complete.
    floor: Lsn,
    released: Vec<(usize, Request, Tag)>,
    /// The service holds nothing, and may lose what it acknowledged.
    pub local: bool,
    /// A node was promoted by force, somebody was excluded, or a session ended by an operator.
    pub forced: bool,
}

impl Judge {
    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    // What is told.

    pub fn on_write(&mut self, word: &str, client: usize, request: Request) {
        let written = Written { client, request, void: false, floor: self.floor };
        self.words.insert(word.to_owned(), written);
        self.numbers.insert((client, request), word.to_owned());
    }

    pub fn on_client_start(&mut self, at: usize, client: &Member) {
        for written in self.words.values_mut().filter(|written| written.client == at) {
            if client.told.contains_key(&written.request) {
                continue;
            }
            let command = client.cache.commands.get(&written.request);
            written.void |= command.is_none_or(|command| command.reply.is_some());
        }
        self.asked.retain(|(asker, _, _), asked| *asker != at || asked.result.is_some());
    }

    pub fn on_done(&mut self, client: &Member, at: usize, request: Request, told: &Told) {
        if let Some(before) = client.told.get(&request) {
            let twice = before.life == told.life;
            if twice || before.reply != told.reply {
                self.violate(format!(
                    "I6: {} is told of request {request} twice, as {before:?} and {told:?}",
                    client.name
                ));
            }
        }
        let Some(tag) = told.tag.filter(|_| told.is_reply()) else { return };
        let Some(written) = self.numbers.get(&(at, request)).and_then(|word| self.words.get(word)) else {
            self.violate(format!("I6: {} is told of request {request}, which it never made", client.name));
            return;
        };
        if tag.lsn <= written.floor && !self.is_outdated(tag.epoch) {
            let why = format!("I8: request {request} of {} is at {}, behind what was complete", client.name, tag.lsn);
            self.violate(why);
        }
        if !self.is_outdated(tag.epoch) {
            self.floor = self.floor.max(tag.lsn);
        }
    }

    /// Where a recovery lost something, or did without somebody, those of the reign before may still hear of it.
    fn is_outdated(&self, epoch: Epoch) -> bool {
        self.local || self.forced || self.opened.range(epoch..).skip(1).any(|(_, lossy)| *lossy)
    }

    pub fn on_query(&mut self, clients: &[Member], at: usize, id: u64) {
        let must = self.words.iter().filter(|(_, it)| self.was_applied(clients, it)).map(|(word, _)| word.clone());
        let asked = Asked { must: must.collect(), result: None };
        self.asked.insert((at, clients[at].life, id), asked);
    }

    fn was_applied(&self, clients: &[Member], written: &Written) -> bool {
        let told = clients[written.client].told.get(&written.request);
        told.and_then(|told| told.reply.as_ref()).is_some_and(|reply| !reply.starts_with(b"refused"))
    }

    pub fn on_result(&mut self, client: &Member, at: usize, id: u64, result: &Result<Bytes, tagalong::Error>) {
        let Some(asked) = self.asked.get_mut(&(at, client.life, id)).filter(|asked| asked.result.is_none()) else {
            self.violate(format!("I6: {} is told of query {id} twice, or never asked it", client.name));
            return;
        };
        asked.result =
            Some(result.as_ref().map_or_else(|_| String::new(), |it| String::from_utf8_lossy(it).into_owned()));
    }

    /// I7: once a reign is open that heard everybody, no older one tells anybody anything new.
    pub fn on_frame(&mut self, nodes: &[Node], at: usize, message: &NodeMessage) {
        let NodeMessage::Frame(frame) = message else { return };
        let replies = frame.responses.iter().filter(|response| matches!(response.outcome, Some(Outcome::Reply(_))));
        let new = |tag: Tag| tag.epoch == frame.epoch;
        let tells = replies.filter_map(|response| response.tag).any(new) || !frame.results.is_empty();
        let later = self.opened.range(frame.epoch..).find(|(epoch, _)| **epoch > frame.epoch);
        if let Some((epoch, false)) = later.filter(|_| tells && !self.local && !self.forced) {
            let name = &nodes[at].name;
            self.violate(format!("I7: {name} answers in epoch {}, though {epoch} is open", frame.epoch));
        }
    }

    // What is ordered.

    pub fn on_append(&mut self, node: &Node, records: &[Record]) {
        for record in records {
            let header = &record.entry.header;
            let place = (header.epoch, header.lsn);
            let lost = header.body == Body::Noop && header.origin.is_none();
            let entry = (header.clone(), record.entry.payload.clone());
            match self.ordered.get(&place) {
                _ if lost => {}
                Some(before) if *before != entry => {
                    let name = &node.name;
                    self.violate(format!("I5: {name} has {entry:?}, and it was once {before:?}"));
                }
                Some(_) => {}
                None => drop(self.ordered.insert(place, entry)),
            }
        }
    }

    /// What no disk has may be ordered otherwise, where nothing of it had left.
    pub fn on_primary_dies(&mut self, primary: &Primary, synced: usize) {
        if primary.settings().log_before_send {
            let epoch = primary.epoch();
            self.ordered.retain(|(of, lsn), _| *of != epoch || lsn.0 <= synced as u64);
        }
    }

    pub fn on_step(&mut self, nodes: &[Node], at: usize) {
        let Core::Primary(primary) = &nodes[at].core else { return };
        let epoch = primary.epoch();
        if primary.state().epoch() != epoch {
            return;
        }
        self.targets.insert(epoch, primary.state().target());
        if !self.opened.contains_key(&epoch) && role(primary) == Role::Primary {
            let report = primary.state().start();
            self.opened.insert(epoch, report.policy.is_some() || !report.excluded.is_empty());
            if report.policy.is_some() || self.forced || self.local {
                let start = primary.state().reigns_from(epoch).first().map_or(Lsn(0), |reign| reign.start);
                self.floor = self.floor.min(start);
            }
        }
    }

    // What is held.

    pub fn held(&self, image: &CacheImage) -> Vec<(Request, Tag)> {
        let held = image.commands.iter().filter_map(|(request, command)| Some((*request, command.tag?)));
        held.collect()
    }

    pub fn on_released(&mut self, at: usize, before: Vec<(Request, Tag)>, image: &CacheImage) {
        let gone = |(request, _): &(Request, Tag)| !image.commands.contains_key(request);
        let held = |(_, tag): &(Request, Tag)| tag.hold_until != Some(Lsn(0));
        self.released.extend(before.into_iter().filter(gone).filter(held).map(|(request, tag)| (at, request, tag)));
    }

    /// I3: what was released is durable where the service says that it is stable, or its author was told.
    pub fn check_released(&mut self, nodes: &[Node], clients: &[Member]) {
        let latest = self.targets.keys().next_back().copied();
        for (at, request, tag) in std::mem::take(&mut self.released) {
            let client = &clients[at];
            let told = client.lost_requests().contains(&request)
                || client.told.get(&request).is_some_and(|told| !told.is_reply());
            let epochs = [Some(tag.epoch), latest].into_iter().flatten();
            let durable = epochs.filter_map(|epoch| Some((epoch, self.targets.get(&epoch)?))).any(|(epoch, target)| {
                let wanted = match target {
                    Target::Backup(id) => *id,
                    _ => epoch.node,
                };
                let node = nodes.iter().find(|node| node.id == wanted);
                let record = node.and_then(|node| node.durable(tag.lsn));
                record.is_some_and(|record| {
                    let origin = record.entry.header.origin;
                    origin.is_some_and(|origin| origin.client == client.id && origin.request == request)
                })
            });
            if !durable && !told && client.over.is_none() && !self.forced {
                self.violate(format!("I3: {} released request {request} at {tag:?}, which is not stable", client.name));
            }
        }
    }

    // The end.

    /// The log of the one who serves, against everything that was told.
    pub fn check_log(&mut self, nodes: &[Node], clients: &[Member], at: usize) {
        let log = &nodes[at].log;
        let mut machine = Machine::default();
        let mut applied: BTreeMap<(ClientId, Request), (Lsn, Bytes)> = BTreeMap::new();
        let (mut named, mut skipped) = (BTreeSet::new(), false);
        for record in log {
            let header = &record.entry.header;
            if let Body::EpochStart(report) = &header.body {
                named.extend(report.missing.iter().chain(&report.excluded).copied());
                skipped |= report.policy == Some(GapPolicy::Skip);
            }
            let own = header.origin.filter(|_| matches!(header.body, Body::Command | Body::Noop));
            let Some(origin) = own else { continue };
            // A withdrawn command has its place, and no effect.
            let withdrawn = header.body == Body::Noop;
            let reply = if withdrawn { Bytes::new() } else { machine.apply(&record.entry.payload) };
            if applied.insert((origin.client, origin.request), (record.lsn(), reply)).is_some() {
                self.violate(format!("I6: {origin:?} was executed twice"));
            }
        }
        let at_lsn = |lsn: Lsn| usize::try_from(lsn.0).ok().and_then(|lsn| log.get(lsn.checked_sub(1)?));
        for client in clients {
            let lost = client.lost_requests();
            for (request, told) in &client.told {
                let in_log = applied.get(&(client.id, *request));
                let name = &client.name;
                let Some((tag, reply)) = told.tag.zip(told.reply.as_ref()) else {
                    if in_log.is_some() {
                        self.violate(format!("I6: request {request} of {name} is superseded, and in the log"));
                    }
                    continue;
                };
                if lost.contains(request) {
                    if in_log.is_some() {
                        self.violate(format!("I10: {name} was told that request {request} is lost, but it is not"));
                    }
                    continue;
                }
                let there = at_lsn(tag.lsn).is_some_and(|record| record.entry.header.epoch == tag.epoch);
                match in_log {
                    Some((lsn, again)) if *lsn == tag.lsn && there => {
                        if reply != again && !skipped && !client.was_rolled_back() {
                            self.violate(format!("I6: request {request} of {name} is answered otherwise now"));
                        }
                    }
                    Some((lsn, _)) => {
                        self.violate(format!("I5: request {request} of {name} was at {}, and is at {lsn}", tag.lsn));
                    }
                    // Who cannot be told any more is named in the report.
                    None if named.contains(&client.id) && !client.is_live() => {}
                    None if self.local || self.forced && client.over.is_some() => {}
                    None => self
                        .violate(format!("I10: request {request} of {name} was acknowledged at {tag:?}, and is lost")),
                }
            }
        }
        self.check_reads(clients, &machine.list);
    }

    /// I8 and I10: what was read is a beginning of the list, and has what was acknowledged before; or its reader was told.
    fn check_reads(&mut self, clients: &[Member], list: &[String]) {
        let lost: BTreeSet<String> = self
            .numbers
            .iter()
            .filter(|((at, request), _)| clients[*at].lost_requests().contains(request))
            .map(|(_, word)| word.clone())
            .collect();
        let mut wrong = None;
        for ((at, _, _), asked) in &self.asked {
            let client = &clients[*at];
            let Some(result) = asked.result.as_deref().filter(|result| !result.is_empty()) else { continue };
            let seen: Vec<&str> = result.split(' ').filter(|word| *word != "nothing").collect();
            let told = client.was_rolled_back() || !client.is_live() || self.local;
            if !told && !list.iter().take(seen.len()).eq(seen.iter().copied()) {
                wrong = Some(format!("I10: {} read {result}, which is not what the log says, {list:?}", client.name));
            }
            let complete = |word: &&String| !seen.contains(&word.as_str()) && !lost.contains(*word);
            let excused = self.local || self.forced || self.opened.values().any(|lossy| *lossy);
            if let Some(word) = asked.must.iter().find(complete).filter(|_| !excused) {
                wrong = Some(format!("I8: {} read {result}, though {word} was acknowledged before", client.name));
            }
        }
        wrong.into_iter().for_each(|wrong| self.violate(wrong));
    }

    /// I9: after healing nothing is left to do, and the copies agree.
    pub fn check_rest(&mut self, nodes: &[Node], clients: &[Member], at: usize) {
        let Core::Primary(primary) = &nodes[at].core else { return };
        let (name, water) = (&nodes[at].name, primary.watermarks());
        if !primary.unstable().is_empty() || water.covered() != water.head() {
            self.violate(format!("I9: the delta of {name} is not empty: {water:?}"));
        }
        for client in clients.iter().filter(|client| client.is_live()) {
            let image = client.image();
            if client.core.as_ref().and_then(|core| core.attached()) != Some(primary.epoch()) {
                self.violate(format!("I9: {} is not attached to {name}: {:?}", client.name, client.events.last()));
            }
            if !image.commands.is_empty() || image.told().next().is_some() || !image.shares.is_empty() {
                let (commands, headers, shares) = (&image.commands, &image.headers, image.shares.len());
                self.violate(format!("I9: {} holds {commands:?} {headers:?} {shares} shares", client.name));
            }
        }
        let waits = |it: &&Written| !it.void && clients[it.client].is_live();
        let open = |it: &&Written| !clients[it.client].told.contains_key(&it.request);
        if let Some(it) = self.words.values().filter(waits).find(open) {
            let (client, request) = (&clients[it.client].name, it.request);
            self.violate(format!("I9: request {request} of {client} has no outcome"));
        }
        let asking =
            |((at, _, _), asked): &(&(usize, u64, u64), &Asked)| asked.result.is_none() && clients[*at].is_live();
        let unanswered = self.asked.iter().find(asking).map(|((at, _, _), _)| *at);
        if let Some(at) = unanswered {
            self.violate(format!("I9: a query of {} has no result", clients[at].name));
        }
        if let Target::Backup(id) = primary.state().target() {
            let backup = nodes.iter().find(|node| node.id == id);
            let same = |backup: &Node| backup.log == nodes[at].log && backup.machine.list == nodes[at].machine.list;
            if !backup.is_some_and(same) {
                let lists = backup.map(|backup| backup.machine.text());
                self.violate(format!("I1: backup and primary differ: {lists:?}, {}", nodes[at].machine.text()));
            }
        }
    }

    /// I1: what two nodes have of one reign is the same; told at the end, for every node that is left.
    pub fn check_copies(&mut self, nodes: &[Node]) {
        for node in nodes {
            let other = node.log.iter().find(|record| {
                let header = &record.entry.header;
                let noop = header.body == Body::Noop && header.origin.is_none();
                let known = self.ordered.get(&(header.epoch, header.lsn));
                !noop && known.is_some_and(|(known, payload)| known != header || *payload != record.entry.payload)
            });
            if let Some(record) = other {
                let what = format!("I1: {} has {record:?}, which was never ordered so", node.name);
                self.violate(what);
            }
        }
    }

    pub fn serves_local(&mut self, lowest: Level) {
        self.local |= lowest == Level::Local;
    }
}

pub fn role(primary: &Primary) -> Role {
    primary.status(tagalong::log::Time(0)).status.role
}
