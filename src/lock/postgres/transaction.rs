use std::fmt;
use std::future::ready;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::{Client, Error};

use super::confirmation::{Confirmation, Pings, Urgency, last};
use super::connection::is_disconnect;
use super::pool::Pooled;
use super::shared::LockTransaction;
use crate::lock::background::Background;
use crate::lock::lease::Lease;
use crate::lock::{Claim, FencingToken, LockError};

/// Makes a transaction ready for the handler's statements: they wait for their own locks as they would without ours. The
/// mark is gone once the transaction has ended, whoever ended it. A statement that fails gives back the locks of the innermost
/// savepoint's transaction at once, and with this one ours is not among them.
pub(super) const SHARE: &str = "; SET LOCAL lock_timeout TO DEFAULT; \
     SELECT set_config('tower_realm_lock.shared', 'yes', true); SAVEPOINT tower_realm_lock";

/// Goes before the COMMIT of a shared transaction. If that is no longer the one that took the lock, the division fails, and the rest
/// of the message is skipped. In a transaction that an error has aborted the statement fails too; a plain `COMMIT` would roll back
/// without a word.
const PROVE_SHARED: &str = "SELECT 1 / (current_setting('tower_realm_lock.shared', true) \
     IS NOT DISTINCT FROM 'yes')::int";

/// A transaction that holds an advisory lock, on its pooled connection. It can serve several holds, one after the other.
///
/// Dropped before it has ended, it rolls back.
pub(crate) struct LockedTransaction {
    claim: Claim,
    /// What heartbeats say of it to an operator: the server shows the last statement of each session.
    comment: Arc<str>,
    client: Arc<Client>,
    /// None once it is back in the pool.
    connection: Option<Pooled>,
    lease: Arc<Lease>,
    pings: Pings,
    token: Option<FencingToken>,
    shared: Option<LockTransaction>,
    background: Background,
}

impl LockedTransaction {
    pub(super) fn new(
        claim: Claim,
        comment: Arc<str>,
        connection: Pooled,
        lease: Lease,
        token: Option<FencingToken>,
        share: bool,
        background: Background,
    ) -> Self {
        let client = Arc::clone(&connection.client);
        let lease = Arc::new(lease);
        Self {
            shared: share.then(|| LockTransaction::new(claim.clone(), Arc::clone(&client))),
            claim,
            pings: Pings::new(
                Arc::clone(&client),
                Arc::clone(&lease),
                Arc::clone(&comment),
            ),
            comment,
            client,
            connection: Some(connection),
            lease,
            token,
            background,
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

    /// An empty query, but for a comment.
    async fn heartbeat(&self) -> Result<(), Error> {
        self.client.batch_execute(&self.comment).await
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

    /// Gives the next hold a token of its own.
    pub(crate) fn begin_next_hold(&mut self) {
        self.token = self.token.map(FencingToken::next);
    }

    /// Asks for the server's word that the lock was held until now; others may use the lock meanwhile.
    pub(crate) fn ping(&mut self, urgency: Urgency) -> Confirmation {
        self.pings.join(urgency)
    }

    /// Gives the lock back, and tells others of the write; the answer is the server's word that it was held until now. Must be
    /// called within a runtime.
    pub(crate) fn commit(mut self, announcement: Option<String>) -> Confirmation {
        match self.connection.take() {
            Some(connection) => match announcement {
                None => self.end(connection, "COMMIT"),
                Some(announcement) => {
                    // A message of its own: if it fails, the COMMIT still gives the lock back.
                    let told = last(&connection, announcement, self.lease.patience());
                    let ended = self.end(connection, "COMMIT");
                    Confirmation::to(async { told.await & ended.await })
                }
            },
            // It has ended already, and has no word left to give.
            None => Confirmation::to(ready(false)),
        }
    }

    /// Ends the transaction, and gives the connection back at once, though the server has not answered: what is sent on it next
    /// comes after that.
    fn end(&self, mut connection: Pooled, statement: &'static str) -> Confirmation {
        // Before the end, and not behind what the connection's next owner waits for.
        self.pings.send();
        let answer = last(&connection, statement, self.lease.patience());
        connection.ending = Some(answer.clone());
        connection.in_use = false;
        answer
    }

    /// Commits what a handler wrote in a shared transaction, and so gives the lock back. An `Ok` is the server's word that the
    /// lock was held until now. Never longer than the lease.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if that word does not come, [`LockError::CommitFailed`] if it cannot commit.
    ///
    /// # Cancel safety
    ///
    /// If dropped, drop the transaction: it then rolls back.
    pub(crate) async fn commit_shared(
        &mut self,
        announcement: Option<String>,
    ) -> Result<(), LockError> {
        if !self.close_shared() {
            return Err(self.commit_failed("the handler still uses it"));
        }
        let announcement = announcement.map_or_else(String::new, |statement| statement + "; ");
        let commit = format!("{PROVE_SHARED}; {announcement}COMMIT");
        let answer = tokio::select! {
            // First: an answer is the proof, even where the connection ends right after it.
            biased;
            answer = self.client.batch_execute(&commit) => answer,
            () = self.keep() => return Err(self.lost()),
        };
        match answer {
            Ok(()) => {
                if let Some(mut connection) = self.connection.take() {
                    self.background
                        .spawn(async move { connection.reset().await });
                }
                Ok(())
            }
            Err(error) if !is_disconnect(&error) => Err(self.commit_failed(reason(&error))),
            Err(_) => Err(self.lost()),
        }
    }

    fn close_shared(&self) -> bool {
        self.shared.as_ref().is_none_or(LockTransaction::close)
    }

    fn lost(&self) -> LockError {
        LockError::Lost {
            claim: self.claim.clone(),
        }
    }

    fn commit_failed(&self, problem: impl Into<String>) -> LockError {
        LockError::CommitFailed {
            claim: self.claim.clone(),
            problem: problem.into(),
        }
    }
}

impl Drop for LockedTransaction {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        // A connection that the pool refuses is replaced there, by a task.
        let background = self.background.clone();
        let _runtime = background.enter();
        if self.shared.is_none() && self.lease.is_current() {
            drop(self.end(connection, "ROLLBACK"));
        } else {
            // A handler's code that goes on with the client would go on in the connection's next transaction, or in none.
            let whole = self.close_shared() && self.lease.is_current();
            background.spawn(roll_back(connection, whole, self.lease.ends()));
        }
    }
}

/// Rolls a shared transaction back and makes its connection fit for the next hold, or discards it.
async fn roll_back(mut connection: Pooled, whole: bool, deadline: Instant) {
    if whole && timeout_at(deadline, connection.roll_back()).await.is_ok() {
        if !connection.in_use {
            connection.reset().await;
        }
    } else if !connection.is_closed() {
        // A statement of the handler's may still run there, and hold the lock.
        connection.canceller().cancel().await;
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
            .field("claim", &self.claim)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
