//! Coverage: which entries would survive the loss of the primary's site together with any *f* failure domains of
//! clients, and what has to be pushed to whom until they all do.
//!
//! ```text
//!  entries of distinct owners ──► open stripe ──seal──► f rows ──push──► f other domains ──confirm──► safe
//!                                 (by size class)       a witness ─────► any other domain ──confirm──▲
//!                                                                 a holder leaves ▲──── its rows go elsewhere
//!                                                                 an owner leaves ▲──── f+1 plain copies
//! ```
//!
//! A **stripe** is safe iff its owners are in pairwise distinct failure domains, each of its rows is confirmed by a
//! holder, the holders' domains are pairwise distinct, none of them is an owner's, and each member is still held: by its
//! owner's standing session, or by copies. Somebody has to know the entries' places even when every holder dies: a
//! **witness**, which is told the stripe's members alone, in a domain that is no holder's (it may be an owner's: where an
//! owner is lost, not all holders are); or the owner, which confirmed the tag. An **entry** is safe iff all its stripes are,
//! with witness or tag, or iff its copies are. A **copy** is the
//! degenerate stripe: one member that no owner is counted for, and *f + 1* rows, each of which is the member itself. System
//! entries, entries of clients in the primary's own domain, and those of clients that left, are protected by copies alone.
//!
//! `covered` passes an entry that is safe or stable, in order, and never goes back: it records the moment of passing. What
//! is safe *now* is kept up by the repairs above, so that those who died long ago do not count among the *f*.
//!
//! Not here: the arithmetic ([`field`](super::field)), streams, and anything durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::body::{Member, segments, stripe_bodies};
use super::{SEAL_COST, Share};
use crate::log::{ClientId, Epoch, HEADER_COST, Header, Lsn, Time};
use crate::rule::{self, Rule};

mod counts;
mod domain;
mod patience;
mod place;
mod session;
mod stripe;

pub use counts::CoverCounts;
pub use domain::Domain;
use patience::Patience;
use place::Near;
use session::Session;
use stripe::{Open, Opened, encode_copy};

/// How coverage is to be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CoverSettings {
    /// How many failure domains may be lost. With 0 there are no stripes, only custody copies.
    pub f: u8,
    /// Members of a stripe, at most.
    pub members: usize,
    /// A stripe waits this long for members that may come.
    pub wait_us: u64,
    /// Bytes of what one leaving client held that are given to others; 0 for none.
    pub custody_bytes_max: u64,
    /// Who has not confirmed for this long is passed over for somebody else, in microseconds.
    pub patience_us: u64,
}

/// An entry that is not settled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Covering {
    header: Header,
    payload: Bytes,
    /// Whose own copy counts; `None` for those that only copies protect.
    owner: Option<ClientId>,
    /// The owner's session stood ever since, or confirmed the tag anew.
    present: bool,
    /// The owner confirmed the tag.
    tagged: bool,
    /// Segments in stripes that are not sealed.
    open: u32,
    stripes: Vec<u64>,
    copies: Vec<u64>,
    added: Time,
    /// When the last of its stripes was sealed.
    sealed: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Row {
    body: Bytes,
    /// Of its share, at the holder.
    cost: u64,
    /// Who has it, and as which share.
    holder: Option<(ClientId, u64)>,
    /// Since when.
    given: Time,
    confirmed: bool,
}

/// A sealed stripe, until the checkpoint passes its last member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stripe {
    members: Vec<Lsn>,
    owners: Vec<Domain>,
    first: Lsn,
    until: Lsn,
    /// Equations, or copies; and behind them the witness, where there is one.
    rows: Vec<Row>,
    parity: usize,
    /// Since when authors are asked to stand for their places themselves.
    asked: Option<Time>,
}

/// The coverage of one reign's unstable entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cover {
    settings: CoverSettings,
    epoch: Epoch,
    own_domain: Arc<str>,
    sessions: BTreeMap<ClientId, Session>,
    /// Domains that can hold, and how many sessions of each.
    domains: BTreeMap<Domain, i64>,
    /// From `first` on, dense: what is not settled.
    entries: VecDeque<Covering>,
    first: Lsn,
    stable: Lsn,
    covered: Lsn,
    open: Opened,
    stripes: BTreeMap<u64, Stripe>,
    next_stripe: u64,
    starts: BTreeSet<(Lsn, u64)>,
    ends: BTreeSet<(Lsn, u64)>,
    shares: BTreeMap<u64, (u64, usize)>,
    next_share: u64,
    unplaced: BTreeSet<(u64, usize)>,
    /// Rows that are to be placed at the end of the batch.
    to_place: Vec<(u64, usize)>,
    near: Near,
    /// Members whose authors are asked for their confirms.
    unwitnessed: Vec<Lsn>,
    /// Entries of which copies are to be made.
    to_copy: Vec<Lsn>,
    /// Somebody came, or has room again.
    retry: bool,
    pushes: Vec<(ClientId, Share)>,
    /// What clients that left keep of what they were given: so many bytes, until this checkpoint at the latest.
    kept: BTreeMap<ClientId, (u64, Lsn)>,
    /// Up to which checkpoint anything a client was given, or wrote, is needed.
    needed: BTreeMap<ClientId, Lsn>,
    bytes: u64,
    cursor: ClientId,
    now: Time,
    patience: Patience,
    counts: CoverCounts,
}

impl Cover {
    /// The coverage of the reign `epoch`, of entries from `next` on; up to `stable`, which may lie below, everything is
    /// stable. What only clients of `own_domain` hold does not count.
    ///
    /// Shares are numbered from the time in microseconds on: faster than a share a microsecond none are made, so that a
    /// process that goes on in the same reign never uses a number again.
    pub fn new(settings: CoverSettings, epoch: Epoch, own_domain: &str, stable: Lsn, next: Lsn, now: Time) -> Self {
        Self {
            settings,
            epoch,
            own_domain: own_domain.into(),
            sessions: BTreeMap::new(),
            domains: BTreeMap::new(),
            entries: VecDeque::new(),
            first: next,
            stable,
            covered: stable,
            open: Opened::default(),
            stripes: BTreeMap::new(),
            next_stripe: 0,
            starts: BTreeSet::new(),
            ends: BTreeSet::new(),
            shares: BTreeMap::new(),
            next_share: now.0,
            unplaced: BTreeSet::new(),
            to_place: Vec::new(),
            near: Near::default(),
            unwitnessed: Vec::new(),
            to_copy: Vec::new(),
            retry: false,
            pushes: Vec::new(),
            kept: BTreeMap::new(),
            needed: BTreeMap::new(),
            bytes: 0,
            cursor: ClientId(0),
            now,
            patience: Patience::default(),
            counts: CoverCounts::default(),
        }
    }

    /// Up to here every entry was safe or stable when this mark passed it.
    pub fn covered(&self) -> Lsn {
        self.covered
    }

    /// Up to here nobody needs an entry to decode another: at most the checkpoint.
    pub fn settled(&self) -> Lsn {
        if !rule::on(Rule::HoldStripe) {
            return self.stable;
        }
        let sealed = self.starts.first().map(|(first, _)| *first);
        let needed = sealed.into_iter().chain(self.open.first()).min();
        needed.map_or(self.stable, |first| first.prev().min(self.stable))
    }

    /// Until which checkpoint the owner of the entry at `lsn` has to hold it, once that is known.
    pub fn hold_until(&self, lsn: Lsn) -> Option<Lsn> {
        if self.settings.f == 0 || !rule::on(Rule::HoldStripe) {
            return Some(lsn);
        }
        let Some(entry) = self.entry(lsn) else { return Some(lsn) };
        (entry.open == 0).then(|| self.until(entry, lsn))
    }

    /// Whether the entry is safe without its owner.
    pub fn is_copied(&self, lsn: Lsn) -> bool {
        self.entry(lsn).is_some_and(|entry| self.has_copies(entry))
    }

    /// The header of an entry that is not settled.
    pub fn header(&self, lsn: Lsn) -> Option<&Header> {
        self.entry(lsn).map(|entry| &entry.header)
    }

    /// Up to which checkpoint `client` may be needed: for what it wrote, and for what it was given.
    pub fn needed_until(&self, client: ClientId) -> Lsn {
        self.needed.get(&client).copied().unwrap_or_default()
    }

    /// Bytes that the rows kept for repairs take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many shares clients keep, and their bytes.
    pub fn held(&self) -> (u64, u64) {
        (self.shares.len() as u64, self.sessions.values().map(|session| session.used).sum())
    }

    /// Bytes of shares that `client` keeps.
    pub fn held_by(&self, client: ClientId) -> u64 {
        self.sessions.get(&client).map_or(0, |session| session.used)
    }

    /// What coverage cost so far.
    pub fn counts(&self) -> CoverCounts {
        self.counts
    }

    /// How many failure domains are there to hold shares.
    pub fn domains(&self) -> usize {
        self.domains.len()
    }

    /// Whether too few other domains are there to cover what `client` writes.
    pub fn is_short_for(&self, client: ClientId) -> bool {
        let f = usize::from(self.settings.f);
        let Some(session) = self.sessions.get(&client).filter(|_| f > 0) else { return false };
        let others = self.domains.len() - usize::from(self.domains.contains_key(&session.domain));
        if session.counts { others < f } else { self.domains.len() < f + 1 }
    }

    /// Whether some rows have nobody to keep them.
    pub fn is_short(&self) -> bool {
        !self.unplaced.is_empty()
    }

    /// The declared domain of a standing session, if what it holds counts.
    pub fn domain_of(&self, client: ClientId) -> Option<&Domain> {
        self.sessions.get(&client).filter(|session| session.counts).map(|session| &session.domain)
    }

    /// The same, unless the session is about to end: then it may be off the roster already, where it counts.
    pub fn lasting_domain_of(&self, client: ClientId) -> Option<&Domain> {
        let session = self.sessions.get(&client).filter(|session| session.counts && !session.leaving);
        session.map(|session| &session.domain)
    }

    /// What is to be written to whose stream, in order of the shares' numbers.
    pub fn take_pushes(&mut self) -> Vec<(ClientId, Share)> {
        std::mem::take(&mut self.pushes)
    }

    /// The number of a share that is made elsewhere.
    pub fn next_share(&mut self) -> u64 {
        self.next_share += 1;
        self.next_share
    }

    /// Time passes.
    pub fn pass(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// The next entry of the log.
    ///
    /// # Panics
    /// If it is not the next one.
    pub fn add(&mut self, now: Time, header: &Header, payload: &Bytes) {
        let lsn = header.lsn;
        assert_eq!(lsn, self.next(), "I1: the log is dense");
        self.pass(now);
        let owner =
            header.origin.map(|origin| origin.client).filter(|_| header.origin.is_some_and(|o| o.request.0 > 0));
        let counts =
            |session: &Session| session.counts && (session.since < lsn || !rule::on(Rule::ConfirmByIncarnation));
        let owner = owner.filter(|client| self.sessions.get(client).is_some_and(counts));
        let f = self.settings.f;
        let entry = Covering {
            header: header.clone(),
            payload: payload.clone(),
            owner,
            present: owner.is_some(),
            tagged: false,
            open: 0,
            stripes: Vec::new(),
            copies: Vec::new(),
            added: now,
            sealed: now,
        };
        self.entries.push_back(entry);
        if let Some(client) = owner {
            if f > 0 {
                self.need(client, lsn);
                self.stripe(now, lsn);
            }
        } else if f > 0
            || (header.origin.is_some_and(|origin| origin.request.0 > 0) && self.settings.custody_bytes_max > 0)
        {
            self.copy(lsn);
        }
        self.advance();
    }

    fn next(&self) -> Lsn {
        Lsn(self.first.0 + self.entries.len() as u64)
    }

    fn entry(&self, lsn: Lsn) -> Option<&Covering> {
        let at = lsn.0.checked_sub(self.first.0)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    fn entry_mut(&mut self, lsn: Lsn) -> Option<&mut Covering> {
        let at = lsn.0.checked_sub(self.first.0)?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    fn need(&mut self, client: ClientId, until: Lsn) {
        let needed = self.needed.entry(client).or_default();
        *needed = until.max(*needed);
    }

    fn until(&self, entry: &Covering, lsn: Lsn) -> Lsn {
        let ends = entry.stripes.iter().filter_map(|id| self.stripes.get(id)).map(|stripe| stripe.until);
        ends.max().unwrap_or(lsn).max(lsn)
    }

    /// Puts an entry's segments into open stripes.
    fn stripe(&mut self, now: Time, lsn: Lsn) {
        let Some(entry) = self.entry_mut(lsn) else { return };
        let (header, payload) = (entry.header.clone(), entry.payload.clone());
        let count = segments(header.length);
        entry.open = count;
        let owner = entry.owner.expect("a stripe has owners");
        let domain = self.sessions[&owner].domain.clone();
        let room = self.domains.len().saturating_sub(usize::from(self.settings.f)).max(1);
        let full = self.settings.members.min(room);
        for segment in 0..count {
            let member = Member { header: header.clone(), segment };
            let bytes = payload.slice(member.range());
            let sealed = self.open.add(now, member, &bytes, domain.clone(), self.settings.f, full);
            sealed.into_iter().for_each(|open| self.seal(open));
        }
    }

    /// Gives up on an entry's owner, or never counts on it: *f + 1* others keep the entry itself.
    fn copy(&mut self, lsn: Lsn) {
        let Some(entry) = self.entry(lsn) else { return };
        let (header, payload) = (entry.header.clone(), entry.payload.clone());
        let until = self.until(entry, lsn);
        let parity = usize::from(self.settings.f) + 1;
        for segment in 0..segments(header.length) {
            let member = Member { header: header.clone(), segment };
            let symbol = payload.slice(member.range());
            let body = encode_copy(member, symbol);
            let rows = (0..parity).map(|_| Row::new(body.clone())).collect();
            let (members, first) = (vec![lsn], lsn);
            let stripe = Stripe { members, owners: Vec::new(), first, until, rows, parity, asked: None };
            let id = self.keep(stripe);
            if let Some(entry) = self.entry_mut(lsn) {
                entry.copies.push(id);
            }
        }
    }

    fn seal(&mut self, open: Open) {
        let Open { members, owners, rows, longest, segment_bytes, .. } = open;
        let lsns: Vec<Lsn> = members.iter().map(|member| member.header.lsn).collect();
        let (first, until) = (lsns.iter().min().copied(), lsns.iter().max().copied());
        let (first, until) = (first.unwrap_or_default(), until.unwrap_or_default());
        if until <= self.stable {
            // Nobody needs it any more.
            for lsn in lsns {
                if let Some(entry) = self.entry_mut(lsn) {
                    entry.open -= 1;
                }
            }
            return;
        }
        let now = self.now;
        let (f, count) = (rows.len() as u64, members.len() as u64);
        self.counts.segment_bytes += segment_bytes;
        self.counts.ideal_bytes += f * segment_bytes / count.max(1);
        self.counts.symbol_bytes += f * longest as u64;
        let parity = rows.len();
        let rows = stripe_bodies(&members, &rows).into_iter().map(Row::new).collect();
        let id = self.keep(Stripe { members: lsns.clone(), owners, first, until, rows, parity, asked: None });
        for lsn in lsns {
            let Some(entry) = self.entry_mut(lsn) else { continue };
            entry.open -= 1;
            entry.stripes.push(id);
            entry.sealed = now;
            if let Some(client) = entry.owner {
                self.need(client, until);
            }
        }
    }

    /// Registers a stripe, whose rows find holders at the end of the batch.
    fn keep(&mut self, stripe: Stripe) -> u64 {
        self.next_stripe += 1;
        let id = self.next_stripe;
        let rows = stripe.rows.len();
        self.counts.stripes += 1;
        self.counts.members += stripe.members.len() as u64;
        self.bytes += stripe.rows.iter().map(|row| row.body.len() as u64).sum::<u64>();
        self.starts.insert((stripe.first, id));
        self.ends.insert((stripe.until, id));
        self.stripes.insert(id, stripe);
        self.to_place.extend((0..rows).map(|at| (id, at)));
        id
    }

    /// The cache of `client` holds this share.
    pub fn confirmed(&mut self, client: ClientId, share: u64) {
        if let Some(session) = self.sessions.get_mut(&client) {
            session.late = false;
        }
        let Some((id, at)) = self.shares.get(&share).copied() else { return };
        let Some(row) = self.stripes.get_mut(&id).and_then(|stripe| stripe.rows.get_mut(at)) else { return };
        if row.holder == Some((client, share)) {
            row.confirmed = true;
        }
    }

    /// The cache of `client` holds the tag of its entry at `lsn`.
    pub fn tagged(&mut self, client: ClientId, lsn: Lsn) {
        if let Some(session) = self.sessions.get_mut(&client) {
            session.late = false;
        }
        let stands = self.sessions.contains_key(&client);
        if let Some(entry) = self.entry_mut(lsn).filter(|entry| entry.owner == Some(client)) {
            entry.tagged = true;
            entry.present |= stands;
        }
    }

    /// The checkpoint passed: what lies below is nobody's to keep, unless it is needed to decode what does not.
    pub fn stabilize(&mut self, stable: Lsn) {
        self.stable = self.stable.max(stable).min(self.next().prev());
        let past: Vec<u64> = self.ends.range(..=(self.stable, u64::MAX)).map(|(_, id)| *id).collect();
        for id in past {
            let Some(stripe) = self.stripes.remove(&id) else { continue };
            self.ends.remove(&(stripe.until, id));
            self.starts.remove(&(stripe.first, id));
            for (at, row) in stripe.rows.iter().enumerate() {
                self.bytes -= row.body.len() as u64;
                self.unplaced.remove(&(id, at));
                let Some((client, share)) = row.holder else { continue };
                self.shares.remove(&share);
                if let Some(session) = self.sessions.get_mut(&client)
                    && session.shares.remove(&share)
                {
                    session.used -= row.cost;
                    self.retry = true;
                }
            }
        }
        let (settled, stable) = (self.settled(), self.stable);
        self.pushes.retain(|(_, share)| share.hold_until > stable);
        self.advance();
        while self.first <= settled && !self.entries.is_empty() {
            self.entries.pop_front();
            self.first = self.first.next();
        }
        self.needed.retain(|_, until| *until > stable);
        self.kept.retain(|_, (_, until)| *until > stable);
    }

    /// Moves `covered` as far as everything is safe or stable: once for all that was confirmed.
    pub fn advance(&mut self) {
        // Neighbours are in the same stripe, which is looked at once.
        let mut whole = None;
        while self.covered < self.next().prev() {
            let lsn = self.covered.next();
            if lsn > self.stable && !self.entry(lsn).is_some_and(|entry| self.is_safe(entry, &mut whole)) {
                break;
            }
            if lsn > self.stable
                && let Some(entry) = self.entry(lsn)
            {
                let (fill, confirm) =
                    (entry.sealed.0.saturating_sub(entry.added.0), self.now.0.saturating_sub(entry.sealed.0));
                self.counts.covered += 1;
                self.counts.fill_us += fill;
                self.counts.confirm_us += confirm;
            }
            self.covered = lsn;
        }
    }

    /// Whether the entry would survive now: the predicate this module stands for. `whole` is a stripe of which it is known that
    /// it is whole.
    fn is_safe(&self, entry: &Covering, whole: &mut Option<u64>) -> bool {
        let striped = self.settings.f > 0 && entry.owner.is_some() && entry.open == 0;
        let placed = |stripe: &Stripe| entry.tagged || stripe.is_witnessed() || !rule::on(Rule::CoverWitness);
        // That the owner's session stood ever since is asked of every member of its stripes.
        let mut safe = |id: &u64| {
            let Some(stripe) = self.stripes.get(id) else { return true };
            if *whole != Some(*id) && self.is_whole(stripe) {
                *whole = Some(*id);
            }
            *whole == Some(*id) && placed(stripe)
        };
        (striped && entry.stripes.iter().all(&mut safe)) || self.has_copies(entry)
    }

    fn has_copies(&self, entry: &Covering) -> bool {
        let kept = |id: &u64| self.stripes.get(id).is_none_or(Stripe::is_confirmed);
        !entry.copies.is_empty() && entry.copies.iter().all(kept)
    }

    fn is_whole(&self, stripe: &Stripe) -> bool {
        let held = |lsn: &Lsn| self.entry(*lsn).is_none_or(|entry| entry.present || self.has_copies(entry));
        stripe.is_confirmed() && stripe.members.iter().all(held)
    }

    /// Ends a batch: seals what has waited long enough, or what nothing else is waited for, and finds holders for what has none.
    /// `coming`: entries are being ordered that may still go into the open stripes. `near`: the clients that are written to
    /// anyway, in order.
    pub fn settle(&mut self, now: Time, coming: bool, near: Vec<ClientId>) {
        self.pass(now);
        self.advance();
        while let Some(open) = self.open.take_due(now, self.settings.wait_us) {
            self.seal(open);
        }
        if !coming && self.waits_for_members() {
            self.seal_all();
        }
        self.hurry(now);
        if std::mem::take(&mut self.retry) {
            self.to_place.extend(std::mem::take(&mut self.unplaced));
        }
        self.place_all(near);
        if self.first <= self.settled() {
            // The checkpoint had passed what waited for members.
            self.stabilize(self.stable);
        }
    }

    /// Makes the copies that are to be made. How long they are needed is known when no stripe of the entry is open.
    fn copy_noted(&mut self) {
        while let Some(lsn) = self.to_copy.pop() {
            let Some(entry) = self.entry(lsn).filter(|entry| lsn > self.stable && entry.copies.is_empty()) else {
                continue;
            };
            if entry.open > 0 {
                self.seal_all();
            }
            self.copy(lsn);
        }
    }

    fn seal_all(&mut self) {
        while let Some(open) = self.open.take() {
            self.seal(open);
        }
    }

    /// When an open stripe is due, or somebody is late.
    pub fn next_timeout(&self) -> Option<Time> {
        let due = self.open.oldest().map(|since| since.after(self.settings.wait_us));
        due.into_iter().chain(self.next_overdue()).min()
    }

    /// Whether the mark stands before an entry whose stripes are open. Otherwise it waits for confirms, and whoever writes
    /// meanwhile may still fill them.
    fn waits_for_members(&self) -> bool {
        self.entry(self.covered.next()).is_some_and(|entry| entry.open > 0)
    }

    /// Asserts what must hold between steps.
    pub fn check(&self) {
        assert!(self.stable <= self.covered || self.entries.is_empty(), "covered lies behind stable");
        assert!(self.covered < self.next(), "covered past the head");
        debug_assert!(
            !rule::on(Rule::Custody)
                || self.shares.iter().all(|(share, (id, at))| {
                    let holder =
                        self.stripes.get(id).and_then(|stripe| stripe.rows.get(*at)).and_then(|row| row.holder);
                    holder.is_some_and(|(client, as_share)| {
                        as_share == *share
                            && self.sessions.get(&client).is_none_or(|session| session.shares.contains(share))
                    })
                })
        );
    }
}

impl Row {
    fn new(body: Bytes) -> Self {
        let cost = body.len() as u64 + HEADER_COST + SEAL_COST;
        Self { body, cost, holder: None, given: Time(0), confirmed: false }
    }
}

impl Stripe {
    fn is_confirmed(&self) -> bool {
        let confirmed = |row: &Row| row.holder.is_some() && (row.confirmed || !rule::on(Rule::CoverConfirmed));
        self.rows[..self.parity].iter().all(confirmed)
    }
}
