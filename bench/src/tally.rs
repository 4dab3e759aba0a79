//! The state machine of all services here: it counts what it was given, by client.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use tagalong::log::Entry;
use tagalong::store::StateMachine;

/// Bytes of a command's head: who wrote it, and the how-manieth of theirs it is.
pub(crate) const HEAD: usize = 16;

/// The payload of the `serial`-th write of a client.
pub(crate) fn payload(client: u64, serial: u64, length: usize) -> Bytes {
    let mut bytes = vec![0x5a; length.max(HEAD)];
    bytes[..8].copy_from_slice(&client.to_be_bytes());
    bytes[8..HEAD].copy_from_slice(&serial.to_be_bytes());
    bytes.into()
}

/// Which writes of a client are here: all up to `dense`, and those beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    dense: u64,
    beyond: BTreeSet<u64>,
}

impl Seen {
    fn note(&mut self, serial: u64) {
        if serial != self.dense + 1 {
            self.beyond.extend((serial > self.dense).then_some(serial));
            return;
        }
        self.dense = serial;
        while self.beyond.remove(&(self.dense + 1)) {
            self.dense += 1;
        }
    }

    /// How many of the first `upto` are missing.
    fn missing(&self, upto: u64) -> u64 {
        let beyond = self.beyond.range(..=upto).count() as u64;
        upto.saturating_sub(self.dense).saturating_sub(beyond)
    }
}

/// Counts writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    clients: BTreeMap<u64, Seen>,
}

impl Tally {
    /// Notes one command; what is no command of ours counts for nobody.
    pub(crate) fn note(&mut self, mut command: &[u8]) {
        if let (Ok(client), Ok(serial)) = (command.try_get_u64(), command.try_get_u64()) {
            self.clients.entry(client).or_default().note(serial);
        }
    }

    /// How many of the first `upto` writes of a client are not here.
    pub(crate) fn missing(&self, client: u64, upto: u64) -> u64 {
        self.clients.get(&client).map_or(upto, |seen| seen.missing(upto))
    }
}

impl StateMachine for Tally {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        for command in commands {
            self.note(&command.payload);
            replies.push(Bytes::copy_from_slice(&command.header.lsn.0.to_be_bytes()));
        }
        Ok(())
    }

    /// Client and count in, how many of these are missing out.
    fn query(&mut self, query: &Bytes) -> io::Result<Bytes> {
        let mut query = query.clone();
        let (client, upto) = (query.try_get_u64().unwrap_or(0), query.try_get_u64().unwrap_or(0));
        Ok(Bytes::copy_from_slice(&self.missing(client, upto).to_be_bytes()))
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        for (client, seen) in &self.clients {
            for number in [*client, seen.dense, seen.beyond.len() as u64].into_iter().chain(seen.beyond.iter().copied())
            {
                out.write_all(&number.to_be_bytes())?;
            }
        }
        Ok(())
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let mut bytes = &bytes[..];
        let mut clients = BTreeMap::new();
        let short = |_| io::Error::from(io::ErrorKind::UnexpectedEof);
        while !bytes.is_empty() {
            let client = bytes.try_get_u64().map_err(short)?;
            let dense = bytes.try_get_u64().map_err(short)?;
            let count = bytes.try_get_u64().map_err(short)?;
            let beyond = (0..count).map(|_| bytes.try_get_u64().map_err(short)).collect::<io::Result<_>>()?;
            clients.insert(client, Seen { dense, beyond });
        }
        self.clients = clients;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_counted() {
        let mut tally = Tally::default();
        for serial in [1, 2, 4, 7] {
            tally.note(&payload(3, serial, 100));
        }
        assert_eq!([2, 3, 4, 6, 7].map(|upto| tally.missing(3, upto)), [0, 1, 1, 3, 3]);
        assert_eq!(tally.missing(9, 5), 5);
        tally.note(&payload(3, 3, 0));
        assert_eq!(tally.missing(3, 7), 2);
        let mut bytes = Vec::new();
        tally.snapshot(&mut bytes).expect("written");
        let mut other = Tally::default();
        other.restore(&mut &bytes[..]).expect("read");
        assert_eq!(other, tally);
    }
}
