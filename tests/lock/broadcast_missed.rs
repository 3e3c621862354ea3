//! A listener knows when it may have missed a write: its connection breaks, its network falls silent, its server restarts, or
//! something was too long to be told. And it hears nothing but writes.

use tower_realm_lock::{ConnectError, RealmEvent, RealmWrites};

use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::broadcast::{expect_interruption, next, next_write, succeed, telling};
use crate::support::claims::{cards, realm, work};
use crate::support::cluster::Cluster;
use crate::support::database::{database, database_on};
use crate::support::gate::postgres_locks_with;
use crate::support::proxy::Proxy;
use crate::support::wait::wait_until;

#[tokio::test]
async fn a_lost_connection_is_told_at_once_and_made_again() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let mut writes = RealmWrites::listen(&proxy.url(database.url()))
        .await
        .unwrap();
    let [locks, _] = telling(&database).await;
    for _ in 0..2 {
        proxy.cut();
        expect_interruption(&mut writes).await;
        succeed(&locks, "a").await;
        assert_eq!(next_write(&mut writes).await.realm(), &realm("a"));
    }
    // A network that goes silent.
    proxy.freeze();
    assert_eq!(next(&mut writes).await, RealmEvent::Interrupted);
    succeed(&locks, "missed").await;
    proxy.thaw();
    assert_eq!(next(&mut writes).await, RealmEvent::Resumed);
    succeed(&locks, "b").await;
    assert_eq!(next_write(&mut writes).await.realm(), &realm("b"));
}

#[tokio::test]
async fn a_server_that_restarts_is_listened_to_again() {
    let cluster = Cluster::create().await;
    let database = database_on(&cluster).await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    cluster.restart_fast().await;
    expect_interruption(&mut writes).await;
    let [locks, _] = telling(&database).await;
    succeed(&locks, "a").await;
    assert_eq!(next_write(&mut writes).await.realm(), &realm("a"));
}

#[tokio::test]
async fn a_realm_too_long_to_be_told_interrupts() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let [locks, _] = telling(&database).await;
    succeed(&locks, &"x".repeat(9_000)).await;
    expect_interruption(&mut writes).await;
    // Long, and not too long: the path is left out.
    work(&locks, &cards("a", [&"y".repeat(9_000)]))
        .inside()
        .await
        .end()
        .await;
    assert_eq!(next_write(&mut writes).await.path(), None);
}

#[tokio::test]
async fn what_others_say_on_the_channel_does_no_harm() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let client = database.connect().await;
    client
        .batch_execute("NOTIFY tower_realm_lock, 'nonsense'; NOTIFY other, 'x'")
        .await
        .unwrap();
    expect_interruption(&mut writes).await;
    let [locks, _] = telling(&database).await;
    succeed(&locks, "a").await;
    assert_eq!(next_write(&mut writes).await.realm(), &realm("a"));
}

#[tokio::test]
async fn nothing_is_told_unless_asked_for_and_a_dropped_listener_leaves_nothing() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let silent = postgres_locks_with(database.url(), |builder| builder).await;
    let [locks, _] = telling(&database).await;
    succeed(&silent, "silent").await;
    succeed(&locks, "told").await;
    assert_eq!(next_write(&mut writes).await.realm(), &realm("told"));
    let before = database.backends().await;
    drop(writes);
    wait_until("the listener's end", async || {
        database.backends().await < before
    })
    .await;
}

#[tokio::test]
async fn a_pooler_is_no_place_to_listen() {
    let database = database().await;
    let bouncer = Bouncer::to(database.url(), Pooling::Transaction, 4).await;
    let refused = RealmWrites::listen(&bouncer.url(database.url()))
        .await
        .unwrap_err();
    assert!(matches!(refused, ConnectError::Pooler { .. }), "{refused}");
    // But locks behind it tell all the same.
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let locks = postgres_locks_with(&bouncer.url(database.url()), |builder| {
        builder.broadcast(true)
    })
    .await;
    succeed(&locks, "a").await;
    assert_eq!(next_write(&mut writes).await.realm(), &realm("a"));
}
