//! The world: processes, the streams between them, and what happens next, by dice.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::Survived;
use super::node::{Answers, Core, Job, Member, Node, Told, Work};
use super::wire::{At, Parcel, Wire};
use crate::client::{ClientEvent, ClientInput, ClientOutput};
use crate::error::Code;
use crate::log::{Level, Lsn, Time};
use crate::message::Outcome;
use crate::node::{Admin, Conn, Input, NodeEvent, Output, RecoveryPolicy};
use crate::store::StateMachine;
use crate::testing::checks::apply;
use crate::testing::dice::Dice;
use crate::testing::failure::{Check, Finding, guarded};
use crate::testing::machine::Subject;

type Verdict = Result<(), Finding>;

/// What may happen until everything is at rest, and for each command besides: many times what it takes.
const STEPS_MAX: usize = 40_000;
const STEPS_EACH: usize = 400;

/// Something that can happen now.
#[derive(Clone, Copy)]
enum Act {
    Deliver(u64, usize),
    Disk(usize),
    Work(usize),
    FlushNode(usize),
    FlushClient(usize),
    Store(usize),
    Start(usize),
    Dial(At, At),
}

pub(super) struct World<'a, M> {
    pub(super) subject: &'a Subject<'a, M>,
    /// What goes wrong.
    pub(super) fate: Dice,
    /// What happens next, of all that can.
    pub(super) dice: Dice,
    pub(super) now: Time,
    pub(super) nodes: Vec<Node<M>>,
    pub(super) clients: Vec<Member>,
    wires: BTreeMap<u64, Wire>,
    last_wire: u64,
    /// The stream between the nodes stands still until then.
    quiet_until: Time,
    pub(super) primary: usize,
    pub(super) backup: usize,
    pub(super) answers: Answers<'a>,
    survived: Survived,
}

impl<'a, M: StateMachine> World<'a, M> {
    /// A primary, a backup in sync, and clients with a session each.
    pub(super) fn new(subject: &'a Subject<'a, M>, mut fate: Dice, clients: usize) -> Result<Self, Finding> {
        let mut world = Self {
            subject,
            dice: Dice::new(fate.roll()),
            fate,
            now: Time(1_700_000_000_000_000),
            nodes: Vec::new(),
            clients: (0..clients).map(Member::new).collect(),
            wires: BTreeMap::new(),
            last_wire: 0,
            quiet_until: Time(0),
            primary: 0,
            backup: 0,
            answers: Answers::new(&*subject.show),
            survived: Survived { runs: 1, ..Survived::default() },
        };
        world.add_node(None)?;
        world.add_backup()?;
        world.settle()?;
        Ok(world)
    }

    fn add_node(&mut self, follows: Option<usize>) -> Verdict {
        let at = self.nodes.len();
        self.nodes.push(Node::new(at, (self.subject.new)(), follows));
        self.start_node(at)
    }

    fn add_backup(&mut self) -> Verdict {
        self.backup = self.nodes.len();
        self.add_node(Some(self.primary))
    }

    fn start_node(&mut self, at: usize) -> Verdict {
        let mut out = Vec::new();
        let snapshot = self.nodes[at].start(&*self.subject.new, &mut self.answers, self.now, &mut out)?;
        self.survived.from_snapshots += u64::from(snapshot);
        self.nodes[at].flush_due = true;
        self.carry_out(at, out)
    }

    // The story.

    /// The clients write, and small things go wrong. Where a command was left out, everything else happens all the same.
    pub(super) fn round(&mut self, commands: &[Option<&Bytes>]) -> Verdict {
        // From here on, mostly, the backup hears nothing: what follows is in the clients' hands.
        let from = self.fate.index(commands.len() * 3 / 2 + 1);
        for (nth, command) in commands.iter().enumerate() {
            if nth == from {
                self.quiet_until = self.now.after(1_000_000_000);
                self.survived.cuts += 1;
            }
            self.some_steps(16)?;
            if self.fate.percent(15) {
                self.trouble()?;
            }
            let (client, stable) = (self.fate.index(self.clients.len()), self.fate.percent(10));
            if let Some(command) = command {
                self.write(client, command, if stable { Level::Stable } else { Level::Tagged })?;
            }
        }
        self.some_steps(80)
    }

    fn some_steps(&mut self, most: u64) -> Verdict {
        (0..self.fate.below(most)).try_for_each(|_| self.step())
    }

    fn write(&mut self, at: usize, command: &Bytes, level: Level) -> Verdict {
        let client = &mut self.clients[at];
        // An application whose process is gone calls nothing.
        let Some(core) = &mut client.core else { return Ok(()) };
        let refused = |error| Finding::new(Check::Stopped, format!("client {at} cannot write a command: {error}"));
        let request = core.write(command.clone(), level).map_err(refused)?;
        client.pending.insert(request, command.clone());
        client.flush_due = true;
        Ok(())
    }

    fn trouble(&mut self) -> Verdict {
        let client = self.fate.index(self.clients.len());
        let ends = [At::Node(self.primary), At::Node(self.backup)];
        match self.fate.below(8) {
            0 => self.cut(|wire| wire.has(At::Client(client))),
            1 => self.cut(|wire| wire.joins(ends[0], ends[1])),
            2 => {
                self.quiet_until = self.quiet_until.max(self.now.after(self.fate.below(50_000)));
                self.survived.cuts += 1;
            }
            3 => self.kill_client(client),
            4 | 5 => self.nodes[self.primary].keep_snapshot()?,
            6 => self.nodes[self.backup].keep_snapshot()?,
            _ => {
                self.kill_node(self.backup);
                self.start_node(self.backup)?;
                self.survived.backup_restarts += 1;
            }
        }
        Ok(())
    }

    /// The primary is lost for good, and some clients die at the same moment; those come back.
    pub(super) fn lose_primary(&mut self) -> Verdict {
        self.kill_node(self.primary);
        for client in 0..self.clients.len() {
            if self.fate.percent(25) {
                self.kill_client(client);
            }
        }
        self.some_steps(40)?;
        self.quiet_until = self.now;
        self.primary = self.backup;
        self.survived.takeovers += 1;
        self.step_node(self.primary, Input::Admin(Admin::Promote { force: false, policy: RecoveryPolicy::Wait }))?;
        self.until("the backup has taken over", Self::is_answered)?;
        self.judge()?;
        self.add_backup()?;
        self.settle()
    }

    /// The primary dies, and starts again on its own disk.
    pub(super) fn restart_primary(&mut self) -> Verdict {
        self.kill_node(self.primary);
        self.quiet_until = self.now;
        self.survived.restarts += 1;
        self.start_node(self.primary)?;
        self.settle()
    }

    pub(super) fn finish(mut self) -> Survived {
        self.survived.acknowledged = self.clients.iter().map(|client| client.told.len() as u64).sum();
        self.survived
    }

    /// Nothing fails any more, until everybody has everything.
    fn settle(&mut self) -> Verdict {
        self.quiet_until = self.now;
        self.until("the backup is in sync and everything is stable", Self::is_at_rest)?;
        self.judge()
    }

    fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> Verdict {
        let written: usize = self.clients.iter().map(|client| client.told.len() + client.pending.len()).sum();
        for _ in 0..STEPS_MAX + written * STEPS_EACH {
            if so(self) {
                return Ok(());
            }
            self.step()?;
        }
        let open: usize = self.clients.iter().map(|client| client.pending.len()).sum();
        let recovery = self.nodes[self.primary].primary().and_then(|primary| primary.status(self.now).recovery);
        let why = format!("it should be so by now that {what}; {open} commands are open, recovery: {recovery:?}");
        Err(Finding::new(Check::Unfinished, why))
    }

    /// The primary serves, and every command has its outcome.
    fn is_answered(&self) -> bool {
        let node = &self.nodes[self.primary];
        let Some(primary) = node.primary() else { return false };
        let quiet = |client: &Member| {
            let attached = client.core.as_ref().and_then(crate::client::Client::attached);
            attached == Some(primary.epoch()) && client.pending.is_empty() && !client.is_storing() && !client.flush_due
        };
        node.is_idle() && self.clients.iter().all(quiet) && node.is_open(self.now)
    }

    /// The backup, too, has everything.
    fn is_at_rest(&self) -> bool {
        if !self.is_answered() {
            return false;
        }
        let node = &self.nodes[self.backup];
        let (Some(primary), Some(backup)) = (self.nodes[self.primary].primary(), node.backup()) else { return false };
        let end = primary.state().end();
        let stable = primary.watermarks().stable() == end;
        stable && node.is_idle() && node.marks.in_sync && backup.durable() == end && backup.state().end() == end
    }

    // Processes that die.

    fn kill_node(&mut self, at: usize) {
        self.nodes[at].die(&mut self.dice);
        self.orphan(At::Node(at));
    }

    fn kill_client(&mut self, at: usize) {
        if self.clients[at].core.is_some() {
            self.clients[at].die(&mut self.dice);
            self.orphan(At::Client(at));
            self.survived.client_restarts += 1;
        }
    }

    fn orphan(&mut self, at: At) {
        for wire in self.wires.values_mut().filter(|wire| wire.has(at)) {
            wire.orphan(at, &mut self.dice);
        }
        self.wires.retain(|_, wire| !wire.is_over());
    }

    fn cut(&mut self, which: impl Fn(&Wire) -> bool) {
        for wire in self.wires.values_mut().filter(|wire| which(wire)) {
            wire.cut(&mut self.dice);
            self.survived.cuts += 1;
        }
    }

    // What happens next.

    fn step(&mut self) -> Verdict {
        let acts = self.acts();
        if acts.is_empty() || self.dice.percent(4) {
            return self.pass_time(acts.is_empty());
        }
        match self.dice.pick(&acts) {
            Act::Deliver(id, side) => self.deliver(id, side),
            Act::Disk(at) => self.disk(at),
            Act::Work(at) => self.work(at),
            Act::FlushNode(at) => {
                self.nodes[at].flush_due = false;
                self.step_node(at, Input::Flush)
            }
            Act::FlushClient(at) => {
                self.clients[at].flush_due = false;
                self.step_client(at, ClientInput::Flush)
            }
            Act::Store(at) => {
                let stored = self.clients[at].store_one();
                self.step_client(at, ClientInput::Stored(stored))
            }
            Act::Start(at) => {
                let mut out = Vec::new();
                self.clients[at].start(self.now, &mut out);
                self.carry_out_client(at, out)
            }
            Act::Dial(from, to) => {
                self.last_wire += 1;
                self.wires.insert(self.last_wire, Wire::new(from, to));
                Ok(())
            }
        }
    }

    fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        let quiet = self.quiet_until > self.now;
        for (id, wire) in &self.wires {
            let far = wire.ends.iter().all(|end| matches!(end.at, At::Node(_)));
            if far && quiet {
                continue;
            }
            let ready = (0..2).filter(|side| !wire.ends[*side].inbox.is_empty());
            acts.extend(ready.map(|side| Act::Deliver(*id, side)));
        }
        let linked = |a, b| self.wires.values().any(|wire| wire.joins(a, b));
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_up()) {
            acts.extend((!node.jobs.is_empty()).then_some(Act::Disk(at)));
            acts.extend((!node.work.is_empty()).then_some(Act::Work(at)));
            acts.extend(node.flush_due.then_some(Act::FlushNode(at)));
            let follows = node.follows.filter(|_| node.backup().is_some() && !quiet);
            let follows = follows.filter(|to| self.nodes[*to].is_up() && !linked(At::Node(at), At::Node(*to)));
            acts.extend(follows.map(|to| Act::Dial(At::Node(at), At::Node(to))));
        }
        for (at, client) in self.clients.iter().enumerate() {
            if client.core.is_none() {
                acts.push(Act::Start(at));
                continue;
            }
            acts.extend(client.is_storing().then_some(Act::Store(at)));
            acts.extend(client.flush_due.then_some(Act::FlushClient(at)));
            let nodes = (0..self.nodes.len()).filter(|node| self.nodes[*node].is_up());
            let nodes = nodes.map(At::Node).filter(|node| !linked(At::Client(at), *node));
            acts.extend(nodes.map(|node| Act::Dial(At::Client(at), node)));
        }
        acts
    }

    /// The clock moves: a little, or to the next moment at which somebody wants to be woken.
    fn pass_time(&mut self, idle: bool) -> Verdict {
        let mut next = self.now.after(1 + self.dice.below(500));
        if idle {
            let nodes = self.nodes.iter().filter_map(Node::next_timeout);
            let clients = self.clients.iter().filter_map(|client| client.core.as_ref()?.next_timeout());
            let due = nodes.chain(clients).chain([self.quiet_until]).filter(|due| *due > self.now);
            next = due.min().unwrap_or(next);
        }
        self.now = next;
        for at in 0..self.nodes.len() {
            if self.nodes[at].next_timeout().is_some_and(|due| due <= self.now) {
                self.step_node(at, Input::Tick)?;
            }
        }
        for at in 0..self.clients.len() {
            let due = self.clients[at].core.as_ref().and_then(crate::client::Client::next_timeout);
            if due.is_some_and(|due| due <= self.now) {
                self.step_client(at, ClientInput::Tick)?;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, id: u64, side: usize) -> Verdict {
        let Some(wire) = self.wires.get_mut(&id) else { return Ok(()) };
        let end = &mut wire.ends[side];
        let Some(parcel) = end.inbox.pop_front() else { return Ok(()) };
        let at = end.at;
        if matches!(parcel, Parcel::Gone) {
            end.open = false;
            end.inbox.clear();
        }
        if wire.is_over() {
            self.wires.remove(&id);
        }
        let conn = Conn(id);
        match (at, parcel) {
            (At::Node(at), Parcel::Connected) => self.step_node(at, Input::Linked(conn)),
            (At::Node(at), Parcel::FromClient(message)) => self.step_node(at, Input::Client(conn, message)),
            (At::Node(at), Parcel::FromBackup(message)) => self.step_node(at, Input::FromBackup(conn, message)),
            (At::Node(at), Parcel::FromPrimary(message)) => self.step_node(at, Input::FromPrimary(conn, message)),
            (At::Node(at), Parcel::Gone) => self.step_node(at, Input::Gone(conn)),
            (At::Client(at), Parcel::Connected) => self.step_client(at, ClientInput::Connected(conn)),
            (At::Client(at), Parcel::FromNode(message)) => self.step_client(at, ClientInput::Message(conn, message)),
            (At::Client(at), Parcel::Gone) => self.step_client(at, ClientInput::Gone(conn)),
            (_, _) => Ok(()),
        }
    }

    /// The oldest job of a node's disk is done.
    fn disk(&mut self, at: usize) -> Verdict {
        let node = &mut self.nodes[at];
        let input = match node.jobs.pop_front() {
            Some(Job::Append(records)) => {
                node.log.extend(records);
                // One sync for all that has gathered; and at times a crash comes before it.
                if matches!(node.jobs.front(), Some(Job::Append(_))) {
                    return Ok(());
                }
                node.synced = node.log.len();
                Input::Persisted(Lsn(node.synced as u64))
            }
            Some(Job::Truncate(last)) => {
                node.cut(last);
                return Ok(());
            }
            Some(Job::Marks(marks)) => {
                node.marks = marks;
                node.saves += 1;
                Input::MarksSaved(node.saves)
            }
            Some(Job::Read(conn, from, bytes_max)) => {
                let mut left = bytes_max.min(2_000);
                let mut records = Vec::new();
                for record in node.log.iter().filter(|record| record.lsn() >= from) {
                    if !records.is_empty() && record.cost() > left {
                        break;
                    }
                    left = left.saturating_sub(record.cost());
                    records.push(record.clone());
                }
                Input::Read { conn, records }
            }
            None => return Ok(()),
        };
        self.step_node(at, input)
    }

    /// The state machine of a node does what it was asked for next.
    fn work(&mut self, at: usize) -> Verdict {
        let node = &mut self.nodes[at];
        let input = match node.work.pop_front() {
            Some(Work::Execute(commands, queries)) => {
                let replies = apply(Check::Stopped, &mut node.machine, &commands)?;
                let name = node.name();
                for (entry, reply) in commands.iter().zip(&replies) {
                    self.answers.note(entry, reply, &name);
                    node.applied = entry.header.lsn;
                }
                let machine = &mut node.machine;
                let failed = |error| Finding::new(Check::Stopped, format!("a query fails: {error}"));
                let results = guarded(Check::Stopped, || {
                    queries.iter().map(|query| machine.query(query)).collect::<Result<_, _>>().map_err(failed)
                })?;
                Input::Executed { replies, results }
            }
            Some(Work::Judge(entries, missing)) => {
                let machine = &node.machine;
                let keep = || Ok(entries.iter().map(|entry| machine.independent(entry, &missing)).collect());
                Input::Judged(guarded(Check::Stopped, keep)?)
            }
            None => return Ok(()),
        };
        self.step_node(at, input)
    }

    fn step_node(&mut self, at: usize, input: Input) -> Verdict {
        if !self.nodes[at].is_up() {
            return Ok(());
        }
        let mut out = Vec::new();
        self.nodes[at].flush_due |= !matches!(input, Input::Flush);
        self.nodes[at].step(self.now, input, &mut out);
        self.carry_out(at, out)
    }

    fn carry_out(&mut self, at: usize, out: Vec<Output>) -> Verdict {
        let mut out = VecDeque::from(out);
        while let Some(output) = out.pop_front() {
            let node = &mut self.nodes[at];
            match output {
                Output::ToClient(conn, message) => self.send(conn, At::Node(at), Parcel::FromNode(message)),
                Output::ToBackup(conn, message) => self.send(conn, At::Node(at), Parcel::FromPrimary(message)),
                Output::ToPrimary(conn, message) => self.send(conn, At::Node(at), Parcel::FromBackup(message)),
                Output::Close(conn) => self.close(conn, At::Node(at)),
                Output::Append(records) => node.jobs.push_back(Job::Append(records.into())),
                Output::Truncate(last) => node.jobs.push_back(Job::Truncate(last)),
                Output::SaveMarks(marks) => node.jobs.push_back(Job::Marks(marks)),
                Output::Read { conn, from, bytes_max } => node.jobs.push_back(Job::Read(conn, from, bytes_max)),
                Output::Execute { commands, queries } => node.work.push_back(Work::Execute(commands.into(), queries)),
                Output::Judge { entries, missing } => node.work.push_back(Work::Judge(entries, missing)),
                Output::Promote => {
                    if let Core::Backup(backup) = std::mem::replace(&mut node.core, Core::Down) {
                        let mut more = Vec::new();
                        node.core = Core::Primary(Box::new(backup.into_primary(self.now, &mut more)));
                        node.follows = None;
                        out.extend(more);
                    }
                }
                Output::Event(event) => self.on_event(at, &event)?,
                Output::AdminDone(Ok(())) => {}
                Output::AdminDone(Err(error)) => {
                    let why = format!("{} does not become the primary: {error}", node.name());
                    return Err(Finding::new(Check::Stopped, why));
                }
                Output::Halt(error) => {
                    let why = format!("{} stops: {error}", node.name());
                    let diverged = error.code() == Code::Diverged;
                    return Err(if diverged { self.answers.diverged(&why) } else { Finding::new(Check::Stopped, why) });
                }
            }
        }
        Ok(())
    }

    fn on_event(&mut self, at: usize, event: &NodeEvent) -> Verdict {
        match event {
            NodeEvent::Opened { report, start, .. } => {
                self.survived.rebuilt += start.0.saturating_sub(report.base.0 + 1);
                if !report.gaps.is_empty() || !report.missing.is_empty() {
                    let why = format!("{} opens without everything: {report:?}", self.nodes[at].name());
                    return Err(Finding::new(Check::Lost, why));
                }
                Ok(())
            }
            NodeEvent::Diverged(lsn) => {
                let name = self.nodes[at].name();
                let why =
                    format!("{name} reports `Diverged({lsn})`: the client was answered otherwise before the disaster");
                Err(self.answers.diverged(&why))
            }
            _ => Ok(()),
        }
    }

    fn send(&mut self, conn: Conn, from: At, parcel: Parcel) {
        if let Some(wire) = self.wires.get_mut(&conn.0) {
            wire.send(from, parcel);
        }
    }

    fn close(&mut self, conn: Conn, by: At) {
        if let Some(wire) = self.wires.get_mut(&conn.0) {
            wire.close(by);
        }
    }

    fn step_client(&mut self, at: usize, input: ClientInput) -> Verdict {
        let client = &mut self.clients[at];
        let Some(core) = &mut client.core else { return Ok(()) };
        let mut out = Vec::new();
        client.flush_due |= !matches!(input, ClientInput::Flush);
        core.step(self.now, input, &mut out);
        self.carry_out_client(at, out)
    }

    fn carry_out_client(&mut self, at: usize, out: Vec<ClientOutput>) -> Verdict {
        let lost = |why: String| Err(Finding::new(Check::Lost, format!("client {at} is told that {why}")));
        for output in out {
            let client = &mut self.clients[at];
            match output {
                ClientOutput::Send(conn, message) => self.send(conn, At::Client(at), Parcel::FromClient(message)),
                ClientOutput::Close(conn) => self.close(conn, At::Client(at)),
                ClientOutput::Store(ops) => client.store(ops),
                ClientOutput::Done { request, outcome, tag } => {
                    let Some(payload) = client.pending.remove(&request) else { continue };
                    let Outcome::Reply(reply) = outcome else {
                        return lost(format!("its request {request} is superseded"));
                    };
                    client.told.insert(request, Told { payload, reply, tag });
                }
                ClientOutput::Event(ClientEvent::Superseded { request, .. }) => {
                    return lost(format!("its request {request} is superseded"));
                }
                ClientOutput::Event(ClientEvent::RolledBack { epoch, observed }) => {
                    return lost(format!("what it saw at {observed} of {epoch} did not survive"));
                }
                ClientOutput::Failed(error) => {
                    return Err(Finding::new(Check::Stopped, format!("client {at} fails: {error}")));
                }
                ClientOutput::Event(_)
                | ClientOutput::Result { .. }
                | ClientOutput::Flushed(_)
                | ClientOutput::Endpoints(_)
                | ClientOutput::Closed => {}
            }
        }
        Ok(())
    }
}
