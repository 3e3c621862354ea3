use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::nesting::Nesting;
use super::postgres::LockedTransaction;
use super::queue::Turn;
use super::{HeldLock, LockError};

/// A granted lock and the duty to release it.
///
/// [`Hold::release`] releases and confirms. Dropping a hold, as a panic or a cancelled call does, hands it to a task that
/// rolls back; either way the next local waiter gets its turn only after the server has answered.
#[derive(Debug)]
pub(crate) struct Hold {
    held: HeldLock,
    /// None once it is released.
    grant: Option<Grant>,
    granted: Instant,
    longest: Option<Duration>,
    /// What the same task already held.
    nesting: Nesting,
    /// Where a dropped hold is released.
    runtime: Handle,
    tasks: TaskTracker,
    /// Makes a shutdown wait for it, on whatever task it is.
    _tracked: TaskTrackerToken,
}

/// What is given back at release, the transaction before the turn.
#[derive(Debug)]
struct Grant {
    transaction: Option<LockedTransaction>,
    turn: Turn,
}

impl Hold {
    /// Must be called within a runtime. `transaction` is `None` for a lock that is held in process alone.
    pub(crate) fn new(
        held: HeldLock,
        transaction: Option<LockedTransaction>,
        turn: Turn,
        max_hold: Option<Duration>,
        nesting: Nesting,
        tasks: &TaskTracker,
        tracked: TaskTrackerToken,
    ) -> Self {
        Self {
            held,
            grant: Some(Grant { transaction, turn }),
            granted: Instant::now(),
            longest: max_hold,
            nesting,
            runtime: Handle::current(),
            tasks: tasks.clone(),
            _tracked: tracked,
        }
    }

    pub(crate) fn held(&self) -> &HeldLock {
        &self.held
    }

    /// What work under this hold already holds.
    pub(crate) fn nesting(&self) -> Nesting {
        self.nesting.with(&self.held)
    }

    /// Runs `work` until it ends, the lock is lost, or the longest hold has passed; then `work` is dropped.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] and [`LockError::Expired`].
    pub(crate) async fn guard<T>(&self, work: impl Future<Output = T>) -> Result<T, LockError> {
        let mut work = pin!(self.nesting().within(work));
        let mut end = pin!(self.end());
        poll_fn(|cx| {
            // A process that was frozen must see the time before its work goes on, and timers may fire late.
            if !self.held.is_held() {
                return Poll::Ready(Err(self.lost()));
            }
            if let Poll::Ready(error) = end.as_mut().poll(cx) {
                return Poll::Ready(Err(error));
            }
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Keeps the hold alive; resolves when it must end before its work does.
    async fn end(&self) -> LockError {
        tokio::select! {
            () = self.keep() => self.lost(),
            error = self.expired() => error,
        }
    }

    async fn keep(&self) {
        match self.transaction() {
            Some(transaction) => transaction.keep().await,
            None => pending().await,
        }
    }

    async fn expired(&self) -> LockError {
        // A bound too far away to be a point in time is no bound.
        let end = self
            .longest
            .and_then(|max_hold| Some((max_hold, self.granted.checked_add(max_hold)?)));
        let Some((max_hold, end)) = end else {
            return pending().await;
        };
        sleep_until(end).await;
        LockError::Expired {
            realm: self.held.realm().clone(),
            max_hold,
        }
    }

    /// Releases the lock and waits for the server's word that it was held until now; commits what a handler wrote in a shared
    /// transaction.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if that word does not come, [`LockError::CommitFailed`].
    ///
    /// # Cancel safety
    ///
    /// If dropped, the lock is released by a task of its own.
    pub(crate) async fn release(mut self) -> Result<(), LockError> {
        let released = match self.transaction_mut() {
            Some(transaction) => transaction.commit().await,
            None => Ok(()),
        };
        if released.is_ok() {
            self.held.mark_released();
            if let Some(Grant { transaction, turn }) = self.grant.take() {
                if let Some(transaction) = transaction.filter(|ended| ended.shared().is_some()) {
                    self.tasks.spawn_on(transaction.reset(), &self.runtime);
                }
                drop(turn);
            }
        }
        released
    }

    fn lost(&self) -> LockError {
        LockError::Lost {
            realm: self.held.realm().clone(),
        }
    }

    fn transaction(&self) -> Option<&LockedTransaction> {
        self.grant.as_ref()?.transaction.as_ref()
    }

    fn transaction_mut(&mut self) -> Option<&mut LockedTransaction> {
        self.grant.as_mut()?.transaction.as_mut()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        tracing::debug!(realm = %self.held.realm(), held = ?self.granted.elapsed(), "released");
        self.held.mark_released();
        let Some(Grant { transaction, turn }) = self.grant.take() else {
            return;
        };
        let Some(transaction) = transaction else {
            return;
        };
        self.tasks.spawn_on(
            async move {
                transaction.roll_back().await;
                drop(turn);
            },
            &self.runtime,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use futures_util::FutureExt;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::lock::LockKey;
    use crate::lock::lease::Lease;
    use crate::lock::queue::{Entry, Queue};
    use crate::realm::RealmUrl;

    #[test]
    fn work_that_was_frozen_with_its_process_does_not_go_on() {
        // The queue's mutex is a model checker's in unit tests.
        shuttle::check_random(|| paused_runtime().block_on(freeze()), 1);
    }

    fn paused_runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    }

    async fn freeze() {
        let realm: RealmUrl = "http://h/a/".parse().unwrap();
        let key = LockKey::of(&realm);
        let Ok(Entry::Turn(turn)) = Arc::new(Queue::default()).enter(key, 0) else {
            panic!("nobody has the turn");
        };
        let connection = CancellationToken::new();
        let lease = Lease::new(Duration::from_secs(30), Instant::now(), &connection);
        let handle = HeldLock::new(realm, key, None, Some(Arc::new(lease)), None);
        let tasks = TaskTracker::new();
        let hold = Hold::new(
            handle,
            None,
            turn,
            None,
            Nesting::current(0),
            &tasks,
            tasks.token(),
        );

        let steps = Cell::new(0);
        let work = poll_fn(|_| {
            steps.set(steps.get() + 1);
            Poll::<()>::Pending
        });
        let mut guarded = pin!(hold.guard(work));
        assert!((&mut guarded).now_or_never().is_none());
        // Nobody polls a heartbeat here, as in a process that stands still.
        tokio::time::advance(Duration::from_secs(20)).await;
        let end = guarded.now_or_never();
        assert!(matches!(end, Some(Err(LockError::Lost { .. }))));
        assert_eq!(steps.get(), 1);
    }
}
