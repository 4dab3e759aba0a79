//! A primary and its clients around [`Cover`], played by hand, and the steps of a history.
//!
//! The primary feeds entries, pushes and confirms; a client is a real [`CacheImage`], so that what is released, and when,
//! is decided by the code that decides it in a client. Streams are queues: what is in them when a stream breaks is lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use tagalong::client::{CacheImage, CacheOp, Command};
use tagalong::log::{
    Body, ClientId, Digest, Entry, Epoch, Header, Level, Lsn, NodeId, Origin, Request, SessionInfo, Tag, Target, Time,
};
use tagalong::share::Share;
use tagalong::share::body::Plain;
use tagalong::share::cover::{Cover, CoverSettings, Domain};

/// The primary's own failure domain.
pub const HERE: &str = "here";
pub const EPOCH: Epoch = Epoch { generation: 0, number: 3, node: NodeId(7) };

/// Where a client is, and how much it keeps for others.
#[derive(Clone, Debug)]
pub struct Site {
    pub domain: &'static str,
    pub room: u64,
}

/// What a client's cache is like when its session comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// The same process goes on.
    Same,
    /// Another process opened it.
    Reopened,
    /// Another process opened it, and neither tags nor shares were in it.
    Torn,
    /// Another process opened it, and nothing was in it.
    Empty,
}

#[derive(Clone, Debug)]
pub enum Step {
    Write {
        client: usize,
        length: u32,
        level: Level,
    },
    /// A command that was withdrawn, and takes a number without effect.
    Withdrawn {
        client: usize,
    },
    /// The stream breaks when the command is in the primary's queue.
    Orphan {
        client: usize,
        length: u32,
    },
    /// An entry of the node itself, or one that concerns a session.
    System {
        of_session: bool,
    },
    /// The client reads so many frames.
    Deliver {
        client: usize,
        most: usize,
    },
    /// So many confirms arrive, not in order.
    Confirm {
        client: usize,
        at: usize,
        most: usize,
    },
    Break {
        client: usize,
    },
    Return {
        client: usize,
        cache: Cache,
    },
    /// The client asks for its end, which comes when nobody needs it.
    Retire {
        client: usize,
    },
    Stabilize {
        by: u64,
    },
    Pass {
        us: u64,
    },
    /// Room is taken for a share that nobody counts on.
    Lend {
        client: usize,
        cost: u64,
    },
    /// Time passes, and everything in flight arrives, but for what concerns one client.
    Calm {
        but: Option<usize>,
    },
    /// The same at once: what waits for members goes on waiting.
    Arrive {
        but: Option<usize>,
    },
}

/// A history.
#[derive(Clone, Debug)]
pub struct Plan {
    pub settings: CoverSettings,
    /// Every author is told of its tag at once, as where a reply may go out before it is covered.
    pub tags_first: bool,
    pub sites: Vec<Site>,
    /// Each step, and what the primary does after it.
    pub steps: Vec<(Step, Flush)>,
}

/// Whether the primary ends a batch: it seals what is due, and writes to its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    Not,
    /// And more is in its queue.
    Coming,
    Idle,
}

#[derive(Clone, Debug)]
enum Frame {
    Tag(Request, Tag),
    Reply(Request, Tag),
    Share(Share),
    Mark,
}

#[derive(Clone, Copy, Debug)]
enum Confirm {
    Tagged(Lsn),
    Share(u64),
}

pub struct Client {
    pub id: ClientId,
    pub domain: Domain,
    named: &'static str,
    room: u64,
    incarnation: u64,
    last: Request,
    /// What the cache holds. Of a client that is away this is what it may come back with.
    pub image: CacheImage,
    /// Commands were lost.
    forgetful: bool,
    pub standing: bool,
    /// Ended in good order.
    pub ended: bool,
    retiring: bool,
    /// Where in the log its end is, which comes when that is stable.
    closing: Option<Lsn>,
    inbox: VecDeque<(Frame, Lsn, Lsn)>,
    outbox: Vec<Confirm>,
    told: (Lsn, Lsn),
}

impl Client {
    /// Whether what it holds counts: not if it shares the primary's fate.
    pub fn counts(&self) -> bool {
        self.named != HERE
    }

    /// Whether whoever takes over waits for it: not when its end may be in the log already.
    pub fn lasts(&self) -> bool {
        self.standing && self.closing.is_none()
    }
}

/// A client was cut off, or its cache was lost.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    /// What was covered then: what the mark passed since does not count on the client.
    pub covered: Lsn,
    /// The cache was lost: the client's return mends nothing.
    lost: bool,
}

pub struct World {
    settings: CoverSettings,
    tags_first: bool,
    pub cover: Cover,
    pub clients: Vec<Client>,
    /// The true log, from LSN 1 on.
    pub log: Vec<Entry>,
    pub stable: Lsn,
    now: Time,
    levels: BTreeMap<Lsn, Level>,
    index: BTreeMap<(ClientId, Request), Lsn>,
    /// Tags to be sent.
    untold: Vec<(usize, Lsn)>,
    /// Replies to be sent.
    awaiting: BTreeMap<Lsn, usize>,
    /// Shares that were pushed on a stream that stands, with their holders and how long they are needed.
    unconfirmed: BTreeMap<u64, (usize, Lsn)>,
    /// What each share that was ever pushed says.
    pub shares: BTreeMap<u64, Plain>,
    /// Clients whose loss is not made good yet.
    pub damaged: BTreeMap<usize, Damage>,
    marks: (Lsn, Lsn),
}

impl World {
    pub fn new(plan: &Plan) -> Self {
        let settings = plan.settings.clone();
        let now = Time(1_000_000);
        let cover = Cover::new(settings.clone(), EPOCH, HERE, Lsn(0), Lsn(1), now);
        let clients = plan.sites.iter().zip(1u128..).map(|(site, n)| Client {
            id: ClientId(n),
            domain: Domain::of(ClientId(n), site.domain),
            named: site.domain,
            room: site.room,
            incarnation: 1,
            last: Request(0),
            image: CacheImage::default(),
            forgetful: false,
            standing: false,
            ended: false,
            retiring: false,
            closing: None,
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            told: (Lsn(0), Lsn(0)),
        });
        let mut world = Self {
            settings,
            tags_first: plan.tags_first,
            cover,
            clients: clients.collect(),
            log: Vec::new(),
            stable: Lsn(0),
            now,
            levels: BTreeMap::new(),
            index: BTreeMap::new(),
            untold: Vec::new(),
            awaiting: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            shares: BTreeMap::new(),
            damaged: BTreeMap::new(),
            marks: (Lsn(0), Lsn(0)),
        };
        (0..world.clients.len()).for_each(|at| world.join(at));
        world
    }

    pub fn head(&self) -> Lsn {
        Lsn(self.log.len() as u64)
    }

    pub fn entry(&self, lsn: Lsn) -> Option<&Entry> {
        self.log.get(usize::try_from(lsn.0.checked_sub(1)?).ok()?)
    }

    pub fn lsn_of(&self, client: ClientId, request: Request) -> Option<Lsn> {
        self.index.get(&(client, request)).copied()
    }

    pub fn is_damaged(&self, at: usize) -> bool {
        self.damaged.contains_key(&at)
    }

    /// How many failure domains may be lost.
    pub fn f(&self) -> usize {
        usize::from(self.settings.f)
    }

    /// Carries out a step, where it makes sense.
    pub fn step(&mut self, step: &Step, flush: Flush) {
        match *step {
            Step::Write { client, length, level } => self.write(client, length, level, Body::Command, false),
            Step::Withdrawn { client } => self.write(client, 0, Level::Tagged, Body::Noop, false),
            Step::Orphan { client, length } => self.write(client, length, Level::Covered, Body::Command, true),
            Step::System { of_session } => self.system(of_session),
            Step::Deliver { client, most } => self.deliver(client % self.clients.len(), most),
            Step::Confirm { client, at, most } => self.confirm(client % self.clients.len(), at, most),
            Step::Break { client } => self.cut(client % self.clients.len()),
            Step::Return { client, cache } => self.come_back(client % self.clients.len(), cache),
            Step::Retire { client } => self.retire(client % self.clients.len()),
            Step::Stabilize { by } => self.stabilize(Lsn(self.stable.0 + by)),
            Step::Pass { us } => self.now = self.now.after(us),
            Step::Lend { client, cost } => self.lend(client % self.clients.len(), cost),
            Step::Calm { but } => self.calm(but.map(|at| at % self.clients.len())),
            Step::Arrive { but } => self.arrive(but.map(|at| at % self.clients.len())),
        }
        if flush != Flush::Not {
            self.flush(flush == Flush::Coming);
        }
        self.check();
    }

    fn write(&mut self, client: usize, length: u32, level: Level, body: Body, orphan: bool) {
        let at = client % self.clients.len();
        let client = &mut self.clients[at];
        if !client.standing || client.retiring {
            return;
        }
        client.last = client.last.next();
        let (id, request) = (client.id, client.last);
        let payload = payload(id, request, length);
        let digest = if body == Body::Command { Digest::crc32(&payload) } else { Digest::default() };
        let command = Command {
            answered: Request(0),
            level,
            withdrawn: body == Body::Noop,
            digest,
            payload: payload.clone(),
            tag: None,
            reply: None,
        };
        client.image.apply(&CacheOp::Command { request, command });
        if orphan {
            self.cut(at);
        }
        let lsn = self.head().next();
        let header = Header {
            epoch: EPOCH,
            lsn,
            body,
            origin: Some(Origin { client: id, request }),
            time: self.now,
            answered: Request(0),
            length,
            digest,
        };
        self.index.insert((id, request), lsn);
        self.levels.insert(lsn, level);
        if self.tags_first {
            self.untold.push((at, lsn));
        }
        self.awaiting.insert(lsn, at);
        self.add(Entry { header, payload });
    }

    fn system(&mut self, of_session: bool) {
        let info = SessionInfo { incarnation: 1, domain: "somewhere".to_owned(), ..SessionInfo::default() };
        if of_session {
            self.log_system(Body::Open(info), Some(ClientId(99)));
        } else {
            self.log_system(Body::Config(Target::Own), None);
        }
    }

    fn log_system(&mut self, body: Body, of: Option<ClientId>) {
        let origin = of.map(|client| Origin { client, request: Request(0) });
        let header = Header {
            epoch: EPOCH,
            lsn: self.head().next(),
            body,
            origin,
            time: self.now,
            answered: Request(0),
            length: 0,
            digest: Digest::default(),
        };
        self.add(Entry { header, payload: Bytes::new() });
    }

    fn add(&mut self, entry: Entry) {
        self.cover.add(self.now, &entry.header, &entry.payload);
        self.log.push(entry);
    }

    fn deliver(&mut self, at: usize, most: usize) {
        let client = &mut self.clients[at];
        for _ in 0..most {
            let Some((frame, stable, settled)) = client.inbox.pop_front() else { return };
            match frame {
                Frame::Tag(request, tag) => client.take_tag(request, tag),
                Frame::Reply(request, tag) => {
                    client.take_tag(request, tag);
                    client.image.apply(&CacheOp::Answered { request, reply: Digest::crc32(b"done") });
                }
                Frame::Share(share) => {
                    client.outbox.push(Confirm::Share(share.id));
                    client.image.apply(&CacheOp::Share(share));
                }
                Frame::Mark => {}
            }
            client.image.apply(&CacheOp::Stable(EPOCH, stable));
            client.image.apply(&CacheOp::Settled(EPOCH, settled));
            assert!(client.image.share_bytes <= client.room, "more shares than client {} has room for", client.id);
        }
    }

    fn confirm(&mut self, at: usize, from: usize, most: usize) {
        for n in 0..most {
            let client = &mut self.clients[at];
            if client.outbox.is_empty() {
                return;
            }
            let confirm = client.outbox.remove((from + n) % client.outbox.len());
            match confirm {
                Confirm::Tagged(lsn) => self.cover.tagged(client.id, lsn),
                Confirm::Share(share) => {
                    self.cover.confirmed(client.id, share);
                    self.unconfirmed.remove(&share);
                }
            }
            self.cover.advance();
        }
    }

    fn join(&mut self, at: usize) {
        let head = self.head();
        let client = &mut self.clients[at];
        client.standing = true;
        // Who lost commands does not know which.
        let from = if client.forgetful { Request(0) } else { client.image.first_unanswered() };
        self.cover.join((client.id, client.incarnation), client.named, client.room, from, head);
    }

    /// The primary sees the stream break.
    fn cut(&mut self, at: usize) {
        if !self.clients[at].standing {
            return;
        }
        self.lose_stream(at);
        self.clients[at].standing = false;
        self.damage(at, false);
        self.cover.leave(self.clients[at].id);
    }

    fn lose_stream(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.inbox.clear();
        client.outbox.clear();
        client.told = (Lsn(0), Lsn(0));
        self.untold.retain(|(to, _)| *to != at);
        self.awaiting.retain(|_, to| *to != at);
    }

    fn damage(&mut self, at: usize, lost: bool) {
        self.unconfirmed.retain(|_, (holder, _)| *holder != at);
        if self.clients[at].counts() && self.clients[at].closing.is_none() {
            let covered = self.cover.covered();
            let before = self.damaged.insert(at, Damage { covered, lost });
            if before.is_some_and(|before| before.lost) {
                self.damaged.insert(at, Damage { covered, lost: true });
            }
        }
    }

    /// A new stream of the session, whether or not the old one was seen to break.
    fn come_back(&mut self, at: usize, cache: Cache) {
        if self.clients[at].ended || self.clients[at].closing.is_some() {
            return;
        }
        self.lose_stream(at);
        let client = &mut self.clients[at];
        client.retiring = false;
        match cache {
            Cache::Same => {}
            Cache::Reopened => client.incarnation += 1,
            Cache::Torn => {
                client.incarnation += 1;
                let commands = std::mem::take(&mut client.image).commands;
                for (request, command) in commands {
                    let command = Command { tag: None, reply: None, ..command };
                    client.image.apply(&CacheOp::Command { request, command });
                }
            }
            Cache::Empty => {
                client.incarnation += 1;
                client.forgetful = true;
                client.image = CacheImage::default();
            }
        }
        match cache {
            Cache::Same => {}
            Cache::Reopened => self.unconfirmed.retain(|_, (holder, _)| *holder != at),
            Cache::Torn | Cache::Empty => self.damage(at, true),
        }
        // Its cache is what it was when it left.
        self.damaged.retain(|other, damage| *other != at || damage.lost);
        self.join(at);
        // From the first that was not answered on it sends everything again, what was answered as a filler.
        let Client { id, ref image, forgetful, last, .. } = self.clients[at];
        for request in (image.first_unanswered().0..=last.0).map(Request) {
            let command = image.commands.get(&request);
            if forgetful && command.is_none() {
                continue;
            }
            let lsn = self.index[&(id, request)];
            self.untold.push((at, lsn));
            if command.is_some_and(|command| command.reply.is_none()) {
                self.awaiting.insert(lsn, at);
            }
        }
    }

    fn retire(&mut self, at: usize) {
        if self.clients[at].standing {
            self.clients[at].retiring = true;
            self.cover.retire(self.clients[at].id);
        }
    }

    /// Ends the sessions that nobody needs, by an entry each: from then on nobody can count on them, and when that is stable
    /// they are gone with all that they hold.
    fn end_retired(&mut self) {
        for at in 0..self.clients.len() {
            let Client { id, retiring, standing, ended, closing, .. } = self.clients[at];
            let drained = !self.awaiting.values().any(|to| *to == at) && self.cover.needed_until(id) <= self.stable;
            if closing.is_some_and(|lsn| lsn <= self.stable) && !ended {
                self.lose_stream(at);
                self.unconfirmed.retain(|_, (holder, _)| *holder != at);
                let client = &mut self.clients[at];
                (client.standing, client.ended) = (false, true);
                client.image = CacheImage::default();
                self.cover.leave(id);
            } else if retiring && standing && closing.is_none() && drained {
                self.clients[at].closing = Some(self.head().next());
                self.log_system(Body::Close, Some(id));
            }
        }
    }

    pub fn stabilize(&mut self, stable: Lsn) {
        self.stable = stable.min(self.head()).max(self.stable);
        self.cover.stabilize(self.stable);
        self.unconfirmed.retain(|_, (_, until)| *until > self.stable);
    }

    fn lend(&mut self, at: usize, cost: u64) {
        let share = self.cover.next_share();
        self.cover.lend(self.clients[at].id, share, cost, self.head());
    }

    /// What the primary does at the end of a batch.
    pub fn flush(&mut self, coming: bool) {
        self.end_retired();
        let near = self.clients.iter().filter(|client| client.standing && !client.inbox.is_empty());
        let near = near.map(|client| client.id).collect();
        self.cover.settle(self.now, coming, near);
        for lsn in self.cover.take_unwitnessed() {
            if let Some(at) = self.awaiting.get(&lsn).copied() {
                self.untold.push((at, lsn));
            }
        }
        for (holder, share) in self.cover.take_pushes() {
            let at = self.clients.iter().position(|client| client.id == holder).expect("a client");
            let fresh = self.shares.insert(share.id, self.read(&share)).is_none();
            assert_eq!(share.holder, holder);
            assert!(fresh || self.clients[at].counts());
            if !self.clients[at].standing {
                continue;
            }
            self.unconfirmed.insert(share.id, (at, share.hold_until));
            self.send(at, Frame::Share(share));
        }
        for (at, lsn) in std::mem::take(&mut self.untold) {
            if let Some((request, tag)) = self.tag(lsn).filter(|_| self.clients[at].standing) {
                self.send(at, Frame::Tag(request, tag));
            }
        }
        let met = |lsn: &Lsn| match self.levels[lsn] {
            Level::Stable => *lsn <= self.stable,
            Level::Covered => *lsn <= self.cover.covered(),
            _ => true,
        };
        let ready: Vec<(Lsn, usize)> =
            self.awaiting.iter().filter(|(lsn, _)| met(lsn)).map(|(lsn, at)| (*lsn, *at)).collect();
        for (lsn, at) in ready {
            if let Some((request, tag)) = self.tag(lsn).filter(|_| self.clients[at].standing) {
                self.awaiting.remove(&lsn);
                self.send(at, Frame::Reply(request, tag));
            }
        }
        let marks = (self.stable, self.cover.settled());
        for at in 0..self.clients.len() {
            if self.clients[at].standing && self.clients[at].told != marks {
                self.send(at, Frame::Mark);
            }
        }
        self.unconfirmed.retain(|_, (_, until)| *until > self.stable);
        if self.is_repaired() {
            self.damaged.clear();
        }
    }

    /// Whether what was lost is made good: only then those who lost it do not count among the *f*.
    fn is_repaired(&self) -> bool {
        self.settings.custody_bytes_max == u64::MAX && !self.cover.is_short() && self.unconfirmed.is_empty()
    }

    /// What a share says, which has to be true.
    fn read(&self, share: &Share) -> Plain {
        let plain = Plain::decode(share.epoch, &share.body).expect("a share that reads back");
        assert!(!matches!(plain, Plain::Window { .. }), "a window in a stripe's place");
        for header in plain.headers() {
            assert_eq!(Some(header), self.entry(header.lsn).map(|entry| &entry.header));
        }
        let last = plain.headers().map(|header| header.lsn).max();
        assert!(last <= Some(share.hold_until), "a share that is dropped before its last member is stable");
        plain
    }

    fn send(&mut self, at: usize, frame: Frame) {
        let (stable, settled) = (self.stable, self.cover.settled());
        self.clients[at].told = (stable, settled);
        self.clients[at].inbox.push_back((frame, stable, settled));
    }

    fn tag(&self, lsn: Lsn) -> Option<(Request, Tag)> {
        let header = &self.entry(lsn)?.header;
        let held = lsn > self.cover.settled();
        let tag = Tag {
            epoch: EPOCH,
            lsn,
            time: header.time,
            hold_until: if held { self.cover.hold_until(lsn) } else { Some(Lsn(0)) },
            stable: self.stable,
            protected: false,
            met: Level::Tagged,
        };
        Some((header.origin?.request, tag))
    }

    /// Lets time pass, and everything in flight arrive.
    pub fn calm(&mut self, but: Option<usize>) {
        for _ in 0..8 {
            self.now = self.now.after(self.settings.wait_us);
            if self.exchange(but, false) {
                break;
            }
        }
    }

    /// Everything in flight arrives in no time, and more is in the primary's queue.
    fn arrive(&mut self, but: Option<usize>) {
        for _ in 0..8 {
            if self.exchange(but, true) {
                break;
            }
        }
    }

    /// One round of frames and confirms with all but one client. Whether that was all.
    fn exchange(&mut self, but: Option<usize>, coming: bool) -> bool {
        self.flush(coming);
        for at in (0..self.clients.len()).filter(|at| Some(*at) != but) {
            self.deliver(at, usize::MAX);
            self.confirm(at, 0, usize::MAX);
        }
        self.flush(coming);
        let quiet = |(at, client): (usize, &Client)| Some(at) == but || client.inbox.is_empty();
        self.clients.iter().enumerate().all(quiet)
    }

    /// Everybody who did not end the session comes back, as it was. Who lost commands does not count on them any more.
    pub fn heal(&mut self) {
        for at in 0..self.clients.len() {
            if self.clients[at].forgetful {
                self.cut(at);
            }
            if !self.clients[at].standing {
                self.come_back(at, Cache::Same);
            }
        }
    }

    /// Failure domains that can keep anything, and are not about to leave.
    pub fn holding_domains(&self) -> usize {
        let holds = |client: &&Client| client.standing && client.counts() && client.room > 0 && !client.retiring;
        self.clients.iter().filter(holds).map(|client| &client.domain).collect::<BTreeSet<_>>().len()
    }

    fn check(&mut self) {
        self.cover.check();
        let (covered, settled) = (self.cover.covered(), self.cover.settled());
        assert!(covered >= self.marks.0, "covered went back");
        assert!(settled >= self.marks.1 && settled <= self.stable, "settled went back, or past the checkpoint");
        self.marks = (covered, settled);
    }
}

impl Client {
    fn take_tag(&mut self, request: Request, tag: Tag) {
        let asks = |command: &&Command| command.reply.is_none() && command.tag != Some(tag);
        if self.image.commands.get(&request).filter(asks).is_some() {
            self.image.apply(&CacheOp::Tag { request, tag });
        }
        self.outbox.push(Confirm::Tagged(tag.lsn));
    }
}

/// What the command says: never the same twice, and unlike zeros.
fn payload(client: ClientId, request: Request, length: u32) -> Bytes {
    let mut state = u64::try_from(client.0).expect("small") ^ (request.0 << 32);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z ^ (z >> 27)).to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while bytes.len() < length as usize {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(length as usize);
    bytes.into()
}
