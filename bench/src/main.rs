//! Measures tagalong beside other ways of replication, and beside what the machine allows.
//!
//! ```text
//! cargo run --release -p tagalong-bench -- limit
//! ```
//!
//! Every measurement is of real processes on real files and sockets, started from this very executable. What is compared is
//! measured in turns, in one run; the figures are medians of the repeats.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::json;

mod datagrams;
mod disk;
mod latency;
mod limit;
mod load;
mod lost;
mod node;
mod plain;
#[path = "../../examples/disaster/process.rs"]
#[allow(dead_code)]
mod process;
#[path = "../../examples/disaster/relay.rs"]
#[allow(dead_code)]
mod relay;
mod service;
mod smfs;
mod table;
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
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Writes beside a bare stream that sends them back.
    Limit(limit::LimitArgs),
    /// What a disaster costs.
    Lost(lost::LostArgs),
    #[command(hide = true)]
    Node(node::NodeArgs),
    #[command(hide = true)]
    Load(load::LoadArgs),
    #[command(hide = true)]
    Echo,
    #[command(hide = true)]
    SmfsPrimary(smfs::PrimaryArgs),
    #[command(hide = true)]
    SmfsBackup(smfs::BackupArgs),
}

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
    let workers = match &arguments.what {
        What::Load(args) => args.threads,
        _ => std::env::var("W").map_or(2, |w| w.parse().unwrap()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let ran = runtime.map_err(Failure::from).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.what {
                What::Limit(args) => limit::run(args).await,
                What::Lost(args) => lost::run(args).await,
                What::Node(args) => node::run(args).await,
                What::Load(args) => load::run(args).await,
                What::Echo => echo().await,
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
