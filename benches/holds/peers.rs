//! The lock as others make it. Each holds it for the call of a handler, in the way that its documentation shows.
//!
//! All find realm and key by this crate's functions: those are not what is compared.

use std::sync::Arc;

use bb8_postgres::PostgresConnectionManager;
use bb8_postgres::bb8::Pool;
use distributed_lock_core::traits::{DistributedLock as _, LockHandle, LockProvider};
use distributed_lock_postgres::PostgresLockProvider;
use http::Request;
use sqlx::PgPool;
use sqlx::postgres::{PgAdvisoryLock, PgAdvisoryLockKey, PgPoolOptions};
use tokio_postgres::NoTls;
use tower::ServiceExt;
use tower_realm_lock::{LockKey, RealmError, RealmPaths};

use crate::PATIENCE;
use crate::guard::{Answer, Handler};
use crate::support::gate::realms;

/// What each peer finds its keys with.
#[derive(Clone)]
struct Keys(RealmPaths);

impl Keys {
    fn of(&self, request: &Request<String>) -> Result<i64, RealmError> {
        let realm = self.0.resolve(request.uri().path())?;
        let key = LockKey::of(&realm).value();
        Ok(key.expect("a realm's key is one number"))
    }
}

/// Written by hand into a handler: a pooled client, a transaction, one statement, a commit.
#[derive(Clone)]
pub struct ByHand {
    pool: Pool<PostgresConnectionManager<NoTls>>,
    keys: Keys,
}

impl ByHand {
    pub async fn connect(url: &str, connections: u32) -> Self {
        let config = url.parse().expect("a database URL");
        let pool = Pool::builder()
            .max_size(connections)
            .connection_timeout(PATIENCE)
            .build(PostgresConnectionManager::new(config, NoTls));
        Self {
            pool: pool.await.expect("the database is up"),
            keys: Keys(realms()),
        }
    }

    pub async fn call<H: Handler>(&self, handler: H, request: Request<String>) -> Answer {
        let key = self.keys.of(&request)?;
        let mut client = self.pool.get().await?;
        let transaction = client.transaction().await?;
        transaction
            .execute("SELECT pg_advisory_xact_lock($1)", &[&key])
            .await?;
        let response = handler.oneshot(request).await?;
        transaction.commit().await?;
        Ok(response)
    }
}

/// `PgAdvisoryLock` of sqlx, on a connection of its pool.
#[derive(Clone)]
pub struct Sqlx {
    pool: PgPool,
    keys: Keys,
}

impl Sqlx {
    pub async fn connect(url: &str, connections: u32) -> Self {
        Self {
            pool: sqlx_pool(url, connections).await,
            keys: Keys(realms()),
        }
    }

    pub async fn call<H: Handler>(&self, handler: H, request: Request<String>) -> Answer {
        let key = PgAdvisoryLockKey::BigInt(self.keys.of(&request)?);
        let lock = PgAdvisoryLock::with_key(key);
        let held = lock.acquire(self.pool.acquire().await?).await?;
        let response = handler.oneshot(request).await?;
        held.release_now().await?;
        Ok(response)
    }
}

/// The crate distributed-lock-postgres, with its default, a session's lock.
#[derive(Clone)]
pub struct DistributedLock {
    provider: Arc<PostgresLockProvider>,
    keys: Keys,
}

impl DistributedLock {
    pub async fn connect(url: &str, connections: u32) -> Self {
        let provider = PostgresLockProvider::builder()
            .pool(sqlx_pool(url, connections).await)
            .build();
        Self {
            provider: Arc::new(provider.await.expect("it has a pool")),
            keys: Keys(realms()),
        }
    }

    /// Its keys are given as names. Sixteen hexadecimal digits stand for the number that they are, but it hashes those of a
    /// negative one.
    pub async fn call<H: Handler>(&self, handler: H, request: Request<String>) -> Answer {
        let name = format!("{:016x}", self.keys.of(&request)?);
        let held = self.provider.create_lock(&name).acquire(None).await?;
        let response = handler.oneshot(request).await?;
        held.release().await?;
        Ok(response)
    }
}

async fn sqlx_pool(url: &str, connections: u32) -> PgPool {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .connect(url);
    pool.await.expect("the database is up")
}
