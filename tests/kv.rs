//! The key-value state machine.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tagalong::log::{Body, Digest, Entry, Epoch, Header, Lsn, Request, Time};
use tagalong::store::kv::{KvCommand, KvItem, KvQuery, KvReply, KvStore, LIST_BYTES_MAX};
use tagalong::store::{Missing, StateMachine};
use tagalong::{Code, Error};

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
    store.apply(&[&entry(1, KvCommand::put("k", "v").encode())], &mut replies).unwrap();
    assert_eq!(KvReply::decode(&replies[0]).unwrap(), KvReply::Done);
    let reply = store.query(&KvQuery::get("k").encode()).unwrap();
    assert_eq!(KvReply::decode(&reply).unwrap(), KvReply::Value(Some((Bytes::from_static(b"v"), Lsn(1)))));
}

fn apply(store: &mut KvStore, lsn: u64, command: &KvCommand) -> KvReply {
    let mut replies = Vec::new();
    store.apply(&[&entry(lsn, command.encode())], &mut replies).unwrap();
    assert_eq!(replies.len(), 1);
    KvReply::decode(&replies[0]).unwrap()
}

fn ask(store: &mut KvStore, query: &KvQuery) -> KvReply {
    KvReply::decode(&store.query(&query.encode()).unwrap()).unwrap()
}

fn value(bytes: &'static str, version: u64) -> KvReply {
    KvReply::Value(Some((Bytes::from(bytes), Lsn(version))))
}

#[test]
fn every_command_does_what_it_says() {
    let mut store = KvStore::new();
    assert_eq!(ask(&mut store, &KvQuery::get("k")), KvReply::Value(None));
    assert_eq!(apply(&mut store, 1, &KvCommand::append("k", "ab")), KvReply::Length(2));
    assert_eq!(apply(&mut store, 2, &KvCommand::append("k", "c")), KvReply::Length(3));
    assert_eq!(ask(&mut store, &KvQuery::get("k")), value("abc", 2));
    assert_eq!(apply(&mut store, 3, &KvCommand::compare_and_set("k", Some("x"), Some("y"))), value("abc", 2));
    assert_eq!(apply(&mut store, 4, &KvCommand::compare_and_set("k", Some("abc"), Some("y"))), KvReply::Done);
    assert_eq!(ask(&mut store, &KvQuery::get("k")), value("y", 4));
    assert_eq!(apply(&mut store, 5, &KvCommand::compare_and_set("k", None, Some("z"))), value("y", 4));
    assert_eq!(apply(&mut store, 6, &KvCommand::compare_and_set("k", Some("y"), None)), KvReply::Done);
    assert!(store.is_empty());
    assert_eq!(apply(&mut store, 7, &KvCommand::compare_and_set("k", Some("y"), None)), KvReply::Value(None));
    assert_eq!(apply(&mut store, 8, &KvCommand::compare_and_set("k", None, Some("n"))), KvReply::Done);
    assert_eq!(apply(&mut store, 9, &KvCommand::delete("k")), KvReply::Done);
    assert_eq!(apply(&mut store, 10, &KvCommand::delete("k")), KvReply::Done);
    assert_eq!(store.get("k"), None);
    assert_eq!(apply(&mut store, 11, &KvCommand::put("", "")), KvReply::Done);
    assert_eq!((store.get(""), store.len()), (Some(&b""[..]), 1));
}

fn keys(reply: KvReply) -> (Vec<String>, bool) {
    let KvReply::List { items, more } = reply else { panic!("{reply:?}") };
    (items.iter().map(|item| String::from_utf8(item.key.to_vec()).unwrap()).collect(), more)
}

#[test]
fn a_list_has_what_begins_so_in_order_and_by_pages() {
    let mut store = KvStore::new();
    for (lsn, key) in ["b", "a", "ab", "abc", "ac", "\u{7f}"].into_iter().enumerate() {
        apply(&mut store, lsn as u64 + 1, &KvCommand::put(key, "v"));
    }
    assert_eq!(keys(ask(&mut store, &KvQuery::list(""))).0, ["a", "ab", "abc", "ac", "b", "\u{7f}"]);
    let (found, more) = keys(ask(&mut store, &KvQuery::list("a")));
    assert!(found == ["a", "ab", "abc", "ac"] && !more, "{found:?}");
    let mut seen = Vec::new();
    let mut query = KvQuery::list("a").limit(3);
    loop {
        let (page, more) = keys(ask(&mut store, &query));
        seen.extend(page);
        if !more {
            break;
        }
        query = KvQuery::list("a").limit(3).after(seen.last().unwrap());
    }
    assert_eq!(seen, ["a", "ab", "abc", "ac"]);
    assert_eq!(keys(ask(&mut store, &KvQuery::list("a").after("ab"))).0, ["abc", "ac"]);
    assert_eq!(keys(ask(&mut store, &KvQuery::list("b").after("a"))).0, ["b"], "a key before the prefix");
    assert_eq!(keys(ask(&mut store, &KvQuery::list("a").after("b"))).0.len(), 0);
    assert_eq!(keys(ask(&mut store, &KvQuery::list("x"))), (vec![], false));
    assert_eq!(keys(ask(&mut store, &KvQuery::list("a").limit(0))), (vec![], true));
}

#[test]
fn a_list_is_bounded_in_bytes() {
    let mut store = KvStore::new();
    for lsn in 1..20 {
        apply(&mut store, lsn, &KvCommand::put(format!("{lsn:03}"), vec![0; 100_000]));
    }
    let reply = store.query(&KvQuery::list("").encode()).unwrap();
    assert!(reply.len() <= LIST_BYTES_MAX + 1000, "{}", reply.len());
    let (page, more) = keys(KvReply::decode(&reply).unwrap());
    assert!(page.len() == 2 && more, "{page:?}");
    apply(&mut store, 20, &KvCommand::put("000", vec![0; 1 << 20]));
    assert_eq!(keys(ask(&mut store, &KvQuery::list(""))).0, ["000"], "one item, however large");
}

#[test]
fn nonsense_gets_a_reply_and_changes_nothing() {
    let mut store = KvStore::new();
    apply(&mut store, 1, &KvCommand::put("k", "v"));
    let before = store.clone();
    let good = [KvCommand::put("k", "w").encode(), KvCommand::compare_and_set("k", None, Some("w")).encode()];
    let mut bad: Vec<Vec<u8>> =
        vec![vec![], vec![0], vec![9, 1, 2], vec![1, 255, 255, 255, 255], vec![2, 255, 255, 255, 127, 1]];
    for bytes in good {
        bad.extend((0..bytes.len()).map(|length| bytes[..length].to_vec()));
        bad.push([bytes.as_ref(), b"x"].concat());
    }
    for bytes in bad {
        let mut replies = Vec::new();
        store.apply(&[&entry(2, bytes.clone().into())], &mut replies).unwrap();
        assert!(matches!(KvReply::decode(&replies[0]).unwrap(), KvReply::Malformed(_)), "{bytes:?}");
        assert_eq!(KvCommand::decode(&bytes).unwrap_err().code(), Code::InvalidArgument);
        let reply = store.query(&bytes.clone().into()).unwrap();
        KvReply::decode(&reply).unwrap();
    }
    assert_eq!(store, before);
    assert!(matches!(ask_bytes(&mut store, b""), KvReply::Malformed(_)));
    assert_eq!(KvReply::decode(b"").unwrap_err().code(), Code::Protocol);
}

fn ask_bytes(store: &mut KvStore, query: &'static [u8]) -> KvReply {
    KvReply::decode(&store.query(&Bytes::from_static(query)).unwrap()).unwrap()
}

fn filled() -> KvStore {
    let mut store = KvStore::new();
    for lsn in 1..50 {
        apply(&mut store, lsn, &KvCommand::put(format!("key {}", lsn % 20), vec![lsn as u8; lsn as usize]));
    }
    store
}

#[test]
fn a_snapshot_restores_the_state_and_nothing_else_does() {
    let store = filled();
    let mut snapshot = Vec::new();
    store.snapshot(&mut snapshot).unwrap();
    let mut other = KvStore::new();
    apply(&mut other, 1, &KvCommand::put("old", "state"));
    let old = other.clone();
    for at in 0..snapshot.len() {
        let mut damaged = snapshot.clone();
        damaged[at] ^= 1;
        let error = Error::from(other.restore(&mut damaged.as_slice()).unwrap_err());
        assert_eq!(error.code(), Code::Corrupt, "byte {at}");
        let error = Error::from(other.restore(&mut &snapshot[..at]).unwrap_err());
        assert_eq!(error.code(), Code::Corrupt, "the first {at} bytes");
        assert_eq!(other, old, "the state is as it was");
    }
    let mut later = snapshot.clone();
    later[10] = 2;
    let end = later.len() - 4;
    let crc = crc32fast::hash(&later[..end]);
    later[end..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Error::from(other.restore(&mut later.as_slice()).unwrap_err()).code(), Code::WrongVersion);
    other.restore(&mut snapshot.as_slice()).unwrap();
    assert_eq!(other, store);
    let mut again = Vec::new();
    other.snapshot(&mut again).unwrap();
    assert_eq!(again, snapshot);
}

#[test]
fn a_command_is_independent_only_of_what_changed_nothing() {
    let store = KvStore::new();
    let later = entry(9, KvCommand::put("k", "v").encode());
    let missing = |body: Option<Body>| Missing {
        lsn: Lsn(3),
        header: body.map(|body| Header { body, ..entry(3, Bytes::new()).header }),
    };
    assert!(store.independent(&later, &[]));
    assert!(store.independent(&later, &[missing(Some(Body::Suspend)), missing(Some(Body::Noop))]));
    assert!(!store.independent(&later, &[missing(Some(Body::Noop)), missing(Some(Body::Command))]));
    assert!(!store.independent(&later, &[missing(None)]));
}

/// A state machine of many small values does not keep the large buffers they came in.
#[test]
fn a_value_does_not_keep_the_buffer_it_came_in() {
    let mut store = KvStore::new();
    let command = KvCommand::put("k", "v").encode();
    let buffer = Bytes::from([vec![0; 1000], command.to_vec(), vec![0; 1000]].concat());
    let slice = buffer.slice(1000..1000 + command.len());
    let mut replies = Vec::new();
    store.apply(&[&entry(1, slice)], &mut replies).unwrap();
    assert!(buffer.is_unique(), "something of the buffer is kept");
    assert_eq!(store.get("k"), Some(&b"v"[..]));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_harmless(bytes in vec(any::<u8>(), 0..60), kind in 0..8u8) {
        let bytes = [&[kind], bytes.as_slice()].concat();
        if let Ok(command) = KvCommand::decode(&bytes) {
            prop_assert_eq!(command.encode(), bytes.clone());
        }
        if let Ok(query) = KvQuery::decode(&bytes) {
            prop_assert_eq!(query.encode(), bytes.clone());
        }
        if let Ok(reply) = KvReply::decode(&bytes) {
            prop_assert_eq!(reply.encode(), bytes.clone());
        }
        let _ = KvStore::new().restore(&mut bytes.as_slice());
    }

    #[test]
    fn commands_and_replies_read_back(
        key in vec(any::<u8>(), 0..9), one in option::of(vec(any::<u8>(), 0..9)), two in option::of(vec(any::<u8>(), 0..9)),
        number in any::<u64>(), text in ".{0,9}",
    ) {
        let some = one.clone().unwrap_or_default();
        for command in [
            KvCommand::put(&key, &some),
            KvCommand::delete(&key),
            KvCommand::append(&key, &some),
            KvCommand::compare_and_set(&key, one.as_ref(), two.as_ref()),
        ] {
            prop_assert_eq!(KvCommand::decode(&command.encode()), Ok(command));
        }
        for query in [KvQuery::get(&key), KvQuery::list(&key), KvQuery::list(&key).after(&some).limit(7)] {
            prop_assert_eq!(KvQuery::decode(&query.encode()), Ok(query));
        }
        let item = KvItem { key: key.clone().into(), value: some.clone().into(), version: Lsn(number) };
        for reply in [
            KvReply::Done,
            KvReply::Length(number),
            KvReply::Value(one.map(|value| (value.into(), Lsn(number)))),
            KvReply::List { items: vec![item.clone(), item], more: number % 2 == 0 },
            KvReply::Malformed(text),
        ] {
            prop_assert_eq!(KvReply::decode(&reply.encode()), Ok(reply));
        }
    }
}
