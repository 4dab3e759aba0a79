//! The log in files: what a crash, a full disk, a flipped bit and a second process do to it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

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
    FileLog::open(path, small()).unwrap()
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

/// What the disk has now: a copy of the directory, as a crash leaves it.
fn image(path: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
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
    let dir = TempDir::new().unwrap();
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
