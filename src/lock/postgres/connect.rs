use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bb8::ManageConnection;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Notification, SimpleQueryMessage};

use super::address::Address;
use super::answer::value;
use super::connection::LockConnection;
use super::url::Database;
use crate::lock::error::LockError;
use crate::lock::tasks::{TaskGroup, Tasks};

/// Whether the server is a primary, and whether an advisory lock that it grants shows up among its locks. The lock is shared,
/// so that replicas which connect together do not meet, and ends with the message, which is one transaction. Its key is the
/// bytes `tower-re`, which nobody else is likely to lock.
const PROBE: &str = "SELECT pg_is_in_recovery(), pg_backend_pid(); \
     SELECT pg_advisory_xact_lock_shared(8390055908405506661); \
     SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted \
     AND (classid::bigint << 32) | objid::bigint = 8390055908405506661";

/// Makes the lock connections of a pool and says which may go back into it.
#[derive(Clone)]
pub(super) struct Connector {
    database: Database,
    addresses: Vec<Address>,
    timeout: Duration,
    /// Counts what connections leave to be done when their user has gone.
    group: TaskGroup,
    on_notification: Arc<OnNotification>,
}

type OnNotification = dyn Fn(Notification) + Send + Sync;

impl Connector {
    /// `timeout` bounds the attempt at each address, the server's first answers included.
    pub(super) fn new(mut database: Database, timeout: Duration, group: TaskGroup) -> Self {
        let config = &mut database.config;
        if config.get_application_name().is_none() {
            config.application_name("tower-realm-lock");
        }
        Self {
            addresses: Address::all(config),
            database,
            timeout,
            group,
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
        let (client, mut connection, canceller, traffic) = logged_in;
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
        let tasks = Tasks::new(&self.group);
        let connection = LockConnection::start(client, driven, canceller, &traffic, server, tasks);
        let answers = connection.client.simple_query(PROBE).await;
        let answers = answers.map_err(|error| connection.failed(error))?;
        self.judge(address, &answers)?;
        let mut connection = connection.into_idle();
        connection.answered_by(value(&answers, "pg_backend_pid"));
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
        connection.is_closed()
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
