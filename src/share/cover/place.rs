//! Who is given what: the holders of rows, and the witnesses of places.
//!
//! Placing waits for the end of a batch. Then it is known to whom frames go anyway, and what many stripes give away goes to
//! few clients, as far as domains allow: a share that rides on another frame, and a confirm that rides on the next write,
//! cost next to nothing, and a frame of their own costs both sides a wake-up.

use std::ops::Bound;

use super::{Cover, Domain, Row, Session, Stripe};
use crate::log::{ClientId, Lsn};
use crate::rule::{self, Rule};

/// Bytes that one client is given in a batch because it is given something anyway; then it is others' turn.
const NEAR_BYTES_MAX: u64 = 64 << 10;

/// Who is tried first in the batch that is being placed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Near {
    /// They were given something, of so many bytes.
    given: Vec<(ClientId, u64)>,
    /// Frames go out to them anyway.
    told: Vec<ClientId>,
}

impl Stripe {
    /// Whether what stands at place `at` is no equation, but its witness.
    pub(super) fn is_witness(&self, at: usize) -> bool {
        at >= self.parity
    }

    /// Whether somebody besides the holders of its rows, in another domain, knows where its members are.
    pub(super) fn is_witnessed(&self) -> bool {
        let confirmed = |row: &Row| row.holder.is_some() && row.confirmed;
        self.rows.get(self.parity).is_some_and(confirmed)
    }
}

impl Cover {
    /// Places what has no holder yet.
    pub(super) fn place_all(&mut self, near: Vec<ClientId>) {
        self.near.told = near;
        let after = self.near.told.partition_point(|client| *client <= self.cursor);
        self.near.told.rotate_left(after);
        loop {
            self.copy_noted();
            if self.to_place.is_empty() {
                break;
            }
            for (id, at) in std::mem::take(&mut self.to_place) {
                self.place(id, at);
            }
        }
        self.near = Near::default();
    }

    /// The domains in which the row at place `at` must not be: for one that is no witness, with the witness's or without.
    fn taken<'a>(&'a self, stripe: &'a Stripe, at: usize, with_witness: bool) -> Vec<&'a Domain> {
        if !rule::on(Rule::DistinctDomains) {
            return Vec::new();
        }
        let rows = if with_witness { &stripe.rows[..] } else { &stripe.rows[..stripe.parity] };
        let holders = rows.iter().filter_map(|row| self.sessions.get(&row.holder?.0)).map(|session| &session.domain);
        // A witness may own a member: where an owner is lost, not all holders are.
        let owners = stripe.owners.iter().filter(|_| !stripe.is_witness(at));
        owners.chain(holders).collect()
    }

    /// A session that can hold the row, the next in turn where none is near; one that is late only if that is asked for.
    pub(super) fn find_holder(&self, id: u64, at: usize, late: bool) -> Option<ClientId> {
        let stripe = self.stripes.get(&id)?;
        let find = |with_witness| self.find_outside(stripe.rows[at].cost, &self.taken(stripe, at, with_witness), late);
        find(true).or_else(|| find(false))
    }

    fn find_outside(&self, cost: u64, taken: &[&Domain], late: bool) -> Option<ClientId> {
        let fits = |session: &Session| {
            let free = session.counts && !session.leaving && session.used + cost <= session.room;
            free && session.late == late && !taken.contains(&&session.domain)
        };
        let given = self.near.given.iter().filter(|(_, bytes)| bytes + cost <= NEAR_BYTES_MAX);
        let near = given.map(|(client, _)| client).chain(&self.near.told);
        let near = near.filter_map(|client| self.sessions.get_key_value(client));
        let after = self.sessions.range((Bound::Excluded(self.cursor), Bound::Unbounded));
        let mut around = near.chain(after).chain(self.sessions.range(..=self.cursor));
        around.find(|(_, session)| fits(session)).map(|(client, _)| *client)
    }

    /// Finds a holder for a row, or notes that there is none.
    fn place(&mut self, id: u64, at: usize) {
        let Some(stripe) = self.stripes.get(&id).filter(|stripe| stripe.rows[at].holder.is_none()) else { return };
        if stripe.is_witness(at) {
            if stripe.members.iter().all(|lsn| self.entry(*lsn).is_none_or(|entry| entry.tagged)) {
                return;
            }
            match self.find_holder(id, at, false) {
                Some(client) => self.give(id, at, client),
                None => self.ask_authors(id),
            }
            return;
        }
        if let Some(client) = self.find_holder(id, at, false).or_else(|| self.find_holder(id, at, true)) {
            self.give(id, at, client);
            return;
        }
        let taken = self.taken(stripe, at, false);
        // Where others are there, but all of them are owners or have a row already, no wait for the next one to come
        // is needed: each member is copied.
        let crowded = !stripe.owners.is_empty() && self.domains.keys().all(|domain| taken.contains(&domain));
        if crowded && self.domains.len() > usize::from(self.settings.f) {
            self.to_copy.extend(&stripe.members);
            self.unplaced.remove(&(id, at));
        } else {
            self.unplaced.insert((id, at));
        }
    }

    /// Nobody can stand for the places of these members but their authors: they are asked to confirm their tags.
    pub(super) fn ask_authors(&mut self, id: u64) {
        let now = self.now;
        let Some(stripe) = self.stripes.get_mut(&id) else { return };
        stripe.asked.get_or_insert(now);
        let members = stripe.members.clone();
        self.unwitnessed.extend(members.into_iter().filter(|lsn| *lsn > self.stable));
    }

    /// The entries whose authors are to confirm their tags, because nobody else can stand for their places.
    pub fn take_unwitnessed(&mut self) -> Vec<Lsn> {
        std::mem::take(&mut self.unwitnessed)
    }

    /// Pushes a row to a holder. A witness in that domain makes way.
    pub(super) fn give(&mut self, id: u64, at: usize, client: ClientId) {
        let Some(stripe) = self.stripes.get(&id) else { return };
        let domain = |client: ClientId| self.sessions.get(&client).map(|session| &session.domain);
        let witness = stripe.rows.get(stripe.parity).filter(|_| !stripe.is_witness(at)).and_then(|row| row.holder);
        if witness.is_some_and(|(witness, _)| domain(witness) == domain(client)) && rule::on(Rule::DistinctDomains) {
            let witness = stripe.parity;
            self.void(id, witness);
            self.to_place.push((id, witness));
        }
        let Some(stripe) = self.stripes.get_mut(&id) else { return };
        self.next_share += 1;
        let (share, until) = (self.next_share, stripe.until);
        let row = &mut stripe.rows[at];
        (row.holder, row.given) = (Some((client, share)), self.now);
        let (body, cost) = (row.body.clone(), row.cost);
        self.cursor = client;
        self.unplaced.remove(&(id, at));
        self.shares.insert(share, (id, at));
        if let Some(session) = self.sessions.get_mut(&client) {
            session.used += cost;
            session.shares.insert(share);
        }
        match self.near.given.iter_mut().find(|(other, _)| *other == client) {
            Some((_, bytes)) => *bytes += cost,
            None => self.near.given.push((client, cost)),
        }
        self.need(client, until);
        self.push(client, share, until, body);
    }

    /// Counts on a row's holder no more. What it was given stays with it, and takes its room.
    pub(super) fn void(&mut self, id: u64, at: usize) {
        let Some(stripe) = self.stripes.get_mut(&id) else { return };
        let (until, row) = (stripe.until, &mut stripe.rows[at]);
        let Some((client, share)) = row.holder.take() else { return };
        (row.confirmed, row.given) = (false, self.now);
        let cost = row.cost;
        self.shares.remove(&share);
        if let Some(session) = self.sessions.get_mut(&client)
            && session.shares.remove(&share)
        {
            session.used -= cost;
            self.occupy(client, share, cost, until);
        }
    }
}
