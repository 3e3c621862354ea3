//! Work that a hold outlives: blocking closures, which nothing can stop, and futures that must not
//! be cut in half.
//!
//! Each has a part of the hold that it was started under: its own share of the grants, as a nested
//! hold has. So the last of them to end gives the lock back, and the task that runs the work keeps
//! the lease and shows the watchdog that it is alive. The handler's outcome decides about a shared
//! transaction, which waits for the work before it commits: until `max_hold` at most, and not at all
//! if the work panics.
//!
//! When a runtime ends, it drops the part of a closure that still runs. So shut the locks down first,
//! with [`RealmLocks::shutdown`](super::RealmLocks::shutdown), which waits for the closure.

use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::task::{self, JoinError, JoinHandle};
use tracing::{Instrument, Span};

use super::error::LockError;
use super::grant::Outcome;
use super::hold::{Core, Hold};

/// Work that was started as part of a hold. Resolves to what the work returns.
///
/// Made by [`HeldLock::spawn_blocking`](crate::HeldLock::spawn_blocking) and
/// [`HeldLock::spawn`](crate::HeldLock::spawn).
///
/// # Errors
///
/// [`LockError::Lost`] for a future that was dropped because the lock was lost. If the hold was
/// lost, had expired or had ended when the work was to start, it was not started, and the error is
/// that of [`HeldLock::ensure_held`](crate::HeldLock::ensure_held).
///
/// # Panics
///
/// As the work does.
///
/// # Cancel safety
///
/// Dropped or not, the work runs to its end and keeps the lock until then.
pub struct HeldTask<T>(JoinHandle<Result<T, LockError>>);

/// The part of a hold that belongs to work which it outlives. Handles of the hold are usable until
/// the work has ended; they learn of its end before the share goes back.
struct Work {
    outer: Arc<Core>,
    hold: Hold,
    has_ended: bool,
}

/// Runs a closure on a blocking thread as part of the hold.
pub(super) fn spawn_blocking<T, F>(outer: &Arc<Core>, work: F) -> HeldTask<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    HeldTask::start(outer, |own| {
        let (span, core) = (Span::current(), Arc::clone(own.hold.core()));
        let blocking = task::spawn_blocking(move || span.in_scope(|| core.within(work)));
        async move {
            let done = own.hold.outlast(blocking).await.map_err(stopped);
            own.end();
            done
        }
    })
}

/// Runs a future on a task of its own as part of the hold.
pub(super) fn spawn<W>(outer: &Arc<Core>, work: W) -> HeldTask<W::Output>
where
    W: Future<Output: Send> + Send + 'static,
{
    HeldTask::start(outer, |own| async move {
        let done = own.hold.guard(work).await;
        own.end();
        done
    })
}

impl<T: Send + 'static> HeldTask<T> {
    /// Starts work with a part of the hold, on a task of its own. A shutdown waits for the part.
    fn start<W>(outer: &Arc<Core>, work: impl FnOnce(Work) -> W) -> Self
    where
        W: Future<Output = Result<T, LockError>> + Send + 'static,
    {
        // Before the task: the work begins at once, or not at all.
        let started = Work::of(outer).map(work);
        let task = async move { started?.await };
        Self(tokio::spawn(task.in_current_span()))
    }
}

/// Why a closure returned nothing: it panicked, and the panic goes on here, or its runtime has
/// ended.
fn stopped(error: JoinError) -> LockError {
    match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => LockError::ShuttingDown,
    }
}

impl<T> Future for HeldTask<T> {
    type Output = Result<T, LockError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(done.unwrap_or_else(|error| Err(stopped(error))))
    }
}

impl<T> fmt::Debug for HeldTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldTask").finish_non_exhaustive()
    }
}

impl Work {
    fn of(outer: &Arc<Core>) -> Result<Self, LockError> {
        outer.ensure_held()?;
        // Before it has a share: the hold may end meanwhile, and must know of it.
        outer.begin_work();
        let hold = Hold::for_work(outer).inspect_err(|_| outer.end_work())?;
        Ok(Self {
            outer: Arc::clone(outer),
            hold,
            has_ended: false,
        })
    }

    /// Gives the share of the work back.
    fn end(mut self) {
        self.has_ended = true;
        self.outer.end_work();
        // A hold that ends well, or has not ended yet, decides by its own outcome what is
        // published. What was written under one that was stopped stands all the same.
        let outcome = if self.outer.has_failed() {
            Outcome::BrokenOff
        } else {
            Outcome::Failure
        };
        // Its loss, if any, was reported to the code that awaits the work.
        let _ = self.hold.finish(outcome);
    }

    /// Keeps a shared transaction that waits for the work from committing, if the work has panicked.
    /// After this the share goes back.
    fn leave(&self) {
        if !self.has_ended {
            self.outer
                .withdraw("work that the handler had started has panicked");
            self.outer.end_work();
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.leave();
    }
}
