use std::time::Duration;

use tokio::time::Instant;

use crate::realm::claim::Claim;

/// A claim that a process holds or waits for, at one moment. Made by
/// [`RealmLocks::status`](crate::RealmLocks::status).
#[derive(Debug, Clone)]
pub struct ClaimStatus {
    claim: Claim,
    held: bool,
    since: Duration,
}

impl ClaimStatus {
    pub(crate) fn new(claim: Claim, held: bool, since: Instant) -> Self {
        Self {
            claim,
            held,
            since: since.elapsed(),
        }
    }

    /// What is held or waited for.
    #[must_use]
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Whether it is held; if not, it waits in this process or in PostgreSQL.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// For how long it has been held, or has waited.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.since
    }
}
