//! A granted lock goes from one local waiter to the next without a word to the server.

use std::time::Duration;

use tower_realm_lock::{OnDisconnect, PostgresBuilder, RealmWriteLockLayer};

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    Ending, Failed, Gate, Gated, endings, gate, key, patch, postgres_layer_with,
    postgres_locks_with, queue, realms,
};
use crate::support::load::{Log, PATH, REALM, Writers};
use crate::support::proxy::Proxy;
use crate::support::wait::wait_until;

/// A layer whose statements can be counted. Unless `options` say otherwise, a slow machine does not end its hand-offs.
async fn counted(
    database: &TestDatabase,
    options: impl FnOnce(PostgresBuilder) -> PostgresBuilder,
) -> (Proxy, RealmWriteLockLayer) {
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        options(builder.max_hand_off_time(Duration::MAX))
    })
    .await;
    proxy.queries();
    (proxy, layer)
}

/// Where transactions began and ended since the last call; confirmations are left out.
fn transactions(proxy: &Proxy) -> Vec<&'static str> {
    let name = |query: String| match &query {
        _ if query.contains("BEGIN") => Some("BEGIN"),
        _ if query.ends_with("COMMIT") || query == "ROLLBACK" => Some("END"),
        _ => None,
    };
    proxy.queries().into_iter().filter_map(name).collect()
}

/// As many writers as given, one after the other, all of them in the queue before the first one ends.
async fn write_in_a_row(layer: &RealmWriteLockLayer, count: usize) {
    let (handler, mut gate) = gate();
    let mut writes = vec![patch(layer, &handler, PATH)];
    let mut inside = Some(gate.entered().await);
    writes.extend((1..count).map(|_| queue(layer, &handler, PATH)));
    for left in (0..count).rev() {
        inside.take().expect("a call").answer(200);
        if left > 0 {
            inside = Some(gate.entered().await);
        }
    }
    for write in writes {
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn many_waiters_share_one_transaction() {
    let database = database().await;
    let (proxy, layer) = counted(&database, |builder| builder).await;
    write_in_a_row(&layer, 50).await;
    database.wait_for_granted(key(REALM), 0).await;
    assert_eq!(transactions(&proxy), ["BEGIN", "END"]);
}

#[tokio::test]
async fn without_hand_off_each_hold_has_a_transaction_of_its_own() {
    let database = database().await;
    let (proxy, layer) = counted(&database, |builder| builder.max_hand_offs(0)).await;
    write_in_a_row(&layer, 10).await;
    assert_eq!(transactions(&proxy), ["BEGIN", "END"].repeat(10));
    let (proxy, layer) = counted(&database, |builder| {
        builder.max_hand_off_time(Duration::ZERO)
    })
    .await;
    write_in_a_row(&layer, 10).await;
    assert_eq!(transactions(&proxy), ["BEGIN", "END"].repeat(10));
}

#[tokio::test]
async fn tokens_grow_along_hand_offs_and_across_replicas() {
    let database = database().await;
    let log = Log::default();
    let mut writers = Vec::new();
    for replica in 0..2 {
        let layer = postgres_layer_with(database.url(), |builder| {
            builder.fencing(true).max_hand_offs(7)
        })
        .await;
        writers.push(Writers::start(5, &layer, replica, &log, async || {}));
    }
    log.wait_for_more(600).await;
    for writers in writers {
        writers.stop().await;
    }
    let calls = log.calls();
    assert!(
        calls.is_sorted_by(|one, next| one.token.unwrap() < next.token.unwrap()),
        "{calls:?}"
    );
    // The last eight digits count the hand-offs: there were some, and other replicas in between.
    let tokens = calls.iter().map(|call| call.token.unwrap().to_string());
    let handed_on = tokens.filter(|token| !token.ends_with("00000000")).count();
    assert!(handed_on > 100, "{handed_on}");
    let switches = calls
        .windows(2)
        .filter(|two| two[0].replica != two[1].replica);
    assert!(switches.count() > 10);
    log.assert_alone();
    assert_eq!(log.rejected(), 0);
}

#[tokio::test]
async fn a_shared_transaction_is_neither_handed_on_nor_made_of_a_handed_lock() {
    let database = database().await;
    let sql = database.connect().await;
    sql.batch_execute("CREATE TABLE writes (n int)")
        .await
        .unwrap();
    let (proxy, plain) = counted(&database, |builder| builder.pool_size(1)).await;
    let shared = plain
        .clone()
        .map_locks(|locks| locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let mut writes = vec![patch(&plain, &handler, PATH)];
    let mut inside = gate.entered().await;
    for layer in [&plain, &shared, &shared, &shared, &plain, &plain] {
        writes.push(queue(layer, &handler, PATH));
    }
    let mut began = vec![transactions(&proxy).len()];
    for (n, status) in [200, 200, 500, 200, 200, 200].into_iter().enumerate() {
        // The shared ones are the third to the fifth.
        if (2..=4).contains(&n) {
            let client = inside.transaction().client().unwrap();
            let write = format!("INSERT INTO writes VALUES ({n})");
            client.batch_execute(&write).await.unwrap();
        } else {
            assert!(inside.held.as_ref().unwrap().transaction().is_none());
        }
        inside.answer(status);
        inside = gate.entered().await;
        let seen = transactions(&proxy);
        began.push(seen.iter().filter(|seen| **seen == "BEGIN").count());
    }
    inside.answer(200);
    // From plain to plain the lock is handed on.
    assert_eq!(began, [1, 0, 1, 1, 1, 1, 0]);
    let mut statuses = Vec::new();
    for write in writes {
        statuses.push(write.await.unwrap().unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 500, 200, 200, 200, 200]);
    let rows = sql.query("SELECT n FROM writes ORDER BY n", &[]).await;
    let written: Vec<i32> = rows.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(written, [3, 4]);
    database.wait_for_granted(key(REALM), 0).await;
}

/// A call that ends in the given way, and the one after it.
async fn handed_on_after(
    layer: &RealmWriteLockLayer,
    handler: &Gated,
    gate: &mut Gate,
    end: Ending,
) {
    let ended = patch(layer, handler, PATH);
    let call = gate.entered().await;
    let next = queue(layer, handler, PATH);
    end(call);
    gate.entered().await.answer(200);
    assert_eq!(next.await.unwrap().unwrap().status(), 200);
    match ended.await {
        Ok(Ok(_) | Err(Failed)) => {}
        Err(ended) => assert!(ended.is_panic()),
    }
}

#[tokio::test]
async fn however_a_call_ends_it_hands_the_lock_on() {
    let database = database().await;
    let (proxy, layer) = counted(&database, |builder| builder).await;
    let (handler, mut gate) = gate();
    for policy in [OnDisconnect::Finish, OnDisconnect::Cancel] {
        for confirm in [true, false] {
            let layer = layer.clone().on_disconnect(policy).confirm(confirm);
            for (name, end) in endings() {
                handed_on_after(&layer, &handler, &mut gate, end).await;
                database.wait_for_granted(key(REALM), 0).await;
                let seen = transactions(&proxy);
                assert_eq!(seen, ["BEGIN", "END"], "{name} {policy:?} {confirm}");
            }
        }
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_hands_the_lock_on() {
    let database = database().await;
    let (proxy, layer) = counted(&database, |builder| builder).await;
    let (handler, mut gate) = gate();

    let cancelled = layer.clone().on_disconnect(OnDisconnect::Cancel);
    let gone = patch(&cancelled, &handler, PATH);
    let mut call = gate.entered().await;
    let next = queue(&layer, &handler, PATH);
    gone.abort();
    call.dropped().await;
    let inside = gate.entered().await;

    let late = queue(
        &layer
            .clone()
            .map_locks(|locks| locks.max_hold(Duration::from_millis(50))),
        &handler,
        PATH,
    );
    let last = queue(&layer, &handler, PATH);
    inside.answer(200);
    let mut call = gate.entered().await;
    call.dropped().await;
    gate.entered().await.answer(200);
    assert_eq!(late.await.unwrap().unwrap().status(), 504);
    for write in [next, last] {
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
    database.wait_for_granted(key(REALM), 0).await;
    assert_eq!(transactions(&proxy), ["BEGIN", "END"]);
}

#[tokio::test]
async fn two_hundred_waiters_use_one_connection() {
    let database = database().await;
    for hand_offs in [0, 2, 1024] {
        let locks =
            postgres_locks_with(database.url(), |builder| builder.max_hand_offs(hand_offs)).await;
        let layer = RealmWriteLockLayer::new(locks.clone(), realms());
        let log = Log::default();
        for _ in 0..3 {
            let writers = Writers::start(200, &layer, 0, &log, async || {
                tokio::task::yield_now().await;
            });
            for _ in 0..10 {
                log.wait_for_more(50).await;
                let (granted, waiting) = database.advisory_locks(key(REALM)).await;
                assert!(granted + waiting <= 1, "{granted} {waiting}");
            }
            writers.stop().await;
            // An idle connection stays in its pool: there was never a second one.
            assert_eq!(database.backends().await, 1, "{hand_offs}");
        }
        assert_eq!(log.rejected(), 0);
        locks.shutdown(Duration::from_secs(5)).await.unwrap();
        drop((layer, locks));
        wait_until("the pool is closed", async || {
            database.backends().await == 0
        })
        .await;
    }
}
