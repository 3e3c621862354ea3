//! However busy this process is, others get their turn: hand-off is bounded in count and in time.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tower_realm_lock::{LockError, PostgresBuilder, RealmLocks, RealmUrl};

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{gate, key, patch, postgres_layer_with, postgres_locks_with, queue};
use crate::support::load::{Call, Log, PATH, REALM, Writers};
use crate::support::wait::PATIENCE;

/// A bound that the noise of a busy machine does not reach.
const BOUND: Duration = Duration::from_millis(400);

/// What a caller may wait longer on such a machine.
const SLACK: Duration = Duration::from_millis(200);

fn realm() -> RealmUrl {
    crate::support::gate::realms()
        .resolve(PATH)
        .expect("a realm")
}

/// Turns that a share is measured over, of both replicas together.
///
/// A turn is bounded by time, and how many calls fit in it depends on the machine: on a busy one it was 40 to 513.
const TURNS: usize = 160;

/// Which part of the calls was the first replica's, in whole turns from the time when both had been inside.
fn share_of_the_first(calls: &[Call]) -> f64 {
    let turns: Vec<_> = calls
        .chunk_by(|one, next| one.replica == next.replica)
        .collect();
    // The first turn has no end before the other replica asks, and the last one has not ended yet.
    let turns = &turns[1..=TURNS];
    let calls = turns.iter().map(|turn| turn.len()).sum::<usize>();
    let first = turns.iter().filter(|turn| turn[0].replica == 0);
    let first = first.map(|turn| turn.len()).sum::<usize>();
    // Some tens of thousands: the numbers are small.
    #[allow(clippy::cast_precision_loss)]
    let share = first as f64 / calls as f64;
    share
}

/// The share of the first of two replicas, each with as many writers.
async fn share<W: Future<Output = ()> + Send + 'static>(
    writers: usize,
    work: impl Fn() -> W + Clone + Send + Sync + 'static,
) -> f64 {
    let database = database().await;
    let log = Log::default();
    let mut replicas = Vec::new();
    for replica in 0..2 {
        let layer = postgres_layer_with(database.url(), |builder| builder).await;
        replicas.push(Writers::start(writers, &layer, replica, &log, work.clone()));
    }
    log.wait_for_turns(TURNS + 2).await;
    let seen = log.calls();
    for writers in replicas {
        writers.stop().await;
    }
    log.assert_alone();
    assert_eq!(log.rejected(), 0);
    // Nobody misses the moment when his answer comes, and waits for a time-out.
    assert!(
        log.slowest() < Duration::from_secs(5),
        "{:?}",
        log.slowest()
    );
    share_of_the_first(&seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_with_equal_load_share_a_realm() {
    let share = share(40, async || {}).await;
    assert!((0.4..=0.6).contains(&share), "{share}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_with_equal_load_share_a_realm_whose_handlers_take_time() {
    let share = share(20, || sleep(Duration::from_millis(1))).await;
    assert!((0.4..=0.6).contains(&share), "{share}");
}

/// How long one request of a replica that has asked for nothing else waits.
async fn wait_of_one(third: &RealmLocks) -> Duration {
    let asked = Instant::now();
    let entered = third
        .with_write_lock(&realm(), |_| async { Ok::<_, LockError>(Instant::now()) })
        .await;
    entered.unwrap() - asked
}

fn bounded(builder: PostgresBuilder) -> PostgresBuilder {
    builder.max_hand_offs(u32::MAX).max_hand_off_time(BOUND)
}

/// Writers of a replica that hands on for as long as it may.
async fn busy(database: &TestDatabase, replica: usize, log: &Log) -> Writers {
    let layer = postgres_layer_with(database.url(), bounded).await;
    Writers::start(10, &layer, replica, log, || sleep(Duration::from_millis(1)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_waits_for_one_bound_behind_two_busy_replicas() {
    let database = database().await;
    let third = postgres_locks_with(database.url(), bounded).await;
    let log = Log::default();
    let replicas = [
        busy(&database, 0, &log).await,
        busy(&database, 1, &log).await,
    ];
    // Both have had to wait for the other one.
    for _ in 0..3 {
        log.wait_for_switch().await;
    }
    for _ in 0..4 {
        // The worst moment: the one inside has all its time before it, and the other one stands behind it already.
        log.wait_for_switch().await;
        database.wait_for_waiting(key(REALM), 1).await;
        let waited = wait_of_one(&third).await;
        assert!(waited < BOUND + SLACK, "{waited:?}");
        assert!(waited > BOUND / 2, "{waited:?}");
    }
    for writers in replicas {
        writers.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_waits_for_one_bound_behind_a_busy_replica() {
    let database = database().await;
    let other = postgres_locks_with(database.url(), bounded).await;
    let log = Log::default();
    let writers = busy(&database, 0, &log).await;
    for _ in 0..6 {
        // It has the realm for itself again.
        log.wait_for_more(100).await;
        let waited = wait_of_one(&other).await;
        assert!(waited < BOUND + SLACK, "{waited:?}");
    }
    writers.stop().await;
}

/// Another program's session that asks for the lock, and stands in PostgreSQL's queue when this returns.
async fn foreign(database: &TestDatabase) -> JoinHandle<Client> {
    let client = database.connect().await;
    let asked = tokio::spawn(async move {
        let lock = format!("BEGIN; SELECT pg_advisory_xact_lock({})", key(REALM));
        client.batch_execute(&lock).await.unwrap();
        client
    });
    database.wait_for_waiting(key(REALM), 1).await;
    asked
}

/// Waits until it has the lock.
async fn inside(foreign: JoinHandle<Client>) -> Client {
    let granted = timeout(PATIENCE, foreign).await;
    granted.expect("it gets its turn").unwrap()
}

#[tokio::test]
async fn another_program_gets_in_after_as_many_hand_offs_as_allowed() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| {
        builder
            .max_hand_offs(3)
            .max_hand_off_time(Duration::from_secs(3600))
    })
    .await;
    let (handler, mut gate) = gate();
    let mut writes = vec![patch(&layer, &handler, PATH)];
    let mut call = gate.entered().await;
    writes.extend((1..12).map(|_| queue(&layer, &handler, PATH)));
    let mut left = 12;
    // The first time nobody else had asked. Then there was somebody, and half of it must do.
    for holds in [4, 2, 2] {
        let foreign = foreign(&database).await;
        for _ in 1..holds {
            call.answer(200);
            call = gate.entered().await;
            assert!(!foreign.is_finished());
        }
        call.answer(200);
        let foreign = inside(foreign).await;
        database.wait_for_waiting(key(REALM), 1).await;
        assert!(gate.is_empty());
        left -= holds;
        foreign.batch_execute("COMMIT").await.unwrap();
        call = gate.entered().await;
    }
    // Nobody else waits any more, but this lock was waited for.
    for _ in 1..left {
        call.answer(200);
        call = gate.entered().await;
    }
    call.answer(200);
    for write in writes {
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn another_program_gets_in_when_the_time_of_hand_offs_is_over() {
    let database = database().await;
    let log = Log::default();
    let writers = busy(&database, 0, &log).await;
    for _ in 0..3 {
        log.wait_for_more(100).await;
        let asked = Instant::now();
        let foreign = inside(foreign(&database).await).await;
        let waited = asked.elapsed();
        assert!(waited < BOUND + SLACK, "{waited:?}");
        let before = log.calls().len();
        database.wait_for_waiting(key(REALM), 1).await;
        assert_eq!(log.calls().len(), before);
        foreign.batch_execute("COMMIT").await.unwrap();
    }
    writers.stop().await;
    log.assert_alone();
}

#[tokio::test]
async fn a_call_that_outlasts_the_bound_is_the_last_one() {
    let database = database().await;
    let bound = Duration::from_millis(50);
    let layer = postgres_layer_with(database.url(), |builder| builder.max_hand_off_time(bound));
    let layer = layer.await;
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let next = queue(&layer, &handler, PATH);
    let foreign = foreign(&database).await;
    sleep(bound).await;
    call.answer(200);
    let foreign = inside(foreign).await;
    assert!(gate.is_empty());
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    foreign.batch_execute("COMMIT").await.unwrap();
    gate.entered().await.answer(200);
    assert_eq!(next.await.unwrap().unwrap().status(), 200);
}
