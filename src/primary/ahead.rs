//! What a recovery appends before it concludes, so that the disk has work while payloads still come.
//!
//! It lies past the base of a reign that has no `EpochStart`: it is provisional, and cut by whoever starts on such a log. In
//! a reign that goes on it is compared with the conclusion, which alone says what the log is: from the first record on that
//! is another one, it is cut and written anew.

use super::{Phase, Primary};
use crate::log::{Lsn, Record, Records, Time};
use crate::node::Output;

/// What was appended past the base, and is not in the log's state yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Ahead {
    runs: Vec<Records>,
    /// What the disk said last.
    persisted: Lsn,
    /// After a cut: where it was, and which save was asked for after it. What the disk says before that save is done may
    /// be about what is gone.
    cut: Option<(Lsn, u64)>,
}

impl Primary {
    /// Appends what the recovery can tell already.
    pub(super) fn append_ahead(&mut self, out: &mut Vec<Output>) {
        let Phase::Recovering(recovery) = &self.phase else { return };
        let last = self.ahead.runs.last().and_then(|run| run.last()).map_or(self.base, Record::lsn);
        let records: Records = recovery.ahead(last).into();
        if !records.is_empty() {
            self.ahead.runs.push(records.clone());
            out.push(Output::Append(records));
        }
    }

    /// Takes the disk's word; returns how far it is about what is in the log's state.
    pub(super) fn note_persisted(&mut self, mut upto: Lsn) -> Lsn {
        if let Some((last, _)) = self.ahead.cut.filter(|(_, save)| self.saved < *save) {
            upto = upto.min(last);
        }
        self.ahead.persisted = self.ahead.persisted.max(upto);
        upto.min(self.water.head())
    }

    /// The conclusion is `records`: returns how many of them are in the log. What else was appended ahead is cut.
    pub(super) fn keep_ahead(&mut self, records: &[Record], out: &mut Vec<Output>) -> usize {
        let ahead = std::mem::take(&mut self.ahead.runs);
        let ahead = || ahead.iter().flat_map(|run| run.iter());
        let kept = ahead().zip(records).take_while(|(ahead, record)| is_same(ahead, record)).count();
        let last = Lsn(self.base.0 + kept as u64);
        if ahead().nth(kept).is_some() {
            out.push(Output::Truncate(last));
            let save = self.save_marks(out);
            self.ahead.cut = Some((last, save));
            self.ahead.persisted = self.ahead.persisted.min(last);
            if let Some(follower) = &mut self.follower {
                follower.distrust(last);
            }
        }
        kept
    }

    /// The conclusion is in the log's state, and with it what the disk has of it.
    pub(super) fn log_ahead(&mut self, now: Time, out: &mut Vec<Output>) {
        let upto = self.ahead.persisted;
        self.on_persisted(now, upto, out);
    }
}

/// Without looking at a payload that is shared.
fn is_same(ahead: &Record, record: &Record) -> bool {
    let (one, other) = (&ahead.entry.payload, &record.entry.payload);
    let shared = std::ptr::eq(one.as_ptr(), other.as_ptr()) && one.len() == other.len();
    ahead.reply == record.reply && ahead.entry.header == record.entry.header && (shared || one == other)
}
