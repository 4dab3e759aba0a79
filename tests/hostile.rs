//! No peer can make a node panic, or stop it: every core is fed well-typed nonsense, with numbers at their extremes.
//!
//! Each message is made from one number, so that what is left after shrinking is the few messages that matter. The forge
//! and the cores under attack are those of `tests/fuzz`, too.

#![allow(clippy::unwrap_used)]

#[path = "hostile/forge.rs"]
mod forge;
#[path = "hostile/node.rs"]
mod node;

use node::{COVERED, Cached, Node, SERVICES, TAGGED};
use proptest::prelude::*;
use proptest::sample::select;
use tagalong::log::Epoch;
use tagalong::message::{ClientMessage, Hello, VERSION};
use tagalong::node::{Conn, Input};

/// The node would not know any more whose the stream was, and take the session for connected for ever.
#[test]
fn a_second_hello_ends_the_stream() {
    let mut node = Node::new_primary(TAGGED);
    let hello = Hello { version: VERSION, features: 0, cluster: None, group: None, epoch: Epoch::ZERO };
    node.give(Input::Client(Conn(0), ClientMessage::Hello(hello)));
    node.give(Input::Gone(Conn(0)));
    let status = node.status();
    let connected = status.sessions.iter().map(|session| session.connected);
    assert_eq!(connected.collect::<Vec<_>>(), [false, true]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_open_primary_stands(seeds in prop::collection::vec(any::<u64>(), 1..80), service in select(SERVICES)) {
        let mut node = Node::new_primary(service);
        seeds.iter().for_each(|seed| node.attack(*seed));
    }

    #[test]
    fn a_recovering_primary_stands(seeds in prop::collection::vec(any::<u64>(), 1..80), covered in any::<bool>()) {
        let mut node = Node::restarted(false, if covered { COVERED } else { TAGGED });
        seeds.iter().for_each(|seed| node.attack(*seed));
    }

    #[test]
    fn a_primary_that_asks_its_backup_stands(
        seeds in prop::collection::vec(any::<u64>(), 1..80),
        covered in any::<bool>(),
    ) {
        let mut node = Node::restarted(true, if covered { COVERED } else { TAGGED });
        seeds.iter().for_each(|seed| node.attack(*seed));
    }

    #[test]
    fn a_backup_stands(seeds in prop::collection::vec(any::<u64>(), 1..80)) {
        let mut node = Node::following();
        seeds.iter().for_each(|seed| node.attack(*seed));
    }

    #[test]
    fn a_client_stands(seeds in prop::collection::vec(any::<u64>(), 1..80)) {
        let mut client = Cached::new();
        seeds.iter().for_each(|seed| client.attack(*seed));
    }
}
