//! One's own state machine through disasters, on the protocol's own cores: what a seed does, and what came of it.
//!
//! The world (processes, streams, disks) is in `world`, what it is judged by in `verdict`. Nothing here has a clock, a thread
//! or a socket: a run is a function of its seed, and of the state machine.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use super::dice::Dice;
use super::failure::{Check, Failure, Finding, shrink};
use super::machine::Subject;
use crate::store::StateMachine;

mod node;
mod verdict;
mod wire;
mod world;

use world::World;

/// Runs that the search for a shorter list may take: each is a whole story.
const SHRINK_RUNS: usize = 300;
/// The same where each run goes on for as long as it may.
const SHRINK_ENDLESS: usize = 20;

/// A command, and when in its story it is written.
type Call = (usize, Bytes);

/// What was survived, over all seeds: so that one can see that a test was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Survived {
    /// Stories, one for each seed.
    pub runs: u64,
    /// Commands that clients were told to be done.
    pub acknowledged: u64,
    /// Primaries that were lost for good, each replaced by its backup.
    pub takeovers: u64,
    /// Primaries that died, and came back on their own log.
    pub restarts: u64,
    /// Backups that did.
    pub backup_restarts: u64,
    /// Clients that died and came back on their caches.
    pub client_restarts: u64,
    /// Streams that were cut, or stood still.
    pub cuts: u64,
    /// Log entries that a recovering node did not have and clients handed over.
    pub rebuilt: u64,
    /// Nodes that came back on a snapshot of the state machine and the log behind it.
    pub from_snapshots: u64,
}

impl Survived {
    fn add(&mut self, other: &Survived) {
        self.runs += other.runs;
        self.acknowledged += other.acknowledged;
        self.takeovers += other.takeovers;
        self.restarts += other.restarts;
        self.backup_restarts += other.backup_restarts;
        self.client_restarts += other.client_restarts;
        self.cuts += other.cuts;
        self.rebuilt += other.rebuilt;
        self.from_snapshots += other.from_snapshots;
    }
}

impl fmt::Display for Survived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, acknowledged, takeovers, restarts, backup_restarts, .. } = self;
        let Self { client_restarts, cuts, rebuilt, from_snapshots, .. } = self;
        write!(
            f,
            "{runs} runs, {acknowledged} commands acknowledged, {takeovers} primaries lost for good, {rebuilt} entries rebuilt \
             from clients, {restarts} primaries, {backup_restarts} backups and {client_restarts} clients restarted \
             ({from_snapshots} nodes from a snapshot), {cuts} streams cut or stalled"
        )
    }
}

/// Disasters for one's own state machine, to be run by [`run`](Disasters::run).
///
/// Each seed is a story. A few clients write to a primary that has a backup; streams break and stand still; processes
/// die and come back, nodes on a snapshot and their log, clients on their caches; and then the primary dies: for good,
/// so that the backup is promoted and asks the clients for what it lacks, or to come back on its own log. One to three
/// times, and then a new backup follows and everything comes to rest. After each disaster it is checked that
///
/// * whatever was acknowledged is in the surviving log, at the LSN that its tag said, exactly once, with the same reply;
/// * no node answered a command otherwise than another one did;
/// * the survivor's state, and at the end that of its backup, is what a new instance makes of the surviving log.
///
/// As the state machine is what is tested, the rest plays along: disks keep what was synced, clients their caches.
///
/// ```
/// # use tagalong::store::kv::{KvCommand, KvStore};
/// use tagalong::testing::Disasters;
/// let command = |dice: &mut tagalong::testing::Dice| KvCommand::append("story", dice.bytes(4)).encode();
/// let survived = Disasters::new(KvStore::new, command).seeds(0..4).run()?;
/// assert_eq!(survived.runs, 4);
/// # Ok::<(), tagalong::testing::Failure>(())
/// ```
#[must_use = "nothing happens before `run`"]
pub struct Disasters<'a, M> {
    subject: Subject<'a, M>,
    seeds: Range<u64>,
    clients: usize,
    commands: usize,
}

impl<'a, M: StateMachine> Disasters<'a, M> {
    /// Prepares disasters for a state machine: `new` makes an instance in its first state, `command` makes a command
    /// from dice, of at most 1 MiB.
    pub fn new<B: Into<Bytes>>(new: impl Fn() -> M + 'a, command: impl Fn(&mut Dice) -> B + 'a) -> Self {
        Self { subject: Subject::new(new, command), seeds: 0..100, clients: 3, commands: 40 }
    }

    /// The seeds to run: one story for each, 100 of them if nothing is said.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// How many clients write; 3 if nothing is said, and at least one.
    pub fn clients(mut self, clients: usize) -> Self {
        self.clients = clients.max(1);
        self
    }

    /// How many commands they write in a story, all together; 40 if nothing is said.
    pub fn commands(mut self, commands: usize) -> Self {
        self.commands = commands;
        self
    }

    /// How a failure shows a command: as bytes, escaped, if nothing is said.
    pub fn show(mut self, show: impl Fn(&[u8]) -> String + 'a) -> Self {
        self.subject.show = Box::new(show);
        self
    }

    /// Runs every seed's story, and says what was survived.
    ///
    /// # Errors
    /// The first promise that does not hold, with the shortest list of commands that shows it in the same story.
    ///
    /// # Panics
    /// If `new` or the generator does.
    pub fn run(&self) -> Result<Survived, Failure> {
        let mut survived = Survived::default();
        for seed in self.seeds.clone() {
            let commands = self.subject.commands(self.commands, &mut Dice::new(seed));
            let commands: Vec<Call> = (0..).zip(commands).collect();
            match self.story(seed, &commands) {
                Ok(other) => survived.add(&other),
                Err(found) => {
                    let run = |commands: &[Call]| self.story(seed, commands).map(|_| ());
                    let endless = found.check == Check::Unfinished;
                    let budget = if endless { SHRINK_ENDLESS } else { SHRINK_RUNS };
                    let (commands, found) = shrink(commands, found, budget, run);
                    let commands = commands.into_iter().map(|(_, command)| command).collect();
                    return Err(Failure::new(found, seed, commands, &self.subject.show));
                }
            }
        }
        Ok(survived)
    }

    /// One story. What goes wrong, and when, is decided by the seed alone, so that a shorter list meets the like.
    fn story(&self, seed: u64, commands: &[Call]) -> Result<Survived, Finding> {
        let mut fate = Dice::new(!seed);
        let rounds = 1 + fate.index(3);
        let mut world = World::new(&self.subject, fate, self.clients)?;
        for round in 0..rounds {
            let calls = self.commands * round / rounds..self.commands * (round + 1) / rounds;
            let commands =
                calls.map(|call| Some(&commands[commands.binary_search_by_key(&call, |call| call.0).ok()?].1));
            world.round(&commands.collect::<Vec<_>>())?;
            // The last disaster is always the great one.
            if round + 1 == rounds || world.fate.percent(60) {
                world.lose_primary()?
            } else {
                world.restart_primary()?
            }
        }
        Ok(world.finish())
    }
}
