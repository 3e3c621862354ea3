//! A server without room for another lock refuses new holds, and takes none away.

use std::time::Duration;

use futures_util::future::join_all;
use http::Request;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{LockError, RealmWriteLockLayer};

use crate::support::claims::{cards, realm_key, work};
use crate::support::cluster::Cluster;
use crate::support::database::{TestDatabase, database_on, has_sessions};
use crate::support::gate::{at_once, gate, key, patch, postgres_layer_with, postgres_locks_with};
use crate::support::proxy::Proxy;

const REALMS: usize = 40;

fn path(n: usize) -> String {
    format!("/luke/realm-{n}/card")
}

/// A server that soon has no room for another lock.
async fn small_server() -> Cluster {
    let cluster = Cluster::create().await;
    let admin = crate::support::database::try_connect(&cluster.url())
        .await
        .unwrap();
    for setting in ["max_locks_per_transaction = 10", "max_connections = 30"] {
        admin
            .batch_execute(&format!("ALTER SYSTEM SET {setting}"))
            .await
            .unwrap();
    }
    cluster.restart_fast().await;
    cluster
}

/// A session that locks all that there is room for, but for `left` locks.
async fn fill(database: &TestDatabase, left: i64) -> Client {
    let client = database.connect().await;
    let mut count = 0;
    loop {
        match client
            .batch_execute(&format!("SELECT pg_advisory_lock({count})"))
            .await
        {
            Ok(()) => count += 1,
            Err(error) => {
                assert_eq!(error.code(), Some(&SqlState::OUT_OF_MEMORY), "{error}");
                break;
            }
        }
    }
    let unlock = format!("SELECT pg_advisory_unlock(n) FROM generate_series(0, {left} - 1) AS n");
    client.batch_execute(&unlock).await.unwrap();
    client
}

/// Sends a write to each realm but the first, all at once; how many succeeded.
async fn write_all(layer: &RealmWriteLockLayer) -> usize {
    let writes: Vec<_> = (1..REALMS)
        .map(|n| {
            let request = Request::patch(path(n)).body(String::new()).unwrap();
            tokio::spawn(layer.layer(service_fn(at_once)).oneshot(request))
        })
        .collect();
    let mut succeeded = 0;
    for write in writes {
        let status = write.await.unwrap().unwrap().status();
        assert!(status == 200 || status == 503, "{status}");
        succeeded += usize::from(status == 200);
    }
    succeeded
}

#[tokio::test]
async fn a_batch_that_fails_leaves_no_lock_and_takes_none_away() {
    let cluster = small_server().await;
    let database = database_on(&cluster).await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.sessions(1).pool_size(2)
    })
    .await;
    let (handler, mut gate) = gate();
    let held = patch(&layer, &handler, &path(0));
    let call = gate.entered().await;

    let foreign = fill(&database, 5).await;
    proxy.queries();
    for _ in 0..10 {
        write_all(&layer).await;
        for n in 1..REALMS {
            database.wait_for_granted(key(&path(n)), 0).await;
        }
        assert_eq!(database.advisory_locks(key(&path(0))).await, (1, 0));
        assert!(call.held.as_ref().unwrap().is_held());
    }

    // Nobody else wants these realms, so a write was in a transaction only because its session could not lock.
    let queries = proxy.queries();
    let fell_back = |query: &&String| query.contains("pg_try_advisory_xact_lock");
    assert!(queries.iter().filter(fell_back).count() > 1, "{queries:?}");

    drop(foreign);
    crate::support::wait::wait_until("room again", async || write_all(&layer).await == REALMS - 1)
        .await;
    call.answer(200);
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_card_that_finds_no_room_takes_its_realm_from_nobody() {
    let cluster = small_server().await;
    let database = database_on(&cluster).await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let locks = postgres_locks_with(database.url(), |builder| builder.sessions(1).pool_size(2))
        .await
        .acquire_timeout(Duration::from_millis(500));
    let held = work(&locks, &cards("a", ["x"])).inside().await;
    let full = fill(&database, 0).await;
    // Of some the own key comes before the realm's, of others after it.
    let refused = (0..8).map(|number| work(&locks, &cards("a", [&number.to_string()])).refused());
    for error in join_all(refused).await {
        assert!(
            matches!(
                error,
                LockError::Database { .. } | LockError::Timeout { .. }
            ),
            "{error}"
        );
    }
    // Room for one more.
    full.batch_execute("SELECT pg_advisory_unlock(0)")
        .await
        .unwrap();
    let shared = format!("SELECT pg_try_advisory_lock({})", realm_key("a"));
    let others: bool = full.query_one(&shared, &[]).await.unwrap().get(0);
    assert!(!others, "it is held");
    drop(full);
    held.end().await;
    database.wait_for_granted(realm_key("a"), 0).await;
}
