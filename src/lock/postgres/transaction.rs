use std::sync::{Arc, Weak};

use tokio::time::{Instant, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::confirmation::{Confirmation, Unconfirmed, Urgency};
use super::connection::{Busy, is_disconnect};
use super::pool::Pooled;
use super::publish::Publication;
use super::shared::LockTransaction;
use crate::lock::error::chain;
use crate::lock::lease::Lease;
use crate::lock::token::FencingToken;
use crate::realm::claim::Claim;

/// Makes a transaction ready for the handler's statements: they run, and wait for their own locks,
/// for as long as the role's, the database's or the URL's settings let them. The mark is gone once
/// the transaction has ended, whoever ended it. A statement that fails releases the locks of the
/// innermost savepoint's transaction, and with this savepoint ours is not among them.
pub(super) const SHARE: &str = "; SET LOCAL statement_timeout TO DEFAULT; \
     SET LOCAL lock_timeout TO DEFAULT; \
     SELECT set_config('tower_realm_lock.shared', 'yes', true); SAVEPOINT tower_realm_lock";

/// Commits a shared transaction. If that is no longer the one that took the lock, the division
/// fails, and the rest of the message is skipped. In a transaction that an error has aborted the
/// statement fails too; a plain `COMMIT` would roll back without an error. The server does not
/// count a COMMIT against `statement_timeout`.
const COMMIT_SHARED: &str = "SELECT 1 / (current_setting('tower_realm_lock.shared', true) \
     IS NOT DISTINCT FROM 'yes')::int AS tower_realm_lock_commits; COMMIT";

/// How many locks are named in one list. PostgreSQL takes no more than 1,664 columns.
const MOST_LOCKS: usize = 500;

/// The column before a COMMIT.
const COMMITS: &str = "tower_realm_lock_commits";

/// A transaction that holds advisory locks, on its pooled connection. It can serve several holds,
/// one after the other.
///
/// It is ended by [`commit`](Self::commit), [`commit_shared`](Self::commit_shared) or
/// [`roll_back`](Self::roll_back). Dropping it closes its connection, which ends it too.
pub(in crate::lock) struct TransactionLock {
    heart: Arc<Heart>,
    claim: Claim,
    connection: Busy<Pooled>,
    token: Option<FencingToken>,
    shared: Option<LockTransaction>,
}

/// What keeps the lease of a transaction.
pub(in crate::lock) struct Heart {
    /// Weak: a handle of a hold may be kept for longer, and must not keep the connection open.
    client: Weak<Client>,
    /// Tells an operator what heartbeats are for: the server shows the last statement of each
    /// session.
    comment: Arc<str>,
    lease: Arc<Lease>,
}

impl TransactionLock {
    pub(super) fn new(
        claim: &Claim,
        comment: Arc<str>,
        connection: Busy<Pooled>,
        lease: Lease,
        token: Option<FencingToken>,
        share: bool,
    ) -> Self {
        let client = Arc::clone(&connection.client);
        let shared = share.then(|| LockTransaction::new(claim.clone(), Arc::clone(&client)));
        let heart = Heart {
            client: Arc::downgrade(&client),
            comment,
            lease: Arc::new(lease),
        };
        Self {
            heart: Arc::new(heart),
            claim: claim.clone(),
            connection,
            token,
            shared,
        }
    }

    /// Closes the connection, which ends the transaction.
    #[cfg(feature = "test-util")]
    pub(in crate::lock) fn lose(&mut self) {
        self.connection.close();
    }

    pub(in crate::lock) fn heart(&self) -> Arc<Heart> {
        Arc::clone(&self.heart)
    }

    pub(in crate::lock) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    pub(in crate::lock) fn shared(&self) -> Option<&LockTransaction> {
        self.shared.as_ref()
    }

    /// Sends one heartbeat; whether it was answered before the deadline.
    pub(super) async fn confirm(&self, deadline: Instant) -> bool {
        let sent = Instant::now();
        let beat = timeout_at(deadline, self.heart.beat()).await;
        let confirmed = matches!(beat, Ok(Ok(())));
        if confirmed {
            self.heart.lease.confirm(sent);
        }
        confirmed
    }

    /// Whether it can publish a write and keep its locks, of which each is then named three times
    /// in a list. Behind a pooler the session's locks could stay with a server that it lends to
    /// others.
    pub(in crate::lock) fn can_publish(&self) -> bool {
        self.connection.of_pooler().is_none() && self.claim.locks().len() <= MOST_LOCKS
    }

    /// Asks for the proof that the lock was held until now, and publishes a write if it
    /// [can](Self::can_publish); others may use the lock meanwhile.
    pub(in crate::lock) fn ping(
        &self,
        urgency: Urgency,
        publication: Option<Publication>,
    ) -> Confirmation {
        let Heart { comment, lease, .. } = &*self.heart;
        let publication = publication.map(|it| (it, &self.claim));
        self.connection.ping(urgency, comment, lease, publication)
    }

    /// Releases the lock, and publishes a write; the answer proves that the lock was held until now.
    pub(in crate::lock) fn commit(self, publication: Option<&str>) -> Confirmation {
        let Some(publication) = publication else {
            return self.end(["COMMIT"]);
        };
        if self.connection.of_pooler().is_some() {
            // A pooler must see the COMMIT.
            return self.end([publication, "COMMIT"]);
        }
        self.end([&*format!("{publication}; COMMIT")])
    }

    /// Ends the transaction, and gives the connection back before the server has answered: what is
    /// sent on it next comes after that.
    fn end<'a>(self, messages: impl IntoIterator<Item = &'a str>) -> Confirmation {
        let patience = self.heart.lease.patience();
        let answer = self.connection.ask(messages, patience);
        let mut connection = self.connection.into_idle();
        connection.ending = Some(answer.clone());
        connection.give_back();
        answer
    }

    /// Rolls back whatever a handler wrote in a shared transaction, and releases the lock. If the
    /// lock is lost, or the handler still uses its client, the connection is closed. Publishes
    /// the writes of nested holds all the same.
    pub(in crate::lock) fn roll_back(self, publication: Option<String>) {
        let is_closed = self.close_shared();
        if is_closed && !self.is_used() && self.heart.lease.is_current() {
            match publication {
                Some(publication) => drop(self.commit(Some(&publication))),
                None => drop(self.end(["ROLLBACK"])),
            }
            return;
        }
        let tasks = self.connection.tasks.clone();
        tasks.spawn(self.roll_back_used(publication));
    }

    /// The same, to its end.
    pub(in crate::lock) async fn roll_back_used(self, publication: Option<String>) {
        // Code of a handler that goes on with the client would go on in the connection's next
        // transaction, or in none.
        if self.close_shared() && self.heart.lease.is_current() {
            let deadline = self.heart.lease.ends();
            let rolled_back = self.connection.roll_back_shared(publication);
            if let Ok(is_as_new) = timeout_at(deadline, rolled_back).await {
                if is_as_new {
                    self.connection.into_idle().give_back();
                }
                return;
            }
        }
        if !self.connection.is_closed() {
            // A statement of the handler's may still run there, and hold the lock.
            self.connection.canceller().cancel().await;
        }
    }

    /// Commits what a handler wrote in a shared transaction, which releases the lock. The answer
    /// proves that the lock was held until then. It comes before the lease ends.
    ///
    /// Returns itself, too, where it did not commit: [roll it back](Self::roll_back_used).
    ///
    /// # Cancel safety
    ///
    /// If dropped, the connection is closed, and the transaction commits or not.
    pub(in crate::lock) async fn commit_shared(
        self,
        publication: Option<String>,
    ) -> (Result<(), Unconfirmed>, Option<Self>) {
        let is_closed = self.close_shared();
        if is_closed && !self.is_used() {
            let answer = self.commit(publication.as_deref()).answered().await;
            return (answer, None);
        }
        let answer = tokio::select! {
            // First: an answer is the proof, even where the connection ends right after it.
            biased;
            answer = self.commit_used(is_closed, publication) => answer,
            () = self.heart.keep() => Err(Unconfirmed::Lost),
        };
        match answer {
            Ok(is_as_new) => {
                if is_as_new {
                    self.connection.into_idle().give_back();
                }
                (Ok(()), None)
            }
            Err(unconfirmed) => {
                if let Unconfirmed::NotCommitted(problem) = &unconfirmed {
                    let claim = self.shared.as_ref().map(LockTransaction::claim);
                    let claim = claim.map(tracing::field::display);
                    tracing::warn!(claim, %problem, "a shared transaction could not commit");
                }
                (Err(unconfirmed), Some(self))
            }
        }
    }

    /// Commits, and undoes what the handler did to the session. Returns whether the session is then
    /// as good as new.
    async fn commit_used(
        &self,
        is_closed: bool,
        publication: Option<String>,
    ) -> Result<bool, Unconfirmed> {
        if !is_closed {
            return Err(not_committed("the handler still has its client in use"));
        }
        // The COMMIT would wait behind it.
        if let Some(obstacle) = self.connection.obstacle().await {
            return Err(not_committed(&obstacle.to_string()));
        }
        let publication = publication.map_or_else(String::new, |statement| statement + "; ");
        // One message, so that a pooler has it run on one server.
        let reset = self.connection.reset();
        let message = format!("{publication}{COMMIT_SHARED}; {reset}");
        let (rows, error) = self.connection.rows(&message).await;
        match error {
            // An error after it is one of the reset.
            _ if is_committed(&rows) => Ok(error.is_none() && self.connection.is_as_new(&rows)),
            Some(error) if !is_disconnect(&error) => Err(not_committed(&reason(&error))),
            _ => Err(Unconfirmed::Lost),
        }
    }

    /// Whether a handler had the client of a shared transaction.
    fn is_used(&self) -> bool {
        self.shared.as_ref().is_some_and(LockTransaction::is_used)
    }

    fn close_shared(&self) -> bool {
        self.shared.as_ref().is_none_or(LockTransaction::close)
    }
}

impl Heart {
    pub(in crate::lock) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Keeps the lease while it is polled; resolves when the lock is lost.
    pub(in crate::lock) async fn keep(&self) {
        self.lease.keep(|| self.beat()).await;
    }

    /// An empty query, except for a comment.
    async fn beat(&self) -> Result<(), Unconfirmed> {
        let client = self.client.upgrade().ok_or(Unconfirmed::Lost)?;
        let beat = client.batch_execute(&self.comment).await;
        beat.map_err(|_| Unconfirmed::Lost)
    }
}

/// Whether the server has answered the COMMIT of [`COMMIT_SHARED`].
fn is_committed(rows: &[SimpleQueryMessage]) -> bool {
    let proven = rows.iter().skip_while(|row| match row {
        SimpleQueryMessage::Row(row) => row.columns().iter().all(|it| it.name() != COMMITS),
        _ => true,
    });
    let ended = proven.filter(|row| matches!(row, SimpleQueryMessage::CommandComplete(_)));
    // The statement with that column, and the next.
    ended.count() >= 2
}

fn not_committed(problem: &str) -> Unconfirmed {
    Unconfirmed::NotCommitted(problem.into())
}

/// Why a shared transaction did not commit.
fn reason(error: &Error) -> String {
    if error.code() == Some(&SqlState::DIVISION_BY_ZERO) {
        return "the handler ended it with a COMMIT, ROLLBACK or PREPARE TRANSACTION of its own, \
                and so its lock"
            .into();
    }
    chain(error)
}
