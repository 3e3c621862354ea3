use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;

use crate::lock::LockError;
use crate::lock::lease::Lease;
use crate::lock::postgres::connection::LockConnection;
use crate::lock::postgres::connector::Connector;
use crate::lock::postgres::statement::milliseconds;

/// Opens a connection whose session can hold locks, and refuses a server that cannot keep them as promised.
pub(super) async fn connect(
    connector: &Connector,
    lease: Duration,
) -> Result<(LockConnection, Lease), LockError> {
    let mut connection = connector.open().await?;
    // Until the server has answered.
    connection.in_use = true;
    let server = Arc::clone(&connection.server);
    let after = connector.timeout();
    match timeout(after, prepare(&connection, lease)).await {
        Ok(Ok(lease)) => {
            connection.in_use = false;
            Ok((connection, lease))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(LockError::ConnectTimeout { server, after }),
    }
}

async fn prepare(connection: &LockConnection, period: Duration) -> Result<Lease, LockError> {
    // Before anything is changed in a session that may be somebody else's as well.
    connection.refuse_pooler().await?;
    let sent = Instant::now();
    let milliseconds = milliseconds(period);
    let limited = connection
        .client
        .batch_execute(&format!(
            "SELECT set_config('idle_session_timeout', '{milliseconds}', false)"
        ))
        .await;
    match limited {
        Ok(()) => Ok(Lease::new(period, sent, &connection.closed)),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
            Err(LockError::NoSessionTimeout {
                server: Arc::clone(&connection.server),
            })
        }
        Err(error) => Err(connection.failed(error)),
    }
}
