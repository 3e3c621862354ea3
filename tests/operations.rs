//! The queries of `docs/operations.md` say what the page claims, while realms are held and waited for.

mod support;

use support::claims::{cards, realm, realm_key, whole, work};
use support::database::{database, rows};
use support::gate::postgres_locks_with;
use support::page::block;
use tower_realm_lock::RealmLocks;

const PAGE: &str = include_str!("../docs/operations.md");

/// The query of the page that contains a word.
fn query(word: &str) -> &'static str {
    block(PAGE, "sql", word)
}

async fn replica(url: &str, name: &str, sessions: u32) -> RealmLocks {
    let mark = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{mark}application_name={name}");
    postgres_locks_with(&url, |builder| builder.sessions(sessions)).await
}

#[tokio::test]
async fn holders_and_waiters_are_found_by_name() {
    let database = database().await;
    let client = database.connect().await;
    let one = replica(database.url(), "one", 0).await;
    let other = replica(database.url(), "other", 0).await;
    let inside = work(&one, &whole(["a"])).inside().await;
    let card = work(&one, &cards("b", ["x"])).inside().await;
    let waiting = work(&other, &whole(["a"]));
    database.wait_for_waiting(realm_key("a"), 1).await;

    let found: Vec<_> = rows(&client, query("in_transaction_for"))
        .await
        .iter()
        .map(|row| {
            let get = |column| row.get(column).unwrap_or_default().to_owned();
            [
                get("application_name"),
                get("granted"),
                get("mode"),
                get("locked"),
                get("lock_key"),
            ]
        })
        .collect();
    let expected = |replica: &str, granted: &str, mode: &str, locked: String, key: i64| {
        [replica, granted, mode, &locked, &key.to_string()].map(str::to_owned)
    };
    let a = || format!("realm {}", realm("a"));
    let b = format!("realm {} (x)", realm("b"));
    assert!(
        found.contains(&expected("one", "t", "ExclusiveLock", a(), realm_key("a"))),
        "{found:?}"
    );
    assert!(
        found.contains(&expected(
            "other",
            "f",
            "ExclusiveLock",
            a(),
            realm_key("a")
        )),
        "{found:?}"
    );
    assert!(
        found.contains(&expected("one", "t", "ShareLock", b, realm_key("b"))),
        "{found:?}"
    );

    let blocked = rows(&client, query("pg_blocking_pids")).await;
    assert_eq!(blocked.len(), 1);
    assert_eq!(blocked[0].get("wants"), Some(&*a()));
    assert_eq!(
        (blocked[0].get("application_name"), blocked[0].get("state")),
        (Some("one"), Some("idle in transaction"))
    );

    inside.end().await;
    waiting.inside().await.end().await;
    card.end().await;
    assert!(rows(&client, query("in_transaction_for")).await.is_empty());
}

#[tokio::test]
async fn a_key_is_computed_as_the_crate_does_and_its_holder_can_be_ended() {
    let database = database().await;
    let client = database.connect().await;
    let of = query("sha256").replace(
        "https://realms.example.com/luke/my-realm/",
        realm("a").as_str(),
    );
    let key = rows(&client, &of).await[0]
        .get("lock_key")
        .unwrap()
        .to_owned();
    assert_eq!(key, realm_key("a").to_string());

    let end = query("pg_terminate_backend").replace("77324559412694263", &key);
    for sessions in [0, 1] {
        let locks = replica(database.url(), "stuck", sessions).await;
        let (enter, entered) = tokio::sync::oneshot::channel();
        let stuck = tokio::spawn(async move {
            let work = |_| async {
                enter.send(()).unwrap();
                std::future::pending::<Result<(), tower_realm_lock::LockError>>().await
            };
            locks.with_write_lock(whole(["a"]), work).await
        });
        entered.await.unwrap();
        assert_eq!(rows(&client, &end).await.len(), 1);
        let lost = tokio::time::timeout(support::wait::PATIENCE, stuck)
            .await
            .unwrap()
            .unwrap();
        assert!(
            matches!(lost, Err(tower_realm_lock::LockError::Lost { .. })),
            "{lost:?}"
        );
    }
}

#[tokio::test]
async fn the_queue_of_broadcasts_can_be_looked_at() {
    let database = database().await;
    let client = database.connect().await;
    let usage = rows(&client, query("pg_notification_queue_usage")).await;
    assert!(usage[0].get(0).unwrap().parse::<f64>().unwrap() < 0.1);
    // The table of numbers is that of the code.
    let code = include_str!("../src/metrics.rs");
    for name in code
        .split('"')
        .filter(|text| text.starts_with("realm_lock_"))
    {
        assert!(PAGE.contains(&format!("| `{name}")), "{name}");
    }
}
