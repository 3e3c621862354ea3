//! Locks through pgpool-II, in front of one server, and of a primary with a standby to which it balances what only reads.

use std::time::Duration;

use tokio::time::sleep;
use tower_realm_lock::{ConnectError, RealmLocks, RealmWriteLockLayer};

use crate::support::cluster::Cluster;
use crate::support::database::{TestDatabase, database_on, has_sessions, rows, try_connect};
use crate::support::gate::{answered, code, gate, key, patch, postgres_layer, postgres_layer_with};
use crate::support::pgpool::Pgpool;
use crate::support::proxy::Proxy;
use crate::support::silence::{assert_out_before_the_next, assert_waiters_leave_nothing};
use crate::support::standby::Standby;
use crate::support::wait::wait_until;

const PATH: &str = "/luke/a/card";

const LEASE: Duration = Duration::from_millis(1500);

/// pgpool in front of one server.
struct Single {
    database: TestDatabase,
    pgpool: Pgpool,
    _server: Cluster,
}

impl Single {
    async fn start() -> Self {
        let server = Cluster::create().await;
        let pgpool = Pgpool::to(&[(server.port(), 1)], "").await;
        pgpool.knows_its_primary().await;
        Self {
            database: database_on(&server).await,
            pgpool,
            _server: server,
        }
    }

    fn url(&self) -> String {
        self.pgpool.url(self.database.url())
    }
}

/// pgpool in front of a primary and of a standby, which gets nearly all that is balanced.
struct Balanced {
    database: TestDatabase,
    pgpool: Pgpool,
    servers: (Cluster, Standby),
}

impl Balanced {
    async fn start(primary_first: bool, more: &str) -> Self {
        let primary = Cluster::create_primary().await;
        let standby = Standby::of(&primary).await;
        let mut servers = [(primary.port(), 0), (standby.port(), 1)];
        if !primary_first {
            servers.reverse();
        }
        let database = database_on(&primary).await;
        // pgpool connects to both servers for each client.
        standby.has_replayed(&primary).await;
        let pgpool = Pgpool::to(&servers, more).await;
        Self {
            database,
            pgpool,
            servers: (primary, standby),
        }
    }

    fn url(&self) -> String {
        self.pgpool.url(self.database.url())
    }
}

/// Two replicas write one realm, the second after the first.
async fn assert_writers_take_turns(database: &TestDatabase, replicas: [&RealmWriteLockLayer; 2]) {
    let (handler, mut gate) = gate();
    let first = patch(replicas[0], &handler, PATH);
    let inside = gate.entered().await;
    database.wait_for_granted(key(PATH), 1).await;
    let second = patch(replicas[1], &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    assert!(gate.is_empty());
    inside.answer(200);
    assert_eq!(answered(first).await.status(), 200);
    gate.entered().await.answer(200);
    assert_eq!(answered(second).await.status(), 200);
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn writers_take_turns() {
    let single = Single::start().await;
    let url = single.url();
    let replicas = [&postgres_layer(&url).await, &postgres_layer(&url).await];
    assert_writers_take_turns(&single.database, replicas).await;
}

#[tokio::test]
async fn a_client_gone_while_it_waits_leaves_no_queued_backend_and_no_unusable_connection() {
    let single = Single::start().await;
    let layer = postgres_layer_with(&single.url(), |builder| builder.pool_size(1)).await;
    assert_waiters_leave_nothing(&single.database, &layer).await;
}

#[tokio::test]
async fn a_silent_replica_loses_its_lock_before_the_server_lets_the_next_one_in() {
    let single = Single::start().await;
    let url = single.url();
    let proxy = Proxy::to(&url).await;
    let cut_off = postgres_layer_with(&proxy.url(&url), |builder| builder.lease(LEASE)).await;
    let other = postgres_layer(&url).await;
    let (handler, mut gate) = gate();
    let write = patch(&cut_off, &handler, PATH);
    let call = gate.entered().await;
    let next = patch(&other, &handler, PATH);
    single.database.wait_for_waiting(key(PATH), 1).await;
    assert_out_before_the_next(&proxy, LEASE, (call, write), next, &mut gate).await;
}

#[tokio::test]
async fn nothing_of_a_lock_goes_to_a_standby_however_long_it_is_held() {
    for primary_first in [true, false] {
        let balanced = Balanced::start(primary_first, "").await;
        balanced.pgpool.knows_its_primary().await;
        let url = balanced.url();
        // Else the test would show nothing.
        let client = try_connect(&url).await.unwrap();
        let standby = "SELECT inet_server_port() AS port";
        let port = rows(&client, standby).await[0]
            .get("port")
            .map(str::to_owned);
        assert_eq!(port, Some(balanced.servers.1.port().to_string()));

        let layer = || postgres_layer_with(&url, |builder| builder.lease(LEASE));
        let layers = [layer().await, layer().await];
        assert_writers_take_turns(&balanced.database, [&layers[0], &layers[1]]).await;

        // Heartbeats that went to the standby would not keep the lock at the primary.
        let (handler, mut gate) = gate();
        let write = patch(&layers[0], &handler, PATH);
        let call = gate.entered().await;
        sleep(LEASE + LEASE / 2).await;
        assert!(!call.was_dropped());
        assert_eq!(balanced.database.advisory_locks(key(PATH)).await, (1, 0));
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[tokio::test]
async fn a_pgpool_that_knows_no_primary_grants_nothing() {
    // It sends nothing but a BEGIN to a server that it does not know as the primary.
    let balanced = Balanced::start(true, "sr_check_user = 'nobody'\n").await;
    let layer = postgres_layer(&balanced.url()).await;
    let (handler, gate) = gate();
    let refused = answered(patch(&layer, &handler, PATH)).await;
    assert_eq!(code(&refused), "lock-unavailable");
    assert!(gate.is_empty());
}

#[tokio::test]
async fn sessions_work_in_front_of_one_server_and_leave_nothing_to_the_next_client() {
    let single = Single::start().await;
    if !has_sessions(&single.database.connect().await).await {
        return;
    }
    let url = single.url();
    let sessions = postgres_layer_with(&url, |builder| builder.sessions(1)).await;
    let transactions = postgres_layer(&url).await;
    assert_writers_take_turns(&single.database, [&sessions, &transactions]).await;
    let (handler, mut gate) = gate();
    let write = patch(&sessions, &handler, PATH);
    let call = gate.entered().await;
    let held_by = single.database.holder_pid(key(PATH)).await.unwrap();
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    drop((sessions, transactions));

    let admin = single.database.connect().await;
    let reset =
        format!("SELECT 1 FROM pg_stat_activity WHERE pid = {held_by} AND query = 'DISCARD ALL'");
    wait_until("pgpool to reset the session", async || {
        rows(&admin, &reset).await.len() == 1
    })
    .await;
}

#[tokio::test]
async fn sessions_in_front_of_a_standby_are_refused() {
    for primary_first in [true, false] {
        let balanced = Balanced::start(primary_first, "").await;
        balanced.pgpool.knows_its_primary().await;
        let builder = RealmLocks::postgres_builder(&balanced.url()).sessions(1);
        let refused = builder.build().await.expect_err("sessions would be spread");
        assert!(matches!(refused, ConnectError::Pooler { .. }), "{refused}");
    }
}
