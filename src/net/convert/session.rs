//! The stream between a client and a node.

use bytes::Bytes;

use super::words::{self, epoch, id, id_bytes, known};
use super::{choice, kept, kept_together, packed, pb, required};
use crate::error::{Code, Error, Result};
use crate::log::{ClientId, ClusterId, GroupId, Level, Lsn, NodeId, Reign, Request};
use crate::message::{
    Attach, ClientFrame, ClientMessage, Hello, NodeFrame, NodeMessage, Payloads, Query, QueryResult, Report, Role,
    Status, Welcome,
};
use crate::share::Share;

// ---- from a client ----

impl From<ClientMessage> for pb::ClientMessage {
    fn from(message: ClientMessage) -> Self {
        use pb::client_message::Message;
        let message = match message {
            ClientMessage::Hello(hello) => Message::Hello(hello.into()),
            ClientMessage::Attach(attach) => Message::Attach(attach.into()),
            ClientMessage::Frame(frame) => Message::Frame(frame.into()),
            ClientMessage::Report(report) => Message::Report(report.into()),
            ClientMessage::Payloads(payloads) => Message::Payloads(payloads.into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<pb::ClientMessage> for ClientMessage {
    type Error = Error;
    fn try_from(message: pb::ClientMessage) -> Result<Self> {
        use pb::client_message::Message;
        Ok(match required("ClientMessage.message", message.message)? {
            Message::Hello(hello) => Self::Hello(hello.try_into()?),
            Message::Attach(attach) => Self::Attach(attach.try_into()?),
            Message::Frame(frame) => Self::Frame(frame.try_into()?),
            Message::Report(report) => Self::Report(report.try_into()?),
            Message::Payloads(payloads) => Self::Payloads(payloads.try_into()?),
        })
    }
}

impl From<Hello> for pb::Hello {
    fn from(Hello { version, features, cluster, group, epoch }: Hello) -> Self {
        Self {
            version,
            features,
            cluster: cluster.map(|cluster| id_bytes(cluster.0)),
            group: group.map(|group| id_bytes(group.0)),
            epoch: Some(epoch.into()),
        }
    }
}

impl TryFrom<pb::Hello> for Hello {
    type Error = Error;
    fn try_from(pb::Hello { version, features, cluster, group, epoch }: pb::Hello) -> Result<Self> {
        let cluster = cluster.map(|bytes| id("Hello.cluster", &bytes).map(ClusterId)).transpose()?;
        let group = group.map(|bytes| id("Hello.group", &bytes).map(GroupId)).transpose()?;
        Ok(Self { version, features, cluster, group, epoch: known(epoch) })
    }
}

impl From<Attach> for pb::Attach {
    fn from(attach: Attach) -> Self {
        Self {
            epoch: Some(attach.epoch.into()),
            client: id_bytes(attach.client.0),
            incarnation: attach.incarnation,
            domain: attach.domain,
            role: pb::SessionRole::from(attach.role).into(),
            fresh: attach.fresh,
            from: attach.from.0,
            oldest: Some(attach.oldest.into()),
            observed_epoch: Some(attach.observed_epoch.into()),
            observed: attach.observed.0,
            share_bytes: attach.share_bytes,
            shares_held: attach.shares_held,
        }
    }
}

impl TryFrom<pb::Attach> for Attach {
    type Error = Error;
    fn try_from(attach: pb::Attach) -> Result<Self> {
        Ok(Self {
            epoch: epoch("Attach.epoch", attach.epoch)?,
            client: ClientId(id("Attach.client", &attach.client)?),
            incarnation: attach.incarnation,
            domain: attach.domain,
            role: words::session_role("Attach.role", attach.role, Code::WrongVersion)?,
            fresh: attach.fresh,
            from: Request(attach.from),
            oldest: known(attach.oldest),
            observed_epoch: known(attach.observed_epoch),
            observed: Lsn(attach.observed),
            share_bytes: attach.share_bytes,
            shares_held: attach.shares_held,
        })
    }
}

/// The level a client asks for; unspecified, the service's lowest, as for whatever is not above it.
fn asked(field: &str, number: i32) -> Result<Level> {
    Ok(words::level(field, number, Code::WrongVersion)?.unwrap_or(Level::Local))
}

impl From<Query> for pb::Query {
    fn from(Query { id, level, payload }: Query) -> Self {
        Self { id, level: pb::Level::from(level).into(), payload }
    }
}

impl TryFrom<pb::Query> for Query {
    type Error = Error;
    fn try_from(pb::Query { id, level, payload }: pb::Query) -> Result<Self> {
        // Not copied: the payload is gone as soon as the query has run.
        Ok(Self { id, level: asked("Query.level", level)?, payload })
    }
}

impl From<ClientFrame> for pb::ClientFrame {
    fn from(ClientFrame { epoch, confirm, writes, queries, close }: ClientFrame) -> Self {
        let writes = packed::put_writes(&writes);
        let queries = queries.into_iter().map(pb::Query::from).collect();
        Self { epoch: Some(epoch.into()), confirm, writes, queries, close }
    }
}

impl TryFrom<pb::ClientFrame> for ClientFrame {
    type Error = Error;
    fn try_from(frame: pb::ClientFrame) -> Result<Self> {
        Ok(Self {
            epoch: epoch("ClientFrame.epoch", frame.epoch)?,
            confirm: frame.confirm,
            writes: packed::writes("ClientFrame.writes", &frame.writes)?,
            queries: frame.queries.into_iter().map(Query::try_from).collect::<Result<_>>()?,
            close: frame.close,
        })
    }
}

impl From<Report> for pb::Report {
    fn from(Report { epoch, items, observed, stable, end }: Report) -> Self {
        Self {
            epoch: Some(epoch.into()),
            items: packed::put_items(&items, observed.0),
            observed_epoch: Some(observed.0.into()),
            observed: observed.1.0,
            stable_epoch: Some(stable.0.into()),
            stable: stable.1.0,
            end,
        }
    }
}

impl TryFrom<pb::Report> for Report {
    type Error = Error;
    fn try_from(report: pb::Report) -> Result<Self> {
        let observed = known(report.observed_epoch);
        Ok(Self {
            epoch: epoch("Report.epoch", report.epoch)?,
            items: packed::items("Report.items", &report.items, observed)?,
            observed: (observed, Lsn(report.observed)),
            stable: (known(report.stable_epoch), Lsn(report.stable)),
            end: report.end,
        })
    }
}

impl From<Payloads> for pb::Payloads {
    fn from(Payloads { epoch, items, shares }: Payloads) -> Self {
        let items = items.into_iter().map(|(request, payload)| pb::Payload { request: request.0, payload });
        let shares = shares.into_iter().map(|share| words::share_pb(share, epoch));
        Self { epoch: Some(epoch.into()), items: items.collect(), shares: shares.collect() }
    }
}

/// Gives pulled payloads memory of their own where they did not come alone: who keeps them would keep the rest of the buffer.
pub(super) fn detached(mut messages: Vec<pb::ClientMessage>) -> Vec<pb::ClientMessage> {
    use pb::client_message::Message;
    if messages.iter().all(|message| matches!(message.message, Some(Message::Payloads(_)))) {
        return messages;
    }
    for message in &mut messages {
        let Some(Message::Payloads(payloads)) = &mut message.message else { continue };
        payloads.items.iter_mut().for_each(|item| item.payload = Bytes::copy_from_slice(&item.payload));
        payloads.shares.iter_mut().for_each(|share| share.body = Bytes::copy_from_slice(&share.body));
    }
    messages
}

impl TryFrom<pb::Payloads> for Payloads {
    type Error = Error;
    fn try_from(payloads: pb::Payloads) -> Result<Self> {
        let epoch = epoch("Payloads.epoch", payloads.epoch)?;
        let items = payloads.items.into_iter().map(|item| (Request(item.request), item.payload));
        let (requests, bytes): (Vec<Request>, Vec<_>) = items.unzip();
        let items = requests.into_iter().zip(kept_together(bytes));
        let shares = payloads.shares.into_iter().map(|share| {
            let share = words::share(share, epoch)?;
            Ok(Share { body: kept(share.body), ..share })
        });
        Ok(Self { epoch, items: items.collect(), shares: shares.collect::<Result<_>>()? })
    }
}

// ---- from a node ----

impl From<NodeMessage> for pb::NodeMessage {
    fn from(message: NodeMessage) -> Self {
        use pb::node_message::Message;
        let message = match message {
            NodeMessage::Status(status) => Message::Status(status.into()),
            NodeMessage::Waiting(error) => Message::Waiting(error.into()),
            NodeMessage::RollCall { epoch, of, base } => {
                Message::RollCall(pb::RollCall { epoch: Some(epoch.into()), of: Some(of.into()), base: base.0 })
            }
            NodeMessage::Pull { epoch, requests, shares } => Message::Pull(pb::Pull {
                epoch: Some(epoch.into()),
                requests: requests.into_iter().map(|request| request.0).collect(),
                shares,
            }),
            NodeMessage::Welcome(welcome) => Message::Welcome(welcome.into()),
            NodeMessage::Frame(frame) => Message::Frame(frame.into()),
            NodeMessage::Refused(error) => Message::Refused(error.into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<pb::NodeMessage> for NodeMessage {
    type Error = Error;
    fn try_from(message: pb::NodeMessage) -> Result<Self> {
        use pb::node_message::Message;
        Ok(match required("NodeMessage.message", message.message)? {
            Message::Status(status) => Self::Status(status.try_into()?),
            Message::Waiting(error) => Self::Waiting(error.into()),
            Message::RollCall(pb::RollCall { epoch: into, of, base }) => {
                Self::RollCall { epoch: epoch("RollCall.epoch", into)?, of: epoch("RollCall.of", of)?, base: Lsn(base) }
            }
            Message::Pull(pb::Pull { epoch: into, requests, shares }) => Self::Pull {
                epoch: epoch("Pull.epoch", into)?,
                requests: requests.into_iter().map(Request).collect(),
                shares,
            },
            Message::Welcome(welcome) => Self::Welcome(welcome.try_into()?),
            Message::Frame(frame) => Self::Frame(frame.try_into()?),
            Message::Refused(error) => Self::Refused(error.into()),
        })
    }
}

impl From<Role> for pb::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Backup => Self::Backup,
            Role::Recovering => Self::Recovering,
            Role::Primary => Self::Primary,
            Role::Deposed => Self::Deposed,
            Role::Stopped => Self::Stopped,
        }
    }
}

fn role(field: &str, number: i32) -> Result<Role> {
    let role = match choice(field, number, Code::WrongVersion)? {
        pb::Role::Unspecified => None,
        pb::Role::Backup => Some(Role::Backup),
        pb::Role::Recovering => Some(Role::Recovering),
        pb::Role::Primary => Some(Role::Primary),
        pb::Role::Deposed => Some(Role::Deposed),
        pb::Role::Stopped => Some(Role::Stopped),
    };
    required(field, role)
}

impl From<Status> for pb::Status {
    fn from(status: Status) -> Self {
        Self {
            version: status.version,
            features: status.features,
            cluster: id_bytes(status.cluster.0),
            group: id_bytes(status.group.0),
            node: status.node.0,
            domain: status.domain,
            role: pb::Role::from(status.role).into(),
            epoch: Some(status.epoch.into()),
            endpoints: status.endpoints,
        }
    }
}

impl TryFrom<pb::Status> for Status {
    type Error = Error;
    fn try_from(status: pb::Status) -> Result<Self> {
        Ok(Self {
            version: status.version,
            features: status.features,
            cluster: ClusterId(id("Status.cluster", &status.cluster)?),
            group: GroupId(id("Status.group", &status.group)?),
            node: NodeId(status.node),
            domain: status.domain,
            role: role("Status.role", status.role)?,
            epoch: known(status.epoch),
            endpoints: status.endpoints,
        })
    }
}

impl From<Welcome> for pb::Welcome {
    fn from(welcome: Welcome) -> Self {
        Self {
            epoch: Some(welcome.epoch.into()),
            stable: welcome.stable.0,
            reigns: welcome.reigns.into_iter().map(pb::Reign::from).collect(),
            lowest: pb::Level::from(welcome.lowest).into(),
            f: welcome.f.into(),
            refuse_uncovered: welcome.refuse_uncovered,
            window: welcome.window,
            window_bytes: welcome.window_bytes,
            command_bytes_max: welcome.command_bytes_max,
        }
    }
}

impl TryFrom<pb::Welcome> for Welcome {
    type Error = Error;
    fn try_from(welcome: pb::Welcome) -> Result<Self> {
        let lowest = words::level("Welcome.lowest", welcome.lowest, Code::WrongVersion)?;
        Ok(Self {
            epoch: epoch("Welcome.epoch", welcome.epoch)?,
            stable: Lsn(welcome.stable),
            reigns: welcome.reigns.into_iter().map(Reign::try_from).collect::<Result<_>>()?,
            lowest: required("Welcome.lowest", lowest)?,
            f: words::domains("Welcome.f", welcome.f)?,
            refuse_uncovered: welcome.refuse_uncovered,
            window: welcome.window,
            window_bytes: welcome.window_bytes,
            command_bytes_max: welcome.command_bytes_max,
        })
    }
}

impl From<QueryResult> for pb::QueryResult {
    fn from(QueryResult { id, lsn, result }: QueryResult) -> Self {
        let result = match result {
            Ok(value) => pb::query_result::Result::Value(value),
            Err(error) => pb::query_result::Result::Error(error.into()),
        };
        Self { id, lsn: lsn.0, result: Some(result) }
    }
}

impl TryFrom<pb::QueryResult> for QueryResult {
    type Error = Error;
    fn try_from(pb::QueryResult { id, lsn, result }: pb::QueryResult) -> Result<Self> {
        let result = match required("QueryResult.result", result)? {
            pb::query_result::Result::Value(value) => Ok(kept(value)),
            pb::query_result::Result::Error(error) => Err(error.into()),
        };
        Ok(Self { id, lsn: Lsn(lsn), result })
    }
}

impl From<NodeFrame> for pb::NodeFrame {
    fn from(frame: NodeFrame) -> Self {
        let NodeFrame { epoch, seq, stable, settled, .. } = frame;
        Self {
            epoch: Some(epoch.into()),
            seq,
            stable: stable.0,
            // Where nothing is covered the two are always the same.
            settled: (settled != stable).then_some(settled.0),
            manifest: packed::put_headers(&frame.manifest, epoch),
            places: packed::put_places(&frame.places),
            shares: frame.shares.into_iter().map(|share| words::share_pb(share, epoch)).collect(),
            prompt: frame.prompt,
            short: frame.short,
            responses: packed::put_responses(&frame.responses, epoch),
            results: frame.results.into_iter().map(pb::QueryResult::from).collect(),
            closed: frame.closed,
        }
    }
}

impl TryFrom<pb::NodeFrame> for NodeFrame {
    type Error = Error;
    fn try_from(frame: pb::NodeFrame) -> Result<Self> {
        let (epoch, stable) = (epoch("NodeFrame.epoch", frame.epoch)?, Lsn(frame.stable));
        // Shares are not copied here: the cache's image copies what it keeps.
        let shares = frame.shares.into_iter().map(|share| words::share(share, epoch));
        Ok(Self {
            epoch,
            seq: frame.seq,
            stable,
            settled: frame.settled.map_or(stable, Lsn),
            manifest: packed::headers("NodeFrame.manifest", &frame.manifest, epoch)?,
            places: packed::places("NodeFrame.places", &frame.places, epoch)?,
            shares: shares.collect::<Result<_>>()?,
            prompt: frame.prompt,
            short: frame.short,
            responses: packed::responses("NodeFrame.responses", &frame.responses, epoch, stable)?,
            results: frame.results.into_iter().map(QueryResult::try_from).collect::<Result<_>>()?,
            closed: frame.closed,
        })
    }
}
