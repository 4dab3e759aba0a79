//! What a node does with its log before it is anything else: sets aside what is provisional, and rebuilds both halves of
//! the state, the application's and the log's own.
//!
//! ```text
//!  reader thread   read, check, decode ─► [part]..[part] ─┐  apply, note the replies   sequencer thread
//!                  drop              ◄─ [spent]..[spent] ◄┘
//! ```
//!
//! Two threads, because reading and applying each take about as long; with few parts between them, so that a log of any
//! length takes little memory. What was applied goes back to be dropped where it was made: an allocator that gives memory
//! back to another thread's heap takes as long for it as decoding does.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::error::{Code, Error, Result};
use crate::log::{Body, Entry, Epoch, Lsn, Record};
use crate::net::guarded;
use crate::recovery::provisional_cut;
use crate::session::LogState;
use crate::store::{LogStore, Marks, StateMachine};

/// Bytes of log that are read, and applied, at once.
pub(super) const PART_BYTES: usize = 512 << 10;
/// Parts between the two threads, in either direction.
const PARTS: usize = 4;

/// Cuts what is provisional and rebuilds both halves of the state from the log.
pub(super) fn replay(log: &mut dyn LogStore, state: &mut dyn StateMachine, marks: &Marks) -> Result<LogState> {
    if state.durable() > Lsn(0) {
        let why = format!(
            "the state machine says it is durable up to {}; this version rebuilds the state from the log and needs one \
             that starts empty",
            state.durable()
        );
        return Err(Error::new(Code::InvalidArgument, why));
    }
    // What a crash left written but not synced may be read now and be gone later.
    log.sync()?;
    if let Some(base) = cut_point(log, marks)? {
        tracing::warn!(%base, "what lies past the base of a reign that never opened is set aside");
        log.truncate_after(base)?;
    }
    let bounds = log.bounds();
    if bounds.start > Lsn(1) {
        let why = format!("the log begins at {}; this version needs all of it, from 1 on", bounds.start);
        return Err(Error::new(Code::Corrupt, why));
    }
    let mut log_state = LogState::new();
    std::thread::scope(|scope| {
        let (parts, queue) = sync_channel(PARTS);
        let (done, spent) = sync_channel(PARTS);
        let reader = std::thread::Builder::new().name("tagalong-reader".to_owned());
        let reader = reader.spawn_scoped(scope, move || {
            guarded("the log", || read(log, bounds.end, &parts, &spent)).and_then(|read| read)
        })?;
        for part in queue {
            apply(state, &mut log_state, &part)?;
            // It is dropped here where there is no room for it there.
            let _ = done.try_send(part);
        }
        reader.join().unwrap_or_else(|_| Err(Error::new(Code::Storage, "the thread that reads the log is gone")))
    })?;
    Ok(log_state)
}

/// Reads the log up to `end` and hands it over in parts; drops what comes back.
fn read(
    log: &mut dyn LogStore,
    end: Lsn,
    parts: &SyncSender<Vec<Record>>,
    spent: &Receiver<Vec<Record>>,
) -> Result<()> {
    let mut next = Lsn(1);
    while next < end {
        let records = log.read(next, PART_BYTES)?;
        let Some(last) = records.last() else {
            let why = format!("the log ends at {}, before its own bounds say so", next.prev());
            return Err(Error::new(Code::Corrupt, why));
        };
        next = last.lsn().next();
        drop(spent.try_iter().collect::<Vec<_>>());
        if parts.send(records).is_err() {
            // Whoever applies them has found something wrong, and says so.
            return Ok(());
        }
    }
    Ok(())
}

/// Applies a part of the log to both halves of the state.
fn apply(state: &mut dyn StateMachine, log_state: &mut LogState, records: &[Record]) -> Result<()> {
    let is_command = |record: &Record| matches!(record.entry.header.body, Body::Command);
    let commands: Vec<&Entry> =
        records.iter().filter(|record| is_command(record)).map(|record| &record.entry).collect();
    let mut replies = Vec::with_capacity(commands.len());
    state.apply(&commands, &mut replies)?;
    let mut replies = replies.into_iter();
    for record in records {
        let reply = is_command(record).then(|| replies.next().unwrap_or_default());
        log_state.apply(record, reply)?;
    }
    Ok(())
}

/// Where the log is to be cut before the node starts on it, if anywhere.
fn cut_point(log: &mut dyn LogStore, marks: &Marks) -> Result<Option<Lsn>> {
    let mut headers = Vec::new();
    let mut from = marks.base.next().max(log.bounds().start);
    while marks.reign != Epoch::ZERO && from < log.bounds().end {
        let records: Vec<Record> = log.read(from, PART_BYTES)?;
        let Some(last) = records.last() else { break };
        from = last.lsn().next();
        let begins = |record: &Record| {
            record.entry.header.epoch == marks.reign && matches!(record.entry.header.body, Body::EpochStart(_))
        };
        let found = records.iter().any(begins);
        headers.extend(records.into_iter().map(|record| record.entry.header));
        if found {
            break;
        }
    }
    Ok(provisional_cut(marks, headers.iter()))
}
