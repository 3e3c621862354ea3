#[cfg(not(feature = "test-util"))]
use std::future::pending;
use std::sync::Arc;

#[cfg(feature = "test-util")]
use tokio_util::sync::CancellationToken;

use super::lease::Lease;

/// Shows a hold whether its lock is still there.
#[derive(Debug, Clone)]
pub(super) enum Grip {
    /// In process only a test takes a lock away.
    InProcess(Taken),
    Leased(Arc<Lease>),
}

/// Whether a test has taken a lock in process away. Without the feature `test-util` nothing does,
/// and this is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken {
    #[cfg(feature = "test-util")]
    signal: CancellationToken,
}

impl Grip {
    /// Whether the lock is still there, as far as this process can know without asking.
    pub(super) fn is_firm(&self) -> bool {
        match self {
            Self::InProcess(taken) => !taken.is_taken(),
            Self::Leased(lease) => lease.is_current(),
        }
    }

    /// Resolves when the lock is lost. Only what keeps the lease notices a missed heartbeat.
    pub(super) async fn lost(&self) {
        match self {
            Self::InProcess(taken) => taken.taken().await,
            Self::Leased(lease) => lease.lost().await,
        }
    }

    /// Whether a server keeps the lock.
    pub(super) fn is_leased(&self) -> bool {
        matches!(self, Self::Leased(_))
    }
}

#[cfg(feature = "test-util")]
impl Taken {
    pub(super) fn take(&self) {
        self.signal.cancel();
    }

    fn is_taken(&self) -> bool {
        self.signal.is_cancelled()
    }

    pub(super) async fn taken(&self) {
        self.signal.cancelled().await;
    }
}

#[cfg(not(feature = "test-util"))]
#[allow(clippy::unused_self)]
impl Taken {
    fn is_taken(&self) -> bool {
        false
    }

    pub(super) async fn taken(&self) {
        pending::<()>().await;
    }
}
