use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};

use super::Options;
use super::commands::{Asked, Command, Confirm, Publication, Release};
use super::connect::connect;
use super::task::SessionTask;
use crate::lock::error::ConnectError;
use crate::lock::lease::Lease;
use crate::lock::postgres::confirmation::{Confirmation, Confirmer};
use crate::lock::postgres::connect::Connector;
use crate::lock::postgres::connection::LockConnection;
use crate::lock::token::FencingToken;
use crate::realm::claim::Claim;

/// One session, as its callers see it. Its connection closes in order once nobody has a handle of it
/// any more.
#[derive(Clone)]
pub(super) struct Session {
    commands: mpsc::UnboundedSender<Command>,
    lease: Arc<Lease>,
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
    /// Must be called within a runtime: a task of its own serves the session.
    pub(super) async fn open(
        connector: &Connector,
        options: Options,
    ) -> Result<Self, ConnectError> {
        let (connection, lease) = connect(connector, options.lease).await?;
        Ok(Self::start(connection, lease, options))
    }

    pub(super) fn start(connection: LockConnection, lease: Lease, options: Options) -> Self {
        let lease = Arc::new(lease);
        let (commands, receiver) = mpsc::unbounded_channel();
        let task = SessionTask::new(connection, Arc::clone(&lease), options, receiver);
        tokio::spawn(task.run());
        Self { commands, lease }
    }

    pub(super) fn is_open(&self) -> bool {
        self.lease.is_current() && !self.commands.is_closed()
    }

    /// One try for all keys of a claim; `None` if it is not granted.
    ///
    /// # Cancel safety
    ///
    /// If dropped, a grant that has come or is still to come is unlocked.
    pub(super) fn try_lock(&self, claim: &Claim) -> impl Future<Output = Option<SessionLock>> {
        let (reply, granted) = oneshot::channel();
        let claim = claim.clone();
        self.send(Command::Lock(Asked {
            claim: claim.clone(),
            reply,
        }));
        Try {
            session: self.clone(),
            claim,
            granted,
        }
    }

    /// Sends a command to the task. Once that has ended the command is dropped, and its reply with
    /// it.
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// A claim that is being tried.
struct Try {
    session: Session,
    claim: Claim,
    granted: oneshot::Receiver<Option<FencingToken>>,
}

impl Try {
    fn locked(&self, token: Option<FencingToken>) -> SessionLock {
        SessionLock {
            claim: self.claim.clone(),
            session: self.session.clone(),
            token,
            is_locked: true,
        }
    }

    /// Unlocks a grant that nobody has taken. One that is still to come finds the channel closed.
    fn leave(&mut self) {
        self.granted.close();
        if let Ok(token) = self.granted.try_recv() {
            self.locked(token).give_up();
        }
    }
}

impl Future for Try {
    type Output = Option<SessionLock>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let granted = Pin::new(&mut self.granted).poll(cx);
        granted.map(|granted| granted.ok().map(|token| self.locked(token)))
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        self.leave();
    }
}

impl SessionLock {
    /// The session's: all locks on it are lost together.
    pub(in crate::lock) fn lease(&self) -> &Arc<Lease> {
        &self.session.lease
    }

    pub(in crate::lock) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    pub(in crate::lock) fn set_token(&mut self, token: Option<FencingToken>) {
        self.token = token;
    }

    /// Asks for the proof that the session was alive after now, and with it every lock that it held.
    /// Many share one answer. The lock may meanwhile serve its next holder.
    pub(in crate::lock) fn confirm(&self) -> Confirmation {
        let confirmer = Confirmer::new();
        let confirmation = confirmer.confirmation();
        self.session.send(Command::Confirm(confirmer));
        confirmation
    }

    /// Unlocks, and publishes a write; the answer proves that the lock was held until now.
    pub(in crate::lock) fn unlock(mut self, publication: Option<String>) -> Confirmation {
        let confirmer = Confirmer::new();
        let confirmation = confirmer.confirmation();
        let Some(statement) = publication else {
            self.release(Confirm::Holder(confirmer));
            return confirmation;
        };
        let (reply, unlocked) = oneshot::channel();
        self.release(Confirm::Publication(reply));
        self.session.send(Command::Publish(Publication {
            statement,
            unlocked,
            confirmer,
        }));
        confirmation
    }

    fn release(&mut self, confirm: Confirm) {
        self.is_locked = false;
        let locks = self.claim.locks().to_vec();
        self.session
            .send(Command::Unlock(Release { locks, confirm }));
    }

    /// Unlocks without asking for a proof.
    pub(in crate::lock) fn give_up(mut self) {
        self.release(Confirm::Nobody);
    }

    fn leave(&mut self) {
        if self.is_locked {
            self.release(Confirm::Nobody);
        }
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for SessionLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLock")
            .field("claim", &self.claim)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
