//! A node that serves a key-value store: a primary, or with `--follow` its backup.
//!
//! The node's marks decide, not the flags alone: a backup that was promoted is a primary when it is started again with
//! the same flags. On stdout comes one line, when the node listens; the log goes to stderr (`RUST_LOG` filters it). The
//! process ends with status 1 when the node fails: what it was promised to keep is on its disk, and its clients hold
//! the rest. A deposed node stays, and tells whoever asks, until it is stopped.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tagalong::log::Epoch;
use tagalong::net::{NodeEvents, ShareKey};
use tagalong::primary::{PrimarySettings, Privacy, Uncovered};
use tagalong::store::file::{FileLog, FileLogOptions};
use tagalong::store::kv::KvStore;
use tagalong::store::{LogStore, Marks};
use tagalong::{Backup, Code, Error, Opened, Primary, Recovery, Result};

use crate::{GapArg, LevelArg, parse_endpoint, parse_seconds, policy, print};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PolicyArg {
    /// Wait for them, or for an operator.
    Wait,
    /// Conclude without them; the log ends before the first entry that is missing.
    Stop,
    /// Conclude without them; later entries are kept where they do not depend on what is missing.
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UncoveredArg {
    /// It is answered when it is stable.
    WhenStable,
    /// The call is refused at once.
    Refuse,
}

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// The directory of the log.
    #[arg(long)]
    dir: PathBuf,
    /// The failure domain of this node.
    #[arg(long)]
    domain: String,
    /// Where to listen. Nothing is authenticated: whoever can reach the address may read, write and promote.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The endpoint that clients are told, where it is not the address listened on.
    #[arg(long, value_name = "ENDPOINT", value_parser = parse_endpoint)]
    advertise: Option<String>,
    /// Be a backup, of the primary at this endpoint.
    #[arg(long, value_name = "ENDPOINT", value_parser = parse_endpoint)]
    follow: Option<String>,
    /// The lowest level of the service.
    #[arg(long, default_value = "tagged")]
    level: LevelArg,
    /// How many failure domains of clients a covered write survives, lost together with the primary; 0 for no coverage.
    #[arg(long, value_name = "DOMAINS", default_value_t = PrimarySettings::default().f)]
    f: u8,
    /// What becomes of a covered write when too few clients are there to cover it.
    #[arg(long, default_value = "when-stable")]
    uncovered: UncoveredArg,
    /// The file with the secret under which clients keep shares for each other, the same on every node: see `tagalong
    /// share-key`. Without it nothing is shared.
    #[arg(long, value_name = "FILE", conflicts_with = "share_open")]
    share_key: Option<PathBuf>,
    /// All clients may see everything that any of them writes, and are trusted: shares are given to them in the clear.
    #[arg(long)]
    share_open: bool,
    /// Send nothing of an entry to anyone before it is on the own disk: a restart then needs neither roll call nor backup.
    #[arg(long)]
    log_before_send: bool,
    /// What the recovery after a restart does when somebody does not come.
    #[arg(long, default_value = "wait")]
    policy: PolicyArg,
    /// With --policy stop or skip: conclude after so many seconds without progress, counted from the first report.
    #[arg(long, value_name = "S", default_value = "10", value_parser = parse_seconds)]
    soft_s: Duration,
    /// With --policy stop or skip: conclude after so many seconds in any case.
    #[arg(long, value_name = "S", default_value = "60", value_parser = parse_seconds)]
    hard_s: Duration,
    /// Writes wait while the delta exceeds this.
    #[arg(long, value_name = "BYTES", default_value_t = PrimarySettings::default().delta_bytes_max)]
    delta_bytes_max: u64,
    /// The largest command or query.
    #[arg(long, value_name = "BYTES", default_value_t = PrimarySettings::default().command_bytes_max)]
    command_bytes_max: u64,
    /// Stop the node rather than let its log take more than about this.
    #[arg(long, value_name = "BYTES")]
    log_bytes_max: Option<u64>,
    /// How many requests of a session may be unanswered at once.
    #[arg(long, value_name = "REQUESTS", default_value_t = PrimarySettings::default().window)]
    window: u64,
    /// A session is suspended when it was away so many seconds, with everything stable.
    #[arg(long, value_name = "S", default_value = "10", value_parser = parse_seconds)]
    suspend_after_s: Duration,
    /// How many seconds an orderly stop may wait for the backup.
    #[arg(long, value_name = "S", default_value = "30", value_parser = parse_seconds)]
    stop_within_s: Duration,
}

impl ServeArgs {
    /// What the flags say of other clients' data. A key makes it `Sealed`, whatever it is here.
    fn privacy(&self) -> Privacy {
        if self.share_open { Privacy::Open } else { Privacy::Withheld }
    }

    fn settings(&self) -> PrimarySettings {
        let gaps = match self.policy {
            PolicyArg::Wait => None,
            PolicyArg::Stop => Some(GapArg::Stop),
            PolicyArg::Skip => Some(GapArg::Skip),
        };
        let defaults = PrimarySettings::default();
        PrimarySettings {
            lowest: self.level.into(),
            f: self.f,
            privacy: self.privacy(),
            uncovered: match self.uncovered {
                UncoveredArg::WhenStable => Uncovered::WhenStable,
                UncoveredArg::Refuse => Uncovered::Refuse,
            },
            log_before_send: self.log_before_send,
            delta_bytes_max: self.delta_bytes_max,
            window: self.window,
            // A window that cannot hold one command would never move.
            window_bytes: defaults.window_bytes.max(self.command_bytes_max),
            command_bytes_max: self.command_bytes_max,
            suspend_after_us: u64::try_from(self.suspend_after_s.as_micros()).unwrap_or(u64::MAX),
            policy: policy(gaps, self.soft_s, self.hard_s),
            ..defaults
        }
    }
}

/// What a directory's marks make of the flags.
fn starts_as_backup<'a>(args: &'a ServeArgs, marks: Option<&Marks>) -> Result<Option<&'a String>> {
    let promised = marks.map_or(Epoch::ZERO, |marks| marks.promised);
    let own = marks.is_some_and(|marks| marks.node == promised.node);
    match &args.follow {
        Some(_) if promised != Epoch::ZERO && own => {
            tracing::warn!(epoch = %promised, "this node was primary before: it starts as one, and --follow is not used");
            Ok(None)
        }
        None if promised != Epoch::ZERO && !own => {
            let why = format!(
                "{} is a backup's: give --follow with its primary's endpoint, and promote the backup if that is lost",
                args.dir.display()
            );
            Err(Error::new(Code::InvalidArgument, why))
        }
        follow => Ok(follow.as_ref()),
    }
}

enum Node {
    Primary(Primary),
    Backup(Backup),
}

impl Node {
    async fn start(args: &ServeArgs) -> Result<Self> {
        let options = FileLogOptions { bytes_max: args.log_bytes_max, ..FileLogOptions::default() };
        let mut log = FileLog::open(&args.dir, options)?;
        if let Some(torn) = &log.opened().torn {
            let file = torn.file.display();
            tracing::warn!(%file, offset = torn.offset, bytes = torn.bytes, "a torn write at the end of the log was cut off");
        }
        let marks = log.marks()?;
        let (domain, settings, state) = (&args.domain, args.settings(), KvStore::new());
        let key = args.share_key.as_ref().map(ShareKey::from_file).transpose()?;
        if let Some(primary) = starts_as_backup(args, marks.as_ref())? {
            let mut builder = Backup::builder(domain, log, state, primary).settings(settings).listen(args.listen);
            if let Some(endpoint) = &args.advertise {
                builder = builder.advertise(endpoint);
            }
            if let Some(key) = key {
                builder = builder.share_key(key);
            }
            return Ok(Node::Backup(builder.start().await?));
        }
        let mut builder = Primary::builder(domain, log, state).settings(settings).listen(args.listen);
        if let Some(endpoint) = &args.advertise {
            builder = builder.advertise(endpoint);
        }
        if let Some(key) = key {
            builder = builder.share_key(key);
        }
        Ok(Node::Primary(builder.start().await?))
    }

    fn endpoint(&self) -> String {
        match self {
            Node::Primary(primary) => primary.endpoint(),
            Node::Backup(backup) => backup.endpoint(),
        }
    }

    fn events(&self) -> NodeEvents {
        match self {
            Node::Primary(primary) => primary.events(),
            Node::Backup(backup) => backup.events(),
        }
    }

    async fn stop(&self) -> Result<bool> {
        match self {
            Node::Primary(primary) => primary.stop().await,
            Node::Backup(backup) => backup.stop().await,
        }
    }

    /// Until the node serves nothing any more; says why.
    async fn ended(&self) -> Error {
        let recovery = match self {
            Node::Primary(primary) => primary.recovery(),
            Node::Backup(backup) => match backup.promoted().await {
                Ok(recovery) => recovery,
                Err(error) => return error,
            },
        };
        match opened(&recovery).await {
            Ok(primary) => primary.stopped().await,
            Err(error) => error,
        }
    }
}

/// The primary a recovery leads to; its report goes to the log.
async fn opened(recovery: &Recovery) -> Result<Primary> {
    let (primary, Opened { epoch, start, report, .. }) = recovery.opened().await?;
    let ids =
        |clients: &[tagalong::log::ClientId]| clients.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let gaps: Vec<String> = report.gaps.iter().map(|gap| format!("{}-{}", gap.start, gap.end.prev())).collect();
    let policy = report.policy.map_or_else(|| "none".to_owned(), |policy| format!("{policy:?}"));
    let (missing, excluded, gaps) = (ids(&report.missing), ids(&report.excluded), gaps.join(" "));
    tracing::info!(
        "report of the recovery: epoch={epoch} start={start} base={} observed={} policy={policy} missing=[{missing}] \
         excluded=[{excluded}] gaps=[{gaps}]",
        report.base,
        report.observed
    );
    Ok(primary)
}

/// A request to stop, from the outside.
pub(crate) async fn signalled() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = tokio::signal::ctrl_c() => {}
                }
                return;
            }
            Err(error) => tracing::warn!(%error, "SIGTERM cannot be caught"),
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

pub(crate) async fn serve(args: ServeArgs) -> Result<ExitCode> {
    let node = tokio::select! {
        node = Node::start(&args) => node?,
        () = signalled() => return Ok(ExitCode::SUCCESS),
    };
    if !args.listen.ip().is_loopback() {
        tracing::warn!(listen = %args.listen, "nothing is authenticated: whoever can reach this may read, write and promote");
    }
    if args.share_open {
        tracing::warn!("--share-open: clients are given what others write, in the clear");
    }
    print(format!("tagalong: serving on {}\n", node.endpoint()));
    let why = tokio::select! {
        why = node.ended() => why,
        () = signalled() => return stop(&args, &node).await,
    };
    match why.code() {
        // An operator's stop, over the network.
        Code::Closed => stop(&args, &node).await,
        Code::Deposed => {
            tracing::error!("{}", why.message());
            let mut events = node.events();
            tokio::select! {
                () = signalled() => {}
                () = async { while events.next().await.is_some() {} } => {}
            }
            stop(&args, &node).await
        }
        _ => {
            // Clients are told before the process goes.
            let _ = node.stop().await;
            Err(why)
        }
    }
}

async fn stop(args: &ServeArgs, node: &Node) -> Result<ExitCode> {
    tracing::info!("stopping");
    let stopped = tokio::select! {
        stopped = tokio::time::timeout(args.stop_within_s, node.stop()) => stopped,
        // Whoever asks twice means it.
        () = signalled() => Ok(Ok(false)),
    };
    match stopped {
        Ok(Ok(true)) => tracing::info!("stopped in good order: the next start needs no roll call"),
        Ok(Ok(false)) if matches!(node, Node::Backup(_)) => tracing::info!("stopped"),
        Ok(Ok(false)) => tracing::warn!("stopped as in a crash: the next start holds a roll call"),
        Ok(Err(error)) => return Err(error),
        Err(_) => tracing::warn!(
            "not everything was stable after {:?}: ended as in a crash, and the next start holds a roll call",
            args.stop_within_s
        ),
    }
    Ok(ExitCode::SUCCESS)
}
