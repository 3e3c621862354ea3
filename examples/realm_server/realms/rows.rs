//! The rows of realms, written in the transaction that holds the realm's lock.

use tokio_postgres::types::{ToSql, Type};
use tower_realm_lock::{Claim, LockError, LockKey, LockTransaction, RealmLocks, TransactionClient};
use uuid::Uuid;

/// `realm_changes` names the changes that stand, until their files are settled.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS realm_registry (
        url text PRIMARY KEY,
        owner text NOT NULL,
        kind text NOT NULL CHECK (kind IN ('created', 'published')),
        source_url text,
        created_at timestamptz NOT NULL DEFAULT now(),
        CHECK ((kind = 'published') = (source_url IS NOT NULL))
    );
    CREATE TABLE IF NOT EXISTS realm_permissions (
        realm_url text REFERENCES realm_registry ON DELETE CASCADE,
        username text,
        read boolean NOT NULL,
        write boolean NOT NULL,
        PRIMARY KEY (realm_url, username)
    );
    CREATE TABLE IF NOT EXISTS realm_changes (
        id text PRIMARY KEY,
        realm_url text NOT NULL
    )";

const FOUND: &str = "
    SELECT count(to_regclass(name)) = 3
    FROM unnest('{realm_registry,realm_permissions,realm_changes}'::text[]) name";

/// Everybody, in `realm_permissions`.
const EVERYBODY: &str = "*";

#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the database refused a statement about realms")]
    Database(#[from] tokio_postgres::Error),
    #[error("the table 'realm_registry' has a row of this realm already")]
    Exists,
}

/// Makes the tables. Replicas that start at the same time do so one after the other: PostgreSQL's `IF NOT EXISTS` alone can
/// fail when two sessions make one table.
pub async fn make_tables(locks: &RealmLocks) -> Result<(), RowsError> {
    let schema = Claim::from(LockKey::in_space("realm_server", "schema").expect("a space"));
    let locks = locks.clone().share_transaction(true);
    locks
        .with_write_lock(schema, |held| async move {
            let Some(transaction) = held.transaction() else {
                return Ok(());
            };
            let client = transaction.client()?;
            // Who may not create tables may use those that are there; `IF NOT EXISTS` alone would refuse.
            let found = client.query_typed_one(FOUND, &[]).await?;
            if !found.get::<_, bool>(0) {
                client.batch_execute(SCHEMA).await?;
            }
            Ok(())
        })
        .await
}

/// Writes what a change makes of the realm's rows, and the change itself.
pub async fn write(
    transaction: &LockTransaction,
    id: Uuid,
    url: &str,
    owner: &str,
    change: &Rows,
) -> Result<(), RowsError> {
    let client = transaction.client()?;
    let id = id.to_string();
    run(
        &client,
        "INSERT INTO realm_changes VALUES ($1, $2)",
        &[&id, url],
    )
    .await?;
    match change {
        Rows::Created => {
            let insert = "INSERT INTO realm_registry (url, owner, kind) VALUES ($1, $2, 'created') \
                          ON CONFLICT DO NOTHING";
            if run(&client, insert, &[url, owner]).await? == 0 {
                return Err(RowsError::Exists);
            }
            permit(&client, url, owner, true).await
        }
        Rows::Published { source } => {
            let insert = "INSERT INTO realm_registry (url, owner, kind, source_url) \
                          VALUES ($1, $2, 'published', $3) ON CONFLICT (url) DO UPDATE \
                          SET kind = 'published', source_url = excluded.source_url";
            run(&client, insert, &[url, owner, source]).await?;
            permit(&client, url, owner, true).await?;
            permit(&client, url, EVERYBODY, false).await
        }
        Rows::Deleted => {
            run(&client, "DELETE FROM realm_registry WHERE url = $1", &[url]).await?;
            Ok(())
        }
    }
}

/// What a change makes of a realm's rows.
pub enum Rows {
    Created,
    Published { source: String },
    Deleted,
}

/// Whether a change stands: its transaction has committed. To be asked under the realm's lock, when no transaction of an
/// earlier hold is open any more.
pub async fn stands(transaction: &LockTransaction, id: Uuid) -> Result<bool, RowsError> {
    let client = transaction.client()?;
    let query = "SELECT FROM realm_changes WHERE id = $1";
    let id = (&id.to_string() as &(dyn ToSql + Sync), Type::TEXT);
    Ok(!client.query_typed(query, &[id]).await?.is_empty())
}

/// Forgets the changes to a realm: its files are settled.
pub async fn forget(transaction: &LockTransaction, url: &str) -> Result<(), RowsError> {
    let client = transaction.client()?;
    run(
        &client,
        "DELETE FROM realm_changes WHERE realm_url = $1",
        &[url],
    )
    .await?;
    Ok(())
}

/// Rolls the transaction back, so that its commit fails: for tests.
pub async fn spoil(transaction: &LockTransaction) -> Result<(), RowsError> {
    Ok(transaction.client()?.batch_execute("ROLLBACK").await?)
}

async fn permit(
    client: &TransactionClient,
    url: &str,
    username: &str,
    write: bool,
) -> Result<(), RowsError> {
    let write = if write { "true" } else { "false" };
    let insert = format!(
        "INSERT INTO realm_permissions VALUES ($1, $2, true, {write}) ON CONFLICT DO NOTHING"
    );
    run(client, &insert, &[url, username]).await?;
    Ok(())
}

/// Runs a statement that prepares nothing, as PgBouncer in transaction mode wants it.
async fn run(
    client: &TransactionClient,
    statement: &str,
    parameters: &[&str],
) -> Result<u64, RowsError> {
    let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|it| it as _).collect();
    let parameters: Vec<_> = parameters.into_iter().map(|it| (it, Type::TEXT)).collect();
    Ok(client.execute_typed(statement, &parameters).await?)
}
