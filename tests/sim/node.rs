//! A node as its shell runs it: the start on its own disk, one core or the other, a disk, a state machine.

use std::collections::VecDeque;

use tagalong::backup::{Backup, BackupSettings};
use tagalong::error::Result;
use tagalong::log::{Body, ClusterId, Entry, GroupId, NodeId, Time};
use tagalong::node::{Input, Output, RecoveryPolicy};
use tagalong::primary::{Primary, PrimarySettings};
use tagalong::recovery::provisional_cut;
use tagalong::session::LogState;
use tagalong::store::{Marks, Missing};

use bytes::Bytes;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::machine::Machine;

pub enum Core {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
    Down,
}

/// What the state machine was asked for and has not answered yet.
pub enum Task {
    Execute(Vec<Entry>, Vec<Bytes>),
    Judge(Vec<Entry>, Vec<Missing>),
}

pub struct Node {
    pub id: NodeId,
    pub domain: String,
    pub core: Core,
    /// Counts the processes; what is meant for an earlier one is dropped.
    pub life: u64,
    pub disk: Disk,
    pub machine: Machine,
    pub tasks: VecDeque<Task>,
    /// It was created as a primary.
    pub founder: bool,
    /// A backup follows this node.
    pub follows: Option<usize>,
    /// Lost for good, or set aside.
    pub lost: bool,
    /// Its reign, from its `EpochStart` on.
    pub serving: Option<tagalong::log::Epoch>,
    pub stopped: bool,
    pub flush_due: bool,
    pub tick_at: Option<u64>,
    /// Disk and state machine are slow until then.
    pub stalled_until: u64,
    /// Not started again before.
    pub down_until: u64,
    pub clock: Clock,
    /// The process does nothing until then.
    pub paused_until: u64,
    /// The next write fails; every one does until then.
    pub disk_fails: bool,
    pub full_until: u64,
    /// When it was promoted, by its own clock, and whether an operator has told it to conclude since.
    pub promoted_at: Option<Time>,
    /// When this life of it began.
    pub up_since: Time,
    pub resolved: bool,
    /// At the last start something provisional was cut.
    pub cut: bool,
}

impl Node {
    pub fn new(id: u64, founder: bool, follows: Option<usize>) -> Self {
        Self {
            id: NodeId(id),
            domain: if founder { "east" } else { "west" }.to_owned(),
            core: Core::Down,
            life: 0,
            disk: Disk::default(),
            machine: Machine::default(),
            tasks: VecDeque::new(),
            founder,
            follows,
            lost: false,
            serving: None,
            stopped: false,
            flush_due: false,
            tick_at: None,
            stalled_until: 0,
            down_until: 0,
            clock: Clock::default(),
            paused_until: 0,
            disk_fails: false,
            full_until: 0,
            promoted_at: None,
            up_since: Time(0),
            resolved: false,
            cut: false,
        }
    }

    pub fn primary(&self) -> Option<&Primary> {
        match &self.core {
            Core::Primary(primary) => Some(primary),
            _ => None,
        }
    }

    pub fn backup(&self) -> Option<&Backup> {
        match &self.core {
            Core::Backup(backup) => Some(backup),
            _ => None,
        }
    }

    pub fn is_up(&self) -> bool {
        !matches!(self.core, Core::Down)
    }

    /// The start as a shell does it: cut what is provisional, replay the log through the state machine, and build the
    /// core that the marks ask for.
    pub fn start(&mut self, settings: &PrimarySettings, now: Time, out: &mut Vec<Output>) -> Result<()> {
        self.life += 1;
        self.up_since = now;
        self.machine = Machine::default();
        self.tasks.clear();
        self.serving = None;
        self.stopped = false;
        self.flush_due = false;
        self.tick_at = None;
        let marks = match self.disk.marks.clone() {
            Some(marks) => marks,
            None if self.founder => {
                Marks { cluster: ClusterId(7), group: GroupId(8), node: self.id, ..Marks::default() }
            }
            None => Marks { node: self.id, ..Marks::default() },
        };
        let after = self.disk.log.iter().filter(|record| record.lsn() > marks.base);
        let cut = provisional_cut(&marks, after.map(|record| &record.entry.header));
        self.cut = cut.is_some_and(|cut| cut.0 < self.disk.log.len() as u64);
        if let Some(cut) = cut {
            self.disk.truncate(cut);
        }
        let mut state = LogState::new();
        for record in &self.disk.log {
            let command = record.entry.header.body == Body::Command;
            let reply = command.then(|| self.machine.apply(&record.entry));
            state.apply(record, reply)?;
        }
        let settings = PrimarySettings { domain: self.domain.clone(), ..settings.clone() };
        let minted = marks.promised.node == self.id;
        if self.founder || minted {
            self.core = Core::Primary(Box::new(Primary::new(settings, marks, state, now, out)?));
        } else {
            let settings = BackupSettings { domain: self.domain.clone(), endpoint: String::new(), primary: settings };
            self.core = Core::Backup(Box::new(Backup::new(settings, marks, state, now, out)?));
        }
        Ok(())
    }

    /// Whether a recovery of this node is past the hard cap of its policy.
    pub fn is_late(&self, policy: RecoveryPolicy, now: Time) -> bool {
        let since = self.promoted_at.map_or(self.up_since, |at| at.max(self.up_since));
        matches!(policy, RecoveryPolicy::Conclude { hard_us, .. } if now.0 >= since.0 + hard_us)
    }

    pub fn step(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        match &mut self.core {
            Core::Primary(core) => core.step(now, input, out),
            Core::Backup(core) => core.step(now, input, out),
            Core::Down => {}
        }
    }

    pub fn next_timeout(&self) -> Option<Time> {
        match &self.core {
            Core::Primary(core) => core.next_timeout(),
            Core::Backup(core) => core.next_timeout(),
            Core::Down => None,
        }
    }
}
