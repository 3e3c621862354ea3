//! A session that is lost costs its own holds, and tells them; the others go on, and so do new writes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower_realm_lock::{LockError, RealmUrl};

use crate::support::database::{TestDatabase, database, has_sessions};
use crate::support::gate::{
    Call, Outcome, answered, assert_lost, gate, key, patch, postgres_layer, postgres_layer_with,
    postgres_locks_with,
};
use crate::support::proxy::Proxy;
use crate::support::silence::assert_out_before_the_next;
use crate::support::wait::{PATIENCE, wait_until};

const PATH: &str = "/luke/a/card";

async fn backend_state(database: &TestDatabase, pid: i32) -> String {
    let client = database.connect().await;
    let row = client
        .query_one("SELECT state FROM pg_stat_activity WHERE pid = $1", &[&pid])
        .await;
    row.unwrap().get(0)
}

#[tokio::test]
async fn a_dead_session_loses_its_holds_and_no_others() {
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let layer = postgres_layer_with(database.url(), |builder| builder.sessions(2)).await;
    let (handler, mut gate) = gate();
    let paths: Vec<String> = (0..8).map(|n| format!("/luke/realm-{n}/card")).collect();
    let mut by_session = BTreeMap::<i32, Vec<(Call, JoinHandle<Outcome>)>>::new();
    for path in &paths {
        let write = patch(&layer, &handler, path);
        let call = gate.entered().await;
        let pid = database.holder_pid(key(path)).await.expect("a holder");
        by_session.entry(pid).or_default().push((call, write));
    }
    let mut sessions = by_session.into_iter();
    let (dead, lost) = sessions.next().unwrap();
    let (_, kept) = sessions.next().expect("both sessions are in use");
    assert!(sessions.next().is_none());

    database.terminate(dead).await;
    let mut lost_paths = Vec::new();
    for (mut call, write) in lost {
        call.dropped().await;
        call.held.as_ref().unwrap().lost().await;
        assert_lost(&answered(write).await);
        lost_paths.push(call.path);
    }
    for (call, write) in kept {
        assert!(call.held.as_ref().unwrap().is_held());
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }

    // By a new session, not by transactions alone.
    wait_until("a new session", async || {
        let path = &lost_paths[0];
        let write = patch(&layer, &handler, path);
        let call = gate.entered().await;
        let pid = database.holder_pid(key(path)).await.expect("a holder");
        let state = backend_state(&database, pid).await;
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
        pid != dead && state == "idle"
    })
    .await;
}

#[tokio::test]
async fn a_job_is_told_of_its_lost_session() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder.sessions(1)).await;
    let realm: RealmUrl = "http://realms.test/luke/a/".parse().unwrap();
    let job = tokio::spawn(async move {
        locks
            .with_write_lock(&realm, |_| std::future::pending::<Result<(), LockError>>())
            .await
    });
    database.wait_for_granted(key(PATH), 1).await;
    let pid = database.holder_pid(key(PATH)).await.expect("a holder");
    database.terminate(pid).await;
    let lost = timeout(PATIENCE, job).await.expect("told in time").unwrap();
    assert!(matches!(lost, Err(LockError::Lost { .. })), "{lost:?}");
}

#[tokio::test]
async fn a_handler_that_ends_in_the_same_instant_is_not_a_success() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| builder.sessions(1)).await;
    for _ in 0..30 {
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let pid = database.holder_pid(key(PATH)).await.expect("a holder");
        database.terminate(pid).await;
        database.wait_for_granted(key(PATH), 0).await;
        if !call.was_dropped() {
            call.answer(200);
        }
        assert_lost(&answered(write).await);
    }
}

#[tokio::test]
async fn a_silent_session_is_lost_before_the_server_lets_the_next_one_in() {
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let proxy = Proxy::to(database.url()).await;
    let lease = Duration::from_millis(1500);
    let cut_off = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.sessions(1).lease(lease)
    })
    .await;
    let other = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let write = patch(&cut_off, &handler, PATH);
    let call = gate.entered().await;
    let pid = database.holder_pid(key(PATH)).await.expect("a holder");
    assert_eq!(backend_state(&database, pid).await, "idle");
    let next = patch(&other, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    assert_out_before_the_next(&proxy, lease, (call, write), next, &mut gate).await;
}

#[tokio::test]
async fn an_unlock_that_nobody_confirms_is_a_lost_lock() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.sessions(1).lease(Duration::from_millis(600))
    })
    .await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    proxy.freeze();
    call.answer(200);
    assert_lost(&answered(write).await);
}

#[tokio::test]
async fn long_holds_are_kept_by_one_heartbeat_for_all() {
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.sessions(1).lease(Duration::from_millis(300))
    })
    .await;
    let (handler, mut gate) = gate();
    let writes = ["/luke/a/1", "/luke/b/1", "/luke/c/1"].map(|path| patch(&layer, &handler, path));
    let mut calls = Vec::new();
    for _ in &writes {
        calls.push(gate.entered().await);
    }
    proxy.queries();
    let started = Instant::now();
    let mut beats = Vec::new();
    // Ten heartbeats are more than three leases.
    wait_until("ten heartbeats", async || {
        beats.extend(proxy.queries());
        beats.len() >= 10
    })
    .await;
    assert!(beats.iter().all(String::is_empty), "{beats:?}");
    assert!(started.elapsed() > Duration::from_millis(900));
    for call in calls {
        assert!(call.held.as_ref().unwrap().is_held());
        call.answer(200);
    }
    for write in writes {
        assert_eq!(answered(write).await.status(), 200);
    }
}
