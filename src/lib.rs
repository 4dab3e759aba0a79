#![cfg_attr(feature = "grpc", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "grpc"), doc = "The protocol's core and the stores, without the gRPC ring.")]

pub mod backup;
pub mod checkpoint;
pub mod client;
pub mod codec;
pub mod error;
pub mod log;
pub mod message;
#[cfg(feature = "grpc")]
pub mod net;
pub mod node;
pub mod ordered;
pub mod primary;
pub mod recovery;
pub mod rule;
pub mod session;
pub mod share;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::{Code, Error, ErrorKind, Result};
#[cfg(feature = "grpc")]
pub use net::{
    AdminClient, Backup, ClientEvents, ClientStats, NetSettings, NodeEvents, Opened, Primary, ReadOptions, Recovery,
    ShareKey, TaggedClient, WriteOptions, WriteOutcome, Writing,
};
