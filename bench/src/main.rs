//! Measures tagalong beside other ways of replication, and beside what the machine allows.
//!
//! ```text
//! cargo run --release -p tagalong-bench -- all --quick
//! ```
//!
//! Every measurement is of real processes on real files and sockets, started from this very executable. What is compared is
//! measured in turns, in one run; the figures are medians of the repeats. How an experiment is added says `experiment.rs`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::json;

mod covered;
mod datagrams;
mod delay;
mod disk;
mod experiment;
mod floor;
mod growth;
mod latency;
mod limit;
mod load;
mod lossy;
mod lost;
mod machine;
mod node;
mod pair;
mod plain;
mod plot;
#[path = "../../examples/disaster/process.rs"]
#[allow(dead_code)]
mod process;
mod recovery;
mod redis;
#[path = "../../examples/disaster/relay.rs"]
#[allow(dead_code)]
mod relay;
mod report;
mod restart;
mod service;
mod smfs;
mod table;
mod takeover;
mod tally;
mod usage;
mod wire;

/// What can go wrong in a measurement.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Measures tagalong beside other ways of replication, and beside what the machine allows.
#[derive(Parser, Debug)]
#[command(name = "tagalong-bench")]
struct Arguments {
    /// The network namespace to live in.
    #[arg(long, hide = true)]
    site: Option<String>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Every experiment, one after the other.
    All(experiment::Plan),
    #[command(flatten)]
    One(experiment::Experiment),
    /// How long a takeover takes, with options of its own.
    Recovery(recovery::RecoveryArgs),
    #[command(hide = true)]
    Node(node::NodeArgs),
    #[command(hide = true)]
    Load(load::LoadArgs),
    #[command(hide = true)]
    Echo,
    #[command(hide = true)]
    Holders(recovery::HoldersArgs),
    #[command(hide = true)]
    Senders(recovery::SendersArgs),
    #[command(hide = true)]
    Sink,
    #[command(hide = true)]
    SmfsPrimary(smfs::PrimaryArgs),
    #[command(hide = true)]
    SmfsBackup(smfs::BackupArgs),
}

/// Of every process here, the bare ones too: who serves data at such rates brings an allocator for it.
#[cfg(not(feature = "system-allocator"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
/// It keeps what is free for a second, for who holds and lets go needs it again within a round trip.
const ENVIRONMENT: &[(&str, &str)] = &[("MIMALLOC_PURGE_DELAY", "1000")];

/// Where files go that are measured: a disk, which the temporary folder may not be.
pub(crate) fn scratch() -> PathBuf {
    std::env::var_os("TAGALONG_BENCH_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Where this process is reached.
pub(crate) fn tell_address(address: std::net::SocketAddr) {
    process::tell(&json!({ "event": "listening", "address": address.to_string() }));
}

async fn echo() -> Result<()> {
    let mut orders = process::orders()?;
    let served = plain::serve_echo(tell_address);
    tokio::select! {
        served = served => served,
        obeyed = node::obey(&mut orders) => obeyed,
    }
}

fn main() -> ExitCode {
    relay::sharpen_sleep();
    let arguments = Arguments::parse();
    if let Some(site) = &arguments.site
        && let Err(error) = lossy::enter(site)
    {
        eprintln!("tagalong-bench: {error}");
        return ExitCode::FAILURE;
    }
    let workers = match &arguments.what {
        What::Load(args) => args.threads,
        What::Node(args) => args.workers,
        What::Echo | What::SmfsPrimary(_) | What::SmfsBackup(_) => 1,
        _ => 2,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let ran = runtime.map_err(Failure::from).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.what {
                What::All(plan) => experiment::run_all(plan).await,
                What::One(experiment) => experiment::run(experiment).await,
                What::Node(args) => node::run(args).await,
                What::Load(args) => load::run(args).await,
                What::Echo => echo().await,
                What::Recovery(args) => recovery::run(args).await,
                What::Holders(args) => recovery::run_holders(args).await,
                What::Senders(args) => recovery::run_senders(args).await,
                What::Sink => recovery::run_sink().await,
                What::SmfsPrimary(args) => smfs::run_primary(args).await,
                What::SmfsBackup(args) => smfs::run_backup(args).await,
            }
        })
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tagalong-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
