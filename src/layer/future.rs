use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;
use http_body::Body;
use pin_project::pin_project;

use super::LockBody;

/// The response future of [`RealmWriteLock`](super::RealmWriteLock).
///
/// # Cancel safety
///
/// Dropped while it waits for the lock, it leaves the queue and the inner service is never called. Dropped after the
/// grant, the inner call runs to its end, unless [`OnDisconnect::Cancel`](super::OnDisconnect) was chosen.
#[pin_project]
pub struct ResponseFuture<F, B: Body, E>(#[pin] Kind<F, B, E>);

pub(super) type Outcome<B, E> = Result<Response<LockBody<B>>, E>;

#[pin_project(project = KindProjection)]
enum Kind<F, B: Body, E> {
    /// Not locked: the inner future itself, nothing allocated.
    Passed(#[pin] F),
    /// Locked, or rejected.
    Locked(Pin<Box<dyn Future<Output = Outcome<B, E>> + Send>>),
}

impl<F, B: Body, E> ResponseFuture<F, B, E> {
    pub(super) fn passed(inner: F) -> Self {
        Self(Kind::Passed(inner))
    }

    pub(super) fn locked(call: impl Future<Output = Outcome<B, E>> + Send + 'static) -> Self {
        Self(Kind::Locked(Box::pin(call)))
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    B: Body,
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Outcome<B, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            KindProjection::Passed(inner) => inner
                .poll(cx)
                .map_ok(|response| response.map(LockBody::passed)),
            KindProjection::Locked(call) => call.as_mut().poll(cx),
        }
    }
}
