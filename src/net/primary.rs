//! The handles of a node that orders writes, or is recovering in order to.

use std::net::SocketAddr;
use std::sync::Arc;

use super::node::{Node, NodeEvents, Start};
use super::{NetSettings, ShareKey, server};
use crate::error::{Code, Error, Result};
use crate::log::{ClientId, Epoch, EpochStart, GapPolicy, Lsn};
use crate::message::{NodeStatus, RecoveryStatus, Role};
use crate::node::Admin;
use crate::primary::PrimarySettings;
use crate::store::{LogStore, StateMachine};

/// A reign that opened, with the report of the recovery that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Opened {
    /// The reign.
    pub epoch: Epoch,
    /// The LSN of its `EpochStart`: everything below was there before.
    pub start: Lsn,
    /// The report: base, highest observed, what is missing and who.
    pub report: EpochStart,
}

/// What the handles of a node share: the node ends when the last of them is dropped.
pub(super) struct Running {
    pub(super) node: Node,
    pub(super) address: SocketAddr,
    server: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Running {
    /// Binds, replays the log, and serves. The settings were validated.
    pub(super) async fn start(
        start: impl FnOnce(String) -> Start,
        log: Box<dyn LogStore>,
        state: Box<dyn StateMachine>,
        listen: SocketAddr,
        advertise: Option<String>,
        net: &NetSettings,
        share_key: Option<ShareKey>,
    ) -> Result<Arc<Self>> {
        let listener = server::bind(listen).await?;
        let address = listener.local_addr().map_err(Error::from)?;
        let advertise = advertise.unwrap_or_else(|| {
            // An address that stands for "all of them" leads nobody here.
            if address.ip().is_unspecified() { String::new() } else { format!("http://{address}") }
        });
        let node = Node::start(start(advertise), log, state, net, share_key).await?;
        let server = server::serve(&node.mailbox, listener, net);
        Ok(Arc::new(Self { node, address, server: tokio::sync::Mutex::new(Some(server)) }))
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) async fn stop(&self) -> Result<bool> {
        match self.node.mailbox.admin(Admin::Stop).await {
            // It ended before it could answer: by this stop, or an earlier one.
            Err(error) if error.code() == Code::Closed => {}
            done => done?,
        }
        let mut view = self.node.mailbox.view();
        let ended = view.wait_for(|view| view.ended).await.map(|view| view.clone());
        self.abort().await;
        let ended = ended.map_err(|_| Error::new(Code::Closed, "the node was stopped"))?;
        match (ended.stopped, ended.failure) {
            (_, Some(failure)) => Err(failure),
            (stopped, None) => Ok(stopped.unwrap_or(false)),
        }
    }

    /// Ends the node as a crash would, and waits until its stores and its address are free.
    pub(super) async fn abort(&self) {
        self.node.close();
        let _ = self.node.mailbox.view().wait_for(|view| view.ended).await;
        // Whoever else ends it waits as well, though one of them may give up in between.
        let mut server = self.server.lock().await;
        if let Some(running) = server.as_mut() {
            // It ends by itself now that the node has.
            let _ = running.await;
            *server = None;
        }
    }

    pub(super) async fn opened(&self, after: Epoch) -> Result<Opened> {
        let found = |view: &super::node::View| {
            let (epoch, start, report) = view.opened.as_ref().filter(|(epoch, ..)| *epoch > after)?;
            Some(Ok(Opened { epoch: *epoch, start: *start, report: (**report).clone() }))
        };
        self.node.wait(found).await
    }
}

/// Builds a [`Primary`].
pub struct PrimaryBuilder {
    domain: String,
    log: Box<dyn LogStore>,
    state: Box<dyn StateMachine>,
    settings: PrimarySettings,
    net: NetSettings,
    listen: SocketAddr,
    advertise: Option<String>,
    share_key: Option<ShareKey>,
}

impl PrimaryBuilder {
    /// How the primary behaves. Its `domain` is the builder's, and its `endpoint` what is advertised.
    #[must_use]
    pub fn settings(mut self, settings: PrimarySettings) -> Self {
        self.settings = settings;
        self
    }

    /// How streams are kept.
    #[must_use]
    pub fn net(mut self, net: NetSettings) -> Self {
        self.net = net;
        self
    }

    /// Where to listen: by default on a free port of the loopback interface.
    ///
    /// Nothing authenticates a peer in this version. Listen elsewhere only where everybody who can reach the address
    /// may read, write and promote.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// The endpoint that clients and peers are told, where it is not the address listened on; empty to tell nobody.
    #[must_use]
    pub fn advertise(mut self, endpoint: impl Into<String>) -> Self {
        self.advertise = Some(endpoint.into());
        self
    }

    /// The secret under which shares of others' entries are handed to clients: the same on every node of the group,
    /// known to nobody else. With it, [`Privacy`](crate::primary::Privacy) is `Sealed`, whatever the settings say.
    #[must_use]
    pub fn share_key(mut self, key: ShareKey) -> Self {
        self.share_key = Some(key);
        self
    }

    /// Replays the log and begins to serve, on the caller's tokio runtime and a thread of its own for the log. Returns once the
    /// log is replayed; [`Primary::opened`] waits for the reign to open. Not cancel safe: a start that is dropped
    /// leaves nothing running, but the stores are gone with it.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for settings that make no sense or an address that cannot be bound; whatever the
    /// stores say; [`Code::Corrupt`] or [`Code::Diverged`] if the log does not replay.
    pub async fn start(self) -> Result<Primary> {
        let Self { domain, log, state, settings, net, listen, advertise, share_key } = self;
        net.validate_for(settings.command_bytes_max)?;
        let settings = settings.with_key(share_key.is_some())?;
        let start = |endpoint| Start::Primary(PrimarySettings { domain, endpoint, ..settings });
        Ok(Primary { running: Running::start(start, log, state, listen, advertise, &net, share_key).await? })
    }
}

/// A node that orders writes, tags them and answers. A handle: cheap to clone; when the last one of a node is dropped,
/// the node ends as in a crash.
#[derive(Clone)]
pub struct Primary {
    pub(super) running: Arc<Running>,
}

impl Primary {
    /// A primary in failure domain `domain`, on its own log and an empty state machine. What only clients of the same
    /// domain hold is not protected.
    pub fn builder(domain: impl Into<String>, log: impl LogStore, state: impl StateMachine) -> PrimaryBuilder {
        PrimaryBuilder {
            domain: domain.into(),
            log: Box::new(log),
            state: Box::new(state),
            settings: PrimarySettings::default(),
            net: NetSettings::default(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            share_key: None,
        }
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.running.address
    }

    /// The address it listens on, as an endpoint for clients.
    pub fn endpoint(&self) -> String {
        self.running.endpoint()
    }

    /// Waits until a reign has opened: at once in a new service, after the roll call on a restart. Cancel safe.
    ///
    /// # Errors
    /// Why the node stopped, if it does first.
    pub async fn opened(&self) -> Result<Opened> {
        self.running.opened(Epoch::ZERO).await
    }

    /// What the node is doing. Cancel safe.
    ///
    /// # Errors
    /// [`Code::Closed`] if it was stopped.
    pub async fn status(&self) -> Result<NodeStatus> {
        self.running.node.mailbox.status().await
    }

    /// Events from now on.
    pub fn events(&self) -> NodeEvents {
        self.running.node.events()
    }

    /// The recovery after a restart, to be watched and resolved like that of a promotion.
    pub fn recovery(&self) -> Recovery {
        Recovery { running: Arc::clone(&self.running), after: Epoch::ZERO }
    }

    /// Ends a session as soon as everything it wrote is stable: its replies are dropped, the outcome of what it left
    /// open is unknown. Returns when that is under way.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if there is no such session or the node is not open.
    pub async fn end_session(&self, client: ClientId) -> Result<()> {
        self.running.node.mailbox.admin(Admin::EndSession(client)).await
    }

    /// Stops in good order: nothing new is taken, everything is made stable, and a mark is left that skips the next
    /// roll call. Returns whether that mark is there. While the backup is away it waits; dropping all handles instead
    /// is safe, as a crash is. Cancel safe: the stop goes on.
    ///
    /// # Errors
    /// Why the node stopped, if it failed.
    pub async fn stop(&self) -> Result<bool> {
        self.running.stop().await
    }

    /// Ends at once, as a crash would, and returns when log and address are free. Nothing is lost by it: a restart is a
    /// recovery. Cancel safe: the end goes on.
    pub async fn abort(&self) {
        self.running.abort().await;
    }

    /// Waits until the node serves nothing any more, and says why: a failure, a higher epoch, or [`Code::Closed`].
    /// Cancel safe.
    pub async fn stopped(&self) -> Error {
        let found = |view: &super::node::View| {
            let deposed = || Error::new(Code::Deposed, "a higher epoch exists");
            (view.role == Role::Deposed).then(|| Ok(deposed()))
        };
        self.running.node.wait(found).await.unwrap_or_else(|error| error)
    }
}

/// A running recovery: to be watched, resolved, and in the end the primary that comes of it.
#[derive(Clone)]
pub struct Recovery {
    pub(super) running: Arc<Running>,
    pub(super) after: Epoch,
}

impl Recovery {
    /// Phase, progress, who is awaited, what is missing, and what would be lost if it were concluded now; `None` once
    /// the reign is open. Cancel safe.
    ///
    /// # Errors
    /// [`Code::Closed`] if the node was stopped.
    pub async fn status(&self) -> Result<Option<RecoveryStatus>> {
        Ok(self.running.node.mailbox.status().await?.recovery)
    }

    /// Concludes now, without those who are missing, and with gaps handled by `policy`.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if no roll call is running.
    pub async fn resolve(&self, policy: GapPolicy) -> Result<()> {
        self.running.node.mailbox.admin(Admin::Resolve(policy)).await
    }

    /// Drops what `client` reported, and does not wait for it. The report names it.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if no roll call is running.
    pub async fn exclude(&self, client: ClientId) -> Result<()> {
        self.running.node.mailbox.admin(Admin::Exclude(client)).await
    }

    /// Waits until the new reign is open: the primary, and its report. Cancel safe.
    ///
    /// # Errors
    /// Why the node stopped, if it does first.
    pub async fn opened(&self) -> Result<(Primary, Opened)> {
        let opened = self.running.opened(self.after).await?;
        Ok((Primary { running: Arc::clone(&self.running) }, opened))
    }
}
