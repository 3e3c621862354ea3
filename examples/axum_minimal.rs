//! The layer on an axum router: several writers change one card, a file, at the same time, and
//! every change stands.
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
//! The last answer has all three fields. Without the line `.layer(…)` it has one, though each PATCH
//! was answered with 200. `change` shows how to write a file under the lock.
//!
//! With `DATABASE_URL` the locks are in PostgreSQL, and hold across replicas that share a
//! `DATA_DIR`: a temporary directory if not set. `PORT` is where to listen: 3000 if not set.

use std::error::Error;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{env, io, thread};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde_json::{Map, Value};
use tempfile::{NamedTempFile, TempDir};
use tokio::net::TcpListener;
use tower_realm_lock::{HeldLock, RealmLocks, RealmPaths, RealmWriteLockLayer};

type Name = (String, String, String);
type Card = Map<String, Value>;

/// The directory of all cards.
#[derive(Clone)]
struct Cards(Arc<PathBuf>);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (locks, place) = match env::var("DATABASE_URL") {
        Ok(url) => (RealmLocks::postgres(&url).await?, "PostgreSQL"),
        Err(_) => (RealmLocks::in_process(), "this process only"),
    };
    // Removed when the server ends.
    let temporary = TempDir::new()?;
    let directory = env::var_os("DATA_DIR").map_or_else(|| temporary.path().into(), PathBuf::from);
    // The public address: the same for all replicas, wherever each of them listens.
    let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    let app = Router::new()
        .route("/{owner}/{realm}/{card}", get(show).patch(change))
        .layer(RealmWriteLockLayer::new(locks.clone(), realms))
        .with_state(Cards(Arc::new(directory)));

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("axum_minimal listening on http://{address} (locks in {place})");
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await?;
    // In-flight writes whose clients have disconnected.
    Ok(locks.shutdown(Duration::from_secs(30)).await?)
}

async fn show(
    State(cards): State<Cards>,
    Path(name): Path<Name>,
) -> Result<Json<Card>, StatusCode> {
    let file = cards.file(&name).ok_or(StatusCode::NOT_FOUND)?;
    let read = tokio::task::spawn_blocking(move || read(&file)).await;
    let card = read.map_err(internal)?.map_err(internal)?;
    card.map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn change(
    State(cards): State<Cards>,
    Path(name): Path<Name>,
    Extension(held): Extension<HeldLock>,
    Json(fields): Json<Card>,
) -> Result<Json<Card>, StatusCode> {
    let file = cards.file(&name).ok_or(StatusCode::NOT_FOUND)?;
    let lock = held.clone();
    // As part of the hold: whatever happens to this request, the lock is not given back before the
    // closure has returned. With tokio's own `spawn_blocking` or `tokio::fs` it would be.
    let changed = held.spawn_blocking(move || -> io::Result<Card> {
        let mut card = read(&file)?.unwrap_or_default();
        // What a handler does between its read and its write.
        thread::sleep(Duration::from_millis(100));
        card.extend(fields);
        let directory = file.parent().ok_or(ErrorKind::NotFound)?;
        fs::create_dir_all(directory)?;
        let new = NamedTempFile::new_in(directory)?;
        serde_json::to_writer(&new, &card)?;
        new.as_file().sync_all()?;
        // From here on others see the write, so the lock must still be held.
        lock.ensure_held().map_err(io::Error::other)?;
        new.persist(&file)?;
        File::open(directory)?.sync_all()?;
        Ok(card)
    });
    // If the lock was lost, the layer answers for the handler.
    let card = changed.await.map_err(internal)?.map_err(internal)?;
    Ok(Json(card))
}

impl Cards {
    /// `None` for a name that is not plain, which could lead out of the directory.
    fn file(&self, (owner, realm, card): &Name) -> Option<PathBuf> {
        let is_plain = |name: &&String| {
            let mut letters = name.chars();
            letters.all(|it| it.is_ascii_alphanumeric() || it == '-' || it == '_')
        };
        [owner, realm, card].iter().all(is_plain).then_some(())?;
        Some(self.0.join(owner).join(realm).join(format!("{card}.json")))
    }
}

fn read(file: &std::path::Path) -> io::Result<Option<Card>> {
    match File::open(file) {
        Ok(file) => Ok(Some(serde_json::from_reader(file)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn internal(error: impl Error) -> StatusCode {
    eprintln!("a request failed: {error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
