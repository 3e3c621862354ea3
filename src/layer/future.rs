use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;
use http_body::Body;
use pin_project::pin_project;

use super::body::LockBody;

/// The response future of [`RealmWriteLock`](super::RealmWriteLock).
///
/// It runs the inner call itself, in the task that polls it.
///
/// # Cancel safety
///
/// Dropped while it waits for the lock, it leaves the queue and the inner service is never called.
/// Dropped after the grant, a task adopts the inner call and runs it to its end, unless
/// [`OnDisconnect::Cancel`](crate::OnDisconnect) was chosen.
///
/// Neither polled nor dropped, it loses the lock after the lease of PostgreSQL locks, or after
/// `max_hold` of locks in process. Polled again, it drops the inner call and is rejected with 503
/// `lock-lost` or 504 `hold-expired`.
#[pin_project]
pub struct ResponseFuture<F, B: Body, E>(#[pin] Call<F, B, E>);

pub(super) type CallResult<B, E> = Result<Response<LockBody<B>>, E>;

#[pin_project(project = CallProjection)]
enum Call<F, B: Body, E> {
    /// Not locked: the inner future itself, nothing allocated.
    Passed(#[pin] F),
    /// Locked, or rejected.
    Locked(Pin<Box<dyn Future<Output = CallResult<B, E>> + Send>>),
}

impl<F, B: Body, E> ResponseFuture<F, B, E> {
    pub(super) fn passed(inner: F) -> Self {
        Self(Call::Passed(inner))
    }

    pub(super) fn locked(call: impl Future<Output = CallResult<B, E>> + Send + 'static) -> Self {
        Self(Call::Locked(Box::pin(call)))
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    B: Body,
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = CallResult<B, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            CallProjection::Passed(inner) => inner
                .poll(cx)
                .map_ok(|response| response.map(LockBody::passed)),
            CallProjection::Locked(call) => call.as_mut().poll(cx),
        }
    }
}

impl<F, B: Body, E> fmt::Debug for ResponseFuture<F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0 {
            Call::Passed(_) => "passed",
            Call::Locked(_) => "locked",
        };
        f.debug_tuple("ResponseFuture").field(&kind).finish()
    }
}
