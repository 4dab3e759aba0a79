//! The primary: orders writes, tags and answers them, and lets clients release what is stable.
//!
//! Its other halves: [`crate::backup`] follows it, [`crate::client`] holds what it answers. In the submodules:
//!
//! * `reign`: how a reign begins: a promise, a roll call where one is needed, the conclusion, the opening;
//! * `stream`: sessions, their streams, and the frames that go out on them (the manifest rule is there);
//! * `order`: the sequencer: from queued writes to LSNs, execution, the log, and the replies that wait;
//! * `cover`: what clients keep for each other, and the echoes of queries;
//! * `follower`: the replication stream, what is stable, and the grant that makes a backup the stability target.
//!
//! ```text
//!  write ─ queue ─ [budget] ─ LSN ─ execute ─┬─ append ─ logged
//!                                            ├─ replicate ─ stable ─ checkpoint
//!                                            └─ tag, reply when the level is met
//! ```
//!
//! Invariants: I1, I2, I4, I6, I7, I9. Not here: what a report means ([`crate::recovery`]) and any I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::checkpoint::Watermarks;
use crate::error::{Code, Error, Result};
use crate::log::{Body, ClientId, Epoch, Level, Lsn, Target, Time, Unstable};
use crate::message::{FEATURES, NodeMessage, NodeStatus, Role, SessionStatus, Status, VERSION};
use crate::node::{Admin, Conn, Input, NodeEvent, Output, RecoveryPolicy, elapsed};
use crate::ordered::Ordered;
use crate::session::{LogState, Standing};
use crate::store::Marks;

mod ahead;
mod cover;
mod follower;
mod order;
mod reign;
mod stream;

use cover::Sharing;
use follower::Follower;
use order::{Asked, Batch, Proposal, Queued, Reading, Waiting};
use reign::{Beginning, Phase};
use stream::Stream;

pub(crate) use reign::Promoted;
pub(crate) use stream::check_hello;

/// The most failure domains that may be covered for.
const F_MAX: u8 = 16;

/// Whether other clients' data may leave the primary, as shares and custody copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Privacy {
    /// No: nothing is shared, and `Covered` is not to be had.
    #[default]
    Withheld,
    /// Sealed with a key that only the servers have.
    Sealed,
    /// In the clear. The service says that all of its clients may see everything, and trusts what they report.
    Open,
}

/// What becomes of a `Covered` write when too few clients are there to cover it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Uncovered {
    /// It is answered when it is stable; its tag says so.
    #[default]
    WhenStable,
    /// The call is refused at once, with [`Code::Uncovered`]. What was sent before that was known is answered when it is
    /// stable.
    Refuse,
}

/// How a primary behaves. Plain data; every bound is in the unit its name ends in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PrimarySettings {
    /// The failure domain this node runs in. What only clients of the same domain hold is not protected.
    pub domain: String,
    /// Where clients reach this node, told to other clients; may be empty.
    pub endpoint: String,
    /// The lowest level the service accepts. A new value takes effect with the next reign.
    pub lowest: Level,
    /// How many failure domains of clients a `Covered` write survives, lost together with the primary; 0 for no coverage.
    /// A new value takes effect with the next reign.
    pub f: u8,
    /// Whether other clients' data may leave this node, as shares and custody copies.
    pub privacy: Privacy,
    /// What becomes of a `Covered` write when too few clients are there to cover it.
    pub uncovered: Uncovered,
    /// Segments of a stripe, of as many owners; fewer where there are not so many.
    pub stripe_members: usize,
    /// A stripe waits this long for members, at most; and no longer than others wait to be confirmed.
    pub stripe_wait_us: u64,
    /// A client that has not confirmed a share, or the tag of its own entry, for this long is passed over for another, so
    /// that one that sleeps does not hold up what others cover.
    pub confirm_patience_us: u64,
    /// Where *f* is 0: bytes of window shares sent for every 100 bytes written, at most; 0 for none.
    pub window_percent: u32,
    /// When a session breaks, up to this many bytes of what only it held are given to others; 0 for none.
    pub custody_bytes_max: u64,
    /// Open sessions only while a backup is the stability target.
    pub require_backup: bool,
    /// Send nothing of an entry to anyone before it is on the own disk; a restart then needs no roll call.
    pub log_before_send: bool,
    /// Replies wait for the own disk as well.
    pub reply_after_log: bool,
    /// Writes wait while the delta, or what the own disk lacks, exceeds this.
    pub delta_bytes_max: u64,
    /// How many requests of a session may be unanswered at once.
    pub window: u64,
    /// How many bytes of them.
    pub window_bytes: u64,
    /// The largest command or query, in bytes.
    pub command_bytes_max: u64,
    /// Sessions, suspended ones counted in.
    pub sessions_max: usize,
    /// Queries of a stream that may be unanswered at once.
    pub queries_max: usize,
    /// About how many bytes one frame to a client takes; what is more goes into the next. One reply may be larger.
    pub frame_bytes: u64,
    /// Entries ordered in one batch.
    pub batch_max: usize,
    /// The checkpoint is pushed to holders without traffic this often.
    pub checkpoint_every_us: u64,
    /// A session is suspended when it has been disconnected this long, with everything stable.
    pub suspend_after_us: u64,
    /// A suspended session's replies are dropped after this; 0 for never.
    pub expire_after_us: u64,
    /// Bytes on their way to the backup.
    pub replication_window_bytes: u64,
    /// Bytes of payload asked of one client at once in a recovery.
    pub pull_credit_bytes: u64,
    /// Bytes that the decoding of shares may take in a recovery.
    pub decode_bytes_max: u64,
    /// What the recovery after a restart does when somebody does not come.
    pub policy: RecoveryPolicy,
}

impl Default for PrimarySettings {
    fn default() -> Self {
        Self {
            domain: String::new(),
            endpoint: String::new(),
            lowest: Level::Tagged,
            f: 0,
            privacy: Privacy::Withheld,
            uncovered: Uncovered::WhenStable,
            stripe_members: 16,
            stripe_wait_us: 5_000,
            confirm_patience_us: 100_000,
            window_percent: 200,
            custody_bytes_max: 64 << 20,
            require_backup: false,
            log_before_send: false,
            reply_after_log: false,
            delta_bytes_max: 1 << 30,
            window: 1024,
            window_bytes: 16 << 20,
            command_bytes_max: 1 << 20,
            sessions_max: 100_000,
            queries_max: 1024,
            frame_bytes: crate::message::FRAME_BYTES,
            batch_max: 4096,
            checkpoint_every_us: 20_000,
            suspend_after_us: 10_000_000,
            expire_after_us: 7 * 86_400 * 1_000_000,
            replication_window_bytes: 64 << 20,
            pull_credit_bytes: 4 << 20,
            decode_bytes_max: 1 << 30,
            policy: RecoveryPolicy::Wait,
        }
    }
}

impl PrimarySettings {
    /// The settings of a node that has a key to seal shares with, or has none.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if shares are to be sealed without a key.
    #[cfg(feature = "grpc")]
    pub(crate) fn with_key(self, key: bool) -> Result<Self> {
        match self.privacy {
            _ if key => Ok(Self { privacy: Privacy::Sealed, ..self }),
            Privacy::Sealed => Err(Error::new(Code::InvalidArgument, "privacy: sealing needs a share key")),
            Privacy::Withheld | Privacy::Open => Ok(self),
        }
    }

    /// Whether the settings make sense together.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        let wrong = |why: &str| Err(Error::new(Code::InvalidArgument, why));
        match self {
            _ if self.domain.is_empty() => wrong("domain: the primary's failure domain has to be declared"),
            _ if self.lowest == Level::Covered && self.f == 0 => {
                wrong("f: `Covered` has to survive the loss of at least one client")
            }
            _ if self.f > F_MAX => wrong("f: at most 16 failure domains"),
            _ if self.f > 0 && self.privacy == Privacy::Withheld => {
                wrong("f: covering needs a share key, or the word that all clients may see everything")
            }
            _ if self.stripe_wait_us > 1_000_000 => wrong("stripe_wait_us: at most a second"),
            _ if self.confirm_patience_us < 1_000 => wrong("confirm_patience_us: at least a millisecond"),
            _ if !(1..=64).contains(&self.stripe_members) => wrong("stripe_members must lie between 1 and 64"),
            _ if self.window == 0 || self.batch_max == 0 => wrong("window and batch_max must not be 0"),
            _ if self.command_bytes_max == 0 || self.command_bytes_max > u64::from(u32::MAX) => {
                wrong("command_bytes_max must lie between 1 and 4 GiB")
            }
            _ if self.window_bytes < self.command_bytes_max => wrong("window_bytes must hold the largest command"),
            _ if self.delta_bytes_max < self.command_bytes_max => {
                wrong("delta_bytes_max must hold the largest command")
            }
            _ if self.pull_credit_bytes == 0 || self.replication_window_bytes == 0 => {
                wrong("pull_credit_bytes and replication_window_bytes must not be 0")
            }
            _ if self.checkpoint_every_us == 0 => wrong("checkpoint_every_us must not be 0"),
            _ => Ok(()),
        }
    }
}

/// The core of a primary, from the start of its recovery to its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Primary {
    settings: PrimarySettings,
    /// As last asked to be saved.
    marks: Marks,
    saves: u64,
    saved: u64,
    state: LogState,
    epoch: Epoch,
    base: Lsn,
    phase: Phase,
    beginning: Beginning,
    policy: RecoveryPolicy,
    water: Watermarks,
    unstable: Unstable,
    /// What the own disk lacks: LSN and cost.
    unlogged: VecDeque<(Lsn, u64)>,
    unlogged_bytes: u64,
    ahead: ahead::Ahead,

    proposals: VecDeque<Proposal>,
    in_flight: BTreeSet<ClientId>,
    writes: VecDeque<Queued>,
    asked: VecDeque<Asked>,
    executing: Option<Batch>,
    replies: Ordered<Lsn, Waiting>,
    /// How many of them wait for the backup.
    stable_replies: u64,
    /// In the order of their LSNs.
    reads: VecDeque<Reading>,
    /// Replies that waited for the own disk, and for coverage, were released up to here.
    released: (Lsn, Lsn),

    streams: BTreeMap<Conn, Stream>,
    attached: BTreeMap<ClientId, Conn>,
    /// The newest incarnation that was welcomed, where the log knows an older one.
    incarnations: BTreeMap<ClientId, u64>,
    /// Attached, and not welcome yet.
    admissions: BTreeSet<ClientId>,
    /// Sessions whose end is logged and not yet stable.
    departing: BTreeMap<ClientId, Lsn>,
    /// Sessions that asked for their end, and are needed by others still.
    closers: BTreeSet<ClientId>,
    /// Sessions an operator ends as soon as they are drained.
    ending: BTreeSet<ClientId>,
    /// Sessions on the roster without a stream, and since when.
    disconnected: BTreeMap<ClientId, Time>,
    dirty: BTreeSet<Conn>,

    sharing: Option<Sharing>,
    follower: Option<Follower>,
    /// Only the backup's acknowledgements move `stable`: the grant was sent.
    counts_backup: bool,
    /// The backup has to have this before it is granted: a restart in the same reign knows a lower bound of what was stable
    /// on the own disk before, and acknowledged.
    grant_from: Lsn,
    config_proposed: bool,
    config_lsn: Lsn,
    /// Some session may stand since a later entry than the checkpoint that is marked.
    admitting: bool,

    checkpoint_due: Option<Time>,
    housekeeping_due: Option<Time>,
    failure: Option<Error>,
}

impl Primary {
    /// Takes one input and pushes what has to be done about it, in order.
    pub fn step(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Halted) {
            return;
        }
        if let Some(sharing) = &mut self.sharing {
            sharing.cover.pass(now);
        }
        match input {
            Input::Client(conn, message) => self.on_client(now, conn, message, out),
            Input::FromBackup(conn, message) => self.on_backup(now, conn, message, out),
            Input::Gone(conn) => self.on_gone(now, conn),
            Input::Persisted(upto) => self.on_persisted(now, upto, out),
            Input::MarksSaved(saved) => {
                self.saved = self.saved.max(saved);
                self.on_marks_saved(now, out);
            }
            Input::Executed { replies, results } => self.on_executed(now, replies, results, out),
            Input::Read { conn, records } => self.on_read(now, conn, records, out),
            Input::Judged(keep) => self.on_judged(now, &keep, out),
            Input::Flush => self.flush(now, out),
            Input::Tick => self.on_tick(now, out),
            Input::Admin(admin) => self.on_admin(now, admin, out),
            // A node that was promoted may still get what its old link had under way.
            Input::Linked(conn) | Input::FromPrimary(conn, _) => out.push(Output::Close(conn)),
        }
        self.check();
    }

    /// The batched work: what was gathered since the last flush is ordered, answered and replicated together.
    fn flush(&mut self, now: Time, out: &mut Vec<Output>) {
        self.evaluate(now, out);
        if matches!(self.phase, Phase::Open | Phase::Stopping) {
            self.order(now, out);
            self.settle_cover(now, out);
            self.pump(out);
            self.write_frames(out);
            self.check_stopped(out);
        }
    }

    /// When to call [`step`](Primary::step) with a `Tick` though nothing else happens.
    pub fn next_timeout(&self) -> Option<Time> {
        let recovery = match &self.phase {
            Phase::Recovering(recovery) => recovery.next_timeout(),
            _ => None,
        };
        [recovery, self.checkpoint_due, self.housekeeping_due, self.cover_timeout()].into_iter().flatten().min()
    }

    /// The settings.
    pub fn settings(&self) -> &PrimarySettings {
        &self.settings
    }

    /// What the log says, at its head.
    pub fn state(&self) -> &LogState {
        &self.state
    }

    /// The watermarks of this reign.
    pub fn watermarks(&self) -> &Watermarks {
        &self.water
    }

    /// The reign.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The marks as last asked to be saved.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The entries above the checkpoint.
    pub fn unstable(&self) -> &Unstable {
        &self.unstable
    }

    fn on_admin(&mut self, now: Time, admin: Admin, out: &mut Vec<Output>) {
        let wrong = |why: &str| Err(Error::new(Code::InvalidArgument, why));
        let done = match (admin, &mut self.phase) {
            (Admin::Promote { .. }, _) => wrong("this node is the primary already, or about to be"),
            (Admin::Resolve(policy), Phase::Recovering(recovery)) => {
                recovery.resolve(policy);
                Ok(())
            }
            (Admin::Exclude(client), Phase::Recovering(recovery)) => {
                recovery.exclude(client);
                Ok(())
            }
            (Admin::Resolve(_) | Admin::Exclude(_), Phase::Promising { .. } | Phase::Fetching { .. }) => {
                let why = "the backup has to promise the new epoch first, for it may have more of the log than this node: \
                           start it and connect it; if this node is lost for good instead, promote the backup";
                Err(Error::new(Code::BackupUnavailable, why))
            }
            (Admin::Resolve(_) | Admin::Exclude(_), _) => wrong("no recovery is running"),
            (Admin::EndSession(client), Phase::Open) if self.state.session(client).is_some() => {
                self.ending.insert(client);
                self.retire(client);
                self.keep_house(now, out);
                Ok(())
            }
            (Admin::EndSession(_), Phase::Open) => wrong("no such session"),
            (Admin::EndSession(_), _) => wrong("the node is not open"),
            (Admin::Stop, Phase::Open) => {
                self.phase = Phase::Stopping;
                self.writes.clear();
                self.asked.clear();
                self.check_stopped(out);
                Ok(())
            }
            // It is under way, and says so itself when it is done.
            (Admin::Stop, Phase::Stopping | Phase::Stopped) => Ok(()),
            (Admin::Stop, _) => {
                out.push(Output::Event(NodeEvent::Stopped(false)));
                Ok(())
            }
        };
        out.push(Output::AdminDone(done));
    }

    fn on_tick(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.checkpoint_due.is_some_and(|at| now >= at) {
            self.checkpoint_due = None;
            self.push_checkpoints();
        }
        if self.housekeeping_due.is_some_and(|at| now >= at) {
            self.keep_house(now, out);
        }
    }

    /// Suspends, expires and ends sessions whose time has come.
    fn keep_house(&mut self, now: Time, out: &mut Vec<Output>) {
        self.housekeeping_due = None;
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        let mut due = Vec::new();
        let stable = self.water.stable();
        for (client, session) in self.state.sessions() {
            let busy = self.in_flight.contains(client) || self.is_executing(*client);
            let drained = session.last <= stable || !crate::rule::on(crate::rule::Rule::SuspendDrained);
            let drained = drained && self.needed_until(*client) <= stable;
            let old = self.settings.expire_after_us;
            let body = match session.standing {
                _ if busy || !drained => None,
                _ if self.ending.contains(client) => Some(Body::Expire),
                Standing::On => {
                    let since = self.disconnected.get(client);
                    since.filter(|since| elapsed(**since, now) >= self.settings.suspend_after_us).map(|_| Body::Suspend)
                }
                Standing::Suspended if old > 0 && elapsed(session.since_time, now) >= old => Some(Body::Expire),
                Standing::Suspended | Standing::Absent => None,
            };
            due.extend(body.map(|body| (*client, body)));
        }
        for (client, body) in due {
            if body == Body::Expire {
                self.ending.remove(&client);
                self.detach(client, out);
                self.leave_cover(client);
            }
            self.disconnected.remove(&client);
            self.propose(client, body);
        }
        let suspended = self.state.sessions().values().any(|session| session.standing == Standing::Suspended);
        if !self.disconnected.is_empty() || !self.ending.is_empty() {
            self.housekeeping_due = Some(now.after((self.settings.suspend_after_us / 4).clamp(1_000, 1_000_000)));
        } else if suspended && self.settings.expire_after_us > 0 {
            self.housekeeping_due =
                Some(now.after((self.settings.expire_after_us / 4).clamp(1_000_000, 3_600_000_000)));
        }
    }

    fn keep_house_soon(&mut self, now: Time) {
        let at = now.after((self.settings.suspend_after_us / 4).clamp(1_000, 1_000_000));
        self.housekeeping_due = Some(self.housekeeping_due.map_or(at, |due| due.min(at)));
    }

    /// Learns of a higher epoch: acknowledges nothing any more.
    fn depose(&mut self, higher: Epoch, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Deposed | Phase::Halted) {
            return;
        }
        let why = format!(
            "epoch {higher} has begun; this node was primary of {} and its log may hold a tail that did \
             not survive: keep its directory, and attach a new backup",
            self.epoch
        );
        self.failure = Some(Error::new(Code::Deposed, why));
        self.phase = Phase::Deposed;
        out.push(Output::Event(NodeEvent::Deposed(higher)));
        self.writes.clear();
        self.asked.clear();
        self.reads.clear();
        self.dirty.clear();
        let status = self.wire_status();
        for conn in std::mem::take(&mut self.streams).into_keys() {
            out.push(Output::ToClient(conn, NodeMessage::Status(status.clone())));
            out.push(Output::Close(conn));
        }
        self.attached.clear();
        self.admissions.clear();
        self.sharing = None;
        if let Some(follower) = self.follower.take() {
            out.push(Output::Close(follower.conn));
        }
    }

    /// Stops serving, because of our own disk or state machine.
    fn halt(&mut self, error: Error, out: &mut Vec<Output>) {
        self.failure = Some(error.clone());
        self.phase = Phase::Halted;
        self.dirty.clear();
        out.push(Output::Halt(error));
    }

    fn save_marks(&mut self, out: &mut Vec<Output>) -> u64 {
        self.saves += 1;
        out.push(Output::SaveMarks(self.marks.clone()));
        self.saves
    }

    fn role(&self) -> Role {
        match self.phase {
            Phase::Open => Role::Primary,
            Phase::Deposed => Role::Deposed,
            Phase::Stopping | Phase::Stopped | Phase::Halted => Role::Stopped,
            _ => Role::Recovering,
        }
    }

    fn wire_status(&self) -> Status {
        let backup = self.follower.as_ref().map(|follower| follower.endpoint.clone());
        let endpoints = [Some(self.settings.endpoint.clone()), backup];
        Status {
            version: VERSION,
            features: FEATURES,
            cluster: self.marks.cluster,
            group: self.marks.group,
            node: self.marks.node,
            domain: self.settings.domain.clone(),
            role: self.role(),
            epoch: self.epoch,
            endpoints: endpoints.into_iter().flatten().filter(|endpoint| !endpoint.is_empty()).collect(),
        }
    }

    /// Tells every stream what this node is now.
    fn push_status(&self, out: &mut Vec<Output>) {
        let status = self.wire_status();
        for (conn, stream) in &self.streams {
            if stream.greeted {
                out.push(Output::ToClient(*conn, NodeMessage::Status(status.clone())));
            }
        }
    }

    /// What the node is doing, for operators.
    pub fn status(&self, now: Time) -> NodeStatus {
        let mut held: BTreeMap<ClientId, (u64, u64)> = BTreeMap::new();
        for record in self.unstable.iter() {
            if let Some(origin) = record.entry.header.origin {
                let (entries, bytes) = held.entry(origin.client).or_default();
                *entries += 1;
                *bytes += record.cost();
            }
        }
        let cover = self.sharing.as_ref().map(|sharing| &sharing.cover);
        let (shares, share_bytes) = cover.map_or((0, 0), |cover| cover.held());
        let counts = cover.map(|cover| cover.counts()).unwrap_or_default();
        let sessions = self.state.sessions().iter().map(|(client, session)| {
            let (held_entries, held_bytes) = held.get(client).copied().unwrap_or_default();
            SessionStatus {
                client: *client,
                domain: session.info.domain.clone(),
                role: session.info.role,
                state: session.standing.name().to_owned(),
                connected: self.attached.contains_key(client),
                last: session.last,
                held_entries,
                held_bytes,
                share_bytes: cover.map_or(0, |cover| cover.held_by(*client)),
            }
        });
        let oldest = self.unstable.get(self.unstable.first()).map(|record| record.entry.header.time);
        NodeStatus {
            status: self.wire_status(),
            head: self.water.head(),
            logged: self.water.logged(),
            stable: self.water.stable(),
            covered: self.water.covered(),
            f: self.settings.covering(),
            short: self.sharing.as_ref().is_some_and(Sharing::is_short),
            shares,
            share_bytes,
            covered_entries: counts.covered,
            fill_us: counts.fill_us,
            confirm_us: counts.confirm_us,
            target: self.state.target(),
            delta_entries: self.unstable.len() as u64,
            delta_bytes: self.unstable.bytes(),
            delta_age_us: oldest.map_or(0, |time| elapsed(time, now)),
            waiting_writes: self.writes.len() as u64,
            in_sync: self.follower.as_ref().is_some_and(|follower| follower.in_sync)
                && self.state.target() != Target::Own,
            connected: self.follower.is_some(),
            sessions: sessions.collect(),
            recovery: self.recovery_status(),
            failure: self.failure.clone(),
        }
    }

    /// Asserts what must hold between steps.
    fn check(&self) {
        self.water.check();
        assert_eq!(self.water.head(), self.state.end(), "the log's state is at its head");
        // While the log is read back, its unstable part is not complete yet (and is not any more, if that was cut short).
        let complete = !matches!(self.phase, Phase::Loading | Phase::Deposed);
        assert!(self.unstable.next() == self.water.head().next() || !complete, "the unstable log ends at the head");
        assert!(
            self.unstable.first() > self.water.stable() || self.unstable.is_empty(),
            "I9: what is stable is released"
        );
        self.check_cover();
        let stable = || self.replies.values().filter(|waiting| waiting.level == Level::Stable).count() as u64;
        debug_assert_eq!(self.stable_replies, stable());
        assert!(self.saved <= self.saves, "marks saved that nobody asked for");
        debug_assert!(self.attached.iter().all(|(_, conn)| self.streams.contains_key(conn)));
        debug_assert!(self.admissions.iter().all(|client| self.attached.contains_key(client)));
    }
}
