//! A client that goes away leaves nothing behind: no queued backend, no lock, no unusable connection, no half write.

use std::time::Duration;

use tower_realm_lock::{LockError, OnDisconnect, RealmUrl, RealmWriteLockLayer};

use crate::support::cluster::Cluster;
use crate::support::database::{TestDatabase, database, database_on};
use crate::support::gate::{
    answered, code, gate, key, patch, postgres_layer, postgres_layer_with, postgres_locks_with,
};
use crate::support::silence::assert_waiters_leave_nothing;

const PATH: &str = "/luke/a/card";

/// A layer with a single lock connection, and more patience than the tests have: the server's own time-out helps nobody.
async fn layer(database: &TestDatabase) -> RealmWriteLockLayer {
    postgres_layer_with(database.url(), |builder| builder.pool_size(1))
        .await
        .map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)))
}

#[tokio::test]
async fn a_client_gone_while_it_waits_leaves_no_queued_backend_and_no_unusable_connection() {
    let database = database().await;
    let layer = layer(&database).await;
    assert_waiters_leave_nothing(&database, &layer).await;
}

#[tokio::test]
async fn without_the_cancellation_a_dropped_wait_stays_queued() {
    // The bug that the layer is safe from: dropping the driver's future cancels nothing on the server.
    let database = database().await;
    let holder = database.hold(key(PATH)).await;
    let client = database.connect().await;
    let lock = format!("SELECT pg_advisory_xact_lock({})", key(PATH));
    let dropped =
        tokio::time::timeout(Duration::from_millis(50), client.batch_execute(&lock)).await;
    assert!(dropped.is_err());
    drop(client);
    database.wait_for_waiting(key(PATH), 1).await;
    drop(holder);
}

#[tokio::test]
async fn a_client_gone_from_the_queue_gives_up_its_place() {
    let database = database().await;
    let layer = layer(&database).await;
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, PATH);
    let inside = gate.entered().await;
    let second = patch(&layer, &handler, "/luke/a/2");
    let third = patch(&layer, &handler, "/luke/a/3");
    tokio::task::yield_now().await;
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    inside.answer(200);
    assert_eq!(answered(first).await.status(), 200);
    let inside = gate.entered().await;
    assert_eq!(inside.path, "/luke/a/3");
    inside.answer(200);
    assert_eq!(answered(third).await.status(), 200);
}

#[tokio::test]
async fn a_granted_call_runs_to_its_end_and_holds_until_then() {
    let database = database().await;
    let layer = layer(&database).await;
    let (handler, mut gate) = gate();
    let gone = patch(&layer, &handler, PATH);
    let inside = gate.entered().await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());

    let next = patch(&layer, &handler, "/luke/a/next");
    tokio::task::yield_now().await;
    assert!(!inside.was_dropped());
    assert!(inside.held.as_ref().unwrap().is_held());
    assert_eq!(database.advisory_locks(key(PATH)).await, (1, 0));
    assert!(gate.is_empty());

    inside.answer(200);
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

#[tokio::test]
async fn a_call_can_be_told_to_end_with_its_client() {
    let database = database().await;
    let layer = layer(&database).await.on_disconnect(OnDisconnect::Cancel);
    let (handler, mut gate) = gate();
    let gone = patch(&layer, &handler, PATH);
    let mut inside = gate.entered().await;
    gone.abort();
    inside.dropped().await;
    database.wait_for_granted(key(PATH), 0).await;
    let next = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

#[tokio::test]
async fn a_job_that_is_dropped_behaves_like_a_client_that_goes() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder.pool_size(1)).await;
    let realm: RealmUrl = "http://realms.test/luke/a/".parse().unwrap();
    let holder = database.hold(key(PATH)).await;
    let waiting = tokio::spawn({
        let (locks, realm) = (locks.clone(), realm.clone());
        async move {
            let never = |_| async { Ok::<_, LockError>(()) };
            let patient = locks.acquire_timeout(Duration::from_secs(60));
            patient.with_write_lock(&realm, never).await
        }
    });
    database.wait_for_waiting(key(PATH), 1).await;
    waiting.abort();
    database.wait_for_waiting(key(PATH), 0).await;
    holder.batch_execute("COMMIT").await.unwrap();
    locks
        .with_write_lock(&realm, |_| async { Ok::<_, LockError>(()) })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_wait_that_takes_too_long_is_answered_and_cleaned_up() {
    let database = database().await;
    let layer = layer(&database).await;
    let holder = database.hold(key(PATH)).await;
    let (handler, mut gate) = gate();
    let impatient = layer
        .clone()
        .map_locks(|locks| locks.acquire_timeout(Duration::from_millis(100)));
    let response = patch(&impatient, &handler, PATH).await.unwrap().unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(code(&response), "lock-timeout");
    assert_eq!(response.headers()["retry-after"], "1");
    database.wait_for_waiting(key(PATH), 0).await;
    holder.batch_execute("COMMIT").await.unwrap();
    let next = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

#[tokio::test]
async fn a_wait_over_a_unix_socket_is_cancelled_too() {
    let cluster = Cluster::create().await;
    let database = database_on(&cluster).await;
    let dir = cluster.dir().display();
    let (port, name) = (cluster.port(), database.name());
    let over_socket = format!("host={dir} port={port} user=postgres dbname={name}");
    let layer = postgres_layer(&over_socket)
        .await
        .map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)));
    let _holder = database.hold(key(PATH)).await;
    let (handler, _gate) = gate();
    let waiting = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    waiting.abort();
    database.wait_for_waiting(key(PATH), 0).await;
}
