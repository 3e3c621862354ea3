//! Locks through a PgBouncer that hands its server connections from transaction to transaction.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Request;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, SimpleQueryMessage};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{LockError, RealmLocks, RealmUrl, RealmWriteLockLayer, RealmWrites};

use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::broadcast::{expect_interruption, next_write};
use crate::support::claims::{cards, realm_key, whole};
use crate::support::database::{TestDatabase, database, try_connect};
use crate::support::gate::{
    answered, assert_lost, at_once, code, gate, key, patch, postgres_layer, postgres_layer_with,
    postgres_locks_with, realms,
};
use crate::support::proxy::Proxy;
use crate::support::silence::{assert_out_before_the_next, assert_waiters_leave_nothing};
use crate::support::wait::PATIENCE;

const PATH: &str = "/luke/a/card";

/// A PgBouncer in transaction mode, with `pool_size` connections to the database.
async fn bouncer(database: &TestDatabase, pool_size: u32) -> Bouncer {
    Bouncer::to(database.url(), Pooling::Transaction, pool_size).await
}

async fn layer(url: &str) -> RealmWriteLockLayer {
    postgres_layer(url).await
}

/// A client that keeps one of PgBouncer's server connections to itself until its transaction ends.
async fn occupant(url: &str) -> Client {
    let client = try_connect(url).await.unwrap();
    client.batch_execute("BEGIN; SELECT 1").await.unwrap();
    client
}

/// Has both replicas add fields of their own to one card at the same time, each time by reading the card and writing it
/// back. How many fields are missing at the end.
async fn lost_fields(replicas: [RealmLocks; 2]) -> usize {
    const ROUNDS: usize = 50;
    /// Time between the read and the write, which makes the race visible.
    const DELAY: Duration = Duration::from_millis(2);
    let realm: RealmUrl = "http://realms.test/luke/a/".parse().unwrap();
    let card: Arc<Mutex<BTreeSet<(usize, usize)>>> = Arc::default();
    let add = async |round, side: usize| {
        let card = Arc::clone(&card);
        let merge = move |_| async move {
            let mut fields = card.lock().unwrap().clone();
            sleep(DELAY).await;
            fields.insert((round, side));
            *card.lock().unwrap() = fields;
            Ok::<_, LockError>(())
        };
        replicas[side].with_write_lock(&realm, merge).await.unwrap();
    };
    let all = async {
        for round in 0..ROUNDS {
            tokio::join!(add(round, 0), add(round, 1));
        }
    };
    timeout(PATIENCE, all).await.expect("all writes in time");
    2 * ROUNDS - card.lock().unwrap().len()
}

#[tokio::test]
async fn no_update_of_two_replicas_is_lost() {
    let database = database().await;
    // With a single server connection PgBouncer itself would let in one at a time.
    let bouncer = bouncer(&database, 4).await;
    let replica = async || {
        let url = bouncer.url(database.url());
        RealmLocks::postgres(&url).await.unwrap()
    };
    assert_eq!(lost_fields([replica().await, replica().await]).await, 0);
}

#[tokio::test]
async fn without_a_common_lock_updates_are_lost() {
    let replicas = [RealmLocks::in_process(), RealmLocks::in_process()];
    assert!(lost_fields(replicas).await > 0);
}

#[tokio::test]
async fn a_client_gone_while_it_waits_leaves_no_queued_backend_and_no_unusable_connection() {
    let database = database().await;
    // A CancelRequest goes through PgBouncer too, which needs a connection of its own to pass it on.
    let bouncer = bouncer(&database, 1).await;
    let layer =
        postgres_layer_with(&bouncer.url(database.url()), |builder| builder.pool_size(1)).await;
    assert_waiters_leave_nothing(&database, &layer).await;
}

#[tokio::test]
async fn a_silent_replica_loses_its_lock_before_the_server_lets_the_next_one_in() {
    let database = database().await;
    let bouncer = bouncer(&database, 2).await;
    let url = bouncer.url(database.url());
    // The network between replica and PgBouncer. PgBouncer itself never gives up a client that is silent in a transaction:
    // only the limit that the lock statement set in that transaction does.
    let proxy = Proxy::to(&url).await;
    let lease = Duration::from_millis(1500);
    let cut_off = RealmLocks::postgres_builder(&proxy.url(&url))
        .lease(lease)
        .build()
        .await
        .unwrap();
    let cut_off = RealmWriteLockLayer::new(cut_off, realms());
    let other = layer(&url).await;
    let (handler, mut gate) = gate();
    let write = patch(&cut_off, &handler, PATH);
    let call = gate.entered().await;
    let next = patch(&other, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    assert_out_before_the_next(&proxy, lease, (call, write), next, &mut gate).await;
}

#[tokio::test]
async fn the_limits_of_a_hold_do_not_stay_on_the_server_connection() {
    let database = database().await;
    let bouncer = bouncer(&database, 1).await;
    let url = bouncer.url(database.url());
    let layer = layer(&url).await;
    let through_bouncer = try_connect(&url).await.unwrap();
    let defaults = limits(&database.connect().await).await;
    let (handler, mut gate) = gate();

    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let backend = database.holder_pid(key(PATH)).await.expect("a holder");
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    assert_eq!(limits(&through_bouncer).await, defaults, "after a hold");
    assert_eq!(pid(&through_bouncer).await, backend);

    let holder = database.hold(key(PATH)).await;
    let impatient = layer
        .clone()
        .map_locks(|locks| locks.acquire_timeout(Duration::from_millis(100)));
    let refused = answered(patch(&impatient, &handler, PATH)).await;
    assert_eq!(code(&refused), "lock-timeout");
    assert_eq!(limits(&through_bouncer).await, defaults, "after a time-out");
    assert_eq!(pid(&through_bouncer).await, backend);
    drop(holder);
}

/// Whatever a hold limits, as the session sees it.
async fn limits(client: &Client) -> [String; 2] {
    [
        answer(client, "SHOW lock_timeout").await,
        answer(client, "SHOW idle_in_transaction_session_timeout").await,
    ]
}

async fn pid(client: &Client) -> i32 {
    let pid = answer(client, "SELECT pg_backend_pid()").await;
    pid.parse().expect("a process id")
}

/// The first value that the server answers, without the prepared statement that PgBouncer could not keep.
async fn answer(client: &Client, query: &str) -> String {
    let rows = client.simple_query(query).await.unwrap();
    let value = rows.iter().find_map(|row| match row {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    value.expect("a value").to_owned()
}

#[tokio::test]
async fn a_backend_that_ends_behind_the_bouncer_is_a_lost_lock() {
    let database = database().await;
    let bouncer = bouncer(&database, 2).await;
    let layer = layer(&bouncer.url(database.url())).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let mut call = gate.entered().await;
    let backend = database.holder_pid(key(PATH)).await.expect("a holder");
    database.terminate(backend).await;
    call.dropped().await;
    assert_lost(&answered(write).await);

    let next = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

#[tokio::test]
async fn many_realms_are_written_over_fewer_server_connections() {
    const REALMS: usize = 40;
    let database = database().await;
    let bouncer = bouncer(&database, 2).await;
    // Ten lock connections for two of PgBouncer's, and another replica's ten.
    let url = bouncer.url(database.url());
    let replicas = [layer(&url).await, layer(&url).await];
    let mut writes = JoinSet::new();
    for n in 0..2 * REALMS {
        let service = replicas[n % 2].layer(service_fn(at_once));
        let request = Request::patch(format!("/luke/{}/card", n / 2));
        writes.spawn(service.oneshot(request.body(String::new()).unwrap()));
    }
    let writes = timeout(PATIENCE, writes.join_all()).await;
    for write in writes.expect("all answers in time") {
        assert_eq!(write.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_wait_for_a_server_connection_is_bounded_like_one_for_the_lock() {
    let database = database().await;
    let bouncer = bouncer(&database, 1).await;
    let url = bouncer.url(database.url());
    let layer = layer(&url).await;
    let limit = Duration::from_millis(300);
    let impatient = layer
        .clone()
        .map_locks(|locks| locks.acquire_timeout(limit));
    let (handler, mut gate) = gate();

    let occupant = occupant(&url).await;
    let start = Instant::now();
    let refused = answered(patch(&impatient, &handler, PATH)).await;
    assert!(start.elapsed() < 5 * limit, "{:?}", start.elapsed());
    assert_eq!(code(&refused), "lock-timeout");
    occupant.batch_execute("COMMIT").await.unwrap();

    // A holder keeps the server connection too, and its release needs no other.
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let start = Instant::now();
    let refused = answered(patch(&impatient, &handler, "/luke/b/card")).await;
    assert!(start.elapsed() < 5 * limit, "{:?}", start.elapsed());
    assert_eq!(refused.status(), 503);
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);

    // Whoever gave up has left nothing in the way.
    bouncer.wait_for_waiting(0).await;
    let next = patch(&layer, &handler, "/luke/b/card");
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

#[tokio::test]
async fn a_client_gone_while_it_waits_for_a_server_connection_leaves_no_lock() {
    let database = database().await;
    let bouncer = bouncer(&database, 1).await;
    let url = bouncer.url(database.url());
    let layer = layer(&url).await;
    let (handler, mut gate) = gate();
    let occupant = occupant(&url).await;

    let waiting = patch(&layer, &handler, PATH);
    bouncer.wait_for_waiting(1).await;
    waiting.abort();
    // PgBouncer knows of no backend to cancel, and does not look at a client that waits: it will still pass the lock
    // statement on, to a server that grants it.
    occupant.batch_execute("COMMIT").await.unwrap();

    let next = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
    bouncer.wait_for_waiting(0).await;
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn a_bouncer_in_session_mode_does_as_well() {
    let database = database().await;
    let bouncer = Bouncer::to(database.url(), Pooling::Session, 2).await;
    let url = bouncer.url(database.url());
    let (handler, mut gate) = gate();
    let replica = async || {
        let builder = RealmLocks::postgres_builder(&url).pool_size(1);
        RealmWriteLockLayer::new(builder.build().await.unwrap(), realms())
    };
    let replicas = [replica().await, replica().await];
    let first = patch(&replicas[0], &handler, PATH);
    let inside = gate.entered().await;
    let second = patch(&replicas[1], &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    inside.answer(200);
    assert_eq!(answered(first).await.status(), 200);
    gate.entered().await.answer(200);
    assert_eq!(answered(second).await.status(), 200);
}

#[tokio::test]
async fn what_a_handler_does_to_its_session_does_not_stay_on_the_server_connection() {
    let database = database().await;
    let bouncer = bouncer(&database, 1).await;
    let url = bouncer.url(database.url());
    let layer = layer(&url)
        .await
        .map_locks(|locks| locks.share_transaction(true));
    let through_bouncer = try_connect(&url).await.unwrap();
    let (handler, mut gate) = gate();
    for status in [200, 404] {
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let backend = database.holder_pid(key(PATH)).await.expect("a holder");
        let client = call.transaction().client().unwrap();
        let change = "SET search_path = elsewhere; SET my.secret = 'luke'; \
                      PREPARE secret AS SELECT 1; CREATE TEMP TABLE secret (n int); \
                      SELECT pg_advisory_lock(42); LISTEN news; SET ROLE pg_monitor";
        client.batch_execute(change).await.unwrap();
        drop(client);
        call.answer(status);
        assert_eq!(answered(write).await.status(), status);
        let left = "SELECT concat_ws(' ', current_setting('search_path'), current_user, \
                    nullif(current_setting('my.secret', true), ''), \
                    to_regclass('pg_temp.secret'), \
                    (SELECT count(*) FROM pg_prepared_statements), \
                    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
                    (SELECT count(*) FROM pg_listening_channels()))";
        let clean = "\"$user\", public postgres 0 0 0";
        assert_eq!(answer(&through_bouncer, left).await, clean, "{status}");
        assert_eq!(pid(&through_bouncer).await, backend);
    }
}

#[tokio::test]
async fn a_nested_write_is_told_at_the_end_of_the_outer_hold_and_leaves_no_lock() {
    let database = database().await;
    let bouncer = bouncer(&database, 2).await;
    let client = database.connect().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let url = bouncer.url(database.url());
    let locks = postgres_locks_with(&url, |builder| builder.broadcast(true)).await;
    let nested = locks.clone();
    let outer = locks.with_write_lock(whole(["a"]), |_| async move {
        let write = nested.with_write_lock(cards("a", ["x"]), |_| async { Ok::<_, LockError>(()) });
        write.await?;
        let mark = "NOTIFY tower_realm_lock, 'nonsense'";
        client.batch_execute(mark).await.unwrap();
        Ok::<_, LockError>(())
    });
    outer.await.unwrap();
    expect_interruption(&mut writes).await;
    for path in [Some("x"), None] {
        assert_eq!(next_write(&mut writes).await.path(), path);
    }
    database.wait_for_granted(realm_key("a"), 0).await;
}
