use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Granted work, polled in its caller's own task. If it is dropped before it has ended, a task adopts
/// it and runs it to its end.
///
/// So whatever the caller's task has, such as task-locals or an error-reporting context, the work has
/// too, for as long as it is in place. Adopted work keeps only the tracing span.
pub(crate) struct InPlace<'a, W>
where
    W: Future<Output: Send> + Send + 'static,
{
    /// Boxed, so that it does not move when it is adopted. `None` while it is polled, and once it has
    /// ended or panicked.
    work: Option<Pin<Box<W>>>,
    tracker: &'a TaskTracker,
    /// Where it is adopted; known once it has waited.
    runtime: Option<Handle>,
}

impl<'a, W> InPlace<'a, W>
where
    W: Future<Output: Send> + Send + 'static,
{
    pub(super) fn new(tracker: &'a TaskTracker, work: W) -> Self {
        Self {
            work: Some(Box::pin(work)),
            tracker,
            runtime: None,
        }
    }

    /// Runs the rest of the work on a task of its own. Where no runtime is known it is dropped, which
    /// ends its hold.
    fn adopt(&mut self) {
        if let Some(work) = self.work.take()
            && let Some(runtime) = self.runtime.take()
        {
            let adopted = work.in_current_span();
            self.tracker.spawn_on(adopted, &runtime);
        }
    }
}

impl<W> Future for InPlace<'_, W>
where
    W: Future<Output: Send> + Send + 'static,
{
    type Output = W::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<W::Output> {
        // Taken out, so that work which panics is not adopted.
        let Some(mut work) = self.work.take() else {
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(cx);
        if polled.is_pending() {
            self.work = Some(work);
            if self.runtime.is_none() {
                self.runtime = Handle::try_current().ok();
            }
        }
        polled
    }
}

impl<W> Drop for InPlace<'_, W>
where
    W: Future<Output: Send> + Send + 'static,
{
    fn drop(&mut self) {
        self.adopt();
    }
}
