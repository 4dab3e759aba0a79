//! What can be rebuilt without the primary's site and without some failure domains: slowly, simply, and from nothing but
//! what clients really hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use bytes::Bytes;
use tagalong::log::{Body, ClientId, Entry, Header, Lsn, Request};
use tagalong::share::body::{Plain, segment_range, segments};
use tagalong::share::cover::Domain;
use tagalong::share::decode::{Decoder, Inserted};

use crate::world::World;

/// A segment of an entry.
pub type Column = (Lsn, u32);

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Violation {
    #[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "for whoever reads the message"))]
    pub lsn: Lsn,
    #[expect(dead_code, reason = "for whoever reads the message")]
    pub lost: Vec<Domain>,
    #[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "for whoever reads the message"))]
    pub why: &'static str,
}

/// What those who survive can say.
#[derive(Default)]
pub struct Survivors {
    headers: BTreeMap<Lsn, Header>,
    /// Segments that their authors hold.
    known: BTreeMap<Column, Bytes>,
    /// Equations, with their symbols.
    rows: Vec<(Vec<(Column, u8)>, Bytes)>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked {
    /// Sets of failure domains.
    pub losses: u64,
    /// Covered entries in them.
    pub entries: u64,
    /// Of these, entries that only shares could supply.
    pub decoded: u64,
}

/// Every covered entry that is not stable is still there, whichever *f* domains are lost. Clients that are damaged count
/// among them, for what was covered before, until everything is repaired.
pub fn check(world: &World, deep: bool, looked: &mut Looked) -> Result<(), Violation> {
    let there = |at: &usize| world.clients[*at].counts() && (world.clients[*at].lasts() || world.is_damaged(*at));
    let there = (0..world.clients.len()).filter(there);
    let domains: BTreeSet<&Domain> = there.map(|at| &world.clients[at].domain).collect();
    let domains: Vec<&Domain> = domains.into_iter().collect();
    let most = world.f().min(domains.len());
    // From one damage to the next.
    let mut marks: BTreeSet<Lsn> = world.damaged.values().map(|damage| damage.covered).collect();
    marks.insert(world.cover.covered());
    let mut after = world.stable;
    for upto in marks {
        let counted = world.damaged.iter().filter(|(_, damage)| damage.covered >= upto);
        let counted: BTreeSet<&Domain> = counted.map(|(at, _)| &world.clients[*at].domain).collect();
        for mask in (0u32..1 << domains.len()).filter(|_| after < upto) {
            let is_lost = |(n, _): &(usize, &&Domain)| mask & (1 << n) != 0;
            let lost: BTreeSet<&Domain> = domains.iter().enumerate().filter(is_lost).map(|(_, lost)| *lost).collect();
            // Whoever loses more has less: only the largest sets matter.
            if lost.len() == most && lost.is_superset(&counted) {
                looked.losses += 1;
                // The bytes themselves for some of the sets, of which it is all the same.
                let deep = deep && looked.losses.is_multiple_of(4);
                check_loss(world, &lost, after, upto, deep, looked).map_err(|(lsn, why)| Violation {
                    lsn,
                    lost: lost.into_iter().cloned().collect(),
                    why,
                })?;
            }
        }
        after = after.max(upto);
    }
    Ok(())
}

fn check_loss(
    world: &World,
    lost: &BTreeSet<&Domain>,
    after: Lsn,
    upto: Lsn,
    deep: bool,
    looked: &mut Looked,
) -> Result<(), (Lsn, &'static str)> {
    let survivors = Survivors::of(world, lost);
    let solved = survivors.solve(deep);
    if deep {
        survivors.decode(&solved);
    }
    for lsn in (after.0 + 1..=upto.0).map(Lsn) {
        let truth = world.entry(lsn).expect("a covered entry");
        looked.entries += 1;
        if survivors.headers.get(&lsn).ok_or((lsn, "nobody knows what was here"))? != &truth.header {
            return Err((lsn, "the survivors have another header"));
        }
        if truth.header.body != Body::Command {
            continue;
        }
        for segment in 0..segments(truth.header.length) {
            let part = truth.payload.slice(segment_range(truth.header.length, segment));
            let column = (lsn, segment);
            if let Some(known) = survivors.known.get(&column) {
                if *known != part {
                    return Err((lsn, "its author has something else"));
                }
            } else if let Some(value) = solved.get(&column) {
                looked.decoded += u64::from(segment == 0);
                if deep && !is_padded(value, &part) {
                    return Err((lsn, "it decodes to something else"));
                }
            } else if !part.is_empty() {
                return Err((lsn, "its payload is lost"));
            }
        }
    }
    Ok(())
}

/// Whether `value` is `part` and zeros.
pub fn is_padded(value: &[u8], part: &[u8]) -> bool {
    value.len() >= part.len() && value[..part.len()] == *part && value[part.len()..].iter().all(|byte| *byte == 0)
}

impl Survivors {
    fn of(world: &World, lost: &BTreeSet<&Domain>) -> Self {
        let mut survivors = Self::default();
        for client in world.clients.iter().filter(|client| client.lasts() && client.counts()) {
            if lost.contains(&client.domain) {
                continue;
            }
            for (request, command) in &client.image.commands {
                let header = command.header(client.id, *request);
                // By client and request: its author need not know where in the log the command is.
                if header.is_some() || by_request() {
                    survivors.know(world, client.id, *request, &command.payload);
                }
                survivors.headers.extend(header.map(|header| (header.lsn, header)));
            }
            for id in client.image.shares.keys().map(|(_, id)| id) {
                let plain = &world.shares[id];
                survivors.headers.extend(plain.headers().map(|header| (header.lsn, header.clone())));
                let Plain::Stripe { members, symbol, .. } = plain else { continue };
                let columns = members.iter().map(|member| (member.header.lsn, member.segment));
                let terms = columns.enumerate().map(|(at, column)| (column, plain.coefficient(*id, at)));
                survivors.rows.push((terms.collect(), symbol.clone()));
            }
        }
        // Nothing is unknown about what is empty.
        let empty = survivors.rows.iter().flat_map(|(terms, _)| terms.iter().map(|(column, _)| *column));
        let is_empty = |(lsn, segment): &Column| {
            world.entry(*lsn).is_some_and(|Entry { header, .. }| segment_range(header.length, *segment).is_empty())
        };
        let empty: Vec<Column> = empty.filter(is_empty).collect();
        survivors.known.extend(empty.into_iter().map(|column| (column, Bytes::new())));
        survivors
    }

    /// An author's command, wherever in the log it is.
    fn know(&mut self, world: &World, client: ClientId, request: Request, payload: &Bytes) {
        let Some(lsn) = world.lsn_of(client, request) else { return };
        let length = u32::try_from(payload.len()).expect("a payload of four bytes' length");
        for segment in 0..segments(length) {
            self.known.insert((lsn, segment), payload.slice(segment_range(length, segment)));
        }
    }

    /// The columns that the equations determine; with their values, if those are asked for.
    ///
    /// First whatever is alone in its row, again and again; then Gauss and Jordan with what is left.
    pub fn solve(&self, values: bool) -> BTreeMap<Column, Vec<u8>> {
        let mut solved: BTreeMap<Column, Vec<u8>> = BTreeMap::new();
        let mut rows: Vec<Equation> = Vec::new();
        for (terms, symbol) in &self.rows {
            let mut symbol = if values { symbol.to_vec() } else { Vec::new() };
            let mut unknown = Vec::new();
            for (column, coefficient) in terms {
                match self.known.get(column) {
                    Some(known) if values => add_scaled(&mut symbol, *coefficient, known),
                    Some(_) => {}
                    None => unknown.push((*column, *coefficient)),
                }
            }
            rows.push((unknown, symbol));
        }
        loop {
            let before = solved.len();
            for (terms, symbol) in &mut rows {
                terms.retain(|(column, coefficient)| match solved.get(column) {
                    Some(value) => {
                        add_scaled(symbol, *coefficient, value);
                        false
                    }
                    None => true,
                });
                if let [(column, coefficient)] = terms[..] {
                    let inverse = inv(coefficient);
                    solved.insert(column, symbol.iter().map(|byte| mul(inverse, *byte)).collect());
                    terms.clear();
                }
            }
            if solved.len() == before {
                break;
            }
        }
        rows.retain(|(terms, _)| !terms.is_empty());
        eliminate(&rows, &mut solved);
        solved
    }

    /// The decoder finds exactly the same.
    fn decode(&self, solved: &BTreeMap<Column, Vec<u8>>) {
        let mut decoder = Decoder::new(u64::MAX);
        for (column, value) in &self.known {
            decoder.know(*column, value.clone()).expect("a budget without end");
        }
        for (terms, symbol) in &self.rows {
            let inserted = decoder.insert(terms, symbol).expect("a budget without end");
            assert_ne!(inserted, Inserted::Inconsistent, "a share that contradicts");
        }
        let found: BTreeMap<Column, Bytes> = decoder.take_solved().into_iter().collect();
        assert!(found.keys().eq(solved.keys()), "the decoder solved {:?}", found.keys());
        for (column, value) in &found {
            let (long, short) = if value.len() > solved[column].len() {
                (&value[..], &solved[column][..])
            } else {
                (&solved[column][..], &value[..])
            };
            assert!(is_padded(long, short), "the decoder made something else of {column:?}");
        }
    }
}

/// Terms, and what they amount to.
type Equation = (Vec<(Column, u8)>, Vec<u8>);

/// Gauss and Jordan on a dense matrix.
fn eliminate(rows: &[Equation], solved: &mut BTreeMap<Column, Vec<u8>>) {
    let columns: BTreeSet<Column> =
        rows.iter().flat_map(|(terms, _)| terms.iter().map(|(column, _)| *column)).collect();
    let columns: Vec<Column> = columns.into_iter().collect();
    let dense = |(terms, symbol): &(Vec<(Column, u8)>, Vec<u8>)| {
        let mut row = vec![0; columns.len()];
        for (column, coefficient) in terms {
            row[columns.binary_search(column).expect("a column of some row")] ^= coefficient;
        }
        (row, symbol.clone())
    };
    let mut matrix: Vec<(Vec<u8>, Vec<u8>)> = rows.iter().map(dense).collect();
    let mut rank = 0;
    for column in 0..columns.len() {
        let Some(pivot) = (rank..matrix.len()).find(|row| matrix[*row].0[column] != 0) else { continue };
        matrix.swap(rank, pivot);
        let (mut row, mut symbol) = std::mem::take(&mut matrix[rank]);
        let inverse = inv(row[column]);
        row.iter_mut().for_each(|byte| *byte = mul(inverse, *byte));
        symbol.iter_mut().for_each(|byte| *byte = mul(inverse, *byte));
        for (other, sum) in matrix.iter_mut().filter(|(other, _)| !other.is_empty()) {
            let coefficient = other[column];
            if coefficient != 0 {
                add_scaled(other, coefficient, &row);
                add_scaled(sum, coefficient, &symbol);
            }
        }
        matrix[rank] = (row, symbol);
        rank += 1;
    }
    for (row, symbol) in matrix.into_iter().take(rank) {
        let mut used = (0..columns.len()).filter(|column| row[*column] != 0);
        if let (Some(column), None) = (used.next(), used.next()) {
            solved.insert(columns[column], symbol);
        }
    }
}

#[cfg(feature = "seeded-bugs")]
fn by_request() -> bool {
    tagalong::rule::on(tagalong::rule::Rule::MembersByRequest)
}

#[cfg(not(feature = "seeded-bugs"))]
fn by_request() -> bool {
    true
}

/// `y += c · x`, the shorter of them padded with zeros.
fn add_scaled(y: &mut Vec<u8>, c: u8, x: &[u8]) {
    if y.len() < x.len() {
        y.resize(x.len(), 0);
    }
    y.iter_mut().zip(x).for_each(|(y, x)| *y ^= mul(c, *x));
}

/// `a · b` in GF(2⁸) with the polynomial 0x11D, bit by bit: nothing here rests on the code that is tested.
fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (u16::from(a), b, 0u16);
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a <<= 1;
        if a & 0x100 != 0 {
            a ^= 0x11D;
        }
        b >>= 1;
    }
    product.to_le_bytes()[0]
}

static PRODUCTS: LazyLock<Vec<[u8; 256]>> =
    LazyLock::new(|| (0..=255).map(|a| std::array::from_fn(|b| multiply(a, b.to_le_bytes()[0]))).collect());

pub fn mul(a: u8, b: u8) -> u8 {
    PRODUCTS[usize::from(a)][usize::from(b)]
}

pub fn inv(a: u8) -> u8 {
    (1..=255).find(|b| mul(a, *b) == 1).expect("zero has no inverse")
}
