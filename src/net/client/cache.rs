//! The thread that writes a client's cache: what has gathered goes in one write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::client::CacheOp;
use crate::error::{Code, Error, Result};
use crate::net::guarded;
use crate::store::ClientCache;

/// Writes that wait; the driver waits for room beyond that.
const QUEUE_MAX: usize = 1024;

#[derive(Default)]
struct Shared {
    stored: AtomicU64,
    failed: Mutex<Option<Error>>,
    bell: Notify,
}

/// The driver's side of the cache's thread.
pub(super) struct Cache {
    jobs: mpsc::Sender<Vec<CacheOp>>,
    shared: Arc<Shared>,
}

impl Cache {
    pub(super) fn spawn(mut cache: Box<dyn ClientCache>) -> Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Vec<CacheOp>>(QUEUE_MAX);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("tagalong-cache".to_owned()).spawn(move || {
            let mut batch = Vec::new();
            loop {
                let count = queue.blocking_recv_many(&mut batch, QUEUE_MAX);
                if count == 0 {
                    return;
                }
                let ops: Vec<CacheOp> = batch.drain(..).flatten().collect();
                let written = guarded("the cache", || cache.write(&ops));
                match written.and_then(|written| written.map_err(Error::from)) {
                    Ok(()) => {
                        theirs.stored.fetch_add(count as u64, Ordering::Release);
                        theirs.bell.notify_one();
                    }
                    Err(error) => {
                        let why = format!("the client's cache failed, so this client stops: {}", error.message());
                        *theirs.failed.lock() = Some(Error::new(Code::Storage, why));
                        theirs.bell.notify_one();
                        return;
                    }
                }
            }
        })?;
        Ok(Self { jobs, shared })
    }

    /// Queues a write; waits while the queue is full.
    pub(super) async fn write(&self, ops: Vec<CacheOp>) {
        // A thread that is gone has said why.
        let _ = self.jobs.send(ops).await;
    }

    /// Resolves when more is stored, or the cache failed.
    pub(super) async fn rings(&self) {
        self.shared.bell.notified().await;
    }

    /// How many writes are done.
    pub(super) fn stored(&self) -> Result<u64> {
        match self.shared.failed.lock().clone() {
            Some(error) => Err(error),
            None => Ok(self.shared.stored.load(Ordering::Acquire)),
        }
    }
}
