//! Records that several keep: the log in memory, the disk's queue, the streams.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::{Body, Entry, Lsn, Places, Record};
use crate::ordered::Ordered;

/// Records that follow each other in the log, shared by whoever keeps them: a clone costs a count, not a copy. They are
/// in memory until nobody needs any of them.
#[derive(Clone, Default)]
pub struct Records {
    shared: Arc<Vec<Record>>,
    range: Range<usize>,
}

impl Records {
    /// A part of them.
    ///
    /// # Panics
    /// If `range` does not lie within.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} records", self.len());
        Self { shared: Arc::clone(&self.shared), range: self.range.start + range.start..self.range.start + range.end }
    }

    /// Those of a single owner, to be changed: where there are others, a copy.
    pub fn make_mut(&mut self) -> &mut [Record] {
        &mut Arc::make_mut(&mut self.shared)[self.range.clone()]
    }

    /// Leaves the first `length`.
    pub fn truncate(&mut self, length: usize) {
        self.range.end = self.range.end.min(self.range.start.saturating_add(length));
    }
}

impl Deref for Records {
    type Target = [Record];

    fn deref(&self) -> &[Record] {
        &self.shared[self.range.clone()]
    }
}

impl From<Vec<Record>> for Records {
    fn from(records: Vec<Record>) -> Self {
        Self { range: 0..records.len(), shared: Arc::new(records) }
    }
}

/// Without a copy where nobody else has them.
impl From<Records> for Vec<Record> {
    fn from(Records { shared, range }: Records) -> Self {
        let copy = |shared: Arc<Self>| shared[range.clone()].to_vec();
        Arc::try_unwrap(shared).map_or_else(copy, |mut records| {
            records.truncate(range.end);
            records.drain(..range.start);
            records
        })
    }
}

impl IntoIterator for Records {
    type Item = Record;
    type IntoIter = std::vec::IntoIter<Record>;

    fn into_iter(self) -> Self::IntoIter {
        Vec::from(self).into_iter()
    }
}

impl FromIterator<Record> for Records {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        records.into_iter().collect::<Vec<_>>().into()
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = &'a Record;
    type IntoIter = std::slice::Iter<'a, Record>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Records {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Records {}

impl Hash for Records {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The commands among records, for the state machine.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Commands(Vec<Records>);

impl Commands {
    /// Those among `records`, in the order given.
    pub fn of(records: impl IntoIterator<Item = Records>) -> Self {
        let mut runs: Vec<Records> = records.into_iter().collect();
        runs.retain(|run| run.iter().any(is_command));
        Self(runs)
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> + Clone {
        self.0.iter().flat_map(|run| run.iter()).filter(|record| is_command(record)).map(|record| &record.entry)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Commands> for Vec<Entry> {
    fn from(commands: Commands) -> Self {
        commands.iter().cloned().collect()
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn is_command(record: &Record) -> bool {
    record.entry.header.body == Body::Command
}

/// A run that has fewer records is joined with those after it when it is read.
const SMALL: usize = 64;

/// The last part of a log, in memory: dense, in the runs it came in.
#[derive(Clone, Debug)]
pub struct Tail {
    /// With the LSN of the first of each. None is empty.
    runs: VecDeque<(Lsn, Records)>,
    first: Lsn,
    next: Lsn,
    bytes: u64,
}

impl Tail {
    /// Empty, with `next` the LSN that the first record pushed will have.
    pub fn new(next: Lsn) -> Self {
        Self { runs: VecDeque::new(), first: next, next, bytes: 0 }
    }

    /// The LSN the next record must have.
    pub fn next(&self) -> Lsn {
        self.next
    }

    /// The LSN of the first record kept (or of the next, when empty).
    pub fn first(&self) -> Lsn {
        self.first
    }

    /// What is kept, in bytes by [`Record::cost`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many records are kept.
    pub fn len(&self) -> usize {
        usize::try_from(self.next.0 - self.first.0).unwrap_or(usize::MAX)
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Appends the next records.
    ///
    /// # Panics
    /// If their LSNs are not the next ones (I1: the caller numbered, or checked, them).
    pub fn push(&mut self, records: Records) {
        let start = self.next;
        for record in &records {
            assert_eq!(record.lsn(), self.next, "I1: the log is dense");
            self.bytes += record.cost();
            self.next = self.next.next();
        }
        if self.next > start {
            self.runs.push_back((start, records));
        }
    }

    /// The run that may have this LSN.
    fn run(&self, lsn: Lsn) -> Option<&(Lsn, Records)> {
        // Nearly always it is the last.
        self.runs.back().filter(|(first, _)| *first <= lsn).or_else(|| {
            let after = self.runs.partition_point(|(first, _)| *first <= lsn);
            self.runs.get(after.checked_sub(1)?)
        })
    }

    /// The record at `lsn`, if kept.
    pub fn get(&self, lsn: Lsn) -> Option<&Record> {
        let (first, records) = self.run(lsn)?;
        records.get(usize::try_from(lsn.0 - first.0).ok()?)
    }

    /// The records kept, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.runs.iter().flat_map(|(_, records)| records.iter())
    }

    /// Kept records that follow each other, from `from` on, up to about `bytes_max` and so many (at least one if it is
    /// kept). There may be more behind them: a run of some size is shared, and not joined with others.
    pub fn read(&self, from: Lsn, bytes_max: u64, count: usize) -> Records {
        let Some((first, records)) = self.run(from) else {
            return Records::default();
        };
        let start = usize::try_from(from.0 - first.0).unwrap_or(usize::MAX).min(records.len());
        let mut left = bytes_max;
        let mut end = start;
        for record in records[start..].iter().take(count) {
            if end > start && record.cost() > left {
                break;
            }
            left = left.saturating_sub(record.cost());
            end += 1;
        }
        let slice = records.slice(start..end);
        let more = end == records.len() && left > 0 && slice.len() < count.min(SMALL);
        let next = Lsn(from.0 + slice.len() as u64);
        if !more || slice.is_empty() || next >= self.next {
            return slice;
        }
        // What came one by one should not be sent on one by one.
        let after = self.runs.partition_point(|(first, _)| *first < next);
        let mut joined = slice.to_vec();
        for record in self.runs.range(after..).flat_map(|(_, records)| records.iter()).take(count - slice.len()) {
            if record.cost() > left {
                break;
            }
            left -= record.cost();
            joined.push(record.clone());
        }
        joined.into()
    }

    /// Forgets every record up to and including `upto`.
    pub fn release(&mut self, upto: Lsn) {
        while let Some((first, records)) = self.runs.front_mut().filter(|(first, _)| *first <= upto) {
            let gone = usize::try_from(upto.0 - first.0).map_or(usize::MAX, |gone| gone.saturating_add(1));
            let gone = gone.min(records.len());
            self.bytes -= cost(&records[..gone]);
            self.first = Lsn(first.0 + gone as u64);
            if gone == records.len() {
                self.runs.pop_front();
            } else {
                *first = self.first;
                *records = records.slice(gone..records.len());
            }
        }
    }

    /// Forgets every record after `last`.
    pub fn truncate_after(&mut self, last: Lsn) {
        while let Some((first, records)) = self.runs.back_mut() {
            let kept = usize::try_from(last.next().0.saturating_sub(first.0)).unwrap_or(usize::MAX).min(records.len());
            self.bytes -= cost(&records[kept..]);
            self.next = Lsn(first.0 + kept as u64);
            records.truncate(kept);
            if kept > 0 {
                return;
            }
            self.runs.pop_back();
        }
    }
}

fn cost(records: &[Record]) -> u64 {
    records.iter().map(Record::cost).sum()
}

/// By what is kept, however it came.
impl PartialEq for Tail {
    fn eq(&self, other: &Self) -> bool {
        (self.first, self.next) == (other.first, other.next) && self.iter().eq(other.iter())
    }
}

impl Eq for Tail {}

impl Hash for Tail {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.first, self.next).hash(state);
        self.iter().for_each(|record| record.hash(state));
    }
}

/// The entries in `(stable, head]` that a primary keeps in memory, with who confirmed them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unstable {
    tail: Tail,
    unconfirmed: Ordered<Lsn, ()>,
    /// Of those that were ordered in this reign, and by this process, in order.
    places: VecDeque<Places>,
}

impl Deref for Unstable {
    type Target = Tail;

    fn deref(&self) -> &Tail {
        &self.tail
    }
}

impl Unstable {
    /// Empty, with `next` the LSN that the first record pushed will have.
    pub fn new(next: Lsn) -> Self {
        Self { tail: Tail::new(next), unconfirmed: Ordered::new(), places: VecDeque::new() }
    }

    /// Appends the next records, as yet unconfirmed, and what manifests say of them.
    ///
    /// # Panics
    /// If their LSNs are not the next ones (I1: the caller numbered them).
    pub fn push(&mut self, records: Records, places: Vec<Places>) {
        for record in &records {
            self.unconfirmed.insert(record.lsn(), ());
        }
        self.tail.push(records);
        self.places.extend(places);
    }

    /// The places that tell of `lsn`. What has none is told of by its header.
    pub fn places(&self, lsn: Lsn) -> Option<&Places> {
        let after = self.places.partition_point(|places| places.first <= lsn);
        self.places.get(after.checked_sub(1)?).filter(|places| lsn <= places.last())
    }

    /// The origin of `lsn` holds its tag: manifests need not name it.
    pub fn confirm(&mut self, lsn: Lsn) {
        self.unconfirmed.remove(&lsn);
    }

    /// Whether `lsn` is kept and nobody confirmed it yet.
    pub fn is_unconfirmed(&self, lsn: Lsn) -> bool {
        self.unconfirmed.contains_key(&lsn)
    }

    /// The kept, unconfirmed LSNs in `(after, upto]`, in order.
    pub fn unconfirmed_in(&self, after: Lsn, upto: Lsn) -> impl Iterator<Item = Lsn> + '_ {
        let range = after.next()..upto.next().max(after.next());
        self.unconfirmed.range(range).map(|(lsn, ())| *lsn)
    }

    /// Forgets every record up to and including `upto`.
    pub fn release(&mut self, upto: Lsn) {
        self.tail.release(upto);
        while self.places.front().is_some_and(|places| places.last() <= upto) {
            self.places.pop_front();
        }
        while self.unconfirmed.pop_upto(&upto).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn record(lsn: u64) -> Record {
        let mut record = Record::noop(Lsn(lsn));
        record.entry.payload = Bytes::from(vec![0; usize::try_from(lsn % 7).expect("small")]);
        record
    }

    proptest! {
        /// In whatever runs it comes and goes, it is the list of its records.
        #[test]
        fn a_tail_is_a_list(acts in prop::collection::vec((0..3_u8, 0..9_u64), 0..60)) {
            let (mut tail, mut model) = (Tail::new(Lsn(5)), VecDeque::new());
            let (mut first, mut next) = (5, 5);
            for (act, by) in acts {
                match act {
                    0 => {
                        let records: Records = (next..next + by).map(record).collect();
                        model.extend(records.iter().cloned());
                        tail.push(records);
                        next += by;
                    }
                    1 => {
                        let upto = (first + by).min(next) - 1;
                        tail.release(Lsn(upto));
                        model.retain(|record| record.lsn() > Lsn(upto));
                        first = first.max(upto + 1);
                    }
                    _ => {
                        next = next.saturating_sub(by).max(first);
                        tail.truncate_after(Lsn(next - 1));
                        model.retain(|record| record.lsn() < Lsn(next));
                    }
                }
                prop_assert_eq!((tail.first(), tail.next(), tail.len()), (Lsn(first), Lsn(next), model.len()));
                prop_assert!(tail.iter().eq(&model) && tail.is_empty() == model.is_empty());
                prop_assert_eq!(tail.bytes(), model.iter().map(Record::cost).sum::<u64>());
                for lsn in first.saturating_sub(2)..next + 2 {
                    let known = model.iter().position(|record| record.lsn() == Lsn(lsn));
                    prop_assert_eq!(tail.get(Lsn(lsn)), known.map(|at| &model[at]));
                    let read = tail.read(Lsn(lsn), 300, 4);
                    prop_assert_eq!(!read.is_empty(), known.is_some());
                    prop_assert!(read.iter().eq(model.iter().skip(known.unwrap_or(0)).take(read.len())));
                    prop_assert!(read.len() <= 2, "no more than there is room for");
                    let all = model.len() - known.unwrap_or(model.len());
                    prop_assert_eq!(tail.read(Lsn(lsn), u64::MAX, 4).len(), all.min(4), "small runs are joined");
                }
            }
        }
    }
}
