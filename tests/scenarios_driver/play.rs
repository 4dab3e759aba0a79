//! Plays a transcript: carries out its steps, looks at what it asks for, and has the judge look at the rest.

use bytes::Bytes;
use tagalong::client::ClientSettings;
use tagalong::log::{ClientId, GapPolicy, Level, SessionRole};
use tagalong::message::Role;
use tagalong::node::{Admin, RecoveryPolicy};
use tagalong::primary::{PrimarySettings, Privacy, Uncovered};

use crate::client::Member;
use crate::judge::role;
use crate::language::{Kind, Mode, Part, Script, Step, What, duration};
use crate::node::Core;
use crate::wires::{Party, WORDS};
use crate::world::World;

/// What each step of a transcript is given to come to rest.
const STEP_US: u64 = 100_000;
/// And the healed world in the end.
const HEAL_US: u64 = 4_000_000;

pub struct Play {
    pub world: World,
}

type Done<T> = Result<T, String>;

/// Plays `script`; an error says where it went otherwise, and how it was until then.
pub fn play(script: &Script) -> Result<(), String> {
    let mut play = Play { world: World::new() };
    let mut transcript = String::new();
    for line in &script.lines {
        let outcome = match &line.what {
            What::Do(step, answer) => play.act(step, answer.as_deref()),
            What::See(ask, wanted) => play.look(ask).and_then(|seen| {
                (seen == *wanted).then_some(()).ok_or_else(|| format!("expected {wanted}, but it is {seen}"))
            }),
        };
        let judged = outcome.and_then(|()| play.world.judge.violation.clone().map_or(Ok(()), Err));
        transcript.push_str(&format!("  {}\n", line.text));
        if let Err(why) = judged {
            let what = play.picture();
            return Err(format!("{}:{}: {why}\n{transcript}{what}", script.file, line.number));
        }
    }
    let ended = if script.unhealed.is_some() { Ok(()) } else { play.heal() };
    ended.map_err(|why| format!("{}: after healing: {why}\n{transcript}{}", script.file, play.picture()))
}

fn level(word: Option<&String>) -> Done<Level> {
    match word.map(String::as_str) {
        None | Some("local") => Ok(Level::Local),
        Some("tagged") => Ok(Level::Tagged),
        Some("covered") => Ok(Level::Covered),
        Some("stable") => Ok(Level::Stable),
        Some(other) => Err(format!("there is no level {other}")),
    }
}

/// One setting of the service: a word, or `name=value`.
fn setting(settings: &mut PrimarySettings, option: &str) -> Done<()> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    let number = || value.parse::<u64>().map_err(|_| format!("{option}: not a number"));
    let small = || number().and_then(|number| u8::try_from(number).map_err(|error| error.to_string()));
    let time = || duration(value).ok_or_else(|| format!("{option}: not a time"));
    match name {
        "local" => settings.lowest = Level::Local,
        "tagged" => settings.lowest = Level::Tagged,
        "covered" => settings.lowest = Level::Covered,
        "stable" => settings.lowest = Level::Stable,
        "f" => (settings.f, settings.privacy) = (small()?, Privacy::Open),
        "shares" => settings.privacy = Privacy::Open,
        "unshared" => settings.privacy = Privacy::Withheld,
        "refuse-uncovered" => settings.uncovered = Uncovered::Refuse,
        "members" => settings.stripe_members = usize::from(small()?),
        "fill" => settings.stripe_wait_us = time()?,
        "patience" => settings.confirm_patience_us = time()?,
        "percent" => settings.window_percent = u32::from(small()?),
        "custody" => settings.custody_bytes_max = number()?,
        "requires-backup" => settings.require_backup = true,
        "log-before-send" => settings.log_before_send = true,
        "log-later" => settings.log_before_send = false,
        "reply-after-log" => settings.reply_after_log = true,
        "delta" => (settings.delta_bytes_max, settings.command_bytes_max) = (number()?, 256),
        "window" => settings.window = number()?,
        "batch" => settings.batch_max = usize::from(small()?),
        "frame" => settings.frame_bytes = number()?,
        "queries" => settings.queries_max = usize::from(small()?),
        "command" => settings.command_bytes_max = number()?,
        "sessions" => settings.sessions_max = usize::from(small()?),
        "suspend" => settings.suspend_after_us = time()?,
        "expire" => settings.expire_after_us = time()?,
        "replication-window" => settings.replication_window_bytes = number()?,
        "credit" => settings.pull_credit_bytes = number()?,
        _ => return Err(format!("there is no setting {option}")),
    }
    Ok(())
}

fn client_setting(settings: &mut ClientSettings, option: &str) -> Done<()> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    let number = value.parse::<u64>().map_err(|_| format!("{option}: not a number"))?;
    match name {
        "cache" => (settings.cache_bytes_max, settings.share_bytes_max) = (number, number / 4),
        "room" => settings.share_bytes_max = number,
        "unsent" => settings.unsent_bytes_max = number,
        "confirm-ms" => settings.confirm_delay_us = number * 1_000,
        _ => return Err(format!("there is no setting {option} of a client")),
    }
    settings.validate().map_err(|error| error.to_string())
}

impl Play {
    pub fn node(&self, name: &str) -> Done<usize> {
        let at = self.world.nodes.iter().position(|node| node.name == name);
        at.ok_or_else(|| format!("there is no node {name}"))
    }

    pub fn client(&self, name: &str) -> Done<usize> {
        let at = self.world.clients.iter().position(|client| client.name == name);
        at.ok_or_else(|| format!("there is no client {name}"))
    }

    pub fn client_id(&self, name: &str) -> Done<ClientId> {
        Ok(self.world.clients[self.client(name)?].id)
    }

    fn party(&self, name: &str) -> Done<Party> {
        self.node(name).map(Party::Node).or_else(|_| self.client(name).map(Party::Client))
    }

    fn settle(&mut self) {
        self.world.run(STEP_US);
    }

    fn act(&mut self, step: &Step, wanted: Option<&str>) -> Done<()> {
        let answer = self.carry_out(step)?;
        let wanted = match (wanted, &answer) {
            (Some(wanted), Some(_)) => wanted,
            (Some(_), None) => return Err("nothing answers this step".to_owned()),
            // An operator's act is expected to be taken, if nothing is said; the rest may go as it goes.
            (None, Some(answer)) if answer.starts_with("refused (") => "done",
            (None, _) => return Ok(()),
        };
        let answer = answer.unwrap_or_default();
        let short = answer.split(" (").next().unwrap_or_default();
        (short == wanted).then_some(()).ok_or_else(|| format!("expected {wanted}, but it is {answer}"))
    }

    fn carry_out(&mut self, step: &Step) -> Done<Option<String>> {
        match step {
            Step::Service(options) => {
                options.iter().try_for_each(|option| setting(&mut self.world.settings, option))?;
                self.world.judge.serves_local(self.world.settings.lowest);
            }
            Step::Primary(name) => {
                let at = self.world.add_node(name, true);
                self.world.start_node(at);
            }
            Step::Backup(name, in_sync) => self.add_backup(name, *in_sync)?,
            Step::Everybody(stem) => return self.everybody(stem).map(Some),
            Step::Errs(name) => {
                let at = self.node(name)?;
                self.world.nodes[at].machine.list.push("error".to_owned());
            }
            Step::Follows(name, of) => {
                let (at, of) = (self.node(name)?, self.node(of)?);
                self.world.nodes[at].follows = Some(of);
                self.world.dial();
            }
            Step::Becomes(name, of) => {
                let (at, of) = (self.node(name)?, self.node(of)?);
                self.world.kill_node(at);
                self.world.renew_node(at);
                self.world.nodes[at].follows = Some(of);
                self.world.start_node(at);
            }
            Step::Clients(kind, who, options) => self.add_clients(*kind, who, options)?,
            Step::Write { who, words, after, level, at_once } => {
                return self.write(who, words, after.as_deref(), level.as_ref(), *at_once).map(Some);
            }
            Step::Withdraw(who, word) => {
                let (at, written) = (self.client(who)?, self.world.judge.words.get(word));
                let request = written.ok_or_else(|| format!("nobody wrote {word}"))?.request;
                let core = self.world.clients[at].core.as_mut().ok_or("it is down")?;
                let done = core.withdraw(request);
                self.settle();
                return Ok(Some(if done { "withdrawn" } else { "too late" }.to_owned()));
            }
            Step::Read(who, asked) => return self.read(who, asked.as_ref()).map(Some),
            Step::Flush(who) => {
                let at = self.client(who)?;
                let token = self.world.clients[at].core.as_mut().ok_or("it is down")?.flush();
                self.settle();
                let done = self.world.clients[at].flushed.contains(&token);
                return Ok(Some(if done { "flushed" } else { "waits" }.to_owned()));
            }
            Step::Close(who) => {
                let at = self.client(who)?;
                self.world.clients[at].core.as_mut().ok_or("it is down")?.close();
                self.settle();
                return Ok(Some(self.world.clients[at].over.unwrap_or("waits").to_owned()));
            }
            Step::Wait(micros) => self.world.run(*micros),
            Step::Hold(on) => self.world.holding = *on,
            _ => return self.disturb(step),
        }
        self.settle();
        Ok(None)
    }

    /// Faults, and what operators do.
    fn disturb(&mut self, step: &Step) -> Done<Option<String>> {
        match step {
            Step::Die(who) | Step::Lose(who) => {
                let gone = matches!(step, Step::Lose(_));
                match self.party(who)? {
                    Party::Node(at) => {
                        self.world.kill_node(at);
                        self.world.nodes[at].lost |= gone;
                    }
                    Party::Client(at) => {
                        self.world.kill_client(at);
                        self.world.clients[at].lost |= gone;
                    }
                }
            }
            Step::Start(who) => match self.party(who)? {
                Party::Node(at) if !self.world.nodes[at].is_up() => self.world.start_node(at),
                Party::Client(at) if self.world.clients[at].core.is_none() => self.world.start_client(at),
                _ => return Err(format!("{who} is up")),
            },
            Step::Move(who, domain) => {
                let at = self.client(who)?;
                self.world.clients[at].move_to(domain)?;
            }
            Step::CopyCache(who) => {
                let at = self.client(who)?;
                self.world.clients[at].copy = Some(self.world.clients[at].cache.clone());
            }
            Step::StartOnCopy(who) => {
                let at = self.client(who)?;
                let client = &mut self.world.clients[at];
                client.cache = client.copy.take().ok_or("no copy was made")?;
                // What the copy does not know of was never asked for.
                let last = client.cache.last;
                client.told.retain(|request, _| *request <= last);
                self.world.start_client(at);
            }
            Step::Reconnect(who) => {
                let party = self.party(who)?;
                self.world.hang_up(party);
                self.world.dial();
            }
            Step::CutOff(who, node) => {
                let party = self.party(who)?;
                let nodes = match node {
                    Some(node) => vec![self.node(node)?],
                    None => (0..self.world.nodes.len()).collect(),
                };
                nodes.into_iter().for_each(|node| self.world.block(party, Party::Node(node)));
            }
            Step::Back(who) => {
                let party = self.party(who)?;
                self.world.blocked.retain(|(a, b)| *a != party && *b != party);
                self.world.dial();
            }
            Step::Link(back) => {
                let count = self.world.nodes.len();
                for (a, b) in (0..count).flat_map(|a| (a + 1..count).map(move |b| (Party::Node(a), Party::Node(b)))) {
                    if *back { self.world.unblock(a, b) } else { self.world.block(a, b) }
                }
                self.world.dial();
            }
            Step::Wire { what, from, to, mode } => {
                if !WORDS.contains(&what.as_str()) {
                    return Err(format!("{what}: nothing of that kind is ever sent"));
                }
                let (from, to) = (self.party(from)?, self.party(to)?);
                self.world.disturb(what, from, to, *mode);
            }
            Step::Stall(who, part, on) => self.stall(who, *part, *on)?,
            Step::DiskFails(who) => {
                let at = self.node(who)?;
                self.world.nodes[at].disk_fails = true;
            }
            _ => return self.operate(step).map(Some),
        }
        self.settle();
        Ok(None)
    }

    fn stall(&mut self, who: &str, part: Part, on: bool) -> Done<()> {
        match part {
            Part::Disk => {
                let at = self.node(who)?;
                self.world.nodes[at].disk_stalls = on;
                self.world.spin(at);
            }
            Part::Machine => {
                let at = self.node(who)?;
                self.world.nodes[at].machine_stalls = on;
                self.world.work(at);
            }
            Part::Cache => {
                let at = self.client(who)?;
                self.world.clients[at].cache_stalls = on;
                self.world.store(at);
            }
        }
        Ok(())
    }

    fn operate(&mut self, step: &Step) -> Done<String> {
        let gaps = |how: &str| if how == "skip" { GapPolicy::Skip } else { GapPolicy::Stop };
        let (who, admin) = match step {
            Step::Promote { who, force, conclude } => {
                let policy = conclude.as_ref().map_or(RecoveryPolicy::Wait, |(how, soft_us, hard_us)| {
                    RecoveryPolicy::Conclude { gaps: gaps(how), soft_us: *soft_us, hard_us: *hard_us }
                });
                self.world.judge.forced |= *force;
                (who, Admin::Promote { force: *force, policy })
            }
            Step::Resolve(who, how) => (who, Admin::Resolve(gaps(how))),
            Step::Exclude(who, client) => {
                self.world.judge.forced = true;
                (who, Admin::Exclude(self.client_id(client)?))
            }
            Step::EndSession(who, client) => {
                self.world.judge.forced = true;
                (who, Admin::EndSession(self.client_id(client)?))
            }
            Step::Stop(who) => (who, Admin::Stop),
            _ => return Err("no such step".to_owned()),
        };
        let at = self.node(who)?;
        let answer = self.world.act(at, admin);
        self.settle();
        Ok(answer)
    }

    /// Each client that is up writes a command of its own, all at once.
    fn everybody(&mut self, stem: &str) -> Done<String> {
        let who = self.world.clients.iter().filter(|client| client.core.is_some() && client.is_live());
        let who: Vec<String> = who.map(|client| client.name.clone()).collect();
        let words: Vec<String> = who.iter().map(|name| format!("{stem}-{name}")).collect();
        let holding = std::mem::replace(&mut self.world.holding, true);
        for (name, word) in who.iter().zip(&words) {
            self.write(name, std::slice::from_ref(word), None, None, false)?;
        }
        self.world.holding = holding;
        self.settle();
        Ok(self.outcomes(&words)?.unwrap_or_else(|various| various))
    }

    fn add_backup(&mut self, name: &str, in_sync: bool) -> Done<()> {
        let of = self.world.nodes.iter().position(|node| node.primary().is_some());
        let of = of.ok_or("there is no primary to follow")?;
        let at = self.world.add_node(name, false);
        self.world.nodes[at].follows = Some(of);
        self.world.start_node(at);
        self.settle();
        if self.world.nodes[at].marks.in_sync || !in_sync { Ok(()) } else { Err(format!("{name} is not in sync")) }
    }

    fn add_clients(&mut self, kind: Kind, who: &[(String, Option<String>)], options: &[String]) -> Done<()> {
        let mut settings = ClientSettings::default();
        options.iter().try_for_each(|option| client_setting(&mut settings, option))?;
        let role = match kind {
            Kind::Writer => SessionRole::Writer,
            Kind::Reader => SessionRole::Reader,
            Kind::Holder => SessionRole::Holder,
        };
        for (name, domain) in who {
            if self.party(name).is_ok() {
                return Err(format!("there are two of the name {name}"));
            }
            let number = self.world.clients.len() as u128;
            let domain = domain.as_deref().unwrap_or(name);
            self.world.add_client(Member::new(name, number, domain, role, settings.clone()));
        }
        Ok(())
    }

    fn write(
        &mut self,
        who: &str,
        words: &[String],
        after: Option<&str>,
        asked: Option<&String>,
        at_once: bool,
    ) -> Done<String> {
        let (at, level) = (self.client(who)?, level(asked)?);
        let mut names = Vec::new();
        for word in words {
            let (name, length) = word.split_once('*').unwrap_or((word, "0"));
            let length = length.parse::<usize>().map_err(|error| format!("{word}: {error}"))?;
            let mut payload = after.map_or_else(|| name.to_owned(), |after| format!("{name}?{after}")).into_bytes();
            payload.resize(length.max(payload.len()), b'.');
            if self.world.judge.words.contains_key(name) {
                return Err(format!("{name} was written before"));
            }
            let core = self.world.clients[at].core.as_mut().ok_or_else(|| format!("{who} is down"))?;
            let payload = Bytes::from(payload);
            let done = if at_once { core.try_write(payload, level) } else { core.write(payload, level) };
            match done {
                Ok(request) => self.world.judge.on_write(name, at, request),
                Err(error) => {
                    self.settle();
                    return Ok(format!("{:?}", error.code()).to_lowercase());
                }
            }
            names.push(name.to_owned());
        }
        self.settle();
        Ok(self.outcomes(&names)?.unwrap_or_else(|various| various))
    }

    /// How these commands ended: all in the same way, or each in its own.
    pub fn outcomes(&self, words: &[String]) -> Done<Result<String, String>> {
        let outcome = |word: &String| {
            let written = self.world.judge.words.get(word).ok_or_else(|| format!("nobody wrote {word}"))?;
            let told = self.world.clients[written.client].told.get(&written.request);
            Ok(match told.map(|told| told.reply.as_ref()) {
                None => "waits",
                Some(None) => "superseded",
                Some(Some(reply)) if reply.starts_with(b"refused") => "refused",
                Some(Some(_)) => "acknowledged",
            })
        };
        let outcomes = words.iter().map(outcome).collect::<Done<Vec<_>>>()?;
        let first = outcomes.first().copied().unwrap_or_default();
        if outcomes.iter().all(|outcome| *outcome == first) {
            return Ok(Ok(first.to_owned()));
        }
        let various = words.iter().zip(&outcomes).map(|(word, outcome)| format!("{word} {outcome}"));
        Ok(Err(various.collect::<Vec<_>>().join(", ")))
    }

    fn read(&mut self, who: &str, asked: Option<&String>) -> Done<String> {
        let (at, level) = (self.client(who)?, level(asked)?);
        let core = self.world.clients[at].core.as_mut().ok_or_else(|| format!("{who} is down"))?;
        let id = match core.query(Bytes::new(), level) {
            Ok(id) => id,
            Err(error) => return Ok(format!("{:?}", error.code()).to_lowercase()),
        };
        self.world.judge.on_query(&self.world.clients, at, id);
        self.settle();
        Ok(match self.world.clients[at].results.get(&id) {
            None => "waits".to_owned(),
            Some(Ok(result)) => String::from_utf8_lossy(result).into_owned(),
            Some(Err(error)) => format!("{:?}", error.code()).to_lowercase(),
        })
    }

    /// The node that serves: of the highest epoch that is open.
    pub fn sovereign(&self) -> Option<usize> {
        let open = self.world.nodes.iter().enumerate().filter_map(|(at, node)| {
            let primary = node.primary().filter(|primary| role(primary) == Role::Primary)?;
            Some((primary.epoch(), at))
        });
        open.max().map(|(_, at)| at)
    }

    /// Everything that can be mended is; then there has to be rest, and what was promised.
    fn heal(&mut self) -> Done<()> {
        let world = &mut self.world;
        world.holding = false;
        world.blocked.clear();
        let ends: Vec<(Party, Party)> = world.wires.values().map(|wire| (wire.pipes[0].to, wire.pipes[1].to)).collect();
        // A stream that lost something cannot go on as if nothing had been; it breaks.
        let lossy: Vec<Party> = world
            .wires
            .values()
            .filter(|wire| wire.pipes.iter().any(|pipe| pipe.lossy))
            .map(|wire| wire.pipes[0].to)
            .collect();
        for (a, b) in ends {
            world.disturb("what", a, b, Mode::Flowing);
            world.disturb("what", b, a, Mode::Flowing);
        }
        lossy.into_iter().for_each(|party| world.hang_up(party));
        for at in 0..world.nodes.len() {
            (world.nodes[at].disk_stalls, world.nodes[at].machine_stalls) = (false, false);
            world.nodes[at].disk_fails = false;
            world.spin(at);
            world.work(at);
        }
        for at in 0..world.clients.len() {
            world.clients[at].cache_stalls = false;
            world.store(at);
            if world.clients[at].core.is_none() && !world.clients[at].lost {
                world.start_client(at);
            }
        }
        world.dial();
        world.run(HEAL_US / 4);
        let sovereign = self.sovereign();
        for at in 0..self.world.nodes.len() {
            let node = &self.world.nodes[at];
            let wanted = sovereign.is_none() || node.follows.is_some();
            if !node.lost && !node.is_up() && wanted {
                self.world.start_node(at);
            }
        }
        self.world.run(HEAL_US);
        let Some(at) = self.sovereign() else { return Err("nobody serves".to_owned()) };
        let world = &mut self.world;
        world.judge.check_rest(&world.nodes, &world.clients, at);
        world.judge.check_log(&world.nodes, &world.clients, at);
        world.judge.check_copies(&world.nodes);
        world.judge.violation.clone().map_or(Ok(()), Err)
    }

    /// What the world looks like, for whoever has to find out.
    fn picture(&self) -> String {
        let mut text = String::new();
        for node in &self.world.nodes {
            let status = match &node.core {
                Core::Primary(primary) => {
                    let status = primary.status(self.world.now);
                    let water = primary.watermarks();
                    format!("{:?} of {}, {water:?}, {:?}", status.status.role, primary.epoch(), status.recovery)
                }
                Core::Backup(backup) => format!("backup, durable {}, in sync {}", backup.durable(), node.marks.in_sync),
                Core::Down => "down".to_owned(),
            };
            text.push_str(&format!("\n{}: {} ({status})", node.name, node.machine.text()));
        }
        for client in &self.world.clients {
            let held: Vec<_> = client.image().commands.keys().collect();
            text.push_str(&format!("\n{}: holds {held:?}, told {:?}, {:?}", client.name, client.told, client.events));
        }
        text
    }
}
