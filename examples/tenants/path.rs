//! The tenant is in the path. Two versions of the API and an admin route write the same realms.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use tower_realm_lock::{ConfigError, RealmLocks, RealmPaths, RealmWriteLockLayer};

use crate::login;
use crate::notes::Notes;

pub fn app(locks: RealmLocks, notes: Notes) -> Result<Router, ConfigError> {
    // The name leaves the version out. axum's router knows which routes have a tenant, so that the
    // other two patterns are only needed by `RealmPaths::resolve` and by other routers.
    let realms = RealmPaths::new("https://api.example.com/api", "/v1/{tenant}/{project}")?
        .named("/{tenant}/{project}")?
        .also("/v2/{tenant}/{project}")?
        .also("/admin/{tenant}/{project}")?;
    let app = Router::new()
        .route("/api/v1/{tenant}/{project}/notes", post(add))
        .route("/api/v2/{tenant}/{project}/notes", post(add))
        .route("/api/admin/{tenant}/{project}/import", post(add))
        // A route without the parameters of the name is not one of a realm.
        .route("/api/login", post(login))
        .layer(RealmWriteLockLayer::new(locks, realms))
        .with_state(notes);
    Ok(app)
}

async fn add(
    State(notes): State<Notes>,
    Path((tenant, project)): Path<(String, String)>,
) -> String {
    notes.add(&format!("{tenant}/{project}")).await
}
