//! Errors on the wire: by the code's name within a message, and as a gRPC status at the end of a call.

use std::error::Error as _;

use tonic::metadata::MetadataValue;
use tonic::{Code as Grpc, Status};

use super::pb;
use crate::error::{Code, Error};

/// The table: every code, which is its own name on the wire, and the gRPC code that proxies and other languages see.
macro_rules! codes {
    ($($code:ident => $grpc:ident,)*) => {
        pub(super) const ALL: &[Code] = &[$(Code::$code),*];

        pub(super) fn name(code: Code) -> &'static str {
            match code {
                $(Code::$code => stringify!($code),)*
            }
        }

        fn grpc(code: Code) -> Grpc {
            match code {
                $(Code::$code => Grpc::$grpc,)*
            }
        }
    };
}

// UNAVAILABLE invites every proxy to try again at the same place: only where that may help.
codes! {
    WrongCluster => FailedPrecondition,
    WrongVersion => Unimplemented,
    UnknownKind => Unimplemented,
    WrongEpoch => Aborted,
    Deposed => FailedPrecondition,
    NotPrimary => FailedPrecondition,
    Unavailable => Unavailable,
    Recovering => Unavailable,
    BackupUnavailable => Unavailable,
    SessionExpired => NotFound,
    SessionReplaced => Aborted,
    TooManySessions => ResourceExhausted,
    TooLarge => OutOfRange,
    Busy => ResourceExhausted,
    Uncovered => ResourceExhausted,
    Deadline => DeadlineExceeded,
    Protocol => Internal,
    Corrupt => DataLoss,
    Locked => Unavailable,
    Storage => Internal,
    Diverged => DataLoss,
    Conflict => FailedPrecondition,
    NotInSync => FailedPrecondition,
    LogDiverged => DataLoss,
    Superseded => FailedPrecondition,
    Closed => Cancelled,
    InvalidArgument => InvalidArgument,
}

/// A name that this build does not know comes from a later version; its text is kept for whoever reads the message.
fn error(code: &str, message: &str) -> Error {
    match ALL.iter().find(|known| name(**known) == code) {
        Some(known) => Error::new(*known, message),
        None => Error::new(Code::Protocol, format!("{code}: {message}")),
    }
}

impl From<Error> for pb::Error {
    fn from(error: Error) -> Self {
        Self { code: name(error.code()).into(), message: error.message().into() }
    }
}

impl From<pb::Error> for Error {
    fn from(pb::Error { code, message }: pb::Error) -> Self {
        error(&code, &message)
    }
}

/// The metadata in which a status carries the exact code; its message is the error's own.
const CODE: &str = "tagalong-code";

/// How much of a message a status carries. It travels in a header, percent-encoded, and clients commonly take 16 KiB of
/// headers at most.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The status that [`from_status`] turns into the same error again (with the message cut, if it is a novel).
pub(in crate::net) fn to_status(error: &Error) -> Status {
    let mut end = error.message().len().min(MESSAGE_BYTES_MAX);
    while !error.message().is_char_boundary(end) {
        end -= 1;
    }
    let mut status = Status::new(grpc(error.code()), &error.message()[..end]);
    status.metadata_mut().insert(CODE, MetadataValue::from_static(name(error.code())));
    status
}

/// The error a call or stream ended with: a node's own, exactly; or what comes nearest to a status from somewhere else,
/// a proxy or the transport.
pub(in crate::net) fn from_status(status: &Status) -> Error {
    if let Some(code) = status.metadata().get(CODE) {
        // A name that is not even text is not a name we know.
        return error(code.to_str().unwrap_or("unreadable code"), status.message());
    }
    let code = match status.code() {
        Grpc::InvalidArgument | Grpc::PermissionDenied | Grpc::Unauthenticated => Code::InvalidArgument,
        Grpc::DeadlineExceeded => Code::Deadline,
        Grpc::ResourceExhausted => Code::Busy,
        Grpc::OutOfRange => Code::TooLarge,
        Grpc::Unimplemented => Code::WrongVersion,
        Grpc::Unavailable | Grpc::Cancelled | Grpc::Aborted => Code::Unavailable,
        // The transport's own failures, a killed peer's among them, come under whatever code, and with their cause.
        _ if status.source().is_some() => Code::Unavailable,
        _ => Code::Protocol,
    };
    Error::new(code, format!("{}: {}", status.code().description(), explain(status)))
}

/// The message of a foreign status, down to its first cause: "transport error" alone helps nobody.
fn explain(status: &Status) -> String {
    let mut text = status.message().to_string();
    let mut cause = status.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
