use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::grant::{Grant, Turn};
use super::nesting::Nesting;
use super::queue::{Entry, Full};
use super::{Claim, HeldLock, Hold, LockError, RealmLocks};
use crate::metrics::Waiting;

/// How long and how many may wait, and what a hold may be. Each handle of the locks carries its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) acquire_timeout: Duration,
    pub(super) max_hold: Option<Duration>,
    pub(super) max_waiters: usize,
    pub(super) share_transaction: bool,
}

/// What one caller asks for, and the time it has.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(super) claim: &'a Claim,
    started: Instant,
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
    pub(super) share: bool,
}

impl RealmLocks {
    /// The current task's hold of all that the claim needs, if this is nested use.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if that hold is lost, [`LockError::OwnLock`] if it has only a part of it.
    pub(crate) fn held_by_task(&self, claim: &Claim) -> Result<Option<HeldLock>, LockError> {
        self.nesting().hold_of(claim)
    }

    fn nesting(&self) -> Nesting {
        // The queue lives as long as any turn of it, so no other locks can get its address under a hold.
        Nesting::current(Arc::as_ptr(&self.shared.queue).addr())
    }

    /// Waits for all locks of the claim, within this handle's limits.
    ///
    /// # Cancel safety
    ///
    /// If dropped, its place in the queue is given up, and no backend stays queued in PostgreSQL.
    pub(crate) async fn acquire(&self, claim: &Claim) -> Result<Hold, LockError> {
        // From here on a shutdown waits for this caller.
        let tracked = self.shared.tasks.token();
        let waiting = Waiting::begin();
        let nesting = self.nesting();
        let wanted = Wanted::new(claim, &self.limits);
        let closing = &self.shared.closing;
        let granted = tokio::select! {
            biased;
            // First: who gets the lock at once need not be woken by a shutdown.
            granted = self.granted(&wanted), if !closing.is_cancelled() => granted,
            () = closing.cancelled() => Err(LockError::ShuttingDown),
        };
        let (turn, grant) = granted.map_err(|error| nesting.explain(error))?;
        if closing.is_cancelled() {
            return Err(LockError::ShuttingDown);
        }
        turn.mark_held();
        let wait = wanted.started.elapsed();
        let counted = waiting.granted(wait);
        tracing::debug!(%claim, waited = ?wait, "locked");
        let held = HeldLock::new(
            claim.clone(),
            grant.as_ref().and_then(|grant| grant.token()),
            grant.as_ref().map(|grant| Arc::clone(grant.lease())),
            grant.as_ref().and_then(|grant| grant.shared().cloned()),
            nesting,
        );
        let max_hold = self.limits.max_hold;
        Ok(Hold::new(held, turn, grant, max_hold, tracked, counted))
    }

    async fn granted(&self, wanted: &Wanted<'_>) -> Result<(Turn, Option<Box<Grant>>), LockError> {
        let Some(postgres) = &self.shared.postgres else {
            if wanted.share {
                return Err(LockError::InvalidOption {
                    option: "share_transaction",
                    value: "true".into(),
                    remedy: "locks in process have no transaction; use locks in PostgreSQL",
                });
            }
            return Ok((self.turn(wanted).await?, None));
        };
        let mut turn = self.turn(wanted).await?;
        match turn.take_baton() {
            Some(handed_on) if handed_on.is_held() && !wanted.share => {
                return Ok((turn, Some(handed_on)));
            }
            // It is of no use here, and gives its lock back.
            unfit => drop(unfit),
        }
        // Boxed: whoever waits in the queue would have room for it.
        let asked = Box::pin(postgres.acquire(wanted, turn, &self.shared.tasks));
        let (turn, grant) = asked.await?;
        Ok((turn, Some(Box::new(grant))))
    }

    async fn turn(&self, wanted: &Wanted<'_>) -> Result<Turn, LockError> {
        let max_waiters = self.limits.max_waiters;
        match self.shared.queue.enter(wanted.claim, max_waiters) {
            Ok(Entry::Turn(turn)) => Ok(turn),
            Ok(Entry::Wait(place)) => timeout_at(wanted.deadline, place)
                .await
                .map_err(|_| wanted.timed_out()),
            Err(Full) => Err(LockError::QueueFull {
                claim: wanted.claim.clone(),
                waiters: max_waiters,
            }),
        }
    }
}

impl<'a> Wanted<'a> {
    fn new(claim: &'a Claim, limits: &Limits) -> Self {
        // A time-out too long to be a point in time is one of a year.
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let started = Instant::now();
        Self {
            claim,
            started,
            timeout: limits.acquire_timeout,
            deadline: started + limits.acquire_timeout.min(YEAR),
            share: limits.share_transaction,
        }
    }

    pub(crate) fn timed_out(&self) -> LockError {
        LockError::Timeout {
            claim: self.claim.clone(),
            after: self.timeout,
        }
    }
}
