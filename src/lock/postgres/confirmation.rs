use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use crate::lock::lease::Lease;

/// How far apart pings are sent: holds that end in between share one. A few times what a ping costs the server, and too short for
/// a client to notice.
const SPACING: Duration = Duration::from_micros(60);

/// When a ping is sent at the latest, where no other hold's end comes to send it.
const LATEST: Duration = Duration::from_millis(1);

/// The pings of one locked connection: each is the server's word, for all holds that ended before it was sent, that the lock
/// was held until then.
pub(super) struct Pings {
    client: Arc<Client>,
    lease: Arc<Lease>,
    latest: Option<Ping>,
    latest_sent: Option<Instant>,
}

/// One question, and all who wait for its answer: whoever of them is polled moves it on.
#[derive(Clone)]
struct Ping {
    answer: Answer,
    sending: Arc<Sending>,
}

/// When a ping is sent.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Urgency {
    Now,
    /// At once, or together with that of a hold that ends soon after.
    WithTheNext,
}

/// True if the server has answered. What is asked is sent even if nobody waits for that.
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
            latest_sent: None,
        }
    }

    /// The answer to a ping that is sent from now on.
    pub(super) fn join(&mut self, urgency: Urgency) -> Answer {
        let now = Instant::now();
        let ping = match self.latest.take() {
            // Not sent yet, so that its answer speaks for this moment too.
            Some(ping) if !ping.sending.begun.load(Ordering::SeqCst) => ping,
            _ => self.ping(),
        };
        let due = |sent| now.saturating_duration_since(sent) >= SPACING;
        if urgency == Urgency::Now || self.latest_sent.is_none_or(due) {
            ping.send();
            self.latest_sent = Some(now);
        }
        self.latest.insert(ping).answer.clone()
    }

    /// Sends the ping that somebody still waits for.
    pub(super) fn send(&self) {
        if let Some(ping) = &self.latest {
            ping.send();
        }
    }

    fn ping(&self) -> Ping {
        let client = Arc::clone(&self.client);
        let lease = Arc::clone(&self.lease);
        let sending = Arc::new(Sending::default());
        let asked = Arc::clone(&sending);
        let answer = async move {
            // Either way it is time.
            let _ = timeout(LATEST, asked.now.notified()).await;
            asked.begun.store(true, Ordering::SeqCst);
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
        send(&self.answer);
    }
}

/// Sends a message behind all that were sent before it.
pub(super) fn last(client: &Arc<Client>, message: &'static str, patience: Duration) -> Answer {
    let client = Arc::clone(client);
    let answer = async move {
        let answered = timeout(patience, client.batch_execute(message)).await;
        matches!(answered, Ok(Ok(())))
    };
    let answer = answer.boxed().shared();
    send(&answer);
    answer
}

/// One step of a question sends it; its answer wakes those who wait for it.
fn send(answer: &Answer) {
    let _ = answer.clone().now_or_never();
}
