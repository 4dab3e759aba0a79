//! The storage thread: appends, marks and reads in the order they were asked for, with one sync for all that has
//! gathered.
//!
//! Neither waits for the other: jobs are queued, and what is done is left in [`Done`], with a ring. What may wait in the
//! queue is bounded by the core, in bytes: a primary counts what its own disk lacks against the budget of the delta, a
//! backup gets no more than the replication window.
//!
//! What somebody waits for is synced at once, and whatever gathers meanwhile with the next sync. Where nobody waits, as
//! on a primary whose backup is the stability target, appends gather for up to [`PATIENCE`]: a sync costs as much
//! processor time as dozens of writes, and the thread does not even wake for what it may leave in its queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::guarded;
use crate::error::{Code, Error, Result};
use crate::log::{Lsn, Record, Records};
use crate::node::Conn;
use crate::store::{LogStore, Marks};

#[cfg(test)]
mod tests;

/// Jobs, and bytes of records, taken before a sync at the latest: what waits for a sync should not wait for a whole
/// backlog.
const GROUP_MAX: usize = 1024;
const GROUP_BYTES: u64 = 32 << 20;
/// What is appended and nobody waits for is synced after this, at the latest.
const PATIENCE: Duration = Duration::from_millis(5);

/// What the log is asked to do.
pub(super) enum Job {
    Append(Records),
    /// The same, but nobody waits for it.
    AppendLater(Records),
    Truncate(Lsn),
    SaveMarks(Marks),
    Read {
        conn: Conn,
        from: Lsn,
        bytes_max: u64,
    },
}

/// Jobs that wait for the thread.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Those among them that somebody waits for.
    urgent: usize,
    /// The thread sleeps, and is to be woken for any job, or for one that is urgent.
    sleeps: Option<Wakes>,
    /// No more will come.
    closed: bool,
    /// The thread has ended.
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wakes {
    ForAny,
    ForUrgent,
}

#[derive(Default)]
struct Jobs {
    queue: Mutex<Queue>,
    work: Condvar,
}

impl Jobs {
    fn push(&self, job: Job) {
        let mut queue = self.queue.lock();
        if queue.ended {
            // A thread that is gone has said why.
            return;
        }
        let urgent = !matches!(job, Job::AppendLater(_));
        queue.urgent += usize::from(urgent);
        queue.jobs.push_back(job);
        let wakes = match queue.sleeps {
            None => false,
            Some(Wakes::ForAny) => true,
            Some(Wakes::ForUrgent) => urgent || queue.jobs.len() >= GROUP_MAX,
        };
        if wakes {
            queue.sleeps = None;
            self.work.notify_one();
        }
    }

    /// Waits until there is something to do: a job, or, where something is to be synced by then, an urgent one, or that
    /// time. `None` when there is nothing left and no more will come; otherwise whether it is not to be put off.
    fn wait(&self, due: Option<Instant>) -> Option<bool> {
        let mut queue = self.queue.lock();
        loop {
            if queue.closed {
                return (due.is_some() || !queue.jobs.is_empty()).then_some(true);
            }
            if queue.urgent > 0 || queue.jobs.len() >= GROUP_MAX {
                return Some(true);
            }
            let Some(at) = due else {
                if !queue.jobs.is_empty() {
                    return Some(false);
                }
                queue.sleeps = Some(Wakes::ForAny);
                self.work.wait(&mut queue);
                continue;
            };
            queue.sleeps = Some(Wakes::ForUrgent);
            if self.work.wait_until(&mut queue, at).timed_out() {
                queue.sleeps = None;
                return Some(true);
            }
        }
    }

    fn pop(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        let job = queue.jobs.pop_front()?;
        queue.urgent -= usize::from(!matches!(job, Job::AppendLater(_)));
        Some(job)
    }
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
    jobs: Arc<Jobs>,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Storage {
    pub(super) fn spawn(log: Box<dyn LogStore>) -> Result<Self> {
        Self::with_patience(log, PATIENCE)
    }

    fn with_patience(log: Box<dyn LogStore>, patience: Duration) -> Result<Self> {
        let (jobs, shared) = (Arc::new(Jobs::default()), Arc::new(Shared::default()));
        let (queue, theirs) = (Arc::clone(&jobs), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("tagalong-storage".to_owned()).spawn(move || {
            let ran = guarded("the log", || run(log, &queue, &theirs, patience));
            {
                let mut queue = queue.queue.lock();
                queue.ended = true;
                queue.jobs.clear();
            }
            if let Err(error) = ran.and_then(|ran| ran) {
                // A full disk and a torn one look alike to whoever was promised durability: nothing more is.
                theirs.done.lock().failed = Some(error);
                theirs.bell.notify_one();
            }
        })?;
        Ok(Self { jobs, shared, thread: Some(thread) })
    }

    /// Queues a job.
    pub(super) fn ask(&self, job: Job) {
        self.jobs.push(job);
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
        self.jobs.queue.lock().closed = true;
        self.jobs.work.notify_one();
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

fn run(mut log: Box<dyn LogStore>, jobs: &Jobs, shared: &Shared, patience: Duration) -> Result<()> {
    let (mut saved, mut dirty) = (0, false);
    let mut due = None;
    while let Some(mut now) = jobs.wait(due) {
        let (mut taken, mut bytes) = (0, 0);
        while let Some(job) = (taken < GROUP_MAX && bytes < GROUP_BYTES).then(|| jobs.pop()).flatten() {
            now |= !matches!(job, Job::AppendLater(_));
            match job {
                Job::Append(records) | Job::AppendLater(records) => {
                    log.append(&records).map_err(|error| failed("append to", error))?;
                    bytes += records.iter().map(Record::cost).sum::<u64>();
                    dirty = true;
                }
                Job::Truncate(last) => {
                    sync(&mut *log, &mut dirty, shared)?;
                    log.truncate_after(last).map_err(|error| failed("cut", error))?;
                    // Nobody has taken that word yet: it would be about what is gone.
                    let persisted = &mut shared.done.lock().persisted;
                    *persisted = persisted.map(|upto| upto.min(last));
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
        }
        if now || bytes >= GROUP_BYTES {
            sync(&mut *log, &mut dirty, shared)?;
        }
        due = if dirty { due.or_else(|| Some(Instant::now() + patience)) } else { None };
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
