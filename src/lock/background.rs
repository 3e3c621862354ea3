use std::future::Future;

use tokio::runtime::{EnterGuard, Handle};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// Where that goes on which nobody waits for any more, such as the rest of a release. A shutdown waits for it.
#[derive(Debug, Clone)]
pub(crate) struct Background {
    runtime: Handle,
    tasks: TaskTracker,
}

impl Background {
    /// Must be called within a runtime. What is spawned later, from wherever, runs there.
    pub(crate) fn new(tasks: &TaskTracker) -> Self {
        Self {
            runtime: Handle::current(),
            tasks: tasks.clone(),
        }
    }

    /// Makes the runtime that of the current thread, which may be none of its own.
    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn_on(work, &self.runtime)
    }
}
