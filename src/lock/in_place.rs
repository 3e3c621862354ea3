use std::future::Future;
use std::mem;
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
pub(crate) struct InPlace<W>
where
    W: Future<Output: Send> + Send + 'static,
{
    state: State<W>,
    tracker: TaskTracker,
    /// Where it is adopted; known once it has waited.
    runtime: Option<Handle>,
}

enum State<W> {
    /// Boxed, so that it does not move when it is adopted.
    Running(Pin<Box<W>>),
    /// It is being polled, has ended, or has panicked.
    Over,
}

impl<W> InPlace<W>
where
    W: Future<Output: Send> + Send + 'static,
{
    pub(super) fn new(tracker: &TaskTracker, work: W) -> Self {
        Self {
            state: State::Running(Box::pin(work)),
            tracker: tracker.clone(),
            runtime: None,
        }
    }

    fn take(&mut self) -> Option<Pin<Box<W>>> {
        match mem::replace(&mut self.state, State::Over) {
            State::Running(work) => Some(work),
            State::Over => None,
        }
    }

    /// Runs the rest of the work on a task of its own. Where no runtime is known it is dropped, which
    /// ends its hold.
    fn adopt(&mut self) {
        if let Some(work) = self.take()
            && let Some(runtime) = self.runtime.take()
        {
            let adopted = work.in_current_span();
            self.tracker.spawn_on(adopted, &runtime);
        }
    }
}

impl<W> Future for InPlace<W>
where
    W: Future<Output: Send> + Send + 'static,
{
    type Output = W::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<W::Output> {
        // Out of its state, so that work which panics is not adopted.
        let Some(mut work) = self.take() else {
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(cx);
        if polled.is_pending() {
            self.state = State::Running(work);
            if self.runtime.is_none() {
                self.runtime = Handle::try_current().ok();
            }
        }
        polled
    }
}

impl<W> Drop for InPlace<W>
where
    W: Future<Output: Send> + Send + 'static,
{
    fn drop(&mut self) {
        self.adopt();
    }
}
