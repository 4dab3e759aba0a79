//! The handle of a client: writes, reads, flushes; and what it shares with the task that drives its core.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::{Clock, NetSettings, random_u128};
use crate::client::{CacheImage, CacheOp, Client, ClientEvent, ClientSettings, Identity, REPORT_ITEMS};
use crate::error::{Code, Error, Result};
use crate::log::{ClientId, Epoch, HEADER_COST, Level, Request, SessionRole, Tag};
use crate::ordered::Ordered;
use crate::store::ClientCache;

mod cache;
mod driver;
mod endpoint;
#[cfg(test)]
mod tests;
mod writing;

use driver::Driver;
use endpoint::Visitor;
use writing::State;
pub use writing::Writing;

/// Events kept for a listener that is slow.
const EVENTS_MAX: usize = 1024;
/// Outcomes kept that nobody waited for when they came.
const OUTCOMES_MAX: usize = 4096;

/// How a write ended, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteOutcome {
    /// Executed once, at the tag's place in the log, and acknowledged at its level.
    Acknowledged {
        /// The command's number.
        request: Request,
        /// Where it stands; `None` if only the reply is known any more.
        tag: Option<Tag>,
        /// The strongest level that it met when it was answered, at least the one that was asked for. [`Level::Stable`]
        /// where [`Level::Covered`] was asked for: there were not enough clients to cover it, and it had to wait for the
        /// backup. [`Level::Local`] without a tag.
        met: Level,
        /// What the state machine answered.
        reply: Bytes,
    },
    /// Never executed in the surviving log, and never will be under this number. It may be issued again.
    Superseded {
        /// The command's number.
        request: Request,
    },
    /// Not known: a deadline passed, or the session ended. The command may have been executed, or yet be;
    /// [`TaggedClient::outcome`] tells once it is known.
    Unknown {
        /// The command's number.
        request: Request,
        /// Why it is not known.
        error: Error,
    },
}

impl WriteOutcome {
    /// The command's number.
    pub fn request(&self) -> Request {
        match self {
            Self::Acknowledged { request, .. } | Self::Superseded { request } | Self::Unknown { request, .. } => {
                *request
            }
        }
    }

    /// The reply of an acknowledged command.
    ///
    /// # Errors
    /// [`Code::Superseded`], or why the outcome is unknown.
    pub fn reply(self) -> Result<Bytes> {
        match self {
            Self::Acknowledged { reply, .. } => Ok(reply),
            Self::Superseded { request } => {
                let why = format!("request {request} did not survive; issue the command again if it still makes sense");
                Err(Error::new(Code::Superseded, why))
            }
            Self::Unknown { error, .. } => Err(error),
        }
    }
}

/// What a write may ask for beside the service's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOptions {
    /// The durability to wait for; the service's lowest applies where that is higher.
    pub level: Option<Level>,
    /// How long to wait for the outcome. The command itself is not taken back when it passes.
    pub deadline: Option<Duration>,
}

impl WriteOptions {
    /// Waits for this durability.
    #[must_use]
    pub fn level(mut self, level: Level) -> Self {
        self.level = Some(level);
        self
    }

    /// Waits no longer than this; the outcome is then [`WriteOutcome::Unknown`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

/// What a read may ask for beside the service's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// The durability that what is read must have; the service's lowest applies where that is higher.
    pub level: Option<Level>,
    /// How long to wait for the result.
    pub deadline: Option<Duration>,
}

impl ReadOptions {
    /// Waits until what was read has this durability.
    #[must_use]
    pub fn level(mut self, level: Level) -> Self {
        self.level = Some(level);
        self
    }

    /// Waits no longer than this.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

/// A client's state in figures.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStats {
    /// The reign in which the session is established, if it is.
    pub attached: Option<Epoch>,
    /// Commands in the write cache: in doubt or held.
    pub cached_commands: usize,
    /// Headers of others' entries that this client vouches for.
    pub cached_headers: usize,
    /// Commands of which it keeps the place, told in manifests.
    pub cached_places: u64,
    /// Bytes of all three.
    pub cache_bytes: u64,
    /// Shares of others' entries that this client keeps.
    pub cached_shares: usize,
    /// Bytes of those.
    pub share_bytes: u64,
    /// Commands that have a number and were not sent yet.
    pub unsent: usize,
}

/// Events of a client, from the moment they were asked for.
pub struct ClientEvents {
    events: broadcast::Receiver<ClientEvent>,
}

impl ClientEvents {
    /// The next event; `None` when the client has ended. A listener that is more than 1024 events behind misses the
    /// oldest. Cancel safe.
    pub async fn next(&mut self) -> Option<ClientEvent> {
        loop {
            match self.events.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a listener of client events was too slow");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// What is shared between calls and driver.
struct Shared {
    inner: Mutex<Inner>,
    /// Rung by calls: the core has something to send.
    bell: Notify,
    /// Rung by the driver: there may be room for more queries.
    room: Notify,
    view: watch::Sender<View>,
}

#[derive(Clone, Debug, Default)]
struct View {
    attached: Option<Epoch>,
    /// Why the session is not established, as last heard.
    trouble: Option<Error>,
    ended: Option<Error>,
    closed: bool,
    /// The task has ended, and let go of the cache.
    gone: bool,
}

/// Who waits for the outcome of a command.
#[derive(Default)]
struct Waiters {
    /// The future that it was issued with.
    caller: Option<oneshot::Sender<WriteOutcome>>,
    /// Those who asked for it later.
    others: Vec<oneshot::Sender<WriteOutcome>>,
}

struct Inner {
    core: Client,
    writes: Ordered<Request, Waiters>,
    /// Outcomes that nobody was waiting for, or not for certain.
    outcomes: BTreeMap<Request, WriteOutcome>,
    reads: HashMap<u64, oneshot::Sender<Result<Bytes>>>,
    flushes: HashMap<u64, oneshot::Sender<()>>,
    ended: Option<Error>,
}

impl Inner {
    fn check(&self) -> Result<()> {
        self.ended.clone().map_or(Ok(()), Err)
    }

    /// Hands an outcome to whoever waits, or keeps it for who may ask.
    fn tell(&mut self, outcome: WriteOutcome) {
        let Waiters { caller, others } = self.writes.remove(&outcome.request()).unwrap_or_default();
        // Who asked may go before it looks, and ask again.
        let asked = !others.is_empty();
        for waiter in others {
            let _ = waiter.send(outcome.clone());
        }
        // Whoever issued it is nearly always the only one.
        let unheard = match caller {
            Some(caller) if asked => caller.send(outcome.clone()).map_or_else(Some, |()| Some(outcome)),
            Some(caller) => caller.send(outcome).err(),
            None => Some(outcome),
        };
        unheard.into_iter().for_each(|outcome| self.keep(outcome));
    }

    /// Keeps an outcome for who may ask.
    fn keep(&mut self, outcome: WriteOutcome) {
        self.outcomes.insert(outcome.request(), outcome);
        if self.outcomes.len() > OUTCOMES_MAX {
            self.outcomes.pop_first();
        }
    }

    /// Nothing more will come: whoever waits is told why.
    fn end(&mut self, error: &Error) {
        self.ended.get_or_insert_with(|| error.clone());
        for (request, Waiters { caller, others }) in std::mem::take(&mut self.writes) {
            for waiter in caller.into_iter().chain(others) {
                let _ = waiter.send(WriteOutcome::Unknown { request, error: error.clone() });
            }
        }
        for reader in std::mem::take(&mut self.reads).into_values() {
            let _ = reader.send(Err(error.clone()));
        }
        self.flushes.clear();
    }
}

/// Builds a [`TaggedClient`].
pub struct TaggedClientBuilder {
    domain: String,
    endpoints: Vec<String>,
    role: SessionRole,
    cache: Option<Box<dyn ClientCache>>,
    settings: ClientSettings,
    net: NetSettings,
    connect_within: Duration,
}

impl TaggedClientBuilder {
    /// Where nodes of the service may be found, such as `http://10.0.0.1:7000`: primary and backup, in any order.
    #[must_use]
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// Where held entries are kept; by default in memory, and a client process that dies is a lost client.
    ///
    /// A cache belongs to one session. A process that opens it again goes on where the last one ended, and learns the
    /// outcome of what that one left unanswered.
    #[must_use]
    pub fn cache(mut self, cache: impl ClientCache) -> Self {
        self.cache = Some(Box::new(cache));
        self
    }

    /// What the session is for.
    #[must_use]
    pub fn role(mut self, role: SessionRole) -> Self {
        self.role = role;
        self
    }

    /// Budgets and delays. Whether the cache is `volatile` follows from whether one was given.
    #[must_use]
    pub fn settings(mut self, settings: ClientSettings) -> Self {
        self.settings = settings;
        self
    }

    /// How streams are dialled and kept.
    #[must_use]
    pub fn net(mut self, net: NetSettings) -> Self {
        self.net = net;
        self
    }

    /// How long [`connect`](TaggedClientBuilder::connect) waits for the session; 30 s by default.
    #[must_use]
    pub fn connect_within(mut self, limit: Duration) -> Self {
        self.connect_within = limit;
        self
    }

    /// Starts the client and waits until its session is established. Cancel safe: a client that is not handed over ends.
    ///
    /// # Errors
    /// As [`start`](TaggedClientBuilder::start); and when the time is over the last reason why not, such as
    /// [`Code::BackupUnavailable`] or [`Code::WrongCluster`].
    pub async fn connect(self) -> Result<TaggedClient> {
        let limit = self.connect_within;
        let client = self.start().await?;
        match tokio::time::timeout(limit, client.attached()).await {
            Ok(attached) => attached.map(|_| client),
            Err(_) => {
                let trouble = client.running.shared.view.borrow().trouble.clone();
                Err(trouble.unwrap_or_else(|| {
                    Error::new(Code::Unavailable, format!("no session was established within {limit:?}"))
                }))
            }
        }
    }

    /// Starts the client, on the caller's tokio runtime, and returns at once: what is written is sent when the session is
    /// established.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for settings or endpoints that make no sense; whatever the cache says.
    pub async fn start(self) -> Result<TaggedClient> {
        let Self { domain, endpoints, role, cache, mut settings, net, connect_within: _ } = self;
        net.validate()?;
        settings.volatile = cache.is_none();
        settings.validate()?;
        if domain.is_empty() {
            return Err(Error::new(Code::InvalidArgument, "domain: the client's failure domain has to be declared"));
        }
        if endpoints.is_empty() {
            return Err(Error::new(Code::InvalidArgument, "endpoints: a client needs one at least"));
        }
        for endpoint in &endpoints {
            if let Err(error) = tonic::transport::Endpoint::from_shared(endpoint.clone()) {
                let why = format!("{endpoint} is no endpoint: {error}; give http://host:port");
                return Err(Error::new(Code::InvalidArgument, why));
            }
        }
        let mut image = CacheImage::default();
        let cache = match cache {
            Some(mut cache) => {
                // Reading a large cache back takes a while, and blocks.
                let loaded = tokio::task::spawn_blocking(move || cache.load().map(|ops| (cache, ops))).await;
                let lost = |error| Error::new(Code::Storage, format!("the cache could not be read: {error}"));
                let (cache, ops) = loaded.map_err(lost)??;
                ops.iter().for_each(|op| image.apply(op));
                Some(cache)
            }
            None => None,
        };
        let known = image.identity.take();
        if let Some(known) = known.as_ref().filter(|known| image.welcomed && known.domain != domain) {
            let why = format!(
                "the session in this cache was opened in failure domain {:?}, not {domain:?}: give that one, or move with a \
                 new cache once this session is closed",
                known.domain
            );
            return Err(Error::new(Code::InvalidArgument, why));
        }
        let identity = Identity {
            client: known.as_ref().map_or_else(|| random_u128().map(ClientId), |known| Ok(known.client))?,
            cluster: known.as_ref().and_then(|known| known.cluster),
            group: known.as_ref().and_then(|known| known.group),
            domain,
            role,
        };
        let id = identity.client;
        image.apply(&CacheOp::Identity(identity));
        let clock = Clock::new();
        let mut out = Vec::new();
        let outbox_max = outbox_max(&settings, net.queue_max);
        let core = Client::new(settings, image, clock.now(), &mut out);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let inner = Inner {
            core,
            writes: Ordered::new(),
            outcomes: BTreeMap::new(),
            reads: HashMap::new(),
            flushes: HashMap::new(),
            ended: None,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            bell: Notify::new(),
            room: Notify::new(),
            view: watch::Sender::new(View::default()),
        });
        let cache = cache.map(cache::Cache::spawn).transpose()?;
        let (closing, closed) = watch::channel(false);
        let weak = events.downgrade();
        let (sender, news) = mpsc::channel(net.queue_max);
        let visitor = Visitor { news: sender, conns: Arc::default(), settings: net, outbox_max, closing: closed };
        let driver = Driver::new(Arc::clone(&shared), clock, cache, events, endpoints, visitor, news);
        tokio::spawn(driver.run(out));
        Ok(TaggedClient { id, running: Arc::new(Running { shared, events: weak, closing }) })
    }
}

/// Messages that may wait to be sent on a client's stream before its node is taken for dead.
///
/// A report leaves the core at once, in as many parts as the cache pays for, and so do queries that are asked again, each
/// in a frame of its own if they are large. A queue too short for them would cost every stream anew, at the same place.
fn outbox_max(settings: &ClientSettings, queue_max: usize) -> usize {
    let parts = settings.cache_bytes_max / HEADER_COST / REPORT_ITEMS as u64;
    // Headers cannot be refused, and so may exceed the budget.
    // Shares are announced in parts like the rest, and handed over in frames.
    let shares = settings.share_bytes_max / (HEADER_COST + crate::share::SEAL_COST) / REPORT_ITEMS as u64;
    let shares = shares + settings.share_bytes_max / crate::message::FRAME_BYTES;
    let parts = usize::try_from((parts + shares).saturating_mul(2)).unwrap_or(usize::MAX);
    let room = queue_max.saturating_mul(16).saturating_add(parts).saturating_add(settings.queries_max);
    room.min(tokio::sync::Semaphore::MAX_PERMITS)
}

/// A running client, shared by its handles.
struct Running {
    shared: Arc<Shared>,
    events: broadcast::WeakSender<ClientEvent>,
    closing: watch::Sender<bool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.closing.send_replace(true);
    }
}

/// A client that holds what it wrote until the backup has it. A handle: cheap to clone; when the last one is dropped the
/// client ends as in a crash, and with a cache in memory what it held is gone.
#[derive(Clone)]
pub struct TaggedClient {
    id: ClientId,
    running: Arc<Running>,
}

impl TaggedClient {
    /// A client in failure domain `domain`. What only clients in the primary's own domain hold is not protected.
    pub fn builder(domain: impl Into<String>) -> TaggedClientBuilder {
        TaggedClientBuilder {
            domain: domain.into(),
            endpoints: Vec::new(),
            role: SessionRole::Writer,
            cache: None,
            settings: ClientSettings::default(),
            net: NetSettings::default(),
            connect_within: Duration::from_secs(30),
        }
    }

    /// The session's identity.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Waits until the session is established; at once if it is. Cancel safe.
    ///
    /// # Errors
    /// Why the session ended, if it has.
    pub async fn attached(&self) -> Result<Epoch> {
        let mut view = self.running.shared.view.subscribe();
        loop {
            {
                let now = view.borrow_and_update();
                if let Some(error) = &now.ended {
                    return Err(error.clone());
                }
                if let Some(epoch) = now.attached {
                    return Ok(epoch);
                }
            }
            if view.changed().await.is_err() {
                return Err(Error::new(Code::Closed, "the client was dropped"));
            }
        }
    }

    /// Issues a command at the service's lowest level. Its number is taken at the call, so commands are ordered as they
    /// were called; the future gives its outcome.
    ///
    /// It is held, and handed over after a disaster, whatever becomes of the future. Dropping the future withdraws the
    /// command only if it was not sent yet.
    pub fn write(&self, command: impl Into<Bytes>) -> Writing {
        self.write_opts(command, WriteOptions::default())
    }

    /// As [`write`](TaggedClient::write), with a level or a deadline of its own.
    pub fn write_opts(&self, command: impl Into<Bytes>, options: WriteOptions) -> Writing {
        let level = options.level.unwrap_or(Level::Local);
        let command = command.into();
        let issued = self.issue(options.deadline, |core| core.write(command, level));
        issued.unwrap_or_else(|error| Writing { state: State::Failed(Some(error)) })
    }

    /// As [`write`](TaggedClient::write), but only if the command can be sent at once.
    ///
    /// # Errors
    /// [`Code::Busy`] with the cause, [`Code::TooLarge`], or why the session ended.
    pub fn try_write(&self, command: impl Into<Bytes>) -> Result<Writing> {
        let command = command.into();
        self.issue(None, |core| core.try_write(command, Level::Local))
    }

    fn issue(&self, deadline: Option<Duration>, issue: impl FnOnce(&mut Client) -> Result<Request>) -> Result<Writing> {
        let shared = &self.running.shared;
        let (waiter, answer) = oneshot::channel();
        let request = {
            let mut inner = shared.inner.lock();
            inner.check()?;
            let request = issue(&mut inner.core)?;
            inner.writes.insert(request, Waiters { caller: Some(waiter), others: Vec::new() });
            request
        };
        shared.bell.notify_one();
        // The timer is made where it is awaited: this call may be made outside of any runtime.
        let deadline = deadline.and_then(|limit| tokio::time::Instant::now().checked_add(limit));
        let shared = Arc::clone(shared);
        Ok(Writing { state: State::Waiting { shared, request, answer, deadline, timer: None } })
    }

    /// Asks a query at the service's lowest level; it sees everything acknowledged before. Waits while too many are under
    /// way. A query is asked again when its stream is lost. Cancel safe.
    ///
    /// # Errors
    /// [`Code::TooLarge`], what the service says, or why the session ended.
    pub async fn read(&self, query: impl Into<Bytes>) -> Result<Bytes> {
        self.read_opts(query, ReadOptions::default()).await
    }

    /// As [`read`](TaggedClient::read), with a level or a deadline of its own.
    ///
    /// # Errors
    /// As `read`, and [`Code::Deadline`].
    pub async fn read_opts(&self, query: impl Into<Bytes>, options: ReadOptions) -> Result<Bytes> {
        let asked = self.ask(query.into(), options.level.unwrap_or(Level::Local));
        match options.deadline {
            None => asked.await,
            Some(limit) => tokio::time::timeout(limit, asked)
                .await
                .unwrap_or_else(|_| Err(Error::new(Code::Deadline, format!("no result within {limit:?}")))),
        }
    }

    async fn ask(&self, query: Bytes, level: Level) -> Result<Bytes> {
        let shared = &self.running.shared;
        let (reader, result) = oneshot::channel();
        let id = loop {
            let room = shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut inner = shared.inner.lock();
                inner.check()?;
                match inner.core.query(query.clone(), level) {
                    Err(error) if error.code() == Code::Busy => {}
                    asked => {
                        let id = asked?;
                        inner.reads.insert(id, reader);
                        break id;
                    }
                }
            }
            room.await;
        };
        shared.bell.notify_one();
        let guard = Forget { shared, id };
        let result = result.await.unwrap_or_else(|_| Err(self.why_ended()));
        std::mem::forget(guard);
        result
    }

    /// Waits until everything issued so far is stable, or superseded: nothing of it has to be held any more. Cancel safe.
    ///
    /// # Errors
    /// Why the session ended, if it does first.
    pub async fn flush(&self) -> Result<()> {
        let shared = &self.running.shared;
        let (waiter, done) = oneshot::channel();
        let token = {
            let mut inner = shared.inner.lock();
            inner.check()?;
            let token = inner.core.flush();
            inner.flushes.insert(token, waiter);
            token
        };
        shared.bell.notify_one();
        let _guard = ForgetFlush { shared, token };
        done.await.map_err(|_| self.why_ended())
    }

    /// The outcome of a command whose future was dropped or gave up waiting, or that an earlier process on the same cache
    /// issued; waits until it is known. The last 4096 such outcomes are kept. Cancel safe.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if the number was never issued, or its outcome is not kept (any more).
    pub async fn outcome(&self, request: Request) -> Result<WriteOutcome> {
        let (waiter, answer) = oneshot::channel();
        {
            let mut inner = self.running.shared.inner.lock();
            if let Some(outcome) = inner.outcomes.get(&request) {
                return Ok(outcome.clone());
            }
            inner.check()?;
            if !inner.core.is_open(request) {
                let why = format!("request {request} was never issued, or its outcome is not kept any more");
                return Err(Error::new(Code::InvalidArgument, why));
            }
            if !inner.writes.contains_key(&request) {
                inner.writes.insert(request, Waiters::default());
            }
            if let Some(Waiters { others, .. }) = inner.writes.get_mut(&request) {
                // Who asks again and again, with a deadline each time, leaves one waiter behind, not all of them.
                others.retain(|waiter| !waiter.is_closed());
                others.push(waiter);
            }
        }
        Ok(answer.await.unwrap_or_else(|_| WriteOutcome::Unknown { request, error: self.why_ended() }))
    }

    /// Commands without a known outcome, in order: those under way, and on a cache that an earlier process used those it
    /// left.
    pub fn unanswered(&self) -> Vec<Request> {
        self.running.shared.inner.lock().core.image().unanswered().map(|(request, _)| request).collect()
    }

    /// Events from now on.
    pub fn events(&self) -> ClientEvents {
        let events = self.running.events.upgrade().map_or_else(|| broadcast::channel(1).1, |events| events.subscribe());
        ClientEvents { events }
    }

    /// The client's state in figures.
    pub fn stats(&self) -> ClientStats {
        let inner = self.running.shared.inner.lock();
        let image = inner.core.image();
        ClientStats {
            attached: inner.core.attached(),
            cached_commands: image.commands.len(),
            cached_headers: image.headers.len(),
            cached_places: image.places.values().map(|places| u64::from(places.count)).sum(),
            cache_bytes: image.bytes,
            cached_shares: image.shares.len(),
            share_bytes: image.share_bytes,
            unsent: inner.core.unsent(),
        }
    }

    /// Ends the session in good order: everything is answered and stable when this returns, and nobody waits for this
    /// client any more; the cache may be opened again. No further calls are accepted, of any clone. Cancel safe: the close
    /// goes on as long as a handle is left.
    ///
    /// # Errors
    /// Why the session ended otherwise.
    pub async fn close(&self) -> Result<()> {
        let shared = &self.running.shared;
        shared.inner.lock().core.close();
        shared.bell.notify_one();
        let mut view = shared.view.subscribe();
        let ended = view.wait_for(|view| view.gone).await;
        let dropped = || Error::new(Code::Closed, "the client was dropped");
        let view = ended.map_err(|_| dropped())?;
        if view.closed { Ok(()) } else { Err(view.ended.clone().unwrap_or_else(dropped)) }
    }

    fn why_ended(&self) -> Error {
        let ended = self.running.shared.inner.lock().ended.clone();
        ended.unwrap_or_else(|| Error::new(Code::Closed, "the client was dropped"))
    }
}

/// Forgets a query nobody waits for any more.
struct Forget<'a> {
    shared: &'a Arc<Shared>,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut inner = self.shared.inner.lock();
        inner.core.forget_query(self.id);
        inner.reads.remove(&self.id);
    }
}

/// Forgets a flush nobody waits for any more; one that is done is forgotten already.
struct ForgetFlush<'a> {
    shared: &'a Shared,
    token: u64,
}

impl Drop for ForgetFlush<'_> {
    fn drop(&mut self) {
        let mut inner = self.shared.inner.lock();
        inner.core.forget_flush(self.token);
        inner.flushes.remove(&self.token);
    }
}

/// What streams tell the driver.
enum News {
    /// A stream stands; messages for it go here.
    Up(crate::node::Conn, mpsc::Sender<crate::message::ClientMessage>),
    Messages(crate::node::Conn, Vec<crate::message::NodeMessage>),
    Gone(crate::node::Conn),
    /// An endpoint could not be reached.
    Trouble(Error),
}
