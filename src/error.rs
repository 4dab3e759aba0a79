//! The one error type of the crate, and what its kinds ask the caller to do.

use std::fmt;

/// What went wrong, precisely. Stable across versions: programs may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Code {
    /// The peer, log or cache belongs to another cluster or group.
    WrongCluster,
    /// The peer or file speaks a version, or needs a feature, that this build does not have.
    WrongVersion,
    /// A log entry of a kind this build does not know. The node stops rather than guess.
    UnknownKind,
    /// A frame of an epoch that is not the stream's.
    WrongEpoch,
    /// A higher epoch exists: this node acknowledges nothing any more.
    Deposed,
    /// The node is not the primary; ask the others.
    NotPrimary,
    /// The node cannot be reached, or the stream to it broke.
    Unavailable,
    /// The node is collecting reports after a disaster and serves nothing yet.
    Recovering,
    /// The backup cannot be reached, and what was asked has to be stable there first.
    BackupUnavailable,
    /// The session is not known any more; the outcome of its open requests is unknown.
    SessionExpired,
    /// The session was taken over by a newer connection or incarnation.
    SessionReplaced,
    /// The bound on sessions is reached.
    TooManySessions,
    /// A command, query, reply or frame is larger than the limit.
    TooLarge,
    /// A queue is at its bound.
    Busy,
    /// Fewer failure domains of clients are connected than `Covered` needs, and the service refuses rather than waits.
    Uncovered,
    /// The deadline passed before the outcome was known.
    Deadline,
    /// The peer broke the protocol.
    Protocol,
    /// Stored data is damaged: the message names file and offset. Or the seal of a share does not hold: it names
    /// the share.
    Corrupt,
    /// Another process holds the directory.
    Locked,
    /// The store failed (a full disk, an I/O error). The node stops serving.
    Storage,
    /// The state machine computed another reply than the one that was recorded.
    Diverged,
    /// Two reports contradict each other, or one is impossible; or a request number was used for two commands.
    Conflict,
    /// The node was never, or is no longer, in sync with the last reign.
    NotInSync,
    /// The peer's log is not a prefix of the primary's.
    LogDiverged,
    /// The handle, session or node was closed.
    Closed,
    /// The command did not survive a recovery that was concluded by policy, and never will under its number.
    Superseded,
    /// A setting or an argument makes no sense.
    InvalidArgument,
}

/// What the caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Try the same again, here.
    Retry,
    /// Look for the primary among the other endpoints.
    Rediscover,
    /// Try again later; something has to drain or come back first.
    BackOff,
    /// The call itself has to change.
    FixCall,
    /// Somebody has to look: retrying will not help.
    Report,
}

/// An error with a [`Code`], a [`kind`](Error::kind) that says what to do next, and a message for people.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Error {
    /// Behind a pointer, so that a result takes no more room than its value: what is decoded is a result at every byte.
    parts: Box<Parts>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Parts {
    code: Code,
    message: String,
}

/// The result of this crate's fallible calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `code` whose `message` says what happened and what to do.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { parts: Box::new(Parts { code, message: message.into() }) }
    }

    /// What went wrong.
    pub fn code(&self) -> Code {
        self.parts.code
    }

    /// The text, without the code.
    pub fn message(&self) -> &str {
        &self.parts.message
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self.code() {
            Code::SessionReplaced | Code::Deadline => ErrorKind::Retry,
            Code::WrongEpoch | Code::Deposed | Code::NotPrimary | Code::Unavailable | Code::Recovering => {
                ErrorKind::Rediscover
            }
            Code::Busy | Code::Uncovered | Code::BackupUnavailable | Code::TooManySessions | Code::Locked => {
                ErrorKind::BackOff
            }
            Code::TooLarge | Code::InvalidArgument | Code::WrongCluster | Code::Closed => ErrorKind::FixCall,
            Code::WrongVersion
            | Code::UnknownKind
            | Code::SessionExpired
            | Code::Protocol
            | Code::Corrupt
            | Code::Storage
            | Code::Diverged
            | Code::Conflict
            | Code::NotInSync
            | Code::Superseded
            | Code::LogDiverged => ErrorKind::Report,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("code", &self.code()).field("message", &self.message()).finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code(), self.message())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(own) => own,
            Err(io) => Error::new(Code::Storage, io.to_string()),
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.code() {
            Code::Corrupt | Code::WrongVersion | Code::UnknownKind => std::io::ErrorKind::InvalidData,
            Code::Locked => std::io::ErrorKind::WouldBlock,
            _ => std::io::ErrorKind::Other,
        };
        std::io::Error::new(kind, error)
    }
}
