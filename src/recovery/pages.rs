//! A map by number, of LSNs and of requests: dense in most places, as a delta is, and of any number at all, as a report may
//! tell. A tree of pages, so that whoever chooses the numbers, and their order, cannot make it slow.

use std::collections::BTreeMap;

/// Places of a page. A forged number far from all others costs a page.
const PLACES: usize = 16;

/// The map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pages<V> {
    /// None is empty.
    pages: BTreeMap<u64, Box<[Option<V>; PLACES]>>,
    count: usize,
}

impl<V> Default for Pages<V> {
    fn default() -> Self {
        Self { pages: BTreeMap::new(), count: 0 }
    }
}

/// The page of a number, and its place there.
#[expect(clippy::cast_possible_truncation, reason = "it is less than PLACES")]
fn place(number: u64) -> (u64, usize) {
    (number / PLACES as u64, (number % PLACES as u64) as usize)
}

impl<V> Pages<V> {
    /// How many numbers have a value.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, number: u64) -> Option<&V> {
        let (page, at) = place(number);
        self.pages.get(&page)?[at].as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        let (page, at) = place(number);
        self.pages.get_mut(&page)?[at].as_mut()
    }

    /// The place of a number, on a page that is made if it is missing: it has to be filled.
    fn slot(&mut self, number: u64) -> &mut Option<V> {
        let (page, at) = place(number);
        let page = self.pages.entry(page).or_insert_with(|| Box::new([const { None }; PLACES]));
        self.count += usize::from(page[at].is_none());
        &mut page[at]
    }

    /// The value there, which is the default if there was none.
    pub(super) fn or_default(&mut self, number: u64) -> &mut V
    where
        V: Default,
    {
        self.slot(number).get_or_insert_default()
    }

    /// Sets the value there; returns the one before.
    pub(super) fn insert(&mut self, number: u64, value: V) -> Option<V> {
        self.slot(number).replace(value)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<V> {
        let (page, at) = place(number);
        let places = self.pages.get_mut(&page)?;
        let value = places[at].take()?;
        self.count -= 1;
        if places.iter().all(Option::is_none) {
            self.pages.remove(&page);
        }
        Some(value)
    }

    /// Those from `first` on, in order.
    pub(super) fn from(&self, first: u64) -> impl Iterator<Item = (u64, &V)> {
        let pages = self.pages.range(place(first).0..);
        let all = pages.flat_map(|(page, values)| {
            values.iter().enumerate().map(move |(at, value)| (page * PLACES as u64 + at as u64, value))
        });
        all.filter_map(|(number, value)| Some((number, value.as_ref()?))).skip_while(move |(number, _)| *number < first)
    }

    /// The first number that has a value.
    pub(super) fn first(&self) -> Option<u64> {
        self.from(0).next().map(|(number, _)| number)
    }

    /// The last number that has a value.
    pub(super) fn last(&self) -> Option<u64> {
        let (page, values) = self.pages.last_key_value()?;
        let at = values.iter().rposition(Option::is_some)?;
        Some(page * PLACES as u64 + at as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![8 => 0..100_u64, 1 => (u64::MAX - 40)..=u64::MAX, 1 => any::<u64>()]
    }

    proptest! {
        /// Whatever is done to it, it is what a `BTreeMap` is.
        #[test]
        fn it_is_a_map(acts in prop::collection::vec((number(), any::<Option<u8>>(), any::<bool>(), number()), 0..200)) {
            let (mut map, mut model) = (Pages::default(), BTreeMap::new());
            for (number, value, whole, from) in acts {
                match value {
                    Some(value) if whole => prop_assert_eq!(map.insert(number, value), model.insert(number, value)),
                    Some(value) => {
                        *map.or_default(number) = value;
                        model.insert(number, value);
                    }
                    None => prop_assert_eq!(map.remove(number), model.remove(&number)),
                }
                prop_assert_eq!(map.get(number), model.get(&number));
                prop_assert_eq!(map.get_mut(from), model.get_mut(&from));
                prop_assert!(map.from(from).eq(model.range(from..).map(|(number, value)| (*number, value))));
                let ends = (model.keys().next().copied(), model.keys().next_back().copied());
                prop_assert_eq!((map.len(), (map.first(), map.last())), (model.len(), ends));
            }
        }
    }
}
