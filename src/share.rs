//! Shares: linear combinations of other clients' entries, which let clients die together with the primary.
//!
//! A share is one linear equation over entries, with coefficients in GF(2⁸). The primary encodes it, some client
//! keeps it unread, and a recovery decodes whatever nobody else can supply. Two encoders make the equations, and one
//! decoder solves all of them:
//!
//! * `cover`: **stripes**, the guarantee behind `Level::Covered`. Up to *k* segments of
//!   entries of distinct owners, and *f* parity rows, each kept by another client;
//! * `window`: the last few entries of others, on an ordinary response, at once and for nothing but bytes: it makes a
//!   loss improbable, never impossible;
//! * [`decode`]: an online Gauss-Jordan elimination with a byte budget, over the arithmetic of [`field`].
//!
//! A holder can neither read nor forge a share: what it keeps is the clear head below and a sealed body. The seal is
//! put on and taken off by the ring that has the key; in the core a body is plain, in the form of `body`.

use bytes::Bytes;

use crate::log::{ClientId, Epoch, HEADER_COST, Lsn};

pub mod body;
pub mod cover;
pub mod decode;
pub mod field;
pub mod window;

/// The size class of so many bytes: ⌈log₄⌉, so that what is combined is padded to at most four times its size.
pub(crate) fn size_class(length: usize) -> u32 {
    length.max(16).next_power_of_two().trailing_zeros().div_ceil(2)
}

/// The version of a share's head and body.
pub const VERSION: u8 = 1;

/// Entries are cut into segments of this many bytes, so that a large one does not pad a small one's parity.
pub const SEGMENT_BYTES: usize = 64 << 10;

/// What sealing adds to a body, in bytes: accounted for whether it is sealed or not.
pub const SEAL_COST: u64 = 32;

/// What kind of equation a share is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Mode {
    /// A row of a stripe: segments of listed entries.
    Stripe,
    /// A combination of a window of the log: whole entries, each with its header.
    Window,
}

/// A share as its holder has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// The reign whose entries it combines.
    pub epoch: Epoch,
    /// Unique within the life of the primary's process; with the epoch and that process, the seal's nonce.
    pub id: u64,
    /// What kind of equation.
    pub mode: Mode,
    /// The session that it was made for.
    pub holder: ClientId,
    /// The holder drops it when the checkpoint of its epoch passes this.
    pub hold_until: Lsn,
    /// Plain in a node's core; sealed on the wire and at the holder.
    pub body: Bytes,
}

impl Share {
    /// What it counts against a holder's budget, in bytes.
    pub fn cost(&self) -> u64 {
        self.body.len() as u64 + HEADER_COST
    }
}
