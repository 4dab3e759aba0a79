//! How long a takeover takes, by what the clients hold and how many they are.

use serde_json::json;

use crate::Result;
use crate::experiment::{Plan, in_turns};
use crate::node::Mode;
use crate::plot::{Kind, Plot};
use crate::recovery::{Fill, once};
use crate::report::{Measured, Metric, Report, Row, Show, Table};

const ABOUT: &str = "
The link to the backup is cut, clients fill their caches with writes of 4 KiB, the primary is killed, and the backup promoted. It
is open when all that was acknowledged is in its log, and on its disk. Beside it, as many bytes from as many clients over a bare
stream, and as many appended to a file and synced. Before each of them as much memory as it takes was used and freed, because a
virtual machine may have to ask its host for memory that is new to it, at seconds a GiB.
";

const KEYS: [&str; 2] = ["MiB", "clients"];
const METRICS: [Metric; 7] = [
    Metric::new("open_s", "open, s", 3),
    Metric::new("write_s", "first write, s", 3),
    Metric::new("transfer_s", "bare transfer, s", 3),
    Metric::new("append_s", "bare append, s", 3),
    Metric::new("open_to_bare", "open / slower bare", 1),
    Metric::new("cpu_s", "node's CPU, s", 3),
    Metric::new("entries_per_s", "entries/s", 0),
];
const PAYLOAD: usize = 4096;
/// What is to be within a second, and what within twice the bare figure.
const SMALL: (u64, u64) = (4, 40);
const LARGE: (u64, u64) = (1024, 16);

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let quick: &[(u64, u64)] = &[SMALL, (64, 16), LARGE];
    let long = &[(1, 1), SMALL, (16, 16), (64, 1), (64, 16), (64, 1000), (256, 16), (1024, 1), LARGE, (1024, 1000)];
    let cells = plan.choose(quick, long);
    let rows = cells.iter().map(|(mib, clients)| (Row::new([mib.to_string(), clients.to_string()]), (*mib, *clients)));
    let rows = in_turns("takeover", plan.repeats(5, 5), rows.collect(), async |(mib, clients): &(u64, u64)| {
        let writes = (mib << 20) / clients / PAYLOAD as u64;
        measure(Fill { mode: Mode::Tagged, clients: *clients, payload: PAYLOAD, writes }).await
    });
    let table = Table { title: "Takeovers".into(), keys: &KEYS, metrics: &METRICS, rows: rows.await };
    let row = |(mib, clients): (u64, u64)| table.row(&[&mib.to_string(), &clients.to_string()]);
    let what = |(mib, clients), what: &str| format!("{what}, {mib} MiB from {clients} clients");
    let shows = vec![
        Show::figure(what(LARGE, "open / slower bare figure"), "≤ 2", row(LARGE), "open_to_bare"),
        Show::figure(what(SMALL, "open, s"), "≤ 1", row(SMALL), "open_s"),
    ];
    let bar = |row: &Row| Some((row.key.join(" MiB, ") + " clients", row.spread("open_s")?));
    let kind = Kind::Bars(table.rows.iter().rev().filter_map(bar).collect());
    let plot = Plot { name: "open", title: "Until the backup serves".into(), x: "s", y: "", kind };
    Ok(Report {
        name: "takeover",
        title: "Takeover",
        about: ABOUT.into(),
        tables: vec![table],
        shows,
        plots: vec![plot],
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn measure(fill: Fill) -> Result<Measured> {
    let done = once(0, fill).await?;
    let (transfer_s, append_s) = (done.transfer.as_secs_f64(), done.append.as_secs_f64());
    let open_s = done.open.as_secs_f64();
    let figures = [
        ("open_s", open_s),
        ("write_s", done.write.as_secs_f64()),
        ("transfer_s", transfer_s),
        ("append_s", append_s),
        ("open_to_bare", open_s / transfer_s.max(append_s)),
        ("cpu_s", done.cpu_s),
        ("entries_per_s", fill.entries() as f64 / open_s),
    ];
    Ok(Measured { figures: figures.into(), raw: json!({ "decoded": done.decoded }) })
}
