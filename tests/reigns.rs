//! The primary's side of the log, a story each: how a reign begins on a log that has had others, whom it follows, and what
//! it takes from peers. A primary alone, whose disk and state machine are as slow as the story needs.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GroupId, Header, Level, Lsn, NodeId, Origin, Record,
    Request, SessionInfo, SessionRole, Target, Time,
};
use tagalong::message::{
    Attach, BackupMessage, ClientFrame, ClientMessage, Hello, NodeFrame, NodeMessage, Payloads, PeerHello,
    PrimaryMessage, Query, Report, ReportItem, Role, VERSION, Write,
};
use tagalong::node::{Admin, Conn, Input, Output};
use tagalong::primary::{Primary, PrimarySettings};
use tagalong::session::LogState;
use tagalong::store::Marks;

const A: ClientId = ClientId(100);
const B: ClientId = ClientId(101);
const C: ClientId = ClientId(102);
const LINK: Conn = Conn(1000);

fn epoch(number: u64, node: u64) -> Epoch {
    Epoch { generation: 0, number, node: NodeId(node) }
}

fn header(of: Epoch, lsn: u64, body: Body, origin: Option<Origin>) -> Header {
    let digest = if body == Body::Command { Digest::crc32(b"") } else { Digest::default() };
    Header { epoch: of, lsn: Lsn(lsn), body, origin, time: Time(lsn), answered: Request(0), length: 0, digest }
}

/// The log of node 1's first reign, which begins like this: a session is open, and 3 is the last entry.
fn log(start: EpochStart) -> Vec<Header> {
    let origin = Some(Origin { client: A, request: Request(0) });
    vec![
        header(epoch(1, 1), 1, Body::EpochStart(Box::new(start)), None),
        header(epoch(1, 1), 2, Body::Open(SessionInfo::default()), origin),
        header(epoch(1, 1), 3, Body::Noop, None),
    ]
}

fn marks() -> Marks {
    let (cluster, group, node) = (ClusterId(7), GroupId(8), NodeId(1));
    let (promised, reign) = (epoch(1, 1), epoch(1, 1));
    Marks { cluster, group, node, promised, reign, ..Marks::default() }
}

fn settings() -> PrimarySettings {
    PrimarySettings { domain: "east".to_owned(), ..PrimarySettings::default() }
}

struct Lone {
    core: Primary,
    log: Vec<Record>,
    saves: u64,
    /// It is not told of the marks that were saved.
    unsaid: bool,
    /// The disk has written, and says nothing.
    slow: bool,
    /// The state machine takes its time: so many commands and queries are with it.
    busy: Option<Vec<(usize, usize)>>,
    sent: Vec<Output>,
    now: Time,
}

impl Lone {
    fn start(settings: PrimarySettings, marks: Marks, headers: Vec<Header>) -> Self {
        let mut state = LogState::new();
        let mut log = Vec::new();
        for header in headers {
            state.apply_header(&header, None).unwrap();
            log.push(Record { entry: Entry { header, payload: Bytes::new() }, reply: Digest::default() });
        }
        let mut out = Vec::new();
        let core = Primary::new(settings, marks, state, Time(1), &mut out).unwrap();
        let mut lone = Self {
            core,
            log,
            saves: 0,
            unsaid: false,
            slow: false,
            busy: None,
            sent: Vec::new(),
            now: Time(1_000_000),
        };
        lone.carry_out(out);
        lone.give(Input::Flush);
        lone
    }

    /// A new service, open.
    fn new(settings: PrimarySettings) -> Self {
        let marks = Marks { promised: Epoch::ZERO, reign: Epoch::ZERO, ..marks() };
        Self::start(settings, marks, Vec::new())
    }

    fn give(&mut self, input: Input) {
        let mut out = Vec::new();
        self.core.step(self.now, input, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Append(records) => {
                    self.log.extend(records);
                    if !self.slow {
                        self.give(Input::Persisted(self.end()));
                    }
                }
                Output::Read { conn, from, .. } => {
                    let records = self.log.iter().filter(|record| record.lsn() >= from).cloned().collect();
                    self.give(Input::Read { conn, records });
                }
                Output::SaveMarks(_) => {
                    self.saves += 1;
                    if !self.unsaid {
                        self.give(Input::MarksSaved(self.saves));
                    }
                }
                Output::Truncate(last) => {
                    self.log.retain(|record| record.lsn() <= last);
                    self.sent.push(Output::Truncate(last));
                }
                Output::Execute { commands, queries } => match &mut self.busy {
                    Some(busy) => busy.push((commands.len(), queries.len())),
                    None => self.execute(commands.len(), queries.len()),
                },
                Output::Halt(error) => panic!("halted: {error}"),
                other => self.sent.push(other),
            }
        }
    }

    fn execute(&mut self, commands: usize, queries: usize) {
        let (replies, results) = (vec![Bytes::new(); commands], vec![Bytes::new(); queries]);
        self.give(Input::Executed { replies, results });
    }

    fn end(&self) -> Lsn {
        self.log.last().map_or(Lsn(0), Record::lsn)
    }

    fn role(&self) -> Role {
        self.core.status(Time(1)).status.role
    }

    fn awaited(&self) -> Vec<ClientId> {
        self.core.status(Time(1)).recovery.map(|recovery| recovery.awaited).unwrap_or_default()
    }

    /// A backup that says this of its log.
    fn dialled(&mut self, conn: Conn, end: u64, last: Epoch, in_sync: bool) {
        self.give(Input::FromBackup(
            conn,
            BackupMessage::Hello(PeerHello {
                version: VERSION,
                features: 0,
                cluster: None,
                group: None,
                node: NodeId(2),
                domain: "west".to_owned(),
                endpoint: String::new(),
                end: Lsn(end),
                last,
                promised: last,
                in_sync,
            }),
        ));
        self.give(Input::Flush);
    }

    fn acknowledged(&mut self, durable: Lsn, in_sync: bool) {
        let epoch = self.core.epoch();
        self.give(Input::FromBackup(LINK, BackupMessage::Ack { epoch, durable, echo: 0, in_sync }));
        self.give(Input::Flush);
    }

    fn was_granted(&self) -> bool {
        self.sent.iter().any(|it| matches!(it, Output::ToBackup(_, PrimaryMessage::Grant { .. })))
    }

    fn refused_backup(&self) -> bool {
        self.sent.iter().any(|it| matches!(it, Output::ToBackup(_, PrimaryMessage::Refused(_))))
    }

    /// A backup that has everything, in sync.
    fn with_backup(mut self) -> Self {
        self.dialled(LINK, 0, Epoch::ZERO, false);
        for in_sync in [false, false, true, true] {
            self.acknowledged(self.end(), in_sync);
        }
        assert!(self.was_granted());
        assert_eq!(self.core.watermarks().stable(), self.end());
        self
    }

    fn attach(&mut self, conn: u64, from: u64) {
        self.attach_as(conn, A, from);
    }

    /// A session of this client on this stream, in its first life.
    fn attach_as(&mut self, conn: u64, client: ClientId, from: u64) {
        let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: Epoch::ZERO };
        self.give(Input::Client(Conn(conn), ClientMessage::Hello(hello)));
        let attach = Attach {
            epoch: self.core.epoch(),
            client,
            incarnation: 1,
            domain: "rack".to_owned(),
            role: SessionRole::Writer,
            fresh: from == 1,
            from: Request(from),
            oldest: Epoch::ZERO,
            observed_epoch: Epoch::ZERO,
            observed: Lsn(0),
            share_bytes: 0,
            shares_held: 0,
        };
        self.give(Input::Client(Conn(conn), ClientMessage::Attach(attach)));
        self.give(Input::Flush);
    }

    fn frame(&mut self, conn: u64, frame: ClientFrame) {
        let frame = ClientFrame { epoch: self.core.epoch(), ..frame };
        self.give(Input::Client(Conn(conn), ClientMessage::Frame(frame)));
        // To be executed, and to be answered.
        self.give(Input::Flush);
        self.give(Input::Flush);
    }

    /// What these clients write at the same time.
    fn write_together(&mut self, writes: &[(u64, u64)]) {
        let epoch = self.core.epoch();
        for (conn, request) in writes {
            let frame = ClientFrame { epoch, writes: vec![write(*request)], ..ClientFrame::default() };
            self.give(Input::Client(Conn(*conn), ClientMessage::Frame(frame)));
        }
        self.give(Input::Flush);
        self.give(Input::Flush);
    }

    /// The last frame on this stream.
    fn last_frame(&self, conn: u64) -> NodeFrame {
        let mut frames = self.sent.iter().rev().filter_map(|it| match it {
            Output::ToClient(at, NodeMessage::Frame(frame)) if *at == Conn(conn) => Some(frame),
            _ => None,
        });
        frames.next().cloned().unwrap()
    }

    fn told(&self, conn: u64, what: fn(&NodeMessage) -> bool) -> bool {
        self.sent.iter().any(|it| matches!(it, Output::ToClient(at, message) if *at == Conn(conn) && what(message)))
    }
}

fn write(request: u64) -> Write {
    let payload = Bytes::from_static(b"a command");
    let (answered, level, digest) = (Request(0), Level::Local, Digest::crc32(&payload));
    Write { request: Request(request), answered, level, withdrawn: false, digest, payload }
}

fn refused(message: &NodeMessage) -> bool {
    matches!(message, NodeMessage::Refused(_))
}

fn closed(message: &NodeMessage) -> bool {
    matches!(message, NodeMessage::Frame(frame) if frame.closed)
}

fn result(message: &NodeMessage) -> bool {
    matches!(message, NodeMessage::Frame(frame) if !frame.results.is_empty())
}

/// The clock of a new primary may be behind the one before it. The state machine sees a time that does not go back.
#[test]
fn the_time_of_the_log_does_not_go_back() {
    let mut headers = log(EpochStart { lowest: Level::Local, ..EpochStart::default() });
    headers[2].time = Time(5_000_000);
    let lone = Lone::start(PrimarySettings { lowest: Level::Local, ..settings() }, marks(), headers);
    let last = &lone.log.last().unwrap().entry.header;
    assert_eq!((last.lsn, last.time), (Lsn(4), Time(5_000_000)));
}

/// An orderly stop left its mark, and then the disk lost the end of the log. The backup has it, so something was there
/// after what the mark speaks of, and everybody has to be heard.
#[test]
fn a_clean_mark_says_nothing_where_the_backup_has_more() {
    let headers = log(EpochStart { target: Target::Backup(NodeId(2)), lowest: Level::Tagged, ..EpochStart::default() });
    let start = |end: u64| {
        let mut lone = Lone::start(settings(), Marks { clean: Some(Lsn(3)), ..marks() }, headers.clone());
        lone.dialled(LINK, end, epoch(1, 1), true);
        let asked = |it: &Output| match it {
            Output::ToBackup(_, PrimaryMessage::Promise { epoch }) => Some(*epoch),
            _ => None,
        };
        let epoch = lone.sent.iter().find_map(asked).unwrap();
        let promised = BackupMessage::Promised { epoch, end: Lsn(end), last: headers[0].epoch };
        lone.give(Input::FromBackup(LINK, promised));
        (lone, epoch)
    };
    let (lone, _) = start(3);
    assert_eq!(lone.awaited(), [], "nobody has to be heard");
    let (mut lone, epoch) = start(4);
    let entry = Entry { header: header(headers[0].epoch, 4, Body::Noop, None), payload: Bytes::new() };
    let records = vec![Record { entry, reply: Digest::default() }];
    lone.give(Input::FromBackup(LINK, BackupMessage::Records { epoch, records }));
    lone.give(Input::Flush);
    assert_eq!((lone.role(), lone.awaited()), (Role::Recovering, vec![A]));
}

/// A takeover crashed before it concluded. In the reign it took over nothing left before it was logged, but in another
/// node's log: its roll call is still due.
#[test]
fn a_takeover_that_crashed_calls_the_roll_again() {
    let headers = log(EpochStart { log_before_send: true, lowest: Level::Tagged, ..EpochStart::default() });
    let marks = Marks { node: NodeId(3), promised: epoch(2, 3), reign: epoch(2, 3), base: Lsn(3), ..marks() };
    let lone = Lone::start(PrimarySettings { log_before_send: true, ..settings() }, marks, headers);
    assert_eq!((lone.role(), lone.awaited()), (Role::Recovering, vec![A]));
}

/// A takeover of a log that ends at 3: A held commands at 4 and 5, and was answered like this.
fn takeover(answers: [&'static [u8]; 2]) -> Lone {
    let headers = log(EpochStart { lowest: Level::Tagged, ..EpochStart::default() });
    let marks =
        Marks { node: NodeId(3), promised: epoch(2, 3), reign: epoch(2, 3), base: Lsn(3), in_sync: true, ..marks() };
    let mut lone = Lone::start(settings(), marks, headers);
    lone.attach(1, 1);
    lone.reports(1, answers);
    lone
}

fn held(lsn: u64, answer: &[u8]) -> ReportItem {
    let payload = write(lsn).payload;
    let origin = Some(Origin { client: A, request: Request(lsn - 3) });
    let (length, digest) = (u32::try_from(payload.len()).unwrap(), Digest::crc32(&payload));
    let header = Header { length, digest, ..header(epoch(1, 1), lsn, Body::Command, origin) };
    ReportItem::Held { header, reply: Some(Digest::crc32(answer)) }
}

impl Lone {
    fn reports(&mut self, conn: u64, answers: [&[u8]; 2]) {
        let items = vec![held(4, answers[0]), held(5, answers[1])];
        let (observed, stable) = ((epoch(1, 1), Lsn(5)), (epoch(1, 1), Lsn(3)));
        let report = Report { epoch: self.core.epoch(), items, observed, stable, end: true };
        self.give(Input::Client(Conn(conn), ClientMessage::Report(report)));
        self.give(Input::Flush);
    }

    fn hands_over(&mut self, conn: u64, request: u64) {
        let items = vec![(Request(request), write(request).payload)];
        let payloads = Payloads { epoch: self.core.epoch(), items, shares: Vec::new() };
        self.give(Input::Client(Conn(conn), ClientMessage::Payloads(payloads)));
        self.give(Input::Flush);
    }

    fn cuts(&self) -> Vec<Lsn> {
        let cut = |it: &Output| if let Output::Truncate(last) = it { Some(*last) } else { None };
        self.sent.iter().filter_map(cut).collect()
    }

    /// The last entry of each, and what answers are logged.
    fn rebuilt(&self) -> Vec<(u64, Digest)> {
        self.log[3..].iter().map(|record| (record.lsn().0, record.reply)).collect()
    }
}

/// What is known to come next is appended while the rest is still under way, and once.
#[test]
fn a_recovery_appends_before_it_concludes() {
    let mut lone = takeover([b"", b""]);
    let done = (4, Digest::crc32(b""));
    lone.hands_over(1, 1);
    assert_eq!((lone.role(), lone.rebuilt()), (Role::Recovering, vec![done]));
    assert_eq!(lone.core.watermarks().logged(), Lsn(3), "it is provisional");
    lone.hands_over(1, 2);
    assert_eq!(lone.role(), Role::Primary);
    assert_eq!((lone.rebuilt()[..2].to_vec(), lone.log.len(), lone.cuts()), (vec![done, (5, done.1)], 6, vec![]));
}

/// What comes later goes first; it waits for what is before it.
#[test]
fn a_recovery_appends_in_order() {
    let mut lone = takeover([b"", b""]);
    lone.hands_over(1, 2);
    assert_eq!(lone.log.len(), 3);
}

/// The command is answered otherwise than its client was, and what it is answered is part of its record. The disk's word
/// on what was there before is none on what is there now.
#[test]
fn what_was_appended_and_is_not_concluded_is_cut() {
    let mut lone = takeover([b"", b"else"]);
    lone.hands_over(1, 1);
    lone.hands_over(1, 2);
    let done = Digest::crc32(b"");
    assert_eq!(lone.rebuilt()[..2], [(4, done), (5, done)], "5 was the last, and not appended before");
    assert_eq!(lone.cuts(), []);

    let mut lone = takeover([b"else", b""]);
    lone.slow = true;
    lone.hands_over(1, 1);
    assert_eq!(lone.rebuilt(), [(4, Digest::crc32(b"else"))]);
    lone.unsaid = true;
    lone.hands_over(1, 2);
    assert_eq!((lone.rebuilt()[..2].to_vec(), lone.cuts()), (vec![(4, done), (5, done)], vec![Lsn(3)]));
    lone.give(Input::Persisted(Lsn(4)));
    assert_eq!(lone.core.watermarks().logged(), Lsn(3), "a word on what is gone");
    lone.give(Input::MarksSaved(lone.saves));
    assert_eq!(lone.role(), Role::Recovering);
    lone.unsaid = false;
    lone.give(Input::Persisted(lone.end()));
    assert_eq!(lone.role(), Role::Primary);
}

/// A client reports anew, and something else. What counts is what stands at the conclusion.
#[test]
fn what_is_reported_otherwise_is_cut() {
    let mut lone = takeover([b"else", b""]);
    lone.hands_over(1, 1);
    lone.give(Input::Gone(Conn(1)));
    lone.attach(2, 1);
    lone.reports(2, [b"", b""]);
    assert_eq!(lone.rebuilt(), [(4, Digest::crc32(b"else"))], "nothing is decided yet");
    lone.hands_over(2, 2);
    let done = Digest::crc32(b"");
    assert_eq!((lone.rebuilt()[..2].to_vec(), lone.cuts()), (vec![(4, done), (5, done)], vec![Lsn(3)]));
    assert_eq!(lone.role(), Role::Primary);
}

/// Where everything acknowledged is in the log of whoever is in sync, nobody has to be heard; but somebody who is not in
/// sync lacks what only clients can tell of.
#[test]
fn a_stable_service_asks_where_it_is_not_in_sync() {
    let headers = log(EpochStart { lowest: Level::Stable, ..EpochStart::default() });
    let start = |in_sync| {
        let marks = Marks { node: NodeId(3), promised: epoch(2, 3), reign: epoch(2, 3), in_sync, ..marks() };
        let marks = Marks { base: Lsn(3), ..marks };
        Lone::start(PrimarySettings { lowest: Level::Stable, ..settings() }, marks, headers.clone())
    };
    assert_eq!(start(true).awaited(), []);
    assert_eq!(start(false).awaited(), [A]);
}

/// A process that logs before it sends goes on in the reign of the one before it, unless it promises something else.
#[test]
fn another_level_is_another_reign() {
    let headers = log(EpochStart { log_before_send: true, lowest: Level::Tagged, ..EpochStart::default() });
    let start = |lowest| {
        let settings = PrimarySettings { log_before_send: true, lowest, ..settings() };
        Lone::start(settings, marks(), headers.clone()).core.epoch()
    };
    assert_eq!(start(Level::Tagged), epoch(1, 1));
    assert!(start(Level::Stable) > epoch(1, 1));
}

/// A backup follows if its log is a part of this one. It may end past the base of the next reign, not past what that one
/// lost, and not in a reign that was over by then.
#[test]
fn a_backup_that_has_something_else_is_refused() {
    let mut headers = log(EpochStart { lowest: Level::Local, ..EpochStart::default() });
    let noop = |lsn| header(epoch(1, 1), lsn, Body::Noop, None);
    headers.extend([noop(4), noop(5)]);
    let gaps = vec![Lsn(5)..Lsn(6)];
    let lowest = Level::Local;
    let start = EpochStart { previous: epoch(1, 1), base: Lsn(3), gaps, lowest, ..EpochStart::default() };
    headers.push(header(epoch(2, 1), 6, Body::EpochStart(Box::new(start)), None));
    let marks = Marks { promised: epoch(2, 1), reign: epoch(2, 1), base: Lsn(3), ..marks() };
    let takes = |end, last| {
        let settings = PrimarySettings { lowest: Level::Local, ..settings() };
        let mut lone = Lone::start(settings, marks.clone(), headers.clone());
        assert_eq!(lone.role(), Role::Primary);
        lone.dialled(LINK, end, last, false);
        !lone.refused_backup()
    };
    assert!(takes(0, Epoch::ZERO) && takes(3, epoch(1, 1)) && takes(4, epoch(1, 1)) && takes(6, epoch(2, 1)));
    assert!(!takes(5, epoch(1, 1)), "it has what was lost");
    assert!(!takes(6, epoch(1, 1)), "it has something else there");
    assert!(!takes(99, epoch(2, 1)), "it has more");
}

/// A backup acknowledges what it was sent, or it is none.
#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let mut lone = Lone::new(settings()).with_backup();
    lone.acknowledged(lone.end().next(), true);
    assert!(lone.refused_backup());
}

/// The grant is the last word on whose disk counts, so the own log has to name the backup before: a primary that crashes
/// in between would open alone, beside a backup that may be promoted.
#[test]
fn the_grant_waits_for_the_log_that_names_the_backup() {
    let mut lone = Lone::new(settings());
    lone.slow = true;
    lone.dialled(LINK, 0, Epoch::ZERO, false);
    for _ in 0..3 {
        lone.acknowledged(lone.end(), false);
    }
    assert_eq!(lone.core.state().target(), Target::Backup(NodeId(2)));
    assert!(!lone.was_granted());
    lone.give(Input::Persisted(lone.end()));
    lone.acknowledged(lone.end(), false);
    assert!(lone.was_granted());
}

/// Before it was restarted in place its own disk made things stable, which were acknowledged; all that it knows of that is a
/// lower bound. Granted too early, the backup could be promoted without what clients had released.
#[test]
fn a_backup_lacks_what_was_acknowledged_before_a_restart() {
    let target = Target::Backup(NodeId(2));
    let logs_first = EpochStart { log_before_send: true, ..EpochStart::default() };
    let mut headers = log(logs_first);
    headers.push(header(epoch(1, 1), 4, Body::Config(target), None));
    headers.push(header(epoch(1, 1), 5, Body::Noop, None));
    let settings = PrimarySettings { log_before_send: true, ..settings() };
    let mut east = Lone::start(settings, Marks { stable: Lsn(2), ..marks() }, headers);
    assert_eq!(east.role(), Role::Primary, "it goes on in its reign");
    east.dialled(LINK, 4, epoch(1, 1), false);
    east.acknowledged(Lsn(4), false);
    assert!(!east.was_granted(), "5 may have been acknowledged, and the backup does not have it");
    east.acknowledged(Lsn(5), false);
    assert!(east.was_granted());
}

/// At lowest level `Stable` a takeover hears nobody, and only the backup can tell that there was none. While it is away a
/// query waits.
#[test]
fn no_backup_is_no_echo() {
    let mut lone = Lone::new(PrimarySettings { lowest: Level::Stable, ..settings() }).with_backup();
    lone.attach(1, 1);
    lone.acknowledged(lone.end(), true);
    lone.give(Input::Gone(LINK));
    let queries = vec![Query { id: 1, level: Level::Stable, payload: Bytes::new() }];
    lone.frame(1, ClientFrame { queries, ..ClientFrame::default() });
    assert!(!lone.told(1, result));
}

/// A request that is with the state machine is sent again on a new stream. It has its place already.
#[test]
fn what_is_being_executed_is_not_ordered_again() {
    let mut lone = Lone::new(settings());
    lone.attach(1, 1);
    lone.busy = Some(Vec::new());
    lone.frame(1, ClientFrame { writes: vec![write(1)], ..ClientFrame::default() });
    assert_eq!(lone.busy, Some(vec![(1, 0)]));
    lone.attach(2, 1);
    lone.frame(2, ClientFrame { writes: vec![write(1)], ..ClientFrame::default() });
    lone.execute(1, 0);
    lone.give(Input::Flush);
    assert_eq!(lone.busy, Some(vec![(1, 0)]), "once");
}

/// What is told of others' commands is told as a whole, and may end past the reply that it came with. A client that does nothing
/// more hears when all of it is stable, or it would keep it for ever.
#[test]
fn what_was_told_past_a_reply_is_stable_in_the_end() {
    let mut lone = Lone::new(settings()).with_backup();
    for (conn, client) in [(1, A), (2, B), (3, C)] {
        lone.attach_as(conn, client, 1);
        lone.acknowledged(lone.end(), true);
    }
    lone.write_together(&[(3, 1), (1, 1), (2, 1)]);
    let (end, frame) = (lone.end(), lone.last_frame(2));
    assert_eq!((frame.places[0].first, frame.places[0].last()), (end.prev().prev(), end));
    let tag = frame.responses[0].tag.unwrap();
    assert_eq!(tag.lsn, end.prev(), "of each session in its turn");
    for durable in [end.prev(), end] {
        lone.acknowledged(durable, true);
        lone.now = lone.now.after(1_000_000);
        lone.give(Input::Tick);
        lone.give(Input::Flush);
        assert_eq!(lone.last_frame(2).stable, durable);
    }
}

/// A service that logs before it sends goes on in its reign after a restart, and may order anew what was not in the log. So it
/// tells of nobody's place before that is in the log, not even together with others'.
#[test]
fn places_that_are_not_in_the_log_are_not_told() {
    let mut lone = Lone::new(PrimarySettings { log_before_send: true, ..settings() });
    lone.dialled(LINK, 0, Epoch::ZERO, false);
    for in_sync in [false, false, true, true] {
        lone.give(Input::Flush);
        lone.acknowledged(lone.end(), in_sync);
    }
    for (conn, client) in [(1, A), (2, B), (3, C)] {
        lone.attach_as(conn, client, 1);
        lone.give(Input::Flush);
        lone.acknowledged(lone.end(), true);
    }
    lone.slow = true;
    lone.write_together(&[(1, 1), (2, 1), (3, 1)]);
    let (third, second) = (lone.end(), lone.end().prev());
    lone.give(Input::Persisted(second));
    lone.give(Input::Flush);
    let frame = lone.last_frame(2);
    assert_eq!(frame.responses[0].tag.map(|tag| tag.lsn), Some(second));
    assert_eq!(frame.places, []);
    assert_eq!(frame.manifest.iter().map(|header| header.lsn).collect::<Vec<_>>(), [second.prev()]);
    lone.give(Input::Persisted(third));
    lone.give(Input::Flush);
    assert_eq!(lone.last_frame(3).places[0].last(), third);
}

/// A client's next number is the one after its last, unless that was superseded. Then it is told.
#[test]
fn a_number_that_is_not_the_next_is_told() {
    let mut lone = Lone::new(settings()).with_backup();
    for (conn, client) in [(1, A), (2, B)] {
        lone.attach_as(conn, client, 1);
        lone.acknowledged(lone.end(), true);
    }
    lone.attach(3, 5);
    lone.write_together(&[(3, 5), (2, 1)]);
    let places = lone.last_frame(2).places;
    let runs = places[0].runs().unwrap();
    assert_eq!(runs.iter().map(|run| run.request).collect::<Vec<_>>(), [Some(Request(5)), None]);
    assert!(places[0].confirms(&runs, [(A, Request(5)), (B, Request(1))].into_iter()));
}

/// Bytes that were damaged on their way to the primary end the stream; they are not ordered.
#[test]
fn a_damaged_command_is_refused() {
    let mut lone = Lone::new(settings());
    lone.attach(1, 1);
    let end = lone.end();
    let damaged = Write { payload: Bytes::from_static(b"b command"), ..write(1) };
    lone.frame(1, ClientFrame { writes: vec![damaged], ..ClientFrame::default() });
    assert!(lone.told(1, refused));
    assert_eq!(lone.end(), end);
}

/// Whoever is told that its session is closed forgets its cache. So that is said when the end itself is stable, and not on
/// another stream before.
#[test]
fn a_close_is_told_when_it_is_stable_and_not_before() {
    let mut lone = Lone::new(settings()).with_backup();
    lone.attach(1, 1);
    lone.acknowledged(lone.end(), true);
    lone.frame(1, ClientFrame { writes: vec![write(1)], ..ClientFrame::default() });
    lone.frame(1, ClientFrame { close: true, ..ClientFrame::default() });
    assert!(lone.core.state().session(A).is_none());
    lone.acknowledged(lone.end().prev(), true);
    assert_eq!(lone.core.watermarks().stable().next(), lone.end());
    assert!(!lone.told(1, closed));
    lone.attach(2, 2);
    assert!(!lone.told(2, refused) && !lone.told(2, closed), "its end may not survive");
    lone.acknowledged(lone.end(), true);
    assert!(lone.told(2, refused), "it is over");
}

/// A primary that hears of a higher epoch answers nobody any more, whatever waits.
#[test]
fn a_deposed_primary_answers_nobody() {
    let mut lone = Lone::new(PrimarySettings { lowest: Level::Stable, ..settings() }).with_backup();
    lone.attach(1, 1);
    lone.acknowledged(lone.end(), true);
    let queries = vec![Query { id: 1, level: Level::Stable, payload: Bytes::new() }];
    lone.frame(1, ClientFrame { queries, writes: vec![write(1)], ..ClientFrame::default() });
    let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: epoch(9, 2) };
    lone.give(Input::Client(Conn(9), ClientMessage::Hello(hello)));
    assert_eq!(lone.role(), Role::Deposed);
    lone.sent.clear();
    lone.acknowledged(lone.end(), true);
    lone.give(Input::Admin(Admin::Stop));
    assert!(!lone.told(1, |message| matches!(message, NodeMessage::Frame(_))));
}
