//! A table that handlers write to in the transaction that they share with their lock.

use tower_realm_lock::HeldLock;

use super::database::{TestDatabase, database};

/// A database with the table `writes`.
pub async fn database_with_writes() -> TestDatabase {
    let database = database().await;
    let client = database.connect().await;
    let table = client.batch_execute("CREATE TABLE writes (n int)").await;
    table.expect("the table is made");
    database
}

/// Writes one row in the shared transaction of a hold.
pub async fn insert(held: &HeldLock) {
    let transaction = held.transaction().expect("the transaction is shared");
    let client = transaction.client().expect("the hold has not ended");
    let insert = client.batch_execute("INSERT INTO writes VALUES (1)").await;
    insert.expect("the row is written");
}

/// How many rows others see.
pub async fn written(database: &TestDatabase) -> i64 {
    let client = database.connect().await;
    let row = client.query_one("SELECT count(*) FROM writes", &[]).await;
    row.expect("the table is there").get(0)
}
