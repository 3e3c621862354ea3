//! A success waits for the server's word that its lock was held to the end, and nobody else waits for that.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tower_realm_lock::RealmWriteLockLayer;

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    Outcome, answered, assert_lost, gate, key, patch, postgres_layer, postgres_layer_with, queue,
};
use crate::support::load::{PATH, REALM};
use crate::support::proxy::{Proxy, is_ping};
use crate::support::wait::{PATIENCE, wait_until};

/// So that the machine's noise does not end a row of hand-offs.
const FOR_EVER: Duration = Duration::MAX;

async fn handing_on(proxy: &Proxy, database: &TestDatabase) -> RealmWriteLockLayer {
    postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.max_hand_off_time(FOR_EVER)
    })
    .await
}

#[tokio::test]
async fn the_next_writers_are_inside_before_the_one_before_is_confirmed() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = handing_on(&proxy, &database).await;
    let (handler, mut gate) = gate();
    let mut writes = vec![patch(&layer, &handler, PATH)];
    let mut inside = gate.entered().await;
    writes.extend((1..5).map(|_| queue(&layer, &handler, PATH)));
    proxy.queries();
    proxy.freeze_answers();
    for _ in 1..5 {
        inside.answer(200);
        inside = gate.entered().await;
    }
    wait_until("the server is asked", async || {
        proxy.queries().iter().any(|query| is_ping(query))
    })
    .await;
    // A round trip of the test's own: the server had the time to answer.
    assert_eq!(database.advisory_locks(key(REALM)).await, (1, 0));
    assert!(writes.iter().all(|write| !write.is_finished()));

    proxy.thaw();
    let last = writes.pop().unwrap();
    for write in writes {
        assert_eq!(answered(write).await.status(), 200);
    }
    inside.answer(200);
    assert_eq!(answered(last).await.status(), 200);
}

#[tokio::test]
async fn another_replica_is_inside_before_a_commit_is_answered() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let slow = postgres_layer(&proxy.url(database.url())).await;
    let other = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let write = patch(&slow, &handler, PATH);
    let inside = gate.entered().await;
    let next = patch(&other, &handler, PATH);
    database.wait_for_waiting(key(REALM), 1).await;
    proxy.freeze_answers();
    inside.answer(200);
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
    assert!(!write.is_finished());
    proxy.thaw();
    assert_eq!(answered(write).await.status(), 200);
}

#[tokio::test]
async fn without_confirmation_a_response_leaves_though_the_server_is_silent() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = handing_on(&proxy, &database).await.confirm(false);
    let (handler, mut gate) = gate();
    let mut writes = vec![patch(&layer, &handler, PATH)];
    let mut inside = gate.entered().await;
    writes.extend((1..4).map(|_| queue(&layer, &handler, PATH)));
    proxy.queries();
    proxy.freeze();
    // Handed on twice, and given back by the last one.
    for left in (0..4).rev() {
        inside.answer(200);
        let told = Instant::now();
        let response = answered(writes.remove(0)).await;
        assert_eq!(response.status(), 200);
        assert!(told.elapsed() < Duration::from_secs(5));
        if left == 0 {
            break;
        }
        inside = gate.entered().await;
    }
    proxy.thaw();
    database.wait_for_granted(key(REALM), 0).await;
    // Nobody has asked for anything but the end.
    let asked = proxy.queries();
    assert_eq!(asked.len(), 1, "{asked:?}");
}

/// The clock stands still while they end: no time passes in which a question of their own could be due.
#[tokio::test]
async fn holds_that_end_within_one_answer_share_the_next() {
    const HOLDS: usize = 300;
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = handing_on(&proxy, &database).await;
    let (handler, mut gate) = gate();
    let mut writes: Vec<JoinHandle<Outcome>> = vec![patch(&layer, &handler, PATH)];
    let mut inside = gate.entered().await;
    writes.extend((1..=HOLDS).map(|_| queue(&layer, &handler, PATH)));
    proxy.queries();
    proxy.freeze_answers();

    tokio::time::pause();
    // Blocking work keeps a paused clock from jumping to the next timer.
    let (ended, end) = mpsc::channel::<()>();
    let standing = tokio::task::spawn_blocking(move || end.recv_timeout(PATIENCE));
    for _ in 0..HOLDS {
        inside.answer(200);
        inside = gate.entered().await;
    }
    tokio::time::resume();
    drop(ended);
    let stood = standing.await.unwrap();
    assert_eq!(stood, Err(mpsc::RecvTimeoutError::Disconnected));

    let last = writes.pop().unwrap();
    assert!(writes.iter().all(|write| !write.is_finished()));
    proxy.thaw();
    for write in writes {
        assert_eq!(answered(write).await.status(), 200);
    }
    // Each was asked after the end of the last hold that it speaks for.
    let asked = proxy.queries();
    assert!((1..=2).contains(&asked.len()), "{asked:?}");
    assert!(asked.iter().all(|query| is_ping(query)), "{asked:?}");
    inside.answer(200);
    assert_eq!(answered(last).await.status(), 200);
}

#[tokio::test]
async fn a_confirmation_that_does_not_come_is_a_lost_lock_within_the_lease() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let lease = Duration::from_millis(1500);
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.lease(lease).max_hand_off_time(FOR_EVER)
    })
    .await;
    for is_awaited in [false, true] {
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let inside = gate.entered().await;
        let next = is_awaited.then(|| queue(&layer, &handler, PATH));
        proxy.freeze_answers();
        let silent = Instant::now();
        inside.answer(200);
        if let Some(next) = next {
            // It was inside, and has lost the same lock.
            let mut call = gate.entered().await;
            call.dropped().await;
            assert_lost(&answered(next).await);
        }
        assert_lost(&answered(write).await);
        assert!(silent.elapsed() < lease, "{:?}", silent.elapsed());
        proxy.thaw();
    }
    // The realm is free again.
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
}
