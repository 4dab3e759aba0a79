//! A log and a client cache in memory, with a disk one can crash: for tests, simulators and services that may forget.
//!
//! A handle is a view of a shared disk: clones see the same content, and the content outlives a handle. So a restart
//! is "drop the node, give its disk to a new one", and what a crash of the machine does to the disk in between is
//! said explicitly, by [`MemoryLog::crash`]. Faults are injected in the same way: a disk that is full
//! ([`MemoryLog::set_bytes_max`]), a sync that fails ([`MemoryLog::set_sync_fails`]), a cache that cannot be written
//! ([`MemoryCache::set_write_fails`]).
//!
//! The promises are those of the traits in [`store`](crate::store), and the conformance suite holds them to it. Not
//! here: anything that survives the process; that is [`store::file`](crate::store::file).

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::client::{CacheImage, CacheOp};
use crate::error::{Code, Error};
use crate::log::{Lsn, Record};
use crate::store::{ClientCache, LogStore, Marks, check_dense};

/// A log on a disk in memory. Clones share the disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    disk: Arc<Mutex<LogDisk>>,
}

#[derive(Debug, Default)]
struct LogDisk {
    /// The record at index `n` has LSN `n + 1`.
    records: Vec<Record>,
    /// How many of `records` are synced.
    synced: usize,
    bytes: u64,
    marks: Option<Marks>,
    cut: Vec<Record>,
    bytes_max: Option<u64>,
    sync_fails: bool,
    /// A sync failed: nothing works until the crash.
    failed: bool,
}

impl MemoryLog {
    /// An empty log on a disk of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine crashes: of the records that were not synced the first `keep` survive, the others are lost. A
    /// sync that failed is forgotten; the injected faults stay. Handles go on seeing the disk as it is now.
    pub fn crash(&self, keep: usize) {
        let mut disk = self.disk.lock();
        let kept = disk.synced.saturating_add(keep).min(disk.records.len());
        disk.cut_to(kept);
        disk.synced = kept;
        disk.failed = false;
    }

    /// How many records are appended and not synced.
    pub fn unsynced(&self) -> usize {
        let disk = self.disk.lock();
        disk.records.len() - disk.synced
    }

    /// The disk is full at this many bytes, counted by [`Record::cost`]; `None` for a disk without end.
    pub fn set_bytes_max(&self, bytes_max: Option<u64>) {
        self.disk.lock().bytes_max = bytes_max;
    }

    /// Whether every sync from now on fails, of records and of marks.
    pub fn set_sync_fails(&self, fails: bool) {
        self.disk.lock().sync_fails = fails;
    }

    /// What [`truncate_after`](LogStore::truncate_after) set aside, the oldest cut first.
    pub fn cut(&self) -> Vec<Record> {
        self.disk.lock().cut.clone()
    }
}

impl LogDisk {
    fn check(&self) -> io::Result<()> {
        if self.failed {
            let why = "a sync of this log failed before: what it holds is unknown until it is opened again";
            return Err(Error::new(Code::Storage, why).into());
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.sync_fails {
            self.failed = true;
            return Err(Error::new(Code::Storage, "the sync failed, as the test wants it").into());
        }
        Ok(())
    }

    fn cut_to(&mut self, length: usize) -> Vec<Record> {
        let cut = self.records.split_off(length.min(self.records.len()));
        self.bytes -= cut.iter().map(Record::cost).sum::<u64>();
        cut
    }
}

impl LogStore for MemoryLog {
    fn marks(&mut self) -> io::Result<Option<Marks>> {
        let disk = self.disk.lock();
        disk.check()?;
        Ok(disk.marks.clone())
    }

    fn save_marks(&mut self, marks: &Marks) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check()?;
        disk.sync()?;
        disk.marks = Some(marks.clone());
        Ok(())
    }

    fn bounds(&self) -> Range<Lsn> {
        Lsn(1)..Lsn(self.disk.lock().records.len() as u64 + 1)
    }

    fn read(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Vec<Record>> {
        let disk = self.disk.lock();
        disk.check()?;
        let skip = usize::try_from(from.0.saturating_sub(1)).unwrap_or(usize::MAX);
        let mut left = bytes_max as u64;
        let mut out = Vec::new();
        for record in disk.records.iter().skip(skip) {
            if !out.is_empty() && record.cost() > left {
                break;
            }
            left = left.saturating_sub(record.cost());
            out.push(record.clone());
        }
        Ok(out)
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check()?;
        check_dense(Lsn(disk.records.len() as u64 + 1), records)?;
        let bytes = disk.bytes + records.iter().map(Record::cost).sum::<u64>();
        if let Some(bytes_max) = disk.bytes_max.filter(|bytes_max| bytes > *bytes_max) {
            let why = format!("the log is full at {bytes_max} bytes; raise the limit, or make room");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        disk.bytes = bytes;
        disk.records.extend_from_slice(records);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<Lsn> {
        let mut disk = self.disk.lock();
        disk.check()?;
        disk.sync()?;
        disk.synced = disk.records.len();
        Ok(Lsn(disk.synced as u64))
    }

    fn truncate_after(&mut self, last: Lsn) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check()?;
        disk.sync()?;
        let cut = disk.cut_to(usize::try_from(last.0).unwrap_or(usize::MAX));
        disk.cut.extend(cut);
        disk.synced = disk.records.len();
        Ok(())
    }
}

/// A client's cache on a disk in memory. Clones share the disk, and what is written survives every crash: it is the
/// cache of a client whose process never ends, or the fastest one for a client that may forget.
#[derive(Clone, Debug, Default)]
pub struct MemoryCache {
    disk: Arc<Mutex<CacheDisk>>,
}

#[derive(Debug, Default)]
struct CacheDisk {
    /// The operations themselves would grow without end.
    image: Option<CacheImage>,
    write_fails: bool,
}

impl MemoryCache {
    /// An empty cache on a disk of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether every write from now on fails.
    pub fn set_write_fails(&self, fails: bool) {
        self.disk.lock().write_fails = fails;
    }
}

impl ClientCache for MemoryCache {
    fn load(&mut self) -> io::Result<Vec<CacheOp>> {
        Ok(self.disk.lock().image.as_ref().map(CacheImage::to_ops).unwrap_or_default())
    }

    fn write(&mut self, ops: &[CacheOp]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if disk.write_fails {
            return Err(Error::new(Code::Storage, "the write failed, as the test wants it").into());
        }
        if ops.is_empty() {
            return Ok(());
        }
        let image = disk.image.get_or_insert_default();
        ops.iter().for_each(|op| image.apply(op));
        Ok(())
    }
}
