use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::lease::Lease;
use super::postgres::attempt::{Attempt, LEAVING, Settled};
use super::postgres::confirmation::{Confirmation, Confirmer, Unconfirmed, Urgency};
use super::postgres::options::HandOff;
use super::postgres::publish::Publication;
use super::postgres::session::lock::SessionLock;
use super::postgres::shared::LockTransaction;
use super::postgres::transaction::{Heart, TransactionLock};
use super::queue::{self, Baton};
use super::tasks::Tasks;
use super::token::FencingToken;
use crate::metrics;
use crate::realm::claim::Claim;

/// How long an attempt that nobody waits for stays in PostgreSQL's queue: the next caller for the
/// same claim goes on with it, and a cancellation would cost its connection.
const LINGER: Duration = Duration::from_millis(250);

pub(super) type Queue = queue::Queue<Obtained>;
pub(super) type Turn = queue::Turn<Obtained>;
pub(super) type Slot = queue::Slot<Obtained>;
pub(super) type Entry = queue::Entry<Obtained>;

/// What a caller has obtained for its claim, apart from the turn. It belongs to the queue.
pub(super) enum Obtained {
    /// A lock statement that is in flight.
    Asked(Attempt, Arc<GrantTerms>),
    Granted(Grant),
}

/// What all grants of the same locks have in common.
#[derive(Debug)]
pub(super) struct GrantTerms {
    pub(super) hand_off: HandOff,
    /// As whom this process publishes successful writes; `None` where it does not.
    pub(super) sender: Option<Arc<str>>,
    pub(super) tasks: Tasks,
}

/// A lock that this process has been granted.
///
/// It can serve several holds: one after the other, when it is handed on to the next local waiter
/// without a message to the server, and at the same time, when a task nests its holds. Other
/// replicas wait while it is handed on, so that is bounded.
pub(super) struct Grant {
    backend: Backend,
    grip: Grip,
    /// That of the current hold.
    token: Option<FencingToken>,
    /// `None` in process.
    terms: Option<Arc<GrantTerms>>,
    hand_offs_left: u32,
    hand_off_until: Option<Instant>,
    was_handed_on: bool,
    /// How many holds share it.
    holds: usize,
    /// The writes to publish when it is released.
    publications: Vec<Write>,
    /// What becomes of a shared transaction, once the hold that it was made for has ended.
    verdict: Option<Verdict>,
}

/// Where the lock is held.
enum Backend {
    InProcess,
    Transaction(Box<TransactionLock>),
    Session(Box<SessionLock>),
}

/// The write of a hold that has ended.
struct Write {
    publication: Publication,
    /// Whether the write was made in the shared transaction, and stands only if that commits.
    needs_commit: bool,
    /// Whether nothing that its hold has started writes any more.
    is_complete: bool,
}

/// A hold's part in its grant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Role {
    /// Whether the grant was made for this hold.
    pub(super) owns: bool,
    /// Whether its work could write in the shared transaction.
    pub(super) writes_in_transaction: bool,
    pub(super) publishes: Publishes,
}

/// When a grant publishes the write of one of its holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Publishes {
    /// Another one of those that a nested hold shares does.
    Never,
    /// As soon as the hold ends, if it can.
    AtOnce,
    /// At its own end: work of the hold goes on, and what that writes is a part of the hold's write.
    AtEnd,
}

enum Verdict {
    Commit(Confirmer),
    RollBack,
}

/// Shows a hold whether its lock is still there, and keeps its lease.
#[derive(Clone)]
pub(super) enum Grip {
    /// There is no lease. Only a test takes the lock away, with this signal.
    InProcess(Option<CancellationToken>),
    Transaction(Arc<Heart>),
    /// The session's own task sends the heartbeats, for all of its locks.
    Session(Arc<Lease>),
}

/// How the work of a hold has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It succeeded, and its caller waits for the confirmation.
    Success,
    /// It succeeded, and nobody waits for a confirmation.
    Unconfirmed,
    /// It announced a success, and broke off: whatever it wrote outside of a shared transaction may
    /// stand.
    BrokenOff,
    Failure,
}

/// What became of the lock of a hold that has left its grant, and the proof that it was held until
/// then, if there is one.
pub(super) type Left = (Fate, Option<Confirmation>);

/// What became of a lock at the end of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The next local waiter has it, or will have it.
    HandedOn,
    GivenBack,
    RolledBack,
    /// Other holds of the same task still need it.
    Kept,
}

impl Outcome {
    fn is_published(self) -> bool {
        self != Self::Failure
    }
}

impl Grant {
    pub(super) fn in_process() -> Self {
        let grip = Grip::InProcess(cfg!(feature = "test-util").then(CancellationToken::new));
        let token = FencingToken::in_process();
        Self::new(Backend::InProcess, grip, Some(token))
    }

    /// `contended`: whether somebody else had the lock, or waited for it.
    pub(super) fn transaction(
        transaction: Box<TransactionLock>,
        contended: bool,
        terms: &Arc<GrantTerms>,
    ) -> Self {
        let hand_off = if contended {
            terms.hand_off.contended()
        } else {
            terms.hand_off
        };
        let (grip, token) = (Grip::Transaction(transaction.heart()), transaction.token());
        Self::new(Backend::Transaction(transaction), grip, token).on(terms, hand_off)
    }

    pub(super) fn session(lock: SessionLock, terms: &Arc<GrantTerms>) -> Self {
        let (grip, token) = (Grip::Session(Arc::clone(lock.lease())), lock.token());
        Self::new(Backend::Session(Box::new(lock)), grip, token).on(terms, terms.hand_off)
    }

    /// A grant that is not handed on.
    fn new(backend: Backend, grip: Grip, token: Option<FencingToken>) -> Self {
        Self {
            backend,
            grip,
            token,
            terms: None,
            hand_offs_left: 0,
            hand_off_until: None,
            was_handed_on: false,
            holds: 1,
            publications: Vec::new(),
            verdict: None,
        }
    }

    fn on(self, terms: &Arc<GrantTerms>, hand_off: HandOff) -> Self {
        Self {
            terms: Some(Arc::clone(terms)),
            hand_offs_left: hand_off.max,
            // A bound too far away to be a point in time is none.
            hand_off_until: Instant::now().checked_add(hand_off.max_time),
            ..self
        }
    }

    pub(super) fn grip(&self) -> &Grip {
        &self.grip
    }

    pub(super) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    pub(super) fn shared(&self) -> Option<&LockTransaction> {
        match &self.backend {
            Backend::Transaction(transaction) => transaction.shared(),
            Backend::InProcess | Backend::Session(_) => None,
        }
    }

    /// Takes the lock away, as the death of its connection does.
    #[cfg(feature = "test-util")]
    pub(super) fn lose(&mut self) {
        match (&mut self.backend, &self.grip) {
            (Backend::Transaction(transaction), _) => transaction.lose(),
            (_, Grip::Session(lease)) => lease.lose(),
            (_, Grip::InProcess(Some(taken))) => taken.cancel(),
            _ => {}
        }
    }

    /// Lets one more hold of the same task share it, with a token that no later hold may reach;
    /// `false` if its last hold has left.
    pub(super) fn share(&mut self, token: Option<FencingToken>) -> bool {
        if self.holds == 0 {
            return false;
        }
        self.holds += 1;
        self.token = self.token.max(token);
        true
    }

    /// Makes a shared transaction roll back that was to commit after the work it waits for; `false`
    /// if there is none, or it is committing already.
    pub(super) fn withdraw(&mut self, problem: &str) -> bool {
        match self.verdict.take() {
            Some(Verdict::Commit(confirmer)) => {
                confirmer.publish(Err(Unconfirmed::NotCommitted(problem.into())));
                self.verdict = Some(Verdict::RollBack);
                true
            }
            other => {
                self.verdict = other;
                false
            }
        }
    }

    /// Ends one of the holds that share it; `None` if it was the last hold: [`end`](Self::end) the
    /// grant then.
    pub(super) fn leave(&mut self, claim: &Claim, outcome: Outcome, role: Role) -> Option<Left> {
        self.holds -= 1;
        if role.publishes != Publishes::Never && outcome.is_published() {
            self.publish(claim, role);
        }
        let mut proof = None;
        if self.shared().is_some() && role.owns {
            let commits = matches!(outcome, Outcome::Success | Outcome::Unconfirmed);
            self.verdict = Some(if commits {
                let confirmer = Confirmer::new();
                proof = Some(confirmer.confirmation());
                Verdict::Commit(confirmer)
            } else {
                Verdict::RollBack
            });
        } else if self.holds > 0 && outcome.is_published() {
            // What cannot be published yet goes with the end of the grant.
            let publication = if role.publishes == Publishes::AtOnce && self.can_publish() {
                self.take_complete()
            } else {
                None
            };
            if outcome == Outcome::Success || publication.is_some() {
                let sent = self.confirm(Urgency::Now, publication);
                proof = sent.filter(|_| outcome == Outcome::Success);
            }
        }
        (self.holds > 0).then_some((Fate::Kept, proof))
    }

    fn publish(&mut self, claim: &Claim, role: Role) {
        if let Some(sender) = self.terms.as_ref().and_then(|terms| terms.sender.as_ref()) {
            let publication = Publication::of(claim, self.token, sender);
            self.publications
                .extend(publication.map(|publication| Write {
                    publication,
                    needs_commit: role.writes_in_transaction,
                    is_complete: role.publishes == Publishes::AtOnce,
                }));
        }
    }

    /// Ends the grant after its last hold: hands it on to the next local waiter, or releases it.
    /// The proof comes while the next hold has begun.
    pub(super) fn end(mut self, turn: Turn, outcome: Outcome) -> Left {
        if matches!(self.backend, Backend::InProcess) {
            // The turn is all that there is.
            drop(turn);
            let is_success = outcome == Outcome::Success;
            return (
                if is_success {
                    Fate::GivenBack
                } else {
                    Fate::RolledBack
                },
                None,
            );
        }
        let commits = self.shared().is_none() || matches!(self.verdict, Some(Verdict::Commit(_)));
        let publication = self.take_publication(commits);
        if self.shared().is_some() {
            return self.end_shared(turn, outcome, publication);
        }
        if outcome != Outcome::Success && publication.is_none() {
            return self.end_unconfirmed(turn);
        }
        let terms = self.terms.clone();
        let (fate, proof) = self.end_proven(turn, publication);
        if outcome == Outcome::Success {
            return (fate, proof);
        }
        if let (Some(terms), Some(proof)) = (terms, proof) {
            // A shutdown waits until it is published.
            terms.tasks.spawn(async move {
                if !proof.is_positive().await {
                    tracing::warn!("a write could not be published: its lock was lost");
                }
            });
        }
        (fate, None)
    }

    /// All writes that stand.
    fn take_publication(&mut self, commits: bool) -> Option<Publication> {
        let all = std::mem::take(&mut self.publications);
        let stand = all.into_iter().filter(|it| commits || !it.needs_commit);
        joined(stand)
    }

    /// The writes that nothing is added to any more.
    fn take_complete(&mut self) -> Option<Publication> {
        let all = std::mem::take(&mut self.publications).into_iter();
        let (complete, rest): (Vec<_>, Vec<_>) = all.partition(|it| it.is_complete);
        self.publications = rest;
        joined(complete)
    }

    /// Ends a grant whose last hold needs a proof, and publishes its writes.
    fn end_proven(self, turn: Turn, publication: Option<Publication>) -> Left {
        if !self.may_be_handed_on() || publication.is_some() && !self.can_publish() {
            return self.give_back(turn, publication);
        }
        if turn.is_awaited() {
            let proof = self.confirm(Urgency::WithTheNext, publication);
            let fate = match self.hand_on(turn) {
                None => Fate::HandedOn,
                Some((turn, grant)) => grant.give_back(turn, None).0,
            };
            return (fate, proof);
        }
        if !self.was_handed_on {
            return self.give_back(turn, publication);
        }
        self.end_busy(turn, publication)
    }

    /// Ends the grant of a busy realm: its writers may all be waiting for this very proof, and come
    /// again with it.
    fn end_busy(self, turn: Turn, publication: Option<Publication>) -> Left {
        let proof = self.confirm(Urgency::Now, publication);
        let (Some(proof), Some(terms)) = (proof, self.terms.clone()) else {
            return self.give_back(turn, None);
        };
        let answered = proof.clone();
        terms.tasks.spawn(async move {
            if answered.is_positive().await {
                self.end_unconfirmed(turn);
            } else {
                // The lock is lost, though that may not have been noticed yet.
                self.release();
                drop(turn);
            }
        });
        (Fate::HandedOn, Some(proof))
    }

    /// Ends a grant for which nobody waits for a proof.
    fn end_unconfirmed(self, turn: Turn) -> Left {
        let (turn, grant) = if self.may_be_handed_on() && turn.is_awaited() {
            match self.hand_on(turn) {
                None => return (Fate::HandedOn, None),
                Some(back) => back,
            }
        } else {
            (turn, self)
        };
        // In this order: nobody asks for its keys before they are released.
        grant.release();
        drop(turn);
        (Fate::RolledBack, None)
    }

    /// Commits or rolls back a shared transaction. The next waiter asks when that is done.
    fn end_shared(self, turn: Turn, outcome: Outcome, publication: Option<Publication>) -> Left {
        let publication = publication.map(|it| it.statement());
        let (Backend::Transaction(transaction), Some(terms)) = (self.backend, self.terms) else {
            return (Fate::RolledBack, None);
        };
        let Some(Verdict::Commit(confirmer)) = self.verdict else {
            // A nested hold that has outlived the one that fails may be a success.
            let is_success = outcome == Outcome::Success;
            let proof = is_success.then(|| transaction.ping(Urgency::Now, None));
            transaction.roll_back(publication);
            drop(turn);
            return (Fate::RolledBack, proof);
        };
        let proof = confirmer.confirmation();
        terms.tasks.spawn(async move {
            let (answer, uncommitted) = transaction.commit_shared(publication).await;
            confirmer.publish(answer);
            drop(turn);
            if let Some(transaction) = uncommitted {
                transaction.roll_back_used(None).await;
            }
        });
        (Fate::GivenBack, Some(proof))
    }

    fn give_back(self, turn: Turn, publication: Option<Publication>) -> Left {
        let proof = match self.backend {
            Backend::InProcess => None,
            Backend::Transaction(transaction) => {
                let publication = publication.map(|it| it.statement());
                Some(transaction.commit(publication.as_deref()))
            }
            Backend::Session(lock) => Some(lock.unlock(publication)),
        };
        drop(turn);
        (Fate::GivenBack, proof)
    }

    /// Releases the lock without a proof.
    pub(super) fn release(self) {
        match self.backend {
            Backend::InProcess => {}
            Backend::Transaction(transaction) => transaction.roll_back(None),
            Backend::Session(lock) => lock.give_up(),
        }
    }

    /// Whether the lock is there and within its bounds. A handler may have left anything in a shared
    /// transaction.
    fn may_be_handed_on(&self) -> bool {
        self.hand_offs_left > 0
            && self.shared().is_none()
            && self.grip.is_firm()
            && self.hand_off_until.is_none_or(|end| Instant::now() < end)
    }

    /// Whether writes can be published while the lock is kept: a commit would take a handler's own
    /// statements along.
    fn can_publish(&self) -> bool {
        match &self.backend {
            Backend::Transaction(transaction) => {
                transaction.shared().is_none() && transaction.can_publish()
            }
            Backend::InProcess | Backend::Session(_) => true,
        }
    }

    /// Hands the lock on to the next local waiter for the same claim, with a token of its own; gives
    /// everything back if that has left.
    fn hand_on(self, turn: Turn) -> Option<(Turn, Self)> {
        let next = Self {
            token: self.token.map(FencingToken::next),
            hand_offs_left: self.hand_offs_left - 1,
            was_handed_on: true,
            holds: 1,
            ..self
        };
        match turn.hand_on(Obtained::Granted(next)) {
            Ok(()) => {
                metrics::handed_on();
                None
            }
            Err((turn, Obtained::Granted(grant))) => Some((turn, grant)),
            Err((_, Obtained::Asked(..))) => unreachable!("a grant was handed in"),
        }
    }

    /// Asks for the proof that the lock was held until now, and that the writes are published;
    /// others may use the lock meanwhile.
    fn confirm(&self, urgency: Urgency, publication: Option<Publication>) -> Option<Confirmation> {
        match &self.backend {
            Backend::InProcess => None,
            Backend::Transaction(transaction) => Some(transaction.ping(urgency, publication)),
            Backend::Session(lock) => Some(lock.confirm(publication)),
        }
    }
}

fn joined(writes: impl IntoIterator<Item = Write>) -> Option<Publication> {
    let publications = writes.into_iter().map(|it| it.publication);
    publications.reduce(|mut all, next| {
        all.append(next);
        all
    })
}

/// Looks at the grant in a slot; `None` if there is none, or none any more.
pub(super) fn with_grant<T>(slot: &Slot, look: impl FnOnce(&mut Grant) -> T) -> Option<T> {
    slot.with(|obtained| match obtained {
        Some(Obtained::Granted(grant)) => Some(look(grant)),
        _ => None,
    })?
}

impl Grip {
    /// Whether the lock is still there, as far as this process can know without asking.
    pub(super) fn is_firm(&self) -> bool {
        match self {
            Self::InProcess(taken) => taken.as_ref().is_none_or(|it| !it.is_cancelled()),
            Self::Transaction(heart) => heart.lease().is_current(),
            Self::Session(lease) => lease.is_current(),
        }
    }

    /// Resolves when the lock is lost. Only [`keep`](Self::keep) notices a missed heartbeat.
    pub(super) async fn lost(&self) {
        match self {
            Self::InProcess(Some(taken)) => taken.cancelled().await,
            Self::InProcess(None) => pending().await,
            Self::Transaction(heart) => heart.lease().lost().await,
            Self::Session(lease) => lease.lost().await,
        }
    }

    /// Keeps the lease while it is polled; resolves when the lock is lost.
    pub(super) async fn keep(&self) {
        match self {
            Self::Transaction(heart) => heart.keep().await,
            Self::InProcess(_) | Self::Session(_) => self.lost().await,
        }
    }

    /// Whether a server keeps the lock.
    pub(super) fn is_leased(&self) -> bool {
        !matches!(self, Self::InProcess(_))
    }
}

impl Baton for Obtained {
    fn orphan(self, turn: Turn) {
        match self {
            Self::Granted(grant) => {
                grant.end(turn, Outcome::Failure);
            }
            Self::Asked(attempt, terms) => leave(turn, attempt, terms),
        }
    }
}

/// Passes an attempt on to the next waiter for the same claim. With none it lingers.
fn leave(turn: Turn, attempt: Attempt, terms: Arc<GrantTerms>) {
    match turn.hand_on(Obtained::Asked(attempt, terms)) {
        Ok(()) => {}
        Err((turn, Obtained::Asked(attempt, terms))) => {
            let tasks = terms.tasks.clone();
            tasks.spawn(linger(turn, attempt, terms));
        }
        Err((turn, granted)) => granted.orphan(turn),
    }
}

/// Keeps an attempt in PostgreSQL's queue for the next caller, for a short time.
async fn linger(turn: Turn, mut attempt: Attempt, terms: Arc<GrantTerms>) {
    let newcomer = turn.watch();
    tokio::select! {
        biased;
        () = attempt.answered() => {
            if let Settled::Granted(lock, contended) = attempt.settle(Instant::now()).await {
                Grant::transaction(lock, contended, &terms).end_unconfirmed(turn);
            }
            return;
        }
        () = newcomer.notified() => {
            match turn.hand_on(Obtained::Asked(attempt, terms)) {
                Ok(()) => {}
                // It wants another claim: the server must leave the queue first.
                Err((turn, Obtained::Asked(attempt, _))) => end(turn, attempt).await,
                Err((turn, granted)) => granted.orphan(turn),
            }
            return;
        }
        () = sleep(LINGER) => {}
        () = terms.tasks.closing().cancelled() => {}
    }
    end(turn, attempt).await;
}

/// Cancels an attempt. The next waiter asks when the server is rid of it, or that takes too long.
async fn end(turn: Turn, attempt: Attempt) {
    let mut abandoned = pin!(attempt.abandon());
    let is_over = timeout(LEAVING, &mut abandoned).await.is_ok();
    drop(turn);
    if !is_over {
        abandoned.await;
    }
}
