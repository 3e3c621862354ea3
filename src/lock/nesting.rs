use std::future::Future;
use std::iter::successors;

use super::{Claim, HeldLock, LockError};

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

    /// The task's own hold of all that a claim needs, so that nested use runs straight through.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if it is one that was lost, and [`LockError::OwnLock`] if it holds a part of it: waiting would be
    /// waiting for oneself.
    pub(crate) fn hold_of(&self, claim: &Claim) -> Result<Option<HeldLock>, LockError> {
        for held in self.own_holds() {
            if held.claim().covers(claim) {
                return if held.is_held() {
                    Ok(Some(held.clone()))
                } else {
                    Err(LockError::Lost {
                        claim: claim.clone(),
                    })
                };
            }
        }
        match self.own_holds().find(|held| held.claim().meets(claim)) {
            None => Ok(None),
            Some(held) => Err(LockError::OwnLock {
                claim: claim.clone(),
                held: held.claim().clone(),
            }),
        }
    }

    /// From the innermost outwards.
    fn own_holds(&self) -> impl Iterator<Item = &HeldLock> {
        let holds = successors(self.innermost.as_ref(), |held| {
            held.nesting().innermost.as_ref()
        });
        holds.filter(|held| held.nesting().locks == self.locks)
    }

    /// Names what the task holds in the error of a nested request for something else.
    pub(crate) fn explain(&self, error: LockError) -> LockError {
        match &self.innermost {
            None => error,
            Some(held) => LockError::Nested {
                held: held.claim().clone(),
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
