use std::fmt;
use std::sync::Arc;

use bb8::PooledConnection;
use tokio::time::{Instant, timeout_at};

use super::connection::Connector;
use crate::lock::FencingToken;
use crate::lock::lease::Lease;

/// A transaction that holds an advisory lock, on its pooled connection.
///
/// Dropped before [`commit`](Self::commit) has succeeded, it discards its connection: the server then ends the transaction.
pub(crate) struct LockedTransaction {
    connection: PooledConnection<'static, Connector>,
    lease: Arc<Lease>,
    token: Option<FencingToken>,
}

impl LockedTransaction {
    pub(super) fn new(
        connection: PooledConnection<'static, Connector>,
        lease: Lease,
        token: Option<FencingToken>,
    ) -> Self {
        Self {
            connection,
            lease: Arc::new(lease),
            token,
        }
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    /// Keeps the lease while it is polled; resolves when the lock is lost.
    pub(crate) async fn keep(&self) {
        // An empty query is the smallest message that the server answers.
        self.lease
            .keep(|| self.connection.client.batch_execute(""))
            .await;
    }

    /// Sends one heartbeat; whether it was answered before the deadline.
    pub(super) async fn confirm(&self, deadline: Instant) -> bool {
        let sent = Instant::now();
        let beat = timeout_at(deadline, self.connection.client.batch_execute("")).await;
        let confirmed = matches!(beat, Ok(Ok(())));
        if confirmed {
            self.lease.confirm(sent);
        }
        confirmed
    }

    /// Ends the transaction, and with it the lock. Whether the server confirmed it, and so that the lock was held until
    /// now. Never longer than the lease.
    ///
    /// # Cancel safety
    ///
    /// If dropped, call it again, or drop the transaction.
    pub(crate) async fn commit(&mut self) -> bool {
        let confirmed = tokio::select! {
            // First: an answer is the proof, even where the connection ends right after it.
            biased;
            answer = self.connection.client.batch_execute("COMMIT") => answer.is_ok(),
            () = self.keep() => false,
        };
        if confirmed {
            self.connection.in_use = false;
        }
        confirmed
    }
}

impl fmt::Debug for LockedTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockedTransaction")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
