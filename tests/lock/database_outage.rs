//! A database that is away: writes are refused at once, reads go on, and writes go on by themselves when it is back.

use std::time::{Duration, Instant};

use http::Method;
use tower_realm_lock::{ConnectError, RealmLocks, Rejection};

use crate::support::cluster::Cluster;
use crate::support::database::{database, database_on};
use crate::support::gate::{code, gate, key, patch, postgres_layer, send};
use crate::support::wait::wait_until;

#[tokio::test]
async fn writes_are_refused_while_the_database_is_away_and_go_on_when_it_is_back() {
    let cluster = Cluster::create().await;
    let layer = postgres_layer(&cluster.url()).await;
    let (handler, mut gate) = gate();
    // Several connections lie in the pool, to be found dead later.
    let writes: Vec<_> = (0..5)
        .map(|n| patch(&layer, &handler, &format!("/luke/{n}/card")))
        .collect();
    let mut inside = Vec::new();
    for _ in 0..5 {
        inside.push(gate.entered().await);
    }
    for call in inside {
        call.answer(200);
    }
    for write in writes {
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }

    cluster.stop().await;
    for _ in 0..3 {
        let start = Instant::now();
        let refused = patch(&layer, &handler, "/luke/a/card")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(refused.status(), 503);
        assert_eq!(code(&refused), "lock-unavailable");
        assert_eq!(refused.headers()["retry-after"], "1");
        assert!(!refused.body().contains("127.0.0.1"), "{}", refused.body());
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
    let read = send(&layer, &handler, Method::GET, "/luke/a/card");
    gate.entered().await.answer(200);
    assert_eq!(read.await.unwrap().unwrap().status(), 200);

    cluster.start().await;
    let write = patch(&layer, &handler, "/luke/a/card");
    gate.entered().await.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_restart_under_idle_connections_costs_no_request() {
    let cluster = Cluster::create().await;
    let layer = postgres_layer(&cluster.url()).await;
    let (handler, mut gate) = gate();
    for restart in 0..2 {
        let write = patch(&layer, &handler, "/luke/a/card");
        gate.entered().await.answer(200);
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
        if restart == 0 {
            cluster.restart_fast().await;
        } else {
            cluster.restart_immediate().await;
        }
    }
    let write = patch(&layer, &handler, "/luke/a/card");
    gate.entered().await.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_wait_whose_backend_dies_is_asked_again() {
    let database = database().await;
    let layer = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let foreign = database.hold(key("/luke/a")).await;
    let write = patch(&layer, &handler, "/luke/a/card");
    database.wait_for_waiting(key("/luke/a"), 1).await;
    // Other tests wait in other databases of the same server.
    let waiting = "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database \
         WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted";
    let pid: i32 = foreign.query_one(waiting, &[]).await.unwrap().get(0);
    database.terminate(pid).await;
    wait_until("another backend waits", async || {
        let row = foreign.query_opt(waiting, &[]).await.unwrap();
        row.is_some_and(|row| row.get::<_, i32>(0) != pid)
    })
    .await;
    foreign.batch_execute("COMMIT").await.unwrap();
    gate.entered().await.answer(200);
    assert_eq!(write.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_restart_under_a_hold_is_a_lost_lock() {
    let cluster = Cluster::create().await;
    let layer = postgres_layer(&cluster.url()).await;
    let (handler, mut gate) = gate();
    for orderly in [true, false] {
        let write = patch(&layer, &handler, "/luke/a/card");
        let mut call = gate.entered().await;
        if orderly {
            cluster.restart_fast().await;
        } else {
            cluster.restart_immediate().await;
        }
        call.dropped().await;
        let response = write.await.unwrap().unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(code(&response), "lock-lost");
    }
}

#[tokio::test]
async fn a_server_that_takes_no_more_connections_is_named_and_not_the_pool() {
    let cluster = Cluster::create().await;
    let admin = database_on(&cluster).await.connect().await;
    let limited = "CREATE ROLE limited LOGIN CONNECTION LIMIT 1";
    admin.batch_execute(limited).await.unwrap();
    let url = cluster.url().replace("postgres@", "limited@");
    let layer = postgres_layer(&url).await;
    let (handler, mut gate) = gate();
    let one = patch(&layer, &handler, "/luke/a/card");
    let inside = gate.entered().await;
    let impatient = layer
        .clone()
        .map_locks(|locks| locks.acquire_timeout(Duration::from_millis(300)));
    let refused = patch(&impatient, &handler, "/luke/b/card").await;
    let response = refused.unwrap().unwrap();
    assert_eq!(code(&response), "lock-unavailable");
    let rejection = response.extensions().get::<Rejection>().unwrap();
    let Rejection::Lock(error) = rejection else {
        panic!("{rejection:?}");
    };
    assert!(
        error.to_string().contains("too many connections"),
        "{error}"
    );
    inside.answer(200);
    assert_eq!(one.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_refused_with_its_name_and_without_its_password() {
    for (url, says) in [
        (
            "postgres://u:secret@127.0.0.1:1/realms",
            "127.0.0.1:1/realms",
        ),
        ("postgres://u:secret@127.0.0.1:1/realms", "refused"),
        (
            "postgres://u:secret@127.0.0.1:x/realms",
            "postgres://user:password@host",
        ),
        (
            "http://u:secret@127.0.0.1/",
            "postgres://user:password@host",
        ),
    ] {
        let error = RealmLocks::postgres(url).await.unwrap_err().to_string();
        assert!(error.contains(says), "{url}: {error}");
        assert!(
            !error.contains("secret") && !error.contains('\n'),
            "{error}"
        );
    }
    // Nobody answers: the port is taken, and never accepted.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "postgres://u@127.0.0.1:{}/realms",
        silent.local_addr().unwrap().port()
    );
    let builder = RealmLocks::postgres_builder(&url).connect_timeout(Duration::from_millis(100));
    let error = builder.build().await.unwrap_err();
    assert!(
        matches!(error, ConnectError::ConnectTimeout { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn options_that_cannot_be_are_refused_by_name() {
    let builder = || RealmLocks::postgres_builder("postgres://u:secret@127.0.0.1:1/realms");
    for (builder, says) in [
        (builder().pool_size(0), "pool_size cannot be 0"),
        (
            builder().lease(Duration::from_millis(99)),
            "lease cannot be 99ms",
        ),
        (
            builder().lease(Duration::MAX),
            "PostgreSQL's time-outs end at 24 days",
        ),
        (
            builder().connect_timeout(Duration::ZERO),
            "connect_timeout cannot be 0",
        ),
    ] {
        assert!(!format!("{builder:?}").contains("secret"));
        let error = builder.build().await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
