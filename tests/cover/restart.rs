//! What comes before a session, and stays after it: shares of an earlier life of the primary, and entries of the dead.

use bytes::Bytes;
use tagalong::log::{Body, ClientId, Digest, Header, Lsn, Origin, Request, Time};
use tagalong::share::cover::{Cover, CoverSettings};

use crate::world::{EPOCH, HERE};

const ROOM: u64 = 1_000;

/// A life that has read four entries of its own log back, when three clients come who hold that much already.
fn life(held: u64) -> Cover {
    let settings = CoverSettings { f: 1, members: 1, wait_us: 0, custody_bytes_max: 0, patience_us: 1_000_000 };
    let mut cover = Cover::new(settings, EPOCH, HERE, Lsn(0), Lsn(1), Time(0));
    (1..=4).for_each(|n| write(&mut cover, n));
    for client in 1..=3 {
        cover.remember(ClientId(client), held);
        cover.join((ClientId(client), 1), "", ROOM, Request(0), Lsn(0));
    }
    cover.settle(Time(0), true, Vec::new());
    cover
}

fn write(cover: &mut Cover, n: u64) {
    write_as(cover, n, 1, 300);
}

fn write_as(cover: &mut Cover, n: u64, client: u128, length: u32) {
    let payload = Bytes::from(vec![7; length as usize]);
    let header = Header {
        epoch: EPOCH,
        lsn: Lsn(n),
        body: Body::Command,
        origin: Some(Origin { client: ClientId(client), request: Request(n) }),
        time: Time(0),
        answered: Request(0),
        length,
        digest: Digest::default(),
    };
    cover.add(Time(0), &header, &payload);
}

/// It gave as many shares again at every restart, while nothing became stable: caches took several times what they had
/// room for, and their clients refused the primary.
#[test]
fn the_shares_of_an_earlier_life_take_their_room() {
    assert!(!life(0).take_pushes().is_empty(), "who holds nothing has room");
    let mut cover = life(900);
    assert!(cover.take_pushes().is_empty(), "who holds 900 of 1000 bytes has no room for 300 more");
    cover.stabilize(Lsn(4));
    write(&mut cover, 5);
    cover.settle(Time(0), true, Vec::new());
    assert!(!cover.take_pushes().is_empty(), "what is stable has been let go");
}

/// Sums of what clients claim to hold were not bounded: with one that claims all there is they were too large for a number.
#[test]
fn a_client_that_claims_to_hold_everything_has_no_room() {
    let mut cover = life(0);
    cover.stabilize(Lsn(4));
    cover.take_pushes();
    write(&mut cover, 5);
    cover.remember(ClientId(9), u64::MAX);
    cover.join((ClientId(9), 1), "", u64::MAX, Request(0), Lsn(0));
    cover.settle(Time(0), true, vec![ClientId(9)]);
    let pushes = cover.take_pushes();
    assert!(!pushes.is_empty() && pushes.iter().all(|(client, _)| *client != ClientId(9)), "{pushes:?}");
}

/// An author died whose entry was covered, and shared a stripe with one that was not yet, as another stood between them.
/// There was no room in the budget to copy it: then nothing was covered any more.
#[test]
fn who_shares_a_stripe_with_the_dead_is_covered() {
    let settings = CoverSettings { f: 1, members: 2, wait_us: 0, custody_bytes_max: 0, patience_us: 1_000_000 };
    let mut cover = Cover::new(settings, EPOCH, HERE, Lsn(0), Lsn(1), Time(0));
    for client in 1..=6 {
        cover.join((ClientId(client), 1), "", 1 << 20, Request(0), Lsn(0));
    }
    for (lsn, author, length) in [(1, 1, 300), (2, 3, 3_000), (3, 2, 300)] {
        write_as(&mut cover, lsn, author, length);
    }
    cover.settle(Time(0), false, Vec::new());
    let (shared, between): (Vec<_>, Vec<_>) =
        cover.take_pushes().into_iter().partition(|(_, share)| share.hold_until == Lsn(3));
    let confirm = |cover: &mut Cover, shares: Vec<(ClientId, tagalong::share::Share)>| {
        shares.into_iter().for_each(|(client, share)| cover.confirmed(client, share.id));
        cover.advance();
    };
    confirm(&mut cover, shared);
    assert_eq!(cover.covered(), Lsn(1), "the second is not confirmed");
    cover.leave(ClientId(1));
    confirm(&mut cover, between);
    for _ in 0..3 {
        cover.settle(Time(0), false, Vec::new());
        let pushes = cover.take_pushes();
        confirm(&mut cover, pushes);
    }
    assert_eq!(cover.covered(), Lsn(3));
}
