//! The queries of `docs/operations.md` say what the page claims, while realms are held and waited for.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tower::Layer;
use tower_realm_lock::{LockError, RealmLocks, RealmWriteLockLayer};

use crate::support::claims::{cards, realm, realm_key, whole, work};
use crate::support::cluster::Cluster;
use crate::support::database::{database, database_on, rows, server_version, try_connect};
use crate::support::gate::{
    answered, assert_lost, gate, patch, postgres_layer, postgres_locks_with, realms,
};
use crate::support::page::block;
use crate::support::wait::wait_until;

const PAGE: &str = include_str!("../../docs/operations.md");

/// The query of the page that contains a word.
fn query(word: &str) -> &'static str {
    block(PAGE, "sql", word)
}

/// The page's query for who keeps whom waiting, as it says for PostgreSQL 13.
async fn query_of_blockers(client: &Client) -> String {
    let query = query("pg_blocking_pids");
    if server_version(client).await >= 14 {
        return query.to_owned();
    }
    assert!(PAGE.contains("On 13 write `waiting.query_start` for"));
    query.replace("l.waitstart", "waiting.query_start")
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

    let blocked = rows(&client, &query_of_blockers(&client).await).await;
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

const URL: &str = "https://realms.example.com/luke/my-realm/";

/// The statement that frees a realm, for a realm of these tests.
fn free(name: &str) -> String {
    let free = query("WITH realm");
    assert!(free.contains(URL));
    free.replace(URL, realm(name).as_str())
}

#[tokio::test]
async fn a_key_is_computed_as_the_crate_does() {
    let database = database().await;
    let client = database.connect().await;
    for (name, decoded) in [("a", "a"), ("a%20b", "a b"), ("%C3%A9", "é")] {
        let url = realm(name).as_str().replace(name, decoded);
        let of = query("       AS lock_key;").replace(URL, &url);
        let found = rows(&client, &of).await;
        let key = realm_key(name).to_string();
        assert_eq!(found[0].get("lock_key"), Some(&*key));
    }
}

#[tokio::test]
async fn a_realm_is_freed_by_its_url_however_its_lock_is_held() {
    let database = database().await;
    let client = database.connect().await;
    for (sessions, claims, mode) in [
        (0, vec![whole(["a"])], "ExclusiveLock"),
        (1, vec![whole(["a"])], "ExclusiveLock"),
        (0, vec![cards("a", ["x"]), cards("a", ["y"])], "ShareLock"),
        // They share one lock of their session.
        (1, vec![cards("a", ["x"])], "ShareLock"),
        (0, vec![whole(["a", "c"])], "ExclusiveLock"),
    ] {
        let locks = replica(database.url(), "stuck", sessions).await;
        let mut stuck = Vec::new();
        for claim in &claims {
            stuck.push(work(&locks, claim).inside().await);
        }
        assert!(rows(&client, &free("b")).await.is_empty());
        let ended = rows(&client, &free("a")).await;
        assert_eq!(ended.len(), claims.len(), "{claims:?}");
        for row in ended {
            assert_eq!(row.get("is_signalled"), Some("t"));
            assert_eq!(row.get("mode"), Some(mode));
            assert_eq!(row.get("application_name"), Some("stuck"));
        }
        for work in stuck {
            let lost = work.failed().await;
            assert!(matches!(lost, LockError::Lost { .. }), "{lost:?}");
        }
        database.wait_for_granted(realm_key("a"), 0).await;
    }
}

#[tokio::test]
async fn the_writer_of_a_realm_that_is_freed_gets_503_and_the_next_one_goes_on() {
    let database = database().await;
    let client = database.connect().await;
    let replicas = [
        postgres_layer(database.url()).await,
        postgres_layer(database.url()).await,
    ];
    let (handler, mut gate) = gate();
    let stuck = patch(&replicas[0], &handler, "/luke/a/card");
    let mut call = gate.entered().await;
    let next = patch(&replicas[1], &handler, "/luke/a/card");
    database.wait_for_waiting(realm_key("a"), 1).await;
    assert_eq!(rows(&client, &free("a")).await.len(), 1);
    assert_lost(&answered(stuck).await);
    call.dropped().await;
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

/// The columns of the rows of a query that have a value.
async fn columns(client: &Client, query: &str) -> Vec<Vec<String>> {
    let found = rows(client, query).await;
    let filled = found.iter().map(|row| {
        let names = row.columns().iter().map(|column| column.name().to_owned());
        names.filter(|name| row.get(&**name).is_some()).collect()
    });
    filled.collect()
}

/// Connections of two new roles without any rights, `app` and `operator`.
async fn ordinary_roles(admin: &Client, as_role: impl Fn(&str) -> String) -> [Client; 2] {
    let roles = "CREATE ROLE app LOGIN; CREATE ROLE operator LOGIN";
    admin.batch_execute(roles).await.unwrap();
    let [app, operator] = ["app", "operator"].map(as_role);
    [
        try_connect(&app).await.unwrap(),
        try_connect(&operator).await.unwrap(),
    ]
}

#[tokio::test]
async fn an_ordinary_role_sees_and_does_what_the_page_says() {
    let cluster = Cluster::create().await;
    let database = database_on(&cluster).await;
    let admin = database.connect().await;
    let as_role = |role: &str| database.url().replace("postgres@", &format!("{role}@"));
    let [app, operator] = ordinary_roles(&admin, as_role).await;
    let fenced = postgres_locks_with(&as_role("app"), |builder| builder.fencing(true)).await;
    let session = replica(&as_role("app"), "session", 1).await;
    let telling = postgres_locks_with(&as_role("app"), |builder| builder.broadcast(true)).await;
    for locks in [&fenced, &session, &telling] {
        work(locks, &whole(["a"])).inside().await.end().await;
    }
    let held = work(&fenced, &whole(["a"])).inside().await;
    let waiting = work(&telling, &whole(["a"]));
    database.wait_for_waiting(realm_key("a"), 1).await;

    let (holders, blockers) = (query("in_transaction_for"), query_of_blockers(&admin).await);
    let blockers = &*blockers;
    let all_of_holders = [
        "pid",
        "application_name",
        "client_addr",
        "granted",
        "mode",
        "in_transaction_for",
        "locked",
        "lock_key",
    ];
    let all_of_blockers = [
        "pid",
        "waits_for",
        "lock_key",
        "wants",
        "held_by",
        "application_name",
        "client_addr",
        "state",
        "held_for",
    ];
    let some_of_holders = ["pid", "application_name", "granted", "mode", "lock_key"];
    let mut some_of_blockers = vec![
        "pid",
        "waits_for",
        "lock_key",
        "held_by",
        "application_name",
    ];
    // The time of a statement is not everybody's to see.
    some_of_blockers.retain(|it| *it != "waits_for" || !blockers.contains("query_start"));
    assert_eq!(columns(&app, holders).await, [all_of_holders; 2]);
    assert_eq!(columns(&app, blockers).await, [all_of_blockers]);
    assert_eq!(columns(&operator, holders).await, [some_of_holders; 2]);
    assert_eq!(columns(&operator, blockers).await, [some_of_blockers]);
    rows(&operator, query("       AS lock_key;")).await;
    rows(&operator, query("pg_notification_queue_usage")).await;
    let refusal = async || {
        let refused = operator.simple_query(&free("a")).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    };
    refusal().await;

    let read = "GRANT pg_read_all_stats TO operator";
    admin.batch_execute(read).await.unwrap();
    assert_eq!(columns(&operator, holders).await, [all_of_holders; 2]);
    admin
        .batch_execute(&read.replace("GRANT", "REVOKE").replace("TO", "FROM"))
        .await
        .unwrap();
    assert_eq!(columns(&operator, holders).await, [some_of_holders; 2]);
    admin
        .batch_execute(query("GRANT pg_monitor"))
        .await
        .unwrap();
    assert_eq!(columns(&operator, holders).await, [all_of_holders; 2]);
    assert_eq!(columns(&operator, blockers).await, [all_of_blockers]);
    assert_eq!(rows(&operator, &free("a")).await.len(), 1);
    assert!(matches!(held.failed().await, LockError::Lost { .. }));
    let inside = waiting.inside().await;
    // The replicas' own role needs no grant.
    assert_eq!(rows(&app, &free("a")).await.len(), 1);
    assert!(matches!(inside.failed().await, LockError::Lost { .. }));

    // Nobody but a superuser ends a superuser's backend.
    let as_superuser = replica(database.url(), "superuser", 0).await;
    let held = work(&as_superuser, &whole(["a"])).inside().await;
    refusal().await;
    held.end().await;
}

#[tokio::test]
async fn what_a_fleet_has_published_is_shown() {
    let cluster = Cluster::create().await;
    let database = database_on(&cluster).await;
    let admin = database.connect().await;
    let as_role = |role: &str| database.url().replace("postgres@", &format!("{role}@"));
    let [app, operator] = ordinary_roles(&admin, as_role).await;
    let (handler, _gate) = gate();
    let mut services = Vec::new();
    for name in ["one", "other"] {
        let locks = replica(&as_role("app"), name, 0).await;
        let layer = RealmWriteLockLayer::new(locks, realms()).fleet("realms-prod");
        services.push(layer.layer(handler.clone()));
    }
    let published = query("array_agg");
    wait_until("both have published the same", async || {
        let found = rows(&app, published).await;
        let names: Vec<_> = found
            .iter()
            .map(|row| row.get("application_name"))
            .collect();
        let first = found.first().and_then(|row| row.get("published"));
        names == [Some("one"), Some("other")]
            && found.iter().all(|row| row.get("published") == first)
    })
    .await;
    let all = ["application_name", "client_addr", "pid", "published"];
    assert_eq!(columns(&app, published).await, [all; 2]);
    let some = ["application_name", "pid", "published"];
    assert_eq!(columns(&operator, published).await, [some; 2]);
}

#[tokio::test]
async fn the_queue_of_broadcasts_can_be_looked_at() {
    let database = database().await;
    let client = database.connect().await;
    let usage = rows(&client, query("pg_notification_queue_usage")).await;
    assert!(usage[0].get(0).unwrap().parse::<f64>().unwrap() < 0.1);
    // The table of numbers is that of the code.
    let code = include_str!("../../src/metrics.rs");
    for name in code
        .split('"')
        .filter(|text| text.starts_with("realm_lock_"))
    {
        assert!(PAGE.contains(&format!("| `{name}")), "{name}");
    }
}
