//! Throughput and latency against the distance of the backup, as in Figs. 9 to 11 of the SMFS paper, and what travels meanwhile.

use std::time::Duration;

use crate::Result;
use crate::experiment::{Plan, in_turns};
use crate::load::Shape;
use crate::node::Mode;
use crate::plot::{Kind, Plot};
use crate::report::{Metric, Report, Row, Show, Table};
use crate::service::{Cell, System, measure_row};

const ABOUT: &str = "
Clients write at full speed to a primary beside them, whose backup is a link away that delivers everything after a fixed time.
Clients x writes in flight of each: `4 x 64` shows throughput, `1 x 1` latency. A second of load is a second in which writes were
issued; what is held and what travels is seen while they are.

* `sync`, `async`, `tagged` and `covered` (*f* = 1) are this library's levels `Stable`, `Local`, `Tagged` and `Covered`;
  `-logged`: answers wait for the primary's own disk, too. `smfs` is the baseline of network-sync, see `bench/src/smfs.rs`.
* *Held*: bytes in all clients' caches together, those of writes without an answer included. *Held to travelling*: beside
  rate x round trip x payload, which is what they have to hold at least.
* *At an offered rate*: 4 KiB at 5,000 writes a second, and in a long run 100 B at 20,000, from four clients that write when
  the next is due, whatever is in flight; so the machine keeps up, and what is held is what the distance takes.
* *Drained*: from the end of the load until no client holds anything, less one round trip.
";

const KEYS: [&str; 4] = ["clients x in flight", "payload, B", "one-way delay, ms", "system"];
const METRICS: [Metric; 11] = [
    Metric::new("writes_per_s", "writes/s", 0),
    Metric::new("p50_us", "p50, µs", 0),
    Metric::new("p99_us", "p99, µs", 0),
    Metric::new("wan_per_payload", "link bytes a payload byte", 3),
    Metric::new("held_most_kib", "held at most, KiB", 0),
    Metric::new("held_most_to_travelling", "held at most to travelling", 2),
    Metric::new("drained_past_rtt_s", "drained, s", 3),
    Metric::new("load_cpu_us", "clients' CPU, µs a write", 2),
    Metric::new("primary_cpu_us", "primary's", 2),
    Metric::new("backup_cpu_us", "backup's", 2),
    Metric::new("overrun", "datagrams the machine dropped", 0),
];

/// What is seen at an offered rate.
const HELD_KEYS: [&str; 3] = ["payload, B", "offered, writes/s", "one-way delay, ms"];
const HELD_METRICS: [Metric; 8] = [
    Metric::new("writes_per_s", "writes/s", 0),
    Metric::new("p50_us", "p50, µs", 0),
    Metric::new("p99_us", "p99, µs", 0),
    Metric::new("held_most_kib", "held at most, KiB", 0),
    Metric::new("held_most_to_travelling", "held at most to travelling", 2),
    Metric::new("held_mean_to_travelling", "held to travelling, mean", 2),
    Metric::new("drained_past_rtt_s", "drained, s", 3),
    Metric::new("overdue", "due and not issued", 0),
];
/// Payloads, and about a third of what two cores write of them at full speed.
const OFFERED: [(usize, u32); 2] = [(4096, 5_000), (100, 20_000)];
const HELD_DELAYS: [u64; 2] = [10, 50];
/// Nobody is to wait for answers.
const OFFERED_IN_FLIGHT: usize = 4096;

const BASE: [System; 5] = [
    System::Service(Mode::Sync),
    System::Service(Mode::Async),
    System::Smfs,
    System::Service(Mode::Tagged),
    System::Service(Mode::Covered),
];
const LOGGED: [System; 4] = [
    System::Service(Mode::SyncLogged),
    System::Service(Mode::AsyncLogged),
    System::SmfsLogged,
    System::Service(Mode::TaggedLogged),
];
const LOADS: [(u64, usize); 2] = [(4, 64), (1, 1)];

pub(crate) fn load_name((clients, in_flight): (u64, usize)) -> String {
    format!("{clients} x {in_flight}")
}

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let delays: &[u64] = plan.choose(&[0, 10, 50], &[0, 5, 10, 25, 50, 100]);
    let payloads: &[usize] = plan.choose(&[4096], &[100, 4096]);
    let mut systems = BASE.to_vec();
    systems.extend(plan.choose(&[][..], &LOGGED[..]));
    let systems = plan.systems(&systems);
    let mut rows = Vec::new();
    for load in LOADS {
        for payload in payloads {
            for delay in delays {
                for system in &systems {
                    let key = [load_name(load), payload.to_string(), delay.to_string(), system.name().to_owned()];
                    let cell = cell(plan, *system, load, *payload, Duration::from_millis(2 * delay));
                    // Nobody else is there who could hold anything.
                    let alone = *system == System::Service(Mode::Covered) && load.0 == 1;
                    let row = if alone { Row::skipped(key, "one client cannot cover itself") } else { Row::new(key) };
                    rows.push((row, cell));
                }
            }
        }
    }
    let rows = in_turns("delay", plan.repeats(5, 5), rows, measure_row).await;
    let table = Table { title: "By distance".into(), keys: &KEYS, metrics: &METRICS, rows };
    let held = held(plan).await;
    let mut shows = shows(&table, payloads, delays);
    for row in &held.rows {
        let [payload, rate, delay] = &row.key[..] else { continue };
        let what = format!("tagged, held at most to travelling, {payload} B at {rate} writes/s, {delay} ms one way");
        shows.push(Show::figure(what, "≤ 2", Some(row), "held_most_to_travelling"));
    }
    let plots = plots(&table, payloads, delays, &systems);
    Ok(Report {
        name: "delay",
        title: "Against the distance of the backup",
        about: ABOUT.into(),
        tables: vec![table, held],
        shows,
        plots,
    })
}

/// What clients hold where the machine is not what limits them.
async fn held(plan: &Plan) -> Table {
    let mut rows = Vec::new();
    for system in plan.systems(&[System::Service(Mode::Tagged)]) {
        for (payload, rate) in OFFERED.into_iter().take(plan.choose(1, 2)) {
            for delay in HELD_DELAYS {
                let key = [payload.to_string(), rate.to_string(), delay.to_string()];
                let mut cell = cell(plan, system, (4, OFFERED_IN_FLIGHT), payload, Duration::from_millis(2 * delay));
                cell.shape.rate = f64::from(rate);
                rows.push((Row::new(key), cell));
            }
        }
    }
    let rows = in_turns("delay, at an offered rate", plan.repeats(5, 5), rows, measure_row).await;
    Table { title: "`tagged` at an offered rate".into(), keys: &HELD_KEYS, metrics: &HELD_METRICS, rows }
}

fn cell(plan: &Plan, system: System, (clients, in_flight): (u64, usize), payload: usize, rtt: Duration) -> Cell {
    let warm_up = plan.choose(0.3, 1.0) + 2.0 * rtt.as_secs_f64();
    let shape = Shape { clients, in_flight, payload, warm_up, seconds: plan.seconds(0.7, 4.0), ..Shape::default() };
    Cell { system, shape, rtt, sites: None, connections: None }
}

fn shows(table: &Table, payloads: &[usize], delays: &[u64]) -> Vec<Show> {
    let row = |load: (u64, usize), payload: usize, delay: u64, system: &str| {
        table.row(&[&load_name(load), &payload.to_string(), &delay.to_string(), system])
    };
    let [many, one] = LOADS;
    let mut shows = Vec::new();
    for &payload in payloads {
        for &delay in delays {
            let at = format!("{payload} B, {delay} ms one way");
            let pair = |load| (row(load, payload, delay, "tagged"), row(load, payload, delay, "async"));
            shows.push(Show::ratio(
                format!("tagged / async, throughput, 4 x 64, {at}"),
                "≥ 0.95",
                pair(many),
                "writes_per_s",
            ));
            shows.push(Show::ratio(format!("tagged / async, p50, 4 x 64, {at}"), "≤ 1.05", pair(many), "p50_us"));
            shows.push(Show::ratio(format!("tagged / async, p50, 1 x 1, {at}"), "≤ 1.05", pair(one), "p50_us"));
        }
        for &delay in delays.iter().filter(|delay| **delay > 0) {
            // What the other makes of the same link says what of it is the link's own.
            for (system, bar) in [("tagged", "0.95 to 1.05"), ("async", "")] {
                let rows = (row(many, payload, delay, system), row(many, payload, 0, system));
                let what = format!("{system}, throughput, {payload} B, at {delay} ms one way / at 0 ms");
                shows.push(Show::ratio(what, bar, rows, "writes_per_s"));
            }
        }
        let rows = (row(one, payload, 50, "tagged"), row(one, payload, 50, "sync"));
        let what = format!("tagged / sync, throughput, 1 x 1, {payload} B, 50 ms one way");
        shows.push(Show::ratio(what, "≥ 100", rows, "writes_per_s"));
        for &delay in delays.iter().filter(|delay| **delay > 0) {
            let row = row(many, payload, delay, "tagged");
            let what = format!("tagged, held at most to travelling, {payload} B, {delay} ms one way");
            shows.push(Show::figure(what, "≤ 2", row, "held_most_to_travelling"));
            let what = format!("tagged, drained, s past one round trip, {payload} B, {delay} ms one way");
            shows.push(Show::figure(what, "≤ 2", row, "drained_past_rtt_s"));
        }
        for system in ["async", "smfs", "tagged"] {
            let what = format!("{system}, link bytes a payload byte, 4 x 64, {payload} B, 10 ms one way");
            shows.push(Show::figure(what, "", row(many, payload, 10, system), "wan_per_payload"));
        }
    }
    shows
}

fn plots(table: &Table, payloads: &[usize], delays: &[u64], systems: &[System]) -> Vec<Plot> {
    let Some(payload) = payloads.last() else { return Vec::new() };
    let lines = |load: (u64, usize), metric: &str| {
        let line = |system: &System| {
            let point = |delay: &u64| {
                let key = [&load_name(load), &payload.to_string(), &delay.to_string(), system.name()];
                #[expect(clippy::cast_precision_loss, reason = "milliseconds of a plot")]
                let x = *delay as f64;
                Some((x, table.row(&key)?.spread(metric)?))
            };
            (system.name().to_owned(), delays.iter().filter_map(point).collect::<Vec<_>>())
        };
        Kind::Lines(systems.iter().map(line).filter(|(_, points)| !points.is_empty()).collect())
    };
    let plot = |name, what: &str, load, y, metric| Plot {
        name,
        title: format!("{what}, {payload} B, {} in flight", load_name(load)),
        x: "one-way delay, ms",
        y,
        kind: lines(load, metric),
    };
    let [many, one] = LOADS;
    vec![
        plot("throughput", "Throughput", many, "writes/s", "writes_per_s"),
        plot("throughput-one", "Throughput", one, "writes/s", "writes_per_s"),
        plot("latency", "Median latency", many, "µs", "p50_us"),
        plot("latency-one", "Median latency", one, "µs", "p50_us"),
    ]
}
