use std::error::Error;
use std::future::Future;
use std::time::Duration;

use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Socket};

use super::connect::Connector;
use super::password::Passwords;
use super::tls::Tls;
use super::url::{Database, NOT_AT_ONCE, Source};
use crate::config::ConfigError;
use crate::lock::realm_keys::RealmKeys;
use crate::lock::tasks::TaskGroup;
use crate::realm::key::LockKey;
use crate::realm::url::RealmUrl;

/// PostgreSQL keeps a time-out as 31 bits of milliseconds.
const MAX_LEASE: Duration = Duration::from_secs(24 * 24 * 3600);

/// Far more than are of use, and few enough to have a place for each.
const MAX_SESSIONS: u32 = 1000;

/// Options for locks in PostgreSQL. Made by
/// [`RealmLocks::postgres_builder`](crate::RealmLocks::postgres_builder).
///
/// # Database URLs
///
/// A URL, `postgres://user:password@host:5432/database?option=value`, or libpq's
/// `host=… user=… option=value`. Several hosts are a primary and its standbys: each number of each
/// host is tried, with its own time limit, until a primary answers. Those that failed the last time
/// are tried last. Names are looked up for each new connection. Without a host it is the Unix
/// socket in `/var/run/postgresql`, or else in `/tmp`, if it is there when the URL is read. In user, password and path of a URL write
/// `@`, `/` and `?` percent-encoded. No environment variable is read.
///
/// The driver's [own options](tokio_postgres::Config) count, such as `keepalives_idle`,
/// `load_balance_hosts` and `channel_binding`, and `keepalives_count`, `tcp_user_timeout` in
/// milliseconds, and `target_session_attrs` as libpq has them: of the latter `any`, `primary` and
/// `read-write`, as only a primary is used anyway. Options of other programs are refused by name.
/// These say how connections are encrypted:
///
/// | option | values |
/// | --- | --- |
/// | `sslmode` | `disable`: never. `prefer`, the default: where the server has TLS, unverified; in clear text, over a second connection, where it has none, where the handshake fails, and where it lets no encrypted connection in. `require`: always, unverified unless `sslrootcert` names a file, then as `verify-ca`. `verify-ca`: the certificate must be signed by a trusted CA. `verify-full`: and be for the URL's host |
/// | `sslrootcert` | a PEM file with the certificates of trusted CAs; or `system`: what the system trusts, and `verify-full` |
/// | `sslcert`, `sslkey` | PEM files: a client certificate and its key, where the server asks for them |
/// | `sslnegotiation` | `postgres`, the default, or `direct`: one round trip less, from PostgreSQL 17 on |
/// | `channel_binding` | `require`: log in by SCRAM and bound to the server's certificate, or not at all |
///
/// They mean what they mean to libpq, with these exceptions: files are never looked for in
/// `~/.postgresql`, nobody checks who else may read the key's file, without `sslrootcert` `verify-ca` and `verify-full` trust what the system trusts, a `direct` handshake
/// need not name the protocol, and there is no `allow`. [`build`](Self::build) and
/// [`listen`](Self::listen) read the files, and each new connection reads them again, so that
/// certificates can be renewed while the process runs. What the system trusts is read once.
///
/// Only `verify-full`, or `channel_binding=require` with a server that has the password's verifier,
/// prevents man-in-the-middle attacks. Unix sockets are never encrypted. A CancelRequest goes the
/// way of its connection. rustls does not look at a certificate's common name, only at its
/// alternative names, and takes only X.509 version 3; a login cannot be bound to a certificate that
/// is signed with Ed25519 or RSA-PSS.
///
/// A connection that dies while a statement waits for its lock is noticed within 8 seconds: over TCP
/// `keepalives_idle` is 3 seconds, `keepalives_interval` 1 second and `keepalives_retries` 5, unless
/// they are given. Two hours, the driver's own `keepalives_idle`, counts as not given.
/// `tcp_user_timeout` is not set: on Linux it replaces the count of probes, and one that is shorter
/// than two thirds of the [lease](Self::lease) ends holds that the lease would keep.
///
/// A build without the feature `tls-rustls` refuses URLs that ask for TLS, unless
/// [`tls`](Self::tls) is given, and takes `prefer` for `disable`.
///
/// A `tokio_postgres::Config` ([`postgres_config`](crate::RealmLocks::postgres_config)) counts as a
/// URL with its `ssl_mode` and without files. `Prefer`, its default, counts as no `sslmode`, so that
/// [`tls`](Self::tls) always encrypts.
///
/// ```no_run
/// # async fn run() -> Result<(), tower_realm_lock::ConnectError> {
/// use std::time::Duration;
/// use tower_realm_lock::RealmLocks;
///
/// let locks = RealmLocks::postgres_builder("postgres://localhost/realms")
///     .pool_size(20)
///     .lease(Duration::from_secs(15))
///     .build()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` or `build_lazy` is called"]
pub struct PostgresBuilder {
    pub(super) database: Source,
    pub(super) pool_size: u32,
    pub(super) lease: Duration,
    /// `None` for the database's own.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) max_connection_lifetime: Duration,
    pub(super) fencing: bool,
    pub(in crate::lock) hand_off: HandOff,
    pub(super) sessions: u32,
    pub(in crate::lock) broadcast: bool,
    pub(super) tls: Option<Tls>,
    pub(super) passwords: Option<Passwords>,
    pub(in crate::lock) realm_keys: Option<RealmKeys>,
}

impl PostgresBuilder {
    pub(in crate::lock) fn new(url: &str) -> Self {
        Self::of(Source::Url(url.into()))
    }

    pub(in crate::lock) fn from_config(config: Config) -> Self {
        Self::of(Source::Config(Box::new(config)))
    }

    fn of(database: Source) -> Self {
        Self {
            database,
            pool_size: 10,
            lease: Duration::from_secs(30),
            connect_timeout: None,
            max_connection_lifetime: Duration::from_secs(30 * 60),
            fencing: false,
            hand_off: HandOff {
                max: 1024,
                max_time: Duration::from_millis(100),
            },
            sessions: 0,
            broadcast: false,
            tls: None,
            passwords: None,
            realm_keys: None,
        }
    }

    /// Replaces the database URL.
    ///
    /// For options from a configuration file: a URL from the environment keeps the password out of
    /// the file.
    pub fn url(mut self, url: &str) -> Self {
        self.database = Source::Url(url.into());
        self
    }

    /// How many lock connections this process may open: the number of realms, or of single
    /// resources, that it can write at the same time.
    ///
    /// Default 10, at least 1. Waiting for a realm that this process itself writes takes no
    /// connection. While connections are silent, up to as many more are opened in their place for
    /// some seconds.
    pub fn pool_size(mut self, connections: u32) -> Self {
        self.pool_size = connections;
        self
    }

    /// How long PostgreSQL keeps the lock of a holder that has gone silent: frozen, partitioned, or
    /// its machine gone.
    ///
    /// Default 30 seconds, at least 100 milliseconds and at most 24 days. A holder sends a
    /// heartbeat every second, or every third of a lease under 3 seconds, and calls itself lost
    /// when none was answered for two thirds. It bounds how long a dead replica blocks a realm; it
    /// does not bound how long a live one may hold it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Whether each hold gets a [`FencingToken`](crate::FencingToken).
    ///
    /// Default `false`: a token has a transaction id in it, and an open transaction that has one
    /// holds back VACUUM.
    pub fn fencing(mut self, fencing: bool) -> Self {
        self.fencing = fencing;
        self
    }

    /// How often a lock that PostgreSQL has granted is handed on to the next waiter of this
    /// process, before it is given back and other replicas have their turn.
    ///
    /// Default 1024; 0 gives it back after every hold. A hand-off takes no round trip. See also
    /// [`max_hand_off_time`](Self::max_hand_off_time).
    pub fn max_hand_offs(mut self, hand_offs: u32) -> Self {
        self.hand_off.max = hand_offs;
        self
    }

    /// How long after its grant a lock may still be handed on to the next waiter of this process.
    ///
    /// Default 100 milliseconds. A caller on another replica waits at most for this and the call
    /// that then runs; where two replicas already compete for the realm each takes half of it, so a
    /// third waits no longer.
    pub fn max_hand_off_time(mut self, time: Duration) -> Self {
        self.hand_off.max_time = time;
        self
    }

    /// On how many sessions the locks of many realms are held together.
    ///
    /// Default 0, at most 1,000. Without sessions each hold is a transaction on a connection of its
    /// own, and [`pool_size`](Self::pool_size) is the number of realms that can be written at the
    /// same time. Turn sessions on where one process writes hundreds or thousands of realms at
    /// once: two to eight hold all these locks, and ask for many of them in one message. They are
    /// connections beside the pool's, and open when they are needed. The pool still serves a realm
    /// that another process holds, and every hold with a shared transaction. Replicas may differ in
    /// this option: sessions and transactions exclude each other.
    ///
    /// What they cost:
    /// - A session that dies loses all of its holds, not one; the other sessions' holds go on. So
    ///   take more than one.
    /// - At the URL's address PostgreSQL itself must answer, 14 or later. A pooler is refused, one
    ///   in session mode too: nothing tells it from one that hands its connections from transaction
    ///   to transaction.
    /// - PostgreSQL has room for about `max_locks_per_transaction * max_connections` locks of all
    ///   its clients together, 6,400 by default. Past that locks are refused, to every client: set
    ///   the first high enough.
    /// - A lone write waits a little longer than with a transaction, as its commands pass through
    ///   the session's task.
    pub fn sessions(mut self, sessions: u32) -> Self {
        self.sessions = sessions;
        self
    }

    /// Whether the other replicas are told of each successful write: see
    /// [`RealmWrites`](crate::RealmWrites).
    ///
    /// Default `false`. The NOTIFY is a part of the transaction that gives the lock back; with
    /// [`sessions`](Self::sessions) it comes right after the unlock. While the lock is handed on,
    /// writes that succeeded one after the other are committed together, and each is answered once
    /// its own is. A NOTIFY names the realm, the [resource](crate::Claim::resources) if the claim has
    /// any, the fencing tokens and the [sender](crate::RealmLocks::sender), in 7,900 bytes at most: a
    /// path that has no room is left out, so that any may have been written, and a realm URL that
    /// has none interrupts the listeners.
    ///
    /// A write that could not be told is answered as one whose lock was lost: others may go on with
    /// what it has changed.
    ///
    /// What it costs: PostgreSQL lets only one transaction with a NOTIFY commit at a time, in all
    /// databases of the server together; and through a pooler a lock is not handed on after a write
    /// that is told, but given back. See `docs/benchmarks.md`.
    pub fn broadcast(mut self, broadcast: bool) -> Self {
        self.broadcast = broadcast;
        self
    }

    /// Encrypts with TLS of the application's own: roots and a client certificate from memory,
    /// another library, or another cryptography provider. Takes what the driver takes.
    ///
    /// Default: as the [URL](Self#database-urls) says. With it the URL's `sslmode` decides only
    /// whether TLS is used: `disable` never, `prefer` where it succeeds, any other value always,
    /// which is the default. In a `Config` its `ssl_mode` decides, and is `Prefer` by default. The
    /// options that name files are refused.
    ///
    /// ```no_run
    /// # async fn run(root: native_tls::Certificate) -> Result<(), Box<dyn std::error::Error>> {
    /// use postgres_native_tls::MakeTlsConnector;
    /// use tower_realm_lock::RealmLocks;
    ///
    /// let tls = native_tls::TlsConnector::builder()
    ///     .add_root_certificate(root)
    ///     .build()?;
    /// let database = RealmLocks::postgres_builder("postgres://db.internal/realms")
    ///     .tls(MakeTlsConnector::new(tls));
    /// let writes = database.listen().await?;
    /// let locks = database.broadcast(true).build().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn tls<T>(mut self, tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send + 'static,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send + 'static,
    {
        self.tls = Some(Tls::new(tls));
        self
    }

    /// How long one attempt to connect may take at each address, the server's first answers
    /// included.
    ///
    /// Default: the database's own `connect_timeout`, or else 5 seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Asks for the password of each new connection, such as a cloud's token that is valid for a
    /// few minutes, or a secret that is rotated.
    ///
    /// Default: the password of the URL, which this replaces. `ask` runs for each attempt to log in:
    /// of the pool, of sessions, and of [`listen`](Self::listen). Its time counts as that of the
    /// attempt, see [`connect_timeout`](Self::connect_timeout). Its error is a
    /// [`ConnectError::Password`](crate::ConnectError::Password), and so is a panic. Open
    /// connections go on with the password that they had, see
    /// [`max_connection_lifetime`](Self::max_connection_lifetime).
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), tower_realm_lock::ConnectError> {
    /// use tower_realm_lock::RealmLocks;
    ///
    /// let locks = RealmLocks::postgres_builder("postgres://app@db.internal/realms")
    ///     .password_from(|| async {
    ///         let password = tokio::fs::read_to_string("/run/secrets/password").await?;
    ///         Ok::<_, std::io::Error>(password.trim_end().to_owned())
    ///     })
    ///     .build()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn password_from<F, P, E>(mut self, ask: F) -> Self
    where
        F: Fn() -> P + Send + Sync + 'static,
        P: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        self.passwords = Some(Passwords::new(ask));
        self
    }

    /// Gives realms lock keys of the application's own, instead of those of [`LockKey::of`]: for a
    /// service that has locked them by other numbers, and moves to this crate in one deploy.
    ///
    /// `derive` is called with each realm of each claim, for requests and for jobs, before the
    /// claim queues. It may look the key up; keep what costs a query. It has as long as the
    /// [acquire timeout](crate::RealmLocks::acquire_timeout), of which the lock itself gets the rest,
    /// or 5 seconds for a lock that is only tried. Keys of resources and of spaces stay as they are.
    ///
    /// **All replicas must derive the same key.** Two realms with one key exclude each other. A
    /// [fleet](crate::RealmWriteLockLayer::fleet) notices replicas without such keys, and cannot
    /// compare those that have them.
    ///
    /// An error, or no answer in time, refuses the lock with
    /// [`LockError::RealmKey`](crate::LockError::RealmKey), and another key than that of a claim
    /// which this process still holds or waits for with
    /// [`LockError::TwoKeys`](crate::LockError::TwoKeys). Requests get 503 `lock-unavailable`.
    ///
    /// ```no_run
    /// use tower_realm_lock::{LockKey, RealmLocks, RealmUrl};
    ///
    /// # use std::sync::Arc;
    /// # use tower_realm_lock::tokio_postgres;
    /// # type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
    /// # async fn run(client: Arc<tokio_postgres::Client>) -> Result<()> {
    /// // As `pg_advisory_xact_lock(hashtext(url))` did.
    /// let locks = RealmLocks::postgres_builder("postgres://localhost/realms")
    ///     .realm_keys(move |realm: RealmUrl| {
    ///         let client = client.clone();
    ///         async move {
    ///             let row = client.query_one("SELECT hashtext($1)", &[&realm.as_str()]).await?;
    ///             let number: i32 = row.get(0);
    ///             Ok::<_, tokio_postgres::Error>(LockKey::from_raw(number.into()))
    ///         }
    ///     })
    ///     .build()
    ///     .await?;
    /// # let _ = locks;
    /// # Ok(())
    /// # }
    /// ```
    pub fn realm_keys<F, R, E>(mut self, derive: F) -> Self
    where
        F: Fn(RealmUrl) -> R + Send + Sync + 'static,
        R: Future<Output = Result<LockKey, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        self.realm_keys = Some(RealmKeys::new(derive));
        self
    }

    /// How long a connection is used before another one, with the credentials, the certificates and
    /// the address of then, takes its place.
    ///
    /// Default 30 minutes, at least 100 milliseconds. Each connection is given up when its first hold after
    /// that ends, or before the next one begins; up to a tenth earlier, so that they are not all
    /// replaced at once. A session grants nothing more, and ends when its last lock is unlocked.
    /// The connections of [`listen`](Self::listen), which would miss events, and of a fleet stay open
    /// until they break.
    pub fn max_connection_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_connection_lifetime = lifetime;
        self
    }

    pub(super) fn database(&self) -> Result<Database, ConfigError> {
        Database::read(&self.database, self.tls.as_ref())
    }

    pub(super) fn connector(&self, group: TaskGroup) -> Result<Connector, ConfigError> {
        let mut database = self.database()?;
        database.passwords.clone_from(&self.passwords);
        let own = database.config.get_connect_timeout().copied();
        let timeout = self.connect_timeout.or(own);
        let timeout = timeout.unwrap_or(Duration::from_secs(5));
        let lifetime = self.max_connection_lifetime;
        let connector = Connector::new(database, timeout, lifetime, self.lease, group);
        Ok(connector)
    }

    pub(in crate::lock) fn check(&self) -> Result<(), ConfigError> {
        let (option, value, remedy) = if self.pool_size == 0 {
            (
                "pool_size",
                "0".into(),
                "a lock needs at least 1 connection",
            )
        } else if self.lease < Duration::from_millis(100) {
            let value = format!("{:?}", self.lease);
            ("lease", value, "heartbeats need at least 100 milliseconds")
        } else if self.lease > MAX_LEASE {
            let value = format!("{:?}", self.lease);
            ("lease", value, "PostgreSQL's time-outs end at 24 days")
        } else if self.sessions > MAX_SESSIONS {
            let value = self.sessions.to_string();
            ("sessions", value, "a few hold thousands of locks")
        } else if self.connect_timeout == Some(Duration::ZERO) {
            ("connect_timeout", "0".into(), NOT_AT_ONCE)
        } else if self.max_connection_lifetime < Duration::from_millis(100) {
            let value = format!("{:?}", self.max_connection_lifetime);
            let remedy = "at least 100 milliseconds, as a connection must outlive its opening";
            ("max_connection_lifetime", value, remedy)
        } else {
            return Ok(());
        };
        Err(ConfigError::option(option, value, remedy))
    }
}

impl std::fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the URL, which may hold a password.
        f.debug_struct("PostgresBuilder")
            .field("pool_size", &self.pool_size)
            .field("lease", &self.lease)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_connection_lifetime", &self.max_connection_lifetime)
            .field("fencing", &self.fencing)
            .field("hand_off", &self.hand_off)
            .field("sessions", &self.sessions)
            .field("broadcast", &self.broadcast)
            .field("tls", &self.tls.is_some())
            .field("password_from", &self.passwords.is_some())
            .field("realm_keys", &self.realm_keys.is_some())
            .finish_non_exhaustive()
    }
}

/// How often and how long a granted lock may be handed on.
#[derive(Debug, Clone, Copy)]
pub(in crate::lock) struct HandOff {
    pub(in crate::lock) max: u32,
    pub(in crate::lock) max_time: Duration,
}

impl HandOff {
    /// What is left where the lock was waited for: other replicas want it, and a third may wait
    /// behind them.
    ///
    /// Two busy replicas that take half each let it in after one whole bound.
    pub(in crate::lock) fn contended(self) -> Self {
        Self {
            max: self.max / 2,
            max_time: self.max_time / 2,
        }
    }
}
