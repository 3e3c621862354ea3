use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use bb8::ManageConnection;
use futures_util::future::try_join_all;
use tokio::time::{Instant, timeout};
use tokio_postgres::config::LoadBalanceHosts;
use tokio_postgres::{AsyncMessage, Notification, SimpleQueryMessage};

use super::address::Address;
use super::answer::value;
use super::connection::{Busy, LockConnection};
use super::login::LoggedIn;
use super::settings::READ_COMMITTED;
use super::url::Database;
use crate::lock::error::ConnectError;
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
const POOLER_PROBE: [&str; 3] = [
    "BEGIN ISOLATION LEVEL READ COMMITTED",
    "SELECT pg_backend_pid()",
    "COMMIT",
];
/// How many places that failed are remembered: more than a cluster has.
const MAX_FAILED: usize = 64;
/// For how long: a pooler that has restarted is to have its share again.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Makes the lock connections of a pool and says which may go back into it.
#[derive(Clone)]
pub(super) struct Connector {
    database: Database,
    addresses: Vec<Address>,
    timeout: Duration,
    lease: Duration,
    lifetime: Duration,
    prepares: bool,
    /// The addresses, and the numbers of addresses, where the last attempt failed.
    failed: Arc<Mutex<HashMap<Arc<str>, Instant>>>,
    /// Counts what connections leave to be done when their user has gone.
    group: TaskGroup,
    on_notification: Arc<OnNotification>,
}

type OnNotification = dyn Fn(Notification) + Send + Sync;

impl Connector {
    /// `timeout` bounds the attempt at each number of each address, the server's first answers
    /// included; `lifetime` is the time until a connection is given up for a new one, and `lease`
    /// how long the server keeps the locks of a silent one.
    pub(super) fn new(
        database: Database,
        timeout: Duration,
        lifetime: Duration,
        lease: Duration,
        group: TaskGroup,
    ) -> Self {
        Self {
            addresses: Address::all(&database.config),
            database,
            timeout,
            lease,
            lifetime,
            prepares: false,
            failed: Arc::default(),
            group,
            on_notification: Arc::new(|_| {}),
        }
    }

    /// Has its connections prepare what a lock in a transaction asks again and again.
    pub(super) fn prepared(mut self) -> Self {
        self.prepares = true;
        self
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
    /// standbys. Those that failed the last time come last, so that a silent one costs its time-out
    /// once. Names are looked up each time, as a failover may move them.
    pub(super) async fn open(&self) -> Result<LockConnection, ConnectError> {
        let mut errors = Vec::new();
        let addresses = self.addresses.iter();
        let addresses = addresses.map(|address| (self.describe(address, None), address));
        for (server, address) in self.in_order(addresses) {
            let opened = self.open_any(address, &server, &mut errors).await;
            let is_refused = errors.last().is_some_and(ConnectError::is_refused_login);
            if let Some(connection) = opened {
                self.note(server, true);
                let is_news = |error: &ConnectError| !matches!(error, ConnectError::Standby { .. });
                for error in errors.into_iter().filter(is_news) {
                    tracing::warn!(%error, "another server is used for a lock connection");
                }
                return Ok(connection);
            }
            // Asking elsewhere again would only lock the role out.
            if is_refused {
                break;
            }
            self.note(server, false);
        }
        Err(ConnectError::of(errors))
    }

    /// Connects to the first number of an address whose server can be used.
    async fn open_any(
        &self,
        address: &Address,
        server: &Arc<str>,
        errors: &mut Vec<ConnectError>,
    ) -> Option<LockConnection> {
        let silent = |server: &Arc<str>| ConnectError::ConnectTimeout {
            server: Arc::clone(server),
            after: self.timeout,
        };
        let lost = |error: io::Error| ConnectError::Connect {
            server: Arc::clone(server),
            source: Arc::new(error),
        };
        let numbers = timeout(self.timeout, address.numbers()).await;
        let numbers = match numbers {
            Ok(Ok(numbers)) => numbers,
            Ok(Err(error)) => {
                errors.push(lost(error));
                return None;
            }
            Err(_) => {
                errors.push(silent(server));
                return None;
            }
        };
        if numbers.is_empty() {
            errors.push(lost(io::Error::other("its name has no address")));
        }
        let has_several = numbers.len() > 1;
        let numbers = numbers.into_iter().map(|number| {
            let server = self.describe(address, number.filter(|_| has_several));
            (server, number)
        });
        for (server, number) in self.in_order(numbers) {
            let opened = timeout(self.timeout, self.open_at(address, number, &server)).await;
            let opened = opened.unwrap_or_else(|_| Err(silent(&server)));
            let is_refused = matches!(&opened, Err(error) if error.is_refused_login());
            if !is_refused {
                self.note(Arc::clone(&server), opened.is_ok());
            }
            match opened {
                Ok(connection) => return Some(connection),
                Err(error) => errors.push(error),
            }
            if is_refused {
                break;
            }
        }
        None
    }

    /// The order in which places are tried: the given one, or another each time if the user wants
    /// that, and behind all others those that failed the last time.
    fn in_order<T>(&self, places: impl Iterator<Item = (Arc<str>, T)>) -> Vec<(Arc<str>, T)> {
        let mut places: Vec<_> = places.collect();
        if self.database.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            places.sort_by_cached_key(|_| random());
        }
        let failed = self.failed();
        let has_failed = |server: &Arc<str>| {
            failed
                .get(server)
                .is_some_and(|at| at.elapsed() < REMEMBERED)
        };
        places.sort_by_key(|(server, _)| has_failed(server));
        places
    }

    fn note(&self, server: Arc<str>, has_worked: bool) {
        let mut failed = self.failed();
        if has_worked {
            failed.remove(&server);
        } else {
            // The numbers of a name may change without an end.
            if failed.len() >= MAX_FAILED {
                failed.clear();
            }
            failed.insert(server, Instant::now());
        }
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        // A map that has lost an entry is still right: it only orders.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
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
        // Not all of them at once: up to a tenth is taken off.
        let early = u32::try_from(random() % 100).unwrap_or_default();
        let lifetime = self.lifetime.saturating_sub(self.lifetime / 1000 * early);
        connection.expires = Instant::now().checked_add(lifetime);
        if self.prepares {
            // Until the server has answered.
            let asked = Busy::new(connection);
            let has_prepared = asked.prepare().await?;
            connection = asked.into_idle();
            connection.has_prepared = has_prepared;
        }
        Ok(connection)
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Where a server is, without user and password; at which number, if its name has several.
    fn describe(&self, address: &Address, number: Option<IpAddr>) -> Arc<str> {
        let config = &self.database.config;
        let database = config.get_dbname().or(config.get_user());
        let place = format!("{address}/{}", database.unwrap_or_default());
        match number {
            Some(number) => format!("{place} ({number})").into(),
            None => place.into(),
        }
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

/// Another number each time: each state has other keys.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
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
        connection.is_closed() || connection.is_too_old()
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
