//! How long a takeover takes: from the promotion of the backup until it serves, against what the clients hold.
//!
//! The link to the backup is cut, so many clients write so much, the primary is killed, and the backup is promoted: the
//! clients report what they hold, and hand it over. Beside it, in the same run: a bare stream transfer of as many bytes from as
//! many clients, and as many bytes appended to a file and synced. With shares, some clients are killed along with the
//! primary, and what they held is decoded from what the others keep.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tagalong::client::ClientSettings;
use tagalong::net::AdminClient;
use tagalong::node::RecoveryPolicy;
use tagalong::{TaggedClient, WriteOutcome};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::node::Mode;
use crate::pair::{DELTA_BYTES, PATIENCE, Pair, listening, usage};
use crate::process::{Process, orders, tell};
use crate::table::{self, Spread};
use crate::tally::payload;
use crate::usage::Usage;
use crate::wire::{PlainClient, Write, Writes};
use crate::{Result, plain};

/// One message of the bare transfer, and one write of the bare file: about what a client hands over at once.
const PIECE: usize = 256 << 10;
/// Threads of a node, as of the bare figures' processes.
const WORKERS: usize = 2;
/// Writes of a client under way while it fills its cache, as a rule.
pub(crate) const IN_FLIGHT: usize = 256;

/// What is measured.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RecoveryArgs {
    /// What the clients hold together, in MiB of payload.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024")]
    delta_mib: Vec<u64>,
    #[arg(long, value_delimiter = ',', default_value = "1,16,40,1000")]
    clients: Vec<u64>,
    #[arg(long, value_delimiter = ',', default_value = "4096")]
    payload: Vec<usize>,
    /// `tagged`, or `covered` and so many clients of the last one's process killed with the primary.
    #[arg(long, value_delimiter = ',', default_value = "tagged")]
    mode: Vec<Mode>,
    /// Round trip to the backup.
    #[arg(long, default_value_t = 0)]
    rtt_ms: u64,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// What a filler of caches is told when it is started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct HoldersArgs {
    #[arg(long)]
    first: u64,
    #[arg(long)]
    clients: u64,
    #[arg(long)]
    writes: u64,
    #[arg(long)]
    payload: usize,
    /// Writes of a client under way while it fills its cache.
    #[arg(long)]
    in_flight: usize,
    #[arg(long)]
    endpoint: Vec<String>,
}

/// One cell: what was held by whom, and what that took, in seconds, for each repeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Takeover {
    pub(crate) mode: &'static str,
    pub(crate) clients: u64,
    pub(crate) payload: usize,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// From the promotion until the backup serves, and until the first write that it acknowledges.
    pub(crate) open_s: Vec<f64>,
    pub(crate) write_s: Vec<f64>,
    /// Entries that were decoded from shares.
    pub(crate) decoded: Vec<f64>,
    /// Processor time of the promoted node until then.
    pub(crate) cpu_s: Vec<f64>,
    pub(crate) transfer_s: Vec<f64>,
    pub(crate) append_s: Vec<f64>,
}

pub(crate) async fn run(args: RecoveryArgs) -> Result<()> {
    show(&measure(&args).await?);
    Ok(())
}

pub(crate) async fn measure(args: &RecoveryArgs) -> Result<Vec<Takeover>> {
    let mut takeovers = Vec::new();
    for mode in args.mode.iter().copied() {
        for payload in args.payload.iter().copied() {
            for clients in args.clients.iter().copied() {
                for mib in args.delta_mib.iter().copied() {
                    let writes = (mib << 20) / clients / payload as u64;
                    if writes > 0 {
                        takeovers.push(cell(args, Fill { mode, clients, payload, writes }).await?);
                    }
                }
            }
        }
    }
    Ok(takeovers)
}

/// What is held by whom: each client makes so many writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) mode: Mode,
    pub(crate) clients: u64,
    pub(crate) payload: usize,
    pub(crate) writes: u64,
}

impl Fill {
    pub(crate) fn entries(&self) -> u64 {
        self.clients * self.writes
    }

    fn bytes(&self) -> u64 {
        self.entries() * self.payload as u64
    }
}

/// A takeover, and the bare figures beside it.
pub(crate) async fn once(rtt_ms: u64, fill: Fill) -> Result<Done> {
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let append = append(folder.path(), fill.bytes())?;
    let transfer = transfer(folder.path(), fill.clients, fill.bytes()).await?;
    Ok(Done { append, transfer, ..disaster(folder.path(), rtt_ms, fill).await? })
}

async fn cell(args: &RecoveryArgs, fill: Fill) -> Result<Takeover> {
    let Fill { mode, clients, payload, .. } = fill;
    let (entries, bytes) = (fill.entries(), fill.bytes());
    let mut takeover = Takeover { mode: mode.name(), clients, payload, bytes, entries, ..Takeover::default() };
    for _ in 0..args.repeats {
        let done = once(args.rtt_ms, fill).await?;
        takeover.append_s.push(done.append.as_secs_f64());
        takeover.transfer_s.push(done.transfer.as_secs_f64());
        takeover.open_s.push(done.open.as_secs_f64());
        takeover.write_s.push(done.write.as_secs_f64());
        takeover.decoded.push(done.decoded);
        takeover.cpu_s.push(done.cpu_s);
        eprintln!("{} {clients} clients, {} MiB: open after {:?}", mode.name(), bytes >> 20, done.open);
    }
    Ok(takeover)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn show(takeovers: &[Takeover]) {
    let rows = takeovers.iter().map(|takeover| {
        let seconds = |of: &[f64]| Spread::of(of.iter().copied()).show(3);
        let Takeover { open_s, transfer_s, append_s, .. } = takeover;
        let bare = transfer_s.iter().zip(append_s).map(|(transfer, append)| transfer.max(*append));
        let ratio = Spread::of(open_s.iter().zip(bare).map(|(open, bare)| open / bare));
        let rate = Spread::of(open_s.iter().map(|open| takeover.entries as f64 / open / 1e3));
        vec![
            takeover.mode.to_owned(),
            takeover.clients.to_string(),
            takeover.payload.to_string(),
            format!("{:.1}", takeover.bytes as f64 / 1048576.0),
            takeover.entries.to_string(),
            seconds(open_s),
            seconds(&takeover.write_s),
            Spread::of(takeover.decoded.iter().copied()).show(0),
            seconds(&takeover.cpu_s),
            seconds(transfer_s),
            seconds(append_s),
            ratio.show(2),
            rate.show(0),
        ]
    });
    let head = [
        "mode",
        "clients",
        "payload",
        "delta, MiB",
        "entries",
        "open, s",
        "first write, s",
        "decoded",
        "node's CPU, s",
        "bare transfer, s",
        "bare append, s",
        "open / slower bare",
        "thousand entries/s",
    ];
    print!("{}", table::table(&head, &rows.collect::<Vec<_>>()));
}

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// From the promotion until the backup serves, and until the first write that it acknowledges.
    pub(crate) open: Duration,
    pub(crate) write: Duration,
    /// Entries that were decoded from shares.
    pub(crate) decoded: f64,
    /// Processor time of the promoted node until then.
    pub(crate) cpu_s: f64,
    pub(crate) transfer: Duration,
    pub(crate) append: Duration,
}

/// Ends the primary, and in a covered service one of its clients, and promotes the backup.
async fn disaster(folder: &Path, rtt_ms: u64, fill: Fill) -> Result<Done> {
    let Fill { mode, clients, payload, writes } = fill;
    let Pair { mut primary, mut backup, relay, near, far } =
        Pair::start(folder, mode, Duration::from_millis(rtt_ms), None, WORKERS).await?;
    // In a covered service one client has a process of its own, which dies with the primary.
    let dying = u64::from(mode == Mode::Covered);
    let holders = |first, clients| spawn_holders(folder, &[near, far], first, clients, writes, payload, IN_FLIGHT);
    let mut living = holders(dying, clients - dying)?;
    let mut doomed = if dying > 0 { Some(holders(0, dying)?) } else { None };
    living.expect("attached", PATIENCE).await?;
    if let Some(doomed) = &mut doomed {
        doomed.expect("attached", PATIENCE).await?;
    }
    // So that the backup knows every session.
    living.order("settle").await?;
    living.expect("settled", PATIENCE).await?;
    relay.cut();
    living.order("fill").await?;
    if let Some(doomed) = &mut doomed {
        doomed.order("fill").await?;
        doomed.expect("filled", PATIENCE).await?;
    }
    living.expect("filled", PATIENCE).await?;
    if let Some(doomed) = &mut doomed {
        doomed.start_kill()?;
    }
    primary.kill().await?;
    if let Some(doomed) = &mut doomed {
        doomed.kill().await?;
    }
    warm(folder, 3 * fill.bytes())?;
    living.order("write").await?;
    let before = usage(&mut backup).await?.cpu_us;
    let admin = AdminClient::connect(&format!("http://{far}")).await?;
    let began = Instant::now();
    admin.promote(false, RecoveryPolicy::default()).await?;
    let opened = backup.expect("open", PATIENCE).await?;
    let open = began.elapsed();
    living.expect("written", PATIENCE).await?;
    let write = began.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let cpu_s = (usage(&mut backup).await?.cpu_us - before) as f64 / 1e6;
    // Every write that was acknowledged is there.
    living.order("count").await?;
    let counted = living.expect("counted", PATIENCE).await?;
    let missing = counted["missing"].as_u64().ok_or("the clients do not tell what is missing")?;
    if missing > 0 {
        return Err(format!("{missing} acknowledged writes are lost").into());
    }
    let decoded = opened["decoded"].as_f64().unwrap_or(f64::NAN);
    living.order("finish").await?;
    living.ended(PATIENCE).await?;
    backup.order("finish").await?;
    backup.ended(PATIENCE).await?;
    Ok(Done { open, write, decoded, cpu_s, ..Done::default() })
}

/// A process of some clients that fill their caches when they are told to.
pub(crate) fn spawn_holders(
    folder: &Path,
    endpoints: &[SocketAddr],
    first: u64,
    clients: u64,
    writes: u64,
    payload: usize,
    in_flight: usize,
) -> Result<Process> {
    let mut arguments = vec!["holders".to_owned()];
    let (payload, in_flight) = (payload as u64, in_flight as u64);
    let options =
        [("first", first), ("clients", clients), ("writes", writes), ("payload", payload), ("in-flight", in_flight)];
    for (name, value) in options {
        arguments.extend([format!("--{name}"), value.to_string()]);
    }
    for address in endpoints {
        arguments.extend(["--endpoint".into(), format!("http://{address}")]);
    }
    Process::spawn(&format!("holders-{first}"), folder, &arguments)
}

/// Has so much memory used, and free again. A virtual machine may have to ask its host for what it had not used lately, at
/// seconds a GiB: that would be measured, and nothing else.
fn warm(folder: &Path, bytes: u64) -> Result<()> {
    let piece = vec![0x5a; PIECE];
    let mut file = File::create(folder.join("warm"))?;
    for _ in 0..bytes.div_ceil(PIECE as u64) {
        file.write_all(&piece)?;
    }
    std::fs::remove_file(folder.join("warm"))?;
    Ok(())
}

/// As many bytes appended to a file and synced.
fn append(folder: &Path, bytes: u64) -> Result<Duration> {
    warm(folder, bytes)?;
    let piece = vec![0x5a; PIECE];
    let began = Instant::now();
    let mut file = File::create(folder.join("bare"))?;
    let mut left = usize::try_from(bytes)?;
    while left > 0 {
        let length = left.min(PIECE);
        file.write_all(&piece[..length])?;
        left -= length;
    }
    file.sync_data()?;
    let took = began.elapsed();
    std::fs::remove_file(folder.join("bare"))?;
    Ok(took)
}

/// As many bytes sent from as many clients in one process to a server in another, that counts them.
async fn transfer(folder: &Path, clients: u64, bytes: u64) -> Result<Duration> {
    let mut sink = Process::spawn("sink", folder, &["sink".to_owned()])?;
    let endpoint = format!("http://{}", listening(&mut sink).await?);
    let arguments =
        ["senders", "--endpoint", &endpoint, "--clients", &clients.to_string(), "--bytes", &bytes.to_string()];
    let mut senders = Process::spawn("senders", folder, &arguments.map(str::to_owned))?;
    senders.expect("attached", PATIENCE).await?;
    warm(folder, bytes)?;
    let began = Instant::now();
    senders.order("send").await?;
    senders.expect("sent", PATIENCE).await?;
    let took = began.elapsed();
    senders.ended(PATIENCE).await?;
    sink.order("finish").await?;
    sink.ended(PATIENCE).await?;
    Ok(took)
}

/// What the senders of a bare transfer are told when they are started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SendersArgs {
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    clients: u64,
    #[arg(long)]
    bytes: u64,
}

pub(crate) async fn run_senders(args: SendersArgs) -> Result<()> {
    let mut orders = orders()?;
    let mut streams = Vec::new();
    for _ in 0..args.clients {
        let channel = Endpoint::from_shared(args.endpoint.clone())?.tcp_nodelay(true).connect().await?;
        let (queue, messages) = mpsc::channel(4);
        let mut service = PlainClient::new(channel);
        let answers = service.exchange(ReceiverStream::new(messages)).await?.into_inner();
        streams.push((queue, answers));
    }
    tell(&json!({ "event": "attached" }));
    wait_for(&mut orders, "send").await;
    let mut running = JoinSet::new();
    let share = usize::try_from(args.bytes / args.clients)?;
    for (queue, mut answers) in streams {
        running.spawn(async move {
            let piece = bytes::Bytes::from(vec![0x5a; PIECE]);
            let mut left = share;
            while left > 0 {
                let payload = piece.slice(..left.min(PIECE));
                left -= payload.len();
                if queue.send(Writes { writes: vec![Write { number: 1, payload }] }).await.is_err() {
                    break;
                }
            }
            drop(queue);
            // The server has it all when it ends the stream.
            while answers.next().await.is_some() {}
        });
    }
    running.join_all().await;
    tell(&json!({ "event": "sent" }));
    Ok(())
}

async fn wait_for(orders: &mut mpsc::Receiver<String>, what: &str) {
    while orders.recv().await.is_some_and(|order| order != what) {}
}

/// The process of some clients: fills their caches, and then does as it is told.
pub(crate) async fn run_holders(args: HoldersArgs) -> Result<()> {
    let mut orders = orders()?;
    tell(&json!({ "event": "started", "memory": Usage::of_this_process()?.memory }));
    let mut clients = Vec::new();
    let settings = ClientSettings { cache_bytes_max: DELTA_BYTES, ..ClientSettings::default() };
    for number in args.first..args.first + args.clients {
        let builder = TaggedClient::builder(format!("rack-{number}")).endpoints(args.endpoint.clone());
        clients.push((number, builder.settings(settings.clone()).start().await?));
    }
    for (_, client) in &clients {
        tokio::time::timeout(PATIENCE, client.attached()).await.map_err(|_| "no session was established")??;
    }
    tell(&json!({ "event": "attached" }));
    while let Some(order) = orders.recv().await.filter(|order| order != "finish") {
        let event = match order.as_str() {
            "settle" => {
                for (_, client) in &clients {
                    client.flush().await?;
                }
                json!({ "event": "settled" })
            }
            "fill" => {
                let mut running = JoinSet::new();
                for (number, client) in clients.iter().cloned() {
                    let args = args.clone();
                    running.spawn(async move { fill(&client, number, &args).await });
                }
                while let Some(done) = running.join_next().await {
                    done??;
                }
                let stats = clients.iter().map(|(_, client)| client.stats());
                let headers: u64 = stats.map(|stats| stats.cached_headers as u64 + stats.cached_places).sum();
                json!({ "event": "filled", "headers": headers })
            }
            "write" => {
                let (number, client) = &clients[0];
                acknowledged(client.write(payload(*number, args.writes + 1, args.payload)).await?)?;
                json!({ "event": "written" })
            }
            "count" => {
                let mut missing = 0;
                // Of those that died with the primary as well.
                for number in 0..args.first + args.clients {
                    let query = [number.to_be_bytes(), args.writes.to_be_bytes()].concat();
                    missing += bytes::Buf::get_u64(&mut clients[0].1.read(query).await?);
                }
                json!({ "event": "counted", "missing": missing })
            }
            order => {
                crate::node::answer(order)?;
                continue;
            }
        };
        tell(&event);
    }
    Ok(())
}

fn acknowledged(outcome: WriteOutcome) -> Result<()> {
    match outcome {
        WriteOutcome::Acknowledged { .. } => Ok(()),
        _ => Err("a write was not acknowledged".into()),
    }
}

async fn fill(client: &TaggedClient, number: u64, args: &HoldersArgs) -> Result<()> {
    let mut flight = std::collections::VecDeque::new();
    for serial in 1..=args.writes {
        if flight.len() >= args.in_flight
            && let Some(oldest) = flight.pop_front()
        {
            let oldest: tagalong::net::Writing = oldest;
            acknowledged(oldest.await?)?;
        }
        flight.push_back(client.write(payload(number, serial, args.payload)));
    }
    for writing in flight {
        acknowledged(writing.await?)?;
    }
    Ok(())
}

/// Takes what is sent, and answers nothing.
pub(crate) async fn run_sink() -> Result<()> {
    let mut orders = orders()?;
    let served = plain::serve_sink(crate::tell_address);
    tokio::select! {
        served = served => served,
        obeyed = crate::node::obey(&mut orders) => obeyed,
    }
}
