//! The stream between a backup and its primary.

use super::packed::{put_records, records};
use super::words::{epoch, id, id_bytes, known};
use super::{pb, required};
use crate::error::{Error, Result};
use crate::log::{ClusterId, Epoch, GroupId, Lsn, NodeId, Records};
use crate::message::{BackupMessage, PeerHello, PrimaryMessage};

impl From<BackupMessage> for pb::BackupMessage {
    fn from(message: BackupMessage) -> Self {
        use pb::backup_message::Message;
        let message = match message {
            BackupMessage::Hello(hello) => Message::Hello(hello.into()),
            BackupMessage::Promised { epoch, end, last } => {
                Message::Promised(pb::Promised { epoch: Some(epoch.into()), end: end.0, last: Some(last.into()) })
            }
            BackupMessage::Records { epoch, records } => {
                Message::Records(pb::Records { epoch: Some(epoch.into()), records: put_records(records.iter(), epoch) })
            }
            BackupMessage::Ack { epoch, durable, echo, in_sync } => {
                Message::Ack(pb::Ack { epoch: Some(epoch.into()), durable: durable.0, echo, in_sync })
            }
            BackupMessage::Failed(error) => Message::Failed(error.into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<pb::BackupMessage> for BackupMessage {
    type Error = Error;
    fn try_from(message: pb::BackupMessage) -> Result<Self> {
        use pb::backup_message::Message;
        Ok(match required("BackupMessage.message", message.message)? {
            Message::Hello(hello) => Self::Hello(hello.try_into()?),
            Message::Promised(promised) => Self::Promised {
                epoch: epoch("Promised.epoch", promised.epoch)?,
                end: Lsn(promised.end),
                last: known(promised.last),
            },
            Message::Records(sent) => {
                let epoch = epoch("Records.epoch", sent.epoch)?;
                Self::Records { epoch, records: records("Records.records", &sent.records, epoch)? }
            }
            Message::Ack(ack) => Self::Ack {
                epoch: epoch("Ack.epoch", ack.epoch)?,
                durable: Lsn(ack.durable),
                echo: ack.echo,
                in_sync: ack.in_sync,
            },
            Message::Failed(error) => Self::Failed(error.into()),
        })
    }
}

impl From<PeerHello> for pb::PeerHello {
    fn from(hello: PeerHello) -> Self {
        Self {
            version: hello.version,
            features: hello.features,
            cluster: hello.cluster.map(|cluster| id_bytes(cluster.0)),
            group: hello.group.map(|group| id_bytes(group.0)),
            node: hello.node.0,
            domain: hello.domain,
            endpoint: hello.endpoint,
            end: hello.end.0,
            last: Some(hello.last.into()),
            promised: Some(hello.promised.into()),
            in_sync: hello.in_sync,
        }
    }
}

impl TryFrom<pb::PeerHello> for PeerHello {
    type Error = Error;
    fn try_from(hello: pb::PeerHello) -> Result<Self> {
        Ok(Self {
            version: hello.version,
            features: hello.features,
            cluster: hello.cluster.map(|bytes| id("PeerHello.cluster", &bytes).map(ClusterId)).transpose()?,
            group: hello.group.map(|bytes| id("PeerHello.group", &bytes).map(GroupId)).transpose()?,
            node: NodeId(hello.node),
            domain: hello.domain,
            endpoint: hello.endpoint,
            end: Lsn(hello.end),
            last: known(hello.last),
            promised: known(hello.promised),
            in_sync: hello.in_sync,
        })
    }
}

fn append(epoch: Epoch, base: Lsn, stable: Lsn, echo: u64, runs: &[Records]) -> pb::Append {
    let records = put_records(runs.iter().flat_map(|run| run.iter()), epoch);
    pb::Append { epoch: Some(epoch.into()), base: base.0, stable: stable.0, echo, records }
}

/// Messages to a backup; appends that follow each other become one, which costs the backup one append.
pub(in crate::net) fn joined(messages: Vec<PrimaryMessage>) -> pb::PrimaryMessages {
    let mut joined = Vec::with_capacity(messages.len());
    let mut messages = messages.into_iter().peekable();
    while let Some(message) = messages.next() {
        let PrimaryMessage::Append { epoch, base, mut stable, mut echo, records } = message else {
            joined.push(message.into());
            continue;
        };
        let mut runs = vec![records];
        let same = |next: &PrimaryMessage| matches!(next, PrimaryMessage::Append { epoch: of, .. } if *of == epoch);
        while let Some(PrimaryMessage::Append { stable: upto, echo: highest, records, .. }) = messages.next_if(same) {
            (stable, echo) = (stable.max(upto), echo.max(highest));
            runs.push(records);
        }
        let append = append(epoch, base, stable, echo, &runs);
        joined.push(pb::PrimaryMessage { message: Some(pb::primary_message::Message::Append(append)) });
    }
    pb::PrimaryMessages { messages: joined }
}

impl From<PrimaryMessage> for pb::PrimaryMessage {
    fn from(message: PrimaryMessage) -> Self {
        use pb::primary_message::Message;
        let message = match message {
            PrimaryMessage::Welcome { version, cluster, group, node, endpoint } => Message::Welcome(pb::PeerWelcome {
                version,
                cluster: id_bytes(cluster.0),
                group: id_bytes(group.0),
                node: node.0,
                endpoint,
            }),
            PrimaryMessage::Promise { epoch } => Message::Promise(pb::Promise { epoch: Some(epoch.into()) }),
            PrimaryMessage::Fetch { epoch, from } => {
                Message::Fetch(pb::Fetch { epoch: Some(epoch.into()), from: from.0 })
            }
            PrimaryMessage::Append { epoch, base, stable, echo, records } => {
                Message::Append(append(epoch, base, stable, echo, &[records]))
            }
            PrimaryMessage::Grant { epoch } => Message::Grant(pb::Grant { epoch: Some(epoch.into()) }),
            PrimaryMessage::Refused(error) => Message::Refused(error.into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<pb::PrimaryMessage> for PrimaryMessage {
    type Error = Error;
    fn try_from(message: pb::PrimaryMessage) -> Result<Self> {
        use pb::primary_message::Message;
        Ok(match required("PrimaryMessage.message", message.message)? {
            Message::Welcome(welcome) => Self::Welcome {
                version: welcome.version,
                cluster: ClusterId(id("PeerWelcome.cluster", &welcome.cluster)?),
                group: GroupId(id("PeerWelcome.group", &welcome.group)?),
                node: NodeId(welcome.node),
                endpoint: welcome.endpoint,
            },
            Message::Promise(promise) => Self::Promise { epoch: epoch("Promise.epoch", promise.epoch)? },
            Message::Fetch(fetch) => Self::Fetch { epoch: epoch("Fetch.epoch", fetch.epoch)?, from: Lsn(fetch.from) },
            Message::Append(append) => {
                let epoch = epoch("Append.epoch", append.epoch)?;
                Self::Append {
                    epoch,
                    base: Lsn(append.base),
                    stable: Lsn(append.stable),
                    echo: append.echo,
                    records: records("Append.records", &append.records, epoch)?.into(),
                }
            }
            Message::Grant(grant) => Self::Grant { epoch: epoch("Grant.epoch", grant.epoch)? },
            Message::Refused(error) => Self::Refused(error.into()),
        })
    }
}
