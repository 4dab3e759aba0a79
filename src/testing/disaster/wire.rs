//! A stream between two processes: ordered each way, with an end that may come at any time.

use std::collections::VecDeque;

use crate::message::{BackupMessage, ClientMessage, NodeMessage, PrimaryMessage};
use crate::testing::dice::Dice;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    Node(usize),
    Client(usize),
}

pub(super) enum Parcel {
    Connected,
    FromClient(ClientMessage),
    FromNode(NodeMessage),
    FromBackup(BackupMessage),
    FromPrimary(PrimaryMessage),
    Gone,
}

/// One end.
pub(super) struct End {
    pub(super) at: At,
    pub(super) inbox: VecDeque<Parcel>,
    /// It still takes what comes.
    pub(super) open: bool,
}

/// The first end is the one that dialled.
pub(super) struct Wire {
    pub(super) ends: [End; 2],
    /// Nothing more is sent on it.
    broken: bool,
}

impl Wire {
    pub(super) fn new(dialler: At, listener: At) -> Self {
        let end = |at| End { at, inbox: VecDeque::new(), open: true };
        let mut ends = [end(dialler), end(listener)];
        ends[0].inbox.push_back(Parcel::Connected);
        Self { ends, broken: false }
    }

    pub(super) fn joins(&self, a: At, b: At) -> bool {
        (self.ends[0].at, self.ends[1].at) == (a, b) || (self.ends[1].at, self.ends[0].at) == (a, b)
    }

    pub(super) fn has(&self, at: At) -> bool {
        self.ends.iter().any(|end| end.at == at)
    }

    /// Sends to the other side.
    pub(super) fn send(&mut self, from: At, parcel: Parcel) {
        if let Some(to) = self.ends.iter_mut().find(|end| end.at != from && end.open && !self.broken) {
            to.inbox.push_back(parcel);
        }
    }

    /// It breaks: of what is under way a prefix arrives.
    pub(super) fn cut(&mut self, dice: &mut Dice) {
        if !std::mem::replace(&mut self.broken, true) {
            for end in &mut self.ends {
                let keep = dice.index(end.inbox.len() + 1);
                end.inbox.truncate(keep);
                end.inbox.push_back(Parcel::Gone);
            }
        }
    }

    /// One side ends it, after what it sent.
    pub(super) fn close(&mut self, by: At) {
        let broken = std::mem::replace(&mut self.broken, true);
        for end in &mut self.ends {
            if end.at == by {
                end.inbox.clear();
            }
            if end.at == by || !broken {
                end.inbox.push_back(Parcel::Gone);
            }
        }
    }

    /// The process at one end is gone.
    pub(super) fn orphan(&mut self, at: At, dice: &mut Dice) {
        self.cut(dice);
        for end in self.ends.iter_mut().filter(|end| end.at == at) {
            end.open = false;
            end.inbox.clear();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.ends.iter().all(|end| !end.open)
    }
}
