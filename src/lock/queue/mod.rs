mod lane;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};
#[cfg(not(test))]
use std::sync::{Mutex, MutexGuard};

// In unit tests a model checker chooses which thread goes on wherever one takes the mutex.
#[cfg(test)]
use shuttle::sync::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::lane::Lane;
use self::turn::Ready;
pub(crate) use self::turn::{Turn, Waiting};
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
            lane.is_some_and(|lane| lane.is_full_for(lock, max_waiters))
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
                lane.wait(ticket, lock.is_shared());
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
            lane.depart(ticket);
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
            if lane.is_empty() {
                self.lanes.remove(key);
            }
        }
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
