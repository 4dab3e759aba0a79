//! The backup's side of the log, a story each: what it takes, what it cuts, what it promises and what it forgets. A backup
//! alone, on a disk that takes nothing but the next record; the primaries are played by hand.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use tagalong::backup::{Backup, BackupSettings};
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GroupId, Header, Lsn, NodeId, Origin, Record, Request,
    SessionInfo, Time,
};
use tagalong::message::{BackupMessage, PrimaryMessage, VERSION};
use tagalong::node::{Admin, Conn, Input, Output, RecoveryPolicy};
use tagalong::primary::PrimarySettings;
use tagalong::session::LogState;
use tagalong::store::Marks;

const NOW: Time = Time(1);
const CLUSTER: ClusterId = ClusterId(7);
const GROUP: GroupId = GroupId(8);

fn epoch(number: u64, node: u64) -> Epoch {
    Epoch { generation: 0, number, node: NodeId(node) }
}

/// A backup, its disk, and what it said.
struct Follower {
    core: Backup,
    log: Vec<Record>,
    saves: u64,
    link: u64,
    said: Vec<BackupMessage>,
}

impl Follower {
    fn new() -> Self {
        let marks = Marks { cluster: CLUSTER, group: GROUP, node: NodeId(2), ..Marks::default() };
        let primary = PrimarySettings { domain: "west".to_owned(), ..PrimarySettings::default() };
        let west = BackupSettings { domain: "west".to_owned(), endpoint: String::new(), primary };
        let core = Backup::new(west, marks, LogState::new(), NOW, &mut Vec::new()).unwrap();
        Self { core, log: Vec::new(), saves: 0, link: 0, said: Vec::new() }
    }

    fn give(&mut self, input: Input) {
        let mut out = Vec::new();
        self.core.step(NOW, input, &mut out);
        for output in out {
            match output {
                Output::Append(records) => {
                    for record in records {
                        assert_eq!(record.lsn().0, self.log.len() as u64 + 1, "the disk has another record there");
                        assert!(record.is_intact(), "what is damaged must not get as far as the disk");
                        self.log.push(record);
                    }
                    self.give(Input::Persisted(Lsn(self.log.len() as u64)));
                }
                Output::Truncate(last) => self.log.truncate(usize::try_from(last.0).unwrap()),
                Output::SaveMarks(_) => {
                    self.saves += 1;
                    self.give(Input::MarksSaved(self.saves));
                }
                Output::Execute { commands, .. } => {
                    let replies = vec![Bytes::new(); commands.len()];
                    self.give(Input::Executed { replies, results: Vec::new() });
                }
                Output::ToPrimary(_, message) => self.said.push(message),
                Output::Halt(error) => panic!("halted: {error}"),
                _ => {}
            }
        }
    }

    /// A stream to the node that says that it is the primary.
    fn dial(&mut self, node: u64) {
        self.link += 1;
        self.give(Input::Linked(Conn(self.link)));
        let (version, endpoint) = (VERSION, String::new());
        let welcome = PrimaryMessage::Welcome { version, cluster: CLUSTER, group: GROUP, node: NodeId(node), endpoint };
        self.hear(welcome);
        self.said.clear();
    }

    fn hear(&mut self, message: PrimaryMessage) {
        self.give(Input::FromPrimary(Conn(self.link), message));
    }

    fn frame(&mut self, epoch: Epoch, base: u64, records: Vec<Record>) {
        self.hear(PrimaryMessage::Append { epoch, base: Lsn(base), stable: Lsn(0), echo: 0, records: records.into() });
    }

    /// Says no, and why.
    fn refused(&self) -> bool {
        self.said.iter().any(|message| matches!(message, BackupMessage::Failed(_)))
    }

    fn acknowledged(&self) -> Option<Lsn> {
        let ack = |message: &BackupMessage| match message {
            BackupMessage::Ack { durable, .. } => Some(*durable),
            _ => None,
        };
        self.said.iter().rev().find_map(ack)
    }

    /// A backup that follows node 1 in its first reign: a session, and three commands of it.
    fn following() -> Self {
        let mut backup = Self::new();
        backup.dial(1);
        let reign = epoch(1, 1);
        let mut records = vec![start(reign, 1, Epoch::ZERO, 0), open(reign, 2)];
        records.extend((1..=3).map(|n| command(reign, 2 + n, n)));
        backup.frame(reign, 0, records);
        assert_eq!(backup.acknowledged(), Some(Lsn(5)));
        assert_eq!(backup.core.state().end(), Lsn(5), "and applied");
        backup
    }
}

fn record(epoch: Epoch, lsn: u64, body: Body, origin: Option<Origin>, payload: &'static [u8]) -> Record {
    let digest = if body == Body::Command { Digest::crc32(payload) } else { Digest::default() };
    let (length, answered) = (u32::try_from(payload.len()).unwrap(), Request(0));
    let header = Header { epoch, lsn: Lsn(lsn), body, origin, time: Time(lsn), answered, length, digest };
    Record { entry: Entry { header, payload: Bytes::from_static(payload) }, reply: Digest::default() }
}

fn start(epoch: Epoch, lsn: u64, previous: Epoch, base: u64) -> Record {
    let start = EpochStart { previous, base: Lsn(base), ..EpochStart::default() };
    record(epoch, lsn, Body::EpochStart(Box::new(start)), None, b"")
}

fn origin(request: u64) -> Option<Origin> {
    Some(Origin { client: ClientId(100), request: Request(request) })
}

fn open(epoch: Epoch, lsn: u64) -> Record {
    record(epoch, lsn, Body::Open(SessionInfo::default()), origin(0), b"")
}

fn command(epoch: Epoch, lsn: u64, request: u64) -> Record {
    record(epoch, lsn, Body::Command, origin(request), b"a command")
}

/// A reign sends what it rebuilt, and its primary is lost before the `EpochStart` came. What the next one rebuilds goes in
/// the same place: the disk must not have anything there any more.
#[test]
fn what_a_reign_left_that_never_began_is_cut() {
    let mut backup = Follower::following();
    let (second, third) = (epoch(2, 3), epoch(3, 4));
    backup.dial(3);
    backup.frame(second, 5, vec![command(epoch(1, 1), 6, 4)]);
    assert_eq!((backup.acknowledged(), backup.core.state().end()), (Some(Lsn(6)), Lsn(5)), "kept, and not applied");
    backup.dial(4);
    backup.frame(third, 5, Vec::new());
    assert_eq!(backup.log.len(), 5);
    backup.frame(third, 5, vec![start(third, 6, epoch(1, 1), 5)]);
    assert_eq!(backup.acknowledged(), Some(Lsn(6)));
    assert_eq!(backup.core.state().epoch(), third);
}

/// The base of a reign can lie below what the backup has of the one before, all of it certain. If that reign never begins
/// either, only what came in it is cut.
#[test]
fn what_was_certain_stays_though_a_base_lies_below_it() {
    let mut backup = Follower::following();
    let (second, third) = (epoch(2, 3), epoch(3, 4));
    backup.dial(3);
    backup.frame(second, 3, Vec::new());
    backup.frame(second, 3, vec![command(epoch(1, 1), 6, 4)]);
    backup.dial(4);
    backup.frame(third, 5, Vec::new());
    assert_eq!(backup.log.len(), 5, "what was acknowledged in the first reign is there");
}

/// A backup that took the frames of a reign, though it was never asked to promise it, takes none of an older one: what
/// the older primary would call stable is in no log that survives.
#[test]
fn frames_of_a_reign_end_the_older_ones() {
    let mut backup = Follower::following();
    backup.dial(3);
    backup.frame(epoch(2, 3), 5, Vec::new());
    assert!(!backup.refused());
    backup.dial(1);
    backup.frame(epoch(1, 1), 0, vec![command(epoch(1, 1), 6, 4)]);
    assert!(backup.refused());
    assert_eq!(backup.log.len(), 5);
}

/// Bytes that were damaged between the two nodes end the stream; they are not appended, and not acknowledged.
#[test]
fn a_damaged_record_ends_the_stream() {
    let mut backup = Follower::following();
    let damage = |broken: fn(&mut Record)| {
        let mut record = command(epoch(1, 1), 6, 4);
        broken(&mut record);
        record
    };
    let other = damage(|record| record.entry.payload = Bytes::from_static(b"b command"));
    let short = damage(|record| record.entry.payload = Bytes::from_static(b"a comman"));
    let unknown = damage(|record| record.entry.header.digest.algorithm = 9);
    for record in [other, short, unknown] {
        backup.dial(1);
        backup.frame(epoch(1, 1), 0, vec![record]);
        assert!(backup.refused());
        assert_eq!(backup.log.len(), 5);
    }
    // All of a frame, or nothing.
    backup.dial(1);
    backup.frame(epoch(1, 1), 0, vec![command(epoch(1, 1), 6, 4), command(epoch(1, 1), 7, 4)]);
    assert!(backup.refused(), "a number that is used already");
    assert_eq!(backup.log.len(), 5);
}

/// A restarting primary asked for an epoch, and was lost before it began. The promoted backup mints a higher one: with the
/// same number two nodes would tell their reigns apart by their names alone, and the older could be the greater.
#[test]
fn a_takeover_goes_beyond_what_was_promised() {
    let mut backup = Follower::following();
    let promised = epoch(7, 1);
    backup.hear(PrimaryMessage::Grant { epoch: epoch(1, 1) });
    backup.dial(1);
    backup.hear(PrimaryMessage::Promise { epoch: promised });
    backup.give(Input::Admin(Admin::Promote { force: false, policy: RecoveryPolicy::Wait }));
    assert!(backup.core.marks().promised.number > promised.number, "{:?}", backup.core.marks());
}

/// A grant belongs to a reign whose frames came on this very stream.
#[test]
fn a_grant_without_a_frame_is_refused() {
    let mut backup = Follower::following();
    backup.dial(1);
    backup.hear(PrimaryMessage::Grant { epoch: epoch(1, 1) });
    assert!(backup.refused());
    assert!(!backup.core.marks().in_sync);
}
