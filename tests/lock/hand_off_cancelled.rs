//! A waiter that leaves just as the lock is handed to it takes nothing along.

use std::time::Duration;

use futures_util::FutureExt;
use http::Request;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{OnDisconnect, PostgresBuilder};

use crate::support::database::database;
use crate::support::gate::{at_once, gate, key, patch, postgres_layer_with, queue};
use crate::support::load::{PATH, REALM};
use crate::support::proxy::Proxy;
use crate::support::wait::{PATIENCE, within_polls};

fn unbounded(builder: PostgresBuilder) -> PostgresBuilder {
    builder
        .max_hand_offs(u32::MAX)
        .max_hand_off_time(Duration::MAX)
}

fn request() -> Request<String> {
    Request::patch(PATH).body(String::new()).expect("plain")
}

#[tokio::test]
async fn a_lock_that_was_handed_to_somebody_who_left_goes_to_the_next() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), unbounded).await;
    let (handler, mut gate) = gate();
    for is_last in [false, true] {
        let first = patch(&layer, &handler, PATH);
        let inside = gate.entered().await;
        let mut leaving = Box::pin(layer.layer(handler.clone()).oneshot(request()));
        assert!((&mut leaving).now_or_never().is_none());
        let next = (!is_last).then(|| queue(&layer, &handler, PATH));
        proxy.queries();
        inside.answer(200);
        // A success leaves when its lock is handed on already.
        assert_eq!(first.await.unwrap().unwrap().status(), 200);
        assert_eq!(database.advisory_locks(key(REALM)).await, (1, 0));
        assert!(gate.is_empty());
        drop(leaving);
        if let Some(next) = next {
            gate.entered().await.answer(200);
            let asked = proxy.queries();
            assert!(
                !asked.iter().any(|asked| asked.contains("BEGIN")),
                "{asked:?}"
            );
            assert_eq!(next.await.unwrap().unwrap().status(), 200);
        }
        database.wait_for_granted(key(REALM), 0).await;
    }
}

#[tokio::test]
async fn a_waiter_that_leaves_at_any_poll_stalls_nobody() {
    let database = database().await;
    let (handler, mut gate) = gate();
    for policy in [OnDisconnect::Finish, OnDisconnect::Cancel] {
        let layer = postgres_layer_with(database.url(), unbounded).await;
        let layer = layer.on_disconnect(policy);
        for polls in 1..6 {
            let first = patch(&layer, &handler, PATH);
            let inside = gate.entered().await;
            let leaving = layer.layer(service_fn(at_once)).oneshot(request());
            let leaving = tokio::spawn(within_polls(polls, leaving));
            let next = queue(&layer, &handler, PATH);
            inside.answer(200);
            gate.entered().await.answer(200);
            for write in [first, next] {
                assert_eq!(write.await.unwrap().unwrap().status(), 200, "{polls}");
            }
            leaving.await.unwrap();
        }
    }
    database.wait_for_granted(key(REALM), 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_that_leave_at_random_moments_leave_no_lock_behind() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| {
        builder.max_hand_offs(4).pool_size(2)
    })
    .await;
    let foreign = database.connect().await;
    let lock = format!(
        "SET lock_timeout = '10s'; BEGIN; SELECT pg_advisory_xact_lock({}); COMMIT",
        key(REALM)
    );
    // The seed is fixed: the same moments come again.
    let mut runner = TestRunner::deterministic();
    let moments = prop::collection::vec((0..5_000_u64, any::<bool>(), any::<bool>()), 20);
    for round in 0..40 {
        let moments = moments.new_tree(&mut runner).unwrap().current();
        let mut leaving = Vec::new();
        let mut staying = Vec::new();
        for (micros, gives_up, cancels) in moments {
            let policy = if cancels {
                OnDisconnect::Cancel
            } else {
                OnDisconnect::Finish
            };
            let moment = Duration::from_micros(micros);
            let layer = layer.clone().on_disconnect(policy);
            let handler = service_fn(async |request| {
                tokio::task::yield_now().await;
                at_once(request).await
            });
            // Its own patience ends, or its client's.
            let (patience, life) = if gives_up {
                (moment, PATIENCE)
            } else {
                (PATIENCE, moment)
            };
            let leaves = layer
                .clone()
                .map_locks(|locks| locks.acquire_timeout(patience))
                .layer(handler);
            leaving.push(tokio::spawn(async move {
                drop(timeout(life, leaves.oneshot(request())).await);
            }));
            let stays = layer.layer(handler).oneshot(request());
            staying.push(tokio::spawn(stays));
        }
        for write in staying {
            let response = timeout(PATIENCE, write).await.expect("an answer in time");
            assert_eq!(response.unwrap().unwrap().status(), 200, "round {round}");
        }
        for write in leaving {
            write.await.unwrap();
        }
        foreign.batch_execute(&lock).await.unwrap();
    }
    database.wait_for_granted(key(REALM), 0).await;
    database.wait_for_waiting(key(REALM), 0).await;
}
