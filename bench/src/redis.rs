//! Redis beside this library: an append-only file that is synced every second, and a replica that follows without being waited
//! for. A client of Redis's protocol that does what the load needs and no more.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::Result;
use crate::experiment::{Plan, in_turns};
use crate::latency::Latencies;
use crate::load::{Phase, Shape};
use crate::node::Mode;
use crate::plot::{Kind, Plot};
use crate::relay::Relay;
use crate::report::{Metric, Report, Row, Show, Table};
use crate::service::{Cell, System, measure_row};
use crate::tally::payload;

const ABOUT: &str = "
64 clients with one write of 100 B outstanding each, beside the primary; the follower is 50 ms away and back. Redis runs with
`appendonly yes` and `appendfsync everysec` and an asynchronous replica: a write is answered when it is applied, and one that was
acknowledged is lost with the primary's site if the replica had not got it. `tagged` loses none.
";
const PROGRAM: &str = "redis-server";
/// A server that has not started, or a replica that has not followed, by then.
const PATIENCE: Duration = Duration::from_secs(20);
/// Keys of a client.
const KEYS_MAX: u64 = 1000;

const KEYS: [&str; 1] = ["system"];
const METRICS: [Metric; 7] = [
    Metric::new("writes_per_s", "writes/s", 0),
    Metric::new("p50_us", "p50, µs", 0),
    Metric::new("p99_us", "p99, µs", 0),
    Metric::new("load_cpu_us", "clients' CPU, µs a write", 2),
    Metric::new("primary_cpu_us", "primary's", 2),
    Metric::new("backup_cpu_us", "follower's", 2),
    Metric::new("wan_bytes", "link bytes a write", 0),
];

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let version = Command::new(PROGRAM).arg("--version").output().await;
    let version = version.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let (warm_up, seconds) = (plan.choose(0.5, 1.0), plan.seconds(1.5, 5.0));
    let shape = Shape { clients: 64, in_flight: 1, payload: 100, warm_up, seconds, ..Shape::default() };
    let mut rows = Vec::new();
    for system in plan.systems(&[System::Redis, System::Service(Mode::Async), System::Service(Mode::Tagged)]) {
        let cell =
            Cell { system, shape: shape.clone(), rtt: Duration::from_millis(50), sites: None, connections: None };
        let row = match version {
            None if system == System::Redis => Row::skipped([system.name()], "no `redis-server` is on the path"),
            _ => Row::new([system.name()]),
        };
        rows.push((row, cell));
    }
    let rows = in_turns("redis", plan.repeats(5, 5), rows, measure_row).await;
    let table = Table { title: "64 clients, one outstanding each".into(), keys: &KEYS, metrics: &METRICS, rows };
    let rows = (table.row(&["tagged"]), table.row(&["redis"]));
    let shows = vec![
        Show::ratio("tagged / redis, throughput", "≥ 1", rows, "writes_per_s"),
        Show::ratio("tagged / redis, p50", "", rows, "p50_us"),
    ];
    let bar = |row: &Row| Some((row.key.join(", "), row.spread("writes_per_s")?));
    let plot = Plot {
        name: "throughput",
        title: "Throughput, 64 clients, one write of 100 B outstanding each".into(),
        x: "writes/s",
        y: "",
        kind: Kind::Bars(table.rows.iter().rev().filter_map(bar).collect()),
    };
    let about = format!("{}\n{}", ABOUT.trim(), version.unwrap_or_default());
    Ok(Report { name: "redis", title: "Beside Redis", about, tables: vec![table], shows, plots: vec![plot] })
}

/// A primary, a replica, and the link between them.
pub(crate) struct Started {
    pub(crate) primary: Child,
    pub(crate) replica: Child,
    pub(crate) near: SocketAddr,
    pub(crate) far: SocketAddr,
    pub(crate) link: Relay,
}

/// Starts both, up to a replica that follows.
pub(crate) async fn start(rtt: Duration, folder: &Path) -> Result<Started> {
    let (near, far) = (free()?, free()?);
    let primary = server(near, &folder.join("primary-log"), &[])?;
    connect(near).await?;
    let link = Relay::start(rtt)?;
    link.lead_to(near);
    let end: SocketAddr = link.endpoint().trim_start_matches("http://").parse()?;
    let (host, port) = (end.ip().to_string(), end.port().to_string());
    let replica = server(far, &folder.join("backup-log"), &["--replicaof", &host, &port])?;
    let mut socket = BufReader::new(connect(far).await?);
    let begun = Instant::now();
    while !follows(&mut socket).await? {
        if begun.elapsed() > PATIENCE {
            return Err("the replica did not follow".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Started { primary, replica, near, far, link })
}

/// A port that was free just now: Redis does not tell which one it took.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn server(address: SocketAddr, folder: &Path, more: &[&str]) -> Result<Child> {
    std::fs::create_dir_all(folder)?;
    let port = address.port().to_string();
    let settings = ["--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "everysec"];
    let child = Command::new(PROGRAM)
        .args(settings)
        .args(["--save", "", "--repl-diskless-sync-delay", "0"])
        .args(more)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) if begun.elapsed() > PATIENCE => return Err(format!("{PROGRAM} did not start: {error}").into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Whether the replica's link to its primary is up.
async fn follows(socket: &mut BufReader<TcpStream>) -> Result<bool> {
    socket.get_mut().write_all(b"INFO replication\r\n").await?;
    let length = reply(socket).await?;
    let length: usize = length.strip_prefix('$').ok_or("no answer to INFO")?.parse()?;
    let mut text = vec![0; length + 2];
    tokio::io::AsyncReadExt::read_exact(socket, &mut text).await?;
    Ok(String::from_utf8_lossy(&text).contains("master_link_status:up"))
}

/// One line of an answer.
async fn reply(from: &mut (impl AsyncBufReadExt + Unpin)) -> Result<String> {
    let mut line = String::new();
    if from.read_line(&mut line).await? == 0 {
        return Err("redis closed the connection".into());
    }
    Ok(line.trim_end().to_owned())
}

/// One client: so many `SET` in flight.
pub(crate) async fn drive(
    endpoint: &str,
    client: u64,
    shape: &Shape,
    phase: &Phase,
    acked: &AtomicU64,
) -> Result<Latencies> {
    let address: SocketAddr = endpoint.trim_start_matches("http://").parse()?;
    let (reading, mut writing) = connect(address).await?.into_split();
    let mut reading = BufReader::new(reading);
    phase.ready().await;
    let mut latencies = Latencies::default();
    let mut flight: VecDeque<Instant> = VecDeque::new();
    let mut issued = 0;
    loop {
        let mut commands = Vec::new();
        while flight.len() < shape.in_flight && !phase.is_over() {
            issued += 1;
            set(&mut commands, client, issued, &payload(client, issued, shape.payload));
            flight.push_back(Instant::now());
        }
        writing.write_all(&commands).await?;
        let Some(sent) = flight.pop_front() else { return Ok(latencies) };
        accepted(&mut reading).await?;
        acked.fetch_add(1, Ordering::Relaxed);
        if phase.counts(sent) {
            latencies.note(sent.elapsed());
        }
    }
}

fn set(out: &mut Vec<u8>, client: u64, serial: u64, value: &[u8]) {
    let key = format!("{client}:{}", serial % KEYS_MAX);
    out.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len()).as_bytes());
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

async fn accepted(from: &mut BufReader<impl AsyncRead + Unpin>) -> Result<()> {
    match reply(from).await?.as_str() {
        "+OK" => Ok(()),
        other => Err(format!("redis answers {other}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commands_and_answers_have_redis_s_form() {
        let mut out = Vec::new();
        set(&mut out, 3, 1007, b"value");
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$3\r\n3:7\r\n$5\r\nvalue\r\n");
        let mut answers = BufReader::new(&b"+OK\r\n-ERR no\r\n"[..]);
        accepted(&mut answers).await.expect("accepted");
        let error = accepted(&mut answers).await.expect_err("refused");
        assert_eq!(error.to_string(), "redis answers -ERR no");
        accepted(&mut answers).await.expect_err("closed");
    }
}
