//! Locks of one's own SQL.

use http::Method;
use tower_realm_lock::{LockKey, LockRules, Scope};

use super::{CARD, KEY, World, layer_on, value};
use crate::support::database::database;
use crate::support::gate::patch;

#[tokio::test]
async fn locks_by_hand_on_the_same_number_and_requests_wait_for_each_other() {
    let mut world = World::new().await;
    let unlock = format!("SELECT pg_advisory_unlock({KEY})");
    for (before, lock, after) in [
        ("BEGIN", "SELECT pg_advisory_xact_lock($1)", "COMMIT"),
        ("BEGIN", "SELECT pg_advisory_xact_lock_shared($1)", "COMMIT"),
        ("", "SELECT pg_advisory_lock($1)", &unlock),
    ] {
        world.excludes(before, lock, after).await;
    }

    let attempt = format!("BEGIN; SELECT pg_try_advisory_xact_lock({KEY})");
    let by_hand = world.database.connect().await;
    assert_eq!(value(&by_hand, &attempt).await, "t");
    let write = world.write();
    world.database.wait_for_waiting(KEY, 1).await;
    by_hand.batch_execute("COMMIT").await.unwrap();
    let inside = world.gate.entered().await;
    assert_eq!(value(&by_hand, &attempt).await, "f");
    // Only the session that has it can give it away.
    assert_eq!(value(&by_hand, &unlock).await, "f");
    inside.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_key_that_is_shared_by_hand_keeps_out_realms_but_not_resources() {
    let mut world = World::new().await;
    let cards = LockRules::new()
        .scope(Method::PATCH, "/{owner}/{realm}/{*card}", Scope::resource())
        .unwrap();
    world.layer = world.layer.rules(cards).unwrap();
    let by_hand = world.database.connect().await;
    let lock = format!("BEGIN; SELECT pg_advisory_xact_lock_shared({KEY})");
    by_hand.batch_execute(&lock).await.unwrap();
    let write = world.write();
    world.writes(write).await;
}

#[tokio::test]
async fn other_numbers_and_pairs_and_databases_exclude_no_request() {
    let mut world = World::new().await;
    let [high, low] = [KEY >> 32, KEY << 32 >> 32];
    let elsewhere = database().await;
    let others = [
        (&world.database, "hashtext('luke/my-realm')".to_owned()),
        (&world.database, format!("{high}, {low}")),
        (&elsewhere, KEY.to_string()),
    ];
    let mut held = Vec::new();
    for (database, number) in &others {
        let client = database.connect().await;
        let lock = format!("SELECT pg_advisory_lock({number})");
        client.batch_execute(&lock).await.unwrap();
        held.push(client);
    }
    let write = world.write();
    let inside = world.gate.entered().await;
    // The pair has the same bits, as PostgreSQL shows them.
    let bits = "SELECT count(*) FROM pg_locks l JOIN pg_locks pair USING (database, classid, objid) \
                WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND pair.objsubid = 2 \
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(value(&held[0], bits).await, "1");
    inside.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn two_deploys_lead_from_one_number_to_the_other() {
    let mut world = World::new().await;
    let number = LockKey::in_space("old", 1).unwrap().value().unwrap();
    let lock = format!("BEGIN; SELECT pg_advisory_xact_lock({number})");
    let before = world.database.connect().await;
    before.batch_execute(&lock).await.unwrap();

    // The first deploy: in the handler, within the layer, the old lock is taken still.
    let first = world.write();
    let inside = world.gate.entered().await;
    let client = world.database.connect().await;
    let both = tokio::spawn(async move {
        client.batch_execute(&lock).await.unwrap();
        client
    });
    world.database.wait_for_waiting(number, 1).await;
    // The second: the layer alone.
    let after = layer_on(&world.database).await;
    let second = patch(&after, &world.handler, CARD);
    world.database.wait_for_waiting(KEY, 1).await;

    before.batch_execute("COMMIT").await.unwrap();
    let client = both.await.unwrap();
    assert!(world.gate.is_empty());
    client.batch_execute("COMMIT").await.unwrap();
    inside.answer(200);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    world.writes(second).await;
}

#[tokio::test]
async fn a_handler_cannot_take_its_own_key_by_hand_but_in_the_shared_transaction() {
    let mut world = World::new().await;
    let lock = format!("SELECT pg_try_advisory_xact_lock({KEY})");
    world.layer = world.layer.map_locks(|locks| locks.share_transaction(true));
    let write = world.write();
    let inside = world.gate.entered().await;
    let by_hand = world.database.connect().await;
    assert_eq!(value(&by_hand, &lock).await, "f");
    let shared = inside.transaction().client().unwrap();
    assert_eq!(value(&shared, &lock).await, "t");
    drop(shared);
    inside.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}
