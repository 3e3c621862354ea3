//! Replicas tell each other of successful writes: after their holds have ended, and only of those that succeeded.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    HoldUntil, LockError, LockKey, PostgresBuilder, RealmWriteLockLayer, RealmWrites,
};

use crate::support::broadcast::{next_write, succeed, telling};
use crate::support::claims::{cards, realm, realm_key, whole, work};
use crate::support::database::database;
use crate::support::gate::{
    answered, gate, patch, postgres_layer_with, postgres_locks_with, realms,
};
use crate::support::wait::PATIENCE;

#[tokio::test]
async fn a_write_is_told_with_all_that_is_known_of_it() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for locks in telling(&database).await {
        let told = locks.with_write_lock(whole(["a"]), |held| async move {
            Ok::<_, LockError>(held.fencing_token())
        });
        let token = told.await.unwrap();
        let write = next_write(&mut writes).await;
        assert_eq!((write.realm(), write.path()), (&realm("a"), None));
        assert!(token.is_some() && write.token() == token);
        assert_eq!(write.sender(), locks.sender());

        let both = cards("b", ["x", "it's \\ \"*\"/ü"]).and(&whole(["c"]));
        work(&locks, &both).inside().await.end().await;
        let mut told = Vec::new();
        for _ in 0..3 {
            let write = next_write(&mut writes).await;
            told.push((write.realm().clone(), write.path().map(str::to_owned)));
        }
        let path = |path: &str| Some(path.to_owned());
        assert_eq!(
            told,
            [
                (realm("b"), path("x")),
                (realm("b"), path("it's \\ \"*\"/ü")),
                (realm("c"), None)
            ]
        );

        // What is about no realm is nobody's concern.
        work(&locks, &LockKey::in_space("user-cost", 1).unwrap().into())
            .inside()
            .await
            .end()
            .await;
        assert!(writes.next().now_or_never().is_none());
    }
}

#[tokio::test]
async fn what_did_not_succeed_is_not_told() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for sessions in [0, 1] {
        for confirm in [true, false] {
            let layer = postgres_layer_with(database.url(), |builder| {
                builder.sessions(sessions).broadcast(true)
            })
            .await
            .confirm(confirm);
            let (handler, mut gate) = gate();
            for status in [404, 500, 200] {
                let write = patch(&layer, &handler, &format!("/luke/{status}/card"));
                gate.entered().await.answer(status);
                assert_eq!(answered(write).await.status(), status);
            }
            let fails = patch(&layer, &handler, "/luke/fails/card");
            gate.entered().await.fail();
            assert!(fails.await.unwrap().is_err());
            let panics = patch(&layer, &handler, "/luke/panics/card");
            gate.entered().await.panic();
            assert!(panics.await.unwrap_err().is_panic());
            let last = patch(&layer, &handler, "/luke/last/card");
            gate.entered().await.answer(204);
            assert_eq!(answered(last).await.status(), 204);
            for name in ["200", "last"] {
                assert_eq!(next_write(&mut writes).await.realm(), &realm(name));
            }
        }
    }
}

#[tokio::test]
async fn it_is_told_when_the_lock_is_free_and_not_before() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for locks in telling(&database).await {
        for _ in 0..50 {
            succeed(&locks, "a").await;
            assert_eq!(next_write(&mut writes).await.realm(), &realm("a"));
            // Nobody else wants it, so that whoever still had it would be the writer.
            assert_eq!(database.advisory_locks(realm_key("a")).await, (0, 0));
        }
    }
}

#[tokio::test]
async fn each_write_of_a_busy_realm_is_told_though_locks_are_handed_on() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for locks in telling(&database).await {
        let first = work(&locks, &whole(["a"])).inside().await;
        let others: Vec<_> = (0..20)
            .map(|number| {
                let locks = locks.clone();
                tokio::spawn(async move {
                    let work = move |held: tower_realm_lock::HeldLock| async move {
                        // Every second one fails.
                        if number % 2 == 0 {
                            Ok(held.fencing_token())
                        } else {
                            Err(LockError::ShuttingDown)
                        }
                    };
                    locks.with_write_lock(&realm("a"), work).await
                })
            })
            .collect();
        first.end().await;
        next_write(&mut writes).await;
        let mut tokens = Vec::new();
        for other in others {
            tokens.extend(other.await.unwrap().ok());
        }
        tokens.sort();
        let mut told = Vec::new();
        for _ in 0..tokens.len() {
            told.push(next_write(&mut writes).await.token());
        }
        assert_eq!(told, tokens, "in the order of the writes");
    }
}

#[tokio::test]
async fn a_shared_transaction_that_does_not_commit_is_not_told() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let locks = postgres_locks_with(database.url(), |builder| builder.broadcast(true))
        .await
        .share_transaction(true);
    for statement in ["SELECT 1", "SELECT 1 / 0", "COMMIT"] {
        let done = locks.with_write_lock(whole(["a"]), move |held| async move {
            let client = held.transaction().unwrap().client().unwrap();
            let _ = client.batch_execute(statement).await;
            Ok::<_, LockError>(())
        });
        assert_eq!(done.await.is_ok(), statement == "SELECT 1", "{statement}");
    }
    next_write(&mut writes).await;
    succeed(&locks, "b").await;
    assert_eq!(next_write(&mut writes).await.realm(), &realm("b"));
}

#[tokio::test]
async fn a_write_that_cannot_be_told_is_no_success_and_frees_its_lock() {
    let database = database().await;
    let client = database.connect().await;
    let broken = "CREATE SCHEMA broken; CREATE FUNCTION broken.pg_notify(text, text) RETURNS void \
         LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the queue is full'; END $$";
    client.batch_execute(broken).await.unwrap();
    let mark = if database.url().contains('?') {
        '&'
    } else {
        '?'
    };
    let url = format!(
        "{}{mark}options=-csearch_path%3Dbroken,pg_catalog",
        database.url()
    );
    for sessions in [0, 1] {
        let locks = postgres_locks_with(&url, |builder| {
            builder.sessions(sessions).pool_size(1).broadcast(true)
        })
        .await;
        for _ in 0..10 {
            let told = locks.with_write_lock(whole(["a"]), |_| async { Ok::<_, LockError>(()) });
            // With transactions it asks on the same connection, behind the COMMIT that is refused.
            let untold = LockKey::in_space("user-cost", 1).unwrap();
            let untold = locks.with_write_lock(untold, |_| async { Ok::<_, LockError>(()) });
            let (told, untold) = tokio::join!(told, untold);
            assert!(matches!(told, Err(LockError::Lost { .. })), "{told:?}");
            untold.expect("what publishes nothing is not affected");
            database.wait_for_granted(realm_key("a"), 0).await;
        }
        let nested = locks.clone();
        let (ended, mut end) = mpsc::unbounded_channel();
        let outer = locks.with_write_lock(whole(["a"]), move |_| async move {
            let told = nested.with_write_lock(whole(["a"]), |_| async { Ok::<_, LockError>(()) });
            ended.send(told.await.is_ok()).unwrap();
            Err::<(), _>(LockError::ShuttingDown)
        });
        outer.await.unwrap_err();
        // The outer work may be dropped before that, as its lock is lost.
        assert_ne!(end.recv().await, Some(true), "a nested success");
        database.wait_for_granted(realm_key("a"), 0).await;
    }
}

#[tokio::test]
async fn a_streamed_write_whose_client_left_after_the_head_is_told() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let layer = postgres_layer_with(database.url(), |builder| builder.broadcast(true))
        .await
        .hold_until(HoldUntil::BodyEnd);
    let service = layer.layer(service_fn(async |_: Request<String>| {
        let first = Frame::data(Bytes::from("written"));
        let frames = stream::iter([Ok::<_, Infallible>(first)]).chain(stream::pending());
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    }));
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    assert_eq!(next_write(&mut writes).await.realm(), &realm("a"));
}

#[tokio::test]
async fn without_confirmation_a_known_loss_is_no_success_all_the_same() {
    const LEASE: Duration = Duration::from_millis(300);
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| builder.lease(LEASE))
        .await
        .confirm(false);
    let service = layer.layer(service_fn(async |_: Request<String>| {
        // One long step, as of a handler that reads a great document.
        std::thread::sleep(LEASE);
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(response.status(), 503);
}

#[test]
fn a_shutdown_waits_until_writes_without_confirmation_are_told() {
    let listening = tokio::runtime::Runtime::new().unwrap();
    let (database, mut writes) = listening.block_on(async {
        let database = database().await;
        let writes = RealmWrites::listen(database.url()).await.unwrap();
        (database, writes)
    });
    for sessions in [0, 1] {
        let serving = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        serving.block_on(async {
            let options = |builder: PostgresBuilder| builder.broadcast(true).sessions(sessions);
            let locks = postgres_locks_with(database.url(), options).await;
            let layer = RealmWriteLockLayer::new(locks.clone(), realms()).confirm(false);
            let service = layer.layer(service_fn(async |_: Request<String>| {
                Ok::<_, Infallible>(Response::new(String::new()))
            }));
            assert_eq!(service.oneshot(request()).await.unwrap().status(), 200);
            locks.shutdown(PATIENCE).await.unwrap();
        });
        // The process ends: nothing of its own runs any more.
        drop(serving);
        let told = listening.block_on(next_write(&mut writes));
        assert_eq!(told.realm(), &realm("a"));
    }
}

fn request() -> Request<String> {
    Request::patch("/luke/a/card").body(String::new()).unwrap()
}
