//! Holders, witnesses and authors that stand and do not answer: what waits for them alone is given to others.
//!
//! `covered` goes in order, so one client that sleeps would hold up everybody until its stream is found broken. Whoever
//! is overdue is passed over from then on, until it confirms something again. What it was given stays with it, and counts
//! as its load; nothing depends on it any more.

use super::{Cover, Covering, Row, Stripe};
use crate::log::{ClientId, Lsn, Time};

/// Entries are looked at so far past what is covered, at most: the rest comes when that moves.
const AHEAD_MAX: u64 = 1024;

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
        while let Some(entry) = self.next_uncovered() {
            let lsn = entry.header.lsn;
            if now < entry.added.after(patience) {
                break;
            }
            let waits = |id: &u64| self.stripes.get(id).is_some_and(|stripe| stripe.waits_for_authors(now, patience));
            let late = entry.owner.filter(|_| !entry.tagged && entry.stripes.iter().any(waits));
            let stripes: Vec<u64> = entry.stripes.iter().chain(&entry.copies).copied().collect();
            self.patience.upto = lsn;
            stripes.into_iter().for_each(|id| self.hurry_stripe(now, id));
            if let Some(author) = late {
                self.pass_over(author);
                self.to_copy.push(lsn);
            }
        }
    }

    /// When something is overdue, or looked at again.
    pub(super) fn next_overdue(&self) -> Option<Time> {
        let patience = self.settings.patience_us;
        let next = self.next_uncovered().map(|entry| entry.added.after(patience));
        let begun = self.patience.upto > self.covered;
        let again = begun.then(|| self.patience.since.after(patience));
        next.into_iter().chain(again).min().filter(|_| self.settings.f > 0)
    }

    /// The next entry of this pass.
    fn next_uncovered(&self) -> Option<&Covering> {
        let seen = self.patience.upto.max(self.covered);
        self.entry(seen.next()).filter(|_| seen.0 - self.covered.0 < AHEAD_MAX)
    }

    fn pass_over(&mut self, client: ClientId) {
        if let Some(session) = self.sessions.get_mut(&client) {
            session.late = true;
        }
    }

    /// Gives the rows that nobody confirmed to others.
    fn hurry_stripe(&mut self, now: Time, id: u64) {
        let Some(stripe) = self.stripes.get(&id) else { return };
        let patience = self.settings.patience_us;
        let is_late = |row: &Row| !row.confirmed && now >= row.given.after(patience);
        let late = stripe.rows.iter().enumerate().filter(|(_, row)| is_late(row));
        let late: Vec<(usize, ClientId)> =
            late.filter_map(|(at, row)| row.holder.map(|(client, _)| (at, client))).collect();
        for (at, client) in late {
            self.pass_over(client);
            let Some(row) = self.stripes.get_mut(&id).map(|stripe| &mut stripe.rows[at]) else { return };
            let holder = row.holder.take();
            let other = self.find_holder(id, at, false);
            let Some(stripe) = self.stripes.get_mut(&id) else { return };
            stripe.rows[at].holder = holder;
            match other {
                Some(other) => {
                    self.void(id, at);
                    self.give(id, at, other);
                }
                None if stripe.is_witness(at) => self.ask_authors(id),
                // It is as good as any.
                None => {}
            }
        }
    }
}

impl Stripe {
    /// Whether the authors of its members were asked long ago to stand for their places, and nobody else does.
    fn waits_for_authors(&self, now: Time, patience: u64) -> bool {
        !self.is_witnessed() && self.asked.is_some_and(|asked| now >= asked.after(patience))
    }
}
