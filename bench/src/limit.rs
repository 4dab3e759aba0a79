//! Writes beside what the machine allows: a bare stream that sends them back, a bare disk, a bare copy.

use std::time::Duration;

use crate::delay::load_name;
use crate::experiment::{Plan, in_turns};
use crate::load::Shape;
use crate::node::Mode;
use crate::plot::{Kind, Plot};
use crate::report::{Metric, Report, Row, Show, Table};
use crate::service::{Cell, System, measure_row};
use crate::{Result, floor};

const ABOUT: &str = "
The backup is next door, and all processes share this machine, so what is measured is work. `echo` is a bare bidirectional stream
of gRPC on which every write comes back in a message of its own; `echo-batched` carries what has gathered in one message. Both
have no log, no order, no backup, and the library's own transport settings. Clients x writes in flight of each: `4 x 64`, and
`1 x 1` for latency.
";

const KEYS: [&str; 3] = ["clients x in flight", "payload, B", "system"];
const METRICS: [Metric; 8] = [
    Metric::new("writes_per_s", "writes/s", 0),
    Metric::new("p50_us", "p50, µs", 0),
    Metric::new("p99_us", "p99, µs", 0),
    Metric::new("load_cpu_us", "clients' CPU, µs a write", 2),
    Metric::new("primary_cpu_us", "server's", 2),
    Metric::new("backup_cpu_us", "backup's", 2),
    Metric::new("wan_bytes", "link bytes a write", 0),
    Metric::new("overrun", "datagrams the machine dropped", 0),
];

const BASE: [System; 7] = [
    System::Echo,
    System::EchoBatched,
    System::Smfs,
    System::Service(Mode::Async),
    System::Service(Mode::Sync),
    System::Service(Mode::Tagged),
    System::Service(Mode::Covered),
];
const MORE: [System; 5] = [
    System::SmfsLogged,
    System::Service(Mode::AsyncLogged),
    System::Service(Mode::SyncLogged),
    System::Service(Mode::TaggedLogged),
    System::Service(Mode::TaggedShared),
];
const LOADS: [(u64, usize); 2] = [(4, 64), (1, 1)];
const PAYLOADS: [usize; 2] = [100, 4096];

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let mut systems = BASE.to_vec();
    systems.extend(plan.choose(&[][..], &MORE[..]));
    let systems = plan.systems(&systems);
    let mut rows = Vec::new();
    for load in LOADS {
        for payload in PAYLOADS {
            for system in &systems {
                let (clients, in_flight) = load;
                let (warm_up, seconds) = (plan.choose(0.3, 1.0), plan.seconds(0.7, 4.0));
                let shape = Shape { clients, in_flight, payload, warm_up, seconds, ..Shape::default() };
                let cell = Cell { system: *system, shape, rtt: Duration::ZERO, sites: None, connections: None };
                let key = [load_name(load), payload.to_string(), system.name().to_owned()];
                let alone = *system == System::Service(Mode::Covered) && clients == 1;
                let row = if alone { Row::skipped(key, "one client cannot cover itself") } else { Row::new(key) };
                rows.push((row, cell));
            }
        }
    }
    let repeats = plan.repeats(5, 5);
    let rows = in_turns("limit", repeats, rows, measure_row).await;
    let table = Table { title: "Writes".into(), keys: &KEYS, metrics: &METRICS, rows };
    let floors = floor::measure(plan, repeats).await;
    let (shows, plots) = (shows(&table, &floors), plots(&table, &systems));
    let tables = vec![table, floors];
    Ok(Report { name: "limit", title: "Beside what the machine allows", about: ABOUT.into(), tables, shows, plots })
}

fn shows(table: &Table, floors: &Table) -> Vec<Show> {
    let row = |load, payload: usize, system: &str| table.row(&[&load_name(load), &payload.to_string(), system]);
    let [many, one] = LOADS;
    let mut shows = Vec::new();
    for payload in PAYLOADS {
        let tagged = row(many, payload, "tagged");
        for (system, bar) in [("echo", "≥ 0.5"), ("echo-batched", ""), ("async", "≥ 0.95"), ("smfs", "")] {
            let what = format!("tagged / {system}, throughput, 4 x 64, {payload} B");
            shows.push(Show::ratio(what, bar, (tagged, row(many, payload, system)), "writes_per_s"));
        }
        let floor = floors.row(&["fdatasync of 256", &payload.to_string()]);
        let what = format!("tagged / append and fdatasync of 256 at once, throughput, 4 x 64, {payload} B");
        shows.push(Show::ratio(what, "", (tagged, floor), "writes_per_s"));
        for (system, bar) in [("echo", "≤ 1.4"), ("async", "≤ 1.05")] {
            let what = format!("tagged / {system}, p50, 1 x 1, {payload} B");
            let rows = (row(one, payload, "tagged"), row(one, payload, system));
            shows.push(Show::ratio(what, bar, rows, "p50_us"));
        }
    }
    shows
}

fn plots(table: &Table, systems: &[System]) -> Vec<Plot> {
    let plot = |name, load, payload: usize, metric, title: &str, x| {
        let bar = |system: &System| {
            let row = table.row(&[&load_name(load), &payload.to_string(), system.name()])?;
            Some((system.name().to_owned(), row.spread(metric)?))
        };
        let title = format!("{title}, {payload} B, {} in flight", load_name(load));
        // Drawn from below.
        Plot { name, title, x, y: "", kind: Kind::Bars(systems.iter().rev().filter_map(bar).collect()) }
    };
    let [many, one] = LOADS;
    vec![
        plot("small", many, 100, "writes_per_s", "Throughput", "writes/s"),
        plot("large", many, 4096, "writes_per_s", "Throughput", "writes/s"),
        plot("small-one", one, 100, "p50_us", "Median latency", "µs"),
        plot("large-one", one, 4096, "p50_us", "Median latency", "µs"),
    ]
}
