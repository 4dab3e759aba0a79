//! A covered service over real gRPC: clients die, caches and all, at the same time as the primary.

#![cfg(feature = "grpc")]
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tagalong::log::{Level, SessionRole};
use tagalong::net::ShareKey;
use tagalong::node::RecoveryPolicy;
use tagalong::primary::{PrimarySettings, Privacy, Uncovered};
use tagalong::store::file::{FileCache, FileCacheOptions};
use tagalong::store::kv::{KvCommand, KvQuery, KvReply, KvStore};
use tagalong::store::memory::MemoryLog;
use tagalong::{Backup, Code, Primary, TaggedClient, WriteOptions, WriteOutcome};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what} took more than {SOON:?}"))
}

fn covered(f: u8) -> PrimarySettings {
    PrimarySettings { lowest: Level::Covered, f, ..PrimarySettings::default() }
}

/// What the backup sees of the primary, until it is cut.
async fn relay(address: SocketAddr) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut streams = tokio::task::JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            streams.spawn(async move {
                let mut far = TcpStream::connect(address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (own, task)
}

struct Service {
    primary: Primary,
    backup: Backup,
    wan: tokio::task::JoinHandle<()>,
    endpoints: [String; 2],
}

impl Service {
    async fn start(settings: PrimarySettings, key: Option<ShareKey>) -> Self {
        let mut primary = Primary::builder("east", MemoryLog::new(), KvStore::new()).settings(settings.clone());
        if let Some(key) = &key {
            primary = primary.share_key(key.clone());
        }
        let primary = primary.start().await.unwrap();
        within("opening", primary.opened()).await.unwrap();
        let (address, wan) = relay(primary.local_addr()).await;
        let mut backup = Backup::builder("west", MemoryLog::new(), KvStore::new(), format!("http://{address}"));
        backup = backup.settings(settings);
        if let Some(key) = key {
            backup = backup.share_key(key);
        }
        let backup = backup.start().await.unwrap();
        within("attaching the backup", backup.in_sync()).await.unwrap();
        let endpoints = [primary.endpoint(), backup.endpoint()];
        Self { primary, backup, wan, endpoints }
    }

    async fn client(&self, domain: &str, role: SessionRole) -> TaggedClient {
        let client = TaggedClient::builder(domain).endpoints(&self.endpoints).role(role).connect_within(SOON);
        client.connect().await.unwrap()
    }

    /// The link to the backup is cut, for good.
    async fn cut(&mut self) {
        self.wan.abort();
        let _ = (&mut self.wan).await;
    }

    /// The primary dies, and the backup takes over with nobody's help.
    async fn disaster(self) -> (Primary, tagalong::Opened) {
        self.primary.abort().await;
        let recovery = within("promoting", self.backup.promote(RecoveryPolicy::Wait)).await.unwrap();
        within("recovering", recovery.opened()).await.unwrap()
    }
}

async fn put(client: &TaggedClient, key: &str, value: &[u8]) -> Level {
    let write = client.write(KvCommand::put(key, value).encode());
    match within("a write", write).await.unwrap() {
        WriteOutcome::Acknowledged { met, .. } => met,
        other => panic!("{other:?}"),
    }
}

async fn get(client: &TaggedClient, key: &str) -> Option<Bytes> {
    let reply = within("a read", client.read(KvQuery::get(key).encode())).await.unwrap();
    KvReply::decode(&reply).unwrap().value().cloned()
}

/// Some bytes that only this key and number have.
fn value(key: &str, number: usize, length: usize) -> Vec<u8> {
    format!("{key}:{number};").into_bytes().into_iter().cycle().take(length).collect()
}

/// The link is cut, everybody writes, and then `dead` of the clients go with the primary: what they were acknowledged
/// is there all the same.
async fn die_together(f: u8, dead: usize) {
    let mut service = Service::start(covered(f), Some(ShareKey::generate().unwrap())).await;
    let mut clients = Vec::new();
    for n in 0..5 {
        clients.push(service.client(&format!("rack-{n}"), SessionRole::Writer).await);
    }
    service.cut().await;
    let mut expected = Vec::new();
    for round in 0..20 {
        // One size that needs more than one segment among small ones.
        let length = if round == 7 { 150_000 } else { 1 + 97 * round };
        let writes = clients.iter().enumerate().map(|(n, client)| {
            let (key, value) = (format!("{n}/{round}"), value(&format!("{n}"), round, length));
            let write = client.write(KvCommand::put(&key, value.clone()).encode());
            (key, value, write)
        });
        for (key, value, write) in writes.collect::<Vec<_>>() {
            let outcome = within("a write", write).await.unwrap();
            assert!(matches!(outcome, WriteOutcome::Acknowledged { met: Level::Covered, .. }), "{outcome:?}");
            expected.push((key, value));
        }
    }
    assert!(service.backup.status().await.unwrap().head < service.primary.status().await.unwrap().head);
    let gone: Vec<_> = clients.drain(..dead).map(|client| client.id()).collect();
    let (_primary, opened) = service.disaster().await;
    let mut missing = opened.report.missing.clone();
    missing.sort();
    let mut named = gone.clone();
    named.sort();
    assert_eq!((missing, opened.report.policy, opened.report.gaps.len()), (named, None, 0));
    for (key, value) in expected {
        assert_eq!(get(&clients[0], &key).await.as_deref(), Some(&value[..]), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_dies_with_the_primary() {
    die_together(1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_die_with_the_primary() {
    die_together(2, 2).await;
}

/// One writer and two that only hold: the writer dies with the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_cover_a_single_writer() {
    let mut service = Service::start(covered(1), Some(ShareKey::generate().unwrap())).await;
    let writer = service.client("rack-1", SessionRole::Writer).await;
    let holders =
        [service.client("rack-2", SessionRole::Holder).await, service.client("rack-3", SessionRole::Holder).await];
    assert_eq!(holders[0].write(&b"x"[..]).await.unwrap_err().code(), Code::InvalidArgument);
    service.cut().await;
    for n in 0..50 {
        assert_eq!(put(&writer, &format!("{n}"), &value("w", n, 300)).await, Level::Covered);
    }
    drop(writer);
    let (primary, opened) = service.disaster().await;
    assert_eq!((opened.report.missing.len(), opened.report.gaps.len()), (1, 0));
    let reader = TaggedClient::builder("rack-4").endpoints([primary.endpoint()]).connect().await.unwrap();
    for n in 0..50 {
        assert_eq!(get(&reader, &format!("{n}")).await.as_deref(), Some(&value("w", n, 300)[..]));
    }
    drop(holders);
}

/// Alone, a client's writes cannot be covered: they are met when stable, and say so, or are refused at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_clients() {
    let service = Service::start(PrimarySettings { privacy: Privacy::Open, ..covered(1) }, None).await;
    let alone = service.client("rack-1", SessionRole::Writer).await;
    assert_eq!(put(&alone, "a", b"1").await, Level::Stable);
    let status = service.primary.status().await.unwrap();
    assert!(status.short && status.f == 1, "{status:?}");

    let refuse = PrimarySettings { privacy: Privacy::Open, uncovered: Uncovered::Refuse, ..covered(1) };
    let mut service = Service::start(refuse, None).await;
    let alone = service.client("rack-1", SessionRole::Writer).await;
    // The read's answer came after the word that domains are lacking.
    assert_eq!(get(&alone, "a").await, None);
    let refused = alone.write(KvCommand::put("a", &b"2"[..]).encode()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Uncovered, "{refused}");
    let stable = WriteOptions::default().level(Level::Stable);
    let outcome = within("a write", alone.write_opts(KvCommand::put("a", &b"3"[..]).encode(), stable)).await.unwrap();
    assert!(matches!(outcome, WriteOutcome::Acknowledged { met: Level::Stable, .. }), "{outcome:?}");
    let _other = service.client("rack-2", SessionRole::Writer).await;
    service.cut().await;
    let mut covered = None;
    for _ in 0..200 {
        match within("a write", alone.write(KvCommand::put("a", &b"4"[..]).encode())).await {
            Ok(outcome) => {
                covered = Some(outcome);
                break;
            }
            Err(error) => assert_eq!(error.code(), Code::Uncovered),
        }
        // A read is a round trip, by which the news has come.
        get(&alone, "a").await;
    }
    assert!(matches!(covered, Some(WriteOutcome::Acknowledged { met: Level::Covered, .. })), "{covered:?}");
}

/// A holder's cache has nothing of what others wrote in the clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut service = Service::start(covered(1), Some(ShareKey::generate().unwrap())).await;
    let cache = FileCache::open(folder.path(), FileCacheOptions::default()).unwrap();
    let holder = TaggedClient::builder("rack-2").endpoints(&service.endpoints).cache(cache).role(SessionRole::Holder);
    let holder = holder.connect().await.unwrap();
    let writer = service.client("rack-1", SessionRole::Writer).await;
    service.cut().await;
    let secret = b"nobody but the servers and the writer may know this";
    for n in 0..10 {
        assert_eq!(put(&writer, &format!("{n}"), secret).await, Level::Covered);
    }
    let mut bytes = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let content = std::fs::read(file.unwrap().path()).unwrap();
        bytes += content.len();
        assert!(!content.windows(secret.len()).any(|window| window == secret), "a share in the clear");
    }
    assert!(bytes > 10 * secret.len(), "the holder holds {bytes} bytes");
    drop(holder);
}
