//! A client as its shell and its application run it: a core, a cache, calls.

use std::collections::{BTreeMap, VecDeque};

use tagalong::client::{CacheImage, CacheOp, Client, ClientEvent, ClientOutput, ClientSettings, Identity};
use tagalong::log::{ClientId, Epoch, Lsn, Request, SessionRole, Time};

use crate::clock::Clock;
use crate::dice::Dice;

/// How an application behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    Plain,
    /// What is sent to it arrives so much later: it reads late.
    Slow(u64),
    /// It calls and calls, with large payloads, until window and cache are full.
    Greedy,
    /// It calls seldom, with as little as there can be.
    Trickling,
}

pub struct SimClient {
    pub id: ClientId,
    pub core: Option<Client>,
    pub life: u64,
    pub persistent: bool,
    pub domain: String,
    pub role: SessionRole,
    /// It takes no shares.
    pub roomless: bool,
    /// What is in the cache on disk: the operations, and what they amount to.
    pub ops: Vec<CacheOp>,
    pub stored: CacheImage,
    pub stores: VecDeque<Vec<CacheOp>>,
    pub stores_done: u64,
    pub store_due: bool,
    pub calls_left: u64,
    pub closing: bool,
    /// Ended in good order, or by the service.
    pub ended: bool,
    /// The process died and took its cache along.
    pub lost: bool,
    /// The stream of its last attach.
    pub session: Option<u64>,
    /// Where each query's result was computed.
    pub result_at: BTreeMap<u64, (Epoch, Lsn, u64)>,
    /// When the reply to each request was sent.
    pub reply_sent: BTreeMap<Request, (Epoch, u64)>,
    pub told: Vec<ClientEvent>,
    /// The last value it saw of each key.
    pub seen: BTreeMap<u8, u64>,
    /// The stream of its last report to each epoch.
    pub reports: BTreeMap<Epoch, u64>,
    pub queries: BTreeMap<u64, ()>,
    pub flushes: Vec<u64>,
    pub flush_due: bool,
    pub tick_at: Option<u64>,
    pub habit: Habit,
    pub clock: Clock,
    /// The process does nothing until then.
    pub paused_until: u64,
    /// The next write to the cache fails; every one does until then.
    pub cache_fails: bool,
    pub full_until: u64,
}

/// Which client this is.
pub fn number(id: ClientId) -> usize {
    usize::try_from(id.0 - 100).expect("small")
}

impl SimClient {
    pub fn new(number: usize, persistent: bool, calls: u64, domain: String, role: SessionRole) -> Self {
        let id = ClientId(100 + number as u128);
        let identity = Identity { client: id, cluster: None, group: None, domain: domain.clone(), role };
        let first = CacheOp::Identity(identity);
        let mut stored = CacheImage::default();
        stored.apply(&first);
        Self {
            id,
            core: None,
            life: 0,
            persistent,
            domain,
            role,
            roomless: false,
            ops: vec![first],
            stored,
            stores: VecDeque::new(),
            stores_done: 0,
            store_due: false,
            calls_left: calls,
            closing: false,
            ended: false,
            lost: false,
            session: None,
            result_at: BTreeMap::new(),
            reply_sent: BTreeMap::new(),
            told: Vec::new(),
            seen: BTreeMap::new(),
            reports: BTreeMap::new(),
            queries: BTreeMap::new(),
            flushes: Vec::new(),
            flush_due: false,
            tick_at: None,
            habit: Habit::Plain,
            clock: Clock::default(),
            paused_until: 0,
            cache_fails: false,
            full_until: 0,
        }
    }

    /// A process opens the cache.
    pub fn start(&mut self, settings: &ClientSettings, now: Time, out: &mut Vec<ClientOutput>) {
        self.life += 1;
        self.stores.clear();
        self.stores_done = 0;
        self.store_due = false;
        self.session = None;
        self.closing = false;
        self.queries.clear();
        self.flushes.clear();
        self.flush_due = false;
        self.tick_at = None;
        // A compaction writes the image back as operations, and must mean the same.
        let mut compact = CacheImage::default();
        self.stored.to_ops().iter().for_each(|op| compact.apply(op));
        assert_eq!(compact, self.stored, "a compacted cache means the same");
        let share_bytes_max = if self.roomless { 0 } else { settings.share_bytes_max };
        let settings = ClientSettings { volatile: !self.persistent, share_bytes_max, ..settings.clone() };
        self.core = Some(Client::new(settings, self.stored.clone(), now, out));
    }

    /// The process dies: of what was on its way to the cache a prefix survives.
    pub fn crash(&mut self, dice: &mut Dice) {
        self.core = None;
        self.life += 1;
        self.paused_until = 0;
        if !self.persistent {
            self.lost = true;
            return;
        }
        let stores: Vec<CacheOp> = self.stores.drain(..).flatten().collect();
        let keep = dice.index(stores.len() + 1);
        for op in &stores[..keep] {
            self.stored.apply(op);
            self.ops.push(op.clone());
        }
    }

    /// The machine dies, and the cache was written without being synced: its end is lost. As far as this goes here no
    /// request number is given out twice for it.
    pub fn tear(&mut self, dice: &mut Dice) {
        let soft = |op: &&CacheOp| {
            let (tag, mark) =
                (matches!(op, CacheOp::Tag { .. }), matches!(op, CacheOp::Stable(..) | CacheOp::Settled(..)));
            tag || mark
                || matches!(op, CacheOp::Share(_) | CacheOp::Headers(_) | CacheOp::Places(_) | CacheOp::Observed(..))
        };
        let most = self.ops.iter().rev().take_while(soft).count();
        self.ops.truncate(self.ops.len() - dice.index(most + 1));
        self.stored = CacheImage::default();
        self.ops.iter().for_each(|op| self.stored.apply(op));
    }

    /// The oldest write to the cache is done.
    pub fn store(&mut self) -> Option<u64> {
        for op in self.stores.pop_front()? {
            self.stored.apply(&op);
            self.ops.push(op);
        }
        self.stores_done += 1;
        Some(self.stores_done)
    }

    pub fn is_live(&self) -> bool {
        !self.ended && !self.lost
    }

    /// What it fails together with.
    pub fn failure_domain(&self) -> String {
        if self.domain.is_empty() { format!("alone: {}", self.id) } else { self.domain.clone() }
    }

    /// What the client certainly still has.
    pub fn image(&self) -> &CacheImage {
        match &self.core {
            Some(core) if !self.persistent => core.image(),
            _ => &self.stored,
        }
    }
}
