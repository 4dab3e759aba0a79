//! What a client issues, step by step: a seeded mix in which order matters.
//!
//! | keys | commands | who |
//! | --- | --- | --- |
//! | `file/…` | puts of 16 KiB: the real input | each chunk once, by one client |
//! | `list/…` | appends; a new list for each thousand of a client's commands, so that none grows without end | all |
//! | `counter/…` | compare-and-sets on the version last seen | all |
//! | `blob/CLIENT/…` | puts of 4 KiB, over and over | one client |
//!
//! and reads of any of them, other clients' included. The chunks are spread over the load, so that some are under way
//! whenever the disaster comes.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::ledger::{Act, Command, Stamp};
use crate::source::{Chunk, Source};

const LISTS: u64 = 12;
const COUNTERS: u64 = 6;
const BLOBS: u64 = 128;
const BLOB_BYTES: usize = 4096;
/// Commands of a client between two generations of lists.
const LIST_COMMANDS: u64 = 1000;
/// Part of the load after which every chunk has been issued.
const CHUNKS_DONE_AT: f64 = 0.9;
/// Of so many steps in a row, how many may be chunks: the other commands go on in any case.
const CHUNK_PERIOD: u64 = 10;
const CHUNKS_A_PERIOD: u64 = 7;

/// The next thing a client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Write(Command),
    Read(String),
}

/// A client's stream of steps.
pub(crate) struct Workload {
    client: u64,
    clients: u64,
    rng: ChaCha8Rng,
    source: Source,
    chunks: VecDeque<Chunk>,
    chunks_in_all: usize,
    /// Steps in this period, and how many of them were chunks.
    period: (u64, u64),
    serial: u64,
    /// The version of each counter as last seen, and whether a compare-and-set on it is under way.
    counters: Vec<(u64, bool)>,
}

impl Workload {
    pub(crate) fn new(seed: u64, client: u64, clients: u64, source: Source) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(client);
        let chunks = VecDeque::from(source.share(client, clients));
        let counters = vec![(0, false); usize::try_from(COUNTERS).unwrap_or_default()];
        let chunks_in_all = chunks.len();
        Self { client, clients, rng, source, chunks, chunks_in_all, period: (0, 0), serial: 0, counters }
    }

    /// Goes on in a second life of the client: with other serials, and without the chunks that are taken care of.
    pub(crate) fn resume(&mut self, serial: u64, is_stored: impl Fn(&str) -> bool) {
        self.serial = serial;
        self.chunks.retain(|chunk| !is_stored(&chunk.key()));
    }

    /// The next step, when this part (0 to 1) of the load's time is over.
    pub(crate) fn next(&mut self, progress: f64) -> io::Result<Step> {
        let chunk = if self.is_chunk_due(progress) { self.next_chunk()? } else { None };
        if let Some(step) = chunk {
            return Ok(step);
        }
        Ok(match self.below(100) {
            0..40 => Step::Write(self.append()),
            40..55 => match self.compare_and_set() {
                Some(command) => Step::Write(command),
                None => Step::Write(self.append()),
            },
            55..78 => Step::Write(self.blob()),
            _ => Step::Read(self.any_key()),
        })
    }

    /// The next chunk of the files, if one is left.
    pub(crate) fn next_chunk(&mut self) -> io::Result<Option<Step>> {
        let Some(chunk) = self.chunks.pop_front() else {
            return Ok(None);
        };
        let value = self.source.read(chunk)?.into();
        Ok(Some(Step::Write(self.command(chunk.key(), Act::Put { value }))))
    }

    /// Chunks that were not issued yet.
    pub(crate) fn chunks_left(&self) -> usize {
        self.chunks.len()
    }

    /// A command on `key` was answered: its version now.
    pub(crate) fn saw(&mut self, key: &str, version: u64) {
        if let Some(counter) = counter_of(key).and_then(|at| self.counters.get_mut(at)) {
            *counter = (version, false);
        }
    }

    /// A command on `key` ended without an answer.
    pub(crate) fn gave_up(&mut self, key: &str) {
        if let Some(counter) = counter_of(key).and_then(|at| self.counters.get_mut(at)) {
            counter.1 = false;
        }
    }

    fn is_chunk_due(&mut self, progress: f64) -> bool {
        if self.period.0 == CHUNK_PERIOD {
            self.period = (0, 0);
        }
        self.period.0 += 1;
        #[expect(clippy::cast_precision_loss, reason = "a pace, not a count")]
        let due = self.chunks_in_all as f64 * (progress / CHUNKS_DONE_AT);
        #[expect(clippy::cast_precision_loss, reason = "a pace, not a count")]
        let issued = (self.chunks_in_all - self.chunks.len()) as f64;
        let is_due = issued < due && !self.chunks.is_empty() && self.period.1 < CHUNKS_A_PERIOD;
        self.period.1 += u64::from(is_due);
        is_due
    }

    fn below(&mut self, limit: u64) -> u64 {
        // The bias is below 2^-50: no matter here.
        self.rng.next_u64() % limit
    }

    fn command(&mut self, key: String, act: Act) -> Command {
        self.serial += 1;
        Command { stamp: Stamp { client: self.client, serial: self.serial }, key, act }
    }

    fn list(&mut self) -> String {
        format!("list/{:02}/{:06}", self.below(LISTS), self.serial / LIST_COMMANDS)
    }

    fn append(&mut self) -> Command {
        let key = self.list();
        self.command(key, Act::Append)
    }

    fn compare_and_set(&mut self) -> Option<Command> {
        let at = self.below(COUNTERS);
        let counter = self.counters.get_mut(usize::try_from(at).ok()?)?;
        if counter.1 {
            return None;
        }
        counter.1 = true;
        let expected = counter.0;
        Some(self.command(format!("counter/{at:02}"), Act::CompareAndSet { expected }))
    }

    fn blob(&mut self) -> Command {
        let slot = self.below(BLOBS);
        let key = format!("blob/{:04}/{slot:03}", self.client);
        let stamp = Stamp { client: self.client, serial: self.serial + 1 };
        self.command(key, Act::Put { value: noise(stamp, BLOB_BYTES) })
    }

    fn any_key(&mut self) -> String {
        match self.below(3) {
            0 => self.list(),
            1 => format!("counter/{:02}", self.below(COUNTERS)),
            _ => {
                let client = self.below(self.clients);
                format!("blob/{client:04}/{:03}", self.below(BLOBS))
            }
        }
    }
}

fn counter_of(key: &str) -> Option<usize> {
    key.strip_prefix("counter/")?.parse().ok()
}

/// Bytes that belong to this stamp alone.
fn noise(stamp: Stamp, length: usize) -> Bytes {
    let mut rng = ChaCha8Rng::seed_from_u64(stamp.serial);
    rng.set_stream(stamp.client);
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceFile;

    fn workload(folder: &std::path::Path) -> Workload {
        std::fs::write(folder.join("file"), vec![1; 100_000]).expect("a file");
        let files = vec![SourceFile { path: "file".into(), length: 100_000, modified: 0 }];
        Workload::new(1, 0, 2, Source { root: folder.into(), files, skipped: 0 })
    }

    #[test]
    fn a_seed_gives_the_same_steps_and_dense_serials() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut one, mut two) = (workload(folder.path()), workload(folder.path()));
        let mut serial = 0;
        for at in 0..500 {
            let progress = f64::from(at) / 500.0;
            let step = one.next(progress).expect("a step");
            assert_eq!(step, two.next(progress).expect("a step"));
            if let Step::Write(command) = step {
                serial += 1;
                assert_eq!(command.stamp, Stamp { client: 0, serial });
                one.gave_up(&command.key);
                two.gave_up(&command.key);
            }
        }
        assert_eq!(one.chunks_left(), 0);
    }

    #[test]
    fn the_files_are_spread_over_the_load() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut workload = workload(folder.path());
        let mut left = Vec::new();
        for at in 0..1000 {
            workload.next(f64::from(at) / 1000.0).expect("a step");
            left.push(workload.chunks_left());
        }
        assert_eq!((left[0], left[999]), (7, 0));
        assert!((3..=5).contains(&left[400]), "{}", left[400]);
    }

    #[test]
    fn a_compare_and_set_waits_for_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut workload = workload(folder.path());
        let mut under_way = std::collections::BTreeSet::new();
        for _ in 0..2000 {
            if let Step::Write(Command { key, act: Act::CompareAndSet { .. }, .. }) =
                workload.next(0.0).expect("a step")
            {
                assert!(under_way.insert(key), "two at once on a counter");
            }
        }
        assert_eq!(under_way.len() as u64, COUNTERS);
        workload.saw("counter/03", 17);
        let next = (0..2000).find_map(|_| match workload.next(0.0).expect("a step") {
            Step::Write(Command { act: Act::CompareAndSet { expected }, .. }) => Some(expected),
            _ => None,
        });
        assert_eq!(next, Some(17));
    }
}
