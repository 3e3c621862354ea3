//! Single cards as what is locked: their writers go side by side, and whoever wants the realm whole excludes them all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use tower_realm_lock::{LockError, RealmLocks};

use crate::support::claims::{cards, realm_key, strategies, whole, work};
use crate::support::database::{database, has_sessions};
use crate::support::gate::postgres_locks_with;
use crate::support::wait::PATIENCE;

#[tokio::test]
async fn two_cards_of_one_realm_are_written_side_by_side() {
    let database = database().await;
    for (_, [one, other]) in strategies(&database).await {
        let x = work(&one, &cards("a", ["x"])).inside().await;
        let y = work(&other, &cards("a", ["y"])).inside().await;
        let z = work(&one, &cards("a", ["z"])).inside().await;
        // Who names no card shares the realm too.
        let none = work(&other, &cards("a", [])).inside().await;
        for inside in [x, y, z, none] {
            inside.end().await;
        }
    }
}

#[tokio::test]
async fn one_card_has_one_writer() {
    let database = database().await;
    for (strategy, [one, other]) in strategies(&database).await {
        let first = work(&one, &cards("a", ["x", "y"])).inside().await;
        let mut near = work(&one, &cards("a", ["y", "z"]));
        let mut far = work(&other, &cards("a", ["x"]));
        work(&other, &cards("a", ["other"]))
            .inside()
            .await
            .end()
            .await;
        work(&one, &cards("b", ["x", "y"]))
            .inside()
            .await
            .end()
            .await;
        assert!(near.waits() && far.waits(), "{strategy}");
        first.end().await;
        // In whatever order.
        tokio::join!(async { near.inside().await.end().await }, async {
            far.inside().await.end().await;
        });
    }
}

#[tokio::test]
async fn a_realm_as_a_whole_excludes_the_writers_of_its_cards() {
    let database = database().await;
    for (strategy, [one, other]) in strategies(&database).await {
        let x = work(&one, &cards("a", ["x"])).inside().await;
        let mut publish = work(&other, &whole(["a", "b"]));
        work(&other, &whole(["c"])).inside().await.end().await;
        assert!(publish.waits(), "{strategy}");
        x.end().await;
        let publish = publish.inside().await;
        let mut near = work(&other, &cards("a", ["y"]));
        let mut far = work(&one, &cards("a", []));
        work(&one, &whole(["c"])).inside().await.end().await;
        assert!(near.waits() && far.waits(), "{strategy}");
        publish.end().await;
        // In whatever order.
        tokio::join!(async { near.inside().await.end().await }, async {
            far.inside().await.end().await;
        });
    }
}

/// Four writers of cards on each replica, each at it again as soon as it has ended, until told to stop.
fn start_stream(
    replicas: &[RealmLocks],
    stop: &Arc<AtomicBool>,
    count: &Arc<AtomicUsize>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let start = |locks: &RealmLocks, number: usize| {
        let (locks, stop, writes) = (locks.clone(), Arc::clone(stop), Arc::clone(count));
        tokio::spawn(async move {
            let paths = ["p", "q", "r", "s"];
            while !stop.load(Ordering::SeqCst) {
                let inside = Arc::clone(&writes);
                let work = move |_| async move {
                    inside.fetch_add(1, Ordering::SeqCst);
                    // So that the holds of a stream overlap.
                    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
                    Ok::<_, LockError>(())
                };
                locks
                    .with_write_lock(cards("a", [paths[number]]), work)
                    .await
                    .unwrap();
            }
        })
    };
    let writers = |locks| (0..4).map(move |number| start(locks, number));
    replicas.iter().flat_map(writers).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steady_stream_of_cards_does_not_starve_a_whole_realm() {
    let database = database().await;
    for (strategy, [one, other]) in strategies(&database).await {
        // On the stream's own replica, and on one that has no part in it.
        for (streaming, locks) in [
            (vec![one.clone(), other.clone()], &one),
            (vec![one.clone()], &other),
        ] {
            let (stop, writes) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
            let streams = start_stream(&streaming, &stop, &writes);
            crate::support::wait::wait_until("a stream", async || {
                writes.load(Ordering::SeqCst) > 20
            })
            .await;
            for _ in 0..3 {
                work(locks, &whole(["a"])).inside().await.end().await;
            }
            let before = writes.load(Ordering::SeqCst);
            crate::support::wait::wait_until("the stream goes on", async || {
                writes.load(Ordering::SeqCst) > before
            })
            .await;
            stop.store(true, Ordering::SeqCst);
            for stream in streams {
                stream
                    .await
                    .unwrap_or_else(|error| panic!("{strategy}: {error}"));
            }
        }
    }
}

#[tokio::test]
async fn a_session_is_shared_by_the_writers_of_many_cards() {
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let locks = postgres_locks_with(database.url(), |builder| {
        // For so long they share the realm, and no newcomer waits in PostgreSQL.
        let builder = builder.sessions(1).max_hand_off_time(PATIENCE);
        builder.pool_size(1)
    })
    .await;
    // More of them than there are connections beside it.
    let paths: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let mut inside = Vec::new();
    for path in &paths {
        inside.push(work(&locks, &cards("a", [path])).inside().await);
    }
    for inside in inside {
        inside.end().await;
    }
    database.wait_for_granted(realm_key("a"), 0).await;
}

#[tokio::test]
async fn cards_that_wait_for_one_realm_take_one_connection() {
    let database = database().await;
    let other = postgres_locks_with(database.url(), |builder| builder).await;
    for sessions in [0, 1] {
        let publish = work(&other, &whole(["a"])).inside().await;
        let locks = postgres_locks_with(database.url(), |builder| {
            builder.sessions(sessions).pool_size(2)
        })
        .await;
        let names: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        let waiting: Vec<_> = names
            .iter()
            .map(|name| work(&locks, &cards("a", [name])))
            .collect();
        database.wait_for_waiting(realm_key("a"), 1).await;
        // Another realm has the other connection, as often as it likes.
        for _ in 0..20 {
            work(&locks, &whole(["b"])).inside().await.end().await;
        }
        assert_eq!(database.advisory_locks(realm_key("a")).await, (1, 1));
        publish.end().await;
        let waited = waiting
            .into_iter()
            .map(async |work| work.inside().await.end().await);
        join_all(waited).await;
        database.wait_for_granted(realm_key("a"), 0).await;
    }
}
