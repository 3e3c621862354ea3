//! `HoldUntil::BodyEnd`: a handler that writes while it streams keeps its lock until the body has ended.

use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, unfold};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{HoldUntil, RealmLocks, RealmWriteLockLayer};

use crate::support::contest::{REALM, Room, rival};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{gate, key, patch, postgres_layer, postgres_layer_with, queue, realms};
use crate::support::proxy::Proxy;

const PATH: &str = "/luke/a/card";

async fn layer(database: &TestDatabase) -> RealmWriteLockLayer {
    postgres_layer(database.url()).await
}

type Chunks = mpsc::UnboundedSender<&'static str>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A locked call whose response streams what the test sends.
async fn streaming(layer: &RealmWriteLockLayer) -> (Chunks, BoxBody<Bytes, BoxError>) {
    let (chunks, receiver) = mpsc::unbounded_channel();
    let stream = unfold(receiver, async |mut receiver| {
        let chunk: &str = receiver.recv().await?;
        let frame = Frame::data(Bytes::from(chunk));
        Some((Ok::<_, Infallible>(frame), receiver))
    });
    let body = Arc::new(Mutex::new(Some(StreamBody::new(Box::pin(stream)))));
    let service = layer.layer(service_fn(move |_: Request<String>| {
        let body = body.lock().unwrap().take().expect("one call");
        ready(Ok::<_, Infallible>(Response::new(body)))
    }));
    let request = Request::patch(PATH).body(String::new()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    (chunks, response.into_body().boxed())
}

#[tokio::test]
async fn the_lock_is_kept_until_the_body_has_ended() {
    let database = database().await;
    let layer = layer(&database).await;
    let (chunks, mut body) = streaming(&layer.clone().hold_until(HoldUntil::BodyEnd)).await;
    assert_eq!(database.advisory_locks(key(PATH)).await, (1, 0));
    chunks.send("one").unwrap();
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "one");

    let (handler, mut gate) = gate();
    let next = patch(&layer, &handler, PATH);
    assert_eq!(database.advisory_locks(key(PATH)).await, (1, 0));
    assert!(gate.is_empty());
    drop(chunks);
    assert!(body.frame().await.is_none());
    gate.entered().await.answer(200);
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn by_default_a_body_streams_without_the_lock() {
    let database = database().await;
    let (chunks, body) = streaming(&layer(&database).await).await;
    assert_eq!(database.advisory_locks(key(PATH)).await, (0, 0));
    chunks.send("late").unwrap();
    drop(chunks);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "late");
}

#[tokio::test]
async fn a_body_that_is_dropped_releases() {
    let database = database().await;
    let (_chunks, body) = streaming(&layer(&database).await.hold_until(HoldUntil::BodyEnd)).await;
    database.wait_for_granted(key(PATH), 1).await;
    drop(body);
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn a_lock_lost_under_a_body_ends_it_with_an_error() {
    let database = database().await;
    let (chunks, mut body) =
        streaming(&layer(&database).await.hold_until(HoldUntil::BodyEnd)).await;
    chunks.send("one").unwrap();
    body.frame().await.unwrap().unwrap();
    let pid = database.holder_pid(key(PATH)).await.unwrap();
    database.terminate(pid).await;
    let end = body.frame().await.expect("an error, not an end");
    assert!(end.unwrap_err().to_string().contains("lost"));
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_body_that_takes_too_long_ends_with_an_error() {
    let database = database().await;
    let layer = layer(&database).await;
    let layer = layer
        .hold_until(HoldUntil::BodyEnd)
        .map_locks(|locks| locks.max_hold(Duration::from_millis(50)));
    let (_chunks, mut body) = streaming(&layer).await;
    database.wait_for_granted(key(PATH), 0).await;
    // A server that asks only now must not take it for an empty body.
    assert_eq!(body.size_hint().exact(), None);
    assert!(!body.is_end_stream());
    let end = body.frame().await.expect("an error, not an end");
    assert!(end.unwrap_err().to_string().contains("50ms"));
}

#[tokio::test]
async fn the_end_of_a_body_waits_for_the_confirmation() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let layer = postgres_layer_with(&proxy.url(database.url()), |builder| {
        builder.lease(Duration::from_millis(600))
    })
    .await
    .hold_until(HoldUntil::BodyEnd);
    let (chunks, mut body) = streaming(&layer).await;
    chunks.send("all").unwrap();
    drop(chunks);
    body.frame().await.unwrap().unwrap();
    proxy.freeze();
    let end = body.frame().await.expect("an error, not an end");
    assert!(end.unwrap_err().to_string().contains("lost"));
}

/// Notes that the body that has it is dropped, which takes its time, as flushing a file does.
struct DropNote(Arc<AtomicBool>);

impl Drop for DropNote {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(500));
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The address of a server with a body that never ends, and what is set when that is dropped.
async fn endless_server(layer: RealmWriteLockLayer) -> (SocketAddr, Arc<AtomicBool>) {
    let is_dropped = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&is_dropped);
    let handler = move || {
        let chunks = unfold(DropNote(Arc::clone(&note)), async |note| {
            let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
            Some((Ok::<_, Infallible>(chunk), note))
        });
        ready(axum::body::Body::from_stream(chunks))
    };
    let app = axum::Router::new()
        .route("/{owner}/{realm}/card", axum::routing::patch(handler))
        .layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    (address, is_dropped)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_its_client_does_not_read_is_dropped_before_the_next_writer_gets_in() {
    let database = database().await;
    for is_lost in [false, true] {
        let layer = layer(&database).await;
        let max_hold = Duration::from_millis(if is_lost { 60_000 } else { 300 });
        let streamed = layer.clone().hold_until(HoldUntil::BodyEnd);
        let (server, is_dropped) =
            endless_server(streamed.map_locks(|locks| locks.max_hold(max_hold))).await;
        let mut client = TcpStream::connect(server).await.unwrap();
        let head = format!("PATCH {PATH} HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        client.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");

        let (handler, mut gate) = gate();
        let next = queue(&layer, &handler, PATH);
        if is_lost {
            let pid = database
                .holder_pid(key(PATH))
                .await
                .expect("the body holds");
            database.terminate(pid).await;
        }
        let call = gate.entered().await;
        assert!(is_dropped.load(Ordering::SeqCst), "lost: {is_lost}");
        call.answer(200);
        next.await.unwrap().unwrap();
        // The body does not end well: its client sees a response that is cut off.
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_next_writer_gets_in_after_the_step_in_which_max_hold_passed() {
    const MAX_HOLD: Duration = Duration::from_millis(100);
    let locks = RealmLocks::in_process();
    let layer = RealmWriteLockLayer::new(locks.clone(), realms())
        .hold_until(HoldUntil::BodyEnd)
        .map_locks(|locks| locks.max_hold(MAX_HOLD));
    let room = Room::default();
    let body = room.clone();
    let service = layer.layer(service_fn(move |_: Request<String>| {
        let room = body.clone();
        let stream = stream::poll_fn(move |_| {
            let visit = room.enter("the body");
            std::thread::sleep(4 * MAX_HOLD);
            drop(visit);
            Poll::<Option<Result<Frame<Bytes>, Infallible>>>::Pending
        });
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(stream))))
    }));
    let request = Request::patch(PATH).body(String::new()).unwrap();
    let mut body = service.oneshot(request).await.unwrap().into_body();
    let next = rival(&locks, &room, REALM);
    let end = body.frame().await.expect("an error, not an end");
    assert!(end.unwrap_err().to_string().contains("100ms"));
    next.enters().await;
    room.assert_alone("in process");
}
