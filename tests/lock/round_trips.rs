//! What a hold costs on the wire: one message to acquire, one more if it must wait, and one to release.

use std::time::Duration;

use tower_realm_lock::LockError;

use crate::support::claims::{realm, realm_key, whole, work};
use crate::support::database::database;
use crate::support::gate::{
    gate, key, patch, postgres_layer, postgres_layer_with, postgres_locks_with, realms,
};
use crate::support::proxy::Proxy;
use crate::support::wait::PATIENCE;

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
        assert_eq!(queries.len(), 2, "{queries:?}");
        assert_eq!(queries[0], format!("BEGIN; {}", tried("/luke/a")));
        assert_eq!(queries[1], "COMMIT");
    }
}

/// The leanest statement that locks a realm and names it to an operator.
fn tried(path: &str) -> String {
    let (key, realm) = (key(path), realms().resolve(path).unwrap());
    format!("/* realm {realm} */ EXECUTE pg_try_advisory_xact_lock({key})")
}

#[tokio::test]
async fn a_contended_hold_waits_with_a_message_of_its_own_and_a_try_does_not_wait() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let locks = postgres_locks_with(&proxy.url(database.url()), |it| it).await;
    let locks = locks.acquire_timeout(PATIENCE);
    let claim = whole(["a"]);
    let holder = database.hold(realm_key("a")).await;
    proxy.queries();
    let waiting = work(&locks, &claim);
    database.wait_for_waiting(realm_key("a"), 1).await;
    let queries = proxy.queries();
    assert_eq!(queries.len(), 2, "{queries:?}");
    let comment = format!("/* realm {} */ ", realm("a"));
    let limit = queries[1].strip_prefix(&format!("{comment}SELECT set_config('lock_timeout', '"));
    let (limit, wait) = limit.unwrap().split_once('\'').unwrap();
    let limit = Duration::from_millis(limit.parse().unwrap());
    assert!(limit > PATIENCE / 2 && limit <= PATIENCE, "{limit:?}");
    let key = realm_key("a");
    assert!(wait.contains(&format!("SELECT pg_advisory_xact_lock({key})")));
    drop(holder);
    waiting.inside().await.end().await;
    assert_eq!(proxy.queries(), ["COMMIT"]);

    let _holder = database.hold(key).await;
    let granted = async |_| Ok::<_, LockError>(());
    let tried = locks.try_with_write_lock(&claim, granted).await;
    assert!(tried.unwrap().is_none());
    let queries = proxy.queries();
    assert_eq!(queries[1..], ["ROLLBACK"], "{queries:?}");
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
