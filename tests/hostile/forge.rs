//! Makes messages out of numbers.

use std::ops::Range;

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use tagalong::error::{Code, Error};
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GroupId, Header, Level, Lsn, NodeId, Origin,
    PLACES_MAX, Places, Placing, Record, Reign, Request, SessionInfo, SessionRole, Tag, Target, Time,
};
use tagalong::message::{
    Attach, BackupMessage, ClientFrame, ClientMessage, Hello, NodeFrame, NodeMessage, Outcome, Payloads, PeerHello,
    PrimaryMessage, Query, QueryResult, Report, ReportItem, Response, Role, Status, VERSION, Welcome, Write,
};
use tagalong::share::{Mode, Share};

pub(crate) const CLUSTER: ClusterId = ClusterId(7);
pub(crate) const GROUP: GroupId = GroupId(8);

/// Makes messages: mostly plausible numbers (the present epoch, LSNs near the head), at times absurd ones.
pub(crate) struct Forge {
    pub(crate) dice: ChaCha8Rng,
    pub(crate) epoch: Epoch,
    pub(crate) head: u64,
    pub(crate) next: Request,
}

impl Forge {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.dice.next_u64() % n
    }

    pub(crate) fn number(&mut self) -> u64 {
        match self.below(12) {
            0 => u64::MAX,
            1 => u64::MAX - 1,
            2 => 1 << 40,
            3..6 => (self.head + 2).saturating_sub(self.below(4)),
            _ => self.below(14),
        }
    }

    pub(crate) fn lsn(&mut self) -> Lsn {
        Lsn(self.number())
    }

    pub(crate) fn request(&mut self) -> Request {
        Request(self.number())
    }

    pub(crate) fn epoch(&mut self) -> Epoch {
        if self.below(10) < 7 {
            return self.epoch;
        }
        let generation = if self.below(12) == 0 { u32::MAX } else { 0 };
        let number = if self.below(10) == 0 { u64::MAX } else { self.below(4) };
        Epoch { generation, number, node: NodeId(self.below(3)) }
    }

    pub(crate) fn client(&mut self) -> ClientId {
        ClientId(100 + u128::from(self.below(4)))
    }

    pub(crate) fn many<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(4)).map(|_| make(self)).collect()
    }

    pub(crate) fn ranges(&mut self) -> Vec<Range<Lsn>> {
        self.many(|forge| forge.lsn()..forge.lsn())
    }

    pub(crate) fn bytes(&mut self) -> Bytes {
        let length = usize::try_from(self.below(20)).unwrap();
        Bytes::from(vec![u8::try_from(self.below(256)).unwrap(); length])
    }

    pub(crate) fn digest(&mut self, of: &[u8]) -> Digest {
        match self.below(6) {
            0 => Digest { algorithm: 9, value: self.number() },
            1 => Digest { algorithm: 1, value: self.number() },
            _ => Digest::crc32(of),
        }
    }

    pub(crate) fn level(&mut self) -> Level {
        [Level::Local, Level::Tagged, Level::Covered, Level::Stable][usize::try_from(self.below(4)).unwrap()]
    }

    pub(crate) fn role(&mut self) -> SessionRole {
        match self.below(6) {
            0 => SessionRole::Reader,
            1 => SessionRole::Holder,
            _ => SessionRole::Writer,
        }
    }

    pub(crate) fn domain(&mut self) -> String {
        ["", "rack", "east"][usize::try_from(self.below(3)).unwrap()].to_owned()
    }

    /// Of a share: nothing, garbage, or garbage that no frame has room for.
    pub(crate) fn share(&mut self) -> Share {
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

    pub(crate) fn reigns(&mut self) -> Vec<Reign> {
        self.many(|forge| Reign { epoch: forge.epoch(), start: forge.lsn(), base: forge.lsn(), gaps: forge.ranges() })
    }

    pub(crate) fn target(&mut self) -> Target {
        if self.below(2) == 0 { Target::Own } else { Target::Backup(NodeId(self.below(4))) }
    }

    pub(crate) fn body(&mut self) -> Body {
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

    pub(crate) fn header(&mut self, payload: &Bytes) -> Header {
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

    pub(crate) fn record(&mut self) -> Record {
        let payload = self.bytes();
        let header = self.header(&payload);
        Record { entry: Entry { header, payload }, reply: Digest::default() }
    }

    pub(crate) fn tag(&mut self) -> Tag {
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

    pub(crate) fn error(&mut self) -> Error {
        let codes = [Code::SessionExpired, Code::WrongEpoch, Code::Deposed, Code::Busy, Code::WrongCluster];
        Error::new(codes[usize::try_from(self.below(5)).unwrap()], "forged")
    }

    pub(crate) fn write(&mut self) -> Write {
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
    pub(crate) fn writes(&mut self) -> Vec<Write> {
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
    pub(crate) fn records(&mut self) -> Vec<Record> {
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

    /// Such as a primary could say, often of sessions that are there, and otherwise bytes.
    pub(crate) fn places(&mut self) -> Places {
        let (epoch, first, time) = (self.epoch(), self.lsn(), Time(self.number()));
        let first = Lsn(first.0.min(u64::MAX - 9));
        let mut placing = Placing::new(epoch);
        for at in 0..1 + self.below(4) {
            let lsn = Lsn(first.0 + at);
            let handle = u32::try_from(self.below(3) + at).unwrap();
            placing.push(lsn, time, (self.client(), self.request()), handle, self.request());
        }
        let places = placing.finish().swap_remove(0);
        match self.below(5) {
            0 => Places { who: self.bytes(), ..places },
            2 => Places { first: self.lsn(), ..places },
            1 => Places { count: u32::try_from(1 + self.below(u64::from(PLACES_MAX))).unwrap(), ..places },
            _ => places,
        }
    }

    pub(crate) fn item(&mut self) -> ReportItem {
        let payload = self.bytes();
        match self.below(5) {
            0 => ReportItem::Held { header: self.header(&payload), reply: None },
            1 => ReportItem::InDoubt {
                request: self.request(),
                length: u32::try_from(self.below(1 << 32)).unwrap(),
                digest: self.digest(&payload),
                answered: self.request(),
            },
            3 => ReportItem::Places(self.places()),
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

    pub(crate) fn client_says(&mut self) -> ClientMessage {
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

    pub(crate) fn backup_says(&mut self) -> BackupMessage {
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

    pub(crate) fn primary_says(&mut self) -> PrimaryMessage {
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
                records: self.records().into(),
            },
            _ => PrimaryMessage::Grant { epoch: self.epoch() },
        }
    }

    pub(crate) fn node_says(&mut self) -> NodeMessage {
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
                reigns: self.reigns(),
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
                places: self.many(Self::places),
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
