//! What a node and a client rely on, as checks for one's own [`LogStore`], [`ClientCache`] and [`StateMachine`].
//!
//! Call the functions from a test. Each takes a closure that makes *new, empty* storage and returns another one that
//! opens it; opening it again, after the last one opened was dropped, stands for a restart of the process. The first
//! violation panics with the name of the check and what was expected.
//!
//! ```
//! use tagalong::store::conformance;
//! use tagalong::store::kv::{KvCommand, KvQuery, KvStore};
//! use tagalong::store::memory::{MemoryCache, MemoryLog};
//!
//! conformance::log_store(|| {
//!     let disk = MemoryLog::new();
//!     move || disk.clone()
//! });
//! conformance::log_store_crash(|| {
//!     let disk = MemoryLog::new();
//!     let crashed = disk.clone();
//!     let crash = move |log: MemoryLog, dice: u64| {
//!         drop(log);
//!         crashed.crash(dice as usize % (crashed.unsynced() + 1));
//!     };
//!     (move || disk.clone(), crash)
//! });
//! conformance::client_cache(|| {
//!     let disk = MemoryCache::new();
//!     move || disk.clone()
//! });
//! let commands = [KvCommand::put("k", "v").encode(), KvCommand::append("k", "w").encode()];
//! conformance::state_machine(KvStore::new, &commands, &[KvQuery::get("k").encode()]);
//! ```
//!
//! With the feature `testing` this crate has a module of that name, with a suite for state machines that makes commands
//! from dice and shortens what fails, and with disasters to put them through.
//!
//! Not here: full disks, failing syncs and damaged files. They look different in every store, and their tests do too.

use std::io;

use bytes::Bytes;

use crate::client::{CacheImage, CacheOp, Command, Identity};
use crate::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GapPolicy, GroupId, Header, Level, Lsn, NodeId,
    Origin, Record, Reign, Request, SessionInfo, SessionRole, Tag, Target, Time,
};
use crate::share::{Mode, Share};
use crate::store::{ClientCache, LogStore, Marks, StateMachine};

/// Checks a log: order, bounds, limits, marks, cuts, restarts.
///
/// # Panics
/// At the first violation.
pub fn log_store<L: LogStore, O: FnMut() -> L>(mut new: impl FnMut() -> O) {
    an_empty_log(&mut new()());
    appended_records_are_read(&mut new()());
    reads_keep_to_the_limit(&mut new()());
    only_the_next_record_is_taken(&mut new()());
    a_restart_keeps_what_was_synced(new());
    marks_are_replaced(new());
    a_cut_is_final(new());
}

/// Checks what a crash of the machine leaves. The second closure takes the log that is open, and a number, different
/// each time, by which it may choose how much of what was not synced survives; afterwards the first one is called.
///
/// # Panics
/// At the first violation.
pub fn log_store_crash<L, O, C>(mut new: impl FnMut() -> (O, C))
where
    L: LogStore,
    O: FnMut() -> L,
    C: FnMut(L, u64),
{
    for seed in 0..8 {
        let (open, crash) = new();
        a_crash_leaves_what_was_synced_and_a_prefix(open, crash, seed);
        let (open, crash) = new();
        a_crash_does_not_undo_marks_and_cuts(open, crash, seed);
    }
}

/// Checks a client's cache: what was written is loaded, in order, also after a restart, and shares with it until they
/// are released.
///
/// # Panics
/// At the first violation.
pub fn client_cache<C: ClientCache, O: FnMut() -> C>(mut new: impl FnMut() -> O) {
    a_new_cache_is_empty(new());
    written_operations_are_loaded(new());
    shares_are_kept_until_they_are_released(new());
}

/// Checks a state machine on `commands`, in this order, and `queries`, of which some should have different answers
/// before and after. `new` makes one in its first state.
///
/// # Panics
/// At the first violation.
pub fn state_machine<S: StateMachine>(mut new: impl FnMut() -> S, commands: &[Bytes], queries: &[Bytes]) {
    assert!(!commands.is_empty() && !queries.is_empty(), "conformance: give it some commands and queries");
    state_is_a_function_of_the_commands(&mut new, commands, queries);
    queries_change_nothing(&mut new, commands, queries);
    a_snapshot_is_the_state(&mut new, commands, queries);
    nonsense_is_answered(&mut new, commands);
    let durable = new().durable();
    assert!(durable == Lsn(0), "durable: it is {durable}, and this version only runs state that the log rebuilds");
}

/// Fails with the name of the check.
macro_rules! ensure {
    ($check:expr, $ok:expr, $($why:tt)+) => {
        assert!($ok, "{}: {}", $check, format_args!($($why)+))
    };
}

/// The result, or a failure with the name of the check.
fn done<T>(check: &str, call: &str, result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{check}: {call} fails: {error}"))
}

/// The two ways to read.
#[derive(Clone, Copy, Debug)]
enum Reading {
    Read,
    ReadEncoded,
}

impl Reading {
    const ALL: [Self; 2] = [Self::Read, Self::ReadEncoded];

    fn records(self, check: &str, log: &mut dyn LogStore, from: u64, bytes_max: usize) -> Vec<Record> {
        match self {
            Self::Read => done(check, "read", log.read(Lsn(from), bytes_max)),
            Self::ReadEncoded => {
                let encoded = done(check, "read_encoded", log.read_encoded(Lsn(from), bytes_max));
                let last = encoded.last();
                let records = done(check, "read_encoded", encoded.decode().map_err(io::Error::from));
                ensure!(check, records.last().map(Record::lsn) == last, "read_encoded says that it ends at {last:?}");
                records
            }
        }
    }
}

fn all(check: &str, log: &mut dyn LogStore) -> Vec<Record> {
    let bounds = log.bounds();
    ensure!(
        check,
        bounds.start == Lsn(1),
        "bounds begins at {}, and no log of this version is cut in front",
        bounds.start
    );
    let [read, encoded] = Reading::ALL.map(|reading| {
        let mut out: Vec<Record> = Vec::new();
        while Lsn(out.len() as u64 + 1) < bounds.end {
            let from = out.len() as u64 + 1;
            let more = reading.records(check, log, from, 1000);
            ensure!(
                check,
                !more.is_empty(),
                "{reading:?}({from}) gives nothing, though bounds ends with {}",
                bounds.end
            );
            out.extend(more);
        }
        ensure!(check, out.len() as u64 == bounds.end.0 - 1, "{reading:?} gives records past the end of bounds");
        out
    });
    same(check, &encoded, &read);
    read
}

fn same(check: &str, found: &[Record], expected: &[Record]) {
    for (nth, (found, expected)) in found.iter().zip(expected).enumerate() {
        ensure!(check, found == expected, "record {} is {found:?} and not {expected:?}", nth + 1);
    }
    ensure!(check, found.len() == expected.len(), "there are {} records and not {}", found.len(), expected.len());
}

const EPOCH: Epoch = Epoch { generation: 1, number: 3, node: NodeId(5) };

fn header(body: Body, lsn: u64) -> Header {
    let origin = lsn.is_multiple_of(2).then_some(Origin { client: ClientId(u128::MAX - 9), request: Request(lsn) });
    let (time, answered) = (Time(1000 + lsn), Request(lsn / 2));
    Header { epoch: EPOCH, lsn: Lsn(lsn), body, origin, time, answered, length: 0, digest: Digest::default() }
}

/// The record at `lsn` of history `which`; every kind comes by.
fn record(which: u8, lsn: u64) -> Record {
    let start = EpochStart {
        previous: Epoch::ZERO,
        base: Lsn(7),
        observed: Lsn(9),
        f: 1,
        lowest: Level::Stable,
        log_before_send: true,
        target: Target::Backup(NodeId(8)),
        policy: Some(GapPolicy::Skip),
        missing: vec![ClientId(1), ClientId(2)],
        excluded: vec![ClientId(3)],
        gaps: vec![Lsn(8)..Lsn(9)],
    };
    let info = SessionInfo { incarnation: 2, domain: "rack 1".to_owned(), role: SessionRole::Reader };
    let body = match lsn % 20 {
        1 => Body::EpochStart(Box::new(start)),
        2 => Body::Open(info),
        3 => Body::Noop,
        4 => Body::Suspend,
        5 => Body::Resume(4),
        6 => Body::Close,
        7 => Body::Expire,
        8 => Body::Config(Target::Own),
        _ => Body::Command,
    };
    let mut header = header(body, lsn);
    let mut payload = Bytes::new();
    if header.body == Body::Command {
        payload = Bytes::from(vec![which; usize::try_from(lsn * 37 % 300).unwrap_or(0)]);
        header.length = u32::try_from(payload.len()).unwrap_or(0);
        header.digest = Digest::crc32(&payload);
    }
    // Histories differ even where there is no payload.
    let reply = Digest::crc32(&[which]);
    Record { entry: Entry { header, payload }, reply }
}

fn records(which: u8, lsns: std::ops::Range<u64>) -> Vec<Record> {
    lsns.map(|lsn| record(which, lsn)).collect()
}

fn an_empty_log(log: &mut dyn LogStore) {
    let check = "an empty log";
    ensure!(check, log.bounds() == (Lsn(1)..Lsn(1)), "bounds is {:?} and not 1..1", log.bounds());
    ensure!(check, done(check, "read", log.read(Lsn(1), 1000)).is_empty(), "read gives records");
    ensure!(check, done(check, "marks", log.marks()).is_none(), "there are marks that nobody saved");
    done(check, "append", log.append(&[]));
    let synced = done(check, "sync", log.sync());
    ensure!(check, synced == Lsn(0), "sync gives {synced} and not 0");
    done(check, "truncate_after", log.truncate_after(Lsn(0)));
    ensure!(check, log.bounds() == (Lsn(1)..Lsn(1)), "bounds is {:?} after nothing was done", log.bounds());
}

fn appended_records_are_read(log: &mut dyn LogStore) {
    let check = "appended records are read";
    let expected = records(1, 1..100);
    for (nth, batch) in expected.chunks(6).enumerate() {
        done(check, "append", log.append(batch));
        let end = batch.last().map_or(Lsn(0), Record::lsn).next();
        ensure!(check, log.bounds() == (Lsn(1)..end), "bounds is {:?} after {end} became the next", log.bounds());
        // What is appended counts at once, synced or not.
        same(check, &all(check, log), &expected[..expected.len().min(nth * 6 + 6)]);
        if nth % 3 == 0 {
            let synced = done(check, "sync", log.sync());
            ensure!(check, synced == end.prev(), "sync gives {synced} and not {}", end.prev());
        }
    }
    for (from, reading) in [99, 1, 50, 51, 2, 98].into_iter().flat_map(|from| Reading::ALL.map(|way| (from, way))) {
        same(check, &reading.records(check, log, from, usize::MAX), &records(1, from..100));
    }
}

fn reads_keep_to_the_limit(log: &mut dyn LogStore) {
    let check = "reads keep to the limit";
    done(check, "append", log.append(&records(1, 1..200)));
    for reading in Reading::ALL {
        for (limit, from) in [0, 1, 500, 3000].into_iter().flat_map(|limit| [1, 77, 199].map(|from| (limit, from))) {
            let found = reading.records(check, log, from, limit);
            let what = format!("{reading:?}({from}, {limit})");
            ensure!(check, !found.is_empty(), "{what} gives nothing: at least one record is due");
            same(check, &found, &records(1, from..from + found.len() as u64));
            let payloads: usize = found[1..].iter().map(|record| record.entry.payload.len()).sum();
            ensure!(check, payloads <= limit, "{what} gives {payloads} bytes after the first record");
            let fair = limit < 3000 || from > 100 || found.len() >= 5;
            ensure!(check, fair, "{what} gives {} records, and more would fit", found.len());
        }
        for from in [200, 201, u64::MAX] {
            let found = reading.records(check, log, from, 1000);
            ensure!(check, found.is_empty(), "{reading:?}({from}) gives records past the end");
        }
    }
}

fn only_the_next_record_is_taken(log: &mut dyn LogStore) {
    let check = "only the next record is taken";
    done(check, "append", log.append(&records(1, 1..4)));
    for wrong in [vec![5], vec![3], vec![0], vec![4, 6], vec![4, 4]] {
        let batch: Vec<_> = wrong.iter().map(|lsn| record(2, *lsn)).collect();
        ensure!(check, log.append(&batch).is_err(), "append takes {wrong:?} where 4 is next");
        ensure!(check, log.bounds() == (Lsn(1)..Lsn(4)), "bounds is {:?} after a refused append", log.bounds());
    }
    done(check, "append", log.append(&records(1, 4..6)));
    same(check, &all(check, log), &records(1, 1..6));
}

fn a_restart_keeps_what_was_synced<L: LogStore>(mut open: impl FnMut() -> L) {
    let check = "a restart keeps what was synced";
    let expected = records(1, 1..150);
    for batch in expected.chunks(30) {
        let mut log = open();
        same(check, &all(check, &mut log), &records(1, 1..batch[0].lsn().0));
        done(check, "append", log.append(batch));
        done(check, "sync", log.sync());
    }
    same(check, &all(check, &mut open()), &expected);
}

fn marks_are_replaced<L: LogStore>(mut open: impl FnMut() -> L) {
    let check = "marks are replaced";
    let marks = |n: u64| Marks {
        cluster: ClusterId(u128::MAX / 3),
        group: GroupId(u128::MAX / 5),
        node: NodeId(n),
        promised: EPOCH,
        reign: EPOCH.successor(NodeId(n), true),
        base: Lsn(n),
        in_sync: n.is_multiple_of(2),
        clean: n.is_multiple_of(3).then_some(Lsn(n)),
        stable: Lsn(n / 2),
    };
    for n in 1..7 {
        let mut log = open();
        done(check, "append", log.append(&[record(1, n)]));
        done(check, "sync", log.sync());
        for n in [n + 100, n] {
            done(check, "save_marks", log.save_marks(&marks(n)));
            let found = done(check, "marks", log.marks());
            ensure!(check, found == Some(marks(n)), "{found:?} were not the last that were saved");
        }
        drop(log);
        let mut log = open();
        let found = done(check, "marks", log.marks());
        ensure!(check, found == Some(marks(n)), "{found:?} were not the last that were saved, after a restart");
        same(check, &all(check, &mut log), &records(1, 1..n + 1));
    }
}

fn a_cut_is_final<L: LogStore>(mut open: impl FnMut() -> L) {
    let check = "a cut is final";
    let marks = Marks { base: Lsn(3), ..Marks::default() };
    let mut log = open();
    done(check, "save_marks", log.save_marks(&marks));
    done(check, "append", log.append(&records(1, 1..60)));
    done(check, "sync", log.sync());
    done(check, "append", log.append(&records(1, 60..80)));
    done(check, "truncate_after", log.truncate_after(Lsn(1000)));
    same(check, &all(check, &mut log), &records(1, 1..80));
    let mut expected = records(1, 1..80);
    for (which, last) in (2..).zip([70, 59, 20, 19, 1, 0, 0]) {
        done(check, "truncate_after", log.truncate_after(Lsn(last)));
        expected.truncate(usize::try_from(last).unwrap_or(0));
        let bounds = log.bounds();
        ensure!(check, bounds == (Lsn(1)..Lsn(last + 1)), "bounds is {bounds:?} after a cut behind {last}");
        same(check, &all(check, &mut log), &expected);
        drop(log);
        log = open();
        same(check, &all(check, &mut log), &expected);
        // What comes next goes where the old records were; those behind it stay away.
        let more = records(which, last + 1..last + 3);
        done(check, "append", log.append(&more));
        expected.extend(more);
        done(check, "sync", log.sync());
        drop(log);
        log = open();
        same(check, &all(check, &mut log), &expected);
    }
    let found = done(check, "marks", log.marks());
    ensure!(check, found == Some(marks), "a cut changed the marks to {found:?}");
}

/// A number without any pattern to it.
fn dice(seed: u64) -> u64 {
    let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
}

fn a_crash_leaves_what_was_synced_and_a_prefix<L: LogStore>(
    mut open: impl FnMut() -> L,
    mut crash: impl FnMut(L, u64),
    seed: u64,
) {
    let check = "a crash leaves what was synced, and a prefix";
    let mut list: Vec<Record> = Vec::new();
    for round in 0..10 {
        let mut log = open();
        let found = all(check, &mut log);
        same(check, &found, &list);
        let which = u8::try_from(round + 1).unwrap_or(0);
        let next = list.len() as u64 + 1;
        list.extend(records(which, next..next + 9));
        let (synced, rest) = list[list.len() - 9..].split_at(usize::try_from((seed + round) % 5).unwrap_or(0));
        done(check, "append", log.append(synced));
        let durable = done(check, "sync", log.sync());
        done(check, "append", log.append(rest));
        // The store may write at any time; after this it probably has.
        all(check, &mut log);
        crash(log, dice(seed * 16 + round));
        let found = all(check, &mut open());
        ensure!(
            check,
            Lsn(found.len() as u64) >= durable,
            "{} records are left and {durable} were synced",
            found.len()
        );
        ensure!(check, found.len() <= list.len(), "there are more records than ever");
        same(check, &found, &list[..found.len()]);
        list = found;
    }
}

fn a_crash_does_not_undo_marks_and_cuts<L: LogStore>(
    mut open: impl FnMut() -> L,
    mut crash: impl FnMut(L, u64),
    seed: u64,
) {
    let check = "a crash does not undo marks and cuts";
    let mut log = open();
    done(check, "append", log.append(&records(1, 1..40)));
    done(check, "sync", log.sync());
    let marks = Marks { base: Lsn(seed + 1), ..Marks::default() };
    done(check, "save_marks", log.save_marks(&marks));
    let last = 10 + seed;
    done(check, "truncate_after", log.truncate_after(Lsn(last)));
    crash(log, dice(seed));
    let mut log = open();
    let found = done(check, "marks", log.marks());
    ensure!(check, found == Some(marks), "{found:?} were not the last that were saved");
    same(check, &all(check, &mut log), &records(1, 1..last + 1));
    done(check, "append", log.append(&records(2, last + 1..last + 3)));
    crash(log, dice(seed + 1));
    let found = all(check, &mut open());
    let expected = [records(1, 1..last + 1), records(2, last + 1..last + 3)].concat();
    ensure!(check, found.len() as u64 >= last && found.len() <= expected.len(), "{} records are left", found.len());
    same(check, &found, &expected[..found.len()]);
}

fn replay(ops: &[CacheOp]) -> CacheImage {
    let mut image = CacheImage::default();
    ops.iter().for_each(|op| image.apply(op));
    image
}

/// Some life of a client, in the order in which it happens.
fn operations() -> Vec<CacheOp> {
    let identity = Identity {
        client: ClientId(u128::MAX - 1),
        cluster: Some(ClusterId(4)),
        group: None,
        domain: "elsewhere".to_owned(),
        role: SessionRole::Writer,
    };
    let mut ops =
        vec![CacheOp::Identity(identity), CacheOp::Incarnation(1), CacheOp::Welcomed, CacheOp::Reported(EPOCH)];
    for n in 1..60 {
        let payload = Bytes::from(vec![7; usize::try_from(n * 29 % 200).unwrap_or(0)]);
        let command = Command {
            answered: Request(n / 2),
            level: Level::Tagged,
            withdrawn: n.is_multiple_of(11),
            digest: Digest::crc32(&payload),
            payload,
            tag: None,
            reply: None,
        };
        let (request, lsn) = (Request(n), Lsn(n * 2));
        let tag = Tag {
            epoch: EPOCH,
            lsn,
            time: Time(n),
            hold_until: Some(lsn),
            stable: Lsn(n),
            protected: true,
            met: Level::Tagged,
        };
        ops.push(CacheOp::Command { request, command });
        ops.push(CacheOp::Tag { request, tag });
        ops.push(CacheOp::Headers(vec![header(Body::Command, n * 2 + 1)]));
        match n % 5 {
            0 => ops.push(CacheOp::Superseded(request)),
            1 => {}
            _ => ops.push(CacheOp::Answered { request, reply: Digest::crc32(b"reply") }),
        }
        ops.push(CacheOp::Observed(EPOCH, lsn));
        if n.is_multiple_of(9) {
            ops.push(CacheOp::Stable(EPOCH, Lsn(n)));
        }
    }
    let next = EPOCH.successor(NodeId(6), false);
    let reign = Reign { epoch: next, start: Lsn(100), base: Lsn(90), gaps: vec![Lsn(95)..Lsn(96)] };
    ops.push(CacheOp::Verdict(next, vec![reign]));
    ops.push(CacheOp::Stable(next, Lsn(101)));
    ops
}

fn a_new_cache_is_empty<C: ClientCache>(mut open: impl FnMut() -> C) {
    let check = "a new cache is empty";
    for _ in 0..2 {
        let mut cache = open();
        let found = done(check, "load", cache.load());
        ensure!(check, found.is_empty(), "load gives {found:?}, which nobody wrote");
        done(check, "write", cache.write(&[]));
    }
}

fn written_operations_are_loaded<C: ClientCache>(mut open: impl FnMut() -> C) {
    let check = "written operations are loaded";
    let ops = operations();
    let mut cache = open();
    let mut expected = CacheImage::default();
    for (nth, batch) in ops.chunks(3).enumerate() {
        done(check, "write", cache.write(batch));
        batch.iter().for_each(|op| expected.apply(op));
        if nth % 2 == 0 {
            let found = replay(&done(check, "load", cache.load()));
            ensure!(
                check,
                found == expected,
                "load makes another state than what was written:\n{found:?}\n{expected:?}"
            );
        }
        if nth % 5 == 0 {
            drop(cache);
            cache = open();
            let found = replay(&done(check, "load", cache.load()));
            ensure!(check, found == expected, "a restart makes another state:\n{found:?}\n{expected:?}");
        }
    }
    for _ in 0..2 {
        let found = replay(&done(check, "load", cache.load()));
        ensure!(check, found == expected, "load makes another state than what was written:\n{found:?}\n{expected:?}");
    }
}

/// What each step of a life among others leaves: operations, then the shares and the commands that are kept after them.
fn shared_life() -> Vec<(Vec<CacheOp>, Vec<u64>, Vec<u64>)> {
    // As large as they come: a segment of a stripe, its list of entries, and a seal.
    let length = |id: u64| if id.is_multiple_of(2) { (64 << 10) + 1000 + id } else { id - 1 };
    let share = |epoch, id: u64, hold_until| {
        let body = vec![u8::try_from(id).unwrap_or(0); usize::try_from(length(id)).unwrap_or(0)];
        let mode = if id.is_multiple_of(3) { Mode::Window } else { Mode::Stripe };
        let (holder, hold_until) = (ClientId(u128::MAX - 1), Lsn(hold_until));
        CacheOp::Share(Share { epoch, id, mode, holder, hold_until, body: Bytes::from(body) })
    };
    // Answered, and held for who knows how long.
    let command = |n: u64| {
        let request = Request(n);
        let payload = Bytes::from(vec![7; 300]);
        let digest = Digest::crc32(&payload);
        let (answered, level) = (Request(0), Level::Covered);
        let command = Command { answered, level, withdrawn: false, digest, payload, tag: None, reply: None };
        let (time, stable, met) = (Time(n), Lsn(1), Level::Covered);
        let tag = Tag { epoch: EPOCH, lsn: Lsn(n * 10), time, hold_until: None, stable, protected: true, met };
        let answered = CacheOp::Answered { request, reply: digest };
        [CacheOp::Command { request, command }, CacheOp::Tag { request, tag }, answered]
    };
    let next = EPOCH.successor(NodeId(6), false);
    let reign = Reign { epoch: next, start: Lsn(100), base: Lsn(90), gaps: Vec::new() };
    let begun = vec![CacheOp::Incarnation(1), CacheOp::Welcomed, CacheOp::Reported(EPOCH), share(EPOCH, 1, 10)];
    vec![
        (begun, vec![1], vec![]),
        ((2..6).map(|id| share(EPOCH, id, id * 10)).collect(), vec![1, 2, 3, 4, 5], vec![]),
        ((1..5).flat_map(command).collect(), vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4]),
        // A checkpoint releases shares, and of commands only those whose tag says so.
        (vec![CacheOp::Stable(EPOCH, Lsn(29))], vec![3, 4, 5], vec![1, 2, 3, 4]),
        (vec![CacheOp::Settled(EPOCH, Lsn(20))], vec![3, 4, 5], vec![3, 4]),
        // Once more, and to be kept for longer.
        (vec![share(EPOCH, 3, 60)], vec![3, 4, 5], vec![3, 4]),
        (vec![CacheOp::Stable(EPOCH, Lsn(50)), CacheOp::Settled(EPOCH, Lsn(39))], vec![3], vec![4]),
        (vec![CacheOp::Verdict(next, vec![reign]), share(next, 6, 110)], vec![6], vec![]),
        (vec![CacheOp::Settled(EPOCH, Lsn(200)), CacheOp::Stable(next, Lsn(109))], vec![6], vec![]),
        (vec![CacheOp::Stable(next, Lsn(110))], vec![], vec![]),
    ]
}

fn shares_are_kept_until_they_are_released<C: ClientCache>(mut open: impl FnMut() -> C) {
    let check = "shares are kept until they are released";
    let mut expected = CacheImage::default();
    for (nth, (ops, shares, commands)) in shared_life().into_iter().enumerate() {
        // Without a restart now and then, so that what is loaded is not always what the last process read.
        let mut cache = open();
        for op in &ops {
            done(check, "write", cache.write(std::slice::from_ref(op)));
            expected.apply(op);
        }
        if nth % 2 == 0 {
            drop(cache);
            cache = open();
        }
        let found = replay(&done(check, "load", cache.load()));
        let kept: Vec<u64> = found.shares.keys().map(|(_, id)| *id).collect();
        ensure!(check, kept == shares, "shares {shares:?} are to be kept after step {nth}; load gives {kept:?}");
        let held: Vec<u64> = found.commands.keys().map(|request| request.0).collect();
        ensure!(check, held == commands, "commands {commands:?} are to be held after step {nth}; load gives {held:?}");
        ensure!(check, found == expected, "load makes another state than what was written in step {nth}");
    }
}

fn entries(commands: &[Bytes]) -> Vec<Entry> {
    let entry = |(lsn, payload): (u64, &Bytes)| {
        let mut header = header(Body::Command, lsn);
        header.length = u32::try_from(payload.len()).unwrap_or(0);
        header.digest = Digest::crc32(payload);
        Entry { header, payload: payload.clone() }
    };
    (1..).zip(commands).map(entry).collect()
}

fn apply<S: StateMachine>(check: &str, machine: &mut S, entries: &[Entry]) -> Vec<Bytes> {
    // What other commands got is not to be touched.
    let mut replies = vec![Bytes::from_static(b"before")];
    done(check, "apply", machine.apply(&entries.iter().collect::<Vec<_>>(), &mut replies));
    let pushed = replies.len().saturating_sub(1);
    ensure!(check, pushed == entries.len(), "{} commands got {pushed} replies", entries.len());
    ensure!(check, replies[0] == b"before"[..], "a reply was changed that was there before");
    replies.split_off(1)
}

fn ask<S: StateMachine>(check: &str, machine: &mut S, queries: &[Bytes]) -> Vec<Bytes> {
    queries.iter().map(|query| done(check, "query", machine.query(query))).collect()
}

fn state_is_a_function_of_the_commands<S: StateMachine>(
    new: &mut impl FnMut() -> S,
    commands: &[Bytes],
    queries: &[Bytes],
) {
    let check = "the state is a function of the commands";
    let entries = entries(commands);
    let (mut whole, mut single) = (new(), new());
    let replies = apply(check, &mut whole, &entries);
    for (nth, entry) in entries.iter().enumerate() {
        let reply = apply(check, &mut single, std::slice::from_ref(entry));
        ensure!(
            check,
            reply[0] == replies[nth],
            "command {nth} is answered {:?} and then {:?}",
            replies[nth],
            reply[0]
        );
    }
    let (whole, single) = (ask(check, &mut whole, queries), ask(check, &mut single, queries));
    ensure!(check, whole == single, "the same commands make {whole:?} and then {single:?}");
    let initial = ask(check, &mut new(), queries);
    ensure!(check, initial != whole, "no query shows what the commands did: give it others");
}

fn queries_change_nothing<S: StateMachine>(new: &mut impl FnMut() -> S, commands: &[Bytes], queries: &[Bytes]) {
    let check = "queries change nothing";
    let entries = entries(commands);
    let (mut asked, mut quiet) = (new(), new());
    for (nth, entry) in entries.iter().enumerate() {
        let (once, again) = (ask(check, &mut asked, queries), ask(check, &mut asked, queries));
        ensure!(check, once == again, "queries are answered {once:?} and then {again:?}");
        let entry = std::slice::from_ref(entry);
        let (asked, quiet) = (apply(check, &mut asked, entry), apply(check, &mut quiet, entry));
        ensure!(check, asked == quiet, "command {nth} is answered {asked:?} after queries and {quiet:?} without");
    }
}

fn a_snapshot_is_the_state<S: StateMachine>(new: &mut impl FnMut() -> S, commands: &[Bytes], queries: &[Bytes]) {
    let check = "a snapshot is the state";
    let entries = entries(commands);
    for half in [0, entries.len() / 2, entries.len()] {
        let (mut first, mut second) = (new(), new());
        apply(check, &mut first, &entries[..half]);
        // The state it had is replaced, not added to.
        apply(check, &mut second, &entries);
        let before = ask(check, &mut second, queries);
        let mut snapshot = Vec::new();
        done(check, "snapshot", first.snapshot(&mut snapshot));
        let torn = &snapshot[..snapshot.len() - snapshot.len().min(1)];
        if !snapshot.is_empty() {
            ensure!(check, second.restore(&mut &*torn).is_err(), "restore takes a snapshot whose last byte is missing");
            let after = ask(check, &mut second, queries);
            ensure!(check, after == before, "a restore that fails changes the state from {before:?} to {after:?}");
        }
        done(check, "restore", second.restore(&mut snapshot.as_slice()));
        let (one, two) = (ask(check, &mut first, queries), ask(check, &mut second, queries));
        ensure!(check, one == two, "{one:?} becomes {two:?} by way of a snapshot");
        let (one, two) = (apply(check, &mut first, &entries[half..]), apply(check, &mut second, &entries[half..]));
        ensure!(check, one == two, "the commands after a snapshot are answered {two:?} and not {one:?}");
    }
}

fn nonsense_is_answered<S: StateMachine>(new: &mut impl FnMut() -> S, commands: &[Bytes]) {
    let check = "nonsense is answered";
    let mut nonsense = vec![Bytes::new(), Bytes::from_static(&[0]), Bytes::from(vec![0xff; 300])];
    for command in commands.iter().take(20) {
        nonsense.extend([command.slice(..command.len() / 2), Bytes::from([command, &b"\xff\x00"[..]].concat())]);
    }
    let (mut one, mut two) = (new(), new());
    let (first, second) = (apply(check, &mut one, &entries(&nonsense)), apply(check, &mut two, &entries(&nonsense)));
    ensure!(check, first == second, "it is answered {first:?} and then {second:?}");
    ask(check, &mut one, &nonsense);
}
