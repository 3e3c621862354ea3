use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bb8::ManageConnection;
use tokio::time::timeout;
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{CancelToken, Client, Config, Error, NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

use crate::lock::LockError;

/// Whether the server is a primary, and whether an advisory lock that it grants shows up among its locks. The lock is shared,
/// so that replicas which connect together do not meet, and ends with the message, which is one transaction. Its key is the
/// bytes `tower-re`, which nobody else is likely to lock.
const PROBE: &str = "SELECT pg_is_in_recovery(); \
     SELECT pg_advisory_xact_lock_shared(8390055908405506661); \
     SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted \
     AND (classid::bigint << 32) | objid::bigint = 8390055908405506661";

/// How long a ROLLBACK may take before whatever keeps it waiting is cancelled.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a CancelRequest is given before it is sent again: it may have overtaken the statement it is meant for.
pub(super) const CANCEL_PATIENCE: Duration = Duration::from_millis(200);
/// How often a CancelRequest is sent before the connection is given up; the server's time-outs then end what it runs.
pub(super) const CANCEL_TRIES: u32 = 10;

/// Makes the lock connections of a pool and says which may go back into it.
#[derive(Debug)]
pub(crate) struct Connector {
    config: Config,
    server: Arc<str>,
    timeout: Duration,
}

/// A connection that holds at most one lock transaction.
pub(crate) struct LockConnection {
    pub(crate) client: Arc<Client>,
    /// Cancelled when the connection's task ends, for whatever reason.
    pub(crate) closed: CancellationToken,
    /// Whether a transaction may be open on it. Only a connection that is proven idle may be pooled.
    pub(crate) in_use: bool,
}

impl Connector {
    /// `timeout` bounds each attempt, the server's first answers included.
    pub(crate) fn new(mut config: Config, timeout: Duration) -> Self {
        if config.get_application_name().is_none() {
            config.application_name("tower-realm-lock");
        }
        if config.get_hosts().len() > 1 {
            // Several hosts are a primary and its standbys: find the primary.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        Self {
            server: describe(&config).into(),
            config,
            timeout,
        }
    }

    async fn open(&self) -> Result<LockConnection, LockError> {
        let (client, connection) = self
            .config
            .connect(NoTls)
            .await
            .map_err(|error| self.failed(error))?;
        let closed = CancellationToken::new();
        let signal = closed.clone().drop_guard();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a lock connection ended");
            }
            drop(signal);
        });
        self.probe(&client).await?;
        Ok(LockConnection {
            client: Arc::new(client),
            closed,
            in_use: false,
        })
    }

    async fn probe(&self, client: &Client) -> Result<(), LockError> {
        let answers = client
            .simple_query(PROBE)
            .await
            .map_err(|error| self.failed(error))?;
        let values: Vec<&str> = answers
            .iter()
            .filter_map(|answer| match answer {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            })
            .collect();
        let server = Arc::clone(&self.server);
        match (values.first(), values.last()) {
            (Some(&"t"), _) => Err(LockError::Standby { server }),
            (Some(&"f"), Some(&"t")) => Ok(()),
            _ => Err(LockError::NoAdvisoryLocks { server }),
        }
    }

    fn failed(&self, error: Error) -> LockError {
        LockError::Connect {
            server: Arc::clone(&self.server),
            source: Arc::new(error),
        }
    }
}

impl ManageConnection for Connector {
    type Connection = LockConnection;
    type Error = LockError;

    async fn connect(&self) -> Result<LockConnection, LockError> {
        timeout(self.timeout, self.open())
            .await
            .unwrap_or_else(|_| {
                Err(LockError::ConnectTimeout {
                    server: Arc::clone(&self.server),
                    after: self.timeout,
                })
            })
    }

    /// Never called: the pool does not test on check-out, which would cost a round trip for each lock.
    async fn is_valid(&self, _: &mut LockConnection) -> Result<(), LockError> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut LockConnection) -> bool {
        connection.in_use || connection.is_closed()
    }
}

impl LockConnection {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled() || self.client.is_closed()
    }

    /// Ends the transaction, whatever state it is in; only then may the connection be used again.
    ///
    /// A statement that a handler left running is cancelled. The connection is then given up: a cancellation that comes late
    /// would hit a statement of its next user.
    pub(super) async fn roll_back(&mut self) {
        let mut rolled_back = pin!(self.client.batch_execute("ROLLBACK"));
        if let Ok(ended) = timeout(ROLLBACK_PATIENCE, &mut rolled_back).await {
            self.in_use = ended.is_err();
            return;
        }
        for _ in 0..CANCEL_TRIES {
            cancel(&self.client.cancel_token()).await;
            if timeout(CANCEL_PATIENCE, &mut rolled_back).await.is_ok() {
                return;
            }
        }
    }
}

/// Sends one CancelRequest, within [`CANCEL_PATIENCE`].
pub(super) async fn cancel(token: &CancelToken) {
    let sent = timeout(CANCEL_PATIENCE, token.cancel_query(NoTls)).await;
    if let Ok(Err(error)) = sent {
        tracing::debug!(%error, "a CancelRequest could not be sent");
    }
}

/// Whether the session is over: the driver failed by itself, or the server said a last word.
pub(super) fn is_disconnect(error: &Error) -> bool {
    let severity = error.as_db_error().map(DbError::parsed_severity);
    !matches!(severity, Some(Some(Severity::Error)))
}

/// Where the server is, without user and password.
fn describe(config: &Config) -> String {
    let ports = config.get_ports();
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(index)),
            #[cfg(unix)]
            Host::Unix(path) => format!("{}:{}", path.display(), port(index)),
        })
        .collect();
    let database = config
        .get_dbname()
        .or(config.get_user())
        .unwrap_or_default();
    format!("{}/{database}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_without_its_password() {
        for (url, server) in [
            (
                "postgres://u:secret@db.example/realms",
                "db.example:5432/realms",
            ),
            ("postgres://u:secret@a:1,b:2/realms", "a:1,b:2/realms"),
            ("host=a,b port=7 user=u password=secret", "a:7,b:7/u"),
            ("postgres://u:secret@%2Ftmp/realms", "/tmp:5432/realms"),
        ] {
            assert_eq!(describe(&url.parse().unwrap()), server, "{url}");
        }
    }
}
