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
/// Only the owner of a key's [`Turn`] may talk to PostgreSQL about that key; everybody else waits here, at the price of a
/// map entry. A key that nobody wants has no entry.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lanes: Mutex<Lanes>,
}

#[derive(Debug, Default)]
struct Lanes {
    /// Invariant: a key has a lane if and only if its turn is owned, or on its way to a waiter.
    by_key: HashMap<LockKey, Lane>,
    /// Never used twice, so that a waiter that leaves late cannot take away another one's place.
    next_ticket: u64,
}

/// The waiters of one key, by ticket: in order of arrival.
type Lane = BTreeMap<u64, oneshot::Sender<Turn>>;

/// As many waiters as allowed stand in the lane.
#[derive(Debug)]
pub(crate) struct Full;

impl Queue {
    /// Takes a place in the key's lane, behind at most `max_waiters - 1` other waiters.
    pub(crate) fn enter(self: &Arc<Self>, key: LockKey, max_waiters: usize) -> Result<Entry, Full> {
        let mut lanes = self.lanes();
        let ticket = lanes.next_ticket;
        let Some(lane) = lanes.by_key.get_mut(&key) else {
            lanes.by_key.insert(key, Lane::new());
            return Ok(Entry::Turn(Turn::new(Arc::clone(self), key)));
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

    /// Passes the key's turn to the first waiter that still wants it, or closes the lane.
    fn pass_on(self: &Arc<Self>, key: LockKey) {
        while let Some(waiter) = self.next_waiter(key) {
            // Here a waiter may leave that is already out of its lane: a point for the model checker.
            #[cfg(test)]
            shuttle::thread::yield_now();
            match waiter.send(Turn::new(Arc::clone(self), key)) {
                Ok(()) => return,
                // The waiter has left since. Its turn must not pass itself on too: this loop does.
                Err(mut turn) => turn.armed = false,
            }
        }
    }

    fn next_waiter(&self, key: LockKey) -> Option<oneshot::Sender<Turn>> {
        let mut lanes = self.lanes();
        let next = lanes.by_key.get_mut(&key)?.pop_first();
        if next.is_none() {
            lanes.by_key.remove(&key);
        }
        next.map(|(_, waiter)| waiter)
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

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        // No code that can panic runs under this mutex, so a poisoned one is whole.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer to [`Queue::enter`].
#[derive(Debug)]
pub(crate) enum Entry {
    /// Nobody was there.
    Turn(Turn),
    /// Somebody was: wait for the turn.
    Wait(Waiting),
}

/// The exclusive right of this process's callers to ask PostgreSQL for one key. Dropping it passes it on.
#[derive(Debug)]
pub(crate) struct Turn {
    queue: Arc<Queue>,
    key: LockKey,
    /// Whether dropping passes it on.
    armed: bool,
}

impl Turn {
    fn new(queue: Arc<Queue>, key: LockKey) -> Self {
        Self {
            queue,
            key,
            armed: true,
        }
    }

    pub(crate) fn key(&self) -> LockKey {
        self.key
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.armed {
            self.queue.pass_on(self.key);
        }
    }
}

/// A place in a lane; resolves to the turn.
///
/// # Cancel safety
///
/// Dropping it gives the place up at once; a turn that is already on its way goes to the next waiter.
#[derive(Debug)]
pub(crate) struct Waiting {
    queue: Arc<Queue>,
    key: LockKey,
    ticket: u64,
    turn: oneshot::Receiver<Turn>,
}

impl Future for Waiting {
    type Output = Turn;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Turn> {
        match ready!(Pin::new(&mut self.turn).poll(cx)) {
            Ok(turn) => Poll::Ready(turn),
            // A sender leaves its lane only to send, or by this place's own `leave`.
            Err(_) => Poll::Pending,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.queue.leave(self.key, self.ticket);
    }
}

#[cfg(test)]
mod tests;
