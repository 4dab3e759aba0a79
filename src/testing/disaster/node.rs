//! A node and a client as their shells run them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::backup::{Backup, BackupSettings};
use crate::client::{CacheImage, CacheOp, Client, ClientOutput, ClientSettings, Identity};
use crate::error::Code;
use crate::log::{
    Body, ClientId, ClusterId, Entry, Epoch, GroupId, Lsn, NodeId, Origin, Record, Request, SessionRole, Tag, Time,
};
use crate::message::Role;
use crate::node::{Conn, Input, Output};
use crate::primary::{Primary, PrimarySettings};
use crate::recovery::provisional_cut;
use crate::session::LogState;
use crate::store::{Marks, Missing, StateMachine};
use crate::testing::checks::{apply, restored, snapshot};
use crate::testing::dice::Dice;
use crate::testing::failure::{Check, Finding, difference};

/// What was answered first to every command, and by whom.
pub(super) struct Answers<'a> {
    first: BTreeMap<Origin, (Entry, Bytes, String)>,
    /// An answer that was not the first one.
    pub(super) other: Option<String>,
    pub(super) show: &'a dyn Fn(&[u8]) -> String,
}

impl<'a> Answers<'a> {
    pub(super) fn new(show: &'a dyn Fn(&[u8]) -> String) -> Self {
        Self { first: BTreeMap::new(), other: None, show }
    }

    /// Notes an answer, and whether another one was given to the very same entry. What a node ordered and nobody has
    /// any more may be ordered again elsewhere, and is answered anew then.
    pub(super) fn note(&mut self, entry: &Entry, reply: &Bytes, who: &str) {
        let Some(origin) = entry.header.origin else { return };
        match self.first.get(&origin) {
            Some((known, before, by)) if known == entry => {
                if before != reply {
                    let what = (self.show)(&entry.payload);
                    let difference = difference(before, reply);
                    let why = format!(
                        "command {what} at LSN {} is answered {difference}, first by {by} and then by {who}",
                        entry.header.lsn
                    );
                    self.other.get_or_insert(why);
                }
            }
            _ => drop(self.first.insert(origin, (entry.clone(), reply.clone(), who.to_owned()))),
        }
    }

    /// A finding of what `found` says, with both answers where they are known.
    pub(super) fn diverged(&self, found: &str) -> Finding {
        let why = self.other.as_ref().map(|other| format!("; {other}")).unwrap_or_default();
        Finding::new(Check::Diverged, format!("{found}{why}"))
    }
}

pub(super) enum Core {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
    Down,
}

/// What the disk has still to do.
pub(super) enum Job {
    Append(Vec<Record>),
    Truncate(Lsn),
    Marks(Marks),
    Read(Conn, Lsn, u64),
}

/// What the state machine has still to do.
pub(super) enum Work {
    Execute(Vec<Entry>, Vec<Bytes>),
    Judge(Vec<Entry>, Vec<Missing>),
}

pub(super) struct Node<M> {
    pub(super) id: NodeId,
    pub(super) core: Core,
    pub(super) machine: M,
    /// The last command that `machine` executed.
    pub(super) applied: Lsn,
    /// A snapshot, and up to where it goes.
    pub(super) kept: Option<(Lsn, Vec<u8>)>,
    pub(super) marks: Marks,
    pub(super) log: Vec<Record>,
    pub(super) synced: usize,
    pub(super) saves: u64,
    pub(super) jobs: VecDeque<Job>,
    pub(super) work: VecDeque<Work>,
    pub(super) flush_due: bool,
    /// It was made as a primary.
    founder: bool,
    /// A backup follows this node.
    pub(super) follows: Option<usize>,
}

pub(super) fn settings(domain: &str) -> PrimarySettings {
    PrimarySettings { domain: domain.to_owned(), ..PrimarySettings::default() }
}

impl<M: StateMachine> Node<M> {
    pub(super) fn new(number: usize, machine: M, follows: Option<usize>) -> Self {
        let id = NodeId(number as u64 + 1);
        let founder = follows.is_none();
        let (cluster, group) = if founder { (ClusterId(7), GroupId(8)) } else { Default::default() };
        Self {
            id,
            core: Core::Down,
            machine,
            applied: Lsn(0),
            kept: None,
            marks: Marks { cluster, group, node: id, ..Marks::default() },
            log: Vec::new(),
            synced: 0,
            saves: 0,
            jobs: VecDeque::new(),
            work: VecDeque::new(),
            flush_due: false,
            founder,
            follows,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        !matches!(self.core, Core::Down)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.work.is_empty() && !self.flush_due
    }

    pub(super) fn primary(&self) -> Option<&Primary> {
        match &self.core {
            Core::Primary(primary) => Some(primary),
            Core::Backup(_) | Core::Down => None,
        }
    }

    pub(super) fn backup(&self) -> Option<&Backup> {
        match &self.core {
            Core::Backup(backup) => Some(backup),
            Core::Primary(_) | Core::Down => None,
        }
    }

    pub(super) fn is_open(&self, now: Time) -> bool {
        self.primary().is_some_and(|primary| primary.status(now).status.role == Role::Primary)
    }

    pub(super) fn step(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        match &mut self.core {
            Core::Primary(core) => core.step(now, input, out),
            Core::Backup(core) => core.step(now, input, out),
            Core::Down => {}
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        match &self.core {
            Core::Primary(core) => core.next_timeout(),
            Core::Backup(core) => core.next_timeout(),
            Core::Down => None,
        }
    }

    /// The process dies: what was not synced is lost, but for a prefix.
    pub(super) fn die(&mut self, dice: &mut Dice) {
        self.core = Core::Down;
        self.synced += dice.index(self.log.len() - self.synced + 1);
        self.log.truncate(self.synced);
        self.jobs.clear();
        self.work.clear();
        self.forget_after(Lsn(self.synced as u64));
        self.saves = 0;
        self.flush_due = false;
    }

    /// A snapshot never speaks of a log that is not there.
    fn forget_after(&mut self, last: Lsn) {
        self.kept = self.kept.take().filter(|(upto, _)| *upto <= last);
    }

    pub(super) fn cut(&mut self, last: Lsn) {
        self.log.retain(|record| record.lsn() <= last);
        self.synced = self.synced.min(self.log.len());
        self.forget_after(last);
    }

    pub(super) fn keep_snapshot(&mut self) -> Result<(), Finding> {
        self.kept = Some((self.applied, snapshot(Check::Snapshot, &self.machine)?));
        Ok(())
    }

    /// The start as a shell does it, on a new instance: cut what is provisional, replay the log, build the core that
    /// the marks ask for. Where there is a snapshot, the machine goes on from it, and has to be as the replay makes it.
    pub(super) fn start(
        &mut self,
        new: &dyn Fn() -> M,
        answers: &mut Answers<'_>,
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<bool, Finding> {
        let name = self.name();
        let after = self.log.iter().filter(|record| record.lsn() > self.marks.base);
        if let Some(cut) = provisional_cut(&self.marks, after.map(|record| &record.entry.header)) {
            self.cut(cut);
        }
        self.machine = new();
        let mut replies = BTreeMap::new();
        let mut state = LogState::new();
        for record in &self.log {
            let mut reply = None;
            if record.entry.header.body == Body::Command {
                let replied = apply(Check::Diverged, &mut self.machine, std::slice::from_ref(&record.entry))?;
                reply = replied.into_iter().next();
                self.applied = record.lsn();
                let reply = reply.clone().unwrap_or_default();
                answers.note(&record.entry, &reply, &name);
                replies.insert(record.lsn(), reply);
            }
            state.apply(record, reply).map_err(|error| {
                let why = format!("{name} refuses to start on its own log: {error}");
                if error.code() == Code::Diverged { answers.diverged(&why) } else { Finding::new(Check::Stopped, why) }
            })?;
        }
        let kept = self.kept.clone();
        if let Some((upto, bytes)) = &kept {
            self.go_on_from(restored(Check::Snapshot, new(), bytes)?, *upto, &replies)?;
        }
        let minted = self.marks.promised.node == self.id && self.marks.promised != Epoch::ZERO;
        let domain = format!("site {}", self.id);
        let primary = settings(&domain);
        let stopped = |error| Finding::new(Check::Stopped, format!("{name} does not start: {error}"));
        self.core = if self.founder || minted {
            Core::Primary(Box::new(Primary::new(primary, self.marks.clone(), state, now, out).map_err(stopped)?))
        } else {
            let settings = BackupSettings { domain, endpoint: String::new(), primary };
            Core::Backup(Box::new(Backup::new(settings, self.marks.clone(), state, now, out).map_err(stopped)?))
        };
        Ok(kept.is_some())
    }

    /// Takes an instance that was restored from a snapshot for the one that replayed everything.
    fn go_on_from(&mut self, mut machine: M, upto: Lsn, expected: &BTreeMap<Lsn, Bytes>) -> Result<(), Finding> {
        let commands = self.log.iter().map(|record| &record.entry).filter(|entry| entry.header.body == Body::Command);
        let rest: Vec<Entry> = commands.filter(|entry| entry.header.lsn > upto).cloned().collect();
        let replies = apply(Check::Snapshot, &mut machine, &rest)?;
        for (entry, reply) in rest.iter().zip(&replies) {
            let lsn = entry.header.lsn;
            let before = expected.get(&lsn).filter(|before| *before != reply);
            if let Some(before) = before {
                let what = difference(before, reply);
                let why = format!(
                    "{} restarts on a snapshot of {upto}, and the command at {lsn} is answered {what}, by the \
                                   replay of the whole log and by that of what is behind the snapshot",
                    self.name()
                );
                return Err(Finding::new(Check::Snapshot, why));
            }
        }
        let (whole, short) = (snapshot(Check::Snapshot, &self.machine)?, snapshot(Check::Snapshot, &machine)?);
        if whole != short {
            let what = difference(&whole, &short);
            let why = format!(
                "{} restarts on a snapshot of {upto}, and its state is {what}, by the replay of the whole log \
                               and by that of what is behind the snapshot",
                self.name()
            );
            return Err(Finding::new(Check::Snapshot, why));
        }
        self.machine = machine;
        Ok(())
    }

    pub(super) fn name(&self) -> String {
        let role = match &self.core {
            Core::Primary(_) => "a primary",
            Core::Backup(_) => "a backup",
            Core::Down => "starting",
        };
        format!("node {} ({role})", self.id)
    }
}

/// What a client was told about a command.
pub(super) struct Told {
    pub(super) payload: Bytes,
    pub(super) reply: Bytes,
    pub(super) tag: Option<Tag>,
}

/// A client: its core, its cache, and what its application knows.
pub(super) struct Member {
    pub(super) id: ClientId,
    pub(super) core: Option<Client>,
    /// What is in the cache.
    cache: CacheImage,
    stores: VecDeque<Vec<CacheOp>>,
    stored: u64,
    pub(super) flush_due: bool,
    /// Commands without an outcome.
    pub(super) pending: BTreeMap<Request, Bytes>,
    pub(super) told: BTreeMap<Request, Told>,
}

impl Member {
    pub(super) fn new(number: usize) -> Self {
        let (id, domain) = (ClientId(100 + number as u128), format!("client {number}"));
        let identity = Identity { client: id, cluster: None, group: None, domain, role: SessionRole::Writer };
        let mut cache = CacheImage::default();
        cache.apply(&CacheOp::Identity(identity));
        let (core, stores, stored) = (None, VecDeque::new(), 0);
        Self { id, core, cache, stores, stored, flush_due: false, pending: BTreeMap::new(), told: BTreeMap::new() }
    }

    pub(super) fn start(&mut self, now: Time, out: &mut Vec<ClientOutput>) {
        self.core = Some(Client::new(ClientSettings::default(), self.cache.clone(), now, out));
    }

    /// The process dies: of what was on its way to the cache a prefix survives.
    pub(super) fn die(&mut self, dice: &mut Dice) {
        self.core = None;
        let ops: Vec<CacheOp> = self.stores.drain(..).flatten().collect();
        ops[..dice.index(ops.len() + 1)].iter().for_each(|op| self.cache.apply(op));
        (self.stored, self.flush_due) = (0, false);
        // What did not get into the cache never left; and some outcomes got no further than there.
        let cache = &self.cache;
        self.pending.retain(|request, _| cache.commands.get(request).is_some_and(|command| command.reply.is_none()));
    }

    pub(super) fn store(&mut self, ops: Vec<CacheOp>) {
        self.stores.push_back(ops);
    }

    pub(super) fn is_storing(&self) -> bool {
        !self.stores.is_empty()
    }

    /// The oldest write to the cache is done.
    pub(super) fn store_one(&mut self) -> u64 {
        self.stores.pop_front().into_iter().flatten().for_each(|op| self.cache.apply(&op));
        self.stored += 1;
        self.stored
    }
}
