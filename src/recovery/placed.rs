//! What manifests say of places, joined with what their authors have without one.
//!
//! Places name sessions by handle, and a session's commands by their order: who reads them goes along the log, from the base
//! on, with everything else that is known, and has what it makes of them confirmed by their checksum. Done when a conclusion is
//! at hand, for it costs a walk over everything that was reported.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::Backing;
use super::{Offer, Recovery};
use crate::error::{Code, Error};
use crate::log::{Body, ClientId, Header, Lsn, Origin, Places, Request, Run};
use crate::session::LogState;

/// Checksums that are tried, at most, where something is missing.
const TRIES_MAX: u32 = 1 << 14;

/// The places that reporters told of, and the headers that follow from them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Placed {
    /// By the first LSN. More than one is a contradiction, and so are two that overlap.
    told: BTreeMap<Lsn, Vec<Backing<Places>>>,
    /// Of commands that only their places, and their authors without one, make known.
    pub(super) headers: BTreeMap<Lsn, Header>,
    /// Something came or went since they were derived.
    pub(super) stale: bool,
    /// What cannot be true, and who said so.
    pub(super) error: Option<(Error, Vec<ClientId>)>,
}

/// Goes along the log, and knows each session's next request.
struct Along<'a> {
    state: &'a LogState,
    next: BTreeMap<ClientId, Request>,
    /// The next LSN.
    at: Lsn,
    /// How many entries were missing on the way.
    missing: u64,
}

impl Along<'_> {
    fn pass(&mut self, header: &Header) {
        self.skip_to(header.lsn);
        self.at = header.lsn.next();
        if let (Body::Command | Body::Noop, Some(Origin { client, request })) = (&header.body, header.origin) {
            self.next.insert(client, request.next());
        }
    }

    fn skip_to(&mut self, lsn: Lsn) {
        self.missing = self.missing.saturating_add(lsn.0.saturating_sub(self.at.0));
        self.at = self.at.max(lsn);
    }

    /// Whose these places are, with the first request of each run, if the log has sessions of their handles.
    fn origins(&self, places: &Places, runs: &[Run]) -> Option<Vec<(ClientId, Request)>> {
        let base = self.state.end();
        let mut lsn = places.first;
        let origin = |run: &Run| {
            let client = self.state.holder(run.handle)?;
            // Of what the base has already, the number that is next comes after.
            let logged = base.next().0.saturating_sub(lsn.0).min(u64::from(run.count));
            lsn = Lsn(lsn.0.saturating_add(u64::from(run.count)));
            let next = || self.next.get(&client).copied().or_else(|| Some(self.state.session(client)?.next));
            let before = |next: Request| Some(Request(next.0.checked_sub(logged)?));
            Some((client, run.request.or_else(|| before(next()?))?))
        };
        runs.iter().map(origin).collect()
    }
}

impl Recovery {
    /// Somebody vouches for places. Returns whether that is news.
    ///
    /// # Errors
    /// [`Code::Protocol`] if the same reporter says two things of one place.
    pub(super) fn vouch_places(&mut self, places: Places, client: ClientId) -> Result<bool, Error> {
        self.placed_at.stale = true;
        let variants = self.placed_at.told.entry(places.first).or_default();
        if let Some(variant) = variants.iter_mut().find(|variant| variant.what == places) {
            return Ok(variant.vouch(client));
        }
        if variants.iter().any(|variant| variant.vouchers.binary_search(&client).is_ok()) {
            let why = format!("the report tells of the places from {} on twice, and otherwise", places.first);
            return Err(Error::new(Code::Protocol, why));
        }
        variants.push(Backing::new(places, client));
        Ok(true)
    }

    /// The reporter no longer vouches for the places that begin there.
    pub(super) fn disavow_places(&mut self, first: Lsn, client: ClientId) {
        self.placed_at.stale = true;
        let Some(variants) = self.placed_at.told.get_mut(&first) else { return };
        variants.iter_mut().for_each(|variant| variant.disavow(client));
        variants.retain(|variant| !variant.vouchers.is_empty());
        if variants.is_empty() {
            self.placed_at.told.remove(&first);
        }
    }

    /// The highest LSN that places tell of.
    pub(super) fn last_placed(&self) -> Lsn {
        let last = self.placed_at.told.values().flatten().map(|variant| variant.what.last());
        last.max().unwrap_or_default()
    }

    /// Who told of the place of this entry.
    pub(super) fn placers(&self, lsn: Lsn) -> impl Iterator<Item = ClientId> + '_ {
        let told = self.placed_at.told.range(..=lsn).next_back().map(|(_, variants)| variants);
        let told = told.into_iter().flatten().filter(move |variant| lsn <= variant.what.last());
        told.flat_map(|variant| variant.vouchers.iter().copied())
    }

    pub(super) fn forget_placed(&mut self) {
        for (lsn, header) in std::mem::take(&mut self.placed_at.headers) {
            if let Some(Origin { client, request }) = header.origin.filter(|_| self.known.get(lsn.0).is_none()) {
                self.placed.remove(&(client, request, lsn));
            }
            self.note_supply(lsn);
        }
        self.placed_at.error = None;
    }

    /// Derives the headers of what only places tell of, and asks for the payloads.
    pub(super) fn join_places(&mut self, state: &LogState) {
        if !std::mem::take(&mut self.placed_at.stale) {
            return;
        }
        self.forget_placed();
        if self.supplied.gaps(self.base, self.observed().max(self.last_placed())).is_empty() {
            return;
        }
        let told = std::mem::take(&mut self.placed_at.told);
        let derived = self.derive(&told, state);
        self.placed_at.told = told;
        match derived {
            Ok(headers) => {
                for header in headers {
                    let (lsn, origin) = (header.lsn, header.origin);
                    self.placed_at.headers.insert(lsn, header);
                    if let Some(Origin { client, request }) = origin {
                        self.placed.insert((client, request, lsn));
                        self.want(client, request);
                    }
                    self.note_supply(lsn);
                }
            }
            Err(contradiction) => self.placed_at.error = Some(contradiction),
        }
    }

    fn derive(
        &self,
        told: &BTreeMap<Lsn, Vec<Backing<Places>>>,
        state: &LogState,
    ) -> Result<Vec<Header>, (Error, Vec<ClientId>)> {
        let mut along = Along { state, next: BTreeMap::new(), at: self.base.next(), missing: 0 };
        let mut tries = TRIES_MAX;
        let mut known = self.headers(self.base).filter_map(|(_, header)| header).peekable();
        let mut derived = Vec::new();
        let mut before: Option<&Backing<Places>> = None;
        for variant in told.values().flatten() {
            let places = &variant.what;
            if let Some(before) = before.filter(|before| places.first <= before.what.last()) {
                return Err(self.disagree(places.first, before.vouchers.iter().chain(variant.vouchers.iter()).copied()));
            }
            before = Some(variant);
            while let Some(header) = known.next_if(|header| header.lsn < places.first) {
                along.pass(header);
            }
            let (first, last) = (places.first, places.last());
            along.skip_to(first);
            let runs = places.runs().unwrap_or_default();
            let origins = along.origins(places, &runs);
            let confirm = |origins| self.confirm(places, &runs, origins, along.missing, &mut tries);
            let Some(origins) = origins.clone().and_then(confirm) else {
                let origins = origins.unwrap_or_default();
                if along.missing == 0 {
                    // Or what one of those said of itself, who are told of.
                    let told = origins.iter().map(|(client, _)| *client);
                    let told = told.filter(|client| self.reporters.contains_key(client));
                    return Err(self.disagree(first, variant.vouchers.iter().copied().chain(told)));
                }
                // Of those who report the numbers are right all the same.
                for (run, (client, start)) in runs.iter().zip(origins) {
                    along.next.insert(client, Request(start.0.saturating_add(u64::from(run.count))));
                }
                while let Some(header) = known.next_if(|header| header.lsn <= last) {
                    along.pass(header);
                }
                along.skip_to(last.next());
                continue;
            };
            let mut lsn = first;
            for (run, (client, start)) in runs.iter().zip(&origins) {
                for request in (0..u64::from(run.count)).map(|more| Request(start.0.saturating_add(more))) {
                    let origin = Some(Origin { client: *client, request });
                    match known.next_if(|header| header.lsn == lsn) {
                        Some(header) if (header.origin, header.time) != (origin, places.time) => {
                            let who = variant.vouchers.iter().copied().chain(self.vouchers(lsn));
                            return Err(self.disagree(lsn, who));
                        }
                        Some(_) => {}
                        None if lsn <= self.base => {}
                        None => derived.extend(self.in_doubt(places, lsn, *client, request)),
                    }
                    lsn = lsn.next();
                }
                along.next.insert(*client, Request(start.0.saturating_add(u64::from(run.count))));
            }
            along.at = last.next();
        }
        Ok(derived)
    }

    /// The origins with which the checksum agrees. What is `missing` before them may be of sessions that did not report, and
    /// then their numbers are further on. Of those who report nothing is missing.
    fn confirm(
        &self,
        places: &Places,
        runs: &[Run],
        mut origins: Vec<(ClientId, Request)>,
        missing: u64,
        tries: &mut u32,
    ) -> Option<Vec<(ClientId, Request)>> {
        let here = |client| self.in_sync && self.reporters.get(&client).is_some_and(|reporter| reporter.complete);
        let unsure = (0..runs.len()).filter(|at| runs[*at].request.is_none() && !here(origins[*at].0));
        // Which, its number as far as is known, and how much further on it is tried.
        let mut further: Vec<(usize, u64, u64)> = unsure.map(|at| (at, origins[at].1.0, 0)).collect();
        let (mut sum, last) = (0, further.len().checked_sub(1));
        while !places.confirms(runs, origins.iter().copied()) {
            *tries = tries.checked_sub(1)?;
            // One sum after the other, for together they are no more than what is missing; of each, all ways to make it up.
            let first = further.iter().position(|(_, _, by)| *by > 0);
            match first.filter(|first| Some(*first) != last) {
                Some(first) => {
                    let by = std::mem::take(&mut further[first].2);
                    further[0].2 = by - 1;
                    further[first + 1].2 += 1;
                }
                None => {
                    sum += 1;
                    let last = last.filter(|_| sum <= missing)?;
                    further[last].2 = 0;
                    further[0].2 = sum;
                }
            }
            for (at, number, by) in &further {
                origins[*at].1 = Request(number.saturating_add(*by));
            }
        }
        Some(origins)
    }

    /// The header of a command whose author is in doubt about its place.
    fn in_doubt(&self, places: &Places, lsn: Lsn, client: ClientId, request: Request) -> Option<Header> {
        let reporter = self.reporters.get(&client)?;
        let answered = *reporter.in_doubt.get(&request)?;
        let Offer { length, digest, .. } = *reporter.offered.get(&request)?;
        let (epoch, time, body) = (places.epoch, places.time, Body::Command);
        Some(Header { epoch, lsn, body, origin: Some(Origin { client, request }), time, answered, length, digest })
    }

    pub(super) fn disagree(&self, lsn: Lsn, who: impl Iterator<Item = ClientId>) -> (Error, Vec<ClientId>) {
        let why = format!("reports disagree on entry {lsn} of epoch {}: exclude one of the accused", self.of);
        let who: BTreeSet<ClientId> = who.collect();
        (Error::new(Code::Conflict, why), who.into_iter().collect())
    }
}
