//! A backup's link to its primary: dialled again, with pauses, for as long as the node is a backup.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::lanes::{self, Reorder};
use super::node::{LINGER, Mail, Mailbox};
use super::server::{Outgoing, read_stream, weigh_records};
use super::{Backoff, NetSettings, convert, pb};
use crate::error::{Code, Error, Result};
use crate::message::{BackupMessage, PrimaryMessage, Role};
use crate::node::Conn;

/// Follows the primary at `endpoint` until the node is no backup any more.
pub(super) async fn follow(mailbox: Mailbox, endpoint: String, settings: NetSettings) {
    let mut backoff = Backoff::new(&settings);
    let mut view = mailbox.view();
    let closing = mailbox.closing();
    tokio::pin!(closing);
    loop {
        let opened = tokio::select! {
            () = &mut closing => return,
            _ = view.wait_for(|view| view.role != Role::Backup || view.failure.is_some()) => return,
            opened = open(&mailbox, &endpoint, &settings) => opened,
        };
        match opened {
            Ok(link) => {
                let started = std::time::Instant::now();
                link.read(&mailbox).await;
                if started.elapsed() > settings.keepalive_interval {
                    backoff.reset();
                }
            }
            Err(error) => tracing::debug!(%error, "the primary cannot be reached"),
        }
        tokio::select! {
            () = &mut closing => return,
            () = tokio::time::sleep(backoff.pause()) => {}
        }
    }
}

type Client = pb::replication_client::ReplicationClient<Channel>;

/// A link that stands.
struct Link {
    stream: Streaming<pb::PrimaryMessages>,
    /// What carries the primary's messages in the stream's place, where the link has several connections.
    lanes: Option<Lanes>,
    outbox: mpsc::Sender<BackupMessage>,
    dropped: oneshot::Receiver<()>,
}

/// A call that the node answers at once; one that does not is as good as away.
async fn answered<T>(
    endpoint: &str,
    settings: &NetSettings,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<tonic::Response<T>> {
    let answer = tokio::time::timeout(settings.connect_timeout, call).await;
    let answer = answer.map_err(|_| Error::new(Code::Unavailable, format!("{endpoint} does not answer")))?;
    answer.map_err(|status| convert::from_status(&status))
}

async fn open(mailbox: &Mailbox, endpoint: &str, settings: &NetSettings) -> Result<Link> {
    let channel = settings.dial_for_link(endpoint).await?;
    let mut client = Client::new(channel).max_decoding_message_size(settings.message_bytes_max);
    let (outbox, queue) = mailbox.long_outbox();
    let pack: fn(_) -> pb::BackupMessages = pb::BackupMessages::from;
    let (outgoing, dropped) = Outgoing::new(queue, weigh, pack);
    let answer = answered(endpoint, settings, client.follow(outgoing)).await?;
    let token = answer.metadata().get_bin(lanes::TOKEN).and_then(|token| token.to_bytes().ok());
    let lanes = match token {
        Some(token) if settings.replication_connections > 1 => attach(client, endpoint, settings, token).await,
        _ => None,
    };
    Ok(Link { stream: answer.into_inner(), lanes, outbox, dropped })
}

/// Attaches further connections to a link that nothing was sent on: as many of them as can be had in time.
async fn attach(client: Client, endpoint: &str, settings: &NetSettings, token: Bytes) -> Option<Lanes> {
    let mut joining = JoinSet::new();
    for lane in 1..settings.replication_connections {
        let (endpoint, settings, token) = (endpoint.to_owned(), settings.clone(), token.clone());
        joining.spawn(async move {
            let request = pb::LaneRequest { link: token, lane, others: Vec::new() };
            let joined = match settings.dial_for_link(&endpoint).await {
                Ok(channel) => join(Client::new(channel), &endpoint, &settings, request).await,
                Err(error) => Err(error),
            };
            (lane, joined)
        });
    }
    let mut streams = Vec::new();
    let mut others = Vec::new();
    while let Some(joined) = joining.join_next().await {
        match joined {
            Ok((lane, Ok(stream))) => {
                others.push(lane);
                streams.push(stream);
            }
            Ok((lane, Err(error))) => tracing::warn!(%error, lane, "a connection of the link cannot be had"),
            Err(error) => tracing::warn!(%error, "a connection of the link cannot be had"),
        }
    }
    if streams.is_empty() {
        return None;
    }
    // The connection of the stream itself comes last, and names those that stand.
    match join(client, endpoint, settings, pb::LaneRequest { link: token, lane: 0, others }).await {
        Ok(stream) => streams.push(stream),
        Err(error) => {
            tracing::warn!(%error, "the link goes on with one connection");
            return None;
        }
    }
    let window = usize::try_from(settings.replication_window_bytes).unwrap_or(usize::MAX);
    Some(Lanes { order: Reorder::new(streams.len(), window, settings.message_bytes_max), streams })
}

async fn join(
    client: Client,
    endpoint: &str,
    settings: &NetSettings,
    request: pb::LaneRequest,
) -> Result<Streaming<pb::Piece>> {
    let mut client = client.max_decoding_message_size(lanes::PIECE_BYTES_MAX);
    answered(endpoint, settings, client.lane(request)).await.map(tonic::Response::into_inner)
}

impl Link {
    /// Reads to the end. The sequencer ends the stream by dropping its outbox.
    async fn read(self, mailbox: &Mailbox) {
        let Self { stream, lanes, outbox, dropped } = self;
        let conn = mailbox.conn();
        if mailbox.send(Mail::Link(conn, outbox)).await.is_err() {
            return;
        }
        match lanes {
            None => {
                let unpack: fn(_) -> Result<Vec<PrimaryMessage>> = Vec::try_from;
                read_stream(mailbox.clone(), conn, stream, dropped, unpack, Mail::FromPrimary, |_| {}).await;
            }
            Some(lanes) => lanes.read(mailbox, conn, stream, dropped).await,
        }
    }
}

/// The lanes of a link, and what came over them.
struct Lanes {
    streams: Vec<Streaming<pb::Piece>>,
    order: Reorder,
}

impl Lanes {
    /// As [`read_stream`], of a stream that several connections carry. The Follow stream itself brings nothing but its end.
    async fn read(
        mut self,
        mailbox: &Mailbox,
        conn: Conn,
        mut follow: Streaming<pb::PrimaryMessages>,
        mut dropped: oneshot::Receiver<()>,
    ) {
        loop {
            let came = tokio::select! {
                biased;
                came = std::future::poll_fn(|cx| self.poll_message(cx)) => came,
                _ = &mut dropped => break,
            };
            let messages = came.and_then(|message| message.map(unpack).transpose());
            match messages {
                Ok(Some(messages)) => {
                    if mailbox.send(Mail::FromPrimary(conn, messages)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a lane of the link to the primary is lost, and the link with it");
                    break;
                }
            }
        }
        // A node that has ended needs no word of it.
        let _ = mailbox.send(Mail::Gone(conn)).await;
        // As in `read_stream`: what was sent last is still to arrive. A lane that is let go of before would end the link at the
        // primary, and with it the reason why: they are connections of their own, and the quicker one wins.
        let rest = async { while let Ok(Some(_)) = follow.message().await {} };
        let _ = tokio::time::timeout(LINGER, rest).await;
        drop(self);
    }

    /// The next message in order; none at the end.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        loop {
            if let Some(message) = self.order.next()? {
                return Poll::Ready(Ok(Some(message)));
            }
            if self.order.is_over() {
                return Poll::Ready(Ok(None));
            }
            let mut came = false;
            for (lane, stream) in self.streams.iter_mut().enumerate() {
                if !self.order.takes(lane) {
                    continue;
                }
                match Pin::new(stream).poll_next(cx) {
                    Poll::Ready(Some(Ok(piece))) => self.order.take(lane, piece)?,
                    Poll::Ready(Some(Err(status))) => return Poll::Ready(Err(convert::from_status(&status))),
                    Poll::Ready(None) => self.order.end(lane),
                    Poll::Pending => continue,
                }
                came = true;
            }
            if !came {
                return Poll::Pending;
            }
        }
    }
}

fn unpack(message: Bytes) -> Result<Vec<PrimaryMessage>> {
    let message = pb::PrimaryMessages::decode(message);
    message
        .map_err(|error| Error::new(Code::Protocol, format!("what the lanes carry is no message: {error}")))?
        .try_into()
}

fn weigh(message: &BackupMessage) -> usize {
    match message {
        BackupMessage::Records { records, .. } => weigh_records(records),
        _ => 128,
    }
}
