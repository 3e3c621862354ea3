//! The tenant is an id in a header that a gateway sets. No URL is needed: the lock is on the id.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::routing::post;
use tower_realm_lock::{
    ConfigError, LockKey, LockRules, RealmLocks, RealmResolver, RealmWriteLockLayer,
};

use crate::login;
use crate::notes::Notes;

/// The gateway overwrites what a client sends here. Without such a gateway a client can lock, and
/// write, for any tenant.
const TENANT: HeaderName = HeaderName::from_static("x-tenant-id");

pub fn app(locks: RealmLocks, notes: Notes) -> Result<Router, ConfigError> {
    let tenants = RealmResolver::from_header(TENANT, |id| LockKey::in_space("tenant", id));
    let rules = LockRules::new().exempt(Method::POST, "/login")?;
    let app = Router::new()
        .route("/notes", post(add))
        .route("/login", post(login))
        .layer(RealmWriteLockLayer::new(locks, tenants).rules(rules)?)
        .with_state(notes);
    Ok(app)
}

/// It reads the tenant where the lock does.
async fn add(State(notes): State<Notes>, headers: HeaderMap) -> Result<String, StatusCode> {
    let id = headers.get(TENANT).and_then(|id| id.to_str().ok());
    Ok(notes.add(id.ok_or(StatusCode::BAD_REQUEST)?).await)
}
