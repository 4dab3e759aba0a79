//! What others see of a node that runs: stream tasks its [`Mailbox`], handles its [`View`] and its events.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::super::{Sealer, ShareKey};
use crate::error::{Code, Error, Result};
use crate::log::{Epoch, EpochStart, Lsn};
use crate::message::{BackupMessage, ClientMessage, NodeMessage, NodeStatus, PrimaryMessage, Role};
use crate::node::{Admin, Conn, NodeEvent};

/// What the sequencer is told.
pub(in crate::net) enum Mail {
    /// A client's stream stands; frames for it go here.
    ClientStream(Conn, mpsc::Sender<Box<NodeMessage>>),
    /// A replication stream to this node stands.
    BackupStream(Conn, mpsc::Sender<PrimaryMessage>),
    /// This backup's stream to its primary stands.
    Link(Conn, mpsc::Sender<BackupMessage>),
    FromClient(Conn, Vec<ClientMessage>),
    FromBackup(Conn, Vec<BackupMessage>),
    FromPrimary(Conn, Vec<PrimaryMessage>),
    Gone(Conn),
    Admin(Admin, oneshot::Sender<Result<()>>),
    Status(oneshot::Sender<NodeStatus>),
}

/// What a node is, for whoever watches it.
#[derive(Clone, Debug)]
pub(in crate::net) struct View {
    pub(in crate::net) role: Role,
    /// The last reign this node opened.
    pub(in crate::net) opened: Option<(Epoch, Lsn, Arc<EpochStart>)>,
    pub(in crate::net) in_sync: bool,
    /// An orderly stop is complete: whether it left the mark that skips the next roll call.
    pub(in crate::net) stopped: Option<bool>,
    /// The node serves nothing any more.
    pub(in crate::net) failure: Option<Error>,
    /// The sequencer has ended.
    pub(in crate::net) ended: bool,
}

/// The way to the sequencer.
#[derive(Clone)]
pub(in crate::net) struct Mailbox {
    pub(super) mail: mpsc::Sender<Mail>,
    pub(super) last_conn: Arc<std::sync::atomic::AtomicU64>,
    pub(super) view: watch::Receiver<View>,
    /// The node is to end.
    pub(super) closing: watch::Receiver<bool>,
    pub(super) queue_max: usize,
    pub(super) share_key: Option<ShareKey>,
}

impl Mailbox {
    /// For one direction of one stream, if the node has a key: ids rise within it, and its salt is its own.
    pub(in crate::net) fn sealer(&self) -> Result<Option<Sealer>> {
        self.share_key.clone().map(Sealer::new).transpose()
    }

    /// A number for a new stream.
    pub(in crate::net) fn conn(&self) -> Conn {
        Conn(self.last_conn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1)
    }

    /// A queue for the messages of one client's stream.
    pub(in crate::net) fn outbox<M>(&self) -> (mpsc::Sender<M>, mpsc::Receiver<M>) {
        mpsc::channel(self.queue_max)
    }

    /// A queue for the messages of a replication stream. It holds what the replication window allows while the link
    /// stands still, and that in small pieces: should it overflow, the stream is lost and begins anew from the log.
    pub(in crate::net) fn long_outbox<M>(&self) -> (mpsc::Sender<M>, mpsc::Receiver<M>) {
        mpsc::channel(self.queue_max.saturating_mul(64))
    }

    /// Waits for room in the sequencer's queue.
    pub(in crate::net) async fn send(&self, mail: Mail) -> Result<()> {
        self.mail.send(mail).await.map_err(|_| self.gone())
    }

    pub(in crate::net) async fn admin(&self, admin: Admin) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(Mail::Admin(admin, done)).await?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    pub(in crate::net) async fn status(&self) -> Result<NodeStatus> {
        let (done, answer) = oneshot::channel();
        self.send(Mail::Status(done)).await?;
        answer.await.map_err(|_| self.gone())
    }

    pub(in crate::net) fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Resolves when the node is to end, or has ended.
    pub(in crate::net) fn closing(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut closing, mut view) = (self.closing.clone(), self.view.clone());
        async move {
            tokio::select! {
                _ = closing.wait_for(|closing| *closing) => {}
                _ = view.wait_for(|view| view.ended) => {}
            }
        }
    }

    fn gone(&self) -> Error {
        let failure = self.view.borrow().failure.clone();
        failure.unwrap_or_else(|| Error::new(Code::Closed, "the node was stopped"))
    }
}

/// Events of a node, from the moment they were asked for.
pub struct NodeEvents {
    events: broadcast::Receiver<NodeEvent>,
}

impl NodeEvents {
    /// The next event; `None` when the node has ended. A listener that is more than 1024 events behind misses the
    /// oldest. Cancel safe.
    pub async fn next(&mut self) -> Option<NodeEvent> {
        loop {
            match self.events.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a listener of node events was too slow");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// A running node, shared by its handles. When the last one is dropped the node ends as in a crash.
pub(in crate::net) struct Node {
    pub(in crate::net) mailbox: Mailbox,
    pub(super) events: broadcast::WeakSender<NodeEvent>,
    pub(super) closing: watch::Sender<bool>,
}

impl Node {
    pub(in crate::net) fn events(&self) -> NodeEvents {
        let events = self.events.upgrade().map_or_else(|| broadcast::channel(1).1, |events| events.subscribe());
        NodeEvents { events }
    }

    pub(in crate::net) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits until something holds of the node, or it fails or ends first.
    pub(in crate::net) async fn wait<T>(&self, mut found: impl FnMut(&View) -> Option<Result<T>>) -> Result<T> {
        let mut view = self.mailbox.view();
        loop {
            {
                let now = view.borrow_and_update();
                if let Some(found) = found(&now) {
                    return found;
                }
                if let Some(failure) = &now.failure {
                    return Err(failure.clone());
                }
                if now.ended {
                    return Err(Error::new(Code::Closed, "the node was stopped"));
                }
            }
            if view.changed().await.is_err() {
                return Err(self.mailbox.gone());
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.close();
    }
}
