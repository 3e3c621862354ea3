use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio_postgres::Client;

use crate::lock::claim::Claim;
use crate::lock::error::LockError;

/// The locked transaction, for the handler's own SQL.
///
/// What the handler writes through it stands or falls with the request: a success commits it before the response leaves;
/// a 4xx or 5xx, an error, a panic and a lost lock roll it back. A handler finds it in the request extensions
/// (`Extension<LockTransaction>` in axum) or with [`HeldLock::transaction`](crate::HeldLock::transaction), if
/// `share_transaction(true)` was set. Cheap to clone.
///
/// A statement that fails spoils the transaction, as in PostgreSQL always, so that nothing of it can commit; but not the lock, as the
/// handler works behind a savepoint.
///
/// The handler must leave the transaction itself alone: after a `COMMIT` or `ROLLBACK` of its own there is no lock any
/// more. That is found out at the end, and answered with 503 `commit-failed`; what it has committed itself stands. Savepoints
/// are fine. Under [`HoldUntil::BodyEnd`](crate::HoldUntil) the transaction commits when the body has ended well, after the head
/// of the response has left.
///
/// A statement that runs for longer than a third of the lease keeps heartbeats from being answered, and so ends in a lost lock:
/// set a lease of more than three times the longest one.
///
/// What the handler changes of the *session* does not reach the next hold: settings, roles, temporary tables, session-level
/// advisory locks and LISTEN are reset before the connection is used again, and a connection that cannot be reset is closed.
///
/// Through PgBouncer in transaction mode prefer `query_typed`, which prepares nothing.
///
/// ```no_run
/// use axum::{Extension, http::StatusCode};
/// use tower_realm_lock::LockTransaction;
///
/// async fn rename(Extension(transaction): Extension<LockTransaction>) -> StatusCode {
///     let Ok(client) = transaction.client() else {
///         return StatusCode::SERVICE_UNAVAILABLE;
///     };
///     let renamed = client.execute("UPDATE cards SET name = $1 WHERE id = 7", &[&"Luke"]).await;
///     match renamed {
///         Ok(1) => StatusCode::NO_CONTENT,
///         Ok(_) => StatusCode::NOT_FOUND,
///         Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
///     }
/// }
/// ```
#[derive(Clone)]
pub struct LockTransaction {
    claim: Claim,
    client: Arc<RwLock<Option<Arc<Client>>>>,
    /// Set when the hold ends, even where a client is still in use.
    ended: Arc<AtomicBool>,
}

/// The client of an open [`LockTransaction`]: everything that `tokio_postgres` can do but to begin another one.
///
/// Drop it before the handler ends. A hold that ends while one is in use is rolled back, and the connection closed under it.
pub struct TransactionClient(OwnedRwLockReadGuard<Option<Arc<Client>>, Client>);

impl LockTransaction {
    pub(super) fn new(claim: Claim, client: Arc<Client>) -> Self {
        Self {
            claim,
            client: Arc::new(RwLock::new(Some(client))),
            ended: Arc::default(),
        }
    }

    /// The client, for as long as the hold lasts. Never blocks.
    ///
    /// # Errors
    ///
    /// [`LockError::TransactionEnded`] once the hold has ended.
    pub fn client(&self) -> Result<TransactionClient, LockError> {
        let ended = || LockError::TransactionEnded {
            claim: self.claim.clone(),
        };
        let guard = Arc::clone(&self.client)
            .try_read_owned()
            .map_err(|_| ended())?;
        if self.ended.load(Ordering::SeqCst) {
            return Err(ended());
        }
        OwnedRwLockReadGuard::try_map(guard, Option::as_deref)
            .map(TransactionClient)
            .map_err(|_| ended())
    }

    /// Takes the client away from the handler; `false` if some of its code still uses it. That code keeps the connection to
    /// its end, so nobody else may have it.
    pub(super) fn close(&self) -> bool {
        self.ended.store(true, Ordering::SeqCst);
        self.client
            .try_write()
            .map(|mut client| *client = None)
            .is_ok()
    }
}

impl Deref for TransactionClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl fmt::Debug for LockTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockTransaction")
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TransactionClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionClient").finish_non_exhaustive()
    }
}
