//! Clients that ask for a busy realm and leave again cost few logins, and a waiter that leaves
//! passes its place in PostgreSQL on to the next one.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use http::Request;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Layer, ServiceExt};
use tower_realm_lock::RealmWriteLockLayer;

use crate::support::claims::{realm_key, whole, work};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    Gate, Gated, Outcome, answered, code, gate, patch, postgres_layer_with, postgres_locks_with,
    queue,
};
use crate::support::proxy::{Opening, Proxy};
use crate::support::wait::wait_until;

const REALM: &str = "a";
const PATH: &str = "/luke/a/card";

/// How long each of the clients stays.
const STAY: Duration = Duration::from_micros(300);

/// How many logins all of them may cost.
const LOGINS: usize = 20;

/// How long an attempt may stay in PostgreSQL that nobody inherits.
const LINGER: Duration = Duration::from_secs(1);

/// How late an event may be on a busy machine.
const MARGIN: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_clients_that_leave_a_busy_realm_cost_few_logins_and_delay_nobody() {
    let mut seen = Vec::new();
    // How many clients there are, how many at a time, and the pause before the next one.
    for (count, side_by_side, pause) in [
        (10_000, 1, Duration::ZERO),
        (10_000, 2, Duration::ZERO),
        (2_000, 1, Duration::from_millis(1)),
    ] {
        let database = database().await;
        let proxy = Proxy::to(database.url()).await;
        let url = proxy.url(database.url());
        let layer = postgres_layer_with(&url, |builder| builder).await;
        let layer = layer.map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)));
        let (handler, mut gate) = gate();
        let plain = time_to_enter(&database, &layer, &handler, &mut gate).await;

        let foreign = database.hold(realm_key(REALM)).await;
        proxy.openings();
        let begin = Instant::now();
        let clients = (0..side_by_side).map(|_| {
            let (layer, handler) = (layer.clone(), handler.clone());
            tokio::spawn(async move {
                come_and_go(&layer, &handler, count / side_by_side, pause).await;
            })
        });
        for ended in join_all(clients).await {
            ended.unwrap();
        }
        let took = begin.elapsed();
        let logins = logins(&proxy);
        println!("{count} clients, {side_by_side} at a time: {logins} logins in {took:?}");
        seen.push(logins);
        assert!(gate.is_empty());

        // No waiter is left to inherit the attempt.
        database.wait_for_waiting(realm_key(REALM), 0).await;
        foreign.batch_execute("COMMIT").await.unwrap();
        let after = time_to_enter(&database, &layer, &handler, &mut gate).await;
        println!("until the next writer is inside: {plain:?} before, {after:?} after");
        assert!(after < plain + MARGIN, "{plain:?} before, {after:?} after");
    }
    assert!(seen.iter().all(|logins| *logins <= LOGINS), "{seen:?}");
}

#[tokio::test]
async fn a_writer_that_comes_right_after_them_waits_no_longer() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| builder).await;
    let layer = layer.map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)));
    let (handler, mut gate) = gate();
    let plain = time_to_enter(&database, &layer, &handler, &mut gate).await;
    let foreign = database.hold(realm_key(REALM)).await;
    come_and_go(&layer, &handler, 1000, Duration::ZERO).await;
    let write = patch(&layer, &handler, PATH);
    database.wait_for_waiting(realm_key(REALM), 1).await;
    let begin = Instant::now();
    foreign.batch_execute("COMMIT").await.unwrap();
    let inside = gate.entered().await;
    let after = begin.elapsed();
    inside.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    assert!(after < plain + MARGIN, "{plain:?} before, {after:?} after");
}

/// Sends clients one after the other, and drops each call after a moment.
async fn come_and_go(layer: &RealmWriteLockLayer, handler: &Gated, count: usize, pause: Duration) {
    for _ in 0..count {
        let request = Request::patch(PATH).body(String::new()).unwrap();
        let mut call = Box::pin(layer.layer(handler.clone()).oneshot(request));
        let begin = Instant::now();
        // A timer is not as fine.
        while begin.elapsed() < STAY {
            assert!((&mut call).now_or_never().is_none(), "it does not wait");
            tokio::task::yield_now().await;
        }
        drop(call);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

/// How many logins there were since the last call.
fn logins(proxy: &Proxy) -> usize {
    let openings = proxy.openings().into_iter();
    openings.filter(|one| *one == Opening::Login).count()
}

/// How long it takes until a writer is inside that waits in PostgreSQL, once the lock is free.
async fn time_to_enter(
    database: &TestDatabase,
    layer: &RealmWriteLockLayer,
    handler: &Gated,
    gate: &mut Gate,
) -> Duration {
    let foreign = database.hold(realm_key(REALM)).await;
    let write = patch(layer, handler, PATH);
    database.wait_for_waiting(realm_key(REALM), 1).await;
    let begin = Instant::now();
    foreign.batch_execute("COMMIT").await.unwrap();
    let inside = gate.entered().await;
    let waited = begin.elapsed();
    inside.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    waited
}

/// A place in PostgreSQL's queue: the backend, and since when it waits.
#[derive(Debug, PartialEq)]
struct Place {
    pid: i32,
    since: String,
}

/// The only place in the queue for the realm; `None` if nobody waits.
async fn place(client: &tokio_postgres::Client) -> Option<Place> {
    let query = format!(
        "SELECT pid, query_start::text FROM pg_locks JOIN pg_stat_activity USING (pid) \
         JOIN pg_database ON pg_database.oid = database \
         WHERE pg_database.datname = current_database() AND locktype = 'advisory' AND NOT granted \
         AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = {}",
        realm_key(REALM)
    );
    let rows = client.query(&query, &[]).await.unwrap();
    assert!(rows.len() <= 1, "{} wait", rows.len());
    rows.first().map(|row| Place {
        pid: row.get(0),
        since: row.get(1),
    })
}

/// Waits for the first place in the queue. The server notes a moment later since when it waits.
async fn first_place(client: &tokio_postgres::Client) -> Place {
    let mut found = None;
    wait_until("a waiter", async || {
        found = place(client).await;
        found.as_ref().is_some_and(|place| !place.since.is_empty())
    })
    .await;
    found.expect("it is there")
}

async fn leaves(caller: JoinHandle<Outcome>) {
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
}

/// Locks with transactions, and with sessions.
async fn layers(database: &TestDatabase) -> [RealmWriteLockLayer; 2] {
    let layer =
        |sessions| postgres_layer_with(database.url(), move |builder| builder.sessions(sessions));
    [layer(0).await, layer(1).await]
}

#[tokio::test]
async fn a_waiter_inherits_the_place_in_postgresql_of_one_that_leaves() {
    let database = database().await;
    let client = database.connect().await;
    for layer in layers(&database).await {
        let (handler, mut gate) = gate();
        let foreign = database.hold(realm_key(REALM)).await;
        let mut asking = patch(&layer, &handler, PATH);
        let first = first_place(&client).await;
        // Each heir leaves in its turn.
        for _ in 0..3 {
            let heir = queue(&layer, &handler, PATH);
            leaves(asking).await;
            asking = heir;
            for _ in 0..20 {
                assert_eq!(place(&client).await.as_ref(), Some(&first));
                tokio::task::yield_now().await;
            }
        }
        // An attempt that only lingered would be cancelled by now.
        sleep(LINGER + MARGIN).await;
        assert_eq!(place(&client).await.as_ref(), Some(&first));
        foreign.batch_execute("COMMIT").await.unwrap();
        let inside = gate.entered().await;
        let holder = database.holder_pid(realm_key(REALM)).await;
        assert_eq!(holder, Some(first.pid));
        inside.answer(200);
        assert_eq!(answered(asking).await.status(), 200);
        assert!(gate.is_empty());
        database.wait_for_granted(realm_key(REALM), 0).await;
    }
}

#[tokio::test]
async fn an_heir_waits_as_long_as_it_wants_to_though_the_first_waiter_would_not() {
    const SHORT: Duration = Duration::from_millis(600);
    const LONG: Duration = Duration::from_secs(3);
    const FREED: Duration = Duration::from_millis(1500);
    let database = database().await;
    for layer in layers(&database).await {
        for times_out in [true, false] {
            let (handler, mut gate) = gate();
            let foreign = database.hold(realm_key(REALM)).await;
            let begin = Instant::now();
            let first = patch(
                &layer
                    .clone()
                    .map_locks(|locks| locks.acquire_timeout(SHORT)),
                &handler,
                PATH,
            );
            database.wait_for_waiting(realm_key(REALM), 1).await;
            let heir = queue(
                &layer.clone().map_locks(|locks| locks.acquire_timeout(LONG)),
                &handler,
                PATH,
            );
            if times_out {
                let response = answered(first).await;
                assert_eq!(code(&response), "lock-timeout");
            } else {
                leaves(first).await;
            }
            sleep_until(begin + FREED).await;
            assert!(!heir.is_finished(), "its time is not over");
            assert_eq!(database.advisory_locks(realm_key(REALM)).await, (1, 1));
            foreign.batch_execute("COMMIT").await.unwrap();
            gate.entered().await.answer(200);
            assert_eq!(answered(heir).await.status(), 200);
            database.wait_for_granted(realm_key(REALM), 0).await;
        }
    }
}

#[tokio::test]
async fn an_heir_gives_up_at_its_own_deadline_and_leaves_no_queued_backend() {
    const SHORT: Duration = Duration::from_millis(600);
    let database = database().await;
    for layer in layers(&database).await {
        let (handler, gate) = gate();
        let foreign = database.hold(realm_key(REALM)).await;
        let patient = layer
            .clone()
            .map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)));
        let first = patch(&patient, &handler, PATH);
        database.wait_for_waiting(realm_key(REALM), 1).await;
        let begin = Instant::now();
        let heir = queue(
            &layer
                .clone()
                .map_locks(|locks| locks.acquire_timeout(SHORT)),
            &handler,
            PATH,
        );
        leaves(first).await;
        let response = answered(heir).await;
        let waited = begin.elapsed();
        assert_eq!(code(&response), "lock-timeout");
        assert!(waited >= SHORT && waited < SHORT + MARGIN, "{waited:?}");
        assert_gone_soon(&database).await;
        foreign.batch_execute("COMMIT").await.unwrap();
        assert!(gate.is_empty());
    }
}

#[tokio::test]
async fn a_waiter_that_leaves_no_heir_leaves_no_queued_backend() {
    let database = database().await;
    for layer in layers(&database).await {
        let patient = layer.map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)));
        let (handler, _gate) = gate();
        let _foreign = database.hold(realm_key(REALM)).await;
        let waiting = patch(&patient, &handler, PATH);
        database.wait_for_waiting(realm_key(REALM), 1).await;
        leaves(waiting).await;
        assert_gone_soon(&database).await;
    }
}

#[tokio::test]
async fn a_lock_that_is_granted_when_its_waiter_has_left_is_given_back() {
    let database = database().await;
    let other = postgres_locks_with(database.url(), |builder| builder).await;
    for layer in layers(&database).await {
        let (handler, mut gate) = gate();
        let foreign = database.hold(realm_key(REALM)).await;
        let waiting = patch(&layer, &handler, PATH);
        database.wait_for_waiting(realm_key(REALM), 1).await;
        leaves(waiting).await;
        foreign.batch_execute("COMMIT").await.unwrap();
        let begin = Instant::now();
        let writer = work(&other, &whole([REALM])).inside().await;
        let waited = begin.elapsed();
        assert!(waited < MARGIN, "{waited:?}");
        writer.end().await;
        assert!(gate.is_empty());
        let next = patch(&layer, &handler, PATH);
        gate.entered().await.answer(200);
        assert_eq!(answered(next).await.status(), 200);
    }
}

/// Fails unless the queue in PostgreSQL is empty within about a second.
async fn assert_gone_soon(database: &TestDatabase) {
    let begin = Instant::now();
    database.wait_for_waiting(realm_key(REALM), 0).await;
    let waited = begin.elapsed();
    assert!(waited < LINGER + MARGIN, "it waited for {waited:?}");
    // It stays away.
    sleep(Duration::from_millis(50)).await;
    assert_eq!(database.advisory_locks(realm_key(REALM)).await.1, 0);
}
