//! Failure domains.

use std::sync::Arc;

use crate::log::ClientId;

/// A failure domain: what fails together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Domain {
    /// As declared.
    Named(Arc<str>),
    /// None was declared: the client fails alone.
    Lone(ClientId),
}

impl Domain {
    /// The domain of a client that declared `name`, which may be empty.
    pub fn of(client: ClientId, name: &str) -> Self {
        if name.is_empty() { Self::Lone(client) } else { Self::Named(name.into()) }
    }
}
