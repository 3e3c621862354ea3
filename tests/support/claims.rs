//! Work outside of HTTP that stays inside its lock until the test lets it go.

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower_realm_lock::{Claim, LockError, RealmLocks, RealmUrl};

use super::database::TestDatabase;
use super::gate::{ORIGIN, postgres_locks_with};
use super::wait::PATIENCE;

/// A realm of these tests, by its name.
pub fn realm(name: &str) -> RealmUrl {
    let url = format!("{ORIGIN}/luke/{name}/");
    url.parse().expect("a realm URL")
}

/// The number that PostgreSQL locks for it.
pub fn realm_key(name: &str) -> i64 {
    tower_realm_lock::LockKey::of(&realm(name))
        .value()
        .expect("one number")
}

/// Some realms, whole.
pub fn whole<const N: usize>(names: [&str; N]) -> Claim {
    let claims = names.map(|name| Claim::realm(&realm(name)));
    let all = claims.into_iter().reduce(|all, one| all.and(&one));
    all.expect("at least one realm")
}

/// Some cards of a realm.
pub fn cards<const N: usize>(name: &str, paths: [&str; N]) -> Claim {
    Claim::resources(&realm(name), paths)
}

/// The ways in which locks are held, each with two replicas that exclude each other.
pub async fn strategies(database: &TestDatabase) -> Vec<(&'static str, [RealmLocks; 2])> {
    let transactions = || postgres_locks_with(database.url(), |builder| builder.pool_size(4));
    let sessions =
        || postgres_locks_with(database.url(), |builder| builder.sessions(2).pool_size(4));
    let in_process = RealmLocks::in_process();
    vec![
        ("transactions", [transactions().await, transactions().await]),
        ("sessions", [sessions().await, sessions().await]),
        ("both", [transactions().await, sessions().await]),
        ("in process", [in_process.clone(), in_process]),
    ]
}

/// Work that asks for a claim.
pub struct Work {
    entered: oneshot::Receiver<()>,
    end: oneshot::Sender<()>,
    task: JoinHandle<Result<(), LockError>>,
}

/// Asks for a claim on a task of its own.
pub fn work(locks: &RealmLocks, claim: &Claim) -> Work {
    let (locks, claim) = (locks.clone(), claim.clone());
    let (enter, entered) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let work = |_| async {
            // Nobody listens where the test is over.
            let _ = enter.send(());
            let _ = ended.await;
            Ok(())
        };
        locks.with_write_lock(&claim, work).await
    });
    Work { entered, end, task }
}

impl Work {
    /// Waits until it is inside its lock.
    pub async fn inside(mut self) -> Inside {
        let entered = timeout(PATIENCE, &mut self.entered).await;
        entered.expect("inside in time").expect("the lock");
        Inside(self)
    }

    /// Whether it waits still. True at once, so look only when something else has gone ahead.
    pub fn waits(&mut self) -> bool {
        self.entered.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    /// How it ended without ever having been inside.
    pub async fn refused(self) -> LockError {
        let ended = timeout(PATIENCE, self.task).await;
        ended
            .expect("an end in time")
            .expect("no panic")
            .unwrap_err()
    }
}

/// Work that is inside its lock.
pub struct Inside(Work);

impl Inside {
    /// Lets it end, and waits until its success is confirmed.
    pub async fn end(self) {
        let Work { end, task, .. } = self.0;
        let _ = end.send(());
        let ended = timeout(PATIENCE, task).await;
        ended
            .expect("an end in time")
            .expect("no panic")
            .expect("confirmed");
    }

    /// How it fails before the test has let it end.
    pub async fn failed(self) -> LockError {
        let Work { end, task, .. } = self.0;
        let failed = timeout(PATIENCE, task).await;
        drop(end);
        failed
            .expect("an end in time")
            .expect("no panic")
            .unwrap_err()
    }
}
