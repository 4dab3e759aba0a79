//! A timer for loops that are due at another time in every round.

use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

/// A timer of the runtime that becomes its earliest wakes the thread that waits for the next event: two system calls, for a time
/// that the next message will put off again. To put off a timer costs next to nothing; so this one is kept, and put off, where
/// nothing is due for a round as well.
#[derive(Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Waits until `at`, or for ever. Cancel safe.
    pub(super) async fn rings(&mut self, at: Option<Instant>) {
        let Some(at) = at.map(tokio::time::Instant::from) else { return pending().await };
        poll_fn(|cx| {
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            // Also where it is due: that is a turn of the task, and others have theirs.
            sleep.as_mut().poll(cx)
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::*;

    /// With the clock stopped: nothing goes on but what is waited for.
    #[tokio::test(start_paused = true)]
    async fn it_rings_when_it_is_due_and_not_before() {
        let (mut alarm, started) = (Alarm::default(), Instant::now());
        let ms = Duration::from_millis;
        // Later than before, earlier, as before, past: each time behind one that was given up.
        for (given_up, due) in
            [(None, 50), (Some(70), 90), (Some(400), 95), (Some(200), 210), (Some(250), 250), (Some(300), 5)]
        {
            if let Some(at) = given_up {
                let mut waits = std::pin::pin!(alarm.rings(Some((started + ms(at)).into_std())));
                let _ = poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx))).await;
            }
            alarm.rings(Some((started + ms(due)).into_std())).await;
            let due = started + ms(due);
            let late = Instant::now().saturating_duration_since(due);
            assert!(Instant::now() >= due, "{due:?} is not there yet");
            assert!(late <= ms(1) || due < started + ms(50), "{late:?} too late");
        }
        assert!(timeout(ms(1000), alarm.rings(None)).await.is_err());
        let due = Instant::now() + ms(20);
        alarm.rings(Some(due.into_std())).await;
        assert_eq!(Instant::now(), due, "behind a round in which nothing was due");
    }

    /// A task that goes on asking for what is past does not keep the others from theirs.
    #[tokio::test]
    async fn whoever_is_always_due_lets_others_run() {
        let other = tokio::spawn(async {});
        let mut alarm = Alarm::default();
        let past = std::time::Instant::now();
        for _ in 0..10_000 {
            alarm.rings(Some(past)).await;
        }
        assert!(other.is_finished());
    }
}
