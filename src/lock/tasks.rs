use std::future::Future;

use tokio::runtime::{EnterGuard, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks that a shutdown waits for, and the signal that it has begun. Clones belong to the same
/// locks.
#[derive(Debug, Clone, Default)]
pub(super) struct TaskGroup {
    tracker: TaskTracker,
    closing: CancellationToken,
}

/// Runs work that outlives its caller, such as the rest of a release. A shutdown waits for it.
#[derive(Debug, Clone)]
pub(super) struct Tasks {
    runtime: Handle,
    group: TaskGroup,
}

impl TaskGroup {
    pub(super) fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Cancelled when a shutdown begins.
    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }
}

impl Tasks {
    /// Must be called within a runtime, which runs whatever is spawned later, from any thread.
    pub(super) fn new(group: &TaskGroup) -> Self {
        Self {
            runtime: Handle::current(),
            group: group.clone(),
        }
    }

    /// Makes the runtime current for this thread.
    pub(super) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    pub(super) fn closing(&self) -> &CancellationToken {
        self.group.closing()
    }

    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.group.tracker.spawn_on(work, &self.runtime)
    }
}
