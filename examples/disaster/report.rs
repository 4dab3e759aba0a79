//! What a drill says in the end: a row a mode, for people as a table, for programs as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::checker::Verdict;
use crate::service::Traffic;

/// How the service replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Acknowledged by the primary alone, and held by nobody.
    Async,
    /// Acknowledged when the backup has it.
    Sync,
    /// Acknowledged by the primary, and held by the client that wrote it, alone.
    #[value(name = "tagged-unshared")]
    Unshared,
    /// The same, and shares of it go to other clients with what they are sent in any case.
    Tagged,
    /// Acknowledged when the loss of so many clients, together with the primary, would cost nothing.
    Covered,
}

impl Mode {
    pub(crate) const ALL: [Mode; 5] = [Mode::Async, Mode::Sync, Mode::Unshared, Mode::Tagged, Mode::Covered];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Async => "async",
            Mode::Sync => "sync",
            Mode::Unshared => "tagged-unshared",
            Mode::Tagged => "tagged",
            Mode::Covered => "covered",
        }
    }

    /// Whether clients keep shares for each other.
    pub(crate) fn shares(self) -> bool {
        matches!(self, Mode::Tagged | Mode::Covered)
    }

    /// Whether a recovery cannot conclude by itself without so many clients, where `f` are covered for.
    pub(crate) fn waits_for(self, absent: usize, f: u8) -> bool {
        match self {
            Mode::Async | Mode::Sync => false,
            Mode::Unshared | Mode::Tagged => absent > 0,
            Mode::Covered => absent > usize::from(f),
        }
    }

    /// What the mode promises when so many clients are lost for good, with the primary.
    fn promise(self, killed: usize, f: u8) -> Promise {
        match self {
            Mode::Async => Promise::Nothing,
            _ if self.waits_for(killed, f) => Promise::Named,
            _ => Promise::Kept,
        }
    }
}

/// What has to hold after a disaster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// What was acknowledged may be lost.
    Nothing,
    /// What is lost is named, and whoever lives is told of it.
    Named,
    /// Nothing is lost.
    Kept,
}

/// What a drill was asked to do, as far as the report repeats it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) clients: u64,
    pub(crate) rtt_ms: f64,
    pub(crate) client_rtt_ms: f64,
    pub(crate) cut_before_ms: u64,
    pub(crate) killed: usize,
    pub(crate) holders: u64,
    pub(crate) passers: u64,
}

/// Latencies and throughput before the cut.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pace {
    pub(crate) writes: u64,
    pub(crate) writes_per_s: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

impl Pace {
    /// Bytes of a link for each write.
    pub(crate) fn per_write(&self, bytes: u64) -> u64 {
        bytes / self.writes.max(1)
    }
}

/// One mode's drill.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) mode: Mode,
    /// How many failure domains were covered for.
    pub(crate) f: u8,
    /// Clients that were killed with the primary, and what they held is gone.
    pub(crate) killed: usize,
    pub(crate) pace: Pace,
    pub(crate) verdict: Verdict,
    /// From the SIGKILL to the first write acknowledged after it.
    pub(crate) recovery: Option<Duration>,
    /// From the promotion to the same.
    pub(crate) promotion: Option<Duration>,
    /// Of that, how long the recovery was seen to wait for a decision.
    pub(crate) waited: Option<Duration>,
    /// It was concluded by one.
    pub(crate) by_policy: bool,
    /// Entries the backup lacked at the SIGKILL.
    pub(crate) delta_entries: u64,
    pub(crate) delta_bytes: u64,
    /// Entries past the backup's own log that the recovery put there.
    pub(crate) rebuilt: u64,
    /// Of those, how many only shares supplied; and from how many shares.
    pub(crate) decoded: (u64, u64),
    /// What the links carried while the load was measured.
    pub(crate) traffic: Traffic,
    /// Shares that clients kept when it ended, and their bytes.
    pub(crate) kept: (u64, u64),
    /// Sessions that opened and closed beside the load.
    pub(crate) sessions: u64,
    /// Bytes that were on the wire to and from the backup when it was cut.
    pub(crate) wire_bytes: u64,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    pub(crate) different: Vec<String>,
    /// Files that were changed on the disk while the drill ran.
    pub(crate) changed: usize,
    /// Clients without which the recovery was concluded.
    pub(crate) missing: Vec<String>,
    /// What the recovery was doing, and for how long.
    pub(crate) phases: Vec<(String, Duration)>,
}

impl Row {
    /// Whether the drill kept what its mode promises, and came to its end at all.
    pub(crate) fn is_good(&self) -> bool {
        let kept = match self.promise() {
            Promise::Nothing => true,
            Promise::Named => self.verdict.is_honest() && self.different.is_empty(),
            Promise::Kept => self.verdict.is_clean() && self.different.is_empty(),
        };
        kept && self.recovery.is_some() && self.verdict.acked > 0
    }

    fn promise(&self) -> Promise {
        self.mode.promise(self.killed, self.f)
    }

    /// One line of JSON.
    pub(crate) fn json(&self, setting: &Setting) -> String {
        let millis = |time: Option<Duration>| time.map_or(Value::Null, |time| json!(tenth(time.as_secs_f64() * 1e3)));
        let v = &self.verdict;
        let phases: Vec<Value> =
            self.phases.iter().map(|(phase, time)| json!([phase, tenth(time.as_secs_f64() * 1e3)])).collect();
        let first = [
            ("mode", json!(self.mode.name())),
            ("rtt_ms", json!(setting.rtt_ms)),
            ("clients", json!(setting.clients)),
            ("writes_per_s", json!(tenth(self.pace.writes_per_s))),
            ("p50_us", json!(self.pace.p50_us)),
            ("p99_us", json!(self.pace.p99_us)),
            ("acked", json!(v.acked)),
            ("lost", json!(v.lost)),
            ("lost_reads", json!(v.lost_reads)),
            ("duplicated", json!(v.duplicated)),
            ("recovery_ms", millis(self.recovery)),
            ("promotion_ms", millis(self.promotion)),
            ("phases_ms", json!(phases)),
            ("client_rtt_ms", json!(setting.client_rtt_ms)),
            ("cut_before_ms", json!(setting.cut_before_ms)),
            ("delta_entries", json!(self.delta_entries)),
            ("delta_bytes", json!(self.delta_bytes)),
            ("rebuilt_entries", json!(self.rebuilt)),
            ("wire_bytes", json!(self.wire_bytes)),
            ("reads", json!(v.reads)),
            ("returned", json!(v.returned)),
            ("unknown", json!(v.unknown)),
            ("displaced", json!(v.displaced)),
            ("reordered", json!(v.reordered)),
            ("invented", json!(v.invented)),
            ("stale", json!(v.stale)),
            ("not_linearizable", json!(v.not_linearizable)),
            ("split", json!(v.split)),
            ("misnumbered", json!(v.misnumbered)),
            ("damaged", json!(v.damaged)),
            ("files", json!(self.files)),
            ("bytes", json!(self.bytes)),
            ("files_different", json!(self.different.len())),
            ("files_changed", json!(self.changed)),
            ("missing_clients", json!(self.missing.len())),
            ("f", json!(self.f)),
            ("killed_clients", json!(self.killed)),
            ("holders", json!(setting.holders)),
            ("decoded_entries", json!(self.decoded.0)),
            ("decoded_from_shares", json!(self.decoded.1)),
            ("by_policy", json!(self.by_policy)),
            ("waited_ms", millis(self.waited)),
            ("named_by_lsn", json!(v.named.0)),
            ("named_by_client", json!(v.named.1)),
            ("unnamed", json!(v.unnamed)),
            ("untold", json!(v.untold)),
            ("max_us", json!(self.pace.max_us)),
            ("measured_writes", json!(self.pace.writes)),
            ("wan_bytes", json!(self.traffic.wan.both())),
            ("wan_bytes_per_write", json!(self.pace.per_write(self.traffic.wan.both()))),
            ("to_clients_bytes", json!(self.traffic.near.down)),
            ("from_clients_bytes", json!(self.traffic.near.up)),
            ("shares_kept", json!(self.kept.0)),
            ("share_bytes_kept", json!(self.kept.1)),
            ("passers", json!(setting.passers)),
            ("passed_sessions", json!(self.sessions)),
            ("good", json!(self.is_good())),
        ];
        // By hand, for the order: a map would sort it.
        let fields: Vec<String> = first.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(","))
    }
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

pub(crate) fn clients(count: usize) -> String {
    if count == 1 { "1 client".into() } else { format!("{count} clients") }
}

/// 12345 as `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn in_millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1e3)
}

fn in_seconds(time: Option<Duration>) -> String {
    time.map_or("never".into(), |time| format!("{:.2} s", time.as_secs_f64()))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn in_mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Columns under their heads: the first to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            line += &if at == 0 { format!("  {cell}{pad}") } else { format!("   {pad}{cell}") };
        }
        let _ = writeln!(out, "{}", line.trim_end());
        if number == 0 {
            let width = widths.iter().sum::<usize>() + 3 * columns.saturating_sub(1);
            let _ = writeln!(out, "  {}", "─".repeat(width));
        }
    }
    out
}

/// What the modes cost on the links, and what became of those who died.
fn links(rows: &[Row]) -> String {
    let head = [
        "mode",
        "covers for",
        "killed",
        "decoded",
        "lost",
        "named by LSN",
        "by client",
        "max",
        "WAN bytes a write",
        "to clients",
        "from clients",
        "shares kept",
    ];
    let mut lines = vec![head.map(String::from).to_vec()];
    for row in rows {
        lines.push(vec![
            row.mode.name().into(),
            row.f.to_string(),
            row.killed.to_string(),
            grouped(row.decoded.0),
            grouped(row.verdict.lost),
            grouped(row.verdict.named.0),
            grouped(row.verdict.named.1),
            in_millis(row.pace.max_us),
            grouped(row.pace.per_write(row.traffic.wan.both())),
            grouped(row.pace.per_write(row.traffic.near.down)),
            grouped(row.pace.per_write(row.traffic.near.up)),
            format!("{} / {}", grouped(row.kept.0), in_mib(row.kept.1)),
        ]);
    }
    table(&lines)
}

/// The picture at the end.
pub(crate) fn picture(rows: &[Row], setting: &Setting) -> String {
    let head = [
        "mode",
        "writes/s",
        "p50",
        "p99",
        "acknowledged",
        "delta at the kill",
        "lost",
        "lost reads",
        "duplicated",
        "files back",
        "recovered in",
    ];
    let mut lines = vec![head.map(String::from).to_vec()];
    for row in rows {
        lines.push(vec![
            row.mode.name().into(),
            format!("{:.0}", row.pace.writes_per_s),
            in_millis(row.pace.p50_us),
            in_millis(row.pace.p99_us),
            grouped(row.verdict.acked),
            format!("{} / {}", grouped(row.delta_entries), in_mib(row.delta_bytes)),
            grouped(row.verdict.lost),
            grouped(row.verdict.lost_reads),
            grouped(row.verdict.duplicated),
            format!("{} of {}", row.files - row.different.len() - row.changed, row.files),
            in_seconds(row.recovery),
        ]);
    }
    let holders = if setting.holders > 0 { format!(" and {} holders", setting.holders) } else { String::new() };
    let killed = match setting.killed {
        0 => String::new(),
        killed => format!(", and {} killed beside it, with what they held", clients(killed)),
    };
    let mut out = format!(
        "\n  {} clients{holders} {} ms from the primary, backup {} ms away; link cut, {} ms later SIGKILL and the \
         primary's folder gone{killed}\n\n{}\n{}\n",
        setting.clients,
        setting.client_rtt_ms,
        setting.rtt_ms,
        setting.cut_before_ms,
        table(&lines),
        links(rows)
    );
    for row in rows {
        out += &remarks(row);
    }
    out += &meaning(rows);
    out
}

/// Files that differ are named up to so many.
const DIFFERENT_MAX: usize = 3;

/// What a row has to say beside its figures.
fn remarks(row: &Row) -> String {
    let mut out = String::new();
    let name = row.mode.name();
    let columns = ["lost", "lost_reads", "duplicated"];
    let more: Vec<String> = row
        .verdict
        .counts()
        .iter()
        .filter(|(kind, count)| *count > 0 && !columns.contains(kind))
        .map(|(kind, count)| format!("{} {kind}", grouped(*count)))
        .collect();
    if !more.is_empty() {
        let _ = writeln!(out, "  {name}: also {}", more.join(", "));
    }
    if !row.missing.is_empty() && row.by_policy {
        let (lost, returned) = (grouped(row.verdict.lost), grouped(row.verdict.returned));
        let _ = writeln!(
            out,
            "  {name}: concluded without {}; of {lost} lost writes {returned} were given back to clients that live",
            row.missing.join(", ")
        );
    } else if !row.missing.is_empty() {
        let _ = writeln!(out, "  {name}: concluded by itself without {}", row.missing.join(", "));
    }
    if let Some(waited) = row.waited {
        let _ = writeln!(out, "  {name}: {} of the recovery it waited for a decision", in_seconds(Some(waited)));
    }
    if row.sessions > 0 {
        let _ = writeln!(out, "  {name}: {} sessions opened and closed beside the load", grouped(row.sessions));
    }
    if row.changed > 0 {
        let _ = writeln!(out, "  {name}: {} files were changed on the disk while the drill ran", row.changed);
    }
    if row.promise() == Promise::Kept || !row.is_good() {
        for example in row.verdict.examples.iter().chain(row.different.iter().take(DIFFERENT_MAX)) {
            let _ = writeln!(out, "  {name}: {example}");
        }
        if row.different.len() > DIFFERENT_MAX {
            let _ = writeln!(out, "  {name}: and {} more files", row.different.len() - DIFFERENT_MAX);
        }
    }
    out
}

/// One or two sentences.
fn meaning(rows: &[Row]) -> String {
    let find = |mode| rows.iter().find(|row| row.mode == mode);
    let gave_up = |row: &&Row| !row.missing.is_empty() && !row.is_good();
    if let Some(row) = rows.iter().find(gave_up) {
        let name = row.mode.name();
        return format!("  NOT KEPT: {name} keeps what clients hold that live, or come back; these did not.\n");
    }
    let broken: Vec<&str> = rows.iter().filter(|row| !row.is_good()).map(|row| row.mode.name()).collect();
    if !broken.is_empty() {
        return format!("  FAILED: {} did not keep what it promises.\n", broken.join(" and "));
    }
    let mut out = String::new();
    for row in rows.iter().filter(|row| !matches!(row.mode, Mode::Async | Mode::Sync)) {
        let (name, p50) = (row.mode.name(), in_millis(row.pace.p50_us));
        let (acked, lost) = (grouped(row.verdict.acked), grouped(row.verdict.lost));
        let _ = match row.promise() {
            Promise::Named => writeln!(
                out,
                "  {name}: {p50} a write. With {} gone for good {lost} of {acked} acknowledged writes are lost, and every \
                 one of them is named.",
                clients(row.killed)
            ),
            _ => writeln!(
                out,
                "  {name}: {p50} a write, and the site's loss cost nothing: the clients gave back {} entries, {} of them \
                 decoded, and {acked} acknowledged writes and {} reads are there, in order, once.",
                grouped(row.rebuilt),
                grouped(row.decoded.0),
                grouped(row.verdict.reads),
            ),
        };
    }
    if let Some(sync) = find(Mode::Sync) {
        let _ = writeln!(out, "  sync: nothing lost either, for {} a write.", in_millis(sync.pace.p50_us));
    }
    if let Some(unsafe_row) = find(Mode::Async) {
        if unsafe_row.verdict.lost == 0 {
            out += "  async: lost nothing this time, so this drill proves nothing: cut the link earlier.\n";
            return out;
        }
        let _ = writeln!(
            out,
            "  async: {} a write, and {} acknowledged writes are gone{}.",
            in_millis(unsafe_row.pace.p50_us),
            grouped(unsafe_row.verdict.lost),
            if unsafe_row.different.is_empty() {
                String::new()
            } else {
                format!(", with them {} files", unsafe_row.different.len())
            }
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Carried;

    fn row(mode: Mode, lost: u64) -> Row {
        Row {
            mode,
            f: u8::from(mode == Mode::Covered),
            killed: 0,
            pace: Pace { writes: 1000, writes_per_s: 1234.56, p50_us: 1500, p99_us: 2500, max_us: 9000 },
            verdict: Verdict { acked: 12345, lost, ..Verdict::default() },
            recovery: Some(Duration::from_millis(321)),
            promotion: Some(Duration::from_millis(300)),
            waited: None,
            by_policy: false,
            delta_entries: 5,
            delta_bytes: 6,
            rebuilt: 4,
            decoded: (2, 3),
            traffic: Traffic { wan: Carried { up: 1000, down: 5000 }, near: Carried { up: 7000, down: 8000 } },
            kept: (4, 5),
            sessions: 0,
            wire_bytes: 7,
            files: 3,
            bytes: 99,
            different: Vec::new(),
            changed: 0,
            missing: Vec::new(),
            phases: Vec::new(),
        }
    }

    const SETTING: Setting =
        Setting { clients: 8, rtt_ms: 50.0, client_rtt_ms: 1.0, cut_before_ms: 200, killed: 0, holders: 0, passers: 0 };

    #[test]
    fn the_json_begins_with_the_promised_fields_in_order() {
        let line = row(Mode::Tagged, 0).json(&SETTING);
        assert!(line.starts_with(
            "{\"mode\":\"tagged\",\"rtt_ms\":50.0,\"clients\":8,\"writes_per_s\":1234.6,\"p50_us\":1500,\
             \"p99_us\":2500,\"acked\":12345,\"lost\":0,\"lost_reads\":0,\"duplicated\":0,\"recovery_ms\":321.0,"
        ));
        let value: Value = serde_json::from_str(&line).expect("valid JSON");
        assert_eq!(value["good"], true);
        assert_eq!((&value["wan_bytes_per_write"], &value["decoded_entries"]), (&json!(6), &json!(2)));
    }

    #[test]
    fn with_more_dead_than_a_mode_covers_for_what_is_lost_has_to_be_named() {
        let killed = |mode, killed, unnamed| {
            let verdict = Verdict { acked: 9, lost: 4, unnamed, ..Verdict::default() };
            Row { killed, verdict, ..row(mode, 0) }
        };
        assert!(!killed(Mode::Covered, 1, 0).is_good(), "one is covered for");
        assert!(killed(Mode::Covered, 2, 0).is_good() && !killed(Mode::Covered, 2, 1).is_good());
        for mode in [Mode::Tagged, Mode::Unshared] {
            assert!(killed(mode, 1, 0).is_good() && !killed(mode, 1, 1).is_good() && !killed(mode, 0, 0).is_good());
        }
        assert!(!killed(Mode::Sync, 8, 0).is_good() && killed(Mode::Async, 8, 0).is_good());
        assert!(picture(&[killed(Mode::Covered, 2, 0)], &SETTING).contains("every one of them is named"));
    }

    #[test]
    fn only_async_may_lose() {
        assert!(row(Mode::Async, 4).is_good() && !row(Mode::Tagged, 1).is_good() && !row(Mode::Sync, 1).is_good());
        let mut different = row(Mode::Tagged, 0);
        different.different.push("a file".into());
        assert!(!different.is_good());
        let never = Row { recovery: None, ..row(Mode::Async, 4) };
        assert!(!never.is_good());
        assert!(picture(&[row(Mode::Tagged, 1)], &SETTING).contains("FAILED: tagged"));
        assert!(picture(&[row(Mode::Tagged, 0)], &SETTING).contains("cost nothing"));
    }
}
