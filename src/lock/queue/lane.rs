use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

use super::{Baton, Slot};
use crate::realm::claim::Lock;

/// The lane of one key.
///
/// Invariant: the first waiter, if there is one, cannot share the key with those who are let in.
pub(super) struct Lane<B: Baton> {
    /// In order of arrival: those who are let in, and behind them the waiters.
    places: VecDeque<Place<B>>,
    /// How many are let in: one, or several who share the key.
    inside: usize,
    /// Notified when a newcomer waits here.
    watcher: Option<Arc<Notify>>,
}

struct Place<B: Baton> {
    slot: Arc<Slot<B>>,
    /// Whether it wants to share the key.
    shared: bool,
}

impl<B: Baton> Lane<B> {
    /// An empty lane as new, unless many have waited in it: then its memory goes back.
    pub(super) fn reset(self) -> Option<Self> {
        (self.places.capacity() <= 4).then_some(Self {
            watcher: None,
            ..self
        })
    }

    /// Whether a newcomer is let in without a wait.
    pub(super) fn is_open_to(&self, lock: &Lock) -> bool {
        self.waiters() == 0 && self.admits(lock.is_shared())
    }

    /// Whether a newcomer would have to wait behind `max_waiters` others.
    pub(super) fn is_full_for(&self, lock: &Lock, max_waiters: usize) -> bool {
        !self.is_open_to(lock) && self.waiters() >= max_waiters
    }

    /// Whether nobody is let in, and so nobody waits either.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn waiters(&self) -> usize {
        self.places.len() - self.inside
    }

    fn admits(&self, shared: bool) -> bool {
        self.inside == 0 || (shared && self.places.front().is_some_and(|first| first.shared))
    }

    /// Adds a newcomer, which [is let in](Self::is_open_to) or waits.
    pub(super) fn enter(&mut self, slot: &Arc<Slot<B>>, lock: &Lock) {
        self.inside += usize::from(self.is_open_to(lock));
        self.places.push_back(Place {
            slot: Arc::clone(slot),
            shared: lock.is_shared(),
        });
    }

    /// To be notified of a waiter once the queue's mutexes are released.
    pub(super) fn watcher(&self) -> Option<&Arc<Notify>> {
        self.watcher.as_ref()
    }

    /// Replaces the watcher; whether somebody waits already.
    pub(super) fn watch(&mut self, watcher: &Arc<Notify>) -> bool {
        self.watcher = Some(Arc::clone(watcher));
        self.waiters() > 0
    }

    /// Removes one of those who are let in, or a waiter.
    pub(super) fn depart(&mut self, ticket: u64) {
        let places = &mut self.places;
        if let Ok(at) = places.binary_search_by_key(&ticket, |place| place.slot.ticket) {
            places.remove(at);
            self.inside -= usize::from(at < self.inside);
        }
    }

    /// The first waiter.
    pub(super) fn first(&self) -> Option<&Arc<Slot<B>>> {
        self.places.get(self.inside).map(|place| &place.slot)
    }

    /// Lets the first waiter in, if it can share the key with those inside. Nobody overtakes it,
    /// so nobody starves it.
    pub(super) fn let_next_in(&mut self) -> Option<&Arc<Slot<B>>> {
        let next = self.places.get(self.inside)?;
        if !self.admits(next.shared) {
            return None;
        }
        self.inside += 1;
        Some(&next.slot)
    }

    /// All who are let in or wait.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Arc<Slot<B>>> {
        self.places.iter().map(|place| &place.slot)
    }
}

impl<B: Baton> Default for Lane<B> {
    fn default() -> Self {
        Self {
            places: VecDeque::new(),
            inside: 0,
            watcher: None,
        }
    }
}
