//! A handler that ends its hold itself: its success is confirmed then, and the rest of it runs
//! without the lock.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    Claim, HeldLock, HoldUntil, LockError, RealmLocks, RealmWriteLockLayer, RealmWrites,
};

use crate::support::broadcast::{next_write, telling};
use crate::support::claims::{realm, whole};
use crate::support::contest::{PATH, REALM, claim, contests};
use crate::support::database::database;
use crate::support::gate::{answered, assert_lost, gate, key, patch, postgres_locks_with, realms};
use crate::support::proxy::Proxy;
use crate::support::wait::PATIENCE;
use crate::support::writes::{database_with_writes, insert, written};

fn layer(locks: &RealmLocks) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(locks.clone(), realms())
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

fn assert_ended(result: Result<(), LockError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, LockError::Ended { .. }), "{error}");
}

#[tokio::test]
async fn the_next_writer_enters_while_the_rest_of_the_handler_runs() {
    let database = database().await;
    for contest in contests(&database).await {
        // It bounds the hold, and so no longer the handler.
        let layer = layer(&contest.locks.clone().max_hold(Duration::from_millis(300)));
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let held = call.held.clone().unwrap();
        in_time(held.release()).await.unwrap();
        contest.assert_free().await;
        assert!(!held.is_held());
        assert_ended(held.ensure_held());
        assert_ended(held.spawn(ready(())).await);
        in_time(held.release()).await.expect("the same result");

        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(!call.was_dropped(), "{}", contest.strategy);
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[tokio::test]
async fn the_rest_of_a_handler_can_lock_the_realm_again() {
    for contest in contests(&database().await).await {
        let locks = contest.locks.clone();
        let job = contest
            .locks
            .with_write_lock(claim(), move |held| async move {
                held.release().await?;
                let again = locks.with_write_lock(claim(), |again| async move {
                    assert!(again.is_held());
                    Ok::<_, LockError>(())
                });
                again.await?;
                // It holds nothing now, so that is no wait in a hold.
                let short = locks.acquire_timeout(Duration::from_millis(20));
                let (enter, entered) = oneshot::channel();
                let (end, ended) = oneshot::channel::<()>();
                let other = short.clone();
                let holder = tokio::spawn(async move {
                    let work = |_| async {
                        enter.send(()).unwrap();
                        let _ = ended.await;
                        Ok::<_, LockError>(())
                    };
                    other.with_write_lock(&realm("b"), work).await
                });
                entered.await.unwrap();
                let refused = short
                    .with_write_lock(&realm("b"), |_| async { Ok(()) })
                    .await;
                end.send(()).unwrap();
                holder.await.unwrap().unwrap();
                refused
            });
        let refused = in_time(job).await.unwrap_err();
        assert!(matches!(refused, LockError::Timeout { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn a_shared_transaction_commits_at_the_release() {
    let database = database_with_writes().await;
    let locks = postgres_locks_with(database.url(), |builder| builder).await;
    let layer = layer(&locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let held = call.held.clone().unwrap();
    insert(&held).await;
    in_time(held.release()).await.unwrap();
    assert_eq!(written(&database).await, 1);
    let ended = call.transaction().client().err();
    assert!(matches!(ended, Some(LockError::TransactionEnded { .. })));
    // What comes later changes nothing of it.
    call.answer(500);
    assert_eq!(answered(write).await.status(), 500);
    assert_eq!(written(&database).await, 1);
}

#[tokio::test]
async fn a_transaction_that_cannot_commit_fails_the_release_and_the_call() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder).await;
    let layer = layer(&locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let client = call.transaction().client().unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    drop(client);
    let failed = in_time(call.held.clone().unwrap().release()).await;
    let failed = failed.unwrap_err();
    assert!(matches!(failed, LockError::CommitFailed { .. }), "{failed}");
    call.answer(200);
    let response = answered(write).await;
    assert_eq!(crate::support::gate::code(&response), "commit-failed");
}

#[tokio::test]
async fn a_release_that_is_not_confirmed_is_no_success() {
    let database = database().await;
    for waits in [true, false] {
        let proxy = Proxy::to(database.url()).await;
        let url = proxy.url(database.url());
        let locks = postgres_locks_with(&url, |it| it.lease(Duration::from_secs(2))).await;
        let layer = layer(&locks);
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let held = call.held.clone().unwrap();
        proxy.freeze();
        if waits {
            let lost = in_time(held.release()).await.unwrap_err();
            assert!(matches!(lost, LockError::Lost { .. }), "{lost}");
        } else {
            // Nobody has seen the result.
            assert!(held.release().now_or_never().is_none());
        }
        call.answer(200);
        assert_lost(&answered(write).await);
    }
}

#[tokio::test]
async fn a_lock_that_is_lost_cannot_be_released() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder).await;
    let (give, given) = oneshot::channel();
    let job = tokio::spawn(async move {
        let work = |held: HeldLock| async move {
            give.send(held.clone()).unwrap();
            held.lost().await;
            held.release().await
        };
        locks.with_write_lock(claim(), work).await
    });
    let held: HeldLock = in_time(given).await.unwrap();
    let pid = database.holder_pid(key(PATH)).await.expect("a holder");
    database.terminate(pid).await;
    let lost = in_time(job).await.unwrap().unwrap_err();
    assert!(matches!(lost, LockError::Lost { .. }), "{lost}");
    let lost = held.release().await.unwrap_err();
    assert!(matches!(lost, LockError::Ended { .. }), "{lost}");
}

#[tokio::test]
async fn a_nested_release_gives_back_its_own_share_only() {
    let database = database().await;
    for contest in contests(&database).await {
        let (handler, mut gate) = gate();
        let outer = layer(&contest.locks);
        let write = {
            let inner = layer(&contest.locks).layer(handler);
            let request = Request::patch(PATH).body(String::new()).unwrap();
            tokio::spawn(outer.layer(inner).oneshot(request))
        };
        let call = gate.entered().await;
        let held = call.held.clone().unwrap();
        in_time(held.release()).await.unwrap();
        assert!(!held.is_held());
        let rival = contest.rival_that_waits(&database).await;
        call.answer(200);
        assert_eq!(in_time(write).await.unwrap().unwrap().status(), 200);
        rival.enters().await;
    }
}

#[tokio::test]
async fn work_that_was_started_before_keeps_the_lock() {
    let database = database().await;
    for contest in contests(&database).await {
        let (handler, mut gate) = gate();
        let write = patch(&layer(&contest.locks), &handler, PATH);
        let call = gate.entered().await;
        let held = call.held.clone().unwrap();
        let (go, gone) = oneshot::channel::<()>();
        let task = held.spawn(gone);
        in_time(held.release()).await.unwrap();
        let rival = contest.rival_that_waits(&database).await;
        go.send(()).unwrap();
        task.await.unwrap().unwrap();
        rival.enters().await;
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[tokio::test]
async fn a_release_is_published_though_the_response_is_an_error() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for locks in telling(&database).await {
        let (handler, mut gate) = gate();
        let write = patch(&layer(&locks), &handler, PATH);
        let call = gate.entered().await;
        in_time(call.held.clone().unwrap().release()).await.unwrap();
        let heard = next_write(&mut writes).await;
        assert_eq!(Claim::realm(heard.realm()), whole([REALM]));
        call.answer(500);
        assert_eq!(answered(write).await.status(), 500);
    }
}

#[tokio::test]
async fn a_body_that_goes_on_after_the_release_is_not_cut_off() {
    let database = database().await;
    for contest in contests(&database).await {
        for before_the_head in [true, false] {
            let layer = layer(&contest.locks).hold_until(HoldUntil::BodyEnd);
            let handler = service_fn(move |request: Request<String>| async move {
                let held: HeldLock = request.extensions().get().cloned().unwrap();
                if before_the_head {
                    held.release().await.unwrap();
                }
                let frames = stream::unfold(0, move |n| {
                    let held = held.clone();
                    async move {
                        held.release().await.unwrap();
                        let frame = Frame::data(Bytes::from_static(b"x"));
                        (n < 3).then_some((Ok::<_, Infallible>(frame), n + 1))
                    }
                });
                Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(frames))))
            });
            let request = Request::patch(PATH).body(String::new()).unwrap();
            let response = layer.layer(handler).oneshot(request).await.unwrap();
            let mut body = response.into_body();
            in_time(body.frame()).await.expect("a frame").unwrap();
            contest.assert_free().await;
            let rest = in_time(body.collect()).await.unwrap().to_bytes();
            assert_eq!(rest, "xx", "{}", contest.strategy);
        }
    }
}
