//! The conformance suite on every store of this crate, and on stores that are broken in one way each: a check that
//! cannot fail is no check.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::cell::RefCell;
use std::fs;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tagalong::client::CacheOp;
use tagalong::codec;
use tagalong::log::{Body, Digest, Entry, Epoch, Header, Lsn, Record, Request, Time};
use tagalong::store::file::{FileCache, FileCacheOptions, FileLog, FileLogOptions};
use tagalong::store::kv::{KvCommand, KvQuery, KvStore};
use tagalong::store::memory::{MemoryCache, MemoryLog};
use tagalong::store::{ClientCache, Encoded, LogStore, Marks, StateMachine, conformance};
use tempfile::TempDir;

fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn options() -> FileLogOptions {
    FileLogOptions { segment_bytes: 3000, zero_ahead_bytes: 500, ..FileLogOptions::default() }
}

#[test]
fn memory_log() {
    conformance::log_store(|| {
        let disk = MemoryLog::new();
        move || disk.clone()
    });
    conformance::log_store_crash(|| {
        let disk = MemoryLog::new();
        let crashed = disk.clone();
        (move || disk.clone(), move |log: MemoryLog, dice| crash(&log, &crashed, dice))
    });
}

fn crash(log: &MemoryLog, disk: &MemoryLog, dice: u64) {
    assert_eq!(log.unsynced(), disk.unsynced());
    disk.crash(dice as usize % (disk.unsynced() + 1));
}

#[test]
fn file_log() {
    for options in [options(), FileLogOptions::default()] {
        conformance::log_store(|| {
            let dir = scratch();
            move || FileLog::open(dir.path(), options).unwrap()
        });
        // The crash: a copy of the directory, the last segment of which ends somewhere behind what was synced.
        conformance::log_store_crash(|| {
            let dir = Rc::new(RefCell::new(scratch()));
            let crashed = Rc::clone(&dir);
            let open = move || FileLog::open(dir.borrow().path(), options).unwrap();
            (open, move |log: FileLog, dice| crash_files(log, &crashed, dice))
        });
    }
}

/// Replaces the directory by one in which only a part of the last write has reached the disk.
fn crash_files(log: FileLog, dir: &RefCell<TempDir>, dice: u64) {
    let image = scratch();
    for entry in fs::read_dir(dir.borrow().path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), image.path().join(entry.file_name())).unwrap();
    }
    drop(log);
    let mut segments: Vec<_> = fs::read_dir(image.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("log-"));
    segments.sort();
    if let Some(path) = segments.pop() {
        // A frame says how much was durable when it was written.
        let mut bytes = fs::read(&path).unwrap();
        let frames = frames(&bytes);
        let durable = frames.last().map_or(0, |(_, _, durable)| *durable);
        let tail: Vec<_> = frames.iter().filter(|(_, lsn, _)| *lsn > durable).map(|(at, ..)| *at).collect();
        if !tail.is_empty() {
            let nth = dice as usize % tail.len();
            // In the middle of a record, which is lost with all that follow.
            bytes.truncate(tail[nth] + 40);
            fs::write(&path, bytes).unwrap();
        }
    }
    *dir.borrow_mut() = image;
}

/// Offset, LSN and `durable` of the frames of a segment.
fn frames(bytes: &[u8]) -> Vec<(usize, u64, u64)> {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut frames = Vec::new();
    let mut at = 64;
    while at + 32 <= bytes.len() && bytes[at + 28] == 1 {
        frames.push((at, number(at + 8), number(at + 16)));
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        at += 32 + length.next_multiple_of(8);
    }
    frames
}

#[test]
fn memory_cache() {
    conformance::client_cache(|| {
        let disk = MemoryCache::new();
        move || disk.clone()
    });
}

#[test]
fn file_cache() {
    for sync in [false, true] {
        conformance::client_cache(|| {
            let dir = scratch();
            move || FileCache::open(dir.path(), FileCacheOptions { sync }).unwrap()
        });
    }
}

fn commands() -> Vec<Bytes> {
    let mut commands = Vec::new();
    for n in 0..20 {
        commands.push(KvCommand::put(format!("key {}", n % 7), format!("value {n}")).encode());
        commands.push(KvCommand::append(format!("key {}", n % 5), "+").encode());
        commands.push(KvCommand::compare_and_set("key 1", Some("value 1+"), Some("set")).encode());
        commands.push(KvCommand::delete(format!("key {}", n % 3)).encode());
    }
    commands
}

fn queries() -> Vec<Bytes> {
    vec![KvQuery::get("key 1").encode(), KvQuery::get("key 6").encode(), KvQuery::list("").encode()]
}

#[test]
fn key_value_store() {
    conformance::state_machine(KvStore::new, &commands(), &queries());
}

/// Runs a suite that has to fail in the check `expected`.
fn caught(expected: &str, what: &str, suite: impl FnOnce()) {
    let failure = catch_unwind(AssertUnwindSafe(suite)).expect_err(&format!("{what} is not noticed"));
    let why = failure.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(why.starts_with(expected), "{what} should fail in \"{expected}\" and fails with: {why}");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    MarksFromNowhere,
    EmptySyncIsOne,
    BoundsWithoutTheUnsynced,
    SyncIsBehind,
    SwapsRecords,
    DropsReplies,
    ReadsTooMuch,
    ReadsNothingIfTooSmall,
    ReadsOneByOne,
    ReadsTheLastPastTheEnd,
    EncodesTheWrongPlace,
    EncodesTooMuch,
    TakesAnyRecord,
    TakesHalfABatch,
    LosesTheLastAtRestart,
    MarksAreForgottenAtRestart,
    MarksStayAsTheyWere,
    CutsNothing,
    CutsOneTooMany,
    CutComesBackAtRestart,
    CutForgetsMarks,
    SyncIsLazy,
    CutIsLazy,
    MarksAreLazy,
    UnsyncedComesBack,
}

/// What a broken log keeps beside the log it is made of.
#[derive(Default)]
struct Aside {
    marks: Option<Marks>,
    durable_marks: Option<Marks>,
    /// Records that ought to be gone.
    gone: Vec<Record>,
}

/// A memory log with a bug.
#[derive(Clone)]
struct Broken {
    bug: Bug,
    log: MemoryLog,
    aside: Arc<Mutex<Aside>>,
}

impl Broken {
    fn new(bug: Bug) -> Self {
        Self { bug, log: MemoryLog::new(), aside: Arc::default() }
    }

    fn restart(&self) -> Self {
        let mut next = self.clone();
        let end = next.log.bounds().end;
        match self.bug {
            Bug::LosesTheLastAtRestart if end > Lsn(2) => next.log.truncate_after(Lsn(end.0 - 2)).unwrap(),
            Bug::MarksAreForgottenAtRestart => self.aside.lock().unwrap().marks = None,
            Bug::CutComesBackAtRestart => next.come_back(),
            _ => {}
        }
        next
    }

    fn crash(mut self, dice: u64) {
        let unsynced = self.log.unsynced();
        let keep = dice as usize % (unsynced + 1);
        let mut lost = Vec::new();
        if self.bug == Bug::UnsyncedComesBack {
            let first = self.log.bounds().end.0 - (unsynced - keep) as u64;
            lost = self.log.read(Lsn(first), usize::MAX).unwrap();
        }
        self.log.crash(keep);
        match self.bug {
            Bug::CutIsLazy => self.come_back(),
            Bug::UnsyncedComesBack => {
                self.come_back();
                self.aside.lock().unwrap().gone = lost;
            }
            _ => {}
        }
        let mut aside = self.aside.lock().unwrap();
        aside.marks = aside.durable_marks.clone();
    }

    /// The records that are gone are there again.
    fn come_back(&mut self) {
        let gone = std::mem::take(&mut self.aside.lock().unwrap().gone);
        let end = self.log.bounds().end;
        let gone: Vec<_> = gone.into_iter().filter(|record| record.lsn() >= end).collect();
        if gone.first().is_some_and(|record| record.lsn() == end) {
            self.log.append(&gone).unwrap();
            self.log.sync().unwrap();
        }
    }
}

impl LogStore for Broken {
    fn marks(&mut self) -> io::Result<Option<Marks>> {
        let marks = self.aside.lock().unwrap().marks.clone();
        Ok(if self.bug == Bug::MarksFromNowhere { marks.or(Some(Marks::default())) } else { marks })
    }

    fn save_marks(&mut self, marks: &Marks) -> io::Result<()> {
        let mut aside = self.aside.lock().unwrap();
        if self.bug != Bug::MarksStayAsTheyWere || aside.marks.is_none() {
            aside.marks = Some(marks.clone());
        }
        if self.bug != Bug::MarksAreLazy {
            aside.durable_marks = Some(marks.clone());
        }
        Ok(())
    }

    fn bounds(&self) -> Range<Lsn> {
        let mut bounds = self.log.bounds();
        if self.bug == Bug::BoundsWithoutTheUnsynced {
            bounds.end.0 -= self.log.unsynced() as u64;
        }
        bounds
    }

    fn read(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Vec<Record>> {
        let end = self.log.bounds().end;
        let limit = if self.bug == Bug::ReadsTooMuch { bytes_max.saturating_mul(3) } else { bytes_max };
        let from = if self.bug == Bug::ReadsTheLastPastTheEnd { from.min(end.prev()) } else { from };
        let mut found = self.log.read(from, limit)?;
        match self.bug {
            Bug::SwapsRecords if found.len() > 3 => found.swap(1, 2),
            Bug::DropsReplies => found.iter_mut().for_each(|record| record.reply = Digest::default()),
            Bug::ReadsOneByOne => found.truncate(1),
            Bug::ReadsNothingIfTooSmall => found.retain(|record| record.cost() <= bytes_max as u64),
            _ => {}
        }
        Ok(found)
    }

    fn read_encoded(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Encoded> {
        let limit = if self.bug == Bug::EncodesTooMuch { bytes_max.saturating_mul(3) } else { bytes_max };
        let records = self.read(from, limit)?;
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for record in &records {
            codec::encode_record(record, &mut bytes);
            ends.push(bytes.len());
        }
        let first = if self.bug == Bug::EncodesTheWrongPlace { from.next() } else { from };
        Ok(Encoded::new(first, bytes, ends))
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let mut next = self.log.bounds().end;
        match self.bug {
            Bug::TakesAnyRecord => {
                let mut records = records.to_vec();
                for record in &mut records {
                    record.entry.header.lsn = next;
                    next = next.next();
                }
                self.log.append(&records)
            }
            Bug::TakesHalfABatch => records.iter().try_for_each(|record| self.log.append(std::slice::from_ref(record))),
            _ => self.log.append(records),
        }
    }

    fn sync(&mut self) -> io::Result<Lsn> {
        let last = self.log.bounds().end.prev();
        match self.bug {
            Bug::SyncIsLazy => Ok(last),
            Bug::EmptySyncIsOne if last == Lsn(0) => Ok(Lsn(1)),
            Bug::SyncIsBehind => Ok(self.log.sync()?.prev()),
            _ => self.log.sync(),
        }
    }

    fn truncate_after(&mut self, last: Lsn) -> io::Result<()> {
        match self.bug {
            Bug::CutsNothing => return Ok(()),
            Bug::CutsOneTooMany => return self.log.truncate_after(last.prev()),
            Bug::CutForgetsMarks => self.aside.lock().unwrap().marks = None,
            Bug::CutIsLazy | Bug::CutComesBackAtRestart => {
                self.aside.lock().unwrap().gone = self.log.read(last.next(), usize::MAX)?;
            }
            _ => {}
        }
        self.log.truncate_after(last)
    }
}

#[test]
fn every_broken_log_is_caught() {
    for (bug, check) in [
        (Bug::MarksFromNowhere, "an empty log"),
        (Bug::EmptySyncIsOne, "an empty log"),
        (Bug::BoundsWithoutTheUnsynced, "appended records are read"),
        (Bug::SyncIsBehind, "appended records are read"),
        (Bug::SwapsRecords, "appended records are read"),
        (Bug::DropsReplies, "appended records are read"),
        (Bug::ReadsTooMuch, "reads keep to the limit"),
        (Bug::ReadsNothingIfTooSmall, "reads keep to the limit"),
        (Bug::ReadsOneByOne, "appended records are read"),
        (Bug::ReadsTheLastPastTheEnd, "reads keep to the limit"),
        (Bug::EncodesTheWrongPlace, "appended records are read"),
        (Bug::EncodesTooMuch, "reads keep to the limit"),
        (Bug::TakesAnyRecord, "only the next record is taken"),
        (Bug::TakesHalfABatch, "only the next record is taken"),
        (Bug::LosesTheLastAtRestart, "a restart keeps what was synced"),
        (Bug::MarksAreForgottenAtRestart, "marks are replaced"),
        (Bug::MarksStayAsTheyWere, "marks are replaced"),
        (Bug::CutsNothing, "a cut is final"),
        (Bug::CutsOneTooMany, "a cut is final"),
        (Bug::CutComesBackAtRestart, "a cut is final"),
        (Bug::CutForgetsMarks, "a cut is final"),
    ] {
        caught(check, &format!("{bug:?}"), || {
            conformance::log_store(|| {
                let disk = Broken::new(bug);
                move || disk.restart()
            });
        });
    }
}

#[test]
fn every_log_broken_by_a_crash_is_caught() {
    let run = |bug| {
        conformance::log_store_crash(|| {
            let disk = Broken::new(bug);
            (move || disk.restart(), |log: Broken, dice| log.crash(dice))
        });
    };
    // This bug does not show in a crash: the harness itself breaks nothing.
    run(Bug::ReadsTooMuch);
    for (bug, check) in [
        (Bug::SyncIsLazy, "a crash leaves what was synced, and a prefix"),
        (Bug::UnsyncedComesBack, "a crash leaves what was synced, and a prefix"),
        (Bug::CutIsLazy, "a crash does not undo marks and cuts"),
        (Bug::MarksAreLazy, "a crash does not undo marks and cuts"),
    ] {
        caught(check, &format!("{bug:?}"), || run(bug));
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum CacheBug {
    StartsWithSomething,
    ForgetsTheLast,
    ForgetsTheLastAtRestart,
    Reverses,
    WritesTheFirstOfMany,
    ForgetsShares,
    CutsLargeShares,
    ForgetsWhatIsSettled,
}

#[derive(Clone)]
struct BrokenCache {
    bug: CacheBug,
    ops: Arc<Mutex<Vec<CacheOp>>>,
}

impl ClientCache for BrokenCache {
    fn load(&mut self) -> io::Result<Vec<CacheOp>> {
        let mut ops = self.ops.lock().unwrap().clone();
        match self.bug {
            CacheBug::StartsWithSomething => ops.push(CacheOp::Welcomed),
            CacheBug::ForgetsTheLast => drop(ops.pop()),
            CacheBug::Reverses => ops.reverse(),
            _ => {}
        }
        Ok(ops)
    }

    fn write(&mut self, ops: &[CacheOp]) -> io::Result<()> {
        let ops = if self.bug == CacheBug::WritesTheFirstOfMany { &ops[..ops.len().min(1)] } else { ops };
        let mut ops = ops.to_vec();
        ops.retain(|op| match op {
            CacheOp::Share(_) => self.bug != CacheBug::ForgetsShares,
            CacheOp::Settled(..) => self.bug != CacheBug::ForgetsWhatIsSettled,
            _ => true,
        });
        if self.bug == CacheBug::CutsLargeShares {
            for op in &mut ops {
                if let CacheOp::Share(share) = op {
                    share.body.truncate(usize::from(u16::MAX));
                }
            }
        }
        self.ops.lock().unwrap().extend(ops);
        Ok(())
    }
}

#[test]
fn every_broken_cache_is_caught() {
    for (bug, check) in [
        (CacheBug::StartsWithSomething, "a new cache is empty"),
        (CacheBug::ForgetsTheLast, "written operations are loaded"),
        (CacheBug::ForgetsTheLastAtRestart, "written operations are loaded: a restart"),
        (CacheBug::Reverses, "written operations are loaded"),
        (CacheBug::WritesTheFirstOfMany, "written operations are loaded"),
        (CacheBug::ForgetsShares, "shares are kept until they are released"),
        (CacheBug::CutsLargeShares, "shares are kept until they are released"),
        (CacheBug::ForgetsWhatIsSettled, "shares are kept until they are released"),
    ] {
        caught(check, &format!("{bug:?}"), || {
            conformance::client_cache(|| {
                let disk = BrokenCache { bug, ops: Arc::default() };
                move || {
                    if bug == CacheBug::ForgetsTheLastAtRestart {
                        disk.ops.lock().unwrap().pop();
                    }
                    disk.clone()
                }
            });
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum MachineBug {
    AnswersOnce,
    ClearsReplies,
    CountsCalls,
    CountsQueries,
    QueriesLeak,
    ForgetsNothingOnRestore,
    TakesTornSnapshots,
    HalfASnapshot,
    FailsOnNonsense,
    SaysItIsDurable,
}

struct BrokenMachine {
    bug: MachineBug,
    store: KvStore,
    calls: u64,
    queries: u64,
}

impl StateMachine for BrokenMachine {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        self.calls += 1;
        let before = replies.len();
        if self.bug == MachineBug::ClearsReplies {
            replies.iter_mut().for_each(|reply| *reply = Bytes::new());
        }
        if self.bug == MachineBug::FailsOnNonsense
            && let Some(bad) = commands.iter().find_map(|entry| KvCommand::decode(&entry.payload).err())
        {
            return Err(bad.into());
        }
        self.store.apply(commands, replies)?;
        match self.bug {
            MachineBug::AnswersOnce => replies.truncate(before + 1),
            MachineBug::CountsCalls => replies[before] = Bytes::from(self.calls.to_string()),
            MachineBug::QueriesLeak => replies[before..].fill(Bytes::from(self.queries.to_string())),
            _ => {}
        }
        Ok(())
    }

    fn query(&mut self, query: &Bytes) -> io::Result<Bytes> {
        self.queries += 1;
        let reply = self.store.query(query)?;
        let count = Bytes::from(self.queries.to_string());
        Ok(if self.bug == MachineBug::CountsQueries { [reply, count].concat().into() } else { reply })
    }

    fn durable(&self) -> Lsn {
        Lsn(u64::from(self.bug == MachineBug::SaysItIsDurable))
    }

    fn snapshot(&self, out: &mut dyn io::Write) -> io::Result<()> {
        if self.bug == MachineBug::HalfASnapshot { KvStore::new().snapshot(out) } else { self.store.snapshot(out) }
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut store = KvStore::new();
        match (self.bug, store.restore(from)) {
            (MachineBug::TakesTornSnapshots, Err(_)) => {}
            (MachineBug::ForgetsNothingOnRestore, Ok(())) if !self.store.is_empty() => {}
            (_, result) => {
                result?;
                self.store = store;
            }
        }
        Ok(())
    }
}

#[test]
fn every_broken_state_machine_is_caught() {
    for (bug, check) in [
        (MachineBug::AnswersOnce, "the state is a function of the commands"),
        (MachineBug::ClearsReplies, "the state is a function of the commands"),
        (MachineBug::CountsCalls, "the state is a function of the commands"),
        (MachineBug::CountsQueries, "queries change nothing"),
        (MachineBug::QueriesLeak, "queries change nothing"),
        (MachineBug::ForgetsNothingOnRestore, "a snapshot is the state"),
        (MachineBug::TakesTornSnapshots, "a snapshot is the state"),
        (MachineBug::HalfASnapshot, "a snapshot is the state"),
        (MachineBug::FailsOnNonsense, "nonsense is answered"),
        (MachineBug::SaysItIsDurable, "durable"),
    ] {
        caught(check, &format!("{bug:?}"), || {
            let new = || BrokenMachine { bug, store: KvStore::new(), calls: 0, queries: 0 };
            conformance::state_machine(new, &commands(), &queries());
        });
    }
}

#[test]
fn faults_can_be_injected_into_memory() {
    let mut log = MemoryLog::new();
    let record = {
        let header = Header {
            epoch: Epoch::ZERO,
            lsn: Lsn(1),
            body: Body::Noop,
            origin: None,
            time: Time(0),
            answered: Request(0),
            length: 0,
            digest: Digest::default(),
        };
        Record { entry: Entry { header, payload: Bytes::new() }, reply: Digest::default() }
    };
    log.set_bytes_max(Some(100));
    let error = log.append(std::slice::from_ref(&record)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(log.bounds().end, Lsn(1));
    log.set_bytes_max(None);
    log.append(std::slice::from_ref(&record)).unwrap();
    log.set_sync_fails(true);
    log.sync().unwrap_err();
    log.set_sync_fails(false);
    log.sync().expect_err("a failed sync is final");
    log.marks().expect_err("a failed sync is final");
    log.crash(0);
    assert_eq!(log.bounds().end, Lsn(1));
    log.append(std::slice::from_ref(&record)).unwrap();
    assert_eq!(log.unsynced(), 1);
    log.crash(1);
    assert_eq!(log.sync().unwrap(), Lsn(1));
    log.truncate_after(Lsn(0)).unwrap();
    assert_eq!(log.cut(), [record]);

    let mut cache = MemoryCache::new();
    cache.write(&[CacheOp::Welcomed]).unwrap();
    cache.set_write_fails(true);
    cache.write(&[CacheOp::Incarnation(3)]).unwrap_err();
    let mut again = cache.clone();
    drop(cache);
    assert!(again.load().unwrap().contains(&CacheOp::Welcomed));
    assert!(!again.load().unwrap().contains(&CacheOp::Incarnation(3)));
}
