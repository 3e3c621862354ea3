use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

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
        if let Some(lane) = self.lanes().by_key.get_mut(&key) {
            lane.remove(&ticket);
        }
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
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn key(name: &str) -> LockKey {
        LockKey::of(&format!("http://h/{name}/").parse().unwrap())
    }

    fn turn(entry: Entry) -> Turn {
        match entry {
            Entry::Turn(turn) => turn,
            Entry::Wait(_) => panic!("the lane was taken"),
        }
    }

    fn waiting(entry: Entry) -> Waiting {
        match entry {
            Entry::Wait(waiting) => waiting,
            Entry::Turn(_) => panic!("the lane was free"),
        }
    }

    #[test]
    fn turns_pass_in_order_of_arrival() {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.enter(key("a"), 9).unwrap());
        let mut second = waiting(queue.enter(key("a"), 9).unwrap());
        let mut third = waiting(queue.enter(key("a"), 9).unwrap());
        assert!((&mut second).now_or_never().is_none());

        drop(first);
        assert!((&mut third).now_or_never().is_none());
        let second = (&mut second)
            .now_or_never()
            .expect("the turn was passed on");
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        drop((&mut third).now_or_never().expect("the turn was passed on"));
        assert!(queue.lanes().by_key.is_empty());
    }

    #[test]
    fn keys_do_not_wait_for_each_other() {
        let queue = Arc::new(Queue::default());
        let _a = turn(queue.enter(key("a"), 9).unwrap());
        turn(queue.enter(key("b"), 9).unwrap());
    }

    #[test]
    fn a_waiter_that_leaves_gives_up_its_place_at_once() {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.enter(key("a"), 1).unwrap());
        let second = waiting(queue.enter(key("a"), 1).unwrap());
        assert!(queue.enter(key("a"), 1).is_err());
        drop(second);
        let third = waiting(queue.enter(key("a"), 1).unwrap());
        drop(first);
        assert!(third.now_or_never().is_some());
    }

    #[test]
    fn a_turn_on_its_way_to_a_waiter_that_left_reaches_the_next() {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.enter(key("a"), 9).unwrap());
        let second = waiting(queue.enter(key("a"), 9).unwrap());
        let third = waiting(queue.enter(key("a"), 9).unwrap());
        drop(first);
        drop(second);
        assert!(third.now_or_never().is_some());
        assert!(queue.lanes().by_key.is_empty());
    }

    #[test]
    fn a_late_leaver_takes_nobodys_place() {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.enter(key("a"), 9).unwrap());
        let mut late = waiting(queue.enter(key("a"), 9).unwrap());
        drop(first);
        drop((&mut late).now_or_never());
        // The lane was closed and opened again in the meantime.
        let again = turn(queue.enter(key("a"), 9).unwrap());
        let next = waiting(queue.enter(key("a"), 9).unwrap());
        drop(late);
        drop(again);
        assert!(next.now_or_never().is_some());
    }
}
