//! The lock as it is often written by hand: a transaction with `pg_advisory_xact_lock` around the handler.
//!
//! Nobody watches the connection, and the answer does not depend on the `COMMIT`. A handler whose lock is gone runs on and
//! succeeds while the next one is already inside. The suite must see that.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use tower_realm_lock::{LockKey, RealmPaths};

use crate::support::database::try_connect;

pub struct Naive {
    pub database: String,
    pub realms: RealmPaths,
}

/// Calls the handler within a transaction that has locked the realm.
pub async fn lock(State(naive): State<Arc<Naive>>, request: Request, next: Next) -> Response {
    match naive.locked(request, next).await {
        Ok(response) => response,
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error).into_response(),
    }
}

impl Naive {
    async fn locked(&self, request: Request, next: Next) -> Result<Response, String> {
        let realm = self.realms.resolve(request.uri().path());
        let key = LockKey::of(&realm.map_err(|error| error.to_string())?);
        let mut client = try_connect(&self.database).await?;
        let failed = |error: tokio_postgres::Error| error.to_string();
        let transaction = client.transaction().await.map_err(failed)?;
        transaction
            .execute("SELECT pg_advisory_xact_lock($1)", &[&key.value().unwrap()])
            .await
            .map_err(failed)?;
        let response = next.run(request).await;
        // As it is often written: the work is done, so what could still go wrong?
        drop(transaction.commit().await);
        Ok(response)
    }
}
