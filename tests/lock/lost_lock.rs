//! A lock that is lost under a running call: the call is stopped, and nobody is told that it succeeded.

use std::time::Duration;

use tower_realm_lock::{LockError, RealmLocks, RealmUrl, RealmWriteLockLayer};

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    answered, assert_lost, code, gate, key, patch, postgres_layer, postgres_layer_with,
};
use crate::support::proxy::Proxy;
use crate::support::silence::assert_out_before_the_next;
use crate::support::wait::wait_until;

const PATH: &str = "/luke/a/card";

async fn layer(database: &TestDatabase) -> RealmWriteLockLayer {
    postgres_layer(database.url()).await
}

async fn terminate_holder(database: &TestDatabase) {
    let pid = database.holder_pid(key(PATH)).await.expect("a holder");
    database.terminate(pid).await;
}

#[tokio::test]
async fn a_call_whose_lock_is_lost_is_dropped_and_answered_503() {
    let database = database().await;
    let layer = layer(&database).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let mut call = gate.entered().await;
    let held = call.held.clone().unwrap();
    terminate_holder(&database).await;

    held.lost().await;
    assert!(!held.is_held());
    call.dropped().await;
    assert_lost(&answered(write).await);

    let next = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

#[tokio::test]
async fn a_handler_that_ends_in_the_same_instant_is_not_a_success() {
    let database = database().await;
    let layer = layer(&database).await;
    for _ in 0..50 {
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let pid = database.holder_pid(key(PATH)).await.expect("a holder");
        // The answer and the end of the backend are on their way together; the backend's comes first.
        database.terminate(pid).await;
        database.wait_for_granted(key(PATH), 0).await;
        if !call.was_dropped() {
            call.answer(200);
        }
        assert_lost(&answered(write).await);
    }
}

/// A layer whose way to PostgreSQL can be broken.
async fn layer_behind(
    proxy: &Proxy,
    database: &TestDatabase,
    lease: Duration,
) -> RealmWriteLockLayer {
    postgres_layer_with(&proxy.url(database.url()), |builder| builder.lease(lease)).await
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_lost_lock() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = layer_behind(&proxy, &database, Duration::from_secs(30)).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let mut call = gate.entered().await;
    proxy.cut();
    call.dropped().await;
    assert_lost(&answered(write).await);
}

#[tokio::test]
async fn a_silent_network_is_a_lost_lock_before_the_server_lets_the_next_one_in() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let lease = Duration::from_millis(1500);
    let cut_off = layer_behind(&proxy, &database, lease).await;
    let other = layer(&database).await;
    let (handler, mut gate) = gate();
    let write = patch(&cut_off, &handler, PATH);
    let call = gate.entered().await;
    let next = patch(&other, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    assert_out_before_the_next(&proxy, lease, (call, write), next, &mut gate).await;
}

#[tokio::test]
async fn a_connection_that_may_still_hold_a_lock_is_not_used_again() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.pool_size(1).lease(Duration::from_secs(2))
    })
    .await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let mut call = gate.entered().await;
    proxy.freeze();
    call.dropped().await;
    assert_lost(&answered(write).await);

    // The server has not noticed anything: the lock is still there, and so is the connection.
    proxy.thaw();
    let other = patch(&layer, &handler, "/luke/b/card");
    let call = gate.entered().await;
    database.wait_for_granted(key(PATH), 0).await;
    call.answer(200);
    assert_eq!(answered(other).await.status(), 200);
}

#[tokio::test]
async fn a_success_waits_for_its_confirmation_unless_told_otherwise() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = layer_behind(&proxy, &database, Duration::from_millis(600)).await;
    let (handler, mut gate) = gate();

    let confirmed = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    proxy.freeze();
    call.answer(200);
    assert_lost(&answered(confirmed).await);
    proxy.thaw();

    let unconfirmed = patch(&layer.clone().confirm(false), &handler, PATH);
    let call = gate.entered().await;
    proxy.freeze();
    call.answer(200);
    let response = answered(unconfirmed).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_failure_does_not_wait_and_stays_what_it_is() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = layer_behind(&proxy, &database, Duration::from_secs(30)).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    proxy.freeze();
    call.answer(404);
    let response = answered(write).await;
    assert_eq!(response.status(), 404);
}

#[tokio::test]
async fn a_job_is_told_of_its_lost_lock() {
    let database = database().await;
    let locks = RealmLocks::postgres(database.url()).await.unwrap();
    let realm: RealmUrl = "http://realms.test/luke/a/".parse().unwrap();
    let job = tokio::spawn(async move {
        locks
            .with_write_lock(&realm, |_| std::future::pending::<Result<(), LockError>>())
            .await
    });
    database.wait_for_granted(key(PATH), 1).await;
    terminate_holder(&database).await;
    let lost = job.await.unwrap();
    assert!(matches!(lost, Err(LockError::Lost { .. })), "{lost:?}");
}

#[tokio::test]
async fn a_grant_that_may_be_old_is_confirmed_before_the_call_begins() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let lease = Duration::from_millis(300);
    let layer = layer_behind(&proxy, &database, lease).await;
    let layer = layer.map_locks(|locks| locks.acquire_timeout(Duration::from_secs(2)));
    let foreign = database.hold(key(PATH)).await;
    let (handler, gate) = gate();
    let write = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    // The grant gets through after more than a third of the lease, and nothing that could confirm it.
    proxy.freeze_requests();
    tokio::time::sleep(lease / 2).await;
    foreign.batch_execute("COMMIT").await.unwrap();
    let response = answered(write).await;
    assert_eq!(
        (response.status().as_u16(), &*code(&response)),
        (503, "lock-timeout")
    );
    assert!(gate.is_empty());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_discarded_connection_is_closed_although_an_answer_is_due() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = layer_behind(&proxy, &database, Duration::from_millis(300)).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let mut call = gate.entered().await;
    assert_eq!(connections_to(proxy.port()), 1);
    proxy.freeze();
    call.dropped().await;
    assert_lost(&answered(write).await);
    wait_until("it is closed", async || connections_to(proxy.port()) == 0).await;
}

/// The open connections of this machine to a local port.
#[cfg(target_os = "linux")]
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let to = format!(":{port:04X}");
    let open = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|remote| remote.ends_with(&to)) && fields.next() == Some("01")
    };
    table.lines().filter(open).count()
}
