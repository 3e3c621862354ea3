//! The tenant is a label of the host name.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Router};
use tower_realm_lock::{ConfigError, HeldLock, RealmLocks, RealmPaths, RealmWriteLockLayer};

use crate::login;
use crate::notes::Notes;

pub fn app(locks: RealmLocks, notes: Notes) -> Result<Router, ConfigError> {
    // Hosts that do not fit are refused. Behind a proxy that writes another `Host`, name the proxy:
    // `.origin_from_request(RequestOrigin::new(TrustedProxies::new(…)?))`.
    let realms = RealmPaths::new("https://{tenant}.example.com", "/{project}")?;
    let app = Router::new()
        .route("/{project}/notes", post(add))
        .route("/login", post(login))
        .layer(RealmWriteLockLayer::new(locks, realms))
        .with_state(notes);
    Ok(app)
}

/// The name of what is locked is the name of what is written: `https://acme.example.com/site/`.
async fn add(
    State(notes): State<Notes>,
    Extension(held): Extension<HeldLock>,
) -> Result<String, StatusCode> {
    let realm = held.realms().first().ok_or(StatusCode::NOT_FOUND)?;
    Ok(notes.add(realm.as_str()).await)
}
