//! What a hold costs on the wire: one message to acquire, one to release, and nothing else.

use std::time::Duration;

use crate::support::database::database;
use crate::support::gate::{gate, key, patch, postgres_layer, postgres_layer_with};
use crate::support::proxy::Proxy;

#[tokio::test]
async fn an_uncontended_hold_is_one_message_to_acquire_and_one_to_release() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer(&proxy.url(database.url())).await;
    let (handler, mut gate) = gate();
    proxy.queries();
    for _ in 0..3 {
        let write = patch(&layer, &handler, "/luke/a/card");
        gate.entered().await.answer(200);
        write.await.unwrap().unwrap();
        let queries = proxy.queries();
        let lock = format!("pg_advisory_xact_lock({})", key("/luke/a"));
        assert_eq!(queries.len(), 2, "{queries:?}");
        assert!(
            queries[0].starts_with("BEGIN") && queries[0].contains(&lock),
            "{queries:?}"
        );
        assert_eq!(queries[1], "COMMIT");
    }
}

#[tokio::test]
async fn a_long_hold_is_kept_by_heartbeats() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.lease(Duration::from_millis(900))
    })
    .await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, "/luke/a/card");
    let call = gate.entered().await;
    proxy.queries();
    let mut beats = Vec::new();
    // Ten heartbeats are more than three leases.
    crate::support::wait::wait_until("ten heartbeats", async || {
        beats.extend(proxy.queries());
        beats.len() >= 10
    })
    .await;
    assert!(
        beats
            .iter()
            .all(|query| crate::support::proxy::is_ping(query)),
        "{beats:?}"
    );
    assert!(call.held.as_ref().unwrap().is_held());
    call.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}
