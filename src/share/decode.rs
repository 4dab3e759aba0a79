//! Solves the equations of shares: an online Gauss-Jordan elimination with a byte budget.
//! Arithmetic in GF(2⁸), polynomial 0x11D.
//!
//! A *column* is an unknown, a segment of an entry say; a *row* is one equation, Σ coefficient · column = payload.
//! [`Decoder`] takes rows and known columns in any order, keeps no row that says nothing new, and gives back exactly
//! the columns that the rows determine. There are three movements:
//!
//! * **Forward.** A row is reduced, from its lowest column on, by the rows that begin with the columns it has; what is
//!   left begins with a column that no other row begins with, its *pivot*. As the lowest column is the pivot, the rows
//!   of a sliding window stay as narrow as the window, whatever order they come in. Coefficients go first and decide
//!   everything; the payload follows once, into a buffer of its final size.
//! * **Look.** A column is determined if every solution of the homogeneous equations has zero there. So one solution
//!   is kept, a random one: four bytes a column, drawn where a column is free and computed where it is a pivot. What
//!   is not zero is not determined. What is zero is almost certainly determined, and then reduced to the end to know.
//! * **Back.** A column that is determined leaves the rows: it is known, and subtracted wherever it occurs.
//!
//! To look costs a walk over the rows. It is done when somebody asks for results, and when reducing rows by columns
//! that may be determined by now has cost as much.
//!
//! **Lengths.** A payload is as long as the longest member of its row, and shorter members are padded with zeros. So
//! a column has nothing but zeros beyond the end of any row that it is in, and a row where it has something else
//! contradicts. That is why no row grows by what becomes known.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::field::{self, add_scaled};
use crate::error::{Code, Error, Result};

/// What a row counts against the budget beside its payload, terms and columns, in bytes.
const ROW_COST: u64 = 128;

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inserted {
    /// It says something new and is kept.
    Useful,
    /// It follows from what is there already.
    Redundant,
    /// It contradicts what is there already, or its own length: one of them is forged or damaged. It was dropped.
    Inconsistent,
}

/// A term of a row that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Term<K> {
    key: K,
    /// The place of its column; [`NEW`] if no row that is kept has it.
    column: usize,
    /// Not zero.
    coefficient: u8,
}

/// No column's place.
const NEW: usize = usize::MAX;

/// A row that is kept, in the place of the column it begins with, whose coefficient is 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Row<K> {
    /// The terms after the first, by key; none of them known.
    rest: Vec<Term<K>>,
    payload: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State<K> {
    /// Its value, without the zeros at the end.
    Known(Bytes),
    /// No row begins with it.
    Free,
    /// The row that begins with it.
    Pivot(Row<K>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Column<K> {
    key: K,
    state: State<K>,
    /// The pivots whose rows have it further on.
    users: Vec<usize>,
    /// Its part of a random solution of the homogeneous equations, in four lanes.
    probe: [u8; 4],
}

/// A row on its way in: its coefficients are ahead of its payload.
struct Draft<K> {
    /// The terms that are not known, by key.
    terms: Vec<Term<K>>,
    /// What is to be added to the payload: multiples of known values and of other rows' payloads, by their columns.
    steps: Vec<(usize, u8)>,
    /// Of the payload, after the steps.
    length: usize,
}

/// Solves linear equations over GF(2⁸) as they come in. `K` names a column, and should be ordered so that columns
/// which occur together are near to each other.
///
/// Rows may come from peers: whatever they say, it is an [`Inserted`] or an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decoder<K> {
    bytes_max: u64,
    bytes: u64,
    /// The place of each column that was ever kept.
    index: BTreeMap<K, usize>,
    columns: Vec<Column<K>>,
    /// The columns that a row begins with.
    pivots: BTreeMap<K, usize>,
    solved: Vec<(K, Bytes)>,
    /// Pivots up to this one may be determined by now.
    stale: Option<K>,
    /// By how many rows others were reduced since it was last looked which are determined.
    debt: usize,
    contradictions: u64,
    draws: u64,
}

impl<K: Copy + Ord> Decoder<K> {
    /// A decoder without rows, which holds up to `bytes_max` bytes: see [`bytes`](Self::bytes).
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            index: BTreeMap::new(),
            columns: Vec::new(),
            pivots: BTreeMap::new(),
            solved: Vec::new(),
            stale: None,
            debt: 0,
            contradictions: 0,
            draws: 0,
        }
    }

    /// The value of `column` is known: it is subtracted from every row, now and later. Zeros at its end make no
    /// difference. What was known or solved first stands; another value is a contradiction, and so is each row that
    /// the value does not fit, which is dropped.
    ///
    /// The value is shared and not counted: it is the caller's.
    ///
    /// # Errors
    /// [`Code::TooLarge`] if the row that begins with `column` gets larger than the budget allows when it has to begin
    /// with another. Then nothing has changed: the column is still unknown.
    pub fn know(&mut self, column: K, value: Bytes) -> Result<()> {
        let value = trimmed(value);
        let Some(&id) = self.index.get(&column) else {
            self.add_column(column, State::Known(value));
            return Ok(());
        };
        match self.columns.get(id).map(|column| &column.state) {
            Some(State::Known(first)) => {
                if *first != value {
                    self.contradictions += 1;
                }
                return Ok(());
            }
            Some(State::Pivot(row)) if value.len() <= row.payload.len() => {
                let rest = Draft { terms: row.rest.clone(), steps: vec![(id, 1)], length: row.payload.len() };
                let reduced = self.reduce(rest);
                let freed = row_cost(row);
                if !reduced.terms.is_empty() {
                    self.afford(self.cost(&reduced).saturating_sub(freed))?;
                }
                let row = self.take_row(id);
                self.resolve(id, value);
                if let Some(row) = row {
                    self.admit(reduced, &row.payload)?;
                }
            }
            Some(State::Pivot(_)) => {
                self.drop_row(id);
                self.resolve(id, value);
            }
            Some(State::Free) | None => self.resolve(id, value),
        }
        self.stale = self.stale.max(Some(column));
        Ok(())
    }

    /// Takes in one equation: the sum of coefficient · column over all `terms` is `payload`, which is as long as the
    /// longest of the columns. Terms may come in any order; those of the same column are added up.
    ///
    /// # Errors
    /// [`Code::TooLarge`] if the row says something new and the budget has no room for it. Then nothing has changed,
    /// and rows that need no room are still taken in.
    pub fn insert(&mut self, terms: &[(K, u8)], payload: &[u8]) -> Result<Inserted> {
        let Some(draft) = self.draft(terms, payload.len()) else {
            return Ok(self.contradiction());
        };
        let known = draft.steps.len();
        let reduced = self.reduce(draft);
        let rows = reduced.steps.len().saturating_sub(known);
        let inserted = self.admit(reduced, payload)?;
        self.debt = self.debt.saturating_add(rows);
        if self.debt > self.pivots.len() {
            self.settle();
        }
        Ok(inserted)
    }

    /// The columns that were solved since the last call, each with its value, padded with zeros to the length of a row
    /// that it was in. They stay known. Call it once for a batch of rows: it walks over all rows that are kept.
    pub fn take_solved(&mut self) -> Vec<(K, Bytes)> {
        self.settle();
        std::mem::take(&mut self.solved)
    }

    /// The columns that rows have and do not determine, in order.
    pub fn unsolved(&mut self) -> impl Iterator<Item = K> {
        self.settle();
        let used = |column: &&Column<K>| match column.state {
            State::Known(_) => false,
            State::Pivot(_) => true,
            State::Free => !column.users.is_empty(),
        };
        self.index.values().filter_map(|&id| self.columns.get(id)).filter(used).map(|column| column.key)
    }

    /// What is held, in bytes: rows with their payloads, columns that rows brought in, and solved values, whether they
    /// were taken or not. Never more than the budget; a row on its way in is not counted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How often something was dropped because it contradicts: rows at once or later, and values.
    pub fn contradictions(&self) -> u64 {
        self.contradictions
    }

    /// Sorts the terms of a row: those that are known become steps. Nothing if one of them is longer than the row.
    fn draft(&self, terms: &[(K, u8)], length: usize) -> Option<Draft<K>> {
        let mut terms = terms.to_vec();
        terms.sort_unstable_by_key(|&(key, _)| key);
        terms.dedup_by(|again, first| {
            let same = again.0 == first.0;
            first.1 ^= if same { again.1 } else { 0 };
            same
        });
        let mut draft = Draft { terms: Vec::new(), steps: Vec::new(), length };
        for (key, coefficient) in terms.into_iter().filter(|&(_, coefficient)| coefficient != 0) {
            let column = self.index.get(&key).copied().unwrap_or(NEW);
            match self.columns.get(column).map(|column| &column.state) {
                Some(State::Known(value)) if value.len() > length => return None,
                Some(State::Known(_)) => draft.steps.push((column, coefficient)),
                Some(State::Free | State::Pivot(_)) | None => draft.terms.push(Term { key, column, coefficient }),
            }
        }
        Some(draft)
    }

    /// Reduces a row until no other begins with its first column.
    fn reduce(&self, mut draft: Draft<K>) -> Draft<K> {
        let mut sum = Vec::new();
        while let Some((first, rest)) = draft.terms.split_first()
            && let Some(row) = self.row(first.column)
        {
            draft.steps.push((first.column, first.coefficient));
            draft.length = draft.length.max(row.payload.len());
            add_terms(rest, first.coefficient, &row.rest, &mut sum);
            std::mem::swap(&mut draft.terms, &mut sum);
        }
        draft
    }

    /// Keeps a reduced row if it says something new and there is room.
    fn admit(&mut self, reduced: Draft<K>, payload: &[u8]) -> Result<Inserted> {
        let Some((&first, rest)) = reduced.terms.split_first() else {
            let left = self.combine(payload, 1, &reduced);
            return Ok(if left.iter().all(|&byte| byte == 0) { Inserted::Redundant } else { self.contradiction() });
        };
        let cost = self.cost(&reduced);
        self.afford(cost)?;
        self.bytes = self.bytes.saturating_add(cost);
        let factor = field::inv(first.coefficient);
        let payload = self.combine(payload, factor, &reduced);
        let pivot = self.place(&first);
        let mut terms = Vec::with_capacity(rest.len());
        for term in rest {
            let column = self.place(term);
            if let Some(column) = self.columns.get_mut(column) {
                column.users.push(pivot);
            }
            terms.push(Term { column, coefficient: field::mul(factor, term.coefficient), ..*term });
        }
        if let Some(column) = self.columns.get_mut(pivot) {
            column.state = State::Pivot(Row { rest: terms, payload });
        }
        self.pivots.insert(first.key, pivot);
        self.stale = self.stale.max(Some(first.key));
        Ok(Inserted::Useful)
    }

    /// `factor` times what is left of a payload after the steps.
    fn combine(&self, payload: &[u8], factor: u8, reduced: &Draft<K>) -> Vec<u8> {
        let mut sum = vec![0; reduced.length];
        add_padded(&mut sum, factor, payload);
        self.follow(&reduced.steps, factor, &mut sum);
        sum
    }

    fn follow(&self, steps: &[(usize, u8)], factor: u8, sum: &mut Vec<u8>) {
        for &(column, coefficient) in steps {
            let symbol: &[u8] = match self.columns.get(column).map(|column| &column.state) {
                Some(State::Known(value)) => value,
                Some(State::Pivot(row)) => &row.payload,
                Some(State::Free) | None => &[],
            };
            add_padded(sum, field::mul(factor, coefficient), symbol);
        }
    }

    /// Looks which pivots are determined, from the highest to the lowest, and solves them.
    fn settle(&mut self) {
        self.debt = 0;
        let Some(stale) = self.stale.take() else { return };
        let pivots: Vec<usize> = self.pivots.range(..=stale).rev().map(|(_, &id)| id).collect();
        for id in pivots {
            let Some(row) = self.row(id) else { continue };
            let mut probe = [0; 4];
            for term in &row.rest {
                let other = self.columns.get(term.column).map_or([0; 4], |column| column.probe);
                probe = add_probe(probe, term.coefficient, other);
            }
            if probe == [0; 4] {
                let rest = Draft { terms: row.rest.clone(), steps: Vec::new(), length: row.payload.len() };
                let reduced = self.reduce(rest);
                if reduced.terms.is_empty() {
                    self.solve(id, &reduced.steps);
                    continue;
                }
            }
            if let Some(column) = self.columns.get_mut(id) {
                column.probe = probe;
            }
        }
    }

    /// Solves the pivot of a row that the steps leave alone in it.
    fn solve(&mut self, id: usize, steps: &[(usize, u8)]) {
        let Some(Row { payload: mut value, .. }) = self.take_row(id) else { return };
        let length = value.len();
        self.follow(steps, 1, &mut value);
        if value.iter().skip(length).any(|&byte| byte != 0) {
            self.contradictions += 1;
            return;
        }
        value.truncate(length);
        value.shrink_to_fit();
        let value = Bytes::from(value);
        self.bytes = self.bytes.saturating_add(length as u64);
        if let Some(column) = self.columns.get(id) {
            self.solved.push((column.key, value.clone()));
        }
        self.resolve(id, trimmed(value));
    }

    /// From now on `id`, which no row begins with, is known; subtracts it from the rows that have it.
    fn resolve(&mut self, id: usize, value: Bytes) {
        let Some(column) = self.columns.get_mut(id) else { return };
        let key = column.key;
        let users = std::mem::take(&mut column.users);
        column.probe = [0; 4];
        column.state = State::Known(value.clone());
        for user in users {
            let Some(Column { state: State::Pivot(row), .. }) = self.columns.get_mut(user) else { continue };
            let Ok(at) = row.rest.binary_search_by_key(&key, |term| term.key) else { continue };
            if value.len() > row.payload.len() {
                self.drop_row(user);
                continue;
            }
            let term = row.rest.remove(at);
            add_padded(&mut row.payload, term.coefficient, &value);
            self.bytes = self.bytes.saturating_sub(term_cost::<K>());
        }
    }

    fn row(&self, column: usize) -> Option<&Row<K>> {
        match &self.columns.get(column)?.state {
            State::Pivot(row) => Some(row),
            State::Known(_) | State::Free => None,
        }
    }

    /// Takes the row that begins with `id` out.
    fn take_row(&mut self, id: usize) -> Option<Row<K>> {
        self.row(id)?;
        let column = self.columns.get_mut(id)?;
        self.pivots.remove(&column.key);
        let State::Pivot(row) = std::mem::replace(&mut column.state, State::Free) else { return None };
        for term in &row.rest {
            if let Some(column) = self.columns.get_mut(term.column)
                && let Some(at) = column.users.iter().position(|&user| user == id)
            {
                column.users.swap_remove(at);
            }
        }
        self.bytes = self.bytes.saturating_sub(row_cost(&row));
        Some(row)
    }

    fn drop_row(&mut self, id: usize) {
        if self.take_row(id).is_some() {
            self.contradictions += 1;
        }
    }

    fn contradiction(&mut self) -> Inserted {
        self.contradictions += 1;
        Inserted::Inconsistent
    }

    /// The place of a term's column, made if need be.
    fn place(&mut self, term: &Term<K>) -> usize {
        if term.column == NEW { self.add_column(term.key, State::Free) } else { term.column }
    }

    fn add_column(&mut self, key: K, state: State<K>) -> usize {
        let id = self.columns.len();
        let probe = self.draw();
        self.columns.push(Column { key, state, users: Vec::new(), probe });
        self.index.insert(key, id);
        id
    }

    /// The next numbers of a fixed sequence (SplitMix64). Whoever guesses them makes the decoder work in vain at most.
    fn draw(&mut self) -> [u8; 4] {
        self.draws = self.draws.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.draws ^ (self.draws >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let [a, b, c, d, ..] = (z ^ (z >> 31)).to_le_bytes();
        [a, b, c, d]
    }

    /// What a reduced row would cost.
    fn cost(&self, reduced: &Draft<K>) -> u64 {
        let new = reduced.terms.iter().filter(|term| term.column == NEW).count() as u64;
        let column = (size_of::<Column<K>>() + 2 * size_of::<(K, usize)>()) as u64;
        let terms = (reduced.terms.len() as u64).saturating_sub(1).saturating_mul(term_cost::<K>());
        let payload = reduced.length as u64;
        ROW_COST.saturating_add(terms).saturating_add(payload).saturating_add(new.saturating_mul(column))
    }

    fn afford(&self, more: u64) -> Result<()> {
        let needed = self.bytes.saturating_add(more);
        if needed <= self.bytes_max {
            return Ok(());
        }
        let message = format!(
            "the shares to decode need {needed} bytes, and the decoder may hold {}: raise its budget",
            self.bytes_max
        );
        Err(Error::new(Code::TooLarge, message))
    }
}

/// What a row counts against the budget, without its columns.
fn row_cost<K>(row: &Row<K>) -> u64 {
    let terms = (row.rest.len() as u64).saturating_mul(term_cost::<K>());
    ROW_COST.saturating_add(terms).saturating_add(row.payload.len() as u64)
}

/// The term, and the place among the users of its column.
const fn term_cost<K>() -> u64 {
    (size_of::<Term<K>>() + size_of::<usize>()) as u64
}

/// Writes `a + c · b` to `sum`; all three are sorted, and zeros are left out.
fn add_terms<K: Copy + Ord>(mut a: &[Term<K>], c: u8, b: &[Term<K>], sum: &mut Vec<Term<K>>) {
    sum.clear();
    for term in b {
        let (before, after) = a.split_at(a.iter().take_while(|other| other.key < term.key).count());
        sum.extend_from_slice(before);
        let mut coefficient = field::mul(c, term.coefficient);
        a = match after.split_first() {
            Some((same, after)) if same.key == term.key => {
                coefficient ^= same.coefficient;
                after
            }
            _ => after,
        };
        if coefficient != 0 {
            sum.push(Term { coefficient, ..*term });
        }
    }
    sum.extend_from_slice(a);
}

fn add_probe(mut sum: [u8; 4], c: u8, other: [u8; 4]) -> [u8; 4] {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum ^= field::mul(c, other);
    }
    sum
}

/// `y += c · x`, with the shorter of them padded with zeros.
fn add_padded(y: &mut Vec<u8>, c: u8, x: &[u8]) {
    if y.len() < x.len() {
        y.resize(x.len(), 0);
    }
    let (y, _) = y.split_at_mut(x.len());
    add_scaled(y, c, x);
}

/// Without the zeros at the end.
fn trimmed(value: Bytes) -> Bytes {
    let length = value.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    value.slice(..length)
}
