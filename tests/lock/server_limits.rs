//! What waiters and holders cost the rest of the database: a waiter has a snapshot, which holds back
//! VACUUM and concurrent index builds, and a holder has none.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;
use tower_realm_lock::{LockError, RealmLocks};

use crate::support::claims::{realm, realm_key, strategies, whole, work};
use crate::support::database::{TestDatabase, database, has_sessions, rows};
use crate::support::gate::postgres_locks_with;
use crate::support::page::block;
use crate::support::wait::{PATIENCE, wait_until};

const REALM: &str = "a";
const TABLE: &str = "CREATE TABLE cards (id int)";
const INDEX: &str = "CREATE INDEX CONCURRENTLY ON cards (id)";

/// Those of the database: each for a holder, and for the waiters for its realm.
async fn in_database(database: &TestDatabase) -> Vec<(&'static str, [RealmLocks; 2])> {
    let mut strategies = strategies(database).await;
    strategies.retain(|(strategy, _)| *strategy != "in process");
    strategies
}

/// Whether the backend that holds the realm, or else waits for it, has a snapshot, and whether it
/// has a transaction id.
async fn looked_at(client: &Client, granted: bool) -> [bool; 2] {
    let query = format!(
        "SELECT backend_xmin IS NOT NULL, backend_xid IS NOT NULL \
         FROM pg_locks JOIN pg_stat_activity USING (pid) \
         WHERE datname = current_database() \
         AND locktype = 'advisory' AND objsubid = 1 AND granted = {granted} \
         AND (classid::bigint << 32) | objid::bigint = {}",
        realm_key(REALM)
    );
    let row = client.query_one(&query, &[]).await.expect("one backend");
    [row.get(0), row.get(1)]
}

/// Builds an index on a connection of its own; returns when the build waits for the realm's waiter,
/// as the query of the page shows.
async fn index_that_waits(database: &TestDatabase) -> JoinHandle<()> {
    let client = database.connect().await;
    let build = tokio::spawn(async move { client.batch_execute(INDEX).await.expect("an index") });
    let client = database.connect().await;
    let waiting = block(
        include_str!("../../docs/operations.md"),
        "sql",
        "virtualxid",
    );
    wait_until("the build to wait", async || {
        assert!(!build.is_finished(), "the build waits for nobody");
        let waiting = rows(&client, waiting).await;
        let wanted = format!("realm {}", realm(REALM));
        waiting.iter().any(|row| row.get("wants") == Some(&*wanted))
    })
    .await;
    build
}

/// Whether VACUUM leaves rows on disk that were deleted just now.
async fn holds_back_vacuum(client: &Client) -> bool {
    for statement in [
        "INSERT INTO cards VALUES (1)",
        "DELETE FROM cards",
        "VACUUM cards",
    ] {
        client.batch_execute(statement).await.unwrap();
    }
    let size = client.query_one("SELECT pg_relation_size('cards')", &[]);
    size.await.unwrap().get::<_, i64>(0) > 0
}

#[tokio::test]
async fn a_waiter_has_a_snapshot_and_a_holder_has_none() {
    let database = database().await;
    let client = database.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    for (strategy, [locks, others]) in in_database(&database).await {
        let held = work(&locks, &whole([REALM])).inside().await;
        assert!(!holds_back_vacuum(&client).await, "{strategy}");
        let waits = work(&others, &whole([REALM]));
        database.wait_for_waiting(realm_key(REALM), 1).await;
        assert!(holds_back_vacuum(&client).await, "{strategy}");
        assert_eq!(looked_at(&client, true).await, [false; 2], "{strategy}");
        assert_eq!(looked_at(&client, false).await, [true, false], "{strategy}");
        held.end().await;
        waits.inside().await.end().await;
    }
}

#[tokio::test]
async fn a_fenced_transaction_has_an_id_and_holds_back_vacuum() {
    let database = database().await;
    let client = database.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    for (sessions, holds_back) in [(0, true), (2, false)] {
        if sessions > 0 && !has_sessions(&client).await {
            continue;
        }
        let locks = postgres_locks_with(database.url(), |builder| {
            builder.fencing(true).sessions(sessions)
        });
        let held = work(&locks.await, &whole([REALM])).inside().await;
        assert_eq!(looked_at(&client, true).await, [false, holds_back]);
        assert_eq!(holds_back_vacuum(&client).await, holds_back, "{sessions}");
        let build = timeout(PATIENCE, client.batch_execute(INDEX)).await;
        build.expect("a holder is not waited for").unwrap();
        held.end().await;
        database.wait_for_granted(realm_key(REALM), 0).await;
        assert!(!holds_back_vacuum(&client).await, "afterwards");
    }
}

#[tokio::test]
async fn an_index_waits_for_a_waiter_to_the_end_of_its_hold_and_not_for_a_holder() {
    let database = database().await;
    let client = database.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    for (_, [locks, others]) in in_database(&database).await {
        let held = work(&locks, &whole([REALM])).inside().await;
        timeout(PATIENCE, client.batch_execute(INDEX))
            .await
            .expect("a holder is not waited for")
            .unwrap();
        let waits = work(&others, &whole([REALM]));
        database.wait_for_waiting(realm_key(REALM), 1).await;
        let build = index_that_waits(&database).await;
        held.end().await;
        let held = waits.inside().await;
        assert_eq!(looked_at(&client, true).await, [false; 2]);
        assert!(!build.is_finished(), "it waits for the transaction");
        held.end().await;
        timeout(PATIENCE, build).await.expect("in time").unwrap();
    }
}

#[tokio::test]
async fn an_index_inside_of_a_hold_waits_until_the_waiters_for_it_have_given_up() {
    let database = database().await;
    database.connect().await.batch_execute(TABLE).await.unwrap();
    for (strategy, [locks, others]) in in_database(&database).await {
        let others = others.acquire_timeout(Duration::from_secs(1));
        let held = work(&locks, &whole([REALM])).inside().await;
        let mut waits = work(&others, &whole([REALM]));
        database.wait_for_waiting(realm_key(REALM), 1).await;
        let build = index_that_waits(&database).await;
        assert!(waits.waits(), "{strategy}");
        // The holder's work is this build: it ends its hold once the index is there.
        timeout(PATIENCE, build).await.expect("in time").unwrap();
        let refused = waits.refused().await;
        assert!(matches!(refused, LockError::Timeout { .. }), "{refused}");
        held.end().await;
    }
}
