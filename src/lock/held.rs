use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::time::Instant;

use super::error::LockError;
use super::hold::{Core, Hold};
use super::postgres::shared::LockTransaction;
use super::token::FencingToken;
use super::work::{self, HeldTask};
use crate::realm::claim::Claim;
use crate::realm::url::RealmUrl;

/// The handle of a hold: what the work under the lock can ask of it.
///
/// A handler finds it in the request extensions. With the feature `axum` it is an argument of a
/// handler: `HeldLock`, or `Option<HeldLock>` where a request may pass. A handle keeps nothing locked: the lock ends with the call and with the work that was started with
/// [`spawn_blocking`](Self::spawn_blocking) or [`spawn`](Self::spawn), even if handles are left.
/// Cheap to clone.
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

    /// The fencing token of this hold. Locks in process always give one; with locks in PostgreSQL
    /// it is `None` unless they were built with `fencing(true)`.
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
    /// `false` once the hold and all work that it outlives have ended, `max_hold` has passed, the
    /// connection is gone, or two thirds of the lease passed without an answer from the server.
    /// Never blocks.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// The check to make immediately before a write becomes visible: a holder that has lost its
    /// lock, or has run out of time, must not change anything any more.
    ///
    /// Call it right before the rename of a file, or before the request that publishes an object.
    /// It checks what this process knows and never blocks, so a loss immediately after the call
    /// goes unnoticed; a [fencing token](Self::fencing_token) that the store checks closes that gap
    /// too.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`]; [`LockError::Expired`] after `max_hold`; and [`LockError::Ended`] once
    /// the hold and all work that it outlives have ended.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.0.ensure_held()
    }

    /// Runs blocking work as part of the hold: the lock is not given back before the work has
    /// ended.
    ///
    /// A closure on a blocking thread cannot be stopped. Started with tokio's own `spawn_blocking`,
    /// as all of `tokio::fs` is, it runs on without the lock after the handler was dropped, and
    /// writes over what the next writer has written. Started here, it keeps the lock: the response
    /// still leaves on time, and the next writer waits until the closure has returned.
    ///
    /// The closure runs within the caller's tracing span and under the hold, so that a lock that it
    /// asks for is nested. If it never returns, the realm stays locked. A shared transaction
    /// commits after it, and rolls back if it panics then or has not returned at `max_hold`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// The work is started at once and runs to its end, whether or not the returned future is
    /// polled or dropped.
    ///
    /// See the [example](crate#writing-files).
    pub fn spawn_blocking<T, F>(&self, work: F) -> HeldTask<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        work::spawn_blocking(&self.0, work)
    }

    /// Runs a future on a task of its own as part of the hold: the lock is not given back before
    /// the future has ended.
    ///
    /// For work that must not be cut in half, such as a call of an object store followed by one of
    /// the index. It is dropped only if the lock is lost. The future runs within the caller's tracing
    /// span, and without its task-locals. Start blocking work within it with
    /// [`spawn_blocking`](Self::spawn_blocking).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// The work is started at once and runs to its end, whether or not the returned future is
    /// polled or dropped.
    pub fn spawn<W>(&self, work: W) -> HeldTask<W::Output>
    where
        W: Future<Output: Send> + Send + 'static,
    {
        work::spawn(&self.0, work)
    }

    /// Ends the hold before its work ends, once the durable part is done: the rest of the handler
    /// runs without the lock, and the next writer does not wait for it.
    ///
    /// The confirmation happens now: `Ok` means that the lock was held until this call, and that a
    /// shared transaction has committed. The hold counts as a success, whatever the response is: it
    /// is published, and `max_hold` does not stop the handler any more. If the release is not
    /// confirmed, a success of the handler still becomes a 503. A nested hold gives back only its
    /// own share; work that was started with [`spawn_blocking`](Self::spawn_blocking) or
    /// [`spawn`](Self::spawn) keeps the lock until it ends.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`], [`LockError::Expired`], [`LockError::CommitFailed`],
    /// [`LockError::Config`] for a shared transaction whose commit would wait for the work or
    /// the nested hold that calls this, and [`LockError::Ended`] if the hold had already ended in
    /// another way. A second release returns the result of the first.
    ///
    /// # Cancel safety
    ///
    /// The hold ends at the first poll. If this future is dropped after that, only its result is
    /// lost; call `release` again to wait for the result.
    pub async fn release(&self) -> Result<(), LockError> {
        self.0.release()?.confirmed().await
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

    /// Takes the lock away on purpose, as if its connection had died: for tests of what an
    /// application does then.
    ///
    /// From now on [`is_held`](Self::is_held) is `false` and [`ensure_held`](Self::ensure_held)
    /// fails. The work is dropped at its next `await`; a request is answered with 503 `lock-lost`,
    /// also if its handler returns a success before that. PostgreSQL gives the lock to the next
    /// process at once. Within this process the next writer waits until the work has ended, as
    /// after a real loss.
    ///
    /// The holds that share the lock, outer and nested, lose it too, and with
    /// [`sessions`](crate::PostgresBuilder::sessions) all holds of the same session. A hold that has
    /// ended has nothing to lose. `docs/testing.md` has an example.
    #[cfg(feature = "test-util")]
    pub fn lose(&self) {
        self.0.lose();
    }

    /// When its own work has released it.
    pub(crate) fn released_at(&self) -> Option<Instant> {
        self.0.released_at()
    }

    /// Makes one step of work that its guard does not poll, if the lock is still held.
    pub(crate) fn step<T>(&self, step: impl FnOnce() -> T) -> Result<T, LockError> {
        self.0.step(step)
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
