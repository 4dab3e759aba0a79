//! The checks of a state machine, each on one list of commands.

use bytes::Bytes;

use super::dice::Dice;
use super::failure::{Check, Finding, difference, guarded, text};
use crate::log::{Body, ClientId, Digest, Entry, Epoch, Header, Lsn, NodeId, Origin, Request, Time};
use crate::store::{Missing, StateMachine};

type Verdict = Result<(), Finding>;

/// How many damaged snapshots, and pairs of commands, are tried for one list.
const DAMAGES: usize = 24;
const PAIRS: usize = 24;

/// Everything that is checked, in the order in which it is best understood.
pub(super) fn all<M: StateMachine>(
    new: &dyn Fn() -> M,
    commands: &[Bytes],
    queries: &[Bytes],
    mut dice: Dice,
) -> Verdict {
    let suite = Suite { new, entries: entries(commands), queries };
    suite.every_command_gets_one_reply()?;
    suite.two_instances_agree()?;
    let mut rest = || {
        suite.batches_make_no_difference(&mut dice.clone())?;
        suite.reads_change_nothing()?;
        suite.a_snapshot_is_the_state(&mut dice.clone())?;
        suite.a_damaged_snapshot_is_refused(&mut dice.clone())?;
        suite.nonsense_is_answered(&mut dice.clone())?;
        suite.the_independent_do_not_depend(&mut dice)?;
        suite.nothing_is_durable()
    };
    // What is not deterministic may have been so once, and fails everything else.
    rest().map_err(|found| (0..16).find_map(|_| suite.two_instances_agree().err()).unwrap_or(found))
}

/// Log entries around commands: of three clients, as a primary would order them.
pub(super) fn entries(commands: &[Bytes]) -> Vec<Entry> {
    let entry = |(lsn, payload): (u64, &Bytes)| {
        let origin = Origin { client: ClientId(u128::from(lsn % 3 + 1)), request: Request((lsn - 1) / 3 + 1) };
        let header = Header {
            epoch: Epoch { generation: 0, number: 1, node: NodeId(1) },
            lsn: Lsn(lsn),
            body: Body::Command,
            origin: Some(origin),
            time: Time(1_700_000_000_000_000 + lsn * 1_000),
            answered: origin.request.prev(),
            length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            digest: Digest::crc32(payload),
        };
        Entry { header, payload: payload.clone() }
    };
    (1..).zip(commands).map(entry).collect()
}

/// Applies entries at once; a reply that is not one for one is a finding of its own.
pub(super) fn apply<M: StateMachine>(check: Check, machine: &mut M, entries: &[Entry]) -> Result<Vec<Bytes>, Finding> {
    guarded(check, || {
        // What other commands got is not to be touched.
        let mut replies = vec![Bytes::from_static(b"before")];
        machine
            .apply(&entries.iter().collect::<Vec<_>>(), &mut replies)
            .map_err(|error| Finding::new(check, format!("apply fails: {error}")))?;
        if replies.first().is_none_or(|first| first != "before") {
            return Err(Finding::new(Check::Replies, "apply changes replies that were there before"));
        }
        if replies.len() != entries.len() + 1 {
            let why = format!("{} commands got {} replies", entries.len(), replies.len() - 1);
            return Err(Finding::new(Check::Replies, why));
        }
        Ok(replies.split_off(1))
    })
}

/// The state, as the machine writes it.
pub(super) fn snapshot<M: StateMachine>(check: Check, machine: &M) -> Result<Vec<u8>, Finding> {
    guarded(check, || {
        let mut bytes = Vec::new();
        machine.snapshot(&mut bytes).map_err(|error| Finding::new(check, format!("snapshot fails: {error}")))?;
        Ok(bytes)
    })
}

/// An instance that `new` made and `snapshot` gave its state.
pub(super) fn restored<M: StateMachine>(check: Check, mut into: M, snapshot: &[u8]) -> Result<M, Finding> {
    guarded(check, || {
        let done = into.restore(&mut &*snapshot);
        done.map_err(|error| Finding::new(check, format!("restore refuses what snapshot wrote: {error}")))?;
        Ok(into)
    })
}

fn ask<M: StateMachine>(check: Check, machine: &mut M, queries: &[Bytes]) -> Result<Vec<Bytes>, Finding> {
    guarded(check, || {
        let asked = queries.iter().map(|query| machine.query(query)).collect::<Result<_, _>>();
        asked.map_err(|error| Finding::new(check, format!("a query fails: {error}")))
    })
}

/// Lists of replies are the same, or it is said where they are not.
fn same(check: Check, what: &str, one: &[Bytes], other: &[Bytes], who: &str) -> Verdict {
    match one.iter().zip(other).position(|(one, other)| one != other) {
        Some(at) => {
            let difference = difference(&one[at], &other[at]);
            Err(Finding::new(check, format!("{what} {} is answered {difference}, {who}", at + 1)))
        }
        None => Ok(()),
    }
}

struct Suite<'a, M> {
    new: &'a dyn Fn() -> M,
    entries: Vec<Entry>,
    queries: &'a [Bytes],
}

impl<M: StateMachine> Suite<'_, M> {
    /// An instance in its first state, and what it answers to `entries` one by one.
    fn fed(&self, check: Check, entries: &[Entry]) -> Result<(M, Vec<Bytes>), Finding> {
        let mut machine = (self.new)();
        let mut replies = Vec::new();
        for entry in entries {
            replies.extend(apply(check, &mut machine, std::slice::from_ref(entry))?);
        }
        Ok((machine, replies))
    }

    /// The same queries and the same snapshot; where only the latter differs it is asked whose fault that is.
    fn same_state(&self, check: Check, one: &mut M, other: &mut M, who: &str) -> Verdict {
        let (asked, again) = (ask(check, one, self.queries)?, ask(check, other, self.queries)?);
        same(check, "afterwards query", &asked, &again, who)?;
        let (first, second) = (snapshot(check, one)?, snapshot(check, other)?);
        if first == second {
            return Ok(());
        }
        let difference = difference(&first, &second);
        // Those that were given one and the same snapshot are in one state, whatever they write. An order that comes by
        // chance may come twice.
        let rewritten = || snapshot(check, &restored(check, (self.new)(), &first)?);
        let written: Vec<_> = (0..16).map_while(|_| rewritten().ok()).collect();
        if written.windows(2).any(|pair| pair[0] != pair[1]) {
            let why =
                format!("instances that were restored from one snapshot write different ones; {who}: {difference}");
            return Err(Finding::new(Check::EqualSnapshots, why));
        }
        Err(Finding::new(check, format!("the states differ, {who}; their snapshots are {difference}")))
    }

    fn every_command_gets_one_reply(&self) -> Verdict {
        let mut machine = (self.new)();
        apply(Check::Replies, &mut machine, &[])?;
        apply(Check::Replies, &mut machine, &self.entries)?;
        apply(Check::Replies, &mut machine, &[])?;
        Ok(())
    }

    fn two_instances_agree(&self) -> Verdict {
        let check = Check::Determinism;
        // Both alive at once: other addresses, other hash seeds, another moment.
        let (mut one, first) = self.fed(check, &self.entries)?;
        let (mut other, second) = self.fed(check, &self.entries)?;
        same(check, "command", &first, &second, "by two new instances that were given the same commands")?;
        self.same_state(check, &mut one, &mut other, "in two new instances that were given the same commands")
    }

    fn batches_make_no_difference(&self, dice: &mut Dice) -> Verdict {
        let check = Check::Batches;
        let (mut single, expected) = self.fed(check, &self.entries)?;
        for whole in [true, false] {
            let mut batched = (self.new)();
            let mut replies = Vec::new();
            let mut left = &self.entries[..];
            while !left.is_empty() {
                let size = if whole { left.len() } else { 1 + dice.index(left.len().min(5)) };
                let (batch, rest) = left.split_at(size);
                replies.extend(apply(check, &mut batched, batch)?);
                left = rest;
            }
            let who = if whole { "one by one and all at once" } else { "one by one and in small batches" };
            same(check, "command", &expected, &replies, who)?;
            self.same_state(check, &mut single, &mut batched, who)?;
        }
        Ok(())
    }

    fn reads_change_nothing(&self) -> Verdict {
        let check = Check::Reads;
        let (mut quiet, expected) = self.fed(check, &self.entries)?;
        let mut asked = (self.new)();
        let mut replies = Vec::new();
        for entry in &self.entries {
            let once = ask(check, &mut asked, self.queries)?;
            snapshot(check, &asked)?;
            let again = ask(check, &mut asked, self.queries)?;
            same(check, "query", &once, &again, "though nothing was applied in between")?;
            replies.extend(apply(check, &mut asked, std::slice::from_ref(entry))?);
        }
        let who = "without reads in between and with them";
        same(check, "command", &expected, &replies, who)?;
        self.same_state(check, &mut quiet, &mut asked, who)
    }

    /// Some points of the list; all of them where it is short.
    fn points(&self, dice: &mut Dice) -> Vec<usize> {
        let end = self.entries.len();
        if end <= 6 { (0..=end).collect() } else { vec![0, dice.index(end), dice.index(end), end] }
    }

    fn a_snapshot_is_the_state(&self, dice: &mut Dice) -> Verdict {
        let check = Check::Snapshot;
        for at in self.points(dice) {
            let (before, after) = self.entries.split_at(at);
            let (mut original, _) = self.fed(check, before)?;
            let written = snapshot(check, &original)?;
            // What it had is replaced, not added to.
            let (full, _) = self.fed(check, &self.entries)?;
            let expected = ask(check, &mut original, self.queries)?;
            let mut copies = [restored(check, (self.new)(), &written)?, restored(check, full, &written)?];
            for (copy, into) in copies.iter_mut().zip(["a new instance", "one that had a state"]) {
                let who = format!("before and after a snapshot, taken behind command {at} and restored into {into}");
                same(check, "query", &expected, &ask(check, copy, self.queries)?, &who)?;
            }
            let again = snapshot(check, &copies[0])?;
            let replies = apply(check, &mut original, after)?;
            for (copy, into) in copies.iter_mut().zip(["a new instance", "one that had a state"]) {
                let who = format!("with and without a snapshot behind command {at}, restored into {into}");
                same(check, "later command", &replies, &apply(check, copy, after)?, &who)?;
                self.same_state(check, &mut original, copy, &who)?;
            }
            if again != written {
                let why = format!("what was restored writes another snapshot: {}", difference(&written, &again));
                return Err(Finding::new(Check::EqualSnapshots, why));
            }
        }
        Ok(())
    }

    fn a_damaged_snapshot_is_refused(&self, dice: &mut Dice) -> Verdict {
        let check = Check::DamagedSnapshot;
        let (source, _) = self.fed(check, &self.entries)?;
        let good = snapshot(check, &source)?;
        let half = self.entries.len() / 2;
        for nth in 0..DAMAGES {
            let (bad, what) = damage(&good, nth, dice);
            if bad == good {
                continue;
            }
            let (mut target, _) = self.fed(check, &self.entries[..half])?;
            let before = snapshot(check, &target)?;
            let result = guarded(check, || Ok(target.restore(&mut bad.as_slice())))
                .map_err(|found| Finding::new(check, format!("{}, on {what}", found.why)))?;
            let now = snapshot(check, &target)?;
            let wrong = match result {
                Ok(()) if now != good => "restore takes it, and makes another state of it (has it a checksum?)",
                Err(_) if now != before => "restore refuses it, and the state is not as it was before",
                _ => continue,
            };
            return Err(Finding::new(check, format!("{wrong}: {what}, which is {}", text(&bad))));
        }
        Ok(())
    }

    fn nonsense_is_answered(&self, dice: &mut Dice) -> Verdict {
        let check = Check::Nonsense;
        let mut nonsense = vec![Bytes::new(), Bytes::from_static(&[0]), Bytes::from(vec![0xff; 300])];
        for entry in &self.entries {
            for nth in 0..4 {
                nonsense.push(damage(&entry.payload, nth, dice).0.into());
            }
        }
        let (mut one, mut other) = ((self.new)(), (self.new)());
        for entry in &entries(&nonsense) {
            let what =
                |found: Finding| Finding::new(found.check, format!("{}, on {}", found.why, text(&entry.payload)));
            let entry = std::slice::from_ref(entry);
            let first = apply(check, &mut one, entry).map_err(what)?;
            let second = apply(check, &mut other, entry).map_err(what)?;
            same(check, "it, command", &first, &second, "by two instances").map_err(what)?;
            ask(check, &mut one, std::slice::from_ref(&entry[0].payload)).map_err(what)?;
        }
        Ok(())
    }

    fn the_independent_do_not_depend(&self, dice: &mut Dice) -> Verdict {
        let end = self.entries.len();
        let mut pairs: Vec<_> = (0..end).flat_map(|lost| (lost + 1..end).map(move |later| (lost, later))).collect();
        while pairs.len() > PAIRS {
            pairs.swap_remove(dice.index(pairs.len()));
        }
        pairs.into_iter().try_for_each(|(lost, later)| self.is_independent(lost, later))
    }

    /// A later command that is called independent of a lost one: its reply is the same without it, and so is its
    /// effect: either the two commute, or the later one undoes whatever the lost one did.
    fn is_independent(&self, lost: usize, later: usize) -> Verdict {
        let check = Check::Independence;
        let (before, a, b) = (&self.entries[..lost], &self.entries[lost], &self.entries[later]);
        let (asked, _) = self.fed(check, before)?;
        let says = |header| {
            let missing = [Missing { lsn: a.header.lsn, header }];
            guarded(check, || Ok(asked.independent(b, &missing)))
        };
        if !says(Some(a.header.clone()))? && !says(None)? {
            return Ok(());
        }
        let after = |commands: &[&Entry]| {
            let entries: Vec<Entry> = before.iter().chain(commands.iter().copied()).cloned().collect();
            let (machine, replies) = self.fed(check, &entries)?;
            Ok((replies.last().cloned().unwrap_or_default(), snapshot(check, &machine)?))
        };
        let (with, both) = after(&[a, b])?;
        let (without, alone) = after(&[b])?;
        let (lost, later) = (lost + 1, later + 1);
        if with != without {
            let difference = difference(&with, &without);
            let why =
                format!("{later} is called independent of {lost}, and answered {difference}, with and without it");
            return Err(Finding::new(check, why));
        }
        // The place in the log may be part of the state: each keeps its own, or they trade. What is last may be, too: so
        // the next command is the last one in either case.
        let next: Vec<&Entry> = self.entries.get(later).into_iter().collect();
        let (x, y) = (trade(b, a), trade(a, b));
        let state = |commands: [&Entry; 2]| after(&[&commands[..], &next[..]].concat()).map(|(_, state)| state);
        let expected = state([a, b])?;
        // A state machine may insist on LSNs that rise.
        let commutes = |commands| state(commands).is_ok_and(|state| state == expected);
        if both == alone || commutes([b, a]) || commutes([&x, &y]) {
            return Ok(());
        }
        let why = format!("{later} is called independent of {lost}, and they make another state in the other order");
        Err(Finding::new(check, why))
    }

    fn nothing_is_durable(&self) -> Verdict {
        let (machine, _) = self.fed(Check::Durable, &self.entries)?;
        match guarded(Check::Durable, || Ok(machine.durable()))? {
            Lsn(0) => Ok(()),
            other => {
                Err(Finding::new(Check::Durable, format!("durable gives {other}, and nodes refuse to start on it")))
            }
        }
    }
}

/// What `command` asks for, in the place of `place`.
fn trade(command: &Entry, place: &Entry) -> Entry {
    let mut entry = command.clone();
    (entry.header.lsn, entry.header.time) = (place.header.lsn, place.header.time);
    entry
}

/// Bytes that went bad, and how.
fn damage(good: &[u8], nth: usize, dice: &mut Dice) -> (Vec<u8>, String) {
    let mut bad = good.to_vec();
    let at = dice.index(good.len());
    let byte = dice.roll().to_le_bytes()[0];
    match nth % 6 {
        // The end is missing, and at first just a little of it.
        0 => {
            let keep = if nth == 0 { good.len().saturating_sub(1) } else { at };
            bad.truncate(keep);
            (bad, format!("the first {keep} of {} bytes of it", good.len()))
        }
        1 => {
            let bit = byte % 8;
            bad.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
            (bad, format!("it with bit {bit} of byte {at} changed"))
        }
        2 => {
            bad.push(byte);
            (bad, "it with a byte more at the end".to_owned())
        }
        3 => {
            bad.insert(at, byte);
            (bad, format!("it with a byte more at {at}"))
        }
        4 if !bad.is_empty() => {
            bad.remove(at);
            (bad, format!("it without byte {at}"))
        }
        _ => (dice.bytes(64), "something else".to_owned()),
    }
}
