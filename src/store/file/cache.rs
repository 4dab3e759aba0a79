//! The client's cache in a directory: a tape of operations, and the image they make.

use std::io;
use std::path::{Path, PathBuf};

use super::frame::{Head, Kind};
use super::tape::Tape;
use super::{Lock, Opened, Poison, disk, identity, lock, names, remove_unfinished};
use crate::client::{CacheImage, CacheOp};
use crate::codec;
use crate::error::Result;
use crate::log::HEADER_COST;
use crate::store::ClientCache;

/// Below this size a file is not worth compacting.
const COMPACT_BYTES_MIN: u64 = 1 << 20;

/// A file is compacted when it is so many times as large as what it would be afterwards, roughly.
const COMPACT_FACTOR: u64 = 4;

/// How a [`FileCache`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileCacheOptions {
    /// Whether "written" means synced. What is written survives the process in any case; synced it survives the
    /// machine, too. A cache that lost its end is older than its session: what it held is gone as with any client that
    /// dies, and where it gives a number to another command than before, the primary refuses it
    /// ([`Conflict`](crate::error::Code::Conflict)), and a session with a new cache has to be opened.
    pub sync: bool,
}

/// A client's cache in a directory. See [`store::file`](super) for what it promises.
#[derive(Debug)]
pub struct FileCache {
    dir: PathBuf,
    tape: Tape,
    image: CacheImage,
    /// Below this length it is not compacted.
    compact_at: u64,
    /// Whether nothing was ever written.
    empty: bool,
    sync: bool,
    opened: Opened,
    poison: Poison,
    _lock: Lock,
}

impl FileCache {
    /// Opens the cache in the directory `path`, which is made if it is missing.
    ///
    /// # Errors
    /// [`Code::Locked`](crate::Code::Locked) if it is open elsewhere, [`Code::WrongVersion`](crate::Code::WrongVersion)
    /// or [`Code::UnknownKind`](crate::Code::UnknownKind) if a later version wrote it,
    /// [`Code::Corrupt`](crate::Code::Corrupt) if it is damaged before its last write,
    /// [`Code::Storage`](crate::Code::Storage) if the disk fails.
    pub fn open(path: impl AsRef<Path>, options: FileCacheOptions) -> Result<FileCache> {
        let dir = path.as_ref();
        let lock = lock(dir)?;
        let names = names(dir)?;
        remove_unfinished(dir, &names)?;
        let mut image = CacheImage::default();
        let mut opened = Opened::default();
        let tape = if names.iter().any(|name| name == "cache") {
            let visit = |_, _, content: &[u8]| {
                image.apply(&codec::decode_op(content)?);
                Ok(())
            };
            let (tape, torn) = Tape::open(&dir.join("cache"), Kind::Cache, None, visit)?;
            opened.torn = torn;
            tape
        } else {
            let head = Head::new(Kind::Cache, identity(), 1);
            let mut tape = Tape::create(&dir.join("new-cache"), None, head)?;
            tape.sync()?;
            tape.rename(&dir.join("cache"))?;
            disk::sync_dir(dir)?;
            tape
        };
        let empty = tape.next() == 1;
        Ok(FileCache {
            dir: dir.to_owned(),
            tape,
            image,
            compact_at: COMPACT_BYTES_MIN,
            empty,
            sync: options.sync,
            opened,
            poison: Poison::default(),
            _lock: lock,
        })
    }

    /// What was found when it was opened.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    fn write_ops(&mut self, ops: &[CacheOp]) -> io::Result<()> {
        let (next, end) = (self.tape.next(), self.tape.end());
        // Whatever earlier calls wrote is in the file, as far as this cache promises anything.
        let durable = next - 1;
        let push = |op: &CacheOp| self.tape.push(durable, |out| codec::encode_op(op, out));
        // Zeros ahead make syncs quicker, and nothing else.
        let ahead = if self.sync { 256 << 10 } else { 0 };
        let pushed = ops.iter().try_for_each(push).and_then(|()| self.tape.reserve(ahead, u64::MAX));
        if let Err(error) = pushed {
            let taken_back = self.tape.take_back(next, end);
            self.poison.note(taken_back)?;
            return Err(error);
        }
        let written = if self.sync { self.tape.sync() } else { self.tape.write() };
        self.poison.note(written)
    }

    /// Writes the image in the place of the operations that led to it.
    fn compact(&mut self) -> io::Result<()> {
        let head = Head::new(Kind::Cache, self.tape.head().id, 1);
        let made = Tape::create(&self.dir.join("new-cache"), None, head).and_then(|mut tape| {
            let ops = self.image.to_ops();
            let push = |op: &CacheOp| tape.push(ops.len() as u64, |out| codec::encode_op(op, out));
            ops.iter().try_for_each(push)?;
            tape.reserve(0, 0)?;
            // Synced in any case: a rename must not reach the disk before what it names.
            tape.sync()?;
            Ok(tape)
        });
        let mut tape = match made {
            // A full disk only means that the old file stays for now.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let _ = disk::remove(&self.dir.join("new-cache"));
                self.compact_at = self.tape.end() * 2;
                return Ok(());
            }
            made => made?,
        };
        tape.rename(&self.dir.join("cache"))?;
        self.compact_at = COMPACT_BYTES_MIN.max(COMPACT_FACTOR * tape.end());
        self.tape = tape;
        disk::sync_dir(&self.dir)
    }
}

impl ClientCache for FileCache {
    fn load(&mut self) -> io::Result<Vec<CacheOp>> {
        self.poison.check()?;
        Ok(if self.empty { Vec::new() } else { self.image.to_ops() })
    }

    fn write(&mut self, ops: &[CacheOp]) -> io::Result<()> {
        self.poison.check()?;
        if ops.is_empty() {
            return Ok(());
        }
        self.write_ops(ops)?;
        ops.iter().for_each(|op| self.image.apply(op));
        self.empty = false;
        // What it would be afterwards is known roughly, and what it was after the last time exactly.
        let kept = self.image.bytes + self.image.share_bytes + HEADER_COST;
        if self.tape.end() > self.compact_at.max(COMPACT_FACTOR * kept) {
            let compacted = self.compact();
            self.poison.note(compacted)?;
        }
        Ok(())
    }
}

impl Drop for FileCache {
    fn drop(&mut self) {
        if self.poison.check().is_ok() {
            // Only a help for the next opening; nothing is lost without it.
            let _ = self.tape.seal();
        }
    }
}
