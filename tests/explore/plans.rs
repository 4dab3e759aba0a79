//! The configurations: for each rule one that is small, and shows what it is for; and the same with every rule on.

use tagalong::log::{GapPolicy, Level};
use tagalong::rule::Rule;

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
    tears: 0,
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

/// With which clients and faults some rules are missed.
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

/// A covered service with stripes of two, whose members wait for each other; both have written of late.
fn striped(name: &'static str, scripts: &[&[Call]]) -> Plan {
    let faults = Faults { disasters: 1, ticks: 4, ..NONE };
    let mut plan = Plan { faults, begin: wrote, ..Plan::covered(name, scripts) };
    plan.primary.stripe_wait_us = 1_000_000;
    plan
}

/// The first two have written, and that is stable.
fn wrote(world: &mut World) {
    world.call(0);
    world.call(1);
    world.settle();
    world.pass(100_000);
}

/// And the second has written once more, which waits in an open stripe, and is answered as it is stable.
fn wrote_again(world: &mut World) {
    wrote(world);
    world.call(1);
    world.settle();
    assert!(world.clients[1].view.first_open().is_none());
}

/// The second client does not reach the backup as yet.
fn apart(world: &mut World) {
    let between = |ends: &[crate::world::End; 2]| ends[0].at == At::Client(1) && ends[1].at == At::Node(1);
    let stream = *world.streams.iter().find(|(_, stream)| between(&stream.ends)).expect("a stream").0;
    world.break_stream(stream, true);
    world.settle();
}

/// The backup has all of the log, and was not granted.
fn ungranted(world: &mut World) {
    let end = world.nodes[0].durable();
    world.dial(At::Node(1), 0);
    world.settle_until(|world| world.nodes[1].durable() >= end);
    assert!(!world.nodes[1].marks.in_sync);
    (0..world.clients.len()).for_each(|client| world.dial(At::Client(client), 1));
    let link = *world.streams.iter().find(|(_, stream)| stream.ends[0].at == At::Node(1)).expect("a link").0;
    world.break_stream(link, true);
    world.settle();
}

/// The backup has the log of the first reign, and the primary, which lost that it has a backup, is in its second.
fn unknown(world: &mut World) {
    let end = world.nodes[0].durable();
    world.dial(At::Node(1), 0);
    world.settle_until(|world| world.nodes[1].durable() >= end);
    world.crash_node(0, 0, true);
    world.start_node(0);
    world.settle();
    world.dial(At::Client(0), 0);
    world.dial(At::Client(0), 1);
    world.settle();
}

/// Both have written and are answered; neither the backup nor the primary's disk has it, and the primary crashes.
fn tail_lost(world: &mut World) {
    let link = *world.streams.iter().find(|(_, stream)| stream.ends[0].at == At::Node(1)).expect("a link").0;
    world.break_stream(link, true);
    world.settle();
    world.call(0);
    world.settle_until(|world| world.clients[0].view.first_open().is_none());
    world.call(1);
    world.settle_until(|world| world.clients[1].view.first_open().is_none());
    world.crash_node(0, 0, true);
}

/// The second client wrote, then the first; the second is lost with the primary.
fn one_lost(world: &mut World) {
    let link = *world.streams.iter().find(|(_, stream)| stream.ends[0].at == At::Node(1)).expect("a link").0;
    world.break_stream(link, true);
    world.settle();
    world.call(1);
    world.settle_until(|world| world.clients[1].view.first_open().is_none());
    world.call(0);
    world.settle_until(|world| world.clients[0].view.first_open().is_none());
    world.crash_node(0, 0, true);
    world.nodes[0].edit().lost = true;
    world.lose_domain(1);
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
        case(&[UnknownEpochSuperseded], {
            let faults = takeover;
            let slow_disks = [true, false, false];
            Plan { faults, slow_disks, attached: false, force: true, begin: unknown, ..new("by force", &[&[W]]) }
        }),
        case(&[BackToBase], {
            let faults = Faults { primary_losses: 1, resolves: 1, ..NONE };
            let slow_disks = [true, false, false];
            let gaps = GapPolicy::Skip;
            let mut plan =
                Plan { faults, slow_disks, gaps, begin: tail_lost, ..new("a reign that never opens", &[&[W], &[W]]) };
            plan.primary.replication_window_bytes = 1;
            plan
        }),
        case(&[ReportEpoch], {
            let faults = Faults { primary_crashes: 1, ..NONE };
            Plan { faults, begin: one_lost, ..new("two takeovers", &[&[W], &[W]]) }
        }),
        case(
            &[CoverConfirmed],
            Plan { faults: Faults { disasters: 1, ticks: 4, ..NONE }, ..Plan::covered("disaster", &[&[C], &[], &[]]) },
        ),
        case(
            &[CoverWitness],
            Plan {
                faults: Faults { disasters: 1, ticks: 4, ..NONE },
                ..Plan::covered("disaster, seen", &[&[C], &[Q], &[]])
            },
        ),
        case(&[MembersByRequest], Plan { far: true, ..striped("stripe", &[&[C, C], &[C, C], &[]]) }),
        case(&[HoldStripe], striped("stripe, backup", &[&[C, C], &[C, C], &[]])),
        case(
            &[HoldersDrained],
            Plan { begin: wrote_again, ..striped("a member leaves", &[&[C, C], &[C, C, END], &[]]) },
        ),
        case(
            &[DistinctDomains],
            Plan {
                faults: Faults { disasters: 1, ticks: 4, ..NONE },
                domains: vec!["rack", "rack", "other"],
                far: true,
                ..Plan::covered("disaster, one rack", &[&[C, C], &[], &[]])
            },
        ),
        case(
            &[Custody],
            Plan {
                faults: Faults { client_losses: 1, disasters: 1, ticks: 4, ..NONE },
                firm: true,
                far: true,
                ..Plan::covered("two in a row", &[&[C], &[], &[]])
            },
        ),
        case(
            &[ConfirmByIncarnation],
            Plan {
                faults: Faults { tears: 1, disasters: 1, ticks: 4, ..NONE },
                far: true,
                ..Plan::covered("a torn cache", &[&[C], &[], &[]])
            },
        ),
        case(
            &[CoverEcho],
            Plan {
                faults: Faults { suspicions: 1, ticks: 4, ..NONE },
                begin: apart,
                ..Plan::covered("split, covered", &[&[S], &[Q]])
            },
        ),
        case(&[AbsentInSync], {
            let faults = Faults { disasters: 1, ticks: 4, ..NONE };
            Plan {
                faults,
                attached: false,
                force: true,
                begin: ungranted,
                ..Plan::covered("by force, covered", &[&[C], &[]])
            }
        }),
    ]
}

/// Larger worlds, and faults that come together, for the long form: with every rule on nothing may go wrong.
pub fn wide() -> Vec<Plan> {
    let new = Plan::new;
    let one = Faults { primary_losses: 1, ..NONE };
    let covered = Faults { disasters: 1, ticks: 4, ..NONE };
    let slow = [true, true, false];
    let logging = |mut plan: Plan| {
        plan.primary.log_before_send = true;
        plan
    };
    vec![
        Plan { faults: Faults { primary_crashes: 1, ..NONE }, slow_disks: slow, ..new("restart", &[&[W], &[W]]) },
        Plan {
            faults: Faults { primary_crashes: 1, primary_losses: 1, ..NONE },
            slow_disks: [true, false, false],
            ..new("restart, then lost", &[&[W]])
        },
        Plan {
            faults: Faults {
                breaks: 1,
                cuts: 1,
                client_crashes: 1,
                primary_crashes: 1,
                backup_crashes: 1,
                primary_losses: 1,
                ..NONE
            },
            ..new("everything once", &[&[W]])
        },
        logging(Plan {
            faults: Faults { primary_crashes: 1, primary_losses: 1, ..NONE },
            slow_disks: [true, false, false],
            ..new("log first, with a backup", &[&[W], &[Q]])
        }),
        serving(Plan { faults: one, ..new("local", &[&[W], &[W, Q]]) }, Level::Local),
        serving(Plan { faults: Faults { breaks: 1, ..one }, ..new("stable", &[&[W], &[Q]]) }, Level::Stable),
        Plan { faults: Faults { suspicions: 1, ..NONE }, ..new("split, tagged", &[&[W], &[Q]]) },
        Plan {
            faults: Faults { primary_crashes: 1, ..one },
            slow_disks: [false, true, false],
            ..new("crash in a takeover", &[&[W], &[W]])
        },
        Plan {
            faults: Faults { client_crashes: 1, ..one },
            slow_caches: true,
            ..new("client crash in a takeover", &[&[W], &[Q]])
        },
        Plan {
            faults: Faults { client_losses: 1, ..one },
            gaps: GapPolicy::Skip,
            ..new("a gap is skipped", &[&[W], &[W], &[W]])
        },
        suspending(Plan {
            faults: Faults { breaks: 1, ticks: 2, ..one },
            early_ticks: true,
            ..new("suspend, then takeover", &[&[W]])
        }),
        Plan { faults: one, batches: true, ..new("batches", &[&[W], &[W]]) },
        Plan { faults: Faults { breaks: 1, ..NONE }, batches: true, ..new("batches, a break", &[&[W, Q], &[W]]) },
        Plan { faults: Faults { breaks: 1, ..one }, ..new("close", &[&[W, END], &[W]]) },
        Plan { faults: Faults { ends: 1, breaks: 1, ..one }, ..new("an operator ends one", &[&[W], &[W]]) },
        Plan {
            faults: Faults { cuts: 1, primary_crashes: 1, suspicions: 1, ..NONE },
            attached: false,
            slow_disks: slow,
            ..new("attach, and crashes", &[&[W]])
        },
        Plan { faults: Faults { client_crashes: 1, ..one }, volatile: true, ..new("no caches", &[&[W], &[W]]) },
        Plan {
            faults: Faults { client_crashes: 1, ..covered },
            far: true,
            slow_caches: true,
            ..Plan::covered("covered, a client crash", &[&[C], &[Q], &[]])
        },
        Plan {
            faults: Faults { breaks: 1, ..covered },
            far: true,
            ..Plan::covered("covered, a break", &[&[C], &[C], &[]])
        },
        Plan {
            faults: Faults { primary_crashes: 1, ..covered },
            slow_disks: [true, false, false],
            ..Plan::covered("covered, a restart", &[&[C], &[], &[]])
        },
        Plan { batches: true, far: true, ..striped("covered, batches", &[&[C, C], &[C, C], &[]]) },
    ]
}

/// Missed within a few thousand states.
pub const QUICK: [Rule; 27] = [
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
    Rule::UnknownEpochSuperseded,
    Rule::ReportEpoch,
    Rule::DistinctDomains,
    Rule::Custody,
    Rule::AbsentInSync,
];

/// Whole within some ten thousand states.
pub const SMALL: [&str; 17] = [
    "takeover",
    "first open",
    "resume",
    "query first",
    "higher level",
    "concluded early",
    "concluded early, seen",
    "not in sync",
    "grant",
    "backup's disk",
    "read level",
    "log before send",
    "orderly stop",
    "by force",
    "two takeovers",
    "disaster",
    "two in a row",
];

pub fn all() -> Vec<Plan> {
    cases().into_iter().map(|case| case.plan).collect()
}
