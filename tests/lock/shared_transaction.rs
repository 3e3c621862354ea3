//! A handler's own SQL in the locked transaction: it stands if the request succeeds, and only then.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    HeldLock, LockError, LockTransaction, OnDisconnect, RealmLocks, RealmUrl, RealmWriteLockLayer,
};

use crate::support::claims::{realm_key, whole, work};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    code, gate, key, patch, postgres_layer_with, postgres_locks_with, realms,
};

const PATH: &str = "/luke/a/card";

/// A table of writes that must not repeat a number, checked at commit; and a layer with a single connection.
async fn set_up() -> (TestDatabase, RealmWriteLockLayer) {
    let database = database().await;
    database
        .connect()
        .await
        .batch_execute("CREATE TABLE writes (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        .await
        .unwrap();
    let layer = postgres_layer_with(database.url(), |builder| builder.pool_size(1))
        .await
        .map_locks(|locks| locks.share_transaction(true));
    (database, layer)
}

/// The numbers that stand, for everybody else.
async fn written(database: &TestDatabase) -> Vec<i32> {
    let rows = database.connect().await;
    let rows = rows.query("SELECT n FROM writes ORDER BY n", &[]).await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn insert(transaction: &LockTransaction, n: i32) {
    let client = transaction.client().expect("the hold lasts");
    let inserted = client
        .execute("INSERT INTO writes VALUES ($1)", &[&n])
        .await;
    assert_eq!(inserted.unwrap(), 1);
}

#[tokio::test]
async fn what_a_handler_writes_stands_if_and_only_if_it_succeeds() {
    let (database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    for (n, status) in [(1, 200), (2, 302), (3, 404), (4, 500), (5, 204)] {
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        insert(call.transaction(), n).await;
        assert!(!written(&database).await.contains(&n));
        call.answer(status);
        assert_eq!(write.await.unwrap().unwrap().status(), status);
        // The commit was there before the response.
        assert_eq!(
            written(&database).await.contains(&n),
            status < 400,
            "{status}"
        );
    }

    for end in [
        crate::support::gate::Call::fail,
        crate::support::gate::Call::panic,
    ] {
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        insert(call.transaction(), 6).await;
        end(call);
        assert!(!matches!(write.await, Ok(Ok(_))));
    }
    let late = patch(
        &layer
            .clone()
            .map_locks(|locks| locks.max_hold(Duration::from_millis(100))),
        &handler,
        PATH,
    );
    let call = gate.entered().await;
    insert(call.transaction(), 7).await;
    assert_eq!(late.await.unwrap().unwrap().status(), 504);

    let gone = patch(
        &layer.clone().on_disconnect(OnDisconnect::Cancel),
        &handler,
        PATH,
    );
    let call = gate.entered().await;
    insert(call.transaction(), 8).await;
    gone.abort();

    let finished = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    insert(call.transaction(), 9).await;
    finished.abort();
    call.answer(200);

    database.wait_for_granted(key(PATH), 0).await;
    assert_eq!(written(&database).await, [1, 2, 5, 9]);
}

#[tokio::test]
async fn a_success_commits_even_without_confirmation() {
    let (database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    let write = patch(&layer.confirm(false), &handler, PATH);
    let call = gate.entered().await;
    insert(call.transaction(), 1).await;
    call.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
    assert_eq!(written(&database).await, [1]);
}

#[tokio::test]
async fn a_lost_lock_leaves_no_half_a_write() {
    let (database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let mut call = gate.entered().await;
    insert(call.transaction(), 1).await;
    let pid = database.holder_pid(key(PATH)).await.unwrap();
    database.terminate(pid).await;
    call.dropped().await;
    let response = write.await.unwrap().unwrap();
    assert_eq!(
        (response.status().as_u16(), &*code(&response)),
        (503, "lock-lost")
    );
    assert!(written(&database).await.is_empty());
}

#[tokio::test]
async fn a_commit_that_fails_is_503_and_nothing_stands() {
    let (database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    let failing: [(&str, &str); 5] = [
        ("deferred constraint", "INSERT INTO writes VALUES (1), (1)"),
        (
            "aborted by an error",
            "INSERT INTO writes VALUES (2); SELECT 1 / 0",
        ),
        (
            "a COMMIT of its own",
            "INSERT INTO writes SELECT 3 WHERE false; COMMIT",
        ),
        (
            "a ROLLBACK of its own",
            "INSERT INTO writes VALUES (4); ROLLBACK",
        ),
        (
            "a transaction of its own",
            "COMMIT; BEGIN; INSERT INTO writes VALUES (5)",
        ),
    ];
    for (what, sql) in failing {
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let client = call.transaction().client().unwrap();
        // The handler does not look at its errors.
        drop(client.batch_execute(sql).await);
        drop(client);
        call.answer(200);
        let response = write.await.unwrap().unwrap();
        assert_eq!(response.status(), 503, "{what}");
        assert_eq!(code(&response), "commit-failed", "{what}");
        assert!(written(&database).await.is_empty(), "{what}");
    }
    let savepoint = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let sql =
        "INSERT INTO writes VALUES (6); SAVEPOINT s; INSERT INTO writes VALUES (7); ROLLBACK TO s";
    call.transaction()
        .client()
        .unwrap()
        .batch_execute(sql)
        .await
        .unwrap();
    call.answer(200);
    assert_eq!(savepoint.await.unwrap().unwrap().status(), 200);
    assert_eq!(written(&database).await, [6]);
}

#[tokio::test]
async fn a_transaction_cannot_be_used_after_its_hold_nor_be_kept_busy_past_it() {
    let (database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let kept = call.transaction().clone();
    call.answer(200);
    write.await.unwrap().unwrap();
    assert!(matches!(
        kept.client(),
        Err(LockError::TransactionEnded { .. })
    ));

    let busy = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    insert(call.transaction(), 1).await;
    let client = call.transaction().client().unwrap();
    call.answer(200);
    let response = busy.await.unwrap().unwrap();
    assert_eq!(code(&response), "commit-failed");
    drop(client);
    database.wait_for_granted(key(PATH), 0).await;
    assert!(written(&database).await.is_empty());
}

#[tokio::test]
async fn a_statement_that_runs_on_does_not_keep_the_lock() {
    let (database, layer) = set_up().await;
    let service = layer
        .map_locks(|locks| locks.max_hold(Duration::from_millis(200)))
        .layer(service_fn(async |request: Request<String>| {
            let transaction: &LockTransaction = request.extensions().get().unwrap();
            let client = transaction.client().unwrap();
            client.batch_execute("SELECT pg_sleep(600)").await.unwrap();
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        }));
    let request = Request::patch(PATH).body(String::new()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn statements_see_what_the_holder_before_wrote_and_wait_as_long_as_they_must() {
    let (database, layer) = set_up().await;
    let strict = format!(
        "ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'",
        database.name()
    );
    let other = database.connect().await;
    other.batch_execute(&strict).await.unwrap();
    let locks = RealmLocks::postgres(database.url()).await.unwrap();
    let second =
        RealmWriteLockLayer::new(locks, realms()).map_locks(|locks| locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let one = patch(&layer, &handler, PATH);
    let first = gate.entered().await;
    let two = patch(&second, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    insert(first.transaction(), 1).await;
    first.answer(200);
    one.await.unwrap().unwrap();

    let call = gate.entered().await;
    let client = call.transaction().client().unwrap();
    let seen = client
        .query_one("SELECT count(*) FROM writes", &[])
        .await
        .unwrap();
    assert_eq!(seen.get::<_, i64>(0), 1);
    let timeout = client.query_one("SHOW lock_timeout", &[]).await.unwrap();
    assert_eq!(timeout.get::<_, &str>(0), "0");
    drop(client);
    call.answer(200);
    two.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_job_commits_an_ok_and_rolls_back_the_rest() {
    let (database, _) = set_up().await;
    let locks = RealmLocks::postgres(database.url())
        .await
        .unwrap()
        .share_transaction(true);
    let realm: RealmUrl = "http://realms.test/luke/a/".parse().unwrap();
    for (n, fails) in [(1, false), (2, true)] {
        let done = locks
            .with_write_lock(&realm, move |held| async move {
                insert(held.transaction().unwrap(), n).await;
                if fails {
                    Err(LockError::ShuttingDown)
                } else {
                    Ok(())
                }
            })
            .await;
        assert_eq!(done.is_err(), fails);
    }
    let failing = locks
        .with_write_lock(&realm, |held| async move {
            insert(held.transaction().unwrap(), 1).await;
            Ok::<_, LockError>(())
        })
        .await;
    assert!(
        matches!(failing, Err(LockError::CommitFailed { .. })),
        "{failing:?}"
    );
    database.wait_for_granted(key(PATH), 0).await;
    assert_eq!(written(&database).await, [1]);
}

#[tokio::test]
async fn a_wrong_choice_is_said_at_once() {
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms())
        .map_locks(|locks| locks.share_transaction(true));
    let (handler, _gate) = gate();
    let response = patch(&layer, &handler, PATH).await.unwrap().unwrap();
    assert_eq!(code(&response), "lock-unavailable");
}

#[tokio::test]
async fn a_statement_that_fails_does_not_let_the_next_writer_in() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder)
        .await
        .share_transaction(true);
    let other = postgres_locks_with(database.url(), |builder| builder).await;
    let (told, failed) = tokio::sync::oneshot::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let first = tokio::spawn(async move {
        let work = |held: HeldLock| async move {
            let client = held.transaction().unwrap().client().unwrap();
            assert!(client.batch_execute("SELECT 1 / 0").await.is_err());
            drop(client);
            told.send(()).unwrap();
            // It goes on with what is no SQL.
            let _ = ended.await;
            assert!(held.is_held());
            Ok::<_, LockError>(())
        };
        locks.with_write_lock(whole(["a"]), work).await
    });
    failed.await.unwrap();
    let mut next = work(&other, &whole(["a"]));
    database.wait_for_waiting(realm_key("a"), 1).await;
    assert!(next.waits());
    end.send(()).unwrap();
    let outcome = first.await.unwrap();
    assert!(
        matches!(outcome, Err(LockError::CommitFailed { .. })),
        "{outcome:?}"
    );
    next.inside().await.end().await;
}
