use std::borrow::Borrow;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryStream};

use super::answer::{Answer, fencing_token};
use super::canceller::GIVEN;
use super::confirmation::Confirmation;
use super::connection::{Busy, LockConnection, is_disconnect};
use super::pool::{Fresh, Pooled};
use super::statement::{
    AttemptTerms, LockStatement, is_busy, is_complete, lock_statement, wait_statement,
    was_contended,
};
use super::traffic::SILENCE;
use super::transaction::TransactionLock;
use crate::lock::error::{ConnectError, LockError};
use crate::lock::lease::Lease;
use crate::realm::claim::Claim;

/// How much later than the server this side gives up a wait: the server's own timeout needs no
/// CancelRequest.
pub(in crate::lock) const SERVER_FIRST: Duration = Duration::from_millis(250);

/// How long others are kept waiting for a statement to end that nobody waits for any more. Behind
/// some proxies no CancelRequest arrives, and it goes on in PostgreSQL without holding anybody up.
pub(in crate::lock) const LEAVING: Duration = Duration::from_millis(500);

/// One lock statement on its way to PostgreSQL, or waiting there.
///
/// It belongs to the queue: a caller that leaves passes it on, and the next waiter for the same
/// claim goes on with it.
///
/// # Silent connections
///
/// An idle connection may be dead without anybody knowing: a NAT has forgotten it. To a statement
/// that waits for a lock, silence means nothing. So on a connection that was not heard for a while
/// the BEGIN, which never waits, goes ahead by itself, and the rest follows in the same packet.
/// Without an answer to it, or to the COMMIT before it, the attempt [is silent](Self::poll_silent),
/// and can [move](Self::move_to) to another connection. Until there is one it waits on: behind a
/// pooler that has no server to spare a live connection is silent too, and so is a new one.
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
    scout: bool,
    connection: Busy<Pooled>,
    at: Instant,
    progress: Progress,
    /// The end of the last transaction on the same connection.
    before: Option<Ending>,
}

/// The end of a transaction, which was not answered when the attempt was sent behind it. It waits
/// for no lock.
struct Ending {
    answer: Confirmation,
    silence: Pin<Box<Sleep>>,
}

enum Progress {
    Reading {
        /// The BEGIN, if it was sent by itself and is not answered.
        begin: Option<Begin>,
        answer: Pin<Box<SimpleQueryStream>>,
        rows: Vec<SimpleQueryMessage>,
    },
    Answered(Answer),
}

struct Begin {
    answer: Pin<Box<SimpleQueryStream>>,
    silence: Pin<Box<Sleep>>,
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
        terms: AttemptTerms,
        scout: bool,
    ) -> Self {
        let ending = connection.ending.take();
        let ending = ending.filter(|ending| !ending.is_answered());
        let before = ending.map(|answer| Ending {
            answer,
            silence: Box::pin(sleep(SILENCE)),
        });
        let is_prepared = connection.has_prepared;
        connection.has_prepared &= !terms.share;
        let connection = Busy::new(connection);
        let settings = connection.of_pooler();
        let statement = lock_statement(&claim, &comment, settings, is_prepared, terms, scout);
        let at = Instant::now();
        let progress = Progress::start(&connection, &statement);
        Self(Some(Box::new(Sent {
            claim,
            comment,
            terms,
            scout,
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
            Some(sent) => sent.poll(cx),
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

    /// Resolves when the server should have answered something, and has not.
    pub(in crate::lock) fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(sent) => sent.poll_silent(cx),
            None => Poll::Pending,
        }
    }

    /// Asks again on a connection that takes the silent one's place in the pool, unless that has
    /// answered meanwhile. The silent one is closed.
    pub(in crate::lock) fn move_to(&mut self, fresh: Fresh) {
        let Some(sent) = self.0.take_if(|sent| sent.is_silent()) else {
            return;
        };
        let Sent {
            claim,
            comment,
            terms,
            scout,
            connection,
            progress,
            before,
            ..
        } = *sent;
        let mut pooled = connection.into_idle();
        let silent = Busy::new(pooled.replace(fresh));
        tracing::warn!(
            server = %silent.server,
            pid = silent.canceller().process_id(),
            "a lock connection is dead: it is silent, and another one is not"
        );
        pooled.tasks.spawn(async move {
            // It may only be late. Another holder may wait for that answer, and the server may
            // have the statement.
            if let Some(before) = before {
                let _ = before.answer.answered().await;
            }
            cancel(&silent, progress).await;
        });
        *self = Self::start(pooled, claim, comment, terms, scout);
    }

    /// What became of it, once it is answered. The connection goes back to the pool unless it
    /// holds the lock.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the connection is closed or rolls back, and so no lock is kept.
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
        // An end that the server refused closes the connection, and what was sent behind it was sent
        // in vain: it may have been asked in the failed transaction, or granted for an instant.
        if let Some(before) = sent.before
            && !before.answer.is_positive().await
        {
            let claim = sent.claim;
            return Settled::Disconnected(match answer {
                Ok(_) => LockError::Lost { claim },
                Err(error) => LockError::Database {
                    claim,
                    source: error.into(),
                },
            });
        }
        let rows = match answer {
            Ok(rows) => rows,
            Err(error) => {
                let timed_out = error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE);
                // A pooler that was not seen may have had the statement prepared elsewhere.
                let is_forgotten = error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME);
                let is_over = is_disconnect(&error) || is_of_a_standby(&error) || is_forgotten;
                if !is_over {
                    roll_back(connection).await;
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
            roll_back(connection).await;
            return Settled::Busy;
        }
        if !is_complete(&rows, &sent.claim) {
            let server = Arc::clone(&connection.server);
            return Settled::Disconnected(ConnectError::NoAdvisoryLocks { server }.into());
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
    /// Resolves when the server has answered, to the message that waits too, if a key that is not
    /// only tried was taken.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.progress.poll(cx));
            let Progress::Answered(Ok(rows)) = &self.progress else {
                return Poll::Ready(());
            };
            let Self { terms, scout, .. } = *self;
            let wait =
                is_busy(rows).then(|| wait_statement(&self.claim, &self.comment, terms, scout));
            let Some(wait) = wait.flatten() else {
                return Poll::Ready(());
            };
            self.progress = Progress::of(send(&self.connection, &wait).map(|it| (None, it)));
        }
    }

    fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(Ending { answer, silence }) = &mut self.before
            && !answer.is_answered()
            && silence.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(());
        }
        self.progress.poll_silent(cx)
    }

    fn is_silent(&self) -> bool {
        let is_silent = |it: &Ending| !it.answer.is_answered() && it.silence.is_elapsed();
        self.before.as_ref().is_some_and(is_silent) || self.progress.is_silent()
    }

    async fn abandon(self: Box<Self>) {
        if matches!(self.progress, Progress::Answered(_)) {
            return;
        }
        // A CancelRequest hits whatever the server is at: while that is the end of the last
        // transaction, it would cost another holder its success.
        if let Some(before) = &self.before {
            let _ = timeout(GIVEN, before.answer.answered()).await;
        }
        let Self {
            progress,
            connection,
            ..
        } = *self;
        if !cancel(&connection, progress).await {
            tracing::warn!(
                server = %connection.server,
                pid = connection.canceller().process_id(),
                "a lock statement did not answer to its cancellation"
            );
        }
    }
}

/// Queues a message, which is one step that waits for nothing.
fn send(connection: &LockConnection, message: &str) -> Result<Pin<Box<SimpleQueryStream>>, Answer> {
    match connection.client.simple_query_raw(message).now_or_never() {
        Some(Ok(answer)) => Ok(Box::pin(answer)),
        Some(Err(error)) => Err(Err(error)),
        None => Err(Ok(Vec::new())),
    }
}

/// Cancels a lock statement; whether it has ended.
async fn cancel<C: Borrow<LockConnection>>(connection: &Busy<C>, mut progress: Progress) -> bool {
    let mut answered = poll_fn(|cx| progress.poll(cx));
    let canceller = connection.canceller();
    canceller.cancel_until_ended(&mut answered).await
}

/// Ends the transaction of a statement that has failed. Goes on by itself if that takes longer than
/// the owner of a turn should wait.
async fn roll_back(connection: Busy<Pooled>) {
    let tasks = connection.tasks.clone();
    let rolled_back = tasks.spawn(async {
        if let Some(connection) = connection.roll_back().await {
            connection.give_back();
        }
    });
    let _ = timeout(LEAVING, rolled_back).await;
}

impl Progress {
    fn start(connection: &LockConnection, statement: &LockStatement) -> Self {
        Self::of(if connection.traffic().idle() < SILENCE {
            send(connection, statement.whole()).map(|answer| (None, answer))
        } else {
            let (begin, lock) = statement.split();
            send(connection, begin).and_then(|answer| {
                let silence = Box::pin(sleep(SILENCE));
                let begin = Begin { answer, silence };
                Ok((Some(begin), send(connection, lock)?))
            })
        })
    }

    fn of(sent: Result<(Option<Begin>, Pin<Box<SimpleQueryStream>>), Answer>) -> Self {
        match sent {
            Ok((begin, answer)) => Self::Reading {
                begin,
                answer,
                rows: Vec::new(),
            },
            Err(answer) => Self::Answered(answer),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Self::Reading {
            begin,
            answer,
            rows,
        } = self
        {
            if let Some(Begin { answer, .. }) = begin {
                match ready!(answer.poll_next_unpin(cx)) {
                    Some(Ok(_)) => {}
                    // What follows was not asked in a transaction.
                    Some(Err(error)) => *self = Self::Answered(Err(error)),
                    None => *begin = None,
                }
                continue;
            }
            match ready!(answer.poll_next_unpin(cx)) {
                Some(Ok(row)) => rows.push(row),
                Some(Err(error)) => *self = Self::Answered(Err(error)),
                None => *self = Self::Answered(Ok(std::mem::take(rows))),
            }
        }
        Poll::Ready(())
    }

    fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Reading {
                begin: Some(Begin { silence, .. }),
                ..
            } => silence.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }

    fn is_silent(&self) -> bool {
        matches!(self, Self::Reading { begin: Some(begin), .. } if begin.silence.is_elapsed())
    }
}

/// Whether the server that refuses this is no primary any more, behind a pooler or a load balancer
/// that has kept the connection: it begins no transaction that may write.
fn is_of_a_standby(error: &tokio_postgres::Error) -> bool {
    let code = error.code();
    code == Some(&SqlState::FEATURE_NOT_SUPPORTED)
        || code == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}
