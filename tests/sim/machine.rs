//! The simulation's state machine: every reply depends on the order of everything before it.
//!
//! A command is `key, what it does, padding`. It puts a value, appends to one, or sets one if that is what was expected.
//! Its reply says how many commands its key has seen, the key's running hash, the running hash over all keys, into which
//! each entry's time and origin go, and the key's value: count and value follow from the commands alone, so that a
//! history can be judged by them. A query is a key.

use std::collections::BTreeMap;

use bytes::Bytes;
use tagalong::log::{Body, Entry};
use tagalong::store::Missing;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    all: u64,
    keys: BTreeMap<u8, (u64, u64, Register)>,
}

/// What a key is to whoever uses it. A value stands for a list of numbers, by a hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Register {
    pub count: u64,
    pub value: u64,
}

/// As much of a value as a compare-and-set compares.
const EXPECTED: u64 = (1 << 24) - 1;

impl Register {
    pub fn step(self, what: u64) -> Self {
        let (kind, expected, serial) = (what >> 56, (what >> 32) & EXPECTED, what & u64::from(u32::MAX));
        let value = match kind {
            0 => mix(0, serial),
            1 => mix(self.value, serial),
            _ if self.value & EXPECTED == expected => mix(0, serial),
            _ => self.value,
        };
        Self { count: self.count + 1, value }
    }

    /// What a reply or a result says of it.
    pub fn of(answer: &Bytes) -> Option<Self> {
        let word = |at: usize| answer.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        Some(Self { count: word(0)?, value: word(24)? })
    }
}

/// What a command does to its key.
pub fn what(payload: &Bytes) -> u64 {
    payload.get(1..9).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn mix(hash: u64, with: u64) -> u64 {
    (hash.rotate_left(5) ^ with).wrapping_mul(0x517c_c1b7_2722_0a95).rotate_left(23)
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |hash, byte| mix(hash, u64::from(*byte)))
}

/// `seen` is the value that whoever calls saw last.
pub fn command(key: u8, serial: u64, seen: u64, padding: usize) -> Bytes {
    let kind = [0, 1, 2, 1][usize::try_from(serial % 4).expect("small")];
    let what = kind << 56 | (seen & EXPECTED) << 32 | serial & u64::from(u32::MAX);
    let mut bytes = vec![key];
    bytes.extend(what.to_le_bytes());
    bytes.resize(9 + padding, 7);
    bytes.into()
}

impl Machine {
    pub fn apply(&mut self, entry: &Entry) -> Bytes {
        let header = &entry.header;
        let origin = header.origin.expect("a command has an origin");
        let key = entry.payload.first().copied().unwrap_or_default();
        let what = mix(hash(&entry.payload), header.time.0);
        let what = mix(what, u64::try_from(origin.client.0).unwrap_or(0) ^ (origin.request.0 << 32));
        self.all = mix(self.all, what);
        let (count, list, register) = self.keys.entry(key).or_default();
        *count += 1;
        *list = mix(*list, what);
        *register = register.step(self::what(&entry.payload));
        self.query(&Bytes::copy_from_slice(&[key]))
    }

    pub fn query(&self, query: &Bytes) -> Bytes {
        let key = query.first().copied().unwrap_or_default();
        let (count, list, register) = self.keys.get(&key).copied().unwrap_or_default();
        [count, list, self.all, register.value].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    /// Commands on another key than what is missing are independent of it, if it is known what that was.
    pub fn independent(later: &Entry, missing: &[Missing], lost: &BTreeMap<u64, u8>) -> bool {
        let key = later.payload.first().copied();
        missing.iter().all(|missing| {
            let Some(header) = &missing.header else { return false };
            header.body != Body::Command || lost.get(&header.digest.value).is_some_and(|lost| Some(*lost) != key)
        })
    }
}
