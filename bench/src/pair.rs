//! A primary, a backup that is in sync, and the link between them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::node::Mode;
use crate::process::Process;
use crate::relay::Relay;
use crate::usage::Usage;

/// Nobody needs longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// What clients hold is never what limits a measurement.
pub(crate) const DELTA_BYTES: u64 = 8 << 30;

pub(crate) struct Pair {
    pub(crate) primary: Process,
    pub(crate) backup: Process,
    pub(crate) relay: Relay,
    pub(crate) near: SocketAddr,
    pub(crate) far: SocketAddr,
}

impl Pair {
    /// Clients reach the primary where it is advertised, or where it listens. So many workers each have the nodes.
    pub(crate) async fn start(
        folder: &Path,
        mode: Mode,
        rtt: Duration,
        advertised: Option<SocketAddr>,
        workers: usize,
    ) -> Result<Pair> {
        let node = |name: &str| -> Result<Vec<String>> {
            let path = folder.join(name);
            let path = path.to_str().ok_or("the temporary folder's path is not UTF-8")?;
            let (delta, workers) = (DELTA_BYTES.to_string(), workers.to_string());
            let mut arguments = vec!["node", "--folder", path, "--mode", mode.name(), "--workers", &workers];
            arguments.extend(["--delta-bytes-max", &delta]);
            Ok(arguments.into_iter().map(str::to_owned).collect())
        };
        let mut arguments = node("primary-log")?;
        arguments.extend(advertised.into_iter().flat_map(|at| ["--advertise".to_owned(), format!("http://{at}")]));
        let mut primary = Process::spawn("primary", folder, &arguments)?;
        let near = listening(&mut primary).await?;
        primary.expect("serving", PATIENCE).await?;
        let relay = Relay::start(rtt)?;
        relay.lead_to(near);
        let mut arguments = node("backup-log")?;
        arguments.extend(["--follow".to_owned(), relay.endpoint()]);
        let mut backup = Process::spawn("backup", folder, &arguments)?;
        let far = listening(&mut backup).await?;
        backup.expect("in-sync", PATIENCE).await?;
        Ok(Pair { primary, backup, relay, near, far })
    }

    pub(crate) async fn finish(mut self) -> Result<()> {
        for node in [&mut self.primary, &mut self.backup] {
            node.order("finish").await?;
            node.ended(PATIENCE).await?;
        }
        Ok(())
    }
}

/// Where a process says that it is reached.
pub(crate) async fn listening(process: &mut Process) -> Result<SocketAddr> {
    let event = process.expect("listening", PATIENCE).await?;
    Ok(event["address"].as_str().unwrap_or_default().parse()?)
}

pub(crate) async fn usage(process: &mut Process) -> Result<Usage> {
    process.order("usage").await?;
    let event = process.expect("usage", PATIENCE).await?;
    let number = |name: &str| event[name].as_u64().unwrap_or(0);
    Ok(Usage { cpu_us: number("cpu_us"), memory: number("memory") })
}
