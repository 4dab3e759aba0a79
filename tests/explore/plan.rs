//! What is explored: who is there, what they call, which faults there may be, and how many.

use tagalong::log::{GapPolicy, Level};
use tagalong::primary::{PrimarySettings, Privacy};

use crate::world::World;

/// One call of a client's application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Write(Level),
    Query(Level),
    Close,
}

/// How many faults of each kind there may still be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Faults {
    /// Streams between a client and a node that break.
    pub breaks: u8,
    /// The replication stream breaks.
    pub cuts: u8,
    /// Clients that crash and start again on their cache.
    pub client_crashes: u8,
    /// Clients that are gone with their cache.
    pub client_losses: u8,
    /// Clients whose cache goes back to what it was at the beginning; only for those that call nothing.
    pub tears: u8,
    /// Primaries that crash and start again.
    pub primary_crashes: u8,
    /// Backups that crash and start again.
    pub backup_crashes: u8,
    /// Primaries that are lost for good.
    pub primary_losses: u8,
    /// Primaries that are lost for good together with a failure domain of clients.
    pub disasters: u8,
    /// Promotions while the primary lives.
    pub suspicions: u8,
    /// Recoveries that an operator concludes without need.
    pub resolves: u8,
    /// Orderly stops.
    pub stops: u8,
    /// Sessions that an operator ends.
    pub ends: u8,
    /// Stragglers: what was sent in an older epoch arrives on a present stream.
    pub ghosts: u8,
    /// Times the clock moves on to the next timeout.
    pub ticks: u8,
}

/// A configuration.
#[derive(Clone)]
pub struct Plan {
    pub name: &'static str,
    pub primary: PrimarySettings,
    /// There is a backup.
    pub backup: bool,
    /// What each client calls, one after the other, at any time.
    pub scripts: Vec<Vec<Call>>,
    /// Failure domains; beyond the end each client is its own.
    pub domains: Vec<&'static str>,
    pub faults: Faults,
    /// How many clients have their session when the exploration begins.
    pub joined: usize,
    /// The backup is attached and in sync when it begins.
    pub attached: bool,
    /// The backup is so far away that nothing reaches it, or comes from it.
    pub far: bool,
    /// Nodes flush when they like: what came until then is ordered, answered and replicated together.
    pub batches: bool,
    /// The disks of these nodes take their time: what is durable is a choice.
    pub slow_disks: [bool; 3],
    /// So does the first node's state machine.
    pub slow_machine: bool,
    /// So do the clients' caches.
    pub slow_caches: bool,
    /// The clients have no cache on disk.
    pub volatile: bool,
    /// Timeouts may come before everything that is under way.
    pub early_ticks: bool,
    /// A frame's queries arrive before its writes.
    pub queries_first: bool,
    /// An operator promotes by force what is not in sync.
    pub force: bool,
    pub gaps: GapPolicy,
    /// Nothing that was acknowledged may be lost, though an operator concludes: what is missing was made good before.
    pub firm: bool,
    /// What is done before the exploration begins.
    pub begin: fn(&mut World),
    /// Moves at most, from there.
    pub depth: u32,
}

impl Plan {
    /// A primary with a backup in sync, clients that hold a session, and no faults.
    pub fn new(name: &'static str, scripts: &[&[Call]]) -> Self {
        let primary = PrimarySettings {
            domain: "east".to_owned(),
            suspend_after_us: 1 << 40,
            expire_after_us: 0,
            stripe_wait_us: 0,
            stripe_members: 2,
            window_percent: 0,
            ..PrimarySettings::default()
        };
        Self {
            name,
            primary,
            backup: true,
            scripts: scripts.iter().map(|script| script.to_vec()).collect(),
            domains: Vec::new(),
            faults: Faults::default(),
            joined: scripts.len(),
            attached: true,
            far: false,
            batches: false,
            slow_disks: [false; 3],
            slow_machine: false,
            slow_caches: false,
            volatile: false,
            early_ticks: false,
            queries_first: false,
            force: false,
            gaps: GapPolicy::Stop,
            firm: false,
            begin: |_| {},
            depth: u32::MAX,
        }
    }

    /// A service that covers what is written, for one failure domain.
    pub fn covered(name: &'static str, scripts: &[&[Call]]) -> Self {
        let mut plan = Self::new(name, scripts);
        (plan.primary.lowest, plan.primary.f, plan.primary.privacy) = (Level::Covered, 1, Privacy::Open);
        plan.faults.ticks = 4;
        plan
    }

    pub fn domain(&self, client: usize) -> String {
        self.domains.get(client).map_or_else(|| format!("rack-{client}"), |domain| (*domain).to_owned())
    }
}
