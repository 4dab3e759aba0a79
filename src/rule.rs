//! Switches for the rules that carry the protocol's safety.
//!
//! Every rule below was found to be *needed*: without it some schedule of crashes loses or reorders data.
//! A test that claims to check the protocol must therefore notice when one is missing. In an ordinary build
//! `on` is a constant `true` and costs nothing; with the feature `seeded-bugs` a test may switch a rule off
//! on its own thread and must then see a violation.

/// A rule of the protocol that can be switched off in a test build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rule {
    /// A session is answered only once its `Open` is stable.
    OpenStable,
    /// A suspended session is served again only once its `Resume` is stable.
    ResumeStable,
    /// From the moment a `Suspend` is logged, nothing is accepted from or written to the session.
    SuspendFinal,
    /// A session is suspended only when its entries are all stable.
    SuspendDrained,
    /// Frames are accepted only on a stream of the primary's own epoch.
    StreamEpoch,
    /// Whatever reveals state up to LSN n carries the headers of unstable, unconfirmed entries up to n.
    Manifest,
    /// The manifest names the receiver's own entries, too.
    ManifestOwn,
    /// A resumed stream starts its manifests over.
    ManifestRestart,
    /// An entry is confirmed by the origin that holds its tag, not by being sent.
    ConfirmByOrigin,
    /// A client resends its unanswered commands in order.
    ResendInOrder,
    /// A superseded request number is never used again.
    SupersededFinal,
    /// A client releases only on a checkpoint of the entry's own epoch, or after a conclusion's verdict.
    ReleaseByEpoch,
    /// A promise is durable before any frame of the new epoch leaves.
    PromiseDurable,
    /// Epochs below the highest promised one are refused.
    RefuseOldEpoch,
    /// A node promoted without the `EpochStart` of the reign it followed goes back to that reign's base.
    BackToBase,
    /// Only items of the epoch of the last `EpochStart` in the recovering log take part in a rebuild.
    ReportEpoch,
    /// A report counts only while its reporter's stream stands.
    ReportStands,
    /// The roster is the log's at the base, and everybody on it is awaited.
    AwaitRoster,
    /// Past the highest observed LSN the rebuild goes on while the next entry can be supplied.
    RebuildPastObserved,
    /// What was held past the end of the rebuild and never answered goes back to in doubt.
    BackToInDoubt,
    /// The new reign opens only once its `EpochStart` is stable at the target.
    OpenStableEpoch,
    /// Whoever observed past the valid end, or a gap, is told that it was rolled back.
    TellRolledBack,
    /// An epoch that is not in the recovered log's table is superseded as a whole.
    UnknownEpochSuperseded,
    /// A late client is back on the roster only by a stable `Resume`.
    LateResume,
    /// Only a node with a durable in-sync mark is promoted without force.
    InSyncOnly,
    /// From sending the in-sync grant on, only that backup's acknowledgements move `stable`.
    GrantCounts,
    /// A service set to log before it sends lets nothing of an entry out before it is logged.
    LogBeforeSend,
    /// The mark of an orderly stop is erased durably before the next acknowledgement.
    CleanMarkErased,
    /// At lowest level `Stable` a query waits for an echo of the backup sent after it arrived.
    ReadEcho,
    /// A query's result is released only at the service's lowest level.
    ReadLevel,
    /// A client's cache holds a frame's tags before it confirms them or shows a result.
    CacheBeforeConfirm,
    /// The backup acknowledges only what is durable.
    AckDurable,
    /// What is only in doubt at its author takes part in a decoding, by client and request.
    MembersByRequest,
    /// An entry is covered only once every row of its stripes is confirmed by its holder.
    CoverConfirmed,
    /// An entry is covered only once its place is known to a witness or its author, beside the holders, or others hold copies.
    CoverWitness,
    /// The owners and holders of a stripe are in pairwise distinct failure domains.
    DistinctDomains,
    /// A stripe's members are held until the checkpoint passes the highest of them.
    HoldStripe,
    /// When a session breaks, what it held goes to others, and what it wrote is copied.
    Custody,
    /// What an older incarnation of a client's cache confirmed is void.
    ConfirmByIncarnation,
    /// A session that leaves is in no open stripe: nothing ordered later rests on what it holds.
    HoldersDrained,
    /// Where a takeover may conclude without *f* domains, a query waits for the echoes of *f* others.
    CoverEcho,
    /// Only a node in sync with the last reign concludes without *f* domains.
    AbsentInSync,
}

impl Rule {
    /// Every rule, in the order of the protocol.
    pub const ALL: [Rule; 42] = [
        Rule::OpenStable,
        Rule::ResumeStable,
        Rule::SuspendFinal,
        Rule::SuspendDrained,
        Rule::StreamEpoch,
        Rule::Manifest,
        Rule::ManifestOwn,
        Rule::ManifestRestart,
        Rule::ConfirmByOrigin,
        Rule::ResendInOrder,
        Rule::SupersededFinal,
        Rule::ReleaseByEpoch,
        Rule::PromiseDurable,
        Rule::RefuseOldEpoch,
        Rule::BackToBase,
        Rule::ReportEpoch,
        Rule::ReportStands,
        Rule::AwaitRoster,
        Rule::RebuildPastObserved,
        Rule::BackToInDoubt,
        Rule::OpenStableEpoch,
        Rule::TellRolledBack,
        Rule::UnknownEpochSuperseded,
        Rule::LateResume,
        Rule::InSyncOnly,
        Rule::GrantCounts,
        Rule::LogBeforeSend,
        Rule::CleanMarkErased,
        Rule::ReadEcho,
        Rule::ReadLevel,
        Rule::CacheBeforeConfirm,
        Rule::AckDurable,
        Rule::MembersByRequest,
        Rule::CoverConfirmed,
        Rule::CoverWitness,
        Rule::DistinctDomains,
        Rule::HoldStripe,
        Rule::Custody,
        Rule::ConfirmByIncarnation,
        Rule::HoldersDrained,
        Rule::CoverEcho,
        Rule::AbsentInSync,
    ];
}

#[cfg(feature = "seeded-bugs")]
mod switches {
    use super::Rule;
    use std::cell::Cell;

    thread_local!(static OFF: Cell<Option<Rule>> = const { Cell::new(None) });

    /// Whether `rule` is in force on this thread.
    pub fn on(rule: Rule) -> bool {
        OFF.get() != Some(rule)
    }

    /// Switches `rule` off on this thread (and every other one on), or all on with `None`.
    pub fn switch_off(rule: Option<Rule>) {
        OFF.set(rule);
    }
}

#[cfg(feature = "seeded-bugs")]
pub use switches::{on, switch_off};

/// Whether `rule` is in force: always, in an ordinary build.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub(crate) const fn on(_rule: Rule) -> bool {
    true
}
