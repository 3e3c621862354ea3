use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::grant::{Grant, Turn};
use super::nesting::within;
use super::postgres::Confirmation;
use super::{Claim, HeldLock, LockError};
use crate::metrics;

/// A granted lock and the duty to release it.
///
/// [`Hold::release`] releases and asks for a confirmation. Dropping a hold, as a panic or a cancelled call does, releases it
/// too. Either way the next local waiter goes on at once.
#[derive(Debug)]
pub(crate) struct Hold {
    held: HeldLock,
    /// None once it is released.
    turn: Option<Turn>,
    /// None in process, and once it is released.
    grant: Option<Box<Grant>>,
    granted: Instant,
    longest: Option<Duration>,
    /// Makes a shutdown wait for it, on whatever task it is.
    _tracked: TaskTrackerToken,
    _counted: metrics::Held,
}

impl Hold {
    /// `grant` is `None` for a lock that is held in process alone.
    pub(crate) fn new(
        held: HeldLock,
        turn: Turn,
        grant: Option<Box<Grant>>,
        max_hold: Option<Duration>,
        tracked: TaskTrackerToken,
        counted: metrics::Held,
    ) -> Self {
        Self {
            held,
            turn: Some(turn),
            grant,
            granted: Instant::now(),
            longest: max_hold,
            _tracked: tracked,
            _counted: counted,
        }
    }

    pub(crate) fn held(&self) -> &HeldLock {
        &self.held
    }

    /// Runs `work` until it ends, the lock is lost, or the longest hold has passed; then `work` is dropped.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] and [`LockError::Expired`].
    pub(crate) async fn guard<T>(&self, work: impl Future<Output = T>) -> Result<T, LockError> {
        let mut work = pin!(within(self.held.clone(), work));
        let mut end = pin!(self.end());
        poll_fn(|cx| {
            // A process that was frozen must see the time before its work goes on, and timers may fire late.
            if let Err(lost) = self.still_held() {
                return Poll::Ready(Err(lost));
            }
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            // Last, so that work which never waits needs no timer.
            end.as_mut().poll(cx).map(Err)
        })
        .await
    }

    /// Keeps the hold alive; resolves when it must end before its work does.
    async fn end(&self) -> LockError {
        tokio::select! {
            () = self.keep() => self.loss(),
            error = self.expired() => error,
        }
    }

    async fn keep(&self) {
        match &self.grant {
            Some(grant) => grant.keep().await,
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
            claim: self.held.claim().clone(),
            max_hold,
        }
    }

    /// Releases the lock; commits what a handler wrote in a shared transaction. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if it is known to be lost, [`LockError::CommitFailed`].
    ///
    /// # Cancel safety
    ///
    /// If dropped, the lock is released all the same; a shared transaction may then be rolled back.
    pub(crate) async fn release(mut self) -> Result<Released, LockError> {
        self.still_held()?;
        let claim = self.held.claim().clone();
        if let Some(grant) = &mut self.grant
            && grant.shared().is_some()
        {
            let committed = grant.commit_shared(&claim).await;
            if matches!(committed, Err(LockError::Lost { .. })) {
                metrics::lost();
            }
            committed?;
            return Ok(Released {
                claim,
                confirmation: None,
            });
        }
        self.held.mark_released();
        let grant = self.grant.take().zip(self.turn.take());
        let confirmation = grant.map(|(grant, turn)| grant.end_hold(turn, &claim));
        Ok(Released {
            claim,
            confirmation,
        })
    }

    /// Releases the lock of a success that nobody wants to have confirmed. What was written in a shared transaction is rolled
    /// back. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if it is known to be lost.
    pub(crate) fn release_unconfirmed(mut self) -> Result<(), LockError> {
        self.still_held()?;
        self.held.mark_released();
        if let (Some(grant), Some(turn)) = (self.grant.take(), self.turn.take()) {
            grant.end_success(turn, self.held.claim());
        }
        Ok(())
    }

    fn still_held(&self) -> Result<(), LockError> {
        if self.held.is_held() {
            Ok(())
        } else {
            Err(self.loss())
        }
    }

    /// A loss that is found out.
    fn loss(&self) -> LockError {
        metrics::lost();
        self.lost()
    }

    pub(crate) fn lost(&self) -> LockError {
        LockError::Lost {
            claim: self.held.claim().clone(),
        }
    }
}

/// A hold that has ended, as far as this process can know.
#[derive(Debug)]
#[must_use = "the lock may have been lost unnoticed"]
pub(crate) struct Released {
    claim: Claim,
    /// None where nothing is left to be asked.
    confirmation: Option<Confirmation>,
}

impl Released {
    /// Waits for the server's word that the lock was held to the end. The next hold has begun meanwhile.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if that word does not come.
    ///
    /// # Cancel safety
    ///
    /// Nothing depends on it but the answer.
    pub(crate) async fn confirmed(self) -> Result<(), LockError> {
        let confirmed = match self.confirmation {
            Some(confirmation) => confirmation.await,
            None => true,
        };
        if confirmed {
            Ok(())
        } else {
            metrics::lost();
            Err(LockError::Lost { claim: self.claim })
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        tracing::debug!(claim = %self.held.claim(), held = ?self.granted.elapsed(), "released");
        self.held.mark_released();
        if let (Some(grant), Some(turn)) = (self.grant.take(), self.turn.take()) {
            grant.end_unconfirmed(turn);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use futures_util::FutureExt;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::lock::lease::Lease;
    use crate::lock::nesting::Nesting;
    use crate::lock::queue::{Entry, Queue};

    #[test]
    fn work_that_was_frozen_with_its_process_does_not_go_on() {
        // The queue's mutex is a model checker's in unit tests.
        shuttle::check_random(|| paused_runtime().block_on(freeze()), 1);
    }

    pub(crate) fn paused_runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    }

    /// A hold that only its lease ends. Nobody sends its heartbeats, as in a process that stands still.
    pub(crate) fn leased(period: Duration) -> (Hold, Arc<Lease>) {
        let claim = Claim::realm(&"http://h/a/".parse().unwrap());
        let Ok(Entry::Turn(turn)) = Arc::new(Queue::default()).enter(&claim, 0) else {
            panic!("nobody has the turn");
        };
        let connection = CancellationToken::new();
        let lease = Arc::new(Lease::new(period, Instant::now(), &connection));
        let nesting = Nesting::current(0);
        let handle = HeldLock::new(claim, None, Some(Arc::clone(&lease)), None, nesting);
        let tracked = TaskTracker::new().token();
        let counted = metrics::Waiting::begin().granted(Duration::ZERO);
        (Hold::new(handle, turn, None, None, tracked, counted), lease)
    }

    async fn freeze() {
        let (hold, _lease) = leased(Duration::from_secs(30));
        let steps = Cell::new(0);
        let work = poll_fn(|_| {
            steps.set(steps.get() + 1);
            Poll::<()>::Pending
        });
        let mut guarded = pin!(hold.guard(work));
        assert!((&mut guarded).now_or_never().is_none());
        tokio::time::advance(Duration::from_secs(20)).await;
        let end = guarded.now_or_never();
        assert!(matches!(end, Some(Err(LockError::Lost { .. }))));
        assert_eq!(steps.get(), 1);
    }
}
