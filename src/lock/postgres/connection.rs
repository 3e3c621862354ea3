use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{Client, Error};
use tokio_util::sync::CancellationToken;

use super::answer::value;
use super::canceller::Canceller;
use super::confirmation::Confirmation;
use crate::lock::LockError;

/// What `DISCARD ALL` does but for prepared statements: the driver still counts on some of its own.
const RESET: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *; \
     SELECT pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES";

/// How long a ROLLBACK may take before whatever keeps it waiting is cancelled.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(1);

/// A connection that holds at most one lock transaction.
pub(crate) struct LockConnection {
    pub(crate) client: Arc<Client>,
    /// Cancelled when the connection's task ends, for whatever reason.
    pub(crate) closed: CancellationToken,
    /// Whether a transaction may be open on it that nobody has told to end. Such a connection is not pooled.
    pub(crate) in_use: bool,
    /// The end of the transaction before, as long as it may be unanswered: nothing may be cancelled until it is answered.
    pub(super) ending: Option<Confirmation>,
    /// Host, port and database.
    pub(super) server: Arc<str>,
    canceller: Canceller,
    pub(super) task: AbortHandle,
}

impl LockConnection {
    /// Drives a new connection on a task of its own.
    pub(super) fn start<E>(
        client: Client,
        connection: impl Future<Output = Result<(), E>> + Send + 'static,
        canceller: Canceller,
        server: Arc<str>,
    ) -> Self
    where
        E: std::error::Error + Send,
    {
        let closed = CancellationToken::new();
        let signal = closed.clone().drop_guard();
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a lock connection ended");
            }
            drop(signal);
        });
        Self {
            canceller,
            client: Arc::new(client),
            closed,
            // Until the server has answered: it may be given up before.
            in_use: true,
            ending: None,
            server,
            task: task.abort_handle(),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled() || self.client.is_closed()
    }

    pub(super) fn failed(&self, source: Error) -> LockError {
        LockError::Connect {
            server: Arc::clone(&self.server),
            source: Arc::new(source),
        }
    }

    /// Whether the server itself answers, and not a pooler, which announces a number of its own to its clients.
    pub(super) async fn refuse_pooler(&self) -> Result<(), LockError> {
        let backend = self.client.simple_query("SELECT pg_backend_pid()").await;
        let backend = backend.map_err(|error| self.failed(error))?;
        let announced = self.canceller.process_id().await;
        let answering = value(&backend, "pg_backend_pid").and_then(|id| id.parse().ok());
        if announced.is_none() || answering != announced {
            return Err(LockError::Pooler {
                server: Arc::clone(&self.server),
            });
        }
        Ok(())
    }

    /// Ends the transaction, whatever state it is in; only then may the connection be used again.
    ///
    /// A statement that a handler left running is cancelled. The connection is then given up: a cancellation that comes late
    /// would hit a statement of its next user.
    pub(super) async fn roll_back(&mut self) {
        let mut rolled_back = pin!(self.client.batch_execute("ROLLBACK"));
        if let Ok(ended) = timeout(ROLLBACK_PATIENCE, &mut rolled_back).await {
            self.in_use = ended.is_err();
            return;
        }
        self.canceller.cancel_until_ended(&mut rolled_back).await;
    }

    /// Undoes what a handler did to the session, outside of any transaction; gives the connection up where that fails.
    pub(super) async fn reset(&mut self) {
        self.in_use = true;
        let reset = timeout(ROLLBACK_PATIENCE, self.client.batch_execute(RESET)).await;
        self.in_use = !matches!(reset, Ok(Ok(())));
    }

    pub(super) fn canceller(&self) -> &Canceller {
        &self.canceller
    }
}

impl Drop for LockConnection {
    fn drop(&mut self) {
        // The driver would go on until its last answer has come, which may be never.
        if self.in_use {
            self.task.abort();
        }
    }
}

/// Whether the session is over: the driver failed by itself, or the server said a last word.
pub(super) fn is_disconnect(error: &Error) -> bool {
    let severity = error.as_db_error().map(DbError::parsed_severity);
    !matches!(severity, Some(Some(Severity::Error)))
}
