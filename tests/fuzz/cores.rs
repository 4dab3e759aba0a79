//! A sequence of messages into a core: forged ones from numbers, and whatever an input's parts are on the wire. No panic,
//! and no peer stops a node.

use super::input::Input;
use super::node::{COVERED, Cached, Node, SERVICES, TAGGED};

/// One input is one history; a byte says which core, and then each step is a byte and what belongs to it.
pub(crate) fn cores(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let which = usize::from(input.byte().unwrap_or_default());
    match which % 10 {
        9 => client(input),
        at => {
            let node = match at {
                5 => Node::following(),
                6 => Node::restarted(false, TAGGED),
                7 => Node::restarted(false, COVERED),
                8 => Node::restarted(true, COVERED),
                _ => Node::new_primary(SERVICES[at % SERVICES.len()]),
            };
            attack(node, input);
        }
    }
}

/// Longer histories find nothing that two of these do not, and take their time.
const STEPS_MAX: usize = 150;

fn attack(mut node: Node, mut input: Input<'_>) {
    for _ in 0..STEPS_MAX {
        let Some(op) = input.byte() else { break };
        if op & 1 == 0 {
            node.attack(input.number(4));
        } else {
            wire::node_hears(&mut node, op, input.part());
        }
    }
}

fn client(mut input: Input<'_>) {
    let mut client = Cached::new();
    for _ in 0..STEPS_MAX {
        let Some(op) = input.byte() else { break };
        if op & 1 == 0 {
            client.attack(input.number(4));
        } else {
            wire::client_hears(&mut client, op, input.part());
        }
    }
}

#[cfg(all(feature = "grpc", feature = "seeded-bugs"))]
mod wire {
    use prost::Message;
    use tagalong::client::ClientInput;
    use tagalong::error::Error;
    use tagalong::net::wire as pb;
    use tagalong::node::{Conn, Input};

    use super::super::node::{Cached, Node};

    fn messages<W, M>(bytes: &[u8]) -> Vec<M>
    where
        W: Message + Default,
        Vec<M>: TryFrom<W, Error = Error>,
    {
        W::decode(bytes).ok().and_then(|batch| Vec::try_from(batch).ok()).unwrap_or_default()
    }

    pub(super) fn node_hears(node: &mut Node, op: u8, bytes: &[u8]) {
        let inputs: Vec<Input> = if op & 2 == 0 {
            let conn = Conn(u64::from(op >> 2) % 4);
            let messages = messages::<pb::ClientMessages, _>(bytes).into_iter();
            messages.map(|message| Input::Client(conn, message)).collect()
        } else if node.is_backup() {
            let messages = messages::<pb::PrimaryMessages, _>(bytes).into_iter();
            messages.map(|message| Input::FromPrimary(Conn(10), message)).collect()
        } else {
            let messages = messages::<pb::BackupMessages, _>(bytes).into_iter();
            messages.map(|message| Input::FromBackup(Conn(10), message)).collect()
        };
        inputs.into_iter().for_each(|input| node.give(input));
    }

    pub(super) fn client_hears(client: &mut Cached, op: u8, bytes: &[u8]) {
        let conn = Conn(1 + u64::from(op >> 2) % 2);
        for message in messages::<pb::NodeMessages, _>(bytes) {
            client.give(ClientInput::Message(conn, message));
        }
    }
}

/// Without the wire's types a part says nothing.
#[cfg(not(all(feature = "grpc", feature = "seeded-bugs")))]
mod wire {
    use super::super::node::{Cached, Node};

    pub(super) fn node_hears(_: &mut Node, _: u8, _: &[u8]) {}

    pub(super) fn client_hears(_: &mut Cached, _: u8, _: &[u8]) {}
}
