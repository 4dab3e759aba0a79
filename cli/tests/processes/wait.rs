//! Waiting, with an end.

use std::time::{Duration, Instant};

/// Far beyond what anything here takes, even on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Looks until `look` finds something.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
