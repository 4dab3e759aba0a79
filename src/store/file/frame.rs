//! The form of the files: a head that says what the file is, then frames.
//!
//! ```text
//! head, 64 bytes    magic 8 | kind 4 | version 2 | 0 2 | identity 16 | salt 8 | first 8 | 0 12 | crc 4
//! frame, 32 bytes   crc 4 | length 4 | sequence 8 | durable 8 | content's crc 4 | kind 1 | 0 3
//!       + content, padded with zeros to a multiple of 8
//! ```
//!
//! All integers are little-endian. A frame's first CRC covers the rest of its 32 bytes *and the salt* of its file, 64
//! random bits made anew each time a file is begun: whatever else lies on the same blocks, a frame of the file's
//! former life or bytes a client chose, is no frame of this file. Its second CRC covers content and padding. Every
//! byte of a frame is covered.
//!
//! `durable` is the last sequence number that was on the disk for certain when the frame was written. That is what
//! tells a write that was torn by a crash from damage: if frame 7 cannot be read and a later frame says that 7 was
//! durable, then something that was promised is gone, and nothing may be cut. A *seal*, a frame without content that
//! a clean close leaves at the end, says so of everything before it; the next write goes over it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::Path;

use super::disk::DiskFile;
use crate::codec;
use crate::error::{Code, Error};

/// Where the first frame begins.
pub(super) const HEAD: u64 = HEAD_SIZE as u64;

const HEAD_SIZE: usize = 64;

/// What a frame takes beside its content and padding. So many zero bytes follow the last frame.
pub(super) const FRAME: usize = 32;

const MAGIC: &[u8; 8] = b"tagalong";
const RECORD: u8 = 1;
const SEAL: u8 = 2;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Segment,
    Cut,
    Marks,
    Cache,
}

impl Kind {
    fn code(self) -> &'static [u8; 4] {
        match self {
            Self::Segment => b"LOG\0",
            Self::Cut => b"CUT\0",
            Self::Marks => b"MARK",
            Self::Cache => b"CACH",
        }
    }
}

/// The head of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// Of the log or cache; the same in all its files.
    pub(super) id: u128,
    /// Of this file.
    pub(super) salt: u64,
    /// The sequence number of the first frame.
    pub(super) first: u64,
}

impl Head {
    pub(super) fn new(kind: Kind, id: u128, first: u64) -> Head {
        Head { kind, id, salt: random(), first }
    }

    pub(super) fn encode(&self) -> [u8; HEAD_SIZE] {
        let mut out = [0; HEAD_SIZE];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(self.kind.code());
        out[12..14].copy_from_slice(&codec::VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.id.to_le_bytes());
        out[32..40].copy_from_slice(&self.salt.to_le_bytes());
        out[40..48].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks the head of a file that is to be of `kind`, and of the log or cache `id` if that is known.
    pub(super) fn read(file: &mut DiskFile, kind: Kind, id: Option<u128>) -> io::Result<Head> {
        let mut bytes = [0; HEAD_SIZE];
        let length = file.read_at(0, &mut bytes)?;
        if length < bytes.len() || bytes[..8] != *MAGIC {
            return Err(damage(file.path(), 0, "it does not begin like a file of tagalong").into());
        }
        let version = u16::from_le_bytes(field(&bytes, 12));
        if crc32fast::hash(&bytes[..60]) != u32::from_le_bytes(field(&bytes, 60)) {
            return Err(damage(file.path(), 0, "the checksum of its head does not match").into());
        }
        if version != codec::VERSION {
            let why = format!(
                "{} has format version {version} and this build reads version {}: use a build that reads it",
                file.path().display(),
                codec::VERSION
            );
            return Err(Error::new(Code::WrongVersion, why).into());
        }
        if bytes[8..12] != *kind.code() {
            return Err(damage(file.path(), 8, "it is a file of another kind: was it renamed?").into());
        }
        let head = Head {
            kind,
            id: u128::from_le_bytes(field(&bytes, 16)),
            salt: u64::from_le_bytes(field(&bytes, 32)),
            first: u64::from_le_bytes(field(&bytes, 40)),
        };
        if head.first == 0 || head.first > u64::MAX / 2 {
            return Err(damage(file.path(), 40, "its first record has an impossible number").into());
        }
        if id.is_some_and(|id| id != head.id) {
            let why = "it belongs to another log than the other files here: put back the file that was in its place";
            return Err(damage(file.path(), 16, why).into());
        }
        Ok(head)
    }
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) sequence: u64,
    pub(super) durable: u64,
    pub(super) seal: bool,
    length: u32,
    content_crc: u32,
}

impl Frame {
    /// Bytes of content.
    pub(super) fn length(&self) -> usize {
        self.length as usize
    }

    /// Bytes of the whole frame.
    pub(super) fn size(&self) -> usize {
        FRAME + self.length().next_multiple_of(8)
    }

    /// Reads the fixed part of a frame of the file with this salt.
    fn parse(bytes: &[u8; FRAME], salt: u64) -> Option<Frame> {
        let kind = bytes[28];
        if !matches!(kind, RECORD | SEAL) || bytes[29..] != [0; 3] {
            return None;
        }
        if u32::from_le_bytes(field(bytes, 0)) != salted(salt, &field(bytes, 4)) {
            return None;
        }
        Some(Frame {
            sequence: u64::from_le_bytes(field(bytes, 8)),
            durable: u64::from_le_bytes(field(bytes, 16)),
            seal: kind == SEAL,
            length: u32::from_le_bytes(field(bytes, 4)),
            content_crc: u32::from_le_bytes(field(bytes, 24)),
        })
    }
}

/// Appends a frame with what `encode` writes, or takes back what it wrote if that is too long for a frame.
pub(super) fn put_frame(
    out: &mut Vec<u8>,
    salt: u64,
    sequence: u64,
    durable: u64,
    encode: impl FnOnce(&mut Vec<u8>),
) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    encode(out);
    let length = out.len() - start - FRAME;
    let Ok(length) = u32::try_from(length) else {
        out.truncate(start);
        let why = format!("{length} bytes do not fit into a record: the limit is 4 GiB");
        return Err(Error::new(Code::InvalidArgument, why).into());
    };
    out.resize(start + FRAME + (length as usize).next_multiple_of(8), 0);
    let content_crc = crc32fast::hash(&out[start + FRAME..]);
    finish(&mut out[start..start + FRAME], salt, RECORD, length, sequence, durable, content_crc);
    Ok(())
}

/// A seal: `next` is the number the next frame will have.
pub(super) fn seal(salt: u64, next: u64) -> [u8; FRAME] {
    let mut out = [0; FRAME];
    finish(&mut out, salt, SEAL, 0, next, next - 1, crc32fast::hash(&[]));
    out
}

fn finish(out: &mut [u8], salt: u64, kind: u8, length: u32, sequence: u64, durable: u64, content_crc: u32) {
    out[4..8].copy_from_slice(&length.to_le_bytes());
    out[8..16].copy_from_slice(&sequence.to_le_bytes());
    out[16..24].copy_from_slice(&durable.to_le_bytes());
    out[24..28].copy_from_slice(&content_crc.to_le_bytes());
    out[28] = kind;
    let crc = salted(salt, &field(out, 4));
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The checksum of a salt and the rest of a frame's fixed part.
fn salted(salt: u64, bytes: &[u8; FRAME - 4]) -> u32 {
    let mut all = [0; FRAME + 4];
    all[..8].copy_from_slice(&salt.to_le_bytes());
    all[8..].copy_from_slice(bytes);
    crc32fast::hash(&all)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// 64 bits that no file before had. The standard library seeds its hash maps from the operating system.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The error for a damaged file.
pub(super) fn damage(path: &Path, at: u64, why: &str) -> Error {
    let path = path.display();
    Error::new(Code::Corrupt, format!("{path} is damaged at offset {at}: {why}. Nothing was changed"))
}

/// What lies at an offset of a file.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// A whole frame, with its content.
    Frame(Frame, &'a [u8]),
    /// Zeros, or the end of the file.
    Blank,
    /// Something that is no frame of this file, or not a whole one; says what is wrong.
    Bad(&'static str),
}

/// Reads frames of one file through a window on it.
#[derive(Debug, Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    start: u64,
}

impl Window {
    const AHEAD: usize = 256 << 10;

    /// Forgets what was read.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// What lies at `at`, in the part of the file before `limit`.
    pub(super) fn look(&mut self, file: &mut DiskFile, salt: u64, at: u64, limit: u64) -> io::Result<Found<'_>> {
        let frame = {
            let bytes = self.get(file, at, FRAME, limit)?;
            let Some(bytes) = bytes.first_chunk::<FRAME>() else {
                let blank = bytes.iter().all(|byte| *byte == 0);
                return Ok(if blank { Found::Blank } else { Found::Bad("a record ends too early") });
            };
            if *bytes == [0; FRAME] {
                return Ok(Found::Blank);
            }
            Frame::parse(bytes, salt)
        };
        let Some(frame) = frame else { return Ok(Found::Bad("there is no record of this file")) };
        if frame.size() as u64 > limit - at {
            return Ok(Found::Bad("a record ends too early"));
        }
        let content = self.get(file, at + FRAME as u64, frame.size() - FRAME, limit)?;
        if content.len() < frame.size() - FRAME {
            return Ok(Found::Bad("a record ends too early"));
        }
        if crc32fast::hash(content) != frame.content_crc {
            return Ok(Found::Bad("the checksum of a record does not match"));
        }
        Ok(Found::Frame(frame, &content[..frame.length()]))
    }

    /// The frames of this file that begin at or after `at` (a multiple of 8): their fixed parts alone are checked.
    /// Calls `found` for each, until it says that it has seen enough.
    pub(super) fn search(
        &mut self,
        file: &mut DiskFile,
        salt: u64,
        mut at: u64,
        limit: u64,
        mut found: impl FnMut(u64, Frame) -> bool,
    ) -> io::Result<()> {
        while at < limit {
            let bytes = self.get(file, at, Self::AHEAD, limit)?;
            for offset in (0..bytes.len().saturating_sub(FRAME - 1)).step_by(8) {
                let head = bytes[offset..].first_chunk::<FRAME>().expect("the range ends before");
                if let Some(frame) = Frame::parse(head, salt)
                    && found(at + offset as u64, frame)
                {
                    return Ok(());
                }
            }
            if bytes.len() < Self::AHEAD {
                return Ok(());
            }
            at += (Self::AHEAD - FRAME + 8) as u64;
        }
        Ok(())
    }

    /// The bytes at `at`: `length` of them, or fewer if `limit` or the end of the file comes first.
    fn get(&mut self, file: &mut DiskFile, at: u64, length: usize, limit: u64) -> io::Result<&[u8]> {
        let left = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
        let length = length.min(left);
        let inside = at.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        let inside = inside.filter(|skip| skip.checked_add(length).is_some_and(|end| end <= self.bytes.len()));
        let skip = match inside {
            Some(skip) => skip,
            None => {
                if self.bytes.capacity() > 4 * Self::AHEAD {
                    // A large record is not remembered for ever.
                    self.bytes = Vec::new();
                }
                self.bytes.resize(length.max(Self::AHEAD.min(left)), 0);
                self.start = at;
                let read = match file.read_at(at, &mut self.bytes) {
                    Ok(read) => read,
                    Err(error) => {
                        self.bytes.clear();
                        return Err(error);
                    }
                };
                self.bytes.truncate(read);
                0
            }
        };
        let end = (skip + length).min(self.bytes.len());
        Ok(&self.bytes[skip..end])
    }
}
