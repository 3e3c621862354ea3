//! PostgreSQL's advisory locks: each granted lock is a transaction, or one of many on a session.
//!
//! # A transaction
//!
//! [`Postgres::ask`] takes an idle connection out of the pool and sends one message: it begins, and
//! locks every key of the claim in order. Each key is tried first, so that the answer tells whether
//! others compete for it, and waited for only if the try fails: in the same message, or, for a
//! claim of one key, which is mostly free, in a second one. A connection has its time limits and
//! modes, and a prepared statement that tries one key, since it was opened; behind a pooler each
//! transaction sets its own (see [`settings`]), and tries with text. On a connection that was not
//! heard for a second the BEGIN goes ahead as a message of its own, so that a dead connection is
//! not mistaken for a busy lock: see [`Attempt`]. The attempt reads the answer, and becomes a
//! [`TransactionLock`]. A COMMIT or ROLLBACK releases the lock. It is sent and not waited for: the
//! connection is idle again at once, since whatever is sent on it next is answered after it.
//!
//! # A session
//!
//! Sessions hold the locks of many realms on one connection. They only try; a key that somebody else
//! holds is waited for in a transaction. See [`session`].
//!
//! # What proves that a lock was held
//!
//! PostgreSQL ends a silent transaction after its lease, so every answer on the locked connection
//! renews the lease as of when the question was *sent*. A success waits for a [`Confirmation`]: an
//! answer to a question that was sent after the work had ended. The task of the connection reads
//! these answers in order and publishes them to all who wait: see [`drive`].
//!
//! # A shared transaction
//!
//! A handler that shares the transaction has the driver's client, and with it the session. When the
//! handler has ended, [`Traffic`](traffic::Traffic), which watches the wire, shows what it left
//! open. If nothing is open, one message commits and resets the session. The connection goes back
//! to the pool if no prepared statements are left except those with which the driver looks types
//! up; otherwise it is closed.
//!
//! # Invariants
//!
//! - A connection that may hold a lock is [`Busy`](connection::Busy), and closes when it is dropped.
//!   Only the end of its transaction makes it idle.
//! - A connection is cancelled only while its own statement runs, and never used again after that:
//!   a late CancelRequest would hit the next user's statement.
//! - Only this crate can cancel a connection: the driver, and so a handler, never learns its key.
//! - Nothing here waits for a turn of the queue, and no wait for a lock takes a pooled connection
//!   from another pool.
//!
//! Source: PostgreSQL manual, 13.3.5 *Advisory Locks*, and 20.11 for the timeouts of a transaction.

mod address;
mod answer;
pub(super) mod attempt;
mod call;
mod canceller;
mod comment;
pub(super) mod confirmation;
mod connect;
mod connection;
mod drive;
#[cfg(feature = "serde")]
mod file;
pub(super) mod fleet;
mod login;
pub(super) mod options;
mod password;
mod pool;
pub(super) mod publish;
pub(super) mod session;
mod settings;
pub(crate) mod shared;
mod statement;
mod tls;
mod traffic;
pub(super) mod transaction;
mod url;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use self::attempt::Attempt;
use self::comment::comment;
use self::connection::Busy;
use self::fleet::Fleets;
use self::options::PostgresBuilder;
use self::pool::{Fresh, LockPool};
use self::session::Options;
use self::session::lock::SessionLock;
use self::session::sessions::Sessions;
use self::statement::AttemptTerms;
#[cfg(doc)]
use self::{confirmation::Confirmation, transaction::TransactionLock};
use super::error::{ConnectError, LockError};
use super::request::LockRequest;
use super::tasks::TaskGroup;
use crate::config::ConfigError;
use crate::realm::claim::Claim;

/// How long a new connection is waited for where one of the pool's may do.
const LOGIN_PATIENCE: Duration = Duration::from_secs(1);

/// The lock connections to one PostgreSQL, and how locks are asked for there.
#[derive(Debug)]
pub(super) struct Postgres {
    pool: LockPool,
    /// `None` unless the user asked for them.
    sessions: Option<Sessions>,
    fleets: Fleets,
    lease: Duration,
    fencing: bool,
}

impl Postgres {
    /// Reads the options. Each connection is opened when it is needed. `group` counts what is left
    /// to do when a caller has gone. Must be called within a runtime.
    pub(super) fn new(options: &PostgresBuilder, group: &TaskGroup) -> Result<Self, ConfigError> {
        let connector = options.connector(group.clone())?;
        let (lease, fencing) = (options.lease, options.fencing);
        let shared = Options {
            lease,
            fencing,
            share_time: options.hand_off.max_time,
        };
        let pool = LockPool::new(connector.clone().prepared(), options.pool_size);
        let fleets = Fleets::new(connector.clone());
        let sessions = match options.sessions {
            0 => None,
            count => Some(Sessions::new(connector, count, shared)),
        };
        Ok(Self {
            pool,
            sessions,
            fleets,
            lease,
            fencing,
        })
    }

    /// Opens the pool's first connection, and the first session where sessions are wanted.
    pub(super) async fn connect(&self) -> Result<(), ConnectError> {
        self.pool.open_first().await?;
        match &self.sessions {
            Some(sessions) => sessions.open_first().await,
            None => Ok(()),
        }
    }

    pub(super) fn fleets(&self) -> &Fleets {
        &self.fleets
    }

    /// How long the server keeps the lock of a silent holder.
    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    /// Takes all locks of the claim on a session, if nobody holds one of them.
    ///
    /// # Errors
    ///
    /// Those of [`Sessions::try_lock`].
    ///
    /// # Cancel safety
    ///
    /// If dropped, a grant that is still to come is unlocked by the session.
    pub(super) async fn try_session(
        &self,
        request: &LockRequest<'_>,
    ) -> Result<Option<SessionLock>, LockError> {
        // A session is no place for a handler's own transaction.
        let Some(sessions) = self.sessions.as_ref().filter(|_| !request.share) else {
            return Ok(None);
        };
        sessions.try_lock(request.claim, request.deadline).await
    }

    /// Opens a connection for an attempt that [is silent](Attempt::poll_silent).
    ///
    /// # Errors
    ///
    /// Those of connecting.
    pub(super) async fn open(&self) -> Result<Fresh, LockError> {
        self.pool.open().await
    }

    /// Who won a deadlock, as the server describes its sessions: asked for on a connection of its
    /// own. `detail` is that of the error.
    pub(super) async fn blocker(&self, detail: &str) -> Option<String> {
        // In every language the process that is waited for ends the first line.
        let mut numbers = detail
            .lines()
            .next()?
            .rsplit(|it: char| !it.is_ascii_digit());
        let pid = numbers.find(|number| !number.is_empty())?;
        let who = format!(
            "SELECT concat_ws(', ', 'process ' || pid, usename, application_name, client_addr, \
             left(query, 200)) AS who FROM pg_stat_activity WHERE pid = {pid}"
        );
        let rows = self.open().await.ok()?.ask(&who).await.ok()?;
        answer::value(&rows, "who").map(str::to_owned)
    }

    /// Asks for all locks of the claim in a transaction, if `fresh` on a new connection. Keys that
    /// are shared are only tried, unless this is the `scout` that waits for them.
    ///
    /// # Cancel safety
    ///
    /// If dropped, nothing has been sent.
    pub(super) async fn ask(
        &self,
        request: &LockRequest<'_>,
        scout: bool,
        fresh: bool,
    ) -> Result<Attempt, LockError> {
        let mut connection = self.pool.checkout(request).await?;
        // Without a new one the pool's own may do.
        let patience = request.deadline.min(Instant::now() + LOGIN_PATIENCE);
        if fresh && let Ok(Ok(opened)) = timeout_at(patience, self.open()).await {
            let spare = connection.replace(opened);
            let tasks = spare.tasks.clone();
            tasks.spawn(async move {
                // Another holder may wait for the end of its transaction.
                if let Some(ending) = &spare.ending {
                    let _ = ending.answered().await;
                }
                drop(Busy::new(spare));
            });
        }
        let terms = AttemptTerms {
            lease: self.lease,
            fencing: self.fencing,
            share: request.share,
            deadline: request.deadline,
            tries: request.tries,
        };
        let claim: Claim = request.claim.clone();
        let comment: Arc<str> = comment(&claim).into();
        Ok(Attempt::start(connection, claim, comment, terms, scout))
    }

    /// Gives up the connections: idle ones close now, others when their hold ends.
    pub(super) fn close(&self) {
        self.pool.close();
        if let Some(sessions) = &self.sessions {
            sessions.close();
        }
    }
}
