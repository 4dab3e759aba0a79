//! The few things the file stores ask of a file system, in one place: so that every error names its file, and so that
//! the crate's own tests can stop the world before any of them, or write down all of them and replay what a crash of
//! the machine could have left (`tests.rs`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file open for reading and writing, that knows its name.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    path: PathBuf,
    #[cfg(test)]
    id: u64,
}

impl DiskFile {
    /// Makes a new, empty file; one of that name is removed first.
    pub(super) fn create(path: &Path) -> io::Result<DiskFile> {
        if path.exists() {
            remove(path)?;
        }
        #[cfg(test)]
        let id = probe::create(path)?;
        let opened = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = opened.map_err(|error| about(path, "create", &error))?;
        Ok(DiskFile {
            file,
            path: path.to_owned(),
            #[cfg(test)]
            id,
        })
    }

    /// Opens an existing file.
    pub(super) fn open(path: &Path) -> io::Result<DiskFile> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file = opened.map_err(|error| about(path, "open", &error))?;
        Ok(DiskFile {
            file,
            path: path.to_owned(),
            #[cfg(test)]
            id: probe::open(path),
        })
    }

    /// Its present name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> io::Result<u64> {
        let metadata = self.file.metadata().map_err(|error| about(&self.path, "look at", &error))?;
        Ok(metadata.len())
    }

    /// Reads at `at` until `out` is full or the file ends; returns how much was read.
    pub(super) fn read_at(&mut self, at: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut length = 0;
        let mut read = || {
            self.file.seek(SeekFrom::Start(at))?;
            while length < out.len() {
                match self.file.read(&mut out[length..]) {
                    Ok(0) => break,
                    Ok(more) => length += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(length)
        };
        read().map_err(|error| about(&self.path, "read", &error))
    }

    /// Writes all of `bytes` at `at`.
    pub(super) fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        {
            let growth = (at + bytes.len() as u64).saturating_sub(self.len()?);
            if let Err((error, fits)) = probe::write(self.id, at, bytes, growth) {
                // A disk that becomes full takes what it can.
                self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(&bytes[..fits]))?;
                return Err(about(&self.path, "write", &error));
            }
        }
        let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|error| about(&self.path, "write", &error))
    }

    /// Cuts or extends it to `length`.
    pub(super) fn set_len(&mut self, length: u64) -> io::Result<()> {
        #[cfg(test)]
        probe::set_len(self.id, length)?;
        self.file.set_len(length).map_err(|error| about(&self.path, "cut", &error))
    }

    /// Makes its content durable, its length included (the rest of its metadata may wait).
    pub(super) fn sync(&mut self) -> io::Result<()> {
        #[cfg(test)]
        probe::sync(self.id)?;
        self.file.sync_data().map_err(|error| about(&self.path, "sync", &error))
    }

    /// Gives it another name, in the place of whatever has that name. Durable after [`sync_dir`].
    pub(super) fn rename(&mut self, to: &Path) -> io::Result<()> {
        rename(&self.path, to)?;
        to.clone_into(&mut self.path);
        Ok(())
    }
}

/// Makes the content of a file durable that is open elsewhere, from whatever thread calls it. Its error may be told to nobody
/// else: whoever calls it has to pass it on. Nothing where the file cannot be opened.
pub(super) fn syncing(path: &Path) -> Option<impl FnOnce() -> io::Result<()> + Send + use<>> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    let path = path.to_owned();
    #[cfg(test)]
    let fails = probe::with(|probe| probe.sync_fails);
    Some(move || {
        #[cfg(test)]
        if fails {
            return Err(io::Error::other("the sync failed, as the test wants it"));
        }
        file.sync_data().map_err(|error| about(&path, "sync", &error))
    })
}

/// As [`DiskFile::rename`], of a file that is not open.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    probe::rename(from, to)?;
    fs::rename(from, to).map_err(|error| about(from, "rename", &error))
}

/// Removes a file. Durable after [`sync_dir`].
pub(super) fn remove(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    probe::remove(path)?;
    fs::remove_file(path).map_err(|error| about(path, "remove", &error))
}

/// Makes the names in a directory durable. A no-op where directories cannot be synced.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    #[cfg(test)]
    probe::sync_dir()?;
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| about(dir, "sync", &error))?;
    }
    Ok(())
}

/// The error with what was tried on which file.
pub(super) fn about(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

/// What the tests see and do: a trace of all changes, and a budget of changes after which everything fails.
#[cfg(test)]
pub(super) mod probe {
    use std::cell::RefCell;
    use std::io;
    use std::path::{Path, PathBuf};

    /// A change of the file system. Files are named by the handle they were opened with.
    #[derive(Clone, Debug)]
    pub(in super::super) enum Change {
        Create {
            path: PathBuf,
            id: u64,
        },
        Open {
            path: PathBuf,
            id: u64,
        },
        Write {
            id: u64,
            at: u64,
            bytes: Vec<u8>,
        },
        SetLen {
            id: u64,
            length: u64,
        },
        Sync {
            id: u64,
        },
        Rename {
            from: PathBuf,
            to: PathBuf,
        },
        Remove {
            path: PathBuf,
        },
        SyncDir,
        /// Put in by a test, to find its own steps again.
        Note(u64),
    }

    #[derive(Default)]
    pub(in super::super) struct Probe {
        pub(in super::super) trace: Option<Vec<Change>>,
        /// Changes that still succeed.
        pub(in super::super) left: Option<u64>,
        pub(in super::super) sync_fails: bool,
        /// Bytes by which files can still grow.
        pub(in super::super) space: Option<u64>,
        ids: u64,
    }

    thread_local! {
        static PROBE: RefCell<Probe> = RefCell::default();
    }

    pub(in super::super) fn with<T>(f: impl FnOnce(&mut Probe) -> T) -> T {
        PROBE.with_borrow_mut(f)
    }

    fn change(change: Change) -> io::Result<()> {
        with(|probe| {
            match &mut probe.left {
                Some(0) => return Err(io::Error::other("the world ended here, as the test wants it")),
                Some(left) => *left -= 1,
                None => {}
            }
            if let Some(trace) = &mut probe.trace {
                trace.push(change);
            }
            Ok(())
        })
    }

    fn fresh() -> u64 {
        with(|probe| {
            probe.ids += 1;
            probe.ids
        })
    }

    pub(super) fn create(path: &Path) -> io::Result<u64> {
        let id = fresh();
        change(Change::Create { path: path.to_owned(), id })?;
        Ok(id)
    }

    pub(super) fn open(path: &Path) -> u64 {
        let id = fresh();
        with(|probe| {
            if let Some(trace) = &mut probe.trace {
                trace.push(Change::Open { path: path.to_owned(), id });
            }
        });
        id
    }

    /// If it fails, with how many of the bytes are written all the same.
    pub(super) fn write(id: u64, at: u64, bytes: &[u8], growth: u64) -> Result<(), (io::Error, usize)> {
        with(|probe| match &mut probe.space {
            Some(space) if *space < growth => {
                let short = usize::try_from(growth - std::mem::take(space)).expect("less than the bytes");
                Err((io::Error::from(io::ErrorKind::StorageFull), bytes.len() - short))
            }
            Some(space) => {
                *space -= growth;
                Ok(())
            }
            None => Ok(()),
        })?;
        change(Change::Write { id, at, bytes: bytes.to_vec() }).map_err(|error| (error, 0))
    }

    pub(super) fn set_len(id: u64, length: u64) -> io::Result<()> {
        change(Change::SetLen { id, length })
    }

    pub(super) fn sync(id: u64) -> io::Result<()> {
        if with(|probe| probe.sync_fails) {
            return Err(io::Error::other("the sync failed, as the test wants it"));
        }
        change(Change::Sync { id })
    }

    pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
        change(Change::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    pub(super) fn remove(path: &Path) -> io::Result<()> {
        change(Change::Remove { path: path.to_owned() })
    }

    pub(super) fn sync_dir() -> io::Result<()> {
        change(Change::SyncDir)
    }

    pub(in super::super) fn note(step: u64) {
        change(Change::Note(step)).expect("a note always fits");
    }
}
