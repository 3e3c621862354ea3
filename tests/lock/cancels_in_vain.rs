//! Behind a proxy that does not pass cancel requests on, or that announces no key for them, a waiter
//! that left keeps nobody waiting for long.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tower_realm_lock::LockError;

use crate::support::claims::{whole, work};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    answered, code, gate, key, patch, postgres_layer_with, postgres_locks_with, queue,
};
use crate::support::proxy::{Effect, Opening, Proxy};
use crate::support::wait::wait_until;

const PATH: &str = "/luke/a/card";

/// How soon the next one asks.
const SOON: Duration = Duration::from_secs(1);

/// What a proxy does, and what shows that it does.
type Way = (fn(&Proxy), Effect);

/// Ways in which cancel requests go nowhere.
const WAYS: [Way; 2] = [
    (|proxy| proxy.drop_cancels(true), Effect::CancelDropped),
    (|proxy| proxy.hide_keys(true), Effect::KeyHidden),
];

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
    for (prepare, effect) in WAYS {
        let database = database().await;
        let proxy = Proxy::to(database.url()).await;
        prepare(&proxy);
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
        assert!(proxy.count(effect) > 0);
    }
}

#[tokio::test]
async fn a_waiter_of_another_kind_asks_for_itself() {
    for (prepare, effect) in WAYS {
        let database = database().await;
        let proxy = Proxy::to(database.url()).await;
        prepare(&proxy);
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
        assert!(proxy.count(effect) > 0);
    }
}

#[tokio::test]
async fn a_waiter_of_another_kind_waits_no_longer_than_it_may() {
    /// How long others are kept waiting for a statement to end that nobody waits for.
    const LEAVING: Duration = Duration::from_millis(500);
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    proxy.drop_cancels(true);
    let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.pool_size(2)).await;
    let hurried = layer.clone().map_locks(|locks| {
        let locks = locks.share_transaction(true);
        locks.acquire_timeout(LEAVING / 10)
    });
    let (handler, gate) = gate();
    let _holder = database.hold(key(PATH)).await;
    let leaves = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    proxy.queries();
    leaves.abort();
    let asked = Instant::now();
    let late = answered(patch(&hurried, &handler, PATH)).await;
    assert!(asked.elapsed() < LEAVING, "{:?}", asked.elapsed());
    assert_eq!(code(&late), "lock-timeout");
    // It has not asked, for nothing.
    assert_eq!(proxy.queries(), [""; 0]);
    assert!(gate.is_empty());
}

#[tokio::test]
async fn a_waiter_for_another_claim_asks_for_itself() {
    for (prepare, effect) in WAYS {
        let database = database().await;
        let proxy = Proxy::to(database.url()).await;
        prepare(&proxy);
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
        assert!(proxy.count(effect) > 0);
    }
}
