//! The backup: makes the log durable in order, acknowledges, applies, and is promoted when the primary is lost.
//!
//! Its other half is [`crate::primary`] (the module on following). What is durable is acknowledged at once, and
//! applied behind that, off the path of the acknowledgement. Records of a reign whose `EpochStart` has not come yet
//! are provisional past that reign's base: they are kept on disk and acknowledged, but not applied, so that going
//! back to the base never has to undo anything.
//!
//! Invariants: I1 (its log is a prefix of the log of the primary of the same epoch), I7 (a promise is durable before
//! anything of the new epoch leaves; older epochs are refused).

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::{Code, Error, Result};
use crate::log::{Body, ClusterId, Commands, Epoch, GroupId, Lsn, Record, Records, Tail, Target, Time};
use crate::message::{
    BackupMessage, ClientMessage, FEATURES, NodeMessage, NodeStatus, PeerHello, PrimaryMessage, Role, SessionStatus,
    Status, VERSION,
};
use crate::node::{Admin, Conn, Input, Output, RecoveryPolicy, elapsed};
use crate::primary::{Primary, PrimarySettings, Promoted, check_hello};
use crate::rule::{self, Rule};
use crate::session::LogState;
use crate::store::Marks;

/// Records applied at once.
const APPLY_MAX: usize = 4096;

/// How a backup behaves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct BackupSettings {
    /// The failure domain this node runs in.
    pub domain: String,
    /// Where clients reach this node, told to other clients; may be empty.
    pub endpoint: String,
    /// How it behaves once it is promoted.
    pub primary: PrimarySettings,
}

/// The stream to the primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Link {
    conn: Conn,
    /// The hello was sent: it says where the log ends, so it waits until everything appended is durable.
    greeted: bool,
    welcomed: bool,
    /// An epoch was asked for; answered when this save is durable and everything appended is.
    promise: Option<(Epoch, u64)>,
    /// The reign whose frames come.
    epoch: Option<Epoch>,
    echo: u64,
    acknowledged: (Lsn, u64, bool),
}

/// A promotion on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Promotion {
    force: bool,
    policy: RecoveryPolicy,
    /// The save that makes the promise durable, once everything appended is.
    save: Option<u64>,
    done: bool,
}

/// The core of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backup {
    settings: BackupSettings,
    marks: Marks,
    saves: u64,
    saved: u64,
    /// Applied.
    state: LogState,
    appended: Lsn,
    durable: Lsn,
    /// What the log says at its end, without the replies: what cannot follow it is refused before it is appended.
    tip: LogState,
    /// Appended and not applied yet.
    behind: Tail,
    executing: usize,
    /// The in-sync mark is durable.
    in_sync: bool,
    /// The highest epoch that is promised durably: what others are told.
    promised: Epoch,
    stable: Lsn,
    link: Option<Link>,
    primary_endpoint: String,
    promotion: Option<Promotion>,
    /// Client streams whose hello was accepted.
    streams: BTreeSet<Conn>,
    failure: Option<Error>,
}

impl Backup {
    /// A backup that starts on its own log, cut to where it is certain. In a new one `marks` name only the node.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if the settings make no sense, or if this log's node is the primary of its reign.
    pub fn new(
        settings: BackupSettings,
        marks: Marks,
        state: LogState,
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<Self> {
        let _ = (now, out);
        settings.primary.validate()?;
        if settings.domain.is_empty() {
            return Err(Error::new(Code::InvalidArgument, "domain: the backup's failure domain has to be declared"));
        }
        if marks.promised.node == marks.node && marks.promised != Epoch::ZERO {
            let why = format!("this node minted epoch {}: start it as a primary, and it will recover", marks.promised);
            return Err(Error::new(Code::InvalidArgument, why));
        }
        Ok(Self {
            settings,
            in_sync: marks.in_sync,
            promised: marks.promised,
            marks,
            saves: 0,
            saved: 0,
            appended: state.end(),
            durable: state.end(),
            behind: Tail::new(state.end().next()),
            tip: state.outline(),
            state,
            executing: 0,
            stable: Lsn(0),
            link: None,
            primary_endpoint: String::new(),
            promotion: None,
            streams: BTreeSet::new(),
            failure: None,
        })
    }

    /// Takes one input and pushes what has to be done about it, in order.
    pub fn step(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        let _ = now;
        if self.failure.is_some() && !matches!(input, Input::Client(..) | Input::Admin(_)) {
            return;
        }
        match input {
            Input::Client(conn, message) => self.on_client(conn, message, out),
            Input::Linked(conn) => self.on_linked(conn, out),
            Input::FromPrimary(conn, message) => self.on_primary(conn, message, out),
            Input::FromBackup(conn, _) => {
                let why = Error::new(Code::NotPrimary, "this node is a backup itself");
                out.push(Output::ToBackup(conn, PrimaryMessage::Refused(why)));
                out.push(Output::Close(conn));
            }
            Input::Gone(conn) => {
                self.streams.remove(&conn);
                if self.link.as_ref().is_some_and(|link| link.conn == conn) {
                    self.link = None;
                }
            }
            Input::Persisted(upto) => {
                // After a cut, the word on what is gone may still be under way.
                self.durable = self.durable.max(upto.min(self.appended));
            }
            Input::MarksSaved(saved) => {
                self.saved = self.saved.max(saved);
                if self.saved == self.saves {
                    self.in_sync = self.marks.in_sync;
                    self.promised = self.marks.promised;
                }
            }
            Input::Executed { replies, .. } => self.on_executed(replies, out),
            Input::Read { conn, records } => self.on_read(conn, records, out),
            Input::Judged(_) | Input::Tick | Input::Flush => {}
            Input::Admin(admin) => self.on_admin(admin, out),
        }
        self.greet(out);
        self.execute(out);
        self.answer_promise(out);
        self.acknowledge(out);
        self.go_on_promoting(out);
        self.check();
    }

    /// When to call [`step`](Backup::step) though nothing happens: never.
    pub fn next_timeout(&self) -> Option<Time> {
        None
    }

    /// What the log says, as far as it is applied.
    pub fn state(&self) -> &LogState {
        &self.state
    }

    /// The last durable LSN.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The marks as last asked to be saved.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The settings.
    pub fn settings(&self) -> &BackupSettings {
        &self.settings
    }

    fn save_marks(&mut self, out: &mut Vec<Output>) -> u64 {
        self.saves += 1;
        out.push(Output::SaveMarks(self.marks.clone()));
        self.saves
    }

    fn on_linked(&mut self, conn: Conn, out: &mut Vec<Output>) {
        if self.promotion.is_some() {
            out.push(Output::Close(conn));
            return;
        }
        if let Some(old) = self.link.take() {
            out.push(Output::Close(old.conn));
        }
        self.link = Some(Link {
            conn,
            greeted: false,
            welcomed: false,
            promise: None,
            epoch: None,
            echo: 0,
            acknowledged: (Lsn(0), 0, false),
        });
    }

    fn greet(&mut self, out: &mut Vec<Output>) {
        let settled = self.durable == self.appended;
        let last = self.epoch_at_durable();
        let Some(link) = self.link.as_mut().filter(|link| !link.greeted && settled) else {
            return;
        };
        link.greeted = true;
        let known = self.marks.cluster != ClusterId(0);
        let hello = PeerHello {
            version: VERSION,
            features: FEATURES,
            cluster: known.then_some(self.marks.cluster),
            group: known.then_some(self.marks.group),
            node: self.marks.node,
            domain: self.settings.domain.clone(),
            endpoint: self.settings.endpoint.clone(),
            end: self.durable,
            last,
            promised: self.marks.promised,
            in_sync: self.in_sync,
        };
        out.push(Output::ToPrimary(link.conn, BackupMessage::Hello(hello)));
    }

    /// The reign of the last `EpochStart` that is durable.
    fn epoch_at_durable(&self) -> Epoch {
        self.tip.epoch_at(self.durable)
    }

    fn on_primary(&mut self, conn: Conn, message: PrimaryMessage, out: &mut Vec<Output>) {
        if self.link.as_ref().is_none_or(|link| link.conn != conn) || self.promotion.is_some() {
            out.push(Output::Close(conn));
            return;
        }
        let done = match message {
            PrimaryMessage::Welcome { version, cluster, group, endpoint, .. } => {
                self.on_welcome(version, cluster, group, endpoint, out)
            }
            PrimaryMessage::Refused(error) => {
                self.unlink(out);
                // A log that cannot follow will not follow later: say so until somebody acts.
                out.push(Output::Event(crate::node::NodeEvent::Refused(error)));
                Ok(())
            }
            _ if !self.link.as_ref().is_some_and(|link| link.welcomed) => {
                Err(Error::new(Code::Protocol, "the first message of a primary is a welcome"))
            }
            PrimaryMessage::Promise { epoch } => self.on_promise(epoch, out),
            PrimaryMessage::Fetch { epoch, from } => self.on_fetch(conn, epoch, from, out),
            PrimaryMessage::Append { epoch, base, stable, echo, records } => {
                self.on_append(epoch, base, stable, echo, records, out)
            }
            PrimaryMessage::Grant { epoch } => self.on_grant(epoch, out),
        };
        if let Err(error) = done {
            out.push(Output::ToPrimary(conn, BackupMessage::Failed(error)));
            self.unlink(out);
        }
    }

    fn unlink(&mut self, out: &mut Vec<Output>) {
        if let Some(link) = self.link.take() {
            out.push(Output::Close(link.conn));
        }
    }

    fn on_welcome(
        &mut self,
        version: u32,
        cluster: ClusterId,
        group: GroupId,
        endpoint: String,
        out: &mut Vec<Output>,
    ) -> Result<()> {
        if version != VERSION {
            let why = format!("this backup speaks version {VERSION}, the primary {version}");
            return Err(Error::new(Code::WrongVersion, why));
        }
        if self.marks.cluster == ClusterId(0) {
            self.marks.cluster = cluster;
            self.marks.group = group;
            self.save_marks(out);
        } else if (self.marks.cluster, self.marks.group) != (cluster, group) {
            let why = format!("this log belongs to group {} of cluster {}", self.marks.group, self.marks.cluster);
            return Err(Error::new(Code::WrongCluster, why));
        }
        if let Some(link) = &mut self.link {
            link.welcomed = true;
        }
        self.primary_endpoint = endpoint;
        Ok(())
    }

    fn refuse_older(&self, epoch: Epoch) -> Result<()> {
        if epoch >= self.marks.promised || !rule::on(Rule::RefuseOldEpoch) {
            return Ok(());
        }
        let why = format!("epoch {epoch} is over: this backup promised {}", self.marks.promised);
        Err(Error::new(Code::Deposed, why))
    }

    /// Whether what was appended past the base is of a reign whose `EpochStart` has not come.
    fn is_provisional(&self) -> bool {
        self.marks.reign != self.tip.epoch() && self.marks.reign != Epoch::ZERO && rule::on(Rule::BackToBase)
    }

    /// Cuts what was appended past the base of a reign whose `EpochStart` never came.
    fn go_back_to_base(&mut self, out: &mut Vec<Output>) -> Result<()> {
        let base = self.marks.base;
        if !self.is_provisional() || self.appended <= base {
            return Ok(());
        }
        if self.durable != self.appended {
            // Word of a sync under way would be taken for what comes after the cut. Nobody asks for this who waited
            // for the hello.
            return Err(Error::new(Code::Protocol, "another reign on a stream whose records are not all durable yet"));
        }
        assert!(self.state.end() <= base, "nothing provisional is applied");
        out.push(Output::Truncate(base));
        self.behind.truncate_after(base);
        self.appended = base;
        self.durable = base;
        self.rebuild_tip();
        Ok(())
    }

    fn rebuild_tip(&mut self) {
        self.tip = self.state.outline();
        for record in self.behind.iter() {
            self.tip.apply_header(&record.entry.header, None).expect("it was applied when it came");
        }
    }

    /// A restarting primary asks for a new epoch.
    fn on_promise(&mut self, epoch: Epoch, out: &mut Vec<Output>) -> Result<()> {
        self.refuse_older(epoch)?;
        self.go_back_to_base(out)?;
        self.marks.promised = self.marks.promised.max(epoch);
        let save = self.save_marks(out);
        if let Some(link) = &mut self.link {
            link.promise = Some((epoch, save));
        }
        Ok(())
    }

    fn answer_promise(&mut self, out: &mut Vec<Output>) {
        let (durable, last) = (self.durable, self.epoch_at_durable());
        let settled = durable == self.appended;
        let Some(link) = &mut self.link else { return };
        if let Some((epoch, save)) = link.promise
            && ((self.saved >= save && settled) || !rule::on(Rule::PromiseDurable))
        {
            link.promise = None;
            out.push(Output::ToPrimary(link.conn, BackupMessage::Promised { epoch, end: durable, last }));
        }
    }

    fn on_fetch(&mut self, conn: Conn, epoch: Epoch, from: Lsn, out: &mut Vec<Output>) -> Result<()> {
        if epoch != self.marks.promised {
            let why = format!("a fetch in epoch {epoch}, which was not promised");
            return Err(Error::new(Code::WrongEpoch, why));
        }
        out.push(Output::Read { conn, from, bytes_max: 1 << 20 });
        Ok(())
    }

    fn on_read(&mut self, conn: Conn, mut records: Vec<Record>, out: &mut Vec<Output>) {
        records.retain(|record| record.lsn() <= self.durable);
        if self.link.as_ref().is_some_and(|link| link.conn == conn) {
            out.push(Output::ToPrimary(conn, BackupMessage::Records { epoch: self.marks.promised, records }));
        }
    }

    fn on_append(
        &mut self,
        epoch: Epoch,
        base: Lsn,
        stable: Lsn,
        echo: u64,
        records: Records,
        out: &mut Vec<Output>,
    ) -> Result<()> {
        self.refuse_older(epoch)?;
        if self.marks.reign != epoch {
            // The first frame of a reign: what an older, unfinished one left behind goes first. What remains was
            // certain before, though it may lie past this reign's base.
            self.go_back_to_base(out)?;
            if self.marks.reign.node != epoch.node {
                // A node that takes over begins without a backup: what this one was in sync with is over.
                self.marks.in_sync = false;
                self.in_sync = false;
            }
            self.marks.promised = self.marks.promised.max(epoch);
            self.marks.reign = epoch;
            self.marks.base = base.max(self.appended);
            self.save_marks(out);
        }
        self.check_records(epoch, &records)?;
        if !records.is_empty() {
            self.behind.push(records.clone());
            self.appended = self.behind.next().prev();
            out.push(Output::Append(records));
        }
        self.stable = self.stable.max(stable);
        if let Some(link) = &mut self.link {
            link.epoch = Some(epoch);
            link.echo = link.echo.max(echo);
        }
        Ok(())
    }

    /// Takes the records' headers into the tip: all of them, or none.
    fn check_records(&mut self, epoch: Epoch, records: &[Record]) -> Result<()> {
        let mut wrong = records.iter().find(|record| !record.is_intact() || record.entry.header.epoch > epoch);
        if wrong.is_none() {
            wrong = records.iter().find(|record| self.tip.apply_header(&record.entry.header, None).is_err());
            if wrong.is_some() {
                self.rebuild_tip();
            }
        }
        let Some(record) = wrong else { return Ok(()) };
        let next = self.appended.next();
        let why = format!("record {} is damaged, or cannot follow in this log, where {next} is next", record.lsn());
        Err(Error::new(Code::Protocol, why))
    }

    fn on_grant(&mut self, epoch: Epoch, out: &mut Vec<Output>) -> Result<()> {
        self.refuse_older(epoch)?;
        if self.link.as_ref().is_none_or(|link| link.epoch != Some(epoch)) {
            return Err(Error::new(Code::Protocol, format!("a grant in epoch {epoch} before any frame of it")));
        }
        self.marks.in_sync = true;
        self.save_marks(out);
        if let Some(link) = &mut self.link {
            // A grant is answered, even where an older one was marked before: the primary waits for it.
            link.acknowledged.2 = false;
        }
        Ok(())
    }

    /// Says what is durable, whenever that is news.
    fn acknowledge(&mut self, out: &mut Vec<Output>) {
        let (in_sync, marked) = (self.in_sync, self.saved == self.saves);
        let durable = if rule::on(Rule::AckDurable) { self.durable } else { self.appended };
        let Some(link) = &mut self.link else { return };
        let Some(epoch) = link.epoch else { return };
        let news = (durable, link.echo, in_sync);
        if marked && link.promise.is_none() && news != link.acknowledged {
            link.acknowledged = news;
            let ack = BackupMessage::Ack { epoch, durable, echo: link.echo, in_sync };
            out.push(Output::ToPrimary(link.conn, ack));
        }
    }

    /// How far the log may be applied: what is durable, and not provisional.
    fn certain(&self) -> Lsn {
        let known = self.marks.reign == self.tip.epoch() || self.marks.reign == Epoch::ZERO;
        if known { self.durable } else { self.durable.min(self.marks.base) }
    }

    fn execute(&mut self, out: &mut Vec<Output>) {
        let certain = self.certain();
        if self.executing > 0 {
            return;
        }
        let mut ready = Vec::new();
        let mut from = self.behind.first();
        while from <= certain && self.executing < APPLY_MAX {
            let room =
                (APPLY_MAX - self.executing).min(usize::try_from(certain.next().0 - from.0).unwrap_or(usize::MAX));
            let run = self.behind.read(from, u64::MAX, room);
            if run.is_empty() {
                break;
            }
            from = Lsn(from.0 + run.len() as u64);
            self.executing += run.len();
            ready.push(run);
        }
        let commands = Commands::of(ready);
        if self.executing > 0 && commands.is_empty() {
            self.on_executed(Vec::new(), out);
            self.execute(out);
        } else if self.executing > 0 {
            out.push(Output::Execute { commands, queries: Vec::new() });
        }
    }

    fn on_executed(&mut self, replies: Vec<Bytes>, out: &mut Vec<Output>) {
        let mut replies = replies.into_iter();
        for _ in 0..std::mem::take(&mut self.executing) {
            let Some(record) = self.behind.get(self.state.end().next()) else {
                break;
            };
            let reply = (record.entry.header.body == Body::Command).then(|| replies.next().unwrap_or_default());
            if let Err(error) = self.state.apply(record, reply) {
                self.fail(error, out);
                break;
            }
        }
        self.behind.release(self.state.end());
    }

    /// The log is safe on disk; the state computed from it is not to be trusted.
    fn fail(&mut self, error: Error, out: &mut Vec<Output>) {
        if let Some(link) = self.link.take() {
            out.push(Output::ToPrimary(link.conn, BackupMessage::Failed(error.clone())));
            out.push(Output::Close(link.conn));
        }
        self.failure = Some(error.clone());
        out.push(Output::Halt(error));
    }

    fn on_admin(&mut self, admin: Admin, out: &mut Vec<Output>) {
        let done = match admin {
            Admin::Promote { force, policy } => self.promote(force, policy, out),
            Admin::Stop => {
                self.unlink(out);
                out.push(Output::Event(crate::node::NodeEvent::Stopped(false)));
                Ok(())
            }
            Admin::Resolve(_) | Admin::Exclude(_) | Admin::EndSession(_) => {
                Err(Error::new(Code::NotPrimary, "this node is a backup; promote it first, or ask the primary"))
            }
        };
        out.push(Output::AdminDone(done));
    }

    fn promote(&mut self, force: bool, policy: RecoveryPolicy, out: &mut Vec<Output>) -> Result<()> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        if self.promotion.is_some() {
            return Err(Error::new(Code::InvalidArgument, "the promotion is under way already"));
        }
        if self.state.epoch() == Epoch::ZERO {
            return Err(Error::new(Code::NotInSync, "this backup never followed anybody: there is nothing to promote"));
        }
        if !self.in_sync && !force && rule::on(Rule::InSyncOnly) {
            let why = "this backup was never in sync with its primary, so acknowledged writes may be missing: promote it \
                       by force only if the primary is lost for good";
            return Err(Error::new(Code::NotInSync, why));
        }
        self.unlink(out);
        self.promotion = Some(Promotion { force, policy, save: None, done: false });
        Ok(())
    }

    /// Promotes: everything appended is made durable, what is provisional is cut, and then the promise, with the
    /// base, is made durable before anything of the new epoch leaves.
    fn go_on_promoting(&mut self, out: &mut Vec<Output>) {
        let Some(promotion) = self.promotion.clone().filter(|promotion| !promotion.done) else {
            return;
        };
        match promotion.save {
            None if self.durable == self.appended => {
                self.go_back_to_base(out).expect("everything appended is durable");
                let force = promotion.force && !self.in_sync;
                let epoch = self.marks.promised.max(self.tip.epoch()).successor(self.marks.node, force);
                self.marks.promised = epoch;
                self.marks.reign = epoch;
                self.marks.base = self.appended;
                let save = self.save_marks(out);
                self.promotion = Some(Promotion { save: Some(save), ..promotion });
                self.go_on_promoting(out);
            }
            // The promised reign has no `EpochStart` yet, but everything below its base is certain.
            Some(save)
                if (self.saved >= save || !rule::on(Rule::PromiseDurable))
                    && self.state.end() == self.appended
                    && self.executing == 0 =>
            {
                self.promotion = Some(Promotion { done: true, ..promotion });
                out.push(Output::Promote);
            }
            _ => {}
        }
    }

    /// The core of the primary this backup becomes. To be called when [`Output::Promote`] was carried out: the
    /// promise is durable then. Client streams go over to it.
    ///
    /// # Panics
    /// If nothing was promoted.
    pub fn into_primary(self, now: Time, out: &mut Vec<Output>) -> Primary {
        let promotion = self.promotion.expect("promoted");
        assert!(promotion.done, "promoted");
        assert_eq!(self.state.end(), self.appended, "the log is applied up to its base");
        let settings =
            PrimarySettings { domain: self.settings.domain, endpoint: self.settings.endpoint, ..self.settings.primary };
        let forced = promotion.force && !self.in_sync;
        let promoted = Promoted {
            settings,
            marks: self.marks,
            state: self.state,
            forced,
            policy: promotion.policy,
            streams: self.streams.into_iter().collect(),
            saves: self.saves,
            saved: self.saved,
        };
        Primary::takeover(promoted, now, out)
    }

    fn on_client(&mut self, conn: Conn, message: ClientMessage, out: &mut Vec<Output>) {
        let done = match message {
            ClientMessage::Hello(hello) => {
                if self.marks.cluster == ClusterId(0) {
                    Err(Error::new(Code::NotPrimary, "this backup is new and has not met its primary yet"))
                } else {
                    check_hello(&hello, self.marks.cluster, self.marks.group)
                }
            }
            _ => Err(Error::new(Code::NotPrimary, "this node is a backup")),
        };
        match done {
            Ok(()) => {
                self.streams.insert(conn);
                out.push(Output::ToClient(conn, NodeMessage::Status(self.wire_status())));
            }
            Err(error) => {
                self.streams.remove(&conn);
                out.push(Output::ToClient(conn, NodeMessage::Refused(error)));
                out.push(Output::Close(conn));
            }
        }
    }

    fn wire_status(&self) -> Status {
        let endpoints = [self.settings.endpoint.clone(), self.primary_endpoint.clone()];
        Status {
            version: VERSION,
            features: FEATURES,
            cluster: self.marks.cluster,
            group: self.marks.group,
            node: self.marks.node,
            domain: self.settings.domain.clone(),
            role: if self.failure.is_some() { Role::Stopped } else { Role::Backup },
            epoch: self.promised,
            endpoints: endpoints.into_iter().filter(|endpoint| !endpoint.is_empty()).collect(),
        }
    }

    /// What the node is doing, for operators.
    pub fn status(&self, now: Time) -> NodeStatus {
        let sessions = self.state.sessions().iter().map(|(client, session)| SessionStatus {
            client: *client,
            domain: session.info.domain.clone(),
            role: session.info.role,
            state: session.standing.name().to_owned(),
            connected: false,
            last: session.last,
            held_entries: 0,
            held_bytes: 0,
            share_bytes: 0,
        });
        let bytes = self.behind.bytes();
        let oldest = self.behind.iter().next().map(|record| record.entry.header.time);
        NodeStatus {
            status: self.wire_status(),
            head: self.appended,
            logged: self.durable,
            stable: self.stable,
            covered: self.stable,
            f: self.state.start().f,
            short: false,
            shares: 0,
            share_bytes: 0,
            covered_entries: 0,
            fill_us: 0,
            confirm_us: 0,
            target: Target::Backup(self.marks.node),
            delta_entries: self.behind.len() as u64,
            delta_bytes: bytes,
            delta_age_us: oldest.map_or(0, |time| elapsed(time, now)),
            waiting_writes: 0,
            in_sync: self.in_sync,
            connected: self.link.as_ref().is_some_and(|link| link.welcomed),
            sessions: sessions.collect(),
            recovery: None,
            failure: self.failure.clone(),
        }
    }

    fn check(&self) {
        assert!(self.durable <= self.appended, "durable {} past what was appended, {}", self.durable, self.appended);
        assert!(self.state.end() <= self.durable, "applied past what is durable");
        assert!(self.saved <= self.saves, "marks saved that nobody asked for");
        assert_eq!(self.tip.end(), self.appended, "the tip is the log's end");
        assert_eq!(self.state.end().0 + self.behind.len() as u64, self.appended.0, "I1: nothing is skipped");
    }
}
