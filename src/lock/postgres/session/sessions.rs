use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Shared, ready};
use tokio::time::{Instant, timeout, timeout_at};

use super::Options;
use super::lock::{Session, SessionLock};
use crate::lock::error::LockError;
use crate::lock::postgres::connect::Connector;
use crate::realm::claim::Claim;
use crate::realm::key::LockKey;

/// How long callers wait for a session that is being opened, before they do without.
const OPENING_PATIENCE: Duration = Duration::from_millis(500);
/// How long callers do without a session that could not be opened, before the next one tries again.
const REOPENING_PAUSE: Duration = Duration::from_secs(1);

/// A few sessions that hold the locks of many realms, each realm's on the one that its key names.
pub(in crate::lock::postgres) struct Sessions {
    slots: Box<[Mutex<Slot>]>,
    connector: Arc<Connector>,
    options: Options,
}

/// The place of one session.
enum Slot {
    /// Not used yet.
    Empty,
    Taken(Opening),
    Closed,
}

/// A session, or when it could not be opened. All callers wait for the same attempt.
type Opening = Shared<Pin<Box<dyn Future<Output = Result<Session, Instant>> + Send>>>;

impl Sessions {
    /// Opens the first of `count` sessions; the others follow when they are needed. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// Those of connecting, [`LockError::Pooler`] and [`LockError::NoSessionTimeout`].
    pub(in crate::lock::postgres) async fn connect(
        connector: Connector,
        count: u32,
        options: Options,
    ) -> Result<Self, LockError> {
        let first = Session::open(&connector, options).await?;
        let first = Slot::Taken(ready(Ok(first)).boxed().shared());
        let others = (1..count).map(|_| Slot::Empty);
        Ok(Self {
            slots: std::iter::once(first)
                .chain(others)
                .map(Mutex::new)
                .collect(),
            connector: Arc::new(connector),
            options,
        })
    }

    /// One try for all keys of a claim. `None` if somebody holds one, or no session is to be had: a transaction waits, and says what is
    /// wrong.
    ///
    /// # Cancel safety
    ///
    /// If dropped, a grant that is still to come is unlocked at once.
    pub(in crate::lock::postgres) async fn try_lock(
        &self,
        claim: &Claim,
        deadline: Instant,
    ) -> Option<SessionLock> {
        let tried = async { self.session(claim.anchor()?).await?.try_lock(claim).await };
        timeout_at(deadline, tried).await.ok()?
    }

    /// Grants nothing more. A session ends when its last lock has been unlocked.
    pub(in crate::lock::postgres) fn close(&self) {
        for slot in &self.slots {
            *locked(slot) = Slot::Closed;
        }
    }

    /// The key's session, opened if need be.
    async fn session(&self, key: LockKey) -> Option<Session> {
        let opening = self.opening(key)?;
        timeout(OPENING_PATIENCE, opening).await.ok()?.ok()
    }

    fn opening(&self, key: LockKey) -> Option<Opening> {
        let mut slot = locked(self.slot(key));
        match &*slot {
            Slot::Closed => return None,
            Slot::Taken(opening) if stands(opening) => return Some(opening.clone()),
            Slot::Taken(_) | Slot::Empty => {}
        }
        let opening = self.open();
        *slot = Slot::Taken(opening.clone());
        Some(opening)
    }

    /// On a task of its own: a caller that leaves must not take the others' session with it.
    fn open(&self) -> Opening {
        let connector = Arc::clone(&self.connector);
        let options = self.options;
        let opened = tokio::spawn(async move {
            Session::open(&connector, options).await.map_err(|error| {
                tracing::warn!(%error, "a session for locks could not be opened");
                Instant::now()
            })
        });
        // It fails only where the runtime ends.
        let opened = opened.map(|session| session.unwrap_or_else(|_| Err(Instant::now())));
        opened.boxed().shared()
    }

    fn slot(&self, key: LockKey) -> &Mutex<Slot> {
        let slots = self.slots.len() as u64;
        let index = key.value().cast_unsigned() % slots;
        // Below the number of slots, which is a `usize`.
        &self.slots[usize::try_from(index).unwrap_or_default()]
    }
}

/// Whether callers go by it: it is still on its way, open, or failed a moment ago.
fn stands(opening: &Opening) -> bool {
    match opening.peek() {
        None => true,
        Some(Ok(session)) => session.is_open(),
        Some(Err(failed)) => failed.elapsed() < REOPENING_PAUSE,
    }
}

fn locked(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // A slot is replaced as a whole, so a poisoned one is whole too.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("slots", &self.slots.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_that_could_not_be_opened_is_not_tried_again_at_once() {
        let failed = Instant::now();
        let opening = async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Err(Instant::now())
        };
        let opening: Opening = opening.boxed().shared();
        assert!(stands(&opening), "it is on its way");
        assert!(opening.clone().await.is_err());
        assert_eq!(failed.elapsed(), Duration::from_secs(5));
        assert!(stands(&opening), "it failed a moment ago");
        tokio::time::advance(REOPENING_PAUSE).await;
        assert!(!stands(&opening));
    }
}
