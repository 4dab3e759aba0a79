//! No peer can make a node panic, or stop it: every core is fed well-typed nonsense, with numbers at their extremes.
//!
//! Each message is made from one number, so that what is left after shrinking is the few messages that matter.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::select;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tagalong::backup::{Backup, BackupSettings};
use tagalong::client::{CacheImage, CacheOp, Client, ClientInput, ClientOutput, ClientSettings, Identity};
use tagalong::error::{Code, Error};
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GapPolicy, GroupId, Header, Level, Lsn, NodeId,
    Origin, Record, Reign, Request, SessionInfo, SessionRole, Tag, Target, Time,
};
use tagalong::message::{
    Attach, BackupMessage, ClientFrame, ClientMessage, Hello, NodeFrame, NodeMessage, Outcome, Payloads, PeerHello,
    PrimaryMessage, Query, QueryResult, Report, ReportItem, Response, Role, Status, VERSION, Welcome, Write,
};
use tagalong::node::{Admin, Conn, Input, Output, RecoveryPolicy};
use tagalong::primary::{Primary, PrimarySettings, Privacy};
use tagalong::session::LogState;
use tagalong::share::{Mode, Share};
use tagalong::store::Marks;

const CLUSTER: ClusterId = ClusterId(7);
const GROUP: GroupId = GroupId(8);

/// Services, by their lowest level and *f*.
const TAGGED: (Level, u8) = (Level::Tagged, 0);
const COVERED: (Level, u8) = (Level::Covered, 1);
const SERVICES: &[(Level, u8)] = &[(Level::Local, 0), TAGGED, (Level::Tagged, 1), COVERED, (Level::Stable, 0)];

/// Makes messages: mostly plausible numbers (the present epoch, LSNs near the head), at times absurd ones.
struct Forge {
    dice: ChaCha8Rng,
    epoch: Epoch,
    head: u64,
    next: Request,
}

impl Forge {
    fn below(&mut self, n: u64) -> u64 {
        self.dice.next_u64() % n
    }

    fn number(&mut self) -> u64 {
        match self.below(12) {
            0 => u64::MAX,
            1 => u64::MAX - 1,
            2 => 1 << 40,
            3..6 => (self.head + 2).saturating_sub(self.below(4)),
            _ => self.below(14),
        }
    }

    fn lsn(&mut self) -> Lsn {
        Lsn(self.number())
    }

    fn request(&mut self) -> Request {
        Request(self.number())
    }

    fn epoch(&mut self) -> Epoch {
        if self.below(10) < 7 {
            return self.epoch;
        }
        let generation = if self.below(12) == 0 { u32::MAX } else { 0 };
        let number = if self.below(10) == 0 { u64::MAX } else { self.below(4) };
        Epoch { generation, number, node: NodeId(self.below(3)) }
    }

    fn client(&mut self) -> ClientId {
        ClientId(100 + u128::from(self.below(4)))
    }

    fn many<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(4)).map(|_| make(self)).collect()
    }

    fn ranges(&mut self) -> Vec<Range<Lsn>> {
        self.many(|forge| forge.lsn()..forge.lsn())
    }

    fn bytes(&mut self) -> Bytes {
        let length = usize::try_from(self.below(20)).unwrap();
        Bytes::from(vec![u8::try_from(self.below(256)).unwrap(); length])
    }

    fn digest(&mut self, of: &[u8]) -> Digest {
        match self.below(6) {
            0 => Digest { algorithm: 9, value: self.number() },
            1 => Digest { algorithm: 1, value: self.number() },
            _ => Digest::crc32(of),
        }
    }

    fn level(&mut self) -> Level {
        [Level::Local, Level::Tagged, Level::Covered, Level::Stable][usize::try_from(self.below(4)).unwrap()]
    }

    fn role(&mut self) -> SessionRole {
        match self.below(6) {
            0 => SessionRole::Reader,
            1 => SessionRole::Holder,
            _ => SessionRole::Writer,
        }
    }

    fn domain(&mut self) -> String {
        ["", "rack", "east"][usize::try_from(self.below(3)).unwrap()].to_owned()
    }

    /// Of a share: nothing, garbage, or garbage that no frame has room for.
    fn share(&mut self) -> Share {
        let mut body = match self.below(8) {
            0 => vec![0; 1 << 20],
            1 => vec![0xff; 1 << 16],
            2 => Vec::new(),
            _ => vec![0; usize::try_from(self.below(200)).unwrap()],
        };
        let garbled = body.len().min(200);
        self.dice.fill_bytes(&mut body[..garbled]);
        Share {
            epoch: self.epoch(),
            id: self.number(),
            mode: if self.below(2) == 0 { Mode::Stripe } else { Mode::Window },
            holder: self.client(),
            hold_until: self.lsn(),
            body: Bytes::from(body),
        }
    }

    fn target(&mut self) -> Target {
        if self.below(2) == 0 { Target::Own } else { Target::Backup(NodeId(self.below(4))) }
    }

    fn body(&mut self) -> Body {
        match self.below(12) {
            0..5 => Body::Command,
            5 => Body::Noop,
            6 => Body::Open(SessionInfo { incarnation: self.number(), domain: self.domain(), role: self.role() }),
            7 => Body::Suspend,
            8 => Body::Resume(self.number()),
            9 => {
                if self.below(2) == 0 {
                    Body::Close
                } else {
                    Body::Expire
                }
            }
            10 => Body::Config(self.target()),
            _ => Body::EpochStart(Box::new(EpochStart {
                previous: self.epoch(),
                base: self.lsn(),
                observed: self.lsn(),
                missing: self.many(Self::client),
                gaps: self.ranges(),
                target: self.target(),
                lowest: self.level(),
                f: u8::try_from(self.below(256)).unwrap(),
                ..EpochStart::default()
            })),
        }
    }

    fn header(&mut self, payload: &Bytes) -> Header {
        let origin = (self.below(6) > 0).then(|| Origin { client: self.client(), request: self.request() });
        let length = if self.below(8) == 0 { u32::MAX } else { u32::try_from(payload.len()).unwrap() };
        Header {
            epoch: self.epoch(),
            lsn: self.lsn(),
            body: self.body(),
            origin,
            time: Time(self.number()),
            answered: self.request(),
            length,
            digest: self.digest(payload),
        }
    }

    fn record(&mut self) -> Record {
        let payload = self.bytes();
        let header = self.header(&payload);
        Record { entry: Entry { header, payload }, reply: Digest::default() }
    }

    fn tag(&mut self) -> Tag {
        Tag {
            epoch: self.epoch(),
            lsn: self.lsn(),
            time: Time(self.number()),
            hold_until: (self.below(4) > 0).then(|| self.lsn()),
            stable: self.lsn(),
            protected: true,
            met: self.level(),
        }
    }

    fn error(&mut self) -> Error {
        let codes = [Code::SessionExpired, Code::WrongEpoch, Code::Deposed, Code::Busy, Code::WrongCluster];
        Error::new(codes[usize::try_from(self.below(5)).unwrap()], "forged")
    }

    fn write(&mut self) -> Write {
        let payload = self.bytes();
        Write {
            request: self.request(),
            answered: self.request(),
            level: self.level(),
            withdrawn: self.below(5) == 0,
            digest: self.digest(&payload),
            payload,
        }
    }

    /// Writes as a client would number them, most of the time.
    fn writes(&mut self) -> Vec<Write> {
        let mut writes = self.many(Self::write);
        if self.below(8) > 0 {
            for (write, n) in writes.iter_mut().zip(0..) {
                write.request = Request(self.next.0.saturating_add(n));
                write.digest = Digest::crc32(&write.payload);
            }
        }
        writes
    }

    /// Records as a primary would number them, most of the time.
    fn records(&mut self) -> Vec<Record> {
        let mut records = self.many(Self::record);
        if self.below(8) > 0 {
            let epoch = self.epoch;
            for (record, n) in records.iter_mut().zip(1..) {
                let header = &mut record.entry.header;
                header.lsn = Lsn(self.head.saturating_add(n));
                header.epoch = if let Body::EpochStart(start) = &mut header.body {
                    start.previous = epoch;
                    epoch.successor(NodeId(1), false)
                } else {
                    epoch
                };
                if header.body != Body::Command {
                    (record.entry.payload, header.length) = (Bytes::new(), 0);
                } else {
                    header.length = u32::try_from(record.entry.payload.len()).unwrap();
                    header.digest = Digest::crc32(&record.entry.payload);
                }
            }
        }
        records
    }

    fn item(&mut self) -> ReportItem {
        let payload = self.bytes();
        match self.below(4) {
            0 => ReportItem::Held { header: self.header(&payload), reply: None },
            1 => ReportItem::InDoubt {
                request: self.request(),
                length: u32::try_from(self.below(1 << 32)).unwrap(),
                digest: self.digest(&payload),
            },
            2 => ReportItem::Share {
                epoch: self.epoch(),
                id: self.number(),
                hold_until: self.lsn(),
                length: match self.below(4) {
                    0 => u32::MAX,
                    1 => 0,
                    _ => u32::try_from(self.below(1 << 17)).unwrap(),
                },
            },
            _ => ReportItem::Header(self.header(&payload)),
        }
    }

    fn client_says(&mut self) -> ClientMessage {
        match self.below(8) {
            0 => ClientMessage::Hello(Hello {
                version: VERSION,
                features: self.number(),
                cluster: (self.below(3) > 0).then_some(CLUSTER),
                group: None,
                // A higher epoch deposes, and that is the end of the run: seldom.
                epoch: if self.below(20) == 0 { self.epoch() } else { Epoch::ZERO },
            }),
            1 | 2 => ClientMessage::Attach(Attach {
                epoch: self.epoch(),
                client: self.client(),
                incarnation: self.number(),
                domain: self.domain(),
                role: self.role(),
                fresh: self.below(2) == 0,
                from: self.request(),
                oldest: self.epoch(),
                observed_epoch: self.epoch(),
                observed: self.lsn(),
                share_bytes: self.number(),
                shares_held: self.number(),
            }),
            3..6 => ClientMessage::Frame(ClientFrame {
                epoch: self.epoch(),
                confirm: self.number(),
                writes: self.writes(),
                queries: self.many(|forge| Query { id: forge.number(), level: forge.level(), payload: forge.bytes() }),
                close: self.below(6) == 0,
            }),
            6 => ClientMessage::Report(Report {
                epoch: self.epoch(),
                items: self.many(Self::item),
                observed: (self.epoch(), self.lsn()),
                stable: (self.epoch(), self.lsn()),
                end: self.below(2) == 0,
            }),
            _ => ClientMessage::Payloads(Payloads {
                epoch: self.epoch(),
                items: self.many(|forge| (forge.request(), forge.bytes())),
                shares: self.many(Self::share),
            }),
        }
    }

    fn backup_says(&mut self) -> BackupMessage {
        match self.below(6) {
            0 => BackupMessage::Hello(PeerHello {
                version: VERSION,
                features: 0,
                cluster: (self.below(2) == 0).then_some(CLUSTER),
                group: None,
                node: NodeId(self.below(4)),
                domain: String::new(),
                endpoint: String::new(),
                end: self.lsn(),
                last: self.epoch(),
                promised: if self.below(10) == 0 { self.epoch() } else { Epoch::ZERO },
                in_sync: self.below(2) == 0,
            }),
            1 => BackupMessage::Promised { epoch: self.epoch(), end: self.lsn(), last: self.epoch() },
            2 => BackupMessage::Records { epoch: self.epoch(), records: self.records() },
            3 | 4 => BackupMessage::Ack {
                epoch: self.epoch(),
                durable: self.lsn(),
                echo: self.number(),
                in_sync: self.below(2) == 0,
            },
            _ => BackupMessage::Failed(self.error()),
        }
    }

    fn primary_says(&mut self) -> PrimaryMessage {
        match self.below(8) {
            0 => PrimaryMessage::Welcome {
                version: VERSION,
                cluster: CLUSTER,
                group: GROUP,
                node: NodeId(1),
                endpoint: String::new(),
            },
            1 => PrimaryMessage::Promise { epoch: self.epoch() },
            2 => PrimaryMessage::Fetch { epoch: self.epoch(), from: self.lsn() },
            3..7 => PrimaryMessage::Append {
                epoch: self.epoch(),
                base: self.lsn(),
                stable: self.lsn(),
                echo: self.number(),
                records: self.records(),
            },
            _ => PrimaryMessage::Grant { epoch: self.epoch() },
        }
    }

    fn node_says(&mut self) -> NodeMessage {
        match self.below(10) {
            0 | 1 => NodeMessage::Status(Status {
                version: VERSION,
                features: 0,
                cluster: CLUSTER,
                group: GROUP,
                node: NodeId(self.below(3)),
                domain: String::new(),
                role: [Role::Primary, Role::Recovering, Role::Backup][usize::try_from(self.below(3)).unwrap()],
                epoch: self.epoch(),
                endpoints: Vec::new(),
            }),
            2 => NodeMessage::RollCall { epoch: self.epoch(), of: self.epoch(), base: self.lsn() },
            3 => NodeMessage::Pull {
                epoch: self.epoch(),
                requests: self.many(Self::request),
                shares: self.many(Self::number),
            },
            4 | 5 => NodeMessage::Welcome(Welcome {
                epoch: self.epoch(),
                stable: self.lsn(),
                reigns: self.many(|forge| Reign {
                    epoch: forge.epoch(),
                    start: forge.lsn(),
                    base: forge.lsn(),
                    gaps: forge.ranges(),
                }),
                lowest: self.level(),
                f: u8::try_from(self.below(256)).unwrap(),
                refuse_uncovered: self.below(2) == 0,
                window: self.number(),
                window_bytes: self.number(),
                command_bytes_max: self.number(),
            }),
            6 => {
                if self.below(8) == 0 {
                    NodeMessage::Refused(self.error())
                } else {
                    NodeMessage::Waiting(self.error())
                }
            }
            _ => NodeMessage::Frame(NodeFrame {
                epoch: self.epoch(),
                seq: self.number(),
                stable: self.lsn(),
                settled: self.lsn(),
                manifest: self.many(|forge| forge.header(&Bytes::new())),
                shares: self.many(Self::share),
                prompt: self.below(2) == 0,
                short: self.below(2) == 0,
                responses: self.many(|forge| Response {
                    request: forge.request(),
                    tag: (forge.below(5) > 0).then(|| forge.tag()),
                    outcome: match forge.below(4) {
                        0 => None,
                        1 => Some(Outcome::Superseded),
                        _ => Some(Outcome::Reply(forge.bytes())),
                    },
                }),
                results: self.many(|forge| QueryResult {
                    id: forge.number(),
                    lsn: forge.lsn(),
                    result: Ok(forge.bytes()),
                }),
                closed: self.below(20) == 0,
            }),
        }
    }
}

enum Core {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
}

/// A node on a perfect disk; what it sends goes nowhere.
struct Node {
    core: Core,
    log: Vec<Record>,
    saves: u64,
    now: u64,
    inputs: VecDeque<Input>,
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

    fn new_primary(service: (Level, u8)) -> Self {
        let marks = Marks { cluster: CLUSTER, group: GROUP, node: NodeId(1), ..Marks::default() };
        let mut node = Self::primary(Vec::new(), marks, service);
        for client in 0..2 {
            let conn = Conn(client);
            let attach = Attach {
                epoch: Epoch { generation: 0, number: 1, node: NodeId(1) },
                client: ClientId(100 + u128::from(client)),
                incarnation: 1,
                domain: format!("rack-{client}"),
                role: SessionRole::Writer,
                fresh: true,
                from: Request(1),
                oldest: Epoch::ZERO,
                observed_epoch: Epoch::ZERO,
                observed: Lsn(0),
                share_bytes: 1 << 20,
                shares_held: 0,
            };
            let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: Epoch::ZERO };
            node.give(Input::Client(conn, ClientMessage::Hello(hello)));
            node.give(Input::Client(conn, ClientMessage::Attach(attach)));
        }
        node
    }

    /// A primary that starts on the log of one that was there before: recovering, or asking its backup.
    fn restarted(backed: bool, service: (Level, u8)) -> Self {
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

    fn give(&mut self, input: Input) {
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
        match &self.core {
            Core::Primary(core) => drop(core.status(Time(self.now))),
            Core::Backup(core) => drop(core.status(Time(self.now))),
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

    /// At times the peer begins as it should, so that what follows gets further in.
    fn introduce(&mut self, conn: Conn, forge: &mut Forge) {
        let Core::Primary(core) = &self.core else { return };
        let (epoch, end) = (core.epoch(), core.state().end());
        let client = ClientId(100 + u128::from(conn.0));
        let session = core.state().session(client);
        forge.next = session.map_or(Request(1), |session| Request(session.next.0.min(1 << 50)));
        let last = core.state().epoch();
        if forge.below(3) == 0 {
            let attach = Attach {
                epoch,
                client,
                incarnation: session.map_or(1, |session| session.info.incarnation),
                domain: session.map_or_else(|| "rack".to_owned(), |session| session.info.domain.clone()),
                role: SessionRole::Writer,
                fresh: forge.below(2) == 0,
                from: forge.next,
                oldest: Epoch::ZERO,
                observed_epoch: Epoch::ZERO,
                observed: Lsn(0),
                share_bytes: 1 << 20,
                shares_held: 0,
            };
            let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: Epoch::ZERO };
            self.give(Input::Client(conn, ClientMessage::Hello(hello)));
            self.give(Input::Client(conn, ClientMessage::Attach(attach)));
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
    fn attack(&mut self, seed: u64) {
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

fn client(seeds: &[u64]) {
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
    let mut core = Client::new(ClientSettings::default(), image, Time(1), &mut out);
    let mut stored = CacheImage::default();
    let mut stores = 0;
    let mut now = 1;
    let mut pending = VecDeque::from([ClientInput::Connected(Conn(1)), ClientInput::Connected(Conn(2))]);
    for seed in seeds {
        let image = core.image();
        let dice = ChaCha8Rng::seed_from_u64(*seed);
        let (epoch, next) = (image.reported, image.first_unanswered());
        let mut forge = Forge { dice, epoch, head: image.stable.1.0.min(1 << 50), next };
        match forge.below(6) {
            0 => drop(core.write(forge.bytes(), forge.level())),
            1 => drop(core.query(forge.bytes(), forge.level())),
            2 => drop(core.flush()),
            3 => drop(core.withdraw(forge.request())),
            _ => {}
        }
        let conn = Conn(1 + forge.below(2));
        pending.push_back(match forge.below(12) {
            0 => ClientInput::Gone(conn),
            1 => ClientInput::Connected(conn),
            2 => ClientInput::Tick,
            _ => ClientInput::Message(conn, forge.node_says()),
        });
        pending.push_back(ClientInput::Flush);
        while let Some(input) = pending.pop_front() {
            now += 10;
            core.step(Time(now), input, &mut out);
            for output in out.drain(..) {
                if let ClientOutput::Store(ops) = output {
                    ops.iter().for_each(|op| stored.apply(op));
                    stores += 1;
                    pending.push_back(ClientInput::Stored(stores));
                }
            }
        }
        let mut again = CacheImage::default();
        stored.to_ops().iter().for_each(|op| again.apply(op));
        assert_eq!(again.commands, stored.commands, "a compaction keeps what is held");
        assert_eq!(again.bytes, stored.bytes);
        assert_eq!(again.shares, stored.shares, "and what is kept for others");
        assert_eq!(again.share_bytes, stored.share_bytes);
    }
}

/// The node would not know any more whose the stream was, and take the session for connected for ever.
#[test]
fn a_second_hello_ends_the_stream() {
    let mut node = Node::new_primary(TAGGED);
    let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: Epoch::ZERO };
    node.give(Input::Client(Conn(0), ClientMessage::Hello(hello)));
    node.give(Input::Gone(Conn(0)));
    let Core::Primary(core) = &node.core else { unreachable!() };
    let status = core.status(Time(node.now));
    let connected = status.sessions.iter().map(|session| session.connected);
    assert_eq!(connected.collect::<Vec<_>>(), [false, true]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_open_primary_stands(seeds in prop::collection::vec(any::<u64>(), 1..80), service in select(SERVICES)) {
        let mut node = Node::new_primary(service);
        seeds.iter().for_each(|seed| node.attack(*seed));
    }

    #[test]
    fn a_recovering_primary_stands(seeds in prop::collection::vec(any::<u64>(), 1..80), covered in any::<bool>()) {
        let mut node = Node::restarted(false, if covered { COVERED } else { TAGGED });
        seeds.iter().for_each(|seed| node.attack(*seed));
    }

    #[test]
    fn a_primary_that_asks_its_backup_stands(
        seeds in prop::collection::vec(any::<u64>(), 1..80),
        covered in any::<bool>(),
    ) {
        let mut node = Node::restarted(true, if covered { COVERED } else { TAGGED });
        seeds.iter().for_each(|seed| node.attack(*seed));
    }

    #[test]
    fn a_backup_stands(seeds in prop::collection::vec(any::<u64>(), 1..80)) {
        let mut node = Node::backup();
        node.give(Input::Linked(Conn(10)));
        let welcome =
            PrimaryMessage::Welcome { version: VERSION, cluster: CLUSTER, group: GROUP, node: NodeId(1), endpoint: String::new() };
        node.give(Input::FromPrimary(Conn(10), welcome));
        let first = Node::new_primary(TAGGED);
        let epoch = first.log[0].entry.header.epoch;
        let append = PrimaryMessage::Append { epoch, base: Lsn(0), stable: Lsn(1), echo: 1, records: first.log };
        node.give(Input::FromPrimary(Conn(10), append));
        seeds.iter().for_each(|seed| node.attack(*seed));
    }

    #[test]
    fn a_client_stands(seeds in prop::collection::vec(any::<u64>(), 1..80)) {
        client(&seeds);
    }
}
