//! Settling changes to realms: they stand, or are undone.

use std::panic::resume_unwind;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tower_realm_lock::{LockTransaction, RealmUrl};
use tracing::{Instrument, warn};

use super::rows;
use crate::error::ApiError;
use crate::path::RealmPath;
use crate::routes::Cards;
use crate::store::{Store, StoreError};

/// The realm that a request has begun to change. Locked for as long as file work goes on, which may outlive its handler.
#[derive(Clone, Default)]
pub struct Begun(Arc<Mutex<Option<RealmPath>>>);

/// Kept by file work.
pub struct Busy(OwnedMutexGuard<Option<RealmPath>>);

impl Begun {
    pub async fn with(&self, realm: &RealmPath) -> Busy {
        let mut begun = Arc::clone(&self.0).lock_owned().await;
        *begun = Some(realm.clone());
        Busy(begun)
    }
}

impl Busy {
    /// Nothing is left to be settled.
    pub fn done(mut self) {
        *self.0 = None;
    }
}

/// Settles what a request has begun, outside of its lock, because its transaction must have ended. Goes on without its client.
pub async fn settle_after(
    State(cards): State<Cards>,
    mut request: Request,
    next: Next,
) -> Response {
    let begun = Begun::default();
    request.extensions_mut().insert(begun.clone());
    let served = async move {
        let response = next.run(request).await;
        let realm = begun.0.lock().await.take();
        if let Some(realm) = realm
            && let Err(error) = cards.settle(&realm).await
        {
            // The answer is true all the same: the rows have it. The files follow before anybody writes to them.
            warn!(realm = %realm.to_string().escape_debug(), %error, "a change is not settled yet");
        }
        response
    };
    match tokio::spawn(served.in_current_span()).await {
        Ok(response) => response,
        Err(ended) => resume_unwind(ended.into_panic()),
    }
}

/// Settles what a crash has left of the realm that a card's write is for, before that write asks for its lock.
pub async fn settle_first(
    State(cards): State<Cards>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !request.method().is_safe()
        && let Ok((realm, _)) = RealmPath::split(request.uri().path())
    {
        cards.settle_if_pending(&realm).await?;
    }
    Ok(next.run(request).await)
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
            .on_disk(move |store| Ok(store.is_pending(&found)))
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
                cards.settle_held(&realm, held.transaction()).await
            })
            .await
    }

    /// Settles a realm whose lock is held.
    pub async fn settle_held(
        &self,
        realm: &RealmPath,
        transaction: Option<&LockTransaction>,
    ) -> Result<(), ApiError> {
        let found = realm.clone();
        let journal = self.on_disk(move |store| store.journal(&found)).await?;
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
        self.on_disk(move |store| store.finish(&found, stands))
            .await?;
        if let (Some(_), Some(transaction)) = (journal, transaction) {
            rows::forget(transaction, &realm.url(&self.base_url)).await?;
        }
        Ok(())
    }

    /// Settles whatever crashes have left, when a server starts. What cannot be settled now is logged, and tried again by the
    /// next request that needs it.
    pub async fn settle_all(self) {
        let unsettled = match self.on_disk(Store::unsettled).await {
            Ok(unsettled) => unsettled,
            Err(error) => {
                warn!(%error, "the data directory cannot be searched for changes to settle");
                return;
            }
        };
        for realm in unsettled {
            if let Err(error) = self.settle(&realm).await {
                warn!(realm = %realm.to_string().escape_debug(), %error, "a change is not settled yet");
            }
        }
    }
}
