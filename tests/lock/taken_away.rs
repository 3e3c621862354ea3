//! A test can take a hold's lock away, and sees what a real loss does (feature `test-util`).

#![cfg(feature = "test-util")]

use std::convert::Infallible;
use std::future::ready;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    HeldLock, HoldUntil, LockError, RealmLocks, RealmWriteLockLayer, Rejection,
};

use crate::support::claims::{realm_key, strategies, whole, work};
use crate::support::database::database;
use crate::support::gate::{
    answered, assert_lost, gate, patch, postgres_layer_with, postgres_locks_with, queue, realms,
};
use crate::support::wait::PATIENCE;

const PATH: &str = "/luke/a/card";

#[tokio::test]
async fn a_call_whose_lock_is_taken_away_is_stopped_and_its_client_gets_lock_lost() {
    let database = database().await;
    for (strategy, [one, other]) in strategies(&database).await {
        let layer = RealmWriteLockLayer::new(one, realms());
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let mut call = gate.entered().await;
        let held = call.held.clone().unwrap();
        assert!(held.is_held() && held.ensure_held().is_ok(), "{strategy}");

        held.lose();
        assert!(!held.is_held(), "{strategy}");
        let refused = held.ensure_held();
        assert!(
            matches!(refused, Err(LockError::Lost { .. })),
            "{strategy}: {refused:?}"
        );
        timeout(PATIENCE, held.lost()).await.expect("a signal");
        call.dropped().await;
        assert_lost(&answered(write).await);

        // Others have the lock, here and on another replica.
        work(&other, &whole(["a"])).inside().await.end().await;
        let next = patch(&layer, &handler, PATH);
        gate.entered().await.answer(200);
        assert_eq!(answered(next).await.status(), 200, "{strategy}");
    }
}

#[tokio::test]
async fn a_local_waiter_gets_in_after_the_call_that_lost_its_lock() {
    let database = database().await;
    for (strategy, [locks, _]) in strategies(&database).await {
        let layer = RealmWriteLockLayer::new(locks, realms());
        let (handler, mut gate) = gate();
        let lost = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let next = queue(&layer, &handler, PATH);
        call.held.as_ref().unwrap().lose();
        let inside = gate.entered().await;
        assert!(call.was_dropped(), "{strategy}");
        assert_lost(&answered(lost).await);
        let held = inside.held.clone().unwrap();
        assert!(held.is_held(), "{strategy}");
        inside.answer(200);
        assert_eq!(answered(next).await.status(), 200, "{strategy}");
    }
}

#[tokio::test]
async fn the_database_gives_the_lock_to_others_while_the_work_still_runs() {
    let database = database().await;
    for sessions in [0, 1] {
        let locks = postgres_locks_with(database.url(), |it| it.sessions(sessions)).await;
        let (taken, was_taken) = oneshot::channel();
        let (look, looked) = std::sync::mpsc::channel::<()>();
        let written = tokio::spawn(async move {
            let work = |held: HeldLock| async move {
                let stale = held.clone();
                let writing = held.spawn_blocking(move || {
                    // A thread cannot be stopped: it runs on without the lock.
                    stale.lose();
                    taken.send(()).unwrap();
                    looked.recv().unwrap();
                    stale.ensure_held()
                });
                writing.await?
            };
            locks.with_write_lock(whole(["a"]), work).await
        });
        was_taken.await.unwrap();
        database.wait_for_granted(realm_key("a"), 0).await;
        look.send(()).unwrap();
        let written = timeout(PATIENCE, written).await.unwrap().unwrap();
        assert!(
            matches!(written, Err(LockError::Lost { .. })),
            "{written:?}"
        );
    }
}

#[tokio::test]
async fn a_success_that_comes_at_once_is_none_and_a_shared_transaction_does_not_commit() {
    let database = database().await;
    let admin = database.connect().await;
    admin.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let layers = [
        RealmWriteLockLayer::new(RealmLocks::in_process(), realms()),
        postgres_layer_with(database.url(), |it| it.sessions(1)).await,
        postgres_layer_with(database.url(), |it| it)
            .await
            .map_locks(|locks| locks.share_transaction(true)),
        postgres_layer_with(database.url(), |it| it)
            .await
            .confirm(false),
    ];
    for layer in layers {
        let handler = service_fn(|request: Request<String>| async move {
            let held: &HeldLock = request.extensions().get().expect("locked");
            if let Some(transaction) = held.transaction() {
                let insert = transaction.client().unwrap();
                insert
                    .batch_execute("INSERT INTO t VALUES (1)")
                    .await
                    .unwrap();
            }
            held.lose();
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let request = Request::patch(PATH).body(String::new()).unwrap();
        let response = layer.layer(handler).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 503, "{layer:?}");
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.code(), "lock-lost");
    }
    let rows = admin.query("SELECT FROM t", &[]).await.unwrap();
    assert!(rows.is_empty());
}

#[tokio::test]
async fn nested_holds_lose_the_lock_together() {
    let database = database().await;
    for (strategy, [locks, _]) in strategies(&database).await {
        for loses_inner in [true, false] {
            let (outer_locks, inner_locks) = (locks.clone(), locks.clone());
            let ended = outer_locks.with_write_lock(whole(["a", "b"]), async move |outer| {
                let handle: HeldLock = outer.clone();
                let inner = async move |inner: HeldLock| {
                    (if loses_inner { &inner } else { &handle }).lose();
                    assert!(!inner.is_held() && !handle.is_held());
                    Ok::<_, LockError>(())
                };
                let inner = inner_locks.with_write_lock(whole(["a"]), inner).await;
                assert!(matches!(inner, Err(LockError::Lost { .. })), "{inner:?}");
                assert!(!outer.is_held());
                Ok::<_, LockError>(())
            });
            let ended = ended.await;
            assert!(
                matches!(ended, Err(LockError::Lost { .. })),
                "{strategy}: {ended:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_nested_hold_that_loses_a_shared_transaction_takes_all_of_it_back() {
    let database = database().await;
    let admin = database.connect().await;
    admin.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let locks = postgres_locks_with(database.url(), |it| it).await;
    let locks = locks.share_transaction(true);
    let insert = async |held: &HeldLock| {
        let client = held.transaction().unwrap().client().unwrap();
        client.batch_execute("INSERT INTO t VALUES (1)").await
    };
    let inner_locks = locks.clone();
    let ended = locks.with_write_lock(whole(["a"]), async move |outer: HeldLock| {
        insert(&outer).await.unwrap();
        let inner = inner_locks.with_write_lock(whole(["a"]), async move |inner: HeldLock| {
            insert(&inner).await.unwrap();
            inner.lose();
            Ok::<_, LockError>(())
        });
        let inner = inner.await;
        assert!(matches!(inner, Err(LockError::Lost { .. })), "{inner:?}");
        assert!(outer.ensure_held().is_err());
        Ok::<_, LockError>(())
    });
    let ended = ended.await;
    assert!(matches!(ended, Err(LockError::Lost { .. })), "{ended:?}");
    database.wait_for_granted(realm_key("a"), 0).await;
    let rows = admin.query("SELECT FROM t", &[]).await.unwrap();
    assert!(rows.is_empty());
}

#[tokio::test]
async fn a_hold_that_has_ended_has_nothing_to_lose() {
    let database = database().await;
    for (strategy, [locks, _]) in strategies(&database).await {
        let released = locks.with_write_lock(whole(["a"]), async |held: HeldLock| {
            held.release().await?;
            held.lose();
            Ok::<_, LockError>(held)
        });
        let held = released
            .await
            .unwrap_or_else(|error| panic!("{strategy}: {error}"));
        // Nor does it take the next one's.
        let next = work(&locks, &whole(["a"])).inside().await;
        held.lose();
        next.end().await;
    }
}

#[tokio::test]
async fn a_streamed_body_breaks_off() {
    let database = database().await;
    for (strategy, [locks, _]) in strategies(&database).await {
        let layer = RealmWriteLockLayer::new(locks, realms()).hold_until(HoldUntil::BodyEnd);
        let (show, mut shown) = mpsc::unbounded_channel();
        let handler = service_fn(move |request: Request<String>| {
            let held = request.extensions().get::<HeldLock>().cloned();
            show.send(held).unwrap();
            let frames = stream::pending::<Result<Frame<Bytes>, Infallible>>();
            ready(Ok::<_, Infallible>(Response::new(StreamBody::new(frames))))
        });
        let request = Request::patch(PATH).body(String::new()).unwrap();
        let response = layer.layer(handler).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        shown.recv().await.unwrap().unwrap().lose();
        let body = response.into_body().collect();
        let ended = timeout(PATIENCE, body).await.expect("it ends");
        assert!(ended.is_err(), "{strategy}");
    }
}
