//! Streams between processes, and what goes wrong on them. A fault concerns the streams that stand when it is made: a new
//! one is as it should be.

use std::collections::VecDeque;

use tagalong::log::Body;
use tagalong::message::{BackupMessage, ClientMessage, NodeMessage, PrimaryMessage};

use crate::language::Mode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    Node(usize),
    Client(usize),
}

/// What travels on a stream.
#[derive(Clone, Debug)]
pub enum Parcel {
    FromClient(ClientMessage),
    ToClient(NodeMessage),
    ToBackup(PrimaryMessage),
    ToPrimary(BackupMessage),
    /// The stream is at its end.
    Gone,
}

impl Parcel {
    /// The words of the transcripts for it.
    pub fn is(&self, what: &str) -> bool {
        match (what, self) {
            ("what", _) => true,
            ("attaches", Self::FromClient(ClientMessage::Attach(_))) => true,
            ("requests", Self::FromClient(ClientMessage::Frame(frame))) => {
                !frame.writes.is_empty() || !frame.queries.is_empty()
            }
            ("frames", Self::FromClient(ClientMessage::Frame(_))) => true,
            ("confirms", Self::FromClient(ClientMessage::Frame(frame))) => {
                frame.writes.is_empty() && frame.queries.is_empty() && !frame.close
            }
            ("reports", Self::FromClient(ClientMessage::Report(_))) => true,
            ("payloads", Self::FromClient(ClientMessage::Payloads(_))) => true,
            ("welcomes", Self::ToClient(NodeMessage::Welcome(_))) => true,
            ("pulls", Self::ToClient(NodeMessage::Pull { .. })) => true,
            ("frames", Self::ToClient(NodeMessage::Frame(_))) => true,
            ("replies", Self::ToClient(NodeMessage::Frame(frame))) => {
                !frame.responses.is_empty() || !frame.results.is_empty()
            }
            ("shares", Self::ToClient(NodeMessage::Frame(frame))) => !frame.shares.is_empty(),
            ("checkpoints", Self::ToClient(NodeMessage::Frame(frame))) => {
                frame.responses.is_empty() && frame.results.is_empty() && frame.shares.is_empty()
            }
            ("appends", Self::ToBackup(PrimaryMessage::Append { records, .. })) => !records.is_empty(),
            ("starts", Self::ToBackup(PrimaryMessage::Append { records, .. })) => {
                records.iter().any(|record| matches!(record.entry.header.body, Body::EpochStart(_)))
            }
            ("echoes", Self::ToBackup(PrimaryMessage::Append { records, .. })) => records.is_empty(),
            ("grants", Self::ToBackup(PrimaryMessage::Grant { .. })) => true,
            ("fetches", Self::ToBackup(PrimaryMessage::Fetch { .. })) => true,
            ("acknowledgements", Self::ToPrimary(BackupMessage::Ack { .. })) => true,
            ("promises", Self::ToPrimary(BackupMessage::Promised { .. })) => true,
            ("records", Self::ToPrimary(BackupMessage::Records { .. })) => true,
            _ => false,
        }
    }
}

/// The words that [`Parcel::is`] knows.
pub const WORDS: [&str; 20] = [
    "what",
    "attaches",
    "requests",
    "frames",
    "confirms",
    "reports",
    "payloads",
    "welcomes",
    "pulls",
    "replies",
    "shares",
    "checkpoints",
    "appends",
    "starts",
    "echoes",
    "grants",
    "fetches",
    "acknowledgements",
    "promises",
    "records",
];

/// One direction of a stream.
#[derive(Debug)]
pub struct Pipe {
    pub to: Party,
    /// Of which process there.
    pub life: u64,
    pub what: String,
    pub mode: Mode,
    /// Something was lost.
    pub lossy: bool,
    pub held: VecDeque<Parcel>,
}

impl Pipe {
    pub fn new(to: Party, life: u64) -> Self {
        Self { to, life, what: String::new(), mode: Mode::Flowing, lossy: false, held: VecDeque::new() }
    }

    /// What of this comes out now.
    pub fn push(&mut self, parcel: Parcel) -> Vec<Parcel> {
        let gone = matches!(parcel, Parcel::Gone);
        let concerned = parcel.is(&self.what);
        match self.mode {
            // A stream keeps its order: what comes behind something that is held up is held up, too, and where something is
            // lost nothing more comes but the stream's end.
            Mode::Held if concerned || !self.held.is_empty() => {
                self.held.push_back(parcel);
                Vec::new()
            }
            Mode::Lost if !gone && (concerned || self.lossy) => {
                self.lossy = true;
                Vec::new()
            }
            Mode::Cut if concerned && !gone => {
                (self.mode, self.lossy) = (Mode::Lost, true);
                vec![parcel]
            }
            Mode::Doubled if concerned && !gone => vec![parcel.clone(), parcel],
            _ => vec![parcel],
        }
    }
}

/// A stream.
#[derive(Debug)]
pub struct Wire {
    pub pipes: [Pipe; 2],
    pub broken: bool,
}

impl Wire {
    pub fn joins(&self, a: Party, b: Party) -> bool {
        let [one, other] = [self.pipes[0].to, self.pipes[1].to];
        (one, other) == (a, b) || (one, other) == (b, a)
    }

    pub fn touches(&self, party: Party) -> bool {
        self.pipes.iter().any(|pipe| pipe.to == party)
    }

    pub fn pipe_to(&mut self, party: Party) -> &mut Pipe {
        let at = usize::from(self.pipes[0].to != party);
        &mut self.pipes[at]
    }
}
