use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::canceller::{Canceller, GIVEN};
use super::confirmation::Confirmation;
use super::pool::Pooled;
use crate::lock::background::Background;
use crate::lock::grant::Turn;

/// One lock statement on its way.
///
/// # Cancel safety
///
/// Dropping the future of a statement cancels nothing on the server: its backend would stay in PostgreSQL's queue, and
/// later take a lock that nobody knows of. So a dropped attempt hands everything to a task, which cancels the wait and
/// discards the connection. The local turn goes along: the next waiter starts when the server is rid of this one.
pub(super) struct Attempt {
    /// None once it is answered.
    statement: Option<Statement>,
    canceller: Canceller,
    /// The end of the transaction before on the same connection.
    before: Option<Confirmation>,
    background: Background,
}

type Statement = Pin<Box<dyn Future<Output = (Answered, Answer)> + Send>>;

/// All that went into an [`Attempt`], back again with its answer.
pub(super) struct Answered {
    pub(super) connection: Pooled,
    pub(super) turn: Turn,
    /// When the statement was sent.
    pub(super) sent: Instant,
}

impl Attempt {
    pub(super) fn start(
        mut connection: Pooled,
        turn: Turn,
        statement: String,
        background: Background,
    ) -> Self {
        connection.in_use = true;
        Self {
            canceller: connection.canceller().clone(),
            before: connection.ending.take(),
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
            background,
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
            let canceller = self.canceller.clone();
            let before = self.before.take();
            self.background.spawn(abandon(statement, before, canceller));
        }
    }
}

/// Ends a lock statement that nobody waits for any more, and discards its connection.
///
/// The connection is not used again. For one CancelRequest the server signals a backend twice, and behind a pooler nobody can
/// tell when the last signal has come: it could hit a statement of the connection's next user.
///
/// Nor is it cancelled before the transaction before has ended: a CancelRequest is for whatever the server is at, and would cost
/// that one's holder its success.
async fn abandon(mut statement: Statement, before: Option<Confirmation>, canceller: Canceller) {
    if let Some(before) = before {
        let _ = timeout(GIVEN, before).await;
    }
    if !canceller.cancel_until_ended(&mut statement).await {
        tracing::warn!("a lock statement did not answer to its cancellation");
    }
}
