//! Coverage in a reign: the log is fed to [`Cover`] and [`Window`], what they push goes out on the sessions' streams,
//! what clients confirm comes back; and the echoes that let a query be answered where a takeover may conclude without *f*
//! domains.

use std::collections::{BTreeMap, BTreeSet};

use super::{Phase, Primary, PrimarySettings, Privacy, Reading};
use crate::log::{ClientId, Level, Lsn, Time};
use crate::message::Attach;
use crate::node::{NodeEvent, Output};
use crate::rule::{self, Rule};
use crate::share::cover::{Cover, CoverSettings, Domain};
use crate::share::window::{SHARES_MAX, Window};
use crate::share::{Mode, Share};

/// Echoes that did not come are asked for again after this, in microseconds.
const ECHO_AGAIN_US: u64 = 50_000;

/// The shares of a reign, where there are any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sharing {
    pub(super) cover: Cover,
    pub(super) window: Option<Window>,
    /// The next entry to be fed.
    next: Lsn,
    /// Sessions came or went.
    changed: bool,
    /// As the operators were told.
    short: bool,
    settled: Lsn,
    /// The last round of echoes that was asked for, and when.
    round: u64,
    asked: Time,
    /// The next round is wanted.
    wanted: bool,
    cursor: ClientId,
}

impl Sharing {
    /// The checkpoint passed.
    pub(super) fn stabilize(&mut self, stable: Lsn) {
        self.cover.stabilize(stable);
        if let Some(window) = &mut self.window {
            window.stabilize(stable);
        }
    }

    /// Whether something written cannot be covered.
    pub(super) fn is_short(&self) -> bool {
        self.short || self.cover.is_short()
    }
}

impl PrimarySettings {
    /// How many failure domains what is `Covered` survives.
    pub fn covering(&self) -> u8 {
        if self.shares() { self.f } else { 0 }
    }

    /// Whether clients keep anything for each other: not where nobody holds anything, nor where nobody has to.
    fn shares(&self) -> bool {
        self.privacy != Privacy::Withheld && matches!(self.lowest, Level::Tagged | Level::Covered)
    }
}

impl Primary {
    /// The reign opens: what comes is to be covered.
    pub(super) fn begin_sharing(&mut self, now: Time) {
        if !self.settings.shares() {
            return;
        }
        let settings = CoverSettings {
            f: self.settings.covering(),
            members: self.settings.stripe_members,
            wait_us: self.settings.stripe_wait_us,
            custody_bytes_max: self.settings.custody_bytes_max,
            patience_us: self.settings.confirm_patience_us,
        };
        // What lies below is held by its authors alone, if this process went on in the reign of an earlier one.
        let next = if settings.f > 0 { self.water.stable().next() } else { self.water.head().next() };
        let window = settings.f == 0 && self.settings.window_percent > 0;
        let now = now.max(self.state.time());
        self.sharing = Some(Sharing {
            cover: Cover::new(settings, self.epoch, &self.settings.domain, self.water.stable(), next, now),
            window: window.then(|| Window::new(self.settings.window_percent)),
            next,
            changed: false,
            short: false,
            settled: self.water.stable(),
            round: 0,
            asked: Time(0),
            wanted: false,
            cursor: ClientId(0),
        });
        self.feed_cover(now);
    }

    /// Feeds what may leave this node to the encoders.
    pub(super) fn feed_cover(&mut self, now: Time) {
        let limit = if self.logs_first() { self.water.logged() } else { self.water.head() };
        let Some(sharing) = &mut self.sharing else { return };
        while sharing.next <= limit {
            let Some(record) = self.unstable.get(sharing.next) else { break };
            let header = &record.entry.header;
            sharing.cover.add(now, header, &record.entry.payload);
            if let Some(window) = &mut sharing.window {
                let session = header.origin.and_then(|origin| self.state.session(origin.client));
                let owner = session.filter(|_| header.origin.is_some_and(|origin| origin.request.0 > 0));
                let owner = header.origin.zip(owner);
                window
                    .add(&record.entry, owner.map(|(origin, session)| Domain::of(origin.client, &session.info.domain)));
            }
            sharing.next = sharing.next.next();
        }
    }

    /// The batched work of coverage: stripes are sealed, what became covered is answered, and shares go to their holders.
    pub(super) fn settle_cover(&mut self, now: Time, out: &mut Vec<Output>) {
        let coming = self.executing.is_some() || !self.writes.is_empty();
        let every = self.settings.checkpoint_every_us;
        // First the answers, so that shares ride on them.
        self.take_covered();
        let told = self.dirty.iter().filter_map(|conn| self.streams.get(conn)?.live.as_ref());
        let mut told: Vec<ClientId> = told.filter(|live| !live.responses.is_empty()).map(|live| live.client).collect();
        told.sort_unstable();
        let Some(sharing) = &mut self.sharing else { return };
        sharing.cover.settle(now, coming, told);
        let settled = sharing.cover.settled();
        if settled > sharing.settled {
            sharing.settled = settled;
            self.checkpoint_due.get_or_insert(now.after(every));
        }
        let (pushes, unwitnessed) = (sharing.cover.take_pushes(), sharing.cover.take_unwitnessed());
        unwitnessed.into_iter().for_each(|lsn| self.tag_early(lsn));
        self.take_covered();
        for (client, share) in pushes {
            // Without a stream it is pushed again when the session stands on a new one.
            if let Some((conn, live)) = self.live(client) {
                live.shares.push(share);
                self.dirty.insert(conn);
            }
        }
        if self.reads.iter().any(|reading| reading.round > 0) {
            self.release_reads();
        }
        self.tell_coverage(out);
        self.ask_rounds(now);
    }

    /// Takes over how far everything is covered, and answers what waited for it.
    fn take_covered(&mut self) {
        let Some(sharing) = &mut self.sharing else { return };
        sharing.cover.advance();
        let covered = sharing.cover.covered();
        let before = self.water.covered();
        // Without coverage there are copies for those who left, and no promise.
        if self.settings.covering() > 0 && self.water.cover(covered) {
            if !self.tags_first() {
                // Witnesses know the places, and nothing was revealed that is not covered: no manifest has to tell them.
                (before.0 + 1..=covered.0).for_each(|lsn| self.unstable.confirm(Lsn(lsn)));
            }
            self.release_waiting();
        }
    }

    /// Whether a tag goes out before its reply may. In a covered service nothing is promised with it, and others witness the
    /// entry's place: the author is told of it with the reply.
    pub fn tags_first(&self) -> bool {
        !(self.settings.lowest == Level::Covered && self.settings.covering() > 0 && self.sharing.is_some())
    }

    /// Tells operators and clients whether what is written can be covered, where that changed.
    fn tell_coverage(&mut self, out: &mut Vec<Output>) {
        let Some(sharing) = &mut self.sharing else { return };
        if !std::mem::take(&mut sharing.changed) {
            return;
        }
        let mut any = false;
        for (conn, stream) in &mut self.streams {
            if let Some(live) = &mut stream.live {
                let short = sharing.cover.is_short_for(live.client);
                any |= short;
                if short != live.short {
                    live.short = short;
                    live.tell = true;
                    self.dirty.insert(*conn);
                }
            }
        }
        if any != std::mem::replace(&mut sharing.short, any) {
            let (domains, needed) = (sharing.cover.domains(), usize::from(self.settings.covering()) + 1);
            out.push(Output::Event(NodeEvent::Coverage { short: any, domains, needed }));
        }
    }

    pub(super) fn join_cover(&mut self, attach: &Attach) {
        let Attach { client, incarnation, share_bytes, shares_held, from, .. } = *attach;
        let Some(domain) = self.state.session(client).map(|session| session.info.domain.clone()) else { return };
        // One that moved is on the roster under its old domain, which says nothing any more of what it fails with.
        let domain = if attach.domain == domain { domain } else { self.settings.domain.clone() };
        let ordered = self.ordered();
        if let Some(sharing) = &mut self.sharing {
            sharing.cover.remember(client, shares_held.min(share_bytes));
            sharing.cover.join((client, incarnation), &domain, share_bytes, from, ordered);
            sharing.changed = true;
        }
    }

    /// A cache of `client` is there, of this incarnation.
    pub(super) fn renew_in_cover(&mut self, client: ClientId, incarnation: u64) {
        if let Some(sharing) = &mut self.sharing {
            sharing.cover.renew(client, incarnation);
            sharing.changed = true;
        }
    }

    /// A session is about to end in good order: nothing more is given to it.
    pub(super) fn retire(&mut self, client: ClientId) {
        if let Some(sharing) = &mut self.sharing {
            sharing.cover.retire(client);
            sharing.changed = true;
        }
    }

    pub(super) fn leave_cover(&mut self, client: ClientId) {
        if let Some(sharing) = &mut self.sharing {
            sharing.cover.leave(client);
            sharing.changed = true;
        }
    }

    /// Up to which checkpoint `client` is needed by others, or for what it wrote.
    pub(super) fn needed_until(&self, client: ClientId) -> Lsn {
        let cover = self.sharing.as_ref().filter(|_| rule::on(Rule::HoldersDrained)).map(|sharing| &sharing.cover);
        cover.map_or(Lsn(0), |cover| cover.needed_until(client))
    }

    /// Up to here nobody needs an entry to decode another.
    pub(super) fn settled(&self) -> Lsn {
        self.sharing.as_ref().map_or(self.water.stable(), |sharing| sharing.cover.settled().min(self.water.stable()))
    }

    /// Bytes kept so that shares can be given to others.
    pub(super) fn cover_bytes(&self) -> u64 {
        self.sharing.as_ref().map_or(0, |sharing| sharing.cover.bytes())
    }

    /// Ends a session that asked for it, once nobody needs it any more.
    pub(super) fn close_drained(&mut self) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        let stable = self.water.stable();
        let ready = self.closers.iter().copied().filter(|client| self.needed_until(*client) <= stable);
        for client in ready.collect::<Vec<_>>() {
            self.closers.remove(&client);
            self.propose(client, crate::log::Body::Close);
        }
    }

    /// The window shares that ride on a response to `client`.
    pub(super) fn window_shares(&mut self, client: ClientId) -> Vec<Share> {
        let epoch = self.epoch;
        let Some(Sharing { cover, window: Some(window), .. }) = &mut self.sharing else { return Vec::new() };
        let Some(domain) = cover.domain_of(client).cloned() else { return Vec::new() };
        let mut shares = Vec::new();
        for _ in 0..SHARES_MAX {
            let id = cover.next_share();
            let Some(combination) = window.combine(id, &domain) else { break };
            let (mode, holder, hold_until) = (Mode::Window, client, combination.until);
            let share = Share { epoch, id, mode, holder, hold_until, body: combination.body };
            if !cover.lend(client, id, share.cost() + crate::share::SEAL_COST, hold_until) {
                break;
            }
            shares.push(share);
        }
        shares
    }

    /// The round of echoes that a query which arrives now has to wait for: 0 if none.
    ///
    /// I8 rests on this: a takeover concludes on its own without up to *f* domains. Whoever is asked here and answers has
    /// not reported to it, and *f* others and the reader itself are one too many to be missing.
    pub(super) fn next_round(&mut self) -> u64 {
        let may_lack = self.state.start().f > 0 && self.counts_backup && rule::on(Rule::CoverEcho);
        let Some(sharing) = self.sharing.as_mut().filter(|_| may_lack) else { return 0 };
        sharing.wanted = true;
        sharing.round + 1
    }

    /// Asks for the echoes that queries wait for.
    fn ask_rounds(&mut self, now: Time) {
        let f = usize::from(self.state.start().f);
        let Some(sharing) = &mut self.sharing else { return };
        let waits = sharing.round > 0 && self.reads.iter().any(Reading::waits_for_others);
        let again = waits && now >= sharing.asked.after(ECHO_AGAIN_US);
        if !sharing.wanted && !again {
            return;
        }
        sharing.wanted = false;
        sharing.round += 1;
        sharing.asked = now;
        // More than f are asked, for some may be slow; at the second time, all.
        let most = if again { usize::MAX } else { 2 * f + 2 };
        let after = (std::ops::Bound::Excluded(sharing.cursor), std::ops::Bound::Unbounded);
        let around = self.attached.range(after).chain(self.attached.range(..=sharing.cursor));
        let mut domains = BTreeSet::new();
        for (client, conn) in around {
            let Some(domain) = sharing.cover.lasting_domain_of(*client) else { continue };
            let Some(live) = self.streams.get_mut(conn).and_then(|stream| stream.live.as_mut()) else { continue };
            if domains.contains(domain) && !again {
                continue;
            }
            domains.insert(domain.clone());
            live.round = sharing.round;
            live.tell = true;
            self.dirty.insert(*conn);
            sharing.cursor = *client;
            if domains.len() >= most {
                break;
            }
        }
    }

    /// When echoes are asked for again.
    pub(super) fn cover_timeout(&self) -> Option<Time> {
        let sharing = self.sharing.as_ref().filter(|_| matches!(self.phase, Phase::Open | Phase::Stopping))?;
        let waits = sharing.round > 0 && self.reads.iter().any(Reading::waits_for_others);
        let again = waits.then(|| sharing.asked.after(ECHO_AGAIN_US));
        sharing.cover.next_timeout().into_iter().chain(again).min()
    }

    /// The domains that have echoed the round `least` or a later one, each with its last one: the latest first, and no more
    /// than any reader asks for. Found once for all readers, for both may be many.
    pub(super) fn echoes(&self, least: u64) -> Vec<(Domain, u64)> {
        let Some(sharing) = &self.sharing else { return Vec::new() };
        let mut best: BTreeMap<&Domain, u64> = BTreeMap::new();
        for (client, conn) in &self.attached {
            let live = self.streams.get(conn).and_then(|stream| stream.live.as_ref());
            let Some(live) = live.filter(|live| live.echoed >= least) else { continue };
            // Not of a session that is about to end: whoever takes over may know it off the roster.
            if let Some(domain) = sharing.cover.lasting_domain_of(*client) {
                let echoed = best.entry(domain).or_default();
                *echoed = live.echoed.max(*echoed);
            }
        }
        let mut echoes: Vec<(&Domain, u64)> = best.into_iter().collect();
        echoes.sort_by_key(|(_, round)| std::cmp::Reverse(*round));
        // f, one more for a reader in the primary's own domain, and the reader's own.
        echoes.truncate(usize::from(self.state.start().f) + 2);
        echoes.into_iter().map(|(domain, round)| (domain.clone(), round)).collect()
    }

    /// The highest of those rounds that *f* domains beside the reader's have echoed.
    pub(super) fn rounds_echoed(&self, echoes: &[(Domain, u64)], reader: ClientId) -> u64 {
        let own = self.sharing.as_ref().and_then(|sharing| sharing.cover.domain_of(reader));
        // A reader in the primary's own domain may be gone with it, whoever else is; and one that moved counts in that, but a
        // takeover may miss it in the domain of somebody who echoes.
        let needed = usize::from(self.state.start().f) + usize::from(own.is_none());
        let mut rounds = echoes.iter().filter(|(domain, _)| Some(domain) != own).map(|(_, round)| *round);
        needed.checked_sub(1).and_then(|at| rounds.nth(at)).unwrap_or_default()
    }

    /// Whether too few domains stand for the echoes of others to be had at all.
    pub(super) fn lacks_echoes(&self, reader: ClientId) -> bool {
        self.sharing.as_ref().is_none_or(|sharing| sharing.cover.is_short_for(reader))
    }

    /// Asserts what must hold between steps.
    pub(super) fn check_cover(&self) {
        if let Some(sharing) = &self.sharing {
            sharing.cover.check();
            assert!(self.settled() <= self.water.covered(), "I3: settled past what is covered");
        }
    }
}
