//! A thousand writers of one realm leave the connections to everybody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{RealmLocks, RealmWriteLockLayer};

use crate::support::database::database;
use crate::support::gate::{at_once, code, gate, key, patch, postgres_layer_with, realms};
use crate::support::wait::PATIENCE;

#[tokio::test]
async fn a_thousand_writers_of_one_realm_do_not_hold_up_another() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| builder.pool_size(4))
        .await
        // A busy machine takes longer than usual for all of them.
        .map_locks(|locks| locks.acquire_timeout(PATIENCE * 6));
    let (handler, mut gate) = gate();
    let noisy: Vec<_> = (0..1000)
        .map(|n| patch(&layer, &handler, &format!("/noisy/a/{n}")))
        .collect();
    let mut inside = gate.entered().await;

    let start = Instant::now();
    let lone = patch(&layer, &handler, "/lone/b/card");
    let alone = gate.entered().await;
    assert_eq!(alone.path, "/lone/b/card");
    alone.answer(200);
    assert_eq!(lone.await.unwrap().unwrap().status(), 200);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(database.advisory_locks(key("/noisy/a")).await, (1, 0));

    // Each of the thousand gets its turn, in order and alone.
    for (n, write) in noisy.into_iter().enumerate() {
        assert_eq!(inside.path, format!("/noisy/a/{n}"));
        assert!(gate.is_empty());
        inside.answer(200);
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
        if n < 999 {
            inside = gate.entered().await;
        } else {
            break;
        }
    }
    assert!(database.backends().await <= 4);
}

#[tokio::test]
async fn a_busy_realm_passes_the_only_connection_on_after_one_bound() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| {
        let builder = builder.pool_size(1);
        builder.max_hand_off_time(Duration::from_millis(20))
    })
    .await;
    let busy = Arc::new(AtomicBool::new(true));
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let (layer, busy) = (layer.clone(), Arc::clone(&busy));
            tokio::spawn(async move {
                let mut writes = 0_u32;
                while busy.load(Ordering::Relaxed) {
                    assert_eq!(write(&layer, "/noisy/a/card").await, 200);
                    writes += 1;
                }
                writes
            })
        })
        .collect();
    for _ in 0..5 {
        let lone = timeout(Duration::from_secs(3), write(&layer, "/lone/b/card")).await;
        assert_eq!(lone.expect("one bound is over"), 200);
    }
    busy.store(false, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
    assert_eq!(database.backends().await, 1);
}

/// A write with an empty handler, and its status.
async fn write(layer: &RealmWriteLockLayer, path: &str) -> u16 {
    let request = Request::patch(path).body(String::new()).unwrap();
    let response = layer.layer(service_fn(at_once)).oneshot(request).await;
    response.unwrap().status().as_u16()
}

#[tokio::test]
async fn one_waiter_too_many_is_refused_at_once() {
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms())
        .map_locks(|locks| locks.max_waiters_per_realm(2));
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, "/luke/a/0");
    let inside = gate.entered().await;
    let waiting = [1, 2].map(|n| patch(&layer, &handler, &format!("/luke/a/{n}")));
    let response = patch(&layer, &handler, "/luke/a/3").await.unwrap().unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(code(&response), "queue-full");
    assert_eq!(response.headers()["retry-after"], "1");
    // The bound is one realm's, not everybody's.
    let other = patch(&layer, &handler, "/luke/b/0");
    gate.entered().await.answer(200);
    other.await.unwrap().unwrap();

    inside.answer(200);
    first.await.unwrap().unwrap();
    for write in waiting {
        gate.entered().await.answer(200);
        write.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn more_realms_than_connections_wait_for_a_connection_and_then_say_so() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| builder.pool_size(2)).await;
    let (handler, mut gate) = gate();
    let writes = ["/luke/a/1", "/luke/b/1"].map(|path| patch(&layer, &handler, path));
    let inside = [gate.entered().await, gate.entered().await];

    let impatient = layer
        .clone()
        .map_locks(|locks| locks.acquire_timeout(Duration::from_millis(50)));
    let refused = patch(&impatient, &handler, "/luke/c/1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(code(&refused), "lock-unavailable");

    let patient = patch(&layer, &handler, "/luke/c/1");
    for call in inside {
        call.answer(200);
    }
    for write in writes {
        write.await.unwrap().unwrap();
    }
    gate.entered().await.answer(200);
    patient.await.unwrap().unwrap();
}
