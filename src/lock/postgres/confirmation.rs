//! Answers of the server that others wait for while their connection is already in use again.
//!
//! The task that drives a connection also reads these answers, in the order in which they were
//! asked for, and publishes each to everybody who waits for it. So an answer is read whether or not
//! anybody polls for it, and a waiter that leaves takes nothing along.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::sync::{SetOnce, mpsc};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_postgres::{Client, SimpleQueryStream};

use super::publish::Publication;
use crate::lock::error::chain;
use crate::lock::lease::Lease;
use crate::realm::claim::Claim;

/// How far apart pings are sent: holds that end in between share one. A few times what a ping costs
/// the server, and too short for a client to notice.
const SPACING: Duration = Duration::from_micros(60);

/// When a ping is sent at the latest, where no other hold's end comes to send it.
const LATEST: Duration = Duration::from_millis(1);

/// Why a success could not be confirmed.
#[derive(Debug, Clone)]
pub(in crate::lock) enum Unconfirmed {
    /// The server did not answer in time, or its answer does not prove the lock.
    Lost,
    /// A shared transaction did not commit, for this reason.
    NotCommitted(Arc<str>),
}

/// What the server answered; published once.
pub(in crate::lock) type Proof = Result<(), Unconfirmed>;

/// An answer of the server that proves the lock was held until it was asked for. Cheap to clone.
#[derive(Clone)]
pub(in crate::lock) struct Confirmation(Arc<SetOnce<Proof>>);

/// The duty to publish one answer. Dropping it publishes a loss.
pub(in crate::lock) struct Confirmer(Arc<SetOnce<Proof>>);

impl Confirmer {
    pub(in crate::lock) fn new() -> Self {
        Self(Arc::default())
    }

    pub(in crate::lock) fn confirmation(&self) -> Confirmation {
        Confirmation(Arc::clone(&self.0))
    }

    pub(in crate::lock) fn publish(self, proof: Proof) {
        let _ = self.0.set(proof);
    }

    /// Publishes a loss, unless an answer has been published before.
    fn leave(&self) {
        let _ = self.0.set(Err(Unconfirmed::Lost));
    }
}

impl Drop for Confirmer {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Confirmation {
    pub(super) fn is_answered(&self) -> bool {
        self.0.initialized()
    }

    /// Waits for the answer.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the answer is read all the same.
    pub(in crate::lock) async fn answered(&self) -> Proof {
        self.0.wait().await.clone()
    }

    pub(in crate::lock) async fn is_positive(&self) -> bool {
        self.answered().await.is_ok()
    }
}

/// Messages that were sent, and those who wait for the answers to all of them.
struct Question {
    answer: Pin<Box<SimpleQueryStream>>,
    /// Of the messages after the first.
    others: VecDeque<Pin<Box<SimpleQueryStream>>>,
    positive: bool,
    confirmer: Confirmer,
    /// The lease that a positive answer renews, as of when the message was sent.
    renews: Option<(Arc<Lease>, Instant)>,
    /// Without an answer by then the connection is given up.
    deadline: Instant,
    publishes: bool,
}

/// What reaches the task of a connection.
enum Note {
    Asked(Question),
    /// A ping that is not sent yet must be sent by then.
    PingDue(Instant),
}

/// When a ping is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::lock) enum Urgency {
    Now,
    /// Now, or together with that of a hold that ends soon after.
    WithTheNext,
}

/// Asks questions on one connection.
pub(super) struct Asker {
    notes: mpsc::UnboundedSender<Note>,
    pings: Arc<Pings>,
}

/// Reads the answers, on the task that drives the connection.
pub(super) struct Reader {
    client: Weak<Client>,
    notes: mpsc::UnboundedReceiver<Note>,
    pings: Arc<Pings>,
    /// PostgreSQL answers in the order in which it was asked.
    asked: VecDeque<Question>,
    ping_due: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The pings of one connection. Holds that end while one is waiting to be sent share its answer.
#[derive(Default)]
struct Pings(Mutex<PingState>);

#[derive(Default)]
struct PingState {
    unsent: Option<Ping>,
    sent: Option<Instant>,
    /// The last that published writes. What ends before its answer goes with the next: more than one
    /// at a time would only wait for each other in the server.
    publishing: Option<Confirmation>,
}

/// A query that is empty except for a comment, or one that publishes writes.
struct Ping {
    confirmer: Confirmer,
    comment: Arc<str>,
    lease: Arc<Lease>,
    publication: Option<(Publication, Claim)>,
}

/// Makes the two ends for a connection with this client.
pub(super) fn questions(client: &Arc<Client>) -> (Asker, Reader) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let pings = Arc::new(Pings::default());
    let reader = Reader {
        client: Arc::downgrade(client),
        notes: receiver,
        pings: Arc::clone(&pings),
        asked: VecDeque::new(),
        ping_due: None,
        timer: None,
    };
    let notes = sender;
    (Asker { notes, pings }, reader)
}

impl Asker {
    /// Sends messages behind all that were sent before them. When this returns they are on their
    /// way. If they are not answered within `patience`, the connection is given up, whoever uses it
    /// by then: what comes after them is not answered either.
    pub(super) fn ask<'a>(
        &self,
        client: &Client,
        messages: impl IntoIterator<Item = &'a str>,
        patience: Duration,
    ) -> Confirmation {
        let confirmer = Confirmer::new();
        let confirmation = confirmer.confirmation();
        let deadline = Instant::now() + patience;
        self.note(Question::send(client, messages, confirmer, deadline));
        confirmation
    }

    /// Leaves a question that was sent to the task. If that has ended, the question is dropped, and
    /// with it a loss is published.
    fn note(&self, question: Option<Question>) {
        if let Some(question) = question {
            let _ = self.notes.send(Note::Asked(question));
        }
    }

    /// The answer to a ping that is sent from now on: a proof for every hold of the connection's
    /// lock that has ended before. It publishes the writes of these holds, under the claim that the
    /// transaction has locked.
    pub(super) fn ping(
        &self,
        client: &Client,
        urgency: Urgency,
        comment: &Arc<str>,
        lease: &Arc<Lease>,
        publication: Option<(Publication, &Claim)>,
    ) -> Confirmation {
        let now = Instant::now();
        let mut state = self.pings.state();
        let is_new = state.unsent.is_none();
        let ping = state.unsent.get_or_insert_with(|| Ping {
            confirmer: Confirmer::new(),
            comment: Arc::clone(comment),
            lease: Arc::clone(lease),
            publication: None,
        });
        if let Some((publication, claim)) = publication {
            let published = ping
                .publication
                .get_or_insert_with(|| (Publication::default(), claim.clone()));
            published.0.append(publication);
        }
        let confirmation = ping.confirmer.confirmation();
        let due = |sent| now.saturating_duration_since(sent) >= SPACING;
        let is_publishing = state
            .publishing
            .as_ref()
            .is_some_and(|it| !it.is_answered());
        if urgency == Urgency::Now || !is_publishing && state.sent.is_none_or(due) {
            state.sent = Some(now);
            self.note(state.send(client, now));
        } else if !is_publishing && is_new && self.notes.send(Note::PingDue(now + LATEST)).is_err()
        {
            state.unsent = None;
        }
        confirmation
    }

    /// Sends the ping that is waiting for company.
    pub(super) fn flush(&self, client: &Client) {
        let mut state = self.pings.state();
        self.note(state.send(client, Instant::now()));
    }
}

impl Reader {
    /// Reads what has been answered. Returns `Ready(true)` when something new is to be sent or read,
    /// so that the connection must be polled again, and `Ready(false)` when the server has been
    /// silent for too long, or has refused something.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while let Poll::Ready(Some(note)) = self.notes.poll_recv(cx) {
            self.take(note);
        }
        while let Some(question) = self.asked.front_mut() {
            if question.poll(cx).is_pending() {
                break;
            }
            let Some(question) = self.asked.pop_front() else {
                break;
            };
            let (positive, publishes) = (question.positive, question.publishes);
            question.publish();
            if !positive {
                // Whatever was sent after it was sent in vain.
                return Poll::Ready(false);
            }
            if publishes && self.flush(Instant::now()) {
                return Poll::Ready(true);
            }
        }
        loop {
            let deadline = self.asked.front().map(|question| question.deadline);
            let Some(next) = deadline.into_iter().chain(self.ping_due).min() else {
                return Poll::Pending;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(next)));
            // A timer that fires too early is set anew then: most questions never see it.
            if timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Poll::Ready(false);
            }
            if self.ping_due.is_some_and(|due| due <= now) {
                self.ping_due = None;
                if self.flush(now) {
                    return Poll::Ready(true);
                }
            }
            self.timer = None;
        }
    }

    fn flush(&mut self, now: Instant) -> bool {
        let Some(client) = self.client.upgrade() else {
            return false;
        };
        let pings = Arc::clone(&self.pings);
        let mut state = pings.state();
        // Pings are sent and noted under this mutex: what was sent before is answered before.
        let mut is_new = false;
        while let Ok(note) = self.notes.try_recv() {
            is_new |= self.take(note);
        }
        let question = state.send(&client, now);
        drop(state);
        is_new |= question.is_some();
        self.asked.extend(question);
        is_new
    }

    /// Whether it is a question, whose answer is to be read.
    fn take(&mut self, note: Note) -> bool {
        match note {
            Note::Asked(question) => {
                self.asked.push_back(question);
                true
            }
            Note::PingDue(at) => {
                self.ping_due = Some(at);
                false
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.pings.state();
        // In this order, and at once: a ping must not be left to wait for one that nobody answers.
        self.notes.close();
        while self.notes.try_recv().is_ok() {}
        self.asked.clear();
        state.unsent = None;
    }
}

impl Question {
    /// Sends messages; `None` if the connection is closed, and then a loss is published.
    fn send<'a>(
        client: &Client,
        messages: impl IntoIterator<Item = &'a str>,
        confirmer: Confirmer,
        deadline: Instant,
    ) -> Option<Self> {
        let mut answers = messages.into_iter().map(|message| send(client, message));
        Some(Self {
            answer: answers.next()??,
            others: answers.collect::<Option<_>>()?,
            positive: true,
            confirmer,
            renews: None,
            deadline,
            publishes: false,
        })
    }

    /// Resolves when all answers have been read.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.answer.poll_next_unpin(cx)) {
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    if error.as_db_error().is_some() {
                        let error = chain(&error);
                        tracing::warn!(error, "the server refused to end a hold or to publish it");
                    }
                    self.positive = false;
                }
                None => {}
            }
            match self.others.pop_front() {
                Some(next) => self.answer = next,
                None => return Poll::Ready(()),
            }
        }
    }

    fn publish(self) {
        if !self.positive {
            return self.confirmer.publish(Err(Unconfirmed::Lost));
        }
        if let Some((lease, sent)) = self.renews {
            lease.confirm(sent);
        }
        self.confirmer.publish(Ok(()));
    }
}

impl Pings {
    fn state(&self) -> MutexGuard<'_, PingState> {
        // No code that can panic runs under this mutex, so a poisoned one is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PingState {
    /// Sends the ping that is not sent yet, if there is one.
    fn send(&mut self, client: &Client, now: Instant) -> Option<Question> {
        let ping = self.unsent.take()?;
        let deadline = now + ping.lease.patience();
        let confirmation = ping.confirmer.confirmation();
        let publication = ping
            .publication
            .map(|(all, claim)| all.statement_in(&claim, &ping.comment));
        let message = publication.as_deref().unwrap_or(&ping.comment);
        let question = Question::send(client, [message], ping.confirmer, deadline)?;
        if publication.is_some() {
            self.publishing = Some(confirmation);
        }
        Some(Question {
            renews: Some((ping.lease, now)),
            publishes: publication.is_some(),
            ..question
        })
    }
}

/// Queues a message on the connection; `None` if that is closed.
pub(super) fn send(client: &Client, message: &str) -> Option<Pin<Box<SimpleQueryStream>>> {
    // Queuing is one step that waits for nothing.
    let sent = client.simple_query_raw(message).now_or_never()?;
    sent.ok().map(Box::pin)
}
