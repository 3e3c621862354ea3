//! A connection that has gone silent is not mistaken for a busy lock: another one is asked, in time.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tower_realm_lock::{LockError, RealmWriteLockLayer, RealmWrites};

use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::broadcast::{expect_interruption, next_write, succeed, telling};
use crate::support::claims::{realm, whole, work};
use crate::support::cluster::Cluster;
use crate::support::database::{
    TestDatabase, database, database_on, has_sessions, rows, try_connect,
};
use crate::support::gate::{
    Gate, Gated, Outcome, answered, gate, key, patch, postgres_layer_with, postgres_locks_with,
    queue,
};
use crate::support::log::Log;
use crate::support::proxy::Proxy;
use crate::support::wait::wait_until;

/// No connection is suspected that was heard of in the last second.
const IDLE: Duration = Duration::from_millis(1100);

/// One second of patience, and some for a new connection.
const SOON: Duration = Duration::from_secs(2);

const PATH: &str = "/luke/a/card";

fn paths() -> Vec<String> {
    (0..5).map(|n| format!("/luke/realm-{n}/card")).collect()
}

/// Has one write after the other inside, each soon, and lets all of them go. The process ids of their backends.
async fn all_inside(
    database: &TestDatabase,
    (handler, gate): (&Gated, &mut Gate),
    layer: &RealmWriteLockLayer,
) -> Vec<i32> {
    let asked = Instant::now();
    let writes: Vec<_> = paths().iter().map(|it| patch(layer, handler, it)).collect();
    let (mut calls, mut pids) = (Vec::new(), Vec::new());
    for _ in &writes {
        calls.push(gate.entered().await);
    }
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    for path in paths() {
        pids.push(database.holder_pid(key(&path)).await.expect("a holder"));
    }
    for call in calls {
        call.answer(200);
    }
    all_well(writes).await;
    pids
}

async fn all_well(writes: Vec<JoinHandle<Outcome>>) {
    for write in writes {
        assert_eq!(answered(write).await.status(), 200);
    }
}

/// Fails unless each of these backends is named by a warning of its own.
fn assert_named(warnings: &[String], proxy: &Proxy, pids: &[i32]) {
    assert_eq!(warnings.len(), pids.len(), "{warnings:#?}");
    for pid in pids {
        let parts = [format!("127.0.0.1:{}/", proxy.port()), format!("pid={pid}")];
        let names = |line: &&String| parts.iter().all(|part| line.contains(part));
        assert_eq!(warnings.iter().filter(names).count(), 1, "{warnings:#?}");
    }
}

#[tokio::test]
async fn writes_at_the_same_time_find_their_connections_dead_and_ask_on_others() {
    for share in [false, true] {
        let log = Log::collect();
        let database = database().await;
        let proxy = Proxy::to(database.url()).await;
        let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.pool_size(5))
            .await
            .map_locks(|locks| locks.share_transaction(share));
        let (handler, mut gate) = gate();
        let pids = all_inside(&database, (&handler, &mut gate), &layer).await;
        proxy.black_hole();
        sleep(IDLE).await;
        log.take();
        let others = all_inside(&database, (&handler, &mut gate), &layer).await;
        assert!(others.iter().all(|pid| !pids.contains(pid)), "{others:?}");
        assert_named(&log.take_at("WARN"), &proxy, &pids);
    }
}

#[tokio::test]
async fn one_write_after_the_other_is_soon_inside() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.pool_size(5)).await;
    let (handler, mut gate) = gate();
    all_inside(&database, (&handler, &mut gate), &layer).await;
    proxy.black_hole();
    for path in paths() {
        sleep(IDLE).await;
        let asked = Instant::now();
        let write = patch(&layer, &handler, &path);
        gate.entered().await.answer(200);
        assert_eq!(answered(write).await.status(), 200);
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn a_lock_that_is_tried_is_granted_and_a_busy_one_is_waited_for() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let locks = postgres_locks_with(&proxy.url(database.url()), |builder| builder).await;
    for _ in 0..2 {
        let granted = async |_| Ok::<_, LockError>(());
        let tried = locks.try_with_write_lock(&whole(["a"]), granted).await;
        assert!(tried.unwrap().is_some());
        proxy.black_hole();
        sleep(IDLE).await;
    }
    // By then every connection is dead again.
    let holder = database.hold(key(PATH)).await;
    let waiting = work(&locks, &whole(["a"]));
    database.wait_for_waiting(key(PATH), 1).await;
    holder.batch_execute("COMMIT").await.unwrap();
    waiting.inside().await.end().await;
    // A live one is asked for the lock of another program, and waits for more than a second.
    let holder = database.hold(key(PATH)).await;
    sleep(IDLE).await;
    let log = Log::collect();
    let waiting = work(&locks, &whole(["a"]));
    database.wait_for_waiting(key(PATH), 1).await;
    sleep(IDLE).await;
    holder.batch_execute("COMMIT").await.unwrap();
    waiting.inside().await.end().await;
    assert_eq!(log.take_at("WARN"), [""; 0]);
}

#[tokio::test]
async fn a_connection_that_was_idle_is_asked_with_one_more_message_and_no_round_trip() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| builder).await;
    let (handler, mut gate) = gate();
    sleep(IDLE).await;
    proxy.queries();
    // The answer to the BEGIN does not come, and the lock is asked for all the same.
    proxy.freeze_answers();
    let write = patch(&layer, &handler, PATH);
    let mut queries = Vec::new();
    wait_until("two messages", async || {
        queries.extend(proxy.queries());
        queries.len() == 2
    })
    .await;
    proxy.thaw();
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    queries.extend(proxy.queries());
    assert!(queries[0].starts_with("BEGIN"), "{queries:?}");
    assert!(
        queries[1].contains("pg_try_advisory_xact_lock"),
        "{queries:?}"
    );
    assert_eq!(queries[2..], ["COMMIT"]);
}

/// A backend that stands still until this is dropped.
struct Stopped(i32);

impl Stopped {
    fn backend(pid: i32) -> Self {
        signal("-STOP", pid);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("-CONT", self.0);
    }
}

fn signal(name: &str, pid: i32) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(status.expect("`kill` is there").success());
}

/// A layer that has written once, and the backend of its only connection.
async fn one_backend(
    cluster: &Cluster,
    sessions: u32,
) -> (TestDatabase, Proxy, RealmWriteLockLayer, i32) {
    let database = database_on(cluster).await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.pool_size(1).sessions(sessions)
    })
    .await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let pid = database.holder_pid(key(PATH)).await.expect("a holder");
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    (database, proxy, layer, pid)
}

#[tokio::test]
async fn a_server_that_answers_late_locks_nothing_that_nobody_knows_of() {
    let cluster = Cluster::create().await;
    let (database, _proxy, layer, pid) = one_backend(&cluster, 0).await;
    let (handler, mut gate) = gate();
    let stopped = Stopped::backend(pid);
    sleep(IDLE).await;
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    assert_ne!(database.holder_pid(key(PATH)).await, Some(pid));
    drop(stopped);
    let admin = database.connect().await;
    let late = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}");
    wait_until("the late backend to be gone", async || {
        rows(&admin, &late).await.is_empty()
    })
    .await;
    assert!(call.held.as_ref().unwrap().is_held());
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    database.wait_for_granted(key(PATH), 0).await;
    database.wait_for_waiting(key(PATH), 0).await;
}

#[tokio::test]
async fn the_holder_before_is_confirmed_when_the_server_answers_late() {
    let cluster = Cluster::create().await;
    let (database, _proxy, layer, pid) = one_backend(&cluster, 0).await;
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let stopped = Stopped::backend(pid);
    sleep(IDLE).await;
    call.answer(200);
    // It asks behind the COMMIT, and then on another connection.
    let next = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    drop(stopped);
    gate.entered().await.answer(200);
    for write in [first, next] {
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[tokio::test]
async fn a_caller_that_leaves_meanwhile_passes_the_silent_statement_on() {
    let cluster = Cluster::create().await;
    let (database, proxy, layer, pid) = one_backend(&cluster, 0).await;
    let (handler, mut gate) = gate();
    let _stopped = Stopped::backend(pid);
    sleep(IDLE).await;
    proxy.queries();
    let leaves = patch(&layer, &handler, PATH);
    wait_until("the statement", async || !proxy.queries().is_empty()).await;
    let asked = Instant::now();
    let next = queue(&layer, &handler, PATH);
    leaves.abort();
    gate.entered().await.answer(200);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    assert_eq!(answered(next).await.status(), 200);
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn a_write_behind_a_commit_without_an_answer_asks_on_another_connection() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.pool_size(1)).await;
    let (handler, mut gate) = gate();
    let lost = patch(&layer, &handler, "/luke/before/card");
    let call = gate.entered().await;
    proxy.black_hole();
    // The connection was heard a moment ago, and goes back to the pool.
    call.answer(200);
    let asked = Instant::now();
    let next = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    assert_eq!(answered(next).await.status(), 200);
    lost.abort();
}

#[tokio::test]
async fn a_wait_that_breaks_off_is_asked_again_on_a_new_connection() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.pool_size(5)).await;
    let (handler, mut gate) = gate();
    let idle = all_inside(&database, (&handler, &mut gate), &layer).await;
    let holder = database.hold(key(PATH)).await;
    let write = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    let waiting = "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database \
         WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted";
    let pid: i32 = holder.query_one(waiting, &[]).await.unwrap().get(0);
    // The others of the pool were heard a moment ago, and may be dead too.
    assert!(idle.contains(&pid));
    database.terminate(pid).await;
    wait_until("a new backend waits", async || {
        let row = holder.query_opt(waiting, &[]).await.unwrap();
        row.is_some_and(|row| !idle.contains(&row.get(0)))
    })
    .await;
    holder.batch_execute("COMMIT").await.unwrap();
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
}

#[tokio::test]
async fn a_pooler_without_a_server_to_spare_is_waited_for() {
    let database = database().await;
    let bouncer = Bouncer::to(database.url(), Pooling::Transaction, 1).await;
    let layer = postgres_layer_with(&bouncer.url(database.url()), |builder| {
        builder.connect_timeout(Duration::from_secs(1))
    })
    .await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    let occupant = try_connect(&bouncer.url(database.url())).await.unwrap();
    occupant.batch_execute("BEGIN; SELECT 1").await.unwrap();
    sleep(IDLE).await;
    let log = Log::collect();
    let write = patch(&layer, &handler, PATH);
    // The idle connection, and the one that is to replace it.
    bouncer.wait_for_waiting(2).await;
    let mut warnings = Vec::new();
    wait_until("the new one to give up", async || {
        warnings.extend(log.take_at("WARN"));
        !warnings.is_empty()
    })
    .await;
    occupant.batch_execute("COMMIT").await.unwrap();
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    warnings.extend(log.take_at("WARN"));
    let is_patient = |line: &String| line.contains("is silent, as is a new one");
    assert!(warnings.iter().all(is_patient), "{warnings:#?}");
}

#[tokio::test]
async fn silent_sessions_are_replaced_and_named_once() {
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.sessions(1)).await;
    let (handler, mut gate) = gate();
    let pids = all_inside(&database, (&handler, &mut gate), &layer).await;
    proxy.black_hole();
    proxy.queries();
    let log = Log::collect();
    let others = all_inside(&database, (&handler, &mut gate), &layer).await;
    assert!(others.iter().all(|pid| !pids.contains(pid)), "{others:?}");
    assert_named(&log.take_at("WARN"), &proxy, &pids[..1]);
    // None fell back to a transaction.
    let queries = proxy.queries();
    assert!(
        queries.iter().all(|it| !it.contains("READ WRITE")),
        "{queries:?}"
    );
}

#[tokio::test]
async fn a_session_that_was_replaced_serves_its_holds_when_it_answers_again() {
    let cluster = Cluster::create().await;
    let (database, _proxy, layer, pid) = one_backend(&cluster, 1).await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let (handler, mut gate) = gate();
    let hold = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let stopped = Stopped::backend(pid);
    let others = all_inside(&database, (&handler, &mut gate), &layer).await;
    assert!(!others.contains(&pid));
    drop(stopped);
    assert!(call.held.as_ref().unwrap().is_held());
    call.answer(200);
    assert_eq!(answered(hold).await.status(), 200);
    for path in paths() {
        database.wait_for_granted(key(&path), 0).await;
    }
}

#[tokio::test]
async fn a_listener_is_interrupted_and_resumes() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let url = proxy.url(database.url());
    let mut writes = RealmWrites::listen(&url).await.unwrap();
    let [locks, _] = telling(&database).await;
    for _ in 0..2 {
        proxy.black_hole();
        let silent = Instant::now();
        expect_interruption(&mut writes).await;
        assert!(silent.elapsed() < SOON * 5 / 2, "{:?}", silent.elapsed());
        succeed(&locks, "a").await;
        assert_eq!(next_write(&mut writes).await.realm(), &realm("a"));
    }
}

/// The timer of each socket to this port, and when it is due, as Linux shows them.
#[cfg(target_os = "linux")]
fn timers(port: u16) -> Vec<(String, u32)> {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    let lines = table.lines().map(|line| line.split_whitespace().collect());
    let lines =
        lines.filter(|fields: &Vec<&str>| fields[2].ends_with(&remote) && fields[3] == ESTABLISHED);
    lines
        .filter_map(|fields| {
            let (timer, due) = fields[5].split_once(':')?;
            Some((timer.to_owned(), u32::from_str_radix(due, 16).ok()?))
        })
        .collect()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn sockets_are_kept_alive() {
    /// What Linux calls a timer for keepalive.
    const KEEPALIVE: &str = "02";
    /// In hundredths of a second.
    const THREE_SECONDS: u32 = 300;
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let _locks = postgres_locks_with(&proxy.url(database.url()), |it| it.sessions(1)).await;
    wait_until("all is acknowledged", async || {
        let timers = timers(proxy.port());
        let kept = |(timer, due): &(String, u32)| timer == KEEPALIVE && *due <= THREE_SECONDS;
        timers.len() == 2 && timers.iter().all(kept)
    })
    .await;
}
