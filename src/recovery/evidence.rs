//! What the reports amount to, as they stand: what was observed, what can be rebuilt, and what cannot be true.

use std::ops::Range;

use bytes::Bytes;

use super::{Recovery, Reporter, is_of};
use crate::error::{Code, Error};
use crate::log::{Body, ClientId, Digest, Entry, Header, Lsn, Origin, Record};
use crate::rule::{self, Rule};

/// What the known headers and payloads amount to.
pub(super) struct Walk {
    pub(super) records: Vec<Record>,
    pub(super) gaps: Vec<Range<Lsn>>,
    pub(super) last: Lsn,
}

impl Recovery {
    /// The highest LSN anybody observed, at least the base.
    pub(super) fn observed(&self) -> Lsn {
        let complete = self.reporters.values().filter(|reporter| reporter.complete);
        let seen = complete.map(|reporter| reporter.observed.max(if self.in_sync { Lsn(0) } else { reporter.stable }));
        seen.max().unwrap_or(Lsn(0)).max(self.base)
    }

    pub(super) fn observers(&self, lsn: Lsn) -> Vec<ClientId> {
        let said = self.reporters.iter().filter(|(_, reporter)| reporter.observed.max(reporter.stable) >= lsn);
        said.map(|(client, _)| *client).collect()
    }

    /// The highest LSN that anybody told anything of, at least the base.
    pub(super) fn last_known(&self) -> Lsn {
        self.known.last().map_or(self.base, Lsn).max(self.last_placed())
    }

    /// Who told of this entry.
    pub(super) fn vouchers(&self, lsn: Lsn) -> Vec<ClientId> {
        let direct = self.known.get(lsn.0).into_iter().flatten().flat_map(|variant| variant.vouchers.iter().copied());
        let direct: Vec<ClientId> = direct.collect();
        if direct.is_empty() { self.placers(lsn).collect() } else { direct }
    }

    pub(super) fn header(&self, lsn: Lsn) -> Option<&Header> {
        match self.known.get(lsn.0).map(Vec::as_slice) {
            Some([variant]) => Some(&variant.what),
            Some(_) => None,
            None => {
                let decoded = || self.shares.entries.get(&lsn).map(|entry| &entry.header);
                self.placed_at.headers.get(&lsn).or_else(decoded)
            }
        }
    }

    /// Two reports that cannot both be true, or one that cannot.
    pub(super) fn contradiction(&self, strict: bool) -> Option<(Error, Vec<ClientId>)> {
        if let Some((lsn, variants)) = self.disputed.first().and_then(|lsn| Some((lsn, self.known.get(lsn.0)?))) {
            let who = variants.iter().flat_map(|variant| variant.vouchers.iter().copied());
            return Some(self.disagree(*lsn, who));
        }
        if self.placed_at.error.is_some() {
            return self.placed_at.error.clone();
        }
        if let Some(error) = self.shares.error.as_ref().filter(|_| self.resolved.is_none()) {
            return Some((error.clone(), Vec::new()));
        }
        let above = |reporter: &Reporter| self.in_sync && reporter.complete && reporter.stable > self.base;
        if let Some((client, reporter)) = self.reporters.iter().find(|(_, reporter)| above(reporter)) {
            let why = format!(
                "client {client} was told that {} is stable, but this log, in sync, ends at {}: exclude the client, \
                 or find the node that has the rest",
                reporter.stable, self.base
            );
            return Some((Error::new(Code::Conflict, why), vec![*client]));
        }
        let known = self.last_known();
        let observed = self.observed();
        if strict && self.excluded.is_empty() && observed > known {
            let why = format!(
                "entry {observed} of epoch {} was observed, but with everybody present nobody has a header past \
                 {known}: exclude the accused, or resolve by policy",
                self.of
            );
            return Some((Error::new(Code::Conflict, why), self.observers(observed)));
        }
        None
    }

    /// What was pulled of a command, with its checksum.
    pub(super) fn payload(&self, origin: Origin) -> Option<&(Digest, Bytes)> {
        self.payloads.get(&origin.client)?.get(origin.request.0)
    }

    /// What the entry at `lsn` would be rebuilt from.
    pub(super) fn supply(&self, lsn: Lsn) -> Option<(&Header, Option<&Bytes>)> {
        self.supply_as(lsn, self.header(lsn)?)
    }

    /// The same, of an entry with this header.
    fn supply_as<'a>(&'a self, lsn: Lsn, header: &'a Header) -> Option<(&'a Header, Option<&'a Bytes>)> {
        let payload = match (&header.body, header.origin) {
            (Body::Command, Some(origin)) if header.length > 0 => {
                let reported = self.payload(origin);
                let reported = reported.filter(|it| is_of(it, header)).map(|(_, payload)| payload);
                let decoded = || self.shares.entries.get(&lsn).filter(|entry| entry.header == *header);
                Some(reported.or_else(|| decoded().map(|entry| &entry.payload))?)
            }
            (_, _) => None,
        };
        Some((header, payload))
    }

    pub(super) fn supply_entry(&self, lsn: Lsn, header: &Header) -> Option<Entry> {
        let (header, payload) = self.supply_as(lsn, header)?;
        Some(Entry { header: header.clone(), payload: payload.cloned().unwrap_or_default() })
    }

    /// The LSNs after `after` of which a header is known, in order, and the header where there is only one.
    pub(super) fn headers(&self, after: Lsn) -> impl Iterator<Item = (Lsn, Option<&Header>)> + '_ {
        let from = after.next()..;
        let mut known = self.known.from(from.start.0).map(|(lsn, variants)| {
            let only = if let [variant] = variants.as_slice() { Some(&variant.what) } else { None };
            (Lsn(lsn), only)
        });
        let mut placed = self.placed_at.headers.range(from.clone()).map(|(lsn, header)| (*lsn, Some(header)));
        let mut decoded = self.shares.entries.range(from).map(|(lsn, entry)| (*lsn, Some(&entry.header)));
        let mut heads = [known.next(), placed.next(), decoded.next()];
        std::iter::from_fn(move || {
            let next = heads.iter().flatten().map(|(lsn, _)| *lsn).min()?;
            let mut found = None;
            for (at, head) in heads.iter_mut().enumerate() {
                if let Some(it) = head.take_if(|(lsn, _)| *lsn == next) {
                    // The first of them has the word.
                    found = found.or(Some(it));
                    *head = match at {
                        0 => known.next(),
                        1 => placed.next(),
                        _ => decoded.next(),
                    };
                }
            }
            found
        })
    }

    pub(super) fn walk(&self) -> Walk {
        let observed = self.observed();
        // With room for the `EpochStart` that will follow.
        let mut walk = Walk { records: Vec::with_capacity(self.known.len() + 1), gaps: Vec::new(), last: self.base };
        // Gaps are ranges between what is known: an absurd `observed` costs nothing.
        for (lsn, header) in self.headers(self.base) {
            let next = walk.last.next();
            if lsn > observed && (lsn != next || !rule::on(Rule::RebuildPastObserved)) {
                break;
            }
            let Some(entry) = header.and_then(|header| self.supply_entry(lsn, header)) else {
                if lsn > observed {
                    break;
                } else {
                    continue;
                };
            };
            if lsn > next {
                walk.gaps.push(next..lsn);
            }
            walk.records.push(Record { entry, reply: Digest::default() });
            walk.last = lsn;
        }
        if walk.last < observed {
            walk.gaps.push(walk.last.next()..observed.next());
            walk.last = observed;
        }
        debug_assert_eq!(walk.gaps, self.supplied.gaps(self.base, observed), "what can be supplied was noted");
        walk
    }
}
