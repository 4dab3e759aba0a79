//! What a node and a client do when their surroundings are odd: large frames, code of the application that panics, a
//! runtime that ends first.

#![cfg(feature = "grpc")]
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tagalong::client::{CacheOp, ClientSettings, Command};
use tagalong::log::{Digest, Entry, Level, Lsn, Record, Request};
use tagalong::node::RecoveryPolicy;
use tagalong::primary::PrimarySettings;
use tagalong::store::kv::{KvCommand, KvQuery, KvReply, KvStore};
use tagalong::store::memory::{MemoryCache, MemoryLog};
use tagalong::store::{ClientCache, LogStore, Marks, StateMachine};
use tagalong::{Backup, Code, NetSettings, Primary, TaggedClient, WriteOptions, WriteOutcome};

const SOON: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what} took more than {SOON:?}"))
}

fn settings() -> PrimarySettings {
    PrimarySettings { lowest: Level::Tagged, ..PrimarySettings::default() }
}

fn narrow() -> NetSettings {
    let mut net = NetSettings::default();
    net.message_bytes_max = 4 << 20;
    net
}

async fn start(log: impl LogStore, state: impl StateMachine) -> Primary {
    let primary = Primary::builder("east", log, state).settings(settings()).net(narrow()).start().await.unwrap();
    within("opening", primary.opened()).await.unwrap();
    primary
}

async fn client(primary: &Primary) -> TaggedClient {
    let client = TaggedClient::builder("rack-1").endpoints([primary.endpoint()]).net(narrow());
    client.connect_within(SOON).connect().await.unwrap()
}

async fn read_all(client: &TaggedClient, queries: Vec<Bytes>) -> Vec<KvReply> {
    let mut reads = tokio::task::JoinSet::new();
    for query in queries {
        let client = client.clone();
        reads.spawn(async move { client.read(query).await });
    }
    let results = within("the reads", reads.join_all()).await;
    results.into_iter().map(|result| KvReply::decode(&result.unwrap()).unwrap()).collect()
}

/// Together the results are more than one message may carry.
#[tokio::test]
async fn many_large_results() {
    let primary = start(MemoryLog::new(), KvStore::new()).await;
    let client = client(&primary).await;
    let value = Bytes::from(vec![7; 600 << 10]);
    within("a write", client.write(KvCommand::put("large", value.clone()).encode())).await.unwrap().reply().unwrap();
    for reply in read_all(&client, vec![KvQuery::get("large").encode(); 16]).await {
        assert_eq!(reply.value(), Some(&value));
    }
}

/// Together the queries are more than one message may carry.
#[tokio::test]
async fn many_large_queries() {
    let primary = start(MemoryLog::new(), KvStore::new()).await;
    let client = client(&primary).await;
    let key = "k".repeat(900 << 10);
    for reply in read_all(&client, vec![KvQuery::get(key.as_str()).encode(); 8]).await {
        assert_eq!(reply.value(), None);
    }
}

/// One result that does not fit into a message.
#[tokio::test]
async fn a_result_too_large_for_a_message_is_refused() {
    let primary = start(MemoryLog::new(), Echo(3 << 20)).await;
    let client = client(&primary).await;
    assert_eq!(within("a read", client.read(&b"a"[..])).await.unwrap_err().code(), Code::TooLarge);
    assert_eq!(within("a read", client.read(&b""[..])).await.unwrap().len(), 0);
}

/// Answers a query with so many bytes for each of its own.
struct Echo(usize);

impl StateMachine for Echo {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> std::io::Result<()> {
        replies.extend(commands.iter().map(|_| Bytes::new()));
        Ok(())
    }
    fn query(&mut self, query: &Bytes) -> std::io::Result<Bytes> {
        Ok(vec![0; self.0 * query.len()].into())
    }
    fn snapshot(&self, _: &mut dyn std::io::Write) -> std::io::Result<()> {
        Ok(())
    }
    fn restore(&mut self, _: &mut dyn std::io::Read) -> std::io::Result<()> {
        Ok(())
    }
}

/// A report of more parts than the stream's queue takes.
#[tokio::test]
async fn long_report() {
    let mut net = narrow();
    net.queue_max = 64;
    let primary = start(MemoryLog::new(), KvStore::new()).await;
    let backup = Backup::builder("west", MemoryLog::new(), KvStore::new(), primary.endpoint()).settings(settings());
    let backup = backup.start().await.unwrap();
    within("attaching", backup.in_sync()).await.unwrap();
    let cache = MemoryCache::new();
    let builder = || {
        let endpoints = [primary.endpoint(), backup.endpoint()];
        TaggedClient::builder("rack-1").endpoints(endpoints).cache(cache.clone()).net(net.clone())
    };
    let client = within("connecting", builder().connect()).await.unwrap();
    within("a write", client.write(KvCommand::put("a", "b").encode())).await.unwrap().reply().unwrap();
    within("a flush", client.flush()).await.unwrap();
    drop(client);
    // What a process may have left behind that was cut off while it wrote.
    let payload = KvCommand::put("a", "c").encode();
    let left = |request| CacheOp::Command {
        request: Request(request),
        command: Command {
            answered: Request(1),
            level: Level::Local,
            withdrawn: false,
            digest: Digest::crc32(&payload),
            payload: payload.clone(),
            tag: None,
            reply: None,
        },
    };
    let left: Vec<CacheOp> = (2..70_000).map(left).collect();
    cache.clone().write(&left).unwrap();
    primary.abort().await;
    let recovery = within("promoting", backup.promote(RecoveryPolicy::Wait)).await.unwrap();
    let _client = builder().start().await.unwrap();
    within("recovering", recovery.opened()).await.unwrap();
}

/// A log that panics.
struct Panicking(MemoryLog, Arc<AtomicBool>);

impl LogStore for Panicking {
    fn marks(&mut self) -> std::io::Result<Option<Marks>> {
        self.0.marks()
    }
    fn save_marks(&mut self, marks: &Marks) -> std::io::Result<()> {
        self.0.save_marks(marks)
    }
    fn bounds(&self) -> Range<Lsn> {
        self.0.bounds()
    }
    fn read(&mut self, from: Lsn, bytes_max: usize) -> std::io::Result<Vec<Record>> {
        self.0.read(from, bytes_max)
    }
    fn append(&mut self, records: &[Record]) -> std::io::Result<()> {
        assert!(!self.1.load(Ordering::Relaxed), "as the test wants it");
        self.0.append(records)
    }
    fn sync(&mut self) -> std::io::Result<Lsn> {
        self.0.sync()
    }
    fn truncate_after(&mut self, last: Lsn) -> std::io::Result<()> {
        self.0.truncate_after(last)
    }
}

#[tokio::test]
async fn a_log_that_panics() {
    let panics = Arc::new(AtomicBool::new(false));
    let primary = start(Panicking(MemoryLog::new(), Arc::clone(&panics)), KvStore::new()).await;
    let client = client(&primary).await;
    panics.store(true, Ordering::Relaxed);
    let write = client.write(KvCommand::put("a", "b").encode());
    assert_eq!(within("the failure", primary.stopped()).await.code(), Code::Storage);
    drop(write);
}

struct PanickingCache(MemoryCache, Arc<AtomicBool>);

impl ClientCache for PanickingCache {
    fn load(&mut self) -> std::io::Result<Vec<CacheOp>> {
        self.0.load()
    }
    fn write(&mut self, ops: &[CacheOp]) -> std::io::Result<()> {
        assert!(!self.1.load(Ordering::Relaxed), "as the test wants it");
        self.0.write(ops)
    }
}

#[tokio::test]
async fn a_cache_that_panics() {
    let panics = Arc::new(AtomicBool::new(false));
    let primary = start(MemoryLog::new(), KvStore::new()).await;
    let cache = PanickingCache(MemoryCache::new(), Arc::clone(&panics));
    let client = TaggedClient::builder("rack-1").endpoints([primary.endpoint()]).cache(cache).connect().await.unwrap();
    panics.store(true, Ordering::Relaxed);
    let write = client.write(KvCommand::put("a", "b").encode());
    let outcome = within("a write", write).await.unwrap();
    assert_eq!(outcome.reply().unwrap_err().code(), Code::Storage);
}

struct PanickingState(KvStore);

impl StateMachine for PanickingState {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> std::io::Result<()> {
        assert!(!commands.iter().any(|entry| entry.payload == b"boom"[..]), "as the test wants it");
        self.0.apply(commands, replies)
    }
    fn query(&mut self, query: &Bytes) -> std::io::Result<Bytes> {
        self.0.query(query)
    }
    fn snapshot(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        self.0.snapshot(out)
    }
    fn restore(&mut self, from: &mut dyn std::io::Read) -> std::io::Result<()> {
        self.0.restore(from)
    }
}

#[tokio::test]
async fn a_state_machine_that_panics() {
    let primary = start(MemoryLog::new(), PanickingState(KvStore::new())).await;
    let client = client(&primary).await;
    let _write = client.write(&b"boom"[..]);
    let why = within("the failure", primary.stopped()).await;
    assert_eq!(why.code(), Code::Storage, "{why}");
    assert_eq!(within("a stop", primary.stop()).await.unwrap_err().code(), Code::Storage);
    assert_eq!(primary.status().await.unwrap_err().code(), Code::Storage);
}

/// The runtime of a client ends before its handles do.
#[test]
fn a_client_outlives_its_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = TaggedClient::builder("rack-1").endpoints(["http://127.0.0.1:1"]);
    let client = runtime.block_on(client.start()).unwrap();
    let write = client.write(&b"a"[..]);
    runtime.shutdown_timeout(SOON);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    other.block_on(async {
        let outcome = within("the write", write).await.unwrap();
        assert!(matches!(&outcome, WriteOutcome::Unknown { error, .. } if error.code() == Code::Closed), "{outcome:?}");
        assert_eq!(within("a read", client.read(&b"b"[..])).await.unwrap_err().code(), Code::Closed);
        assert_eq!(within("a flush", client.flush()).await.unwrap_err().code(), Code::Closed);
        assert_eq!(within("attaching", client.attached()).await.unwrap_err().code(), Code::Closed);
    });
}

#[tokio::test]
async fn odd_settings() {
    let mut net = NetSettings::default();
    net.queue_max = usize::MAX / 64;
    assert_eq!(net.validate().unwrap_err().code(), Code::InvalidArgument);
    let mut net = NetSettings::default();
    net.replication_window_bytes = u32::MAX;
    assert_eq!(net.validate().unwrap_err().code(), Code::InvalidArgument);
    let mut net = NetSettings::default();
    net.backoff_min = Duration::MAX;
    net.backoff_max = Duration::MAX;
    let settings = ClientSettings { queries_max: usize::MAX, ..ClientSettings::default() };
    let client = TaggedClient::builder("rack-1").endpoints(["http://127.0.0.1:1"]).settings(settings).net(net);
    let _ = client.start().await;
}

#[test]
fn a_deadline_is_asked_for_outside_of_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = TaggedClient::builder("rack-1").endpoints(["http://127.0.0.1:1"]);
    let client = runtime.block_on(client.start()).unwrap();
    let write = client.write_opts(&b"a"[..], WriteOptions::default().deadline(Duration::from_millis(1)));
    let outcome = runtime.block_on(write).unwrap();
    assert!(matches!(&outcome, WriteOutcome::Unknown { error, .. } if error.code() == Code::Deadline), "{outcome:?}");
}

/// A cache that says when it was let go.
struct Released(MemoryCache, Arc<AtomicBool>);

impl Drop for Released {
    fn drop(&mut self) {
        // Long enough for a close that does not wait to be caught.
        std::thread::sleep(Duration::from_millis(50));
        self.1.store(true, Ordering::SeqCst);
    }
}

impl ClientCache for Released {
    fn load(&mut self) -> std::io::Result<Vec<CacheOp>> {
        self.0.load()
    }
    fn write(&mut self, ops: &[CacheOp]) -> std::io::Result<()> {
        self.0.write(ops)
    }
}

#[tokio::test]
async fn a_closed_client_has_let_go_of_its_cache() {
    let primary = start(MemoryLog::new(), KvStore::new()).await;
    let released = Arc::new(AtomicBool::new(false));
    let cache = Released(MemoryCache::new(), Arc::clone(&released));
    let client = TaggedClient::builder("rack-1").endpoints([primary.endpoint()]).cache(cache).connect().await.unwrap();
    within("a close", client.close()).await.unwrap();
    assert!(released.load(Ordering::SeqCst), "another process could not open it yet");
}
