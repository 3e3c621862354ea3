//! Behind a proxy that does not pass cancel requests on, a waiter that left keeps nobody waiting for long.

use std::time::Duration;

use tokio::time::timeout;
use tower_realm_lock::LockError;

use crate::support::claims::{whole, work};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    answered, gate, key, patch, postgres_layer_with, postgres_locks_with, queue,
};
use crate::support::proxy::{Opening, Proxy};
use crate::support::wait::wait_until;

const PATH: &str = "/luke/a/card";

/// How soon the next one asks.
const SOON: Duration = Duration::from_secs(1);

/// Waits until so many statements wait in PostgreSQL, for a second at most.
async fn assert_soon_waiting(database: &TestDatabase, count: i64) {
    let waiting = database.wait_for_waiting(key(PATH), count);
    timeout(SOON, waiting)
        .await
        .expect("the next one has asked");
}

async fn cancelled(proxy: &Proxy) {
    wait_until("a cancel request", async || {
        proxy.openings().contains(&Opening::Cancel)
    })
    .await;
}

#[tokio::test]
async fn the_next_caller_asks_while_the_statement_before_goes_on() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    proxy.drop_cancels(true);
    let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.pool_size(2)).await;
    let (handler, mut gate) = gate();
    let holder = database.hold(key(PATH)).await;
    let leaves = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    leaves.abort();
    // From here on nobody inherits its statement.
    cancelled(&proxy).await;
    let next = patch(&layer, &handler, PATH);
    assert_soon_waiting(&database, 2).await;
    holder.batch_execute("COMMIT").await.unwrap();
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn a_waiter_of_another_kind_asks_for_itself() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    proxy.drop_cancels(true);
    let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.pool_size(2)).await;
    let shared = layer
        .clone()
        .map_locks(|locks| locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let holder = database.hold(key(PATH)).await;
    let leaves = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    let next = queue(&shared, &handler, PATH);
    leaves.abort();
    assert_soon_waiting(&database, 2).await;
    holder.batch_execute("COMMIT").await.unwrap();
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

#[tokio::test]
async fn a_waiter_for_another_claim_asks_for_itself() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    proxy.drop_cancels(true);
    let locks = postgres_locks_with(&proxy.url(database.url()), |it| it.pool_size(2)).await;
    let holder = database.hold(key(PATH)).await;
    let leaves = tokio::spawn({
        let locks = locks.clone();
        let work = async |_| Ok::<_, LockError>(());
        async move { locks.with_write_lock(&whole(["a"]), work).await }
    });
    database.wait_for_waiting(key(PATH), 1).await;
    let next = work(&locks, &whole(["a", "b"]));
    leaves.abort();
    assert_soon_waiting(&database, 2).await;
    holder.batch_execute("COMMIT").await.unwrap();
    next.inside().await.end().await;
}
