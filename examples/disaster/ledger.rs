//! The application of the drill: a keyed store that remembers its own history, so that it can be audited exactly.
//!
//! Every command carries a [`Stamp`] (who, and the how-manieth of theirs). The state has the stamps in the order in
//! which they were applied, and a running digest over them: the *chain*. A reply or a reading carries the length of
//! the history and the chain at that moment, so whoever saw one can be checked against the history that survived, to
//! the last position. Beside that there is an ordinary store:
//!
//! | command | effect | reply |
//! | --- | --- | --- |
//! | append | adds its stamp, 16 bytes, to the key's value | the key's version |
//! | compare-and-set | if the key has the version expected, its value becomes the stamp | whether, and the version |
//! | put | the key's value becomes these bytes | the key's version |
//!
//! The checker (`checker.rs`) has its own idea of what these do, and shares only the encoding with this file.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tagalong::log::Entry;
use tagalong::store::StateMachine;

/// A reading of a value up to this long has the value itself with it.
const READING_BYTES_MAX: usize = 8 << 10;

/// Who issued a command, and the how-manieth of theirs it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Stamp {
    pub(crate) client: u64,
    pub(crate) serial: u64,
}

impl Stamp {
    /// As it stands in values and histories.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.client.to_be_bytes());
        bytes[8..].copy_from_slice(&self.serial.to_be_bytes());
        bytes
    }

    fn take(from: &mut Bytes) -> Option<Stamp> {
        Some(Stamp { client: from.try_get_u64().ok()?, serial: from.try_get_u64().ok()? })
    }
}

/// What a command does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Append,
    CompareAndSet { expected: u64 },
    Put { value: Bytes },
}

/// A command of the drill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) stamp: Stamp,
    pub(crate) key: String,
    pub(crate) act: Act,
}

/// What the store answers to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The length of the history, this command included.
    pub(crate) index: u64,
    /// The chain there.
    pub(crate) chain: u64,
    /// The key's version afterwards.
    pub(crate) version: u64,
    /// Whether the command took effect (a compare-and-set may not).
    pub(crate) done: bool,
}

/// What somebody asks the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// The value of a key.
    Get(String),
    /// Part of the history, from this index on.
    History { from: u64, max: u32 },
    /// Keys after this one.
    Keys { after: String, max: u32 },
    /// Part of a value.
    Part { key: String, offset: u64, max: u32 },
}

/// The answer to [`Question::Get`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The length of the history at that moment.
    pub(crate) index: u64,
    /// The chain there.
    pub(crate) chain: u64,
    /// The key's version; 0 if it does not exist.
    pub(crate) version: u64,
    /// Length of the value.
    pub(crate) length: u64,
    /// CRC-32 of the value.
    pub(crate) crc: u32,
    /// The value, unless it is long.
    pub(crate) value: Option<Bytes>,
}

/// The chain after `stamp` was added to a history that had `chain`.
pub(crate) fn link(chain: u64, stamp: Stamp) -> u64 {
    // The finalizer of splitmix64, over both numbers in turn: order matters, and every bit reaches every other.
    let mix = |word: u64| {
        let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let first = mix(chain.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ stamp.client);
    mix(first.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ stamp.serial)
}

fn put_text(out: &mut BytesMut, text: &str) {
    // Keys of the drill are short; a longer one would be cut, and then not be found again.
    let length = text.len().min(usize::from(u16::MAX));
    out.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
    out.put_slice(&text.as_bytes()[..length]);
}

fn take_text(from: &mut Bytes) -> Option<String> {
    let length = usize::from(from.try_get_u16().ok()?);
    if from.remaining() < length {
        return None;
    }
    String::from_utf8(from.split_to(length).to_vec()).ok()
}

impl Command {
    pub(crate) fn encode(&self) -> Bytes {
        let value = if let Act::Put { value } = &self.act { &value[..] } else { &[] };
        let mut out = BytesMut::with_capacity(32 + self.key.len() + value.len());
        out.put_u64(self.stamp.client);
        out.put_u64(self.stamp.serial);
        put_text(&mut out, &self.key);
        match &self.act {
            Act::Append => out.put_u8(1),
            Act::CompareAndSet { expected } => {
                out.put_u8(2);
                out.put_u64(*expected);
            }
            Act::Put { value } => {
                out.put_u8(3);
                out.put_slice(value);
            }
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Option<Command> {
        let mut from = bytes.clone();
        let stamp = Stamp::take(&mut from)?;
        let key = take_text(&mut from)?;
        let act = match from.try_get_u8().ok()? {
            1 => Act::Append,
            2 => Act::CompareAndSet { expected: from.try_get_u64().ok()? },
            3 => Act::Put { value: from.split_to(from.len()) },
            _ => return None,
        };
        from.is_empty().then_some(Command { stamp, key, act })
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(25);
        out.put_u64(self.index);
        out.put_u64(self.chain);
        out.put_u64(self.version);
        out.put_u8(u8::from(self.done));
        out.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Option<Reply> {
        let mut from = bytes.clone();
        let (index, chain) = (from.try_get_u64().ok()?, from.try_get_u64().ok()?);
        let (version, done) = (from.try_get_u64().ok()?, from.try_get_u8().ok()? == 1);
        from.is_empty().then_some(Reply { index, chain, version, done })
    }
}

impl Question {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Question::Get(key) => {
                out.put_u8(1);
                put_text(&mut out, key);
            }
            Question::History { from, max } => {
                out.put_u8(2);
                out.put_u64(*from);
                out.put_u32(*max);
            }
            Question::Keys { after, max } => {
                out.put_u8(3);
                put_text(&mut out, after);
                out.put_u32(*max);
            }
            Question::Part { key, offset, max } => {
                out.put_u8(4);
                put_text(&mut out, key);
                out.put_u64(*offset);
                out.put_u32(*max);
            }
        }
        out.freeze()
    }

    fn decode(bytes: &Bytes) -> Option<Question> {
        let mut from = bytes.clone();
        Some(match from.try_get_u8().ok()? {
            1 => Question::Get(take_text(&mut from)?),
            2 => Question::History { from: from.try_get_u64().ok()?, max: from.try_get_u32().ok()? },
            3 => Question::Keys { after: take_text(&mut from)?, max: from.try_get_u32().ok()? },
            4 => {
                let key = take_text(&mut from)?;
                Question::Part { key, offset: from.try_get_u64().ok()?, max: from.try_get_u32().ok()? }
            }
            _ => return None,
        })
    }
}

impl Reading {
    fn encode(&self) -> Bytes {
        let value = self.value.as_deref().unwrap_or_default();
        let mut out = BytesMut::with_capacity(37 + value.len());
        out.put_u64(self.index);
        out.put_u64(self.chain);
        out.put_u64(self.version);
        out.put_u64(self.length);
        out.put_u32(self.crc);
        out.put_u8(u8::from(self.value.is_some()));
        out.put_slice(value);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Option<Reading> {
        let mut from = bytes.clone();
        let (index, chain) = (from.try_get_u64().ok()?, from.try_get_u64().ok()?);
        let (version, length) = (from.try_get_u64().ok()?, from.try_get_u64().ok()?);
        let crc = from.try_get_u32().ok()?;
        let value = (from.try_get_u8().ok()? == 1).then_some(from);
        Some(Reading { index, chain, version, length, crc, value })
    }
}

/// The stamps in an answer to [`Question::History`].
pub(crate) fn decode_history(bytes: &Bytes) -> Option<Vec<Stamp>> {
    let mut from = bytes.clone();
    let mut stamps = Vec::with_capacity(from.len() / 16);
    while !from.is_empty() {
        stamps.push(Stamp::take(&mut from)?);
    }
    Some(stamps)
}

/// Keys, versions and lengths in an answer to [`Question::Keys`].
pub(crate) fn decode_keys(bytes: &Bytes) -> Option<Vec<(String, u64, u64)>> {
    let mut from = bytes.clone();
    let mut keys = Vec::new();
    while !from.is_empty() {
        let key = take_text(&mut from)?;
        keys.push((key, from.try_get_u64().ok()?, from.try_get_u64().ok()?));
    }
    Some(keys)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cell {
    version: u64,
    value: Vec<u8>,
    /// Of the value, carried along: a list is appended to, not summed up anew.
    crc: u32,
}

/// The store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    history: Vec<Stamp>,
    chain: u64,
    cells: BTreeMap<String, Cell>,
}

impl Ledger {
    fn execute(&mut self, command: Command) -> Reply {
        let stamp = command.stamp;
        self.chain = link(self.chain, stamp);
        self.history.push(stamp);
        let cell = self.cells.entry(command.key).or_default();
        let mut done = true;
        match command.act {
            Act::Append => {
                let record = stamp.to_bytes();
                let mut hasher = crc32fast::Hasher::new_with_initial(cell.crc);
                hasher.update(&record);
                cell.crc = hasher.finalize();
                cell.value.extend_from_slice(&record);
            }
            Act::CompareAndSet { expected } if expected == cell.version => cell.set(&stamp.to_bytes()),
            Act::CompareAndSet { .. } => done = false,
            Act::Put { value } => cell.set(&value),
        }
        cell.version += u64::from(done);
        Reply { index: self.history.len() as u64, chain: self.chain, version: cell.version, done }
    }

    fn answer(&self, question: Question) -> Bytes {
        match question {
            Question::Get(key) => {
                let cell = self.cells.get(&key);
                let value = cell.map(|cell| &cell.value[..]).unwrap_or_default();
                let reading = Reading {
                    index: self.history.len() as u64,
                    chain: self.chain,
                    version: cell.map_or(0, |cell| cell.version),
                    length: value.len() as u64,
                    crc: cell.map_or(0, |cell| cell.crc),
                    value: (value.len() <= READING_BYTES_MAX).then(|| Bytes::copy_from_slice(value)),
                };
                reading.encode()
            }
            Question::History { from, max } => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let stamps = self.history.iter().skip(from).take(max as usize);
                stamps.flat_map(|stamp| stamp.to_bytes()).collect::<Vec<u8>>().into()
            }
            Question::Keys { after, max } => {
                let mut out = BytesMut::new();
                let after = (Bound::Excluded(after), Bound::Unbounded);
                for (key, cell) in self.cells.range::<String, _>(after).take(max as usize) {
                    put_text(&mut out, key);
                    out.put_u64(cell.version);
                    out.put_u64(cell.value.len() as u64);
                }
                out.freeze()
            }
            Question::Part { key, offset, max } => {
                let value = self.cells.get(&key).map(|cell| &cell.value[..]).unwrap_or_default();
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(value.len());
                let end = start.saturating_add(max as usize).min(value.len());
                Bytes::copy_from_slice(&value[start..end])
            }
        }
    }
}

impl Cell {
    fn set(&mut self, value: &[u8]) {
        self.value.clear();
        self.value.extend_from_slice(value);
        self.crc = crc32fast::hash(value);
    }
}

impl StateMachine for Ledger {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        for entry in commands {
            // A command that makes no sense has no effect and an empty reply; the drill never sends one.
            let reply = Command::decode(&entry.payload).map(|command| self.execute(command).encode());
            replies.push(reply.unwrap_or_default());
        }
        Ok(())
    }

    fn query(&mut self, query: &Bytes) -> io::Result<Bytes> {
        Ok(Question::decode(query).map(|question| self.answer(question)).unwrap_or_default())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.history.len() as u64).to_be_bytes())?;
        for stamp in &self.history {
            out.write_all(&stamp.to_bytes())?;
        }
        out.write_all(&(self.cells.len() as u64).to_be_bytes())?;
        for (key, cell) in &self.cells {
            for word in [key.len() as u64, cell.version, cell.value.len() as u64] {
                out.write_all(&word.to_be_bytes())?;
            }
            out.write_all(key.as_bytes())?;
            out.write_all(&cell.value)?;
        }
        Ok(())
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut ledger = Ledger::default();
        for _ in 0..take_word(from)? {
            let stamp = Stamp { client: take_word(from)?, serial: take_word(from)? };
            ledger.chain = link(ledger.chain, stamp);
            ledger.history.push(stamp);
        }
        for _ in 0..take_word(from)? {
            let (key, version, length) = (take_word(from)?, take_word(from)?, take_word(from)?);
            let key = String::from_utf8(take_exact(from, key)?).map_err(io::Error::other)?;
            let value = take_exact(from, length)?;
            ledger.cells.insert(key, Cell { version, crc: crc32fast::hash(&value), value });
        }
        *self = ledger;
        Ok(())
    }
}

fn take_word(from: &mut dyn Read) -> io::Result<u64> {
    let mut word = [0; 8];
    from.read_exact(&mut word)?;
    Ok(u64::from_be_bytes(word))
}

/// Reads so many bytes, allocating only what comes.
fn take_exact(from: &mut dyn Read, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if from.take(length).read_to_end(&mut bytes)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(client: u64, serial: u64, key: &str, act: Act) -> Command {
        Command { stamp: Stamp { client, serial }, key: key.into(), act }
    }

    fn get(ledger: &Ledger, key: &str) -> Reading {
        Reading::decode(&ledger.answer(Question::Get(key.into()))).expect("a reading")
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let acts = [Act::Append, Act::CompareAndSet { expected: 9 }, Act::Put { value: Bytes::from_static(b"xyz") }];
        for act in acts {
            let command = command(3, 4, "a key", act);
            assert_eq!(Command::decode(&command.encode()), Some(command));
        }
        let reply = Reply { index: 1, chain: 2, version: 3, done: true };
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        assert_eq!(Command::decode(&Bytes::from_static(b"nonsense")), None);
    }

    #[test]
    fn commands_do_what_they_say() {
        let mut ledger = Ledger::default();
        assert_eq!(get(&ledger, "l").version, 0);
        assert_eq!(ledger.execute(command(1, 1, "l", Act::Append)).version, 1);
        assert_eq!(ledger.execute(command(2, 1, "l", Act::Append)).version, 2);
        let list = get(&ledger, "l");
        let both = [Stamp { client: 1, serial: 1 }.to_bytes(), Stamp { client: 2, serial: 1 }.to_bytes()].concat();
        assert_eq!(list.value.as_deref(), Some(&both[..]));
        assert_eq!(list.crc, crc32fast::hash(&both), "the running checksum is that of the whole");

        assert!(ledger.execute(command(1, 2, "c", Act::CompareAndSet { expected: 0 })).done);
        let refused = ledger.execute(command(2, 2, "c", Act::CompareAndSet { expected: 0 }));
        assert!(!refused.done && refused.version == 1 && refused.index == 4);
        assert_eq!(get(&ledger, "c").value.as_deref(), Some(&Stamp { client: 1, serial: 2 }.to_bytes()[..]));
    }

    #[test]
    fn the_chain_knows_the_order() {
        let (a, b) = (Stamp { client: 1, serial: 1 }, Stamp { client: 2, serial: 1 });
        assert_ne!(link(link(0, a), b), link(link(0, b), a));
    }

    #[test]
    fn a_restored_snapshot_is_the_same_state() {
        let mut ledger = Ledger::default();
        for serial in 1..20 {
            ledger.execute(command(serial % 3, serial, "l", Act::Append));
            ledger.execute(command(7, serial, &format!("k{serial}"), Act::Put { value: vec![1; 50].into() }));
        }
        let mut image = Vec::new();
        ledger.snapshot(&mut image).expect("a snapshot");
        let mut other = Ledger::default();
        other.restore(&mut &image[..]).expect("a snapshot");
        assert_eq!(other, ledger);
        assert!(other.restore(&mut &image[..image.len() - 1]).is_err());
        assert_eq!(other, ledger, "a failed restore changes nothing");
    }
}
