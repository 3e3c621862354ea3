//! What must hold when a replica, or its client, is silent all of a sudden.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tower_realm_lock::RealmWriteLockLayer;

use super::database::TestDatabase;
use super::gate::{Call, Gate, Outcome, answered, assert_lost, gate, key, patch};
use super::proxy::Proxy;

/// Cuts the network of a call whose lock `next` waits for on another replica. Fails unless the call is stopped before that one is inside,
/// which it is soon after the lease.
pub async fn assert_out_before_the_next(
    proxy: &Proxy,
    lease: Duration,
    (mut call, write): (Call, JoinHandle<Outcome>),
    next: JoinHandle<Outcome>,
    gate: &mut Gate,
) {
    let silent = Instant::now();
    proxy.freeze();
    call.dropped().await;
    assert!(
        gate.is_empty(),
        "the next writer is inside before this one is out"
    );
    assert!(silent.elapsed() < lease, "{:?}", silent.elapsed());
    assert_lost(&answered(write).await);

    let entered = gate.entered().await;
    let waited = silent.elapsed();
    assert!(waited < lease + lease / 2, "{waited:?}");
    entered.answer(200);
    assert_eq!(answered(next).await.status(), 200);
}

/// Has clients leave that wait for a lock which another program holds. Fails unless they leave no queued backend, and a connection
/// that serves the next request, of this realm and of another.
pub async fn assert_waiters_leave_nothing(database: &TestDatabase, layer: &RealmWriteLockLayer) {
    const PATH: &str = "/luke/a/card";
    let holder = database.hold(key(PATH)).await;
    let (handler, mut gate) = gate();
    for _ in 0..5 {
        let waiting = patch(layer, &handler, PATH);
        database.wait_for_waiting(key(PATH), 1).await;
        waiting.abort();
        database.wait_for_waiting(key(PATH), 0).await;
    }
    let other = patch(layer, &handler, "/luke/b/card");
    gate.entered().await.answer(200);
    assert_eq!(answered(other).await.status(), 200);
    let next = patch(layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    holder.batch_execute("COMMIT").await.unwrap();
    gate.entered().await.answer(200);
    assert_eq!(answered(next).await.status(), 200);
    database.wait_for_granted(key(PATH), 0).await;
}
