//! A node as its shell runs it: a core, a disk that may stall or fail, and a state machine that may be slow.

use std::collections::VecDeque;

use bytes::Bytes;
use tagalong::backup::{Backup, BackupSettings};
use tagalong::log::{Body, ClusterId, Entry, GroupId, Lsn, NodeId, Record, Time};
use tagalong::node::{NodeEvent, Output};
use tagalong::primary::{Primary, PrimarySettings};
use tagalong::recovery::provisional_cut;
use tagalong::session::LogState;
use tagalong::store::Marks;

pub enum Core {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
    Down,
}

/// The state machine: a list. A command adds a word to it, or does so only after a certain last word. The reply tells how
/// long the list is then, and what is in it.
#[derive(Clone, Default)]
pub struct Machine {
    pub list: Vec<String>,
    /// Of the list so far.
    sum: u32,
}

impl Machine {
    pub fn apply(&mut self, payload: &[u8]) -> Bytes {
        let text = String::from_utf8_lossy(payload);
        let text = text.trim_end_matches('.');
        let (word, after) = text.split_once('?').map_or((text, None), |(word, after)| (word, Some(after)));
        let word = word.trim_end_matches('.');
        if after.is_some_and(|after| self.list.last().is_none_or(|last| last != after)) {
            return format!("refused at {}", self.list.len()).into();
        }
        self.list.push(word.to_owned());
        self.sum = sum_of(self.sum, word);
        format!("{} {:08x}", self.list.len(), self.sum).into()
    }

    pub fn text(&self) -> String {
        if self.list.is_empty() { "nothing".to_owned() } else { self.list.join(" ") }
    }
}

/// A sum that depends on the order.
fn sum_of(sum: u32, word: &str) -> u32 {
    let step = |sum: u32, byte: u8| sum.rotate_left(5).wrapping_mul(0x9E37_79B1) ^ u32::from(byte);
    word.bytes().chain([b' ']).fold(sum, step)
}

/// What the disk was asked for.
pub enum DiskOp {
    Sync(usize),
    Save(Marks, u64),
}

pub struct Node {
    pub name: String,
    pub id: NodeId,
    pub core: Core,
    pub life: u64,
    pub settings: PrimarySettings,
    pub founder: bool,
    pub follows: Option<usize>,
    pub marks: Marks,
    pub log: Vec<Record>,
    pub synced: usize,
    pub saves: u64,
    pub machine: Machine,
    pub events: Vec<NodeEvent>,
    pub disk_stalls: bool,
    pub disk_fails: bool,
    pub disk_ops: VecDeque<DiskOp>,
    pub machine_stalls: bool,
    pub tasks: VecDeque<(Vec<Entry>, usize)>,
    pub lost: bool,
}

impl Node {
    pub fn new(name: &str, id: u64, founder: bool, settings: PrimarySettings) -> Self {
        let marks = if founder {
            Marks { cluster: ClusterId(7), group: GroupId(8), node: NodeId(id), ..Marks::default() }
        } else {
            Marks { node: NodeId(id), ..Marks::default() }
        };
        Self {
            name: name.to_owned(),
            id: NodeId(id),
            core: Core::Down,
            life: 0,
            settings,
            founder,
            follows: None,
            marks,
            log: Vec::new(),
            synced: 0,
            saves: 0,
            machine: Machine::default(),
            events: Vec::new(),
            disk_stalls: false,
            disk_fails: false,
            disk_ops: VecDeque::new(),
            machine_stalls: false,
            tasks: VecDeque::new(),
            lost: false,
        }
    }

    pub fn is_up(&self) -> bool {
        !matches!(self.core, Core::Down)
    }

    pub fn primary(&self) -> Option<&Primary> {
        match &self.core {
            Core::Primary(primary) => Some(primary),
            _ => None,
        }
    }

    /// Whether it is, or will be when it starts, a primary.
    pub fn is_minted(&self) -> bool {
        self.founder || self.marks.promised.node == self.id
    }

    /// The process ends: what was not synced is gone.
    pub fn die(&mut self) {
        self.core = Core::Down;
        self.life += 1;
        self.log.truncate(self.synced);
        self.disk_ops.clear();
        self.tasks.clear();
        (self.disk_stalls, self.disk_fails, self.machine_stalls) = (false, false, false);
    }

    /// The start, as a shell does it.
    pub fn start(&mut self, now: Time, out: &mut Vec<Output>) {
        (self.saves, self.machine) = (0, Machine::default());
        self.events.clear();
        let after = self.log.iter().filter(|record| record.lsn() > self.marks.base);
        if let Some(cut) = provisional_cut(&self.marks, after.map(|record| &record.entry.header)) {
            self.log.retain(|record| record.lsn() <= cut);
        }
        self.synced = self.log.len();
        let mut state = LogState::new();
        for record in &self.log {
            let command = record.entry.header.body == Body::Command;
            let reply = command.then(|| self.machine.apply(&record.entry.payload));
            state.apply(record, reply).expect("a node's own log is sound");
        }
        let marks = self.marks.clone();
        let settings = PrimarySettings { domain: self.name.clone(), ..self.settings.clone() };
        self.core = if self.is_minted() {
            Core::Primary(Box::new(Primary::new(settings, marks, state, now, out).expect("settings make sense")))
        } else {
            let settings = BackupSettings { domain: self.name.clone(), endpoint: String::new(), primary: settings };
            Core::Backup(Box::new(Backup::new(settings, marks, state, now, out).expect("settings make sense")))
        };
    }

    /// The record at `lsn`, if it is durable here.
    pub fn durable(&self, lsn: Lsn) -> Option<&Record> {
        let at = usize::try_from(lsn.0).ok()?.checked_sub(1)?;
        self.log[..self.synced].get(at)
    }
}
