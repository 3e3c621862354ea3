//! What `docs/migrating.md` says of locks by hand, beside locks of this crate, on one database.

mod by_hand;
mod look;
mod node;
mod sqlx;
mod upstream;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tower_realm_lock::{RealmPaths, RealmWriteLockLayer};

use crate::support::database::{TestDatabase, database, rows};
use crate::support::gate::{Gate, Gated, Outcome, gate, patch, postgres_locks_with};
use crate::support::page;

const PAGE: &str = include_str!("../../../docs/migrating.md");

/// The page's realm, a card in it, and its key.
const REALM: &str = "http://localhost:4201/luke/my-realm/";
const CARD: &str = "/luke/my-realm/card";
const KEY: i64 = 77_324_559_412_694_263;

/// The page's block of code in this language that contains a word.
fn block(language: &str, word: &str) -> &'static str {
    page::block(PAGE, language, word)
}

/// The cells of the page's table that begins with this one, without its head.
fn table(first: &str) -> Vec<Vec<&'static str>> {
    let head = format!("| {first} |");
    let lines = PAGE.lines().skip_while(|line| !line.starts_with(&head));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |line: &'static str| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`')).collect()
    };
    rows.map(cells).collect()
}

/// A layer as the page has it, whose handler the test sees.
struct World {
    database: TestDatabase,
    layer: RealmWriteLockLayer,
    handler: Gated,
    gate: Gate,
}

impl World {
    async fn new() -> Self {
        let database = database().await;
        let (handler, gate) = gate();
        Self {
            layer: layer_on(&database).await,
            database,
            handler,
            gate,
        }
    }

    fn write(&self) -> JoinHandle<Outcome> {
        patch(&self.layer, &self.handler, CARD)
    }

    /// A write is let in, and ends.
    async fn writes(&mut self, write: JoinHandle<Outcome>) {
        self.gate.entered().await.answer(200);
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }

    /// A lock that is taken by hand, between two other statements, and a request wait for each other.
    async fn excludes(&mut self, before: &str, lock: &str, after: &str) {
        let by_hand = self.database.connect().await;
        by_hand.batch_execute(before).await.unwrap();
        by_hand.execute(lock, &[&KEY]).await.unwrap();
        let write = self.write();
        self.database.wait_for_waiting(KEY, 1).await;
        assert!(self.gate.is_empty(), "{lock}");
        by_hand.batch_execute(after).await.unwrap();
        self.writes(write).await;

        let write = self.write();
        let inside = self.gate.entered().await;
        by_hand.batch_execute(before).await.unwrap();
        let parameters: [&(dyn ToSql + Sync); 1] = [&KEY];
        let waiting = by_hand.execute(lock, &parameters);
        let answer = async {
            self.database.wait_for_waiting(KEY, 1).await;
            inside.answer(200);
        };
        let (locked, ()) = tokio::join!(waiting, answer);
        locked.unwrap();
        by_hand.batch_execute(after).await.unwrap();
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
}

async fn layer_on(database: &TestDatabase) -> RealmWriteLockLayer {
    let mark = if database.url().contains('?') {
        '&'
    } else {
        '?'
    };
    let url = format!("{}{mark}application_name=realm-locks", database.url());
    let locks = postgres_locks_with(&url, |builder| builder).await;
    let realms = RealmPaths::new("http://localhost:4201", "/{owner}/{realm}").unwrap();
    RealmWriteLockLayer::new(locks, realms)
}

/// The last value of the last row.
async fn value(client: &Client, sql: &str) -> String {
    let rows = rows(client, sql).await;
    let row = rows.last().expect("a row");
    row.get(row.len() - 1).unwrap_or_default().to_owned()
}
