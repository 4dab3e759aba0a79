//! I8 as the clients see it: what they called and what they were answered, in simulated time, is linearizable for every
//! key. Nothing of LSNs, epochs or logs goes into the judgement, but for the order in which the search tries.
//!
//! What must hold exactly, by I8 and I10:
//!
//! * Where nobody decided anything, the history of the whole run, every acknowledged write and every answered query in
//!   it. A write whose author died with it may have happened, at any time after its call; one that was withdrawn or
//!   superseded did not.
//! * Where a recovery was concluded by policy, promoted by force, or the service is `Local`, something may be lost: a write
//!   whose entry is not in a log, and a query that saw, of its key, a state that is not in it. What is lost is lost
//!   altogether: without it the history of the log that is left in the end is linearizable. And it was no nonsense while
//!   it lasted: the history of every reign that lost something is linearizable up to its end, on its own log.
//! * There the reply to an entry that was kept may differ from the one that was given, where something before it on the
//!   same key is lost (`Skip`): its effect counts, its answer does not. So does that of a write whose answer is lost with
//!   its reign, while the log that is left has it from an older one (seed 104095: the primary restarts on a disk that has
//!   less than the backup's, which is promoted by force then). And a query of a session that such a recovery
//!   was concluded without may come from the old primary, after the new one: it does not count beyond its own reign.

use std::collections::{BTreeMap, BTreeSet};

use tagalong::log::{Body, ClientId, Epoch, Level, Lsn, Record, Request};

use crate::linear::{Model, Operation, Verdict, check};
use crate::machine::{Register, what};
use crate::oracle::{Op, Oracle};

/// A key, as its users see it.
struct Key;

impl Model for Key {
    type State = Register;
    /// What a command does; a query does nothing.
    type Call = Option<u64>;
    type Answer = Register;

    fn step(state: &Register, call: &Option<u64>, answer: Option<&Register>) -> Option<Register> {
        let after = call.map_or(*state, |what| state.step(what));
        answer.is_none_or(|answer| *answer == after).then_some(after)
    }
}

type Histories = BTreeMap<u8, Vec<Operation<Option<u64>, Register>>>;

/// Far more than a good history takes, which has the log for a hint.
const STEPS_MAX: u64 = 100_000;

/// A log that something happened on.
struct Line<'a> {
    log: &'a [Record],
    /// The reign that ended there; none for the log that is left.
    of: Option<Epoch>,
    /// For each reign and key, where the commands of that reign's log are no longer those of this one.
    apart: BTreeMap<(Epoch, u8), Lsn>,
    /// Where each command is.
    places: BTreeMap<(ClientId, Request), Lsn>,
}

fn key_of(record: &Record) -> Option<u8> {
    (record.entry.header.body == Body::Command).then(|| record.entry.payload.first().copied().unwrap_or_default())
}

impl<'a> Line<'a> {
    fn new(oracle: &Oracle, log: &'a [Record], of: Option<Epoch>) -> Self {
        let mut apart = BTreeMap::new();
        for (epoch, reign) in &oracle.reigns {
            for at in 0..log.len().max(reign.log.len()) {
                let (ours, theirs) = (log.get(at), reign.log.get(at));
                if ours == theirs {
                    continue;
                }
                for key in [ours, theirs].into_iter().flatten().filter_map(key_of).collect::<BTreeSet<_>>() {
                    apart.entry((*epoch, key)).or_insert(Lsn(at as u64 + 1));
                }
            }
        }
        let placed = |record: &Record| {
            let origin = record.entry.header.origin.filter(|_| record.entry.header.body == Body::Command)?;
            Some(((origin.client, origin.request), record.lsn()))
        };
        Self { log, of, apart, places: log.iter().filter_map(placed).collect() }
    }

    /// Whether what the reign's state said of this key at this LSN is so here.
    fn has(&self, epoch: Epoch, lsn: Lsn, key: u8) -> bool {
        self.of.is_none_or(|of| epoch <= of) && self.apart.get(&(epoch, key)).is_none_or(|apart| lsn < *apart)
    }

    /// A client's command, as far as it concerns this log.
    fn operation(
        &self,
        oracle: &Oracle,
        client: ClientId,
        request: Request,
        op: &Op,
    ) -> Option<Operation<Option<u64>, Register>> {
        let place = self.places.get(&(client, request)).copied();
        let unknown = Operation {
            call: Some(what(&op.payload)),
            answer: None,
            from: op.from,
            to: None,
            hint: place.map_or(u64::MAX, |lsn| 2 * lsn.0),
        };
        let last = self.of.is_none();
        let Some(done) = &op.done else { return Some(unknown) };
        let Some(reply) = &done.reply else { return (!last || oracle.forced).then_some(unknown) };
        let Some(((epoch, lsn), register)) = done.at.zip(Register::of(reply)) else { return Some(unknown) };
        let lossy = oracle.is_lossy();
        let here =
            place == Some(lsn) && self.log[usize::try_from(lsn.0).expect("small") - 1].entry.header.epoch == epoch;
        match () {
            () if !lossy || here && self.has(epoch, lsn, op.payload[0]) => {
                Some(Operation { answer: Some(register), to: Some(op.to), hint: 2 * lsn.0, ..unknown })
            }
            () if here => Some(Operation { to: Some(op.to), ..unknown }),
            // It was acknowledged where it is lost now; a reign that ended may have had it, once, and the log that is left
            // may have it from an earlier reign that had told nobody.
            () => (!last || place.is_some()).then_some(unknown),
        }
    }
}

impl Oracle {
    /// Something may be lost, by somebody's decision or by what the service is.
    pub fn is_lossy(&self) -> bool {
        self.policies > 0 || self.forced || self.lowest == Level::Local
    }

    /// I8: the history is linearizable.
    pub fn check_histories(&mut self, log: &[Record]) {
        let mut wrong = self.check_history(&Line::new(self, log, None));
        if self.is_lossy() {
            for (epoch, reign) in &self.reigns {
                if !log.starts_with(&reign.log) {
                    wrong = wrong.or_else(|| self.check_history(&Line::new(self, &reign.log, Some(*epoch))));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.violate("I8", wrong);
        }
        self.ordered += self.views.iter().map(|view| view.ops.len() as u64).sum::<u64>() + self.seen.len() as u64;
    }

    fn check_history(&self, line: &Line) -> Option<String> {
        let mut histories = Histories::new();
        for (at, view) in self.views.iter().enumerate() {
            let client = ClientId(100 + at as u128);
            for (request, op) in view.ops.iter().filter(|(_, op)| !op.withdrawn) {
                let operation = line.operation(self, client, *request, op);
                histories.entry(op.payload[0]).or_default().extend(operation);
            }
        }
        let lossy = self.is_lossy();
        for seen in &self.seen {
            let excused = lossy && seen.outdated && line.of != Some(seen.epoch);
            if lossy && !line.has(seen.epoch, seen.lsn, seen.key) || excused {
                continue;
            }
            let hint = 2 * seen.lsn.0 + 1;
            let (answer, from, to) = (Register::of(&seen.result), seen.from, Some(seen.to));
            histories.entry(seen.key).or_default().push(Operation { call: None, answer, from, to, hint });
        }
        let whose = line.of.map_or("the run".to_owned(), |epoch| format!("{epoch}, which lost something,"));
        histories.iter().find_map(|(key, history)| {
            match check::<Key>(history, Register::default(), STEPS_MAX) {
                Verdict::Linearizable => None,
                Verdict::Not(most) => {
                    let all = history.len();
                    Some(format!("the history of {whose} is not linearizable: of key {key}, {all} operations, at most {most} can be ordered"))
                }
                Verdict::Undecided => Some(format!("no linear order was found for the history of {whose} on key {key}")),
            }
        })
    }
}
