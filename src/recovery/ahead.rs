//! What can be told of the log before the recovery concludes.

use super::Recovery;
use crate::log::{Body, Digest, Lsn, Record};

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
}
