//! A key-value store as a state machine: put, get, delete, append, compare-and-set, list by prefix.
//!
//! The state is a sorted map in memory, rebuilt from the log at the start. Every key carries the LSN of the entry
//! that last changed it, its *version*. Everything is a function of the commands in their order: no clock, no
//! randomness, no order that depends on addresses.
//!
//! ```
//! use tagalong::store::kv::{KvCommand, KvQuery, KvReply};
//! let command = KvCommand::put("colour", "green").encode();
//! let query = KvQuery::list("col").limit(10).encode();
//! # let _ = (command, query);
//! # let reply = KvReply::Done.encode();
//! assert_eq!(KvReply::decode(&reply)?, KvReply::Done);
//! # Ok::<(), tagalong::Error>(())
//! ```
//!
//! Bytes that are no command are answered by [`KvReply::Malformed`]: they come from clients, and no client may stop
//! a node. Keys and values are copied out of the commands, since a slice of a receive buffer keeps all of it alive.
//! Not here: anything durable; the log is.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;

use bytes::Bytes;

use crate::error::{Code, Error, Result};
use crate::log::{Body, Entry, Lsn};
use crate::store::{Missing, StateMachine};

/// How many keys a list has at most, unless the query says less.
pub const LIST_MAX: u32 = 1000;

/// A list ends before it exceeds about this many bytes of keys and values.
pub const LIST_BYTES_MAX: usize = 256 << 10;

const SNAPSHOT_MAGIC: &[u8; 10] = b"tagalongkv";
const SNAPSHOT_VERSION: u16 = 1;

/// A change of the state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvCommand {
    /// Sets a key. Answered by [`KvReply::Done`].
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Removes a key, if it is there. Answered by [`KvReply::Done`].
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Appends to a key's value; to nothing, if there is none. Answered by [`KvReply::Length`].
    Append {
        /// The key.
        key: Bytes,
        /// What comes after its value.
        value: Bytes,
    },
    /// Sets or removes a key if its value is as expected. Answered by [`KvReply::Done`], or by [`KvReply::Value`]
    /// with what is there instead.
    CompareAndSet {
        /// The key.
        key: Bytes,
        /// What has to be there; `None`: the key must not exist.
        expected: Option<Bytes>,
        /// What is there afterwards; `None` removes the key.
        value: Option<Bytes>,
    },
}

/// A question about the state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvQuery {
    /// A key's value. Answered by [`KvReply::Value`].
    Get {
        /// The key.
        key: Bytes,
    },
    /// The keys that begin with a prefix, in order. Answered by [`KvReply::List`].
    List {
        /// The prefix; an empty one lists everything.
        prefix: Bytes,
        /// Begin after this key.
        after: Option<Bytes>,
        /// At most so many keys, and never more than [`LIST_MAX`].
        limit: u32,
    },
}

/// A key's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KvItem {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The entry that last changed it.
    pub version: Lsn,
}

/// The answer to a command or a query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvReply {
    /// Done as asked.
    Done,
    /// Appended; the value now has this many bytes.
    Length(u64),
    /// What the key has: its value and the entry that last changed it, or nothing.
    Value(Option<(Bytes, Lsn)>),
    /// Some keys, in order.
    List {
        /// What was found.
        items: Vec<KvItem>,
        /// Whether there is more after the last item.
        more: bool,
    },
    /// The bytes were no command or query; says why.
    Malformed(String),
}

impl KvCommand {
    /// Sets `key` to `value`.
    pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self::Put { key: copy(key), value: copy(value) }
    }

    /// Removes `key`.
    pub fn delete(key: impl AsRef<[u8]>) -> Self {
        Self::Delete { key: copy(key) }
    }

    /// Appends `value` to what `key` has.
    pub fn append(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self::Append { key: copy(key), value: copy(value) }
    }

    /// Sets `key` to `value` if it has `expected`; `None` on either side means that there is no such key.
    pub fn compare_and_set<V: AsRef<[u8]>>(key: impl AsRef<[u8]>, expected: Option<V>, value: Option<V>) -> Self {
        Self::CompareAndSet { key: copy(key), expected: expected.map(copy), value: value.map(copy) }
    }

    /// The key it changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Append { key, .. } => key,
            Self::CompareAndSet { key, .. } => key,
        }
    }

    /// Its bytes, as a client sends them.
    ///
    /// # Panics
    /// If a key or value has 4 GiB or more.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Put { key, value } => {
                out.push(1);
                put_blob(&mut out, key);
                put_blob(&mut out, value);
            }
            Self::Delete { key } => {
                out.push(2);
                put_blob(&mut out, key);
            }
            Self::Append { key, value } => {
                out.push(3);
                put_blob(&mut out, key);
                put_blob(&mut out, value);
            }
            Self::CompareAndSet { key, expected, value } => {
                out.push(4);
                put_blob(&mut out, key);
                put_option(&mut out, expected.as_ref());
                put_option(&mut out, value.as_ref());
            }
        }
        out.into()
    }

    /// Reads what [`encode`](KvCommand::encode) wrote.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if the bytes are no command.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        whole(bytes, "command", |take| match take.byte()? {
            1 => Some(Self::Put { key: take.blob()?, value: take.blob()? }),
            2 => Some(Self::Delete { key: take.blob()? }),
            3 => Some(Self::Append { key: take.blob()?, value: take.blob()? }),
            4 => Some(Self::CompareAndSet { key: take.blob()?, expected: take.option()?, value: take.option()? }),
            _ => None,
        })
    }
}

impl KvQuery {
    /// The value of `key`.
    pub fn get(key: impl AsRef<[u8]>) -> Self {
        Self::Get { key: copy(key) }
    }

    /// The keys that begin with `prefix`, the first [`LIST_MAX`] of them unless [`limit`](KvQuery::limit) says less.
    pub fn list(prefix: impl AsRef<[u8]>) -> Self {
        Self::List { prefix: copy(prefix), after: None, limit: LIST_MAX }
    }

    /// Of a list, at most so many keys.
    #[must_use]
    pub fn limit(mut self, keys: u32) -> Self {
        if let Self::List { limit, .. } = &mut self {
            *limit = keys;
        }
        self
    }

    /// Of a list, what comes after `key`: the last key of the page before.
    #[must_use]
    pub fn after(mut self, key: impl AsRef<[u8]>) -> Self {
        if let Self::List { after, .. } = &mut self {
            *after = Some(copy(key));
        }
        self
    }

    /// Its bytes, as a client sends them.
    ///
    /// # Panics
    /// If a key or value has 4 GiB or more.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Get { key } => {
                out.push(1);
                put_blob(&mut out, key);
            }
            Self::List { prefix, after, limit } => {
                out.push(2);
                put_blob(&mut out, prefix);
                put_option(&mut out, after.as_ref());
                out.extend_from_slice(&limit.to_le_bytes());
            }
        }
        out.into()
    }

    /// Reads what [`encode`](KvQuery::encode) wrote.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if the bytes are no query.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        whole(bytes, "query", |take| match take.byte()? {
            1 => Some(Self::Get { key: take.blob()? }),
            2 => Some(Self::List { prefix: take.blob()?, after: take.option()?, limit: take.u32()? }),
            _ => None,
        })
    }
}

impl KvReply {
    /// Its bytes, as the state machine answers them.
    ///
    /// # Panics
    /// If a key or value has 4 GiB or more.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Done => out.push(1),
            Self::Length(length) => {
                out.push(2);
                out.extend_from_slice(&length.to_le_bytes());
            }
            Self::Value(None) => out.push(3),
            Self::Value(Some((value, version))) => {
                out.push(4);
                put_blob(&mut out, value);
                out.extend_from_slice(&version.0.to_le_bytes());
            }
            Self::List { items, more } => {
                out.push(5);
                out.push(u8::from(*more));
                for item in items {
                    put_blob(&mut out, &item.key);
                    put_blob(&mut out, &item.value);
                    out.extend_from_slice(&item.version.0.to_le_bytes());
                }
            }
            Self::Malformed(why) => {
                out.push(6);
                put_blob(&mut out, why.as_bytes());
            }
        }
        out.into()
    }

    /// Reads what [`encode`](KvReply::encode) wrote.
    ///
    /// # Errors
    /// [`Code::Protocol`] if the bytes are no reply of this state machine.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let reply = whole(bytes, "reply", |take| match take.byte()? {
            1 => Some(Self::Done),
            2 => Some(Self::Length(take.u64()?)),
            3 => Some(Self::Value(None)),
            4 => Some(Self::Value(Some((take.blob()?, Lsn(take.u64()?))))),
            5 => {
                let more = take.flag()?;
                let mut items = Vec::new();
                while !take.0.is_empty() {
                    items.push(KvItem { key: take.blob()?, value: take.blob()?, version: Lsn(take.u64()?) });
                }
                Some(Self::List { items, more })
            }
            6 => Some(Self::Malformed(std::str::from_utf8(&take.blob()?).ok()?.to_owned())),
            _ => None,
        });
        reply.map_err(|error| Error::new(Code::Protocol, error.message()))
    }

    /// The value of a [`KvReply::Value`], if there is one.
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Value(Some((value, _))) => Some(value),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    bytes: Vec<u8>,
    version: Lsn,
}

/// The state machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvStore {
    map: BTreeMap<Box<[u8]>, Value>,
}

impl KvStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The value of `key`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.map.get(key.as_ref()).map(|value| value.bytes.as_slice())
    }

    fn execute(&mut self, command: &KvCommand, version: Lsn) -> KvReply {
        match command {
            KvCommand::Put { key, value } => self.set(key, value, version),
            KvCommand::Delete { key } => {
                self.map.remove(key.as_ref());
            }
            KvCommand::Append { key, value } => {
                let entry = self.map.entry(key.as_ref().into()).or_insert(Value { bytes: Vec::new(), version });
                entry.bytes.extend_from_slice(value);
                entry.version = version;
                return KvReply::Length(entry.bytes.len() as u64);
            }
            KvCommand::CompareAndSet { key, expected, value } => {
                if self.get(key) != expected.as_deref() {
                    return self.look_up(key);
                }
                match value {
                    Some(value) => self.set(key, value, version),
                    None => {
                        self.map.remove(key.as_ref());
                    }
                }
            }
        }
        KvReply::Done
    }

    fn set(&mut self, key: &[u8], value: &[u8], version: Lsn) {
        self.map.insert(key.into(), Value { bytes: value.to_vec(), version });
    }

    fn look_up(&self, key: &[u8]) -> KvReply {
        KvReply::Value(self.map.get(key).map(|value| (Bytes::copy_from_slice(&value.bytes), value.version)))
    }

    fn list(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> KvReply {
        // A key before the prefix is no place to start from.
        let start = match after.filter(|after| *after >= prefix) {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let found = self.map.range::<[u8], _>((start, Bound::Unbounded));
        let mut found = found.take_while(|(key, _)| key.starts_with(prefix)).peekable();
        let mut items = Vec::new();
        let mut bytes = 0;
        while let Some((key, value)) = found.peek() {
            bytes += key.len() + value.bytes.len();
            if items.len() >= limit.min(LIST_MAX) as usize || (bytes > LIST_BYTES_MAX && !items.is_empty()) {
                break;
            }
            let (key, bytes) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(&value.bytes));
            items.push(KvItem { key, value: bytes, version: value.version });
            found.next();
        }
        KvReply::List { items, more: found.peek().is_some() }
    }
}

impl StateMachine for KvStore {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        for entry in commands {
            let reply = match KvCommand::decode(&entry.payload) {
                Ok(command) => self.execute(&command, entry.header.lsn),
                Err(error) => KvReply::Malformed(error.message().to_owned()),
            };
            replies.push(reply.encode());
        }
        Ok(())
    }

    fn query(&mut self, query: &Bytes) -> io::Result<Bytes> {
        let reply = match KvQuery::decode(query) {
            Ok(KvQuery::Get { key }) => self.look_up(&key),
            Ok(KvQuery::List { prefix, after, limit }) => self.list(&prefix, after.as_deref(), limit),
            Err(error) => KvReply::Malformed(error.message().to_owned()),
        };
        Ok(reply.encode())
    }

    /// Magic, version, how many keys; key, value and version of each in order; CRC-32 of all that.
    fn snapshot(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut crc = crc32fast::Hasher::new();
        let mut write = |part: &[u8]| {
            crc.update(part);
            out.write_all(part)
        };
        write(SNAPSHOT_MAGIC)?;
        write(&SNAPSHOT_VERSION.to_le_bytes())?;
        write(&(self.map.len() as u64).to_le_bytes())?;
        let mut item = Vec::new();
        for (key, value) in &self.map {
            item.clear();
            put_blob(&mut item, key);
            put_blob(&mut item, &value.bytes);
            item.extend_from_slice(&value.version.0.to_le_bytes());
            write(&item)?;
        }
        out.write_all(&crc.finalize().to_le_bytes())
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        self.map = read_snapshot(&bytes)?;
        Ok(())
    }

    /// Nothing, unless what was lost changed nothing. A command depends on a lost one if both touch a key, and which
    /// key a lost command touched is in its payload, which is lost: its header, even where it is known, does not say.
    /// Nor does the store know what the client that sent `later` had read before.
    fn independent(&self, _later: &Entry, missing: &[Missing]) -> bool {
        missing.iter().all(|lost| lost.header.as_ref().is_some_and(|header| header.body != Body::Command))
    }
}

fn read_snapshot(bytes: &[u8]) -> Result<BTreeMap<Box<[u8]>, Value>> {
    let damaged =
        |why: &str| Error::new(Code::Corrupt, format!("this is no whole snapshot of a key-value store: {why}"));
    let (content, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged("it is too short"))?;
    let rest = content.strip_prefix(SNAPSHOT_MAGIC).ok_or_else(|| damaged("it begins otherwise"))?;
    if crc32fast::hash(content) != u32::from_le_bytes(*crc) {
        return Err(damaged("its checksum does not match"));
    }
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(|| damaged("it is too short"))?;
    let version = u16::from_le_bytes(*version);
    if version != SNAPSHOT_VERSION {
        let why = format!("the snapshot has version {version}, this build reads {SNAPSHOT_VERSION}: use a newer build");
        return Err(Error::new(Code::WrongVersion, why));
    }
    read_items(&mut Take(rest)).ok_or_else(|| damaged("an item makes no sense"))
}

fn read_items(take: &mut Take<'_>) -> Option<BTreeMap<Box<[u8]>, Value>> {
    let count = take.u64()?;
    let mut map = BTreeMap::new();
    for _ in 0..count {
        let (key, bytes) = (take.slice()?, take.slice()?);
        map.insert(key.into(), Value { bytes: bytes.to_vec(), version: Lsn(take.u64()?) });
    }
    (take.0.is_empty() && map.len() as u64 == count).then_some(map)
}

fn copy(bytes: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(bytes.as_ref())
}

/// Appends length (32 bits, little-endian) and bytes. What is longer than the length can say cannot be sent anyway:
/// a service limits its commands far below.
fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("keys and values are smaller than 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_option(out: &mut Vec<u8>, bytes: Option<&Bytes>) {
    out.push(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put_blob(out, bytes);
    }
}

/// Reads the parts from what is left of the input; `None` where it makes no sense.
struct Take<'a>(&'a [u8]);

fn whole<T>(bytes: &[u8], what: &str, take: impl FnOnce(&mut Take<'_>) -> Option<T>) -> Result<T> {
    let mut left = Take(bytes);
    let value = take(&mut left).filter(|_| left.0.is_empty());
    value.ok_or_else(|| {
        let why = format!("{} bytes are no {what} of the key-value store", bytes.len());
        Error::new(Code::InvalidArgument, why)
    })
}

impl<'a> Take<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, left) = self.0.split_first_chunk::<N>()?;
        self.0 = left;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|byte| byte[0])
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn slice(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (taken, left) = self.0.split_at_checked(length)?;
        self.0 = left;
        Some(taken)
    }

    fn blob(&mut self) -> Option<Bytes> {
        self.slice().map(Bytes::copy_from_slice)
    }

    #[expect(clippy::option_option, reason = "the outer one is the reader's, the inner one the value's")]
    fn option(&mut self) -> Option<Option<Bytes>> {
        if self.flag()? { self.blob().map(Some) } else { Some(None) }
    }
}
