use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lease::Lease;
use super::nesting::Nesting;
use super::{Claim, FencingToken, LockTransaction};
use crate::realm::RealmUrl;

/// The handle of a hold: what the work under the lock can ask of it.
///
/// A handler finds it in the request extensions (`Extension<HeldLock>` in axum). It keeps nothing locked: the lock ends
/// with the call, whoever still has a handle. Cheap to clone.
#[derive(Clone)]
pub struct HeldLock(Arc<Held>);

struct Held {
    claim: Claim,
    token: Option<FencingToken>,
    /// None in process, where nothing can take the lock away.
    lease: Option<Arc<Lease>>,
    transaction: Option<LockTransaction>,
    nesting: Nesting,
    released: AtomicBool,
}

impl HeldLock {
    pub(crate) fn new(
        claim: Claim,
        token: Option<FencingToken>,
        lease: Option<Arc<Lease>>,
        transaction: Option<LockTransaction>,
        nesting: Nesting,
    ) -> Self {
        Self(Arc::new(Held {
            claim,
            token,
            lease,
            transaction,
            nesting,
            released: AtomicBool::new(false),
        }))
    }

    /// What is locked.
    #[must_use]
    pub fn claim(&self) -> &Claim {
        &self.0.claim
    }

    /// The realms that it is about, whole or in part.
    #[must_use]
    pub fn realms(&self) -> &[RealmUrl] {
        self.claim().realms()
    }

    /// The fencing token of this hold; `None` unless the locks were built with `fencing(true)`.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        self.0.token
    }

    /// The locked transaction; `None` unless `share_transaction(true)` was set.
    #[must_use]
    pub fn transaction(&self) -> Option<&LockTransaction> {
        self.0.transaction.as_ref()
    }

    /// Whether the lock is still held, as far as this process can know without asking PostgreSQL.
    ///
    /// `false` once the hold is released, the connection is gone, or two thirds of the lease passed without an answer from
    /// the server. Never blocks.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let current = self.0.lease.as_ref().is_none_or(|lease| lease.is_current());
        current && !self.0.released.load(Ordering::Acquire)
    }

    /// Resolves when the lock is lost, so that work which cannot simply be dropped can stop early.
    ///
    /// Stays pending for as long as the lock is held; what it does after a release is not specified.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it can be dropped and called again.
    pub async fn lost(&self) {
        match &self.0.lease {
            Some(lease) => lease.lost().await,
            None => pending().await,
        }
    }

    /// Under which locks, and in which other hold, it was taken.
    pub(super) fn nesting(&self) -> &Nesting {
        &self.0.nesting
    }

    pub(crate) fn mark_released(&self) {
        self.0.released.store(true, Ordering::Release);
    }
}

impl fmt::Debug for HeldLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldLock")
            .field("claim", self.claim())
            .field("fencing_token", &self.fencing_token())
            .field("is_held", &self.is_held())
            .finish()
    }
}
