//! Going on past a gap, by policy: what the state machine says it can do with, and no-ops in the place of the rest.

use bytes::Bytes;

use super::{GAP_ENTRIES_MAX, Next, Plan, Recovery, Walk, ranges};
use crate::error::{Code, Error};
use crate::log::{Body, Digest, Entry, Header, Lsn, Record, Request, Time};
use crate::session::LogState;
use crate::store::Missing;

/// A conclusion that waits for the state machine's word.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Skipping {
    /// What may be kept past the first gap.
    candidates: Vec<Record>,
    /// What is not, in order.
    missing: Vec<Missing>,
    last: Lsn,
    plan: Plan,
}

impl Skipping {
    fn ask(&self) -> Next {
        let candidates = self.candidates.iter().map(|record| &record.entry);
        let commands = candidates.filter(|entry| entry.header.body == Body::Command);
        Next::Judge { entries: commands.cloned().collect(), missing: self.missing.clone() }
    }

    /// Keeps those of which it holds; the others are missing from now on. Whether there are any.
    fn retain(&mut self, mut is_kept: impl FnMut(&Entry) -> bool) -> bool {
        let before = self.missing.len();
        let missing = &mut self.missing;
        self.candidates.retain(|Record { entry, .. }| {
            let kept = is_kept(entry);
            if !kept {
                missing.push(Missing { lsn: entry.header.lsn, header: Some(entry.header.clone()) });
            }
            kept
        });
        self.missing.sort_unstable_by_key(|missing| missing.lsn);
        self.missing.len() > before
    }
}

impl Recovery {
    /// Asks which of the entries after the first gap are to be kept.
    pub(super) fn skip(&mut self, mut walk: Walk, first_gap: Lsn, mut plan: Plan) -> Next {
        let lost: u64 = walk.gaps.iter().map(|gap| gap.end.0 - gap.start.0).sum();
        if lost > GAP_ENTRIES_MAX {
            let who = self.observers(plan.observed);
            let why =
                format!("{lost} entries are missing up to {}: exclude who claims to have seen that", plan.observed);
            self.conflict = Some((Error::new(Code::Conflict, why), who));
            return Next::Wait;
        }
        let at = walk.records.partition_point(|record| record.lsn() < first_gap);
        let candidates = walk.records.split_off(at);
        plan.records = walk.records;
        let missing = walk
            .gaps
            .iter()
            .flat_map(|gap| (gap.start.0..gap.end.0).map(Lsn))
            .map(|lsn| Missing { lsn, header: self.header(lsn).cloned() });
        let missing = missing.collect();
        let skipping = Skipping { candidates, missing, last: walk.last, plan };
        let next = skipping.ask();
        self.judging = Some(skipping);
        next
    }

    /// The state machine's word on the entries of the last [`Next::Judge`]. What is dropped is missing to what came after
    /// it: as long as something is, it is asked again.
    pub fn judged(&mut self, keep: &[bool], state: &LogState) -> Next {
        if self.dropped > 0 {
            self.dropped -= 1;
            return Next::Wait;
        }
        let Some(mut skipping) = self.judging.take() else {
            return Next::Wait;
        };
        let mut keep = keep.iter().copied();
        let mut dropped = skipping.retain(|entry| entry.header.body != Body::Command || keep.next().unwrap_or(false));
        let mut trial = state.outline();
        for record in &skipping.plan.records {
            if trial.apply_header(&record.entry.header, None).is_err() {
                return self.conclude(skipping.plan, state);
            }
        }
        // What no longer makes sense without what is missing (its session's `Open`, say) is lost with it.
        let mut next = Lsn(self.base.0 + skipping.plan.records.len() as u64 + 1);
        dropped |= skipping.retain(|entry| {
            while next < entry.header.lsn {
                trial.apply_header(&self.noop(next).entry.header, None).expect("a no-op of the reign always fits");
                next = next.next();
            }
            let fits = trial.apply_header(&entry.header, None).is_ok();
            if fits {
                next = next.next();
            }
            fits
        });
        if dropped && skipping.candidates.iter().any(|record| record.entry.header.body == Body::Command) {
            let next = skipping.ask();
            self.judging = Some(skipping);
            return next;
        }
        let Skipping { candidates, missing, last, mut plan } = skipping;
        // A gap at the end is simply where the log ends.
        let end = candidates.last().map_or(Lsn(self.base.0 + plan.records.len() as u64), |record| record.lsn());
        let mut candidates = candidates.into_iter().peekable();
        for n in plan.records.len() as u64 + self.base.0 + 1..=end.min(last).0 {
            let lsn = Lsn(n);
            let kept = candidates.next_if(|record| record.lsn() == lsn);
            plan.records.push(kept.unwrap_or_else(|| self.noop(lsn)));
        }
        plan.gaps = ranges(missing.into_iter().map(|missing| missing.lsn).filter(|lsn| *lsn <= end));
        self.conclude(plan, state)
    }

    fn noop(&self, lsn: Lsn) -> Record {
        let header = Header {
            epoch: self.of,
            lsn,
            body: Body::Noop,
            origin: None,
            time: Time(0),
            answered: Request(0),
            length: 0,
            digest: Digest::default(),
        };
        Record { entry: Entry { header, payload: Bytes::new() }, reply: Digest::default() }
    }
}
