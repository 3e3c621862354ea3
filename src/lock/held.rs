use std::fmt;
use std::sync::Arc;

use super::claim::Claim;
use super::hold::{Core, Hold};
use super::postgres::shared::LockTransaction;
use super::token::FencingToken;
use crate::realm::url::RealmUrl;

/// The handle of a hold: what the work under the lock can ask of it.
///
/// A handler finds it in the request extensions (`Extension<HeldLock>` in axum). It keeps nothing
/// locked: the lock ends with the call, whoever still has a handle. Cheap to clone.
#[derive(Clone)]
pub struct HeldLock(Arc<Core>);

impl HeldLock {
    pub(crate) fn of(hold: &Hold) -> Self {
        Self(Arc::clone(hold.core()))
    }

    /// What is locked.
    #[must_use]
    pub fn claim(&self) -> &Claim {
        self.0.claim()
    }

    /// The realms that the claim is about, whole or in part.
    #[must_use]
    pub fn realms(&self) -> &[RealmUrl] {
        self.claim().realms()
    }

    /// The fencing token of this hold; `None` unless the locks were built with `fencing(true)`.
    ///
    /// A nested hold has the token of the hold that it is nested in.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        self.0.token()
    }

    /// The locked transaction; `None` unless `share_transaction(true)` was set for this hold.
    #[must_use]
    pub fn transaction(&self) -> Option<&LockTransaction> {
        self.0.transaction()
    }

    /// Whether the lock is still held, as far as this process can know without asking PostgreSQL.
    ///
    /// `false` once the hold has ended, the connection is gone, or two thirds of the lease passed
    /// without an answer from the server. Never blocks.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// Resolves when the lock is lost, so that work which cannot simply be dropped can stop early.
    ///
    /// Stays pending for as long as the lock is held; what it does after a release is not specified.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it can be dropped and called again.
    pub async fn lost(&self) {
        self.0.lost().await;
    }

    /// Runs one step of work under the hold, for work that is not polled by its guard.
    pub(crate) fn within<T>(&self, step: impl FnOnce() -> T) -> T {
        self.0.within(step)
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
