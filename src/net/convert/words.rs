//! What every stream is made of: identities, epochs, digests, headers, records, tags, shares.

use std::ops::Range;

use bytes::Bytes;

use super::{choice, pb, required};
use crate::error::{Code, Error, Result};
use crate::log::{
    Body, ClientId, Digest, Epoch, EpochStart, GapPolicy, Header, Level, Lsn, NodeId, Origin, Reign, Request,
    SessionInfo, SessionRole, Target, Time,
};
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

impl From<Digest> for pb::Digest {
    fn from(Digest { algorithm, value }: Digest) -> Self {
        Self { algorithm: algorithm.into(), value }
    }
}

/// Absent where there is none: most system entries have neither a payload nor a reply.
pub(super) fn digest_pb(digest: Digest) -> Option<pb::Digest> {
    (digest != Digest::default()).then(|| digest.into())
}

pub(super) fn digest(field: &str, digest: Option<pb::Digest>) -> Result<Digest> {
    let pb::Digest { algorithm, value } = digest.unwrap_or_default();
    let algorithm = u8::try_from(algorithm).map_err(|_| {
        Error::new(Code::Protocol, format!("{field} names algorithm {algorithm}; identifiers are below 256"))
    })?;
    Ok(Digest { algorithm, value })
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

impl From<EpochStart> for pb::EpochStart {
    fn from(start: EpochStart) -> Self {
        Self {
            previous: Some(start.previous.into()),
            base: start.base.0,
            observed: start.observed.0,
            f: start.f.into(),
            lowest: pb::Level::from(start.lowest).into(),
            log_before_send: start.log_before_send,
            target: Some(start.target.into()),
            policy: policy_pb(start.policy).into(),
            missing: client_ids(start.missing),
            excluded: client_ids(start.excluded),
            gaps: ranges_pb(start.gaps),
        }
    }
}

impl TryFrom<pb::EpochStart> for EpochStart {
    type Error = Error;
    fn try_from(start: pb::EpochStart) -> Result<Self> {
        let lowest = level("EpochStart.lowest", start.lowest, Code::UnknownKind)?;
        Ok(Self {
            previous: known(start.previous),
            base: Lsn(start.base),
            observed: Lsn(start.observed),
            f: domains("EpochStart.f", start.f)?,
            lowest: required("EpochStart.lowest", lowest)?,
            log_before_send: start.log_before_send,
            target: target("EpochStart.target", start.target, Code::UnknownKind)?,
            policy: policy("EpochStart.policy", start.policy, Code::UnknownKind)?,
            missing: clients("EpochStart.missing", &start.missing)?,
            excluded: clients("EpochStart.excluded", &start.excluded)?,
            gaps: ranges("EpochStart.gaps", start.gaps)?,
        })
    }
}

impl From<Body> for pb::header::Body {
    fn from(body: Body) -> Self {
        let unit = pb::Unit {};
        match body {
            Body::Command => Self::Command(unit),
            Body::Noop => Self::Noop(unit),
            Body::Open(SessionInfo { incarnation, domain, role }) => {
                Self::Open(pb::Open { incarnation, domain, role: pb::SessionRole::from(role).into() })
            }
            Body::Suspend => Self::Suspend(unit),
            Body::Resume(incarnation) => Self::Resume(incarnation),
            Body::Close => Self::Close(unit),
            Body::Expire => Self::Expire(unit),
            Body::Config(target) => Self::Config(target.into()),
            Body::EpochStart(start) => Self::EpochStart(Box::new((*start).into())),
        }
    }
}

impl TryFrom<pb::header::Body> for Body {
    type Error = Error;
    fn try_from(body: pb::header::Body) -> Result<Self> {
        Ok(match body {
            pb::header::Body::Command(pb::Unit {}) => Self::Command,
            pb::header::Body::Noop(pb::Unit {}) => Self::Noop,
            pb::header::Body::Open(pb::Open { incarnation, domain, role }) => {
                let role = session_role("Open.role", role, Code::UnknownKind)?;
                Self::Open(SessionInfo { incarnation, domain, role })
            }
            pb::header::Body::Suspend(pb::Unit {}) => Self::Suspend,
            pb::header::Body::Resume(incarnation) => Self::Resume(incarnation),
            pb::header::Body::Close(pb::Unit {}) => Self::Close,
            pb::header::Body::Expire(pb::Unit {}) => Self::Expire,
            pb::header::Body::Config(to) => Self::Config(target("Header.config", Some(to), Code::UnknownKind)?),
            pb::header::Body::EpochStart(start) => Self::EpochStart(Box::new((*start).try_into()?)),
        })
    }
}

impl From<Origin> for pb::Origin {
    fn from(Origin { client, request }: Origin) -> Self {
        Self { client: id_bytes(client.0), request: request.0 }
    }
}

impl TryFrom<pb::Origin> for Origin {
    type Error = Error;
    fn try_from(pb::Origin { client, request }: pb::Origin) -> Result<Self> {
        Ok(Self { client: ClientId(id("Origin.client", &client)?), request: Request(request) })
    }
}

impl From<Header> for pb::Header {
    fn from(header: Header) -> Self {
        Self {
            epoch: Some(header.epoch.into()),
            lsn: header.lsn.0,
            origin: header.origin.map(pb::Origin::from),
            time_us: header.time.0,
            answered: header.answered.0,
            length: header.length,
            digest: digest_pb(header.digest),
            body: Some(header.body.into()),
        }
    }
}

impl TryFrom<pb::Header> for Header {
    type Error = Error;
    fn try_from(header: pb::Header) -> Result<Self> {
        let Some(body) = header.body else {
            let why = format!("Header.body at LSN {} is of a kind this build does not know", header.lsn);
            return Err(Error::new(Code::UnknownKind, why));
        };
        Ok(Self {
            epoch: epoch("Header.epoch", header.epoch)?,
            lsn: Lsn(header.lsn),
            body: body.try_into()?,
            origin: header.origin.map(Origin::try_from).transpose()?,
            time: Time(header.time_us),
            answered: Request(header.answered),
            length: header.length,
            digest: digest("Header.digest", header.digest)?,
        })
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
