//! The numbers that the feature `metrics` gives.

#![cfg(feature = "metrics")]

use metrics_exporter_prometheus::PrometheusBuilder;
use tower::Layer;
use tower_realm_lock::{RealmPaths, RealmWriteLockLayer};

use crate::support::alone::is_alone;
use crate::support::claims::realm_key;
use crate::support::database::database;
use crate::support::gate::{
    answered, assert_lost, gate, patch, postgres_layer, postgres_locks_with, queue,
};
use crate::support::wait::wait_until;

#[tokio::test]
async fn holds_waits_hand_offs_losses_and_rejections_are_counted() {
    if !is_alone(
        module_path!(),
        "holds_waits_hand_offs_losses_and_rejections_are_counted",
    ) {
        return;
    }
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    // One line for each number: its name, with labels, and its value.
    let number = |name: &str| -> Option<f64> {
        let text = recorder.render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(line.parse().expect("a number"))
    };
    let database = database().await;
    let layer = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let path = "/luke/a/card";

    let first = patch(&layer, &handler, path);
    let inside = gate.entered().await;
    let second = queue(&layer, &handler, path);
    assert_eq!(
        (number("realm_lock_held"), number("realm_lock_waiting")),
        (Some(1.0), Some(1.0))
    );
    let full = patch(
        &layer
            .clone()
            .map_locks(|locks| locks.max_waiters_per_realm(1)),
        &handler,
        path,
    );
    assert_eq!(answered(full).await.status(), 503);
    assert_eq!(
        number(r#"realm_lock_rejections_total{code="queue-full"}"#),
        Some(1.0)
    );
    // A waiter that leaves waits no more.
    let leaving = queue(&layer, &handler, path);
    assert_eq!(number("realm_lock_waiting"), Some(2.0));
    leaving.abort();
    wait_until("the waiter's end", async || {
        number("realm_lock_waiting") == Some(1.0)
    })
    .await;

    inside.answer(200);
    assert_eq!(answered(first).await.status(), 200);
    let inside = gate.entered().await;
    assert_eq!(number("realm_lock_hand_offs_total"), Some(1.0));
    assert_eq!(number("realm_lock_losses_total"), None);
    let pid = database.holder_pid(realm_key("a")).await.unwrap();
    database.terminate(pid).await;
    assert_lost(&answered(second).await);
    drop(inside);
    assert_eq!(number("realm_lock_losses_total"), Some(1.0));
    assert_eq!(
        number(r#"realm_lock_rejections_total{code="lock-lost"}"#),
        Some(1.0)
    );

    assert_eq!(
        (number("realm_lock_held"), number("realm_lock_waiting")),
        (Some(0.0), Some(0.0))
    );
    // Two replicas of a fleet, each of which sees that the other one has other realms.
    let mut replicas = Vec::new();
    for base_url in ["http://one.test", "http://other.test"] {
        let locks = postgres_locks_with(database.url(), |builder| builder).await;
        let paths = RealmPaths::new(base_url, "/{owner}/{realm}").unwrap();
        let layer = RealmWriteLockLayer::new(locks, paths).fleet("metrics");
        let _ = layer.layer(handler.clone());
        replicas.push(layer);
    }
    wait_until("both to know", async || {
        number(r#"realm_lock_fleet_differences_total{component="realms"}"#) == Some(2.0)
    })
    .await;
    let rules = number(r#"realm_lock_fleet_differences_total{component="rules"}"#);
    assert_eq!(rules, None);

    assert_eq!(number("realm_lock_wait_seconds_count"), Some(2.0));
    assert_eq!(number("realm_lock_hold_seconds_count"), Some(2.0));
    assert!(number("realm_lock_wait_seconds_sum").unwrap() > 0.0);
}
