use std::error::Error;

use tokio::io::{AsyncReadExt, duplex};
use tokio_postgres::CancelToken;

use super::address::Address;
use super::tls::{Encryption, Established, When, Wire};

/// The means to cancel what a connection runs.
#[derive(Clone)]
pub(super) struct Canceller {
    token: CancelToken,
    address: Address,
    encryption: Encryption,
    /// As the connection itself.
    when: When,
}

impl Canceller {
    /// For a connection to `address` that is encrypted, or not.
    pub(super) fn new(
        token: CancelToken,
        address: Address,
        encryption: Encryption,
        encrypted: bool,
    ) -> Self {
        let when = if encrypted { When::Always } else { When::Never };
        Self {
            token,
            address,
            encryption,
            when,
        }
    }

    /// Sends a CancelRequest, and waits until the server has closed its connection, as libpq does.
    ///
    /// The driver closes its side at once. PgBouncer takes that for a client that has left and drops the request; 1.18 even
    /// ends itself (pgbouncer issue 801).
    pub(super) async fn cancel(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let (wire, _) = self.encryption.connect(&self.address, self.when).await?;
        let wire = wire.until_closed();
        Ok(self.token.cancel_query_raw(wire, Established).await?)
    }

    /// The process id that the server announced for this connection.
    ///
    /// The driver keeps it to itself, but writes it into each CancelRequest: length, code, process id and secret, four bytes each.
    pub(super) async fn process_id(&self) -> Option<i32> {
        let (near, mut far) = duplex(16);
        let wire = Wire::plain(Box::new(near));
        let written = self.token.cancel_query_raw(wire, Established).await;
        written.ok()?;
        far.read_u64().await.ok()?;
        far.read_i32().await.ok()
    }
}
