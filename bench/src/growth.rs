//! What it costs as it grows: clients, idle and busy, and what a client pays for what it holds.
//!
//! * `sessions`: resident memory of both nodes for each session that is attached and idle;
//! * `load`: throughput and processor time a write by number of clients, payload and round trip, with all of them busy in a
//!   closed loop, or four busy and the others idle;
//! * `held`: resident memory of a client for each byte that it holds while the backup is away;
//! * `manifests`: headers of others' entries that clients are given for each write, and all bytes from the primary to clients,
//!   by number of clients in a closed loop. The backup is away meanwhile, so that no checkpoint is among these bytes, and
//!   nothing that was told is forgotten before it is counted; or it is there (`--attached`), and only the bytes count.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Result;
use crate::node::Mode;
use crate::pair::{PATIENCE, Pair, usage};
use crate::process::Process;
use crate::recovery::{IN_FLIGHT, spawn_holders};
use crate::table::{self, Spread};

/// Busy clients where the others are idle, and writes in flight of each.
const BUSY: u64 = 4;
const BUSY_IN_FLIGHT: usize = 64;

/// What is measured.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct GrowthArgs {
    #[arg(long, value_delimiter = ',', default_value = "sessions,load,held,manifests")]
    what: Vec<Part>,
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    clients: Vec<u64>,
    /// Bytes of a write, with four busy clients.
    #[arg(long, value_delimiter = ',', default_value = "16,100,4096,65536,1048576")]
    payload: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "0,50,300")]
    rtt_ms: Vec<u64>,
    #[arg(long, default_value = "tagged")]
    mode: Mode,
    /// Counts manifests with the backup there, at the first of the round trips.
    #[arg(long)]
    attached: bool,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Sessions,
    Load,
    Held,
    Manifests,
}

pub(crate) async fn run(args: GrowthArgs) -> Result<()> {
    for part in &args.what {
        println!();
        match part {
            Part::Sessions => show_sessions(&sessions(&args).await?),
            Part::Load => show_loads(&loads(&args).await?),
            Part::Held => show_held(&held(&args).await?),
            Part::Manifests => show_manifests(&manifests(&args).await?),
        }
    }
    Ok(())
}

/// Resident memory beyond what the processes took before anybody came, in bytes, for each repeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Idle {
    pub(crate) clients: u64,
    pub(crate) primary: Vec<f64>,
    pub(crate) backup: Vec<f64>,
    pub(crate) client: Vec<f64>,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn sessions(args: &GrowthArgs) -> Result<Vec<Idle>> {
    let mut rows = Vec::new();
    for clients in args.clients.iter().copied() {
        let mut row = Idle { clients, ..Idle::default() };
        for _ in 0..args.repeats {
            let folder = tempfile::tempdir_in(crate::scratch())?;
            let mut pair = Pair::start(folder.path(), args.mode, Duration::ZERO).await?;
            let before = (usage(&mut pair.primary).await?.memory, usage(&mut pair.backup).await?.memory);
            let mut holders = holders(folder.path(), &pair, 0, clients, 0, 100)?;
            let alone = holders.expect("started", PATIENCE).await?["memory"].as_u64().unwrap_or(0);
            holders.expect("attached", PATIENCE).await?;
            holders.order("settle").await?;
            holders.expect("settled", PATIENCE).await?;
            let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / clients as f64;
            row.primary.push(each(usage(&mut pair.primary).await?.memory, before.0));
            row.backup.push(each(usage(&mut pair.backup).await?.memory, before.1));
            row.client.push(each(usage(&mut holders).await?.memory, alone));
            holders.order("finish").await?;
            holders.ended(PATIENCE).await?;
            pair.finish().await?;
        }
        rows.push(row);
    }
    Ok(rows)
}

fn show_sessions(rows: &[Idle]) {
    let rows = rows.iter().map(|row| {
        let kib = |of: &[f64]| Spread::of(of.iter().map(|bytes| bytes / 1024.0)).show(1);
        vec![row.clients.to_string(), kib(&row.primary), kib(&row.backup), kib(&row.client)]
    });
    let head = ["idle sessions", "primary, KiB each", "backup, KiB each", "client, KiB each"];
    print!("{}", table::table(&head, &rows.collect::<Vec<_>>()));
}

/// A load and what it took, for each repeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    pub(crate) clients: u64,
    pub(crate) busy: u64,
    pub(crate) payload: usize,
    pub(crate) rtt_ms: u64,
    pub(crate) writes_per_s: Vec<f64>,
    pub(crate) p50_us: Vec<f64>,
    /// Processor time a write, in microseconds.
    pub(crate) load_us: Vec<f64>,
    pub(crate) primary_us: Vec<f64>,
    pub(crate) backup_us: Vec<f64>,
}

async fn loads(args: &GrowthArgs) -> Result<Vec<Load>> {
    let mut rows = Vec::new();
    for clients in args.clients.iter().copied() {
        rows.push(load(args, clients, clients, 100, 0).await?);
        if clients > BUSY {
            rows.push(load(args, clients, BUSY, 100, 0).await?);
        }
    }
    for payload in args.payload.iter().copied() {
        rows.push(load(args, BUSY, BUSY, payload, 0).await?);
    }
    for rtt_ms in args.rtt_ms.iter().copied() {
        rows.push(load(args, BUSY, BUSY, 4096, rtt_ms).await?);
    }
    Ok(rows)
}

/// What clients are given beside their own tags and replies, for each write, one value for each repeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manifests {
    pub(crate) clients: u64,
    pub(crate) headers: Vec<f64>,
    /// All bytes to clients.
    pub(crate) down: Vec<f64>,
}

/// Writes of all clients together; each makes a few at least.
const COUNTED_WRITES: u64 = 20_000;

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn manifests(args: &GrowthArgs) -> Result<Vec<Manifests>> {
    let mut rows = Vec::new();
    for clients in args.clients.iter().copied() {
        let each = (COUNTED_WRITES / clients).max(20);
        let mut row = Manifests { clients, ..Manifests::default() };
        for _ in 0..args.repeats {
            let folder = tempfile::tempdir_in(crate::scratch())?;
            let rtt_ms = args.rtt_ms.first().copied().filter(|_| args.attached).unwrap_or(0);
            let pair = Pair::start(folder.path(), args.mode, Duration::from_millis(rtt_ms)).await?;
            let counter = Counter::start(pair.near).await?;
            let endpoints = [counter.address, pair.far];
            let mut holders = spawn_holders(folder.path(), &endpoints, 0, clients, each, 100, 1)?;
            holders.expect("attached", PATIENCE).await?;
            holders.order("settle").await?;
            holders.expect("settled", PATIENCE).await?;
            if !args.attached {
                pair.relay.cut();
            }
            let before = counter.down.load(Ordering::Relaxed);
            holders.order("fill").await?;
            let filled = holders.expect("filled", PATIENCE).await?;
            let (down, writes) = (counter.down.load(Ordering::Relaxed) - before, (clients * each) as f64);
            row.headers.push(filled["headers"].as_f64().unwrap_or(f64::NAN) / writes);
            row.down.push(down as f64 / writes);
            holders.order("finish").await?;
            holders.ended(PATIENCE).await?;
            pair.finish().await?;
        }
        rows.push(row);
    }
    Ok(rows)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn load(args: &GrowthArgs, clients: u64, busy: u64, payload: usize, rtt_ms: u64) -> Result<Load> {
    let mut row = Load { clients, busy, payload, rtt_ms, ..Load::default() };
    for _ in 0..args.repeats {
        let folder = tempfile::tempdir_in(crate::scratch())?;
        let mut pair = Pair::start(folder.path(), args.mode, Duration::from_millis(rtt_ms)).await?;
        let mut idle = None;
        if clients > busy {
            let mut holders = holders(folder.path(), &pair, busy, clients - busy, 0, payload)?;
            holders.expect("attached", PATIENCE).await?;
            idle = Some(holders);
        }
        let in_flight = if clients > busy || clients == BUSY { BUSY_IN_FLIGHT } else { 1 };
        let mut arguments = vec!["load".to_owned(), "--target".into(), "tagged".into()];
        let options = [
            ("clients", busy.to_string()),
            ("in-flight", in_flight.to_string()),
            ("payload", payload.to_string()),
            ("warm-up", "0.5".to_owned()),
            ("seconds", args.seconds.to_string()),
        ];
        for (name, value) in options {
            arguments.extend([format!("--{name}"), value]);
        }
        for address in [pair.near, pair.far] {
            arguments.extend(["--endpoint".into(), format!("http://{address}")]);
        }
        let mut load = Process::spawn("load", folder.path(), &arguments)?;
        load.expect("attached", PATIENCE).await?;
        load.order("start").await?;
        load.expect("counting", PATIENCE).await?;
        let before = (usage(&mut pair.primary).await?, usage(&mut pair.backup).await?);
        load.expect("over", PATIENCE).await?;
        let after = (usage(&mut pair.primary).await?, usage(&mut pair.backup).await?);
        let result = load.expect("result", PATIENCE).await?;
        load.ended(PATIENCE).await?;
        if let Some(mut idle) = idle {
            idle.order("finish").await?;
            idle.ended(PATIENCE).await?;
        }
        pair.finish().await?;
        let figure = |name: &str| result[name].as_f64().unwrap_or(f64::NAN);
        let writes = figure("writes").max(1.0);
        row.writes_per_s.push(figure("writes_per_s"));
        row.p50_us.push(figure("p50_us"));
        row.load_us.push(figure("cpu_us") / writes);
        row.primary_us.push(after.0.since(before.0).cpu_us as f64 / writes);
        row.backup_us.push(after.1.since(before.1).cpu_us as f64 / writes);
    }
    Ok(row)
}

fn show_loads(rows: &[Load]) {
    let rows = rows.iter().map(|row| {
        let show = |of: &[f64], digits| Spread::of(of.iter().copied()).show(digits);
        vec![
            row.clients.to_string(),
            row.busy.to_string(),
            row.payload.to_string(),
            row.rtt_ms.to_string(),
            show(&row.writes_per_s, 0),
            show(&row.p50_us, 0),
            show(&row.load_us, 1),
            show(&row.primary_us, 1),
            show(&row.backup_us, 1),
        ]
    });
    let head =
        ["clients", "busy", "payload", "RTT, ms", "writes/s", "p50 µs", "load, CPU µs a write", "primary", "backup"];
    print!("{}", table::table(&head, &rows.collect::<Vec<_>>()));
}

fn show_manifests(rows: &[Manifests]) {
    let alone = rows.first().map(|row| Spread::of(row.down.iter().copied()).median).unwrap_or_default();
    let rows = rows.iter().map(|row| {
        let (headers, down) = (Spread::of(row.headers.iter().copied()), Spread::of(row.down.iter().copied()));
        vec![row.clients.to_string(), headers.show(1), down.show(0), format!("{:.0}", down.median - alone)]
    });
    let head = ["busy clients", "headers a write", "bytes to clients a write", "more than in the first row"];
    print!("{}", table::table(&head, &rows.collect::<Vec<_>>()));
}

/// What a client takes for what it holds, for each repeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) payload: usize,
    pub(crate) entries: u64,
    /// Resident memory for each byte of payload.
    pub(crate) per_byte: Vec<f64>,
    /// And beyond the payload, for each entry, in bytes.
    pub(crate) per_entry: Vec<f64>,
}

/// Payload that one client holds.
const HELD_BYTES: u64 = 64 << 20;

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn held(args: &GrowthArgs) -> Result<Vec<Held>> {
    let mut rows = Vec::new();
    for payload in args.payload.iter().copied() {
        let entries = (HELD_BYTES / payload as u64).min(400_000);
        let mut row = Held { payload, entries, ..Held::default() };
        for _ in 0..args.repeats {
            let folder = tempfile::tempdir_in(crate::scratch())?;
            let pair = Pair::start(folder.path(), args.mode, Duration::ZERO).await?;
            let mut holders = holders(folder.path(), &pair, 0, 1, entries, payload)?;
            holders.expect("attached", PATIENCE).await?;
            holders.order("settle").await?;
            holders.expect("settled", PATIENCE).await?;
            let before = usage(&mut holders).await?.memory;
            pair.relay.cut();
            holders.order("fill").await?;
            holders.expect("filled", PATIENCE).await?;
            let more = usage(&mut holders).await?.memory.saturating_sub(before) as f64;
            let bytes = (entries * payload as u64) as f64;
            row.per_byte.push(more / bytes);
            row.per_entry.push((more - bytes) / entries as f64);
            holders.order("finish").await?;
            holders.ended(PATIENCE).await?;
            pair.finish().await?;
        }
        rows.push(row);
    }
    Ok(rows)
}

fn show_held(rows: &[Held]) {
    let rows = rows.iter().map(|row| {
        let show = |of: &[f64], digits| Spread::of(of.iter().copied()).show(digits);
        vec![row.payload.to_string(), row.entries.to_string(), show(&row.per_byte, 2), show(&row.per_entry, 0)]
    });
    let head = ["payload", "entries held", "client's memory a byte held", "more than the payload, bytes an entry"];
    print!("{}", table::table(&head, &rows.collect::<Vec<_>>()));
}

fn holders(folder: &Path, pair: &Pair, first: u64, clients: u64, writes: u64, payload: usize) -> Result<Process> {
    spawn_holders(folder, &[pair.near, pair.far], first, clients, writes, payload, IN_FLIGHT)
}

/// A relay that counts what goes to the clients.
struct Counter {
    address: std::net::SocketAddr,
    down: Arc<AtomicU64>,
}

impl Counter {
    async fn start(target: std::net::SocketAddr) -> Result<Counter> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (address, down) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&down);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                tokio::spawn(pass(near_read, far_write, Arc::default()));
                tokio::spawn(pass(far_read, near_write, Arc::clone(&counted)));
            }
        });
        Ok(Counter { address, down })
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, count: Arc<AtomicU64>) {
    let mut part = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut part).await {
        count.fetch_add(length as u64, Ordering::Relaxed);
        if to.write_all(&part[..length]).await.is_err() {
            return;
        }
    }
}
