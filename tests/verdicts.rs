//! What the log alone decides, a story each: who may follow in it, whose number is used, what survived of a reign, and who
//! saw what did not.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;
use tagalong::client::image::{Verdict, rolled_back, verdict};
use tagalong::error::Code;
use tagalong::log::{
    Body, ClientId, Digest, Entry, Epoch, EpochStart, Header, Lsn, NodeId, Origin, Record, Reign, Request, SessionInfo,
    Time,
};
use tagalong::session::{LogState, Standing};

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);

fn epoch(number: u64) -> Epoch {
    Epoch { generation: 0, number, node: NodeId(1) }
}

fn header(of: u64, lsn: u64, body: Body, origin: Option<Origin>) -> Header {
    let digest = if body == Body::Command { Digest::crc32(b"") } else { Digest::default() };
    Header { epoch: epoch(of), lsn: Lsn(lsn), body, origin, time: Time(lsn), answered: Request(0), length: 0, digest }
}

fn origin(client: ClientId, request: u64) -> Option<Origin> {
    Some(Origin { client, request: Request(request) })
}

fn start(of: u64, lsn: u64, start: EpochStart) -> Header {
    header(of, lsn, Body::EpochStart(Box::new(start)), None)
}

/// A reign with two sessions; the log ends at 3.
fn two_sessions() -> LogState {
    let mut state = LogState::new();
    state.apply_header(&start(1, 1, EpochStart::default()), None).unwrap();
    for (lsn, client) in [(2, A), (3, B)] {
        let info = SessionInfo { incarnation: 1, ..SessionInfo::default() };
        state.apply_header(&header(1, lsn, Body::Open(info), origin(client, 0)), None).unwrap();
    }
    state
}

fn is_refused(state: &LogState, header: &Header) -> bool {
    let mut state = state.clone();
    state.apply_header(header, None).is_err_and(|error| error.code() == Code::Corrupt)
}

/// Reign 1 begins at 1 and loses 5 and 7; reign 2 begins at 9, reign 3 at 12.
fn reigns() -> Vec<Reign> {
    let reign = |of, start, base, gaps| Reign { epoch: epoch(of), start: Lsn(start), base: Lsn(base), gaps };
    let lost = vec![Lsn(5)..Lsn(6), Lsn(7)..Lsn(8)];
    vec![reign(1, 1, 0, Vec::new()), reign(2, 9, 4, lost), reign(3, 12, 11, Vec::new())]
}

/// A session has its handle until its end; then the next that is opened has it, so that they stay small.
#[test]
fn a_handle_is_given_again() {
    let mut state = two_sessions();
    let open = |lsn, client| header(1, lsn, Body::Open(SessionInfo::default()), origin(client, 0));
    let holders = |state: &LogState| (0..4).map(|handle| state.holder(handle)).collect::<Vec<_>>();
    state.apply_header(&header(1, 4, Body::Close, origin(A, 0)), None).unwrap();
    assert_eq!(holders(&state), [None, Some(B), None, None]);
    state.apply_header(&open(5, ClientId(3)), None).unwrap();
    state.apply_header(&open(6, A), None).unwrap();
    assert_eq!(holders(&state), [Some(ClientId(3)), Some(B), Some(A), None]);
    assert_eq!(state.session(A).map(|session| session.handle), Some(2));
}

/// Exactly the entries up to the first of the next reign are in the log, but for those that its recovery lost.
#[test]
fn what_survives_of_a_reign_ends_where_the_next_begins() {
    let in_log = |of, lsn| verdict(&reigns(), epoch(of), Lsn(lsn)) == Verdict::InLog;
    let survived: Vec<u64> = (2..12).filter(|lsn| in_log(1, *lsn)).collect();
    assert_eq!(survived, [2, 3, 4, 6, 8]);
    assert!(in_log(2, 11) && !in_log(2, 12));
    assert!(in_log(3, 99), "the present reign");
    assert!(!in_log(7, 1), "nobody knows of it");
}

/// Whoever saw the state after a lost entry saw its effect: that the later one survived says nothing.
#[test]
fn whoever_saw_past_a_lost_entry_is_told() {
    let told = |of, lsn| rolled_back(&reigns(), epoch(of), Lsn(lsn));
    let told_of_the_first: Vec<u64> = (2..12).filter(|lsn| told(1, *lsn)).collect();
    assert_eq!(told_of_the_first, [5, 6, 7, 8, 9, 10, 11]);
    assert!(!told(2, 11) && told(2, 12));
    assert!(told(7, 1) && !rolled_back(&reigns(), Epoch::ZERO, Lsn(0)));
}

/// A log with the same number of a client in it twice would execute it twice, on every node that replays it.
#[test]
fn a_number_is_used_once() {
    let mut state = two_sessions();
    state.apply_header(&header(1, 4, Body::Command, origin(A, 1)), None).unwrap();
    assert!(is_refused(&state, &header(1, 5, Body::Command, origin(A, 1))));
    assert!(is_refused(&state, &header(1, 5, Body::Noop, origin(A, 1))));
    assert!(!is_refused(&state, &header(1, 5, Body::Command, origin(A, 2))));
    assert!(!is_refused(&state, &header(1, 5, Body::Command, origin(B, 1))));
}

/// Where a recovery lost numbers, the next one in the log says that they are spent, although nothing else does.
#[test]
fn numbers_that_were_lost_are_spent() {
    let mut state = two_sessions();
    state.apply_header(&header(1, 4, Body::Command, origin(A, 3)), None).unwrap();
    assert_eq!(state.session(A).unwrap().next, Request(4));
    assert!(is_refused(&state, &header(1, 5, Body::Command, origin(A, 2))));
}

/// A client may ask for every reply after those that it said it has.
#[test]
fn replies_are_kept_from_the_first_that_may_be_asked_for() {
    let mut state = two_sessions();
    for (lsn, request, answered) in [(4, 1, 0), (5, 2, 0), (6, 3, 1)] {
        let header = Header { answered: Request(answered), ..header(1, lsn, Body::Command, origin(A, request)) };
        state.apply_header(&header, Some(Bytes::from_static(b"done"))).unwrap();
    }
    let kept: Vec<Request> = state.session(A).unwrap().replies.keys().copied().collect();
    assert_eq!(kept, [Request(2), Request(3)]);
}

/// A state machine that answers a replayed command otherwise than the first time is not to be gone on with.
#[test]
fn another_reply_than_before_is_an_error() {
    let header = header(1, 4, Body::Command, origin(A, 1));
    let record = Record { entry: Entry { header, payload: Bytes::new() }, reply: Digest::crc32(b"four") };
    let with = |reply: &'static [u8]| two_sessions().apply(&record, Some(Bytes::from_static(reply)));
    assert!(with(b"four").is_ok());
    assert_eq!(with(b"five").unwrap_err().code(), Code::Diverged);
    assert_eq!(two_sessions().apply(&record, None).unwrap_err().code(), Code::Diverged);
}

/// Each reign is above the one before it, and its first entry is its own.
#[test]
fn reigns_follow_each_other() {
    let mut state = two_sessions();
    let after = |of| start(of, 4, EpochStart { previous: epoch(1), base: Lsn(3), ..EpochStart::default() });
    assert!(is_refused(&state, &after(1)), "itself");
    assert!(is_refused(&state, &after(0)), "an older one");
    state.apply_header(&after(2), None).unwrap();
    let of: Vec<u64> = (1..=5).map(|lsn| state.epoch_at(Lsn(lsn)).number).collect();
    assert_eq!(of, [1, 1, 1, 2, 2]);
    assert_eq!(state.epoch_at(Lsn(0)), Epoch::ZERO);
}

/// Whom a recovery did not wait for, or left out, is off the roster until it resumes.
#[test]
fn who_was_left_out_is_off_the_roster() {
    let mut state = two_sessions();
    let (missing, excluded) = (vec![A], vec![B]);
    let start =
        start(2, 4, EpochStart { previous: epoch(1), base: Lsn(3), missing, excluded, ..EpochStart::default() });
    state.apply_header(&start, None).unwrap();
    assert_eq!(state.roster().collect::<BTreeSet<_>>(), BTreeSet::new());
    assert!(is_refused(&state, &header(2, 5, Body::Command, origin(B, 1))));
    state.apply_header(&header(2, 5, Body::Resume(4), origin(B, 0)), None).unwrap();
    assert_eq!(state.roster().collect::<Vec<_>>(), [B]);
    let session = state.session(B).unwrap();
    assert_eq!((session.standing, session.since, session.info.incarnation), (Standing::On, Lsn(5), 4));
}

/// The newest incarnation of a cache that the log knows is the one that counts.
#[test]
fn an_older_incarnation_does_not_come_back_by_the_log() {
    let mut state = two_sessions();
    for (lsn, body) in [(4, Body::Resume(3)), (5, Body::Resume(2))] {
        state.apply_header(&header(1, lsn, body, origin(A, 0)), None).unwrap();
    }
    assert_eq!(state.session(A).unwrap().info.incarnation, 3);
}

/// A checksum by an algorithm that this build does not know says nothing about the bytes.
#[test]
fn an_unknown_checksum_verifies_nothing() {
    let known = Digest::crc32(b"bytes");
    assert!(known.verifies(b"bytes") && !known.verifies(b"other"));
    assert!(!Digest { algorithm: 2, ..known }.verifies(b"bytes"));
    assert!(!Digest::default().verifies(b""));
}

/// What is minted by force outranks whatever the lost side may still mint, however often it does.
#[test]
fn a_forced_reign_outranks_all_that_the_lost_side_mints() {
    let lost = (0..9).fold(epoch(1), |epoch, _| epoch.successor(NodeId(1), false));
    let forced = epoch(1).successor(NodeId(2), true);
    assert!(forced > lost && epoch(1).successor(NodeId(2), false) < lost);
    assert!(forced.successor(NodeId(3), true) > (0..9).fold(forced, |epoch, _| epoch.successor(NodeId(2), false)));
}

/// A report of the last number there is would end every walk over what was reported, and no log can go on behind it.
#[test]
fn nothing_can_stand_at_the_last_number() {
    assert!(header(1, u64::MAX - 1, Body::Noop, None).is_possible());
    assert!(!header(1, u64::MAX, Body::Noop, None).is_possible());
}
