//! One measurement: the processes of a service, the link between them, and a load.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tagalong::net::AdminClient;
use tagalong::node::RecoveryPolicy;
use tokio::process::Child;

use crate::datagrams::{self, Datagrams, Loss};
use crate::load::{Shape, Target};
use crate::lossy::Sites;
use crate::node::Mode;
use crate::process::Process;
use crate::relay::Relay;
use crate::report::Measured;
use crate::usage::Usage;
use crate::{Result, redis};

/// Nobody needs longer to start, or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// A recovery of all that a delta may hold takes no longer, even on a busy machine.
const RECOVERY: Duration = Duration::from_secs(600);
/// Longer than any way through a link here, and than it takes to read what has arrived.
const SETTLE: Duration = Duration::from_millis(250);

/// What is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// A tagalong service.
    Service(Mode),
    /// Network-sync, as SMFS has it.
    Smfs,
    /// The same, with answers that wait for the primary's own disk.
    SmfsLogged,
    /// A bare stream that sends every write back, each in a message of its own.
    Echo,
    /// The same, with what has gathered in one message.
    EchoBatched,
    /// Redis, with an append-only file that is synced every second, and a replica that follows.
    Redis,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Service(mode) => mode.name(),
            Self::Smfs => "smfs",
            Self::SmfsLogged => "smfs-logged",
            Self::Echo => "echo",
            Self::EchoBatched => "echo-batched",
            Self::Redis => "redis",
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Service(_) => Target::Tagged,
            Self::Redis => Target::Redis,
            Self::Echo => Target::Plain,
            Self::Smfs | Self::SmfsLogged | Self::EchoBatched => Target::PlainBatched,
        }
    }
}

/// One cell of a table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) system: System,
    pub(crate) shape: Shape,
    /// Round trip between primary and backup.
    pub(crate) rtt: Duration,
    /// Sites in network namespaces, whose link has that round trip already; without, all is on this host, over a relay.
    pub(crate) sites: Option<Sites>,
    /// Of the link between the nodes; as the library has it without.
    pub(crate) connections: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// As the load tells it.
    pub(crate) load: Value,
    /// Bytes on the link between the nodes, while it counted.
    pub(crate) wan: u64,
    /// Processor time, while it counted.
    pub(crate) primary_us: u64,
    pub(crate) backup_us: u64,
    /// Datagrams that the machine dropped, not the link.
    pub(crate) overrun: u64,
    /// The primary's status when it began to count, and when that was over; `null` where it has none.
    pub(crate) status: [Value; 2],
}

impl Outcome {
    pub(crate) fn figure(&self, name: &str) -> f64 {
        self.load[name].as_f64().unwrap_or(f64::NAN)
    }

    /// How much more of something the primary's status counts in the end.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn counted(&self, name: &str) -> f64 {
        let [before, after] = self.status.each_ref().map(|status| status[name].as_u64());
        before.zip(after).map_or(f64::NAN, |(before, after)| after.saturating_sub(before) as f64)
    }

    /// The figures that every experiment may show.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn measured(&self, cell: &Cell) -> Measured {
        let writes = self.figure("writes").max(1.0);
        let each = |sum: u64| sum as f64 / writes;
        let (payload, rtt) = (cell.shape.payload as f64, cell.rtt.as_secs_f64());
        // What is offered travels, whether it is answered or not.
        let rate = if cell.shape.rate > 0.0 { cell.shape.rate } else { self.figure("writes_per_s") };
        let travelling = rate * rtt * payload;
        let mut figures = BTreeMap::from([
            ("load_cpu_us", self.figure("cpu_us") / writes),
            ("primary_cpu_us", each(self.primary_us)),
            ("backup_cpu_us", each(self.backup_us)),
            ("wan_bytes", each(self.wan)),
            ("wan_per_payload", each(self.wan) / payload),
            ("held_most_kib", self.figure("held_most") / 1024.0),
            ("held_mean_kib", self.figure("held_mean") / 1024.0),
            ("drained_past_rtt_s", self.figure("drained_s") - rtt),
            ("overrun", self.overrun as f64),
            ("overdue", self.figure("overdue")),
            ("fill_us", self.counted("fill_us") / self.counted("covered_entries")),
            ("confirm_us", self.counted("confirm_us") / self.counted("covered_entries")),
        ]);
        if travelling > 0.0 {
            figures.insert("held_most_to_travelling", self.figure("held_most") / travelling);
            figures.insert("held_mean_to_travelling", self.figure("held_mean") / travelling);
        }
        for name in ["writes", "writes_per_s", "p50_us", "p90_us", "p99_us", "max_us"] {
            figures.insert(name, self.figure(name));
        }
        figures.retain(|_, figure| figure.is_finite());
        let raw = json!({
            "load": self.load,
            "wan_bytes": self.wan,
            "primary_cpu_us": self.primary_us,
            "backup_cpu_us": self.backup_us,
            "overrun": self.overrun,
            "status": self.status,
        });
        Measured { figures, raw }
    }
}

/// The way between primary and backup.
enum Link {
    /// There is no backup.
    None,
    /// It is a network's.
    Sites(Sites),
    Streams(Relay),
    Datagrams(Datagrams),
}

impl Link {
    fn carried(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Sites(sites) => sites.carried(),
            Self::Streams(relay) => relay.carried().both(),
            Self::Datagrams(link) => link.carried(),
        }
    }
}

impl Link {
    /// Bytes taken from the primary so far, and whether none of them is on its way.
    fn sent(&self) -> (u64, bool) {
        match self {
            Self::None | Self::Sites(_) => (0, true),
            // The backup connects: what goes down comes from the primary.
            Self::Streams(relay) => (relay.carried().down, relay.on_wire() == 0),
            Self::Datagrams(link) => link.sent(),
        }
    }

    /// Waits until all that a dead primary had sent has arrived: for long enough nothing more came, and nothing is on its way.
    async fn settle(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (before, _) = self.sent();
            tokio::time::sleep(SETTLE).await;
            if self.sent() == (before, true) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err("the link did not come to rest".into());
            }
        }
    }
}

/// A node of a service.
enum Node {
    Ours(Process),
    /// A program of somebody else's, which is killed when this is dropped.
    Theirs(Child),
}

impl Node {
    async fn usage(&mut self) -> Result<Usage> {
        match self {
            Self::Ours(process) => {
                process.order("usage").await?;
                let event = process.expect("usage", PATIENCE).await?;
                let number = |name: &str| event[name].as_u64().unwrap_or(0);
                Ok(Usage { cpu_us: number("cpu_us"), memory: number("memory") })
            }
            Self::Theirs(child) => Usage::of(&child.id().ok_or("a node has ended")?.to_string()),
        }
    }

    fn ours(&mut self) -> Result<&mut Process> {
        match self {
            Self::Ours(process) => Ok(process),
            Self::Theirs(_) => Err("this node takes no orders".into()),
        }
    }

    async fn finish(&mut self) -> Result<()> {
        match self {
            Self::Ours(process) => {
                process.order("finish").await?;
                process.ended(PATIENCE).await
            }
            Self::Theirs(child) => Ok(child.kill().await?),
        }
    }
}

/// A service that stands, and whoever loads it.
pub(crate) struct Service {
    system: System,
    primary: Node,
    backup: Option<(Node, SocketAddr)>,
    link: Link,
    load: Process,
}

/// What was used so far.
struct Reading {
    primary: Usage,
    backup: Usage,
    wan: u64,
    overrun: u64,
    status: Value,
}

fn words(parts: &[&str]) -> Vec<String> {
    parts.iter().map(ToString::to_string).collect()
}

fn text(path: &Path) -> Result<&str> {
    Ok(path.to_str().ok_or("the temporary folder's path is not UTF-8")?)
}

async fn listening(process: &mut Process) -> Result<SocketAddr> {
    let event = process.expect("listening", PATIENCE).await?;
    Ok(event["address"].as_str().unwrap_or_default().parse()?)
}

/// Measures one cell, on fresh files.
pub(crate) async fn measure(cell: &Cell) -> Result<Outcome> {
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let mut service = Service::start(cell, folder.path()).await?;
    service.begin().await?;
    let before = service.read().await?;
    service.load.expect("over", PATIENCE).await?;
    let after = service.read().await?;
    let load = service.load.expect("result", PATIENCE).await?;
    service.finish().await?;
    Ok(Outcome {
        load,
        wan: after.wan - before.wan,
        primary_us: after.primary.since(before.primary).cpu_us,
        backup_us: after.backup.since(before.backup).cpu_us,
        overrun: after.overrun - before.overrun,
        status: [before.status, after.status],
    })
}

/// The same, as a row has it.
pub(crate) async fn measure_row(cell: &Cell) -> Result<Measured> {
    Ok(measure(cell).await?.measured(cell))
}

impl Service {
    /// Starts everything, up to sessions that stand.
    pub(crate) async fn start(cell: &Cell, folder: &Path) -> Result<Service> {
        let (primary, backup, link, endpoints) = match cell.system {
            System::Service(mode) => start_tagged(cell, mode, folder).await?,
            System::Smfs | System::SmfsLogged => start_smfs(cell, folder).await?,
            System::Redis => {
                let started = redis::start(cell.rtt, folder).await?;
                (
                    Node::Theirs(started.primary),
                    Some((Node::Theirs(started.replica), started.far)),
                    Link::Streams(started.link),
                    vec![started.near],
                )
            }
            System::Echo | System::EchoBatched => {
                let mut server = Process::spawn("echo", folder, &words(&["echo"]))?;
                let address = listening(&mut server).await?;
                (Node::Ours(server), None, Link::None, vec![address])
            }
        };
        let mut load = start_load(cell, &endpoints, folder)?;
        load.expect("attached", PATIENCE).await?;
        Ok(Service { system: cell.system, primary, backup, link, load })
    }

    /// The load begins; returns when it counts.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        self.load.order("start").await?;
        self.load.expect("counting", PATIENCE).await?;
        Ok(())
    }

    async fn read(&mut self) -> Result<Reading> {
        let backup = match &mut self.backup {
            Some((backup, _)) => backup.usage().await?,
            None => Usage::default(),
        };
        Ok(Reading {
            primary: self.primary.usage().await?,
            backup,
            wan: self.link.carried(),
            overrun: datagrams::overrun(),
            status: self.status().await?,
        })
    }

    /// The primary's status, of a service that has one.
    pub(crate) async fn status(&mut self) -> Result<Value> {
        let System::Service(_) = self.system else { return Ok(Value::Null) };
        let primary = self.primary.ours()?;
        primary.order("status").await?;
        primary.expect("status", PATIENCE).await
    }

    async fn finish(&mut self) -> Result<()> {
        self.load.ended(PATIENCE).await?;
        for node in [Some(&mut self.primary), self.backup.as_mut().map(|(backup, _)| backup)].into_iter().flatten() {
            node.finish().await?;
        }
        Ok(())
    }

    /// From now on so much of what the link carries is lost. Only datagrams are: see `lost`.
    pub(crate) fn lose(&self, loss: Loss) {
        if let Link::Datagrams(link) = &self.link {
            link.lose(loss);
        }
    }

    /// The link between primary and backup is no more; neither hears of it.
    pub(crate) fn cut(&self) {
        match &self.link {
            Link::None | Link::Sites(_) => {}
            Link::Streams(relay) => {
                relay.cut();
            }
            Link::Datagrams(link) => link.cut(),
        }
    }

    /// How many writes were acknowledged so far, as the load told last.
    pub(crate) fn acked(&self) -> u64 {
        self.load.progress("acked")
    }

    /// The primary is lost; what it had on the link arrives, if that is still there, and the backup takes over. Tells what
    /// became of acknowledged writes.
    pub(crate) async fn lose_primary(&mut self) -> Result<Lost> {
        self.primary.ours()?.kill().await?;
        self.link.settle().await?;
        self.cut();
        let tagged = matches!(self.system, System::Service(_));
        let (backup, address) = self.backup.as_mut().ok_or("there is no backup")?;
        let promoted = Instant::now();
        if tagged {
            AdminClient::connect(&format!("http://{address}")).await?.promote(false, RecoveryPolicy::default()).await?;
        }
        self.load.order("stop").await?;
        self.load.expect("answered", RECOVERY).await?;
        let served = tagged.then(|| promoted.elapsed());
        let load = self.load.expect("result", RECOVERY).await?;
        let counts = load["acked"].as_array().cloned().unwrap_or_default();
        let counts: Vec<u64> = counts.iter().filter_map(Value::as_u64).collect();
        let missing = if tagged {
            load["missing"].as_u64().ok_or("the load does not tell what is missing")?
        } else {
            let list: Vec<String> = counts.iter().map(u64::to_string).collect();
            let backup = backup.ours()?;
            backup.order(&format!("missing:{}", list.join(","))).await?;
            backup.expect("missing", PATIENCE).await?["writes"].as_u64().ok_or("the backup does not tell")?
        };
        self.load.ended(PATIENCE).await?;
        Ok(Lost { missing, acknowledged: counts.iter().sum(), served, load })
    }
}

/// What a disaster cost.
pub(crate) struct Lost {
    /// Acknowledged writes that the backup does not have.
    pub(crate) missing: u64,
    pub(crate) acknowledged: u64,
    /// From the promotion until every write that was in flight had an answer, where clients follow.
    pub(crate) served: Option<Duration>,
    pub(crate) load: Value,
}

type Started = (Node, Option<(Node, SocketAddr)>, Link, Vec<SocketAddr>);

async fn start_tagged(cell: &Cell, mode: Mode, folder: &Path) -> Result<Started> {
    let node = |name: &str, site: usize| -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let mut listen = None;
        if let Some(sites) = &cell.sites {
            arguments.extend(["--site".to_owned(), sites.name(site)]);
            listen = Some(sites.address(site));
        }
        arguments.extend(words(&["node", "--folder", text(&folder.join(name))?, "--mode", mode.name()]));
        arguments.extend(listen.into_iter().flat_map(|address| ["--listen".to_owned(), format!("{address}:0")]));
        let connections = cell.connections.map(|count| ["--connections".to_owned(), count.to_string()]);
        arguments.extend(connections.into_iter().flatten());
        Ok(arguments)
    };
    let mut primary = Process::spawn("primary", folder, &node("primary-log", 0)?)?;
    let near = listening(&mut primary).await?;
    primary.expect("serving", PATIENCE).await?;
    let (link, follow) = match &cell.sites {
        Some(sites) => (Link::Sites(sites.clone()), format!("http://{near}")),
        None => {
            let relay = Relay::start(cell.rtt)?;
            relay.lead_to(near);
            let endpoint = relay.endpoint();
            (Link::Streams(relay), endpoint)
        }
    };
    let mut arguments = node("backup-log", 1)?;
    arguments.extend(words(&["--follow", &follow]));
    let mut backup = Process::spawn("backup", folder, &arguments)?;
    let far = listening(&mut backup).await?;
    backup.expect("in-sync", PATIENCE).await?;
    Ok((Node::Ours(primary), Some((Node::Ours(backup), far)), link, vec![near, far]))
}

async fn start_smfs(cell: &Cell, folder: &Path) -> Result<Started> {
    let rtt_us = cell.rtt.as_micros().to_string();
    let backup_log = text(&folder.join("backup-log"))?.to_owned();
    let arguments = words(&["smfs-backup", "--folder", &backup_log, "--round-trip-us", &rtt_us]);
    let mut backup = Process::spawn("backup", folder, &arguments)?;
    let far = listening(&mut backup).await?;
    let link = Datagrams::start(far, cell.rtt, Loss::default(), 1)?;
    let primary_log = text(&folder.join("primary-log"))?.to_owned();
    let mut arguments = words(&["smfs-primary", "--folder", &primary_log, "--far", &link.address.to_string()]);
    arguments.extend((cell.system == System::SmfsLogged).then(|| "--logged".to_owned()));
    let mut primary = Process::spawn("primary", folder, &arguments)?;
    let near = listening(&mut primary).await?;
    Ok((Node::Ours(primary), Some((Node::Ours(backup), far)), Link::Datagrams(link), vec![near]))
}

fn start_load(cell: &Cell, endpoints: &[SocketAddr], logs: &Path) -> Result<Process> {
    let target = match cell.system.target() {
        Target::Tagged => "tagged",
        Target::Plain => "plain",
        Target::PlainBatched => "plain-batched",
        Target::Redis => "redis",
    };
    let Shape { clients, in_flight, payload, warm_up, seconds, drain, rate } = &cell.shape;
    let site = cell.sites.as_ref().map(|sites| ["--site".to_owned(), sites.name(0)]);
    let mut arguments: Vec<String> = site.into_iter().flatten().collect();
    arguments.extend(words(&["load", "--target", target]));
    let options = [
        ("clients", clients.to_string()),
        ("in-flight", in_flight.to_string()),
        ("payload", payload.to_string()),
        ("warm-up", warm_up.to_string()),
        ("seconds", seconds.to_string()),
        ("drain", drain.to_string()),
        ("rate", rate.to_string()),
    ];
    for (name, value) in options {
        arguments.extend([format!("--{name}"), value]);
    }
    for endpoint in endpoints {
        arguments.extend(["--endpoint".into(), format!("http://{endpoint}")]);
    }
    Process::spawn("load", logs, &arguments)
}
