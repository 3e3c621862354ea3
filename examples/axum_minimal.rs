//! The layer on an axum router: several writers change one card at the same time, and every change stands.
//!
//! ```text
//! cargo run --example axum_minimal
//!
//! card=http://127.0.0.1:3000/luke/my-realm/card
//! for field in a b c; do
//!     curl -X PATCH $card -H 'content-type: application/json' -d "{\"$field\":1}" &
//! done; wait; curl $card
//! ```
//!
//! The last answer has all three fields. Without the line `.layer(…)` it has one, though each PATCH was answered with 200.
//!
//! With `DATABASE_URL` the locks are in PostgreSQL, and hold across replicas. `PORT` is where to listen: 3000 if not set.

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::sync::RwLock;
use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};

type Name = (String, String, String);
type Card = Map<String, Value>;

/// Stands for a store: a card is read and written in two steps, and other requests can come between them.
type Cards = Arc<RwLock<HashMap<Name, Card>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (locks, place) = match env::var("DATABASE_URL") {
        Ok(url) => (RealmLocks::postgres(&url).await?, "PostgreSQL"),
        Err(_) => (RealmLocks::in_process(), "this process alone"),
    };
    // The public address: the same for all replicas, wherever each of them listens.
    let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    let app = Router::new()
        .route("/{owner}/{realm}/{card}", get(show).patch(change))
        .layer(RealmWriteLockLayer::new(locks.clone(), realms))
        .with_state(Cards::default());

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("axum_minimal listening on http://{address} (locks in {place})");
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await?;
    // Writes whose clients have gone.
    Ok(locks.shutdown(Duration::from_secs(30)).await?)
}

async fn show(
    State(cards): State<Cards>,
    Path(name): Path<Name>,
) -> Result<Json<Card>, StatusCode> {
    let card = cards.read().await.get(&name).cloned();
    card.map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn change(
    State(cards): State<Cards>,
    Path(name): Path<Name>,
    Json(fields): Json<Card>,
) -> Json<Card> {
    let mut card = cards.read().await.get(&name).cloned().unwrap_or_default();
    // What a handler does between its read and its write: it validates, asks an index, calls another service.
    tokio::time::sleep(Duration::from_millis(100)).await;
    card.extend(fields);
    cards.write().await.insert(name, card.clone());
    Json(card)
}
