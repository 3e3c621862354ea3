use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::realm::claim::Lock;

/// The lane of one key.
///
/// Invariant: the first waiter, if there is one, cannot share the key with those who are let in.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// How many are let in: one, or several who share the key.
    inside: usize,
    shared: bool,
    /// Whether each of the waiters wants to share the key, by ticket.
    waiters: BTreeMap<u64, bool>,
    /// Notified when a newcomer waits here.
    watcher: Option<Arc<Notify>>,
}

impl Lane {
    /// Whether a newcomer is let in without a wait.
    pub(super) fn is_open_to(&self, lock: &Lock) -> bool {
        self.waiters.is_empty() && self.admits(lock.is_shared())
    }

    /// Whether a newcomer would have to wait behind `max_waiters` others.
    pub(super) fn is_full_for(&self, lock: &Lock, max_waiters: usize) -> bool {
        !self.is_open_to(lock) && self.waiters.len() >= max_waiters
    }

    /// Whether nobody is let in, and so nobody waits either.
    pub(super) fn is_empty(&self) -> bool {
        self.inside == 0
    }

    fn admits(&self, shared: bool) -> bool {
        self.inside == 0 || (self.shared && shared)
    }

    /// Returns the watcher to notify once the queue's mutex is released.
    pub(super) fn wait(&mut self, ticket: u64, shared: bool) -> Option<Arc<Notify>> {
        self.waiters.insert(ticket, shared);
        self.watcher.clone()
    }

    /// Replaces the watcher; whether somebody waits already.
    pub(super) fn watch(&mut self, watcher: &Arc<Notify>) -> bool {
        self.watcher = Some(Arc::clone(watcher));
        !self.waiters.is_empty()
    }

    /// Removes the waiter with this ticket, or else one of those who are let in.
    pub(super) fn depart(&mut self, ticket: u64) {
        if self.waiters.remove(&ticket).is_none() {
            self.inside -= 1;
        }
    }

    pub(super) fn let_in(&mut self, shared: bool) {
        self.inside += 1;
        self.shared = shared;
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.waiters.keys().next().copied()
    }

    /// Lets the first waiter in, if it can share the key with those inside. Nobody overtakes it,
    /// so nobody starves it.
    pub(super) fn let_next_in(&mut self) -> Option<u64> {
        let (&ticket, &shared) = self.waiters.first_key_value()?;
        if !self.admits(shared) {
            return None;
        }
        self.waiters.remove(&ticket);
        self.let_in(shared);
        Some(ticket)
    }
}
