//! The gateways' code: so many data packets and three repair packets make a group, and any packets of it, as many as it has
//! data, give all of its data.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use tagalong::share::field;

/// Data packets of a full group, and its repair packets: r and c of the paper.
pub(crate) const DATA: usize = 8;
pub(crate) const REPAIR: usize = 3;
/// Kind, group, index, count.
pub(crate) const HEAD: usize = 1 + 8 + 1 + 1;
/// Groups the far gateway remembers.
const GROUPS_MAX: usize = 4096;

const KIND_DATA: u8 = 0;
const KIND_REPAIR: u8 = 1;

/// The near gateway's side: what it sends for what it is given.
#[derive(Default)]
pub(crate) struct Encoder {
    group: u64,
    data: Vec<Vec<u8>>,
}

impl Encoder {
    /// The datagram of one packet; the group is full if [`is_full`](Encoder::is_full) says so then.
    pub(crate) fn data(&mut self, packet: Vec<u8>) -> Vec<u8> {
        let datagram = head(KIND_DATA, self.group, self.data.len(), 0, &packet);
        self.data.push(packet);
        datagram
    }

    pub(crate) fn is_full(&self) -> bool {
        self.data.len() >= DATA
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Ends the group: its repair packets. A group that is not full has as many, and is as well protected.
    pub(crate) fn close(&mut self) -> Vec<Vec<u8>> {
        let data = std::mem::take(&mut self.data);
        let width = data.iter().map(|packet| packet.len() + 2).max().unwrap_or(0);
        let symbols: Vec<Vec<u8>> = data.iter().map(|packet| symbol(packet, width)).collect();
        let rows = (0..REPAIR).map(|row| {
            let mut sum = vec![0; width];
            for (at, symbol) in symbols.iter().enumerate() {
                field::add_scaled(&mut sum, coefficient(row, at), symbol);
            }
            head(KIND_REPAIR, self.group, row, data.len(), &sum)
        });
        let rows = rows.collect();
        self.group += 1;
        rows
    }
}

fn head(kind: u8, group: u64, index: usize, count: usize, body: &[u8]) -> Vec<u8> {
    let small = |number: usize| u8::try_from(number).expect("a group has few packets");
    let mut datagram = Vec::with_capacity(HEAD + body.len());
    datagram.put_u8(kind);
    datagram.put_u64(group);
    datagram.put_u8(small(index));
    datagram.put_u8(small(count));
    datagram.extend_from_slice(body);
    datagram
}

/// A packet with its length, filled up with zeros.
fn symbol(packet: &[u8], width: usize) -> Vec<u8> {
    let mut symbol = Vec::with_capacity(width);
    symbol.put_u16(u16::try_from(packet.len()).expect("a packet is below 64 KiB"));
    symbol.extend_from_slice(packet);
    symbol.resize(width, 0);
    symbol
}

fn coefficient(row: usize, at: usize) -> u8 {
    let small = |number: usize| u8::try_from(number).expect("a group has few packets");
    // The library's own: every square part of it can be inverted.
    field::cauchy(small(row), small(at))
}

#[derive(Default)]
struct Group {
    data: BTreeMap<usize, Vec<u8>>,
    repair: BTreeMap<usize, Vec<u8>>,
    /// How many data packets it has, once a repair packet has said so.
    count: usize,
    done: bool,
}

/// The far gateway's side: packets as they came, and those it could repair.
#[derive(Default)]
pub(crate) struct Decoder {
    groups: BTreeMap<u64, Group>,
    pub(crate) repaired: u64,
}

impl Decoder {
    /// Takes a datagram, and gives every packet that is news by it.
    pub(crate) fn take(&mut self, mut datagram: &[u8]) -> Vec<Vec<u8>> {
        let Some((kind, id, index, count)) = read_head(&mut datagram) else { return Vec::new() };
        if self.groups.first_key_value().is_some_and(|(first, _)| id < *first) && self.groups.len() >= GROUPS_MAX {
            // Too old to be repaired; what came by itself is still of use.
            return if kind == KIND_DATA { vec![datagram.to_vec()] } else { Vec::new() };
        }
        let group = self.groups.entry(id).or_default();
        let mut news = Vec::new();
        if kind == KIND_DATA && !group.data.contains_key(&index) {
            group.data.insert(index, datagram.to_vec());
            news.push(datagram.to_vec());
        } else if kind == KIND_REPAIR {
            group.count = count;
            group.repair.insert(index, datagram.to_vec());
        }
        let solved = group.solve();
        self.repaired += solved.len() as u64;
        news.extend(solved);
        while self.groups.len() > GROUPS_MAX {
            self.groups.pop_first();
        }
        news
    }
}

fn read_head(datagram: &mut &[u8]) -> Option<(u8, u64, usize, usize)> {
    let kind = datagram.try_get_u8().ok()?;
    let group = datagram.try_get_u64().ok()?;
    let (index, count) = (datagram.try_get_u8().ok()?.into(), datagram.try_get_u8().ok()?.into());
    (index < DATA.max(REPAIR) && count <= DATA).then_some((kind, group, index, count))
}

impl Group {
    /// The packets that are missing, if what is here gives them.
    fn solve(&mut self) -> Vec<Vec<u8>> {
        let missing: Vec<usize> = (0..self.count).filter(|at| !self.data.contains_key(at)).collect();
        if self.done || missing.is_empty() || missing.len() > self.repair.len() {
            return Vec::new();
        }
        self.done = true;
        let width = self.repair.values().map(Vec::len).max().unwrap_or(0);
        // A row for each missing packet: its coefficients, and what is left when the known ones are taken away.
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (row, sum) in self.repair.iter().take(missing.len()) {
            let mut sum = sum.clone();
            sum.resize(width, 0);
            for (at, packet) in &self.data {
                field::add_scaled(&mut sum, coefficient(*row, *at), &symbol(packet, width.max(packet.len() + 2)));
            }
            rows.push((missing.iter().map(|at| coefficient(*row, *at)).collect(), sum));
        }
        eliminate(&mut rows);
        let packets: Vec<Vec<u8>> = rows.into_iter().filter_map(|(_, symbol)| unwrap(&symbol)).collect();
        for (at, packet) in missing.iter().zip(&packets) {
            self.data.insert(*at, packet.clone());
        }
        packets
    }
}

/// Gauss-Jordan on a small system that has one solution.
fn eliminate(rows: &mut [(Vec<u8>, Vec<u8>)]) {
    for at in 0..rows.len() {
        let Some(pivot) = (at..rows.len()).find(|row| rows[*row].0[at] != 0) else { return };
        rows.swap(at, pivot);
        let by = field::inv(rows[at].0[at]);
        field::scale(&mut rows[at].0, by);
        field::scale(&mut rows[at].1, by);
        let (coefficients, sum) = rows[at].clone();
        for (other, row) in rows.iter_mut().enumerate().filter(|(other, _)| *other != at) {
            debug_assert_ne!(other, at);
            let by = row.0[at];
            field::add_scaled(&mut row.0, by, &coefficients);
            field::add_scaled(&mut row.1, by, &sum);
        }
    }
}

fn unwrap(mut symbol: &[u8]) -> Option<Vec<u8>> {
    let length = symbol.try_get_u16().ok()?;
    Some(symbol.get(..length.into())?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|at| vec![u8::try_from(at).expect("few") + 1; 10 + 7 * at]).collect()
    }

    fn group(count: usize) -> Vec<Vec<u8>> {
        let mut encoder = Encoder::default();
        let mut datagrams: Vec<Vec<u8>> = packets(count).into_iter().map(|packet| encoder.data(packet)).collect();
        assert_eq!(encoder.is_full(), count == DATA);
        datagrams.extend(encoder.close());
        assert!(encoder.is_empty());
        datagrams
    }

    /// Every set of up to three lost packets, of groups of every size.
    #[test]
    fn any_three_that_are_lost_are_repaired() {
        for count in 1..=DATA {
            let datagrams = group(count);
            for lost in 0u32..1 << datagrams.len() {
                if lost.count_ones() as usize > REPAIR {
                    continue;
                }
                let mut decoder = Decoder::default();
                let arrived = datagrams.iter().enumerate().filter(|(at, _)| lost & (1 << at) == 0);
                let mut news: Vec<Vec<u8>> = arrived.flat_map(|(_, datagram)| decoder.take(datagram)).collect();
                news.sort();
                assert_eq!(news, packets(count), "{count} packets, lost {lost:b}");
            }
        }
    }

    #[test]
    fn four_that_are_lost_are_not() {
        let mut decoder = Decoder::default();
        let news: Vec<Vec<u8>> = group(DATA).iter().skip(4).flat_map(|datagram| decoder.take(datagram)).collect();
        assert_eq!(news.len(), 4);
        assert_eq!(decoder.repaired, 0);
    }

    #[test]
    fn nonsense_is_no_news() {
        let mut decoder = Decoder::default();
        for length in 0..40 {
            assert!(decoder.take(&vec![0xff; length]).is_empty());
        }
    }
}
