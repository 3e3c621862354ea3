use std::future::Future;
use std::iter::successors;

use super::{HeldLock, LockError};
use crate::realm::RealmUrl;

tokio::task_local! {
    /// The hold that the current task works under, the innermost. A task that it spawns does not work under it.
    static INNERMOST: HeldLock;
}

/// Which locks were asked, and the hold that the asking task worked under.
#[derive(Debug, Clone)]
pub(crate) struct Nesting {
    /// The locks, by address: two that were made separately know nothing of each other.
    locks: usize,
    innermost: Option<HeldLock>,
}

impl Nesting {
    /// Of the current task, seen from the locks at this address.
    pub(crate) fn current(locks: usize) -> Self {
        Self {
            locks,
            innermost: INNERMOST.try_with(HeldLock::clone).ok(),
        }
    }

    /// The task's own hold of a realm, so that nested use runs straight through.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if it is one that was lost: waiting for it would be waiting for oneself.
    pub(crate) fn hold_of(&self, realm: &RealmUrl) -> Result<Option<HeldLock>, LockError> {
        let holds = successors(self.innermost.as_ref(), |held| {
            held.nesting().innermost.as_ref()
        });
        let mut own =
            holds.filter(|held| held.nesting().locks == self.locks && held.realm() == realm);
        match own.next() {
            None => Ok(None),
            Some(held) if held.is_held() => Ok(Some(held.clone())),
            Some(_) => Err(LockError::Lost {
                realm: realm.clone(),
            }),
        }
    }

    /// Names the realm that the task holds in the error of a nested request for another.
    pub(crate) fn explain(&self, error: LockError) -> LockError {
        match &self.innermost {
            None => error,
            Some(held) => LockError::Nested {
                held: held.realm().clone(),
                source: Box::new(error),
            },
        }
    }
}

/// Runs `work` under a hold.
pub(super) fn within<T>(held: HeldLock, work: impl Future<Output = T>) -> impl Future<Output = T> {
    INNERMOST.scope(held, work)
}

/// Runs one step of a work under a hold.
pub(crate) fn within_step<T>(held: &HeldLock, step: impl FnOnce() -> T) -> T {
    INNERMOST.sync_scope(held.clone(), step)
}
