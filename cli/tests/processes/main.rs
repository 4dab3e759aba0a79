//! Real processes, killed for real: `tagalong serve` for the nodes, this test's own executable for the clients.
//!
//! Few and slow. Every server listens on a port the system chose, every wait is bounded and says what it waited for,
//! and every process is killed when its handle is dropped. On a failure the logs of all nodes are printed.
//!
//! `a_primary_is_killed_again_and_again_under_load` kills its primary 5 times. For a hundred:
//!
//! ```sh
//! TAGALONG_RESTARTS=100 cargo test -p tagalong-cli --test processes again_and_again -- --nocapture
//! ```
//!
//! What is checked is the clients' view. Clients append to a list, and the reply says how long the list is then: where
//! the value must stand in it, whatever happens to the service afterwards (see `audit`).

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod audit;
mod bad_input;
mod client;
mod disaster;
mod disk;
mod holders;
mod liar;
mod lying;
mod namespaces;
mod node;
mod pauses;
mod relay;
mod restart;
mod wait;
mod worker;
