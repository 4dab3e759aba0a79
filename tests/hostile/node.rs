//! The cores under attack: a primary or backup on a perfect disk, and a client with a perfect cache.

use std::collections::VecDeque;

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tagalong::backup::{Backup, BackupSettings};
use tagalong::client::{CacheImage, CacheOp, Client, ClientInput, ClientOutput, ClientSettings, Identity};
use tagalong::log::{
    Body, ClientId, Digest, Entry, Epoch, GapPolicy, Header, Level, Lsn, NodeId, Record, Request, SessionRole, Target,
    Time,
};
use tagalong::message::{Attach, BackupMessage, ClientMessage, Hello, NodeStatus, PeerHello, PrimaryMessage, VERSION};
use tagalong::node::{Admin, Conn, Input, Output, RecoveryPolicy};
use tagalong::primary::{Primary, PrimarySettings, Privacy};
use tagalong::session::LogState;
use tagalong::store::Marks;

use super::forge::{CLUSTER, Forge, GROUP};

/// Services, by their lowest level and *f*.
pub(crate) const TAGGED: (Level, u8) = (Level::Tagged, 0);
pub(crate) const COVERED: (Level, u8) = (Level::Covered, 1);
pub(crate) const SERVICES: &[(Level, u8)] =
    &[(Level::Local, 0), TAGGED, (Level::Tagged, 1), COVERED, (Level::Stable, 0)];

pub(crate) enum Core {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
}

/// A node on a perfect disk; what it sends goes nowhere.
pub(crate) struct Node {
    pub(crate) core: Core,
    log: Vec<Record>,
    saves: u64,
    now: u64,
    inputs: VecDeque<Input>,
}

/// What a new client says of itself.
fn attach(epoch: Epoch, client: ClientId) -> Attach {
    Attach {
        epoch,
        client,
        incarnation: 1,
        domain: "rack".to_owned(),
        role: SessionRole::Writer,
        fresh: true,
        from: Request(1),
        oldest: Epoch::ZERO,
        observed_epoch: Epoch::ZERO,
        observed: Lsn(0),
        share_bytes: 1 << 20,
        shares_held: 0,
    }
}

impl Node {
    fn primary(log: Vec<Record>, marks: Marks, (lowest, f): (Level, u8)) -> Self {
        let settings = PrimarySettings {
            domain: "east".to_owned(),
            lowest,
            f,
            privacy: Privacy::Open,
            stripe_members: 2,
            window: 4,
            queries_max: 4,
            batch_max: 2,
            suspend_after_us: 2_000,
            expire_after_us: 10_000,
            ..PrimarySettings::default()
        };
        let mut state = LogState::new();
        for record in &log {
            state.apply(record, (record.entry.header.body == Body::Command).then(Bytes::new)).unwrap();
        }
        let mut out = Vec::new();
        let core = Primary::new(settings, marks, state, Time(1), &mut out).unwrap();
        Self::run_on(Core::Primary(Box::new(core)), log, out)
    }

    pub(crate) fn new_primary(service: (Level, u8)) -> Self {
        let marks = Marks { cluster: CLUSTER, group: GROUP, node: NodeId(1), ..Marks::default() };
        let mut node = Self::primary(Vec::new(), marks, service);
        for client in 0..2 {
            let conn = Conn(client);
            let epoch = Epoch { generation: 0, number: 1, node: NodeId(1) };
            let attach = attach(epoch, ClientId(100 + u128::from(client)));
            node.begin(conn, Attach { domain: format!("rack-{client}"), ..attach });
        }
        node
    }

    /// A primary that starts on the log of one that was there before: recovering, or asking its backup.
    pub(crate) fn restarted(backed: bool, service: (Level, u8)) -> Self {
        let first = Self::new_primary(service);
        let Core::Primary(core) = &first.core else { unreachable!() };
        let marks = core.marks().clone();
        let mut log = first.log;
        if backed {
            let last = log.last().unwrap().entry.header.clone();
            let header =
                Header { lsn: last.lsn.next(), body: Body::Config(Target::Backup(NodeId(2))), origin: None, ..last };
            log.push(Record { entry: Entry { header, payload: Bytes::new() }, reply: Digest::default() });
        }
        Self::primary(log, marks, service)
    }

    /// A backup that has what a primary's log has when two clients were welcomed, and stays on its stream, `Conn(10)`.
    pub(crate) fn following() -> Self {
        let mut node = Self::backup();
        node.give(Input::Linked(Conn(10)));
        let (version, endpoint) = (VERSION, String::new());
        let welcome = PrimaryMessage::Welcome { version, cluster: CLUSTER, group: GROUP, node: NodeId(1), endpoint };
        node.give(Input::FromPrimary(Conn(10), welcome));
        let first = Self::new_primary(TAGGED);
        let epoch = first.log[0].entry.header.epoch;
        let append = PrimaryMessage::Append { epoch, base: Lsn(0), stable: Lsn(1), echo: 1, records: first.log.into() };
        node.give(Input::FromPrimary(Conn(10), append));
        node
    }

    fn backup() -> Self {
        let marks = Marks { node: NodeId(2), ..Marks::default() };
        let primary = PrimarySettings { domain: "west".to_owned(), ..PrimarySettings::default() };
        let settings = BackupSettings { domain: "west".to_owned(), endpoint: String::new(), primary };
        let mut out = Vec::new();
        let core = Backup::new(settings, marks, LogState::new(), Time(1), &mut out).unwrap();
        Self::run_on(Core::Backup(Box::new(core)), Vec::new(), out)
    }

    fn run_on(core: Core, log: Vec<Record>, out: Vec<Output>) -> Self {
        let mut node = Self { core, log, saves: 0, now: 1, inputs: VecDeque::new() };
        node.carry_out(out);
        node.settle();
        node
    }

    pub(crate) fn give(&mut self, input: Input) {
        self.inputs.push_back(input);
        self.inputs.push_back(Input::Flush);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            self.now += 10;
            let mut out = Vec::new();
            match &mut self.core {
                Core::Primary(core) => core.step(Time(self.now), input, &mut out),
                Core::Backup(core) => core.step(Time(self.now), input, &mut out),
            }
            self.carry_out(out);
        }
        let due = match &self.core {
            Core::Primary(core) => core.next_timeout(),
            Core::Backup(core) => core.next_timeout(),
        };
        if due.is_some_and(|due| due.0 <= self.now) {
            self.inputs.push_back(Input::Tick);
        }
        // What operators see must not panic either.
        drop(self.status());
    }

    #[allow(dead_code, reason = "asked by tests/fuzz")]
    pub(crate) fn is_backup(&self) -> bool {
        matches!(self.core, Core::Backup(_))
    }

    pub(crate) fn status(&self) -> NodeStatus {
        match &self.core {
            Core::Primary(core) => core.status(Time(self.now)),
            Core::Backup(core) => core.status(Time(self.now)),
        }
    }

    fn carry_out(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Append(records) => {
                    self.log.extend(records);
                    self.inputs.push_back(Input::Persisted(self.log.last().unwrap().lsn()));
                }
                Output::Truncate(last) => self.log.retain(|record| record.lsn() <= last),
                Output::SaveMarks(_) => {
                    self.saves += 1;
                    self.inputs.push_back(Input::MarksSaved(self.saves));
                }
                Output::Execute { commands, queries } => {
                    let replies = commands.iter().map(|_| Bytes::new()).collect();
                    let results = queries.iter().map(|_| Bytes::new()).collect();
                    self.inputs.push_back(Input::Executed { replies, results });
                    self.inputs.push_back(Input::Flush);
                }
                Output::Read { conn, from, .. } => {
                    let records = self.log.iter().filter(|record| record.lsn() >= from).take(3).cloned().collect();
                    self.inputs.push_back(Input::Read { conn, records });
                }
                Output::Judge { entries, .. } => self.inputs.push_back(Input::Judged(vec![true; entries.len()])),
                Output::Halt(error) => panic!("a peer stopped the node: {error}"),
                Output::Promote => {
                    let Core::Backup(backup) = &self.core else { unreachable!() };
                    let mut out = Vec::new();
                    self.core = Core::Primary(Box::new(backup.clone().into_primary(Time(self.now), &mut out)));
                    return self.carry_out(out);
                }
                _ => {}
            }
        }
    }

    /// A client's first two messages.
    fn begin(&mut self, conn: Conn, attach: Attach) {
        let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: Epoch::ZERO };
        self.give(Input::Client(conn, ClientMessage::Hello(hello)));
        self.give(Input::Client(conn, ClientMessage::Attach(attach)));
    }

    /// At times the peer begins as it should, so that what follows gets further in.
    fn introduce(&mut self, conn: Conn, forge: &mut Forge) {
        let Core::Primary(core) = &self.core else { return };
        let (epoch, end) = (core.epoch(), core.state().end());
        let client = ClientId(100 + u128::from(conn.0));
        let session = core.state().session(client);
        forge.next = session.map_or(Request(1), |session| Request(session.next.0.min(1 << 50)));
        let last = core.state().epoch();
        if forge.below(3) == 0 {
            let mut attach = Attach { fresh: forge.below(2) == 0, from: forge.next, ..attach(epoch, client) };
            if let Some(session) = session {
                (attach.incarnation, attach.domain) = (session.info.incarnation, session.info.domain.clone());
            }
            self.begin(conn, attach);
        }
        if forge.below(6) == 0 {
            let hello = PeerHello {
                version: VERSION,
                features: 0,
                cluster: Some(CLUSTER),
                group: Some(GROUP),
                node: NodeId(2),
                domain: String::new(),
                endpoint: String::new(),
                end,
                last,
                promised: Epoch::ZERO,
                in_sync: forge.below(2) == 0,
            };
            self.give(Input::FromBackup(Conn(10), BackupMessage::Hello(hello)));
        }
    }

    /// One forged input, from one number.
    pub(crate) fn attack(&mut self, seed: u64) {
        let dice = ChaCha8Rng::seed_from_u64(seed);
        let (epoch, head) = match &self.core {
            Core::Primary(core) => (core.epoch(), core.state().end()),
            Core::Backup(core) => (core.marks().reign, core.durable()),
        };
        let mut forge = Forge { dice, epoch, head: head.0, next: Request(1) };
        let conn = Conn(forge.below(4));
        self.introduce(conn, &mut forge);
        let input = match forge.below(20) {
            0 => Input::Gone(conn),
            1 => Input::Tick,
            2 => Input::Admin(Admin::EndSession(forge.client())),
            3 => Input::Admin(Admin::Resolve(if forge.below(2) == 0 { GapPolicy::Stop } else { GapPolicy::Skip })),
            4 => Input::Admin(Admin::Exclude(forge.client())),
            5 => Input::Linked(Conn(10)),
            6 if forge.below(6) == 0 => {
                Input::Admin(Admin::Promote { force: forge.below(2) == 0, policy: RecoveryPolicy::Wait })
            }
            6..13 => match self.core {
                Core::Primary(_) => Input::FromBackup(Conn(10), forge.backup_says()),
                Core::Backup(_) => Input::FromPrimary(Conn(10), forge.primary_says()),
            },
            _ => Input::Client(conn, forge.client_says()),
        };
        self.give(input);
    }
}

/// A client on a perfect cache; what it sends goes nowhere.
pub(crate) struct Cached {
    core: Client,
    stored: CacheImage,
    stores: u64,
    now: u64,
    inputs: VecDeque<ClientInput>,
}

impl Cached {
    pub(crate) fn new() -> Self {
        let identity = Identity {
            client: ClientId(100),
            cluster: Some(CLUSTER),
            group: Some(GROUP),
            domain: "rack".to_owned(),
            role: SessionRole::Writer,
        };
        let mut image = CacheImage::default();
        image.apply(&CacheOp::Identity(identity));
        let mut out = Vec::new();
        let core = Client::new(ClientSettings::default(), image, Time(1), &mut out);
        let mut client = Self { core, stored: CacheImage::default(), stores: 0, now: 1, inputs: VecDeque::new() };
        client.carry_out(out);
        client.give(ClientInput::Connected(Conn(1)));
        client.give(ClientInput::Connected(Conn(2)));
        client
    }

    /// One call of the application, perhaps, and one forged input, from one number.
    pub(crate) fn attack(&mut self, seed: u64) {
        let image = self.core.image();
        let dice = ChaCha8Rng::seed_from_u64(seed);
        let (epoch, next) = (image.reported, image.first_unanswered());
        let mut forge = Forge { dice, epoch, head: image.stable.1.0.min(1 << 50), next };
        let core = &mut self.core;
        match forge.below(6) {
            0 => drop(core.write(forge.bytes(), forge.level())),
            1 => drop(core.query(forge.bytes(), forge.level())),
            2 => drop(core.flush()),
            3 => drop(core.withdraw(forge.request())),
            _ => {}
        }
        let conn = Conn(1 + forge.below(2));
        let input = match forge.below(12) {
            0 => ClientInput::Gone(conn),
            1 => ClientInput::Connected(conn),
            2 => ClientInput::Tick,
            _ => ClientInput::Message(conn, forge.node_says()),
        };
        self.give(input);
    }

    pub(crate) fn give(&mut self, input: ClientInput) {
        self.inputs.extend([input, ClientInput::Flush]);
        while let Some(input) = self.inputs.pop_front() {
            self.now += 10;
            let mut out = Vec::new();
            self.core.step(Time(self.now), input, &mut out);
            self.carry_out(out);
        }
        let mut again = CacheImage::default();
        self.stored.to_ops().iter().for_each(|op| again.apply(op));
        assert_eq!(again.commands, self.stored.commands, "a compaction keeps what is held");
        assert_eq!(again.bytes, self.stored.bytes);
        assert_eq!(again.shares, self.stored.shares, "and what is kept for others");
        assert_eq!(again.share_bytes, self.stored.share_bytes);
    }

    fn carry_out(&mut self, out: Vec<ClientOutput>) {
        for output in out {
            if let ClientOutput::Store(ops) = output {
                ops.iter().for_each(|op| self.stored.apply(op));
                self.stores += 1;
                self.inputs.push_back(ClientInput::Stored(self.stores));
            }
        }
    }
}
