//! A client as its shell and its application run it: a core, a cache, and what the application was told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use tagalong::client::{CacheImage, CacheOp, Client, ClientEvent, ClientOutput, ClientSettings, Identity};
use tagalong::log::{ClientId, Request, SessionRole, Tag, Time};
use tagalong::message::Outcome;

/// How a command ended, as the application heard it.
#[derive(Clone, Debug)]
pub struct Told {
    pub reply: Option<Bytes>,
    pub tag: Option<Tag>,
    /// By which of the client's processes.
    pub life: u64,
}

impl Told {
    pub fn new(outcome: &Outcome, tag: Option<Tag>, life: u64) -> Self {
        let reply = match outcome {
            Outcome::Reply(reply) => Some(reply.clone()),
            _ => None,
        };
        Self { reply, tag, life }
    }

    /// Acknowledged, whether the state machine liked the command or not.
    pub fn is_reply(&self) -> bool {
        self.reply.is_some()
    }
}

pub struct Member {
    pub name: String,
    pub id: ClientId,
    pub settings: ClientSettings,
    pub core: Option<Client>,
    pub life: u64,
    /// What is in the cache on disk.
    pub cache: CacheImage,
    /// What was in it when somebody made a copy.
    pub copy: Option<CacheImage>,
    pub cache_stalls: bool,
    pub stores: VecDeque<Vec<CacheOp>>,
    pub stored: u64,
    /// The process will not come back, and what it had is lost.
    pub lost: bool,
    pub told: BTreeMap<Request, Told>,
    pub results: BTreeMap<u64, Result<Bytes, tagalong::Error>>,
    pub flushed: BTreeSet<u64>,
    pub events: Vec<ClientEvent>,
    pub over: Option<&'static str>,
}

impl Member {
    pub fn new(name: &str, number: u128, domain: &str, role: SessionRole, settings: ClientSettings) -> Self {
        let id = ClientId(100 + number);
        let identity = Identity { client: id, cluster: None, group: None, domain: domain.to_owned(), role };
        let mut cache = CacheImage::default();
        cache.apply(&CacheOp::Identity(identity));
        Self {
            name: name.to_owned(),
            id,
            settings,
            core: None,
            life: 0,
            cache,
            copy: None,
            cache_stalls: false,
            stores: VecDeque::new(),
            stored: 0,
            lost: false,
            told: BTreeMap::new(),
            results: BTreeMap::new(),
            flushed: BTreeSet::new(),
            events: Vec::new(),
            over: None,
        }
    }

    /// A process opens the cache.
    pub fn start(&mut self, now: Time, out: &mut Vec<ClientOutput>) {
        self.stored = 0;
        self.stores.clear();
        self.results.clear();
        self.flushed.clear();
        // A compaction writes the image back as operations, and must mean the same.
        let mut compact = CacheImage::default();
        self.cache.to_ops().iter().for_each(|op| compact.apply(op));
        assert_eq!(compact, self.cache, "a compacted cache means the same");
        self.core = Some(Client::new(self.settings.clone(), self.cache.clone(), now, out));
    }

    pub fn die(&mut self) {
        self.core = None;
        self.life += 1;
        self.stores.clear();
        self.cache_stalls = false;
    }

    /// The cache is taken to another failure domain.
    pub fn move_to(&mut self, domain: &str) -> Result<(), String> {
        let identity = self.cache.identity.as_mut().filter(|_| self.core.is_none());
        identity.ok_or_else(|| format!("{} is up", self.name))?.domain = domain.to_owned();
        Ok(())
    }

    /// The oldest write to the cache is done.
    pub fn store(&mut self) -> Option<u64> {
        for op in self.stores.pop_front()? {
            self.cache.apply(&op);
        }
        self.stored += 1;
        Some(self.stored)
    }

    /// What it has, or would find.
    pub fn image(&self) -> &CacheImage {
        self.core.as_ref().map_or(&self.cache, Client::image)
    }

    pub fn is_live(&self) -> bool {
        !self.lost && self.over.is_none()
    }

    /// Its acknowledged commands that it was told are lost.
    pub fn lost_requests(&self) -> BTreeSet<Request> {
        let lost = |event: &ClientEvent| match event {
            ClientEvent::Superseded { request, .. } => Some(*request),
            _ => None,
        };
        self.events.iter().filter_map(lost).collect()
    }

    pub fn was_rolled_back(&self) -> bool {
        self.events.iter().any(|event| matches!(event, ClientEvent::RolledBack { .. }))
    }
}
