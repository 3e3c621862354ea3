use std::collections::VecDeque;
use std::future::{poll_fn, ready};
use std::mem;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use super::Options;
use super::keys::Keys;
use super::lock::{Asked, Command, Release, Reply, Session};
use super::statements::{Answer, Answered, Statements};
use crate::lock::error::{ConnectError, chain};
use crate::lock::lease::Lease;
use crate::lock::postgres::answer::fencing_token;
use crate::lock::postgres::confirmation::{Confirmer, Unconfirmed};
use crate::lock::postgres::connect::Connector;
use crate::lock::postgres::connection::{Busy, LockConnection, is_disconnect};
use crate::lock::postgres::publish::Publication;
use crate::lock::postgres::settings::milliseconds;
use crate::lock::token::FencingToken;
use crate::realm::claim::Lock;

/// How many commands one batch takes.
const BATCH: usize = 500;
/// How many messages may wait for their answers. Enough that on a long way a command does not wait
/// for most of a round trip before it leaves; few enough that under load batches grow.
const IN_FLIGHT: usize = 4;

/// Serves one session: turns commands into batches, and the server's answers into replies.
struct SessionTask {
    /// Busy until the end in order: a session that may hold locks must not outlive the work that
    /// serves it.
    connection: Busy<LockConnection>,
    lease: Arc<Lease>,
    options: Options,
    commands: mpsc::UnboundedReceiver<Command>,
    keys: Keys,
    statements: Statements,
    /// PostgreSQL answers in the order in which it was asked.
    in_flight: VecDeque<Sent>,
    /// Those whose keys were unlocked, and whose publication is answered next.
    unlocked: Vec<Confirmer>,
}

/// A message that waits for its answer.
struct Sent {
    message: Message,
    at: Instant,
    confirms: Vec<Confirmer>,
    answered: Answered,
}

/// What is sent to the server at once, and answered at once.
enum Message {
    Lock(Vec<Asked>),
    Unlock(Vec<Release>),
    /// The writes of the unlocks that were sent before, and of holds whose locks were handed on.
    Publish(Publication, Vec<Confirmer>),
    /// The smallest message that the server answers: an empty query.
    Empty,
}

/// The session is lost, and all its locks.
struct Lost;

impl Session {
    /// Opens a connection whose session can hold locks, and refuses a server that cannot keep them
    /// as promised. Must be called within a runtime: the connection's task serves the session.
    pub(super) async fn open(
        connector: &Connector,
        options: Options,
    ) -> Result<Self, ConnectError> {
        // Until the server has answered.
        let connection = Busy::new(connector.open().await?);
        let prepared = prepare(&connection, options.lease);
        let (lease, statements) = connection.within(connector.timeout(), prepared).await?;
        Ok(Self::start(
            connection.into_idle(),
            lease,
            statements,
            options,
        ))
    }

    pub(super) fn start(
        mut connection: LockConnection,
        lease: Lease,
        statements: Statements,
        options: Options,
    ) -> Self {
        let lease = Arc::new(lease);
        let (commands, receiver) = mpsc::unbounded_channel();
        let session = Self {
            commands,
            lease: Arc::clone(&lease),
            traffic: Arc::clone(connection.traffic()),
            server: Arc::clone(&connection.server),
            pid: connection.canceller().process_id(),
            expires: connection.expires,
        };
        let companion = connection.companion();
        let task = SessionTask::new(connection, lease, statements, options, receiver);
        if let Some(companion) = companion {
            // Fails only if the connection has ended, and the session with it.
            let _ = companion.send(task.run().boxed());
        }
        session
    }
}

/// Sets the session's own time limit, and prepares its statements.
async fn prepare(
    connection: &LockConnection,
    period: Duration,
) -> Result<(Lease, Statements), ConnectError> {
    // Before anything is changed in a session that may be somebody else's as well.
    connection.refuse_pooler()?;
    let sent = Instant::now();
    let milliseconds = milliseconds(period);
    let limit = format!("SELECT set_config('idle_session_timeout', '{milliseconds}', false)");
    match connection.client.batch_execute(&limit).await {
        Ok(()) => {
            let lease = Lease::new(period, sent, &connection.closed);
            let sent = Instant::now();
            let statements = Statements::prepare(&connection.client).await;
            let statements = statements.map_err(|error| connection.failed(error))?;
            lease.confirm(sent);
            Ok((lease, statements))
        }
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
            Err(ConnectError::NoSessionTimeout {
                server: Arc::clone(&connection.server),
            })
        }
        Err(error) => Err(connection.failed(error)),
    }
}

impl SessionTask {
    fn new(
        connection: LockConnection,
        lease: Arc<Lease>,
        statements: Statements,
        options: Options,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            connection: Busy::new(connection),
            lease,
            options,
            commands,
            keys: Keys::new(options.share_time),
            statements,
            in_flight: VecDeque::new(),
            unlocked: Vec::new(),
        }
    }

    /// Keeps the lease, and serves until the session is lost or nobody has a handle of it any more.
    async fn run(mut self) {
        let lease = Arc::clone(&self.lease);
        let client = Arc::clone(&self.connection.client);
        let served = tokio::select! {
            // First: after a freeze the lease is looked at before any answer.
            biased;
            () = lease.keep(|| client.batch_execute("")) => Err(Lost),
            served = self.serve() => served,
        };
        // Tells the holders now; the connection itself ends when its task comes to it.
        self.connection.closed.cancel();
        if served.is_ok() {
            drop(self.connection.into_idle());
        } else {
            tracing::warn!(keys = self.keys.len(), "a session and its locks are lost");
        }
    }

    async fn serve(&mut self) -> Result<(), Lost> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                Some((sent, answer)) = next(&mut self.in_flight) => self.settle(sent, answer)?,
                count = self.commands.recv_many(&mut batch, BATCH),
                    if self.in_flight.len() < IN_FLIGHT =>
                {
                    if count == 0 {
                        return self.finish().await;
                    }
                    self.send_batch(batch.drain(..));
                }
            }
        }
    }

    /// Waits for the last answers, once there can be no more commands.
    async fn finish(&mut self) -> Result<(), Lost> {
        while let Some((sent, answer)) = next(&mut self.in_flight).await {
            self.settle(sent, answer)?;
        }
        Ok(())
    }

    /// Sends the unlocks, then the locks: a key may be in both, and session locks are re-entrant, so
    /// that in the other order whoever waits for it elsewhere would be passed over.
    fn send_batch(&mut self, batch: impl Iterator<Item = Command>) {
        let mut releases = Vec::new();
        let mut asked = Vec::new();
        let mut confirms = Vec::new();
        let mut publication = Publication::default();
        let mut published = Vec::new();
        for command in batch {
            match command {
                Command::Unlock(mut release) => {
                    publication.append(
                        release
                            .publication
                            .as_mut()
                            .map(mem::take)
                            .unwrap_or_default(),
                    );
                    let doubtful = unasked(self.keys.forget(&release.locks));
                    // In this order, so that the first one's answer is about the lock that it had.
                    releases.push(release);
                    releases.extend(doubtful);
                }
                Command::Confirm(reply, None) => confirms.push(reply),
                Command::Confirm(reply, Some(write)) => {
                    publication.append(write);
                    published.push(reply);
                }
                Command::Lock(Asked { reply, .. }) if reply.is_closed() => {}
                Command::Lock(ask) if self.keys.note(ask.lock.claim().locks()) => asked.push(ask),
                Command::Lock(Asked { reply, .. }) => refuse(reply),
            }
        }
        if !releases.is_empty() {
            let confirms = mem::take(&mut confirms);
            self.send(Message::Unlock(releases), confirms);
        }
        if !asked.is_empty() {
            let confirms = mem::take(&mut confirms);
            self.send(Message::Lock(asked), confirms);
        }
        if !publication.is_empty() {
            // By itself: where it fails, nothing else does. One transaction, as PostgreSQL commits
            // notices one at a time.
            let message = Message::Publish(publication, published);
            self.send(message, Vec::new());
        }
        if !confirms.is_empty() {
            self.send(Message::Empty, confirms);
        }
    }

    /// Queues a message behind those already sent; waits for nothing.
    fn send(&mut self, message: Message, confirms: Vec<Confirmer>) {
        let at = Instant::now();
        let mut answered = message.send(&self.statements, self.options.fencing);
        // It is sent by its first poll. Another thread may have read the answer by the end of that.
        if let Some(answer) = (&mut answered).now_or_never() {
            answered = Box::pin(ready(answer));
        }
        self.in_flight.push_back(Sent {
            message,
            at,
            confirms,
            answered,
        });
    }

    fn settle(&mut self, sent: Sent, answer: Result<Answer, Error>) -> Result<(), Lost> {
        if let Err(error) = &answer
            && is_disconnect(error)
        {
            return Err(Lost);
        }
        // An error is an answer too.
        self.lease.confirm(sent.at);
        if !self.lease.is_current() {
            return Err(Lost);
        }
        for confirm in sent.confirms {
            confirm.publish(Ok(()));
        }
        match sent.message {
            Message::Lock(asked) => self.settle_locks(asked, answer),
            Message::Unlock(releases) => self.settle_unlocks(releases, answer)?,
            Message::Publish(_, published) => self.settle_publications(published, &answer),
            Message::Empty => {}
        }
        Ok(())
    }

    /// Tells callers what they were granted, and unlocks what nobody takes: a claim is granted as a
    /// whole or not at all.
    fn settle_locks(&mut self, asked: Vec<Asked>, answer: Result<Answer, Error>) {
        let count = asked.iter().map(|ask| ask.lock.claim().locks().len()).sum();
        let (mut grants, token) = match self.grants(answer, count) {
            Ok((grants, token)) => (Some(grants.into_iter()), token),
            Err(reason) => {
                tracing::warn!(reason, keys = count, "a session's locks failed");
                (None, None)
            }
        };
        let mut releases = Vec::new();
        let mut refused = Vec::new();
        for Asked { mut lock, reply } in asked {
            let locks = lock.claim().locks();
            let unwanted = if let Some(grants) = &mut grants {
                // As many answers as keys, in their order.
                let each = locks.iter().zip(grants.by_ref());
                let granted: Vec<Lock> = each
                    .filter_map(|(lock, granted)| granted.then_some(*lock))
                    .collect();
                if granted.len() < locks.len() {
                    refused.push(reply);
                } else {
                    let Err(left) = reply.send(lock.granted(token)) else {
                        continue;
                    };
                    lock = left.taken_back();
                }
                granted
            } else {
                // Some may have been granted before the error, which does not undo that.
                refused.push(reply);
                self.keys.in_doubt(locks)
            };
            releases.extend(unasked(self.keys.forget(lock.claim().locks())));
            releases.extend(unasked(unwanted));
        }
        if !releases.is_empty() {
            self.send(Message::Unlock(releases), Vec::new());
        }
        // Only now, so that the next to ask this session comes behind the unlock.
        refused.into_iter().for_each(refuse);
    }

    fn grants(
        &self,
        answer: Result<Answer, Error>,
        count: usize,
    ) -> Result<(Vec<bool>, Option<FencingToken>), String> {
        let Answer { done, rows } = answer.map_err(|error| chain(&error))?;
        if done.len() != count {
            return Err("not an answer for each key".to_owned());
        }
        let token = self.options.fencing.then(|| fencing_token(&rows));
        let token = token.transpose().map_err(|error| error.to_string())?;
        Ok((done, token))
    }

    fn settle_unlocks(
        &mut self,
        releases: Vec<Release>,
        answer: Result<Answer, Error>,
    ) -> Result<(), Lost> {
        let done = answer.map_err(|_| Lost)?.done;
        let count: usize = releases.iter().map(|release| release.locks.len()).sum();
        if done.len() != count {
            return Err(Lost);
        }
        let mut unlocked = done.into_iter();
        for release in releases {
            // As many answers as keys, in their order. All are taken, whatever the first is.
            let answers = unlocked.by_ref().take(release.locks.len());
            let all = answers.fold(true, |all, one| all & one);
            let Some(confirmer) = release.confirmer else {
                continue;
            };
            if all && release.publication.is_some() {
                self.unlocked.push(confirmer);
            } else {
                confirmer.publish(proof(all));
            }
        }
        Ok(())
    }

    fn settle_publications(&mut self, published: Vec<Confirmer>, answer: &Result<Answer, Error>) {
        if let Err(error) = answer {
            let error = chain(error);
            tracing::warn!(error, "writes could not be published to the other replicas");
        }
        for confirmer in self.unlocked.drain(..).chain(published) {
            confirmer.publish(proof(answer.is_ok()));
        }
    }
}

impl Message {
    /// The answer, which sends the message when it is polled.
    fn send(&self, statements: &Statements, fencing: bool) -> Answered {
        match self {
            Self::Lock(asked) => {
                let locks = asked.iter().flat_map(|ask| ask.lock.claim().locks());
                statements.try_lock(locks, fencing)
            }
            Self::Unlock(releases) => {
                statements.unlock(releases.iter().flat_map(|release| &release.locks))
            }
            Self::Publish(publication, _) => statements.simple(publication.statement()),
            Self::Empty => statements.simple(String::new()),
        }
    }
}

/// The first message and its answer; `None` if nothing is in flight.
///
/// # Cancel safety
///
/// Cancel safe.
async fn next(in_flight: &mut VecDeque<Sent>) -> Option<(Sent, Result<Answer, Error>)> {
    let answer = poll_fn(|cx| match in_flight.front_mut() {
        Some(sent) => sent.answered.as_mut().poll(cx).map(Some),
        None => Poll::Ready(None),
    });
    let answer = answer.await?;
    in_flight.pop_front().map(|sent| (sent, answer))
}

fn proof(is_positive: bool) -> Result<(), Unconfirmed> {
    is_positive.then_some(()).ok_or(Unconfirmed::Lost)
}

/// Dropping a reply refuses.
fn refuse(reply: Reply) {
    drop(reply);
}

/// An unlock that nobody waits for.
fn unasked(locks: Vec<Lock>) -> Option<Release> {
    (!locks.is_empty()).then_some(Release {
        locks,
        confirmer: None,
        publication: None,
    })
}
