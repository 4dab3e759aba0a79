//! A log and a client's cache in files.
//!
//! ```text
//! log directory                                    cache directory
//! lock                  held while it is open      lock
//! marks                 the node's marks           cache      operations, compacted now and then
//! log-0000…0001         records from LSN 1 on
//! log-0000…4711         records from LSN 4711 on, to the end
//! spare                 a segment to be used again
//! cut-0000…4711-…       records that were cut, for inspection (see `read_cut`)
//! new-…                 not finished; removed at the next opening
//! ```
//!
//! The form of the files is in `file/frame.rs`. What the stores promise on top of the traits:
//!
//! * **A torn tail is cut, damage is reported.** What a crash left of the last write is cut off when the directory is
//!   opened, and [`FileLog::opened`] says how much. Where something that was durable cannot be read, opening or
//!   reading fails with [`Code::Corrupt`], file and offset, and nothing is changed.
//! * **Nothing comes back.** Records behind a cut never reappear, and neither does what a recycled file held before.
//! * **A full disk costs nothing.** An append that does not fit changes nothing, and the next one may fit again.
//! * **A failed sync is final.** Nobody knows what the disk has then; every later call fails until the log is opened
//!   again.
//! * **One process at a time.** A second opening fails with [`Code::Locked`].
//!
//! Every file is made under a `new-` name, synced, and renamed; then its directory is synced. A cut of several files
//! becomes real with one rename, and is finished at the next opening if a crash comes between.
//!
//! Not here: group commit. A node has a thread that appends what is at hand and syncs once. A log's own threads, in
//! `file/beside.rs`, only have the disk begin earlier.

mod beside;
mod cache;
mod cut;
mod disk;
mod frame;
mod log;
mod tape;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::codec;
use crate::error::{Code, Error, Result};
use crate::log::Record;

pub use cache::{FileCache, FileCacheOptions};
pub use log::{FileLog, FileLogOptions};

/// What a crash had left behind the last whole record, and was cut off when the file was opened. None of it was ever
/// reported as durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub file: PathBuf,
    /// Where the cut was made.
    pub offset: u64,
    /// How many bytes were cut, unused space included.
    pub bytes: u64,
}

/// What was found when a log or cache was opened.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Opened {
    /// What was cut off the end, if the last process did not end cleanly.
    pub torn: Option<TornTail>,
    /// A [`truncate_after`](crate::store::LogStore::truncate_after) that a crash had interrupted was finished.
    pub finished_cut: bool,
}

/// The records that a [`FileLog`] set aside in the file `path`, whose name begins with `cut-`, when it was cut.
///
/// # Errors
/// If the file cannot be read, is damaged, or is not of that kind.
pub fn read_cut(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    tape::Tape::scan(path.as_ref(), frame::Kind::Cut, None, |_, _, content| {
        records.push(codec::decode_record(content)?);
        Ok(())
    })?;
    Ok(records)
}

/// A directory's lock.
///
/// It is given up expressly: a process that this one is just starting has the file open, too, until it becomes another
/// program, and closing ours alone would leave the lock to that.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file comes next, and does as well where nobody else has it.
        let _ = self.0.unlock();
    }
}

/// Makes the directory if it is missing, and locks it for as long as the lock is there.
fn lock(dir: &Path) -> Result<Lock> {
    if !dir.is_dir() {
        fs::create_dir_all(dir).map_err(|error| disk::about(dir, "create", &error))?;
        let parent = dir.parent().filter(|parent| *parent != Path::new(""));
        disk::sync_dir(parent.unwrap_or(Path::new(".")))?;
    }
    let path = dir.join("lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|error| disk::about(&path, "open", &error))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => {
            let dir = dir.display();
            let why = format!("{dir} is in use already: stop the process that has it open, or use another directory");
            Err(Error::new(Code::Locked, why))
        }
        Err(TryLockError::Error(error)) => Err(disk::about(&path, "lock", &error).into()),
    }
}

/// The names in a directory.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let read = fs::read_dir(dir).and_then(|entries| entries.map(name).collect::<io::Result<Vec<String>>>());
    let mut names = read.map_err(|error| disk::about(dir, "list", &error))?;
    names.sort();
    Ok(names)
}

/// Removes what a crash left unfinished.
fn remove_unfinished(dir: &Path, names: &[String]) -> io::Result<()> {
    let mut unfinished = names.iter().filter(|name| name.starts_with("new-")).peekable();
    if unfinished.peek().is_none() {
        return Ok(());
    }
    unfinished.try_for_each(|name| disk::remove(&dir.join(name)))?;
    disk::sync_dir(dir)
}

/// A new identity of a log or cache.
fn identity() -> u128 {
    u128::from(frame::random()) << 64 | u128::from(frame::random())
}

/// The error of everything after a failed sync.
#[derive(Debug, Default)]
struct Poison(Option<String>);

impl Poison {
    fn check(&self) -> io::Result<()> {
        match &self.0 {
            None => Ok(()),
            Some(first) => {
                let why = format!(
                    "this store failed before, and what the disk has is unknown until it is opened again: {first}"
                );
                Err(Error::new(Code::Storage, why).into())
            }
        }
    }

    /// Remembers the first error.
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && self.0.is_none()
        {
            self.0 = Some(error.to_string());
        }
        result
    }
}

#[cfg(test)]
mod tests;
