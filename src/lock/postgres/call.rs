use std::fmt;

use crate::realm::claim::Lock;

/// The call of a function of advisory locks for a key of a claim.
pub(super) struct LockCall<'a>(pub(super) &'static str, pub(super) &'a Lock);

impl fmt::Display for LockCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(function, lock) = self;
        let shared = if lock.is_shared() { "_shared" } else { "" };
        match lock.key.pair() {
            Some((first, second)) => write!(f, "{function}{shared}({first}, {second})"),
            None => write!(f, "{function}{shared}({})", lock.key),
        }
    }
}
