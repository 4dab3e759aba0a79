//! What users test their own parts with, on parts that are sound, and on parts that are broken in one way each: a check
//! that cannot fail is no check.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tagalong::client::CacheOp;
use tagalong::log::Record;
use tagalong::log::{Digest, Entry, Lsn};
use tagalong::store::kv::{KvCommand, KvQuery, KvStore};
use tagalong::store::memory::{MemoryCache, MemoryLog};
use tagalong::store::{ClientCache, LogStore, Marks, Missing, StateMachine};
use tagalong::testing::{self, Check, Dice, Disasters, Failure, state_machine};

/// A way to be broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    RepliesTwice,
    ClearsReplies,
    FailsOnNothing,
    HashOrderInReplies,
    HashOrderInState,
    AddressInReplies,
    ClockInReplies,
    CountsInstances,
    BatchInReplies,
    BatchInState,
    QueriesCount,
    SnapshotsCount,
    UnsortedSnapshot,
    SnapshotForgetsAField,
    SnapshotForgetsWhatOnlyQueriesShow,
    SnapshotCannotBeRestored,
    RestoreAdds,
    NoChecksum,
    RestorePanics,
    RestoreFailsHalfWay,
    PanicsOnNonsense,
    StopsOnNonsense,
    QueryPanicsOnNonsense,
    FootprintForgetsAReply,
    FootprintForgetsState,
    FootprintKnowsTheUnknown,
    SaysItIsDurable,
    PanicsNowAndThen,
}

/// Every client has an account, and adds to it: the reply is the sum and how often it added.
#[derive(Clone)]
struct Bank {
    bug: Bug,
    accounts: BTreeMap<u128, (u64, u64)>,
    /// What was added last, as only queries show it.
    last: u64,
    /// Of all accounts: only what is broken uses it.
    total: u64,
    seen: HashSet<Bytes>,
    apart: Box<u8>,
    born: u64,
    reads: Cell<u64>,
}

static BORN: AtomicU64 = AtomicU64::new(0);

fn bank(bug: Bug) -> Bank {
    Bank {
        bug,
        accounts: BTreeMap::new(),
        last: 0,
        total: 0,
        seen: HashSet::new(),
        apart: Box::new(0),
        born: BORN.fetch_add(1, Ordering::Relaxed),
        reads: Cell::new(0),
    }
}

impl Bank {
    fn add(&mut self, entry: &Entry, batch: usize) -> String {
        let text = std::str::from_utf8(&entry.payload).unwrap_or_default();
        let Some(amount) = text.strip_prefix("add ").and_then(|amount| amount.parse::<u32>().ok()) else {
            assert!(self.bug != Bug::PanicsOnNonsense, "what is {text:?}?");
            return "what?".to_owned();
        };
        let account = self.accounts.entry(entry.header.origin.unwrap().client.0).or_default();
        *account = (account.0 + u64::from(amount), account.1 + 1);
        let (sum, times) = *account;
        self.last = u64::from(amount);
        self.seen.insert(entry.payload.clone());
        let any = self.seen.iter().next().cloned().unwrap_or_default();
        match self.bug {
            Bug::HashOrderInState => self.total = Digest::crc32(&any).value,
            Bug::BatchInState => self.total += batch as u64,
            Bug::CountsInstances => return format!("{sum} {}", self.born),
            Bug::HashOrderInReplies => return format!("{sum} {any:?}"),
            Bug::AddressInReplies => return format!("{sum} {:p}", self.apart),
            Bug::ClockInReplies => return format!("{sum} {:?}", Instant::now()),
            Bug::BatchInReplies => return format!("{sum} {batch}"),
            Bug::QueriesCount | Bug::SnapshotsCount => return format!("{sum} {}", self.reads.get()),
            Bug::PanicsNowAndThen => assert!(sum < 100, "{sum} is too much"),
            Bug::FootprintForgetsAReply => {
                self.total += u64::from(amount);
                return format!("{sum} of {}", self.total);
            }
            Bug::FootprintForgetsState => self.total = self.total.wrapping_mul(31).wrapping_add(u64::from(amount)),
            _ => {}
        }
        format!("{sum} {times}")
    }

    fn content(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (client, (sum, times)) in &self.accounts {
            out.extend(client.to_le_bytes());
            out.extend(sum.to_le_bytes());
            let times = if self.bug == Bug::SnapshotForgetsAField { 0 } else { *times };
            out.extend(times.to_le_bytes());
        }
        if self.bug == Bug::UnsortedSnapshot {
            // As many bytes as an account, in any order.
            for seen in &self.seen {
                let mut bytes = seen.to_vec();
                bytes.resize(16, b' ');
                out.extend([[0xff; 16].to_vec(), bytes].concat());
            }
        }
        out
    }
}

impl StateMachine for Bank {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        match self.bug {
            Bug::ClearsReplies => replies.clear(),
            Bug::FailsOnNothing if commands.is_empty() => return Err(io::Error::other("nothing to do")),
            _ => {}
        }
        for entry in commands {
            let reply = self.add(entry, commands.len());
            if self.bug == Bug::StopsOnNonsense && reply == "what?" {
                return Err(io::Error::other("what?"));
            }
            replies.push(reply.clone().into());
            if self.bug == Bug::RepliesTwice {
                replies.push(reply.into());
            }
        }
        Ok(())
    }

    fn query(&mut self, query: &Bytes) -> io::Result<Bytes> {
        assert!(self.bug != Bug::QueryPanicsOnNonsense || query == "all", "no such query");
        self.reads.set(self.reads.get() + 1);
        let last = if self.bug == Bug::SnapshotForgetsWhatOnlyQueriesShow { self.last } else { 0 };
        Ok(format!("{:?} {last} {}", self.accounts, self.total).into())
    }

    fn durable(&self) -> Lsn {
        Lsn(u64::from(self.bug == Bug::SaysItIsDurable && !self.accounts.is_empty()))
    }

    fn snapshot(&self, out: &mut dyn io::Write) -> io::Result<()> {
        if self.bug == Bug::SnapshotsCount {
            self.reads.set(self.reads.get() + 1);
        }
        let mut content = self.content();
        content.extend(self.total.to_le_bytes());
        let crc = Digest::crc32(&content).value;
        out.write_all(&content)?;
        if self.bug == Bug::NoChecksum { Ok(()) } else { out.write_all(&crc.to_le_bytes()) }
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is no snapshot of a bank");
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let mut content = &bytes[..];
        match self.bug {
            Bug::SnapshotCannotBeRestored => return Err(bad()),
            Bug::RestoreFailsHalfWay => self.accounts.clear(),
            _ => {}
        }
        if self.bug != Bug::NoChecksum {
            let (before, crc) = bytes.split_last_chunk::<8>().ok_or_else(bad)?;
            let good = Digest::crc32(before).value == u64::from_le_bytes(*crc);
            assert!(good || self.bug != Bug::RestorePanics, "the checksum is wrong");
            content = if good { before } else { return Err(bad()) };
        }
        let (content, total) = content.split_last_chunk::<8>().ok_or_else(bad)?;
        let mut accounts = BTreeMap::new();
        for account in content.chunks(32) {
            let (client, rest) = account.split_first_chunk::<16>().ok_or_else(bad)?;
            let (sum, rest) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
            let times = rest.first_chunk::<8>().ok_or_else(bad)?;
            if client != &[0xff; 16] {
                let account = (u64::from_le_bytes(*sum), u64::from_le_bytes(*times));
                accounts.insert(u128::from_le_bytes(*client), account);
            }
        }
        if self.bug == Bug::RestoreAdds {
            self.accounts.extend(accounts);
            return Ok(());
        }
        if self.bug == Bug::UnsortedSnapshot {
            let seen = content.chunks(32).filter(|seen| seen[..16] == [0xff; 16]);
            self.seen = seen.map(|seen| Bytes::copy_from_slice(seen[16..].trim_ascii_end())).collect();
        }
        (self.accounts, self.total) = (accounts, u64::from_le_bytes(*total));
        Ok(())
    }

    /// Each account has one owner, and nobody else touches it.
    fn independent(&self, later: &Entry, missing: &[Missing]) -> bool {
        let owner = later.header.origin.map(|origin| origin.client);
        missing.iter().all(|missing| match &missing.header {
            Some(header) => header.origin.map(|origin| origin.client) != owner,
            None => self.bug == Bug::FootprintKnowsTheUnknown,
        })
    }
}

fn command(dice: &mut Dice) -> String {
    if dice.percent(5) { "subtract".to_owned() } else { format!("add {}", dice.below(20)) }
}

fn checked(bug: Bug) -> Result<(), Failure> {
    state_machine(move || bank(bug), command).queries(|_| "all").seeds(0..40).check()
}

fn survived(bug: Bug) -> Result<(), Failure> {
    Disasters::new(move || bank(bug), command).seeds(0..60).run().map(drop)
}

fn kv_command(dice: &mut Dice) -> Bytes {
    let key = format!("key {}", dice.below(5));
    match dice.below(5) {
        0 => KvCommand::put(key, dice.bytes(30)).encode(),
        1 => KvCommand::append(key, dice.bytes(3)).encode(),
        2 => KvCommand::compare_and_set(key, Some(""), Some("set")).encode(),
        3 => KvCommand::delete(key).encode(),
        _ => dice.bytes(20).into(),
    }
}

fn kv_query(dice: &mut Dice) -> Bytes {
    if dice.percent(50) { KvQuery::list("").encode() } else { KvQuery::get(format!("key {}", dice.below(5))).encode() }
}

#[test]
fn the_key_value_store_passes() -> Result<(), Failure> {
    state_machine(KvStore::new, kv_command).queries(kv_query).check()
}

#[test]
fn the_key_value_store_survives_disasters() -> Result<(), Failure> {
    let survived = Disasters::new(KvStore::new, kv_command).seeds(0..150).run()?;
    println!("{survived}");
    // Each of these has to have happened often, or the disasters are none.
    assert_eq!(survived.runs, 150);
    assert!(survived.acknowledged > 4_000 && survived.takeovers > 200, "{survived}");
    assert!(survived.rebuilt > 1_000 && survived.restarts > 30 && survived.from_snapshots > 20, "{survived}");
    assert!(survived.backup_restarts > 50 && survived.client_restarts > 200 && survived.cuts > 300, "{survived}");
    Ok(())
}

#[test]
fn a_sound_state_machine_passes() -> Result<(), Failure> {
    checked(Bug::None)?;
    survived(Bug::None)
}

#[test]
fn a_seed_is_a_run() -> Result<(), Failure> {
    let run = || Disasters::new(|| bank(Bug::None), command).seeds(7..11).clients(5).commands(30).run();
    assert_eq!(run()?, run()?);
    assert_ne!(run()?, Disasters::new(|| bank(Bug::None), command).seeds(8..12).clients(5).commands(30).run()?);
    Ok(())
}

#[test]
fn every_broken_state_machine_is_caught_by_its_check() {
    // The last column: how many commands are needed at most to show it.
    for (bug, check, most) in [
        (Bug::RepliesTwice, Check::Replies, 1),
        (Bug::ClearsReplies, Check::Replies, 0),
        (Bug::FailsOnNothing, Check::Replies, 0),
        (Bug::HashOrderInReplies, Check::Determinism, 3),
        (Bug::HashOrderInState, Check::Determinism, 3),
        (Bug::AddressInReplies, Check::Determinism, 1),
        (Bug::ClockInReplies, Check::Determinism, 1),
        (Bug::CountsInstances, Check::Determinism, 1),
        (Bug::BatchInReplies, Check::Batches, 2),
        (Bug::BatchInState, Check::Batches, 2),
        (Bug::QueriesCount, Check::Reads, 1),
        (Bug::SnapshotsCount, Check::Reads, 1),
        (Bug::UnsortedSnapshot, Check::EqualSnapshots, 3),
        (Bug::SnapshotForgetsAField, Check::Snapshot, 2),
        (Bug::SnapshotForgetsWhatOnlyQueriesShow, Check::Snapshot, 1),
        (Bug::SnapshotCannotBeRestored, Check::Snapshot, 0),
        (Bug::RestoreAdds, Check::Snapshot, 1),
        (Bug::NoChecksum, Check::DamagedSnapshot, 1),
        (Bug::RestorePanics, Check::DamagedSnapshot, 0),
        (Bug::RestoreFailsHalfWay, Check::DamagedSnapshot, 2),
        (Bug::PanicsOnNonsense, Check::Replies, 1),
        (Bug::StopsOnNonsense, Check::Replies, 1),
        (Bug::QueryPanicsOnNonsense, Check::Nonsense, 0),
        (Bug::FootprintForgetsAReply, Check::Independence, 2),
        (Bug::FootprintForgetsState, Check::Independence, 2),
        (Bug::FootprintKnowsTheUnknown, Check::Independence, 4),
        (Bug::SaysItIsDurable, Check::Durable, 1),
    ] {
        let failure = checked(bug).expect_err(&format!("{bug:?} is not noticed"));
        assert_eq!(failure.check(), check, "{bug:?}: {failure}");
        assert!(failure.commands().len() <= most, "{bug:?}: {failure}");
    }
}

/// The generator makes sense only; the suite does not.
#[test]
fn nonsense_is_tried_where_no_generator_makes_it() {
    for bug in [Bug::PanicsOnNonsense, Bug::StopsOnNonsense] {
        let test = state_machine(move || bank(bug), |dice| format!("add {}", dice.below(9)));
        let failure = test.seeds(0..3).check().expect_err("it is not noticed");
        assert_eq!(failure.check(), Check::Nonsense, "{bug:?}: {failure}");
    }
}

#[test]
fn every_broken_state_machine_is_caught_by_a_disaster() {
    for (bug, check, most) in [
        (Bug::HashOrderInReplies, Check::Diverged, 6),
        (Bug::HashOrderInState, Check::State, 6),
        (Bug::AddressInReplies, Check::Diverged, 1),
        (Bug::ClockInReplies, Check::Diverged, 1),
        (Bug::CountsInstances, Check::Diverged, 1),
        (Bug::BatchInReplies, Check::Diverged, 6),
        (Bug::BatchInState, Check::State, 6),
        (Bug::SnapshotForgetsAField, Check::Snapshot, 6),
        (Bug::SnapshotCannotBeRestored, Check::Snapshot, 1),
        (Bug::PanicsNowAndThen, Check::Stopped, 12),
        (Bug::StopsOnNonsense, Check::Stopped, 1),
        (Bug::RepliesTwice, Check::Replies, 1),
    ] {
        let failure = survived(bug).expect_err(&format!("{bug:?} is not noticed"));
        assert_eq!(failure.check(), check, "{bug:?}: {failure}");
        assert!(failure.commands().len() <= most, "{bug:?}: {failure}");
    }
}

/// Where a divergence shows depends on where the entry was executed twice: by the backup, by a rebuild, by a restart.
#[test]
fn a_divergence_is_seen_by_backups_rebuilds_and_restarts() {
    let mut left = vec!["a backup) stops: Diverged", "reports `Diverged(", "refuses to start on its own log"];
    let mut caught = 0;
    for seed in 0..150 {
        // One command that can be answered otherwise, and one that comes later: what is seen is not made simpler.
        let first = Cell::new(true);
        let command = |_: &mut Dice| if first.replace(false) { "add 3" } else { "subtract" };
        let disasters = Disasters::new(|| bank(Bug::CountsInstances), command).commands(2).seeds(seed..seed + 1);
        // In some stories the clients die before they have said anything.
        let Err(failure) = disasters.run() else { continue };
        caught += 1;
        assert_eq!((failure.check(), failure.seed()), (Check::Diverged, seed), "{failure}");
        // The command, and both replies.
        let payload = String::from_utf8(failure.commands()[0].to_vec()).unwrap();
        let named = failure.why().contains(&format!("command \"{payload}\" at LSN"));
        let both = [" is answered \"", " was answered \""].iter().any(|answered| failure.why().contains(answered));
        assert!(named && both, "{failure}");
        left.retain(|way| !failure.why().contains(way));
    }
    assert!(left.is_empty() && caught > 100, "not seen: {left:?}, of {caught}");
}

/// What a test prints is all that its reader has.
#[test]
fn a_failure_is_readable() {
    let show = |bytes: &[u8]| format!("<{}>", String::from_utf8_lossy(bytes));
    let test = state_machine(|| bank(Bug::SnapshotForgetsAField), |dice| format!("add {}", dice.below(3)));
    let failure = test.seeds(3..9).show(show).check().unwrap_err();
    let text = failure.to_string();
    assert_eq!(format!("{failure:?}"), text, "a test that returns it prints it with {{:?}}");
    let first = "\"a snapshot is the state\" does not hold (Snapshot): later command ";
    assert!(text.starts_with(first), "{text}");
    assert!(text.contains("\n     1  <add ") && text.ends_with(".seeds(3..4)"), "{text}");
    assert!(text.contains("commands are enough to see it"), "{text}");
}

/// The protocol with a rule missing: what the world itself promises is checked, too, and a run that cannot end does.
#[cfg(feature = "seeded-bugs")]
#[test]
fn a_broken_protocol_is_caught() {
    use tagalong::rule::{Rule, switch_off};
    for (rule, check) in
        [(Rule::AwaitRoster, Check::Lost), (Rule::CacheBeforeConfirm, Check::Lost), (Rule::Manifest, Check::Unfinished)]
    {
        switch_off(Some(rule));
        let run = |seed| Disasters::new(|| bank(Bug::None), command).seeds(seed..seed + 1).run();
        let found = (0..60).find(|seed| run(*seed).is_err_and(|failure| failure.check() == check));
        switch_off(None);
        assert!(found.is_some(), "{rule:?} is not missed");
    }
}

/// A log that forgets its marks, and one that loses what it synced in a crash.
#[derive(Clone, Default)]
struct Forgetful {
    log: MemoryLog,
    marks: bool,
    synced: bool,
}

impl LogStore for Forgetful {
    fn marks(&mut self) -> io::Result<Option<Marks>> {
        if self.marks { Ok(None) } else { self.log.marks() }
    }

    fn save_marks(&mut self, marks: &Marks) -> io::Result<()> {
        self.log.save_marks(marks)
    }

    fn bounds(&self) -> std::ops::Range<Lsn> {
        self.log.bounds()
    }

    fn read(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Vec<Record>> {
        self.log.read(from, bytes_max)
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        self.log.append(records)
    }

    fn sync(&mut self) -> io::Result<Lsn> {
        if self.synced { Ok(self.log.bounds().end.prev()) } else { self.log.sync() }
    }

    fn truncate_after(&mut self, last: Lsn) -> io::Result<()> {
        self.log.truncate_after(last)
    }
}

/// A cache that takes what it is given, and has nothing when it is opened again.
struct Oblivious(Vec<CacheOp>);

impl ClientCache for Oblivious {
    fn load(&mut self) -> io::Result<Vec<CacheOp>> {
        Ok(self.0.clone())
    }

    fn write(&mut self, ops: &[CacheOp]) -> io::Result<()> {
        self.0.extend_from_slice(ops);
        Ok(())
    }
}

fn check_log(disk: &Forgetful) {
    testing::log_store(|| {
        let disk = Forgetful { log: MemoryLog::new(), ..disk.clone() };
        move || disk.clone()
    });
    testing::log_store_crash(|| {
        let disk = Forgetful { log: MemoryLog::new(), ..disk.clone() };
        let crashed = disk.log.clone();
        let crash = move |log: Forgetful, dice: u64| {
            drop(log);
            crashed.crash(usize::try_from(dice).unwrap() % (crashed.unsynced() + 1));
        };
        (move || disk.clone(), crash)
    });
}

/// The suites of stores panic, as they always did; `tests/store_conformance.rs` has a broken store for each check.
#[test]
fn the_suites_of_stores_are_here_as_well() {
    let caught = |check: &str, suite: &dyn Fn()| {
        let failure = std::panic::catch_unwind(std::panic::AssertUnwindSafe(suite)).expect_err(check);
        let why = failure.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(why.starts_with(check), "{why}");
    };
    check_log(&Forgetful::default());
    caught("marks are replaced", &|| check_log(&Forgetful { marks: true, ..Forgetful::default() }));
    let lazy = Forgetful { synced: true, ..Forgetful::default() };
    caught("a crash leaves what was synced, and a prefix", &|| check_log(&lazy));
    testing::client_cache(|| {
        let disk = MemoryCache::new();
        move || disk.clone()
    });
    caught("written operations are loaded: a restart", &|| testing::client_cache(|| || Oblivious(Vec::new())));
}
