//! The sequencer: owns the core of a node and its state machine, and carries out what the core asks for.
//!
//! What stream tasks and handles see of it is in [`handle`].

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::alarm::Alarm;
use super::storage::{Job, Storage};
use super::{Clock, JOINED_BYTES, NetSettings, ShareKey, guarded, random_u128};
use crate::error::{Code, Error, Result};
use crate::log::{ClusterId, Commands, Entry, GroupId, NodeId, Record};
use crate::message::{BackupMessage, NodeMessage, NodeStatus, PrimaryMessage, Role};
use crate::node::{Admin, Conn, Input, NodeEvent, Output};
use crate::store::{LogStore, Marks, StateMachine};

mod handle;
mod replay;
#[cfg(test)]
mod tests;

pub use handle::NodeEvents;
pub(super) use handle::{Mail, Mailbox, Node, View};
use replay::replay;

/// Inputs taken before the batched work is done.
const BATCH_MAX: usize = 4096;
/// Records for a backup that nobody waits for gather for so long, or up to so many bytes: each message costs two nodes as
/// much as dozens of writes, and the link is longer than this.
const GATHER: Duration = Duration::from_millis(1);
const GATHER_BYTES: u64 = 256 << 10;
/// Events kept for a listener that is slow.
const EVENTS_MAX: usize = 1024;

/// What a node starts as.
pub(super) enum Start {
    Primary(crate::primary::PrimarySettings),
    Backup(crate::backup::BackupSettings),
}

enum Core {
    Primary(Box<crate::primary::Primary>),
    Backup(Box<crate::backup::Backup>),
    /// Between two states; never seen.
    Turning,
}

impl Node {
    /// Starts a node: reads its log, replays it, and begins to serve the mailbox.
    ///
    /// Returns when the log is replayed.
    pub(super) async fn start(
        start: Start,
        log: Box<dyn LogStore>,
        state: Box<dyn StateMachine>,
        net: &NetSettings,
        share_key: Option<ShareKey>,
    ) -> Result<Self> {
        let queue_max = net.queue_max;
        let result_bytes_max = net.message_bytes_max.saturating_sub(JOINED_BYTES);
        let (mail, inbox) = mpsc::channel(queue_max);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let role = if matches!(start, Start::Primary(_)) { Role::Recovering } else { Role::Backup };
        let (view, watching) =
            watch::channel(View { role, opened: None, in_sync: false, stopped: None, failure: None, ended: false });
        let (closing, closed) = watch::channel(false);
        let (ready, started) = oneshot::channel();
        let weak = events.downgrade();
        let stop = closed.clone();
        let own_thread = net.sequencer_thread;
        std::thread::Builder::new().name("tagalong-sequencer".to_owned()).spawn(move || {
            let begun = Sequencer::begin(start, log, state, events, view, result_bytes_max);
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(Error::from);
            // Nobody may be waiting any more; the node then ends at once.
            match begun.and_then(|sequencer| Ok((sequencer, own_thread.then(runtime).transpose()?))) {
                Ok((sequencer, Some(runtime))) => {
                    let _ = ready.send(Ok(None));
                    runtime.block_on(sequencer.live(inbox, stop));
                }
                Ok((sequencer, None)) => drop(ready.send(Ok(Some((sequencer, inbox, stop))))),
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let died = || Error::new(Code::Storage, "the node's thread ended while it read its log");
        if let Some((sequencer, inbox, stop)) = started.await.unwrap_or_else(|_| Err(died()))? {
            tokio::spawn(sequencer.live(inbox, stop));
        }
        let mailbox =
            Mailbox { mail, last_conn: Arc::default(), view: watching, closing: closed, queue_max, share_key };
        Ok(Self { mailbox, events: weak, closing })
    }
}

/// Messages to backups that wait for more of them.
#[derive(Default)]
struct Gathered {
    messages: Vec<(Conn, PrimaryMessage)>,
    bytes: u64,
    due: Option<Instant>,
}

struct Sequencer {
    clock: Clock,
    core: Core,
    state: Box<dyn StateMachine>,
    storage: Storage,
    /// In boxes: a queue keeps room for a dozen messages, and there are many that have none.
    clients: HashMap<Conn, mpsc::Sender<Box<NodeMessage>>>,
    backups: HashMap<Conn, mpsc::Sender<PrimaryMessage>>,
    gathered: Gathered,
    link: Option<(Conn, mpsc::Sender<BackupMessage>)>,
    admins: VecDeque<oneshot::Sender<Result<()>>>,
    events: broadcast::Sender<NodeEvent>,
    view: watch::Sender<View>,
    /// What the outputs of a step led to at once.
    local: VecDeque<Input>,
    /// Streams that were lost because their peer did not read.
    lost: Vec<Conn>,
    executed: bool,
    /// Saves asked for, and the first of them that had the in-sync mark.
    saves: u64,
    sync_save: Option<u64>,
    /// The largest result of a query that fits into a message.
    result_bytes_max: usize,
    failure: Option<Error>,
    /// A stop is complete.
    stopped: bool,
}

impl Sequencer {
    fn begin(
        start: Start,
        mut log: Box<dyn LogStore>,
        mut state: Box<dyn StateMachine>,
        events: broadcast::Sender<NodeEvent>,
        view: watch::Sender<View>,
        result_bytes_max: usize,
    ) -> Result<Self> {
        let marks = load_marks(&mut *log, matches!(start, Start::Primary(_)))?;
        let log_state = replay(&mut *log, &mut *state, &marks)?;
        let clock = Clock::new();
        let now = clock.now();
        let mut out = Vec::new();
        let in_sync = marks.in_sync;
        let core = match start {
            Start::Primary(settings) => {
                let primary = crate::primary::Primary::new(settings, marks, log_state, now, &mut out)?;
                Core::Primary(Box::new(primary))
            }
            Start::Backup(settings) => {
                let backup = crate::backup::Backup::new(settings, marks, log_state, now, &mut out)?;
                view.send_modify(|view| view.in_sync = in_sync);
                Core::Backup(Box::new(backup))
            }
        };
        let storage = Storage::spawn(log)?;
        let mut sequencer = Self {
            clock,
            core,
            state,
            storage,
            clients: HashMap::new(),
            backups: HashMap::new(),
            gathered: Gathered::default(),
            link: None,
            admins: VecDeque::new(),
            events,
            view,
            local: VecDeque::new(),
            lost: Vec::new(),
            executed: false,
            saves: 0,
            sync_save: None,
            result_bytes_max,
            failure: None,
            stopped: false,
        };
        sequencer.carry_out(out);
        sequencer.flush();
        Ok(sequencer)
    }

    /// Runs to the end. What it calls may be the application's code, and panic.
    async fn live(mut self, inbox: mpsc::Receiver<Mail>, closing: watch::Receiver<bool>) {
        let ran = {
            let mut run = std::pin::pin!(self.run(inbox, closing));
            let poll = |cx: &mut Context<'_>| match guarded("the sequencer", || run.as_mut().poll(cx)) {
                Ok(polled) => polled.map(Ok),
                Err(error) => Poll::Ready(Err(error)),
            };
            std::future::poll_fn(poll).await
        };
        if let Err(error) = ran {
            self.halt(error);
        }
        // It ends when the disk has what is queued, which may take a while. A runtime that ends meanwhile does it here.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    /// When something is to be done though nothing comes.
    fn timer(&self) -> Option<Instant> {
        let timeout = match &self.core {
            // It is told nothing any more, and would ask for the same time for ever.
            _ if self.failure.is_some() => None,
            Core::Primary(core) => core.next_timeout(),
            Core::Backup(core) => core.next_timeout(),
            Core::Turning => None,
        };
        timeout.map(|at| self.clock.instant(at)).into_iter().chain(self.gathered.due).min()
    }

    async fn run(&mut self, mut inbox: mpsc::Receiver<Mail>, mut closing: watch::Receiver<bool>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut alarm = Alarm::default();
        loop {
            let timer = self.timer();
            tokio::select! {
                count = inbox.recv_many(&mut batch, BATCH_MAX) => {
                    if count == 0 {
                        return;
                    }
                }
                () = self.storage.rings() => {}
                () = alarm.rings(timer) => self.step(Input::Tick),
                _ = closing.wait_for(|closing| *closing) => return,
            }
            // Whoever wakes this task would see it run next: the others who are ready come first, and are served together.
            let mut served = 0;
            while batch.len() > served && batch.len() < self.clients.len().min(BATCH_MAX) {
                served = batch.len();
                tokio::task::yield_now().await;
                while batch.len() < BATCH_MAX
                    && let Ok(mail) = inbox.try_recv()
                {
                    batch.push(mail);
                }
                if !self.gathers() {
                    break;
                }
            }
            self.take_done();
            for mail in batch.drain(..) {
                self.deliver(mail);
            }
            if self.gathered.due.is_some_and(|due| Instant::now() >= due) {
                self.send_gathered();
            }
            self.flush();
            if self.stopped {
                return;
            }
        }
    }

    /// Whether a batch should be as large as it can be: manifests tell of what was ordered together in fewer bytes. A covered
    /// service has none, and its writes wait for each other's clients: there two small batches under way are better.
    fn gathers(&self) -> bool {
        matches!(&self.core, Core::Primary(core) if core.tags_first())
    }

    fn take_done(&mut self) {
        let done = self.storage.take();
        if let Some(error) = done.failed {
            self.halt(error);
            return;
        }
        if let Some(saved) = done.saved {
            self.step(Input::MarksSaved(saved));
            if self.sync_save.is_some_and(|save| saved >= save) {
                self.view.send_if_modified(|view| !std::mem::replace(&mut view.in_sync, true));
            }
        }
        if let Some(upto) = done.persisted {
            self.step(Input::Persisted(upto));
        }
        for (conn, records) in done.reads {
            self.step(Input::Read { conn, records });
        }
    }

    fn deliver(&mut self, mail: Mail) {
        match mail {
            Mail::ClientStream(conn, outbox) => {
                if let Some(error) = self.failure.clone() {
                    let _ = outbox.try_send(Box::new(NodeMessage::Refused(error)));
                } else {
                    self.clients.insert(conn, outbox);
                }
            }
            Mail::BackupStream(conn, outbox) => {
                if let Some(error) = self.failure.clone() {
                    let _ = outbox.try_send(PrimaryMessage::Refused(error));
                } else {
                    self.backups.insert(conn, outbox);
                }
            }
            Mail::Link(conn, outbox) => {
                if self.failure.is_none() {
                    self.link = Some((conn, outbox));
                    self.step(Input::Linked(conn));
                }
            }
            // What is still under way on a stream that was closed goes nowhere.
            Mail::FromClient(conn, messages) if self.clients.contains_key(&conn) => {
                for message in messages {
                    self.step(Input::Client(conn, message));
                }
            }
            Mail::FromBackup(conn, messages) if self.backups.contains_key(&conn) => {
                for message in messages {
                    self.step(Input::FromBackup(conn, message));
                }
            }
            Mail::FromPrimary(conn, messages) if self.link.as_ref().is_some_and(|(link, _)| *link == conn) => {
                for message in messages {
                    self.step(Input::FromPrimary(conn, message));
                }
            }
            Mail::FromClient(..) | Mail::FromBackup(..) | Mail::FromPrimary(..) => {}
            Mail::Gone(conn) => {
                self.close(conn);
                self.step(Input::Gone(conn));
            }
            Mail::Admin(admin, done) => match self.failure.clone() {
                Some(_) if admin == Admin::Stop => {
                    self.stopped = true;
                    self.view.send_modify(|view| view.stopped = Some(false));
                    let _ = done.send(Ok(()));
                }
                Some(error) => drop(done.send(Err(error))),
                None => {
                    self.admins.push_back(done);
                    self.step(Input::Admin(admin));
                }
            },
            Mail::Status(done) => drop(done.send(self.status())),
        }
    }

    fn status(&self) -> NodeStatus {
        let now = self.clock.now();
        let mut status = match &self.core {
            Core::Primary(core) => core.status(now),
            Core::Backup(core) => core.status(now),
            Core::Turning => unreachable!("the core is in its place between steps"),
        };
        if self.failure.is_some() {
            status.status.role = Role::Stopped;
            status.failure.clone_from(&self.failure);
        }
        status
    }

    /// Does the batched work, until there is none left.
    fn flush(&mut self) {
        loop {
            self.executed = false;
            self.step(Input::Flush);
            for conn in std::mem::take(&mut self.lost) {
                self.step(Input::Gone(conn));
            }
            if !self.executed {
                return;
            }
        }
    }

    fn step(&mut self, input: Input) {
        self.local.push_back(input);
        while let Some(input) = self.local.pop_front() {
            if self.failure.is_some() {
                self.local.clear();
                return;
            }
            let now = self.clock.now();
            let mut out = Vec::new();
            match &mut self.core {
                Core::Primary(core) => core.step(now, input, &mut out),
                Core::Backup(core) => core.step(now, input, &mut out),
                Core::Turning => {}
            }
            self.carry_out(out);
        }
    }

    fn carry_out(&mut self, out: Vec<Output>) {
        let mut out = VecDeque::from(out);
        while let Some(output) = out.pop_front() {
            match output {
                Output::ToClient(conn, mut message) => {
                    self.refuse_large(&mut message);
                    if self.clients.get(&conn).is_some_and(|outbox| outbox.try_send(Box::new(message)).is_err()) {
                        self.clients.remove(&conn);
                        self.lost.push(conn);
                    }
                }
                Output::ToBackup(conn, message) => self.gather(conn, message),
                Output::ToPrimary(conn, message) => {
                    if self
                        .link
                        .as_ref()
                        .is_some_and(|(link, outbox)| *link == conn && outbox.try_send(message).is_err())
                    {
                        self.link = None;
                        self.lost.push(conn);
                    }
                }
                Output::Close(conn) => {
                    self.send_gathered();
                    self.close(conn);
                }
                Output::Append(records) => {
                    let waits = match &self.core {
                        Core::Primary(core) => core.waits_for_disk(),
                        Core::Backup(_) | Core::Turning => true,
                    };
                    self.storage.ask(if waits { Job::Append(records) } else { Job::AppendLater(records) });
                }
                Output::Truncate(last) => self.storage.ask(Job::Truncate(last)),
                Output::SaveMarks(marks) => {
                    self.saves += 1;
                    if marks.in_sync && self.sync_save.is_none() {
                        self.sync_save = Some(self.saves);
                    }
                    self.storage.ask(Job::SaveMarks(marks));
                }
                Output::Execute { commands, queries } => self.execute(commands, &queries),
                Output::Read { conn, from, bytes_max } => self.storage.ask(Job::Read { conn, from, bytes_max }),
                Output::Judge { entries, missing } => {
                    let keep = entries.iter().map(|entry| self.state.independent(entry, &missing)).collect();
                    self.local.push_back(Input::Judged(keep));
                }
                Output::AdminDone(done) => {
                    if let Some(admin) = self.admins.pop_front() {
                        let _ = admin.send(done);
                    }
                }
                Output::Event(event) => self.tell(event),
                Output::Promote => {
                    if let Core::Backup(backup) = std::mem::replace(&mut self.core, Core::Turning) {
                        let mut more = Vec::new();
                        let primary = backup.into_primary(self.clock.now(), &mut more);
                        self.core = Core::Primary(Box::new(primary));
                        self.view.send_modify(|view| view.role = Role::Recovering);
                        out.extend(more);
                    }
                }
                Output::Halt(error) => self.halt(error),
            }
        }
    }

    fn gather(&mut self, conn: Conn, message: PrimaryMessage) {
        let waits = match &self.core {
            Core::Primary(core) => core.waits_for_backup(),
            Core::Backup(_) | Core::Turning => true,
        };
        let bytes = match &message {
            PrimaryMessage::Append { records, .. } if !waits => records.iter().map(Record::cost).sum(),
            _ => GATHER_BYTES,
        };
        self.gathered.messages.push((conn, message));
        self.gathered.bytes += bytes;
        self.gathered.due.get_or_insert_with(|| Instant::now() + GATHER);
        if self.gathered.bytes >= GATHER_BYTES {
            self.send_gathered();
        }
    }

    fn send_gathered(&mut self) {
        for (conn, message) in std::mem::take(&mut self.gathered).messages {
            if self.backups.get(&conn).is_some_and(|outbox| outbox.try_send(message).is_err()) {
                self.backups.remove(&conn);
                self.lost.push(conn);
            }
        }
    }

    /// A result that does not fit into a message would cost the stream, and then be asked for again on the next one.
    fn refuse_large(&self, message: &mut NodeMessage) {
        let NodeMessage::Frame(frame) = message else { return };
        for result in &mut frame.results {
            if let Ok(value) = &result.result
                && value.len() > self.result_bytes_max
            {
                let why = format!(
                    "the result has {} bytes, and no more than {} fit into a message of the node: ask for less",
                    value.len(),
                    self.result_bytes_max
                );
                result.result = Err(Error::new(Code::TooLarge, why));
            }
        }
    }

    fn execute(&mut self, commands: Commands, queries: &[Bytes]) {
        self.executed = true;
        let entries: Vec<&Entry> = commands.iter().collect();
        let count = entries.len();
        let mut replies = Vec::with_capacity(count);
        let mut results = Vec::with_capacity(queries.len());
        let done = self.state.apply(&entries, &mut replies).and_then(|()| {
            for query in queries {
                results.push(self.state.query(query)?);
            }
            Ok(())
        });
        drop(entries);
        // The core changes what was executed, and should be the only one that has it.
        drop(commands);
        let wrong = (replies.len() != count)
            .then(|| format!("the state machine gave {} replies to {count} commands", replies.len()));
        match (done, wrong) {
            (Ok(()), None) => self.local.push_back(Input::Executed { replies, results }),
            (Err(error), _) => {
                let why = format!("the state machine failed, so this node stops: {error}");
                self.halt(Error::new(Code::Storage, why));
            }
            (Ok(()), Some(why)) => self.halt(Error::new(Code::Diverged, why)),
        }
    }

    fn tell(&mut self, event: NodeEvent) {
        match &event {
            NodeEvent::Opened { report, epoch, start } => {
                tracing::info!(%epoch, %start, base = %report.base, observed = %report.observed, "a reign opens");
                let opened = Some((*epoch, *start, Arc::new((**report).clone())));
                self.view.send_modify(|view| (view.role, view.opened) = (Role::Primary, opened));
            }
            NodeEvent::Deposed(epoch) => {
                tracing::warn!(%epoch, "a higher epoch exists: this node acknowledges nothing any more");
                self.view.send_modify(|view| view.role = Role::Deposed);
            }
            NodeEvent::Stopped(clean) => {
                self.stopped = true;
                self.view.send_modify(|view| (view.role, view.stopped) = (Role::Stopped, Some(*clean)));
            }
            NodeEvent::InSync => tracing::info!("the backup is in sync"),
            NodeEvent::Refused(error) => tracing::warn!(%error, "the primary refuses this backup"),
            NodeEvent::Diverged(lsn) => tracing::error!(%lsn, "the state machine is not deterministic"),
            NodeEvent::ObservedBeyond { client, end, observed } => {
                tracing::warn!(%client, %end, %observed, "a client observed state that was lost");
            }
            NodeEvent::Coverage { short: true, domains, needed } => {
                tracing::warn!(
                    domains,
                    needed,
                    "too few failure domains are connected: what is to be covered waits for the backup, or is refused"
                );
            }
            NodeEvent::Coverage { short: false, domains, needed } => {
                tracing::info!(domains, needed, "enough failure domains are connected to cover what is written");
            }
            NodeEvent::Decoded { entries, shares } => {
                tracing::info!(entries, shares, "entries that no client reported were decoded from shares");
            }
        }
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// Serves nothing any more; whoever is connected is told why.
    fn halt(&mut self, error: Error) {
        if self.failure.is_some() {
            return;
        }
        tracing::error!(%error, "the node stops");
        self.send_gathered();
        for outbox in std::mem::take(&mut self.clients).into_values() {
            let _ = outbox.try_send(Box::new(NodeMessage::Refused(error.clone())));
        }
        for outbox in std::mem::take(&mut self.backups).into_values() {
            let _ = outbox.try_send(PrimaryMessage::Refused(error.clone()));
        }
        if let Some((_, outbox)) = self.link.take() {
            let _ = outbox.try_send(BackupMessage::Failed(error.clone()));
        }
        for admin in std::mem::take(&mut self.admins) {
            let _ = admin.send(Err(error.clone()));
        }
        self.failure = Some(error.clone());
        self.view.send_modify(|view| (view.role, view.failure) = (Role::Stopped, Some(error)));
    }

    /// The stream ends after what was sent on it.
    fn close(&mut self, conn: Conn) {
        self.clients.remove(&conn);
        self.backups.remove(&conn);
        if self.link.as_ref().is_some_and(|(link, _)| *link == conn) {
            self.link = None;
        }
    }
}

impl Drop for Sequencer {
    /// What was sent on the streams still leaves, and what was appended is synced.
    fn drop(&mut self) {
        self.send_gathered();
        self.clients.clear();
        self.backups.clear();
        self.link = None;
        self.storage.finish();
        self.view.send_modify(|view| view.ended = true);
    }
}

/// The node's marks; a new log gets its identities.
fn load_marks(log: &mut dyn LogStore, primary: bool) -> Result<Marks> {
    let mut marks = log.marks()?.unwrap_or_default();
    let before = marks.clone();
    if marks.node == NodeId(0) {
        let bits = random_u128()?;
        marks.node = NodeId(u64::try_from(bits >> 64).unwrap_or_default().max(1));
    }
    if primary && marks.cluster == ClusterId(0) {
        marks.cluster = ClusterId(random_u128()?.max(1));
        marks.group = GroupId(random_u128()?.max(1));
    }
    if marks != before {
        log.save_marks(&marks)?;
    }
    Ok(marks)
}

/// How long an ended node's server may take to close its streams.
pub(super) const LINGER: Duration = Duration::from_millis(500);
