//! The limits that PgBouncer sets by itself: a lock gets through, or its client learns why not, and no connection stays unusable.

use std::time::Duration;

use tower_realm_lock::{RealmLocks, RealmWriteLockLayer};

use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::database::{TestDatabase, database, try_connect};
use crate::support::gate::{answered, code, gate, key, patch, postgres_layer};
use crate::support::wait::wait_until;

const PATH: &str = "/luke/a/card";

/// A PgBouncer in transaction mode with `limits`, and a layer through it.
async fn limited(pool_size: u32, limits: &str) -> (TestDatabase, Bouncer, RealmWriteLockLayer) {
    let database = database().await;
    let bouncer = Bouncer::with(database.url(), Pooling::Transaction, pool_size, limits).await;
    let layer = postgres_layer(&bouncer.url(database.url())).await;
    (database, bouncer, layer)
}

async fn assert_writes(layer: &RealmWriteLockLayer) {
    let (handler, mut gate) = gate();
    let write = patch(layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
}

#[tokio::test]
async fn query_wait_timeout_refuses_a_write_and_the_next_one_gets_its_lock() {
    let (database, bouncer, layer) = limited(1, "query_wait_timeout = 1\n").await;
    let occupant = try_connect(&bouncer.url(database.url())).await.unwrap();
    occupant.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let (handler, _gate) = gate();
    let refused = answered(patch(&layer, &handler, PATH)).await;
    let code = code(&refused);
    assert!(
        code == "lock-unavailable" || code == "lock-timeout",
        "{code}"
    );
    occupant.batch_execute("COMMIT").await.unwrap();
    assert_writes(&layer).await;
}

#[tokio::test]
async fn server_connections_that_end_between_transactions_are_not_noticed() {
    for limits in [
        "server_lifetime = 1\n",
        "server_idle_timeout = 1\n",
        "server_reset_query = DISCARD ALL\nserver_reset_query_always = 1\n",
    ] {
        let (database, _bouncer, layer) = limited(2, limits).await;
        assert_writes(&layer).await;
        if limits.contains("server_idle") || limits.contains("lifetime") {
            wait_until("PgBouncer to close its server connections", async || {
                database.backends().await == 0
            })
            .await;
        }
        assert_writes(&layer).await;
    }
}

#[tokio::test]
async fn client_idle_timeout_is_not_noticed() {
    let (_database, bouncer, layer) = limited(2, "client_idle_timeout = 1\n").await;
    assert_writes(&layer).await;
    bouncer.wait_for_log("client_idle_timeout").await;
    assert_writes(&layer).await;
}

#[tokio::test]
async fn query_timeout_cuts_a_wait_short_and_the_next_write_gets_its_lock() {
    let (database, bouncer, layer) = limited(2, "query_timeout = 1\n").await;
    let holder = database.hold(key(PATH)).await;
    let (handler, _gate) = gate();
    let refused = answered(patch(&layer, &handler, PATH)).await;
    assert_eq!(refused.status(), 503);
    bouncer.wait_for_log("query timeout").await;
    holder.batch_execute("COMMIT").await.unwrap();
    assert_writes(&layer).await;
}

#[tokio::test]
async fn max_client_conn_refuses_a_write_and_the_next_one_gets_its_lock() {
    let (database, bouncer, layer) = limited(2, "max_client_conn = 3\n").await;
    let url = bouncer.url(database.url());
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let inside = gate.entered().await;
    let mut others = Vec::new();
    while let Ok(other) = try_connect(&url).await {
        others.push(other);
    }
    let limit = Duration::from_millis(500);
    let impatient = layer
        .clone()
        .map_locks(|locks| locks.acquire_timeout(limit));
    let refused = answered(patch(&impatient, &handler, "/luke/b/card")).await;
    assert_eq!(code(&refused), "lock-unavailable");
    drop(others);
    inside.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    assert_writes(&layer).await;
}

#[tokio::test]
async fn statement_mode_is_refused_when_the_locks_are_built() {
    let database = database().await;
    let bouncer = Bouncer::to(database.url(), Pooling::Statement, 2).await;
    let url = bouncer.url(database.url());
    let refused = RealmLocks::postgres(&url)
        .await
        .expect_err("no transactions");
    let message = refused.to_string();
    assert!(message.contains("statement pooling"), "{message}");
}
