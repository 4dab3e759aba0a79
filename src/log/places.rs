//! Places of commands: what a manifest says of those that were ordered together.
//!
//! A client that observed an entry has to be able to say whose it was, and where it stood. That takes no whole header: the
//! rest of it is with the author, who is in doubt about the place alone. So the commands of one batch, ordered by session,
//! are told as who took part, in about a bit for each session that could have:
//!
//! ```text
//! runs · parameter and flags │ (gap [· count] [· request])* │ checksum
//! varint  byte                 bits, low ones first           4 bytes
//! ```
//!
//! A gap is how many handles are passed over since the run before, as a Rice code; a count is an Elias gamma code. The request
//! number is the next one of the session, as the log says, and otherwise in the code. A client keeps the bytes as they are: it
//! knows nobody's handle. Whoever recovers knows them from its log, goes along the log to know the numbers, and has them
//! confirmed by the checksum of who asked what, so that a number is never guessed.

use bytes::Bytes;

use super::{ClientId, Epoch, HEADER_COST, Lsn, Request, Time};
use crate::error::{Code, Error, Result};

/// Most commands that are told of together.
pub const PLACES_MAX: u32 = 4096;
/// Most bytes that take.
pub const PLACES_BYTES_MAX: usize = 1 << 17;
/// Handles have no more bits.
const HANDLE_BITS: u32 = 32;

/// The places of commands that follow each other in the log, ordered at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Places {
    /// Their reign.
    pub epoch: Epoch,
    /// The LSN of the first.
    pub first: Lsn,
    /// How many there are: from 1 to [`PLACES_MAX`].
    pub count: u32,
    /// When they were ordered.
    pub time: Time,
    /// Whose they are; see the module.
    pub who: Bytes,
}

/// Commands of one session that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The session's handle.
    pub handle: u32,
    /// How many there are.
    pub count: u32,
    /// The number of the first, where it is not the session's next.
    pub request: Option<Request>,
}

impl Places {
    /// The LSN of the last.
    pub fn last(&self) -> Lsn {
        Lsn(self.first.0.saturating_add(u64::from(self.count)).saturating_sub(1))
    }

    /// What they count against a cache's budget, in bytes.
    pub fn cost(&self) -> u64 {
        self.who.len() as u64 + HEADER_COST
    }

    /// Whether a primary can have said that of its log.
    pub fn is_possible(&self) -> bool {
        self.first > Lsn(0) && self.first.0.checked_add(u64::from(self.count)).is_some() && self.runs().is_ok()
    }

    /// Whose they are, in LSN order.
    ///
    /// # Errors
    /// [`Code::Corrupt`] if the bytes are no such list.
    pub fn runs(&self) -> Result<Vec<Run>> {
        self.read()
            .ok_or_else(|| Error::new(Code::Corrupt, format!("the places from {} on cannot be read", self.first)))
    }

    fn read(&self) -> Option<Vec<Run>> {
        let (bytes, _) = self.who.split_last_chunk::<4>()?;
        let mut bits = Bits { bytes, at: 0 };
        let runs = bits.take(16)?;
        let form = bits.take(8)?;
        let parameter = u32::try_from(form & 0x1f).ok()?;
        let (counted, numbered) = (form & COUNTED != 0, form & NUMBERED != 0);
        if form & !(0x1f | COUNTED | NUMBERED) != 0 || runs == 0 || self.count > PLACES_MAX {
            return None;
        }
        let (mut all, mut next) = (Vec::with_capacity(usize::try_from(runs).ok()?.min(PLACES_MAX as usize)), 0_u64);
        let mut left = u64::from(self.count);
        for _ in 0..runs {
            let handle = next + bits.rice(parameter)?;
            let count = if counted { bits.gamma()? } else { 1 };
            let request = if numbered && bits.take(1)? == 1 { Some(Request(bits.gamma()?)) } else { None };
            left = left.checked_sub(count)?;
            all.push(Run { handle: u32::try_from(handle).ok()?, count: u32::try_from(count).ok()?, request });
            next = handle + 1;
        }
        (left == 0 && bits.is_over()).then_some(all)
    }

    /// Whether the runs have these authors and first requests, in order.
    pub fn confirms(&self, runs: &[Run], origins: impl Iterator<Item = (ClientId, Request)>) -> bool {
        let said = self.who.last_chunk::<4>().map(|said| u32::from_le_bytes(*said));
        said == Some(checksum(self.epoch, self.first, self.time, runs.iter().map(|run| run.count).zip(origins)))
    }
}

const COUNTED: u64 = 1 << 5;
const NUMBERED: u64 = 1 << 6;

fn checksum(epoch: Epoch, first: Lsn, time: Time, runs: impl Iterator<Item = (u32, (ClientId, Request))>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut bytes = [0; 36];
    bytes[..4].copy_from_slice(&epoch.generation.to_le_bytes());
    for (at, number) in [epoch.number, epoch.node.0, first.0, time.0].into_iter().enumerate() {
        bytes[4 + 8 * at..12 + 8 * at].copy_from_slice(&number.to_le_bytes());
    }
    hasher.update(&bytes);
    for (count, (client, request)) in runs {
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&count.to_le_bytes());
        bytes[4..20].copy_from_slice(&client.0.to_le_bytes());
        bytes[20..].copy_from_slice(&request.0.to_le_bytes());
        hasher.update(&bytes);
    }
    hasher.finalize()
}

/// Gathers places from what is ordered.
#[derive(Debug)]
pub struct Placing {
    epoch: Epoch,
    first: Lsn,
    time: Time,
    count: u32,
    runs: Vec<(Run, ClientId, Request)>,
    done: Vec<Places>,
}

impl Placing {
    /// Nothing yet, of this reign.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, first: Lsn(0), time: Time(0), count: 0, runs: Vec::new(), done: Vec::new() }
    }

    /// Whether a command at `lsn` only adds to the last run.
    pub fn goes_on(&mut self, lsn: Lsn, client: ClientId, request: Request, time: Time) -> bool {
        let fits = self.fits(lsn, time);
        let Some((run, of, first)) = self.runs.last_mut().filter(|_| fits) else { return false };
        let next = Request(first.0.saturating_add(u64::from(run.count)));
        let more = *of == client && request == next;
        run.count += u32::from(more);
        self.count += u32::from(more);
        more
    }

    fn fits(&self, lsn: Lsn, time: Time) -> bool {
        self.count < PLACES_MAX && self.time == time && lsn.0 == self.first.0 + u64::from(self.count)
    }

    /// A command at `lsn`, of the session with this handle, of which the log says that `next` is its next request.
    pub fn push(&mut self, lsn: Lsn, time: Time, (client, request): (ClientId, Request), handle: u32, next: Request) {
        let ascends = self.runs.last().is_none_or(|(run, _, _)| run.handle < handle);
        if !ascends || !self.fits(lsn, time) {
            self.cut();
        }
        if self.runs.is_empty() {
            (self.first, self.time) = (lsn, time);
        }
        let said = (request != next).then_some(request);
        self.runs.push((Run { handle, count: 1, request: said }, client, request));
        self.count += 1;
    }

    /// What comes next is not told of together with what came.
    fn cut(&mut self) {
        let Some((last, _, _)) = self.runs.last() else { return };
        let counted = u64::from(self.count) > self.runs.len() as u64;
        let numbered = self.runs.iter().any(|(run, _, _)| run.request.is_some());
        let mean = (u64::from(last.handle) + 1) / self.runs.len() as u64;
        let parameter = mean.max(1).ilog2().min(HANDLE_BITS - 1);
        let mut bits = Writer::default();
        bits.put(self.runs.len() as u64, 16);
        bits.put(u64::from(parameter) | if counted { COUNTED } else { 0 } | if numbered { NUMBERED } else { 0 }, 8);
        let mut next = 0;
        for (run, _, _) in &self.runs {
            bits.rice(u64::from(run.handle) - next, parameter);
            if counted {
                bits.gamma(u64::from(run.count));
            }
            if numbered {
                bits.put(u64::from(run.request.is_some()), 1);
                run.request.into_iter().for_each(|request| bits.gamma(request.0));
            }
            next = u64::from(run.handle) + 1;
        }
        let mut bytes = bits.finish();
        let origins = self.runs.iter().map(|(run, client, request)| (run.count, (*client, *request)));
        bytes.extend(checksum(self.epoch, self.first, self.time, origins).to_le_bytes());
        let (first, count, time) = (self.first, self.count, self.time);
        self.done.push(Places { epoch: self.epoch, first, count, time, who: bytes.into() });
        self.runs.clear();
        self.count = 0;
    }

    /// All of them.
    pub fn finish(mut self) -> Vec<Places> {
        self.cut();
        self.done
    }
}

// ---- bits ----

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    pending: u128,
    length: u32,
}

impl Writer {
    /// The low `length` bits of `value`, at most 64.
    fn put(&mut self, value: u64, length: u32) {
        self.pending |= u128::from(value) << self.length;
        self.length += length;
        while self.length >= 8 {
            self.bytes.push((self.pending & 0xff) as u8);
            self.pending >>= 8;
            self.length -= 8;
        }
    }

    /// Ones, and a zero.
    fn unary(&mut self, mut ones: u64) {
        while ones >= 32 {
            self.put(u64::from(u32::MAX), 32);
            ones -= 32;
        }
        self.put((1 << ones) - 1, u32::try_from(ones).unwrap_or(0) + 1);
    }

    fn rice(&mut self, value: u64, parameter: u32) {
        self.unary(value >> parameter);
        self.put(value & ((1 << parameter) - 1), parameter);
    }

    /// A number from 1 on.
    fn gamma(&mut self, value: u64) {
        let bits = value.max(1).ilog2();
        self.unary(u64::from(bits));
        self.put(value & ((1 << bits) - 1), bits);
    }

    fn finish(mut self) -> Vec<u8> {
        if self.length > 0 {
            self.bytes.push((self.pending & 0xff) as u8);
        }
        self.bytes
    }
}

struct Bits<'a> {
    bytes: &'a [u8],
    /// In bits.
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<u64> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Some(u64::from(bit))
    }

    fn take(&mut self, length: u32) -> Option<u64> {
        (0..length).try_fold(0, |value, at| Some(value | self.bit()? << at))
    }

    fn unary(&mut self) -> Option<u64> {
        let mut ones = 0;
        while self.bit()? == 1 {
            ones += 1;
        }
        Some(ones)
    }

    fn rice(&mut self, parameter: u32) -> Option<u64> {
        let high = self.unary().filter(|high| *high < 1 << HANDLE_BITS)?;
        Some(high << parameter | self.take(parameter)?)
    }

    fn gamma(&mut self) -> Option<u64> {
        let bits = self.unary().filter(|bits| *bits < 64)?;
        let bits = u32::try_from(bits).ok()?;
        Some(1 << bits | self.take(bits)?)
    }

    /// Less than a byte is left, and it is zero.
    fn is_over(&mut self) -> bool {
        let left = self.bytes.len() * 8 - self.at;
        left < 8 && self.take(u32::try_from(left).unwrap_or(0)) == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As an order of sessions, how many commands of each, and which begin with another number than the log says.
    fn told(runs: &[(u32, u32, bool)]) -> (Vec<Places>, Vec<(ClientId, Request)>) {
        let mut placing = Placing::new(Epoch::ZERO);
        let (mut lsn, mut handle, mut origins) = (Lsn(5), 0, Vec::new());
        for (gap, count, jumps) in runs {
            handle += gap;
            let client = ClientId(u128::from(handle) << 64 | 7);
            let first = u64::from(handle) + 3;
            for request in (first..first + u64::from(*count)).map(Request) {
                if !placing.goes_on(lsn, client, request, Time(8)) {
                    let next = if *jumps { Request(1) } else { request };
                    placing.push(lsn, Time(8), (client, request), handle, next);
                    // Where a session goes on in the next places, the log has another next request: it is said.
                }
                origins.push((client, request));
                lsn = lsn.next();
            }
            handle += 1;
        }
        (placing.finish(), origins)
    }

    /// What is read of all places, one origin for each LSN.
    fn read(all: &[Places]) -> Vec<(u32, Option<Request>)> {
        let runs = all.iter().flat_map(|places| places.runs().expect("as it was put"));
        runs.flat_map(|run| (0..run.count).map(move |at| (run.handle, run.request.filter(|_| at == 0)))).collect()
    }

    proptest! {
        #[test]
        fn what_is_told_is_read(runs in prop::collection::vec((0..9_u32, 1..40_u32, prop::bool::weighted(0.2)), 1..60)) {
            let (all, origins) = told(&runs);
            prop_assert_eq!(all.len(), 1);
            let places = &all[0];
            prop_assert_eq!((places.first, places.last()), (Lsn(5), Lsn(4 + origins.len() as u64)));
            prop_assert!(places.is_possible());
            for ((handle, request), (client, number)) in read(&all).into_iter().zip(&origins) {
                prop_assert_eq!(u128::from(handle), client.0 >> 64);
                prop_assert!(request.is_none_or(|request| request == *number));
            }
            let runs = places.runs().expect("possible");
            let mut at = 0;
            let firsts: Vec<_> = runs.iter().map(|run| {
                at += run.count as usize;
                origins[at - run.count as usize]
            }).collect();
            prop_assert!(places.confirms(&runs, firsts.iter().copied()));
            let mut other = firsts.clone();
            other[firsts.len() / 2].1 = Request(2);
            prop_assert!(!places.confirms(&runs, other.iter().copied()), "another number");
            let elsewhere = Places { first: Lsn(6), ..places.clone() };
            prop_assert!(!elsewhere.confirms(&runs, firsts.iter().copied()));
        }

        /// Whatever comes is read or refused, and does not take long.
        #[test]
        fn bytes_are_places_or_not(who in prop::collection::vec(any::<u8>(), 0..60), count in 0..=u32::MAX) {
            let places = Places { epoch: Epoch::ZERO, first: Lsn(1), count, time: Time(0), who: who.into() };
            if let Ok(runs) = places.runs() {
                prop_assert_eq!(runs.iter().map(|run| u64::from(run.count)).sum::<u64>(), u64::from(count));
                prop_assert!(count <= PLACES_MAX && runs.windows(2).all(|pair| pair[0].handle < pair[1].handle));
            }
        }
    }

    /// A batch of which a thousand sessions, in any mixture, are a part is told in little more than a bit for each.
    #[test]
    fn a_thousand_sessions_take_few_bytes() {
        let size = |every: u32| {
            let runs: Vec<_> = (0..1000 / every).map(|at| (if at == 0 { 0 } else { every - 1 }, 1, false)).collect();
            told(&runs).0.iter().map(|places| places.who.len()).sum::<usize>()
        };
        assert_eq!([1, 2, 5, 20, 500].map(size), [132, 132, 107, 45, 10]);
    }

    /// Where an order is not by session, where a clock ticks, or where there are too many, they are told in parts.
    #[test]
    fn what_does_not_go_together_is_told_in_parts() {
        let mut placing = Placing::new(Epoch::ZERO);
        let origin = |handle: u32, request| (ClientId(handle.into()), Request(request));
        placing.push(Lsn(1), Time(1), origin(3, 1), 3, Request(1));
        placing.push(Lsn(2), Time(1), origin(2, 1), 2, Request(1));
        placing.push(Lsn(3), Time(2), origin(4, 1), 4, Request(1));
        assert!(!placing.goes_on(Lsn(4), ClientId(4), Request(2), Time(3)));
        assert!(!placing.goes_on(Lsn(5), ClientId(4), Request(2), Time(2)), "an LSN is missing");
        assert!(!placing.goes_on(Lsn(4), ClientId(4), Request(3), Time(2)));
        assert!(placing.goes_on(Lsn(4), ClientId(4), Request(2), Time(2)));
        placing.cut();
        for request in 3..=2 + u64::from(PLACES_MAX) {
            assert_eq!(placing.goes_on(Lsn(2 + request), ClientId(4), Request(request), Time(2)), request > 3);
            if request == 3 {
                placing.push(Lsn(5), Time(2), origin(4, 3), 4, Request(3));
            }
        }
        assert!(!placing.goes_on(
            Lsn(5 + u64::from(PLACES_MAX)),
            ClientId(4),
            Request(3 + u64::from(PLACES_MAX)),
            Time(2)
        ));
        let told = placing.finish();
        let spans: Vec<_> = told.iter().map(|places| (places.first.0, places.count)).collect();
        assert_eq!(spans, [(1, 1), (2, 1), (3, 2), (5, PLACES_MAX)]);
    }
}
