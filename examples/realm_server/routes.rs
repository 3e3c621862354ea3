//! The routes: each reads its request, lets the store do the work, and answers.

use std::panic::resume_unwind;
use std::sync::Arc;

use axum::extract::State;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use tower_http::LatencyUnit;
use tower_http::trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer};
use tower_realm_lock::{HeldLock, RealmWriteLockLayer};
use tracing::Level;
use url::Url;
use uuid::Uuid;

use crate::atomic::{operations_of, pointer};
use crate::body::admit;
use crate::card::{Card, Expect};
use crate::error::{ApiError, JSON_API};
use crate::path::{CardPath, RealmPath};
use crate::store::{Change, Operation, Store, StoreError};

/// What every handler needs.
#[derive(Clone)]
pub struct Cards {
    pub store: Arc<Store>,
    /// The origin that the URLs of cards begin with.
    pub base_url: Url,
}

/// All routes, with their writes under a realm write lock if a layer for it is given.
pub fn router(cards: Cards, lock: Option<&RealmWriteLockLayer>) -> Router {
    let log = TraceLayer::new_for_http()
        .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
        .on_response(
            DefaultOnResponse::new()
                .level(Level::INFO)
                .latency_unit(LatencyUnit::Millis),
        );
    let mut router = Router::new()
        .route("/{owner}/{realm}/", post(create))
        .route("/{owner}/{realm}/_atomic", post(apply))
        .route(
            "/{owner}/{realm}/{*path}",
            get(read).patch(update).delete(remove),
        )
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(cards);
    if let Some(lock) = lock {
        router = router.layer(lock.clone());
    }
    router.layer(from_fn(admit)).layer(log)
}

async fn read(State(cards): State<Cards>, uri: Uri) -> Result<Response, ApiError> {
    let path = card_of(&uri)?;
    let found = path.clone();
    match cards.on_disk(move |store| store.read(&found)).await? {
        Some(card) => Ok(answer(StatusCode::OK, &cards.data(&path, &card))),
        None => Err(ApiError::card_not_found(format!(
            "The realm has no card '{path}'."
        ))),
    }
}

async fn create(
    State(cards): State<Cards>,
    uri: Uri,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (realm, _) = RealmPath::split(uri.path())?;
    let path = realm.card(&Uuid::new_v4().to_string())?;
    let change = Change::Add(Card::from_document(&body, Expect::Whole)?);
    let location = path.url(&cards.base_url);
    let data = cards.write_one(path, change, held).await?;
    Ok(([(LOCATION, location)], answer(StatusCode::CREATED, &data)).into_response())
}

async fn update(
    State(cards): State<Cards>,
    uri: Uri,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let path = card_of(&uri)?;
    let change = Change::Update(Card::from_document(&body, Expect::Patch)?);
    let data = cards.write_one(path, change, held).await?;
    Ok(answer(StatusCode::OK, &data))
}

async fn remove(
    State(cards): State<Cards>,
    uri: Uri,
    held: Option<Extension<HeldLock>>,
) -> Result<Response, ApiError> {
    cards
        .write_one(card_of(&uri)?, Change::Remove, held)
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn apply(
    State(cards): State<Cards>,
    uri: Uri,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (realm, _) = RealmPath::split(uri.path())?;
    let operations = operations_of(&body, &realm, &cards.base_url)?;
    let results = cards
        .write(operations, held, |index| Some(pointer(index)))
        .await?;
    Ok(answer(
        StatusCode::CREATED,
        &json!({ "atomic:results": results }),
    ))
}

async fn no_route(uri: Uri) -> ApiError {
    let path = uri.path().escape_debug();
    let detail =
        format!("Nothing is at '{path}'; cards are at /owner/realm/card, and realms end in '/'.");
    ApiError::new(StatusCode::NOT_FOUND, "not-found", "Nothing here", detail)
}

/// The router adds the `Allow` header.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path = uri.path().escape_debug();
    let detail = format!("{method} is not possible at '{path}'; 'Allow' lists what is.");
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "Method not allowed",
        detail,
    )
}

/// The card that a request's path names. Taken from the raw path: a router's own decoding would hide a `%2F`.
fn card_of(uri: &Uri) -> Result<CardPath, ApiError> {
    let (realm, rest) = RealmPath::split(uri.path())?;
    Ok(realm.card(rest)?)
}

fn answer(status: StatusCode, document: &Value) -> Response {
    (status, [(CONTENT_TYPE, JSON_API)], document.to_string()).into_response()
}

impl Cards {
    /// Applies the operations, and gives one document for each; `place` says where one stands that cannot be applied.
    async fn write(
        &self,
        operations: Vec<Operation>,
        held: Option<Extension<HeldLock>>,
        place: impl Fn(usize) -> Option<String>,
    ) -> Result<Vec<Value>, ApiError> {
        let token = held.and_then(|Extension(held)| held.fencing_token());
        let paths: Vec<_> = operations.iter().map(|it| it.card.clone()).collect();
        let cards = self
            .on_disk(move |store| store.write(&operations, token))
            .await
            .map_err(|error| {
                let pointer = error.operation().and_then(place);
                ApiError::from(error).at(pointer)
            })?;
        let results = paths.iter().zip(&cards).map(|(path, card)| match card {
            Some(card) => self.data(path, card),
            None => json!({}),
        });
        Ok(results.collect())
    }

    async fn write_one(
        &self,
        card: CardPath,
        change: Change,
        held: Option<Extension<HeldLock>>,
    ) -> Result<Value, ApiError> {
        let mut results = self
            .write(vec![Operation { card, change }], held, |_| None)
            .await?;
        // One operation, one result.
        Ok(results.remove(0))
    }

    fn data(&self, path: &CardPath, card: &Card) -> Value {
        json!({ "data": card.resource_at(&path.url(&self.base_url)) })
    }

    /// Runs one piece of file work, from its first read to its last write, on a thread that may block. Once begun it
    /// runs to its end, even if the request is dropped.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || work(&store))
            .await
            // Blocking work is not cancelled while someone waits for it: it has panicked.
            .unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))
    }
}

#[cfg(test)]
mod tests;
