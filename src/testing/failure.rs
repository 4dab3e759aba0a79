//! What was found: the promise that does not hold, what was seen, and the shortest list of commands that shows it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

/// A promise that a test of this module checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Check {
    /// Every command gets exactly one reply, and other commands' replies are left alone.
    Replies,
    /// Two instances answer the same commands alike, and are in the same state then.
    Determinism,
    /// Equal states write equal snapshots. The trait does not ask for it, but states are compared by their snapshots, here
    /// and wherever one wants to know whether two nodes agree: sort what has no order before it is written.
    EqualSnapshots,
    /// Replies and state do not depend on how commands are batched.
    Batches,
    /// Queries, and the taking of a snapshot, change nothing.
    Reads,
    /// A snapshot is the state: an instance that was restored from it goes on like the one that wrote it.
    Snapshot,
    /// A damaged snapshot is an error that changes nothing, or gives the same state all the same; never a panic.
    DamagedSnapshot,
    /// Bytes that are no command or query are answered: they come from clients, and no client may stop a node.
    Nonsense,
    /// What the state machine calls independent of a lost command has the same reply and the same effect without it.
    Independence,
    /// The state does not claim to survive a restart by itself: this version runs only state that the log rebuilds.
    Durable,
    /// Through disasters: every node answers a command alike, also when it is rebuilt.
    Diverged,
    /// Through disasters: what was acknowledged is in the surviving log, in its place, exactly once.
    Lost,
    /// Through disasters: the survivors' states are what a new instance makes of the surviving log.
    State,
    /// Through disasters: no node or client stops.
    Stopped,
    /// Through disasters: everything comes to rest once nothing fails any more.
    Unfinished,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replies => "every command gets one reply",
            Self::Determinism => "the same commands give the same replies and the same state",
            Self::EqualSnapshots => "equal states write equal snapshots",
            Self::Batches => "batches make no difference",
            Self::Reads => "queries and snapshots change nothing",
            Self::Snapshot => "a snapshot is the state",
            Self::DamagedSnapshot => "a damaged snapshot is refused",
            Self::Nonsense => "nonsense is answered",
            Self::Independence => "what is called independent of a loss is independent of it",
            Self::Durable => "the state is rebuilt from the log",
            Self::Diverged => "every node gives the same reply",
            Self::Lost => "what was acknowledged survives, once and in its place",
            Self::State => "the surviving state is that of the surviving log",
            Self::Stopped => "nobody stops",
            Self::Unfinished => "everything comes to rest",
        })
    }
}

/// A promise that does not hold, and how to see it.
///
/// `{}` and `{:?}` print the same, over several lines, for people.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    check: Check,
    why: String,
    seed: u64,
    commands: Vec<Bytes>,
    shown: Vec<String>,
}

impl Failure {
    pub(super) fn new(found: Finding, seed: u64, commands: Vec<Bytes>, show: &dyn Fn(&[u8]) -> String) -> Self {
        let shown = commands.iter().map(|command| show(command)).collect();
        Self(Box::new(Inner { check: found.check, why: found.why, seed, commands, shown }))
    }

    /// Which promise it is.
    pub fn check(&self) -> Check {
        self.0.check
    }

    /// What was seen, in a line or two.
    pub fn why(&self) -> &str {
        &self.0.why
    }

    /// The seed of the run in which it was seen first.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// The shortest list of commands that was found to show it: of those of the run, in their order, some left out.
    pub fn commands(&self) -> &[Bytes] {
        &self.0.commands
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { check, why, seed, commands: _, shown } = &*self.0;
        writeln!(f, "\"{check}\" does not hold ({check:?}): {why}")?;
        match shown.len() {
            0 => writeln!(f, "  no command is needed to see it")?,
            1 => writeln!(f, "  one command is enough to see it:")?,
            n => writeln!(f, "  {n} commands are enough to see it:")?,
        }
        for (nth, command) in (1..).zip(shown) {
            writeln!(f, "  {nth:>4}  {command}")?;
        }
        write!(f, "  they are what is left of seed {seed}: .seeds({seed}..{})", seed.saturating_add(1))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failure {}

/// A promise that was seen not to hold, in one run.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) check: Check,
    pub(super) why: String,
}

impl Finding {
    pub(super) fn new(check: Check, why: impl Into<String>) -> Self {
        Self { check, why: why.into() }
    }
}

/// Runs code of the state machine, whose panics are findings.
pub(super) fn guarded<T>(check: Check, run: impl FnOnce() -> Result<T, Finding>) -> Result<T, Finding> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Finding::new(check, format!("the state machine panics: {text}")))
    })
}

/// How often a list is run before it counts as good: what depends on hash seeds does not show each time.
const TRIES: usize = 4;

/// Leaves out commands as long as the same check still fails, in at most about `budget` runs.
pub(super) fn shrink<T: Clone>(
    mut commands: Vec<T>,
    mut found: Finding,
    mut budget: usize,
    mut run: impl FnMut(&[T]) -> Result<(), Finding>,
) -> (Vec<T>, Finding) {
    let mut chunk = commands.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let before = commands.len();
        while at < commands.len() && budget > 0 {
            let end = commands.len().min(at + chunk);
            let less = [&commands[..at], &commands[end..]].concat();
            let again = (0..TRIES).find_map(|_| {
                budget = budget.saturating_sub(1);
                run(&less).err().filter(|again| again.check == found.check)
            });
            match again {
                Some(again) => (commands, found) = (less, again),
                None => at = end,
            }
        }
        if budget == 0 || (chunk == 1 && commands.len() == before) {
            return (commands, found);
        }
        chunk = chunk.div_ceil(2);
    }
}

/// How many bytes of anything are shown.
const SHOWN: usize = 96;

/// Bytes as people can read them, cut where they are long.
pub(super) fn text(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(SHOWN)].escape_ascii();
    if bytes.len() > SHOWN { format!("\"{shown}\"... ({} bytes)", bytes.len()) } else { format!("\"{shown}\"") }
}

/// Where two byte strings begin to differ, with what is there.
pub(super) fn difference(one: &[u8], other: &[u8]) -> String {
    if one.len().max(other.len()) <= SHOWN {
        return format!("{} and {}", text(one), text(other));
    }
    let at = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    let from = at.saturating_sub(8);
    let (length, other_length) = (one.len(), other.len());
    let (one, other) = (text(&one[from..]), text(&other[from.min(other.len())..]));
    format!("{length} and {other_length} bytes that differ at byte {at}; from {from} on: {one} and {other}")
}
