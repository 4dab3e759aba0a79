//! What a world at rest is judged by, without asking the cores: what clients were told, and what lies on the disks.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::node::Node;
use super::world::World;
use crate::log::{Body, Entry, Lsn, Origin, Record, Time};
use crate::store::StateMachine;
use crate::testing::checks::{apply, snapshot};
use crate::testing::failure::{Check, Finding, difference};

type Verdict = Result<(), Finding>;

impl<M: StateMachine> World<'_, M> {
    /// Everything that holds now, or what does not.
    pub(super) fn judge(&mut self) -> Verdict {
        if self.answers.other.is_some() {
            return Err(self.answers.diverged("no reply of this command was reported, so no node had to notice"));
        }
        let replies = self.what_was_acknowledged_is_there()?;
        self.replies_are_the_same(&replies)?;
        let (machine, expected) = self.replay()?;
        self.replies_are_the_same(&expected)?;
        let written = snapshot(Check::State, &machine)?;
        self.is_in_state(self.primary, &written)?;
        // A backup that is not in sync yet has less.
        if self.nodes[self.backup].log == self.nodes[self.primary].log {
            self.is_in_state(self.backup, &written)?;
        }
        Ok(())
    }

    fn log(&self) -> &[Record] {
        &self.nodes[self.primary].log
    }

    /// I6 and I10, as a client sees them. Returns the replies that the survivor would give once more.
    fn what_was_acknowledged_is_there(&self) -> Result<BTreeMap<Lsn, Bytes>, Finding> {
        let mut places: BTreeMap<Origin, Vec<Lsn>> = BTreeMap::new();
        for record in self.log().iter().filter(|record| record.entry.header.body == Body::Command) {
            places.entry(record.entry.header.origin.unwrap_or_default()).or_default().push(record.lsn());
        }
        let lost = |why: String| Err(Finding::new(Check::Lost, why));
        for client in &self.clients {
            for (request, told) in &client.told {
                let what = (self.answers.show)(&told.payload);
                let found = places.get(&Origin { client: client.id, request: *request });
                let found = found.map(Vec::as_slice).unwrap_or_default();
                let Some(tag) = told.tag else {
                    return lost(format!("request {request} ({what}) was answered without a tag"));
                };
                if found != [tag.lsn] {
                    return lost(format!(
                        "request {request} ({what}) was acknowledged at {} and is at {found:?}",
                        tag.lsn
                    ));
                }
                let entry = self.log().iter().find(|record| record.lsn() == tag.lsn).map(|record| &record.entry);
                // What was stable when it was answered is not held, and its tag says no time.
                let timely = |entry: &Entry| [Time(0), entry.header.time].contains(&tag.time);
                if !entry.is_some_and(|entry| entry.payload == told.payload && timely(entry)) {
                    return lost(format!("request {request} ({what}), acknowledged at {}, is {entry:?} now", tag.lsn));
                }
            }
        }
        if let Some((origin, at)) = places.iter().find(|(_, at)| at.len() > 1) {
            return lost(format!("{origin:?} was executed more than once, at {at:?}"));
        }
        let sessions = self.nodes[self.primary].primary().map(|primary| primary.state().sessions());
        let replies = sessions.into_iter().flat_map(BTreeMap::values).flat_map(|session| session.replies.values());
        let replies = replies.map(|reply| (reply.lsn, reply.reply.clone())).collect();
        Ok(replies)
    }

    /// What clients were told is what these say, as far as they go.
    fn replies_are_the_same(&self, replies: &BTreeMap<Lsn, Bytes>) -> Verdict {
        for told in self.clients.iter().flat_map(|client| client.told.values()) {
            let lsn = told.tag.map(|tag| tag.lsn).unwrap_or_default();
            if let Some(now) = replies.get(&lsn).filter(|now| **now != told.reply) {
                let (what, difference) = ((self.answers.show)(&told.payload), difference(&told.reply, now));
                let why = format!("command {what} at LSN {lsn} was answered {difference}, before and now");
                return Err(Finding::new(Check::Diverged, why));
            }
        }
        Ok(())
    }

    /// What a new instance makes of the surviving log, in batches of any size.
    fn replay(&mut self) -> Result<(M, BTreeMap<Lsn, Bytes>), Finding> {
        let entries = self.log().iter().map(|record| &record.entry);
        let entries: Vec<Entry> = entries.filter(|entry| entry.header.body == Body::Command).cloned().collect();
        let mut machine = (self.subject.new)();
        let mut replies = BTreeMap::new();
        let mut left = &entries[..];
        while !left.is_empty() {
            let (batch, rest) = left.split_at(1 + self.dice.index(left.len().min(8)));
            let answered = apply(Check::State, &mut machine, batch)?;
            replies.extend(batch.iter().map(|entry| entry.header.lsn).zip(answered));
            left = rest;
        }
        Ok((machine, replies))
    }

    fn is_in_state(&self, at: usize, expected: &[u8]) -> Verdict {
        let node: &Node<M> = &self.nodes[at];
        let found = snapshot(Check::State, &node.machine)?;
        if found == expected {
            return Ok(());
        }
        let what = difference(expected, &found);
        let why = format!(
            "the snapshots of a new instance that was fed with the surviving log, and of {}: {what}",
            node.name()
        );
        Err(Finding::new(Check::State, why))
    }
}
