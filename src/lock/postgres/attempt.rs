use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bb8::PooledConnection;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{CancelToken, Error, NoTls, SimpleQueryMessage};
use tokio_util::task::TaskTracker;

use super::connection::Connector;
use crate::lock::queue::Turn;

/// How long a CancelRequest is given before it is sent again: it may have overtaken the statement it is meant for.
const CANCEL_PATIENCE: Duration = Duration::from_millis(200);
/// How often a CancelRequest is sent before the connection is given up; the statement's own `lock_timeout` then ends it.
const CANCEL_TRIES: u32 = 10;

/// One lock statement on its way.
///
/// # Cancel safety
///
/// Dropping the future of a statement cancels nothing on the server: its backend would stay in PostgreSQL's queue, and
/// later take a lock that nobody knows of. So a dropped attempt hands everything to a task, which cancels the wait and rolls
/// back, or discards the connection. The local turn goes along: the next waiter starts when the server is rid of this one.
pub(super) struct Attempt {
    /// None once it is answered.
    statement: Option<Statement>,
    cancel: CancelToken,
    tasks: TaskTracker,
    runtime: Handle,
}

type Statement = Pin<Box<dyn Future<Output = (Answered, Answer)> + Send>>;

/// All that went into an [`Attempt`], back again with its answer.
pub(super) struct Answered {
    pub(super) connection: PooledConnection<'static, Connector>,
    pub(super) turn: Turn,
    /// When the statement was sent.
    pub(super) sent: Instant,
}

pub(super) type Answer = Result<Vec<SimpleQueryMessage>, Error>;

impl Attempt {
    pub(super) fn start(
        mut connection: PooledConnection<'static, Connector>,
        turn: Turn,
        statement: String,
        tasks: &TaskTracker,
    ) -> Self {
        connection.in_use = true;
        Self {
            cancel: connection.client.cancel_token(),
            statement: Some(Box::pin(async move {
                let sent = Instant::now();
                let answer = connection.client.simple_query(&statement).await;
                let answered = Answered {
                    connection,
                    turn,
                    sent,
                };
                (answered, answer)
            })),
            tasks: tasks.clone(),
            runtime: Handle::current(),
        }
    }
}

impl Future for Attempt {
    type Output = (Answered, Answer);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(statement) = &mut self.statement else {
            // Polled after its end, which a future may answer as it likes.
            return Poll::Pending;
        };
        let answered = ready!(statement.as_mut().poll(cx));
        self.statement = None;
        Poll::Ready(answered)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(statement) = self.statement.take() {
            let cancel = self.cancel.clone();
            self.tasks
                .spawn_on(abandon(statement, cancel), &self.runtime);
        }
    }
}

/// Ends a lock statement that nobody waits for any more, and leaves its connection idle or discarded.
async fn abandon(mut statement: Statement, cancel: CancelToken) {
    for cancels in 1..=CANCEL_TRIES {
        let cancelled = timeout(CANCEL_PATIENCE, cancel.cancel_query(NoTls)).await;
        if let Ok(Err(error)) = cancelled {
            tracing::debug!(%error, "a CancelRequest could not be sent");
        }
        let Ok((answered, answer)) = timeout(CANCEL_PATIENCE, &mut statement).await else {
            continue;
        };
        // If the cancel was for this statement, it is used up. Any other may still arrive, and would hit a statement of
        // the connection's next user: then the connection is discarded with `answered`, and the lock with it.
        if cancels == 1 && was_cancelled(&answer) {
            roll_back(answered.connection).await;
        }
        return;
    }
    tracing::warn!(
        "a lock statement did not answer to its cancellation; its connection is discarded"
    );
}

fn was_cancelled(answer: &Answer) -> bool {
    matches!(answer, Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED))
}

/// Ends a failed transaction, so that its connection can be pooled; discards the connection where that fails.
pub(super) async fn roll_back(mut connection: PooledConnection<'static, Connector>) {
    let rolled_back = connection.client.batch_execute("ROLLBACK");
    if let Ok(Ok(())) = timeout(CANCEL_PATIENCE, rolled_back).await {
        connection.in_use = false;
    }
}
