//! The task that drives a client's core: news from the streams and calls in, messages and outcomes out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, watch};

use super::cache::Cache;
use super::endpoint::Visitor;
use super::{Inner, News, Shared, WriteOutcome};
use crate::client::{CacheOp, ClientEvent, ClientInput, ClientOutput};
use crate::error::{Code, Error};
use crate::log::Level;
use crate::message::{ClientMessage, Outcome};
use crate::net::Clock;
use crate::net::alarm::Alarm;
use crate::node::Conn;

/// News taken before the batched work is done.
const BATCH_MAX: usize = 256;
/// Endpoints a client keeps streams to: what nodes tell beyond that is ignored.
const ENDPOINTS_MAX: usize = 16;

pub(super) struct Driver {
    shared: Arc<Shared>,
    clock: Clock,
    cache: Option<Cache>,
    events: broadcast::Sender<ClientEvent>,
    endpoints: BTreeSet<String>,
    visitor: Visitor,
    news: mpsc::Receiver<News>,
    closing: watch::Receiver<bool>,
    streams: HashMap<Conn, mpsc::Sender<ClientMessage>>,
    /// Streams whose node does not read.
    stuck: Vec<Conn>,
    stores: Vec<Vec<CacheOp>>,
    /// Somebody who waited for a write was told what came of it.
    answered: bool,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        clock: Clock,
        cache: Option<Cache>,
        events: broadcast::Sender<ClientEvent>,
        endpoints: Vec<String>,
        visitor: Visitor,
        news: mpsc::Receiver<News>,
    ) -> Self {
        let closing = visitor.closing.clone();
        let mut driver = Self {
            shared,
            clock,
            cache,
            events,
            endpoints: BTreeSet::new(),
            visitor,
            news,
            closing,
            streams: HashMap::new(),
            stuck: Vec::new(),
            stores: Vec::new(),
            answered: false,
        };
        driver.learn(endpoints);
        driver
    }

    /// Drives the core until the session ends or the handles are dropped. `out` is what the core began with.
    pub(super) async fn run(mut self, out: Vec<ClientOutput>) {
        let shared = Arc::clone(&self.shared);
        {
            let mut inner = shared.inner.lock();
            self.carry_out(&mut inner, out);
        }
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut alarm = Alarm::default();
        loop {
            for ops in std::mem::take(&mut self.stores) {
                if let Some(cache) = &self.cache {
                    cache.write(ops).await;
                }
            }
            let ended = {
                let view = shared.view.borrow();
                view.closed || view.ended.is_some()
            };
            if ended {
                break;
            }
            let timeout = shared.inner.lock().core.next_timeout().map(|at| self.clock.instant(at));
            let stored = async {
                match &self.cache {
                    Some(cache) => cache.rings().await,
                    None => std::future::pending().await,
                }
            };
            let mut due = false;
            tokio::select! {
                _ = self.news.recv_many(&mut batch, BATCH_MAX) => {}
                () = shared.bell.notified() => {}
                () = stored => {}
                () = alarm.rings(timeout) => due = true,
                _ = self.closing.wait_for(|closing| *closing) => break,
            }
            let owes = {
                let mut inner = shared.inner.lock();
                self.take_stored(&mut inner);
                for news in batch.drain(..) {
                    self.take(&mut inner, news);
                }
                if due {
                    self.step(&mut inner, ClientInput::Tick);
                }
                inner.core.next_timeout().is_some_and(|at| at <= self.clock.now())
            };
            // Whoever was answered may write again at once: what is confirmed rides on that.
            if std::mem::take(&mut self.answered) && owes {
                tokio::task::yield_now().await;
            }
            let mut inner = shared.inner.lock();
            self.step(&mut inner, ClientInput::Flush);
            for conn in std::mem::take(&mut self.stuck) {
                self.step(&mut inner, ClientInput::Gone(conn));
            }
            drop(inner);
            shared.room.notify_waiters();
        }
        self.end("the session is closed");
        if let Some(cache) = self.cache.take() {
            cache.finish().await;
        }
    }

    /// Whoever waits is told that nothing more will come, unless they were told why already.
    fn end(&self, why: &str) {
        let closed = Error::new(Code::Closed, why);
        self.shared.inner.lock().end(&closed);
        self.shared.view.send_modify(|view| {
            view.attached = None;
            view.ended.get_or_insert(closed);
        });
        self.shared.room.notify_waiters();
    }

    fn take_stored(&mut self, inner: &mut Inner) {
        match self.cache.as_ref().map(Cache::stored) {
            Some(Ok(stored)) => self.step(inner, ClientInput::Stored(stored)),
            Some(Err(error)) => self.fail(inner, error),
            None => {}
        }
    }

    fn take(&mut self, inner: &mut Inner, news: News) {
        match news {
            News::Up(conn, outbox) => {
                self.streams.insert(conn, outbox);
                self.step(inner, ClientInput::Connected(conn));
            }
            News::Messages(conn, messages) => {
                for message in messages {
                    // What is still under way on a stream that was closed goes nowhere.
                    if self.streams.contains_key(&conn) {
                        self.step(inner, ClientInput::Message(conn, message));
                    }
                }
            }
            News::Gone(conn) => {
                self.streams.remove(&conn);
                self.step(inner, ClientInput::Gone(conn));
            }
            News::Trouble(error) => self.shared.view.send_modify(|view| {
                // What a node says is worth more than that another one is not there.
                if error.code() != Code::Unavailable || view.trouble.is_none() {
                    view.trouble = Some(error);
                }
            }),
        }
    }

    fn step(&mut self, inner: &mut Inner, input: ClientInput) {
        let mut out = Vec::new();
        inner.core.step(self.clock.now(), input, &mut out);
        self.carry_out(inner, out);
        let attached = inner.core.attached();
        self.shared.view.send_if_modified(|view| {
            let news = view.attached != attached;
            view.attached = attached;
            if attached.is_some() {
                view.trouble = None;
            }
            news
        });
    }

    fn carry_out(&mut self, inner: &mut Inner, out: Vec<ClientOutput>) {
        for output in out {
            match output {
                ClientOutput::Send(conn, message) => {
                    if self.streams.get(&conn).is_some_and(|outbox| outbox.try_send(message).is_err()) {
                        self.streams.remove(&conn);
                        self.stuck.push(conn);
                    }
                }
                ClientOutput::Close(conn) => drop(self.streams.remove(&conn)),
                ClientOutput::Store(ops) => self.stores.push(ops),
                ClientOutput::Done { request, outcome, tag } => {
                    self.answered = true;
                    inner.tell(match outcome {
                        Outcome::Reply(reply) => {
                            // Without a tag nothing more is known than that it was applied.
                            let met = tag.map_or(Level::Local, |tag| tag.met);
                            WriteOutcome::Acknowledged { request, tag, met, reply }
                        }
                        Outcome::Superseded => WriteOutcome::Superseded { request },
                    });
                }
                ClientOutput::Result { id, result } => {
                    if let Some(reader) = inner.reads.remove(&id) {
                        // A reader that went away is no loss.
                        let _ = reader.send(result);
                    }
                }
                ClientOutput::Flushed(token) => {
                    if let Some(waiter) = inner.flushes.remove(&token) {
                        let _ = waiter.send(());
                    }
                }
                ClientOutput::Event(event) => {
                    if let ClientEvent::Waiting(error) | ClientEvent::Refused(error) = &event {
                        let error = error.clone();
                        self.shared.view.send_modify(|view| view.trouble = Some(error));
                    }
                    tracing::debug!(?event, "client");
                    let _ = self.events.send(event);
                }
                ClientOutput::Endpoints(endpoints) => self.learn(endpoints),
                ClientOutput::Failed(error) => self.fail(inner, error),
                ClientOutput::Closed => self.shared.view.send_modify(|view| view.closed = true),
            }
        }
    }

    fn fail(&mut self, inner: &mut Inner, error: Error) {
        inner.end(&error);
        self.shared.view.send_modify(|view| view.ended = Some(error));
    }

    /// Keeps a stream to each endpoint that is news.
    fn learn(&mut self, endpoints: Vec<String>) {
        for endpoint in endpoints {
            if self.endpoints.len() < ENDPOINTS_MAX && self.endpoints.insert(endpoint.clone()) {
                tokio::spawn(self.visitor.clone().visit(endpoint));
            }
        }
    }
}

impl Drop for Driver {
    /// The task may be dropped with its runtime, or panic, while handles live on elsewhere.
    fn drop(&mut self) {
        self.end("the client's task is gone: the runtime it was started on ended, or it panicked");
        self.shared.view.send_modify(|view| view.gone = true);
    }
}
