//! What is fuzzed: every decoder of bytes from outside, one function a target.
//!
//! The functions are in this tree, not in `fuzz/`, so that `cargo test` runs them, too: on the corpus, on what real
//! encoders make, and on both mutated by seed (`main.rs`). `fuzz/fuzz_targets` hands them what libFuzzer makes up. Each
//! says more than "no panic": what is read is the same when it is written and read again, what is on a damaged disk is
//! what was written or an error with a name, and a short input takes little memory.

#[path = "codec.rs"]
pub(crate) mod codec;
#[path = "cores.rs"]
pub(crate) mod cores;
#[path = "disk.rs"]
pub(crate) mod disk;
#[path = "../hostile/forge.rs"]
pub(crate) mod forge;
#[path = "forged.rs"]
pub(crate) mod forged;
#[path = "heap.rs"]
pub(crate) mod heap;
#[path = "input.rs"]
pub(crate) mod input;
#[path = "../hostile/node.rs"]
pub(crate) mod node;
#[path = "shares.rs"]
pub(crate) mod shares;
#[cfg(all(feature = "grpc", feature = "seeded-bugs"))]
#[path = "wire.rs"]
pub(crate) mod wire;
