//! Many realms through few connections of PgBouncer, with requests that are dropped at any moment: writers exclude each other,
//! nobody is told of a lost lock, and nothing is left behind.
//!
//! A lock connection is used again before its COMMIT or ROLLBACK is answered, so PgBouncer gets the end of one transaction and
//! the beginning of the next together, and may give them to different connections of its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{OnDisconnect, RealmLocks, RealmWriteLockLayer, Rejection};

use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::database::database;
use crate::support::gate::{key, postgres_layer_with, realms};
use crate::support::wait::PATIENCE;

const REALMS: usize = 12;
const ROUNDS: usize = 60;
const WRITES: usize = 40;

fn path(realm: usize) -> String {
    format!("/luke/realm-{realm}/card")
}

/// Who is inside, and how often somebody met another one there.
#[derive(Default)]
struct Realms {
    taken: [AtomicBool; REALMS],
    met: AtomicUsize,
}

/// A stay in a realm, however it ends.
struct Stay<'a>(&'a AtomicBool);

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Realms {
    async fn visit(&self, realm: usize, duration: Duration) {
        if self.taken[realm].swap(true, Ordering::SeqCst) {
            self.met.fetch_add(1, Ordering::SeqCst);
        }
        let _stay = Stay(&self.taken[realm]);
        sleep(duration).await;
    }
}

/// One write; the code of its rejection, if it has one.
async fn write(
    layer: RealmWriteLockLayer,
    realms: Arc<Realms>,
    realm: usize,
    stay: Duration,
) -> Option<&'static str> {
    let handler = service_fn(move |_: Request<String>| {
        let realms = Arc::clone(&realms);
        async move {
            realms.visit(realm, stay).await;
            Ok::<_, Infallible>(Response::new(String::new()))
        }
    });
    let request = Request::patch(path(realm)).body(String::new()).unwrap();
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    let rejection = response.extensions().get::<Rejection>();
    rejection.map(Rejection::code)
}

/// Writes of two replicas, some of which are dropped after microseconds or milliseconds. The codes of the rejections, and how
/// often.
async fn writes(
    replicas: &[RealmWriteLockLayer; 2],
    realms: &Arc<Realms>,
) -> BTreeMap<&'static str, usize> {
    // The seed is fixed: the same moments come again.
    let mut runner = TestRunner::deterministic();
    let one = (
        0..2_usize,
        0..REALMS,
        0..1_500_u64,
        any::<bool>(),
        0..12_000_u64,
    );
    let many = prop::collection::vec(one, WRITES);
    let mut rejections = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut writes = JoinSet::new();
        for (replica, realm, stay, leaves, moment) in many.new_tree(&mut runner).unwrap().current()
        {
            let stay = Duration::from_micros(stay);
            let write = write(replicas[replica].clone(), Arc::clone(realms), realm, stay);
            let moment = if leaves {
                Duration::from_micros(moment)
            } else {
                PATIENCE
            };
            writes.spawn(async move { (leaves, timeout(moment, write).await) });
        }
        for (leaves, written) in writes.join_all().await {
            match written {
                Ok(Some(code)) => *rejections.entry(code).or_default() += 1,
                Ok(None) => {}
                Err(_) => assert!(leaves, "round {round}: a write hangs"),
            }
        }
    }
    rejections
}

/// The same through PgBouncer, and what must be true afterwards.
async fn stress(confirm: bool, hand_offs: u32, policy: OnDisconnect) {
    let database = database().await;
    let bouncer = Bouncer::to(database.url(), Pooling::Transaction, 3).await;
    let url = bouncer.url(database.url());
    let replica = async || {
        let layer = postgres_layer_with(&url, |builder| {
            builder.pool_size(4).max_hand_offs(hand_offs)
        });
        let layer = layer
            .await
            .map_locks(|locks| locks.acquire_timeout(PATIENCE));
        layer.confirm(confirm).on_disconnect(policy)
    };
    let replicas = [replica().await, replica().await];
    let realms = Arc::new(Realms::default());
    let rejections = writes(&replicas, &realms).await;
    assert_eq!(realms.met.load(Ordering::SeqCst), 0);
    assert_eq!(rejections, BTreeMap::new());

    bouncer.wait_for_waiting(0).await;
    for realm in 0..REALMS {
        let stay = Duration::ZERO;
        for layer in &replicas {
            let last = write(layer.clone(), Arc::clone(&realms), realm, stay).await;
            assert_eq!(last, None);
        }
        database.wait_for_waiting(key(&path(realm)), 0).await;
        database.wait_for_granted(key(&path(realm)), 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unconfirmed_and_never_handed_on() {
    stress(false, 0, OnDisconnect::Cancel).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmed_and_never_handed_on() {
    stress(true, 0, OnDisconnect::Cancel).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmed_and_handed_on() {
    stress(true, 1024, OnDisconnect::Finish).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_common_lock_writers_meet() {
    let replica = || RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let visits = Arc::new(Realms::default());
    writes(&[replica(), replica()], &visits).await;
    assert!(visits.met.load(Ordering::SeqCst) > 0);
}
