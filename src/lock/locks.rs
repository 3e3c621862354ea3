use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Instrument;

use super::database::Database;
use super::error::{ConnectError, LockError};
use super::grant::{GrantTerms, Outcome, Queue};
use super::held::HeldLock;
use super::hold::Hold;
use super::in_place::InPlace;
use super::postgres::Postgres;
use super::postgres::fleet::Membership;
use super::postgres::options::PostgresBuilder;
use super::realm_keys::RealmKeys;
use super::request::Bounds;
use super::status::ClaimStatus;
use super::tasks::{TaskGroup, Tasks};
use super::watchdog::Watchdog;
use crate::config::ConfigError;
use crate::realm::claim::Claim;
use crate::realm::classify::KEYS;

/// The locks of all realms, as this process sees them.
///
/// Make one for each process and database, and clone it: clones share the queue and the pool, and
/// each carries its own bounds. Two that were made separately exclude each other only through
/// PostgreSQL or, in process, not at all.
#[derive(Debug, Clone)]
pub struct RealmLocks {
    pub(super) shared: Arc<Shared>,
    pub(super) bounds: Bounds,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Arc<Queue>,
    pub(super) watchdog: Arc<Watchdog>,
    /// `None` for locks in process only.
    pub(super) database: Option<Database>,
    /// `None` where a realm's key is made of its URL.
    pub(super) realm_keys: Option<RealmKeys>,
    sender: Arc<str>,
    /// The tasks that run, end and cancel holds.
    pub(super) group: TaskGroup,
}

impl RealmLocks {
    /// Whether both are of the same database, or of the same process, with whatever bounds.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Locks in the PostgreSQL database at `url`, with the defaults of
    /// [`postgres_builder`](Self::postgres_builder).
    ///
    /// # Errors
    ///
    /// As [`PostgresBuilder::build`].
    pub async fn postgres(url: &str) -> Result<Self, ConnectError> {
        Self::postgres_builder(url).build().await
    }

    /// Locks in the PostgreSQL database at `url`, a URL or a `key=value` string as libpq reads it.
    ///
    /// Of several hosts the first is used that is a primary.
    /// [`PostgresBuilder`](PostgresBuilder#database-urls) lists the options of a URL.
    ///
    /// All replicas must use one database of one primary: advisory locks do not reach further.
    pub fn postgres_builder(url: &str) -> PostgresBuilder {
        PostgresBuilder::new(url)
    }

    /// The same for the driver's own configuration, with its hosts, password and options.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), tower_realm_lock::ConnectError> {
    /// use tower_realm_lock::{RealmLocks, tokio_postgres};
    ///
    /// let mut database = tokio_postgres::Config::new();
    /// database.host("db.internal").dbname("realms");
    /// database.user("realms").password(std::env::var("PGPASSWORD").unwrap_or_default());
    /// let locks = RealmLocks::postgres_config(database).build().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn postgres_config(config: tokio_postgres::Config) -> PostgresBuilder {
        PostgresBuilder::from_config(config)
    }

    /// Locks within this process only: the same queue, with no database behind it.
    ///
    /// Right for one replica and for tests. Two processes do not exclude each other. Each hold has
    /// a [`FencingToken`](crate::FencingToken).
    #[must_use]
    pub fn in_process() -> Self {
        Self::new(None, None, Self::new_sender(), TaskGroup::default())
    }

    fn new(
        database: Option<Database>,
        realm_keys: Option<RealmKeys>,
        sender: Arc<str>,
        group: TaskGroup,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Arc::default(),
                watchdog: Watchdog::new(),
                database,
                realm_keys,
                sender,
                group,
            }),
            bounds: Bounds {
                acquire_timeout: Duration::from_secs(10),
                max_hold: Some(Duration::from_secs(300)),
                max_waiters: 1024,
                share_transaction: false,
            },
        }
    }

    /// A name that no other locks have, of this process or of another one.
    fn new_sender() -> Arc<str> {
        // The keys of each state are random.
        let number = RandomState::new().hash_one(std::process::id());
        format!("{number:016x}").into()
    }

    /// The name under which these locks publish writes to other replicas:
    /// [`RealmWrite::sender`](crate::RealmWrite::sender). Random.
    #[must_use]
    pub fn sender(&self) -> &str {
        &self.shared.sender
    }

    /// How long a caller waits for its lock, in the queue and in PostgreSQL together. Default 10
    /// seconds.
    ///
    /// With [`Duration::ZERO`] a lock is only tried: a claim that somebody holds or waits for is
    /// refused at once, with [`LockError::Taken`]. A connection to PostgreSQL and its answer may
    /// then take 5 seconds in all.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.bounds.acquire_timeout = timeout;
        self
    }

    /// How long a hold may last before its work is dropped; `None` for no bound. Default 5 minutes.
    ///
    /// The lock is then given back, or when work that was started with [`HeldLock::spawn_blocking`] or
    /// [`HeldLock::spawn`] has ended.
    #[must_use]
    pub fn max_hold(mut self, max_hold: impl Into<Option<Duration>>) -> Self {
        self.bounds.max_hold = max_hold.into();
        self
    }

    /// How many callers of this process may wait for one realm; the next is refused at once. Default
    /// 1024.
    #[must_use]
    pub fn max_waiters_per_realm(mut self, waiters: usize) -> Self {
        self.bounds.max_waiters = waiters;
        self
    }

    /// Whether the work may run its own SQL in the transaction that holds the lock: see
    /// [`LockTransaction`](crate::LockTransaction). Default `false`.
    ///
    /// A success then commits before its response leaves, or is answered with 503 `commit-failed`;
    /// everything else rolls back. For locks in PostgreSQL only: locks in process then refuse every
    /// request.
    #[must_use]
    pub fn share_transaction(mut self, share: bool) -> Self {
        self.bounds.share_transaction = share;
        self
    }

    pub(crate) fn shares_transaction(&self) -> bool {
        self.bounds.share_transaction
    }

    /// Runs `work` while a realm, or any other [`Claim`], is locked, with the guarantees that the
    /// layer gives a request: for jobs and workers.
    ///
    /// Once granted, the work runs on a task of its own, from its first poll to its end, even if this
    /// future is dropped. It sees the caller's tracing span, but not its task-locals. If the lock is
    /// lost or the work takes longer than [`max_hold`](Self::max_hold), it is dropped at its next
    /// `await`. An `Ok` is returned only after PostgreSQL has confirmed that the lock was held to the
    /// end. With [`share_transaction`](Self::share_transaction) an `Ok` commits what the work wrote,
    /// and everything else rolls it back.
    ///
    /// # Nested use
    ///
    /// Work that already holds all of the claim, in the same task, by the same locks and in one hold
    /// or several, does not wait: it gets a *nested hold*, which shares the lock and keeps it for as
    /// long as it needs it, though the outer hold ends before. It has limits, an outcome and a
    /// confirmation of its own, and its success is published before it is returned, or soon after
    /// where nothing confirms it. In a shared transaction, behind a pooler and under a claim of more
    /// than 500 keys PostgreSQL publishes nothing before it releases the lock: there the write is
    /// published at the end of the last hold that shares the lock. So is a write of which a part goes
    /// on when its hold ends, such as [`HeldLock::spawn_blocking`](crate::HeldLock::spawn_blocking). Two nested holds side by side do
    /// not exclude each other. What they write in a shared transaction stands or falls with the
    /// outer hold, whose commit waits for them.
    ///
    /// More of what the work holds in part is refused. Asking for another realm there can deadlock
    /// with a task that does it the other way round, or that waits for both together; the acquire
    /// timeout ends that, and the error names both. So work that needs several realms claims them
    /// together.
    ///
    /// # Errors
    ///
    /// The work's own error, or a [`LockError`] made into one.
    ///
    /// # Panics
    ///
    /// As `work` does; the lock is released all the same.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the grant, it leaves the queue and nothing runs. Dropped after it, the work runs
    /// on.
    ///
    /// ```
    /// use tower_realm_lock::{LockError, RealmLocks, RealmUrl};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let locks = RealmLocks::in_process();
    /// let realm = RealmUrl::parse("https://realms.example.com/luke/my-realm/")?;
    /// let files = locks
    ///     .with_write_lock(&realm, |held| async move {
    ///         assert!(held.is_held());
    ///         Ok::<_, LockError>(3)
    ///     })
    ///     .await?;
    /// assert_eq!(files, 3);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn with_write_lock<T, E, F, W>(
        &self,
        claim: impl Into<Claim>,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(HeldLock) -> W + Send + 'static,
        W: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<LockError> + Send + 'static,
    {
        let hold = self.hold(&claim.into(), false).await?;
        self.run(hold, work).await
    }

    /// As [`with_write_lock`](Self::with_write_lock), but returns `Ok(None)` at once, and runs
    /// nothing, if somebody holds the claim or waits for it: for a job that another replica may be
    /// running already.
    ///
    /// # Errors
    ///
    /// As [`with_write_lock`](Self::with_write_lock). A connection to PostgreSQL and its answer may
    /// take 5 seconds in all.
    ///
    /// # Panics
    ///
    /// As `work` does; the lock is released all the same.
    ///
    /// # Cancel safety
    ///
    /// As [`with_write_lock`](Self::with_write_lock).
    pub async fn try_with_write_lock<T, E, F, W>(
        &self,
        claim: impl Into<Claim>,
        work: F,
    ) -> Result<Option<T>, E>
    where
        F: FnOnce(HeldLock) -> W + Send + 'static,
        W: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<LockError> + Send + 'static,
    {
        let tried = self.clone().acquire_timeout(Duration::ZERO);
        match tried.hold(&claim.into(), false).await {
            Ok(hold) => self.run(hold, work).await.map(Some),
            Err(error) if matches!(error.innermost(), LockError::Taken { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs work under its hold on a task, and waits for the proof of a success.
    async fn run<T, E, F, W>(&self, hold: Hold, work: F) -> Result<T, E>
    where
        F: FnOnce(HeldLock) -> W + Send + 'static,
        W: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<LockError> + Send + 'static,
    {
        let ended = self.spawn(async move {
            let handle = HeldLock::of(&hold);
            // Within the guard, so that the closure itself works under the hold.
            let done = hold.guard(async { work(handle).await }).await??;
            Ok::<_, E>((done, hold.end(Outcome::Success)?))
        });
        let (done, ending) = match ended.await {
            Ok(ended) => ended?,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only the end of the runtime cancels it.
                Err(_) => return Err(LockError::ShuttingDown.into()),
            },
        };
        ending.confirmed().await?;
        Ok(done)
    }

    /// What this process holds and waits for, in order of arrival: to show it to an operator.
    ///
    /// Other replicas' holds are not among it; PostgreSQL knows them (`docs/operations.md`).
    #[must_use]
    pub fn status(&self) -> Vec<ClaimStatus> {
        self.shared.queue.status()
    }

    /// Stops granting, waits up to `grace` for the holds and their releases, and closes the pool.
    ///
    /// From now on every caller gets [`LockError::ShuttingDown`], those that already wait too.
    ///
    /// # Errors
    ///
    /// [`LockError::ShutdownIncomplete`] if `grace` was too short. The other locks end with the
    /// process.
    ///
    /// # Cancel safety
    ///
    /// If dropped, nothing is granted any more; call it again to wait.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), LockError> {
        let tasks = self.shared.group.tracker();
        self.shared.queue.close();
        self.shared.group.closing().cancel();
        tasks.close();
        let queue = &self.shared.queue;
        let ended = async {
            queue.emptied().await;
            tasks.wait().await;
        };
        let ended = timeout(grace, ended).await;
        if let Some(database) = &self.shared.database {
            database.postgres().close();
        }
        ended.map_err(|_| LockError::ShutdownIncomplete {
            // Most tasks are those of holds that have a place in the queue.
            holds: queue.len().max(tasks.len()),
            grace,
        })
    }

    /// Publishes what a layer locks by to the other replicas of its fleet, and logs an error for
    /// each one that locks by something else.
    pub(crate) fn join_fleet(
        &self,
        fleet: &Arc<str>,
        mut fingerprint: Vec<(&'static str, String)>,
    ) {
        let Some(database) = &self.shared.database else {
            tracing::warn!(
                fleet = &**fleet,
                "a fleet needs locks in PostgreSQL: locks in process exclude no other replica; use \
                 RealmLocks::postgres, or leave `fleet` out"
            );
            return;
        };
        if self.has_realm_keys() {
            let keys = fingerprint.iter_mut().filter(|(name, _)| *name == KEYS);
            keys.for_each(|(_, text)| *text += "; those of realms by `realm_keys`");
        }
        database.join_fleet(Membership {
            fleet: Arc::clone(fleet),
            fingerprint,
        });
    }

    /// Whether the keys of realms are those of [`PostgresBuilder::realm_keys`].
    pub(crate) fn has_realm_keys(&self) -> bool {
        self.shared.realm_keys.is_some()
    }

    /// Where the locks are, for people.
    pub(crate) fn backend(&self) -> &'static str {
        match self.shared.database {
            Some(_) => "PostgreSQL",
            None => "this process",
        }
    }

    /// Runs granted work in the task of whoever polls this. If it is dropped, a task adopts the work
    /// and runs it to its end.
    pub(crate) fn run_in_place<W>(&self, work: W) -> InPlace<'_, W>
    where
        W: Future<Output: Send> + Send + 'static,
    {
        InPlace::new(self.shared.group.tracker(), work)
    }

    /// Starts a task that a shutdown waits for. It has the caller's tracing span, but not its
    /// task-locals.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.shared.group.tracker().spawn(work.in_current_span())
    }
}

impl PostgresBuilder {
    /// Connects, and checks that the server's locks exclude others.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Config`] for wrong options; [`ConnectError::Pooler`] and
    /// [`ConnectError::NoSessionTimeout`] for a server that cannot be used with
    /// [`sessions`](Self::sessions); the other variants for one that cannot be used at all.
    ///
    /// # Cancel safety
    ///
    /// If dropped, what was opened is closed.
    pub async fn build(self) -> Result<RealmLocks, ConnectError> {
        let locks = self.build_lazy()?;
        if let Some(database) = &locks.shared.database {
            database.postgres().connect().await?;
        }
        Ok(locks)
    }

    /// Checks the options and the URL, and connects when the first lock is asked for: for a service
    /// that starts before its database.
    ///
    /// While the database is away, calls get the error that [`build`](Self::build) would have
    /// returned, and requests 503 `lock-unavailable`: at once where nothing listens at the address,
    /// and where nothing answers after [`connect_timeout`](Self::connect_timeout) for each address,
    /// or the [acquire timeout](RealmLocks::acquire_timeout) if that is shorter. Every call tries
    /// anew, so the first one after the database has come up gets its lock. Each connection makes
    /// the checks of `build` when it is opened: a standby, a server whose locks exclude nobody, and
    /// with [`sessions`](Self::sessions) a pooler or a server older than PostgreSQL 14 grant
    /// nothing.
    ///
    /// # Errors
    ///
    /// Those of a wrong configuration.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// ```no_run
    /// use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};
    ///
    /// # fn layer() -> Result<RealmWriteLockLayer, Box<dyn std::error::Error>> {
    /// let locks = RealmLocks::postgres_builder("postgres://db.internal/realms").build_lazy()?;
    /// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    /// Ok(RealmWriteLockLayer::new(locks, realms))
    /// # }
    /// ```
    pub fn build_lazy(self) -> Result<RealmLocks, ConfigError> {
        self.check()?;
        let group = TaskGroup::default();
        let sender = RealmLocks::new_sender();
        let postgres = Postgres::new(&self, &group)?;
        let terms = GrantTerms {
            hand_off: self.hand_off,
            sender: self.broadcast.then(|| Arc::clone(&sender)),
            tasks: Tasks::new(&group),
        };
        let database = Database::new(postgres, terms);
        Ok(RealmLocks::new(
            Some(database),
            self.realm_keys,
            sender,
            group,
        ))
    }
}
