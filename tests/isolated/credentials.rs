//! Passwords that change: each new connection asks for its own, a wrong one is one clear error, and connections do not
//! live for ever.

use std::error::Error;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tower_realm_lock::{
    ConnectError, LockError, PostgresBuilder, RealmLocks, RealmUrl, RealmWriteLockLayer,
};

use super::passwords::{PASSWORD, guarded};
use crate::support::database::{TestDatabase, database, has_sessions};
use crate::support::gate::{ORIGIN, answered, code, gate, key, patch, postgres_layer_with, realms};
use crate::support::wait::{PATIENCE, wait_until};

const PATH: &str = "/luke/a/card";
const OTHER: &str = "/luke/b/card";

/// The shortest lifetime that there is.
const SHORT: Duration = Duration::from_millis(100);

/// A secret that a test changes, and how often it was asked for.
#[derive(Clone)]
struct Secret(Arc<(Mutex<String>, AtomicUsize)>);

impl Secret {
    fn new(password: &str) -> Self {
        Self(Arc::new((Mutex::new(password.into()), AtomicUsize::new(0))))
    }

    fn set(&self, password: &str) {
        *self.0.0.lock().unwrap() = password.into();
    }

    fn asked(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }

    /// Locks of the user `guarded`, who has no password in the URL, or a wrong one.
    fn locks(&self, database: &TestDatabase, wrong: &str) -> PostgresBuilder {
        let url = database.url();
        let url = url.replace("postgres@", &format!("guarded{wrong}@"));
        let secret = self.clone();
        RealmLocks::postgres_builder(&url).password_from(move || {
            let secret = secret.clone();
            async move {
                secret.0.1.fetch_add(1, Ordering::SeqCst);
                // Like a service that must be asked.
                tokio::task::yield_now().await;
                Ok::<_, LockError>(secret.0.0.lock().unwrap().clone())
            }
        })
    }
}

/// Locks one realm; returns nothing, or why it was not locked.
async fn lock(locks: &RealmLocks) -> Result<(), LockError> {
    let realm = RealmUrl::parse(&format!("{ORIGIN}/luke/a/")).unwrap();
    let work = async |_| Ok::<_, LockError>(());
    locks.with_write_lock(&realm, work).await
}

#[tokio::test]
async fn every_new_connection_asks_for_its_password() {
    let (_cluster, database) = guarded().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let secret = Secret::new(PASSWORD);
    // The one in the URL does not count.
    let builder = secret
        .locks(&database, ":wrong")
        .sessions(1)
        .broadcast(true);
    let _writes = builder.listen().await.unwrap();
    assert_eq!(secret.asked(), 1);
    let locks = builder.build().await.unwrap();
    assert_eq!(secret.asked(), 3, "a pooled connection, and a session");
    let layer = RealmWriteLockLayer::new(locks, realms());
    // The pool's first connection, and a new one for the next.
    let layer = layer.map_locks(|locks| locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let second = patch(&layer, &handler, OTHER);
    gate.entered().await.answer(200);
    call.answer(200);
    for write in [first, second] {
        assert_eq!(answered(write).await.status(), 200);
    }
    assert_eq!(secret.asked(), 4);
}

#[tokio::test]
async fn a_wrong_password_after_a_rotation_is_one_clear_error_until_it_is_right() {
    for sessions in [0, 1] {
        let (_cluster, database) = guarded().await;
        let admin = database.connect().await;
        if sessions > 0 && !has_sessions(&admin).await {
            continue;
        }
        let secret = Secret::new(PASSWORD);
        let builder = secret.locks(&database, "").sessions(sessions);
        let locks = builder.build().await.unwrap();
        // Nothing below waits for that.
        let locks = locks.acquire_timeout(6 * PATIENCE);
        let layer = RealmWriteLockLayer::new(locks.clone(), realms());
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let rotate = "ALTER ROLE guarded PASSWORD 'next'";
        admin.batch_execute(rotate).await.unwrap();
        // Whoever is logged in stays so.
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
        lock(&locks).await.unwrap();

        let all =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guarded'";
        admin.batch_execute(all).await.unwrap();
        wait_until("the end of all connections", async || {
            let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'guarded'";
            admin.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
        for attempt in 0..3 {
            let refused = timeout(PATIENCE, lock(&locks)).await.expect("at once");
            let LockError::Connect(refused) = refused.unwrap_err() else {
                // A connection whose end has not been noticed yet.
                assert_eq!(attempt, 0);
                continue;
            };
            let refused = refused.to_string();
            for part in [
                database.name(),
                "password authentication failed for user \"guarded\"",
                "correct the user or the password",
                "`password_from`",
            ] {
                assert!(refused.contains(part), "{refused}");
            }
        }
        let response = answered(patch(&layer, &handler, OTHER)).await;
        assert_eq!(code(&response), "lock-unavailable");
        assert!(gate.is_empty());

        secret.set("next");
        let write = patch(&layer, &handler, OTHER);
        gate.entered().await.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[tokio::test]
async fn a_password_that_cannot_be_had_is_an_error_with_its_cause() {
    let (_cluster, database) = guarded().await;
    let url = database.url().replace("postgres@", "guarded@");
    let builder = RealmLocks::postgres_builder(&url);
    let fails = builder
        .clone()
        .password_from(|| async { Err::<String, _>("the vault is sealed") });
    let refused = fails.build().await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Password { .. }),
        "{refused}"
    );
    let message = refused.to_string();
    for part in [database.name(), "`password_from`", "the vault is sealed"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(refused.source().unwrap().to_string(), "the vault is sealed");

    let hangs = builder
        .clone()
        .connect_timeout(Duration::from_millis(300))
        .password_from(pending::<Result<String, LockError>>);
    let refused = hangs.build().await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::ConnectTimeout { .. }),
        "{refused}"
    );

    // More often than the pool has places.
    let asked = AtomicUsize::new(0);
    let panics = builder.pool_size(1).password_from(move || {
        assert!(asked.fetch_add(1, Ordering::SeqCst) >= 2, "not yet");
        async { Ok::<_, LockError>(PASSWORD.to_owned()) }
    });
    let locks = panics.build_lazy().unwrap();
    for _ in 0..2 {
        let refused = lock(&locks).await.unwrap_err();
        assert!(refused.to_string().contains("it panicked"), "{refused}");
    }
    lock(&locks).await.unwrap();
}

/// The process that holds a realm while a write is inside.
async fn holder(layer: &RealmWriteLockLayer, database: &TestDatabase) -> i32 {
    let (handler, mut gate) = gate();
    let write = patch(layer, &handler, PATH);
    let call = gate.entered().await;
    let pid = database.holder_pid(key(PATH)).await.unwrap();
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    pid
}

async fn is_there(database: &TestDatabase, pid: i32) -> bool {
    let there = "SELECT FROM pg_stat_activity WHERE pid = $1";
    let there = database.connect().await.query_opt(there, &[&pid]).await;
    there.unwrap().is_some()
}

#[tokio::test]
async fn a_connection_past_its_lifetime_is_replaced_between_two_holds() {
    for sessions in [0, 1] {
        let database = database().await;
        let layer = async |lifetime| {
            postgres_layer_with(database.url(), |builder| {
                let builder = builder.sessions(sessions).max_hand_offs(0);
                builder.max_connection_lifetime(lifetime)
            })
            .await
        };
        let lasting = layer(Duration::from_secs(600)).await;
        let first = holder(&lasting, &database).await;
        assert_eq!(holder(&lasting, &database).await, first);
        let brief = layer(SHORT).await;
        let first = holder(&brief, &database).await;
        sleep(SHORT).await;
        assert_ne!(holder(&brief, &database).await, first);
        wait_until("the old connection's end", async || {
            !is_there(&database, first).await
        })
        .await;
    }
}

#[tokio::test]
async fn a_session_past_its_lifetime_keeps_its_holds_and_takes_no_other() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| {
        builder.sessions(1).max_connection_lifetime(SHORT)
    })
    .await;
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, PATH);
    let old = gate.entered().await;
    let old_pid = database.holder_pid(key(PATH)).await.unwrap();
    sleep(SHORT).await;
    let second = patch(&layer, &handler, OTHER);
    let new = gate.entered().await;
    assert_ne!(database.holder_pid(key(OTHER)).await.unwrap(), old_pid);
    assert_eq!(database.holder_pid(key(PATH)).await.unwrap(), old_pid);
    // Another claim for what the old one holds waits for it.
    let third = patch(&layer, &handler, PATH);
    for (call, write) in [(new, second), (old, first)] {
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
    gate.entered().await.answer(200);
    assert_eq!(answered(third).await.status(), 200);
    wait_until("the old session's end", async || {
        !is_there(&database, old_pid).await
    })
    .await;
}
