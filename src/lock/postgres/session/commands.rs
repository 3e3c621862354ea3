use tokio::sync::oneshot;

use super::lock::SessionLock;
use crate::lock::claim::Lock;

/// What callers ask of a session's task.
pub(super) enum Command {
    Lock(Asked),
    Unlock(Release),
    /// Sent after the unlocks that were asked for before.
    Tell(Telling),
    /// Answered when anything that was sent later is.
    Confirm(oneshot::Sender<bool>),
}

/// A claim that is asked for.
pub(super) struct Asked {
    /// Not granted yet.
    pub(super) lock: SessionLock,
    /// A granted lock whose caller has left is dropped in the channel, and so unlocked.
    pub(super) reply: oneshot::Sender<Option<SessionLock>>,
}

/// Keys to unlock.
pub(super) struct Release {
    pub(super) locks: Vec<Lock>,
    /// None where nobody waits for the answer.
    pub(super) reply: Option<oneshot::Sender<bool>>,
}

/// A statement that tells others of a write.
pub(super) struct Telling {
    pub(super) statement: String,
    pub(super) reply: oneshot::Sender<bool>,
}
