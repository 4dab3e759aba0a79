//! Faults of disks, clocks and directions: what breaks a process's assumptions rather than the process.

use tagalong::node::Input;

use crate::client::Habit;
use crate::network::{At, Parcel};
use crate::world::{Event, World};

impl World {
    /// A sync, or a write of marks, fails: the node stops, and what was under way is on the disk in part, or not.
    pub fn fail_disk(&mut self, full: bool) {
        let at = self.dice.index(self.nodes.len());
        if full {
            self.nodes[at].full_until = self.now + self.dice.between(5_000, 200_000);
            self.trouble_until(self.nodes[at].full_until);
        } else {
            self.nodes[at].disk_fails = true;
        }
    }

    /// Whether the disk's work in progress fails. The shell stops the node then, and somebody starts it again.
    pub fn disk_failed(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let full = node.full_until > self.now && !self.healing;
        if !node.disk.is_writing() || !full && !std::mem::take(&mut node.disk_fails) {
            return false;
        }
        self.note(format!("the disk of node {at} {}", if full { "is full" } else { "fails" }));
        self.marks.reach(if full { "a full disk stopped a node" } else { "a failed write stopped a node" });
        self.crash_node(at);
        self.nodes[at].down_until = self.now + self.dice.between(1_000, 60_000);
        true
    }

    pub fn fail_cache(&mut self, full: bool) {
        let at = self.dice.index(self.clients.len());
        if full {
            self.clients[at].full_until = self.now + self.dice.between(5_000, 200_000);
            self.trouble_until(self.clients[at].full_until);
        } else {
            self.clients[at].cache_fails = true;
        }
    }

    /// Whether a write to a client's cache fails: the client stops then, and of the write a part may be there.
    pub fn cache_failed(&mut self, at: usize) -> bool {
        let client = &mut self.clients[at];
        let full = client.full_until > self.now && !self.healing;
        if !client.persistent || client.stores.is_empty() || !full && !std::mem::take(&mut client.cache_fails) {
            return false;
        }
        self.note(format!("the cache of client {at} {}", if full { "is full" } else { "fails" }));
        self.marks.reach(if full { "a full disk stopped a client" } else { "a failed write stopped a client" });
        self.crash_client(at);
        true
    }

    /// What goes one way between two processes is late for a while; what goes the other way, or elsewhere, is not.
    pub fn lag(&mut self) {
        let Some((from, to)) = self.some_pair() else { return };
        let (until, extra) = (self.now + self.dice.between(10_000, 300_000), self.dice.between(1_000, 60_000));
        self.lags.insert((from, to), (until, extra));
        self.trouble_until(until + extra);
    }

    /// Nothing gets through one way any more. Either it comes after all when the cut is over, or the stream is lost, which
    /// each side finds out in its own time; meanwhile the other way works.
    pub fn cut_one_way(&mut self) {
        let Some(id) = self.some_stream_of_any_kind() else { return };
        let side = self.dice.index(2);
        let long = self.dice.between(5_000, 300_000);
        let until = self.now + long;
        let lost = self.dice.percent(50);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (a, b) = (stream.ends[0].at, stream.ends[1].at);
        let end = &mut stream.ends[side];
        if end.dead {
            return;
        }
        // What was under way already arrives late, or not at all.
        end.inbox.iter_mut().for_each(|(at, _, _)| *at = until.max(*at));
        end.last = end.last.max(until);
        if lost {
            end.inbox.clear();
            end.dead = true;
        }
        let late = end.inbox.len();
        self.blocked.insert((a.min(b), a.max(b)), until);
        if lost {
            self.push(id, side, Parcel::Gone);
            let other = self.dice.between(1, 2 * long);
            self.after(other, Event::Break { stream: id });
        } else {
            (0..late).for_each(|_| self.after(long, Event::Deliver { stream: id, side }));
        }
        self.trouble_until(until + long);
    }

    /// A process does nothing for a while, and then everything that has gathered. Its clock may not have noticed, or have
    /// gone on and further, as after a suspended machine wakes.
    pub fn pause(&mut self) {
        let until = self.now + self.dice.between(1_000, 300_000);
        match self.some_process() {
            At::Node(at) => self.nodes[at].paused_until = until,
            At::Client(at) => self.clients[at].paused_until = until,
        }
        self.trouble_until(until);
    }

    /// All timers are due at once.
    pub fn jump_clock(&mut self) {
        let by = self.dice.pick(&[1_000, 50_000, 1_000_000, 30_000_000]);
        match self.some_process() {
            At::Node(at) => {
                self.nodes[at].clock.jump(by);
                self.step_node(at, Input::Tick);
            }
            At::Client(at) => {
                self.clients[at].clock.jump(by);
                self.tick_client_now(at);
            }
        }
    }

    /// Until when the process that an event concerns is paused.
    pub fn paused_until(&self, event: Event) -> Option<u64> {
        if self.healing {
            return None;
        }
        let process = match event {
            Event::Deliver { stream, side } => self.streams.get(&stream).map(|stream| stream.ends[side].at)?,
            Event::FlushNode { node, .. }
            | Event::TickNode { node, .. }
            | Event::Disk { node, .. }
            | Event::Task { node, .. }
            | Event::DialPrimary { node, .. } => At::Node(node),
            Event::FlushClient { client, .. }
            | Event::TickClient { client, .. }
            | Event::Store { client, .. }
            | Event::Dial { client, .. }
            | Event::Work { client, .. } => At::Client(client),
            _ => return None,
        };
        let until = match process {
            At::Node(at) => self.nodes[at].paused_until,
            At::Client(at) => self.clients[at].paused_until,
        };
        (until > self.now).then_some(until)
    }

    /// How much later than usual something arrives.
    pub fn late(&self, from: At, to: At) -> u64 {
        if self.healing {
            return 0;
        }
        let lag = self.lags.get(&(from, to)).filter(|(until, _)| *until > self.now).map_or(0, |(_, extra)| *extra);
        let slow = match to {
            At::Client(at) => match self.clients[at].habit {
                Habit::Slow(late) => late,
                _ => 0,
            },
            At::Node(_) => 0,
        };
        lag + slow
    }

    fn trouble_until(&mut self, until: u64) {
        self.troubled_at = self.troubled_at.max(until);
    }

    fn some_process(&mut self) -> At {
        let at = self.dice.index(self.nodes.len() + self.clients.len());
        at.checked_sub(self.nodes.len()).map_or(At::Node(at), At::Client)
    }

    fn some_stream_of_any_kind(&mut self) -> Option<u64> {
        let ids: Vec<u64> = self.streams.keys().copied().collect();
        if ids.is_empty() { None } else { Some(self.dice.pick(&ids)) }
    }

    fn some_pair(&mut self) -> Option<(At, At)> {
        let id = self.some_stream_of_any_kind()?;
        let (a, b) = (self.streams[&id].ends[0].at, self.streams[&id].ends[1].at);
        Some(if self.dice.percent(50) { (a, b) } else { (b, a) })
    }
}
