//! A map by LSN for what is dense in most places, as a delta is, and tells of any place at all, as a report may.

use crate::log::Lsn;
use crate::ordered::Ordered;

/// Places of a page. A forged LSN far from all others costs a page.
const PLACES: usize = 32;

/// The map: a look-up is one step where pages are dense.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pages<V> {
    /// None is empty.
    pages: Ordered<u64, Box<[Option<V>; PLACES]>>,
    count: usize,
}

impl<V> Default for Pages<V> {
    fn default() -> Self {
        Self { pages: Ordered::new(), count: 0 }
    }
}

/// The page of an LSN, and its place there.
fn place(lsn: Lsn) -> (u64, usize) {
    (lsn.0 / PLACES as u64, (lsn.0 % PLACES as u64) as usize)
}

impl<V> Pages<V> {
    /// How many LSNs have a value.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, lsn: Lsn) -> Option<&V> {
        let (page, at) = place(lsn);
        self.pages.get(&page)?[at].as_ref()
    }

    pub(super) fn get_mut(&mut self, lsn: Lsn) -> Option<&mut V> {
        let (page, at) = place(lsn);
        self.pages.get_mut(&page)?[at].as_mut()
    }

    /// The value there, which is the default if there was none.
    pub(super) fn or_default(&mut self, lsn: Lsn) -> &mut V
    where
        V: Default,
    {
        let (page, at) = place(lsn);
        if !self.pages.contains_key(&page) {
            self.pages.insert(page, Box::new([const { None }; PLACES]));
        }
        let page = self.pages.get_mut(&page).expect("it is there now");
        self.count += usize::from(page[at].is_none());
        page[at].get_or_insert_default()
    }

    pub(super) fn remove(&mut self, lsn: Lsn) {
        let (number, at) = place(lsn);
        let Some(page) = self.pages.get_mut(&number) else { return };
        self.count -= usize::from(page[at].take().is_some());
        if page.iter().all(Option::is_none) {
            self.pages.remove(&number);
        }
    }

    /// Those from `first` on, in order.
    pub(super) fn from(&self, first: Lsn) -> impl Iterator<Item = (Lsn, &V)> {
        let pages = self.pages.range(place(first).0..);
        let all = pages.flat_map(|(page, values)| {
            values.iter().enumerate().map(move |(at, value)| (Lsn(page * PLACES as u64 + at as u64), value))
        });
        all.filter_map(|(lsn, value)| Some((lsn, value.as_ref()?))).skip_while(move |(lsn, _)| *lsn < first)
    }

    /// The last LSN that has a value.
    pub(super) fn last(&self) -> Option<Lsn> {
        let (page, values) = self.pages.iter().next_back()?;
        let at = values.iter().rposition(Option::is_some)?;
        Some(Lsn(page * PLACES as u64 + at as u64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn lsn() -> impl Strategy<Value = Lsn> {
        prop_oneof![8 => 0..100_u64, 1 => (u64::MAX - 40)..=u64::MAX, 1 => any::<u64>()].prop_map(Lsn)
    }

    proptest! {
        /// Whatever is done to it, it is what a `BTreeMap` is.
        #[test]
        fn it_is_a_map(acts in prop::collection::vec((lsn(), any::<Option<u8>>(), lsn()), 0..200)) {
            let (mut map, mut model) = (Pages::default(), BTreeMap::new());
            for (lsn, value, from) in acts {
                match value {
                    Some(value) => {
                        *map.or_default(lsn) = value;
                        model.insert(lsn, value);
                    }
                    None => {
                        map.remove(lsn);
                        model.remove(&lsn);
                    }
                }
                prop_assert_eq!(map.get(lsn), model.get(&lsn));
                prop_assert_eq!(map.get_mut(from), model.get_mut(&from));
                prop_assert!(map.from(from).eq(model.range(from..).map(|(lsn, value)| (*lsn, value))));
                prop_assert_eq!((map.len(), map.last()), (model.len(), model.keys().next_back().copied()));
            }
        }
    }
}
