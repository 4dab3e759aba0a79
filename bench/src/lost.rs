//! What a disaster costs: the primary is killed under load, and every acknowledged write is looked for at the backup.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Result;
use crate::datagrams::{Loss, overrun};
use crate::experiment::{Plan, in_turns};
use crate::load::Shape;
use crate::node::Mode;
use crate::report::{Measured, Metric, Report, Row, Show, Table};
use crate::service::{Cell, Service, System};

const ABOUT: &str = "
Eight clients with eight writes of 4 KiB in flight each write at full speed; the backup is 50 ms away and back. Then the primary
is killed and never comes back, the backup takes over, and is asked for every write that was acknowledged to a client.

* As in Fig. 6 of the SMFS paper the link loses datagrams, in bursts of four on average, in the half second before. What is on
  the link when the primary is killed arrives. Datagrams are `smfs`'s alone here: a stream over TCP sends again what is lost, and
  arrives later; packets lost under TCP are another experiment, `lossy`.
* And beyond it: the link is down for a while before, so that nothing arrives, and neither end is told.
* *Delta*: what the primary had and the backup had not, when it was killed, as its status told. Its bound is 1 GiB by default;
  then writes wait, which is the back-pressure.
* A quick run leaves out the link that loses nothing, the smaller losses, and the longer cuts, of 10 s and of a minute.
* *Served again*: from the promotion until every write that was in flight has an answer.
";

/// Before the disaster.
const LOSSY: Duration = Duration::from_millis(500);
/// Datagrams that are lost in a row, on average.
const BURST: f64 = 4.0;
const RTT: Duration = Duration::from_millis(50);

const KEYS: [&str; 2] = ["before the primary is killed", "system"];
const METRICS: [Metric; 7] = [
    Metric::new("acknowledged", "acknowledged", 0),
    Metric::new("lost", "of these lost", 0),
    Metric::new("last_writes_per_s", "writes/s before the kill", 0),
    Metric::new("delta_mib", "delta, MiB", 1),
    Metric::new("waiting_writes", "writes that wait", 0),
    Metric::new("served_s", "served again, s", 2),
    Metric::new("overrun", "datagrams the machine dropped", 0),
];

const SYSTEMS: [System; 5] = [
    System::Service(Mode::Sync),
    System::Service(Mode::Async),
    System::Smfs,
    System::Service(Mode::Tagged),
    System::Service(Mode::Covered),
];

/// What happens before the primary is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Loss(f64),
    Down(u64),
}

impl Before {
    fn name(self) -> String {
        match self {
            Self::Loss(percent) => format!("{percent} % of datagrams lost"),
            Self::Down(seconds) => format!("link down for {seconds} s"),
        }
    }
}

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let quick = [Before::Loss(1.0), Before::Down(1)];
    let long = [0.0, 0.1, 0.5, 1.0].map(Before::Loss).into_iter().chain([1, 10, 60].map(Before::Down));
    let cases = plan.choose(quick.to_vec(), long.collect());
    let systems = plan.systems(&SYSTEMS);
    let mut rows = Vec::new();
    for before in &cases {
        for system in &systems {
            rows.push((Row::new([before.name(), system.name().to_owned()]), (*system, *before)));
        }
    }
    let rows = in_turns("lost", plan.repeats(5, 5), rows, async |(system, before): &(System, Before)| {
        disaster(*system, *before).await
    });
    let table = Table { title: "Disasters".into(), keys: &KEYS, metrics: &METRICS, rows: rows.await };
    let shows = shows(&table, &cases, &systems);
    Ok(Report {
        name: "lost",
        title: "What a disaster costs",
        about: ABOUT.into(),
        tables: vec![table],
        shows,
        plots: Vec::new(),
    })
}

fn shows(table: &Table, cases: &[Before], systems: &[System]) -> Vec<Show> {
    let mut shows = Vec::new();
    for before in cases {
        for system in systems {
            let bar = match system {
                System::Service(Mode::Sync | Mode::Tagged | Mode::Covered) => "0",
                System::Smfs if matches!(before, Before::Down(_)) => "some",
                _ => "",
            };
            let what = format!("{}, lost, {}", system.name(), before.name());
            shows.push(Show::figure(what, bar, table.row(&[&before.name(), system.name()]), "lost"));
        }
    }
    shows
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn disaster(system: System, before: Before) -> Result<Measured> {
    let shape = Shape { clients: 8, in_flight: 8, payload: 4096, warm_up: 1.0, seconds: 600.0, ..Shape::default() };
    let cell = Cell { system, shape, rtt: RTT, sites: None, connections: None };
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let dropped = overrun();
    let mut service = Service::start(&cell, folder.path()).await?;
    service.begin().await?;
    let wait = match before {
        Before::Loss(percent) => {
            service.lose(Loss { rate: percent / 100.0, burst: BURST });
            LOSSY
        }
        Before::Down(seconds) => {
            service.cut();
            Duration::from_secs(seconds)
        }
    };
    // The rate of the last half second, in which back-pressure shows.
    tokio::time::sleep(wait.saturating_sub(LOSSY)).await;
    let acked = service.acked();
    let measured_from = Instant::now();
    tokio::time::sleep(LOSSY).await;
    let rate = (service.acked() - acked) as f64 / measured_from.elapsed().as_secs_f64();
    let status = service.status().await?;
    let loss = service.lose_primary().await?;
    let mut figures = BTreeMap::from([
        ("acknowledged", loss.acknowledged as f64),
        ("lost", loss.missing as f64),
        ("last_writes_per_s", rate),
        ("overrun", (overrun() - dropped) as f64),
    ]);
    figures.extend(loss.served.map(|served| ("served_s", served.as_secs_f64())));
    let count = |name: &str| status[name].as_u64().map(|count| count as f64);
    figures.extend(count("delta_bytes").map(|bytes| ("delta_mib", bytes / f64::from(1 << 20))));
    figures.extend(count("waiting_writes").map(|writes| ("waiting_writes", writes)));
    Ok(Measured { figures, raw: json!({ "status": status, "load": loss.load }) })
}
