//! The forms on disk: they read back as written, and no bytes whatever do harm.
//!
//! Beside it the client's image, whose compaction has to be the image itself.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tagalong::client::{CacheImage, CacheOp, Command, Identity};
use tagalong::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GapPolicy, GroupId, Header, Level, Lsn, NodeId,
    Origin, Record, Reign, Request, SessionInfo, SessionRole, Tag, Target, Time,
};
use tagalong::share::{Mode, Share};
use tagalong::store::Marks;
use tagalong::{Code, codec};

/// Numbers of every size, the small ones more often.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..20u64, 0..100_000u64, any::<u64>()]
}

fn lsn() -> impl Strategy<Value = Lsn> {
    number().prop_map(Lsn)
}

fn request() -> impl Strategy<Value = Request> {
    number().prop_map(Request)
}

fn client() -> impl Strategy<Value = ClientId> {
    any::<u128>().prop_map(ClientId)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    let generation = prop_oneof![Just(0), any::<u32>()];
    (generation, number(), any::<u64>()).prop_map(|(generation, number, node)| Epoch {
        generation,
        number,
        node: NodeId(node),
    })
}

fn digest() -> impl Strategy<Value = Digest> {
    (any::<u8>(), number()).prop_map(|(algorithm, value)| Digest { algorithm, value })
}

fn level() -> impl Strategy<Value = Level> {
    prop_oneof![Just(Level::Local), Just(Level::Tagged), Just(Level::Covered), Just(Level::Stable)]
}

fn role() -> impl Strategy<Value = SessionRole> {
    prop_oneof![Just(SessionRole::Writer), Just(SessionRole::Reader), Just(SessionRole::Holder)]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![Just(Target::Own), any::<u64>().prop_map(|node| Target::Backup(NodeId(node)))]
}

fn policy() -> impl Strategy<Value = Option<GapPolicy>> {
    prop_oneof![Just(None), Just(Some(GapPolicy::Stop)), Just(Some(GapPolicy::Skip))]
}

fn payload() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn ranges() -> impl Strategy<Value = Vec<std::ops::Range<Lsn>>> {
    vec((lsn(), lsn()).prop_map(|(start, end)| start..end), 0..4)
}

fn start() -> impl Strategy<Value = EpochStart> {
    let first = (epoch(), lsn(), lsn(), any::<u8>(), level(), any::<bool>());
    let second = (target(), policy(), vec(client(), 0..3), vec(client(), 0..3), ranges());
    (first, second).prop_map(
        |((previous, base, observed, f, lowest, log_before_send), (target, policy, missing, excluded, gaps))| {
            EpochStart { previous, base, observed, f, lowest, log_before_send, target, policy, missing, excluded, gaps }
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        4 => Just(Body::Command),
        1 => Just(Body::Noop),
        1 => (number(), ".{0,12}", role())
            .prop_map(|(incarnation, domain, role)| Body::Open(SessionInfo { incarnation, domain, role })),
        1 => Just(Body::Suspend),
        1 => number().prop_map(Body::Resume),
        1 => Just(Body::Close),
        1 => Just(Body::Expire),
        1 => target().prop_map(Body::Config),
        1 => start().prop_map(|start| Body::EpochStart(Box::new(start))),
    ]
}

fn header() -> impl Strategy<Value = Header> {
    let origin = option::of((client(), request()).prop_map(|(client, request)| Origin { client, request }));
    (epoch(), lsn(), body(), origin, number(), request(), any::<u32>(), digest()).prop_map(
        |(epoch, lsn, body, origin, time, answered, length, digest)| Header {
            epoch,
            lsn,
            body,
            origin,
            time: Time(time),
            answered,
            length,
            digest,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    (header(), payload(), digest())
        .prop_map(|(header, payload, reply)| Record { entry: Entry { header, payload }, reply })
}

fn marks() -> impl Strategy<Value = Marks> {
    let first = (any::<u128>(), any::<u128>(), any::<u64>(), epoch(), epoch());
    (first, lsn(), any::<bool>(), option::of(lsn()), lsn()).prop_map(
        |((cluster, group, node, promised, reign), base, in_sync, clean, stable)| Marks {
            cluster: ClusterId(cluster),
            group: GroupId(group),
            node: NodeId(node),
            promised,
            reign,
            base,
            in_sync,
            clean,
            stable,
        },
    )
}

fn tag() -> impl Strategy<Value = Tag> {
    (epoch(), lsn(), number(), option::of(lsn()), lsn(), any::<bool>(), level()).prop_map(
        |(epoch, lsn, time, hold_until, stable, protected, met)| Tag {
            epoch,
            lsn,
            time: Time(time),
            hold_until,
            stable,
            protected,
            met,
        },
    )
}

fn share() -> impl Strategy<Value = Share> {
    let mode = prop_oneof![Just(Mode::Stripe), Just(Mode::Window)];
    (epoch(), number(), mode, client(), lsn(), payload())
        .prop_map(|(epoch, id, mode, holder, hold_until, body)| Share { epoch, id, mode, holder, hold_until, body })
}

fn command() -> impl Strategy<Value = Command> {
    (request(), level(), any::<bool>(), digest(), payload(), option::of(tag()), option::of(digest())).prop_map(
        |(answered, level, withdrawn, digest, payload, tag, reply)| Command {
            answered,
            level,
            withdrawn,
            digest,
            payload,
            tag,
            reply,
        },
    )
}

fn identity() -> impl Strategy<Value = Identity> {
    (client(), option::of(any::<u128>()), option::of(any::<u128>()), ".{0,12}", role()).prop_map(
        |(client, cluster, group, domain, role)| Identity {
            client,
            cluster: cluster.map(ClusterId),
            group: group.map(GroupId),
            domain,
            role,
        },
    )
}

fn reign() -> impl Strategy<Value = Reign> {
    (epoch(), lsn(), lsn(), ranges()).prop_map(|(epoch, start, base, gaps)| Reign { epoch, start, base, gaps })
}

fn op() -> impl Strategy<Value = CacheOp> {
    prop_oneof![
        identity().prop_map(CacheOp::Identity),
        number().prop_map(CacheOp::Incarnation),
        Just(CacheOp::Welcomed),
        epoch().prop_map(CacheOp::Reported),
        (request(), command()).prop_map(|(request, command)| CacheOp::Command { request, command }),
        (request(), tag()).prop_map(|(request, tag)| CacheOp::Tag { request, tag }),
        (request(), digest()).prop_map(|(request, reply)| CacheOp::Answered { request, reply }),
        request().prop_map(CacheOp::Superseded),
        vec(header(), 0..3).prop_map(CacheOp::Headers),
        share().prop_map(CacheOp::Share),
        (epoch(), lsn()).prop_map(|(epoch, lsn)| CacheOp::Observed(epoch, lsn)),
        (epoch(), lsn()).prop_map(|(epoch, lsn)| CacheOp::Stable(epoch, lsn)),
        (epoch(), lsn()).prop_map(|(epoch, lsn)| CacheOp::Settled(epoch, lsn)),
        (epoch(), vec(reign(), 0..3)).prop_map(|(epoch, reigns)| CacheOp::Verdict(epoch, reigns)),
    ]
}

/// A change of some bytes: cut, extend, overwrite.
fn damage() -> impl Strategy<Value = (usize, u8, u8)> {
    (any::<usize>(), any::<u8>(), 0..4u8)
}

fn damaged(bytes: &[u8], (at, byte, how): (usize, u8, u8)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at % (bytes.len() + 1);
    match how {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, byte),
        2 if at < bytes.len() => bytes[at] = byte,
        _ if at < bytes.len() => {
            bytes.remove(at);
        }
        _ => bytes.push(byte),
    }
    bytes
}

fn form<T>(encode: fn(&T, &mut Vec<u8>), value: &T) -> Vec<u8> {
    let mut out = vec![7];
    encode(value, &mut out);
    assert_eq!(out.remove(0), 7, "what was there before is still there");
    out
}

/// Whatever decodes is in its one form; whatever does not says why in a known way.
fn harmless<T: std::fmt::Debug>(
    bytes: &[u8],
    decode: fn(&[u8]) -> tagalong::Result<T>,
    encode: fn(&T, &mut Vec<u8>),
) -> Result<(), TestCaseError> {
    match decode(bytes) {
        Ok(value) => prop_assert_eq!(form(encode, &value), bytes),
        Err(error) => prop_assert!(matches!(error.code(), Code::Corrupt | Code::UnknownKind), "{error}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers_read_back(header in header(), change in damage()) {
        let bytes = form(codec::encode_header, &header);
        prop_assert_eq!(codec::decode_header(&bytes), Ok(header));
        harmless(&damaged(&bytes, change), codec::decode_header, codec::encode_header)?;
    }

    #[test]
    fn records_read_back(record in record(), change in damage()) {
        let bytes = form(codec::encode_record, &record);
        prop_assert_eq!(codec::decode_record(&bytes), Ok(record));
        harmless(&damaged(&bytes, change), codec::decode_record, codec::encode_record)?;
    }

    #[test]
    fn marks_read_back(marks in marks(), change in damage()) {
        let bytes = form(codec::encode_marks, &marks);
        prop_assert_eq!(codec::decode_marks(&bytes), Ok(marks));
        harmless(&damaged(&bytes, change), codec::decode_marks, codec::encode_marks)?;
    }

    #[test]
    fn operations_read_back(op in op(), change in damage()) {
        let bytes = form(codec::encode_op, &op);
        prop_assert_eq!(codec::decode_op(&bytes), Ok(op));
        harmless(&damaged(&bytes, change), codec::decode_op, codec::encode_op)?;
    }

    #[test]
    fn any_bytes_are_harmless(mut bytes in vec(any::<u8>(), 0..200), kind in 0..16u8) {
        harmless(&bytes, codec::decode_header, codec::encode_header)?;
        harmless(&bytes, codec::decode_record, codec::encode_record)?;
        harmless(&bytes, codec::decode_marks, codec::encode_marks)?;
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        harmless(&bytes, codec::decode_header, codec::encode_header)?;
        harmless(&bytes, codec::decode_op, codec::encode_op)?;
    }
}

#[test]
fn a_list_longer_than_its_bytes_allocates_nothing() {
    // "Headers, 2^63 of them", a text and the body of a share of that length: were it believed, the test would die here.
    let (headers, identity, share) = ((9, 0), (1, 16 + 2), (13, 10 + 2 + 16 + 1));
    let lists = [(headers, u64::MAX / 2), (headers, 1 << 40), (identity, 1 << 40), (share, 1 << 40), (share, u64::MAX)];
    for ((kind, before), length) in lists {
        let mut bytes = vec![kind];
        bytes.resize(1 + before, 0);
        let mut left: u64 = length;
        while left >= 0x80 {
            bytes.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
            left >>= 7;
        }
        bytes.push(u8::try_from(left).unwrap());
        bytes.extend_from_slice(&[0; 100]);
        assert_eq!(codec::decode_op(&bytes).unwrap_err().code(), Code::Corrupt);
    }
}

#[test]
fn what_a_later_version_wrote_is_named_so() {
    let mut bytes = Vec::new();
    codec::encode_op(&CacheOp::Welcomed, &mut bytes);
    bytes[0] = 99;
    let error = codec::decode_op(&bytes).unwrap_err();
    assert_eq!(error.code(), Code::UnknownKind);
    assert!(error.message().contains("a later version"), "{error}");
    assert_eq!(codec::decode_header(&[10; 60]).unwrap_err().code(), Code::UnknownKind);
}

/// The form is a promise to disks that exist: a change here needs a new `codec::VERSION`.
#[test]
fn the_form_is_as_it_was() {
    let header = Header {
        epoch: Epoch { generation: 1, number: 300, node: NodeId(0x0102_0304_0506_0708) },
        lsn: Lsn(5),
        body: Body::Command,
        origin: Some(Origin { client: ClientId(9), request: Request(2) }),
        time: Time(128),
        answered: Request(1),
        length: 3,
        digest: Digest { algorithm: 1, value: 255 },
    };
    let entry = Entry { header, payload: Bytes::from_static(b"abc") };
    let bytes = form(codec::encode_record, &Record { entry, reply: Digest { algorithm: 0, value: 0 } });
    let head = [1, 1, 0xac, 2, 8, 7, 6, 5, 4, 3, 2, 1, 5, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let rest = [2, 0x80, 1, 1, 3, 1, 0xff, 1, 0, 0, b'a', b'b', b'c'];
    assert_eq!(bytes, [head.as_slice(), &rest].concat());
}

#[test]
fn the_form_of_what_is_kept_for_others_is_as_it_was() {
    assert_eq!(codec::VERSION, 2);
    let epoch = Epoch { generation: 1, number: 300, node: NodeId(0x0102_0304_0506_0708) };
    let of_epoch = [1, 0xac, 2, 8, 7, 6, 5, 4, 3, 2, 1];
    let holder = [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    let body = Bytes::from_static(b"abc");
    let share = Share { epoch, id: 128, mode: Mode::Window, holder: ClientId(9), hold_until: Lsn(5), body };
    let of_share = |mode| [&[13][..], &of_epoch, &[0x80, 1, mode], &holder, &[5, 3, b'a', b'b', b'c']].concat();
    assert_eq!(form(codec::encode_op, &CacheOp::Share(share.clone())), of_share(1));
    assert_eq!(form(codec::encode_op, &CacheOp::Share(Share { mode: Mode::Stripe, ..share })), of_share(0));
    assert_eq!(codec::decode_op(&of_share(2)).unwrap_err().code(), Code::UnknownKind);

    let settled = CacheOp::Settled(epoch, Lsn(300));
    assert_eq!(form(codec::encode_op, &settled), [&[14][..], &of_epoch, &[0xac, 2]].concat());

    let tag = |met| {
        let tag = Tag { epoch, lsn: Lsn(5), time: Time(6), hold_until: None, stable: Lsn(4), protected: true, met };
        form(codec::encode_op, &CacheOp::Tag { request: Request(2), tag })
    };
    for (number, met) in [(0, Level::Local), (1, Level::Tagged), (2, Level::Stable), (3, Level::Covered)] {
        assert_eq!(tag(met), [&[6, 2][..], &of_epoch, &[5, 6, 0, 4, 1, number]].concat());
    }

    let identity =
        Identity { client: ClientId(9), cluster: None, group: None, domain: "r".to_owned(), role: SessionRole::Holder };
    assert_eq!(form(codec::encode_op, &CacheOp::Identity(identity)), [&[1][..], &holder, &[0, 0, 1, b'r', 2]].concat());
}

/// Operations of a client that works: few requests, epochs and LSNs, so that they meet.
fn likely_op() -> impl Strategy<Value = CacheOp> {
    let epoch = || (0..4u64).prop_map(|number| Epoch { generation: 0, number, node: NodeId(number) });
    let lsn = || (0..12u64).prop_map(Lsn);
    let request = || (1..8u64).prop_map(Request);
    let tag = (epoch(), lsn(), option::of(lsn())).prop_map(|(epoch, lsn, hold_until)| Tag {
        epoch,
        lsn,
        time: Time(0),
        hold_until,
        stable: Lsn(0),
        protected: true,
        met: Level::Tagged,
    });
    let command = (payload(), level()).prop_map(|(payload, level)| Command {
        answered: Request(0),
        level,
        withdrawn: false,
        digest: Digest::crc32(&payload),
        payload,
        tag: None,
        reply: None,
    });
    let header = (epoch(), lsn()).prop_map(|(epoch, lsn)| Header {
        epoch,
        lsn,
        body: Body::Noop,
        origin: None,
        time: Time(0),
        answered: Request(0),
        length: 0,
        digest: Digest::default(),
    });
    let share = (epoch(), 0..6u64, lsn(), payload()).prop_map(|(epoch, id, hold_until, body)| Share {
        epoch,
        id,
        mode: Mode::Stripe,
        holder: ClientId(1),
        hold_until,
        body,
    });
    let reign = (epoch(), lsn(), lsn()).prop_map(|(epoch, start, base)| Reign { epoch, start, base, gaps: vec![] });
    prop_oneof![
        4 => (request(), command).prop_map(|(request, command)| CacheOp::Command { request, command }),
        4 => (request(), tag).prop_map(|(request, tag)| CacheOp::Tag { request, tag }),
        4 => (request(), digest()).prop_map(|(request, reply)| CacheOp::Answered { request, reply }),
        1 => request().prop_map(CacheOp::Superseded),
        2 => vec(header, 0..3).prop_map(CacheOp::Headers),
        2 => share.prop_map(CacheOp::Share),
        1 => (epoch(), lsn()).prop_map(|(epoch, lsn)| CacheOp::Observed(epoch, lsn)),
        2 => (epoch(), lsn()).prop_map(|(epoch, lsn)| CacheOp::Stable(epoch, lsn)),
        2 => (epoch(), lsn()).prop_map(|(epoch, lsn)| CacheOp::Settled(epoch, lsn)),
        1 => (epoch(), vec(reign, 0..3)).prop_map(|(epoch, reigns)| CacheOp::Verdict(epoch, reigns)),
        1 => epoch().prop_map(CacheOp::Reported),
        1 => number().prop_map(CacheOp::Incarnation),
        1 => Just(CacheOp::Welcomed),
        1 => identity().prop_map(CacheOp::Identity),
    ]
}

fn replay(ops: &[CacheOp]) -> CacheImage {
    let mut image = CacheImage::default();
    ops.iter().for_each(|op| image.apply(op));
    image
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A compacted cache is the cache.
    #[test]
    fn an_image_is_what_its_operations_make(ops in vec(likely_op(), 0..60)) {
        let image = replay(&ops);
        prop_assert_eq!(replay(&image.to_ops()), image);
    }

    /// And it goes on in the same way.
    #[test]
    fn a_compacted_image_goes_on_like_the_first(ops in vec(likely_op(), 0..40), more in vec(likely_op(), 0..20)) {
        let mut image = replay(&ops);
        let mut compacted = replay(&image.to_ops());
        for op in &more {
            image.apply(op);
            compacted.apply(op);
            prop_assert_eq!(&compacted, &image);
        }
    }
}
