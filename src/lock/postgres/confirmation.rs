use std::future::Future;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bb8::PooledConnection;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, MaybeDone, Shared, maybe_done, select};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use super::connection::Connector;
use crate::lock::background::Background;
use crate::lock::lease::Lease;

/// How far apart pings are sent while an earlier one is on its way; holds that end in between share one.
const PING_SPACING: Duration = Duration::from_micros(100);

/// The pings of one locked connection: each is the server's word, for all holds that ended before it was sent, that the lock
/// was held until then.
pub(super) struct Pings {
    client: Arc<Client>,
    lease: Arc<Lease>,
    latest: Option<Ping>,
    latest_sent: Instant,
}

/// One question, and all who wait for its answer: whoever of them is polled moves it on.
#[derive(Clone)]
struct Ping {
    answer: Answer,
    sending: Arc<Sending>,
}

/// True if the server has answered.
pub(crate) type Answer = Shared<BoxFuture<'static, bool>>;

#[derive(Default)]
struct Sending {
    now: Notify,
    begun: AtomicBool,
}

impl Pings {
    pub(super) fn new(client: Arc<Client>, lease: Arc<Lease>) -> Self {
        Self {
            client,
            lease,
            latest: None,
            latest_sent: Instant::now(),
        }
    }

    /// The answer to a ping that is sent from now on.
    ///
    /// It is sent at once if none is on its way, or if the last one was sent a while ago; else with the next hold's, and at the
    /// latest when the last one is answered.
    pub(super) fn join(&mut self) -> Answer {
        let now = Instant::now();
        let ping = match self.latest.take() {
            // Not sent yet, so that its answer speaks for this moment too.
            Some(ping) if !ping.sending.begun.load(Ordering::SeqCst) => ping,
            earlier => self.ping(earlier.map(|earlier| earlier.answer)),
        };
        if now.saturating_duration_since(self.latest_sent) >= PING_SPACING {
            ping.send();
            self.latest_sent = now;
        }
        self.latest.insert(ping).answer.clone()
    }

    /// Sends the ping that somebody still waits for.
    pub(super) fn send(&self) {
        if let Some(ping) = &self.latest {
            ping.send();
        }
    }

    fn ping(&self, earlier: Option<Answer>) -> Ping {
        let client = Arc::clone(&self.client);
        let lease = Arc::clone(&self.lease);
        let sending = Arc::new(Sending::default());
        let begun = Arc::clone(&sending);
        let answer = async move {
            if let Some(earlier) = earlier {
                select(earlier, pin!(begun.now.notified())).await;
            }
            begun.begun.store(true, Ordering::SeqCst);
            let sent = Instant::now();
            let answered = timeout(lease.patience(), client.batch_execute("")).await;
            let answered = matches!(answered, Ok(Ok(())));
            if answered {
                lease.confirm(sent);
            }
            answered
        };
        Ping {
            answer: answer.boxed().shared(),
            sending,
        }
    }
}

impl Ping {
    fn send(&self) {
        // Kept by `Notify` for one that is not polled yet.
        self.sending.now.notify_one();
        // One step sends it; its answer wakes those who wait for it.
        let _ = self.answer.clone().now_or_never();
    }
}

/// A COMMIT; resolves to whether it was answered. Dropped before that, it leaves the rest to a task.
pub(crate) struct Commit {
    rest: MaybeDone<BoxFuture<'static, bool>>,
    background: Background,
}

impl Commit {
    /// The COMMIT goes behind the latest ping, and is sent when this is polled or dropped. The connection goes back to its pool
    /// with the answer.
    pub(super) fn new(
        pings: &Pings,
        connection: Option<PooledConnection<'static, Connector>>,
        background: Background,
    ) -> Self {
        let client = Arc::clone(&pings.client);
        let ping = pings.latest.clone();
        let patience = pings.lease.patience();
        let rest = async move {
            if let Some(ping) = ping {
                ping.send();
            }
            let answer = timeout(patience, client.batch_execute("COMMIT")).await;
            let committed = matches!(answer, Ok(Ok(())));
            if let Some(mut connection) = connection {
                // One that has not answered is not pooled again.
                connection.in_use = !committed;
            }
            committed
        };
        Self {
            rest: maybe_done(rest.boxed()),
            background,
        }
    }
}

impl Future for Commit {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut rest = Pin::new(&mut self.rest);
        ready!(rest.as_mut().poll(cx));
        // Polled after its end, it has no answer.
        Poll::Ready(rest.take_output().unwrap_or(false))
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        if let MaybeDone::Future(rest) = mem::replace(&mut self.rest, MaybeDone::Gone) {
            self.background.spawn(rest);
        }
    }
}
