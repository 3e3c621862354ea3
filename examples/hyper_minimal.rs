//! The layer on bare hyper, with no framework: a counter for each path, and no count is lost.
//!
//! ```text
//! cargo run --example hyper_minimal
//!
//! counter=http://127.0.0.1:3000/luke/my-realm/visits
//! for n in 1 2 3 4 5; do curl -sX POST $counter & done; wait; curl $counter
//! ```
//!
//! The last answer is 5. Without the line `.layer(…)` it is 1.
//!
//! With `DATABASE_URL` the locks are in PostgreSQL, and hold across replicas. `PORT` is where to listen: 3000 if not set.

use std::collections::HashMap;
use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::RwLock;
use tokio::time::{sleep, timeout};
use tower::ServiceBuilder;
use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};

const GRACE: Duration = Duration::from_secs(30);

/// Stands for a store: a counter is read and written in two steps, and other requests can come between them.
type Counters = Arc<RwLock<HashMap<String, u64>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (locks, place) = match env::var("DATABASE_URL") {
        Ok(url) => (RealmLocks::postgres(&url).await?, "PostgreSQL"),
        Err(_) => (RealmLocks::in_process(), "this process only"),
    };
    let counters = Counters::default();
    let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    let service = ServiceBuilder::new()
        .layer(RealmWriteLockLayer::new(locks.clone(), realms))
        .service_fn(move |request| count(Arc::clone(&counters), request));

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("hyper_minimal listening on http://{address} (locks in {place})");
    let server = auto::Builder::new(TokioExecutor::new());
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = &mut stop => break,
        };
        let service = TowerToHyperService::new(service.clone());
        let connection = server.serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection.into_owned());
        // An error is a client that broke off.
        tokio::spawn(async { drop(connection.await) });
    }
    drop(listener);
    // Requests that were let in, and then writes whose clients have gone.
    drop(timeout(GRACE, connections.shutdown()).await);
    Ok(locks.shutdown(GRACE).await?)
}

async fn count(
    counters: Counters,
    request: Request<Incoming>,
) -> Result<Response<String>, Infallible> {
    let path = request.uri().path();
    let mut count = counters.read().await.get(path).copied().unwrap_or(0);
    let mut response = Response::default();
    match *request.method() {
        Method::GET => {}
        Method::POST => {
            // What a handler does between its read and its write.
            sleep(Duration::from_millis(100)).await;
            count += 1;
            counters.write().await.insert(path.to_owned(), count);
        }
        _ => *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED,
    }
    *response.body_mut() = format!("{count}\n");
    Ok(response)
}
