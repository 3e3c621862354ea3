use std::future::Future;
use std::mem;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::lock::lease::Lease;
use crate::lock::postgres::confirmation::{Confirmation, Confirmer};
use crate::lock::postgres::publish::Publication;
use crate::lock::postgres::traffic::{SILENCE, Traffic};
use crate::lock::token::FencingToken;
use crate::realm::claim::{Claim, Lock};

/// One session, as its callers see it. Its connection closes in order once nobody has a handle of it
/// any more.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) lease: Arc<Lease>,
    /// What is seen of the server, and who it is.
    pub(super) traffic: Arc<Traffic>,
    pub(super) server: Arc<str>,
    pub(super) pid: i32,
    /// From then on another session takes new claims.
    pub(super) expires: Option<Instant>,
}

/// What callers ask of a session's task.
pub(super) enum Command {
    Lock(Asked),
    Unlock(Release),
    /// Confirmed when anything that was sent later is answered, and the write is published.
    Confirm(Confirmer, Option<Publication>),
}

/// A claim that is asked for.
pub(super) struct Asked {
    /// Not locked yet.
    pub(super) lock: SessionLock,
    pub(super) reply: Reply,
}

/// Gives the caller its claim once that is locked; dropping it refuses the claim. A caller that has
/// left does not take the lock, and the task unlocks it.
pub(super) type Reply = oneshot::Sender<SessionLock>;

/// Keys to unlock.
pub(super) struct Release {
    pub(super) locks: Vec<Lock>,
    /// Gets the proof that they were held until now, if somebody waits for it.
    pub(super) confirmer: Option<Confirmer>,
    /// Sent after the unlock; its answer is a part of the proof.
    pub(super) publication: Option<Publication>,
}

/// A claim, locked on a session that it may share with many others.
///
/// # Cancel safety
///
/// Dropping it unlocks, without waiting for that. Whoever asks the same session for its keys
/// afterwards comes behind the unlock.
pub(in crate::lock) struct SessionLock {
    claim: Claim,
    session: Session,
    token: Option<FencingToken>,
    /// Whether there is something to unlock.
    is_locked: bool,
}

impl Session {
    pub(super) fn is_too_old(&self) -> bool {
        self.expires
            .is_some_and(|expires| expires <= Instant::now())
    }

    pub(super) fn is_open(&self) -> bool {
        self.lease.is_current() && !self.commands.is_closed() && !self.is_silent()
    }

    /// Whether the server should have answered something, and has not. Nothing that a session sends
    /// waits for a lock; a publication may wait for another program's COMMIT with a NOTIFY, and the
    /// session is then replaced without need.
    pub(super) fn is_silent(&self) -> bool {
        self.traffic.silence() >= SILENCE
    }

    /// Resolves when it is silent.
    pub(super) async fn silent(&self) {
        while !self.is_silent() {
            sleep(SILENCE.saturating_sub(self.traffic.silence())).await;
        }
    }

    /// One try for all keys of a claim; `None` if it is not granted. It is sent when this returns.
    ///
    /// # Cancel safety
    ///
    /// If dropped, a grant that has come or is still to come is unlocked.
    pub(super) fn try_lock(&self, claim: &Claim) -> impl Future<Output = Option<SessionLock>> {
        let (reply, granted) = oneshot::channel();
        let lock = SessionLock {
            claim: claim.clone(),
            session: self.clone(),
            token: None,
            is_locked: false,
        };
        self.send(Command::Lock(Asked { lock, reply }));
        async { granted.await.ok() }
    }

    /// Sends a command to the task. Once that has ended the command is dropped, and its reply with
    /// it.
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

impl SessionLock {
    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The lock, once the server has granted it.
    pub(super) fn granted(mut self, token: Option<FencingToken>) -> Self {
        self.token = token;
        self.is_locked = true;
        self
    }

    /// The lock, once the task has taken over to unlock it.
    pub(super) fn taken_back(mut self) -> Self {
        self.is_locked = false;
        self
    }

    /// The session's: all locks on it are lost together.
    pub(in crate::lock) fn lease(&self) -> &Arc<Lease> {
        &self.session.lease
    }

    pub(in crate::lock) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    /// Asks for the proof that the session was alive after now, and with it every lock that it held,
    /// and publishes a write. Many share one answer. The lock may meanwhile serve its next holder.
    pub(in crate::lock) fn confirm(&self, publication: Option<Publication>) -> Confirmation {
        let confirmer = Confirmer::new();
        let confirmation = confirmer.confirmation();
        let command = Command::Confirm(confirmer, publication);
        self.session.send(command);
        confirmation
    }

    /// Unlocks, and publishes a write; the answer proves that the lock was held until now.
    pub(in crate::lock) fn unlock(mut self, publication: Option<Publication>) -> Confirmation {
        let confirmer = Confirmer::new();
        let confirmation = confirmer.confirmation();
        self.release(Some(confirmer), publication);
        confirmation
    }

    /// Unlocks without asking for a proof.
    pub(in crate::lock) fn give_up(mut self) {
        self.release(None, None);
    }

    /// Unlocks, unless that was done before.
    fn release(&mut self, confirmer: Option<Confirmer>, publication: Option<Publication>) {
        if mem::replace(&mut self.is_locked, false) {
            self.session.send(Command::Unlock(Release {
                locks: self.claim.locks().to_vec(),
                confirmer,
                publication,
            }));
        }
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        self.release(None, None);
    }
}
