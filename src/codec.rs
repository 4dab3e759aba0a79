//! The binary form of headers, records, marks and cache operations on disk.
//!
//! Numbers are LEB128 varints, identities have a fixed width, lists and texts are preceded by their count, and every
//! choice is one byte. A value has exactly one form: what decodes encodes to the very same bytes. Neither lengths nor
//! checksums are in here, they belong to the frames of [`store::file`](crate::store::file); a record's payload is
//! simply the rest.
//!
//! Decoding stands on nothing but the bytes: arbitrary input gives an error, never a panic, and never a larger
//! allocation than the input pays for. Whoever stores these forms stores [`VERSION`] beside them. A choice this build
//! does not know is [`Code::UnknownKind`], anything else that makes no sense [`Code::Corrupt`].
//!
//! Not here: the wire, whose form is in `proto/`.

use std::ops::Range;

use bytes::Bytes;

use crate::client::{CacheOp, Command, Identity};
use crate::error::{Code, Error, Result};
use crate::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GapPolicy, GroupId, Header, Level, Lsn, NodeId,
    Origin, PLACES_BYTES_MAX, PLACES_MAX, Places, Record, Reign, Request, SessionInfo, SessionRole, Tag, Target, Time,
};
use crate::share::{Mode, Share};
use crate::store::Marks;

/// The version of everything in this file; it changes when an older build would misread what a newer one wrote.
pub const VERSION: u16 = 2;

/// The least bytes an element of a list takes, by which a count is checked before anything is allocated.
const CLIENT_BYTES: usize = 16;
const RANGE_BYTES: usize = 2;
const HEADER_BYTES: usize = 18;
const REIGN_BYTES: usize = 13;
const PLACES_BYTES: usize = 14;

/// Appends the form of a header to `out`.
pub fn encode_header(header: &Header, out: &mut Vec<u8>) {
    let mut put = Put(out);
    put.header(header);
}

/// Reads what [`encode_header`] wrote, and nothing after it.
///
/// # Errors
/// [`Code::UnknownKind`] or [`Code::Corrupt`].
pub fn decode_header(bytes: &[u8]) -> Result<Header> {
    whole(bytes, "header", Take::header)
}

/// Appends the form of a record to `out`.
pub fn encode_record(record: &Record, out: &mut Vec<u8>) {
    let mut put = Put(out);
    put.header(&record.entry.header);
    put.digest(record.reply);
    put.0.extend_from_slice(&record.entry.payload);
}

/// Reads what [`encode_record`] wrote; the payload, a copy, is everything after header and checksum.
///
/// # Errors
/// [`Code::UnknownKind`] or [`Code::Corrupt`].
pub fn decode_record(bytes: &[u8]) -> Result<Record> {
    let (header, reply, payload) = Take(bytes).record()?;
    Ok(Record { entry: Entry { header, payload: Bytes::copy_from_slice(payload) }, reply })
}

/// As [`decode_record`] of a part of `bytes`, with which the payload then shares its memory.
///
/// # Errors
/// [`Code::UnknownKind`] or [`Code::Corrupt`].
// Inline, with all that it calls: a record is then made where it stays, where it was copied from call to call.
#[inline(always)]
pub fn decode_record_of(bytes: &Bytes, part: Range<usize>) -> Result<Record> {
    let content = bytes.get(part).ok_or_else(|| corrupt("it ends too early"))?;
    let (header, reply, payload) = Take(content).record()?;
    Ok(Record { entry: Entry { header, payload: bytes.slice_ref(payload) }, reply })
}

/// Appends the form of the marks to `out`.
pub fn encode_marks(marks: &Marks, out: &mut Vec<u8>) {
    let mut put = Put(out);
    put.u128(marks.cluster.0);
    put.u128(marks.group.0);
    put.u64(marks.node.0);
    put.epoch(marks.promised);
    put.epoch(marks.reign);
    put.number(marks.base.0);
    put.flag(marks.in_sync);
    put.option(marks.clean, |put, lsn| put.number(lsn.0));
    put.number(marks.stable.0);
}

/// Reads what [`encode_marks`] wrote.
///
/// # Errors
/// [`Code::Corrupt`].
pub fn decode_marks(bytes: &[u8]) -> Result<Marks> {
    whole(bytes, "marks", |take| {
        Ok(Marks {
            cluster: ClusterId(take.u128()?),
            group: GroupId(take.u128()?),
            node: NodeId(take.u64()?),
            promised: take.epoch()?,
            reign: take.epoch()?,
            base: take.lsn()?,
            in_sync: take.flag()?,
            clean: take.option(Take::lsn)?,
            stable: take.lsn()?,
        })
    })
}

/// Appends the form of a cache operation to `out`.
pub fn encode_op(op: &CacheOp, out: &mut Vec<u8>) {
    let mut put = Put(out);
    match op {
        CacheOp::Identity(identity) => {
            put.byte(1);
            put.u128(identity.client.0);
            put.option(identity.cluster, |put, id| put.u128(id.0));
            put.option(identity.group, |put, id| put.u128(id.0));
            put.text(&identity.domain);
            put.role(identity.role);
        }
        CacheOp::Incarnation(incarnation) => {
            put.byte(2);
            put.number(*incarnation);
        }
        CacheOp::Welcomed => put.byte(3),
        CacheOp::Reported(epoch) => {
            put.byte(4);
            put.epoch(*epoch);
        }
        CacheOp::Command { request, command } => {
            put.byte(5);
            put.number(request.0);
            put.command(command);
        }
        CacheOp::Tag { request, tag } => {
            put.byte(6);
            put.number(request.0);
            put.tag(tag);
        }
        CacheOp::Answered { request, reply } => {
            put.byte(7);
            put.number(request.0);
            put.digest(*reply);
        }
        CacheOp::Superseded(request) => {
            put.byte(8);
            put.number(request.0);
        }
        CacheOp::Headers(headers) => {
            put.byte(9);
            put.list(headers, Put::header);
        }
        CacheOp::Observed(epoch, lsn) => {
            put.byte(10);
            put.epoch(*epoch);
            put.number(lsn.0);
        }
        CacheOp::Stable(epoch, lsn) => {
            put.byte(11);
            put.epoch(*epoch);
            put.number(lsn.0);
        }
        CacheOp::Verdict(epoch, reigns) => {
            put.byte(12);
            put.epoch(*epoch);
            put.list(reigns, Put::reign);
        }
        CacheOp::Share(share) => {
            put.byte(13);
            put.share(share);
        }
        CacheOp::Settled(epoch, lsn) => {
            put.byte(14);
            put.epoch(*epoch);
            put.number(lsn.0);
        }
        CacheOp::Places(places) => {
            put.byte(15);
            put.list(places, Put::places);
        }
    }
}

/// Reads what [`encode_op`] wrote; payloads are copies.
///
/// # Errors
/// [`Code::UnknownKind`] or [`Code::Corrupt`].
pub fn decode_op(bytes: &[u8]) -> Result<CacheOp> {
    whole(bytes, "cache operation", |take| {
        Ok(match take.byte()? {
            1 => CacheOp::Identity(Identity {
                client: take.client()?,
                cluster: take.option(|take| Ok(ClusterId(take.u128()?)))?,
                group: take.option(|take| Ok(GroupId(take.u128()?)))?,
                domain: take.text()?,
                role: take.role()?,
            }),
            2 => CacheOp::Incarnation(take.number()?),
            3 => CacheOp::Welcomed,
            4 => CacheOp::Reported(take.epoch()?),
            5 => CacheOp::Command { request: take.request()?, command: take.command()? },
            6 => CacheOp::Tag { request: take.request()?, tag: take.tag()? },
            7 => CacheOp::Answered { request: take.request()?, reply: take.digest()? },
            8 => CacheOp::Superseded(take.request()?),
            9 => CacheOp::Headers(take.list(HEADER_BYTES, Take::header)?),
            10 => CacheOp::Observed(take.epoch()?, take.lsn()?),
            11 => CacheOp::Stable(take.epoch()?, take.lsn()?),
            12 => CacheOp::Verdict(take.epoch()?, take.list(REIGN_BYTES, Take::reign)?),
            13 => CacheOp::Share(take.share()?),
            14 => CacheOp::Settled(take.epoch()?, take.lsn()?),
            15 => CacheOp::Places(take.list(PLACES_BYTES, Take::places)?),
            other => return Err(unknown("cache operation", other)),
        })
    })
}

/// Writes the parts.
pub(crate) struct Put<'a>(pub(crate) &'a mut Vec<u8>);

impl Put<'_> {
    pub(crate) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(crate) fn flag(&mut self, flag: bool) {
        self.byte(u8::from(flag));
    }

    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.byte((number & 0x7f) as u8);
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    fn blob(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
    }

    pub(crate) fn list<T>(&mut self, values: &[T], mut put: impl FnMut(&mut Self, &T)) {
        self.number(values.len() as u64);
        for value in values {
            put(self, value);
        }
    }

    fn client(&mut self, client: &ClientId) {
        self.u128(client.0);
    }

    fn range(&mut self, range: &Range<Lsn>) {
        self.number(range.start.0);
        self.number(range.end.0);
    }

    pub(crate) fn epoch(&mut self, epoch: Epoch) {
        self.number(u64::from(epoch.generation));
        self.number(epoch.number);
        self.u64(epoch.node.0);
    }

    pub(crate) fn digest(&mut self, digest: Digest) {
        self.byte(digest.algorithm);
        self.number(digest.value);
    }

    fn level(&mut self, level: Level) {
        self.byte(match level {
            Level::Local => 0,
            Level::Tagged => 1,
            Level::Stable => 2,
            Level::Covered => 3,
        });
    }

    fn role(&mut self, role: SessionRole) {
        self.byte(match role {
            SessionRole::Writer => 0,
            SessionRole::Reader => 1,
            SessionRole::Holder => 2,
        });
    }

    fn target(&mut self, target: Target) {
        match target {
            Target::Own => self.byte(0),
            Target::Backup(node) => {
                self.byte(1);
                self.u64(node.0);
            }
        }
    }

    fn policy(&mut self, policy: Option<GapPolicy>) {
        self.byte(match policy {
            None => 0,
            Some(GapPolicy::Stop) => 1,
            Some(GapPolicy::Skip) => 2,
        });
    }

    pub(crate) fn header(&mut self, header: &Header) {
        self.byte(match header.body {
            Body::Command => 1,
            Body::Noop => 2,
            Body::Open(_) => 3,
            Body::Suspend => 4,
            Body::Resume(_) => 5,
            Body::Close => 6,
            Body::Expire => 7,
            Body::Config(_) => 8,
            Body::EpochStart(_) => 9,
        });
        self.epoch(header.epoch);
        self.number(header.lsn.0);
        self.option(header.origin, |put, origin| {
            put.client(&origin.client);
            put.number(origin.request.0);
        });
        self.number(header.time.0);
        self.number(header.answered.0);
        self.number(u64::from(header.length));
        self.digest(header.digest);
        match &header.body {
            Body::Command | Body::Noop | Body::Suspend | Body::Close | Body::Expire => {}
            Body::Open(info) => {
                self.number(info.incarnation);
                self.text(&info.domain);
                self.role(info.role);
            }
            Body::Resume(incarnation) => self.number(*incarnation),
            Body::Config(target) => self.target(*target),
            Body::EpochStart(start) => self.start(start),
        }
    }

    fn start(&mut self, start: &EpochStart) {
        self.epoch(start.previous);
        self.number(start.base.0);
        self.number(start.observed.0);
        self.byte(start.f);
        self.level(start.lowest);
        self.flag(start.log_before_send);
        self.target(start.target);
        self.policy(start.policy);
        self.list(&start.missing, Self::client);
        self.list(&start.excluded, Self::client);
        self.list(&start.gaps, Self::range);
    }

    fn command(&mut self, command: &Command) {
        self.number(command.answered.0);
        self.level(command.level);
        self.flag(command.withdrawn);
        self.digest(command.digest);
        self.option(command.tag.as_ref(), Self::tag);
        self.option(command.reply, Self::digest);
        self.blob(&command.payload);
    }

    fn tag(&mut self, tag: &Tag) {
        self.epoch(tag.epoch);
        self.number(tag.lsn.0);
        self.number(tag.time.0);
        self.option(tag.hold_until, |put, lsn| put.number(lsn.0));
        self.number(tag.stable.0);
        self.flag(tag.protected);
        self.level(tag.met);
    }

    fn share(&mut self, share: &Share) {
        self.epoch(share.epoch);
        self.number(share.id);
        self.byte(match share.mode {
            Mode::Stripe => 0,
            Mode::Window => 1,
        });
        self.u128(share.holder.0);
        self.number(share.hold_until.0);
        self.blob(&share.body);
    }

    pub(crate) fn places(&mut self, places: &Places) {
        self.epoch(places.epoch);
        self.number(places.first.0);
        self.number(u64::from(places.count));
        self.number(places.time.0);
        self.blob(&places.who);
    }

    fn reign(&mut self, reign: &Reign) {
        self.epoch(reign.epoch);
        self.number(reign.start.0);
        self.number(reign.base.0);
        self.list(&reign.gaps, Self::range);
    }
}

/// Reads the parts from what is left of the input.
pub(crate) struct Take<'a>(&'a [u8]);

pub(crate) fn whole<'a, T>(bytes: &'a [u8], what: &str, take: impl FnOnce(&mut Take<'a>) -> Result<T>) -> Result<T> {
    let mut left = Take(bytes);
    let value = take(&mut left)?;
    if left.0.is_empty() { Ok(value) } else { Err(corrupt(&format!("{} bytes after the {what}", left.0.len()))) }
}

impl<'a> Take<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    #[inline]
    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(length).ok_or_else(|| corrupt("it ends too early"))?;
        self.0 = left;
        Ok(taken)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(crate) fn flag(&mut self) -> Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(corrupt("a flag is neither 0 nor 1")),
        }
    }

    /// Numbers of up to eight bytes, which nearly all are, are read without a loop.
    #[inline(always)]
    pub(crate) fn number(&mut self) -> Result<u64> {
        const ENDS: u64 = 0x8080_8080_8080_8080;
        if let [byte @ ..0x80, left @ ..] = self.0 {
            self.0 = left;
            return Ok(u64::from(*byte));
        }
        if let Some(first) = self.0.first_chunk::<8>() {
            let bytes = u64::from_le_bytes(*first);
            let end = !bytes & ENDS;
            if end != 0 {
                let length = end.trailing_zeros() / 8 + 1;
                let bytes = bytes & (u64::MAX >> (64 - 8 * length));
                // One form for every value: no leading zeros.
                if bytes >> (8 * length - 8) == 0 {
                    return Err(leading_zeros());
                }
                let bytes = bytes & !ENDS;
                // Seven bits of eight, then fourteen of sixteen, then twenty-eight of thirty-two move together.
                let bytes = bytes & 0x007f_007f_007f_007f | (bytes & 0x7f00_7f00_7f00_7f00) >> 1;
                let bytes = bytes & 0x0000_3fff_0000_3fff | (bytes & 0x3fff_0000_3fff_0000) >> 2;
                self.0 = &self.0[length as usize..];
                return Ok(bytes & 0x0fff_ffff | (bytes & 0x0fff_ffff_0000_0000) >> 4);
            }
        }
        self.long_number()
    }

    /// A number of more than eight bytes, or with less behind it.
    #[cold]
    fn long_number(&mut self) -> Result<u64> {
        let mut number = 0;
        for (at, byte) in self.0.iter().take(10).enumerate() {
            let part = u64::from(byte & 0x7f);
            if at == 9 && part > 1 {
                break;
            }
            number |= part << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return if *byte == 0 && at > 0 { Err(leading_zeros()) } else { Ok(number) };
            }
        }
        Err(corrupt(if self.0.len() < 10 { "it ends too early" } else { "a number has more than 64 bits" }))
    }

    #[inline(always)]
    pub(crate) fn u32(&mut self) -> Result<u32> {
        u32::try_from(self.number()?).map_err(|_| corrupt("a number has more than 32 bits"))
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    fn blob(&mut self) -> Result<&'a [u8]> {
        let length = self.number()?;
        self.bytes(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<String> {
        let text = std::str::from_utf8(self.blob()?).map_err(|_| corrupt("a text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    #[inline(always)]
    fn option<T>(&mut self, take: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.flag()? { take(self).map(Some) } else { Ok(None) }
    }

    /// A list whose elements take at least `least` bytes each.
    pub(crate) fn list<T>(&mut self, least: usize, mut take: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.number()?;
        if count > (self.0.len() / least) as u64 {
            return Err(corrupt("a list is longer than what is left"));
        }
        (0..count).map(|_| take(self)).collect()
    }

    pub(crate) fn client(&mut self) -> Result<ClientId> {
        Ok(ClientId(self.u128()?))
    }

    #[inline]
    fn lsn(&mut self) -> Result<Lsn> {
        Ok(Lsn(self.number()?))
    }

    #[inline]
    fn request(&mut self) -> Result<Request> {
        Ok(Request(self.number()?))
    }

    fn range(&mut self) -> Result<Range<Lsn>> {
        Ok(self.lsn()?..self.lsn()?)
    }

    #[inline(always)]
    pub(crate) fn epoch(&mut self) -> Result<Epoch> {
        Ok(Epoch { generation: self.u32()?, number: self.number()?, node: NodeId(self.u64()?) })
    }

    #[inline(always)]
    pub(crate) fn digest(&mut self) -> Result<Digest> {
        Ok(Digest { algorithm: self.byte()?, value: self.number()? })
    }

    fn level(&mut self) -> Result<Level> {
        Ok(match self.byte()? {
            0 => Level::Local,
            1 => Level::Tagged,
            2 => Level::Stable,
            3 => Level::Covered,
            other => return Err(unknown("level", other)),
        })
    }

    fn role(&mut self) -> Result<SessionRole> {
        Ok(match self.byte()? {
            0 => SessionRole::Writer,
            1 => SessionRole::Reader,
            2 => SessionRole::Holder,
            other => return Err(unknown("session role", other)),
        })
    }

    fn target(&mut self) -> Result<Target> {
        Ok(match self.byte()? {
            0 => Target::Own,
            1 => Target::Backup(NodeId(self.u64()?)),
            other => return Err(unknown("stability target", other)),
        })
    }

    fn policy(&mut self) -> Result<Option<GapPolicy>> {
        Ok(match self.byte()? {
            0 => None,
            1 => Some(GapPolicy::Stop),
            2 => Some(GapPolicy::Skip),
            other => return Err(unknown("gap policy", other)),
        })
    }

    /// A record, whose payload is all that is left.
    #[inline(always)]
    fn record(mut self) -> Result<(Header, Digest, &'a [u8])> {
        Ok((self.header()?, self.digest()?, self.rest()))
    }

    #[inline(always)]
    pub(crate) fn header(&mut self) -> Result<Header> {
        let kind = self.byte()?;
        if !(1..=9).contains(&kind) {
            return Err(unknown("entry", kind));
        }
        let epoch = self.epoch()?;
        let lsn = self.lsn()?;
        let origin = self.option(|take| Ok(Origin { client: take.client()?, request: take.request()? }))?;
        let time = Time(self.number()?);
        let answered = self.request()?;
        let length = self.u32()?;
        let digest = self.digest()?;
        let body = match kind {
            1 => Body::Command,
            2 => Body::Noop,
            3 => Body::Open(SessionInfo { incarnation: self.number()?, domain: self.text()?, role: self.role()? }),
            4 => Body::Suspend,
            5 => Body::Resume(self.number()?),
            6 => Body::Close,
            7 => Body::Expire,
            8 => Body::Config(self.target()?),
            _ => Body::EpochStart(Box::new(self.start()?)),
        };
        Ok(Header { epoch, lsn, body, origin, time, answered, length, digest })
    }

    fn start(&mut self) -> Result<EpochStart> {
        Ok(EpochStart {
            previous: self.epoch()?,
            base: self.lsn()?,
            observed: self.lsn()?,
            f: self.byte()?,
            lowest: self.level()?,
            log_before_send: self.flag()?,
            target: self.target()?,
            policy: self.policy()?,
            missing: self.list(CLIENT_BYTES, Self::client)?,
            excluded: self.list(CLIENT_BYTES, Self::client)?,
            gaps: self.list(RANGE_BYTES, Self::range)?,
        })
    }

    fn command(&mut self) -> Result<Command> {
        Ok(Command {
            answered: self.request()?,
            level: self.level()?,
            withdrawn: self.flag()?,
            digest: self.digest()?,
            tag: self.option(Self::tag)?,
            reply: self.option(Self::digest)?,
            payload: Bytes::copy_from_slice(self.blob()?),
        })
    }

    fn tag(&mut self) -> Result<Tag> {
        Ok(Tag {
            epoch: self.epoch()?,
            lsn: self.lsn()?,
            time: Time(self.number()?),
            hold_until: self.option(Self::lsn)?,
            stable: self.lsn()?,
            protected: self.flag()?,
            met: self.level()?,
        })
    }

    fn share(&mut self) -> Result<Share> {
        Ok(Share {
            epoch: self.epoch()?,
            id: self.number()?,
            mode: match self.byte()? {
                0 => Mode::Stripe,
                1 => Mode::Window,
                other => return Err(unknown("mode of a share", other)),
            },
            holder: self.client()?,
            hold_until: self.lsn()?,
            body: Bytes::copy_from_slice(self.blob()?),
        })
    }

    pub(crate) fn places(&mut self) -> Result<Places> {
        let (epoch, first, count) = (self.epoch()?, self.lsn()?, self.u32()?);
        if !(1..=PLACES_MAX).contains(&count) {
            return Err(corrupt("an absurd number of places"));
        }
        let (time, who) = (Time(self.number()?), self.blob()?);
        if who.len() > PLACES_BYTES_MAX {
            return Err(corrupt("places of an absurd size"));
        }
        Ok(Places { epoch, first, count, time, who: Bytes::copy_from_slice(who) })
    }

    fn reign(&mut self) -> Result<Reign> {
        Ok(Reign {
            epoch: self.epoch()?,
            start: self.lsn()?,
            base: self.lsn()?,
            gaps: self.list(RANGE_BYTES, Self::range)?,
        })
    }
}

fn unknown(what: &str, kind: u8) -> Error {
    let why = format!("a later version wrote this: {what} of kind {kind}; use a build at least as new as the last one");
    Error::new(Code::UnknownKind, why)
}

#[cold]
fn leading_zeros() -> Error {
    corrupt("a number has leading zeros")
}

#[cold]
fn corrupt(why: &str) -> Error {
    Error::new(Code::Corrupt, format!("malformed bytes: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There are two ways to read a number, by how much is left behind it.
    #[test]
    fn a_number_has_one_form_whatever_follows() {
        let near = |shift: u32| [(1 << shift) - 1, 1 << shift, (1 << shift) + 1];
        for number in (0..64).flat_map(near).chain([u64::MAX, 0x0123_4567_89ab_cdef]) {
            let mut form = Vec::new();
            Put(&mut form).number(number);
            for length in 0..form.len() {
                assert!(Take(&form[..length]).number().is_err(), "{number:x}: {length} bytes of it");
            }
            for (filler, count) in [(0x00, 0), (0x00, 9), (0xff, 1), (0xff, 7), (0xff, 9)] {
                let bytes = [&form[..], &vec![filler; count]].concat();
                let mut take = Take(&bytes);
                assert_eq!(take.number(), Ok(number), "before {count} of {filler}");
                assert_eq!(take.rest().len(), count, "{number:x}");
                // Another form of it: with zeros in front, as far as there is room.
                let mut longer = form.clone();
                *longer.last_mut().expect("a number has a byte") |= 0x80;
                longer.push(0);
                longer.extend(vec![filler; count]);
                assert!(Take(&longer).number().is_err(), "{number:x} with a leading zero");
            }
        }
        for bytes in [vec![0xff; 10], [vec![0xff; 9], vec![2]].concat(), [vec![0x80; 10], vec![1]].concat()] {
            assert!(Take(&bytes).number().is_err(), "{bytes:x?}");
        }
    }
}
