//! Window shares: a combination of the last few entries of others, on a response that goes out anyway.
//!
//! Nobody waits for them and nobody counts on them. Each share pays what the window owes to every owner that it combines
//! entries of: as soon as an owner is owed one, the next response to another brings it, so that an owner's newest entries,
//! however many one takes, are in as many shares that others have. Beyond that there are shares at a rate, for when several
//! die at once: with a share for every *r*-th entry and the part *q* of the delta written by the dead, the survivors have
//! (1 − q)/r equations an entry for q unknowns an entry, and what is lost follows ρ = r·q/(1 − q); r is chosen for ρ = ¼,
//! with q from the heaviest owner. All of it within a budget of bytes. Then almost only the newest few entries of the dead
//! can be lost. Those can: the very last acknowledged write of a client that dies together with the primary may be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::body::{Plain, SPAN_MAX, encode_symbol};
use super::cover::Domain;
use super::field;
use crate::log::{Entry, Lsn};

/// Entries of others in a share, at most.
const MEMBERS_MAX: usize = 64;
/// Of these, so many of smaller size classes.
const SMALLER_MAX: usize = 24;
/// Bytes that go through the field's arithmetic for one share, at most.
const COMBINED_BYTES_MAX: usize = 1 << 20;
/// The budget does not grow past this while nothing is sent, in bytes.
const SAVED_BYTES_MAX: u64 = 4 << 20;
/// Shares on one response, at most.
pub const SHARES_MAX: u64 = 4;
/// One share, in the unit in which they are owed.
const SHARE: u64 = 1000;
/// Owed to its owner for each entry: a little more than one, as one equation in 256 says nothing new.
const ENTRY: u64 = SHARE * 5 / 4;
/// A share that is due by rate alone leaves the budget of so many like it for those that are owed.
const RESERVE: u64 = 10;

/// The size class of so many bytes: narrower than those of stripes, as many fit in a window.
fn size_class(length: usize) -> u32 {
    length.max(256).next_power_of_two().trailing_zeros()
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    lsn: Lsn,
    /// Whose it is; `None` for entries of the node.
    owner: Option<Domain>,
    symbol: Bytes,
}

/// What the window owes to an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Owed {
    /// Entries of this owner in the window.
    entries: u64,
    /// Each entry adds to it, and each share that combines entries of this owner takes from it, down to none: at none, as
    /// many shares as there are entries combine some of any last few of them.
    shares: u64,
}

/// Entries of like size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Class {
    sources: VecDeque<Source>,
    /// Bytes that may be sent: small entries must not use up what large ones pay for.
    saved: u64,
    /// Due by rate.
    due: u64,
    owed: BTreeMap<Domain, Owed>,
    /// Who is owed a whole share.
    pressing: BTreeSet<Domain>,
}

/// The newest entries, by size class, and what may be sent of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    percent: u32,
    classes: BTreeMap<u32, Class>,
    /// Unstable entries of each owner, and of all.
    outstanding: BTreeMap<Domain, u64>,
    owners: VecDeque<(Lsn, Domain)>,
}

/// An equation to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Combination {
    /// The highest LSN in it.
    pub until: Lsn,
    /// Its plain body.
    pub body: Bytes,
}

impl Class {
    fn push(&mut self, source: Source) {
        if let Some(owner) = &source.owner {
            let owed = self.owed.entry(owner.clone()).or_default();
            owed.entries += 1;
            owed.shares += ENTRY;
            self.pressing.insert(owner.clone());
        }
        self.sources.push_back(source);
    }

    /// Entries up to here are stable, or too old.
    fn forget(&mut self, upto: Lsn) {
        while self.sources.front().is_some_and(|source| source.lsn <= upto) {
            let Some(owner) = self.sources.pop_front().and_then(|source| source.owner) else { continue };
            let Some(owed) = self.owed.get_mut(&owner) else { continue };
            owed.entries -= 1;
            if owed.entries == 0 {
                self.owed.remove(&owner);
                self.pressing.remove(&owner);
            } else {
                owed.shares = owed.shares.min(ENTRY * owed.entries);
            }
        }
    }

    /// Whether a share for `receiver` is to be sent: to those whom it is owed, or at the rate. And whether the former.
    fn wants_share(&self, receiver: &Domain) -> Option<bool> {
        let owed = self.pressing.iter().any(|owner| owner != receiver);
        (owed || self.due >= SHARE).then_some(owed)
    }

    fn affords(&self, length: u64, owed: bool) -> bool {
        self.saved >= if owed { length } else { length * RESERVE }
    }

    /// A share went to somebody else, with entries of these owners.
    fn serve(&mut self, owners: &BTreeSet<Domain>) {
        for owner in owners {
            let Some(owed) = self.owed.get_mut(owner) else { continue };
            owed.shares = owed.shares.saturating_sub(SHARE);
            if owed.shares < SHARE {
                self.pressing.remove(owner);
            }
        }
    }

    /// A share of this class for `receiver` reached no entry of any other owner: what is owed to them is for entries that
    /// are too old.
    fn give_up(&mut self, owners: &BTreeSet<Domain>, receiver: &Domain) {
        let owed = &mut self.owed;
        self.pressing.retain(|owner| {
            let reached = owner == receiver || owners.contains(owner);
            if let Some(owed) = owed.get_mut(owner).filter(|_| !reached) {
                owed.shares = 0;
            }
            reached
        });
    }
}

impl Window {
    /// A window that sends up to `percent` bytes for every 100 that are written.
    pub fn new(percent: u32) -> Self {
        Self { percent, classes: BTreeMap::new(), outstanding: BTreeMap::new(), owners: VecDeque::new() }
    }

    /// The next entry of the log.
    pub fn add(&mut self, entry: &Entry, owner: Option<Domain>) {
        let lsn = entry.header.lsn;
        if let Some(owner) = owner.clone() {
            *self.outstanding.entry(owner.clone()).or_default() += 1;
            self.owners.push_back((lsn, owner));
        }
        let due = self.due();
        let symbol = Bytes::from(encode_symbol(entry));
        let class = self.classes.entry(size_class(symbol.len())).or_default();
        class.saved = (class.saved + symbol.len() as u64 * u64::from(self.percent) / 100).min(SAVED_BYTES_MAX);
        class.due = (class.due + due).min(SHARES_MAX * SHARE);
        class.push(Source { lsn, owner, symbol });
        class.forget(Lsn(lsn.0.saturating_sub(SPAN_MAX as u64)));
    }

    /// What is due for each entry: 1/r = 4q/(1 − q).
    fn due(&self) -> u64 {
        let all = self.owners.len() as u64;
        let heaviest = self.outstanding.values().max().copied().unwrap_or_default();
        if heaviest == all { SHARES_MAX * SHARE } else { 4 * SHARE * heaviest / (all - heaviest) }
    }

    /// The checkpoint passed: what lies below needs no share.
    pub fn stabilize(&mut self, stable: Lsn) {
        while self.owners.front().is_some_and(|(lsn, _)| *lsn <= stable) {
            let Some((_, owner)) = self.owners.pop_front() else { break };
            if let Some(count) = self.outstanding.get_mut(&owner) {
                *count -= 1;
            }
        }
        self.outstanding.retain(|_, count| *count > 0);
        for class in self.classes.values_mut() {
            class.forget(stable);
        }
    }

    /// Combines the newest entries of one size class, and of smaller ones, that are not of `receiver`'s domain, as the share
    /// numbered `id`. `None` if nothing is due, or nothing that is due can be afforded.
    pub fn combine(&mut self, id: u64, receiver: &Domain) -> Option<Combination> {
        let wanted = |(class, it): (&u32, &Class)| Some((*class, it.wants_share(receiver)?));
        let affordable = |(class, owed)| {
            let members = self.members(class, receiver);
            let longest = members.iter().filter_map(|at| self.source(*at)).map(|source| source.symbol.len()).max()?;
            self.classes.get(&class)?.affords(longest as u64, owed).then_some((class, members, longest))
        };
        let (class, chosen, longest) = self.classes.iter().rev().filter_map(wanted).find_map(affordable)?;
        let mut symbol = vec![0; longest];
        let mut members = Vec::with_capacity(chosen.len());
        let mut owners: BTreeMap<u32, BTreeSet<Domain>> = BTreeMap::new();
        for at in chosen {
            let source = self.source(at)?;
            members.push(source.lsn);
            owners.entry(at.0).or_default().extend(source.owner.clone());
            let coefficient = field::hash_coefficient(id, source.lsn.0);
            field::add_scaled(&mut symbol[..source.symbol.len()], coefficient, &source.symbol);
        }
        let paying = self.classes.get_mut(&class)?;
        paying.saved -= longest as u64;
        paying.due = paying.due.saturating_sub(SHARE);
        if let Some(owners) = owners.get(&class) {
            paying.give_up(owners, receiver);
        }
        for (class, owners) in owners {
            self.classes.get_mut(&class)?.serve(&owners);
        }
        members.sort_unstable();
        let until = members.last().copied()?;
        let mut body = Vec::with_capacity(longest + 48);
        Plain::Window { members, symbol: symbol.into() }.encode(&mut body);
        Some(Combination { until, body: body.into() })
    }

    fn source(&self, (class, at): (u32, usize)) -> Option<&Source> {
        self.classes.get(&class)?.sources.get(at)
    }

    /// Which entries a share of this class combines: by class and place in it.
    fn members(&self, class: u32, receiver: &Domain) -> Vec<(u32, usize)> {
        let others = |(_, source): &(usize, &Source)| source.owner.as_ref() != Some(receiver);
        let newest = |class: u32| {
            let sources = self.classes.get(&class).map(|class| &class.sources).into_iter();
            sources.flat_map(|sources| sources.iter().enumerate().rev()).filter(others)
        };
        let upto = self.classes.range(..=class).filter_map(|(class, _)| newest(*class).next());
        let Some(last) = upto.map(|(_, source)| source.lsn).max() else { return Vec::new() };
        let near = |(_, source): &(usize, &Source)| source.lsn.0 + SPAN_MAX as u64 > last.0;
        let own = newest(class).take_while(near).take(MEMBERS_MAX - SMALLER_MAX);
        let own: Vec<_> = own.map(|(at, source)| (class, at, source)).collect();
        if own.is_empty() {
            return Vec::new();
        }
        // Smaller ones cost nothing where a large one is sent anyway.
        let smaller = self.classes.range(..class).flat_map(|(class, _)| {
            newest(*class).take_while(near).take(SMALLER_MAX).map(move |(at, source)| (*class, at, source))
        });
        let mut smaller: Vec<_> = smaller.collect();
        smaller.sort_unstable_by_key(|(_, _, source)| std::cmp::Reverse(source.lsn));
        smaller.truncate(SMALLER_MAX);
        let mut combined = 0;
        let mut chosen = Vec::new();
        for (class, at, source) in own.into_iter().chain(smaller) {
            combined += source.symbol.len();
            if combined > COMBINED_BYTES_MAX && !chosen.is_empty() {
                break;
            }
            chosen.push((class, at));
        }
        chosen
    }
}
