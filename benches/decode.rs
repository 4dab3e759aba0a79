//! What it takes to decode: windows and stripes of entries of 4 KiB, a tenth of which is lost.

#![allow(missing_docs)]

use std::collections::BTreeSet;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tagalong::share::decode::Decoder;
use tagalong::share::field;

const SYMBOL: usize = 4 << 10;

type Row = (Vec<(usize, u8)>, Vec<u8>);

struct Case {
    entries: Vec<Bytes>,
    lost: Vec<bool>,
    rows: Vec<Row>,
}

impl Case {
    fn new(entries: usize, lost: impl Fn(usize) -> bool, rows: impl IntoIterator<Item = Vec<(usize, u8)>>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let entries: Vec<Bytes> = (0..entries)
            .map(|_| {
                let mut entry = vec![0; SYMBOL];
                rng.fill_bytes(&mut entry);
                entry.into()
            })
            .collect();
        let encode = |terms: Vec<(usize, u8)>| {
            let mut payload = vec![0; SYMBOL];
            for &(lsn, coefficient) in &terms {
                field::add_scaled(&mut payload, coefficient, &entries[lsn]);
            }
            (terms, payload)
        };
        let rows: Vec<Row> = rows.into_iter().map(encode).collect();
        // Reports bring them client by client, so in no order to speak of.
        let rows = shuffled(rows.len(), 2).into_iter().map(|row| rows[row].clone()).collect();
        Self { lost: (0..entries.len()).map(lost).collect(), entries, rows }
    }

    /// A row after every `step`th entry, over the last 64 of them.
    fn window(entries: usize, step: usize) -> Self {
        let coefficient = |id: usize, lsn: usize| field::hash_coefficient(id as u64, lsn as u64);
        let ends = (64..=entries).step_by(step);
        let rows = ends.map(|end| (end - 64..end).map(|lsn| (lsn, coefficient(end, lsn))).collect());
        let lost: BTreeSet<usize> = shuffled(entries, 3).into_iter().take(entries / 10).collect();
        Self::new(entries, |entry| lost.contains(&entry), rows)
    }

    fn in_order(mut self) -> Self {
        self.rows.sort();
        self
    }

    /// Stripes of eight entries with `f` rows each. Where something is lost, all rows are needed.
    fn stripes(entries: usize, f: u8) -> Self {
        let stripe = |first: usize, j: u8| (0..8u8).map(|x| (first + usize::from(x), field::cauchy(x, j))).collect();
        let rows = (0..entries).step_by(8).flat_map(|first| (0..f).map(move |j| stripe(first, j)));
        Self::new(entries, |entry| entry % 8 < usize::from(f) && entry / 8 < entries / 10 / usize::from(f), rows)
    }

    /// A decoder that knows what is not lost.
    fn decoder(&self) -> Decoder<usize> {
        let mut decoder = Decoder::new(u64::MAX);
        for (lsn, entry) in self.entries.iter().enumerate().filter(|&(lsn, _)| !self.lost[lsn]) {
            decoder.know(lsn, entry.clone()).expect("no row gets larger");
        }
        decoder
    }

    /// Takes in all rows, and looks what is solved every `batch` rows.
    fn decode(&self, mut decoder: Decoder<usize>, batch: usize) -> (usize, Decoder<usize>) {
        let mut solved = 0;
        for rows in self.rows.chunks(batch) {
            for (terms, payload) in rows {
                decoder.insert(terms, payload).expect("a budget without bounds");
            }
            solved += decoder.take_solved().len();
        }
        (solved, decoder)
    }
}

/// The numbers below `n` in some order, always the same.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut numbers: Vec<usize> = (0..n).collect();
    numbers.sort_by_cached_key(|_| rng.next_u64());
    numbers
}

fn measure(criterion: &mut Criterion, name: &str, case: &Case, batch: usize) {
    let (solved, decoder) = case.decode(case.decoder(), batch);
    assert_eq!(decoder.contradictions(), 0);
    let mut group = criterion.benchmark_group(format!("decode {solved} of {}", case.entries.len()));
    group.sample_size(10).throughput(Throughput::Bytes((case.rows.len() * SYMBOL) as u64));
    group.bench_function(name, |bencher| {
        bencher.iter_batched(|| case.decoder(), |decoder| case.decode(decoder, batch), BatchSize::LargeInput);
    });
}

fn decode(criterion: &mut Criterion) {
    measure(criterion, "stripes 8+1", &Case::stripes(1000, 1), 10);
    measure(criterion, "stripes 8+2", &Case::stripes(1000, 2), 10);
    for entries in [1000, 10_000] {
        measure(criterion, "window 64, every row", &Case::window(entries, 1), 10);
        measure(criterion, "window 64, every 4th row", &Case::window(entries, 4), 10);
        measure(criterion, "window 64, every 4th row, in order", &Case::window(entries, 4).in_order(), 10);
        measure(criterion, "window 64, every 4th row, one by one", &Case::window(entries, 4), 1);
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
