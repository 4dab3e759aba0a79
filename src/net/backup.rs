//! The handle of a node that follows a primary.

use std::net::SocketAddr;
use std::sync::Arc;

use super::node::{NodeEvents, Start};
use super::primary::{Recovery, Running};
use super::{NetSettings, ShareKey, link};
use crate::backup::BackupSettings;
use crate::error::{Code, Error, Result};
use crate::log::Epoch;
use crate::message::{NodeStatus, Role};
use crate::node::{Admin, RecoveryPolicy};
use crate::primary::PrimarySettings;
use crate::store::{LogStore, StateMachine};

/// Builds a [`Backup`].
pub struct BackupBuilder {
    domain: String,
    log: Box<dyn LogStore>,
    state: Box<dyn StateMachine>,
    primary: String,
    settings: PrimarySettings,
    net: NetSettings,
    listen: SocketAddr,
    advertise: Option<String>,
    share_key: Option<ShareKey>,
}

impl BackupBuilder {
    /// How it behaves once it is promoted. Domain and endpoint are the builder's.
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

    /// Where to listen: by default on a free port of the loopback interface. See
    /// [`PrimaryBuilder::listen`](super::PrimaryBuilder::listen).
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// The endpoint that clients are told, where it is not the address listened on; empty to tell nobody.
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

    /// Replays the log and begins to follow, on the caller's tokio runtime and a thread of its own for the log. The primary
    /// need not be there yet.
    ///
    /// # Errors
    /// As [`PrimaryBuilder::start`](super::PrimaryBuilder::start); and [`Code::InvalidArgument`] if this log's node was
    /// promoted before: it has to be started as a primary, and recovers.
    pub async fn start(self) -> Result<Backup> {
        let Self { domain, log, state, primary, settings, net, listen, advertise, share_key } = self;
        if let Err(error) = tonic::transport::Endpoint::from_shared(primary.clone()) {
            let why = format!("{primary} is no endpoint of a primary: {error}; give http://host:port");
            return Err(Error::new(Code::InvalidArgument, why));
        }
        net.validate_for(settings.command_bytes_max)?;
        let settings = settings.with_key(share_key.is_some())?;
        let start = |endpoint: String| {
            let primary = PrimarySettings { domain: domain.clone(), endpoint: endpoint.clone(), ..settings };
            Start::Backup(BackupSettings { domain, endpoint, primary })
        };
        let running = Running::start(start, log, state, listen, advertise, &net, share_key).await?;
        tokio::spawn(link::follow(running.node.mailbox.clone(), primary, net));
        Ok(Backup { running })
    }
}

/// A node that follows a primary and can take its place. A handle: cheap to clone; when the last one of a node is
/// dropped, the node ends as in a crash.
#[derive(Clone)]
pub struct Backup {
    running: Arc<Running>,
}

impl Backup {
    /// A backup in failure domain `domain`, on its own log and an empty state machine of the primary's kind, that
    /// follows the primary at the endpoint `primary`, such as `http://10.0.0.1:7000`.
    pub fn builder(
        domain: impl Into<String>,
        log: impl LogStore,
        state: impl StateMachine,
        primary: impl Into<String>,
    ) -> BackupBuilder {
        BackupBuilder {
            domain: domain.into(),
            log: Box::new(log),
            state: Box::new(state),
            primary: primary.into(),
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

    /// Waits until this backup is the primary's stability target: from then on it can be promoted. Cancel safe.
    ///
    /// # Errors
    /// Why the node stopped, if it does first.
    pub async fn in_sync(&self) -> Result<()> {
        self.running.node.wait(|view| view.in_sync.then_some(Ok(()))).await
    }

    /// Makes it the primary after a disaster: fences the old one, collects what clients hold, rebuilds the log. The
    /// handle watches that and gives the [`Primary`](super::Primary) in the end. Once begun it goes on, whatever
    /// becomes of the handle.
    ///
    /// # Errors
    /// [`Code::NotInSync`] if it was never in sync with its primary, [`Code::InvalidArgument`] if it is promoted
    /// already, or why the node stopped.
    pub async fn promote(&self, policy: RecoveryPolicy) -> Result<Recovery> {
        self.promote_with(false, policy).await
    }

    /// As [`promote`](Backup::promote), even though it was not in sync. The operator asserts that the primary is lost
    /// for good; what clients know to have been stable there and is not here is reported as missing.
    ///
    /// # Errors
    /// As `promote`; [`Code::NotInSync`] if it never followed anybody.
    pub async fn promote_by_force(&self, policy: RecoveryPolicy) -> Result<Recovery> {
        self.promote_with(true, policy).await
    }

    async fn promote_with(&self, force: bool, policy: RecoveryPolicy) -> Result<Recovery> {
        self.running.node.mailbox.admin(Admin::Promote { force, policy }).await?;
        Ok(Recovery { running: Arc::clone(&self.running), after: Epoch::ZERO })
    }

    /// Waits until an operator promotes this node, by [`promote`](Backup::promote) or over the network. Cancel safe.
    ///
    /// # Errors
    /// Why the node stopped, if it does first.
    pub async fn promoted(&self) -> Result<Recovery> {
        let promoted = |role| matches!(role, Role::Recovering | Role::Primary);
        let found = |view: &super::node::View| promoted(view.role).then_some(Ok(()));
        self.running.node.wait(found).await?;
        Ok(Recovery { running: Arc::clone(&self.running), after: Epoch::ZERO })
    }

    /// Ends at once, as a crash would, and returns when log and address are free. Cancel safe: the end goes on.
    pub async fn abort(&self) {
        self.running.abort().await;
    }

    /// Stops following. Returns `false`: only a primary leaves the mark of an orderly stop.
    ///
    /// # Errors
    /// Why the node stopped, if it failed.
    pub async fn stop(&self) -> Result<bool> {
        self.running.stop().await
    }
}
