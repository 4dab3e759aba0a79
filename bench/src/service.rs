//! One measurement: the processes of a service, the link between them, and a load.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tagalong::net::AdminClient;
use tagalong::node::RecoveryPolicy;

use crate::Result;
use crate::datagrams::{Datagrams, Loss};
use crate::load::{Shape, Target};
use crate::node::Mode;
use crate::process::Process;
use crate::relay::Relay;
use crate::usage::Usage;

/// Nobody needs longer to start, or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

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
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Service(mode) => mode.name(),
            Self::Smfs => "smfs",
            Self::SmfsLogged => "smfs-logged",
            Self::Echo => "echo",
            Self::EchoBatched => "echo-batched",
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Service(_) => Target::Tagged,
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
}

impl Outcome {
    pub(crate) fn figure(&self, name: &str) -> f64 {
        self.load[name].as_f64().unwrap_or(f64::NAN)
    }

    pub(crate) fn writes(&self) -> f64 {
        self.figure("writes").max(1.0)
    }
}

/// The way between primary and backup.
enum Link {
    /// There is no backup.
    None,
    Streams(Relay),
    Datagrams(Datagrams),
}

impl Link {
    fn carried(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Streams(relay) => relay.carried().both(),
            Self::Datagrams(link) => link.carried(),
        }
    }
}

/// A service that stands, and whoever loads it.
pub(crate) struct Service {
    system: System,
    primary: Process,
    backup: Option<(Process, SocketAddr)>,
    link: Link,
    load: Process,
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

async fn usage(process: &mut Process) -> Result<Usage> {
    process.order("usage").await?;
    let event = process.expect("usage", PATIENCE).await?;
    let number = |name: &str| event[name].as_u64().unwrap_or(0);
    Ok(Usage { cpu_us: number("cpu_us"), memory: number("memory") })
}

/// Measures one cell, on fresh files.
pub(crate) async fn measure(cell: &Cell) -> Result<Outcome> {
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let mut service = Service::start(cell, folder.path()).await?;
    service.begin().await?;
    let before = service.usage().await?;
    service.load.expect("over", PATIENCE).await?;
    let after = service.usage().await?;
    let load = service.load.expect("result", PATIENCE).await?;
    service.finish().await?;
    Ok(Outcome {
        load,
        wan: after.2 - before.2,
        primary_us: after.0.since(before.0).cpu_us,
        backup_us: after.1.since(before.1).cpu_us,
    })
}

impl Service {
    /// Starts everything, up to sessions that stand.
    pub(crate) async fn start(cell: &Cell, folder: &Path) -> Result<Service> {
        let (primary, backup, link, endpoints) = match cell.system {
            System::Service(mode) => start_tagged(cell, mode, folder).await?,
            System::Smfs | System::SmfsLogged => start_smfs(cell, folder).await?,
            System::Echo | System::EchoBatched => {
                let mut server = Process::spawn("echo", folder, &words(&["echo"]))?;
                let address = listening(&mut server).await?;
                (server, None, Link::None, vec![address])
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

    async fn usage(&mut self) -> Result<(Usage, Usage, u64)> {
        let backup = match &mut self.backup {
            Some((backup, _)) => usage(backup).await?,
            None => Usage::default(),
        };
        Ok((usage(&mut self.primary).await?, backup, self.link.carried()))
    }

    async fn finish(&mut self) -> Result<()> {
        self.load.ended(PATIENCE).await?;
        for node in [Some(&mut self.primary), self.backup.as_mut().map(|(backup, _)| backup)].into_iter().flatten() {
            node.order("finish").await?;
            node.ended(PATIENCE).await?;
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
            Link::None => {}
            Link::Streams(relay) => {
                relay.cut();
            }
            Link::Datagrams(link) => link.cut(),
        }
    }

    /// The primary is lost, and the backup takes over. Tells how many acknowledged writes are lost with it, of how many.
    pub(crate) async fn lose_primary(&mut self) -> Result<(u64, u64)> {
        self.primary.kill().await?;
        self.cut();
        let (backup, address) = self.backup.as_mut().ok_or("there is no backup")?;
        if let System::Service(_) = self.system {
            AdminClient::connect(&format!("http://{address}")).await?.promote(false, RecoveryPolicy::default()).await?;
        }
        self.load.order("stop").await?;
        let result = self.load.expect("result", PATIENCE).await?;
        let counts = result["acked"].as_array().cloned().unwrap_or_default();
        let counts: Vec<u64> = counts.iter().filter_map(Value::as_u64).collect();
        let missing = if let System::Service(_) = self.system {
            result["missing"].as_u64().ok_or("the load does not tell what is missing")?
        } else {
            let list: Vec<String> = counts.iter().map(u64::to_string).collect();
            backup.order(&format!("missing:{}", list.join(","))).await?;
            backup.expect("missing", PATIENCE).await?["writes"].as_u64().unwrap_or(0)
        };
        self.load.ended(PATIENCE).await?;
        Ok((missing, counts.iter().sum()))
    }
}

type Started = (Process, Option<(Process, SocketAddr)>, Link, Vec<SocketAddr>);

async fn start_tagged(cell: &Cell, mode: Mode, folder: &Path) -> Result<Started> {
    let node = |name: &str| -> Result<Vec<String>> {
        Ok(words(&["node", "--folder", text(&folder.join(name))?, "--mode", mode.name()]))
    };
    let mut primary = Process::spawn("primary", folder, &node("primary-log")?)?;
    let near = listening(&mut primary).await?;
    primary.expect("serving", PATIENCE).await?;
    let relay = Relay::start(cell.rtt)?;
    relay.lead_to(near);
    let mut arguments = node("backup-log")?;
    arguments.extend(words(&["--follow", &relay.endpoint()]));
    let mut backup = Process::spawn("backup", folder, &arguments)?;
    let far = listening(&mut backup).await?;
    backup.expect("in-sync", PATIENCE).await?;
    Ok((primary, Some((backup, far)), Link::Streams(relay), vec![near, far]))
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
    Ok((primary, Some((backup, far)), Link::Datagrams(link), vec![near]))
}

fn start_load(cell: &Cell, endpoints: &[SocketAddr], logs: &Path) -> Result<Process> {
    let target = match cell.system.target() {
        Target::Tagged => "tagged",
        Target::Plain => "plain",
        Target::PlainBatched => "plain-batched",
    };
    let Shape { clients, in_flight, payload, warm_up, seconds } = &cell.shape;
    let mut arguments = words(&["load", "--target", target]);
    let options = [
        ("clients", clients.to_string()),
        ("in-flight", in_flight.to_string()),
        ("payload", payload.to_string()),
        ("warm-up", warm_up.to_string()),
        ("seconds", seconds.to_string()),
    ];
    for (name, value) in options {
        arguments.extend([format!("--{name}"), value]);
    }
    for endpoint in endpoints {
        arguments.extend(["--endpoint".into(), format!("http://{endpoint}")]);
    }
    Process::spawn("load", logs, &arguments)
}
