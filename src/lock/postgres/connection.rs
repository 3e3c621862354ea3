use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bb8::ManageConnection;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{AsyncMessage, Client, Error, Notification, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::canceller::Canceller;
use super::confirmation::Answer;
use super::url::Database;
use super::value;
use crate::lock::LockError;

/// Whether the server is a primary, and whether an advisory lock that it grants shows up among its locks. The lock is shared,
/// so that replicas which connect together do not meet, and ends with the message, which is one transaction. Its key is the
/// bytes `tower-re`, which nobody else is likely to lock.
const PROBE: &str = "SELECT pg_is_in_recovery(); \
     SELECT pg_advisory_xact_lock_shared(8390055908405506661); \
     SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted \
     AND (classid::bigint << 32) | objid::bigint = 8390055908405506661";

/// What `DISCARD ALL` does but for prepared statements: the driver still counts on some of its own.
const RESET: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *; \
     SELECT pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES";

/// How long a ROLLBACK may take before whatever keeps it waiting is cancelled.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a CancelRequest is given before it is sent again: it may have overtaken the statement it is meant for.
pub(super) const CANCEL_PATIENCE: Duration = Duration::from_millis(200);
/// How long a CancelRequest is kept open that nobody waits for any more. On a silent network it is never closed.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
/// How often a CancelRequest is sent before the connection is given up; the server's time-outs then end what it runs.
pub(super) const CANCEL_TRIES: u32 = 10;

/// Makes the lock connections of a pool and says which may go back into it.
#[derive(Clone)]
pub(crate) struct Connector {
    database: Database,
    addresses: Vec<Address>,
    timeout: Duration,
    on_notification: Arc<OnNotification>,
}

type OnNotification = dyn Fn(Notification) + Send + Sync;

/// A connection that holds at most one lock transaction.
pub(crate) struct LockConnection {
    pub(crate) client: Arc<Client>,
    /// Cancelled when the connection's task ends, for whatever reason.
    pub(crate) closed: CancellationToken,
    /// Whether a transaction may be open on it that nobody has told to end. Such a connection is not pooled.
    pub(crate) in_use: bool,
    /// The end of the transaction before, as long as it may be unanswered: nothing may be cancelled until it is answered.
    pub(super) ending: Option<Answer>,
    /// Host, port and database.
    pub(super) server: Arc<str>,
    canceller: Canceller,
    pub(super) task: AbortHandle,
}

impl Connector {
    /// `timeout` bounds the attempt at each address, the server's first answers included.
    pub(crate) fn new(mut database: Database, timeout: Duration) -> Self {
        let config = &mut database.config;
        if config.get_application_name().is_none() {
            config.application_name("tower-realm-lock");
        }
        Self {
            addresses: Address::all(config),
            database,
            timeout,
            on_notification: Arc::new(|_| {}),
        }
    }

    /// Calls this with each notification that comes on one of its connections.
    pub(super) fn on_notification(
        mut self,
        call: impl Fn(Notification) + Send + Sync + 'static,
    ) -> Self {
        self.on_notification = Arc::new(call);
        self
    }

    /// Connects to the first address whose server can be used: several are a primary and its standbys.
    pub(super) async fn open(&self) -> Result<LockConnection, LockError> {
        let mut failure = LockError::InvalidDatabaseUrl {
            problem: "it names no host".into(),
        };
        for (index, address) in self.addresses.iter().enumerate() {
            match timeout(self.timeout, self.open_at(address)).await {
                Ok(Ok(connection)) => return Ok(connection),
                // What keeps the primary away says more than that another server is a standby.
                Ok(Err(LockError::Standby { .. })) if index > 0 => {}
                Ok(Err(error)) => failure = error,
                Err(_) => {
                    failure = LockError::ConnectTimeout {
                        server: self.describe(address),
                        after: self.timeout,
                    }
                }
            }
        }
        Err(failure)
    }

    async fn open_at(&self, address: &Address) -> Result<LockConnection, LockError> {
        let server = self.describe(address);
        let logged_in = self.database.log_in(address, &server).await?;
        let (client, mut connection, canceller) = logged_in;
        let on_notification = Arc::clone(&self.on_notification);
        let driven = poll_fn(move |cx| {
            loop {
                match ready!(connection.poll_message(cx)) {
                    Some(Ok(AsyncMessage::Notification(it))) => on_notification(it),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(())),
                }
            }
        });
        let mut connection = LockConnection::start(client, driven, canceller, server);
        let answers = connection.client.simple_query(PROBE).await;
        let answers = answers.map_err(|error| connection.failed(error))?;
        self.judge(address, &answers)?;
        connection.in_use = false;
        Ok(connection)
    }

    /// Refuses a server by its answers to [`PROBE`].
    fn judge(&self, address: &Address, answers: &[SimpleQueryMessage]) -> Result<(), LockError> {
        let values: Vec<&str> = answers
            .iter()
            .filter_map(|answer| match answer {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            })
            .collect();
        let server = || self.describe(address);
        match (values.first(), values.last()) {
            (Some(&"t"), _) => Err(LockError::Standby { server: server() }),
            (Some(&"f"), Some(&"t")) => Ok(()),
            _ => Err(LockError::NoAdvisoryLocks { server: server() }),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Where a server is, without user and password.
    fn describe(&self, address: &Address) -> Arc<str> {
        let config = &self.database.config;
        let database = config.get_dbname().or(config.get_user());
        format!("{address}/{}", database.unwrap_or_default()).into()
    }
}

impl ManageConnection for Connector {
    type Connection = LockConnection;
    type Error = LockError;

    async fn connect(&self) -> Result<LockConnection, LockError> {
        self.open().await
    }

    /// Never called: the pool does not test on check-out, which would cost a round trip for each lock.
    async fn is_valid(&self, _: &mut LockConnection) -> Result<(), LockError> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut LockConnection) -> bool {
        connection.in_use || connection.is_closed()
    }
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
        for _ in 0..CANCEL_TRIES {
            cancel(&self.canceller).await;
            if timeout(CANCEL_PATIENCE, &mut rolled_back).await.is_ok() {
                return;
            }
        }
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

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("addresses", &self.addresses)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Sends one CancelRequest, and waits for [`CANCEL_PATIENCE`] at most.
///
/// A slow one goes on by itself: `PgBouncer` 1.18 ends itself when the client of a CancelRequest leaves before it is passed on
/// (pgbouncer issue 801), and passes it on only when it has a connection to spare. Must be called within a runtime.
pub(super) async fn cancel(canceller: &Canceller) {
    let canceller = canceller.clone();
    let request = tokio::spawn(async move {
        if let Ok(Err(error)) = timeout(CANCEL_LIMIT, canceller.cancel()).await {
            tracing::debug!(%error, "a CancelRequest could not be sent");
        }
    });
    let _ = timeout(CANCEL_PATIENCE, request).await;
}

/// Whether the session is over: the driver failed by itself, or the server said a last word.
pub(super) fn is_disconnect(error: &Error) -> bool {
    let severity = error.as_db_error().map(DbError::parsed_severity);
    !matches!(severity, Some(Some(Severity::Error)))
}
