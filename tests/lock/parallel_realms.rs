//! Writes to one realm take turns; writes to two realms run side by side; reads never wait.

use http::Method;
use tower_realm_lock::{RealmLocks, RealmWriteLockLayer};

use crate::support::database::database;
use crate::support::gate::{gate, key, patch, postgres_layer, realms, send};

/// Two processes' worth of locks on one database, or twice the same in process.
async fn layers() -> Vec<(&'static str, RealmWriteLockLayer, RealmWriteLockLayer)> {
    let database = database().await;
    let [one, two] = [database.url(), database.url()];
    let postgres = async |url| {
        let locks = RealmLocks::postgres(url).await.expect("the database is up");
        RealmWriteLockLayer::new(locks, realms())
    };
    let in_process = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let shared = postgres(one).await;
    vec![
        ("in process", in_process.clone(), in_process),
        ("one replica", shared.clone(), shared),
        ("two replicas", postgres(one).await, postgres(two).await),
    ]
}

#[tokio::test]
async fn two_realms_are_written_in_parallel() {
    for (name, one, two) in layers().await {
        let (handler, mut gate) = gate();
        let first = patch(&one, &handler, "/luke/a/card");
        let a = gate.entered().await;
        let second = patch(&two, &handler, "/luke/b/card");
        let b = gate.entered().await;
        assert_eq!(
            [&*a.path, &*b.path],
            ["/luke/a/card", "/luke/b/card"],
            "{name}"
        );
        b.answer(200);
        second.await.unwrap().unwrap();
        a.answer(200);
        first.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn writes_of_one_realm_take_turns_in_order() {
    for (name, one, two) in layers().await {
        let (handler, mut gate) = gate();
        let first = patch(&one, &handler, "/luke/a/1");
        let inside = gate.entered().await;
        let second = patch(&two, &handler, "/luke/a/2");
        let third = patch(&two, &handler, "/luke/a/3");
        // A write of another realm on the same layer comes in and ends while they wait.
        let other = patch(&two, &handler, "/luke/b/4");
        let passing = gate.entered().await;
        assert_eq!(passing.path, "/luke/b/4", "{name}");
        passing.answer(200);
        other.await.unwrap().unwrap();
        assert!(
            gate.is_empty(),
            "{name}: two writers of one realm are inside"
        );

        inside.answer(200);
        first.await.unwrap().unwrap();
        for (path, task) in [("/luke/a/2", second), ("/luke/a/3", third)] {
            let inside = gate.entered().await;
            assert_eq!(inside.path, path, "{name}");
            assert!(gate.is_empty(), "{name}");
            inside.answer(204);
            task.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn reads_pass_a_locked_realm() {
    for (name, one, two) in layers().await {
        let (handler, mut gate) = gate();
        let write = patch(&one, &handler, "/luke/a/card");
        let writing = gate.entered().await;
        let read = send(&two, &handler, Method::GET, "/luke/a/card");
        let reading = gate.entered().await;
        assert!(reading.held.is_none() && writing.held.is_some(), "{name}");
        reading.answer(200);
        read.await.unwrap().unwrap();
        writing.answer(200);
        write.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_process_asks_postgresql_once_for_each_realm() {
    let database = database().await;
    let layer = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let writes: Vec<_> = (0..50)
        .map(|n| patch(&layer, &handler, &format!("/luke/a/{n}")))
        .collect();
    for write in writes {
        let inside = gate.entered().await;
        assert_eq!(database.advisory_locks(key("/luke/a")).await, (1, 0));
        inside.answer(200);
        write.await.unwrap().unwrap();
    }
    database.wait_for_granted(key("/luke/a"), 0).await;
    assert_eq!(database.backends().await, 1);
}
