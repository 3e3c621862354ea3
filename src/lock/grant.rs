use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::background::Background;
use super::lease::Lease;
use super::postgres::{Confirmation, LockedTransaction, SessionLock, Urgency, announcement};
use super::{Claim, FencingToken, LockError, LockTransaction, queue};

/// The right to ask for a key, with the lock itself where the owner before has handed it on.
pub(crate) type Turn = queue::Turn<Box<Grant>>;

/// A lock that PostgreSQL has granted to this process.
///
/// It can serve several holds, one after the other: it is handed on to the next local waiter without a word to the server.
/// Other replicas wait meanwhile, so that is bounded.
#[derive(Debug)]
pub(crate) struct Grant {
    lock: Lock,
    hand_offs_left: u32,
    hand_off_until: Option<Instant>,
    was_handed_on: bool,
    /// As whom this process tells others of successful writes; `None` where it does not.
    sender: Option<Arc<str>>,
    background: Background,
}

/// Where PostgreSQL holds it.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a grant is boxed as a whole, and sessions are the rarer kind"
)]
enum Lock {
    Transaction(LockedTransaction),
    Session(SessionLock),
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
    pub(crate) fn contended(self) -> Self {
        Self {
            max: self.max / 2,
            max_time: self.max_time / 2,
        }
    }
}

impl Grant {
    pub(crate) fn transaction(
        transaction: LockedTransaction,
        hand_off: HandOff,
        sender: Option<Arc<str>>,
        background: Background,
    ) -> Self {
        Self::new(Lock::Transaction(transaction), hand_off, sender, background)
    }

    pub(crate) fn session(
        lock: SessionLock,
        hand_off: HandOff,
        sender: Option<Arc<str>>,
        background: Background,
    ) -> Self {
        Self::new(Lock::Session(lock), hand_off, sender, background)
    }

    fn new(
        lock: Lock,
        hand_off: HandOff,
        sender: Option<Arc<str>>,
        background: Background,
    ) -> Self {
        Self {
            lock,
            hand_offs_left: hand_off.max,
            // A bound too far away to be a point in time is none.
            hand_off_until: Instant::now().checked_add(hand_off.max_time),
            was_handed_on: false,
            sender,
            background,
        }
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        match &self.lock {
            Lock::Transaction(transaction) => transaction.lease(),
            Lock::Session(lock) => lock.lease(),
        }
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        match &self.lock {
            Lock::Transaction(transaction) => transaction.token(),
            Lock::Session(lock) => lock.token(),
        }
    }

    pub(crate) fn shared(&self) -> Option<&LockTransaction> {
        match &self.lock {
            Lock::Transaction(transaction) => transaction.shared(),
            Lock::Session(_) => None,
        }
    }

    /// Whether it still holds the lock, as far as this process can know without asking.
    pub(crate) fn is_held(&self) -> bool {
        self.lease().is_current()
    }

    /// Keeps the lease while it is polled; resolves when the lock is lost.
    pub(crate) async fn keep(&self) {
        match &self.lock {
            Lock::Transaction(transaction) => transaction.keep().await,
            // Its own task keeps it, for all of its locks.
            Lock::Session(lock) => lock.lease().lost().await,
        }
    }

    /// Commits what a handler wrote in a shared transaction, and so gives the lock back.
    ///
    /// # Errors and cancel safety
    ///
    /// As [`LockedTransaction::commit_shared`].
    pub(crate) async fn commit_shared(&mut self, claim: &Claim) -> Result<(), LockError> {
        let announcement = self.announcement(claim);
        match &mut self.lock {
            Lock::Transaction(transaction) => transaction.commit_shared(announcement).await,
            Lock::Session(_) => Ok(()),
        }
    }

    /// Ends the hold of a success: hands the lock on to the next local waiter, or gives it back. Must be called within a runtime.
    ///
    /// The answer is the server's word that the lock was held until now. It comes while the next hold has begun.
    pub(crate) fn end_hold(mut self: Box<Self>, turn: Turn, claim: &Claim) -> Confirmation {
        let announcement = self.announcement(claim);
        if announcement.is_some() || !self.may_be_handed_on() {
            return self.give_back(announcement);
        }
        if turn.is_awaited() {
            let answer = self.confirmation(Urgency::WithTheNext);
            self.hand_on(turn);
            return answer;
        }
        if !self.was_handed_on {
            return self.give_back(None);
        }
        // A busy realm: its writers may all be waiting for this very answer, and come again with it.
        let answer = self.confirmation(Urgency::Now);
        let answered = answer.clone();
        let background = self.background.clone();
        background.spawn(async move {
            if answered.await {
                self.end_unconfirmed(turn);
            }
            // Else the lock is lost, though that may not have been noticed yet: the next one asks the server.
        });
        answer
    }

    /// Ends the hold of what did not succeed, or need not be told or confirmed.
    pub(crate) fn end_unconfirmed(self: Box<Self>, turn: Turn) {
        if self.may_be_handed_on() && turn.is_awaited() {
            self.hand_on(turn);
        } else {
            // Its keys are given back before anybody asks for them.
            drop(self);
            drop(turn);
        }
    }

    /// As [`Grant::end_hold`], where nobody asks for a confirmation of the success.
    pub(crate) fn end_success(self: Box<Self>, turn: Turn, claim: &Claim) {
        match self.announcement(claim) {
            Some(announcement) if self.shared().is_none() => {
                let background = self.background.clone();
                // Read to its end, so that a shutdown waits until it is told.
                background.spawn(self.give_back(Some(announcement)));
                drop(turn);
            }
            _ => self.end_unconfirmed(turn),
        }
    }

    /// What others are told of a write under this claim. That is done by what gives the lock back, so it is not handed on then.
    fn announcement(&self, claim: &Claim) -> Option<String> {
        announcement(claim, self.token(), self.sender.as_ref()?)
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
        crate::metrics::handed_on();
        self.was_handed_on = true;
        match &mut self.lock {
            Lock::Transaction(transaction) => transaction.begin_next_hold(),
            Lock::Session(lock) => lock.begin_next_hold(),
        }
        turn.hand_on(self);
    }

    /// The server's word that the lock was held until now; others may use it meanwhile.
    fn confirmation(&mut self, urgency: Urgency) -> Confirmation {
        match &mut self.lock {
            Lock::Transaction(transaction) => transaction.ping(urgency),
            Lock::Session(lock) => Confirmation::to(lock.confirmation()),
        }
    }

    /// Gives the lock back, with the server's word that it was held until now.
    fn give_back(self, announcement: Option<String>) -> Confirmation {
        match self.lock {
            Lock::Transaction(transaction) => transaction.commit(announcement),
            Lock::Session(lock) => Confirmation::to(lock.unlock(announcement)),
        }
    }
}
