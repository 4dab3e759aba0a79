#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::Code as Grpc;

use super::stripe::{Carried, Links};
use super::*;
use crate::message::PrimaryMessage;
use crate::net::convert;
use crate::net::server::{Outgoing, weigh_to_backup};
use crate::net::socket::Gauge;

const SOON: Duration = Duration::from_secs(20);

/// What a link carried, dealt out to lanes.
#[derive(Clone, Debug)]
struct Dealt {
    messages: Vec<Bytes>,
    lanes: Vec<VecDeque<pb::Piece>>,
}

/// Messages, cut into pieces and dealt out as the dice say.
fn dealt(pieces_of: usize) -> impl Strategy<Value = Dealt> {
    let messages = vec(vec(any::<u8>(), 0..4 * pieces_of), 0..40);
    (messages, 1..6_usize, vec(any::<prop::sample::Index>(), 400)).prop_map(move |(messages, lanes, dice)| {
        let messages: Vec<Bytes> = messages.into_iter().map(Bytes::from).collect();
        let mut dealt = vec![VecDeque::new(); lanes];
        let mut last = 0;
        for message in &messages {
            for piece in cut(message.clone(), pieces_of, &mut last) {
                let at = usize::try_from(piece.number).unwrap() % dice.len();
                dealt[dice[at].index(lanes)].push_back(piece);
            }
        }
        Dealt { messages, lanes: dealt }
    })
}

/// Reads lanes as they come, until nothing is left that can be read. What is read is bounded all the while.
fn read(lanes: &mut [VecDeque<pb::Piece>], order: &mut Reorder, mut dice: impl FnMut() -> usize) -> Result<Vec<Bytes>> {
    let largest = lanes.iter().flatten().map(cost).max().unwrap_or(0);
    let mut came = Vec::new();
    loop {
        while let Some(message) = order.next()? {
            came.push(message);
        }
        let ready: Vec<usize> =
            (0..lanes.len()).filter(|lane| !lanes[*lane].is_empty() && order.takes(*lane)).collect();
        if ready.is_empty() {
            return Ok(came);
        }
        let lane = ready[dice() % ready.len()];
        let piece = lanes[lane].pop_front().unwrap();
        order.take(lane, piece)?;
        let most = order.bytes_max + lanes.len() * largest;
        assert!(order.held_bytes <= most, "{} bytes wait, of {most}", order.held_bytes);
        assert_eq!(order.held_bytes, order.held.values().map(cost).sum::<usize>());
    }
}

fn throws(seed: u64) -> impl FnMut() -> usize {
    let mut state = seed | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However lanes run ahead of each other, and however little may wait.
    #[test]
    fn every_interleaving_gives_the_messages(dealt in dealt(16), seed in any::<u64>(), bytes_max in 1..2000_usize) {
        let Dealt { messages, mut lanes } = dealt;
        let mut order = Reorder::new(lanes.len(), bytes_max, 1 << 20);
        prop_assert_eq!(read(&mut lanes, &mut order, throws(seed)), Ok(messages));
        prop_assert!(lanes.iter().all(VecDeque::is_empty), "something was never read: {:?}", lanes);
        prop_assert!(!order.is_over());
        (0..lanes.len()).for_each(|lane| order.end(lane));
        prop_assert!(order.is_over());
    }

    /// What is cut off one lane, at any place, is missing, and nothing that came after it is there.
    #[test]
    fn a_lane_that_is_cut_leaves_a_prefix(
        dealt in dealt(16),
        seed in any::<u64>(),
        cut_lane in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
    ) {
        let Dealt { messages, mut lanes } = dealt;
        let lost = cut_lane.index(lanes.len());
        let kept = at.index(lanes[lost].len() + 1);
        let missing = lanes[lost].get(kept).map(|piece| piece.number);
        lanes[lost].truncate(kept);
        let mut order = Reorder::new(lanes.len(), 500, 1 << 20);
        let came = read(&mut lanes, &mut order, throws(seed)).unwrap();
        prop_assert_eq!(&came[..], &messages[..came.len()]);
        let mut whole = 0;
        let ends = messages.iter().map(|message| { whole += message.len().div_ceil(16).max(1) as u64; whole });
        let complete = ends.filter(|end| missing.is_none_or(|missing| *end < missing)).count();
        prop_assert_eq!(came.len(), complete, "all that came before what is missing");
        (0..lanes.len()).for_each(|lane| order.end(lane));
        prop_assert!(order.is_over());
    }

    /// Whatever numbers a peer makes up: an error, or a lane that has to wait; never more than is allowed, nor anything twice.
    #[test]
    fn hostile_numbers_are_refused_or_wait(
        lanes in vec(vec((prop_oneof![0..9_u64, any::<u64>(), u64::MAX - 3..], any::<bool>(), 0..40_usize), 0..20), 1..5),
        seed in any::<u64>(),
    ) {
        let piece = |(number, more, length)| pb::Piece { number, data: vec![7; length].into(), more };
        let mut lanes: Vec<VecDeque<pb::Piece>> =
            lanes.into_iter().map(|lane| lane.into_iter().map(piece).collect()).collect();
        let mut order = Reorder::new(lanes.len(), 300, 100);
        match read(&mut lanes, &mut order, throws(seed)) {
            Ok(came) => prop_assert!(came.iter().all(|message| message.len() <= 100)),
            Err(error) => prop_assert!(matches!(error.code(), Code::Protocol | Code::TooLarge), "{error}"),
        }
    }
}

fn piece(number: u64) -> pb::Piece {
    pb::Piece { number, data: Bytes::from_static(b"x"), more: false }
}

/// Each rule on its own: the property above would not miss any single one.
#[test]
fn what_no_primary_does_is_refused_by_name() {
    let refused = |pieces: &[(usize, u64)]| {
        let mut order = Reorder::new(3, 1 << 20, 1 << 20);
        let (last, before) = pieces.split_last().unwrap();
        for (lane, number) in before {
            order.take(*lane, piece(*number)).unwrap();
            while order.next().unwrap().is_some() {}
        }
        let error = order.take(last.0, piece(last.1)).unwrap_err();
        assert_eq!(error.code(), Code::Protocol);
        error.message().to_owned()
    };
    assert!(refused(&[(0, 0)]).ends_with("does not follow the one before it"));
    assert!(refused(&[(0, 5), (0, 4)]).ends_with("does not follow the one before it"));
    assert!(refused(&[(0, 1), (1, 1)]).ends_with("came twice"), "delivered already");
    assert!(refused(&[(0, 2), (1, 2)]).ends_with("came twice"), "waits for its turn");
    assert!(refused(&[(0, AHEAD_MAX + 2)]).ends_with("further ahead than anything can be"));
    assert!(refused(&[(0, 2), (1, 3), (2, 4)]).ends_with("no lane of the link has piece 1"));
    let mut order = Reorder::new(1, 1 << 20, 10);
    for number in 1..=11 {
        order.take(0, pb::Piece { more: true, ..piece(number) }).unwrap();
    }
    assert_eq!(order.next().unwrap_err().code(), Code::TooLarge);
}

/// Lanes whose sockets take what they are given only when the test says so.
struct Stand {
    queue: mpsc::Sender<PrimaryMessage>,
    lanes: Vec<(Carried, Arc<Gauge>)>,
    followed: super::stripe::Followed,
    dropped: tokio::sync::oneshot::Receiver<()>,
}

fn request(token: u128, lane: u32, others: &[u32]) -> pb::LaneRequest {
    pb::LaneRequest { link: Bytes::copy_from_slice(&token.to_be_bytes()), lane, others: others.to_vec() }
}

fn follow(links: &Links) -> (u128, Stand) {
    let (queue, messages) = mpsc::channel(10_000);
    let pack: fn(_) -> pb::PrimaryMessages = convert::joined;
    let (outgoing, dropped) = Outgoing::new(messages, weigh_to_backup, pack);
    let (token, followed) = links.open(outgoing, None).unwrap();
    (token, Stand { queue, lanes: Vec::new(), followed, dropped })
}

fn stand(lanes: u32) -> Stand {
    let links = Links::default();
    let (token, mut stand) = follow(&links);
    let others: Vec<u32> = (1..lanes).collect();
    for lane in others.iter().copied().chain([0]) {
        let gauge: Arc<Gauge> = Arc::default();
        let others = if lane == 0 { &others[..] } else { &[] };
        stand.lanes.push((links.join(request(token, lane, others), Arc::clone(&gauge)).unwrap(), gauge));
    }
    stand
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what} took more than {SOON:?}"))
}

fn refusal(length: usize) -> PrimaryMessage {
    PrimaryMessage::Refused(Error::new(Code::Closed, "x".repeat(length)))
}

/// Whatever the sizes: all of it, in order, over all lanes; and a lane whose socket takes nothing holds no more than its bound.
#[tokio::test]
async fn what_is_dealt_out_is_put_in_order() {
    let mut stand = stand(4);
    let sent: Vec<PrimaryMessage> = (0..300).map(|at| refusal(at * at % 150_000)).collect();
    for message in &sent {
        stand.queue.send(message.clone()).await.unwrap();
    }
    drop(stand.queue);
    let mut order = Reorder::new(4, 16 << 20, 64 << 20);
    let mut came = Vec::new();
    let mut carried = [0; 4];
    let mut open = 4;
    let mut turn = 0;
    while open > 0 {
        // The lane 2 is slow: it is read once in a while.
        turn += 1;
        let lane = [0, 1, 3, 2][turn % 4];
        if (lane == 2 && turn % 16 != 15) || order.lanes[lane].ended {
            continue;
        }
        let (stream, gauge) = &mut stand.lanes[lane];
        match tokio::time::timeout(Duration::from_millis(1), stream.next()).await {
            Ok(Some(piece)) => {
                let piece = piece.unwrap();
                assert!(piece.encoded_len() <= PIECE_BYTES_MAX);
                carried[lane] += piece.data.len();
                gauge.took(piece.encoded_len() + 14);
                order.take(lane, piece).unwrap();
            }
            Ok(None) => {
                order.end(lane);
                open -= 1;
            }
            Err(_) => {}
        }
        assert!(stand.lanes.iter().all(|(_, gauge)| gauge.waiting() < (64 << 10) + PIECE_BYTES_MAX));
        while let Some(message) = order.next().unwrap() {
            came.extend(Vec::<PrimaryMessage>::try_from(pb::PrimaryMessages::decode(message).unwrap()).unwrap());
        }
    }
    assert!(order.is_over());
    assert_eq!(came, sent);
    assert!(carried.iter().all(|bytes| *bytes > 0), "{carried:?}");
    assert!(carried[2] < carried[0] && carried[2] < carried[1] && carried[2] < carried[3], "{carried:?}");
    assert!(within("the end", stand.followed.next()).await.is_none(), "the stream itself brings nothing but its end");
}

/// While no socket takes anything, the queue keeps what does not fit into the lanes.
#[tokio::test]
async fn lanes_without_room_hold_up_the_queue() {
    let mut stand = stand(2);
    for _ in 0..600 {
        stand.queue.send(refusal(50_000)).await.unwrap();
    }
    let mut waiting = 0;
    loop {
        tokio::task::yield_now().await;
        let now: usize = stand.lanes.iter().map(|(_, gauge)| gauge.waiting()).sum();
        if now == waiting && now > 0 {
            break;
        }
        waiting = now;
    }
    assert!(waiting < 2 * (64 << 10) + 2 * PIECE_BYTES_MAX, "{waiting}");
    assert!(stand.queue.capacity() < stand.queue.max_capacity() - 300, "more was gathered than one message");
    // A lane that has room again gets more.
    let (stream, gauge) = &mut stand.lanes[1];
    for _ in 0..20 {
        let piece = within("a piece", stream.next()).await.unwrap().unwrap();
        gauge.took(piece.encoded_len() + 5);
    }
}

#[tokio::test]
async fn a_piece_goes_where_less_waits() {
    let mut stand = stand(2);
    let lane_0 = stand.lanes.iter().position(|(lane, _)| lane.lane == 0).unwrap();
    // By turns it would be lane 0.
    stand.lanes[lane_0].1.give(1000);
    stand.queue.send(refusal(10)).await.unwrap();
    let (lane_1, _) = &mut stand.lanes[1 - lane_0];
    assert_eq!(within("a piece", lane_1.next()).await.unwrap().unwrap().number, 1);
}

#[tokio::test]
async fn a_lost_lane_ends_the_link_and_all_its_lanes() {
    let mut stand = stand(3);
    stand.queue.send(refusal(10)).await.unwrap();
    let (lost, _) = stand.lanes.remove(1);
    drop(lost);
    within("word of it", stand.dropped).await.unwrap_err();
    // The node lets go of the queue then.
    drop(stand.queue);
    for (lane, _) in &mut stand.lanes {
        within("a lane's end", async { while lane.next().await.is_some() {} }).await;
    }
    assert!(within("the end", stand.followed.next()).await.is_none());
}

/// A primary whose lanes are all full, of which one breaks, is not waiting for room any more.
#[tokio::test]
async fn a_lost_link_wakes_whoever_waits_for_room() {
    let mut stand = stand(2);
    for _ in 0..20 {
        stand.queue.send(refusal(60_000)).await.unwrap();
    }
    while stand.lanes.iter().any(|(_, gauge)| gauge.waiting() < 64 << 10) {
        tokio::task::yield_now().await;
    }
    drop(stand.lanes.pop());
    let lane = &mut stand.lanes[0].0;
    within("a lane's end", async { while lane.next().await.is_some() {} }).await;
    assert!(within("the end", stand.followed.next()).await.is_none());
}

fn code<T>(result: Result<T>) -> Code {
    result.map(drop).unwrap_err().code()
}

#[tokio::test]
async fn lanes_that_belong_to_no_link_or_come_out_of_place_are_refused() {
    let links = Links::default();
    let join = |request| links.join(request, Arc::default());
    let (old, stand) = follow(&links);
    drop(stand);
    assert_eq!(code(join(request(old, 1, &[]))), Code::Closed, "of an earlier link");
    let (token, mut stand) = follow(&links);
    assert_eq!(code(join(request(token ^ 1, 1, &[]))), Code::Closed, "made up");
    let short = pb::LaneRequest { link: Bytes::from_static(b"short"), lane: 1, others: Vec::new() };
    assert_eq!(code(join(short)), Code::Protocol);
    assert_eq!(code(join(request(token, LANES_MAX, &[]))), Code::Protocol);
    let one = join(request(token, 1, &[])).unwrap();
    assert_eq!(code(join(request(token, 1, &[]))), Code::Protocol, "twice");
    // One that is gone before it carried anything costs nothing, and can come again.
    drop(one);
    let mut one = join(request(token, 1, &[])).unwrap();
    // One that stands here and not there is let go.
    let mut two = join(request(token, 2, &[])).unwrap();
    let mut zero = join(request(token, 0, &[1])).unwrap();
    assert!(within("its end", two.next()).await.is_none());
    drop(two);
    assert_eq!(code(join(request(token, 3, &[]))), Code::Protocol, "after the link began");
    stand.queue.send(refusal(10)).await.unwrap();
    assert_eq!(within("a piece", zero.next()).await.unwrap().unwrap().number, 1);
    stand.queue.send(refusal(10)).await.unwrap();
    assert_eq!(within("a piece", one.next()).await.unwrap().unwrap().number, 2, "where less waits");
    assert!(stand.dropped.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
    drop(zero);
    within("word of it", &mut stand.dropped).await.unwrap_err();
}

/// A backup that names a lane that is lost has to dial again; and nobody joins a link that sent something already.
#[tokio::test]
async fn a_link_begins_with_all_it_names_or_not_at_all() {
    let links = Links::default();
    let join = |request| links.join(request, Arc::default());
    let (token, _stand) = follow(&links);
    assert_eq!(code(join(request(token, 0, &[1]))), Code::Unavailable);
    let (token, mut stand) = follow(&links);
    stand.queue.send(refusal(10)).await.unwrap();
    within("a message", stand.followed.next()).await.unwrap().unwrap();
    assert_eq!(code(join(request(token, 1, &[]))), Code::Protocol);
}

/// The same over the wire, with the code that tells the peer what to do.
#[tokio::test]
async fn a_forged_token_is_refused_over_the_wire() {
    let log = crate::store::memory::MemoryLog::new();
    let primary = crate::Primary::builder("east", log, crate::store::kv::KvStore::new()).start().await.unwrap();
    let mut client = pb::replication_client::ReplicationClient::connect(primary.endpoint()).await.unwrap();
    let status = client.lane(request(7, 1, &[])).await.map(drop).unwrap_err();
    assert_eq!((status.code(), crate::net::convert::from_status(&status).code()), (Grpc::Cancelled, Code::Closed));
    // With the right one, on a link that stands, it is taken; and a lane that goes on after its link does not.
    let (messages, outbox) = mpsc::channel(1);
    let follow = client.follow(tokio_stream::wrappers::ReceiverStream::new(outbox)).await.unwrap();
    let token = follow.metadata().get_bin(TOKEN).unwrap().to_bytes().unwrap();
    let request = |lane| pb::LaneRequest { link: token.clone(), lane, others: Vec::new() };
    let mut lane = client.lane(request(1)).await.unwrap().into_inner();
    drop((messages, follow));
    within("the lane's end", async { while let Ok(Some(_)) = lane.message().await {} }).await;
    assert_eq!(client.lane(request(1)).await.map(drop).unwrap_err().code(), Grpc::Cancelled, "stale");
}

#[test]
fn a_message_is_cut_where_it_has_to_be() {
    let lengths = |length: usize| {
        let mut last = 6;
        let pieces: Vec<pb::Piece> = cut(vec![0; length].into(), 10, &mut last).collect();
        assert!(pieces.iter().rev().enumerate().all(|(at, piece)| piece.more == (at > 0)));
        assert!(pieces.iter().zip(7..).all(|(piece, number)| piece.number == number));
        pieces.iter().map(|piece| piece.data.len()).collect::<Vec<_>>()
    };
    assert_eq!([lengths(0), lengths(10), lengths(11), lengths(30)], [vec![0], vec![10], vec![10, 1], vec![10, 10, 10]]);
}

/// The count leaves out the heads of frames, so it may say that nothing waits while a lane's queue is full.
#[tokio::test]
async fn a_write_makes_room_whatever_was_counted() {
    let (gauge, room) = (Gauge::default(), Arc::new(tokio::sync::Notify::new()));
    gauge.watch(Arc::clone(&room));
    gauge.took(9);
    tokio::time::timeout(SOON, room.notified()).await.unwrap();
}
