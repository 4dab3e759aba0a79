//! Streams like TCP's: in order, with a delay; broken ones lose the end of what was under way, in each direction on
//! its own; and a side may notice late.

use std::collections::VecDeque;

use tagalong::message::{BackupMessage, ClientMessage, NodeMessage, PrimaryMessage};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    Node(usize),
    Client(usize),
}

/// What travels on a stream.
#[derive(Clone, Debug)]
pub enum Parcel {
    Connected,
    FromClient(ClientMessage),
    FromNode(NodeMessage),
    FromBackup(BackupMessage),
    FromPrimary(PrimaryMessage),
    Gone,
}

/// One side of a stream, and what is on its way to it.
#[derive(Debug)]
pub struct End {
    pub at: At,
    /// Of the process: what comes for an earlier one is dropped.
    pub life: u64,
    /// The shell still delivers from this stream.
    pub open: bool,
    /// When it arrives, when it was sent, what.
    pub inbox: VecDeque<(u64, u64, Parcel)>,
    /// Nothing more gets through to this side.
    pub dead: bool,
    pub last: u64,
}

#[derive(Debug)]
pub struct Stream {
    /// The side that dialled, and the side that listens.
    pub ends: [End; 2],
}

impl Stream {
    pub fn new(dialler: (At, u64), listener: (At, u64), now: u64) -> Self {
        let end = |(at, life)| End { at, life, open: true, inbox: VecDeque::new(), dead: false, last: now };
        Self { ends: [end(dialler), end(listener)] }
    }

    pub fn is_over(&self) -> bool {
        self.ends.iter().all(|end| !end.open)
    }

    pub fn has(&self, at: At) -> bool {
        self.ends.iter().any(|end| end.at == at)
    }
}
