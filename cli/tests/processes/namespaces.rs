//! Faults of a network that no relay of connections can make: packets that get through one way only. The nodes are in
//! network namespaces of this test's own, which takes root and `ip`; elsewhere it is skipped, and says so.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::audit::{audit, numbered};
use crate::client::Client;
use crate::node::{Node, done};

/// Tells the process inside the namespace what to run.
const INSIDE: &str = "TAGALONG_TEST_INSIDE";
/// Addresses of the two ends: of documentation, and in namespaces that nobody else is in.
const EAST: &str = "192.0.2.1";
const WEST: &str = "192.0.2.2";

fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split(' ')).output().is_ok_and(|output| output.status.success())
}

/// Two namespaces with a cable between them, for as long as this lives.
struct Cable {
    east: String,
    west: String,
}

impl Cable {
    fn lay() -> Option<Self> {
        let id = std::process::id();
        let cable = Self { east: format!("tagalong-{id}-east"), west: format!("tagalong-{id}-west") };
        let (east, west) = (&cable.east, &cable.west);
        let laid = ip(&format!("netns add {east}"))
            && ip(&format!("netns add {west}"))
            && ip(&format!("-n {east} link add cable type veth peer name cable netns {west}"))
            && [(east, EAST), (west, WEST)].into_iter().all(|(name, address)| {
                ip(&format!("-n {name} addr add {address}/24 dev cable"))
                    && ip(&format!("-n {name} link set cable up"))
                    && ip(&format!("-n {name} link set lo up"))
            });
        if !laid {
            eprintln!("skipped: no right to make network namespaces, or no `ip`");
        }
        laid.then_some(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in [&self.east, &self.west] {
            ip(&format!("netns del {name}"));
        }
    }
}

/// What a node sends to an address is thrown away, while what comes from there arrives.
struct OneWay(String);

impl OneWay {
    fn cut(namespace: &str, to: &str) -> Self {
        let route = format!("-n {namespace} route {{}} blackhole {to}/32");
        assert!(ip(&route.replace("{}", "add")), "{route}");
        Self(route)
    }

    fn heal(self) {
        assert!(ip(&self.0.replace("{}", "del")), "{}", self.0);
    }
}

/// First the entries do not get there, then their acknowledgements do not get back; writes go on either way, and when
/// both get through again everything becomes stable. In the end the primary dies behind a cut of one direction.
#[test]
fn a_link_that_carries_one_way_only() {
    let Some(cable) = Cable::lay() else { return };
    let inside = Command::new("ip")
        .args(["netns", "exec", &cable.east])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "namespaces::inside", "--nocapture", "--test-threads=1"])
        .env(INSIDE, format!("{} {}", cable.east, cable.west))
        .output()
        .unwrap();
    let said = [inside.stdout, inside.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(inside.status.success() && said[0].contains("1 passed"), "{}\n{}", said[0], said[1]);
}

/// Not a test: the body of the one above, which runs in the primary's namespace.
#[test]
fn inside() {
    let Ok(names) = std::env::var(INSIDE) else { return };
    let (east, west) = names.split_once(' ').unwrap();
    let dir = TempDir::new().unwrap();
    let flags = ["--suspend-after-s", "600"];
    let primary = Node::at(&format!("{EAST}:0"), "east", dir.path(), &flags);
    let follow = [&["--follow", primary.endpoint()], &flags[..]].concat();
    let backup = Node::within(west, &format!("{WEST}:0"), "west", Path::new(dir.path()), &follow);
    backup.wait("to be in sync", |status| status["in_sync"] == true && status["connected"] == true);
    let endpoints = [primary.endpoint().to_owned(), backup.endpoint().to_owned()];
    let endpoints = endpoints.each_ref().map(String::as_str);
    let mut a = Client::start("a", &endpoints, None);
    a.append("list", "a-first;");
    a.flush();
    a.call("load list a.");
    for (namespace, to) in [(east, WEST), (west, EAST)] {
        let stable = primary.status().unwrap()["stable"].as_u64().unwrap();
        let cut = OneWay::cut(namespace, to);
        primary.works(2_000);
        let status = primary.status().unwrap();
        assert!(status["head"].as_u64().unwrap() >= stable + 2_000);
        assert!(status["delta"]["entries"].as_u64().unwrap() > 0, "something is held");
        cut.heal();
        let head = status["head"].as_u64().unwrap();
        primary.wait("to have caught up", |status| status["stable"].as_u64().unwrap() >= head);
    }
    let cut = OneWay::cut(east, WEST);
    primary.works(500);
    let mut primary = primary;
    primary.kill();
    cut.heal();
    done(&["promote", "--force", backup.endpoint()]);
    backup.opens();
    assert_eq!([backup.report("missing"), backup.report("gaps")], ["[]", "[]"]);
    backup.works(200);
    let count = a.halt();
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]) as u64, numbered(&list, "a.")), (count + 1, count));
}
