//! Who is compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Mutex;
use tower_realm_lock::{PostgresBuilder, RealmLocks, RealmWriteLockLayer};

use crate::PATIENCE;
use crate::guard::Guard;
use crate::peers::{ByHand, DistributedLock, Sqlx};
use crate::support::gate::realms;

/// What tables and charts call a contender.
pub type Name = &'static str;

pub const BARE: Name = "bare service, no lock";
pub const MUTEX: Name = "bare tokio mutex";
pub const IN_PROCESS: Name = "this crate, in process";
pub const TRANSACTION: Name = "this crate, transaction";
pub const UNCONFIRMED: Name = "this crate, `confirm(false)`";
pub const NO_HAND_OFF: Name = "this crate, no hand-off";
pub const SESSIONS: Name = "this crate, sessions";
pub const TRANSACTION_PUBLISHES: Name = "this crate, transaction, publishes";
pub const SESSIONS_PUBLISH: Name = "this crate, sessions, publish";
pub const BY_HAND: Name = "written by hand";
pub const SQLX: Name = "sqlx";
pub const DISTRIBUTED_LOCK: Name = "distributed-lock-postgres";

/// The shortest question that the server answers: the limit of what a message can cost.
pub const ROUND_TRIP: Name = "bare round trip";

/// The bare driver with the leanest statements that lock for a transaction.
pub const BARE_TRANSACTION: Name = "bare lock transaction";
/// The bare driver with prepared statements that lock for a session.
pub const BARE_SESSION: Name = "bare session lock";
/// The bare driver with what version 0.1 of this crate sent.
pub const OLD_STATEMENT: Name = "statement of 0.1";

/// The leanest transaction.
pub const PGBENCH: Name = "pgbench, lock transaction";
/// A session's locks, many at once.
pub const PGBENCH_BATCHES: Name = "pgbench, batches of 8";
pub const PGBENCH_PREPARED: Name = "pgbench, prepared batches of 8";

/// All ways to use the bare driver.
pub const DRIVERS: &[Name] = &[BARE_TRANSACTION, BARE_SESSION, OLD_STATEMENT];
pub const PGBENCHES: &[Name] = &[PGBENCH, PGBENCH_BATCHES, PGBENCH_PREPARED];

/// All contenders whose locks are in PostgreSQL, in the order of the tables.
pub const IN_POSTGRES: &[Name] = &[
    TRANSACTION,
    UNCONFIRMED,
    NO_HAND_OFF,
    SESSIONS,
    BY_HAND,
    SQLX,
    DISTRIBUTED_LOCK,
];

/// Those that a case can tell apart which is not about the end of a hold.
pub const STRATEGIES: &[Name] = &[TRANSACTION, SESSIONS, BY_HAND, SQLX, DISTRIBUTED_LOCK];

/// How many connections each may open, where a case does not say otherwise: what all of them do by default.
pub const CONNECTIONS: u32 = 10;

/// One of them, ready.
pub struct Contender {
    pub name: Name,
    pub guard: Guard,
    /// What PostgreSQL knows its connections by.
    pub application: String,
}

impl Contender {
    /// `url` has no parameters yet.
    pub async fn start(name: Name, url: &str, connections: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let application = format!("contender-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let url = &format!("{url}?application_name={application}");
        let guard = match name {
            BARE => Guard::Nothing,
            MUTEX => Guard::Mutex(Arc::new(Mutex::new(()))),
            IN_PROCESS => Guard::layer(layer(RealmLocks::in_process())),
            TRANSACTION => Guard::layer(postgres(url, connections, |options| options).await),
            TRANSACTION_PUBLISHES => {
                let options = |options: PostgresBuilder| options.broadcast(true);
                Guard::layer(postgres(url, connections, options).await)
            }
            UNCONFIRMED => {
                let layer = postgres(url, connections, |options| options).await;
                Guard::layer(layer.confirm(false))
            }
            NO_HAND_OFF => {
                let options = |options: PostgresBuilder| options.max_hand_offs(0);
                Guard::layer(postgres(url, connections, options).await)
            }
            SESSIONS | SESSIONS_PUBLISH => {
                // Together with the pool no more connections than the others.
                let half = connections / 2;
                let publishes = name == SESSIONS_PUBLISH;
                let options = |options: PostgresBuilder| {
                    options.sessions(half).pool_size(half).broadcast(publishes)
                };
                Guard::layer(postgres(url, connections, options).await)
            }
            BY_HAND => Guard::ByHand(ByHand::connect(url, connections).await),
            SQLX => Guard::Sqlx(Sqlx::connect(url, connections).await),
            DISTRIBUTED_LOCK => {
                Guard::DistributedLock(DistributedLock::connect(url, connections).await)
            }
            _ => panic!("nobody is called {name}"),
        };
        Self {
            name,
            guard,
            application,
        }
    }

    /// All of `names`.
    pub async fn start_all(names: &[Name], url: &str, connections: u32) -> Vec<Self> {
        let mut contenders = Vec::new();
        for name in names {
            contenders.push(Self::start(name, url, connections).await);
        }
        contenders
    }
}

async fn postgres(
    url: &str,
    connections: u32,
    options: impl FnOnce(PostgresBuilder) -> PostgresBuilder,
) -> RealmWriteLockLayer {
    let builder = RealmLocks::postgres_builder(url).pool_size(connections);
    let locks = options(builder).build().await;
    layer(locks.expect("the database is up"))
}

/// No call is refused, however many wait and however long.
fn layer(locks: RealmLocks) -> RealmWriteLockLayer {
    let locks = locks
        .acquire_timeout(PATIENCE)
        .max_waiters_per_realm(usize::MAX);
    RealmWriteLockLayer::new(locks, realms())
}
