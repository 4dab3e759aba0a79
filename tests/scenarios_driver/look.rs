//! What a transcript can look at. Everything is compared as text, so that a transcript can show what it was instead.

use tagalong::client::ClientEvent;
use tagalong::log::{ClientId, Epoch, EpochStart, GapPolicy, Level};
use tagalong::message::{RecoveryStatus, Role};
use tagalong::node::NodeEvent;
use tagalong::primary::Primary;

use crate::client::Told;
use crate::judge::role;
use crate::language::Ask;
use crate::node::Core;
use crate::play::Play;

type Done<T> = Result<T, String>;

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn joined(mut words: Vec<String>, nothing: &str) -> String {
    words.sort();
    if words.is_empty() { nothing.to_owned() } else { words.join(" ") }
}

impl Play {
    pub fn look(&self, ask: &Ask) -> Done<String> {
        match ask {
            Ask::Lists(names) => {
                let texts = names.iter().map(|name| Ok(self.world.nodes[self.node(name)?].machine.text()));
                let texts = texts.collect::<Done<Vec<_>>>()?;
                let first = texts.first().cloned().unwrap_or_default();
                Ok(if texts.iter().all(|text| *text == first) { first } else { format!("{texts:?}") })
            }
            Ask::Outcome(words) => Ok(self.outcomes(words)?.unwrap_or_else(|various| various)),
            Ask::OnDisk(words, node) => self.on_disk(words, node),
            Ask::Rebuilt(word, node) => {
                let at = self.node(node)?;
                let written = self.world.judge.words.get(word).ok_or_else(|| format!("nobody wrote {word}"))?;
                let client = self.world.clients[written.client].id;
                let is_it =
                    |origin: tagalong::log::Origin| origin.client == client && origin.request == written.request;
                let mut log = self.world.nodes[at].log.iter().map(|record| &record.entry.header);
                let header = log.find(|header| header.origin.is_some_and(is_it));
                Ok(header.map_or("nowhere".to_owned(), |header| yes(header.epoch.node != self.world.nodes[at].id)))
            }
            Ask::Met(word) => Ok(match self.tag_of(word)?.tag.map(|tag| tag.met) {
                Some(Level::Local) => "local".to_owned(),
                Some(Level::Tagged) => "tagged".to_owned(),
                Some(Level::Covered) => "covered".to_owned(),
                Some(Level::Stable) => "stable".to_owned(),
                other => format!("{other:?}"),
            }),
            Ask::Protected(word) => Ok(yes(self.tag_of(word)?.tag.is_some_and(|tag| tag.protected))),
            Ask::Holds(_) | Ask::Shares(_) | Ask::Attached(_) | Ask::ToldLost(_) | Ask::RolledBack(_) => {
                self.look_at_client(ask)
            }
            Ask::Waiting(_) | Ask::Over(_) | Ask::AnyLoss => self.look_at_client(ask),
            _ => self.look_at_node(ask),
        }
    }

    fn tag_of(&self, word: &str) -> Done<&Told> {
        let written = self.world.judge.words.get(word).ok_or_else(|| format!("nobody wrote {word}"))?;
        let told = self.world.clients[written.client].told.get(&written.request);
        told.ok_or_else(|| format!("{word} has no outcome"))
    }

    fn on_disk(&self, words: &[String], node: &str) -> Done<String> {
        let node = &self.world.nodes[self.node(node)?];
        let mut there = Vec::new();
        for word in words {
            let written = self.world.judge.words.get(word).ok_or_else(|| format!("nobody wrote {word}"))?;
            let client = self.world.clients[written.client].id;
            let is_it = |origin: tagalong::log::Origin| origin.client == client && origin.request == written.request;
            let durable = &node.log[..node.synced];
            there.push(durable.iter().any(|record| record.entry.header.origin.is_some_and(is_it)));
        }
        Ok(match () {
            () if there.iter().all(|there| *there) => "all".to_owned(),
            () if there.iter().all(|there| !*there) => "none".to_owned(),
            () => format!("{there:?}"),
        })
    }

    fn primary(&self, name: &str) -> Done<&Primary> {
        let node = &self.world.nodes[self.node(name)?];
        node.primary().ok_or_else(|| format!("{name} is not a primary"))
    }

    fn recovery(&self, name: &str) -> Done<RecoveryStatus> {
        let recovery = self.primary(name)?.status(self.world.now).recovery;
        recovery.ok_or_else(|| format!("{name} is not recovering"))
    }

    fn report(&self, name: &str) -> Done<EpochStart> {
        let opened = self.world.nodes[self.node(name)?].events.iter().rev().find_map(|event| match event {
            NodeEvent::Opened { report, .. } => Some((**report).clone()),
            _ => None,
        });
        opened.ok_or_else(|| format!("{name} did not open"))
    }

    fn names(&self, clients: &[ClientId]) -> String {
        let name = |id: &ClientId| {
            let client = self.world.clients.iter().find(|client| client.id == *id);
            client.map_or_else(|| id.to_string(), |client| client.name.clone())
        };
        joined(clients.iter().map(name).collect(), "nobody")
    }

    fn saw(&self, name: &str, what: impl Fn(&NodeEvent) -> bool) -> Done<String> {
        Ok(yes(self.world.nodes[self.node(name)?].events.iter().any(what)))
    }

    fn look_at_node(&self, ask: &Ask) -> Done<String> {
        let lost = |ranges: &[std::ops::Range<tagalong::log::Lsn>]| {
            ranges.iter().map(|range| range.end.0 - range.start.0).sum::<u64>().to_string()
        };
        Ok(match ask {
            Ask::Role(name) => match &self.world.nodes[self.node(name)?].core {
                Core::Down => "down",
                Core::Backup(_) => "backup",
                Core::Primary(primary) => match role(primary) {
                    Role::Primary => "open",
                    Role::Recovering => "recovering",
                    Role::Deposed => "deposed",
                    _ => "stopped",
                },
            }
            .to_owned(),
            Ask::InSync(name) => yes(self.world.nodes[self.node(name)?].marks.in_sync),
            Ask::Short(name) => yes(self.primary(name)?.status(self.world.now).short),
            Ask::Awaits(name) => self.names(&self.recovery(name)?.awaited),
            Ask::Lacks(name) => lost(&self.recovery(name)?.missing),
            Ask::Accuses(name) => self.names(&self.recovery(name)?.accused),
            Ask::Missing(name) => self.names(&self.report(name)?.missing),
            Ask::Excluded(name) => self.names(&self.report(name)?.excluded),
            Ask::GaveUp(name) => lost(&self.report(name)?.gaps),
            Ask::Concluded(name) => match self.report(name)?.policy {
                None => "itself",
                Some(GapPolicy::Stop) => "stop",
                Some(_) => "skip",
            }
            .to_owned(),
            Ask::Decoded(name) => {
                let decoded = self.world.nodes[self.node(name)?].events.iter().rev().find_map(|event| match event {
                    NodeEvent::Decoded { entries, .. } => Some(*entries),
                    _ => None,
                });
                decoded.unwrap_or(0).to_string()
            }
            Ask::Delta(name) => self.primary(name)?.unstable().len().to_string(),
            Ask::Standing(name, client) => {
                let id = self.client_id(client)?;
                let state = match &self.world.nodes[self.node(name)?].core {
                    Core::Primary(primary) => primary.state(),
                    Core::Backup(backup) => backup.state(),
                    Core::Down => return Err(format!("{name} is down")),
                };
                state.session(id).map_or("unknown", |session| session.standing.name()).to_owned()
            }
            Ask::SawDivergence(name) => self.saw(name, |event| matches!(event, NodeEvent::Diverged(_)))?,
            Ask::StoppedClean(name) => self.saw(name, |event| matches!(event, NodeEvent::Stopped(true)))?,
            Ask::SawBeyond(name) => {
                let beyond = self.world.nodes[self.node(name)?].events.iter().filter_map(|event| match event {
                    NodeEvent::ObservedBeyond { client, .. } => Some(*client),
                    _ => None,
                });
                self.names(&beyond.collect::<Vec<_>>())
            }
            _ => return Err("nothing of that kind can be seen at a node".to_owned()),
        })
    }

    fn look_at_client(&self, ask: &Ask) -> Done<String> {
        let word = |at: usize, request| {
            let found = self.world.judge.words.iter().find(|(_, it)| it.client == at && it.request == request);
            found.map_or_else(|| format!("request-{request}"), |(word, _)| word.clone())
        };
        Ok(match ask {
            Ask::Holds(name) => {
                let at = self.client(name)?;
                let held = self.world.clients[at].image().commands.keys().map(|request| word(at, *request));
                let held: Vec<String> = held.collect();
                if held.is_empty() { "nothing".to_owned() } else { held.join(" ") }
            }
            Ask::Shares(name) => yes(!self.world.clients[self.client(name)?].image().shares.is_empty()),
            Ask::Attached(name) => {
                let core = self.world.clients[self.client(name)?].core.as_ref();
                let epoch = core.and_then(|core| core.attached()).unwrap_or(Epoch::ZERO);
                let of = |node: &&crate::node::Node| node.primary().is_some_and(|primary| primary.epoch() == epoch);
                let node = self.world.nodes.iter().find(of);
                node.map_or("nowhere", |node| &node.name).to_owned()
            }
            Ask::ToldLost(name) => {
                let at = self.client(name)?;
                let lost = self.world.clients[at].lost_requests();
                let lost: Vec<String> = lost.into_iter().map(|request| word(at, request)).collect();
                if lost.is_empty() { "nothing".to_owned() } else { lost.join(" ") }
            }
            Ask::RolledBack(name) => yes(self.world.clients[self.client(name)?].was_rolled_back()),
            Ask::Waiting(name) => {
                let waits = |event: &ClientEvent| matches!(event, ClientEvent::Waiting(why) if why.code() == tagalong::Code::BackupUnavailable);
                yes(self.world.clients[self.client(name)?].events.iter().any(waits))
            }
            Ask::Over(name) => self.world.clients[self.client(name)?].over.unwrap_or("going on").to_owned(),
            Ask::AnyLoss => {
                let told = self.world.clients.iter();
                let told = told.filter(|client| !client.lost_requests().is_empty() || client.was_rolled_back());
                joined(told.map(|client| client.name.clone()).collect(), "nobody")
            }
            _ => return Err("nothing of that kind can be seen at a client".to_owned()),
        })
    }
}
