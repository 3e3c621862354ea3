use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::{Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::lock::error::LockError;
use crate::lock::grant::Outcome;
use crate::lock::held::HeldLock;
use crate::lock::hold::Hold;
use crate::lock::locks::RealmLocks;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// What one poll of a body gives.
type Step<B> = Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>;

/// A body that keeps the lock until it has ended.
#[pin_project]
pub(super) struct Holding<B: Body> {
    /// None once it has ended: it is dropped under the lock.
    #[pin]
    body: Option<B>,
    /// Its last frame, where it can be told. A server may not ask for more after it, so it waits for the release.
    last: Option<Frame<B::Data>>,
    /// How many bytes are still to come, where the response says how many there are.
    left: Option<u64>,
    hold: StreamHold,
}

/// A hold that lasts as long as a body, on a task of its own: heartbeats go on when the client reads slowly.
struct StreamHold {
    held: HeldLock,
    /// Sends when the body has ended well; dropped where it has not, and the hold is rolled back.
    open: Option<oneshot::Sender<()>>,
    outcome: JoinHandle<Result<(), LockError>>,
    finished: bool,
}

impl<B: Body> Holding<B> {
    /// Must be called within a runtime.
    pub(super) fn new(body: B, length: Option<u64>, hold: Hold, locks: &RealmLocks) -> Self {
        Self {
            body: Some(body),
            last: None,
            left: length,
            hold: StreamHold::new(hold, locks),
        }
    }
}

impl<B> Body for Holding<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let (mut body, last, left, hold) = (this.body, this.last, this.left, this.hold);
        if hold.finished {
            return Poll::Ready(None);
        }
        while let Some(stream) = body.as_mut().as_pin_mut() {
            // First the clock and the hold's own task: a body must make no step without its lock.
            if hold.held.check_step().is_err() {
                hold.fail();
                body.set(None);
                break;
            }
            if let Poll::Ready(outcome) = hold.poll_outcome(cx) {
                body.set(None);
                return Poll::Ready(outcome.err().map(Err));
            }
            let before = match ready!(hold.poll_body(stream, cx)) {
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, Buf::remaining);
                    let length = u64::try_from(length).unwrap_or(u64::MAX);
                    *left = left.map(|left| left.saturating_sub(length));
                    let is_last = frame.is_trailers() || is_end(body.as_ref());
                    let before = last.take();
                    if !is_last && *left != Some(0) && before.is_none() {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    // After it a server may ask for no more. The body itself still may have something to do.
                    *last = Some(frame);
                    if is_last {
                        body.set(None);
                    }
                    before
                }
                Some(Err(error)) => {
                    body.set(None);
                    hold.fail();
                    hold.finished = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    body.set(None);
                    None
                }
            };
            if body.is_none() {
                hold.end();
            }
            if let Some(before) = before {
                return Poll::Ready(Some(Ok(before)));
            }
        }
        // The end is told only once the lock is known to have held to it.
        Poll::Ready(match ready!(hold.poll_outcome(cx)) {
            Ok(()) => last.take().map(Ok),
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.hold.finished
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) if self.last.is_none() => body.size_hint(),
            // What it may still have to say after its last byte is nothing to count on.
            _ => {
                let data = self.last.as_ref().and_then(Frame::data_ref);
                exact(data.map_or(0, Buf::remaining))
            }
        }
    }
}

impl StreamHold {
    fn new(hold: Hold, locks: &RealmLocks) -> Self {
        let (open, ended) = oneshot::channel();
        Self {
            held: HeldLock::of(&hold),
            open: Some(open),
            outcome: locks.spawn(async move {
                if hold.guard(ended).await?.is_ok() {
                    return hold.end(Outcome::Success)?.confirmed().await;
                }
                // The body was dropped, failed or found its lock lost. What it wrote in a shared
                // transaction is rolled back. What else it wrote may stand, and its client saw the
                // head of a success, so it is published.
                let claim = hold.claim().clone();
                // Only a body that has found its lock lost reads this.
                hold.end(Outcome::BrokenOff)
                    .and(Err(LockError::Lost { claim }))
            }),
            finished: false,
        }
    }

    /// Polls the body as a part of the call that holds the lock.
    fn poll_body<B: Body>(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Step<B>> {
        self.held.within(|| body.poll_frame(cx))
    }

    /// Resolves when the hold has ended: after the body, or before it by a loss.
    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let outcome = ready!(Pin::new(&mut self.outcome).poll(cx));
        self.finished = true;
        Poll::Ready(match outcome {
            Ok(outcome) => outcome.map_err(BoxError::from),
            Err(ended) => Err(ended.into()),
        })
    }

    /// Tells the hold that the body has ended well.
    fn end(&mut self) {
        if let Some(open) = self.open.take() {
            // A hold that has ended before says so in its outcome.
            let _ = open.send(());
        }
    }

    /// Tells the hold that the body has failed.
    fn fail(&mut self) {
        self.open = None;
    }
}

fn is_end<B: Body>(body: Pin<&Option<B>>) -> bool {
    body.as_pin_ref().is_some_and(|body| body.is_end_stream())
}

/// How many bytes a server sends of the response's body, after which it asks for no more.
pub(super) fn length<B: Body>(response: &Response<B>) -> Option<u64> {
    let announced = response.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    announced.or_else(|| response.body().size_hint().exact())
}

/// Whether a server asks for the response's body at all.
pub(super) fn is_streamed<B: Body>(response: &Response<B>, length: Option<u64>) -> bool {
    let has_none = matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    !has_none && length != Some(0) && !response.body().is_end_stream()
}

/// The hint of a body with so many bytes to come.
pub(super) fn exact(length: usize) -> SizeHint {
    SizeHint::with_exact(length.try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::{FutureExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::lock::hold::tests::{leased, paused_runtime};

    #[test]
    fn a_body_that_found_its_lock_lost_does_not_end_well_whatever_comes_later() {
        // The queue's mutex is a model checker's in unit tests.
        shuttle::check_random(|| paused_runtime().block_on(late_confirmation()), 1);
    }

    async fn late_confirmation() {
        let (hold, lease) = leased(Duration::from_secs(30));
        let endless = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let body = Holding::new(
            StreamBody::new(endless),
            None,
            hold,
            &RealmLocks::in_process(),
        );
        let mut body = pin!(body);
        assert!(body.frame().now_or_never().is_none());
        // The hold's own task runs, and is not woken by the time.
        tokio::task::yield_now().await;
        advance(Duration::from_secs(20)).await;
        assert!(body.frame().now_or_never().is_none(), "it is cut off");
        // The answer to what another hold of the same lock has asked, or another realm of the same session.
        lease.confirm(Instant::now());
        let end = body.frame().await.expect("an error, not an end");
        assert!(end.unwrap_err().to_string().contains("lost"));
    }
}
