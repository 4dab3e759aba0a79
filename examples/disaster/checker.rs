//! The checker: what the clients wrote down, held against what survived. It knows nothing of the library.
//!
//! It replays the surviving history, whose stamps say who issued what, with the commands from the journals, on its own
//! idea of what the commands do. Then:
//!
//! * every acknowledged write stands in the history (`lost`), at the place and with the answer its client was given,
//!   behind the very same prefix (`displaced`), once (`duplicated`);
//! * each client's commands stand in the order in which it issued them (`reordered`), and nothing stands there that
//!   nobody issued (`invented`);
//! * every value that was read is explained by the surviving history at the place where it was read (`lost_reads`);
//! * nothing that began after something else was known sees less than that (`stale`): real time, across clients;
//! * for every key there is an order of all that was called and answered that explains it (`not_linearizable`): see
//!   `history.rs`, which looks at no position in any history;
//! * no version of a key was acknowledged to two writers (`split`);
//! * the LSNs of the tags rise along the history (`misnumbered`);
//! * the values are, byte for byte, what the history makes of them (`damaged`), and so are the files (in `source.rs`).
//!
//! Where a recovery was concluded by somebody's decision, something may be lost. Then its report has to be complete:
//!
//! * every acknowledged write that is lost is named by its LSN, or its client is (`unnamed`);
//! * whoever lives is told of each of its own that is lost, and that what it saw is gone (`untold`);
//! * and of what was lost neither the real time nor the winner of a version counts any more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use crate::history::not_linearizable;
use crate::journal::{Journal, Line, What};
use crate::ledger::{Reply, Stamp, link};

/// Findings of each kind that are spelled out; the rest is counted.
const EXAMPLES_MAX: usize = 3;

/// A value that survived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) version: u64,
    pub(crate) length: u64,
    pub(crate) crc: u32,
    /// The value itself, where the checker wants to see it.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// The state that survived, as a fresh client reads it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survivor {
    pub(crate) history: Vec<Stamp>,
    pub(crate) values: BTreeMap<String, Value>,
}

/// What the report of a recovery names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Somebody decided to go on without what was missing.
    pub(crate) by_policy: bool,
    /// The number of the new reign.
    pub(crate) epoch: u64,
    /// The LSN of its first entry: the reign before ends below it.
    pub(crate) start: u64,
    /// The highest LSN that anybody who was heard had observed.
    pub(crate) observed: u64,
    /// Lost LSNs below `start`.
    pub(crate) gaps: Vec<Range<u64>>,
    /// Clients that were not heard, by number.
    pub(crate) missing: HashSet<u64>,
}

impl Named {
    /// Whether an entry of an older reign is named as lost.
    fn names(&self, epoch: u64, lsn: u64) -> bool {
        let lost = (self.start..=self.observed).contains(&lsn) || self.gaps.iter().any(|gap| gap.contains(&lsn));
        epoch < self.epoch && lost
    }
}

/// What the checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Writes that were acknowledged.
    pub(crate) acked: u64,
    /// Reads that were answered.
    pub(crate) reads: u64,
    /// Writes whose clients never learned how they ended.
    pub(crate) unknown: u64,
    pub(crate) lost: u64,
    /// Of the lost, how many were given back to the clients that wrote them.
    pub(crate) returned: u64,
    pub(crate) displaced: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) invented: u64,
    pub(crate) lost_reads: u64,
    pub(crate) stale: u64,
    pub(crate) not_linearizable: u64,
    pub(crate) split: u64,
    pub(crate) misnumbered: u64,
    pub(crate) damaged: u64,
    /// Of the lost, how many the report names by LSN, and how many by their client alone.
    pub(crate) named: (u64, u64),
    pub(crate) unnamed: u64,
    pub(crate) untold: u64,
    /// Keys of lost writes.
    pub(crate) lost_keys: HashSet<String>,
    /// Some of the findings, for people.
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    /// The findings by name; all zero when nothing is wrong.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 13] {
        [
            ("lost", self.lost),
            ("displaced", self.displaced),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("invented", self.invented),
            ("lost_reads", self.lost_reads),
            ("stale", self.stale),
            ("not_linearizable", self.not_linearizable),
            ("split", self.split),
            ("misnumbered", self.misnumbered),
            ("damaged", self.damaged),
            ("unnamed", self.unnamed),
            ("untold", self.untold),
        ]
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.counts().iter().all(|(_, count)| *count == 0)
    }

    /// Whether nothing is wrong but that something is lost, which is named.
    pub(crate) fn is_honest(&self) -> bool {
        let excused = |kind| matches!(kind, "lost" | "lost_reads");
        self.counts().iter().all(|(kind, count)| *count == 0 || excused(*kind))
    }

    fn find(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        let count = match kind {
            "lost" => &mut self.lost,
            "displaced" => &mut self.displaced,
            "duplicated" => &mut self.duplicated,
            "reordered" => &mut self.reordered,
            "invented" => &mut self.invented,
            "lost_reads" => &mut self.lost_reads,
            "stale" => &mut self.stale,
            "not_linearizable" => &mut self.not_linearizable,
            "split" => &mut self.split,
            "misnumbered" => &mut self.misnumbered,
            "unnamed" => &mut self.unnamed,
            "untold" => &mut self.untold,
            _ => &mut self.damaged,
        };
        *count += 1;
        if *count <= EXAMPLES_MAX as u64 {
            self.examples.push(format!("{kind}: {}", what()));
        }
    }
}

/// Judges. The journals are those of all clients, whatever became of them.
pub(crate) fn check(journals: &[Journal], survivor: &Survivor, named: &Named) -> Verdict {
    let mut verdict = Verdict::default();
    let issued = issued(journals);
    let replay = Replay::run(&issued, &survivor.history, &mut verdict);
    let mut gone = Gone::default();
    check_writes(journals, &replay, named, &mut gone, &mut verdict);
    check_reads(journals, &replay, named, &mut gone, &mut verdict);
    if !named.by_policy {
        // Nobody's decision explains it: then it has to fit all the same.
        gone = Gone::default();
    }
    check_real_time(journals, &gone, &mut verdict);
    for why in not_linearizable(journals, survivor, &replay.replies, &gone, named.by_policy) {
        verdict.find("not_linearizable", || why);
    }
    replay.check_values(survivor, &mut verdict);
    verdict
}

/// What did not survive.
#[derive(Default)]
pub(crate) struct Gone {
    pub(crate) writes: HashSet<Stamp>,
    /// By client and number.
    pub(crate) reads: HashSet<(u64, u64)>,
}

type Issued<'a> = HashMap<Stamp, (&'a str, &'a What)>;

fn issued(journals: &[Journal]) -> Issued<'_> {
    let mut issued = HashMap::new();
    for journal in journals {
        for line in &journal.lines {
            if let Line::Issued { serial, key, what, .. } = line {
                issued.insert(Stamp { client: journal.client, serial: *serial }, (key.as_str(), what));
            }
        }
    }
    issued
}

/// The state of a key after one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moment {
    index: u64,
    version: u64,
    length: u64,
    crc: u32,
}

/// A key as the checker rebuilds it.
#[derive(Clone, Debug, Default)]
struct Story {
    moments: Vec<Moment>,
    /// The value itself, unless it was put: then only its identity is known here.
    value: Option<Vec<u8>>,
}

impl Story {
    fn now(&self) -> Moment {
        self.moments.last().copied().unwrap_or_default()
    }

    /// As it was when the history had this length.
    fn at(&self, index: u64) -> Moment {
        let later = self.moments.partition_point(|moment| moment.index <= index);
        later.checked_sub(1).map(|at| self.moments[at]).unwrap_or_default()
    }

    /// Applies a command and says whether it took effect.
    fn apply(&mut self, index: u64, stamp: Stamp, what: &What) -> bool {
        let before = self.now();
        let (length, crc) = match what {
            What::Append => {
                let value = self.value.get_or_insert_default();
                value.extend_from_slice(&stamp.to_bytes());
                let mut hasher = crc32fast::Hasher::new_with_initial(before.crc);
                hasher.update(&stamp.to_bytes());
                (value.len() as u64, hasher.finalize())
            }
            What::CompareAndSet { expected } if *expected != before.version => return false,
            What::CompareAndSet { .. } => {
                let value = stamp.to_bytes().to_vec();
                let sum = (value.len() as u64, crc32fast::hash(&value));
                self.value = Some(value);
                sum
            }
            What::Put { length, crc } => {
                self.value = None;
                (*length, *crc)
            }
        };
        self.moments.push(Moment { index, version: before.version + 1, length, crc });
        true
    }
}

/// The surviving history, replayed.
struct Replay<'a> {
    /// The chain after so many commands; the first is that of the empty history.
    chains: Vec<u64>,
    /// What each command that stands in the history answered, the first time.
    replies: HashMap<Stamp, Reply>,
    stories: BTreeMap<&'a str, Story>,
}

impl<'a> Replay<'a> {
    fn run(issued: &Issued<'a>, history: &[Stamp], verdict: &mut Verdict) -> Self {
        let mut replay = Self { chains: vec![0], replies: HashMap::new(), stories: BTreeMap::new() };
        let (mut chain, mut last) = (0, HashMap::<u64, u64>::new());
        for (index, stamp) in (1_u64..).zip(history) {
            chain = link(chain, *stamp);
            replay.chains.push(chain);
            let Some((key, what)) = issued.get(stamp) else {
                verdict.find("invented", || format!("{stamp:?} at {index} was never issued"));
                continue;
            };
            let story = replay.stories.entry(key).or_default();
            let done = story.apply(index, *stamp, what);
            let reply = Reply { index, chain, version: story.now().version, done };
            if let Some(first) = replay.replies.get(stamp) {
                let first = first.index;
                verdict.find("duplicated", || format!("{stamp:?} at {first} and at {index}"));
                continue;
            }
            replay.replies.insert(*stamp, reply);
            let last = last.entry(stamp.client).or_default();
            if stamp.serial < *last {
                let last = *last;
                verdict.find("reordered", || format!("{stamp:?} at {index} comes after its client's {last}"));
            }
            *last = stamp.serial.max(*last);
        }
        replay
    }

    fn chain_at(&self, index: u64) -> Option<u64> {
        self.chains.get(usize::try_from(index).ok()?).copied()
    }

    fn check_values(&self, survivor: &Survivor, verdict: &mut Verdict) {
        let keys: HashSet<&str> = survivor.values.keys().map(String::as_str).collect();
        for (key, value) in &survivor.values {
            let story = self.stories.get(key.as_str()).cloned().unwrap_or_default();
            let Moment { version, length, crc, .. } = story.now();
            let same = (version, length, crc) == (value.version, value.length, value.crc);
            let same_bytes = match (&story.value, &value.bytes) {
                (Some(expected), Some(bytes)) => expected == bytes,
                _ => true,
            };
            if !same || !same_bytes {
                verdict.find("damaged", || format!("{key} is version {} of {} bytes", value.version, value.length));
            }
        }
        for (key, story) in &self.stories {
            if !story.moments.is_empty() && !keys.contains(key) {
                verdict.find("damaged", || format!("{key} does not exist"));
            }
        }
    }
}

fn check_writes(journals: &[Journal], replay: &Replay<'_>, named: &Named, gone: &mut Gone, verdict: &mut Verdict) {
    let mut writers: HashMap<(&str, u64), Stamp> = HashMap::new();
    let mut numbered: Vec<(u64, u64, Stamp)> = Vec::new();
    for journal in journals {
        let mut keys: HashMap<u64, &str> = HashMap::new();
        let mut returned = HashSet::new();
        // Serials, epochs and LSNs.
        let mut lost: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for line in &journal.lines {
            match line {
                Line::Issued { serial, key, .. } => {
                    keys.insert(*serial, key);
                    verdict.unknown += 1;
                }
                Line::Acknowledged { serial, epoch, lsn, reply, .. } => {
                    let stamp = Stamp { client: journal.client, serial: *serial };
                    verdict.acked += 1;
                    verdict.unknown = verdict.unknown.saturating_sub(1);
                    match replay.replies.get(&stamp) {
                        None => {
                            lost.insert(*serial, (*epoch, *lsn));
                            verdict.lost_keys.extend(keys.get(serial).map(|key| (*key).to_owned()));
                            verdict.find("lost", || format!("{stamp:?}, acknowledged as {reply:?}"));
                        }
                        Some(now) if now != reply => {
                            verdict.find("displaced", || format!("{stamp:?}, acknowledged as {reply:?}, is {now:?}"));
                        }
                        Some(_) if *lsn > 0 => numbered.push((reply.index, *lsn, stamp)),
                        Some(_) => {}
                    }
                    let key = keys.get(serial).copied().unwrap_or_default();
                    if !reply.done || (named.by_policy && lost.contains_key(serial)) {
                        continue;
                    }
                    if let Some(other) = writers.insert((key, reply.version), stamp) {
                        let version = reply.version;
                        verdict.find("split", || format!("version {version} of {key}: {other:?} and {stamp:?}"));
                    }
                }
                Line::Returned { serial, .. } if lost.contains_key(serial) => {
                    returned.insert(*serial);
                }
                _ => {}
            }
        }
        verdict.returned += returned.len() as u64;
        for (serial, (epoch, lsn)) in lost {
            let stamp = Stamp { client: journal.client, serial };
            gone.writes.insert(stamp);
            if !named.by_policy {
                continue;
            }
            let missing = named.missing.contains(&journal.client);
            match (named.names(epoch, lsn), missing) {
                (true, _) => verdict.named.0 += 1,
                (false, true) => verdict.named.1 += 1,
                (false, false) => verdict.find("unnamed", || format!("{stamp:?}, LSN {lsn} of epoch {epoch}")),
            }
            if !missing && !returned.contains(&serial) {
                verdict.find("untold", || format!("client {} of its lost write {serial}", journal.client));
            }
        }
    }
    numbered.sort_unstable();
    for pair in numbered.windows(2) {
        if pair[0].1 >= pair[1].1 {
            verdict.find("misnumbered", || format!("{:?} has LSN {}, after {}", pair[1].2, pair[1].1, pair[0].1));
        }
    }
}

fn check_reads(journals: &[Journal], replay: &Replay<'_>, named: &Named, gone: &mut Gone, verdict: &mut Verdict) {
    for journal in journals {
        let client = journal.client;
        let told = journal.lines.iter().any(|line| matches!(line, Line::RolledBack { .. }));
        let untold = named.by_policy && !told && !named.missing.contains(&client);
        let mut keys: HashMap<u64, &str> = HashMap::new();
        for line in &journal.lines {
            match line {
                Line::Asked { number, key, .. } => {
                    keys.insert(*number, key);
                }
                Line::Answered { number, index, chain, version, length, crc, .. } => {
                    verdict.reads += 1;
                    let key = keys.get(number).copied().unwrap_or_default();
                    let story = replay.stories.get(key).map(|story| story.at(*index)).unwrap_or_default();
                    let same_value = (story.version, story.length, story.crc) == (*version, *length, *crc);
                    if replay.chain_at(*index) != Some(*chain) || !same_value {
                        gone.reads.insert((client, *number));
                        verdict.find("lost_reads", || format!("client {client} read version {version} of {key}"));
                        if untold {
                            verdict.find("untold", || format!("client {client} that its read {number} is of no state"));
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whoever began after somebody else knew a history of some length must see at least as much.
fn check_real_time(journals: &[Journal], gone: &Gone, verdict: &mut Verdict) {
    /// An operation: when it began and ended, the history's length it saw, and whether it made it longer.
    struct Span {
        began: u64,
        ended: u64,
        index: u64,
        wrote: bool,
        what: (u64, u64),
    }
    let mut spans = Vec::new();
    for journal in journals {
        let (mut issued, mut asked) = (HashMap::new(), HashMap::new());
        for line in &journal.lines {
            match line {
                Line::Issued { serial, at, .. } => {
                    issued.insert(*serial, *at);
                }
                Line::Asked { number, at, .. } => {
                    asked.insert(*number, *at);
                }
                Line::Acknowledged { serial, at, reply, .. } => {
                    if gone.writes.contains(&Stamp { client: journal.client, serial: *serial }) {
                        continue;
                    }
                    let began = issued.get(serial).copied().unwrap_or(*at);
                    let what = (journal.client, *serial);
                    spans.push(Span { began, ended: *at, index: reply.index, wrote: true, what });
                }
                Line::Answered { number, at, index, .. } => {
                    if gone.reads.contains(&(journal.client, *number)) {
                        continue;
                    }
                    let began = asked.get(number).copied().unwrap_or(*at);
                    spans.push(Span {
                        began,
                        ended: *at,
                        index: *index,
                        wrote: false,
                        what: (journal.client, *number),
                    });
                }
                _ => {}
            }
        }
    }
    let mut ends: Vec<(u64, u64)> = spans.iter().map(|span| (span.ended, span.index)).collect();
    ends.sort_unstable();
    spans.sort_unstable_by_key(|span| span.began);
    let (mut ended, mut known) = (ends.into_iter().peekable(), 0);
    for span in &spans {
        while let Some((_, index)) = ended.next_if(|(at, _)| *at < span.began) {
            known = known.max(index);
        }
        if span.index < known || (span.wrote && span.index == known) {
            let ((client, number), index) = (span.what, span.index);
            verdict.find("stale", || format!("{number} of client {client} is at {index}; {known} was known before"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Act, Command, Ledger, Question, Reading};
    use bytes::Bytes;
    use tagalong::log::{Body, Digest, Entry, Epoch, Header, Lsn, Request, Time};
    use tagalong::store::StateMachine;

    /// Two clients on one store, in order, with journals as clients keep them.
    struct Scene {
        ledger: Ledger,
        history: Vec<Stamp>,
        journals: Vec<Journal>,
        at: u64,
        serials: [u64; 2],
        questions: u64,
        keys: Vec<String>,
    }

    impl Scene {
        fn new() -> Self {
            let journals = vec![Journal { client: 0, lines: vec![] }, Journal { client: 1, lines: vec![] }];
            let (ledger, history, keys) = (Ledger::default(), Vec::new(), Vec::new());
            Self { ledger, history, journals, at: 0, serials: [0; 2], questions: 0, keys }
        }

        fn tick(&mut self) -> u64 {
            self.at += 10;
            self.at
        }

        fn execute(&mut self, command: &Command) -> Reply {
            let header = Header {
                epoch: Epoch::ZERO,
                lsn: Lsn(0),
                body: Body::Command,
                origin: None,
                time: Time(0),
                answered: Request(0),
                length: 0,
                digest: Digest::default(),
            };
            let mut replies = Vec::new();
            let entry = Entry { header, payload: command.encode() };
            self.ledger.apply(&[&entry], &mut replies).expect("no storage");
            self.history.push(command.stamp);
            Reply::decode(&replies[0]).expect("a reply")
        }

        fn write(&mut self, client: usize, key: &str, act: Act) -> Reply {
            self.serials[client] += 1;
            let stamp = Stamp { client: client as u64, serial: self.serials[client] };
            let command = Command { stamp, key: key.into(), act };
            let at = self.tick();
            self.journals[client].lines.push(Line::issued(at, &command));
            let reply = self.execute(&command);
            let (at, serial, lsn) = (self.tick(), stamp.serial, reply.index + 3);
            self.keys.push(key.into());
            self.journals[client].lines.push(Line::Acknowledged { serial, at, latency: 10, epoch: 1, lsn, reply });
            reply
        }

        fn read(&mut self, client: usize, key: &str) {
            self.questions += 1;
            let number = self.questions;
            let at = self.tick();
            self.journals[client].lines.push(Line::Asked { number, at, key: key.into() });
            let answer = self.ledger.query(&Question::Get(key.into()).encode()).expect("no storage");
            let reading = Reading::decode(&answer).expect("a reading");
            let at = self.tick();
            self.journals[client].lines.push(Line::answered(number, at, &reading));
        }

        /// A life in which everything is right.
        fn good() -> Self {
            let mut scene = Scene::new();
            for round in 0..5_u8 {
                scene.write(0, "list/a", Act::Append);
                scene.write(1, "list/a", Act::Append);
                scene.read(0, "list/a");
                scene.write(0, "counter/1", Act::CompareAndSet { expected: u64::from(round) });
                scene.write(1, "counter/1", Act::CompareAndSet { expected: u64::from(round) });
                scene.write(1, "blob/1", Act::Put { value: vec![round; 300].into() });
                scene.read(0, "blob/1");
                scene.read(1, "counter/1");
            }
            scene
        }

        /// The state rebuilt from a changed history; what is acknowledged stays.
        fn rebuilt(&self, history: &[Stamp]) -> Survivor {
            let commands: HashMap<Stamp, (String, What)> = issued(&self.journals)
                .into_iter()
                .map(|(stamp, (key, what))| (stamp, (key.to_string(), what.clone())))
                .collect();
            let mut other = Scene::new();
            for stamp in history {
                let (key, what) = &commands[stamp];
                let act = match what {
                    What::Append => Act::Append,
                    What::CompareAndSet { expected } => Act::CompareAndSet { expected: *expected },
                    // The fifth round's value where the round is not known: only its identity is compared.
                    What::Put { length, crc } => {
                        let round = (0..5_u8).find(|round| crc32fast::hash(&[*round; 300]) == *crc).unwrap_or(9);
                        Act::Put { value: Bytes::from(vec![round; usize::try_from(*length).unwrap_or(0)]) }
                    }
                };
                other.execute(&Command { stamp: *stamp, key: key.clone(), act });
            }
            let mut survivor = Survivor { history: history.to_vec(), values: BTreeMap::new() };
            for (key, _) in commands.values() {
                let answer = other.ledger.query(&Question::Get(key.clone()).encode()).expect("no storage");
                let reading = Reading::decode(&answer).expect("a reading");
                if reading.version > 0 {
                    let bytes = reading.value.map(|value| value.to_vec());
                    let Reading { version, length, crc, .. } = reading;
                    survivor.values.insert(key.clone(), Value { version, length, crc, bytes });
                }
            }
            survivor
        }

        fn verdict(&self, history: &[Stamp]) -> Verdict {
            self.judged(history, &Named::default())
        }

        fn judged(&self, history: &[Stamp], named: &Named) -> Verdict {
            check(&self.journals, &self.rebuilt(history), named)
        }
    }

    #[test]
    fn a_good_life_is_clean() {
        let scene = Scene::good();
        let verdict = scene.verdict(&scene.history);
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.acked, verdict.reads, verdict.unknown), (25, 15, 0));
    }

    #[test]
    fn a_lost_tail_is_lost_with_the_reads_of_it() {
        let scene = Scene::good();
        let mut scene = scene;
        // One of the three was given back to its client.
        scene.journals[1].lines.push(Line::Returned { serial: scene.serials[1], at: scene.at });
        let verdict = scene.verdict(&scene.history[..22]);
        assert_eq!(verdict.returned, 1);
        assert_eq!(verdict.lost, 3, "{verdict:?}");
        assert_eq!(verdict.lost_reads, 2, "{verdict:?}");
        assert_eq!((verdict.displaced, verdict.duplicated, verdict.damaged), (0, 0, 0), "{verdict:?}");
    }

    /// The good life, with the last three writes lost by decision: two of client 1, one of client 0. LSNs are three more
    /// than places in the history.
    fn concluded() -> (Scene, Named) {
        let mut scene = Scene::good();
        scene.journals[0].lines.push(Line::RolledBack { epoch: 1, at: scene.at, observed: 28 });
        let stop = Named { by_policy: true, epoch: 2, start: 26, observed: 28, ..Named::default() };
        let lost: Vec<Stamp> = scene.history[22..].to_vec();
        for stamp in lost {
            let client = usize::try_from(stamp.client).expect("two clients");
            scene.journals[client].lines.push(Line::Returned { serial: stamp.serial, at: scene.at });
        }
        scene.journals[1].lines.push(Line::RolledBack { epoch: 1, at: scene.at, observed: 28 });
        (scene, stop)
    }

    #[test]
    fn what_is_lost_by_decision_has_to_be_named_and_told() {
        let (scene, stop) = concluded();
        let verdict = scene.judged(&scene.history[..22], &stop);
        assert_eq!((verdict.lost, verdict.named, verdict.returned), (3, (3, 0), 3), "{verdict:?}");
        assert!(verdict.is_honest() && !verdict.is_clean(), "{verdict:?}");
        let keys = ["blob/1", "counter/1"].map(String::from);
        assert_eq!(verdict.lost_keys, HashSet::from(keys), "{verdict:?}");

        let short = Named { observed: 27, ..stop.clone() };
        let verdict = scene.judged(&scene.history[..22], &short);
        assert_eq!((verdict.named, verdict.unnamed), ((2, 0), 1), "the last one is named by nobody: {verdict:?}");
        assert!(!verdict.is_honest());
        let other = Named { epoch: 1, ..stop.clone() };
        assert_eq!(scene.judged(&scene.history[..22], &other).unnamed, 3, "an LSN of the reign itself is no excuse");

        let dead = Named { missing: HashSet::from([1]), ..short };
        let verdict = scene.judged(&scene.history[..22], &dead);
        assert_eq!((verdict.unnamed, verdict.untold), (0, 0), "its client was not heard: {verdict:?}");

        let all = Named { by_policy: false, ..stop };
        let verdict = scene.judged(&scene.history[..22], &all);
        assert_eq!((verdict.lost, verdict.named), (3, (0, 0)), "nobody decided that: {verdict:?}");
    }

    #[test]
    fn a_gap_in_the_middle_names_what_it_covers() {
        let (scene, stop) = concluded();
        let mut history = scene.history.clone();
        let lost = history.remove(20);
        let gaps = Named { start: 29, gaps: std::iter::once(24..25).collect(), ..stop };
        let verdict = scene.judged(&history, &gaps);
        assert_eq!((verdict.lost, verdict.named, verdict.unnamed), (1, (1, 0), 0), "{lost:?} {verdict:?}");
    }

    #[test]
    fn who_is_not_told_is_found() {
        let mute = |keep: fn(&Line) -> bool| {
            let (mut scene, stop) = concluded();
            scene.journals.iter_mut().for_each(|journal| journal.lines.retain(keep));
            scene.judged(&scene.history[..22], &stop)
        };
        let verdict = mute(|line| !matches!(line, Line::Returned { .. }));
        assert_eq!((verdict.untold, verdict.unnamed), (3, 0), "{verdict:?}");
        let verdict = mute(|line| !matches!(line, Line::RolledBack { .. }));
        assert_eq!((verdict.untold, verdict.lost_reads), (2, 2), "{verdict:?}");
    }

    #[test]
    fn after_a_decision_time_goes_on_from_what_is_left() {
        let (mut scene, stop) = concluded();
        let survivors = scene.history[..22].to_vec();
        // The new reign's first write stands where a lost one stood.
        let stamp = Stamp { client: 0, serial: 99 };
        let command = Command { stamp, key: "list/new".into(), act: Act::Append };
        let chain = survivors.iter().fold(0, |chain, stamp| link(chain, *stamp));
        let reply = Reply { index: 23, chain: link(chain, stamp), version: 1, done: true };
        let at = scene.tick();
        scene.journals[0].lines.push(Line::issued(at, &command));
        let at = scene.tick();
        let line = Line::Acknowledged { serial: 99, at, latency: 10, epoch: 2, lsn: 27, reply };
        scene.journals[0].lines.push(line);
        let history = [&survivors[..], &[stamp]].concat();
        let verdict = scene.judged(&history, &stop);
        assert_eq!((verdict.stale, verdict.lost), (0, 3), "{verdict:?}");
        assert!(verdict.is_honest(), "{verdict:?}");
        let verdict = scene.judged(&history, &Named::default());
        assert!(verdict.stale > 0, "without a decision it is a step back: {verdict:?}");
    }

    #[test]
    fn a_write_lost_in_the_middle_displaces_what_follows() {
        let scene = Scene::good();
        let mut history = scene.history.clone();
        history.remove(20);
        let verdict = scene.verdict(&history);
        assert_eq!((verdict.lost, verdict.displaced), (1, 4), "{verdict:?}");
    }

    #[test]
    fn a_write_applied_twice_is_found() {
        let scene = Scene::good();
        let mut history = scene.history.clone();
        history.push(history[24]);
        let verdict = scene.verdict(&history);
        assert_eq!((verdict.duplicated, verdict.lost, verdict.displaced), (1, 0, 0), "{verdict:?}");
        assert!(!verdict.is_clean());
    }

    #[test]
    fn two_writes_in_the_wrong_order_are_found() {
        let scene = Scene::good();
        let mut history = scene.history.clone();
        // Of the same key and of two clients: nobody's own order is touched, and no version is new.
        history.swap(20, 21);
        let verdict = scene.verdict(&history);
        assert_eq!((verdict.lost, verdict.reordered), (0, 0), "{verdict:?}");
        assert_eq!(verdict.displaced, 5, "the two, and what stands on another prefix now; {verdict:?}");
        assert!(!verdict.is_clean());

        let mut history = scene.history.clone();
        history.swap(21, 23);
        let verdict = scene.verdict(&history);
        assert!(verdict.reordered > 0, "a client's own order; {verdict:?}");
    }

    #[test]
    fn a_write_of_nobody_is_found() {
        let scene = Scene::good();
        let mut survivor = scene.rebuilt(&scene.history);
        survivor.history.push(Stamp { client: 9, serial: 1 });
        assert_eq!(check(&scene.journals, &survivor, &Named::default()).invented, 1);
    }

    #[test]
    fn a_read_of_another_value_is_found() {
        let mut scene = Scene::good();
        let answer = scene.journals[0].lines.iter_mut().find(|line| matches!(line, Line::Answered { .. }));
        let Some(Line::Answered { crc, .. }) = answer else { panic!("an answer") };
        *crc ^= 1;
        let verdict = scene.verdict(&scene.history);
        assert_eq!(verdict.lost_reads, 1);
    }

    #[test]
    fn a_read_of_the_past_is_stale() {
        let mut scene = Scene::good();
        scene.read(0, "list/a");
        let Some(old) = scene.journals[0].lines.pop() else { panic!("an answer") };
        let Some(Line::Asked { number, key, .. }) = scene.journals[0].lines.pop() else { panic!("a question") };
        scene.write(1, "list/b", Act::Append);
        let at = scene.tick();
        scene.journals[0].lines.push(Line::Asked { number, at, key });
        let Line::Answered { index, chain, version, length, crc, .. } = old else { panic!("an answer") };
        let at = scene.tick();
        scene.journals[0].lines.push(Line::Answered { number, at, index, chain, version, length, crc });
        let verdict = scene.verdict(&scene.history);
        assert_eq!((verdict.stale, verdict.lost_reads), (1, 0), "{verdict:?}");
    }

    #[test]
    fn a_key_that_goes_back_is_not_linearizable() {
        let mut scene = Scene::good();
        scene.read(0, "list/a");
        let lines = &mut scene.journals[0].lines;
        let old = lines.split_off(lines.len() - 2);
        scene.write(1, "list/a", Act::Append);
        // What was read before that write, and asked after it.
        for mut line in old {
            let now = scene.tick();
            if let Line::Asked { at, .. } | Line::Answered { at, .. } = &mut line {
                *at = now;
            }
            scene.journals[0].lines.push(line);
        }
        let verdict = scene.verdict(&scene.history);
        assert_eq!((verdict.stale, verdict.not_linearizable), (1, 1), "{verdict:?}");
        // Another key knows nothing of it: only the whole history's length tells that the read is stale.
        assert!(verdict.examples.iter().any(|why| why.starts_with("not_linearizable: list/a")), "{verdict:?}");
    }

    #[test]
    fn two_winners_of_one_version_are_found() {
        let mut scene = Scene::good();
        for line in &mut scene.journals[1].lines {
            if let Line::Acknowledged { serial: 2, reply, .. } = line {
                assert!(!reply.done, "this one was refused");
                reply.done = true;
            }
        }
        let verdict = scene.verdict(&scene.history);
        assert_eq!((verdict.split, verdict.displaced), (1, 1), "{verdict:?}");
    }

    #[test]
    fn an_lsn_out_of_order_is_found() {
        let mut scene = Scene::good();
        if let Some(Line::Acknowledged { lsn, .. }) = scene.journals[0].lines.get_mut(1) {
            *lsn += 1;
        }
        assert_eq!(scene.verdict(&scene.history).misnumbered, 1);
    }

    #[test]
    fn a_value_that_is_not_what_the_history_says_is_damaged() {
        let scene = Scene::good();
        let good = scene.rebuilt(&scene.history);
        let damages: [&dyn Fn(&mut Survivor); 4] = [
            &|survivor| drop(survivor.values.remove("list/a")),
            &|survivor| drop(survivor.values.insert("extra".into(), Value { version: 1, ..Value::default() })),
            &|survivor| survivor.values.get_mut("blob/1").into_iter().for_each(|value| value.crc ^= 1),
            &|survivor| {
                let value = survivor.values.get_mut("list/a").and_then(|value| value.bytes.as_mut());
                value.into_iter().for_each(|bytes| bytes[7] ^= 1);
            },
        ];
        for damage in damages {
            let mut survivor = good.clone();
            damage(&mut survivor);
            assert_eq!(check(&scene.journals, &survivor, &Named::default()).damaged, 1);
        }
    }

    #[test]
    fn an_outcome_that_nobody_learned_may_be_either() {
        let mut scene = Scene::good();
        scene.write(0, "list/a", Act::Append);
        scene.journals[0].lines.pop();
        let with = scene.verdict(&scene.history);
        let without = scene.verdict(&scene.history[..25]);
        assert!(with.is_clean() && without.is_clean(), "{with:?} {without:?}");
        assert_eq!((with.unknown, without.unknown), (1, 1));
    }
}
