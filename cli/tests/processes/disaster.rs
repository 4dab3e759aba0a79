//! The primary is lost for good; clients die before, in the middle of, and after that.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::audit::{audit, numbered};
use crate::client::Client;
use crate::node::{Node, TAGALONG, done, refused};
use crate::relay::Relay;
use crate::wait::eventually;

/// Far beyond the end of any test.
const NEVER: &str = "600";

/// A primary and a backup in sync, with a link between them that can be cut.
struct Pair {
    dir: TempDir,
    primary: Node,
    relay: Relay,
    backup: Node,
}

impl Pair {
    /// Sessions of clients that are away are suspended after so many seconds.
    fn new(suspend_after_s: &str) -> Self {
        let flags = ["--suspend-after-s", suspend_after_s];
        let dir = TempDir::new().unwrap();
        let primary = Node::start("east", dir.path(), &flags);
        let relay = Relay::to(primary.endpoint());
        let backup = Node::backup("west", dir.path(), &relay.endpoint(), &flags);
        Self { dir, primary, relay, backup }
    }

    fn endpoints(&self) -> [&str; 2] {
        [self.primary.endpoint(), self.backup.endpoint()]
    }

    fn client(&self, name: &str) -> Client {
        Client::start(name, &self.endpoints(), None)
    }

    /// A client with its cache in a directory of its name.
    fn cached(&self, name: &str) -> Client {
        Client::start(name, &self.endpoints(), Some(&self.dir.path().join(name)))
    }

    /// From now on what is written is with the primary and the clients alone.
    fn cut(&self) {
        self.relay.cut();
        self.primary.wait("to see the backup gone", |status| status["connected"] == false);
    }
}

fn awaited(status: &Value) -> Vec<&str> {
    let awaited = status["recovery"]["awaited"].as_array().into_iter().flatten();
    awaited.filter_map(Value::as_str).collect()
}

#[test]
fn a_client_restarted_on_its_cache_during_the_disaster_loses_nothing() {
    let mut pair = Pair::new(NEVER);
    let (mut a, mut b) = (pair.cached("a"), pair.client("b"));
    a.append("list", "a-safe;");
    b.append("list", "b-safe;");
    a.flush();
    b.flush();
    pair.cut();
    for n in 0..20 {
        a.append("list", &format!("a{n};"));
        b.append("list", &format!("b{n};"));
    }
    b.get("list");
    // The primary takes nothing any more: five commands are on their way for ever, and in the cache.
    pair.primary.signal("STOP");
    for n in 0..5 {
        a.call(&format!("append list doubt{n};"));
    }
    eventually("the commands to be sent", || (a.ask("unsent", "unsent ") == "0").then_some(()));
    pair.primary.kill();
    a.kill();

    done(&["promote", pair.backup.endpoint()]);
    let status = pair.backup.wait("to have heard b", |status| status["recovery"]["reported"] == 1);
    assert_eq!((awaited(&status), status["role"].as_str()), (vec![a.id()], Some("recovering")));

    let mut again = pair.cached("a");
    assert_eq!(again.id(), a.id(), "the cache is the session");
    pair.backup.opens();
    assert_eq!([pair.backup.report("missing"), pair.backup.report("gaps")], ["[]", "[]"]);
    let unanswered: Vec<String> =
        again.lines().iter().filter_map(|line| line.strip_prefix("unanswered ")).map(str::to_owned).collect();
    assert_eq!(unanswered.len(), 5);
    for request in unanswered {
        let outcome = again.hears(0, &format!("outcome {request} "));
        assert!(outcome.starts_with("acked "), "{request}: {outcome}");
    }
    again.append("list", "a-after;");
    b.append("list", "b-after;");
    let list = b.get("list");
    assert_eq!(list, again.get("list"));
    assert_eq!(audit(&list, &[&a, &b, &again]), 21 + 21 + 2);
    assert_eq!((numbered(&list, "a"), numbered(&list, "b"), numbered(&list, "doubt")), (20, 20, 5));
}

#[test]
fn a_client_that_never_comes_back_is_named_and_awaited() {
    let mut pair = Pair::new(NEVER);
    let (mut a, mut b) = (pair.cached("a"), pair.client("b"));
    a.append("list", "safe;");
    a.flush();
    b.flush();
    pair.cut();
    for n in 0..3 {
        a.append("list", &format!("a{n};"));
    }
    assert_eq!(b.get("list"), "safe;a0;a1;a2;");
    b.append("list", "b0;");
    pair.primary.kill();
    a.kill();

    let mut promoting = Command::new(TAGALONG)
        .args(["promote", "--wait", pair.backup.endpoint()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    pair.backup.wait("to have heard b", |status| status["recovery"]["reported"] == 1);
    // `Wait` waits: nothing moves, however long one looks.
    std::thread::sleep(Duration::from_secs(2));
    let status = pair.backup.status().unwrap();
    let recovery = &status["recovery"];
    assert_eq!((status["role"].as_str(), recovery["phase"].as_str()), (Some("recovering"), Some("roll-call")));
    assert_eq!((awaited(&status), &recovery["roster"]), (vec![a.id()], &Value::from(2)));
    let (base, observed) = (recovery["base"].as_u64().unwrap(), recovery["observed"].as_u64().unwrap());
    assert_eq!(observed, base + 4, "b saw all four entries");
    assert_eq!(recovery["missing"], serde_json::json!([{"first": base + 1, "last": base + 3}]));
    assert_eq!(recovery["lost_by_stop"], 4);
    assert!(promoting.try_wait().unwrap().is_none(), "promote --wait waits as long");
    let shown = done(&["status", pair.backup.endpoint()]);
    assert!(shown.contains(&format!("awaited  {} in a", a.id())) && shown.contains("4 known or observed"), "{shown}");

    done(&["resolve", pair.backup.endpoint(), "stop"]);
    pair.backup.opens();
    let report = ["missing", "policy"].map(|field| pair.backup.report(field));
    assert_eq!(report, [format!("[{}]", a.id()), "Stop".to_owned()]);
    assert!(eventually("promote --wait to end", || promoting.try_wait().unwrap()).success());
    let said = refused_or_usage(&["resolve", pair.backup.endpoint(), "stop"]);
    assert!(said.contains("no recovery is running"), "{said}");

    // Who is there is told what it lost, of its own and of what it saw.
    assert_eq!(b.hears(0, "event superseded "), "b0;");
    b.hears(0, "event rolled-back ");
    b.append("list", "after;");
    assert_eq!(b.get("list"), "safe;after;");
    // And so is who comes later.
    let mut late = pair.cached("a");
    let lost = |line: &String| line.starts_with("event superseded ");
    eventually("the late client to hear of its three", || {
        (late.lines().into_iter().filter(lost).count() == 3).then_some(())
    });
    late.append("list", "late;");
    assert_eq!(b.get("list"), "safe;after;late;");
}

/// What the command said when it would not, whatever its status.
fn refused_or_usage(args: &[&str]) -> String {
    let output = crate::node::tagalong(args);
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_client_that_died_well_before_is_neither_awaited_nor_missed() {
    let mut pair = Pair::new("0.5");
    let (mut a, mut b) = (pair.cached("a"), pair.client("b"));
    for n in 0..5 {
        a.append("list", &format!("a{n};"));
    }
    a.kill();
    let suspended = |status: &Value| {
        let mut sessions = status["sessions"].as_array().unwrap().iter();
        sessions.any(|session| session["client"] == a.id() && session["state"] == "suspended")
    };
    pair.backup.wait("to have the suspension", suspended);
    b.flush();
    pair.cut();
    b.append("list", "b0;");
    pair.primary.kill();
    let opened = done(&["promote", "--wait", pair.backup.endpoint()]);
    assert!(opened.contains("is primary in epoch"), "{opened}");
    assert_eq!([pair.backup.report("missing"), pair.backup.report("policy")], ["[]", "none"]);

    let mut again = pair.cached("a");
    again.append("list", "a-after;");
    let list = b.get("list");
    assert_eq!(list, "a0;a1;a2;a3;a4;b0;a-after;");
    assert_eq!(audit(&list, &[&a, &b, &again]), 7);
    let events = again.lines();
    assert!(!events.iter().any(|line| line.contains("superseded") || line.contains("rolled-back")), "{events:?}");
}

#[test]
fn a_promotion_survives_the_death_of_the_new_primary_twice() {
    let mut pair = Pair::new(NEVER);
    let (mut a, mut b) = (pair.cached("a"), pair.client("b"));
    a.append("list", "safe;");
    a.flush();
    b.flush();
    pair.cut();
    for n in 0..10 {
        a.append("list", &format!("a{n};"));
        b.append("list", &format!("b{n};"));
    }
    pair.primary.kill();
    a.kill();
    done(&["promote", pair.backup.endpoint()]);
    let mut epoch = 0;
    for _ in 0..2 {
        let status = pair.backup.wait("to have heard b", |status| status["recovery"]["reported"] == 1);
        assert_eq!(awaited(&status), [a.id()]);
        let number = status["epoch"]["number"].as_u64().unwrap();
        assert!(number > epoch, "every start of it is a reign of its own");
        epoch = number;
        pair.backup.kill();
        // With the flags of a backup: it knows that it is none any more.
        pair.backup.start_again();
    }
    assert!(pair.backup.log().contains("--follow is not used"));
    let mut again = pair.cached("a");
    pair.backup.opens();
    assert_eq!([pair.backup.report("missing"), pair.backup.report("gaps")], ["[]", "[]"]);
    again.append("list", "a-after;");
    let list = b.get("list");
    assert_eq!(audit(&list, &[&a, &b, &again]), 22);
    assert_eq!((numbered(&list, "a"), numbered(&list, "b")), (10, 10));

    // And once more when all is well: what is open now has to be there again.
    pair.backup.kill();
    pair.backup.start_again();
    pair.backup.opens();
    assert_eq!(b.get("list"), list);
}

/// No disaster: the link is cut, and comes back.
#[test]
fn a_cut_link_costs_nothing_but_room_at_the_clients() {
    let pair = Pair::new(NEVER);
    let mut a = pair.client("a");
    a.append("list", "safe;");
    a.flush();
    pair.cut();
    for n in 0..20 {
        a.append("list", &format!("a{n};"));
    }
    let status = pair.primary.status().unwrap();
    assert_eq!((&status["delta"]["entries"], &status["waiting_writes"]), (&Value::from(20), &Value::from(0)));
    assert_eq!(status["sessions"][0]["held_entries"], 20);
    assert!(status["delta"]["age_us"].as_u64().unwrap() > 0 && status["stable"].as_u64() < status["head"].as_u64());
    // Who is not there yet has to wait, and hears why.
    let endpoint = pair.primary.endpoint();
    let said = refused(&["kv", "put", "key", "value", "--deadline", "1", "--endpoint", endpoint]);
    assert!(said.contains("BackupUnavailable") && said.contains("try again later"), "{said}");
    pair.relay.heal();
    a.flush();
    let status = pair.primary.status().unwrap();
    assert_eq!((&status["sessions"][0]["held_entries"], &status["in_sync"]), (&Value::from(0), &Value::from(true)));
    assert_eq!(audit(&a.get("list"), &[&a]), 21);
}

#[test]
fn a_backup_is_promoted_only_in_sync_or_by_force() {
    let dir = TempDir::new().unwrap();
    let nobody = Relay::to("http://127.0.0.1:1");
    let new = Node::start("west", dir.path(), &["--follow", &nobody.endpoint()]);
    for force in [&[][..], &["--force"]] {
        let said = refused(&[&["promote", new.endpoint()], force].concat());
        assert!(said.contains("NotInSync: this backup never followed anybody"), "{said}");
    }
    let mut pair = Pair::new(NEVER);
    let said = refused_or_usage(&["promote", pair.primary.endpoint()]);
    assert!(said.contains("is the primary already"), "{said}");
    // A primary that finds itself replaced acknowledges nothing, says so, and stays to say so.
    let mut b = pair.client("b");
    b.append("list", "b0;");
    done(&["promote", "--wait", pair.backup.endpoint()]);
    b.append("list", "b1;");
    pair.primary.wait("to be deposed", |status| status["role"] == "deposed");
    assert_eq!(b.get("list"), "b0;b1;");
    done(&["stop", pair.primary.endpoint()]);
    assert!(pair.primary.exits().success());
}
