//! Paths that are seldom taken, and how often they were: seen from outside, by what nodes and clients say, write and are
//! told. Over some thousands of seeds each has to be reached, so that a fault that no longer leads there is noticed.

use std::collections::BTreeMap;

use tagalong::client::ClientEvent;
use tagalong::error::{Code, Error};
use tagalong::log::{Body, ClientId, Epoch, EpochStart, GapPolicy, Level, Lsn, Record};
use tagalong::message::{BackupMessage, ClientMessage, NodeMessage, Outcome, PrimaryMessage, ReportItem};
use tagalong::node::{Conn, NodeEvent, RecoveryPolicy};
use tagalong::share::body::Plain;
use tagalong::share::{Mode, Share};

use crate::client::{SimClient, number};
use crate::world::World;

/// Every mark there is.
pub const MARKS: [&str; 65] = [
    // Disks.
    "a failed write stopped a node",
    "a full disk stopped a node",
    "a failed write stopped a client",
    "a full disk stopped a client",
    // How recoveries end.
    "concluded by an operator",
    "concluded by the soft window",
    "concluded by the hard cap",
    "concluded without a domain, by itself",
    "concluded without a reporter that was excluded",
    "a log that ends before a gap",
    "a gap that is skipped",
    "sessions missing at a conclusion",
    "a forced promotion opens",
    "reports contradict each other",
    "entries decoded from stripes",
    "entries decoded from windows",
    "more observed than a local service kept",
    // Promotion and restart.
    "a promotion refused: not in sync",
    "a promotion goes on after a restart",
    "a takeover of a takeover that never opened",
    "a restart in the same reign",
    "a restart without a roll call",
    "a restart takes what the backup had beyond it",
    "an orderly stop that leaves its mark",
    "an orderly stop without a mark",
    "an orderly stop with clients away",
    "a primary is deposed",
    "a backup goes back to a base",
    "a provisional tail is cut at a start",
    "a log that cannot follow is set aside",
    "a backup is in sync",
    "a grant is repeated",
    "a backup is refused",
    // Sessions.
    "a session is suspended",
    "a session resumes",
    "a session is closed",
    "a session is expired",
    "an absent session comes back",
    "a session waits for the backup",
    "an attach is refused: expired",
    "an attach is refused: replaced",
    // Writes and reads.
    "the delta is full",
    "a cache is full",
    "a write is refused for want of domains",
    "a write is withdrawn",
    "a filler is sent",
    "a spent number is ordered without effect",
    "a superseded number is answered",
    "a reply is given twice",
    "a tag goes first, alone",
    "headers go in a frame of their own",
    "a query is refused",
    "an acknowledged command is given back",
    "a client is rolled back",
    // Reports.
    "a report is sent again after a break",
    "payloads are pulled",
    "shares are pulled",
    "an author reports what is only in doubt",
    // Shares.
    "a row of a stripe is placed",
    "a witness is told of places",
    "what somebody who left wrote goes to others",
    "a copy of a system entry is placed",
    "a window's share is sent",
    "too few domains to cover with",
    "enough domains again",
];

/// How often each was reached.
#[derive(Clone, Debug, Default)]
pub struct Marks(pub BTreeMap<&'static str, u64>);

impl Marks {
    pub fn reach(&mut self, mark: &'static str) {
        let count = self.0.entry(mark).or_insert_with(|| {
            assert!(MARKS.contains(&mark), "{mark:?} is not in the table");
            0
        });
        *count += 1;
    }

    pub fn reach_if(&mut self, so: bool, mark: &'static str) {
        if so {
            self.reach(mark);
        }
    }

    pub fn add(&mut self, other: &Marks) {
        other.0.iter().for_each(|(mark, count)| *self.0.entry(mark).or_default() += count);
    }

    pub fn unreached(&self) -> Vec<&'static str> {
        MARKS.into_iter().filter(|mark| !self.0.contains_key(mark)).collect()
    }

    pub fn print(&self) {
        MARKS.iter().for_each(|mark| println!("{:>12}  {mark}", self.0.get(mark).copied().unwrap_or_default()));
    }
}

impl World {
    pub fn mark_node_event(&mut self, at: usize, event: &NodeEvent) {
        let marks = &mut self.marks;
        match event {
            NodeEvent::Opened { report, epoch, start } => self.mark_opened(at, *epoch, *start, report),
            NodeEvent::ObservedBeyond { .. } => marks.reach("more observed than a local service kept"),
            NodeEvent::InSync => marks.reach("a backup is in sync"),
            NodeEvent::Refused(error) => {
                marks.reach("a backup is refused");
                marks.reach_if(error.code() == Code::LogDiverged, "a log that cannot follow is set aside");
            }
            NodeEvent::Coverage { short: true, .. } => marks.reach("too few domains to cover with"),
            NodeEvent::Coverage { short: false, .. } => marks.reach("enough domains again"),
            NodeEvent::Decoded { .. } => {
                let covered = self.plan.primary.lowest == Level::Covered;
                let mark = if covered { "entries decoded from stripes" } else { "entries decoded from windows" };
                marks.reach_if(covered || self.plan.primary.f == 0, mark);
            }
            NodeEvent::Deposed(_) => marks.reach("a primary is deposed"),
            NodeEvent::Stopped(clean) => {
                marks.reach(if *clean {
                    "an orderly stop that leaves its mark"
                } else {
                    "an orderly stop without a mark"
                });
                let away = |client: &SimClient| client.life > 0 && client.is_live() && client.core.is_none();
                marks.reach_if(self.clients.iter().any(away), "an orderly stop with clients away");
            }
            _ => {}
        }
    }

    fn mark_opened(&mut self, at: usize, epoch: Epoch, start: Lsn, report: &EpochStart) {
        let node = &self.nodes[at];
        let marks = &mut self.marks;
        let own = report.policy.is_some() && !node.resolved;
        if own && let (RecoveryPolicy::Conclude { hard_us, .. }, Some(since)) = (self.plan.policy, node.promoted_at) {
            let long = node.clock.at(self.now).0.saturating_sub(since.0);
            marks.reach(if long >= hard_us { "concluded by the hard cap" } else { "concluded by the soft window" });
        }
        marks.reach_if(report.policy.is_some() && node.resolved, "concluded by an operator");
        marks.reach_if(report.policy.is_none() && !report.missing.is_empty(), "concluded without a domain, by itself");
        marks.reach_if(!report.excluded.is_empty(), "concluded without a reporter that was excluded");
        marks.reach_if(!report.missing.is_empty(), "sessions missing at a conclusion");
        let stops = report.policy == Some(GapPolicy::Stop) && report.observed >= start;
        marks.reach_if(stops, "a log that ends before a gap");
        marks.reach_if(!report.gaps.is_empty(), "a gap that is skipped");
        marks.reach_if(epoch.generation > report.previous.generation, "a forced promotion opens");
    }

    /// A node is up: as what, and how it goes on.
    pub fn mark_start(&mut self, at: usize) {
        let node = &self.nodes[at];
        self.marks.reach_if(node.cut, "a provisional tail is cut at a start");
        let Some(primary) = node.primary().filter(|_| node.life > 1) else { return };
        let (marks, state) = (primary.marks(), primary.state());
        let begun = state.epoch() == marks.promised;
        let took_over = !node.founder && !begun && marks.promised.node == node.id;
        let (same, clean) = (node.serving.is_some(), marks.clean.is_some());
        self.marks.reach_if(took_over && state.epoch().node != node.id, "a promotion goes on after a restart");
        self.marks.reach_if(same, "a restart in the same reign");
        self.marks.reach_if(
            !same && clean && state.end() == marks.clean.unwrap_or_default(),
            "a restart without a roll call",
        );
    }

    pub fn mark_to_client(&mut self, client: Option<usize>, message: &NodeMessage) {
        let marks = &mut self.marks;
        match message {
            NodeMessage::Waiting(error) => {
                marks.reach_if(error.code() == Code::BackupUnavailable, "a session waits for the backup");
            }
            NodeMessage::Refused(error) => mark_refusal(marks, error),
            NodeMessage::Pull { requests, shares, .. } => {
                marks.reach_if(!requests.is_empty(), "payloads are pulled");
                marks.reach_if(!shares.is_empty(), "shares are pulled");
            }
            NodeMessage::Frame(frame) => {
                let empty = frame.responses.is_empty() && frame.results.is_empty() && frame.shares.is_empty();
                marks.reach_if(empty && !frame.places.is_empty(), "headers go in a frame of their own");
                for response in &frame.responses {
                    let superseded = response.outcome == Some(Outcome::Superseded);
                    marks.reach_if(superseded, "a superseded number is answered");
                    marks.reach_if(response.outcome.is_none(), "a tag goes first, alone");
                    let op = client.and_then(|at| self.oracle.views[at].ops.get(&response.request));
                    let again = op.is_some_and(|op| op.done.as_ref().is_some_and(|done| done.reply.is_some()));
                    marks.reach_if(again && !superseded, "a reply is given twice");
                }
                marks.reach_if(frame.results.iter().any(|result| result.result.is_err()), "a query is refused");
                for share in &frame.shares {
                    mark_share(marks, &self.clients, share);
                }
            }
            _ => {}
        }
    }

    pub fn mark_from_client(&mut self, at: usize, conn: u64, message: &ClientMessage) {
        match message {
            ClientMessage::Frame(frame) => {
                let op = |request| self.oracle.views[at].ops.get(&request);
                for write in frame.writes.iter().filter(|write| write.withdrawn) {
                    let filler = op(write.request).is_some_and(|op| !op.withdrawn);
                    self.marks.reach(if filler { "a filler is sent" } else { "a write is withdrawn" });
                }
            }
            ClientMessage::Report(report) => {
                let before = self.clients[at].reports.insert(report.epoch, conn);
                self.marks
                    .reach_if(before.is_some_and(|before| before != conn), "a report is sent again after a break");
                let in_doubt = report.items.iter().any(|item| matches!(item, ReportItem::InDoubt { .. }));
                self.marks.reach_if(in_doubt, "an author reports what is only in doubt");
            }
            _ => {}
        }
    }

    pub fn mark_admin(&mut self, error: &Error) {
        self.marks.reach_if(error.code() == Code::NotInSync, "a promotion refused: not in sync");
    }

    pub fn mark_between_nodes(
        &mut self,
        conn: Conn,
        to_backup: Option<&PrimaryMessage>,
        to_primary: Option<&BackupMessage>,
    ) {
        if let Some(BackupMessage::Records { records, .. }) = to_primary {
            self.marks.reach_if(!records.is_empty(), "a restart takes what the backup had beyond it");
        }
        if let Some(PrimaryMessage::Grant { epoch }) = to_backup {
            let again = self.granted.iter().any(|(of, other)| of == epoch && *other != conn);
            self.granted.insert((*epoch, conn));
            self.marks.reach_if(again, "a grant is repeated");
        }
    }

    pub fn mark_client_event(&mut self, event: &ClientEvent) {
        match event {
            ClientEvent::Superseded { .. } => self.marks.reach("an acknowledged command is given back"),
            ClientEvent::RolledBack { .. } => self.marks.reach("a client is rolled back"),
            _ => {}
        }
    }

    pub fn mark_call(&mut self, error: &Error) {
        self.marks.reach_if(error.code() == Code::Busy, "a cache is full");
        self.marks.reach_if(error.code() == Code::Uncovered, "a write is refused for want of domains");
    }

    /// A node writes to its log.
    pub fn mark_append(&mut self, at: usize, records: &[Record]) {
        let Some(primary) = self.nodes[at].primary() else { return };
        let marks = &mut self.marks;
        let full = primary.unstable().bytes() >= self.plan.primary.delta_bytes_max;
        marks.reach_if(full, "the delta is full");
        for header in records.iter().map(|record| &record.entry.header) {
            let client = header.origin.map(|origin| origin.client);
            match &header.body {
                Body::Suspend => marks.reach("a session is suspended"),
                Body::Resume(_) => {
                    marks.reach("a session resumes");
                    let named = |start: &EpochStart| client.is_some_and(|client| start.missing.contains(&client));
                    let absent = self.oracle.reigns.values().any(|reign| named(&reign.report));
                    marks.reach_if(absent, "an absent session comes back");
                }
                Body::Close => marks.reach("a session is closed"),
                Body::Expire => marks.reach("a session is expired"),
                Body::Noop if header.origin.is_some() => marks.reach("a spent number is ordered without effect"),
                Body::EpochStart(start) => {
                    let before = self.oracle.reigns.get(&start.previous);
                    let unopened = before.is_some_and(|reign| reign.opened.is_none());
                    marks.reach_if(
                        unopened && header.epoch == primary.epoch(),
                        "a takeover of a takeover that never opened",
                    );
                }
                _ => {}
            }
        }
    }
}

fn mark_refusal(marks: &mut Marks, error: &Error) {
    match error.code() {
        Code::SessionExpired => marks.reach("an attach is refused: expired"),
        Code::SessionReplaced => marks.reach("an attach is refused: replaced"),
        _ => {}
    }
}

fn mark_share(marks: &mut Marks, clients: &[SimClient], share: &Share) {
    if share.mode == Mode::Window {
        marks.reach("a window's share is sent");
        return;
    }
    let Ok(plain) = Plain::decode(share.epoch, &share.body) else { return };
    let Plain::Stripe { members, .. } = plain else {
        marks.reach("a witness is told of places");
        return;
    };
    let away = |client: ClientId| clients[number(client)].core.is_none();
    match &members[..] {
        [one] if one.header.body != Body::Command => marks.reach("a copy of a system entry is placed"),
        [one] if one.header.origin.is_some_and(|origin| away(origin.client)) => {
            marks.reach("what somebody who left wrote goes to others");
        }
        _ => marks.reach("a row of a stripe is placed"),
    }
}
