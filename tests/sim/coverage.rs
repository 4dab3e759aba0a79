//! What coverage promises, and whether it was kept: who is lost, whose loss was made good, and what those who are left
//! must be able to supply.

use std::collections::BTreeSet;

use tagalong::client::CacheImage;
use tagalong::log::{Body, ClientId, Epoch, GapPolicy, Level, Lsn, Record, Request};
use tagalong::message::{NodeFrame, Outcome};
use tagalong::share::Share;
use tagalong::share::body::Plain;

use crate::client::{SimClient, number};
use crate::node::Node;
use crate::oracle::{Oracle, ReignLog};
use crate::survivors::Survivors;

/// A client that lost what it had confirmed.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    /// The stream of its session, until the primary sees that gone.
    pub session: Option<u64>,
    /// When the primary noticed.
    pub noticed: Option<u64>,
    /// The last entry of the log when the primary noticed, as far as that has come: until then the client may own entries
    /// that were on their way, and be thought to hold shares.
    pub head: (Epoch, Lsn),
    /// The client goes on with the rest.
    pub torn: bool,
}

impl Damage {
    fn notice(&mut self, now: u64, head: (Epoch, Lsn)) {
        if self.noticed.is_none() {
            (self.noticed, self.head) = (Some(now), head);
        }
    }
}

/// One in so many acknowledgements is checked against every loss that it should survive, or fewer where clients are many.
const SAMPLE: usize = 16;
/// With more domains than this not every loss is looked at, but so many: of authors of what was acknowledged last.
const DOMAINS_MAX: usize = 16;
const LOSSES: usize = 4;

impl Oracle {
    /// What a client had confirmed is lost, or a part of it.
    pub fn on_damage(&mut self, at: usize, session: Option<u64>, torn: bool, now: u64) {
        let head = self.head();
        let noticed = session.is_none().then_some(now);
        self.views[at].torn |= torn;
        self.repaired.remove(&at);
        self.damages.insert(at, Damage { session, noticed, head, torn });
    }

    /// A node has heard that a stream is gone.
    pub fn on_noticed(&mut self, stream: u64, now: u64) {
        let head = self.head();
        for damage in self.damages.values_mut().filter(|damage| damage.session == Some(stream)) {
            damage.notice(now, head);
        }
    }

    fn head(&self) -> (Epoch, Lsn) {
        let last = self.reigns.iter().next_back();
        last.map_or((Epoch::ZERO, Lsn(0)), |(epoch, reign)| (*epoch, Lsn(reign.log.len() as u64)))
    }

    /// A session is welcomed on a cache that was opened anew.
    pub fn on_welcomed(&mut self, at: usize, now: u64) {
        let head = self.head();
        if let Some(damage) = self.damages.get_mut(&at) {
            damage.notice(now, head);
        }
    }

    /// The primary is lost. What it had noticed at some time before is repaired, if anything is.
    pub fn on_disaster(&mut self, clients: &[SimClient], before: Option<u64>) {
        self.forget_damage();
        let noticed = |damage: &Damage| damage.noticed.is_some_and(|at| before.is_some_and(|before| at <= before));
        let harmless = |at: &usize| self.damages.get(at).map_or(clients[*at].lost, noticed);
        self.repaired = (0..clients.len()).filter(harmless).collect();
    }

    fn cache<'a>(&'a self, clients: &'a [SimClient], at: usize) -> &'a CacheImage {
        self.views[at].died_image.as_ref().unwrap_or_else(|| clients[at].image())
    }

    /// Whether in a covered service some share names this place, or more are damaged than it covers. That it would do, whoever
    /// is lost, [`check_covered`](Self::check_covered) asks.
    pub fn is_named(&self, clients: &[SimClient], place: (Epoch, Lsn)) -> bool {
        if self.lowest != Level::Covered || self.covering == 0 {
            return false;
        }
        let names = |share: &Share| {
            let plain = (share.epoch == place.0).then(|| Plain::decode(share.epoch, &share.body));
            plain.is_some_and(|plain| plain.is_ok_and(|plain| plain.headers().any(|header| header.lsn == place.1)))
        };
        let damaged = self.domains_of(self.damages.keys().copied());
        damaged.len() > usize::from(self.covering)
            || (0..clients.len()).any(|at| self.cache(clients, at).shares.values().any(names))
    }

    /// How many failure domains the reign's clients may lose, beside the primary's.
    pub fn domains_of(&self, lost: impl Iterator<Item = usize>) -> BTreeSet<&str> {
        lost.map(|at| self.views[at].domain.as_str()).collect()
    }

    /// The domains whose clients are lost, or have lost something, as far as nobody has made up for that.
    fn lost_domains(&self, report: &ReignLog) -> BTreeSet<&str> {
        let report = &report.report;
        let absent = report.missing.iter().chain(&report.excluded).map(|client| number(*client));
        let torn =
            self.damages.iter().filter(|(_, damage)| damage.torn && damage.head > (report.previous, report.base));
        let lost = absent.chain(torn.map(|(at, _)| *at)).filter(|at| !self.repaired.contains(at));
        self.domains_of(lost)
    }

    /// I2, sampled: what is acknowledged as covered would survive the loss of the primary's site together with any *f*
    /// domains, those that are damaged already among them.
    pub fn check_covered(&mut self, nodes: &[Node], clients: &[SimClient], frame: &NodeFrame) {
        let f = usize::from(self.covering);
        if f == 0 || self.lowest != Level::Covered {
            return;
        }
        let replied = frame.responses.iter().filter(|response| matches!(response.outcome, Some(Outcome::Reply(_))));
        let replied = replied.filter_map(|response| response.tag);
        let shown = frame.results.iter().filter(|result| result.result.is_ok());
        let Some(upto) = replied.map(|tag| tag.lsn).chain(shown.map(|result| result.lsn)).max() else { return };
        self.sampled += 1;
        self.forget_damage();
        let Some(reign) = self.reigns.get(&frame.epoch) else { return };
        // Somebody decided to go on without those who are missing (seed 345169): they may still be answered by the old
        // primary, while nobody else holds for them any more.
        let decided = |(of, later): (&Epoch, &ReignLog)| *of > frame.epoch && later.report.policy.is_some();
        if self.reigns.iter().any(decided) {
            return;
        }
        let base = self.stable_of(nodes, frame.epoch);
        if !self.sampled.is_multiple_of(SAMPLE.max(clients.len() / 2) as u64) || upto <= base {
            return;
        }
        let near = nodes[reign.node].domain.as_str();
        let mut damaged = self.domains_of(self.damages.keys().copied());
        damaged.remove(near);
        let others = self.domains_of((0..clients.len()).filter(|at| clients[*at].life > 0 && clients[*at].is_live()));
        let others: Vec<&str> =
            others.into_iter().filter(|domain| *domain != near && !damaged.contains(domain)).collect();
        let Some(more) = f.checked_sub(damaged.len()) else { return };
        let mut wrong = None;
        let losses = if others.len() <= DOMAINS_MAX {
            subsets(&others, more)
        } else {
            let records = reign.log.iter().take(usize::try_from(upto.0).expect("small")).rev();
            let authors = records.filter_map(|record| record.entry.header.origin);
            let authors = authors.map(|origin| self.views[number(origin.client)].domain.as_str());
            runs(authors.filter(|domain| others.contains(domain)), more)
        };
        for gone in losses {
            let gone: BTreeSet<&str> = gone.into_iter().chain(damaged.iter().copied()).chain([near]).collect();
            let left = (0..clients.len())
                .filter(|at| !gone.contains(self.views[*at].domain.as_str()) && clients[*at].is_live());
            let caches = left.map(|at| (clients[at].id, clients[at].image()));
            let survivors = Survivors::new(frame.epoch, reign, base, caches);
            let lost = (base.0 + 1..=upto.0).map(Lsn).find(|lsn| !survivors.supplies(*lsn, true));
            if let Some(lsn) = lost {
                let header =
                    reign.log.get(usize::try_from(lsn.0).expect("small") - 1).map(|record| &record.entry.header);
                wrong = Some(format!(
                    "{upto} is shown as covered, but without {gone:?} nobody can supply {lsn}: {header:?}"
                ));
                break;
            }
        }
        if let Some(wrong) = wrong {
            self.violate("I2", wrong);
        }
    }

    /// I5, I10, at a conclusion: whatever those who reported can supply was rebuilt, and nothing is missing that was
    /// acknowledged as surviving such a loss.
    pub fn check_recovered(&mut self, nodes: &[Node], clients: &[SimClient], at: usize, epoch: Epoch) {
        let Some(reign) = self.reigns.get(&epoch) else { return };
        let report = &reign.report;
        let Some(old) = self.reigns.get(&report.previous) else { return };
        if !matches!(self.lowest, Level::Tagged | Level::Covered) {
            return;
        }
        let f = usize::from(old.report.f);
        let silent = report.policy.is_none();
        let in_sync = old.node == at || nodes[at].disk.marks.as_ref().is_some_and(|marks| marks.in_sync);
        let missing = self.domains_of(report.missing.iter().map(|client| number(*client)));
        if silent && (missing.len() > f || (!in_sync && !missing.is_empty())) {
            let what =
                format!("{epoch} concluded without {missing:?}, f {f}, in sync {in_sync}, and nobody decided that");
            self.violate("I10", what);
            return;
        }
        let alone = silent && !missing.is_empty();
        if self.forced {
            return;
        }
        let waited = self.waits;
        // Who shares the primary's fate protects nothing, and costs nothing where something is covered.
        let mut lost = self.lost_domains(reign);
        let anybody = !lost.is_empty();
        lost.remove(nodes[old.node].domain.as_str());
        let absent = |client: &ClientId| report.missing.contains(client) || report.excluded.contains(client);
        let base = usize::try_from(report.base.0).expect("small");
        let heard: Vec<ClientId> = roster(&reign.log[..base]).into_iter().filter(|client| !absent(client)).collect();
        let caches = heard.iter().map(|client| (*client, self.cache(clients, number(*client))));
        let unsure = caches.clone().any(|(_, image)| image.reported > epoch);
        let survivors = Survivors::new(report.previous, old, report.base, caches);
        let everyone = report.missing.is_empty() && report.excluded.is_empty();
        let mut walk = survivors.walk(false);
        if !everyone || !walk.gaps.is_empty() {
            walk = survivors.walk(true);
        }
        let last = reign.start.prev();
        let mut wrong = None;
        // An operator waits for whatever was announced; a policy may not.
        if !unsure && waited && in_sync {
            let end = match report.policy {
                None => Some(walk.last),
                Some(GapPolicy::Stop) => Some(walk.gaps.first().map_or(walk.last, |gap| gap.prev())),
                _ => None,
            };
            if end.is_some_and(|end| end > last) || (silent && !walk.gaps.is_empty()) {
                wrong = Some((
                    "I5",
                    format!("{heard:?} can supply {walk:?}; {epoch} was rebuilt up to {last}: {report:?}"),
                ));
            }
        }
        for (number, view) in self.views.iter().enumerate() {
            for (request, op) in &view.ops {
                let done = op.done.as_ref().filter(|done| done.reply.is_some()).and_then(|done| done.at);
                let Some((of, lsn)) = done.filter(|(of, lsn)| *of == report.previous && *lsn > report.base) else {
                    continue;
                };
                let survives = match self.effective(op.level) {
                    Level::Covered | Level::Stable => lost.len() <= usize::from(self.covering),
                    Level::Tagged => !anybody,
                    _ => false,
                };
                let kept = is_there(&reign.log, number, *request, of, lsn) && lsn < reign.start;
                if survives && in_sync && waited && !kept && wrong.is_none() {
                    let whose = format!("client {number}: request {request}, acknowledged at {lsn} of {of}");
                    wrong = Some(if (report.base.0 + 1..=lsn.0).all(|lsn| survivors.supplies(Lsn(lsn), true)) {
                        (
                            "I5",
                            format!("{whose}, is not in the log of {epoch}, though it could be supplied: {report:?}"),
                        )
                    } else {
                        let first = (report.base.0 + 1..=lsn.0).find(|lsn| !survivors.supplies(Lsn(*lsn), true));
                        ("I10", format!("{whose}, is lost with {lost:?} alone: nobody supplies {first:?}: {report:?}"))
                    });
                }
            }
        }
        let beyond = silent && lost.len() > f;
        if let Some(reign) = self.reigns.get_mut(&epoch).filter(|_| beyond) {
            reign.beyond = true;
        }
        self.alone += u64::from(alone);
        if let Some((invariant, wrong)) = wrong.filter(|_| !beyond) {
            self.violate(invariant, wrong);
        }
    }

    /// Whether the recovery of the reign that the node's log ends in has to conclude by itself: at most *f* domains of the
    /// roster cannot come back.
    pub fn concludes_alone(&self, node: &Node, clients: &[SimClient]) -> bool {
        let log = &node.disk.log;
        let in_sync = node.disk.marks.as_ref().is_some_and(|marks| marks.in_sync);
        let f = log.iter().rev().find_map(|record| match &record.entry.header.body {
            Body::EpochStart(start) if in_sync || record.entry.header.epoch.node == node.id => {
                Some(usize::from(start.f))
            }
            Body::EpochStart(_) => Some(0),
            _ => None,
        });
        let roster = roster(log);
        let torn = |at: &usize| self.damages.get(at).is_some_and(|damage| damage.torn);
        let gone = roster
            .iter()
            .map(|client| number(*client))
            .filter(|at| !clients[*at].is_live() || torn(at) || self.excluded.contains(&clients[*at].id));
        !self.forced && f.is_some_and(|f| f > 0 && self.domains_of(gone).len() <= f)
    }

    /// Damage that concerns nothing but what is stable by now is none.
    pub fn forget_damage(&mut self) {
        let reigns = &self.reigns;
        let opened = reigns.iter().rev().find(|(_, reign)| reign.opened.is_some()).map(|(epoch, _)| *epoch);
        self.damages.retain(|_, damage| {
            let (epoch, head) = damage.head;
            let open = damage.noticed.is_none() || reigns.get(&epoch).is_none_or(|reign| reign.told < head);
            open && opened.is_none_or(|opened| opened <= epoch)
        });
    }
}

/// Every choice of so many, or of all.
fn subsets<'a>(of: &[&'a str], many: usize) -> Vec<Vec<&'a str>> {
    let masks = (0u32..1 << of.len()).filter(|mask| mask.count_ones() as usize == many.min(of.len()));
    masks.map(|mask| (0..of.len()).filter(|n| mask & (1 << n) != 0).map(|n| of[n]).collect()).collect()
}

/// The first so many that differ; then from the second on, and so forth.
fn runs<'a>(of: impl Iterator<Item = &'a str>, many: usize) -> Vec<Vec<&'a str>> {
    let mut distinct: Vec<&str> = Vec::new();
    for domain in of {
        if distinct.len() == many + LOSSES {
            break;
        }
        if !distinct.contains(&domain) {
            distinct.push(domain);
        }
    }
    distinct.windows(many.max(1)).take(LOSSES).map(|run| run[..many].to_vec()).collect()
}

/// Who is on the roster at the end of a log.
pub fn roster(log: &[Record]) -> BTreeSet<ClientId> {
    let mut roster = BTreeSet::new();
    for header in log.iter().map(|record| &record.entry.header) {
        let origin = header.origin.map(|origin| origin.client);
        match &header.body {
            Body::Open(_) | Body::Resume(_) => roster.extend(origin),
            Body::Suspend | Body::Close | Body::Expire => {
                roster.retain(|client| Some(*client) != origin);
            }
            Body::EpochStart(start) => {
                roster.retain(|client| !start.missing.contains(client) && !start.excluded.contains(client))
            }
            _ => {}
        }
    }
    roster
}

fn is_there(log: &[Record], client: usize, request: Request, epoch: Epoch, lsn: Lsn) -> bool {
    let header =
        usize::try_from(lsn.0).ok().and_then(|at| log.get(at.checked_sub(1)?)).map(|record| &record.entry.header);
    let origin = Some((ClientId(100 + client as u128), request));
    header.is_some_and(|header| header.epoch == epoch && header.origin.map(|o| (o.client, o.request)) == origin)
}
