//! An operator sees in PostgreSQL who holds what, and in the process who waits for what.

use std::time::Duration;

use tower_realm_lock::{Claim, LockKey, RealmLocks};

use crate::support::claims::{cards, realm, realm_key, whole, work};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::postgres_locks_with;
use crate::support::wait::wait_until;

/// What PostgreSQL shows of whoever holds a key.
async fn shown(database: &TestDatabase, key: i64) -> Option<String> {
    let pid = database.holder_pid(key).await?;
    let client = database.connect().await;
    let query = "SELECT query FROM pg_stat_activity WHERE pid = $1";
    let row = client.query_opt(query, &[&pid]).await.unwrap()?;
    Some(row.get(0))
}

#[tokio::test]
async fn the_holder_of_a_realm_is_named_in_pg_stat_activity_from_the_grant_to_the_end() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| {
        builder.lease(Duration::from_millis(300))
    })
    .await;
    let inside = work(&locks, &whole(["a"])).inside().await;
    let comment = format!("/* realm {} */", realm("a"));
    // At first that of the grant, which also locks; then the heartbeats'.
    assert!(
        shown(&database, realm_key("a"))
            .await
            .unwrap()
            .contains(&comment)
    );
    wait_until("a heartbeat", async || {
        shown(&database, realm_key("a")).await.unwrap() == comment
    })
    .await;
    inside.end().await;
    database.wait_for_granted(realm_key("a"), 0).await;
    let client = database.connect().await;
    let named = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND query LIKE '%{comment}%' AND pid <> pg_backend_pid()"
    );
    assert_eq!(
        client
            .query_one(&named, &[])
            .await
            .unwrap()
            .get::<_, i64>(0),
        0
    );
}

#[tokio::test]
async fn no_name_can_do_more_than_be_shown() {
    let database = database().await;
    let client = database.connect().await;
    client.batch_execute("CREATE TABLE cards ()").await.unwrap();
    let locks = postgres_locks_with(database.url(), |builder| {
        builder.pool_size(1).broadcast(true)
    })
    .await;
    for path in [
        "*/ DROP TABLE cards; /*",
        "*/; COMMIT; DROP TABLE cards; --",
        "' ; DROP TABLE cards; --",
        "\\'; DROP TABLE cards; --",
        "/*",
        "*/",
        "line\nDROP TABLE cards;\r\0",
        "$1 $$ %s ü \u{202e}",
    ] {
        let realm = format!(
            "http://realms.test/*%2A{}*/",
            path.replace(
                ['/', '\n', '\r', '\0', ' ', '\\', '$', '%', '\u{202e}'],
                "%20"
            )
        );
        let claim = Claim::resources(&realm.parse().unwrap(), [path]);
        let key = claim.realms().first().map(LockKey::of).unwrap();
        let inside = work(&locks, &claim).inside().await;
        let shown = shown(&database, key.value().unwrap()).await.unwrap();
        assert!(
            shown.contains("/* realm http://realms.test/%2A%2A"),
            "{shown}"
        );
        assert_eq!(shown.matches("*/").count(), 1, "{shown}");
        inside.end().await;
    }
    client.batch_execute("SELECT FROM cards").await.unwrap();
}

#[tokio::test]
async fn a_process_knows_who_holds_and_who_waits() {
    let database = database().await;
    for locks in [
        postgres_locks_with(database.url(), |builder| builder).await,
        RealmLocks::in_process(),
    ] {
        assert!(locks.status().is_empty());
        let claims = [
            whole(["a"]),
            cards("b", ["x"]),
            whole(["a", "b"]),
            cards("b", ["y"]),
        ];
        let mut insides = Vec::new();
        for claim in &claims[..2] {
            insides.push(work(&locks, claim).inside().await);
        }
        let mut waiters = Vec::new();
        for (count, claim) in claims.iter().enumerate().skip(2) {
            waiters.push(work(&locks, claim));
            wait_until("the waiter", async || locks.status().len() == count + 1).await;
        }
        let status = locks.status();
        let named: Vec<_> = status
            .iter()
            .map(|status| (status.claim().clone(), status.is_held()))
            .collect();
        let expected: Vec<_> = claims
            .iter()
            .cloned()
            .zip([true, true, false, false])
            .collect();
        assert_eq!(named, expected);
        assert!(status[0].since() >= status[1].since());
        for inside in insides {
            inside.end().await;
        }
        for waiter in waiters {
            waiter.inside().await.end().await;
        }
        assert!(locks.status().is_empty());
    }
}

#[tokio::test]
async fn who_waits_in_postgresql_is_no_holder_yet() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder).await;
    let holder = database.hold(realm_key("a")).await;
    let waiter = work(&locks, &whole(["a"]));
    database.wait_for_waiting(realm_key("a"), 1).await;
    assert!(!locks.status()[0].is_held());
    drop(holder);
    let inside = waiter.inside().await;
    assert!(locks.status()[0].is_held());
    inside.end().await;
}
