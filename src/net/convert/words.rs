//! What every stream is made of: identities, epochs, levels, roles, reigns, shares.

use std::ops::Range;

use bytes::Bytes;

use super::{choice, pb, required};
use crate::error::{Code, Error, Result};
use crate::log::{ClientId, Epoch, GapPolicy, Level, Lsn, NodeId, Reign, SessionRole, Target};
use crate::share::{Mode, Share};

/// An identity of 128 bits.
pub(super) fn id_bytes(id: u128) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

pub(super) fn id(field: &str, bytes: &[u8]) -> Result<u128> {
    let bytes = bytes.try_into().map_err(|_| {
        Error::new(Code::Protocol, format!("{field} is an identity and needs 16 bytes; it has {}", bytes.len()))
    })?;
    Ok(u128::from_be_bytes(bytes))
}

pub(super) fn client_ids(clients: Vec<ClientId>) -> Vec<Bytes> {
    clients.into_iter().map(|client| id_bytes(client.0)).collect()
}

pub(super) fn clients(field: &str, ids: &[Bytes]) -> Result<Vec<ClientId>> {
    ids.iter().map(|bytes| id(field, bytes).map(ClientId)).collect()
}

impl From<Epoch> for pb::Epoch {
    fn from(Epoch { generation, number, node }: Epoch) -> Self {
        Self { generation, number, node: node.0 }
    }
}

impl From<pb::Epoch> for Epoch {
    fn from(pb::Epoch { generation, number, node }: pb::Epoch) -> Self {
        Self { generation, number, node: NodeId(node) }
    }
}

/// An epoch that says what the message belongs to.
pub(super) fn epoch(field: &str, epoch: Option<pb::Epoch>) -> Result<Epoch> {
    required(field, epoch).map(Epoch::from)
}

/// An epoch that says what somebody knows or has seen; absent, nothing yet.
pub(super) fn known(epoch: Option<pb::Epoch>) -> Epoch {
    epoch.map_or(Epoch::ZERO, Epoch::from)
}

impl From<Level> for pb::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Local => Self::Local,
            Level::Tagged => Self::Tagged,
            Level::Covered => Self::Covered,
            Level::Stable => Self::Stable,
        }
    }
}

/// `None`: unspecified.
pub(super) fn level(field: &str, number: i32, unknown: Code) -> Result<Option<Level>> {
    Ok(match choice(field, number, unknown)? {
        pb::Level::Unspecified => None,
        pb::Level::Local => Some(Level::Local),
        pb::Level::Tagged => Some(Level::Tagged),
        pb::Level::Covered => Some(Level::Covered),
        pb::Level::Stable => Some(Level::Stable),
    })
}

impl From<SessionRole> for pb::SessionRole {
    fn from(role: SessionRole) -> Self {
        match role {
            SessionRole::Writer => Self::Writer,
            SessionRole::Reader => Self::Reader,
            SessionRole::Holder => Self::Holder,
        }
    }
}

pub(super) fn session_role(field: &str, number: i32, unknown: Code) -> Result<SessionRole> {
    let role = match choice(field, number, unknown)? {
        pb::SessionRole::Unspecified => None,
        pb::SessionRole::Writer => Some(SessionRole::Writer),
        pb::SessionRole::Reader => Some(SessionRole::Reader),
        pb::SessionRole::Holder => Some(SessionRole::Holder),
    };
    required(field, role)
}

/// A number of failure domains.
pub(super) fn domains(field: &str, f: u32) -> Result<u8> {
    u8::try_from(f).map_err(|_| Error::new(Code::Protocol, format!("{field} is absurd: {f}")))
}

pub(super) fn policy_pb(policy: Option<GapPolicy>) -> pb::GapPolicy {
    match policy {
        None => pb::GapPolicy::Unspecified,
        Some(GapPolicy::Stop) => pb::GapPolicy::Stop,
        Some(GapPolicy::Skip) => pb::GapPolicy::Skip,
    }
}

/// `None`: unspecified.
pub(super) fn policy(field: &str, number: i32, unknown: Code) -> Result<Option<GapPolicy>> {
    Ok(match choice(field, number, unknown)? {
        pb::GapPolicy::Unspecified => None,
        pb::GapPolicy::Stop => Some(GapPolicy::Stop),
        pb::GapPolicy::Skip => Some(GapPolicy::Skip),
    })
}

impl From<Target> for pb::Target {
    fn from(target: Target) -> Self {
        let target = match target {
            Target::Own => pb::target::Target::Own(pb::Unit {}),
            Target::Backup(node) => pb::target::Target::Backup(node.0),
        };
        Self { target: Some(target) }
    }
}

pub(super) fn target(field: &str, target: Option<pb::Target>, unknown: Code) -> Result<Target> {
    match required(field, target)?.target {
        Some(pb::target::Target::Own(pb::Unit {})) => Ok(Target::Own),
        Some(pb::target::Target::Backup(node)) => Ok(Target::Backup(NodeId(node))),
        None => Err(Error::new(unknown, format!("{field} is of a kind this build does not know"))),
    }
}

pub(super) fn ranges_pb(ranges: Vec<Range<Lsn>>) -> Vec<pb::Range> {
    ranges.into_iter().map(|range| pb::Range { start: range.start.0, end: range.end.0 }).collect()
}

pub(super) fn ranges(field: &str, ranges: Vec<pb::Range>) -> Result<Vec<Range<Lsn>>> {
    let range = |pb::Range { start, end }| {
        if start > end {
            return Err(Error::new(Code::Protocol, format!("{field} has a range from {start} back to {end}")));
        }
        Ok(Lsn(start)..Lsn(end))
    };
    ranges.into_iter().map(range).collect()
}

impl From<Reign> for pb::Reign {
    fn from(Reign { epoch, start, base, gaps }: Reign) -> Self {
        Self { epoch: Some(epoch.into()), start: start.0, base: base.0, gaps: ranges_pb(gaps) }
    }
}

impl TryFrom<pb::Reign> for Reign {
    type Error = Error;
    fn try_from(pb::Reign { epoch: reign, start, base, gaps }: pb::Reign) -> Result<Self> {
        let gaps = ranges("Reign.gaps", gaps)?;
        Ok(Self { epoch: epoch("Reign.epoch", reign)?, start: Lsn(start), base: Lsn(base), gaps })
    }
}

/// A share leaves out the epoch where it is the message's.
pub(super) fn share_pb(share: Share, message: Epoch) -> pb::Share {
    let Share { epoch, id, mode, holder, hold_until, body } = share;
    let mode = match mode {
        Mode::Stripe => pb::ShareMode::Stripe,
        Mode::Window => pb::ShareMode::Window,
    };
    pb::Share {
        epoch: (epoch != message).then(|| epoch.into()),
        id,
        mode: mode.into(),
        holder: id_bytes(holder.0),
        hold_until: hold_until.0,
        body,
    }
}

/// The body is still a slice of the receive buffer: whoever keeps it copies it.
pub(super) fn share(share: pb::Share, message: Epoch) -> Result<Share> {
    let mode = match choice("Share.mode", share.mode, Code::WrongVersion)? {
        pb::ShareMode::Unspecified => None,
        pb::ShareMode::Stripe => Some(Mode::Stripe),
        pb::ShareMode::Window => Some(Mode::Window),
    };
    Ok(Share {
        epoch: share.epoch.map_or(message, Epoch::from),
        id: share.id,
        mode: required("Share.mode", mode)?,
        holder: ClientId(id("Share.holder", &share.holder)?),
        hold_until: Lsn(share.hold_until),
        body: share.body,
    })
}
