//! A hundred thousand waiters that went away are gone: their memory, their places and their connections.

// Reads the size of this process in `/proc`.
#![cfg(target_os = "linux")]

use std::fs;

use futures_util::FutureExt;
use http::Request;
use tower::{Layer, ServiceExt};
use tower_realm_lock::{RealmLocks, RealmWriteLockLayer};

use crate::support::alone::is_alone;
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{Gated, gate, key, patch, realms};

const QUEUED: &str = "/luke/queued/card";

/// How many realms another program holds, whose waiters stand in PostgreSQL side by side.
const FOREIGN: usize = 20;

/// The most connections of the pool: one for each of them, and for the holder of the queue's realm.
const POOL: u32 = 21;

/// How many waiters there are at a time, and how many times.
const BATCH: usize = 1000;
const BATCHES: usize = 100;

/// How many times as many waiters go away that have come as far as PostgreSQL.
const WAVES_IN_DATABASE: usize = 10;

/// How much a process may grow that keeps nothing: pages of the allocator, which come and go.
const GROWTH: u64 = 4 * 1024 * 1024;

#[tokio::test]
async fn cancelled_waiters_leave_no_memory_and_no_connection() {
    if !is_alone(
        module_path!(),
        "cancelled_waiters_leave_no_memory_and_no_connection",
    ) {
        return;
    }
    let database = database().await;
    let locks = RealmLocks::postgres_builder(database.url())
        .pool_size(POOL)
        .build()
        .await
        .unwrap();
    let layer = RealmWriteLockLayer::new(locks, realms());
    let (handler, mut gate) = gate();
    let inside = patch(&layer, &handler, QUEUED);
    let holder = gate.entered().await;
    let foreign = database.connect().await;
    for path in foreign_paths() {
        let lock = format!("SELECT pg_advisory_lock({})", key(&path));
        foreign.batch_execute(&lock).await.unwrap();
    }

    cancel_in_queue(&layer, &handler, BATCHES / 10).await;
    cancel_in_database(&layer, &handler, &database, WAVES_IN_DATABASE / 5).await;
    let memory = resident();

    cancel_in_queue(&layer, &handler, BATCHES).await;
    cancel_in_database(&layer, &handler, &database, WAVES_IN_DATABASE).await;
    let (memory_after, backends) = (resident(), database.backends().await);
    println!("resident: {memory} bytes before, {memory_after} after");
    println!("connections: {backends}");
    let growth = memory_after.saturating_sub(memory);
    assert!(growth < GROWTH, "grew by {growth} bytes");
    // Those of the pool, and the foreign one. A waiter may need the pool's second connection while
    // the first is still on its way back, and the pool keeps both.
    assert!(
        backends <= i64::from(POOL) + 1,
        "{backends} connections are left"
    );

    // Nobody stands in anybody's way.
    let next = patch(&layer, &handler, QUEUED);
    holder.answer(200);
    gate.entered().await.answer(200);
    foreign
        .batch_execute("SELECT pg_advisory_unlock_all()")
        .await
        .unwrap();
    let others = foreign_paths().map(|path| patch(&layer, &handler, &path));
    let writes: Vec<_> = [inside, next].into_iter().chain(others).collect();
    for _ in foreign_paths() {
        gate.entered().await.answer(200);
    }
    for write in writes {
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
}

/// Lets requests wait behind the holder, a batch at a time, and drops them.
async fn cancel_in_queue(layer: &RealmWriteLockLayer, handler: &Gated, batches: usize) {
    for _ in 0..batches {
        let waiters: Vec<_> = (0..BATCH)
            .map(|_| {
                let request = Request::patch(QUEUED).body(String::new()).unwrap();
                let mut waiter = Box::pin(layer.layer(handler.clone()).oneshot(request));
                assert!((&mut waiter).now_or_never().is_none());
                waiter
            })
            .collect();
        drop(waiters);
        // The holder's heartbeats go on.
        tokio::task::yield_now().await;
    }
}

fn foreign_paths() -> impl Iterator<Item = String> {
    (0..FOREIGN).map(|number| format!("/luke/foreign-{number}/card"))
}

/// Lets requests wait in PostgreSQL, one for each of the foreign realms, and aborts them there.
async fn cancel_in_database(
    layer: &RealmWriteLockLayer,
    handler: &Gated,
    database: &TestDatabase,
    waves: usize,
) {
    for _ in 0..waves {
        let waiters: Vec<_> = foreign_paths()
            .map(|path| patch(layer, handler, &path))
            .collect();
        for path in foreign_paths() {
            database.wait_for_waiting(key(&path), 1).await;
        }
        for waiter in waiters {
            assert!(!waiter.is_finished(), "it does not wait");
            waiter.abort();
        }
        for path in foreign_paths() {
            database.wait_for_waiting(key(&path), 0).await;
        }
    }
}

/// How much memory this process has.
fn resident() -> u64 {
    // In pages; the kernel of every common machine has pages of 4096 bytes.
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
