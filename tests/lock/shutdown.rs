//! A shutdown grants nothing more, lets holds end, and leaves no lock and no connection.

use std::time::Duration;

use tower_realm_lock::{HeldLock, LockError, OnDisconnect, RealmLocks, RealmWriteLockLayer};

use crate::support::claims::whole;
use crate::support::database::database;
use crate::support::gate::{code, gate, key, patch, postgres_locks_with, realms};
use crate::support::wait::wait_until;

const GRACE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn holds_end_waiters_are_refused_and_connections_close() {
    let database = database().await;
    let locks = RealmLocks::postgres(database.url()).await.unwrap();
    let layer = RealmWriteLockLayer::new(locks.clone(), realms());
    let (handler, mut gate) = gate();
    let foreign = database.connect().await;
    let lock = format!("SELECT pg_advisory_lock({})", key("/luke/b"));
    foreign.batch_execute(&lock).await.unwrap();

    let gone = patch(&layer, &handler, "/luke/a/1");
    let inside = gate.entered().await;
    gone.abort();
    let queued = patch(&layer, &handler, "/luke/a/2");
    let in_database = patch(&layer, &handler, "/luke/b/1");
    database.wait_for_waiting(key("/luke/b"), 1).await;

    let shutdown = tokio::spawn(async move { locks.shutdown(GRACE).await });
    for refused in [queued, in_database, patch(&layer, &handler, "/luke/c/1")] {
        let response = refused.await.unwrap().unwrap();
        assert_eq!(
            (response.status().as_u16(), &*code(&response)),
            (503, "lock-unavailable")
        );
    }
    assert!(!shutdown.is_finished());
    inside.answer(200);
    shutdown.await.unwrap().unwrap();
    assert_eq!(database.advisory_locks(key("/luke/a")).await, (0, 0));
    assert_eq!(database.advisory_locks(key("/luke/b")).await, (1, 0));
    drop(foreign);
    wait_until("no connection", async || database.backends().await == 0).await;
}

#[tokio::test]
async fn a_handle_that_is_kept_keeps_no_connection() {
    let database = database().await;
    for sessions in [0, 1] {
        let locks = postgres_locks_with(database.url(), |builder| builder.sessions(sessions)).await;
        let claim = whole(["luke/a"]);
        let work = |held: HeldLock| async move { Ok::<_, LockError>(held) };
        let kept = locks.with_write_lock(claim, work).await.unwrap();
        locks.shutdown(GRACE).await.unwrap();
        drop(locks);
        wait_until("no connection", async || database.backends().await == 0).await;
        assert!(!kept.is_held());
    }
}

#[tokio::test]
async fn a_hold_that_does_not_end_in_time_is_reported() {
    for policy in [OnDisconnect::Finish, OnDisconnect::Cancel] {
        let locks = RealmLocks::in_process();
        let layer = RealmWriteLockLayer::new(locks.clone(), realms()).on_disconnect(policy);
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, "/luke/a/1");
        let inside = gate.entered().await;
        let error = locks.shutdown(Duration::from_millis(10)).await.unwrap_err();
        assert!(
            matches!(error, LockError::ShutdownIncomplete { .. }),
            "{error}"
        );
        inside.answer(200);
        write.await.unwrap().unwrap();
        locks.shutdown(GRACE).await.unwrap();
    }
}

#[test]
fn a_shutdown_waits_for_a_caller_that_has_nothing_yet() {
    let tests = tokio::runtime::Runtime::new().unwrap();
    let database = tests.block_on(database());
    let _foreign = tests.block_on(database.hold(key("/luke/a")));
    // A replica with one thread, whose runtime ends when the shutdown is done.
    let replica = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    replica.block_on(async {
        let locks = RealmLocks::postgres(database.url()).await.unwrap();
        let layer = RealmWriteLockLayer::new(locks.clone(), realms());
        let (handler, _gate) = gate();
        let _waiting = patch(&layer, &handler, "/luke/a/card");
        database.wait_for_waiting(key("/luke/a"), 1).await;
        locks.shutdown(GRACE).await.unwrap();
    });
    drop(replica);
    // Its session to the database ended with it: this one is new.
    let locks = tests.block_on(database.advisory_locks(key("/luke/a")));
    assert_eq!(locks, (1, 0));
}
