//! The suite for one's own state machine: commands from dice, every check on them, and a short list where one fails.

use std::ops::Range;

use bytes::Bytes;

use super::checks;
use super::dice::Dice;
use super::failure::{Failure, shrink, text};
use crate::store::StateMachine;

/// Runs that the search for a shorter list may take.
const SHRINK_RUNS: usize = 2_000;

type Generator<'a> = Box<dyn Fn(&mut Dice) -> Bytes + 'a>;
type Show<'a> = Box<dyn Fn(&[u8]) -> String + 'a>;

/// What is to be tested, as its owner described it.
pub(super) struct Subject<'a, M> {
    pub(super) new: Box<dyn Fn() -> M + 'a>,
    pub(super) command: Generator<'a>,
    pub(super) show: Show<'a>,
}

impl<'a, M: StateMachine> Subject<'a, M> {
    pub(super) fn new<B: Into<Bytes>>(new: impl Fn() -> M + 'a, command: impl Fn(&mut Dice) -> B + 'a) -> Self {
        Self { new: Box::new(new), command: Box::new(move |dice| command(dice).into()), show: Box::new(text) }
    }

    pub(super) fn commands(&self, count: usize, dice: &mut Dice) -> Vec<Bytes> {
        (0..count).map(|_| (self.command)(dice)).collect()
    }
}

/// A test of one's own state machine, to be run by [`check`](StateMachineTest::check).
#[must_use = "nothing is tested before `check`"]
pub struct StateMachineTest<'a, M> {
    subject: Subject<'a, M>,
    query: Option<Generator<'a>>,
    seeds: Range<u64>,
    commands: usize,
}

/// Prepares the test of a state machine: `new` makes an instance in its first state, `command` makes a command from dice.
///
/// Commands should meet each other: a few keys are better than many. Those that are refused, or make no sense, are as
/// good as others, as long as some change the state. The bytes are what a client would write.
///
/// ```
/// # use tagalong::store::kv::{KvCommand, KvStore};
/// use tagalong::testing;
/// testing::state_machine(KvStore::new, |dice| KvCommand::append(dice.pick(&["a", "b"]), "x").encode())
///     .seeds(0..8)
///     .check()?;
/// # Ok::<(), testing::Failure>(())
/// ```
pub fn state_machine<'a, M: StateMachine, B: Into<Bytes>>(
    new: impl Fn() -> M + 'a,
    command: impl Fn(&mut Dice) -> B + 'a,
) -> StateMachineTest<'a, M> {
    StateMachineTest { subject: Subject::new(new, command), query: None, seeds: 0..64, commands: 32 }
}

impl<'a, M: StateMachine> StateMachineTest<'a, M> {
    /// Makes a query from dice. Without it no query is asked, and states are compared by their snapshots alone.
    pub fn queries<B: Into<Bytes>>(mut self, query: impl Fn(&mut Dice) -> B + 'a) -> Self {
        self.query = Some(Box::new(move |dice| query(dice).into()));
        self
    }

    /// The seeds to run: one list of commands for each, 64 of them if nothing is said.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// How many commands a list has at most; 32 if nothing is said. The time a run takes grows a little faster.
    pub fn commands(mut self, most: usize) -> Self {
        self.commands = most;
        self
    }

    /// How a failure shows a command: as bytes, escaped, if nothing is said.
    pub fn show(mut self, show: impl Fn(&[u8]) -> String + 'a) -> Self {
        self.subject.show = Box::new(show);
        self
    }

    /// Runs every check on every seed's list.
    ///
    /// # Errors
    /// The first promise that does not hold, with the shortest list of commands that shows it. While that is looked
    /// for the state machine may panic many times, and the standard hook prints each; the failure names one.
    ///
    /// # Panics
    /// If `new` or a generator does.
    pub fn check(&self) -> Result<(), Failure> {
        for seed in self.seeds.clone() {
            let mut dice = Dice::new(seed);
            let count = 1 + dice.index(self.commands);
            let commands = self.subject.commands(count, &mut dice);
            let queries = match &self.query {
                Some(query) => (0..4).map(|_| query(&mut dice)).collect(),
                None => Vec::new(),
            };
            let run = |commands: &[Bytes]| checks::all(&*self.subject.new, commands, &queries, dice.clone());
            if let Err(found) = run(&commands) {
                let (commands, found) = shrink(commands, found, SHRINK_RUNS, run);
                return Err(Failure::new(found, seed, commands, &self.subject.show));
            }
        }
        Ok(())
    }
}
