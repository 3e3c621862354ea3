//! A rejection reaches its client: one that is still sending its body, one that speaks gRPC, and a
//! closure that answers by the request. Over real connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    Claim, LockError, RealmBodyLockLayer, RealmBodyResolver, RealmError, RealmLocks, RealmPointers,
    RealmResolver, RealmUrl, RealmWriteLockLayer,
};

use crate::support::gate::{ORIGIN, realms};
use crate::support::raw::Connection;
use crate::support::wait::PATIENCE;

const MEGABYTE: usize = 1_000_000;
/// More than fits into the buffers of both ends of a connection.
const LARGE: usize = 32 * MEGABYTE;
/// The most bytes that a layer reads of a body here.
const LIMIT: usize = 1000;
const SHORT: Duration = Duration::from_millis(50);

/// A realm that another call holds until this is dropped.
struct Held(#[expect(dead_code, reason = "its drop ends the hold")] oneshot::Sender<()>);

/// Takes the lock of the realm `/luke/a/`.
async fn hold(locks: &RealmLocks) -> Held {
    let realm: RealmUrl = format!("{ORIGIN}/luke/a/").parse().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let (entered, inside) = oneshot::channel();
    let locks = locks.clone();
    tokio::spawn(async move {
        let work = |_| async move {
            let _ = entered.send(());
            let _ = ended.await;
            Ok::<_, LockError>(())
        };
        locks.with_write_lock(&realm, work).await
    });
    inside.await.unwrap();
    Held(end)
}

/// A layer that reads bodies: realms in the path, of one route in the body, of another nowhere.
fn layer(locks: &RealmLocks) -> RealmBodyLockLayer {
    let lost = RealmResolver::from_fn(async |_| Err::<Claim, _>(RealmError::unavailable("gone")));
    let realms = RealmBodyResolver::from(realms())
        .route(
            Method::POST,
            "/_publish",
            RealmPointers::new(["/realm"]).unwrap(),
        )
        .and_then(|realms| realms.route(Method::POST, "/_lost", lost))
        .unwrap();
    RealmBodyLockLayer::new(locks.clone(), realms, LIMIT)
        .map_locks(|locks| locks.acquire_timeout(SHORT))
}

/// A server over HTTP/1.1 and HTTP/2.
async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// A server whose handlers read nothing.
async fn serve_layered(layer: RealmBodyLockLayer) -> SocketAddr {
    serve(Router::new().fallback(any(async || "done")).layer(layer)).await
}

fn with_length(target: &str, length: usize) -> String {
    format!("{target} HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n")
}

/// Sends a request with so large a body, reads the response only when all of it is sent, and asks
/// for something else on the same connection.
async fn send_all_before_reading(server: SocketAddr, target: &str, length: usize) -> (u16, String) {
    let mut connection = Connection::with(server, &with_length(target, length)).await;
    let chunk = vec![b' '; MEGABYTE];
    for _ in 0..length / MEGABYTE {
        connection.send(&chunk).await;
    }
    let answer = connection.answer().await;
    connection
        .send(b"GET /luke/a/x HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    assert_eq!(connection.answer().await, (200, "done".to_owned()));
    answer
}

#[tokio::test]
async fn a_client_that_sends_100_mb_to_a_held_realm_sees_its_503() {
    let locks = RealmLocks::in_process();
    let _held = hold(&locks).await;
    let server = serve_layered(layer(&locks)).await;
    let answer = send_all_before_reading(server, "PATCH /luke/a/x", 100 * MEGABYTE).await;
    assert_eq!(answer.0, 503);
    assert!(answer.1.contains("#lock-timeout"), "{}", answer.1);
}

#[tokio::test]
async fn a_client_that_stops_sending_is_not_waited_for() {
    let locks = RealmLocks::in_process();
    let _held = hold(&locks).await;
    let server = serve_layered(layer(&locks)).await;
    let head = with_length("PATCH /luke/a/x", LARGE);
    let mut connection = Connection::with(server, &head).await;
    connection.send(b"the first bytes of many").await;
    // In less time than the rest of the body is given.
    let answer = connection.answer().await;
    assert_eq!(answer.0, 503);
    assert!(answer.1.contains("#lock-timeout"), "{}", answer.1);
}

#[tokio::test]
async fn wherever_a_request_is_rejected_its_body_is_drained() {
    let locks = RealmLocks::in_process();
    let _held = hold(&locks).await;
    let impatient =
        serve_layered(layer(&locks).map_locks(|locks| locks.max_waiters_per_realm(0))).await;
    let server = serve_layered(layer(&locks)).await;
    for (server, target, status, code) in [
        (impatient, "PATCH /luke/a/x", 503, "queue-full"),
        (server, "PATCH /luke", 400, "realm-unresolved"),
        (server, "POST /_lost", 503, "realm-unavailable"),
        // Its length says that it is too large.
        (server, "POST /_publish", 413, "body-too-large"),
    ] {
        let answer = send_all_before_reading(server, target, LARGE).await;
        assert_eq!(answer.0, status, "{target}: {}", answer.1);
        assert!(answer.1.contains(code), "{target}: {}", answer.1);
    }
}

#[tokio::test]
async fn a_body_that_turns_out_too_large_is_drained() {
    let server = serve_layered(layer(&RealmLocks::in_process())).await;
    let head = "POST /_publish HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut connection = Connection::with(server, head).await;
    let chunk = format!("{MEGABYTE:x}\r\n{}\r\n", " ".repeat(MEGABYTE));
    for _ in 0..LARGE / MEGABYTE {
        connection.send(chunk.as_bytes()).await;
    }
    connection.send(b"0\r\n\r\n").await;
    let (status, problem) = connection.answer().await;
    assert_eq!(status, 413, "{problem}");
    connection
        .send(b"GET /luke/a/x HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    assert_eq!(connection.status().await, 200);
}

/// Rejects a request with this body. Returns how many bytes were read of it until it was dropped, and
/// after which time that was.
async fn drained(body: impl Stream<Item = Bytes> + Send + 'static) -> (usize, Duration) {
    let started = Instant::now();
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let (kept, dropped) = oneshot::channel::<()>();
    let body = body.map(move |chunk| {
        let _kept = &kept;
        counted.fetch_add(chunk.len(), Ordering::SeqCst);
        Ok::<_, Infallible>(Frame::data(chunk))
    });
    let request = Request::post("/").body(StreamBody::new(body));
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let service = layer.layer(service_fn(async |_| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    let response = service.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 400);
    let _ = dropped.await;
    (read.load(Ordering::SeqCst), started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn no_more_than_256_mib_in_30_seconds_are_drained() {
    let (read, after) = drained(stream::pending()).await;
    assert_eq!((read, after), (0, Duration::from_secs(30)));
    let chunk = Bytes::from(vec![0; 1024 * 1024]);
    let (read, _) = drained(stream::repeat(chunk).take(512)).await;
    assert_eq!(read, 257 * 1024 * 1024);
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_not_asked() {
    let locks = RealmLocks::in_process();
    let _held = hold(&locks).await;
    let server = serve_layered(layer(&locks)).await;
    for (target, status) in [
        ("PATCH /luke/a/x", 503),
        ("PATCH /luke", 400),
        ("POST /_publish", 413),
    ] {
        let head = format!(
            "{target} HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: {LARGE}\r\n\r\n"
        );
        let mut connection = Connection::with(server, &head).await;
        assert_eq!(connection.status().await, status, "{target}");
        // What it sends now would be its body.
        connection.closed().await;
    }
}

/// A connection over HTTP/2.
async fn http2<B>(server: SocketAddr) -> SendRequest<B>
where
    B: http_body::Body<Data: Send, Error = Infallible> + Send + Unpin + 'static,
{
    let stream = TcpStream::connect(server).await.unwrap();
    let connected = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (client, connection) = connected.unwrap();
    tokio::spawn(connection);
    client
}

/// A body of so many chunks, and a receiver that resolves when all of them were sent.
fn watched(
    chunks: usize,
) -> (
    impl Stream<Item = Bytes> + Send + Unpin,
    oneshot::Receiver<()>,
) {
    let (all, sent) = oneshot::channel();
    let chunk = Bytes::from(vec![b' '; MEGABYTE]);
    let body = stream::iter(std::iter::repeat_n(chunk, chunks));
    let end = stream::once(async move {
        let _ = all.send(());
        Bytes::new()
    });
    (Box::pin(body.chain(end)), sent)
}

#[tokio::test]
async fn over_http_2_a_body_is_drained_too() {
    let locks = RealmLocks::in_process();
    let _held = hold(&locks).await;
    let mut client = http2(serve_layered(layer(&locks)).await).await;
    let (body, sent) = watched(LARGE / MEGABYTE);
    let body = StreamBody::new(body.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk))));
    let request = Request::patch(format!("{ORIGIN}/luke/a/x")).body(body);
    let response = client.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 503);
    let sent = timeout(PATIENCE, sent).await.expect("it goes on in time");
    sent.expect("the server has not reset the stream");
}

/// What a gRPC client gets over HTTP/2.
async fn grpc(server: SocketAddr, path: &str, content_type: &str) -> (StatusCode, HeaderMap) {
    let mut client = http2(server).await;
    let request = Request::post(format!("{ORIGIN}{path}"))
        .header("content-type", content_type)
        .body(Empty::<Bytes>::new());
    let response = client.send_request(request.unwrap()).await.unwrap();
    // Trailers-Only: the stream ends with its head.
    assert!(response.body().is_end_stream());
    (response.status(), response.headers().clone())
}

#[tokio::test]
async fn a_grpc_client_gets_the_status_of_its_call() {
    let locks = RealmLocks::in_process();
    let _held = hold(&locks).await;
    let app = |layer: RealmBodyLockLayer| {
        Router::new()
            .fallback(any(std::future::pending::<()>))
            .layer(layer)
    };
    let full = serve(app(
        layer(&locks).map_locks(|locks| locks.max_waiters_per_realm(0))
    ))
    .await;
    let server = serve(app(layer(&locks).map_locks(|locks| locks.max_hold(SHORT)))).await;
    for (server, path, status, message) in [
        (server, "/luke/a/x", "14", "http://realms.test/luke/a/"),
        (full, "/luke/a/x", "8", "http://realms.test/luke/a/"),
        (server, "/luke", "3", "`/luke`"),
        // The inner service has received this one.
        (server, "/luke/b/x", "4", "http://realms.test/luke/b/"),
    ] {
        for (sent, expected) in [
            ("application/grpc+proto", "application/grpc"),
            ("application/grpc-web+proto", "application/grpc-web"),
        ] {
            let (code, headers) = grpc(server, path, sent).await;
            assert_eq!(code, 200);
            assert_eq!(headers["content-type"], expected);
            assert_eq!(headers["grpc-status"], status, "{path}");
            let text = headers["grpc-message"].to_str().unwrap();
            assert!(text.contains(message), "{text}");
        }
    }
}

#[derive(Debug, Clone)]
struct Tenant(&'static str);

#[tokio::test]
async fn a_closure_answers_by_the_head_of_the_request_before_and_after_the_grant() {
    let locks = RealmLocks::in_process();
    let _held = hold(&locks).await;
    let layer = RealmWriteLockLayer::new(locks, realms())
        .map_locks(|locks| locks.acquire_timeout(SHORT).max_hold(SHORT))
        .rejection(|rejection, head| {
            let Tenant(tenant) = head.extensions.get().expect("the head has its extensions");
            let wish = head.headers["wish"].to_str().unwrap();
            let (method, path) = (&head.method, head.uri.path());
            let code = rejection.code();
            Response::new(format!("{method} {path} {wish} {tenant}: {code}").into())
        });
    let handler = service_fn(async |mut request: Request<Body>| {
        // Whatever the inner service does with its request.
        request.headers_mut().clear();
        request.extensions_mut().clear();
        std::future::pending::<Result<Response<String>, Infallible>>().await
    });
    for (path, code) in [
        ("/luke", "realm-unresolved"),
        ("/luke/a/x", "lock-timeout"),
        ("/luke/b/x", "hold-expired"),
    ] {
        let request = Request::patch(path)
            .header("wish", "soon")
            .extension(Tenant("t"))
            .body(Body::empty());
        let response = layer
            .layer(handler)
            .oneshot(request.unwrap())
            .await
            .unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("PATCH {path} soon t: {code}"));
    }
}
