//! The primary dies and is started again where it was.

use serde_json::Value;
use tempfile::TempDir;

use crate::audit::{audit, numbered};
use crate::client::Client;
use crate::node::{Node, done};

/// Nobody is suspended while a test runs.
const STAY: [&str; 2] = ["--suspend-after-s", "600"];

fn restarts() -> usize {
    std::env::var("TAGALONG_RESTARTS").map_or(5, |count| count.parse().expect("TAGALONG_RESTARTS is a number"))
}

#[test]
fn a_primary_is_killed_again_and_again_under_load() {
    let dir = TempDir::new().unwrap();
    let mut primary = Node::start("east", dir.path(), &STAY);
    let backup = Node::backup("west", dir.path(), primary.endpoint(), &STAY);
    let endpoints = [primary.endpoint().to_owned(), backup.endpoint().to_owned()];
    let endpoints = endpoints.each_ref().map(String::as_str);
    let mut clients = ["a", "b", "c"].map(|name| {
        let cache = (name == "c").then(|| dir.path().join(name));
        Client::start(name, &endpoints, cache.as_deref())
    });
    for (client, name) in clients.iter_mut().zip(["a", "b", "c"]) {
        client.append("list", &format!("{name}-first;"));
        client.call(&format!("load list {name}."));
    }
    let mut epoch = 1;
    for round in 0..restarts() {
        // Enough for every client to be at work again, and not always the same.
        primary.works(300 + 150 * (round as u64 % 4));
        primary.kill();
        primary.start_again();
        let status = primary.opens();
        let number = status["epoch"]["number"].as_u64().unwrap();
        assert!(number > epoch, "round {round}: a restart is a reign of its own");
        epoch = number;
        assert_eq!([primary.report("missing"), primary.report("gaps")], ["[]", "[]"], "round {round}");
    }
    let counts = clients.each_mut().map(Client::halt);
    let list = clients[0].get("list");
    let checked = audit(&list, &clients.each_ref());
    let [a, b, c] = ["a.", "b.", "c."].map(|prefix| numbered(&list, prefix));
    assert_eq!([a, b, c], counts, "everything issued was executed");
    assert_eq!(checked as u64, a + b + c + 3, "and acknowledged");
    println!("{} restarts, {checked} appends", restarts());

    // An orderly stop, and everybody goes away: nobody has to be heard.
    done(&["stop", primary.endpoint()]);
    assert!(primary.exits().success());
    clients.iter_mut().for_each(Client::kill);
    primary.start_again();
    let status = primary.opens();
    assert_eq!(primary.report("missing"), "[]");
    let sessions = status["sessions"].as_array().unwrap();
    assert_eq!(sessions.iter().filter(|session| session["state"] == "on").count(), 3, "they are on the roster");
    assert!(sessions.iter().all(|session| session["connected"] == false), "and away");

    // After a crash everybody has to be.
    primary.kill();
    primary.start_again();
    primary.wait("to call the roll", |status| {
        let awaited = status["recovery"]["awaited"].as_array().map_or(0, Vec::len);
        status["role"] == "recovering" && awaited == 3
    });
}

/// A pair under load, whose backup and then primary were killed; the primary is there again, the backup is not. One of
/// the sessions, `away`, is gone for good.
struct Alone {
    _dir: TempDir,
    primary: Node,
    backup: Node,
    a: Client,
    away: Client,
}

impl Alone {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let flags = [&STAY[..], &["--log-before-send"]].concat();
        let mut primary = Node::start("east", dir.path(), &flags);
        let mut backup = Node::backup("west", dir.path(), primary.endpoint(), &flags);
        let mut a = Client::start("a", &[primary.endpoint(), backup.endpoint()], None);
        let mut away = Client::start("away", &[primary.endpoint(), backup.endpoint()], None);
        away.append("list", "away;");
        a.append("list", "a-first;");
        a.call("load list a.");
        primary.works(100);
        backup.kill();
        primary.works(100);
        let epoch = primary.status().unwrap()["epoch"].clone();
        away.kill();
        primary.kill();
        primary.start_again();
        let status = primary.opens();
        assert_eq!((&status["epoch"], &status["connected"]), (&epoch, &Value::from(false)), "it goes on in its reign");
        Self { _dir: dir, primary, backup, a, away }
    }

    /// The load ends, and everything is there.
    fn audit(&mut self) {
        let count = self.a.halt();
        self.a.append("list", "a-after;");
        let list = self.a.get("list");
        assert_eq!((audit(&list, &[&self.a, &self.away]) as u64, numbered(&list, "a.")), (count + 3, count));
    }
}

#[test]
fn a_primary_that_logs_before_it_sends_restarts_without_its_backup() {
    let mut alone = Alone::new();
    alone.backup.start_again();
    alone.audit();
    alone.a.flush();

    // The same without the setting: its backup has to be asked first.
    alone.backup.kill();
    alone.primary.kill();
    alone.primary.set_flags(&STAY);
    alone.primary.start_again();
    alone.primary.wait("to ask for a promise", |status| status["recovery"]["phase"] == "promising");
}

#[test]
fn a_primary_that_logs_before_it_sends_serves_without_its_backup() {
    let mut alone = Alone::new();
    alone.audit();
    let reports = alone.primary.log().matches("report of the recovery").count();
    assert_eq!(reports, 2, "its handle knows that it is open");
    alone.backup.start_again();
    alone.a.flush();
}

#[test]
fn a_primary_without_a_backup_restarts_with_what_its_clients_hold() {
    let dir = TempDir::new().unwrap();
    let mut primary = Node::start("east", dir.path(), &STAY);
    let mut a = Client::start("a", &[primary.endpoint()], None);
    a.append("list", "a-first;");
    a.call("load list a.");
    primary.works(100);
    primary.kill();
    primary.start_again();
    primary.opens();
    let count = a.halt();
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]) as u64, numbered(&list, "a.")), (count + 1, count));
    // SIGTERM is an orderly stop, too.
    a.flush();
    primary.signal("TERM");
    assert!(primary.exits().success());
    assert!(primary.log().contains("stopped in good order"));
    a.kill();
    primary.start_again();
    primary.opens();
}
