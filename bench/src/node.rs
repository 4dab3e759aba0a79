//! A node's process: primary or backup of a tagalong service that counts what it is given, on a log in files.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;
use tagalong::log::Level;
use tagalong::message::NodeStatus;
use tagalong::net::{NodeEvents, ShareKey};
use tagalong::node::NodeEvent;
use tagalong::primary::PrimarySettings;
use tagalong::store::file::{FileLog, FileLogOptions};
use tagalong::{Backup, NetSettings, Primary};
use tokio::sync::mpsc;

use crate::Result;
use crate::process::{orders, tell};
use crate::tally::Tally;
use crate::usage::Usage;

/// How a service acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Mode {
    /// When it is applied.
    Async,
    /// When it is applied and on the primary's own disk.
    AsyncLogged,
    /// When the backup has it.
    Sync,
    /// When the primary has it on its own disk, too.
    SyncLogged,
    /// When it is applied; the client holds it. The library's default.
    Tagged,
    /// The same, when it is on the primary's own disk.
    TaggedLogged,
    /// As `tagged`, with shares of others' writes on the responses.
    TaggedShared,
    /// When it survives the loss of one client, too.
    Covered,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::AsyncLogged => "async-logged",
            Self::Sync => "sync",
            Self::SyncLogged => "sync-logged",
            Self::Tagged => "tagged",
            Self::TaggedLogged => "tagged-logged",
            Self::TaggedShared => "tagged-shared",
            Self::Covered => "covered",
        }
    }

    /// Whether clients keep something for each other, for which the servers need a key.
    pub(crate) fn shares(self) -> bool {
        matches!(self, Self::TaggedShared | Self::Covered)
    }

    fn settings(self, delta_bytes_max: u64) -> PrimarySettings {
        let lowest = match self {
            Self::Async | Self::AsyncLogged => Level::Local,
            Self::Sync | Self::SyncLogged => Level::Stable,
            Self::Tagged | Self::TaggedLogged | Self::TaggedShared => Level::Tagged,
            Self::Covered => Level::Covered,
        };
        let reply_after_log = matches!(self, Self::AsyncLogged | Self::SyncLogged | Self::TaggedLogged);
        let f = u8::from(self == Self::Covered);
        PrimarySettings { lowest, f, reply_after_log, delta_bytes_max, ..PrimarySettings::default() }
    }
}

/// What a node is told when it is started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct NodeArgs {
    #[arg(long)]
    pub(crate) folder: PathBuf,
    #[arg(long)]
    pub(crate) mode: Mode,
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Where clients reach it; its own address without.
    #[arg(long)]
    pub(crate) advertise: Option<String>,
    /// Where it reaches the primary; it is the backup then.
    #[arg(long)]
    pub(crate) follow: Option<String>,
    /// Writes wait while the delta exceeds this.
    #[arg(long, default_value_t = 1 << 30)]
    pub(crate) delta_bytes_max: u64,
    /// Connections of the link between the nodes; as the library has it without.
    #[arg(long)]
    pub(crate) connections: Option<u32>,
    /// Threads of its runtime. The processes of a service share two cores here, and fewer of them are fewer changes of threads.
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: usize,
}

impl NodeArgs {
    fn net(&self) -> NetSettings {
        let mut net = NetSettings::default();
        net.replication_connections = self.connections.unwrap_or(net.replication_connections);
        net
    }
}

/// The secret of all services here: nobody's data is in them.
fn share_key() -> ShareKey {
    ShareKey::new([7; 32])
}

/// Runs the node until it is told to finish.
pub(crate) async fn run(args: NodeArgs) -> Result<()> {
    let mut orders = orders()?;
    let log = FileLog::open(&args.folder, FileLogOptions::default())?;
    match &args.follow {
        None => {
            let mut builder = Primary::builder("east", log, Tally::default());
            builder = builder.settings(args.mode.settings(args.delta_bytes_max)).net(args.net()).listen(args.listen);
            if args.mode.shares() {
                builder = builder.share_key(share_key());
            }
            if let Some(endpoint) = &args.advertise {
                builder = builder.advertise(endpoint);
            }
            let primary = builder.start().await?;
            tell(&json!({ "event": "listening", "address": primary.local_addr().to_string() }));
            primary.opened().await?;
            tell(&json!({ "event": "serving" }));
            while let Some(order) = orders.recv().await.filter(|order| order != "finish") {
                if order == "status" {
                    tell_status(&primary.status().await?);
                } else {
                    answer(&order)?;
                }
            }
            primary.abort().await;
        }
        Some(endpoint) => {
            let mut builder = Backup::builder("west", log, Tally::default(), endpoint.clone());
            builder = builder.settings(args.mode.settings(args.delta_bytes_max)).net(args.net()).listen(args.listen);
            if args.mode.shares() {
                builder = builder.share_key(share_key());
            }
            if let Some(endpoint) = &args.advertise {
                builder = builder.advertise(endpoint);
            }
            let backup = builder.start().await?;
            tell(&json!({ "event": "listening", "address": backup.local_addr().to_string() }));
            backup.in_sync().await?;
            tell(&json!({ "event": "in-sync" }));
            tokio::select! {
                // It ends with the node, and has then nothing more to tell.
                told = tell_open(backup.events()) => told?,
                obeyed = obey(&mut orders) => obeyed?,
            }
            backup.abort().await;
        }
    }
    Ok(())
}

/// Tells when the backup serves as the primary, and how many entries it had to decode for that.
async fn tell_open(mut events: NodeEvents) -> Result<()> {
    let mut decoded = 0;
    while let Some(event) = events.next().await {
        match event {
            NodeEvent::Decoded { entries, .. } => decoded = entries,
            NodeEvent::Opened { .. } => tell(&json!({ "event": "open", "decoded": decoded })),
            _ => {}
        }
    }
    Ok(())
}

fn tell_status(status: &NodeStatus) {
    tell(&json!({
        "event": "status",
        "covered_entries": status.covered_entries,
        "fill_us": status.fill_us,
        "confirm_us": status.confirm_us,
        "delta_entries": status.delta_entries,
        "delta_bytes": status.delta_bytes,
        "waiting_writes": status.waiting_writes,
    }));
}

/// Answers what it is asked, until it is to finish.
pub(crate) async fn obey(orders: &mut mpsc::Receiver<String>) -> Result<()> {
    while let Some(order) = orders.recv().await.filter(|order| order != "finish") {
        answer(&order)?;
    }
    Ok(())
}

/// Answers what every process here is asked.
pub(crate) fn answer(order: &str) -> Result<()> {
    if order == "usage" {
        let Usage { cpu_us, memory } = Usage::of_this_process()?;
        tell(&json!({ "event": "usage", "cpu_us": cpu_us, "memory": memory }));
    }
    if order == "peak" {
        tell(&json!({ "event": "peak", "memory": Usage::peak_of_this_process()? }));
    }
    Ok(())
}
