use std::fmt;
use std::sync::Arc;

use bb8::PooledConnection;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Error;

use super::connection::{Connector, cancel, is_disconnect};
use super::shared::LockTransaction;
use crate::lock::lease::Lease;
use crate::lock::{FencingToken, LockError};
use crate::realm::RealmUrl;

/// Makes a transaction ready for the handler's statements: they wait for their own locks as they would without ours. The
/// mark is gone once the transaction has ended, whoever ended it.
pub(super) const SHARE: &str = "; SET LOCAL lock_timeout TO DEFAULT; \
     SELECT set_config('tower_realm_lock.shared', 'yes', true)";

/// Commits a shared transaction, unless it is no longer the one that took the lock: then the division fails, and the rest of
/// the message is skipped. In a transaction that an error has aborted the first statement fails too; a plain `COMMIT` would
/// roll back without a word.
const COMMIT_SHARED: &str = "SELECT 1 / (current_setting('tower_realm_lock.shared', true) \
     IS NOT DISTINCT FROM 'yes')::int; COMMIT";

/// A transaction that holds an advisory lock, on its pooled connection.
///
/// Dropped before it is ended, it discards its connection: the server then rolls back.
pub(crate) struct LockedTransaction {
    realm: RealmUrl,
    connection: PooledConnection<'static, Connector>,
    lease: Arc<Lease>,
    token: Option<FencingToken>,
    shared: Option<LockTransaction>,
}

impl LockedTransaction {
    pub(super) fn new(
        realm: RealmUrl,
        connection: PooledConnection<'static, Connector>,
        lease: Lease,
        token: Option<FencingToken>,
        share: bool,
    ) -> Self {
        let shared =
            share.then(|| LockTransaction::new(realm.clone(), Arc::clone(&connection.client)));
        Self {
            realm,
            connection,
            lease: Arc::new(lease),
            token,
            shared,
        }
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    pub(crate) fn shared(&self) -> Option<&LockTransaction> {
        self.shared.as_ref()
    }

    /// Keeps the lease while it is polled; resolves when the lock is lost.
    pub(crate) async fn keep(&self) {
        self.lease.keep(|| self.heartbeat()).await;
    }

    /// The smallest message that the server answers: an empty query.
    async fn heartbeat(&self) -> Result<(), Error> {
        self.connection.client.batch_execute("").await
    }

    /// Sends one heartbeat; whether it was answered before the deadline.
    pub(super) async fn confirm(&self, deadline: Instant) -> bool {
        let sent = Instant::now();
        let beat = timeout_at(deadline, self.heartbeat()).await;
        let confirmed = matches!(beat, Ok(Ok(())));
        if confirmed {
            self.lease.confirm(sent);
        }
        confirmed
    }

    /// Commits, and so gives the lock back. An `Ok` is the server's word that the lock was held until now. Never longer than
    /// the lease.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if that word does not come, [`LockError::CommitFailed`] if a shared transaction cannot commit.
    ///
    /// # Cancel safety
    ///
    /// If dropped, roll back or drop the transaction.
    pub(crate) async fn commit(&mut self) -> Result<(), LockError> {
        if !self.close_shared() {
            return Err(self.commit_failed("the handler still uses it"));
        }
        let commit = if self.shared.is_some() {
            COMMIT_SHARED
        } else {
            "COMMIT"
        };
        let answer = tokio::select! {
            // First: an answer is the proof, even where the connection ends right after it.
            biased;
            answer = self.connection.client.batch_execute(commit) => answer,
            () = self.keep() => return Err(self.lost()),
        };
        match answer {
            Ok(()) => {
                self.connection.in_use = false;
                Ok(())
            }
            Err(error) if self.shared.is_some() && !is_disconnect(&error) => {
                Err(self.commit_failed(reason(&error)))
            }
            Err(_) => Err(self.lost()),
        }
    }

    /// Rolls back, and so gives the lock back, or discards the connection. Never longer than the lease.
    pub(crate) async fn roll_back(mut self) {
        // A handler's code that goes on with the client would go on in the connection's next transaction, or in none.
        if self.close_shared() && self.lease.is_current() {
            let rolled_back = timeout_at(self.lease.ends(), self.connection.roll_back()).await;
            if rolled_back.is_ok() {
                self.reset().await;
                return;
            }
        }
        if !self.connection.is_closed() {
            // A statement of the handler's may still run there, and hold the lock.
            cancel(self.connection.canceller()).await;
        }
    }

    /// Makes the connection of an ended transaction fit for the next hold, where a handler had it.
    pub(crate) async fn reset(mut self) {
        if self.shared.is_some() && !self.connection.in_use {
            self.connection.reset().await;
        }
    }

    fn close_shared(&self) -> bool {
        self.shared.as_ref().is_none_or(LockTransaction::close)
    }

    fn lost(&self) -> LockError {
        LockError::Lost {
            realm: self.realm.clone(),
        }
    }

    fn commit_failed(&self, problem: impl Into<String>) -> LockError {
        LockError::CommitFailed {
            realm: self.realm.clone(),
            problem: problem.into(),
        }
    }
}

/// Why a shared transaction did not commit.
fn reason(error: &Error) -> String {
    use tokio_postgres::error::SqlState;
    if error.code() == Some(&SqlState::DIVISION_BY_ZERO) {
        return "the handler ended it with a COMMIT or ROLLBACK of its own, and so its lock".into();
    }
    crate::lock::error::chain(error)
}

impl fmt::Debug for LockedTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockedTransaction")
            .field("realm", &self.realm)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
