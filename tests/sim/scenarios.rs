//! What the simulator found, as short stories: each once ended badly.

use tagalong::log::{GapPolicy, Level, Target, Time};
use tagalong::message::Role;
use tagalong::node::{Admin, RecoveryPolicy};

use crate::dice::Dice;
use crate::network::At;
use crate::plan::Plan;
use crate::world::World;

/// A calm world: two clients with caches on disk, quick disks, no faults but what the story has.
fn calm(change: impl FnOnce(&mut Plan)) -> World {
    let mut dice = Dice::new(1);
    let mut plan = Plan::new(&mut dice, None);
    plan.faults.clear();
    plan.heal_at = u64::MAX / 2;
    (plan.clients, plan.persistent, plan.calls, plan.think_us) = (2, 100, 40, 1_000);
    (plan.lan_us, plan.wan_us, plan.disk_us, plan.machine_us) = ((50, 100), (500, 1_000), (10, 50), (1, 10));
    (plan.queries, plan.odd_calls, plan.stable_writes, plan.payload_max) = (0, 0, 0, 0);
    plan.backup_at = Some(0);
    plan.policy = RecoveryPolicy::Wait;
    let primary = &mut plan.primary;
    primary.lowest = Level::Tagged;
    (primary.require_backup, primary.log_before_send, primary.reply_after_log) = (false, false, false);
    (primary.suspend_after_us, primary.expire_after_us) = (500_000, 0);
    (primary.delta_bytes_max, primary.window, primary.window_bytes) = (1 << 20, 64, 1 << 16);
    primary.policy = RecoveryPolicy::Wait;
    change(&mut plan);
    World::with_plan(plan, dice, false)
}

fn head(world: &World, node: usize) -> u64 {
    world.nodes[node].primary().map_or(0, |primary| primary.watermarks().head().0)
}

fn is_open(world: &World, node: usize) -> bool {
    world.nodes[node].primary().is_some_and(|primary| primary.status(Time(world.now)).status.role == Role::Primary)
}

fn in_sync(world: &World) -> bool {
    world.nodes.get(1).is_some_and(|node| node.disk.marks.as_ref().is_some_and(|marks| marks.in_sync))
}

fn heals(mut world: World) {
    world.plan.heal_at = 0;
    world.run();
    assert!(world.oracle.violation.is_none(), "{:?}", world.oracle.violation);
    assert!(world.converged, "{}", world.unfinished());
}

/// A primary that logs before it sends reads its log back when it starts, and got a tick meanwhile: an assertion took
/// the unstable part, not complete yet, for a broken one.
#[test]
fn a_log_is_read_back_while_the_world_goes_on() {
    let mut world = calm(|plan| plan.primary.log_before_send = true);
    world.until("some writes", |world| head(world, 0) > 12);
    world.crash_node(0);
    world.until("it is open again", |world| is_open(world, 0));
    heals(world);
}

/// A backup that was never in sync was promoted by force, and restarted before it had concluded. It then took itself
/// for in sync with the reign before, and accused the clients of knowing a checkpoint that it did not have.
#[test]
fn a_forced_promotion_remembers_that_it_was_forced() {
    let mut world = calm(|plan| {
        (plan.backup_at, plan.wan_us) = (Some(40_000), (4_000, 5_000));
        plan.primary.replication_window_bytes = 200;
    });
    world.until("the backup follows with all sessions", |world| {
        world.nodes.get(1).and_then(|node| node.backup()).is_some_and(|core| core.state().sessions().len() == 2)
    });
    world.block(At::Node(0), At::Node(1), 10_000_000);
    world.until("writes that only the primary has", |world| head(world, 0) > 20);
    assert!(!in_sync(&world));
    world.lose(0);
    world.oracle.on_forced();
    world.admin(1, Admin::Promote { force: true, policy: RecoveryPolicy::Wait });
    world.until("it is promoted", |world| world.nodes[1].primary().is_some());
    world.crash_node(1);
    world.until("it is up again", |world| world.nodes[1].primary().is_some());
    let accused = |world: &World| {
        let status = world.nodes[1].primary().and_then(|primary| primary.status(Time(world.now)).recovery);
        status.and_then(|recovery| recovery.conflict).is_some_and(|why| why.to_string().contains("in sync"))
    };
    world.until("it is open, or accuses somebody", |world| is_open(world, 1) || accused(world));
    assert!(!accused(&world), "{}", world.unfinished());
    heals(world);
}

/// The backup's word on a promotion whose marks were not durable yet was told to clients by its status.
#[test]
fn nobody_hears_of_an_epoch_that_is_not_promised_durably() {
    let mut world = calm(|plan| plan.disk_us = (5_000, 9_000));
    world.until("the backup is in sync", in_sync);
    world.admin(1, Admin::Promote { force: false, policy: RecoveryPolicy::Wait });
    let clients: Vec<u64> = world.streams.iter().filter(|(_, s)| s.has(At::Node(1))).map(|(id, _)| *id).collect();
    clients.into_iter().for_each(|id| world.break_stream(id, None));
    world.until("it is open", |world| is_open(world, 1));
    heals(world);
}

/// The primary was stopped while a backup attached, and the backup crashed before its mark was durable. The grant was
/// repeated to it only by an open primary, so that the stop never completed.
#[test]
fn an_orderly_stop_completes_while_a_backup_attaches() {
    let mut world = calm(|_| {});
    let named = |world: &World| {
        world.nodes[0].primary().is_some_and(|primary| matches!(primary.state().target(), Target::Backup(_)))
    };
    world.until("the backup is named", named);
    world.crash_node(1);
    world.admin(0, Admin::Stop);
    world.until("the stop is complete", |world| world.nodes[0].stopped);
    heals(world);
}

/// A service that requires a backup had sessions wait for one, and did not look at them again when it was in sync:
/// with nothing else going on they waited for ever.
#[test]
fn sessions_that_waited_for_a_backup_are_admitted() {
    let mut world = calm(|plan| {
        plan.primary.require_backup = true;
        plan.backup_at = Some(40_000);
    });
    world.until("a client is served", |world| {
        world.clients.iter().all(|client| client.core.as_ref().is_some_and(|core| core.attached().is_some()))
    });
    heals(world);
}

/// An operator ended a session twice. The second order outlived the session, and its client was neither told nor
/// served.
#[test]
fn a_session_that_was_ended_twice_hears_of_it() {
    let mut world = calm(|_| {});
    world.until("some writes", |world| head(world, 0) > 12);
    let client = world.clients[0].id;
    world.admin(0, Admin::EndSession(client));
    world.admin(0, Admin::EndSession(client));
    world.until("the client is told", |world| world.clients[0].ended);
    heals(world);
}

/// While the state machine was asked what to keep, a reporter left; the next question got the answer to the first.
#[test]
fn a_word_on_an_older_question_is_not_taken_for_the_answer() {
    let mut world = calm(|plan| {
        plan.persistent = 0;
        plan.clients = 4;
        plan.keys = 20;
        plan.machine_us = (3_000, 6_000);
    });
    world.until("the backup is in sync", in_sync);
    world.until("some writes", |world| head(world, 0) > 12);
    world.block(At::Node(0), At::Node(1), 10_000_000);
    let reached = head(&world, 0);
    world.until("writes that only clients hold", |world| head(world, 0) > reached + 12);
    world.crash_client(0);
    world.lose(0);
    world.admin(1, Admin::Promote { force: false, policy: RecoveryPolicy::Wait });
    let known = |world: &World| {
        let status = world.nodes[1].primary().and_then(|primary| primary.status(Time(world.now)).recovery);
        status.is_some_and(|recovery| recovery.reported >= 3 && recovery.known > recovery.base)
    };
    world.until("three have reported", |world| known(world) || is_open(world, 1));
    world.admin(1, Admin::Resolve(GapPolicy::Skip));
    world.step_node(1, tagalong::node::Input::Flush);
    world.crash_client(1);
    world.admin(1, Admin::Resolve(GapPolicy::Skip));
    world.until("it is open", |world| is_open(world, 1));
    heals(world);
}
