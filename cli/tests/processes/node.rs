//! A node: a process of `tagalong serve` that can be killed and started again on the same directory and port.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::wait::{LIMIT, eventually};

pub(crate) const TAGALONG: &str = env!("CARGO_BIN_EXE_tagalong");

/// Reads a pipe to its end, on a thread: a process that says much must not wait for a reader.
fn read_all(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for the end of a process; one that has none is killed.
fn output(mut child: Child, what: &str) -> Output {
    let [stdout, stderr] = [child.stdout.take().map(read_all), child.stderr.take().map(read_all)];
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            let said = stderr.map(|pipe| pipe.join().unwrap()).unwrap_or_default();
            panic!("{what} does not end:\n{}", String::from_utf8_lossy(&said));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let [stdout, stderr] = [stdout, stderr].map(|pipe| pipe.map(|pipe| pipe.join().unwrap()).unwrap_or_default());
    Output { status, stdout, stderr }
}

/// Sends a signal by name to a process.
pub(crate) fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}

/// Runs the command to its end.
pub(crate) fn tagalong(args: &[&str]) -> Output {
    let mut command = Command::new(TAGALONG);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    output(command.spawn().unwrap(), &format!("tagalong {}", args.join(" ")))
}

/// Runs the command, which must succeed, and returns what it printed.
pub(crate) fn done(args: &[&str]) -> String {
    let output = tagalong(args);
    assert!(output.status.success(), "tagalong {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the command, which must fail with status 1, and returns what it said.
pub(crate) fn refused(args: &[&str]) -> String {
    let output = tagalong(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "tagalong {}: {said}", args.join(" "));
    said
}

pub(crate) struct Node {
    name: String,
    dir: PathBuf,
    flags: Vec<String>,
    /// The network namespace that it runs in, if it is not this one.
    namespace: Option<String>,
    /// Where it is to listen at first.
    listen: String,
    endpoint: String,
    child: Option<Child>,
    /// The stderr of all its processes.
    log: Arc<Mutex<String>>,
}

impl Node {
    fn new(name: &str, dir: &Path, flags: &[&str]) -> Self {
        let flags = flags.iter().map(ToString::to_string).collect();
        let dir = dir.join(name);
        let (name, listen) = (name.to_owned(), "127.0.0.1:0".to_owned());
        let endpoint = String::new();
        Self { name, dir, flags, namespace: None, listen, endpoint, child: None, log: Arc::default() }
    }

    /// A node of this name, in a directory of its own below `dir`. Its domain is its name.
    pub(crate) fn start(name: &str, dir: &Path, flags: &[&str]) -> Self {
        let mut node = Self::new(name, dir, flags);
        node.start_again();
        node
    }

    /// The same, at another address.
    pub(crate) fn at(listen: &str, name: &str, dir: &Path, flags: &[&str]) -> Self {
        let mut node = Self::new(name, dir, flags);
        node.listen = listen.to_owned();
        node.start_again();
        node
    }

    /// The same, in another network namespace.
    pub(crate) fn within(namespace: &str, listen: &str, name: &str, dir: &Path, flags: &[&str]) -> Self {
        let mut node = Self::new(name, dir, flags);
        (node.namespace, node.listen) = (Some(namespace.to_owned()), listen.to_owned());
        node.start_again();
        node
    }

    /// A backup of the primary at `endpoint`, in sync with it.
    pub(crate) fn backup(name: &str, dir: &Path, endpoint: &str, flags: &[&str]) -> Self {
        let node = Self::start(name, dir, &[&["--follow", endpoint], flags].concat());
        node.wait("to be in sync", |status| status["in_sync"] == true && status["connected"] == true);
        node
    }

    /// Starts it, where it was before if it ran before.
    pub(crate) fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        // Somebody may have taken the port for a moment: it is an ephemeral one, and clients dial all the time.
        self.endpoint = eventually(&format!("{} to listen", self.name), || self.try_start());
    }

    fn command(&self) -> Command {
        let listen = self.endpoint.strip_prefix("http://").unwrap_or(&self.listen);
        let mut command = match &self.namespace {
            None => Command::new(TAGALONG),
            Some(namespace) => {
                // It becomes the node itself: killed by its own id like any other.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, TAGALONG]);
                command
            }
        };
        command.arg("serve").arg("--dir").arg(&self.dir).args(["--domain", &self.name, "--listen", listen]);
        command.args(&self.flags).env("RUST_LOG", "info");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn try_start(&mut self) -> Option<String> {
        let mut child = self.command().spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::clone(&self.log);
        let heard = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *log.lock().unwrap() += &format!("{line}\n");
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (said, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            let _ = said.send(line);
        });
        // One that says nothing in time is killed with the handle.
        let child = self.child.insert(child);
        let line = line.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{} does not say where it listens", self.name));
        match line.trim_end().strip_prefix("tagalong: serving on ") {
            Some(endpoint) => Some(endpoint.to_owned()),
            None => {
                child.wait().unwrap();
                self.child = None;
                heard.join().unwrap();
                let log = self.log();
                assert!(log.contains("cannot listen on"), "{} does not start:\n{log}", self.name);
                None
            }
        }
    }

    /// Starts it although that must fail, and returns what it said.
    pub(crate) fn fails_to_start(&self) -> String {
        let output = output(self.command().spawn().unwrap(), &format!("{}, which should not start,", self.name));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Other flags for the next start.
    pub(crate) fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(ToString::to_string).collect();
    }

    /// What its processes have logged, all together.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The last report of a recovery in its log: the value of one of its fields.
    pub(crate) fn report(&self, field: &str) -> String {
        let log = self.log();
        let line = log.lines().rev().find(|line| line.contains("report of the recovery")).unwrap();
        let (_, rest) = line.split_once(&format!("{field}=")).unwrap();
        let end =
            if rest.starts_with('[') { rest.find(']').unwrap() + 1 } else { rest.find(' ').unwrap_or(rest.len()) };
        rest[..end].to_owned()
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The id of its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// SIGSTOP, say.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.as_ref().unwrap(), name);
    }

    /// Waits until the process ends by itself.
    pub(crate) fn exits(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let child = self.child.as_mut().unwrap();
        let status = eventually(&format!("{name} to end"), || child.try_wait().unwrap());
        self.child = None;
        status
    }

    /// `tagalong status`, if it answers.
    pub(crate) fn status(&self) -> Option<Value> {
        let output = tagalong(&["status", "--json", &self.endpoint]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["error"].is_null().then_some(status)
    }

    /// Waits until its status is such.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&format!("{} {what}", self.name), || {
                last = self.status();
                last.clone().filter(&is_so)
            })
        }));
        found.unwrap_or_else(|panic| {
            eprintln!("last status of {}: {last:?}", self.name);
            std::panic::resume_unwind(panic)
        })
    }

    /// Waits until its log has grown by so many entries: that it is under load is seen, not hoped for.
    pub(crate) fn works(&self, entries: u64) {
        let head = |status: &Value| status["head"].as_u64().unwrap_or_default();
        let goal = self.status().as_ref().map_or(0, head) + entries;
        self.wait("to work", |status| head(status) >= goal);
    }

    /// Waits until its reign is open.
    pub(crate) fn opens(&self) -> Value {
        self.wait("to be primary", |status| status["role"] == "primary")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- log of {}\n{}", self.name, self.log());
        }
    }
}
