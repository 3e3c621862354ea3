use std::collections::{BTreeMap, HashMap};
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

use super::LockKey;

/// The fair in-process FIFO in front of the database, one lane per key.
///
/// Only the owner of a key's [`Turn`] may ask PostgreSQL for that key; everybody else waits here, at the price of a map
/// entry. A key that nobody wants has no entry. A turn can carry a baton `B` to the next owner: the lock itself, where
/// PostgreSQL has granted it already.
#[derive(Debug)]
pub(crate) struct Queue<B> {
    lanes: Mutex<Lanes<B>>,
}

#[derive(Debug)]
struct Lanes<B> {
    /// Invariant: a key has a lane if and only if its turn is owned, or on its way to a waiter.
    by_key: HashMap<LockKey, Lane<B>>,
    /// Never used twice, so that a waiter that leaves late cannot take away another one's place.
    next_ticket: u64,
}

/// The waiters of one key, by ticket: in order of arrival.
type Lane<B> = BTreeMap<u64, oneshot::Sender<Turn<B>>>;

/// As many waiters as allowed stand in the lane.
#[derive(Debug)]
pub(crate) struct Full;

impl<B> Queue<B> {
    /// Takes a place in the key's lane, behind at most `max_waiters - 1` other waiters.
    pub(crate) fn enter(
        self: &Arc<Self>,
        key: LockKey,
        max_waiters: usize,
    ) -> Result<Entry<B>, Full> {
        let mut lanes = self.lanes();
        let ticket = lanes.next_ticket;
        let Some(lane) = lanes.by_key.get_mut(&key) else {
            lanes.by_key.insert(key, Lane::new());
            return Ok(Entry::Turn(Turn::new(Arc::clone(self), key, None)));
        };
        if lane.len() >= max_waiters {
            return Err(Full);
        }
        let (sender, turn) = oneshot::channel();
        lane.insert(ticket, sender);
        lanes.next_ticket += 1;
        Ok(Entry::Wait(Waiting {
            queue: Arc::clone(self),
            key,
            ticket,
            turn,
        }))
    }

    /// The key's first waiter, out of the lane. A lane without waiters is closed.
    fn next_waiter(&self, key: LockKey) -> Option<oneshot::Sender<Turn<B>>> {
        let mut lanes = self.lanes();
        let next = lanes.by_key.get_mut(&key)?.pop_first();
        if next.is_none() {
            lanes.by_key.remove(&key);
        }
        next.map(|(_, waiter)| waiter)
    }

    fn is_awaited(&self, key: LockKey) -> bool {
        let lanes = self.lanes();
        lanes.by_key.get(&key).is_some_and(|lane| !lane.is_empty())
    }

    fn leave(&self, key: LockKey, ticket: u64) {
        let mut lanes = self.lanes();
        let place = lanes
            .by_key
            .get_mut(&key)
            .and_then(|lane| lane.remove(&ticket));
        // Dropping a sender wakes its receiver: code that is not ours, and not for under the mutex.
        drop(lanes);
        drop(place);
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes<B>> {
        // No code that can panic runs under this mutex, so a poisoned one is whole.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Default for Queue<B> {
    fn default() -> Self {
        Self {
            lanes: Mutex::new(Lanes {
                by_key: HashMap::new(),
                next_ticket: 0,
            }),
        }
    }
}

/// The answer to [`Queue::enter`].
#[derive(Debug)]
pub(crate) enum Entry<B> {
    /// Nobody was there.
    Turn(Turn<B>),
    /// Somebody was: wait for the turn.
    Wait(Waiting<B>),
}

/// The exclusive right of this process's callers to ask PostgreSQL for one key.
///
/// Dropping it passes it on, with its baton; a baton that nobody waits for is dropped.
#[derive(Debug)]
pub(crate) struct Turn<B> {
    queue: Arc<Queue<B>>,
    key: LockKey,
    baton: Option<B>,
    /// Whether dropping passes it on.
    armed: bool,
}

impl<B> Turn<B> {
    fn new(queue: Arc<Queue<B>>, key: LockKey, baton: Option<B>) -> Self {
        Self {
            queue,
            key,
            baton,
            armed: true,
        }
    }

    pub(crate) fn key(&self) -> LockKey {
        self.key
    }

    /// What the owner before has handed on.
    pub(crate) fn take_baton(&mut self) -> Option<B> {
        self.baton.take()
    }

    /// Whether anybody waits for it. By the time of the answer that may have changed.
    pub(crate) fn is_awaited(&self) -> bool {
        self.queue.is_awaited(self.key)
    }

    /// Passes the turn on with a baton.
    pub(crate) fn hand_on(mut self, baton: B) {
        self.baton = Some(baton);
    }
}

impl<B> Drop for Turn<B> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let mut turn = Self::new(Arc::clone(&self.queue), self.key, self.baton.take());
        while let Some(waiter) = self.queue.next_waiter(self.key) {
            // Here a waiter may leave that is already out of its lane: a point for the model checker.
            #[cfg(test)]
            shuttle::thread::yield_now();
            match waiter.send(turn) {
                Ok(()) => return,
                // The waiter has left since.
                Err(back) => turn = back,
            }
        }
        // Nobody wants it, and its lane is closed. The baton is dropped here, outside of the mutex.
        turn.armed = false;
    }
}

/// A place in a lane; resolves to the turn.
///
/// # Cancel safety
///
/// Dropping it gives the place up at once; a turn that is already on its way goes to the next waiter.
#[derive(Debug)]
pub(crate) struct Waiting<B> {
    queue: Arc<Queue<B>>,
    key: LockKey,
    ticket: u64,
    turn: oneshot::Receiver<Turn<B>>,
}

impl<B> Future for Waiting<B> {
    type Output = Turn<B>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Turn<B>> {
        match ready!(Pin::new(&mut self.turn).poll(cx)) {
            Ok(turn) => Poll::Ready(turn),
            // A sender leaves its lane only to send, or by this place's own `leave`.
            Err(_) => Poll::Pending,
        }
    }
}

impl<B> Drop for Waiting<B> {
    fn drop(&mut self) {
        self.queue.leave(self.key, self.ticket);
    }
}

#[cfg(test)]
mod tests;
