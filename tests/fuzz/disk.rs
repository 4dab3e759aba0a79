//! Directories of logs and caches: what was written and then damaged, and files nobody wrote, with checksums that hold.

use std::fs;
use std::path::{Path, PathBuf};

use tagalong::client::CacheImage;
use tagalong::codec::{decode_marks, decode_op, decode_record, encode_marks, encode_op, encode_record};
use tagalong::error::{Code, Error};
use tagalong::log::{Lsn, Record};
use tagalong::store::file::{FileCache, FileCacheOptions, FileLog, FileLogOptions, read_cut};
use tagalong::store::{ClientCache, LogStore, Marks};
use tempfile::TempDir;

use super::input::Input;
use super::{forged, heap};

/// Opening reads through a window on each file, and a record's checksums before it is believed.
const FIXED: usize = 2 << 20;
/// Records and operations are read one by one, and kept.
const EACH: usize = 64;

/// What a damaged disk may be called.
fn is_typed(error: impl Into<Error>) {
    let error = error.into();
    assert!(matches!(error.code(), Code::Corrupt | Code::WrongVersion | Code::UnknownKind), "{error}");
}

/// In memory where there is such a place: hundreds of syncs are not what is tested here.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name != "lock"));
    files.sort();
    files
}

/// The directory as it is at this moment, though whoever has it open will leave it differently.
fn image(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files(dir).into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

fn put_back(dir: &Path, image: &[(PathBuf, Vec<u8>)]) {
    files(dir).iter().for_each(|path| fs::remove_file(path).unwrap());
    image.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
}

/// Whether all is as it was, except for what was never finished.
fn is_untouched(before: &[(PathBuf, Vec<u8>)], dir: &Path) -> bool {
    let finished = |path: &Path| !path.file_name().unwrap().to_string_lossy().starts_with("new-");
    let before: Vec<_> = before.iter().filter(|(path, _)| finished(path)).cloned().collect();
    image(dir) == before
}

/// Changes some bytes of some files, as the rest of the input says.
fn damage(dir: &Path, input: &mut Input<'_>) {
    let paths = files(dir);
    while let Some(op) = input.byte() {
        let path = &paths[usize::from(op >> 3) % paths.len()];
        let mut bytes = fs::read(path).unwrap();
        let at = input.below(bytes.len());
        match op & 7 {
            0..=2 if !bytes.is_empty() => bytes[at] ^= input.byte().unwrap_or(0x10).max(1),
            3 => bytes.truncate(at),
            4 => bytes.extend_from_slice(input.part()),
            5 => {
                let end = (at + 1 + usize::from(input.byte().unwrap_or(7))).min(bytes.len());
                bytes[at.min(end)..end].fill(0);
            }
            // Blocks of this file, or another, in the wrong place.
            _ => {
                let other = fs::read(&paths[input.below(paths.len())]).unwrap();
                let from = input.below(other.len()) / 8 * 8;
                let block = &other[from..(from + 96).min(other.len())];
                let at = at / 8 * 8;
                bytes.resize(bytes.len().max(at + block.len()), 0);
                bytes[at..at + block.len()].copy_from_slice(block);
            }
        }
        fs::write(path, bytes).unwrap();
    }
}

/// Every record, one by one: what was read before an error is there.
fn read_all(log: &mut FileLog) -> (Vec<Record>, bool) {
    let bounds = log.bounds();
    assert_eq!(bounds.start, Lsn(1));
    let mut records: Vec<Record> = Vec::new();
    while Lsn(records.len() as u64 + 1) < bounds.end {
        match log.read(Lsn(records.len() as u64 + 1), 1) {
            Ok(more) => {
                assert!(!more.is_empty());
                for record in more {
                    assert_eq!(record.lsn(), Lsn(records.len() as u64 + 1), "I1: the log is dense");
                    records.push(record);
                }
            }
            Err(error) => {
                is_typed(error);
                return (records, false);
            }
        }
    }
    (records, true)
}

/// A log is written, its process ends or is killed, and its files are damaged. It opens to a prefix of what was written,
/// or says what is wrong; and what opened goes on.
pub(crate) fn log(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let dir = directory();
    let segment_bytes = 300 + 8 * input.number(1);
    let options = FileLogOptions { segment_bytes, zero_ahead_bytes: input.number(1), bytes_max: None };
    let killed = input.byte().is_some_and(|byte| byte & 1 == 1);
    let mut script = Input::new(input.part());
    let mut written: Vec<Record> = Vec::new();
    let mut saved: Option<Marks> = None;
    let mut synced = 0;
    let mut log = FileLog::open(dir.path(), options).unwrap();
    for _ in 0..40 {
        let Some(op) = script.byte() else { break };
        match op % 8 {
            0..=3 => {
                let lsn = Lsn(written.len() as u64 + 1);
                written.push(forged::record(script.number(2), lsn, usize::from(op) * 2));
                log.append(&written[written.len() - 1..]).unwrap();
            }
            4 | 5 => {
                assert_eq!(log.sync().unwrap(), Lsn(written.len() as u64));
                synced = written.len();
            }
            6 => {
                let marks = forged::marks(script.number(2));
                log.save_marks(&marks).unwrap();
                saved = Some(marks);
            }
            _ => {
                let last = script.below(written.len() + 1);
                log.truncate_after(Lsn(last as u64)).unwrap();
                written.truncate(last);
                synced = written.len();
            }
        }
    }
    let at_once = image(dir.path());
    drop(log);
    if killed {
        put_back(dir.path(), &at_once);
    }
    let whole = input.is_empty();
    if !files(dir.path()).is_empty() {
        damage(dir.path(), &mut input);
    }
    let damaged = image(dir.path());
    let mut log = match heap::within(bytes, FIXED, EACH, || FileLog::open(dir.path(), options)) {
        Ok(log) => log,
        Err(error) => {
            assert!(!whole, "nothing is wrong: {error}");
            is_typed(error);
            assert!(is_untouched(&damaged, dir.path()), "nothing was changed");
            return;
        }
    };
    let (read, all) = heap::within(bytes, FIXED, EACH, || read_all(&mut log));
    assert!(written.starts_with(&read), "what was never written is read: {read:?}");
    assert!(!whole || (all && read.len() >= synced), "what was durable is there");
    match log.marks() {
        Ok(marks) => assert_eq!(marks, saved, "the marks are as they were saved"),
        Err(error) => {
            assert!(!whole);
            is_typed(error);
        }
    }
    let torn_once = log.opened().torn.is_some();
    if all {
        // It goes on where it ends, and that is for good.
        let next = forged::record(1, log.bounds().end, 9);
        log.append(std::slice::from_ref(&next)).unwrap();
        assert_eq!(log.sync().unwrap(), next.lsn());
        drop(log);
        let mut log = FileLog::open(dir.path(), options).unwrap();
        assert_eq!(log.opened().torn, None, "it was cut off (or not: {torn_once}) before");
        let (again, all) = read_all(&mut log);
        assert!(all && again.split_last() == Some((&next, &read[..])));
    }
}

fn cache_image(ops: &[tagalong::client::CacheOp]) -> CacheImage {
    let mut image = CacheImage::default();
    ops.iter().for_each(|op| image.apply(op));
    image
}

/// As [`log`], of a client's cache: it opens to what it was after some operation.
pub(crate) fn cache(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let dir = directory();
    let flags = input.number(1);
    let options = FileCacheOptions { sync: flags & 2 == 2 };
    let mut script = Input::new(input.part());
    let mut images = vec![cache_image(&[])];
    let mut cache = FileCache::open(dir.path(), options).unwrap();
    let mut last = 0;
    while !script.is_empty() && images.len() < 60 {
        let ops: Vec<_> = (0..1 + script.number(1) % 3).map(|_| forged::op(script.number(2), &mut last)).collect();
        cache.write(&ops).unwrap();
        for op in &ops {
            let mut image = images[images.len() - 1].clone();
            image.apply(op);
            images.push(image);
        }
    }
    let at_once = image(dir.path());
    drop(cache);
    if flags & 1 == 1 {
        put_back(dir.path(), &at_once);
    }
    let whole = input.is_empty();
    damage(dir.path(), &mut input);
    let damaged = image(dir.path());
    let mut cache = match heap::within(bytes, FIXED, EACH, || FileCache::open(dir.path(), options)) {
        Ok(cache) => cache,
        Err(error) => {
            assert!(!whole, "nothing is wrong: {error}");
            is_typed(error);
            assert!(is_untouched(&damaged, dir.path()), "nothing was changed");
            return;
        }
    };
    // As its own compaction would write it: what was known of the dead is not part of it.
    let of = |image: &CacheImage| image.to_ops();
    let read = cache_image(&cache.load().unwrap());
    assert!(images.iter().any(|image| of(image) == of(&read)), "it was never like this: {read:?}");
    assert!(!whole || of(&read) == of(&images[images.len() - 1]));
    let op = forged::op(1, &mut last);
    cache.write(std::slice::from_ref(&op)).unwrap();
    let mut next = read;
    next.apply(&op);
    drop(cache);
    let mut cache = FileCache::open(dir.path(), options).unwrap();
    assert_eq!(cache.opened().torn, None);
    assert_eq!(of(&cache_image(&cache.load().unwrap())), of(&next));
}

/// Four kinds of files, with the names they have.
const KINDS: [(&[u8; 4], &str); 4] =
    [(b"LOG\0", "log-00000000000000000001"), (b"CACH", "cache"), (b"MARK", "marks"), (b"CUT\0", "cut-1")];

/// A file of this kind: a head and frames with the contents that the input has, all checksums put right. Its contents are
/// returned, too: by the number of the frame they are in, as far as they follow each other.
fn forged_file(kind: usize, input: &mut Input<'_>) -> (Vec<u8>, Vec<Vec<u8>>) {
    let salt = 0x1234_5678_9abc_def0_u64;
    let twist = input.byte().unwrap_or_default();
    let version = tagalong::codec::VERSION + u16::from(twist == 1);
    let first = if twist == 2 { input.number(8) } else { 1 };
    let mut file = b"tagalong".to_vec();
    file.extend_from_slice(KINDS[kind].0);
    file.extend_from_slice(&[version.to_le_bytes(), [0; 2]].concat());
    file.extend_from_slice(&9_u128.to_le_bytes());
    file.extend_from_slice(&[salt.to_le_bytes(), first.to_le_bytes()].concat());
    file.extend_from_slice(&[0; 12]);
    file.extend_from_slice(&crc32fast::hash(&file).to_le_bytes());
    let mut contents = Vec::new();
    let mut next = first;
    while let Some(flags) = input.byte() {
        let content = match flags % 4 {
            0 => input.part().to_vec(),
            1 => own_content(kind, Lsn(next), input.number(2)),
            // Nearly one of its own.
            _ => {
                let mut content = own_content(kind, Lsn(next), input.number(2));
                if !content.is_empty() {
                    let at = input.below(content.len());
                    content[at] ^= input.byte().unwrap_or(1);
                }
                content
            }
        };
        let sequence = if flags & 4 == 0 { next } else { input.number(8) };
        let durable = if flags & 8 == 0 { next.wrapping_sub(1) } else { input.number(8) };
        let length = if flags & 16 == 0 { content.len() as u64 } else { input.number(4) };
        let padded = content.len().next_multiple_of(8);
        let mut frame = vec![0; 32];
        frame.extend_from_slice(&content);
        frame.resize(32 + padded, 0);
        let content_crc = crc32fast::hash(&frame[32..]);
        frame[4..8].copy_from_slice(&length.to_le_bytes()[..4]);
        frame[8..16].copy_from_slice(&sequence.to_le_bytes());
        frame[16..24].copy_from_slice(&durable.to_le_bytes());
        frame[24..28].copy_from_slice(&content_crc.to_le_bytes());
        frame[28] = if flags & 32 == 0 { 1 } else { 2 };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&salt.to_le_bytes());
        crc.update(&frame[4..32]);
        frame[..4].copy_from_slice(&crc.finalize().to_le_bytes());
        file.extend_from_slice(&frame);
        contents.push(content);
        next = next.wrapping_add(1);
    }
    (file, contents)
}

fn own_content(kind: usize, lsn: Lsn, seed: u64) -> Vec<u8> {
    let mut content = Vec::new();
    match kind {
        1 => encode_op(&forged::op(seed, &mut 3), &mut content),
        2 => encode_marks(&forged::marks(seed), &mut content),
        _ => encode_record(&forged::record(seed, lsn, 5), &mut content),
    }
    content
}

/// A file that nobody of us wrote, or with anything in it: it is read as what it says, or an error with a name.
pub(crate) fn files_of_others(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.byte().unwrap_or_default();
    let kind = usize::from(flags % 4);
    let dir = directory();
    let path = dir.path().join(KINDS[kind].1);
    let (file, contents) =
        if flags & 4 == 0 { forged_file(kind, &mut input) } else { (input.bytes(usize::MAX).to_vec(), Vec::new()) };
    fs::write(&path, &file).unwrap();
    match kind {
        0 => {
            let open = || FileLog::open(dir.path(), FileLogOptions::default());
            let mut log = match heap::within(&file, FIXED, EACH, open) {
                Ok(log) => log,
                Err(error) => return is_typed(error),
            };
            let (read, _) = heap::within(&file, FIXED, EACH, || read_all(&mut log));
            for (record, content) in read.iter().zip(&contents) {
                assert_eq!(decode_record(content).as_ref(), Ok(record), "what it says");
            }
            drop(log);
            let (again, _) = read_all(&mut open().expect("it opened before"));
            assert_eq!(again, read);
        }
        1 => {
            let open = || FileCache::open(dir.path(), FileCacheOptions::default());
            let mut cache = match heap::within(&file, FIXED, EACH, open) {
                Ok(cache) => cache,
                Err(error) => return is_typed(error),
            };
            let ops = cache.load().unwrap();
            drop(cache);
            assert_eq!(open().expect("it opened before").load().unwrap(), ops);
            let all: Vec<_> = contents.iter().map_while(|content| decode_op(content).ok()).collect();
            let any = (0..=all.len()).any(|some| cache_image(&all[..some]).to_ops() == cache_image(&ops).to_ops());
            assert!(any || flags & 4 != 0, "it is what some of them make");
        }
        2 => {
            let mut log = match FileLog::open(dir.path(), FileLogOptions::default()) {
                Ok(log) => log,
                Err(error) => return is_typed(error),
            };
            match heap::within(&file, FIXED, EACH, || log.marks()) {
                Ok(marks) => {
                    let marks = marks.expect("the file is there");
                    let is = |content: &Vec<u8>| decode_marks(content).as_ref() == Ok(&marks);
                    assert!(flags & 4 != 0 || contents.iter().any(is), "what it says");
                }
                Err(error) => is_typed(error),
            }
        }
        _ => match heap::within(&file, FIXED, EACH, || read_cut(&path)) {
            Ok(records) => {
                for (record, content) in records.iter().zip(&contents) {
                    assert_eq!(decode_record(content).as_ref(), Ok(record), "what it says");
                }
            }
            Err(error) => is_typed(error),
        },
    }
}
