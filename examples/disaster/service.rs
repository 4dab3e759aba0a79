//! A whole service, in processes: primary, backup, clients, and the links between them.
//!
//! ```text
//!  clients ══near══► primary        near, far: a relay each, with the clients' round trip
//!     ╚══════far═══► backup ══link══► primary        link: a relay with the sites' round trip
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tagalong::AdminClient;

use crate::Result;
use crate::journal::Journal;
use crate::process::Process;
use crate::relay::Relay;
use crate::report::Mode;

/// How long the processes may take to start, to connect, to be in sync.
const START: Duration = Duration::from_secs(60);
/// How long an orderly end may take.
pub(crate) const END: Duration = Duration::from_secs(20);

/// What a service is to be like.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) mode: Mode,
    pub(crate) folder: PathBuf,
    /// The list of the files.
    pub(crate) source: PathBuf,
    pub(crate) clients: u64,
    pub(crate) rtt: Duration,
    pub(crate) client_rtt: Duration,
    pub(crate) seed: u64,
    pub(crate) in_flight: usize,
    pub(crate) rate: u64,
    pub(crate) load: Duration,
}

impl Plan {
    fn journal(&self, client: u64) -> PathBuf {
        self.folder.join(format!("client-{client}")).join("journal")
    }
}

/// A node's process and where it really listens.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) folder: PathBuf,
    pub(crate) endpoint: String,
    pub(crate) admin: AdminClient,
}

/// A running service.
pub(crate) struct Service {
    pub(crate) plan: Plan,
    pub(crate) primary: Node,
    pub(crate) backup: Node,
    pub(crate) clients: Vec<Process>,
    pub(crate) near: Relay,
    /// Held for as long as the service runs.
    _far: Relay,
    pub(crate) link: Relay,
}

impl Service {
    /// Starts everything, and returns when the backup is in sync and every client has its session.
    pub(crate) async fn start(plan: Plan) -> Result<Service> {
        let (near, far) = (Relay::start(plan.client_rtt)?, Relay::start(plan.client_rtt)?);
        let link = Relay::start(plan.rtt)?;
        let logs = plan.folder.join("logs");
        std::fs::create_dir_all(&logs)?;
        let mut primary = Node::start("primary", &plan, &logs, near.endpoint(), None, &[&near, &link]).await?;
        primary.process.expect("opened", START).await?;
        let mut backup = Node::start("backup", &plan, &logs, far.endpoint(), Some(link.endpoint()), &[&far]).await?;
        backup.process.expect("in-sync", START).await?;
        let mut clients = Vec::new();
        for client in 0..plan.clients {
            std::fs::create_dir_all(plan.folder.join(format!("client-{client}")))?;
            let arguments = client_arguments(&plan, client, [near.endpoint(), far.endpoint()])?;
            clients.push(Process::spawn(&format!("client-{client}"), &logs, &arguments)?);
        }
        for client in &mut clients {
            client.expect("attached", START).await?;
        }
        Ok(Service { plan, primary, backup, clients, near, _far: far, link })
    }

    /// Gives every client an order.
    pub(crate) async fn order(&mut self, what: &str) -> Result<()> {
        for client in &mut self.clients {
            client.order(what).await?;
        }
        Ok(())
    }

    /// An error if a client has ended.
    pub(crate) fn check_clients(&mut self) -> Result<()> {
        self.clients.iter_mut().try_for_each(Process::check)
    }

    /// The sum over all clients.
    pub(crate) fn progress(&self, what: &str) -> u64 {
        self.clients.iter().map(|client| client.progress(what)).sum()
    }

    /// The clients' journals, when they have finished.
    pub(crate) fn journals(&self) -> Result<Vec<Journal>> {
        let read = |client| Journal::read(client, &self.plan.journal(client)).map_err(Into::into);
        (0..self.plan.clients).map(read).collect()
    }
}

impl Node {
    async fn start(
        name: &str,
        plan: &Plan,
        logs: &Path,
        advertise: String,
        follow: Option<String>,
        relays: &[&Relay],
    ) -> Result<Node> {
        let folder = plan.folder.join(name);
        let path = text(&folder)?;
        let mut arguments: Vec<String> =
            ["node", "--folder", &path, "--mode", plan.mode.name(), "--advertise", &advertise].map(String::from).into();
        if let Some(primary) = follow {
            arguments.extend(["--follow".into(), primary]);
        }
        let mut process = Process::spawn(name, logs, &arguments)?;
        let listening = process.expect("listening", START).await?;
        let address = listening["address"].as_str().unwrap_or_default().to_owned();
        for relay in relays {
            relay.lead_to(address.parse()?);
        }
        let endpoint = format!("http://{address}");
        let admin = AdminClient::connect(&endpoint).await?;
        Ok(Node { process, folder, endpoint, admin })
    }

    /// Waits for an event that comes at the end of something long.
    pub(crate) async fn expect(&mut self, event: &str, within: Duration) -> Result<Value> {
        self.process.expect(event, within).await
    }

    /// An orderly end.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.process.order("finish").await?;
        self.process.ended(END).await
    }
}

fn client_arguments(plan: &Plan, client: u64, endpoints: [String; 2]) -> Result<Vec<String>> {
    let mut arguments = vec!["client".to_owned()];
    let pairs = [
        ("number", client.to_string()),
        ("clients", plan.clients.to_string()),
        ("seed", plan.seed.to_string()),
        ("journal", text(&plan.journal(client))?),
        ("source", text(&plan.source)?),
        ("in-flight", plan.in_flight.to_string()),
        ("rate", plan.rate.to_string()),
        ("seconds", plan.load.as_secs_f64().to_string()),
    ];
    for (name, value) in pairs {
        arguments.extend([format!("--{name}"), value]);
    }
    for endpoint in endpoints {
        arguments.extend(["--endpoint".into(), endpoint]);
    }
    Ok(arguments)
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().ok_or("the temporary folder's path is not UTF-8")?.into())
}
