//! The simulation's state machine: every reply depends on the order of everything before it.
//!
//! A command is `key, serial, padding`. Its reply says how many commands its key has seen, the key's running hash, and
//! the running hash over all keys, into which each entry's time and origin go. A query is a key.

use std::collections::BTreeMap;

use bytes::Bytes;
use tagalong::log::Entry;
use tagalong::store::Missing;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    all: u64,
    keys: BTreeMap<u8, (u64, u64)>,
}

fn mix(hash: u64, with: u64) -> u64 {
    (hash.rotate_left(5) ^ with).wrapping_mul(0x517c_c1b7_2722_0a95).rotate_left(23)
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |hash, byte| mix(hash, u64::from(*byte)))
}

pub fn command(key: u8, serial: u64, padding: usize) -> Bytes {
    let mut bytes = vec![key];
    bytes.extend(serial.to_le_bytes());
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
        let (count, list) = self.keys.entry(key).or_default();
        *count += 1;
        *list = mix(*list, what);
        self.query(&Bytes::copy_from_slice(&[key]))
    }

    pub fn query(&self, query: &Bytes) -> Bytes {
        let key = query.first().copied().unwrap_or_default();
        let (count, list) = self.keys.get(&key).copied().unwrap_or_default();
        [count, list, self.all].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    /// Commands on another key than what is missing are independent of it, if it is known what that was.
    pub fn independent(later: &Entry, missing: &[Missing], lost: &BTreeMap<u64, u8>) -> bool {
        let key = later.payload.first().copied();
        missing.iter().all(|missing| {
            let Some(header) = &missing.header else { return false };
            lost.get(&header.digest.value).is_some_and(|lost| Some(*lost) != key)
        })
    }
}
