//! What goes wrong, what an operator does about it, and the healing in which everything must come to rest.

use std::collections::BTreeSet;

use tagalong::error::{Code, Error};
use tagalong::log::{Epoch, GapPolicy, Level, NodeId, Target};
use tagalong::message::Role;
use tagalong::node::Admin;
use tagalong::primary::Privacy;

use crate::client::{SimClient, number};
use crate::network::At;
use crate::plan::Fault;
use crate::world::{Event, World};

impl World {
    /// The node that is, or is about to be, the primary: of those that are not lost, the one of the highest epoch.
    pub fn sovereign(&self) -> Option<usize> {
        let reigns = |at: &usize| {
            let node = &self.nodes[*at];
            let minted = node.disk.marks.as_ref().is_some_and(|marks| marks.promised.node == node.id);
            !node.lost && (node.founder || minted || node.primary().is_some())
        };
        (0..self.nodes.len())
            .filter(reigns)
            .max_by_key(|at| self.nodes[*at].disk.marks.as_ref().map(|marks| marks.promised))
    }

    fn role(&self, at: usize) -> Option<Role> {
        self.nodes[at].primary().map(|primary| primary.status(self.nodes[at].clock.at(self.now)).status.role)
    }

    fn is_open(&self, at: usize) -> bool {
        self.role(at) == Some(Role::Primary)
    }

    fn backup(&self) -> Option<usize> {
        (0..self.nodes.len()).rev().find(|at| self.nodes[*at].backup().is_some() && !self.nodes[*at].lost)
    }

    fn some_stream(&mut self, link: bool) -> Option<u64> {
        let of_kind = self.streams.iter().filter(|(_, stream)| {
            matches!(stream.ends[0].at, At::Node(_)) == link && stream.ends.iter().all(|end| !end.dead)
        });
        let ids: Vec<u64> = of_kind.map(|(id, _)| *id).collect();
        if ids.is_empty() { None } else { Some(self.dice.pick(&ids)) }
    }

    pub fn fault(&mut self) {
        if self.healing {
            return;
        }
        let next = self.dice.between(1, 2 * self.plan.fault_every);
        self.after(next, Event::Fault);
        if self.plan.faults.is_empty() {
            return;
        }
        let fault = self.dice.pick(&self.plan.faults.clone());
        self.do_fault(fault);
    }

    pub fn do_fault(&mut self, fault: Fault) {
        if !matches!(fault, Fault::LosePrimary | Fault::LosePrimaryAndClients | Fault::LosePrimaryAndMany) {
            self.trouble();
        }
        if self.trace {
            self.note(format!("fault: {fault:?}"));
        }
        match fault {
            Fault::Break => {
                if let Some(id) = self.some_stream(false) {
                    self.break_stream(id, None);
                }
            }
            Fault::HalfOpen => {
                let link = self.dice.percent(30);
                if let Some(id) = self.some_stream(link) {
                    let (side, by) = (self.dice.index(2), self.dice.between(10_000, 400_000));
                    self.break_stream(id, Some((side, by)));
                }
            }
            Fault::Partition => {
                let client = self.dice.index(self.clients.len());
                let node = self.dice.index(self.nodes.len());
                let long = self.dice.between(5_000, 400_000);
                self.block(At::Client(client), At::Node(node), long);
            }
            Fault::BreakLink => {
                if let Some(id) = self.some_stream(true) {
                    self.break_stream(id, None);
                }
            }
            Fault::CutLink => {
                if let Some(backup) = self.backup()
                    && let Some(primary) = self.nodes[backup].follows
                {
                    let long = self.dice.between(20_000, 400_000);
                    self.block(At::Node(backup), At::Node(primary), long);
                }
            }
            Fault::CrashPrimary => {
                if let Some(at) = self.some_node(true) {
                    self.crash_for_a_while(at);
                }
            }
            Fault::CrashBackup => {
                if let Some(at) = self.some_node(false) {
                    self.crash_for_a_while(at);
                }
            }
            Fault::CrashBoth => {
                for at in 0..self.nodes.len() {
                    self.crash_for_a_while(at);
                }
            }
            Fault::BreakMany => self.break_many(),
            Fault::CrashMany => self.crash_many(),
            Fault::CrashPrimaryAndMany => {
                if let Some(at) = self.some_node(true) {
                    self.crash_for_a_while(at);
                    self.crash_many();
                }
            }
            Fault::LosePrimaryAndMany => self.lose_primary(Self::crash_many),
            Fault::CrashClient => {
                let client = self.dice.index(self.clients.len());
                self.crash_client(client);
            }
            Fault::LosePrimary => self.lose_primary(|_| {}),
            Fault::LosePrimaryAndClients => {
                let domains = self.dice.below(u64::from(self.plan.primary.f) + 2);
                self.lose_primary(|world| world.lose_clients(domains, true));
            }
            Fault::LoseClients => self.lose_clients(1, false),
            Fault::Reboot => {
                let client = self.dice.index(self.clients.len());
                if self.plan.primary.lowest == Level::Covered {
                    self.reboot_client(client);
                }
            }
            Fault::FalsePromotion => {
                if let Some(at) = self.backup()
                    && self.nodes[at].disk.marks.as_ref().is_some_and(|marks| marks.in_sync)
                {
                    let policy = self.plan.policy;
                    self.admin(at, Admin::Promote { force: false, policy });
                }
            }
            Fault::Promote => {
                if let Some(at) = self.backup() {
                    let policy = self.plan.policy;
                    self.admin(at, Admin::Promote { force: false, policy });
                }
            }
            Fault::FailDisk => self.fail_disk(false),
            Fault::FullDisk => self.fail_disk(true),
            Fault::FailCache => self.fail_cache(false),
            Fault::FullCache => self.fail_cache(true),
            Fault::Lag => self.lag(),
            Fault::OneWay => self.cut_one_way(),
            Fault::Pause => self.pause(),
            Fault::JumpClock => self.jump_clock(),
            Fault::Ghost => self.haunt(),
            Fault::Split => self.split(),
            Fault::Stall => {
                let at = self.dice.index(self.nodes.len());
                self.nodes[at].stalled_until = self.now + self.dice.between(5_000, 150_000);
                self.troubled_at = self.troubled_at.max(self.nodes[at].stalled_until);
            }
            Fault::Stop => {
                if let Some(at) = self.sovereign().filter(|at| self.is_open(*at)) {
                    self.admin(at, Admin::Stop);
                }
            }
            Fault::StopAny => {
                let at = self.dice.index(self.nodes.len());
                self.admin(at, Admin::Stop);
            }
            Fault::EndSession => {
                let client = self.clients[self.dice.index(self.clients.len())].id;
                if let Some(at) = self.sovereign().filter(|at| self.is_open(*at)) {
                    self.admin(at, Admin::EndSession(client));
                }
            }
            Fault::Resolve => {
                let policy = self.dice.pick(&[GapPolicy::Stop, GapPolicy::Skip]);
                if let Some(at) = self.sovereign().filter(|at| self.role(*at) == Some(Role::Recovering)) {
                    self.admin(at, Admin::Resolve(policy));
                }
            }
            Fault::Exclude => {
                let client = self.clients[self.dice.index(self.clients.len())].id;
                if let Some(at) = self.sovereign().filter(|at| self.role(*at) == Some(Role::Recovering)) {
                    self.oracle.excluded.insert(client);
                    self.admin(at, Admin::Exclude(client));
                }
            }
        }
    }

    fn some_node(&mut self, primary: bool) -> Option<usize> {
        let fit = |at: &usize| {
            let node = &self.nodes[*at];
            if primary { node.primary().is_some() } else { node.backup().is_some() }
        };
        let fit: Vec<usize> = (0..self.nodes.len()).filter(fit).collect();
        if fit.is_empty() { None } else { Some(self.dice.pick(&fit)) }
    }

    pub fn block(&mut self, a: At, b: At, long: u64) {
        self.blocked.insert((a.min(b), a.max(b)), self.now + long);
        let between = self.streams_of(a).filter(|(_, stream)| stream.has(b));
        let ids: Vec<u64> = between.map(|(id, _)| id).collect();
        for id in ids {
            let late = self.dice.percent(30).then(|| (self.dice.index(2), self.dice.between(5_000, 200_000)));
            self.break_stream(id, late);
        }
    }

    /// The primary is cut off from the backup, which is promoted, and each client sees one of the two.
    fn split(&mut self) {
        let (Some(old), Some(new)) = (self.sovereign(), self.backup()) else { return };
        let in_sync = self.nodes[new].disk.marks.as_ref().is_some_and(|marks| marks.in_sync);
        if !in_sync || self.nodes[new].follows != Some(old) {
            return;
        }
        let long = self.dice.between(50_000, 400_000);
        self.block(At::Node(old), At::Node(new), long);
        // Where a recovery may do without some domains, often no more than these see the old primary.
        let most =
            if self.plan.primary.lowest == Level::Covered && self.dice.percent(70) { self.plan.primary.f } else { 255 };
        let mut stay: BTreeSet<String> = BTreeSet::new();
        for client in 0..self.clients.len() {
            let domain = self.clients[client].failure_domain();
            let may_stay = stay.contains(&domain) || stay.len() < usize::from(most);
            let unseen = self.dice.pick(&[old, if may_stay { new } else { old }]);
            if unseen == new {
                stay.insert(domain);
            }
            self.block(At::Client(client), At::Node(unseen), long);
        }
        let policy = self.plan.policy;
        self.admin(new, Admin::Promote { force: false, policy });
    }

    fn crash_for_a_while(&mut self, at: usize) {
        self.crash_node(at);
        self.nodes[at].down_until = self.now + self.dice.between(1_000, 150_000);
    }

    /// Some of all clients, or almost half of them.
    fn many_clients(&mut self) -> Vec<usize> {
        let part = self.dice.pick(&[2, 15, 45]);
        (0..self.clients.len()).filter(|_| self.dice.percent(part)).collect()
    }

    fn break_many(&mut self) {
        let chosen: BTreeSet<At> = self.many_clients().into_iter().map(At::Client).collect();
        let theirs = self.streams.iter().filter(|(_, stream)| chosen.contains(&stream.ends[0].at));
        let ids: Vec<u64> = theirs.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.break_stream(id, None));
    }

    fn crash_many(&mut self) {
        self.many_clients().into_iter().for_each(|at| self.crash_client(at));
    }

    /// So many failure domains of clients are gone, with the primary's site or apart from it.
    fn lose_clients(&mut self, many: u64, site: bool) {
        let living = self.clients.iter().filter(|client| client.is_live() && client.life > 0);
        let mut domains: BTreeSet<String> = living.map(SimClient::failure_domain).collect();
        let near = domains.remove("east");
        let mut domains: Vec<String> = domains.into_iter().collect();
        let mut lost = Vec::new();
        if site && near && self.dice.percent(50) {
            lost.push("east".to_owned());
        }
        for _ in 0..many.min(domains.len() as u64) {
            lost.push(domains.swap_remove(self.dice.index(domains.len())));
        }
        self.note(format!("lost are {lost:?}"));
        for at in 0..self.clients.len() {
            if self.clients[at].life > 0 && lost.contains(&self.clients[at].failure_domain()) {
                self.lose_client(at);
            }
        }
    }

    /// The primary's site is gone, `and` what goes with it. An operator promotes the backup, by force if that is all there
    /// is.
    fn lose_primary(&mut self, and: impl FnOnce(&mut Self)) {
        let Some(primary) = self.sovereign() else { return };
        let Some(backup) = self.backup() else { return };
        let marks = self.nodes[backup].disk.marks.clone().unwrap_or_default();
        let begun = self.nodes[backup].backup().is_some_and(|core| core.state().epoch() != tagalong::log::Epoch::ZERO);
        if !begun || (!marks.in_sync && self.dice.percent(70)) {
            return;
        }
        let before = self.repaired_before(primary);
        self.oracle.on_disaster(&self.clients, before);
        and(self);
        self.lose(primary);
        // Whatever else was primary once is not to come back either.
        for at in 0..self.nodes.len() {
            let minted =
                self.nodes[at].disk.marks.as_ref().is_some_and(|marks| marks.promised.node == self.nodes[at].id);
            if at != backup && (minted || self.nodes[at].founder) && !self.nodes[at].lost {
                self.lose(at);
            }
        }
        let policy = self.plan.policy;
        if !marks.in_sync {
            self.oracle.on_forced();
        }
        self.admin(backup, Admin::Promote { force: !marks.in_sync, policy });
    }

    /// Up to when a client's loss had to be noticed so that it is made good by now, if any is.
    fn repaired_before(&self, primary: usize) -> Option<u64> {
        let plan = &self.plan;
        if plan.slow > 0 {
            return None;
        }
        let round = 2 * plan.lan_us.1 + plan.store_us + 4 * plan.flush_us + plan.machine_us.1 + 2 * plan.disk_us.1;
        let before = self.now.checked_sub(4 * round)?;
        let status = self.nodes[primary].primary()?.status(self.nodes[primary].clock.at(self.now));
        let shares = plan.primary.privacy != Privacy::Withheld && plan.primary.custody_bytes_max > 1 << 20;
        let able = shares && status.status.role == Role::Primary && !status.short;
        (able && self.troubled_at <= before).then_some(before)
    }

    pub fn lose(&mut self, at: usize) {
        self.note(format!("node {at} is lost for good"));
        self.crash_node(at);
        self.nodes[at].lost = true;
    }

    /// A backup's stream was refused: a log that cannot follow is set aside, and a new one begun.
    pub fn on_backup_refused(&mut self, at: usize, error: &Error) {
        if error.code() == Code::LogDiverged {
            if self.oracle.counts(&self.nodes, at) {
                self.oracle.violate("I1", format!("the log of node {at}, in sync, does not follow: {error}"));
            }
            self.lose(at);
            self.after(1_000, Event::AddBackup);
        }
    }

    /// What an operator does without being asked, every now and then.
    pub fn operate(&mut self) {
        self.after(20_000, Event::Operate);
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            if node.lost {
                continue;
            }
            if node.stopped && node.is_up() {
                self.crash_node(at);
                self.nodes[at].stopped = false;
            } else if !node.is_up() && node.down_until <= self.now {
                self.start_node(at);
            }
        }
        let Some(sovereign) = self.sovereign() else {
            self.promote_somebody();
            return;
        };
        if self.is_open(sovereign) {
            self.tidy_up(sovereign);
        }
        self.help_recovery(sovereign);
        if self.healing {
            self.check_rest(sovereign);
        }
    }

    fn promote_somebody(&mut self) {
        let policy = self.plan.policy;
        let Some(backup) = self.backup() else {
            if self.nodes.iter().all(|node| node.lost) {
                self.hopeless = true;
            }
            return;
        };
        let core = self.nodes[backup].backup().expect("a backup");
        if core.state().epoch() == tagalong::log::Epoch::ZERO && core.durable() == tagalong::log::Lsn(0) {
            self.hopeless = true;
            return;
        }
        let force = !self.nodes[backup].disk.marks.as_ref().is_some_and(|marks| marks.in_sync);
        if force {
            self.oracle.on_forced();
        }
        self.admin(backup, Admin::Promote { force, policy });
    }

    /// Once a reign is open: whoever is still primary of an older one is set aside, and a backup attached.
    fn tidy_up(&mut self, sovereign: usize) {
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let other = at != sovereign && !node.lost;
            let minted = node.disk.marks.as_ref().is_some_and(|marks| marks.promised.node == node.id);
            let primary = node.founder || minted || node.primary().is_some();
            if other && primary && (self.healing || self.dice.percent(10)) {
                self.lose(at);
            } else if other && !primary && node.follows != Some(sovereign) {
                self.nodes[at].follows = Some(sovereign);
                let life = self.nodes[at].life;
                self.after(100, Event::DialPrimary { node: at, life });
            }
        }
        let followed = self.nodes.iter().any(|node| !node.lost && node.follows == Some(sovereign));
        let wanted = self.plan.backup_at.is_some() && self.now > 1_000_000 + self.plan.backup_at.unwrap_or(0);
        let alone = self.nodes[sovereign].primary().is_some_and(|primary| primary.state().target() == Target::Own);
        if !followed && wanted && alone && (self.healing || self.dice.percent(20)) {
            self.add_node(false, Some(sovereign));
        }
    }

    /// A recovery that nobody can complete any more is concluded by the operator.
    fn help_recovery(&mut self, sovereign: usize) {
        let recovery = self.nodes[sovereign]
            .primary()
            .and_then(|primary| primary.status(self.nodes[sovereign].clock.at(self.now)).recovery)
            .filter(|recovery| recovery.phase != "promising" && recovery.phase != "fetching");
        let Some(recovery) = recovery else {
            self.waiting_since = None;
            return;
        };
        if let Some(conflict) = &recovery.conflict
            && !self.oracle.may_conflict()
        {
            self.oracle.violate("I5", format!("honest clients are accused: {conflict}"));
            return;
        }
        self.marks.reach_if(recovery.conflict.is_some(), "reports contradict each other");
        let since = *self.waiting_since.get_or_insert(self.now);
        let long = self.now - since;
        if self.oracle.concludes_alone(&self.nodes[sovereign], &self.clients) {
            let (heard, bytes, shares) = (recovery.reported, recovery.pulled_bytes, recovery.pulled_shares);
            if self.progress.0 != heard || self.progress.1 != bytes || self.progress.2 != shares {
                self.progress = (heard, bytes, shares, self.now);
            }
            let begun = since.max(self.progress.3);
            let healthy = self.healing_since.map_or(0, |healing| self.now - begun.max(healing));
            if healthy > 2_000_000 {
                self.oracle.violate("liveness", format!("the recovery should do without an operator: {recovery:?}"));
            }
            return;
        }
        if self.healing && long > 1_000_000 && recovery.conflict.is_some() {
            for client in recovery.accused.clone() {
                self.admin(sovereign, Admin::Exclude(client));
            }
            self.waiting_since = Some(self.now);
            return;
        }
        let dead = recovery.awaited.iter().any(|id| !self.clients[number(*id)].is_live());
        let patience = if self.healing { 1_500_000 } else { 300_000 };
        if long > patience && (dead || !recovery.missing.is_empty()) || self.healing && long > 5_000_000 {
            let policy = self.dice.pick(&[GapPolicy::Stop, GapPolicy::Skip]);
            self.admin(sovereign, Admin::Resolve(policy));
            self.waiting_since = Some(self.now);
        }
    }

    /// Everybody has come to rest?
    fn check_rest(&mut self, sovereign: usize) {
        if self.unfinished_at(sovereign).is_none() {
            self.converged = true;
        }
    }

    pub fn unfinished(&self) -> String {
        let Some(sovereign) = self.sovereign() else { return "there is no primary".to_owned() };
        self.unfinished_at(sovereign).unwrap_or_else(|| "nothing is left to do".to_owned())
    }

    fn unfinished_at(&self, sovereign: usize) -> Option<String> {
        let Some(primary) = self.nodes[sovereign].primary().filter(|_| self.is_open(sovereign)) else {
            let status =
                self.nodes[sovereign].primary().map(|primary| primary.status(self.nodes[sovereign].clock.at(self.now)));
            return Some(format!("node {sovereign} is not open: {status:?}"));
        };
        if !primary.unstable().is_empty() {
            let water = primary.watermarks();
            return Some(format!("I9: the delta of node {sovereign} is not empty: {water:?}"));
        }
        let status = primary.status(self.nodes[sovereign].clock.at(self.now));
        if status.shares > 0 || status.share_bytes > 0 || status.covered != status.head {
            return Some(format!("I9: node {sovereign} still counts on shares: {status:?}"));
        }
        for (at, client) in self.clients.iter().enumerate().filter(|(_, client)| client.is_live()) {
            if let Some(why) = self.busy_client(at, primary.epoch()) {
                let state = primary.state().session(client.id);
                return Some(format!("client {at} is not at rest: {why}; its session: {state:?}"));
            }
        }
        self.plan.backup_at?;
        let Target::Backup(id) = primary.state().target() else {
            return Some(format!("no backup is the stability target of node {sovereign}"));
        };
        self.lagging(sovereign, id)
    }

    fn busy_client(&self, at: usize, epoch: Epoch) -> Option<String> {
        let client = &self.clients[at];
        let Some(core) = &client.core else { return Some("it is down".to_owned()) };
        if core.attached() != Some(epoch) {
            return Some(format!("it is attached to {:?}", core.attached()));
        }
        if client.calls_left > 0 || client.closing {
            return Some(format!("{} calls are left, closing: {}", client.calls_left, client.closing));
        }
        let image = core.image();
        let empty = image.commands.is_empty() && image.told().next().is_none() && image.shares.is_empty();
        if core.unsent() > 0 || !empty || image.bytes > 0 || image.share_bytes > 0 {
            let (unsent, commands, headers, shares) = (core.unsent(), &image.commands, &image.headers, &image.shares);
            return Some(format!("I9: unsent {unsent}, its cache is {commands:?} {headers:?} {shares:?}"));
        }
        if !client.queries.is_empty() || !client.flushes.is_empty() {
            return Some(format!("queries {:?}, flushes {:?}", client.queries, client.flushes));
        }
        self.oracle.unanswered(at)
    }

    fn lagging(&self, sovereign: usize, id: NodeId) -> Option<String> {
        let at = self.nodes.iter().position(|node| node.id == id)?;
        let Some(core) = self.nodes[at].backup() else { return Some(format!("backup {at} is not up")) };
        let (ours, theirs) = (&self.nodes[sovereign], &self.nodes[at]);
        if core.state().end().0 != ours.disk.log.len() as u64 || !theirs.tasks.is_empty() {
            return Some(format!("backup {at} is at {} of {}", core.state().end(), ours.disk.log.len()));
        }
        if !core.marks().in_sync {
            return Some(format!("backup {at} is not in sync"));
        }
        None
    }

    /// At rest: the copies are equal, and the clients' view holds.
    pub fn check_end(&mut self) {
        let Some(sovereign) = self.sovereign() else { return };
        for at in 0..self.nodes.len() {
            let (ours, theirs) = (&self.nodes[sovereign], &self.nodes[at]);
            let follows =
                theirs.backup().is_some() && theirs.follows == Some(sovereign) && self.plan.backup_at.is_some();
            let target = ours.primary().map(|primary| primary.state().target()) == Some(Target::Backup(theirs.id));
            if follows && target && (ours.disk.log != theirs.disk.log || ours.machine != theirs.machine) {
                self.oracle.violate("I1", format!("node {at} is not equal to its primary, node {sovereign}"));
            }
        }
        let log = self.nodes[sovereign].disk.log.clone();
        self.oracle.check_end(&self.clients, &log);
    }
}
