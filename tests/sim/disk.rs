//! A node's disk: appends are buffered and synced later, marks are replaced as a whole, and a crash keeps what was
//! synced, a prefix of what was not, and either version of what was being replaced.

use std::collections::VecDeque;

use tagalong::log::{Lsn, Record};
use tagalong::node::{Conn, Input};
use tagalong::store::Marks;

use crate::dice::Dice;

#[derive(Clone, Debug)]
pub enum Operation {
    Append(Vec<Record>),
    Truncate(Lsn),
    Marks(Box<Marks>),
    Read(Conn, Lsn, u64),
}

#[derive(Clone, Debug)]
enum Busy {
    Sync(usize),
    Truncate(Lsn),
    Marks(Box<Marks>),
    Read(Conn, Lsn, u64),
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub marks: Option<Marks>,
    pub log: Vec<Record>,
    /// How many records of `log` would survive a crash for certain.
    pub synced: usize,
    saves: u64,
    queue: VecDeque<Operation>,
    busy: Option<Busy>,
}

impl Disk {
    pub fn push(&mut self, operation: Operation) {
        self.queue.push_back(operation);
    }

    pub fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// The work in progress is a write.
    pub fn is_writing(&self) -> bool {
        matches!(self.busy, Some(Busy::Sync(_) | Busy::Marks(_)))
    }

    /// The last LSN that survives a crash for certain.
    pub fn durable(&self) -> Lsn {
        Lsn(self.synced as u64)
    }

    /// Takes up the next piece of work; `false` if there is none.
    pub fn begin(&mut self, dice: &mut Dice) -> bool {
        assert!(self.busy.is_none());
        // Appends are gathered, and at times other work overtakes their sync.
        while matches!(self.queue.front(), Some(Operation::Append(_))) {
            let Some(Operation::Append(records)) = self.queue.pop_front() else { unreachable!() };
            for record in records {
                assert_eq!(record.lsn().0, self.log.len() as u64 + 1, "the shell appends in order");
                self.log.push(record);
            }
            if dice.percent(20) {
                break;
            }
        }
        let unsynced = self.synced < self.log.len();
        if unsynced && (self.queue.is_empty() || dice.percent(60)) {
            self.busy = Some(Busy::Sync(self.log.len()));
            return true;
        }
        self.busy = match self.queue.pop_front() {
            Some(Operation::Truncate(lsn)) => Some(Busy::Truncate(lsn)),
            Some(Operation::Marks(marks)) => Some(Busy::Marks(marks)),
            Some(Operation::Read(conn, from, bytes)) => Some(Busy::Read(conn, from, bytes)),
            Some(append) => {
                self.queue.push_front(append);
                Some(Busy::Sync(self.log.len()))
            }
            None => None,
        };
        self.busy.is_some()
    }

    /// The work in progress is done.
    pub fn complete(&mut self) -> Option<Input> {
        match self.busy.take()? {
            Busy::Sync(upto) => {
                self.synced = upto;
                Some(Input::Persisted(self.durable()))
            }
            Busy::Truncate(lsn) => {
                self.truncate(lsn);
                None
            }
            Busy::Marks(marks) => {
                self.marks = Some(*marks);
                self.saves += 1;
                Some(Input::MarksSaved(self.saves))
            }
            Busy::Read(conn, from, bytes_max) => {
                let mut left = bytes_max;
                let mut records = Vec::new();
                for record in self.log.iter().filter(|record| record.lsn() >= from) {
                    if !records.is_empty() && record.cost() > left {
                        break;
                    }
                    left = left.saturating_sub(record.cost());
                    records.push(record.clone());
                }
                Some(Input::Read { conn, records })
            }
        }
    }

    pub fn truncate(&mut self, last: Lsn) {
        self.log.retain(|record| record.lsn() <= last);
        self.synced = self.synced.min(self.log.len());
    }

    pub fn crash(&mut self, dice: &mut Dice) {
        match self.busy.take() {
            Some(Busy::Marks(marks)) if dice.percent(50) => self.marks = Some(*marks),
            Some(Busy::Truncate(last)) if dice.percent(50) => self.truncate(last),
            _ => {}
        }
        let keep = self.synced + dice.index(self.log.len() - self.synced + 1);
        self.log.truncate(keep);
        self.synced = keep;
        self.saves = 0;
        self.queue.clear();
    }
}
