//! The disaster drill: real processes, real files, a link that is cut, a primary that is killed with its folder, and a
//! checker that holds every client's journal against what survived.
//!
//! ```text
//! cargo run --release --example disaster
//! ```
//!
//! `drill.rs` is the story; `checker.rs` says what is checked, `relay.rs` how far away the backup is, `service.rs` who
//! takes part. Exit status: 1 if a mode lost what it promises to keep, 2 if the drill could not be carried out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

mod audit;
mod bystander;
mod checker;
mod client;
mod drill;
mod history;
mod journal;
mod ledger;
#[path = "../../tests/common/linear.rs"]
mod linear;
mod measure;
mod node;
mod process;
mod relay;
mod report;
mod screen;
mod service;
mod source;
mod workload;

use report::{Mode, Setting};
use service::Plan;
use source::Source;

/// What can go wrong in a drill; its text says what was awaited.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
/// The result of everything here.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Writes in flight of a client that is not throttled.
const IN_FLIGHT_AT_FULL_SPEED: usize = 256;

/// Loses a primary's site under load, and shows what that costs in each mode of replication.
#[derive(Parser, Debug)]
#[command(name = "disaster", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The files to store: everything below this folder (without `target` and `.git`) [default: this repository].
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// How many clients.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    clients: u64,
    /// Round trip between primary and backup.
    #[arg(long, default_value_t = 50.0, value_parser = millis)]
    rtt_ms: f64,
    /// Round trip between a client and a node.
    #[arg(long, default_value_t = 1.0, value_parser = millis)]
    client_rtt_ms: f64,
    /// Not all clients are as near: some have a round trip that is longer, by up to so much.
    #[arg(long, default_value_t = 0.0, value_parser = millis)]
    client_spread_ms: f64,
    /// Which ways of replication, with commas between them: async, sync, tagged-unshared, tagged, covered [default: all;
    /// tagged-unshared only where clients are killed].
    #[arg(long, value_parser = modes)]
    mode: Option<Modes>,
    /// How many failure domains `covered` covers for.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    f: u8,
    /// Tagged means tagged-unshared: clients keep no shares for each other.
    #[arg(long)]
    no_shares: bool,
    /// So many processes more that only keep shares.
    #[arg(long, default_value_t = 0, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(..=1000))]
    holders: u64,
    /// So many processes more whose sessions open and close all the time.
    #[arg(long, default_value_t = 0, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(..=1000))]
    churn: u64,
    /// How many bytes of shares each of those takes [default: the library's].
    #[arg(long, value_name = "BYTES")]
    churn_holds: Option<u64>,
    /// How long a stripe waits for more members [default: the library's].
    #[arg(long, value_name = "US")]
    stripe_wait_us: Option<u64>,
    /// So many clients get a SIGKILL together with the primary, and what they held is gone like what the primary had.
    /// Where that is more than the mode covers for, the recovery is concluded without them once it was seen to wait, and
    /// all that is lost has to be named.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    kill_clients: u64,
    /// So many clients more are killed well before the disaster, and what they held is gone: others have taken over what
    /// was needed of it, and these do not count among those that are covered for.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    kill_early: u64,
    /// Clients hold what they wrote in files, as with --client-deaths; those of killed clients are deleted.
    #[arg(long)]
    file_caches: bool,
    /// Seconds of load in each mode, the disaster in the middle [default: 8, and 3 where it is measured].
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// How long before the SIGKILL the link is cut.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    cut_before_ms: u64,
    /// At the SIGKILL the clients' links to the primary go silent, instead of being closed by its kernel.
    #[arg(long)]
    silent: bool,
    /// So many clients (more) get a SIGKILL together with the primary; all clients hold what they wrote in files then, and
    /// these are started again on theirs.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    client_deaths: u64,
    /// The killed clients stay dead: the recovery waits for them, until it is concluded without.
    #[arg(long, requires = "client_deaths")]
    never_back: bool,
    /// Operations a second of each client.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// As many operations as the clients can, instead of a rate.
    #[arg(long)]
    full_speed: bool,
    /// Writes that a client has in flight at once [default: 64, and 256 at full speed].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    in_flight: Option<u64>,
    /// Of the workload.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One object per mode, a line each, and nothing else.
    #[arg(long)]
    json: bool,
    /// Keep everything the processes wrote, in this folder.
    #[arg(long, value_name = "PATH")]
    keep: Option<PathBuf>,
    /// No disaster: measure what the distance costs, at 0 and 100 ms, in all modes; or what coverage costs, with 8 and
    /// with 64 clients; or what sessions that come and go cost.
    #[arg(long, value_name = "WHAT", num_args = 0..=1, default_missing_value = "distance")]
    measure: Option<measure::What>,
    /// How often each case is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    repeats: u64,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What the environment of the drill's own processes says besides.
const ENVIRONMENT: &[(&str, &str)] = &[];

/// What one of the drill's own processes is.
#[derive(Subcommand, Debug)]
enum Part {
    /// A node (for the drill's own use).
    #[command(hide = true)]
    Node(node::NodeArgs),
    /// A client (for the drill's own use).
    #[command(hide = true)]
    Client(client::ClientArgs),
    /// A client that only keeps shares (for the drill's own use).
    #[command(hide = true)]
    Holder(bystander::BystanderArgs),
    /// A client that comes and goes (for the drill's own use).
    #[command(hide = true)]
    Passer(bystander::BystanderArgs),
}

/// Which modes.
#[derive(Clone, Debug)]
struct Modes(Vec<Mode>);

fn modes(text: &str) -> Result<Modes, String> {
    if text == "all" {
        return Ok(Modes(Mode::ALL.to_vec()));
    }
    let mode = |name| Mode::ALL.into_iter().find(|mode| mode.name() == name);
    let modes: Option<Vec<Mode>> = text.split(',').map(mode).collect();
    modes.map(Modes).ok_or_else(|| "all, or some of async, sync, tagged-unshared, tagged, covered".into())
}

impl Arguments {
    /// The modes of a drill.
    fn modes(&self) -> Vec<Mode> {
        let usual = || {
            let unshared = self.kill_clients > 0 || self.no_shares;
            Mode::ALL.into_iter().filter(|mode| *mode != Mode::Unshared || unshared).collect()
        };
        let mut modes = self.mode.clone().map_or_else(usual, |modes| modes.0);
        if self.no_shares {
            modes.iter_mut().filter(|mode| **mode == Mode::Tagged).for_each(|mode| *mode = Mode::Unshared);
            modes.dedup();
        }
        modes
    }

    fn check(&self) -> Result<()> {
        if self.kill_clients + self.client_deaths + self.kill_early > self.clients {
            return Err("more clients are to be killed than there are".into());
        }
        Ok(())
    }
}

fn millis(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, 60_000.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    in_range(text, 1.0, 86_400.0)
}

fn in_range(text: &str, low: f64, high: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (low..=high).contains(&value) { Ok(value) } else { Err(format!("not between {low} and {high}")) }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    relay::sharpen_sleep();
    let result = match arguments.part {
        Some(Part::Node(args)) => be(2, node::run(args)),
        Some(Part::Client(args)) => be(1, client::run(args)),
        Some(Part::Holder(args)) => be(1, bystander::hold(args)),
        Some(Part::Passer(args)) => be(1, bystander::pass_by(args)),
        None => runtime(2).and_then(|runtime| runtime.block_on(until_interrupted(arguments))),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("disaster: {error}");
            ExitCode::from(2)
        }
    }
}

/// One of the drill's own processes.
fn be(threads: usize, part: impl Future<Output = Result<()>>) -> Result<bool> {
    runtime(threads)?.block_on(with_log(part)).map(|()| true)
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    Ok(builder.worker_threads(threads).enable_all().build()?)
}

/// The library's warnings go where the process's last words are looked for.
async fn with_log(part: impl Future<Output = Result<()>>) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    part.await
}

/// The drill, unless somebody stops it: then everything it started is dropped, which ends it.
async fn until_interrupted(arguments: Arguments) -> Result<bool> {
    tokio::select! {
        result = drills(arguments) => result,
        signal = stopped() => Err(signal?.into()),
    }
}

#[cfg(unix)]
async fn stopped() -> Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        result = tokio::signal::ctrl_c() => Ok(result.map(|()| "interrupted")?),
        _ = terminate.recv() => Ok("terminated"),
        _ = hangup.recv() => Ok("nobody is watching any more"),
    }
}

#[cfg(not(unix))]
async fn stopped() -> Result<&'static str> {
    tokio::signal::ctrl_c().await?;
    Ok("interrupted")
}

async fn drills(arguments: Arguments) -> Result<bool> {
    arguments.check()?;
    let root = arguments.dir.clone().unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    let source = Source::walk(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let temporary = tempfile::Builder::new().prefix("tagalong-disaster-").tempdir()?;
    let folder = match &arguments.keep {
        Some(keep) => {
            std::fs::create_dir_all(keep)?;
            keep.canonicalize()?
        }
        None => temporary.path().to_path_buf(),
    };
    let list = folder.join("files.json");
    source.save(&list)?;
    let in_flight = arguments.in_flight.and_then(|in_flight| usize::try_from(in_flight).ok());
    let in_flight = in_flight.unwrap_or(if arguments.full_speed { IN_FLIGHT_AT_FULL_SPEED } else { 64 });
    let plan = |mode: Mode, rtt: Duration| Plan {
        mode,
        folder: folder.join(mode.name()),
        source: list.clone(),
        clients: arguments.clients,
        rtt,
        client_rtt: Duration::from_secs_f64(arguments.client_rtt_ms / 1e3),
        client_spread: Duration::from_secs_f64(arguments.client_spread_ms / 1e3),
        seed: arguments.seed,
        in_flight,
        rate: if arguments.full_speed { 0 } else { arguments.rate },
        load: Duration::from_secs_f64(arguments.seconds.unwrap_or(if arguments.measure.is_some() { 3.0 } else { 8.0 })),
        caches: arguments.client_deaths > 0 || arguments.file_caches,
        careful: arguments.client_deaths + arguments.kill_clients + arguments.kill_early > 0,
        suspend_soon: arguments.kill_early > 0,
        stripe_wait_us: arguments.stripe_wait_us,
        f: arguments.f,
        holders: arguments.holders,
        passers: arguments.churn,
        passers_hold: arguments.churn_holds,
    };
    if let Some(what) = arguments.measure {
        let repeats = usize::try_from(arguments.repeats)?;
        measure::run(what, plan, repeats, arguments.json).await?;
        return Ok(true);
    }
    let setting = Setting {
        clients: arguments.clients,
        rtt_ms: arguments.rtt_ms,
        client_rtt_ms: arguments.client_rtt_ms,
        cut_before_ms: arguments.cut_before_ms,
        killed: usize::try_from(arguments.kill_clients)?,
        holders: arguments.holders,
        passers: arguments.churn,
    };
    if !arguments.json {
        introduce(&arguments, &source)?;
    }
    let mut rows = Vec::new();
    for mode in arguments.modes() {
        let plan = plan(mode, Duration::from_secs_f64(arguments.rtt_ms / 1e3));
        let end = end(&arguments)?;
        let row = drill::run(plan, &source, end, arguments.json).await?;
        if arguments.json {
            println!("{}", row.json(&setting));
        }
        rows.push(row);
    }
    if !arguments.json {
        println!("{}", report::picture(&rows, &setting));
    }
    Ok(rows.iter().all(report::Row::is_good))
}

/// How long the killed clients stay away.
const RETURN_AFTER: Duration = Duration::from_millis(500);

fn end(arguments: &Arguments) -> Result<drill::End> {
    Ok(drill::End {
        cut_before: Duration::from_millis(arguments.cut_before_ms),
        silent: arguments.silent,
        kills: usize::try_from(arguments.kill_clients)?,
        deaths: usize::try_from(arguments.client_deaths)?,
        early: usize::try_from(arguments.kill_early)?,
        return_after: (!arguments.never_back).then_some(RETURN_AFTER),
    })
}

/// What is about to happen, and how long the links really are.
fn introduce(arguments: &Arguments, source: &Source) -> Result<()> {
    let probe = |millis: f64| -> Result<f64> {
        let seen = tokio::task::block_in_place(|| relay::probe(Duration::from_secs_f64(millis / 1e3), 9))?;
        Ok(seen.as_secs_f64() * 1e3)
    };
    let (link, near) = (probe(arguments.rtt_ms)?, probe(arguments.client_rtt_ms)?);
    let skipped = if source.skipped > 0 { format!(", {} skipped", source.skipped) } else { String::new() };
    println!(
        "  {} files, {} KiB{skipped}, from {}\n  links: backup {link:.2} ms, clients {near:.2} ms (measured round trips)\n",
        source.files.len(),
        source.bytes() / 1024,
        source.root.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes_of(arguments: &[&str]) -> Vec<&'static str> {
        let arguments = Arguments::try_parse_from([&["disaster"], arguments].concat()).expect("arguments");
        arguments.modes().into_iter().map(Mode::name).collect()
    }

    #[test]
    fn modes_are_what_was_asked_for() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
        assert_eq!(modes_of(&[]), ["async", "sync", "tagged", "covered"]);
        assert_eq!(modes_of(&["--kill-clients", "1"]), ["async", "sync", "tagged-unshared", "tagged", "covered"]);
        assert_eq!(modes_of(&["--mode", "covered,tagged"]), ["covered", "tagged"]);
        assert_eq!(modes_of(&["--mode", "tagged,covered", "--no-shares"]), ["tagged-unshared", "covered"]);
        assert_eq!(modes_of(&["--no-shares"]), ["async", "sync", "tagged-unshared", "covered"]);
        assert!(modes("covered,").is_err());
    }

    #[test]
    fn nobody_is_killed_twice() {
        let check = |arguments: &[&str]| {
            let arguments = [&["disaster", "--clients", "4"], arguments].concat();
            Arguments::try_parse_from(arguments).expect("arguments").check().is_ok()
        };
        assert!(check(&["--kill-clients", "2", "--client-deaths", "1", "--kill-early", "1"]));
        assert!(!check(&["--kill-clients", "2", "--client-deaths", "2", "--kill-early", "1"]));
    }
}
