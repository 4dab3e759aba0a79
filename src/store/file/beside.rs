//! What is done on threads beside those that read and append, so that disk and processor are busy at the same time. Nothing
//! depends on it but how long things take; a flush that fails is a sync that failed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::thread::{self, JoinHandle};

use super::disk::syncing;

/// One thread at a time.
#[derive(Debug, Default)]
struct Beside {
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Beside {
    fn is_busy(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// What the last one came to.
    fn join(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread beside the log panicked")))
    }

    /// Where there is no thread to be had, it is not done.
    fn start(&mut self, name: &str, work: impl FnOnce() -> io::Result<()> + Send + 'static) {
        self.thread = thread::Builder::new().name(name.to_owned()).spawn(work).ok();
    }
}

/// Brings into the system's memory what will be read soon: getting it from a disk takes about as long as making sense of it.
#[derive(Debug, Default)]
pub(super) struct Warming {
    beside: Beside,
}

impl Warming {
    /// What is shorter is not worth a thread.
    const LENGTH_MIN: u64 = if cfg!(test) { 1 } else { 4 << 20 };
    /// Bytes read at once.
    const PART_BYTES: usize = 1 << 20;

    /// Begins with the file at `path`, unless it is not through with the one before. What goes wrong here will go wrong
    /// again, and be told of, where the file is read.
    pub(super) fn warm(&mut self, path: &Path, length: u64) {
        if length < Self::LENGTH_MIN || self.beside.is_busy() {
            return;
        }
        let path = path.to_owned();
        self.beside.start("tagalong-warming", move || {
            let mut file = File::open(path)?;
            let mut part = vec![0; Self::PART_BYTES];
            while file.read(&mut part)? > 0 {}
            Ok(())
        });
    }
}

/// Has the disk begin with what is written and not yet synced, where that is much: a sync would otherwise find all of it still
/// to be done.
#[derive(Debug, Default)]
pub(super) struct Flushing {
    beside: Beside,
    /// Bytes that were written since it was last begun.
    written: u64,
}

impl Flushing {
    /// What is less is left to the sync.
    const BYTES_MIN: u64 = if cfg!(test) { 1 << 10 } else { 8 << 20 };

    /// So many bytes more were written, the last of them to the file at `path`.
    ///
    /// # Errors
    /// As a sync that failed: what the disk has is unknown.
    pub(super) fn written(&mut self, path: &Path, bytes: u64) -> io::Result<()> {
        self.written += bytes;
        if self.written < Self::BYTES_MIN || self.beside.is_busy() {
            return Ok(());
        }
        self.beside.join()?;
        self.written = 0;
        if let Some(sync) = syncing(path) {
            self.beside.start("tagalong-flushing", sync);
        }
        Ok(())
    }

    /// Waits for it.
    ///
    /// # Errors
    /// As a sync that failed.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        self.written = 0;
        self.beside.join()
    }
}
