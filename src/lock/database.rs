use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::error::SqlState;

use super::error::LockError;
use super::grant::{Grant, GrantTerms, Obtained, Slot, with_grant};
use super::postgres::Postgres;
use super::postgres::attempt::{Attempt, LEAVING, Settled};
use super::postgres::fleet::Membership;
use super::queue::{self, Baton};
use super::request::LockRequest;

/// The pause after a failed attempt to open a connection in place of a silent one.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the other side of a deadlock is looked up.
const LOOK_UP: Duration = Duration::from_secs(1);

/// Where the owners of turns obtain their locks, if not in process.
#[derive(Debug)]
pub(super) struct Database {
    postgres: Postgres,
    terms: Arc<GrantTerms>,
    /// The callers of this process that wait in PostgreSQL to share a key, one for each key. The
    /// others wait here, without a connection: many can share a key as soon as one of them does.
    scouts: Arc<queue::Queue<Infallible>>,
}

type Scout = queue::Entry<Infallible>;

/// Scouts hand nothing on.
impl Baton for Infallible {
    fn orphan(self, _: queue::Turn<Self>) {
        match self {}
    }
}

impl Database {
    pub(super) fn new(postgres: Postgres, terms: GrantTerms) -> Self {
        Self {
            postgres,
            terms: Arc::new(terms),
            scouts: Arc::default(),
        }
    }

    pub(super) fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// Publishes a layer's fingerprint to the other replicas of its fleet.
    pub(super) fn join_fleet(&self, layer: Membership) {
        self.postgres.fleets().join(layer, &self.terms.tasks);
    }

    /// Puts a grant of the claim into the slot of the owner of its turn, for which no grant came with
    /// the turn: a lock on a session, or else one of a transaction of its own.
    ///
    /// # Cancel safety
    ///
    /// Whatever was obtained stays in the slot.
    pub(super) async fn acquire(
        &self,
        request: &LockRequest<'_>,
        slot: &Slot,
    ) -> Result<(), LockError> {
        let mut has_attempt = false;
        match inherited(request, slot) {
            // It waits for another holder, or asks for somebody else.
            Inherited::Attempt | Inherited::Unfit(_) if request.tries => {
                return Err(request.busy());
            }
            Inherited::Attempt => has_attempt = true,
            Inherited::Nothing => {}
            Inherited::Unfit(attempt) => {
                let abandoned = self.terms.tasks.spawn(attempt.abandon());
                let patience = request.deadline.min(Instant::now() + LEAVING);
                let _ = timeout_at(patience, abandoned).await;
                if Instant::now() >= request.deadline {
                    return Err(request.timed_out());
                }
            }
        }
        if !has_attempt && let Some(lock) = self.postgres.try_session(request).await? {
            return put(
                request,
                slot,
                Obtained::Granted(Grant::session(lock, &self.terms)),
            );
        }
        let mut retried = false;
        let mut scout = None;
        loop {
            if slot.with(|_| ()).is_none() {
                // The watchdog has revoked the turn.
                return Err(request.timed_out());
            }
            if !has_attempt {
                let attempt = self.postgres.ask(request, scout.is_some(), retried).await?;
                let asked = Obtained::Asked(attempt, Arc::clone(&self.terms));
                put(request, slot, asked)?;
            }
            has_attempt = false;
            let attempt = self.answered(request, slot).await?;
            let server_deadline = attempt.server_deadline();
            let patience = attempt.patience(request.deadline);
            match attempt.settle(patience).await {
                Settled::Granted(lock, contended) => {
                    let grant = Grant::transaction(lock, contended, &self.terms);
                    return put(request, slot, Obtained::Granted(grant));
                }
                Settled::Busy if request.tries => return Err(request.busy()),
                Settled::Busy => scout = self.scout(request).await?,
                // It was inherited from a caller with less time.
                Settled::TimedOut if server_deadline.is_some_and(|it| it < request.deadline) => {}
                Settled::TimedOut => return Err(request.timed_out()),
                // It died in the pool, or the server restarts: one more try, on a new connection,
                // as others of the pool may be dead too.
                Settled::Disconnected(_) if !retried => retried = true,
                Settled::Failed(error) if Instant::now() < request.deadline => {
                    let Some(detail) = deadlock(&error) else {
                        return Err(error);
                    };
                    let patience = request.deadline.min(Instant::now() + LOOK_UP);
                    let other = timeout_at(patience, self.postgres.blocker(detail)).await;
                    tracing::warn!(
                        claim = %request.claim,
                        detail,
                        other = other.ok().flatten(),
                        "another program takes these lock keys in another order: PostgreSQL broke \
                         the deadlock, and this side asks again"
                    );
                }
                Settled::Disconnected(error) | Settled::Failed(error) => return Err(error),
            }
        }
    }

    /// Waits for the answer to the attempt in the slot, and takes the attempt out. One that is
    /// silent is asked again on a new connection, as soon as there is one.
    ///
    /// # Cancel safety
    ///
    /// The attempt stays in the slot.
    async fn answered(&self, request: &LockRequest<'_>, slot: &Slot) -> Result<Attempt, LockError> {
        let mut answered = pin!(answered(request, slot));
        let mut failure = None;
        loop {
            let fresh = async {
                silent(slot).await;
                if failure.is_some() {
                    sleep(PAUSE).await;
                }
                self.postgres.open().await
            };
            let fresh = tokio::select! {
                biased;
                attempt = &mut answered => {
                    let failure = failure.filter(|_| silent(slot).now_or_never().is_some());
                    return attempt.map_err(|error| failure.unwrap_or(error));
                }
                fresh = fresh => fresh,
            };
            match fresh {
                Ok(fresh) => {
                    slot.with(|obtained| {
                        if let Some(Obtained::Asked(attempt, _)) = obtained {
                            attempt.move_to(fresh);
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a lock connection is silent, as is a new one");
                    failure = Some(error);
                }
            }
        }
    }

    /// Waits to be the one of this process that waits in PostgreSQL to share the claim's keys; `None`
    /// if it shares none.
    async fn scout(&self, request: &LockRequest<'_>) -> Result<Option<Scout>, LockError> {
        let Some(shared) = request.claim.shared_keys() else {
            return Ok(None);
        };
        let entered = self.scouts.enter(&shared, usize::MAX, Instant::now(), None);
        // Of so many there is no memory for one more.
        let scout = entered.map_err(|_| request.timed_out())?;
        match timeout_at(request.deadline, scout.turn()).await {
            Ok(true) => Ok(Some(scout)),
            _ => Err(request.timed_out()),
        }
    }
}

/// What PostgreSQL reports of the processes of a deadlock, if that is the error.
fn deadlock(error: &LockError) -> Option<&str> {
    let LockError::Database { source, .. } = error else {
        return None;
    };
    let refused = source.as_db_error()?;
    let is_deadlock = *refused.code() == SqlState::T_R_DEADLOCK_DETECTED;
    is_deadlock.then(|| refused.detail().unwrap_or_default())
}

/// Whether a grant that this caller can use is in the slot.
pub(super) fn is_granted(request: &LockRequest<'_>, slot: &Slot) -> bool {
    with_grant(slot, |grant| grant.grip().is_firm() && !request.share).unwrap_or(false)
}

/// What came with the turn.
enum Inherited {
    Nothing,
    Attempt,
    /// An attempt of another kind.
    Unfit(Attempt),
}

/// Looks at what came with the turn. What is of no use to this caller is released.
fn inherited(request: &LockRequest<'_>, slot: &Slot) -> Inherited {
    let inherited = slot.with(|obtained| match obtained.take() {
        None => Inherited::Nothing,
        Some(Obtained::Granted(grant)) => {
            grant.release();
            Inherited::Nothing
        }
        Some(Obtained::Asked(attempt, terms)) if attempt.is_shared() == request.share => {
            *obtained = Some(Obtained::Asked(attempt, terms));
            Inherited::Attempt
        }
        Some(Obtained::Asked(attempt, _)) => Inherited::Unfit(attempt),
    });
    inherited.unwrap_or(Inherited::Nothing)
}

/// Puts what was obtained into the slot; an error if the watchdog has revoked the turn, after which
/// it is dropped, and so released.
fn put(request: &LockRequest<'_>, slot: &Slot, what: Obtained) -> Result<(), LockError> {
    let is_there = slot.with(|obtained| *obtained = Some(what));
    is_there.ok_or_else(|| request.timed_out())
}

/// Resolves when the attempt in the slot is silent.
async fn silent(slot: &Slot) {
    poll_fn(|cx| {
        let polled = slot.with(|obtained| match obtained {
            Some(Obtained::Asked(attempt, _)) => attempt.poll_silent(cx),
            _ => Poll::Pending,
        });
        polled.unwrap_or(Poll::Pending)
    })
    .await;
}

/// Waits for the answer to the attempt in the slot, and takes the attempt out. Its caller polls it
/// when the request may run out of time.
async fn answered(request: &LockRequest<'_>, slot: &Slot) -> Result<Attempt, LockError> {
    let patience = slot.with(|obtained| match obtained {
        Some(Obtained::Asked(attempt, _)) => attempt.patience(request.deadline),
        _ => request.deadline,
    });
    let patience = patience.unwrap_or(request.deadline);
    let answered = poll_fn(|cx| {
        let polled = slot.with(|obtained| match obtained {
            Some(Obtained::Asked(attempt, _)) => attempt.poll_answered(cx),
            _ => Poll::Ready(()),
        });
        match polled {
            Some(Poll::Pending) if Instant::now() < patience => Poll::Pending,
            Some(Poll::Pending) => Poll::Ready(Err(request.timed_out())),
            Some(Poll::Ready(())) | None => Poll::Ready(Ok(())),
        }
    });
    answered.await?;
    let attempt = slot.with(|obtained| match obtained.take() {
        Some(Obtained::Asked(attempt, _)) => Some(attempt),
        other => {
            *obtained = other;
            None
        }
    });
    attempt.flatten().ok_or_else(|| request.timed_out())
}
