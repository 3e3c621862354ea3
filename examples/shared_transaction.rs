//! A handler's own SQL in the transaction that holds the lock: a success commits it, a refusal rolls it back.
//!
//! Each realm may spend 100. The handler writes first and decides then; it never has to take a row back itself.
//!
//! ```text
//! export DATABASE_URL=postgres://localhost/realms
//! cargo run --example shared_transaction
//!
//! spent=http://127.0.0.1:3000/luke/my-realm/spent
//! curl -i $spent -H 'content-type: application/json' -d '{"amount":70}'    # 200: committed
//! curl -i $spent -H 'content-type: application/json' -d '{"amount":70}'    # 409: rolled back
//! curl $spent                                                              # 70
//! ```
//!
//! It makes the table `example_spendings`, where what was spent stays: drop it to begin again. `PORT` is where to listen: 3000 if not set.

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::{Json, Router, routing::get};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_postgres::{Client, NoTls};
use tower_realm_lock::{LockTransaction, RealmLocks, RealmPaths, RealmWriteLockLayer};

const BUDGET: i64 = 100;
const TABLE: &str = "CREATE TABLE IF NOT EXISTS example_spendings (realm text, amount int)";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("DATABASE_URL")
        .map_err(|_| "this example needs PostgreSQL: set DATABASE_URL=postgres://…")?;
    // Reads go past the lock, on a connection of their own.
    let (reader, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    reader.batch_execute(TABLE).await?;

    let locks = RealmLocks::postgres(&url).await?.share_transaction(true);
    let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    let layer = RealmWriteLockLayer::new(locks.clone(), realms);
    let app = Router::new()
        .route("/{owner}/{realm}/spent", get(spent).post(spend))
        .layer(layer)
        .with_state(Arc::new(reader));

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("shared_transaction listening on http://{address} (locks in PostgreSQL)");
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await?;
    // Writes whose clients have gone.
    Ok(locks.shutdown(Duration::from_secs(30)).await?)
}

#[derive(Deserialize)]
struct Spending {
    amount: u16,
}

type Realm = Path<(String, String)>;
type Answer = Result<String, (StatusCode, String)>;

async fn spend(
    Extension(transaction): Extension<LockTransaction>,
    Path((owner, realm)): Realm,
    Json(spending): Json<Spending>,
) -> Answer {
    let (realm, amount) = (format!("{owner}/{realm}"), i32::from(spending.amount));
    let client = transaction.client().map_err(failed)?;
    let insert = "INSERT INTO example_spendings VALUES ($1, $2)";
    let inserted = client.execute(insert, &[&realm, &amount]).await;
    inserted.map_err(failed)?;
    let sum = sum(&client, &realm).await.map_err(failed)?;
    if sum > BUDGET {
        let refusal = format!("that would make {sum} of {BUDGET}\n");
        return Err((StatusCode::CONFLICT, refusal));
    }
    Ok(format!("{sum}\n"))
}

async fn spent(State(reader): State<Arc<Client>>, Path((owner, realm)): Realm) -> Answer {
    let sum = sum(&reader, &format!("{owner}/{realm}")).await;
    Ok(format!("{}\n", sum.map_err(failed)?))
}

async fn sum(client: &Client, realm: &str) -> Result<i64, tokio_postgres::Error> {
    let query = "SELECT coalesce(sum(amount), 0) FROM example_spendings WHERE realm = $1";
    Ok(client.query_one(query, &[&realm]).await?.get(0))
}

/// A 500 rolls back as a 409 does.
fn failed(cause: impl Error) -> (StatusCode, String) {
    eprintln!("error: {cause:?}");
    (StatusCode::INTERNAL_SERVER_ERROR, String::new())
}
