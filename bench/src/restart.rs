//! How long a node takes to start on a long log, beside reading and checksumming the same bytes.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GroupId, Header, Level, Lsn, NodeId, Origin, Record,
    Request, SessionInfo, Time,
};
use tagalong::store::file::{FileLog, FileLogOptions};
use tagalong::store::{LogStore, Marks};

use crate::Result;
use crate::experiment::{Plan, in_turns};
use crate::node::Mode;
use crate::pair::{PATIENCE, usage};
use crate::plot::{Kind, Plot};
use crate::process::Process;
use crate::report::{Measured, Metric, Report, Row, Show, Table};
use crate::tally::payload;
use crate::usage::Usage;

const ABOUT: &str = "
A log is written through the store's own append, by no network: entries of 100 bytes of 16 sessions in turns, one million,
and in a long run ten. Then its files are read from front to end with plain reads and checksummed, and a node is started on
it as a process of its own, until it serves. Every session of the log is closed in it, so that nobody has to be heard.

* *In memory*: the files are in the system's memory, as after a crash of the process. *On disk*: they are not, as after one
  of the machine; what is below the system, as a host's memory, may have them still.
* *Ratio*: the rate of the start beside that of reading and checksumming.
";

const KEYS: [&str; 2] = ["entries", "files are"];
const METRICS: [Metric; 7] = [
    Metric::new("log_mib", "log, MiB", 0),
    Metric::new("start_s", "start, s", 2),
    Metric::new("cpu_s", "its CPU, s", 2),
    Metric::new("start_mb_per_s", "start, MB/s", 0),
    Metric::new("read_mb_per_s", "read and checksum, MB/s", 0),
    Metric::new("ratio", "ratio", 2),
    Metric::new("peak_mib", "peak memory, MiB", 0),
];
const PLACES: [&str; 2] = ["in memory", "on disk"];
const PAYLOAD: usize = 100;
/// Sessions that wrote them, in turns.
const CLIENTS: u64 = 16;
/// Records appended at once.
const BATCH: u64 = 4096;
/// One plain read.
const READ_BYTES: usize = 1 << 20;
/// Replies a session of the log still has in its window: as a client with so many writes in flight leaves them.
const IN_FLIGHT: u64 = 64;

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let counts: &[u64] = plan.choose(&[1_000_000], &[1_000_000, 10_000_000]);
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let mut rows = Vec::new();
    for &entries in counts {
        let log = folder.path().join(entries.to_string());
        write_log(&log, entries)?;
        rows.extend(PLACES.map(|place| (Row::new([entries.to_string(), place.to_owned()]), (log.clone(), place))));
    }
    let rows = in_turns("restart", plan.repeats(3, 5), rows, async |(log, place): &(PathBuf, &str)| {
        measure(log, *place == PLACES[0], folder.path()).await
    });
    let table = Table { title: "Starts".into(), keys: &KEYS, metrics: &METRICS, rows: rows.await };
    let show = |row: &Row| {
        let what = format!("start / read and checksum, rate, {} entries {}", row.key[0], row.key[1]);
        Show::figure(what, "≥ 0.5", Some(row), "ratio")
    };
    let shows = table.rows.iter().map(show).collect();
    let bar = |row: &Row| Some((row.key.join(" entries, "), row.spread("start_s")?));
    let kind = Kind::Bars(table.rows.iter().rev().filter_map(bar).collect());
    let plot = Plot { name: "start", title: "Until a node serves".into(), x: "s", y: "", kind };
    Ok(Report {
        name: "restart",
        title: "Starting on a long log",
        about: ABOUT.into(),
        tables: vec![table],
        shows,
        plots: vec![plot],
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn measure(log: &Path, in_memory: bool, logs: &Path) -> Result<Measured> {
    prepare(log, in_memory)?;
    let began = Instant::now();
    let bytes = read_all(log)? as f64;
    let read_s = began.elapsed().as_secs_f64();
    prepare(log, in_memory)?;
    let (took, used) = start(log, logs).await?;
    let start_s = took.as_secs_f64();
    let figures = [
        ("log_mib", bytes / f64::from(1 << 20)),
        ("start_s", start_s),
        ("cpu_s", used.cpu_us as f64 / 1e6),
        ("start_mb_per_s", bytes / start_s / 1e6),
        ("read_mb_per_s", bytes / read_s / 1e6),
        ("ratio", read_s / start_s),
        ("peak_mib", used.memory as f64 / f64::from(1 << 20)),
    ];
    Ok(Measured { figures: figures.into(), raw: json!({ "bytes": bytes, "read_s": read_s, "start_s": start_s }) })
}

/// Has the files in the system's memory, or out of it.
fn prepare(log: &Path, in_memory: bool) -> Result<()> {
    if in_memory {
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
fn write_log(folder: &Path, entries: u64) -> Result<()> {
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
    for client in 1..=CLIENTS {
        let info = SessionInfo { incarnation: 1, domain: format!("rack-{client}"), ..SessionInfo::default() };
        writer.put(Body::Open(info), Some(Origin { client: ClientId(client.into()), request: Request(0) }));
    }
    for entry in 0..entries {
        let (client, serial) = (entry % CLIENTS + 1, entry / CLIENTS + 1);
        writer.command(client, serial, payload(client, serial, PAYLOAD));
        if entry % BATCH == BATCH - 1 {
            log.append(&std::mem::take(&mut writer.batch))?;
        }
        if entry % (16 * BATCH) == 0 {
            log.sync()?;
        }
    }
    for client in 1..=CLIENTS {
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
