//! What each of the two processes does: it serves a card that is a file, behind the layer or without it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, process, thread};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tower_realm_lock::{HeldLock, RealmLocks, RealmPaths, RealmWriteLockLayer};

use crate::{Failure, Locks};

/// Where the card is, at each replica.
pub const CARD: &str = "/luke/my-realm/card";

/// What a handler takes for its work between the read and the write.
const WORK: Duration = Duration::from_millis(20);

type Card = Map<String, Value>;

pub async fn serve(directory: PathBuf, locks: Locks) -> Result<(), Failure> {
    let locks = match locks {
        Locks::Off => None,
        Locks::InProcess => Some(RealmLocks::in_process()),
        Locks::Postgres => Some(RealmLocks::postgres(&env::var("DATABASE_URL")?).await?),
    };
    let card = get(show).patch(change);
    let mut app = Router::new().route("/{owner}/{realm}/card", card);
    if let Some(locks) = locks {
        let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
        app = app.layer(RealmWriteLockLayer::new(locks, realms));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("replica listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app.with_state(directory)).await?)
}

async fn show(State(directory): State<PathBuf>) -> Result<Json<Card>, Failed> {
    let read = spawn_blocking(move || read(&directory)).await;
    Ok(Json(read.map_err(io::Error::other)??))
}

async fn change(
    State(directory): State<PathBuf>,
    held: Option<Extension<HeldLock>>,
    Json(fields): Json<Card>,
) -> Result<Json<Card>, Failed> {
    let lock = held.clone();
    let change = move || -> io::Result<Card> {
        let mut card = read(&directory)?;
        thread::sleep(WORK);
        card.extend(fields);
        write(&directory, &card, lock.as_deref())?;
        Ok(card)
    };
    // A part of the hold, where there is one: the lock is kept until the thread has ended.
    let changed = match held {
        Some(held) => held
            .spawn_blocking(change)
            .await
            .map_err(io::Error::other)?,
        None => spawn_blocking(change).await.map_err(io::Error::other)?,
    };
    Ok(Json(changed?))
}

fn read(directory: &Path) -> io::Result<Card> {
    match fs::read(directory.join("card.json")) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(Card::new()),
        Err(cause) => Err(cause),
    }
}

/// A reader sees the old card or the new one, never a half.
fn write(directory: &Path, card: &Card, lock: Option<&HeldLock>) -> io::Result<()> {
    let new = directory.join(format!("card.{}", process::id()));
    fs::write(&new, serde_json::to_vec(card)?)?;
    if let Some(lock) = lock {
        lock.ensure_held().map_err(io::Error::other)?;
    }
    fs::rename(new, directory.join("card.json"))
}

/// A 500 that says why.
struct Failed(io::Error);

impl From<io::Error> for Failed {
    fn from(cause: io::Error) -> Self {
        Self(cause)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}
