//! What is on disks, frame by frame: headers, records, marks, cache operations; what the log says of sessions; and what
//! the key-value store reads.

use bytes::Bytes;
use tagalong::codec::{
    decode_header, decode_marks, decode_op, decode_record, encode_header, encode_marks, encode_op, encode_record,
};
use tagalong::error::{Code, Error, Result};
use tagalong::log::{Body, Entry, Epoch, Header, Lsn, Record};
use tagalong::session::{LogState, Standing};
use tagalong::store::StateMachine;
use tagalong::store::kv::{KvCommand, KvQuery, KvReply, KvStore};

use super::heap;
use super::input::Input;

/// A value has one form: what can be read is written as the very same bytes.
fn one_form<T>(bytes: &[u8], decode: fn(&[u8]) -> Result<T>, encode: fn(&T, &mut Vec<u8>)) -> Option<T> {
    match heap::within(bytes, 4096, 64, || decode(bytes)) {
        Ok(value) => {
            let mut again = Vec::new();
            encode(&value, &mut again);
            assert_eq!(again, bytes, "there is one form of a value");
            Some(value)
        }
        Err(error) => {
            assert!(matches!(error.code(), Code::Corrupt | Code::UnknownKind), "{error}");
            None
        }
    }
}

pub(crate) fn records(bytes: &[u8]) {
    one_form(bytes, decode_header, encode_header);
    if let Some(record) = one_form(bytes, decode_record, encode_record) {
        assert!(record.entry.payload.len() < bytes.len());
    }
    one_form(bytes, decode_marks, encode_marks);
    one_form(bytes, decode_op, encode_op);
}

/// Headers one after the other into a log's state: what cannot follow changes nothing.
///
/// Each is a byte of flags and a part; by the flags its place, epoch and origin are put right, or not.
pub(crate) fn sessions(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut state = LogState::new();
    while let Some(flags) = input.byte() {
        let Ok(mut header) = decode_header(input.part()) else { continue };
        if flags & 1 == 0 {
            header.lsn = state.end().next();
        }
        if flags & 2 == 0 {
            put_epoch_right(&mut header, &state);
        }
        if flags & 4 == 0
            && let Some(origin) = &mut header.origin
            && let Some((client, session)) = state.sessions().iter().nth(usize::from(flags >> 4))
        {
            (origin.client, origin.request) = (*client, session.next);
        }
        follow(&mut state, &header);
    }
}

fn put_epoch_right(header: &mut Header, state: &LogState) {
    let epoch = state.epoch();
    if let Body::EpochStart(start) = &mut header.body {
        start.previous = epoch;
        header.epoch = Epoch { number: epoch.number.saturating_add(1), ..epoch };
    } else {
        header.epoch = epoch;
    }
}

fn follow(state: &mut LogState, header: &Header) {
    let before = state.clone();
    let record = Record { entry: Entry { header: header.clone(), payload: Bytes::new() }, reply: Default::default() };
    let reply = (header.body == Body::Command).then(|| Bytes::from_static(b"reply"));
    if let Err(error) = state.apply(&record, reply) {
        assert_eq!(error.code(), Code::Corrupt, "{error}");
        assert_eq!(*state, before, "what cannot follow changes nothing");
        return;
    }
    assert_eq!(state.end(), before.end().next(), "I1: the log is dense");
    if let (Body::Command | Body::Noop, Some(origin)) = (&header.body, header.origin) {
        assert!(before.session(origin.client).is_some_and(|session| origin.request >= session.next), "I6: used once");
    }
    assert!(state.time() >= before.time() && state.epoch() >= before.epoch());
    for (client, session) in state.sessions() {
        let known = before.session(*client);
        assert!(session.next >= known.map_or(session.next, |known| known.next), "I6: numbers are used once");
        assert!(session.last <= state.end() && session.since <= state.end());
        assert!(session.replies.keys().all(|request| *request < session.next));
        let on = state.roster().any(|on| on == *client);
        assert_eq!(on, session.standing == Standing::On);
    }
    let outline = state.outline();
    assert_eq!((outline.end(), outline.epoch(), outline.sessions().len()), {
        (state.end(), state.epoch(), state.sessions().len())
    });
}

fn kv_form<T>(bytes: &[u8], code: Code, decode: fn(&[u8]) -> Result<T>, encode: fn(&T) -> Bytes) -> Option<T> {
    match heap::within(bytes, 4096, 16, || decode(bytes)) {
        Ok(value) => {
            assert_eq!(encode(&value), bytes, "there is one form of a value");
            Some(value)
        }
        Err(error) => {
            assert_eq!(error.code(), code, "{error}");
            None
        }
    }
}

fn snapshot(store: &KvStore) -> Vec<u8> {
    let mut out = Vec::new();
    store.snapshot(&mut out).expect("memory takes it");
    out
}

/// Commands, queries, replies and snapshots of the key-value store.
pub(crate) fn kv(bytes: &[u8]) {
    kv_form(bytes, Code::InvalidArgument, KvCommand::decode, KvCommand::encode);
    kv_form(bytes, Code::InvalidArgument, KvQuery::decode, KvQuery::encode);
    kv_form(bytes, Code::Protocol, KvReply::decode, KvReply::encode);

    let mut store = KvStore::new();
    let payload = Bytes::copy_from_slice(bytes);
    let header = Header { lsn: Lsn(1), ..super::forged::command_header(&payload) };
    let mut replies = Vec::new();
    store.apply(&[&Entry { header, payload: payload.clone() }], &mut replies).expect("no client stops a node");
    let is_command = KvCommand::decode(bytes).is_ok();
    let reply = KvReply::decode(&replies[0]).expect("its own reply");
    assert_eq!(matches!(reply, KvReply::Malformed(_)), !is_command);
    let answer = store.query(&payload).expect("nor does a query");
    KvReply::decode(&answer).expect("its own answer");

    // As it is, and with its checksum put right.
    let before = store.clone();
    let mut mended = bytes.to_vec();
    mended.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    for bytes in [bytes, &mended] {
        match heap::within(bytes, 4096, 64, || store.restore(&mut &bytes[..])) {
            Ok(()) => {
                let mut again = KvStore::new();
                again.restore(&mut snapshot(&store).as_slice()).expect("its own snapshot");
                assert_eq!(again, store);
                store = before.clone();
            }
            Err(error) => {
                let code = Error::from(error).code();
                assert!(matches!(code, Code::Corrupt | Code::WrongVersion), "{code:?}");
                assert_eq!(store, before, "what is no snapshot changes nothing");
            }
        }
    }
}
