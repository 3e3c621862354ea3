//! A body that comes slowly, or never ends, holds up nobody but its own client, and no lock for
//! longer than is allowed. Over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::{patch, post};
use http::{Method, Request};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{interval, timeout};
use tower_realm_lock::{RealmBodyLockLayer, RealmBodyResolver, RealmLocks, RealmPointers};

use crate::support::database::database;
use crate::support::gate::{key, postgres_locks_with, realms};
use crate::support::raw::Connection;
use crate::support::wait::{PATIENCE, wait_until};

const LIMIT: usize = 1024;
const BOUND: Duration = Duration::from_millis(400);
/// More than any test has.
const LONG: Duration = Duration::from_secs(60);
/// The most bytes of a rejected request that are thrown away.
const DRAINED: usize = 256 << 20;

const PUBLISH: &str = "POST /_publish HTTP/1.1\r\nhost: h\r\n";
const PATCH: &str = "PATCH /luke/a/x HTTP/1.1\r\nhost: h\r\n";
/// A client that waits to be asked for its body: the answer says that somebody reads it.
const ASK: &str = "expect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
const CHUNKED: &str = "transfer-encoding: chunked\r\n\r\n";

struct Server {
    address: SocketAddr,
    locks: RealmLocks,
    /// How many bytes of bodies were taken from connections.
    taken: Arc<AtomicUsize>,
    /// How many bodies there are.
    bodies: Arc<AtomicUsize>,
}

/// Counts a body for as long as it is there.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(bodies: &Arc<AtomicUsize>) -> Self {
        bodies.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(bodies))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A server over locks in process: see [`serve_with`].
async fn serve(set: impl FnOnce(RealmBodyLockLayer) -> RealmBodyLockLayer) -> Server {
    serve_with(RealmLocks::in_process(), set).await
}

/// A server whose handlers read their bodies to the end; of one route the layer does, too.
async fn serve_with(
    locks: RealmLocks,
    set: impl FnOnce(RealmBodyLockLayer) -> RealmBodyLockLayer,
) -> Server {
    let publish = RealmPointers::new(["/realm"]).unwrap();
    let realms = RealmBodyResolver::from(realms())
        .route(Method::POST, "/_publish", publish)
        .unwrap();
    let layer = RealmBodyLockLayer::new(locks.clone(), realms, LIMIT);
    let taken: Arc<AtomicUsize> = Arc::default();
    let bodies: Arc<AtomicUsize> = Arc::default();
    let (counted, all) = (Arc::clone(&taken), Arc::clone(&bodies));
    let count = axum::middleware::map_request(move |request: Request<Body>| {
        let (taken, body_is_there) = (Arc::clone(&counted), Counted::new(&all));
        let counted = request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _ = &body_is_there;
                let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
                taken.fetch_add(bytes, Ordering::SeqCst);
                frame
            }))
        });
        async { counted }
    });
    let read = async |_: String| {};
    let app = Router::new()
        .route("/_publish", post(read))
        .route("/{owner}/{realm}/{*card}", patch(read))
        .layer(set(layer))
        .layer(count);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server {
        address,
        locks,
        taken,
        bodies,
    }
}

/// A connection on which this was sent.
async fn connected(server: &Server, request: &str) -> Connection {
    Connection::with(server.address, request).await
}

/// A client whose body is being read.
async fn begun(server: &Server, head: &str) -> Connection {
    let mut connection = connected(server, &format!("{head}{ASK}")).await;
    assert_eq!(connection.status().await, 100);
    connection
}

async fn write(server: &Server) -> u16 {
    let request = format!("{PATCH}content-length: 0\r\n\r\n");
    connected(server, &request).await.status().await
}

#[tokio::test]
async fn a_body_that_says_which_realm_holds_up_nobody_however_slowly_it_comes() {
    let server = serve(|layer| layer.body_timeout(BOUND)).await;
    let started = Instant::now();
    let mut silent = begun(&server, PUBLISH).await;
    let slow = begun(&server, PUBLISH).await;
    let (mut answers, mut bytes) = slow.into_inner().into_split();
    let trickle = tokio::spawn(async move {
        let document = br#"{"realm":"http://realms.test/luke/a/","#;
        let mut ticks = interval(Duration::from_millis(5));
        for byte in document.iter().chain(b" ".iter().cycle()) {
            ticks.tick().await;
            if bytes.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    });
    // Neither of them stands in any queue.
    while started.elapsed() < BOUND / 2 {
        assert_eq!(write(&server).await, 200);
        assert!(server.locks.status().is_empty());
    }
    assert_eq!(silent.status().await, 408);
    // It is not waited for again.
    silent.closed().await;
    let mut head = [0; 12];
    timeout(PATIENCE, answers.read_exact(&mut head))
        .await
        .expect("an answer in time")
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 408");
    assert!(started.elapsed() >= BOUND);
    trickle.abort();
    assert!(server.taken.load(Ordering::SeqCst) > 10);
    assert_eq!(write(&server).await, 200);
}

#[tokio::test]
async fn a_body_that_a_handler_reads_holds_its_realm_no_longer_than_allowed() {
    let server = serve(|layer| layer.map_locks(|locks| locks.max_hold(BOUND))).await;
    let started = Instant::now();
    let mut slow = begun(&server, PATCH).await;
    assert!(server.locks.status()[0].is_held());
    let next = tokio::spawn({
        let request = format!("{PATCH}content-length: 0\r\n\r\n");
        let mut connection = connected(&server, &request).await;
        async move { connection.status().await }
    });
    wait_until("the next one waits", async || {
        server.locks.status().len() == 2
    })
    .await;
    assert_eq!(slow.status().await, 504);
    assert!(started.elapsed() >= BOUND);
    assert_eq!(next.await.unwrap(), 200);
    wait_until("nobody holds it", async || server.locks.status().is_empty()).await;
}

#[tokio::test]
async fn an_endless_body_is_refused_at_the_limit_and_drained_to_a_bound() {
    let server = serve(|layer| layer).await;
    let connection = connected(&server, &format!("{PUBLISH}{CHUNKED}")).await;
    let (mut answers, mut chunks) = connection.into_inner().into_split();
    let sent = tokio::spawn(async move {
        let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
        let mut sent = 0;
        while chunks.write_all(chunk.as_bytes()).await.is_ok() {
            sent += chunk.len();
        }
        sent
    });
    let mut head = [0; 12];
    timeout(PATIENCE, answers.read_exact(&mut head))
        .await
        .expect("an answer in time")
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 413");
    // The server hangs up.
    let sent = timeout(LONG, sent).await.expect("it cannot go on");
    let sent = sent.unwrap();
    let taken = server.taken.load(Ordering::SeqCst);
    println!("{sent} bytes were sent, {taken} taken");
    assert!(taken > DRAINED && taken < DRAINED + (2 << 20), "{taken}");
    assert!(server.locks.status().is_empty());
}

#[tokio::test]
async fn a_client_that_vanishes_while_it_waits_leaves_the_queue_at_once() {
    const CHUNKS: &str = "3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder).await;
    let patient = |layer: RealmBodyLockLayer| {
        layer
            .read_all(true)
            .map_locks(|locks| locks.acquire_timeout(LONG))
    };
    let server = serve_with(locks, patient).await;
    let _held = database.hold(key("/luke/a/x")).await;
    for is_chunked in [true, false] {
        let client = if is_chunked {
            let mut client = connected(&server, &format!("{PATCH}{CHUNKED}")).await;
            client.send(CHUNKS.as_bytes()).await;
            client
        } else {
            let mut client = begun(&server, PATCH).await;
            client.send(&[b' '; 1000]).await;
            client
        };
        database.wait_for_waiting(key("/luke/a/x"), 1).await;
        drop(client);
        wait_until("it has left the queue", async || {
            server.locks.status().is_empty()
        })
        .await;
        database.wait_for_waiting(key("/luke/a/x"), 0).await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_in_its_body_was_never_in_the_queue() {
    let locks = RealmLocks::in_process();
    let patient = |layer: RealmBodyLockLayer| {
        layer
            .read_all(true)
            .map_locks(|locks| locks.acquire_timeout(LONG))
    };
    let server = serve_with(locks, patient).await;
    for sent in [
        format!("{PATCH}content-length: 1000\r\n\r\n{}", " ".repeat(500)),
        format!("{PATCH}{CHUNKED}{:x}\r\n{}\r\n", 500, " ".repeat(500)),
    ] {
        server.taken.store(0, Ordering::SeqCst);
        let client = connected(&server, &sent).await;
        wait_until("what it sent was read", async || {
            server.taken.load(Ordering::SeqCst) == 500
        })
        .await;
        assert!(server.locks.status().is_empty());
        drop(client);
        wait_until("its request is gone", async || {
            server.bodies.load(Ordering::SeqCst) == 0
        })
        .await;
        assert!(server.locks.status().is_empty());
    }
    // One that was asked for its body, and sends none.
    let client = begun(&server, PATCH).await;
    assert!(server.locks.status().is_empty());
    drop(client);
    wait_until("its request is gone", async || {
        server.bodies.load(Ordering::SeqCst) == 0
    })
    .await;
    assert!(server.locks.status().is_empty());
}
