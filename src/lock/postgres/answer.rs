//! What the server answers to a simple query.

use tokio_postgres::{Error, SimpleQueryMessage};

use crate::lock::error::LockError;
use crate::lock::token::{self, FencingToken};

/// The rows of all its statements.
pub(super) type Answer = Result<Vec<SimpleQueryMessage>, Error>;

/// What the answer to a statement says in one column.
pub(super) fn value<'a>(rows: &'a [SimpleQueryMessage], column: &str) -> Option<&'a str> {
    values(rows, column).next()
}

/// What the answers to several statements say in the columns of one name.
pub(super) fn values<'a>(
    rows: &'a [SimpleQueryMessage],
    column: &str,
) -> impl Iterator<Item = &'a str> {
    rows.iter().filter_map(move |row| match row {
        SimpleQueryMessage::Row(row) => {
            // By name, `get` would make an error of every row without that column.
            let at = row.columns().iter().position(|it| it.name() == column)?;
            row.try_get(at).ok()?
        }
        _ => None,
    })
}

/// The token of a granted statement that asked for one.
pub(super) fn fencing_token(rows: &[SimpleQueryMessage]) -> Result<FencingToken, LockError> {
    let answer = value(rows, token::COLUMN).unwrap_or_default();
    FencingToken::from_answer(answer).ok_or_else(|| LockError::InvalidFencingToken {
        token: answer.escape_debug().to_string(),
    })
}
