//! Valid inputs of every target, made by the encoders that the library itself uses. They are the corpus of `fuzz/`, too.

use bytes::Bytes;
use tagalong::codec::{encode_header, encode_marks, encode_op, encode_record};
use tagalong::log::{Body, ClientId, Entry, EpochStart, Header, Lsn, NodeId, Origin, Request, SessionInfo, Target};
use tagalong::share::body::{Member, Plain, encode_symbol};
use tagalong::share::field;
use tagalong::store::StateMachine;
use tagalong::store::kv::{KvCommand, KvItem, KvQuery, KvReply, KvStore};

use super::bodies::forged::{self, command_header};
use super::bodies::input::put_part;

/// Larger ones say nothing more.
const BYTES_MAX: usize = 2000;

fn small(samples: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    samples.into_iter().filter(|sample| sample.len() <= BYTES_MAX).collect()
}

fn with<T>(encode: fn(&T, &mut Vec<u8>), value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode(value, &mut out);
    out
}

pub(crate) fn records() -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for seed in 0..20 {
        let record = forged::record(seed, Lsn(seed), 12);
        samples.extend([with(encode_header, &record.entry.header), with(encode_record, &record)]);
        samples.push(with(encode_op, &forged::op(seed, &mut 4)));
    }
    samples.extend((0..4).map(|seed| with(encode_marks, &forged::marks(seed))));
    small(samples)
}

/// A log's headers as they may follow each other.
fn history() -> Vec<Header> {
    let plain = command_header(&Bytes::from_static(b"payload"));
    let node = |body| Header { origin: None, ..bare(&plain, body) };
    let session = |body, client| {
        let origin = Some(Origin { client: ClientId(client), request: Request(0) });
        Header { origin, ..bare(&plain, body) }
    };
    let open = || Body::Open(SessionInfo::default());
    let start = || Body::EpochStart(Box::default());
    let missing = EpochStart { missing: vec![ClientId(100)], ..EpochStart::default() };
    vec![
        node(start()),
        session(open(), 100),
        plain.clone(),
        session(open(), 101),
        plain.clone(),
        node(Body::Config(Target::Backup(NodeId(2)))),
        session(Body::Suspend, 101),
        node(Body::Noop),
        session(Body::Resume(2), 101),
        node(Body::EpochStart(Box::new(missing))),
        session(Body::Resume(3), 100),
        plain.clone(),
        session(Body::Close, 101),
        session(Body::Expire, 100),
    ]
}

fn bare(plain: &Header, body: Body) -> Header {
    Header { body, length: 0, digest: Default::default(), ..plain.clone() }
}

pub(crate) fn sessions() -> Vec<Vec<u8>> {
    let history = history();
    let sample = |length: usize| {
        let mut out = Vec::new();
        for header in &history[..length] {
            out.push(0);
            put_part(&mut out, &with(encode_header, header));
        }
        out
    };
    [3, 7, 11, history.len()].map(sample).to_vec()
}

pub(crate) fn kv() -> Vec<Vec<u8>> {
    let mut store = KvStore::new();
    let commands = [
        KvCommand::put("colour", "green"),
        KvCommand::append("list", "one;"),
        KvCommand::compare_and_set("colour", Some("green"), Some("red")),
        KvCommand::compare_and_set("none", None, Some("some")),
        KvCommand::delete("list"),
    ];
    let mut snapshots = Vec::new();
    for (command, lsn) in commands.iter().zip(1..) {
        let payload = command.encode();
        let header = Header { lsn: Lsn(lsn), ..command_header(&payload) };
        store.apply(&[&Entry { header, payload }], &mut Vec::new()).unwrap();
        let mut snapshot = Vec::new();
        store.snapshot(&mut snapshot).unwrap();
        // With its checksum, and without: the target puts one on.
        snapshots.push(snapshot[..snapshot.len() - 4].to_vec());
        snapshots.push(snapshot);
    }
    let item = |key: &'static str| KvItem { key: key.into(), value: "value".into(), version: Lsn(3) };
    let replies = [
        KvReply::Done,
        KvReply::Length(7),
        KvReply::Value(None),
        KvReply::Value(Some(("red".into(), Lsn(3)))),
        KvReply::List { items: vec![item("a"), item("b")], more: true },
        KvReply::Malformed("why".into()),
    ];
    let queries = [KvQuery::get("colour"), KvQuery::list("c").limit(3).after("ca")];
    let encoded = commands.iter().map(KvCommand::encode).chain(replies.iter().map(KvReply::encode));
    let encoded = encoded.chain(queries.iter().map(KvQuery::encode)).map(|bytes| bytes.to_vec());
    snapshots.into_iter().chain(encoded).collect()
}

/// Some entries of a reign, and shares of both kinds over them.
fn entries() -> Vec<Entry> {
    let entry = |n: u8| {
        let payload = Bytes::from(vec![n; 4 + usize::from(n)]);
        let origin = Some(Origin { client: ClientId(100 + u128::from(n)), request: Request(1) });
        Entry { header: Header { lsn: Lsn(u64::from(n)), origin, ..command_header(&payload) }, payload }
    };
    let mut entries: Vec<Entry> = (2..6).map(entry).collect();
    let suspend = Header { lsn: Lsn(6), ..bare(&entries[0].header, Body::Suspend) };
    entries.push(Entry { header: suspend, payload: Bytes::new() });
    entries
}

fn members(entries: &[Entry]) -> Vec<Member> {
    entries.iter().map(|entry| Member { header: entry.header.clone(), segment: 0 }).collect()
}

fn stripe(entries: &[Entry], row: u8) -> Plain {
    let longest = entries.iter().map(|entry| entry.payload.len()).max().unwrap();
    let mut symbol = vec![0; longest];
    let members = members(entries);
    for (entry, at) in entries.iter().zip(0..) {
        field::add_scaled(&mut symbol[..entry.payload.len()], field::cauchy(at, row), &entry.payload);
    }
    Plain::Stripe { row, members, symbol: symbol.into() }
}

fn window(entries: &[Entry], id: u64) -> Plain {
    let symbols: Vec<_> = entries.iter().map(encode_symbol).collect();
    let mut symbol = vec![0; symbols.iter().map(Vec::len).max().unwrap()];
    for (entry, part) in entries.iter().zip(&symbols) {
        field::add_scaled(&mut symbol[..part.len()], field::hash_coefficient(id, entry.header.lsn.0), part);
    }
    Plain::Window { members: entries.iter().map(|entry| entry.header.lsn).collect(), symbol: symbol.into() }
}

pub(crate) fn share_bodies() -> Vec<Vec<u8>> {
    let entries = entries();
    let bodies = (0..3).map(|row| stripe(&entries, row)).chain((1..4).map(|id| window(&entries[..3], id)));
    let bodies = bodies.chain([Plain::Witness { members: members(&entries) }]);
    let bodies: Vec<Vec<u8>> = bodies.map(|body| with(Plain::encode, &body)).collect();
    bodies.into_iter().chain(entries.iter().map(encode_symbol)).collect()
}

pub(crate) fn solving() -> Vec<Vec<u8>> {
    let entries = entries();
    let mut samples = Vec::new();
    for lost in 1..4 {
        let (mut stripes, mut windows) = (Vec::new(), Vec::new());
        for row in 0..lost {
            stripes.push(1 + 4 * row);
            put_part(&mut stripes, &with(Plain::encode, &stripe(&entries, row)));
            let id = u8::from(row == 0) + 4 * row + 1;
            windows.push(id);
            put_part(&mut windows, &with(Plain::encode, &window(&entries, u64::from(id))));
        }
        for (entry, lsn) in entries.iter().zip(2..).skip(usize::from(lost)) {
            stripes.push(4 * lsn);
            put_part(&mut stripes, &entry.payload);
            windows.push(4 * lsn);
            put_part(&mut windows, &encode_symbol(entry));
        }
        samples.extend([stripes, windows]);
    }
    samples
}

/// Scripts, with the damage of some.
pub(crate) fn log() -> Vec<Vec<u8>> {
    let append = |n: u8| vec![n % 4, n, 0];
    let script = |seed: u8| {
        let mut script = Vec::new();
        for n in 0..12 + seed {
            script.extend(append(n.wrapping_mul(seed | 1)));
            if n % 4 == seed % 4 {
                script.push(4);
            }
            if n % 5 == seed % 5 {
                script.extend([6, n, seed]);
            }
        }
        if seed % 3 == 2 {
            script.extend([7, 9, 0]);
            script.extend(append(seed));
        }
        script
    };
    let damages: [&[u8]; 6] = [
        &[],
        &[0, 0x50, 1, 0x40],
        &[8, 0x30, 0, 1, 3, 0x90, 1],
        &[4, 0, 0, 3, 0, 1, 2, 3],
        &[5, 0x60, 0, 40],
        &[6, 0x80, 0, 0, 0, 0x40, 0],
    ];
    let sample = |seed: u8| {
        let mut out = vec![seed * 20, seed * 9, seed];
        put_part(&mut out, &script(seed));
        out.extend_from_slice(damages[usize::from(seed) % damages.len()]);
        out
    };
    (0..12).map(sample).collect()
}

pub(crate) fn cache() -> Vec<Vec<u8>> {
    let damages: [&[u8]; 4] = [&[], &[0, 0x50, 1, 0x40], &[3, 0x90, 1], &[6, 0x80, 0, 0, 0, 0x40, 0]];
    let sample = |seed: u8| {
        let mut out = vec![seed];
        let script: Vec<u8> = (0..14).flat_map(|n: u8| [0, n.wrapping_mul(37) ^ seed, n]).collect();
        put_part(&mut out, &script);
        out.extend_from_slice(damages[usize::from(seed) % damages.len()]);
        out
    };
    (0..8).map(sample).collect()
}

pub(crate) fn files() -> Vec<Vec<u8>> {
    let own = |kind: u8, last: &[u8]| {
        let mut out = vec![kind, 0];
        (0..6).for_each(|n: u8| out.extend([1, n, kind]));
        out.extend_from_slice(last);
        out
    };
    // The end: nothing, a seal, another number, a lie about what was durable, a length that is not there, and a content
    // that has a byte changed where a record says its place.
    let ends: [&[u8]; 6] = [
        &[],
        &[32, 0, 0],
        &[5, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0],
        &[9, 1, 0, 99, 0, 0, 0, 0, 0, 0, 0],
        &[17, 1, 0, 0xff, 0xff, 0xff, 0xff],
        &[2, 1, 0, 11, 0, 3],
    ];
    (0..4).flat_map(|kind| ends.iter().map(move |end| own(kind, end))).collect()
}

/// Histories of a core: what was forged by number.
pub(crate) fn cores() -> Vec<Vec<u8>> {
    let history = |which: u8, seed: u8| {
        let mut out = vec![which];
        for step in 0..30_u8 {
            out.push(0);
            out.extend([step, seed, which, 0]);
        }
        out
    };
    let mut samples: Vec<_> = (0..10).flat_map(|which| [history(which, 1), history(which, 2)]).collect();
    samples.extend(wire_histories());
    samples
}

#[cfg(not(all(feature = "grpc", feature = "seeded-bugs")))]
fn wire_histories() -> Vec<Vec<u8>> {
    Vec::new()
}

#[cfg(all(feature = "grpc", feature = "seeded-bugs"))]
pub(crate) use of_the_wire::*;

#[cfg(all(feature = "grpc", feature = "seeded-bugs"))]
mod of_the_wire {
    use prost::Message;
    use tagalong::log::{ClientId, GapPolicy};
    use tagalong::net::wire as pb;

    use super::super::bodies::forge::Forge;
    use super::super::bodies::node::{COVERED, Node};
    use super::{forged, put_part, small};

    /// Batches of forged messages, up to three in one.
    fn batches<M, W: Message + From<Vec<M>>>(say: fn(&mut Forge) -> M) -> Vec<Vec<u8>> {
        let batch = |seed| {
            let mut forge = forged::forge(seed);
            W::from((0..1 + seed % 3).map(|_| say(&mut forge)).collect::<Vec<M>>()).encode_to_vec()
        };
        small((0..40).map(batch))
    }

    pub(crate) fn client_messages() -> Vec<Vec<u8>> {
        batches::<_, pb::ClientMessages>(Forge::client_says)
    }

    pub(crate) fn node_messages() -> Vec<Vec<u8>> {
        batches::<_, pb::NodeMessages>(Forge::node_says)
    }

    pub(crate) fn backup_messages() -> Vec<Vec<u8>> {
        batches::<_, pb::BackupMessages>(Forge::backup_says)
    }

    pub(crate) fn primary_messages() -> Vec<Vec<u8>> {
        batches::<_, pb::PrimaryMessages>(Forge::primary_says)
    }

    pub(crate) fn admin() -> Vec<Vec<u8>> {
        let mut samples = Vec::new();
        for (mut node, seeds) in [
            (Node::new_primary(COVERED), 0..20),
            (Node::restarted(false, COVERED), 20..40),
            (Node::following(), 40..60),
        ] {
            samples.push(pb::NodeStatus::from(node.status()).encode_to_vec());
            seeds.for_each(|seed| node.attack(seed));
            samples.push(pb::NodeStatus::from(node.status()).encode_to_vec());
        }
        samples.push(pb::ResolveRequest::from(GapPolicy::Skip).encode_to_vec());
        samples.push(pb::ClientRequest::from(ClientId(100)).encode_to_vec());
        samples.push(pb::PromoteRequest { force: true, conclude: 1, soft_us: 5, hard_us: 9 }.encode_to_vec());
        samples
    }

    pub(crate) fn sealed() -> Vec<Vec<u8>> {
        let sample = |n: u8| [&[n, 0, n | 1, n, 0, 0, 0][..], &vec![n; usize::from(n) * 8]].concat();
        (0..6).map(sample).collect()
    }

    /// What clients and peers say, as the wire has it.
    pub(super) fn wire_histories() -> Vec<Vec<u8>> {
        let of = |which: u8| {
            let mut out = vec![which];
            let (say, peers) = match which {
                9 => (node_messages(), node_messages()),
                5 => (client_messages(), primary_messages()),
                _ => (client_messages(), backup_messages()),
            };
            for (said, n) in say
                .iter()
                .zip(peers)
                .flat_map(|(one, other)| [(one.clone(), 0), (other, 1_u8)])
                .zip(0..30_u8)
                .map(|((said, peer), n)| (said, (n % 4) << 2 | peer << 1 | 1))
            {
                if out.len() + said.len() < 3000 {
                    out.push(n);
                    put_part(&mut out, &said);
                }
            }
            out
        };
        (0..10).map(of).collect()
    }
}
