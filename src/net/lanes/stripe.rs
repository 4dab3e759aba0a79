//! The primary's half: deals the pieces of a link's messages out to its lanes.
//!
//! A piece goes to the lane for which the least waits, and only while little waits: a lane whose connection is busy sending
//! again what was lost is passed over, so that no more than [`LANE_BYTES`] and what its socket took depend on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::Stream;
use tonic::Status;

use super::{LANES_MAX, PIECE_BYTES, cut};
use crate::error::{Code, Error, Result};
use crate::message::PrimaryMessage;
use crate::net::server::{Outgoing, gather, weigh_to_backup};
use crate::net::socket::{Gauge, Tuning};
use crate::net::{convert, pb, random_u128};

/// A lane gets nothing more while so much waits for its socket.
const LANE_BYTES: usize = 64 << 10;
/// Or so many pieces.
const LANE_PIECES: usize = 256;

type ToBackup = Outgoing<PrimaryMessage, pb::PrimaryMessages>;

/// The links of a node that stand, by their tokens.
#[derive(Clone, Default)]
pub(in crate::net) struct Links {
    standing: Arc<Mutex<HashMap<u128, Arc<Link>>>>,
    congestion: Option<String>,
}

impl Links {
    pub(in crate::net) fn new(congestion: Option<String>) -> Self {
        Self { standing: Arc::default(), congestion }
    }

    /// A link that begins: its token, and the answer to Follow. Its connection is tuned as the settings say.
    pub(in crate::net) fn open(&self, outgoing: ToBackup, gauge: Option<Arc<Gauge>>) -> Result<(u128, Followed)> {
        let token = random_u128()?;
        if let (Some(gauge), Some(_)) = (gauge, &self.congestion) {
            gauge.tune(Tuning { congestion: self.congestion.clone(), short: false });
        }
        let (done, over) = oneshot::channel();
        let state = State { outgoing: Some(outgoing), done: Some(done), ..State::default() };
        let link = Arc::new(Link { state: Mutex::new(state), news: Arc::default() });
        self.standing.lock().insert(token, Arc::clone(&link));
        Ok((token, Followed { links: self.clone(), token, link, over }))
    }

    /// Another connection joins a link; with lane 0, which comes last, the lanes begin to carry its messages.
    ///
    /// # Errors
    /// [`Code::Closed`] for a token of no link that stands, [`Code::Protocol`] for a lane out of place, and
    /// [`Code::Unavailable`] if one of the others that stand for the backup does not for this node.
    pub(in crate::net) fn join(&self, request: pb::LaneRequest, gauge: Arc<Gauge>) -> Result<Carried> {
        let pb::LaneRequest { link, lane, others } = request;
        let wrong = |why: String| Error::new(Code::Protocol, why);
        let token = <[u8; 16]>::try_from(&link[..]).map_err(|_| wrong("LaneRequest.link has to be 16 bytes".into()))?;
        let link = self.standing.lock().get(&u128::from_be_bytes(token)).cloned();
        let link = link.ok_or_else(|| Error::new(Code::Closed, "there is no link of this token, or none any more"))?;
        if lane >= LANES_MAX {
            return Err(wrong(format!("lane {lane} of a link, which has {LANES_MAX} at most")));
        }
        let mut state = link.state.lock();
        if state.begun || state.outgoing.is_none() || state.waiting.contains_key(&lane) {
            return Err(wrong(format!("lane {lane} of a link that has begun, or has this lane already")));
        }
        let (pieces, queue) = mpsc::channel(LANE_PIECES);
        gauge.tune(Tuning { congestion: self.congestion.clone(), short: true });
        gauge.watch(Arc::clone(&link.news));
        state.waiting.insert(lane, Lane { pieces, gauge });
        if lane == 0 {
            state.begin(others, &link)?;
        }
        drop(state);
        Ok(Carried { lane, queue, link })
    }
}

/// A link, as its streams share it.
pub(in crate::net) struct Link {
    state: Mutex<State>,
    /// There is room in a lane, or the link is over.
    news: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// What the Follow stream sends, as long as it does.
    outgoing: Option<ToBackup>,
    /// The Follow stream sent something.
    begun: bool,
    /// Lanes that joined and carry nothing yet.
    waiting: BTreeMap<u32, Lane>,
    /// Lanes that carry the link's messages: with any of them it ends.
    carrying: BTreeSet<u32>,
    /// Of a link with lanes: dropped when it is over.
    alive: Option<oneshot::Sender<()>>,
    /// Dropped when all was given to the lanes.
    done: Option<oneshot::Sender<()>>,
}

impl State {
    /// From now on lane 0 and the `others` carry what is sent.
    fn begin(&mut self, others: Vec<u32>, link: &Arc<Link>) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut lanes = Vec::new();
        for number in std::iter::once(0).chain(others) {
            let lane = waiting.remove(&number).ok_or_else(|| {
                Error::new(Code::Unavailable, format!("lane {number} of the link is not there: dial again"))
            })?;
            self.carrying.insert(number);
            lanes.push(lane);
        }
        if let Some(outgoing) = self.outgoing.take() {
            let (queue, alive) = outgoing.into_parts();
            self.alive = Some(alive);
            tokio::spawn(stripe(queue, lanes, Arc::clone(link), self.done.take()));
        }
        Ok(())
    }
}

impl Link {
    /// The link is lost: whoever reads what the backup sends hears of it, and whoever deals out.
    fn end(&self) {
        self.state.lock().alive = None;
        self.news.notify_one();
    }

    fn is_over(&self) -> bool {
        self.state.lock().alive.is_none()
    }
}

/// The primary's end of a lane.
struct Lane {
    pieces: mpsc::Sender<pb::Piece>,
    gauge: Arc<Gauge>,
}

impl Lane {
    fn has_room(&self) -> bool {
        self.gauge.waiting() < LANE_BYTES && self.pieces.capacity() > 0
    }
}

/// Deals out what is in the queue, until it ends or the link does.
async fn stripe(
    mut queue: mpsc::Receiver<PrimaryMessage>,
    lanes: Vec<Lane>,
    link: Arc<Link>,
    done: Option<oneshot::Sender<()>>,
) {
    let (mut last, mut turn) = (0, 0);
    'link: while let Some(first) = queue.recv().await {
        // What gathers while no lane has room is sent together.
        if roomiest(&lanes, turn, &link).await.is_none() {
            break;
        }
        let messages = gather(&mut queue, first, weigh_to_backup, PIECE_BYTES);
        let message = Bytes::from(convert::joined(messages).encode_to_vec());
        for piece in cut(message, PIECE_BYTES, &mut last) {
            let Some(chosen) = roomiest(&lanes, turn, &link).await else { break 'link };
            turn = chosen + 1;
            let Lane { pieces, gauge } = &lanes[chosen];
            // Its head within the stream, which is always there, but not that of a frame, which it may share.
            gauge.give(piece.encoded_len() + 5);
            if pieces.try_send(piece).is_err() {
                break 'link;
            }
        }
    }
    drop(lanes);
    drop(done);
}

/// Waits for a lane that has room: the one for which the least waits, and by turns where that is equal. None when the link
/// is over.
async fn roomiest(lanes: &[Lane], turn: usize, link: &Link) -> Option<usize> {
    loop {
        if link.is_over() {
            return None;
        }
        let by_turns = (0..lanes.len()).map(|at| (turn + at) % lanes.len());
        let free = by_turns.filter(|at| lanes[*at].has_room()).min_by_key(|at| lanes[*at].gauge.waiting());
        if free.is_some() {
            return free;
        }
        link.news.notified().await;
    }
}

/// The answer to Follow: the messages themselves, or, where lanes carry them, nothing until they are all given out.
pub(in crate::net) struct Followed {
    links: Links,
    token: u128,
    link: Arc<Link>,
    over: oneshot::Receiver<()>,
}

impl Stream for Followed {
    type Item = Result<pb::PrimaryMessages, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // First of all, so that its end wakes this task even if lanes take over in between.
        let over = !self.over.is_terminated() && Pin::new(&mut self.over).poll(cx).is_ready();
        let mut state = self.link.state.lock();
        let Some(outgoing) = &mut state.outgoing else {
            return if over { Poll::Ready(None) } else { Poll::Pending };
        };
        let polled = Pin::new(outgoing).poll_next(cx);
        state.begun |= matches!(polled, Poll::Ready(Some(_)));
        polled.map(|message| message.map(Ok))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.links.standing.lock().remove(&self.token);
        self.link.end();
        // Lanes that never carried anything end with it.
        let left = std::mem::take(&mut *self.link.state.lock());
        drop(left);
    }
}

/// What a lane carries.
pub(in crate::net) struct Carried {
    pub(super) lane: u32,
    queue: mpsc::Receiver<pb::Piece>,
    link: Arc<Link>,
}

impl Stream for Carried {
    type Item = Result<pb::Piece, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let mut state = self.link.state.lock();
        state.waiting.remove(&self.lane);
        let carried = state.carrying.contains(&self.lane);
        drop(state);
        if carried {
            self.link.end();
        }
    }
}
