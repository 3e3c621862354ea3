use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::lease::Lease;
use super::postgres::{Answer, Commit, LockedTransaction};
use super::{FencingToken, LockError, LockTransaction, queue};

/// The right to ask for a key, with the lock itself where the owner before has handed it on.
pub(crate) type Turn = queue::Turn<Box<Grant>>;

/// A lock that PostgreSQL has granted to this process.
///
/// It can serve several holds, one after the other: it is handed on to the next local waiter without a word to the server.
/// Other replicas wait meanwhile, so that is bounded.
#[derive(Debug)]
pub(crate) struct Grant {
    transaction: LockedTransaction,
    hand_offs_left: u32,
    hand_off_until: Option<Instant>,
}

/// How often and how long a granted lock may be handed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HandOff {
    pub(crate) max: u32,
    pub(crate) max_time: Duration,
}

impl HandOff {
    /// What is left where the lock was waited for: other replicas want it, and a third may stand behind them.
    ///
    /// Two busy replicas that take half each let it in after one whole bound.
    fn contended(self) -> Self {
        Self {
            max: self.max / 2,
            max_time: self.max_time / 2,
        }
    }
}

impl Grant {
    pub(crate) fn new(transaction: LockedTransaction, hand_off: HandOff, contended: bool) -> Self {
        let bounds = if contended {
            hand_off.contended()
        } else {
            hand_off
        };
        Self {
            transaction,
            hand_offs_left: bounds.max,
            // A bound too far away to be a point in time is none.
            hand_off_until: Instant::now().checked_add(bounds.max_time),
        }
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        self.transaction.lease()
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.transaction.token()
    }

    pub(crate) fn shared(&self) -> Option<&LockTransaction> {
        self.transaction.shared()
    }

    /// Whether a next hold can use it as it is.
    pub(crate) fn is_held(&self) -> bool {
        self.transaction.is_held()
    }

    /// The transaction, where it is its connection that is wanted.
    pub(crate) fn into_transaction(self) -> LockedTransaction {
        self.transaction
    }

    /// Keeps the lease while it is polled; resolves when the lock is lost.
    pub(crate) async fn keep(&self) {
        self.transaction.keep().await;
    }

    /// Commits what a handler wrote in a shared transaction, and so gives the lock back.
    ///
    /// # Errors and cancel safety
    ///
    /// As [`LockedTransaction::commit_shared`].
    pub(crate) async fn commit_shared(&mut self) -> Result<(), LockError> {
        self.transaction.commit_shared().await
    }

    /// Ends a hold: hands the lock on to the next local waiter, or gives it back.
    ///
    /// The server's word that the lock was held until now comes later, while the next hold has begun.
    pub(crate) fn end_hold(mut self: Box<Self>, turn: Turn) -> Confirmation {
        if !turn.is_awaited() {
            return Confirmation::Commit(self.transaction.commit());
        }
        let answer = self.transaction.ping();
        self.hand_on(turn);
        Confirmation::Ping(answer)
    }

    /// As [`Grant::end_hold`], where nobody asks for a confirmation.
    pub(crate) fn end_unconfirmed(self: Box<Self>, turn: Turn) {
        // A handler may have left anything in a shared transaction.
        if self.shared().is_none() && self.is_held() && turn.is_awaited() {
            self.hand_on(turn);
        }
        // Else both end by being dropped.
    }

    /// Within its bounds the lock goes to the next waiter. Beyond them it is given back, and the waiter gets the connection, to
    /// ask for the lock behind those who wait on other replicas.
    fn hand_on(mut self: Box<Self>, turn: Turn) {
        let in_time = self.hand_off_until.is_none_or(|end| Instant::now() < end);
        if self.hand_offs_left > 0 && in_time {
            self.hand_offs_left -= 1;
            self.transaction.begin_next_hold();
        } else {
            self.transaction.send_commit();
        }
        turn.hand_on(self);
    }
}

/// The server's word that a lock was held to the end of a hold; false if it does not come.
///
/// # Cancel safety
///
/// Dropping it leaves a COMMIT to a task.
pub(crate) enum Confirmation {
    Ping(Answer),
    Commit(Commit),
}

impl Future for Confirmation {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        match self.get_mut() {
            Self::Ping(answer) => Pin::new(answer).poll(cx),
            Self::Commit(commit) => Pin::new(commit).poll(cx),
        }
    }
}
