use std::time::Duration;

use tokio::time::Instant;

use super::claim::Claim;
use super::error::LockError;

/// A timeout too long to be a point in time counts as one of a year.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

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
    /// Whether the work runs its own SQL in the transaction that holds the lock.
    pub(super) share: bool,
}

impl<'a> LockRequest<'a> {
    pub(super) fn new(claim: &'a Claim, bounds: &Bounds) -> Self {
        let started = Instant::now();
        Self {
            claim,
            started,
            timeout: bounds.acquire_timeout,
            deadline: started + bounds.acquire_timeout.min(YEAR),
            share: bounds.share_transaction,
        }
    }

    pub(super) fn timed_out(&self) -> LockError {
        LockError::Timeout {
            claim: self.claim.clone(),
            after: self.timeout,
        }
    }
}
