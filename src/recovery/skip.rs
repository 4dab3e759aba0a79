//! Going on past a gap, by policy: what the state machine says it can do with, and no-ops in the place of the rest.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;

use super::{GAP_ENTRIES_MAX, Next, Plan, Recovery, Walk, ranges};
use crate::error::{Code, Error};
use crate::log::{Body, Digest, Entry, Header, Lsn, Request, Time};
use crate::session::LogState;
use crate::store::Missing;

/// A conclusion that waits for the state machine's word.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Skipping {
    candidates: Vec<Entry>,
    gaps: Vec<Range<Lsn>>,
    last: Lsn,
    plan: Plan,
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
        let at = walk.entries.partition_point(|entry| entry.header.lsn < first_gap);
        let candidates = walk.entries.split_off(at);
        plan.entries = walk.entries;
        let missing = walk
            .gaps
            .iter()
            .flat_map(|gap| (gap.start.0..gap.end.0).map(Lsn))
            .map(|lsn| Missing { lsn, header: self.header(lsn).cloned() });
        let missing = missing.collect();
        let entries = candidates.iter().filter(|entry| entry.header.body == Body::Command).cloned().collect();
        self.judging = Some(Skipping { candidates, gaps: walk.gaps, last: walk.last, plan });
        Next::Judge { entries, missing }
    }

    /// The state machine's word on the entries of the last [`Next::Judge`].
    pub fn judged(&mut self, keep: &[bool], state: &LogState) -> Next {
        if self.dropped > 0 {
            self.dropped -= 1;
            return Next::Wait;
        }
        let Some(skipping) = self.judging.take() else {
            return Next::Wait;
        };
        let mut plan = skipping.plan;
        let mut keep = keep.iter().copied();
        let mut trial = state.outline();
        for entry in &plan.entries {
            if trial.apply_header(&entry.header, None).is_err() {
                return self.conclude(plan, state);
            }
        }
        let mut candidates = skipping.candidates.into_iter().peekable();
        let mut lost = skipping.gaps.iter().flat_map(|gap| gap.start.0..gap.end.0).map(Lsn).collect::<BTreeSet<_>>();
        let mut kept = plan.entries.len();
        for n in plan.entries.len() as u64 + self.base.0 + 1..=skipping.last.0 {
            let lsn = Lsn(n);
            let candidate = candidates.next_if(|entry| entry.header.lsn == lsn);
            let wanted = candidate.filter(|entry| entry.header.body != Body::Command || keep.next().unwrap_or(false));
            // What no longer makes sense without what is missing (its session's `Open`, say) is lost with it.
            let fitting = wanted.filter(|entry| trial.apply_header(&entry.header, None).is_ok());
            if let Some(entry) = fitting {
                plan.entries.push(entry);
                kept = plan.entries.len();
            } else {
                let noop = self.noop(lsn);
                trial.apply_header(&noop.header, None).expect("a no-op of the reign always fits");
                lost.insert(lsn);
                plan.entries.push(noop);
            }
        }
        // A gap at the end is simply where the log ends.
        plan.entries.truncate(kept);
        let end = Lsn(self.base.0 + kept as u64);
        plan.gaps = ranges(lost.into_iter().filter(|lsn| *lsn <= end));
        self.conclude(plan, state)
    }

    fn noop(&self, lsn: Lsn) -> Entry {
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
        Entry { header, payload: Bytes::new() }
    }
}
