//! `HoldUntil::BodyEnd`: a handler that writes while it streams keeps its lock until the body has ended.

mod support;

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use support::database::{TestDatabase, database};
use support::gate::{gate, key, patch, postgres_layer, postgres_layer_with};
use support::proxy::Proxy;
use tokio::sync::mpsc;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{HoldUntil, RealmWriteLockLayer};

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
        .max_hold(Duration::from_millis(50));
    let (_chunks, mut body) = streaming(&layer).await;
    let end = body.frame().await.expect("an error, not an end");
    assert!(end.unwrap_err().to_string().contains("50ms"));
    database.wait_for_granted(key(PATH), 0).await;
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
