//! What is measured, and how one more experiment is added: a module beside the others, whose `run` takes the [`Plan`] and gives
//! a [`Report`], its `mod` line in `main.rs`, and its name with a line of help in the list below. It has its command then, is
//! part of `all`, and its table, data and plots are written.
//!
//! A module lists its rows with what it takes to measure each, and leaves the turns, the progress and what fails to
//! [`in_turns`]. [`Cell`](crate::service::Cell) and [`measure`](crate::service::measure) do for whatever is loaded by clients.

use std::path::PathBuf;
use std::time::Instant;

use crate::report::{Measured, Report, Row};
use crate::service::System;
use crate::{Result, machine};

macro_rules! experiments {
    ($($(#[$help:meta])* $variant:ident = $module:ident,)*) => {
        /// An experiment, as it is asked for.
        #[derive(clap::Subcommand, Clone, Debug)]
        pub(crate) enum Experiment {
            $($(#[$help])* $variant(Plan),)*
        }

        impl Experiment {
            /// In the order in which `all` runs them.
            const ALL: &[fn(Plan) -> Experiment] = &[$(Experiment::$variant),*];

            fn plan(&self) -> &Plan {
                match self {
                    $(Experiment::$variant(plan) => plan,)*
                }
            }

            async fn measure(&self, plan: &Plan) -> Result<Report> {
                match self {
                    $(Experiment::$variant(_) => crate::$module::run(plan).await,)*
                }
            }
        }
    };
}

experiments! {
    /// Writes beside a bare stream that sends them back, a bare disk, and a bare copy.
    Limit = limit,
    /// Throughput, latency and bytes on the link against the distance of the backup.
    Delay = delay,
    /// Writes that survive a client's loss with the primary's, beside those that need not.
    Covered = covered,
    /// What is lost in a disaster.
    Lost = lost,
    /// How long a takeover takes, by what clients hold.
    Takeover = takeover,
    /// Beside Redis with an asynchronous replica.
    Redis = redis,
    /// A link that loses packets under TCP, in network namespaces.
    Lossy = lossy,
    /// How long a node takes to start on a long log.
    Restart = restart,
    /// What it costs as it grows: idle sessions, manifests, and in a long run loads and what clients hold.
    Growth = growth,
}

/// How much is measured, and where it goes.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Fewer rows, and less of each: all experiments together take about a quarter of an hour.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Where tables, data and plots are written.
    #[arg(long, default_value = "docs/benchmarks")]
    pub(crate) out: PathBuf,
    /// Repeats of every row, instead of the experiment's own choice.
    #[arg(long)]
    repeats: Option<usize>,
    /// Seconds of each that count, instead of the experiment's own choice.
    #[arg(long)]
    seconds: Option<f64>,
    /// Only these systems.
    #[arg(long, value_delimiter = ',')]
    system: Vec<String>,
    /// A program that emulates a wide-area network between network namespaces; needs root. Without it what needs packet loss
    /// under TCP is skipped.
    #[arg(long)]
    pub(crate) wan_tool: Option<PathBuf>,
    /// Of the machine, when this began.
    #[arg(skip)]
    pub(crate) load_average: f64,
}

impl Plan {
    /// One thing in a quick run, another in a long one.
    pub(crate) fn choose<T>(&self, quick: T, long: T) -> T {
        if self.quick { quick } else { long }
    }

    /// How often each row is measured.
    pub(crate) fn repeats(&self, quick: usize, long: usize) -> usize {
        self.repeats.unwrap_or_else(|| self.choose(quick, long)).max(1)
    }

    /// For how long each is measured.
    pub(crate) fn seconds(&self, quick: f64, long: f64) -> f64 {
        self.seconds.unwrap_or_else(|| self.choose(quick, long))
    }

    /// Those that were asked for.
    pub(crate) fn systems(&self, systems: &[System]) -> Vec<System> {
        let asked = |system: &System| self.system.is_empty() || self.system.iter().any(|name| name == system.name());
        systems.iter().copied().filter(asked).collect()
    }
}

/// Runs what was asked for, and writes it down.
pub(crate) async fn run(experiment: Experiment) -> Result<()> {
    let plan = Plan { load_average: machine::load_average(), ..experiment.plan().clone() };
    let report = experiment.measure(&plan).await?;
    report.write(&plan)?;
    println!("# {}\n\n{}", report.title, report.shows_table());
    println!("Written to {}.\n", plan.out.join(report.name).with_extension("md").display());
    match report.failures() {
        0 => Ok(()),
        failures => Err(format!("{failures} measurements of `{}` failed; its page says which", report.name).into()),
    }
}

/// Runs everything; what fails does not stop the rest.
pub(crate) async fn run_all(plan: Plan) -> Result<()> {
    let begun = Instant::now();
    let mut failed = Vec::new();
    for experiment in Experiment::ALL {
        if let Err(error) = run(experiment(plan.clone())).await {
            eprintln!("tagalong-bench: {error}");
            failed.push(error.to_string());
        }
    }
    eprintln!("all of it took {:.0} s", begun.elapsed().as_secs_f64());
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
}

/// Measures every row once, then every row again, so that what the machine does meanwhile meets all alike.
pub(crate) async fn in_turns<C>(
    name: &str,
    repeats: usize,
    rows: Vec<(Row, C)>,
    measure: impl AsyncFn(&C) -> Result<Measured>,
) -> Vec<Row> {
    let (mut rows, cells): (Vec<Row>, Vec<C>) = rows.into_iter().unzip();
    let count = rows.iter().filter(|row| row.skipped.is_none()).count();
    for repeat in 1..=repeats {
        let there = rows.iter_mut().zip(&cells).filter(|(row, _)| row.skipped.is_none());
        for (at, (row, cell)) in there.enumerate() {
            let what = format!("{name}: repeat {repeat} of {repeats}, {} of {count}: {}", at + 1, row.key.join(", "));
            let begun = Instant::now();
            let measured = measure(cell).await;
            let took = begun.elapsed().as_secs_f64();
            match &measured {
                Ok(_) => eprintln!("{what} ({took:.1} s)"),
                Err(error) => {
                    eprintln!("{what} failed: {error}");
                    row.failures.push(error.to_string());
                }
            }
            row.repeats.push(measured.ok());
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn rows_are_measured_in_turns_and_one_that_fails_does_not_stop_the_others() {
        let order = RefCell::new(Vec::new());
        let rows = vec![(Row::new(["a"]), 1), (Row::skipped(["b"], "no root"), 2), (Row::new(["c"]), 3)];
        let rows = in_turns("test", 2, rows, async |cell: &i32| {
            order.borrow_mut().push(*cell);
            if *cell == 1 { Err("broken".into()) } else { Ok(Measured::default()) }
        });
        let rows = rows.await;
        assert_eq!(*order.borrow(), [1, 3, 1, 3]);
        assert_eq!(rows[0].failures, ["broken", "broken"]);
        assert!(rows[0].repeats.iter().all(Option::is_none) && rows[1].repeats.is_empty());
        assert_eq!(rows[2].repeats.iter().flatten().count(), 2);
    }
}
