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
//! # Slots
//!
//! A caller's [`Slot`] is its mailbox. It starts as *waiting*, becomes *turn* when the queue offers
//! the turn, and ends as *over*. The turn, and the baton with it, stay in the slot and never move
//! into the caller's future. So whoever finds the slot abandoned can take them out: the caller's
//! destructor, or the watchdog that visits slots whose callers neither poll nor drop their calls.
//!
//! # Batons
//!
//! A turn can carry a baton to the next waiter *for the same claim*: a lock that the backend has
//! granted already, or a lock statement that is still in flight. A baton is never lost silently. It
//! is given to the next waiter under the queue's mutex, or stays with its owner; when the owner
//! leaves, [`Baton::orphan`] decides what becomes of the pair.
//!
//! # Invariants
//!
//! - A key has a lane if and only if somebody is let in there.
//! - The sum of a place's `missing` lanes is zero exactly for those who own a turn, or to whom one
//!   is being offered.
//! - Tickets grow and are never reused, so a waiter that leaves late cannot remove another's place.
//! - No foreign code runs under the mutex: wakers and destructors of batons run after it.
//! - A slot's mutex is never taken under the queue's mutex, nor the other way round.

mod lane;
mod life;
#[cfg(all(test, shuttle))]
mod schedules;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, OnceLock, PoisonError};
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
use super::status::ClaimStatus;
use crate::realm::claim::{Claim, Lock};
use crate::realm::key::LockKey;

/// What a turn can carry to the next waiter for the same claim.
pub(super) trait Baton: Sized + Send + 'static {
    /// Decides what becomes of a baton whose owner has left: it is handed on, or ended before the
    /// turn is dropped. Must not block.
    fn orphan(self, turn: Turn<Self>);
}

pub(super) struct Queue<B: Baton> {
    places: Mutex<Places<B>>,
}

struct Places<B: Baton> {
    lanes: HashMap<LockKey, Lane>,
    /// All waiters and owners of a turn, by ticket: in order of arrival.
    claims: BTreeMap<u64, Place<B>>,
    next_ticket: u64,
}

struct Place<B: Baton> {
    slot: Arc<Slot<B>>,
    /// In how many lanes it is not let in yet.
    missing: usize,
    /// When the watchdog visits it next; `None` where nothing bounds it.
    visit: Option<Instant>,
}

/// One caller's place in the queue, and what it has obtained there.
pub(super) struct Slot<B: Baton> {
    ticket: u64,
    claim: Claim,
    since: Instant,
    /// For how long the owner of the turn may leave its call unpolled.
    bound: Option<Duration>,
    /// When the lock was granted, by the backend too.
    granted: OnceLock<Instant>,
    life: Life,
    stage: Mutex<Stage<B>>,
}

enum Stage<B: Baton> {
    Waiting(Option<Waker>),
    Turn(Turn<B>, Option<B>),
    Over,
}

/// The right of one caller to ask the backend for a claim, while no other caller of this process
/// has one of its keys, except to share it.
///
/// Dropping it passes it on.
pub(super) struct Turn<B: Baton> {
    queue: Arc<Queue<B>>,
    ticket: u64,
    claim: Claim,
    /// Whether dropping passes it on.
    armed: bool,
}

/// As many waiters as allowed stand in a lane.
#[derive(Debug)]
pub(super) struct Full;

/// The slot of a caller that has not received its lock yet.
///
/// Dropping it gives the place up. A turn that is in the slot already goes to the next waiter.
pub(super) struct Entry<B: Baton> {
    queue: Arc<Queue<B>>,
    /// `None` once it is kept.
    slot: Option<Arc<Slot<B>>>,
}

impl<B: Baton> Queue<B> {
    /// Takes a place in the lanes of all keys of the claim, in each behind at most
    /// `max_waiters - 1` other waiters.
    pub(super) fn enter(
        self: &Arc<Self>,
        claim: &Claim,
        max_waiters: usize,
        bound: Option<Duration>,
    ) -> Result<Entry<B>, Full> {
        let since = Instant::now();
        let mut watchers = Vec::new();
        let mut places = self.places();
        let Places {
            lanes,
            claims,
            next_ticket,
        } = &mut *places;
        let full = |lock: &Lock| {
            let lane = lanes.get(&lock.key);
            lane.is_some_and(|lane| lane.is_full_for(lock, max_waiters))
        };
        if claim.locks().iter().any(full) {
            return Err(Full);
        }
        let ticket = *next_ticket;
        *next_ticket += 1;
        let mut missing = 0;
        for lock in claim.locks() {
            let lane = lanes.entry(lock.key).or_default();
            if lane.is_open_to(lock) {
                lane.let_in(lock.is_shared());
            } else {
                watchers.extend(lane.wait(ticket, lock.is_shared()));
                missing += 1;
            }
        }
        let stage = if missing == 0 {
            Stage::Turn(Turn::new(Arc::clone(self), ticket, claim.clone()), None)
        } else {
            Stage::Waiting(None)
        };
        let slot = Arc::new(Slot {
            ticket,
            claim: claim.clone(),
            since,
            bound,
            granted: OnceLock::new(),
            life: Life::new(),
            stage: Mutex::new(stage),
        });
        let visit = bound.and_then(|bound| since.checked_add(bound / 2));
        let place = Place {
            slot: Arc::clone(&slot),
            missing,
            visit,
        };
        claims.insert(ticket, place);
        drop(places);
        for watcher in watchers {
            watcher.notify_one();
        }
        Ok(Entry {
            queue: Arc::clone(self),
            slot: Some(slot),
        })
    }

    /// The holders and waiters, in order of arrival.
    pub(super) fn status(&self) -> Vec<ClaimStatus> {
        let places = self.places();
        let status = |place: &Place<B>| {
            let slot = &place.slot;
            let granted = slot.granted.get();
            let since = granted.copied().unwrap_or(slot.since);
            ClaimStatus::new(slot.claim.clone(), granted.is_some(), since)
        };
        places.claims.values().map(status).collect()
    }

    /// Visits the owners of turns that are due, and revokes those that were not polled since the
    /// last visit. Returns when the next visit is due; `None` if there is none.
    pub(super) fn visit(&self, now: Instant) -> Option<Instant> {
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        let mut places = self.places();
        for place in places.claims.values_mut() {
            let (Some(visit), Some(bound)) = (place.visit, place.slot.bound) else {
                continue;
            };
            if visit <= now {
                place.visit = now.checked_add(bound / 2);
                // A visit that comes late says nothing: the process stood still, callers too.
                let is_late = now - visit > bound / 4;
                if place.missing == 0 && !is_late {
                    due.push(Arc::clone(&place.slot));
                }
            }
            next = next.into_iter().chain(place.visit).min();
        }
        drop(places);
        for slot in due {
            if slot.life.visit() {
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
    fn heir(places: &Places<B>, claim: &Claim) -> Option<u64> {
        let mut exclusive = claim.locks().iter().filter(|lock| !lock.is_shared());
        let first_in = |lock: &Lock| places.lanes.get(&lock.key).and_then(Lane::first);
        let heir = first_in(exclusive.next()?)?;
        let mut missing = 1;
        for lock in exclusive {
            if first_in(lock) != Some(heir) {
                return None;
            }
            missing += 1;
        }
        let place = places.claims.get(&heir)?;
        (place.missing == missing && place.slot.claim == *claim).then_some(heir)
    }

    /// Ends a turn in favour of the next waiter for the same claim, which comes first, and of the
    /// others that need wait no longer. `None`, with nothing changed, if there is no such waiter.
    fn bequeath(&self, ticket: u64, claim: &Claim) -> Option<(Arc<Slot<B>>, Ready<B>)> {
        let mut places = self.places();
        let heir = Self::heir(&places, claim)?;
        let mut ready = Ready::new();
        places.depart(ticket, &mut ready);
        let at = ready.iter().position(|slot| slot.ticket == heir)?;
        let heir = ready.remove(at)?;
        Some((heir, ready))
    }

    /// Ends a turn, or a place of a waiter; those of the others that need wait no longer.
    fn release(&self, ticket: u64) -> Ready<B> {
        let mut ready = Ready::new();
        self.places().depart(ticket, &mut ready);
        ready
    }

    /// Removes a waiter from its lanes, unless its turn is being offered.
    fn leave(self: &Arc<Self>, ticket: u64) {
        let mut places = self.places();
        if places.claims.get(&ticket).is_none_or(|it| it.missing == 0) {
            return;
        }
        let mut ready = Ready::new();
        places.depart(ticket, &mut ready);
        drop(places);
        self.offer_all(ready);
    }

    fn offer_all(self: &Arc<Self>, mut ready: Ready<B>) {
        while let Some(slot) = ready.pop_front() {
            if let Err((turn, _)) = self.offer(&slot, None) {
                ready.extend(self.release(turn.disarm()));
            }
        }
    }

    /// Puts the turn into a waiter's slot, unless that waiter has left since.
    fn offer(
        self: &Arc<Self>,
        slot: &Slot<B>,
        baton: Option<B>,
    ) -> Result<(), (Turn<B>, Option<B>)> {
        let turn = Turn::new(Arc::clone(self), slot.ticket, slot.claim.clone());
        let mut stage = slot.stage();
        let Stage::Waiting(waker) = &mut *stage else {
            return Err((turn, baton));
        };
        let waker = waker.take();
        slot.life.note();
        *stage = Stage::Turn(turn, baton);
        drop(stage);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn places(&self) -> MutexGuard<'_, Places<B>> {
        // No code that can panic runs under this mutex, so a poisoned one is whole.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots whose turn has come.
type Ready<B> = VecDeque<Arc<Slot<B>>>;

impl<B: Baton> Places<B> {
    /// Removes a claim from its lanes, and lets in whoever can be.
    fn depart(&mut self, ticket: u64, ready: &mut Ready<B>) {
        let Some(place) = self.claims.remove(&ticket) else {
            return;
        };
        for Lock { key, .. } in place.slot.claim.locks() {
            let Some(lane) = self.lanes.get_mut(key) else {
                continue;
            };
            lane.depart(ticket);
            while let Some(next) = lane.let_next_in() {
                if let Some(place) = self.claims.get_mut(&next) {
                    place.missing -= 1;
                    if place.missing == 0 {
                        ready.push_back(Arc::clone(&place.slot));
                    }
                }
            }
            if lane.is_empty() {
                self.lanes.remove(key);
            }
        }
    }
}

impl<B: Baton> Turn<B> {
    fn new(queue: Arc<Queue<B>>, ticket: u64, claim: Claim) -> Self {
        Self {
            queue,
            ticket,
            claim,
            armed: true,
        }
    }

    /// Whether the next waiter wants the same claim. That may change before the answer is used.
    pub(super) fn is_awaited(&self) -> bool {
        let places = self.queue.places();
        Queue::heir(&places, &self.claim).is_some()
    }

    /// Passes the turn on with a baton; gives both back if no waiter wants the same claim.
    pub(super) fn hand_on(self, baton: B) -> Result<(), (Self, B)> {
        let queue = Arc::clone(&self.queue);
        let mut others = Ready::new();
        let (mut turn, mut baton) = (self, baton);
        let handed_on = loop {
            let Some((heir, ready)) = queue.bequeath(turn.ticket, &turn.claim) else {
                break Err((turn, baton));
            };
            turn.disarm();
            others.extend(ready);
            // Between the two steps the heir may leave: a point for the model checker.
            match queue.offer(&heir, Some(baton)) {
                Err((of_heir, Some(back))) => (turn, baton) = (of_heir, back),
                _ => break Ok(()),
            }
        };
        queue.offer_all(others);
        handed_on
    }

    /// Is notified when a newcomer waits for one of the keys, or at once if one does already.
    pub(super) fn watch(&self) -> Arc<Notify> {
        let watcher = Arc::new(Notify::new());
        let mut awaited = false;
        let mut places = self.queue.places();
        for lock in self.claim.locks() {
            if let Some(lane) = places.lanes.get_mut(&lock.key) {
                awaited |= lane.watch(&watcher);
            }
        }
        drop(places);
        if awaited {
            watcher.notify_one();
        }
        watcher
    }

    /// Passes the turn on without a baton.
    fn pass_on(&mut self) {
        if self.armed {
            self.armed = false;
            let ready = self.queue.release(self.ticket);
            self.queue.offer_all(ready);
        }
    }

    /// Makes dropping do nothing, for a ticket that is released in another way.
    fn disarm(mut self) -> u64 {
        self.armed = false;
        self.ticket
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

    pub(super) fn mark_granted(&self) {
        let _ = self.granted.set(Instant::now());
    }

    /// Looks at the turn and its baton; `None` if the slot has none.
    pub(super) fn with<T>(&self, look: impl FnOnce(&Turn<B>, &mut Option<B>) -> T) -> Option<T> {
        match &mut *self.stage() {
            Stage::Turn(turn, baton) => Some(look(turn, baton)),
            Stage::Waiting(_) | Stage::Over => None,
        }
    }

    /// Takes the turn and the baton out, which ends the slot; `None` if it has none.
    pub(super) fn take(&self) -> Option<(Turn<B>, Option<B>)> {
        let mut stage = self.stage();
        if matches!(&*stage, Stage::Turn(..))
            && let Stage::Turn(turn, baton) = std::mem::replace(&mut *stage, Stage::Over)
        {
            return Some((turn, baton));
        }
        None
    }

    /// Ends the slot of a caller that has left. What was in it goes to others.
    fn leave(&self) {
        let stage = std::mem::replace(&mut *self.stage(), Stage::Over);
        match stage {
            Stage::Turn(turn, Some(baton)) => baton.orphan(turn),
            Stage::Turn(mut turn, None) => turn.pass_on(),
            Stage::Waiting(_) | Stage::Over => {}
        }
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

    /// Waits until the turn is in the slot; `false` if it was revoked since.
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
            self.queue.leave(slot.ticket);
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
            places: Mutex::new(Places {
                lanes: HashMap::new(),
                claims: BTreeMap::new(),
                next_ticket: 0,
            }),
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
        f.debug_struct("Turn")
            .field("ticket", &self.ticket)
            .field("claim", &self.claim)
            .finish_non_exhaustive()
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
