//! The storage thread: appends, marks and reads in the order they were asked for, with one sync for all that has
//! gathered.
//!
//! It never waits for the sequencer: what it has done it leaves in [`Done`] and rings. So the sequencer may wait for
//! room in the queue of jobs, and neither can wait for the other in a circle.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::guarded;
use crate::error::{Code, Error, Result};
use crate::log::{Lsn, Record, Records};
use crate::node::Conn;
use crate::store::{LogStore, Marks};

#[cfg(test)]
mod tests;

/// Jobs that wait; the sequencer waits for room beyond that.
const JOBS_MAX: usize = 4096;
/// Jobs, and bytes of records, taken before a sync at the latest: what waits for a sync should not wait for a whole
/// backlog.
const GROUP_MAX: usize = 1024;
const GROUP_BYTES: u64 = 8 << 20;

/// What the log is asked to do.
pub(super) enum Job {
    Append(Records),
    Truncate(Lsn),
    SaveMarks(Marks),
    Read { conn: Conn, from: Lsn, bytes_max: u64 },
}

/// What was done since the sequencer last looked.
#[derive(Default)]
pub(super) struct Done {
    /// What the last sync said.
    pub(super) persisted: Option<Lsn>,
    /// How many times marks were saved, in all.
    pub(super) saved: Option<u64>,
    /// At most one is under way for each reader.
    pub(super) reads: Vec<(Conn, Vec<Record>)>,
    /// The log failed, and the thread is gone.
    pub(super) failed: Option<Error>,
}

#[derive(Default)]
struct Shared {
    done: Mutex<Done>,
    bell: Notify,
}

/// The sequencer's side of the storage thread.
pub(super) struct Storage {
    jobs: Option<SyncSender<Job>>,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Storage {
    pub(super) fn spawn(log: Box<dyn LogStore>) -> Result<Self> {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("tagalong-storage".to_owned()).spawn(move || {
            let ran = guarded("the log", || run(log, &queue, &theirs));
            if let Err(error) = ran.and_then(|ran| ran) {
                // A full disk and a torn one look alike to whoever was promised durability: nothing more is.
                theirs.done.lock().failed = Some(error);
                theirs.bell.notify_one();
            }
        })?;
        Ok(Self { jobs: Some(jobs), shared, thread: Some(thread) })
    }

    /// Queues a job; waits while the queue is full.
    pub(super) fn ask(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A thread that is gone has said why.
            let _ = jobs.send(job);
        }
    }

    /// Resolves when there may be something to take.
    pub(super) async fn rings(&self) {
        self.shared.bell.notified().await;
    }

    pub(super) fn take(&self) -> Done {
        std::mem::take(&mut *self.shared.done.lock())
    }

    /// Carries out what is queued, and ends.
    pub(super) fn finish(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.finish();
    }
}

fn run(mut log: Box<dyn LogStore>, queue: &Receiver<Job>, shared: &Shared) -> Result<()> {
    let mut saved = 0;
    while let Ok(first) = queue.recv() {
        let (mut dirty, mut taken, mut bytes) = (false, 0, 0);
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Append(records) => {
                    log.append(&records).map_err(|error| failed("append to", error))?;
                    bytes += records.iter().map(Record::cost).sum::<u64>();
                    dirty = true;
                }
                Job::Truncate(last) => {
                    sync(&mut *log, &mut dirty, shared)?;
                    log.truncate_after(last).map_err(|error| failed("cut", error))?;
                }
                Job::SaveMarks(marks) => {
                    // In order with what was appended before: a mark never speaks of a log that is not there.
                    sync(&mut *log, &mut dirty, shared)?;
                    log.save_marks(&marks).map_err(|error| failed("save the marks of", error))?;
                    saved += 1;
                    shared.done.lock().saved = Some(saved);
                    shared.bell.notify_one();
                }
                Job::Read { conn, from, bytes_max } => {
                    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                    let records = log.read(from, bytes_max).map_err(|error| failed("read", error))?;
                    shared.done.lock().reads.push((conn, records));
                    shared.bell.notify_one();
                }
            }
            taken += 1;
            next = (taken < GROUP_MAX && bytes < GROUP_BYTES).then(|| queue.try_recv().ok()).flatten();
        }
        sync(&mut *log, &mut dirty, shared)?;
    }
    Ok(())
}

fn sync(log: &mut dyn LogStore, dirty: &mut bool, shared: &Shared) -> Result<()> {
    if std::mem::take(dirty) {
        let durable = log.sync().map_err(|error| failed("sync", error))?;
        shared.done.lock().persisted = Some(durable);
        shared.bell.notify_one();
    }
    Ok(())
}

/// Keeps the code of an error of ours; everything else is the storage's.
fn failed(doing: &str, error: std::io::Error) -> Error {
    let error = Error::from(error);
    let code = if error.code() == Code::Corrupt { Code::Corrupt } else { Code::Storage };
    Error::new(code, format!("cannot {doing} the log, so this node stops: {}", error.message()))
}
