//! A node's process: the primary in the east, or the backup in the west, on a log in files.

use std::path::PathBuf;

use serde_json::{Value, json};
use tagalong::log::{ClientId, Epoch, EpochStart, Level, Lsn};
use tagalong::net::{NodeEvents, ShareKey};
use tagalong::node::NodeEvent;
use tagalong::primary::PrimarySettings;
use tagalong::store::file::{FileLog, FileLogOptions};
use tagalong::{Backup, Primary};

use crate::Result;
use crate::ledger::Ledger;
use crate::process::{orders, tell};
use crate::report::Mode;

/// What a node is told when it is started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct NodeArgs {
    /// Its folder.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// The mode of the service.
    #[arg(long)]
    pub(crate) mode: Mode,
    /// How many failure domains it covers for, where it covers.
    #[arg(long)]
    pub(crate) f: u8,
    /// How long a stripe waits for more members; the library's default without.
    #[arg(long)]
    pub(crate) stripe_wait_us: Option<u64>,
    /// How long a client that went away is waited for before it is suspended; the library's default without.
    #[arg(long)]
    pub(crate) suspend_after_us: Option<u64>,
    /// Where the secret is under which shares are sealed.
    #[arg(long)]
    pub(crate) share_key: Option<PathBuf>,
    /// Where clients reach it.
    #[arg(long)]
    pub(crate) advertise: String,
    /// Where it reaches the primary; it is the backup then.
    #[arg(long)]
    pub(crate) follow: Option<String>,
}

/// Runs the node until it is told to finish.
pub(crate) async fn run(args: NodeArgs) -> Result<()> {
    match args.follow.clone() {
        None => primary(args).await,
        Some(primary) => backup(args, primary).await,
    }
}

fn settings(args: &NodeArgs) -> PrimarySettings {
    let lowest = match args.mode {
        Mode::Async => Level::Local,
        Mode::Unshared | Mode::Tagged => Level::Tagged,
        Mode::Covered => Level::Covered,
        Mode::Sync => Level::Stable,
    };
    let f = if args.mode == Mode::Covered { args.f } else { 0 };
    let defaults = PrimarySettings::default();
    PrimarySettings {
        lowest,
        f,
        stripe_wait_us: args.stripe_wait_us.unwrap_or(defaults.stripe_wait_us),
        suspend_after_us: args.suspend_after_us.unwrap_or(defaults.suspend_after_us),
        ..defaults
    }
}

async fn primary(args: NodeArgs) -> Result<()> {
    let mut orders = orders()?;
    let log = FileLog::open(&args.folder, FileLogOptions::default())?;
    let mut builder = Primary::builder("east", log, Ledger::default()).settings(settings(&args));
    if let Some(path) = &args.share_key {
        builder = builder.share_key(ShareKey::from_file(path)?);
    }
    let primary = builder.advertise(args.advertise).start().await?;
    tell_events(primary.events());
    tell(&json!({ "event": "listening", "address": primary.local_addr().to_string() }));
    let opened = primary.opened().await?;
    tell(&json!({ "event": "serving", "epoch": opened.epoch.number }));
    tokio::select! {
        () = finish(&mut orders) => primary.stop().await.map(|_| ()).map_err(Into::into),
        why = primary.stopped() => Err(why.into()),
    }
}

async fn backup(args: NodeArgs, primary: String) -> Result<()> {
    let mut orders = orders()?;
    let log = FileLog::open(&args.folder, FileLogOptions::default())?;
    let mut builder = Backup::builder("west", log, Ledger::default(), primary).settings(settings(&args));
    if let Some(path) = &args.share_key {
        builder = builder.share_key(ShareKey::from_file(path)?);
    }
    let backup = builder.advertise(args.advertise).start().await?;
    tell_events(backup.events());
    tell(&json!({ "event": "listening", "address": backup.local_addr().to_string() }));
    tokio::select! {
        followed = follow(&backup) => followed?,
        () = finish(&mut orders) => return backup.stop().await.map(|_| ()).map_err(Into::into),
    }
    finish(&mut orders).await;
    backup.stop().await?;
    Ok(())
}

/// From the beginning to the end of a promotion.
async fn follow(backup: &Backup) -> Result<()> {
    backup.in_sync().await?;
    tell(&json!({ "event": "in-sync" }));
    backup.promoted().await?.opened().await?;
    Ok(())
}

async fn finish(orders: &mut tokio::sync::mpsc::Receiver<String>) {
    while orders.recv().await.is_some_and(|order| order != "finish") {}
}

/// Into the process's log, for whoever asks what happened; and to the parent, how a reign began.
fn tell_events(mut events: NodeEvents) {
    tokio::spawn(async move {
        let mut decoded = (0, 0);
        while let Some(event) = events.next().await {
            eprintln!("{event:?}");
            match event {
                NodeEvent::Decoded { entries, shares } => decoded = (entries, shares),
                NodeEvent::Opened { report, epoch, start } => tell(&opened(epoch, start, &report, decoded)),
                _ => {}
            }
        }
    });
}

/// A reign's beginning, with the report of the recovery that led to it.
fn opened(epoch: Epoch, start: Lsn, report: &EpochStart, decoded: (u64, u64)) -> Value {
    let session = |sessions: &[ClientId]| sessions.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "event": "opened",
        "epoch": epoch.number,
        "start": start.0,
        "base": report.base.0,
        "observed": report.observed.0,
        "by_policy": report.policy.is_some(),
        "missing": session(&report.missing),
        "excluded": session(&report.excluded),
        "gaps": report.gaps.iter().map(|gap| [gap.start.0, gap.end.0]).collect::<Vec<_>>(),
        "decoded": decoded.0,
        "shares": decoded.1,
    })
}
