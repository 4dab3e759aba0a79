//! The world: clock, events, streams between processes, and the carrying out of what the cores ask for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use tagalong::client::{ClientInput, ClientOutput};
use tagalong::log::{Epoch, Level, Lsn, SessionRole, Time};
use tagalong::message::{ClientFrame, ClientMessage, NodeMessage, Outcome, PrimaryMessage};
use tagalong::node::{Admin, Conn, Input, NodeEvent, Output};
use tagalong::rule::Rule;

use crate::client::{Habit, SimClient};
use crate::clock::Clock;
use crate::dice::Dice;
use crate::disk::Operation;
use crate::machine::{Machine, Register};
use crate::marks::Marks;
use crate::network::{At, Parcel, Stream};
use crate::node::{Core, Node, Task};
use crate::oracle::Oracle;
use crate::plan::Plan;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Deliver { stream: u64, side: usize },
    FlushNode { node: usize, life: u64 },
    FlushClient { client: usize, life: u64 },
    TickNode { node: usize, life: u64 },
    TickClient { client: usize, life: u64 },
    Disk { node: usize, life: u64 },
    Task { node: usize, life: u64 },
    Store { client: usize, life: u64 },
    Dial { client: usize, life: u64, node: usize },
    Break { stream: u64 },
    DialPrimary { node: usize, life: u64 },
    Work { client: usize, life: u64 },
    StartClient { client: usize },
    Fault,
    Operate,
    AddBackup,
}

pub struct World {
    pub plan: Plan,
    pub dice: Dice,
    pub now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    pub nodes: Vec<Node>,
    pub clients: Vec<SimClient>,
    pub streams: BTreeMap<u64, Stream>,
    next_stream: u64,
    /// Who cannot reach whom, until when.
    pub blocked: BTreeMap<(At, At), u64>,
    /// What one sends the other takes longer: until when, and by how much.
    pub lags: BTreeMap<(At, At), (u64, u64)>,
    pub marks: Marks,
    pub granted: BTreeSet<(Epoch, Conn)>,
    pub oracle: Oracle,
    pub trace: bool,
    pub healing: bool,
    /// Everything is at rest, as it should be.
    pub converged: bool,
    /// The last node that could have gone on is lost.
    pub hopeless: bool,
    pub waiting_since: Option<u64>,
    /// What was sent last in each epoch, by a client and to a backup.
    pub ghosts: BTreeMap<(At, Epoch), Parcel>,
    serial: u64,
    pub steps: u64,
    /// When something last happened that takes time to be repaired.
    pub troubled_at: u64,
    pub healing_since: Option<u64>,
    /// How far the recovery is, and since when.
    pub progress: (usize, u64, u64, u64),
    /// Clients start again soon, before everybody has noticed that they were gone.
    quick: bool,
}

/// Virtual time the healing may take.
const HEALING_US: u64 = 40_000_000;
const STEPS_MAX: u64 = 2_000_000;

impl World {
    pub fn new(seed: u64, bias: Option<Rule>, trace: bool) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::new(&mut dice, bias);
        Self::with_plan(plan, dice, trace)
    }

    pub fn with_plan(plan: Plan, dice: Dice, trace: bool) -> Self {
        if trace {
            println!("{plan:#?}");
        }
        let mut world = Self {
            oracle: Oracle::new(&plan.primary),
            plan,
            dice,
            now: 1_000_000,
            queue: BinaryHeap::new(),
            scheduled: 0,
            nodes: Vec::new(),
            clients: Vec::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            blocked: BTreeMap::new(),
            lags: BTreeMap::new(),
            marks: Marks::default(),
            granted: BTreeSet::new(),
            trace,
            healing: false,
            converged: false,
            hopeless: false,
            waiting_since: None,
            ghosts: BTreeMap::new(),
            serial: 0,
            steps: 0,
            troubled_at: 0,
            healing_since: None,
            progress: (0, 0, 0, 0),
            quick: false,
        };
        world.add_node(true, None);
        if let Some(at) = world.plan.backup_at {
            world.after(at, Event::AddBackup);
        }
        for _ in 0..world.plan.clients {
            world.add_client(world.plan.calls);
        }
        let first = world.plan.calm_until;
        world.after(first, Event::Fault);
        world.after(10_000, Event::Operate);
        world
    }

    pub fn run(&mut self) {
        let start = self.now;
        let heal_at = start + self.plan.heal_at;
        let (mut patience, mut stable) = (heal_at + HEALING_US, Lsn(0));
        while self.oracle.violation.is_none() && !self.converged && !self.hopeless {
            let Some(Reverse((at, _, event))) = self.queue.pop() else {
                self.oracle.violate("liveness", "nothing happens any more".to_owned());
                return;
            };
            self.now = self.now.max(at);
            self.oracle.now = self.now;
            if !self.healing && self.now >= heal_at {
                self.healing = true;
                self.healing_since = Some(self.now);
                self.note("healing begins");
                self.blocked.clear();
            }
            self.steps += 1;
            // A window of two entries on a long way takes its time (seed 302982): as long as more becomes stable, it is granted.
            let reached = |node: &Node| node.primary().map_or(Lsn(0), |primary| primary.watermarks().stable());
            let reached = || self.nodes.iter().map(reached).max().unwrap_or(Lsn(0));
            if self.now > patience && reached() > stable {
                stable = reached();
                patience = self.now + HEALING_US;
            }
            if self.now > patience || self.steps > STEPS_MAX {
                let why = self.unfinished();
                self.oracle.violate("liveness", format!("at rest it should be, but {why}"));
                return;
            }
            self.handle(event);
        }
        if self.converged && self.oracle.violation.is_none() {
            self.check_end();
        }
    }

    /// Runs until something is so, or a virtual second has gone by.
    pub fn until(&mut self, what: &str, mut so: impl FnMut(&World) -> bool) {
        let end = self.now + 1_000_000;
        while !so(self) {
            assert!(self.oracle.violation.is_none(), "{:?}", self.oracle.violation);
            let Some(Reverse((at, _, event))) = self.queue.pop() else { panic!("nothing happens before {what}") };
            self.now = self.now.max(at);
            self.oracle.now = self.now;
            assert!(self.now < end, "{what}: {}", self.unfinished());
            self.handle(event);
        }
    }

    pub fn note(&self, what: impl AsRef<str>) {
        if self.trace {
            println!("{:>9.3} ms  {}", (self.now - 1_000_000) as f64 / 1e3, what.as_ref());
        }
    }

    pub fn after(&mut self, micros: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse((self.now + micros, self.scheduled, event)));
    }

    fn handle(&mut self, event: Event) {
        if let Some(until) = self.paused_until(event) {
            self.after(until - self.now, event);
            return;
        }
        match event {
            Event::Break { stream } => self.break_stream(stream, None),
            Event::Deliver { stream, side } => self.deliver(stream, side),
            Event::FlushNode { node, life } if self.nodes[node].life == life => {
                self.nodes[node].flush_due = false;
                self.step_node(node, Input::Flush);
            }
            Event::TickNode { node, life } if self.nodes[node].life == life => self.tick_node(node),
            Event::FlushClient { client, life } if self.clients[client].life == life => {
                self.clients[client].flush_due = false;
                self.step_client(client, ClientInput::Flush);
            }
            Event::TickClient { client, life } if self.clients[client].life == life => self.tick_client(client),
            Event::Disk { node, life } if self.nodes[node].life == life => {
                if self.disk_failed(node) {
                    return;
                }
                let done = self.nodes[node].disk.complete();
                if let Some(input) = done {
                    self.step_node(node, input);
                }
                self.run_disk(node);
            }
            Event::Task { node, life } if self.nodes[node].life == life => self.run_task(node),
            Event::Store { client, life } if self.clients[client].life == life => {
                if self.cache_failed(client) {
                    return;
                }
                self.clients[client].store_due = false;
                if let Some(stored) = self.clients[client].store() {
                    self.step_client(client, ClientInput::Stored(stored));
                }
                self.run_store(client);
            }
            Event::Dial { client, life, node } if self.clients[client].life == life => self.dial(client, node),
            Event::DialPrimary { node, life } if self.nodes[node].life == life => self.dial_primary(node),
            Event::Work { client, life } if self.clients[client].life == life => self.work(client),
            Event::StartClient { client } => self.start_client(client),
            Event::Fault => self.fault(),
            Event::Operate => self.operate(),
            Event::AddBackup => {
                if let Some(primary) = self.sovereign() {
                    self.add_node(false, Some(primary));
                } else {
                    self.after(20_000, Event::AddBackup);
                }
            }
            _ => {}
        }
    }

    fn tick_node(&mut self, at: usize) {
        if self.nodes[at].tick_at.is_some_and(|due| due <= self.now) {
            self.nodes[at].tick_at = None;
            self.step_node(at, Input::Tick);
        }
    }

    fn tick_client(&mut self, at: usize) {
        if self.clients[at].tick_at.is_some_and(|due| due <= self.now) {
            self.clients[at].tick_at = None;
            self.step_client(at, ClientInput::Tick);
        }
    }

    pub fn tick_client_now(&mut self, at: usize) {
        self.step_client(at, ClientInput::Tick);
    }

    /// Where clocks do not differ, chance is not asked.
    fn some_clock(&mut self) -> Clock {
        match self.plan.clocks {
            Some(rate) => {
                let ahead = self.dice.pick(&[0, 1_000, 3_600_000_000]);
                Clock::new(ahead, self.dice.between(1_000 - rate, 1_000 + rate))
            }
            None => Clock::default(),
        }
    }

    fn some_habit(&mut self) -> Habit {
        let (slow, greedy, trickling) = (self.plan.slow, self.plan.greedy, self.plan.trickling);
        if slow + greedy + trickling == 0 {
            return Habit::Plain;
        }
        match self.dice.below(100) {
            n if n < slow => Habit::Slow(self.dice.between(5_000, 100_000)),
            n if n < slow + greedy => Habit::Greedy,
            n if n < slow + greedy + trickling => Habit::Trickling,
            _ => Habit::Plain,
        }
    }

    // Nodes.

    pub fn add_node(&mut self, founder: bool, follows: Option<usize>) {
        let mut node = Node::new(self.nodes.len() as u64 + 1, founder, follows);
        node.clock = self.some_clock();
        self.nodes.push(node);
        let at = self.nodes.len() - 1;
        self.note(format!("node {at} is set up, following {follows:?}"));
        self.start_node(at);
        for client in 0..self.clients.len() {
            let life = self.clients[client].life;
            self.after(10, Event::Dial { client, life, node: at });
        }
    }

    pub fn start_node(&mut self, at: usize) {
        let mut out = Vec::new();
        let settings = self.plan.primary.clone();
        let node = &mut self.nodes[at];
        let now = node.clock.at(self.now);
        let started = node.start(&settings, now, &mut out);
        let end = node.disk.log.len();
        if let Err(error) = started {
            self.oracle.violate("start", format!("node {at} does not start on its own log: {error}"));
            return;
        }
        if let Some(primary) = self.nodes[at].primary()
            && goes_on(primary)
        {
            let epoch = primary.epoch();
            self.nodes[at].serving = Some(epoch);
            self.oracle.reign_goes_on(epoch, end);
            if let Some((start, report)) = self.oracle.unopened(epoch) {
                self.oracle.on_opened(&self.clients, at, epoch, start, &report, self.now);
            }
        }
        self.note(format!("node {at} starts with a log of {end}"));
        self.mark_start(at);
        self.carry_out(at, out);
        let life = self.nodes[at].life;
        if self.nodes[at].backup().is_some() {
            self.after(100, Event::DialPrimary { node: at, life });
        }
        self.after_node_step(at, false);
    }

    pub fn crash_node(&mut self, at: usize) {
        if !self.nodes[at].is_up() {
            return;
        }
        self.note(format!("node {at} dies"));
        let node = &mut self.nodes[at];
        node.core = Core::Down;
        node.life += 1;
        node.paused_until = 0;
        node.serving = None;
        node.tasks.clear();
        node.disk.crash(&mut self.dice);
        self.cut_all(At::Node(at));
    }

    pub fn step_node(&mut self, at: usize, input: Input) {
        if !self.nodes[at].is_up() {
            return;
        }
        let mut out = Vec::new();
        let (flush, tick) = (matches!(input, Input::Flush), matches!(input, Input::Tick));
        let now = self.nodes[at].clock.at(self.now);
        self.nodes[at].step(now, input, &mut out);
        self.carry_out(at, out);
        if !flush && !self.nodes[at].flush_due && self.nodes[at].is_up() {
            self.nodes[at].flush_due = true;
            let (life, delay) = (self.nodes[at].life, self.dice.below(self.plan.flush_us));
            self.after(delay, Event::FlushNode { node: at, life });
        }
        self.after_node_step(at, tick);
    }

    fn after_node_step(&mut self, at: usize, ticked: bool) {
        // What is due still is work for the flush, which a shell does at once, and this one soon.
        let now = self.nodes[at].clock.at(self.now);
        let waits = |due: &Time| ticked && self.nodes[at].flush_due && *due <= now;
        if let Some(due) = self.nodes[at].next_timeout().filter(|due| !waits(due)) {
            let due = self.now + self.nodes[at].clock.until(self.now, due);
            let life = self.nodes[at].life;
            if self.nodes[at].tick_at.is_none_or(|known| known > due || known <= self.now) {
                self.nodes[at].tick_at = Some(due);
                self.after(due - self.now, Event::TickNode { node: at, life });
            }
        }
        if let Some(primary) = self.nodes[at].primary() {
            self.oracle.check_delta(&self.plan, primary);
        }
    }

    fn carry_out(&mut self, at: usize, out: Vec<Output>) {
        for output in out {
            if self.oracle.violation.is_some() || !self.nodes[at].is_up() {
                return;
            }
            match output {
                Output::ToClient(conn, message) => {
                    let client = self.streams.get(&conn.0).map(|stream| stream.ends[0].at);
                    let client = client.and_then(|at| if let At::Client(client) = at { Some(client) } else { None });
                    self.oracle.on_sent_to_client(&self.nodes, &self.clients, at, client, &message);
                    self.mark_to_client(client, &message);
                    if let (Some(client), NodeMessage::Welcome(_)) = (client, &message) {
                        self.oracle.on_welcomed(client, self.now);
                    }
                    self.send(conn.0, At::Node(at), Parcel::FromNode(message));
                }
                Output::ToBackup(conn, message) => {
                    self.oracle.on_sent_to_backup(&self.nodes, at, &message);
                    self.mark_between_nodes(conn, Some(&message), None);
                    let to = self.streams.get(&conn.0).map(|stream| stream.ends[0].at);
                    if let (Some(to), PrimaryMessage::Append { epoch, .. }) = (to, &message) {
                        self.ghosts.insert((to, *epoch), Parcel::FromPrimary(message.clone()));
                    }
                    self.send(conn.0, At::Node(at), Parcel::FromPrimary(message));
                }
                Output::ToPrimary(conn, message) => {
                    self.oracle.on_sent_to_primary(&self.nodes, at, &message);
                    self.mark_between_nodes(conn, None, Some(&message));
                    self.send(conn.0, At::Node(at), Parcel::FromBackup(message));
                }
                Output::Close(conn) => self.close(conn.0, At::Node(at)),
                Output::Append(records) => {
                    self.mark_append(at, &records);
                    self.oracle.on_append(&mut self.nodes, &self.clients, at, &records);
                    self.nodes[at].disk.push(Operation::Append(records));
                    self.run_disk(at);
                }
                Output::Truncate(lsn) => {
                    self.note(format!("node {at} cuts its log after {lsn}"));
                    self.marks.reach("a backup goes back to a base");
                    self.nodes[at].disk.push(Operation::Truncate(lsn));
                    self.run_disk(at);
                }
                Output::SaveMarks(marks) => {
                    self.nodes[at].disk.push(Operation::Marks(Box::new(marks)));
                    self.run_disk(at);
                }
                Output::Read { conn, from, bytes_max } => {
                    self.nodes[at].disk.push(Operation::Read(conn, from, bytes_max.min(2_000)));
                    self.run_disk(at);
                }
                Output::Execute { commands, queries } => self.task(at, Task::Execute(commands, queries)),
                Output::Judge { entries, missing } => self.task(at, Task::Judge(entries, missing)),
                Output::AdminDone(done) => {
                    self.note(format!("node {at} answers the operator: {done:?}"));
                    if let Err(error) = &done {
                        self.mark_admin(error);
                    }
                }
                Output::Event(event) => self.on_node_event(at, event),
                Output::Promote => {
                    let Core::Backup(backup) = std::mem::replace(&mut self.nodes[at].core, Core::Down) else {
                        self.oracle.violate("start", "a promotion of what is no backup".to_owned());
                        return;
                    };
                    let mut out = Vec::new();
                    let now = self.nodes[at].clock.at(self.now);
                    let primary = backup.into_primary(now, &mut out);
                    (self.nodes[at].promoted_at, self.nodes[at].resolved) = (Some(now), false);
                    self.note(format!("node {at} is promoted to epoch {}", primary.epoch()));
                    self.nodes[at].core = Core::Primary(Box::new(primary));
                    self.nodes[at].follows = None;
                    self.carry_out(at, out);
                }
                Output::Halt(error) => {
                    self.oracle.violate("halt", format!("node {at} stops: {error}"));
                }
            }
        }
    }

    fn on_node_event(&mut self, at: usize, event: NodeEvent) {
        self.note(format!("node {at}: {event:?}"));
        self.mark_node_event(at, &event);
        match event {
            NodeEvent::Opened { report, epoch, start } => {
                self.oracle.on_opened(&self.clients, at, epoch, start, &report, self.now);
            }
            NodeEvent::Decoded { entries, .. } => self.oracle.decoded += entries,
            NodeEvent::Stopped(_) => self.nodes[at].stopped = true,
            NodeEvent::Refused(error) => self.on_backup_refused(at, &error),
            NodeEvent::Diverged(lsn) => {
                self.oracle.violate("I5", format!("node {at} finds another reply at {lsn}"));
            }
            _ => {}
        }
    }

    fn slow(&mut self, at: usize, range: (u64, u64)) -> u64 {
        let stall = self.nodes[at].stalled_until.saturating_sub(self.now);
        stall + self.dice.between(range.0, range.1)
    }

    fn run_disk(&mut self, at: usize) {
        if !self.nodes[at].disk.is_busy() && self.nodes[at].disk.begin(&mut self.dice) {
            let range = self.plan.disk_us;
            let (life, delay) = (self.nodes[at].life, self.slow(at, range));
            self.after(delay, Event::Disk { node: at, life });
        }
    }

    fn task(&mut self, at: usize, task: Task) {
        let one = |task: &Task| matches!(task, Task::Execute(..));
        assert!(!one(&task) || !self.nodes[at].tasks.iter().any(one), "one at a time");
        self.nodes[at].tasks.push_back(task);
        let range = self.plan.machine_us;
        let (life, delay) = (self.nodes[at].life, self.slow(at, range));
        self.after(delay, Event::Task { node: at, life });
    }

    fn run_task(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let input = match node.tasks.pop_front() {
            Some(Task::Execute(commands, queries)) => {
                let replies = commands.iter().map(|entry| node.machine.apply(entry)).collect();
                let results: Vec<Bytes> = queries.iter().map(|query| node.machine.query(query)).collect();
                Input::Executed { replies, results }
            }
            Some(Task::Judge(entries, missing)) => {
                let lost = &self.oracle.keys;
                Input::Judged(entries.iter().map(|entry| Machine::independent(entry, &missing, lost)).collect())
            }
            None => return,
        };
        self.step_node(at, input);
    }

    pub fn admin(&mut self, at: usize, admin: Admin) {
        self.note(format!("operator to node {at}: {admin:?}"));
        // An operator insists until somebody listens.
        self.nodes[at].paused_until = 0;
        self.nodes[at].resolved |= matches!(admin, Admin::Resolve(_));
        self.step_node(at, Input::Admin(admin));
    }

    // Streams.

    pub fn is_blocked(&self, a: At, b: At) -> bool {
        self.blocked.get(&(a.min(b), a.max(b))).is_some_and(|until| *until > self.now)
    }

    fn delay(&mut self, a: At, b: At) -> u64 {
        let far = |at| matches!(at, At::Node(node) if node > 0);
        let (low, high) = if far(a) || far(b) { self.plan.wan_us } else { self.plan.lan_us };
        self.dice.between(low, high)
    }

    fn dial(&mut self, client: usize, node: usize) {
        if self.clients[client].core.is_none() || self.nodes[node].lost {
            return;
        }
        let (a, b) = (At::Client(client), At::Node(node));
        let life = self.clients[client].life;
        if !self.nodes[node].is_up() || self.is_blocked(a, b) {
            let backoff = self.dice.between(1_000, 20_000);
            self.after(backoff, Event::Dial { client, life, node });
            return;
        }
        self.connect((a, life), (b, self.nodes[node].life));
    }

    fn dial_primary(&mut self, node: usize) {
        let Some(primary) = self.nodes[node].follows else { return };
        if self.nodes[node].backup().is_none() || self.nodes[node].lost {
            return;
        }
        let (a, b) = (At::Node(node), At::Node(primary));
        let life = self.nodes[node].life;
        if !self.nodes[primary].is_up() || self.is_blocked(a, b) {
            let backoff = self.dice.between(1_000, 20_000);
            self.after(backoff, Event::DialPrimary { node, life });
            return;
        }
        self.connect((a, life), (b, self.nodes[primary].life));
    }

    fn connect(&mut self, dialler: (At, u64), listener: (At, u64)) {
        self.next_stream += 1;
        let id = self.next_stream;
        self.streams.insert(id, Stream::new(dialler, listener, self.now));
        self.push(id, 0, Parcel::Connected);
    }

    /// Sends from one side to the other.
    fn send(&mut self, id: u64, from: At, parcel: Parcel) {
        let Some(stream) = self.streams.get(&id) else { return };
        let side = usize::from(stream.ends[0].at == from);
        let open = stream.ends[1 - side].open && stream.ends[1 - side].at == from;
        if open && !stream.ends[side].dead {
            if self.trace {
                self.note(format!("  {from:?} -> {:?} [{id}] {}", stream.ends[side].at, brief(&parcel)));
            }
            self.push(id, side, parcel);
        }
    }

    /// What something in between still had of an older stream arrives on the present one.
    pub fn haunt(&mut self) {
        let ghosts: Vec<(At, Epoch)> = self.ghosts.keys().copied().collect();
        if ghosts.is_empty() {
            return;
        }
        let (of, epoch) = self.dice.pick(&ghosts);
        let parcel = self.ghosts[&(of, epoch)].clone();
        let newer = |at: usize| self.clients[at].core.as_ref().and_then(|core| core.attached()) > Some(epoch);
        let link = |(_, stream): &(&u64, &Stream)| {
            stream.ends[0].at == of && matches!(stream.ends[1].at, At::Node(_)) && !stream.ends[0].dead
        };
        let place = match of {
            At::Client(at) if newer(at) => self.clients[at].session.map(|id| (id, 1)),
            At::Client(_) => None,
            At::Node(at) if self.nodes[at].disk.marks.as_ref().is_some_and(|marks| marks.promised > epoch) => {
                self.streams.iter().find(link).map(|(id, _)| (*id, 0))
            }
            At::Node(_) => None,
        };
        if let Some((id, side)) = place.filter(|(id, side)| {
            self.streams.get(id).is_some_and(|stream| stream.ends[*side].open && !stream.ends[*side].dead)
        }) {
            self.note(format!("a ghost of {epoch} for stream {id}: {}", brief(&parcel)));
            self.push(id, side, parcel);
        }
    }

    pub fn push(&mut self, id: u64, side: usize, parcel: Parcel) {
        let ends = &self.streams[&id].ends;
        let (from, to) = (ends[1 - side].at, ends[side].at);
        let delay = self.delay(from, to) + self.late(from, to);
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let end = &mut stream.ends[side];
        end.last = end.last.max(now + delay);
        let at = end.last;
        end.inbox.push_back((at, now, parcel));
        self.after(at - now, Event::Deliver { stream: id, side });
    }

    /// Breaks a stream: of what is under way a prefix arrives. `late` says who notices late, and how late.
    pub fn break_stream(&mut self, id: u64, late: Option<(usize, u64)>) {
        for side in 0..2 {
            let keep = self.streams.get(&id).map_or(0, |stream| stream.ends[side].inbox.len() + 1);
            let keep = self.dice.index(keep);
            let Some(stream) = self.streams.get_mut(&id) else { return };
            let end = &mut stream.ends[side];
            if end.dead {
                continue;
            }
            end.inbox.truncate(keep);
            end.dead = true;
            let extra = late.filter(|(who, _)| *who == side).map_or(0, |(_, by)| by);
            end.last = end.last.max(self.now) + extra;
            self.push(id, side, Parcel::Gone);
        }
    }

    /// One side ends a stream, after what it sent on it.
    fn close(&mut self, id: u64, by: At) {
        let straggler = self.dice.percent(20);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let side = usize::from(stream.ends[1].at == by);
        if stream.ends[side].at != by || !stream.ends[side].open {
            return;
        }
        if !stream.ends[1 - side].dead {
            stream.ends[1 - side].dead = true;
            self.push(id, 1 - side, Parcel::Gone);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let end = &mut stream.ends[side];
        // What had arrived before the shell closed the stream may still be delivered.
        end.inbox.retain(|(_, _, parcel)| straggler && !matches!(parcel, Parcel::Gone));
        end.inbox.truncate(2);
        end.dead = true;
        self.push(id, side, Parcel::Gone);
    }

    /// A process is gone, and its streams with it.
    fn cut_all(&mut self, at: At) {
        let ids: Vec<u64> = self.streams.iter().filter(|(_, stream)| stream.has(at)).map(|(id, _)| *id).collect();
        for id in ids {
            let often = if self.quick { 70 } else { 20 };
            let late = self.dice.percent(often).then(|| self.dice.between(10_000, 300_000));
            let side = usize::from(self.streams[&id].ends[0].at == at);
            self.break_stream(id, late.map(|by| (side, by)));
            if let Some(stream) = self.streams.get_mut(&id) {
                let own = &mut stream.ends[1 - side];
                own.open = false;
                own.inbox.clear();
            }
        }
    }

    fn deliver(&mut self, id: u64, side: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let end = &mut stream.ends[side];
        if end.inbox.front().is_none_or(|(at, _, _)| *at > self.now) {
            return;
        }
        let Some((_, sent, parcel)) = end.inbox.pop_front() else { return };
        if !end.open {
            return;
        }
        let (at, life) = (end.at, end.life);
        let gone = matches!(parcel, Parcel::Gone);
        if gone {
            end.open = false;
            end.inbox.clear();
        }
        if self.streams[&id].is_over() {
            self.streams.remove(&id);
        }
        let same = match at {
            At::Node(node) => self.nodes[node].life == life,
            At::Client(client) => self.clients[client].life == life,
        };
        if !same {
            return;
        }
        if self.trace && !gone {
            self.note(format!("{at:?} [{id}] <- {}", brief(&parcel)));
        } else if gone {
            self.note(format!("{at:?} [{id}] is gone"));
        }
        match at {
            At::Node(node) => self.deliver_to_node(node, id, side, parcel),
            At::Client(client) => self.deliver_to_client(client, id, sent, parcel),
        }
    }

    fn deliver_to_node(&mut self, node: usize, id: u64, side: usize, parcel: Parcel) {
        let conn = Conn(id);
        match parcel {
            Parcel::Connected => self.step_node(node, Input::Linked(conn)),
            Parcel::FromClient(message) => self.step_node(node, Input::Client(conn, message)),
            Parcel::FromBackup(message) => self.step_node(node, Input::FromBackup(conn, message)),
            Parcel::FromPrimary(message) => self.step_node(node, Input::FromPrimary(conn, message)),
            Parcel::FromNode(_) => {}
            Parcel::Gone => {
                self.trouble();
                self.oracle.on_noticed(id, self.now);
                self.step_node(node, Input::Gone(conn));
                if side == 0 {
                    let (life, backoff) = (self.nodes[node].life, self.dice.between(500, 10_000));
                    self.after(backoff, Event::DialPrimary { node, life });
                }
            }
        }
    }

    fn deliver_to_client(&mut self, at: usize, id: u64, sent: u64, parcel: Parcel) {
        let conn = Conn(id);
        match parcel {
            Parcel::Connected => self.step_client(at, ClientInput::Connected(conn)),
            Parcel::FromNode(message) => {
                self.message_to_client(at, id, sent, message);
            }
            Parcel::Gone => {
                self.step_client(at, ClientInput::Gone(conn));
            }
            _ => {}
        }
    }

    fn message_to_client(&mut self, at: usize, id: u64, sent: u64, message: NodeMessage) {
        let Some(core) = &self.clients[at].core else { return };
        let ours = self.clients[at].session == Some(id);
        let frame = match &message {
            NodeMessage::Frame(frame) if ours && core.attached() == Some(frame.epoch) => Some(frame.clone()),
            _ => None,
        };
        let settles = frame.is_some() || matches!(message, NodeMessage::Welcome(_)) && ours;
        let before = settles.then(|| self.oracle.held(core.image()));
        if let Some(frame) = &frame {
            let client = &mut self.clients[at];
            for result in &frame.results {
                client.result_at.insert(result.id, (frame.epoch, result.lsn, sent));
            }
            for response in frame.responses.iter().filter(|response| response.outcome.is_some()) {
                client.reply_sent.insert(response.request, (frame.epoch, sent));
            }
        }
        self.step_client(at, ClientInput::Message(Conn(id), message));
        if let Some(before) = before {
            self.oracle.check_released(&self.nodes, &self.clients, at, &before);
        }
        if let Some(frame) = frame {
            self.oracle.check_order_known(&self.nodes, &self.clients, at, &frame);
        }
    }

    // Clients.

    pub fn add_client(&mut self, calls: u64) {
        let number = self.clients.len();
        let persistent = self.dice.percent(self.plan.persistent);
        let domain = match self.plan.racks {
            _ if self.dice.percent(self.plan.near) => "east".to_owned(),
            0 if number.is_multiple_of(7) => String::new(),
            0 => format!("rack-{number}"),
            racks => format!("rack-{}", self.dice.index(racks)),
        };
        let role = match () {
            () if self.dice.percent(self.plan.readers) => SessionRole::Reader,
            () if self.dice.percent(self.plan.holders) => SessionRole::Holder,
            () => SessionRole::Writer,
        };
        let mut client = SimClient::new(number, persistent, calls, domain, role);
        client.roomless = self.dice.percent(self.plan.roomless);
        client.habit = self.some_habit();
        client.clock = self.some_clock();
        self.oracle.on_client(client.failure_domain());
        self.clients.push(client);
        let delay = self.dice.below(10_000);
        self.after(delay, Event::StartClient { client: number });
    }

    /// Somebody takes the place of a client that is gone.
    fn replace_client(&mut self, at: usize) {
        if self.clients.len() < self.plan.clients + 8 {
            self.add_client(self.clients[at].calls_left);
        }
    }

    fn start_client(&mut self, at: usize) {
        if self.clients[at].core.is_some() || !self.clients[at].is_live() {
            return;
        }
        let mut out = Vec::new();
        let now = self.clients[at].clock.at(self.now);
        self.clients[at].start(&self.plan.client, now, &mut out);
        self.note(format!("client {at} starts"));
        self.oracle.on_client_start(at, &self.clients[at].stored);
        self.carry_out_client(at, out);
        let life = self.clients[at].life;
        for node in 0..self.nodes.len() {
            self.after(10, Event::Dial { client: at, life, node });
        }
        self.after(self.plan.think_us, Event::Work { client: at, life });
    }

    pub fn crash_client(&mut self, at: usize) {
        if self.clients[at].core.is_none() {
            return;
        }
        self.trouble();
        self.oracle.on_client_crash(&self.clients[at]);
        if !self.clients[at].persistent {
            self.oracle.on_damage(at, self.clients[at].session, false, self.now);
        }
        self.clients[at].crash(&mut self.dice);
        self.note(format!("client {at} dies{}", if self.clients[at].lost { " for good" } else { "" }));
        self.cut_all(At::Client(at));
        let delay = self.dice.between(1_000, 300_000);
        let delay = if self.quick { delay % 5_000 } else { delay };
        if self.clients[at].lost {
            self.replace_client(at);
        } else {
            self.after(delay, Event::StartClient { client: at });
        }
    }

    /// A client's machine dies, with the end of its cache.
    pub fn reboot_client(&mut self, at: usize) {
        if self.clients[at].core.is_none() || !self.clients[at].persistent {
            return;
        }
        let session = self.clients[at].session;
        self.quick = self.dice.percent(70);
        self.crash_client(at);
        self.quick = false;
        let before = self.oracle.places(&self.clients[at].stored);
        self.clients[at].tear(&mut self.dice);
        let after = self.oracle.places(&self.clients[at].stored);
        self.oracle.on_damage(at, session, true, self.now);
        self.oracle.views[at].died_with.extend(before.difference(&after));
    }

    /// Something goes on that has to be over before everything can be as it should be.
    pub fn trouble(&mut self) {
        self.troubled_at = self.troubled_at.max(self.now);
    }

    /// A client is gone with its cache, on whatever it was.
    pub fn lose_client(&mut self, at: usize) {
        if !self.clients[at].is_live() {
            return;
        }
        self.clients[at].persistent = false;
        if self.clients[at].core.is_some() {
            self.crash_client(at);
        } else {
            self.note(format!("the cache of client {at} is lost"));
            self.oracle.on_client_crash(&self.clients[at]);
            self.oracle.on_damage(at, None, false, self.now);
            self.clients[at].lost = true;
            self.replace_client(at);
        }
    }

    fn step_client(&mut self, at: usize, input: ClientInput) {
        let now = self.clients[at].clock.at(self.now);
        let Some(core) = &mut self.clients[at].core else { return };
        let mut out = Vec::new();
        let flush = matches!(input, ClientInput::Flush);
        let gone = match input {
            ClientInput::Gone(conn) => Some(conn),
            _ => None,
        };
        core.step(now, input, &mut out);
        self.carry_out_client(at, out);
        if !flush {
            self.flush_client(at);
        }
        let life = self.clients[at].life;
        if let Some(due) = self.clients[at].core.as_ref().and_then(tagalong::client::Client::next_timeout) {
            let due = self.now + self.clients[at].clock.until(self.now, due);
            if self.clients[at].tick_at.is_none_or(|known| known > due || known <= self.now) {
                self.clients[at].tick_at = Some(due);
                self.after(due - self.now, Event::TickClient { client: at, life });
            }
        }
        if gone.is_some() {
            // The shell keeps a stream to every node.
            let backoff = self.dice.between(500, 10_000);
            for node in 0..self.nodes.len() {
                let (a, b) = (At::Client(at), At::Node(node));
                let linked = self.streams.values().any(|stream| stream.has(a) && stream.has(b) && stream.ends[0].open);
                if !linked {
                    self.after(backoff, Event::Dial { client: at, life, node });
                }
            }
        }
        self.oracle.check_client(&self.plan, at, &self.clients[at]);
    }

    pub fn flush_client(&mut self, at: usize) {
        if !self.clients[at].flush_due && self.clients[at].core.is_some() {
            self.clients[at].flush_due = true;
            let (life, delay) = (self.clients[at].life, self.dice.below(self.plan.flush_us));
            self.after(delay, Event::FlushClient { client: at, life });
        }
    }

    fn run_store(&mut self, at: usize) {
        if !self.clients[at].store_due && !self.clients[at].stores.is_empty() {
            self.clients[at].store_due = true;
            let (life, delay) = (self.clients[at].life, self.dice.between(1, self.plan.store_us));
            self.after(delay, Event::Store { client: at, life });
        }
    }

    pub fn carry_out_client(&mut self, at: usize, out: Vec<ClientOutput>) {
        for output in out {
            if self.oracle.violation.is_some() || self.clients[at].core.is_none() {
                return;
            }
            match output {
                ClientOutput::Send(conn, message) => {
                    if matches!(message, ClientMessage::Attach(_)) {
                        self.trouble();
                        self.clients[at].session = Some(conn.0);
                    }
                    self.send_from_client(at, conn.0, message);
                }
                ClientOutput::Close(conn) => self.close(conn.0, At::Client(at)),
                ClientOutput::Store(ops) => {
                    self.clients[at].stores.push_back(ops);
                    self.run_store(at);
                }
                ClientOutput::Done { request, outcome, tag } => {
                    self.note(format!(
                        "client {at}: request {request} is done at {:?}: {outcome:?}",
                        tag.map(|t| t.lsn)
                    ));
                    self.oracle.on_done(&self.clients[at], at, request, &outcome, tag);
                    if let (Some(key), Outcome::Reply(reply)) = (self.oracle.key_of(at, request), &outcome) {
                        self.saw(at, key, reply);
                    }
                }
                ClientOutput::Result { id, result } => {
                    self.clients[at].queries.remove(&id);
                    self.note(format!("client {at}: query {id} is answered: {result:?}"));
                    if let (Some(key), Ok(result)) = (self.oracle.asked(at, id), &result) {
                        self.saw(at, key, result);
                    }
                    self.oracle.on_result(&self.clients[at], at, id, &result);
                }
                ClientOutput::Flushed(token) => {
                    self.clients[at].flushes.retain(|waiting| *waiting != token);
                    self.oracle.on_flushed(at, token);
                }
                ClientOutput::Event(event) => {
                    self.note(format!("client {at}: {event:?}"));
                    self.mark_client_event(&event);
                    self.clients[at].told.push(event);
                }
                ClientOutput::Endpoints(_) => {}
                ClientOutput::Failed(error) => {
                    self.note(format!("client {at} fails: {error}"));
                    self.oracle.on_failed(at, &error);
                    self.end_client(at);
                    self.replace_client(at);
                }
                ClientOutput::Closed => {
                    self.note(format!("client {at} is closed"));
                    self.oracle.on_closed(at);
                    self.end_client(at);
                }
            }
        }
    }

    fn saw(&mut self, at: usize, key: u8, answer: &Bytes) {
        let register = Register::of(answer);
        self.clients[at].seen.extend(register.map(|register| (key, register.value)));
    }

    fn send_from_client(&mut self, at: usize, id: u64, mut message: ClientMessage) {
        self.mark_from_client(at, id, &message);
        if let ClientMessage::Frame(frame) = &mut message {
            let from = At::Client(at);
            if frame.confirm > 0 {
                let ghost = || Parcel::FromClient(ClientMessage::Frame(frame.clone()));
                self.ghosts.entry((from, frame.epoch)).or_insert_with(ghost);
            }
            if self.plan.queries_first && !frame.writes.is_empty() && !frame.queries.is_empty() {
                let first = ClientFrame {
                    epoch: frame.epoch,
                    confirm: frame.confirm,
                    queries: std::mem::take(&mut frame.queries),
                    ..ClientFrame::default()
                };
                self.send(id, from, Parcel::FromClient(ClientMessage::Frame(first)));
            }
        }
        self.send(id, At::Client(at), Parcel::FromClient(message));
    }

    fn end_client(&mut self, at: usize) {
        self.clients[at].ended = true;
        self.clients[at].core = None;
        self.clients[at].life += 1;
        self.cut_all(At::Client(at));
    }

    /// The application calls.
    fn work(&mut self, at: usize) {
        let life = self.clients[at].life;
        let odd = self.dice.percent(self.plan.odd_calls);
        let query = self.dice.percent(self.plan.queries);
        let key = u8::try_from(self.dice.below(self.plan.keys)).expect("a byte");
        let think = self.dice.below(2 * self.plan.think_us);
        let level = match () {
            () if self.dice.percent(self.plan.stable_writes) => Level::Stable,
            () if self.dice.percent(self.plan.covered_writes) => Level::Covered,
            () => self.dice.pick(&[Level::Local, Level::Tagged]),
        };
        let reader = self.clients[at].role == SessionRole::Reader;
        if self.clients[at].calls_left == 0 {
            if !self.clients[at].closing && self.dice.percent(30) {
                self.clients[at].closing = true;
                self.note(format!("client {at} closes"));
                self.clients[at].core.as_mut().expect("up").close();
                self.flush_client(at);
            }
            return;
        }
        self.clients[at].calls_left -= 1;
        self.serial += 1;
        let seen = self.clients[at].seen.get(&key).copied().unwrap_or_default();
        let padding = usize::try_from(self.dice.below(self.plan.payload_max + 1)).expect("small");
        let (padding, think) = match self.clients[at].habit {
            Habit::Greedy => (1_000 + padding, think % 50),
            Habit::Trickling if !self.healing => (0, 20 * think),
            _ => (padding, think),
        };
        let payload = crate::machine::command(key, self.serial, seen, padding);
        let choice = self.dice.below(if reader { 3 } else { 4 });
        let core = self.clients[at].core.as_mut().expect("up");
        if odd {
            match choice {
                0 => {
                    let token = core.flush();
                    self.clients[at].flushes.push(token);
                    self.oracle.on_flush(at, token);
                }
                1 => {
                    let last = self.oracle.last_request(at);
                    if core.withdraw(last) {
                        self.note(format!("client {at} withdraws {last}"));
                        self.oracle.on_withdraw(at, last);
                    }
                }
                2 => {
                    let forgotten = self.clients[at].queries.pop_first().map(|(id, ())| id);
                    if let (Some(id), Some(core)) = (forgotten, &mut self.clients[at].core) {
                        core.forget_query(id);
                        self.oracle.on_forgotten(at, id);
                    }
                }
                _ => match core.try_write(payload.clone(), level) {
                    Ok(request) => self.oracle.on_write(at, request, payload, level),
                    Err(error) => self.mark_call(&error),
                },
            }
        } else if query || reader {
            if let Ok(id) = core.query(Bytes::copy_from_slice(&[key]), level) {
                self.clients[at].queries.insert(id, ());
                self.oracle.on_query(at, id, key, level);
            }
        } else {
            match core.write(payload.clone(), level) {
                Ok(request) => self.oracle.on_write(at, request, payload, level),
                Err(error) => self.mark_call(&error),
            }
        }
        self.flush_client(at);
        self.after(think, Event::Work { client: at, life });
    }
}

/// Whether a primary that starts goes on in its own epoch.
fn goes_on(primary: &tagalong::primary::Primary) -> bool {
    let state = primary.state();
    let (start, settings, marks) = (state.start(), primary.settings(), primary.marks());
    start.log_before_send
        && settings.log_before_send
        && state.end() > Lsn(0)
        && state.epoch() == marks.promised
        && state.epoch().node == marks.node
        && state.lowest() == settings.lowest
        && marks.reign == marks.promised
        && (start.target == tagalong::log::Target::Own
            || state.reigns_from(state.epoch()).first().is_some_and(|reign| marks.stable >= reign.start))
}

fn brief(parcel: &Parcel) -> String {
    let mut text = format!("{parcel:?}");
    if text.len() > 1_500 {
        text.truncate((0..=1_500).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push('…');
    }
    text
}
