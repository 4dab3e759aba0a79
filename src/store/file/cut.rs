//! How a log loses its tail, whenever the power fails.
//!
//! [`FileLog`](super::FileLog) first copies the tail into a `cut-….pending` file. Its rename is the moment of the cut:
//! from then on the directory *means* the shorter log, and [`finish_cut`] makes it so, now or at the next opening: it
//! removes the segments behind the cut and replaces the one it goes through by a copy with a new salt, in which nothing
//! of the old tail can be mistaken for a record. Then the file loses its `.pending`.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::{self, DiskFile};
use super::frame::{Found, HEAD, Head, Kind, Window, damage};
use super::names;
use super::tape::Tape;

/// The end of the name of a cut that is decided and not carried out.
pub(super) const PENDING: &str = ".pending";

/// The name of the segment that begins at `first`.
pub(super) fn segment(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("log-{first:020}"))
}

/// The first LSNs of the segments in a directory, in order.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let names = names(dir)?;
    let numbers = names.iter().filter_map(|name| name.strip_prefix("log-"));
    let mut firsts: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
    firsts.sort_unstable();
    Ok(firsts)
}

/// Makes the log end where the file `pending` says. May be interrupted and repeated at will.
pub(super) fn finish_cut(dir: &Path, pending: &Path) -> io::Result<()> {
    let head = Head::read(&mut DiskFile::open(pending)?, Kind::Cut, None)?;
    let last = head.first - 1;
    let firsts = segments(dir)?;
    for first in firsts.iter().rev().filter(|first| **first > last) {
        let (path, spare) = (segment(dir, *first), dir.join("spare"));
        if spare.exists() { disk::remove(&path)? } else { disk::rename(&path, &spare)? }
    }
    if let Some(first) = firsts.iter().rev().find(|first| **first <= last) {
        copy_segment(dir, *first, last, head.id)?;
    }
    disk::sync_dir(dir)?;
    let name = pending.to_string_lossy();
    disk::rename(pending, Path::new(name.strip_suffix(PENDING).unwrap_or(&name)))?;
    disk::sync_dir(dir)
}

/// Replaces the segment that begins at `first` by one that ends with `last`.
fn copy_segment(dir: &Path, first: u64, last: u64, id: u128) -> io::Result<()> {
    let path = segment(dir, first);
    let mut old = DiskFile::open(&path)?;
    let head = Head::read(&mut old, Kind::Segment, Some(id))?;
    let length = old.len()?;
    let new = Head::new(Kind::Segment, id, first);
    let mut tape = Tape::create(&dir.join(format!("new-log-{first:020}")), None, new)?;
    let mut window = Window::default();
    let mut at = HEAD;
    while tape.next() <= last {
        match window.look(&mut old, head.salt, at, length)? {
            Found::Frame(frame, content) if frame.sequence == tape.next() && !frame.seal => {
                tape.push(last, |out| out.extend_from_slice(content))?;
                at += frame.size() as u64;
            }
            _ => return Err(damage(&path, at, &format!("record {} cannot be read", tape.next())).into()),
        }
        if tape.end() - tape.written() >= 1 << 20 {
            tape.write()?;
        }
    }
    tape.sync()?;
    tape.rename(&path)
}
