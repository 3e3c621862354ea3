use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryStream};

use super::answer::{Answer, fencing_token};
use super::canceller::GIVEN;
use super::confirmation::Confirmation;
use super::connection::{Busy, is_disconnect};
use super::pool::Pooled;
use super::statement::{AttemptTerms, LockStatement, is_busy, was_contended};
use super::transaction::TransactionLock;
use crate::lock::error::LockError;
use crate::lock::lease::Lease;
use crate::realm::claim::Claim;

/// How much later than the server this side gives up a wait: the server's own timeout needs no
/// CancelRequest.
pub(in crate::lock) const SERVER_FIRST: Duration = Duration::from_millis(250);

/// One lock statement on its way to PostgreSQL, or waiting there.
///
/// It belongs to the queue: a caller that leaves passes it on, and the next waiter for the same
/// claim goes on with it.
///
/// # Cancel safety
///
/// Dropping the future of a statement cancels nothing on the server: its backend would stay in
/// PostgreSQL's queue, and later take a lock that nobody knows of. So a dropped attempt
/// [is abandoned](Self::abandon) by a task.
pub(in crate::lock) struct Attempt(Option<Box<Sent>>);

struct Sent {
    claim: Claim,
    comment: Arc<str>,
    terms: AttemptTerms,
    connection: Busy<Pooled>,
    at: Instant,
    progress: Progress,
    /// The end of the last transaction on the same connection.
    before: Option<Confirmation>,
}

enum Progress {
    Reading(Pin<Box<SimpleQueryStream>>, Vec<SimpleQueryMessage>),
    Answered(Answer),
}

/// What became of an attempt.
pub(in crate::lock) enum Settled {
    /// It has the lock. Whether somebody else had it, or waited for it.
    Granted(Box<TransactionLock>, bool),
    /// A key that was only tried is taken, and nothing is locked.
    Busy,
    /// The server's own timeout ended the wait.
    TimedOut,
    /// The connection died; another one may do better.
    Disconnected(LockError),
    Failed(LockError),
}

impl Attempt {
    pub(super) fn start(
        mut connection: Pooled,
        claim: Claim,
        comment: Arc<str>,
        statement: &LockStatement,
        terms: AttemptTerms,
    ) -> Self {
        let before = connection.ending.take();
        let connection = Busy::new(connection);
        let at = Instant::now();
        let message = statement.joined();
        // Queuing is one step that waits for nothing.
        let progress = match connection.client.simple_query_raw(&message).now_or_never() {
            Some(Ok(answer)) => Progress::Reading(Box::pin(answer), Vec::new()),
            Some(Err(error)) => Progress::Answered(Err(error)),
            None => Progress::Answered(Ok(Vec::new())),
        };
        Self(Some(Box::new(Sent {
            claim,
            comment,
            terms,
            connection,
            at,
            progress,
            before,
        })))
    }

    /// Whether it asks for a transaction that is shared with the work, or for one that is not.
    pub(in crate::lock) fn is_shared(&self) -> bool {
        self.0.as_ref().is_some_and(|sent| sent.terms.share)
    }

    /// When the server ends the wait by itself.
    pub(in crate::lock) fn server_deadline(&self) -> Option<Instant> {
        self.0.as_ref().map(|sent| sent.terms.deadline)
    }

    /// When a caller with this deadline gives up the wait.
    pub(in crate::lock) fn patience(&self, deadline: Instant) -> Instant {
        match self.server_deadline() {
            Some(server) if server <= deadline => deadline + SERVER_FIRST,
            _ => deadline,
        }
    }

    /// Resolves when the server has answered.
    pub(in crate::lock) fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(sent) => sent.progress.poll(cx),
            None => Poll::Ready(()),
        }
    }

    /// Resolves when the server has answered.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(in crate::lock) async fn answered(&mut self) {
        poll_fn(|cx| self.poll_answered(cx)).await;
    }

    /// What became of it, once it is answered. The connection goes back to the pool unless it
    /// holds the lock.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the connection is closed, and so no lock is kept.
    pub(in crate::lock) async fn settle(mut self, patience: Instant) -> Settled {
        let Some(sent) = self.0.take() else {
            return Settled::Busy;
        };
        let sent = *sent;
        let Progress::Answered(answer) = sent.progress else {
            // Its connection is closed, which ends the statement.
            return Settled::TimedOut;
        };
        let connection = sent.connection;
        let rows = match answer {
            Ok(rows) => rows,
            Err(error) => {
                let timed_out = error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE);
                let is_over = is_disconnect(&error) || is_of_a_standby(&error);
                if !is_over && let Some(connection) = connection.roll_back().await {
                    connection.give_back();
                }
                if timed_out {
                    return Settled::TimedOut;
                }
                let error = LockError::Database {
                    claim: sent.claim,
                    source: error.into(),
                };
                return if is_over {
                    Settled::Disconnected(error)
                } else {
                    Settled::Failed(error)
                };
            }
        };
        if is_busy(&rows) {
            if let Some(connection) = connection.roll_back().await {
                connection.give_back();
            }
            return Settled::Busy;
        }
        let AttemptTerms {
            lease,
            fencing,
            share,
            ..
        } = sent.terms;
        let token = match fencing.then(|| fencing_token(&rows)).transpose() {
            Ok(token) => token,
            Err(error) => return Settled::Failed(error),
        };
        let held = Lease::new(lease, sent.at, &connection.closed);
        let granted =
            TransactionLock::new(&sent.claim, sent.comment, connection, held, token, share);
        let granted = Box::new(granted);
        // The server's clock runs since the grant, and nobody knows when that was: after a long
        // wait a heartbeat finds out.
        if sent.at.elapsed() > lease / 3 && !granted.confirm(patience).await {
            return Settled::TimedOut;
        }
        Settled::Granted(granted, was_contended(&rows))
    }

    /// Ends a lock statement that nobody waits for any more, and closes its connection. When this
    /// returns, the server has left its queue, or is about to by itself.
    ///
    /// The connection is not used again. For one CancelRequest the server signals a backend twice,
    /// and behind a pooler nobody can tell when the last signal has come: it could hit a statement
    /// of the connection's next user.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the statement is cancelled later, or not at all.
    pub(in crate::lock) async fn abandon(mut self) {
        if let Some(sent) = self.0.take() {
            sent.abandon().await;
        }
    }

    fn leave(&mut self) {
        if let Some(sent) = self.0.take() {
            let tasks = sent.connection.tasks.clone();
            tasks.spawn(sent.abandon());
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Sent {
    async fn abandon(mut self: Box<Self>) {
        if matches!(self.progress, Progress::Answered(_)) {
            return;
        }
        // A CancelRequest hits whatever the server is at: while that is the end of the last
        // transaction, it would cost another holder its success.
        if let Some(before) = &self.before {
            let _ = timeout(GIVEN, before.answered()).await;
        }
        let Self {
            progress,
            connection,
            ..
        } = &mut *self;
        let mut answered = poll_fn(|cx| progress.poll(cx));
        if !connection
            .canceller()
            .cancel_until_ended(&mut answered)
            .await
        {
            tracing::warn!("a lock statement did not answer to its cancellation");
        }
    }
}

impl Progress {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Self::Reading(answer, rows) = self {
            match ready!(answer.poll_next_unpin(cx)) {
                Some(Ok(row)) => rows.push(row),
                Some(Err(error)) => *self = Self::Answered(Err(error)),
                None => *self = Self::Answered(Ok(std::mem::take(rows))),
            }
        }
        Poll::Ready(())
    }
}

/// Whether the server that refuses this is no primary any more, behind a pooler or a load balancer
/// that has kept the connection: it begins no transaction that may write.
fn is_of_a_standby(error: &tokio_postgres::Error) -> bool {
    let code = error.code();
    code == Some(&SqlState::FEATURE_NOT_SUPPORTED)
        || code == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}
