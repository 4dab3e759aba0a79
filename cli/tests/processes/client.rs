//! The test's side of a worker process.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::node::signal;
use crate::wait::eventually;
use crate::worker::ROLE;

pub(crate) struct Client {
    name: String,
    id: String,
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
    heard: Option<std::thread::JoinHandle<()>>,
}

impl Client {
    /// A client; with a `cache` it keeps its session there.
    pub(crate) fn start(name: &str, endpoints: &[&str], cache: Option<&Path>) -> Self {
        let role = json!({"kind": "client", "domain": name, "endpoints": endpoints, "cache": cache});
        Self::spawn(name, &role)
    }

    pub(crate) fn diverging_backup(endpoint: &str) -> Self {
        Self::spawn("diverging", &json!({"kind": "diverging-backup", "endpoints": [endpoint]}))
    }

    fn spawn(name: &str, role: &serde_json::Value) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker::worker", "--nocapture", "--test-threads=1"])
            .env(ROLE, role.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let theirs = Arc::clone(&lines);
        let stdout = child.stdout.take().unwrap();
        let heard = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, line)) = line.split_once("@@ ") {
                    theirs.lock().unwrap().push(line.to_owned());
                }
            }
        });
        let stdin = child.stdin.take();
        let mut client =
            Self { name: name.to_owned(), id: String::new(), child: Some(child), stdin, lines, heard: Some(heard) };
        client.id = client.hears(0, "id ");
        client
    }

    /// A session's identity; a backup's endpoint.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Everything it has said.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// What follows `prefix` on the first such line after the first `skip` ones.
    pub(crate) fn hears(&self, skip: usize, prefix: &str) -> String {
        eventually(&format!("{} to say {prefix:?}", self.name), || {
            let lines = self.lines.lock().unwrap();
            lines.iter().skip(skip).find_map(|line| line.strip_prefix(prefix)).map(str::to_owned)
        })
    }

    pub(crate) fn call(&mut self, call: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{call}").unwrap();
    }

    /// Calls, and returns what follows `prefix` on the first such line since.
    pub(crate) fn ask(&mut self, call: &str, prefix: &str) -> String {
        let skip = self.lines.lock().unwrap().len();
        self.call(call);
        self.hears(skip, prefix)
    }

    pub(crate) fn get(&mut self, key: &str) -> String {
        self.ask(&format!("get {key}"), "value ")
    }

    /// Appends, and waits for the acknowledgement.
    pub(crate) fn append(&mut self, key: &str, value: &str) {
        let outcome = self.ask(&format!("append {key} {value}"), &format!("append {value} "));
        assert!(outcome.starts_with("acked "), "{value}: {outcome}");
    }

    /// Everything it issued is stable.
    pub(crate) fn flush(&mut self) {
        assert_eq!(self.ask("flush", "flushed "), "Ok(())");
    }

    /// Ends its load, when everything is answered.
    pub(crate) fn halt(&mut self) -> u64 {
        self.ask("halt", "halted ").parse().unwrap()
    }

    /// SIGSTOP, say.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.as_ref().unwrap(), name);
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before counts.
        self.heard.take().unwrap().join().unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let lines = self.lines();
            eprintln!("---- the last words of {}\n{}", self.name, lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
