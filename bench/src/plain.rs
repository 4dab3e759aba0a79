//! The floor: a bare bidirectional stream on which every write comes back, with no log, no order, and nobody far away.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::Result;
use crate::latency::Latencies;
use crate::load::{Phase, Shape};
use crate::tally::payload;
use crate::wire::{PlainClient, Write, Writes, plain_server};

/// Writes joined into a message where they are batched, and their bytes.
const JOIN_MAX: usize = 256;
const JOIN_BYTES: usize = 512 << 10;
/// As the library has it.
const FRAME_BYTES: u32 = 64 << 10;
const WINDOW_BYTES: u32 = 4 << 20;
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Writes as messages: one each, or what has gathered. The queue has no bound of its own: what waits in it was asked for by
/// clients who have so many in flight and no more.
pub(crate) struct Outgoing {
    queue: mpsc::UnboundedReceiver<Write>,
    batched: bool,
}

impl Outgoing {
    pub(crate) fn new(queue: mpsc::UnboundedReceiver<Write>, batched: bool) -> Self {
        Self { queue, batched }
    }
}

impl Stream for Outgoing {
    type Item = Writes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Writes>> {
        let Some(first) = ready!(self.queue.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        let mut bytes = first.payload.len();
        let mut writes = vec![first];
        while self.batched && writes.len() < JOIN_MAX && bytes < JOIN_BYTES {
            let Ok(next) = self.queue.try_recv() else { break };
            bytes += next.payload.len();
            writes.push(next);
        }
        Poll::Ready(Some(Writes { writes }))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Writes, Status>> + Send>>;

/// Sends every message back as it came.
#[derive(Clone)]
struct Echo;

#[tonic::async_trait]
impl plain_server::Plain for Echo {
    type ExchangeStream = Answers;

    async fn exchange(&self, request: Request<Streaming<Writes>>) -> Result<Response<Answers>, Status> {
        Ok(Response::new(Box::pin(request.into_inner())))
    }
}

/// Serves the echo until the process ends; tells the address first.
pub(crate) async fn serve_echo(tell: impl FnOnce(std::net::SocketAddr)) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    tell(listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = plain_server::PlainServer::new(Echo).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok(server().add_service(service).serve_with_incoming(incoming).await?)
}

/// Takes every message, answers none, and ends a stream when its client does.
#[derive(Clone)]
struct Sink;

#[tonic::async_trait]
impl plain_server::Plain for Sink {
    type ExchangeStream = Answers;

    async fn exchange(&self, request: Request<Streaming<Writes>>) -> Result<Response<Answers>, Status> {
        Ok(Response::new(Box::pin(request.into_inner().filter(Result::is_err))))
    }
}

/// Serves the sink until the process ends; tells the address first.
pub(crate) async fn serve_sink(tell: impl FnOnce(std::net::SocketAddr)) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    tell(listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = plain_server::PlainServer::new(Sink).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok(server().add_service(service).serve_with_incoming(incoming).await?)
}

/// A server with the library's settings.
pub(crate) fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
}

/// One client of a plain service, as tight as it can be: no future for a write, no task between stream and clock. It ends when
/// it is to end, or when the service does.
pub(crate) async fn drive(
    endpoint: &str,
    client: u64,
    shape: &Shape,
    batched: bool,
    phase: &Phase,
    acked: &AtomicU64,
) -> Result<Latencies> {
    let channel = Endpoint::from_shared(endpoint.to_owned())?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect()
        .await?;
    let (queue, writes) = mpsc::unbounded_channel();
    let mut service = PlainClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut answers = service.exchange(Outgoing::new(writes, batched)).await?.into_inner();
    phase.ready().await;
    let mut latencies = Latencies::default();
    let mut flight: VecDeque<Instant> = VecDeque::new();
    let mut issued = 0;
    loop {
        while flight.len() < shape.in_flight && !phase.is_over() {
            issued += 1;
            let write = Write { number: issued, payload: payload(client, issued, shape.payload) };
            flight.push_back(Instant::now());
            if queue.send(write).is_err() {
                return Ok(latencies);
            }
        }
        if flight.is_empty() {
            return Ok(latencies);
        }
        let Some(Ok(answer)) = answers.next().await else { return Ok(latencies) };
        let now = Instant::now();
        for _ in answer.writes {
            let sent = flight.pop_front().ok_or("an answer to nothing")?;
            acked.fetch_add(1, Ordering::Relaxed);
            if phase.counts(sent) {
                latencies.note(now - sent);
            }
        }
    }
}
