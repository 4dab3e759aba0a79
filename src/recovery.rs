//! Recovery: the roll call, the rebuild of the delta, its gaps, and the conclusion.
//!
//! Its other halves: [`crate::client`] reports, [`crate::primary`] carries the conclusion out. The idea:
//!
//! ```text
//!  own log ......... base │ base+1 ............ H ........ V │ EpochStart
//!                         │ held by clients, or in doubt     │
//!                         │ and placed by a manifest header  │
//! ```
//!
//! Everybody on the roster reports what it holds above the base: headers first, payloads when they are pulled.
//! With *H* the highest LSN anyone observed, every LSN up to *H* must be supplied, or is a **gap**; past *H* the
//! rebuild goes on while the next entry can be supplied. The log it yields is the old primary's, entry by entry.
//!
//! What is decided is derived from the reports that stand at the moment of deciding, never from counters.
//! Invariants: I5 (exact rebuild), I10 (whatever is missing is named). Not here: making anything durable.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use crate::error::{Code, Error};
use crate::log::{Body, ClientId, Digest, Entry, Epoch, GapPolicy, Header, Lsn, Origin, Record, Request, Time};
use crate::message::{Payloads, RecoveryStatus, Report, ReportItem};
use crate::node::{Conn, RecoveryPolicy};
use crate::ordered::Ordered;
use crate::primary::PrimarySettings;
use crate::rule::{self, Rule};
use crate::session::LogState;
use crate::share::cover::Domain;
use crate::store::{Marks, Missing};

mod ahead;
mod evidence;
mod ledger;
mod pages;
mod placed;
mod shares;
mod skip;

use evidence::Walk;
use ledger::{Backing, Lsns, Owed};
use pages::Pages;
use placed::Placed;
use shares::Shares;
use skip::Skipping;

/// Where *f* domains may be missing, those who are connected are waited for this long without progress, in microseconds.
const GRACE_US: u64 = 500_000;
/// More lost LSNs than this are not filled with no-ops: such a report is wrong, and somebody has to look.
pub const GAP_ENTRIES_MAX: u64 = 1 << 20;

/// Where a log must be cut before a node starts on it: what lies past the base of a reign whose `EpochStart` is
/// not in the log was never promised to anyone. `headers` are those of the records after `marks.base`.
pub fn provisional_cut<'a>(marks: &Marks, headers: impl Iterator<Item = &'a Header>) -> Option<Lsn> {
    if marks.reign == Epoch::ZERO || !rule::on(Rule::BackToBase) {
        return None;
    }
    let mut any = false;
    for header in headers {
        any = true;
        if header.epoch == marks.reign && matches!(header.body, Body::EpochStart(_)) {
            return None;
        }
    }
    any.then_some(marks.base)
}

/// What the recovery needs next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// More reports, payloads, time, or an operator.
    Wait,
    /// The node's own log from this LSN up to the base: [`Recovery::history`] takes it.
    History(Lsn),
    /// The state machine's word on which entries do not depend on what is missing.
    Judge {
        /// In log order; all are commands.
        entries: Vec<Entry>,
        /// What is lost.
        missing: Vec<Missing>,
    },
    /// Nothing: this is the outcome.
    Conclude(Plan),
}

/// The outcome of a recovery.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Plan {
    /// The rebuilt log, dense from `base + 1`; gaps are `Noop`s. Below the first gap they have the checksums of the replies
    /// that clients had to them: the state machine has to give them again.
    pub records: Vec<Record>,
    /// The highest LSN anybody observed.
    pub observed: Lsn,
    /// The policy that was needed, if any.
    pub policy: Option<GapPolicy>,
    /// Awaited, and did not come.
    pub missing: Vec<ClientId>,
    /// Excluded by an operator.
    pub excluded: Vec<ClientId>,
    /// How many entries only shares supplied, and how many shares that took.
    pub decoded: (u64, u64),
    /// Lost LSNs below the end of `records`.
    pub gaps: Vec<Range<Lsn>>,
}

/// What a client reported, as long as its stream stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reporter {
    conn: Conn,
    complete: bool,
    observed: Lsn,
    stable: Lsn,
    /// Commands whose payload it has, held or in doubt.
    offered: Ordered<Request, Offer>,
    /// Payloads not yet asked for, and their lengths.
    wanted: Owed,
    /// Payloads asked for and not yet here.
    asked: Owed,
    /// The LSNs it vouches for; some may be here twice.
    vouched: Vec<Lsn>,
    /// The places it vouches for, by the first LSN.
    vouched_places: Vec<Lsn>,
    /// Commands it has without a tag, and up to where it had all replies when it first sent each.
    in_doubt: BTreeMap<Request, Request>,
    /// Shares it has, and their lengths; those to be asked for, those asked for, and those that could not be read.
    shares: BTreeMap<u64, u32>,
    shares_wanted: Owed,
    shares_asked: Owed,
    unreadable: BTreeSet<u64>,
}

impl Reporter {
    /// It has the payload of this command.
    ///
    /// # Errors
    /// [`Code::Protocol`] if it names its commands out of order, or one of them twice.
    fn offer(&mut self, request: Request, offer: Offer) -> Result<(), Error> {
        if let Some(last) = self.offered.keys().next_back().filter(|last| request <= **last) {
            let why = format!("the report names its own command {request} after {last}");
            return Err(Error::new(Code::Protocol, why));
        }
        self.offered.insert(request, offer);
        Ok(())
    }
}

/// A command whose payload its author has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Offer {
    length: u32,
    digest: Digest,
    /// Where it stands, if its author has its tag.
    lsn: Option<Lsn>,
    /// The checksum of the reply its author had there.
    reply: Option<Digest>,
}

/// The variants of one LSN's header. More than one is a contradiction.
type Known = Vec<Backing<Header>>;

/// A roll call in progress.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recovery {
    of: Epoch,
    base: Lsn,
    roster: BTreeMap<ClientId, Domain>,
    in_sync: bool,
    /// How many failure domains every acknowledged write survives.
    f: usize,
    /// Clients are connected that have not said yet who they are.
    standing_by: bool,
    decode_bytes_max: u64,
    shares: Shares,
    policy: RecoveryPolicy,
    credit_bytes: u64,
    started: Time,
    contact: Option<Time>,
    progress: Time,
    /// When it was last evaluated: a time that had passed by then makes no difference any more.
    evaluated: Time,
    reporters: BTreeMap<ClientId, Reporter>,
    known: Pages<Known>,
    /// LSNs of more than one variant.
    disputed: BTreeSet<Lsn>,
    /// Where commands are placed, but by their authors' tags: each at one LSN, unless somebody lies.
    placed: BTreeSet<(ClientId, Request, Lsn)>,
    placed_at: Placed,
    /// Verified against the digest under which they were reported.
    payloads: BTreeMap<ClientId, Pages<(Digest, Bytes)>>,
    payload_bytes: u64,
    /// What could be supplied now.
    supplied: Lsns,
    excluded: BTreeSet<ClientId>,
    resolved: Option<GapPolicy>,
    judging: Option<Skipping>,
    /// Words of the state machine that are still to come on questions that were dropped.
    dropped: u64,
    conflict: Option<(Error, Vec<ClientId>)>,
}

impl Recovery {
    /// A roll call of everybody on `state`'s roster, for what the reign of its last `EpochStart` left above its
    /// end. A node not `in_sync` with that reign (a forced promotion) takes clients' word on what was stable.
    pub fn new(state: &LogState, in_sync: bool, settings: &PrimarySettings, policy: RecoveryPolicy, now: Time) -> Self {
        let domain =
            |client| (client, Domain::of(client, state.session(client).map_or("", |session| &session.info.domain)));
        let awaited = rule::on(Rule::AwaitRoster);
        let roster = state.roster().filter(|_| awaited).map(domain).collect();
        Self {
            of: state.epoch(),
            base: state.end(),
            roster,
            in_sync,
            f: usize::from(state.start().f),
            standing_by: false,
            decode_bytes_max: settings.decode_bytes_max,
            shares: Shares::default(),
            policy,
            credit_bytes: settings.pull_credit_bytes,
            started: now,
            contact: None,
            progress: now,
            evaluated: now,
            reporters: BTreeMap::new(),
            known: Pages::default(),
            disputed: BTreeSet::new(),
            placed: BTreeSet::new(),
            placed_at: Placed::default(),
            payloads: BTreeMap::new(),
            payload_bytes: 0,
            supplied: Lsns::default(),
            excluded: BTreeSet::new(),
            resolved: None,
            judging: None,
            dropped: 0,
            conflict: None,
        }
    }

    /// The reign whose items take part.
    pub fn of(&self) -> Epoch {
        self.of
    }

    /// The last LSN of the node's own log.
    pub fn base(&self) -> Lsn {
        self.base
    }

    /// Whether `client` is asked to report.
    pub fn asks(&self, client: ClientId) -> bool {
        self.roster.contains_key(&client) && !self.excluded.contains(&client)
    }

    /// A stream of `client` begins to report; an earlier report of it no longer stands.
    pub fn begin(&mut self, now: Time, client: ClientId, conn: Conn) {
        self.contact.get_or_insert(now);
        self.drop_report(client);
        let reporter = Reporter {
            conn,
            complete: false,
            observed: Lsn(0),
            stable: Lsn(0),
            offered: Ordered::new(),
            wanted: Owed::default(),
            asked: Owed::default(),
            vouched: Vec::new(),
            vouched_places: Vec::new(),
            in_doubt: BTreeMap::new(),
            shares: BTreeMap::new(),
            shares_wanted: Owed::default(),
            shares_asked: Owed::default(),
            unreadable: BTreeSet::new(),
        };
        self.reporters.insert(client, reporter);
    }

    /// The stream of a reporter is gone, and with it the report. Its verified payloads are kept.
    pub fn gone(&mut self, client: ClientId, conn: Conn) {
        if rule::on(Rule::ReportStands) && self.reporters.get(&client).is_some_and(|reporter| reporter.conn == conn) {
            self.drop_report(client);
        }
    }

    /// What was asked of the state machine is no longer the question; its word on it will come all the same.
    fn drop_judging(&mut self) {
        self.dropped += u64::from(self.judging.take().is_some());
    }

    fn drop_report(&mut self, client: ClientId) {
        self.drop_judging();
        self.conflict = None;
        self.drop_shares(client);
        let Some(reporter) = self.reporters.remove(&client) else { return };
        self.forget_placed();
        self.placed_at.stale = true;
        reporter.vouched_places.iter().for_each(|first| self.disavow_places(*first, client));
        for lsn in reporter.vouched {
            let Some(variants) = self.known.get_mut(lsn.0) else { continue };
            for variant in variants.iter_mut() {
                variant.disavow(client);
            }
            variants.retain(|variant| !variant.vouchers.is_empty());
            if variants.len() < 2 {
                self.disputed.remove(&lsn);
            }
            if variants.is_empty() {
                self.known.remove(lsn.0);
            }
            self.note_supply(lsn);
        }
    }

    /// Takes a part of a report.
    ///
    /// # Errors
    /// [`Code::Protocol`] if it says what no honest client can say; the stream should end.
    pub fn report(&mut self, now: Time, client: ClientId, part: Report) -> Result<(), Error> {
        // Taken out, so that an item costs no search for who reported it.
        let Some(mut reporter) = self.reporters.remove(&client) else { return Ok(()) };
        let before = reporter.offered.keys().next_back().copied().unwrap_or_default();
        let took = self.take_part(now, &mut reporter, client, part);
        self.reporters.insert(client, reporter);
        for Origin { client, request } in took? {
            self.want(client, request);
        }
        self.want_offered(client, before);
        Ok(())
    }

    /// Takes the items of a part; returns which commands are placed by it, but by their authors' tags.
    fn take_part(
        &mut self,
        now: Time,
        reporter: &mut Reporter,
        client: ClientId,
        part: Report,
    ) -> Result<Vec<Origin>, Error> {
        if reporter.complete {
            return Err(Error::new(Code::Protocol, "the report goes on after its end"));
        }
        self.progress = now;
        self.placed_at.stale = true;
        let of = self.of;
        let takes_part = |epoch: Epoch| epoch == of || !rule::on(Rule::ReportEpoch);
        if takes_part(part.observed.0) {
            reporter.observed = reporter.observed.max(part.observed.1);
        }
        if takes_part(part.stable.0) {
            reporter.stable = reporter.stable.max(part.stable.1);
        }
        let mut placed = Vec::new();
        for item in part.items {
            let (header, own) = match item {
                ReportItem::InDoubt { request, length, digest, answered } => {
                    reporter.offer(request, Offer { length, digest, lsn: None, reply: None })?;
                    reporter.in_doubt.insert(request, answered);
                    continue;
                }
                ReportItem::Places(places) => {
                    // Who reports them cannot read them: what is no list says nothing of the reporter.
                    let relevant = takes_part(places.epoch) && places.last() > self.base && places.is_possible();
                    let first = places.first;
                    let news = relevant && self.vouch_places(places, client)?;
                    reporter.vouched_places.extend(news.then_some(first));
                    continue;
                }
                ReportItem::Held { header, reply } => {
                    let own = header.origin.filter(|origin| origin.client == client);
                    let (Some(origin), Body::Command | Body::Noop) = (own, &header.body) else {
                        return Err(Error::new(Code::Protocol, "a client holds only commands of its own"));
                    };
                    let Header { length, digest, lsn, .. } = header;
                    reporter.offer(origin.request, Offer { length, digest, lsn: Some(lsn), reply })?;
                    (header, true)
                }
                ReportItem::Share { epoch, id, hold_until, length } => {
                    let relevant = epoch == of && hold_until > self.base;
                    reporter.shares.extend(relevant.then_some((id, length)));
                    continue;
                }
                ReportItem::Header(header) => {
                    if matches!(header.body, Body::EpochStart(_)) {
                        let why = "no client is given the header of an EpochStart to vouch for";
                        return Err(Error::new(Code::Protocol, why));
                    }
                    (header, false)
                }
            };
            if !header.is_possible() {
                return Err(Error::new(Code::Protocol, format!("no entry has the header reported of {}", header.lsn)));
            }
            if takes_part(header.epoch) && header.lsn > self.base {
                // What it offers in this part is looked at when all of the part is known.
                let news = self.vouch(header, client, own, &mut reporter.vouched);
                placed.extend(news.filter(|_| !own));
            }
        }
        reporter.complete = part.end;
        Ok(placed)
    }

    /// Somebody vouches for a header, which is noted among what it `vouched` for. Returns the command that is placed by it,
    /// if it was not before. `own`: by its author, who has its tag; anybody else, and its author, may have it from others.
    fn vouch(&mut self, header: Header, client: ClientId, own: bool, vouched: &mut Vec<Lsn>) -> Option<Origin> {
        let lsn = header.lsn;
        let origin = header.origin.filter(|_| header.body == Body::Command);
        let told = origin.filter(|_| !own);
        self.placed.extend(told.map(|origin| (origin.client, origin.request, lsn)));
        let variants = self.known.or_default(lsn.0);
        if let Some(variant) = variants.iter_mut().find(|variant| variant.what == header) {
            vouched.extend(variant.vouch(client).then_some(lsn));
            return None;
        }
        vouched.push(lsn);
        // Most are the first word on a command of which nothing else can be here.
        let bare = origin.is_some() && header.length > 0 && self.payload_bytes == 0 && self.shares.entries.is_empty();
        let news = bare && variants.is_empty() && self.placed_at.headers.is_empty();
        if variants.is_empty() {
            *variants = vec![Backing::new(header, client)];
        } else {
            variants.push(Backing::new(header, client));
            self.disputed.insert(lsn);
        }
        if !news {
            self.note_supply(lsn);
        }
        origin
    }

    /// Notes whether an entry could be supplied now: to be called whenever that may have changed.
    fn note_supply(&mut self, lsn: Lsn) {
        let is_supplied = self.supply(lsn).is_some();
        self.supplied.set(lsn, is_supplied);
    }

    /// Marks what was placed, of all that it offers after a request, as wanted: it is pulled while the rest of the report is
    /// still to come.
    fn want_offered(&mut self, client: ClientId, after: Request) {
        let offered = self.reporters.get_mut(&client).map(|reporter| std::mem::take(&mut reporter.offered));
        for (request, offer) in offered.iter().flat_map(|offered| offered.range(after.next()..)) {
            self.want_as(client, *request, *offer);
        }
        if let (Some(offered), Some(reporter)) = (offered, self.reporters.get_mut(&client)) {
            reporter.offered = offered;
        }
    }

    /// Marks a payload as wanted, if a known header asks for it and its origin can supply it. Where headers disagree it is
    /// pulled all the same: once somebody is excluded it has to be here.
    fn want(&mut self, client: ClientId, request: Request) {
        let Some(reporter) = self.reporters.get(&client) else { return };
        if let Some(what) = reporter.offered.get(&request).copied() {
            self.want_as(client, request, what);
        }
    }

    fn want_as(&mut self, client: ClientId, request: Request, offer: Offer) {
        let Offer { length, digest, lsn, .. } = offer;
        let origin = Some(Origin { client, request });
        let fits = |header: &Header| header.origin == origin && (header.length, header.digest) == (length, digest);
        let known = |lsn: Lsn| {
            let direct = self.known.get(lsn.0).into_iter().flatten().map(|variant| &variant.what);
            direct.chain(self.placed_at.headers.get(&lsn))
        };
        let placed = self.places(client, request, lsn).flat_map(known).any(fits);
        let member = self.shares.members.get(&(client, request)) == Some(&(length, digest));
        let here = self.payload(Origin { client, request }).is_some_and(|(have, _)| *have == digest);
        if (placed || member)
            && length > 0
            && !here
            && let Some(reporter) = self.reporters.get_mut(&client)
            && !reporter.asked.contains(request.0)
        {
            reporter.wanted.insert(request.0, length);
        }
    }

    /// Where a command is placed, by its author's tag or otherwise.
    fn places(&self, client: ClientId, request: Request, own: Option<Lsn>) -> impl Iterator<Item = Lsn> + '_ {
        let all = (client, request, Lsn(0))..=(client, request, Lsn(u64::MAX));
        own.into_iter().chain(self.placed.range(all).map(|(_, _, lsn)| *lsn))
    }

    /// The pulls that the credits allow now, per stream.
    pub fn pulls(&mut self) -> Vec<(Conn, Vec<Request>, Vec<u64>)> {
        let mut pulls = Vec::new();
        for reporter in self.reporters.values_mut() {
            let mut used = reporter.asked.bytes() + reporter.shares_asked.bytes();
            let mut requests = Vec::new();
            while used < self.credit_bytes {
                let Some((request, length)) = reporter.wanted.pop_first() else {
                    break;
                };
                used += u64::from(length);
                reporter.asked.insert(request, length);
                requests.push(Request(request));
            }
            let mut shares = Vec::new();
            while used < self.credit_bytes {
                let Some((id, length)) = reporter.shares_wanted.pop_first() else {
                    break;
                };
                used += u64::from(length);
                reporter.shares_asked.insert(id, length);
                shares.push(id);
            }
            if !requests.is_empty() || !shares.is_empty() {
                pulls.push((reporter.conn, requests, shares));
            }
        }
        pulls
    }

    /// Takes payloads that were pulled.
    ///
    /// # Errors
    /// [`Code::Conflict`] if one is not what was announced; the reporter is then accused, and the stream should end.
    pub fn payloads(&mut self, now: Time, client: ClientId, payloads: Payloads) -> Result<(), Error> {
        let Some(reporter) = self.reporters.get_mut(&client) else {
            return Ok(());
        };
        self.progress = now;
        let theirs = self.payloads.entry(client).or_default();
        let mut taken = Vec::with_capacity(payloads.items.len());
        for (request, payload) in payloads.items {
            if reporter.asked.remove(request.0).is_none() {
                continue;
            }
            let announced = reporter.offered.get(&request);
            let fits =
                |offer: &&Offer| payload.len() as u64 == u64::from(offer.length) && offer.digest.verifies(&payload);
            let Some(Offer { digest, lsn, .. }) = announced.filter(fits) else {
                return Err(Error::new(
                    Code::Conflict,
                    format!("client {client} announced another payload for request {request} than it sent"),
                ));
            };
            self.payload_bytes += payload.len() as u64;
            let before = theirs.insert(request.0, (*digest, payload));
            self.payload_bytes -= before.map_or(0, |(_, payload)| payload.len() as u64);
            self.shares.stale = true;
            taken.push((request, *lsn));
        }
        for (request, lsn) in taken {
            let told: Vec<Lsn> = self.places(client, request, None).collect();
            lsn.into_iter().chain(told).for_each(|lsn| self.note_supply(lsn));
        }
        self.take_shares(client, payloads.shares)
    }

    /// An operator drops what `client` reported, and does not wait for it.
    pub fn exclude(&mut self, client: ClientId) {
        self.drop_report(client);
        self.excluded.insert(client);
    }

    /// An operator concludes now.
    pub fn resolve(&mut self, policy: GapPolicy) {
        self.resolved = Some(policy);
        self.drop_judging();
    }

    /// Sessions on the roster whose report is not complete.
    pub fn awaited(&self) -> Vec<ClientId> {
        let complete = |client: &&ClientId| self.reporters.get(client).is_some_and(|reporter| reporter.complete);
        let awaited = self.roster.keys().filter(|client| !complete(client) && !self.excluded.contains(client));
        awaited.copied().collect()
    }

    /// When to evaluate again though nothing happens.
    pub fn next_timeout(&self) -> Option<Time> {
        let grace = (self.f > 0).then(|| self.grace());
        self.deadlines().into_iter().chain([grace]).flatten().filter(|at| *at > self.evaluated).min()
    }

    /// The end of the soft window, once somebody has come, and the hard cap.
    fn deadlines(&self) -> [Option<Time>; 2] {
        let RecoveryPolicy::Conclude { soft_us, hard_us, .. } = self.policy else {
            return [None, None];
        };
        let soft = self.contact.map(|contact| contact.max(self.progress).after(soft_us));
        [soft, Some(self.started.after(hard_us))]
    }

    /// Clients are connected that have not said yet who they are, or are not.
    pub fn stand_by(&mut self, anybody: bool) {
        self.standing_by = anybody;
    }

    /// Until when those are waited for who are here already, though it may go without them.
    fn grace(&self) -> Time {
        self.progress.after(GRACE_US)
    }

    /// Whether everything acknowledged can be rebuilt without those who are missing, and the old primary can
    /// acknowledge nothing more without those who are here: at most *f* failure domains are missing, and none of those
    /// who are missing is about to come.
    fn may_lack(&self, now: Time, missing: &[ClientId]) -> bool {
        // Who was excluded is as good as missing: for what only it had, and as somebody whom the old primary may still have.
        let without = missing.iter().chain(&self.excluded);
        let domains: BTreeSet<&Domain> = without.filter_map(|client| self.roster.get(client)).collect();
        let here = self.standing_by || missing.iter().any(|client| self.reporters.contains_key(client));
        let sure = self.in_sync || !rule::on(Rule::AbsentInSync);
        sure && domains.len() <= self.f && (!here || now >= self.grace())
    }

    fn decided(&self, now: Time, everyone: bool) -> Option<GapPolicy> {
        let by_policy = match self.policy {
            RecoveryPolicy::Conclude { gaps, .. } => {
                let late = self.deadlines().into_iter().flatten().any(|at| now >= at);
                (everyone || late).then_some(gaps)
            }
            RecoveryPolicy::Wait => None,
        };
        self.resolved.or(by_policy)
    }

    /// What has to happen next, from everything that stands now.
    pub fn evaluate(&mut self, now: Time, state: &LogState) -> Next {
        self.evaluated = now;
        if self.judging.is_some() {
            return Next::Wait;
        }
        let [_, hard] = self.deadlines();
        // Whoever stands there and does not send what it announced holds up a recovery no longer than the hard cap.
        if self.is_pulling() && hard.is_none_or(|at| now < at) {
            return Next::Wait;
        }
        let missing = self.awaited();
        let everyone = missing.is_empty();
        let decided = self.decided(now, everyone);
        if !everyone && decided.is_none() && !self.may_lack(now, &missing) {
            return Next::Wait;
        }
        self.join_places(state);
        if self.is_pulling() && hard.is_none_or(|at| now < at) {
            return Next::Wait;
        }
        // What nobody has a header of may still be known from shares.
        self.conflict = self.contradiction(false);
        if self.conflict.is_some() {
            return Next::Wait;
        }
        let mut walk = self.walk();
        // All of them, even if the first fill the gaps: what was rebuilt must not depend on which came first.
        self.shares.begun |= !everyone || !self.excluded.is_empty() || !walk.gaps.is_empty();
        if self.shares.begun {
            let late = hard.is_some_and(|at| now >= at);
            if self.want_shares() && !late {
                return Next::Wait;
            }
            if let Some(from) = self.wants_history() {
                return Next::History(from);
            }
            if self.shares.stale {
                self.decode();
                self.placed_at.stale = true;
                self.join_places(state);
                if self.is_pulling() && !late {
                    return Next::Wait;
                }
            }
            self.conflict = self.contradiction(everyone && decided.is_none());
            if self.conflict.is_some() {
                return Next::Wait;
            }
            walk = self.walk();
        }
        let mut plan = Plan {
            records: Vec::new(),
            observed: self.observed(),
            policy: decided.filter(|_| !everyone || !walk.gaps.is_empty()),
            missing,
            excluded: self.excluded.iter().copied().collect(),
            decoded: (0, 0),
            gaps: Vec::new(),
        };
        match (walk.gaps.first().cloned(), decided) {
            (None, _) => {}
            (Some(_), None) => return Next::Wait,
            (Some(gap), Some(GapPolicy::Stop)) => walk.records.retain(|record| record.lsn() < gap.start),
            (Some(gap), Some(GapPolicy::Skip)) => return self.skip(walk, gap.start, plan),
        }
        plan.records = walk.records;
        self.conclude(plan, state)
    }

    /// Tries the plan on the log's state: a header that was forged must not reach the log.
    fn conclude(&mut self, mut plan: Plan, state: &LogState) -> Next {
        let mut trial = state.outline();
        // After a gap a reply may well be another one.
        let whole = plan.gaps.first().map_or(Lsn(u64::MAX), |gap| gap.start);
        for record in &mut plan.records {
            let header = &record.entry.header;
            if let Err(error) = trial.apply_header(header, None) {
                let who = self.vouchers(header.lsn);
                self.conflict = Some((Error::new(Code::Conflict, error.message()), who));
                return Next::Wait;
            }
            if header.body == Body::Command && header.lsn < whole {
                record.reply = self.reply(header).unwrap_or_default();
            }
        }
        assert_eq!(trial.end().0, self.base.0 + plan.records.len() as u64, "I5: the rebuild is dense");
        if !self.shares.entries.is_empty() {
            let from_shares = plan.records.iter().filter(|record| self.shares.entries.contains_key(&record.lsn()));
            plan.decoded = (from_shares.count() as u64, self.share_counts().0);
        }
        Next::Conclude(plan)
    }

    /// The checksum of the reply that the client of a command had to it.
    fn reply(&self, header: &Header) -> Option<Digest> {
        let Origin { client, request } = header.origin?;
        let offer = self.reporters.get(&client)?.offered.get(&request)?;
        offer.reply.filter(|_| offer.lsn == Some(header.lsn))
    }

    /// Whether somebody who stands still owes a payload. Who has not said that it is all is awaited for that, and no longer.
    fn is_pulling(&self) -> bool {
        self.reporters.values().filter(|reporter| reporter.complete).any(|reporter| {
            !reporter.wanted.is_empty() || !reporter.asked.is_empty() || !reporter.shares_asked.is_empty()
        })
    }

    /// How far the recovery is.
    pub fn status(&self) -> RecoveryStatus {
        let awaited = self.awaited();
        let pulling = self.is_pulling();
        let observed = self.observed();
        let missing = self.supplied.gaps(self.base, observed);
        let known = self.last_known();
        let conflict = self.conflict.clone().or_else(|| self.contradiction(false));
        let (pulled_shares, shares) = self.share_counts();
        let phase = match () {
            () if conflict.is_some() => "conflict",
            () if self.judging.is_some() => "judging",
            () if !awaited.is_empty() => "roll-call",
            () if pulling => "pulling",
            () if !missing.is_empty() => "gaps",
            () => "concluding",
        };
        let lost_by_stop = missing.first().map_or(0, |gap| observed.max(known).next().0 - gap.start.0);
        let owed: u64 = self.reporters.values().map(|reporter| reporter.wanted.bytes() + reporter.asked.bytes()).sum();
        let pulled_bytes = self.payload_bytes;
        RecoveryStatus {
            phase: phase.to_owned(),
            base: self.base,
            observed,
            known,
            reported: self.roster.len() - awaited.len(),
            roster: self.roster.len(),
            awaited,
            pulled_bytes,
            wanted_bytes: pulled_bytes + owed,
            pulled_shares,
            shares,
            decoded: self.shares.entries.len() as u64,
            missing,
            lost_by_stop,
            accused: conflict.as_ref().map(|(_, who)| who.clone()).unwrap_or_default(),
            conflict: conflict.map(|(error, _)| error),
        }
    }
}

/// Whether a payload, with its checksum, is the one that a header announces. Another length can have the same checksum.
fn is_of((digest, payload): &(Digest, Bytes), header: &Header) -> bool {
    *digest == header.digest && payload.len() as u64 == u64::from(header.length)
}

/// Joins ordered LSNs into half-open ranges.
fn ranges(lsns: impl Iterator<Item = Lsn>) -> Vec<Range<Lsn>> {
    let mut ranges: Vec<Range<Lsn>> = Vec::new();
    for lsn in lsns {
        match ranges.last_mut() {
            Some(range) if range.end == lsn => range.end = lsn.next(),
            _ => ranges.push(lsn..lsn.next()),
        }
    }
    ranges
}
