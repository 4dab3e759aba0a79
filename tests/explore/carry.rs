//! The shells: what a core asks for is carried out. Executing, and flushing after every input, is done at once; so is what
//! the plan calls fast. The rest becomes a move.

use std::collections::VecDeque;

use bytes::Bytes;
use tagalong::client::{ClientInput, ClientOutput};
use tagalong::error::Code;
use tagalong::log::{Level, Time};
use tagalong::message::{BackupMessage, ClientFrame, ClientMessage, NodeMessage, PrimaryMessage};
use tagalong::node::{Input, NodeEvent, Output};

use crate::plan::Call;
use crate::world::{At, Core, Operation, Parcel, World};

impl World {
    pub fn step_node(&mut self, at: usize, input: Input) {
        self.go_on_node(at, VecDeque::from([input]), Vec::new());
    }

    /// Carries out `out`, and goes on with whatever follows at once.
    pub fn go_on_node(&mut self, at: usize, mut todo: VecDeque<Input>, mut out: Vec<Output>) {
        let mut flush = !out.is_empty();
        loop {
            if !out.is_empty() {
                self.carry_out(at, std::mem::take(&mut out), &mut todo);
            }
            if self.violation.is_some() || !self.nodes[at].is_up() {
                return;
            }
            if let Some(input) = todo.pop_front() {
                flush |= !matches!(input, Input::Flush);
                let now = Time(self.now);
                match &mut self.nodes[at].edit().core {
                    Core::Primary(core) => core.step(now, input, &mut out),
                    Core::Backup(core) => core.step(now, input, &mut out),
                    Core::Down => {}
                }
                continue;
            }
            let slow = self.plan.0.slow_disks[at];
            let reads = matches!(self.nodes[at].queue.front(), Some(Operation::Read(..) | Operation::Truncate(_)));
            if (!slow || reads) && !self.nodes[at].queue.is_empty() {
                todo.extend(self.nodes[at].edit().complete());
                continue;
            }
            if !std::mem::take(&mut flush) {
                return;
            }
            if self.plan.0.batches && self.exploring {
                let late = self.nodes[at].primary().is_some();
                if self.nodes[at].flush_due != late {
                    self.nodes[at].edit().flush_due = late;
                }
                return;
            }
            todo.push_back(Input::Flush);
        }
    }

    fn carry_out(&mut self, at: usize, out: Vec<Output>, todo: &mut VecDeque<Input>) {
        let mut out = VecDeque::from(out);
        while let Some(output) = out.pop_front() {
            if self.violation.is_some() || !self.nodes[at].is_up() {
                return;
            }
            match output {
                Output::ToClient(conn, message) => {
                    let client = match self.peer(conn, At::Node(at)) {
                        Some(At::Client(client)) => Some(client),
                        _ => None,
                    };
                    self.on_sent_to_client(at, client, &message);
                    let opened = self.oracle.newest();
                    self.send(conn, At::Node(at), Parcel::FromNode(message, opened));
                }
                Output::ToBackup(conn, message) => {
                    self.on_sent_to_backup(at, &message);
                    if self.plan.0.faults.ghosts > 0
                        && let (PrimaryMessage::Append { epoch, records, .. }, Some(At::Node(to))) =
                            (&message, self.peer(conn, At::Node(at)))
                        && !records.is_empty()
                        && self.nodes[to].ghost.is_none()
                        && *epoch == self.nodes[to].marks.promised
                    {
                        self.nodes[to].edit().ghost = Some(Box::new(message.clone()));
                    }
                    self.send(conn, At::Node(at), Parcel::FromPrimary(message));
                }
                Output::ToPrimary(conn, message) => {
                    self.on_sent_to_primary(at, &message);
                    if let BackupMessage::Failed(error) = &message {
                        self.check_honest(&format!("backup {at}"), error.code(), error.message());
                    }
                    self.send(conn, At::Node(at), Parcel::FromBackup(message));
                }
                Output::Close(conn) => {
                    if self.close(conn, At::Node(at)) {
                        todo.push_back(Input::Gone(conn));
                    }
                }
                Output::Append(records) => {
                    self.on_append(at, &records);
                    self.nodes[at].edit().queue.push_back(Operation::Append(records.into()));
                }
                Output::Truncate(last) => self.nodes[at].edit().queue.push_back(Operation::Truncate(last)),
                Output::SaveMarks(marks) => {
                    self.nodes[at].edit().queue.push_back(Operation::Marks(Box::new(marks)));
                }
                Output::Read { conn, from, .. } => {
                    self.nodes[at].edit().queue.push_back(Operation::Read(conn, from));
                }
                Output::Execute { commands, queries } => {
                    let slow = self.plan.0.slow_machine && at == 0;
                    let node = self.nodes[at].edit();
                    node.task = Some((commands.into(), queries.len()));
                    if !slow {
                        todo.extend(node.work());
                        todo.rotate_right(1);
                    }
                }
                Output::Judge { entries, .. } => todo.push_back(Input::Judged(vec![true; entries.len()])),
                Output::AdminDone(_) => {}
                Output::Event(event) => self.on_node_event(at, event),
                Output::Promote => {
                    let node = self.nodes[at].edit();
                    let Core::Backup(backup) = std::mem::replace(&mut node.core, Core::Down) else {
                        self.violate("start", "a promotion of what is no backup".to_owned());
                        return;
                    };
                    let mut more = Vec::new();
                    let primary = backup.into_primary(Time(self.now), &mut more);
                    node.core = Core::Primary(Box::new(primary));
                    node.follows = None;
                    self.check_base(at);
                    out.extend(more);
                }
                Output::Halt(error) => self.violate("halt", format!("node {at} stops: {error}")),
            }
        }
    }

    fn on_node_event(&mut self, at: usize, event: NodeEvent) {
        match event {
            NodeEvent::Opened { report, epoch, start } => self.on_opened(at, epoch, start, &report),
            NodeEvent::Diverged(lsn) => {
                self.violate("I5", format!("node {at} finds another reply at {lsn}"));
            }
            // The process ends, with everything on its disk; whoever is deposed is set aside.
            NodeEvent::Stopped(_) => self.end_node(at, false),
            NodeEvent::Deposed(_) => self.end_node(at, true),
            NodeEvent::Refused(error) if error.code() == Code::LogDiverged => {
                let marks = &self.nodes[at].marks;
                if marks.in_sync && marks.promised.node != self.nodes[at].id {
                    self.violate("I1", format!("the log of backup {at}, in sync, does not follow: {error}"));
                }
                self.end_node(at, true);
            }
            _ => {}
        }
    }

    /// The process is over; what it sent before is on its way.
    fn end_node(&mut self, at: usize, lost: bool) {
        let node = self.nodes[at].edit();
        while node.complete().is_some() || !node.queue.is_empty() {}
        node.core = Core::Down;
        node.lost |= lost;
        self.cut_all(At::Node(at), false);
    }

    /// Honest processes do not take each other for broken.
    pub fn check_honest(&mut self, who: &str, code: Code, why: &str) {
        if matches!(code, Code::Protocol | Code::Conflict | Code::Corrupt | Code::Diverged) {
            self.violate("honest", format!("{who} accuses another of what nobody did: {why}"));
        }
    }

    // Clients.

    pub fn step_client(&mut self, at: usize, input: ClientInput) {
        self.go_on_client(at, VecDeque::from([input]), Vec::new());
    }

    pub fn go_on_client(&mut self, at: usize, mut todo: VecDeque<ClientInput>, mut out: Vec<ClientOutput>) {
        let mut flush = !out.is_empty();
        loop {
            if !out.is_empty() {
                self.carry_out_client(at, std::mem::take(&mut out), &mut todo);
            }
            if self.violation.is_some() || self.clients[at].core.is_none() {
                return;
            }
            if let Some(input) = todo.pop_front() {
                flush |= !matches!(input, ClientInput::Flush);
                let now = Time(self.now);
                if let Some(core) = &mut self.clients[at].edit().core {
                    core.step(now, input, &mut out);
                }
                continue;
            }
            if !self.plan.0.slow_caches && !self.clients[at].stores.is_empty() {
                todo.extend(self.store(at));
                continue;
            }
            if !std::mem::take(&mut flush) {
                return;
            }
            todo.push_back(ClientInput::Flush);
        }
    }

    /// The oldest write to the cache is done.
    pub fn store(&mut self, at: usize) -> Option<ClientInput> {
        let member = self.clients[at].edit();
        for op in member.stores.pop_front()? {
            member.stored.apply(&op);
        }
        member.stores_done += 1;
        Some(ClientInput::Stored(member.stores_done))
    }

    fn carry_out_client(&mut self, at: usize, out: Vec<ClientOutput>, todo: &mut VecDeque<ClientInput>) {
        for output in out {
            if self.violation.is_some() || self.clients[at].core.is_none() {
                return;
            }
            match output {
                ClientOutput::Send(conn, message) => {
                    if matches!(message, ClientMessage::Attach(_)) {
                        self.clients[at].edit().session = Some(conn.0);
                    }
                    self.send_from_client(at, conn, message);
                }
                ClientOutput::Close(conn) => {
                    if self.close(conn, At::Client(at)) {
                        todo.push_back(ClientInput::Gone(conn));
                    }
                }
                ClientOutput::Store(ops) => self.clients[at].edit().stores.push_back(ops),
                ClientOutput::Done { request, outcome, tag } => self.on_done(at, request, &outcome, tag),
                ClientOutput::Result { id, result } => self.on_result(at, id, &result),
                ClientOutput::Event(event) => self.on_client_event(at, event),
                ClientOutput::Flushed(_) | ClientOutput::Endpoints(_) => {}
                ClientOutput::Failed(error) => {
                    if error.code() != Code::SessionExpired {
                        self.violate("liveness", format!("client {at} fails: {error}"));
                    }
                    self.clients[at].edit().view.failed = true;
                    self.end_client(at);
                }
                ClientOutput::Closed => {
                    if let Some(request) = self.clients[at].view.first_open() {
                        self.violate("I9", format!("client {at} is closed, but request {request} has no outcome"));
                    }
                    self.end_client(at);
                }
            }
        }
    }

    fn send_from_client(&mut self, at: usize, conn: tagalong::message::Conn, mut message: ClientMessage) {
        let from = At::Client(at);
        if let ClientMessage::Frame(frame) = &mut message {
            if self.plan.0.faults.ghosts > 0 && frame.confirm > 0 && self.clients[at].ghost.is_none() {
                self.clients[at].edit().ghost = Some(Box::new(frame.clone()));
            }
            if self.plan.0.queries_first && !frame.writes.is_empty() && !frame.queries.is_empty() {
                let queries = std::mem::take(&mut frame.queries);
                let first = ClientFrame { queries, writes: Vec::new(), ..frame.clone() };
                self.send(conn, from, Parcel::FromClient(ClientMessage::Frame(first)));
            }
        }
        self.send(conn, from, Parcel::FromClient(message));
    }

    fn end_client(&mut self, at: usize) {
        let member = self.clients[at].edit();
        member.ended = true;
        member.core = None;
        self.cut_all(At::Client(at), false);
    }

    /// The application makes its next call.
    pub fn call(&mut self, at: usize) {
        let call = self.plan.0.scripts[at][self.clients[at].called];
        let floor = self.oracle.floor;
        let member = self.clients[at].edit();
        member.called += 1;
        let serial = u8::try_from(10 * at + member.called).expect("small");
        let Some(core) = &mut member.core else { return };
        match call {
            Call::Write(level) => {
                let payload = Bytes::copy_from_slice(&[serial]);
                let called = core.write(payload.clone(), level);
                if let Ok(request) = called {
                    member.view.on_write(request, payload, level, floor);
                }
            }
            Call::Query(level) => {
                let called = core.query(Bytes::from_static(&[0]), level);
                if let Ok(id) = called {
                    member.view.on_query(id, level, floor);
                }
            }
            Call::Close => core.close(),
        }
        self.go_on_client(at, VecDeque::from([ClientInput::Flush]), Vec::new());
    }

    /// What a client is sent: judged by what it does with it.
    pub fn deliver_to_client(&mut self, at: usize, id: u64, message: NodeMessage, opened: tagalong::log::Epoch) {
        let ours = self.clients[at].session == Some(id);
        let frame = match (&message, &self.clients[at].core) {
            (NodeMessage::Frame(frame), Some(core)) if ours && core.attached() == Some(frame.epoch) => {
                Some(frame.clone())
            }
            _ => None,
        };
        if let NodeMessage::Refused(error) = &message {
            self.check_honest(&format!("the node that client {at} talks to"), error.code(), error.message());
        }
        let settles = frame.is_some() || matches!(message, NodeMessage::Welcome(_)) && ours;
        let before = settles.then(|| self.held(at));
        if let Some(frame) = &frame {
            self.clients[at].edit().view.on_frame(frame, opened);
        }
        let level = self.plan.0.primary.lowest;
        self.step_client(at, ClientInput::Message(tagalong::message::Conn(id), message));
        if level == Level::Local || self.clients[at].core.is_none() {
            return;
        }
        if let Some(before) = before {
            self.check_released(at, &before);
        }
        if let Some(frame) = frame {
            self.check_order_known(at, &frame);
        }
    }
}
