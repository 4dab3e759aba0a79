//! What a node makes of its log when it starts on it: what a reign that never opened left past its base is set aside before
//! the state machine, or anybody else, is given any of it; and nothing else is.

#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;

use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::backup::BackupSettings;
use crate::log::{ClientId, Digest, Header, Origin, Request, SessionInfo, Target, Time};
use crate::primary::PrimarySettings;
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
        for size in [10, REPLAY_BYTES] {
            let dir = directory(whose, true, size);
            assert_eq!(start(dir.path(), whose.start()).await, (vec![3, 4, 5, 6], Lsn(7)), "{whose:?}, {size} bytes");
            assert_eq!(open(dir.path()).bounds(), Lsn(1)..Lsn(8), "{whose:?}, {size} bytes");
            assert_eq!(cut(dir.path()), [], "{whose:?}, {size} bytes");
        }
    }
}
