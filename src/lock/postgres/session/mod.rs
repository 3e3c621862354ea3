//! PostgreSQL's session-level advisory locks: many realms on one connection.
//!
//! A session's task sends what its callers ask in batches, without waiting for the answers to
//! earlier ones. Nothing that it sends ever waits in PostgreSQL, so one busy realm cannot hold up
//! the others; a key that somebody else holds is not waited for here.
//!
//! What locks and unlocks is prepared when the session opens: to parse and plan it would cost the
//! server more than the locks do. Unlocks and locks are messages of their own, so that a lock table
//! without room for the locks leaves no doubt about the unlocks.

mod keys;
pub(in crate::lock) mod lock;
pub(super) mod sessions;
mod statements;
mod task;
#[cfg(test)]
mod tests;

use std::time::Duration;

/// What all sessions have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) lease: Duration,
    pub(super) fencing: bool,
    /// How long after its first holder others of this process may share a key on the same session.
    /// They overtake those who wait in PostgreSQL for it.
    pub(super) share_time: Duration,
}
