//! The routes: each reads its request, lets the store do the work, and answers.

use axum::extract::State;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, LOCATION};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tower_http::LatencyUnit;
use tower_http::trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer};
use tower_realm_lock::HeldLock;
use tracing::Level;
use uuid::Uuid;

use crate::atomic::{operations_of, pointer};
use crate::body::admit;
use crate::cache::Document;
use crate::card::{Card, Expect};
use crate::cards::Cards;
use crate::error::{ApiError, JSON_API};
use crate::locks::Layers;
use crate::path::{CardPath, RealmPath};
use crate::precondition::{ETag, Precondition};
use crate::realms::{self, around_writes};
use crate::store::{Change, Operation, Stored};

/// All routes, with their writes under a realm write lock if a layer for it is given.
pub fn router(cards: Cards, locks: Option<&Layers>) -> Router {
    let log = TraceLayer::new_for_http()
        .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
        .on_response(
            DefaultOnResponse::new()
                .level(Level::INFO)
                .latency_unit(LatencyUnit::Millis),
        );
    let mut cards_below = Router::new()
        .route("/{owner}/{realm}/", post(create))
        .route("/{owner}/{realm}/_atomic", post(apply))
        .route(
            "/{owner}/{realm}/{*path}",
            get(read).patch(update).delete(remove),
        )
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method);
    if let Some(locks) = locks {
        cards_below = cards_below.layer(locks.cards.clone());
    }
    let whole_realms = realms::routes(&cards, locks.map(|locks| &locks.realms))
        .method_not_allowed_fallback(wrong_method);
    cards_below
        .layer(from_fn_with_state(cards.clone(), around_writes))
        .merge(whole_realms)
        .with_state(cards)
        .layer(from_fn(admit))
        .layer(log)
}

async fn read(
    State(cards): State<Cards>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = card_of(&uri)?;
    let only_if = Precondition::of(&headers)?;
    let card = cards.read(&path).await?;
    if !only_if.matches(card.as_ref().map(|it| &it.etag)) {
        let detail = format!("The card '{path}' is not the one that If-Match wants.");
        return Err(ApiError::precondition_failed(detail));
    }
    let Some(Document { etag, body }) = card else {
        let detail = format!("The realm has no card '{path}'.");
        return Err(ApiError::card_not_found(detail));
    };
    let version = [(ETAG, etag.to_header())];
    if only_if.is_known(Some(&etag)) {
        return Ok((StatusCode::NOT_MODIFIED, version).into_response());
    }
    let media_type = [(CONTENT_TYPE, JSON_API)];
    Ok((version, media_type, body).into_response())
}

async fn create(
    State(cards): State<Cards>,
    uri: Uri,
    headers: HeaderMap,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (realm, _) = RealmPath::split(uri.path())?;
    no_version(&headers)?;
    let operation = Operation {
        card: realm.card(&Uuid::new_v4().to_string())?,
        change: Change::Add(Card::from_document(&body, Expect::Whole)?),
        only_if: Precondition::default(),
    };
    let location = operation.card.url(&cards.base_url);
    let answer = write_one(&cards, StatusCode::CREATED, operation, held).await?;
    Ok(([(LOCATION, location)], answer).into_response())
}

async fn update(
    State(cards): State<Cards>,
    uri: Uri,
    headers: HeaderMap,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let operation = Operation {
        card: card_of(&uri)?,
        change: Change::Update(Card::from_document(&body, Expect::Patch)?),
        only_if: Precondition::of(&headers)?,
    };
    write_one(&cards, StatusCode::OK, operation, held).await
}

async fn remove(
    State(cards): State<Cards>,
    uri: Uri,
    headers: HeaderMap,
    held: Option<Extension<HeldLock>>,
) -> Result<Response, ApiError> {
    let operation = Operation {
        card: card_of(&uri)?,
        change: Change::Remove,
        only_if: Precondition::of(&headers)?,
    };
    write_one(&cards, StatusCode::NO_CONTENT, operation, held).await
}

async fn apply(
    State(cards): State<Cards>,
    uri: Uri,
    headers: HeaderMap,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (realm, _) = RealmPath::split(uri.path())?;
    no_version(&headers)?;
    let operations = operations_of(&body, &realm, &cards.base_url)?;
    let paths: Vec<_> = operations.iter().map(|it| it.card.clone()).collect();
    let written = cards.write(operations, held).await.map_err(|error| {
        let pointer = error.operation().map(pointer);
        ApiError::from(error).at(pointer)
    })?;
    let results = paths
        .iter()
        .zip(&written)
        .map(|(path, written)| match written {
            Some(Stored { card, etag }) => {
                let mut result = cards.data(path, card);
                result["meta"] = json!({ "etag": etag.to_string() });
                result
            }
            None => json!({}),
        });
    let results: Vec<Value> = results.collect();
    let document = json!({ "atomic:results": results });
    Ok(answer(StatusCode::CREATED, &document))
}

/// Applies one operation, and answers with the card that it leaves, if any.
async fn write_one(
    cards: &Cards,
    status: StatusCode,
    operation: Operation,
    held: Option<Extension<HeldLock>>,
) -> Result<Response, ApiError> {
    let path = operation.card.clone();
    let mut results = cards.write(vec![operation], held).await?;
    // One operation, one result.
    Ok(match results.remove(0) {
        Some(Stored { card, etag }) => versioned(status, &etag, &cards.data(&path, &card)),
        None => status.into_response(),
    })
}

/// Refuses `If-Match` where cards are posted: a realm has no version of its own, so that none can match.
fn no_version(headers: &HeaderMap) -> Result<(), ApiError> {
    if Precondition::of(headers)?.allows_write(None) {
        return Ok(());
    }
    let detail = "A realm has no ETag that If-Match could match; send it with a PATCH or DELETE of one card.";
    Err(ApiError::precondition_failed(detail))
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

pub fn answer(status: StatusCode, document: &Value) -> Response {
    (status, [(CONTENT_TYPE, JSON_API)], document.to_string()).into_response()
}

/// The answer with one card and its version.
fn versioned(status: StatusCode, etag: &ETag, document: &Value) -> Response {
    ([(ETAG, etag.to_header())], answer(status, document)).into_response()
}

#[cfg(test)]
mod tests;
