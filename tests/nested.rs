//! A realm's lock within the same realm's lock: nested use runs straight through, and another realm's wait is bounded.

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use support::claims::{cards, realm, whole};
use support::database::{TestDatabase, database};
use support::gate::{key, postgres_locks_with, realms};
use tokio::sync::Barrier;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{Claim, HeldLock, LockError, RealmLocks, RealmWriteLockLayer};

async fn locks(database: &TestDatabase) -> RealmLocks {
    postgres_locks_with(database.url(), |builder| builder.pool_size(2))
        .await
        .acquire_timeout(Duration::from_secs(2))
}

#[tokio::test]
async fn a_layer_in_a_layer_and_a_job_in_a_handler_run_straight_through() {
    let database = database().await;
    for locks in [locks(&database).await, RealmLocks::in_process()] {
        let layer = RealmWriteLockLayer::new(locks.clone(), realms());
        let handler = service_fn(move |request: Request<String>| {
            let locks = locks.clone();
            async move {
                let outer: HeldLock = request.extensions().get().cloned().unwrap();
                let realm = realm("a");
                let nested = locks.with_write_lock(&realm, |inner| async move {
                    assert!(inner.is_held());
                    Ok::<_, LockError>(inner.claim().clone())
                });
                assert_eq!(nested.await.unwrap(), *outer.claim());
                assert!(outer.is_held(), "the inner end did not release");
                Ok::<_, Infallible>(Response::new(String::from("done")))
            }
        });
        let service = layer.layer(layer.layer(handler));
        let request = Request::patch("/luke/a/card").body(String::new()).unwrap();
        assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
    }
    database.wait_for_granted(key("/luke/a"), 0).await;
}

#[tokio::test]
async fn another_realm_in_a_hold_is_granted_and_its_wait_is_bounded_and_names_both() {
    let database = database().await;
    let locks = locks(&database).await;
    let inner = locks.clone();
    locks
        .with_write_lock(&realm("a"), move |_| async move {
            inner
                .with_write_lock(&realm("b"), |_| async { Ok::<_, LockError>(()) })
                .await
        })
        .await
        .unwrap();

    let holder = database.connect().await;
    let lock = format!("SELECT pg_advisory_lock({})", key("/luke/b"));
    holder.batch_execute(&lock).await.unwrap();
    let inner = locks.clone().acquire_timeout(Duration::from_millis(100));
    let stuck = locks
        .with_write_lock(&realm("a"), move |_| async move {
            inner
                .with_write_lock(&realm("b"), |_| async { Ok::<_, LockError>(()) })
                .await
        })
        .await
        .unwrap_err();
    assert!(
        matches!(stuck.innermost(), LockError::Timeout { .. }),
        "{stuck}"
    );
    let text = stuck.to_string();
    assert!(
        text.contains(realm("a").as_str()) && text.contains(realm("b").as_str()),
        "{text}"
    );
}

#[tokio::test]
async fn two_that_wait_for_each_other_both_end() {
    let database = database().await;
    let locks = locks(&database)
        .await
        .acquire_timeout(Duration::from_millis(300));
    let barrier = Arc::new(Barrier::new(2));
    let cross = |first: &'static str, second: &'static str| {
        let (outer, inner) = (locks.clone(), locks.clone());
        let barrier = barrier.clone();
        async move {
            outer
                .with_write_lock(&realm(first), move |_| async move {
                    barrier.wait().await;
                    inner
                        .with_write_lock(&realm(second), |_| async { Ok::<_, LockError>(()) })
                        .await
                })
                .await
        }
    };
    let (one, two) = tokio::join!(cross("a", "b"), cross("b", "a"));
    assert!(one.is_err() || two.is_err());
    for realm in ["/luke/a", "/luke/b"] {
        database.wait_for_granted(key(realm), 0).await;
    }
}

#[tokio::test]
async fn other_tasks_and_other_locks_do_not_run_through() {
    let one = RealmLocks::in_process().acquire_timeout(Duration::from_millis(50));
    let separate = one_that_is_busy().await;
    let (spawning, inside) = (one.clone(), separate.clone());
    one.with_write_lock(&realm("a"), move |_| async move {
        let task = tokio::spawn(async move {
            spawning
                .with_write_lock(&realm("a"), |_| async { Ok::<_, LockError>(()) })
                .await
        });
        let refused = task.await.unwrap();
        assert!(
            matches!(refused, Err(LockError::Timeout { .. })),
            "{refused:?}"
        );
        let refused = inside
            .with_write_lock(&realm("a"), |_| async { Ok::<_, LockError>(()) })
            .await;
        assert!(
            matches!(refused, Err(LockError::Nested { .. })),
            "{refused:?}"
        );
        Ok::<_, LockError>(())
    })
    .await
    .unwrap();
}

/// Locks of their own, whose realm `a` is held by another task.
async fn one_that_is_busy() -> RealmLocks {
    let locks = RealmLocks::in_process().acquire_timeout(Duration::from_millis(50));
    let holder = locks.clone();
    let (inside, is_inside) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        holder
            .with_write_lock(&realm("a"), |_| async {
                inside.send(()).unwrap();
                std::future::pending::<Result<(), LockError>>().await
            })
            .await
    });
    is_inside.await.unwrap();
    locks
}

/// Asks for `inner` within a hold of `outer`.
async fn within(locks: &RealmLocks, outer: Claim, inner: Claim) -> Result<Claim, LockError> {
    let nested = locks.clone();
    let work = move |_| async move {
        let work = |held: HeldLock| async move { Ok::<_, LockError>(held.claim().clone()) };
        nested.with_write_lock(inner, work).await
    };
    locks.with_write_lock(outer, work).await
}

#[tokio::test]
async fn a_part_of_what_is_held_is_held() {
    let database = database().await;
    for locks in [locks(&database).await, RealmLocks::in_process()] {
        for (outer, inner) in [
            (whole(["a", "b"]), whole(["b"])),
            (whole(["a"]), cards("a", ["x"])),
            (whole(["a"]), cards("a", [])),
            (cards("a", ["x", "y"]), cards("a", ["y"])),
        ] {
            let held = within(&locks, outer.clone(), inner).await.unwrap();
            assert_eq!(held, outer);
        }
    }
}

#[tokio::test]
async fn more_of_what_is_held_in_part_is_refused_at_once_instead_of_waiting_for_itself() {
    let locks = RealmLocks::in_process().acquire_timeout(Duration::from_secs(3600));
    for (outer, inner) in [
        (cards("a", ["x"]), whole(["a"])),
        (cards("a", ["x"]), cards("a", ["x", "y"])),
        (cards("a", ["x"]), cards("a", ["y"])),
        (whole(["a"]), whole(["a", "b"])),
    ] {
        let refused = within(&locks, outer.clone(), inner.clone())
            .await
            .unwrap_err();
        assert!(matches!(refused, LockError::OwnLock { .. }), "{refused}");
        let text = refused.to_string();
        assert!(
            text.contains(&outer.to_string()) && text.contains(&inner.to_string()),
            "{text}"
        );
    }
}
