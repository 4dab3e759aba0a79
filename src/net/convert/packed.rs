//! Writes, responses, headers, places, records and reports in columns: what flows in thousands, in as few bytes and steps as can be.
//!
//! A list is one `bytes` field of its message. It begins with its count; then come the items, each saying only in what it
//! differs from what the one before it makes likely; then, end to end, the payloads, so that the receiver copies them out
//! of its buffer together. Numbers are LEB128 varints, differences are zigzag coded, checksums of CRC-32 take four bytes.
//!
//! ```text
//! writes    (flags · [request] · [answered] · [length] · digest)*          payload*
//! responses (flags · [request] · [tag] · [length])*                        reply*
//! headers   (flags · whole header | [lsn] · client · request · [time] · [answered] · length · digest)*
//! places    (first · count · time · length)*                               who*
//! records   (header · [length] · digest of the reply)*                     payload*
//! items     (kind · header [· digest of the reply] | request · answered · length · digest | places | share)*
//! ```
//!
//! The client of a header is the distance back to where it was named last, among the few that were named lately, or 0 and
//! its 16 bytes. A header of a kind, an epoch or an origin that few have is written whole, in the form of
//! [`codec`](crate::codec).
//!
//! Whatever is read is bounded by what was sent: an item takes two bytes at least.

use bytes::Bytes;

use super::kept;
use crate::codec::{Put, Take, whole};
use crate::error::{Code, Error, Result};
use crate::log::{
    Body, ClientId, Digest, Entry, Epoch, Header, Level, Lsn, Origin, PLACES_BYTES_MAX, PLACES_MAX, Places, Record,
    Request, Tag, Time,
};
use crate::message::{Outcome, ReportItem, Response, Write};

/// Clients among which a header's is looked for.
const CLIENTS: usize = 16;
/// The least bytes an item takes.
const ITEM_BYTES: usize = 2;

// ---- words ----

fn zigzag(number: u64, from: u64) -> u64 {
    let difference = number.wrapping_sub(from).cast_signed();
    ((difference << 1) ^ (difference >> 63)).cast_unsigned()
}

fn unzigzag(coded: u64, from: u64) -> u64 {
    from.wrapping_add((coded >> 1) ^ (coded & 1).wrapping_neg())
}

fn put_digest(put: &mut Put<'_>, digest: Digest) {
    match (digest.algorithm, u32::try_from(digest.value)) {
        (0, Ok(0)) => put.byte(0),
        (1, Ok(value)) => {
            put.byte(1);
            put.0.extend_from_slice(&value.to_le_bytes());
        }
        (algorithm, _) => {
            put.byte(2);
            put.byte(algorithm);
            put.u64(digest.value);
        }
    }
}

fn take_digest(take: &mut Take<'_>) -> Result<Digest> {
    Ok(match take.byte()? {
        0 => Digest::default(),
        1 => {
            let bytes = take.bytes(4)?;
            Digest { algorithm: 1, value: bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)) }
        }
        2 => Digest { algorithm: take.byte()?, value: take.u64()? },
        other => return Err(unknown("a digest", other)),
    })
}

fn level_bits(level: Level) -> u8 {
    match level {
        Level::Local => 0,
        Level::Tagged => 1,
        Level::Covered => 2,
        Level::Stable => 3,
    }
}

fn level(bits: u8) -> Level {
    match bits & 3 {
        0 => Level::Local,
        1 => Level::Tagged,
        2 => Level::Covered,
        _ => Level::Stable,
    }
}

fn unknown(what: &str, number: u8) -> Error {
    Error::new(Code::Protocol, format!("{what} has a form this build does not know: {number}"))
}

/// Reads a list, and says which one it was if it cannot be read. What is left after the items are the payloads.
fn read<'a, T>(
    field: &str,
    bytes: &'a [u8],
    mut item: impl FnMut(&mut Take<'a>) -> Result<T>,
) -> Result<(Vec<T>, &'a [u8])> {
    if bytes.is_empty() {
        return Ok((Vec::new(), &[]));
    }
    let items = whole(bytes, field, |take| {
        let count = take.number()?;
        let count = usize::try_from(count).ok().filter(|count| count.saturating_mul(ITEM_BYTES) <= bytes.len());
        let count = count.ok_or_else(|| Error::new(Code::Protocol, "it has more items than bytes"))?;
        // What is only claimed is not paid for.
        let mut items = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            items.push(item(take)?);
        }
        Ok((items, take.rest()))
    });
    items.map_err(|error| {
        let code = if error.code() == Code::UnknownKind { Code::UnknownKind } else { Code::Protocol };
        Error::new(code, format!("{field}: {}", error.message()))
    })
}

/// Where the next payload of a list is.
struct Payloads {
    bytes: Bytes,
    at: usize,
}

impl Payloads {
    /// Checks that the payloads are all there, and nothing besides.
    fn new(field: &str, bytes: Bytes, lengths: impl Iterator<Item = usize>) -> Result<Self> {
        let expected = lengths.fold(0, usize::saturating_add);
        if bytes.len() != expected {
            let why = format!("{field}: its payloads have {} bytes where {expected} are told", bytes.len());
            return Err(Error::new(Code::Protocol, why));
        }
        Ok(Self { bytes, at: 0 })
    }

    fn next(&mut self, length: usize) -> Bytes {
        let from = self.at;
        self.at += length;
        if length == 0 { Bytes::new() } else { self.bytes.slice(from..self.at) }
    }
}

fn length_of(take: &mut Take<'_>) -> Result<usize> {
    usize::try_from(take.number()?).map_err(|_| Error::new(Code::Protocol, "an absurd length"))
}

// ---- writes ----

const WITHDRAWN: u8 = 1 << 2;
const NEXT_REQUEST: u8 = 1 << 3;
const SAME_ANSWERED: u8 = 1 << 4;
const SAME_LENGTH: u8 = 1 << 5;

pub(super) fn put_writes(writes: &[Write]) -> Bytes {
    if writes.is_empty() {
        return Bytes::new();
    }
    let payloads: usize = writes.iter().map(|write| write.payload.len()).sum();
    let mut out = Vec::with_capacity(payloads + writes.len() * 12 + 16);
    let mut put = Put(&mut out);
    put.number(writes.len() as u64);
    let (mut request, mut answered, mut length) = (0_u64, 0, 0);
    for write in writes {
        let (now, bytes) = (write.request.0, write.payload.len() as u64);
        let is = |holds: bool, flag: u8| if holds { flag } else { 0 };
        let next = request.checked_add(1) == Some(now);
        let (same_answered, same_length) = (write.answered.0 == answered, bytes == length);
        put.byte(
            level_bits(write.level)
                | is(write.withdrawn, WITHDRAWN)
                | is(next, NEXT_REQUEST)
                | is(same_answered, SAME_ANSWERED)
                | is(same_length, SAME_LENGTH),
        );
        if !next {
            put.number(zigzag(now, request));
        }
        if !same_answered {
            put.number(zigzag(write.answered.0, answered));
        }
        if !same_length {
            put.number(bytes);
        }
        put_digest(&mut put, write.digest);
        (request, answered, length) = (now, write.answered.0, bytes);
    }
    writes.iter().for_each(|write| put.0.extend_from_slice(&write.payload));
    out.into()
}

/// The payloads are copied out of the receive buffer, together: a node keeps a frame's writes for about as long as each
/// other.
pub(super) fn writes(field: &str, bytes: &[u8]) -> Result<Vec<Write>> {
    let (mut request, mut answered, mut length) = (0_u64, 0, 0_usize);
    let (items, payloads) = read(field, bytes, |take| {
        let flags = take.byte()?;
        if flags >= 1 << 6 {
            return Err(unknown("a write", flags));
        }
        let has = |flag| flags & flag != 0;
        request = if has(NEXT_REQUEST) { request.wrapping_add(1) } else { unzigzag(take.number()?, request) };
        answered = if has(SAME_ANSWERED) { answered } else { unzigzag(take.number()?, answered) };
        length = if has(SAME_LENGTH) { length } else { length_of(take)? };
        let write = Write {
            request: Request(request),
            answered: Request(answered),
            level: level(flags),
            withdrawn: has(WITHDRAWN),
            digest: take_digest(take)?,
            payload: Bytes::new(),
        };
        Ok((write, length))
    })?;
    let mut payloads = Payloads::new(field, Bytes::copy_from_slice(payloads), items.iter().map(|(_, length)| *length))?;
    Ok(items.into_iter().map(|(write, length)| Write { payload: payloads.next(length), ..write }).collect())
}

// ---- headers ----

const WHOLE: u8 = 0;
const COMMAND: u8 = 1;
const NOOP: u8 = 2;
const KIND: u8 = 0b11;
const NEXT_LSN: u8 = 1 << 2;
const SAME_TIME: u8 = 1 << 3;
const ANSWERED_BEFORE: u8 = 1 << 4;
/// Of a record: its payload has the length that its header says.
const AS_SAID: u8 = 1 << 5;

/// What a header is likely to follow on.
struct Before {
    epoch: Epoch,
    lsn: u64,
    time: u64,
    /// Those named, with the request that is likely to come next.
    clients: Vec<(ClientId, u64)>,
}

impl Before {
    fn new(epoch: Epoch) -> Self {
        Self { epoch, lsn: 0, time: 0, clients: Vec::new() }
    }

    fn put(&mut self, put: &mut Put<'_>, header: &Header, more: u8) {
        let kind = match header.body {
            Body::Command if header.epoch == self.epoch => COMMAND,
            Body::Noop if header.epoch == self.epoch => NOOP,
            _ => WHOLE,
        };
        let (COMMAND | NOOP, Some(Origin { client, request })) = (kind, header.origin) else {
            put.byte(WHOLE | more);
            put.header(header);
            (self.lsn, self.time) = (header.lsn.0, header.time.0);
            return;
        };
        let is = |holds: bool, flag: u8| if holds { flag } else { 0 };
        let next = header.lsn.0 == self.lsn.wrapping_add(1);
        let same_time = header.time.0 == self.time;
        let before = header.answered.0 == request.0.wrapping_sub(1);
        put.byte(kind | more | is(next, NEXT_LSN) | is(same_time, SAME_TIME) | is(before, ANSWERED_BEFORE));
        if !next {
            put.number(zigzag(header.lsn.0, self.lsn));
        }
        let named = self.clients.iter_mut().rev().take(CLIENTS).position(|(named, _)| *named == client);
        let due = if let Some(back) = named {
            put.number(back as u64 + 1);
            let at = self.clients.len() - 1 - back;
            &mut self.clients[at].1
        } else {
            put.byte(0);
            put.u128(client.0);
            self.clients.push((client, 0));
            let last = self.clients.len() - 1;
            &mut self.clients[last].1
        };
        put.number(zigzag(request.0, *due));
        *due = request.0.wrapping_add(1);
        if !same_time {
            put.number(zigzag(header.time.0, self.time));
        }
        if !before {
            put.number(zigzag(header.answered.0, request.0));
        }
        put.number(u64::from(header.length));
        put_digest(put, header.digest);
        (self.lsn, self.time) = (header.lsn.0, header.time.0);
    }

    /// The header, and the flags it came with.
    fn take(&mut self, take: &mut Take<'_>) -> Result<(Header, u8)> {
        let flags = take.byte()?;
        let body = match flags & KIND {
            WHOLE if flags & !AS_SAID == WHOLE => {
                let header = take.header()?;
                (self.lsn, self.time) = (header.lsn.0, header.time.0);
                return Ok((header, flags));
            }
            COMMAND if flags < 1 << 6 => Body::Command,
            NOOP if flags < 1 << 6 => Body::Noop,
            _ => return Err(unknown("a header", flags)),
        };
        let has = |flag| flags & flag != 0;
        let lsn = if has(NEXT_LSN) { self.lsn.wrapping_add(1) } else { unzigzag(take.number()?, self.lsn) };
        let back = length_of(take)?;
        let at = if back == 0 {
            self.clients.push((ClientId(take.u128()?), 0));
            self.clients.len() - 1
        } else {
            let at = self.clients.len().checked_sub(back);
            at.ok_or_else(|| Error::new(Code::Protocol, "it names a client that it did not name before"))?
        };
        let (client, due) = &mut self.clients[at];
        let request = unzigzag(take.number()?, *due);
        *due = request.wrapping_add(1);
        let origin = Some(Origin { client: *client, request: Request(request) });
        let time = if has(SAME_TIME) { self.time } else { unzigzag(take.number()?, self.time) };
        let answered = if has(ANSWERED_BEFORE) { request.wrapping_sub(1) } else { unzigzag(take.number()?, request) };
        let header = Header {
            epoch: self.epoch,
            lsn: Lsn(lsn),
            body,
            origin,
            time: Time(time),
            answered: Request(answered),
            length: take.u32()?,
            digest: take_digest(take)?,
        };
        (self.lsn, self.time) = (lsn, time);
        Ok((header, flags))
    }

    /// A header that is not a record's.
    fn take_alone(&mut self, take: &mut Take<'_>) -> Result<Header> {
        match self.take(take)? {
            (_, flags) if flags & AS_SAID != 0 => Err(unknown("a header", flags)),
            (header, _) => Ok(header),
        }
    }
}

/// Headers of a message of this epoch.
pub(super) fn put_headers(headers: &[Header], epoch: Epoch) -> Bytes {
    if headers.is_empty() {
        return Bytes::new();
    }
    let mut out = Vec::with_capacity(headers.len() * 32 + 16);
    let mut put = Put(&mut out);
    put.number(headers.len() as u64);
    let mut before = Before::new(epoch);
    headers.iter().for_each(|header| before.put(&mut put, header, 0));
    out.into()
}

pub(super) fn headers(field: &str, bytes: &[u8], epoch: Epoch) -> Result<Vec<Header>> {
    let mut before = Before::new(epoch);
    let (headers, rest) = read(field, bytes, |take| before.take_alone(take))?;
    Payloads::new(field, Bytes::copy_from_slice(rest), std::iter::empty())?;
    Ok(headers)
}

// ---- places ----

/// Places of a message of this epoch.
pub(super) fn put_places(places: &[Places]) -> Bytes {
    if places.is_empty() {
        return Bytes::new();
    }
    let mut out = Vec::with_capacity(places.iter().map(|places| places.who.len() + 16).sum::<usize>() + 4);
    let mut put = Put(&mut out);
    put.number(places.len() as u64);
    let (mut first, mut time) = (0, 0);
    for places in places {
        put.number(zigzag(places.first.0, first));
        put.number(u64::from(places.count));
        put.number(zigzag(places.time.0, time));
        put.number(places.who.len() as u64);
        (first, time) = (places.first.0.wrapping_add(u64::from(places.count)), places.time.0);
    }
    places.iter().for_each(|places| put.0.extend_from_slice(&places.who));
    out.into()
}

/// Copied out of the receive buffer, together: a client keeps those of a frame for about as long as each other.
pub(super) fn places(field: &str, bytes: &[u8], epoch: Epoch) -> Result<Vec<Places>> {
    let (mut first, mut time) = (0_u64, 0);
    let (items, who) = read(field, bytes, |take| {
        first = unzigzag(take.number()?, first);
        let count = take.u32()?;
        if !(1..=PLACES_MAX).contains(&count) {
            return Err(Error::new(Code::Protocol, "an absurd number of places"));
        }
        time = unzigzag(take.number()?, time);
        let places = Places { epoch, first: Lsn(first), count, time: Time(time), who: Bytes::new() };
        first = first.wrapping_add(u64::from(count));
        let length = length_of(take)?;
        if length > PLACES_BYTES_MAX {
            return Err(Error::new(Code::Protocol, "places of an absurd size"));
        }
        Ok((places, length))
    })?;
    let mut who = Payloads::new(field, Bytes::copy_from_slice(who), items.iter().map(|(_, length)| *length))?;
    Ok(items.into_iter().map(|(places, length)| Places { who: who.next(length), ..places }).collect())
}

// ---- items of a report ----

const HELD: u8 = 0;
const HELD_ANSWERED: u8 = 1;
const IN_DOUBT: u8 = 2;
const HEADER: u8 = 3;
const PLACES: u8 = 4;
const SHARE: u8 = 5;

/// Items of a report, most of them of this epoch.
pub(super) fn put_items(items: &[ReportItem], epoch: Epoch) -> Bytes {
    if items.is_empty() {
        return Bytes::new();
    }
    let mut out = Vec::with_capacity(items.len() * 24 + 16);
    let mut put = Put(&mut out);
    put.number(items.len() as u64);
    let (mut before, mut doubted) = (Before::new(epoch), 0);
    for item in items {
        match item {
            ReportItem::Held { header, reply } => {
                put.byte(if reply.is_some() { HELD_ANSWERED } else { HELD });
                before.put(&mut put, header, 0);
                reply.iter().for_each(|reply| put_digest(&mut put, *reply));
            }
            ReportItem::InDoubt { request, length, digest, answered } => {
                put.byte(IN_DOUBT);
                put.number(zigzag(request.0, doubted));
                put.number(zigzag(answered.0, request.0));
                put.number(u64::from(*length));
                put_digest(&mut put, *digest);
                doubted = request.0.wrapping_add(1);
            }
            ReportItem::Header(header) => {
                put.byte(HEADER);
                before.put(&mut put, header, 0);
            }
            ReportItem::Places(places) => {
                put.byte(PLACES);
                put.places(places);
            }
            ReportItem::Share { epoch, id, hold_until, length } => {
                put.byte(SHARE);
                put.epoch(*epoch);
                put.number(*id);
                put.number(hold_until.0);
                put.number(u64::from(*length));
            }
        }
    }
    out.into()
}

pub(super) fn items(field: &str, bytes: &[u8], epoch: Epoch) -> Result<Vec<ReportItem>> {
    let (mut before, mut doubted) = (Before::new(epoch), 0);
    let mut header = |take: &mut Take<'_>| before.take_alone(take);
    let (items, rest) = read(field, bytes, |take| {
        Ok(match take.byte()? {
            HELD => ReportItem::Held { header: header(take)?, reply: None },
            HELD_ANSWERED => ReportItem::Held { header: header(take)?, reply: Some(take_digest(take)?) },
            IN_DOUBT => {
                let request = unzigzag(take.number()?, doubted);
                doubted = request.wrapping_add(1);
                ReportItem::InDoubt {
                    request: Request(request),
                    answered: Request(unzigzag(take.number()?, request)),
                    length: take.u32()?,
                    digest: take_digest(take)?,
                }
            }
            HEADER => ReportItem::Header(header(take)?),
            PLACES => ReportItem::Places(take.places()?),
            SHARE => ReportItem::Share {
                epoch: take.epoch()?,
                id: take.number()?,
                hold_until: Lsn(take.number()?),
                length: take.u32()?,
            },
            other => return Err(unknown("an item of a report", other)),
        })
    })?;
    Payloads::new(field, Bytes::copy_from_slice(rest), std::iter::empty())?;
    Ok(items)
}

// ---- records ----

/// Records of a message of this epoch.
pub(super) fn put_records<'a>(records: impl Iterator<Item = &'a Record> + Clone, epoch: Epoch) -> Bytes {
    let (mut count, mut payloads) = (0, 0);
    for record in records.clone() {
        count += 1;
        payloads += record.entry.payload.len();
    }
    if count == 0 {
        return Bytes::new();
    }
    let mut out = Vec::with_capacity(payloads + count * 32 + 32);
    let mut put = Put(&mut out);
    put.number(count as u64);
    let mut before = Before::new(epoch);
    for Record { entry: Entry { header, payload }, reply } in records.clone() {
        let as_said = usize::try_from(header.length) == Ok(payload.len());
        before.put(&mut put, header, if as_said { AS_SAID } else { 0 });
        if !as_said {
            put.number(payload.len() as u64);
        }
        put_digest(&mut put, *reply);
    }
    records.for_each(|record| put.0.extend_from_slice(&record.entry.payload));
    out.into()
}

/// The payloads are copied out of the receive buffer, together: a log releases the records of a message about together.
pub(super) fn records(field: &str, bytes: &[u8], epoch: Epoch) -> Result<Vec<Record>> {
    let mut before = Before::new(epoch);
    let (items, payloads) = read(field, bytes, |take| {
        let (header, flags) = before.take(take)?;
        let length =
            if flags & AS_SAID == 0 { length_of(take)? } else { usize::try_from(header.length).unwrap_or(usize::MAX) };
        let reply = take_digest(take)?;
        Ok((Record { entry: Entry { header, payload: Bytes::new() }, reply }, length))
    })?;
    let mut payloads = Payloads::new(field, Bytes::copy_from_slice(payloads), items.iter().map(|(_, length)| *length))?;
    let record = |(mut record, length): (Record, usize)| {
        record.entry.payload = payloads.next(length);
        record
    };
    Ok(items.into_iter().map(record).collect())
}

// ---- responses ----

const OUTCOME: u8 = 0b11;
const NONE: u8 = 0;
const REPLY: u8 = 1;
const SUPERSEDED: u8 = 2;
const TAG: u8 = 1 << 2;
const NEXT: u8 = 1 << 3;
/// Of the tag: it is of the frame's epoch, and so on.
const TAG_EPOCH: u8 = 1;
const TAG_NEXT_LSN: u8 = 1 << 1;
const TAG_SAME_TIME: u8 = 1 << 2;
const TAG_PROTECTED: u8 = 1 << 3;
/// What follows is the checkpoint up to which to hold, its own LSN, or 0; else it is not known yet.
const TAG_UNTIL: u8 = 4;
const UNTIL_UNKNOWN: u8 = 0;
const UNTIL_OWN: u8 = 1;
const UNTIL_ZERO: u8 = 2;
const UNTIL_SAID: u8 = 3;
const TAG_MET: u8 = 6;

/// Responses of a frame of this epoch. Their tags leave out the frame's checkpoint.
pub(super) fn put_responses(responses: &[Response], epoch: Epoch) -> Bytes {
    if responses.is_empty() {
        return Bytes::new();
    }
    let reply = |response: &Response| match &response.outcome {
        Some(Outcome::Reply(reply)) => reply.len(),
        _ => 0,
    };
    let replies: usize = responses.iter().map(reply).sum();
    let mut out = Vec::with_capacity(replies + responses.len() * 8 + 32);
    let mut put = Put(&mut out);
    put.number(responses.len() as u64);
    let (mut request, mut lsn, mut time) = (0_u64, 0_u64, 0);
    for response in responses {
        let is = |holds: bool, flag: u8| if holds { flag } else { 0 };
        let outcome = match &response.outcome {
            None => NONE,
            Some(Outcome::Reply(_)) => REPLY,
            Some(Outcome::Superseded) => SUPERSEDED,
        };
        let now = response.request.0;
        // One that has no tag says its number, so that none is shorter than two bytes.
        let next = now == request.wrapping_add(1) && response.tag.is_some();
        put.byte(outcome | is(response.tag.is_some(), TAG) | is(next, NEXT));
        if !next {
            put.number(zigzag(now, request));
        }
        request = now;
        if let Some(tag) = &response.tag {
            let next = tag.lsn.0 == lsn.wrapping_add(1);
            let until = match tag.hold_until {
                None => UNTIL_UNKNOWN,
                Some(until) if until == tag.lsn => UNTIL_OWN,
                Some(Lsn(0)) => UNTIL_ZERO,
                Some(_) => UNTIL_SAID,
            };
            put.byte(
                is(tag.epoch == epoch, TAG_EPOCH)
                    | is(next, TAG_NEXT_LSN)
                    | is(tag.time.0 == time, TAG_SAME_TIME)
                    | is(tag.protected, TAG_PROTECTED)
                    | until << TAG_UNTIL
                    | level_bits(tag.met) << TAG_MET,
            );
            if tag.epoch != epoch {
                put.epoch(tag.epoch);
            }
            if !next {
                put.number(zigzag(tag.lsn.0, lsn));
            }
            if tag.time.0 != time {
                put.number(zigzag(tag.time.0, time));
            }
            if let (UNTIL_SAID, Some(said)) = (until, tag.hold_until) {
                put.number(zigzag(said.0, tag.lsn.0));
            }
            (lsn, time) = (tag.lsn.0, tag.time.0);
        }
        if outcome == REPLY {
            put.number(reply(response) as u64);
        }
    }
    for response in responses {
        if let Some(Outcome::Reply(reply)) = &response.outcome {
            put.0.extend_from_slice(reply);
        }
    }
    out.into()
}

pub(super) fn responses(field: &str, bytes: &Bytes, epoch: Epoch, stable: Lsn) -> Result<Vec<Response>> {
    let (mut request, mut lsn, mut time) = (0_u64, 0_u64, 0);
    let (mut items, replies) = read(field, bytes, |take| {
        let flags = take.byte()?;
        request = if flags & NEXT == 0 { unzigzag(take.number()?, request) } else { request.wrapping_add(1) };
        if flags >= 1 << 4 || flags & OUTCOME > SUPERSEDED || flags & (TAG | NEXT) == NEXT {
            return Err(unknown("a response", flags));
        }
        if flags & (OUTCOME | TAG) == NONE {
            // Waiting for the rest would be waiting for ever: it ended in a way that this build does not know.
            return Err(Error::new(Code::Protocol, format!("request {request} has neither tag nor outcome")));
        }
        let tag = if flags & TAG == 0 {
            None
        } else {
            let flags = take.byte()?;
            let has = |flag| flags & flag != 0;
            let epoch = if has(TAG_EPOCH) { epoch } else { take.epoch()? };
            lsn = if has(TAG_NEXT_LSN) { lsn.wrapping_add(1) } else { unzigzag(take.number()?, lsn) };
            time = if has(TAG_SAME_TIME) { time } else { unzigzag(take.number()?, time) };
            let hold_until = match (flags >> TAG_UNTIL) & 0b11 {
                UNTIL_UNKNOWN => None,
                UNTIL_OWN => Some(lsn),
                UNTIL_ZERO => Some(0),
                _ => Some(unzigzag(take.number()?, lsn)),
            };
            let (protected, met) = (has(TAG_PROTECTED), level(flags >> TAG_MET));
            let hold_until = hold_until.map(Lsn);
            Some(Tag { epoch, lsn: Lsn(lsn), time: Time(time), hold_until, stable, protected, met })
        };
        let (outcome, length) = match flags & OUTCOME {
            NONE => (None, 0),
            REPLY => (Some(Outcome::Reply(Bytes::new())), length_of(take)?),
            _ => (Some(Outcome::Superseded), 0),
        };
        Ok((Response { request: Request(request), tag, outcome }, length))
    })?;
    let replies = bytes.slice_ref(replies);
    let mut replies = Payloads::new(field, replies, items.iter().map(|(_, length)| *length))?;
    for (response, length) in &mut items {
        if let Some(Outcome::Reply(reply)) = &mut response.outcome {
            *reply = kept(replies.next(*length));
        }
    }
    Ok(items.into_iter().map(|(response, _)| response).collect())
}
