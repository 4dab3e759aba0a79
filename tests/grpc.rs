//! Primary, backup and clients over real gRPC on loopback, in one process.

#![cfg(feature = "grpc")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use tagalong::log::Level;
use tagalong::node::RecoveryPolicy;
use tagalong::primary::PrimarySettings;
use tagalong::store::kv::{KvCommand, KvQuery, KvReply, KvStore};
use tagalong::store::memory::MemoryLog;
use tagalong::{Backup, Code, Primary, TaggedClient, WriteOutcome};

const SOON: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what} took more than {SOON:?}"))
}

fn settings(lowest: Level) -> PrimarySettings {
    PrimarySettings { lowest, ..PrimarySettings::default() }
}

async fn pair(lowest: Level) -> (Primary, Backup) {
    let primary = Primary::builder("east", MemoryLog::new(), KvStore::new()).settings(settings(lowest));
    let primary = primary.start().await.unwrap();
    within("opening", primary.opened()).await.unwrap();
    let backup = Backup::builder("west", MemoryLog::new(), KvStore::new(), primary.endpoint());
    let backup = backup.settings(settings(lowest)).start().await.unwrap();
    within("attaching the backup", backup.in_sync()).await.unwrap();
    (primary, backup)
}

async fn client(domain: &str, endpoints: &[String]) -> TaggedClient {
    TaggedClient::builder(domain).endpoints(endpoints).connect_within(SOON).connect().await.unwrap()
}

async fn get(client: &TaggedClient, key: &str) -> Option<Bytes> {
    let reply = within("a read", client.read(KvQuery::get(key.to_owned()).encode())).await.unwrap();
    KvReply::decode(&reply).unwrap().value().cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_reads_flush_close() {
    let (primary, backup) = pair(Level::Tagged).await;
    let client = client("rack-1", &[primary.endpoint(), backup.endpoint()]).await;
    let writes: Vec<_> =
        (0..100).map(|n| client.write(KvCommand::append("list".to_owned(), format!("{n},")).encode())).collect();
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
    let (primary, backup) = pair(Level::Tagged).await;
    let endpoints = [primary.endpoint(), backup.endpoint()];
    let clients = [client("rack-1", &endpoints).await, client("rack-2", &endpoints).await];
    let mut expected = Vec::new();
    for n in 0..200 {
        let writes = clients.iter().map(|client| client.write(KvCommand::append("list", format!("{n},")).encode()));
        for write in writes.collect::<Vec<_>>() {
            expected.push(within("a write", write).await.unwrap().reply().unwrap());
        }
    }
    let before = get(&clients[0], "list").await;
    drop(primary);
    let recovery = within("promoting", backup.promote(RecoveryPolicy::Wait)).await.unwrap();
    let (primary, opened) = within("recovering", recovery.opened()).await.unwrap();
    assert_eq!((opened.report.missing, opened.report.gaps, opened.report.policy), (vec![], vec![], None));
    assert_eq!(get(&clients[1], "list").await, before);
    let after = within("a write", clients[0].write(KvCommand::append("list", "end").encode())).await.unwrap();
    assert!(matches!(after, WriteOutcome::Acknowledged { .. }), "{after:?}");
    within("a close", clients[0].close()).await.unwrap();
    within("a stop", primary.stop()).await.unwrap();
}
