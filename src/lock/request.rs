use std::time::Duration;

use tokio::time::Instant;

use super::error::LockError;
use crate::realm::claim::Claim;

/// A timeout too long to be a point in time counts as one of a year.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long PostgreSQL may take to answer a try.
const ANSWER: Duration = Duration::from_secs(5);

/// The bounds of a wait and of a hold. Each handle of the locks carries its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) acquire_timeout: Duration,
    pub(super) max_hold: Option<Duration>,
    pub(super) max_waiters: usize,
    pub(super) share_transaction: bool,
}

/// What one caller asks for, and the time it has.
#[derive(Debug)]
pub(super) struct LockRequest<'a> {
    pub(super) claim: &'a Claim,
    pub(super) started: Instant,
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
    /// Whether the claim is only tried: nobody waits for another holder of it.
    pub(super) tries: bool,
    /// Whether the work runs its own SQL in the transaction that holds the lock.
    pub(super) share: bool,
}

impl<'a> LockRequest<'a> {
    pub(super) fn new(claim: &'a Claim, bounds: &Bounds, started: Instant) -> Self {
        let tries = bounds.acquire_timeout.is_zero();
        let timeout = if tries {
            ANSWER
        } else {
            bounds.acquire_timeout
        };
        Self {
            claim,
            started,
            timeout,
            deadline: started + timeout.min(YEAR),
            tries,
            share: bounds.share_transaction,
        }
    }

    /// When the wait in the queue ends.
    pub(super) fn queue_deadline(&self) -> Instant {
        if self.tries {
            self.started
        } else {
            self.deadline
        }
    }

    /// The error for a claim that somebody else holds or waits for.
    pub(super) fn busy(&self) -> LockError {
        if self.tries {
            LockError::Taken {
                claim: self.claim.clone(),
            }
        } else {
            self.timed_out()
        }
    }

    pub(super) fn timed_out(&self) -> LockError {
        LockError::Timeout {
            claim: self.claim.clone(),
            after: self.timeout,
        }
    }
}
