//! The tenant is in the token of the request. A layer outside of the lock has checked it.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use tower_realm_lock::{ConfigError, RealmLocks, RealmResolver, RealmUrl, RealmWriteLockLayer};

use crate::login;
use crate::notes::Notes;

/// The claims of a checked token.
#[derive(Clone)]
struct Claims {
    tenant: String,
}

pub fn app(locks: RealmLocks, notes: Notes) -> Result<Router, ConfigError> {
    let base = RealmUrl::parse("https://api.example.com/")?;
    let realms = RealmResolver::from_extension(move |claims: &Claims| base.join([&claims.tenant]));
    let of_tenants = Router::new()
        .route("/notes", post(add))
        .layer(RealmWriteLockLayer::new(locks, realms))
        // Added last, so it runs first: nobody waits for the lock of another tenant.
        .layer(from_fn(authenticate))
        .with_state(notes);
    // Routes without a token are merged, and pass both layers by.
    Ok(of_tenants.merge(Router::new().route("/login", post(login))))
}

/// Stands for the check of a signature.
async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    let token = request.headers().get(AUTHORIZATION);
    let tenant = token
        .and_then(|token| token.to_str().ok()?.strip_prefix("Bearer of-"))
        .ok_or(StatusCode::UNAUTHORIZED)?;
    let tenant = tenant.to_owned();
    request.extensions_mut().insert(Claims { tenant });
    Ok(next.run(request).await)
}

async fn add(State(notes): State<Notes>, Extension(claims): Extension<Claims>) -> String {
    notes.add(&claims.tenant).await
}
