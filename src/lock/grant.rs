use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lease::Lease;
use super::postgres::{Answer, LockedTransaction};
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
    was_handed_on: bool,
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
            was_handed_on: false,
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

    /// Ends a hold: hands the lock on to the next local waiter, or gives it back. Must be called within a runtime.
    ///
    /// The answer is the server's word that the lock was held until now. It comes while the next hold has begun.
    pub(crate) fn end_hold(mut self: Box<Self>, turn: Turn) -> Answer {
        if !self.may_be_handed_on() {
            return self.transaction.commit();
        }
        if turn.is_awaited() {
            let answer = self.transaction.ping();
            self.hand_on(turn);
            return answer;
        }
        if !self.was_handed_on {
            return self.transaction.commit();
        }
        // A busy realm: its writers may all be waiting for this very answer, and come again with it.
        let answer = self.transaction.ping_now();
        let answered = answer.clone();
        let background = self.transaction.background().clone();
        background.spawn(async move {
            answered.await;
            self.end_unconfirmed(turn);
        });
        answer
    }

    /// As [`Grant::end_hold`], where nobody asks for a confirmation.
    pub(crate) fn end_unconfirmed(self: Box<Self>, turn: Turn) {
        if self.may_be_handed_on() && turn.is_awaited() {
            self.hand_on(turn);
        }
        // Else both end by being dropped.
    }

    /// Whether the lock is there and within its bounds. A handler may have left anything in a shared transaction.
    fn may_be_handed_on(&self) -> bool {
        self.hand_offs_left > 0
            && self.shared().is_none()
            && self.is_held()
            && self.hand_off_until.is_none_or(|end| Instant::now() < end)
    }

    fn hand_on(mut self: Box<Self>, turn: Turn) {
        self.hand_offs_left -= 1;
        self.was_handed_on = true;
        self.transaction.begin_next_hold();
        turn.hand_on(self);
    }
}
