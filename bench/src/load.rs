//! The process that makes load: so many clients, each with so many writes in flight, and what they saw.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Buf;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tagalong::client::ClientSettings;
use tagalong::{TaggedClient, WriteOutcome, Writing};
use tokio::sync::{Barrier, mpsc, watch};
use tokio::task::JoinSet;

use crate::latency::Latencies;
use crate::process::{orders, tell};
use crate::tally::payload;
use crate::usage::Usage;
use crate::{Result, plain, redis};

/// How often what the clients hold is looked at.
const SAMPLE: Duration = Duration::from_millis(50);
/// How often it is looked for writes that are due: a tick of the runtime's timers is ten times as long.
const PACE: Duration = Duration::from_micros(100);
/// A session may take this long to be established.
const ATTACH: Duration = Duration::from_secs(60);

/// What is written, and how much of it at once.
#[derive(clap::Args, Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    /// How many clients.
    #[arg(long, default_value_t = 1)]
    pub(crate) clients: u64,
    /// Writes in flight of each.
    #[arg(long, default_value_t = 1)]
    pub(crate) in_flight: usize,
    /// Bytes of a write.
    #[arg(long, default_value_t = 100)]
    pub(crate) payload: usize,
    /// Seconds before it counts.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) warm_up: f64,
    /// Seconds that count.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// Seconds that clients have afterwards to get rid of what they hold.
    #[arg(long, default_value_t = 30.0)]
    pub(crate) drain: f64,
    /// Writes a second of all clients together, each issued when it is due, or as soon as fewer than `in_flight` are; their
    /// latencies count from when they were due. 0: the next is issued when one is answered.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) rate: f64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { clients: 1, in_flight: 1, payload: 100, warm_up: 0.5, seconds: 2.0, drain: 30.0, rate: 0.0 }
    }
}

/// Which service is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// A tagalong service.
    Tagged,
    /// A plain stream, a message for each write.
    Plain,
    /// A plain stream whose messages carry what has gathered.
    PlainBatched,
    /// Redis.
    Redis,
}

/// What the process is told when it is started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    pub(crate) shape: Shape,
    #[arg(long)]
    pub(crate) target: Target,
    /// Where nodes may be found.
    #[arg(long)]
    pub(crate) endpoint: Vec<String>,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
}

/// Where a run is: everybody is ready, it began, it counts, it is over.
pub(crate) struct Phase {
    barrier: Barrier,
    begin: watch::Receiver<Option<Begun>>,
    over: std::sync::atomic::AtomicBool,
    /// Writes that were due, and never issued.
    overdue: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    counts_from: Instant,
    ends: Instant,
}

impl Phase {
    /// Waits until everybody is ready and the run begins.
    pub(crate) async fn ready(&self) {
        self.barrier.wait().await;
        let mut begin = self.begin.clone();
        let _ = begin.wait_for(Option::is_some).await;
    }

    /// Nothing more is to be written.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Whether a write that was issued then is part of what is measured.
    pub(crate) fn counts(&self, issued: Instant) -> bool {
        self.begin.borrow().is_some_and(|begun| begun.counts_from <= issued && issued < begun.ends)
    }
}

/// What clients hold, over time.
#[derive(Default)]
struct Held {
    most: u64,
    sum: u64,
    samples: u64,
}

impl Held {
    fn note(&mut self, bytes: u64) {
        self.most = self.most.max(bytes);
        self.sum += bytes;
        self.samples += 1;
    }
}

/// Runs the load, and tells what came of it.
pub(crate) async fn run(args: LoadArgs) -> Result<()> {
    if args.shape.rate > 0.0 && args.target != Target::Tagged {
        return Err("only a tagalong service is offered a rate".into());
    }
    let mut orders = orders()?;
    let count = usize::try_from(args.shape.clients)?;
    let (begin, begun) = watch::channel(None);
    let phase = Arc::new(Phase {
        barrier: Barrier::new(count + 1),
        begin: begun,
        over: Default::default(),
        overdue: AtomicU64::new(0),
    });
    let acked: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
    let clients = if args.target == Target::Tagged { attach(&args).await? } else { Vec::new() };
    let (pacing, mut paces) = paces(&args.shape);
    let mut running = JoinSet::new();
    for client in 0..count {
        let (args, phase, acked) = (args.clone(), Arc::clone(&phase), Arc::clone(&acked));
        let number = client as u64;
        let tagged = clients.get(client).cloned();
        let pace = paces.pop_front();
        running.spawn(async move {
            match tagged {
                Some(tagged) => match pace {
                    None => write(&tagged, number, &args.shape, &phase, &acked[client]).await,
                    Some(due) => write_paced(&tagged, number, &args.shape, due, &phase, &acked[client]).await,
                },
                None => {
                    let endpoint = &args.endpoint[client % args.endpoint.len()];
                    if args.target == Target::Redis {
                        return redis::drive(endpoint, number, &args.shape, &phase, &acked[client]).await;
                    }
                    let batched = args.target == Target::PlainBatched;
                    plain::drive(endpoint, number, &args.shape, batched, &phase, &acked[client]).await
                }
            }
        });
    }
    phase.barrier.wait().await;
    tell(&json!({ "event": "attached" }));
    told_to(&mut orders, "start").await;
    let now = Instant::now();
    let counts_from = now + Duration::from_secs_f64(args.shape.warm_up);
    let ends = counts_from + Duration::from_secs_f64(args.shape.seconds);
    begin.send_replace(Some(Begun { counts_from, ends }));
    if args.shape.rate > 0.0 {
        let rate = args.shape.rate;
        std::thread::spawn(move || pace(now, ends, rate, &pacing));
    }
    let held = Arc::new(Mutex::new(Held::default()));
    tokio::time::sleep_until(counts_from.into()).await;
    tell(&json!({ "event": "counting" }));
    let before = Usage::of_this_process()?;
    tokio::select! {
        () = watch_until(ends, &clients, &held, &acked) => {}
        () = told_to(&mut orders, "stop") => {}
    }
    phase.over.store(true, Ordering::Relaxed);
    let used = Usage::of_this_process()?.since(before);
    tell(&json!({ "event": "over" }));
    let mut latencies = Latencies::default();
    while let Some(done) = running.join_next().await {
        latencies.add(&done??);
    }
    tell(&json!({ "event": "answered" }));
    let drained = drain(&clients, args.shape.drain).await?.then(|| ends.elapsed());
    let mut result = result(&args, &latencies, &held.lock(), &acked, drained, used);
    result["overdue"] = phase.overdue.load(Ordering::Relaxed).into();
    result["missing"] = missing(&clients, &acked).await?.into();
    tell(&result);
    Ok(())
}

fn result(
    args: &LoadArgs,
    latencies: &Latencies,
    held: &Held,
    acked: &[AtomicU64],
    drained: Option<Duration>,
    used: Usage,
) -> Value {
    let mut result = latencies.json(args.shape.seconds);
    result["event"] = "result".into();
    result["held_most"] = held.most.into();
    result["held_mean"] = (held.sum / held.samples.max(1)).into();
    result["acked"] = acked.iter().map(|acked| acked.load(Ordering::Relaxed)).collect::<Vec<_>>().into();
    result["drained_s"] = drained.map(|drained| drained.as_secs_f64()).into();
    result["cpu_us"] = used.cpu_us.into();
    result
}

async fn told_to(orders: &mut mpsc::Receiver<String>, what: &str) {
    while orders.recv().await.is_some_and(|order| order != what) {}
}

/// How many writes are not there that were acknowledged.
async fn missing(clients: &[TaggedClient], acked: &[AtomicU64]) -> Result<u64> {
    let mut missing = 0;
    for (number, (client, acked)) in (0_u64..).zip(clients.iter().zip(acked)) {
        let query = [number.to_be_bytes(), acked.load(Ordering::Relaxed).to_be_bytes()].concat();
        missing += client.read(query).await?.get_u64();
    }
    Ok(missing)
}

async fn attach(args: &LoadArgs) -> Result<Vec<TaggedClient>> {
    let mut clients = Vec::new();
    for number in 0..args.shape.clients {
        let client = TaggedClient::builder(format!("rack-{number}"))
            .endpoints(args.endpoint.clone())
            .settings(ClientSettings::default())
            .start()
            .await?;
        clients.push(client);
    }
    for client in &clients {
        tokio::time::timeout(ATTACH, client.attached())
            .await
            .map_err(|_| format!("no session was established within {ATTACH:?}"))??;
    }
    Ok(clients)
}

/// Whether nobody holds anything any more, within so many seconds.
async fn drain(clients: &[TaggedClient], seconds: f64) -> Result<bool> {
    let until = tokio::time::Instant::now() + Duration::from_secs_f64(seconds);
    for client in clients {
        match tokio::time::timeout_at(until, client.flush()).await {
            Ok(flushed) => flushed?,
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Notes what is held, and tells how much was acknowledged so far.
async fn watch_until(end: Instant, clients: &[TaggedClient], held: &Mutex<Held>, acked: &[AtomicU64]) {
    while Instant::now() < end {
        held.lock().note(clients.iter().map(|client| client.stats().cache_bytes).sum());
        let acked: u64 = acked.iter().map(|acked| acked.load(Ordering::Relaxed)).sum();
        tell(&json!({ "event": "progress", "acked": acked }));
        tokio::time::sleep_until((Instant::now() + SAMPLE).min(end).into()).await;
    }
}

/// One client's writes: so many in flight, joined in their order.
async fn write(
    client: &TaggedClient,
    number: u64,
    shape: &Shape,
    phase: &Phase,
    acked: &AtomicU64,
) -> Result<Latencies> {
    phase.ready().await;
    let mut latencies = Latencies::default();
    let mut flight = VecDeque::new();
    let mut issued = 0;
    loop {
        while flight.len() < shape.in_flight && !phase.is_over() {
            issued += 1;
            let command = payload(number, issued, shape.payload);
            flight.push_back((Instant::now(), client.write(command)));
        }
        let Some((sent, writing)) = flight.pop_front() else { return Ok(latencies) };
        let WriteOutcome::Acknowledged { .. } = writing.await? else {
            return Err("a write was not acknowledged".into());
        };
        acked.fetch_add(1, Ordering::Relaxed);
        if phase.counts(sent) {
            latencies.note(sent.elapsed());
        }
    }
}

/// Where each client is told when its next write is due; nobody is, without a rate.
fn paces(shape: &Shape) -> (Vec<mpsc::UnboundedSender<Instant>>, VecDeque<mpsc::UnboundedReceiver<Instant>>) {
    let clients = if shape.rate > 0.0 { shape.clients } else { 0 };
    (0..clients).map(|_| mpsc::unbounded_channel()).unzip()
}

/// Tells clients, in turns, of writes that are due, until the end. On a thread of its own, whose sleep is exact.
fn pace(begun: Instant, ends: Instant, rate: f64, clients: &[mpsc::UnboundedSender<Instant>]) {
    let mut turns = (0_u32..).zip(clients.iter().cycle());
    let Some((_, mut client)) = turns.next() else { return };
    let mut due = begun;
    while due < ends {
        if due > Instant::now() {
            std::thread::sleep(PACE);
            continue;
        }
        if client.send(due).is_err() {
            return;
        }
        let Some((count, next)) = turns.next() else { return };
        (due, client) = (begun + Duration::from_secs_f64(f64::from(count) / rate), next);
    }
}

/// One client's writes, each when it is due, unless as many as may be are in flight; what is late counts as late.
async fn write_paced(
    client: &TaggedClient,
    number: u64,
    shape: &Shape,
    mut due: mpsc::UnboundedReceiver<Instant>,
    phase: &Phase,
    acked: &AtomicU64,
) -> Result<Latencies> {
    phase.ready().await;
    let mut latencies = Latencies::default();
    let mut flight: VecDeque<(Instant, Writing)> = VecDeque::new();
    let mut issued = 0;
    let mut ended = false;
    loop {
        let free = flight.len() < shape.in_flight && !ended && !phase.is_over();
        if flight.is_empty() && !free {
            break;
        }
        tokio::select! {
            outcome = async { (&mut flight[0].1).await }, if !flight.is_empty() => {
                let WriteOutcome::Acknowledged { .. } = outcome? else {
                    return Err("a write was not acknowledged".into());
                };
                acked.fetch_add(1, Ordering::Relaxed);
                if let Some((due, _)) = flight.pop_front() && phase.counts(due) {
                    latencies.note(due.elapsed());
                }
            }
            next = due.recv(), if free => match next {
                Some(due) => {
                    issued += 1;
                    flight.push_back((due, client.write(payload(number, issued, shape.payload))));
                }
                None => ended = true,
            },
        }
    }
    phase.overdue.fetch_add(due.len() as u64, Ordering::Relaxed);
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_due_in_turns_and_none_before_its_time() {
        let shape = Shape { clients: 2, rate: 10_000.0, ..Shape::default() };
        let (told, mut clients) = paces(&shape);
        let begun = Instant::now();
        pace(begun, begun + Duration::from_micros(950), shape.rate, &told);
        assert!(begun.elapsed() >= Duration::from_micros(900));
        let due = |client: &mut mpsc::UnboundedReceiver<Instant>| {
            std::iter::from_fn(|| client.try_recv().ok()).map(|due| (due - begun).as_micros()).collect::<Vec<_>>()
        };
        assert_eq!(due(&mut clients[0]), [0, 200, 400, 600, 800]);
        assert_eq!(due(&mut clients[1]), [100, 300, 500, 700, 900]);
        assert!(paces(&Shape::default()).1.is_empty());
    }
}
