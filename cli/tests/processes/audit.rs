//! The clients' view: what they were told, against the list as it is in the end.

use std::collections::BTreeSet;

use crate::client::Client;

/// The appends a client was acknowledged, with the length of the list then.
pub(crate) fn acknowledged(client: &Client) -> Vec<(String, usize)> {
    let acked = |line: String| {
        let (value, outcome) = line.strip_prefix("append ")?.split_once(' ')?;
        let length = outcome.strip_prefix("acked ")?;
        Some((value.to_owned(), length.parse().unwrap()))
    };
    client.lines().into_iter().filter_map(acked).collect()
}

/// Nothing lost, nothing twice, everything where it was said to be, for clients that appended to this list alone.
///
/// Returns how many appends were checked.
pub(crate) fn audit(list: &str, clients: &[&Client]) -> usize {
    let mut seen = BTreeSet::new();
    for value in list.split_terminator(';') {
        assert!(seen.insert(value), "{value} was executed twice");
    }
    let mut checked = 0;
    for client in clients {
        for (value, length) in acknowledged(client) {
            let prefix = list.get(..length).unwrap_or_default();
            assert!(prefix.ends_with(&value), "{value} was acknowledged at {length} and is not there: {list}");
            checked += 1;
        }
        for value in client.lines().iter().filter_map(|line| line.strip_prefix("value ")) {
            assert!(list.starts_with(value), "{value} was read, and the list is another now: {list}");
        }
    }
    checked
}

/// Of the values that begin with `prefix` and are numbered, how many there are: from 0 on, in order, without a hole.
pub(crate) fn numbered(list: &str, prefix: &str) -> u64 {
    let numbers = list.split_terminator(';').filter_map(|value| value.strip_prefix(prefix)?.parse::<u64>().ok());
    let mut next = 0;
    for number in numbers {
        assert_eq!(number, next, "{prefix}{next} is missing, or out of order");
        next += 1;
    }
    next
}
