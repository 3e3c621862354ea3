use std::fmt::Write;

use tokio_postgres::SimpleQueryMessage;

use crate::lock::postgres::answer::value;
use crate::realm::claim::Lock;

/// The column with an answer for each key.
const COLUMN: &str = "done";

/// Takes each lock that nobody else holds, and waits for none.
pub(super) fn try_lock<'a>(locks: impl IntoIterator<Item = &'a Lock>) -> String {
    for_each(locks, "pg_try_advisory_lock")
}

/// Gives locks back.
pub(super) fn unlock<'a>(locks: impl IntoIterator<Item = &'a Lock>) -> String {
    for_each(locks, "pg_advisory_unlock")
}

/// One statement for any number of keys: to `pg_stat_statements` it is always the same, and the
/// server plans one call instead of hundreds.
fn for_each<'a>(locks: impl IntoIterator<Item = &'a Lock>, function: &str) -> String {
    let mut statement = format!(
        "SELECT array_agg(CASE WHEN shared THEN {function}_shared(key) ELSE {function}(key) END) \
         AS {COLUMN} FROM unnest('"
    );
    let mut modes = String::new();
    let mut separator = '{';
    for lock in locks {
        let mode = if lock.is_shared() { 't' } else { 'f' };
        // Writing to a `String` does not fail.
        let _ = write!(statement, "{separator}{}", lock.key);
        let _ = write!(modes, "{separator}{mode}");
        separator = ',';
    }
    statement + "}'::bigint[], '" + &modes + "}'::boolean[]) AS lock (key, shared)"
}

/// What the statement did for each of `count` keys, in their order; `None` if that is not what was
/// answered.
pub(super) fn answers(messages: &[SimpleQueryMessage], count: usize) -> Option<Vec<bool>> {
    flags(value(messages, COLUMN)?).filter(|flags| flags.len() == count)
}

/// Reads PostgreSQL's text of an array of booleans.
fn flags(list: &str) -> Option<Vec<bool>> {
    let inner = list.strip_prefix('{')?.strip_suffix('}')?;
    let flag = |text| match text {
        "t" => Some(true),
        "f" => Some(false),
        _ => None,
    };
    inner.split(',').map(flag).collect()
}
