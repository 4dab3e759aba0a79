//! The baseline's log: this crate's own, on a thread that syncs what has gathered at once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};

use bytes::Bytes;
use tagalong::log::{Body, Digest, Entry, Epoch, Header, Lsn, NodeId, Record, Request, Time};
use tagalong::store::LogStore;
use tagalong::store::file::{FileLog, FileLogOptions};

use crate::Result;

enum Job {
    Append(u64, Vec<Bytes>),
    After(u64, Box<dyn FnOnce() + Send>),
}

/// A log that is written behind.
#[derive(Clone)]
pub(crate) struct Disk {
    jobs: Sender<Job>,
    durable: Arc<AtomicU64>,
}

impl Disk {
    pub(crate) fn open(folder: &Path) -> Result<Disk> {
        let mut log = FileLog::open(folder, FileLogOptions::default())?;
        let (jobs, queue) = channel();
        let durable = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&durable);
        std::thread::spawn(move || {
            let mut waiting: Vec<(u64, Box<dyn FnOnce() + Send>)> = Vec::new();
            while let Ok(first) = queue.recv() {
                for job in std::iter::once(first).chain(queue.try_iter().take(1024)) {
                    match job {
                        Job::Append(last, entries) => append(&mut log, last, entries),
                        Job::After(lsn, then) => waiting.push((lsn, then)),
                    }
                }
                let synced = log.sync().expect("a measurement needs a disk that works");
                theirs.store(synced.0, Ordering::Release);
                for (lsn, then) in std::mem::take(&mut waiting) {
                    if lsn <= synced.0 { then() } else { waiting.push((lsn, then)) }
                }
            }
        });
        Ok(Disk { jobs, durable })
    }

    /// Appends the entries that end at `last`.
    pub(crate) fn append(&self, last: u64, entries: Vec<Bytes>) {
        let _ = self.jobs.send(Job::Append(last, entries));
    }

    /// Calls back when everything up to `lsn` is on disk.
    pub(crate) fn after(&self, lsn: u64, then: impl FnOnce() + Send + 'static) {
        let _ = self.jobs.send(Job::After(lsn, Box::new(then)));
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }
}

fn append(log: &mut FileLog, last: u64, entries: Vec<Bytes>) {
    let first = last + 1 - entries.len() as u64;
    let epoch = Epoch { number: 1, node: NodeId(1), ..Epoch::ZERO };
    let records: Vec<Record> = (first..)
        .zip(entries)
        .map(|(lsn, payload)| {
            let length = u32::try_from(payload.len()).expect("an entry is below 4 GiB");
            let digest = Digest::crc32(&payload);
            let (body, time, answered) = (Body::Command, Time(0), Request(0));
            let header = Header { epoch, lsn: Lsn(lsn), body, origin: None, time, answered, length, digest };
            Record { entry: Entry { header, payload }, reply: Digest::default() }
        })
        .collect();
    log.append(&records).expect("a measurement needs a disk that works");
}
