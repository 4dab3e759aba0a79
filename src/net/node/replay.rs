//! What a node does with its log before it is anything else: sets aside what is provisional, and rebuilds both halves of
//! the state, the application's and the log's own.
//!
//! ```text
//!  reader            read, check ─► [encoded]..[encoded] ─┐
//!  decoder           decode ◄─────────────────────────────┘
//!                    decode ─► [part]..[part] ─┐
//!  sequencer thread  apply, note replies ◄─────┘
//!                    applied ─► [spent]..[spent] ─► the decoder drops them
//! ```
//!
//! Three threads, because each of the three takes about as long; with few parts between them, so that a log of any
//! length takes little memory. What was applied goes back to be dropped where it was decoded: an allocator that gives memory
//! back to another thread's heap takes as long for it as decoding does.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::error::{Code, Error, Result};
use crate::log::{Body, Entry, Epoch, Lsn, Record};
use crate::net::guarded;
use crate::recovery::provisional_cut;
use crate::session::LogState;
use crate::store::{Encoded, LogStore, Marks, StateMachine};

/// Bytes of log that are read, and applied, at once.
pub(super) const PART_BYTES: usize = 512 << 10;
/// Parts between two threads, in either direction.
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
    let broken = std::thread::scope(|scope| {
        let (encoded, read_queue) = sync_channel(PARTS);
        let (decoded, queue) = sync_channel(PARTS);
        let (done, spent) = sync_channel(PARTS);
        let start = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let reader = start("tagalong-reader")
            .spawn_scoped(scope, || guarded("the log", || read(log, bounds.end, encoded)).and_then(|read| read))?;
        let decoder = start("tagalong-decoder")
            .spawn_scoped(scope, move || guarded("what decodes the log", || decode(read_queue, &decoded, &spent)))?;
        for part in queue {
            apply(state, &mut log_state, &part)?;
            // It is dropped here where there is no room for it there.
            let _ = done.try_send(part);
        }
        let gone = |_| Error::new(Code::Storage, "a thread that reads the log is gone");
        let (decoded, read) = (decoder.join().map_err(gone)?, reader.join().map_err(gone)?);
        // What could not be decoded lies before what could not be read.
        match decoded? {
            Some(broken) => Ok(Some(broken)),
            None => read.map(|()| None),
        }
    })?;
    match broken {
        None => Ok(log_state),
        Some((mut from, last, error)) => {
            // The store knows the place as well.
            while let Some(read) = log.read(from, PART_BYTES)?.last().map(Record::lsn)
                && (from..last).contains(&read)
            {
                from = read.next();
            }
            Err(error)
        }
    }
}

/// Reads the log up to `end` and hands it over in parts.
fn read(log: &mut dyn LogStore, end: Lsn, parts: SyncSender<(Lsn, Encoded)>) -> Result<()> {
    let mut next = Lsn(1);
    while next < end {
        let part = log.read_encoded(next, PART_BYTES)?;
        let Some(last) = part.last() else {
            let why = format!("the log ends at {}, before its own bounds say so", next.prev());
            return Err(Error::new(Code::Corrupt, why));
        };
        let from = std::mem::replace(&mut next, last.next());
        if parts.send((from, part)).is_err() {
            // Whoever takes them has found something wrong, and says so.
            return Ok(());
        }
    }
    Ok(())
}

/// Decodes parts and hands them on; drops what comes back. Returns the first that is not what it should be, by its first and
/// last LSNs.
fn decode(
    parts: Receiver<(Lsn, Encoded)>,
    decoded: &SyncSender<Vec<Record>>,
    spent: &Receiver<Vec<Record>>,
) -> Option<(Lsn, Lsn, Error)> {
    for (from, part) in parts {
        let last = part.last().unwrap_or(from);
        let records = match part.decode() {
            Ok(records) => records,
            Err(error) => return Some((from, last, error)),
        };
        drop(spent.try_iter().collect::<Vec<_>>());
        if decoded.send(records).is_err() {
            break;
        }
    }
    None
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
