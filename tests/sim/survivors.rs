//! The reference for coverage: what a set of caches can supply of a reign's log, from nothing but what is in them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tagalong::client::CacheImage;
use tagalong::log::{Body, ClientId, Entry, Epoch, Lsn, Record};
use tagalong::share::body::{Plain, decode_symbol, encode_symbol, segment_range, segments};

use crate::algebra::{Row, solve};
use crate::oracle::ReignLog;

/// A segment of an entry, or the whole of it as a window has it.
type Column = (Lsn, u32);
const WHOLE: u32 = u32::MAX;

/// What is known of a reign's log above `base` to those whose caches are given.
pub struct Survivors<'a> {
    truth: &'a [Record],
    base: Lsn,
    /// The highest LSN that any of them observed.
    pub observed: Lsn,
    headers: BTreeSet<Lsn>,
    /// Those of which manifests told no more than the place.
    told: BTreeSet<Lsn>,
    /// Commands that their authors have.
    payloads: BTreeSet<Lsn>,
    /// Commands that follow from shares.
    decoded: BTreeSet<Lsn>,
    /// LSNs whose headers are known from shares alone.
    placed: BTreeSet<Lsn>,
}

/// How far a rebuild gets: the last LSN, and what is missing below it.
#[derive(Debug, PartialEq, Eq)]
pub struct Walk {
    pub last: Lsn,
    pub gaps: Vec<Lsn>,
}

impl<'a> Survivors<'a> {
    pub fn new<'i>(
        epoch: Epoch,
        reign: &'a ReignLog,
        base: Lsn,
        caches: impl Iterator<Item = (ClientId, &'i CacheImage)> + Clone,
    ) -> Self {
        let mut survivors = Self {
            truth: &reign.log,
            base,
            observed: base,
            headers: BTreeSet::new(),
            told: BTreeSet::new(),
            payloads: BTreeSet::new(),
            decoded: BTreeSet::new(),
            placed: BTreeSet::new(),
        };
        for (client, image) in caches.clone() {
            if image.observed.0 == epoch {
                survivors.observed = survivors.observed.max(image.observed.1);
            }
            let known = image.headers.keys().filter(|(of, _)| *of == epoch).map(|(_, lsn)| *lsn);
            survivors.headers.extend(known);
            survivors.told.extend(image.told().filter(|(of, _)| *of == epoch).map(|(_, lsn)| lsn));
            for (request, command) in &image.commands {
                let tag = command.tag.filter(|tag| tag.epoch == epoch);
                survivors.headers.extend(tag.map(|tag| tag.lsn));
                survivors.payloads.extend(reign.places.get(&(client, *request)));
            }
        }
        let shares = caches.flat_map(|(_, image)| image.shares.values()).filter(|share| share.epoch == epoch);
        let plain =
            shares.filter(|share| share.hold_until > base).map(|share| (share.id, Plain::decode(epoch, &share.body)));
        let plain: Vec<(u64, Plain)> = plain.map(|(id, plain)| (id, plain.expect("an honest share"))).collect();
        survivors.decode(&plain);
        survivors
    }

    fn entry(&self, lsn: Lsn) -> Option<&'a Entry> {
        self.truth.get(usize::try_from(lsn.0).ok()?.checked_sub(1)?).map(|record| &record.entry)
    }

    /// First the stripes, then the windows with all that is known by then.
    fn decode(&mut self, shares: &[(u64, Plain)]) {
        let (mut known, mut rows): (BTreeMap<Column, Bytes>, Vec<Row<Column>>) = Default::default();
        let mut lsns = BTreeSet::new();
        for (id, plain) in shares {
            self.placed.extend(plain.headers().map(|header| header.lsn));
            let Plain::Stripe { members, symbol, .. } = plain else { continue };
            let mut terms = Vec::new();
            for (at, member) in members.iter().enumerate() {
                let (lsn, segment) = (member.header.lsn, member.segment);
                lsns.insert(lsn);
                terms.push(((lsn, segment), plain.coefficient(*id, at)));
                let entry = self.entry(lsn).filter(|_| self.payloads.contains(&lsn) || member.range().is_empty());
                if let Some(entry) = entry {
                    known.insert((lsn, segment), entry.payload.slice(member.range()));
                }
            }
            rows.push((terms, symbol.clone()));
        }
        let solved = solve(&known, &rows);
        for lsn in lsns {
            let Some(entry) = self.entry(lsn) else { continue };
            let length = entry.header.length;
            let whole = (0..segments(length)).all(|segment| {
                let part = &entry.payload[segment_range(length, segment)];
                let value = solved.get(&(lsn, segment));
                part.is_empty() || value.is_some_and(|value| value.iter().zip(part).all(|(a, b)| a == b))
            });
            self.decoded.extend((whole && !self.payloads.contains(&lsn)).then_some(lsn));
        }
        self.decode_windows(shares);
    }

    fn decode_windows(&mut self, shares: &[(u64, Plain)]) {
        let (mut known, mut rows): (BTreeMap<Column, Bytes>, Vec<Row<Column>>) = Default::default();
        for (id, plain) in shares {
            let Plain::Window { members, symbol } = plain else { continue };
            for lsn in members {
                if let Some(entry) = self.entry(*lsn).filter(|_| *lsn <= self.base || self.supplies(*lsn, true)) {
                    known.insert((*lsn, WHOLE), encode_symbol(entry).into());
                }
            }
            let terms = members.iter().enumerate().map(|(at, lsn)| ((*lsn, WHOLE), plain.coefficient(*id, at)));
            rows.push((terms.collect(), symbol.clone()));
        }
        for ((lsn, _), symbol) in solve(&known, &rows) {
            let entry = decode_symbol(&symbol.into()).ok();
            if entry.is_some() && entry.as_ref() == self.entry(lsn) {
                self.decoded.insert(lsn);
                self.placed.insert(lsn);
            }
        }
    }

    /// Whether the entry can be put back in its place, with the help of shares or without.
    pub fn supplies(&self, lsn: Lsn, shares: bool) -> bool {
        let Some(Entry { header, .. }) = self.entry(lsn) else { return false };
        let in_doubt = self.told.contains(&lsn) && self.payloads.contains(&lsn);
        let placed = self.headers.contains(&lsn) || in_doubt || (shares && self.placed.contains(&lsn));
        let whole = header.body != Body::Command || header.length == 0 || self.payloads.contains(&lsn);
        placed && (whole || (shares && self.decoded.contains(&lsn)))
    }

    /// What a rebuild comes to: up to whatever was observed, and past it as long as the next one can be supplied.
    pub fn walk(&self, shares: bool) -> Walk {
        let mut walk = Walk { last: self.base, gaps: Vec::new() };
        loop {
            let next = walk.last.next();
            if !self.supplies(next, shares) {
                if next > self.observed {
                    return walk;
                }
                walk.gaps.push(next);
            }
            walk.last = next;
        }
    }
}
