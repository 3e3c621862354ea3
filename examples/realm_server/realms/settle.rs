//! Settling changes to realms: they stand, or are undone.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_realm_lock::{HeldLock, LockError, RealmUrl, Rejection};
use tracing::{Instrument, warn};

use super::rows;
use crate::cards::Cards;
use crate::error::ApiError;
use crate::path::RealmPath;
use crate::store::{Permit, Store, StoreError};

/// The realm that a request has begun to change.
#[derive(Clone, Default)]
pub struct Begun(Arc<Mutex<Option<RealmPath>>>);

impl Begun {
    /// From now on there is something to be settled.
    pub fn begin(&self, realm: &RealmPath) {
        *self.realm() = Some(realm.clone());
    }

    /// Takes what is to be settled.
    pub fn take(&self) -> Option<RealmPath> {
        self.realm().take()
    }

    fn realm(&self) -> MutexGuard<'_, Option<RealmPath>> {
        // It is replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settles what a request has begun, outside of its lock, because its transaction must have ended.
/// The lock that this needs is free once the request's file work has ended as well.
pub async fn settle_after(
    State(cards): State<Cards>,
    mut request: Request,
    next: Next,
) -> Response {
    let begun = Begun::default();
    request.extensions_mut().insert(begun.clone());
    to_the_end(async move {
        let response = next.run(request).await;
        if let Some(realm) = begun.take() {
            cards.forget(&realm);
            let settled = async move {
                if let Err(error) = cards.settle(&realm).await {
                    // The answer is true all the same: the rows have it. The files follow before anybody writes to them.
                    warn!(%realm, %error, "a change is not settled yet");
                }
            };
            if was_stopped(&response) {
                // Its file work may go on for long, and its answer is late already.
                tokio::spawn(settled.in_current_span());
            } else {
                settled.await;
            }
        }
        response
    })
    .await
}

/// Whether the handler was dropped before its end.
fn was_stopped(response: &Response) -> bool {
    let rejection = response.extensions().get::<Rejection>();
    rejection.is_some_and(|it| matches!(it.code(), "lock-lost" | "hold-expired"))
}

/// Around the lock of a card's write: settles what a crash has left of its realm, and tells other replicas' caches of a write
/// that failed. Its lock tells of successes alone, and such a write may stand, or have been read before it was undone.
pub async fn around_writes(
    State(cards): State<Cards>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let realm = match RealmPath::split(request.uri().path()) {
        Ok((realm, _)) if !request.method().is_safe() => realm,
        // What is no realm is refused further on.
        _ => return Ok(next.run(request).await),
    };
    cards.settle_if_pending(&realm).await?;
    if !cards.rows || cards.cache.is_none() {
        return Ok(next.run(request).await);
    }
    let served = async move {
        let response = next.run(request).await;
        if may_stand(&response) {
            cards.tell(&realm);
        }
        response
    };
    Ok(to_the_end(served).await)
}

/// Whether the handler has run, and has not said that nothing was written.
fn may_stand(response: &Response) -> bool {
    let rejection = response.extensions().get::<Rejection>();
    response.status().is_server_error() && rejection.is_none_or(|it| it.retry_after().is_none())
}

/// Goes on without its client.
async fn to_the_end(served: impl Future<Output = Response> + Send + 'static) -> Response {
    match tokio::spawn(served.in_current_span()).await {
        Ok(response) => response,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => ApiError::from(LockError::ShuttingDown).into_response(),
        },
    }
}

impl Cards {
    pub fn url_of(&self, realm: &RealmPath) -> Result<RealmUrl, ApiError> {
        let url = RealmUrl::parse(&realm.url(&self.base_url));
        url.map_err(|error| ApiError::bad_realm_url(error.to_string()))
    }

    /// Settles a realm if a change to it is under way or half done; waits for one that is under way. Without locks it cannot
    /// be told which of the two it is, and nothing is done.
    pub async fn settle_if_pending(&self, realm: &RealmPath) -> Result<(), ApiError> {
        if self.locks.is_none() {
            return Ok(());
        }
        let found = realm.clone();
        let pending = self
            .on_disk(None, move |store| Ok(store.is_pending(&found)))
            .await?;
        if pending {
            self.settle(realm).await
        } else {
            Ok(())
        }
    }

    /// Settles a realm under its lock.
    pub async fn settle(&self, realm: &RealmPath) -> Result<(), ApiError> {
        let Some(locks) = &self.locks else {
            return self.settle_held(realm, None).await;
        };
        let url = self.url_of(realm)?;
        let (cards, realm) = (self.clone(), realm.clone());
        let locks = locks.clone().share_transaction(self.rows);
        locks
            .with_write_lock(&url, |held| async move {
                cards.settle_held(&realm, Some(&held)).await
            })
            .await
    }

    /// Settles a realm whose lock is held.
    pub async fn settle_held(
        &self,
        realm: &RealmPath,
        held: Option<&HeldLock>,
    ) -> Result<(), ApiError> {
        let transaction = held.and_then(HeldLock::transaction);
        let found = realm.clone();
        let journal = self
            .on_disk(held, move |store| store.journal(&found))
            .await?;
        let stands = match (&journal, transaction) {
            (Some(journal), Some(transaction)) if journal.rows => {
                rows::stands(transaction, journal.change).await?
            }
            (Some(journal), None) if journal.rows => {
                return Err(StoreError::RowsNeeded(realm.clone()).into());
            }
            _ => false,
        };
        let found = realm.clone();
        let permit = Permit::of(held);
        self.on_disk(held, move |store| store.finish(&found, stands, &permit))
            .await?;
        if let (Some(_), Some(transaction)) = (journal, transaction) {
            rows::forget(transaction, &realm.url(&self.base_url)).await?;
        }
        Ok(())
    }

    /// Has the caches of other replicas forget a realm, soon: a hold that succeeds is told. Must be called within a runtime.
    pub fn tell(&self, realm: &RealmPath) {
        let (true, Some(locks), Ok(url)) = (self.rows, self.locks.clone(), self.url_of(realm))
        else {
            return;
        };
        let telling = async move {
            let told: Result<(), LockError> =
                locks.with_write_lock(&url, |_| async { Ok(()) }).await;
            if let Err(error) = told {
                warn!(realm = %url, %error, "caches of other replicas may be old for a while");
            }
        };
        tokio::spawn(telling.in_current_span());
    }

    pub fn forget(&self, realm: &RealmPath) {
        if let Some(cache) = &self.cache {
            cache.forget_realm(realm);
        }
    }

    /// Settles whatever crashes have left, when a server starts. What cannot be settled now is logged, and tried again by the
    /// next request that needs it.
    pub async fn settle_all(self) {
        let unsettled = match self.on_disk(None, Store::unsettled).await {
            Ok(unsettled) => unsettled,
            Err(error) => {
                warn!(%error, "the data directory cannot be searched for changes to settle");
                return;
            }
        };
        for realm in unsettled {
            if let Err(error) = self.settle(&realm).await {
                warn!(%realm, %error, "a change is not settled yet");
            }
        }
    }
}
