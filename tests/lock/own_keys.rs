//! Keys that other programs chose: numbers, pairs of numbers, and keys of realms that are not made
//! of their URLs.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http::Method;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tower_realm_lock::{
    Claim, LockError, LockErrorKind, LockKey, RealmLocks, RealmUrl, RealmWriteLockLayer,
};

use crate::support::claims::{Work, cards, realm, realm_key, strategies, whole, work};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{answered, code, gate, key, patch, postgres_locks_with, realms};
use crate::support::wait::{PATIENCE, wait_until};

/// How many sessions hold this key, or wait for it, as `pg_locks` shows keys of its kind.
async fn shown(database: &TestDatabase, key: LockKey, granted: bool) -> i64 {
    let (of_kind, key) = match key.pair() {
        Some((first, second)) => ("objsubid = 2", format!("{first}, {second}")),
        None => ("objsubid = 1", key.to_string()),
    };
    let shown = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted = {granted} \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND {of_kind} AND '{key}' = CASE objsubid \
             WHEN 1 THEN (classid::bigint << 32 | objid::bigint)::text \
             ELSE format('%s, %s', classid::int, objid::int) END"
    );
    let client = database.connect().await;
    client.query_one(&shown, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_number_and_a_pair_exclude_those_who_lock_them_by_hand_and_nobody_else() {
    let database = database().await;
    let numbers = [4711, i64::MIN, i64::MAX].map(LockKey::from_raw);
    let pairs = [(47, 11), (-1, -1), (i32::MIN, i32::MIN)];
    let pairs = pairs.map(|(first, second)| LockKey::from_pair(first, second));
    for (strategy, [one, other]) in strategies(&database).await {
        if strategy == "in process" {
            continue;
        }
        for key in numbers.into_iter().chain(pairs) {
            let arguments = key.to_string();
            let arguments = arguments.trim_matches(['(', ')']).replace(", ", "', '");
            let claim = Claim::from(key);
            let inside = work(&one, &claim).inside().await;
            assert_eq!(shown(&database, key, true).await, 1, "{strategy} {key}");
            let by_hand = database.connect().await;
            let tried = format!("SELECT pg_try_advisory_lock('{arguments}')");
            let is_free = async || {
                by_hand
                    .query_one(&tried, &[])
                    .await
                    .unwrap()
                    .get::<_, bool>(0)
            };
            assert!(!is_free().await, "{strategy} {key}");
            let mut waiting = work(&other, &claim);
            // The same bits, as the other kind of key.
            let twin = match key.pair() {
                Some((first, second)) => {
                    LockKey::from_raw(i64::from(first) << 32 | i64::from(second.cast_unsigned()))
                }
                None => LockKey::from_pair(
                    i32::try_from(key.value().unwrap() >> 32).unwrap(),
                    i32::try_from(key.value().unwrap() << 32 >> 32).unwrap(),
                ),
            };
            work(&other, &twin.into()).inside().await.end().await;
            assert!(waiting.waits(), "{strategy} {key}");
            inside.end().await;
            waiting.inside().await.end().await;
            wait_until("the key is free", async || {
                shown(&database, key, true).await == 0
            })
            .await;
            assert!(is_free().await, "{strategy} {key}");
            let waiting = work(&one, &claim);
            wait_until("a wait", async || shown(&database, key, false).await == 1).await;
            drop(by_hand);
            waiting.inside().await.end().await;
        }
    }
}

#[tokio::test]
async fn keys_of_all_kinds_are_claimed_together_and_a_failure_leaves_none_locked() {
    let database = database().await;
    let [number, pair] = [LockKey::from_raw(7), LockKey::from_pair(7, 7)];
    let claim = cards("a", ["x.json"]).and(&number.into()).and(&pair.into());
    for (strategy, [one, other]) in strategies(&database).await {
        let inside = work(&one, &claim).inside().await;
        let mut waiting = [number, pair].map(|key| work(&other, &key.into()));
        work(&other, &cards("a", ["y.json"]))
            .inside()
            .await
            .end()
            .await;
        assert!(waiting.iter_mut().all(Work::waits), "{strategy}");
        inside.end().await;
        for it in waiting {
            it.inside().await.end().await;
        }
        let hurried = other.acquire_timeout(Duration::from_millis(200));
        let inside = work(&one, &pair.into()).inside().await;
        let error = work(&hurried, &claim).refused().await;
        assert_eq!(error.kind(), LockErrorKind::Timeout, "{error}");
        work(&one, &number.into()).inside().await.end().await;
        work(&one, &whole(["a"])).inside().await.end().await;
        inside.end().await;
    }
}

#[tokio::test]
async fn a_pair_has_tokens_and_its_writes_are_published_with_its_realm() {
    let database = database().await;
    let claim = whole(["a"]).and(&LockKey::from_pair(i32::MIN, 7).into());
    for sessions in [0, 1] {
        let locks = postgres_locks_with(database.url(), |builder| {
            builder.sessions(sessions).broadcast(true).fencing(true)
        })
        .await;
        let mut writes = RealmLocks::postgres_builder(database.url())
            .listen()
            .await
            .unwrap();
        // A burst publishes in the middle of its transaction, which keeps the locks.
        let token = Arc::new(Mutex::new(None));
        for _ in 0..3 {
            let token = Arc::clone(&token);
            let work = move |held: tower_realm_lock::HeldLock| async move {
                let mut before = token.lock().unwrap();
                assert!(held.fencing_token() > *before);
                *before = held.fencing_token();
                Ok::<_, LockError>(())
            };
            let [one, other] = [work.clone(), work].map(|it| locks.with_write_lock(&claim, it));
            let (one, other) = tokio::join!(one, other);
            one.and(other).unwrap();
        }
        let published = tokio::time::timeout(PATIENCE, writes.next()).await.unwrap();
        assert!(
            format!("{published:?}").contains("/luke/a/"),
            "{published:?}"
        );
        locks.shutdown(PATIENCE).await.unwrap();
    }
}

/// Layer and locks where the key of a realm is what `derive` makes of its URL.
async fn with_keys(
    database: &TestDatabase,
    sessions: u32,
    derive: impl Fn(&RealmUrl) -> Result<LockKey, String> + Clone + Send + Sync + 'static,
) -> (RealmLocks, RealmWriteLockLayer) {
    let locks = postgres_locks_with(database.url(), |builder| {
        builder.sessions(sessions).realm_keys(move |realm| {
            let derived = derive(&realm);
            async move {
                tokio::task::yield_now().await;
                derived
            }
        })
    })
    .await;
    let layer = RealmWriteLockLayer::new(locks.clone(), realms());
    (locks, layer)
}

#[tokio::test]
async fn a_realm_is_locked_by_the_number_or_pair_that_the_application_gives_it() {
    let database = database().await;
    for (sessions, own) in [0, 1]
        .into_iter()
        .zip([LockKey::from_raw(-7), LockKey::from_pair(4, 2)])
    {
        let derive = move |realm: &RealmUrl| {
            let is_own = realm.as_str().ends_with("/luke/a/");
            Ok(if is_own { own } else { LockKey::of(realm) })
        };
        let (locks, layer) = with_keys(&database, sessions, derive).await;
        let (plain, (handler, mut gate)) =
            (postgres_locks_with(database.url(), |it| it).await, gate());
        // A request, a job, and a job for a card, which shares the realm.
        let write = patch(&layer, &handler, "/luke/a/card");
        let inside = gate.entered().await;
        assert_eq!(shown(&database, own, true).await, 1);
        assert_eq!(database.advisory_locks(key("/luke/a")).await, (0, 0));
        let mut waiting = [
            work(&locks, &whole(["a", "b"])),
            work(&locks, &cards("a", ["x"])),
        ];
        let mut by_number = work(&plain, &own.into());
        work(&locks, &whole(["b"])).inside().await.end().await;
        work(&plain, &whole(["a"])).inside().await.end().await;
        assert!(by_number.waits() && waiting.iter_mut().all(Work::waits));
        inside.answer(200);
        assert_eq!(answered(write).await.status(), 200);
        let [realms, card] = waiting;
        tokio::join!(
            async { realms.inside().await.end().await },
            async { card.inside().await.end().await },
            async { by_number.inside().await.end().await },
        );
        // Work within the hold asks for what it has.
        let within = locks.clone();
        let nested = locks.with_write_lock(realm("a"), |_| async move {
            let inner = |_| async { Ok::<_, LockError>(()) };
            within.with_write_lock(realm("a"), inner).await
        });
        nested.await.unwrap();
        // A claim that has such keys is asked for elsewhere by the keys of its realms.
        let held = locks.with_write_lock(realm("a"), |held| async move {
            Ok::<_, LockError>(held.claim().clone())
        });
        let held = held.await.unwrap();
        assert!(
            held != whole(["a"]) && held.realms() == [realm("a")],
            "{held}"
        );
        let elsewhere = work(&plain, &held).inside().await;
        assert_eq!(database.advisory_locks(realm_key("a")).await, (1, 0));
        elsewhere.end().await;

        let explained = layer.explain(&Method::PATCH, "/luke/a/card");
        assert!(explained.lock_keys().is_empty(), "{explained}");
        assert!(
            explained.to_string().contains("what `realm_keys` gives"),
            "{explained}"
        );
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_had_refuses_the_request_and_nothing_is_locked() {
    let database = database().await;
    let fails = |_: &RealmUrl| Err("the table is gone".to_owned());
    let (locks, layer) = with_keys(&database, 0, fails).await;
    let (handler, gate) = gate();
    let refused = answered(patch(&layer, &handler, "/luke/a/card")).await;
    assert_eq!(
        (refused.status().as_u16(), &*code(&refused)),
        (503, "lock-unavailable")
    );
    assert!(gate.is_empty());
    let error = work(&locks, &whole(["a"])).refused().await;
    assert_eq!(error.kind(), LockErrorKind::Unavailable);
    assert!(error.to_string().contains("the table is gone"), "{error}");
    // What is no realm needs no such key.
    work(&locks, &LockKey::from_raw(1).into())
        .inside()
        .await
        .end()
        .await;

    let silent = postgres_locks_with(database.url(), |builder| {
        builder.realm_keys(|_| std::future::pending::<Result<LockKey, String>>())
    });
    let hurried = silent.await.acquire_timeout(Duration::from_millis(50));
    let error = work(&hurried, &whole(["a"])).refused().await;
    assert!(error.to_string().contains("no key within 50ms"), "{error}");
}

#[tokio::test]
async fn the_time_for_a_key_is_a_part_of_the_acquire_timeout() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let database = database().await;
    let slow = postgres_locks_with(database.url(), |builder| {
        builder.realm_keys(async |_| {
            sleep(TIMEOUT * 3 / 4).await;
            Ok::<_, String>(LockKey::from_raw(1))
        })
    });
    let slow = slow.await.acquire_timeout(TIMEOUT);
    let _holder = database.hold(1).await;
    let start = Instant::now();
    let error = work(&slow, &whole(["a"])).refused().await;
    assert_eq!(error.kind(), LockErrorKind::Timeout);
    assert!(start.elapsed() < TIMEOUT * 3 / 2, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_shutdown_refuses_a_caller_that_has_no_key_yet_and_waits_for_it() {
    let database = database().await;
    let (ask, mut asked) = mpsc::unbounded_channel();
    let locks = postgres_locks_with(database.url(), |builder| {
        builder.realm_keys(move |_| {
            ask.send(()).unwrap();
            std::future::pending::<Result<LockKey, String>>()
        })
    });
    let locks = locks.await;
    let caller = work(&locks, &whole(["a"]));
    asked.recv().await.unwrap();
    locks.shutdown(PATIENCE).await.unwrap();
    let error = caller.refused().await;
    assert_eq!(error.kind(), LockErrorKind::ShuttingDown);
}

#[tokio::test]
async fn a_second_key_of_a_realm_is_refused_as_long_as_a_claim_has_the_first() {
    let database = database().await;
    let number = Arc::new(AtomicI64::new(1));
    let current = Arc::clone(&number);
    let derive = move |_: &RealmUrl| Ok(LockKey::from_raw(current.load(Ordering::SeqCst)));
    let (locks, layer) = with_keys(&database, 0, derive).await;
    let inside = work(&locks, &whole(["a"])).inside().await;
    number.store(2, Ordering::SeqCst);
    let error = work(&locks, &cards("a", ["x"])).refused().await;
    let keys = [1, 2].map(LockKey::from_raw);
    let two = matches!(&error, LockError::TwoKeys { keys: found, .. } if *found == keys);
    assert!(two && error.kind() == LockErrorKind::Invalid, "{error}");
    let (handler, gate) = gate();
    let refused = answered(patch(&layer, &handler, "/luke/a/card")).await;
    assert_eq!(code(&refused), "lock-unavailable");
    assert!(gate.is_empty());
    // Of another realm nothing is held.
    work(&locks, &whole(["b"])).inside().await.end().await;
    inside.end().await;
    // Its last claim is gone, if not at once.
    wait_until("the new key", async || {
        let locked = locks.with_write_lock(realm("a"), |_| async { Ok::<_, LockError>(()) });
        locked.await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn keys_are_taken_realms_first_and_then_as_texts_are_sorted() {
    let database = database().await;
    let a = realm("a");
    let paths: Vec<String> = (0..6).map(|number| format!("{number}.json")).collect();
    let claim = Claim::resources(&a, &paths).and(&LockKey::from_raw(5).into());
    let mut files: Vec<i64> = paths.iter().map(|path| file_key(&a, path)).collect();
    files.sort_by_key(i64::to_string);
    assert!(!files.is_sorted(), "numbers have another order");
    let mut first = [realm_key("a"), 5];
    first.sort_by_key(i64::to_string);
    let order = [&first[..], &files].concat();
    for (at, taken) in order
        .iter()
        .enumerate()
        .filter(|(_, key)| **key != realm_key("a"))
    {
        let holder = database.hold(*taken).await;
        let locks = postgres_locks_with(database.url(), |it| it).await;
        let waiting = work(&locks, &claim);
        database.wait_for_waiting(*taken, 1).await;
        for (before, key) in order.iter().enumerate().filter(|(other, _)| *other != at) {
            let granted = database.advisory_locks(*key).await.0 == 1;
            assert_eq!(
                granted,
                before < at,
                "{key} while {taken} is waited for: {order:?}"
            );
        }
        drop(holder);
        waiting.inside().await.end().await;
    }
}

/// As a server of cardstack/boxel computes it.
fn file_key(realm: &RealmUrl, path: &str) -> i64 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("file-write:{realm}\0{path}"));
    i64::from_be_bytes(digest[..8].try_into().unwrap())
}
