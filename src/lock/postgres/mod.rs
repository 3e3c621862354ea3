//! PostgreSQL's advisory locks, one transaction for each hold.
//!
//! Source: PostgreSQL manual, 13.3.5 *Advisory Locks*, and 20.11 for the timeouts that a hold sets for itself.

mod address;
mod attempt;
mod builder;
mod confirmation;
mod connection;
mod pool;
mod shared;
mod transaction;

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, SimpleQueryMessage};
use tokio_util::task::TaskTracker;

use self::attempt::{Answered, Attempt};
pub use self::builder::PostgresBuilder;
pub(crate) use self::confirmation::Answer;
use self::connection::{Connector, is_disconnect};
use self::pool::LockPool;
pub use self::shared::{LockTransaction, TransactionClient};
pub(crate) use self::transaction::LockedTransaction;
use self::transaction::SHARE;
use super::background::Background;
use super::grant::{Grant, HandOff, Turn};
use super::lease::Lease;
use super::{FencingToken, LockError, Wanted, token};

/// The column that says `t` where nobody else had the lock, or waited for it.
const FREE: &str = "lock_was_free";

/// How much later than the server this side gives up a wait: the server's own time-out needs no CancelRequest.
const SERVER_FIRST: Duration = Duration::from_millis(250);

/// The lock connections to one PostgreSQL, and how holds on it are made.
#[derive(Debug)]
pub(crate) struct Postgres {
    pool: LockPool,
    lease: Duration,
    fencing: bool,
    hand_off: HandOff,
}

impl Postgres {
    /// Opens a pool and its first connection.
    async fn connect(
        config: Config,
        connect_timeout: Duration,
        pool_size: u32,
        lease: Duration,
        fencing: bool,
        hand_off: HandOff,
    ) -> Result<Self, LockError> {
        let connector = Connector::new(config, connect_timeout);
        Ok(Self {
            pool: LockPool::open(connector, pool_size).await?,
            lease,
            fencing,
            hand_off,
        })
    }

    /// Takes the lock in PostgreSQL, in one round trip if nobody has it.
    ///
    /// # Cancel safety
    ///
    /// If dropped, no backend stays queued, and the turn is passed on once that is sure.
    pub(crate) async fn acquire(
        &self,
        wanted: &Wanted<'_>,
        mut turn: Turn,
        tasks: &TaskTracker,
    ) -> Result<(Turn, Grant), LockError> {
        let background = Background::new(tasks);
        let mut retried = false;
        loop {
            let connection = self.pool.checkout(wanted).await?;
            let statement = self.statement(wanted, &turn);
            let attempt = Attempt::start(connection, turn, statement, background.clone());
            let (answered, answer) = timeout_at(wanted.deadline + SERVER_FIRST, attempt)
                .await
                .map_err(|_| wanted.timed_out())?;
            let error = match answer {
                Ok(rows) => return self.granted(wanted, answered, &rows, background).await,
                Err(error) => error,
            };
            if is_disconnect(&error) && !retried {
                // It died in the pool, or the server restarts: one more try, on another connection.
                retried = true;
                turn = answered.turn;
                continue;
            }
            return Err(refused(wanted, answered, error).await);
        }
    }

    /// The one message that begins, sets the limits for this transaction alone, and locks.
    ///
    /// It tries first, to know whether others want the lock too. A try does not overtake those who wait.
    ///
    /// Read committed, whatever the server's default: under a stricter level the snapshot of the transaction would be
    /// older than the lock. `set_config` with `true` ends with the transaction, so nothing leaks through a pooler.
    fn statement(&self, wanted: &Wanted<'_>, turn: &Turn) -> String {
        let remaining = wanted.deadline.saturating_duration_since(Instant::now());
        let lock_timeout = milliseconds(remaining);
        let lease = milliseconds(self.lease);
        let key = turn.key();
        let mut statement = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
             SELECT set_config('lock_timeout', '{lock_timeout}', true), \
             set_config('idle_in_transaction_session_timeout', '{lease}', true), \
             CASE WHEN pg_try_advisory_xact_lock({key}) THEN 't' \
             ELSE pg_advisory_xact_lock({key})::text END AS {FREE}"
        );
        if self.fencing {
            // After the lock, so that the holder before has its token already.
            statement += token::ASK;
        }
        if wanted.share {
            statement += SHARE;
        }
        statement
    }

    async fn granted(
        &self,
        wanted: &Wanted<'_>,
        answered: Answered,
        rows: &[SimpleQueryMessage],
        background: Background,
    ) -> Result<(Turn, Grant), LockError> {
        let Answered {
            connection,
            turn,
            sent,
        } = answered;
        let token = if self.fencing {
            Some(fencing_token(rows)?)
        } else {
            None
        };
        let lease = Lease::new(self.lease, sent, &connection.closed);
        let realm = wanted.realm.clone();
        let transaction =
            LockedTransaction::new(realm, connection, lease, token, wanted.share, background);
        // The server's clock runs since the grant, and nobody knows when that was: after a long wait a heartbeat tells.
        let late = sent.elapsed() > self.lease / 3;
        if late && !transaction.confirm(wanted.deadline + SERVER_FIRST).await {
            return Err(wanted.timed_out());
        }
        let contended = value(rows, FREE) != Some("t");
        Ok((turn, Grant::new(transaction, self.hand_off, contended)))
    }

    /// Gives up the pool: idle connections close now, others when their hold ends.
    pub(crate) fn close(&self) {
        self.pool.close();
    }
}

/// What to say of a lock statement that failed; leaves its connection idle or discarded.
async fn refused(
    wanted: &Wanted<'_>,
    mut answered: Answered,
    error: tokio_postgres::Error,
) -> LockError {
    let timed_out = error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE);
    if !is_disconnect(&error) {
        answered.connection.roll_back().await;
    }
    if timed_out {
        return wanted.timed_out();
    }
    LockError::Database {
        realm: wanted.realm.clone(),
        source: error.into(),
    }
}

/// What the answer to a statement says in one column.
fn value<'a>(rows: &'a [SimpleQueryMessage], column: &str) -> Option<&'a str> {
    rows.iter().find_map(|row| match row {
        SimpleQueryMessage::Row(row) => row.try_get(column).ok()?,
        _ => None,
    })
}

/// The token of a granted statement that asked for one.
fn fencing_token(rows: &[SimpleQueryMessage]) -> Result<FencingToken, LockError> {
    let answer = value(rows, token::COLUMN).unwrap_or_default();
    FencingToken::from_answer(answer).ok_or_else(|| LockError::InvalidFencingToken {
        token: answer.escape_debug().to_string(),
    })
}

/// For a PostgreSQL setting, in which 0 would mean no limit at all.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis())
        .unwrap_or(i32::MAX)
        .max(1)
}
