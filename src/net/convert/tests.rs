//! The wire's promises: what is sent arrives as it was; whatever else arrives is an error that names the field.

#![allow(clippy::unwrap_used)]

mod errors;
mod malformed;
mod strategies;

use std::fmt::Debug;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;

use super::*;
use crate::client::{CacheImage, CacheOp};
use crate::log::{ClientId, Digest, Epoch, GapPolicy, Level, Lsn, NodeId, Places, Request, Tag, Time};
use crate::message::{
    ClientFrame, NodeFrame, NodeStatus, Outcome, Payloads, Query, QueryResult, Report, ReportItem, Response, Write,
};
use crate::node::Admin;

/// As it is after the wire: encoded, decoded, read.
fn carried<W, T>(value: T) -> Result<T>
where
    W: Message + Default + From<T>,
    T: TryFrom<W, Error = Error>,
{
    T::try_from(W::decode(W::from(value).encode_to_vec().as_slice()).unwrap())
}

/// Reads `bytes` as a `W`, come what may; and what can be read is the same once it was carried again.
fn survives<W, T>(bytes: &[u8])
where
    W: Message + Default + From<T>,
    T: TryFrom<W, Error = Error> + Clone + PartialEq + Debug,
{
    let Ok(decoded) = W::decode(bytes) else { return };
    match T::try_from(decoded) {
        Ok(value) => assert_eq!(carried::<W, T>(value.clone()), Ok(value)),
        Err(error) => {
            assert!(matches!(error.code(), Code::Protocol | Code::UnknownKind | Code::WrongVersion), "{error}");
        }
    }
}

fn survive_as_anything(bytes: &[u8]) {
    survives::<pb::ClientMessages, Vec<ClientMessage>>(bytes);
    survives::<pb::NodeMessages, Vec<NodeMessage>>(bytes);
    survives::<pb::BackupMessages, Vec<BackupMessage>>(bytes);
    survives::<pb::PrimaryMessages, Vec<PrimaryMessage>>(bytes);
    survives::<pb::NodeStatus, NodeStatus>(bytes);
    survives::<pb::ResolveRequest, GapPolicy>(bytes);
    survives::<pb::ClientRequest, ClientId>(bytes);
    let _ = pb::PromoteRequest::decode(bytes).map(Admin::try_from);
}

/// What happens to an encoding: a byte is put in, the end cut off, bytes are replaced.
#[derive(Clone, Debug)]
struct Damage {
    put: Option<(Index, u8)>,
    cut: Option<Index>,
    replaced: Vec<(Index, u8)>,
}

impl Damage {
    fn to(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some((at, byte)) = self.put {
            bytes.insert(at.index(bytes.len() + 1), byte);
        }
        if let Some(at) = self.cut {
            bytes.truncate(at.index(bytes.len() + 1));
        }
        for (at, byte) in &self.replaced {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
        }
        bytes
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    // Small bytes are field keys, lengths and enum numbers more often than others.
    let byte = || prop_oneof![any::<u8>(), 0..48_u8];
    let put = prop_oneof![4 => Just(None), 1 => (any::<Index>(), byte()).prop_map(Some)];
    let cut = prop_oneof![4 => Just(None), 1 => any::<Index>().prop_map(Some)];
    let replaced = vec((any::<Index>(), byte()), 0..4);
    (put, cut, replaced).prop_map(|(put, cut, replaced)| Damage { put, cut, replaced })
}

proptest! {
    #[test]
    fn what_a_client_says_arrives(sent in vec(strategies::client_message(), 0..4)) {
        prop_assert_eq!(carried::<pb::ClientMessages, _>(sent.clone()), Ok(sent));
    }

    #[test]
    fn what_a_node_says_arrives(sent in vec(strategies::node_message(), 0..4)) {
        prop_assert_eq!(carried::<pb::NodeMessages, _>(sent.clone()), Ok(sent));
    }

    #[test]
    fn what_a_backup_says_arrives(sent in vec(strategies::backup_message(), 0..4)) {
        prop_assert_eq!(carried::<pb::BackupMessages, _>(sent.clone()), Ok(sent));
    }

    #[test]
    fn what_a_primary_says_arrives(sent in vec(strategies::primary_message(), 0..4)) {
        prop_assert_eq!(carried::<pb::PrimaryMessages, _>(sent.clone()), Ok(sent));
    }

    #[test]
    fn what_operators_are_told_arrives(status in strategies::node_status()) {
        prop_assert_eq!(carried::<pb::NodeStatus, _>(status.clone()), Ok(status));
    }

    #[test]
    fn what_operators_ask_arrives(
        force in any::<bool>(),
        policy in strategies::recovery_policy(),
        gaps in strategies::gap_policy(),
        client in strategies::client_id(),
    ) {
        prop_assert_eq!(Admin::try_from(promote_request(force, policy)), Ok(Admin::Promote { force, policy }));
        prop_assert_eq!(carried::<pb::ResolveRequest, _>(gaps), Ok(gaps));
        prop_assert_eq!(carried::<pb::ClientRequest, _>(client), Ok(client));
    }

    #[test]
    fn noise_is_an_error_at_worst(bytes in vec(any::<u8>(), 0..200)) {
        survive_as_anything(&bytes);
    }

    #[test]
    fn damage_is_an_error_at_worst(
        client in strategies::client_message(),
        node in strategies::node_message(),
        backup in strategies::backup_message(),
        primary in strategies::primary_message(),
        status in strategies::node_status(),
        damage in damage(),
    ) {
        let encodings = [
            pb::ClientMessages::from(vec![client]).encode_to_vec(),
            pb::NodeMessages::from(vec![node]).encode_to_vec(),
            pb::BackupMessages::from(vec![backup]).encode_to_vec(),
            pb::PrimaryMessages::from(vec![primary]).encode_to_vec(),
            pb::NodeStatus::from(status).encode_to_vec(),
        ];
        for bytes in encodings {
            survive_as_anything(&damage.to(bytes));
        }
    }
}

/// Whether `part` lies within `buffer`, and so keeps it alive.
fn pins(part: &Bytes, buffer: &Bytes) -> bool {
    buffer.as_ptr_range().contains(&part.as_ptr())
}

/// The batch as it comes out of a receive buffer, which is returned too.
fn received<W: Message + Default, T: TryFrom<W, Error = Error>>(sent: W) -> (T, Bytes) {
    let buffer = Bytes::from(sent.encode_to_vec());
    let received = W::decode(buffer.clone()).unwrap();
    (T::try_from(received).unwrap(), buffer)
}

#[test]
fn what_a_node_keeps_pins_the_receive_buffer_only_where_it_fills_it() {
    let payload = Bytes::from(vec![7; 3 * LARGE]);
    let write = Write {
        request: Request(1),
        answered: Request(0),
        level: crate::log::Level::Tagged,
        withdrawn: false,
        digest: Digest::crc32(&payload),
        payload: payload.clone(),
    };
    let query = Query { id: 1, level: crate::log::Level::Tagged, payload: payload.clone() };
    let frame = ClientFrame { writes: vec![write], queries: vec![query], ..ClientFrame::default() };
    let shares = vec![strategies::plain_share(Epoch::ZERO, payload.clone())];
    let pulled = Payloads { epoch: Epoch::ZERO, items: vec![(Request(1), payload.clone())], shares };
    let sent = vec![ClientMessage::Frame(frame), ClientMessage::Payloads(pulled.clone())];

    let (came, buffer): (Vec<ClientMessage>, _) = received(pb::ClientMessages::from(sent));
    let [ClientMessage::Frame(frame), ClientMessage::Payloads(pulled)] = came.as_slice() else { panic!("{came:?}") };
    assert_eq!(frame.writes[0].payload, payload);
    assert!(!pins(&frame.writes[0].payload, &buffer));
    assert!(!pins(&pulled.items[0].1, &buffer));
    assert_eq!(pulled.shares[0].body, payload);
    assert!(!pins(&pulled.shares[0].body, &buffer));
    assert!(pins(&frame.queries[0].payload, &buffer), "a query only passes: not copied");

    let (came, buffer): (Vec<ClientMessage>, _) =
        received(pb::ClientMessages::from(vec![ClientMessage::Payloads(pulled.clone())]));
    let [ClientMessage::Payloads(pulled)] = came.as_slice() else { panic!("{came:?}") };
    assert!(pins(&pulled.items[0].1, &buffer), "they are nearly all of a message of their own");
}

#[test]
fn records_do_not_pin_the_receive_buffer() {
    let record = strategies::plain_record(Bytes::from(vec![7; 3 * LARGE]));
    let epoch = record.entry.header.epoch;
    let append =
        PrimaryMessage::Append { epoch, base: Lsn(0), stable: Lsn(0), echo: 0, records: vec![record.clone()].into() };
    let (came, buffer): (Vec<PrimaryMessage>, _) = received(pb::PrimaryMessages::from(vec![append]));
    let [PrimaryMessage::Append { records, .. }] = came.as_slice() else { panic!("{came:?}") };
    assert_eq!(records[..], *std::slice::from_ref(&record));
    assert!(!pins(&records[0].entry.payload, &buffer));

    let fetched = BackupMessage::Records { epoch, records: vec![record] };
    let (came, buffer): (Vec<BackupMessage>, _) = received(pb::BackupMessages::from(vec![fetched]));
    let [BackupMessage::Records { records, .. }] = came.as_slice() else { panic!("{came:?}") };
    assert!(!pins(&records[0].entry.payload, &buffer));
}

#[test]
fn what_the_application_gets_pins_the_receive_buffer_only_where_it_fills_it() {
    let bytes = |length| Bytes::from(vec![7; length]);
    let reply =
        |number, length| Response { request: Request(number), tag: None, outcome: Some(Outcome::Reply(bytes(length))) };
    let result = |id, length| QueryResult { id, lsn: Lsn(1), result: Ok(bytes(length)) };
    let frame = NodeFrame {
        responses: vec![reply(1, 100), reply(2, LARGE)],
        results: vec![result(1, 100), result(2, LARGE)],
        ..NodeFrame::default()
    };
    let (came, buffer): (Vec<NodeMessage>, _) = received(pb::NodeMessages::from(vec![NodeMessage::Frame(frame)]));
    let [NodeMessage::Frame(frame)] = came.as_slice() else { panic!("{came:?}") };
    let replies = frame.responses.iter().map(|response| match &response.outcome {
        Some(Outcome::Reply(reply)) => pins(reply, &buffer),
        _ => panic!("{response:?}"),
    });
    let results = frame.results.iter().map(|result| pins(result.result.as_ref().unwrap(), &buffer));
    assert_eq!(replies.chain(results).collect::<Vec<_>>(), [false, true, false, true]);
}

/// As short as an item can be, and as many as a frame takes. Frames of tags alone were refused once, as having more items
/// than bytes: what was to be covered was then never confirmed.
#[test]
fn a_list_of_the_shortest_items_arrives() {
    let epoch = Epoch { generation: 0, number: 7, node: NodeId(1) };
    let tag = |number| Tag { lsn: Lsn(number), hold_until: None, ..strategies::plain_tag(epoch, Lsn(0)) };
    let tagged = |number| Response { request: Request(number), tag: Some(tag(number)), outcome: None };
    let superseded = |number| Response { request: Request(number), tag: None, outcome: Some(Outcome::Superseded) };
    let bare = |number| Write {
        request: Request(number),
        answered: Request(0),
        level: Level::Local,
        withdrawn: true,
        digest: Digest::default(),
        payload: Bytes::new(),
    };
    let frame = |responses| NodeFrame { epoch, responses, ..NodeFrame::default() };
    for count in [1, 2, 3, 100] {
        for responses in [(1..=count).map(tagged).collect::<Vec<_>>(), (1..=count).map(superseded).collect()] {
            let sent = vec![NodeMessage::Frame(frame(responses))];
            assert_eq!(carried::<pb::NodeMessages, _>(sent.clone()), Ok(sent));
        }
        let sent =
            vec![ClientMessage::Frame(ClientFrame { writes: (1..=count).map(bare).collect(), ..Default::default() })];
        assert_eq!(carried::<pb::ClientMessages, _>(sent.clone()), Ok(sent));
    }
}

/// What follows on the one before is said in a byte or two: this is what the wire lives of.
#[test]
fn a_list_says_only_what_it_has_to() {
    let payload = Bytes::from_static(&[7; 100]);
    let record = strategies::plain_record(payload.clone());
    let epoch = record.entry.header.epoch;
    let follow = |by: u64| {
        let mut record = record.clone();
        let header = &mut record.entry.header;
        header.lsn.0 += by;
        header.time.0 += by;
        let origin = header.origin.as_mut().unwrap();
        origin.request.0 += by;
        (header.answered, header.length) = (origin.request.prev(), 100);
        record
    };
    let records: Vec<_> = (0..11).map(follow).collect();
    let size = |count: usize| packed::put_records(records[..count].iter(), epoch).len();
    assert_eq!(size(11) - size(1), 10 * (100 + 15), "flags, client, request, time, length, and two checksums");
    let headers: Vec<_> = records.iter().map(|record| record.entry.header.clone()).collect();
    let size = |count: usize| packed::put_headers(&headers[..count], epoch).len();
    assert_eq!(size(11) - size(1), 10 * 10, "flags, client, request, time, length, and a checksum");

    let write = |number| Write {
        request: Request(number),
        answered: Request(0),
        level: Level::Tagged,
        withdrawn: false,
        digest: Digest::crc32(&payload),
        payload: payload.clone(),
    };
    let writes: Vec<_> = (1..=11).map(write).collect();
    let size = |count: usize| packed::put_writes(&writes[..count]).len();
    assert_eq!(size(11) - size(1), 10 * (100 + 6), "flags, and a checksum");

    let response = |number| {
        let tag = Tag { lsn: Lsn(number), time: crate::log::Time(7), ..strategies::plain_tag(epoch, Lsn(number)) };
        let outcome = Some(Outcome::Reply(Bytes::from_static(b"reply")));
        Response { request: Request(number), tag: Some(Tag { hold_until: Some(tag.lsn), ..tag }), outcome }
    };
    let responses: Vec<_> = (1..=11).map(response).collect();
    let size = |count: usize| packed::put_responses(&responses[..count], epoch).len();
    assert_eq!(size(11) - size(1), 10 * (5 + 3), "flags twice, and a length");
}

#[test]
fn a_share_says_only_what_its_message_does_not() {
    let epoch = Epoch { generation: 0, number: 7, node: NodeId(1) };
    let share = strategies::plain_share(epoch, Bytes::from_static(b"body"));
    let of_frame = words::share_pb(share.clone(), epoch);
    assert_eq!(of_frame.epoch, None);
    assert_eq!(words::share(of_frame, epoch), Ok(share.clone()));
    let of_another = words::share_pb(share.clone(), Epoch::ZERO);
    assert_eq!(words::share(of_another, Epoch::ZERO), Ok(share));
}

#[test]
fn what_is_settled_is_what_is_stable_unless_it_is_said() {
    let said = |stable, settled| {
        let frame = NodeFrame { stable: Lsn(stable), settled: Lsn(settled), ..NodeFrame::default() };
        let sent = pb::NodeFrame::from(frame.clone());
        let said = sent.settled;
        assert_eq!(NodeFrame::try_from(sent), Ok(frame));
        said
    };
    assert_eq!([said(0, 0), said(5, 5), said(5, 3), said(5, 0)], [None, None, Some(3), Some(0)]);
}

#[test]
fn the_image_of_a_cache_copies_the_shares_of_a_frame() {
    let body = Bytes::from(vec![7; 3 * LARGE]);
    let shares = vec![strategies::plain_share(Epoch::ZERO, body.clone())];
    let frame = NodeFrame { shares, ..NodeFrame::default() };
    let (came, buffer): (Vec<NodeMessage>, _) = received(pb::NodeMessages::from(vec![NodeMessage::Frame(frame)]));
    let [NodeMessage::Frame(frame)] = came.as_slice() else { panic!("{came:?}") };
    let mut image = CacheImage::default();
    image.apply(&CacheOp::Share(frame.shares[0].clone()));
    let kept = image.shares.values().next().unwrap();
    assert_eq!(kept.body, body);
    assert!(!pins(&kept.body, &buffer));
}

fn hex(message: &impl Message) -> String {
    message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Field numbers and types are a promise to every other build: this changes with a new version, or never.
#[test]
fn the_encoding_is_the_one_of_version_1() {
    let record = strategies::plain_record(Bytes::from_static(b"payload"));
    let epoch = record.entry.header.epoch;
    let digest = record.entry.header.digest;
    let header = record.entry.header.clone();
    let append =
        PrimaryMessage::Append { epoch, base: Lsn(1), stable: Lsn(2), echo: 3, records: vec![record.clone()].into() };
    let append = hex(&pb::PrimaryMessages::from(vec![append]));
    let held = ReportItem::Held { header: header.clone(), reply: Some(record.reply) };
    let (request, answered) = (Request(9), Request(8));
    let in_doubt = ReportItem::InDoubt { request, length: 7, digest, answered };
    let places = Places { epoch, first: Lsn(5), count: 2, time: Time(7), who: Bytes::from_static(b"who") };
    let kept = ReportItem::Share { epoch, id: 8, hold_until: Lsn(9), length: 4 };
    let items = vec![held, in_doubt, ReportItem::Header(header.clone()), ReportItem::Places(places.clone()), kept];
    let report = Report { epoch, items, observed: (epoch, Lsn(6)), stable: (epoch, Lsn(4)), end: true };
    let report = hex(&pb::Report::from(report));

    let write = Write {
        request: Request(6),
        answered: Request(5),
        level: crate::log::Level::Stable,
        withdrawn: true,
        digest,
        payload: Bytes::from_static(b"payload"),
    };
    let frame = ClientFrame { epoch, confirm: 8, writes: vec![write], queries: vec![], close: true };
    let writes = hex(&pb::ClientMessages::from(vec![ClientMessage::Frame(frame)]));

    let outcome = Some(Outcome::Reply(Bytes::from_static(b"reply")));
    let response = Response { request: Request(6), tag: Some(strategies::plain_tag(epoch, Lsn(4))), outcome };
    let frame =
        NodeFrame { epoch, seq: 8, stable: Lsn(4), settled: Lsn(4), responses: vec![response], ..Default::default() };
    let frame = NodeFrame { manifest: vec![header], places: vec![places], closed: true, ..frame };
    let frame = hex(&pb::NodeMessages::from(vec![NodeMessage::Frame(frame)]));
    let records = "01310800050000000000000000000000000000000c0e0701156a2c4201e0c6a8fd7061796c6f6164";
    assert_eq!(append, format!("0a41223f0a0d080110021903000000000000001001180220032a28{records}"));
    let of_epoch = "0a0d08011002190300000000000000";
    let of_held = "01110800050000000000000000000000000000000c0e0701156a2c4201e0c6a8fd";
    let (of_doubt, of_header) = ("0212010701156a2c42", "03190001010701156a2c42");
    let (of_places, of_share) = ("04010203000000000000000502070377686f", "0501020300000000000000080904");
    let items = format!("05{of_held}{of_doubt}{of_header}{of_places}{of_share}");
    let epoch = &of_epoch[2..];
    assert_eq!(report, format!("{of_epoch}1256{items}1a{epoch}20062a{epoch}30043801"));
    let packed = "01070c0a0701156a2c427061796c6f6164";
    assert_eq!(writes, format!("0a281a260a0d0801100219030000000000000010081a11{packed}2801"));
    let manifest = "01110800050000000000000000000000000000000c0e0701156a2c42";
    let responses = "01050c59120e057265706c79";
    let places = "010a020e0377686f";
    let responses = format!("2a0c{responses}3801");
    let frame_of = format!("{of_epoch}10081804221c{manifest}{responses}6208{places}");
    assert_eq!(frame, format!("0a4d324b{frame_of}"));
}

#[test]
fn the_encoding_of_coverage_is_the_one_of_version_1() {
    let epoch = Epoch { generation: 1, number: 2, node: NodeId(3) };
    let in_epoch = "0a0d08011002190300000000000000";
    let share = strategies::plain_share(epoch, Bytes::from_static(b"body"));
    let of_share = "1008180222100000000000000000000000000000000528093204626f6479";

    let tag = Tag { hold_until: None, met: Level::Covered, ..strategies::plain_tag(epoch, Lsn(4)) };
    let response = Response { request: Request(6), tag: Some(tag), outcome: None };
    let frame = NodeFrame { epoch, seq: 8, stable: Lsn(4), settled: Lsn(3), prompt: true, ..Default::default() };
    let frame = NodeFrame { shares: vec![share.clone()], short: true, responses: vec![response], ..frame };
    let of_frame = format!("{in_epoch}100818042a0601040c89120e");
    assert_eq!(hex(&pb::NodeFrame::from(frame)), format!("{of_frame}40034a1e{of_share}50015801"));

    let sent = pb::Payloads::from(Payloads { epoch, items: vec![], shares: vec![share.clone()] });
    assert_eq!(hex(&sent), format!("{in_epoch}1a1e{of_share}"));
    let sent = pb::Payloads::from(Payloads { epoch: Epoch::ZERO, items: vec![], shares: vec![share] });
    assert_eq!(hex(&sent), format!("0a001a2d{in_epoch}{of_share}"));
}
