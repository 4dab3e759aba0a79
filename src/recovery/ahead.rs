//! What can be told of the log before the recovery concludes.

use super::{PULL_ENTRIES, Recovery};
use crate::log::{Body, ClientId, Digest, Lsn, Origin, Record};
use crate::node::RecoveryPolicy;

impl Recovery {
    /// The records after `after` that a conclusion will have, as far as it can be told now: everybody has reported, and
    /// nothing is in question. Only a conclusion is certain: somebody may yet go, or be excluded.
    pub fn ahead(&self, after: Lsn) -> Vec<Record> {
        let heard = |client| self.reporters.get(client).is_some_and(|reporter| reporter.complete);
        let settled = self.excluded.is_empty() && self.resolved.is_none() && self.judging.is_none();
        if !settled || !self.roster.keys().all(heard) || self.contradiction(false).is_some() {
            return Vec::new();
        }
        let mut next = after.next();
        let mut records = Vec::new();
        for (lsn, header) in self.headers(after) {
            let header = header.filter(|_| lsn == next);
            let Some(entry) = header.and_then(|header| self.supply_entry(lsn, header)) else { break };
            // What a command is answered belongs to its record, and only its client may know it already.
            let unanswered = entry.header.body != Body::Command;
            let reply = if unanswered { Some(Digest::default()) } else { self.reply(&entry.header) };
            let Some(reply) = reply else { break };
            records.push(Record { entry, reply });
            next = lsn.next();
        }
        records
    }

    /// Who owes what comes next in the log, and up to where others' payloads are pulled now, so that what is appended ahead
    /// keeps up with them. No limit where nobody owes that, nor where time decides: whoever is slow would then cost what
    /// others could have given.
    pub(super) fn pull_limit(&self) -> Option<(ClientId, Lsn)> {
        let next = self.supplied.first_gap(self.base);
        let Origin { client, request } = self.header(next)?.origin?;
        let reporter = self.reporters.get(&client)?;
        let owed = reporter.asked.contains(&request) || reporter.wanted.contains(&request);
        let patient = matches!(self.policy, RecoveryPolicy::Wait) && self.resolved.is_none();
        (owed && patient).then(|| (client, Lsn(next.0.saturating_add(PULL_ENTRIES))))
    }
}
