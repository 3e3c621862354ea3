use tokio::sync::oneshot;

use crate::lock::postgres::confirmation::Confirmer;
use crate::lock::token::FencingToken;
use crate::realm::claim::{Claim, Lock};

/// What callers ask of a session's task.
pub(super) enum Command {
    Lock(Asked),
    Unlock(Release),
    /// Sent after the unlocks that were asked for before.
    Publish(Publication),
    /// Confirmed when anything that was sent later is answered.
    Confirm(Confirmer),
}

/// A claim that is asked for.
pub(super) struct Asked {
    pub(super) claim: Claim,
    pub(super) reply: Reply,
}

/// Tells the caller that its claim is granted; dropping it refuses the claim. A caller that has left
/// does not take the grant, and the task unlocks it.
pub(super) type Reply = oneshot::Sender<Option<FencingToken>>;

/// Keys to unlock.
pub(super) struct Release {
    pub(super) locks: Vec<Lock>,
    pub(super) confirm: Confirm,
}

/// Who is told whether an unlock proves that the lock was held.
pub(super) enum Confirm {
    Nobody,
    Holder(Confirmer),
    /// The publication that follows the unlock.
    Publication(oneshot::Sender<bool>),
}

/// A statement that publishes a write.
pub(super) struct Publication {
    pub(super) statement: String,
    /// Whether the unlock that was sent before succeeded.
    pub(super) unlocked: oneshot::Receiver<bool>,
    pub(super) confirmer: Confirmer,
}
