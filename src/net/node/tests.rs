//! What a node makes of its log when it starts on it: what a reign that never opened left past its base is set aside before
//! the state machine, or anybody else, is given any of it; and nothing else is.

#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;

use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::backup::BackupSettings;
use crate::log::{
    Body, ClientId, Digest, Epoch, EpochStart, GapPolicy, Header, Lsn, Origin, Record, Request, SessionInfo, Target,
    Time,
};
use crate::node::RecoveryPolicy;
use crate::primary::PrimarySettings;
use crate::session::LogState;
use crate::store::Encoded;
use crate::store::file::{FileLog, FileLogOptions, read_cut};

const EAST: NodeId = NodeId(1);
const WEST: NodeId = NodeId(2);
/// The reign that was, and the last LSN that is certain of it.
const FIRST: Epoch = Epoch { generation: 0, number: 1, node: EAST };
const BASE: Lsn = Lsn(4);
/// A session is on the roster, so that nobody concludes a recovery while a test looks.
const CLIENT: ClientId = ClientId(100);

fn header(epoch: Epoch, lsn: u64, body: Body, request: Option<u64>) -> Header {
    let origin = request.map(|request| Origin { client: CLIENT, request: Request(request) });
    let (length, digest) = (0, Digest::default());
    Header { epoch, lsn: Lsn(lsn), body, origin, time: Time(lsn), answered: Request(0), length, digest }
}

fn system(epoch: Epoch, lsn: u64, body: Body, request: Option<u64>) -> Record {
    let entry = Entry { header: header(epoch, lsn, body, request), payload: Bytes::new() };
    Record { entry, reply: Digest::default() }
}

fn command(lsn: u64, request: u64, size: usize) -> Record {
    let payload = Bytes::from(vec![7; size]);
    let (length, digest) = (u32::try_from(size).unwrap(), Digest::crc32(&payload));
    let header = Header { length, digest, ..header(FIRST, lsn, Body::Command, Some(request)) };
    Record { entry: Entry { header, payload }, reply: Digest::crc32(b"") }
}

/// The first reign, of which the commands 5 and 6 were rebuilt past the base of the next one; which opens at 7, if it does.
fn history(next: Epoch, opened: bool, size: usize) -> Vec<Record> {
    let first = EpochStart { target: Target::Backup(WEST), ..EpochStart::default() };
    let then = EpochStart { previous: FIRST, base: BASE, observed: Lsn(6), ..EpochStart::default() };
    let mut records = vec![
        system(FIRST, 1, Body::EpochStart(Box::new(first)), None),
        system(FIRST, 2, Body::Open(SessionInfo::default()), Some(0)),
    ];
    records.extend((3..=6).map(|lsn| command(lsn, lsn - 2, size)));
    records.extend(opened.then(|| system(next, 7, Body::EpochStart(Box::new(then)), None)));
    records
}

/// Who has such a log.
#[derive(Clone, Copy, Debug)]
enum Whose {
    /// A backup that took over.
    Takeover,
    /// A primary that started again.
    Restart,
    /// That one's backup.
    Following,
}

impl Whose {
    const ALL: [Self; 3] = [Self::Takeover, Self::Restart, Self::Following];

    fn next(self) -> Epoch {
        FIRST.successor(if matches!(self, Self::Takeover) { WEST } else { EAST }, false)
    }

    fn marks(self) -> Marks {
        let node = if matches!(self, Self::Restart) { EAST } else { WEST };
        let (cluster, group) = (ClusterId(7), GroupId(8));
        let (promised, reign) = (self.next(), self.next());
        Marks { cluster, group, node, promised, reign, base: BASE, in_sync: node == WEST, ..Marks::default() }
    }

    fn start(self) -> Start {
        let primary = PrimarySettings { domain: "here".to_owned(), ..PrimarySettings::default() };
        match self {
            Self::Takeover | Self::Restart => Start::Primary(primary),
            Self::Following => {
                Start::Backup(BackupSettings { domain: "here".to_owned(), endpoint: String::new(), primary })
            }
        }
    }
}

/// A state machine that writes down which commands it is given.
struct Given(Arc<Mutex<Vec<u64>>>);

impl StateMachine for Given {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        self.0.lock().extend(commands.iter().map(|command| command.header.lsn.0));
        replies.extend(commands.iter().map(|_| Bytes::new()));
        Ok(())
    }
    fn query(&mut self, _: &Bytes) -> io::Result<Bytes> {
        Ok(Bytes::new())
    }
    fn snapshot(&self, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }
    fn restore(&mut self, _: &mut dyn io::Read) -> io::Result<()> {
        Ok(())
    }
}

fn open(dir: &Path) -> FileLog {
    FileLog::open(dir, FileLogOptions::default()).unwrap()
}

/// The directory of a node that ended with such a log.
fn directory(whose: Whose, opened: bool, size: usize) -> TempDir {
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let mut log = open(dir.path());
    log.save_marks(&whose.marks()).unwrap();
    log.append(&history(whose.next(), opened, size)).unwrap();
    log.sync().unwrap();
    dir
}

/// Starts the node again, and ends it: what its state machine was given, and where it says that its log ends.
async fn start(dir: &Path, start: Start) -> (Vec<u64>, Lsn) {
    let given = Arc::default();
    let state = Box::new(Given(Arc::clone(&given)));
    let node = Node::start(start, Box::new(open(dir)), state, &NetSettings::default(), None).await.unwrap();
    let head = node.mailbox.status().await.unwrap().head;
    node.close();
    node.mailbox.view().wait_for(|view| view.ended).await.unwrap();
    let given = given.lock().clone();
    (given, head)
}

/// The LSNs of what was set aside.
fn cut(dir: &Path) -> Vec<u64> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let cuts = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("cut-"));
    cuts.flat_map(|path| read_cut(path).unwrap()).map(|record| record.lsn().0).collect()
}

#[tokio::test]
async fn what_a_reign_that_never_opened_left_is_set_aside() {
    for whose in Whose::ALL {
        let dir = directory(whose, false, 10);
        assert_eq!(start(dir.path(), whose.start()).await, (vec![3, 4], BASE), "{whose:?}");
        assert_eq!(open(dir.path()).bounds(), Lsn(1)..BASE.next(), "{whose:?}");
        assert_eq!(cut(dir.path()), [5, 6], "{whose:?}");
    }
}

/// However far past its base the reign opens: the log is read in pieces, and here each record is one.
#[tokio::test]
async fn what_a_reign_that_opened_rebuilt_is_kept() {
    for whose in Whose::ALL {
        for size in [10, replay::PART_BYTES] {
            let dir = directory(whose, true, size);
            assert_eq!(start(dir.path(), whose.start()).await, (vec![3, 4, 5, 6], Lsn(7)), "{whose:?}, {size} bytes");
            assert_eq!(open(dir.path()).bounds(), Lsn(1)..Lsn(8), "{whose:?}, {size} bytes");
            assert_eq!(cut(dir.path()), [0; 0], "{whose:?}, {size} bytes");
        }
    }
}

/// A state machine that fails when it is given a certain LSN: it answers otherwise than the log says, or its disk does not.
struct Fails(Lsn, bool);

impl StateMachine for Fails {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        let there = commands.iter().position(|command| command.header.lsn == self.0);
        if there.is_some() && self.1 {
            return Err(io::Error::other("no room"));
        }
        replies.extend(commands.iter().map(|_| Bytes::new()));
        if let Some(at) = there {
            let at = replies.len() - commands.len() + at;
            replies[at] = Bytes::from_static(b"?");
        }
        Ok(())
    }
    fn query(&mut self, _: &Bytes) -> io::Result<Bytes> {
        Ok(Bytes::new())
    }
    fn snapshot(&self, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }
    fn restore(&mut self, _: &mut dyn io::Read) -> io::Result<()> {
        Ok(())
    }
}

/// A log of many parts, with other entries between the commands.
fn long_history() -> Vec<Record> {
    let first = EpochStart { target: Target::Own, ..EpochStart::default() };
    let mut records = vec![
        system(FIRST, 1, Body::EpochStart(Box::new(first)), None),
        system(FIRST, 2, Body::Open(SessionInfo::default()), Some(0)),
    ];
    for lsn in 3..3000 {
        records.push(match lsn % 100 {
            7 => system(FIRST, lsn, Body::Suspend, Some(0)),
            8 => system(FIRST, lsn, Body::Resume(lsn), Some(0)),
            50 => system(FIRST, lsn, Body::Noop, None),
            _ => command(lsn, lsn, 1 << 10),
        });
    }
    records
}

/// The log is read, decoded and applied on threads of their own, in parts: what comes of it is what one record after the other gives.
#[test]
fn a_log_of_many_parts_is_replayed_in_order() {
    let records = long_history();
    let mut log = crate::store::memory::MemoryLog::default();
    log.append(&records).unwrap();
    let given = Arc::default();
    let found = replay::replay(&mut log, &mut Given(Arc::clone(&given)), &Marks::default()).unwrap();
    let mut expected = LogState::new();
    for record in &records {
        let reply = (record.entry.header.body == Body::Command).then(Bytes::new);
        expected.apply(record, reply).unwrap();
    }
    assert_eq!(found, expected);
    let commands = records.iter().filter(|record| record.entry.header.body == Body::Command);
    assert_eq!(*given.lock(), commands.map(|record| record.lsn().0).collect::<Vec<_>>());
}

/// Wherever it is in the log, with how much still to be read: the start fails with the cause, and does not hang.
#[test]
fn a_replay_that_fails_says_why() {
    let mut log = crate::store::memory::MemoryLog::default();
    log.append(&long_history()).unwrap();
    for lsn in [3, 1500, 2999].map(Lsn) {
        for (broken, code) in [(false, Code::Diverged), (true, Code::Storage)] {
            let error = replay::replay(&mut log, &mut Fails(lsn, broken), &Marks::default()).unwrap_err();
            assert_eq!(error.code(), code, "{lsn}: {error}");
            assert!(broken || error.message().contains(&lsn.to_string()), "{error}");
        }
    }
}

/// What such a store finds where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    ThePlace,
    Nothing,
    /// The first record, wherever it is to be read: it is wrong itself.
    TheFirst,
}

/// A log one of whose records is no record, which shows when it is decoded.
struct Odd {
    log: crate::store::memory::MemoryLog,
    odd: Lsn,
    found: Found,
}

impl LogStore for Odd {
    fn marks(&mut self) -> io::Result<Option<Marks>> {
        self.log.marks()
    }
    fn save_marks(&mut self, marks: &Marks) -> io::Result<()> {
        self.log.save_marks(marks)
    }
    fn bounds(&self) -> std::ops::Range<Lsn> {
        self.log.bounds()
    }
    fn read(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Vec<Record>> {
        let from = if self.found == Found::TheFirst { Lsn(1) } else { from };
        let bytes_max = if self.found == Found::TheFirst { 1 } else { bytes_max };
        let records = self.log.read(from, bytes_max)?;
        if self.found == Found::ThePlace && records.iter().any(|record| record.lsn() == self.odd) {
            return Err(Error::new(Code::Corrupt, "it is at this very place").into());
        }
        Ok(records)
    }
    fn read_encoded(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Encoded> {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for record in self.log.read(from, bytes_max)? {
            match record.lsn() == self.odd {
                true => bytes.push(0),
                false => crate::codec::encode_record(&record, &mut bytes),
            }
            ends.push(bytes.len());
        }
        Ok(Encoded::new(from, bytes, ends))
    }
    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        self.log.append(records)
    }
    fn sync(&mut self) -> io::Result<Lsn> {
        self.log.sync()
    }
    fn truncate_after(&mut self, last: Lsn) -> io::Result<()> {
        self.log.truncate_after(last)
    }
}

/// A store that reads otherwise than it decodes does not hold up the start for ever.
#[test]
fn a_place_that_is_not_found_is_not_looked_for_for_ever() {
    let mut log = crate::store::memory::MemoryLog::default();
    log.append(&long_history()).unwrap();
    let mut log = Odd { log, odd: Lsn(1500), found: Found::TheFirst };
    let error = replay::replay(&mut log, &mut Given(Arc::default()), &Marks::default()).unwrap_err();
    assert_eq!(error.code(), Code::UnknownKind, "{error}");
}

/// What is before it was applied, and nothing after it.
#[test]
fn a_record_that_cannot_be_decoded_is_told_of_with_its_place() {
    let mut log = crate::store::memory::MemoryLog::default();
    log.append(&long_history()).unwrap();
    for (odd, found) in
        [1, 1500, 2999].into_iter().flat_map(|odd| [Found::ThePlace, Found::Nothing].map(|found| (odd, found)))
    {
        let placed = found == Found::ThePlace;
        let mut log = Odd { log: log.clone(), odd: Lsn(odd), found };
        let given = Arc::default();
        let error = replay::replay(&mut log, &mut Given(Arc::clone(&given)), &Marks::default()).unwrap_err();
        let (code, place) = if placed { (Code::Corrupt, "this very place") } else { (Code::UnknownKind, "record ") };
        assert_eq!(error.code(), code, "{odd}: {error}");
        assert!(error.message().contains(place) && (placed || error.message().contains(&odd.to_string())), "{error}");
        assert!(given.lock().iter().all(|lsn| *lsn < odd), "{odd}");
        assert!(odd == 1 || !given.lock().is_empty(), "{odd}: there are parts before it");
    }
}

/// It asked for the time of its next checkpoint for ever once, and turned round and round with it.
#[tokio::test]
async fn a_node_that_failed_waits_for_nothing() {
    let policy = RecoveryPolicy::Conclude { gaps: GapPolicy::Stop, soft_us: 60_000_000, hard_us: 60_000_000 };
    let settings = PrimarySettings { domain: "east".to_owned(), policy, ..PrimarySettings::default() };
    let mut log = crate::store::memory::MemoryLog::default();
    log.append(&long_history()[..2]).unwrap();
    let marks =
        Marks { node: EAST, reign: FIRST, promised: FIRST, base: Lsn(0), in_sync: false, ..Whose::Restart.marks() };
    log.save_marks(&marks).unwrap();
    let (view, _watching) = watch::channel(View {
        role: Role::Recovering,
        opened: None,
        in_sync: false,
        stopped: None,
        failure: None,
        ended: false,
    });
    let (events, _) = broadcast::channel(1);
    let state = Box::new(Given(Arc::default()));
    let mut node = Sequencer::begin(Start::Primary(settings), Box::new(log), state, events, view, 1 << 20).unwrap();
    // The marks of the new reign are saved by then, and its roll call has begun.
    while node.timer().is_none() {
        tokio::time::timeout(Duration::from_secs(20), node.storage.rings()).await.unwrap();
        node.take_done();
        node.flush();
    }
    node.halt(Error::new(Code::Storage, "the disk is gone"));
    assert_eq!(node.timer(), None);
}
