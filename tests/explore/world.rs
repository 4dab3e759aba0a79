//! The world: processes with their disks and caches, and the streams between them. Everything in it is a value.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use tagalong::backup::{Backup, BackupSettings};
use tagalong::client::{CacheImage, CacheOp, Client, ClientSettings, Identity};
use tagalong::log::{Body, ClientId, ClusterId, Entry, Epoch, GroupId, Lsn, NodeId, Record, SessionRole, Time};
use tagalong::message::{BackupMessage, ClientFrame, ClientMessage, NodeMessage, PrimaryMessage};
use tagalong::node::{Conn, Input};
use tagalong::primary::{Primary, PrimarySettings};
use tagalong::recovery::provisional_cut;
use tagalong::session::LogState;
use tagalong::store::Marks;

use crate::oracle::{Oracle, View};
use crate::plan::{Faults, Plan};
use crate::print::Part;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum At {
    Client(usize),
    Node(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Core {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
    Down,
}

/// What a disk was asked for and has not done yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Append(Vec<Record>),
    Truncate(Lsn),
    Marks(Box<Marks>),
    Read(Conn, Lsn),
}

/// A node. Its state machine is a list: a command is appended, its reply is the list so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub id: NodeId,
    pub core: Core,
    /// What is on the disk for certain.
    pub marks: Marks,
    pub log: Vec<Record>,
    pub saves: u64,
    /// What is to become of it, in order; a crash keeps a prefix.
    pub queue: VecDeque<Operation>,
    pub list: Vec<u8>,
    /// What the state machine is asked for, where it takes its time.
    pub task: Option<(Vec<Entry>, usize)>,
    /// It has inputs that it did not flush.
    pub flush_due: bool,
    pub founder: bool,
    pub follows: Option<usize>,
    pub lost: bool,
    /// Its reign, from its `EpochStart` on.
    pub serving: Option<Epoch>,
    pub ghost: Option<Box<PrimaryMessage>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub id: ClientId,
    pub core: Option<Client>,
    pub stored: CacheImage,
    pub stores: VecDeque<Vec<CacheOp>>,
    pub stores_done: u64,
    /// How many calls of its script were made.
    pub called: usize,
    pub ended: bool,
    pub lost: bool,
    /// The stream of its last attach.
    pub session: Option<u64>,
    pub view: View,
    pub ghost: Option<Box<ClientFrame>>,
    /// Its cache as it was when the exploration began, where it may go back to that.
    pub older: Option<Box<CacheImage>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Parcel {
    FromClient(ClientMessage),
    /// With the newest reign that had opened when it was sent.
    FromNode(NodeMessage, Epoch),
    FromBackup(BackupMessage),
    FromPrimary(PrimaryMessage),
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct End {
    pub at: At,
    /// Its process has the stream, and was not told yet that it is gone.
    pub open: bool,
    /// Nothing more comes after what is on its way.
    pub broken: bool,
    pub inbox: VecDeque<Parcel>,
}

/// Side 0 dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    pub ends: [End; 2],
}

/// A plan is no part of the state.
#[derive(Clone)]
pub struct Fixed(pub Arc<Plan>);

impl Hash for Fixed {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl PartialEq for Fixed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Fixed {}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub plan: Fixed,
    pub now: u64,
    pub nodes: Vec<Part<Node>>,
    pub clients: Vec<Part<Member>>,
    pub streams: BTreeMap<u64, Part<Stream>>,
    /// How often each pair was connected.
    pub dials: BTreeMap<(At, usize), u8>,
    pub left: Faults,
    /// What comes before is done.
    pub exploring: bool,
    pub oracle: Part<Oracle>,
    pub violation: Option<(&'static str, String)>,
}

impl Node {
    pub fn primary(&self) -> Option<&Primary> {
        if let Core::Primary(core) = &self.core { Some(core) } else { None }
    }

    pub fn backup(&self) -> Option<&Backup> {
        if let Core::Backup(core) = &self.core { Some(core) } else { None }
    }

    pub fn is_up(&self) -> bool {
        !matches!(self.core, Core::Down)
    }

    /// The last LSN on its disk.
    pub fn durable(&self) -> Lsn {
        Lsn(self.log.len() as u64)
    }

    pub fn execute(&mut self, commands: &[Entry]) -> Vec<Bytes> {
        let reply = |entry: &Entry| {
            self.list.extend_from_slice(&entry.payload);
            Bytes::copy_from_slice(&self.list)
        };
        commands.iter().map(reply).collect()
    }

    /// The state machine does what it was asked for.
    pub fn work(&mut self) -> Option<Input> {
        let (commands, queries) = self.task.take()?;
        let replies = self.execute(&commands);
        let results = (0..queries).map(|_| Bytes::copy_from_slice(&self.list)).collect();
        Some(Input::Executed { replies, results })
    }

    /// The oldest thing on its way to the disk is done.
    pub fn complete(&mut self) -> Option<Input> {
        match self.queue.pop_front()? {
            Operation::Append(records) => {
                self.log.extend(records);
                Some(Input::Persisted(self.durable()))
            }
            Operation::Truncate(last) => {
                self.log.retain(|record| record.lsn() <= last);
                None
            }
            Operation::Marks(marks) => {
                self.marks = *marks;
                self.saves += 1;
                Some(Input::MarksSaved(self.saves))
            }
            Operation::Read(conn, from) => {
                let records = self.log.iter().filter(|record| record.lsn() >= from).cloned().collect();
                Some(Input::Read { conn, records })
            }
        }
    }
}

impl Member {
    fn new(number: usize, domain: String) -> Self {
        let id = ClientId(100 + number as u128);
        let identity = Identity { client: id, cluster: None, group: None, domain, role: SessionRole::Writer };
        let mut stored = CacheImage::default();
        stored.apply(&CacheOp::Identity(identity));
        Self {
            id,
            core: None,
            stored,
            stores: VecDeque::new(),
            stores_done: 0,
            called: 0,
            ended: false,
            lost: false,
            session: None,
            view: View::default(),
            ghost: None,
            older: None,
        }
    }

    pub fn is_live(&self) -> bool {
        !self.ended && !self.lost
    }

    /// What it certainly still has.
    pub fn image(&self, volatile: bool) -> &CacheImage {
        match &self.core {
            Some(core) if volatile => core.image(),
            _ => &self.stored,
        }
    }
}

impl World {
    /// Nodes and clients, as far as the plan has them ready.
    pub fn new(plan: &Arc<Plan>) -> Self {
        let mut world = Self {
            plan: Fixed(plan.clone()),
            now: 1_000_000,
            nodes: Vec::new(),
            clients: Vec::new(),
            streams: BTreeMap::new(),
            dials: BTreeMap::new(),
            left: Faults::default(),
            exploring: false,
            oracle: Part::new(Oracle::new(&plan.primary)),
            violation: None,
        };
        world.add_node(true, None);
        world.settle();
        if plan.backup {
            world.add_node(false, Some(0));
            if plan.attached {
                world.dial(At::Node(1), 0);
                world.settle();
            }
        }
        for number in 0..plan.scripts.len() {
            world.clients.push(Part::new(Member::new(number, plan.domain(number))));
            world.start_client(number);
            if number < plan.joined {
                (0..world.nodes.len()).for_each(|node| world.dial(At::Client(number), node));
                world.settle();
            }
        }
        world.settle();
        (plan.begin)(&mut world);
        world.left = plan.faults;
        world.exploring = true;
        for client in &mut world.clients {
            let client = client.edit();
            client.ghost = None;
            client.older = (plan.faults.tears > 0).then(|| Box::new(client.stored.clone()));
        }
        world.nodes.iter_mut().for_each(|node| node.edit().ghost = None);
        world
    }

    pub fn violate(&mut self, invariant: &'static str, what: String) {
        if self.violation.is_none() {
            self.violation = Some((invariant, what));
        }
    }

    pub fn add_node(&mut self, founder: bool, follows: Option<usize>) {
        let id = NodeId(self.nodes.len() as u64 + 1);
        let (cluster, group) = if founder { (ClusterId(7), GroupId(8)) } else { Default::default() };
        self.nodes.push(Part::new(Node {
            id,
            core: Core::Down,
            marks: Marks { cluster, group, node: id, ..Marks::default() },
            log: Vec::new(),
            saves: 0,
            queue: VecDeque::new(),
            list: Vec::new(),
            task: None,
            flush_due: false,
            founder,
            follows,
            lost: false,
            serving: None,
            ghost: None,
        }));
        self.start_node(self.nodes.len() - 1);
    }

    fn domain_of_node(at: usize) -> String {
        ["east", "west", "north"][at].to_owned()
    }

    /// The start as a shell does it: cut what is provisional, replay the log, and build the core that the marks ask for.
    pub fn start_node(&mut self, at: usize) {
        let settings = PrimarySettings { domain: Self::domain_of_node(at), ..self.plan.0.primary.clone() };
        let now = Time(self.now);
        let node = self.nodes[at].edit();
        (node.saves, node.list, node.serving, node.task) = (0, Vec::new(), None, None);
        node.flush_due = false;
        let after = node.log.iter().filter(|record| record.lsn() > node.marks.base);
        if let Some(cut) = provisional_cut(&node.marks, after.map(|record| &record.entry.header)) {
            node.log.retain(|record| record.lsn() <= cut);
        }
        let mut state = LogState::new();
        for record in node.log.clone() {
            let command = record.entry.header.body == Body::Command;
            let reply = command.then(|| node.execute(std::slice::from_ref(&record.entry)).remove(0));
            if let Err(error) = state.apply(&record, reply) {
                self.violate("start", format!("node {at} does not start on its own log: {error}"));
                return;
            }
        }
        let mut out = Vec::new();
        let marks = node.marks.clone();
        let core = if node.founder || marks.promised.node == node.id {
            Primary::new(settings, marks, state, now, &mut out).map(|core| Core::Primary(Box::new(core)))
        } else {
            let settings = BackupSettings { domain: Self::domain_of_node(at), primary: settings, ..Default::default() };
            Backup::new(settings, marks, state, now, &mut out).map(|core| Core::Backup(Box::new(core)))
        };
        match core {
            Ok(core) => node.core = core,
            Err(error) => self.violate("start", format!("node {at} does not start: {error}")),
        }
        self.on_node_start(at);
        self.go_on_node(at, VecDeque::new(), out);
    }

    pub fn start_client(&mut self, at: usize) {
        let settings = ClientSettings { confirm_delay_us: 0, volatile: self.plan.0.volatile, ..Default::default() };
        let mut out = Vec::new();
        let now = Time(self.now);
        let member = self.clients[at].edit();
        (member.stores, member.stores_done, member.session) = (VecDeque::new(), 0, None);
        member.core = Some(Client::new(settings, member.stored.clone(), now, &mut out));
        member.view.on_start(&member.stored);
        self.go_on_client(at, VecDeque::new(), out);
    }

    // Streams.

    /// The number of a stream says between whom it is, and the how manieth: no order of events is in it.
    pub fn dial(&mut self, from: At, to: usize) {
        let count = self.dials.entry((from, to)).or_default();
        *count += 1;
        let number = match from {
            At::Client(client) => client as u64,
            At::Node(node) => 16 + node as u64,
        };
        let id = ((number + 1) * 8 + to as u64) * 64 + u64::from(*count);
        let end = |at| End { at, open: true, broken: false, inbox: VecDeque::new() };
        self.streams.insert(id, Part::new(Stream { ends: [end(from), end(At::Node(to))] }));
        match from {
            At::Client(client) => {
                self.step_client(client, tagalong::client::ClientInput::Connected(Conn(id)));
            }
            At::Node(node) => self.step_node(node, Input::Linked(Conn(id))),
        }
    }

    /// Whether this process has a stream to that node, or believes so.
    pub fn linked(&self, from: At, to: usize) -> bool {
        let mut streams = self.streams.values();
        streams.any(|stream| stream.ends[0].at == from && stream.ends[1].at == At::Node(to) && stream.ends[0].open)
    }

    /// Who is at the other end of a stream.
    pub fn peer(&self, conn: Conn, of: At) -> Option<At> {
        let stream = self.streams.get(&conn.0)?;
        let side = usize::from(stream.ends[0].at == of);
        Some(stream.ends[side].at)
    }

    pub fn send(&mut self, conn: Conn, from: At, parcel: Parcel) {
        let Some(stream) = self.streams.get_mut(&conn.0) else { return };
        let side = usize::from(stream.ends[0].at == from);
        if stream.ends[1 - side].at == from
            && stream.ends[1 - side].open
            && stream.ends[side].open
            && !stream.ends[side].broken
        {
            stream.edit().ends[side].inbox.push_back(parcel);
        }
    }

    /// One side ends a stream, after what it sent on it. `true` if it still had it.
    pub fn close(&mut self, conn: Conn, by: At) -> bool {
        let Some(stream) = self.streams.get_mut(&conn.0) else { return false };
        let side = usize::from(stream.ends[1].at == by);
        if stream.ends[side].at != by || !stream.ends[side].open {
            return false;
        }
        let ends = &mut stream.edit().ends;
        (ends[side].open, ends[side].broken) = (false, true);
        ends[side].inbox.clear();
        self.hang_up(conn.0, 1 - side, false);
        true
    }

    /// Tells this side that its stream is gone, after what is on its way, or instead of it.
    fn hang_up(&mut self, id: u64, side: usize, lossy: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let end = &mut stream.edit().ends[side];
        if lossy && end.open {
            end.inbox.clear();
            end.broken = false;
        }
        if end.open && !end.broken {
            end.broken = true;
            end.inbox.push_back(Parcel::Gone);
        }
        self.sweep(id);
    }

    pub fn sweep(&mut self, id: u64) {
        if self.streams.get(&id).is_some_and(|stream| stream.ends.iter().all(|end| !end.open)) {
            self.streams.remove(&id);
        }
    }

    /// Breaks a stream. Either everything on its way still arrives, or nothing.
    pub fn break_stream(&mut self, id: u64, lossy: bool) {
        self.hang_up(id, 0, lossy);
        self.hang_up(id, 1, lossy);
    }

    /// A process is gone, and its streams with it.
    pub fn cut_all(&mut self, at: At, lossy: bool) {
        let ids = self.streams.iter().filter(|(_, stream)| stream.ends.iter().any(|end| end.at == at && end.open));
        for id in ids.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let side = usize::from(stream.ends[1].at == at);
            let own = &mut stream.edit().ends[side];
            (own.open, own.broken) = (false, true);
            own.inbox.clear();
            self.hang_up(id, 1 - side, lossy);
        }
    }
}
