//! However a call ends, its lock is released.

use std::time::Duration;

use tower_realm_lock::{LockError, OnDisconnect, RealmLocks, RealmUrl, RealmWriteLockLayer};

use crate::support::database::database;
use crate::support::gate::{
    Failed, Gate, Gated, code, endings, gate, key, patch, postgres_layer, postgres_layer_with,
    postgres_locks_with, realms,
};

/// A call gets in, which it can only if nobody holds the realm.
async fn can_write(layer: &RealmWriteLockLayer, handler: &Gated, gate: &mut Gate) {
    let write = patch(layer, handler, "/luke/a/next");
    gate.entered().await.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn every_ending_of_a_handler_releases_and_is_passed_on() {
    let database = database().await;
    let postgres = postgres_locks_with(database.url(), |builder| builder.pool_size(1)).await;
    for locks in [postgres, RealmLocks::in_process()] {
        for policy in [OnDisconnect::Finish, OnDisconnect::Cancel] {
            let layer = RealmWriteLockLayer::new(locks.clone(), realms()).on_disconnect(policy);
            for (name, end) in endings() {
                let (handler, mut gate) = gate();
                let write = patch(&layer, &handler, "/luke/a/card");
                let call = gate.entered().await;
                let held = call.held.clone().expect("a PATCH is locked");
                assert!(held.is_held(), "{name}");
                end(call);
                match write.await {
                    Ok(Ok(response)) => assert_eq!(response.status().as_str(), name),
                    Ok(Err(Failed)) => assert_eq!(name, "error"),
                    Err(ended) => assert!(ended.is_panic() && name == "panic", "{name}"),
                }
                can_write(&layer, &handler, &mut gate).await;
                assert!(!held.is_held(), "{name}");
            }
        }
    }
    database.wait_for_granted(key("/luke/a"), 0).await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_stopped_with_504() {
    let database = database().await;
    let layer = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let write = patch(
        &layer
            .clone()
            .map_locks(|locks| locks.max_hold(Duration::from_millis(50))),
        &handler,
        "/luke/a/card",
    );
    let mut call = gate.entered().await;
    let response = write.await.unwrap().unwrap();
    assert_eq!(response.status(), 504);
    assert_eq!(code(&response), "hold-expired");
    call.dropped().await;
    can_write(&layer, &handler, &mut gate).await;
}

#[tokio::test]
async fn a_panic_in_the_rejection_closure_leaves_no_lock() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| builder.pool_size(1)).await;
    let panicking = layer
        .clone()
        .map_locks(|locks| locks.max_hold(Duration::from_millis(20)))
        .rejection(|rejection, _| panic!("as the test asked: {}", rejection.code()));
    for policy in [OnDisconnect::Finish, OnDisconnect::Cancel] {
        let (handler, mut gate) = gate();
        let write = patch(
            &panicking.clone().on_disconnect(policy),
            &handler,
            "/luke/a/card",
        );
        let _late = gate.entered().await;
        assert!(write.await.unwrap_err().is_panic());
        can_write(&layer, &handler, &mut gate).await;
    }
    let impatient = panicking.map_locks(|locks| locks.acquire_timeout(Duration::from_millis(20)));
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, "/luke/a/card");
    let inside = gate.entered().await;
    let waiting = patch(&impatient, &handler, "/luke/a/card");
    assert!(waiting.await.unwrap_err().is_panic());
    inside.answer(200);
    first.await.unwrap().unwrap();
    can_write(&layer, &handler, &mut gate).await;
}

#[tokio::test]
async fn work_outside_of_http_holds_and_releases_alike() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder.pool_size(1)).await;
    let realm: RealmUrl = "http://realms.test/luke/a/".parse().unwrap();
    let lock = key("/luke/a");

    let held = locks
        .with_write_lock(&realm, |held| async { Ok::<_, LockError>(held) })
        .await
        .unwrap();
    assert!(!held.is_held());
    assert_eq!(held.realms(), std::slice::from_ref(&realm));

    let failed = locks
        .with_write_lock(&realm, |_| async {
            Err::<(), _>(Box::<dyn std::error::Error + Send + Sync>::from("mine"))
        })
        .await;
    assert_eq!(failed.unwrap_err().to_string(), "mine");

    let panicking = locks.clone();
    let job = tokio::spawn({
        let realm = realm.clone();
        async move {
            panicking
                .with_write_lock(&realm, |_| async {
                    assert!(realm_is_wrong(), "as the test asked");
                    Ok::<_, LockError>(())
                })
                .await
        }
    });
    assert!(job.await.unwrap_err().is_panic());

    let late = locks
        .clone()
        .max_hold(Duration::from_millis(20))
        .with_write_lock(&realm, |_| std::future::pending::<Result<(), LockError>>())
        .await;
    assert!(matches!(late, Err(LockError::Expired { .. })), "{late:?}");

    // Each of them gave the only connection back, with no lock on it.
    locks
        .with_write_lock(&realm, |_| async { Ok::<_, LockError>(()) })
        .await
        .unwrap();
    database.wait_for_granted(lock, 0).await;
    assert_eq!(database.backends().await, 1);
}

fn realm_is_wrong() -> bool {
    false
}
