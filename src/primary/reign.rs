//! How a reign begins: a promise where a backup may have another opinion, a roll call where something may be
//! missing, the conclusion, and the opening.
//!
//! ```text
//!  Loading ──────────────────────────────────────────────────────────► Open   (logs before it sends)
//!  Promising ─► Fetching ─► Marking ─► Recovering ─► Concluding ─► Open   (restart, with a backup)
//!                           Marking ─► Recovering ─► Concluding ─► Open   (restart without; takeover)
//!                           Marking ───────────────► Concluding ─► Open   (new log; orderly stop)
//! ```

use super::ahead::Ahead;
use super::stream::Stream;
use super::{LogState, Primary, PrimarySettings};
use crate::checkpoint::Watermarks;
use crate::error::{Code, Error, Result};
use crate::log::{Body, Epoch, EpochStart, Level, Lsn, Record, Target, Time, Unstable};
use crate::message::{NodeMessage, PrimaryMessage, RecoveryStatus};
use crate::node::{Conn, NodeEvent, Output, RecoveryPolicy};
use crate::recovery::{Next, Plan, Recovery};
use crate::rule::{self, Rule};
use crate::session::Standing;
use crate::store::Marks;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of log read at once.
pub(super) const READ_BYTES: u64 = 1 << 20;
/// The "stream" of a recovery's reads of the own log, and about how much it reads at once.
const HISTORY: Conn = Conn(u64::MAX - 1);
const HISTORY_BYTES: u64 = 16 << 20;
/// The "stream" of reads that a restarting primary does for itself.
const OWN: Conn = Conn(u64::MAX);

/// Where a primary's reign stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Goes on in its own epoch; the part of the log above the checkpoint is being read back.
    Loading,
    /// Waits for the backup's promise.
    Promising { epoch: Epoch },
    /// Takes what the backup has beyond it, up to here.
    Fetching { epoch: Epoch, end: Lsn },
    /// The new epoch is being marked, as the given save, before any frame of it leaves.
    Marking { epoch: Epoch, save: u64 },
    /// The roll call.
    Recovering(Box<Recovery>),
    /// The outcome is being executed (`start` unknown) or made stable.
    Concluding { start: Option<Lsn> },
    /// Serves.
    Open,
    /// An orderly stop: nothing new, until everything is stable.
    Stopping,
    /// An orderly stop is marked, or about to be.
    Stopped,
    /// A higher epoch exists.
    Deposed,
    /// The own disk or state machine failed.
    Halted,
}

/// How the node came to be recovering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Beginning {
    /// The stability target of the new reign.
    target: Target,
    /// Nothing can be missing: an orderly stop, a new log, or a service that logged before it sent.
    complete: bool,
    /// In sync with the last reign, whatever it was then.
    in_sync: bool,
}

/// What a promoted backup hands over.
pub(crate) struct Promoted {
    pub(crate) settings: PrimarySettings,
    pub(crate) marks: Marks,
    pub(crate) state: LogState,
    /// Not in sync, on an operator's word.
    pub(crate) forced: bool,
    pub(crate) policy: RecoveryPolicy,
    /// Client streams whose hello was accepted.
    pub(crate) streams: Vec<Conn>,
    pub(crate) saves: u64,
    pub(crate) saved: u64,
}

impl Primary {
    /// A primary that starts on its own log, and recovers first. A new one has an empty `state`, and its `marks`
    /// name cluster, group and node.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if the settings make no sense.
    pub fn new(
        settings: PrimarySettings,
        marks: Marks,
        state: LogState,
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<Self> {
        settings.validate()?;
        let started = state.epoch() != Epoch::ZERO;
        // A takeover that did not conclude: the log's last reign is still another node's.
        let takeover = started && state.epoch().node != marks.node;
        let target = if takeover { Target::Own } else { state.target() };
        // It vouches for the log it was made for, and for no longer one.
        let clean = marks.clean.is_some_and(|end| end == state.end() || !rule::on(Rule::CleanMarkErased));
        let beginning = Beginning {
            target,
            complete: clean || !started || state.start().log_before_send && !takeover,
            in_sync: !takeover || marks.in_sync,
        };
        // Whether the reign opened: without a backup that is for the own log to say.
        let opened = state.start().target == Target::Own
            || state.reigns_from(state.epoch()).first().is_some_and(|reign| marks.stable >= reign.start);
        let same_reign = started
            && opened
            && state.start().log_before_send
            && settings.log_before_send
            && state.epoch() == marks.promised
            && state.epoch().node == marks.node
            && settings.lowest == state.lowest()
            && (settings.lowest != Level::Covered || settings.covering() == state.start().f);
        let policy = settings.policy;
        let mut primary = Self::bare(settings, marks, state, beginning);
        if same_reign {
            primary.go_on(out);
        } else if let Target::Backup(_) = target {
            primary.phase = Phase::Promising { epoch: Epoch::ZERO };
        } else {
            let epoch = primary.mint(Epoch::ZERO);
            primary.mark(epoch, out);
        }
        primary.policy = policy;
        let _ = now;
        Ok(primary)
    }

    /// A backup that was promoted: its promise is durable, its log ends at the base.
    pub(crate) fn takeover(promoted: Promoted, now: Time, out: &mut Vec<Output>) -> Self {
        let Promoted { settings, marks, state, forced, policy, streams, saves, saved } = promoted;
        let beginning = Beginning { target: Target::Own, complete: false, in_sync: marks.in_sync && !forced };
        let epoch = marks.promised;
        let mut primary = Self::bare(settings, marks, state, beginning);
        primary.policy = policy;
        (primary.saves, primary.saved) = (saves, saved);
        let streams = streams.into_iter();
        primary.streams = streams.map(|conn| (conn, Stream { greeted: true, ..Stream::default() })).collect();
        primary.begin_recovery(now, epoch, out);
        primary
    }

    fn bare(settings: PrimarySettings, marks: Marks, state: LogState, beginning: Beginning) -> Self {
        let end = state.end();
        Self {
            policy: settings.policy,
            settings,
            epoch: marks.promised.max(state.epoch()),
            marks,
            saves: 0,
            saved: 0,
            base: end,
            phase: Phase::Loading,
            beginning,
            water: Watermarks::new(end, Lsn(0)),
            unstable: Unstable::new(end.next()),
            state,
            unlogged: VecDeque::new(),
            unlogged_bytes: 0,
            ahead: Ahead::default(),
            proposals: VecDeque::new(),
            in_flight: BTreeSet::new(),
            writes: VecDeque::new(),
            asked: VecDeque::new(),
            executing: None,
            replies: crate::ordered::Ordered::new(),
            stable_replies: 0,
            reads: VecDeque::new(),
            released: (Lsn(0), Lsn(0)),
            streams: BTreeMap::new(),
            attached: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            admissions: BTreeSet::new(),
            departing: BTreeMap::new(),
            closers: BTreeSet::new(),
            ending: BTreeSet::new(),
            disconnected: BTreeMap::new(),
            dirty: BTreeSet::new(),
            sharing: None,
            follower: None,
            counts_backup: false,
            grant_from: Lsn(0),
            config_proposed: false,
            config_lsn: Lsn(0),
            admitting: true,
            checkpoint_due: None,
            housekeeping_due: None,
            failure: None,
        }
    }

    /// Goes on in its own epoch: nothing of an entry was ever sent before it was in this log.
    fn go_on(&mut self, out: &mut Vec<Output>) {
        self.epoch = self.state.epoch();
        self.base = self.state.start().base;
        // Whether a grant was sent before the crash is not known: then only the backup's word moves `stable`.
        self.counts_backup = self.state.target() != Target::Own;
        let end = self.state.end();
        self.grant_from = end;
        let stable = self.marks.stable.max(self.state.reigns_from(self.epoch)[0].start).min(end);
        self.water = Watermarks::new(end, stable);
        self.unstable = Unstable::new(stable.next());
        self.marks.clean = None;
        self.save_marks(out);
        self.load(out);
    }

    fn load(&mut self, out: &mut Vec<Output>) {
        if self.unstable.next() <= self.water.head() {
            out.push(Output::Read { conn: OWN, from: self.unstable.next(), bytes_max: READ_BYTES });
        }
    }

    /// Takes back what was read of its own log.
    fn on_loaded(&mut self, now: Time, records: Vec<Record>, out: &mut Vec<Output>) {
        let (mut next, head) = (self.unstable.next(), self.water.head());
        let mut fits = |record: &Record| {
            let fits = record.lsn() == next && next <= head;
            next = if fits { next.next() } else { next };
            fits
        };
        self.unstable.push(records.into_iter().filter(&mut fits).collect(), Vec::new());
        self.load(out);
        self.try_go_on(now, out);
    }

    fn try_go_on(&mut self, now: Time, out: &mut Vec<Output>) {
        let loaded = self.unstable.next() > self.water.head();
        if matches!(self.phase, Phase::Loading) && loaded && self.saved == self.saves {
            let report = Box::new(self.state.start().clone());
            let start = self.state.reigns_from(self.epoch)[0].start;
            out.push(Output::Event(NodeEvent::Opened { report, epoch: self.epoch, start }));
            self.open(now, out);
        }
    }

    /// The epoch this node mints next, above whatever it or the backup promised.
    fn mint(&self, promised: Epoch) -> Epoch {
        self.marks.promised.max(promised).max(self.state.epoch()).successor(self.marks.node, false)
    }

    /// Marks the new epoch durably, with its base.
    fn mark(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        self.marks.promised = epoch;
        self.marks.reign = epoch;
        self.marks.base = self.state.end();
        if rule::on(Rule::CleanMarkErased) {
            self.marks.clean = None;
        }
        let save = self.save_marks(out);
        self.phase = Phase::Marking { epoch, save };
    }

    pub(super) fn on_marks_saved(&mut self, now: Time, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Marking { epoch, save } if self.saved >= save && self.beginning.complete => {
                self.begin_epoch(epoch);
                self.push_status(out);
                let plan = Plan { observed: self.base, ..Plan::default() };
                self.conclude(now, plan, out);
            }
            Phase::Marking { epoch, save } if self.saved >= save => self.begin_recovery(now, epoch, out),
            Phase::Loading => self.try_go_on(now, out),
            Phase::Stopped if self.saved == self.saves => self.on_stop_marked(out),
            _ => {}
        }
    }

    fn begin_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.base = self.state.end();
        self.water = Watermarks::new(self.base, Lsn(0));
        self.released = (Lsn(0), Lsn(0));
        self.unstable = Unstable::new(self.base.next());
        for stream in self.streams.values_mut() {
            stream.attach = None;
        }
        self.attached.clear();
        self.admissions.clear();
    }

    fn begin_recovery(&mut self, now: Time, epoch: Epoch, out: &mut Vec<Output>) {
        self.begin_epoch(epoch);
        let in_sync = self.beginning.in_sync;
        self.phase = Phase::Recovering(Box::new(Recovery::new(&self.state, in_sync, &self.settings, self.policy, now)));
        self.push_status(out);
        self.pump(out);
    }

    /// Whether everybody on the roster has to be heard: not where nothing is held (`Local`), nor where whatever was
    /// acknowledged is in the log of a node that is in sync (`Stable`).
    fn needs_reports(&self) -> bool {
        match self.state.lowest() {
            Level::Local => false,
            Level::Stable => !self.beginning.in_sync,
            Level::Tagged | Level::Covered => true,
        }
    }

    /// The stability target the new reign begins with.
    pub(super) fn target(&self) -> Target {
        self.beginning.target
    }

    /// Moves a running recovery on, from everything that stands now.
    pub(super) fn evaluate(&mut self, now: Time, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::Recovering(_)) {
            return;
        }
        if !self.needs_reports() {
            let plan = Plan { observed: self.base, ..Plan::default() };
            self.conclude(now, plan, out);
            return;
        }
        let Phase::Recovering(recovery) = &mut self.phase else {
            return;
        };
        recovery.stand_by(self.streams.values().any(|stream| stream.greeted && stream.attach.is_none()));
        let next = recovery.evaluate(now, &self.state);
        for (conn, requests, shares) in recovery.pulls() {
            out.push(Output::ToClient(conn, NodeMessage::Pull { epoch: self.epoch, requests, shares }));
        }
        self.on_next(now, next, out);
    }

    pub(super) fn on_judged(&mut self, now: Time, keep: &[bool], out: &mut Vec<Output>) {
        if let Phase::Recovering(recovery) = &mut self.phase {
            let next = recovery.judged(keep, &self.state);
            self.on_next(now, next, out);
        }
    }

    fn on_next(&mut self, now: Time, next: Next, out: &mut Vec<Output>) {
        match next {
            Next::Wait => self.append_ahead(out),
            Next::History(from) => out.push(Output::Read { conn: HISTORY, from, bytes_max: HISTORY_BYTES }),
            Next::Judge { entries, missing } => out.push(Output::Judge { entries, missing }),
            Next::Conclude(plan) => self.conclude(now, plan, out),
        }
    }

    /// Appends the rebuilt entries and the `EpochStart` that carries the report.
    fn conclude(&mut self, now: Time, plan: Plan, out: &mut Vec<Output>) {
        let lsn = Lsn(self.base.0 + plan.records.len() as u64).next();
        let start = EpochStart {
            previous: self.state.epoch(),
            base: self.base,
            observed: plan.observed.max(self.base),
            f: if self.settings.lowest == Level::Covered { self.settings.covering() } else { 0 },
            lowest: self.settings.lowest,
            log_before_send: self.settings.log_before_send,
            target: self.beginning.target,
            policy: plan.policy,
            missing: plan.missing.clone(),
            excluded: plan.excluded.clone(),
            gaps: plan.gaps.clone(),
        };
        assert!(plan.policy.is_some() || plan.gaps.is_empty(), "I10: a gap is somebody's decision");
        let (entries, shares) = plan.decoded;
        if entries > 0 {
            out.push(Output::Event(NodeEvent::Decoded { entries, shares }));
        }
        let start = self.epoch_start_header(now, lsn, self.epoch, Body::EpochStart(Box::new(start)));
        self.phase = Phase::Concluding { start: None };
        self.execute_plan(now, plan, start, out);
    }

    /// The outcome is executed and on its way to the disks.
    pub(super) fn on_concluded(&mut self, now: Time, start: Lsn, out: &mut Vec<Output>) {
        self.phase = Phase::Concluding { start: Some(start) };
        self.pump(out);
        self.try_open(now, out);
    }

    /// Opens once the `EpochStart` is stable: on the own disk, and on the backup's where there is one.
    pub(super) fn try_open(&mut self, now: Time, out: &mut Vec<Output>) {
        let Phase::Concluding { start: Some(start) } = self.phase else {
            return;
        };
        let backed = match self.beginning.target {
            Target::Own => true,
            Target::Backup(_) => self.follower.as_ref().is_some_and(|follower| follower.durable >= start),
        };
        let stable = self.water.logged() >= start && backed;
        if stable || !rule::on(Rule::OpenStableEpoch) {
            let named = matches!(self.beginning.target, Target::Backup(_));
            self.counts_backup = named && self.follower.as_ref().is_some_and(|follower| follower.in_sync);
            // Whatever lies below was made stable with it.
            self.water.stabilize(start);
            self.unstable.release(start);
            if self.logs_first() && self.beginning.target != Target::Own {
                // A restart goes on in this reign only if it knows that it opened.
                self.marks.stable = start;
                self.save_marks(out);
            }
            let report = Box::new(self.state.start().clone());
            out.push(Output::Event(NodeEvent::Opened { report, epoch: self.epoch, start }));
            self.open(now, out);
        }
    }

    fn open(&mut self, now: Time, out: &mut Vec<Output>) {
        assert!(self.state.epoch() == self.epoch, "I7: a reign opens with its own EpochStart in the log");
        self.phase = Phase::Open;
        self.begin_sharing(now);
        self.push_status(out);
        for (client, session) in self.state.sessions() {
            if session.standing == Standing::On && !self.attached.contains_key(client) {
                self.disconnected.insert(*client, now);
            }
        }
        self.keep_house_soon(now);
        self.admit_waiting(now, out);
        self.pump(out);
        self.advance_stable(now, out);
    }

    /// The backup promised the epoch this restarting primary asked for.
    pub(super) fn on_promised(&mut self, now: Time, epoch: Epoch, end: Lsn, last: Epoch, out: &mut Vec<Output>) {
        if end <= self.state.end() && !self.has_prefix(end, last) {
            let why = format!(
                "the backup's log ends at {end} in reign {last}, which is not this log's: one of the two \
                 was restored from somewhere else"
            );
            self.refuse_follower(Error::new(Code::LogDiverged, why), out);
            return;
        }
        self.beginning.complete &= end <= self.state.end();
        self.phase = Phase::Fetching { epoch, end };
        self.on_fetched(now, out);
    }

    /// Records from the backup are in the log: ask for more, or go on once all of them are durable.
    pub(super) fn on_fetched(&mut self, _now: Time, out: &mut Vec<Output>) {
        let Phase::Fetching { epoch, end } = self.phase else {
            return;
        };
        let have = self.state.end();
        if have < end {
            if self.executing.is_none()
                && let Some(follower) = &mut self.follower
                && follower.asked <= have
            {
                follower.asked = have.next();
                let fetch = PrimaryMessage::Fetch { epoch, from: have.next() };
                out.push(Output::ToBackup(follower.conn, fetch));
            }
        } else if self.water.logged() >= have && self.executing.is_none() {
            self.mark(epoch, out);
        }
    }

    pub(super) fn on_records(&mut self, now: Time, of: Epoch, mut records: Vec<Record>, out: &mut Vec<Output>) {
        let Phase::Fetching { epoch, end } = self.phase else {
            return;
        };
        if self.executing.is_some() || of != epoch {
            return;
        }
        records.retain(|record| record.lsn() <= end);
        // What cannot be in this log is the backup's fault, and must not get as far as the state machine.
        let mut trial = self.state.outline();
        let fits = |record: &Record| record.is_intact() && trial.apply_header(&record.entry.header, None).is_ok();
        if records.is_empty() || !records.iter().all(fits) {
            let why = "the backup sent other records than it was asked for, or such as cannot follow this log";
            self.refuse_follower(Error::new(Code::Protocol, why), out);
            return;
        }
        self.execute_fetched(now, records, out);
    }

    pub(super) fn on_read(&mut self, now: Time, conn: Conn, records: Vec<Record>, out: &mut Vec<Output>) {
        if conn == OWN {
            self.on_loaded(now, records, out);
        } else if conn == HISTORY {
            if let Phase::Recovering(recovery) = &mut self.phase {
                recovery.history(records);
            }
        } else {
            self.on_read_for_follower(conn, records, out);
        }
    }

    /// The epoch to ask the backup for.
    pub(super) fn ask_for_promise(&mut self, promised: Epoch, out: &mut Vec<Output>) {
        let epoch = self.mint(promised);
        self.phase = Phase::Promising { epoch };
        if let Some(follower) = &self.follower {
            out.push(Output::ToBackup(follower.conn, PrimaryMessage::Promise { epoch }));
        }
    }

    pub(super) fn recovery_status(&self) -> Option<RecoveryStatus> {
        let phase = match &self.phase {
            Phase::Loading => "loading",
            Phase::Promising { .. } => "promising",
            Phase::Fetching { .. } => "fetching",
            Phase::Marking { .. } => "marking",
            Phase::Concluding { .. } => "concluding",
            Phase::Recovering(recovery) => return Some(recovery.status()),
            _ => return None,
        };
        let base = self.state.end();
        Some(RecoveryStatus { phase: phase.to_owned(), base, observed: base, known: base, ..RecoveryStatus::default() })
    }
}
