//! The fair in-process queue in front of the database.
//!
//! Every caller of this process that wants a claim enters here first. Only the owner of a claim's
//! [`Turn`] may ask the backend for it; waiting costs a few map entries and no connection.
//!
//! # Lanes
//!
//! Each key that somebody wants has a lane: the callers that are let in (one, or several that share
//! the key), and the waiters in order of arrival. A claim enters the lanes of all its keys in one
//! step and under one ticket, so that two claims never wait for each other, and nobody overtakes in
//! one lane a claim that it must wait for in another. A claim that is let in everywhere gets the
//! turn. Callers that share a key go in together, but no newcomer passes a waiter.
//!
//! The lanes are in shards by key, each with a mutex of its own: callers of distinct realms rarely
//! meet. A claim of several keys takes the mutexes of all of them, in one order.
//!
//! # Slots
//!
//! A caller's [`Slot`] is its mailbox. It starts as *waiting*, becomes *turn* when the queue offers
//! the turn, and ends as *over*. The right to the turn, and the baton with it, stay in the slot and
//! never move into the caller's future. So whoever finds the slot abandoned can take them out: the caller's
//! destructor, or the watchdog that visits slots whose callers neither poll nor drop their calls.
//!
//! # Batons
//!
//! A turn can carry a baton to the next waiter *for the same claim*: a lock that the backend has
//! granted already, or a lock statement that is still in flight. A baton is never lost silently. It
//! is given to the next waiter under the mutexes of its lanes, or stays with its owner; when the owner
//! leaves, [`Baton::orphan`] decides what becomes of the pair.
//!
//! # Invariants
//!
//! - A key has a lane if and only if somebody is let in there.
//! - The number of a slot's `missing` lanes is zero exactly for those who own a turn, or to whom one
//!   is being offered. It changes only under the mutex of one of its lanes.
//! - Tickets grow in every lane and are never reused, so a waiter that leaves late cannot remove
//!   another's place.
//! - No foreign code runs under a shard's mutex: wakers and destructors of batons run after it.
//! - A slot's mutex is never taken under a shard's mutex, nor the other way round.
//! - Once the queue is [closed](Queue::close), nobody enters and nobody waits. When it is
//!   [empty](Queue::emptied), every hold has ended or was revoked: nested holds and work that outlives
//!   its hold keep the slot that they share.

mod lane;
mod life;
#[cfg(all(test, shuttle))]
mod schedules;
mod shards;

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
#[cfg(not(shuttle))]
use std::sync::{Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

// The model checker chooses which thread runs next wherever a mutex is taken.
#[cfg(shuttle)]
use shuttle::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::lane::Lane;
use self::life::Life;
use self::shards::{Locked, Shards};
use super::status::ClaimStatus;
use crate::realm::claim::{Claim, Lock};

/// What a turn can carry to the next waiter for the same claim.
pub(super) trait Baton: Sized + Send + 'static {
    /// Decides what becomes of a baton whose owner has left: it is handed on, or ended before the
    /// turn is dropped. Must not block.
    fn orphan(self, turn: Turn<Self>);
}

pub(super) struct Queue<B: Baton> {
    shards: Shards<B>,
    next_ticket: Ticket,
    closed: AtomicBool,
    /// Notified of each departure once the queue is closed.
    departed: Notify,
}

/// On cache lines of its own: everyone who enters writes it, and reads what is beside it.
#[derive(Default)]
#[repr(align(128))]
struct Ticket(AtomicU64);

/// One caller's place in the queue, and what it has obtained there.
pub(super) struct Slot<B: Baton> {
    queue: Arc<Queue<B>>,
    ticket: u64,
    claim: Claim,
    since: Instant,
    /// In how many lanes it is not let in yet.
    missing: AtomicUsize,
    /// When the watchdog visits it next; `None` where nothing bounds it.
    visit: Mutex<Option<Instant>>,
    /// For how long the owner of the turn may leave its call unpolled.
    bound: Option<Duration>,
    /// How many nanoseconds after `since` the lock was granted, by the backend too, and one more; 0
    /// before.
    granted: AtomicU64,
    life: Life,
    stage: Mutex<Stage<B>>,
}

enum Stage<B: Baton> {
    Waiting(Option<Waker>),
    Turn(Option<B>),
    Over,
}

/// The right of one caller to ask the backend for a claim, while no other caller of this process
/// has one of its keys, except to share it.
///
/// Dropping it passes it on.
pub(super) struct Turn<B: Baton> {
    /// `None` once it is passed on.
    slot: Option<Arc<Slot<B>>>,
}

/// Why nobody can enter.
#[derive(Debug)]
pub(super) enum Refused {
    /// As many waiters as allowed stand in a lane.
    Full,
    Closed,
}

/// The slot of a caller that has not received its lock yet.
///
/// Dropping it gives the place up. A turn that is in the slot already goes to the next waiter.
pub(super) struct Entry<B: Baton> {
    /// `None` once it is kept.
    slot: Option<Arc<Slot<B>>>,
}

impl<B: Baton> Queue<B> {
    /// Takes a place in the lanes of all keys of the claim, in each behind at most
    /// `max_waiters - 1` other waiters. `since` is when the caller arrived.
    pub(super) fn enter(
        self: &Arc<Self>,
        claim: &Claim,
        max_waiters: usize,
        since: Instant,
        bound: Option<Duration>,
    ) -> Result<Entry<B>, Refused> {
        let mut lanes = self.shards.lock(claim);
        if self.is_closed() {
            return Err(Refused::Closed);
        }
        let mut missing = 0;
        for lock in claim.locks() {
            if let Some(lane) = lanes.lane(lock.key) {
                if lane.is_full_for(lock, max_waiters) {
                    return Err(Refused::Full);
                }
                missing += usize::from(!lane.is_open_to(lock));
            }
        }
        let slot = Arc::new(Slot {
            queue: Arc::clone(self),
            // Under the mutexes, so that it is the last one in each of the lanes.
            ticket: self.next_ticket.0.fetch_add(1, Ordering::Relaxed),
            claim: claim.clone(),
            since,
            missing: AtomicUsize::new(missing),
            visit: Mutex::new(bound.and_then(|bound| since.checked_add(bound / 2))),
            bound,
            granted: AtomicU64::new(0),
            life: Life::new(),
            stage: Mutex::new(if missing == 0 {
                Stage::Turn(None)
            } else {
                Stage::Waiting(None)
            }),
        });
        let mut watchers = Vec::new();
        for lock in claim.locks() {
            let lane = lanes.lanes_of(lock.key).open(lock.key);
            if !lane.is_open_to(lock) {
                watchers.extend(lane.watcher().cloned());
            }
            lane.enter(&slot, lock);
        }
        drop(lanes);
        for watcher in watchers {
            watcher.notify_one();
        }
        Ok(Entry { slot: Some(slot) })
    }

    /// Lets nobody in any more, and ends the wait of all waiters. Who owns a turn keeps it.
    pub(super) fn close(&self) {
        // Whoever enters afterwards sees it, under the mutex of its lane.
        self.closed.store(true, Ordering::Release);
        for slot in self.slots() {
            slot.end_wait();
        }
    }

    /// Waits until a closed queue is empty: everyone who was in it has left.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing depends on it.
    pub(super) async fn emptied(&self) {
        loop {
            let departed = self.departed.notified();
            if self.len() == 0 {
                return;
            }
            departed.await;
        }
    }

    /// How many callers wait or own a turn.
    pub(super) fn len(&self) -> usize {
        self.slots().len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// All waiters and owners of a turn, in order of arrival.
    fn slots(&self) -> Vec<Arc<Slot<B>>> {
        let shards = self.shards.lock_all();
        let lanes = shards.iter().flat_map(|lanes| lanes.all());
        let mut slots: Vec<_> = lanes.flat_map(Lane::slots).cloned().collect();
        drop(shards);
        slots.sort_unstable_by_key(|slot| slot.ticket);
        slots.dedup_by_key(|slot| slot.ticket);
        slots
    }

    /// The holders and waiters, in order of arrival.
    pub(super) fn status(&self) -> Vec<ClaimStatus> {
        let status = |slot: Arc<Slot<B>>| {
            let granted = slot.granted.load(Ordering::Acquire).checked_sub(1);
            let since = slot.since + Duration::from_nanos(granted.unwrap_or_default());
            ClaimStatus::new(slot.claim.clone(), granted.is_some(), since)
        };
        self.slots().into_iter().map(status).collect()
    }

    /// Visits the owners of turns that are due, and revokes those that were not polled since the
    /// last visit. Returns when the next visit is due; `None` if there is none.
    pub(super) fn visit(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for slot in self.slots() {
            let (is_due, visit) = slot.next_visit(now);
            next = next.into_iter().chain(visit).min();
            if is_due && slot.life.visit() {
                tracing::warn!(
                    claim = %slot.claim,
                    "a call was neither polled nor dropped, and loses its lock"
                );
                slot.leave();
            }
        }
        next
    }

    /// The next waiter, if it wants the same claim and waits for this ticket alone.
    fn heir(lanes: &mut Locked<'_, B>, claim: &Claim) -> Option<Arc<Slot<B>>> {
        let mut exclusive = claim.locks().iter().filter(|lock| !lock.is_shared());
        let mut first_in =
            |lock: &Lock| lanes.lane(lock.key).and_then(|lane| lane.first().cloned());
        let heir = first_in(exclusive.next()?)?;
        let mut missing = 1;
        for lock in exclusive {
            if first_in(lock)?.ticket != heir.ticket {
                return None;
            }
            missing += 1;
        }
        let is_next = heir.missing.load(Ordering::Relaxed) == missing && heir.claim == *claim;
        is_next.then_some(heir)
    }

    /// Lets a shutdown see that somebody has left.
    fn note_departure(&self) {
        if self.is_closed() {
            self.departed.notify_waiters();
        }
    }

    fn offer_all(mut ready: Ready<B>) {
        while let Some(slot) = ready.pop_front() {
            if let Err((mut turn, _)) = slot.offer(None) {
                ready.extend(turn.release());
            }
        }
    }
}

/// A turn, with what it carries.
type Taken<B> = (Turn<B>, Option<B>);

/// The slots whose turn has come.
type Ready<B> = VecDeque<Arc<Slot<B>>>;

impl<B: Baton> Turn<B> {
    /// Whether the next waiter wants the same claim. That may change before the answer is used.
    pub(super) fn is_awaited(&self) -> bool {
        let Some(slot) = &self.slot else {
            return false;
        };
        let mut lanes = slot.queue.shards.lock(&slot.claim);
        Queue::heir(&mut lanes, &slot.claim).is_some()
    }

    /// Passes the turn on with a baton; gives both back if no waiter wants the same claim.
    pub(super) fn hand_on(self, baton: B) -> Result<(), (Self, B)> {
        let mut others = Ready::new();
        let (mut turn, mut baton) = (self, baton);
        let handed_on = loop {
            let Some((heir, ready)) = turn.bequeath() else {
                break Err((turn, baton));
            };
            others.extend(ready);
            // Between the two steps the heir may leave: a point for the model checker.
            match heir.offer(Some(baton)) {
                Err((of_heir, Some(back))) => (turn, baton) = (of_heir, back),
                _ => break Ok(()),
            }
        };
        Queue::offer_all(others);
        handed_on
    }

    /// Ends the turn in favour of the next waiter for the same claim, which comes first, and of the
    /// others that need wait no longer. `None`, with nothing changed, if there is no such waiter.
    fn bequeath(&mut self) -> Option<(Arc<Slot<B>>, Ready<B>)> {
        let slot = self.slot.as_ref()?;
        let mut lanes = slot.queue.shards.lock(&slot.claim);
        let heir = Queue::heir(&mut lanes, &slot.claim)?;
        let mut ready = slot.depart(&mut lanes);
        drop(lanes);
        self.slot = None;
        let at = ready.iter().position(|slot| slot.ticket == heir.ticket);
        debug_assert!(at.is_some(), "an heir waits for this turn and for no other");
        let Some(heir) = at.and_then(|at| ready.remove(at)) else {
            Queue::offer_all(ready);
            return None;
        };
        Some((heir, ready))
    }

    /// Is notified when a newcomer waits for one of the keys, or at once if one does already.
    pub(super) fn watch(&self) -> Arc<Notify> {
        let watcher = Arc::new(Notify::new());
        let Some(slot) = &self.slot else {
            return watcher;
        };
        let mut awaited = false;
        let mut lanes = slot.queue.shards.lock(&slot.claim);
        for lock in slot.claim.locks() {
            if let Some(lane) = lanes.lane(lock.key) {
                awaited |= lane.watch(&watcher);
            }
        }
        drop(lanes);
        if awaited {
            watcher.notify_one();
        }
        watcher
    }

    /// Passes the turn on without a baton.
    fn pass_on(&mut self) {
        Queue::offer_all(self.release());
    }

    /// Ends the turn; those that need wait no longer.
    fn release(&mut self) -> Ready<B> {
        let Some(slot) = self.slot.take() else {
            return Ready::new();
        };
        let mut lanes = slot.queue.shards.lock(&slot.claim);
        let ready = slot.depart(&mut lanes);
        drop(lanes);
        slot.queue.note_departure();
        ready
    }
}

impl<B: Baton> Drop for Turn<B> {
    fn drop(&mut self) {
        self.pass_on();
    }
}

impl<B: Baton> Slot<B> {
    /// Whether the watchdog has revoked the turn.
    pub(super) fn is_revoked(&self) -> bool {
        self.life.is_revoked()
    }

    /// Begins a poll of work under the turn; `false` if it was revoked. Every `true` is followed by
    /// one [`end_poll`](Self::end_poll).
    pub(super) fn begin_poll(&self) -> bool {
        self.life.begin()
    }

    pub(super) fn end_poll(&self) {
        self.life.end();
    }

    /// Notes that the caller still polls its call.
    pub(super) fn note_life(&self) {
        self.life.note();
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// How often the owner of a turn must show that it lives.
    pub(super) fn sign_of_life(&self) -> Option<Duration> {
        self.bound.map(|bound| bound / 3)
    }

    pub(super) fn mark_granted(&self, at: Instant) {
        let nanos = at.saturating_duration_since(self.since).as_nanos();
        // 584 years of nanoseconds fit.
        let nanos = u64::try_from(nanos).unwrap_or_default();
        self.granted
            .store(nanos.saturating_add(1), Ordering::Release);
    }

    /// Looks at what the turn carries; `None` if the slot has no turn.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Option<B>) -> T) -> Option<T> {
        match &mut *self.stage() {
            Stage::Turn(baton) => Some(look(baton)),
            Stage::Waiting(_) | Stage::Over => None,
        }
    }

    /// Looks at what the turn carries. If `look` finds nothing, takes the turn and the baton out,
    /// which ends the slot. `None` if it has none.
    pub(super) fn look_or_take<T>(
        self: &Arc<Self>,
        look: impl FnOnce(&mut Option<B>) -> Option<T>,
    ) -> Option<Result<T, Taken<B>>> {
        let mut stage = self.stage();
        let Stage::Turn(baton) = &mut *stage else {
            return None;
        };
        if let Some(found) = look(baton) {
            return Some(Ok(found));
        }
        let baton = baton.take();
        *stage = Stage::Over;
        Some(Err((self.turn(), baton)))
    }

    /// Puts the turn into the slot, unless the waiter has left since.
    fn offer(self: &Arc<Self>, baton: Option<B>) -> Result<(), Taken<B>> {
        let mut stage = self.stage();
        let Stage::Waiting(waker) = &mut *stage else {
            return Err((self.turn(), baton));
        };
        let waker = waker.take();
        self.life.note();
        *stage = Stage::Turn(baton);
        drop(stage);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// The turn that this slot's caller owns, or is offered.
    fn turn(self: &Arc<Self>) -> Turn<B> {
        Turn {
            slot: Some(Arc::clone(self)),
        }
    }

    /// Ends the slot of a caller that has left. What was in it goes to others.
    fn leave(self: &Arc<Self>) {
        // In one step: between two of them the turn may be offered, and would stay here for ever.
        let stage = mem::replace(&mut *self.stage(), Stage::Over);
        match stage {
            Stage::Turn(Some(baton)) => baton.orphan(self.turn()),
            Stage::Turn(None) => self.turn().pass_on(),
            Stage::Waiting(_) | Stage::Over => {}
        }
    }

    /// Makes a waiter's caller stop waiting.
    fn end_wait(&self) {
        let mut stage = self.stage();
        if let Stage::Waiting(waker) = &mut *stage {
            let waker = waker.take();
            *stage = Stage::Over;
            drop(stage);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Removes a waiter from its lanes, unless its turn is being offered.
    fn leave_lanes(&self) {
        let mut lanes = self.queue.shards.lock(&self.claim);
        if self.missing.load(Ordering::Relaxed) > 0 {
            let ready = self.depart(&mut lanes);
            drop(lanes);
            self.queue.note_departure();
            Queue::offer_all(ready);
        }
    }

    /// Removes the claim from its lanes, and lets in whoever can be; those whose turn that is.
    fn depart(&self, lanes: &mut Locked<'_, B>) -> Ready<B> {
        let mut ready = Ready::new();
        for Lock { key, .. } in self.claim.locks() {
            let lanes = lanes.lanes_of(*key);
            let Some(lane) = lanes.get_mut(*key) else {
                continue;
            };
            lane.depart(self.ticket);
            while let Some(next) = lane.let_next_in() {
                // Another lane of a claim of several keys may let it in meanwhile.
                if next.missing.fetch_sub(1, Ordering::Relaxed) == 1 {
                    ready.push_back(Arc::clone(next));
                }
            }
            if lane.is_empty() {
                lanes.close(*key);
            }
        }
        ready
    }

    /// Whether the owner of a turn is due for a visit, and when the next one is.
    fn next_visit(&self, now: Instant) -> (bool, Option<Instant>) {
        let mut next = self.visit.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(visit), Some(bound)) = (*next, self.bound) else {
            return (false, None);
        };
        if visit > now {
            return (false, Some(visit));
        }
        *next = now.checked_add(bound / 2);
        // A visit that comes late says nothing: the process stood still, callers too.
        let is_late = now - visit > bound / 4;
        let has_turn = self.missing.load(Ordering::Relaxed) == 0;
        (has_turn && !is_late, *next)
    }

    fn stage(&self) -> MutexGuard<'_, Stage<B>> {
        // A stage is replaced as a whole, so a poisoned one is whole too.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Baton> Entry<B> {
    pub(super) fn slot(&self) -> Option<&Arc<Slot<B>>> {
        self.slot.as_ref()
    }

    /// Whether the turn is in the slot.
    pub(super) fn has_turn(&self) -> bool {
        self.slot
            .as_ref()
            .is_some_and(|slot| slot.with(|_| ()).is_some())
    }

    /// Waits until the turn is in the slot; `false` if it was revoked since, or the queue closed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the turn stays in the slot.
    pub(super) async fn turn(&self) -> bool {
        let Some(slot) = &self.slot else {
            return false;
        };
        poll_fn(|cx| match &mut *slot.stage() {
            Stage::Turn(..) => {
                slot.note_life();
                Poll::Ready(true)
            }
            Stage::Over => Poll::Ready(false),
            Stage::Waiting(waker) => {
                if !waker.as_ref().is_some_and(|it| it.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    /// Leaves the slot as it is for the hold that takes over.
    pub(super) fn keep(mut self) -> Option<Arc<Slot<B>>> {
        self.slot.take()
    }

    fn leave(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.leave();
            slot.leave_lanes();
        }
    }
}

impl<B: Baton> Drop for Entry<B> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<B: Baton> Default for Queue<B> {
    fn default() -> Self {
        Self {
            shards: Shards::default(),
            next_ticket: Ticket::default(),
            closed: AtomicBool::new(false),
            departed: Notify::new(),
        }
    }
}

impl<B: Baton> fmt::Debug for Queue<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl<B: Baton> fmt::Debug for Turn<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Turn").field(&self.slot).finish()
    }
}

impl<B: Baton> fmt::Debug for Slot<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("ticket", &self.ticket)
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}
