use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;
use pin_project::pin_project;

use super::LockBody;

/// The response future of [`RealmWriteLock`](super::RealmWriteLock).
///
/// # Cancel safety
///
/// Dropped while it waits for the lock, it leaves the queue and the inner service is never called. Dropped after the
/// grant, the inner call runs to its end, unless [`OnDisconnect::Cancel`](super::OnDisconnect) was chosen.
#[pin_project]
pub struct ResponseFuture<F, B, E>(#[pin] Kind<F, B, E>);

pub(super) type Outcome<B, E> = Result<Response<LockBody<B>>, E>;

#[pin_project(project = KindProjection)]
enum Kind<F, B, E> {
    /// Not locked: the inner future itself, nothing allocated.
    Passed(#[pin] F),
    Locked(Pin<Box<dyn Future<Output = Outcome<B, E>> + Send>>),
    Rejected(Ready<Outcome<B, E>>),
}

impl<F, B, E> ResponseFuture<F, B, E> {
    pub(super) fn passed(inner: F) -> Self {
        Self(Kind::Passed(inner))
    }

    pub(super) fn locked(call: impl Future<Output = Outcome<B, E>> + Send + 'static) -> Self {
        Self(Kind::Locked(Box::pin(call)))
    }

    pub(super) fn rejected(response: Response<LockBody<B>>) -> Self {
        Self(Kind::Rejected(ready(Ok(response))))
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Outcome<B, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            KindProjection::Passed(inner) => inner
                .poll(cx)
                .map_ok(|response| response.map(LockBody::passed)),
            KindProjection::Locked(call) => call.as_mut().poll(cx),
            KindProjection::Rejected(response) => Pin::new(response).poll(cx),
        }
    }
}
