//! What the plain service carries: writes one way, and the same numbers back.

use bytes::Bytes;

/// A write, or its acknowledgement.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Write {
    /// Dense on its stream, from 1.
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) payload: Bytes,
}

/// What has gathered.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Writes {
    #[prost(message, repeated, tag = "1")]
    pub(crate) writes: Vec<Write>,
}

#[allow(missing_docs, unreachable_pub, clippy::pedantic, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/tagalong.bench.Plain.rs"));
}

pub(crate) use generated::{plain_client::PlainClient, plain_server};
