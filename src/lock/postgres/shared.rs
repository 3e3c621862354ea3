use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_postgres::Client;

use crate::lock::error::LockError;
use crate::realm::claim::Claim;

/// The locked transaction, for the handler's own SQL.
///
/// What the handler writes through it stands or falls with the request: a success commits it before
/// the response leaves, or at [`HeldLock::release`](crate::HeldLock::release); any other response,
/// an error, a panic and a lost lock roll it back. [`Success`](crate::Success) defines what a
/// success is: by default a status below 400. A handler finds it in the request extensions, as an
/// argument (with the feature `axum`), or with
/// [`HeldLock::transaction`](crate::HeldLock::transaction), if `share_transaction(true)` was set.
/// Cheap to clone.
///
/// A statement that fails spoils the transaction, as always in PostgreSQL, so that nothing of it can
/// commit. It does not release the lock, as the handler works behind a savepoint.
///
/// The handler must leave the transaction itself alone: after a `COMMIT` or `ROLLBACK` of its own
/// there is no lock any more, and after a `PREPARE TRANSACTION` the realm stays locked until that
/// is committed or rolled back. Both are detected at the end and answered with 503 `commit-failed`;
/// what it has committed itself stands. Savepoints are fine. Under
/// [`HoldUntil::BodyEnd`](crate::HoldUntil) the transaction commits when the body has ended well,
/// after the head of the response has left.
///
/// Statements have the `statement_timeout` and `lock_timeout` of the role, the database or the URL.
/// The transaction has settings of its own: it is read committed and read write,
/// `idle_in_transaction_session_timeout` is the lease, and `transaction_timeout` is off, as the
/// lease and `max_hold` bound it.
///
/// Heartbeats wait behind a statement that runs. Statements that take longer than a third of the
/// lease can end in a lost lock: set a lease of more than three times the longest one. Those that
/// are pipelined count as one.
///
/// # What is left open
///
/// A COMMIT waits for every answer before it. So a handler that ends with rows of a query or data of
/// a `COPY TO` unread, a `COPY FROM` neither finished nor dropped, or a [`TransactionClient`] in use
/// is answered with 503 `commit-failed` at once. The log and [`LockError::CommitFailed`] name what was
/// left open; nothing that the handler wrote stands. A statement that still runs, whose future was
/// dropped, is waited for, up to the lease. To stream rows as the body of the response, use
/// [`HoldUntil::BodyEnd`](crate::HoldUntil).
///
/// # What the next hold sees
///
/// Nothing: it gets a session that is as good as new, or a new connection after a login of 5 to 10
/// ms. What `DISCARD ALL` undoes is reset after the COMMIT or ROLLBACK, and a `CancelToken` of the
/// client cancels nothing at any time. The connection is closed if a reset is not enough:
///
/// - a `Statement` is kept past the hold, or a statement could not be prepared;
/// - a statement's parameters or results had a type that is not PostgreSQL's own, such as an enum,
///   and the handler has used `PREPARE` or `DEALLOCATE` too, or a pooler answers: the driver
///   prepares statements to look such types up, and relies on them later;
/// - the handler has loaded a library with `LOAD`.
///
/// State that `DISCARD ALL` does not undo stays: the name of a setting of your own, without its
/// value, and what an extension keeps in the session, such as `dblink`'s connections or PL/Perl's
/// `%_SHARED`.
///
/// Through PgBouncer in transaction mode prefer `query_typed`, which prepares nothing.
///
/// ```no_run
/// use axum::http::StatusCode;
/// use tower_realm_lock::LockTransaction;
///
/// # #[cfg(feature = "axum")]
/// async fn rename(transaction: LockTransaction) -> StatusCode {
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
    lending: Arc<Mutex<Lending>>,
}

/// The client, and who has it.
struct Lending {
    /// Until the hold ends.
    client: Option<Arc<Client>>,
    /// Whether it was ever handed out.
    is_used: bool,
    /// Each client that was handed out has a clone.
    user: Arc<()>,
}

/// The client of an open [`LockTransaction`]: everything that `tokio_postgres` can do except to
/// begin another transaction.
///
/// Drop it, and everything opened with it, before the handler ends: see
/// [`LockTransaction`](LockTransaction#what-is-left-open). Its `cancel_token()` cancels nothing;
/// end a statement with `max_hold` or `statement_timeout`.
pub struct TransactionClient {
    client: Arc<Client>,
    _user: Arc<()>,
}

impl LockTransaction {
    pub(super) fn new(claim: Claim, client: Arc<Client>) -> Self {
        let lending = Lending {
            client: Some(client),
            is_used: false,
            user: Arc::default(),
        };
        Self {
            claim,
            lending: Arc::new(Mutex::new(lending)),
        }
    }

    /// The client, for as long as the hold lasts. Never blocks.
    ///
    /// # Errors
    ///
    /// [`LockError::TransactionEnded`] once the hold has ended.
    pub fn client(&self) -> Result<TransactionClient, LockError> {
        let mut lending = self.lending();
        let Some(client) = lending.client.clone() else {
            return Err(LockError::TransactionEnded {
                claim: self.claim.clone(),
            });
        };
        lending.is_used = true;
        Ok(TransactionClient {
            client,
            _user: Arc::clone(&lending.user),
        })
    }

    /// Whether the handler had the client, and so may have changed the session. Final once
    /// [`close`](Self::close) has returned.
    pub(super) fn is_used(&self) -> bool {
        self.lending().is_used
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Takes the client away from the handler; `false` if some of its code still uses it. That code
    /// keeps the connection to its end, so nobody else may have it.
    pub(super) fn close(&self) -> bool {
        let mut lending = self.lending();
        lending.client = None;
        Arc::get_mut(&mut lending.user).is_some()
    }

    fn lending(&self) -> MutexGuard<'_, Lending> {
        self.lending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for TransactionClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
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
