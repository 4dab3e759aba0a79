//! The stream to one endpoint: dialled again, with pauses, until the client ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

use super::News;
use crate::error::{Code, Error, Result};
use crate::message::{ClientMessage, NodeMessage};
use crate::net::server::Outgoing;
use crate::net::{Backoff, NetSettings, convert, pb};
use crate::node::Conn;

/// What every endpoint's task needs.
#[derive(Clone)]
pub(super) struct Visitor {
    pub(super) news: mpsc::Sender<News>,
    pub(super) conns: Arc<AtomicU64>,
    pub(super) settings: NetSettings,
    /// Messages that may wait to be sent on one stream.
    pub(super) outbox_max: usize,
    pub(super) closing: watch::Receiver<bool>,
}

impl Visitor {
    /// Keeps a stream to `endpoint` until the client ends.
    pub(super) async fn visit(mut self, endpoint: String) {
        let mut backoff = Backoff::new(&self.settings);
        loop {
            let mut closing = self.closing.clone();
            let opened = tokio::select! {
                _ = closing.wait_for(|closing| *closing) => return,
                opened = self.open(&endpoint) => opened,
            };
            let done = match opened {
                Ok(link) => {
                    let started = std::time::Instant::now();
                    let done = self.read(link).await;
                    if started.elapsed() > self.settings.backoff_max {
                        backoff.reset();
                    }
                    done
                }
                Err(error) => self.tell(News::Trouble(error)).await,
            };
            if done.is_none() {
                return;
            }
            tokio::select! {
                _ = self.closing.wait_for(|closing| *closing) => return,
                () = tokio::time::sleep(backoff.pause()) => {}
            }
        }
    }

    /// `None` when nobody drives the client any more.
    async fn tell(&self, news: News) -> Option<()> {
        self.news.send(news).await.ok()
    }

    async fn open(&self, endpoint: &str) -> Result<Link> {
        let channel = self.settings.dial(endpoint, self.settings.stream_window_bytes).await?;
        let mut client =
            pb::session_client::SessionClient::new(channel).max_decoding_message_size(self.settings.message_bytes_max);
        let (outbox, queue) = mpsc::channel(self.outbox_max);
        let pack: fn(_) -> pb::ClientMessages = pb::ClientMessages::from;
        let (outgoing, dropped) = Outgoing::new(queue, weigh, pack);
        let answer = tokio::time::timeout(self.settings.connect_timeout, client.attach(outgoing)).await;
        let answer = answer.map_err(|_| Error::new(Code::Unavailable, format!("{endpoint} does not answer")))?;
        let stream = answer.map_err(|status| convert::from_status(&status))?.into_inner();
        Ok(Link { stream, outbox, dropped })
    }

    /// Reads to the end. The driver ends the stream by dropping its outbox.
    async fn read(&self, link: Link) -> Option<()> {
        let Link { mut stream, outbox, mut dropped } = link;
        let conn = Conn(self.conns.fetch_add(1, Ordering::Relaxed) + 1);
        self.tell(News::Up(conn, outbox)).await?;
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _ = &mut dropped => break,
            };
            match message.map(|message| message.map(Vec::<NodeMessage>::try_from)) {
                Ok(Some(Ok(messages))) => self.tell(News::Messages(conn, messages)).await?,
                Ok(Some(Err(error))) => {
                    tracing::warn!(%error, "a node sent what cannot be read");
                    self.tell(News::Trouble(error)).await?;
                    break;
                }
                Ok(None) => break,
                Err(status) => {
                    self.tell(News::Trouble(convert::from_status(&status))).await?;
                    break;
                }
            }
        }
        self.tell(News::Gone(conn)).await
    }
}

/// A stream that stands.
struct Link {
    stream: tonic::Streaming<pb::NodeMessages>,
    outbox: mpsc::Sender<ClientMessage>,
    dropped: oneshot::Receiver<()>,
}

fn weigh(message: &ClientMessage) -> usize {
    match message {
        ClientMessage::Frame(frame) => {
            let writes: usize = frame.writes.iter().map(|write| write.payload.len() + 48).sum();
            writes + frame.queries.iter().map(|query| query.payload.len() + 16).sum::<usize>() + 32
        }
        ClientMessage::Payloads(payloads) => {
            let items = payloads.items.iter().map(|(_, payload)| payload.len() + 16);
            items.chain(payloads.shares.iter().map(|share| share.body.len() + 64)).sum()
        }
        ClientMessage::Report(report) => report.items.len() * 96 + 64,
        _ => 128,
    }
}
