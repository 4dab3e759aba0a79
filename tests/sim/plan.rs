//! What a seed means: the service, its sizes, its clients, and which faults happen (not all of them in every run: a
//! fault that is always there hides what happens without it).

use tagalong::client::ClientSettings;
use tagalong::log::{GapPolicy, Level};
use tagalong::node::RecoveryPolicy;
use tagalong::primary::{PrimarySettings, Privacy, Uncovered};
use tagalong::rule::Rule;

use crate::dice::Dice;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A client's stream breaks.
    Break,
    /// A client's stream breaks, and one side does not notice for long.
    HalfOpen,
    /// A client cannot reach a node for a while.
    Partition,
    /// The replication stream breaks, and comes back soon.
    BreakLink,
    /// The replication link is cut for long.
    CutLink,
    /// A node's process or machine dies, and is started again.
    CrashPrimary,
    CrashBackup,
    /// A client's process dies. With a cache on disk it comes back; otherwise a new session begins.
    CrashClient,
    /// The primary's site is lost for good, and the backup promoted.
    LosePrimary,
    /// The same, and at the same instant failure domains of clients, with all their caches.
    LosePrimaryAndClients,
    /// A failure domain of clients is lost, with all their caches.
    LoseClients,
    /// A client's machine starts anew, and of its cache, which is not synced, the end is missing.
    Reboot,
    /// The backup is promoted though the primary lives.
    FalsePromotion,
    /// Both at once.
    CrashBoth,
    /// A disk, or a state machine, is slow for a while.
    Stall,
    /// The primary is stopped in good order, and started again.
    Stop,
    /// An operator ends a session.
    EndSession,
    /// An operator concludes a recovery early.
    Resolve,
    /// An operator excludes a reporter.
    Exclude,
    /// Promoting a backup that may not be in sync is tried.
    Promote,
    /// Something between the processes delivers what it still had of a stream of an older epoch.
    Ghost,
    /// The backup is promoted though the primary lives, and each client sees one of them.
    Split,
    /// A write of a node's disk fails, or every one for a while.
    FailDisk,
    FullDisk,
    /// The same of a client's cache.
    FailCache,
    FullCache,
    /// What one process sends another is late for a while.
    Lag,
    /// Nothing gets through in one direction.
    OneWay,
    /// A process does nothing for a while, and then everything that has gathered.
    Pause,
    /// A clock jumps ahead, and all timers are due.
    JumpClock,
    /// Any node is stopped in good order, whatever it is doing.
    StopAny,
    /// A part of all clients loses its streams at the same instant.
    BreakMany,
    /// A part of all clients' processes die at the same instant; the primary's with them; or its site is lost with them.
    CrashMany,
    CrashPrimaryAndMany,
    LosePrimaryAndMany,
}

/// What strikes many clients at once: where there are many.
const MASSES: [Fault; 4] = [Fault::BreakMany, Fault::CrashMany, Fault::CrashPrimaryAndMany, Fault::LosePrimaryAndMany];

/// Those that came later: whether there are any of them in a run is decided apart.
pub const TROUBLES: [Fault; 9] = [
    Fault::FailDisk,
    Fault::FullDisk,
    Fault::FailCache,
    Fault::FullCache,
    Fault::Lag,
    Fault::OneWay,
    Fault::Pause,
    Fault::JumpClock,
    Fault::StopAny,
];

pub const FAULTS: [Fault; 22] = [
    Fault::Break,
    Fault::HalfOpen,
    Fault::Partition,
    Fault::BreakLink,
    Fault::CutLink,
    Fault::CrashPrimary,
    Fault::CrashBackup,
    Fault::CrashClient,
    Fault::LosePrimary,
    Fault::LosePrimaryAndClients,
    Fault::LoseClients,
    Fault::Reboot,
    Fault::FalsePromotion,
    Fault::CrashBoth,
    Fault::Stall,
    Fault::Stop,
    Fault::EndSession,
    Fault::Resolve,
    Fault::Exclude,
    Fault::Promote,
    Fault::Ghost,
    Fault::Split,
];

#[derive(Clone, Debug)]
pub struct Plan {
    pub primary: PrimarySettings,
    pub client: ClientSettings,
    pub clients: usize,
    /// How many more there may be in place of those that are gone.
    pub spares: usize,
    /// Clients start at any time until then.
    pub arrive_us: u64,
    /// Clients end after more or fewer calls, and others come.
    pub churn: bool,
    /// Out of a hundred clients, how many have a cache on disk.
    pub persistent: u64,
    /// Failure domains that clients share; 0 if each has its own.
    pub racks: usize,
    /// Out of a hundred clients, how many are in the primary's own domain, only read, only hold, or have no room for shares.
    pub near: u64,
    pub readers: u64,
    pub holders: u64,
    pub roomless: u64,
    /// When a backup first appears.
    pub backup_at: Option<u64>,
    pub faults: Vec<Fault>,
    pub fault_every: u64,
    /// One that is certain, and when.
    pub disaster: Option<(u64, Fault)>,
    pub calm_until: u64,
    /// Nodes are ticked on and on while something is due that waits for their flush. It is no use, but schedules that lean
    /// towards a rule were found with it.
    pub restless: bool,
    /// When faults end and healing begins.
    pub heal_at: u64,
    pub lan_us: (u64, u64),
    pub wan_us: (u64, u64),
    pub disk_us: (u64, u64),
    pub machine_us: (u64, u64),
    pub flush_us: u64,
    pub store_us: u64,
    pub think_us: u64,
    pub calls: u64,
    pub keys: u64,
    pub payload_max: u64,
    /// Out of a hundred calls.
    pub queries: u64,
    pub odd_calls: u64,
    /// Out of a hundred calls, how many ask for `Stable`; of the others, for `Covered`.
    pub stable_writes: u64,
    pub covered_writes: u64,
    pub policy: RecoveryPolicy,
    /// Clients that send queries before what they send again, as the protocol allows.
    pub queries_first: bool,
    /// Clocks start anywhere, and differ in their rate by so many in a thousand.
    pub clocks: Option<u64>,
    /// Out of a hundred clients, how many read late, ask for all they can get, or call seldom.
    pub slow: u64,
    pub greedy: u64,
    pub trickling: u64,
}

impl Plan {
    pub fn new(dice: &mut Dice, bias: Option<Rule>) -> Self {
        let lowest = match dice.below(20) {
            0..9 => Level::Tagged,
            9..15 => Level::Covered,
            15..18 => Level::Stable,
            _ => Level::Local,
        };
        let f = match dice.below(10) {
            _ if lowest == Level::Tagged && dice.percent(60) => 0,
            0..6 => 1,
            6..9 => 2,
            _ => 3,
        };
        let shared = f > 0 || dice.percent(50);
        let gaps = if dice.percent(50) { GapPolicy::Stop } else { GapPolicy::Skip };
        let conclude = RecoveryPolicy::Conclude {
            gaps,
            soft_us: dice.between(30_000, 400_000),
            hard_us: dice.between(200_000, 3_000_000),
        };
        let policy = if dice.percent(60) { RecoveryPolicy::Wait } else { conclude };
        let tiny = dice.percent(40);
        let payload_max = dice.pick(&[0, 40, 400]);
        let command_bytes_max = 2_000;
        let mut primary = PrimarySettings {
            domain: "east".to_owned(),
            endpoint: String::new(),
            lowest,
            f,
            privacy: if shared { Privacy::Open } else { Privacy::Withheld },
            uncovered: if dice.percent(20) { Uncovered::Refuse } else { Uncovered::WhenStable },
            stripe_members: dice.pick(&[1, 2, 4, 8]),
            stripe_wait_us: dice.pick(&[0, 500, 5_000, 30_000]),
            // Who is passed over for being slow hides what a rule is there for.
            confirm_patience_us: 1_000_000,
            window_percent: dice.pick(&[0, 30, 100, 300]),
            custody_bytes_max: dice.pick(&[0, 600, 64 << 20, 64 << 20]),
            require_backup: dice.percent(10),
            log_before_send: dice.percent(15),
            reply_after_log: dice.percent(15),
            delta_bytes_max: if tiny { dice.between(2_000, 5_000) } else { 1 << 20 },
            window: if tiny { dice.between(1, 6) } else { dice.between(4, 64) },
            window_bytes: if tiny { 2_000 } else { 1 << 16 },
            command_bytes_max,
            sessions_max: 1_000,
            queries_max: 64,
            frame_bytes: dice.pick(&[1, 500, 1 << 18]),
            batch_max: if dice.percent(50) { usize::try_from(dice.between(1, 4)).expect("small") } else { 4_096 },
            checkpoint_every_us: dice.between(500, 20_000),
            suspend_after_us: if dice.percent(50) { dice.between(5_000, 60_000) } else { 1_000_000 },
            expire_after_us: if dice.percent(20) { dice.between(50_000, 500_000) } else { 0 },
            replication_window_bytes: if dice.percent(50) { dice.between(200, 3_000) } else { 1 << 20 },
            pull_credit_bytes: if dice.percent(50) { dice.between(1, 600) } else { 1 << 20 },
            decode_bytes_max: 1 << 24,
            policy,
        };
        let cache_bytes_max = if dice.percent(30) { dice.between(8_192, 12_000) } else { 1 << 20 };
        let client = ClientSettings {
            unsent_bytes_max: 64 << 20,
            cache_bytes_max,
            share_bytes_max: dice.pick(&[1_000, 4_000, 1 << 19, 1 << 19]).min(cache_bytes_max / 2),
            confirm_delay_us: dice.between(100, 4_000),
            queries_max: 32,
            volatile: false,
        };
        let chance = dice.pick(&[15, 30, 50]);
        let faults = FAULTS.iter().copied().filter(|_| dice.percent(chance)).collect();
        let wan = dice.pick(&[1_000, 5_000, 20_000, 60_000]);
        let backup_at = match dice.below(10) {
            0..7 => Some(0),
            7..9 => Some(dice.between(10_000, 200_000)),
            _ => None,
        };
        primary.require_backup &= backup_at.is_some();
        let clients = if f > 0 { dice.between(u64::from(f) + 1, 8) } else { dice.between(1, 5) };
        let mut plan = Self {
            primary,
            client,
            clients: usize::try_from(clients).expect("small"),
            spares: 8,
            arrive_us: 10_000,
            churn: false,
            persistent: dice.pick(&[0, 50, 100]),
            racks: if dice.percent(30) { usize::try_from(dice.between(1, clients)).expect("small") } else { 0 },
            near: dice.pick(&[0, 10]),
            readers: dice.pick(&[0, 0, 20]),
            holders: dice.pick(&[0, 0, 30]),
            roomless: dice.pick(&[0, 0, 20]),
            backup_at,
            faults,
            fault_every: dice.pick(&[5_000, 15_000, 40_000, 100_000]),
            disaster: None,
            calm_until: 30_000,
            restless: bias.is_some(),
            heal_at: dice.between(200_000, 700_000),
            lan_us: (50, dice.pick(&[100, 500, 3_000])),
            wan_us: (wan / 2, wan),
            disk_us: (10, dice.pick(&[100, 1_000, 8_000])),
            machine_us: (1, dice.pick(&[10, 200, 3_000])),
            flush_us: dice.pick(&[1, 100, 1_000]),
            store_us: dice.pick(&[5, 200, 2_000]),
            think_us: dice.pick(&[300, 2_000, 8_000]),
            calls: dice.between(5, 60),
            keys: dice.pick(&[1, 3, 20]),
            payload_max,
            queries: dice.pick(&[0, 20, 50]),
            odd_calls: dice.pick(&[0, 5, 15]),
            stable_writes: dice.pick(&[0, 10, 50]),
            covered_writes: dice.pick(&[0, 20, 50]),
            policy,
            queries_first: dice.percent(20),
            clocks: None,
            slow: 0,
            greedy: 0,
            trickling: 0,
        };
        match bias {
            Some(rule) => plan.lean(rule, dice),
            None => {
                plan.primary.confirm_patience_us = dice.pick(&[2_000, 20_000, 100_000]);
                plan.trouble(dice);
            }
        }
        plan
    }

    /// What half of the runs have beside: troubles, clocks that differ, clients with habits; not all of them at once.
    fn trouble(&mut self, dice: &mut Dice) {
        if dice.percent(50) {
            return;
        }
        let chance = dice.pick(&[15, 30, 60]);
        self.faults.extend(TROUBLES.iter().copied().filter(|_| dice.percent(chance)));
        self.clocks = dice.pick(&[None, None, Some(20), Some(400)]);
        self.primary.queries_max = dice.pick(&[64, 64, 2]);
        self.slow = dice.pick(&[0, 0, 0, 30]);
        self.greedy = dice.pick(&[0, 0, 0, 50]);
        self.trickling = dice.pick(&[0, 0, 0, 30]);
    }

    /// The same for a service with so many clients: what is for each of them stays as it is, what is for all of them
    /// together grows along, and each lives for a few calls. With `f` 0 the service is `Tagged`, otherwise `Covered`.
    pub fn crowd(mut self, clients: usize, f: u8, dice: &mut Dice) -> Self {
        let many = clients as u64;
        let primary = &mut self.primary;
        (primary.lowest, primary.f) = if f > 0 { (Level::Covered, f) } else { (Level::Tagged, 0) };
        if f > 0 {
            primary.privacy = Privacy::Open;
        }
        primary.sessions_max = 4 * clients;
        // Less than a write of each; or more than a cut link fills.
        primary.delta_bytes_max = many * dice.pick(&[100, 100_000]) + primary.command_bytes_max;
        primary.replication_window_bytes = primary.replication_window_bytes.max(100 * many);
        primary.pull_credit_bytes = primary.pull_credit_bytes.max(600);
        primary.batch_max = primary.batch_max.max(clients / 8);
        primary.decode_bytes_max = 1 << 28;
        (self.clients, self.spares) = (clients, clients / 8);
        (self.arrive_us, self.churn) = (dice.pick(&[10_000, 200_000]), dice.percent(60));
        self.racks = dice.pick(&[0, 0, 12, 40]);
        self.persistent = dice.pick(&[50, 90, 100]);
        self.backup_at = Some(self.backup_at.unwrap_or(0));
        let chance = dice.pick(&[30, 60, 100]);
        self.faults.extend(MASSES.iter().copied().filter(|_| dice.percent(chance)));
        (self.fault_every, self.calm_until) = (dice.pick(&[10_000, 40_000]), 100_000);
        self.heal_at = self.heal_at.max(400_000);
        let disasters = [Fault::LosePrimary, Fault::LosePrimaryAndClients, Fault::LosePrimaryAndMany];
        self.disaster = Some((dice.between(150_000, self.heal_at - 1), dice.pick(&disasters)));
        (self.keys, self.flush_us) = (dice.pick(&[20, 100]), dice.pick(&[100, 1_000]));
        (self.calls, self.think_us) = dice.pick(&[(4, 60_000), (8, 30_000), (16, 15_000)]);
        self
    }

    /// A service that covers what is written, with enough clients, and a delta that is never empty.
    fn cover(&mut self, dice: &mut Dice) {
        let primary = &mut self.primary;
        (primary.lowest, primary.f, primary.privacy) = (Level::Covered, 1, Privacy::Open);
        (primary.log_before_send, primary.reply_after_log, primary.require_backup) = (false, false, false);
        (primary.delta_bytes_max, primary.window, primary.window_bytes) = (1 << 20, 64, 1 << 16);
        (primary.suspend_after_us, primary.expire_after_us, primary.custody_bytes_max) = (1_000_000, 0, 64 << 20);
        (primary.replication_window_bytes, primary.pull_credit_bytes) = (1 << 20, 1 << 20);
        (primary.stripe_members, primary.stripe_wait_us) = (dice.pick(&[2, 4, 8]), dice.pick(&[0, 500, 5_000]));
        (self.policy, primary.policy) = (RecoveryPolicy::Wait, RecoveryPolicy::Wait);
        (self.client.cache_bytes_max, self.client.share_bytes_max) = (1 << 20, 1 << 19);
        (self.clients, self.racks, self.near, self.roomless) = (5, 0, 0, 0);
        (self.readers, self.holders, self.stable_writes, self.odd_calls) = (0, 0, 0, 0);
        (self.calls, self.think_us, self.fault_every) = (200, 1_000, 15_000);
        (self.wan_us, self.calm_until, self.heal_at) = ((8_000, 16_000), 150_000, 400_000);
        self.backup_at = Some(0);
    }

    /// Leans towards the schedules in which a missing rule shows.
    fn lean(&mut self, rule: Rule, dice: &mut Dice) {
        let short = |gaps| RecoveryPolicy::Conclude { gaps, soft_us: 15_000, hard_us: 40_000 };
        match rule {
            Rule::ReadEcho => {
                self.faults = vec![Fault::Split];
                self.primary.lowest = Level::Stable;
                self.primary.suspend_after_us = 1_000_000;
                self.backup_at = Some(0);
                (self.queries, self.clients, self.calls, self.think_us) = (85, 5, 100, 4_000);
                self.odd_calls = 0;
                (self.lan_us, self.wan_us) = ((50, 100), (50, 500));
            }
            Rule::MembersByRequest => {
                self.cover(dice);
                self.faults = vec![Fault::LosePrimaryAndClients];
                self.lan_us = (50, 3_000);
            }
            Rule::CoverEcho => {
                self.cover(dice);
                self.faults = vec![Fault::Split];
                (self.queries, self.calls, self.think_us) = (85, 100, 2_000);
                self.covered_writes = 0;
                (self.lan_us, self.wan_us) = ((50, 100), (50, 500));
            }
            Rule::Custody => {
                self.cover(dice);
                self.faults = vec![Fault::LoseClients, Fault::LosePrimaryAndClients, Fault::LosePrimaryAndClients];
                (self.clients, self.fault_every) = (7, 25_000);
                self.lan_us = (50, 100);
                (self.disk_us, self.store_us, self.machine_us, self.flush_us) = ((10, 100), 5, (1, 10), 1);
            }
            Rule::ConfirmByIncarnation => {
                self.cover(dice);
                self.faults = vec![Fault::Reboot, Fault::Reboot, Fault::LosePrimaryAndClients];
                self.persistent = 100;
                self.lan_us = (50, 100);
                (self.disk_us, self.store_us, self.machine_us, self.flush_us) = ((10, 100), 5, (1, 10), 1);
            }
            Rule::HoldersDrained => {
                self.cover(dice);
                self.faults = vec![Fault::EndSession, Fault::EndSession, Fault::Break, Fault::LosePrimaryAndClients];
                (self.primary.suspend_after_us, self.clients, self.fault_every) = (5_000, 7, 8_000);
                (self.primary.stripe_members, self.primary.stripe_wait_us) = (8, 30_000);
                (self.lan_us, self.wan_us) = ((50, 100), (500, 1_000));
            }
            Rule::UnknownEpochSuperseded => {
                self.faults = vec![Fault::CrashPrimary, Fault::LosePrimary, Fault::CutLink];
                self.primary.lowest = Level::Tagged;
                self.backup_at = Some(dice.between(5_000, 40_000));
                self.persistent = 100;
                self.disk_us = (10, 8_000);
            }
            Rule::ReportEpoch => {
                self.faults =
                    vec![Fault::CrashPrimary, Fault::LosePrimary, Fault::CrashBoth, Fault::CrashClient, Fault::CutLink];
                self.primary.lowest = Level::Tagged;
                self.primary.log_before_send = false;
                self.policy = short(GapPolicy::Stop);
                self.primary.policy = self.policy;
                self.backup_at = Some(0);
                (self.stable_writes, self.clients, self.persistent) = (30, 5, 50);
                self.fault_every = 10_000;
            }
            Rule::BackToBase => {
                self.faults = vec![
                    Fault::CrashPrimary,
                    Fault::CrashPrimary,
                    Fault::CrashBackup,
                    Fault::LosePrimary,
                    Fault::CutLink,
                    Fault::CrashClient,
                ];
                self.primary.lowest = Level::Tagged;
                self.primary.log_before_send = false;
                self.policy = short(GapPolicy::Skip);
                self.primary.policy = self.policy;
                self.backup_at = Some(0);
                self.primary.replication_window_bytes = 200;
                (self.keys, self.clients, self.persistent) = (20, 5, 50);
                self.fault_every = 10_000;
                self.disk_us = (10, 8_000);
            }
            Rule::SupersededFinal | Rule::ReleaseByEpoch => {
                let more = [Fault::LosePrimary, Fault::LosePrimary, Fault::Resolve, Fault::CutLink, Fault::CrashClient];
                self.faults.extend(more);
                self.primary.lowest = Level::Tagged;
                self.backup_at = Some(0);
                self.persistent = 50;
            }
            Rule::StreamEpoch => {
                self.faults = vec![Fault::Ghost, Fault::Ghost, Fault::Ghost, Fault::CrashPrimary];
                self.primary.lowest = Level::Tagged;
                self.primary.suspend_after_us = 1_000_000;
                self.backup_at = Some(0);
                (self.queries, self.clients, self.calls, self.think_us) = (50, 5, 60, 2_000);
                self.fault_every = 4_000;
                (self.lan_us, self.wan_us) = ((50, 3_000), (30_000, 60_000));
                self.client.confirm_delay_us = 100;
            }
            Rule::RefuseOldEpoch => {
                self.faults = vec![Fault::Ghost, Fault::Ghost, Fault::CrashPrimary];
                self.backup_at = Some(0);
                self.fault_every = 8_000;
                (self.lan_us, self.wan_us, self.disk_us) = ((50, 100), (50, 500), (10, 100));
            }
            Rule::ReportStands => {
                self.faults = vec![
                    Fault::CrashClient,
                    Fault::CrashClient,
                    Fault::LosePrimary,
                    Fault::CrashPrimary,
                    Fault::CutLink,
                ];
                self.primary.lowest = Level::Tagged;
                self.primary.pull_credit_bytes = 1;
                self.primary.log_before_send = false;
                self.backup_at = Some(0);
                (self.clients, self.persistent, self.payload_max, self.think_us) = (5, 0, 400, 1_000);
                self.primary.delta_bytes_max = 1 << 20;
                (self.lan_us, self.wan_us) = ((50, 3_000), (10_000, 20_000));
                self.fault_every = 10_000;
            }
            Rule::CleanMarkErased => {
                self.faults = vec![Fault::Stop, Fault::CrashPrimary];
                self.primary.lowest = Level::Tagged;
                self.primary.log_before_send = false;
                self.backup_at = None;
                self.primary.require_backup = false;
                (self.persistent, self.disk_us, self.fault_every) = (100, (10, 8_000), 15_000);
            }
            Rule::SuspendFinal | Rule::SuspendDrained => {
                self.faults.push(Fault::Break);
                self.primary.suspend_after_us = 5_000;
            }
            Rule::ManifestOwn => {
                self.faults = vec![Fault::Break];
                self.primary.lowest = Level::Tagged;
                self.backup_at = Some(0);
                (self.queries, self.clients, self.calls, self.think_us) = (50, 5, 100, 1_000);
                self.fault_every = 2_000;
                self.client.confirm_delay_us = 4_000;
                self.queries_first = true;
                (self.lan_us, self.wan_us) = ((50, 3_000), (30_000, 60_000));
            }
            _ => {}
        }
    }
}
