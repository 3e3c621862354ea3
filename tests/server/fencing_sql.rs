//! The statements of `docs/fencing.md` refuse a writer whose hold is over, in a database of any
//! collation.

use tokio::sync::oneshot;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tower_realm_lock::{HeldLock, LockError, RealmLocks};

use crate::support::claims::{realm, realm_key, whole};
use crate::support::database::{
    TestDatabase, database, server_version, try_connect, with_database,
};
use crate::support::gate::postgres_locks_with;
use crate::support::page::block;

const PAGE: &str = include_str!("../../docs/fencing.md");

fn sql(word: &str) -> &'static str {
    block(PAGE, "sql", word)
}

/// Writes the one card of these tests with the page's statement; how many rows that affected.
async fn write(client: &Client, write: &str, document: &str, token: &str) -> u64 {
    let realm = realm("a");
    let parameters = [realm.as_str(), "card", document, token];
    let parameters = parameters.each_ref().map(|it| it as &(dyn ToSql + Sync));
    client.execute(write, &parameters).await.unwrap()
}

async fn document(client: &Client) -> Option<String> {
    let row = client.query_one("SELECT document FROM card", &[]).await;
    row.unwrap().get(0)
}

/// A token that ends like this.
fn token(end: &str) -> String {
    format!("{end:0>48}")
}

/// A database in which texts are ordered as in Danish.
struct Danish {
    name: String,
    client: Client,
    /// The server's other database, from which this one is dropped.
    beside: TestDatabase,
}

impl Danish {
    async fn create() -> Self {
        let beside = database().await;
        let name = format!("{}_da", beside.name());
        let create = format!(
            "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' \
             LOCALE_PROVIDER icu ICU_LOCALE 'da'"
        );
        beside.connect().await.batch_execute(&create).await.unwrap();
        let url = with_database(beside.url(), &name);
        let client = try_connect(&url).await.unwrap();
        Self {
            name,
            client,
            beside,
        }
    }

    async fn remove(self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        let admin = self.beside.connect().await;
        admin.batch_execute(&drop).await.unwrap();
    }
}

#[tokio::test]
async fn the_order_of_tokens_is_theirs_and_not_that_of_a_language() {
    let version = server_version(&database().await.connect().await).await;
    if version < 15 {
        eprintln!("not tested on PostgreSQL {version}: databases ordered by ICU, which need 15");
        return;
    }
    let danish = Danish::create().await;
    let (older, newer) = (token("aa"), token("ab"));
    let plain = sql("CREATE TABLE card").replace(" COLLATE \"C\"", "");
    for (table, collated) in [(sql("CREATE TABLE card"), true), (&*plain, false)] {
        danish.client.batch_execute(table).await.unwrap();
        assert_eq!(
            write(&danish.client, sql("INTO card"), "1", &older).await,
            1
        );
        let affected = write(&danish.client, sql("INTO card"), "2", &newer).await;
        // Without the collation the current writer is refused.
        assert_eq!(affected, u64::from(collated), "{table}");
        if !collated {
            let with = sql("INTO card").replace(
                "card.token <= excluded.token",
                "card.token COLLATE \"C\" <= excluded.token COLLATE \"C\"",
            );
            assert!(PAGE.contains("card.token COLLATE \"C\" <= excluded.token COLLATE \"C\""));
            assert_eq!(write(&danish.client, &with, "2", &newer).await, 1);
        }
        // A change of the column is as good as a column made so.
        let alter = "ALTER TABLE card ALTER token TYPE text COLLATE \"C\"";
        assert!(PAGE.contains(alter));
        danish.client.batch_execute(alter).await.unwrap();
        assert_eq!(
            write(&danish.client, sql("INTO card"), "3", &older).await,
            0
        );
        assert_eq!(document(&danish.client).await.unwrap(), "2");
        danish
            .client
            .batch_execute("DROP TABLE card")
            .await
            .unwrap();
    }
    danish.remove().await;
}

#[test]
fn the_handler_of_the_page_sends_the_statement_of_the_page() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let statement = words(sql("INTO card").trim_end_matches([';', '\n']));
    assert!(words(block(PAGE, "rust,no_run", "INTO card")).contains(&statement));
}

/// A database with this table of the page, and a connection to it.
async fn with_table(create: &str) -> (TestDatabase, Client) {
    let database = database().await;
    let client = database.connect().await;
    client.batch_execute(sql(create)).await.unwrap();
    (database, client)
}

#[tokio::test]
async fn a_text_that_is_no_whole_token_is_refused() {
    let (_database, client) = with_table("CREATE TABLE card").await;
    for text in ["", "ab", &token("AB"), &token("x")] {
        let insert = format!("INSERT INTO card VALUES ('r', 'p', 'd', '{text}')");
        let refused = client.batch_execute(&insert).await.unwrap_err();
        let refused = refused.as_db_error().unwrap().message().to_owned();
        assert!(refused.contains("check constraint"), "{refused}");
    }
}

fn token_of(held: &HeldLock) -> String {
    held.fencing_token().unwrap().to_string()
}

/// A hold whose lock is taken away, and its token; and a hold that comes after it.
async fn late_and_current(database: &TestDatabase) -> [String; 2] {
    let replica = || postgres_locks_with(database.url(), |builder| builder.fencing(true));
    let (send, late) = oneshot::channel();
    let frozen = tokio::spawn({
        let locks: RealmLocks = replica().await;
        let work = move |held: HeldLock| async move {
            send.send(token_of(&held)).unwrap();
            std::future::pending::<Result<(), LockError>>().await
        };
        async move { locks.with_write_lock(whole(["a"]), work).await }
    });
    let late = late.await.unwrap();
    let holder = database.holder_pid(realm_key("a")).await.unwrap();
    database.terminate(holder).await;
    let work = |held: HeldLock| async move { Ok::<_, LockError>(token_of(&held)) };
    let current = replica().await.with_write_lock(whole(["a"]), work).await;
    assert!(matches!(frozen.await.unwrap(), Err(LockError::Lost { .. })));
    [late, current.unwrap()]
}

#[tokio::test]
async fn a_write_of_a_hold_that_is_over_changes_nothing() {
    let (database, client) = with_table("CREATE TABLE card").await;
    let [late, current] = late_and_current(&database).await;
    let statement = sql("INTO card");

    assert_eq!(write(&client, statement, "read by both", &late).await, 1);
    // One hold writes twice.
    assert_eq!(write(&client, statement, "first", &current).await, 1);
    assert_eq!(write(&client, statement, "second", &current).await, 1);
    assert_eq!(write(&client, statement, "late", &late).await, 0);
    assert_eq!(document(&client).await.unwrap(), "second");
    let strict = statement.replace("<=", "<");
    assert_eq!(write(&client, &strict, "third", &current).await, 0);

    // A deleted card stays deleted.
    let delete = "UPDATE card SET document = NULL";
    client.batch_execute(delete).await.unwrap();
    assert_eq!(write(&client, statement, "late", &late).await, 0);
    assert_eq!(document(&client).await, None);
}

#[tokio::test]
async fn a_realms_token_refuses_late_writes_of_cards_that_nobody_has_written_since() {
    let (database, client) = with_table("CREATE TABLE fence").await;
    let [late, current] = late_and_current(&database).await;
    let realm = realm("a");
    let raise = async |client: &Client, token: &String| {
        let parameters: [&(dyn ToSql + Sync); 2] = [&realm.as_str(), token];
        client
            .execute(sql("INTO fence"), &parameters)
            .await
            .unwrap()
    };
    assert_eq!(raise(&client, &late).await, 1);
    // The late hold is in the middle of a transaction: the current one reads after it.
    let other = database.connect().await;
    // Within a transaction `pg_stat_activity` does not change.
    let observer = database.connect().await;
    other.batch_execute("BEGIN").await.unwrap();
    assert_eq!(raise(&other, &late).await, 1);
    let (raised, ()) = tokio::join!(raise(&client, &current), async {
        crate::support::wait::wait_until("the current hold waits", async || {
            let query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                         AND datname = current_database()";
            observer.query(query, &[]).await.unwrap().len() == 1
        })
        .await;
        other.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(raised, 1);
    assert_eq!(raise(&client, &current).await, 1);
    assert_eq!(raise(&client, &late).await, 0);
}
