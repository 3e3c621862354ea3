//! What the page tells to look at.

use tower_realm_lock::{LockKey, RealmUrl};

use super::{KEY, World, block, table, value};
use crate::support::database::{database, rows};

#[tokio::test]
async fn what_the_page_tells_to_look_at_is_there_to_see() {
    let mut world = World::new().await;
    let by_hand = world.database.connect().await;
    by_hand
        .batch_execute(block("sql", "SET LOCAL application_name"))
        .await
        .unwrap();
    let write = world.write();
    world.database.wait_for_waiting(KEY, 1).await;
    let other = world.database.connect().await;
    let seen: Vec<_> = rows(&other, block("sql", "ORDER BY l.granted"))
        .await
        .iter()
        .map(|row| [row.get(0), row.get(1)].map(|cell| cell.unwrap_or_default().to_owned()))
        .collect();
    let shown = block("text", "by hand").lines().skip(2);
    let shown: Vec<_> = shown
        .map(|line| {
            let (name, granted) = line.split_once('|').unwrap();
            [name, granted].map(|cell| cell.trim().to_owned())
        })
        .collect();
    assert_eq!(seen, shown);

    let pair = world.database.connect().await;
    let lock = "SELECT pg_advisory_lock_shared(-1, 7)";
    pair.batch_execute(lock).await.unwrap();
    let mut found = Vec::new();
    for row in rows(&other, block("sql", "<> 'realm-locks'")).await {
        let cells = ["lock_key", "mode", "query"].map(|name| row.get(name).unwrap().to_owned());
        found.push(cells);
    }
    found.sort();
    let taken = format!("SELECT pg_advisory_xact_lock({KEY});");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0], ["(-1, 7)", "ShareLock", lock].map(str::to_owned));
    assert_eq!(found[1][..2], [KEY.to_string(), "ExclusiveLock".to_owned()]);
    assert!(found[1][2].contains(&taken), "{found:?}");

    by_hand.batch_execute("COMMIT").await.unwrap();
    let inside = world.gate.entered().await;
    assert_eq!(value(&other, block("sql", "AS free")).await, "f");
    inside.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn the_numbers_of_the_page_are_those_of_the_crate_and_of_postgresql() {
    let numbers: Vec<i64> = table("realm URL")
        .into_iter()
        .map(|row| {
            let number = row[1].parse().unwrap();
            let realm: RealmUrl = row[0].parse().unwrap();
            assert_eq!(
                (LockKey::of(&realm).value(), realm.as_str()),
                (Some(number), row[0])
            );
            number
        })
        .collect();
    // Measured on servers in JavaScript.
    let measured = [KEY, -2_355_824_123_773_129_196, 7_979_136_420_165_443_927];
    assert_eq!(numbers, measured);
    let client = database().await.connect().await;
    assert_eq!(
        value(&client, block("sql", "sha256")).await,
        KEY.to_string()
    );
}
