//! What a roll call adds up as reports come in, so that asking how far it is costs nothing, however much is missing.
//!
//! None of this decides anything: a conclusion walks over everything that stands.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::log::{ClientId, Lsn};

/// What is outstanding, with the lengths, and their sum.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Owed<K> {
    lengths: BTreeMap<K, u32>,
    bytes: u64,
}

impl<K> Default for Owed<K> {
    fn default() -> Self {
        Self { lengths: BTreeMap::new(), bytes: 0 }
    }
}

impl<K: Ord> Owed<K> {
    pub(super) fn insert(&mut self, key: K, length: u32) {
        self.bytes += u64::from(length);
        if let Some(before) = self.lengths.insert(key, length) {
            self.bytes -= u64::from(before);
        }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<u32> {
        let length = self.lengths.remove(key)?;
        self.bytes -= u64::from(length);
        Some(length)
    }

    pub(super) fn pop_first(&mut self) -> Option<(K, u32)> {
        let (key, length) = self.lengths.pop_first()?;
        self.bytes -= u64::from(length);
        Some((key, length))
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.lengths.contains_key(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What was reported, and who vouches for it, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Backing<T> {
    pub(super) what: T,
    pub(super) vouchers: Vec<ClientId>,
}

impl<T> Backing<T> {
    /// Whether that is news.
    pub(super) fn vouch(&mut self, client: ClientId) -> bool {
        let at = self.vouchers.binary_search(&client);
        if let Err(at) = at {
            self.vouchers.insert(at, client);
        }
        at.is_err()
    }

    pub(super) fn disavow(&mut self, client: ClientId) {
        if let Ok(at) = self.vouchers.binary_search(&client) {
            self.vouchers.remove(at);
        }
    }
}

/// A set of LSNs, as the ranges it consists of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Ranges {
    /// First LSNs with the ends of their ranges; no two touch.
    ends: BTreeMap<Lsn, Lsn>,
}

impl Ranges {
    fn around(&self, lsn: Lsn) -> Option<Range<Lsn>> {
        let (start, end) = self.ends.range(..=lsn).next_back()?;
        (lsn < *end).then_some(*start..*end)
    }

    pub(super) fn set(&mut self, lsn: Lsn, is_in: bool) {
        if lsn.next() == lsn {
            // A forged one, past every end.
            return;
        }
        let around = self.around(lsn);
        match (around, is_in) {
            (None, true) => {
                let before = self.ends.range(..lsn).next_back().filter(|(_, end)| **end == lsn);
                let start = before.map_or(lsn, |(start, _)| *start);
                let end = self.ends.remove(&lsn.next()).unwrap_or(lsn.next());
                self.ends.insert(start, end);
            }
            (Some(around), false) => {
                self.ends.remove(&around.start);
                if around.start < lsn {
                    self.ends.insert(around.start, lsn);
                }
                if lsn.next() < around.end {
                    self.ends.insert(lsn.next(), around.end);
                }
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// What is not in the set, from `after` on up to `upto`.
    pub(super) fn gaps(&self, after: Lsn, upto: Lsn) -> Vec<Range<Lsn>> {
        let mut gaps = Vec::new();
        let mut next = after.next();
        for (start, end) in self.ends.range(..=upto) {
            if *start > next {
                gaps.push(next..*start);
            }
            next = next.max(*end);
        }
        if next <= upto {
            gaps.push(next..upto.next());
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ranges_are_what_a_set_is() {
        let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
        let mut dice = 1u64;
        for _ in 0..2000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (lsn, is_in) = (Lsn(3 + (dice >> 33) % 40), !(dice >> 60).is_multiple_of(3));
            ranges.set(lsn, is_in);
            if is_in {
                set.insert(lsn)
            } else {
                set.remove(&lsn)
            };
            let missing: Vec<Lsn> = (3..=30).map(Lsn).filter(|lsn| !set.contains(lsn)).collect();
            let gaps = ranges.gaps(Lsn(2), Lsn(30));
            let listed: Vec<Lsn> = gaps.iter().flat_map(|gap| (gap.start.0..gap.end.0).map(Lsn)).collect();
            assert_eq!(listed, missing);
            assert!(gaps.windows(2).all(|pair| pair[0].end < pair[1].start), "{gaps:?}");
        }
    }

    #[test]
    fn what_is_owed_adds_up() {
        let mut owed = Owed::default();
        owed.insert(1, 10);
        owed.insert(2, 5);
        owed.insert(1, 7);
        assert_eq!(owed.bytes(), 12);
        assert_eq!((owed.remove(&2), owed.remove(&2), owed.bytes()), (Some(5), None, 7));
        assert_eq!((owed.pop_first(), owed.pop_first(), owed.bytes()), (Some((1, 7)), None, 0));
    }
}
