//! A link that loses packets under TCP: sites in network namespaces, and a program that carries packets between them.
//!
//! The program is not part of this. It is called as `PROGRAM run --sock SOCKET SITE... rtt=50ms loss=0.1`, where a site is the
//! name of a namespace and losses are in percent; then as `PROGRAM ctl --sock SOCKET COMMAND`, of which are used `ping`, `sites`
//! (lines of name and address), `set all rtt=50ms loss=0.1`, `stats` (a table with columns `from` and `bytes`), and `quit`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Result;
use crate::experiment::{Plan, in_turns};
use crate::load::Shape;
use crate::node::Mode;
use crate::plot::{Kind, Plot};
use crate::report::{Metric, Report, Row, Show, Table};
use crate::service::{Cell, System, measure};

const ABOUT: &str = "
Primary and clients are in one network namespace, the backup in another, 50 ms away and back over a network in user space that
loses packets independently; so TCP is the kernel's own. Four clients with 64 writes of 4 KiB in flight each write at full speed
for a while. A single TCP stream carries little under loss; what it does not carry is the *delta*: what an asynchronous service
would lose, and what clients hold where they are tagged. So the link can have several connections. Where even those carry less
than is written, the delta ends at the budget of the primary, or of the caches.

Then, at 0.1 %, they offer 1,500 writes a second, 49 Mbit/s, whatever is in flight. After its first losses a single connection
carries about a fifth of that (1.2 segments / round trip / root of the loss), and eight together half as much again. So with
eight the delta is what the distance takes, and with one it grows for as long as the load lasts.

A quick run has shorter loads, fewer connections, and 0.1 % alone.
";
const RTT: Duration = Duration::from_millis(50);
/// What is offered, in writes a second, and at which loss; nobody is to wait for answers.
const OFFERED: u32 = 1_500;
const OFFERED_LOSS: &str = "0.1";
const OFFERED_IN_FLIGHT: usize = 4096;
/// Nothing waits longer for the tool.
const PATIENCE: Duration = Duration::from_secs(5);

const KEYS: [&str; 4] = ["offered, writes/s", "packets lost", "system", "connections"];
const METRICS: [Metric; 8] = [
    Metric::new("writes_per_s", "writes/s", 0),
    Metric::new("p50_us", "p50, µs", 0),
    Metric::new("p99_us", "p99, µs", 0),
    Metric::new("wan_mbit_per_s", "on the link, Mbit/s", 1),
    Metric::new("held_most_kib", "held at most, KiB", 0),
    Metric::new("delta_kib", "delta in the end, KiB", 0),
    Metric::new("drained_past_rtt_s", "drained, s", 2),
    Metric::new("overdue", "due and not issued", 0),
];

pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let network = match &plan.wan_tool {
        None => Err("needs `--wan-tool` and root".to_owned()),
        Some(tool) => Network::start(tool).map_err(|error| format!("no network: {error}")),
    };
    let systems = plan.systems(&[System::Service(Mode::Async), System::Service(Mode::Tagged)]);
    let losses: &[&str] = plan.choose(&["0.1"], &["0", "0.1", "1"]);
    let connections: &[u32] = plan.choose(&[1, 8], &[1, 4, 8, 16]);
    let seconds = plan.seconds(1.5, 10.0);
    let shape = Shape {
        clients: 4,
        in_flight: 64,
        payload: 4096,
        warm_up: 0.5,
        seconds,
        drain: plan.choose(1.0, 20.0),
        rate: 0.0,
    };
    // A connection does not know yet how little it carries before it has lost a few packets.
    let (warm_up, seconds) = (2.0, plan.seconds(2.0, 10.0));
    let paced = Shape { in_flight: OFFERED_IN_FLIGHT, rate: OFFERED.into(), warm_up, seconds, ..shape.clone() };
    let loads = losses.iter().map(|loss| (*loss, &shape)).chain([(OFFERED_LOSS, &paced)]);
    let mut rows = Vec::new();
    for (loss, shape) in loads {
        for (system, count) in systems.iter().flat_map(|system| connections.iter().map(move |count| (system, *count))) {
            let key = [offered(shape.rate), format!("{loss} %"), system.name().to_owned(), count.to_string()];
            let (row, sites) = match &network {
                Ok(network) => (Row::new(key), Some(network.sites.clone())),
                Err(why) => (Row::skipped(key, why), None),
            };
            let cell = Cell { system: *system, shape: shape.clone(), rtt: RTT, sites, connections: Some(count) };
            rows.push((row, (loss, cell)));
        }
    }
    let rows = in_turns("lossy", plan.repeats(5, 5), rows, async |(loss, cell): &(&str, Cell)| {
        if let Some(sites) = &cell.sites {
            sites.set(RTT, loss)?;
        }
        let outcome = measure(cell).await?;
        let mut measured = outcome.measured(cell);
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (bits, delta) = (outcome.wan as f64 * 8.0, outcome.status[1]["delta_bytes"].as_u64().unwrap_or(0) as f64);
        measured.figures.insert("wan_mbit_per_s", bits / 1e6 / cell.shape.seconds);
        measured.figures.insert("delta_kib", delta / 1024.0);
        Ok(measured)
    });
    let table =
        Table { title: "50 ms, packets lost under TCP".into(), keys: &KEYS, metrics: &METRICS, rows: rows.await };
    let mut shows = Vec::new();
    for &loss in losses {
        let row =
            |system: &str, count: u32| table.row(&[&offered(0.0), &format!("{loss} %"), system, &count.to_string()]);
        let rows = (row("tagged", 1), row("async", 1));
        shows.push(Show::ratio(format!("tagged / async, throughput, {loss} % lost"), "≥ 0.95", rows, "writes_per_s"));
        for count in connections.iter().skip(1) {
            for system in ["async", "tagged"] {
                let rows = (row(system, *count), row(system, 1));
                let what = format!("{system}, {count} connections / one, carried, {loss} % lost");
                let bar = if loss == "0.1" { "≥ 4" } else { "" };
                shows.push(Show::ratio(what, bar, rows, "wan_mbit_per_s"));
                let what = format!("{system}, {count} connections / one, delta, {loss} % lost");
                shows.push(Show::ratio(what, "", rows, "delta_kib"));
            }
        }
    }
    let row = |system: &str, count: u32| {
        table.row(&[&offered(OFFERED.into()), &format!("{OFFERED_LOSS} %"), system, &count.to_string()])
    };
    for count in connections.iter().skip(1) {
        for (system, what, name) in [("async", "delta", "delta_kib"), ("tagged", "held at most", "held_most_kib")] {
            let rows = (row(system, *count), row(system, 1));
            let what =
                format!("{system}, {count} connections / one, {what}, {OFFERED} writes/s, {OFFERED_LOSS} % lost");
            let bar = if *count == 8 { "≤ 0.25" } else { "" };
            shows.push(Show::ratio(what, bar, rows, name));
        }
    }
    let bar = |row: &Row| Some((row.key.join(", "), row.spread("delta_kib")?));
    let plot = Plot {
        name: "delta",
        title: "What the backup lacks after the load".into(),
        x: "KiB",
        y: "",
        kind: Kind::Bars(table.rows.iter().rev().filter_map(bar).collect()),
    };
    let mut about = ABOUT.trim().to_owned();
    let mut plots = Vec::new();
    if let Ok(network) = &network {
        about += &format!("\nCongestion control: `{}`.", congestion_control(&network.sites.name(0)));
        plots.push(plot);
    }
    Ok(Report { name: "lossy", title: "A lossy link under TCP", about, tables: vec![table], shows, plots })
}

/// How a load is called.
fn offered(rate: f64) -> String {
    if rate > 0.0 { rate.to_string() } else { "all they can".into() }
}

/// Which one the routes of a site name; the host's without.
fn congestion_control(site: &str) -> String {
    let routes = succeed(Command::new("ip").args(["-netns", site, "route"])).unwrap_or_default();
    let mut words = routes.split_whitespace().skip_while(|word| *word != "congctl");
    let host = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    words.nth(1).map_or_else(|| host().trim().to_owned(), str::to_owned)
}

/// Moves this process into a site. To be called before it has a second thread, which would stay behind.
pub(crate) fn enter(site: &str) -> Result<()> {
    let place = std::fs::File::open(Path::new("/run/netns").join(site))?;
    Ok(move_into_link_name_space(std::os::fd::AsFd::as_fd(&place), Some(LinkNameSpaceType::Network))?)
}

/// Two sites that a network connects: the primary's and the backup's.
#[derive(Clone, Debug)]
pub(crate) struct Sites(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tool: PathBuf,
    socket: PathBuf,
    names: [String; 2],
    addresses: [IpAddr; 2],
}

impl Sites {
    pub(crate) fn name(&self, site: usize) -> String {
        self.0.names[site].clone()
    }

    pub(crate) fn address(&self, site: usize) -> IpAddr {
        self.0.addresses[site]
    }

    fn set(&self, rtt: Duration, loss: &str) -> Result<()> {
        control(
            &self.0.tool,
            &self.0.socket,
            &["set", "all", &format!("rtt={}ms", rtt.as_millis()), &format!("loss={loss}")],
        )?;
        Ok(())
    }

    /// Bytes that both sites sent so far.
    pub(crate) fn carried(&self) -> u64 {
        control(&self.0.tool, &self.0.socket, &["stats"]).map_or(0, |stats| bytes(&stats))
    }
}

fn bytes(stats: &str) -> u64 {
    let mut lines = stats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let head = lines.next().unwrap_or_default();
    let Some(at) = head.iter().position(|name| *name == "bytes") else { return 0 };
    lines.filter(|line| line.len() == head.len()).filter_map(|line| line[at].parse::<u64>().ok()).sum()
}

/// The network, for as long as this is there.
struct Network {
    sites: Sites,
    names: Namespaces,
    tool: Child,
    _folder: tempfile::TempDir,
}

/// Namespaces that go away again.
struct Namespaces([String; 2]);

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.tool.kill();
        let _ = self.tool.wait();
        let _ = &self.names;
    }
}

impl Network {
    fn start(tool: &Path) -> Result<Network> {
        let process = std::process::id();
        let names = Namespaces(["east", "west"].map(|site| format!("tagalong-{process}-{site}")));
        for name in &names.0 {
            succeed(Command::new("ip").args(["netns", "add", name]))?;
        }
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("socket");
        let mut child = Command::new(tool)
            .arg("run")
            .arg("--sock")
            .arg(&socket)
            .args(&names.0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let begun = Instant::now();
        while control(tool, &socket, &["ping"]).is_err() {
            if begun.elapsed() > PATIENCE || child.try_wait()?.is_some() {
                let _ = child.kill();
                let _ = child.wait();
                return Err("the tool did not start".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let listed = control(tool, &socket, &["sites"])?;
        let address = |name: &String| -> Result<IpAddr> {
            let line = listed.lines().find_map(|line| line.strip_prefix(name.as_str()));
            Ok(line.ok_or("the tool does not know a site")?.trim().parse()?)
        };
        let addresses = [address(&names.0[0])?, address(&names.0[1])?];
        let inner = Inner { tool: tool.to_owned(), socket, names: names.0.clone(), addresses };
        Ok(Network { sites: Sites(Arc::new(inner)), names, tool: child, _folder: folder })
    }
}

fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // Without the command: paths are nobody's business.
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
}

fn control(tool: &Path, socket: &Path, words: &[&str]) -> Result<String> {
    succeed(Command::new(tool).args(["ctl", "--sock"]).arg(socket).args(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_all_links_are_counted() {
        let stats = "from to packets bytes lost\na b 2 100 0\nb a 1 20 0\nunroutable 2\n";
        assert_eq!(bytes(stats), 120);
        assert_eq!(bytes("nonsense"), 0);
    }
}
