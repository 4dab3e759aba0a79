//! What a client must not forget: the content of its write cache, and the operations that change it.
//!
//! Every change of the lasting state is a [`CacheOp`]; the core applies it to its own [`CacheImage`] and hands it
//! to the store, so what a restarted process reads back is by construction what the core had. Invariant: I3
//! (release after stable) is decided here, in [`CacheImage::apply`], and nowhere else.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::log::{
    Body, ClientId, ClusterId, Digest, Epoch, GroupId, HEADER_COST, Header, Level, Lsn, Origin, Places, Reign, Request,
    SessionRole, Tag, in_ranges,
};
use crate::ordered::Ordered;
use crate::rule::{self, Rule};
use crate::share::Share;

/// Who the client is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The session.
    pub client: ClientId,
    /// The cluster, once known.
    pub cluster: Option<ClusterId>,
    /// The group, once known.
    pub group: Option<GroupId>,
    /// The client's failure domain.
    pub domain: String,
    /// What the session is for.
    pub role: SessionRole,
}

/// A command that is held, in doubt, or both in turn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// Up to where the client had all its replies when it first sent this; resent unchanged.
    pub answered: Request,
    /// The level asked for.
    pub level: Level,
    /// Withdrawn before it was sent: the number is consumed without effect.
    pub withdrawn: bool,
    /// Of the payload.
    pub digest: Digest,
    /// The application's bytes.
    pub payload: Bytes,
    /// Its tag, once seen: the command is held.
    pub tag: Option<Tag>,
    /// Checksum of its reply, once the reply was taken: the command is answered.
    pub reply: Option<Digest>,
}

impl Command {
    /// What it counts against the cache's budget, in bytes.
    pub fn cost(&self) -> u64 {
        self.payload.len() as u64 + HEADER_COST
    }

    /// The entry's header, if the tag is known.
    pub fn header(&self, client: ClientId, request: Request) -> Option<Header> {
        let tag = self.tag?;
        Some(Header {
            epoch: tag.epoch,
            lsn: tag.lsn,
            body: if self.withdrawn { Body::Noop } else { Body::Command },
            origin: Some(Origin { client, request }),
            time: tag.time,
            answered: self.answered,
            length: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
            digest: self.digest,
        })
    }
}

/// A change of what a client must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CacheOp {
    /// The client's identity is (re)stated.
    Identity(Identity),
    /// A process opened the cache; the number rises each time.
    Incarnation(u64),
    /// The session was established once: the client is no longer fresh.
    Welcomed,
    /// The client reported (or attached) to this epoch and accepts nothing older.
    Reported(Epoch),
    /// A command is about to be sent for the first time.
    Command {
        /// Its number.
        request: Request,
        /// The command, without tag and reply.
        command: Command,
    },
    /// A command's tag was seen.
    Tag {
        /// Its number.
        request: Request,
        /// The tag.
        tag: Tag,
    },
    /// A command's reply was taken.
    Answered {
        /// Its number.
        request: Request,
        /// Of the reply.
        reply: Digest,
    },
    /// A command ended without being in the log.
    Superseded(Request),
    /// Headers from a manifest.
    Headers(Vec<Header>),
    /// Places from a manifest.
    Places(Vec<Places>),
    /// A share to be kept for another client's sake.
    Share(Share),
    /// State up to this LSN of this reign was revealed.
    Observed(Epoch, Lsn),
    /// The checkpoint of a reign: whatever it covers is released.
    Stable(Epoch, Lsn),
    /// Up to this LSN of this reign nobody needs an entry to decode another.
    Settled(Epoch, Lsn),
    /// A new reign, with the table of epochs from the client's oldest on: the verdict on everything older.
    Verdict(Epoch, Vec<Reign>),
}

/// How an old entry fared in a conclusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The very entry is in the surviving log.
    InLog,
    /// It is not, and never will be under its number.
    Superseded,
}

/// The verdict of the table `reigns` on the entry `(epoch, lsn)` of a reign older than the last in the table.
pub fn verdict(reigns: &[Reign], epoch: Epoch, lsn: Lsn) -> Verdict {
    let Some(at) = reigns.iter().position(|reign| reign.epoch == epoch) else {
        return if rule::on(Rule::UnknownEpochSuperseded) { Verdict::Superseded } else { Verdict::InLog };
    };
    let ended = reigns.get(at + 1);
    let in_log = ended.is_none_or(|next| lsn < next.start && !in_ranges(&next.gaps, lsn));
    if in_log { Verdict::InLog } else { Verdict::Superseded }
}

/// Whether somebody who observed `(epoch, lsn)` saw state that did not survive.
pub fn rolled_back(reigns: &[Reign], epoch: Epoch, lsn: Lsn) -> bool {
    if epoch == Epoch::ZERO {
        return false;
    }
    let Some(at) = reigns.iter().position(|reign| reign.epoch == epoch) else {
        return true;
    };
    // A gap of the reign itself changes everything observed after it.
    reigns.get(at + 1).is_some_and(|next| lsn >= next.start || next.gaps.iter().any(|gap| gap.start <= lsn))
}

/// The lasting state of a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct CacheImage {
    /// Who the client is; `None` in a new cache.
    pub identity: Option<Identity>,
    /// How many processes have opened the cache.
    pub incarnation: u64,
    /// Whether the session was ever established.
    pub welcomed: bool,
    /// The highest epoch reported or attached to.
    pub reported: Epoch,
    /// Reign and highest LSN whose state was revealed.
    pub observed: (Epoch, Lsn),
    /// Reign and highest checkpoint known.
    pub stable: (Epoch, Lsn),
    /// The last request number used.
    pub last: Request,
    /// Commands that are held or unanswered.
    pub commands: Ordered<Request, Command>,
    /// Headers from manifests that may still have to be vouched for.
    pub headers: Ordered<(Epoch, Lsn), Header>,
    /// Places from manifests, by the last LSN of each: the checkpoint that covers it releases them.
    pub places: Ordered<(Epoch, Lsn), Places>,
    /// Bytes of `commands`, `headers` and `places`, by their cost.
    pub bytes: u64,
    /// Shares kept for others, by the reign and number of each.
    pub shares: BTreeMap<(Epoch, u64), Share>,
    /// Bytes of `shares`, by their cost.
    pub share_bytes: u64,
    /// Shares by the checkpoint that releases them.
    share_until: BTreeSet<(Epoch, Lsn, u64)>,
    /// Commands without a reply, and the bytes of their payloads.
    unanswered: Ordered<Request, ()>,
    unanswered_bytes: u64,
    /// Commands with a tag, by the checkpoint that releases them. Several may wait for the same one.
    held: Ordered<(Epoch, Lsn, Request), ()>,
    /// Commands whose tag does not say that checkpoint, by their own place.
    unsettled: Ordered<(Epoch, Lsn, Request), ()>,
    settled: (Epoch, Lsn),
}

impl CacheImage {
    /// Applies one operation. Operations on commands that are gone do nothing.
    pub fn apply(&mut self, op: &CacheOp) {
        match op {
            CacheOp::Identity(identity) => self.identity = Some(identity.clone()),
            CacheOp::Incarnation(incarnation) => self.incarnation = *incarnation,
            CacheOp::Welcomed => self.welcomed = true,
            CacheOp::Reported(epoch) => self.reported = self.reported.max(*epoch),
            CacheOp::Command { request, command } => {
                self.forget(*request);
                self.last = self.last.max(*request);
                self.bytes += command.cost();
                self.unanswered_bytes += command.payload.len() as u64;
                self.unanswered.insert(*request, ());
                self.commands.insert(*request, command.clone());
            }
            CacheOp::Tag { request, tag } => {
                self.tag(*request, *tag);
                self.release_if_stable(*request);
            }
            CacheOp::Answered { request, reply } => {
                if let Some(command) = self.commands.get_mut(request)
                    && command.reply.replace(*reply).is_none()
                {
                    self.unanswered.remove(request);
                    self.unanswered_bytes -= command.payload.len() as u64;
                }
                self.release_if_stable(*request);
            }
            CacheOp::Superseded(request) => self.forget(*request),
            CacheOp::Headers(headers) => {
                // A primary that goes on in its reign may know a lower checkpoint than it once told.
                let (epoch, stable) = self.stable;
                for header in headers.iter().filter(|header| header.epoch != epoch || header.lsn >= stable.next()) {
                    if self.headers.insert((header.epoch, header.lsn), header.clone()).is_none() {
                        self.bytes += HEADER_COST;
                    }
                }
            }
            CacheOp::Places(places) => {
                let (epoch, stable) = self.stable;
                for places in places.iter().filter(|places| places.epoch != epoch || places.last() > stable) {
                    self.bytes += places.cost();
                    let old = self.places.insert((places.epoch, places.last()), places.clone());
                    self.bytes -= old.map_or(0, |old| old.cost());
                }
            }
            CacheOp::Share(share) => self.keep_share(share),
            CacheOp::Observed(epoch, lsn) => self.observed = self.observed.max((*epoch, *lsn)),
            CacheOp::Stable(epoch, lsn) => {
                self.stable = self.stable.max((*epoch, *lsn));
                self.release();
            }
            CacheOp::Settled(epoch, lsn) => {
                self.settled = self.settled.max((*epoch, *lsn));
                let (epoch, settled) = self.settled;
                let passed = (epoch, Lsn(0), Request(0))..=(epoch, settled, Request(u64::MAX));
                let passed: Vec<Request> = self.unsettled.range(passed).map(|((_, _, request), ())| *request).collect();
                passed.into_iter().for_each(|request| self.release_if_stable(request));
            }
            CacheOp::Verdict(epoch, reigns) => self.judge(*epoch, reigns),
        }
    }

    /// The operations that rebuild this image from nothing: what a compaction writes.
    pub fn to_ops(&self) -> Vec<CacheOp> {
        let mut ops = Vec::new();
        ops.extend(self.identity.clone().map(CacheOp::Identity));
        ops.push(CacheOp::Incarnation(self.incarnation));
        if self.welcomed {
            ops.push(CacheOp::Welcomed);
        }
        ops.push(CacheOp::Reported(self.reported));
        // The stable mark comes after the commands would release them: none of those kept is released by it.
        ops.push(CacheOp::Stable(self.stable.0, self.stable.1));
        ops.push(CacheOp::Settled(self.settled.0, self.settled.1));
        ops.push(CacheOp::Observed(self.observed.0, self.observed.1));
        if self.last > Request(0) {
            // A superseded number is never used again, though nothing else may remember it.
            let spent = Command {
                answered: Request(0),
                level: Level::Local,
                withdrawn: true,
                digest: Digest::default(),
                payload: Bytes::new(),
                tag: None,
                reply: None,
            };
            ops.push(CacheOp::Command { request: self.last, command: spent });
            ops.push(CacheOp::Superseded(self.last));
        }
        for (request, command) in &self.commands {
            let bare = Command { tag: None, reply: None, ..command.clone() };
            ops.push(CacheOp::Command { request: *request, command: bare });
            ops.extend(command.tag.map(|tag| CacheOp::Tag { request: *request, tag }));
            ops.extend(command.reply.map(|reply| CacheOp::Answered { request: *request, reply }));
        }
        if !self.headers.is_empty() {
            ops.push(CacheOp::Headers(self.headers.values().cloned().collect()));
        }
        if !self.places.is_empty() {
            ops.push(CacheOp::Places(self.places.values().cloned().collect()));
        }
        ops.extend(self.shares.values().cloned().map(CacheOp::Share));
        ops
    }

    /// Whether a manifest told of this entry, by its header or its place.
    pub fn is_told(&self, epoch: Epoch, lsn: Lsn) -> bool {
        let place = self.places.range((epoch, lsn)..).next().map(|(_, places)| places);
        let placed = place.is_some_and(|places| places.epoch == epoch && places.first <= lsn);
        placed || self.headers.contains_key(&(epoch, lsn))
    }

    /// The entries that manifests told of, in any order; some may come twice.
    pub fn told(&self) -> impl Iterator<Item = (Epoch, Lsn)> + '_ {
        let placed = |places: &Places| (places.first.0..=places.last().0).map(Lsn);
        let placed = self.places.values().flat_map(move |places| placed(places).map(|lsn| (places.epoch, lsn)));
        self.headers.keys().copied().chain(placed)
    }

    /// The lowest epoch of anything held or observed: verdicts are needed from there on.
    pub fn oldest_epoch(&self) -> Epoch {
        let tags = self.commands.values().filter_map(|command| command.tag.map(|tag| tag.epoch));
        let observed = Some(self.observed.0).filter(|epoch| *epoch != Epoch::ZERO);
        tags.chain(observed).min().unwrap_or(self.reported)
    }

    /// The first request without a reply.
    pub fn first_unanswered(&self) -> Request {
        self.unanswered.first().copied().unwrap_or(self.last.next())
    }

    /// Whether something waits for being settled up to here.
    pub(crate) fn awaits_settled(&self, epoch: Epoch, settled: Lsn) -> bool {
        (epoch, settled) > self.settled
            && self.unsettled.first().is_some_and(|(of, lsn, _)| (*of, *lsn) <= (epoch, settled))
    }

    /// Bytes of the payloads of commands without a reply.
    pub fn unanswered_bytes(&self) -> u64 {
        self.unanswered_bytes
    }

    /// Commands without a reply, in order.
    pub fn unanswered(&self) -> impl Iterator<Item = (Request, &Command)> {
        self.unanswered.keys().filter_map(|request| Some((*request, self.commands.get(request)?)))
    }

    fn is_released(&self, command: &Command) -> bool {
        let (epoch, stable) = self.stable;
        let covers = |tag: &Tag| {
            let same = tag.epoch == epoch || !rule::on(Rule::ReleaseByEpoch);
            let settled = || (tag.epoch, tag.lsn) <= self.settled && tag.epoch == self.settled.0;
            tag.hold_until.map_or_else(settled, |until| same && until <= stable)
        };
        // A `Local` service asks nobody to hold: its tags say "until 0".
        command.reply.is_some() && command.tag.as_ref().is_none_or(|tag| tag.hold_until == Some(Lsn(0)) || covers(tag))
    }

    fn tag(&mut self, request: Request, tag: Tag) {
        let Some(command) = self.commands.get_mut(&request) else { return };
        let old = command.tag.replace(tag);
        old.into_iter().for_each(|old| self.untag(request, &old));
        match tag.hold_until {
            Some(until) => self.held.insert((tag.epoch, until, request), ()),
            None => self.unsettled.insert((tag.epoch, tag.lsn, request), ()),
        };
    }

    fn untag(&mut self, request: Request, tag: &Tag) {
        match tag.hold_until {
            Some(until) => self.held.remove(&(tag.epoch, until, request)),
            None => self.unsettled.remove(&(tag.epoch, tag.lsn, request)),
        };
    }

    fn keep_share(&mut self, share: &Share) {
        if share.epoch == self.stable.0 && share.hold_until <= self.stable.1 {
            return;
        }
        // Its body may be a slice of a much larger receive buffer.
        let kept = Share { body: Bytes::copy_from_slice(&share.body), ..share.clone() };
        self.share_bytes += kept.cost();
        self.share_until.insert((kept.epoch, kept.hold_until, kept.id));
        if let Some(old) = self.shares.insert((kept.epoch, kept.id), kept) {
            self.share_bytes -= old.cost();
            if old.hold_until != share.hold_until {
                self.share_until.remove(&(old.epoch, old.hold_until, old.id));
            }
        }
    }

    /// Forgets the shares that come before `(epoch, lsn)` and, unless `all`, are of that very epoch.
    fn drop_shares(&mut self, epoch: Epoch, upto: Lsn, all: bool) {
        let from = if all { Epoch::ZERO } else { epoch };
        let past: Vec<_> = self.share_until.range((from, Lsn(0), 0)..=(epoch, upto, u64::MAX)).copied().collect();
        for (epoch, until, id) in past {
            self.share_until.remove(&(epoch, until, id));
            self.share_bytes -= self.shares.remove(&(epoch, id)).map_or(0, |share| share.cost());
        }
    }

    fn forget(&mut self, request: Request) {
        let Some(command) = self.commands.remove(&request) else { return };
        self.bytes -= command.cost();
        if command.reply.is_none() {
            self.unanswered.remove(&request);
            self.unanswered_bytes -= command.payload.len() as u64;
        }
        if let Some(tag) = command.tag {
            self.untag(request, &tag);
        }
    }

    fn release_if_stable(&mut self, request: Request) {
        if self.commands.get(&request).is_some_and(|command| self.is_released(command)) {
            self.forget(request);
        }
    }

    fn release(&mut self) {
        let (epoch, stable) = self.stable;
        let from = if rule::on(Rule::ReleaseByEpoch) { epoch } else { Epoch::ZERO };
        let covered = (from, Lsn(0), Request(0))..=(epoch, stable, Request(u64::MAX));
        let covered: Vec<Request> = self.held.range(covered).map(|((_, _, request), ())| *request).collect();
        for request in covered {
            self.release_if_stable(request);
        }
        while self.headers.pop_upto(&(epoch, stable)).is_some() {
            self.bytes -= HEADER_COST;
        }
        while let Some((_, places)) = self.places.pop_upto(&(epoch, stable)) {
            self.bytes -= places.cost();
        }
        self.drop_shares(epoch, stable, !rule::on(Rule::ReleaseByEpoch));
    }

    /// Settles everything of reigns before `epoch`. What the log has and the application knows is released (a
    /// reign opens stable); what it lost is forgotten; what was never answered is in doubt again.
    fn judge(&mut self, epoch: Epoch, reigns: &[Reign]) {
        let present = (epoch, Lsn(0), Request(0));
        let old = self.held.range(..present).chain(self.unsettled.range(..present));
        let old: Vec<Request> = old.map(|((_, _, request), ())| *request).collect();
        for request in old {
            let Some(command) = self.commands.get_mut(&request) else { continue };
            let again = !rule::on(Rule::SupersededFinal)
                && command.tag.is_some_and(|tag| verdict(reigns, tag.epoch, tag.lsn) == Verdict::Superseded);
            if again && command.reply.take().is_some() {
                command.tag = None;
                self.unanswered_bytes += command.payload.len() as u64;
                self.unanswered.insert(request, ());
            } else if command.reply.is_some() {
                self.forget(request);
            } else if rule::on(Rule::BackToInDoubt) {
                command.tag = None;
            }
        }
        self.held = self.held.split_off(&present);
        self.unsettled = self.unsettled.split_off(&present);
        let kept = self.headers.split_off(&(epoch, Lsn(0)));
        self.bytes -= HEADER_COST * self.headers.len() as u64;
        self.headers = kept;
        let kept = self.places.split_off(&(epoch, Lsn(0)));
        self.bytes -= self.places.values().map(Places::cost).sum::<u64>();
        self.places = kept;
        self.drop_shares(epoch, Lsn(0), true);
        if self.observed.0 < epoch {
            let start = reigns.last().map_or(Lsn(0), |reign| reign.start);
            self.observed = (epoch, start);
        }
        self.reported = self.reported.max(epoch);
    }
}
