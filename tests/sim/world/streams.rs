//! Streams in the world: how they come about, carry what is sent, and break.

use tagalong::client::ClientInput;
use tagalong::log::Epoch;
use tagalong::message::NodeMessage;
use tagalong::node::{Conn, Input};

use super::{Event, World};
use crate::network::{At, Parcel, Stream};

impl World {
    pub fn is_blocked(&self, a: At, b: At) -> bool {
        self.blocked.get(&(a.min(b), a.max(b))).is_some_and(|until| *until > self.now)
    }

    fn delay(&mut self, a: At, b: At) -> u64 {
        let far = |at| matches!(at, At::Node(node) if node > 0);
        let (low, high) = if far(a) || far(b) { self.plan.wan_us } else { self.plan.lan_us };
        self.dice.between(low, high)
    }

    pub(super) fn dial(&mut self, client: usize, node: usize) {
        if self.clients[client].core.is_none() || self.nodes[node].lost {
            return;
        }
        let (a, b) = (At::Client(client), At::Node(node));
        let life = self.clients[client].life;
        if !self.nodes[node].is_up() || self.is_blocked(a, b) {
            let backoff = self.dice.between(1_000, 20_000);
            self.after(backoff, Event::Dial { client, life, node });
            return;
        }
        self.connect((a, life), (b, self.nodes[node].life));
    }

    pub(super) fn dial_primary(&mut self, node: usize) {
        let Some(primary) = self.nodes[node].follows else { return };
        if self.nodes[node].backup().is_none() || self.nodes[node].lost {
            return;
        }
        let (a, b) = (At::Node(node), At::Node(primary));
        let life = self.nodes[node].life;
        if !self.nodes[primary].is_up() || self.is_blocked(a, b) {
            let backoff = self.dice.between(1_000, 20_000);
            self.after(backoff, Event::DialPrimary { node, life });
            return;
        }
        self.connect((a, life), (b, self.nodes[primary].life));
    }

    /// The streams that begin or end there.
    pub fn streams_of(&self, at: At) -> impl Iterator<Item = (u64, &Stream)> {
        self.ends.get(&at).into_iter().flatten().map(|id| (*id, &self.streams[id]))
    }

    fn connect(&mut self, dialler: (At, u64), listener: (At, u64)) {
        self.next_stream += 1;
        let id = self.next_stream;
        self.streams.insert(id, Stream::new(dialler, listener, self.now));
        for (at, _) in [dialler, listener] {
            self.ends.entry(at).or_default().insert(id);
        }
        self.push(id, 0, Parcel::Connected);
    }

    /// Sends from one side to the other.
    pub(super) fn send(&mut self, id: u64, from: At, parcel: Parcel) {
        let Some(stream) = self.streams.get(&id) else { return };
        let side = usize::from(stream.ends[0].at == from);
        let open = stream.ends[1 - side].open && stream.ends[1 - side].at == from;
        if open && !stream.ends[side].dead {
            if self.trace {
                self.note(format!("  {from:?} -> {:?} [{id}] {}", stream.ends[side].at, brief(&parcel)));
            }
            self.push(id, side, parcel);
        }
    }

    /// What something in between still had of an older stream arrives on the present one.
    pub fn haunt(&mut self) {
        let ghosts: Vec<(At, Epoch)> = self.ghosts.keys().copied().collect();
        if ghosts.is_empty() {
            return;
        }
        let (of, epoch) = self.dice.pick(&ghosts);
        let parcel = self.ghosts[&(of, epoch)].clone();
        let newer = |at: usize| self.clients[at].core.as_ref().and_then(|core| core.attached()) > Some(epoch);
        let link = |(_, stream): &(&u64, &Stream)| {
            stream.ends[0].at == of && matches!(stream.ends[1].at, At::Node(_)) && !stream.ends[0].dead
        };
        let place = match of {
            At::Client(at) if newer(at) => self.clients[at].session.map(|id| (id, 1)),
            At::Client(_) => None,
            At::Node(at) if self.nodes[at].disk.marks.as_ref().is_some_and(|marks| marks.promised > epoch) => {
                self.streams.iter().find(link).map(|(id, _)| (*id, 0))
            }
            At::Node(_) => None,
        };
        if let Some((id, side)) = place.filter(|(id, side)| {
            self.streams.get(id).is_some_and(|stream| stream.ends[*side].open && !stream.ends[*side].dead)
        }) {
            self.note(format!("a ghost of {epoch} for stream {id}: {}", brief(&parcel)));
            self.push(id, side, parcel);
        }
    }

    pub fn push(&mut self, id: u64, side: usize, parcel: Parcel) {
        let ends = &self.streams[&id].ends;
        let (from, to) = (ends[1 - side].at, ends[side].at);
        let delay = self.delay(from, to) + self.late(from, to);
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let end = &mut stream.ends[side];
        end.last = end.last.max(now + delay);
        let at = end.last;
        end.inbox.push_back((at, now, parcel));
        self.after(at - now, Event::Deliver { stream: id, side });
    }

    /// Breaks a stream: of what is under way a prefix arrives. `late` says who notices late, and how late.
    pub fn break_stream(&mut self, id: u64, late: Option<(usize, u64)>) {
        for side in 0..2 {
            let keep = self.streams.get(&id).map_or(0, |stream| stream.ends[side].inbox.len() + 1);
            let keep = self.dice.index(keep);
            let Some(stream) = self.streams.get_mut(&id) else { return };
            let end = &mut stream.ends[side];
            if end.dead {
                continue;
            }
            end.inbox.truncate(keep);
            end.dead = true;
            let extra = late.filter(|(who, _)| *who == side).map_or(0, |(_, by)| by);
            end.last = end.last.max(self.now) + extra;
            self.push(id, side, Parcel::Gone);
        }
    }

    /// One side ends a stream, after what it sent on it.
    pub(super) fn close(&mut self, id: u64, by: At) {
        let straggler = self.dice.percent(20);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let side = usize::from(stream.ends[1].at == by);
        if stream.ends[side].at != by || !stream.ends[side].open {
            return;
        }
        if !stream.ends[1 - side].dead {
            stream.ends[1 - side].dead = true;
            self.push(id, 1 - side, Parcel::Gone);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let end = &mut stream.ends[side];
        // What had arrived before the shell closed the stream may still be delivered.
        end.inbox.retain(|(_, _, parcel)| straggler && !matches!(parcel, Parcel::Gone));
        end.inbox.truncate(2);
        end.dead = true;
        self.push(id, side, Parcel::Gone);
    }

    /// A process is gone, and its streams with it.
    pub(super) fn cut_all(&mut self, at: At) {
        let ids: Vec<u64> = self.streams_of(at).map(|(id, _)| id).collect();
        for id in ids {
            let often = if self.quick { 70 } else { 20 };
            let late = self.dice.percent(often).then(|| self.dice.between(10_000, 300_000));
            let side = usize::from(self.streams[&id].ends[0].at == at);
            self.break_stream(id, late.map(|by| (side, by)));
            if let Some(stream) = self.streams.get_mut(&id) {
                let own = &mut stream.ends[1 - side];
                own.open = false;
                own.inbox.clear();
            }
        }
    }

    pub(super) fn deliver(&mut self, id: u64, side: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let end = &mut stream.ends[side];
        if end.inbox.front().is_none_or(|(at, _, _)| *at > self.now) {
            return;
        }
        let Some((_, sent, parcel)) = end.inbox.pop_front() else { return };
        if !end.open {
            return;
        }
        let (at, life) = (end.at, end.life);
        let gone = matches!(parcel, Parcel::Gone);
        if gone {
            end.open = false;
            end.inbox.clear();
        }
        if self.streams[&id].is_over() {
            let over = self.streams.remove(&id);
            for end in over.iter().flat_map(|stream| &stream.ends) {
                self.ends.get_mut(&end.at).into_iter().for_each(|ids| _ = ids.remove(&id));
            }
        }
        let same = match at {
            At::Node(node) => self.nodes[node].life == life,
            At::Client(client) => self.clients[client].life == life,
        };
        if !same {
            return;
        }
        if self.trace && !gone {
            self.note(format!("{at:?} [{id}] <- {}", brief(&parcel)));
        } else if gone {
            self.note(format!("{at:?} [{id}] is gone"));
        }
        match at {
            At::Node(node) => self.deliver_to_node(node, id, side, parcel),
            At::Client(client) => self.deliver_to_client(client, id, sent, parcel),
        }
    }

    fn deliver_to_node(&mut self, node: usize, id: u64, side: usize, parcel: Parcel) {
        let conn = Conn(id);
        match parcel {
            Parcel::Connected => self.step_node(node, Input::Linked(conn)),
            Parcel::FromClient(message) => self.step_node(node, Input::Client(conn, message)),
            Parcel::FromBackup(message) => self.step_node(node, Input::FromBackup(conn, message)),
            Parcel::FromPrimary(message) => self.step_node(node, Input::FromPrimary(conn, message)),
            Parcel::FromNode(_) => {}
            Parcel::Gone => {
                self.trouble();
                self.oracle.on_noticed(id, self.now);
                self.step_node(node, Input::Gone(conn));
                if side == 0 {
                    let (life, backoff) = (self.nodes[node].life, self.dice.between(500, 10_000));
                    self.after(backoff, Event::DialPrimary { node, life });
                }
            }
        }
    }

    fn deliver_to_client(&mut self, at: usize, id: u64, sent: u64, parcel: Parcel) {
        let conn = Conn(id);
        match parcel {
            Parcel::Connected => self.step_client(at, ClientInput::Connected(conn)),
            Parcel::FromNode(message) => {
                self.message_to_client(at, id, sent, message);
            }
            Parcel::Gone => {
                self.step_client(at, ClientInput::Gone(conn));
            }
            _ => {}
        }
    }

    fn message_to_client(&mut self, at: usize, id: u64, sent: u64, message: NodeMessage) {
        let Some(core) = &self.clients[at].core else { return };
        let ours = self.clients[at].session == Some(id);
        let frame = match &message {
            NodeMessage::Frame(frame) if ours && core.attached() == Some(frame.epoch) => Some(frame.clone()),
            _ => None,
        };
        let settles = frame.is_some() || matches!(message, NodeMessage::Welcome(_)) && ours;
        let before = settles.then(|| self.oracle.held(core.image()));
        if let Some(frame) = &frame {
            let client = &mut self.clients[at];
            for result in &frame.results {
                client.result_at.insert(result.id, (frame.epoch, result.lsn, sent));
            }
            for response in frame.responses.iter().filter(|response| response.outcome.is_some()) {
                client.reply_sent.insert(response.request, (frame.epoch, sent));
            }
        }
        self.step_client(at, ClientInput::Message(Conn(id), message));
        if let Some(before) = before {
            self.oracle.check_released(&self.nodes, &self.clients, at, &before);
        }
        if let Some(frame) = frame {
            self.oracle.check_order_known(&self.nodes, &self.clients, at, &frame);
        }
    }
}

fn brief(parcel: &Parcel) -> String {
    let mut text = format!("{parcel:?}");
    if text.len() > 1_500 {
        text.truncate((0..=1_500).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push('…');
    }
    text
}
