//! A node's process: the primary in the east, or the backup in the west, on a log in files.

use std::path::PathBuf;

use serde_json::json;
use tagalong::log::Level;
use tagalong::net::NodeEvents;
use tagalong::primary::PrimarySettings;
use tagalong::store::file::{FileLog, FileLogOptions};
use tagalong::{Backup, Opened, Primary};

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

fn settings(mode: Mode) -> PrimarySettings {
    let lowest = match mode {
        Mode::Async => Level::Local,
        Mode::Tagged => Level::Tagged,
        Mode::Sync => Level::Stable,
    };
    PrimarySettings { lowest, ..PrimarySettings::default() }
}

async fn primary(args: NodeArgs) -> Result<()> {
    let mut orders = orders()?;
    let log = FileLog::open(&args.folder, FileLogOptions::default())?;
    let primary = Primary::builder("east", log, Ledger::default())
        .settings(settings(args.mode))
        .advertise(args.advertise)
        .start()
        .await?;
    note_events(primary.events());
    tell(&json!({ "event": "listening", "address": primary.local_addr().to_string() }));
    let opened = primary.opened().await?;
    tell(&json!({ "event": "opened", "epoch": opened.epoch.number }));
    tokio::select! {
        () = finish(&mut orders) => primary.stop().await.map(|_| ()).map_err(Into::into),
        why = primary.stopped() => Err(why.into()),
    }
}

async fn backup(args: NodeArgs, primary: String) -> Result<()> {
    let mut orders = orders()?;
    let log = FileLog::open(&args.folder, FileLogOptions::default())?;
    let backup = Backup::builder("west", log, Ledger::default(), primary)
        .settings(settings(args.mode))
        .advertise(args.advertise)
        .start()
        .await?;
    note_events(backup.events());
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
    let (_, opened) = backup.promoted().await?.opened().await?;
    let Opened { epoch, start, report, .. } = opened;
    tell(&json!({
        "event": "opened",
        "epoch": epoch.number,
        "start": start.0,
        "base": report.base.0,
        "observed": report.observed.0,
        "missing": report.missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "gaps": report.gaps.len(),
    }));
    Ok(())
}

async fn finish(orders: &mut tokio::sync::mpsc::Receiver<String>) {
    while orders.recv().await.is_some_and(|order| order != "finish") {}
}

/// Into the process's log, for whoever asks what happened.
fn note_events(mut events: NodeEvents) {
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            eprintln!("{event:?}");
        }
    });
}
