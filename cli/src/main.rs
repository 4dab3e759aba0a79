//! The command `tagalong`: what operators do with the nodes of a service, a key-value client, and a node that serves
//! a key-value store.
//!
//! What a program reads goes to stdout, and only that; what a person reads to stderr. Exit status: 0 done, 1 not done
//! (the message says what to do), 2 a call that makes no sense.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tagalong::log::{ClientId, GapPolicy, Level};
use tagalong::node::RecoveryPolicy;
use tagalong::{Code, Error, ErrorKind, Result};

mod hold;
mod kv;
mod operate;
mod serve;
mod share_key;
mod status;

/// Watch, promote and resolve the nodes of a tagalong service; read and write its key-value store; serve one.
#[derive(Parser)]
#[command(name = "tagalong", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what nodes are doing: role, epoch, watermarks, the delta, sessions; in recovery who and what is awaited.
    Status(status::StatusArgs),
    /// Make a backup the primary, after a disaster.
    Promote(operate::PromoteArgs),
    /// Conclude a running recovery now, without those who are missing.
    Resolve(operate::ResolveArgs),
    /// Drop what a client reported to a running recovery, and do not wait for it.
    Exclude(operate::ClientArgs),
    /// End a session: its replies are dropped, the outcome of what it left open is unknown.
    EndSession(operate::ClientArgs),
    /// Stop a node in good order.
    Stop(operate::StopArgs),
    /// Read and write the key-value store.
    #[command(subcommand)]
    Kv(kv::KvCommands),
    /// Keep shares for others: one more failure domain for what is covered.
    Hold(hold::HoldArgs),
    /// Write a new secret under which clients keep shares for each other.
    ShareKey(share_key::ShareKeyArgs),
    /// Run a node: a primary, or with --follow its backup.
    Serve(Box<serve::ServeArgs>),
}

/// A durability level, as a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LevelArg {
    /// Survives what the primary's disk survives.
    Local,
    /// Survives the loss of the primary, while the writing clients live or kept their cache.
    Tagged,
    /// Survives the loss of the primary, and with it of as many failure domains of clients as the service says.
    Covered,
    /// Survives the loss of the primary and of every client.
    Stable,
}

impl From<LevelArg> for Level {
    fn from(level: LevelArg) -> Self {
        match level {
            LevelArg::Local => Level::Local,
            LevelArg::Tagged => Level::Tagged,
            LevelArg::Covered => Level::Covered,
            LevelArg::Stable => Level::Stable,
        }
    }
}

/// What becomes of the entries that nothing supplies, as a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GapArg {
    /// The log ends before the first one that is missing.
    Stop,
    /// Later ones are kept where the state machine says that they do not depend on what is missing.
    Skip,
}

impl From<GapArg> for GapPolicy {
    fn from(gaps: GapArg) -> Self {
        match gaps {
            GapArg::Stop => GapPolicy::Stop,
            GapArg::Skip => GapPolicy::Skip,
        }
    }
}

/// `Conclude`, or without gaps `Wait`.
fn policy(gaps: Option<GapArg>, soft: Duration, hard: Duration) -> RecoveryPolicy {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    match gaps {
        None => RecoveryPolicy::Wait,
        Some(gaps) => RecoveryPolicy::Conclude { gaps: gaps.into(), soft_us: micros(soft), hard_us: micros(hard) },
    }
}

/// An endpoint; the scheme may be left out.
fn parse_endpoint(text: &str) -> Result<String, String> {
    let endpoint = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let host = endpoint.strip_prefix("http://").ok_or("nothing but http:// is spoken in this version")?;
    match host.trim_end_matches('/').rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(endpoint),
        _ => Err("give http://host:port".to_owned()),
    }
}

/// A client's identity, in hex as `status` prints it.
fn parse_client(text: &str) -> Result<ClientId, String> {
    u128::from_str_radix(text, 16).map(ClientId).map_err(|_| "give the client's id in hex, as status prints it".into())
}

/// A time in seconds, with decimals.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give seconds, such as 30 or 0.5")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// What a program reads. A reader that went away (`| head`) ends the command quietly.
fn print(text: impl AsRef<[u8]>) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_ref()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// What to do about an error of this kind.
fn advice(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Retry => "try the same again",
        ErrorKind::Rediscover => "ask the other nodes: `tagalong status ENDPOINT...` shows which one serves",
        ErrorKind::BackOff => "try again later: something has to drain or come back first",
        ErrorKind::FixCall => "the call has to change",
        _ => "somebody has to look: trying again will not help",
    }
}

fn log_to_stderr(default: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Status(args) => status::status(args).await,
        Command::Promote(args) => operate::promote(args).await,
        Command::Resolve(args) => operate::resolve(args).await,
        Command::Exclude(args) => operate::exclude(args).await,
        Command::EndSession(args) => operate::end_session(args).await,
        Command::Stop(args) => operate::stop(args).await,
        Command::Kv(command) => kv::run(command).await,
        Command::Hold(args) => hold::hold(args).await,
        Command::ShareKey(args) => share_key::share_key(&args),
        Command::Serve(args) => serve::serve(*args).await,
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    log_to_stderr(if matches!(command, Command::Serve(_) | Command::Hold(_)) { "info" } else { "warn" });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::from);
    match runtime.and_then(|runtime| runtime.block_on(run(command))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}\n  {}", advice(&error));
            ExitCode::from(if error.code() == Code::InvalidArgument { 2 } else { 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoints_and_clients_and_seconds() {
        assert_eq!(parse_endpoint("127.0.0.1:7000").as_deref(), Ok("http://127.0.0.1:7000"));
        assert_eq!(parse_endpoint("http://[::1]:7000").as_deref(), Ok("http://[::1]:7000"));
        for wrong in ["", "127.0.0.1", "127.0.0.1:", ":7000", "host:0", "host:70000", "https://host:1"] {
            assert!(parse_endpoint(wrong).is_err(), "{wrong}");
        }
        let id = ClientId(0xfeed_0000_0000_0000_0000_0000_0000_0001);
        assert_eq!(parse_client(&id.to_string()), Ok(id));
        assert!(parse_client("rack-1").is_err());
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(parse_seconds("-1").is_err() && parse_seconds("soon").is_err());
    }
}
