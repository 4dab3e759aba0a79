//! A replication link of several connections between real nodes, whose connections are cut one at a time.

#![cfg(feature = "grpc")]
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tagalong::error::Code;
use tagalong::log::{Entry, Level};
use tagalong::node::RecoveryPolicy;
use tagalong::primary::PrimarySettings;
use tagalong::store::StateMachine;
use tagalong::store::kv::{KvCommand, KvQuery, KvReply, KvStore};
use tagalong::store::memory::MemoryLog;
use tagalong::{Backup, NetSettings, Primary, TaggedClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

const SOON: Duration = Duration::from_secs(20);
/// How much later than the others the slow connection is: less than a node waits for the end of a stream.
const LATE: Duration = Duration::from_millis(50);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what} took more than {SOON:?}"))
}

/// Connections between backup and primary, numbered as they come.
struct Relay {
    address: SocketAddr,
    /// Connections so far.
    taken: Arc<AtomicUsize>,
    /// How many more are taken; the others are refused.
    admits: watch::Sender<usize>,
    /// Cuts a connection when it has carried so many bytes to the backup.
    cuts: mpsc::Sender<(usize, usize)>,
    /// The connections that were cut.
    cut: watch::Receiver<Vec<usize>>,
}

impl Relay {
    async fn to(address: SocketAddr) -> Self {
        Self::with_slow(address, None).await
    }

    /// On one of its connections everything takes a while on its way to the primary.
    async fn with_slow(address: SocketAddr, slow: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap();
        let taken: Arc<AtomicUsize> = Arc::default();
        let (admits, admitted) = watch::channel(usize::MAX);
        let (cuts, mut asked) = mpsc::channel::<(usize, usize)>(16);
        let (limits, limit) = watch::channel(Vec::new());
        let (done, cut) = watch::channel(Vec::new());
        let done = Arc::new(done);
        tokio::spawn(async move {
            while let Some(cut) = asked.recv().await {
                limits.send_modify(|limits| limits.push(cut));
            }
        });
        let count = Arc::clone(&taken);
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let number = count.load(Ordering::SeqCst);
                if number >= *admitted.borrow() {
                    continue;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let far = TcpStream::connect(address).await.unwrap();
                let (limit, done) = (limit.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    if carry(near, far, number, limit, slow == Some(number)).await {
                        done.send_modify(|cut| cut.push(number));
                    }
                });
            }
        });
        Self { address: own, taken, admits, cuts, cut }
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Returns when the connection, having carried so much more to the backup, is cut.
    async fn cut(&self, connection: usize, after: usize) {
        self.cuts.send((connection, after)).await.unwrap();
        let mut cut = self.cut.clone();
        within("a cut", cut.wait_for(|cut| cut.contains(&connection))).await.unwrap();
    }
}

/// Carries both ways until an end; true if it was cut.
async fn carry(
    near: TcpStream,
    far: TcpStream,
    number: usize,
    mut limit: watch::Receiver<Vec<(usize, usize)>>,
    slow: bool,
) -> bool {
    let (mut from_backup, mut to_backup) = near.into_split();
    let (mut from_primary, mut to_primary) = far.into_split();
    let up = tokio::spawn(async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(got @ 1..) = from_backup.read(&mut buffer).await {
            if slow {
                tokio::time::sleep(LATE).await;
            }
            if to_primary.write_all(&buffer[..got]).await.is_err() {
                break;
            }
        }
    });
    let mut buffer = vec![0; 16 << 10];
    let mut left = None;
    let cut = loop {
        let asked = |limits: &Vec<(usize, usize)>| limits.iter().find(|(of, _)| *of == number).map(|(_, after)| *after);
        if left.is_none() {
            left = asked(&limit.borrow_and_update());
        }
        if left == Some(0) {
            break true;
        }
        let most = left.unwrap_or(buffer.len()).min(buffer.len());
        let got = tokio::select! {
            got = from_primary.read(&mut buffer[..most]) => got.unwrap_or(0),
            changed = limit.changed(), if left.is_none() => {
                changed.unwrap();
                continue;
            }
        };
        if got == 0 || to_backup.write_all(&buffer[..got]).await.is_err() {
            break false;
        }
        left = left.map(|left| left - got);
    };
    up.abort();
    cut
}

fn net(connections: u32) -> NetSettings {
    let mut net = NetSettings::default();
    net.replication_connections = connections;
    net
}

struct Service {
    primary: Primary,
    backup: Backup,
    relay: Relay,
}

async fn service(net: NetSettings, admits: usize) -> Service {
    let settings = PrimarySettings { lowest: Level::Tagged, ..PrimarySettings::default() };
    let primary = Primary::builder("east", MemoryLog::new(), KvStore::new()).settings(settings.clone());
    let primary = primary.net(net.clone()).start().await.unwrap();
    within("opening", primary.opened()).await.unwrap();
    let relay = Relay::to(primary.local_addr()).await;
    relay.admits.send_replace(admits);
    let backup = Backup::builder("west", MemoryLog::new(), KvStore::new(), format!("http://{}", relay.address));
    let backup = backup.settings(settings).net(net).start().await.unwrap();
    within("attaching", backup.in_sync()).await.unwrap();
    Service { primary, backup, relay }
}

impl Service {
    async fn client(&self) -> TaggedClient {
        let endpoints = [self.primary.endpoint(), self.backup.endpoint()];
        TaggedClient::builder("rack-1").endpoints(endpoints).connect_within(SOON).connect().await.unwrap()
    }
}

/// A value of that length that says which it is.
fn value(number: usize, length: usize) -> Bytes {
    let mut value = vec![b'.'; length.max(8)];
    value[..8].copy_from_slice(format!("{number:08}").as_bytes());
    value.into()
}

/// Writes so many values at once, and waits until they are acknowledged.
async fn write(client: &TaggedClient, numbers: std::ops::Range<usize>, length: usize) {
    let mut writes = Vec::new();
    for number in numbers {
        writes.push(client.write(KvCommand::put(format!("key-{number}"), value(number, length)).encode()));
    }
    for write in writes {
        within("a write", write).await.unwrap().reply().unwrap();
    }
}

/// Every value is at the promoted backup, as it was written, exactly once.
async fn all_are_there(client: &TaggedClient, numbers: usize, length: usize) {
    for number in 0..numbers {
        let found = within("a read", client.read(KvQuery::get(format!("key-{number}")).encode())).await.unwrap();
        let found = KvReply::decode(&found).unwrap();
        assert_eq!(found.value(), Some(&value(number, length)), "key-{number}");
    }
}

/// One of four connections breaks in the middle of the stream, the first of them and others, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_costs_nothing_that_was_written() {
    let service = service(net(4), usize::MAX).await;
    assert_eq!(service.relay.taken(), 4);
    let client = service.client().await;
    let mut written = 0;
    for (round, lane) in [2, 0, 3, 1].into_iter().enumerate() {
        let links = service.relay.taken();
        assert_eq!(links, 4 * (round + 1), "a lost connection costs the link, and all four are dialled again");
        let cut = service.relay.cut(links - 4 + lane, 300_000);
        tokio::join!(cut, write(&client, written..written + 400, 8_000));
        written += 400;
        within("a flush", client.flush()).await.unwrap();
    }
    // What is stable is at the backup, with nobody's help.
    let (ours, theirs) = (service.primary.status().await.unwrap(), service.backup.status().await.unwrap());
    assert_eq!((ours.stable, theirs.logged), (ours.head, ours.head));
    assert_eq!(client.stats().cached_commands, 0);
    // And what is not when the next connection breaks for good is with the client.
    let links = service.relay.taken();
    service.relay.admits.send_replace(0);
    tokio::join!(service.relay.cut(links - 2, 50_000), write(&client, written..written + 100, 8_000));
    written += 100;
    service.primary.abort().await;
    let recovery = service.backup.promote(RecoveryPolicy::Wait).await.unwrap();
    within("recovering", recovery.opened()).await.unwrap();
    all_are_there(&client, written, 8_000).await;
}

/// A backup that gets two of its four connections goes on with these; with one alone, as without lanes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_makes_do_with_the_connections_it_gets() {
    for admits in [1, 2] {
        let service = service(net(4), admits).await;
        assert_eq!(service.relay.taken(), admits);
        let client = service.client().await;
        write(&client, 0..100, 20_000).await;
        within("a flush", client.flush()).await.unwrap();
        assert_eq!(client.stats().cached_commands, 0);
    }
}

/// Commands that are larger than a piece, and a window that is smaller than what is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_commands_pass_in_pieces() {
    let mut net = net(8);
    net.replication_window_bytes = 600_000;
    let service = service(net, usize::MAX).await;
    let client = service.client().await;
    write(&client, 0..40, 900_000).await;
    within("a flush", client.flush()).await.unwrap();
    service.primary.abort().await;
    within("recovering", service.backup.promote(RecoveryPolicy::Wait).await.unwrap().opened()).await.unwrap();
    all_are_there(&client, 40, 900_000).await;
}

/// A congestion control that the system does not have is done without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_congestion_control_is_done_without() {
    let mut net = net(2);
    net.replication_congestion = Some("no-such".to_owned());
    let service = service(net, usize::MAX).await;
    let client = service.client().await;
    write(&client, 0..10, 100).await;
    within("a flush", client.flush()).await.unwrap();
}

/// Answers otherwise than it does elsewhere.
struct Other(KvStore);

impl StateMachine for Other {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        self.0.apply(commands, replies)?;
        replies.iter_mut().for_each(|reply| *reply = Bytes::from_static(b"otherwise"));
        Ok(())
    }
    fn query(&mut self, query: &Bytes) -> io::Result<Bytes> {
        self.0.query(query)
    }
    fn snapshot(&self, out: &mut dyn io::Write) -> io::Result<()> {
        self.0.snapshot(out)
    }
    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        self.0.restore(from)
    }
}

/// A backup that fails says why, on the connection of its stream; the others are quicker. It let go of them first once, and
/// the primary took the link for lost before it could read the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_word_of_a_backup_arrives() {
    let primary = Primary::builder("east", MemoryLog::new(), KvStore::new()).start().await.unwrap();
    within("opening", primary.opened()).await.unwrap();
    let relay = Relay::with_slow(primary.local_addr(), Some(0)).await;
    let endpoint = format!("http://{}", relay.address);
    let backup = Backup::builder("west", MemoryLog::new(), Other(KvStore::new()), endpoint);
    let backup = backup.net(net(4)).start().await.unwrap();
    within("attaching", backup.in_sync()).await.unwrap();
    assert_eq!(relay.taken(), 4);
    let client = TaggedClient::builder("rack-1").endpoints([primary.endpoint()]).connect_within(SOON);
    let client = client.connect().await.unwrap();
    write(&client, 0..1, 100).await;
    let gone = async {
        loop {
            let status = primary.status().await.unwrap();
            if !status.connected {
                return status.failure.map(|error| error.code());
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(within("the end of the link", gone).await, Some(Code::Diverged));
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let refused = |change: fn(&mut NetSettings)| {
        let mut net = NetSettings::default();
        change(&mut net);
        net.validate().unwrap_err().message().split(' ').next().unwrap().to_owned()
    };
    assert_eq!(refused(|net| net.replication_connections = 0), "replication_connections");
    assert_eq!(refused(|net| net.replication_connections = 65), "replication_connections");
    assert_eq!(refused(|net| net.replication_congestion = Some(String::new())), "replication_congestion");
    assert_eq!(refused(|net| net.replication_congestion = Some("x".repeat(16))), "replication_congestion");
}
