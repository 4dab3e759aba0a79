use std::task::{Context, Waker};

use super::*;

/// Calls that are given up while the service is away leave nothing behind, however often they are made.
#[tokio::test]
#[allow(clippy::unwrap_used)]
async fn what_was_given_up_is_forgotten() {
    let client = TaggedClient::builder("rack-1").endpoints(["http://127.0.0.1:1"]).start().await.unwrap();
    let write = client.write(&b"a"[..]);
    let request = write.request().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..100 {
        assert!(Box::pin(client.flush()).as_mut().poll(&mut context).is_pending());
        assert!(Box::pin(client.outcome(request)).as_mut().poll(&mut context).is_pending());
        assert!(Box::pin(client.read(&b"b"[..])).as_mut().poll(&mut context).is_pending());
    }
    let inner = client.running.shared.inner.lock();
    assert!(inner.flushes.is_empty(), "{} flushes", inner.flushes.len());
    assert!(inner.reads.is_empty(), "{} reads", inner.reads.len());
    assert_eq!(
        inner.writes.get(&request).map(|waiters| waiters.others.len()),
        Some(1),
        "the last one to ask for its outcome"
    );
}

/// Whoever gives up after an outcome came, and before it looked, took that with it once.
#[tokio::test]
#[allow(clippy::unwrap_used)]
async fn an_outcome_that_nobody_looked_at_may_be_asked_for() {
    let client = TaggedClient::builder("rack-1").endpoints(["http://127.0.0.1:1"]).start().await.unwrap();
    let (late, early, asked) = (client.write(&b"a"[..]), client.write(&b"b"[..]), client.write(&b"c"[..]));
    let mut hasty = client.write_opts(&b"d"[..], WriteOptions::default().deadline(Duration::ZERO));
    let requests = [&late, &early, &asked, &hasty].map(|writing| writing.request().unwrap());
    assert!(matches!((&mut hasty).await, Ok(WriteOutcome::Unknown { error, .. }) if error.code() == Code::Deadline));
    drop(early);
    let mut asking = Box::pin(client.outcome(requests[2]));
    assert!(asking.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    for request in requests {
        let reply = Bytes::from_static(b"done");
        let outcome = WriteOutcome::Acknowledged { request, tag: None, met: Level::Local, reply };
        client.running.shared.inner.lock().tell(outcome);
    }
    drop(late);
    drop(asking);
    assert!(matches!(asked.await, Ok(WriteOutcome::Acknowledged { .. })));
    let inner = client.running.shared.inner.lock();
    assert_eq!(inner.outcomes.keys().copied().collect::<Vec<_>>(), requests);
    assert!(inner.writes.is_empty());
}
