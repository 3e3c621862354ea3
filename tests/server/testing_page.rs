//! The test of `docs/testing.md`, as it stands there, in process and against PostgreSQL.

use crate::support::database::database;
use crate::support::page::block;

// From here on as on the page.
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::{Router, body::Body, extract::State, routing::patch};
use futures_util::future::{Either, select, select_all};
use http::Request;
use tokio::sync::Barrier;
use tower::ServiceExt;
use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};

/// What both replicas write. Writers meet between their read and their write.
struct Card(Mutex<String>, Barrier);

async fn add(State(card): State<Arc<Card>>, field: String) {
    let read = card.0.lock().unwrap().clone();
    card.1.wait().await;
    *card.0.lock().unwrap() = read + &field;
}

async fn write(replica: Router, path: &str) -> u16 {
    let request = Request::patch(path).body(Body::from("x")).unwrap();
    replica.oneshot(request).await.unwrap().status().as_u16()
}

/// Sends a write to each replica at the same time: their answers, and the fields of the card.
async fn race(locks: &[RealmLocks; 2], enabled: bool, paths: [&str; 2]) -> ([u16; 2], usize) {
    let card = Arc::new(Card(Mutex::default(), Barrier::new(2)));
    let writes = locks.iter().zip(paths).map(|(locks, path)| {
        let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}").unwrap();
        let locks = locks.clone().acquire_timeout(Duration::ZERO);
        let layer = RealmWriteLockLayer::new(locks, realms);
        let replica = Router::new()
            .route("/{owner}/{realm}/card", patch(add))
            .layer(layer.enabled(enabled))
            .with_state(Arc::clone(&card));
        Box::pin(write(replica, path))
    });
    let (one, _, mut rest) = select_all(writes).await;
    // The other one is at the barrier if this one was refused: the test meets it there. If it was
    // refused, too, nobody comes to the barrier.
    let meet = async {
        if one == 503 {
            card.1.wait().await;
        }
    };
    let other = match select(rest.remove(0), pin!(meet)).await {
        Either::Left((other, _)) => other,
        Either::Right(((), other)) => other.await,
    };
    let fields = card.0.lock().unwrap().len();
    ([one, other], fields)
}

async fn assert_excluded(locks: [RealmLocks; 2]) {
    let (a, b) = ("/luke/a/card", "/luke/b/card");
    // One is refused, and the write of the other one is there.
    let locked = race(&locks, true, [a, a]).await;
    assert_eq!(locked, ([503, 200], 1));
    // Without the lock both are acknowledged, and one of two fields is lost.
    let unlocked = race(&locks, false, [a, a]).await;
    assert_eq!(unlocked, ([200, 200], 1));
    // Another realm has another lock.
    let (answers, _) = race(&locks, true, [a, b]).await;
    assert_eq!(answers, [200, 200]);
}

#[tokio::test]
async fn two_replicas_exclude_each_other() {
    let locks = RealmLocks::in_process();
    assert_excluded([locks.clone(), locks]).await;
}
// To here.

#[tokio::test]
async fn two_replicas_exclude_each_other_in_postgresql() {
    let database = database().await;
    let replica = async || RealmLocks::postgres(database.url()).await.unwrap();
    assert_excluded([replica().await, replica().await]).await;
}

#[test]
fn the_test_is_the_pages() {
    let this = include_str!("testing_page.rs");
    let (_, test) = this
        .split_once("// From here on as on the page.\n")
        .unwrap();
    let (test, _) = test.split_once("// To here.\n").unwrap();
    let page = include_str!("../../docs/testing.md");
    assert_eq!(block(page, "rust", "two_replicas_exclude_each_other"), test);
}
