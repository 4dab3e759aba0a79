//! A whole service, in processes: primary, backup, clients, and the links between them.
//!
//! ```text
//!  clients ══near══► primary        near, far: a relay each, with the clients' round trip
//!     ╚══════far═══► backup ══link══► primary        link: a relay with the sites' round trip
//! ```
//!
//! Everybody is a failure domain of its own: the nodes, and each client, holder and passer-by. The journals are not the
//! clients': they lie with the drill, and stay when a client's own folder goes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tagalong::AdminClient;
use tagalong::net::ShareKey;

use crate::Result;
use crate::journal::Journal;
use crate::process::Process;
use crate::relay::{Carried, Relay};
use crate::report::Mode;

/// How long the processes may take to start, to connect, to be in sync.
const START: Duration = Duration::from_secs(60);
/// Where clients are to be suspended soon: after this.
const SOON_US: u64 = 300_000;
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
    /// Some clients are so much further away.
    pub(crate) client_spread: Duration,
    pub(crate) seed: u64,
    pub(crate) in_flight: usize,
    pub(crate) rate: u64,
    pub(crate) load: Duration,
    /// Clients hold what they wrote in files, so that they survive being killed.
    pub(crate) caches: bool,
    /// Clients may be killed: their journals have everything before anything follows from it.
    pub(crate) careful: bool,
    /// A client that went away is suspended soon.
    pub(crate) suspend_soon: bool,
    pub(crate) stripe_wait_us: Option<u64>,
    /// How many failure domains `Covered` covers for.
    pub(crate) f: u8,
    /// Clients that only keep shares.
    pub(crate) holders: u64,
    /// Clients whose sessions open and close all the time.
    pub(crate) passers: u64,
    /// Bytes of shares that each of those takes.
    pub(crate) passers_hold: Option<u64>,
}

impl Plan {
    fn home(&self, client: u64) -> PathBuf {
        self.folder.join(format!("client-{client}"))
    }

    fn journals(&self) -> PathBuf {
        self.folder.join("journals")
    }

    /// The journal of a client's first or second life.
    fn journal(&self, client: u64, life: u32) -> PathBuf {
        self.journals().join(format!("client-{client}-{life}"))
    }

    /// The secret of the two nodes.
    fn share_key(&self) -> PathBuf {
        self.folder.join("share-key")
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

/// The process of somebody who writes nothing.
pub(crate) struct Bystander {
    pub(crate) process: Process,
    pub(crate) name: String,
    pub(crate) session: String,
}

/// Bytes on the links so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Between the sites.
    pub(crate) wan: Carried,
    /// Between clients and primary.
    pub(crate) near: Carried,
}

impl std::ops::Sub for Traffic {
    type Output = Traffic;

    fn sub(self, earlier: Traffic) -> Traffic {
        Traffic { wan: self.wan - earlier.wan, near: self.near - earlier.near }
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
    pub(crate) clients: Vec<Client>,
    pub(crate) holders: Vec<Bystander>,
    pub(crate) passers: Vec<Bystander>,
    pub(crate) near: Relay,
    pub(crate) far: Relay,
    pub(crate) link: Relay,
}

impl Service {
    /// Starts everything, and returns when the backup is in sync and every client has its session.
    pub(crate) async fn start(plan: Plan) -> Result<Service> {
        let clients = || Relay::spread(plan.client_rtt, plan.client_spread);
        let (near, far) = (clients()?, clients()?);
        let link = Relay::start(plan.rtt)?;
        if plan.folder.exists() {
            return Err(format!("{} exists: a drill starts from nothing", plan.folder.display()).into());
        }
        let logs = plan.folder.join("logs");
        std::fs::create_dir_all(&logs)?;
        std::fs::create_dir_all(plan.journals())?;
        if plan.mode.shares() {
            write_secret(&plan.share_key(), &ShareKey::generate()?.to_hex())?;
        }
        let mut primary = Node::start("primary", &plan, &logs, near.endpoint(), None, &[&near, &link]).await?;
        primary.process.expect("serving", START).await?;
        let mut backup = Node::start("backup", &plan, &logs, far.endpoint(), Some(link.endpoint()), &[&far]).await?;
        backup.process.expect("in-sync", START).await?;
        let (clients, holders, passers) = (Vec::new(), Vec::new(), Vec::new());
        let mut service = Service { plan, primary, backup, clients, holders, passers, near, far, link };
        for number in 0..service.plan.holders {
            let holder = service.spawn_bystander("holder", number, None)?;
            service.holders.push(holder);
        }
        for number in 0..service.plan.passers {
            let passer = service.spawn_bystander("passer", number, service.plan.passers_hold)?;
            service.passers.push(passer);
        }
        for number in 0..service.plan.clients {
            let process = service.spawn_client(number, 1)?;
            service.clients.push(Client { process, number, session: String::new(), is_dead: false, life: 1 });
        }
        for client in &mut service.clients {
            let attached = client.process.expect("attached", START).await?;
            client.session = attached["session"].as_str().unwrap_or_default().to_owned();
        }
        for bystander in service.holders.iter_mut().chain(&mut service.passers) {
            let attached = bystander.process.expect("attached", START).await?;
            bystander.session = attached["session"].as_str().unwrap_or_default().to_owned();
        }
        Ok(service)
    }

    fn spawn_bystander(&self, what: &str, number: u64, holds: Option<u64>) -> Result<Bystander> {
        let name = format!("{what}-{number}");
        let endpoints = [self.near.endpoint(), self.far.endpoint()];
        let mut arguments = [what, "--domain", &name].map(String::from).to_vec();
        arguments.extend(endpoints.into_iter().flat_map(|endpoint| ["--endpoint".into(), endpoint]));
        arguments.extend(holds.into_iter().flat_map(|bytes| ["--share-bytes".into(), bytes.to_string()]));
        let process = Process::spawn(&name, &self.plan.folder.join("logs"), &arguments)?;
        Ok(Bystander { process, name: format!("{what} {number}"), session: String::new() })
    }

    fn spawn_client(&self, number: u64, life: u32) -> Result<Process> {
        let arguments = client_arguments(&self.plan, number, life, [self.near.endpoint(), self.far.endpoint()])?;
        Process::spawn(&format!("client-{number}-{life}"), &self.plan.folder.join("logs"), &arguments)
    }

    /// The end of the primary's site: SIGKILL for the primary and so many clients, within the same moment. The folders of
    /// the primary and of the first `for_good` clients are gone then, and with them what they held; the next `for_now` keep
    /// theirs.
    pub(crate) async fn kill(&mut self, for_good: usize, for_now: usize) -> Result<()> {
        let dying = for_good + for_now;
        self.primary.process.start_kill()?;
        self.clients.iter_mut().take(dying).try_for_each(|client| client.process.start_kill())?;
        self.primary.process.kill().await?;
        for client in self.clients.iter_mut().take(dying) {
            client.process.kill().await?;
            client.is_dead = true;
        }
        std::fs::remove_dir_all(&self.primary.folder)?;
        (0..for_good).try_for_each(|at| self.forget(at))
    }

    /// The end of some clients and of what they held, while all others live.
    pub(crate) async fn kill_clients(&mut self, which: std::ops::Range<usize>) -> Result<()> {
        for at in which {
            self.clients[at].process.kill().await?;
            self.clients[at].is_dead = true;
            self.forget(at)?;
        }
        Ok(())
    }

    /// A dead client's folder is gone.
    fn forget(&self, at: usize) -> Result<()> {
        match std::fs::remove_dir_all(self.plan.home(self.clients[at].number)) {
            // It held what it wrote in memory.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// What the links carried so far.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { wan: self.link.carried(), near: self.near.carried() }
    }

    /// Starts every dead client that kept its folder again, on its cache. It takes up its load by itself.
    pub(crate) async fn revive_clients(&mut self) -> Result<()> {
        for at in 0..self.clients.len() {
            if !self.clients[at].is_dead || !self.plan.home(self.clients[at].number).exists() {
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

    /// The load begins.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        for passer in &mut self.passers {
            passer.process.order("start").await?;
        }
        for client in self.living() {
            client.process.order("start").await?;
        }
        Ok(())
    }

    /// Tells everybody to stop, and waits for their orderly ends: holders go last, for they may be needed until then.
    /// Returns how many sessions the passers-by had.
    pub(crate) async fn finish(&mut self, within: Duration) -> Result<u64> {
        let deadline = Instant::now() + within;
        let left = || deadline.saturating_duration_since(Instant::now());
        for passer in &mut self.passers {
            passer.process.order("stop").await?;
        }
        for client in self.living() {
            client.process.order("stop").await?;
        }
        for client in self.living() {
            client.process.expect("finished", left()).await?;
            client.process.ended(END).await?;
        }
        let mut sessions = 0;
        for passer in &mut self.passers {
            sessions += passer.process.expect("finished", left()).await?["sessions"].as_u64().unwrap_or(0);
            passer.process.ended(END).await?;
        }
        for holder in &mut self.holders {
            holder.process.order("stop").await?;
        }
        for holder in &mut self.holders {
            holder.process.expect("finished", left()).await?;
            holder.process.ended(END).await?;
        }
        Ok(sessions)
    }

    /// An error if somebody has ended who was not killed.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.living().try_for_each(|client| client.process.check())?;
        let mut bystanders = self.holders.iter_mut().chain(&mut self.passers);
        bystanders.try_for_each(|bystander| bystander.process.check())
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
        arguments.extend(["--f".into(), plan.f.to_string()]);
        if let Some(wait) = plan.stripe_wait_us {
            arguments.extend(["--stripe-wait-us".into(), wait.to_string()]);
        }
        if plan.suspend_soon {
            arguments.extend(["--suspend-after-us".into(), SOON_US.to_string()]);
        }
        if plan.mode.shares() {
            arguments.extend(["--share-key".into(), text(&plan.share_key())?]);
        }
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
    if plan.careful {
        arguments.push("--careful".into());
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

/// Writes a file that nobody else may read.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())?;
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().ok_or("the temporary folder's path is not UTF-8")?.into())
}
