//! Cards in memory, so that most reads need no file.
//!
//! Each replica has a cache of its own. It forgets what the replica writes itself while the realm's lock is still held, and what
//! others write when the locks tell of it ([`tower_realm_lock::RealmWrites`]); while they may not tell of everything, it does not
//! answer. So a read at another replica can be as old as a notice takes to come: milliseconds, or 4 seconds if the
//! network falls silent. At one replica a card never goes back to what it was before.
//!
//! A read that was under way when its card was forgotten may have seen the old one, and is not kept: reads are announced before
//! they begin ([`Cache::reading`]).
//!
//! A replica that dies after it has written a file, and before its lock tells of it, leaves others with what was there before,
//! for [`LONGEST`]. No client was told of that write.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use lru::LruCache;
use tower_realm_lock::{RealmEvent, RealmWrites};
use tracing::warn;
use url::Url;

use crate::path::{CardPath, RealmPath};
use crate::precondition::ETag;

/// How long a card is kept at most.
const LONGEST: Duration = Duration::from_secs(60);

/// What a read of a card answers with.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub etag: ETag,
    pub body: Bytes,
}

/// The cards that were read last.
pub struct Cache(Mutex<State>);

struct State {
    cards: LruCache<CardPath, (Document, Instant)>,
    /// Reads that are under way, and have missed no write yet.
    reading: HashMap<u64, CardPath>,
    reads: u64,
    /// Whether all writes are told of.
    told: bool,
}

/// A read that is under way.
pub struct Reading {
    cache: Arc<Cache>,
    number: u64,
    card: CardPath,
}

impl Cache {
    pub fn new(cards: NonZeroUsize) -> Self {
        Self(Mutex::new(State {
            cards: LruCache::new(cards),
            reading: HashMap::new(),
            reads: 0,
            told: true,
        }))
    }

    pub fn get(&self, card: &CardPath) -> Option<Document> {
        let mut state = self.state();
        let (document, since) = state.cards.get(card)?;
        if since.elapsed() < LONGEST {
            return Some(document.clone());
        }
        state.cards.pop(card);
        None
    }

    /// To be called before the card's file is read.
    pub fn reading(self: &Arc<Self>, card: &CardPath) -> Reading {
        let mut state = self.state();
        state.reads += 1;
        let number = state.reads;
        state.reading.insert(number, card.clone());
        Reading {
            cache: Arc::clone(self),
            number,
            card: card.clone(),
        }
    }

    pub fn forget_card(&self, card: &CardPath) {
        self.state().forget_card(card);
    }

    pub fn forget_realm(&self, realm: &RealmPath) {
        let mut state = self.state();
        state.reading.retain(|_, card| card.realm() != realm);
        let cards = state.cards.iter().map(|(card, _)| card);
        let of_realm: Vec<_> = cards
            .filter(|card| card.realm() == realm)
            .cloned()
            .collect();
        for card in of_realm {
            state.cards.pop(&card);
        }
    }

    /// Forgets everything, and answers from now on or not.
    fn begin(&self, told: bool) {
        let mut state = self.state();
        state.cards.clear();
        state.reading.clear();
        state.told = told;
    }

    /// Forgets what other replicas write, for ever. `own` is as whom this one tells of its writes.
    pub async fn follow(self: Arc<Self>, mut writes: RealmWrites, own: String, base_url: Url) {
        while let Some(event) = writes.next().await {
            match event {
                RealmEvent::Write(write) if write.sender() == own => {}
                RealmEvent::Write(write) => {
                    // What is no realm of this server is another one's, on the same database.
                    if let Ok(realm) = RealmPath::of_url(write.realm(), &base_url) {
                        self.forget_realm(&realm);
                    }
                }
                RealmEvent::Resumed => self.begin(true),
                interrupted => {
                    warn!(
                        ?interrupted,
                        "writes of other replicas may be missed: cards are read from their files"
                    );
                    self.begin(false);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under this mutex could have left anything.
        self.0.lock().unwrap_or_else(|poisoned| {
            let mut state = PoisonError::into_inner(poisoned);
            state.cards.clear();
            state.reading.clear();
            self.0.clear_poison();
            state
        })
    }
}

impl State {
    fn forget_card(&mut self, card: &CardPath) {
        self.cards.pop(card);
        self.reading.retain(|_, reading| reading != card);
    }
}

impl Reading {
    /// Keeps what was read, unless it may be old by now.
    pub fn keep(self, document: &Document) {
        let mut state = self.cache.state();
        let missed_none = state.reading.remove(&self.number).is_some();
        match state.cards.peek(&self.card) {
            Some((kept, _)) if kept == document => {}
            // One of the two is older, and nobody knows which. Whoever has seen the newer one must not see the older one again.
            Some(_) => state.forget_card(&self.card),
            None if missed_none && state.told => {
                let entry = (document.clone(), Instant::now());
                if let Some((evicted, _)) = state.cards.push(self.card.clone(), entry) {
                    state.forget_card(&evicted);
                }
            }
            None => {}
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.cache.state().reading.remove(&self.number);
    }
}

#[cfg(test)]
mod tests;
