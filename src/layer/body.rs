use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::holding::{BoxError, Holding, exact};
use super::success::Verdict;
use crate::lock::hold::Hold;
use crate::lock::locks::RealmLocks;

/// The body of a response: the inner service's, or that of a [`Rejection`](super::Rejection).
///
/// Under [`HoldUntil::BodyEnd`](super::HoldUntil) it keeps the lock until it has ended or is dropped, and ends with an error
/// if the lock was lost before.
#[pin_project]
pub struct LockBody<B: Body>(#[pin] BodySource<B>);

#[pin_project(project = BodySourceProjection)]
enum BodySource<B: Body> {
    Passed(#[pin] B),
    // Boxed so that a response that keeps no hold does not carry its space.
    Holding(Box<Holding<B>>),
    Rejected(Option<Bytes>),
}

impl<B: Body> LockBody<B> {
    pub(super) fn passed(body: B) -> Self {
        Self(BodySource::Passed(body))
    }

    pub(super) fn rejected(problem: Bytes) -> Self {
        // Without a body the response ends with its head, as gRPC clients expect.
        let problem = Some(problem).filter(|problem| !problem.is_empty());
        Self(BodySource::Rejected(problem))
    }
}

impl<B: Body + Send + 'static> LockBody<B> {
    /// A body of `length` bytes, if that is known, that keeps the hold until it ends; then the
    /// verdict decides how the hold ends. Must be called within a runtime.
    pub(super) fn holding(
        body: B,
        length: Option<u64>,
        verdict: Verdict,
        hold: Hold,
        locks: &RealmLocks,
    ) -> Self {
        let holding = Holding::new(body, length, verdict, hold, locks);
        Self(BodySource::Holding(Box::new(holding)))
    }
}

/// An empty body. Layers outside the lock, such as tower-http's CORS, need it for their own
/// responses.
impl<B: Body> Default for LockBody<B> {
    fn default() -> Self {
        Self(BodySource::Rejected(None))
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
            BodySourceProjection::Passed(body) => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            BodySourceProjection::Holding(body) => Pin::new(&mut **body).poll_frame(cx),
            BodySourceProjection::Rejected(problem) => Poll::Ready(
                problem
                    .take()
                    .map(|problem| Ok(Frame::data(problem.into()))),
            ),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodySource::Passed(body) => body.is_end_stream(),
            BodySource::Holding(body) => body.is_end_stream(),
            BodySource::Rejected(problem) => problem.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodySource::Passed(body) => body.size_hint(),
            BodySource::Holding(body) => body.size_hint(),
            BodySource::Rejected(problem) => exact(problem.as_ref().map_or(0, Bytes::len)),
        }
    }
}

impl<B: Body> fmt::Debug for LockBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0 {
            BodySource::Passed(_) => "passed",
            BodySource::Holding(_) => "holding",
            BodySource::Rejected(_) => "rejected",
        };
        f.debug_tuple("LockBody").field(&kind).finish()
    }
}
