//! Window shares: a combination of the last few entries of others, on a response that goes out anyway.
//!
//! Nobody waits for them and nobody counts on them. When clients that wrote the part *q* of the delta die together with
//! the primary, and a share left with every *r*-th response, the survivors have (1 − q)/r equations an entry for q unknowns
//! an entry: what is lost follows ρ = r·q/(1 − q). So the rate is chosen from the heaviest owner's part, for ρ = ¼, within
//! a budget of bytes; then almost only the newest few entries of the dead can be lost. Those can: the very last
//! acknowledged write of a client that dies together with the primary usually is.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::body::{Plain, SPAN_MAX, encode_symbol};
use super::cover::Domain;
use super::{field, size_class};
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
const SHARES_MAX: u64 = 4;
/// One share, in the unit in which they are earned.
const SHARE: u64 = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    lsn: Lsn,
    /// Whose it is; `None` for entries of the node.
    owner: Option<Domain>,
    symbol: Bytes,
}

/// The newest entries, by size class, and what may be sent of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    percent: u32,
    classes: BTreeMap<u32, VecDeque<Source>>,
    /// Unstable entries of each owner, and of all.
    outstanding: BTreeMap<Domain, u64>,
    owners: VecDeque<(Lsn, Domain)>,
    /// Bytes that may be sent, by size class: small entries must not use up what large ones pay for.
    saved: BTreeMap<u32, u64>,
    earned: u64,
}

/// An equation to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Combination {
    /// The highest LSN in it.
    pub until: Lsn,
    /// Its plain body.
    pub body: Bytes,
}

impl Window {
    /// A window that sends up to `percent` bytes for every 100 that are written.
    pub fn new(percent: u32) -> Self {
        Self {
            percent,
            classes: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            owners: VecDeque::new(),
            saved: BTreeMap::new(),
            earned: 0,
        }
    }

    /// The next entry of the log.
    pub fn add(&mut self, entry: &Entry, owner: Option<Domain>) {
        let lsn = entry.header.lsn;
        let symbol = Bytes::from(encode_symbol(entry));
        let class = size_class(symbol.len());
        let sources = self.classes.entry(class).or_default();
        let saved = self.saved.entry(class).or_default();
        *saved = (*saved + symbol.len() as u64 * u64::from(self.percent) / 100).min(SAVED_BYTES_MAX);
        sources.push_back(Source { lsn, owner: owner.clone(), symbol });
        while sources.front().is_some_and(|source| source.lsn.0 + SPAN_MAX as u64 <= lsn.0) {
            sources.pop_front();
        }
        if let Some(owner) = owner {
            *self.outstanding.entry(owner.clone()).or_default() += 1;
            self.owners.push_back((lsn, owner));
        }
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
        for sources in self.classes.values_mut() {
            while sources.front().is_some_and(|source| source.lsn <= stable) {
                sources.pop_front();
            }
        }
        self.classes.retain(|_, sources| !sources.is_empty());
    }

    /// A response goes out: how many shares may ride on it.
    pub fn earn(&mut self) -> u64 {
        let all = self.owners.len() as u64;
        let heaviest = self.outstanding.values().max().copied().unwrap_or_default();
        // 1/r = 4q/(1 − q)
        let earned = if heaviest == all { SHARES_MAX * SHARE } else { 4 * SHARE * heaviest / (all - heaviest) };
        self.earned = (self.earned + earned).min(SHARES_MAX * SHARE);
        let shares = self.earned / SHARE;
        self.earned %= SHARE;
        shares
    }

    /// Combines the newest entries that are not of `receiver`'s domain, of the size class of the very newest and of smaller
    /// ones, as the share numbered `id`. `None` if there are none, or no budget.
    pub fn combine(&mut self, id: u64, receiver: &Domain) -> Option<Combination> {
        let others = |source: &&Source| source.owner.as_ref() != Some(receiver);
        let newest_of = |sources: &VecDeque<Source>| sources.iter().rev().find(others).map(|source| source.lsn);
        let newest = self.classes.iter().filter_map(|(class, sources)| Some((newest_of(sources)?, *class)));
        let (newest, class) = newest.max()?;
        let near = |source: &&Source| source.lsn.0 + SPAN_MAX as u64 > newest.0;
        let own =
            self.classes.get(&class)?.iter().rev().filter(others).take_while(near).take(MEMBERS_MAX - SMALLER_MAX);
        // Smaller ones cost nothing where a large one is sent anyway, and the rare among them need it.
        let smaller = self.classes.range(..class).map(|(_, sources)| sources);
        let smaller =
            smaller.flat_map(|sources| sources.iter().rev().filter(others).take_while(near).take(SMALLER_MAX));
        let mut smaller: Vec<&Source> = smaller.collect();
        smaller.sort_unstable_by_key(|source| std::cmp::Reverse(source.lsn));
        smaller.truncate(SMALLER_MAX);
        let mut combined = 0;
        let mut chosen: Vec<&Source> = Vec::new();
        for source in own.chain(smaller) {
            combined += source.symbol.len();
            if combined > COMBINED_BYTES_MAX && !chosen.is_empty() {
                break;
            }
            chosen.push(source);
        }
        chosen.sort_unstable_by_key(|source| source.lsn);
        let longest = chosen.iter().map(|source| source.symbol.len()).max()?;
        let saved = self.saved.get_mut(&class)?;
        *saved = saved.checked_sub(longest as u64)?;
        let mut symbol = vec![0; longest];
        for source in &chosen {
            let coefficient = field::hash_coefficient(id, source.lsn.0);
            field::add_scaled(&mut symbol[..source.symbol.len()], coefficient, &source.symbol);
        }
        let members: Vec<Lsn> = chosen.iter().map(|source| source.lsn).collect();
        let until = members.last().copied()?;
        let mut body = Vec::with_capacity(longest + 48);
        Plain::Window { members, symbol: symbol.into() }.encode(&mut body);
        Some(Combination { until, body: body.into() })
    }
}
