//! A page to watch the locks of this replica: `GET /_locks`.
//!
//! | route | what it gives |
//! | --- | --- |
//! | `GET /_locks` | the page; a snapshot in JSON to who prefers that |
//! | `GET /_locks/events` | server-sent events: `snapshot` at once, then a `sample` four times a second; or JSON as above |
//! | `POST /_locks/race` | runs a race of two writers on a scratch realm: the page with its outcome, or JSON |
//!
//! These routes lie outside the lock: no realm is named so. They are open to all who reach the server, as everything here
//! is; a server with secrets would ask who they are.

mod accept;
mod database;
mod page;
mod race;
mod sampler;
mod snapshot;
mod status;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio_util::sync::CancellationToken;
use tower_http::csrf::{CsrfLayer, ProtectionError};
use tower_realm_lock::RealmLocks;

use crate::config::Lock;
use crate::error::ApiError;
use crate::routes::wrong_method;
use accept::prefers_json;
use database::Database;
use page::Page;
use race::{RaceError, Races};
use sampler::Sampler;

/// What the routes share.
#[derive(Clone)]
struct Watch {
    sampler: Arc<Sampler>,
    races: Arc<Races>,
    /// Ends the streams: a shutdown waits for every answer.
    closing: CancellationToken,
}

/// The routes of the page, for the replica at `address` and its locks.
pub fn routes(
    address: SocketAddr,
    lock: &Lock,
    locks: Option<RealmLocks>,
    closing: CancellationToken,
) -> Router {
    let database = match lock {
        Lock::Postgres { url, .. } => Some(Database::new(url)),
        Lock::InProcess { .. } | Lock::Off => None,
    };
    let lock = lock.to_string();
    let watch = Watch {
        races: Arc::new(Races::new(locks.clone(), &lock)),
        sampler: Arc::new(Sampler::new(address.to_string(), lock, locks, database)),
        closing,
    };
    Router::new()
        .route("/_locks", get(show))
        .route("/_locks/events", get(events))
        // Where a reload of the race's outcome leads.
        .route(
            "/_locks/race",
            post(run_race).get(async || Redirect::to("/_locks")),
        )
        .method_not_allowed_fallback(wrong_method)
        .with_state(watch)
        // Another site's page cannot start a race.
        .layer(CsrfLayer::new().with_rejection_response(foreign))
        .layer(from_fn(guard))
}

async fn show(State(watch): State<Watch>, headers: HeaderMap) -> Response {
    let now = watch.sampler.snapshot().await;
    if prefers_json(&headers, "text/html") {
        Json(now).into_response()
    } else {
        Page::new(now, None).into_response()
    }
}

async fn events(State(watch): State<Watch>, headers: HeaderMap) -> Response {
    if prefers_json(&headers, "text/event-stream") {
        return Json(watch.sampler.snapshot().await).into_response();
    }
    // A proxy that gathers the answer would make a stream of it that says nothing.
    let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(10));
    let stream = Sse::new(stream_of(watch)).keep_alive(keep_alive);
    (unbuffered, stream).into_response()
}

/// A snapshot at once, then every sample that this viewer is quick enough for.
fn stream_of(watch: Watch) -> impl Stream<Item = Result<Event, Infallible>> {
    let frames = watch.sampler.watch();
    let closed = watch.closing.clone().cancelled_owned();
    let opening = stream::once(async move {
        let now = watch.sampler.snapshot().await;
        let event = Event::default()
            .event("snapshot")
            .retry(Duration::from_secs(1));
        // It can be written: a frame of the same form was.
        event.json_data(&now).unwrap_or_default()
    });
    let rest = stream::unfold(frames, async |mut frames| {
        frames.changed().await.ok()?;
        let frame = frames.borrow_and_update().clone();
        Some((Event::default().event("sample").data(frame), frames))
    });
    opening.chain(rest).take_until(closed).map(Ok)
}

async fn run_race(State(watch): State<Watch>, headers: HeaderMap) -> Response {
    let outcome = watch.races.run().await.map_err(ApiError::from);
    if prefers_json(&headers, "text/html") {
        return outcome.map(Json).into_response();
    }
    let status = outcome
        .as_ref()
        .map_or_else(ApiError::status, |_| StatusCode::OK);
    let page = Page::new(watch.sampler.snapshot().await, Some(outcome));
    (status, page).into_response()
}

impl From<RaceError> for ApiError {
    fn from(error: RaceError) -> Self {
        match error {
            RaceError::Running => Self::new(
                StatusCode::CONFLICT,
                "race-running",
                "A race is running",
                "One race runs at a time; start another when it has ended.",
            ),
            error => Self::internal("race-failed", "The race failed", &error),
        }
    }
}

fn foreign(_: ProtectionError) -> Response {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "foreign-origin",
        "Not from this page",
        "The request comes from another site's page; start the race from this server's.",
    )
    .into_response()
}

/// Headers of every answer: it is for now, for this origin, and what it says it is.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'",
        ));
    response
}
