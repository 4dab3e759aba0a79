//! The future of a write.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::{Inner, Shared, WriteOutcome};
use crate::error::{Code, Error, Result};
use crate::log::Request;

/// A command under way; a future of its outcome.
///
/// It gives an error only if the command got no number: [`Code::TooLarge`], [`Code::Busy`] while too much waits to be
/// sent, or why the session ended.
#[must_use = "the outcome is known when this is awaited; dropped before it is sent, the command is withdrawn"]
pub struct Writing {
    pub(super) state: State,
}

pub(super) enum State {
    Failed(Option<Error>),
    Waiting {
        shared: Arc<Shared>,
        request: Request,
        answer: oneshot::Receiver<WriteOutcome>,
        deadline: Option<tokio::time::Instant>,
        timer: Option<Pin<Box<tokio::time::Sleep>>>,
    },
    Done,
}

impl Writing {
    /// The command's number, if it got one.
    pub fn request(&self) -> Option<Request> {
        match &self.state {
            State::Waiting { request, .. } => Some(*request),
            State::Failed(_) | State::Done => None,
        }
    }
}

impl Future for Writing {
    type Output = Result<WriteOutcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = match &mut self.state {
            State::Failed(error) => Err(error.take().unwrap_or_else(finished)),
            State::Done => Err(finished()),
            State::Waiting { shared, request, answer, deadline, timer } => match Pin::new(&mut *answer).poll(cx) {
                Poll::Ready(Ok(outcome)) => Ok(outcome),
                Poll::Ready(Err(_)) => {
                    let ended = shared.inner.lock().ended.clone();
                    let error = ended.unwrap_or_else(|| Error::new(Code::Closed, "the client was dropped"));
                    Ok(WriteOutcome::Unknown { request: *request, error })
                }
                Poll::Pending => {
                    let Some(deadline) = *deadline else { return Poll::Pending };
                    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                    std::task::ready!(timer.as_mut().poll(cx));
                    give_up(&mut shared.inner.lock(), answer);
                    let error = Error::new(Code::Deadline, "the deadline passed before the outcome was known");
                    Ok(WriteOutcome::Unknown { request: *request, error })
                }
            },
        };
        self.state = State::Done;
        Poll::Ready(done)
    }
}

/// What has come meanwhile is kept for who may ask for it. Under the lock, so that nothing comes in between.
fn give_up(inner: &mut Inner, answer: &mut oneshot::Receiver<WriteOutcome>) {
    answer.close();
    if let Ok(outcome) = answer.try_recv() {
        inner.keep(outcome);
    }
}

fn finished() -> Error {
    Error::new(Code::InvalidArgument, "the future was awaited to its end already")
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let State::Waiting { shared, request, answer, .. } = &mut self.state {
            let mut inner = shared.inner.lock();
            give_up(&mut inner, answer);
            if inner.core.withdraw(*request) {
                shared.bell.notify_one();
            }
        }
    }
}
