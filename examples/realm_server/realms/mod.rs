//! The life of a realm: create, publish, unpublish, delete.
//!
//! | request | body | answers |
//! | --- | --- | --- |
//! | `POST /_create-realm` | `{"owner":"luke","endpoint":"my-realm"}` | 201, `Location`; 409 where it exists |
//! | `DELETE /_delete-realm` | `{"realmURL":"http://…/luke/my-realm/"}` | 204; 404 where there is none |
//! | `POST /_publish-realm` | `{"sourceRealmURL":"…","publishedRealmURL":"…"}` | 201, or 200 where it replaces one; 404 without a source; 409 where a realm is that was not published |
//! | `POST /_unpublish-realm` | `{"publishedRealmURL":"…"}` | 204; 404 where there is none; 409 where it was not published |
//!
//! `DELETE /_delete-realm` removes a published realm too. The owner is whom the URL names: the server knows no users, and
//! writes `realm_permissions` for others to read.
//!
//! # Files and rows
//!
//! A change to a realm is one of files, and with locks in PostgreSQL also one of rows, which are written in the transaction
//! that holds the realm's lock. That transaction commits when the handler has returned, so the files are changed before, in a
//! way that can be undone ([`crate::store`]), and a journal says so. Whether the change stands is for its row in
//! `realm_changes` to tell: it is there if the commit was. Whoever has the lock next *settles* the change: removes the old
//! files if the row is there, and puts them back if not. In most cases that is this server, right after the commit. After a
//! crash it is the next start of a server, or the next request that writes to the realm or reads from it what is not cached.
//! So rows and files are both as before, or both as after.
//!
//! A read that has begun before a swap may see the new files some milliseconds before they stand.

mod request;
mod rows;
mod settle;

use std::future::ready;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, post};
use axum::{Extension, Router};
use bytes::Bytes;
use http::header::LOCATION;
use http::{Method, StatusCode};
use serde_json::json;
use tower_realm_lock::{
    ConfigError, HeldLock, LockTransaction, RealmBodyLockLayer, RealmBodyResolver, RealmError,
    RealmPointers, RealmUrl, RequestHead,
};
use url::Url;

use crate::cards::Cards;
use crate::error::ApiError;
use crate::path::RealmPath;
use crate::routes::answer;
use crate::store::{Permit, RealmChange, Step};
use rows::Rows;
pub use rows::{RowsError, make_tables};
use settle::Begun;
pub use settle::around_writes;

const CREATE: &str = "/_create-realm";
const DELETE: &str = "/_delete-realm";
const PUBLISH: &str = "/_publish-realm";
const UNPUBLISH: &str = "/_unpublish-realm";

/// The routes, under the locks that [`resolver`] names. Around those is what settles their changes, and around that what
/// refuses a body that cannot be read, so that nobody waits for a lock to be told so.
pub fn routes(cards: &Cards, lock: Option<&RealmBodyLockLayer>) -> Router<Cards> {
    let settle = from_fn_with_state(cards.clone(), settle::settle_after);
    let check = from_fn_with_state(cards.clone(), check);
    let route = |handler: MethodRouter<Cards>| {
        let locked = match lock {
            Some(lock) => handler.route_layer(lock.clone()),
            None => handler,
        };
        locked
            .route_layer(settle.clone())
            .route_layer(check.clone())
    };
    Router::new()
        .route(CREATE, route(post(create)))
        .route(DELETE, route(delete(remove)))
        .route(PUBLISH, route(post(publish)))
        .route(UNPUBLISH, route(post(unpublish)))
}

/// Finds the realms of these routes in the bodies: publishing takes both of its realms in one claim.
pub fn resolver(base_url: &Url) -> Result<RealmBodyResolver, ConfigError> {
    let base_url = base_url.clone();
    let created = move |_: RequestHead, body: Bytes| {
        let realm = request::to_create(&body).map_err(RealmError::unresolved);
        ready(realm.and_then(|realm| RealmUrl::parse(&realm.url(&base_url))))
    };
    let published = RealmPointers::new(["/sourceRealmURL", "/publishedRealmURL"])?;
    RealmBodyResolver::from_body_fn(created)
        .route(Method::DELETE, DELETE, RealmPointers::new(["/realmURL"])?)?
        .route(Method::POST, PUBLISH, published)?
        .route(
            Method::POST,
            UNPUBLISH,
            RealmPointers::new(["/publishedRealmURL"])?,
        )
}

async fn check(
    State(cards): State<Cards>,
    request: axum::extract::Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    // It was read before, and is short enough.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let base_url = &cards.base_url;
    match parts.uri.path() {
        CREATE => drop(request::to_create(&body)?),
        DELETE => drop(request::named(&body, "realmURL", base_url)?),
        PUBLISH => drop(request::to_publish(&body, base_url)?),
        _ => drop(request::named(&body, "publishedRealmURL", base_url)?),
    }
    let request = axum::extract::Request::from_parts(parts, Body::from(body));
    Ok(next.run(request).await)
}

/// One change to one realm, by a request that holds what it needs.
struct Request {
    cards: Cards,
    begun: Begun,
    held: Option<HeldLock>,
}

async fn create(
    State(cards): State<Cards>,
    Extension(begun): Extension<Begun>,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let realm = request::to_create(&body)?;
    let request = Request::new(cards, begun, held);
    request.change(&realm, RealmChange::Create).await?;
    let url = realm.url(&request.cards.base_url);
    let attributes = json!({ "owner": realm.owner(), "kind": "created" });
    let document = json!({ "data": { "type": "realm", "id": url, "attributes": attributes } });
    Ok(([(LOCATION, url)], answer(StatusCode::CREATED, &document)).into_response())
}

async fn remove(
    State(cards): State<Cards>,
    Extension(begun): Extension<Begun>,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let realm = request::named(&body, "realmURL", &cards.base_url)?;
    let request = Request::new(cards, begun, held);
    request.change(&realm, RealmChange::Delete).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn publish(
    State(cards): State<Cards>,
    Extension(begun): Extension<Begun>,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (source, realm) = request::to_publish(&body, &cards.base_url)?;
    let request = Request::new(cards, begun, held);
    let base_url = &request.cards.base_url;
    let (source_url, url) = (source.url(base_url), realm.url(base_url));
    let replaced = request.change(&realm, RealmChange::Publish(source)).await?;
    let attributes =
        json!({ "owner": realm.owner(), "kind": "published", "sourceRealmURL": source_url });
    let document = json!({ "data": { "type": "realm", "id": url, "attributes": attributes } });
    Ok(if replaced {
        answer(StatusCode::OK, &document)
    } else {
        ([(LOCATION, url)], answer(StatusCode::CREATED, &document)).into_response()
    })
}

async fn unpublish(
    State(cards): State<Cards>,
    Extension(begun): Extension<Begun>,
    held: Option<Extension<HeldLock>>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let realm = request::named(&body, "publishedRealmURL", &cards.base_url)?;
    let request = Request::new(cards, begun, held);
    request.change(&realm, RealmChange::Unpublish).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Request {
    fn new(cards: Cards, begun: Begun, held: Option<Extension<HeldLock>>) -> Self {
        let held = held.map(|Extension(held)| held);
        Self { cards, begun, held }
    }

    /// Makes a change, and says whether there was a realm before.
    async fn change(&self, realm: &RealmPath, change: RealmChange) -> Result<bool, ApiError> {
        let cards = &self.cards;
        let held = self.held.as_ref();
        let transaction = held.and_then(HeldLock::transaction);
        // A source that is half changed must not be copied.
        if let RealmChange::Publish(source) = &change {
            cards.settle_held(source, held).await?;
        }
        cards.settle_held(realm, held).await?;

        let rows = match &change {
            RealmChange::Create => Rows::Created,
            RealmChange::Publish(source) => Rows::Published {
                source: source.url(&cards.base_url),
            },
            RealmChange::Delete | RealmChange::Unpublish => Rows::Deleted,
        };
        self.begun.begin(realm);
        let target = realm.clone();
        let prepared = cards
            .on_disk(held, move |store| store.prepare(&target, &change))
            .await?;
        if let Some(transaction) = transaction {
            let url = realm.url(&cards.base_url);
            let written = rows::write(transaction, prepared.change, &url, realm.owner(), &rows);
            written.await.map_err(|error| match error {
                RowsError::Exists => ApiError::realm_exists(realm),
                error => error.into(),
            })?;
            cards.store.fault.at(Step::Rows)?;
        }
        let replaced = prepared.old;
        let permit = Permit::of(held);
        let has_rows = transaction.is_some();
        let target = realm.clone();
        cards
            .on_disk(held, move |store| {
                store.swap(&prepared, has_rows, &permit)?;
                if !has_rows {
                    store.fault.at(Step::Commit)?;
                    store.finish(&target, true, &permit)?;
                }
                Ok(())
            })
            .await?;
        match transaction {
            None => {
                cards.forget(realm);
                // Nothing is left to be settled.
                self.begun.take();
            }
            Some(transaction) => self.spoil(transaction).await?,
        }
        Ok(replaced)
    }

    /// Makes the commit fail, if a test wants it.
    async fn spoil(&self, transaction: &LockTransaction) -> Result<(), ApiError> {
        if self.cards.store.fault.at(Step::Commit).is_err() {
            rows::spoil(transaction).await?;
        }
        Ok(())
    }
}
