//! The processes of a drill: started from this very executable, spoken to in lines of JSON, and never left behind.
//!
//! Parent to child: `{"do":"start"}` on its standard input; when that closes, for whatever reason, the child exits. Child
//! to parent: `{"event":"attached", …}` on its standard output; `progress` is kept as the latest only. What a child writes
//! to standard error goes to a file, whose end is shown when something goes wrong. A child is killed by its own handle
//! when its [`Process`] is dropped.

use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::Result;

/// Lines of standard error that are shown.
const TAIL_LINES: usize = 12;
/// Events a child may be ahead of its parent.
const EVENTS_MAX: usize = 256;

/// A child, seen from the parent.
pub(crate) struct Process {
    name: String,
    child: Child,
    orders: ChildStdin,
    events: mpsc::Receiver<Value>,
    progress: Arc<Mutex<Value>>,
    log: PathBuf,
}

impl Process {
    /// Starts this executable with `arguments`; what it writes to standard error goes to a file in `logs`.
    pub(crate) fn spawn(name: &str, logs: &Path, arguments: &[String]) -> Result<Process> {
        let log = logs.join(format!("{name}.log"));
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .envs(crate::ENVIRONMENT.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .kill_on_drop(true)
            .spawn()?;
        let (orders, output) = child.stdin.take().zip(child.stdout.take()).ok_or("a child without pipes")?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let progress = Arc::new(Mutex::new(Value::Null));
        let latest = Arc::clone(&progress);
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "event": "noise", "line": line }));
                if event["event"] == "progress" {
                    *latest.lock() = event;
                } else if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(Process { name: name.into(), child, orders, events, progress, log })
    }

    /// Its latest progress.
    pub(crate) fn progress(&self, what: &str) -> u64 {
        self.progress.lock()[what].as_u64().unwrap_or(0)
    }

    /// Gives an order.
    pub(crate) async fn order(&mut self, what: &str) -> Result<()> {
        let line = format!("{}\n", json!({ "do": what }));
        let sent = self.orders.write_all(line.as_bytes()).await;
        match sent {
            Ok(()) => Ok(()),
            Err(error) => Err(self.complaint(&format!("cannot be told to {what}: {error}"))),
        }
    }

    /// Waits for an event; others are passed over.
    pub(crate) async fn expect(&mut self, event: &str, within: Duration) -> Result<Value> {
        match self.hear(event, within).await? {
            Some(value) => Ok(value),
            None => Err(self.complaint(&format!("was not `{event}` within {within:?}"))),
        }
    }

    /// As [`expect`](Process::expect); `None` if the event did not come in time.
    pub(crate) async fn hear(&mut self, event: &str, within: Duration) -> Result<Option<Value>> {
        let found = tokio::time::timeout(within, async {
            while let Some(value) = self.events.recv().await {
                if value["event"] == event {
                    return Some(value);
                }
            }
            None
        });
        match found.await {
            Ok(Some(value)) => Ok(Some(value)),
            Ok(None) => {
                let status = tokio::time::timeout(Duration::from_secs(2), self.child.wait()).await;
                let how = status.ok().and_then(std::result::Result::ok).map_or("?".into(), |status| status.to_string());
                Err(self.complaint(&format!("ended ({how}) before it was `{event}`")))
            }
            Err(_) => Ok(None),
        }
    }

    /// An error if the process has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.complaint(&format!("ended ({status}) in the middle of the drill"))),
        }
    }

    /// Waits for its orderly end.
    pub(crate) async fn ended(&mut self, within: Duration) -> Result<()> {
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.complaint(&format!("ended with {status}"))),
            Ok(Err(error)) => Err(self.complaint(&format!("cannot be waited for: {error}"))),
            Err(_) => Err(self.complaint(&format!("did not end within {within:?}"))),
        }
    }

    /// SIGKILL: no farewell, no flush. It is sent when this returns; [`kill`](Process::kill) waits for the end.
    pub(crate) fn start_kill(&mut self) -> Result<()> {
        self.child.start_kill().map_err(|error| self.complaint(&format!("cannot be killed: {error}")))
    }

    /// SIGKILL, and the end.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.map_err(|error| self.complaint(&format!("cannot be killed: {error}")))
    }

    fn complaint(&self, what: &str) -> crate::Failure {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ");
        let tail = if tail.is_empty() { "nothing".into() } else { format!("\n    {tail}") };
        format!("the process `{}` {what}; its last words: {tail}", self.name).into()
    }
}

/// The child's side: orders as they come. When the parent is gone this process ends.
pub(crate) fn orders() -> Result<mpsc::Receiver<String>> {
    let (sender, orders) = mpsc::channel(EVENTS_MAX);
    // A thread of its own, so that the process ends at once whatever its runtime is doing.
    std::thread::Builder::new().name("orders".into()).spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            let order: Value = serde_json::from_str(&line).unwrap_or_default();
            if sender.blocking_send(order["do"].as_str().unwrap_or_default().into()).is_err() {
                break;
            }
        }
        std::process::exit(3);
    })?;
    Ok(orders)
}

/// The child's side: tells the parent. A parent that does not listen is gone, and `orders` sees to that.
pub(crate) fn tell(event: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{event}").and_then(|()| out.flush());
}
