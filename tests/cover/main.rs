//! Coverage: whatever is covered survives, whoever is lost.
//!
//! Random histories of a primary and its clients ([`world`]), and after every step an oracle ([`oracle`]) that asks, of
//! every set of *f* failure domains, whether those who are left could rebuild what the mark had passed. Each rule that
//! the promise rests on is switched off once, and has to be missed.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod bodies;
mod figures;
mod oracle;
mod restart;
mod scenarios;
mod windows;
mod world;

use oracle::{Looked, Violation};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tagalong::log::Level;
use tagalong::share::cover::CoverSettings;
use world::{Cache, Flush, HERE, Plan, Site, Step, World};

const AMPLE: u64 = 1 << 40;

/// Failure domains: none declared, the primary's own, and some that several clients may share.
fn site(room: impl Strategy<Value = u64>) -> impl Strategy<Value = Site> {
    let domain = prop_oneof![8 => Just(""), 1 => Just(HERE), 3 => Just("a"), 2 => Just("b"), 1 => Just("c")];
    (domain, room).prop_map(|(domain, room)| Site { domain, room })
}

fn any_room() -> impl Strategy<Value = u64> {
    prop_oneof![10 => Just(AMPLE), 1 => Just(0), 1 => 200..2_000u64, 1 => 2_000..50_000u64]
}

fn ample_or_none() -> impl Strategy<Value = u64> {
    prop_oneof![10 => Just(AMPLE), 1 => Just(0)]
}

/// Mostly small; now and then, several segments.
fn length(several: u32) -> impl Strategy<Value = u32> {
    let large = prop_oneof![Just(65_535u32), Just(65_536), Just(65_537), 100_000..200_000u32];
    prop_oneof![20 => 0..=40u32, 60 => 16..600u32, 10 => 600..5_000u32, several => large]
}

fn level() -> impl Strategy<Value = Level> {
    prop_oneof![3 => Just(Level::Tagged), 4 => Just(Level::Covered), 1 => Just(Level::Stable)]
}

fn step(several: u32) -> impl Strategy<Value = Step> {
    let client = || 0..64usize;
    let cache = prop_oneof![4 => Just(Cache::Same), 2 => Just(Cache::Reopened), 3 => Just(Cache::Torn), 2 => Just(Cache::Empty)];
    prop_oneof![
        30 => (client(), length(several), level())
            .prop_map(|(client, length, level)| Step::Write { client, length, level }),
        1 => client().prop_map(|client| Step::Withdrawn { client }),
        2 => (client(), length(several)).prop_map(|(client, length)| Step::Orphan { client, length }),
        1 => any::<bool>().prop_map(|of_session| Step::System { of_session }),
        14 => (client(), 1..6usize).prop_map(|(client, most)| Step::Deliver { client, most }),
        14 => (client(), any::<usize>(), 1..6usize)
            .prop_map(|(client, at, most)| Step::Confirm { client, at: at % 1000, most }),
        4 => client().prop_map(|client| Step::Break { client }),
        5 => (client(), cache).prop_map(|(client, cache)| Step::Return { client, cache }),
        2 => client().prop_map(|client| Step::Retire { client }),
        5 => (1..8u64).prop_map(|by| Step::Stabilize { by }),
        5 => (0..1_500u64).prop_map(|us| Step::Pass { us }),
        1 => (client(), 0..3_000u64).prop_map(|(client, cost)| Step::Lend { client, cost }),
        6 => option::weighted(0.4, client()).prop_map(|but| Step::Calm { but }),
        6 => option::weighted(0.4, client()).prop_map(|but| Step::Arrive { but }),
    ]
}

fn flush() -> impl Strategy<Value = Flush> {
    prop_oneof![2 => Just(Flush::Not), 3 => Just(Flush::Coming), 2 => Just(Flush::Idle)]
}

fn settings(f: impl Strategy<Value = u8>, custody: impl Strategy<Value = u64>) -> impl Strategy<Value = CoverSettings> {
    let patience = prop_oneof![Just(500u64), Just(3_000), Just(1_000_000)];
    (f, 1..=5usize, custody, patience).prop_map(|(f, members, custody_bytes_max, patience_us)| CoverSettings {
        f,
        members,
        wait_us: 1_000,
        custody_bytes_max,
        patience_us,
    })
}

fn any_custody() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(u64::MAX), 1 => Just(0), 2 => 100..3_000u64]
}

fn plan(
    settings: impl Strategy<Value = CoverSettings>,
    room: impl Strategy<Value = u64>,
    several: u32,
) -> impl Strategy<Value = Plan> {
    let steps = vec((step(several), flush()), 1..120);
    (settings, any::<bool>(), vec(site(room), 2..9), steps).prop_map(|(settings, tags_first, sites, steps)| Plan {
        settings,
        tags_first,
        sites,
        steps,
    })
}

fn any_plan(several: u32) -> impl Strategy<Value = Plan> {
    let f = prop_oneof![1 => Just(0u8), 6 => Just(1), 4 => Just(2), 1 => Just(3)];
    plan(settings(f, any_custody()), any_room(), several)
}

/// Who keeps anything has room for all of it, and what a leaver wrote is always copied.
fn healthy_plan() -> impl Strategy<Value = Plan> {
    plan(settings(0..=2u8, Just(u64::MAX)), ample_or_none(), 1)
}

/// Plays a history; the oracle looks after every step.
fn play(plan: &Plan, looked: &mut Looked) -> Result<World, Violation> {
    let mut world = World::new(plan);
    for (step, flush) in &plan.steps {
        world.step(step, *flush);
        oracle::check(&world, matches!(step, Step::Calm { .. }), looked)?;
    }
    oracle::check(&world, true, looked)?;
    Ok(world)
}

/// As many as are asked for, or as there is time for in every run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(400, |cases| cases.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn whatever_is_covered_survives(plan in any_plan(1)) {
        let mut looked = Looked::default();
        let outcome = play(&plan, &mut looked);
        prop_assert!(outcome.is_ok(), "{:?}", outcome.err());
        if std::env::var("SHOW").is_ok() { eprintln!("{looked:?}"); }
    }

    /// Whose segments lie in several stripes, which are sealed, given away and confirmed each in its own time.
    #[test]
    fn entries_of_several_segments_survive(plan in any_plan(300)) {
        let outcome = play(&plan, &mut Looked::default());
        prop_assert!(outcome.is_ok(), "{:?}", outcome.err());
    }

    #[test]
    fn with_enough_domains_everything_is_covered_and_drains(plan in healthy_plan(), early in any::<bool>()) {
        let mut world = World::new(&plan);
        plan.steps.iter().for_each(|(step, flush)| world.step(step, *flush));
        world.heal();
        if world.holding_domains() > world.f() {
            if !early {
                world.calm(None);
                if world.f() > 0 {
                    prop_assert_eq!(world.cover.covered(), world.head(), "covered, with nothing stable");
                }
            }
            // And then the ends of those who asked for theirs.
            for _ in 0..2 {
                world.stabilize(world.head());
                world.calm(None);
            }
            prop_assert_eq!(world.cover.covered(), world.head());
            prop_assert_eq!(world.cover.settled(), world.head());
            prop_assert_eq!(world.cover.bytes(), 0);
            prop_assert_eq!(world.cover.held(), (0, 0));
            prop_assert!(!world.cover.is_short());
            for client in &world.clients {
                prop_assert!(client.image.commands.is_empty() && client.image.shares.is_empty());
                prop_assert_eq!((client.image.bytes, client.image.share_bytes), (0, 0));
            }
        }
    }
}

/// Plays histories with a rule switched off until one of them loses something.
#[cfg(feature = "seeded-bugs")]
mod without {
    use super::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use tagalong::rule::{Rule, switch_off};

    fn is_missed(rule: Rule, most: u32) {
        let mut runner = TestRunner::deterministic();
        let histories = any_plan(1);
        switch_off(Some(rule));
        for n in 1..=most {
            let plan = histories.new_tree(&mut runner).unwrap().current();
            if let Err(violation) = play(&plan, &mut Looked::default()) {
                switch_off(None);
                println!("without {rule:?}: history {n} loses entry {}: {}", violation.lsn, violation.why);
                return;
            }
        }
        panic!("{most} histories without {rule:?} lost nothing");
    }

    #[test]
    fn what_is_in_doubt_does_not_take_part() {
        is_missed(Rule::MembersByRequest, 2000);
    }

    #[test]
    fn nobody_waits_for_the_confirms_of_holders() {
        is_missed(Rule::CoverConfirmed, 2000);
    }

    #[test]
    fn nobody_waits_for_a_witness() {
        is_missed(Rule::CoverWitness, 2000);
    }

    #[test]
    fn members_are_released_at_their_own_checkpoint() {
        is_missed(Rule::HoldStripe, 2000);
    }

    #[test]
    fn nothing_is_repaired() {
        is_missed(Rule::Custody, 2000);
    }

    #[test]
    fn confirms_outlive_the_cache() {
        is_missed(Rule::ConfirmByIncarnation, 2000);
    }

    #[test]
    fn holders_share_a_domain() {
        is_missed(Rule::DistinctDomains, 2000);
    }
}
