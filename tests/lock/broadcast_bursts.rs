//! While a lock is handed on, the writes of holds that have ended are published together: each once, in order, before its
//! success, and without letting another replica in. What cannot be published is no success.

use std::time::Duration;

use tokio::task::JoinHandle;
use tower_realm_lock::{LockError, RealmLocks, RealmWriteLockLayer, RealmWrites};

use crate::support::broadcast::{expect_interruption, next_write, succeed};
use crate::support::claims::{realm, realm_key, whole, work};
use crate::support::cluster::Cluster;
use crate::support::contest::{PATH, REALM, Room, rival};
use crate::support::database::{TestDatabase, database, database_on, has_sessions, rows};
use crate::support::gate::{
    answered, assert_lost, gate, key, patch, postgres_locks_with, queue, realms,
};
use crate::support::proxy::Proxy;
use crate::support::wait::wait_until;

/// Locks that publish, and may be handed on for ever.
async fn bursting(url: &str, sessions: u32, fencing: bool) -> RealmLocks {
    postgres_locks_with(url, |builder| {
        let builder = builder.sessions(sessions).fencing(fencing).broadcast(true);
        builder
            .max_hand_offs(u32::MAX)
            .max_hand_off_time(Duration::MAX)
    })
    .await
}

#[tokio::test]
async fn a_write_is_published_before_its_success_while_its_lock_is_handed_on() {
    let database = database().await;
    let client = database.connect().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let other = postgres_locks_with(database.url(), |builder| builder).await;
    for sessions in [0, 1] {
        let locks = bursting(database.url(), sessions, false).await;
        let mut inside = work(&locks, &whole([REALM])).inside().await;
        let rival = rival(&other, &Room::default(), REALM);
        database.wait_for_waiting(realm_key(REALM), 1).await;
        for _ in 0..5 {
            let next = work(&locks, &whole([REALM]));
            wait_until("the next one waits", async || locks.status().len() == 2).await;
            inside.end().await;
            let mark = "NOTIFY tower_realm_lock, 'nonsense'";
            client.batch_execute(mark).await.unwrap();
            assert_eq!(next_write(&mut writes).await.realm(), &realm(REALM));
            expect_interruption(&mut writes).await;
            inside = next.inside().await;
            rival.assert_waits("in a burst");
        }
        inside.end().await;
        assert_eq!(next_write(&mut writes).await.realm(), &realm(REALM));
        rival.enters().await;
    }
}

#[tokio::test]
async fn each_write_of_a_burst_is_one_event() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for (sessions, fencing) in [(0, false), (0, true), (1, false), (1, true)] {
        let locks = bursting(database.url(), sessions, fencing).await;
        let burst: Vec<JoinHandle<_>> = (0..500)
            .map(|_| {
                let locks = locks.clone();
                tokio::spawn(async move {
                    let write = |held: tower_realm_lock::HeldLock| async move {
                        Ok::<_, LockError>(held.fencing_token())
                    };
                    locks.with_write_lock(whole([REALM]), write).await
                })
            })
            .collect();
        let mut tokens = Vec::new();
        for write in burst {
            tokens.push(write.await.unwrap().unwrap());
        }
        tokens.sort();
        for token in tokens {
            let write = next_write(&mut writes).await;
            assert_eq!((write.realm(), write.token()), (&realm(REALM), token));
        }
        succeed(&locks, "last").await;
        assert_eq!(next_write(&mut writes).await.realm(), &realm("last"));
    }
}

#[tokio::test]
async fn a_burst_whose_lock_is_lost_has_neither_successes_nor_events() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for sessions in [0, 1] {
        let locks = bursting(&proxy.url(database.url()), sessions, true).await;
        let layer = RealmWriteLockLayer::new(locks, realms());
        let (handler, mut gate) = gate();
        let mut burst = vec![patch(&layer, &handler, PATH)];
        let first = gate.entered().await;
        burst.extend((0..3).map(|_| queue(&layer, &handler, PATH)));
        proxy.freeze_requests();
        first.answer(200);
        gate.entered().await.answer(200);
        let mut running = gate.entered().await;
        proxy.cut();
        running.dropped().await;
        let next = burst.split_off(3);
        for write in burst {
            assert_lost(&answered(write).await);
        }

        proxy.thaw();
        let call = gate.entered().await;
        let token = call.held.as_ref().unwrap().fencing_token();
        call.answer(200);
        for write in next {
            assert_eq!(answered(write).await.status(), 200);
        }
        assert_eq!(next_write(&mut writes).await.token(), token);
    }
}

/// Keeps a COMMIT with a NOTIFY waiting, so that those of all others wait for it.
async fn block_notices(database: &TestDatabase) -> JoinHandle<()> {
    let admin = database.connect().await;
    for change in [
        "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
        "SELECT pg_reload_conf()",
    ] {
        admin.batch_execute(change).await.unwrap();
    }
    let client = database.connect().await;
    let blocker = tokio::spawn(async move {
        // Until the server waits for the standby.
        let commit = "BEGIN; SET LOCAL synchronous_commit = on; \
             SELECT pg_logical_emit_message(true, 'a', 'b'); NOTIFY a; COMMIT";
        while client.batch_execute(commit).await.is_ok() {}
    });
    wait_until("a COMMIT that waits", async || {
        let waits = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        !rows(&admin, waits).await.is_empty()
    })
    .await;
    blocker
}

#[tokio::test]
async fn a_failed_commit_in_a_burst_is_no_success_and_leaves_no_lock_behind() {
    let cluster = Cluster::create_primary().await;
    let database = database_on(&cluster).await;
    let blocker = block_notices(&database).await;
    let admin = database.connect().await;
    let kinds = if has_sessions(&admin).await { 2 } else { 1 };
    for sessions in 0..kinds {
        let locks = bursting(database.url(), sessions, false).await;
        let layer = RealmWriteLockLayer::new(locks, realms());
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let first = gate.entered().await;
        let next = queue(&layer, &handler, PATH);
        first.answer(200);
        let mut running = gate.entered().await;
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted \
             AND locktype = 'object' AND classid = 'pg_database'::regclass";
        wait_until("a publication that waits", async || {
            assert_eq!(database.advisory_locks(key(PATH)).await, (1, 0));
            !rows(&admin, cancel).await.is_empty()
        })
        .await;
        assert_lost(&answered(write).await);
        if sessions == 0 {
            // Its transaction failed, and with it the lock.
            running.dropped().await;
            assert_lost(&answered(next).await);
        } else {
            running.answer(404);
            assert_eq!(answered(next).await.status(), 404);
        }
        database.wait_for_granted(key(PATH), 0).await;
    }
    blocker.abort();
}
