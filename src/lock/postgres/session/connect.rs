use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;

use crate::lock::error::ConnectError;
use crate::lock::lease::Lease;
use crate::lock::postgres::connect::Connector;
use crate::lock::postgres::connection::{Busy, LockConnection};
use crate::lock::postgres::statement::milliseconds;

/// Opens a connection whose session can hold locks, and refuses a server that cannot keep them as promised.
pub(super) async fn connect(
    connector: &Connector,
    lease: Duration,
) -> Result<(LockConnection, Lease), ConnectError> {
    // Until the server has answered.
    let connection = Busy::new(connector.open().await?);
    let server = Arc::clone(&connection.server);
    let after = connector.timeout();
    match timeout(after, prepare(&connection, lease)).await {
        Ok(Ok(lease)) => Ok((connection.into_idle(), lease)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ConnectError::ConnectTimeout { server, after }),
    }
}

async fn prepare(connection: &LockConnection, period: Duration) -> Result<Lease, ConnectError> {
    // Before anything is changed in a session that may be somebody else's as well.
    connection.refuse_pooler()?;
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
            Err(ConnectError::NoSessionTimeout {
                server: Arc::clone(&connection.server),
            })
        }
        Err(error) => Err(connection.failed(error)),
    }
}
