//! What operators ask and are told. Both directions: a node serves it, the command line reads it.

use super::words::{self, client_ids, clients, id, id_bytes, ranges, ranges_pb};
use super::{pb, required};
use crate::error::{Code, Error, Result};
use crate::log::{ClientId, GapPolicy, Lsn};
use crate::message::{NodeStatus, RecoveryStatus, SessionStatus};
use crate::node::{Admin, RecoveryPolicy};

/// The request whose conversion gives [`Admin::Promote`].
pub(in crate::net) fn promote_request(force: bool, policy: RecoveryPolicy) -> pb::PromoteRequest {
    let (conclude, soft_us, hard_us) = match policy {
        RecoveryPolicy::Wait => (None, 0, 0),
        RecoveryPolicy::Conclude { gaps, soft_us, hard_us } => (Some(gaps), soft_us, hard_us),
    };
    pb::PromoteRequest { force, conclude: words::policy_pb(conclude).into(), soft_us, hard_us }
}

impl TryFrom<pb::PromoteRequest> for Admin {
    type Error = Error;
    fn try_from(request: pb::PromoteRequest) -> Result<Self> {
        let pb::PromoteRequest { force, conclude, soft_us, hard_us } = request;
        let policy = match words::policy("PromoteRequest.conclude", conclude, Code::WrongVersion)? {
            Some(gaps) => RecoveryPolicy::Conclude { gaps, soft_us, hard_us },
            None if soft_us == 0 && hard_us == 0 => RecoveryPolicy::Wait,
            None => {
                // Somebody expects the recovery to conclude by itself: waiting for ever would surprise them.
                let why = "PromoteRequest.soft_us and hard_us say when to conclude, but conclude is missing";
                return Err(Error::new(Code::Protocol, why));
            }
        };
        Ok(Self::Promote { force, policy })
    }
}

impl From<GapPolicy> for pb::ResolveRequest {
    fn from(policy: GapPolicy) -> Self {
        Self { policy: words::policy_pb(Some(policy)).into() }
    }
}

impl TryFrom<pb::ResolveRequest> for GapPolicy {
    type Error = Error;
    fn try_from(request: pb::ResolveRequest) -> Result<Self> {
        let field = "ResolveRequest.policy";
        required(field, words::policy(field, request.policy, Code::WrongVersion)?)
    }
}

impl From<ClientId> for pb::ClientRequest {
    fn from(client: ClientId) -> Self {
        Self { client: id_bytes(client.0) }
    }
}

impl TryFrom<pb::ClientRequest> for ClientId {
    type Error = Error;
    fn try_from(request: pb::ClientRequest) -> Result<Self> {
        id("ClientRequest.client", &request.client).map(Self)
    }
}

impl From<SessionStatus> for pb::SessionStatus {
    fn from(status: SessionStatus) -> Self {
        Self {
            client: id_bytes(status.client.0),
            domain: status.domain,
            role: pb::SessionRole::from(status.role).into(),
            state: status.state,
            connected: status.connected,
            last: status.last.0,
            held_entries: status.held_entries,
            held_bytes: status.held_bytes,
            share_bytes: status.share_bytes,
        }
    }
}

impl TryFrom<pb::SessionStatus> for SessionStatus {
    type Error = Error;
    fn try_from(status: pb::SessionStatus) -> Result<Self> {
        Ok(Self {
            client: ClientId(id("SessionStatus.client", &status.client)?),
            domain: status.domain,
            role: words::session_role("SessionStatus.role", status.role, Code::WrongVersion)?,
            state: status.state,
            connected: status.connected,
            last: Lsn(status.last),
            held_entries: status.held_entries,
            held_bytes: status.held_bytes,
            share_bytes: status.share_bytes,
        })
    }
}

fn count(field: &str, number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_| Error::new(Code::Protocol, format!("{field} is absurd: {number}")))
}

impl From<RecoveryStatus> for pb::RecoveryStatus {
    fn from(status: RecoveryStatus) -> Self {
        Self {
            phase: status.phase,
            base: status.base.0,
            observed: status.observed.0,
            known: status.known.0,
            reported: status.reported as u64,
            roster: status.roster as u64,
            awaited: client_ids(status.awaited),
            pulled_bytes: status.pulled_bytes,
            wanted_bytes: status.wanted_bytes,
            pulled_shares: status.pulled_shares,
            shares: status.shares,
            decoded: status.decoded,
            missing: ranges_pb(status.missing),
            lost_by_stop: status.lost_by_stop,
            conflict: status.conflict.map(pb::Error::from),
            accused: client_ids(status.accused),
        }
    }
}

impl TryFrom<pb::RecoveryStatus> for RecoveryStatus {
    type Error = Error;
    fn try_from(status: pb::RecoveryStatus) -> Result<Self> {
        Ok(Self {
            phase: status.phase,
            base: Lsn(status.base),
            observed: Lsn(status.observed),
            known: Lsn(status.known),
            reported: count("RecoveryStatus.reported", status.reported)?,
            roster: count("RecoveryStatus.roster", status.roster)?,
            awaited: clients("RecoveryStatus.awaited", &status.awaited)?,
            pulled_bytes: status.pulled_bytes,
            wanted_bytes: status.wanted_bytes,
            pulled_shares: status.pulled_shares,
            shares: status.shares,
            decoded: status.decoded,
            missing: ranges("RecoveryStatus.missing", status.missing)?,
            lost_by_stop: status.lost_by_stop,
            conflict: status.conflict.map(Error::from),
            accused: clients("RecoveryStatus.accused", &status.accused)?,
        })
    }
}

impl From<NodeStatus> for pb::NodeStatus {
    fn from(node: NodeStatus) -> Self {
        Self {
            status: Some(node.status.into()),
            head: node.head.0,
            logged: node.logged.0,
            stable: node.stable.0,
            covered: node.covered.0,
            f: node.f.into(),
            short: node.short,
            shares: node.shares,
            share_bytes: node.share_bytes,
            covered_entries: node.covered_entries,
            fill_us: node.fill_us,
            confirm_us: node.confirm_us,
            target: Some(node.target.into()),
            delta_entries: node.delta_entries,
            delta_bytes: node.delta_bytes,
            delta_age_us: node.delta_age_us,
            waiting_writes: node.waiting_writes,
            in_sync: node.in_sync,
            connected: node.connected,
            sessions: node.sessions.into_iter().map(pb::SessionStatus::from).collect(),
            recovery: node.recovery.map(pb::RecoveryStatus::from),
            failure: node.failure.map(pb::Error::from),
        }
    }
}

impl TryFrom<pb::NodeStatus> for NodeStatus {
    type Error = Error;
    fn try_from(node: pb::NodeStatus) -> Result<Self> {
        Ok(Self {
            status: required("NodeStatus.status", node.status)?.try_into()?,
            head: Lsn(node.head),
            logged: Lsn(node.logged),
            stable: Lsn(node.stable),
            covered: Lsn(node.covered),
            f: words::domains("NodeStatus.f", node.f)?,
            short: node.short,
            shares: node.shares,
            share_bytes: node.share_bytes,
            covered_entries: node.covered_entries,
            fill_us: node.fill_us,
            confirm_us: node.confirm_us,
            target: words::target("NodeStatus.target", node.target, Code::WrongVersion)?,
            delta_entries: node.delta_entries,
            delta_bytes: node.delta_bytes,
            delta_age_us: node.delta_age_us,
            waiting_writes: node.waiting_writes,
            in_sync: node.in_sync,
            connected: node.connected,
            sessions: node.sessions.into_iter().map(SessionStatus::try_from).collect::<Result<_>>()?,
            recovery: node.recovery.map(RecoveryStatus::try_from).transpose()?,
            failure: node.failure.map(Error::from),
        })
    }
}
