//! A connection that breaks in the midst of hand-offs takes the lock from all who used it without a proof.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tower_realm_lock::{PostgresBuilder, RealmWriteLockLayer};

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{Outcome, assert_lost, gate, key, patch, postgres_layer_with, queue};
use crate::support::load::{Log, PATH, REALM, Writers};
use crate::support::proxy::Proxy;
use crate::support::wait::wait_until;

fn unbounded(builder: PostgresBuilder) -> PostgresBuilder {
    builder
        .max_hand_offs(u32::MAX)
        .max_hand_off_time(Duration::MAX)
}

/// What breaks, while the confirmations of two holds are outstanding and a third hold runs.
async fn broken(
    database: &TestDatabase,
    proxy: &Proxy,
    layer: &RealmWriteLockLayer,
    break_it: impl AsyncFnOnce(),
) {
    let (handler, mut gate) = gate();
    let mut writes: Vec<JoinHandle<Outcome>> = vec![patch(layer, &handler, PATH)];
    let first = gate.entered().await;
    writes.extend((1..5).map(|_| queue(layer, &handler, PATH)));
    proxy.freeze_requests();
    first.answer(200);
    gate.entered().await.answer(200);
    let mut running = gate.entered().await;
    let held = running.held.clone().unwrap();
    assert!(held.is_held());

    break_it().await;
    running.dropped().await;
    assert!(!held.is_held());
    let next = writes.split_off(3);
    for write in writes {
        assert_lost(&write.await.unwrap().unwrap());
    }

    // The two behind them get a lock that is new.
    assert!(gate.is_empty());
    proxy.thaw();
    for _ in &next {
        let call = gate.entered().await;
        assert!(call.held.as_ref().unwrap().is_held());
        assert_eq!(database.advisory_locks(key(REALM)).await, (1, 0));
        call.answer(200);
    }
    for write in next {
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
    database.wait_for_granted(key(REALM), 0).await;
}

#[tokio::test]
async fn a_broken_connection_is_a_lost_lock_for_all_who_have_no_proof() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), unbounded).await;
    broken(&database, &proxy, &layer, async || proxy.cut()).await;
    broken(&database, &proxy, &layer, async || {
        let holder = database.holder_pid(key(REALM)).await.expect("a holder");
        database.terminate(holder).await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_on_its_way_when_the_connection_breaks_is_a_proof() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), unbounded).await;
    let (handler, mut gate) = gate();
    let proven = patch(&layer, &handler, PATH);
    let inside = gate.entered().await;
    let next = queue(&layer, &handler, PATH);
    proxy.queries();
    proxy.freeze_answers();
    inside.answer(200);
    let mut running = gate.entered().await;
    wait_until("the question is through", async || {
        !proxy.queries().is_empty()
    })
    .await;
    let holder = database.holder_pid(key(REALM)).await.expect("a holder");
    // The server answers on this connection in order.
    database.terminate(holder).await;
    database.wait_for_granted(key(REALM), 0).await;
    proxy.thaw();
    running.dropped().await;
    assert_lost(&next.await.unwrap().unwrap());
    assert_eq!(proven.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_holder_in_a_row_that_ends_as_its_lock_is_lost_is_not_a_success() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), unbounded).await;
    for _ in 0..30 {
        let (handler, mut gate) = gate();
        let first = patch(&layer, &handler, PATH);
        let inside = gate.entered().await;
        let second = queue(&layer, &handler, PATH);
        let third = queue(&layer, &handler, PATH);
        inside.answer(200);
        assert_eq!(first.await.unwrap().unwrap().status(), 200);
        let call = gate.entered().await;
        let holder = database.holder_pid(key(REALM)).await.expect("a holder");
        database.terminate(holder).await;
        // The third one may have the lock already.
        wait_until("the backend is gone", async || {
            database.holder_pid(key(REALM)).await != Some(holder)
        })
        .await;
        if !call.was_dropped() {
            call.answer(200);
        }
        assert_lost(&second.await.unwrap().unwrap());
        gate.entered().await.answer(200);
        assert_eq!(third.await.unwrap().unwrap().status(), 200);
    }
}

/// Busy writers on two replicas, whose connections break again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_of_a_success_that_another_writer_was_inside_with() {
    let database = database().await;
    let log = Log::default();
    let mut replicas = Vec::new();
    for replica in 0..2 {
        let layer = postgres_layer_with(database.url(), |builder| builder.max_hand_offs(20)).await;
        replicas.push(Writers::start(6, &layer, replica, &log, async || {
            sleep(Duration::from_micros(300)).await;
        }));
    }
    let mut broken = 0;
    while broken < 25 {
        log.wait_for_more(20).await;
        if let Some(holder) = database.holder_pid(key(REALM)).await {
            let kill = format!("SELECT pg_terminate_backend({holder})");
            database.connect().await.batch_execute(&kill).await.unwrap();
            broken += 1;
        }
    }
    for writers in replicas {
        writers.stop().await;
    }
    log.assert_alone();
    let calls = log.calls();
    let answered = calls.iter().filter(|call| call.answered).count();
    assert!(log.rejected() > 0);
    assert!(answered > calls.len() / 2, "{answered} of {}", calls.len());
}
