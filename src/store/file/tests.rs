//! Crashes at every step, and failures of the disk.
//!
//! The stores run on a real directory while [`probe`] writes down every change they make to it. A model of a disk
//! replays the changes up to any point and then loses power: of what was not synced each 512 bytes, each change of a
//! length and each change of a name is there or not, by dice. What is left is opened as a log again, and has to be
//! what was promised at that point.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;

use super::disk::probe::{self, Change};
use super::{FileCache, FileCacheOptions, FileLog, FileLogOptions};
use crate::client::{CacheImage, CacheOp, Command};
use crate::error::{Code, Error};
use crate::log::{Body, Digest, Entry, Epoch, Header, Level, Lsn, Record, Request, Time};
use crate::store::{ClientCache, LogStore, Marks};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % sides
    }
}

#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// A directory on a disk that can lose power.
#[derive(Clone, Default)]
struct Disk {
    inodes: Vec<Inode>,
    handles: BTreeMap<u64, usize>,
    /// The names as they are, and as the disk has them for certain.
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    /// Names that changed since: the one that went away, the one that came, and which file.
    pending: Vec<(Option<String>, Option<String>, usize)>,
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Disk {
    /// Everything in `dir` is durable.
    fn load(dir: &Path) -> Disk {
        let mut disk = Disk::default();
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("a directory").path();
            disk.inodes.push(Inode { durable: fs::read(&path).expect("a file"), pending: Vec::new() });
            disk.names.insert(name(&path), disk.inodes.len() - 1);
        }
        disk.durable = disk.names.clone();
        disk
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Create { path, id } => {
                self.inodes.push(Inode::default());
                self.handles.insert(*id, self.inodes.len() - 1);
                self.rename(None, Some(name(path)), self.inodes.len() - 1);
            }
            Change::Open { path, id } => {
                if let Some(inode) = self.names.get(&name(path)) {
                    self.handles.insert(*id, *inode);
                }
            }
            Change::Write { id, .. } | Change::SetLen { id, .. } => {
                self.inodes[self.handles[id]].pending.push(change.clone());
            }
            Change::Sync { id } => {
                let inode = &mut self.inodes[self.handles[id]];
                for change in std::mem::take(&mut inode.pending) {
                    write(&mut inode.durable, &change, |_| true);
                }
            }
            Change::Rename { from, to } => self.rename(Some(name(from)), Some(name(to)), self.names[&name(from)]),
            Change::Remove { path } => self.rename(Some(name(path)), None, self.names[&name(path)]),
            Change::SyncDir => {
                self.durable = self.names.clone();
                self.pending.clear();
            }
            Change::Note(_) => {}
        }
    }

    fn rename(&mut self, from: Option<String>, to: Option<String>, inode: usize) {
        rename(&mut self.names, &(from.clone(), to.clone(), inode));
        self.pending.push((from, to, inode));
    }

    /// What is left when the power fails.
    fn crash(&self, dice: &mut Dice) -> TempDir {
        let dir = scratch();
        let mut names = self.durable.clone();
        for change in &self.pending {
            if dice.roll(2) == 0 {
                rename(&mut names, change);
            }
        }
        // Some crashes lose much and some hardly anything.
        let kept = dice.roll(5);
        for (name, inode) in names {
            let inode = &self.inodes[inode];
            let mut bytes = inode.durable.clone();
            for change in &inode.pending {
                write(&mut bytes, change, |_| dice.roll(4) < kept);
            }
            fs::write(dir.path().join(name), bytes).expect("a file");
        }
        dir
    }
}

fn rename(names: &mut BTreeMap<String, usize>, (from, to, inode): &(Option<String>, Option<String>, usize)) {
    if let Some(from) = from.as_ref().filter(|from| names.get(*from) == Some(inode)) {
        names.remove(from);
    }
    if let Some(to) = to {
        names.insert(to.clone(), *inode);
    }
}

fn write(content: &mut Vec<u8>, change: &Change, mut survives: impl FnMut(usize) -> bool) {
    match change {
        Change::Write { at, bytes, .. } => {
            let mut at = usize::try_from(*at).expect("small files");
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (part, more) = rest.split_at(rest.len().min(512 - at % 512));
                if survives(at) {
                    let end = content.len().max(at + part.len());
                    content.resize(end, 0);
                    content[at..at + part.len()].copy_from_slice(part);
                }
                at += part.len();
                rest = more;
            }
        }
        Change::SetLen { length, .. } if survives(0) => content.resize(usize::try_from(*length).expect("small"), 0),
        _ => {}
    }
}

fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a temporary directory")
}

/// Runs `f` and returns every change it made.
fn traced(f: impl FnOnce()) -> Vec<Change> {
    probe::with(|probe| probe.trace = Some(Vec::new()));
    f();
    probe::with(|probe| probe.trace.take()).expect("it was set")
}

fn record(which: u8, lsn: usize, size: usize) -> Record {
    let payload = Bytes::from(vec![which; size]);
    let header = Header {
        epoch: Epoch::ZERO,
        lsn: Lsn(lsn as u64),
        body: Body::Command,
        origin: None,
        time: Time(0),
        answered: Request(0),
        length: 0,
        digest: Digest::default(),
    };
    Record { entry: Entry { header, payload }, reply: Digest::default() }
}

fn options(dice: &mut Dice) -> FileLogOptions {
    let (segment_bytes, zero_ahead_bytes) = (400 + 600 * dice.roll(4) as u64, 300 * dice.roll(3) as u64);
    FileLogOptions { segment_bytes, zero_ahead_bytes, bytes_max: None }
}

fn all(log: &mut FileLog) -> Vec<Record> {
    log.read(Lsn(1), usize::MAX).expect("a log that can be read")
}

/// What a crash may leave: a prefix of one of the lists, of at least so many records; and one of the marks.
#[derive(Clone, Default)]
struct Promise {
    lists: Vec<(Vec<Record>, usize)>,
    marks: Vec<Option<Marks>>,
}

impl Promise {
    fn check(&self, log: &mut FileLog) -> Result<(), String> {
        let found = all(log);
        let fits = |list: &[Record], least: usize| found.len() >= least && list.starts_with(&found);
        if !self.lists.iter().any(|(list, least)| fits(list, *least)) {
            let lengths: Vec<_> = self.lists.iter().map(|(list, least)| (list.len(), *least)).collect();
            return Err(format!("{} records are none of {lengths:?}", found.len()));
        }
        let marks = log.marks().map_err(|error| error.to_string())?;
        if self.marks.contains(&marks) { Ok(()) } else { Err(format!("{marks:?} is none of {:?}", self.marks)) }
    }
}

/// A random history of a log in `dir`, from what it holds. A note goes before every call; the promises are what has to
/// hold from that note to the next.
fn history(dir: &Path, dice: &mut Dice, steps: usize) -> Vec<Promise> {
    let options = options(dice);
    let mut promises = Vec::new();
    let mut log = None;
    let mut list: Vec<Record> = Vec::new();
    let (mut synced, mut marks) = (0, None);
    let which = u8::try_from(dice.roll(200)).expect("small");
    for step in 0..steps {
        let mut promise = Promise { lists: vec![(list.clone(), synced)], marks: vec![marks.clone()] };
        let Some(open) = &mut log else {
            // Before the first opening the directory is empty or what a crash left: the caller knows.
            let mut open = FileLog::open(dir, options).expect("a log");
            (list, marks) = (all(&mut open), open.marks().expect("marks"));
            synced = list.len();
            log = Some(open);
            continue;
        };
        let call = dice.roll(10);
        let more: Vec<_> = (1..=1 + dice.roll(5))
            .map(|n| record(which + u8::try_from(step).expect("few"), list.len() + n, dice.roll(300)))
            .collect();
        let last = list.len() - dice.roll(list.len().min(12) + 1);
        let new = Marks { base: Lsn(step as u64 + 1), ..Marks::default() };
        match call {
            0..=3 => promise.lists[0].0.extend(more.clone()),
            7 => promise.lists.push((list[..last].to_vec(), last)),
            8 => promise.marks.push(Some(new.clone())),
            _ => {}
        }
        probe::note(promises.len() as u64);
        promises.push(promise);
        match call {
            0..=3 => {
                open.append(&more).expect("an append");
                list.extend(more);
            }
            4 | 5 => {
                open.sync().expect("a sync");
                synced = list.len();
            }
            6 => assert_eq!(all(open), list),
            7 => {
                open.truncate_after(Lsn(last as u64)).expect("a cut");
                list.truncate(last);
                synced = list.len();
            }
            8 => {
                open.save_marks(&new).expect("saved marks");
                marks = Some(new);
            }
            _ => {
                drop(log.take());
                // What was not written is gone with the process; the rest is still there.
                let mut open = FileLog::open(dir, options).expect("a log");
                let found = all(&mut open);
                assert!(found.len() >= synced && list.starts_with(&found));
                list = found;
                synced = list.len();
                log = Some(open);
            }
        }
    }
    probe::note(promises.len() as u64);
    promises.push(Promise { lists: vec![(list, synced)], marks: vec![marks] });
    promises
}

#[test]
fn every_crash_leaves_what_was_promised() {
    let (mut cuts, mut torn, mut crashes) = (0, 0, 0);
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let dir = scratch();
        let mut promises = Vec::new();
        let trace = traced(|| promises = history(dir.path(), &mut dice, 40));
        let mut disk = Disk::default();
        let mut promise = Promise { lists: vec![(Vec::new(), 0)], marks: vec![None] };
        for (at, change) in trace.iter().enumerate() {
            disk.apply(change);
            if let Change::Note(number) = change {
                promise = promises[usize::try_from(*number).expect("few")].clone();
            }
            let crashed = disk.crash(&mut dice);
            let what = || format!("seed {seed}, after change {at}, {change:?}");
            let mut log =
                FileLog::open(crashed.path(), options(&mut dice)).unwrap_or_else(|error| panic!("{}: {error}", what()));
            promise.check(&mut log).unwrap_or_else(|why| panic!("{}: {why}", what()));
            crashes += 1;
            cuts += usize::from(log.opened().finished_cut);
            torn += usize::from(log.opened().torn.is_some());
        }
    }
    assert!(crashes > 3000 && cuts > 200 && torn > 20, "{crashes} crashes, {cuts} finished cuts, {torn} torn tails");
}

#[test]
fn a_crash_while_a_crash_is_recovered_from_leaves_it_too() {
    let mut again = 0;
    for seed in 1000..1012 {
        let mut dice = Dice(seed);
        let dir = scratch();
        let mut promises = Vec::new();
        let trace = traced(|| promises = history(dir.path(), &mut dice, 25));
        for _ in 0..5 {
            let mut disk = Disk::default();
            let mut promise = Promise { lists: vec![(Vec::new(), 0)], marks: vec![None] };
            for change in &trace[..dice.roll(trace.len())] {
                disk.apply(change);
                if let Change::Note(number) = change {
                    promise = promises[usize::try_from(*number).expect("few")].clone();
                }
            }
            let crashed = disk.crash(&mut dice);
            let mut disk = Disk::load(crashed.path());
            let mut later = Vec::new();
            let recovery = traced(|| later = history(crashed.path(), &mut dice, 12));
            for change in &recovery {
                disk.apply(change);
                if let Change::Note(number) = change {
                    promise = later[usize::try_from(*number).expect("few")].clone();
                }
                let twice = disk.crash(&mut dice);
                let opened = FileLog::open(twice.path(), options(&mut dice));
                let mut log = opened.unwrap_or_else(|error| panic!("seed {seed}, after {change:?}: {error}"));
                promise.check(&mut log).unwrap_or_else(|why| panic!("seed {seed}, after {change:?}: {why}"));
                again += 1;
            }
        }
    }
    assert!(again > 2000, "{again} crashes");
}

/// The process is stopped before any of its changes; whatever the call then says, the directory is as before or after.
#[test]
fn a_cut_that_fails_anywhere_is_done_or_not() {
    let mut outcomes = [0, 0];
    for last in [0, 3, 11, 17] {
        for left in 0.. {
            let dir = scratch();
            let options = FileLogOptions { segment_bytes: 600, zero_ahead_bytes: 100, bytes_max: None };
            let list: Vec<_> = (1..=20).map(|lsn| record(1, lsn, 50)).collect();
            let mut log = FileLog::open(dir.path(), options).expect("a log");
            log.append(&list).expect("an append");
            log.sync().expect("a sync");
            probe::with(|probe| probe.left = Some(left));
            let cut = log.truncate_after(Lsn(last));
            drop(log);
            probe::with(|probe| probe.left = None);
            let mut log = FileLog::open(dir.path(), options).expect("a log");
            let found = all(&mut log);
            let kept = usize::try_from(last).expect("small");
            assert!(found == list || found == list[..kept], "{} records", found.len());
            let done = found.len() < list.len();
            outcomes[usize::from(done)] += 1;
            log.append(&[record(2, found.len() + 1, 50)]).expect("an append");
            log.sync().expect("a sync");
            if cut.is_ok() {
                assert!(done);
                break;
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 20), "{outcomes:?}");
}

#[test]
fn a_failed_sync_is_final() {
    let dir = scratch();
    let mut log = FileLog::open(dir.path(), FileLogOptions::default()).expect("a log");
    log.append(&[record(1, 1, 10)]).expect("an append");
    log.sync().expect("a sync");
    log.append(&[record(1, 2, 10)]).expect("an append");
    probe::with(|probe| probe.sync_fails = true);
    log.sync().expect_err("the sync fails");
    probe::with(|probe| probe.sync_fails = false);
    let errors = [
        log.sync().map(drop),
        log.append(&[record(1, 3, 10)]),
        log.read(Lsn(1), 1).map(drop),
        log.marks().map(drop),
        log.save_marks(&Marks::default()),
        log.truncate_after(Lsn(1)),
    ];
    for error in errors {
        let error = Error::from(error.expect_err("the log is poisoned"));
        assert!(error.code() == Code::Storage && error.message().contains("failed before"), "{error}");
    }
    drop(log);
    let mut log = FileLog::open(dir.path(), FileLogOptions::default()).expect("a log");
    assert_eq!(log.opened().torn, None);
    assert_eq!(all(&mut log)[0], record(1, 1, 10));
}

/// What is begun beside the appends is a sync like any other.
#[test]
fn a_failed_flush_is_final() {
    let dir = scratch();
    let mut log = FileLog::open(dir.path(), FileLogOptions::default()).expect("a log");
    probe::with(|probe| probe.sync_fails = true);
    log.append(&[record(1, 1, 2000)]).expect("an append");
    probe::with(|probe| probe.sync_fails = false);
    let error = Error::from(log.sync().expect_err("a flush has failed"));
    assert!(error.message().contains("as the test wants it"), "{error}");
    let error = Error::from(log.append(&[record(1, 2, 10)]).expect_err("the log is poisoned"));
    assert!(error.message().contains("failed before"), "{error}");
}

#[test]
fn failed_marks_leave_the_old_ones() {
    let dir = scratch();
    let old = Marks { base: Lsn(1), ..Marks::default() };
    for left in 0..20 {
        let mut log = FileLog::open(dir.path(), FileLogOptions::default()).expect("a log");
        log.save_marks(&old).expect("saved");
        probe::with(|probe| probe.left = Some(left));
        let new = Marks { base: Lsn(2), ..Marks::default() };
        let saved = log.save_marks(&new);
        probe::with(|probe| probe.left = None);
        drop(log);
        let mut log = FileLog::open(dir.path(), FileLogOptions::default()).expect("a log");
        let found = log.marks().expect("marks").expect("marks");
        assert!(found == new || (saved.is_err() && found == old), "{found:?} after {saved:?}");
    }
}

#[test]
fn a_full_disk_costs_nothing() {
    for space in 0..300 {
        let dir = scratch();
        let options = FileLogOptions { segment_bytes: 700, zero_ahead_bytes: 200, bytes_max: None };
        let mut log = FileLog::open(dir.path(), options).expect("a log");
        let mut list: Vec<_> = (1..=23).map(|lsn| record(1, lsn, 60)).collect();
        log.append(&list[..5]).expect("an append");
        log.sync().expect("a sync");
        probe::with(|probe| probe.space = Some(space * 9));
        let mut kept = 5;
        // Three records are put off, nine are written at once, in more than one segment.
        for count in [3, 9, 6] {
            match log.append(&list[kept..kept + count]) {
                Ok(()) => kept += count,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                    assert!(error.to_string().contains(dir.path().to_str().expect("a path")), "{error}");
                    break;
                }
            }
        }
        assert_eq!(log.bounds().end, Lsn(kept as u64 + 1));
        assert_eq!(log.sync().expect("a sync: what was appended has its place"), Lsn(kept as u64));
        probe::with(|probe| probe.space = None);
        assert_eq!(all(&mut log), list[..kept]);
        drop(log);
        let mut log = FileLog::open(dir.path(), options).expect("a log");
        assert_eq!(all(&mut log), list[..kept]);
        assert_eq!(log.opened().torn, None);
        // Other records than those that did not fit: nothing of them is left.
        list.truncate(kept);
        list.extend((kept + 1..=23).map(|lsn| record(2, lsn, 60)));
        log.append(&list[kept..]).expect("there is space again");
        log.sync().expect("a sync");
        drop(log);
        let mut log = FileLog::open(dir.path(), options).expect("a log");
        assert_eq!(all(&mut log), list);
        assert_eq!(log.opened().torn, None);
    }
}

fn command(request: u64, size: usize) -> CacheOp {
    let payload = Bytes::from(vec![1; size]);
    let command = Command {
        answered: Request(0),
        level: Level::Tagged,
        withdrawn: false,
        digest: Digest::default(),
        payload,
        tag: None,
        reply: None,
    };
    CacheOp::Command { request: Request(request), command }
}

fn replay(ops: &[CacheOp]) -> CacheImage {
    let mut image = CacheImage::default();
    ops.iter().for_each(|op| image.apply(op));
    image
}

#[test]
fn a_synced_cache_survives_every_crash_of_the_machine() {
    let (mut crashes, mut compactions) = (0, 0);
    for seed in 0..4 {
        let mut dice = Dice(seed);
        let dir = scratch();
        // states[n] is the image once n operations were written.
        let mut states = vec![CacheImage::default()];
        let mut written = vec![0];
        let trace = traced(|| {
            let mut cache = FileCache::open(dir.path(), FileCacheOptions { sync: true }).expect("a cache");
            for request in 1..40 {
                probe::note(written.len() as u64 - 1);
                let ops = [
                    command(request, 40_000 + dice.roll(9000)),
                    CacheOp::Superseded(Request(request.saturating_sub(3))),
                ];
                cache.write(&ops).expect("a write");
                for op in &ops {
                    let mut next = states.last().expect("one").clone();
                    next.apply(op);
                    states.push(next);
                }
                written.push(states.len() - 1);
            }
        });
        let mut disk = Disk::default();
        let mut least = 0;
        for (at, change) in trace.iter().enumerate() {
            disk.apply(change);
            match change {
                Change::Note(number) => least = written[usize::try_from(*number).expect("few")],
                Change::Rename { .. } => compactions += 1,
                _ => {}
            }
            if at % 3 != 0 && !matches!(change, Change::Rename { .. } | Change::Sync { .. }) {
                continue;
            }
            let crashed = disk.crash(&mut dice);
            let opened = FileCache::open(crashed.path(), FileCacheOptions::default());
            let mut cache = opened.unwrap_or_else(|error| panic!("seed {seed}, after change {at}: {error}"));
            let found = replay(&cache.load().expect("operations"));
            let known = states.iter().rposition(|state| *state == found);
            let known = known.unwrap_or_else(|| panic!("seed {seed}, after change {at}: no state that ever was"));
            assert!(known >= least, "seed {seed}, after change {at}: {known} of {least} operations");
            crashes += 1;
        }
    }
    assert!(crashes > 200 && compactions > 4, "{crashes} crashes, {compactions} renames");
}

#[test]
fn a_cache_on_a_full_disk_goes_on_when_there_is_space() {
    let dir = scratch();
    let mut cache = FileCache::open(dir.path(), FileCacheOptions { sync: true }).expect("a cache");
    let mut ops = Vec::new();
    for request in 1..200 {
        // Old ones are superseded, so that the file is compacted now and then, or would be.
        let more = [command(request, 20_000), CacheOp::Superseded(Request(request.saturating_sub(3)))];
        probe::with(|probe| probe.space = (request % 4 == 0).then_some(request * 100));
        match cache.write(&more) {
            Ok(()) => ops.extend(more),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}"),
        }
        probe::with(|probe| probe.space = None);
    }
    assert!(ops.len() > 250);
    assert_eq!(replay(&cache.load().expect("operations")), replay(&ops));
    drop(cache);
    let mut cache = FileCache::open(dir.path(), FileCacheOptions::default()).expect("a cache");
    assert_eq!(replay(&cache.load().expect("operations")), replay(&ops));
    probe::with(|probe| probe.sync_fails = true);
    let mut cache = {
        drop(cache);
        probe::with(|probe| probe.sync_fails = false);
        FileCache::open(dir.path(), FileCacheOptions { sync: true }).expect("a cache")
    };
    probe::with(|probe| probe.sync_fails = true);
    cache.write(&[CacheOp::Welcomed]).expect_err("the sync fails");
    probe::with(|probe| probe.sync_fails = false);
    cache.write(&[CacheOp::Welcomed]).expect_err("a failed sync is final");
    cache.load().expect_err("a failed sync is final");
}

/// A process that is being started has all our files open, until it becomes another program.
#[test]
fn a_lock_is_given_up_whoever_else_has_the_file() {
    let dir = TempDir::new().expect("a folder");
    let lock = super::lock(dir.path()).expect("nobody has it");
    let child = lock.0.try_clone().expect("a file");
    assert_eq!(super::lock(dir.path()).expect_err("it is taken").code(), Code::Locked);
    drop(lock);
    super::lock(dir.path()).expect("it was given up");
    drop(child);
}
