//! Another program takes the keys of a claim in another order, and PostgreSQL breaks the deadlock by
//! refusing this side.

use std::time::Duration;

use tower_realm_lock::{Claim, LockErrorKind, LockKey};

use crate::support::claims::work;
use crate::support::database::database;
use crate::support::gate::postgres_locks_with;
use crate::support::log::Log;
use crate::support::wait::PATIENCE;

#[tokio::test]
async fn the_victim_of_a_deadlock_asks_again_and_the_log_names_the_other() {
    let database = database().await;
    // Only this side looks for deadlocks, once, when the other has surely come to wait.
    let set = format!(
        "ALTER DATABASE {} SET deadlock_timeout = '2s'",
        database.name()
    );
    database.connect().await.batch_execute(&set).await.unwrap();
    let [first, second] = [1, 2];
    let claim = Claim::from(LockKey::from_raw(second)).and(&LockKey::from_raw(first).into());
    for sessions in [0, 1] {
        let log = Log::collect();
        let locks = postgres_locks_with(database.url(), |it| it.sessions(sessions)).await;
        let locks = locks.acquire_timeout(PATIENCE);
        let other = database.hold(second).await;
        let named = "SET deadlock_timeout = '1h'; SET application_name = 'another program'";
        other.batch_execute(named).await.unwrap();
        let who = "SELECT pg_backend_pid(), current_user::text";
        let row = other.query_one(who, &[]).await.unwrap();
        let (pid, user): (i32, String) = (row.get(0), row.get(1));
        let victim = work(&locks, &claim);
        database.wait_for_waiting(second, 1).await;
        let ask = format!("SELECT pg_advisory_xact_lock({first})");
        other.batch_execute(&ask).await.expect("the other goes on");
        // It asks again for what the other has by now.
        database.wait_for_waiting(first, 1).await;
        let warned = log.take_at("WARN");
        let named = format!("other=\"process {pid}, {user}, another program, ");
        let warned_of = |part: &str| warned.iter().any(|line| line.contains(part));
        assert!(warned_of(&named) && warned_of(&ask), "{warned:?}");
        other.batch_execute("COMMIT").await.unwrap();
        victim.inside().await.end().await;
    }
}

#[tokio::test]
async fn the_victim_of_a_deadlock_gives_up_at_its_own_deadline() {
    let database = database().await;
    let set = format!(
        "ALTER DATABASE {} SET deadlock_timeout = '1s'",
        database.name()
    );
    database.connect().await.batch_execute(&set).await.unwrap();
    let claim = Claim::from(LockKey::from_raw(1)).and(&LockKey::from_raw(2).into());
    let locks = postgres_locks_with(database.url(), |it| it).await;
    let locks = locks.acquire_timeout(Duration::from_secs(3));
    let other = database.hold(2).await;
    other
        .batch_execute("SET deadlock_timeout = '1h'")
        .await
        .unwrap();
    let victim = work(&locks, &claim);
    database.wait_for_waiting(2, 1).await;
    other
        .batch_execute("SELECT pg_advisory_xact_lock(1)")
        .await
        .unwrap();
    let error = victim.refused().await;
    assert_eq!(error.kind(), LockErrorKind::Timeout, "{error}");
}
