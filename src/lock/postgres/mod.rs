//! PostgreSQL's advisory locks: each granted lock is a transaction, or one of many on a session.
//!
//! Source: PostgreSQL manual, 13.3.5 *Advisory Locks*, and 20.11 for the timeouts that a hold sets for itself.

mod address;
mod answer;
mod attempt;
mod broadcast;
mod builder;
mod canceller;
mod comment;
mod confirmation;
mod connection;
mod connector;
#[cfg(feature = "serde")]
mod file;
mod login;
mod pool;
mod session;
mod shared;
mod statement;
// In a build without TLS no value of its type can be made, and little of it is used.
#[cfg_attr(
    not(any(feature = "tls-native", feature = "tls-rustls")),
    allow(dead_code, unreachable_code, unused_variables, clippy::unused_async)
)]
mod tls;
mod transaction;
mod url;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout_at;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;
use tokio_util::task::TaskTracker;

use self::answer::fencing_token;
use self::attempt::{Answered, Attempt};
pub(crate) use self::broadcast::announcement;
pub use self::broadcast::{RealmEvent, RealmWrite, RealmWrites};
pub use self::builder::PostgresBuilder;
use self::comment::comment;
pub(crate) use self::confirmation::{Confirmation, Urgency};
use self::connection::is_disconnect;
use self::connector::Connector;
use self::pool::LockPool;
pub(crate) use self::session::SessionLock;
use self::session::{Options, Sessions};
pub use self::shared::{LockTransaction, TransactionClient};
use self::statement::{is_busy, lock_statement, was_contended};
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
pub use self::tls::Tls;
pub(crate) use self::transaction::LockedTransaction;
use self::url::Database;
use super::background::Background;
use super::grant::{Grant, HandOff, Turn};
use super::lease::Lease;
use super::queue::{self, Entry, Full, Queue};
use super::{LockError, Wanted};

/// How much later than the server this side gives up a wait: the server's own time-out needs no CancelRequest.
const SERVER_FIRST: Duration = Duration::from_millis(250);

/// The lock connections to one PostgreSQL, and how holds on it are made.
#[derive(Debug)]
pub(crate) struct Postgres {
    pool: LockPool,
    /// None unless the user asked for them.
    sessions: Option<Sessions>,
    lease: Duration,
    fencing: bool,
    hand_off: HandOff,
    /// Who waits in PostgreSQL to share a key: one for each key. The others wait here, without a connection.
    scouts: Arc<Queue<()>>,
    /// As whom it tells others of successful writes.
    sender: Option<Arc<str>>,
}

impl Postgres {
    /// Opens a pool and its first connection, and the first session where sessions are wanted.
    async fn connect(
        database: Database,
        options: &PostgresBuilder,
        sender: Arc<str>,
    ) -> Result<Self, LockError> {
        let connector = Connector::new(database, options.connect_timeout);
        let (lease, fencing) = (options.lease, options.fencing);
        let shared = Options {
            lease,
            fencing,
            share_time: options.hand_off.max_time,
        };
        let pool = LockPool::open(connector.clone(), options.pool_size).await?;
        let sessions = match options.sessions {
            0 => None,
            count => Some(Sessions::connect(connector, count, shared).await?),
        };
        Ok(Self {
            pool,
            sessions,
            lease,
            fencing,
            hand_off: options.hand_off,
            scouts: Arc::default(),
            sender: options.broadcast.then_some(sender),
        })
    }

    /// Takes all locks of the claim in PostgreSQL, in one round trip if nobody has them.
    ///
    /// # Cancel safety
    ///
    /// If dropped, no backend stays queued, and the turn is passed on once that is sure.
    pub(crate) async fn acquire(
        &self,
        wanted: &Wanted<'_>,
        turn: Turn,
        tasks: &TaskTracker,
    ) -> Result<(Turn, Grant), LockError> {
        let background = Background::new(tasks);
        // A session is no place for a handler's own transaction.
        if let Some(sessions) = self.sessions.as_ref().filter(|_| !wanted.share)
            && let Some(lock) = sessions.try_lock(wanted.claim, wanted.deadline).await
        {
            let grant = Grant::session(lock, self.hand_off, self.sender.clone(), background);
            return Ok((turn, grant));
        }
        self.transaction(wanted, turn, background).await
    }

    /// Takes the locks in a transaction of their own, and waits in PostgreSQL's queues where somebody has one.
    async fn transaction(
        &self,
        wanted: &Wanted<'_>,
        mut turn: Turn,
        background: Background,
    ) -> Result<(Turn, Grant), LockError> {
        let mut retried = false;
        let mut scout = None;
        let comment: Arc<str> = comment(wanted.claim).into();
        loop {
            let connection = self.pool.checkout(wanted).await?;
            let waits = scout.is_some();
            let statement = lock_statement(wanted, &comment, self.lease, self.fencing, waits);
            let attempt = Attempt::start(connection, turn, statement, background.clone());
            let (answered, answer) = timeout_at(wanted.deadline + SERVER_FIRST, attempt)
                .await
                .map_err(|_| wanted.timed_out())?;
            let error = match answer {
                Ok(rows) if is_busy(&rows) => {
                    let Answered {
                        turn: back,
                        mut connection,
                        ..
                    } = answered;
                    connection.roll_back().await;
                    drop(connection);
                    turn = back;
                    scout = self.scout(wanted).await?;
                    continue;
                }
                Ok(rows) => {
                    return self
                        .granted(wanted, comment, answered, &rows, background)
                        .await;
                }
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

    /// Waits to be the one of this process that waits in PostgreSQL to share the claim's keys; `None` if it shares none. Many may
    /// share a key as soon as one of them does, and until then each would take a connection.
    async fn scout(&self, wanted: &Wanted<'_>) -> Result<Option<queue::Turn<()>>, LockError> {
        let Some(shared) = wanted.claim.shared_keys() else {
            return Ok(None);
        };
        match self.scouts.enter(&shared, usize::MAX) {
            Ok(Entry::Turn(turn)) => Ok(Some(turn)),
            Ok(Entry::Wait(place)) => {
                let turn = timeout_at(wanted.deadline, place).await;
                turn.map(Some).map_err(|_| wanted.timed_out())
            }
            // Of so many there is no memory for one more.
            Err(Full) => Err(wanted.timed_out()),
        }
    }

    async fn granted(
        &self,
        wanted: &Wanted<'_>,
        comment: Arc<str>,
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
        let claim = wanted.claim.clone();
        let transaction = LockedTransaction::new(
            claim,
            comment,
            connection,
            lease,
            token,
            wanted.share,
            background.clone(),
        );
        // The server's clock runs since the grant, and nobody knows when that was: after a long wait a heartbeat tells.
        let late = sent.elapsed() > self.lease / 3;
        if late && !transaction.confirm(wanted.deadline + SERVER_FIRST).await {
            return Err(wanted.timed_out());
        }
        let hand_off = if was_contended(rows) {
            self.hand_off.contended()
        } else {
            self.hand_off
        };
        let grant = Grant::transaction(transaction, hand_off, self.sender.clone(), background);
        Ok((turn, grant))
    }

    /// Gives up the connections: idle ones close now, others when their hold ends.
    pub(crate) fn close(&self) {
        self.pool.close();
        if let Some(sessions) = &self.sessions {
            sessions.close();
        }
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
        claim: wanted.claim.clone(),
        source: error.into(),
    }
}
