//! Records and cache operations out of numbers, by the forge that `tests/hostile.rs` makes its messages with.

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tagalong::client::{CacheOp, Command, Identity};
use tagalong::log::{Body, ClientId, Digest, Entry, Header, Lsn, Origin, Record, Request, Time};
use tagalong::store::Marks;

use super::forge::{CLUSTER, Forge, GROUP};
use super::shares::EPOCH;

pub(crate) fn forge(seed: u64) -> Forge {
    Forge { dice: ChaCha8Rng::seed_from_u64(seed), epoch: EPOCH, head: 5, next: Request(3) }
}

/// Of a command with this payload, fit for a log's second entry.
pub(crate) fn command_header(payload: &Bytes) -> Header {
    Header {
        epoch: EPOCH,
        lsn: Lsn(2),
        body: Body::Command,
        origin: Some(Origin { client: ClientId(100), request: Request(1) }),
        time: Time(7),
        answered: Request(0),
        length: u32::try_from(payload.len()).unwrap(),
        digest: Digest::crc32(payload),
    }
}

/// A record for this place of a log, with a payload of so many bytes.
pub(crate) fn record(seed: u64, lsn: Lsn, length: usize) -> Record {
    let mut forge = forge(seed);
    let payload = Bytes::from(vec![u8::try_from(forge.below(256)).unwrap(); length]);
    let header = Header { lsn, ..forge.header(&payload) };
    Record { entry: Entry { header, payload }, reply: forge.digest(b"reply") }
}

pub(crate) fn marks(seed: u64) -> Marks {
    let mut forge = forge(seed);
    Marks {
        cluster: CLUSTER,
        group: GROUP,
        promised: forge.epoch(),
        reign: forge.epoch(),
        base: forge.lsn(),
        in_sync: forge.below(2) == 0,
        clean: (forge.below(2) == 0).then(|| forge.lsn()),
        stable: forge.lsn(),
        ..Marks::default()
    }
}

/// An operation on a cache that has up to `last` commands, the numbers of which it mostly hits.
pub(crate) fn op(seed: u64, last: &mut u64) -> CacheOp {
    let mut forge = forge(seed);
    let request = Request(1 + forge.below(*last + 1));
    match forge.below(19) {
        0 => CacheOp::Identity(Identity {
            client: forge.client(),
            cluster: (forge.below(2) == 0).then_some(CLUSTER),
            group: Some(GROUP),
            domain: forge.domain(),
            role: forge.role(),
        }),
        1 => CacheOp::Incarnation(forge.number()),
        2 => CacheOp::Welcomed,
        3 => CacheOp::Reported(forge.epoch()),
        4 => CacheOp::Answered { request, reply: forge.digest(b"reply") },
        5 => CacheOp::Superseded(request),
        15 => CacheOp::Places(forge.many(Forge::places)),
        6 => CacheOp::Headers(forge.many(|forge| forge.header(&Bytes::new()))),
        7 => CacheOp::Observed(forge.epoch(), forge.lsn()),
        8 => CacheOp::Stable(forge.epoch(), forge.lsn()),
        9 => CacheOp::Settled(forge.epoch(), forge.lsn()),
        10 => CacheOp::Verdict(forge.epoch(), forge.reigns()),
        11 | 12 => {
            let share = forge.share();
            CacheOp::Share(tagalong::share::Share { body: share.body.slice(..share.body.len().min(50)), ..share })
        }
        13 | 14 => CacheOp::Tag { request, tag: forge.tag() },
        _ => {
            *last += 1;
            let (level, withdrawn, payload) = (forge.level(), forge.below(6) == 0, forge.bytes());
            let (answered, digest) = (Request(last.saturating_sub(3)), Digest::crc32(&payload));
            let command = Command { answered, level, withdrawn, digest, payload, tag: None, reply: None };
            CacheOp::Command { request: Request(*last), command }
        }
    }
}
