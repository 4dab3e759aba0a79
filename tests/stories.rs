//! Bugs that were found by looking for them, each with its story: an interleaving, or a peer's input, that the simulator
//! does not make. Nodes and clients are the cores on a perfect network; disks stand still, and processes die, on demand.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tagalong::backup::{Backup, BackupSettings};
use tagalong::client::{CacheImage, CacheOp, Client, ClientEvent, ClientInput, ClientOutput, ClientSettings, Identity};
use tagalong::error::Code;
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Epoch, EpochStart, GapPolicy, GroupId, Header, Level, Lsn, NodeId, Origin,
    Places, Placing, Record, Request, SessionInfo, SessionRole, Target, Time,
};
use tagalong::message::{
    Attach, BackupMessage, ClientFrame, ClientMessage, Hello, NodeMessage, Outcome, Payloads, PeerHello,
    PrimaryMessage, Report, ReportItem, Role, VERSION, Write,
};
use tagalong::node::{Admin, Conn, Input, NodeEvent, Output, RecoveryPolicy};
use tagalong::primary::{Primary, PrimarySettings, Privacy};
use tagalong::recovery::{Next, Recovery, provisional_cut};
use tagalong::session::LogState;
use tagalong::share::body::{self, Plain};
use tagalong::share::cover::{Cover, CoverSettings};
use tagalong::share::{Mode, Share};
use tagalong::store::Marks;

enum Core {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
    Down,
}

/// A node. Its state machine is a list: a command is appended, its reply is the list so far.
struct Node {
    core: Core,
    marks: Marks,
    log: Vec<Record>,
    synced: usize,
    saves: u64,
    list: Vec<u8>,
    events: Vec<NodeEvent>,
    /// Nothing more becomes durable.
    stalled: bool,
    /// What it sends its backup gets lost from now on, but for promises and fetches.
    mute: bool,
}

struct Member {
    core: Client,
    stores: u64,
    done: BTreeMap<Request, Outcome>,
    /// Queries that were answered, and flushes that were done.
    results: Vec<u64>,
    flushed: Vec<u64>,
    events: Vec<ClientEvent>,
    dead: bool,
}

struct World {
    now: Time,
    nodes: Vec<Node>,
    clients: Vec<Member>,
    to_nodes: VecDeque<(usize, Input)>,
    to_clients: VecDeque<(usize, ClientInput)>,
    /// Client streams.
    streams: BTreeMap<Conn, (usize, usize)>,
    /// The replication stream: from this backup to this primary.
    link: Option<(Conn, usize, usize)>,
    conns: u64,
}

fn settings(domain: &str) -> PrimarySettings {
    PrimarySettings { domain: domain.to_owned(), suspend_after_us: 1_000_000, ..PrimarySettings::default() }
}

impl World {
    /// A primary, a backup in sync, and clients.
    fn new(clients: usize) -> Self {
        Self::serving(clients, settings)
    }

    /// The same, with other settings.
    fn serving(clients: usize, settings: fn(&str) -> PrimarySettings) -> Self {
        let mut world = Self {
            now: Time(1_000_000),
            nodes: Vec::new(),
            clients: Vec::new(),
            to_nodes: VecDeque::new(),
            to_clients: VecDeque::new(),
            streams: BTreeMap::new(),
            link: None,
            conns: 0,
        };
        for node in [1, 2] {
            let (cluster, group) = if node == 1 { (ClusterId(7), GroupId(8)) } else { Default::default() };
            let marks = Marks { cluster, group, node: NodeId(node), ..Marks::default() };
            world.nodes.push(Node {
                core: Core::Down,
                marks,
                log: Vec::new(),
                synced: 0,
                saves: 0,
                list: Vec::new(),
                events: Vec::new(),
                stalled: false,
                mute: false,
            });
        }
        world.start_primary(0, settings("east"));
        let west = BackupSettings { domain: "west".to_owned(), primary: settings("west"), ..BackupSettings::default() };
        let mut out = Vec::new();
        let backup = Backup::new(west, world.nodes[1].marks.clone(), LogState::new(), world.now, &mut out).unwrap();
        world.nodes[1].core = Core::Backup(Box::new(backup));
        world.connect_link();
        world.run();
        for number in 0..clients {
            world.add_client(number);
        }
        world.run();
        assert!(world.nodes[1].marks.in_sync);
        world
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
        self.clients.push(Member {
            core,
            stores: 0,
            done: BTreeMap::new(),
            results: Vec::new(),
            flushed: Vec::new(),
            events: Vec::new(),
            dead: false,
        });
        self.carry_out_client(number, out);
        (0..self.nodes.len()).for_each(|node| self.connect(number, node));
    }

    fn connect(&mut self, client: usize, node: usize) {
        if !self.clients[client].dead && !matches!(self.nodes[node].core, Core::Down) {
            self.conns += 1;
            self.streams.insert(Conn(self.conns), (client, node));
            self.to_clients.push_back((client, ClientInput::Connected(Conn(self.conns))));
        }
    }

    fn connect_link(&mut self) {
        self.conns += 1;
        self.link = Some((Conn(self.conns), 1, 0));
        self.to_nodes.push_back((1, Input::Linked(Conn(self.conns))));
    }

    fn cut_link(&mut self) {
        if let Some((conn, backup, primary)) = self.link.take() {
            self.to_nodes.push_back((backup, Input::Gone(conn)));
            self.to_nodes.push_back((primary, Input::Gone(conn)));
        }
        self.run();
    }

    fn cut_client(&mut self, client: usize) {
        for (conn, (_, node)) in self.streams.clone().into_iter().filter(|(_, (at, _))| *at == client) {
            self.streams.remove(&conn);
            self.to_nodes.push_back((node, Input::Gone(conn)));
            self.to_clients.push_back((client, ClientInput::Gone(conn)));
        }
    }

    /// The client's process dies, and its cache with it.
    fn kill_client(&mut self, client: usize) {
        self.clients[client].dead = true;
        self.cut_client(client);
        self.run();
    }

    /// A node's process dies, and what was not synced is lost.
    fn kill(&mut self, at: usize) {
        self.to_nodes.retain(|(to, _)| *to != at);
        let node = &mut self.nodes[at];
        node.core = Core::Down;
        node.log.truncate(node.synced);
        (node.stalled, node.mute) = (false, false);
        for (conn, (client, _)) in self.streams.clone().into_iter().filter(|(_, (_, node))| *node == at) {
            self.streams.remove(&conn);
            self.to_clients.push_back((client, ClientInput::Gone(conn)));
        }
        self.cut_link();
    }

    fn start_primary(&mut self, at: usize, settings: PrimarySettings) {
        let node = &mut self.nodes[at];
        (node.saves, node.list, node.events) = (0, Vec::new(), Vec::new());
        let after = node.log.iter().filter(|record| record.lsn() > node.marks.base);
        if let Some(cut) = provisional_cut(&node.marks, after.map(|record| &record.entry.header)) {
            node.log.retain(|record| record.lsn() <= cut);
        }
        node.synced = node.log.len();
        let mut state = LogState::new();
        for record in &node.log {
            let command = record.entry.header.body == Body::Command;
            let reply = command.then(|| {
                node.list.extend_from_slice(&record.entry.payload);
                Bytes::copy_from_slice(&node.list)
            });
            state.apply(record, reply).unwrap();
        }
        let mut out = Vec::new();
        let primary = Primary::new(settings, node.marks.clone(), state, self.now, &mut out).unwrap();
        node.core = Core::Primary(Box::new(primary));
        self.carry_out(at, out);
        (0..self.clients.len()).for_each(|client| self.connect(client, at));
    }

    fn promote(&mut self, policy: RecoveryPolicy) {
        self.admin(1, Admin::Promote { force: false, policy });
    }

    fn admin(&mut self, at: usize, admin: Admin) {
        self.to_nodes.push_back((at, Input::Admin(admin)));
        self.run();
    }

    fn carry_out(&mut self, at: usize, out: Vec<Output>) {
        let mut more = VecDeque::from(out);
        while let Some(output) = more.pop_front() {
            let link = self.link;
            let node = &mut self.nodes[at];
            match output {
                Output::ToClient(conn, message) => {
                    if let Some((client, _)) = self.streams.get(&conn) {
                        self.to_clients.push_back((*client, ClientInput::Message(conn, message)));
                    }
                }
                Output::ToBackup(conn, message) => {
                    let lost = node.mute && matches!(message, PrimaryMessage::Append { .. });
                    if let Some((_, backup, _)) = link.filter(|(link, _, _)| *link == conn && !lost) {
                        self.to_nodes.push_back((backup, Input::FromPrimary(conn, message)));
                    }
                }
                Output::ToPrimary(conn, message) => {
                    if let Some((_, _, primary)) = link.filter(|(link, _, _)| *link == conn) {
                        self.to_nodes.push_back((primary, Input::FromBackup(conn, message)));
                    }
                }
                Output::Close(conn) if link.is_some_and(|(link, _, _)| link == conn) => {
                    let (_, backup, primary) = self.link.take().unwrap();
                    self.to_nodes.push_back((backup, Input::Gone(conn)));
                    self.to_nodes.push_back((primary, Input::Gone(conn)));
                }
                Output::Close(conn) => {
                    if let Some((client, _)) = self.streams.remove(&conn) {
                        self.to_clients.push_back((client, ClientInput::Gone(conn)));
                        self.to_nodes.push_back((at, Input::Gone(conn)));
                    }
                }
                Output::Append(records) => {
                    node.log.extend(records);
                    if !node.stalled {
                        node.synced = node.log.len();
                        self.to_nodes.push_back((at, Input::Persisted(Lsn(node.synced as u64))));
                    }
                }
                Output::Truncate(last) => {
                    node.log.retain(|record| record.lsn() <= last);
                    node.synced = node.log.len();
                }
                Output::SaveMarks(marks) => {
                    node.marks = marks;
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
                    let Core::Backup(backup) = std::mem::replace(&mut node.core, Core::Down) else { panic!() };
                    let mut out = Vec::new();
                    let primary = backup.into_primary(self.now, &mut out);
                    node.core = Core::Primary(Box::new(primary));
                    more.extend(out);
                }
                Output::Halt(error) => panic!("node {at} halted: {error}"),
            }
        }
    }

    fn carry_out_client(&mut self, at: usize, out: Vec<ClientOutput>) {
        for output in out {
            let client = &mut self.clients[at];
            match output {
                ClientOutput::Send(conn, message) => {
                    if let Some((_, node)) = self.streams.get(&conn) {
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
                ClientOutput::Event(event) => client.events.push(event),
                ClientOutput::Failed(error) => panic!("client {at}: {error}"),
                ClientOutput::Result { id, .. } => client.results.push(id),
                ClientOutput::Flushed(token) => client.flushed.push(token),
                ClientOutput::Endpoints(_) | ClientOutput::Closed => {}
            }
        }
    }

    fn step_node(&mut self, at: usize, input: Input) {
        let mut out = Vec::new();
        match &mut self.nodes[at].core {
            Core::Primary(core) => core.step(self.now, input, &mut out),
            Core::Backup(core) => core.step(self.now, input, &mut out),
            Core::Down => {}
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

    /// Delivers everything, flushes everybody, and moves the clock, for two seconds.
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

    fn write(&mut self, client: usize, text: &str, level: Level) -> Request {
        let request = self.clients[client].core.write(Bytes::copy_from_slice(text.as_bytes()), level).unwrap();
        self.run();
        request
    }

    fn query(&mut self, client: usize) -> u64 {
        let id = self.clients[client].core.query(Bytes::new(), Level::Local).unwrap();
        self.run();
        id
    }

    fn answered(&self, client: usize, query: u64) -> bool {
        self.clients[client].results.contains(&query)
    }

    fn acknowledged(&self, client: usize, request: Request) -> bool {
        matches!(self.clients[client].done.get(&request), Some(Outcome::Reply(_)))
    }

    fn primary(&self, at: usize) -> &Primary {
        match &self.nodes[at].core {
            Core::Primary(primary) => primary,
            _ => panic!("node {at} is no primary"),
        }
    }

    fn is_open(&self, at: usize) -> bool {
        self.primary(at).status(self.now).status.role == Role::Primary
    }

    fn opened(&self, at: usize) -> EpochStart {
        let opened = self.nodes[at].events.iter().rev().find_map(|event| match event {
            NodeEvent::Opened { report, .. } => Some((**report).clone()),
            _ => None,
        });
        opened.unwrap_or_else(|| panic!("node {at} is not open: {:?}", self.primary(at).status(self.now).recovery))
    }

    fn list(&self, at: usize) -> String {
        String::from_utf8(self.nodes[at].list.clone()).unwrap()
    }
}

/// A number whose acknowledged command a recovery lost is spent on a filler, which the new reign orders as a `Noop`. The
/// client had nothing to hold of it, threw its tag away, and confirmed the frame all the same: so nobody was given the
/// header any more, and the next recovery found a gap below what others had observed, with everybody there.
#[test]
fn the_filler_of_a_superseded_number_is_held() {
    let mut world = World::new(3);
    let (a, x, z) = (0, 1, 2);
    world.cut_link();
    world.write(z, "z", Level::Tagged);
    // The client has the tag of "p" and no reply, and the reply of "q". "z" is lost with its client.
    let p = world.write(a, "p", Level::Stable);
    let q = world.write(a, "q", Level::Tagged);
    assert!(!world.acknowledged(a, p) && world.acknowledged(a, q));
    world.kill_client(z);
    world.kill(0);
    world.promote(RecoveryPolicy::Wait);
    world.nodes[1].stalled = false;
    world.to_nodes.push_back((1, Input::Admin(Admin::Resolve(GapPolicy::Stop))));
    // As soon as the reign is open its disk stands still: what follows is in the clients' hands.
    while !world.is_open(1) {
        let (at, input) = world.to_nodes.pop_front().unwrap_or((1, Input::Flush));
        world.step_node(at, input);
    }
    world.nodes[1].stalled = true;
    world.run();
    let lost = |event: &ClientEvent| matches!(event, ClientEvent::Superseded { request, .. } if *request == q);
    assert!(world.clients[a].events.iter().any(lost), "the first recovery was lossy, and said so");
    let request = world.write(x, "x", Level::Tagged);
    assert!(world.acknowledged(x, request));
    // The second recovery has everybody who wrote anything in this reign.
    world.kill(1);
    world.start_primary(1, settings("west"));
    world.run();
    let report = world.opened(1);
    assert_eq!((report.missing, report.gaps, report.policy), (vec![], vec![], None));
    assert!(world.list(1).ends_with('x'), "{}", world.list(1));
}

/// A service is restarted with `log_before_send` where it did not have it before. The restart concludes, its `EpochStart`
/// reaches the own disk and not the backup's, and the node dies. Its log now says that the reign logged before it sent, so
/// it went on in it, without a roll call and without the backup: it opened a reign that was not stable, the clients let go
/// of what they held for the reign before, and with the primary's site that was gone for good.
#[test]
fn a_reign_that_never_opened_is_not_gone_on_with() {
    let mut world = World::new(1);
    world.cut_link();
    let b = world.write(0, "b", Level::Tagged);
    assert!(world.acknowledged(0, b));
    let logs_first = PrimarySettings { log_before_send: true, ..settings("east") };
    world.kill(0);
    world.start_primary(0, logs_first.clone());
    world.nodes[0].mute = true;
    world.connect_link();
    world.run();
    assert!(!world.is_open(0), "the backup does not have the EpochStart");
    assert!(matches!(world.nodes[0].log.last().unwrap().entry.header.body, Body::EpochStart(_)));
    world.kill(0);
    world.start_primary(0, logs_first);
    world.run();
    // The site is lost, and nothing ever reached the backup.
    world.kill(0);
    world.promote(RecoveryPolicy::Wait);
    world.opened(1);
    assert_eq!(world.list(1), "b", "it was acknowledged, and its client lives");
}

/// A system entry was confirmed by whoever was the first to hold its header. That may be a reader: when it dies with its
/// cache, the entry is a gap below writes whose authors all live.
#[test]
fn a_system_entry_does_not_rest_on_one_reader() {
    let mut world = World::new(3);
    let (writer, reader, quiet) = (0, 1, 2);
    world.cut_link();
    world.cut_client(quiet);
    world.clients[quiet].dead = true;
    world.run();
    let last = world.nodes[0].log.last().unwrap().entry.header.clone();
    assert_eq!(last.body, Body::Suspend, "the delta begins with a system entry");
    world.query(reader);
    let w = world.write(writer, "w", Level::Tagged);
    assert!(world.acknowledged(writer, w));
    world.kill_client(reader);
    world.kill(0);
    world.clients[quiet].dead = false;
    world.promote(RecoveryPolicy::Wait);
    world.connect(quiet, 1);
    world.admin(1, Admin::Resolve(GapPolicy::Stop));
    let report = world.opened(1);
    assert_eq!(report.missing, [ClientId(101)]);
    assert_eq!(world.list(1), "w", "its author lives");
}

fn hello(node: u64, end: u64, last: Epoch, in_sync: bool) -> BackupMessage {
    BackupMessage::Hello(PeerHello {
        version: VERSION,
        features: 0,
        cluster: None,
        group: None,
        node: NodeId(node),
        domain: "west".to_owned(),
        endpoint: String::new(),
        end: Lsn(end),
        last,
        promised: last,
        in_sync,
    })
}

/// A primary alone, with a perfect disk; what it sends is kept.
struct Alone {
    core: Primary,
    saves: u64,
    log: Vec<Record>,
    sent: Vec<Output>,
}

impl Alone {
    fn new() -> Self {
        let marks = Marks { cluster: ClusterId(7), group: GroupId(8), node: NodeId(1), ..Marks::default() };
        let mut alone = Self::start(settings("east"), marks, LogState::new());
        alone.give(Input::Flush);
        alone
    }

    fn start(settings: PrimarySettings, marks: Marks, state: LogState) -> Self {
        let mut out = Vec::new();
        let core = Primary::new(settings, marks, state, Time(1), &mut out).unwrap();
        let mut alone = Self { core, saves: 0, log: Vec::new(), sent: Vec::new() };
        alone.carry_out(out);
        alone
    }

    fn give(&mut self, input: Input) {
        let mut out = Vec::new();
        self.core.step(Time(1_000_000), input, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Append(records) => {
                    assert!(records.iter().all(Record::is_intact), "a log takes only what is intact: {records:?}");
                    self.log.extend(records);
                    self.give(Input::Persisted(self.end()));
                }
                Output::Read { conn, from, .. } => {
                    let records = self.log.iter().filter(|record| record.lsn() >= from).cloned().collect();
                    self.give(Input::Read { conn, records });
                }
                Output::SaveMarks(_) => {
                    self.saves += 1;
                    self.give(Input::MarksSaved(self.saves));
                }
                Output::Execute { commands, queries } => {
                    let (replies, results) = (vec![Bytes::new(); commands.len()], vec![Bytes::new(); queries.len()]);
                    self.give(Input::Executed { replies, results });
                }
                Output::Halt(error) => panic!("halted: {error}"),
                other => self.sent.push(other),
            }
        }
    }

    fn end(&self) -> Lsn {
        self.log.last().map_or(Lsn(0), Record::lsn)
    }

    fn was_granted(&self, to: Conn) -> bool {
        let grant =
            |output: &Output| matches!(output, Output::ToBackup(conn, PrimaryMessage::Grant { .. }) if *conn == to);
        self.sent.iter().any(grant)
    }

    fn attach(&mut self, conn: Conn, client: u128, incarnation: u64) {
        let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: Epoch::ZERO };
        self.give(Input::Client(conn, ClientMessage::Hello(hello)));
        self.ask(conn, client, incarnation);
    }

    fn ask(&mut self, conn: Conn, client: u128, incarnation: u64) {
        let attach = Attach {
            epoch: self.core.epoch(),
            client: ClientId(client),
            incarnation,
            domain: "rack".to_owned(),
            role: SessionRole::Writer,
            fresh: true,
            from: Request(1),
            oldest: Epoch::ZERO,
            observed_epoch: Epoch::ZERO,
            observed: Lsn(0),
            share_bytes: 0,
            shares_held: 0,
        };
        self.give(Input::Client(conn, ClientMessage::Attach(attach)));
        self.give(Input::Flush);
    }

    fn was_refused(&self, to: Conn) -> bool {
        let refused =
            |output: &Output| matches!(output, Output::ToClient(conn, NodeMessage::Refused(_)) if *conn == to);
        self.sent.iter().any(refused)
    }
}

/// Two backups dial a primary that has none. The first is about to be named the stability target when the second takes
/// the place on the replication stream: the `Config` named the one, and the grant went to the other. Both then held an
/// in-sync mark in turn, and the one whose acknowledgements did not count could be promoted all the same.
#[test]
fn the_grant_goes_to_the_backup_that_was_named() {
    let mut alone = Alone::new();
    let epoch = alone.core.epoch();
    let (one, other) = (Conn(1), Conn(2));
    alone.give(Input::FromBackup(one, hello(2, 0, Epoch::ZERO, false)));
    alone.give(Input::Flush);
    alone.sent.clear();
    // It has everything: its `Config` waits for the next flush.
    let ack = |durable| BackupMessage::Ack { epoch, durable, echo: 0, in_sync: false };
    alone.give(Input::FromBackup(one, ack(alone.end())));
    alone.give(Input::FromBackup(other, hello(3, 0, Epoch::ZERO, false)));
    for _ in 0..3 {
        alone.give(Input::Flush);
        alone.give(Input::FromBackup(other, ack(alone.end())));
    }
    assert_eq!(alone.core.state().target(), Target::Backup(NodeId(2)));
    assert!(!alone.was_granted(other), "another one is the target");
    // The one that was named comes back, and is.
    let back = Conn(3);
    alone.give(Input::FromBackup(back, hello(2, 1, epoch, false)));
    for _ in 0..3 {
        alone.give(Input::Flush);
        alone.give(Input::FromBackup(back, ack(alone.end())));
    }
    assert!(alone.was_granted(back));
}

/// An in-sync mark of an older reign says nothing about this one: after a forced promotion of another node, the former
/// stability target follows it. Its old mark kept it from ever being attached (it seemed to be in sync already)...
#[test]
fn an_old_in_sync_mark_does_not_keep_a_backup_from_being_attached() {
    let mut alone = Alone::new();
    let epoch = alone.core.epoch();
    let backup = Conn(1);
    alone.give(Input::FromBackup(backup, hello(2, 1, epoch, true)));
    for _ in 0..3 {
        alone.give(Input::Flush);
        let ack = BackupMessage::Ack { epoch, durable: alone.end(), echo: 0, in_sync: true };
        alone.give(Input::FromBackup(backup, ack));
    }
    assert_eq!(alone.core.state().target(), Target::Backup(NodeId(2)));
    assert!(alone.was_granted(backup));
}

/// ...and let it be promoted without force, although it lacked what the new reign had acknowledged and released.
#[test]
fn a_mark_of_being_in_sync_ends_with_another_nodes_reign() {
    let (old, new) =
        (Epoch { generation: 0, number: 1, node: NodeId(1) }, Epoch { generation: 1, number: 2, node: NodeId(3) });
    let header = Header {
        epoch: old,
        lsn: Lsn(1),
        body: Body::EpochStart(Box::default()),
        origin: None,
        time: Time(1),
        answered: Request(0),
        length: 0,
        digest: Digest::default(),
    };
    let mut state = LogState::new();
    state.apply_header(&header, None).unwrap();
    let (cluster, group, node) = (ClusterId(7), GroupId(8), NodeId(2));
    let marks = Marks { cluster, group, node, promised: old, reign: old, in_sync: true, ..Marks::default() };
    let west = BackupSettings { domain: "west".to_owned(), primary: settings("west"), ..BackupSettings::default() };
    let mut out = Vec::new();
    let mut backup = Backup::new(west, marks, state, Time(1), &mut out).unwrap();
    let link = Conn(1);
    backup.step(Time(1), Input::Linked(link), &mut out);
    let welcome =
        PrimaryMessage::Welcome { version: VERSION, cluster, group, node: NodeId(3), endpoint: String::new() };
    backup.step(Time(1), Input::FromPrimary(link, welcome), &mut out);
    let append =
        PrimaryMessage::Append { epoch: new, base: Lsn(1), stable: Lsn(9), echo: 0, records: Vec::new().into() };
    backup.step(Time(1), Input::FromPrimary(link, append), &mut out);
    backup.step(Time(1), Input::MarksSaved(1), &mut out);
    out.clear();
    let promote = Admin::Promote { force: false, policy: RecoveryPolicy::Wait };
    backup.step(Time(1), Input::Admin(promote), &mut out);
    assert!(matches!(out[..], [Output::AdminDone(Err(_))]), "it was never in sync with {new}: {out:?}");
}

/// A withdrawn command has no payload. One that has became a `Noop` with a payload: the primary took it, and no backup
/// would ever take it from the primary (nor the primary itself from its disk), so that `stable` stood still for good.
#[test]
fn a_withdrawn_command_with_a_payload_is_refused() {
    let mut alone = Alone::new();
    let conn = Conn(1);
    alone.attach(conn, 100, 1);
    let payload = Bytes::from_static(b"x");
    let write = Write {
        request: Request(1),
        answered: Request(0),
        level: Level::Local,
        withdrawn: true,
        digest: Digest::crc32(&payload),
        payload,
    };
    let frame = ClientFrame { epoch: alone.core.epoch(), writes: vec![write], ..ClientFrame::default() };
    alone.give(Input::Client(conn, ClientMessage::Frame(frame)));
    alone.give(Input::Flush);
    assert!(alone.was_refused(conn));
}

const A: ClientId = ClientId(1);
const LIAR: ClientId = ClientId(2);

fn reign() -> Epoch {
    Epoch { generation: 0, number: 1, node: NodeId(1) }
}

fn header(lsn: u64, body: Body, origin: Option<Origin>, payload: &[u8]) -> Header {
    let command = body == Body::Command;
    Header {
        epoch: reign(),
        lsn: Lsn(lsn),
        body,
        origin,
        time: Time(lsn),
        answered: Request(0),
        length: u32::try_from(payload.len()).unwrap(),
        digest: if command { Digest::crc32(payload) } else { Digest::default() },
    }
}

/// A log with two sessions, and its roll call.
fn roll_call(policy: RecoveryPolicy) -> (LogState, Recovery) {
    let mut state = LogState::new();
    let start = Body::EpochStart(Box::default());
    state.apply_header(&header(1, start, None, b""), None).unwrap();
    for (lsn, client) in [(2, A), (3, LIAR)] {
        let origin = Some(Origin { client, request: Request(0) });
        state.apply_header(&header(lsn, Body::Open(SessionInfo::default()), origin, b""), None).unwrap();
    }
    let mut recovery = Recovery::new(&state, true, &PrimarySettings::default(), policy, Time(0));
    recovery.begin(Time(0), A, Conn(1));
    recovery.begin(Time(0), LIAR, Conn(2));
    (state, recovery)
}

fn report(items: Vec<ReportItem>, observed: u64) -> Report {
    let epoch = Epoch { generation: 0, number: 2, node: NodeId(2) };
    Report { epoch, items, observed: (reign(), Lsn(observed)), stable: (reign(), Lsn(0)), end: true }
}

fn command(lsn: u64, payload: &[u8]) -> Header {
    header(lsn, Body::Command, Some(Origin { client: A, request: Request(1) }), payload)
}

/// Supplies whatever is asked of `A`, and tells how the recovery goes on.
fn answer_pulls(recovery: &mut Recovery, state: &LogState) -> Next {
    for (conn, requests, _) in recovery.pulls() {
        assert_eq!(conn, Conn(1));
        let items = requests.into_iter().map(|request| (request, Bytes::from_static(b"true"))).collect();
        recovery.payloads(Time(1), A, Payloads { epoch: Epoch::ZERO, items, shares: Vec::new() }).unwrap();
    }
    recovery.evaluate(Time(1), state)
}

/// Two headers for one LSN are a contradiction, and an operator excludes who lied. The payload of the true one was not
/// pulled while there were two, and never was afterwards: the acknowledged write of a client that stood there with its
/// payload in its hands had become a gap.
#[test]
fn what_the_exclusion_of_a_liar_leaves_is_pulled() {
    let (state, mut recovery) = roll_call(RecoveryPolicy::Wait);
    recovery.report(Time(0), LIAR, report(vec![ReportItem::Header(command(4, b"false"))], 0)).unwrap();
    let held = ReportItem::Held { header: command(4, b"true"), reply: None };
    recovery.report(Time(0), A, report(vec![held], 4)).unwrap();
    assert_eq!(answer_pulls(&mut recovery, &state), Next::Wait);
    assert_eq!(recovery.status().accused, [A, LIAR]);
    recovery.exclude(LIAR);
    let Next::Conclude(plan) = answer_pulls(&mut recovery, &state) else { panic!("{:?}", recovery.status()) };
    assert_eq!(plan.records[0].entry.payload, "true");
}

/// One client places another's command where it never was. Only the last place was remembered, so the payload was not
/// pulled for the true one: a gap, and nobody accused.
#[test]
fn a_command_that_is_placed_twice_is_pulled_for_both() {
    let (state, mut recovery) = roll_call(RecoveryPolicy::Wait);
    let held = ReportItem::Held { header: command(4, b"true"), reply: None };
    let first = Report { end: false, ..report(vec![held], 4) };
    recovery.report(Time(0), A, first).unwrap();
    recovery.report(Time(0), LIAR, report(vec![ReportItem::Header(command(9, b"false"))], 0)).unwrap();
    recovery.report(Time(0), A, report(vec![], 4)).unwrap();
    let Next::Conclude(plan) = answer_pulls(&mut recovery, &state) else { panic!("{:?}", recovery.status()) };
    assert_eq!(plan.records[0].entry.payload, "true");
}

/// Who stops in the middle of a report is awaited for the rest of it, and not for payloads that were asked for already: the soft
/// window holds, as for everybody who is not heard.
#[test]
fn half_a_report_holds_up_no_longer_than_the_soft_window() {
    let policy = RecoveryPolicy::Conclude { gaps: GapPolicy::Stop, soft_us: 1_000, hard_us: 5_000 };
    let (state, mut recovery) = roll_call(policy);
    let held = ReportItem::Held { header: command(4, b"true"), reply: None };
    recovery.report(Time(0), A, Report { end: false, ..report(vec![held], 4) }).unwrap();
    recovery.report(Time(0), LIAR, report(vec![], 0)).unwrap();
    assert_eq!(recovery.pulls().len(), 1);
    assert_eq!(recovery.evaluate(Time(999), &state), Next::Wait);
    let Next::Conclude(plan) = recovery.evaluate(Time(1_000), &state) else { panic!("{:?}", recovery.status()) };
    assert_eq!((plan.records.len(), plan.missing), (0, vec![A]));
}

/// Whoever names a command of its own twice, or an earlier one after a later one, says two things of one place. It may be in
/// another part of the report.
#[test]
fn a_report_names_its_own_commands_in_order() {
    for second in [1, 2] {
        let (_, mut recovery) = roll_call(RecoveryPolicy::Wait);
        recovery.report(Time(0), A, Report { end: false, ..report(vec![in_doubt(2)], 0) }).unwrap();
        let refused = recovery.report(Time(0), A, report(vec![in_doubt(second)], 0));
        assert_eq!(refused.map_err(|error| error.code()), Err(Code::Protocol));
    }
}

/// A client's payloads are asked for while the rest of its report is still to come.
#[test]
fn what_is_reported_is_pulled_at_once() {
    let (state, mut recovery) = roll_call(RecoveryPolicy::Wait);
    let held = ReportItem::Held { header: command(4, b"true"), reply: None };
    recovery.report(Time(0), A, Report { end: false, ..report(vec![held], 4) }).unwrap();
    assert_eq!(answer_pulls(&mut recovery, &state), Next::Wait);
    assert_eq!(recovery.status().pulled_bytes, 4);
}

/// A client hands over other bytes, of the same length, than those whose checksum it announced. They do not get into the log.
#[test]
fn a_payload_without_its_checksum_accuses_its_client() {
    let (state, mut recovery) = roll_call(RecoveryPolicy::Wait);
    recovery.report(Time(0), LIAR, report(vec![], 0)).unwrap();
    let held = ReportItem::Held { header: command(4, b"true"), reply: None };
    recovery.report(Time(0), A, report(vec![held], 4)).unwrap();
    assert_eq!(recovery.pulls().len(), 1);
    let items = vec![(Request(1), Bytes::from_static(b"lies"))];
    assert!(recovery.payloads(Time(1), A, Payloads { epoch: Epoch::ZERO, items, shares: Vec::new() }).is_err());
    assert_eq!(recovery.evaluate(Time(1), &state), Next::Wait);
}

/// A command that its author has no tag for is placed by somebody who was shown its header, and its author has the bytes.
#[test]
fn what_is_in_doubt_is_rebuilt_where_others_saw_it() {
    let (state, mut recovery) = roll_call(RecoveryPolicy::Wait);
    let header = command(4, b"true");
    let in_doubt =
        ReportItem::InDoubt { request: Request(1), length: header.length, digest: header.digest, answered: Request(0) };
    recovery.report(Time(0), A, report(vec![in_doubt], 0)).unwrap();
    recovery.report(Time(0), LIAR, report(vec![ReportItem::Header(header)], 4)).unwrap();
    let Next::Conclude(plan) = answer_pulls(&mut recovery, &state) else { panic!("{:?}", recovery.status()) };
    assert_eq!(plan.records[0].entry.payload, "true");
}

/// Places of runs of commands, from `first` on, with the first request and the length of each, as a primary tells of them that
/// had all requests before these in its log. The handles are those of [`roll_call`].
fn told(first: u64, runs: &[(ClientId, u64, u32)]) -> Places {
    let mut placing = Placing::new(reign());
    let mut lsn = Lsn(first);
    let time = command(first, b"").time;
    for (client, start, count) in runs {
        for request in (*start..start + u64::from(*count)).map(Request) {
            if !placing.goes_on(lsn, *client, request, time) {
                placing.push(lsn, time, (*client, request), u32::from(*client == LIAR), request);
            }
            lsn = lsn.next();
        }
    }
    placing.finish().swap_remove(0)
}

fn in_doubt(request: u64) -> ReportItem {
    let (length, digest) = (4, Digest::crc32(b"true"));
    ReportItem::InDoubt { request: Request(request), length, digest, answered: Request(request - 1) }
}

fn held(client: ClientId, lsn: u64, request: u64, time: Time) -> ReportItem {
    let origin = Some(Origin { client, request: Request(request) });
    let header = Header { time, ..header(lsn, Body::Command, origin, b"") };
    ReportItem::Held { header, reply: None }
}

/// Of a command nobody but its author knows more than the place, and the author everything else. Together they have the very
/// entry: its header is the one that the primary gave it.
#[test]
fn what_is_in_doubt_is_rebuilt_where_others_know_its_place() {
    let (state, mut recovery) = roll_call(RecoveryPolicy::Wait);
    let places = told(4, &[(A, 1, 2), (LIAR, 1, 1)]);
    let (time, epoch) = (places.time, places.epoch);
    recovery.report(Time(0), LIAR, report(vec![held(LIAR, 6, 1, time), ReportItem::Places(places)], 6)).unwrap();
    recovery.report(Time(0), A, report(vec![in_doubt(1), in_doubt(2)], 0)).unwrap();
    assert_eq!(recovery.evaluate(Time(0), &state), Next::Wait, "their payloads are to be pulled");
    let Next::Conclude(plan) = answer_pulls(&mut recovery, &state) else { panic!("{:?}", recovery.status()) };
    let origin = |client, request| Some(Origin { client, request: Request(request) });
    for (Record { entry, .. }, (lsn, request)) in plan.records.iter().zip([(4, 1), (5, 2)]) {
        let Header { answered, .. } = entry.header;
        assert_eq!(
            (entry.header.lsn, entry.header.origin, &entry.payload[..]),
            (Lsn(lsn), origin(A, request), &b"true"[..])
        );
        assert_eq!((entry.header.time, entry.header.epoch, answered), (time, epoch, Request(request - 1)));
    }
    assert_eq!((plan.records.len(), plan.records[2].entry.header.origin), (3, origin(LIAR, 1)));
}

/// What was told of together need not have reached the backup together: the numbers are then those that come after.
#[test]
fn places_reach_below_the_base() {
    let (mut state, _) = roll_call(RecoveryPolicy::Wait);
    for (lsn, request) in [(4, 1), (5, 2)] {
        let origin = Some(Origin { client: A, request: Request(request) });
        state.apply_header(&header(lsn, Body::Command, origin, b""), None).unwrap();
    }
    let mut recovery = Recovery::new(&state, true, &PrimarySettings::default(), RecoveryPolicy::Wait, Time(0));
    recovery.begin(Time(0), A, Conn(1));
    recovery.begin(Time(0), LIAR, Conn(2));
    // Of `A` requests 1 to 4, of which the base has two; then one of `LIAR`'s.
    let places = told(4, &[(A, 1, 4), (LIAR, 1, 1)]);
    recovery.report(Time(0), LIAR, report(vec![held(LIAR, 8, 1, places.time), ReportItem::Places(places)], 8)).unwrap();
    recovery.report(Time(0), A, report(vec![in_doubt(3), in_doubt(4)], 0)).unwrap();
    recovery.evaluate(Time(0), &state);
    let Next::Conclude(plan) = answer_pulls(&mut recovery, &state) else { panic!("{:?}", recovery.status()) };
    let requests = plan.records.iter().filter_map(|record| record.entry.header.origin.map(|origin| origin.request.0));
    assert_eq!(requests.collect::<Vec<_>>(), [3, 4, 1]);
}

/// Places that do not fit what is known otherwise, or each other, were made up by somebody: nothing is rebuilt from them.
#[test]
fn places_that_cannot_be_are_a_contradiction() {
    let conflict = |items: Vec<ReportItem>| {
        let (state, mut recovery) = roll_call(RecoveryPolicy::Wait);
        recovery.report(Time(0), LIAR, report(items, 6)).unwrap();
        recovery.report(Time(0), A, report(vec![in_doubt(1), in_doubt(2)], 0)).unwrap();
        recovery.evaluate(Time(0), &state);
        assert_eq!(answer_pulls(&mut recovery, &state), Next::Wait);
        let status = recovery.status();
        assert_eq!(status.conflict.map(|error| error.code()), Some(Code::Conflict), "{:?}", status.accused);
        assert!(status.accused.contains(&LIAR));
        recovery.exclude(LIAR);
        let Next::Conclude(plan) = recovery.evaluate(Time(2), &state) else { panic!("{:?}", recovery.status()) };
        assert_eq!(plan.records, [], "nobody who is left observed anything");
    };
    let places = told(4, &[(A, 1, 2), (LIAR, 1, 1)]);
    let mut who = places.who.to_vec();
    *who.last_mut().unwrap() ^= 1;
    conflict(vec![ReportItem::Places(Places { who: who.into(), ..places.clone() })]);
    conflict(vec![ReportItem::Places(Places { time: Time(9), ..places.clone() })]);
    // Of two sessions, in one place.
    conflict(vec![ReportItem::Places(places.clone()), held(LIAR, 5, 1, places.time)]);
    conflict(vec![ReportItem::Places(places.clone()), ReportItem::Places(told(5, &[(A, 2, 1), (LIAR, 1, 1)]))]);
    // What is no list says nothing; two of them in one place are no honest client's.
    let (_, mut recovery) = roll_call(RecoveryPolicy::Wait);
    let absurd = Places { who: Bytes::from_static(b"nobody"), ..told(4, &[(A, 1, 1)]) };
    let other = Places { time: Time(9), ..told(4, &[(A, 1, 1)]) };
    let items = vec![ReportItem::Places(absurd), ReportItem::Places(told(4, &[(A, 1, 1)])), ReportItem::Places(other)];
    let refused = recovery.report(Time(0), A, report(items, 0));
    assert_eq!(refused.map_err(|error| error.code()), Err(Code::Protocol));
}

/// Somebody is gone for good, and with him what only he knew; whoever shared a batch with him later loses nothing by it. That the
/// numbers of the one who is gone went on meanwhile has to be found out, so that the places can be trusted.
#[test]
fn places_are_known_past_what_is_missing() {
    let (state, mut recovery) =
        roll_call(RecoveryPolicy::Conclude { gaps: GapPolicy::Skip, soft_us: 1_000, hard_us: 5_000 });
    // LSN 4 to 6 were the liar's, who had confirmed them, and did not come.
    let places = told(7, &[(A, 1, 1), (LIAR, 4, 1)]);
    recovery.gone(LIAR, Conn(2));
    recovery.report(Time(0), A, report(vec![in_doubt(1), ReportItem::Places(places)], 7)).unwrap();
    recovery.evaluate(Time(2_000), &state);
    for (conn, requests, _) in recovery.pulls() {
        let items = requests.into_iter().map(|request| (request, Bytes::from_static(b"true"))).collect();
        assert_eq!(conn, Conn(1));
        recovery.payloads(Time(2_000), A, Payloads { epoch: Epoch::ZERO, items, shares: Vec::new() }).unwrap();
    }
    let Next::Judge { entries, missing } = recovery.evaluate(Time(4_000), &state) else {
        panic!("{:?}", recovery.status())
    };
    assert_eq!(entries.iter().map(|entry| entry.header.lsn).collect::<Vec<_>>(), [Lsn(7)]);
    assert_eq!(missing.iter().map(|missing| missing.lsn).collect::<Vec<_>>(), [Lsn(4), Lsn(5), Lsn(6)]);
}

/// Of twenty who are gone one had something more that nobody knows of, the last. Which of them it was is found out all the same.
#[test]
fn whose_numbers_went_on_is_found_among_many() {
    let policy = RecoveryPolicy::Conclude { gaps: GapPolicy::Skip, soft_us: 1_000, hard_us: 5_000 };
    let (mut state, _) = roll_call(policy);
    let gone: Vec<ClientId> = (10..28).map(ClientId).collect();
    for (lsn, client) in (4..).zip(&gone) {
        let origin = Some(Origin { client: *client, request: Request(0) });
        state.apply_header(&header(lsn, Body::Open(SessionInfo::default()), origin, b""), None).unwrap();
    }
    let base = state.end().0;
    let last = gone.len() - 1;
    let together = |first: u64, request: u64, more: u64| {
        let (mut placing, time) = (Placing::new(reign()), Time(first));
        let of_gone = |at: usize| (gone[at], request + if at == last { more } else { 0 });
        let all = std::iter::once((A, request)).chain((0..gone.len()).map(of_gone));
        for (lsn, (client, request)) in (first..).map(Lsn).zip(all) {
            let handle = state.session(client).unwrap().handle;
            placing.push(lsn, time, (client, Request(request)), handle, Request(request));
        }
        placing.finish().swap_remove(0)
    };
    // One is missing before them, and nobody can say whose it was.
    let places = together(base + 2, 1, 1);
    let mut recovery = Recovery::new(&state, true, &PrimarySettings::default(), policy, Time(0));
    recovery.begin(Time(0), A, Conn(1));
    let observed = places.last().0;
    recovery.report(Time(0), A, report(vec![ReportItem::Places(places), in_doubt(1)], observed)).unwrap();
    recovery.evaluate(Time(2_000), &state);
    let asked: Vec<Request> = recovery.pulls().into_iter().flat_map(|(_, requests, _)| requests).collect();
    assert_eq!(asked, [Request(1)]);
}

/// Past a gap the state machine says what makes sense without it. What it gives up is lost like the gap itself, and named:
/// its author would take it for executed.
#[test]
fn what_the_state_machine_gives_up_is_named() {
    let policy = RecoveryPolicy::Conclude { gaps: GapPolicy::Skip, soft_us: 1_000, hard_us: 5_000 };
    let (state, mut recovery) = roll_call(policy);
    let second = |lsn, request| Header { origin: Some(Origin { client: A, request }), ..command(lsn, b"true") };
    let held = [(5, 1), (6, 2)].map(|(lsn, request)| {
        let header = second(lsn, Request(request));
        ReportItem::Held { header, reply: None }
    });
    recovery.report(Time(0), A, report(held.to_vec(), 6)).unwrap();
    recovery.report(Time(0), LIAR, report(vec![], 0)).unwrap();
    let Next::Judge { entries, missing } = answer_pulls(&mut recovery, &state) else { panic!() };
    assert_eq!((entries.len(), missing.len()), (2, 1));
    // What it kept may depend on what it gave up: it is asked again, and knows that as missing.
    let Next::Judge { entries, missing } = recovery.judged(&[false, true], &state) else { panic!() };
    assert_eq!(entries.iter().map(|entry| entry.header.lsn).collect::<Vec<_>>(), [Lsn(6)]);
    assert_eq!(missing.iter().map(|missing| missing.lsn).collect::<Vec<_>>(), [Lsn(4), Lsn(5)]);
    assert_eq!(missing[1].header.as_ref(), Some(&second(5, Request(1))));
    let mut other = recovery.clone();
    let Next::Conclude(plan) = recovery.judged(&[true], &state) else { panic!() };
    assert_eq!(plan.gaps, [Lsn(4)..Lsn(6)]);
    assert_eq!(plan.records.iter().filter(|record| record.entry.header.body == Body::Noop).count(), 2);
    let Next::Conclude(plan) = other.judged(&[false], &state) else { panic!() };
    assert_eq!((plan.gaps.len(), plan.records.len()), (0, 0), "nothing is left, and the log ends before");
}

/// Domains may be missing, not clients: where all who do not come fail together, they are one of the *f*.
#[test]
fn clients_of_one_domain_are_missed_as_one() {
    let mut state = LogState::new();
    let start = EpochStart { f: 1, lowest: Level::Covered, ..EpochStart::default() };
    state.apply_header(&header(1, Body::EpochStart(Box::new(start)), None, b""), None).unwrap();
    for (lsn, client, domain) in [(2, A, "one"), (3, LIAR, "other"), (4, C, "other")] {
        let origin = Some(Origin { client, request: Request(0) });
        let info = SessionInfo { domain: domain.to_owned(), ..SessionInfo::default() };
        state.apply_header(&header(lsn, Body::Open(info), origin, b""), None).unwrap();
    }
    let settings = PrimarySettings::default();
    let mut recovery = Recovery::new(&state, true, &settings, RecoveryPolicy::Wait, Time(0));
    recovery.begin(Time(0), A, Conn(1));
    recovery.report(Time(0), A, report(vec![], 0)).unwrap();
    let Next::Conclude(plan) = recovery.evaluate(Time(10_000_000), &state) else { panic!("{:?}", recovery.status()) };
    assert_eq!(plan.missing, [LIAR, C]);
}

/// What a client says counts as a whole: while its report goes on, it is awaited.
#[test]
fn half_a_report_is_none() {
    let (state, mut recovery) = roll_call(RecoveryPolicy::Wait);
    recovery.report(Time(0), LIAR, report(vec![], 0)).unwrap();
    recovery.report(Time(0), A, Report { end: false, ..report(vec![], 4) }).unwrap();
    assert_eq!((recovery.awaited(), recovery.evaluate(Time(1), &state)), (vec![A], Next::Wait));
}

/// A node that is not in sync takes clients' word on what was stable: what it lacks is a gap, and named.
#[test]
fn what_was_stable_and_is_not_here_is_named() {
    let policy = RecoveryPolicy::Conclude { gaps: GapPolicy::Stop, soft_us: 1_000, hard_us: 5_000 };
    let (state, _) = roll_call(policy);
    let mut recovery = Recovery::new(&state, false, &PrimarySettings::default(), policy, Time(0));
    for (conn, client) in [(1, A), (2, LIAR)] {
        recovery.begin(Time(0), client, Conn(conn));
        let stable = (reign(), Lsn(if client == A { 6 } else { 0 }));
        recovery.report(Time(0), client, Report { stable, ..report(vec![], 0) }).unwrap();
    }
    let Next::Conclude(plan) = recovery.evaluate(Time(5_000), &state) else { panic!("{:?}", recovery.status()) };
    assert_eq!((plan.observed, plan.policy), (Lsn(6), Some(GapPolicy::Stop)));
}

/// Headers that no entry can have (a system entry of some length, an empty command with the digest of another) got into
/// the log, from where no backup takes them.
#[test]
fn a_header_that_no_entry_can_have_is_refused() {
    let origin = Some(Origin { client: A, request: Request(1) });
    let long = Header { length: 3, ..header(4, Body::Suspend, origin, b"") };
    let empty = Header { digest: Digest::crc32(b"other"), ..command(4, b"") };
    for forged in [long, empty] {
        let (_, mut recovery) = roll_call(RecoveryPolicy::Wait);
        assert!(recovery.report(Time(0), LIAR, report(vec![ReportItem::Header(forged)], 4)).is_err());
    }
}

/// The hard cap of `Conclude` is "in any case". A client that reports, stays connected, and never sends the payload it
/// was asked for held it up for ever; and while it did, the time asked for lay in the past, so that the node's thread
/// did nothing but tick.
#[test]
fn the_hard_cap_does_not_wait_for_a_payload() {
    let policy = RecoveryPolicy::Conclude { gaps: GapPolicy::Stop, soft_us: 1_000, hard_us: 5_000 };
    let (state, mut recovery) = roll_call(policy);
    recovery.report(Time(0), LIAR, report(vec![], 0)).unwrap();
    let held = ReportItem::Held { header: command(4, b"true"), reply: None };
    recovery.report(Time(0), A, report(vec![held], 4)).unwrap();
    assert_eq!(recovery.pulls().len(), 1);
    assert_eq!(recovery.evaluate(Time(2_000), &state), Next::Wait, "it may still be on its way");
    assert_eq!(recovery.next_timeout(), Some(Time(5_000)));
    let Next::Conclude(plan) = recovery.evaluate(Time(5_000), &state) else { panic!("{:?}", recovery.status()) };
    assert!(plan.records.is_empty());
    assert_eq!((plan.policy, plan.observed), (Some(GapPolicy::Stop), Lsn(4)), "and it is named");
}

/// A conflict waits for an operator, whatever the time is: no timeout is asked for that has passed already.
#[test]
fn a_conflict_past_the_cap_asks_for_no_more_ticks() {
    let policy = RecoveryPolicy::Conclude { gaps: GapPolicy::Stop, soft_us: 1_000, hard_us: 5_000 };
    let (state, mut recovery) = roll_call(policy);
    for (client, payload) in [(A, b"true"), (LIAR, b"lies")] {
        recovery.report(Time(0), client, report(vec![ReportItem::Header(command(4, payload))], 0)).unwrap();
    }
    assert_eq!(recovery.evaluate(Time(6_000), &state), Next::Wait);
    assert_eq!(recovery.status().phase, "conflict");
    assert_eq!(recovery.next_timeout(), None);
}

/// An absurd `observed` made the status overflow, and with it the node's thread panic in a build that checks.
#[test]
fn an_absurd_report_can_be_shown() {
    let (_, mut recovery) = roll_call(RecoveryPolicy::Wait);
    recovery.report(Time(0), LIAR, report(vec![], u64::MAX)).unwrap();
    assert!(recovery.status().lost_by_stop > 0);
}

/// Once a newer process has opened the cache an older one is refused, and not only while the newer one is connected: it
/// would give numbers to commands that the newer one has given to others, and take their replies for its own.
#[test]
fn an_older_incarnation_is_refused_for_good() {
    let mut alone = Alone::new();
    alone.attach(Conn(1), 100, 1);
    alone.attach(Conn(2), 100, 2);
    alone.give(Input::Gone(Conn(2)));
    alone.sent.clear();
    alone.attach(Conn(3), 100, 1);
    assert!(alone.was_refused(Conn(3)));
}

/// The log of a node that was promoted by force names another one as the stability target: the backup that was in sync
/// with the lost primary. It was let in while the promoted node still recovered, and its mark was counted: the new reign,
/// whose target is the own disk, then waited for the acknowledgements of a backup it had never attached, and called stable
/// what its own disk, which is all that a restart asks, did not have.
#[test]
fn a_reign_on_the_own_disk_counts_no_backup() {
    let new = NodeId(3);
    let start = EpochStart { target: Target::Backup(NodeId(2)), ..EpochStart::default() };
    let mut state = LogState::new();
    state.apply_header(&header(1, Body::EpochStart(Box::new(start)), None, b""), None).unwrap();
    let promised = Epoch { generation: 1, number: 2, node: new };
    let base = Lsn(1);
    let marks = Marks {
        cluster: ClusterId(7),
        group: GroupId(8),
        node: new,
        promised,
        reign: promised,
        base,
        ..Marks::default()
    };
    let mut out = Vec::new();
    let mut core = Primary::new(settings("south"), marks, state, Time(1), &mut out).unwrap();
    core.step(Time(1), Input::MarksSaved(1), &mut out);
    out.clear();
    core.step(Time(1), Input::FromBackup(Conn(1), hello(2, 1, reign(), true)), &mut out);
    let refused = |output: &Output| matches!(output, Output::ToBackup(_, PrimaryMessage::Refused(_)));
    assert!(out.iter().any(refused), "it recovers for itself: {out:?}");
}

/// A report carries the checksums of the replies its client had, and `NodeEvent::Diverged` was there to tell when a rebuilt
/// command was answered otherwise; but nobody compared them.
#[test]
fn a_rebuilt_command_that_is_answered_otherwise_is_told() {
    let mut world = World::new(1);
    world.cut_link();
    world.write(0, "a", Level::Tagged);
    let lsn = world.nodes[0].log.last().unwrap().lsn();
    world.kill(0);
    // The backup's state machine is not the primary's.
    world.nodes[1].list.push(b'?');
    world.promote(RecoveryPolicy::Wait);
    world.opened(1);
    assert!(world.nodes[1].events.contains(&NodeEvent::Diverged(lsn)), "{:?}", world.nodes[1].events);
}

/// A second hello made a stream anew, while the session stayed attached to it: when the stream was gone, the session was
/// thought to be connected for ever. Such a session is never suspended, and so awaited by every recovery.
#[test]
fn a_second_hello_is_refused() {
    let mut alone = Alone::new();
    alone.attach(Conn(1), 100, 1);
    let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: Epoch::ZERO };
    alone.give(Input::Client(Conn(1), ClientMessage::Hello(hello)));
    alone.give(Input::Gone(Conn(1)));
    assert!(!alone.core.status(Time(1)).sessions[0].connected);
}

/// A backup was granted in one reign, and its mark became durable only while the primary restarted: the new reign's hello
/// said "not in sync", an acknowledgement soon after said otherwise, too early to count, and the grant that followed found
/// the mark there already and was never answered. Nothing became stable any more.
#[test]
fn a_grant_is_answered_though_an_older_one_was_marked() {
    let marks = Marks { cluster: ClusterId(7), group: GroupId(8), node: NodeId(2), in_sync: true, ..Marks::default() };
    let west = BackupSettings { domain: "west".to_owned(), endpoint: String::new(), primary: settings("west") };
    let (now, link, epoch) = (Time(1_000_000), Conn(1), reign());
    let mut core = Backup::new(west, marks, LogState::new(), now, &mut Vec::new()).unwrap();
    let mut saves = 0;
    let mut step = |input| {
        let mut inputs = VecDeque::from([input]);
        let mut acks = Vec::new();
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            core.step(now, input, &mut out);
            for output in out {
                match output {
                    Output::SaveMarks(_) => {
                        saves += 1;
                        inputs.push_back(Input::MarksSaved(saves));
                    }
                    Output::ToPrimary(_, BackupMessage::Ack { in_sync, .. }) => acks.push(in_sync),
                    _ => {}
                }
            }
        }
        acks
    };
    step(Input::Linked(link));
    let welcome = PrimaryMessage::Welcome {
        version: VERSION,
        cluster: ClusterId(7),
        group: GroupId(8),
        node: NodeId(1),
        endpoint: String::new(),
    };
    step(Input::FromPrimary(link, welcome));
    let (base, stable) = (Lsn(0), Lsn(0));
    let first = PrimaryMessage::Append { epoch, base, stable, echo: 1, records: Vec::new().into() };
    step(Input::FromPrimary(link, first));
    assert_eq!(step(Input::FromPrimary(link, PrimaryMessage::Grant { epoch })), [true]);
    assert_eq!(step(Input::FromPrimary(link, PrimaryMessage::Grant { epoch })), [true], "as often as it is given");
}

/// A backup in sync comes back with less than it had acknowledged: its disk lied, or was put back from a copy. What was told
/// to be stable is released everywhere, and the checkpoint does not go back.
#[test]
fn the_checkpoint_never_goes_back() {
    let mut alone = Alone::new();
    let epoch = alone.core.epoch();
    alone.give(Input::FromBackup(Conn(1), hello(2, 0, Epoch::ZERO, false)));
    for in_sync in [false, false, true, true] {
        alone.give(Input::Flush);
        let ack = BackupMessage::Ack { epoch, durable: alone.end(), echo: 0, in_sync };
        alone.give(Input::FromBackup(Conn(1), ack));
    }
    let stable = alone.core.watermarks().stable();
    assert_eq!((stable, alone.was_granted(Conn(1))), (alone.end(), true));
    alone.give(Input::Gone(Conn(1)));
    alone.give(Input::FromBackup(Conn(2), hello(2, stable.0 - 1, epoch, true)));
    alone.give(Input::Flush);
    assert_eq!(alone.core.watermarks().stable(), stable);
}

/// A service that wants a backup is restarted, and its sessions wait for the grant. They were admitted when the backup said
/// that it had it; but when the link broke in between, its next hello said so already, and they waited for ever.
#[test]
fn sessions_are_admitted_though_the_link_breaks_at_the_grant() {
    let start = EpochStart { target: Target::Backup(NodeId(2)), ..EpochStart::default() };
    let mut state = LogState::new();
    state.apply_header(&header(1, Body::EpochStart(Box::new(start)), None, b""), None).unwrap();
    let (cluster, group, node) = (ClusterId(7), GroupId(8), NodeId(1));
    let marks = Marks { cluster, group, node, promised: reign(), reign: reign(), ..Marks::default() };
    let mut alone = Alone::start(PrimarySettings { require_backup: true, ..settings("east") }, marks, state);
    let epoch = Epoch { number: 2, ..reign() };
    let link = Conn(2);
    alone.give(Input::FromBackup(link, hello(2, 1, reign(), false)));
    alone.give(Input::FromBackup(link, BackupMessage::Promised { epoch, end: Lsn(1), last: reign() }));
    alone.attach(Conn(1), 100, 1);
    let ack = |durable, in_sync| BackupMessage::Ack { epoch, durable: Lsn(durable), echo: 0, in_sync };
    alone.give(Input::FromBackup(link, ack(2, false)));
    assert!(alone.was_granted(link));
    alone.give(Input::Gone(link));
    let link = Conn(3);
    alone.give(Input::FromBackup(link, hello(2, 2, epoch, true)));
    for durable in 2..5 {
        alone.give(Input::FromBackup(link, ack(durable.min(alone.core.watermarks().head().0), true)));
        alone.give(Input::Flush);
    }
    let welcome = |output: &Output| matches!(output, Output::ToClient(_, NodeMessage::Welcome(_)));
    assert!(alone.sent.iter().any(welcome));
}

/// Everything is answered when it survives the loss of one failure domain of clients.
fn covered(domain: &str) -> PrimarySettings {
    PrimarySettings { lowest: Level::Covered, f: 1, privacy: Privacy::Open, ..settings(domain) }
}

/// Shares, but nothing covered, and nothing leaves before it is logged.
fn logs_first(domain: &str) -> PrimarySettings {
    PrimarySettings { log_before_send: true, privacy: Privacy::Open, ..settings(domain) }
}

/// A service that logs before it sends goes on in its reign, with a part of the log that the backup lacks. Where *f* is 0
/// the coverage took all of that for stable, and the node's own check stopped it: as often as it was started.
#[test]
fn a_service_without_coverage_goes_on_with_a_delta() {
    let mut world = World::serving(2, logs_first);
    world.cut_link();
    let a = world.write(0, "a", Level::Tagged);
    assert!(world.acknowledged(0, a));
    world.kill(0);
    world.start_primary(0, logs_first("east"));
    world.run();
    assert!(world.is_open(0));
    let marks = *world.primary(0).watermarks();
    assert!(marks.covered() < marks.head(), "{marks:?}");
    let b = world.write(1, "b", Level::Tagged);
    assert!(world.acknowledged(1, b));
    world.connect_link();
    world.run();
    let marks = *world.primary(0).watermarks();
    assert_eq!((marks.stable(), marks.covered()), (marks.head(), marks.head()));
}

/// A roll call of a covered reign of three sessions in three domains.
fn covered_roll_call() -> (LogState, Recovery) {
    let mut state = LogState::new();
    let start = EpochStart { f: 1, lowest: Level::Covered, ..EpochStart::default() };
    state.apply_header(&header(1, Body::EpochStart(Box::new(start)), None, b""), None).unwrap();
    for (lsn, client) in [(2, A), (3, LIAR), (4, C)] {
        let origin = Some(Origin { client, request: Request(0) });
        state.apply_header(&header(lsn, Body::Open(SessionInfo::default()), origin, b""), None).unwrap();
    }
    let settings = PrimarySettings::default();
    let mut recovery = Recovery::new(&state, true, &settings, RecoveryPolicy::Wait, Time(0));
    for (conn, client) in [(1, A), (2, LIAR), (3, C)] {
        recovery.begin(Time(0), client, Conn(conn));
    }
    (state, recovery)
}

const C: ClientId = ClientId(3);

/// A share of one row that is the member itself: what its holder reports, and what it hands over.
fn copy_at(holder: ClientId, member: Header, payload: &[u8]) -> (ReportItem, Share) {
    let symbol = Bytes::copy_from_slice(payload);
    let mut body = Vec::new();
    Plain::Stripe { row: 0, members: vec![body::Member { header: member.clone(), segment: 0 }], symbol }
        .encode(&mut body);
    let length = u32::try_from(body.len()).unwrap();
    let hold_until = member.lsn;
    let share = Share { epoch: reign(), id: 9, mode: Mode::Stripe, holder, hold_until, body: body.into() };
    (ReportItem::Share { epoch: reign(), id: 9, hold_until, length }, share)
}

/// Four bytes, appended to which `bytes` have the checksum of `wanted`.
fn with_checksum_of(wanted: &[u8], bytes: &[u8]) -> Vec<u8> {
    let table = |byte: u8| (0..8).fold(u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)));
    let crc = |bytes: &[u8]| !bytes.iter().fold(!0u32, |crc, byte| (crc >> 8) ^ table((crc.to_le_bytes()[0]) ^ byte));
    let mut after = !crc(wanted);
    let before = !crc(bytes);
    for _ in 0..4 {
        let top = (0..=255).find(|byte| table(*byte).to_le_bytes()[3] == after.to_le_bytes()[3]).unwrap();
        after = ((after ^ table(top)) << 8) | u32::from(top);
    }
    let mut forged = bytes.to_vec();
    forged.extend_from_slice(&(after ^ before).to_le_bytes());
    assert!(Digest::crc32(wanted).verifies(&forged));
    forged
}

/// An author hands over another payload than it wrote, of another length and with the same checksum. The decoder took it
/// for the one that shares are made of, and the node's thread panicked; the rebuild took it for the one that a header
/// announces, and the log had an entry that no backup takes.
#[test]
fn a_payload_of_another_length_is_not_the_one() {
    let (state, mut recovery) = covered_roll_call();
    let true_one = header(5, Body::Command, Some(Origin { client: LIAR, request: Request(1) }), b"the true one");
    let forged = with_checksum_of(b"the true one", b"");
    let length = u32::try_from(forged.len()).unwrap();
    let elsewhere = Header { lsn: Lsn(99), length, ..true_one.clone() };
    let in_doubt = ReportItem::InDoubt { request: Request(1), length, digest: true_one.digest, answered: Request(0) };
    let (item, share) = copy_at(A, true_one.clone(), b"the true one");
    recovery.report(Time(0), LIAR, report(vec![ReportItem::Header(elsewhere), in_doubt], 0)).unwrap();
    recovery.report(Time(0), A, report(vec![item, ReportItem::Header(true_one)], 5)).unwrap();
    recovery.gone(C, Conn(3));
    let mut shares = vec![share];
    for now in 1..10 {
        for (conn, requests, ids) in recovery.pulls() {
            let client = if conn == Conn(1) { A } else { LIAR };
            let items = requests.into_iter().map(|request| (request, Bytes::copy_from_slice(&forged))).collect();
            let shares = if ids.is_empty() { Vec::new() } else { std::mem::take(&mut shares) };
            recovery.payloads(Time(now), client, Payloads { epoch: Epoch::ZERO, items, shares }).unwrap();
        }
        if let Next::Conclude(plan) = recovery.evaluate(Time(now), &state) {
            assert_eq!(plan.records[0].entry.payload, "the true one");
            return;
        }
    }
    panic!("{:?}", recovery.status());
}

/// A session that ended in good order, as the log says, is off the roster of whoever takes over, but its stream stands
/// until the primary hears that this is stable. Its echo told nothing about a takeover, and stale state was served for it.
#[test]
fn the_echo_of_a_session_that_ends_counts_for_nothing() {
    let mut world = World::serving(3, covered);
    let (reader, closing, silent) = (0, 1, 2);
    world.cut_link();
    world.clients[closing].core.close();
    world.run();
    let log = world.primary(0).state();
    assert!(log.session(ClientId(101)).is_none(), "logged, and not known to be stable");
    assert_eq!(world.primary(0).watermarks().covered(), log.end());
    // The third one has gone over to the backup, which the primary does not know.
    world.clients[silent].dead = true;
    let query = world.query(reader);
    assert!(!world.answered(reader, query));
}

/// Where a session ends that keeps nothing for others, what it wrote stayed in a stripe that took in what came after its
/// end: a takeover that knows of the end does not ask it, and could not decode the rest.
#[test]
fn who_ends_is_in_no_stripe_with_those_who_come_after() {
    let settings = CoverSettings { f: 1, members: 8, wait_us: 1_000_000, custody_bytes_max: 0, patience_us: 1_000_000 };
    let mut cover = Cover::new(settings, reign(), "east", Lsn(3), Lsn(4), Time(0));
    for (client, room) in [(A, 0), (LIAR, 1 << 20), (C, 1 << 20), (ClientId(4), 1 << 20)] {
        cover.join((client, 1), &format!("rack-{client}"), room, Request(1), Lsn(0));
    }
    cover.add(Time(0), &command(4, b"early"), &Bytes::from_static(b"early"));
    cover.stabilize(Lsn(4));
    assert!(cover.settled() < Lsn(4), "it waits for members");
    cover.retire(A);
    cover.settle(Time(0), true, Vec::new());
    assert_eq!(cover.settled(), Lsn(4));
}

/// An operator ends a session that is connected. The coverage went on to count it: shares were given to it that nobody
/// took, and reads waited for the echoes of domains that were not there.
#[test]
fn a_session_that_is_ended_holds_nothing_more() {
    let mut world = World::serving(3, covered);
    world.clients[2].dead = true;
    world.admin(0, Admin::EndSession(ClientId(102)));
    world.run();
    assert!(world.primary(0).state().session(ClientId(102)).is_none());
    world.cut_link();
    for round in 0..4 {
        let request = world.write(round % 2, "x", Level::Covered);
        assert!(world.acknowledged(round % 2, request), "write {round}");
    }
    world.connect_link();
    world.run();
    world.kill_client(1);
    let query = world.query(0);
    assert!(world.answered(0, query), "nobody else is there: the backup's echo serves");
}

/// Where one domain may be missing, one was, and an operator had excluded another: the recovery concluded on its own,
/// without what only the two of them had.
#[test]
fn who_is_excluded_is_one_of_the_f() {
    let (state, mut recovery) = covered_roll_call();
    recovery.report(Time(0), A, report(vec![], 0)).unwrap();
    recovery.gone(C, Conn(3));
    recovery.exclude(LIAR);
    let later = Time(10_000_000);
    assert_eq!(recovery.evaluate(later, &state), Next::Wait);
    recovery.resolve(GapPolicy::Stop);
    let Next::Conclude(plan) = recovery.evaluate(later, &state) else { panic!("{:?}", recovery.status()) };
    assert_eq!((plan.missing, plan.excluded), (vec![C], vec![LIAR]));
}

/// Shares are pulled to fill a gap, as far as credits allow. Once the first one filled it the recovery concluded, without
/// what the second knew: the log ended here or there, as it happened.
#[test]
fn what_is_rebuilt_does_not_depend_on_which_share_comes_first() {
    let (state, mut recovery) = covered_roll_call();
    let (_, first) = copy_at(C, command(5, b""), b"");
    let second = Header { origin: Some(Origin { client: A, request: Request(2) }), ..command(6, b"more") };
    let (_, second) = copy_at(C, second, b"more");
    let mut shares = vec![first, Share { id: 10, ..second }];
    let announced = |share: &Share, length| {
        let Share { epoch, id, hold_until, .. } = *share;
        ReportItem::Share { epoch, id, hold_until, length }
    };
    // So much that the second one has to wait.
    let items = vec![announced(&shares[0], u32::MAX), announced(&shares[1], 1)];
    recovery.report(Time(0), A, report(vec![], 0)).unwrap();
    recovery.report(Time(0), LIAR, report(vec![], 5)).unwrap();
    recovery.report(Time(0), C, report(items, 0)).unwrap();
    for now in 1..10 {
        if let Next::Conclude(plan) = recovery.evaluate(Time(now), &state) {
            assert_eq!(plan.records.len(), 2);
            return;
        }
        for (_, _, ids) in recovery.pulls() {
            let shares = ids.iter().map(|_| shares.remove(0)).collect();
            recovery.payloads(Time(now), C, Payloads { epoch: Epoch::ZERO, items: Vec::new(), shares }).unwrap();
        }
    }
    panic!("{:?}", recovery.status());
}

/// A client came back with a part of its cache. What it had been answered, and another client had seen, nobody had a
/// header of but the holder of a share, which was not looked into: with everybody there, who had seen it was accused.
#[test]
fn what_only_a_share_knows_accuses_nobody() {
    let (state, mut recovery) = covered_roll_call();
    let (item, share) = copy_at(C, command(5, b"true"), b"true");
    recovery.report(Time(0), A, report(vec![], 0)).unwrap();
    recovery.report(Time(0), LIAR, report(vec![], 5)).unwrap();
    recovery.report(Time(0), C, report(vec![item], 0)).unwrap();
    assert_eq!(recovery.evaluate(Time(1), &state), Next::Wait);
    let pulls = recovery.pulls();
    assert_eq!(pulls, [(Conn(3), vec![], vec![9])]);
    let payloads = Payloads { epoch: Epoch::ZERO, items: Vec::new(), shares: vec![share] };
    recovery.payloads(Time(1), C, payloads).unwrap();
    let Next::Conclude(plan) = recovery.evaluate(Time(2), &state) else { panic!("{:?}", recovery.status()) };
    assert_eq!((plan.records[0].entry.payload.clone(), plan.policy), (Bytes::from_static(b"true"), None));
}

/// A client's entry may be stable and held all the same, as others are decoded with its help. Its tag had lost its time
/// then: where a node that is not in sync is promoted by force, its report contradicted the shares of everybody else.
#[test]
fn a_tag_of_what_is_stable_has_its_time() {
    let mut world = World::serving(3, covered);
    world.cut_link();
    let stripe = [0, 1].map(|client| {
        let request = world.clients[client].core.write(Bytes::from_static(b"x"), Level::Stable).unwrap();
        world.step_client(client, ClientInput::Flush);
        while let Some((at, input)) = world.to_clients.pop_front() {
            world.step_client(at, input);
        }
        request
    });
    world.run();
    // The backup gets the first of the two.
    let lsn = |at: usize| {
        let is_it = |origin: Origin| {
            origin.client == world.clients[at].core.image().identity.as_ref().unwrap().client
                && origin.request == stripe[at]
        };
        let is_it = |record: &&Record| record.entry.header.origin.is_some_and(is_it);
        world.nodes[0].log.iter().find(is_it).unwrap().lsn()
    };
    let (first, second) = (lsn(0), lsn(1));
    assert_eq!(first.next(), second);
    world.nodes[1].stalled = true;
    world.connect_link();
    world.run();
    world.to_nodes.push_back((1, Input::Persisted(first)));
    world.run();
    assert_eq!(world.primary(0).watermarks().stable(), first);
    assert!(world.acknowledged(0, stripe[0]) && !world.acknowledged(1, stripe[1]));
    let tag = world.clients[0].core.image().commands.get(&stripe[0]).unwrap().tag.unwrap();
    assert_eq!(tag.hold_until, Some(second));
    let at = usize::try_from(first.0 - 1).unwrap();
    assert_eq!(tag.time, world.nodes[0].log[at].entry.header.time);
}

/// A client whose stream broke missed the word that its entry is not needed any more for others' sake, and its next
/// stream began as if it had been told: nothing released the entry, and its flush waited for ever.
#[test]
fn a_resumed_stream_says_what_is_settled() {
    let mut world = World::serving(4, |domain| PrimarySettings { lowest: Level::Tagged, ..covered(domain) });
    world.cut_link();
    let a = world.write(0, "a", Level::Tagged);
    assert!(world.acknowledged(0, a));
    let tag = world.clients[0].core.image().commands.get(&a).unwrap().tag.unwrap();
    assert_eq!(tag.hold_until, None, "others may still come into its stripe");
    world.cut_client(0);
    world.run();
    world.connect_link();
    world.run();
    world.connect(0, 0);
    let token = world.clients[0].core.flush();
    world.run();
    assert_eq!(world.clients[0].flushed, [token]);
}

/// A query that came while too few domains stood waited for the backup's echo alone, though others came.
#[test]
fn a_query_is_answered_when_others_come_back() {
    let mut world = World::serving(2, |domain| PrimarySettings { suspend_after_us: 3_600_000_000, ..covered(domain) });
    world.cut_client(1);
    world.run();
    world.cut_link();
    let query = world.query(0);
    assert!(!world.answered(0, query));
    world.connect(1, 0);
    world.run();
    assert!(world.answered(0, query));
}

/// In a stripe as wide as there are domains for, a row whose holder left could go to nobody, for everybody else was an
/// owner: with enough domains there its members waited for the backup, and so did everything after them.
#[test]
fn a_row_that_nobody_can_keep_is_made_good_by_copies() {
    let mut world = World::serving(4, covered);
    world.cut_link();
    // All of them are on their way at once, and go into one stripe.
    let writes = [0, 1, 2].map(|client| {
        let request = world.clients[client].core.write(Bytes::from_static(b"x"), Level::Covered).unwrap();
        world.step_client(client, ClientInput::Flush);
        while let Some((at, input)) = world.to_clients.pop_front() {
            world.step_client(at, input);
        }
        request
    });
    while let Some((at, input)) = world.to_nodes.pop_front() {
        world.step_node(at, input);
    }
    world.step_node(0, Input::Flush);
    // It is executed, and the row given to the fourth, when that one goes.
    let (at, input) = world.to_nodes.pop_front().unwrap();
    world.step_node(at, input);
    assert_eq!(world.primary(0).watermarks().head(), Lsn(9));
    world.kill_client(3);
    for (client, request) in writes.into_iter().enumerate() {
        assert!(world.acknowledged(client, request), "client {client}");
    }
    assert!(!world.primary(0).status(world.now).short);
}

/// An attach for another session on a stream that has one is refused. The other one had lost its own stream by then, and
/// nobody noted that it was gone: it held shares that it was never given, and was never suspended.
#[test]
fn a_refused_attach_takes_nobodys_stream() {
    let mut alone = Alone::new();
    alone.attach(Conn(1), 100, 1);
    alone.attach(Conn(2), 101, 1);
    alone.ask(Conn(2), 100, 1);
    assert!(alone.was_refused(Conn(2)) && !alone.was_refused(Conn(1)));
}
