//! Sessions come and go: who can hold, what is given to them, and what becomes of it when they leave.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{Cover, Covering, Domain, Row, Stripe};
use crate::log::{ClientId, HEADER_COST, Lsn, Request};
use crate::rule::{self, Rule};
use crate::share::{Mode, Share};

/// A session that may own entries and hold shares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) incarnation: u64,
    pub(super) domain: Domain,
    /// It is not in the primary's own domain.
    pub(super) counts: bool,
    /// It is about to leave: nothing more is given to it.
    pub(super) leaving: bool,
    /// Bytes of shares it takes, and has.
    pub(super) room: u64,
    pub(super) used: u64,
    /// The shares it was given.
    pub(super) shares: BTreeSet<u64>,
    /// It had to be waited for too long, and has not confirmed anything since.
    pub(super) late: bool,
    /// Commands up to here were ordered before it stood: an older life of its cache may have written them.
    pub(super) since: Lsn,
}

/// No session keeps more bytes of shares, whatever it says: sums stay sums.
const ROOM_MAX: u64 = 1 << 40;

impl Session {
    fn can_hold(&self) -> bool {
        self.counts && self.room > 0 && !self.leaving
    }
}
impl Cover {
    /// Makes room, or not, at `client` for a share that nobody counts on, of so many bytes, to be kept until `until`.
    pub fn lend(&mut self, client: ClientId, share: u64, cost: u64, until: Lsn) -> bool {
        let fits = |session: &Session| !session.leaving && session.used + cost <= session.room;
        let fits = self.sessions.get(&client).is_some_and(fits);
        if fits {
            self.occupy(client, share, cost, until);
        }
        fits
    }

    pub(super) fn occupy(&mut self, client: ClientId, share: u64, cost: u64, until: Lsn) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        session.used += cost;
        self.next_stripe += 1;
        let id = self.next_stripe;
        let row = Row { body: Bytes::new(), cost, holder: Some((client, share)), given: self.now, confirmed: true };
        // An empty stripe that only gives the room back in time.
        let rows = vec![row];
        session.shares.insert(share);
        self.shares.insert(share, (id, 0));
        self.ends.insert((until, id));
        let (members, owners) = (Vec::new(), Vec::new());
        self.stripes.insert(id, Stripe { members, owners, first: until, until, rows, parity: 1, asked: None });
    }

    /// A session that is about to stand says how many bytes of this reign's shares it holds. Those of an earlier life of this
    /// primary take their room until everything that they can combine is stable; what this life gave it is known.
    pub fn remember(&mut self, client: ClientId, held: u64) {
        if held > 0 && !self.sessions.contains_key(&client) {
            let head = Lsn(self.first.0 + self.entries.len() as u64).prev();
            if head > self.stable {
                self.kept.entry(client).or_insert((held.min(ROOM_MAX), head));
            }
        }
    }

    /// A cache of `client` is there. What an older incarnation of it confirmed is void: nobody knows what a crash took
    /// from it. To be told at once: the session may stand late, or never again.
    pub fn renew(&mut self, client: ClientId, incarnation: u64) {
        let known = self.sessions.get(&client).map(|session| session.incarnation);
        if known.is_some_and(|known| known != incarnation) && rule::on(Rule::ConfirmByIncarnation) {
            self.leave(client);
        }
    }

    /// A session stands, on the roster by a stable entry, with room for so many bytes of shares, when the last LSN that was
    /// given out is `ordered`. Its requests before `from` are answered, and what is answered is in its cache with its tag: no
    /// other confirm may ever come.
    pub fn join(
        &mut self,
        (client, incarnation): (ClientId, u64),
        domain: &str,
        room: u64,
        from: Request,
        ordered: Lsn,
    ) {
        self.renew(client, incarnation);
        self.retry = true;
        self.enter(client, incarnation, domain, room, ordered);
        let answered = |entry: &&mut Covering| {
            let origin = entry.header.origin.filter(|_| entry.owner == Some(client));
            origin.is_some_and(|origin| origin.request < from)
        };
        for entry in self.entries.iter_mut().filter(answered) {
            (entry.tagged, entry.present) = (true, true);
        }
        self.advance();
    }

    fn enter(&mut self, client: ClientId, incarnation: u64, domain: &str, room: u64, since: Lsn) {
        if let Some(session) = self.sessions.get_mut(&client) {
            let held = session.can_hold();
            (session.leaving, session.late) = (false, false);
            let holds = session.can_hold() && !held;
            let domain = session.domain.clone();
            // What was on its way on an older stream is sent again on this one, and in the order of its numbers.
            self.pushes.retain(|(holder, _)| *holder != client);
            let shares: Vec<u64> = session.shares.iter().copied().collect();
            shares.into_iter().for_each(|share| self.push_again(share));
            self.count_domain(domain, i64::from(holds));
            return;
        }
        let counts = domain != &*self.own_domain;
        let domain = Domain::of(client, domain);
        let session = Session {
            incarnation,
            domain,
            counts,
            leaving: false,
            room: if counts { room.min(ROOM_MAX) } else { 0 },
            used: 0,
            shares: BTreeSet::new(),
            late: false,
            since,
        };
        self.count_domain(session.domain.clone(), i64::from(session.can_hold()));
        self.sessions.insert(client, session);
        if let Some((cost, until)) = self.kept.remove(&client) {
            let share = self.next_share();
            self.occupy(client, share, cost, until);
        }
    }

    fn count_domain(&mut self, domain: Domain, change: i64) {
        let count = self.domains.entry(domain).or_default();
        *count += change;
        self.domains.retain(|_, count| *count > 0);
    }

    fn push_again(&mut self, share: u64) {
        let Some((id, at)) = self.shares.get(&share).copied() else { return };
        let Some(stripe) = self.stripes.get(&id) else { return };
        let row = &stripe.rows[at];
        if let Some((holder, _)) = row.holder.filter(|_| !row.confirmed) {
            let (until, body) = (stripe.until, row.body.clone());
            self.push(holder, share, until, body);
        }
    }

    pub(super) fn push(&mut self, holder: ClientId, id: u64, hold_until: Lsn, body: Bytes) {
        self.counts.pushed += 1;
        self.counts.pushed_bytes += body.len() as u64;
        let share = Share { epoch: self.epoch, id, mode: Mode::Stripe, holder, hold_until, body };
        self.pushes.push((holder, share));
    }

    /// A session is about to end in good order: nothing more is given to it.
    pub fn retire(&mut self, client: ClientId) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        let (domain, held) = (session.domain.clone(), session.can_hold());
        session.leaving = true;
        self.count_domain(domain, -i64::from(held));
        // With one domain less to hold their rows they must not get wider; and who ends must not get into one with those
        // who come after.
        if rule::on(Rule::HoldersDrained) {
            self.seal_all();
        }
    }

    /// A session broke. What it held for others goes to others still, and what it wrote is kept by them from now on.
    pub fn leave(&mut self, client: ClientId) {
        let Some(session) = self.sessions.remove(&client) else { return };
        self.count_domain(session.domain.clone(), -i64::from(session.can_hold()));
        if !rule::on(Rule::Custody) {
            return;
        }
        self.pushes.retain(|(holder, _)| *holder != client);
        let (mut cost, mut until) = (0, Lsn(0));
        for share in session.shares {
            let Some((id, at)) = self.shares.remove(&share) else { continue };
            let Some(stripe) = self.stripes.get_mut(&id) else { continue };
            cost += stripe.rows[at].cost;
            until = until.max(stripe.until);
            stripe.rows[at].holder = None;
            stripe.rows[at].confirmed = false;
            if !stripe.members.is_empty() {
                self.to_place.push((id, at));
            }
        }
        if cost > 0 {
            self.kept.insert(client, (cost, until));
        }
        if rule::on(Rule::HoldersDrained) {
            self.seal_all();
        }
        let mut orphans = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.owner == Some(client)) {
            entry.present = false;
            orphans.push(entry.header.lsn);
        }
        let mut budget = self.settings.custody_bytes_max;
        for lsn in orphans {
            let Some(entry) = self.entry(lsn) else { continue };
            let cost = entry.payload.len() as u64 + HEADER_COST;
            let until = self.until(entry, lsn);
            let needed = until > self.stable && entry.copies.is_empty();
            // What is not covered, or is needed to decode what is not, can count by a copy alone, and others wait behind it.
            let awaited = self.settings.f > 0 && until > self.covered;
            if needed && (cost <= budget || awaited) {
                budget = budget.saturating_sub(cost);
                self.copy(lsn);
            }
        }
        self.stabilize(self.stable);
    }
}
