//! The plain form of a share's body: which entries the equation combines, and the symbol they amount to.
//!
//! ```text
//! stripe   row · members · symbol        a member: header, segment; coefficient = cauchy(place in the list, row)
//! window   first LSN · which of the next LSNs · symbol      coefficient = hash(share id, LSN)
//! witness  members                                          no equation: where the members of a stripe are
//! ```
//!
//! A stripe's symbol combines bare segments, since its members' headers stand beside it: whoever holds one share can
//! vouch for the place of every member. A window's symbol combines whole entries, header and length in front
//! ([`encode_symbol`]), as RFC 8681 prefixes an ADU: naming 64 headers would cost more than most commands.

use bytes::Bytes;

use super::{SEGMENT_BYTES, VERSION, field};
use crate::codec::{self, Put, Take};
use crate::error::{Code, Error, Result};
use crate::log::{Body, ClientId, Entry, Epoch, Header, Lsn, Origin, Request, Time};

/// Entries a window's share may span, counted in LSNs.
pub const SPAN_MAX: usize = 1024;
/// Members of a stripe, at most: the columns of the Cauchy matrix are more, and nobody needs as many.
pub const MEMBERS_MAX: usize = 64;

/// A segment of an entry in a stripe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// The entry's header.
    pub header: Header,
    /// Which of its segments: bytes from `segment · SEGMENT_BYTES` on.
    pub segment: u32,
}

impl Member {
    /// Where in the entry's payload the segment lies.
    pub fn range(&self) -> std::ops::Range<usize> {
        segment_range(self.header.length, self.segment)
    }
}

/// How many segments a payload of so many bytes has: at least one, which may be empty.
pub fn segments(length: u32) -> u32 {
    const BYTES: u32 = 64 << 10;
    const { assert!(BYTES as usize == SEGMENT_BYTES) };
    length.div_ceil(BYTES).max(1)
}

/// Where segment `segment` of a payload of `length` bytes lies.
pub fn segment_range(length: u32, segment: u32) -> std::ops::Range<usize> {
    let start = (segment as usize).saturating_mul(SEGMENT_BYTES).min(length as usize);
    start..(start + SEGMENT_BYTES).min(length as usize)
}

/// What a share says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Plain {
    /// A row of a stripe.
    Stripe {
        /// Which row of the Cauchy matrix.
        row: u8,
        /// In the order of the matrix's columns.
        members: Vec<Member>,
        /// The combination, as long as the longest segment.
        symbol: Bytes,
    },
    /// A combination of a window.
    Window {
        /// The LSNs combined, ascending.
        members: Vec<Lsn>,
        /// The combination, as long as the longest entry's symbol.
        symbol: Bytes,
    },
    /// The members of a stripe alone: who holds this knows their places.
    Witness {
        /// As in the stripe's rows.
        members: Vec<Member>,
    },
}

/// The bodies of a stripe's rows, in their order, and of its witness: its members are the same in all.
pub(super) fn stripe_bodies(members: &[Member], symbols: &[Vec<u8>]) -> Vec<Bytes> {
    let mut named = Vec::with_capacity(48 * members.len());
    Put(&mut named).members(members);
    let rows = symbols.iter().zip(0..).map(|(symbol, row)| [&[VERSION, 0, row], &named[..], symbol].concat().into());
    let witness = [&[VERSION, 2], &named[..]].concat().into();
    rows.chain([witness]).collect()
}

impl Plain {
    /// Appends the body's form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut put = Put(out);
        put.byte(VERSION);
        match self {
            Plain::Stripe { row, members, symbol } => {
                put.byte(0);
                put.byte(*row);
                put.members(members);
                put.0.extend_from_slice(symbol);
            }
            Plain::Witness { members } => {
                put.byte(2);
                put.members(members);
            }
            Plain::Window { members, symbol } => {
                put.byte(1);
                let first = members.first().copied().unwrap_or_default();
                put.number(first.0);
                let span = members.last().map_or(0, |last| last.0 - first.0 + 1);
                put.number(span);
                let mut map = vec![0u8; usize::try_from(span.div_ceil(8)).unwrap_or_default()];
                for lsn in members {
                    let at = usize::try_from(lsn.0 - first.0).unwrap_or_default();
                    map[at / 8] |= 1 << (at % 8);
                }
                put.0.extend_from_slice(&map);
                put.0.extend_from_slice(symbol);
            }
        }
    }

    /// Reads what [`encode`](Plain::encode) wrote, of the reign `epoch`. The symbol is a slice of `bytes`.
    ///
    /// # Errors
    /// [`Code::WrongVersion`], [`Code::UnknownKind`] or [`Code::Corrupt`].
    pub fn decode(epoch: Epoch, bytes: &Bytes) -> Result<Self> {
        let mut take = Take::new(bytes);
        match take.byte()? {
            VERSION => {}
            other => return Err(Error::new(Code::WrongVersion, format!("a share of version {other}, not {VERSION}"))),
        }
        match take.byte()? {
            0 => {
                let row = take.byte()?;
                let members = take.members(epoch)?;
                let longest = members.iter().map(|member| member.range().len()).max();
                let symbol = bytes.slice_ref(take.rest());
                if row >= 128 || longest != Some(symbol.len()) {
                    return Err(Error::new(Code::Corrupt, "a stripe's members and symbol do not fit each other"));
                }
                Ok(Plain::Stripe { row, members, symbol })
            }
            1 => {
                let first = take.number()?;
                let span = take.number()?;
                if first == 0 || span == 0 || span > SPAN_MAX as u64 || first.checked_add(span).is_none() {
                    return Err(Error::new(Code::Corrupt, "a window's span makes no sense"));
                }
                let map = take.bytes(usize::try_from(span.div_ceil(8)).unwrap_or(usize::MAX))?;
                let is_in = |at: &u64| map.get((at / 8) as usize).is_some_and(|byte| byte & (1 << (at % 8)) != 0);
                let members: Vec<Lsn> = (0..span).filter(is_in).map(|at| Lsn(first + at)).collect();
                let ends = is_in(&0) && is_in(&(span - 1)) && !(span..span.next_multiple_of(8)).any(|at| is_in(&at));
                let symbol = bytes.slice_ref(take.rest());
                if !ends || symbol.is_empty() {
                    return Err(Error::new(Code::Corrupt, "a window's members make no sense"));
                }
                Ok(Plain::Window { members, symbol })
            }
            2 => {
                let members = take.members(epoch)?;
                if members.is_empty() || !take.rest().is_empty() {
                    return Err(Error::new(Code::Corrupt, "a witness of nothing, or of more than members"));
                }
                Ok(Plain::Witness { members })
            }
            other => Err(Error::new(Code::UnknownKind, format!("a share of kind {other}"))),
        }
    }

    /// The headers it names: none for a window.
    pub fn headers(&self) -> impl Iterator<Item = &Header> {
        let members = match self {
            Plain::Stripe { members, .. } | Plain::Witness { members } => members.as_slice(),
            Plain::Window { .. } => &[],
        };
        members.iter().map(|member| &member.header)
    }

    /// The coefficient of the member at place `at` of the list, in the share numbered `id`.
    pub fn coefficient(&self, id: u64, at: usize) -> u8 {
        match self {
            Plain::Stripe { row, .. } => field::cauchy(u8::try_from(at & 0x7f).unwrap_or_default(), *row),
            Plain::Window { members, .. } => members.get(at).map_or(0, |lsn| field::hash_coefficient(id, lsn.0)),
            Plain::Witness { .. } => 0,
        }
    }
}

/// The least a member takes.
const MEMBER_BYTES: usize = 6;

impl Put<'_> {
    fn members(&mut self, members: &[Member]) {
        self.number(members.len() as u64);
        let mut before = (Lsn(0), Time(0));
        for member in members {
            self.member(member, &mut before);
        }
    }

    /// Most members are commands of the share's own reign, in log order: they are told by what changes.
    fn member(&mut self, member: &Member, before: &mut (Lsn, Time)) {
        let header = &member.header;
        let in_order = header.lsn >= before.0 && header.time >= before.1;
        match (&header.body, header.origin) {
            (Body::Command | Body::Noop, Some(origin)) if in_order => {
                self.byte(u8::from(header.body == Body::Noop));
                self.number(header.lsn.0 - before.0.0);
                self.number(header.time.0 - before.1.0);
                self.u128(origin.client.0);
                self.number(origin.request.0);
                self.number(header.answered.0);
                self.number(u64::from(header.length));
                self.digest(header.digest);
                *before = (header.lsn, header.time);
            }
            _ => {
                self.byte(2);
                self.header(header);
            }
        }
        self.number(u64::from(member.segment));
    }
}

impl Take<'_> {
    fn members(&mut self, epoch: Epoch) -> Result<Vec<Member>> {
        let mut before = (Lsn(0), Time(0));
        let members = self.list(MEMBER_BYTES, |take| take.member(epoch, &mut before))?;
        if members.len() > MEMBERS_MAX {
            return Err(Error::new(Code::Corrupt, format!("{} members of a stripe", members.len())));
        }
        Ok(members)
    }

    fn member(&mut self, epoch: Epoch, before: &mut (Lsn, Time)) -> Result<Member> {
        let wrong = |why: &str| Error::new(Code::Corrupt, why);
        let header = match self.byte()? {
            kind @ (0 | 1) => {
                let past = || wrong("a member lies past every log");
                let lsn = Lsn(before.0.0.checked_add(self.number()?).ok_or_else(past)?);
                let time = Time(before.1.0.checked_add(self.number()?).ok_or_else(past)?);
                *before = (lsn, time);
                Header {
                    epoch,
                    lsn,
                    body: if kind == 0 { Body::Command } else { Body::Noop },
                    time,
                    origin: Some(Origin { client: ClientId(self.u128()?), request: Request(self.number()?) }),
                    answered: Request(self.number()?),
                    length: self.u32()?,
                    digest: self.digest()?,
                }
            }
            2 => self.header()?,
            other => return Err(Error::new(Code::UnknownKind, format!("a member of kind {other}"))),
        };
        let segment = self.u32()?;
        if segment >= segments(header.length) || !header.is_possible() {
            return Err(wrong("a member that no entry can have"));
        }
        Ok(Member { header, segment })
    }
}

/// An entry as a source symbol of a window: its header, with its length in front, and its payload.
pub fn encode_symbol(entry: &Entry) -> Vec<u8> {
    let mut header = Vec::new();
    codec::encode_header(&entry.header, &mut header);
    let mut symbol = Vec::with_capacity(header.len() + entry.payload.len() + 4);
    Put(&mut symbol).number(header.len() as u64);
    symbol.extend_from_slice(&header);
    symbol.extend_from_slice(&entry.payload);
    symbol
}

/// The entry that a solved symbol is, zero padded at its end; its digest is verified.
///
/// # Errors
/// [`Code::Corrupt`] or [`Code::UnknownKind`].
pub fn decode_symbol(symbol: &Bytes) -> Result<Entry> {
    let mut take = Take::new(symbol);
    let length = usize::try_from(take.number()?).unwrap_or(usize::MAX);
    let header = codec::decode_header(take.bytes(length)?)?;
    let rest = symbol.slice_ref(take.rest());
    let length = header.length as usize;
    if rest.len() < length || rest[length..].iter().any(|byte| *byte != 0) {
        return Err(Error::new(Code::Corrupt, "a symbol that is no entry"));
    }
    let payload = rest.slice(..length);
    if !header.is_possible() || (header.body == Body::Command && !header.digest.verifies(&payload)) {
        return Err(Error::new(Code::Corrupt, "a symbol without its checksum"));
    }
    Ok(Entry { header, payload })
}
