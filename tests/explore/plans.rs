//! The configurations: for each rule one that is small, and shows what it is for; and the same with every rule on.

use tagalong::log::{GapPolicy, Level};
use tagalong::rule::Rule;

use crate::moves::Move;
use crate::plan::{Call, Faults, Plan};
use crate::world::{At, World};

const W: Call = Call::Write(Level::Tagged);
const S: Call = Call::Write(Level::Stable);
const C: Call = Call::Write(Level::Covered);
const Q: Call = Call::Query(Level::Tagged);
const END: Call = Call::Close;

const NONE: Faults = Faults {
    breaks: 0,
    cuts: 0,
    client_crashes: 0,
    client_losses: 0,
    primary_crashes: 0,
    backup_crashes: 0,
    primary_losses: 0,
    disasters: 0,
    suspicions: 0,
    resolves: 0,
    stops: 0,
    ends: 0,
    ghosts: 0,
    ticks: 0,
};

/// With which clients and faults a rule is missed, and how many states that may take.
pub struct Case {
    pub rules: &'static [Rule],
    pub plan: Plan,
}

fn case(rules: &'static [Rule], plan: Plan) -> Case {
    Case { rules, plan }
}

/// The client was suspended, and may come back.
fn suspended(world: &mut World) {
    let id = world.clients[0].session.expect("it has a session");
    world.break_stream(id, true);
    world.settle();
    world.pass(10_000);
    let known = world.nodes[0].primary().and_then(|primary| primary.state().session(world.clients[0].id).cloned());
    assert_eq!(known.map(|session| session.standing), Some(tagalong::session::Standing::Suspended));
}

fn serving(mut plan: Plan, lowest: Level) -> Plan {
    plan.primary.lowest = lowest;
    plan
}

fn suspending(mut plan: Plan) -> Plan {
    plan.primary.suspend_after_us = 1;
    plan
}

pub fn cases() -> Vec<Case> {
    use Rule::*;
    let new = Plan::new;
    let takeover = Faults { primary_losses: 1, ..NONE };
    vec![
        case(
            &[Manifest, ConfirmByOrigin, AwaitRoster, PromiseDurable],
            Plan { faults: takeover, ..new("takeover", &[&[W], &[W]]) },
        ),
        case(
            &[OpenStableEpoch],
            Plan { faults: takeover, slow_disks: [false, true, false], ..new("takeover, slow disk", &[&[W], &[W]]) },
        ),
        case(&[OpenStable], Plan { faults: takeover, joined: 0, ..new("first open", &[&[W]]) }),
        case(&[ResumeStable], suspending(Plan { faults: takeover, begin: suspended, ..new("resume", &[&[W]]) })),
        case(
            &[SuspendFinal],
            suspending(Plan {
                faults: Faults { breaks: 1, ticks: 2, ..NONE },
                early_ticks: true,
                slow_machine: true,
                ..new("suspend, slow machine", &[&[W], &[W]])
            }),
        ),
        case(
            &[SuspendDrained],
            suspending(Plan {
                faults: Faults { breaks: 1, ticks: 3, ..NONE },
                early_ticks: true,
                ..new("suspend", &[&[W, W]])
            }),
        ),
        case(
            &[ManifestRestart, ResendInOrder],
            Plan { faults: Faults { breaks: 1, ..NONE }, ..new("a stream breaks", &[&[W, W], &[Q]]) },
        ),
        case(
            &[ManifestOwn],
            Plan { faults: Faults { breaks: 1, ..NONE }, queries_first: true, ..new("query first", &[&[W, Q]]) },
        ),
        case(&[RebuildPastObserved], Plan { faults: takeover, ..new("higher level", &[&[S], &[W]]) }),
        case(
            &[SupersededFinal, ReportStands],
            Plan {
                faults: Faults { primary_losses: 1, client_losses: 1, ..NONE },
                ..new("a client is lost", &[&[W], &[W]])
            },
        ),
        case(
            &[BackToInDoubt],
            Plan {
                faults: Faults { primary_losses: 1, client_losses: 1, ..NONE },
                ..new("lost, higher level", &[&[S], &[W]])
            },
        ),
        case(
            &[ReleaseByEpoch, LateResume],
            Plan { faults: Faults { primary_losses: 1, resolves: 1, ..NONE }, ..new("concluded early", &[&[W]]) },
        ),
        case(
            &[TellRolledBack],
            Plan {
                faults: Faults { primary_losses: 1, resolves: 1, ..NONE },
                ..new("concluded early, seen", &[&[W, Q]])
            },
        ),
        case(&[InSyncOnly], Plan { faults: takeover, attached: false, ..new("not in sync", &[&[W]]) }),
        case(&[GrantCounts], Plan { attached: false, ..new("grant", &[&[W]]) }),
        case(&[AckDurable], Plan { slow_disks: [false, true, false], ..new("backup's disk", &[&[W]]) }),
        case(
            &[CacheBeforeConfirm],
            Plan {
                slow_caches: true,
                faults: Faults { client_crashes: 1, ..NONE },
                ..new("client's cache", &[&[W], &[Q]])
            },
        ),
        case(&[ReadLevel], serving(new("read level", &[&[W], &[Q]]), Level::Stable)),
        case(
            &[ReadEcho],
            serving(Plan { faults: Faults { suspicions: 1, ..NONE }, ..new("split", &[&[W], &[Q]]) }, Level::Stable),
        ),
        case(&[LogBeforeSend], {
            let mut plan = Plan {
                slow_disks: [true, false, false],
                backup: false,
                faults: Faults { primary_crashes: 1, ..NONE },
                ..new("log before send", &[&[W], &[W]])
            };
            plan.primary.log_before_send = true;
            plan
        }),
        case(
            &[CleanMarkErased],
            Plan {
                slow_disks: [true, false, false],
                backup: false,
                faults: Faults { primary_crashes: 1, stops: 1, ..NONE },
                ..new("orderly stop", &[&[W]])
            },
        ),
        case(
            &[StreamEpoch, RefuseOldEpoch],
            Plan { faults: Faults { primary_crashes: 1, ghosts: 1, ..NONE }, ..new("stragglers", &[&[W, W]]) },
        ),
        case(
            &[CoverConfirmed, AbsentInSync],
            Plan { faults: Faults { disasters: 1, ticks: 4, ..NONE }, ..Plan::covered("disaster", &[&[C], &[], &[]]) },
        ),
        case(
            &[MembersByRequest, HoldStripe],
            Plan {
                faults: Faults { disasters: 1, ticks: 4, ..NONE },
                ..Plan::covered("disaster, two", &[&[C], &[C], &[]])
            },
        ),
        case(
            &[CoverOrigin],
            Plan {
                faults: Faults { disasters: 1, ticks: 4, ..NONE },
                ..Plan::covered("disaster, seen", &[&[C], &[Q], &[]])
            },
        ),
        case(
            &[DistinctDomains],
            Plan {
                faults: Faults { disasters: 1, ticks: 4, ..NONE },
                domains: vec!["rack", "rack", "other"],
                ..Plan::covered("disaster, one rack", &[&[C], &[], &[]])
            },
        ),
        case(
            &[Custody],
            Plan {
                faults: Faults { client_losses: 1, disasters: 1, ticks: 4, ..NONE },
                slow_disks: [false, true, false],
                ..Plan::covered("two in a row", &[&[C], &[], &[], &[]])
            },
        ),
        case(
            &[HoldersDrained],
            Plan {
                faults: Faults { disasters: 1, ticks: 4, ..NONE },
                ..Plan::covered("a holder leaves", &[&[C], &[END], &[END], &[]])
            },
        ),
        case(
            &[CoverEcho],
            Plan {
                faults: Faults { suspicions: 1, ticks: 4, ..NONE },
                ..Plan::covered("split, covered", &[&[C], &[Q], &[]])
            },
        ),
    ]
}

/// Missed within a few thousand states.
pub const QUICK: [Rule; 22] = [
    Rule::OpenStable,
    Rule::ResumeStable,
    Rule::SuspendDrained,
    Rule::Manifest,
    Rule::ManifestOwn,
    Rule::ConfirmByOrigin,
    Rule::ReleaseByEpoch,
    Rule::PromiseDurable,
    Rule::RefuseOldEpoch,
    Rule::AwaitRoster,
    Rule::RebuildPastObserved,
    Rule::OpenStableEpoch,
    Rule::TellRolledBack,
    Rule::LateResume,
    Rule::InSyncOnly,
    Rule::GrantCounts,
    Rule::LogBeforeSend,
    Rule::CleanMarkErased,
    Rule::ReadLevel,
    Rule::CacheBeforeConfirm,
    Rule::AckDurable,
    Rule::CoverConfirmed,
];

pub fn all() -> Vec<Plan> {
    cases().into_iter().map(|case| case.plan).collect()
}

#[allow(dead_code)]
const UNUSED: (Call, Call, GapPolicy, Option<Move>, Option<At>) = (C, END, GapPolicy::Skip, None, None);
