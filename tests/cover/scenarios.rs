//! Histories that once went wrong, one story each.

use tagalong::log::{Level, Lsn};
use tagalong::share::cover::CoverSettings;

use crate::oracle::{self, Looked};
use crate::world::{Cache, Flush, Plan, Site, Step, World};

/// One failure domain may be lost, and each client is one.
fn world(rooms: &[u64]) -> World {
    world_of(rooms, true)
}

fn world_of(rooms: &[u64], tags_first: bool) -> World {
    let settings =
        CoverSettings { f: 1, members: 8, wait_us: 1_000, custody_bytes_max: u64::MAX, patience_us: 1_000_000 };
    let sites = rooms.iter().map(|room| Site { domain: "", room: *room }).collect();
    World::new(&Plan { settings, tags_first, sites, steps: Vec::new() })
}

/// The client writes, and more is to come.
fn write(world: &mut World, client: usize) {
    world.step(&Step::Write { client, length: 100, level: Level::Covered }, Flush::Coming);
}

fn calm(world: &mut World) {
    world.step(&Step::Calm { but: None }, Flush::Idle);
    oracle::check(world, true, &mut Looked::default()).unwrap();
}

const ROOM: u64 = 1 << 30;

/// A stripe waits for members, and the checkpoint overtakes it. Sealed after that, it was pushed to a holder who kept it
/// until the next write.
#[test]
fn what_is_stable_before_it_is_sealed_is_given_to_nobody() {
    let mut world = world(&[ROOM; 3]);
    write(&mut world, 0);
    world.step(&Step::Stabilize { by: 1 }, Flush::Coming);
    calm(&mut world);
    assert_eq!(world.cover.counts().pushed, 0);
    assert_eq!((world.cover.bytes(), world.cover.settled()), (0, Lsn(1)));
    assert!(world.clients.iter().all(|client| client.image.commands.is_empty() && client.image.shares.is_empty()));
}

/// The same where the author leaves: what it wrote was copied, though it was stable and nobody's to decode by.
#[test]
fn what_is_stable_is_not_copied() {
    let mut world = world(&[ROOM; 3]);
    write(&mut world, 0);
    world.step(&Step::Stabilize { by: 1 }, Flush::Not);
    world.step(&Step::Break { client: 0 }, Flush::Coming);
    assert_eq!(world.cover.counts().pushed, 0);
    assert_eq!((world.cover.bytes(), world.cover.settled()), (0, Lsn(1)));
}

/// Pushed, and overtaken by the checkpoint before the frame was written.
#[test]
fn what_is_stable_before_it_is_pushed_stays_here() {
    let mut world = world(&[ROOM; 3]);
    write(&mut world, 0);
    world.step(&Step::Write { client: 1, length: 100, level: Level::Tagged }, Flush::Not);
    world.step(&Step::Stabilize { by: 2 }, Flush::Not);
    assert_eq!(world.cover.take_pushes(), []);
}

/// Three domains, and a stripe that may have two members; then one of the domains is about to leave, and nobody was left
/// to hold what the other two had written.
#[test]
fn a_stripe_does_not_outgrow_those_who_can_hold_it() {
    let mut world = world(&[ROOM; 3]);
    write(&mut world, 0);
    world.step(&Step::Retire { client: 2 }, Flush::Not);
    world.step(&Step::Write { client: 1, length: 100, level: Level::Tagged }, Flush::Not);
    calm(&mut world);
    assert!(world.cover.covered() >= Lsn(2));
}

/// Two segments of an entry lie in two stripes, each with another's entry. It is covered when both are, and held until
/// both are stable: the later one needs it longer.
#[test]
fn an_entry_in_two_stripes_waits_for_both() {
    let mut world = world(&[ROOM; 3]);
    let mut large = |client, length| {
        world.step(&Step::Write { client, length, level: Level::Covered }, Flush::Coming);
        world.step(&Step::Arrive { but: None }, Flush::Coming);
        oracle::check(&world, true, &mut Looked::default()).unwrap();
        world.cover.covered()
    };
    let segment = 64 << 10;
    assert_eq!(large(0, 2 * segment), Lsn(0));
    assert_eq!(large(1, segment), Lsn(0), "the second stripe waits for another member");
    assert_eq!(large(2, segment), Lsn(3));
    world.step(&Step::Stabilize { by: 2 }, Flush::Idle);
    calm(&mut world);
    assert_eq!(world.clients[0].image.commands.len(), 1, "it is needed to decode the third");
    world.step(&Step::Stabilize { by: 1 }, Flush::Idle);
    calm(&mut world);
    assert!(world.clients.iter().all(|client| client.image.commands.is_empty()));
}

/// Two write into one stripe, and the first entry is stable. Its author is needed to decode the other: it does not end before
/// that is stable, too, and when it breaks others keep what it wrote.
#[test]
fn what_others_are_decoded_with_is_kept() {
    for gone in [Step::Retire { client: 0 }, Step::Break { client: 0 }] {
        let mut world = world(&[ROOM; 4]);
        write(&mut world, 0);
        write(&mut world, 1);
        calm(&mut world);
        assert_eq!((world.cover.covered(), world.cover.counts().stripes), (Lsn(2), 1));
        world.step(&Step::Stabilize { by: 1 }, Flush::Idle);
        world.step(&gone, Flush::Idle);
        calm(&mut world);
        assert!(world.damaged.is_empty(), "it is made good");
        // And then by the entry of its end.
        for by in [1, 1] {
            assert!(!world.clients[0].ended);
            world.step(&Step::Stabilize { by }, Flush::Idle);
            calm(&mut world);
        }
        assert_eq!(world.clients[0].ended, matches!(gone, Step::Retire { .. }));
    }
}

/// The client has tag and reply, and takes another stream before it has confirmed. It is told nothing again, for it asks
/// for nothing, and so nothing past that entry was covered until it was stable.
#[test]
fn what_is_answered_needs_no_confirm() {
    let mut world = world(&[ROOM; 2]);
    world.step(&Step::Write { client: 0, length: 100, level: Level::Tagged }, Flush::Idle);
    world.step(&Step::Deliver { client: 0, most: 10 }, Flush::Not);
    world.step(&Step::Return { client: 0, cache: Cache::Same }, Flush::Idle);
    calm(&mut world);
    assert_eq!(world.cover.covered(), Lsn(1));
}

/// With every stream a holder was given its fill anew, and it still had all of it.
#[test]
fn what_a_holder_kept_takes_room_when_it_comes_back() {
    let mut world = world(&[ROOM, 1_000]);
    for _ in 0..4 {
        write(&mut world, 0);
        write(&mut world, 0);
        calm(&mut world);
        world.step(&Step::Break { client: 1 }, Flush::Idle);
        world.step(&Step::Return { client: 1, cache: Cache::Same }, Flush::Idle);
    }
    assert!(world.clients[1].image.share_bytes > 500);
    assert!(world.cover.is_short());
    // And it is free again when they are released.
    world.step(&Step::Stabilize { by: 8 }, Flush::Idle);
    calm(&mut world);
    assert!(!world.cover.is_short());
    assert_eq!(world.cover.held(), (0, 0));
    write(&mut world, 0);
    calm(&mut world);
    assert_eq!(world.cover.covered(), Lsn(9));
    // Nothing is left either of what became stable while the holder was away.
    world.step(&Step::Break { client: 1 }, Flush::Idle);
    world.step(&Step::Stabilize { by: 1 }, Flush::Idle);
    world.step(&Step::Return { client: 1, cache: Cache::Same }, Flush::Idle);
    assert_eq!(world.cover.held(), (0, 0));
}

/// One that sleeps held up everybody until its stream was found broken, for what is covered is covered in order.
#[test]
fn a_holder_that_sleeps_is_passed_over() {
    for sleeper in [1, 2] {
        let mut world = world_of(&[ROOM; 3], false);
        let calm_for_others = |world: &mut World| {
            world.step(&Step::Calm { but: Some(sleeper) }, Flush::Idle);
            oracle::check(world, true, &mut Looked::default()).unwrap();
        };
        // The shares go round: one of them is with the sleeper, before long.
        while world.cover.covered() == world.head() {
            assert!(world.head() < Lsn(4));
            write(&mut world, 0);
            calm_for_others(&mut world);
        }
        world.step(&Step::Pass { us: 1_000_000 }, Flush::Idle);
        calm_for_others(&mut world);
        assert_eq!(world.cover.covered(), world.head());
        // And it is given nothing from now on.
        for _ in 0..4 {
            write(&mut world, 0);
            calm_for_others(&mut world);
        }
        assert_eq!(world.cover.covered(), world.head());
        // Until it wakes, and keeps what it was given.
        calm(&mut world);
        let kept = world.clients[sleeper].image.shares.len();
        assert!(kept > 0);
        for _ in 0..4 {
            write(&mut world, 0);
            calm(&mut world);
        }
        assert!(world.clients[sleeper].image.shares.len() > kept);
        world.step(&Step::Stabilize { by: 16 }, Flush::Idle);
        calm(&mut world);
        assert_eq!(world.cover.held(), (0, 0));
    }
}

/// The same where it is the author who sleeps, and does not confirm its tag.
#[test]
fn an_author_that_sleeps_is_passed_over() {
    let mut world = world(&[ROOM; 4]);
    write(&mut world, 0);
    write(&mut world, 1);
    world.step(&Step::Calm { but: Some(0) }, Flush::Idle);
    assert_eq!(world.cover.covered(), Lsn(0));
    world.step(&Step::Pass { us: 1_000_000 }, Flush::Idle);
    world.step(&Step::Calm { but: Some(0) }, Flush::Idle);
    oracle::check(&world, true, &mut Looked::default()).unwrap();
    assert_eq!(world.cover.covered(), Lsn(2));
}

/// An entry waited long for somebody to come who could hold its row; whoever came had as good as no time to confirm it, and
/// was passed over at once.
#[test]
fn who_was_given_something_just_now_is_not_late() {
    let mut world = world(&[ROOM; 3]);
    for client in [1, 2] {
        world.step(&Step::Break { client }, Flush::Idle);
    }
    write(&mut world, 0);
    world.step(&Step::Calm { but: None }, Flush::Idle);
    for us in [1_000_000, 900_000] {
        world.step(&Step::Pass { us }, Flush::Idle);
    }
    for client in [1, 2] {
        world.step(&Step::Return { client, cache: Cache::Same }, Flush::Idle);
    }
    assert_eq!(world.cover.counts().pushed, 2, "a witness, and now a row");
    world.step(&Step::Pass { us: 100_000 }, Flush::Idle);
    assert_eq!(world.cover.counts().pushed, 2);
    world.step(&Step::Pass { us: 900_000 }, Flush::Idle);
    world.step(&Step::Pass { us: 100_000 }, Flush::Idle);
    assert_eq!(world.cover.counts().pushed, 3, "and now it is");
    calm(&mut world);
    assert_eq!(world.cover.covered(), Lsn(1));
}

/// Nobody but the authors confirms anything: with a witness for the places of its writes an author is told of its tag with its
/// reply.
#[test]
fn with_a_witness_no_author_has_to_confirm() {
    let mut world = world_of(&[ROOM; 4], false);
    calm(&mut world);
    write(&mut world, 0);
    write(&mut world, 1);
    world.step(&Step::Calm { but: Some(0) }, Flush::Idle);
    oracle::check(&world, true, &mut Looked::default()).unwrap();
    assert_eq!(world.cover.covered(), Lsn(2));
    assert!(world.clients[0].image.commands.values().all(|command| command.tag.is_none()));
    assert_eq!(world.cover.counts().pushed, 2, "a row, and a witness");
}

/// Of two domains one keeps nothing for others: nobody is left who could be the witness, and so the author is asked.
#[test]
fn without_a_witness_the_author_confirms() {
    let mut world = world_of(&[0, ROOM], false);
    write(&mut world, 0);
    calm(&mut world);
    assert_eq!(world.cover.covered(), Lsn(1));
    assert_eq!(world.cover.counts().pushed, 1);
}

/// The only other domain that could take a row is its witness's: that gives way, and the authors are asked.
#[test]
fn a_witness_makes_way_for_a_row() {
    let mut world = world_of(&[0, ROOM, ROOM], false);
    write(&mut world, 0);
    calm(&mut world);
    assert_eq!((world.cover.covered(), world.cover.counts().pushed), (Lsn(1), 2), "a row and a witness");
    for holder in [1, 2] {
        if world.clients[holder].image.shares.values().any(|share| share.body.len() > 100) {
            world.step(&Step::Break { client: holder }, Flush::Idle);
        }
    }
    calm(&mut world);
    assert!(world.damaged.is_empty(), "it is made good");
    assert!(!world.cover.is_short());
}
