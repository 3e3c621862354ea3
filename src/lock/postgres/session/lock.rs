use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Options;
use super::commands::{Asked, Command, Release, Telling};
use super::connect::connect;
use super::task::SessionTask;
use crate::lock::claim::Lock;
use crate::lock::lease::Lease;
use crate::lock::postgres::connection::LockConnection;
use crate::lock::postgres::connector::Connector;
use crate::lock::{Claim, FencingToken, LockError};

/// One session, as its callers see it. Its connection closes in order once nobody has a handle of it any more.
#[derive(Clone)]
pub(super) struct Session {
    commands: mpsc::UnboundedSender<Command>,
    lease: Arc<Lease>,
}

/// A claim, locked on a session that it may share with many others.
///
/// # Cancel safety
///
/// Dropping it unlocks, without waiting for that. Whoever asks the same session for its keys afterwards comes behind the
/// unlock.
pub(crate) struct SessionLock {
    claim: Claim,
    session: Session,
    token: Option<FencingToken>,
    /// Whether there is something to unlock.
    granted: bool,
}

impl Session {
    /// Must be called within a runtime: a task of its own serves the session.
    pub(super) async fn open(connector: &Connector, options: Options) -> Result<Self, LockError> {
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
    /// If dropped, a grant that is still to come is unlocked at once.
    pub(super) async fn try_lock(&self, claim: &Claim) -> Option<SessionLock> {
        let (reply, granted) = oneshot::channel();
        let lock = SessionLock {
            claim: claim.clone(),
            session: self.clone(),
            token: None,
            granted: false,
        };
        self.send(Command::Lock(Asked { lock, reply }));
        granted.await.ok()?
    }

    /// Leaves word for the task. Where it has ended the command is dropped, and its reply with it.
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

impl SessionLock {
    pub(super) fn locks(&self) -> &[Lock] {
        self.claim.locks()
    }

    /// The server has granted it.
    pub(super) fn grant(mut self, token: Option<FencingToken>) -> Self {
        self.granted = true;
        self.token = token;
        self
    }

    /// The session's: all locks on it are lost together.
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.session.lease
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    /// Gives the next hold a token of its own.
    pub(crate) fn begin_next_hold(&mut self) {
        self.token = self.token.map(FencingToken::next);
    }

    /// Asks for the server's word that the session was alive after now, and with it every lock that it held. Many share one
    /// answer. Asked when called, not when first polled, so the lock may meanwhile serve its next holder.
    pub(crate) fn confirmation(&self) -> impl Future<Output = bool> + Send + 'static {
        let (reply, confirmed) = oneshot::channel();
        self.session.send(Command::Confirm(reply));
        async { confirmed.await.unwrap_or(false) }
    }

    /// Unlocks, and tells others of the write; `true` is the server's word that the lock was held until now. Asked when called, not
    /// when first polled.
    pub(crate) fn unlock(
        mut self,
        announcement: Option<String>,
    ) -> impl Future<Output = bool> + Send + 'static {
        let (reply, unlocked) = oneshot::channel();
        self.release(Some(reply));
        let told = announcement.map(|statement| {
            let (reply, told) = oneshot::channel();
            self.session
                .send(Command::Tell(Telling { statement, reply }));
            told
        });
        async {
            let told = match told {
                Some(told) => told.await.unwrap_or(false),
                None => true,
            };
            told && unlocked.await.unwrap_or(false)
        }
    }

    fn release(&mut self, reply: Option<oneshot::Sender<bool>>) {
        self.granted = false;
        let locks = self.locks().to_vec();
        self.session.send(Command::Unlock(Release { locks, reply }));
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        if self.granted {
            self.release(None);
        }
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
