//! What arrives in gRPC messages: decoded by prost, read by `net/convert`.

use std::fmt::Debug;

use prost::Message;
use tagalong::error::{Code, Error, Result};
use tagalong::log::{ClientId, GapPolicy};
use tagalong::message::{BackupMessage, ClientMessage, NodeMessage, NodeStatus, PrimaryMessage};
use tagalong::net::wire as pb;
use tagalong::node::Admin;

use super::heap;

/// What a byte on the wire may cost in memory: an empty message takes two bytes there, and a struct with a place for every
/// field here. The limit of a message's size is therefore no limit of the memory it takes.
const EACH: usize = 600;

fn decode<W: Message + Default>(bytes: &[u8]) -> Option<W> {
    heap::within(bytes, 4096, EACH, || W::decode(bytes)).ok()
}

fn read<W, T: TryFrom<W, Error = Error>>(bytes: &[u8], message: W) -> Option<T> {
    match heap::within(bytes, 4096, EACH, || T::try_from(message)) {
        Ok(value) => Some(value),
        Err(error) => {
            let codes = [Code::Protocol, Code::UnknownKind, Code::WrongVersion];
            assert!(codes.contains(&error.code()) && !error.message().is_empty(), "{error}");
            None
        }
    }
}

/// Reads `bytes` as a `W`, come what may; what can be read has one form on the wire, which says the same.
fn survives<W, T>(bytes: &[u8]) -> Option<T>
where
    W: Message + Default + From<T>,
    T: TryFrom<W, Error = Error> + Clone + PartialEq + Debug,
{
    let value: T = read(bytes, decode::<W>(bytes)?)?;
    let sent = W::from(value.clone()).encode_to_vec();
    let again: Result<T> = T::try_from(W::decode(sent.as_slice()).expect("what was encoded can be decoded"));
    assert_eq!(again.as_ref(), Ok(&value), "what is said is what is heard");
    assert_eq!(W::from(value.clone()).encode_to_vec(), sent, "and always in the same words");
    Some(value)
}

pub(crate) fn client_messages(bytes: &[u8]) {
    survives::<pb::ClientMessages, Vec<ClientMessage>>(bytes);
}

pub(crate) fn node_messages(bytes: &[u8]) {
    survives::<pb::NodeMessages, Vec<NodeMessage>>(bytes);
}

pub(crate) fn backup_messages(bytes: &[u8]) {
    survives::<pb::BackupMessages, Vec<BackupMessage>>(bytes);
}

pub(crate) fn primary_messages(bytes: &[u8]) {
    survives::<pb::PrimaryMessages, Vec<PrimaryMessage>>(bytes);
}

/// What operators ask, and what they are told.
pub(crate) fn admin(bytes: &[u8]) {
    if let Some(status) = survives::<pb::NodeStatus, NodeStatus>(bytes) {
        assert!(status.sessions.len() <= bytes.len(), "nobody is made up");
    }
    survives::<pb::ResolveRequest, GapPolicy>(bytes);
    if let Some(client) = survives::<pb::ClientRequest, ClientId>(bytes) {
        assert!(bytes.windows(16).any(|window| window == client.0.to_be_bytes()));
    }
    if let Some(request) = decode::<pb::PromoteRequest>(bytes) {
        let force = request.force;
        if let Some(Admin::Promote { force: read, .. }) = read::<_, Admin>(bytes, request) {
            assert_eq!(read, force, "nobody is forced who was asked");
        }
    }
    let _ = decode::<pb::StopRequest>(bytes);
    let _ = decode::<pb::StatusRequest>(bytes);
}
