//! The log in a directory: segments and the marks. How a tail is cut is in `cut.rs`.
//!
//! The last segment is a [`Tape`] that is written to; those before it are complete and durable, because a segment gets
//! its name only after the one before it was synced. So only the last one can end in a torn write, and in every other
//! a record that cannot be read is damage. Appends go to memory; when they outgrow the segment, the next one is
//! prepared under a `new-` name, and named when its turn comes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::beside::{Flushing, Warming};
use super::cut::{PENDING, finish_cut, segment, segments};
use super::disk::{self, DiskFile};
use super::frame::{FRAME, Found, HEAD, Head, Kind, Window, damage};
use super::tape::Tape;
use super::{Lock, Opened, Poison, identity, lock, names, remove_unfinished};
use crate::codec;
use crate::error::{Code, Error, Result};
use crate::log::{Lsn, Record};
use crate::store::{Encoded, LogStore, Marks, check_dense};

/// What is appended at once is written in pieces of about so many bytes: so much memory is used again and again, and more
/// would have to be got from the operating system each time.
const PIECE_BYTES: u64 = if cfg!(test) { 600 } else { 512 << 10 };

/// A place is remembered for every so many bytes of records.
const PLACES_BYTES: u64 = 64 << 10;

/// So many records a read has room for at once.
const READ_ROOM: usize = 4096;

/// So many bytes a read has room for at once, where it is to be of encoded records.
const READ_BYTES: usize = 1 << 20;

/// How a [`FileLog`] writes. Plain data; the defaults suit a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLogOptions {
    /// A file of the log is not made larger than so many bytes, unless a single record is. 64 MiB by default.
    pub segment_bytes: u64,
    /// So many bytes of zeros are written ahead of the records when there is no room left: it makes syncs quicker,
    /// and costs each byte a second writing. Not where much is appended at once. 1 MiB by default.
    pub zero_ahead_bytes: u64,
    /// Appends fail when the log would take more than about so many bytes. By default there is no limit but the disk.
    pub bytes_max: Option<u64>,
}

impl Default for FileLogOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, zero_ahead_bytes: 1 << 20, bytes_max: None }
    }
}

/// A log in a directory. See [`store::file`](super) for what it promises.
#[derive(Debug)]
pub struct FileLog {
    dir: PathBuf,
    options: FileLogOptions,
    /// The log's identity, in the head of each of its files.
    id: u128,
    /// The first LSNs of the complete segments, with their bytes.
    complete: BTreeMap<u64, u64>,
    /// The last segment, and behind it those that are prepared. Only the first one may have its name.
    tapes: VecDeque<Tape>,
    /// The next LSN.
    next: u64,
    durable: u64,
    /// Offsets of some records in their segments.
    places: BTreeMap<u64, u64>,
    unplaced_bytes: u64,
    /// Where the last read ended.
    cursor: Option<(u64, u64)>,
    window: Window,
    /// The complete segment that was read last, with salt and length.
    reading: Option<(DiskFile, u64, u64)>,
    /// The first LSN of the segment in `window`.
    viewing: u64,
    warming: Warming,
    flushing: Flushing,
    opened: Opened,
    poison: Poison,
    _lock: Lock,
}

impl FileLog {
    /// Opens the log in the directory `path`, which is made if it is missing. Only the last segment is read and
    /// checked; the others are when they are read.
    ///
    /// # Errors
    /// [`Code::Locked`] if it is open elsewhere, [`Code::WrongVersion`] if a later version wrote it,
    /// [`Code::Corrupt`] if it is damaged before its last write, [`Code::InvalidArgument`] if the options make no
    /// sense, [`Code::Storage`] if the disk fails.
    pub fn open(path: impl AsRef<Path>, options: FileLogOptions) -> Result<FileLog> {
        if options.segment_bytes == 0 {
            return Err(Error::new(Code::InvalidArgument, "segment_bytes must not be 0"));
        }
        let dir = path.as_ref();
        let lock = lock(dir)?;
        let names = names(dir)?;
        remove_unfinished(dir, &names)?;
        let mut opened = Opened::default();
        for name in names.iter().filter(|name| name.starts_with("cut-") && name.ends_with(PENDING)) {
            finish_cut(dir, &dir.join(name))?;
            opened.finished_cut = true;
        }
        let mut log = FileLog {
            dir: dir.to_owned(),
            options,
            id: 0,
            complete: BTreeMap::new(),
            tapes: VecDeque::new(),
            next: 1,
            durable: 0,
            places: BTreeMap::new(),
            unplaced_bytes: 0,
            cursor: None,
            window: Window::default(),
            reading: None,
            viewing: 0,
            warming: Warming::default(),
            flushing: Flushing::default(),
            opened,
            poison: Poison::default(),
            _lock: lock,
        };
        log.load()?;
        Ok(log)
    }

    /// What was found when it was opened.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Reads the directory: heads of all segments, the whole of the last one.
    fn load(&mut self) -> io::Result<()> {
        self.complete.clear();
        self.tapes.clear();
        self.places.clear();
        self.unplaced_bytes = 0;
        self.cursor = None;
        self.reading = None;
        self.window.clear();
        let firsts = segments(&self.dir)?;
        let marks = self.dir.join("marks");
        let mut id = None;
        if marks.exists() {
            id = Some(Head::read(&mut DiskFile::open(&marks)?, Kind::Marks, None)?.id);
        }
        if let Some(first) = firsts.first().filter(|first| **first != 1) {
            let why = format!("the log begins at record {first}: put back the files that came before this one");
            return Err(damage(&segment(&self.dir, *first), 0, &why).into());
        }
        for first in &firsts {
            let mut file = DiskFile::open(&segment(&self.dir, *first))?;
            let head = Head::read(&mut file, Kind::Segment, id)?;
            if head.first != *first {
                let why = format!("it says that it begins at record {}: was it renamed?", head.first);
                return Err(damage(file.path(), 40, &why).into());
            }
            id = Some(head.id);
            self.complete.insert(*first, file.len()?);
        }
        self.id = id.unwrap_or_else(identity);
        self.next = 1;
        if let Some((first, _)) = self.complete.pop_last() {
            let path = segment(&self.dir, first);
            let mut after = PLACES_BYTES;
            let visit = |sequence, at, _: &[u8]| {
                if at >= after {
                    self.places.insert(sequence, at);
                    after = at + PLACES_BYTES;
                }
                Ok(())
            };
            let (tape, torn) = Tape::open(&path, Kind::Segment, id, visit)?;
            self.next = tape.next();
            self.tapes.push_back(tape);
            if torn.is_some() {
                self.opened.torn = torn;
            }
        }
        self.durable = self.next - 1;
        Ok(())
    }

    /// Writes what is pending. All but the last segment are then complete and durable, and all have their names.
    fn write_out(&mut self) -> io::Result<()> {
        let written = self.flushing.wait().and_then(|()| self.try_write_out());
        self.poison.note(written)
    }

    fn try_write_out(&mut self) -> io::Result<()> {
        while let Some(front) = self.tapes.front_mut() {
            let path = segment(&self.dir, front.head().first);
            if front.path() != path {
                front.sync()?;
                front.rename(&path)?;
                disk::sync_dir(&self.dir)?;
            }
            if self.tapes.len() == 1 {
                return self.tapes[0].write();
            }
            self.tapes[0].sync()?;
            let full = self.tapes.pop_front().expect("there are two");
            self.complete.insert(full.head().first, full.end());
        }
        Ok(())
    }

    fn put(&mut self, record: &Record) -> io::Result<()> {
        let next = record.lsn().0;
        if self.tapes.is_empty() {
            self.prepare(next)?;
        }
        let durable = self.durable;
        let mut tape = self.tapes.back_mut().expect("there is one now");
        let mut end = tape.end();
        tape.push(durable, |out| codec::encode_record(record, out))?;
        if tape.end() + FRAME as u64 > self.options.segment_bytes && next > tape.head().first {
            tape.take_back(next, end)?;
            self.prepare(next)?;
            tape = self.tapes.back_mut().expect("it was just prepared");
            end = tape.end();
            tape.push(durable, |out| codec::encode_record(record, out))?;
        }
        self.unplaced_bytes += tape.end() - end;
        if self.unplaced_bytes >= PLACES_BYTES {
            self.places.insert(next, end);
            self.unplaced_bytes = 0;
        }
        Ok(())
    }

    /// Begins the segment whose first record is `first`.
    fn prepare(&mut self, first: u64) -> io::Result<()> {
        let spare = Some(self.dir.join("spare")).filter(|spare| spare.exists());
        let path = self.dir.join(format!("new-log-{first:020}"));
        let head = Head::new(Kind::Segment, self.id, first);
        self.tapes.push_back(Tape::create(&path, spare.as_deref(), head)?);
        Ok(())
    }

    fn append_all(&mut self, records: &[Record]) -> io::Result<()> {
        let old = self.tapes.len().saturating_sub(1);
        for record in records {
            self.put(record)?;
            let tape = self.tapes.back_mut().expect("a record was just put there");
            let bytes = tape.end() - tape.written();
            if bytes >= PIECE_BYTES {
                tape.reserve(0, 0)?;
                tape.write()?;
                let flushed = self.flushing.written(tape.path(), bytes);
                self.poison.note(flushed)?;
            }
        }
        let bytes = self.complete.values().sum::<u64>() + self.tapes.iter().map(Tape::end).sum::<u64>();
        if let Some(bytes_max) = self.options.bytes_max.filter(|bytes_max| bytes > *bytes_max) {
            let why = format!("{} is full at its limit of {bytes_max} bytes: raise it", self.dir.display());
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        for tape in self.tapes.iter_mut().skip(old) {
            tape.reserve(self.options.zero_ahead_bytes, self.options.segment_bytes)?;
        }
        Ok(())
    }

    /// Shows the records from `*next` on in the segment that begins at `first` to `visit`, as long as it takes them;
    /// says whether it took all.
    fn read_segment(
        &mut self,
        first: u64,
        next: &mut u64,
        visit: &mut impl FnMut(u64, &[u8]) -> Result<bool>,
    ) -> io::Result<bool> {
        if self.viewing != first {
            self.viewing = first;
            self.window.clear();
            self.reading = None;
        }
        let complete = self.complete.contains_key(&first);
        let path = segment(&self.dir, first);
        if complete && self.reading.is_none() {
            let mut file = DiskFile::open(&path)?;
            let head = Head::read(&mut file, Kind::Segment, Some(self.id))?;
            let length = file.len()?;
            self.reading = Some((file, head.salt, length));
            if let Some((following, length)) = self.complete.range(first + 1..).next()
                && *next == first
            {
                self.warming.warm(&segment(&self.dir, *following), *length);
            }
        }
        let after = self.complete.range(first + 1..).next().map(|(first, _)| *first);
        let last = self.tapes.front().map(|tape| tape.head().first).filter(|last| *last > first);
        let end = after.or(last).unwrap_or(self.next);
        let (mut sequence, mut at) = self.place(first, *next);
        let mut unplaced_from = at;
        while sequence < end {
            let found = match (&mut self.reading, self.tapes.front_mut()) {
                (Some((file, salt, length)), _) if complete => self.window.look(file, *salt, at, *length)?,
                (_, Some(tape)) => tape.look(&mut self.window, at)?,
                (_, None) => Found::Blank,
            };
            let (frame, content) = match found {
                Found::Frame(frame, content) if frame.sequence == sequence && !frame.seal => (frame, content),
                Found::Frame(..) => return Err(damage(&path, at, &format!("record {sequence} is not there")).into()),
                Found::Blank => return Err(damage(&path, at, &format!("record {sequence} is missing")).into()),
                Found::Bad(why) => return Err(damage(&path, at, &format!("record {sequence}: {why}")).into()),
            };
            if sequence >= *next {
                let taken = visit(sequence, content).map_err(|error| {
                    let why = format!("record {sequence} in {} at offset {at}: {}", path.display(), error.message());
                    Error::new(error.code(), why)
                })?;
                if !taken {
                    self.cursor = Some((sequence, at));
                    return Ok(false);
                }
                *next = sequence + 1;
            }
            sequence += 1;
            at += frame.size() as u64;
            if at - unplaced_from >= PLACES_BYTES && sequence < end {
                self.places.insert(sequence, at);
                unplaced_from = at;
            }
        }
        self.cursor = (end == self.next).then_some((sequence, at));
        Ok(true)
    }

    /// The nearest known place at or before `next` in the segment that begins at `first`.
    fn place(&self, first: u64, next: u64) -> (u64, u64) {
        let near = self.places.range(first..=next).next_back().map(|(sequence, at)| (*sequence, *at));
        // The cursor may stand at the end of the segment before.
        let cursor = self.cursor.filter(|(sequence, _)| first < *sequence && *sequence <= next);
        near.max(cursor).unwrap_or((first, HEAD))
    }

    /// Shows the records from `next` on to `visit`, as long as it takes them.
    fn walk(&mut self, mut next: u64, mut visit: impl FnMut(u64, &[u8]) -> Result<bool>) -> io::Result<()> {
        while next < self.next {
            if self.tapes.front().is_some_and(|tape| tape.head().first <= next) {
                self.write_out()?;
            }
            let last = self.tapes.front().map(|tape| tape.head().first).filter(|first| *first <= next);
            let complete = self.complete.range(..=next).next_back().map(|(first, _)| *first);
            let first = last.or(complete).expect("the first segment begins at 1");
            if !self.read_segment(first, &mut next, &mut visit)? {
                break;
            }
        }
        Ok(())
    }

    /// Sets the records after `last` aside, which decides the cut, and carries it out.
    fn cut(&mut self, last: u64) -> io::Result<()> {
        let head = Head::new(Kind::Cut, self.id, last + 1);
        let path = self.dir.join("new-cut");
        let mut tape = Tape::create(&path, None, head)?;
        if let Err(error) = self.copy_tail(last, &mut tape) {
            disk::remove(&path)?;
            if error.kind() != io::ErrorKind::StorageFull {
                return Err(error);
            }
            // No room to keep what is cut: the file then only says where.
            tape = Tape::create(&path, None, head)?;
        }
        let named = tape.sync().and_then(|()| {
            let pending = self.dir.join(format!("cut-{:020}-{:016x}{PENDING}", last + 1, head.salt));
            tape.rename(&pending)?;
            disk::sync_dir(&self.dir)?;
            self.tapes.clear();
            finish_cut(&self.dir, &pending)?;
            self.load()
        });
        self.poison.note(named)
    }

    fn copy_tail(&mut self, last: u64, tape: &mut Tape) -> io::Result<()> {
        let durable = self.durable;
        let mut failed = Ok(());
        self.walk(last + 1, |_, content| {
            failed = tape.push(durable, |out| out.extend_from_slice(content)).and_then(|()| {
                if tape.end() - tape.written() < 1 << 20 {
                    return Ok(());
                }
                tape.reserve(0, 0)?;
                tape.write()
            });
            Ok(failed.is_ok())
        })?;
        failed?;
        tape.reserve(0, 0)
    }
}

impl LogStore for FileLog {
    fn marks(&mut self) -> io::Result<Option<Marks>> {
        self.poison.check()?;
        let path = self.dir.join("marks");
        if !path.exists() {
            return Ok(None);
        }
        let mut marks = None;
        let (_, torn) = Tape::scan(&path, Kind::Marks, Some(self.id), |_, _, content| {
            marks = Some(codec::decode_marks(content)?);
            Ok(())
        })?;
        match marks.filter(|_| !torn) {
            Some(marks) => Ok(Some(marks)),
            None => Err(damage(&path, HEAD, "the marks cannot be read").into()),
        }
    }

    fn save_marks(&mut self, marks: &Marks) -> io::Result<()> {
        self.poison.check()?;
        let head = Head::new(Kind::Marks, self.id, 1);
        let mut tape = Tape::create(&self.dir.join("new-marks"), None, head)?;
        tape.push(1, |out| codec::encode_marks(marks, out))?;
        tape.reserve(0, 0)?;
        let saved = tape.sync().and_then(|()| {
            tape.rename(&self.dir.join("marks"))?;
            disk::sync_dir(&self.dir)
        });
        self.poison.note(saved)
    }

    fn bounds(&self) -> Range<Lsn> {
        Lsn(1)..Lsn(self.next)
    }

    fn read(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Vec<Record>> {
        self.poison.check()?;
        let (mut left, end) = (bytes_max as u64, self.next);
        let mut out: Vec<Record> = Vec::new();
        self.walk(from.0.max(1), |sequence, content| {
            let record = codec::decode_record(content)?;
            if record.lsn().0 != sequence {
                return Err(Error::new(Code::Corrupt, format!("it says that it is record {}", record.lsn())));
            }
            let cost = record.cost();
            let fits = out.is_empty() || cost <= left;
            if fits {
                if out.is_empty() {
                    // The others are about as large, as a rule.
                    let count = (left / cost).min(end - sequence).min(READ_ROOM as u64);
                    out.reserve(usize::try_from(count).unwrap_or(0));
                }
                left = left.saturating_sub(cost);
                out.push(record);
            }
            Ok(fits)
        })?;
        Ok(out)
    }

    fn read_encoded(&mut self, from: Lsn, bytes_max: usize) -> io::Result<Encoded> {
        self.poison.check()?;
        let first = from.0.max(1);
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        self.walk(first, |_, content| {
            let fits = ends.is_empty() || bytes.len() + content.len() <= bytes_max;
            if fits {
                if ends.is_empty() {
                    // Not before: where nothing is to be read, nothing is reserved.
                    bytes.reserve(content.len().max(bytes_max.min(READ_BYTES)));
                    ends.reserve(READ_ROOM);
                }
                bytes.extend_from_slice(content);
                ends.push(bytes.len());
            }
            Ok(fits)
        })?;
        Ok(Encoded::new(Lsn(first), bytes, ends))
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        self.poison.check()?;
        check_dense(Lsn(self.next), records)?;
        let tapes = self.tapes.len();
        let back = self.tapes.back().map(|tape| (tape.next(), tape.end()));
        let Err(error) = self.append_all(records) else {
            self.next += records.len() as u64;
            return Ok(());
        };
        for tape in self.tapes.drain(tapes..) {
            let _ = disk::remove(tape.path());
        }
        if let (Some(tape), Some((next, end))) = (self.tapes.back_mut(), back) {
            let taken_back = tape.take_back(next, end);
            self.poison.note(taken_back)?;
        }
        self.places.split_off(&self.next);
        if error.kind() == io::ErrorKind::StorageFull && self.poison.check().is_ok() {
            let why = format!("{error}; nothing was appended, and it can be tried again when there is room");
            return Err(io::Error::new(error.kind(), why));
        }
        Err(error)
    }

    fn sync(&mut self) -> io::Result<Lsn> {
        self.poison.check()?;
        self.write_out()?;
        if let Some(tape) = self.tapes.front_mut() {
            let synced = tape.sync();
            self.poison.note(synced)?;
        }
        self.durable = self.next - 1;
        Ok(Lsn(self.durable))
    }

    fn truncate_after(&mut self, last: Lsn) -> io::Result<()> {
        self.sync()?;
        if last.next().0 >= self.next { Ok(()) } else { self.cut(last.0) }
    }
}

impl Drop for FileLog {
    fn drop(&mut self) {
        let flushed = self.flushing.wait();
        let _ = self.poison.note(flushed);
        if self.poison.check().is_ok() && self.tapes.len() == 1 {
            // Only a help for the next opening; nothing is lost without it.
            let _ = self.tapes[0].seal();
        }
    }
}
