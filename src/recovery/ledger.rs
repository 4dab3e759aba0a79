//! What a roll call adds up as reports come in, so that asking how far it is costs nothing, however much is missing.
//!
//! None of this decides anything: a conclusion walks over everything that stands.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, Range};

use super::pages::Pages;
use crate::log::{ClientId, Lsn};

/// What is outstanding, by number, with the lengths, and their sum.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Owed {
    lengths: Pages<u32>,
    bytes: u64,
}

impl Owed {
    pub(super) fn insert(&mut self, number: u64, length: u32) {
        self.bytes += u64::from(length);
        if let Some(before) = self.lengths.insert(number, length) {
            self.bytes -= u64::from(before);
        }
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<u32> {
        let length = self.lengths.remove(number)?;
        self.bytes -= u64::from(length);
        Some(length)
    }

    pub(super) fn pop_first(&mut self) -> Option<(u64, u32)> {
        let first = self.lengths.first()?;
        Some((first, self.remove(first)?))
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.lengths.get(number).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lengths.len() == 0
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Who vouches for something, in order: most often one.
#[derive(Clone, Debug)]
pub(super) enum Vouchers {
    One(ClientId),
    Many(Vec<ClientId>),
}

/// However they came to be.
impl PartialEq for Vouchers {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Vouchers {}

impl Hash for Vouchers {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl Deref for Vouchers {
    type Target = [ClientId];

    fn deref(&self) -> &[ClientId] {
        match self {
            Self::One(client) => std::slice::from_ref(client),
            Self::Many(clients) => clients,
        }
    }
}

/// What was reported, and who vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Backing<T> {
    pub(super) what: T,
    pub(super) vouchers: Vouchers,
}

impl<T> Backing<T> {
    pub(super) fn new(what: T, client: ClientId) -> Self {
        Self { what, vouchers: Vouchers::One(client) }
    }

    /// Whether that is news.
    pub(super) fn vouch(&mut self, client: ClientId) -> bool {
        let Err(at) = self.vouchers.binary_search(&client) else { return false };
        match &mut self.vouchers {
            Vouchers::One(other) => {
                let mut clients = vec![*other];
                clients.insert(at, client);
                self.vouchers = Vouchers::Many(clients);
            }
            Vouchers::Many(clients) => clients.insert(at, client),
        }
        true
    }

    pub(super) fn disavow(&mut self, client: ClientId) {
        if let Ok(at) = self.vouchers.binary_search(&client) {
            match &mut self.vouchers {
                Vouchers::One(_) => self.vouchers = Vouchers::Many(Vec::new()),
                Vouchers::Many(clients) => drop(clients.remove(at)),
            }
        }
    }
}

/// A set of LSNs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Lsns {
    /// A bit for each of 64. None is zero.
    words: BTreeMap<u64, u64>,
}

impl Lsns {
    pub(super) fn set(&mut self, lsn: Lsn, is_in: bool) {
        if lsn.next() == lsn {
            // A forged one, past every end.
            return;
        }
        let (number, bit) = (lsn.0 / 64, 1 << (lsn.0 % 64));
        match self.words.get_mut(&number) {
            Some(word) if is_in => *word |= bit,
            Some(word) => {
                *word &= !bit;
                if *word == 0 {
                    self.words.remove(&number);
                }
            }
            None if is_in => {
                self.words.insert(number, bit);
            }
            None => {}
        }
    }

    /// What is not in the set, from `after` on up to `upto`.
    pub(super) fn gaps(&self, after: Lsn, upto: Lsn) -> Vec<Range<Lsn>> {
        let mut gaps = Vec::new();
        let mut next = after.next().0;
        // A tree takes no range that ends before it begins.
        for (number, word) in self.words.range((next / 64).min(upto.0 / 64)..=upto.0 / 64) {
            let first = number * 64;
            let mut at = next.saturating_sub(first);
            while at < 64 {
                at += u64::from((word >> at).trailing_zeros());
                if at >= 64 || first + at > upto.0 {
                    break;
                }
                let start = first + at;
                if start > next {
                    gaps.push(Lsn(next)..Lsn(start));
                }
                at += u64::from((word >> at).trailing_ones());
                next = first + at;
            }
        }
        if next <= upto.0 {
            gaps.push(Lsn(next)..upto.next());
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn lsns_are_a_set() {
        let (mut lsns, mut set) = (Lsns::default(), BTreeSet::new());
        let mut dice = 1u64;
        for _ in 0..2000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (lsn, is_in) = (Lsn(3 + (dice >> 33) % 170), !(dice >> 60).is_multiple_of(3));
            let upto = 100 + (dice >> 17) % 80;
            lsns.set(lsn, is_in);
            if is_in {
                set.insert(lsn)
            } else {
                set.remove(&lsn)
            };
            let missing: Vec<Lsn> = (3..=upto).map(Lsn).filter(|lsn| !set.contains(lsn)).collect();
            let gaps = lsns.gaps(Lsn(2), Lsn(upto));
            let listed: Vec<Lsn> = gaps.iter().flat_map(|gap| (gap.start.0..gap.end.0).map(Lsn)).collect();
            assert_eq!(listed, missing);
            assert!(gaps.windows(2).all(|pair| pair[0].end < pair[1].start), "{gaps:?}");
        }
    }

    #[test]
    fn lsns_end_where_numbers_do() {
        let mut lsns = Lsns::default();
        for lsn in [1, u64::MAX - 1, u64::MAX].map(Lsn) {
            lsns.set(lsn, true);
        }
        let (last, first) = (Lsn(u64::MAX), Lsn(2));
        assert_eq!(lsns.gaps(Lsn(0), last), [first..last.prev(), last..last]);
        assert_eq!(lsns.gaps(last.prev(), first), []);
    }

    #[test]
    fn what_is_owed_adds_up() {
        let mut owed = Owed::default();
        owed.insert(1, 10);
        owed.insert(2, 5);
        owed.insert(1, 7);
        assert_eq!(owed.bytes(), 12);
        assert_eq!((owed.remove(2), owed.remove(2), owed.bytes()), (Some(5), None, 7));
        assert_eq!((owed.pop_first(), owed.pop_first(), owed.bytes()), (Some((1, 7)), None, 0));
    }
}
