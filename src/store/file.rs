//! A log and a client cache in files. First form: one file each, whole in memory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::client::{CacheImage, CacheOp};
use crate::codec;
use crate::error::{Code, Error, Result};
use crate::log::{Lsn, Record};
use crate::store::{ClientCache, LogStore, Marks, check_dense};

/// How a [`FileLog`] writes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FileLogOptions {}

/// How a [`FileCache`] writes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FileCacheOptions {
    /// Whether "written" means synced: what is written then survives a crash of the machine, too.
    pub sync: bool,
}

/// A log in a directory.
#[derive(Debug)]
pub struct FileLog {
    dir: PathBuf,
    file: File,
    /// Offsets behind each record.
    ends: Vec<u64>,
    records: Vec<Record>,
    _lock: File,
}

/// A client's cache in a directory.
#[derive(Debug)]
pub struct FileCache {
    file: File,
    image: CacheImage,
    fresh: bool,
    sync: bool,
    _lock: File,
}

impl FileLog {
    /// Opens the log in the directory `path`, which is created if need be.
    ///
    /// # Errors
    /// [`Code::Locked`], [`Code::Storage`], or what is wrong with the files.
    pub fn open(path: impl AsRef<Path>, options: FileLogOptions) -> Result<FileLog> {
        let FileLogOptions {} = options;
        let dir = path.as_ref();
        let lock = lock(dir)?;
        let (file, frames) = read_frames(&dir.join("log"))?;
        let mut records = Vec::new();
        let mut ends = Vec::new();
        for (end, frame) in frames {
            records.push(codec::decode_record(&frame)?);
            ends.push(end);
        }
        Ok(FileLog { dir: dir.to_owned(), file, ends, records, _lock: lock })
    }
}

impl LogStore for FileLog {
    fn marks(&mut self) -> io::Result<Option<Marks>> {
        match fs::read(self.dir.join("marks")) {
            Ok(bytes) => Ok(Some(codec::decode_marks(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn save_marks(&mut self, marks: &Marks) -> io::Result<()> {
        let mut bytes = Vec::new();
        codec::encode_marks(marks, &mut bytes);
        let temporary = self.dir.join("marks.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.dir.join("marks"))?;
        File::open(&self.dir)?.sync_all()
    }

    fn bounds(&self) -> Range<Lsn> {
        Lsn(1)..Lsn(self.records.len() as u64 + 1)
    }

    fn read(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Vec<Record>> {
        let skip = usize::try_from(from.0.saturating_sub(1)).unwrap_or(usize::MAX);
        let mut left = bytes_max as u64;
        let mut out = Vec::new();
        for record in self.records.iter().skip(skip) {
            if !out.is_empty() && record.cost() > left {
                break;
            }
            left = left.saturating_sub(record.cost());
            out.push(record.clone());
        }
        Ok(out)
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        check_dense(self.bounds().end, records)?;
        let mut end = self.ends.last().copied().unwrap_or(0);
        let mut bytes = Vec::new();
        for record in records {
            let start = bytes.len();
            put_frame(&mut bytes, |out| codec::encode_record(record, out));
            end += (bytes.len() - start) as u64;
            self.ends.push(end);
        }
        self.file.write_all(&bytes)?;
        self.records.extend_from_slice(records);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<Lsn> {
        self.file.sync_data()?;
        Ok(self.bounds().end.prev())
    }

    fn truncate_after(&mut self, last: Lsn) -> io::Result<()> {
        let keep = usize::try_from(last.0).unwrap_or(usize::MAX).min(self.records.len());
        self.records.truncate(keep);
        self.ends.truncate(keep);
        self.file.set_len(self.ends.last().copied().unwrap_or(0))?;
        self.file.seek(SeekFrom::End(0))?;
        self.file.sync_all()
    }
}

impl FileCache {
    /// Opens the cache in the directory `path`, which is created if need be.
    ///
    /// # Errors
    /// [`Code::Locked`], [`Code::Storage`], or what is wrong with the files.
    pub fn open(path: impl AsRef<Path>, options: FileCacheOptions) -> Result<FileCache> {
        let lock = lock(path.as_ref())?;
        let (file, frames) = read_frames(&path.as_ref().join("cache"))?;
        let mut image = CacheImage::default();
        for (_, frame) in &frames {
            image.apply(&codec::decode_op(frame)?);
        }
        Ok(FileCache { file, image, fresh: frames.is_empty(), sync: options.sync, _lock: lock })
    }
}

impl ClientCache for FileCache {
    fn load(&mut self) -> io::Result<Vec<CacheOp>> {
        Ok(if self.fresh { Vec::new() } else { self.image.to_ops() })
    }

    fn write(&mut self, ops: &[CacheOp]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for op in ops {
            put_frame(&mut bytes, |out| codec::encode_op(op, out));
        }
        self.file.write_all(&bytes)?;
        if self.sync {
            self.file.sync_data()?;
        }
        ops.iter().for_each(|op| self.image.apply(op));
        self.fresh &= ops.is_empty();
        Ok(())
    }
}

fn lock(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let why =
                format!("{} is in use: stop the process that has it open, or use another directory", dir.display());
            Err(Error::new(Code::Locked, why))
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn put_frame(out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    encode(out);
    let length = u32::try_from(out.len() - start - 8).expect("a frame is smaller than 4 GiB");
    let crc = crc32fast::hash(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

type Frames = Vec<(u64, Vec<u8>)>;

/// The whole frames of a file, each with the offset behind it; what follows is cut.
fn read_frames(path: &Path) -> Result<(File, Frames)> {
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some((head, rest)) = bytes[at..].split_first_chunk::<8>() {
        let [a, b, c, d, crc @ ..] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let Some(content) = rest.get(..length).filter(|content| crc32fast::hash(content) == u32::from_le_bytes(crc))
        else {
            break;
        };
        at += 8 + length;
        frames.push((at as u64, content.to_vec()));
    }
    file.set_len(at as u64)?;
    file.seek(SeekFrom::End(0))?;
    Ok((file, frames))
}
