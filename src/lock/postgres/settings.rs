//! What a lock connection sets for itself, whatever the server, the database and the role have set:
//! nothing may cut a wait short or end a hold except the lease and the caller's own limits.
//!
//! A connection to the server itself keeps its settings for as long as it lives. Behind a pooler
//! the session belongs to somebody else after each transaction, so there each transaction sets what
//! it needs, and nothing outlives it.
//!
//! Source: PostgreSQL manual, 20.11 *Client Connection Defaults*.

use std::fmt::Write;
use std::time::Duration;

/// Goes before whatever is sent outside of a transaction block where the defaults may not be ours:
/// a serializable transaction fails on a standby, and one that is deferrable too waits for others.
pub(super) const READ_COMMITTED: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// What a transaction behind a pooler cannot state in its BEGIN.
const OF_TRANSACTION: [(&str, &str); 3] = [
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("transaction_timeout", "0"),
];

/// What else a session needs: its BEGIN states nothing, and the locks of sessions have none.
const OF_SESSION: [(&str, &str); 3] = [
    ("idle_session_timeout", "300000"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
];

/// The statement that a connection to the server itself sends once. `is_local` is an SQL
/// expression: whether all of it ends with the transaction.
pub(super) fn of_session(lease: Duration, is_local: &str) -> String {
    set(&OF_SESSION, lease, is_local)
}

/// The statement that each transaction behind a pooler sends, before the one that waits: a
/// statement's own time limit counts from its start.
pub(super) fn of_transaction(lease: Duration) -> String {
    set(&[], lease, "true")
}

/// Leaves out what the server does not have: `transaction_timeout` came with PostgreSQL 17, and
/// `idle_session_timeout` with 14.
fn set(more: &[(&str, &str)], lease: Duration, is_local: &str) -> String {
    let lease = milliseconds(lease);
    let mut statement = format!(
        "SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', '{lease}', {is_local})"
    );
    for (name, value) in OF_TRANSACTION.iter().chain(more) {
        // Writing to a `String` does not fail.
        let _ = write!(
            statement,
            ", CASE WHEN current_setting('{name}', true) IS NOT NULL \
             THEN pg_catalog.set_config('{name}', '{value}', {is_local}) END"
        );
    }
    statement
}

/// For a PostgreSQL setting, in which 0 would mean no limit at all.
pub(super) fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis())
        .unwrap_or(i32::MAX)
        .max(1)
}
