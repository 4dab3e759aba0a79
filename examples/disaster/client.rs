//! A client's process: issues the workload, keeps the journal, and does not care where the primary is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tagalong::client::ClientEvent;
use tagalong::log::Request;
use tagalong::net::ClientEvents;
use tagalong::store::file::{FileCache, FileCacheOptions};
use tagalong::{TaggedClient, WriteOutcome};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::Result;
use crate::journal::{Clock, Journal, Line, Scribe, micros};
use crate::ledger::{Command, Question, Reading, Reply};
use crate::process::{orders, tell};
use crate::source::Source;
use crate::workload::{Step, Workload};

/// Reads under way at once.
const READS_MAX: usize = 8;
/// A client that fell behind its rate makes up for no more than this.
const DEBT: Duration = Duration::from_millis(20);
/// A session may take this long to be established; a recovery counts in.
const ATTACH: Duration = Duration::from_secs(60);
/// Serials of a second life. Those of the first are the library's request numbers, for nothing else is issued.
const SECOND_LIFE: u64 = 1 << 32;
/// How often progress is told and the journal flushed.
const PROGRESS: Duration = Duration::from_millis(100);

/// What a client is told when it is started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ClientArgs {
    /// The how-manieth it is, from 0.
    #[arg(long)]
    pub(crate) number: u64,
    /// How many there are.
    #[arg(long)]
    pub(crate) clients: u64,
    /// Of the workload.
    #[arg(long)]
    pub(crate) seed: u64,
    /// Where it writes its journal.
    #[arg(long)]
    pub(crate) journal: PathBuf,
    /// The list of the files.
    #[arg(long)]
    pub(crate) source: PathBuf,
    /// Where nodes may be found.
    #[arg(long)]
    pub(crate) endpoint: Vec<String>,
    /// Writes under way at once.
    #[arg(long)]
    pub(crate) in_flight: usize,
    /// Where it holds what it wrote, so that a second life of it can go on; in memory without.
    #[arg(long)]
    pub(crate) cache: Option<PathBuf>,
    /// It may be killed: whatever it does or learns has to be in the journal before anything follows from it.
    #[arg(long)]
    pub(crate) careful: bool,
    /// The journal of its first life, which was ended.
    #[arg(long)]
    pub(crate) earlier: Option<PathBuf>,
    /// Operations a second; 0 for as many as it can.
    #[arg(long)]
    pub(crate) rate: u64,
    /// How long the load is planned to be.
    #[arg(long)]
    pub(crate) seconds: f64,
}

/// Runs the client until it was told to stop and everything is stable.
pub(crate) async fn run(args: ClientArgs) -> Result<()> {
    let mut orders = orders()?;
    let source = Source::load(&args.source)?;
    let mut builder = TaggedClient::builder(format!("rack-{}", args.number)).endpoints(args.endpoint.clone());
    if let Some(cache) = &args.cache {
        builder = builder.cache(FileCache::open(cache, FileCacheOptions::default())?);
    }
    let client = builder.start().await?;
    // Before anything is answered: all that the first life left open.
    let open = client.unanswered();
    let attached = tokio::time::timeout(ATTACH, client.attached());
    let mut load = Load::new(&args, client.clone(), source)?;
    if let Some(earlier) = &args.earlier {
        load.resume(&Journal::read_torn(args.number, earlier)?, &open);
    }
    attached.await.map_err(|_| format!("no session was established within {ATTACH:?}"))??;
    tell(&json!({ "event": "attached", "session": client.id().to_string() }));
    while orders.recv().await.is_some_and(|order| order != "start") {}
    load.run(&mut orders).await?;
    load.client.flush().await?;
    load.client.close().await?;
    load.tell_progress();
    load.scribe.finish()?;
    tell(&json!({ "event": "finished" }));
    Ok(())
}

/// A write that ended.
struct Written {
    serial: u64,
    key: String,
    at: u64,
    latency: u64,
    outcome: tagalong::Result<WriteOutcome>,
}

/// A read that ended.
struct Read {
    number: u64,
    at: u64,
    result: tagalong::Result<bytes::Bytes>,
}

struct Load {
    client: TaggedClient,
    events: ClientEvents,
    workload: Workload,
    scribe: Scribe,
    clock: Clock,
    in_flight: usize,
    /// The process may be killed.
    careful: bool,
    /// Operations a second.
    rate: Option<f64>,
    planned: Duration,
    started: Instant,
    /// What the pace has granted and was not used yet, in operations.
    granted: f64,
    paced: Instant,
    writes: JoinSet<Written>,
    reads: JoinSet<Read>,
    questions: u64,
    acked: u64,
    answered: u64,
}

impl Load {
    fn new(args: &ClientArgs, client: TaggedClient, source: Source) -> Result<Self> {
        #[expect(clippy::cast_precision_loss, reason = "a pace")]
        let rate = (args.rate > 0).then_some(args.rate as f64);
        Ok(Self {
            events: client.events(),
            client,
            workload: Workload::new(args.seed, args.number, args.clients, source),
            scribe: Scribe::create(&args.journal, args.careful)?,
            clock: Clock::new(),
            in_flight: args.in_flight,
            careful: args.careful,
            rate,
            planned: Duration::from_secs_f64(args.seconds.max(0.1)),
            started: Instant::now(),
            granted: 0.0,
            paced: Instant::now(),
            writes: JoinSet::new(),
            reads: JoinSet::new(),
            questions: 0,
            acked: 0,
            answered: 0,
        })
    }

    /// Takes up what the first life left: the outcomes of its open requests, and the rest of the files.
    fn resume(&mut self, earlier: &Journal, open: &[Request]) {
        let mut keys = BTreeMap::new();
        let mut stored = BTreeSet::<&str>::new();
        for line in &earlier.lines {
            match line {
                Line::Issued { serial, key, .. } => {
                    keys.insert(*serial, key.as_str());
                }
                Line::Acknowledged { serial, .. } => stored.extend(keys.get(serial)),
                _ => {}
            }
        }
        for request in open.iter().copied() {
            stored.extend(keys.get(&request.0));
            let (client, clock) = (self.client.clone(), self.clock);
            self.writes.spawn(async move {
                let outcome = client.outcome(request).await;
                Written { serial: request.0, key: String::new(), at: clock.now(), latency: 0, outcome }
            });
        }
        self.workload.resume(SECOND_LIFE, |key| stored.contains(key));
    }

    /// Until told to stop; then whatever is left of the files; then until everything has ended.
    async fn run(&mut self, orders: &mut mpsc::Receiver<String>) -> Result<()> {
        self.started = Instant::now();
        self.paced = self.started;
        // One operation a tick, where that is slow enough for the timer.
        let tick = Duration::from_secs_f64(self.rate.map_or(1.0, |rate| (1.0 / rate).clamp(0.001, 0.02)));
        let mut pace = tokio::time::interval(tick);
        pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut progress = tokio::time::interval(PROGRESS);
        let (mut stopping, mut deaf) = (false, false);
        loop {
            if stopping {
                self.finish_files()?;
                if self.workload.chunks_left() == 0 && self.writes.is_empty() && self.reads.is_empty() {
                    return Ok(());
                }
            } else {
                self.issue()?;
            }
            tokio::select! {
                Some(written) = self.writes.join_next() => self.on_written(written?)?,
                Some(read) = self.reads.join_next() => self.on_read(read?)?,
                order = orders.recv() => stopping |= order.is_none_or(|order| order == "stop"),
                event = self.events.next(), if !deaf => match event {
                    Some(event) => self.on_event(&event)?,
                    None => deaf = true,
                },
                _ = progress.tick() => {
                    self.tell_progress();
                    self.scribe.flush()?;
                }
                _ = pace.tick(), if !stopping && self.rate.is_some() => {}
            }
        }
    }

    /// Issues what the pace and the writes under way allow.
    fn issue(&mut self) -> Result<()> {
        if let Some(rate) = self.rate {
            let now = Instant::now();
            self.granted += rate * (now - self.paced).as_secs_f64();
            self.granted = self.granted.min(1.0 + rate * DEBT.as_secs_f64());
            self.paced = now;
        }
        while self.writes.len() < self.in_flight && (self.rate.is_none() || self.granted >= 1.0) {
            if self.rate.is_some() {
                self.granted -= 1.0;
            }
            let progress = self.started.elapsed().as_secs_f64() / self.planned.as_secs_f64();
            match self.workload.next(progress) {
                Ok(Step::Write(command)) => self.write(command)?,
                Ok(Step::Read(key)) if self.reads.len() < READS_MAX => self.read(key)?,
                // As a reader would that has enough to read.
                Ok(Step::Read(_)) => {}
                Err(error) => self.note_unreadable(&error)?,
            }
        }
        Ok(())
    }

    fn finish_files(&mut self) -> Result<()> {
        while self.writes.len() < self.in_flight {
            match self.workload.next_chunk() {
                Ok(Some(Step::Write(command))) => self.write(command)?,
                Ok(_) => break,
                Err(error) => self.note_unreadable(&error)?,
            }
        }
        Ok(())
    }

    /// A file that went away while the drill runs; the comparison will see that, too.
    fn note_unreadable(&mut self, error: &std::io::Error) -> Result<()> {
        let text = format!("a file cannot be read any more: {error}");
        self.scribe.note(&Line::Event { at: self.clock.now(), text })?;
        Ok(())
    }

    fn write(&mut self, command: Command) -> Result<()> {
        let clock = self.clock;
        self.scribe.note(&Line::issued(clock.now(), &command))?;
        let (serial, payload) = (command.stamp.serial, command.encode());
        let started = Instant::now();
        // The number is taken here, in the order of the serials; only the waiting happens elsewhere.
        let writing = self.client.write(payload);
        let number = writing.request().map(|request| request.0);
        if self.careful && serial < SECOND_LIFE && number != Some(serial) {
            // A second life could not tell which outcome belongs to which command.
            return Err(format!("write {serial} has the number {number:?}").into());
        }
        self.writes.spawn(async move {
            let outcome = writing.await;
            let latency = micros(started.elapsed());
            Written { serial, key: command.key, at: clock.now(), latency, outcome }
        });
        Ok(())
    }

    fn read(&mut self, key: String) -> Result<()> {
        self.questions += 1;
        let (number, clock, client) = (self.questions, self.clock, self.client.clone());
        self.scribe.note(&Line::Asked { number, at: clock.now(), key: key.clone() })?;
        self.reads.spawn(async move {
            let result = client.read(Question::Get(key).encode()).await;
            Read { number, at: clock.now(), result }
        });
        Ok(())
    }

    fn on_written(&mut self, written: Written) -> Result<()> {
        let Written { serial, key, at, latency, outcome } = written;
        let line = match outcome {
            Ok(WriteOutcome::Acknowledged { tag, reply, .. }) => {
                let reply =
                    Reply::decode(&reply).ok_or_else(|| format!("write {serial} was answered with nonsense"))?;
                let (epoch, lsn) = tag.map_or((0, 0), |tag| (tag.epoch.number, tag.lsn.0));
                Line::Acknowledged { serial, at, latency, epoch, lsn, reply }
            }
            other => Line::Ended { serial, at, why: format!("{other:?}") },
        };
        // Written down first, used then: what this client acts on is known to have been acknowledged, if it is killed.
        self.scribe.note(&line)?;
        if let Line::Acknowledged { reply, .. } = &line {
            self.acked += 1;
            self.workload.saw(&key, reply.version);
        } else {
            self.workload.gave_up(&key);
        }
        Ok(())
    }

    fn on_read(&mut self, read: Read) -> Result<()> {
        let Read { number, at, result } = read;
        let line = match result.map(|bytes| Reading::decode(&bytes)) {
            Ok(Some(reading)) => Line::answered(number, at, &reading),
            Ok(None) => return Err(format!("read {number} was answered with nonsense").into()),
            Err(error) => Line::Unanswered { number, at, why: error.to_string() },
        };
        self.answered += u64::from(matches!(line, Line::Answered { .. }));
        self.scribe.note(&line)?;
        Ok(())
    }

    fn on_event(&mut self, event: &ClientEvent) -> Result<()> {
        let at = self.clock.now();
        let line = match event {
            ClientEvent::Superseded { request, .. } => Line::Returned { serial: request.0, at },
            ClientEvent::RolledBack { epoch, observed } => {
                Line::RolledBack { epoch: epoch.number, at, observed: observed.0 }
            }
            other => Line::Event { at, text: format!("{other:?}") },
        };
        eprintln!("{line}");
        self.scribe.note(&line)?;
        Ok(())
    }

    fn tell_progress(&self) {
        tell(&json!({
            "event": "progress",
            "acked": self.acked,
            "reads": self.answered,
            "in_flight": self.writes.len(),
            "chunks_left": self.workload.chunks_left(),
            "cached": self.client.stats().cached_commands,
        }));
    }
}
