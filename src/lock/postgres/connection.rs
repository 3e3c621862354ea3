use std::borrow::Borrow;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{Client, Error};
use tokio_util::sync::CancellationToken;

use super::answer::value;
use super::canceller::Canceller;
use super::confirmation::{Asker, Confirmation, Urgency, questions};
use crate::lock::error::LockError;
use crate::lock::lease::Lease;
use crate::lock::tasks::Tasks;

/// What `DISCARD ALL` does, except for prepared statements: the driver still counts on some of its
/// own.
const RESET: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *; \
     SELECT pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES";

/// How long a ROLLBACK may take before whatever keeps it waiting is cancelled.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(1);

/// A connection on which no transaction is open, or one whose end has been sent.
pub(super) struct LockConnection {
    pub(super) client: Arc<Client>,
    /// Cancelled when the connection's task ends, for whatever reason.
    pub(super) closed: CancellationToken,
    /// The end of the last transaction, which may be unanswered: until it is answered nothing may
    /// be cancelled.
    pub(super) ending: Option<Confirmation>,
    /// Host, port and database.
    pub(super) server: Arc<str>,
    /// Runs what is left to do on the connection when its user has gone.
    pub(super) tasks: Tasks,
    canceller: Canceller,
    asker: Asker,
    task: AbortHandle,
}

/// A connection on which a transaction, or a session's locks, may be open. Dropping it closes the
/// connection, which ends them.
pub(super) struct Busy<C: Borrow<LockConnection>> {
    // Before the connection, so that a pool sees that it is closed.
    closer: Closer,
    connection: C,
}

/// Closes a connection when it is dropped, whatever runs there: the driver itself would wait for
/// its last answer, which may never come.
struct Closer(Option<(AbortHandle, CancellationToken)>);

impl LockConnection {
    /// Drives a new connection on a task of its own. Until the server has answered it is busy.
    pub(super) fn start<E>(
        client: Client,
        connection: impl Future<Output = Result<(), E>> + Send + 'static,
        canceller: Canceller,
        server: Arc<str>,
        tasks: Tasks,
    ) -> Busy<Self>
    where
        E: std::error::Error + Send,
    {
        let client = Arc::new(client);
        let closed = CancellationToken::new();
        let signal = closed.clone().drop_guard();
        let (asker, mut reader) = questions(&client);
        let task = tokio::spawn(async move {
            let mut connection = pin!(connection);
            poll_fn(|cx| {
                loop {
                    if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "a lock connection ended");
                        }
                        // What was answered before is a proof.
                        let _ = reader.poll(cx);
                        return Poll::Ready(());
                    }
                    match reader.poll(cx) {
                        Poll::Ready(true) => {}
                        Poll::Ready(false) => {
                            tracing::debug!("a lock connection was silent for too long");
                            return Poll::Ready(());
                        }
                        Poll::Pending => return Poll::Pending,
                    }
                }
            })
            .await;
            drop(signal);
        });
        Busy::new(Self {
            client,
            closed,
            ending: None,
            server,
            tasks,
            canceller,
            asker,
            task: task.abort_handle(),
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled() || self.client.is_closed()
    }

    pub(super) fn failed(&self, source: Error) -> LockError {
        LockError::Connect {
            server: Arc::clone(&self.server),
            source: Arc::new(source),
        }
    }

    /// Whether the server itself answers, and not a pooler, which announces a number of its own to
    /// its clients.
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

    /// Sends messages behind all that were sent before, the waiting ping among them, and asks for
    /// the proof that all succeeded.
    pub(super) fn ask<'a>(
        &self,
        messages: impl IntoIterator<Item = &'a str>,
        patience: Duration,
    ) -> Confirmation {
        self.asker.flush(&self.client);
        self.asker.ask(&self.client, messages, patience)
    }

    /// Asks for the proof that the lock of this connection was held until now.
    pub(super) fn ping(
        &self,
        urgency: Urgency,
        comment: &Arc<str>,
        lease: &Arc<Lease>,
    ) -> Confirmation {
        self.asker.ping(&self.client, urgency, comment, lease)
    }

    pub(super) fn canceller(&self) -> &Canceller {
        &self.canceller
    }
}

impl<C: Borrow<LockConnection>> Busy<C> {
    pub(super) fn new(connection: C) -> Self {
        let LockConnection { task, closed, .. } = connection.borrow();
        Self {
            closer: Closer(Some((task.clone(), closed.clone()))),
            connection,
        }
    }

    /// The connection, once whatever was open on it has ended, or its end has been sent.
    pub(super) fn into_idle(mut self) -> C {
        self.closer.0 = None;
        self.connection
    }

    /// Ends the transaction, whatever state it is in; `None` if the connection cannot be used
    /// again.
    ///
    /// A statement that a handler left running is cancelled. The connection is then given up: a
    /// cancellation that comes late would hit a statement of its next user.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the connection is closed.
    pub(super) async fn roll_back(self) -> Option<C> {
        let ended = {
            let mut rolled_back = pin!(self.client.batch_execute("ROLLBACK"));
            let ended = timeout(ROLLBACK_PATIENCE, &mut rolled_back).await;
            if ended.is_err() {
                self.canceller.cancel_until_ended(&mut rolled_back).await;
            }
            ended
        };
        matches!(ended, Ok(Ok(()))).then(|| self.into_idle())
    }

    /// Undoes what a handler did to the session, outside of any transaction; `None` if that fails.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the connection is closed.
    pub(super) async fn reset(self) -> Option<C> {
        let reset = timeout(ROLLBACK_PATIENCE, self.client.batch_execute(RESET)).await;
        matches!(reset, Ok(Ok(()))).then(|| self.into_idle())
    }
}

impl<C: Borrow<LockConnection>> Deref for Busy<C> {
    type Target = LockConnection;

    fn deref(&self) -> &LockConnection {
        self.connection.borrow()
    }
}

impl Closer {
    fn close(&mut self) {
        if let Some((task, closed)) = self.0.take() {
            task.abort();
            closed.cancel();
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether the session is over: the driver failed by itself, or the server sent its last message.
pub(super) fn is_disconnect(error: &Error) -> bool {
    let severity = error.as_db_error().map(DbError::parsed_severity);
    !matches!(severity, Some(Some(Severity::Error)))
}
