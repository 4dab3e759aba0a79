//! The backup of the baseline: repairs, asks again, appends and applies in log order.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;

use super::Fragment;
use super::repair::Decoder;
use crate::disk::Disk;
use crate::tally::Tally;
use crate::{Result, datagrams};

/// How often the primary hears how far this is, and what is lacking.
const REPORT: Duration = Duration::from_millis(2);
/// What is lacking is asked for again after so long: more than a round trip, as whoever runs this knows it.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// What is asked for at once.
const ASKED_MAX: usize = 200;

/// An entry in parts.
struct Parts {
    bytes: Vec<u8>,
    /// Which of its bytes are here: from, to.
    have: BTreeMap<usize, usize>,
}

#[derive(Default)]
struct Log {
    /// The next entry to be applied.
    next: u64,
    highest: u64,
    whole: BTreeMap<u64, Bytes>,
    parts: BTreeMap<u64, Parts>,
    tally: Tally,
    asked: BTreeMap<u64, Instant>,
}

/// A backup that runs on threads of its own.
pub(crate) struct Backup {
    log: Arc<Mutex<Log>>,
    stopped: Arc<AtomicBool>,
    running: Option<JoinHandle<()>>,
    pub(crate) address: SocketAddr,
}

impl Backup {
    /// Takes datagrams; `round_trip` says when to ask again.
    pub(crate) fn start(disk: Disk, round_trip: Duration) -> Result<Backup> {
        let socket = datagrams::socket(Some(REPORT))?;
        let address = socket.local_addr()?;
        let log = Arc::new(Mutex::new(Log { next: 1, ..Log::default() }));
        let stopped = Arc::new(AtomicBool::new(false));
        let (theirs, stop) = (Arc::clone(&log), Arc::clone(&stopped));
        let running = std::thread::spawn(move || run(&socket, &theirs, &disk, round_trip, &stop));
        Ok(Backup { log, stopped, running: Some(running), address })
    }

    /// What is in order here, after the primary is gone and all that arrived of it is taken.
    pub(crate) fn finish(&mut self) -> Tally {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(running) = self.running.take() {
            // It panics for our bugs alone, and has said so then.
            let _ = running.join();
        }
        self.log.lock().tally.clone()
    }

    /// How many entries are in order here.
    pub(crate) fn applied(&self) -> u64 {
        self.log.lock().next - 1
    }
}

fn run(socket: &UdpSocket, log: &Mutex<Log>, disk: &Disk, round_trip: Duration, stop: &AtomicBool) {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    let (mut primary, mut reported) = (None, Instant::now());
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            primary = Some(from);
            let mut log = log.lock();
            for packet in decoder.take(&buffer[..length]) {
                let mut packet = &packet[..];
                while let Some(fragment) = Fragment::read(&mut packet) {
                    log.take(&fragment);
                }
            }
            let (last, entries) = log.apply();
            if !entries.is_empty() {
                disk.append(last, entries);
            }
        } else if stop.load(Ordering::Relaxed) {
            return;
        }
        if let Some(primary) = primary
            && reported.elapsed() >= REPORT
        {
            reported = Instant::now();
            let report = log.lock().report(disk.durable(), round_trip);
            let _ = socket.send_to(&report, primary);
        }
    }
}

impl Log {
    fn take(&mut self, fragment: &Fragment<'_>) {
        let Fragment { lsn, length, offset, bytes } = *fragment;
        self.highest = self.highest.max(lsn);
        let (length, offset) = (length as usize, offset as usize);
        if lsn < self.next || self.whole.contains_key(&lsn) || offset + bytes.len() > length {
            return;
        }
        if bytes.len() == length {
            self.whole.insert(lsn, Bytes::copy_from_slice(bytes));
            return;
        }
        let parts = self.parts.entry(lsn).or_insert_with(|| Parts { bytes: vec![0; length], have: BTreeMap::new() });
        if parts.bytes.len() != length {
            return;
        }
        parts.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        let end = parts.have.entry(offset).or_default();
        *end = (*end).max(offset + bytes.len());
        let mut reached = 0;
        for (from, to) in &parts.have {
            if *from > reached {
                return;
            }
            reached = reached.max(*to);
        }
        if reached == length
            && let Some(parts) = self.parts.remove(&lsn)
        {
            self.whole.insert(lsn, parts.bytes.into());
        }
    }

    /// Applies what is next in the log's order, and gives it to be written down.
    fn apply(&mut self) -> (u64, Vec<Bytes>) {
        let mut entries = Vec::new();
        while let Some(entry) = self.whole.remove(&self.next) {
            self.tally.note(&entry);
            self.asked.remove(&self.next);
            entries.push(entry);
            self.next += 1;
        }
        (self.next - 1, entries)
    }

    /// How far this is on disk, and what is lacking.
    fn report(&mut self, durable: u64, round_trip: Duration) -> Vec<u8> {
        let mut report = Vec::with_capacity(64);
        report.put_u64(durable);
        let now = Instant::now();
        let again = round_trip + ASK_AGAIN;
        let lacking = (self.next..=self.highest).filter(|lsn| !self.whole.contains_key(lsn)).take(ASKED_MAX);
        for lsn in lacking.collect::<Vec<_>>() {
            // What was seen lacking just now may yet be repaired, or be late.
            let asked = self.asked.entry(lsn).or_insert(now - again + REPORT);
            if now - *asked >= again {
                *asked = now;
                report.put_u64(lsn);
            }
        }
        report
    }
}
