//! A map for keys that come in order and go in order, as requests and LSNs do.
//!
//! It is a sorted ring of entries: what is added at the end and taken from the front costs neither a search nor an
//! allocation, and where keys are dense a look-up is one step. Anything else is a binary search, and an insertion or a
//! removal in the middle moves the entries on the shorter side of it.

use std::collections::VecDeque;
use std::ops::{Bound, RangeBounds};

use crate::log::{Epoch, Lsn, Request};

/// A key that can tell about how far behind the first one it stands.
pub trait Spaced: Ord + Copy {
    /// How many keys lie between `first` and this one, at most, where it is not before `first`; a guess will do.
    fn behind(&self, first: &Self) -> u64;
}

impl Spaced for Lsn {
    fn behind(&self, first: &Self) -> u64 {
        self.0.saturating_sub(first.0)
    }
}

impl Spaced for Request {
    fn behind(&self, first: &Self) -> u64 {
        self.0.saturating_sub(first.0)
    }
}

impl Spaced for (Epoch, Lsn) {
    fn behind(&self, first: &Self) -> u64 {
        self.1.behind(&first.1)
    }
}

impl Spaced for (Epoch, Lsn, Request) {
    fn behind(&self, first: &Self) -> u64 {
        self.1.behind(&first.1)
    }
}

/// The map. See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ordered<K, V> {
    entries: VecDeque<(K, V)>,
}

impl<K, V> Default for Ordered<K, V> {
    fn default() -> Self {
        Self { entries: VecDeque::new() }
    }
}

impl<K: Spaced, V> Ordered<K, V> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where the key is, or would be.
    fn find(&self, key: &K) -> Result<usize, usize> {
        let (Some((first, _)), Some((last, _))) = (self.entries.front(), self.entries.back()) else {
            return Err(0);
        };
        if key > last {
            return Err(self.entries.len());
        }
        if key < first {
            return Err(0);
        }
        let guess = usize::try_from(key.behind(first)).unwrap_or(usize::MAX).min(self.entries.len() - 1);
        if self.entries[guess].0 == *key {
            return Ok(guess);
        }
        self.entries.binary_search_by(|(other, _)| other.cmp(key))
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.entries[at].1)
    }

    /// The value of a key.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.find(key).ok().map(|at| &mut self.entries[at].1)
    }

    /// Whether the key is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Sets the value of a key; returns the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.entries[at].1, value)),
            Err(at) if at == self.entries.len() => {
                self.entries.push_back((key, value));
                None
            }
            Err(at) => {
                self.entries.insert(at, (key, value));
                None
            }
        }
    }

    /// Removes a key; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        let entry = if at == 0 { self.entries.pop_front() } else { self.entries.remove(at) };
        entry.map(|(_, value)| value)
    }

    /// The first entry.
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.entries.front().map(|(key, value)| (key, value))
    }

    /// The first key.
    pub fn first(&self) -> Option<&K> {
        self.entries.front().map(|(key, _)| key)
    }

    /// Takes the first entry away.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        self.entries.pop_front()
    }

    /// Takes the first entry away if its key is not above `upto`.
    pub fn pop_upto(&mut self, upto: &K) -> Option<(K, V)> {
        if self.entries.front().is_some_and(|(key, _)| key <= upto) { self.entries.pop_front() } else { None }
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + ExactSizeIterator {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + ExactSizeIterator {
        self.entries.iter().map(|(key, _)| key)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + ExactSizeIterator {
        self.entries.iter().map(|(_, value)| value)
    }

    /// The entries whose keys lie in `range`, in order; none if it is reversed.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        let place = |bound: Bound<&K>, past: bool| match bound {
            Bound::Unbounded => None,
            Bound::Included(key) => Some(self.find(key).map_or_else(|at| at, |at| if past { at + 1 } else { at })),
            Bound::Excluded(key) => Some(self.find(key).map_or_else(|at| at, |at| if past { at } else { at + 1 })),
        };
        let start = place(range.start_bound(), false).unwrap_or(0);
        let end = place(range.end_bound(), true).unwrap_or(self.entries.len());
        self.entries.range(start.min(end)..end).map(|(key, value)| (key, value))
    }

    /// Takes away, and returns, the entries from `key` on.
    #[must_use]
    pub fn split_off(&mut self, key: &K) -> Self {
        let at = self.find(key).unwrap_or_else(|at| at);
        Self { entries: self.entries.split_off(at) }
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

impl<K: Spaced, V> FromIterator<(K, V)> for Ordered<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<'a, K, V> IntoIterator for &'a Ordered<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = std::iter::Map<std::collections::vec_deque::Iter<'a, (K, V)>, fn(&(K, V)) -> (&K, &V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter().map(|(key, value)| (key, value))
    }
}

impl<K, V> IntoIterator for Ordered<K, V> {
    type Item = (K, V);
    type IntoIter = std::collections::vec_deque::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Act {
        Insert(u64, u8),
        Remove(u64),
        PopUpto(u64),
        SplitOff(u64),
        Look(u64, u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0..40_u64, any::<u8>()).prop_map(|(key, value)| Act::Insert(key, value)),
            3 => (0..40_u64).prop_map(Act::Remove),
            1 => (0..40_u64).prop_map(Act::PopUpto),
            1 => (0..40_u64).prop_map(Act::SplitOff),
            2 => (0..42_u64, 0..42_u64).prop_map(|(from, upto)| Act::Look(from, upto)),
        ]
    }

    proptest! {
        /// Whatever is done to it, it is what a `BTreeMap` is.
        #[test]
        fn it_is_a_map(acts in prop::collection::vec(act(), 0..200)) {
            let (mut map, mut model) = (Ordered::new(), BTreeMap::new());
            for act in acts {
                match act {
                    Act::Insert(key, value) => {
                        prop_assert_eq!(map.insert(Lsn(key), value), model.insert(Lsn(key), value));
                    }
                    Act::Remove(key) => prop_assert_eq!(map.remove(&Lsn(key)), model.remove(&Lsn(key))),
                    Act::PopUpto(upto) => {
                        let first = model.first_key_value().filter(|(key, _)| key.0 <= upto).map(|(key, _)| *key);
                        let expected = first.and_then(|key| model.remove_entry(&key));
                        prop_assert_eq!(map.pop_upto(&Lsn(upto)), expected);
                    }
                    Act::SplitOff(key) => {
                        let (kept, expected) = (map.split_off(&Lsn(key)), model.split_off(&Lsn(key)));
                        prop_assert!(kept.iter().eq(expected.iter()));
                    }
                    Act::Look(from, upto) => {
                        let (from, upto) = (Lsn(from), Lsn(upto));
                        prop_assert_eq!(map.get(&from), model.get(&from));
                        prop_assert_eq!(map.contains_key(&upto), model.contains_key(&upto));
                        let (low, high) = (from.min(upto), from.max(upto));
                        prop_assert!(map.range(low..high).eq(model.range(low..high)));
                        prop_assert!(map.range(low..=high).eq(model.range(low..=high)));
                        prop_assert!(map.range(from..).eq(model.range(from..)));
                        prop_assert!(map.range(..=upto).eq(model.range(..=upto)));
                        prop_assert_eq!(map.range(high.next()..low).count(), 0);
                    }
                }
                prop_assert_eq!((map.len(), map.first()), (model.len(), model.keys().next()));
                prop_assert!(map.iter().eq(model.iter()) && map.iter().rev().eq(model.iter().rev()));
            }
        }
    }
}
