use std::borrow::Borrow;
use std::future::Future;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{Client, Error, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

use super::answer::value;
use super::call::PREPARE_TRY;
use super::canceller::Canceller;
use super::confirmation::{Asker, Confirmation, Urgency, questions, send};
use super::drive::{Companion, Drive};
use super::publish::Publication;
use super::settings::{self, READ_COMMITTED};
use super::traffic::{Lookout, Obstacle, Traffic, lookout};
use crate::lock::error::{ConnectError, chain};
use crate::lock::lease::Lease;
use crate::lock::tasks::Tasks;
use crate::realm::claim::Claim;

/// What `DISCARD ALL` does, except for prepared statements: first for the settings, then for the
/// rest. `DISCARD ALL` itself must be sent as a message of its own, which behind a pooler would
/// reach another server.
const RESET_SETTINGS: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL";
const RESET_REST: &str = "CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD PLANS; \
     DISCARD TEMP; DISCARD SEQUENCES";

/// The MD5 hashes of the statements that the driver prepares for itself, and keeps, to look up
/// types, the labels of enums, and the fields of composites. If a driver has other statements,
/// connections on which it prepared them are closed; a test detects that.
const LOOKUPS: &str = "'c4e273ea7daab61f9aba1085aca9da0b', '0a388b9b957e54783bd3839c06ec62a1', 'f98aa68d9cb686adad4390ff4fcf30cd'";

/// The column that is `t` if only the driver's own prepared statements are left.
const ONLY_LOOKUPS: &str = "tower_realm_lock_only_lookups";

/// How long a ROLLBACK may take before whatever keeps it waiting is cancelled.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(1);

/// A connection on which no transaction is open, or one whose end has been sent.
pub(super) struct LockConnection {
    pub(super) client: Arc<Client>,
    /// Cancelled when the connection has ended, for whatever reason.
    pub(super) closed: CancellationToken,
    /// The end of the last transaction, which may be unanswered: until it is answered nothing may
    /// be cancelled.
    pub(super) ending: Option<Confirmation>,
    /// Host, port and database.
    pub(super) server: Arc<str>,
    /// When it is to be given up for a new one, so that other credentials and addresses count.
    pub(super) expires: Option<Instant>,
    /// Whether the server itself answers, and not a pooler with several servers.
    is_direct: bool,
    /// Whether the session has [`PREPARE_TRY`]'s statement.
    pub(super) has_prepared: bool,
    /// Sets what this crate needs: for the session, or behind a pooler for a transaction.
    pub(super) settings: String,
    /// Runs what is left to do on the connection when its user has gone.
    pub(super) tasks: Tasks,
    canceller: Canceller,
    asker: Asker,
    lookout: Lookout,
    companion: Option<oneshot::Sender<Companion>>,
    task: AbortHandle,
}

/// A connection on which a transaction, or a session's locks, may be open. Dropping it closes the
/// connection, which ends them.
pub(super) struct Busy<C: Borrow<LockConnection>> {
    // Before the connection, so that a pool sees that it is closed.
    closer: Closer,
    connection: C,
}

/// Closes a connection when it is dropped, whatever runs there: the driver itself would wait for
/// its last answer, which may never come.
struct Closer(Option<(AbortHandle, CancellationToken)>);

impl LockConnection {
    /// Drives a new connection on a task of its own. Until the server has answered it is busy.
    pub(super) fn start<E>(
        client: Client,
        connection: impl Future<Output = Result<(), E>> + Send + 'static,
        canceller: Canceller,
        traffic: &Arc<Traffic>,
        server: Arc<str>,
        tasks: Tasks,
    ) -> Busy<Self>
    where
        E: std::error::Error + Send,
    {
        let client = Arc::new(client);
        let closed = CancellationToken::new();
        let signal = closed.clone().drop_guard();
        let (asker, reader) = questions(&client);
        let (lookout, watchman) = lookout(traffic);
        let (companion, work) = oneshot::channel();
        let task = tokio::spawn(Drive::new(connection, reader, watchman, work, signal));
        Busy::new(Self {
            client,
            closed,
            ending: None,
            server,
            expires: None,
            is_direct: false,
            has_prepared: false,
            settings: String::new(),
            tasks,
            canceller,
            asker,
            lookout,
            companion: Some(companion),
            task: task.abort_handle(),
        })
    }

    /// Where work can be left, once, that is polled together with the connection. It goes on after
    /// the connection has ended. If the task is aborted, the work is dropped.
    pub(super) fn companion(&mut self) -> Option<oneshot::Sender<Companion>> {
        self.companion.take()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled() || self.client.is_closed()
    }

    pub(super) fn is_too_old(&self) -> bool {
        self.expires
            .is_some_and(|expires| expires <= Instant::now())
    }

    pub(super) fn failed(&self, source: Error) -> ConnectError {
        ConnectError::Connect {
            server: Arc::clone(&self.server),
            source: Arc::new(source),
        }
    }

    /// What a new connection is to set, before it is known whether a pooler answers: a pooler
    /// announces a process id of its own to its clients.
    pub(super) fn first_settings(&self, lease: Duration) -> String {
        let announced = self.canceller.process_id();
        settings::of_session(lease, &format!("pg_backend_pid() <> {announced}"))
    }

    /// Records whether the server itself answers.
    pub(super) fn answered_by(&mut self, process_id: Option<&str>, lease: Duration) {
        let announced = self.canceller.process_id().to_string();
        self.is_direct = process_id == Some(&announced);
        self.settings = if self.is_direct {
            settings::of_session(lease, "false")
        } else {
            settings::of_transaction(lease)
        };
    }

    /// Prepares what the session is asked again and again; whether it has that then. Without it each
    /// try is text, as it is behind a pooler.
    pub(super) async fn prepare(&self) -> Result<bool, ConnectError> {
        if !self.is_direct {
            return Ok(false);
        }
        // A proxy that balances load sends a message of several statements to the primary.
        let message = format!("{READ_COMMITTED}; {PREPARE_TRY}");
        match self.client.batch_execute(&message).await {
            Ok(()) => Ok(true),
            Err(error) if is_disconnect(&error) => Err(self.failed(error)),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "a lock connection cannot prepare its statement");
                Ok(false)
            }
        }
    }

    /// What each transaction is to set, if a pooler answers.
    pub(super) fn of_pooler(&self) -> Option<&str> {
        (!self.is_direct).then_some(&*self.settings)
    }

    /// Refuses a pooler.
    pub(super) fn refuse_pooler(&self) -> Result<(), ConnectError> {
        if self.is_direct {
            return Ok(());
        }
        Err(ConnectError::Pooler {
            server: Arc::clone(&self.server),
        })
    }

    /// Sends messages behind all that were sent before, the waiting ping among them, and asks for
    /// the proof that all succeeded.
    pub(super) fn ask<'a>(
        &self,
        messages: impl IntoIterator<Item = &'a str>,
        patience: Duration,
    ) -> Confirmation {
        self.asker.flush(&self.client);
        self.asker.ask(&self.client, messages, patience)
    }

    /// Asks for the proof that the lock of this connection was held until now, and publishes writes
    /// under the claim that is locked.
    pub(super) fn ping(
        &self,
        urgency: Urgency,
        comment: &Arc<str>,
        lease: &Arc<Lease>,
        publication: Option<(Publication, &Claim)>,
    ) -> Confirmation {
        let (asker, client) = (&self.asker, &self.client);
        asker.ping(client, urgency, comment, lease, publication)
    }

    /// What the previous user has left open, so that no statement can be sent or answered any more.
    ///
    /// Only that user's own statements, and heartbeats, may be in flight. A statement that still
    /// runs is waited for.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn obstacle(&self) -> Option<Obstacle> {
        let (answer, obstacle) = self.lookout.watch(|| send(&self.client, ""));
        let answered = async {
            if let Some(mut answer) = answer {
                while let Some(Ok(_)) = answer.next().await {}
            }
        };
        tokio::select! {
            biased;
            () = answered => None,
            obstacle = obstacle => Some(obstacle),
        }
    }

    /// The rows of a message's answer, up to an error.
    pub(super) async fn rows(&self, message: &str) -> (Vec<SimpleQueryMessage>, Option<Error>) {
        let mut rows = Vec::new();
        let mut answer = match self.client.simple_query_raw(message).await {
            Ok(answer) => pin!(answer),
            Err(error) => return (rows, Some(error)),
        };
        loop {
            match answer.next().await {
                Some(Ok(row)) => rows.push(row),
                Some(Err(error)) => return (rows, Some(error)),
                None => return (rows, None),
            }
        }
    }

    /// Waits for what a new connection is asked, which must be answered in time.
    pub(super) async fn within<T>(
        &self,
        after: Duration,
        asked: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        let answer = timeout(after, asked).await;
        answer.unwrap_or_else(|_| {
            Err(ConnectError::ConnectTimeout {
                server: Arc::clone(&self.server),
                after,
            })
        })
    }

    /// The message that undoes whatever a handler did to the session. No statement of the handler
    /// may be in flight.
    pub(super) fn reset(&self) -> String {
        let statements = self.lookout.traffic().statements();
        // In between, as the rest may take longer than the role's statements may. What is for a
        // transaction ends with the message.
        let settings = &self.settings;
        let reset = format!("{READ_COMMITTED}; {RESET_SETTINGS}; {settings}; {RESET_REST}");
        if statements == 0 || !self.is_direct {
            return format!("{reset}; DEALLOCATE ALL");
        }
        // The driver counts on each of them, and a handler may have deallocated some.
        format!(
            "{reset}; SELECT count(*) = {statements} \
             AND bool_and(NOT from_sql AND md5(statement) IN ({LOOKUPS})) AS {ONLY_LOOKUPS} \
             FROM pg_prepared_statements"
        )
    }

    /// Whether the session is as good as new for the next user, by the answer to a
    /// [`reset`](Self::reset).
    pub(super) fn is_as_new(&self, reset: &[SimpleQueryMessage]) -> bool {
        let traffic = self.lookout.traffic();
        let has_others = match value(reset, ONLY_LOOKUPS) {
            // As of the count: a statement that was dropped since excuses no other.
            Some(only_lookups) => only_lookups != "t",
            // All are deallocated, and the driver must count on none.
            None => traffic.statements() != 0,
        };
        !has_others && !traffic.has_loaded_library()
    }

    pub(super) fn canceller(&self) -> &Canceller {
        &self.canceller
    }

    pub(super) fn traffic(&self) -> &Arc<Traffic> {
        self.lookout.traffic()
    }
}

impl<C: Borrow<LockConnection>> Busy<C> {
    pub(super) fn new(connection: C) -> Self {
        let LockConnection { task, closed, .. } = connection.borrow();
        Self {
            closer: Closer(Some((task.clone(), closed.clone()))),
            connection,
        }
    }

    /// The connection, once whatever was open on it has ended, or its end has been sent.
    pub(super) fn into_idle(mut self) -> C {
        self.closer.0 = None;
        self.connection
    }

    /// Closes the connection now.
    #[cfg(feature = "test-util")]
    pub(super) fn close(&mut self) {
        self.closer.close();
    }

    /// Ends the transaction, whatever state it is in; `None` if the connection cannot be used
    /// again.
    ///
    /// A statement that is left running is cancelled. The connection is then given up: a
    /// cancellation that comes late would hit a statement of its next user.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the connection is closed.
    pub(super) async fn roll_back(self) -> Option<C> {
        let rolled_back = self.roll_back_with("ROLLBACK").await;
        rolled_back.map(|_| self.into_idle())
    }

    /// The same after a handler had the client: undoes what it did to the session, too, and
    /// publishes the writes of nested holds. Returns whether the session is then as good as new.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the transaction may be open, and a statement of the handler's may still run.
    pub(super) async fn roll_back_shared(&self, publication: Option<String>) -> bool {
        // A ROLLBACK would wait behind what the handler has left open.
        if let Ok(Some(_)) = timeout(ROLLBACK_PATIENCE, self.obstacle()).await {
            self.canceller.cancel().await;
            return false;
        }
        let message = format!("ROLLBACK; {}", self.reset());
        let Some(reset) = self.roll_back_with(&message).await else {
            return false;
        };
        if let Some(publication) = publication
            && let message = format!("{READ_COMMITTED}; {publication}")
            && let Err(error) = self.client.batch_execute(&message).await
        {
            tracing::warn!(error = %chain(&error), "a nested write could not be published");
        }
        self.is_as_new(&reset)
    }

    /// The answer, if it comes without a cancellation.
    async fn roll_back_with(&self, message: &str) -> Option<Vec<SimpleQueryMessage>> {
        let mut rolled_back = pin!(self.client.simple_query(message));
        if let Ok(answer) = timeout(ROLLBACK_PATIENCE, &mut rolled_back).await {
            return answer.ok();
        }
        self.canceller.cancel_until_ended(&mut rolled_back).await;
        None
    }
}

impl<C: Borrow<LockConnection>> Deref for Busy<C> {
    type Target = LockConnection;

    fn deref(&self) -> &LockConnection {
        self.connection.borrow()
    }
}

impl Closer {
    fn close(&mut self) {
        if let Some((task, closed)) = self.0.take() {
            task.abort();
            closed.cancel();
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether the session is over: the driver failed by itself, or the server sent its last message.
pub(super) fn is_disconnect(error: &Error) -> bool {
    let severity = error.as_db_error().map(DbError::parsed_severity);
    !matches!(severity, Some(Some(Severity::Error)))
}
