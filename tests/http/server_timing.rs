//! A client that may know it is told how long its request waited for the lock and held it.

use std::time::Duration;

use http::{Method, Response};
use tokio::time::advance;
use tower_realm_lock::{RealmLocks, RealmWriteLockLayer};

use crate::support::gate::{answered, gate, patch, queue, realms, send};

fn layer() -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms()).map_locks(|locks| {
        locks
            .acquire_timeout(Duration::from_secs(1))
            .max_hold(Duration::from_secs(2))
    })
}

fn timings<B>(response: &Response<B>) -> Vec<&str> {
    let values = response.headers().get_all("server-timing");
    values.iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_locked_request_is_told_how_long_it_waited_and_held() {
    let layer = layer().server_timing(true);
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, "/luke/a/x");
    let inside = gate.entered().await;
    let second = queue(&layer, &handler, "/luke/a/y");
    advance(Duration::from_micros(20_250)).await;
    inside.answer(200);
    let first = answered(first).await;
    assert_eq!(
        timings(&first),
        ["lock-wait;dur=0.000, lock-hold;dur=20.250"]
    );
    let inside = gate.entered().await;
    advance(Duration::from_millis(5)).await;
    inside.answer(404);
    let second = answered(second).await;
    assert_eq!(
        timings(&second),
        ["lock-wait;dur=20.250, lock-hold;dur=5.000"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_its_handler_releases_ends_there() {
    let layer = layer().server_timing(true);
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, "/luke/a/x");
    let inside = gate.entered().await;
    advance(Duration::from_millis(5)).await;
    inside.held.as_ref().unwrap().release().await.unwrap();
    advance(Duration::from_millis(70)).await;
    inside.answer(200);
    assert_eq!(
        timings(&answered(write).await),
        ["lock-wait;dur=0.000, lock-hold;dur=5.000"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_told_too() {
    let layer = layer().server_timing(true);
    let (handler, mut gate) = gate();
    let held = patch(&layer, &handler, "/luke/a/x");
    let mut inside = gate.entered().await;
    let refused = answered(patch(&layer, &handler, "/luke/a/y")).await;
    assert_eq!(refused.status(), 503);
    let [told] = timings(&refused)[..] else {
        panic!("one header")
    };
    // The clock of the runtime goes by whole milliseconds when it sleeps.
    assert!(
        told.starts_with("lock-wait;dur=100") && !told.contains("hold"),
        "{told}"
    );
    inside.dropped().await;
    let expired = answered(held).await;
    assert_eq!(expired.status(), 504);
    let [told] = timings(&expired)[..] else {
        panic!("one header")
    };
    assert!(
        told.starts_with("lock-wait;dur=0.000, lock-hold;dur=200"),
        "{told}"
    );
}

#[tokio::test]
async fn nobody_else_is_told() {
    let (handler, mut gate) = gate();
    let told = layer().server_timing(true);
    for (layer, method, path) in [
        (&told, Method::GET, "/luke/a/x"),
        (&layer(), Method::PATCH, "/luke/a/x"),
    ] {
        let sent = send(layer, &handler, method, path);
        gate.entered().await.answer(200);
        assert_eq!(timings(&answered(sent).await), [""; 0]);
    }
    let sent = patch(&told, &handler, "/luke");
    assert_eq!(timings(&answered(sent).await), [""; 0]);
}
