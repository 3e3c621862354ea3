use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
#[cfg(not(test))]
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

// In unit tests a model checker chooses which thread goes on wherever one takes the mutex.
#[cfg(test)]
use shuttle::sync::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::claim::Lock;
use super::{Claim, ClaimStatus, LockKey};

/// The fair in-process queue in front of the database.
///
/// Only the owner of a claim's [`Turn`] may ask PostgreSQL for it; everybody else waits here, at the price of a few map
/// entries. A claim stands in the lane of each of its keys, in all of them at once and under one ticket: so no two claims wait
/// for each other, and nobody overtakes in a lane whom they would have to wait for. A turn can carry a baton `B` to the next
/// owner: the locks themselves, where PostgreSQL has granted them already.
#[derive(Debug)]
pub(crate) struct Queue<B> {
    places: Mutex<Places<B>>,
}

#[derive(Debug)]
struct Places<B> {
    /// Invariant: a key has a lane if and only if somebody is let in there.
    lanes: HashMap<LockKey, Lane>,
    /// All who wait or own a turn, by ticket: in order of arrival.
    claims: BTreeMap<u64, Place<B>>,
    /// Never used twice, so that a waiter that leaves late cannot take away another one's place.
    next_ticket: u64,
}

#[derive(Debug)]
struct Place<B> {
    claim: Claim,
    /// When it came, or since when it is held.
    since: Instant,
    /// Whether its locks are granted, by PostgreSQL too.
    held: bool,
    /// None for the owner of a turn, which may still be on its way.
    waiter: Option<Waiter<B>>,
}

#[derive(Debug)]
struct Waiter<B> {
    turn: oneshot::Sender<Turn<B>>,
    /// In how many lanes it is not let in yet.
    missing: usize,
}

/// The lane of one key.
///
/// Invariant: the first waiter, if there is one, does not go together with those who are let in.
#[derive(Debug, Default)]
struct Lane {
    /// How many are let in: one, or several who share the key.
    inside: usize,
    shared: bool,
    /// Whether each of the others wants to share it, by ticket.
    waiters: BTreeMap<u64, bool>,
}

/// As many waiters as allowed stand in a lane.
#[derive(Debug)]
pub(crate) struct Full;

impl<B> Queue<B> {
    /// Takes a place in the lanes of all keys of the claim, in each behind at most `max_waiters - 1` other waiters.
    pub(crate) fn enter(
        self: &Arc<Self>,
        claim: &Claim,
        max_waiters: usize,
    ) -> Result<Entry<B>, Full> {
        let since = Instant::now();
        let mut places = self.places();
        let places = &mut *places;
        let full = |lock: &Lock| {
            let lane = places.lanes.get(&lock.key);
            lane.is_some_and(|lane| !lane.is_open_to(lock) && lane.waiters.len() >= max_waiters)
        };
        if claim.locks().iter().any(full) {
            return Err(Full);
        }
        let ticket = places.next_ticket;
        places.next_ticket += 1;
        let mut missing = 0;
        for lock in claim.locks() {
            let lane = places.lanes.entry(lock.key).or_default();
            if lane.is_open_to(lock) {
                lane.let_in(lock.is_shared());
            } else {
                lane.waiters.insert(ticket, lock.is_shared());
                missing += 1;
            }
        }
        let mut place = Place {
            claim: claim.clone(),
            since,
            held: false,
            waiter: None,
        };
        let queue = Arc::clone(self);
        let entry = if missing == 0 {
            Entry::Turn(Turn::new(queue, ticket, claim.clone()))
        } else {
            let (sender, turn) = oneshot::channel();
            place.waiter = Some(Waiter {
                turn: sender,
                missing,
            });
            Entry::Wait(Waiting {
                queue,
                ticket,
                turn,
            })
        };
        places.claims.insert(ticket, place);
        Ok(entry)
    }

    /// Who holds and who waits, in order of arrival.
    pub(crate) fn status(&self) -> Vec<ClaimStatus> {
        let places = self.places();
        let status =
            |place: &Place<B>| ClaimStatus::new(place.claim.clone(), place.held, place.since);
        places.claims.values().map(status).collect()
    }

    fn mark_held(&self, ticket: u64) {
        let since = Instant::now();
        if let Some(place) = self.places().claims.get_mut(&ticket) {
            place.held = true;
            place.since = since;
        }
    }

    /// Whether the next in line wants just the same.
    fn is_awaited(&self, claim: &Claim) -> bool {
        let places = self.places();
        let mut exclusive = claim.locks().iter().filter(|lock| !lock.is_shared());
        let Some(lock) = exclusive.next() else {
            return false;
        };
        let next = places.lanes.get(&lock.key).and_then(Lane::first);
        next.and_then(|ticket| places.claims.get(&ticket))
            .is_some_and(|next| {
                let missing = next.waiter.as_ref().map(|waiter| waiter.missing);
                missing == Some(1 + exclusive.count()) && next.claim == *claim
            })
    }

    /// Ends a turn, and gives out those of the waiters who need wait no longer.
    fn release(&self, ticket: u64) -> Vec<Ready<B>> {
        let mut places = self.places();
        let mut ready = Vec::new();
        if let Some(place) = places.claims.remove(&ticket) {
            places.depart(ticket, &place.claim, &mut ready);
        }
        ready
    }

    /// Takes a waiter out of its lanes. One whose turn is on its way is none any more.
    fn leave(self: &Arc<Self>, ticket: u64) {
        let mut places = self.places();
        let waits = |place: &Place<B>| place.waiter.is_some();
        if !places.claims.get(&ticket).is_some_and(waits) {
            return;
        }
        let mut ready = Vec::new();
        let left = places.claims.remove(&ticket);
        if let Some(place) = &left {
            places.depart(ticket, &place.claim, &mut ready);
        }
        // Waking a waiter, by its turn or by dropping its sender, runs code that is not ours: not under the mutex.
        drop(places);
        drop(left);
        Turn::send_all(self, ready, None);
    }

    fn places(&self) -> MutexGuard<'_, Places<B>> {
        // No code that can panic runs under this mutex, so a poisoned one is whole.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Places<B> {
    /// Takes a claim out of its lanes, and lets in who can be.
    fn depart(&mut self, ticket: u64, claim: &Claim, ready: &mut Vec<Ready<B>>) {
        for Lock { key, .. } in claim.locks() {
            let Some(lane) = self.lanes.get_mut(key) else {
                continue;
            };
            if lane.waiters.remove(&ticket).is_none() {
                lane.inside -= 1;
            }
            while let Some(next) = lane.let_next_in() {
                let Some(place) = self.claims.get_mut(&next) else {
                    continue;
                };
                if let Some(waiter) = &mut place.waiter {
                    waiter.missing -= 1;
                }
                if let Some(waiter) = place.waiter.take_if(|waiter| waiter.missing == 0) {
                    ready.push(Ready {
                        ticket: next,
                        claim: place.claim.clone(),
                        turn: waiter.turn,
                    });
                }
            }
            if lane.inside == 0 {
                self.lanes.remove(key);
            }
        }
    }
}

impl Lane {
    /// Whether a newcomer is let in at once.
    fn is_open_to(&self, lock: &Lock) -> bool {
        self.waiters.is_empty() && self.admits(lock.is_shared())
    }

    fn admits(&self, shared: bool) -> bool {
        self.inside == 0 || (self.shared && shared)
    }

    fn let_in(&mut self, shared: bool) {
        self.inside += 1;
        self.shared = shared;
    }

    fn first(&self) -> Option<u64> {
        self.waiters.keys().next().copied()
    }

    /// Lets the first waiter in, if it goes together with those inside. Nobody overtakes it, so nobody keeps it waiting for ever.
    fn let_next_in(&mut self) -> Option<u64> {
        let (&ticket, &shared) = self.waiters.first_key_value()?;
        if !self.admits(shared) {
            return None;
        }
        self.waiters.remove(&ticket);
        self.let_in(shared);
        Some(ticket)
    }
}

impl<B> Default for Queue<B> {
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

/// The answer to [`Queue::enter`].
#[derive(Debug)]
pub(crate) enum Entry<B> {
    /// Nobody was there who would have to go first.
    Turn(Turn<B>),
    /// Somebody was: wait for the turn.
    Wait(Waiting<B>),
}

/// A waiter that need wait no longer.
struct Ready<B> {
    ticket: u64,
    claim: Claim,
    turn: oneshot::Sender<Turn<B>>,
}

/// The right of one caller to ask PostgreSQL for a claim, while no other caller of this process has a key of it, but to share.
///
/// Dropping it passes it on. Its baton goes to the next in line if that one wants just the same, and is dropped otherwise.
#[derive(Debug)]
pub(crate) struct Turn<B> {
    queue: Arc<Queue<B>>,
    ticket: u64,
    claim: Claim,
    baton: Option<B>,
    /// Whether dropping passes it on.
    armed: bool,
}

impl<B> Turn<B> {
    fn new(queue: Arc<Queue<B>>, ticket: u64, claim: Claim) -> Self {
        Self {
            queue,
            ticket,
            claim,
            baton: None,
            armed: true,
        }
    }

    /// Notes that its locks are granted.
    pub(crate) fn mark_held(&self) {
        self.queue.mark_held(self.ticket);
    }

    /// What the owner before has handed on.
    pub(crate) fn take_baton(&mut self) -> Option<B> {
        self.baton.take()
    }

    /// Whether the next in line wants just the same. By the time of the answer that may have changed.
    pub(crate) fn is_awaited(&self) -> bool {
        self.queue.is_awaited(&self.claim)
    }

    /// Passes the turn on with a baton.
    pub(crate) fn hand_on(mut self, baton: B) {
        self.baton = Some(baton);
    }

    /// Sends turns to those who wait for them, and the baton with the first that is for the same claim.
    fn send_all(queue: &Arc<Queue<B>>, ready: Vec<Ready<B>>, baton: Option<(Claim, B)>) {
        let mut ready = VecDeque::from(ready);
        let mut baton = baton;
        loop {
            let same = baton.take().and_then(|(claim, baton)| {
                let place = ready.iter().position(|next| next.claim == claim)?;
                Some((ready.remove(place)?, baton))
                // A baton that nobody wants ends here, outside of the mutex, and before anybody asks PostgreSQL for its keys.
            });
            let (next, handed_on) = match same {
                Some((next, baton)) => (next, Some(baton)),
                None => match ready.pop_front() {
                    Some(next) => (next, None),
                    None => return,
                },
            };
            let mut turn = Self::new(Arc::clone(queue), next.ticket, next.claim);
            turn.baton = handed_on;
            // Here a waiter may leave that is already out of its lanes: a point for the model checker.
            #[cfg(test)]
            shuttle::thread::yield_now();
            if let Err(mut back) = next.turn.send(turn) {
                // The waiter has left since, and there may be others behind it.
                back.armed = false;
                ready.extend(queue.release(back.ticket));
                baton = back.baton.take().map(|baton| (back.claim.clone(), baton));
            }
        }
    }
}

impl<B> Drop for Turn<B> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let ready = self.queue.release(self.ticket);
        let baton = self.baton.take().map(|baton| (self.claim.clone(), baton));
        Self::send_all(&self.queue, ready, baton);
    }
}

/// A place in the lanes of a claim; resolves to the turn.
///
/// # Cancel safety
///
/// Dropping it gives the place up at once; a turn that is already on its way goes to the next waiter.
#[derive(Debug)]
pub(crate) struct Waiting<B> {
    queue: Arc<Queue<B>>,
    ticket: u64,
    turn: oneshot::Receiver<Turn<B>>,
}

impl<B> Future for Waiting<B> {
    type Output = Turn<B>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Turn<B>> {
        match ready!(Pin::new(&mut self.turn).poll(cx)) {
            Ok(turn) => Poll::Ready(turn),
            // A sender leaves its place only to send, or by this place's own `leave`.
            Err(_) => Poll::Pending,
        }
    }
}

impl<B> Drop for Waiting<B> {
    fn drop(&mut self) {
        self.queue.leave(self.ticket);
    }
}

#[cfg(test)]
mod tests;
