//! Fencing tokens grow from one hold of a realm to the next: across replicas, and through restarts and crashes.

mod support;

use support::cluster::Cluster;
use support::database::database;
use support::gate::{Gate, Gated, gate, patch, realms};
use tokio_postgres::SimpleQueryMessage;
use tower_realm_lock::{FencingToken, RealmLocks, RealmWriteLockLayer};

const PATH: &str = "/luke/a/card";

async fn replica(url: &str) -> RealmWriteLockLayer {
    let builder = RealmLocks::postgres_builder(url).fencing(true);
    RealmWriteLockLayer::new(builder.build().await.unwrap(), realms())
}

/// The token of one hold that ends well.
async fn token(layer: &RealmWriteLockLayer, handler: &Gated, gate: &mut Gate) -> FencingToken {
    let write = patch(layer, handler, PATH);
    let call = gate.entered().await;
    let token = call.held.as_ref().unwrap().fencing_token();
    call.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
    token.expect("a token")
}

#[tokio::test]
async fn tokens_grow_across_replicas() {
    let database = database().await;
    let replicas = [replica(database.url()).await, replica(database.url()).await];
    let (handler, mut gate) = gate();
    let mut tokens = Vec::new();
    for turn in 0..20 {
        tokens.push(token(&replicas[turn % 2], &handler, &mut gate).await);
    }
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
}

/// Transaction ids that were given before a crash come again after it: the test is worth nothing unless they do.
#[tokio::test]
async fn tokens_grow_through_crashes_although_transaction_ids_do_not() {
    let cluster = Cluster::create().await;
    let (handler, mut gate) = gate();
    let layer = replica(&cluster.url()).await;
    let mut ids_came_again = false;
    let mut last = token(&layer, &handler, &mut gate).await;
    for _ in 0..5 {
        // Ids that no flushed WAL knows of, and a hold after them.
        let many = format!(
            "SELECT pg_current_xact_id();{}",
            "COMMIT;SELECT pg_current_xact_id();".repeat(2000)
        );
        let client = support::database::try_connect(&cluster.url())
            .await
            .unwrap();
        let rows = client.simple_query(&many).await.unwrap();
        let next = token(&layer, &handler, &mut gate).await;
        let id = rows.iter().rev().find_map(|row| match row {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse::<u64>().ok(),
            _ => None,
        });
        assert!(next > last, "{next} after {last}");
        last = next;

        cluster.restart_immediate().await;
        let client = support::database::try_connect(&cluster.url())
            .await
            .unwrap();
        let row = client
            .query_one("SELECT pg_current_xact_id()::text", &[])
            .await
            .unwrap();
        ids_came_again |= row.get::<_, &str>(0).parse::<u64>().unwrap() <= id.unwrap();
        let next = token(&layer, &handler, &mut gate).await;
        assert!(next > last, "{next} after {last}");
        last = next;
    }
    assert!(ids_came_again);

    cluster.restart_fast().await;
    assert!(token(&layer, &handler, &mut gate).await > last);
}

#[tokio::test]
async fn nobody_gets_a_token_who_did_not_ask() {
    let database = database().await;
    for locks in [
        RealmLocks::postgres(database.url()).await.unwrap(),
        RealmLocks::in_process(),
    ] {
        let layer = RealmWriteLockLayer::new(locks, realms());
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        assert_eq!(call.held.as_ref().unwrap().fencing_token(), None);
        call.answer(200);
        write.await.unwrap().unwrap();
    }
}
