//! Fencing tokens grow from one hold of a realm to the next: across replicas, and through restarts and crashes.

use std::collections::VecDeque;

use tokio_postgres::SimpleQueryMessage;
use tower_realm_lock::{FencingToken, HeldLock, LockError, RealmLocks, RealmWriteLockLayer};

use crate::support::claims::whole;
use crate::support::client::card;
use crate::support::cluster::Cluster;
use crate::support::database::database;
use crate::support::gate::{Gate, Gated, gate, patch, queue, realms};
use crate::support::realms::World;

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
        let client = crate::support::database::try_connect(&cluster.url())
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
        let client = crate::support::database::try_connect(&cluster.url())
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
async fn holds_in_postgresql_have_a_token_only_if_it_was_asked_for() {
    let database = database().await;
    let locks = RealmLocks::postgres(database.url()).await.unwrap();
    let layer = RealmWriteLockLayer::new(locks, realms());
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    assert_eq!(call.held.as_ref().unwrap().fencing_token(), None);
    call.answer(200);
    write.await.unwrap().unwrap();
}

#[tokio::test]
async fn holds_in_process_have_tokens_that_grow_and_that_no_two_have() {
    // Two that were made separately: a token is of the process.
    let layers = [RealmLocks::in_process(), RealmLocks::in_process()]
        .map(|locks| RealmWriteLockLayer::new(locks, realms()));
    let (handler, mut gate) = gate();
    let mut tokens = Vec::new();
    for turn in 0..20 {
        tokens.push(token(&layers[turn % 2], &handler, &mut gate).await);
    }
    // Those that wait get theirs when their turn comes.
    let mut waiting = VecDeque::from([patch(&layers[0], &handler, PATH)]);
    let mut inside = gate.entered().await;
    for _ in 0..5 {
        waiting.push_back(queue(&layers[0], &handler, PATH));
    }
    while let Some(write) = waiting.pop_front() {
        tokens.extend(inside.held.as_ref().unwrap().fencing_token());
        inside.answer(200);
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
        if waiting.is_empty() {
            break;
        }
        inside = gate.entered().await;
    }
    assert_eq!(tokens.len(), 26);
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
    let texts: Vec<String> = tokens.iter().map(ToString::to_string).collect();
    assert!(texts.is_sorted_by(|one, next| one < next), "{texts:?}");
}

#[tokio::test]
async fn a_nested_hold_in_process_has_the_token_of_its_outer_hold() {
    let locks = RealmLocks::in_process();
    let inner_locks = locks.clone();
    let (outer, inner) = locks
        .with_write_lock(whole(["a"]), async move |outer: HeldLock| {
            let inner = inner_locks.with_write_lock(whole(["a"]), async |inner: HeldLock| {
                Ok::<_, LockError>(inner.fencing_token())
            });
            Ok::<_, LockError>((outer.fencing_token(), inner.await?))
        })
        .await
        .unwrap();
    assert!(outer.is_some() && outer == inner);
    let next = locks.with_write_lock(whole(["a"]), async |held: HeldLock| {
        Ok::<_, LockError>(held.fencing_token())
    });
    assert!(next.await.unwrap() > outer);
}

#[tokio::test]
async fn a_store_can_move_from_locks_in_process_to_postgresql() {
    let database = database().await;
    let (handler, mut gate) = gate();
    let in_process = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let before = token(&in_process, &handler, &mut gate).await;
    let after = token(&replica(database.url()).await, &handler, &mut gate).await;
    assert!(before < after, "{before} and then {after}");
}

#[tokio::test]
async fn a_server_with_locks_in_process_goes_on_with_greater_tokens_after_a_restart() {
    let world = World::new(false).await;
    let flags = ["--lock", "in-process", "--fencing"];
    let replica = world.replica(&flags).await;
    world.fill(&replica).await;
    let tokens = async || {
        let files = world.snapshot().await.files;
        let fences = files
            .into_iter()
            .filter(|(name, _)| name.contains(".fence"));
        fences.map(|(_, token)| token).collect::<Vec<_>>()
    };
    let before = tokens().await;
    drop(replica);
    let replica = world.replica(&flags).await;
    let card = card(serde_json::json!({"n": 3}));
    let (status, answer) = world
        .client
        .patch(&replica.url("/luke/source/x"), &card)
        .await;
    assert_eq!(status, 200, "{answer}");
    let after = tokens().await;
    assert_eq!(before.len(), after.len());
    let grown = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before < after);
    assert_eq!(grown.count(), 1, "{before:?} {after:?}");
}
