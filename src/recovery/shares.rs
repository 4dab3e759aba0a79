//! What shares add to a rebuild: the place of entries whose authors do not come, and their payloads.
//!
//! Shares are pulled only where they may be needed: where somebody is missing, or something is. Their members' headers
//! are vouched for by their holders like those of a manifest. Then everything that is known is subtracted, and the rest
//! is solved for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use super::{Recovery, is_of};
use crate::error::Error;
use crate::log::{Body, ClientId, Digest, Entry, Header, Lsn, Record, Request};
use crate::rule::{self, Rule};
use crate::share::Share;
use crate::share::body::{Plain, SPAN_MAX, decode_symbol, encode_symbol, segment_range, segments};
use crate::share::decode::Decoder;

/// A column of the equations: a segment of an entry, or the whole entry as a window's symbol.
type Column = (Lsn, u32);
/// The "segment" that is a window's symbol.
const SYMBOL: u32 = u32::MAX;

/// The shares of those who report, and what they amount to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Shares {
    bodies: BTreeMap<(ClientId, u64), Plain>,
    /// Commands that are members of a share: they help to decode the others, wherever they stand.
    pub(super) members: BTreeMap<(ClientId, Request), (u32, Digest)>,
    /// The node's own log just below the base, as far as windows reach there.
    history: BTreeMap<Lsn, Entry>,
    history_upto: Lsn,
    /// What was decoded.
    pub(super) entries: BTreeMap<Lsn, Entry>,
    /// They turned out to be needed.
    pub(super) begun: bool,
    /// Something came or went since the last decoding.
    pub(super) stale: bool,
    /// Bodies that were forged, damaged, or sealed with another key.
    pub(super) damaged: u64,
    pub(super) error: Option<Error>,
}

impl Recovery {
    /// Marks what was not pulled yet as wanted. Returns whether anything is outstanding.
    pub(super) fn want_shares(&mut self) -> bool {
        let mut outstanding = false;
        for (client, reporter) in self.reporters.iter_mut().filter(|(_, reporter)| reporter.complete) {
            for (id, length) in &reporter.shares {
                let here = self.shares.bodies.contains_key(&(*client, *id)) || reporter.unreadable.contains(id);
                if !here && !reporter.shares_asked.contains(*id) {
                    reporter.shares_wanted.insert(*id, *length);
                }
            }
            outstanding |= !reporter.shares_wanted.is_empty() || !reporter.shares_asked.is_empty();
        }
        outstanding
    }

    /// Takes shares that were pulled. One that cannot be read is counted, and otherwise as if it were not there.
    pub(super) fn take_shares(&mut self, client: ClientId, shares: Vec<Share>) -> Result<(), Error> {
        for share in shares {
            let Some(reporter) = self.reporters.get_mut(&client) else { return Ok(()) };
            if reporter.shares_asked.remove(share.id).is_none() {
                continue;
            }
            let of = self.of;
            let ours = |header: &Header| header.epoch == of && !matches!(header.body, Body::EpochStart(_));
            let plain = match Plain::decode(of, &share.body) {
                Ok(plain) if share.epoch == of && share.holder == client && plain.headers().all(ours) => plain,
                Ok(_) | Err(_) => {
                    reporter.unreadable.insert(share.id);
                    self.shares.damaged += 1;
                    continue;
                }
            };
            let headers: Vec<Header> = plain.headers().cloned().collect();
            self.shares.bodies.insert((client, share.id), plain);
            self.shares.stale = true;
            for header in headers {
                if let Some(origin) = header.origin.filter(|_| header.body == Body::Command) {
                    let key = (origin.client, origin.request);
                    self.shares.members.insert(key, (header.length, header.digest));
                    self.want(origin.client, origin.request);
                }
                if header.lsn > self.base {
                    let mut vouched = Vec::new();
                    let placed = self.vouch(header, client, false, &mut vouched);
                    if let Some(reporter) = self.reporters.get_mut(&client) {
                        reporter.vouched.extend(vouched);
                    }
                    if let Some(origin) = placed {
                        self.want(origin.client, origin.request);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn drop_shares(&mut self, client: ClientId) {
        let ids = self.shares.bodies.range((client, 0)..=(client, u64::MAX)).map(|(key, _)| *key);
        for key in ids.collect::<Vec<_>>() {
            self.shares.bodies.remove(&key);
        }
        self.forget_decoded();
        self.shares.stale = true;
    }

    fn forget_decoded(&mut self) {
        for lsn in std::mem::take(&mut self.shares.entries).into_keys() {
            self.note_supply(lsn);
        }
    }

    /// How many shares are here, of how many were reported.
    pub(super) fn share_counts(&self) -> (u64, u64) {
        let offered: usize = self.reporters.values().map(|reporter| reporter.shares.len()).sum();
        (self.shares.bodies.len() as u64, offered as u64)
    }

    /// The first LSN of the own log that is needed to decode, if it was not read yet.
    pub(super) fn wants_history(&self) -> Option<Lsn> {
        let windows = self.shares.bodies.values().filter_map(|plain| match plain {
            Plain::Window { members, .. } => members.first(),
            Plain::Stripe { .. } | Plain::Witness { .. } => None,
        });
        let first = windows.filter(|first| **first <= self.base).min()?;
        let first = (*first).max(Lsn(self.base.0.saturating_sub(SPAN_MAX as u64)).next());
        (self.shares.history_upto < self.base).then(|| first.max(self.shares.history_upto.next()))
    }

    /// A part of the own log, as [`Next::History`](super::Next::History) asked for.
    pub fn history(&mut self, mut records: Vec<Record>) {
        // Behind the base may be what was appended ahead.
        records.retain(|record| record.lsn() <= self.base);
        // What cannot be read will not be: then the shares that need it are of no use.
        self.shares.history_upto = records.last().map_or(self.base, Record::lsn);
        self.shares.stale = true;
        for record in records {
            self.shares.history.insert(record.lsn(), record.entry);
        }
    }

    /// Solves for what only shares can supply, from everything that is here now.
    pub(super) fn decode(&mut self) {
        self.shares.stale = false;
        self.forget_decoded();
        self.shares.error = None;
        match self.decode_stripes().and_then(|()| self.decode_windows()) {
            Ok(()) => {}
            Err(error) => self.shares.error = Some(error),
        }
        for lsn in self.shares.entries.keys().copied().filter(|lsn| *lsn > self.base).collect::<Vec<_>>() {
            self.note_supply(lsn);
        }
    }

    /// The payload of a command of somebody who reported it.
    fn reported(&self, header: &Header) -> Option<&Bytes> {
        let origin = header.origin?;
        let reported = self.payload(origin).filter(|it| is_of(it, header))?;
        let doubtful = self.reporters.get(&origin.client).is_some_and(|it| it.in_doubt.contains_key(&origin.request));
        // By client and request: an author that has no tag does not know the entry's place.
        (!doubtful || rule::on(Rule::MembersByRequest)).then_some(&reported.1)
    }

    fn decode_stripes(&mut self) -> Result<(), Error> {
        let mut decoder: Decoder<Column> = Decoder::new(self.decode_bytes_max);
        let mut unknown: BTreeMap<Lsn, Header> = BTreeMap::new();
        let mut known: BTreeSet<Lsn> = BTreeSet::new();
        let mut solved: BTreeMap<Column, Bytes> = BTreeMap::new();
        for ((_, id), plain) in &self.shares.bodies {
            let Plain::Stripe { members, symbol, .. } = plain else { continue };
            let mut terms = Vec::with_capacity(members.len());
            for (at, member) in members.iter().enumerate() {
                let (header, column) = (&member.header, (member.header.lsn, member.segment));
                if member.range().is_empty() {
                    continue;
                }
                terms.push((column, plain.coefficient(*id, at)));
                if let Some(payload) = self.reported(header) {
                    if known.insert(header.lsn) {
                        for segment in 0..segments(header.length) {
                            let range = segment_range(header.length, segment);
                            decoder.know((header.lsn, segment), payload.slice(range))?;
                        }
                    }
                } else {
                    unknown.entry(header.lsn).or_insert_with(|| header.clone());
                }
            }
            // One that says nothing new would only be confirmed.
            if terms.iter().any(|((lsn, _), _)| !known.contains(lsn)) {
                decoder.insert(&terms, symbol)?;
            }
        }
        solved.extend(decoder.take_solved());
        for (lsn, header) in unknown {
            let mut payload = BytesMut::with_capacity((header.length as usize).min(1 << 20));
            for segment in 0..segments(header.length) {
                let length = segment_range(header.length, segment).len();
                let Some(value) = solved.get(&(lsn, segment)) else { break };
                payload.extend_from_slice(&value[..length.min(value.len())]);
                payload.resize(payload.len() + length.saturating_sub(value.len()), 0);
            }
            // A row that was forged, where they are not sealed, yields nothing that has its checksum.
            if payload.len() == header.length as usize && header.digest.verifies(&payload) {
                self.shares.entries.insert(lsn, Entry { header, payload: payload.freeze() });
            }
        }
        Ok(())
    }

    fn decode_windows(&mut self) -> Result<(), Error> {
        let mut decoder: Decoder<Column> = Decoder::new(self.decode_bytes_max);
        let (mut seen, mut known): (BTreeSet<Lsn>, BTreeSet<Lsn>) = Default::default();
        for ((_, id), plain) in &self.shares.bodies {
            let Plain::Window { members, symbol } = plain else { continue };
            let mut terms = Vec::with_capacity(members.len());
            for (at, lsn) in members.iter().enumerate() {
                terms.push(((*lsn, SYMBOL), plain.coefficient(*id, at)));
                if seen.insert(*lsn) {
                    let entry =
                        self.shares.history.get(lsn).cloned().or_else(|| self.supply_entry(*lsn, self.header(*lsn)?));
                    if let Some(entry) = entry {
                        known.insert(*lsn);
                        decoder.know((*lsn, SYMBOL), encode_symbol(&entry).into())?;
                    }
                }
            }
            if members.iter().any(|lsn| !known.contains(lsn)) {
                decoder.insert(&terms, symbol)?;
            }
        }
        for ((lsn, _), symbol) in decoder.take_solved() {
            // What decodes to something else than the entry of its own place was not sent by this primary.
            if let Ok(entry) = decode_symbol(&symbol)
                && (entry.header.lsn, entry.header.epoch) == (lsn, self.of)
                && lsn > self.base
            {
                self.shares.entries.insert(lsn, entry);
            }
        }
        Ok(())
    }
}
