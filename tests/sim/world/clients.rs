//! Clients in the world: how they come, step, crash and end, and what their applications call.

use bytes::Bytes;
use tagalong::client::{ClientInput, ClientOutput};
use tagalong::log::{Level, SessionRole};
use tagalong::message::{ClientFrame, ClientMessage, Outcome};

use super::{Event, World};
use crate::client::{Habit, SimClient};
use crate::clock::Clock;
use crate::machine::Register;
use crate::network::{At, Parcel};

impl World {
    pub fn add_client(&mut self, calls: u64) {
        let number = self.clients.len();
        let persistent = self.dice.percent(self.plan.persistent);
        let domain = match self.plan.racks {
            _ if self.dice.percent(self.plan.near) => "east".to_owned(),
            0 if number.is_multiple_of(7) => String::new(),
            0 => format!("rack-{number}"),
            racks => format!("rack-{}", self.dice.index(racks)),
        };
        let role = match () {
            () if self.dice.percent(self.plan.readers) => SessionRole::Reader,
            () if self.dice.percent(self.plan.holders) => SessionRole::Holder,
            () => SessionRole::Writer,
        };
        let mut client = SimClient::new(number, persistent, calls, domain, role);
        client.roomless = self.dice.percent(self.plan.roomless);
        client.habit = self.some_habit();
        client.clock = self.some_clock();
        self.oracle.on_client(client.failure_domain());
        self.clients.push(client);
        let delay = self.dice.below(self.plan.arrive_us);
        self.after(delay, Event::StartClient { client: number });
    }

    /// Somebody takes the place of a client that is gone, and makes so many calls.
    fn replace_client(&mut self, calls: u64) {
        if self.clients.len() < self.plan.clients + self.plan.spares {
            self.add_client(calls);
        }
    }

    pub(super) fn start_client(&mut self, at: usize) {
        if self.clients[at].core.is_some() || !self.clients[at].is_live() {
            return;
        }
        let mut out = Vec::new();
        let now = self.clients[at].clock.at(self.now);
        self.clients[at].start(&self.plan.client, now, &mut out);
        self.note(format!("client {at} starts"));
        self.oracle.on_client_start(at, &self.clients[at].stored);
        self.carry_out_client(at, out);
        let life = self.clients[at].life;
        for node in 0..self.nodes.len() {
            self.after(10, Event::Dial { client: at, life, node });
        }
        self.after(self.plan.think_us, Event::Work { client: at, life });
    }

    pub fn crash_client(&mut self, at: usize) {
        if self.clients[at].core.is_none() {
            return;
        }
        self.trouble();
        self.oracle.on_client_crash(&self.clients[at]);
        if !self.clients[at].persistent {
            self.oracle.on_damage(at, self.clients[at].session, false, self.now);
        }
        self.clients[at].crash(&mut self.dice);
        self.note(format!("client {at} dies{}", if self.clients[at].lost { " for good" } else { "" }));
        self.cut_all(At::Client(at));
        let delay = self.dice.between(1_000, 300_000);
        let delay = if self.quick { delay % 5_000 } else { delay };
        if self.clients[at].lost {
            self.replace_client(self.clients[at].calls_left);
        } else {
            self.after(delay, Event::StartClient { client: at });
        }
    }

    /// A client's machine dies, with the end of its cache.
    pub fn reboot_client(&mut self, at: usize) {
        if self.clients[at].core.is_none() || !self.clients[at].persistent {
            return;
        }
        let session = self.clients[at].session;
        self.quick = self.dice.percent(70);
        self.crash_client(at);
        self.quick = false;
        let before = self.oracle.places(&self.clients[at].stored);
        self.clients[at].tear(&mut self.dice);
        let after = self.oracle.places(&self.clients[at].stored);
        self.oracle.on_damage(at, session, true, self.now);
        self.oracle.views[at].died_with.extend(before.difference(&after));
    }

    /// Something goes on that has to be over before everything can be as it should be.
    pub fn trouble(&mut self) {
        self.troubled_at = self.troubled_at.max(self.now);
    }

    /// A client is gone with its cache, on whatever it was.
    pub fn lose_client(&mut self, at: usize) {
        if !self.clients[at].is_live() {
            return;
        }
        self.clients[at].persistent = false;
        if self.clients[at].core.is_some() {
            self.crash_client(at);
        } else {
            self.note(format!("the cache of client {at} is lost"));
            self.oracle.on_client_crash(&self.clients[at]);
            self.oracle.on_damage(at, None, false, self.now);
            self.clients[at].lost = true;
            self.replace_client(self.clients[at].calls_left);
        }
    }

    pub(super) fn step_client(&mut self, at: usize, input: ClientInput) {
        let now = self.clients[at].clock.at(self.now);
        let Some(core) = &mut self.clients[at].core else { return };
        let mut out = Vec::new();
        let flush = matches!(input, ClientInput::Flush);
        let gone = match input {
            ClientInput::Gone(conn) => Some(conn),
            _ => None,
        };
        core.step(now, input, &mut out);
        self.carry_out_client(at, out);
        if !flush {
            self.flush_client(at);
        }
        let life = self.clients[at].life;
        if let Some(due) = self.clients[at].core.as_ref().and_then(tagalong::client::Client::next_timeout) {
            let due = self.now + self.clients[at].clock.until(self.now, due);
            if self.clients[at].tick_at.is_none_or(|known| known > due || known <= self.now) {
                self.clients[at].tick_at = Some(due);
                self.after(due - self.now, Event::TickClient { client: at, life });
            }
        }
        if gone.is_some() {
            // The shell keeps a stream to every node.
            let backoff = self.dice.between(500, 10_000);
            for node in 0..self.nodes.len() {
                let (a, b) = (At::Client(at), At::Node(node));
                let linked = self.streams_of(a).any(|(_, stream)| stream.has(b) && stream.ends[0].open);
                if !linked {
                    self.after(backoff, Event::Dial { client: at, life, node });
                }
            }
        }
        self.oracle.check_client(&self.plan, at, &self.clients[at]);
    }

    pub fn flush_client(&mut self, at: usize) {
        if !self.clients[at].flush_due && self.clients[at].core.is_some() {
            self.clients[at].flush_due = true;
            let (life, delay) = (self.clients[at].life, self.dice.below(self.plan.flush_us));
            self.after(delay, Event::FlushClient { client: at, life });
        }
    }

    pub(super) fn run_store(&mut self, at: usize) {
        if !self.clients[at].store_due && !self.clients[at].stores.is_empty() {
            self.clients[at].store_due = true;
            let (life, delay) = (self.clients[at].life, self.dice.between(1, self.plan.store_us));
            self.after(delay, Event::Store { client: at, life });
        }
    }

    pub fn carry_out_client(&mut self, at: usize, out: Vec<ClientOutput>) {
        for output in out {
            if self.oracle.violation.is_some() || self.clients[at].core.is_none() {
                return;
            }
            match output {
                ClientOutput::Send(conn, message) => {
                    if matches!(message, ClientMessage::Attach(_)) {
                        self.trouble();
                        self.clients[at].session = Some(conn.0);
                    }
                    self.send_from_client(at, conn.0, message);
                }
                ClientOutput::Close(conn) => self.close(conn.0, At::Client(at)),
                ClientOutput::Store(ops) => {
                    self.clients[at].stores.push_back(ops);
                    self.run_store(at);
                }
                ClientOutput::Done { request, outcome, tag } => {
                    self.note(format!(
                        "client {at}: request {request} is done at {:?}: {outcome:?}",
                        tag.map(|t| t.lsn)
                    ));
                    self.oracle.on_done(&self.clients[at], at, request, &outcome, tag);
                    if let (Some(key), Outcome::Reply(reply)) = (self.oracle.key_of(at, request), &outcome) {
                        self.saw(at, key, reply);
                    }
                }
                ClientOutput::Result { id, result } => {
                    self.clients[at].queries.remove(&id);
                    self.note(format!("client {at}: query {id} is answered: {result:?}"));
                    if let (Some(key), Ok(result)) = (self.oracle.asked(at, id), &result) {
                        self.saw(at, key, result);
                    }
                    self.oracle.on_result(&self.clients[at], at, id, &result);
                }
                ClientOutput::Flushed(token) => {
                    self.clients[at].flushes.retain(|waiting| *waiting != token);
                    self.oracle.on_flushed(at, token);
                }
                ClientOutput::Event(event) => {
                    self.note(format!("client {at}: {event:?}"));
                    self.mark_client_event(&event);
                    self.clients[at].told.push(event);
                }
                ClientOutput::Endpoints(_) => {}
                ClientOutput::Failed(error) => {
                    self.note(format!("client {at} fails: {error}"));
                    self.oracle.on_failed(at, &error);
                    self.end_client(at);
                    self.replace_client(self.clients[at].calls_left);
                }
                ClientOutput::Closed => {
                    self.note(format!("client {at} is closed"));
                    let due = self.clients[at].core.as_ref().and_then(tagalong::client::Client::next_timeout);
                    assert_eq!(due, None, "a client that is closed waits for nothing");
                    self.oracle.on_closed(at);
                    self.end_client(at);
                    if self.plan.churn && !self.healing {
                        let calls = self.some_calls();
                        self.replace_client(calls);
                    }
                }
            }
        }
    }

    fn saw(&mut self, at: usize, key: u8, answer: &Bytes) {
        let register = Register::of(answer);
        self.clients[at].seen.extend(register.map(|register| (key, register.value)));
    }

    fn send_from_client(&mut self, at: usize, id: u64, mut message: ClientMessage) {
        self.mark_from_client(at, id, &message);
        if let ClientMessage::Frame(frame) = &mut message {
            let from = At::Client(at);
            if frame.confirm > 0 {
                let ghost = || Parcel::FromClient(ClientMessage::Frame(frame.clone()));
                self.ghosts.entry((from, frame.epoch)).or_insert_with(ghost);
            }
            if self.plan.queries_first && !frame.writes.is_empty() && !frame.queries.is_empty() {
                let first = ClientFrame {
                    epoch: frame.epoch,
                    confirm: frame.confirm,
                    queries: std::mem::take(&mut frame.queries),
                    ..ClientFrame::default()
                };
                self.send(id, from, Parcel::FromClient(ClientMessage::Frame(first)));
            }
        }
        self.send(id, At::Client(at), Parcel::FromClient(message));
    }

    fn end_client(&mut self, at: usize) {
        self.clients[at].ended = true;
        self.clients[at].core = None;
        self.clients[at].life += 1;
        self.cut_all(At::Client(at));
    }

    /// The application calls.
    pub(super) fn work(&mut self, at: usize) {
        let life = self.clients[at].life;
        let odd = self.dice.percent(self.plan.odd_calls);
        let query = self.dice.percent(self.plan.queries);
        let key = u8::try_from(self.dice.below(self.plan.keys)).expect("a byte");
        let think = self.dice.below(2 * self.plan.think_us);
        let level = match () {
            () if self.dice.percent(self.plan.stable_writes) => Level::Stable,
            () if self.dice.percent(self.plan.covered_writes) => Level::Covered,
            () => self.dice.pick(&[Level::Local, Level::Tagged]),
        };
        let reader = self.clients[at].role == SessionRole::Reader;
        if self.clients[at].calls_left == 0 {
            if !self.clients[at].closing && self.dice.percent(30) {
                self.clients[at].closing = true;
                self.note(format!("client {at} closes"));
                self.clients[at].core.as_mut().expect("up").close();
                self.flush_client(at);
            }
            return;
        }
        self.clients[at].calls_left -= 1;
        self.serial += 1;
        let seen = self.clients[at].seen.get(&key).copied().unwrap_or_default();
        let padding = usize::try_from(self.dice.below(self.plan.payload_max + 1)).expect("small");
        let (padding, think) = match self.clients[at].habit {
            Habit::Greedy => (1_000 + padding, think % 50),
            Habit::Trickling if !self.healing => (0, 20 * think),
            _ => (padding, think),
        };
        let payload = crate::machine::command(key, self.serial, seen, padding);
        let choice = self.dice.below(if reader { 3 } else { 4 });
        let core = self.clients[at].core.as_mut().expect("up");
        if odd {
            match choice {
                0 => {
                    let token = core.flush();
                    self.clients[at].flushes.push(token);
                    self.oracle.on_flush(at, token);
                }
                1 => {
                    let last = self.oracle.last_request(at);
                    if core.withdraw(last) {
                        self.note(format!("client {at} withdraws {last}"));
                        self.oracle.on_withdraw(at, last);
                    }
                }
                2 => {
                    let forgotten = self.clients[at].queries.pop_first().map(|(id, ())| id);
                    if let (Some(id), Some(core)) = (forgotten, &mut self.clients[at].core) {
                        core.forget_query(id);
                        self.oracle.on_forgotten(at, id);
                    }
                }
                _ => match core.try_write(payload.clone(), level) {
                    Ok(request) => self.oracle.on_write(at, request, payload, level),
                    Err(error) => self.mark_call(&error),
                },
            }
        } else if query || reader {
            if let Ok(id) = core.query(Bytes::copy_from_slice(&[key]), level) {
                self.clients[at].queries.insert(id, ());
                self.oracle.on_query(at, id, key, level);
            }
        } else {
            match core.write(payload.clone(), level) {
                Ok(request) => self.oracle.on_write(at, request, payload, level),
                Err(error) => self.mark_call(&error),
            }
        }
        self.flush_client(at);
        self.after(think, Event::Work { client: at, life });
    }

    pub(super) fn tick_client(&mut self, at: usize) {
        if self.clients[at].tick_at.is_some_and(|due| due <= self.now) {
            self.clients[at].tick_at = None;
            self.step_client(at, ClientInput::Tick);
        }
    }

    pub fn tick_client_now(&mut self, at: usize) {
        self.step_client(at, ClientInput::Tick);
    }

    /// How often a client calls.
    pub(super) fn some_calls(&mut self) -> u64 {
        if self.plan.churn { self.dice.between(1, 2 * self.plan.calls) } else { self.plan.calls }
    }

    /// Where clocks do not differ, chance is not asked.
    pub(super) fn some_clock(&mut self) -> Clock {
        match self.plan.clocks {
            Some(rate) => {
                let ahead = self.dice.pick(&[0, 1_000, 3_600_000_000]);
                Clock::new(ahead, self.dice.between(1_000 - rate, 1_000 + rate))
            }
            None => Clock::default(),
        }
    }

    fn some_habit(&mut self) -> Habit {
        let (slow, greedy, trickling) = (self.plan.slow, self.plan.greedy, self.plan.trickling);
        if slow + greedy + trickling == 0 {
            return Habit::Plain;
        }
        match self.dice.below(100) {
            n if n < slow => Habit::Slow(self.dice.between(5_000, 100_000)),
            n if n < slow + greedy => Habit::Greedy,
            n if n < slow + greedy + trickling => Habit::Trickling,
            _ => Habit::Plain,
        }
    }
}
