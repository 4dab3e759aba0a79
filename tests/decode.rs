//! The decoder of shares gives back exactly what its equations determine, byte for byte.
//!
//! What they determine is said by an oracle that is slow and simple: a dense matrix with all equations that were taken
//! in, where column *j* is determined if the unit vector *e_j* does not add to the rank.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tagalong::Code;
use tagalong::share::decode::{Decoder, Inserted};
use tagalong::share::field;

/// Products by long multiplication and division: nothing of the library's arithmetic.
static PRODUCTS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let product = |a: u32, b: u32| {
        let mut long = (0..8).filter(|bit| b >> bit & 1 == 1).fold(0, |sum, bit| sum ^ (a << bit));
        for bit in (8..15).rev() {
            if long >> bit & 1 == 1 {
                long ^= 0x11D << (bit - 8);
            }
        }
        u8::try_from(long).unwrap()
    };
    (0..256).flat_map(|a| (0..256).map(move |b| product(a, b))).collect()
});

fn times(a: u8, b: u8) -> u8 {
    PRODUCTS[usize::from(a) * 256 + usize::from(b)]
}

fn inverse(a: u8) -> u8 {
    (1..=255).find(|&b| times(a, b) == 1).unwrap()
}

/// `y += c · x`.
fn add(y: &mut [u8], c: u8, x: &[u8]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y ^= times(c, *x);
    }
}

/// Brings a matrix into reduced echelon form by its first `columns` columns, and returns their rank.
fn eliminate(matrix: &mut [Vec<u8>], columns: usize) -> usize {
    let mut rank = 0;
    for column in 0..columns {
        let Some(found) = (rank..matrix.len()).find(|&row| matrix[row][column] != 0) else { continue };
        matrix.swap(rank, found);
        let scale = inverse(matrix[rank][column]);
        matrix[rank].iter_mut().for_each(|byte| *byte = times(scale, *byte));
        let pivot = matrix[rank].clone();
        for (row, other) in matrix.iter_mut().enumerate() {
            if row != rank {
                let c = other[column];
                add(other, c, &pivot);
            }
        }
        rank += 1;
    }
    rank
}

fn rank(mut matrix: Vec<Vec<u8>>) -> usize {
    let columns = matrix.first().map_or(0, Vec::len);
    eliminate(&mut matrix, columns)
}

/// A row as everybody means it: a coefficient for each column, and a payload.
type Dense = (Vec<u8>, Vec<u8>);

struct Oracle {
    columns: usize,
    /// As long as the longest payload.
    length: usize,
    rows: Vec<Dense>,
    known: BTreeMap<usize, Vec<u8>>,
}

impl Oracle {
    fn new(columns: usize, length: usize) -> Self {
        Self { columns, length, rows: Vec::new(), known: BTreeMap::new() }
    }

    /// Coefficients and payload in one, without what is known.
    fn open(&self, (coefficients, payload): &Dense) -> Vec<u8> {
        let mut row = coefficients.clone();
        row.extend(payload);
        row.resize(self.columns + self.length, 0);
        for (&column, value) in &self.known {
            let c = std::mem::take(&mut row[column]);
            add(&mut row[self.columns..], c, value);
        }
        row
    }

    fn coefficients(&self) -> Vec<Vec<u8>> {
        self.rows.iter().map(|row| self.open(row)[..self.columns].to_vec()).collect()
    }

    fn verdict(&self, row: &Dense) -> Inserted {
        let with = |mut matrix: Vec<Vec<u8>>, row: Vec<u8>| {
            matrix.push(row);
            rank(matrix)
        };
        let whole: Vec<_> = self.rows.iter().map(|row| self.open(row)).collect();
        let row = self.open(row);
        if with(self.coefficients(), row[..self.columns].to_vec()) > rank(self.coefficients()) {
            Inserted::Useful
        } else if with(whole.clone(), row) > rank(whole) {
            Inserted::Inconsistent
        } else {
            Inserted::Redundant
        }
    }

    fn determined(&self) -> BTreeSet<usize> {
        let all = rank(self.coefficients());
        let unit = |column| (0..self.columns).map(|other| u8::from(other == column)).collect::<Vec<u8>>();
        let is = |&column: &usize| {
            let mut matrix = self.coefficients();
            matrix.push(unit(column));
            !self.known.contains_key(&column) && rank(matrix) == all
        };
        (0..self.columns).filter(is).collect()
    }

    /// The columns that rows have and do not determine.
    fn undetermined(&self) -> BTreeSet<usize> {
        let determined = self.determined();
        let coefficients = self.coefficients();
        let had = |column: usize| coefficients.iter().any(|row| row[column] != 0);
        (0..self.columns).filter(|&column| had(column) && !determined.contains(&column)).collect()
    }

    /// What the rows say about a column that they determine.
    fn value(&self, column: usize) -> Vec<u8> {
        let mut matrix: Vec<_> = self.rows.iter().map(|row| self.open(row)).collect();
        eliminate(&mut matrix, self.columns);
        let alone = |row: &&Vec<u8>| (0..self.columns).all(|other| row[other] == u8::from(other == column));
        matrix.iter().find(alone).unwrap()[self.columns..].to_vec()
    }
}

/// A column's name: a place in the log, and a segment there.
type Key = (u64, u32);

fn key(column: usize) -> Key {
    (column as u64 / 2 * 7, u32::from(column % 2 == 1))
}

fn column(key: Key) -> usize {
    usize::try_from(key.0 / 7 * 2).unwrap() + usize::from(key.1 == 1)
}

/// What a term list means.
fn dense(columns: usize, terms: &[(usize, u8)]) -> Vec<u8> {
    let mut coefficients = vec![0; columns];
    for &(column, coefficient) in terms {
        coefficients[column] ^= coefficient;
    }
    coefficients
}

/// The payload that an honest encoder makes: as long as the longest of the columns listed.
fn encode(values: &[Vec<u8>], terms: &[(usize, u8)]) -> Vec<u8> {
    let length = terms.iter().map(|&(column, _)| values[column].len()).max().unwrap_or(0);
    let mut payload = vec![0; length];
    for &(column, coefficient) in terms {
        add(&mut payload, coefficient, &values[column]);
    }
    payload
}

fn same_but_for_zeros(a: &[u8], b: &[u8]) -> bool {
    let short = a.len().min(b.len());
    a[..short] == b[..short] && a[short..].iter().chain(&b[short..]).all(|&byte| byte == 0)
}

/// A decoder, and the oracle that watches it.
struct Watched {
    decoder: Decoder<Key>,
    budget: u64,
    oracle: Oracle,
    taken: BTreeMap<usize, Bytes>,
    /// Known by being told, when rows determined them already.
    late: BTreeSet<usize>,
    refused: usize,
}

impl Watched {
    fn new(columns: usize, length: usize, budget: u64) -> Self {
        let oracle = Oracle::new(columns, length);
        let (taken, late) = Default::default();
        Self { decoder: Decoder::new(budget), budget, oracle, taken, late, refused: 0 }
    }

    fn insert(&mut self, terms: &[(usize, u8)], payload: &[u8]) -> Option<Inserted> {
        let named: Vec<_> = terms.iter().map(|&(column, coefficient)| (key(column), coefficient)).collect();
        let row = (dense(self.oracle.columns, terms), payload.to_vec());
        let expected = self.oracle.verdict(&row);
        let before = self.decoder.clone();
        match self.decoder.insert(&named, payload) {
            Ok(inserted) => {
                assert_eq!(inserted, expected, "{terms:?}");
                if inserted == Inserted::Useful {
                    self.oracle.rows.push(row);
                }
                let contradicts = u64::from(inserted == Inserted::Inconsistent);
                assert_eq!(self.decoder.contradictions(), before.contradictions() + contradicts);
                self.check_bytes();
                Some(inserted)
            }
            Err(error) => {
                assert_eq!((error.code(), expected), (Code::TooLarge, Inserted::Useful), "{error}");
                assert!(self.decoder == before, "a refused row left something behind");
                self.refused += 1;
                None
            }
        }
    }

    fn know(&mut self, column: usize, value: &[u8]) {
        let before = self.decoder.clone();
        match self.decoder.know(key(column), Bytes::copy_from_slice(value)) {
            Ok(()) => {
                if self.oracle.determined().contains(&column) {
                    self.late.insert(column);
                }
                self.oracle.known.insert(column, value.to_vec());
                self.check_bytes();
            }
            Err(error) => {
                assert_eq!(error.code(), Code::TooLarge);
                assert!(self.decoder == before, "a refused value left something behind");
                self.refused += 1;
            }
        }
    }

    fn check_bytes(&self) {
        assert!(self.decoder.bytes() <= self.budget, "{} of {}", self.decoder.bytes(), self.budget);
    }

    /// Exactly what is determined has been taken after this, with the right values.
    fn take(&mut self) {
        let determined = self.oracle.determined();
        for (key, value) in self.decoder.take_solved() {
            let column = column(key);
            assert!(determined.contains(&column) || self.late.contains(&column), "{column} is not determined");
            let truth = match self.oracle.known.get(&column) {
                Some(value) => value.clone(),
                None => self.oracle.value(column),
            };
            assert!(same_but_for_zeros(&value, &truth), "{column}: {value:?} instead of {truth:?}");
            assert!(self.taken.insert(column, value).is_none(), "{column} came twice");
        }
        let missing: Vec<_> = determined.iter().filter(|column| !self.taken.contains_key(column)).collect();
        assert!(missing.is_empty(), "determined, but not solved: {missing:?}");
        let unsolved: Vec<_> = self.decoder.unsolved().map(column).collect();
        assert_eq!(unsolved, Vec::from_iter(self.oracle.undetermined()));
        self.check_bytes();
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A row, and how much longer its payload is than it has to be.
    Row(Vec<(usize, u8)>, usize),
    /// A row of before, once more.
    Again(usize),
    /// A combination of rows of before.
    Mix(Vec<(usize, u8)>),
    Know(usize),
    Take,
}

/// Few different coefficients make many dependent rows.
fn coefficient() -> impl Strategy<Value = u8> {
    prop_oneof![0..3u8, any::<u8>()]
}

fn event(columns: usize) -> impl Strategy<Value = Event> {
    let anywhere = vec((0..columns, coefficient()), 0..5);
    let window = (0..columns, vec(coefficient(), 0..6))
        .prop_map(move |(first, row)| (first..columns).zip(row).collect::<Vec<_>>());
    prop_oneof![
        4 => (anywhere, 0..3usize).prop_map(|(terms, longer)| Event::Row(terms, longer)),
        4 => (window, 0..3usize).prop_map(|(terms, longer)| Event::Row(terms, longer)),
        1 => any::<usize>().prop_map(Event::Again),
        1 => vec((any::<usize>(), coefficient()), 0..4).prop_map(Event::Mix),
        1 => (0..columns).prop_map(Event::Know),
        1 => Just(Event::Take),
    ]
}

/// Values of columns, and what happens.
fn history(length: impl Strategy<Value = usize> + Clone) -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Event>)> {
    let value = length.prop_flat_map(|length| vec(any::<u8>(), length));
    vec(value, 1..12).prop_flat_map(|values| {
        let events = vec(event(values.len()), 0..40);
        (Just(values), events)
    })
}

/// A row as it comes in: terms and payload.
type Row = (Vec<(usize, u8)>, Vec<u8>);

/// The row of an event.
fn row_of(event: &Event, values: &[Vec<u8>], rows: &[Row]) -> Option<Row> {
    match event {
        Event::Row(terms, longer) => {
            let mut payload = encode(values, terms);
            payload.resize(payload.len() + longer, 0);
            Some((terms.clone(), payload))
        }
        Event::Again(number) => rows.get(number.checked_rem(rows.len())?).cloned(),
        Event::Mix(parts) => {
            let (mut terms, mut payload) = (Vec::new(), Vec::new());
            for &(number, c) in parts {
                let (more, other) = rows.get(number.checked_rem(rows.len())?)?;
                terms.extend(more.iter().map(|&(column, coefficient)| (column, times(c, coefficient))));
                payload.resize(payload.len().max(other.len()), 0);
                add(&mut payload, c, other);
            }
            Some((terms, payload))
        }
        Event::Know(_) | Event::Take => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Columns and rows of all lengths, values that become known at any time, a budget that may not suffice.
    #[test]
    fn it_solves_what_is_determined(
        (values, events) in history(0..12usize),
        budget in prop_oneof![2 => Just(u64::MAX), 1 => 0..6000u64],
    ) {
        let mut watched = Watched::new(values.len(), 16, budget);
        let mut rows = Vec::new();
        for event in &events {
            match event {
                Event::Know(column) => watched.know(*column, &values[*column]),
                Event::Take => watched.take(),
                _ => if let Some((terms, payload)) = row_of(event, &values, &rows) {
                    prop_assert_ne!(watched.insert(&terms, &payload), Some(Inserted::Inconsistent));
                    rows.push((terms, payload));
                }
            }
        }
        watched.take();
        prop_assert!(budget < u64::MAX || watched.refused == 0);
        for (column, value) in watched.taken {
            prop_assert!(same_but_for_zeros(&value, &values[column]), "{}: {:?}", column, value);
            prop_assert!(value.len() >= values[column].len(), "{} is not padded: {:?}", column, value);
        }
    }

    /// Some rows are forged. The first of those that contradict each other stands, and nothing else comes of it.
    #[test]
    fn it_finds_what_contradicts(
        (values, events) in history(Just(4)),
        known in vec(any::<bool>(), 12),
        forged in vec((any::<prop::sample::Index>(), 0..4usize, 1..=255u8), 0..4),
    ) {
        let mut watched = Watched::new(values.len(), 4, u64::MAX);
        for (column, value) in values.iter().enumerate().filter(|&(column, _)| known[column]) {
            watched.know(column, value);
        }
        let mut rows = Vec::new();
        for (number, event) in events.iter().enumerate() {
            let Some((terms, mut payload)) = row_of(event, &values, &rows) else {
                watched.take();
                continue;
            };
            payload.resize(4, 0);
            rows.push((terms.clone(), payload.clone()));
            for (which, at, flip) in &forged {
                if which.index(events.len()) == number {
                    payload[*at] ^= flip;
                }
            }
            watched.insert(&terms, &payload);
        }
        watched.take();
    }

    /// Whatever comes in, in whatever order: verdicts or errors, and never more than the budget.
    #[test]
    fn garbage_does_no_harm(
        budget in prop_oneof![Just(0), 0..5000u64, Just(u64::MAX)],
        events in vec((vec((any::<u8>(), any::<u8>()), 0..12), vec(any::<u8>(), 0..20), 0..4u8), 0..60),
    ) {
        let mut decoder = Decoder::new(budget);
        let (mut solved, mut contradictions) = (BTreeSet::new(), 0);
        for (terms, bytes, action) in events {
            let terms: Vec<_> = terms.into_iter().map(|(key, coefficient)| (key % 16, coefficient)).collect();
            match (action, terms.first()) {
                (0, Some(&(key, _))) => { let _ = decoder.know(key, bytes.into()); }
                (1, _) => for (key, _) in decoder.take_solved() {
                    prop_assert!(solved.insert(key), "{} came twice", key);
                },
                _ => if decoder.insert(&terms, &bytes) == Ok(Inserted::Inconsistent) {
                    contradictions += 1;
                }
            }
            prop_assert!(decoder.bytes() <= budget);
            prop_assert!(decoder.contradictions() >= contradictions);
        }
        solved.extend(decoder.take_solved().into_iter().map(|(key, _)| key));
        prop_assert!(decoder.unsolved().all(|key| !solved.contains(&key)));
    }
}

/// The subsets of `0..n` that have up to three elements.
fn small_subsets(n: u8) -> Vec<Vec<u8>> {
    let sets = (0..1u32 << n).filter(|set| set.count_ones() <= 3);
    sets.map(|set| (0..n).filter(|bit| set >> bit & 1 == 1).collect()).collect()
}

#[test]
fn any_rows_of_a_stripe_bring_back_as_many_members() {
    for k in 1..=12u8 {
        let values: Vec<Vec<u8>> = (0..k).map(|x| vec![x.wrapping_mul(77) ^ 0x5A; 3 + usize::from(x % 3)]).collect();
        for lost in small_subsets(k) {
            for rows in small_subsets(3).into_iter().filter(|rows| rows.len() == lost.len()) {
                let mut decoder = Decoder::new(u64::MAX);
                for x in (0..k).filter(|x| !lost.contains(x)) {
                    decoder.know(usize::from(x), Bytes::copy_from_slice(&values[usize::from(x)])).unwrap();
                }
                for &j in &rows {
                    let terms: Vec<_> = (0..k).map(|x| (usize::from(x), field::cauchy(x, j))).collect();
                    assert_eq!(decoder.insert(&terms, &encode(&values, &terms)).unwrap(), Inserted::Useful);
                }
                let mut solved = decoder.take_solved();
                solved.sort();
                assert_eq!(solved.len(), lost.len(), "{lost:?} of {k} by {rows:?}");
                for (x, (column, value)) in lost.iter().zip(solved) {
                    assert_eq!(column, usize::from(*x), "{lost:?} of {k} by {rows:?}");
                    assert!(same_but_for_zeros(&value, &values[column]), "{lost:?} of {k} by {rows:?}");
                }
            }
        }
    }
}

#[test]
fn windows_in_any_order_are_solved_as_far_as_they_go() {
    const COLUMNS: usize = 96;
    let (mut solved, mut unsolved) = (0, 0);
    for seed in 0..12 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut dice = |below: usize| usize::try_from(rng.next_u64() % below as u64).unwrap();
        let mut byte = |_| u8::try_from(dice(256)).unwrap();
        let values: Vec<Vec<u8>> = (0..COLUMNS).map(|column| (0..column * 7 % 30).map(&mut byte).collect()).collect();
        // A row after every column, or after every second or third: the last do not suffice.
        let ends = (0..COLUMNS).step_by(1 + usize::try_from(seed).unwrap() % 3);
        let mut windows: Vec<Vec<(usize, u8)>> =
            ends.map(|end| (end.saturating_sub(9)..=end).map(|column| (column, byte(column) | 1)).collect()).collect();
        for place in 1..windows.len() {
            windows.swap(place, dice(place + 1));
        }
        let mut watched = Watched::new(COLUMNS, 30, u64::MAX);
        for (column, value) in values.iter().enumerate() {
            if dice(10) >= 4 {
                watched.know(column, value);
            }
        }
        for (number, terms) in windows.iter().enumerate() {
            watched.insert(terms, &encode(&values, terms)).unwrap();
            if number % 30 == 0 {
                watched.take();
            }
        }
        watched.take();
        for (&column, value) in &watched.taken {
            assert!(same_but_for_zeros(value, &values[column]));
        }
        solved += watched.taken.len();
        unsolved += watched.decoder.unsolved().count();
    }
    assert!(solved > 200 && unsolved > 100, "{solved} solved, {unsolved} not: too simple a test");
}

#[test]
fn what_is_known_first_stands() {
    let mut decoder = Decoder::new(u64::MAX);
    decoder.know(1, Bytes::from_static(b"one\0")).unwrap();
    decoder.know(1, Bytes::from_static(b"one")).unwrap();
    assert_eq!(decoder.contradictions(), 0);
    decoder.know(1, Bytes::from_static(b"two")).unwrap();
    assert_eq!(decoder.contradictions(), 1);
    assert_eq!(decoder.insert(&[(1, 1), (2, 1)], &[b'o', b'n', b'e', 7]).unwrap(), Inserted::Useful);
    assert_eq!(decoder.take_solved(), [(2, Bytes::from_static(&[0, 0, 0, 7]))]);
    decoder.know(2, Bytes::from_static(&[8])).unwrap();
    assert_eq!(decoder.contradictions(), 2);
    assert_eq!(decoder.insert(&[(2, 1)], &[0, 0, 0, 7]).unwrap(), Inserted::Redundant);
}

#[test]
fn a_column_longer_than_a_row_that_has_it_contradicts() {
    let long = Bytes::from_static(&[1, 2, 3]);
    let mut decoder = Decoder::new(u64::MAX);
    decoder.know(1, long.clone()).unwrap();
    assert_eq!(decoder.insert(&[(1, 1), (2, 1)], &[1, 2]).unwrap(), Inserted::Inconsistent);
    assert_eq!(decoder.unsolved().count(), 0);

    // The same in the other order: as the first column of a row, and as a later one.
    for other in [0, 2] {
        let mut decoder = Decoder::new(u64::MAX);
        assert_eq!(decoder.insert(&[(1, 1), (other, 1)], &[1, 2]).unwrap(), Inserted::Useful);
        decoder.know(1, long.clone()).unwrap();
        assert_eq!(decoder.contradictions(), 1);
        assert_eq!(decoder.take_solved(), []);
        assert_eq!(decoder.unsolved().count(), 0);
    }

    // A column that is solved too long by way of a longer row.
    let mut decoder = Decoder::new(u64::MAX);
    assert_eq!(decoder.insert(&[(1, 1), (2, 1)], &[1, 2]).unwrap(), Inserted::Useful);
    assert_eq!(decoder.insert(&[(2, 1), (3, 1)], &[1, 2, 3]).unwrap(), Inserted::Useful);
    assert_eq!(decoder.insert(&[(3, 1)], &[1, 2]).unwrap(), Inserted::Useful);
    let solved: Vec<_> = decoder.take_solved().into_iter().map(|(key, _)| key).collect();
    assert_eq!((solved, decoder.contradictions()), (vec![3, 2], 1));

    // The same, by a longer row that is not solved itself; zeros are no contradiction, and are left out.
    for (end, solved, contradictions) in [(3, vec![], 1), (0, vec![(1, Bytes::from_static(&[0, 4]))], 0)] {
        let mut decoder = Decoder::new(u64::MAX);
        assert_eq!(decoder.insert(&[(1, 1), (2, 1), (3, 1)], &[1, 6]).unwrap(), Inserted::Useful);
        assert_eq!(decoder.insert(&[(2, 1), (3, 1)], &[1, 2, end]).unwrap(), Inserted::Useful);
        assert_eq!((decoder.take_solved(), decoder.contradictions()), (solved, contradictions));
        assert_eq!(decoder.unsolved().collect::<Vec<_>>(), [2, 3]);
    }
}

#[test]
fn solved_bytes_are_counted_and_rows_are_not_any_more() {
    let mut decoder = Decoder::new(u64::MAX);
    assert_eq!(decoder.bytes(), 0);
    decoder.insert(&[(1, 1), (2, 1)], &[1; 1000]).unwrap();
    let one = decoder.bytes();
    assert!((1000..2000).contains(&one), "{one}");
    decoder.insert(&[(1, 1), (2, 2)], &[2; 1000]).unwrap();
    let two = decoder.bytes();
    assert!(two > one + 1000, "{two}");
    assert_eq!(decoder.take_solved().len(), 2);
    assert!((2000..two).contains(&decoder.bytes()), "{}", decoder.bytes());

    // A budget of just that much takes the same, and no more.
    let mut tight = Decoder::new(two);
    tight.insert(&[(1, 1), (2, 1)], &[1; 1000]).unwrap();
    tight.insert(&[(1, 1), (2, 2)], &[2; 1000]).unwrap();
    let error = tight.insert(&[(3, 1)], &[3; 1000]).unwrap_err();
    assert_eq!(error.code(), Code::TooLarge);
    assert!(error.message().contains("raise"), "{error}");
    assert_eq!(tight.take_solved().len(), 2);

    // What is left does not depend on the way there, and columns count too.
    let mut direct = Decoder::new(u64::MAX);
    direct.insert(&[(1, 1)], &[1; 1000]).unwrap();
    direct.insert(&[(2, 1)], &[1; 1000]).unwrap();
    assert_eq!(direct.unsolved().count(), 0);
    assert_eq!(direct.bytes(), decoder.bytes());
    assert_eq!(direct.take_solved().len(), 2);
    let all = |step: u8| (10..1010).zip((0..7).map(|number| 1 + step * number).cycle()).collect::<Vec<_>>();
    direct.insert(&all(0), &[]).unwrap();
    let first = direct.bytes() - decoder.bytes();
    direct.insert(&all(1), &[]).unwrap();
    let second = direct.bytes() - decoder.bytes() - first;
    assert!(first > second + 50_000 && second > 20_000, "{first}, then {second}");
}

#[test]
fn a_value_whose_row_gets_too_large_is_refused() {
    // Without column 1 the short row has to go behind the long one, and gets as long.
    let short = |decoder: &mut Decoder<u8>| decoder.insert(&[(1, 1), (2, 1), (3, 1)], &[6; 10]);
    let long = |decoder: &mut Decoder<u8>| decoder.insert(&[(2, 1), (3, 2), (4, 1)], &[7; 5000]);
    let mut wide = Decoder::new(u64::MAX);
    short(&mut wide).unwrap();
    long(&mut wide).unwrap();

    let mut tight = Decoder::new(wide.bytes());
    short(&mut tight).unwrap();
    long(&mut tight).unwrap();
    let before = tight.clone();
    let error = tight.know(1, Bytes::from_static(&[5; 10])).unwrap_err();
    assert_eq!(error.code(), Code::TooLarge);
    assert!(tight == before, "a refused value left something behind");
    tight.know(3, Bytes::from_static(&[0; 10])).unwrap();
    assert_eq!(tight.unsolved().collect::<Vec<_>>(), [1, 2, 4]);

    wide.know(1, Bytes::from_static(&[5; 10])).unwrap();
    assert_eq!(wide.unsolved().collect::<Vec<_>>(), [2, 3, 4]);
    assert!(wide.bytes() > tight.bytes() + 4000);
}
