//! The moves: what may happen next in a world, and what a world is after that.
//!
//! What is *due* (a delivery, a disk, a cache, a call, a new connection, a restart, what an operator does after a loss) always
//! goes on until there is none of it left; a *fault* happens as often as the plan allows. A world where nothing is due any
//! more is at rest, and has to be as it should be.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tagalong::client::ClientInput;
use tagalong::log::{ClusterId, Epoch, GapPolicy, Lsn, Time};
use tagalong::message::{BackupMessage, ClientMessage, Conn, NodeMessage, PrimaryMessage, Role};
use tagalong::node::{Admin, Input, RecoveryPolicy};

use crate::world::{At, Core, Parcel, World};

/// How often a pair is connected at most; a world that needs more is not judged at rest.
const DIALS_MAX: u8 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Call(u8),
    Deliver(u32, u8),
    Dial(u8, u8),
    Follow(u8),
    Disk(u8),
    Work(u8),
    Flush(u8),
    Store(u8),
    StartClient(u8),
    StartNode(u8),
    Promote(u8, bool),
    Resolve(u8),
    Tick,
    // Faults.
    Break(u32, bool),
    CrashClient(u8, u8, bool),
    LoseClient(u8),
    /// A client's machine crashes, and its cache is what it was when the exploration began.
    Tear(u8),
    CrashNode(u8, u8, bool),
    LoseNode(u8, bool),
    /// The primary's site, and with it a client and whoever shares its failure domain.
    Disaster(u8, u8),
    Suspect(u8),
    Conclude(u8),
    Stop(u8),
    End(u8, u8),
    Ghost(u8),
    OldAppend(u8),
}

fn byte(n: usize) -> u8 {
    u8::try_from(n).expect("small")
}

impl World {
    /// The newest node that is, or is becoming, a primary.
    pub fn sovereign(&self) -> Option<usize> {
        let primaries = (0..self.nodes.len()).filter(|at| self.nodes[*at].primary().is_some());
        primaries.max_by_key(|at| self.nodes[*at].primary().map_or(Epoch::ZERO, |primary| primary.epoch()))
    }

    /// What is due.
    pub fn due(&self) -> Vec<Move> {
        let plan = &self.plan.0;
        let mut moves = Vec::new();
        for (id, stream) in &self.streams {
            let link = matches!(stream.ends[0].at, At::Node(_));
            let standing = stream.ends.iter().all(|end| end.open && !end.broken);
            for side in 0..2 {
                let far = plan.far && link && standing && self.exploring;
                if stream.ends[side].open && !stream.ends[side].inbox.is_empty() && !far {
                    moves.push(Move::Deliver(u32::try_from(*id).expect("small"), byte(side)));
                }
            }
        }
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            if node.lost {
                continue;
            }
            match &node.core {
                Core::Down => {
                    moves.push(Move::StartNode(byte(at)));
                    continue;
                }
                Core::Backup(_) => {
                    let to = node.follows.filter(|to| self.nodes[*to].is_up());
                    if to.is_some_and(|to| !self.linked(At::Node(at), to) && self.may_dial(At::Node(at), to)) {
                        moves.push(Move::Follow(byte(at)));
                    }
                    if node.follows.is_some_and(|to| self.nodes[to].lost) && self.is_promotable(at) {
                        let in_sync = node.marks.in_sync;
                        if in_sync || plan.force {
                            moves.push(Move::Promote(byte(at), !in_sync));
                        } else if !tagalong::rule::on(tagalong::rule::Rule::InSyncOnly) {
                            moves.push(Move::Promote(byte(at), false));
                        }
                    }
                }
                Core::Primary(_) => {}
            }
            if !node.queue.is_empty() {
                moves.push(Move::Disk(byte(at)));
            }
            if node.flush_due {
                moves.push(Move::Flush(byte(at)));
            }
            if node.task.is_some() {
                moves.push(Move::Work(byte(at)));
            }
        }
        if let Some(at) = self.sovereign().filter(|at| self.needs_operator(*at)) {
            moves.push(Move::Resolve(byte(at)));
        }
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            if !client.is_live() {
                continue;
            }
            if client.core.is_none() {
                moves.push(Move::StartClient(byte(at)));
                continue;
            }
            for to in 0..self.nodes.len() {
                if !self.linked(At::Client(at), to) && self.may_dial(At::Client(at), to) && self.receives(to) {
                    moves.push(Move::Dial(byte(at), byte(to)));
                }
            }
            if !client.stores.is_empty() {
                moves.push(Move::Store(byte(at)));
            }
            if client.called < plan.scripts[at].len() {
                moves.push(Move::Call(byte(at)));
            }
        }
        moves
    }

    /// Whether a node takes up clients: nobody asks one over and over that would only send them away.
    fn receives(&self, at: usize) -> bool {
        match &self.nodes[at].core {
            Core::Primary(core) => core.status(Time(self.now)).status.role != Role::Stopped,
            Core::Backup(core) => core.marks().cluster != ClusterId(0),
            Core::Down => false,
        }
    }

    fn may_dial(&self, from: At, to: usize) -> bool {
        self.dials.get(&(from, to)).is_none_or(|count| *count < DIALS_MAX)
    }

    /// Whether it followed somebody, and is not about to be promoted already.
    fn is_promotable(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        let Some(backup) = node.backup() else { return false };
        backup.marks().promised.node != node.id && backup.state().epoch() != Epoch::ZERO
    }

    /// Whether a recovery can only be concluded by decision: somebody is gone for good, or something is.
    fn needs_operator(&self, at: usize) -> bool {
        let Some(primary) = self.nodes[at].primary() else { return false };
        if primary.state().epoch() == primary.epoch() {
            return false;
        }
        let status = primary.status(Time(self.now));
        let Some(recovery) = status.recovery.filter(|_| status.status.role == Role::Recovering) else { return false };
        if !matches!(recovery.phase.as_str(), "roll-call" | "gaps" | "pulling") {
            return false;
        }
        let gone = |id: &tagalong::log::ClientId| {
            self.clients.iter().find(|client| client.id == *id).is_some_and(|client| !client.is_live())
        };
        let dead: Vec<bool> = recovery.awaited.iter().map(gone).collect();
        let all_dead = dead.iter().all(|dead| *dead) && recovery.phase != "pulling";
        // With f domains missing it concludes alone.
        let f = primary.state().start().f;
        let alone = f > 0 && !self.oracle.forced && dead.len() <= usize::from(f);
        let whole = recovery.missing.is_empty();
        all_dead && !(whole && (alone || dead.is_empty()))
    }

    pub fn next_due(&self) -> Option<(u64, At)> {
        let nodes = self.nodes.iter().enumerate().filter_map(|(at, node)| match &node.core {
            Core::Primary(core) => Some((core.next_timeout()?.0, At::Node(at))),
            _ => None,
        });
        let clients = self.clients.iter().enumerate().filter_map(|(at, client)| {
            let due = client.core.as_ref()?.next_timeout()?;
            Some((due.0, At::Client(at)))
        });
        nodes.chain(clients).min()
    }

    /// Everything that may happen: what is due, then the clock, then faults. The flag says that the world is at rest.
    pub fn moves(&self) -> (Vec<Move>, bool) {
        let plan = &self.plan.0;
        let mut moves = self.due();
        let mut rest = moves.is_empty();
        if self.left.ticks > 0 && (rest || plan.early_ticks) && self.next_due().is_some() {
            moves.push(Move::Tick);
            rest = false;
        }
        self.faults(&mut moves);
        (moves, rest)
    }

    fn faults(&self, moves: &mut Vec<Move>) {
        let left = &self.left;
        for (id, stream) in &self.streams {
            let link = matches!(stream.ends[0].at, At::Node(_));
            let whole = stream.ends.iter().all(|end| end.open && !end.broken);
            // Only the stream that serves the session is worth it.
            let serves = |at: usize| self.clients[at].session == Some(*id);
            let worth = link || matches!(stream.ends[0].at, At::Client(at) if serves(at));
            if whole && worth && (if link { left.cuts } else { left.breaks }) > 0 {
                let id = u32::try_from(*id).expect("small");
                moves.push(Move::Break(id, true));
                if stream.ends.iter().any(|end| !end.inbox.is_empty()) {
                    moves.push(Move::Break(id, false));
                }
            }
        }
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            if client.core.is_none() || !client.is_live() {
                continue;
            }
            let under_way = self.under_way(At::Client(at));
            if left.client_crashes > 0 {
                let ops: usize = client.stores.iter().map(Vec::len).sum();
                for keep in 0..=ops {
                    moves.push(Move::CrashClient(byte(at), byte(keep), true));
                    if under_way {
                        moves.push(Move::CrashClient(byte(at), byte(keep), false));
                    }
                }
            }
            // After a disaster nobody promises anything for more.
            let before = left.disasters == self.plan.0.faults.disasters;
            if left.client_losses > 0 && before {
                moves.push(Move::LoseClient(byte(at)));
            }
            if left.tears > 0 && before && client.older.is_some() && client.called == 0 {
                moves.push(Move::Tear(byte(at)));
            }
            if left.ghosts > 0 && client.ghost.is_some() && self.ghost_stream(at).is_some() {
                moves.push(Move::Ghost(byte(at)));
            }
        }
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let primary = node.primary().is_some();
            let crashes = if primary { left.primary_crashes } else { left.backup_crashes };
            if node.is_up() && crashes > 0 {
                for keep in 0..=node.queue.len() {
                    moves.push(Move::CrashNode(byte(at), byte(keep), true));
                    if self.under_way(At::Node(at)) {
                        moves.push(Move::CrashNode(byte(at), byte(keep), false));
                    }
                }
            }
            let lonely = !self.nodes.iter().any(|node| node.backup().is_some());
            if (primary || node.founder && !node.lost) && left.primary_losses > 0 && !lonely {
                moves.push(Move::LoseNode(byte(at), true));
                if node.is_up() && self.under_way(At::Node(at)) {
                    moves.push(Move::LoseNode(byte(at), false));
                }
            }
            // Nobody promises anything for the loss of more, before what an earlier loss took was made good.
            let allowed = &self.plan.0.faults;
            let whole = (left.client_losses, left.tears) == (allowed.client_losses, allowed.tears);
            let repaired = whole || self.due().is_empty();
            if primary && left.disasters > 0 && !lonely && repaired {
                let live = |client: &usize| self.clients[*client].is_live();
                moves.extend((0..self.clients.len()).filter(live).map(|it| Move::Disaster(byte(at), byte(it))));
            }
            if node.backup().is_some() && left.suspicions > 0 && self.is_promotable(at) {
                moves.push(Move::Suspect(byte(at)));
            }
            let serves = primary && self.sovereign() == Some(at);
            if serves && left.resolves > 0 && self.is_recovering(at) {
                moves.push(Move::Conclude(byte(at)));
            }
            if serves && !self.is_recovering(at) {
                if left.stops > 0 {
                    moves.push(Move::Stop(byte(at)));
                }
                if left.ends > 0 {
                    (0..self.clients.len()).for_each(|client| moves.push(Move::End(byte(at), byte(client))));
                }
            }
            if node.backup().is_some()
                && left.ghosts > 0
                && node.ghost.is_some()
                && self.old_append_stream(at).is_some()
            {
                moves.push(Move::OldAppend(byte(at)));
            }
        }
    }

    fn is_recovering(&self, at: usize) -> bool {
        self.nodes[at].primary().is_some_and(|primary| primary.state().epoch() != primary.epoch())
    }

    /// Whether something is on its way from this process.
    fn under_way(&self, from: At) -> bool {
        let from_it = |side: usize| {
            move |ends: &[crate::world::End; 2]| {
                ends[side].at == from && !ends[1 - side].inbox.is_empty() && ends[1 - side].open
            }
        };
        self.streams.values().any(|stream| from_it(0)(&stream.ends) || from_it(1)(&stream.ends))
    }

    fn ghost_stream(&self, at: usize) -> Option<u64> {
        let client = &self.clients[at];
        let newer = client.core.as_ref()?.attached() > client.ghost.as_ref().map(|frame| frame.epoch);
        client.session.filter(|id| newer && self.streams.get(id).is_some_and(|stream| stream.ends[1].open))
    }

    fn old_append_stream(&self, at: usize) -> Option<u64> {
        let node = &self.nodes[at];
        let Some(PrimaryMessage::Append { epoch, .. }) = node.ghost.as_deref() else { return None };
        let link = |(_, stream): &(&u64, &crate::print::Part<crate::world::Stream>)| {
            stream.ends[0].at == At::Node(at) && stream.ends[0].open && !stream.ends[0].broken
        };
        (node.marks.promised > *epoch).then(|| self.streams.iter().find(link).map(|(id, _)| *id))?
    }

    pub fn apply(&mut self, step: Move) {
        let us = usize::from;
        match step {
            Move::Call(at) => self.call(us(at)),
            Move::Deliver(id, side) => self.deliver(u64::from(id), us(side)),
            Move::Dial(at, to) => self.dial(At::Client(us(at)), us(to)),
            Move::Follow(at) => {
                if let Some(to) = self.nodes[us(at)].follows {
                    self.dial(At::Node(us(at)), to);
                }
            }
            Move::Disk(at) => {
                let done = self.nodes[us(at)].edit().complete();
                if let Some(input) = done {
                    self.step_node(us(at), input);
                }
            }
            Move::Work(at) => {
                let done = self.nodes[us(at)].edit().work();
                if let Some(input) = done {
                    self.step_node(us(at), input);
                }
            }
            Move::Flush(at) => {
                self.nodes[us(at)].edit().flush_due = false;
                self.step_node(us(at), Input::Flush);
            }
            Move::Store(at) => {
                if let Some(input) = self.store(us(at)) {
                    self.step_client(us(at), input);
                }
            }
            Move::StartClient(at) => self.start_client(us(at)),
            Move::StartNode(at) => self.start_node(us(at)),
            Move::Promote(at, force) => {
                if force {
                    self.oracle.edit().forced = true;
                }
                self.promote(us(at), force);
            }
            Move::Resolve(at) => {
                let gaps = self.plan.0.gaps;
                self.resolve(us(at), gaps);
            }
            Move::Tick => {
                self.left.ticks -= 1;
                if let Some((due, at)) = self.next_due() {
                    self.now = self.now.max(due);
                    match at {
                        At::Node(at) => self.step_node(at, Input::Tick),
                        At::Client(at) => self.step_client(at, ClientInput::Tick),
                    }
                }
            }
            Move::Break(id, lossy) => {
                let stream = &self.streams[&u64::from(id)];
                if matches!(stream.ends[0].at, At::Node(_)) {
                    self.left.cuts -= 1
                } else {
                    self.left.breaks -= 1
                }
                self.break_stream(u64::from(id), lossy);
            }
            Move::CrashClient(at, keep, lossy) => {
                self.left.client_crashes -= 1;
                let volatile = self.plan.0.volatile;
                let member = self.clients[us(at)].edit();
                let ops: Vec<_> = member.stores.drain(..).flatten().collect();
                ops.iter().take(us(keep)).for_each(|op| member.stored.apply(op));
                if volatile {
                    self.bury(us(at));
                }
                self.clients[us(at)].edit().core = None;
                self.cut_all(At::Client(us(at)), lossy);
            }
            Move::Tear(at) => {
                self.left.tears -= 1;
                let member = self.clients[us(at)].edit();
                member.core = None;
                member.stores.clear();
                member.stored = member.older.take().map_or_else(Default::default, |older| *older);
                self.cut_all(At::Client(us(at)), true);
            }
            Move::LoseClient(at) => {
                self.left.client_losses -= 1;
                self.lose_domain(us(at));
            }
            Move::Disaster(at, client) => {
                self.left.disasters -= 1;
                self.crash_node(us(at), 0, true);
                self.nodes[us(at)].edit().lost = true;
                self.lose_domain(us(client));
            }
            Move::CrashNode(at, keep, lossy) => {
                let primary = self.nodes[us(at)].primary().is_some();
                if primary {
                    self.left.primary_crashes -= 1
                } else {
                    self.left.backup_crashes -= 1
                }
                self.crash_node(us(at), us(keep), lossy);
            }
            Move::LoseNode(at, lossy) => {
                self.left.primary_losses -= 1;
                self.crash_node(us(at), 0, lossy);
                self.nodes[us(at)].edit().lost = true;
            }
            Move::Suspect(at) => {
                self.left.suspicions -= 1;
                self.promote(us(at), false);
            }
            Move::Conclude(at) => {
                self.left.resolves -= 1;
                let gaps = self.plan.0.gaps;
                self.resolve(us(at), gaps);
            }
            Move::Stop(at) => {
                self.left.stops -= 1;
                self.step_node(us(at), Input::Admin(Admin::Stop));
            }
            Move::End(at, client) => {
                self.left.ends -= 1;
                let id = self.clients[us(client)].id;
                self.step_node(us(at), Input::Admin(Admin::EndSession(id)));
            }
            Move::Ghost(at) => {
                self.left.ghosts -= 1;
                if let (Some(id), Some(frame)) = (self.ghost_stream(us(at)), self.clients[us(at)].ghost.clone()) {
                    let parcel = Parcel::FromClient(ClientMessage::Frame(*frame));
                    self.streams.get_mut(&id).expect("it stands").edit().ends[1].inbox.push_back(parcel);
                }
            }
            Move::OldAppend(at) => {
                self.left.ghosts -= 1;
                if let (Some(id), Some(message)) = (self.old_append_stream(us(at)), self.nodes[us(at)].ghost.clone()) {
                    let parcel = Parcel::FromPrimary(*message);
                    self.streams.get_mut(&id).expect("it stands").edit().ends[0].inbox.push_back(parcel);
                }
            }
        }
    }

    pub fn promote(&mut self, at: usize, force: bool) {
        let policy = RecoveryPolicy::Wait;
        self.step_node(at, Input::Admin(Admin::Promote { force, policy }));
    }

    fn resolve(&mut self, at: usize, gaps: GapPolicy) {
        self.step_node(at, Input::Admin(Admin::Resolve(gaps)));
    }

    /// What a client knew dies with it.
    fn bury(&mut self, at: usize) {
        let volatile = self.plan.0.volatile;
        let member = self.clients[at].edit();
        let image = member.image(volatile).clone();
        let tags = image.commands.values().filter_map(|command| command.tag.map(|tag| (tag.epoch, tag.lsn)));
        let places: BTreeSet<(Epoch, Lsn)> = image.told().chain(tags).collect();
        member.view.died_with.extend(places);
        member.lost = true;
    }

    /// A client is lost with its cache, and so is whoever fails together with it.
    pub fn lose_domain(&mut self, at: usize) {
        let domain = self.plan.0.domain(at);
        for client in 0..self.clients.len() {
            if self.plan.0.domain(client) == domain && self.clients[client].is_live() {
                self.lose_client(client);
            }
        }
    }

    /// Time passes, and everybody is told.
    pub fn pass(&mut self, micros: u64) {
        let end = self.now + micros;
        while let Some((due, at)) = self.next_due().filter(|(due, _)| *due <= end) {
            self.now = self.now.max(due);
            match at {
                At::Node(at) => self.step_node(at, Input::Tick),
                At::Client(at) => self.step_client(at, ClientInput::Tick),
            }
            self.settle();
        }
        self.now = end;
    }

    fn lose_client(&mut self, at: usize) {
        self.bury(at);
        let member = self.clients[at].edit();
        member.core = None;
        member.stores.clear();
        self.cut_all(At::Client(at), true);
    }

    pub fn crash_node(&mut self, at: usize, keep: usize, lossy: bool) {
        let node = self.nodes[at].edit();
        node.core = Core::Down;
        (node.serving, node.task, node.flush_due) = (None, None, false);
        node.queue.truncate(keep);
        while !node.queue.is_empty() {
            node.complete();
        }
        node.saves = 0;
        self.cut_all(At::Node(at), lossy);
    }

    fn deliver(&mut self, id: u64, side: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let end = &mut stream.edit().ends[side];
        let Some(parcel) = end.inbox.pop_front() else { return };
        let (at, conn) = (end.at, Conn(id));
        if matches!(parcel, Parcel::Gone) {
            end.open = false;
            end.inbox.clear();
            self.sweep(id);
        }
        match (at, parcel) {
            (At::Node(node), Parcel::Gone) => self.step_node(node, Input::Gone(conn)),
            (At::Node(node), Parcel::FromClient(message)) => self.step_node(node, Input::Client(conn, message)),
            (At::Node(node), Parcel::FromBackup(message)) => self.step_node(node, Input::FromBackup(conn, message)),
            (At::Node(node), Parcel::FromPrimary(message)) => self.step_node(node, Input::FromPrimary(conn, message)),
            (At::Client(client), Parcel::Gone) => self.step_client(client, ClientInput::Gone(conn)),
            (At::Client(client), Parcel::FromNode(message, opened)) => {
                self.deliver_to_client(client, id, message, opened);
            }
            _ => {}
        }
    }

    /// Everything that is due happens, in a fixed order.
    pub fn settle(&mut self) {
        self.settle_until(|_| false);
    }

    pub fn settle_until(&mut self, so: impl Fn(&World) -> bool) {
        for _ in 0..2_000 {
            if so(self) {
                return;
            }
            assert!(self.violation.is_none(), "before the exploration begins: {:?}", self.violation);
            let calls = |step: &&Move| matches!(step, Move::Call(_));
            let fresh = |step: &&Move| matches!(step, Move::Dial(..) | Move::Follow(_));
            let due = self.due();
            let Some(step) = due.iter().find(|step| !calls(step) && !fresh(step)) else { return };
            self.apply(*step);
        }
        panic!("it does not come to rest before the exploration begins");
    }

    /// At rest everything is answered, where nothing is dead that is needed, and the past is in order. `false` where that is
    /// not judged.
    pub fn check_rest(&mut self) -> bool {
        let dialled = self.dials.iter().filter(|(_, count)| **count >= DIALS_MAX).map(|((from, _), _)| *from);
        let dialled: Vec<At> = dialled.collect();
        if let Some(client) = dialled.iter().find(|at| matches!(at, At::Client(_))) {
            self.violate("liveness", format!("{client:?} is connected again and again"));
            return true;
        }
        if !dialled.is_empty() || (self.plan.0.faults.ticks > 0 && self.left.ticks == 0) {
            return false;
        }
        let Some(sovereign) = self.sovereign() else { return false };
        let Some(primary) = self.nodes[sovereign].primary() else { return false };
        let status = primary.status(Time(self.now));
        if status.status.role != Role::Primary {
            // A restart waits for the backup; a recovery, where ticks are not counted, for the time it needs.
            let what = format!("node {sovereign} does not open: {:?}", status.recovery);
            self.violate("liveness", what);
            return true;
        }
        let epoch = primary.epoch();
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            let Some(core) = client.core.as_ref().filter(|_| client.is_live()) else { continue };
            let why = if core.attached() != Some(epoch) {
                format!("it is attached to {:?}, not {epoch}", core.attached())
            } else if let Some(request) = client.view.first_open() {
                format!("{request} is not answered")
            } else if let Some((request, _)) = core.image().unanswered().next() {
                format!("{request} has no reply")
            } else if !client.view.asked.is_empty() || core.unsent() > 0 {
                format!("queries {:?} are not answered, or {} not sent", client.view.asked, core.unsent())
            } else {
                continue;
            };
            self.violate("liveness", format!("client {at} waits for ever: {why}"));
            return true;
        }
        self.check_end(sovereign);
        true
    }

    /// A move as one reads it, in the world before it.
    pub fn describe(&self, step: Move) -> String {
        let mut text = String::new();
        let name = |at: At| match at {
            At::Client(at) => format!("client {at}"),
            At::Node(0) => "primary".to_owned(),
            At::Node(1) => "backup".to_owned(),
            At::Node(at) => format!("node {at}"),
        };
        match step {
            Move::Deliver(id, side) => {
                let stream = &self.streams[&u64::from(id)];
                let (to, from) = (stream.ends[usize::from(side)].at, stream.ends[1 - usize::from(side)].at);
                let parcel = stream.ends[usize::from(side)].inbox.front();
                let _ = write!(text, "{} -> {}: {}", name(from), name(to), parcel.map_or_else(String::new, brief));
            }
            Move::Break(id, lossy) => {
                let stream = &self.streams[&u64::from(id)];
                let what = if lossy { ", with all on its way" } else { "" };
                let _ = write!(text, "* {} - {} breaks{what}", name(stream.ends[0].at), name(stream.ends[1].at));
            }
            Move::Call(at) => {
                let client = &self.clients[usize::from(at)];
                let _ = write!(text, "client {at} calls {:?}", self.plan.0.scripts[usize::from(at)][client.called]);
            }
            Move::Disk(at) => {
                let what = format!("{:?}", self.nodes[usize::from(at)].queue.front());
                let what: String = what.chars().skip(5).take_while(|c| c.is_alphabetic()).collect();
                let _ = write!(text, "the disk of {}: {what}", name(At::Node(usize::from(at))));
            }
            Move::LoseNode(at, lossy) => {
                let what = if lossy { ", and what it sent" } else { "" };
                let _ = write!(text, "* {} is lost for good{what}", name(At::Node(usize::from(at))));
            }
            Move::CrashNode(at, keep, lossy) => {
                let what = if lossy { ", what it sent is lost" } else { "" };
                let _ =
                    write!(text, "* {} crashes: {keep} of its disk's jobs done{what}", name(At::Node(usize::from(at))));
            }
            Move::CrashClient(at, keep, lossy) => {
                let what = if lossy { ", what it sent is lost" } else { "" };
                let _ = write!(text, "* client {at} crashes: {keep} operations reach its cache{what}");
            }
            other => {
                let _ = write!(text, "{other:?}");
            }
        }
        text
    }
}

fn brief(parcel: &Parcel) -> String {
    match parcel {
        Parcel::Gone => "gone".to_owned(),
        Parcel::FromClient(ClientMessage::Frame(frame)) => {
            let writes: Vec<u64> = frame.writes.iter().map(|write| write.request.0).collect();
            format!("frame, confirms {}, writes {writes:?}, {} queries", frame.confirm, frame.queries.len())
        }
        Parcel::FromClient(ClientMessage::Report(report)) => {
            format!("report of {} items, observed {:?}", report.items.len(), report.observed.1.0)
        }
        Parcel::FromNode(NodeMessage::Frame(frame), _) => {
            let tags =
                frame.responses.iter().map(|it| (it.request.0, it.tag.map(|tag| tag.lsn.0), it.outcome.is_some()));
            let mut headers: Vec<u64> = frame.manifest.iter().map(|header| header.lsn.0).collect();
            headers.extend(frame.places.iter().flat_map(|places| places.first.0..=places.last().0));
            let results: Vec<u64> = frame.results.iter().map(|result| result.lsn.0).collect();
            let tags: Vec<_> = tags.collect();
            format!(
                "frame {}, stable {}, headers {headers:?}, (request, lsn, reply) {tags:?}, results {results:?}, {} shares",
                frame.seq.to_owned(),
                frame.stable,
                frame.shares.len()
            )
        }
        Parcel::FromNode(NodeMessage::Status(status), _) => format!("status {:?} {}", status.role, status.epoch),
        Parcel::FromPrimary(PrimaryMessage::Append { epoch, stable, records, echo, .. }) => {
            let lsns: Vec<u64> = records.iter().map(|record| record.lsn().0).collect();
            format!("append of {epoch} {lsns:?}, stable {stable}, echo {echo}")
        }
        Parcel::FromBackup(BackupMessage::Ack { durable, in_sync, echo, .. }) => {
            format!("ack {durable}, in sync {in_sync}, echo {echo}")
        }
        other => {
            let text = format!("{other:?}");
            let text: String = text.chars().take(160).collect();
            text
        }
    }
}
