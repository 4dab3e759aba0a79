//! Bodies of shares: they read back as written, and no bytes whatever do harm.

use bytes::Bytes;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use tagalong::log::{
    Body, ClientId, Digest, Entry, Epoch, Header, Lsn, NodeId, Origin, Request, SessionInfo, Target, Time,
};
use tagalong::share::body::{MEMBERS_MAX, Member, Plain, SPAN_MAX, decode_symbol, encode_symbol, segments};

fn epoch() -> impl Strategy<Value = Epoch> {
    (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(generation, number, node)| Epoch {
        generation,
        number,
        node: NodeId(node),
    })
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..50u64, 2 => 0..1_000_000u64, 1 => any::<u64>()]
}

fn kind() -> impl Strategy<Value = Body> {
    prop_oneof![
        12 => Just(Body::Command),
        2 => Just(Body::Noop),
        1 => Just(Body::Suspend),
        1 => number().prop_map(Body::Resume),
        1 => number().prop_map(|node| Body::Config(Target::Backup(NodeId(node)))),
        1 => (number(), ".{0,9}").prop_map(|(incarnation, domain)| {
            Body::Open(SessionInfo { incarnation, domain, ..SessionInfo::default() })
        }),
    ]
}

/// A header that an entry may have.
fn header() -> impl Strategy<Value = Header> {
    let origin = (any::<u128>(), number())
        .prop_map(|(client, request)| Origin { client: ClientId(client), request: Request(request) });
    let digest = (any::<u8>(), any::<u64>()).prop_map(|(algorithm, value)| Digest { algorithm, value });
    let length = prop_oneof![6 => 0..3_000u32, 1 => 0..300_000u32];
    ((number(), number(), number()), kind(), option::weighted(0.9, origin), length, digest).prop_map(
        |((lsn, time, answered), body, origin, length, digest)| {
            let length = if body == Body::Command { length } else { 0 };
            let empty = body == Body::Command && length == 0;
            Header {
                epoch: Epoch::ZERO,
                lsn: Lsn(lsn),
                body,
                origin,
                time: Time(time),
                answered: Request(answered),
                length,
                digest: if empty { Digest::crc32(&[]) } else { digest },
            }
        },
    )
}

fn stripe() -> impl Strategy<Value = (Epoch, Plain)> {
    let member = (header(), any::<u32>()).prop_map(|(header, at)| {
        let segment = at % segments(header.length);
        Member { header, segment }
    });
    (epoch(), 0..128u8, vec(member, 1..12), any::<bool>(), any::<u8>()).prop_map(
        |(epoch, row, mut members, ordered, byte)| {
            members.iter_mut().for_each(|member| member.header.epoch = epoch);
            if ordered {
                members.sort_by_key(|member| (member.header.lsn, member.header.time));
            }
            let longest = members.iter().map(|member| member.range().len()).max().unwrap();
            (epoch, Plain::Stripe { row, members, symbol: Bytes::from(vec![byte; longest]) })
        },
    )
}

fn window() -> impl Strategy<Value = (Epoch, Plain)> {
    let first = prop_oneof![1..1_000u64, 1..u64::MAX - SPAN_MAX as u64];
    (epoch(), first, btree_set(0..SPAN_MAX as u64, 1..64), vec(any::<u8>(), 1..300)).prop_map(
        |(epoch, first, members, symbol)| {
            let members = members.into_iter().map(|at| Lsn(first + at)).collect();
            (epoch, Plain::Window { members, symbol: symbol.into() })
        },
    )
}

fn witness() -> impl Strategy<Value = (Epoch, Plain)> {
    stripe().prop_map(|(epoch, plain)| {
        let Plain::Stripe { members, .. } = plain else { unreachable!("a stripe") };
        (epoch, Plain::Witness { members })
    })
}

fn plain() -> impl Strategy<Value = (Epoch, Plain)> {
    prop_oneof![stripe(), window(), witness()]
}

fn encode(plain: &Plain) -> Vec<u8> {
    let mut bytes = Vec::new();
    plain.encode(&mut bytes);
    bytes
}

/// Whatever was read is in order, and can be worked with.
fn look_at(plain: &Plain) {
    let members = match plain {
        Plain::Stripe { members, symbol, .. } => {
            assert!((1..=MEMBERS_MAX).contains(&members.len()));
            assert_eq!(members.iter().map(|member| member.range().len()).max(), Some(symbol.len()));
            members.len()
        }
        Plain::Window { members, symbol } => {
            assert!(!symbol.is_empty() && members.is_sorted());
            assert!(members[members.len() - 1].0 - members[0].0 < SPAN_MAX as u64);
            members.len()
        }
        Plain::Witness { members } => {
            assert!((1..=MEMBERS_MAX).contains(&members.len()));
            return;
        }
    };
    assert!((0..members).all(|at| plain.coefficient(7, at) != 0));
}

/// A member that is a command of so many bytes.
fn member(lsn: u64, length: u32, segment: u32) -> Member {
    let header = Header {
        epoch: Epoch::ZERO,
        lsn: Lsn(lsn),
        body: Body::Command,
        origin: Some(Origin { client: ClientId(5), request: Request(lsn) }),
        time: Time(9),
        answered: Request(0),
        length,
        digest: Digest::crc32(&[]),
    };
    Member { header, segment }
}

#[test]
fn what_no_encoder_makes_is_refused() {
    let stripe = |row, members: &[Member], symbol: usize| {
        let symbol = Bytes::from(vec![1; symbol]);
        Plain::decode(Epoch::ZERO, &encode(&Plain::Stripe { row, members: members.to_vec(), symbol }).into())
    };
    assert!(stripe(127, &[member(1, 100, 0), member(2, 70_000, 1)], 4_464).is_ok());
    assert!(stripe(128, &[member(1, 100, 0)], 100).is_err());
    assert!(stripe(0, &[], 0).is_err());
    assert!(stripe(0, &[member(1, 100, 0)], 99).is_err());
    assert!(stripe(0, &[member(1, 100, 0)], 101).is_err());
    assert!(stripe(0, &[member(1, 100, 1)], 0).is_err(), "a segment past the end");
    assert!(stripe(0, &[member(1, 65_536, 1)], 0).is_err(), "a segment past the end");
    let many: Vec<Member> = (1..=65).map(|lsn| member(lsn, 10, 0)).collect();
    assert!(stripe(0, &many[..MEMBERS_MAX], 10).is_ok());
    assert!(stripe(0, &many, 10).is_err());

    let witness = |members: &[Member]| encode(&Plain::Witness { members: members.to_vec() });
    assert!(Plain::decode(Epoch::ZERO, &witness(&many[..MEMBERS_MAX]).into()).is_ok());
    assert!(Plain::decode(Epoch::ZERO, &witness(&many).into()).is_err());
    assert!(Plain::decode(Epoch::ZERO, &witness(&[]).into()).is_err());
    let longer = [witness(&many[..1]), vec![0]].concat();
    assert!(Plain::decode(Epoch::ZERO, &longer.into()).is_err(), "a witness that says more");

    let window = |members: &[u64], symbol: usize| {
        let members = members.iter().map(|lsn| Lsn(*lsn)).collect();
        encode(&Plain::Window { members, symbol: vec![1; symbol].into() })
    };
    let decode = |bytes: Vec<u8>| Plain::decode(Epoch::ZERO, &bytes.into());
    assert!(decode(window(&[1, 1024], 1)).is_ok());
    assert!(decode(window(&[1, 1025], 1)).is_err(), "a span that no window has");
    assert!(decode(window(&[1, 9], 0)).is_err());
    assert!(decode(window(&[], 1)).is_err());
    assert!(decode(window(&[0, 3], 1)).is_err());
    assert!(decode(window(&[u64::MAX - 1, u64::MAX], 1)).is_err());
    // Version, kind, first, span, and the two bytes of the map.
    let bytes = window(&[1, 9], 1);
    assert_eq!(bytes[2..6], [1, 9, 0b1, 0b1]);
    for bit in 0..16 {
        let mut bytes = bytes.clone();
        bytes[4 + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode(bytes).is_ok(), (1..8).contains(&bit), "bit {bit} of the map");
    }
}

#[test]
fn a_symbol_ends_in_zeros() {
    let entry = Entry { header: member(1, 0, 0).header, payload: Bytes::new() };
    let mut symbol = encode_symbol(&entry);
    symbol.extend_from_slice(&[0; 5]);
    assert_eq!(decode_symbol(&symbol.clone().into()).unwrap(), entry);
    symbol.push(1);
    assert!(decode_symbol(&symbol.into()).is_err());
}

proptest! {
    #[test]
    fn bodies_read_back((epoch, plain) in plain()) {
        let bytes = Bytes::from(encode(&plain));
        prop_assert_eq!(&Plain::decode(epoch, &bytes).unwrap(), &plain);
        look_at(&plain);
    }

    #[test]
    fn a_body_of_any_bytes_does_no_harm(start in vec(0..4u8, 0..3), rest in vec(any::<u8>(), 0..200)) {
        let mut bytes = start;
        bytes.extend(rest);
        if let Ok(plain) = Plain::decode(Epoch::ZERO, &bytes.into()) {
            look_at(&plain);
        }
    }

    #[test]
    fn a_damaged_body_is_an_error_or_another((epoch, plain) in plain(), cut in any::<usize>(), flips in vec(any::<usize>(), 0..4)) {
        let bytes = encode(&plain);
        let short = Bytes::copy_from_slice(&bytes[..cut % bytes.len()]);
        let read = Plain::decode(epoch, &short);
        prop_assert!(read.as_ref().ok() != Some(&plain));
        read.iter().for_each(look_at);
        let mut flipped = bytes;
        for flip in flips {
            let bit = flip % (8 * flipped.len());
            flipped[bit / 8] ^= 1 << (bit % 8);
        }
        Plain::decode(epoch, &flipped.into()).iter().for_each(look_at);
    }

    #[test]
    fn symbols_read_back(header in header(), payload in vec(any::<u8>(), 0..200), zeros in 0..90usize) {
        let command = header.body == Body::Command;
        let payload = if command { payload } else { Vec::new() };
        let length = u32::try_from(payload.len()).unwrap();
        let digest = if command { Digest::crc32(&payload) } else { header.digest };
        let entry = Entry { header: Header { length, digest, ..header }, payload: payload.into() };
        let mut symbol = encode_symbol(&entry);
        symbol.resize(symbol.len() + zeros, 0);
        prop_assert_eq!(decode_symbol(&symbol.into()).unwrap(), entry);
    }

    #[test]
    fn a_damaged_symbol_is_no_other_payload(payload in vec(any::<u8>(), 1..200), flip in any::<usize>(), header in header()) {
        let length = u32::try_from(payload.len()).unwrap();
        let header = Header { body: Body::Command, length, digest: Digest::crc32(&payload), ..header };
        let entry = Entry { header, payload: payload.into() };
        let mut symbol = encode_symbol(&entry);
        let bit = flip % (8 * symbol.len());
        symbol[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = decode_symbol(&symbol.into()) {
            prop_assert_eq!(other.payload, entry.payload);
        }
    }

    #[test]
    fn a_symbol_of_any_bytes_does_no_harm(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode_symbol(&bytes.into());
    }
}
