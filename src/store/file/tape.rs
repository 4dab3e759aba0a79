//! An append-only file of frames: what a log's segments, the files of what was cut, and a client's cache have in
//! common.
//!
//! Frames are put into memory, where they can be taken back, then [written](Tape::write), then [synced](Tape::sync).
//! Space is [reserved](Tape::reserve) by writing zeros ahead: that is where a full disk shows, before anything is
//! promised, and a sync into blocks that are there already is quicker. So many zeros as a frame's fixed part takes
//! always follow the last frame, lest remains of the file's former life look like a torn write.
//!
//! [`Tape::open`] finds the end. Behind the last frame of a file that was not closed cleanly lies whatever the crash
//! left of the last write: it is cut off, for good, before anything is appended: a frame in there could otherwise
//! come back as the successor of a new one of the right length.

use std::io;
use std::path::Path;

use super::TornTail;
use super::disk::{self, DiskFile};
use super::frame::{FRAME, Found, Frame, HEAD, Head, Kind, Window, damage, put_frame, seal};

/// From so many bytes on, records are written at once, and no zeros before them.
const BULK: usize = if cfg!(test) { 300 } else { 64 << 10 };

/// See the module.
#[derive(Debug)]
pub(super) struct Tape {
    file: DiskFile,
    head: Head,
    /// The number of the next frame.
    next: u64,
    /// Where `pending` goes.
    written: u64,
    pending: Vec<u8>,
    /// Up to here the file has blocks.
    allocated: u64,
    /// Whether something was written and not synced.
    dirty: bool,
}

impl Tape {
    /// Begins a new file, or a new life of the file `spare`, under the name `path`. Nothing of it is
    /// durable yet. If it fails, nothing is left.
    pub(super) fn create(path: &Path, spare: Option<&Path>, head: Head) -> io::Result<Tape> {
        let begin = || {
            let mut file = match spare {
                Some(spare) => {
                    let mut file = DiskFile::open(spare)?;
                    file.rename(path)?;
                    file
                }
                None => DiskFile::create(path)?,
            };
            file.write_at(0, &head.encode())?;
            // Without it the first frame's place may still hold one of the file's former life.
            file.write_at(HEAD, &[0; FRAME])?;
            let (next, allocated) = (head.first, file.len()?);
            Ok(Tape { file, head, next, written: HEAD, pending: Vec::new(), allocated, dirty: true })
        };
        begin().inspect_err(|_| {
            let _ = disk::remove(path);
        })
    }

    /// Opens a file, shows every frame to `visit` with its number and offset, finds the end, and cuts off a torn tail.
    ///
    /// # Errors
    /// If it cannot be read or is damaged, or of `visit`. Nothing was changed then.
    pub(super) fn open(
        path: &Path,
        kind: Kind,
        id: Option<u128>,
        visit: impl FnMut(u64, u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<(Tape, Option<TornTail>)> {
        let (mut tape, lost) = Self::scan(path, kind, id, visit)?;
        let torn = lost.then(|| {
            let bytes = tape.allocated - tape.written;
            TornTail { file: path.to_owned(), offset: tape.written, bytes }
        });
        if torn.is_some() {
            tape.file.set_len(tape.written)?;
            tape.allocated = tape.written;
        }
        // What was read may be in the operating system's memory alone.
        tape.file.sync()?;
        Ok((tape, torn))
    }

    /// As [`open`](Tape::open), but changes nothing; says whether there is a torn tail.
    pub(super) fn scan(
        path: &Path,
        kind: Kind,
        id: Option<u128>,
        mut visit: impl FnMut(u64, u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<(Tape, bool)> {
        let mut file = DiskFile::open(path)?;
        let head = Head::read(&mut file, kind, id)?;
        let length = file.len()?;
        let mut window = Window::default();
        let (mut at, mut next) = (HEAD, head.first);
        let (bad, sealed) = loop {
            match window.look(&mut file, head.salt, at, length)? {
                Found::Frame(frame, _) if frame.sequence != next => {
                    return Err(
                        damage(path, at, &format!("record {} is where {next} should be", frame.sequence)).into()
                    );
                }
                Found::Frame(Frame { seal: true, .. }, _) => break (None, true),
                Found::Frame(frame, content) => {
                    visit(next, at, content)?;
                    at += frame.size() as u64;
                    next += 1;
                }
                Found::Blank => break (None, false),
                Found::Bad(why) => break (Some(why), false),
            }
        };
        let mut lost = bad.is_some();
        let mut proof = None;
        let after = at + if sealed { FRAME as u64 } else { 0 };
        window.search(&mut file, head.salt, after, length, |place, frame| {
            lost = true;
            proof = (frame.durable >= next).then_some((place, frame));
            proof.is_some()
        })?;
        if let Some((place, frame)) = proof {
            let what = if frame.seal { "the end" } else { "the record" };
            let why = bad.unwrap_or("there are zeros instead of a record");
            let why = format!("{why}, though {what} at offset {place} says that record {next} was durable");
            return Err(damage(path, at, &why).into());
        }
        let tape = Tape { file, head, next, written: at, pending: Vec::new(), allocated: length, dirty: false };
        Ok((tape, lost))
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// The number of the next frame.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Where the next frame goes.
    pub(super) fn end(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    /// Where the frames that are in the file end.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(super) fn rename(&mut self, to: &Path) -> io::Result<()> {
        self.file.rename(to)
    }

    /// Puts the next frame into memory.
    pub(super) fn push(&mut self, durable: u64, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        put_frame(&mut self.pending, self.head.salt, self.next, durable, encode)?;
        self.next += 1;
        Ok(())
    }

    /// Takes back what was pushed since `next` and `end` were as given here.
    ///
    /// # Errors
    /// If it was written already, and cannot be cut off: it may be there when the file is opened again.
    pub(super) fn take_back(&mut self, next: u64, end: u64) -> io::Result<()> {
        self.next = next;
        let keep = end.checked_sub(self.written).and_then(|keep| usize::try_from(keep).ok());
        self.pending.truncate(keep.unwrap_or(0));
        if end < self.written { self.cut(end) } else { Ok(()) }
    }

    /// Leaves nothing behind `end`.
    fn cut(&mut self, end: u64) -> io::Result<()> {
        self.file.set_len(end)?;
        (self.written, self.allocated) = (end, end);
        Ok(())
    }

    /// Leaves nothing behind what is written but zeros up to here, where there was room before: it is kept for what is pending.
    fn blank(&mut self, upto: u64) -> io::Result<()> {
        self.file.set_len(upto)?;
        self.allocated = self.written;
        self.extend(upto)
    }

    /// Makes sure that what is pending fits: extends the file by zeros, `ahead` bytes more than needed as long as
    /// that stays below `most`, or writes it.
    pub(super) fn reserve(&mut self, ahead: u64, most: u64) -> io::Result<()> {
        let need = self.end() + FRAME as u64;
        if need <= self.allocated {
            return Ok(());
        }
        // Zeros save a sync the change of the file's size; next to so many bytes of records they would cost more.
        if self.pending.len() >= BULK {
            let (length, allocated) = (self.pending.len(), self.allocated);
            return self.write().or_else(|error| {
                self.pending.truncate(length);
                self.blank(allocated).and(Err(error))
            });
        }
        let wish = need.saturating_add(ahead).min(most.max(need));
        if wish > need {
            if self.extend(wish).is_ok() {
                return Ok(());
            }
            // What little room the disk has is left to those who need it.
            if self.allocated > need {
                self.file.set_len(need)?;
                self.allocated = need;
            }
        }
        self.extend(need)
    }

    fn extend(&mut self, upto: u64) -> io::Result<()> {
        const ZEROS: &[u8] = &[0; 1 << 16];
        while self.allocated < upto {
            let length = ZEROS.len().min(usize::try_from(upto - self.allocated).unwrap_or(usize::MAX));
            self.file.write_at(self.allocated, &ZEROS[..length])?;
            self.allocated += length as u64;
            self.dirty = true;
        }
        Ok(())
    }

    /// Writes what is pending, which [`reserve`](Tape::reserve) made room for.
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let length = self.pending.len();
        self.pending.resize(length + FRAME, 0);
        self.dirty = true;
        self.file.write_at(self.written, &self.pending)?;
        self.written += length as u64;
        self.allocated = self.allocated.max(self.written + FRAME as u64);
        self.pending.clear();
        // A burst does not keep its memory.
        self.pending.shrink_to(1 << 20);
        Ok(())
    }

    /// Writes what is pending and makes all of it durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.write()?;
        if self.dirty {
            self.file.sync()?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Leaves the mark of a clean close behind the last frame, if everything is durable.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        if self.dirty || self.has_pending() || self.next == self.head.first {
            return Ok(());
        }
        self.file.write_at(self.written, &seal(self.head.salt, self.next))
    }

    /// What lies at `at`, among what is written.
    pub(super) fn look<'a>(&mut self, window: &'a mut Window, at: u64) -> io::Result<Found<'a>> {
        window.look(&mut self.file, self.head.salt, at, self.written)
    }
}
