//! Linear equations over GF(2⁸), solved slowly and simply: nothing here rests on the code that is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use bytes::Bytes;

/// An equation: the sum of coefficient · column is the symbol, short ones padded with zeros.
pub type Row<K> = (Vec<(K, u8)>, Bytes);

/// The columns that the rows determine, each with its value, zeros at the end.
pub fn solve<K: Copy + Ord>(known: &BTreeMap<K, Bytes>, rows: &[Row<K>]) -> BTreeMap<K, Vec<u8>> {
    let columns: BTreeSet<K> = rows.iter().flat_map(|(terms, _)| terms.iter().map(|(column, _)| *column)).collect();
    let columns: Vec<K> = columns.into_iter().filter(|column| !known.contains_key(column)).collect();
    let mut matrix: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (terms, symbol) in rows {
        let (mut row, mut symbol) = (vec![0; columns.len()], symbol.to_vec());
        for (column, coefficient) in terms {
            match known.get(column) {
                Some(value) => add_scaled(&mut symbol, *coefficient, value),
                None => row[columns.binary_search(column).expect("a column")] ^= coefficient,
            }
        }
        matrix.push((row, symbol));
    }
    let mut rank = 0;
    for column in 0..columns.len() {
        let Some(pivot) = (rank..matrix.len()).find(|row| matrix[*row].0[column] != 0) else { continue };
        matrix.swap(rank, pivot);
        let (mut row, mut symbol) = std::mem::take(&mut matrix[rank]);
        let inverse = inv(row[column]);
        row.iter_mut().chain(symbol.iter_mut()).for_each(|byte| *byte = mul(inverse, *byte));
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
    let mut solved = BTreeMap::new();
    for (row, symbol) in matrix.into_iter().take(rank) {
        let mut used = (0..columns.len()).filter(|column| row[*column] != 0);
        if let (Some(column), None) = (used.next(), used.next()) {
            solved.insert(columns[column], symbol);
        }
    }
    solved
}

/// `y += c · x`, the shorter of them padded with zeros.
fn add_scaled(y: &mut Vec<u8>, c: u8, x: &[u8]) {
    if y.len() < x.len() {
        y.resize(x.len(), 0);
    }
    y.iter_mut().zip(x).for_each(|(y, x)| *y ^= mul(c, *x));
}

/// `a · b` with the polynomial 0x11D, bit by bit.
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

fn mul(a: u8, b: u8) -> u8 {
    PRODUCTS[usize::from(a)][usize::from(b)]
}

fn inv(a: u8) -> u8 {
    (1..=255).find(|b| mul(a, *b) == 1).expect("zero has no inverse")
}
