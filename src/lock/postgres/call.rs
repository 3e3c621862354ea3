use std::fmt;

use crate::realm::claim::Lock;

/// Prepares what tries a lone key: to parse and plan that each time costs the server more than the
/// lock does. A statement may be called as what it does is called.
pub(super) const PREPARE_TRY: &str = "PREPARE pg_try_advisory_xact_lock (bigint) AS \
     SELECT pg_catalog.pg_try_advisory_xact_lock($1) AS lock_was_free";

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
