//! A handler that shares the lock's transaction cannot reach past its own hold: not with a client that it keeps, and not
//! through the session.

mod support;

use std::time::Duration;

use support::database::{TestDatabase, database};
use support::gate::{code, gate, key, patch, postgres_layer_with};
use support::wait::wait_until;
use tower_realm_lock::{LockError, RealmWriteLockLayer};

const PATH: &str = "/luke/a/card";
const OTHER: &str = "/leia/b/card";

/// A table of writes, and a layer with a single connection.
async fn set_up() -> (TestDatabase, RealmWriteLockLayer) {
    let database = database().await;
    let client = database.connect().await;
    client
        .batch_execute(
            "CREATE TABLE writes (n int); CREATE TYPE one AS ENUM ('a'); CREATE TYPE two AS ENUM ('a')",
        )
        .await
        .unwrap();
    let layer = postgres_layer_with(database.url(), |builder| builder.pool_size(1)).await;
    (database, layer.share_transaction(true))
}

async fn written(database: &TestDatabase) -> i64 {
    let client = database.connect().await;
    let row = client.query_one("SELECT count(*) FROM writes", &[]).await;
    row.unwrap().get(0)
}

#[tokio::test]
async fn a_client_that_is_kept_past_the_hold_writes_nowhere() {
    let (database, layer) = set_up().await;
    for status in [200, 404] {
        let (handler, mut gate) = gate();
        let busy = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let transaction = call.transaction().clone();
        let client = transaction.client().unwrap();
        call.answer(status);
        let response = busy.await.unwrap().unwrap();
        if status == 200 {
            assert_eq!(code(&response), "commit-failed");
        }
        database.wait_for_granted(key(PATH), 0).await;
        assert!(matches!(
            transaction.client(),
            Err(LockError::TransactionEnded { .. })
        ));

        let insert = "INSERT INTO writes VALUES (1)";
        assert!(client.batch_execute(insert).await.is_err());
        let other = patch(&layer, &handler, OTHER);
        let call = gate.entered().await;
        assert!(client.batch_execute(insert).await.is_err());
        call.answer(200);
        assert_eq!(other.await.unwrap().unwrap().status(), 200);
        assert_eq!(written(&database).await, 0);
    }
}

#[tokio::test]
async fn what_a_handler_does_to_its_session_does_not_reach_the_next_hold() {
    let (database, layer) = set_up().await;
    let change = "SET search_path = elsewhere; SET statement_timeout = '7s'; SET ROLE pg_monitor; \
        SELECT pg_advisory_lock(42); CREATE TEMP TABLE secret (n int); LISTEN news";
    for (status, ends_itself) in [(200, false), (404, false), (200, true)] {
        let (handler, mut gate) = gate();
        let one = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let sql = if ends_itself {
            format!("{change}; COMMIT")
        } else {
            change.to_owned()
        };
        let client = call.transaction().client().unwrap();
        client.batch_execute(&sql).await.unwrap();
        // For a type that it does not know the driver prepares statements of its own, and keeps them: they must survive.
        let unknown = "SELECT 'a'::public.one";
        client.query_one(unknown, &[]).await.unwrap();
        drop(client);
        call.answer(status);
        let answered = one.await.unwrap().unwrap().status();
        assert_eq!(answered, if ends_itself { 503 } else { status });

        let two = patch(&layer, &handler, OTHER);
        let call = gate.entered().await;
        let client = call.transaction().client().unwrap();
        let row = client
            .query_one(
                "SELECT concat_ws(' ', current_setting('search_path'), current_setting('statement_timeout'), \
                 current_user = session_user, to_regclass('pg_temp.secret'), \
                 (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42), \
                 (SELECT count(*) FROM pg_listening_channels()))",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), "\"$user\", public 0 t 0 0");
        let unknown = "SELECT 'a'::public.two";
        client.query_one(unknown, &[]).await.unwrap();
        drop(client);
        call.answer(200);
        assert_eq!(two.await.unwrap().unwrap().status(), 200);
    }
    wait_until("the connection is used again", async || {
        database.backends().await <= 1
    })
    .await;
}

#[tokio::test]
async fn a_time_out_of_the_servers_is_not_taken_for_the_acquire_timeout() {
    let database = database().await;
    let admin = database.connect().await;
    let strict = format!(
        "ALTER DATABASE {} SET statement_timeout = '200ms'",
        database.name()
    );
    admin.batch_execute(&strict).await.unwrap();
    let layer = postgres_layer_with(database.url(), |builder| builder).await;
    let _foreign = database.hold(key(PATH)).await;
    let (handler, _gate) = gate();
    let patient = layer.acquire_timeout(Duration::from_secs(60));
    let response = patch(&patient, &handler, PATH).await.unwrap().unwrap();
    assert_eq!(code(&response), "lock-unavailable");
}
