//! A body that writes while it streams, in the locked transaction: it commits when the body has ended well, and the body
//! makes no step without its lock.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Extension;
use axum::extract::Path;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{iter, pending, unfold};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    HeldLock, HoldUntil, LockError, LockRules, RealmLocks, RealmUrl, RealmWriteLockLayer,
};

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{key, postgres_layer, postgres_layer_with, realms};
use crate::support::wait::wait_until;
use crate::support::writes::{database_with_writes, insert, written};

const PATH: &str = "/luke/a/card";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn set_up() -> (TestDatabase, RealmWriteLockLayer) {
    let database = database_with_writes().await;
    let layer = postgres_layer(database.url()).await;
    let layer = layer
        .map_locks(|locks| locks.share_transaction(true))
        .hold_until(HoldUntil::BodyEnd);
    (database, layer)
}

/// The body of a locked response, which streams what `step` gives for 0, 1, 2 and so on.
async fn streaming<S, F>(layer: &RealmWriteLockLayer, step: S) -> UnsyncBoxBody<Bytes, BoxError>
where
    S: Fn(HeldLock, usize) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<Result<Bytes, &'static str>>> + Send + 'static,
{
    let service = layer.layer(service_fn(move |request: Request<String>| {
        let held: HeldLock = request.extensions().get().cloned().unwrap();
        let step = step.clone();
        let stream = unfold(0, move |n| {
            let next = step(held.clone(), n);
            async move { Some((next.await?.map(Frame::data), n + 1)) }
        });
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(
            Box::pin(stream),
        ))))
    }));
    let request = Request::patch(PATH).body(String::new()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().boxed_unsync()
}

#[tokio::test]
async fn a_body_that_ends_well_commits_and_one_that_breaks_off_does_not() {
    for (fails, dropped, stands) in [(false, false, 2), (true, false, 0), (false, true, 0)] {
        let (database, layer) = set_up().await;
        let mut body = streaming(&layer, move |held, n| async move {
            match n {
                1 if fails => Some(Err("the second write failed")),
                0 | 1 => {
                    insert(&held).await;
                    Some(Ok(Bytes::from("x")))
                }
                _ => None,
            }
        })
        .await;
        body.frame().await.unwrap().unwrap();
        if dropped {
            drop(body);
        } else {
            assert_eq!(body.collect().await.is_err(), fails);
        }
        database.wait_for_granted(key(PATH), 0).await;
        assert_eq!(written(&database).await, stands, "{fails} {dropped}");
    }
}

#[tokio::test]
async fn a_body_may_own_the_client_to_its_end() {
    let (database, layer) = set_up().await;
    let client = Arc::new(Mutex::new(None));
    let body = streaming(&layer, move |held, n| {
        let client = Arc::clone(&client);
        async move {
            insert(&held).await;
            *client.lock().unwrap() = Some(held.transaction().unwrap().client().unwrap());
            (n < 2).then_some(Ok(Bytes::from("x")))
        }
    })
    .await;
    assert_eq!(body.collect().await.unwrap().to_bytes(), "xx");
    assert_eq!(written(&database).await, 3);
}

/// A body of one frame that says so, as a body of known length does: a server does not ask it for more.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |data| data.len() as u64))
    }
}

#[tokio::test]
async fn the_last_frame_of_a_body_waits_for_the_commit() {
    let (database, layer) = set_up().await;
    for fails in [false, true] {
        let service = layer.layer(service_fn(move |request: Request<String>| async move {
            let held: &HeldLock = request.extensions().get().unwrap();
            insert(held).await;
            if fails {
                let client = held.transaction().unwrap().client().unwrap();
                client.batch_execute("ROLLBACK").await.unwrap();
            }
            Ok::<_, Infallible>(Response::new(Whole(Some(Bytes::from("whole")))))
        }));
        let request = Request::patch(PATH).body(String::new()).unwrap();
        let mut body = service.oneshot(request).await.unwrap().into_body();
        assert_eq!(body.size_hint().exact(), Some(5));
        let frame = body.frame().await.unwrap();
        assert_eq!(frame.is_err(), fails);
        assert!(body.is_end_stream());
        assert_eq!(written(&database).await, 1);
    }
}

#[tokio::test]
async fn a_body_that_stood_still_makes_no_step_without_its_lock() {
    let database = database().await;
    let lease = Duration::from_millis(300);
    let layer = postgres_layer_with(database.url(), |builder| builder.lease(lease)).await;
    let layer = layer.hold_until(HoldUntil::BodyEnd);
    let mut body = streaming(&layer, |held, _| async move {
        Some(Ok(Bytes::from(format!("{}", held.is_held()))))
    })
    .await;
    body.frame().await.unwrap().unwrap();
    // The whole process stands still for longer than a lease, as far as this runtime can tell: it has one thread.
    std::thread::sleep(2 * lease);
    let end = body.frame().await.expect("an error, not an end");
    assert!(end.unwrap_err().to_string().contains("lost"));
}

#[tokio::test]
async fn a_job_in_a_body_that_holds_the_realm_runs_straight_through() {
    let locks = RealmLocks::in_process();
    let layer = RealmWriteLockLayer::new(locks.clone(), realms()).hold_until(HoldUntil::BodyEnd);
    let realm: RealmUrl = "http://realms.test/luke/a/".parse().unwrap();
    let body = streaming(&layer, move |_, n| {
        let (locks, realm) = (locks.clone(), realm.clone());
        async move {
            let job = |_| async { Ok::<_, LockError>(Bytes::from("done")) };
            let impatient = locks.acquire_timeout(Duration::from_millis(100));
            (n == 0).then_some(())?;
            Some(
                impatient
                    .with_write_lock(&realm, job)
                    .await
                    .map_err(|_| "no lock"),
            )
        }
    })
    .await;
    assert_eq!(body.collect().await.unwrap().to_bytes(), "done");
}

/// Streams one chunk, which is all, and does not know that: the length or the trailers say so, or the end of the stream.
async fn stream_whole(
    Path((_, _, with)): Path<(String, String, String)>,
    Extension(held): Extension<HeldLock>,
) -> Response<axum::body::Body> {
    insert(&held).await;
    let mut frames = vec![Ok::<_, Infallible>(Frame::data(Bytes::from("whole")))];
    if with == "trailers" {
        frames.push(Ok(Frame::trailers(HeaderMap::new())));
    }
    let mut response = Response::new(axum::body::Body::new(StreamBody::new(iter(frames))));
    if with == "length" {
        let length = HeaderValue::from(5);
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
    }
    response
}

#[tokio::test]
async fn a_body_of_which_a_server_asks_no_more_has_ended_well() {
    let (database, layer) = set_up().await;
    let app = axum::Router::new()
        .route(
            "/{owner}/{realm}/{with}",
            axum::routing::patch(stream_whole),
        )
        .layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, app).into_future());
    for (count, with) in ["length", "trailers", "neither"].into_iter().enumerate() {
        let request = reqwest::Client::new().patch(format!("{origin}/luke/a/{with}"));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.unwrap(), "whole");
        database.wait_for_granted(key(PATH), 0).await;
        let count = i64::try_from(count).unwrap() + 1;
        assert_eq!(written(&database).await, count, "{with}");
    }
}

#[tokio::test]
async fn a_body_without_data_keeps_its_lock_to_its_trailers_over_http2() {
    let (database, layer) = set_up().await;
    let service = layer.layer(service_fn(|request: Request<String>| {
        let held: HeldLock = request.extensions().get().cloned().unwrap();
        let body = Empty::<Bytes>::new().with_trailers(Box::pin(async move {
            insert(&held).await;
            Some(Ok(HeaderMap::new()))
        }));
        assert_eq!(body.size_hint().exact(), Some(0));
        ready(Ok::<_, Infallible>(Response::new(body)))
    }));
    let request = Request::patch(PATH).version(Version::HTTP_2);
    let request = request.body(String::new()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert!(body.trailers().is_some());
    assert_eq!(written(&database).await, 1);
}

#[tokio::test]
async fn a_body_for_which_no_server_asks_is_not_waited_for() {
    let (database, layer) = set_up().await;
    let rules = LockRules::new().lock(Method::HEAD, "/{*path}").unwrap();
    let layer = layer.rules(rules).unwrap();
    for (count, (method, status)) in [
        (Method::HEAD, 200),
        (Method::PATCH, 204),
        (Method::PATCH, 304),
    ]
    .into_iter()
    .enumerate()
    {
        let service = layer.layer(service_fn(move |request: Request<String>| async move {
            let held: &HeldLock = request.extensions().get().unwrap();
            insert(held).await;
            let frames = iter([Ok::<_, Infallible>(Frame::data(Bytes::from("unread")))]);
            let response = Response::builder().status(status);
            Ok::<_, Infallible>(response.body(StreamBody::new(frames)).unwrap())
        }));
        let request = Request::builder().method(&method).uri(PATH);
        let request = request.body(String::new()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
        // As a server does with it.
        drop(response);
        database.wait_for_granted(key(PATH), 0).await;
        let count = i64::try_from(count).unwrap() + 1;
        assert_eq!(written(&database).await, count, "{method} {status}");
    }
}

/// A locked response that makes its connection a tunnel, through which everything comes back.
async fn tunnel(
    mut request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, BoxError>>, Infallible> {
    let held: HeldLock = request.extensions().get().cloned().unwrap();
    insert(&held).await;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut from, mut to) = split(TokioIo::new(upgrade.await.unwrap()));
        copy(&mut from, &mut to).await.unwrap();
    });
    let endless = pending::<Result<Frame<Bytes>, BoxError>>();
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(endless)));
    if request.method() != Method::CONNECT {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("echo"));
    }
    Ok(response)
}

/// Fails unless a tunnel is open whose response has ended its hold, and committed.
async fn assert_tunnel(
    mut tunnel: impl AsyncRead + AsyncWrite + Unpin,
    database: &TestDatabase,
    stands: i64,
) {
    assert_eq!(written(database).await, stands);
    database.wait_for_granted(key(PATH), 0).await;
    tunnel.write_all(b"still open").await.unwrap();
    let mut echo = [0; 10];
    tunnel.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"still open");
}

#[tokio::test]
async fn a_response_that_opens_a_tunnel_ends_its_hold_and_commits() {
    let (database, layer) = set_up().await;
    let service = TowerToHyperService::new(layer.layer(service_fn(tunnel)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http2().enable_connect_protocol();
        loop {
            let stream = TokioIo::new(listener.accept().await.unwrap().0);
            let connection = server.serve_connection_with_upgrades(stream, service.clone());
            tokio::spawn(connection.into_owned());
        }
    });

    // HTTP/1.1: 101.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("POST {PATH} HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert_tunnel(stream, &database, 1).await;

    // HTTP/2: extended CONNECT (RFC 8441).
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (mut client, connection) = handshake.await.unwrap();
    let mut connection = Box::pin(connection);
    wait_until("the server's settings", async || {
        assert!((&mut connection).now_or_never().is_none());
        connection.is_extended_connect_protocol_enabled()
    })
    .await;
    tokio::spawn(connection);
    let request = Request::connect(format!("http://h{PATH}"));
    let mut request = request.body(Empty::<Bytes>::new()).unwrap();
    let echo = hyper::ext::Protocol::from_static("echo");
    request.extensions_mut().insert(echo);
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let tunnel = hyper::upgrade::on(response).await.unwrap();
    assert_tunnel(TokioIo::new(tunnel), &database, 2).await;
}
