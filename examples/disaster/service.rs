//! A whole service, in processes: primary, backup, clients, and the links between them.
//!
//! ```text
//!  clients ══near══► primary        near, far: a relay each, with the clients' round trip
//!     ╚══════far═══► backup ══link══► primary        link: a relay with the sites' round trip
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
    /// Clients hold what they wrote in files, so that they survive being killed.
    pub(crate) caches: bool,
}

impl Plan {
    fn home(&self, client: u64) -> PathBuf {
        self.folder.join(format!("client-{client}"))
    }

    /// The journal of a client's first or second life.
    fn journal(&self, client: u64, life: u32) -> PathBuf {
        self.home(client).join(format!("journal-{life}"))
    }
}

/// A client's process.
pub(crate) struct Client {
    pub(crate) process: Process,
    pub(crate) number: u64,
    /// What the service knows it by.
    pub(crate) session: String,
    pub(crate) is_dead: bool,
    life: u32,
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
    pub(crate) clients: Vec<Client>,
    pub(crate) near: Relay,
    pub(crate) far: Relay,
    pub(crate) link: Relay,
}

impl Service {
    /// Starts everything, and returns when the backup is in sync and every client has its session.
    pub(crate) async fn start(plan: Plan) -> Result<Service> {
        let (near, far) = (Relay::start(plan.client_rtt)?, Relay::start(plan.client_rtt)?);
        let link = Relay::start(plan.rtt)?;
        if plan.folder.exists() {
            return Err(format!("{} exists: a drill starts from nothing", plan.folder.display()).into());
        }
        let logs = plan.folder.join("logs");
        std::fs::create_dir_all(&logs)?;
        let mut primary = Node::start("primary", &plan, &logs, near.endpoint(), None, &[&near, &link]).await?;
        primary.process.expect("opened", START).await?;
        let mut backup = Node::start("backup", &plan, &logs, far.endpoint(), Some(link.endpoint()), &[&far]).await?;
        backup.process.expect("in-sync", START).await?;
        let mut service = Service { plan, primary, backup, clients: Vec::new(), near, far, link };
        for number in 0..service.plan.clients {
            std::fs::create_dir_all(service.plan.home(number))?;
            let process = service.spawn_client(number, 1)?;
            service.clients.push(Client { process, number, session: String::new(), is_dead: false, life: 1 });
        }
        for client in &mut service.clients {
            let attached = client.process.expect("attached", START).await?;
            client.session = attached["session"].as_str().unwrap_or_default().to_owned();
        }
        Ok(service)
    }

    fn spawn_client(&self, number: u64, life: u32) -> Result<Process> {
        let arguments = client_arguments(&self.plan, number, life, [self.near.endpoint(), self.far.endpoint()])?;
        Process::spawn(&format!("client-{number}-{life}"), &self.plan.folder.join("logs"), &arguments)
    }

    /// SIGKILL for the first so many clients.
    pub(crate) async fn kill_clients(&mut self, count: usize) -> Result<()> {
        for client in self.clients.iter_mut().take(count) {
            client.process.kill().await?;
            client.is_dead = true;
        }
        Ok(())
    }

    /// Starts every dead client again, on its cache. It takes up its load by itself.
    pub(crate) async fn revive_clients(&mut self) -> Result<()> {
        for at in 0..self.clients.len() {
            if !self.clients[at].is_dead {
                continue;
            }
            let mut process = self.spawn_client(self.clients[at].number, 2)?;
            process.order("start").await?;
            let client = &mut self.clients[at];
            (client.process, client.is_dead, client.life) = (process, false, 2);
        }
        Ok(())
    }

    /// The clients that live.
    pub(crate) fn living(&mut self) -> impl Iterator<Item = &mut Client> {
        self.clients.iter_mut().filter(|client| !client.is_dead)
    }

    /// Gives every client an order.
    pub(crate) async fn order(&mut self, what: &str) -> Result<()> {
        for client in self.living() {
            client.process.order(what).await?;
        }
        Ok(())
    }

    /// Waits for the clients' orderly ends.
    pub(crate) async fn finish_clients(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        for client in self.living() {
            client.process.expect("finished", deadline.saturating_duration_since(Instant::now())).await?;
            client.process.ended(END).await?;
        }
        Ok(())
    }

    /// An error if a client has ended.
    pub(crate) fn check_clients(&mut self) -> Result<()> {
        self.living().try_for_each(|client| client.process.check())
    }

    /// The sum over all clients.
    pub(crate) fn progress(&self, what: &str) -> u64 {
        self.clients.iter().map(|client| client.process.progress(what)).sum()
    }

    /// The clients' journals, when they have finished.
    pub(crate) fn journals(&self) -> Result<Vec<Journal>> {
        self.clients.iter().map(|client| self.journal(client)).collect()
    }

    /// A client's journal, of both its lives if it had two.
    fn journal(&self, client: &Client) -> Result<Journal> {
        let number = client.number;
        if client.life == 1 && !client.is_dead {
            return Ok(Journal::read(number, &self.plan.journal(number, 1))?);
        }
        let mut journal = Journal::read_torn(number, &self.plan.journal(number, 1))?;
        if client.life == 2 {
            journal.lines.extend(Journal::read(number, &self.plan.journal(number, 2))?.lines);
        }
        Ok(journal)
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

    /// An orderly end.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.process.order("finish").await?;
        self.process.ended(END).await
    }
}

fn client_arguments(plan: &Plan, client: u64, life: u32, endpoints: [String; 2]) -> Result<Vec<String>> {
    let mut arguments = vec!["client".to_owned()];
    let pairs = [
        ("number", client.to_string()),
        ("clients", plan.clients.to_string()),
        ("seed", plan.seed.to_string()),
        ("journal", text(&plan.journal(client, life))?),
        ("source", text(&plan.source)?),
        ("in-flight", plan.in_flight.to_string()),
        ("rate", plan.rate.to_string()),
        ("seconds", plan.load.as_secs_f64().to_string()),
    ];
    for (name, value) in pairs {
        arguments.extend([format!("--{name}"), value]);
    }
    if plan.caches {
        arguments.extend(["--cache".into(), text(&plan.home(client).join("cache"))?]);
    }
    if life == 2 {
        arguments.extend(["--earlier".into(), text(&plan.journal(client, 1))?]);
    }
    for endpoint in endpoints {
        arguments.extend(["--endpoint".into(), endpoint]);
    }
    Ok(arguments)
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().ok_or("the temporary folder's path is not UTF-8")?.into())
}
