use std::fmt;
use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bb8::ManageConnection;
use futures_util::future::try_join_all;
use tokio::time::timeout;
use tokio_postgres::config::LoadBalanceHosts;
use tokio_postgres::{AsyncMessage, Notification, SimpleQueryMessage};

use super::address::Address;
use super::answer::value;
use super::connection::LockConnection;
use super::login::LoggedIn;
use super::settings::READ_COMMITTED;
use super::url::Database;
use crate::config::ConfigError;
use crate::lock::error::{ConnectError, find};
use crate::lock::tasks::{TaskGroup, Tasks};

/// Whether the server is a primary, and whether an advisory lock that it grants shows up among its
/// locks. The lock is shared, so that replicas which connect together do not meet, and ends with
/// the message, which is one transaction. Its key is the bytes `tower-re`, which nobody else is
/// likely to lock.
const PROBE: &str = "SELECT pg_is_in_recovery(), pg_backend_pid(); \
     SELECT pg_advisory_xact_lock_shared(8390055908405506661); \
     SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted \
     AND (classid::bigint << 32) | objid::bigint = 8390055908405506661";

/// Sent behind [`PROBE`], as messages of their own. A pooler that allows no transaction refuses the
/// first. The second is a statement that pgpool-II balances: another server may answer it.
const POOLER_PROBE: [&str; 3] = ["BEGIN", "SELECT pg_backend_pid()", "COMMIT"];

/// Makes the lock connections of a pool and says which may go back into it.
#[derive(Clone)]
pub(super) struct Connector {
    database: Database,
    addresses: Vec<Address>,
    timeout: Duration,
    lease: Duration,
    /// Counts what connections leave to be done when their user has gone.
    group: TaskGroup,
    on_notification: Arc<OnNotification>,
}

type OnNotification = dyn Fn(Notification) + Send + Sync;

impl Connector {
    /// `timeout` bounds the attempt at each number of each address, the server's first answers
    /// included. `lease` is how long the server keeps the locks of a silent connection.
    pub(super) fn new(
        database: Database,
        timeout: Duration,
        lease: Duration,
        group: TaskGroup,
    ) -> Self {
        Self {
            addresses: Address::all(&database.config),
            database,
            timeout,
            lease,
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

    /// Connects to the first address whose server can be used: several are a primary and its
    /// standbys.
    pub(super) async fn open(&self) -> Result<LockConnection, ConnectError> {
        let mut failure = None;
        for address in self.shuffled(self.addresses.clone()) {
            match self.open_any(&address).await {
                Ok(connection) => return Ok(connection),
                // What keeps the primary away says more than that another server is a standby.
                Err(ConnectError::Standby { .. }) if failure.is_some() => {}
                Err(error) => failure = Some(error),
            }
        }
        let none = || ConfigError::InvalidDatabaseUrl {
            problem: "it names no host".into(),
        };
        Err(failure.unwrap_or_else(|| none().into()))
    }

    /// Connects to the first number of an address whose server can be used.
    async fn open_any(&self, address: &Address) -> Result<LockConnection, ConnectError> {
        let server = self.describe(address);
        let silent = |_| ConnectError::ConnectTimeout {
            server: Arc::clone(&server),
            after: self.timeout,
        };
        let lost = |error: io::Error| ConnectError::Connect {
            server: Arc::clone(&server),
            source: Arc::new(error),
        };
        let numbers = timeout(self.timeout, address.numbers()).await;
        let numbers = numbers.map_err(silent)?.map_err(lost)?;
        let mut failure = lost(io::Error::other("its name has no address"));
        let mut is_first = true;
        for number in self.shuffled(numbers) {
            let opened = timeout(self.timeout, self.open_at(address, number, &server)).await;
            match opened.map_err(silent).flatten() {
                Ok(connection) => return Ok(connection),
                Err(error) if is_first || says_more(&error, &failure) => failure = error,
                Err(_) => {}
            }
            is_first = false;
        }
        Err(failure)
    }

    /// What is to be tried, in an order of its own each time if the user wants that.
    fn shuffled<T>(&self, mut tried: Vec<T>) -> Vec<T> {
        if self.database.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            // Each state has other keys.
            tried.sort_by_cached_key(|_| RandomState::new().build_hasher().finish());
        }
        tried
    }

    async fn open_at(
        &self,
        address: &Address,
        number: Option<IpAddr>,
        server: &Arc<str>,
    ) -> Result<LockConnection, ConnectError> {
        let logged_in = self.database.log_in(address, number, server).await?;
        let LoggedIn {
            client,
            mut messages,
            canceller,
            traffic,
        } = logged_in;
        let on_notification = Arc::clone(&self.on_notification);
        let driven = poll_fn(move |cx| {
            loop {
                match ready!(messages(cx)) {
                    Some(Ok(AsyncMessage::Notification(it))) => on_notification(it),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(())),
                }
            }
        });
        let tasks = Tasks::new(&self.group);
        let place = Arc::clone(server);
        let connection = LockConnection::start(client, driven, canceller, &traffic, place, tasks);
        let settings = connection.first_settings(self.lease);
        let message = format!("{READ_COMMITTED}; {settings}; {PROBE}");
        let pooler =
            try_join_all(POOLER_PROBE.map(|message| connection.client.simple_query(message)));
        let (answers, pooler) = tokio::join!(connection.client.simple_query(&message), pooler);
        let answers = answers.map_err(|error| connection.failed(error))?;
        judge(server, &answers)?;
        let pooler = pooler.map_err(|error| connection.failed(error))?;
        let mut connection = connection.into_idle();
        let balanced = pooler.iter().find_map(|it| value(it, "pg_backend_pid"));
        let process_id = value(&answers, "pg_backend_pid").filter(|&it| balanced == Some(it));
        connection.answered_by(process_id, self.lease);
        Ok(connection)
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

/// Refuses a server by its answers to [`PROBE`].
fn judge(server: &Arc<str>, answers: &[SimpleQueryMessage]) -> Result<(), ConnectError> {
    let values: Vec<&str> = answers
        .iter()
        .filter_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    let server = Arc::clone(server);
    match (value(answers, "pg_is_in_recovery"), values.last()) {
        (Some("t"), _) => Err(ConnectError::Standby { server }),
        (Some("f"), Some(&"t")) => Ok(()),
        _ => Err(ConnectError::NoAdvisoryLocks { server }),
    }
}

/// Whether an error of one number of an address is to be reported instead of another's: a server's
/// answer rather than none, and what keeps the primary away rather than that a server is a standby.
fn says_more(error: &ConnectError, other: &ConnectError) -> bool {
    match error {
        ConnectError::Standby { .. } => is_absent(other),
        error => !is_absent(error),
    }
}

/// Whether no server answered.
fn is_absent(error: &ConnectError) -> bool {
    match error {
        ConnectError::Connect { source, .. } => find::<io::Error>(source.as_ref()).is_some(),
        ConnectError::ConnectTimeout { .. } => true,
        _ => false,
    }
}

impl ManageConnection for Connector {
    type Connection = LockConnection;
    type Error = ConnectError;

    async fn connect(&self) -> Result<LockConnection, ConnectError> {
        self.open().await
    }

    /// Never called: the pool does not test on check-out, which would cost a round trip for each
    /// lock.
    async fn is_valid(&self, _: &mut LockConnection) -> Result<(), ConnectError> {
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
