//! A lock that is only tried: granted at once, or refused at once.

use std::time::Duration;

use tokio::time::timeout;
use tower_realm_lock::{Claim, HeldLock, LockError, RealmLocks, RealmWriteLockLayer};

use crate::support::claims::{cards, realm_key, whole, work};
use crate::support::contest::{Contest, PATH, REALM, claim, contests};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{answered, code, gate, patch, realms};
use crate::support::wait::PATIENCE;

/// Less than a try waits for PostgreSQL's answer.
const AT_ONCE: Duration = Duration::from_millis(2500);

/// Tries a claim; whether it was granted.
async fn tries(locks: &RealmLocks, claim: &Claim) -> bool {
    let work = |held: HeldLock| async move { Ok::<_, LockError>(held.is_held()) };
    let tried = locks.try_with_write_lock(claim, work);
    let tried = timeout(AT_ONCE, tried).await.expect("at once");
    let done = tried.expect("granted or taken");
    assert_ne!(done, Some(false), "it ran without its lock");
    done.is_some()
}

async fn everywhere(test: impl AsyncFn(&TestDatabase, &Contest)) {
    let database = database().await;
    for contest in contests(&database).await {
        test(&database, &contest).await;
        contest.assert_free().await;
    }
}

#[tokio::test]
async fn a_claim_is_taken_while_it_is_held_in_the_process_or_elsewhere() {
    everywhere(async |database, contest| {
        // So long a wait would not pass unnoticed.
        let locks = contest.locks.clone().acquire_timeout(Duration::MAX);
        for holder in [&contest.locks, &contest.other] {
            assert!(tries(&locks, &claim()).await, "{}", contest.strategy);
            let inside = work(holder, &claim()).inside().await;
            for _ in 0..3 {
                assert!(!tries(&locks, &claim()).await, "{}", contest.strategy);
            }
            if contest.is_in_database() {
                let (held, waiting) = database.advisory_locks(realm_key(REALM)).await;
                assert_eq!((held, waiting), (1, 0), "{}", contest.strategy);
            }
            inside.end().await;
        }
        assert!(tries(&locks, &claim()).await, "{}", contest.strategy);
    })
    .await;
}

#[tokio::test]
async fn of_several_realms_none_is_locked_if_one_is_taken() {
    everywhere(async |_, contest| {
        let inside = work(&contest.other, &whole(["b"])).inside().await;
        assert!(!tries(&contest.locks, &whole(["a", "b"])).await);
        assert!(!tries(&contest.locks, &whole(["b", "c"])).await);
        assert!(tries(&contest.other, &whole(["a", "c"])).await);
        inside.end().await;
        assert!(tries(&contest.locks, &whole(["a", "b", "c"])).await);
    })
    .await;
}

#[tokio::test]
async fn resources_of_one_realm_are_tried_apart() {
    everywhere(async |_, contest| {
        let inside = work(&contest.other, &cards(REALM, ["x"])).inside().await;
        assert!(tries(&contest.locks, &cards(REALM, ["y"])).await);
        assert!(!tries(&contest.locks, &cards(REALM, ["x", "y"])).await);
        assert!(!tries(&contest.locks, &claim()).await);
        inside.end().await;
        let inside = work(&contest.other, &claim()).inside().await;
        assert!(!tries(&contest.locks, &cards(REALM, ["y"])).await);
        inside.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_waiter_behind_a_try_that_failed_still_gets_the_lock() {
    everywhere(async |_, contest| {
        let inside = work(&contest.other, &claim()).inside().await;
        let mut waits = work(&contest.locks, &claim());
        assert!(!tries(&contest.locks, &claim()).await);
        assert!(waits.waits());
        inside.end().await;
        waits.inside().await.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_layer_that_only_tries_rejects_at_once() {
    everywhere(async |_, contest| {
        let locks = contest.locks.clone().acquire_timeout(Duration::ZERO);
        let layer = RealmWriteLockLayer::new(locks, realms());
        for holder in [&contest.locks, &contest.other] {
            let inside = work(holder, &claim()).inside().await;
            let (handler, mut gate) = gate();
            let response = answered(patch(&layer, &handler, PATH));
            let response = timeout(AT_ONCE, response).await.expect("at once");
            assert_eq!(response.status(), 503);
            assert_eq!(code(&response), "lock-timeout");
            assert!(response.headers().contains_key("retry-after"));
            inside.end().await;
            let write = patch(&layer, &handler, PATH);
            gate.entered().await.answer(200);
            assert_eq!(answered(write).await.status(), 200);
        }
    })
    .await;
}

#[tokio::test]
async fn errors_of_the_work_and_of_the_locks_are_no_taken_lock() {
    let locks = RealmLocks::in_process();
    let failed = locks
        .try_with_write_lock(claim(), |_| async { Err::<(), _>(LockError::ShuttingDown) })
        .await;
    assert!(matches!(failed, Err(LockError::ShuttingDown)));
    let nested = locks.clone();
    let done = locks
        .try_with_write_lock(claim(), |_| async move {
            // Its own task has it, so it is not taken.
            nested
                .try_with_write_lock(claim(), |_| async { Ok::<_, LockError>(7) })
                .await
        })
        .await;
    assert_eq!(done.unwrap(), Some(Some(7)));
    locks.shutdown(PATIENCE).await.unwrap();
    let refused = locks
        .try_with_write_lock(claim(), |_| async { Ok(()) })
        .await;
    assert!(matches!(refused, Err(LockError::ShuttingDown)));
}
