use std::sync::Arc;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Connection};

use super::address::Address;
use super::canceller::Canceller;
use super::tls::encryption::Unreached;
use super::tls::fault::refused;
use super::tls::settings::When;
use super::tls::wire::{Established, Wire};
use super::traffic::Traffic;
use super::url::Database;
use crate::lock::error::LockError;

/// What a login gives: the driver's two ends, the means to cancel, and what is seen on the wire.
type LoggedIn = (Client, Connection<Wire, Wire>, Canceller, Arc<Traffic>);

impl Database {
    /// Connects and logs in. Where TLS is not asked for, what it fails with is tried without, as libpq does.
    pub(super) async fn log_in(
        &self,
        address: &Address,
        server: &Arc<str>,
    ) -> Result<LoggedIn, LockError> {
        let when = self.encryption.when();
        let (error, by_tls) = match self.log_in_if(address, server, when).await {
            Ok(logged_in) => return Ok(logged_in),
            Err(failure) => failure,
        };
        if by_tls && when == When::Offered {
            tracing::warn!(%error, "connecting without TLS, as sslmode=prefer allows");
            let plain = self.log_in_if(address, server, When::Never).await;
            return plain.map_err(|_| error);
        }
        Err(error)
    }

    /// The error comes with whether it was TLS that failed, or a server that does not let an encrypted connection in.
    async fn log_in_if(
        &self,
        address: &Address,
        server: &Arc<str>,
        when: When,
    ) -> Result<LoggedIn, (LockError, bool)> {
        let server = Arc::clone(server);
        let (wire, peer) = match self.encryption.connect(address, when).await {
            Ok(reached) => reached,
            Err(Unreached::Network(error)) => {
                let source = Arc::new(error);
                return Err((LockError::Connect { server, source }, false));
            }
            Err(Unreached::Tls(fault)) => {
                let problem = fault.to_string();
                return Err((LockError::Tls { server, problem }, true));
            }
        };
        let encrypted = wire.is_encrypted();
        let traffic = Arc::clone(wire.traffic());
        let mut config = self.config.clone();
        wire.announce(&mut config);
        let logged_in = config.connect_raw(wire, Established).await;
        let (client, connection) = logged_in.map_err(|error| {
            let unauthorized = SqlState::INVALID_AUTHORIZATION_SPECIFICATION;
            let by_tls = encrypted && error.code() == Some(&unauthorized);
            (refused(server, error, encrypted), by_tls)
        })?;
        let encryption = self.encryption.clone();
        let canceller = Canceller::new(traffic.cancel_key(), peer, encryption, encrypted);
        Ok((client, connection, canceller, traffic))
    }
}
