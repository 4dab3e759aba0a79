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
