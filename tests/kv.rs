//! The key-value state machine.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use tagalong::log::{Body, Digest, Entry, Epoch, Header, Lsn, Request, Time};
use tagalong::store::StateMachine;
use tagalong::store::kv::{KvCommand, KvQuery, KvReply, KvStore};

fn entry(lsn: u64, payload: Bytes) -> Entry {
    let header = Header {
        epoch: Epoch::ZERO,
        lsn: Lsn(lsn),
        body: Body::Command,
        origin: None,
        time: Time(0),
        answered: Request(0),
        length: u32::try_from(payload.len()).unwrap(),
        digest: Digest::crc32(&payload),
    };
    Entry { header, payload }
}

#[test]
fn a_value_is_put_and_got() {
    let mut store = KvStore::new();
    let mut replies = Vec::new();
    store.apply(&[entry(1, KvCommand::put("k", "v").encode())], &mut replies).unwrap();
    assert_eq!(KvReply::decode(&replies[0]).unwrap(), KvReply::Done);
    let reply = store.query(&KvQuery::get("k").encode()).unwrap();
    assert_eq!(KvReply::decode(&reply).unwrap(), KvReply::Value(Some((Bytes::from_static(b"v"), Lsn(1)))));
}
