//! Which node the client talks to, and how a session is established on a stream: hello, attach, report, welcome.

use super::{Client, ClientEvent, ClientOutput, Live, REPORT_ITEMS, REPORT_ITEMS_MAX, REPORT_PARTS, Session};
use crate::client::image::{CacheOp, Identity, Verdict, rolled_back, verdict};
use crate::error::{Code, Error};
use crate::log::{Epoch, Lsn, Reign, Request, Time};
use crate::message::Conn;
use crate::message::{
    Attach, ClientMessage, FEATURES, FRAME_BYTES, Hello, NodeMessage, Payloads, Report, ReportItem, Role, Status,
    VERSION, Welcome,
};
use crate::rule::{self, Rule};

impl Client {
    pub(super) fn on_connected(&mut self, conn: Conn, out: &mut Vec<ClientOutput>) {
        let _ = out;
        let identity = self.image.identity.as_ref().expect("a client has an identity");
        let hello = Hello {
            version: VERSION,
            features: FEATURES,
            cluster: identity.cluster,
            group: identity.group,
            epoch: self.image.reported,
        };
        self.gate(ClientOutput::Send(conn, ClientMessage::Hello(hello)));
    }

    pub(super) fn on_gone(&mut self, conn: Conn, out: &mut Vec<ClientOutput>) {
        self.nodes.remove(&conn);
        if self.session.as_ref().is_some_and(|session| session.conn == conn) {
            self.end_stream();
        }
        self.choose(out);
    }

    pub(super) fn end_stream(&mut self) {
        self.session = None;
        self.confirm_due = None;
        self.asking.retain(|_, asking| !asking.forgotten);
        self.asking.values_mut().for_each(|asking| asking.sent = false);
    }

    pub(super) fn on_message(&mut self, now: Time, conn: Conn, message: NodeMessage, out: &mut Vec<ClientOutput>) {
        if let NodeMessage::Status(status) = message {
            self.on_status(conn, status, out);
            return;
        }
        if self.session.as_ref().is_none_or(|session| session.conn != conn) {
            if let NodeMessage::Refused(error) = message {
                self.gate(ClientOutput::Event(ClientEvent::Refused(error)));
                self.nodes.remove(&conn);
            }
            return;
        }
        match message {
            NodeMessage::Status(_) => {}
            NodeMessage::Waiting(error) => self.gate(ClientOutput::Event(ClientEvent::Waiting(error))),
            NodeMessage::RollCall { epoch, of, base } => self.on_roll_call(epoch, of, base),
            NodeMessage::Pull { epoch, requests, shares } => self.on_pull(epoch, &requests, &shares),
            NodeMessage::Welcome(welcome) => self.on_welcome(welcome, out),
            NodeMessage::Frame(frame) => self.on_frame(now, frame, out),
            NodeMessage::Refused(error) => self.on_refused(conn, error, out),
        }
    }

    pub(super) fn on_status(&mut self, conn: Conn, status: Status, out: &mut Vec<ClientOutput>) {
        let identity = self.image.identity.as_ref().expect("a client has an identity");
        let ours = (identity.cluster, identity.group);
        if ours == (None, None) {
            let known = Identity { cluster: Some(status.cluster), group: Some(status.group), ..identity.clone() };
            self.keep(CacheOp::Identity(known));
        } else if ours != (Some(status.cluster), Some(status.group)) || status.version != VERSION {
            let why =
                format!("node {} belongs to cluster {} (protocol {})", status.node, status.cluster, status.version);
            self.gate(ClientOutput::Event(ClientEvent::Refused(Error::new(Code::WrongCluster, why))));
            out.push(ClientOutput::Close(conn));
            return;
        }
        if !status.endpoints.is_empty() {
            self.gate(ClientOutput::Endpoints(status.endpoints.clone()));
        }
        self.nodes.insert(conn, status);
        self.choose(out);
    }

    /// Attaches to the node of the highest epoch that serves or recovers, never to one below what was reported to.
    pub(super) fn choose(&mut self, out: &mut Vec<ClientOutput>) {
        let serves = |status: &Status| matches!(status.role, Role::Primary | Role::Recovering);
        let nodes = self.nodes.iter().filter(|(_, status)| serves(status) && status.epoch >= self.image.reported);
        let Some((conn, status)) = nodes.max_by_key(|(conn, status)| (status.epoch, **conn)) else {
            return;
        };
        let (conn, epoch) = (*conn, status.epoch);
        if let Some(session) = &self.session {
            if epoch < session.epoch || (epoch == session.epoch && self.nodes.contains_key(&session.conn)) {
                return;
            }
            if session.conn != conn {
                // Let the older primary see that this client is gone.
                out.push(ClientOutput::Close(session.conn));
                self.nodes.remove(&session.conn);
            }
            self.end_stream();
        }
        if epoch > self.image.reported {
            self.keep(CacheOp::Reported(epoch));
        }
        self.session = Some(Session { conn, epoch, of: Epoch::ZERO, live: None });
        let identity = self.image.identity.as_ref().expect("a client has an identity");
        let held = self.image.shares.range((epoch, 0)..=(epoch, u64::MAX));
        let attach = Attach {
            epoch,
            client: identity.client,
            incarnation: self.image.incarnation,
            domain: identity.domain.clone(),
            role: identity.role,
            fresh: !self.image.welcomed,
            from: self.image.first_unanswered(),
            oldest: self.image.oldest_epoch(),
            observed_epoch: self.image.observed.0,
            observed: self.image.observed.1,
            share_bytes: self.settings.share_bytes_max,
            shares_held: held.map(|(_, share)| share.cost()).sum(),
        };
        self.store(out);
        self.gate(ClientOutput::Send(conn, ClientMessage::Attach(attach)));
    }

    pub(super) fn send_to_session(&mut self, message: ClientMessage) {
        if let Some(session) = &self.session {
            let conn = session.conn;
            self.gate(ClientOutput::Send(conn, message));
        }
    }

    pub(super) fn is_session_epoch(&self, epoch: Epoch) -> bool {
        self.session.as_ref().is_some_and(|session| session.epoch == epoch)
    }

    /// Reports everything above `base` that this client may vouch for, and that it is all.
    pub(super) fn on_roll_call(&mut self, epoch: Epoch, of: Epoch, base: Lsn) {
        if !self.is_session_epoch(epoch) {
            return;
        }
        if let Some(session) = &mut self.session {
            session.of = of;
        }
        self.gate(ClientOutput::Event(ClientEvent::Recovering { epoch }));
        let client = self.image.identity.as_ref().expect("a client has an identity").client;
        let mut items = Vec::new();
        for (request, command) in &self.image.commands {
            let in_doubt = ReportItem::InDoubt {
                request: *request,
                length: u32::try_from(command.payload.len()).unwrap_or(u32::MAX),
                digest: command.digest,
                answered: command.answered,
            };
            // Below the base it is in the log already, but others' entries may be decoded with its help.
            let needed =
                command.tag.is_some_and(|tag| tag.hold_until.is_none_or(|until| until > base) || tag.lsn > base);
            match command.header(client, *request) {
                Some(header) if header.epoch == of && needed => {
                    items.push(ReportItem::Held { header, reply: command.reply });
                }
                _ if command.reply.is_none() => items.push(in_doubt),
                Some(header) if !rule::on(Rule::ReportEpoch) => {
                    items.push(ReportItem::Held { header, reply: command.reply });
                }
                _ => {}
            }
        }
        let vouched = self.image.headers.range((of, base.next())..).take_while(|((epoch, _), _)| *epoch == of);
        items.extend(vouched.map(|(_, header)| ReportItem::Header(header.clone())));
        let placed = self.image.places.range((of, base.next())..).take_while(|((epoch, _), _)| *epoch == of);
        items.extend(placed.map(|(_, places)| ReportItem::Places(places.clone())));
        let shares = self.image.shares.range((of, 0)..=(of, u64::MAX)).map(|(_, share)| share);
        items.extend(shares.filter(|share| share.hold_until > base).map(|share| ReportItem::Share {
            epoch: share.epoch,
            id: share.id,
            hold_until: share.hold_until,
            length: u32::try_from(share.body.len()).unwrap_or(u32::MAX),
        }));
        let (observed, stable) = (self.image.observed, self.image.stable);
        let length = items.len().div_ceil(REPORT_PARTS).clamp(REPORT_ITEMS, REPORT_ITEMS_MAX);
        let mut items = items.into_iter().peekable();
        loop {
            let part: Vec<ReportItem> = items.by_ref().take(length).collect();
            let end = items.peek().is_none();
            self.send_to_session(ClientMessage::Report(Report { epoch, items: part, observed, stable, end }));
            if end {
                break;
            }
        }
    }

    pub(super) fn on_pull(&mut self, epoch: Epoch, requests: &[Request], shares: &[u64]) {
        if !self.is_session_epoch(epoch) {
            return;
        }
        let mut items = Vec::new();
        let mut bytes = 0;
        for request in requests {
            let Some(command) = self.image.commands.get(request) else {
                continue;
            };
            bytes += command.payload.len() as u64;
            items.push((*request, command.payload.clone()));
            if bytes >= FRAME_BYTES {
                bytes = 0;
                let items = std::mem::take(&mut items);
                self.send_to_session(ClientMessage::Payloads(Payloads { epoch, items, shares: Vec::new() }));
            }
        }
        if !items.is_empty() {
            self.send_to_session(ClientMessage::Payloads(Payloads { epoch, items, shares: Vec::new() }));
        }
        let of = self.session.as_ref().map_or(Epoch::ZERO, |session| session.of);
        let mut bytes = 0;
        let mut part = Vec::new();
        for share in shares.iter().filter_map(|id| self.image.shares.get(&(of, *id)).cloned()).collect::<Vec<_>>() {
            bytes += share.cost();
            part.push(share);
            if bytes >= FRAME_BYTES {
                bytes = 0;
                let shares = std::mem::take(&mut part);
                self.send_to_session(ClientMessage::Payloads(Payloads { epoch, items: Vec::new(), shares }));
            }
        }
        if !part.is_empty() {
            self.send_to_session(ClientMessage::Payloads(Payloads { epoch, items: Vec::new(), shares: part }));
        }
    }

    /// The session is established; whatever older reigns left behind gets its verdict.
    pub(super) fn on_welcome(&mut self, welcome: Welcome, out: &mut Vec<ClientOutput>) {
        let Welcome {
            epoch, stable, reigns, lowest, refuse_uncovered, window, window_bytes, command_bytes_max, ..
        } = welcome;
        if !self.is_session_epoch(epoch) {
            return;
        }
        if !rule::on(Rule::ReleaseByEpoch) {
            self.keep(CacheOp::Stable(epoch, stable));
        }
        self.tell_lost(epoch, &reigns, out);
        if !self.image.welcomed {
            self.keep(CacheOp::Welcomed);
        }
        self.keep(CacheOp::Verdict(epoch, reigns));
        self.keep(CacheOp::Stable(epoch, stable));
        self.store(out);
        self.command_bytes_max = command_bytes_max;
        let next = self.image.first_unanswered();
        if let Some(session) = &mut self.session {
            session.live = Some(Live {
                seq: 0,
                confirmed: 0,
                next,
                window,
                window_bytes,
                lowest,
                refuse_uncovered,
                short: false,
                close_sent: false,
            });
        }
        self.gate(ClientOutput::Event(ClientEvent::Attached { epoch }));
    }

    /// Tells the application what of its own, and of what it saw, did not survive.
    pub(super) fn tell_lost(&mut self, epoch: Epoch, reigns: &[Reign], out: &mut Vec<ClientOutput>) {
        let mut lost = Vec::new();
        for (request, command) in &self.image.commands {
            let Some(tag) = command.tag.filter(|tag| tag.epoch < epoch) else {
                continue;
            };
            if command.reply.is_some() && verdict(reigns, tag.epoch, tag.lsn) == Verdict::Superseded {
                lost.push(ClientEvent::Superseded { request: *request, payload: command.payload.clone() });
            }
        }
        let (of, observed) = self.image.observed;
        if of < epoch && rolled_back(reigns, of, observed) && rule::on(Rule::TellRolledBack) {
            lost.push(ClientEvent::RolledBack { epoch: of, observed });
        }
        for event in lost {
            self.gate(ClientOutput::Event(event));
        }
        // The word should be out before the cache forgets: a crash in between tells twice, rather than never.
        self.open_gate(out);
    }

    pub(super) fn on_refused(&mut self, conn: Conn, error: Error, out: &mut Vec<ClientOutput>) {
        self.nodes.remove(&conn);
        self.end_stream();
        if error.code() == Code::SessionExpired {
            self.ended = true;
            if self.closing && self.unsent.is_empty() && self.image.unanswered().next().is_none() {
                self.gate(ClientOutput::Closed);
            } else {
                self.gate(ClientOutput::Event(ClientEvent::Expired));
                self.gate(ClientOutput::Failed(error));
            }
            return;
        }
        self.gate(ClientOutput::Event(ClientEvent::Refused(error)));
        out.push(ClientOutput::Close(conn));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::client::{CacheImage, ClientInput, ClientSettings, Command};
    use crate::log::{ClientId, ClusterId, Digest, GroupId, Level, NodeId, SessionRole};

    /// All parts of a report are queued at once. One that did not fit the least queue a stream may have cost the stream, and
    /// with it the report, again and again.
    #[test]
    fn a_report_fits_the_queue_of_its_stream() {
        let (client, domain, role) = (ClientId(1), String::new(), SessionRole::Writer);
        let mut image = CacheImage::default();
        image.apply(&CacheOp::Identity(Identity { client, cluster: None, group: None, domain, role }));
        for request in (1..=100_000).map(Request) {
            let command = Command {
                answered: Request(0),
                level: Level::Tagged,
                withdrawn: false,
                digest: Digest::crc32(&[]),
                tag: None,
                reply: None,
                payload: Bytes::new(),
            };
            image.apply(&CacheOp::Command { request, command });
        }
        let settings = ClientSettings { volatile: true, ..ClientSettings::default() };
        let (mut out, epoch) = (Vec::new(), Epoch { number: 2, node: NodeId(2), ..Epoch::ZERO });
        let mut client = Client::new(settings, image, Time(0), &mut out);
        let status = Status {
            version: VERSION,
            features: FEATURES,
            cluster: ClusterId(1),
            group: GroupId(1),
            node: NodeId(2),
            domain: String::new(),
            role: Role::Recovering,
            epoch,
            endpoints: Vec::new(),
        };
        let of = Epoch { number: 1, node: NodeId(1), ..Epoch::ZERO };
        let roll_call = NodeMessage::RollCall { epoch, of, base: Lsn(0) };
        client.step(Time(0), ClientInput::Connected(Conn(1)), &mut out);
        for message in [NodeMessage::Status(status), roll_call] {
            client.step(Time(0), ClientInput::Message(Conn(1), message), &mut out);
        }
        let parts = out.iter().filter_map(|output| match output {
            ClientOutput::Send(_, ClientMessage::Report(report)) => Some(report),
            _ => None,
        });
        let parts: Vec<_> = parts.map(|part| (part.items.len(), part.end)).collect();
        assert!(parts.len() < 64, "{} parts", parts.len());
        assert_eq!(parts.iter().map(|(items, _)| items).sum::<usize>(), 100_000);
        assert_eq!(parts.iter().position(|(_, end)| *end), Some(parts.len() - 1));
    }
}
