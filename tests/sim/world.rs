//! The world: clock, events, and what happens when. What nodes, streams and clients do in it is in the submodules.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use tagalong::client::ClientInput;
use tagalong::log::Epoch;
use tagalong::node::{Conn, Input};
use tagalong::rule::Rule;

use crate::client::SimClient;
use crate::dice::Dice;
use crate::marks::Marks;
use crate::network::{At, Parcel, Stream};
use crate::node::Node;
use crate::oracle::Oracle;
use crate::plan::Plan;

mod clients;
mod nodes;
mod streams;

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
    Disaster,
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
    /// Which of them begin or end where.
    ends: BTreeMap<At, BTreeSet<u64>>,
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
const STEPS_EACH: u64 = 10_000;

impl World {
    /// `crowd`: with so many clients, the seeds taking turns in how many failure domains are covered.
    pub fn new(seed: u64, bias: Option<Rule>, crowd: Option<usize>, trace: bool) -> Self {
        let mut dice = Dice::new(seed);
        let mut plan = Plan::new(&mut dice, bias);
        if let Some(clients) = crowd {
            plan = plan.crowd(clients, seed.to_le_bytes()[0] % 3, &mut dice);
        }
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
            ends: BTreeMap::new(),
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
            let calls = world.some_calls();
            world.add_client(calls);
        }
        if let Some((at, _)) = world.plan.disaster {
            world.after(at, Event::Disaster);
        }
        let first = world.plan.calm_until;
        world.after(first, Event::Fault);
        world.after(10_000, Event::Operate);
        world
    }

    pub fn run(&mut self) {
        let start = self.now;
        let heal_at = start + self.plan.heal_at;
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
            if self.now > heal_at + HEALING_US || self.steps > STEPS_MAX + STEPS_EACH * self.clients.len() as u64 {
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
            Event::Disaster => self.plan.disaster.into_iter().for_each(|(_, fault)| self.do_fault(fault)),
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
}
