//! Nodes in the world: how they start, step and die, and the carrying out of what their cores ask for.

use bytes::Bytes;
use tagalong::log::{Lsn, Time};
use tagalong::message::{NodeMessage, PrimaryMessage};
use tagalong::node::{Admin, Input, NodeEvent, Output};

use super::{Event, World};
use crate::disk::Operation;
use crate::machine::Machine;
use crate::network::{At, Parcel};
use crate::node::{Core, Node, Task};

impl World {
    pub fn add_node(&mut self, founder: bool, follows: Option<usize>) {
        let mut node = Node::new(self.nodes.len() as u64 + 1, founder, follows);
        node.clock = self.some_clock();
        self.nodes.push(node);
        let at = self.nodes.len() - 1;
        self.note(format!("node {at} is set up, following {follows:?}"));
        self.start_node(at);
        for client in 0..self.clients.len() {
            let life = self.clients[client].life;
            self.after(10, Event::Dial { client, life, node: at });
        }
    }

    pub fn start_node(&mut self, at: usize) {
        let mut out = Vec::new();
        let settings = self.plan.primary.clone();
        let node = &mut self.nodes[at];
        let now = node.clock.at(self.now);
        let started = node.start(&settings, now, &mut out);
        let end = node.disk.log.len();
        if let Err(error) = started {
            self.oracle.violate("start", format!("node {at} does not start on its own log: {error}"));
            return;
        }
        if let Some(primary) = self.nodes[at].primary()
            && goes_on(primary)
        {
            let epoch = primary.epoch();
            self.nodes[at].serving = Some(epoch);
            self.oracle.reign_goes_on(epoch, end);
            if let Some((start, report)) = self.oracle.unopened(epoch) {
                let late = self.is_late(at);
                self.oracle.on_opened(&self.clients, at, epoch, start, &report, late);
            }
        }
        self.note(format!("node {at} starts with a log of {end}"));
        self.mark_start(at);
        self.carry_out(at, out);
        let life = self.nodes[at].life;
        if self.nodes[at].backup().is_some() {
            self.after(100, Event::DialPrimary { node: at, life });
        }
        self.after_node_step(at, false);
    }

    fn is_late(&self, at: usize) -> bool {
        self.nodes[at].is_late(self.plan.policy, self.nodes[at].clock.at(self.now))
    }

    pub fn crash_node(&mut self, at: usize) {
        if !self.nodes[at].is_up() {
            return;
        }
        self.note(format!("node {at} dies"));
        let node = &mut self.nodes[at];
        node.core = Core::Down;
        node.life += 1;
        node.paused_until = 0;
        node.serving = None;
        node.tasks.clear();
        node.disk.crash(&mut self.dice);
        self.cut_all(At::Node(at));
    }

    pub fn step_node(&mut self, at: usize, input: Input) {
        if !self.nodes[at].is_up() {
            return;
        }
        let mut out = Vec::new();
        let (flush, tick) = (matches!(input, Input::Flush), matches!(input, Input::Tick));
        let now = self.nodes[at].clock.at(self.now);
        self.nodes[at].step(now, input, &mut out);
        self.carry_out(at, out);
        if !flush && !self.nodes[at].flush_due && self.nodes[at].is_up() {
            self.nodes[at].flush_due = true;
            let (life, delay) = (self.nodes[at].life, self.dice.below(self.plan.flush_us));
            self.after(delay, Event::FlushNode { node: at, life });
        }
        self.after_node_step(at, tick);
    }

    fn after_node_step(&mut self, at: usize, ticked: bool) {
        // What is due still is work for the flush: a shell does it at once, and this one soon (seed 302982).
        let now = self.nodes[at].clock.at(self.now);
        let waits = |due: &Time| ticked && !self.plan.restless && self.nodes[at].flush_due && *due <= now;
        if let Some(due) = self.nodes[at].next_timeout().filter(|due| !waits(due)) {
            let due = self.now + self.nodes[at].clock.until(self.now, due);
            let life = self.nodes[at].life;
            if self.nodes[at].tick_at.is_none_or(|known| known > due || known <= self.now) {
                self.nodes[at].tick_at = Some(due);
                self.after(due - self.now, Event::TickNode { node: at, life });
            }
        }
        if let Some(primary) = self.nodes[at].primary() {
            self.oracle.check_delta(&self.plan, primary);
        }
    }

    fn carry_out(&mut self, at: usize, out: Vec<Output>) {
        for output in out {
            if self.oracle.violation.is_some() || !self.nodes[at].is_up() {
                return;
            }
            match output {
                Output::ToClient(conn, message) => {
                    let client = self.streams.get(&conn.0).map(|stream| stream.ends[0].at);
                    let client = client.and_then(|at| if let At::Client(client) = at { Some(client) } else { None });
                    self.oracle.on_sent_to_client(&self.nodes, &self.clients, at, client, &message);
                    self.mark_to_client(client, &message);
                    if let (Some(client), NodeMessage::Welcome(_)) = (client, &message) {
                        self.oracle.on_welcomed(client, self.now);
                    }
                    self.send(conn.0, At::Node(at), Parcel::FromNode(message));
                }
                Output::ToBackup(conn, message) => {
                    self.oracle.on_sent_to_backup(&self.nodes, at, &message);
                    self.mark_between_nodes(conn, Some(&message), None);
                    let to = self.streams.get(&conn.0).map(|stream| stream.ends[0].at);
                    if let (Some(to), PrimaryMessage::Append { epoch, .. }) = (to, &message) {
                        self.ghosts.insert((to, *epoch), Parcel::FromPrimary(message.clone()));
                    }
                    self.send(conn.0, At::Node(at), Parcel::FromPrimary(message));
                }
                Output::ToPrimary(conn, message) => {
                    self.oracle.on_sent_to_primary(&self.nodes, at, &message);
                    self.mark_between_nodes(conn, None, Some(&message));
                    self.send(conn.0, At::Node(at), Parcel::FromBackup(message));
                }
                Output::Close(conn) => self.close(conn.0, At::Node(at)),
                Output::Append(records) => {
                    self.mark_append(at, &records);
                    self.oracle.on_append(&mut self.nodes, &self.clients, at, &records);
                    self.nodes[at].disk.push(Operation::Append(records.into()));
                    self.run_disk(at);
                }
                Output::Truncate(lsn) => {
                    self.note(format!("node {at} cuts its log after {lsn}"));
                    self.marks.reach("a backup goes back to a base");
                    self.nodes[at].disk.push(Operation::Truncate(lsn));
                    self.run_disk(at);
                }
                Output::SaveMarks(marks) => {
                    self.nodes[at].disk.push(Operation::Marks(Box::new(marks)));
                    self.run_disk(at);
                }
                Output::Read { conn, from, bytes_max } => {
                    self.nodes[at].disk.push(Operation::Read(conn, from, bytes_max.min(2_000)));
                    self.run_disk(at);
                }
                Output::Execute { commands, queries } => self.task(at, Task::Execute(commands.into(), queries)),
                Output::Judge { entries, missing } => self.task(at, Task::Judge(entries, missing)),
                Output::AdminDone(done) => {
                    self.note(format!("node {at} answers the operator: {done:?}"));
                    if let Err(error) = &done {
                        self.mark_admin(error);
                    }
                }
                Output::Event(event) => self.on_node_event(at, event),
                Output::Promote => {
                    let Core::Backup(backup) = std::mem::replace(&mut self.nodes[at].core, Core::Down) else {
                        self.oracle.violate("start", "a promotion of what is no backup".to_owned());
                        return;
                    };
                    let mut out = Vec::new();
                    let now = self.nodes[at].clock.at(self.now);
                    let primary = backup.into_primary(now, &mut out);
                    (self.nodes[at].promoted_at, self.nodes[at].resolved) = (Some(now), false);
                    self.note(format!("node {at} is promoted to epoch {}", primary.epoch()));
                    self.nodes[at].core = Core::Primary(Box::new(primary));
                    self.nodes[at].follows = None;
                    self.carry_out(at, out);
                }
                Output::Halt(error) => {
                    self.oracle.violate("halt", format!("node {at} stops: {error}"));
                }
            }
        }
    }

    fn on_node_event(&mut self, at: usize, event: NodeEvent) {
        self.note(format!("node {at}: {event:?}"));
        self.mark_node_event(at, &event);
        match event {
            NodeEvent::Opened { report, epoch, start } => {
                let late = self.is_late(at);
                self.oracle.on_opened(&self.clients, at, epoch, start, &report, late);
            }
            NodeEvent::Decoded { entries, .. } => self.oracle.decoded += entries,
            NodeEvent::Stopped(_) => self.nodes[at].stopped = true,
            NodeEvent::Refused(error) => self.on_backup_refused(at, &error),
            NodeEvent::Diverged(lsn) => {
                self.oracle.violate("I5", format!("node {at} finds another reply at {lsn}"));
            }
            _ => {}
        }
    }

    fn slow(&mut self, at: usize, range: (u64, u64)) -> u64 {
        let stall = self.nodes[at].stalled_until.saturating_sub(self.now);
        stall + self.dice.between(range.0, range.1)
    }

    pub(super) fn run_disk(&mut self, at: usize) {
        if !self.nodes[at].disk.is_busy() && self.nodes[at].disk.begin(&mut self.dice) {
            let range = self.plan.disk_us;
            let (life, delay) = (self.nodes[at].life, self.slow(at, range));
            self.after(delay, Event::Disk { node: at, life });
        }
    }

    fn task(&mut self, at: usize, task: Task) {
        let one = |task: &Task| matches!(task, Task::Execute(..));
        assert!(!one(&task) || !self.nodes[at].tasks.iter().any(one), "one at a time");
        self.nodes[at].tasks.push_back(task);
        let range = self.plan.machine_us;
        let (life, delay) = (self.nodes[at].life, self.slow(at, range));
        self.after(delay, Event::Task { node: at, life });
    }

    pub(super) fn run_task(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let input = match node.tasks.pop_front() {
            Some(Task::Execute(commands, queries)) => {
                let replies = commands.iter().map(|entry| node.machine.apply(entry)).collect();
                let results: Vec<Bytes> = queries.iter().map(|query| node.machine.query(query)).collect();
                Input::Executed { replies, results }
            }
            Some(Task::Judge(entries, missing)) => {
                let lost = &self.oracle.keys;
                Input::Judged(entries.iter().map(|entry| Machine::independent(entry, &missing, lost)).collect())
            }
            None => return,
        };
        self.step_node(at, input);
    }

    pub fn admin(&mut self, at: usize, admin: Admin) {
        self.note(format!("operator to node {at}: {admin:?}"));
        // An operator insists until somebody listens.
        self.nodes[at].paused_until = 0;
        self.nodes[at].resolved |= matches!(admin, Admin::Resolve(_));
        self.step_node(at, Input::Admin(admin));
    }

    pub(super) fn tick_node(&mut self, at: usize) {
        if self.nodes[at].tick_at.is_some_and(|due| due <= self.now) {
            self.nodes[at].tick_at = None;
            self.step_node(at, Input::Tick);
        }
    }
}

/// Whether a primary that starts goes on in its own epoch.
fn goes_on(primary: &tagalong::primary::Primary) -> bool {
    let state = primary.state();
    let (start, settings, marks) = (state.start(), primary.settings(), primary.marks());
    start.log_before_send
        && settings.log_before_send
        && state.end() > Lsn(0)
        && state.epoch() == marks.promised
        && state.epoch().node == marks.node
        && state.lowest() == settings.lowest
        && marks.reign == marks.promised
        && (start.target == tagalong::log::Target::Own
            || state.reigns_from(state.epoch()).first().is_some_and(|reign| marks.stable >= reign.start))
}
