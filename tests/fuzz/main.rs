//! The bodies of the fuzz targets, as ordinary tests: each on its corpus, on what real encoders make, on both mutated by
//! seed, and on noise. `fuzz/README.md` says how libFuzzer runs the same functions.
//!
//! For longer, with other seeds:
//!
//! ```sh
//! TAGALONG_FUZZ=1..1000 cargo test --release --features seeded-bugs --test fuzz
//! ```

#![allow(clippy::unwrap_used)]

#[path = "bodies.rs"]
mod bodies;
mod samples;

use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

type Body = fn(&[u8]);

/// Where the corpus is, in the repository.
fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Says which input it was, if the body does not come back.
struct Tried<'a>(&'a str, &'a [u8]);

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut hex = String::new();
            self.1.iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
            eprintln!("the input of {}, {} bytes: {hex}", self.0, self.1.len());
        }
    }
}

fn run(target: &str, body: Body, input: &[u8]) {
    let tried = Tried(target, input);
    body(input);
    drop(tried);
}

fn below(dice: &mut ChaCha8Rng, n: usize) -> usize {
    usize::try_from(dice.next_u64() % n.max(1) as u64).unwrap()
}

/// A few changes as a bad disk or a liar would make them.
fn mutate(dice: &mut ChaCha8Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..1 + below(dice, 3) {
        let at = below(dice, bytes.len());
        // Numbers at their ends, and bytes that are keys, lengths and kinds more often than others.
        let byte = match below(dice, 4) {
            0 => [0, 1, 0x7f, 0x80, 0xff][below(dice, 5)],
            1 => u8::try_from(below(dice, 48)).unwrap(),
            _ => u8::try_from(below(dice, 256)).unwrap(),
        };
        match below(dice, 8) {
            0..3 if !bytes.is_empty() => bytes[at] = byte,
            3 if !bytes.is_empty() => bytes[at] ^= 1 << below(dice, 8),
            4 => bytes.insert(at, byte),
            5 => bytes.truncate(at),
            6 => {
                let other = &others[below(dice, others.len())];
                let from = below(dice, other.len());
                let part = &other[from..(from + below(dice, 40)).min(other.len())];
                bytes.splice(at..at, part.iter().copied());
            }
            _ => {
                let end = (at + below(dice, 12)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
        }
    }
}

/// Runs the body on everything there is, and `rounds` times a seed on what is made of it.
fn check(target: &str, body: Body, samples: Vec<Vec<u8>>, rounds: usize) {
    let seeds: Range<u64> = match std::env::var("TAGALONG_FUZZ") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("TAGALONG_FUZZ is a range of seeds");
            from.parse().unwrap()..to.parse().unwrap()
        }
        Err(_) => 0..1,
    };
    let mut inputs = samples;
    assert!(inputs.len() > 3, "{target} has no samples");
    // A packaged library has no fuzz/ beside it.
    if corpus("").is_dir() {
        let found = fs::read_dir(corpus(target)).unwrap_or_else(|error| panic!("corpus of {target}: {error}"));
        let mut paths: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{target} has no corpus");
        inputs.extend(paths.iter().map(|path| fs::read(path).unwrap()));
    }
    inputs.iter().for_each(|input| run(target, body, input));
    for seed in seeds {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..rounds {
            let mut input = inputs[below(&mut dice, inputs.len())].clone();
            mutate(&mut dice, &mut input, &inputs);
            run(target, body, &input);
            let mut noise = vec![0; below(&mut dice, 120)];
            dice.fill_bytes(&mut noise);
            run(target, body, &noise);
        }
    }
}

/// A test of each target, and the means to write its corpus.
macro_rules! targets {
    ($($(#[$if:meta])? $target:ident: $body:path, $rounds:literal;)*) => {
        $(
            $(#[$if])?
            #[test]
            fn $target() {
                check(stringify!($target), $body, samples::$target(), $rounds);
            }
        )*

        /// `cargo test --features seeded-bugs --test fuzz -- --ignored the_corpus_is_written`
        #[test]
        #[ignore = "writes into fuzz/corpus"]
        fn the_corpus_is_written() {
            $(
                $(#[$if])?
                {
                    let dir = corpus(stringify!($target));
                    fs::create_dir_all(&dir).unwrap();
                    for (sample, n) in samples::$target().iter().zip(0..) {
                        fs::write(dir.join(format!("sample-{n:02}")), sample).unwrap();
                    }
                }
            )*
        }
    };
}

targets! {
    #[cfg(all(feature = "grpc", feature = "seeded-bugs"))] client_messages: bodies::wire::client_messages, 3000;
    #[cfg(all(feature = "grpc", feature = "seeded-bugs"))] node_messages: bodies::wire::node_messages, 3000;
    #[cfg(all(feature = "grpc", feature = "seeded-bugs"))] backup_messages: bodies::wire::backup_messages, 3000;
    #[cfg(all(feature = "grpc", feature = "seeded-bugs"))] primary_messages: bodies::wire::primary_messages, 3000;
    #[cfg(all(feature = "grpc", feature = "seeded-bugs"))] admin: bodies::wire::admin, 3000;
    #[cfg(all(feature = "grpc", feature = "seeded-bugs"))] sealed: bodies::shares::sealed, 1000;
    records: bodies::codec::records, 30000;
    sessions: bodies::codec::sessions, 20000;
    kv: bodies::codec::kv, 20000;
    share_bodies: bodies::shares::share_bodies, 20000;
    solving: bodies::shares::solving, 10000;
    log: bodies::disk::log, 300;
    cache: bodies::disk::cache, 500;
    files: bodies::disk::files_of_others, 3000;
    cores: bodies::cores::cores, 2000;
}
