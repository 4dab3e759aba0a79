//! What the storage thread says is done is done, and in the order it was asked for. The log of these tests stops the thread
//! at every call, so that what is said meanwhile, and what has gathered by then, is no matter of luck.

#![allow(clippy::unwrap_used)]

use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::*;
use crate::store::memory::MemoryLog;

/// A test that waits longer than this fails.
const SOON: Duration = Duration::from_secs(20);

/// What the log is asked to do.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// The LSN of the last record.
    Append(u64),
    Sync,
    /// The checkpoint in them, by which these tests tell marks apart.
    SaveMarks(u64),
}

/// A log that says what it is asked to do, and does it once it may.
struct Gated {
    disk: MemoryLog,
    calls: Sender<Call>,
    gate: Receiver<()>,
}

impl Gated {
    fn pass(&self, call: Call) {
        // A test that is over opens the gate for good, and listens no more.
        let _ = self.calls.send(call);
        let _ = self.gate.recv();
    }
}

impl LogStore for Gated {
    fn marks(&mut self) -> io::Result<Option<Marks>> {
        self.disk.marks()
    }
    fn save_marks(&mut self, marks: &Marks) -> io::Result<()> {
        self.pass(Call::SaveMarks(marks.stable.0));
        self.disk.save_marks(marks)
    }
    fn bounds(&self) -> Range<Lsn> {
        self.disk.bounds()
    }
    fn read(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Vec<Record>> {
        self.disk.read(from, bytes_max)
    }
    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        self.pass(Call::Append(records.last().map_or(0, |record| record.lsn().0)));
        self.disk.append(records)
    }
    fn sync(&mut self) -> io::Result<Lsn> {
        self.pass(Call::Sync);
        self.disk.sync()
    }
    fn truncate_after(&mut self, last: Lsn) -> io::Result<()> {
        self.disk.truncate_after(last)
    }
}

/// The storage thread, and both sides of its log. The gate is dropped first: the storage waits for its thread.
struct Desk {
    gate: Sender<()>,
    calls: Receiver<Call>,
    disk: MemoryLog,
    storage: Storage,
}

impl Desk {
    fn new() -> Self {
        Self::with_patience(PATIENCE)
    }

    fn with_patience(patience: Duration) -> Self {
        let ((gate, opens), (tells, calls)) = (channel(), channel());
        let disk = MemoryLog::new();
        let log = Gated { disk: disk.clone(), calls: tells, gate: opens };
        Self { gate, calls, disk, storage: Storage::with_patience(Box::new(log), patience).unwrap() }
    }

    fn append(&self, lsn: u64) {
        self.storage.ask(Job::Append(Self::records(lsn)));
    }

    /// Of which nobody waits to hear.
    fn append_later(&self, lsn: u64) {
        self.storage.ask(Job::AppendLater(Self::records(lsn)));
    }

    fn records(lsn: u64) -> Records {
        vec![Record::noop(Lsn(lsn))].into()
    }

    fn save_marks(&self, stable: u64) {
        self.storage.ask(Job::SaveMarks(Marks { stable: Lsn(stable), ..Marks::default() }));
    }

    /// The call at which the thread is held; none if it has let go of the log.
    fn held_at(&self) -> Option<Call> {
        match self.calls.recv_timeout(SOON) {
            Err(RecvTimeoutError::Timeout) => panic!("the log is asked for nothing"),
            call => call.ok(),
        }
    }

    /// Lets the thread go on.
    fn go(&self) {
        self.gate.send(()).unwrap();
    }

    /// Lets the thread go on to its next call.
    fn then(&self) -> Option<Call> {
        self.go();
        self.held_at()
    }

    /// What was done up to the call at which the thread is held: persisted, and saved.
    fn done(&self) -> (Option<u64>, Option<u64>) {
        let done = self.storage.take();
        (done.persisted.map(|lsn| lsn.0), done.saved)
    }

    /// The first thing of its kind that the thread rings for.
    async fn told<T>(&self, found: impl Fn(Done) -> Option<T>) -> T {
        let told = async {
            loop {
                self.storage.rings().await;
                if let Some(found) = found(self.storage.take()) {
                    return found;
                }
            }
        };
        tokio::time::timeout(SOON, told).await.expect("the bell rings")
    }
}

#[tokio::test]
async fn nothing_is_durable_while_it_is_being_synced() {
    let desk = Desk::new();
    desk.append(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    assert_eq!(desk.then(), Some(Call::Sync));
    assert_eq!(desk.done(), (None, None));
    desk.append(2);
    assert_eq!(desk.then(), Some(Call::Append(2)));
    assert_eq!(desk.done(), (Some(1), None));
    assert_eq!(desk.then(), Some(Call::Sync));
    assert_eq!(desk.done(), (None, None), "2 is only being synced");
    desk.go();
    assert_eq!(desk.told(|done| done.persisted).await, Lsn(2));
}

#[tokio::test]
async fn what_gathers_during_a_sync_takes_one_sync() {
    let desk = Desk::new();
    desk.append(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    assert_eq!(desk.then(), Some(Call::Sync));
    for lsn in 2..=9 {
        desk.append(lsn);
    }
    for lsn in 2..=9 {
        assert_eq!(desk.then(), Some(Call::Append(lsn)));
    }
    assert_eq!(desk.then(), Some(Call::Sync));
    assert_eq!(desk.done(), (Some(1), None));
    desk.go();
    assert_eq!(desk.told(|done| done.persisted).await, Lsn(9));
}

/// A mark may speak of what was appended before it, so that has to be on the disk first, even where both wait in the same
/// group.
#[tokio::test]
async fn marks_are_saved_when_what_was_appended_before_them_is_durable() {
    let desk = Desk::new();
    desk.append(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    desk.save_marks(1);
    desk.append(2);
    desk.append(3);
    desk.save_marks(3);
    assert_eq!(desk.then(), Some(Call::Sync));
    assert_eq!(desk.then(), Some(Call::SaveMarks(1)));
    assert_eq!(desk.done(), (Some(1), None), "the marks are only being saved");
    assert_eq!(desk.then(), Some(Call::Append(2)));
    assert_eq!(desk.done(), (None, Some(1)));
    assert_eq!(desk.then(), Some(Call::Append(3)));
    assert_eq!(desk.then(), Some(Call::Sync));
    assert_eq!(desk.done(), (None, None));
    assert_eq!(desk.then(), Some(Call::SaveMarks(3)));
    assert_eq!(desk.done(), (Some(3), None));
    desk.go();
    assert_eq!(desk.told(|done| done.saved).await, 2);
}

/// Word on what is gone would be taken for what is appended in its place.
#[tokio::test]
async fn nobody_hears_later_of_what_was_cut() {
    let desk = Desk::new();
    desk.append(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    desk.append(2);
    assert_eq!(desk.then(), Some(Call::Append(2)));
    assert_eq!(desk.then(), Some(Call::Sync));
    desk.storage.ask(Job::Truncate(Lsn(1)));
    desk.save_marks(1);
    assert_eq!(desk.then(), Some(Call::SaveMarks(1)));
    assert_eq!(desk.done(), (Some(1), None));
    desk.go();
    assert_eq!(desk.told(|done| done.saved).await, 1);
}

#[tokio::test]
async fn nothing_is_done_behind_a_sync_that_failed() {
    let mut desk = Desk::new();
    desk.append(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    desk.save_marks(1);
    desk.append(2);
    assert_eq!(desk.then(), Some(Call::Sync));
    desk.disk.set_sync_fails(true);
    assert_eq!(desk.then(), None, "the log is used no further");
    let done = desk.told(|done| done.failed.is_some().then_some(done)).await;
    assert_eq!(done.failed.map(|error| error.code()), Some(Code::Storage));
    assert_eq!((done.persisted, done.saved), (None, None));
    desk.disk.crash(0);
    assert_eq!(desk.disk.marks().unwrap(), None, "they would speak of a record that is gone");
}

#[tokio::test]
async fn an_orderly_end_carries_out_what_is_queued() {
    let mut desk = Desk::new();
    desk.append(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    desk.append(2);
    desk.save_marks(2);
    desk.append(3);
    drop(desk.gate);
    desk.storage.finish();
    assert_eq!((desk.disk.bounds().end, desk.disk.unsynced()), (Lsn(4), 0));
    assert_eq!(desk.disk.marks().unwrap().unwrap().stable, Lsn(2));
    let done = desk.storage.take();
    assert_eq!((done.persisted, done.saved), (Some(Lsn(3)), Some(1)));
}

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_nobody_waits_for_is_synced_with_what_somebody_does() {
    let desk = Desk::with_patience(NEVER);
    desk.append_later(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    desk.append_later(2);
    assert_eq!(desk.then(), Some(Call::Append(2)));
    desk.go();
    // The thread sleeps now, or is about to: neither is woken by the third, and all are by the fourth.
    desk.append_later(3);
    desk.append(4);
    assert_eq!(desk.held_at(), Some(Call::Append(3)));
    assert_eq!(desk.done(), (None, None));
    assert_eq!(desk.then(), Some(Call::Append(4)));
    assert_eq!(desk.then(), Some(Call::Sync));
    desk.go();
    assert_eq!(desk.told(|done| done.persisted).await, Lsn(4));
}

#[tokio::test]
async fn what_nobody_waits_for_is_synced_in_the_end() {
    let desk = Desk::with_patience(Duration::from_millis(1));
    desk.append_later(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    assert_eq!(desk.then(), Some(Call::Sync));
    desk.go();
    assert_eq!(desk.told(|done| done.persisted).await, Lsn(1));

    let mut desk = Desk::with_patience(NEVER);
    desk.append_later(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    desk.append_later(2);
    drop(desk.gate);
    desk.storage.finish();
    assert_eq!((desk.disk.bounds().end, desk.disk.unsynced()), (Lsn(3), 0));
}

/// Or the queue would keep what the disk could have by now.
#[tokio::test]
async fn many_are_not_left_in_the_queue() {
    let desk = Desk::with_patience(NEVER);
    desk.append_later(1);
    assert_eq!(desk.held_at(), Some(Call::Append(1)));
    let many = 2 * GROUP_MAX as u64 + 1;
    for lsn in 2..=many {
        desk.append_later(lsn);
    }
    let mut last = 1;
    while let Some(Call::Append(lsn)) = desk.then() {
        assert_eq!(lsn, last + 1);
        last = lsn;
    }
    assert!(last > GROUP_MAX as u64, "a sync after {last}");
}
