//! A connection that has gone silent is not mistaken for a busy lock: another one is asked, in time.

use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::Client;
use tower_realm_lock::{LockError, RealmWriteLockLayer, RealmWrites};

use crate::support::alone::with_namespaces;
use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::broadcast::{expect_interruption, next_write, succeed, telling};
use crate::support::claims::{realm, whole, work};
use crate::support::cluster::Cluster;
use crate::support::database::{
    TestDatabase, database, database_on, has_sessions, rows, try_connect,
};
use crate::support::gate::{
    Call, Gate, Gated, Outcome, answered, code, gate, key, patch, postgres_layer_with,
    postgres_locks_with, queue,
};
use crate::support::installed;
use crate::support::log::Log;
use crate::support::proxy::{Effect, Proxy};
use crate::support::wait::{wait_for, wait_until};

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
    let waits = Waits::begin(&database, &layer).await;
    // The others of the pool were heard a moment ago, and may be dead too.
    assert!(idle.contains(&waits.pid));
    waits.break_off(&database, |pid| !idle.contains(&pid)).await;
    waits.let_in().await;
}

#[tokio::test]
async fn a_session_that_does_not_answer_gives_no_more_time() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let locks = postgres_locks_with(&proxy.url(database.url()), |it| it.sessions(1)).await;
    // It was heard a moment ago, and is not silent before the deadline.
    succeed(&locks, "a").await;
    proxy.freeze();
    let asked = Instant::now();
    let locks = locks.acquire_timeout(Duration::from_millis(100));
    let refused = work(&locks, &whole(["a"])).refused().await;
    assert!(matches!(refused, LockError::Timeout { .. }), "{refused}");
    assert!(asked.elapsed() < IDLE, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_move_to_another_connection_gives_no_more_time() {
    const LIMIT: Duration = Duration::from_secs(3);
    let cluster = Cluster::create().await;
    let (database, proxy, layer, _) = one_backend(&cluster, 0).await;
    let layer = layer.map_locks(|locks| locks.acquire_timeout(LIMIT));
    let (handler, gate) = gate();
    let _holder = database.hold(key(PATH)).await;
    proxy.black_hole();
    sleep(IDLE).await;
    let asked = Instant::now();
    let write = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    assert_eq!(code(&answered(write).await), "lock-timeout");
    let waited = asked.elapsed();
    assert!(LIMIT <= waited && waited < LIMIT + SOON / 2, "{waited:?}");
    assert!(gate.is_empty());
    database.wait_for_waiting(key(PATH), 0).await;
    // The server has ended the wait by itself, in time.
    let log = fs::read_to_string(cluster.dir().join("server.log")).unwrap();
    assert!(log.contains("due to lock timeout"), "{log}");
    assert!(!log.contains("due to user request"), "{log}");
}

/// A write that waits for the lock of another program.
struct Waits {
    write: JoinHandle<Outcome>,
    pid: i32,
    holder: Client,
    gate: Gate,
}

impl Waits {
    async fn begin(database: &TestDatabase, layer: &RealmWriteLockLayer) -> Self {
        let (handler, gate) = gate();
        let holder = database.hold(key(PATH)).await;
        let write = patch(layer, &handler, PATH);
        database.wait_for_waiting(key(PATH), 1).await;
        let pid = holder.query_one(WAITING, &[]).await.unwrap().get(0);
        Self {
            write,
            pid,
            holder,
            gate,
        }
    }

    /// Ends its backend, and waits until it waits on one like this.
    async fn break_off(&self, database: &TestDatabase, is_right: impl Fn(i32) -> bool) {
        database.terminate(self.pid).await;
        wait_until("another backend waits", async || {
            let row = self.holder.query_opt(WAITING, &[]).await.unwrap();
            row.is_some_and(|row| is_right(row.get(0)))
        })
        .await;
    }

    async fn let_in(mut self) {
        self.holder.batch_execute("COMMIT").await.unwrap();
        self.gate.entered().await.answer(200);
        assert_eq!(answered(self.write).await.status(), 200);
    }
}

/// The only backend that waits for a lock.
const WAITING: &str = "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database \
     WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted";

/// A write that waits, and one of another realm that is inside, on another backend.
async fn one_waits_and_one_is_inside(
    database: &TestDatabase,
    proxy: &Proxy,
) -> (Waits, Call, JoinHandle<Outcome>, i32) {
    const OTHER: &str = "/luke/b/card";
    let layer = postgres_layer_with(&proxy.url(database.url()), |it| it.pool_size(2)).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, OTHER);
    let call = gate.entered().await;
    let pid = database.holder_pid(key(OTHER)).await.unwrap();
    (Waits::begin(database, &layer).await, call, write, pid)
}

#[tokio::test]
async fn a_connection_that_makes_way_for_a_new_one_has_its_commit_answered() {
    let cluster = Cluster::create().await;
    let database = database_on(&cluster).await;
    let proxy = Proxy::to(database.url()).await;
    let (waits, call, write, idle) = one_waits_and_one_is_inside(&database, &proxy).await;
    let stopped = Stopped::backend(idle);
    proxy.queries();
    call.answer(200);
    wait_until("its COMMIT", async || !proxy.queries().is_empty()).await;
    let (before, taken) = (waits.pid, idle);
    waits
        .break_off(&database, |pid| pid != before && pid != taken)
        .await;
    drop(stopped);
    assert_eq!(answered(write).await.status(), 200);
    waits.let_in().await;
}

#[tokio::test]
async fn a_login_without_an_answer_is_not_waited_for_where_the_pool_has_a_connection() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let (waits, call, write, idle) = one_waits_and_one_is_inside(&database, &proxy).await;
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    proxy.hold_logins(true);
    let ended = Instant::now();
    waits.break_off(&database, |pid| pid == idle).await;
    assert!(ended.elapsed() < SOON, "{:?}", ended.elapsed());
    assert_eq!(proxy.count(Effect::LoginHeld), 1);
    waits.let_in().await;
}

/// The address through which the test below reaches the server, until it is taken away.
const VANISHES: &str = "10.99.99.99";

/// Set in the process of that test, to the server's Unix socket.
const SOCKET: &str = "VANISHING_ADDRESS_TEST";

/// Passes everything on from a port of either address to a Unix socket.
#[cfg(target_os = "linux")]
async fn forward(socket: &str) -> u16 {
    let vanishing = TcpListener::bind((VANISHES, 0)).await.unwrap();
    let port = vanishing.local_addr().unwrap().port();
    let lasting = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    for listener in [vanishing, lasting] {
        let socket = socket.to_owned();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
            }
        });
    }
    port
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_wait_on_a_peer_that_is_gone_ends_as_tcp_is_set_to_find_out() {
    let Ok(socket) = env::var(SOCKET) else {
        let test = "a_wait_on_a_peer_that_is_gone_ends_as_tcp_is_set_to_find_out";
        let cluster = Cluster::create().await;
        let place = cluster.dir().display().to_string();
        let value = format!("{place}/.s.PGSQL.{}", cluster.port());
        let prepare = format!("ip link set lo up && ip address add {VANISHES} dev lo");
        // The server's directory is another user's where root runs the tests.
        let flags = if installed::server_user().is_some() {
            "-n"
        } else {
            "-rn"
        };
        let test = (module_path!(), test);
        return with_namespaces(flags, (&prepare, "sh"), test, (SOCKET, &value)).await;
    };
    let port = forward(&socket).await;
    let server = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    // What the URL says, and how soon it is noticed, the time for a new connection included.
    let ways = [
        (
            "keepalives_idle=1&keepalives_interval=1&keepalives_count=2",
            6,
        ),
        (
            "keepalives_idle=1&keepalives_interval=1&keepalives_count=99&tcp_user_timeout=2000",
            6,
        ),
        // The default is 8 seconds, and so before `acquire_timeout`.
        ("", 10),
    ];
    let mut all = Vec::new();
    for (parameters, seconds) in ways {
        let database = TestDatabase::create(&server).await.unwrap();
        let url = format!(
            "postgres://postgres@{VANISHES}:{port},127.0.0.1:{port}/{}?{parameters}",
            database.name()
        );
        let layer = postgres_layer_with(&url, |builder| builder).await;
        let waits = Waits::begin(&database, &layer).await;
        all.push((database, waits, Duration::from_secs(seconds)));
    }
    // Until what was sent is acknowledged, which the kernel puts off for up to 200 ms, it is sent
    // again instead of a keepalive.
    sleep(Duration::from_millis(300)).await;
    let vanished = Instant::now();
    let remove = ["address", "del", VANISHES, "dev", "lo"];
    let removed = Command::new("ip").args(remove).status().unwrap();
    assert!(removed.success());
    for (database, waits, soon) in all {
        // The server itself does not know.
        database.wait_for_waiting(key(PATH), 2).await;
        assert!(vanished.elapsed() < soon, "{:?}", vanished.elapsed());
        database.terminate(waits.pid).await;
        waits.let_in().await;
    }
}

#[tokio::test]
#[ignore = "takes three and a half minutes"]
async fn a_connection_that_nobody_uses_is_closed_before_a_load_balancer_forgets_it() {
    // Azure's.
    const FORGOTTEN: Duration = Duration::from_secs(240);
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder).await;
    work(&locks, &whole(["a"])).inside().await.end().await;
    assert_eq!(database.backends().await, 1);
    wait_for("its end", FORGOTTEN, async || {
        match database.backends().await {
            0 => Ok(()),
            count => Err(format!("{count} connections")),
        }
    })
    .await;
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
    let url = proxy.url(database.url()) + "?application_name=listener";
    let mut writes = RealmWrites::listen(&url).await.unwrap();
    let [locks, _] = telling(&database).await;
    let admin = database.connect().await;
    let listens = "SELECT pid FROM pg_stat_activity WHERE application_name = 'listener' \
         ORDER BY backend_start DESC LIMIT 1";
    let log = Log::collect();
    for _ in 0..2 {
        let pid: i32 = admin.query_one(listens, &[]).await.unwrap().get(0);
        proxy.black_hole();
        let silent = Instant::now();
        expect_interruption(&mut writes).await;
        assert!(silent.elapsed() < SOON * 5 / 2, "{:?}", silent.elapsed());
        let warnings = log.take_at("WARN");
        assert_named(&warnings, &proxy, &[pid]);
        assert!(warnings[0].contains("a listener's connection is silent, and is replaced"));
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
async fn sockets_are_kept_alive_as_the_url_says() {
    /// What Linux calls a timer for keepalive.
    const KEEPALIVE: &str = "02";
    let database = database().await;
    let sessions = u32::from(has_sessions(&database.connect().await).await);
    // The seconds until the first probe.
    for (parameters, due) in [
        ("", Some(0..=3)),
        ("?keepalives_idle=100", Some(50..=100)),
        ("?keepalives=0", None),
    ] {
        let proxy = Proxy::to(database.url()).await;
        let url = proxy.url(database.url()) + parameters;
        let _locks = postgres_locks_with(&url, |it| it.sessions(sessions)).await;
        let is_right = |(timer, hundredths): &(String, u32)| match &due {
            Some(due) => timer == KEEPALIVE && due.contains(&(hundredths / 100)),
            None => timer == "00",
        };
        wait_until("all is acknowledged", async || {
            let timers = timers(proxy.port());
            timers.len() == 1 + sessions as usize && timers.iter().all(is_right)
        })
        .await;
    }
}
