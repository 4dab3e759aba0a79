//! The cores together on a perfect network and perfect disks: the protocol's main story, step by step, readable.
//!
//! Everything is delivered at once and in order. What happens when it is not is the simulator's business.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tagalong::backup::{Backup, BackupSettings};
use tagalong::client::{CacheImage, CacheOp, Client, ClientEvent, ClientInput, ClientOutput, ClientSettings, Identity};
use tagalong::log::{
    ClientId, ClusterId, Epoch, GapPolicy, GroupId, Level, Lsn, NodeId, Record, Request, SessionRole, Time,
};
use tagalong::message::{ClientMessage, Outcome};
use tagalong::node::{Admin, Conn, Input, NodeEvent, Output, RecoveryPolicy};
use tagalong::primary::{Primary, PrimarySettings};
use tagalong::session::LogState;
use tagalong::store::Marks;

enum Core {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
    Dead,
}

/// A node with a perfect disk. Its state machine is a list: a command is appended, its reply is the list so far.
struct Node {
    core: Core,
    log: Vec<Record>,
    saves: u64,
    list: Vec<u8>,
    events: Vec<NodeEvent>,
    halted: bool,
}

struct TestClient {
    core: Client,
    stores: u64,
    done: BTreeMap<Request, Outcome>,
    results: BTreeMap<u64, Bytes>,
    events: Vec<ClientEvent>,
    flushed: Vec<u64>,
    closed: bool,
    dead: bool,
}

struct World {
    now: Time,
    nodes: Vec<Node>,
    clients: Vec<TestClient>,
    /// (to node, input) and (to client, input).
    to_nodes: VecDeque<(usize, Input)>,
    to_clients: VecDeque<(usize, ClientInput)>,
    /// Client streams: conn -> (client, node). The replication stream is conn 1000.
    streams: BTreeMap<Conn, (usize, usize)>,
    cut: Vec<usize>,
    last_conn: u64,
}

const LINK: Conn = Conn(1000);

fn settings(domain: &str) -> PrimarySettings {
    PrimarySettings { domain: domain.to_owned(), suspend_after_us: 1_000_000, ..PrimarySettings::default() }
}

impl World {
    fn new(clients: usize, lowest: Level) -> Self {
        let mut out = Vec::new();
        let now = Time(1_000_000);
        let marks = Marks { cluster: ClusterId(7), group: GroupId(8), node: NodeId(1), ..Marks::default() };
        let primary =
            Primary::new(PrimarySettings { lowest, ..settings("east") }, marks, LogState::new(), now, &mut out)
                .unwrap();
        let mut world = World {
            now,
            nodes: Vec::new(),
            clients: Vec::new(),
            to_nodes: VecDeque::new(),
            to_clients: VecDeque::new(),
            streams: BTreeMap::new(),
            cut: Vec::new(),
            last_conn: 0,
        };
        world.add_node(Core::Primary(Box::new(primary)), out);
        let mut out = Vec::new();
        let marks = Marks { node: NodeId(2), ..Marks::default() };
        let west = BackupSettings {
            domain: "west".to_owned(),
            endpoint: String::new(),
            primary: PrimarySettings { lowest, ..settings("west") },
        };
        let backup = Backup::new(west, marks, LogState::new(), now, &mut out).unwrap();
        world.add_node(Core::Backup(Box::new(backup)), out);
        world.to_nodes.push_back((1, Input::Linked(LINK)));
        world.run();
        for number in 0..clients {
            world.add_client(number);
        }
        world.run();
        world
    }

    fn add_node(&mut self, core: Core, out: Vec<Output>) {
        let node = Node { core, log: Vec::new(), saves: 0, list: Vec::new(), events: Vec::new(), halted: false };
        self.nodes.push(node);
        self.carry_out(self.nodes.len() - 1, out);
    }

    fn add_client(&mut self, number: usize) {
        let identity = Identity {
            client: ClientId(100 + number as u128),
            cluster: None,
            group: None,
            domain: format!("rack-{number}"),
            role: SessionRole::Writer,
        };
        let mut image = CacheImage::default();
        image.apply(&CacheOp::Identity(identity));
        let mut out = Vec::new();
        let core = Client::new(ClientSettings::default(), image, self.now, &mut out);
        let client = TestClient {
            core,
            stores: 0,
            done: BTreeMap::new(),
            results: BTreeMap::new(),
            events: Vec::new(),
            flushed: Vec::new(),
            closed: false,
            dead: false,
        };
        self.clients.push(client);
        self.carry_out_client(number, out);
        for node in 0..2 {
            self.connect(number, node);
        }
    }

    fn connect(&mut self, client: usize, node: usize) {
        self.last_conn += 1;
        let conn = Conn(self.last_conn);
        self.streams.insert(conn, (client, node));
        self.to_clients.push_back((client, ClientInput::Connected(conn)));
    }

    fn carry_out(&mut self, at: usize, out: Vec<Output>) {
        let mut more = VecDeque::from(out);
        while let Some(output) = more.pop_front() {
            let node = &mut self.nodes[at];
            match output {
                Output::ToClient(conn, message) => {
                    if let Some((client, _)) = self.streams.get(&conn)
                        && !self.cut.contains(&at)
                    {
                        self.to_clients.push_back((*client, ClientInput::Message(conn, message)));
                    }
                }
                Output::ToBackup(_, message) if !self.cut.contains(&0) => {
                    self.to_nodes.push_back((1, Input::FromPrimary(LINK, message)));
                }
                Output::ToPrimary(_, message) if !self.cut.contains(&0) => {
                    self.to_nodes.push_back((0, Input::FromBackup(LINK, message)));
                }
                Output::ToBackup(..) | Output::ToPrimary(..) | Output::Close(_) => {}
                Output::Append(records) => {
                    node.log.extend(records);
                    let last = node.log.last().unwrap().lsn();
                    self.to_nodes.push_back((at, Input::Persisted(last)));
                }
                Output::Truncate(last) => node.log.retain(|record| record.lsn() <= last),
                Output::SaveMarks(_) => {
                    node.saves += 1;
                    self.to_nodes.push_back((at, Input::MarksSaved(node.saves)));
                }
                Output::Execute { commands, queries } => {
                    let replies = commands.iter().map(|entry| {
                        node.list.extend_from_slice(&entry.payload);
                        Bytes::copy_from_slice(&node.list)
                    });
                    let replies = replies.collect();
                    let results = queries.iter().map(|_| Bytes::copy_from_slice(&node.list)).collect();
                    self.to_nodes.push_front((at, Input::Executed { replies, results }));
                }
                Output::Read { conn, from, .. } => {
                    let records = node.log.iter().filter(|record| record.lsn() >= from).take(3).cloned().collect();
                    self.to_nodes.push_back((at, Input::Read { conn, records }));
                }
                Output::Judge { entries, .. } => {
                    self.to_nodes.push_back((at, Input::Judged(vec![true; entries.len()])));
                }
                Output::AdminDone(done) => done.unwrap(),
                Output::Event(event) => node.events.push(event),
                Output::Promote => {
                    let Core::Backup(backup) = std::mem::replace(&mut node.core, Core::Dead) else { panic!() };
                    let mut out = Vec::new();
                    let primary = backup.into_primary(self.now, &mut out);
                    node.core = Core::Primary(Box::new(primary));
                    more.extend(out);
                }
                Output::Halt(error) => {
                    node.halted = true;
                    panic!("node {at} halted: {error}");
                }
            }
        }
    }

    fn carry_out_client(&mut self, at: usize, out: Vec<ClientOutput>) {
        for output in out {
            let client = &mut self.clients[at];
            match output {
                ClientOutput::Send(conn, message) => {
                    if let Some((_, node)) = self.streams.get(&conn)
                        && !self.cut.contains(node)
                    {
                        self.to_nodes.push_back((*node, Input::Client(conn, message)));
                    }
                }
                ClientOutput::Close(conn) => {
                    if let Some((_, node)) = self.streams.remove(&conn) {
                        self.to_nodes.push_back((node, Input::Gone(conn)));
                        self.to_clients.push_back((at, ClientInput::Gone(conn)));
                    }
                }
                ClientOutput::Store(_) => {
                    client.stores += 1;
                    self.to_clients.push_back((at, ClientInput::Stored(client.stores)));
                }
                ClientOutput::Done { request, outcome, .. } => {
                    assert!(client.done.insert(request, outcome).is_none(), "I6: one outcome");
                }
                ClientOutput::Result { id, result } => {
                    client.results.insert(id, result.unwrap());
                }
                ClientOutput::Flushed(token) => client.flushed.push(token),
                ClientOutput::Event(event) => client.events.push(event),
                ClientOutput::Endpoints(_) => {}
                ClientOutput::Failed(error) => panic!("client {at}: {error}"),
                ClientOutput::Closed => client.closed = true,
            }
        }
    }

    fn step_node(&mut self, at: usize, input: Input) {
        let mut out = Vec::new();
        let now = self.now;
        match &mut self.nodes[at].core {
            Core::Primary(core) => core.step(now, input, &mut out),
            Core::Backup(core) => core.step(now, input, &mut out),
            Core::Dead => {}
        }
        self.carry_out(at, out);
    }

    fn step_client(&mut self, at: usize, input: ClientInput) {
        let mut out = Vec::new();
        if !self.clients[at].dead {
            self.clients[at].core.step(self.now, input, &mut out);
        }
        self.carry_out_client(at, out);
    }

    /// Delivers everything, flushes everybody, and moves the clock, until nothing is under way for two seconds.
    fn run(&mut self) {
        for _ in 0..200 {
            for _ in 0..10_000 {
                if let Some((at, input)) = self.to_nodes.pop_front() {
                    self.step_node(at, input);
                } else if let Some((at, input)) = self.to_clients.pop_front() {
                    self.step_client(at, input);
                } else {
                    (0..self.nodes.len()).for_each(|at| self.step_node(at, Input::Flush));
                    (0..self.clients.len()).for_each(|at| self.step_client(at, ClientInput::Flush));
                    if self.to_nodes.is_empty() && self.to_clients.is_empty() {
                        break;
                    }
                }
            }
            self.now = self.now.after(10_000);
            (0..self.nodes.len()).for_each(|at| self.step_node(at, Input::Tick));
            (0..self.clients.len()).for_each(|at| self.step_client(at, ClientInput::Tick));
        }
    }

    fn write(&mut self, client: usize, text: &str) -> Request {
        self.clients[client].core.write(Bytes::copy_from_slice(text.as_bytes()), Level::Local).unwrap()
    }

    fn reply(&self, client: usize, request: Request) -> Option<String> {
        match self.clients[client].done.get(&request)? {
            Outcome::Reply(reply) => Some(String::from_utf8(reply.to_vec()).unwrap()),
            _ => Some("superseded".to_owned()),
        }
    }

    /// The primary's site is gone, at once.
    fn lose_primary(&mut self) {
        self.nodes[0].core = Core::Dead;
        self.cut.push(0);
        let gone: Vec<Conn> = self.streams.iter().filter(|(_, (_, node))| *node == 0).map(|(conn, _)| *conn).collect();
        for conn in gone {
            let (client, _) = self.streams.remove(&conn).unwrap();
            self.to_clients.push_back((client, ClientInput::Gone(conn)));
        }
        self.to_nodes.push_back((1, Input::Gone(LINK)));
    }

    fn promote(&mut self, policy: RecoveryPolicy) {
        self.to_nodes.push_back((1, Input::Admin(Admin::Promote { force: false, policy })));
        self.run();
    }

    fn opened(&self, node: usize) -> Option<tagalong::log::EpochStart> {
        self.nodes[node].events.iter().rev().find_map(|event| match event {
            NodeEvent::Opened { report, .. } => Some((**report).clone()),
            _ => None,
        })
    }

    fn list(&self, node: usize) -> String {
        String::from_utf8(self.nodes[node].list.clone()).unwrap()
    }
}

#[test]
fn plain_writes_are_answered_replicated_and_released() {
    let mut world = World::new(2, Level::Tagged);
    let a = world.write(0, "a");
    let b = world.write(1, "b");
    let token = world.clients[0].core.flush();
    let query = world.clients[1].core.query(Bytes::new(), Level::Local).unwrap();
    world.run();
    assert_eq!(world.reply(0, a).as_deref(), Some("a"));
    assert_eq!(world.reply(1, b).as_deref(), Some("ab"));
    assert_eq!(world.clients[1].results[&query], "ab");
    assert_eq!(world.clients[0].flushed, [token]);
    assert_eq!(world.list(1), "ab", "the backup applied them too");
    assert!(world.clients.iter().all(|client| client.core.image().commands.is_empty()), "I9: everything is released");
    assert!(world.nodes[0].events.contains(&NodeEvent::InSync));
}

/// Writes that the backup never saw, lost with the primary's site, come back from the clients.
#[test]
fn a_disaster_loses_nothing() {
    let mut world = World::new(3, Level::Tagged);
    world.write(0, "a");
    world.run();
    world.cut_link();
    let requests: Vec<_> =
        [(0, "b"), (1, "c"), (2, "d"), (0, "e")].map(|(client, text)| (client, world.write(client, text))).into();
    world.run();
    assert_eq!(world.list(1), "a", "the backup has not seen them");
    let before: Vec<_> = requests.iter().map(|(client, request)| world.reply(*client, *request)).collect();
    assert!(before.iter().all(Option::is_some), "acknowledged at once: {before:?}");
    let list = world.list(0);
    world.lose_primary();
    world.promote(RecoveryPolicy::Wait);
    let report = world.opened(1).expect("recovered");
    assert_eq!((report.missing, report.gaps, report.policy), (vec![], vec![], None));
    assert_eq!(world.list(1), list, "I5: the very same order");
    let after = world.write(1, "f");
    world.run();
    assert_eq!(world.reply(1, after), Some(format!("{list}f")));
    assert!(world.clients.iter().all(|client| client.core.image().commands.is_empty()), "I9: everything is released");
}

impl World {
    fn cut_link(&mut self) {
        self.to_nodes.push_back((0, Input::Gone(LINK)));
        self.to_nodes.push_back((1, Input::Gone(LINK)));
        self.run();
    }
}

#[test]
fn a_client_that_does_not_come_is_named_and_waited_for() {
    let mut world = World::new(3, Level::Tagged);
    world.cut_link();
    world.write(0, "a");
    world.run();
    let lost = world.write(1, "b");
    world.run();
    world.write(2, "c");
    world.run();
    world.clients[1].dead = true;
    world.lose_primary();
    world.promote(RecoveryPolicy::Wait);
    assert!(world.opened(1).is_none(), "Wait waits");
    let Core::Primary(core) = &world.nodes[1].core else { panic!() };
    let status = core.status(world.now).recovery.expect("recovering");
    assert_eq!(status.awaited, [ClientId(101)]);
    assert_eq!(status.missing.len(), 1, "{status:?}");
    world.to_nodes.push_back((1, Input::Admin(Admin::Resolve(GapPolicy::Stop))));
    world.run();
    let report = world.opened(1).expect("resolved");
    assert_eq!((report.missing, report.policy), (vec![ClientId(101)], Some(GapPolicy::Stop)));
    assert_eq!(world.list(1), "a");
    let told = &world.clients[2].events;
    assert!(told.iter().any(|event| matches!(event, ClientEvent::Superseded { .. })), "I10: {told:?}");
    assert!(told.iter().any(|event| matches!(event, ClientEvent::RolledBack { .. })), "I10: {told:?}");
    // The late client comes back, is told, and goes on.
    world.clients[1].dead = false;
    for (conn, _) in world.streams.clone().iter().filter(|(_, (client, _))| *client == 1) {
        world.to_clients.push_back((1, ClientInput::Gone(*conn)));
    }
    world.streams.retain(|_, (client, _)| *client != 1);
    let conn = Conn(500);
    world.streams.insert(conn, (1, 1));
    world.to_clients.push_back((1, ClientInput::Connected(conn)));
    world.run();
    let told = &world.clients[1].events;
    let superseded = |event: &ClientEvent| matches!(event, ClientEvent::Superseded { request, .. } if *request == lost);
    assert!(told.iter().any(superseded), "I10: {told:?}");
    let again = world.write(1, "b");
    world.run();
    assert_eq!(world.reply(1, again).as_deref(), Some("ab"));
}

#[test]
fn a_session_that_went_away_in_time_is_not_waited_for() {
    let mut world = World::new(2, Level::Tagged);
    world.write(0, "a");
    world.write(1, "b");
    world.run();
    world.clients[1].dead = true;
    for (conn, (_, node)) in world.streams.clone().into_iter().filter(|(_, (client, _))| *client == 1) {
        world.streams.remove(&conn);
        world.to_nodes.push_back((node, Input::Gone(conn)));
    }
    world.run();
    world.run();
    world.lose_primary();
    world.promote(RecoveryPolicy::Wait);
    let report = world.opened(1).expect("nobody is missed");
    assert!(report.missing.is_empty());
}

#[test]
fn a_close_is_answered_when_stable() {
    let mut world = World::new(1, Level::Tagged);
    world.write(0, "a");
    world.clients[0].core.close();
    world.run();
    assert!(world.clients[0].closed, "{:?}", world.clients[0].events);
    assert_eq!(world.reply(0, Request(1)).as_deref(), Some("a"));
}

#[test]
fn a_stable_service_needs_nobody() {
    let mut world = World::new(2, Level::Stable);
    let a = world.write(0, "a");
    let query = world.clients[1].core.query(Bytes::new(), Level::Local).unwrap();
    world.run();
    assert_eq!(world.reply(0, a).as_deref(), Some("a"));
    assert_eq!(world.clients[1].results[&query], "a", "echoed by the backup");
    world.cut_link();
    let b = world.write(0, "b");
    let query = world.clients[1].core.query(Bytes::new(), Level::Local).unwrap();
    world.run();
    assert_eq!(world.reply(0, b), None, "no reply without the backup");
    assert!(!world.clients[1].results.contains_key(&query), "no read without its echo");
    world.clients.iter_mut().for_each(|client| client.dead = true);
    world.lose_primary();
    world.promote(RecoveryPolicy::Wait);
    assert!(world.opened(1).is_some());
    assert_eq!(world.list(1), "a");
}

#[test]
fn a_hello_of_another_cluster_is_refused() {
    let mut world = World::new(1, Level::Tagged);
    let hello = tagalong::message::Hello {
        version: tagalong::message::VERSION,
        features: 0,
        cluster: Some(ClusterId(666)),
        group: Some(GroupId(8)),
        epoch: Epoch::ZERO,
    };
    let mut out = Vec::new();
    let Core::Primary(core) = &mut world.nodes[0].core else { panic!() };
    core.step(world.now, Input::Client(Conn(77), ClientMessage::Hello(hello)), &mut out);
    let refused = |output: &Output| matches!(output, Output::ToClient(_, tagalong::message::NodeMessage::Refused(error)) if error.code() == tagalong::Code::WrongCluster);
    assert!(out.iter().any(refused), "{out:?}");
    assert!(core.watermarks().head() > Lsn(0));
}
