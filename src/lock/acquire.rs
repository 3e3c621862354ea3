use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::database::is_granted;
use super::error::LockError;
use super::grant::{Entry, Grant, Obtained, Slot};
use super::hold::{Hold, HoldTerms, NestedNeeds, explain, is_nested};
use super::locks::RealmLocks;
use super::postgres::attempt::SERVER_FIRST;
use super::queue::Refused;
use super::realm_keys::RealmKeys;
use super::request::LockRequest;
use crate::config::ConfigError;
use crate::metrics::{Held, Waiting};
use crate::realm::claim::Claim;

impl RealmLocks {
    /// A hold of the claim: of what the current task holds already, or else of a lock of its own,
    /// within this handle's bounds. `outlives_response` says whether it is needed for longer than the
    /// response of the call.
    ///
    /// # Errors
    ///
    /// Why the lock was not granted, or what the hold that it is nested in cannot give.
    ///
    /// # Cancel safety
    ///
    /// If dropped, its place in the queue is given up. A lock statement in flight goes to the next
    /// waiter for the same claim, or is cancelled after a short time.
    pub(crate) async fn hold(
        &self,
        claim: &Claim,
        outlives_response: bool,
    ) -> Result<Hold, LockError> {
        let started = Instant::now();
        let keyed = match &self.shared.realm_keys {
            // Boxed so that holds without such keys do not carry space for it.
            Some(keys) => Some(Box::pin(self.keyed(keys, claim, started)).await?),
            None => claim.with_default_keys(),
        };
        let claim = keyed.as_ref().unwrap_or(claim);
        let needs = NestedNeeds {
            transaction: self.bounds.share_transaction,
            outlives_response,
        };
        let terms = || {
            let counted = Some(Waiting::begin().granted(Duration::ZERO));
            self.terms(claim, counted)
        };
        if let Some(nested) = Hold::nested(claim, self.address(), needs, terms)? {
            return Ok(nested);
        }
        self.acquire(claim, started).await.map_err(explain)
    }

    /// The claim with the keys that the application gives its realms.
    async fn keyed(
        &self,
        keys: &RealmKeys,
        claim: &Claim,
        started: Instant,
    ) -> Result<Claim, LockError> {
        // A shutdown waits for this caller.
        let _tracked = self.shared.group.tracker().token();
        let request = LockRequest::new(claim, &self.bounds, started);
        let closing = async {
            // A hold that ends may need one that is nested in it.
            if is_nested() {
                pending::<()>().await;
            }
            self.shared.group.closing().cancelled().await;
        };
        tokio::select! {
            biased;
            keyed = keys.of(&request) => keyed,
            () = closing => Err(LockError::ShuttingDown),
        }
    }

    /// By what holds know that they belong to these locks. The queue lives as long as any turn of it,
    /// so no other locks can get its address under a hold.
    fn address(&self) -> usize {
        Arc::as_ptr(&self.shared.queue).addr()
    }

    fn terms(&self, claim: &Claim, counted: Option<Held>) -> HoldTerms {
        HoldTerms {
            claim: claim.clone(),
            locks: self.address(),
            max_hold: self.bounds.max_hold,
            counted,
        }
    }

    async fn acquire(&self, claim: &Claim, started: Instant) -> Result<Hold, LockError> {
        let waiting = Waiting::begin();
        let request = LockRequest::new(claim, &self.bounds, started);
        let (entry, granted) = self.granted(&request).await?;
        if self.shared.queue.is_closed() {
            return Err(LockError::ShuttingDown);
        }
        let waited = granted - request.started;
        let terms = self.terms(claim, Some(waiting.granted(waited)));
        tracing::debug!(%claim, ?waited, "locked");
        let hold = entry
            .keep()
            .and_then(|slot| Hold::new(terms, slot, granted));
        hold.ok_or_else(|| request.timed_out())
    }

    /// Waits for the turn, and for the backend's lock, and notes when it was granted.
    async fn granted(&self, request: &LockRequest<'_>) -> Result<(Entry, Instant), LockError> {
        let bound = self.bound();
        let entry = self.enter(request, bound)?;
        if let Some(bound) = bound {
            let queue = &self.shared.queue;
            self.shared.watchdog.watch(queue, request.started, bound);
        }
        let has_waited = !entry.has_turn();
        if has_waited {
            let has_turn = timeout_at(request.queue_deadline(), entry.turn()).await;
            if !has_turn.unwrap_or(false) {
                return Err(if self.shared.queue.is_closed() {
                    LockError::ShuttingDown
                } else {
                    request.busy()
                });
            }
        }
        let slot = entry.slot().ok_or_else(|| request.timed_out())?;
        match &self.shared.database {
            None => {
                slot.with(|obtained| *obtained = Some(Obtained::Granted(Grant::in_process())));
                if !has_waited {
                    return Ok((entry, request.started));
                }
            }
            // It came with the turn.
            Some(_) if is_granted(request, slot) => {}
            // Boxed so that waiters in the queue do not carry space for it.
            Some(database) => {
                let closing = self.shared.group.closing();
                let asked = async {
                    tokio::select! {
                        biased;
                        // First: a caller that is granted its lock at once need not be woken by a
                        // shutdown.
                        asked = database.acquire(request, slot) => asked,
                        () = closing.cancelled() => Err(LockError::ShuttingDown),
                    }
                };
                alive(request, slot, Box::pin(asked)).await?;
            }
        }
        Ok((entry, Instant::now()))
    }

    fn enter(
        &self,
        request: &LockRequest<'_>,
        bound: Option<Duration>,
    ) -> Result<Entry, LockError> {
        let max_waiters = self.bounds.max_waiters;
        if request.share && self.shared.database.is_none() {
            let remedy = "locks in process have no transaction; use locks in PostgreSQL";
            return Err(ConfigError::option("share_transaction", "true", remedy).into());
        }
        let (claim, queue) = (request.claim, &self.shared.queue);
        let entered = queue.enter(claim, max_waiters, request.started, bound);
        entered.map_err(|refused| match refused {
            Refused::Closed => LockError::ShuttingDown,
            Refused::Full if request.tries => request.busy(),
            Refused::Full => LockError::QueueFull {
                claim: claim.clone(),
                waiters: max_waiters,
            },
        })
    }

    /// For how long a caller may leave its call unpolled once the queue has offered it the turn.
    fn bound(&self) -> Option<Duration> {
        match &self.shared.database {
            None => self.bounds.max_hold,
            Some(database) => Some(database.postgres().lease()),
        }
    }
}

/// Runs work of the owner of a turn, which may wait for longer than the watchdog does: it sees a sign
/// of life all the same. The work is polled whenever its request may run out of time, too, so that it
/// needs no timer of its own for that: one is enough for both.
async fn alive<T>(
    request: &LockRequest<'_>,
    slot: &Slot,
    mut work: Pin<Box<impl Future<Output = T>>>,
) -> T {
    loop {
        let polled = poll_fn(|cx| {
            slot.note_life();
            work.as_mut().poll(cx)
        });
        let now = Instant::now();
        let ends = [request.deadline, request.deadline + SERVER_FIRST];
        let ends = ends.into_iter().filter(|end| *end > now);
        let sign_of_life = slot.sign_of_life().map(|every| now + every);
        let Some(next) = ends.chain(sign_of_life).min() else {
            return polled.await;
        };
        if let Ok(done) = timeout_at(next, polled).await {
            return done;
        }
    }
}
