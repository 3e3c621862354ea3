//! A request that is dropped at any of the points where it can be leaves the realm free and the only connection usable.

use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::time::timeout;
use tower_realm_lock::{OnDisconnect, RealmWriteLockLayer};

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{key, postgres_layer_with, write_within};

const PATH: &str = "/luke/a/card";

async fn layer(database: &TestDatabase) -> RealmWriteLockLayer {
    postgres_layer_with(database.url(), |builder| builder.pool_size(1))
        .await
        .map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)))
}

#[tokio::test]
async fn at_every_poll_of_a_free_lock() {
    let database = database().await;
    for policy in [OnDisconnect::Finish, OnDisconnect::Cancel] {
        let layer = layer(&database).await.on_disconnect(policy);
        let mut polls = 0;
        while !write_within(&layer, PATH, polls).await {
            assert!(
                write_within(&layer, PATH, usize::MAX).await,
                "after a drop at poll {polls}"
            );
            polls += 1;
        }
        // At least: the queue, the connection, the statement, the release.
        assert!(polls >= 3, "{polls}");
        database.wait_for_granted(key(PATH), 0).await;
    }
}

#[tokio::test]
async fn at_random_moments_of_many_writers_of_a_lock_that_comes_and_goes() {
    let database = database().await;
    let layer = layer(&database).await;
    let foreign = database.connect().await;
    let lock = format!("BEGIN; SELECT pg_advisory_xact_lock({})", key(PATH));
    // The seed is fixed: the same moments come again.
    let mut runner = TestRunner::deterministic();
    let rounds = (any::<bool>(), prop::collection::vec(0..6_000_u64, 1..6));
    for round in 0..100 {
        let (held, moments) = rounds.new_tree(&mut runner).unwrap().current();
        if held {
            foreign.batch_execute(&lock).await.unwrap();
        }
        let writes: Vec<_> = moments
            .into_iter()
            .map(|micros| {
                let layer = layer.clone();
                let moment = Duration::from_micros(micros);
                tokio::spawn(async move {
                    timeout(moment, write_within(&layer, PATH, usize::MAX)).await
                })
            })
            .collect();
        for write in writes {
            let got_in = matches!(write.await.unwrap(), Ok(true));
            assert!(!(got_in && held), "round {round}");
        }
        database.wait_for_waiting(key(PATH), 0).await;
        if held {
            foreign.batch_execute("COMMIT").await.unwrap();
        }
        assert!(
            write_within(&layer, PATH, usize::MAX).await,
            "round {round}"
        );
    }
    database.wait_for_granted(key(PATH), 0).await;
    // This test's own session, and the pool's.
    assert!(database.backends().await <= 2);
}
