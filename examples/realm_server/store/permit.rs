//! What lets a write change files: a hold of the realm that lasts until then.

use tower_realm_lock::{FencingToken, HeldLock, LockError};

use super::StoreError;

/// The hold that a write is made under, and its fencing token.
#[derive(Clone, Debug, Default)]
pub struct Permit {
    /// `None` without locks: nothing is checked then.
    held: Option<HeldLock>,
    pub token: Option<FencingToken>,
}

impl Permit {
    pub fn of(held: Option<&HeldLock>) -> Self {
        Self {
            held: held.cloned(),
            token: held.and_then(HeldLock::fencing_token),
        }
    }

    /// The same permit, with its token only if the store checks tokens; then there must be one.
    pub fn checked(&self, fencing: bool) -> Result<Self, StoreError> {
        if fencing && self.token.is_none() {
            return Err(StoreError::NoFencingToken);
        }
        Ok(Self {
            held: self.held.clone(),
            token: self.token.filter(|_| fencing),
        })
    }

    /// To be called immediately before each step that others can see: a writer that has lost the
    /// lock, or has run out of time, changes nothing any more.
    pub fn ensure(&self) -> Result<(), StoreError> {
        match &self.held {
            Some(held) => held.ensure_held().map_err(StoreError::Lock),
            None => Ok(()),
        }
    }
}

impl Permit {
    /// Whether there is a lock.
    pub fn is_of_a_hold(&self) -> bool {
        self.held.is_some()
    }

    /// Whether nobody else can have the lock: it is held, or its time is up while this file work,
    /// which is part of the hold, still keeps it.
    pub fn excludes_others(&self) -> bool {
        let ensured = self.held.as_ref().map(HeldLock::ensure_held);
        matches!(
            ensured,
            None | Some(Ok(()) | Err(LockError::Expired { .. }))
        )
    }
}

#[cfg(test)]
impl From<Option<FencingToken>> for Permit {
    fn from(token: Option<FencingToken>) -> Self {
        Self { held: None, token }
    }
}
