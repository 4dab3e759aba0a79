//! The gRPC server of a node, the same in every role: client sessions, the replication stream, the operator's calls,
//! and the standard health service.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataValue;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::lanes::{self, stripe};
use super::node::{LINGER, Mail, Mailbox};
use super::seal::Sealer;
use super::socket::{Accepted, Gauge};
use super::{NetSettings, convert, pb};
use crate::error::{Code, Error, Result};
use crate::message::{BackupMessage, ClientMessage, NodeMessage, PrimaryMessage, Role};
use crate::node::{Admin, Conn};

/// Messages are joined into one of the wire's up to about so many bytes.
const JOIN_BYTES: usize = 512 << 10;
/// And up to so many.
const JOIN_MAX: usize = 256;
/// HTTP/2 frames: larger ones cost fewer wake-ups in bulk.
pub(super) const FRAME_BYTES: u32 = 64 << 10;

/// A queue of messages as a stream of wire messages, joining what has gathered.
///
/// Dropping it tells the reading half of the same stream.
pub(super) struct Outgoing<M, P> {
    queue: mpsc::Receiver<M>,
    weigh: fn(&M) -> usize,
    pack: Box<dyn FnMut(Vec<M>) -> P + Send>,
    alive: oneshot::Sender<()>,
}

impl<M, P> Outgoing<M, P> {
    /// The stream, and what resolves when it is dropped.
    pub(super) fn new(
        queue: mpsc::Receiver<M>,
        weigh: fn(&M) -> usize,
        pack: impl FnMut(Vec<M>) -> P + Send + 'static,
    ) -> (Self, oneshot::Receiver<()>) {
        let (alive, dropped) = oneshot::channel();
        (Self { queue, weigh, pack: Box::new(pack), alive }, dropped)
    }

    /// The queue, for whoever sends in its place, and what tells of that one's end by being dropped.
    pub(super) fn into_parts(self) -> (mpsc::Receiver<M>, oneshot::Sender<()>) {
        (self.queue, self.alive)
    }
}

/// What has gathered behind a queue's first message, up to about so many bytes.
pub(super) fn gather<M>(queue: &mut mpsc::Receiver<M>, first: M, weigh: fn(&M) -> usize, bytes_max: usize) -> Vec<M> {
    let mut weight = weigh(&first);
    let mut batch = vec![first];
    while batch.len() < JOIN_MAX && weight < bytes_max {
        let Ok(next) = queue.try_recv() else { break };
        weight += weigh(&next);
        batch.push(next);
    }
    batch
}

impl<M, P> Stream for Outgoing<M, P> {
    type Item = P;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P>> {
        let Some(first) = ready!(self.queue.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        let weigh = self.weigh;
        let batch = gather(&mut self.queue, first, weigh, JOIN_BYTES);
        Poll::Ready(Some((self.pack)(batch)))
    }
}

/// Reads a stream to its end and mails what comes; then the sequencer hears that it is gone.
pub(super) async fn read_stream<M, P>(
    mailbox: Mailbox,
    conn: Conn,
    mut stream: Streaming<P>,
    mut dropped: oneshot::Receiver<()>,
    unpack: impl Fn(P) -> Result<Vec<M>>,
    mail: fn(Conn, Vec<M>) -> Mail,
    refuse: impl Fn(Error),
) {
    loop {
        let message = tokio::select! {
            // A peer that says why and hangs up resets the stream: what it said is at hand, and goes first.
            biased;
            message = stream.message() => message,
            _ = &mut dropped => break,
        };
        let messages = match message {
            Ok(Some(message)) => unpack(message),
            Ok(None) => break,
            Err(status) if status.code() == tonic::Code::OutOfRange => {
                Err(Error::new(Code::TooLarge, format!("a message over message_bytes_max: {}", status.message())))
            }
            Err(_) => break,
        };
        match messages {
            Ok(messages) => {
                if mailbox.send(mail(conn, messages)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a peer sent what cannot be read");
                refuse(error);
                break;
            }
        }
    }
    // A node that has ended needs no word of it.
    let _ = mailbox.send(Mail::Gone(conn)).await;
    // Letting go of a stream that the peer has not ended resets it, and with it what was sent last: the reason why it
    // ends, and the replies before that. A peer that has read them ends it by itself.
    let rest = async { while let Ok(Some(_)) = stream.message().await {} };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

/// Bytes a message takes on the wire, roughly.
fn weigh_to_client(message: &NodeMessage) -> usize {
    let NodeMessage::Frame(frame) = message else { return 256 };
    let replies = frame.responses.iter().map(|response| match &response.outcome {
        Some(crate::message::Outcome::Reply(reply)) => reply.len() + 64,
        _ => 64,
    });
    let results = frame.results.iter().map(|result| result.result.as_ref().map_or(128, bytes::Bytes::len) + 16);
    let shares = frame.shares.iter().map(|share| share.body.len() + 48);
    replies.sum::<usize>() + results.sum::<usize>() + shares.sum::<usize>() + frame.manifest.len() * 96 + 64
}

pub(super) fn weigh_to_backup(message: &PrimaryMessage) -> usize {
    match message {
        PrimaryMessage::Append { records, .. } => weigh_records(records),
        _ => 128,
    }
}

pub(super) fn weigh_records(records: &[crate::log::Record]) -> usize {
    records.iter().map(|record| record.entry.payload.len() + 96).sum::<usize>() + 64
}

/// Puts the shares of messages to a client under seal, where there is a key. What cannot be sealed does not leave, nor what
/// was sent with it: the stream ends, and the next one begins with what this one lacks.
fn seal(sealer: &mut Option<Sealer>, mut messages: Vec<NodeMessage>) -> pb::NodeMessages {
    let mut unsealed = None;
    let frames = messages.iter_mut().filter_map(|message| match message {
        NodeMessage::Frame(frame) => Some(frame),
        _ => None,
    });
    if let Some(sealer) = sealer {
        for share in frames.flat_map(|frame| &mut frame.shares) {
            match sealer.seal(share.clone()) {
                Ok(sealed) => *share = sealed,
                Err(error) => unsealed = Some(error),
            }
        }
    }
    if let Some(error) = unsealed {
        tracing::error!(%error, "a stream is ended");
        messages =
            vec![NodeMessage::Refused(Error::new(Code::Unavailable, "a share could not be sealed: attach again"))];
    }
    messages.into()
}

/// Takes the seals off what a client hands over. A share whose seal does not hold is as good as empty: it is counted,
/// and the rest of the report stands.
fn unseal(sealer: &Option<Sealer>, messages: pb::ClientMessages) -> Result<Vec<ClientMessage>> {
    let mut messages = Vec::try_from(messages)?;
    let payloads = messages.iter_mut().filter_map(|message| match message {
        ClientMessage::Payloads(payloads) => Some(payloads),
        _ => None,
    });
    if let Some(sealer) = sealer {
        for share in payloads.flat_map(|payloads| &mut payloads.shares) {
            share.body = sealer.open(share).unwrap_or_else(|error| {
                tracing::warn!(%error, "a share is of no use");
                bytes::Bytes::new()
            });
        }
    }
    Ok(messages)
}

type ToClient = Outgoing<Box<NodeMessage>, pb::NodeMessages>;
type Answers<S> = tokio_stream::adapters::Map<S, fn(<S as Stream>::Item) -> Result<<S as Stream>::Item, Status>>;

/// The services of one node.
#[derive(Clone)]
struct Services {
    mailbox: Mailbox,
    links: stripe::Links,
}

fn status_of(error: Error) -> Status {
    convert::to_status(&error)
}

#[tonic::async_trait]
impl pb::session_server::Session for Services {
    type AttachStream = Answers<ToClient>;

    async fn attach(
        &self,
        request: Request<Streaming<pb::ClientMessages>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let conn = self.mailbox.conn();
        let (outbox, queue) = self.mailbox.outbox();
        let (mut sealer, opener) =
            (self.mailbox.sealer().map_err(status_of)?, self.mailbox.sealer().map_err(status_of)?);
        let pack = move |messages: Vec<Box<NodeMessage>>| {
            seal(&mut sealer, messages.into_iter().map(|message| *message).collect())
        };
        let (outgoing, dropped) = Outgoing::new(queue, |message| weigh_to_client(message), pack);
        let weak = outbox.downgrade();
        self.mailbox.send(Mail::ClientStream(conn, outbox)).await.map_err(status_of)?;
        let refuse = move |error| {
            if let Some(outbox) = weak.upgrade() {
                let _ = outbox.try_send(Box::new(NodeMessage::Refused(error)));
            }
        };
        let unpack = move |messages| unseal(&opener, messages);
        let mailbox = self.mailbox.clone();
        tokio::spawn(read_stream(mailbox, conn, request.into_inner(), dropped, unpack, Mail::FromClient, refuse));
        Ok(Response::new(outgoing.map(Ok)))
    }
}

#[tonic::async_trait]
impl pb::replication_server::Replication for Services {
    type FollowStream = stripe::Followed;
    type LaneStream = stripe::Carried;

    async fn follow(
        &self,
        request: Request<Streaming<pb::BackupMessages>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let conn = self.mailbox.conn();
        let (outbox, queue) = self.mailbox.long_outbox();
        let (outgoing, dropped) = Outgoing::new(queue, weigh_to_backup, convert::joined);
        let gauge = request.extensions().get::<Arc<Gauge>>().cloned();
        let (token, followed) = self.links.open(outgoing, gauge).map_err(status_of)?;
        let weak = outbox.downgrade();
        self.mailbox.send(Mail::BackupStream(conn, outbox)).await.map_err(status_of)?;
        let refuse = move |error| {
            if let Some(outbox) = weak.upgrade() {
                let _ = outbox.try_send(PrimaryMessage::Refused(error));
            }
        };
        let unpack: fn(_) -> Result<Vec<BackupMessage>> = Vec::try_from;
        let mailbox = self.mailbox.clone();
        tokio::spawn(read_stream(mailbox, conn, request.into_inner(), dropped, unpack, Mail::FromBackup, refuse));
        let mut answer = Response::new(followed);
        let token = MetadataValue::from_bytes(&token.to_be_bytes());
        answer.metadata_mut().insert_bin(lanes::TOKEN, token);
        Ok(answer)
    }

    async fn lane(&self, request: Request<pb::LaneRequest>) -> Result<Response<Self::LaneStream>, Status> {
        let gauge = request.extensions().get::<Arc<Gauge>>().cloned().unwrap_or_default();
        let carried = self.links.join(request.into_inner(), gauge).map_err(status_of)?;
        Ok(Response::new(carried))
    }
}

impl Services {
    async fn admin(&self, admin: Admin) -> Result<Response<pb::Done>, Status> {
        self.mailbox.admin(admin).await.map_err(status_of)?;
        Ok(Response::new(pb::Done {}))
    }
}

#[tonic::async_trait]
impl pb::admin_server::Admin for Services {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::NodeStatus>, Status> {
        let status = self.mailbox.status().await.map_err(status_of)?;
        Ok(Response::new(status.into()))
    }

    async fn promote(&self, request: Request<pb::PromoteRequest>) -> Result<Response<pb::Done>, Status> {
        self.admin(request.into_inner().try_into().map_err(status_of)?).await
    }

    async fn resolve(&self, request: Request<pb::ResolveRequest>) -> Result<Response<pb::Done>, Status> {
        self.admin(Admin::Resolve(request.into_inner().try_into().map_err(status_of)?)).await
    }

    async fn exclude(&self, request: Request<pb::ClientRequest>) -> Result<Response<pb::Done>, Status> {
        self.admin(Admin::Exclude(request.into_inner().try_into().map_err(status_of)?)).await
    }

    async fn end_session(&self, request: Request<pb::ClientRequest>) -> Result<Response<pb::Done>, Status> {
        self.admin(Admin::EndSession(request.into_inner().try_into().map_err(status_of)?)).await
    }

    async fn stop(&self, _: Request<pb::StopRequest>) -> Result<Response<pb::Done>, Status> {
        self.admin(Admin::Stop).await
    }
}

/// Takes `listener` on its own, in the caller's runtime, until the node closes or ends.
pub(super) async fn bind(address: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let why = format!("cannot listen on {address}: {error}; choose another address, or port 0 for any free one");
        Error::new(Code::InvalidArgument, why)
    })
}

/// Serves the node on `listener` until it closes or ends.
pub(super) fn serve(mailbox: &Mailbox, listener: TcpListener, settings: &NetSettings) -> tokio::task::JoinHandle<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).map(|stream| stream.map(Accepted::new));
    let links = stripe::Links::new(settings.replication_congestion.clone());
    let services = Services { mailbox: mailbox.clone(), links };
    let limit = settings.message_bytes_max;
    let (reporter, health) = tonic_health::server::health_reporter();
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(settings.keepalive_interval))
        .http2_keepalive_timeout(Some(settings.keepalive_timeout))
        .initial_stream_window_size(settings.stream_window_bytes)
        .initial_connection_window_size(settings.stream_window_bytes)
        .max_frame_size(FRAME_BYTES)
        .add_service(health)
        .add_service(pb::session_server::SessionServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(pb::replication_server::ReplicationServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(pb::admin_server::AdminServer::new(services));
    let (closing, lingering) = (mailbox.closing(), mailbox.closing());
    let view = mailbox.view();
    tokio::spawn(async move {
        let health = tokio::spawn(report_health(reporter, view));
        // Streams end by themselves when the node does; a peer that does not let go is let go.
        let lingering = async {
            lingering.await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            served = router.serve_with_incoming_shutdown(incoming, closing) => {
                if let Err(error) = served {
                    tracing::error!(%error, "the node's server ended");
                }
            }
            () = lingering => {}
        }
        health.abort();
    })
}

/// Keeps the health service true: the process is there, and whether it serves sessions.
async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    mut view: tokio::sync::watch::Receiver<super::node::View>,
) {
    use tonic_health::ServingStatus::{NotServing, Serving};
    loop {
        let role = view.borrow_and_update().role;
        let serving = if role == Role::Primary { Serving } else { NotServing };
        reporter.set_service_status("tagalong.v1.Session", serving).await;
        if view.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::log::{ClientId, Epoch, Lsn, NodeId};
    use crate::message::NodeFrame;
    use crate::net::seal::ShareKey;
    use crate::share::{Mode, Share};

    /// It was sent empty once, and counted as held.
    #[test]
    fn what_cannot_be_sealed_ends_the_stream() {
        let epoch = Epoch { number: 1, node: NodeId(1), ..Epoch::ZERO };
        let (mode, holder, hold_until) = (Mode::Stripe, ClientId(1), Lsn(9));
        let share = Share { epoch, id: 7, mode, holder, hold_until, body: bytes::Bytes::from_static(b"plain") };
        let frame = || NodeMessage::Frame(NodeFrame { epoch, shares: vec![share.clone()], ..NodeFrame::default() });
        let mut sealer = Some(Sealer::new(ShareKey::new([7; 32])).unwrap());
        let sealed = Vec::<NodeMessage>::try_from(seal(&mut sealer, vec![frame()])).unwrap();
        assert!(matches!(&sealed[..], [NodeMessage::Frame(frame)] if frame.shares[0].body.len() > 5));
        // The nonce is used up.
        let sent = Vec::<NodeMessage>::try_from(seal(&mut sealer, vec![frame()])).unwrap();
        assert!(matches!(&sent[..], [NodeMessage::Refused(error)] if error.code() == Code::Unavailable), "{sent:?}");
    }
}
