//! The world of a transcript: the real cores, and everything between them on one queue, in order. Nothing goes wrong in it
//! but what the transcript says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tagalong::client::{ClientInput, ClientOutput};
use tagalong::log::{Lsn, Time};
use tagalong::node::{Admin, Conn, Input, Output};
use tagalong::primary::PrimarySettings;

use crate::client::{Member, Told};
use crate::judge::Judge;
use crate::language::Mode;
use crate::node::{Core, DiskOp, Node};
use crate::wires::{Parcel, Party, Pipe, Wire};

/// Time moves in steps of so many microseconds.
const TICK_US: u64 = 10_000;
/// What a step of a transcript may set in motion, at most: more than that does not come to rest.
const EVENTS_MAX: usize = 200_000;

enum Event {
    Node(usize, u64, Input),
    Client(usize, u64, ClientInput),
}

pub struct World {
    pub now: Time,
    pub nodes: Vec<Node>,
    pub clients: Vec<Member>,
    pub wires: BTreeMap<Conn, Wire>,
    /// Who cannot reach whom.
    pub blocked: BTreeSet<(Party, Party)>,
    pub holding: bool,
    pub settings: PrimarySettings,
    pub judge: Judge,
    /// How the last admin's act was answered.
    pub admin: Option<String>,
    queue: VecDeque<Event>,
    conns: u64,
    ids: u64,
}

fn ordered(a: Party, b: Party) -> (Party, Party) {
    (a.min(b), a.max(b))
}

impl World {
    pub fn new() -> Self {
        Self {
            now: Time(1_000_000),
            nodes: Vec::new(),
            clients: Vec::new(),
            wires: BTreeMap::new(),
            blocked: BTreeSet::new(),
            holding: false,
            settings: PrimarySettings::default(),
            judge: Judge::default(),
            admin: None,
            queue: VecDeque::new(),
            conns: 0,
            ids: 0,
        }
    }

    // Processes.

    pub fn add_node(&mut self, name: &str, founder: bool) -> usize {
        self.ids += 1;
        self.nodes.push(Node::new(name, self.ids, founder, self.settings.clone()));
        self.nodes.len() - 1
    }

    /// The same machine with an empty disk, as another node.
    pub fn renew_node(&mut self, at: usize) {
        self.ids += 1;
        let (life, name) = (self.nodes[at].life + 1, self.nodes[at].name.clone());
        self.nodes[at] = Node { life, ..Node::new(&name, self.ids, false, self.settings.clone()) };
    }

    pub fn add_client(&mut self, member: Member) {
        self.clients.push(member);
        self.start_client(self.clients.len() - 1);
    }

    pub fn start_node(&mut self, at: usize) {
        let mut out = Vec::new();
        self.nodes[at].settings = self.settings.clone();
        self.nodes[at].start(self.now, &mut out);
        self.carry_out(at, out);
        self.dial();
    }

    pub fn start_client(&mut self, at: usize) {
        let mut out = Vec::new();
        self.judge.on_client_start(at, &self.clients[at]);
        self.clients[at].start(self.now, &mut out);
        self.carry_out_client(at, out);
        self.dial();
    }

    pub fn kill_node(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if let Some(primary) = node.primary() {
            self.judge.on_primary_dies(primary, node.synced);
        }
        node.die();
        self.hang_up(Party::Node(at));
    }

    pub fn kill_client(&mut self, at: usize) {
        self.clients[at].die();
        self.hang_up(Party::Client(at));
    }

    fn life(&self, party: Party) -> u64 {
        match party {
            Party::Node(at) => self.nodes[at].life,
            Party::Client(at) => self.clients[at].life,
        }
    }

    // Streams.

    /// All streams of a process break.
    pub fn hang_up(&mut self, party: Party) {
        let conns: Vec<Conn> =
            self.wires.iter().filter(|(_, wire)| wire.touches(party)).map(|(conn, _)| *conn).collect();
        conns.into_iter().for_each(|conn| self.break_wire(conn, Some(party)));
    }

    pub fn block(&mut self, a: Party, b: Party) {
        self.blocked.insert(ordered(a, b));
        let conns: Vec<Conn> = self.wires.iter().filter(|(_, wire)| wire.joins(a, b)).map(|(conn, _)| *conn).collect();
        conns.into_iter().for_each(|conn| self.break_wire(conn, None));
    }

    pub fn unblock(&mut self, a: Party, b: Party) {
        self.blocked.remove(&ordered(a, b));
    }

    /// Whoever ends it knows at once; the other end when everything before that has come.
    fn break_wire(&mut self, conn: Conn, by: Option<Party>) {
        let Some(wire) = self.wires.get_mut(&conn).filter(|wire| !wire.broken) else { return };
        wire.broken = true;
        for at in 0..2 {
            let Pipe { to, life, .. } = self.wires[&conn].pipes[at];
            if by == Some(to) {
                self.arrive(conn, to, life, Parcel::Gone);
            } else {
                self.send(conn, at, Parcel::Gone);
            }
        }
        self.forget_wire(conn);
    }

    fn forget_wire(&mut self, conn: Conn) {
        if self.wires.get(&conn).is_some_and(|wire| wire.broken && wire.pipes.iter().all(|pipe| pipe.held.is_empty())) {
            self.wires.remove(&conn);
        }
    }

    fn stands(&self, a: Party, b: Party) -> bool {
        self.wires.values().any(|wire| !wire.broken && wire.joins(a, b))
    }

    /// Everybody dials whom it can reach and has no stream to.
    pub fn dial(&mut self) {
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_up() {
                continue;
            }
            for client in 0..self.clients.len() {
                let (a, b) = (Party::Client(client), Party::Node(node));
                let live = self.clients[client].core.is_some() && self.clients[client].over.is_none();
                if live && !self.stands(a, b) && !self.blocked.contains(&ordered(a, b)) {
                    let conn = self.connect(a, b);
                    let life = self.clients[client].life;
                    self.queue.push_back(Event::Client(client, life, ClientInput::Connected(conn)));
                }
            }
            let Some(of) = self.nodes[node].follows.filter(|of| self.nodes[*of].is_up()) else { continue };
            let (a, b) = (Party::Node(node), Party::Node(of));
            let follows = matches!(self.nodes[node].core, Core::Backup(_));
            if follows && !self.stands(a, b) && !self.blocked.contains(&ordered(a, b)) {
                let conn = self.connect(a, b);
                self.queue.push_back(Event::Node(node, self.nodes[node].life, Input::Linked(conn)));
            }
        }
    }

    fn connect(&mut self, a: Party, b: Party) -> Conn {
        self.conns += 1;
        let pipes = [Pipe::new(a, self.life(a)), Pipe::new(b, self.life(b))];
        self.wires.insert(Conn(self.conns), Wire { pipes, broken: false });
        Conn(self.conns)
    }

    /// A fault on the streams that stand, or its end.
    pub fn disturb(&mut self, what: &str, from: Party, to: Party, mode: Mode) {
        let conns: Vec<Conn> =
            self.wires.iter().filter(|(_, wire)| wire.joins(from, to)).map(|(conn, _)| *conn).collect();
        for conn in conns {
            let pipe = self.wires.get_mut(&conn).expect("listed").pipe_to(to);
            (pipe.what, pipe.mode) = (what.to_owned(), mode);
            let held = std::mem::take(&mut pipe.held);
            let life = pipe.life;
            held.into_iter().for_each(|parcel| self.arrive(conn, to, life, parcel));
            self.forget_wire(conn);
        }
    }

    fn send(&mut self, conn: Conn, at: usize, parcel: Parcel) {
        let Some(wire) = self.wires.get_mut(&conn) else { return };
        let pipe = &mut wire.pipes[at];
        let (to, life) = (pipe.to, pipe.life);
        for parcel in pipe.push(parcel) {
            self.arrive(conn, to, life, parcel);
        }
    }

    fn send_from(&mut self, conn: Conn, from: Party, parcel: Parcel) {
        let Some(wire) = self.wires.get(&conn).filter(|wire| !wire.broken) else { return };
        let at = usize::from(wire.pipes[0].to == from);
        self.send(conn, at, parcel);
    }

    fn arrive(&mut self, conn: Conn, to: Party, life: u64, parcel: Parcel) {
        let event = match (to, parcel) {
            (Party::Node(at), Parcel::FromClient(message)) => Event::Node(at, life, Input::Client(conn, message)),
            (Party::Node(at), Parcel::ToBackup(message)) => Event::Node(at, life, Input::FromPrimary(conn, message)),
            (Party::Node(at), Parcel::ToPrimary(message)) => Event::Node(at, life, Input::FromBackup(conn, message)),
            (Party::Node(at), Parcel::Gone) => Event::Node(at, life, Input::Gone(conn)),
            (Party::Client(at), Parcel::ToClient(message)) => {
                Event::Client(at, life, ClientInput::Message(conn, message))
            }
            (Party::Client(at), Parcel::Gone) => Event::Client(at, life, ClientInput::Gone(conn)),
            (to, parcel) => panic!("{parcel:?} for {to:?}"),
        };
        self.queue.push_back(event);
    }

    // What the cores ask for.

    fn carry_out(&mut self, at: usize, out: Vec<Output>) {
        let mut more = VecDeque::from(out);
        while let Some(output) = more.pop_front() {
            let life = self.nodes[at].life;
            match output {
                Output::ToClient(conn, message) => {
                    self.judge.on_frame(&self.nodes, at, &message);
                    self.send_from(conn, Party::Node(at), Parcel::ToClient(message));
                }
                Output::ToBackup(conn, message) => self.send_from(conn, Party::Node(at), Parcel::ToBackup(message)),
                Output::ToPrimary(conn, message) => self.send_from(conn, Party::Node(at), Parcel::ToPrimary(message)),
                Output::Close(conn) => self.break_wire(conn, Some(Party::Node(at))),
                Output::Append(records) => {
                    self.judge.on_append(&self.nodes[at], &records);
                    let node = &mut self.nodes[at];
                    node.log.extend(records);
                    let upto = node.log.len();
                    self.ask_disk(at, DiskOp::Sync(upto));
                }
                Output::Truncate(last) => {
                    let node = &mut self.nodes[at];
                    node.log.retain(|record| record.lsn() <= last);
                    node.synced = node.synced.min(node.log.len());
                }
                Output::SaveMarks(marks) => {
                    self.nodes[at].saves += 1;
                    let count = self.nodes[at].saves;
                    self.ask_disk(at, DiskOp::Save(marks, count));
                }
                Output::Execute { commands, queries } => {
                    self.nodes[at].tasks.push_back((commands.into(), queries.len()));
                    self.work(at);
                }
                Output::Read { conn, from, .. } => {
                    let node = &self.nodes[at];
                    let records = node.log.iter().filter(|record| record.lsn() >= from).take(3).cloned().collect();
                    self.queue.push_back(Event::Node(at, life, Input::Read { conn, records }));
                }
                Output::Judge { entries, .. } => {
                    // What asks for a certain last word depends on everything before it; the rest stands for itself.
                    let keep = entries.iter().map(|entry| !entry.payload.contains(&b'?')).collect();
                    self.queue.push_back(Event::Node(at, life, Input::Judged(keep)));
                }
                Output::AdminDone(done) => {
                    self.admin = Some(done.map_or_else(|error| format!("refused ({error})"), |()| "done".to_owned()));
                }
                Output::Event(event) => self.nodes[at].events.push(event),
                Output::Promote => {
                    let Core::Backup(backup) = std::mem::replace(&mut self.nodes[at].core, Core::Down) else {
                        panic!("only a backup is promoted")
                    };
                    let mut out = Vec::new();
                    let primary = backup.into_primary(self.now, &mut out);
                    self.nodes[at].core = Core::Primary(Box::new(primary));
                    more.extend(out);
                }
                Output::Halt(error) => {
                    let name = self.nodes[at].name.clone();
                    self.judge.violate(format!("{name} halts: {error}"));
                }
            }
        }
    }

    fn ask_disk(&mut self, at: usize, op: DiskOp) {
        let node = &mut self.nodes[at];
        if node.disk_fails {
            // A node whose disk fails stops: what its core still says is not heard.
            self.kill_node(at);
            return;
        }
        node.disk_ops.push_back(op);
        self.spin(at);
    }

    /// The disk does what it was asked for, unless it stalls.
    pub fn spin(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        while let Some(op) = (!node.disk_stalls).then(|| node.disk_ops.pop_front()).flatten() {
            let input = match op {
                DiskOp::Sync(upto) => {
                    node.synced = node.synced.max(upto.min(node.log.len()));
                    Input::Persisted(Lsn(node.synced as u64))
                }
                DiskOp::Save(marks, count) => {
                    node.marks = marks;
                    Input::MarksSaved(count)
                }
            };
            self.queue.push_back(Event::Node(at, node.life, input));
        }
    }

    /// The state machine does what it was asked for, unless it stalls.
    pub fn work(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        while let Some((commands, queries)) = (!node.machine_stalls).then(|| node.tasks.pop_front()).flatten() {
            let replies = commands.iter().map(|entry| node.machine.apply(&entry.payload)).collect();
            let results = vec![node.machine.text().into(); queries];
            self.queue.push_back(Event::Node(at, node.life, Input::Executed { replies, results }));
        }
    }

    fn carry_out_client(&mut self, at: usize, out: Vec<ClientOutput>) {
        for output in out {
            let client = &mut self.clients[at];
            match output {
                ClientOutput::Send(conn, message) => {
                    self.send_from(conn, Party::Client(at), Parcel::FromClient(message));
                }
                ClientOutput::Close(conn) => self.break_wire(conn, Some(Party::Client(at))),
                ClientOutput::Store(ops) => {
                    client.stores.push_back(ops);
                    self.store(at);
                }
                ClientOutput::Done { request, outcome, tag } => {
                    let told = Told::new(&outcome, tag, client.life);
                    self.judge.on_done(client, at, request, &told);
                    client.told.insert(request, told);
                }
                ClientOutput::Result { id, result } => {
                    self.judge.on_result(client, at, id, &result);
                    client.results.insert(id, result);
                }
                ClientOutput::Flushed(token) => {
                    client.flushed.insert(token);
                }
                ClientOutput::Event(event) => client.events.push(event),
                ClientOutput::Failed(_) => client.over = Some("expired"),
                ClientOutput::Closed => client.over = Some("closed"),
                ClientOutput::Endpoints(_) => {}
            }
            if self.clients[at].over.is_some() {
                self.hang_up(Party::Client(at));
            }
        }
    }

    /// The cache takes what it was given, unless it stalls.
    pub fn store(&mut self, at: usize) {
        let client = &mut self.clients[at];
        while let Some(stored) = (!client.cache_stalls).then(|| client.store()).flatten() {
            self.queue.push_back(Event::Client(at, client.life, ClientInput::Stored(stored)));
        }
    }

    // Steps.

    pub fn give(&mut self, at: usize, input: Input) {
        let mut out = Vec::new();
        match &mut self.nodes[at].core {
            Core::Primary(core) => core.step(self.now, input, &mut out),
            Core::Backup(core) => core.step(self.now, input, &mut out),
            Core::Down => {}
        }
        self.carry_out(at, out);
        self.judge.on_step(&self.nodes, at);
    }

    pub fn give_client(&mut self, at: usize, input: ClientInput) {
        let mut out = Vec::new();
        let client = &mut self.clients[at];
        if let Some(core) = &mut client.core {
            let before = self.judge.held(core.image());
            core.step(self.now, input, &mut out);
            self.judge.on_released(at, before, core.image());
        }
        self.carry_out_client(at, out);
    }

    pub fn act(&mut self, at: usize, admin: Admin) -> String {
        self.admin = None;
        self.give(at, Input::Admin(admin));
        self.admin.take().unwrap_or_else(|| "no answer".to_owned())
    }

    /// Delivers everything that is under way, and has everybody do what is to be done about it.
    fn deliver(&mut self) {
        for _ in 0..EVENTS_MAX {
            match self.queue.pop_front() {
                Some(Event::Node(at, life, input)) if life == self.nodes[at].life => self.give(at, input),
                Some(Event::Client(at, life, input)) if life == self.clients[at].life => self.give_client(at, input),
                Some(_) => {}
                None => {
                    (0..self.nodes.len()).for_each(|at| self.give(at, Input::Flush));
                    (0..self.clients.len()).for_each(|at| self.give_client(at, ClientInput::Flush));
                    if self.queue.is_empty() {
                        return;
                    }
                }
            }
        }
        self.judge.violate("this does not come to rest".to_owned());
    }

    /// Lets so much time pass.
    pub fn run(&mut self, micros: u64) {
        if self.holding {
            return;
        }
        let rounds = micros.div_ceil(TICK_US).clamp(1, 2_000);
        let step = micros.div_ceil(rounds);
        for round in 0..rounds {
            self.deliver();
            self.now = self.now.after(step);
            (0..self.nodes.len()).for_each(|at| self.give(at, Input::Tick));
            (0..self.clients.len()).for_each(|at| self.give_client(at, ClientInput::Tick));
            if round % 5 == 4 {
                self.dial();
            }
            if self.judge.violation.is_some() {
                return;
            }
        }
        self.deliver();
        self.judge.check_released(&self.nodes, &self.clients);
    }
}
