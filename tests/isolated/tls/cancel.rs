//! A CancelRequest goes the way of the connection that it cancels for.

use std::time::Duration;

use super::server::{TlsServer, encrypted};
use crate::support::gate::{gate, key, patch, postgres_layer};
use crate::support::proxy::{Opening, Proxy};

const PATH: &str = "/luke/a/card";

/// A waiter that leaves is cancelled on the server; returns how connections were opened for that.
async fn openings_of_a_cancellation(user: &str, options: &str) -> Vec<Opening> {
    let (server, database) = TlsServer::shared().await;
    let proxy = Proxy::to(database.url()).await;
    let (port, name) = (proxy.port(), database.name());
    // The certificate is for this name, and the connection to a number.
    let url = format!(
        "postgres://{user}@localhost:{port}/{name}?sslrootcert={}&{options}",
        server.ca()
    );
    let layer = postgres_layer(&url).await;
    let layer = layer.map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)));
    let _holder = database.hold(key(PATH)).await;
    let (handler, _gate) = gate();
    let waiting = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    assert_eq!(encrypted(&database, user).await, [user == "sealed"]);
    proxy.openings();
    waiting.abort();
    database.wait_for_waiting(key(PATH), 0).await;
    proxy.openings()
}

#[tokio::test]
async fn a_wait_over_tls_is_cancelled_over_tls() {
    for mode in ["sslmode=prefer", "sslmode=require", "sslmode=verify-full"] {
        let openings = openings_of_a_cancellation("sealed", mode).await;
        assert!(!openings.is_empty(), "{mode}");
        let encrypted = openings.iter().all(|opening| *opening == Opening::Tls);
        assert!(encrypted, "{mode}: {openings:?}");
    }
}

#[tokio::test]
async fn a_wait_in_clear_text_is_cancelled_in_clear_text() {
    for mode in ["sslmode=disable", "sslmode=prefer"] {
        let openings = openings_of_a_cancellation("bare", mode).await;
        assert!(!openings.is_empty(), "{mode}");
        let plain = openings.iter().all(|opening| *opening == Opening::Cancel);
        assert!(plain, "{mode}: {openings:?}");
    }
}
