//! Peers that lie, on every port, in every method, while a client writes: nobody else is disturbed, no node panics, and none
//! takes more memory than what it was sent is worth.
//!
//! What is sent is the same in every run, but for the node's epoch. It leaves out what an operator or a peer may say and
//! nodes have to believe, as nothing is authenticated: an orderly stop, a promotion, a higher epoch, another backup's name.

use serde_json::Value;
use tagalong::log::Digest;
use tagalong::store::kv::KvCommand;
use tempfile::TempDir;

use crate::audit::{audit, numbered};
use crate::client::Client;
use crate::liar::{Dice, Liar, Proto, claimed, frame, framed};
use crate::node::Node;

const ATTACH: &str = "/tagalong.v1.Session/Attach";
const FOLLOW: &str = "/tagalong.v1.Replication/Follow";
const ADMIN: [&str; 6] = ["Status", "Promote", "Resolve", "Exclude", "EndSession", "Stop"];

/// Streams on which something valid comes first.
const ROUNDS: u64 = 24;
/// Connections that stand at once, on each node.
const CONNECTIONS: usize = 200;
/// By how much a node may grow, in KiB, at its peak: a connection has buffers.
const GROWTH_KIB: u64 = 64 << 10;

/// The most memory the process ever had, in KiB, where the system tells.
fn peak_kib(node: &Node) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The node's epoch, as the wire has it.
fn epoch(node: &Node) -> Proto {
    let status = node.status().unwrap();
    let epoch = &status["epoch"];
    let of_node = u64::from_str_radix(epoch["node"].as_str().unwrap(), 16).unwrap();
    let number = epoch["number"].as_u64().unwrap();
    Proto::default().number(1, epoch["generation"].as_u64().unwrap()).number(2, number).fixed(3, of_node)
}

/// One message of a batch.
fn said(kind: u64, message: &Proto) -> Proto {
    Proto::default().part(1, &Proto::default().part(kind, message))
}

fn hello() -> Proto {
    said(1, &Proto::default().number(1, 1))
}

fn attach(epoch: &Proto, client: u64) -> Proto {
    let id = [&[0xee; 8][..], &client.to_be_bytes()].concat();
    let attach = Proto::default().part(1, epoch).bytes(2, &id).number(3, 1).bytes(4, b"liar").number(5, 1);
    said(2, &attach.number(6, 1).number(7, 1).number(11, 1 << 20))
}

/// A write and a query.
fn work(epoch: &Proto, request: u64) -> Proto {
    let payload = KvCommand::put("lie", format!("{request}")).encode();
    let digest = Proto::default().number(1, 1).fixed(2, Digest::crc32(&payload).value);
    let write = Proto::default().number(1, request).part(5, &digest).bytes(6, &payload);
    let query = Proto::default().number(1, request).bytes(3, b"no query");
    said(3, &Proto::default().part(1, epoch).part(3, &write).part(4, &query))
}

/// What a client has to tell a node that recovers; this one does not.
fn report(epoch: &Proto) -> Proto {
    let digest = Proto::default().number(1, 1).fixed(2, 7);
    let doubt =
        Proto::default().part(2, &Proto::default().number(1, 1).number(2, u64::from(u32::MAX)).part(3, &digest));
    said(4, &Proto::default().part(1, epoch).part(2, &doubt).part(3, epoch).number(4, u64::MAX).number(7, 1))
}

fn backup_says(epoch: &Proto) -> [Proto; 4] {
    let hello = Proto::default().number(1, 1).fixed(5, 0xbad).bytes(6, b"liar").number(8, 7);
    let ack = Proto::default().part(1, epoch).number(2, u64::MAX).number(3, u64::MAX).number(4, 1);
    let promised = Proto::default().part(1, epoch).number(2, u64::MAX);
    let records = Proto::default().part(1, epoch).part(2, &Proto::default().bytes(2, b"no header"));
    [said(1, &hello), said(2, &promised), said(3, &records), said(4, &ack)]
}

/// Valid beginnings, and then what is not quite valid.
fn streams(node: &Node, epoch: &Proto, dice: &mut Dice) -> Vec<Liar> {
    let begin = |round| {
        let mut liar = Liar::begin(node.endpoint());
        let mut body = framed(&hello().0);
        // A session that holds nothing of what it is told, and confirms none of it.
        body.extend(framed(&attach(epoch, round).0));
        body.extend(framed(&work(epoch, 1).0));
        liar.call(ATTACH, &body, false);
        let mut body = framed(&hello().0);
        body.extend(framed(&attach(epoch, 1000 + round).0));
        let message = match round % 4 {
            0 => work(epoch, 2),
            1 => report(epoch),
            2 => attach(epoch, 2000 + round),
            _ => said(9, epoch),
        };
        body.extend(framed(&dice.mutated(&message.0)));
        body.extend(framed(&dice.mutated(&message.0)));
        liar.call(ATTACH, &body, round % 3 == 0);
        let says = backup_says(epoch);
        let mut body = framed(&says[0].0);
        says[1..].iter().for_each(|message| body.extend(framed(&message.0)));
        liar.call(FOLLOW, &body, false);
        let says = &says[1 + dice.below(3)].0;
        liar.call(FOLLOW, &framed(&dice.mutated(says)), round % 2 == 0);
        liar.call(FOLLOW, &framed(&dice.noise(40)), false);
        liar
    };
    (0..ROUNDS).map(begin).collect()
}

/// Every call of an operator, with bytes that are no message, or say nothing that has to be believed.
fn admin(node: &Node, dice: &mut Dice) -> Liar {
    let mut liar = Liar::begin(node.endpoint());
    for method in ADMIN {
        let path = format!("/tagalong.v1.Admin/{method}");
        let trusted = matches!(method, "Stop" | "Promote");
        for round in 0..8 {
            let mut message = match round % 4 {
                0 => dice.noise(30),
                1 => Proto::default().bytes(1, &dice.noise(16)).0,
                2 => Proto::default().bytes(1, &dice.noise(300)).0,
                _ => Proto::default().number(1, u64::MAX).number(2, dice.next()).0,
            };
            if trusted {
                // A field of a type that there is not.
                message.insert(0, 0x0f);
            }
            liar.call(&path, &framed(&message), round % 2 == 0);
        }
        liar.call(&path, &claimed(0, u32::MAX, b"not so long"), true);
        liar.call(&path, &claimed(1, 5, b"zip no"), true);
    }
    liar.call("/tagalong.v1.Admin/Nothing", &framed(&dice.noise(10)), true);
    liar.call("/", &dice.noise(100), true);
    liar
}

/// Many at once, each of which says something and then nothing more.
fn crowd(node: &Node, epoch: &Proto, dice: &mut Dice) -> Vec<Liar> {
    let begin = |n: usize| {
        let endpoint = node.endpoint();
        if n % 8 < 2 {
            // No HTTP/2, or not for long.
            let mut liar = if n.is_multiple_of(8) { Liar::dial(endpoint) } else { Liar::begin(endpoint) };
            liar.send(&dice.noise(2000));
            return liar;
        }
        let mut liar = Liar::begin(endpoint);
        match n % 8 {
            // A length that is never sent, as large as is allowed, and larger.
            2 => liar.call(ATTACH, &claimed(0, 60 << 20, b"the rest follows"), false),
            3 => liar.call(FOLLOW, &claimed(0, u32::MAX, &dice.noise(100)), false),
            // Many in one, and nothing in any of them.
            4 => liar.call(ATTACH, &framed(&[0x0a, 0].repeat(20_000)), false),
            5 => {
                let mut body = framed(&hello().0);
                body.extend(framed(&dice.mutated(&attach(epoch, 3000).0)));
                body.extend(dice.noise(50));
                liar.call(ATTACH, &body, false);
            }
            // Settings, windows and headers that make no sense, and streams that are reset as soon as they begin.
            6 => {
                let kind = u8::try_from(dice.below(10)).unwrap();
                let noise = dice.noise(64);
                liar.send(&frame(kind, dice.noise(1)[0], 1, &noise));
            }
            _ => {
                for stream in (1..40).step_by(2) {
                    liar.call(ATTACH, &framed(&hello().0), false);
                    liar.send(&frame(3, 0, stream, &8_u32.to_be_bytes()));
                }
            }
        }
        liar
    };
    (0..CONNECTIONS).map(begin).collect()
}

#[test]
fn peers_that_lie_disturb_nobody() {
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &[]);
    let backup = Node::backup("west", dir.path(), primary.endpoint(), &[]);
    let mut a = Client::start("a", &[primary.endpoint(), backup.endpoint()], None);
    a.append("list", "a-first;");
    a.call("load list a.");
    let epoch = epoch(&primary);
    let before = [&primary, &backup].map(peak_kib);

    let mut dice = Dice(1);
    let mut liars = Vec::new();
    for node in [&primary, &backup] {
        liars.extend(streams(node, &epoch, &mut dice));
        liars.push(admin(node, &mut dice));
        liars.extend(crowd(node, &epoch, &mut dice));
    }
    liars.iter_mut().for_each(Liar::is_done_with);
    // All of it was heard, as far as it was worth it, and the connections still stand.
    let liars_attached = |status: &Value| {
        let sessions = status["sessions"].as_array().unwrap();
        sessions.iter().filter(|session| session["domain"] == "liar").count() as u64 >= ROUNDS
    };
    primary.wait("to have admitted the liars", liars_attached);
    primary.works(64);
    for node in [&primary, &backup] {
        assert!(node.log().contains("a peer sent what cannot be read"), "nobody was heard");
    }
    for (node, before) in [&primary, &backup].into_iter().zip(before) {
        if let (Some(before), Some(after)) = (before, peak_kib(node)) {
            assert!(after - before < GROWTH_KIB, "it grew from {before} to {after} KiB");
        }
    }
    drop(liars);

    let count = a.halt();
    assert!(count > 64, "the load went on");
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]) as u64, numbered(&list, "a.")), (count + 1, count));
    let attached = a.lines().iter().filter(|line| line.starts_with("event attached")).count();
    assert_eq!(attached, 1, "its stream was never lost");
    a.flush();
    primary.wait("to have its backup", |status| status["connected"] == true && status["role"] == "primary");
    backup.wait("to be the backup", |status| status["in_sync"] == true && status["role"] == "backup");
    for node in [&primary, &backup] {
        let log = node.log();
        assert!(!log.contains("panicked") && !log.contains("stopped"), "{log}");
    }
}
