//! Every way to be malformed, one by one: the code and the field that the error names.

use bytes::Bytes;

use super::super::*;
use crate::log::{ClientId, GapPolicy};
use crate::message::{Attach, NodeStatus, QueryResult, Status, Welcome};
use crate::node::Admin;

/// `value` is refused with `code`, and the message says which `field` it is.
fn refused<W, T: TryFrom<W, Error = Error>>(value: W, code: Code, field: &str) {
    match T::try_from(value) {
        Ok(_) => panic!("taken for good, although {field} is not"),
        Err(error) => {
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message().starts_with(field), "{field}: {error}");
        }
    }
}

const EPOCH: Option<pb::Epoch> = Some(pb::Epoch { generation: 0, number: 1, node: 2 });

fn id() -> Bytes {
    Bytes::from_static(&[7; 16])
}

fn from_client(message: pb::client_message::Message) -> pb::ClientMessages {
    pb::ClientMessages { messages: vec![pb::ClientMessage { message: Some(message) }] }
}

fn from_node(message: pb::node_message::Message) -> pb::NodeMessages {
    pb::NodeMessages { messages: vec![pb::NodeMessage { message: Some(message) }] }
}

fn from_backup(message: pb::backup_message::Message) -> pb::BackupMessages {
    pb::BackupMessages { messages: vec![pb::BackupMessage { message: Some(message) }] }
}

fn from_primary(message: pb::primary_message::Message) -> pb::PrimaryMessages {
    pb::PrimaryMessages { messages: vec![pb::PrimaryMessage { message: Some(message) }] }
}

/// A share in each of the messages that carry some: the same is wrong with both of them.
fn refused_share(share: pb::Share, code: Code, field: &str) {
    let frame = pb::NodeFrame { epoch: EPOCH, shares: vec![share.clone()], ..Default::default() };
    refused::<_, Vec<NodeMessage>>(from_node(pb::node_message::Message::Frame(frame)), code, field);
    let payloads = pb::Payloads { epoch: EPOCH, shares: vec![share], ..Default::default() };
    refused::<_, Vec<ClientMessage>>(from_client(pb::client_message::Message::Payloads(payloads)), code, field);
}

fn refused_writes(writes: &'static [u8], why: &str) {
    let frame = pb::ClientFrame { epoch: EPOCH, writes: Bytes::from_static(writes), ..Default::default() };
    refused::<_, Vec<ClientMessage>>(from_client(pb::client_message::Message::Frame(frame)), Code::Protocol, why);
}

fn refused_responses(responses: &'static [u8], why: &str) {
    let frame = pb::NodeFrame { epoch: EPOCH, responses: Bytes::from_static(responses), ..Default::default() };
    refused::<_, Vec<NodeMessage>>(from_node(pb::node_message::Message::Frame(frame)), Code::Protocol, why);
}

fn refused_manifest(manifest: &'static [u8], code: Code, why: &str) {
    let frame = pb::NodeFrame { epoch: EPOCH, manifest: Bytes::from_static(manifest), ..Default::default() };
    refused::<_, Vec<NodeMessage>>(from_node(pb::node_message::Message::Frame(frame)), code, why);
}

fn refused_places(places: &'static [u8], why: &str) {
    let frame = pb::NodeFrame { epoch: EPOCH, places: Bytes::from_static(places), ..Default::default() };
    refused::<_, Vec<NodeMessage>>(from_node(pb::node_message::Message::Frame(frame)), Code::Protocol, why);
}

fn refused_items(items: &'static [u8], code: Code, why: &str) {
    let report = pb::Report { epoch: EPOCH, items: Bytes::from_static(items), ..Default::default() };
    refused::<_, Vec<ClientMessage>>(from_client(pb::client_message::Message::Report(report)), code, why);
}

/// In both of the messages that carry some.
fn refused_records(records: &'static [u8], why: &str) {
    let append = pb::Append { epoch: EPOCH, records: Bytes::from_static(records), ..Default::default() };
    let append = from_primary(pb::primary_message::Message::Append(append));
    refused::<_, Vec<PrimaryMessage>>(append, Code::Protocol, &format!("Append.records: {why}"));
    let records = pb::Records { epoch: EPOCH, records: Bytes::from_static(records) };
    let records = from_backup(pb::backup_message::Message::Records(records));
    refused::<_, Vec<BackupMessage>>(records, Code::Protocol, &format!("Records.records: {why}"));
}

#[test]
fn a_list_that_is_not_as_it_says() {
    // More items than there are bytes, whatever that would take.
    refused_writes(&[0xff, 0xff, 0xff, 0xff, 0x0f, 9, 0, 0], "ClientFrame.writes: it has more items");
    refused_responses(&[2, 1, 0], "NodeFrame.responses: it has more items");
    // It ends in an item, or in a number.
    refused_writes(&[1, 0x19, 3, 1, 0, 0], "ClientFrame.writes: malformed bytes: it ends too early");
    refused_writes(&[1, 0xff, 0xff], "ClientFrame.writes: a write has a form this build does not know: 255");
    // Payloads are missing, or too many; so many that they cannot be added up.
    refused_writes(&[1, 0x19, 3, 0, 7, 7], "ClientFrame.writes: its payloads have 2 bytes where 3 are told");
    refused_writes(&[1, 0x19, 1, 0, 7, 7], "ClientFrame.writes: its payloads have 2 bytes where 1 are told");
    let absurd = &[2, 0x19, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0x39, 0];
    refused_writes(absurd, "ClientFrame.writes: its payloads have 0 bytes where 18446744073709551615 are told");
    refused_responses(&[1, 1, 2, 5, 7], "NodeFrame.responses: its payloads have 1 bytes where 5 are told");
    refused_responses(&[1, 0x0b, 0, 0], "NodeFrame.responses: a response has a form");
    refused_manifest(&[2, 1, 0], Code::Protocol, "NodeFrame.manifest: it has more items");
    refused_manifest(&[1, 3, 0, 0], Code::Protocol, "NodeFrame.manifest: a header has a form");
    refused_manifest(&[1, 0x3d, 1, 0, 0, 0], Code::Protocol, "NodeFrame.manifest: it names a client");
    refused_places(&[1, 2, 1, 0, 9, 7, 7], "NodeFrame.places: its payloads have 2 bytes where 9 are told");
    refused_places(&[9, 2, 1, 0], "NodeFrame.places: it has more items");
    refused_items(&[1, 2, 2, 0, 3], Code::Protocol, "Report.items: malformed bytes: it ends too early");
    refused_items(&[1, 3, 0x3d, 1, 0, 0, 0], Code::Protocol, "Report.items: it names a client");
    refused_items(&[1, 2, 2, 0, 3, 0, 7], Code::Protocol, "Report.items: its payloads have 1 bytes");
    refused_records(&[1, 0x3d, 1, 0, 0, 0], "it names a client that it did not name before");
    refused_records(&[1, 0x3d, 0, 7, 7, 7], "malformed bytes: it ends too early");
    let record = &[1, 0x3d, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 2, 9, 0, 3];
    refused_records(record, "a digest has a form this build does not know: 3");
}

#[test]
fn a_message_of_no_known_kind() {
    let batch = pb::ClientMessages { messages: vec![pb::ClientMessage::default()] };
    refused::<_, Vec<ClientMessage>>(batch, Code::Protocol, "ClientMessage.message");
    let batch = pb::NodeMessages { messages: vec![pb::NodeMessage::default()] };
    refused::<_, Vec<NodeMessage>>(batch, Code::Protocol, "NodeMessage.message");
    let batch = pb::BackupMessages { messages: vec![pb::BackupMessage::default()] };
    refused::<_, Vec<BackupMessage>>(batch, Code::Protocol, "BackupMessage.message");
    let batch = pb::PrimaryMessages { messages: vec![pb::PrimaryMessage::default()] };
    refused::<_, Vec<PrimaryMessage>>(batch, Code::Protocol, "PrimaryMessage.message");
    refused_items(&[1, 6, 0], Code::Protocol, "Report.items: an item of a report has a form");
    refused::<_, QueryResult>(pb::QueryResult::default(), Code::Protocol, "QueryResult.result");
}

#[test]
fn a_response_that_says_nothing() {
    refused_responses(&[1, 0, 2], "NodeFrame.responses: request 1 has neither");
}

#[test]
fn an_entry_of_a_later_version() {
    refused_manifest(&[1, 0, 10, 0], Code::UnknownKind, "NodeFrame.manifest");
    refused_items(&[1, 3, 0, 10], Code::UnknownKind, "Report.items");
}

#[test]
fn a_message_of_a_later_version() {
    use pb::client_message::Message;
    let query = pb::Query { level: i32::MAX, ..Default::default() };
    let frame = pb::ClientFrame { epoch: EPOCH, queries: vec![query], ..Default::default() };
    refused::<_, Vec<ClientMessage>>(from_client(Message::Frame(frame)), Code::WrongVersion, "Query.level");
    let attach = pb::Attach { epoch: EPOCH, client: id(), role: 4, ..Default::default() };
    refused::<_, Attach>(attach, Code::WrongVersion, "Attach.role");
    let welcome = pb::Welcome { epoch: EPOCH, lowest: 5, ..Default::default() };
    refused::<_, Welcome>(welcome, Code::WrongVersion, "Welcome.lowest");
    refused_share(pb::Share { mode: 3, holder: id(), ..Default::default() }, Code::WrongVersion, "Share.mode");
    let session = pb::SessionStatus { client: id(), role: 4, ..Default::default() };
    refused::<_, crate::message::SessionStatus>(session, Code::WrongVersion, "SessionStatus.role");
    let status = pb::Status { cluster: id(), group: id(), role: 6, ..Default::default() };
    refused::<_, Status>(status, Code::WrongVersion, "Status.role");
    let promote = pb::PromoteRequest { conclude: 3, ..Default::default() };
    refused::<_, Admin>(promote, Code::WrongVersion, "PromoteRequest.conclude");
    refused::<_, GapPolicy>(pb::ResolveRequest { policy: 3 }, Code::WrongVersion, "ResolveRequest.policy");
    let status = pb::Status { cluster: id(), group: id(), role: 1, ..Default::default() };
    let target = Some(pb::Target { target: None });
    let node = pb::NodeStatus { status: Some(status), target, ..Default::default() };
    refused::<_, NodeStatus>(node, Code::WrongVersion, "NodeStatus.target");
}

#[test]
fn an_unspecified_choice() {
    let attach = pb::Attach { epoch: EPOCH, client: id(), ..Default::default() };
    refused::<_, Attach>(attach, Code::Protocol, "Attach.role");
    refused::<_, Welcome>(pb::Welcome { epoch: EPOCH, ..Default::default() }, Code::Protocol, "Welcome.lowest");
    let status = pb::Status { cluster: id(), group: id(), ..Default::default() };
    refused::<_, Status>(status, Code::Protocol, "Status.role");
    refused::<_, GapPolicy>(pb::ResolveRequest { policy: 0 }, Code::Protocol, "ResolveRequest.policy");
    let session = pb::SessionStatus { client: id(), ..Default::default() };
    refused::<_, crate::message::SessionStatus>(session, Code::Protocol, "SessionStatus.role");
    refused_share(pb::Share { holder: id(), ..Default::default() }, Code::Protocol, "Share.mode");
    let promote = pb::PromoteRequest { soft_us: 1, ..Default::default() };
    refused::<_, Admin>(promote, Code::Protocol, "PromoteRequest.soft_us");

    // Where it means something: a level that is not specified is the service's lowest.
    let query = pb::Query::default();
    assert_eq!(crate::message::Query::try_from(query).unwrap().level, crate::log::Level::Local);
}

#[test]
fn an_identity_that_is_not_16_bytes() {
    for length in [0, 15, 17] {
        let id = Bytes::from(vec![7; length]);
        let hello = pb::Hello { cluster: Some(id.clone()), ..Default::default() };
        refused::<_, crate::message::Hello>(hello, Code::Protocol, "Hello.cluster");
        let hello = pb::Hello { group: Some(id.clone()), ..Default::default() };
        refused::<_, crate::message::Hello>(hello, Code::Protocol, "Hello.group");
        let hello = pb::PeerHello { cluster: Some(id.clone()), ..Default::default() };
        refused::<_, crate::message::PeerHello>(hello, Code::Protocol, "PeerHello.cluster");
        let hello = pb::PeerHello { group: Some(id.clone()), ..Default::default() };
        refused::<_, crate::message::PeerHello>(hello, Code::Protocol, "PeerHello.group");
        let status = pb::Status { cluster: id.clone(), group: self::id(), role: 1, ..Default::default() };
        refused::<_, Status>(status, Code::Protocol, "Status.cluster");
        let status = pb::Status { cluster: self::id(), group: id.clone(), role: 1, ..Default::default() };
        refused::<_, Status>(status, Code::Protocol, "Status.group");
        let attach = pb::Attach { epoch: EPOCH, client: id.clone(), role: 1, ..Default::default() };
        refused::<_, Attach>(attach, Code::Protocol, "Attach.client");
        let welcome = pb::PeerWelcome { cluster: id.clone(), group: self::id(), ..Default::default() };
        let welcome = from_primary(pb::primary_message::Message::Welcome(welcome));
        refused::<_, Vec<PrimaryMessage>>(welcome, Code::Protocol, "PeerWelcome.cluster");
        let session = pb::SessionStatus { client: id.clone(), ..Default::default() };
        refused::<_, crate::message::SessionStatus>(session, Code::Protocol, "SessionStatus.client");
        let recovery = pb::RecoveryStatus { awaited: vec![id.clone()], ..Default::default() };
        refused::<_, crate::message::RecoveryStatus>(recovery, Code::Protocol, "RecoveryStatus.awaited");
        refused_share(pb::Share { mode: 1, holder: id.clone(), ..Default::default() }, Code::Protocol, "Share.holder");
        refused::<_, ClientId>(pb::ClientRequest { client: id }, Code::Protocol, "ClientRequest.client");
    }
}

#[test]
fn a_missing_epoch() {
    use pb::backup_message::Message as Backup;
    use pb::client_message::Message as Client;
    use pb::node_message::Message as Node;
    use pb::primary_message::Message as Primary;

    let from_clients = [
        (Client::Attach(pb::Attach::default()), "Attach.epoch"),
        (Client::Frame(pb::ClientFrame::default()), "ClientFrame.epoch"),
        (Client::Report(pb::Report::default()), "Report.epoch"),
        (Client::Payloads(pb::Payloads::default()), "Payloads.epoch"),
    ];
    for (message, field) in from_clients {
        refused::<_, Vec<ClientMessage>>(from_client(message), Code::Protocol, field);
    }
    let from_nodes = [
        (Node::RollCall(pb::RollCall::default()), "RollCall.epoch"),
        (Node::RollCall(pb::RollCall { epoch: EPOCH, ..Default::default() }), "RollCall.of"),
        (Node::Pull(pb::Pull::default()), "Pull.epoch"),
        (Node::Welcome(pb::Welcome { lowest: 1, ..Default::default() }), "Welcome.epoch"),
        (Node::Frame(pb::NodeFrame::default()), "NodeFrame.epoch"),
    ];
    for (message, field) in from_nodes {
        refused::<_, Vec<NodeMessage>>(from_node(message), Code::Protocol, field);
    }
    let from_backups = [
        (Backup::Promised(pb::Promised::default()), "Promised.epoch"),
        (Backup::Records(pb::Records::default()), "Records.epoch"),
        (Backup::Ack(pb::Ack::default()), "Ack.epoch"),
    ];
    for (message, field) in from_backups {
        refused::<_, Vec<BackupMessage>>(from_backup(message), Code::Protocol, field);
    }
    let from_primaries = [
        (Primary::Promise(pb::Promise::default()), "Promise.epoch"),
        (Primary::Fetch(pb::Fetch::default()), "Fetch.epoch"),
        (Primary::Append(pb::Append::default()), "Append.epoch"),
        (Primary::Grant(pb::Grant::default()), "Grant.epoch"),
    ];
    for (message, field) in from_primaries {
        refused::<_, Vec<PrimaryMessage>>(from_primary(message), Code::Protocol, field);
    }
    refused::<_, crate::log::Reign>(pb::Reign::default(), Code::Protocol, "Reign.epoch");
}

#[test]
fn a_missing_part() {
    refused::<_, NodeStatus>(pb::NodeStatus::default(), Code::Protocol, "NodeStatus.status");
}

#[test]
fn a_number_that_cannot_be() {
    let many = &[1, 2, 0x81, 0x20, 0, 0];
    refused_places(many, "NodeFrame.places: an absurd number of places");
    refused_places(&[1, 2, 0, 0, 0], "NodeFrame.places: an absurd number of places");
    refused_items(
        &[1, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x10],
        Code::Protocol,
        "Report.items",
    );
    let welcome = pb::Welcome { epoch: EPOCH, lowest: 3, f: 256, ..Default::default() };
    refused::<_, Welcome>(welcome, Code::Protocol, "Welcome.f");
    let status = pb::Status { cluster: id(), group: id(), role: 1, ..Default::default() };
    let node = pb::NodeStatus { status: Some(status), f: u32::MAX, ..Default::default() };
    refused::<_, NodeStatus>(node, Code::Protocol, "NodeStatus.f");

    let backwards = vec![pb::Range { start: 2, end: 1 }];
    let reign = pb::Reign { epoch: EPOCH, gaps: backwards.clone(), ..Default::default() };
    refused::<_, crate::log::Reign>(reign, Code::Protocol, "Reign.gaps");
    let recovery = pb::RecoveryStatus { missing: backwards, ..Default::default() };
    refused::<_, crate::message::RecoveryStatus>(recovery, Code::Protocol, "RecoveryStatus.missing");
}
