//! Processes that stand still and go on (SIGSTOP, SIGCONT): for everybody else they are gone, and for themselves no time
//! has passed.

use tempfile::TempDir;

use crate::audit::{audit, numbered};
use crate::client::Client;
use crate::node::{Node, done};
use crate::wait::eventually;

const FLAGS: [&str; 2] = ["--suspend-after-s", "600"];

/// The old primary wakes in the new reign with requests in its buffers, and clients that still are on its streams. It
/// may execute what it likes: nobody is to take it for an answer.
#[test]
fn a_primary_that_slept_through_its_succession_answers_nobody() {
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &FLAGS);
    let backup = Node::backup("west", dir.path(), primary.endpoint(), &FLAGS);
    let endpoints = [primary.endpoint(), backup.endpoint()];
    let mut clients = ["a", "b"].map(|name| Client::start(name, &endpoints, None));
    for (client, name) in clients.iter_mut().zip(["a", "b"]) {
        client.append("list", &format!("{name}-first;"));
        client.call(&format!("load list {name}."));
    }
    primary.works(300);
    primary.signal("STOP");
    // Whatever they issue now is on its way for ever.
    done(&["promote", "--force", backup.endpoint()]);
    let status = backup.opens();
    assert_eq!([backup.report("missing"), backup.report("gaps")], ["[]", "[]"]);
    backup.works(300);
    primary.signal("CONT");
    primary.wait("to know that it is deposed", |status| status["role"] == "deposed");
    backup.works(300);
    let counts = clients.each_mut().map(Client::halt);
    let list = clients[0].get("list");
    let [a, b] = ["a.", "b."].map(|prefix| numbered(&list, prefix));
    assert_eq!([a, b], counts, "everything issued was executed, once and in order");
    assert_eq!(audit(&list, &clients.each_ref()) as u64, a + b + 2);
    let now = backup.status().unwrap();
    assert_eq!(now["epoch"], status["epoch"], "one succession, and no other");
}

/// A backup that sleeps costs room, and nothing else.
#[test]
fn a_backup_that_sleeps_delays_nobody() {
    let dir = TempDir::new().unwrap();
    let primary = Node::start("east", dir.path(), &FLAGS);
    let backup = Node::backup("west", dir.path(), primary.endpoint(), &FLAGS);
    let mut a = Client::start("a", &[primary.endpoint(), backup.endpoint()], None);
    a.append("list", "a-first;");
    a.flush();
    backup.signal("STOP");
    a.call("load list a.");
    primary.works(500);
    let status = primary.wait("to tell of its delta", |status| status["delta"]["entries"].as_u64() >= Some(500));
    assert!(status["stable"].as_u64() < status["head"].as_u64());
    backup.signal("CONT");
    let count = a.halt();
    a.flush();
    primary.wait("to have drained", |status| status["delta"]["entries"] == 0 && status["in_sync"] == true);
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]) as u64, numbered(&list, "a.")), (count + 1, count));
}

/// A client that sleeps while its primary dies is awaited like one that is away, and is as welcome when it wakes.
#[test]
fn a_client_that_sleeps_through_the_disaster_hands_over_when_it_wakes() {
    let dir = TempDir::new().unwrap();
    let mut primary = Node::start("east", dir.path(), &FLAGS);
    let mut backup = Node::backup("west", dir.path(), primary.endpoint(), &FLAGS);
    let endpoints = [primary.endpoint().to_owned(), backup.endpoint().to_owned()];
    let endpoints = endpoints.each_ref().map(String::as_str);
    let (mut a, mut b) = (Client::start("a", &endpoints, None), Client::start("b", &endpoints, None));
    a.append("list", "a-first;");
    a.flush();
    // From here on nothing gets to the backup.
    backup.signal("STOP");
    for n in 0..20 {
        a.append("list", &format!("a{n};"));
        b.append("list", &format!("b{n};"));
    }
    a.signal("STOP");
    primary.kill();
    backup.kill();
    backup.start_again();
    backup.wait("to be a backup again", |status| status["role"] == "backup");
    done(&["promote", backup.endpoint()]);
    backup.wait("to await the sleeper", |status| {
        let awaited = status["recovery"]["awaited"].as_array();
        awaited.is_some_and(|awaited| awaited.len() == 1 && awaited[0] == a.id())
    });
    a.signal("CONT");
    backup.opens();
    assert_eq!([backup.report("missing"), backup.report("gaps")], ["[]", "[]"]);
    a.append("list", "a-after;");
    let list = eventually("both to read alike", || {
        let list = b.get("list");
        (list == a.get("list")).then_some(list)
    });
    assert_eq!(audit(&list, &[&a, &b]), 42);
    assert_eq!((numbered(&list, "a"), numbered(&list, "b")), (20, 20));
}
