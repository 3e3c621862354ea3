use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Shared, ready};
use tokio::time::{Instant, timeout};

use super::Options;
use super::lock::{Session, SessionLock};
use crate::lock::error::{ConnectError, LockError};
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
    /// Set once a session was opened: the server can keep sessions.
    proven: Arc<AtomicBool>,
}

/// The place of one session.
enum Slot {
    /// Not used yet.
    Empty,
    Taken(Opening),
    Closed,
}

/// A session, or why there is none. All callers wait for the same attempt.
type Opening = Shared<Pin<Box<dyn Future<Output = Result<Session, NotOpened>> + Send>>>;

/// A session that could not be opened.
#[derive(Clone)]
struct NotOpened {
    at: Instant,
    /// `None` where the runtime has ended.
    error: Option<ConnectError>,
}

impl Sessions {
    /// Places for `count` sessions. Each is opened when it is needed.
    pub(in crate::lock::postgres) fn new(
        connector: Connector,
        count: u32,
        options: Options,
    ) -> Self {
        Self {
            slots: (0..count).map(|_| Mutex::new(Slot::Empty)).collect(),
            connector: Arc::new(connector),
            options,
            proven: Arc::default(),
        }
    }

    /// Opens the first session.
    ///
    /// # Errors
    ///
    /// Those of connecting, [`ConnectError::Pooler`] and [`ConnectError::NoSessionTimeout`].
    pub(in crate::lock::postgres) async fn open_first(&self) -> Result<(), ConnectError> {
        let first = Session::open(&self.connector, self.options).await?;
        self.proven.store(true, Ordering::Release);
        if let Some(slot) = self.slots.first() {
            *locked(slot) = Slot::Taken(ready(Ok(first)).boxed().shared());
        }
        Ok(())
    }

    /// One try for all keys of a claim. `None` if somebody holds one, or no session is to be had: a
    /// transaction waits, and reports what is wrong.
    ///
    /// A silent session is replaced. It goes on for its holders, who lose it with its lease. The
    /// caller must poll this when `deadline` has come.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Pooler`] and [`ConnectError::NoSessionTimeout`] if no session could be opened yet
    /// and none ever will be: the user has asked for what the server does not have.
    ///
    /// # Cancel safety
    ///
    /// If dropped, a grant that is still to come is unlocked at once.
    pub(in crate::lock::postgres) async fn try_lock(
        &self,
        claim: &Claim,
        deadline: Instant,
    ) -> Result<Option<SessionLock>, LockError> {
        let tried = async {
            let Some(anchor) = claim.anchor() else {
                return Ok(None);
            };
            // Twice: once the first is silent, the second is new.
            for _ in 0..2 {
                let Some(session) = self.session(anchor).await? else {
                    break;
                };
                tokio::select! {
                    biased;
                    tried = session.try_lock(claim) => return Ok(tried),
                    () = session.silent() => {}
                }
            }
            Ok(None)
        };
        let mut tried = pin!(tried);
        poll_fn(|cx| match tried.as_mut().poll(cx) {
            Poll::Pending if Instant::now() >= deadline => Poll::Ready(Ok(None)),
            polled => polled,
        })
        .await
    }

    /// Grants nothing more. A session ends when its last lock has been unlocked.
    pub(in crate::lock::postgres) fn close(&self) {
        for slot in &self.slots {
            *locked(slot) = Slot::Closed;
        }
    }

    /// The key's session, opened if need be.
    async fn session(&self, key: LockKey) -> Result<Option<Session>, ConnectError> {
        let Some(opening) = self.opening(key) else {
            return Ok(None);
        };
        match timeout(OPENING_PATIENCE, opening).await {
            Ok(Ok(session)) => Ok(Some(session)),
            Ok(Err(NotOpened {
                error:
                    Some(
                        error @ (ConnectError::Pooler { .. }
                        | ConnectError::NoSessionTimeout { .. }),
                    ),
                ..
            })) if !self.proven.load(Ordering::Acquire) => Err(error),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    fn opening(&self, key: LockKey) -> Option<Opening> {
        let mut slot = locked(self.slot(key));
        match &*slot {
            Slot::Closed => return None,
            Slot::Taken(opening) if stands(opening) => return Some(opening.clone()),
            Slot::Taken(opening) => {
                if let Some(Ok(silent)) = opening.peek()
                    && silent.lease.is_current()
                    && silent.is_silent()
                {
                    let Session { server, pid, .. } = silent;
                    tracing::warn!(%server, pid, "a session for locks is silent, and is replaced");
                }
            }
            Slot::Empty => {}
        }
        let opening = self.open();
        *slot = Slot::Taken(opening.clone());
        Some(opening)
    }

    /// On a task of its own: a caller that leaves must not take the others' session with it.
    fn open(&self) -> Opening {
        let connector = Arc::clone(&self.connector);
        let options = self.options;
        let proven = Arc::clone(&self.proven);
        let opened = tokio::spawn(async move {
            let session = Session::open(&connector, options).await;
            match session {
                Ok(session) => {
                    proven.store(true, Ordering::Release);
                    Ok(session)
                }
                Err(error) => {
                    tracing::warn!(%error, "a session for locks could not be opened");
                    Err(NotOpened::now(Some(error)))
                }
            }
        });
        // It fails only where the runtime ends.
        let opened = opened.map(|session| session.unwrap_or_else(|_| Err(NotOpened::now(None))));
        opened.boxed().shared()
    }

    fn slot(&self, key: LockKey) -> &Mutex<Slot> {
        let slots = self.slots.len() as u64;
        let index = key.bits().cast_unsigned() % slots;
        // Below the number of slots, which is a `usize`.
        &self.slots[usize::try_from(index).unwrap_or_default()]
    }
}

impl NotOpened {
    fn now(error: Option<ConnectError>) -> Self {
        let at = Instant::now();
        Self { at, error }
    }
}

/// Whether callers go by it: it is still on its way, open and not too old, or failed a moment ago.
fn stands(opening: &Opening) -> bool {
    match opening.peek() {
        None => true,
        Some(Ok(session)) => session.is_open() && !session.is_too_old(),
        Some(Err(failed)) => failed.at.elapsed() < REOPENING_PAUSE,
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
            Err(NotOpened::now(None))
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
