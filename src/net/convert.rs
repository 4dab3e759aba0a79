//! The one place where the wire's types (`pb`) and the crate's own meet.
//!
//! Total one way, `From` a message for its `pb` twin; fallible the other, `TryFrom`. Whatever a peer sends, reading it
//! ends in a message or in an [`Error`] that names the field, and never in a panic:
//!
//! | what was sent | code |
//! | --- | --- |
//! | a required field is absent, an id is not 16 bytes, a number does not fit, a range is reversed | `Protocol` |
//! | a message of no known kind | `Protocol`: features are agreed before they are used |
//! | within a header: a kind, level, role, policy or target of no known number | `UnknownKind` |
//! | elsewhere: a level, role or policy of no known number | `WrongVersion` |
//!
//! Only the form is judged here. Whether an epoch is the right one, a version is spoken, a digest fits its payload, is
//! the cores' business, which have to judge it anyway. `words` has what all streams share, `failure` the tables of
//! errors; `session`, `replication` and `admin` are the three services.

mod admin;
mod failure;
mod packed;
mod replication;
mod session;
#[cfg(test)]
mod tests;
mod words;

use bytes::Bytes;

use super::pb;
use crate::error::{Code, Error, Result};
use crate::message::{BackupMessage, ClientMessage, NodeMessage, PrimaryMessage};

pub(super) use admin::promote_request;
pub(super) use failure::{from_status, to_status};
pub(super) use replication::joined;

/// A batch is a message of messages: what was at hand when the stream was ready. One that cannot be read spoils its
/// whole batch, as the stream ends with it.
macro_rules! batches {
    ($($batch:ident of $message:ident $(by $prepared:path)?),*) => {
        $(
            impl From<Vec<$message>> for pb::$batch {
                fn from(messages: Vec<$message>) -> Self {
                    Self { messages: messages.into_iter().map(pb::$message::from).collect() }
                }
            }

            impl TryFrom<pb::$batch> for Vec<$message> {
                type Error = Error;
                fn try_from(batch: pb::$batch) -> Result<Self> {
                    let messages = batch.messages;
                    $(let messages = $prepared(messages);)?
                    messages.into_iter().map($message::try_from).collect()
                }
            }
        )*
    };
}

batches!(
    ClientMessages of ClientMessage by session::detached,
    NodeMessages of NodeMessage,
    BackupMessages of BackupMessage,
    PrimaryMessages of PrimaryMessage
);

/// From this size on a slice may stay where it was received.
pub(super) const LARGE: usize = 64 * 1024;

/// For bytes that the receiver keeps, as a recovery or an application does.
///
/// What prost hands out is a slice of the receive buffer, and keeps all of that alive: an entry of 100 bytes would cost
/// the kilobytes of its whole batch for as long as it is kept. It is copied, unless the buffer is little more than the slice.
/// What only passes (a query's bytes, say) is not copied.
fn kept(slice: Bytes) -> Bytes {
    if slice.len() < LARGE { Bytes::copy_from_slice(&slice) } else { slice }
}

/// The same of a list, whose items are released together: one allocation for all of them.
fn kept_together(slices: Vec<Bytes>) -> Vec<Bytes> {
    let length = slices.iter().map(Bytes::len).sum();
    if length >= LARGE {
        return slices;
    }
    let mut joined = Vec::with_capacity(length);
    slices.iter().for_each(|slice| joined.extend_from_slice(slice));
    let mut joined = Bytes::from(joined);
    let part = |slice: Bytes| if slice.is_empty() { slice } else { joined.split_to(slice.len()) };
    slices.into_iter().map(part).collect()
}

/// Of a field that has to be there.
fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::new(Code::Protocol, format!("{field} is missing")))
}

/// The value an enum's number stands for. One without a meaning here comes from a later version: `unknown` says what
/// that is called where it stands.
fn choice<E: TryFrom<i32>>(field: &str, number: i32, unknown: Code) -> Result<E> {
    E::try_from(number)
        .map_err(|_| Error::new(unknown, format!("{field} has a value this build does not know: {number}")))
}
