use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::FuturesOrdered;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Options;
use super::commands::{Asked, Command, Confirm, Release, Reply};
use super::keys::Keys;
use super::message::{Lost, Message, settle_publications, settle_unlocks};
use super::statements::answers;
use crate::lock::error::chain;
use crate::lock::lease::Lease;
use crate::lock::postgres::answer::{Answer, fencing_token};
use crate::lock::postgres::confirmation::Confirmer;
use crate::lock::postgres::connection::{Busy, LockConnection, is_disconnect};
use crate::lock::token::FencingToken;
use crate::realm::claim::{Claim, Lock};

/// How many commands one batch takes.
const BATCH: usize = 500;
/// How many messages may wait for their answers. Enough that on a long way a command does not wait for most of a round trip
/// before it leaves; few enough that under load batches grow.
const IN_FLIGHT: usize = 4;

/// Serves one session: turns commands into batches, and the server's answers into replies.
pub(super) struct SessionTask {
    /// Busy until the end in order: a session that may hold locks must not outlive its task.
    connection: Busy<LockConnection>,
    lease: Arc<Lease>,
    options: Options,
    commands: mpsc::UnboundedReceiver<Command>,
    keys: Keys,
    in_flight: FuturesOrdered<Answered>,
}

/// A message that waits for its answer.
struct Sent {
    message: Message,
    at: Instant,
    confirms: Vec<Confirmer>,
}

type Answered = Pin<Box<dyn Future<Output = (Sent, Answer)> + Send>>;

impl SessionTask {
    pub(super) fn new(
        connection: LockConnection,
        lease: Arc<Lease>,
        options: Options,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            connection: Busy::new(connection),
            lease,
            options,
            commands,
            keys: Keys::new(options.share_time),
            in_flight: FuturesOrdered::new(),
        }
    }

    /// Keeps the lease, and serves until the session is lost or nobody has a handle of it any more.
    pub(super) async fn run(mut self) {
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
                Some((sent, answer)) = self.in_flight.next() => self.settle(sent, answer).await?,
                count = self.commands.recv_many(&mut batch, BATCH), if self.in_flight.len() < IN_FLIGHT => {
                    if count == 0 {
                        return self.finish().await;
                    }
                    self.send_batch(batch.drain(..)).await?;
                }
            }
        }
    }

    /// Waits for the last answers, once there can be no more commands.
    async fn finish(&mut self) -> Result<(), Lost> {
        while let Some((sent, answer)) = self.in_flight.next().await {
            self.settle(sent, answer).await?;
        }
        Ok(())
    }

    /// Sends the unlocks, then the locks: a key may be in both, and session locks are re-entrant, so that in the other order
    /// whoever waits for it elsewhere would be passed over.
    async fn send_batch(&mut self, batch: impl Iterator<Item = Command>) -> Result<(), Lost> {
        let mut releases = Vec::new();
        let mut asked = Vec::new();
        let mut publications = Vec::new();
        let mut confirms = Vec::new();
        for command in batch {
            match command {
                Command::Unlock(release) => {
                    let doubtful = unlock(self.keys.forget(&release.locks));
                    // In this order, so that the first one's answer is about the lock that it had.
                    releases.push(release);
                    releases.extend(doubtful);
                }
                Command::Publish(publication) => publications.push(publication),
                Command::Confirm(reply) => confirms.push(reply),
                Command::Lock(Asked { reply, .. }) if reply.is_closed() => {}
                Command::Lock(ask) if self.keys.note(ask.claim.locks()) => asked.push(ask),
                Command::Lock(Asked { reply, .. }) => refuse(reply),
            }
        }
        if !releases.is_empty() {
            let confirms = std::mem::take(&mut confirms);
            self.send(Message::Unlock(releases), confirms).await?;
        }
        if !asked.is_empty() {
            let confirms = std::mem::take(&mut confirms);
            self.send(Message::Lock(asked), confirms).await?;
        }
        if !publications.is_empty() {
            // By itself: where it fails, nothing else does.
            let message = Message::Publish(publications);
            self.send(message, Vec::new()).await?;
        }
        if !confirms.is_empty() {
            self.send(Message::Empty, confirms).await?;
        }
        Ok(())
    }

    /// Queues a message behind those already sent; waits for nothing.
    async fn send(&mut self, message: Message, confirms: Vec<Confirmer>) -> Result<(), Lost> {
        let statement = message.statement(self.options.fencing);
        let at = Instant::now();
        let answer = self.connection.client.simple_query_raw(&statement).await;
        let answer = answer.map_err(|_| Lost)?;
        let sent = Sent {
            message,
            at,
            confirms,
        };
        self.in_flight
            .push_back(Box::pin(async { (sent, answer.try_collect().await) }));
        Ok(())
    }

    async fn settle(&mut self, sent: Sent, answer: Answer) -> Result<(), Lost> {
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
            Message::Lock(asked) => self.settle_locks(asked, answer).await,
            Message::Unlock(releases) => settle_unlocks(releases, answer),
            Message::Publish(publications) => {
                settle_publications(publications, &answer);
                Ok(())
            }
            Message::Empty => Ok(()),
        }
    }

    async fn settle_locks(&mut self, asked: Vec<Asked>, answer: Answer) -> Result<(), Lost> {
        let count = asked.iter().map(|ask| ask.claim.locks().len()).sum();
        match self.grants(answer, count) {
            Ok((grants, token)) => {
                let mut grants = grants.into_iter();
                let mut refused = Vec::new();
                for Asked { claim, reply } in asked {
                    // As many answers as keys, in their order.
                    let each = claim.locks().iter().zip(grants.by_ref());
                    let granted: Vec<Lock> = each
                        .filter_map(|(lock, granted)| granted.then_some(*lock))
                        .collect();
                    let is_whole = granted.len() == claim.locks().len();
                    let reply = if is_whole {
                        // A caller that has left does not take it.
                        match reply.send(token) {
                            Ok(()) => continue,
                            Err(_) => None,
                        }
                    } else {
                        Some(reply)
                    };
                    refused.push(Refused {
                        claim,
                        locks: granted,
                        reply,
                    });
                }
                self.take_back(refused).await
            }
            Err(reason) => {
                tracing::warn!(reason, keys = count, "a session's locks failed");
                // Some may have been granted before, and an error does not undo that.
                let mut refused = Vec::new();
                for Asked { claim, reply } in asked {
                    let locks = self.keys.in_doubt(claim.locks());
                    let reply = Some(reply);
                    refused.push(Refused {
                        claim,
                        locks,
                        reply,
                    });
                }
                self.take_back(refused).await
            }
        }
    }

    fn grants(
        &self,
        answer: Answer,
        count: usize,
    ) -> Result<(Vec<bool>, Option<FencingToken>), String> {
        let rows = answer.map_err(|error| chain(&error))?;
        let grants = answers(&rows, count).ok_or("not an answer for each key")?;
        let token = if self.options.fencing {
            Some(fencing_token(&rows).map_err(|error| error.to_string())?)
        } else {
            None
        };
        Ok((grants, token))
    }

    /// Refuses claims, and unlocks what may have been granted of them: a claim is granted as a whole or not at all.
    async fn take_back(&mut self, refused: Vec<Refused>) -> Result<(), Lost> {
        let mut releases = Vec::new();
        let mut replies = Vec::new();
        for refused in refused {
            releases.extend(unlock(self.keys.forget(refused.claim.locks())));
            releases.extend(unlock(refused.locks));
            replies.extend(refused.reply);
        }
        if !releases.is_empty() {
            self.send(Message::Unlock(releases), Vec::new()).await?;
        }
        // Only now, so that the next to ask this session comes behind the unlock.
        replies.into_iter().for_each(refuse);
        Ok(())
    }
}

/// A claim that is not granted, and what of it may be locked.
struct Refused {
    claim: Claim,
    locks: Vec<Lock>,
    reply: Option<Reply>,
}

/// Dropping a reply refuses.
fn refuse(reply: Reply) {
    drop(reply);
}

/// What nobody waits for.
fn unlock(locks: Vec<Lock>) -> Option<Release> {
    let confirm = Confirm::Nobody;
    (!locks.is_empty()).then_some(Release { locks, confirm })
}
