//! What the cache's thread counts as stored is in the cache. The cache of these tests stops the thread at every write.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::*;
use crate::store::memory::MemoryCache;

/// A test that waits longer than this fails.
const SOON: Duration = Duration::from_secs(20);

/// A cache that says what it is asked to write, and writes it once it may.
struct Gated {
    disk: MemoryCache,
    writes: Sender<Vec<CacheOp>>,
    gate: Receiver<()>,
}

impl ClientCache for Gated {
    fn load(&mut self) -> io::Result<Vec<CacheOp>> {
        self.disk.load()
    }
    fn write(&mut self, ops: &[CacheOp]) -> io::Result<()> {
        // A test that is over opens the gate for good, and listens no more.
        let _ = self.writes.send(ops.to_vec());
        let _ = self.gate.recv();
        self.disk.write(ops)
    }
}

/// The cache's thread, and both sides of its cache.
struct Desk {
    gate: Sender<()>,
    writes: Receiver<Vec<CacheOp>>,
    disk: MemoryCache,
    cache: Cache,
}

impl Desk {
    fn new() -> Self {
        let ((gate, opens), (tells, writes)) = (channel(), channel());
        let disk = MemoryCache::new();
        let gated = Gated { disk: disk.clone(), writes: tells, gate: opens };
        Self { gate, writes, disk, cache: Cache::spawn(Box::new(gated)).unwrap() }
    }

    /// The write at which the thread is held; none if it has let go of the cache.
    fn held_at(&self) -> Option<Vec<CacheOp>> {
        match self.writes.recv_timeout(SOON) {
            Err(RecvTimeoutError::Timeout) => panic!("nothing is written"),
            write => write.ok(),
        }
    }

    /// Lets the thread go on.
    fn go(&self) {
        self.gate.send(()).unwrap();
    }

    /// What the thread rings for next.
    async fn told(&self) -> Result<u64> {
        tokio::time::timeout(SOON, self.cache.rings()).await.expect("the bell rings");
        self.cache.stored()
    }
}

fn incarnation(number: u64) -> Vec<CacheOp> {
    vec![CacheOp::Incarnation(number)]
}

#[tokio::test]
async fn nothing_is_stored_while_it_is_being_written() {
    let desk = Desk::new();
    desk.cache.write(incarnation(1)).await;
    assert_eq!(desk.held_at(), Some(incarnation(1)));
    assert_eq!(desk.cache.stored().unwrap(), 0);
    desk.cache.write(incarnation(2)).await;
    desk.cache.write(incarnation(3)).await;
    desk.go();
    assert_eq!(desk.told().await.unwrap(), 1);
    assert_eq!(desk.held_at(), Some([incarnation(2), incarnation(3)].concat()), "what gathered goes in one write");
    assert_eq!(desk.cache.stored().unwrap(), 1, "the others are only being written");
    desk.go();
    assert_eq!(desk.told().await.unwrap(), 3);
}

#[tokio::test]
async fn nothing_is_stored_by_a_write_that_failed() {
    let desk = Desk::new();
    desk.cache.write(incarnation(1)).await;
    assert_eq!(desk.held_at(), Some(incarnation(1)));
    desk.cache.write(incarnation(2)).await;
    desk.disk.set_write_fails(true);
    assert_eq!(desk.cache.stored().unwrap(), 0);
    desk.go();
    assert_eq!(desk.told().await.unwrap_err().code(), Code::Storage);
    assert_eq!(desk.held_at(), None, "the cache is used no further");
}

#[tokio::test]
async fn an_orderly_end_writes_what_is_queued() {
    let Desk { gate, writes, mut disk, cache } = Desk::new();
    cache.write(incarnation(1)).await;
    assert_eq!(writes.recv_timeout(SOON), Ok(incarnation(1)));
    cache.write(incarnation(2)).await;
    drop(gate);
    tokio::time::timeout(SOON, cache.finish()).await.expect("the thread ends");
    assert!(disk.load().unwrap().contains(&CacheOp::Incarnation(2)));
}
