//! What nobody can be faster than: a file that is appended to and synced, a copy, a checksum.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Result;
use crate::experiment::{Plan, in_turns};
use crate::latency::Latencies;
use crate::report::{Measured, Metric, Row, Table};

const KEYS: [&str; 2] = ["floor", "payload, B"];
const METRICS: [Metric; 3] = [
    Metric::new("writes_per_s", "payloads/s", 0),
    Metric::new("mib_per_s", "MiB/s", 0),
    Metric::new("p50_us", "p50 of a sync, µs", 0),
];
const PAYLOADS: [usize; 2] = [100, 4096];
/// Payloads that are copied or checked lie in so much, more than the processor's caches hold.
const AREA: usize = 64 << 20;

#[derive(Clone, Copy)]
enum Floor {
    /// Append so many at once, and sync.
    Sync(usize),
    Copy,
    Crc32,
}

pub(crate) async fn measure(plan: &Plan, repeats: usize) -> Table {
    let floors = [
        ("fdatasync of 256", Floor::Sync(256)),
        ("fdatasync of 1", Floor::Sync(1)),
        ("memcpy", Floor::Copy),
        ("crc32", Floor::Crc32),
    ];
    let mut rows = Vec::new();
    for (name, floor) in floors {
        for payload in PAYLOADS {
            rows.push((Row::new([name.to_owned(), payload.to_string()]), (floor, payload)));
        }
    }
    let time = Duration::from_secs_f64(plan.choose(0.3, 2.0));
    let rows = in_turns("floor", repeats, rows, async |(floor, payload): &(Floor, usize)| match floor {
        Floor::Sync(batch) => sync(*batch, *payload, time),
        Floor::Copy => work(*payload, time, |from, to| to.copy_from_slice(from)),
        Floor::Crc32 => work(*payload, time, |from, _| {
            black_box(crc32fast::hash(from));
        }),
    });
    Table { title: "Floors".into(), keys: &KEYS, metrics: &METRICS, rows: rows.await }
}

/// A plain file in the folder where logs are.
fn sync(batch: usize, payload: usize, time: Duration) -> Result<Measured> {
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let mut file = OpenOptions::new().create_new(true).append(true).open(folder.path().join("file"))?;
    let bytes = vec![0x5a; batch * payload];
    let mut latencies = Latencies::default();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let sent = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        latencies.note(sent.elapsed());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let raw = latencies.json(seconds);
    let syncs = latencies.count();
    let p50 = raw["p50_us"].as_f64().unwrap_or(f64::NAN);
    Ok(measured(syncs * batch as u64, payload, seconds, Some(p50), raw))
}

fn work(payload: usize, time: Duration, what: impl Fn(&[u8], &mut [u8])) -> Result<Measured> {
    let (from, mut to) = (vec![0x5a; AREA], vec![0; AREA]);
    let (begun, mut done) = (Instant::now(), 0);
    while begun.elapsed() < time {
        for (from, to) in from.chunks_exact(payload).zip(to.chunks_exact_mut(payload)) {
            what(black_box(from), black_box(to));
            done += 1;
        }
    }
    Ok(measured(done, payload, begun.elapsed().as_secs_f64(), None, Value::Null))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn measured(payloads: u64, payload: usize, seconds: f64, p50: Option<f64>, raw: Value) -> Measured {
    let rate = payloads as f64 / seconds;
    let mut figures =
        BTreeMap::from([("writes_per_s", rate), ("mib_per_s", rate * payload as f64 / f64::from(1 << 20))]);
    figures.extend(p50.map(|p50| ("p50_us", p50)));
    Measured { figures, raw }
}
