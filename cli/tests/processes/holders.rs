//! Holders by the command: with them one writer alone is covered, and may die with the primary.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use crate::audit::{audit, numbered};
use crate::client::Client;
use crate::node::{Node, TAGALONG, done};
use crate::relay::Relay;
use crate::wait::eventually;

/// A process of `tagalong hold`.
struct Holder {
    child: Option<Child>,
    id: String,
    log: Arc<Mutex<String>>,
}

impl Holder {
    fn start(name: &str, endpoints: &[&str], cache: Option<&Path>) -> Self {
        let mut command = Command::new(TAGALONG);
        command.args(["hold", "--domain", name, "--status-every-s", "0.1"]).env("RUST_LOG", "info");
        for endpoint in endpoints {
            command.args(["--endpoint", endpoint]);
        }
        if let Some(dir) = cache {
            command.arg("--cache").arg(dir);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::<Mutex<String>>::default();
        let (stderr, theirs) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || keep(stderr, &theirs));
        let mut said = String::new();
        // At the end of the process, too.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let mut holder = Self { child: Some(child), id: String::new(), log };
        let said = said.trim_end().strip_prefix("tagalong: holding as ").and_then(|said| said.strip_suffix(name));
        let said = said.unwrap_or_else(|| panic!("{name} does not hold:\n{}", holder.log()));
        holder.id = said.strip_suffix(" in ").unwrap().to_owned();
        holder
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// SIGTERM, and the end.
    fn stop(&mut self) -> ExitStatus {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
        let child = self.child.as_mut().unwrap();
        let status = eventually("a holder to end", || child.try_wait().unwrap());
        self.child = None;
        status
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("---- log of a holder\n{}", self.log());
        }
    }
}

fn keep(stderr: ChildStderr, log: &Mutex<String>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        *log.lock().unwrap() += &format!("{line}\n");
    }
}

/// A covered primary, and its backup over a link.
fn covered(dir: &Path) -> (Node, Relay, Node) {
    let key = dir.join("key");
    done(&["share-key", key.to_str().unwrap()]);
    let flags = ["--level", "covered", "--f", "1", "--share-key", key.to_str().unwrap(), "--suspend-after-s", "600"];
    let primary = Node::start("east", dir, &flags);
    let relay = Relay::to(primary.endpoint());
    let backup = Node::backup("west", dir, &relay.endpoint(), &flags);
    (primary, relay, backup)
}

fn session<'a>(status: &'a Value, id: &str) -> Option<&'a Value> {
    status["sessions"].as_array().into_iter().flatten().find(|session| session["client"] == id)
}

#[test]
fn with_two_holders_one_writer_may_die_with_the_primary() {
    let dir = TempDir::new().unwrap();
    let (mut primary, relay, backup) = covered(dir.path());
    let endpoints = [primary.endpoint().to_owned(), backup.endpoint().to_owned()];
    let endpoints = [endpoints[0].as_str(), endpoints[1].as_str()];
    let mut holders = ["h1", "h2"].map(|name| Holder::start(name, &endpoints, None));
    let mut writer = Client::start("w", &endpoints, None);
    writer.append("list", "safe;");
    writer.flush();
    relay.cut();
    primary.wait("to see the backup gone", |status| status["connected"] == false);
    for n in 0..20 {
        writer.append("list", &format!("w{n};"));
    }
    let told = |holder: &Holder| holder.log().lines().any(|line| line.contains("keeps ") && !line.contains("keeps 0 "));
    eventually("the holders to say what they keep", || holders.iter().any(told).then_some(()));
    primary.kill();
    writer.kill();

    // Nobody decides anything.
    done(&["promote", backup.endpoint()]);
    backup.opens();
    let report = ["missing", "policy", "gaps"].map(|field| backup.report(field));
    assert_eq!(report, [format!("[{}]", writer.id()), "none".to_owned(), "[]".to_owned()]);
    let mut reader = Client::start("r", &endpoints[1..], None);
    let list = reader.get("list");
    assert_eq!((audit(&list, &[&writer]), numbered(&list, "w")), (21, 20));
    for holder in &mut holders {
        assert!(holder.log().contains("reports to the recovery"), "{}", holder.log());
        assert!(holder.stop().success(), "{}", holder.log());
        assert!(holder.log().contains("closed in good order"), "{}", holder.log());
    }
}

#[test]
fn a_holder_killed_on_its_cache_goes_on_and_one_that_stopped_begins_anew() {
    let dir = TempDir::new().unwrap();
    let (primary, _relay, backup) = covered(dir.path());
    let endpoints = [primary.endpoint(), backup.endpoint()];
    let cache = dir.path().join("holder");
    let mut holder = Holder::start("h", &endpoints, Some(&cache));
    let first = holder.id.clone();
    primary.wait("to know the holder", |status| session(status, &first).is_some_and(|it| it["role"] == "holder"));
    holder.kill();
    let mut holder = Holder::start("h", &endpoints, Some(&cache));
    assert_eq!(holder.id, first, "the cache is the session");
    assert!(holder.stop().success(), "{}", holder.log());
    primary.wait("to have let the holder go", |status| session(status, &first).is_none());
    let mut holder = Holder::start("h", &endpoints, Some(&cache));
    assert_ne!(holder.id, first, "that session has ended");

    // And where somebody else ended it.
    let second = holder.id.clone();
    primary.wait("to know the new session", |status| session(status, &second).is_some());
    holder.kill();
    done(&["end-session", primary.endpoint(), &second]);
    primary.wait("to have ended the session", |status| session(status, &second).is_none());
    let mut holder = Holder::start("h", &endpoints, Some(&cache));
    assert_ne!(holder.id, second);
    assert!(holder.log().contains("beginning a new one"), "{}", holder.log());
    assert!(holder.stop().success());
}
