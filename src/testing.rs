//! What a service that embeds this crate can test its own parts with: logs, client caches and state machines.
//!
//! For the feature `testing`. Name the crate among the `[dev-dependencies]` once more, with that feature.
//!
//! * [`state_machine`] holds a [`StateMachine`](crate::store::StateMachine) to its promises: the same commands give the
//!   same replies and the same state, however they are batched; a snapshot is the state; a damaged one is refused.
//! * [`Disasters`] runs it on the protocol's own cores through what this crate is made for: clients write, primaries
//!   are lost for good, the clients' caches rebuild the tail, processes die and come back.
//! * [`log_store`], [`log_store_crash`] and [`client_cache`] do the same for a log and for a client's cache. They are
//!   those of [`store::conformance`](crate::store::conformance), where they are described.
//!
//! Everything but the last three is driven by seeds: a seed is a run, again and again, unless the state machine itself
//! is not deterministic. What is found is a [`Failure`]: the promise that does not hold, what was seen, and the
//! shortest list of commands that shows it. It prints the same with `{}` and `{:?}`, so a test may just return it:
//!
//! ```
//! use tagalong::store::kv::{KvCommand, KvQuery, KvStore};
//! use tagalong::testing::{self, Dice, Disasters, Failure};
//!
//! fn command(dice: &mut Dice) -> bytes::Bytes {
//!     let key = format!("key {}", dice.below(4));
//!     match dice.below(3) {
//!         0 => KvCommand::put(key, dice.bytes(8)),
//!         1 => KvCommand::append(key, "+"),
//!         _ => KvCommand::delete(key),
//!     }
//!     .encode()
//! }
//!
//! # fn main() -> Result<(), Failure> {
//! testing::state_machine(KvStore::new, command).queries(|_| KvQuery::list("").encode()).seeds(0..8).check()?;
//! let survived = Disasters::new(KvStore::new, command).seeds(0..4).run()?;
//! assert!(survived.takeovers >= 4);
//! # Ok(())
//! # }
//! ```
//!
//! Commands come from a function of a [`Dice`], not from a strategy of some framework, so that nobody has to depend on
//! one; whoever has generators of that kind already seeds them with [`Dice::roll`].
//!
//! **What no test of this kind can see:** a state machine that reads a coarse clock gives two instances the same time
//! when they run at the same moment, and one that reads a file or the host's name finds the same one; an allocation
//! without bounds, or an abort, ends the test instead of failing it.

mod checks;
mod dice;
mod disaster;
mod failure;
mod machine;

pub use crate::store::conformance::{client_cache, log_store, log_store_crash};
pub use dice::Dice;
pub use disaster::{Disasters, Survived};
pub use failure::{Check, Failure};
pub use machine::{StateMachineTest, state_machine};
