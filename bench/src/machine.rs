//! What a report says about when and where it was made.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// What the command line says, without paths that are of this machine.
pub(crate) fn command() -> String {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    for at in 1..words.len() {
        if matches!(words[at - 1].as_str(), "--wan-tool" | "--out") {
            words[at] = "PATH".into();
        }
    }
    let features = if cfg!(feature = "system-allocator") { " --features system-allocator" } else { "" };
    format!("cargo run --release -p tagalong-bench{features} -- {}", words.join(" "))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value behind the first `name:` of a file in /proc.
fn entry(path: &str, name: &str) -> String {
    let text = read(path);
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map_or_else(|| "unknown".into(), |(_, value)| value.trim().to_owned())
}

/// Cores, processor, memory, kernel.
pub(crate) fn describe() -> Value {
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": entry("/proc/cpuinfo", "model name"),
        "memory": entry("/proc/meminfo", "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// How busy the machine was in the last minute, before anything here began if it is asked early enough.
pub(crate) fn load_average() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// Today, in UTC.
pub(crate) fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds / 86_400)
}

/// A day by its number since 1970: Howard Hinnant's `civil_from_days`, for days after that.
fn date(days: u64) -> String {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        let days = [0, 59, 11_016, 11_017, 19_782, 20_786];
        let dates = ["1970-01-01", "1970-03-01", "2000-02-29", "2000-03-01", "2024-02-29", "2026-11-29"];
        assert_eq!(days.map(date), dates);
    }
}
