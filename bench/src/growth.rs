//! What it costs as it grows: clients, idle and busy, and what a client pays for what it holds.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::Result;
use crate::experiment::{Plan, in_turns};
use crate::node::Mode;
use crate::pair::{PATIENCE, Pair, usage};
use crate::plot::{Kind, Plot};
use crate::process::Process;
use crate::recovery::{IN_FLIGHT, spawn_holders};
use crate::report::{Measured, Metric, Report, Row, Show, Table};

const ABOUT: &str = "
All of it is `tagged`, with writes of 100 bytes unless it is said.

* *Idle sessions*: resident memory beyond what the processes took before anybody came, for each session that is attached and
  idle.
* *Manifests*: in a closed loop, one write of each client in flight, all bytes from the primary to clients for each write,
  checkpoints included; what is more than for one client alone tells of others' writes. The backup is there meanwhile; or the
  link to it is cut, so that there are no checkpoints, and clients forget nothing: then headers and places of others' entries
  that they have are counted as well.
* *Loads*, in a long run: all clients are busy with one write each in flight, or four with 64 each and the others idle.
* *Held*, in a long run: resident memory of one client for what it holds while the backup is away.
";

const IDLE_KEYS: [&str; 1] = ["idle sessions"];
const IDLE_METRICS: [Metric; 3] = [
    Metric::new("primary_kib", "primary, KiB each", 1),
    Metric::new("backup_kib", "backup, KiB each", 1),
    Metric::new("client_kib", "client, KiB each", 1),
];
const MANIFEST_KEYS: [&str; 2] = ["busy clients", "backup"];
const MANIFEST_METRICS: [Metric; 2] =
    [Metric::new("headers", "headers and places a write", 1), Metric::new("down", "bytes to clients a write", 0)];
const LOAD_KEYS: [&str; 4] = ["clients", "busy", "payload, B", "round trip, ms"];
const LOAD_METRICS: [Metric; 5] = [
    Metric::new("writes_per_s", "writes/s", 0),
    Metric::new("p50_us", "p50, µs", 0),
    Metric::new("load_cpu_us", "clients' CPU, µs a write", 2),
    Metric::new("primary_cpu_us", "primary's", 2),
    Metric::new("backup_cpu_us", "backup's", 2),
];
const HELD_KEYS: [&str; 2] = ["payload, B", "entries held"];
const HELD_METRICS: [Metric; 2] = [
    Metric::new("per_byte", "client's memory a byte held", 2),
    Metric::new("per_entry", "more than the payload, bytes an entry", 0),
];

/// The most clients there are; what is to be small is seen with them.
const MANY: u64 = 1000;
const PAYLOAD: usize = 100;
/// Writes of all clients together, where manifests are counted; each makes a few at least.
const COUNTED_WRITES: u64 = 5_000;
/// Busy clients where the others are idle, and writes in flight of each.
const BUSY: u64 = 4;
const BUSY_IN_FLIGHT: usize = 64;
/// And bytes, of any client: it refuses a write where twice as many are not sent yet.
const BYTES_IN_FLIGHT: usize = 32 << 20;
/// Payload that one client holds, and the most entries.
const HELD_BYTES: u64 = 64 << 20;
const HELD_ENTRIES: u64 = 400_000;

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let repeats = plan.repeats(3, 5);
    let idle = sessions(plan, repeats).await;
    let manifests = manifests(plan, repeats).await;
    let mut shows = Vec::new();
    let many = idle.row(&[&MANY.to_string()]);
    for (node, name, bar) in [("primary", "primary_kib", "≤ 64"), ("backup", "backup_kib", "≤ 32")] {
        shows.push(Show::figure(format!("an idle session of {MANY} at the {node}, KiB"), bar, many, name));
    }
    for place in Place::ALL {
        let row = |clients: u64| manifests.row(&[&clients.to_string(), &place.name()]);
        let more = |more: &Figures, alone: &Figures| figure(more, "down") - figure(alone, "down");
        let what = format!("bytes of manifests a write, {MANY} busy clients, backup {}", place.name());
        shows.push(Show::of(what, "≤ 256", (row(MANY), row(1)), more));
    }
    let bar = |row: &Row| Some((format!("{} clients, {}", row.key[0], row.key[1]), row.spread("down")?));
    let plots = vec![
        Plot {
            name: "manifests",
            title: "Bytes to clients for each write, all busy with one in flight".into(),
            x: "bytes",
            y: "",
            kind: Kind::Bars(manifests.rows.iter().rev().filter_map(bar).collect()),
        },
        Plot {
            name: "sessions",
            title: format!("Resident memory for an idle session of {MANY}"),
            x: "KiB",
            y: "",
            kind: Kind::Bars(
                many.iter()
                    .flat_map(|row| IDLE_METRICS.iter().rev().map(move |metric| (row, metric)))
                    .filter_map(|(row, metric)| Some((metric.head.to_owned(), row.spread(metric.name)?)))
                    .collect(),
            ),
        },
    ];
    let mut tables = vec![idle, manifests];
    if !plan.quick {
        tables.extend([loads(plan, repeats).await, held(repeats).await]);
    }
    Ok(Report { name: "growth", title: "What it costs as it grows", about: ABOUT.into(), tables, shows, plots })
}

type Figures = std::collections::BTreeMap<&'static str, f64>;

fn figure(figures: &Figures, name: &str) -> f64 {
    figures.get(name).copied().unwrap_or(f64::NAN)
}

fn measured(figures: impl Into<Figures>) -> Measured {
    let figures = figures.into();
    Measured { raw: json!(figures), figures }
}

async fn sessions(plan: &Plan, repeats: usize) -> Table {
    let counts: &[u64] = plan.choose(&[MANY], &[1, 10, 100, MANY]);
    let rows = counts.iter().map(|clients| (Row::new([clients.to_string()]), *clients)).collect();
    let rows = in_turns("growth, idle sessions", repeats, rows, async |clients: &u64| idle(*clients).await);
    Table { title: "Idle sessions".into(), keys: &IDLE_KEYS, metrics: &IDLE_METRICS, rows: rows.await }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn idle(clients: u64) -> Result<Measured> {
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let mut pair = Pair::start(folder.path(), Mode::Tagged, Duration::ZERO, None, 1).await?;
    let before = (usage(&mut pair.primary).await?.memory, usage(&mut pair.backup).await?.memory);
    let mut holders = holders(folder.path(), &pair, 0, clients, 0, PAYLOAD)?;
    let alone = holders.expect("started", PATIENCE).await?["memory"].as_u64().unwrap_or(0);
    settled(&mut holders).await?;
    let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / clients as f64 / 1024.0;
    let figures = [
        ("primary_kib", each(usage(&mut pair.primary).await?.memory, before.0)),
        ("backup_kib", each(usage(&mut pair.backup).await?.memory, before.1)),
        ("client_kib", each(usage(&mut holders).await?.memory, alone)),
    ];
    finish(holders, pair).await?;
    Ok(measured(figures))
}

/// Where the backup is while manifests are counted.
#[derive(Clone, Copy, Debug)]
enum Place {
    Away,
    /// At a round trip of so many milliseconds.
    There(u64),
}

impl Place {
    const ALL: [Place; 3] = [Place::There(0), Place::There(50), Place::Away];

    fn name(self) -> String {
        match self {
            Self::Away => "cut off".into(),
            Self::There(rtt_ms) => format!("there, round trip of {rtt_ms} ms"),
        }
    }
}

async fn manifests(plan: &Plan, repeats: usize) -> Table {
    let counts: &[u64] = plan.choose(&[1, MANY], &[1, 10, 64, MANY]);
    let cells = Place::ALL.into_iter().flat_map(|place| counts.iter().map(move |clients| (*clients, place)));
    let rows =
        cells.map(|(clients, place)| (Row::new([clients.to_string(), place.name()]), (clients, place))).collect();
    let rows = in_turns("growth, manifests", repeats, rows, async |(clients, place): &(u64, Place)| {
        told(*clients, *place).await
    });
    Table { title: "Manifests".into(), keys: &MANIFEST_KEYS, metrics: &MANIFEST_METRICS, rows: rows.await }
}

/// What clients are given beside their own replies, for each write.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn told(clients: u64, place: Place) -> Result<Measured> {
    let each = (COUNTED_WRITES / clients).max(20);
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let rtt = match place {
        Place::Away => Duration::ZERO,
        Place::There(rtt_ms) => Duration::from_millis(rtt_ms),
    };
    let counter = Counter::start().await?;
    // Clients have a stream to every address that they hear of: there is to be no way around the counter.
    let pair = Pair::start(folder.path(), Mode::Tagged, rtt, Some(counter.address), 1).await?;
    counter.target.send_replace(Some(pair.near));
    let mut holders = spawn_holders(folder.path(), &[counter.address, pair.far], 0, clients, each, PAYLOAD, 1)?;
    settled(&mut holders).await?;
    if matches!(place, Place::Away) {
        pair.relay.cut();
    }
    let before = counter.down.load(Ordering::Relaxed);
    holders.order("fill").await?;
    let filled = holders.expect("filled", PATIENCE).await?;
    let (down, writes) = (counter.down.load(Ordering::Relaxed) - before, (clients * each) as f64);
    let mut figures = Figures::from([("down", down as f64 / writes)]);
    // With the backup there, most of what was told is forgotten by now.
    if let (Place::Away, Some(headers)) = (place, filled["headers"].as_f64()) {
        figures.insert("headers", headers / writes);
    }
    finish(holders, pair).await?;
    Ok(measured(figures))
}

/// A load, beside clients that are idle.
#[derive(Clone, Copy, Debug)]
struct Load {
    clients: u64,
    busy: u64,
    payload: usize,
    rtt_ms: u64,
}

async fn loads(plan: &Plan, repeats: usize) -> Table {
    let all = |clients| Load { clients, busy: clients, payload: PAYLOAD, rtt_ms: 0 };
    let few = |clients, payload, rtt_ms| Load { clients, busy: BUSY, payload, rtt_ms };
    let mut loads: Vec<Load> = [1, 10, 64, 100, MANY].map(all).into();
    loads.extend([10, 100, MANY].map(|clients| few(clients, PAYLOAD, 0)));
    loads.extend([16, PAYLOAD, 4096, 64 << 10, 1 << 20].map(|payload| few(BUSY, payload, 0)));
    loads.extend([50, 300].map(|rtt_ms| few(BUSY, 4096, rtt_ms)));
    let row = |load: Load| {
        let Load { clients, busy, payload, rtt_ms } = load;
        (Row::new([clients, busy, payload as u64, rtt_ms].map(|it| it.to_string())), load)
    };
    let rows = loads.into_iter().map(row).collect();
    let seconds = plan.seconds(1.0, 2.0);
    let rows = in_turns("growth, loads", repeats, rows, async |load: &Load| bear(*load, seconds).await);
    Table { title: "Loads".into(), keys: &LOAD_KEYS, metrics: &LOAD_METRICS, rows: rows.await }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn bear(Load { clients, busy, payload, rtt_ms }: Load, seconds: f64) -> Result<Measured> {
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let mut pair = Pair::start(folder.path(), Mode::Tagged, Duration::from_millis(rtt_ms), None, 1).await?;
    let mut idle = None;
    if clients > busy {
        let mut holders = holders(folder.path(), &pair, busy, clients - busy, 0, payload)?;
        holders.expect("attached", PATIENCE).await?;
        idle = Some(holders);
    }
    let in_flight = if clients > busy || clients == BUSY { BUSY_IN_FLIGHT } else { 1 };
    let in_flight = in_flight.min(BYTES_IN_FLIGHT / payload);
    let mut arguments = vec!["load".to_owned(), "--target".into(), "tagged".into()];
    let options = [
        ("clients", busy.to_string()),
        ("in-flight", in_flight.to_string()),
        ("payload", payload.to_string()),
        ("warm-up", "0.5".to_owned()),
        ("seconds", seconds.to_string()),
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
    let figures = [
        ("writes_per_s", figure("writes_per_s")),
        ("p50_us", figure("p50_us")),
        ("load_cpu_us", figure("cpu_us") / writes),
        ("primary_cpu_us", after.0.since(before.0).cpu_us as f64 / writes),
        ("backup_cpu_us", after.1.since(before.1).cpu_us as f64 / writes),
    ];
    Ok(Measured { figures: figures.into(), raw: result })
}

async fn held(repeats: usize) -> Table {
    let cell = |payload: usize| (payload, (HELD_BYTES / payload as u64).min(HELD_ENTRIES));
    let cells = [16, PAYLOAD, 4096, 64 << 10, 1 << 20].map(cell);
    let rows =
        cells.map(|(payload, entries)| (Row::new([payload.to_string(), entries.to_string()]), (payload, entries)));
    let rows = in_turns("growth, held", repeats, rows.into(), async |(payload, entries): &(usize, u64)| {
        hold(*payload, *entries).await
    });
    Table { title: "Held".into(), keys: &HELD_KEYS, metrics: &HELD_METRICS, rows: rows.await }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn hold(payload: usize, entries: u64) -> Result<Measured> {
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let pair = Pair::start(folder.path(), Mode::Tagged, Duration::ZERO, None, 1).await?;
    let mut holders = holders(folder.path(), &pair, 0, 1, entries, payload)?;
    settled(&mut holders).await?;
    let before = usage(&mut holders).await?.memory;
    pair.relay.cut();
    holders.order("fill").await?;
    holders.expect("filled", PATIENCE).await?;
    let more = usage(&mut holders).await?.memory.saturating_sub(before) as f64;
    let bytes = (entries * payload as u64) as f64;
    let figures = [("per_byte", more / bytes), ("per_entry", (more - bytes) / entries as f64)];
    finish(holders, pair).await?;
    Ok(measured(figures))
}

/// All sessions stand, and nobody holds anything.
async fn settled(holders: &mut Process) -> Result<()> {
    holders.expect("attached", PATIENCE).await?;
    holders.order("settle").await?;
    holders.expect("settled", PATIENCE).await?;
    Ok(())
}

async fn finish(mut holders: Process, pair: Pair) -> Result<()> {
    holders.order("finish").await?;
    holders.ended(PATIENCE).await?;
    pair.finish().await
}

fn holders(folder: &Path, pair: &Pair, first: u64, clients: u64, writes: u64, payload: usize) -> Result<Process> {
    let in_flight = IN_FLIGHT.min(BYTES_IN_FLIGHT / payload);
    spawn_holders(folder, &[pair.near, pair.far], first, clients, writes, payload, in_flight)
}

/// A relay that counts what goes to the clients.
struct Counter {
    address: SocketAddr,
    /// Where it leads, once that is known: a node is told this address before it has one.
    target: watch::Sender<Option<SocketAddr>>,
    down: Arc<AtomicU64>,
}

impl Counter {
    async fn start() -> Result<Counter> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (address, down) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
        let (target, mut known) = watch::channel(None);
        let counted = Arc::clone(&down);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Some(target) = known.wait_for(Option::is_some).await.ok().and_then(|target| *target) else {
                    return;
                };
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                tokio::spawn(pass(near_read, far_write, Arc::default()));
                tokio::spawn(pass(far_read, near_write, Arc::clone(&counted)));
            }
        });
        Ok(Counter { address, target, down })
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
