use std::borrow::Cow;
use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use futures_util::task::AtomicWaker;
use futures_util::{FutureExt, TryStreamExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Error, SimpleQueryStream};

use super::connection::LockConnection;
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
    comment: Arc<str>,
    latest: Option<Ping>,
    latest_sent: Option<Instant>,
}

/// One question, and all who wait for its answer.
#[derive(Clone)]
struct Ping {
    answer: Confirmation,
    question: Arc<Question>,
}

/// When a ping is sent.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Urgency {
    Now,
    /// At once, or together with that of a hold that ends soon after.
    WithTheNext,
}

/// True if the server has answered. What is asked is sent even if nobody waits for that.
#[derive(Clone)]
pub(crate) struct Confirmation {
    shared: Shared<BoxFuture<'static, bool>>,
    /// Wakes all who wait. [`Shared`] wakes them for an answer that comes while one of them polls it; the others then leave it to
    /// that one, which may be dropped before it does anything.
    others: Arc<AtomicWaker>,
}

impl Confirmation {
    pub(crate) fn to(question: impl Future<Output = bool> + Send + 'static) -> Self {
        let others = Arc::new(AtomicWaker::new());
        let waiting = Arc::clone(&others);
        let shared = async move {
            let mut question = pin!(question);
            poll_fn(|cx| {
                waiting.register(cx.waker());
                question.as_mut().poll(cx)
            })
            .await
        };
        Self {
            shared: shared.boxed().shared(),
            others,
        }
    }
}

impl Future for Confirmation {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        self.shared.poll_unpin(cx)
    }
}

impl Drop for Confirmation {
    fn drop(&mut self) {
        if self.shared.peek().is_none() {
            self.others.wake();
        }
    }
}

impl fmt::Debug for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirmation").finish_non_exhaustive()
    }
}

/// A query that is empty but for a comment, and is sent once. Apart from its answer, as whoever waits for that may just be polling it on another
/// thread: what must come before the end of the transaction cannot wait for them.
struct Question {
    client: Arc<Client>,
    comment: Arc<str>,
    sent: Mutex<Option<Sent>>,
    /// Told when it has been sent.
    now: Notify,
}

struct Sent {
    at: Instant,
    /// None once somebody reads it.
    answer: Option<Result<SimpleQueryStream, Error>>,
}

impl Pings {
    pub(super) fn new(client: Arc<Client>, lease: Arc<Lease>, comment: Arc<str>) -> Self {
        Self {
            client,
            lease,
            comment,
            latest: None,
            latest_sent: None,
        }
    }

    /// The answer to a ping that is sent from now on.
    pub(super) fn join(&mut self, urgency: Urgency) -> Confirmation {
        let now = Instant::now();
        let ping = match self.latest.take() {
            // Not sent yet, so that its answer speaks for this moment too.
            Some(ping) if !ping.question.is_sent() => ping,
            _ => self.ping(),
        };
        let due = |sent| now.saturating_duration_since(sent) >= SPACING;
        if urgency == Urgency::Now || self.latest_sent.is_none_or(due) {
            ping.question.send();
            self.latest_sent = Some(now);
        }
        self.latest.insert(ping).answer.clone()
    }

    /// Sends the ping that somebody still waits for.
    pub(super) fn send(&self) {
        if let Some(ping) = &self.latest {
            ping.question.send();
        }
    }

    fn ping(&self) -> Ping {
        let lease = Arc::clone(&self.lease);
        let question = Arc::new(Question {
            client: Arc::clone(&self.client),
            comment: Arc::clone(&self.comment),
            sent: Mutex::default(),
            now: Notify::new(),
        });
        let asked = Arc::clone(&question);
        let answer = async move {
            // Either way it is time.
            let _ = timeout(LATEST, asked.now.notified()).await;
            let Some((sent, answer)) = asked.ask() else {
                return false;
            };
            let answer = answer.try_for_each(|_| ready(Ok(())));
            let answered = timeout(lease.patience(), answer).await;
            let answered = matches!(answered, Ok(Ok(())));
            if answered {
                lease.confirm(sent);
            }
            answered
        };
        Ping {
            answer: Confirmation::to(answer),
            question,
        }
    }
}

impl Question {
    fn is_sent(&self) -> bool {
        self.sent().is_some()
    }

    /// Sends it, if that has not been done. When this returns it is on its way, before all that is sent later.
    fn send(&self) {
        let mut sent = self.sent();
        if sent.is_none() {
            let at = Instant::now();
            // One step queues the message, and waits for nothing.
            let answer = self.client.simple_query_raw(&self.comment).now_or_never();
            *sent = Some(Sent { at, answer });
            // Kept by `Notify` for an answer that is not polled yet.
            self.now.notify_one();
        }
    }

    /// Sends it, if that has not been done: when it was sent, and the answer to read. None if it cannot be sent.
    fn ask(&self) -> Option<(Instant, SimpleQueryStream)> {
        self.send();
        let mut sent = self.sent();
        let Sent { at, answer } = sent.as_mut()?;
        Some((*at, answer.take()?.ok()?))
    }

    fn sent(&self) -> MutexGuard<'_, Option<Sent>> {
        // It is replaced as a whole, so a poisoned one is whole too.
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a message behind all that were sent before it. A connection on which it is not answered is given up, whoever uses it
/// by then: what comes after it is not answered either.
pub(super) fn last(
    connection: &LockConnection,
    message: impl Into<Cow<'static, str>>,
    patience: Duration,
) -> Confirmation {
    let client = Arc::clone(&connection.client);
    let task = connection.task.clone();
    let message = message.into();
    let answer = async move {
        let answer = timeout(patience, client.batch_execute(&message)).await;
        if answer.is_err() {
            task.abort();
        }
        matches!(answer, Ok(Ok(())))
    };
    let answer = Confirmation::to(answer);
    // Nobody else has it yet, so that this one step sends it; its answer wakes those who wait for it.
    let _ = answer.clone().now_or_never();
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_answer_that_comes_while_one_who_leaves_reads_it_wakes_the_others() {
        let staying: Arc<Mutex<Option<Confirmation>>> = Arc::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let poll = {
            let waker = waker.clone();
            move |answer: &mut Confirmation| answer.poll_unpin(&mut Context::from_waker(&waker))
        };

        let mut came = false;
        let other = Arc::clone(&staying);
        let polled = poll.clone();
        let mut leaving = Confirmation::to(poll_fn(move |cx| {
            if came {
                return Poll::Ready(true);
            }
            if let Some(staying) = other.lock().unwrap().as_mut() {
                came = true;
                cx.waker().wake_by_ref();
                // It is woken, and finds somebody else reading.
                assert!(polled(staying).is_pending());
            }
            Poll::Pending
        }));
        let mut stays = leaving.clone();
        assert!(poll(&mut stays).is_pending());
        *staying.lock().unwrap() = Some(stays);
        assert!((&mut leaving).now_or_never().is_none());
        woken.0.store(false, Ordering::SeqCst);

        drop(leaving);
        assert!(woken.0.load(Ordering::SeqCst), "nobody reads the answer");
        let mut stays = staying.lock().unwrap().take().unwrap();
        assert_eq!(poll(&mut stays), Poll::Ready(true));
    }
}
