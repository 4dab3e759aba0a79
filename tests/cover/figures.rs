//! What coverage costs where writes keep coming, in bytes.

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tagalong::log::{Body, ClientId, Digest, Header, Lsn, Origin, Request, Time};
use tagalong::share::cover::{Cover, CoverCounts, CoverSettings};

use crate::world::{EPOCH, HERE};

/// Writes of `owners` in turn, of the lengths that are drawn; everything is confirmed at once, and soon stable.
fn stream(owners: u64, f: u8, writes: u64, mut length: impl FnMut() -> u32) -> CoverCounts {
    let settings = CoverSettings { f, members: 8, wait_us: 1_000, custody_bytes_max: 0, patience_us: 1_000_000 };
    let mut cover = Cover::new(settings, EPOCH, HERE, Lsn(0), Lsn(1), Time(0));
    for client in 1..=owners {
        cover.join((ClientId(client.into()), 1), "", 1 << 40, Request(0), Lsn(0));
    }
    let bytes = Bytes::from(vec![7; 1 << 20]);
    for n in 1..=writes {
        let (lsn, client) = (Lsn(n), ClientId((n % owners + 1).into()));
        let payload = bytes.slice(..length() as usize);
        let header = Header {
            epoch: EPOCH,
            lsn,
            body: Body::Command,
            origin: Some(Origin { client, request: Request(n / owners + 1) }),
            time: Time(0),
            answered: Request(0),
            length: u32::try_from(payload.len()).unwrap(),
            digest: Digest::default(),
        };
        cover.add(Time(0), &header, &payload);
        cover.tagged(client, lsn);
        cover.settle(Time(0), true, Vec::new());
        for (holder, share) in cover.take_pushes() {
            cover.confirmed(holder, share.id);
        }
        cover.stabilize(Lsn(n.saturating_sub(256)));
    }
    cover.counts()
}

/// So that every order of magnitude is as likely as any other.
fn log_uniform(seed: u64, low: f64, high: f64) -> impl FnMut() -> u32 {
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    move || {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let length = (low * (high / low).powf(f64::from(dice.next_u32()) / f64::from(u32::MAX))) as u32;
        length
    }
}

fn show(what: &str, counts: &CoverCounts) {
    let CoverCounts { stripes, members, segment_bytes, ideal_bytes, symbol_bytes, pushed_bytes, .. } = *counts;
    let part = |bytes: u64| bytes as f64 / segment_bytes as f64;
    println!(
        "{what}: {stripes} stripes of {:.1} members; parity {:.3} of what is covered, ideal {:.3}: {:.3} times as much; \
         pushed {:.3}",
        members as f64 / stripes as f64,
        part(symbol_bytes),
        part(ideal_bytes),
        symbol_bytes as f64 / ideal_bytes as f64,
        part(pushed_bytes),
    );
}

#[test]
fn stripes_of_mixed_sizes_waste_little() {
    for (f, owners) in [(1, 9), (1, 32), (2, 9), (2, 10), (2, 32)] {
        let counts = stream(owners, f, 2_000, log_uniform(1, 16.0, f64::from(1 << 20)));
        show(&format!("16 B to 1 MiB, f = {f}, {owners} owners"), &counts);
        assert!(counts.symbol_bytes * 10 <= counts.ideal_bytes * 12, "{counts:?}");
    }
    for (name, high) in [("1 KiB", 1 << 10), ("64 KiB", 1 << 16)] {
        let counts = stream(16, 1, 10_000, log_uniform(2, 16.0, f64::from(high)));
        show(&format!("16 B to {name}, f = 1, 16 owners"), &counts);
    }
}

/// What operators are told of a covered entry's way: the wait for its stripe, and from then on for the confirmations.
#[test]
fn the_parts_of_an_entry_s_way_add_up() {
    let settings = CoverSettings { f: 1, members: 8, wait_us: 500, custody_bytes_max: 0, patience_us: 1_000_000 };
    let mut cover = Cover::new(settings, EPOCH, HERE, Lsn(0), Lsn(1), Time(0));
    for client in 1..=3 {
        cover.join((ClientId(client), 1), "", 1 << 40, Request(0), Lsn(0));
    }
    let header = Header {
        epoch: EPOCH,
        lsn: Lsn(1),
        body: Body::Command,
        origin: Some(Origin { client: ClientId(1), request: Request(1) }),
        time: Time(1_000),
        answered: Request(0),
        length: 3,
        digest: Digest::default(),
    };
    cover.add(Time(1_000), &header, &Bytes::from_static(b"one"));
    cover.tagged(ClientId(1), Lsn(1));
    cover.settle(Time(1_400), true, Vec::new());
    assert_eq!(cover.take_pushes(), [], "others may come");
    cover.settle(Time(1_510), true, Vec::new());
    let pushes = cover.take_pushes();
    cover.pass(Time(3_000));
    for (holder, share) in pushes {
        cover.confirmed(holder, share.id);
    }
    cover.advance();
    let CoverCounts { covered, fill_us, confirm_us, .. } = cover.counts();
    assert_eq!((cover.covered(), covered, fill_us, confirm_us), (Lsn(1), 1, 510, 1_490));
}
