//! What a client costs that writes to ever other realms: little for each request that waits, and nothing when it has gone.

use std::convert::Infallible;
use std::time::Duration;

use dhat::HeapStats;
use futures_util::FutureExt;
use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::RealmWriteLockLayer;

use crate::support::alone::is_alone;
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{postgres_locks_with, realms};
use crate::support::wait::wait_until;

/// What is allocated now.
fn bytes() -> usize {
    HeapStats::get().curr_bytes
}

fn request(realm: usize) -> Request<String> {
    let request = Request::patch(format!("/mallory/{realm}/card"));
    request.body(String::new()).expect("a plain request")
}

/// How many backends have had to do with these realms.
async fn backends(database: &TestDatabase) -> i64 {
    let client = database.connect().await;
    let count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%mallory%' AND pid <> pg_backend_pid()";
    client.query_one(count, &[]).await.expect("a count").get(0)
}

#[test]
fn a_realm_for_each_request_costs_little_and_leaves_nothing() {
    const REALMS: usize = 5000;
    const POOL: u32 = 2;
    if !is_alone(
        module_path!(),
        "a_realm_for_each_request_costs_little_and_leaves_nothing",
    ) {
        return;
    }
    let _profile = dhat::Profiler::builder()
        .testing()
        .trim_backtraces(Some(4))
        .build();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let database = database().await;
        // The waves keep this thread from sending heartbeats, for longer than a common lease where
        // the machine is busy.
        let lease = Duration::from_secs(600);
        let locks = postgres_locks_with(database.url(), |builder| {
            builder.pool_size(POOL).lease(lease)
        })
        .await;
        let locks = locks.acquire_timeout(Duration::from_secs(600));
        let handler = service_fn(async |_: Request<String>| {
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let service = RealmWriteLockLayer::new(locks.clone(), realms()).layer(handler);
        // Those that get in take all connections.
        let inside: Vec<_> = (0..POOL as usize)
            .map(|realm| tokio::spawn(service.clone().oneshot(request(realm))))
            .collect();
        wait_until("all connections are taken", async || {
            locks.status().iter().filter(|one| one.is_held()).count() == inside.len()
        })
        .await;

        let before = bytes();
        let waves = [0, 1].map(|wave| (wave + 1) * REALMS..(wave + 2) * REALMS);
        let mut left = Vec::new();
        for realms in waves {
            let mut waiting = Vec::with_capacity(REALMS);
            let begun = bytes();
            for realm in realms {
                let mut call = Box::pin(service.clone().oneshot(request(realm)));
                assert!((&mut call).now_or_never().is_none());
                waiting.push(call);
            }
            assert_eq!(locks.status().len(), REALMS + inside.len());
            let each = (bytes() - begun) / REALMS;
            println!("{each} bytes for a request of a realm of its own");
            assert!(each <= 8 * 1024, "{each} bytes for each");
            assert_eq!(backends(&database).await, i64::from(POOL));
            drop(waiting);
            wait_until("they have left", async || {
                locks.status().len() == inside.len()
            })
            .await;
            left.push(bytes().saturating_sub(before));
        }
        // Tables keep the room of the greatest crowd.
        println!("{left:?} bytes are left");
        assert!(left[0] < REALMS * 128, "{left:?}");
        assert!(left[1] < left[0] + REALMS, "{left:?}");
        for call in inside {
            call.abort();
        }
    });
}
