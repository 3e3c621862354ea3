//! A service that starts before its database: writes are refused until PostgreSQL is up, and
//! succeed from then on without a restart.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use http::Method;
use tower_realm_lock::{
    ConnectError, LockError, PostgresBuilder, RealmEvent, RealmLocks, RealmWriteLockLayer,
    Rejection,
};

use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::broadcast::{next, next_write};
use crate::support::claims::realm;
use crate::support::cluster::Cluster;
use crate::support::database::{database, has_sessions};
use crate::support::gate::{Gate, Gated, answered, code, gate, patch, realms, send};
use crate::support::log::Log;
use crate::support::standby::Standby;
use crate::support::wait::{PATIENCE, wait_for};

const PATH: &str = "/luke/a/card";

/// The ways to hold locks.
const SESSIONS: [u32; 2] = [0, 2];

fn layer(builder: PostgresBuilder) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(
        builder.build_lazy().expect("nothing is asked yet"),
        realms(),
    )
}

/// Why a write gets no lock.
async fn refusal(layer: &RealmWriteLockLayer) -> LockError {
    let (handler, gate) = gate();
    let response = answered(patch(layer, &handler, PATH)).await;
    assert_eq!(response.status(), 503);
    assert_eq!(code(&response), "lock-unavailable");
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(gate.is_empty());
    match response.extensions().get::<Rejection>() {
        Some(Rejection::Lock(error)) => error.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn writes_are_refused_until_the_database_is_up_and_then_succeed_with_all_options() {
    let cluster = Cluster::create().await;
    for sessions in SESSIONS {
        cluster.stop().await;
        let builder = RealmLocks::postgres_builder(&cluster.url())
            .sessions(sessions)
            .fencing(true)
            .broadcast(true);
        let mut writes = builder.listen_lazy().unwrap();
        let layer = layer(builder);
        for _ in 0..3 {
            let asked = Instant::now();
            let error = refusal(&layer).await;
            assert!(
                matches!(error, LockError::Connect(ConnectError::Connect { .. })),
                "{error:?}"
            );
            assert!(asked.elapsed() < Duration::from_secs(2), "not at once");
        }
        let (handler, mut gate) = gate();
        let read = send(&layer, &handler, Method::GET, PATH);
        gate.entered().await.answer(200);
        assert_eq!(answered(read).await.status(), 200);
        assert_eq!(next(&mut writes).await, RealmEvent::Interrupted);

        cluster.start().await;
        // The very first one.
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let first = call.held.as_ref().unwrap().fencing_token();
        assert!(first.is_some());
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);

        while next(&mut writes).await != RealmEvent::Resumed {}
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let token = call.held.as_ref().unwrap().fencing_token();
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
        let mut heard = next_write(&mut writes).await;
        if heard.token() == first {
            // The listener was back before the first write's end.
            heard = next_write(&mut writes).await;
        }
        assert_eq!((heard.realm(), heard.token()), (&realm("a"), token));
    }
}

#[tokio::test]
async fn first_writes_that_come_together_are_refused_together_and_then_all_get_their_locks() {
    let cluster = Cluster::create().await;
    for sessions in SESSIONS {
        cluster.stop().await;
        let builder = RealmLocks::postgres_builder(&cluster.url());
        // Fewer connections than writes.
        let layer = layer(builder.sessions(sessions).pool_size(2));
        let (handler, mut gate) = gate();
        let together = |handler| -> Vec<_> {
            let paths = (0..10).map(|realm| format!("/luke/r{realm}/card"));
            paths.map(|path| patch(&layer, handler, &path)).collect()
        };
        for write in together(&handler) {
            assert_eq!(answered(write).await.status(), 503);
        }
        cluster.start().await;
        let writes = together(&handler);
        for _ in 0..10 {
            gate.entered().await.answer(200);
        }
        for write in writes {
            assert_eq!(answered(write).await.status(), 200, "{sessions} sessions");
        }
        layer_is_idle(&layer, &handler, &mut gate).await;
    }
}

/// One more write, after which nothing is left to wait for.
async fn layer_is_idle(layer: &RealmWriteLockLayer, handler: &Gated, gate: &mut Gate) {
    let write = patch(layer, handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
}

#[tokio::test]
async fn the_log_says_what_is_wrong_with_the_server_and_what_to_do() {
    let database = database().await;
    let admin = database.connect().await;
    let name = database.name();
    let shadow = "CREATE SCHEMA shadow; \
                  CREATE FUNCTION shadow.pg_advisory_xact_lock_shared(bigint) RETURNS void \
                  LANGUAGE sql AS ''";
    admin.batch_execute(shadow).await.unwrap();
    let log = Log::collect();
    let warned = async |url: &str, parts: [&str; 2]| {
        log.take();
        refusal(&layer(RealmLocks::postgres_builder(url))).await;
        let lines = log.take_at("WARN");
        let rejected = lines
            .iter()
            .filter(|it| it.contains("a write was rejected"));
        let rejected: Vec<&String> = rejected.collect();
        assert_eq!(rejected.len(), 1, "{lines:#?}");
        for part in parts {
            assert!(rejected[0].contains(part), "{rejected:#?}");
        }
    };
    let missing = format!("{name}_missing");
    let url = database.url().replace(name, &missing);
    warned(&url, [&missing, "create the database, or correct its name"]).await;

    let role = format!("{name}_late");
    let limited = format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 0");
    admin.batch_execute(&limited).await.unwrap();
    let url = database.url().replace("postgres@", &format!("{role}@"));
    warned(&url, [&role, "too many connections"]).await;
    admin
        .batch_execute(&format!("DROP ROLE {role}"))
        .await
        .unwrap();

    let shadowed = format!("ALTER DATABASE {name} SET search_path = shadow, pg_catalog");
    admin.batch_execute(&shadowed).await.unwrap();
    warned(database.url(), [name, "connect to a real PostgreSQL"]).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_a_write_the_shorter_of_two_bounds() {
    // The port is taken, and no connection to it is ever accepted.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://u@127.0.0.1:{port}/realms");
    let short = Duration::from_millis(200);
    for sessions in SESSIONS {
        let builder = RealmLocks::postgres_builder(&url).sessions(sessions);
        let asked = Instant::now();
        let error = refusal(&layer(builder.clone().connect_timeout(short))).await;
        assert!(
            matches!(
                error,
                LockError::Connect(ConnectError::ConnectTimeout { .. })
            ),
            "{error:?}"
        );
        let impatient = layer(builder).map_locks(|locks| locks.acquire_timeout(short));
        refusal(&impatient).await;
        assert!(asked.elapsed() < Duration::from_secs(4), "not in time");
    }
}

#[tokio::test]
async fn a_database_that_turns_out_to_be_a_standby_grants_nothing_until_it_is_promoted() {
    let primary = Cluster::create_primary().await;
    let standby = Standby::of(&primary).await;
    let layers = SESSIONS
        .map(|sessions| layer(RealmLocks::postgres_builder(&standby.url()).sessions(sessions)));
    for layer in &layers {
        let error = refusal(layer).await;
        assert!(
            matches!(error, LockError::Connect(ConnectError::Standby { .. })),
            "{error:?}"
        );
        assert!(error.to_string().contains("connect to the primary"));
    }
    let listener = RealmLocks::postgres_builder(&standby.url());
    let mut writes = listener.listen_lazy().unwrap();
    assert_eq!(next(&mut writes).await, RealmEvent::Interrupted);
    standby.promote().await;
    assert_eq!(next(&mut writes).await, RealmEvent::Resumed);
    for layer in &layers {
        let (handler, mut gate) = gate();
        let write = patch(layer, &handler, PATH);
        gate.entered().await.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[tokio::test]
async fn sessions_at_a_pooler_are_refused_at_the_first_write_as_by_build() {
    let database = database().await;
    let bouncer = Bouncer::to(database.url(), Pooling::Transaction, 4).await;
    let url = bouncer.url(database.url());
    let error = refusal(&layer(RealmLocks::postgres_builder(&url).sessions(1))).await;
    assert!(
        matches!(error, LockError::Connect(ConnectError::Pooler { .. })),
        "{error:?}"
    );
    let (handler, mut gate) = gate();
    let write = patch(&layer(RealmLocks::postgres_builder(&url)), &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
}

#[tokio::test]
async fn once_a_session_was_open_transactions_stand_in_for_sessions_that_are_not_to_be_had() {
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let locks = RealmLocks::postgres_builder(database.url()).sessions(2);
    let layer = layer(locks);
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    // From now on it looks like a PostgreSQL of another age.
    database.without_session_timeout().await;
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let admin = database.connect().await;
    admin.batch_execute(others).await.unwrap();
    let fresh = RealmLocks::postgres_builder(database.url()).sessions(1);
    let error = refusal(&RealmWriteLockLayer::new(
        fresh.build_lazy().unwrap(),
        realms(),
    ))
    .await;
    assert!(
        matches!(
            error,
            LockError::Connect(ConnectError::NoSessionTimeout { .. })
        ),
        "{error:?}"
    );
    wait_for("a transaction", PATIENCE, async || {
        let mut write = patch(&layer, &handler, PATH);
        tokio::select! {
            call = gate.entered() => {
                call.answer(200);
                assert_eq!(answered(write).await.status(), 200);
                Ok(())
            }
            refused = &mut write => Err(refused.unwrap().unwrap().into_body()),
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_the_options_is_known_without_a_database() {
    let builder = || RealmLocks::postgres_builder("postgres://u@127.0.0.1:1/realms");
    for (builder, part) in [
        (builder().pool_size(0), "pool_size cannot be 0"),
        (RealmLocks::postgres_builder("http://h/"), "postgres://user"),
        (
            RealmLocks::postgres_builder("postgres://h/d?sslmode=verify-full&sslrootcert=/none"),
            "sslrootcert",
        ),
    ] {
        let error = builder.listen_lazy().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        let error = builder.build_lazy().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_shutdown_before_the_first_connection_ends_at_once() {
    for sessions in SESSIONS {
        let url = "postgres://u@127.0.0.1:1/realms";
        let locks = RealmLocks::postgres_builder(url).sessions(sessions);
        let locks = locks.build_lazy().unwrap();
        locks.shutdown(Duration::from_secs(5)).await.unwrap();
        let refused = RealmWriteLockLayer::new(locks, realms());
        let error = refusal(&refused).await;
        assert!(matches!(error, LockError::ShuttingDown), "{error:?}");
    }
}
