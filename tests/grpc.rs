//! Primary, backup and clients over real gRPC on loopback, in one process.

#![cfg(feature = "grpc")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use tagalong::client::ClientEvent;
use tagalong::log::{Entry, GapPolicy, Level, Lsn};
use tagalong::message::Role;
use tagalong::node::RecoveryPolicy;
use tagalong::primary::PrimarySettings;
use tagalong::store::StateMachine;
use tagalong::store::kv::{KvCommand, KvQuery, KvReply, KvStore};
use tagalong::store::memory::{MemoryCache, MemoryLog};
use tagalong::{Backup, Code, Primary, ReadOptions, TaggedClient, WriteOptions, WriteOutcome};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what} took more than {SOON:?}"))
}

fn settings(lowest: Level) -> PrimarySettings {
    PrimarySettings { lowest, ..PrimarySettings::default() }
}

/// A relay between backup and primary that can be cut for good.
struct Link {
    address: std::net::SocketAddr,
    task: tokio::task::JoinHandle<()>,
    cut: tokio::sync::watch::Sender<bool>,
}

impl Link {
    async fn to(address: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap();
        let (cut, mut is_cut) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(async move {
            let mut streams = tokio::task::JoinSet::new();
            loop {
                let (mut near, _) = tokio::select! {
                    stream = listener.accept() => stream.unwrap(),
                    _ = is_cut.wait_for(|cut| *cut) => break,
                };
                streams.spawn(async move {
                    let mut far = TcpStream::connect(address).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
            streams.shutdown().await;
        });
        Self { address: own, task, cut }
    }

    /// Nothing passes any more when this returns.
    async fn cut(self) {
        self.cut.send_replace(true);
        self.task.await.unwrap();
    }
}

async fn start(log: MemoryLog, lowest: Level) -> Primary {
    let primary = Primary::builder("east", log, KvStore::new()).settings(settings(lowest));
    let primary = primary.start().await.unwrap();
    within("opening", primary.opened()).await.unwrap();
    primary
}

async fn follow(log: MemoryLog, lowest: Level, address: std::net::SocketAddr) -> Backup {
    let backup = Backup::builder("west", log, KvStore::new(), format!("http://{address}"));
    let backup = backup.settings(settings(lowest)).start().await.unwrap();
    within("attaching the backup", backup.in_sync()).await.unwrap();
    backup
}

/// A primary and its backup, and the link between them.
async fn service(lowest: Level) -> (Primary, Backup, Link) {
    let primary = start(MemoryLog::new(), lowest).await;
    let link = Link::to(primary.local_addr()).await;
    let backup = follow(MemoryLog::new(), lowest, link.address).await;
    (primary, backup, link)
}

async fn client(domain: &str, endpoints: &[String]) -> TaggedClient {
    TaggedClient::builder(domain).endpoints(endpoints).connect_within(SOON).connect().await.unwrap()
}

async fn get(client: &TaggedClient, key: &str) -> Option<Bytes> {
    let reply = within("a read", client.read(KvQuery::get(key).encode())).await.unwrap();
    KvReply::decode(&reply).unwrap().value().cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_reads_flush_close() {
    let (primary, backup, _link) = service(Level::Tagged).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    let writes: Vec<_> = (0..100).map(|n| client.write(KvCommand::append("list", format!("{n},")).encode())).collect();
    for write in writes {
        let outcome = within("a write", write).await.unwrap();
        assert!(matches!(outcome, WriteOutcome::Acknowledged { tag: Some(_), .. }), "{outcome:?}");
    }
    let list: String = (0..100).map(|n| format!("{n},")).collect();
    assert_eq!(get(&client, "list").await, Some(Bytes::from(list)));
    within("a flush", client.flush()).await.unwrap();
    assert_eq!(client.stats().cached_commands, 0);
    within("a close", client.close()).await.unwrap();
    assert_eq!(client.write(&b"late"[..]).await.unwrap_err().code(), Code::Closed);
    assert!(within("a stop", primary.stop()).await.unwrap());
}

/// Writes that the backup never saw, lost with the primary, come back from the clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disaster_loses_nothing() {
    let (primary, backup, link) = service(Level::Tagged).await;
    let endpoints = [primary.endpoint(), backup.endpoint()];
    let clients = [client("rack-1", &endpoints).await, client("rack-2", &endpoints).await];
    acknowledged(append(&clients[0], "begin,")).await;
    within("a flush", clients[0].flush()).await.unwrap();
    link.cut().await;
    for n in 0..200 {
        let writes = clients.iter().map(|client| client.write(KvCommand::append("list", format!("{n},")).encode()));
        for write in writes.collect::<Vec<_>>() {
            acknowledged(write).await;
        }
    }
    let before = get(&clients[0], "list").await;
    assert_eq!(backup.status().await.unwrap().head, primary.status().await.unwrap().stable, "it saw none of that");
    primary.abort().await;
    let recovery = within("promoting", backup.promote(RecoveryPolicy::Wait)).await.unwrap();
    let (primary, opened) = within("recovering", recovery.opened()).await.unwrap();
    assert_eq!((opened.report.missing, opened.report.gaps, opened.report.policy), (vec![], vec![], None));
    assert_eq!(get(&clients[1], "list").await, before);
    let after = within("a write", clients[0].write(KvCommand::append("list", "end").encode())).await.unwrap();
    assert!(matches!(after, WriteOutcome::Acknowledged { .. }), "{after:?}");
    within("a close", clients[0].close()).await.unwrap();
    within("a stop", primary.stop()).await.unwrap();
}

fn append(client: &TaggedClient, text: &str) -> tagalong::Writing {
    client.write(KvCommand::append("list", text).encode())
}

async fn acknowledged(writing: tagalong::Writing) -> Bytes {
    within("a write", writing).await.unwrap().reply().unwrap()
}

async fn list(client: &TaggedClient) -> String {
    String::from_utf8(get(client, "list").await.unwrap_or_default().to_vec()).unwrap()
}

/// Waits until `found` gives something, asked again whenever the node says something new.
async fn poll<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, asking).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_comes_back_is_named_and_waited_for() {
    let (primary, backup, link) = service(Level::Tagged).await;
    let endpoints = [primary.endpoint(), backup.endpoint()];
    let (stays, goes) = (client("rack-1", &endpoints).await, client("rack-2", &endpoints).await);
    acknowledged(append(&stays, "a")).await;
    within("a flush", stays.flush()).await.unwrap();
    // From here on the clients alone have what is written.
    link.cut().await;
    acknowledged(append(&stays, "b")).await;
    acknowledged(append(&goes, "c")).await;
    acknowledged(append(&stays, "d")).await;
    let gone = goes.id();
    let mut events = stays.events();
    drop(goes);
    primary.abort().await;
    let recovery = within("promoting", backup.promote(RecoveryPolicy::Wait)).await.unwrap();
    let status = poll("the roll call", async || {
        let status = recovery.status().await.unwrap()?;
        (status.reported == 1).then_some(status)
    })
    .await;
    assert_eq!(status.awaited, [gone], "the one that is missing is named");
    within("resolving", recovery.resolve(GapPolicy::Stop)).await.unwrap();
    let (primary, opened) = within("recovering", recovery.opened()).await.unwrap();
    assert_eq!(opened.report.missing, [gone]);
    assert_eq!(list(&stays).await, "ab", "a consistent prefix");
    let superseded = poll("the event", async || match events.next().await.unwrap() {
        ClientEvent::Superseded { payload, .. } => Some(payload),
        _ => None,
    })
    .await;
    assert_eq!(superseded, KvCommand::append("list", "d").encode(), "the author is told what did not survive");
    drop(primary);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_says_what_level_was_met() {
    let (primary, backup, link) = service(Level::Tagged).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    let write = async |level| {
        let write = client.write_opts(KvCommand::append("list", "a").encode(), WriteOptions::default().level(level));
        let outcome = within("a write", write).await.unwrap();
        let WriteOutcome::Acknowledged { tag: Some(tag), met, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(met, tag.met);
        met
    };
    // Nothing is covered where the service does not say for how many domains.
    assert_eq!([write(Level::Stable).await, write(Level::Covered).await], [Level::Stable; 2]);
    link.cut().await;
    assert_eq!([write(Level::Tagged).await, write(Level::Local).await], [Level::Tagged; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_the_waiting_and_the_outcome_is_told_later() {
    let (primary, backup, link) = service(Level::Tagged).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    link.cut().await;
    let options = || WriteOptions::default().level(Level::Stable).deadline(Duration::from_millis(50));
    let outcome = client.write_opts(KvCommand::append("list", "a").encode(), options()).await.unwrap();
    let WriteOutcome::Unknown { request, error } = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.code(), Code::Deadline);
    assert_eq!(client.unanswered(), [request]);
    let late = ReadOptions::default().level(Level::Stable).deadline(Duration::from_millis(50));
    let late = client.read_opts(KvQuery::get("list").encode(), late).await;
    assert_eq!(late.unwrap_err().code(), Code::Deadline);
    primary.abort().await;
    let recovery = backup.promote(RecoveryPolicy::Wait).await.unwrap();
    within("recovering", recovery.opened()).await.unwrap();
    let outcome = within("the outcome", client.outcome(request)).await.unwrap();
    assert!(matches!(outcome, WriteOutcome::Acknowledged { .. }), "{outcome:?}");
    assert_eq!(list(&client).await, "a", "executed once");
    let never = client.outcome(tagalong::log::Request(77)).await;
    assert_eq!(never.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_dropped_before_it_is_sent_withdraws_its_command() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let client = TaggedClient::builder("rack-1").endpoints([format!("http://{address}")]).start().await.unwrap();
    assert_eq!(client.try_write(&b"now"[..]).map(drop).unwrap_err().code(), Code::Busy);
    let (first, dropped, last) = (append(&client, "a"), append(&client, "b"), append(&client, "c"));
    drop(dropped);
    let primary = Primary::builder("east", MemoryLog::new(), KvStore::new()).listen(address).start().await.unwrap();
    acknowledged(first).await;
    acknowledged(last).await;
    assert_eq!(list(&client).await, "ac");
    drop(primary);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_restarted_on_its_cache_hands_over_what_it_held() {
    let (primary, backup, link) = service(Level::Tagged).await;
    let endpoints = [primary.endpoint(), backup.endpoint()];
    let cache = MemoryCache::new();
    let builder = || TaggedClient::builder("rack-1").endpoints(endpoints.clone()).cache(cache.clone());
    let client = builder().connect().await.unwrap();
    let id = client.id();
    acknowledged(append(&client, "a")).await;
    link.cut().await;
    acknowledged(append(&client, "b")).await;
    drop(client);
    primary.abort().await;
    let recovery = backup.promote(RecoveryPolicy::Wait).await.unwrap();
    let client = within("connecting", builder().connect()).await.unwrap();
    assert_eq!(client.id(), id, "the same session");
    let (_, opened) = within("recovering", recovery.opened()).await.unwrap();
    assert!(opened.report.missing.is_empty());
    assert_eq!(list(&client).await, "ab");
    acknowledged(append(&client, "c")).await;
    assert_eq!(list(&client).await, "abc");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_cannot_be_written_ends_the_client_and_nothing_is_acknowledged() {
    let (primary, backup, _link) = service(Level::Tagged).await;
    let cache = MemoryCache::new();
    let endpoints = [primary.endpoint(), backup.endpoint()];
    let client = TaggedClient::builder("rack-1").endpoints(endpoints).cache(cache.clone()).connect().await.unwrap();
    cache.set_write_fails(true);
    // The first one may still get a number before the cache is found to fail; the second one does not.
    let outcome = within("a write", append(&client, "a")).await.and_then(WriteOutcome::reply);
    assert_eq!(outcome.unwrap_err().code(), Code::Storage);
    assert_eq!(within("a write", append(&client, "b")).await.unwrap_err().code(), Code::Storage);
}

/// Each reign begins in the place of the last one: same log, same address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_restarted_in_place_recovers_and_an_orderly_stop_needs_no_roll_call() {
    let (log, kept) = (MemoryLog::new(), MemoryLog::new());
    let mut primary = start(log.clone(), Level::Tagged).await;
    let address = primary.local_addr();
    let backup = follow(kept, Level::Tagged, address).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    let mut expected = String::new();
    for n in 0..5 {
        for m in 0..20 {
            let text = format!("{n}.{m},");
            acknowledged(append(&client, &text)).await;
            expected.push_str(&text);
        }
        primary.abort().await;
        // The crash takes what was not synced, but for a part.
        log.crash(n);
        let again = Primary::builder("east", log.clone(), KvStore::new()).listen(address);
        primary = again.start().await.unwrap();
        let opened = within("recovering", primary.opened()).await.unwrap();
        assert!(opened.report.missing.is_empty() && opened.report.gaps.is_empty(), "{opened:?}");
        assert_eq!(list(&client).await, expected);
    }
    assert!(within("a stop", primary.stop()).await.unwrap(), "the mark is there");
    drop(client);
    let again = Primary::builder("east", log.clone(), KvStore::new()).listen(address).start().await.unwrap();
    let opened = within("opening without the client", again.opened()).await.unwrap();
    assert!(opened.report.missing.is_empty() && opened.report.policy.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_service_loses_its_tail_and_a_stable_one_waits_for_the_backup() {
    let (primary, backup, link) = service(Level::Local).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    acknowledged(append(&client, "a")).await;
    within("a flush", client.flush()).await.unwrap();
    poll("replication", async || {
        let (ours, theirs) = (primary.status().await.unwrap(), backup.status().await.unwrap());
        (theirs.logged == ours.head).then_some(())
    })
    .await;
    link.cut().await;
    acknowledged(append(&client, "b")).await;
    primary.abort().await;
    let recovery = backup.promote(RecoveryPolicy::Wait).await.unwrap();
    within("recovering", recovery.opened()).await.unwrap();
    assert_eq!(list(&client).await, "a", "the baseline loses what it acknowledged");

    let (primary, _backup, link) = service(Level::Stable).await;
    let client = self::client("rack-1", &[primary.endpoint()]).await;
    acknowledged(append(&client, "a")).await;
    assert_eq!(client.stats().cached_commands, 0, "stable when acknowledged");
    link.cut().await;
    let waits = tokio::time::timeout(Duration::from_millis(100), append(&client, "b")).await;
    assert!(waits.is_err(), "acknowledged without the backup: {waits:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_by_name() {
    let (primary, backup, _link) = service(Level::Tagged).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    let large = vec![0; 2 << 20];
    assert_eq!(client.write(large.clone()).await.unwrap_err().code(), Code::TooLarge);
    assert_eq!(client.read(large).await.unwrap_err().code(), Code::TooLarge);
    acknowledged(append(&client, "a")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_another_cluster_is_refused() {
    let (one, other) = (start(MemoryLog::new(), Level::Tagged).await, start(MemoryLog::new(), Level::Tagged).await);
    let cache = MemoryCache::new();
    let client = TaggedClient::builder("rack-1").endpoints([one.endpoint()]).cache(cache.clone());
    within("a close", client.connect().await.unwrap().close()).await.unwrap();
    let client = TaggedClient::builder("rack-1").endpoints([other.endpoint()]).cache(cache);
    let refused = client.connect_within(Duration::from_secs(1)).connect().await.map(drop);
    assert_eq!(refused.unwrap_err().code(), Code::WrongCluster);
}

/// A state machine whose replies differ from everybody else's.
struct Contrary(KvStore);

impl StateMachine for Contrary {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> std::io::Result<()> {
        self.0.apply(commands, replies)?;
        replies.iter_mut().for_each(|reply| *reply = Bytes::from_static(b"no"));
        Ok(())
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_computes_otherwise_stops_and_the_primary_goes_on() {
    let primary = start(MemoryLog::new(), Level::Tagged).await;
    let backup = Backup::builder("west", MemoryLog::new(), Contrary(KvStore::new()), primary.endpoint());
    let backup = backup.start().await.unwrap();
    within("attaching", backup.in_sync()).await.unwrap();
    let client = client("rack-1", &[primary.endpoint()]).await;
    acknowledged(append(&client, "a")).await;
    let failure = poll("the failure", async || backup.status().await.unwrap().failure).await;
    assert_eq!(failure.code(), Code::Diverged);
    acknowledged(append(&client, "b")).await;
    assert_eq!(list(&client).await, "ab");
    let refused = backup.promote(RecoveryPolicy::Wait).await.map(drop);
    assert_eq!(refused.unwrap_err().code(), Code::Diverged, "its state is not to be trusted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_primary_and_the_clients_have_what_it_lacks() {
    let log = MemoryLog::new();
    let primary = start(log.clone(), Level::Tagged).await;
    let link = Link::to(primary.local_addr()).await;
    let backup = follow(MemoryLog::new(), Level::Tagged, link.address).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    acknowledged(append(&client, "a")).await;
    within("a flush", client.flush()).await.unwrap();
    link.cut().await;
    log.set_bytes_max(Some(1));
    // It is acknowledged before the disk is asked, and lost with it; the client holds it.
    acknowledged(append(&client, "b")).await;
    let why = within("the failure", primary.stopped()).await;
    assert_eq!(why.code(), Code::Storage);
    assert_eq!(primary.status().await.unwrap().status.role, Role::Stopped);
    let recovery = backup.promote(RecoveryPolicy::Wait).await.unwrap();
    within("recovering", recovery.opened()).await.unwrap();
    assert_eq!(list(&client).await, "ab");
    assert_eq!(primary.stop().await.unwrap_err().code(), Code::Storage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_disturbs_nobody() {
    let (primary, backup, _link) = service(Level::Tagged).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff"] {
        for address in [primary.local_addr(), backup.local_addr()] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The node may have hung up already.
            let _ = stream.write_all(garbage).await;
        }
        acknowledged(append(&client, "a")).await;
    }
    assert_eq!(list(&client).await, "aaa");
    assert!(primary.status().await.unwrap().head > Lsn(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_whether_it_serves() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let (primary, backup, _link) = service(Level::Tagged).await;
    let serves = async |endpoint: String| {
        let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap();
        let mut client = HealthClient::new(channel);
        let request = HealthCheckRequest { service: "tagalong.v1.Session".to_owned() };
        client.check(request).await.unwrap().into_inner().status() == ServingStatus::Serving
    };
    poll("the primary to serve", async || serves(primary.endpoint()).await.then_some(())).await;
    assert!(!serves(backup.endpoint()).await);
    primary.abort().await;
    within("recovering", backup.promote(RecoveryPolicy::Wait).await.unwrap().opened()).await.unwrap();
    poll("the promoted one to serve", async || serves(backup.endpoint()).await.then_some(())).await;
}
