//! How long a node takes to start on a long log, beside reading and checksumming the same bytes.
//!
//! The log is written through the store's own append, by no network. Then, in turns: its files are read from front to end
//! with plain reads and checksummed, and a node is started on it as a process of its own, until it serves. Every session of
//! the log is closed in it, so that nobody has to be heard. Once with the files in the system's memory, as after a crash of
//! the process, and once without, as after one of the machine.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GroupId, Header, Level, Lsn, NodeId, Origin, Record,
    Request, SessionInfo, Time,
};
use tagalong::store::file::{FileLog, FileLogOptions};
use tagalong::store::{LogStore, Marks};

use crate::Result;
use crate::node::Mode;
use crate::pair::{PATIENCE, usage};
use crate::process::Process;
use crate::table::{self, Spread};
use crate::tally::payload;
use crate::usage::Usage;

/// Records appended at once.
const BATCH: u64 = 4096;
/// One plain read.
const READ_BYTES: usize = 1 << 20;
/// Replies a session of the log still has in its window: as a client with so many writes in flight leaves them.
const IN_FLIGHT: u64 = 64;

/// What is measured.
#[derive(clap::Args, Debug)]
pub(crate) struct RestartArgs {
    /// Entries in the log.
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000,10000000")]
    entries: Vec<u64>,
    #[arg(long, default_value_t = 100)]
    payload: usize,
    /// Sessions that wrote them, in turns.
    #[arg(long, default_value_t = 16)]
    clients: u64,
    #[arg(long, default_value_t = 5)]
    repeats: usize,
}

/// Starts on one log, one value for each repeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restart {
    pub(crate) entries: u64,
    /// Whether its files were in the system's memory.
    pub(crate) warm: bool,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Reading and checksumming them, in seconds.
    pub(crate) read_s: Vec<f64>,
    /// From the start of the process until it serves, in seconds.
    pub(crate) start_s: Vec<f64>,
    /// The processor's time for the same, in seconds.
    pub(crate) cpu_s: Vec<f64>,
    /// The most memory the process took until then, in bytes.
    pub(crate) peak: Vec<f64>,
}

pub(crate) async fn run(args: RestartArgs) -> Result<()> {
    show(&measure(&args).await?);
    Ok(())
}

pub(crate) async fn measure(args: &RestartArgs) -> Result<Vec<Restart>> {
    let mut restarts = Vec::new();
    for entries in args.entries.iter().copied() {
        let folder = tempfile::tempdir_in(crate::scratch())?;
        let log = folder.path().join("log");
        write_log(&log, entries, args)?;
        let [mut warm, mut cold] = [true, false].map(|warm| Restart { entries, warm, ..Restart::default() });
        // The system's memory is filled; then every other turn begins with it empty.
        read_all(&log)?;
        for _ in 0..args.repeats {
            for restart in [&mut warm, &mut cold] {
                measure_one(restart, &log, folder.path()).await?;
            }
        }
        restarts.extend([warm, cold]);
    }
    Ok(restarts)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn measure_one(restart: &mut Restart, log: &Path, logs: &Path) -> Result<()> {
    prepare(log, restart.warm)?;
    let began = Instant::now();
    restart.bytes = read_all(log)?;
    restart.read_s.push(began.elapsed().as_secs_f64());
    prepare(log, restart.warm)?;
    let (took, used) = start(log, logs).await?;
    restart.start_s.push(took.as_secs_f64());
    restart.cpu_s.push(used.cpu_us as f64 / 1e6);
    restart.peak.push(used.memory as f64);
    Ok(())
}

/// Has the files in the system's memory, or out of it.
fn prepare(log: &Path, warm: bool) -> Result<()> {
    if warm {
        read_all(log)?;
        return Ok(());
    }
    for path in files(log)? {
        let file = File::open(path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn show(restarts: &[Restart]) {
    let rows = restarts.iter().map(|restart| {
        let Restart { entries, warm, bytes, read_s, start_s, cpu_s, peak } = restart;
        let rates = |seconds: &[f64]| Spread::of(seconds.iter().map(|seconds| *bytes as f64 / seconds / 1e6)).show(0);
        let ratio = Spread::of(read_s.iter().zip(start_s).map(|(read, start)| read / start));
        vec![
            entries.to_string(),
            if *warm { "in memory" } else { "on disk" }.to_owned(),
            (bytes >> 20).to_string(),
            Spread::of(start_s.iter().copied()).show(2),
            Spread::of(cpu_s.iter().copied()).show(2),
            rates(start_s),
            rates(read_s),
            ratio.show(2),
            Spread::of(peak.iter().map(|peak| peak / 1048576.0)).show(0),
        ]
    });
    let head = [
        "entries",
        "files are",
        "log, MiB",
        "start, s",
        "its CPU, s",
        "start, MB/s",
        "read and checksum, MB/s",
        "ratio",
        "peak memory, MiB",
    ];
    print!("{}", table::table(&head, &rows.collect::<Vec<_>>()));
}

/// Starts a node on the log: how long until it serves, and what it used, at most, until then.
async fn start(log: &Path, logs: &Path) -> Result<(Duration, Usage)> {
    let folder = log.to_str().ok_or("the temporary folder's path is not UTF-8")?;
    let arguments = ["node", "--folder", folder, "--mode", Mode::Async.name()].map(str::to_owned);
    let began = Instant::now();
    let mut node = Process::spawn("node", logs, &arguments)?;
    node.expect("serving", PATIENCE).await?;
    let took = began.elapsed();
    let Usage { cpu_us, .. } = usage(&mut node).await?;
    node.order("peak").await?;
    let memory = node.expect("peak", PATIENCE).await?["memory"].as_u64().unwrap_or(0);
    node.order("finish").await?;
    node.ended(PATIENCE).await?;
    Ok((took, Usage { cpu_us, memory }))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-")));
    files.sort();
    Ok(files)
}

/// Reads every file of the log once, and checksums what it reads; returns how many bytes that were.
fn read_all(folder: &Path) -> Result<u64> {
    let mut checksum = crc32fast::Hasher::new();
    let mut bytes = 0;
    let mut part = vec![0; READ_BYTES];
    for path in files(folder)? {
        let mut file = File::open(path)?;
        loop {
            let length = file.read(&mut part)?;
            if length == 0 {
                break;
            }
            checksum.update(&part[..length]);
            bytes += length as u64;
        }
    }
    std::hint::black_box(checksum.finalize());
    Ok(bytes)
}

/// Writes a log that a primary without a backup left behind.
fn write_log(folder: &Path, entries: u64, args: &RestartArgs) -> Result<()> {
    let mut log = FileLog::open(folder, FileLogOptions::default())?;
    let epoch = Epoch { number: 1, node: NodeId(7), ..Epoch::ZERO };
    let marks = Marks {
        cluster: ClusterId(1),
        group: GroupId(1),
        node: epoch.node,
        promised: epoch,
        reign: epoch,
        ..Marks::default()
    };
    log.save_marks(&marks)?;
    let mut writer = Writer { epoch, next: Lsn(1), batch: Vec::new() };
    writer.put(Body::EpochStart(Box::new(EpochStart { lowest: Level::Local, ..EpochStart::default() })), None);
    for client in 1..=args.clients {
        let info = SessionInfo { incarnation: 1, domain: format!("rack-{client}"), ..SessionInfo::default() };
        writer.put(Body::Open(info), Some(Origin { client: ClientId(client.into()), request: Request(0) }));
    }
    for entry in 0..entries {
        let (client, serial) = (entry % args.clients + 1, entry / args.clients + 1);
        writer.command(client, serial, payload(client, serial, args.payload));
        if entry % BATCH == BATCH - 1 {
            log.append(&std::mem::take(&mut writer.batch))?;
        }
        if entry % (16 * BATCH) == 0 {
            log.sync()?;
        }
    }
    for client in 1..=args.clients {
        writer.put(Body::Close, Some(Origin { client: ClientId(client.into()), request: Request(0) }));
    }
    log.append(&writer.batch)?;
    log.sync()?;
    Ok(())
}

struct Writer {
    epoch: Epoch,
    next: Lsn,
    batch: Vec<Record>,
}

impl Writer {
    fn header(&mut self, body: Body, origin: Option<Origin>) -> Header {
        let lsn = self.next;
        self.next = lsn.next();
        // About as many a microsecond as a busy service orders.
        let time = Time(1_700_000_000_000_000 + lsn.0);
        let (answered, length, digest) = (Request(0), 0, Digest::default());
        Header { epoch: self.epoch, lsn, body, origin, time, answered, length, digest }
    }

    fn put(&mut self, body: Body, origin: Option<Origin>) {
        let header = self.header(body, origin);
        self.batch.push(Record { entry: Entry { header, payload: Bytes::new() }, reply: Digest::default() });
    }

    fn command(&mut self, client: u64, serial: u64, payload: Bytes) {
        let origin = Origin { client: ClientId(client.into()), request: Request(serial) };
        let mut header = self.header(Body::Command, Some(origin));
        header.answered = Request(serial.saturating_sub(IN_FLIGHT));
        header.length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        header.digest = Digest::crc32(&payload);
        // What the state machine of all services here answers.
        let reply = Digest::crc32(&header.lsn.0.to_be_bytes());
        self.batch.push(Record { entry: Entry { header, payload }, reply });
    }
}
