//! The measurement: what the distance to the backup costs a write, in each mode, without a disaster.
//!
//! Interleaved, so that whatever else the machine does meets all alike; the figures are medians of the repeats, with
//! their smallest and largest.

use std::time::Duration;

use crate::Result;
use crate::drill;
use crate::report::{Mode, Pace, in_millis, table};
use crate::service::Plan;

/// What is compared: modes and round trips to the backup in milliseconds.
const CASES: [(Mode, u64); 6] =
    [(Mode::Async, 0), (Mode::Tagged, 0), (Mode::Sync, 0), (Mode::Async, 100), (Mode::Tagged, 100), (Mode::Sync, 100)];

/// Runs all cases `repeats` times and prints the table.
pub(crate) async fn run(plan: impl Fn(Mode, Duration) -> Plan, repeats: usize, json: bool) -> Result<()> {
    let mut paces: Vec<Vec<Pace>> = vec![Vec::new(); CASES.len()];
    for repeat in 0..repeats {
        for ((mode, rtt_ms), paces) in CASES.iter().zip(&mut paces) {
            let plan = plan(*mode, Duration::from_millis(*rtt_ms));
            let folder = plan.folder.clone();
            let title = format!("{}/{repeats} {} {rtt_ms} ms", repeat + 1, mode.name());
            paces.push(drill::measure(plan, json, &title).await?);
            // The next one starts from nothing, as this did.
            std::fs::remove_dir_all(folder)?;
        }
    }
    let medians: Vec<u64> = paces.iter().map(|paces| spread(paces, |pace| pace.p50_us).1).collect();
    if json {
        for ((mode, rtt_ms), paces) in CASES.iter().zip(&paces) {
            let (low, p50, high) = spread(paces, |pace| pace.p50_us);
            let p99 = spread(paces, |pace| pace.p99_us).1;
            println!(
                "{{\"mode\":\"{}\",\"rtt_ms\":{rtt_ms},\"repeats\":{repeats},\"p50_us\":{p50},\"p50_min_us\":{low},\
                 \"p50_max_us\":{high},\"p99_us\":{p99}}}",
                mode.name()
            );
        }
        return Ok(());
    }
    let head = ["mode", "backup away", "p50", "from", "to", "p99", "writes/s"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for ((mode, rtt_ms), paces) in CASES.iter().zip(&paces) {
        let (low, p50, high) = spread(paces, |pace| pace.p50_us);
        rows.push(vec![
            mode.name().into(),
            format!("{rtt_ms} ms"),
            in_millis(p50),
            in_millis(low),
            in_millis(high),
            in_millis(spread(paces, |pace| pace.p99_us).1),
            format!("{:.0}", paces.iter().map(|pace| pace.writes_per_s).sum::<f64>() / paces.len().max(1) as f64),
        ]);
    }
    println!("\n  medians of {repeats} interleaved repeats\n\n{}", table(&rows));
    println!(
        "  tagged at 100 ms beside itself at 0 ms: {}; beside async at 100 ms: {}; sync at 100 ms pays {}.",
        difference(medians[4], medians[1]),
        difference(medians[4], medians[3]),
        in_millis(medians[5]),
    );
    Ok(())
}

/// Smallest, median and largest.
fn spread(paces: &[Pace], of: impl Fn(&Pace) -> u64) -> (u64, u64, u64) {
    let mut values: Vec<u64> = paces.iter().map(of).collect();
    values.sort_unstable();
    let at = |index: usize| values.get(index).copied().unwrap_or(0);
    (at(0), at(values.len() / 2), at(values.len().saturating_sub(1)))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn difference(one: u64, other: u64) -> String {
    format!("{:+.1} %", (one as f64 / other.max(1) as f64 - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_sorted() {
        let pace = |p50_us| Pace { p50_us, ..Pace::default() };
        assert_eq!(spread(&[pace(3), pace(9), pace(1)], |pace| pace.p50_us), (1, 3, 9));
        assert_eq!(difference(105, 100), "+5.0 %");
    }
}
