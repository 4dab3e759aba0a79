//! What it costs that a write survives the loss of one client together with the primary's.

use std::time::Duration;

use crate::Result;
use crate::delay::load_name;
use crate::experiment::{Plan, in_turns};
use crate::load::Shape;
use crate::node::Mode;
use crate::plot::{Kind, Plot};
use crate::report::{Metric, Report, Row, Show, Table};
use crate::service::{Cell, System, measure_row};

const ABOUT: &str = "
64 clients write to a primary beside them, whose backup is 50 ms away and back. `tagged` is the default; `tagged-shared` sends
window shares of others' writes along with the answers; a `covered` write (*f* = 1) is answered when another client has
confirmed what it takes to rebuild it. The primary's status tells the two parts of a covered write's way that a tagged one does
not have: its stripe fills, and is pushed and confirmed.
";

const KEYS: [&str; 2] = ["clients x in flight", "system"];
const METRICS: [Metric; 9] = [
    Metric::new("writes_per_s", "writes/s", 0),
    Metric::new("p50_us", "p50, µs", 0),
    Metric::new("p99_us", "p99, µs", 0),
    Metric::new("fill_us", "a stripe fills in, µs", 0),
    Metric::new("confirm_us", "is confirmed in, µs", 0),
    Metric::new("wan_bytes", "link bytes a write", 0),
    Metric::new("load_cpu_us", "clients' CPU, µs a write", 2),
    Metric::new("primary_cpu_us", "primary's", 2),
    Metric::new("backup_cpu_us", "backup's", 2),
];

const SYSTEMS: [System; 3] =
    [System::Service(Mode::Tagged), System::Service(Mode::TaggedShared), System::Service(Mode::Covered)];
const LOADS: [(u64, usize); 2] = [(64, 8), (64, 1)];

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let systems = plan.systems(&SYSTEMS);
    let mut rows = Vec::new();
    for load in LOADS {
        for system in &systems {
            let (clients, in_flight) = load;
            let (warm_up, seconds) = (plan.choose(0.5, 1.0), plan.seconds(1.0, 5.0));
            let shape = Shape { clients, in_flight, payload: 100, warm_up, seconds, ..Shape::default() };
            let cell = Cell { system: *system, shape, rtt: Duration::from_millis(50), sites: None, connections: None };
            rows.push((Row::new([load_name(load), system.name().to_owned()]), cell));
        }
    }
    let rows = in_turns("covered", plan.repeats(5, 5), rows, measure_row).await;
    let table = Table { title: "64 clients, 100 B".into(), keys: &KEYS, metrics: &METRICS, rows };
    let shows = shows(&table);
    let bar = |row: &Row| Some((row.key.join(", "), row.spread("writes_per_s")?));
    let plot = Plot {
        name: "throughput",
        title: "Throughput, 64 clients, 100 B".into(),
        x: "writes/s",
        y: "",
        kind: Kind::Bars(table.rows.iter().rev().filter_map(bar).collect()),
    };
    Ok(Report {
        name: "covered",
        title: "Covered writes",
        about: ABOUT.into(),
        tables: vec![table],
        shows,
        plots: vec![plot],
    })
}

fn shows(table: &Table) -> Vec<Show> {
    let mut shows = Vec::new();
    for load in LOADS.map(load_name) {
        let row = |system: &str| table.row(&[&load, system]);
        let rows = (row("covered"), row("tagged"));
        shows.push(Show::ratio(format!("covered / tagged, throughput, {load}"), "≥ 0.84", rows, "writes_per_s"));
        let get =
            |figures: &std::collections::BTreeMap<&str, f64>, name| figures.get(name).copied().unwrap_or(f64::NAN);
        let what = format!("covered - tagged, p50, beside fill and confirm, {load}");
        shows.push(Show::of(what, "≤ 1", rows, |covered, tagged| {
            (get(covered, "p50_us") - get(tagged, "p50_us")) / (get(covered, "fill_us") + get(covered, "confirm_us"))
        }));
        let rows = (row("tagged-shared"), row("tagged"));
        shows.push(Show::ratio(format!("tagged-shared / tagged, throughput, {load}"), "", rows, "writes_per_s"));
    }
    shows
}
