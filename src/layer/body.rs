use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::lock::{Hold, LockError, RealmLocks};

type BoxError = Box<dyn Error + Send + Sync>;

/// The body of a response: the inner service's, or that of a [`Rejection`](super::Rejection).
///
/// Under [`HoldUntil::BodyEnd`](super::HoldUntil) it keeps the lock until it has ended or is dropped, and ends with an error
/// if the lock was lost before.
#[derive(Debug)]
#[pin_project]
pub struct LockBody<B>(#[pin] Kind<B>);

#[derive(Debug)]
#[pin_project(project = KindProjection)]
enum Kind<B> {
    Passed(#[pin] B),
    Holding {
        #[pin]
        body: B,
        hold: StreamHold,
    },
    Rejected(Option<Bytes>),
}

/// A hold that lasts as long as a body, on a task of its own: heartbeats go on when the client reads slowly.
#[derive(Debug)]
struct StreamHold {
    /// Dropped when the body has ended: the task then releases.
    open: Option<oneshot::Sender<()>>,
    outcome: JoinHandle<Result<(), LockError>>,
    finished: bool,
}

impl<B> LockBody<B> {
    pub(super) fn passed(body: B) -> Self {
        Self(Kind::Passed(body))
    }

    pub(super) fn rejected(problem: Bytes) -> Self {
        Self(Kind::Rejected(Some(problem)))
    }

    /// A body that keeps the hold to its end. Must be called within a runtime.
    pub(super) fn holding(body: B, hold: Hold, locks: &RealmLocks) -> Self {
        let (open, ended) = oneshot::channel();
        let outcome = locks.spawn(async move {
            // The channel carries nothing: it closes when the body has ended or is dropped.
            let _closed = hold.guard(ended).await?;
            hold.release().await
        });
        Self(Kind::Holding {
            body,
            hold: StreamHold {
                open: Some(open),
                outcome,
                finished: false,
            },
        })
    }
}

impl StreamHold {
    /// Resolves when the hold has ended: after [`end`](Self::end), or before it by a loss.
    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let outcome = ready!(Pin::new(&mut self.outcome).poll(cx));
        self.finished = true;
        Poll::Ready(match outcome {
            Ok(outcome) => outcome.map_err(BoxError::from),
            Err(ended) => Err(ended.into()),
        })
    }

    fn end(&mut self) {
        self.open = None;
    }
}

impl<B> Body for LockBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.project().0.project() {
            KindProjection::Passed(body) => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            KindProjection::Rejected(problem) => Poll::Ready(
                problem
                    .take()
                    .map(|problem| Ok(Frame::data(problem.into()))),
            ),
            KindProjection::Holding { hold, .. } if hold.finished => Poll::Ready(None),
            KindProjection::Holding { body, hold } => {
                if hold.open.is_some() {
                    if let Poll::Ready(Err(lost)) = hold.poll_outcome(cx) {
                        return Poll::Ready(Some(Err(lost)));
                    }
                    if let Some(frame) = ready!(body.poll_frame(cx)) {
                        return Poll::Ready(Some(frame.map_err(Into::into)));
                    }
                    hold.end();
                }
                // The end is told only once the lock is known to have held to it.
                let outcome = ready!(hold.poll_outcome(cx));
                Poll::Ready(outcome.err().map(Err))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Passed(body) => body.is_end_stream(),
            Kind::Holding { hold, .. } => hold.finished,
            Kind::Rejected(problem) => problem.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Passed(body) | Kind::Holding { body, .. } => body.size_hint(),
            Kind::Rejected(problem) => {
                let length = problem.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(length.try_into().unwrap_or(u64::MAX))
            }
        }
    }
}
