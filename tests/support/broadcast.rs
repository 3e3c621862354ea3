//! Replicas that tell of their writes, and what a listener hears of them.

use futures_util::StreamExt;
use tokio::time::timeout;
use tower_realm_lock::{RealmEvent, RealmLocks, RealmWrite, RealmWrites};

use super::claims::{whole, work};
use super::database::TestDatabase;
use super::gate::postgres_locks_with;
use super::wait::PATIENCE;

/// The next event of any kind.
pub async fn next(writes: &mut RealmWrites) -> RealmEvent {
    let event = timeout(PATIENCE, writes.next()).await;
    event.expect("an event in time").expect("it never ends")
}

/// The next event, which is a write.
pub async fn next_write(writes: &mut RealmWrites) -> RealmWrite {
    match next(writes).await {
        RealmEvent::Write(write) => write,
        other => panic!("{other:?}"),
    }
}

/// Waits until the listener may have missed something, and is back.
pub async fn expect_interruption(writes: &mut RealmWrites) {
    assert_eq!(next(writes).await, RealmEvent::Interrupted);
    assert_eq!(next(writes).await, RealmEvent::Resumed);
}

/// Locks that tell of their writes, with transactions and with sessions.
pub async fn telling(database: &TestDatabase) -> [RealmLocks; 2] {
    let with = |sessions| {
        postgres_locks_with(database.url(), move |builder| {
            builder.sessions(sessions).broadcast(true).fencing(true)
        })
    };
    [with(0).await, with(1).await]
}

/// A write of a realm that succeeds.
pub async fn succeed(locks: &RealmLocks, name: &str) {
    work(locks, &whole([name])).inside().await.end().await;
}
