//! A body that comes slowly, or never ends, holds up nobody but its own client, and no lock for longer than is allowed. Over real sockets.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::{patch, post};
use http::{Method, Request};
use http_body_util::BodyExt;
use support::gate::realms;
use support::wait::{PATIENCE, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, timeout};
use tower_realm_lock::{RealmBodyLockLayer, RealmBodyResolver, RealmLocks, RealmPointers};

const LIMIT: usize = 1024;
const BOUND: Duration = Duration::from_millis(400);

const PUBLISH: &str = "POST /_publish HTTP/1.1\r\nhost: h\r\n";
const PATCH: &str = "PATCH /luke/a/x HTTP/1.1\r\nhost: h\r\n";
/// A client that waits to be asked for its body: the answer says that somebody reads it.
const ASK: &str = "expect: 100-continue\r\ncontent-length: 1000\r\n\r\n";

struct Server {
    address: SocketAddr,
    locks: RealmLocks,
    /// How many bytes of bodies were taken from connections.
    taken: Arc<AtomicUsize>,
}

/// A server whose handlers read their bodies to the end; of one route the layer does, too.
async fn serve(set: impl FnOnce(RealmBodyLockLayer) -> RealmBodyLockLayer) -> Server {
    let locks = RealmLocks::in_process();
    let publish = RealmPointers::new(["/realm"]).unwrap();
    let realms = RealmBodyResolver::from(realms())
        .route(Method::POST, "/_publish", publish)
        .unwrap();
    let layer = RealmBodyLockLayer::new(locks.clone(), realms, LIMIT);
    let taken: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&taken);
    let count = axum::middleware::map_request(move |request: Request<Body>| {
        let taken = Arc::clone(&counted);
        let counted = request.map(|body| {
            Body::new(body.map_frame(move |frame| {
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
    }
}

/// A connection on which this was sent.
async fn connected(server: &Server, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// The status of the next head, which must come in time.
async fn status(stream: &mut TcpStream) -> u16 {
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("the head goes on"));
        }
    };
    timeout(PATIENCE, reading).await.expect("an answer in time");
    let head = String::from_utf8(head).unwrap();
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A client whose body is being read.
async fn begun(server: &Server, head: &str) -> TcpStream {
    let mut stream = connected(server, &format!("{head}{ASK}")).await;
    assert_eq!(status(&mut stream).await, 100);
    stream
}

async fn write(server: &Server) -> u16 {
    let request = format!("{PATCH}content-length: 0\r\n\r\n");
    status(&mut connected(server, &request).await).await
}

#[tokio::test]
async fn a_body_that_says_which_realm_holds_up_nobody_however_slowly_it_comes() {
    let server = serve(|layer| layer.body_timeout(BOUND)).await;
    let started = Instant::now();
    let mut silent = begun(&server, PUBLISH).await;
    let slow = begun(&server, PUBLISH).await;
    let (mut answers, mut bytes) = slow.into_split();
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
    assert_eq!(status(&mut silent).await, 408);
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
    let server = serve(|layer| layer.max_hold(BOUND)).await;
    let started = Instant::now();
    let mut slow = begun(&server, PATCH).await;
    assert!(server.locks.status()[0].is_held());
    let next = tokio::spawn({
        let request = format!("{PATCH}content-length: 0\r\n\r\n");
        let mut stream = connected(&server, &request).await;
        async move { status(&mut stream).await }
    });
    wait_until("the next one waits", async || {
        server.locks.status().len() == 2
    })
    .await;
    assert_eq!(status(&mut slow).await, 504);
    assert!(started.elapsed() >= BOUND);
    assert_eq!(next.await.unwrap(), 200);
    wait_until("nobody holds it", async || server.locks.status().is_empty()).await;
}

#[tokio::test]
async fn an_endless_body_is_refused_at_the_limit_and_not_read_on() {
    let server = serve(|layer| layer).await;
    let stream = connected(
        &server,
        &format!("{PUBLISH}transfer-encoding: chunked\r\n\r\n"),
    )
    .await;
    let (mut answers, mut chunks) = stream.into_split();
    let sent = tokio::spawn(async move {
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
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
    // The server hangs up: what was sent is what fits into the buffers of both ends.
    let sent = timeout(PATIENCE, sent).await.expect("it cannot go on");
    let sent = sent.unwrap();
    let taken = server.taken.load(Ordering::SeqCst);
    println!("{sent} bytes were sent, {taken} taken");
    assert!(taken > LIMIT && taken < 1 << 20, "{taken}");
    assert!(sent < 1 << 26, "{sent}");
    assert!(server.locks.status().is_empty());
}
