use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::{Method, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

use super::success::Verdict;
use crate::lock::error::LockError;
use crate::lock::grant::Outcome;
use crate::lock::held::HeldLock;
use crate::lock::hold::Hold;
use crate::lock::locks::RealmLocks;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// What one poll of a body gives.
type Step<B> = Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>;

/// Holds a body for the server that polls it and for the hold that may have to drop it; empty once
/// the body is dropped. Locked during each step of the body, its destructor included, so that the
/// hold ends before or after the step.
type Place<B> = Mutex<Option<Pin<Box<B>>>>;

/// A body that keeps the lock until it has ended.
pub(super) struct Holding<B: Body> {
    /// Empty once the body has ended: it is dropped under the lock.
    place: Arc<Place<B>>,
    /// Its last frame, where it can be told. A server may not ask for more after it, so it waits for the release.
    last: Option<Frame<B::Data>>,
    /// How many bytes are still to come, where the response says how many there are.
    left: Option<u64>,
    /// `None` once the body has ended.
    verdict: Option<Verdict>,
    hold: StreamHold,
}

/// A hold that lasts as long as a body, on a task of its own: it ends on time, and heartbeats go
/// on, when the client reads slowly or not at all.
struct StreamHold {
    held: HeldLock,
    /// Sends when the body has ended: whether the response is a success. Dropped where the body
    /// broke off.
    ended: Option<oneshot::Sender<bool>>,
    outcome: JoinHandle<Result<(), LockError>>,
    finished: bool,
}

// The body is pinned in its box, and nothing else is.
impl<B: Body> Unpin for Holding<B> {}

impl<B: Body + Send + 'static> Holding<B> {
    /// Must be called within a runtime.
    pub(super) fn new(
        body: B,
        length: Option<u64>,
        verdict: Verdict,
        hold: Hold,
        locks: &RealmLocks,
    ) -> Self {
        let place = Arc::new(Mutex::new(Some(Box::pin(body))));
        Self {
            hold: StreamHold::new(hold, locks, Arc::clone(&place)),
            place,
            last: None,
            left: length,
            verdict: Some(verdict),
        }
    }
}

impl<B: Body> Holding<B> {
    /// Drops the body, and then ends the hold if the body did not.
    fn leave(&mut self) {
        // Otherwise the hold drops it.
        if let Ok(mut place) = self.place.try_lock() {
            *place = None;
        }
        self.hold.break_off();
    }
}

impl<B: Body> Drop for Holding<B> {
    fn drop(&mut self) {
        self.leave();
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
        let Self {
            place,
            last,
            left,
            verdict,
            hold,
        } = self.get_mut();
        if hold.finished {
            return Poll::Ready(None);
        }
        // If locking fails, the hold has ended too early and is dropping the body.
        while let Ok(mut place) = place.try_lock()
            && let Some(body) = place.as_mut()
        {
            // First the clock and the hold's own task: a body must make no step without its lock.
            if hold.held.check_step().is_err() {
                *place = None;
                hold.break_off();
                break;
            }
            if let Poll::Ready(outcome) = hold.poll_outcome(cx) {
                *place = None;
                return Poll::Ready(outcome.err().map(Err));
            }
            let before = match ready!(hold.poll_body(body.as_mut(), cx)) {
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, Buf::remaining);
                    let length = u64::try_from(length).unwrap_or(u64::MAX);
                    *left = left.map(|left| left.saturating_sub(length));
                    let is_last = frame.is_trailers() || body.is_end_stream();
                    let before = last.take();
                    if !is_last && *left != Some(0) && before.is_none() {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    // After it a server may ask for no more. The body itself still may have something to do.
                    *last = Some(frame);
                    if is_last {
                        *place = None;
                    }
                    before
                }
                Some(Err(error)) => {
                    *place = None;
                    hold.break_off();
                    hold.finished = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    *place = None;
                    None
                }
            };
            if place.is_none()
                && let Some(verdict) = verdict.take()
            {
                let trailers = last.as_ref().and_then(Frame::trailers_ref);
                hold.end(verdict.at_end(trailers));
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
        if let Some(last) = &self.last {
            // What it may still have to say after its last byte is nothing to count on.
            return exact(last.data_ref().map_or(0, Buf::remaining));
        }
        match self.place.try_lock().as_deref() {
            Ok(Some(body)) => body.size_hint(),
            // It may end with an error.
            Ok(None) | Err(_) => SizeHint::default(),
        }
    }
}

impl StreamHold {
    fn new<B: Send + 'static>(hold: Hold, locks: &RealmLocks, place: Arc<Place<B>>) -> Self {
        let (ended, end) = oneshot::channel();
        Self {
            held: HeldLock::of(&hold),
            ended: Some(ended),
            outcome: locks.spawn(async move {
                match hold.guard(end).await {
                    Ok(Ok(true)) => hold.end(Outcome::Success)?.confirmed().await,
                    Ok(Ok(false)) => {
                        // Whether the lock was lost makes no difference to a failure.
                        let _ = hold.end(Outcome::Failure);
                        Ok(())
                    }
                    // The body was dropped, failed or found its lock lost. What it wrote in a
                    // shared transaction is rolled back. What else it wrote may stand, and its
                    // client saw the head of a response, so it is published.
                    Ok(Err(_)) => {
                        let claim = hold.claim().clone();
                        // Only a body that has found its lock lost reads this.
                        hold.end(Outcome::BrokenOff)
                            .and(Err(LockError::Lost { claim }))
                    }
                    Err(early_end) => {
                        // The server may keep the body for as long as its client does not read, and
                        // the next hold may begin only after the body's destructor.
                        hold.outlast(async { *place.lock().await = None }).await;
                        let _ = hold.end(Outcome::Failure);
                        Err(early_end)
                    }
                }
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

    /// Reports to the hold that the body has ended, and whether the response is a success.
    fn end(&mut self, is_success: bool) {
        if let Some(ended) = self.ended.take() {
            // A hold that has ended before says so in its outcome.
            let _ = ended.send(is_success);
        }
    }

    /// Reports to the hold that the body has broken off, unless it has ended before.
    fn break_off(&mut self) {
        self.ended = None;
    }
}

/// How many bytes a server sends of the response's body, after which it asks for no more.
pub(super) fn length<B: Body>(response: &Response<B>) -> Option<u64> {
    let announced = response.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    announced.or_else(|| response.body().size_hint().exact())
}

/// Whether the connection is a tunnel after a response with this status.
pub(super) fn is_tunnel(method: &Method, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (*method == Method::CONNECT && status.is_success())
}

/// Whether a server asks for the body of the response to a request of this method and version.
pub(super) fn is_streamed<B: Body>(
    method: &Method,
    version: Version,
    response: &Response<B>,
    length: Option<u64>,
) -> bool {
    let status = response.status();
    let has_none = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || status.is_informational()
        || *method == Method::HEAD
        || is_tunnel(method, status);
    // HTTP/1 ends a response of a known length with its last byte. Later versions can send trailers
    // after it, even where it has none.
    let is_empty = length == Some(0) && version < Version::HTTP_2;
    !has_none && !is_empty && !response.body().is_end_stream()
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
        paused_runtime().block_on(late_confirmation());
    }

    async fn late_confirmation() {
        let (hold, lease) = leased(Duration::from_secs(30));
        let endless = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let body = Holding::new(
            StreamBody::new(endless),
            None,
            Verdict::Success,
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
