//! What operators and their tools ask a node over gRPC.

use std::time::Duration;

use super::{NetSettings, convert, pb};
use crate::error::{Code, Error, Result};
use crate::log::{ClientId, GapPolicy};
use crate::message::NodeStatus;
use crate::node::RecoveryPolicy;

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An operator's connection to one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AdminClient {
    client: pb::admin_client::AdminClient<tonic::transport::Channel>,
}

impl AdminClient {
    /// Connects to the node at `endpoint`, such as `http://127.0.0.1:7000`. Cancel safe.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if nobody answers, [`Code::InvalidArgument`] if this is no endpoint.
    pub async fn connect(endpoint: impl AsRef<str>) -> Result<Self> {
        let settings = NetSettings::default();
        let channel = settings.dial(endpoint.as_ref(), settings.stream_window_bytes).await?;
        let client = pb::admin_client::AdminClient::new(channel);
        Ok(Self { client: client.max_decoding_message_size(settings.message_bytes_max) })
    }

    /// What the node is doing. Cancel safe.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn status(&self) -> Result<NodeStatus> {
        let status = self.call(async |mut client| client.status(pb::StatusRequest {}).await).await?;
        status.try_into()
    }

    /// Makes a backup the primary; returns when the promotion has begun. `force` raises the generation, and rests on
    /// the operator's assertion that the other side is lost for good. Once sent, the order stands though the call is
    /// dropped.
    ///
    /// # Errors
    /// [`Code::NotInSync`] without `force` where it would be needed; [`Code::InvalidArgument`] on a node that is the
    /// primary already.
    pub async fn promote(&self, force: bool, policy: RecoveryPolicy) -> Result<()> {
        let request = convert::promote_request(force, policy);
        self.call(async |mut client| client.promote(request).await).await.map(|_| ())
    }

    /// Concludes a running recovery now, with gaps handled by `policy`.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if none is running.
    pub async fn resolve(&self, policy: GapPolicy) -> Result<()> {
        let request = pb::ResolveRequest::from(policy);
        self.call(async |mut client| client.resolve(request).await).await.map(|_| ())
    }

    /// Drops what `client` reported to a running recovery, and does not wait for it.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if none is running.
    pub async fn exclude(&self, client: ClientId) -> Result<()> {
        let request = pb::ClientRequest::from(client);
        self.call(async |mut stub| stub.exclude(request).await).await.map(|_| ())
    }

    /// Ends a session: its replies are dropped, the outcome of what it left open is unknown.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if there is no such session or the node is not an open primary.
    pub async fn end_session(&self, client: ClientId) -> Result<()> {
        let request = pb::ClientRequest::from(client);
        self.call(async |mut stub| stub.end_session(request).await).await.map(|_| ())
    }

    /// Stops the node in good order: a primary first drains, and leaves the mark that skips its next roll call. The
    /// call returns when the stop has begun.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn stop(&self) -> Result<()> {
        self.call(async |mut client| client.stop(pb::StopRequest {}).await).await.map(|_| ())
    }

    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(
            pb::admin_client::AdminClient<tonic::transport::Channel>,
        ) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T> {
        match tokio::time::timeout(TIMEOUT, call(self.client.clone())).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(convert::from_status(&status)),
            Err(_) => Err(Error::new(Code::Unavailable, format!("no answer within {TIMEOUT:?}"))),
        }
    }
}
