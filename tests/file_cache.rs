//! The client's cache in a file: what a crash, a flipped bit and a second process do to it, and that it stays small.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use bytes::Bytes;
use tagalong::client::{CacheImage, CacheOp, Command, Identity};
use tagalong::log::{ClientId, Digest, Epoch, Level, Lsn, NodeId, Request, SessionRole, Tag, Time};
use tagalong::share::{Mode, Share};
use tagalong::store::ClientCache;
use tagalong::store::file::{FileCache, FileCacheOptions};
use tagalong::{Code, Error};
use tempfile::TempDir;

const EPOCH: Epoch = Epoch { generation: 0, number: 1, node: NodeId(7) };

fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn open(path: &Path, sync: bool) -> FileCache {
    FileCache::open(path, FileCacheOptions { sync }).unwrap()
}

fn identity() -> CacheOp {
    CacheOp::Identity(Identity {
        client: ClientId(77),
        cluster: None,
        group: None,
        domain: "here".to_owned(),
        role: SessionRole::Writer,
    })
}

fn command(request: u64, size: usize) -> CacheOp {
    let payload = Bytes::from(vec![(request % 251) as u8; size]);
    let command = Command {
        answered: Request(0),
        level: Level::Tagged,
        withdrawn: false,
        digest: Digest::crc32(&payload),
        payload,
        tag: None,
        reply: None,
    };
    CacheOp::Command { request: Request(request), command }
}

fn tag(request: u64) -> CacheOp {
    let lsn = Lsn(request);
    let (time, met) = (Time(1), Level::Tagged);
    let tag = Tag { epoch: EPOCH, lsn, time, hold_until: Some(lsn), stable: Lsn(0), protected: true, met };
    CacheOp::Tag { request: Request(request), tag }
}

/// To be kept until the checkpoint is where its number says.
fn share(id: u64, length: usize) -> CacheOp {
    let body = Bytes::from(vec![9; length]);
    CacheOp::Share(Share { epoch: EPOCH, id, mode: Mode::Stripe, holder: ClientId(77), hold_until: Lsn(id), body })
}

/// A command's life: sent, tagged, answered.
fn life(request: u64, size: usize) -> Vec<CacheOp> {
    let answered = CacheOp::Answered { request: Request(request), reply: Digest::crc32(b"reply") };
    vec![command(request, size), tag(request), answered]
}

fn replay(ops: &[CacheOp]) -> CacheImage {
    let mut image = CacheImage::default();
    ops.iter().for_each(|op| image.apply(op));
    image
}

fn loaded(cache: &mut FileCache) -> CacheImage {
    replay(&cache.load().unwrap())
}

fn image(path: &Path) -> TempDir {
    let copy = scratch();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn with_cache(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> (TempDir, tagalong::Result<FileCache>) {
    let copy = image(dir);
    let path = copy.path().join("cache");
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let cache = FileCache::open(copy.path(), FileCacheOptions::default());
    (copy, cache)
}

fn content_end(dir: &Path) -> usize {
    let bytes = fs::read(dir.join("cache")).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

#[test]
fn what_was_written_is_loaded() {
    for sync in [false, true] {
        let dir = scratch();
        let mut cache = open(dir.path(), sync);
        assert_eq!(cache.load().unwrap(), [], "a new cache holds nothing");
        let mut ops = vec![identity(), CacheOp::Incarnation(1)];
        cache.write(&ops).unwrap();
        for request in 1..30 {
            let more = life(request, 100);
            cache.write(&more).unwrap();
            ops.extend(more);
            // Every write survives the process, at once.
            assert_eq!(loaded(&mut open(image(dir.path()).path(), sync)), replay(&ops));
        }
        let stable = CacheOp::Stable(EPOCH, Lsn(20));
        cache.write(std::slice::from_ref(&stable)).unwrap();
        ops.push(stable);
        drop(cache);
        let mut cache = open(dir.path(), !sync);
        assert_eq!(cache.opened().torn, None);
        assert_eq!(loaded(&mut cache), replay(&ops));
        assert_eq!(loaded(&mut cache).commands.len(), 9);
    }
}

#[test]
fn a_cache_that_was_only_opened_is_still_new() {
    let dir = scratch();
    drop(open(dir.path(), true));
    assert_eq!(open(dir.path(), true).load().unwrap(), []);
}

#[test]
fn the_file_stays_in_proportion_to_what_is_held() {
    let dir = scratch();
    let mut cache = open(dir.path(), false);
    cache.write(&[identity()]).unwrap();
    let mut largest = 0;
    for request in 1..3000 {
        cache.write(&life(request, 2000)).unwrap();
        if request > 10 {
            cache.write(&[CacheOp::Stable(EPOCH, Lsn(request - 10))]).unwrap();
        }
        largest = largest.max(fs::metadata(dir.path().join("cache")).unwrap().len());
    }
    assert!(largest < 2 << 20, "6 MB went through, 20 kB are held, and the file grew to {largest}");
    drop(cache);
    let image = loaded(&mut open(dir.path(), false));
    assert_eq!(image.commands.keys().map(|request| request.0).collect::<Vec<_>>(), (2990..3000).collect::<Vec<_>>());
    assert_eq!(image.identity.unwrap().client, ClientId(77));

    // Shares come and go with the checkpoint as well.
    let dir = scratch();
    let mut cache = open(dir.path(), false);
    let mut largest = 0;
    for id in 1..300 {
        cache.write(&[share(id, 40_000)]).unwrap();
        if id > 5 {
            cache.write(&[CacheOp::Stable(EPOCH, Lsn(id - 5))]).unwrap();
        }
        largest = largest.max(fs::metadata(dir.path().join("cache")).unwrap().len());
    }
    assert!(largest < 2 << 20, "12 MB of shares went through, 200 kB are kept, and the file grew to {largest}");
    drop(cache);
    let image = loaded(&mut open(dir.path(), false));
    assert_eq!(image.shares.keys().map(|(_, id)| *id).collect::<Vec<_>>(), (295..300).collect::<Vec<_>>());

    // What is held is never thrown away, however large.
    let dir = scratch();
    let mut cache = open(dir.path(), false);
    for request in 1..1000 {
        cache.write(&life(request, 5000)).unwrap();
    }
    drop(cache);
    assert_eq!(loaded(&mut open(dir.path(), false)).commands.len(), 999);
    assert!(fs::read_dir(dir.path()).unwrap().count() == 2, "lock and cache");
}

/// A compaction is worth its while where much of the file is dead: shares that are kept are not.
#[cfg(unix)]
#[test]
fn shares_that_are_kept_are_not_written_again_and_again() {
    use std::os::unix::fs::MetadataExt;
    let dir = scratch();
    let mut cache = open(dir.path(), false);
    // A compaction puts another file in the place of the old one.
    let file = || fs::metadata(dir.path().join("cache")).unwrap().ino();
    let first = file();
    for id in 1..=100 {
        cache.write(&[share(id, 60_000)]).unwrap();
    }
    assert_eq!(file(), first, "6 MB, none of it dead");
    cache.write(&[CacheOp::Stable(EPOCH, Lsn(90))]).unwrap();
    assert_ne!(file(), first, "of 6 MB 600 kB are left");
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let dir = scratch();
    let mut cache = open(dir.path(), true);
    let mut ops = vec![identity()];
    ops.extend(life(1, 30));
    cache.write(&ops).unwrap();
    let written = content_end(dir.path()).next_multiple_of(8);
    let last = life(2, 30);
    cache.write(&last).unwrap();
    let end = content_end(dir.path());
    let states: Vec<_> = (0..=3).map(|n| replay(&[ops.clone(), last[..n].to_vec()].concat())).collect();
    let mut seen = [false; 4];
    for cut in written..=end + 8 {
        for zeroed in [false, true] {
            let change = |bytes: &mut Vec<u8>| if zeroed { bytes[cut..].fill(0) } else { bytes.truncate(cut) };
            let (copy, cache) = with_cache(dir.path(), change);
            let mut cache = cache.unwrap();
            let state = loaded(&mut cache);
            let kept = states.iter().position(|known| *known == state).expect("a prefix of what was written");
            seen[kept] = true;
            // It goes on from there.
            cache.write(&[CacheOp::Incarnation(9)]).unwrap();
            let mut expected = state;
            expected.apply(&CacheOp::Incarnation(9));
            assert_eq!(loaded(&mut open(image(copy.path()).path(), true)), expected);
        }
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn a_flipped_byte_is_found_and_named() {
    let dir = scratch();
    let mut cache = open(dir.path(), true);
    let mut ops = vec![identity()];
    cache.write(&ops).unwrap();
    for request in 1..5 {
        cache.write(&life(request, 20)).unwrap();
        ops.extend(life(request, 20));
    }
    let crashed = image(dir.path());
    let end = content_end(dir.path()).next_multiple_of(8);
    drop(cache);
    let expected = replay(&ops);
    for (dir, clean) in [(dir, true), (crashed, false)] {
        for at in 0..content_end(dir.path()) {
            let (_copy, cache) = with_cache(dir.path(), |bytes| bytes[at] ^= 1 << (at % 8));
            match cache {
                Ok(mut cache) => {
                    let state = loaded(&mut cache);
                    let whole = state == expected;
                    assert!(if clean { whole && at >= end } else { state.commands.len() >= 3 }, "byte {at} of {end}");
                }
                Err(error) => {
                    assert_eq!(error.code(), Code::Corrupt);
                    let message = error.message();
                    assert!(message.contains("/cache is damaged at offset"), "{message}");
                    assert!(at < end);
                }
            }
        }
    }
}

#[test]
fn a_later_format_or_operation_is_refused() {
    let dir = scratch();
    let mut cache = open(dir.path(), true);
    cache.write(&[CacheOp::Welcomed]).unwrap();
    drop(cache);
    let (_copy, cache) = with_cache(dir.path(), |bytes| {
        bytes[12] += 1;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    });
    assert_eq!(cache.unwrap_err().code(), Code::WrongVersion);
    // The frame is whole, and what is in it is of a kind nobody knows yet.
    let (_copy, cache) = with_cache(dir.path(), |bytes| {
        bytes[96] = 99;
        let content = crc32fast::hash(&bytes[96..104]);
        bytes[88..92].copy_from_slice(&content.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[32..40]);
        crc.update(&bytes[68..96]);
        let crc = crc.finalize().to_le_bytes();
        bytes[64..68].copy_from_slice(&crc);
    });
    let error = cache.unwrap_err();
    assert_eq!(error.code(), Code::UnknownKind, "{error}");
    assert!(error.message().contains("a later version"), "{error}");
}

/// Runs the test `name` of this file in a process of its own, with `dir`.
fn child(name: &str, dir: &Path) -> std::process::Child {
    let mut command = Process::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(DIR, dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

const DIR: &str = "TAGALONG_FILE_CACHE_TEST_DIR";

#[test]
fn child_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let mut cache = open(&dir, false);
    let mut request = loaded(&mut cache).last.0;
    loop {
        request += 1;
        cache.write(&life(request, 3000)).unwrap();
        cache.write(&[CacheOp::Stable(EPOCH, Lsn(request.saturating_sub(50)))]).unwrap();
        println!("written {request}");
    }
}

#[test]
fn what_a_killed_process_reported_as_written_is_there() {
    let dir = scratch();
    let mut total = 0;
    for round in 0..6 {
        let mut child = child("child_writes_until_it_is_killed", dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut written = 0;
        let mut note = |line: &str| {
            if let Some(request) = line.split("written ").nth(1) {
                written = request.parse::<u64>().unwrap();
            }
        };
        // Long enough for compactions to happen.
        for _ in 0..300 + 111 * round {
            note(&lines.next().unwrap().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines.map_while(Result::ok).for_each(|line| note(&line));
        let state = loaded(&mut open(dir.path(), false));
        assert!(written > total && state.last.0 >= written, "{written} were written, {} are there", state.last);
        let held: Vec<_> = state.commands.keys().map(|request| request.0).collect();
        assert!(held.contains(&written) && held.contains(&(written - 40)), "{held:?}, {written}");
        assert!(held.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{held:?}");
        total = written;
    }
}

#[test]
fn child_holds_the_cache() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let _cache = open(&dir, false);
    println!("open");
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_cache_is_open_once() {
    let dir = scratch();
    let locked = || {
        let error: Error = FileCache::open(dir.path(), FileCacheOptions::default()).unwrap_err();
        assert_eq!(error.code(), Code::Locked);
        assert!(error.message().contains(dir.path().to_str().unwrap()), "{error}");
    };
    let cache = open(dir.path(), false);
    locked();
    drop(cache);
    let mut child = child("child_holds_the_cache", dir.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().ends_with("open") {}
    locked();
    drop(child.stdin.take());
    child.wait().unwrap();
    drop(open(dir.path(), false));
}
