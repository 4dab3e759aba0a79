//! The thread that writes a client's cache: what has gathered goes in one write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::client::CacheOp;
use crate::error::{Code, Error, Result};
use crate::net::guarded;
use crate::store::ClientCache;

#[cfg(test)]
mod tests;

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
    /// Resolves when the thread has let go of the cache.
    gone: oneshot::Receiver<()>,
}

impl Cache {
    pub(super) fn spawn(cache: Box<dyn ClientCache>) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Vec<CacheOp>>(QUEUE_MAX);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let (alive, gone) = oneshot::channel();
        std::thread::Builder::new().name("tagalong-cache".to_owned()).spawn(move || {
            run(cache, queue, &theirs);
            drop::<oneshot::Sender<()>>(alive);
        })?;
        Ok(Self { jobs, shared, gone })
    }

    /// Writes what is queued, and lets go of the cache.
    pub(super) async fn finish(self) {
        drop(self.jobs);
        // It never sends: it is dropped.
        let _ = self.gone.await;
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

fn run(mut cache: Box<dyn ClientCache>, mut queue: mpsc::Receiver<Vec<CacheOp>>, shared: &Shared) {
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
                shared.stored.fetch_add(count as u64, Ordering::Release);
                shared.bell.notify_one();
            }
            Err(error) => {
                let why = format!("the client's cache failed, so this client stops: {}", error.message());
                *shared.failed.lock() = Some(Error::new(Code::Storage, why));
                shared.bell.notify_one();
                return;
            }
        }
    }
}
