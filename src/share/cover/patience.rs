//! Holders and authors that stand and do not answer: what waits for them alone is given to others.
//!
//! `covered` goes in order, so one client that sleeps would hold up everybody until its stream is found broken. Whoever
//! is overdue is passed over from then on, until it confirms something again. What it was given stays with it, and counts
//! as its load; nothing depends on it any more.

use super::Cover;
use crate::log::{ClientId, Lsn, Time};

/// How far the entries that are not covered were looked through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Patience {
    /// Up to here, in this pass.
    upto: Lsn,
    /// When the pass began.
    since: Time,
}

impl Cover {
    /// Gives what waits too long for somebody to others, as far as there are any.
    pub(super) fn hurry(&mut self, now: Time) {
        let patience = self.settings.patience_us;
        if self.settings.f == 0 {
            return;
        }
        if now >= self.patience.since.after(patience) {
            self.patience = Patience { upto: self.covered, since: now };
        }
        self.patience.upto = self.patience.upto.max(self.covered);
        while let Some(entry) = self.entry(self.patience.upto.next()) {
            let lsn = entry.header.lsn;
            if now < entry.added.after(patience) {
                break;
            }
            let late = entry.owner.filter(|_| !entry.tagged);
            let stripes: Vec<u64> = entry.stripes.iter().chain(&entry.copies).copied().collect();
            self.patience.upto = lsn;
            stripes.into_iter().for_each(|id| self.hurry_stripe(id));
            if let Some(author) = late {
                self.pass_over(author);
                self.to_copy.push(lsn);
            }
        }
    }

    /// When something is overdue, or looked at again.
    pub(super) fn next_overdue(&self) -> Option<Time> {
        let patience = self.settings.patience_us;
        let seen = self.patience.upto.max(self.covered);
        let next = self.entry(seen.next()).map(|entry| entry.added.after(patience));
        let again = (seen > self.covered && self.entry(self.covered.next()).is_some())
            .then(|| self.patience.since.after(patience));
        next.into_iter().chain(again).min().filter(|_| self.settings.f > 0)
    }

    fn pass_over(&mut self, client: ClientId) {
        if let Some(session) = self.sessions.get_mut(&client) {
            session.late = true;
        }
    }

    /// Gives the rows that nobody confirmed to others.
    fn hurry_stripe(&mut self, id: u64) {
        let Some(stripe) = self.stripes.get(&id) else { return };
        let late = stripe.rows.iter().enumerate().filter(|(_, row)| !row.confirmed);
        let late: Vec<(usize, ClientId, u64)> =
            late.filter_map(|(at, row)| row.holder.map(|(client, share)| (at, client, share))).collect();
        for (at, client, share) in late {
            self.pass_over(client);
            let Some(stripe) = self.stripes.get_mut(&id) else { return };
            let (until, cost) = (stripe.until, stripe.rows[at].cost);
            let holder = stripe.rows[at].holder.take();
            let Some(other) = self.find_holder(id, at, false) else {
                // It is as good as any.
                if let Some(stripe) = self.stripes.get_mut(&id) {
                    stripe.rows[at].holder = holder;
                }
                continue;
            };
            self.shares.remove(&share);
            if let Some(session) = self.sessions.get_mut(&client)
                && session.shares.remove(&share)
            {
                session.used -= cost;
                self.occupy(client, share, cost, until);
            }
            self.give(id, at, other);
        }
    }
}
