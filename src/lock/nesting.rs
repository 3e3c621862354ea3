use std::future::Future;

use super::{HeldLock, LockError};
use crate::realm::RealmUrl;

tokio::task_local! {
    static HELD: Nesting;
}

/// The holds that the current task works under, the innermost last. A task that it spawns does not work under them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nesting {
    /// With the locks that granted each, told apart by address: two that were made separately know nothing of each other.
    holds: Vec<(usize, HeldLock)>,
    /// The locks for which this was looked up.
    locks: usize,
}

impl Nesting {
    /// Of the current task, seen from the locks at this address.
    pub(crate) fn current(locks: usize) -> Self {
        let mut nesting = HELD.try_with(Self::clone).unwrap_or_default();
        nesting.locks = locks;
        nesting
    }

    /// The task's own hold of a realm, so that nested use runs straight through.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if it is one that was lost: waiting for it would be waiting for oneself.
    pub(crate) fn hold_of(&self, realm: &RealmUrl) -> Result<Option<HeldLock>, LockError> {
        let own = self
            .holds
            .iter()
            .find(|(locks, held)| *locks == self.locks && held.realm() == realm);
        match own {
            None => Ok(None),
            Some((_, held)) if held.is_held() => Ok(Some(held.clone())),
            Some(_) => Err(LockError::Lost {
                realm: realm.clone(),
            }),
        }
    }

    /// Names the realm that the task holds in the error of a nested request for another.
    pub(crate) fn explain(&self, error: LockError) -> LockError {
        match self.holds.last() {
            None => error,
            Some((_, held)) => LockError::Nested {
                held: held.realm().clone(),
                source: Box::new(error),
            },
        }
    }

    /// One hold deeper.
    pub(super) fn with(&self, held: &HeldLock) -> Self {
        let mut nesting = self.clone();
        nesting.holds.push((self.locks, held.clone()));
        nesting
    }

    /// Runs `work` under these holds.
    pub(super) fn within<T>(self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        HELD.scope(self, work)
    }

    /// Runs one step of a work under these holds.
    pub(crate) fn within_step<T>(&self, step: impl FnOnce() -> T) -> T {
        HELD.sync_scope(self.clone(), step)
    }
}
