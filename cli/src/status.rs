//! What nodes are doing, for people and as JSON.
//!
//! The JSON form is one object a node and look, on a line of its own. Its field names are stable; LSN ranges are
//! inclusive on both sides there and on the screen, ids are hex strings.

use std::fmt::Write;
use std::io::IsTerminal;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tagalong::log::{Epoch, Lsn, SessionRole, Target};
use tagalong::message::{NodeStatus, RecoveryStatus, Role, SessionStatus};
use tagalong::{AdminClient, Error, ErrorKind, Result};

use crate::{parse_endpoint, parse_seconds, print};

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// The nodes.
    #[arg(required = true, value_name = "ENDPOINT", value_parser = parse_endpoint)]
    endpoints: Vec<String>,
    /// Look again and again, until interrupted.
    #[arg(long)]
    watch: bool,
    /// Seconds between looks.
    #[arg(long, value_name = "S", default_value = "1", value_parser = parse_seconds)]
    every: Duration,
    /// One JSON object a node and look, each on a line.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn status(args: StatusArgs) -> Result<ExitCode> {
    loop {
        let mut looks = Vec::new();
        // Side by side: a node that is gone takes its time to say so.
        for endpoint in args.endpoints.clone() {
            looks.push(tokio::spawn(async move { AdminClient::connect(&endpoint).await?.status().await }));
        }
        let mut text = String::new();
        let mut all = true;
        for (endpoint, look) in args.endpoints.iter().zip(looks) {
            let look = look.await.map_err(|error| Error::new(tagalong::Code::Unavailable, error.to_string()))?;
            all &= look.is_ok();
            text += &match look {
                Ok(status) if args.json => format!("{}\n", to_json(endpoint, &status)),
                Err(error) if args.json => format!("{}\n", json!({"endpoint": endpoint, "error": error_json(&error)})),
                Ok(status) => to_text(endpoint, &status),
                Err(error) => format!("{endpoint}  cannot be reached\n  {error}\n"),
            };
        }
        if args.watch && !args.json && std::io::stdout().is_terminal() {
            // Home, and clear what is below.
            text.insert_str(0, "\x1b[H\x1b[J");
        }
        print(text);
        if !args.watch {
            return Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        tokio::time::sleep(args.every.max(Duration::from_millis(50))).await;
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Backup => "backup",
        Role::Recovering => "recovering",
        Role::Primary => "primary",
        Role::Deposed => "deposed",
        Role::Stopped => "stopped",
        _ => "unknown",
    }
}

fn session_role(role: SessionRole) -> &'static str {
    match role {
        SessionRole::Writer => "writer",
        SessionRole::Reader => "reader",
        SessionRole::Holder => "holder",
        _ => "unknown",
    }
}

fn error_json(error: &Error) -> Value {
    let kind = match error.kind() {
        ErrorKind::Retry => "retry",
        ErrorKind::Rediscover => "rediscover",
        ErrorKind::BackOff => "back-off",
        ErrorKind::FixCall => "fix-call",
        _ => "report",
    };
    json!({"code": format!("{:?}", error.code()), "kind": kind, "message": error.message()})
}

fn epoch_json(epoch: Epoch) -> Value {
    json!({"generation": epoch.generation, "number": epoch.number, "node": epoch.node.to_string()})
}

fn range_json(range: &Range<Lsn>) -> Value {
    json!({"first": range.start.0, "last": range.end.prev().0})
}

fn ids<T: ToString>(ids: &[T]) -> Vec<String> {
    ids.iter().map(T::to_string).collect()
}

fn session_json(session: &SessionStatus) -> Value {
    json!({
        "client": session.client.to_string(),
        "domain": session.domain,
        "role": session_role(session.role),
        "state": session.state,
        "connected": session.connected,
        "last": session.last.0,
        "held_entries": session.held_entries,
        "held_bytes": session.held_bytes,
        "share_bytes": session.share_bytes,
    })
}

fn recovery_json(recovery: &RecoveryStatus) -> Value {
    json!({
        "phase": recovery.phase,
        "base": recovery.base.0,
        "observed": recovery.observed.0,
        "known": recovery.known.0,
        "reported": recovery.reported,
        "roster": recovery.roster,
        "awaited": ids(&recovery.awaited),
        "pulled_bytes": recovery.pulled_bytes,
        "wanted_bytes": recovery.wanted_bytes,
        "pulled_shares": recovery.pulled_shares,
        "shares": recovery.shares,
        "decoded": recovery.decoded,
        "missing": recovery.missing.iter().map(range_json).collect::<Vec<_>>(),
        "lost_by_stop": recovery.lost_by_stop,
        "conflict": recovery.conflict.as_ref().map(error_json),
        "accused": ids(&recovery.accused),
    })
}

fn to_json(endpoint: &str, node: &NodeStatus) -> Value {
    let status = &node.status;
    let target = match node.target {
        Target::Own => json!("own"),
        Target::Backup(node) => json!({"backup": node.to_string()}),
        _ => Value::Null,
    };
    json!({
        "endpoint": endpoint,
        "role": role(status.role),
        "epoch": epoch_json(status.epoch),
        "cluster": status.cluster.to_string(),
        "group": status.group.to_string(),
        "node": status.node.to_string(),
        "domain": status.domain,
        "endpoints": status.endpoints,
        "head": node.head.0,
        "logged": node.logged.0,
        "stable": node.stable.0,
        "covered": node.covered.0,
        "f": node.f,
        "short": node.short,
        "shares": {"count": node.shares, "bytes": node.share_bytes},
        "covering": {"entries": node.covered_entries, "fill_us": node.fill_us, "confirm_us": node.confirm_us},
        "target": target,
        "in_sync": node.in_sync,
        "connected": node.connected,
        "delta": {"entries": node.delta_entries, "bytes": node.delta_bytes, "age_us": node.delta_age_us},
        "waiting_writes": node.waiting_writes,
        "sessions": node.sessions.iter().map(session_json).collect::<Vec<_>>(),
        "recovery": node.recovery.as_ref().map(recovery_json),
        "failure": node.failure.as_ref().map(error_json),
    })
}

fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut rest = count / 1024;
    let mut tenths = (count % 1024) * 10 / 1024;
    for unit in units {
        if rest == 0 {
            break;
        }
        if rest < 1024 || unit == "TiB" {
            return format!("{rest}.{tenths} {unit}");
        }
        tenths = (rest % 1024) * 10 / 1024;
        rest /= 1024;
    }
    format!("{count} B")
}

fn age(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10),
    }
}

fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// LSN ranges as people write them, and how many LSNs they are.
fn ranges(ranges: &[Range<Lsn>]) -> String {
    let one = |range: &Range<Lsn>| match (range.start, range.end.prev()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let count = ranges.iter().map(|range| range.end.0.saturating_sub(range.start.0)).sum();
    let listed: Vec<String> = ranges.iter().take(16).map(one).collect();
    let more = if ranges.len() > 16 { ", ..." } else { "" };
    format!("{}{more} ({})", listed.join(", "), plural(count, "entry", "entries"))
}

/// What shares do for a recovery, where there are any.
fn shared(recovery: &RecoveryStatus) -> String {
    if recovery.shares == 0 {
        return String::new();
    }
    let decoded = plural(recovery.decoded, "entry", "entries");
    let shares = plural(recovery.shares, "share", "shares");
    format!("; {} of {shares} pulled, {decoded} decoded", recovery.pulled_shares)
}

/// What is covered; `None` where nothing is, nor shared.
fn coverage(node: &NodeStatus) -> Option<String> {
    let mut text = match node.f {
        0 => String::from("none"),
        f => format!("up to {}, for the loss of {}", node.covered, plural(f.into(), "domain", "domains")),
    };
    if node.shares > 0 {
        let shares = plural(node.shares, "share", "shares");
        let _ = write!(text, "; clients keep {shares}, {}", bytes(node.share_bytes));
    }
    if node.f > 0
        && let (Some(fill), Some(confirm)) =
            (node.fill_us.checked_div(node.covered_entries), node.confirm_us.checked_div(node.covered_entries))
    {
        let _ = write!(text, "; on average a stripe fills in {fill} us and is confirmed in {confirm} us");
    }
    if node.short {
        text += "; too few domains are connected: what is to be covered waits for the backup, or is refused";
    }
    (node.f > 0 || node.shares > 0).then_some(text)
}

/// A recovery in one line.
pub(crate) fn summary(recovery: &RecoveryStatus) -> String {
    let mut text = format!("{}: {} of {} sessions reported", recovery.phase, recovery.reported, recovery.roster);
    if !recovery.awaited.is_empty() {
        let _ = write!(text, "; awaited: {}", ids(&recovery.awaited).join(" "));
    }
    if recovery.wanted_bytes > 0 {
        let _ = write!(text, "; {} of {} pulled", bytes(recovery.pulled_bytes), bytes(recovery.wanted_bytes));
    }
    text += &shared(recovery);
    if !recovery.missing.is_empty() {
        let _ = write!(text, "; missing: {}", ranges(&recovery.missing));
    }
    if let Some(conflict) = &recovery.conflict {
        let _ = write!(text, "; {conflict}; accused: {}", ids(&recovery.accused).join(" "));
    }
    text
}

fn to_text(endpoint: &str, node: &NodeStatus) -> String {
    let status = &node.status;
    let mut text = format!("{endpoint}  {} in epoch {}, domain {}\n", role(status.role), status.epoch, status.domain);
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<9}{value}");
    };
    if let Some(failure) = &node.failure {
        line("failure", failure.to_string());
    }
    line("identity", format!("node {}, cluster {}, group {}", status.node, status.cluster, status.group));
    let linked = match (node.connected, node.in_sync) {
        (true, true) => "connected, in sync",
        (true, false) => "connected, not in sync",
        (false, true) => "in sync, not connected",
        (false, false) => "not connected",
    };
    let peer = match (status.role, node.target) {
        (Role::Backup, _) => format!("; the primary is {}", linked.replace(", in sync", ", this node in sync")),
        (_, Target::Own) => String::from("; stable is what the own disk has"),
        // A takeover that has not concluded yet: the log still names this node as somebody's backup.
        (_, Target::Backup(node)) if node == status.node => String::new(),
        (_, Target::Backup(node)) => format!("; stable is what backup {node} has: {linked}"),
        _ => String::new(),
    };
    line("log", format!("head {}, logged {}, stable {}{peer}", node.head, node.logged, node.stable));
    if let Some(coverage) = coverage(node) {
        line("covered", coverage);
    }
    let behind = if status.role == Role::Backup { " not applied yet" } else { "" };
    let mut delta = format!("{}{behind}, {}", plural(node.delta_entries, "entry", "entries"), bytes(node.delta_bytes));
    if node.delta_entries > 0 {
        let _ = write!(delta, ", the oldest {} old", age(node.delta_age_us));
    }
    if node.waiting_writes > 0 {
        let _ = write!(delta, "; {} for room", plural(node.waiting_writes, "write waits", "writes wait"));
    }
    line("delta", delta);
    if let Some(recovery) = &node.recovery {
        for (name, value) in recovery_lines(recovery, &node.sessions) {
            line(name, value);
        }
    }
    let count = |state: &str| node.sessions.iter().filter(|session| session.state == state).count();
    line("sessions", format!("{} on, {} suspended, {} absent", count("on"), count("suspended"), count("absent")));
    for session in &node.sessions {
        let place = if session.connected { "connected" } else { "away" };
        let client = session.client.to_string();
        let role = session_role(session.role);
        let _ = write!(text, "    {client:<32}  {role:<6}  {:<9}  {place:<9}  {}", session.state, session.domain);
        let held = plural(session.held_entries, "entry", "entries");
        if session.held_entries > 0 {
            let _ = write!(text, "  holds {held}, {}", bytes(session.held_bytes));
        }
        if session.share_bytes > 0 {
            let _ = write!(text, "  keeps {} of shares", bytes(session.share_bytes));
        }
        text.push('\n');
    }
    text
}

fn recovery_lines(recovery: &RecoveryStatus, sessions: &[SessionStatus]) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let known = format!("observed up to {}, headers known up to {}", recovery.observed, recovery.known);
    lines.push(("recovery", format!("{} above {}; {known}", recovery.phase, recovery.base)));
    let mut reported = format!("{} of {} sessions", recovery.reported, recovery.roster);
    if recovery.wanted_bytes > 0 {
        let _ = write!(reported, "; {} of {} pulled", bytes(recovery.pulled_bytes), bytes(recovery.wanted_bytes));
    }
    reported += &shared(recovery);
    lines.push(("reported", reported));
    for client in &recovery.awaited {
        let domain = sessions.iter().find(|session| session.client == *client).map(|session| session.domain.as_str());
        lines.push(("awaited", format!("{client} in {}", domain.unwrap_or("an unknown domain"))));
    }
    if !recovery.missing.is_empty() {
        lines.push(("missing", ranges(&recovery.missing)));
    }
    if recovery.lost_by_stop > 0 {
        let lost = plural(recovery.lost_by_stop, "known or observed entry", "known or observed entries");
        lines.push(("resolve", format!("with stop, {lost} would be lost now")));
    }
    if let Some(conflict) = &recovery.conflict {
        lines.push(("conflict", conflict.to_string()));
        lines.push(("accused", ids(&recovery.accused).join(" ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use tagalong::log::{ClientId, ClusterId, GroupId, NodeId};
    use tagalong::message::Status;

    /// A primary whose log ends at 9 and is stable up to 4.
    fn node() -> NodeStatus {
        let status = Status {
            version: 1,
            features: 0,
            cluster: ClusterId(1),
            group: GroupId(2),
            node: NodeId(3),
            domain: "east".to_owned(),
            role: Role::Primary,
            epoch: Epoch { generation: 0, number: 1, node: NodeId(3) },
            endpoints: Vec::new(),
        };
        let session = |client, role| SessionStatus {
            client: ClientId(client),
            domain: "rack".to_owned(),
            role,
            state: "on".to_owned(),
            connected: true,
            last: Lsn(2),
            held_entries: 0,
            held_bytes: 0,
            share_bytes: 0,
        };
        NodeStatus {
            status,
            head: Lsn(9),
            logged: Lsn(9),
            stable: Lsn(4),
            covered: Lsn(4),
            f: 0,
            short: false,
            shares: 0,
            share_bytes: 0,
            covered_entries: 0,
            fill_us: 0,
            confirm_us: 0,
            target: Target::Own,
            delta_entries: 5,
            delta_bytes: 700,
            delta_age_us: 1_000,
            waiting_writes: 0,
            in_sync: false,
            connected: false,
            sessions: vec![session(1, SessionRole::Writer), session(2, SessionRole::Holder)],
            recovery: None,
            failure: None,
        }
    }

    #[test]
    fn coverage_is_told_where_there_is_any() {
        assert!(!to_text("there", &node()).contains("covered"));
        let mut node = NodeStatus { covered: Lsn(7), f: 2, shares: 3, share_bytes: 3 << 10, ..node() };
        node.sessions[1].share_bytes = 2 << 10;
        (node.covered_entries, node.fill_us, node.confirm_us) = (10, 4_000, 15_000);
        let text = to_text("there", &node);
        let told = "  covered  up to 7, for the loss of 2 domains; clients keep 3 shares, 3.0 KiB; \
                    on average a stripe fills in 400 us and is confirmed in 1500 us\n";
        assert!(text.contains(told), "{text}");
        let lines: Vec<&str> = text.lines().rev().take(2).collect();
        assert!(lines[1].contains("writer  on") && lines[1].ends_with("rack"), "{text}");
        assert!(lines[0].contains("holder  on") && lines[0].ends_with("rack  keeps 2.0 KiB of shares"), "{text}");
        node.short = true;
        assert!(to_text("there", &node).contains("; too few domains are connected"));
        // Where nothing is covered there may be windows all the same.
        let told = coverage(&NodeStatus { f: 0, short: false, ..node.clone() });
        assert_eq!(told.as_deref(), Some("none; clients keep 3 shares, 3.0 KiB"));

        let json: Value = serde_json::from_str(&to_json("there", &node).to_string()).expect("JSON");
        assert_eq!([&json["covered"], &json["f"], &json["shares"]["count"], &json["shares"]["bytes"]], [7, 2, 3, 3072]);
        assert_eq!(json["short"], true);
        assert_eq!(json["sessions"][1]["role"], "holder");
        assert_eq!(json["sessions"][1]["share_bytes"], 2048);
    }

    #[test]
    fn a_recovery_tells_of_its_shares_where_there_are_any() {
        let mut recovery = RecoveryStatus { phase: "pulling".to_owned(), roster: 2, ..RecoveryStatus::default() };
        assert_eq!(summary(&recovery), "pulling: 0 of 2 sessions reported");
        (recovery.shares, recovery.pulled_shares, recovery.decoded) = (5, 3, 1);
        let told = "; 3 of 5 shares pulled, 1 entry decoded";
        assert!(summary(&recovery).ends_with(told));
        let lines = recovery_lines(&recovery, &[]);
        assert!(lines.iter().any(|(name, text)| *name == "reported" && text.ends_with(told)), "{lines:?}");
        let json = recovery_json(&recovery);
        assert_eq!([&json["shares"], &json["pulled_shares"], &json["decoded"]], [5, 3, 1]);
    }

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!([0, 1023, 1024, 1536].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB"]);
        assert_eq!([3 << 20, (5 << 30) + (1 << 29)].map(bytes), ["3.0 MiB", "5.5 GiB"]);
        assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
        assert_eq!([999, 1_000, 1_500_000].map(age), ["999 µs", "1 ms", "1.5 s"]);
        assert_eq!(ranges(&[Lsn(4)..Lsn(5), Lsn(7)..Lsn(10)]), "4, 7-9 (4 entries)");
        assert_eq!(ranges(std::slice::from_ref(&(Lsn(4)..Lsn(5)))), "4 (1 entry)");
    }
}
