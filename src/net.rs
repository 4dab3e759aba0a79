//! The nodes and the client over gRPC.

// Generated from proto/ (see tests/proto_fresh.rs), and therefore neither documented nor formatted here.
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
mod pb;

#[allow(dead_code, unused_imports)]
mod convert;
