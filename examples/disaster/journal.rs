//! What a client writes down of its own life, and what the checker believes: one line of text an event, in order.
//!
//! ```text
//! W serial at append KEY                       about to be issued
//! W serial at cas KEY EXPECTED
//! W serial at put KEY LENGTH CRC
//! A serial at latency epoch lsn index chain version done      acknowledged
//! X serial at WHY                              ended otherwise: its outcome is unknown, or it was superseded
//! Q number at KEY                              about to be asked
//! R number at index chain version length crc   answered
//! N number at WHY                              not answered
//! S serial at                                  acknowledged before, and given back: it did not survive
//! B epoch at lsn                               told that what was observed up to there did not survive
//! E at TEXT                                    an event of the library
//! . acknowledged                               the last line: without it the journal is not whole
//! ```
//!
//! Times are microseconds, comparable between the processes of a run; epoch and LSN are 0 where there was no tag.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::str::{FromStr, SplitN};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::ledger::{Act, Command, Reading, Reply};

/// Microseconds since the Unix epoch that never go back within a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    at_start: u64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), at_start: micros(since) }
    }

    pub(crate) fn now(&self) -> u64 {
        self.at_start + micros(self.started.elapsed())
    }
}

/// A duration in whole microseconds.
pub(crate) fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What a command was to do, with the value's identity in place of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Append,
    CompareAndSet { expected: u64 },
    Put { length: u64, crc: u32 },
}

/// An event in a client's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Issued { serial: u64, at: u64, key: String, what: What },
    Acknowledged { serial: u64, at: u64, latency: u64, epoch: u64, lsn: u64, reply: Reply },
    Ended { serial: u64, at: u64, why: String },
    Asked { number: u64, at: u64, key: String },
    Answered { number: u64, at: u64, index: u64, chain: u64, version: u64, length: u64, crc: u32 },
    Unanswered { number: u64, at: u64, why: String },
    Returned { serial: u64, at: u64 },
    RolledBack { epoch: u64, at: u64, observed: u64 },
    Event { at: u64, text: String },
}

impl Line {
    pub(crate) fn issued(at: u64, command: &Command) -> Line {
        let what = match &command.act {
            Act::Append => What::Append,
            Act::CompareAndSet { expected } => What::CompareAndSet { expected: *expected },
            Act::Put { value } => What::Put { length: value.len() as u64, crc: crc32fast::hash(value) },
        };
        Line::Issued { serial: command.stamp.serial, at, key: command.key.clone(), what }
    }

    /// Sums up the value that came, if it came: what was read is what the reader saw, not what it was told.
    pub(crate) fn answered(number: u64, at: u64, reading: &Reading) -> Line {
        let (length, crc) = match &reading.value {
            Some(value) => (value.len() as u64, crc32fast::hash(value)),
            None => (reading.length, reading.crc),
        };
        let Reading { index, chain, version, .. } = *reading;
        Line::Answered { number, at, index, chain, version, length, crc }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flat = |text: &str| text.replace('\n', " ");
        match self {
            Line::Issued { serial, at, key, what } => match what {
                What::Append => write!(f, "W {serial} {at} append {key}"),
                What::CompareAndSet { expected } => write!(f, "W {serial} {at} cas {key} {expected}"),
                What::Put { length, crc } => write!(f, "W {serial} {at} put {key} {length} {crc}"),
            },
            Line::Acknowledged { serial, at, latency, epoch, lsn, reply } => {
                let Reply { index, chain, version, done } = reply;
                let done = u8::from(*done);
                write!(f, "A {serial} {at} {latency} {epoch} {lsn} {index} {chain} {version} {done}")
            }
            Line::Ended { serial, at, why } => write!(f, "X {serial} {at} {}", flat(why)),
            Line::Asked { number, at, key } => write!(f, "Q {number} {at} {key}"),
            Line::Answered { number, at, index, chain, version, length, crc } => {
                write!(f, "R {number} {at} {index} {chain} {version} {length} {crc}")
            }
            Line::Unanswered { number, at, why } => write!(f, "N {number} {at} {}", flat(why)),
            Line::Returned { serial, at } => write!(f, "S {serial} {at}"),
            Line::RolledBack { epoch, at, observed } => write!(f, "B {epoch} {at} {observed}"),
            Line::Event { at, text } => write!(f, "E {at} {}", flat(text)),
        }
    }
}

/// The words of a line, taken one by one.
struct Words<'a>(SplitN<'a, char>);

impl<'a> Words<'a> {
    fn text(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn take<T: FromStr>(&mut self) -> Option<T> {
        self.0.next()?.parse().ok()
    }
}

fn parse(line: &str) -> Option<Line> {
    let limit = match line.as_bytes().first()? {
        b'E' => 3,
        b'X' | b'N' | b'Q' => 4,
        _ => usize::MAX,
    };
    let mut words = Words(line.splitn(limit, ' '));
    let kind = words.text()?;
    let first: u64 = words.take()?;
    if kind == "E" {
        return Some(Line::Event { at: first, text: words.text()?.into() });
    }
    let at: u64 = words.take()?;
    Some(match kind {
        "W" => {
            let act = words.text()?;
            let key = words.text()?.into();
            let what = match act {
                "append" => What::Append,
                "cas" => What::CompareAndSet { expected: words.take()? },
                "put" => What::Put { length: words.take()?, crc: words.take()? },
                _ => return None,
            };
            Line::Issued { serial: first, at, key, what }
        }
        "A" => {
            let (latency, epoch, lsn) = (words.take()?, words.take()?, words.take()?);
            let (index, chain, version) = (words.take()?, words.take()?, words.take()?);
            let reply = Reply { index, chain, version, done: words.take::<u8>()? == 1 };
            Line::Acknowledged { serial: first, at, latency, epoch, lsn, reply }
        }
        "X" => Line::Ended { serial: first, at, why: words.text()?.into() },
        "Q" => Line::Asked { number: first, at, key: words.text()?.into() },
        "R" => {
            let (index, chain, version) = (words.take()?, words.take()?, words.take()?);
            let (length, crc) = (words.take()?, words.take()?);
            Line::Answered { number: first, at, index, chain, version, length, crc }
        }
        "S" => Line::Returned { serial: first, at },
        "B" => Line::RolledBack { epoch: first, at, observed: words.take()? },
        "N" => Line::Unanswered { number: first, at, why: words.text()?.into() },
        _ => return None,
    })
}

/// A client's side: writes lines.
pub(crate) struct Scribe {
    out: BufWriter<File>,
    acknowledged: u64,
    careful: bool,
}

impl Scribe {
    /// With `careful` a line is the system's before [`note`](Scribe::note) returns: what follows from it may be done
    /// then, though the process be killed the next moment.
    pub(crate) fn create(path: &Path, careful: bool) -> io::Result<Self> {
        Ok(Self { out: BufWriter::with_capacity(256 << 10, File::create(path)?), acknowledged: 0, careful })
    }

    pub(crate) fn note(&mut self, line: &Line) -> io::Result<()> {
        self.acknowledged += u64::from(matches!(line, Line::Acknowledged { .. }));
        writeln!(self.out, "{line}")?;
        if self.careful { self.out.flush() } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Writes the last line.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        writeln!(self.out, ". {}", self.acknowledged)?;
        self.out.flush()
    }
}

/// The checker's side: a client's whole journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    pub(crate) client: u64,
    pub(crate) lines: Vec<Line>,
}

impl Journal {
    /// Reads a journal; one that is damaged or lacks its last line is an error.
    pub(crate) fn read(client: u64, path: &Path) -> io::Result<Journal> {
        Journal::parse(client, &std::fs::read_to_string(path)?).map_err(|why| wrong(path, &why))
    }

    /// Reads the journal of a process that was killed: it ends anywhere, even in the middle of a line.
    pub(crate) fn read_torn(client: u64, path: &Path) -> io::Result<Journal> {
        let text = std::fs::read_to_string(path)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let acknowledged = whole.lines().filter(|line| line.starts_with('A')).count();
        Journal::parse(client, &format!("{whole}. {acknowledged}\n")).map_err(|why| wrong(path, &why))
    }

    pub(crate) fn parse(client: u64, text: &str) -> Result<Journal, String> {
        let mut journal = Journal { client, lines: Vec::new() };
        let mut acknowledged = 0;
        for (at, line) in text.lines().enumerate() {
            if let Some(count) = line.strip_prefix(". ") {
                return match count.parse::<u64>() {
                    Ok(count) if count == acknowledged => Ok(journal),
                    _ => Err(format!("it says {count} acknowledgements at the end and has {acknowledged}")),
                };
            }
            let line = parse(line).ok_or_else(|| format!("line {} makes no sense: {line}", at + 1))?;
            acknowledged += u64::from(matches!(line, Line::Acknowledged { .. }));
            journal.lines.push(line);
        }
        Err("the last line is missing: the client did not come to its end".into())
    }
}

fn wrong(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let reply = Reply { index: 5, chain: u64::MAX, version: 2, done: false };
        vec![
            Line::Issued { serial: 1, at: 10, key: "list/1".into(), what: What::Append },
            Line::Issued { serial: 2, at: 11, key: "counter/1".into(), what: What::CompareAndSet { expected: 4 } },
            Line::Issued { serial: 3, at: 12, key: "blob/1/2".into(), what: What::Put { length: 4096, crc: 77 } },
            Line::Acknowledged { serial: 1, at: 20, latency: 10, epoch: 1, lsn: 9, reply },
            Line::Ended { serial: 2, at: 21, why: "superseded by a recovery".into() },
            Line::Asked { number: 1, at: 22, key: "list/1".into() },
            Line::Answered { number: 1, at: 23, index: 5, chain: 6, version: 7, length: 8, crc: 9 },
            Line::Unanswered { number: 2, at: 24, why: "Deadline: it took too long".into() },
            Line::Returned { serial: 1, at: 25 },
            Line::RolledBack { epoch: 1, at: 25, observed: 9 },
            Line::Event { at: 25, text: "attached in 2@1".into() },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut scribe = Scribe::create(&path, false).expect("a file");
        for line in lines() {
            scribe.note(&line).expect("a write");
        }
        assert_eq!(Journal::read_torn(3, &path).expect("a journal").lines, []);
        scribe.finish().expect("a write");
        assert_eq!(Journal::read(3, &path).expect("a journal").lines, lines());
    }

    #[test]
    fn a_careful_scribe_needs_no_farewell() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut scribe = Scribe::create(&path, true).expect("a file");
        for (count, line) in (1..).zip(lines()) {
            scribe.note(&line).expect("a write");
            assert_eq!(Journal::read_torn(3, &path).expect("a journal").lines, lines()[..count]);
        }
    }

    #[test]
    fn a_journal_that_is_not_whole_is_refused() {
        let text: String = lines().iter().map(|line| format!("{line}\n")).collect();
        assert!(Journal::parse(0, &format!("{text}. 1\n")).is_ok());
        assert!(Journal::parse(0, &text).is_err(), "no last line");
        assert!(Journal::parse(0, &format!("{text}. 2\n")).is_err(), "an acknowledgement is missing");
        assert!(Journal::parse(0, &text.replacen("A 1", "A", 1)).is_err(), "a damaged line");
    }

    #[test]
    fn the_journal_of_a_killed_process_ends_anywhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let text: String = lines().iter().map(|line| format!("{line}\n")).collect();
        for end in [0, 10, text.len() - 5, text.len()] {
            std::fs::write(&path, &text[..end]).expect("a file");
            let whole = text[..end].matches('\n').count();
            assert_eq!(Journal::read_torn(3, &path).expect("a journal").lines, lines()[..whole]);
        }
    }

    #[test]
    fn a_reader_believes_its_own_eyes() {
        let value = Some(bytes::Bytes::from_static(b"damaged"));
        let reading = Reading { index: 1, chain: 2, version: 3, length: 99, crc: 99, value };
        let Line::Answered { length, crc, .. } = Line::answered(1, 2, &reading) else { panic!("an answer") };
        assert_eq!((length, crc), (7, crc32fast::hash(b"damaged")));
    }
}
