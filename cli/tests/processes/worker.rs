//! What the other processes of these tests run: this executable again, told by its environment what to be.
//!
//! A client takes calls from stdin, a line each, and prints what becomes of them. A line of its own begins with `@@ `,
//! which tells it from what the test harness prints.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde_json::Value;
use tagalong::client::ClientEvent;
use tagalong::log::Entry;
use tagalong::store::StateMachine;
use tagalong::store::file::{FileCache, FileCacheOptions};
use tagalong::store::kv::{KvCommand, KvQuery, KvReply, KvStore};
use tagalong::store::memory::MemoryLog;
use tagalong::{Backup, ClientEvents, Result, TaggedClient, WriteOutcome};

/// Says what the process is to be, as JSON.
pub(crate) const ROLE: &str = "TAGALONG_TEST_ROLE";

/// Not a test: the body of the other processes. Without its variable in the environment it is done at once.
#[test]
fn worker() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let role: Value = serde_json::from_str(&role).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        match role["kind"].as_str() {
            Some("client") => client(&role).await,
            Some("diverging-backup") => diverging_backup(&role).await,
            other => panic!("no role {other:?}"),
        }
    });
    std::process::exit(0);
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@@ {text}").and_then(|()| out.flush()).unwrap();
}

/// The lines of stdin.
fn calls() -> tokio::sync::mpsc::Receiver<String> {
    let (sender, calls) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    calls
}

async fn client(role: &Value) {
    let endpoints: Vec<&str> = role["endpoints"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut builder = TaggedClient::builder(role["domain"].as_str().unwrap()).endpoints(endpoints);
    if let Some(dir) = role["cache"].as_str() {
        builder = builder.cache(FileCache::open(dir, FileCacheOptions::default()).unwrap());
    }
    let client = builder.start().await.unwrap();
    // Before anything can have happened.
    tokio::spawn(tell_events(client.events()));
    say(&format!("id {}", client.id()));
    for request in client.unanswered() {
        say(&format!("unanswered {request}"));
        let client = client.clone();
        tokio::spawn(async move {
            let outcome = client.outcome(request).await;
            say(&format!("outcome {request} {}", word(outcome.map(Some))));
        });
    }
    let halted = Arc::new(AtomicBool::new(false));
    let mut load = None;
    let mut calls = calls();
    while let Some(call) = calls.recv().await {
        let words: Vec<&str> = call.split(' ').collect();
        match *words {
            ["append", key, value] => append(&client, key, value),
            ["load", key, prefix] => {
                halted.store(false, Ordering::Relaxed);
                load = Some(tokio::spawn(appends(client.clone(), key.into(), prefix.into(), Arc::clone(&halted))));
            }
            ["halt"] => {
                halted.store(true, Ordering::Relaxed);
                let count = load.take().unwrap().await.unwrap();
                say(&format!("halted {count}"));
            }
            ["bytes", length] => {
                let command = KvCommand::put("big", vec![b'x'; length.parse().unwrap()]).encode();
                let write = client.write(command);
                say("issued");
                let outcome = write.await;
                say(&format!("bytes {}", word(outcome.map(Some))));
            }
            ["get", key] => match client.read(KvQuery::get(key).encode()).await {
                Ok(reply) => {
                    let value = KvReply::decode(&reply).unwrap().value().cloned().unwrap_or_default();
                    say(&format!("value {}", String::from_utf8_lossy(&value)));
                }
                Err(error) => say(&format!("error {error}")),
            },
            ["flush"] => say(&format!("flushed {:?}", client.flush().await.map_err(|error| error.code()))),
            ["unsent"] => say(&format!("unsent {}", client.stats().unsent)),
            _ => panic!("no call {call}"),
        }
    }
}

/// Issues an append; what becomes of it is told when it is known.
fn append(client: &TaggedClient, key: &str, value: &str) {
    let writing = client.write(KvCommand::append(key, value).encode());
    let value = value.to_owned();
    tokio::spawn(async move {
        let outcome = word(writing.await.map(Some));
        say(&format!("append {value} {outcome}"));
    });
}

/// Appends numbered values in bursts until halted, and returns how many, when all are answered.
///
/// Bursts, because a kill is to come when much is under way; and not as fast as can be, because the machine has other
/// work.
async fn appends(client: TaggedClient, key: String, prefix: String, halted: Arc<AtomicBool>) -> u64 {
    let mut count = 0;
    while !halted.load(Ordering::Relaxed) {
        let mut burst = Vec::new();
        for _ in 0..32 {
            let value = format!("{prefix}{count};");
            burst.push((client.write(KvCommand::append(&key, &value).encode()), value));
            count += 1;
        }
        for (writing, value) in burst {
            let outcome = word(writing.await.map(Some));
            say(&format!("append {value} {outcome}"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    count
}

/// An outcome in two words: what, and the length of the list if it is known.
fn word(outcome: Result<Option<WriteOutcome>>) -> String {
    match outcome {
        Ok(Some(WriteOutcome::Acknowledged { reply, .. })) => match KvReply::decode(&reply).unwrap() {
            KvReply::Length(length) => format!("acked {length}"),
            other => format!("acked {other:?}"),
        },
        Ok(Some(WriteOutcome::Superseded { .. })) => "superseded".to_owned(),
        Ok(Some(WriteOutcome::Unknown { error, .. })) => format!("unknown {:?}", error.code()),
        Ok(_) => "nothing".to_owned(),
        Err(error) => format!("error {:?}", error.code()),
    }
}

async fn tell_events(mut events: ClientEvents) {
    while let Some(event) = events.next().await {
        match event {
            ClientEvent::Attached { epoch } => say(&format!("event attached {epoch}")),
            ClientEvent::Recovering { epoch } => say(&format!("event recovering {epoch}")),
            ClientEvent::Waiting(error) => say(&format!("event waiting {:?}", error.code())),
            ClientEvent::Refused(error) => say(&format!("event refused {:?}", error.code())),
            ClientEvent::Superseded { payload, .. } => match KvCommand::decode(&payload).unwrap() {
                KvCommand::Append { value, .. } => {
                    say(&format!("event superseded {}", String::from_utf8_lossy(&value)));
                }
                other => say(&format!("event superseded {other:?}")),
            },
            ClientEvent::RolledBack { observed, .. } => say(&format!("event rolled-back {observed}")),
            other => say(&format!("event {other:?}")),
        }
    }
}

/// A state machine that goes wrong at the append of one value.
struct Diverging(KvStore);

impl StateMachine for Diverging {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> std::io::Result<()> {
        let before = replies.len();
        self.0.apply(commands, replies)?;
        for (command, reply) in commands.iter().zip(&mut replies[before..]) {
            if command.payload.ends_with(b"poison;") {
                *reply = KvReply::Length(0).encode();
            }
        }
        Ok(())
    }

    fn query(&mut self, query: &Bytes) -> std::io::Result<Bytes> {
        self.0.query(query)
    }

    fn snapshot(&self, out: &mut dyn Write) -> std::io::Result<()> {
        self.0.snapshot(out)
    }

    fn restore(&mut self, from: &mut dyn std::io::Read) -> std::io::Result<()> {
        self.0.restore(from)
    }
}

async fn diverging_backup(role: &Value) {
    let primary = role["endpoints"][0].as_str().unwrap();
    let backup = Backup::builder("west", MemoryLog::new(), Diverging(KvStore::new()), primary);
    let backup = backup.start().await.unwrap();
    say(&format!("id {}", backup.endpoint()));
    backup.in_sync().await.unwrap();
    say("in-sync");
    // Nobody promotes it: it ends by failing.
    let error = backup.promoted().await.err().unwrap();
    say(&format!("failed {error}"));
    let mut calls = calls();
    while calls.recv().await.is_some() {}
}
