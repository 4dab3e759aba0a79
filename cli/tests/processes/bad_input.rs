//! What goes wrong outside of the protocol: each time a clear error, and nothing that was safe is lost.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::audit::{audit, numbered};
use crate::client::Client;
use crate::node::{Node, done, refused, tagalong};
use crate::wait::eventually;

/// The segments of a node's log, in order.
fn segments(node: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.dir()).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("log-");
    let mut segments: Vec<PathBuf> = entries.filter(named).collect();
    segments.sort();
    segments
}

/// A file with zeros written ahead ends where they begin.
fn written(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

#[test]
fn a_directory_belongs_to_one_process() {
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &[]);
    let path = primary.dir().to_str().unwrap();
    let said = refused(&["serve", "--dir", path, "--domain", "east"]);
    assert!(said.contains("Locked") && said.contains(path), "{said}");
    let cache = dir.path().join("cache");
    let a = Client::start("a", &[primary.endpoint()], Some(&cache));
    let said = refused(&["kv", "get", "key", "--endpoint", primary.endpoint(), "--cache", cache.to_str().unwrap()]);
    assert!(said.contains("Locked"), "{said}");
    drop(a);
    // Neither did any harm.
    done(&["kv", "put", "key", "value", "--endpoint", primary.endpoint()]);
}

#[test]
fn a_torn_tail_is_cut_and_nothing_safe_is_lost() {
    let dir = TempDir::new().unwrap();
    let mut primary = Node::start("east", dir.path(), &[]);
    let backup = Node::backup("west", dir.path(), primary.endpoint(), &[]);
    let mut a = Client::start("a", &[primary.endpoint(), backup.endpoint()], None);
    for n in 0..50 {
        a.append("list", &format!("a{n};"));
    }
    a.flush();
    primary.kill();
    // The last record is torn, and behind it lies what was never a record.
    let segment = segments(&primary).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes.truncate(written(&bytes) - 20);
    bytes.extend((0..1000_u32).map(|n| u8::try_from(n * n % 251).unwrap()));
    fs::write(&segment, bytes).unwrap();
    primary.start_again();
    primary.opens();
    assert!(primary.log().contains("a torn write at the end of the log was cut off"));
    a.append("list", "a50;");
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]), numbered(&list, "a")), (51, 51));
}

#[test]
fn a_flipped_byte_in_a_segment_is_named() {
    let dir = TempDir::new().unwrap();
    let mut primary = Node::start("east", dir.path(), &[]);
    let mut a = Client::start("a", &[primary.endpoint()], None);
    for n in 0..50 {
        a.append("list", &format!("a{n};"));
    }
    a.flush();
    primary.kill();
    let segment = segments(&primary).pop().unwrap();
    let good = fs::read(&segment).unwrap();
    let mut bytes = good.clone();
    let middle = written(&bytes) / 2;
    bytes[middle] ^= 0x10;
    fs::write(&segment, bytes).unwrap();
    let said = primary.fails_to_start();
    assert!(said.contains("Corrupt") && said.contains(segment.to_str().unwrap()), "{said}");
    let offset = said.split("offset ").nth(1).map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap());
    let offset: usize = offset.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no offset: {said}"));
    assert!((middle - 200..=middle).contains(&offset), "{offset} for {middle}: {said}");
    // Nothing was changed by the attempt: with the byte put right, all is well.
    fs::write(&segment, good).unwrap();
    primary.start_again();
    primary.opens();
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]), numbered(&list, "a")), (50, 50));
}

#[test]
fn garbage_on_the_port_disturbs_nobody() {
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &[]);
    let backup = Node::backup("west", dir.path(), primary.endpoint(), &[]);
    let mut a = Client::start("a", &[primary.endpoint(), backup.endpoint()], None);
    a.append("list", "a-first;");
    a.call("load list a.");
    let noise: Vec<u8> = (0..65_536_u32).map(|n| u8::try_from(((n * n) >> 7) % 256).unwrap()).collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let http = b"GET /status HTTP/1.1\r\nHost: tagalong\r\n\r\n";
    // A call of the session service whose message is no message: settings, headers of HPACK, and a wrong length.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let huge = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    let inputs: Vec<Vec<u8>> = vec![
        noise.clone(),
        http.to_vec(),
        [preface, &noise[..]].concat(),
        [&preface[..], &settings, &huge, &noise].concat(),
        Vec::new(),
    ];
    let mut open = Vec::new();
    for node in [&primary, &backup] {
        let address = node.endpoint().strip_prefix("http://").unwrap();
        for input in &inputs {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            // The node may hang up in the middle of it.
            let _ = stream.write_all(input);
            let _ = stream.read(&mut [0; 1024]);
            // Left open: a peer that says nothing more.
            open.push(stream);
        }
    }
    let count = a.halt();
    assert!(count > 16, "the load went on");
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]) as u64, numbered(&list, "a.")), (count + 1, count));
    let attached = a.lines().iter().filter(|line| line.starts_with("event attached")).count();
    assert_eq!(attached, 1, "its stream was never lost");
    assert!(primary.status().unwrap()["connected"] == true, "nor the backup's");
    a.flush();
}

/// A whole session's worth of well-formed gRPC with nonsense in it is for `tests/grpc.rs`; here, a well-formed call of
/// somebody who is at the wrong place.
#[test]
fn a_client_of_another_cluster_is_told_so() {
    let dir = TempDir::new().unwrap();
    let (one, other) = (Node::start("one", dir.path(), &[]), Node::start("other", dir.path(), &[]));
    let cache = dir.path().join("cache");
    let cache = ["--cache", cache.to_str().unwrap()];
    done(&[&["kv", "put", "key", "value", "--endpoint", one.endpoint()], &cache[..]].concat());
    let said = refused(&[&["kv", "get", "key", "--endpoint", other.endpoint()], &cache[..]].concat());
    assert!(said.contains("WrongCluster") && said.contains("check the client's endpoints"), "{said}");
    assert_eq!(done(&[&["kv", "get", "key", "--endpoint", one.endpoint()], &cache[..]].concat()), "value\n");
    assert_eq!(other.status().unwrap()["sessions"].as_array().unwrap().len(), 0);
    // And a backup of another cluster follows nobody.
    let mut backup = Node::backup("west", dir.path(), one.endpoint(), &[]);
    backup.kill();
    backup.set_flags(&["--follow", other.endpoint()]);
    backup.start_again();
    eventually("the refusal", || backup.log().contains("WrongCluster").then_some(()));
    assert_eq!(other.status().unwrap()["connected"], false);
}

#[test]
fn an_oversized_command_is_refused() {
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &["--command-bytes-max", "1000"]);
    let big = "x".repeat(2000);
    let said = refused(&["kv", "put", "key", &big, "--endpoint", primary.endpoint()]);
    assert!(said.contains("TooLarge") && said.contains("1000"), "{said}");
    let mut a = Client::start("a", &[primary.endpoint()], None);
    a.append("list", "a0;");
    assert_eq!(a.ask("bytes 5000", "bytes "), "error TooLarge");
    a.append("list", "a1;");
    assert_eq!(a.get("list"), "a0;a1;", "the session goes on");
}

/// The limit is the service's, and kept by the client, which does not know it before the first contact. What it took then
/// is not refused later: it would be sent again for ever, and nothing behind it would get through.
#[test]
fn an_oversized_command_issued_before_the_first_contact_blocks_nothing() {
    let dir = TempDir::new().unwrap();
    let mut primary = Node::start("east", dir.path(), &["--command-bytes-max", "1000"]);
    primary.kill();
    let mut a = Client::start("a", &[primary.endpoint()], None);
    a.call("append list a0;");
    a.ask("bytes 5000", "issued");
    primary.start_again();
    assert!(a.hears(0, "append a0; ").starts_with("acked"));
    assert_eq!(a.hears(0, "bytes "), "acked Done");
    a.append("list", "a1;");
    assert_eq!(a.get("list"), "a0;a1;", "the session goes on");
    assert_eq!(a.ask("bytes 5000", "bytes "), "error TooLarge");
}

#[test]
fn a_backup_that_diverges_stops_and_nobody_else_notices() {
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &[]);
    let backup = Client::diverging_backup(primary.endpoint());
    backup.hears(0, "in-sync");
    let mut a = Client::start("a", &[primary.endpoint()], None);
    a.append("list", "a0;");
    a.flush();
    a.append("list", "poison;");
    let failed = backup.hears(0, "failed ");
    assert!(failed.starts_with("Diverged"), "{failed}");
    primary.wait("to hear of it", |status| status["failure"]["code"] == "Diverged" && status["connected"] == false);
    for n in 1..20 {
        a.append("list", &format!("a{n};"));
    }
    let list = a.get("list");
    assert_eq!(audit(&list, &[&a]), 21);
    let lines = a.lines();
    let attached = lines.iter().filter(|line| line.starts_with("event attached")).count();
    assert_eq!(attached, 1, "its session never broke: {lines:?}");
    let output = tagalong(&["status", "--json", backup.id()]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&status["role"], &status["failure"]["code"]), (&"stopped".into(), &"Diverged".into()));
    // Whoever would promote it all the same is told.
    let said = refused(&["promote", "--force", backup.id()]);
    assert!(said.contains("Diverged"), "{said}");
}

#[test]
fn a_full_store_stops_the_node_and_costs_nothing() {
    let dir = TempDir::new().unwrap();
    let mut primary = Node::start("east", dir.path(), &["--log-bytes-max", "60000"]);
    let backup = Node::backup("west", dir.path(), primary.endpoint(), &[]);
    let mut a = Client::start("a", &[primary.endpoint(), backup.endpoint()], None);
    a.append("list", "a-first;");
    a.call("load list a.");
    assert_eq!(primary.exits().code(), Some(1));
    let log = primary.log();
    assert!(log.contains("error: Storage") && log.contains("is full at its limit of 60000 bytes"), "{log}");
    // With no more room it says the same again, rather than serve.
    primary.set_flags(&[]);
    primary.start_again();
    primary.opens();
    let count = a.halt();
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]) as u64, numbered(&list, "a.")), (count + 1, count));
    a.flush();
}

#[test]
fn a_full_backup_leaves_the_primary_to_its_clients() {
    let dir = TempDir::new().unwrap();
    let mut primary = Node::start("east", dir.path(), &[]);
    let mut backup = Node::backup("west", dir.path(), primary.endpoint(), &["--log-bytes-max", "60000"]);
    let mut a = Client::start("a", &[primary.endpoint(), backup.endpoint()], None);
    a.append("list", "a-first;");
    a.call("load list a.");
    assert_eq!(backup.exits().code(), Some(1));
    assert!(backup.log().contains("is full at its limit of 60000 bytes"), "{}", backup.log());
    primary.works(100);
    backup.set_flags(&["--follow", primary.endpoint()]);
    backup.start_again();
    let count = a.halt();
    a.flush();
    primary.kill();
    done(&["promote", "--wait", backup.endpoint()]);
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]) as u64, numbered(&list, "a.")), (count + 1, count));
}

/// One client alone is covered by nobody. It is served all the same, and told how.
#[test]
fn a_lonely_covered_write_waits_until_it_is_stable() {
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &["--f", "1", "--share-open", "--level", "covered"]);
    eventually("the warning", || primary.log().contains("in the clear").then_some(()));
    let cache = dir.path().join("cache");
    let session = ["--endpoint", primary.endpoint(), "--cache", cache.to_str().unwrap()];
    let told = done(&[&["kv", "put", "key", "value", "--level", "covered"], &session[..]].concat());
    assert!(told.starts_with("done, entry ") && told.ends_with(", stable\n"), "{told}");
    assert_eq!(primary.status().unwrap()["sessions"][0]["role"], "writer");
}

#[test]
fn calls_that_make_no_sense_are_refused_with_status_2() {
    for args in [
        &["serve", "--domain", "east"][..],
        &["status"],
        &["status", "https://localhost:1"],
        &["kv", "get", "key"],
        &["promote", "127.0.0.1:1", "--conclude", "stop"],
        &["exclude", "127.0.0.1:1", "rack-1"],
        &["resolve", "127.0.0.1:1", "wait"],
    ] {
        let output = tagalong(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
    // What is given to other clients is said in so many words, or nothing is.
    let elsewhere = TempDir::new().unwrap();
    let serve = ["serve", "--domain", "east", "--dir", elsewhere.path().to_str().unwrap()];
    for (flags, why) in [
        (&["--f", "1"][..], "all clients may see everything"),
        (&["--level", "covered"], "at least one client"),
        (&["--share-open", "--f", "17"], "at most 16"),
    ] {
        let output = tagalong(&[&serve[..], flags].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(why), "{flags:?}: {said}");
    }
    let said = refused(&["promote", "127.0.0.1:1"]);
    assert!(said.contains("Unavailable") && said.contains("ask the other nodes"), "{said}");
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &[]);
    let backup = Node::backup("west", dir.path(), primary.endpoint(), &[]);
    let output = tagalong(&["serve", "--domain", "west", "--dir", backup.dir().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "its process has it");
    let path = backup.dir().to_owned();
    drop(backup);
    let output = tagalong(&["serve", "--domain", "west", "--dir", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("is a backup's: give --follow"), "{said}");
}
