use std::fmt::Write;

use tokio_postgres::SimpleQueryMessage;

use crate::lock::LockKey;
use crate::lock::postgres::value;

/// The column with an answer for each key.
const COLUMN: &str = "done";

/// Takes each lock that nobody else holds, and waits for none.
pub(super) fn try_lock(keys: impl IntoIterator<Item = LockKey>) -> String {
    for_each(keys, "pg_try_advisory_lock")
}

/// Gives locks back.
pub(super) fn unlock(keys: impl IntoIterator<Item = LockKey>) -> String {
    for_each(keys, "pg_advisory_unlock")
}

/// One statement for any number of keys: to `pg_stat_statements` it is always the same, and the server plans one call
/// instead of hundreds.
fn for_each(keys: impl IntoIterator<Item = LockKey>, function: &str) -> String {
    let mut statement = format!("SELECT array_agg({function}(key)) AS {COLUMN} FROM unnest('");
    let mut separator = '{';
    for key in keys {
        // Writing to a `String` does not fail.
        let _ = write!(statement, "{separator}{key}");
        separator = ',';
    }
    statement + "}'::bigint[]) AS key"
}

/// What the statement did for each of `count` keys, in their order; `None` if that is not what was answered.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_statement_names_all_keys() {
        let keys = ["http://h/a/", "http://h/b/"].map(|url| LockKey::of(&url.parse().unwrap()));
        let [a, b] = keys;
        assert_eq!(
            try_lock(keys),
            format!(
                "SELECT array_agg(pg_try_advisory_lock(key)) AS done FROM unnest('{{{a},{b}}}'::bigint[]) AS key"
            )
        );
        assert!(unlock([a]).contains(&format!(
            "pg_advisory_unlock(key)) AS done FROM unnest('{{{a}}}'"
        )));
    }

    #[test]
    fn only_an_array_of_booleans_is_an_answer() {
        assert_eq!(flags("{t,f,t}"), Some(vec![true, false, true]));
        assert_eq!(flags("{f}"), Some(vec![false]));
        for text in ["", "{}", "t", "{t,f", "{t,NULL}", "{t,,f}"] {
            assert_eq!(flags(text), None, "{text}");
        }
    }
}
