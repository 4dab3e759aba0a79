//! Writes beside a bare stream that sends them back: what the log, the order, the tags and the backup cost.

use std::time::Duration;

use crate::Result;
use crate::load::Shape;
use crate::node::Mode;
use crate::service::{Cell, Outcome, System, measure};
use crate::table::{self, Spread};

/// What is compared.
#[derive(clap::Args, Debug)]
pub(crate) struct LimitArgs {
    #[command(flatten)]
    shape: Shape,
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Ways of replication, beside the echo and the baseline.
    #[arg(long, value_delimiter = ',', default_value = "async,sync,tagged-unshared,tagged,covered")]
    mode: Vec<Mode>,
    /// Round trip to the backup.
    #[arg(long, default_value_t = 0)]
    rtt_ms: u64,
}

const HEAD: [&str; 9] = [
    "system",
    "writes/s",
    "p50 µs",
    "p99 µs",
    "load, CPU µs a write",
    "primary",
    "backup",
    "WAN bytes a write",
    "held at most, KiB",
];

pub(crate) async fn run(args: LimitArgs) -> Result<()> {
    let systems = [System::Echo, System::EchoBatched, System::Smfs];
    let systems: Vec<System> = systems.into_iter().chain(args.mode.iter().copied().map(System::Service)).collect();
    let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); systems.len()];
    for _ in 0..args.repeats {
        for (system, outcomes) in systems.iter().zip(&mut outcomes) {
            let cell = Cell { system: *system, shape: args.shape.clone(), rtt: Duration::from_millis(args.rtt_ms) };
            outcomes.push(measure(&cell).await?);
        }
    }
    let rows: Vec<_> = systems.iter().zip(&outcomes).map(|(system, outcomes)| row(*system, outcomes)).collect();
    table::print(&HEAD, &rows);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn row(system: System, outcomes: &[Outcome]) -> Vec<String> {
    let spread = |of: fn(&Outcome) -> f64| Spread::of(outcomes.iter().map(of));
    vec![
        system.name().to_owned(),
        spread(|outcome| outcome.figure("writes_per_s")).show(0),
        spread(|outcome| outcome.figure("p50_us")).show(0),
        spread(|outcome| outcome.figure("p99_us")).show(0),
        spread(|outcome| outcome.figure("cpu_us") / outcome.writes()).show(2),
        spread(|outcome| outcome.primary_us as f64 / outcome.writes()).show(2),
        spread(|outcome| outcome.backup_us as f64 / outcome.writes()).show(2),
        spread(|outcome| outcome.wan as f64 / outcome.writes()).show(0),
        spread(|outcome| outcome.figure("held_most") / 1024.0).show(0),
    ]
}
