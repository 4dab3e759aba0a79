//! The groups of checks, and how their commands are run: with a limit, and with an eye on who fails.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Debug builds without line tables: half the time goes into the linker otherwise.
const LEAN: &str = "--config profile.test.package.tagalong.debug=false";

const STORIES: &str = "test --no-default-features --features seeded-bugs --test stories --test scenarios --test together \
     --test following --test reigns --test caches --test verdicts";
const SIMULATOR: &str = "test --no-default-features --features seeded-bugs --test sim -- a_few scenarios";
const BYTES: &str =
    "test --no-default-features --features seeded-bugs --test codec --test decode --test field --test hostile";

/// The core, cheapest first: stories, then the simulator, then well-typed nonsense and what is built for one module.
const CORE: &[&str] = &[STORIES, SIMULATOR, BYTES];

/// The same, and the histories of coverage.
const COVER: &[&str] =
    &[STORIES, BYTES, "test --no-default-features --features seeded-bugs --test cover -- --skip without", SIMULATOR];

/// The file stores: what is in the directory, and what a caller may rely on.
const STORES: &[&str] = &[
    "test --no-default-features --features seeded-bugs --lib --test file_cache --test file_log --test store_conformance",
];

/// Nodes and clients over real sockets.
const RING: &[&str] = &["test --features seeded-bugs --lib --test grpc --test covered --test grpc_faults --test lanes"];

/// Real processes, whose clients are killed with the primary and come back on their caches.
const DRILL: &[&str] = &[
    "run --release --example disaster -- --mode tagged --clients 8 --client-deaths 6 --rate 300 --seconds 3",
    "run --release --example disaster -- --mode sync,covered --clients 4 --kill-clients 1 --seconds 3",
];

/// The commands of a group; none if there is no such group.
pub(crate) fn commands(group: &str) -> &'static [&'static str] {
    match group {
        "core" => CORE,
        "cover" => COVER,
        "stores" => STORES,
        "ring" => RING,
        "drill" => DRILL,
        _ => &[],
    }
}

/// A command's words: to build, and to run.
pub(crate) fn halves(command: &str) -> (Vec<String>, Vec<String>) {
    let (cargo, rest) = command.split_once(" -- ").unwrap_or((command, ""));
    let mut words: Vec<String> = cargo.split_whitespace().map(str::to_owned).collect();
    if words[0] == "test" {
        words.extend(LEAN.split_whitespace().map(str::to_owned));
    }
    let mut build = words.clone();
    match words[0].as_str() {
        "test" => build.push("--no-run".to_owned()),
        _ => build[0] = "build".to_owned(),
    }
    words.push("--".to_owned());
    words.extend(rest.split_whitespace().map(str::to_owned));
    (build, words)
}

/// How a command ended.
pub(crate) enum Ran {
    Passed,
    /// With what it said.
    Failed(String),
    Late,
}

/// Runs a command in a process group of its own, which ends with it.
pub(crate) fn run(mut command: Command, limit: Duration) -> Ran {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Ran::Failed(format!("error: cargo cannot be started: {error}")),
    };
    let out = [child.stdout.take().map(reader), child.stderr.take().map(reader)];
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if begun.elapsed() < limit => std::thread::sleep(Duration::from_millis(50)),
            _ => break None,
        }
    };
    end(&mut child);
    let text: String = out.into_iter().flatten().filter_map(|thread| thread.join().ok()).collect();
    match status {
        None => Ran::Late,
        Some(status) if status.success() => Ran::Passed,
        Some(_) => Ran::Failed(text),
    }
}

fn reader(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Ends whatever is left of the command's process group.
fn end(child: &mut Child) {
    #[cfg(unix)]
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).stderr(Stdio::null()).status();
    let _ = child.kill();
    let _ = child.wait();
}

/// The first error of a build.
pub(crate) fn first_error(text: &str) -> String {
    let lines = text.lines().skip_while(|line| !line.starts_with("error")).take(8);
    lines.collect::<Vec<_>>().join("\n")
}

/// What a command tests, in a word.
pub(crate) fn target(command: &str) -> &str {
    let word = |flag: &str| command.split(flag).nth(1).and_then(|rest| rest.split_whitespace().next());
    word("--example ").or_else(|| word("--test ")).unwrap_or("lib")
}

/// Who failed, from what cargo and the tests said.
pub(crate) fn catcher(command: &str, text: &str) -> String {
    let rerun = text.lines().find_map(|line| line.split("to rerun pass `").nth(1));
    let by = rerun
        .map(|rest| rest.trim_end_matches('`').replace("-p tagalong ", "").replace("--test ", "").replace("--", ""));
    let by = by.unwrap_or_else(|| target(command).to_owned());
    let failed = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
    let tests: Vec<String> = text.lines().filter_map(failed).collect();
    match tests.as_slice() {
        [] => by,
        [one] => format!("{by}: {one}"),
        [first, rest @ ..] => format!("{by}: {first} and {} more", rest.len()),
    }
}
