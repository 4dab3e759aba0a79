//! Several connections for one replication link: the primary's messages, cut into numbered pieces, and put in order again.
//!
//! One TCP stream halves its rate at every loss it notices, and takes many round trips to come back: over a long path it
//! carries a fraction of what the path can. Several do not halve together. So a backup may attach further connections,
//! *lanes*, to its link, and the primary deals the pieces out to whichever has room.
//!
//! ```text
//!  sequencer ──► queue ──► stripe ──► lane 0 ═══ connection of the Follow stream ═══► ┐
//!                          (number)   lane 1 ═══════════════════════════════════════► ├─ Reorder ──► sequencer
//!                                     lane 2 ═══════════════════════════════════════► ┘
//!            Follow stream ◄════════════════════ hello, acknowledgements ═══════════════════════════
//! ```
//!
//! What the cores see is one ordered stream, as without. A link is lost as a whole: when any lane ends, what came in order
//! until then has been delivered, the rest is dropped, and the next link begins with what the backup has.
//!
//! Bounds: a lane is given a piece only when nearly all it had is in its socket (`stripe`). At the backup a lane that runs
//! ahead is not read any more once `bytes_max` wait for a piece of another, and HTTP/2's flow control holds it up.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::pb;
use crate::error::{Code, Error, Result};

pub(super) mod stripe;
#[cfg(test)]
mod tests;

/// Lanes of a link, at most.
pub(super) const LANES_MAX: u32 = 64;
/// Bytes of a piece: with all heads it fits into one HTTP/2 frame.
pub(super) const PIECE_BYTES: usize = (64 << 10) - 64;
/// The largest message on a lane that is taken.
pub(super) const PIECE_BYTES_MAX: usize = 2 * PIECE_BYTES;
/// A number that is so far ahead was never given out: so much cannot be under way.
const AHEAD_MAX: u64 = 1 << 20;
/// Under this name the primary tells the backup its link's token.
pub(super) const TOKEN: &str = "tagalong-link-bin";

/// Cuts what was encoded into pieces of so many bytes, numbered on from `last`.
fn cut(mut message: Bytes, bytes_max: usize, last: &mut u64) -> impl Iterator<Item = pb::Piece> {
    let mut more = true;
    std::iter::from_fn(move || {
        if !more {
            return None;
        }
        let data = message.split_to(message.len().min(bytes_max));
        more = !message.is_empty();
        *last += 1;
        Some(pb::Piece { number: *last, data, more })
    })
}

/// What the backup knows of a lane.
#[derive(Clone, Debug, Default)]
struct Lane {
    /// The number of its last piece.
    last: u64,
    ended: bool,
}

/// Puts the pieces of all lanes in order, and together.
#[derive(Debug)]
pub(super) struct Reorder {
    lanes: Vec<Lane>,
    /// The number that is to be delivered next.
    next: u64,
    /// What came before its turn.
    held: BTreeMap<u64, pb::Piece>,
    held_bytes: usize,
    bytes_max: usize,
    /// The beginning of a message that is not complete.
    begun: BytesMut,
    message_bytes_max: usize,
}

/// What a held piece costs.
fn cost(piece: &pb::Piece) -> usize {
    piece.data.len() + 128
}

impl Reorder {
    /// For so many lanes, of which `bytes_max` are held before the lanes that are ahead have to wait.
    pub(super) fn new(lanes: usize, bytes_max: usize, message_bytes_max: usize) -> Self {
        Self {
            lanes: vec![Lane::default(); lanes],
            next: 1,
            held: BTreeMap::new(),
            held_bytes: 0,
            bytes_max,
            begun: BytesMut::new(),
            message_bytes_max,
        }
    }

    /// Whether a lane is to be read. One that is ahead is not when enough is held; one that is not may bring the very
    /// piece that everybody waits for.
    pub(super) fn takes(&self, lane: usize) -> bool {
        let Lane { last, ended } = self.lanes[lane];
        !ended && (last < self.next || self.held_bytes < self.bytes_max)
    }

    /// A lane's next piece.
    ///
    /// # Errors
    /// [`Code::Protocol`] for a number that was used, does not rise on its lane, is skipped by all lanes, or cannot have
    /// been given out yet.
    pub(super) fn take(&mut self, lane: usize, piece: pb::Piece) -> Result<()> {
        let number = piece.number;
        let wrong =
            |why: &str| Err(Error::new(Code::Protocol, format!("lane {lane} of the link: piece {number} {why}")));
        if number <= self.lanes[lane].last {
            return wrong("does not follow the one before it");
        }
        if number < self.next || self.held.contains_key(&number) {
            return wrong("came twice");
        }
        if number - self.next > AHEAD_MAX {
            return wrong("is further ahead than anything can be");
        }
        self.lanes[lane].last = number;
        self.held_bytes += cost(&piece);
        self.held.insert(number, piece);
        // Numbers rise on every lane: what all of them are past will never come.
        if !self.held.contains_key(&self.next) && self.lanes.iter().all(|lane| !lane.ended && lane.last > self.next) {
            let why = format!("no lane of the link has piece {}", self.next);
            return Err(Error::new(Code::Protocol, why));
        }
        Ok(())
    }

    /// A lane's end.
    pub(super) fn end(&mut self, lane: usize) {
        self.lanes[lane].ended = true;
    }

    /// Whether nothing can come any more.
    pub(super) fn is_over(&self) -> bool {
        let past = |lane: &Lane| lane.ended || lane.last > self.next;
        !self.held.contains_key(&self.next) && self.lanes.iter().any(|lane| lane.ended) && self.lanes.iter().all(past)
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    /// [`Code::TooLarge`] for one that is larger than the limit.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(piece) = self.held.remove(&self.next) {
            self.held_bytes -= cost(&piece);
            self.next += 1;
            if self.begun.len() + piece.data.len() > self.message_bytes_max {
                let why = format!("a message over message_bytes_max, {}", self.message_bytes_max);
                return Err(Error::new(Code::TooLarge, why));
            }
            if !piece.more && self.begun.is_empty() {
                return Ok(Some(piece.data));
            }
            self.begun.extend_from_slice(&piece.data);
            if !piece.more {
                return Ok(Some(self.begun.split().freeze()));
            }
        }
        Ok(None)
    }
}
