//! Stripes that still take members: running accumulators, by size class.
//!
//! A stripe is as wide as its longest member, so segments of like size go together: classes by powers of four. Each owner
//! goes to the first stripe of the class that it is not in, so that those in front fill first.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::Domain;
use crate::log::{Lsn, Time};
use crate::share::body::{Member, Plain};
use crate::share::{field, size_class};

/// A stripe that takes members.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Open {
    pub(super) members: Vec<Member>,
    pub(super) owners: Vec<Domain>,
    /// One accumulator a row, each as long as the longest member.
    pub(super) rows: Vec<Vec<u8>>,
    pub(super) longest: usize,
    pub(super) segment_bytes: u64,
    since: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Class {
    /// The number of the stripe in front.
    first: u64,
    open: VecDeque<Open>,
    /// The number of the first stripe that each owner is not in.
    next: BTreeMap<Domain, u64>,
}

/// All stripes that take members.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Opened {
    classes: BTreeMap<u32, Class>,
}

impl Opened {
    /// The lowest LSN in any of them.
    pub(super) fn first(&self) -> Option<Lsn> {
        let fronts = self.classes.values().filter_map(|class| class.open.front());
        fronts.filter_map(|open| open.members.first()).map(|member| member.header.lsn).min()
    }

    /// Since when the oldest waits.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.classes.values().filter_map(|class| class.open.front()).map(|open| open.since).min()
    }

    /// Adds a segment; returns the stripes that are full now.
    pub(super) fn add(
        &mut self,
        now: Time,
        member: Member,
        bytes: &Bytes,
        owner: Domain,
        f: u8,
        full: usize,
    ) -> Vec<Open> {
        let key = size_class(bytes.len());
        let class = self.classes.entry(key).or_default();
        let next = class.next.entry(owner.clone()).or_default();
        let number = (*next).max(class.first);
        *next = number + 1;
        let at = usize::try_from(number - class.first).unwrap_or(usize::MAX).min(class.open.len());
        if at == class.open.len() {
            class.open.push_back(Open {
                members: Vec::new(),
                owners: Vec::new(),
                rows: vec![Vec::new(); usize::from(f)],
                longest: 0,
                segment_bytes: 0,
                since: now,
            });
        }
        class.open[at].add(member, bytes, owner);
        let mut sealed = Vec::new();
        while class.open.front().is_some_and(|open| open.members.len() >= full) {
            class.first += 1;
            sealed.extend(class.open.pop_front());
        }
        if class.open.is_empty() {
            self.classes.remove(&key);
        }
        sealed
    }

    /// Takes out a stripe that waits since `wait_us` or longer.
    pub(super) fn take_due(&mut self, now: Time, wait_us: u64) -> Option<Open> {
        self.take_front(|open| now >= open.since.after(wait_us))
    }

    /// Takes out a stripe.
    pub(super) fn take(&mut self) -> Option<Open> {
        self.take_front(|_| true)
    }

    fn take_front(&mut self, due: impl Fn(&Open) -> bool) -> Option<Open> {
        let due = |class: &Class| class.open.front().is_some_and(&due);
        let (key, class) = self.classes.iter_mut().find(|(_, class)| due(class))?;
        let key = *key;
        let open = class.open.pop_front();
        class.first += 1;
        if class.open.is_empty() {
            self.classes.remove(&key);
        }
        open
    }
}

impl Open {
    /// Takes a segment into the accumulators.
    fn add(&mut self, member: Member, bytes: &Bytes, owner: Domain) {
        debug_assert!(!self.owners.contains(&owner), "the owners of a stripe are distinct");
        self.longest = self.longest.max(bytes.len());
        self.segment_bytes += bytes.len() as u64;
        let column = u8::try_from(self.members.len()).expect("a stripe has at most 64 members");
        for (row, sum) in self.rows.iter_mut().enumerate() {
            sum.resize(self.longest, 0);
            let row = u8::try_from(row).expect("f is at most 16");
            field::add_scaled(&mut sum[..bytes.len()], field::cauchy(column, row), bytes);
        }
        self.members.push(member);
        self.owners.push(owner);
    }
}

/// The plain body of a copy.
pub(super) fn encode_copy(member: Member, symbol: Bytes) -> Bytes {
    let mut body = Vec::with_capacity(symbol.len() + 64);
    Plain::Stripe { row: 0, members: vec![member], symbol }.encode(&mut body);
    body.into()
}
