//! The replication stream, what is stable, and the grant that makes a backup the stability target.
//!
//! A fresh backup first streams the log like any other. Once everything was sent, a `Config` names it the target;
//! when that is on the own disk, `stable` stands still until the backup has caught up with it, and the **grant** is
//! sent. From sending it on, only this backup's acknowledgements count, and no timeout undoes that.

use std::collections::VecDeque;

use super::order::Proposal;
use super::reign::READ_BYTES;
use super::{Phase, Primary};
use crate::error::{Code, Error};
use crate::log::{Body, Epoch, Lsn, Record, Records, Target, Time};
use crate::message::{BackupMessage, PeerHello, PrimaryMessage, VERSION};
use crate::node::{Conn, NodeEvent, Output};
use crate::rule::{self, Rule};

/// The backup at the other end of the replication stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Follower {
    pub(super) conn: Conn,
    pub(super) endpoint: String,
    node: crate::log::NodeId,
    /// The log is being streamed to it.
    streaming: bool,
    /// The last LSN sent.
    sent: Lsn,
    /// The last LSN it acknowledged.
    pub(super) durable: Lsn,
    /// Sent and not acknowledged: LSN and cost.
    under_way: VecDeque<(Lsn, u64)>,
    under_way_bytes: u64,
    /// A read of the log for it is under way.
    reading: bool,
    /// What that read has behind this was cut meanwhile.
    reading_upto: Option<Lsn>,
    /// It holds the in-sync mark.
    pub(super) in_sync: bool,
    /// The grant was sent on this stream.
    granted: bool,
    /// The first LSN of the last fetch.
    pub(super) asked: Lsn,
    echo: u64,
    echo_sent: u64,
    echo_seen: u64,
    stable_sent: Lsn,
}

impl Follower {
    /// The log was cut after `last`: a read that is under way may bring what is gone.
    pub(super) fn distrust(&mut self, last: Lsn) {
        self.reading_upto = self.reading.then_some(last);
    }
}

impl Primary {
    pub(super) fn on_backup(&mut self, now: Time, conn: Conn, message: BackupMessage, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Deposed | Phase::Stopped) {
            let why = self.failure.clone().unwrap_or_else(|| Error::new(Code::Closed, "the primary was stopped"));
            out.push(Output::ToBackup(conn, PrimaryMessage::Refused(why)));
            out.push(Output::Close(conn));
            return;
        }
        if let BackupMessage::Hello(hello) = message {
            if let Err(error) = self.on_peer_hello(now, conn, hello, out) {
                out.push(Output::ToBackup(conn, PrimaryMessage::Refused(error)));
                out.push(Output::Close(conn));
            }
            return;
        }
        let Some(follower) = self.follower.as_mut().filter(|follower| follower.conn == conn) else {
            out.push(Output::Close(conn));
            return;
        };
        match message {
            BackupMessage::Hello(_) => {}
            BackupMessage::Promised { epoch, end, last } => {
                // Out of place it says nothing: what a backup has is what it acknowledges.
                if matches!(self.phase, Phase::Promising { epoch: asked } if asked == epoch) {
                    follower.durable = end;
                    follower.sent = end;
                    self.on_promised(now, epoch, end, last, out);
                }
            }
            BackupMessage::Records { epoch, records } => self.on_records(now, epoch, records, out),
            BackupMessage::Ack { epoch, durable, echo, in_sync } => {
                if epoch != self.epoch || durable > follower.sent || echo > follower.echo {
                    let why =
                        format!("an acknowledgement of {durable} (echo {echo}) in epoch {epoch}, which was never sent");
                    self.refuse_follower(Error::new(Code::Protocol, why), out);
                    return;
                }
                self.on_ack(now, durable, echo, in_sync, out);
            }
            BackupMessage::Failed(error) => {
                self.failure = Some(error);
                out.push(Output::Close(conn));
                self.follower = None;
            }
        }
    }

    pub(super) fn refuse_follower(&mut self, error: Error, out: &mut Vec<Output>) {
        if let Some(follower) = self.follower.take() {
            out.push(Output::ToBackup(follower.conn, PrimaryMessage::Refused(error)));
            out.push(Output::Close(follower.conn));
        }
    }

    fn on_peer_hello(&mut self, now: Time, conn: Conn, hello: PeerHello, out: &mut Vec<Output>) -> Result<(), Error> {
        let cluster = hello.cluster.is_none_or(|theirs| theirs == self.marks.cluster);
        let group = hello.group.is_none_or(|theirs| theirs == self.marks.group);
        if hello.version != VERSION {
            let why = format!("this primary speaks version {VERSION}, the backup {}", hello.version);
            return Err(Error::new(Code::WrongVersion, why));
        }
        if !cluster || !group {
            let why = format!("this primary serves group {} of cluster {}", self.marks.group, self.marks.cluster);
            return Err(Error::new(Code::WrongCluster, why));
        }
        if hello.node == self.marks.node {
            return Err(Error::new(Code::InvalidArgument, "the backup runs on a copy of the primary's own log"));
        }
        let promising = matches!(self.phase, Phase::Promising { .. } | Phase::Fetching { .. });
        if !promising && hello.promised > self.epoch.max(self.marks.promised) {
            if hello.promised.node == self.marks.node && self.state.target() == Target::Backup(hello.node) {
                // It promised that to an earlier process here, which then died: the next one must not go on in this reign.
                self.marks.promised = hello.promised;
                self.save_marks(out);
            }
            self.depose(hello.promised, out);
            return Err(Error::new(Code::Deposed, "this primary was of an older epoch"));
        }
        // Until it opens, a reign has the target it is to begin with, whatever the log names for the one before.
        let target =
            if matches!(self.phase, Phase::Open | Phase::Stopping) { self.state.target() } else { self.target() };
        let target = match target {
            Target::Backup(node) if node != self.marks.node => Some(node),
            _ => None,
        };
        if target.is_some_and(|target| target != hello.node) {
            return Err(Error::new(Code::InvalidArgument, "another backup is this primary's stability target"));
        }
        if !promising {
            let ours = matches!(self.phase, Phase::Open | Phase::Stopping) || target.is_some();
            if !ours {
                return Err(Error::new(Code::Recovering, "the primary is recovering; follow it when it is open"));
            }
            if hello.end > self.water.head() || !self.has_prefix(hello.end, hello.last) {
                let why = format!(
                    "the log ends at {} in reign {}, which is not in the primary's: set it aside, and begin with an empty one",
                    hello.end, hello.last
                );
                return Err(Error::new(Code::LogDiverged, why));
            }
        }
        if let Some(old) = self.follower.take() {
            out.push(Output::Close(old.conn));
        }
        self.follower = Some(Follower {
            conn,
            endpoint: hello.endpoint,
            node: hello.node,
            streaming: !promising,
            sent: hello.end,
            durable: hello.end,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            reading: false,
            reading_upto: None,
            // A mark of an older reign, with another target, says nothing about this one.
            in_sync: hello.in_sync && target == Some(hello.node),
            granted: false,
            asked: Lsn(0),
            echo: 0,
            echo_sent: 0,
            echo_seen: 0,
            stable_sent: Lsn(0),
        });
        let welcome = PrimaryMessage::Welcome {
            version: VERSION,
            cluster: self.marks.cluster,
            group: self.marks.group,
            node: self.marks.node,
            endpoint: self.settings.endpoint.clone(),
        };
        out.push(Output::ToBackup(conn, welcome));
        if promising {
            self.ask_for_promise(hello.promised, out);
        } else {
            self.announce(out);
            self.renew_echoes();
            self.pump(out);
            self.try_open(now, out);
            self.advance_stable(now, out);
        }
        Ok(())
    }

    /// Another backup took the place of the one that was about to be named: its acknowledgements will not count.
    pub(super) fn dismiss_other(&mut self, target: Target, out: &mut Vec<Output>) {
        if self.follower.as_ref().is_some_and(|follower| Target::Backup(follower.node) != target) {
            let why = "another backup is this primary's stability target";
            self.refuse_follower(Error::new(Code::InvalidArgument, why), out);
        }
    }

    /// Whether a log that ends at `end`, in the reign `last`, can be a prefix of this one. It may reach past the base of
    /// the reign after `last` (what that rebuilt is the same there), but not past a gap.
    pub(super) fn has_prefix(&self, end: Lsn, last: Epoch) -> bool {
        let after = self.state.reigns_from(last).iter().find(|reign| reign.epoch > last);
        let gap = after.is_some_and(|reign| reign.gaps.iter().any(|gap| gap.start <= end));
        last == self.state.epoch_at(end) && !gap
    }

    /// An empty frame of the reign, so that the backup marks it (and a read's echo may ride on it).
    fn announce(&mut self, out: &mut Vec<Output>) {
        let (epoch, base, stable) = (self.epoch, self.base, self.water.stable());
        let Some(follower) = &mut self.follower else {
            return;
        };
        follower.echo_sent = follower.echo;
        follower.stable_sent = stable;
        let append = PrimaryMessage::Append { epoch, base, stable, echo: follower.echo, records: Records::default() };
        out.push(Output::ToBackup(follower.conn, append));
    }

    fn on_ack(&mut self, now: Time, durable: Lsn, echo: u64, in_sync: bool, out: &mut Vec<Output>) {
        let Some(follower) = &mut self.follower else {
            return;
        };
        follower.durable = follower.durable.max(durable);
        follower.echo_seen = follower.echo_seen.max(echo);
        let granted = in_sync && follower.granted && !follower.in_sync;
        follower.in_sync |= granted;
        while follower.under_way.front().is_some_and(|(lsn, _)| *lsn <= durable) {
            follower.under_way_bytes -= follower.under_way.pop_front().map_or(0, |(_, cost)| cost);
        }
        if granted {
            out.push(Output::Event(NodeEvent::InSync));
        }
        self.try_open(now, out);
        self.advance_stable(now, out);
        self.release_reads();
        self.pump(out);
    }

    /// Sends the backup what it lacks, as far as the window allows.
    pub(super) fn pump(&mut self, out: &mut Vec<Output>) {
        let serving =
            matches!(self.phase, Phase::Open | Phase::Stopping | Phase::Recovering(_) | Phase::Concluding { .. });
        if !serving {
            return;
        }
        let limit = if self.logs_first() { self.water.logged() } else { self.water.head() };
        let (epoch, base, stable) = (self.epoch, self.base, self.water.stable());
        let first = self.unstable.first();
        let Some(follower) = &mut self.follower else {
            return;
        };
        follower.streaming = true;
        while follower.sent < limit
            && follower.under_way_bytes < self.settings.replication_window_bytes
            && !follower.reading
        {
            let from = follower.sent.next();
            if from < first {
                follower.reading = true;
                out.push(Output::Read { conn: follower.conn, from, bytes_max: READ_BYTES });
                break;
            }
            let room = self.settings.replication_window_bytes - follower.under_way_bytes;
            let count = usize::try_from(limit.0 - follower.sent.0).unwrap_or(usize::MAX);
            let records = self.unstable.read(from, READ_BYTES.min(room), count);
            follower.send(epoch, base, stable, records, out);
        }
        if follower.echo > follower.echo_sent {
            self.announce(out);
        }
    }

    pub(super) fn on_read_for_follower(&mut self, conn: Conn, mut records: Vec<Record>, out: &mut Vec<Output>) {
        let limit = if self.logs_first() { self.water.logged() } else { self.water.head() };
        let (epoch, base, stable) = (self.epoch, self.base, self.water.stable());
        let Some(follower) = self.follower.as_mut().filter(|follower| follower.conn == conn) else {
            return;
        };
        follower.reading = false;
        let limit = follower.reading_upto.take().map_or(limit, |upto| limit.min(upto));
        records.retain(|record| record.lsn() <= limit);
        if records.first().is_some_and(|record| record.lsn() == follower.sent.next()) {
            follower.send(epoch, base, stable, records.into(), out);
        }
        self.pump(out);
    }

    /// Moves `stable` to where the stability target is, and does what waited for it.
    pub(super) fn advance_stable(&mut self, now: Time, out: &mut Vec<Output>) {
        let counted = self.counts_backup;
        self.move_stable(now, out);
        if self.counts_backup && !counted {
            // Sessions may have waited for just that, whatever becomes of the grant.
            self.admit_waiting(now, out);
        }
    }

    fn move_stable(&mut self, now: Time, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::Open | Phase::Stopping) {
            return;
        }
        self.try_attach(out);
        let follower = self.follower.as_ref();
        let own = !self.counts_backup && !self.is_attaching();
        let upto = match follower.filter(|follower| self.counts_backup && follower.in_sync) {
            Some(follower) => follower.durable.min(self.water.head()),
            None if own || !rule::on(Rule::GrantCounts) => self.water.logged(),
            None => self.water.stable(),
        };
        if !self.water.stabilize(upto) {
            self.check_stopped(out);
            return;
        }
        self.unstable.release(self.water.stable());
        if let Some(sharing) = &mut self.sharing {
            sharing.stabilize(self.water.stable());
        }
        self.close_drained();
        self.checkpoint_due.get_or_insert(now.after(self.settings.checkpoint_every_us));
        self.release_waiting();
        self.tell_closed(now, out);
        self.admit_waiting(now, out);
        if !self.ending.is_empty() {
            self.keep_house(now, out);
        }
        self.try_attach(out);
        if self.logs_first() {
            self.note_stable(out);
        }
        self.check_stopped(out);
    }

    /// Saves a lower bound of `stable` now and then: a restart in the own epoch reads the log back from there.
    fn note_stable(&mut self, out: &mut Vec<Output>) {
        let (known, stable) = (self.marks.stable, self.water.stable());
        // A session that was welcome has to be welcome again after a restart, whether the backup is there or not.
        let mut welcome = false;
        if self.admitting {
            let newer = self.state.sessions().values().map(|session| session.since).filter(|since| *since > known);
            welcome = newer.clone().any(|since| since <= stable);
            self.admitting = newer.count() > 0;
        }
        if self.saved == self.saves && (welcome || stable.0 >= known.0 + 65_536) {
            self.marks.stable = stable;
            self.save_marks(out);
        }
    }

    /// The `Config` that names the backup is on the own disk, and the grant is not sent yet.
    fn is_attaching(&self) -> bool {
        let logged = self.water.logged() >= self.config_lsn;
        let follows = |follower: &Follower| follower.streaming && self.state.target() == Target::Backup(follower.node);
        logged && !self.counts_backup && self.follower.as_ref().is_some_and(follows)
    }

    /// Takes the attaching of a backup one step further.
    fn try_attach(&mut self, out: &mut Vec<Output>) {
        // An orderly stop still has to be told by the backup that everything is there.
        if !matches!(self.phase, Phase::Open | Phase::Stopping) {
            return;
        }
        let (epoch, head) = (self.epoch, self.water.head());
        let acknowledged = self.water.stable().max(self.grant_from);
        let attaching = self.is_attaching() || self.counts_backup;
        let target = self.state.target();
        let Some(follower) = self.follower.as_mut().filter(|follower| follower.streaming && !follower.in_sync) else {
            return;
        };
        if target == Target::Own {
            if follower.sent == head && !self.config_proposed && matches!(self.phase, Phase::Open) {
                self.config_proposed = true;
                let body = Body::Config(Target::Backup(follower.node));
                self.proposals.push_back(Proposal { client: None, body });
            }
        } else if attaching && !follower.granted && follower.durable >= acknowledged {
            follower.granted = true;
            self.counts_backup = true;
            out.push(Output::ToBackup(follower.conn, PrimaryMessage::Grant { epoch }));
        }
    }

    /// The number of an echo to be sent with the next frame.
    pub(super) fn next_echo(&mut self) -> u64 {
        match &mut self.follower {
            Some(follower) => {
                follower.echo = follower.echo_sent + 1;
                follower.echo
            }
            // The reply waits for a backup that is there to answer.
            None => u64::MAX,
        }
    }

    /// The highest echo that came back.
    pub(super) fn echoed(&self) -> u64 {
        self.follower.as_ref().map_or(0, |follower| follower.echo_seen)
    }
}

impl Follower {
    fn send(&mut self, epoch: Epoch, base: Lsn, stable: Lsn, records: Records, out: &mut Vec<Output>) {
        let Some(last) = records.last().map(Record::lsn) else {
            return;
        };
        self.sent = last;
        let cost = records.iter().map(Record::cost).sum();
        self.under_way.push_back((last, cost));
        self.under_way_bytes += cost;
        self.echo_sent = self.echo;
        self.stable_sent = stable;
        let append = PrimaryMessage::Append { epoch, base, stable, echo: self.echo, records };
        out.push(Output::ToBackup(self.conn, append));
    }
}
