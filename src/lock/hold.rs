//! The life of a hold: one owner of everything between the grant and the release.
//!
//! A [`Hold`] is made when its claim is granted, guards the work, and ends in one way:
//! [`Hold::end`]. Its destructor calls the same function with [`Outcome::Failure`].
//!
//! 1. **Begin.** The turn and the [`Grant`] stay in the queue's [`Slot`]; the hold has a share of
//!    it. An ordinary hold has the one share of a grant that was made for it. A *nested* hold has
//!    shares of the grants that its own task holds already, of several where only together they
//!    cover its claim. A grant lasts as long as its last share.
//! 2. **Guard.** [`Hold::guard`] polls the work in whatever task polls the guard. Before each step it
//!    checks that the lock is still held; after it, it polls what can end the hold early: the
//!    [`Grip`], which sends heartbeats and resolves when the lock is lost, and `max_hold`. The
//!    hold is the *innermost* of the task while the work is polled: that is how nested use is found.
//! 3. **End.** The hold's share goes back with the [`Outcome`] of the work. While other holds share
//!    the grant it is [kept](Fate::Kept); the last one hands it on, gives it back or rolls it back.
//!    [`Grant::end`] decides which, and nobody else. A handler can end its hold itself, with
//!    [`Core::release`]: the rest of the guarded work then runs without the lock.
//! 4. **Confirm.** An [`Ending`] knows which answers of the server prove that the lock was held until
//!    the work ended. [`Ending::confirmed`] waits for them, while the next hold has begun.
//!
//! Work that the hold outlives has shares of its own, as a nested hold has: see
//! [`work`](super::work).
//!
//! # Invariants
//!
//! - A loss is found by [`Core::check`] or by a missing proof, and counted once per hold.
//! - A hold whose call is neither polled nor dropped is revoked by the queue's watchdog, which takes
//!   its grant out of the slot. A step of the work and a revocation exclude each other, and no step
//!   follows a revocation: see [`Slot::begin_poll`].
//! - A hold that has ended has no share. What its work left behind holds nothing, unless it was
//!   started as part of the hold.
//! - What a shared transaction wrote stands or falls with the hold that it was made for. Its COMMIT
//!   waits until the nested holds have ended.

use std::future::{Future, pending, poll_fn};
use std::iter::{once, successors};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::error::LockError;
#[cfg(any(doc, feature = "test-util"))]
use super::grant::Grant;
use super::grant::{Fate, Grip, Left, Obtained, Outcome, Publishes, Role, Slot, with_grant};
use super::postgres::confirmation::{Confirmation, Proof, Unconfirmed};
use super::postgres::shared::LockTransaction;
use super::token::FencingToken;
use crate::config::ConfigError;
use crate::metrics;
use crate::realm::claim::{Claim, Lock};

tokio::task_local! {
    /// The hold that the current task works under, the innermost. A task that it spawns does not
    /// work under it.
    static INNERMOST: Arc<Core>;
}

/// A granted lock, and the duty to end it.
pub(crate) struct Hold {
    core: Arc<Core>,
}

/// What the handles of a hold share with it.
pub(crate) struct Core {
    claim: Claim,
    /// The locks that it belongs to, by address: two that were made separately know nothing of each
    /// other.
    locks: usize,
    share: Share,
    /// Of a nested hold whose claim several grants cover.
    other_shares: Vec<Share>,
    origin: Origin,
    /// `max_hold`, and when it passes.
    limit: Option<(Duration, Instant)>,
    has_ended: AtomicBool,
    has_failed: AtomicBool,
    /// How much of the work that the hold outlives has not ended.
    works: AtomicUsize,
    is_counted_lost: AtomicBool,
    counted: Mutex<Option<metrics::Held>>,
    /// When and how the hold ended, if its own work has released it.
    released: Mutex<Option<(Instant, Ended)>>,
}

/// What became of the locks of a hold that has ended, and which answers prove that it held them.
#[derive(Clone)]
struct Ended {
    fate: Fate,
    proofs: Vec<Confirmation>,
}

/// Where a hold comes from, and what its grants give to its work.
struct Origin {
    /// The hold that the asking task worked under.
    outer: Option<Arc<Core>>,
    /// Whether it shares the grants of other holds.
    is_nested: bool,
    token: Option<FencingToken>,
    transaction: Option<LockTransaction>,
}

/// A part in a grant.
struct Share {
    slot: Arc<Slot>,
    grip: Grip,
}

/// What a hold is made with, apart from its grant.
pub(super) struct HoldTerms {
    pub(super) claim: Claim,
    pub(super) locks: usize,
    pub(super) max_hold: Option<Duration>,
    /// `None` for a part of a hold that is counted already.
    pub(super) counted: Option<metrics::Held>,
}

/// What a nested hold is asked to give.
#[derive(Debug, Clone, Copy)]
pub(super) struct NestedNeeds {
    /// The transaction that holds the lock.
    pub(super) transaction: bool,
    /// A lock that outlives the outer hold's response.
    pub(super) outlives_response: bool,
}

impl Hold {
    /// A hold of the grant in this slot, which was made for it; `None` if there is none any more.
    pub(super) fn new(terms: HoldTerms, slot: Arc<Slot>, granted: Instant) -> Option<Self> {
        slot.mark_granted(granted);
        let (grip, origin) = with_grant(&slot, |grant| {
            let origin = Origin {
                outer: innermost(),
                is_nested: false,
                token: grant.token(),
                transaction: grant.shared().cloned(),
            };
            (grant.grip().clone(), origin)
        })?;
        let share = Share { slot, grip };
        Some(Self::assemble(terms, granted, origin, share, Vec::new()))
    }

    fn assemble(
        terms: HoldTerms,
        granted: Instant,
        origin: Origin,
        share: Share,
        other_shares: Vec<Share>,
    ) -> Self {
        let core = Core {
            claim: terms.claim,
            locks: terms.locks,
            share,
            other_shares,
            origin,
            limit: limit(terms.max_hold, granted),
            has_ended: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            works: AtomicUsize::new(0),
            is_counted_lost: AtomicBool::new(false),
            counted: Mutex::new(terms.counted),
            released: Mutex::new(None),
        };
        Self {
            core: Arc::new(core),
        }
    }

    /// A hold of what the current task holds already; `None`, with nothing done, if it holds nothing
    /// of the claim.
    ///
    /// # Errors
    ///
    /// [`LockError::OwnLock`] if the task holds a part of the claim: waiting for the rest would be
    /// waiting for itself. [`LockError::Lost`] if what it holds is lost, and
    /// [`LockError::Config`] for a need that the outer hold cannot give.
    pub(super) fn nested(
        claim: &Claim,
        locks: usize,
        needs: NestedNeeds,
        terms: impl FnOnce() -> HoldTerms,
    ) -> Result<Option<Self>, LockError> {
        let Some(inner) = innermost() else {
            return Ok(None);
        };
        let Some(slots) = inner.slots_for(claim, locks)? else {
            return Ok(None);
        };
        Self::sharing(inner, claim, &slots, needs, terms).map(Some)
    }

    /// A part of this hold for work that it outlives.
    ///
    /// # Errors
    ///
    /// [`LockError::Ended`], [`LockError::Lost`] and [`LockError::Expired`].
    pub(super) fn for_work(outer: &Arc<Core>) -> Result<Self, LockError> {
        outer.ensure_held()?;
        let slots: Vec<_> = outer.shares().map(|it| Arc::clone(&it.slot)).collect();
        let needs = NestedNeeds {
            transaction: outer.transaction().is_some(),
            outlives_response: false,
        };
        let terms = || HoldTerms {
            claim: outer.claim.clone(),
            locks: outer.locks,
            max_hold: None,
            counted: None,
        };
        Self::sharing(Arc::clone(outer), &outer.claim, &slots, needs, terms)
    }

    /// A hold that shares the grants in these slots with `outer`.
    fn sharing(
        outer: Arc<Core>,
        claim: &Claim,
        slots: &[Arc<Slot>],
        needs: NestedNeeds,
        terms: impl FnOnce() -> HoldTerms,
    ) -> Result<Self, LockError> {
        let lost = || LockError::Lost {
            claim: claim.clone(),
        };
        let mut shares: Vec<Share> = Vec::with_capacity(slots.len());
        let mut origin = Origin {
            outer: Some(outer),
            is_nested: true,
            token: None,
            transaction: None,
        };
        for slot in slots {
            let grip = with_grant(slot, |grant| {
                needs.check(grant.shared().is_some(), slots.len())?;
                origin.transaction = grant.shared().filter(|_| needs.transaction).cloned();
                origin.token = origin.token.max(grant.token());
                Ok(grant.grip().clone())
            });
            let grip = grip.unwrap_or_else(|| Err(lost()))?;
            if !grip.is_firm() {
                return Err(lost());
            }
            let slot = Arc::clone(slot);
            shares.push(Share { slot, grip });
        }
        for (begun, share) in shares.iter().enumerate() {
            let begins = with_grant(&share.slot, |grant| grant.share(origin.token));
            if begins != Some(true) {
                // It has ended since.
                for share in shares.iter().take(begun) {
                    share.end(claim, Outcome::Failure, origin.role());
                }
                return Err(lost());
            }
        }
        // A claim has a key, so a slot covers it.
        let others = shares.split_off(1);
        let share = shares.remove(0);
        Ok(Self::assemble(
            terms(),
            Instant::now(),
            origin,
            share,
            others,
        ))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn claim(&self) -> &Claim {
        &self.core.claim
    }

    /// Whether it shares the lock of a hold of the same task.
    pub(crate) fn is_nested(&self) -> bool {
        self.core.origin.is_nested
    }

    /// Whether its own work has released it.
    pub(crate) fn is_released(&self) -> bool {
        // While there is a hold, nothing else ends it.
        self.core.has_ended()
    }

    /// Runs `work` until it ends, the lock is lost, or `max_hold` has passed; then `work` is
    /// dropped. Work that releases the hold runs to its end.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] and [`LockError::Expired`].
    ///
    /// # Cancel safety
    ///
    /// If dropped, so is `work`; the hold goes on.
    pub(crate) async fn guard<T>(&self, work: impl Future<Output = T>) -> Result<T, LockError> {
        let mut work = pin!(INNERMOST.scope(Arc::clone(&self.core), work));
        let mut early_end = None;
        poll_fn(|cx| {
            // A process that was frozen must see the time before its work goes on, and timers may
            // fire late.
            let step = match self.core.begin_step() {
                Ok(step) => step,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let polled = work.as_mut().poll(cx);
            drop(step);
            if let Poll::Ready(done) = polled {
                return Poll::Ready(Ok(done));
            }
            if self.is_released() {
                return Poll::Pending;
            }
            // Last, so that work which never waits needs no timer, and no room for one.
            let early_end = early_end.get_or_insert_with(|| Box::pin(self.early_end()));
            early_end.as_mut().poll(cx).map(Err)
        })
        .await
    }

    /// Keeps the hold until `work` has ended, which nothing can stop: neither `max_hold` nor the
    /// loss of the lock.
    ///
    /// # Cancel safety
    ///
    /// If dropped, so is `work`; the hold goes on.
    pub(crate) async fn outlast<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(INNERMOST.scope(Arc::clone(&self.core), work));
        let mut life = pin!(async { tokio::join!(self.keep(), self.show_life()) });
        poll_fn(|cx| {
            // The step only prevents a revocation: without the lock the work goes on as well.
            let step = self.core.begin_step().ok();
            let polled = work.as_mut().poll(cx);
            drop(step);
            if polled.is_pending() {
                // It never ends.
                let _ = life.as_mut().poll(cx);
            }
            polled
        })
        .await
    }

    /// Keeps the hold alive; resolves when it must end before its work does.
    async fn early_end(&self) -> LockError {
        tokio::select! {
            () = self.keep() => self.core.loss(),
            error = self.expired() => error,
            error = self.show_life() => error,
        }
    }

    async fn keep(&self) {
        if self.core.other_shares.is_empty() {
            return self.core.share.grip.keep().await;
        }
        let shares = self.core.shares();
        select_all(shares.map(|share| Box::pin(share.grip.keep()))).await;
    }

    async fn expired(&self) -> LockError {
        let Some((max_hold, end)) = self.core.limit else {
            return pending().await;
        };
        sleep_until(end).await;
        self.core.expired(max_hold)
    }

    /// Makes its task poll it often enough for the watchdog, however long the work waits.
    async fn show_life(&self) -> LockError {
        let signs = self.core.shares().filter_map(|it| it.slot.sign_of_life());
        let Some(every) = signs.min() else {
            return pending().await;
        };
        loop {
            sleep(every).await;
        }
    }

    /// Ends the hold: the only way in which one ends.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] or [`LockError::Expired`] for a success whose lock is known not to have
    /// lasted, or which took too long. The hold has ended all the same.
    pub(crate) fn end(self, outcome: Outcome) -> Result<Ending, LockError> {
        self.finish(outcome)
    }

    /// The same for an owner that has a destructor of its own.
    pub(super) fn finish(&self, outcome: Outcome) -> Result<Ending, LockError> {
        if let Some(released) = self.core.released() {
            return Ok(released);
        }
        let held = self.core.check();
        let outcome = if held.is_ok() {
            outcome
        } else {
            Outcome::Failure
        };
        let Some(ended) = self.core.end(outcome) else {
            // It may have been released since.
            let released = self.core.released();
            return released.ok_or_else(|| self.core.loss());
        };
        held.map(|()| self.core.ending(ended))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.core.end(Outcome::Failure);
    }
}

impl NestedNeeds {
    /// Refuses what an outer hold cannot give, by whether it shares its transaction and how many
    /// grants cover the claim.
    fn check(self, shares: bool, grants: usize) -> Result<(), LockError> {
        let refuse =
            |option, value: &str, remedy| Err(ConfigError::option(option, value, remedy).into());
        if self.transaction && (!shares || grants > 1) {
            return refuse(
                "share_transaction",
                "true",
                "this task holds the lock already, in a hold that does not share its transaction; \
                 set share_transaction(true) for the outer hold",
            );
        }
        if self.outlives_response && shares {
            return refuse(
                "hold_until",
                "BodyEnd",
                "this task holds the lock already, in a hold whose shared transaction commits \
                 before the body ends; leave share_transaction off, or HoldUntil::BodyEnd and any \
                 Success that reads trailers",
            );
        }
        Ok(())
    }
}

/// A step of work under a hold; `None` for one that was released.
struct Step<'a>(Option<&'a Core>);

impl Drop for Step<'_> {
    fn drop(&mut self) {
        let shares = self.0.into_iter().flat_map(Core::shares);
        shares.for_each(|share| share.slot.end_poll());
    }
}

impl Core {
    fn shares(&self) -> impl Iterator<Item = &Share> {
        once(&self.share).chain(&self.other_shares)
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(super) fn token(&self) -> Option<FencingToken> {
        self.origin.token
    }

    pub(super) fn transaction(&self) -> Option<&LockTransaction> {
        self.origin.transaction.as_ref()
    }

    /// Whether the lock is still held, as far as this process can know without asking, and may be
    /// used.
    pub(super) fn is_held(&self) -> bool {
        !self.is_over() && self.has_lock() && !self.is_expired()
    }

    /// As [`is_held`](Self::is_held), with the reason.
    ///
    /// # Errors
    ///
    /// [`LockError::Ended`], [`LockError::Lost`] and [`LockError::Expired`].
    pub(super) fn ensure_held(&self) -> Result<(), LockError> {
        if self.is_over() {
            Err(self.ended())
        } else {
            self.check()
        }
    }

    /// Whether the next step of the work may be made: under the lock, or after its release.
    ///
    /// # Errors
    ///
    /// As [`ensure_held`](Self::ensure_held).
    pub(super) fn check_step(self: &Arc<Self>) -> Result<(), LockError> {
        match self.released() {
            Some(_) => Ok(()),
            None => self.ensure_held(),
        }
    }

    fn has_lock(&self) -> bool {
        self.shares().all(Share::is_held)
    }

    fn is_expired(&self) -> bool {
        self.limit.is_some_and(|(_, end)| Instant::now() >= end)
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Whether it has failed or was stopped.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// Whether the hold has ended, and all work that it outlives.
    fn is_over(&self) -> bool {
        self.has_ended() && self.works.load(Ordering::Acquire) == 0
    }

    /// Counts work that the hold outlives.
    pub(super) fn begin_work(&self) {
        self.works.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn end_work(&self) {
        self.works.fetch_sub(1, Ordering::AcqRel);
    }

    /// Resolves when the lock is lost.
    pub(super) async fn lost(&self) {
        select_all(self.shares().map(|share| Box::pin(share.grip.lost()))).await;
    }

    /// Takes the locks away that it has, as the death of their connections does.
    #[cfg(feature = "test-util")]
    pub(super) fn lose(&self) {
        for share in self.shares() {
            with_grant(&share.slot, Grant::lose);
        }
    }

    /// Runs one step of work under the hold.
    pub(crate) fn within<T>(self: &Arc<Self>, step: impl FnOnce() -> T) -> T {
        INNERMOST.sync_scope(Arc::clone(self), step)
    }

    /// Makes one step of work that its guard does not poll, such as a step of a response's body. The
    /// watchdog does not revoke the lock before the step has ended.
    ///
    /// # Errors
    ///
    /// Those of [`check_step`](Self::check_step): the step was not made.
    pub(super) fn step<T>(self: &Arc<Self>, step: impl FnOnce() -> T) -> Result<T, LockError> {
        self.check_step()?;
        let _step = self.begin_step()?;
        Ok(self.within(step))
    }

    /// Begins a step of the work: checks that the lock is held, and keeps the watchdog from revoking
    /// it before the step has ended.
    fn begin_step(&self) -> Result<Step<'_>, LockError> {
        if self.has_ended() {
            return Ok(Step(None));
        }
        for (begun, share) in self.shares().enumerate() {
            if !share.slot.begin_poll() {
                self.shares()
                    .take(begun)
                    .for_each(|share| share.slot.end_poll());
                return Err(self.end_of_revoked());
            }
        }
        let step = Step(Some(self));
        self.check()?;
        Ok(step)
    }

    /// Whether the lock is still there, and there is time left: the one place where a loss is found
    /// out before the end.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        if self.has_lock() {
            match self.limit {
                Some((max_hold, _)) if self.is_expired() => Err(self.expired(max_hold)),
                _ => Ok(()),
            }
        } else if self.shares().any(|share| share.slot.is_revoked()) {
            Err(self.end_of_revoked())
        } else {
            Err(self.loss())
        }
    }

    /// What a hold reports that the watchdog has revoked.
    fn end_of_revoked(&self) -> LockError {
        match self.limit {
            Some((max_hold, _)) if !self.share.grip.is_leased() => self.expired(max_hold),
            _ => self.loss(),
        }
    }

    fn expired(&self, max_hold: Duration) -> LockError {
        LockError::Expired {
            claim: self.claim.clone(),
            max_hold,
        }
    }

    /// The error of a lost lock; counts it once.
    pub(crate) fn loss(&self) -> LockError {
        if !self.is_counted_lost.swap(true, Ordering::AcqRel) {
            metrics::lost();
        }
        LockError::Lost {
            claim: self.claim.clone(),
        }
    }

    fn ended(&self) -> LockError {
        LockError::Ended {
            claim: self.claim.clone(),
        }
    }

    /// Ends the hold as a success, while its work goes on without the lock. A second call returns
    /// the same ending.
    ///
    /// # Errors
    ///
    /// As [`ensure_held`](Self::ensure_held).
    pub(super) fn release(self: &Arc<Self>) -> Result<Ending, LockError> {
        let mut released = self.released_state();
        if let Some((_, ended)) = &*released {
            return Ok(self.ending(ended.clone()));
        }
        if self.has_ended() {
            return Err(self.ended());
        }
        self.ensure_held()?;
        if self.commit_waits_for_this_task() {
            let remedy = "a release from within work or a nested hold that shares the transaction \
                          would wait for itself; release the hold in its own handler";
            return Err(ConfigError::option("share_transaction", "true", remedy).into());
        }
        let Some(ended) = self.end(Outcome::Success) else {
            return Err(self.ended());
        };
        *released = Some((Instant::now(), ended.clone()));
        Ok(self.ending(ended))
    }

    /// Whether its own outcome commits a shared transaction or rolls it back.
    fn decides_about_transaction(&self) -> bool {
        self.transaction().is_some() && !self.origin.is_nested
    }

    /// Whether the current task works under another hold that the commit of a shared transaction
    /// would wait for.
    fn commit_waits_for_this_task(self: &Arc<Self>) -> bool {
        if !self.decides_about_transaction() {
            return false;
        }
        let innermost = innermost();
        let holds = successors(innermost.as_deref(), |core| core.origin.outer.as_deref());
        let others =
            holds.filter(|core| !std::ptr::eq(*core, Arc::as_ptr(self)) && !core.has_ended());
        others
            .flat_map(Self::shares)
            .any(|other| Arc::ptr_eq(&other.slot, &self.share.slot))
    }

    /// Makes a shared transaction roll back that waits for work before it commits; whether there was
    /// one.
    pub(super) fn withdraw(&self, problem: &str) -> bool {
        let withdraw = |share: &Share| with_grant(&share.slot, |grant| grant.withdraw(problem));
        let withdrawn = self.shares().filter_map(withdraw);
        withdrawn.filter(|withdrawn| *withdrawn).count() > 0
    }

    pub(super) fn released_at(&self) -> Option<Instant> {
        self.released_state().as_ref().map(|(at, _)| *at)
    }

    fn released_state(&self) -> MutexGuard<'_, Option<(Instant, Ended)>> {
        // It is set as a whole.
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn released(self: &Arc<Self>) -> Option<Ending> {
        if !self.has_ended() {
            return None;
        }
        let ended = self.released_state().as_ref().map(|(_, it)| it.clone());
        ended.map(|ended| self.ending(ended))
    }

    fn ending(self: &Arc<Self>, ended: Ended) -> Ending {
        let core = Arc::clone(self);
        Ending { ended, core }
    }

    /// Gives all shares back; `None` if that was done before, or a share was revoked.
    fn end(&self, outcome: Outcome) -> Option<Ended> {
        if self.has_ended() || self.has_ended.swap(true, Ordering::AcqRel) {
            return None;
        }
        self.has_failed
            .store(outcome == Outcome::Failure, Ordering::Release);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        drop(counted.take());
        let mut fate = Some(Fate::Kept);
        let mut proofs = Vec::new();
        let mut role = self.origin.role();
        if self.works.load(Ordering::Acquire) > 0 {
            role.publishes = Publishes::AtEnd;
        }
        for share in self.shares() {
            let ended = share.end(&self.claim, outcome, role);
            // Each write is one event.
            role.publishes = Publishes::Never;
            fate = fate.and_then(|fate| {
                let (of_share, proof) = ended?;
                proofs.extend(proof);
                // The grants of a nested hold are kept, except where it outlives an outer hold.
                Some(if fate == Fate::Kept { of_share } else { fate })
            });
        }
        tracing::debug!(claim = %self.claim, ?outcome, ?fate, "a hold ended");
        fate.map(|fate| Ended { fate, proofs })
    }

    /// The slots that cover a claim, of all holds of these locks that this hold is nested in, itself
    /// included; `None` if they have no key of it.
    fn slots_for(
        self: &Arc<Self>,
        claim: &Claim,
        locks: usize,
    ) -> Result<Option<Vec<Arc<Slot>>>, LockError> {
        let holds = || {
            let chain = successors(Some(&**self), |core| core.origin.outer.as_deref());
            chain.filter(|core| core.locks == locks && !core.has_ended())
        };
        let slots = || holds().flat_map(|core| core.shares().map(move |share| (core, share)));
        let covering = |lock: &Lock| slots().find(|(_, share)| share.slot.claim().has(lock));
        let mut covered: Vec<Arc<Slot>> = Vec::new();
        for lock in claim.locks() {
            let Some((core, share)) = covering(lock) else {
                let own = slots().find(|(_, share)| share.slot.claim().meets(claim));
                return match own {
                    None => Ok(None),
                    Some((_, share)) => Err(LockError::OwnLock {
                        claim: claim.clone(),
                        held: share.slot.claim().clone(),
                    }),
                };
            };
            if !core.is_held() {
                return Err(LockError::Lost {
                    claim: claim.clone(),
                });
            }
            if !covered.iter().any(|slot| Arc::ptr_eq(slot, &share.slot)) {
                covered.push(Arc::clone(&share.slot));
            }
        }
        Ok((!covered.is_empty()).then_some(covered))
    }
}

/// A bound of a hold, and when it passes. One too far away to be a point in time is no bound.
fn limit(max_hold: Option<Duration>, granted: Instant) -> Option<(Duration, Instant)> {
    let max_hold = max_hold?;
    Some((max_hold, granted.checked_add(max_hold)?))
}

/// The hold that the current task works under.
fn innermost() -> Option<Arc<Core>> {
    INNERMOST.try_with(Arc::clone).ok()
}

/// Whether the current task works under a hold.
pub(super) fn is_nested() -> bool {
    innermost().is_some()
}

/// Names what the task holds in the error of a request for something else.
pub(super) fn explain(error: LockError) -> LockError {
    match innermost() {
        None => error,
        Some(core) if core.is_over() => error,
        Some(core) => LockError::Nested {
            held: core.claim.clone(),
            source: Box::new(error),
        },
    }
}

impl Origin {
    fn role(&self) -> Role {
        Role {
            owns: !self.is_nested,
            writes_in_transaction: self.transaction.is_some(),
            publishes: Publishes::AtOnce,
        }
    }
}

impl Share {
    fn is_held(&self) -> bool {
        self.grip.is_firm() && !self.slot.is_revoked()
    }

    /// Ends this share, and with the last one the grant; `None` if it was revoked.
    fn end(&self, claim: &Claim, outcome: Outcome, role: Role) -> Option<Left> {
        let left = self.slot.look_or_take(|obtained| match obtained {
            Some(Obtained::Granted(grant)) => grant.leave(claim, outcome, role).map(Some),
            _ => Some(None),
        })?;
        match left {
            Ok(left) => left,
            Err((turn, Some(Obtained::Granted(grant)))) => Some(grant.end(turn, outcome)),
            Err(_) => None,
        }
    }
}

/// A hold that has ended, as far as this process can know.
#[must_use = "the lock may have been lost unnoticed"]
pub(crate) struct Ending {
    ended: Ended,
    core: Arc<Core>,
}

impl Ending {
    /// Whether there is a proof to wait for; never of locks in process.
    pub(crate) fn has_proofs(&self) -> bool {
        !self.ended.proofs.is_empty()
    }

    /// Waits for the server's proof that the lock was held to the end, and that a shared transaction
    /// committed. The next hold has begun meanwhile.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if the proof does not come, [`LockError::CommitFailed`], and
    /// [`LockError::Expired`] if a commit that waits for work has waited until `max_hold`; it is
    /// rolled back then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: only the result depends on it.
    pub(crate) async fn confirmed(self) -> Result<(), LockError> {
        for proof in &self.ended.proofs {
            match self.answered(proof).await? {
                Ok(()) => {}
                Err(Unconfirmed::Lost) => return Err(self.core.loss()),
                Err(Unconfirmed::NotCommitted(problem)) => {
                    return Err(LockError::CommitFailed {
                        claim: self.core.claim.clone(),
                        problem: problem.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Waits for one proof; for a commit that waits for work in its turn, until `max_hold` at most.
    async fn answered(&self, proof: &Confirmation) -> Result<Proof, LockError> {
        let may_wait = self.ended.fate == Fate::Kept && self.core.decides_about_transaction();
        let Some((max_hold, end)) = self.core.limit.filter(|_| may_wait) else {
            return Ok(proof.answered().await);
        };
        if let Ok(answered) = timeout_at(end, proof.answered()).await {
            return Ok(answered);
        }
        if self
            .core
            .withdraw("the work that it waited for took too long")
        {
            return Err(self.core.expired(max_hold));
        }
        // It is committing already.
        Ok(proof.answered().await)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::lock::grant::{Grant, Queue};
    use crate::lock::lease::Lease;

    #[test]
    fn work_that_was_frozen_with_its_process_does_not_go_on() {
        paused_runtime().block_on(freeze());
    }

    pub(crate) fn paused_runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    }

    fn terms(claim: &Claim) -> HoldTerms {
        HoldTerms {
            claim: claim.clone(),
            locks: 0,
            max_hold: None,
            counted: None,
        }
    }

    /// A hold that only its lease ends. Nobody sends its heartbeats, as in a process that stands
    /// still.
    pub(crate) fn leased(period: Duration) -> (Hold, Arc<Lease>) {
        let mut hold = granted(&Arc::new(Queue::default()), &realm());
        let connection = CancellationToken::new();
        let lease = Arc::new(Lease::new(period, Instant::now(), &connection));
        let core = Arc::get_mut(&mut hold.core).unwrap();
        core.share.grip = Grip::Session(Arc::clone(&lease));
        (hold, lease)
    }

    fn granted(queue: &Arc<Queue>, claim: &Claim) -> Hold {
        watched(queue, claim, None)
    }

    /// One that the watchdog revokes if it is not polled within `bound`.
    fn watched(queue: &Arc<Queue>, claim: &Claim, bound: Option<Duration>) -> Hold {
        let entry = queue.enter(claim, 9, Instant::now(), bound).ok().unwrap();
        let slot = entry.keep().unwrap();
        slot.with(|obtained| *obtained = Some(Obtained::Granted(Grant::in_process())));
        Hold::new(terms(claim), slot, Instant::now()).unwrap()
    }

    fn realm() -> Claim {
        Claim::realm(&"http://h/a/".parse().unwrap())
    }

    #[test]
    fn a_step_that_no_guard_polls_is_not_interrupted_by_the_watchdog() {
        let queue = Arc::new(Queue::default());
        let bound = Duration::from_secs(1);
        let visits = |count: u32| {
            for visit in 1..=count {
                let _ = queue.visit(Instant::now() + bound * visit / 2);
            }
        };
        let hold = watched(&queue, &realm(), Some(bound));
        let made = hold.core().step(|| {
            visits(4);
            queue.status().len()
        });
        assert_eq!(made.unwrap(), 1, "the lock is held during the whole step");
        visits(8);
        assert!(queue.status().is_empty(), "nobody polls it any more");
        assert!(hold.core().step(|| ()).is_err());
    }

    #[test]
    fn work_that_took_too_long_is_no_success_however_late_its_timer_is() {
        paused_runtime().block_on(async {
            let limit = Duration::from_secs(1);
            let mut hold = granted(&Arc::new(Queue::default()), &realm());
            let core = Arc::get_mut(&mut hold.core).unwrap();
            core.limit = super::limit(Some(limit), Instant::now());
            tokio::time::advance(limit).await;
            assert!(!hold.core.is_held());
            let end = hold.end(Outcome::Success);
            assert!(matches!(end, Err(LockError::Expired { .. })));
        });
    }

    async fn freeze() {
        let (hold, _lease) = leased(Duration::from_secs(30));
        let steps = Cell::new(0);
        let work = poll_fn(|_| {
            steps.set(steps.get() + 1);
            Poll::<()>::Pending
        });
        let mut guarded = pin!(hold.guard(work));
        assert!((&mut guarded).now_or_never().is_none());
        tokio::time::advance(Duration::from_secs(20)).await;
        let end = guarded.now_or_never();
        assert!(matches!(end, Some(Err(LockError::Lost { .. }))));
        assert_eq!(steps.get(), 1);
    }

    /// What runs under the model checker, as the queue's own schedules do.
    #[cfg(shuttle)]
    mod schedules {
        use super::*;

        #[test]
        fn work_begins_only_under_a_grant_that_lasts() {
            shuttle::check_random(
                || {
                    let queue = Arc::new(Queue::default());
                    let hold = granted(&queue, &realm());
                    let core = Arc::clone(hold.core());
                    let beginning = shuttle::thread::spawn(move || Hold::for_work(&core).ok());
                    // A point for the model checker.
                    shuttle::thread::yield_now();
                    let _ = hold.end(Outcome::Success);
                    let part = beginning.join().unwrap();
                    let holds = usize::from(part.is_some());
                    assert_eq!(queue.status().len(), holds, "work without its lock");
                    drop(part);
                    assert!(queue.status().is_empty());
                },
                2_000,
            );
        }
    }
}
