//! What a client keeps, shows, reports and sends again, a story each. A client alone, on a cache that is as slow as the
//! story needs; the nodes are played by hand.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use tagalong::client::{CacheImage, CacheOp, Client, ClientInput, ClientOutput, ClientSettings, Command, Identity};
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Epoch, GroupId, Header, Level, Lsn, NodeId, Reign, Request, SessionRole, Tag,
    Time,
};
use tagalong::message::{
    Attach, ClientFrame, ClientMessage, NodeFrame, NodeMessage, Outcome, QueryResult, Report, ReportItem, Response,
    Role, Status, VERSION, Welcome,
};
use tagalong::node::Conn;

const NOW: Time = Time(1);

fn epoch(number: u64) -> Epoch {
    Epoch { generation: 0, number, node: NodeId(number) }
}

/// A client, what it sent, and what it showed or stored, in order.
struct Member {
    core: Client,
    sent: Vec<ClientMessage>,
    shown: Vec<ClientOutput>,
    stored: Vec<CacheOp>,
    stores: u64,
    /// The cache takes its time.
    slow: bool,
}

impl Member {
    /// A process opens a cache in which these operations are.
    fn open(ops: &[CacheOp]) -> Self {
        let identity = Identity {
            client: ClientId(100),
            cluster: None,
            group: None,
            domain: "rack".to_owned(),
            role: SessionRole::Writer,
        };
        let mut image = CacheImage::default();
        image.apply(&CacheOp::Identity(identity));
        ops.iter().for_each(|op| image.apply(op));
        let mut out = Vec::new();
        let core = Client::new(ClientSettings::default(), image, NOW, &mut out);
        let (sent, shown, stored) = (Vec::new(), Vec::new(), Vec::new());
        let mut member = Self { core, sent, shown, stored, stores: 0, slow: false };
        member.carry_out(out);
        member
    }

    fn give(&mut self, input: ClientInput) {
        let mut out = Vec::new();
        self.core.step(NOW, input, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, out: Vec<ClientOutput>) {
        for output in out {
            match output {
                ClientOutput::Store(ops) => {
                    self.stores += 1;
                    self.stored.extend(ops);
                }
                ClientOutput::Send(_, message) => self.sent.push(message),
                other => self.shown.push(other),
            }
        }
        if !self.slow && self.stores > 0 {
            let mut out = Vec::new();
            self.core.step(NOW, ClientInput::Stored(self.stores), &mut out);
            if !out.is_empty() {
                self.carry_out(out);
            }
        }
    }

    fn hear(&mut self, conn: u64, message: NodeMessage) {
        self.give(ClientInput::Message(Conn(conn), message));
    }

    /// A node is there, in this role and reign.
    fn meet(&mut self, conn: u64, role: Role, epoch: Epoch) {
        self.give(ClientInput::Connected(Conn(conn)));
        let (version, cluster, group) = (VERSION, ClusterId(7), GroupId(8));
        let (node, domain) = (epoch.node, "east".to_owned());
        let status = Status { version, features: 0, cluster, group, node, domain, role, epoch, endpoints: Vec::new() };
        self.hear(conn, NodeMessage::Status(status));
    }

    /// A session, on this stream.
    fn attach(&mut self, conn: u64) {
        self.meet(conn, Role::Primary, epoch(1));
        let reigns = vec![Reign { epoch: epoch(1), start: Lsn(1), base: Lsn(0), gaps: Vec::new() }];
        self.hear(
            conn,
            NodeMessage::Welcome(Welcome {
                epoch: epoch(1),
                stable: Lsn(2),
                reigns,
                lowest: Level::Tagged,
                f: 0,
                refuse_uncovered: false,
                window: 64,
                window_bytes: 1 << 20,
                command_bytes_max: 1 << 20,
            }),
        );
    }

    fn write(&mut self) -> Request {
        let request = self.core.write(Bytes::from_static(b"a command"), Level::Tagged).unwrap();
        self.give(ClientInput::Flush);
        request
    }

    fn frames(&self) -> Vec<&ClientFrame> {
        let messages = self.sent.iter();
        messages.filter_map(|it| if let ClientMessage::Frame(frame) = it { Some(frame) } else { None }).collect()
    }

    fn attaches(&self) -> Vec<&Attach> {
        let messages = self.sent.iter();
        messages.filter_map(|it| if let ClientMessage::Attach(attach) = it { Some(attach) } else { None }).collect()
    }
}

fn tag(lsn: u64, hold_until: Option<u64>) -> Tag {
    Tag {
        epoch: epoch(1),
        lsn: Lsn(lsn),
        time: Time(lsn),
        hold_until: hold_until.map(Lsn),
        stable: Lsn(2),
        protected: true,
        met: Level::Tagged,
    }
}

fn command(request: u64) -> CacheOp {
    let payload = Bytes::from_static(b"a command");
    let (answered, level, digest) = (Request(0), Level::Tagged, Digest::crc32(&payload));
    let command = Command { answered, level, withdrawn: false, digest, payload, tag: None, reply: None };
    CacheOp::Command { request: Request(request), command }
}

fn answered(request: u64) -> CacheOp {
    CacheOp::Answered { request: Request(request), reply: Digest::crc32(b"done") }
}

fn reply(request: u64, lsn: u64) -> Response {
    let outcome = Some(Outcome::Reply(Bytes::from_static(b"done")));
    Response { request: Request(request), tag: Some(tag(lsn, Some(lsn))), outcome }
}

fn frame(seq: u64) -> NodeFrame {
    NodeFrame { epoch: epoch(1), seq, stable: Lsn(2), settled: Lsn(2), ..NodeFrame::default() }
}

/// A report has what nobody else may be able to say: commands in doubt; those that are held above the base, or below it for
/// the sake of others; and the headers just above the base.
#[test]
fn a_report_leaves_out_only_what_the_log_has() {
    let base = Lsn(5);
    let placed = |request, lsn, until| CacheOp::Tag { request: Request(request), tag: tag(lsn, until) };
    let mut ops: Vec<CacheOp> = (1..=6).map(command).collect();
    // In the log and needed by nobody; in the log and needed; likewise, as far as anyone knows; above it; in doubt.
    ops.extend([placed(1, 3, Some(3)), placed(2, 4, Some(9)), placed(3, 5, None), placed(4, 6, Some(6))]);
    ops.extend([placed(5, 8, Some(8))]);
    ops.extend((1..=5).map(answered));
    let seen = |lsn: u64| Header {
        epoch: epoch(1),
        lsn: Lsn(lsn),
        body: Body::Noop,
        origin: None,
        time: Time(lsn),
        answered: Request(0),
        length: 0,
        digest: Digest::default(),
    };
    ops.extend([CacheOp::Headers([5, 6, 7].map(seen).into()), CacheOp::Observed(epoch(1), Lsn(9))]);
    let mut member = Member::open(&ops);
    member.meet(1, Role::Recovering, epoch(2));
    member.sent.clear();
    member.hear(1, NodeMessage::RollCall { epoch: epoch(2), of: epoch(1), base });
    let [ClientMessage::Report(Report { items, observed, end: true, .. })] = &member.sent[..] else {
        panic!("{:?}", member.sent)
    };
    assert_eq!(*observed, (epoch(1), Lsn(9)));
    let names = items.iter().map(|item| match item {
        ReportItem::InDoubt { request, .. } => format!("{request} in doubt"),
        ReportItem::Held { header, .. } => format!("held at {}", header.lsn),
        ReportItem::Header(header) => format!("header of {}", header.lsn),
        ReportItem::Places(places) => format!("places {} to {}", places.first, places.last()),
        ReportItem::Share { id, .. } => format!("share {id}"),
    });
    let names: Vec<String> = names.collect();
    let expected = ["held at 4", "held at 5", "held at 6", "held at 8", "6 in doubt", "header of 6", "header of 7"];
    assert_eq!(names, expected);
}

/// Every process that opens a cache says so: what the one before it confirmed counts no more, and that one is refused.
#[test]
fn each_opening_of_a_cache_is_a_newer_incarnation() {
    let mut member = Member::open(&[CacheOp::Incarnation(3)]);
    assert!(member.stored.contains(&CacheOp::Incarnation(4)));
    member.meet(1, Role::Primary, epoch(1));
    assert_eq!(member.attaches()[0].incarnation, 4);
}

/// A client that reported to a reign goes to none below it, though the node of the newer one is gone and an older primary
/// is there and serves: whatever is read there may be over.
#[test]
fn nobody_goes_back_to_an_older_primary() {
    let mut member = Member::open(&[]);
    member.meet(1, Role::Recovering, epoch(2));
    assert!(member.stored.contains(&CacheOp::Reported(epoch(2))), "before it reports");
    member.give(ClientInput::Gone(Conn(1)));
    member.sent.clear();
    member.meet(2, Role::Primary, epoch(1));
    assert!(member.attaches().is_empty());
    member.meet(3, Role::Primary, epoch(2));
    assert_eq!(member.attaches().len(), 1);
}

/// Of two nodes that say that they serve, the one of the higher reign is right.
#[test]
fn the_newest_primary_is_chosen() {
    let mut member = Member::open(&[]);
    member.meet(1, Role::Primary, epoch(1));
    member.meet(2, Role::Primary, epoch(2));
    assert_eq!(member.attaches().last().unwrap().epoch, epoch(2));
    member.meet(3, Role::Primary, epoch(1));
    assert_eq!(member.attaches().len(), 2);
}

/// A command that leaves before the cache has it is in nobody's hands when its client and the primary die together.
#[test]
fn a_command_leaves_when_the_cache_has_it() {
    let mut member = Member::open(&[]);
    member.attach(1);
    (member.slow, member.sent) = (true, Vec::new());
    member.write();
    assert!(member.stored.iter().any(|op| matches!(op, CacheOp::Command { .. })));
    assert!(member.sent.is_empty());
    member.give(ClientInput::Stored(member.stores));
    assert_eq!(member.frames().len(), 1);
}

/// What a query shows has been observed, and the cache knows that first: a client that dies with the result on its screen
/// and comes back has to report it.
#[test]
fn a_result_is_shown_when_the_cache_knows_of_it() {
    let mut member = Member::open(&[]);
    member.attach(1);
    let id = member.core.query(Bytes::from_static(b"what"), Level::Tagged).unwrap();
    member.give(ClientInput::Flush);
    (member.slow, member.stored, member.shown) = (true, Vec::new(), Vec::new());
    let results = vec![QueryResult { id, lsn: Lsn(6), result: Ok(Bytes::from_static(b"this")) }];
    member.hear(1, NodeMessage::Frame(NodeFrame { results, ..frame(1) }));
    assert!(member.stored.contains(&CacheOp::Observed(epoch(1), Lsn(6))), "{:?}", member.stored);
    assert!(member.shown.is_empty(), "{:?}", member.shown);
    member.give(ClientInput::Stored(member.stores));
    assert!(matches!(member.shown[..], [ClientOutput::Result { .. }]));
}

/// A client says up to where it has all replies. A later one that is here already does not make up for one that is not:
/// that one would be pruned, and its command called superseded.
#[test]
fn a_missing_reply_is_not_said_to_be_here() {
    let mut member = Member::open(&[]);
    member.attach(1);
    member.write();
    member.write();
    member.hear(1, NodeMessage::Frame(NodeFrame { responses: vec![reply(2, 4)], ..frame(1) }));
    member.write();
    let last = member.frames().last().unwrap().writes.last().unwrap().clone();
    assert_eq!((last.request, last.answered), (Request(3), Request(0)));
    member.hear(1, NodeMessage::Frame(NodeFrame { responses: vec![reply(1, 3)], ..frame(2) }));
    member.write();
    let last = member.frames().last().unwrap().writes.last().unwrap().clone();
    assert_eq!((last.request, last.answered), (Request(4), Request(2)));
}

/// On a new stream a client sends again what is unanswered, in order, and asks its queries again.
#[test]
fn a_new_stream_begins_with_what_is_open() {
    let mut member = Member::open(&[]);
    member.attach(1);
    member.write();
    member.write();
    member.core.query(Bytes::from_static(b"what"), Level::Tagged).unwrap();
    member.give(ClientInput::Flush);
    member.hear(1, NodeMessage::Frame(NodeFrame { responses: vec![reply(1, 3)], ..frame(1) }));
    member.give(ClientInput::Gone(Conn(1)));
    member.sent.clear();
    member.attach(2);
    member.give(ClientInput::Flush);
    assert_eq!(member.attaches()[0].from, Request(2));
    let again: Vec<_> = member.frames().iter().flat_map(|frame| &frame.writes).map(|write| write.request).collect();
    assert_eq!(again, [Request(2)]);
    assert_eq!(member.frames().iter().map(|frame| frame.queries.len()).sum::<usize>(), 1);
}

/// A command whose tag does not say how long it has to be held waits for the word that everything up to it is settled, and
/// a checkpoint alone does not release it.
#[test]
fn what_has_no_end_is_held_until_it_is_settled() {
    let mut member = Member::open(&[]);
    member.attach(1);
    member.write();
    let responses = vec![Response { tag: Some(tag(3, None)), ..reply(1, 3) }];
    member.hear(1, NodeMessage::Frame(NodeFrame { responses, ..frame(1) }));
    member.hear(1, NodeMessage::Frame(NodeFrame { stable: Lsn(9), settled: Lsn(2), ..frame(2) }));
    assert_eq!(member.core.image().commands.len(), 1);
    member.hear(1, NodeMessage::Frame(NodeFrame { stable: Lsn(9), settled: Lsn(9), ..frame(3) }));
    assert!(member.core.image().commands.is_empty());
}
