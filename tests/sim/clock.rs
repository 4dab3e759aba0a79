//! A process's own clock: it starts anywhere, runs at its own rate, and jumps ahead when its machine was suspended.

use tagalong::log::Time;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    ahead: u64,
    /// Its microseconds in a thousand of the world's.
    permille: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { ahead: 0, permille: 1_000 }
    }
}

impl Clock {
    pub fn new(ahead: u64, permille: u64) -> Self {
        Self { ahead, permille }
    }

    pub fn at(&self, now: u64) -> Time {
        Time(self.ahead + now * self.permille / 1_000)
    }

    /// How long it takes until the clock shows this.
    pub fn until(&self, now: u64, due: Time) -> u64 {
        let left = due.0.saturating_sub(self.at(now).0);
        (left * 1_000).div_ceil(self.permille).max(1)
    }

    pub fn jump(&mut self, by: u64) {
        self.ahead += by;
    }
}

/// What has to be so: when the clock's time has come, it shows it.
#[test]
fn a_clock_shows_what_was_waited_for() {
    for permille in [500, 900, 1_000, 1_037, 2_000] {
        let clock = Clock::new(12_345, permille);
        for now in [0, 1, 999, 1_000_007] {
            for wait in [1, 2, 999, 1_000, 123_457] {
                let due = Time(clock.at(now).0 + wait);
                assert!(clock.at(now + clock.until(now, due)) >= due, "{permille} {now} {wait}");
            }
        }
    }
}
