use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::Queue;
use crate::lock::Claim;

/// A waiter that need wait no longer.
pub(super) struct Ready<B> {
    pub(super) ticket: u64,
    pub(super) claim: Claim,
    pub(super) turn: oneshot::Sender<Turn<B>>,
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
    pub(super) fn new(queue: Arc<Queue<B>>, ticket: u64, claim: Claim) -> Self {
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
    pub(super) fn send_all(queue: &Arc<Queue<B>>, ready: Vec<Ready<B>>, baton: Option<(Claim, B)>) {
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
    pub(super) queue: Arc<Queue<B>>,
    pub(super) ticket: u64,
    pub(super) turn: oneshot::Receiver<Turn<B>>,
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
