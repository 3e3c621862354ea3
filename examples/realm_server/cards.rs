//! What every handler works with: the store, off the threads that must not block, and the cache in front of it.

use std::panic::resume_unwind;
use std::sync::Arc;

use axum::Extension;
use serde_json::{Value, json};
use tower_realm_lock::{HeldLock, RealmLocks};
use url::Url;

use crate::cache::{Cache, Document};
use crate::card::Card;
use crate::error::ApiError;
use crate::path::CardPath;
use crate::store::{Operation, Permit, Store, StoreError, Stored};

/// What every handler needs.
#[derive(Clone)]
pub struct Cards {
    pub store: Arc<Store>,
    /// The origin that the URLs of cards begin with.
    pub base_url: Url,
    /// To settle changes to realms; `None` with `--lock off`.
    pub locks: Option<RealmLocks>,
    /// Whether changes to realms have rows in the locks' database.
    pub rows: bool,
    pub cache: Option<Arc<Cache>>,
}

impl Cards {
    /// Reads a card, from memory if it is there.
    pub async fn read(&self, path: &CardPath) -> Result<Option<Document>, ApiError> {
        if let Some(document) = self.cache.as_ref().and_then(|cache| cache.get(path)) {
            return Ok(Some(document));
        }
        loop {
            let reading = self.cache.as_ref().map(|cache| cache.reading(path));
            let found = path.clone();
            let read = move |store: &Store| {
                let before = store.is_pending(found.realm());
                let card = store.read(&found)?;
                Ok((before, card, store.is_pending(found.realm())))
            };
            let (before, card, after) = self.on_disk(None, read).await?;
            // What a change has put there may never come to stand, and what is missing may be aside for a moment.
            if self.locks.is_some() && (before || card.is_none() && after) {
                self.settle(path.realm()).await?;
                continue;
            }
            let Some(Stored { card, etag }) = card else {
                return Ok(None);
            };
            let body = self.data(path, &card).to_string().into();
            let document = Document { etag, body };
            if let Some(reading) = reading.filter(|_| !after) {
                reading.keep(&document);
            }
            return Ok(Some(document));
        }
    }

    /// Applies the operations, all or none, and gives the card as each of them left it.
    pub async fn write(
        &self,
        operations: Vec<Operation>,
        held: Option<Extension<HeldLock>>,
    ) -> Result<Vec<Option<Stored>>, StoreError> {
        let held = held.map(|Extension(held)| held);
        let (cards, lock) = (self.clone(), held.clone());
        let write = move |store: &Store| {
            let written = store.write(&operations, &Permit::of(lock.as_ref()));
            if let Some(cache) = &cards.cache {
                // Whatever came of it, and before the lock is released: a write that was undone may have been read.
                for operation in &operations {
                    cache.forget_card(&operation.card);
                }
                if lock.is_some_and(|lock| !lock.is_held()) {
                    // It ended after its request was answered, and after others were notified.
                    if let Some(operation) = operations.first() {
                        // All of them are of one realm.
                        cards.tell(operation.card.realm());
                    }
                }
            }
            written
        };
        self.on_disk(held.as_ref(), write).await
    }

    /// The document of one card.
    pub fn data(&self, path: &CardPath, card: &Card) -> Value {
        json!({ "data": card.resource_at(&path.url(&self.base_url)) })
    }

    /// Runs one piece of file work, from its first read to its last write, on a thread that may
    /// block. Once begun it runs to its end, even if the request is dropped. So under a lock it is
    /// part of the hold, which lasts until then.
    pub async fn on_disk<T: Send + 'static>(
        &self,
        held: Option<&HeldLock>,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.store);
        let work = move || work(&store);
        match held {
            Some(held) => held.spawn_blocking(work).await?,
            None => tokio::task::spawn_blocking(work)
                .await
                // Blocking work is not cancelled while someone waits for it: it has panicked.
                .unwrap_or_else(|panicked| resume_unwind(panicked.into_panic())),
        }
    }
}
