//! The log in files: what a crash, a full disk, a flipped bit and a second process do to it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tagalong::Code;
use tagalong::log::{Body, Digest, Entry, Epoch, Header, Lsn, NodeId, Record, Request, Time};
use tagalong::store::file::{FileLog, FileLogOptions, read_cut};
use tagalong::store::{LogStore, Marks};
use tempfile::TempDir;

const EPOCH: Epoch = Epoch { generation: 0, number: 1, node: NodeId(7) };

/// The record at `lsn` of history `which`, with about `size` bytes.
fn record_of(which: u8, lsn: u64, size: usize) -> Record {
    let payload = Bytes::from(vec![which ^ (lsn % 251) as u8; size]);
    let header = Header {
        epoch: EPOCH,
        lsn: Lsn(lsn),
        body: Body::Command,
        origin: None,
        time: Time(lsn),
        answered: Request(0),
        length: u32::try_from(payload.len()).unwrap(),
        digest: Digest::crc32(&payload),
    };
    Record { entry: Entry { header, payload }, reply: Digest::crc32(b"reply") }
}

fn record(lsn: u64) -> Record {
    record_of(0, lsn, 20 + (lsn % 5) as usize)
}

fn records(lsns: std::ops::Range<u64>) -> Vec<Record> {
    lsns.map(record).collect()
}

fn small() -> FileLogOptions {
    FileLogOptions { segment_bytes: 1024, zero_ahead_bytes: 256, ..FileLogOptions::default() }
}

fn open(path: &Path) -> FileLog {
    // Another test of this process may be starting a child just now: until that child's exec it shares every descriptor,
    // and with it a lock that was let go here.
    let started = Instant::now();
    loop {
        match FileLog::open(path, small()) {
            Err(error) if error.code() == Code::Locked && started.elapsed() < Duration::from_secs(5) => {
                std::thread::yield_now();
            }
            opened => return opened.unwrap(),
        }
    }
}

fn all(log: &mut FileLog) -> Vec<Record> {
    let mut out = Vec::new();
    while out.len() as u64 + 1 < log.bounds().end.0 {
        let more = log.read(Lsn(out.len() as u64 + 1), 300).unwrap();
        assert!(!more.is_empty(), "records are missing after {}", out.len());
        out.extend(more);
    }
    out
}

/// A directory that is gone afterwards; in memory where there is such a place, as most tests open a log a thousand
/// times and none needs its syncs to be slow.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// What the disk has now: a copy of the directory, as a crash leaves it.
fn image(path: &Path) -> TempDir {
    let copy = scratch();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn files(path: &Path, prefix: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect();
    paths.sort();
    paths
}

#[test]
fn records_come_back_in_order_from_anywhere() {
    let dir = scratch();
    let expected = records(1..200);
    let mut log = open(dir.path());
    assert_eq!(log.bounds(), Lsn(1)..Lsn(1));
    for batch in expected.chunks(7) {
        log.append(batch).unwrap();
        assert_eq!(all(&mut log).len() as u64, batch.last().unwrap().lsn().0, "what is not synced is read, too");
    }
    assert_eq!(log.sync().unwrap(), Lsn(199));
    assert!(files(dir.path(), "log-").len() > 5, "several segments");
    assert_eq!(all(&mut log), expected);
    drop(log);
    let mut log = open(dir.path());
    assert_eq!(log.bounds(), Lsn(1)..Lsn(200));
    assert_eq!(log.opened().torn, None);
    for from in (1..200).rev() {
        assert_eq!(log.read(Lsn(from), 1).unwrap(), records(from..from + 1), "one, however small the limit");
        let some = log.read(Lsn(from), 2000).unwrap();
        assert_eq!(some, records(from..from + some.len() as u64));
        assert!(some.len() >= 10.min(200 - from as usize), "{} from {from}", some.len());
    }
    assert_eq!(log.read(Lsn(200), 1000).unwrap(), []);
    assert_eq!(log.read(Lsn(1), usize::MAX).unwrap(), expected);
}

/// Copies the directory, changes one file of the copy, and opens it.
fn with_file(dir: &Path, file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> (TempDir, tagalong::Result<FileLog>) {
    let copy = image(dir);
    let path = copy.path().join(file.file_name().unwrap());
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let log = FileLog::open(copy.path(), small());
    (copy, log)
}

/// Where the frames of a file end, seal included.
fn content_end(path: &Path) -> usize {
    fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

/// Reads all there is; a damaged log gives the error, which has to say where.
fn read_or_place(log: tagalong::Result<FileLog>, file: &Path) -> Result<Vec<Record>, String> {
    let name = file.file_name().unwrap().to_str().unwrap();
    let read = log.and_then(|mut log| {
        let mut out = Vec::new();
        while Lsn(out.len() as u64 + 1) < log.bounds().end {
            let more = log.read(Lsn(out.len() as u64 + 1), 500).map_err(tagalong::Error::from)?;
            assert!(!more.is_empty());
            out.extend(more);
        }
        Ok(out)
    });
    read.map_err(|error| {
        assert_eq!(error.code(), Code::Corrupt, "{error}");
        assert!(error.message().contains(name), "{error} does not name {name}");
        assert!(error.message().contains("offset"), "{error} names no offset");
        error.message().to_owned()
    })
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let dir = scratch();
    let options = FileLogOptions { segment_bytes: 1 << 20, zero_ahead_bytes: 256, ..FileLogOptions::default() };
    let mut log = FileLog::open(dir.path(), options).unwrap();
    log.append(&records(1..7)).unwrap();
    log.sync().unwrap();
    let file = files(dir.path(), "log-").remove(0);
    let synced = content_end(&file).next_multiple_of(8);
    log.append(&records(7..11)).unwrap();
    all(&mut log);
    let end = content_end(&file);
    let mut seen = [false; 11];
    for cut in synced..=end + 8 {
        for zeroed in [false, true] {
            let change = |bytes: &mut Vec<u8>| {
                if zeroed {
                    bytes[cut..].fill(0);
                } else {
                    bytes.truncate(cut);
                }
            };
            let (copy, log) = with_file(dir.path(), &file, change);
            let mut log = log.unwrap();
            let found = all(&mut log);
            assert!(found.len() >= 6, "synced records are gone after a cut at {cut}");
            assert_eq!(found, records(1..found.len() as u64 + 1));
            seen[found.len()] = true;
            let torn = log.opened().torn.clone();
            if let Some(torn) = &torn {
                assert_eq!(torn.file.file_name(), file.file_name());
                assert!((torn.offset as usize) < cut && torn.bytes > 0, "{torn:?} after a cut at {cut}");
            }
            assert!(found.len() < 10 || torn.is_none(), "{torn:?}, but everything is there");
            // Other records of the same length go where the torn ones were, and nothing old comes back behind them.
            let next = found.len() as u64 + 1;
            log.append(&[record_of(1, next, record(next).entry.payload.len())]).unwrap();
            log.sync().unwrap();
            let again = image(copy.path());
            let found = all(&mut open(again.path()));
            assert_eq!(found.len() as u64, next);
            assert_eq!(found[next as usize - 1].entry.payload[0], 1 ^ (next % 251) as u8);
        }
    }
    assert_eq!(seen[6..], [true; 5], "every number of surviving records was seen");
}

#[test]
fn an_old_record_behind_a_torn_one_does_not_come_back() {
    let dir = scratch();
    let options = FileLogOptions { segment_bytes: 1 << 20, ..FileLogOptions::default() };
    let mut log = FileLog::open(dir.path(), options).unwrap();
    log.append(&records(1..4)).unwrap();
    log.sync().unwrap();
    let file = files(dir.path(), "log-").remove(0);
    let at = content_end(&file).next_multiple_of(8);
    log.append(&records(4..9)).unwrap();
    all(&mut log);
    // The page with record 4 never reached the disk, what follows did: no order among unsynced pages.
    let (copy, log) = with_file(dir.path(), &file, |bytes| bytes[at..at + 40].fill(0));
    let mut log = log.unwrap();
    assert_eq!(all(&mut log), records(1..4));
    assert!(log.opened().torn.is_some());
    let other = record_of(1, 4, record(4).entry.payload.len());
    log.append(std::slice::from_ref(&other)).unwrap();
    log.sync().unwrap();
    let again = image(copy.path());
    let found = all(&mut open(again.path()));
    assert_eq!(found[..3], records(1..4));
    assert_eq!(found[3..], [other], "records 5 to 8 of the torn write are back");
    // Nor if the next crash leaves exactly the new record, and nothing that was written with it.
    let now = fs::read(copy.path().join(file.file_name().unwrap())).unwrap();
    let size = (found[3].entry.payload.len() + 32 + 30).next_multiple_of(8);
    let (again, _) = with_file(dir.path(), &file, |bytes| bytes[at..at + 40].fill(0));
    let recovered = fs::read(again.path().join(file.file_name().unwrap())).unwrap();
    for size in (0..size + 64).step_by(8) {
        let (_copy, log) = with_file(again.path(), &file, |bytes| {
            bytes.clone_from(&recovered);
            bytes.resize(now.len(), 0);
            bytes[at..at + size].copy_from_slice(&now[at..at + size]);
        });
        let after = all(&mut log.unwrap());
        assert_eq!(after, found[..after.len()], "records 5 to 8 of the torn write are back behind {size} bytes");
    }
}

#[test]
fn a_flipped_byte_is_found_and_named() {
    let dir = scratch();
    let expected = records(1..40);
    let mut log = open(dir.path());
    for batch in expected.chunks(3) {
        log.append(batch).unwrap();
        log.sync().unwrap();
    }
    // As a crash leaves it, and as a clean close does.
    let crashed = image(dir.path());
    drop(log);
    for (dir, clean) in [(dir, true), (crashed, false)] {
        let segments = files(dir.path(), "log-");
        assert!(segments.len() >= 3);
        for (nth, file) in segments.iter().enumerate() {
            let last = nth + 1 == segments.len();
            let (length, end) = (fs::metadata(file).unwrap().len() as usize, content_end(file));
            for at in (0..length.min(end + 64)).chain([length - 1]) {
                let mut flipped = Vec::new();
                let (copy, log) = with_file(dir.path(), file, |bytes| {
                    bytes[at] ^= 1 << (at % 8);
                    flipped.clone_from(bytes);
                });
                match read_or_place(log, file) {
                    Ok(found) => {
                        let sealed = if clean && last { 32 } else { 0 };
                        let harmless = at + sealed >= end || (last && !clean);
                        assert!(harmless, "byte {at} of {end} in {} is not noticed", file.display());
                        assert_eq!(found, expected[..found.len()], "wrong records after a flip at {at}");
                        // Without a clean close nothing says that the last write was ever completed.
                        assert!(found.len() >= 39 - if last && !clean { 3 } else { 0 });
                    }
                    Err(why) => {
                        let after = fs::read(copy.path().join(file.file_name().unwrap())).unwrap();
                        assert!(after == flipped, "the error says that nothing was changed: {why}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_missing_renamed_or_foreign_segment_is_noticed() {
    let make = || {
        let dir = scratch();
        let mut log = open(dir.path());
        log.append(&records(1..100)).unwrap();
        log.sync().unwrap();
        drop(log);
        dir
    };
    let (dir, other) = (make(), make());
    let segments = files(dir.path(), "log-");
    let middle = &segments[1];
    let copy = image(dir.path());
    fs::remove_file(copy.path().join(middle.file_name().unwrap())).unwrap();
    read_or_place(FileLog::open(copy.path(), small()), &segments[0]).unwrap_err();
    let copy = image(dir.path());
    fs::remove_file(copy.path().join(segments[0].file_name().unwrap())).unwrap();
    read_or_place(FileLog::open(copy.path(), small()), middle).unwrap_err();
    let copy = image(dir.path());
    fs::copy(&segments[2], copy.path().join(middle.file_name().unwrap())).unwrap();
    let why = read_or_place(FileLog::open(copy.path(), small()), middle).unwrap_err();
    assert!(why.contains("renamed"), "{why}");
    let copy = image(dir.path());
    let foreign = &files(other.path(), "log-")[1];
    fs::copy(foreign, copy.path().join(foreign.file_name().unwrap())).unwrap();
    let why = read_or_place(FileLog::open(copy.path(), small()), middle).unwrap_err();
    assert!(why.contains("another log"), "{why}");
}

#[test]
fn a_later_format_is_refused() {
    let dir = scratch();
    let mut log = open(dir.path());
    log.append(&records(1..3)).unwrap();
    log.sync().unwrap();
    log.save_marks(&Marks::default()).unwrap();
    drop(log);
    for name in ["log-", "marks"] {
        let file = files(dir.path(), name).remove(0);
        let (_copy, log) = with_file(dir.path(), &file, |bytes| {
            bytes[12] += 1;
            let crc = crc32fast::hash(&bytes[..60]);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        });
        let error = log.unwrap_err();
        assert_eq!(error.code(), Code::WrongVersion, "{error}");
        assert!(error.message().contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
    }
}

#[test]
fn marks_are_replaced_whole_and_damage_to_them_is_named() {
    let dir = scratch();
    let mut log = open(dir.path());
    assert_eq!(log.marks().unwrap(), None);
    let marks = |n| Marks { promised: Epoch { number: n, ..EPOCH }, base: Lsn(n), in_sync: true, ..Marks::default() };
    for n in 1..4 {
        log.save_marks(&marks(n)).unwrap();
        assert_eq!(log.marks().unwrap(), Some(marks(n)));
    }
    drop(log);
    assert_eq!(open(dir.path()).marks().unwrap(), Some(marks(3)));
    let file = files(dir.path(), "marks").remove(0);
    for at in 0..fs::metadata(&file).unwrap().len() as usize {
        let (_copy, log) = with_file(dir.path(), &file, |bytes| bytes[at] ^= 1);
        let found = log.and_then(|mut log| Ok(log.marks()?));
        match found {
            Ok(found) => {
                assert!(at >= content_end(&file).next_multiple_of(8), "byte {at} is not noticed");
                assert_eq!(found, Some(marks(3)));
            }
            Err(error) => assert!(error.code() == Code::Corrupt && error.message().contains("marks"), "{error}"),
        }
    }
}

#[test]
fn what_is_cut_is_set_aside_and_stays_away() {
    for last in 0..60 {
        let dir = scratch();
        let mut log = open(dir.path());
        log.append(&records(1..50)).unwrap();
        log.sync().unwrap();
        log.append(&records(50..60)).unwrap();
        log.truncate_after(Lsn(last)).unwrap();
        let kept = last.min(59);
        assert_eq!(log.bounds(), Lsn(1)..Lsn(kept + 1));
        assert_eq!(all(&mut log), records(1..kept + 1));
        let cut = files(dir.path(), "cut-");
        assert_eq!(cut.len(), usize::from(last < 59));
        if let Some(cut) = cut.first() {
            assert_eq!(read_cut(cut).unwrap(), records(last + 1..60));
        }
        let other: Vec<_> = (kept + 1..kept + 30).map(|lsn| record_of(1, lsn, 20 + (lsn % 5) as usize)).collect();
        let expected = [records(1..kept + 1), other.clone()].concat();
        log.append(&other).unwrap();
        log.sync().unwrap();
        assert_eq!(all(&mut log), expected);
        let crashed = image(dir.path());
        drop(log);
        assert_eq!(all(&mut open(dir.path())), expected);
        assert_eq!(all(&mut open(crashed.path())), expected);
    }
}

#[test]
fn a_recycled_segment_shows_nothing_of_its_former_life() {
    let dir = scratch();
    let mut log = open(dir.path());
    // All records of one length: those of the former life lie exactly where new ones go.
    let old: Vec<_> = (1..=60).map(|lsn| record_of(0, lsn, 24)).collect();
    let new: Vec<_> = (1..=60).map(|lsn| record_of(1, lsn, 24)).collect();
    log.append(&old).unwrap();
    log.sync().unwrap();
    let before = files(dir.path(), "log-").len();
    log.truncate_after(Lsn(0)).unwrap();
    assert!(before > 2 && files(dir.path(), "spare").len() == 1, "one segment is kept for the next");
    for (nth, one) in new.iter().enumerate() {
        log.append(std::slice::from_ref(one)).unwrap();
        log.sync().unwrap();
        let crashed = image(dir.path());
        let mut crashed = open(crashed.path());
        assert_eq!(crashed.opened().torn, None, "stale records are no torn tail");
        assert_eq!(all(&mut crashed), new[..=nth]);
    }
    assert_eq!(files(dir.path(), "spare").len(), 0, "it was used");
}

#[test]
fn a_large_record_has_a_segment_of_its_own() {
    let dir = scratch();
    let mut log = FileLog::open(dir.path(), FileLogOptions::default()).unwrap();
    let expected = [record(1), record_of(0, 2, 64 << 20), record(3), record_of(0, 4, 100 << 20), record(5)];
    log.append(&expected).unwrap();
    log.sync().unwrap();
    drop(log);
    let mut log = FileLog::open(dir.path(), FileLogOptions::default()).unwrap();
    assert!(log.read(Lsn(1), usize::MAX).unwrap() == expected);
    assert_eq!(files(dir.path(), "log-").len(), 5);
    let dir = scratch();
    let mut log = open(dir.path());
    log.append(&[record_of(0, 1, 5000), record(2), record_of(0, 3, 5000)]).unwrap();
    assert_eq!(all(&mut log).len(), 3);
}

#[test]
fn a_full_log_ends_where_it_did() {
    let dir = scratch();
    let options = FileLogOptions { bytes_max: Some(5000), ..small() };
    let mut log = FileLog::open(dir.path(), options).unwrap();
    let mut kept = 0;
    let error = loop {
        match log.append(&records(kept + 1..kept + 8)) {
            Ok(()) => kept += 7,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let error = tagalong::Error::from(error);
    assert!(error.code() == Code::Storage && error.message().contains("full"), "{error}");
    assert!(kept > 30);
    assert_eq!(log.bounds().end, Lsn(kept + 1));
    assert_eq!(all(&mut log), records(1..kept + 1));
    // A smaller one may still fit, across a roll of the segment too. Nothing is left of what did not fit.
    let mut expected = records(1..kept + 1);
    loop {
        let smaller = record_of(1, kept + 1, 20);
        if log.append(std::slice::from_ref(&smaller)).is_err() {
            break;
        }
        expected.push(smaller);
        kept += 1;
    }
    assert!(expected.iter().any(|record| record.entry.payload[0] == 1 ^ record.lsn().0 as u8), "none was that small");
    assert_eq!(log.sync().unwrap(), Lsn(kept));
    assert_eq!(all(&mut log), expected);
    assert_eq!(all(&mut open(image(dir.path()).path())), expected);
    log.truncate_after(Lsn(20)).unwrap();
    log.append(&records(21..25)).unwrap();
    log.sync().unwrap();
    drop(log);
    assert_eq!(all(&mut open(dir.path())), records(1..25));
}

#[test]
fn records_out_of_order_are_refused() {
    let dir = scratch();
    let mut log = open(dir.path());
    log.append(&records(1..3)).unwrap();
    for wrong in [records(4..5), records(2..3), vec![record(3), record(5)]] {
        let error = tagalong::Error::from(log.append(&wrong).unwrap_err());
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    log.append(&records(3..5)).unwrap();
    assert_eq!(all(&mut log), records(1..5));
}

/// A generator for schedules: what a seed gives is the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Pages that were written and not synced reach the disk or not, each by itself.
#[test]
fn a_crash_of_the_machine_leaves_what_was_synced_and_a_prefix() {
    let mut survived = 0;
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let dir = scratch();
        let options = FileLogOptions {
            segment_bytes: 1 << 20,
            zero_ahead_bytes: dice.roll(3) * 700,
            ..FileLogOptions::default()
        };
        let mut log = FileLog::open(dir.path(), options).unwrap();
        let mut synced = 0;
        let mut last = 0;
        let mut before = Vec::new();
        let expected: Vec<_> = (1..100).map(|lsn| record_of(0, lsn, dice.roll(1500) as usize)).collect();
        for _ in 0..1 + dice.roll(6) {
            let more = 1 + dice.roll(8);
            log.append(&expected[last as usize..(last + more) as usize]).unwrap();
            last += more;
            if dice.roll(2) == 0 || synced == 0 {
                synced = log.sync().unwrap().0;
                before = fs::read(&files(dir.path(), "log-")[0]).unwrap();
            }
        }
        all(&mut log);
        let file = files(dir.path(), "log-").remove(0);
        let (_copy, crashed) = with_file(dir.path(), &file, |bytes| {
            // An extension that was not synced: the file has any length in between.
            let length = before.len() + dice.roll((bytes.len() - before.len()) as u64 + 1) as usize;
            bytes.truncate(length);
            for (nth, page) in bytes.chunks_mut(512).enumerate() {
                if dice.roll(5) == 0 {
                    let old = before.get(nth * 512..).unwrap_or(&[]);
                    let old = &old[..page.len().min(old.len())];
                    page[..old.len()].copy_from_slice(old);
                    page[old.len()..].fill(0);
                }
            }
        });
        let found = all(&mut crashed.unwrap_or_else(|error| panic!("seed {seed}: {error}")));
        assert!(found.len() as u64 >= synced, "seed {seed}: {} of {synced} synced records", found.len());
        assert_eq!(found, expected[..found.len()], "seed {seed}: not a prefix");
        survived += found.len() as u64 - synced;
    }
    assert!(survived > 100, "some of what was not synced survives: {survived}");
}

/// Any sequence of calls, restarts and crashes, against a list.
#[test]
fn random_histories_agree_with_a_list() {
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let options =
            FileLogOptions { segment_bytes: 300 + dice.roll(3000), zero_ahead_bytes: dice.roll(500), bytes_max: None };
        let mut dir = scratch();
        let mut log = FileLog::open(dir.path(), options).unwrap();
        let mut list: Vec<Record> = Vec::new();
        let mut synced = 0;
        for step in 0..60 {
            match dice.roll(12) {
                0..=4 => {
                    let next = list.len() as u64 + 1;
                    let more: Vec<_> =
                        (0..dice.roll(6)).map(|n| record_of(step, next + n, dice.roll(200) as usize)).collect();
                    log.append(&more).unwrap();
                    list.extend(more);
                }
                5 | 6 => {
                    assert_eq!(log.sync().unwrap(), Lsn(list.len() as u64), "seed {seed}");
                    synced = list.len();
                }
                7 | 8 if !list.is_empty() => {
                    let from = dice.roll(list.len() as u64) as usize;
                    let found = log.read(Lsn(from as u64 + 1), dice.roll(3000) as usize).unwrap();
                    assert_eq!(found, list[from..from + found.len()], "seed {seed}");
                    assert!(!found.is_empty());
                }
                9 => {
                    let last = dice.roll(list.len() as u64 + 1) as usize;
                    let last = last.max(list.len().saturating_sub(20));
                    log.truncate_after(Lsn(last as u64)).unwrap();
                    list.truncate(last);
                    synced = list.len();
                }
                10 => {
                    // The process is killed: what was written is there, what was in its memory is not.
                    let copy = image(dir.path());
                    log = FileLog::open(copy.path(), options).unwrap();
                    dir = copy;
                    let kept = log.bounds().end.0 as usize - 1;
                    assert!(kept >= synced, "seed {seed}");
                    list.truncate(kept);
                    synced = kept;
                }
                11 => {
                    log.sync().unwrap();
                    synced = list.len();
                    drop(log);
                    log = FileLog::open(dir.path(), options).unwrap();
                    assert_eq!(log.opened().torn, None);
                }
                _ => {}
            }
            assert_eq!(log.bounds().end.0, list.len() as u64 + 1, "seed {seed}");
        }
        assert_eq!(all(&mut log), list, "seed {seed}");
    }
}

/// Runs the test `name` of this very file in a process of its own, with `dir`.
fn child(name: &str, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(DIR, dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

const DIR: &str = "TAGALONG_FILE_LOG_TEST_DIR";

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

#[test]
fn child_appends_until_it_is_killed() {
    let Some(dir) = child_dir() else { return };
    let mut log = open(&dir);
    loop {
        let next = log.bounds().end.0;
        log.append(&records(next..next + 1 + next % 7)).unwrap();
        println!("synced {}", log.sync().unwrap());
    }
}

#[test]
fn child_holds_the_log() {
    let Some(dir) = child_dir() else { return };
    let _log = open(&dir);
    println!("open");
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn what_a_killed_process_reported_as_synced_is_there() {
    let dir = scratch();
    let mut total = 0;
    for round in 0..8 {
        let mut child = child("child_appends_until_it_is_killed", dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut synced = 0;
        // Killed after some time, in the middle of whatever it does.
        let deadline = Instant::now() + Duration::from_millis(60 + 37 * round);
        let mut note = |line: &str| {
            if let Some(lsn) = line.strip_prefix("synced ") {
                synced = lsn.parse::<u64>().unwrap();
            }
        };
        while Instant::now() < deadline {
            note(&lines.next().unwrap().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines.map_while(Result::ok).for_each(|line| note(&line));
        let mut log = open(dir.path());
        let end = log.bounds().end.0;
        assert!(synced > total && end > synced, "{synced} were synced and the log ends before {end}");
        let found = log.read(Lsn(1), usize::MAX).unwrap();
        assert!(found == records(1..end));
        total = synced;
    }
}

#[test]
fn a_log_is_open_once() {
    let dir = scratch();
    let locked = || {
        let error = FileLog::open(dir.path(), small()).unwrap_err();
        assert_eq!(error.code(), Code::Locked, "{error}");
        assert!(error.message().contains(dir.path().to_str().unwrap()), "{error}");
    };
    let log = open(dir.path());
    locked();
    drop(log);
    let mut child = child("child_holds_the_log", dir.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().ends_with("open") {}
    locked();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
    drop(open(dir.path()));
}

/// Not a test: `cargo test --release --no-default-features --test file_log rates -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn rates() {
    for zero_ahead_bytes in [0, 1 << 20, 4 << 20] {
        for (batch, size) in [(1, 100), (512, 100), (64, 4096), (1, 1 << 20)] {
            let dir = TempDir::new_in(".").unwrap();
            let options = FileLogOptions { zero_ahead_bytes, ..FileLogOptions::default() };
            let mut log = FileLog::open(dir.path(), options).unwrap();
            let mut times = Vec::new();
            let start = Instant::now();
            let mut next = 1;
            let template = record_of(0, 1, size);
            while start.elapsed() < Duration::from_secs(1) {
                let mut more = vec![template.clone(); batch as usize];
                more.iter_mut().zip(next..).for_each(|(record, lsn)| record.entry.header.lsn = Lsn(lsn));
                let before = Instant::now();
                log.append(&more).unwrap();
                log.sync().unwrap();
                times.push(before.elapsed());
                next += batch;
            }
            let seconds = start.elapsed().as_secs_f64();
            times.sort();
            let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            let rate = next as f64 / seconds;
            println!(
                "zeros {zero_ahead_bytes:>8}, {batch:>4} x {size:>8} B: {rate:>10.0} records/s, {:>6.0} MB/s, p50 {p50:?}, p99 {p99:?}",
                rate * size as f64 / 1e6
            );
        }
    }
}
