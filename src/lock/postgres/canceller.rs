use std::future::Future;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::address::Address;
use super::tls::encryption::{Encryption, Unreached};
use super::tls::settings::When;
use super::traffic::CancelKey;

/// What a CancelRequest begins with: its length, and a number that no version of the protocol has.
const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 4, 210, 22, 46];

/// How long a CancelRequest is given before it is sent again: it may have overtaken the statement it is meant for.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often one is sent before the connection is given up; the server's time-outs then end what it runs.
const TRIES: u32 = 10;
/// How long a CancelRequest is kept open that nobody waits for any more. On a silent network it is never closed.
const LIMIT: Duration = Duration::from_secs(5);

/// How long a statement is given to end by itself, where it must not be cancelled: as long as the cancellation of another one may take.
pub(super) const GIVEN: Duration = PATIENCE.saturating_mul(TRIES);

/// The means to cancel what a connection runs.
#[derive(Clone)]
pub(super) struct Canceller {
    key: CancelKey,
    address: Address,
    encryption: Encryption,
    /// As the connection itself.
    when: When,
}

impl Canceller {
    /// For a connection to `address` that is encrypted, or not.
    pub(super) fn new(
        key: CancelKey,
        address: Address,
        encryption: Encryption,
        encrypted: bool,
    ) -> Self {
        let when = if encrypted { When::Always } else { When::Never };
        Self {
            key,
            address,
            encryption,
            when,
        }
    }

    /// Sends one CancelRequest, and waits for [`PATIENCE`] at most.
    ///
    /// A slow one goes on by itself: PgBouncer passes it on only when it has a connection to spare. Must be called within a runtime.
    pub(super) async fn cancel(&self) {
        let canceller = self.clone();
        let request = tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(LIMIT, canceller.request()).await {
                tracing::debug!(%error, "a CancelRequest could not be sent");
            }
        });
        let _ = timeout(PATIENCE, request).await;
    }

    /// Cancels a statement, again and again, until it has ended or [`TRIES`] were in vain; whether it has ended.
    pub(super) async fn cancel_until_ended(&self, statement: &mut (impl Future + Unpin)) -> bool {
        for _ in 0..TRIES {
            self.cancel().await;
            if timeout(PATIENCE, &mut *statement).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Sends a CancelRequest, and waits until the server has closed its connection, as libpq does.
    ///
    /// The driver closes its side at once. PgBouncer takes that for a client that has left and drops the request; 1.18 even
    /// ends itself (pgbouncer issue 801).
    async fn request(&self) -> Result<(), Unreached> {
        let (wire, _) = self.encryption.connect(&self.address, self.when).await?;
        let mut wire = wire.until_closed();
        let sent = async {
            wire.write_all(&[CANCEL_REQUEST, self.key].concat()).await?;
            wire.flush().await?;
            wire.shutdown().await
        };
        sent.await.map_err(Unreached::Network)
    }

    /// The process id that the server announced for this connection.
    pub(super) fn process_id(&self) -> i32 {
        let [id @ .., _, _, _, _] = self.key;
        i32::from_be_bytes(id)
    }
}
