//! A request that is dropped while it asks a session for a lock leaves none behind.

use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::time::timeout;
use tower_realm_lock::{OnDisconnect, RealmWriteLockLayer};

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{key, postgres_layer_with, write_within};

const PATHS: [&str; 4] = ["/luke/a/x", "/luke/b/x", "/luke/c/x", "/luke/d/x"];

async fn layer(database: &TestDatabase) -> RealmWriteLockLayer {
    postgres_layer_with(database.url(), |builder| builder.sessions(2).pool_size(1))
        .await
        .map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)))
}

async fn nothing_is_locked(database: &TestDatabase) {
    for path in PATHS {
        database.wait_for_granted(key(path), 0).await;
    }
}

#[tokio::test]
async fn at_every_poll_of_a_free_lock() {
    let database = database().await;
    for policy in [OnDisconnect::Finish, OnDisconnect::Cancel] {
        let layer = layer(&database).await.on_disconnect(policy);
        // Both sessions are open.
        for path in PATHS {
            assert!(write_within(&layer, path, usize::MAX).await);
        }
        let mut polls = 0;
        while !write_within(&layer, PATHS[0], polls).await {
            database.wait_for_granted(key(PATHS[0]), 0).await;
            polls += 1;
        }
        // At least: the session's answer, the release.
        assert!(polls >= 2, "{polls}");
        nothing_is_locked(&database).await;
    }
}

#[tokio::test]
async fn at_random_moments_of_many_writers_of_a_few_realms() {
    let database = database().await;
    let layer = layer(&database).await;
    let foreign = database.connect().await;
    let lock = format!("BEGIN; SELECT pg_advisory_xact_lock({})", key(PATHS[0]));
    // The seed is fixed: the same moments come again.
    let mut runner = TestRunner::deterministic();
    let many = prop::collection::vec((0..PATHS.len(), 0..3_000_u64), 1..24);
    let rounds = (any::<bool>(), many);
    for round in 0..100 {
        let (held, moments) = rounds.new_tree(&mut runner).unwrap().current();
        if held {
            foreign.batch_execute(&lock).await.unwrap();
        }
        let writes: Vec<_> = moments
            .into_iter()
            .map(|(path, micros)| {
                let layer = layer.clone();
                let moment = Duration::from_micros(micros);
                tokio::spawn(async move {
                    let write = write_within(&layer, PATHS[path], usize::MAX);
                    (path, timeout(moment, write).await)
                })
            })
            .collect();
        for write in writes {
            let (path, outcome) = write.await.unwrap();
            assert!(!(outcome == Ok(true) && held && path == 0), "round {round}");
        }
        database.wait_for_waiting(key(PATHS[0]), 0).await;
        if held {
            foreign.batch_execute("COMMIT").await.unwrap();
        }
        nothing_is_locked(&database).await;
        for path in PATHS {
            assert!(
                write_within(&layer, path, usize::MAX).await,
                "round {round}"
            );
        }
    }
    nothing_is_locked(&database).await;
    // This test's own session, the pool's and two for many realms.
    assert!(database.backends().await <= 4);
}
