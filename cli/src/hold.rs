//! A holder: a process that keeps shares of what others write, and reads and writes nothing itself.
//!
//! Where the writers are few, or all of them in one place, holders are the other failure domains that `covered` needs. What
//! they keep is sealed, unless the service says otherwise. On stdout comes one line, when the session is established; what
//! becomes of it goes to stderr. SIGINT or SIGTERM closes the session in good order: nobody needs the holder then any more.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tagalong::client::{ClientEvent, ClientSettings};
use tagalong::log::SessionRole;
use tagalong::store::file::{FileCache, FileCacheOptions};
use tagalong::{Code, Error, Result, TaggedClient};

use crate::serve::signalled;
use crate::{parse_endpoint, parse_seconds, print};

#[derive(Args)]
pub(crate) struct HoldArgs {
    /// Where a node of the service is; may be given again: primary and backup, in any order.
    #[arg(long = "endpoint", value_name = "ENDPOINT", required = true, value_parser = parse_endpoint)]
    endpoints: Vec<String>,
    /// The failure domain of this holder: what fails together has the same name.
    #[arg(long)]
    domain: String,
    /// Keep the session, and the shares, in this directory; without it they end with the process.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Keep so many bytes of shares at most.
    #[arg(long, value_name = "BYTES", default_value_t = ClientSettings::default().share_bytes_max,
        value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    share_bytes: u64,
    /// Say so often what is kept, where that has changed.
    #[arg(long, value_name = "S", default_value = "10", value_parser = parse_seconds)]
    status_every_s: Duration,
    /// How many seconds the end may wait for the service.
    #[arg(long, value_name = "S", default_value = "30", value_parser = parse_seconds)]
    close_within_s: Duration,
}

impl HoldArgs {
    fn settings(&self) -> ClientSettings {
        let defaults = ClientSettings::default();
        let cache_bytes_max = defaults.cache_bytes_max.max(2 * self.share_bytes);
        ClientSettings { cache_bytes_max, share_bytes_max: self.share_bytes, ..defaults }
    }
}

/// How a session ended.
enum End {
    /// As it should.
    Closed,
    /// It was told to stop, and could not close its session.
    Open,
    /// The service does not know the session any more.
    Forgotten,
}

pub(crate) async fn hold(args: HoldArgs) -> Result<ExitCode> {
    loop {
        // A folder of this command's own in the one it was given: it goes when its session has ended.
        let folder = args.cache.as_ref().map(|dir| dir.join("session"));
        let end = session(&args, folder.as_deref()).await?;
        if let Some(folder) = folder.filter(|_| !matches!(end, End::Open)) {
            std::fs::remove_dir_all(folder)?;
        }
        match end {
            End::Closed => return Ok(ExitCode::SUCCESS),
            End::Open => return Ok(ExitCode::FAILURE),
            End::Forgotten if args.cache.is_some() => {
                tracing::warn!(
                    "the session in this cache has ended, and nobody needs what it kept: beginning a new one"
                );
            }
            End::Forgotten => return Err(Error::new(Code::SessionExpired, "the service has ended this session")),
        }
    }
}

/// One session, from its beginning to its end.
async fn session(args: &HoldArgs, folder: Option<&Path>) -> Result<End> {
    let builder = TaggedClient::builder(&args.domain).endpoints(&args.endpoints).role(SessionRole::Holder);
    let mut builder = builder.settings(args.settings());
    if let Some(folder) = folder {
        builder = builder.cache(FileCache::open(folder, FileCacheOptions::default())?);
    }
    let holder = builder.start().await?;
    let mut events = holder.events();
    let mut status = tokio::time::interval(args.status_every_s.max(Duration::from_millis(100)));
    status.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut established, mut said) = (false, String::new());
    loop {
        let attached = tokio::select! {
            attached = holder.attached(), if !established => attached,
            event = events.next() => match event {
                Some(event) => {
                    tell(&event);
                    continue;
                }
                // Why it ended.
                None => holder.attached().await,
            },
            _ = status.tick(), if established => {
                let now = describe(&holder);
                if now != said {
                    tracing::info!("{now}");
                    said = now;
                }
                continue;
            }
            () = signalled() => return Ok(close(args, &holder, established).await),
        };
        match attached {
            Ok(_) if !established => {
                established = true;
                print(format!("tagalong: holding as {} in {}\n", holder.id(), args.domain));
            }
            Ok(_) => return Err(Error::new(Code::Closed, "the client ended")),
            Err(error) if error.code() == Code::SessionExpired => return Ok(End::Forgotten),
            Err(error) => return Err(error),
        }
    }
}

fn describe(holder: &TaggedClient) -> String {
    let stats = holder.stats();
    let away = if stats.attached.is_none() { "; no node is reached" } else { "" };
    format!("keeps {} shares, {} bytes{away}", stats.cached_shares, stats.share_bytes)
}

fn tell(event: &ClientEvent) {
    match event {
        ClientEvent::Attached { epoch } => tracing::info!("established in epoch {epoch}"),
        ClientEvent::Recovering { epoch } => tracing::info!("reports to the recovery that leads to epoch {epoch}"),
        ClientEvent::Waiting(error) => tracing::warn!("waits: {error}"),
        ClientEvent::Refused(error) => tracing::warn!("refused: {error}"),
        other => tracing::warn!("{other:?}"),
    }
}

async fn close(args: &HoldArgs, holder: &TaggedClient, established: bool) -> End {
    if !established {
        tracing::warn!("no session was established");
        return End::Open;
    }
    tracing::info!("closing: {}", describe(holder));
    let closed = tokio::select! {
        closed = tokio::time::timeout(args.close_within_s, holder.close()) => closed,
        // Whoever asks twice means it.
        () = signalled() => Ok(Err(Error::new(Code::Closed, "it was told to end at once"))),
    };
    match closed {
        Ok(Ok(())) => {
            tracing::info!("closed in good order");
            End::Closed
        }
        Ok(Err(error)) => {
            tracing::warn!("the session is not closed: {error}");
            End::Open
        }
        Err(_) => {
            tracing::warn!(
                "the session is not closed after {:?}: the service takes this holder for dead, and a recovery may wait \
                 for it",
                args.close_within_s
            );
            End::Open
        }
    }
}
