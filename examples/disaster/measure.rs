//! The measurement: what a write costs, without a disaster. Three questions:
//!
//! * `distance`: what the way to the backup costs, in each mode;
//! * `coverage`: what it costs to survive clients as well, with few clients and with many: latency, and bytes on the links;
//! * `churn`: what it costs when sessions open and close all the time. They wait for the backup; writes must not.
//!
//! Interleaved, so that whatever else the machine does meets all alike; the figures are medians of the repeats, with
//! their smallest and largest.

use std::time::Duration;

use serde_json::json;

use crate::Result;
use crate::drill::{self, Cost};
use crate::report::{Mode, grouped, in_millis, table};
use crate::service::Plan;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// What the way to the backup costs.
    Distance,
    /// What it costs to survive clients as well.
    Coverage,
    /// What sessions that open and close cost those that stay.
    Churn,
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
struct Case {
    mode: Mode,
    /// Round trip to the backup.
    rtt_ms: u64,
    /// Clients, where it is not for the caller to say.
    clients: Option<u64>,
    passers: u64,
}

/// Operations a second of all clients together, as that of eight clients: the machine is the same for many.
const RATE_OF: u64 = 8;

impl What {
    fn cases(self) -> Vec<Case> {
        let case = |mode, rtt_ms, clients, passers| Case { mode, rtt_ms, clients, passers };
        let near_and_far = |rtt| Mode::ALL.map(|mode| case(mode, rtt, None, 0));
        let few_and_many =
            |clients| [Mode::Unshared, Mode::Tagged, Mode::Covered].map(|mode| case(mode, 100, Some(clients), 0));
        match self {
            What::Distance => [near_and_far(0), near_and_far(100)].concat(),
            What::Coverage => [few_and_many(8), few_and_many(64)].concat(),
            What::Churn => [Mode::Tagged, Mode::Covered]
                .into_iter()
                // Far away, so that nobody can miss who waits for it.
                .flat_map(|mode| [case(mode, 400, None, 0), case(mode, 400, None, 8)])
                .collect(),
        }
    }
}

impl Case {
    fn plan(&self, plan: &impl Fn(Mode, Duration) -> Plan) -> Plan {
        let mut plan = plan(self.mode, Duration::from_millis(self.rtt_ms));
        plan.passers = plan.passers.max(self.passers);
        if let Some(clients) = self.clients {
            plan.clients = clients;
            plan.rate = (plan.rate * RATE_OF).div_ceil(clients);
        }
        plan
    }
}

/// The medians of a case.
struct Line {
    case: Case,
    clients: u64,
    /// Median, smallest, largest.
    p50_us: [u64; 3],
    p99_us: [u64; 3],
    max_us: [u64; 3],
    fill_us: [u64; 3],
    confirm_us: [u64; 3],
    writes_per_s: u64,
    wan: u64,
    to_clients: u64,
    from_clients: u64,
    sessions: u64,
}

/// Runs all cases `repeats` times and prints the table.
pub(crate) async fn run(
    what: What,
    plan: impl Fn(Mode, Duration) -> Plan,
    repeats: usize,
    as_json: bool,
) -> Result<()> {
    let cases = what.cases();
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); cases.len()];
    for repeat in 0..repeats {
        for (case, costs) in cases.iter().zip(&mut costs) {
            let plan = case.plan(&plan);
            let folder = plan.folder.clone();
            let title = format!("{}/{repeats} {} {} ms", repeat + 1, case.mode.name(), case.rtt_ms);
            costs.push(drill::measure(plan, as_json, &title).await?);
            // The next one starts from nothing, as this did.
            std::fs::remove_dir_all(folder)?;
        }
    }
    let lines: Vec<Line> =
        cases.iter().zip(&costs).map(|(case, costs)| Line::of(*case, case.plan(&plan).clients, costs)).collect();
    if as_json {
        lines.iter().for_each(|line| println!("{}", line.json(repeats)));
        return Ok(());
    }
    let head = [
        "mode",
        "clients",
        "backup away",
        "p50",
        "from",
        "to",
        "p99",
        "max",
        "stripe fills in",
        "is confirmed in",
        "writes/s",
        "WAN bytes a write",
        "to clients",
        "from clients",
        "passers-by",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(lines.iter().map(Line::row));
    println!("\n  medians of {repeats} interleaved repeats\n\n{}", table(&rows));
    Ok(())
}

impl Line {
    fn of(case: Case, clients: u64, costs: &[Cost]) -> Self {
        let middle = |of: fn(&Cost) -> u64| spread(costs, of)[0];
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
        let writes_per_s = middle(|cost| cost.pace.writes_per_s as u64);
        Self {
            case,
            clients,
            p50_us: spread(costs, |cost| cost.pace.p50_us),
            p99_us: spread(costs, |cost| cost.pace.p99_us),
            max_us: spread(costs, |cost| cost.pace.max_us),
            fill_us: spread(costs, |cost| cost.fill_us),
            confirm_us: spread(costs, |cost| cost.confirm_us),
            writes_per_s,
            wan: middle(|cost| cost.pace.per_write(cost.traffic.wan.both())),
            to_clients: middle(|cost| cost.pace.per_write(cost.traffic.near.down)),
            from_clients: middle(|cost| cost.pace.per_write(cost.traffic.near.up)),
            sessions: middle(|cost| cost.sessions),
        }
    }

    fn json(&self, repeats: usize) -> String {
        let value = json!({
            "mode": self.case.mode.name(),
            "clients": self.clients,
            "rtt_ms": self.case.rtt_ms,
            "repeats": repeats,
            "p50_us": self.p50_us[0],
            "p50_min_us": self.p50_us[1],
            "p50_max_us": self.p50_us[2],
            "p99_us": self.p99_us[0],
            "p99_max_us": self.p99_us[2],
            "max_us": self.max_us[0],
            "fill_us": self.fill_us[0],
            "confirm_us": self.confirm_us[0],
            "writes_per_s": self.writes_per_s,
            "wan_bytes_per_write": self.wan,
            "to_clients_bytes_per_write": self.to_clients,
            "from_clients_bytes_per_write": self.from_clients,
            "passed_sessions": self.sessions,
        });
        value.to_string()
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.case.mode.name().into(),
            self.clients.to_string(),
            format!("{} ms", self.case.rtt_ms),
            in_millis(self.p50_us[0]),
            in_millis(self.p50_us[1]),
            in_millis(self.p50_us[2]),
            in_millis(self.p99_us[0]),
            in_millis(self.max_us[0]),
            in_millis(self.fill_us[0]),
            in_millis(self.confirm_us[0]),
            grouped(self.writes_per_s),
            grouped(self.wan),
            grouped(self.to_clients),
            grouped(self.from_clients),
            grouped(self.sessions),
        ]
    }
}

/// Median, smallest and largest.
fn spread(costs: &[Cost], of: impl Fn(&Cost) -> u64) -> [u64; 3] {
    let mut values: Vec<u64> = costs.iter().map(of).collect();
    values.sort_unstable();
    let at = |index: usize| values.get(index).copied().unwrap_or(0);
    [at(values.len() / 2), at(0), at(values.len().saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Pace;

    #[test]
    fn a_spread_is_sorted() {
        let cost = |p50_us| Cost { pace: Pace { p50_us, ..Pace::default() }, ..Cost::default() };
        assert_eq!(spread(&[cost(3), cost(9), cost(1)], |cost| cost.pace.p50_us), [3, 1, 9]);
    }

    #[test]
    fn every_question_has_something_to_compare() {
        for what in [What::Distance, What::Coverage, What::Churn] {
            assert!(what.cases().len() >= 4);
        }
    }
}
