//! A body in which realms stand is read within its bounds and handed on as it was; every other body is left alone.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    HeldLock, LockRules, RealmBodyLockLayer, RealmBodyResolver, RealmLocks, RealmPointers,
    RealmResolver, RealmUrl, RealmWriteLockLayer, Rejection, RequestBody, Scope,
};

use crate::support::gate::realms;

const LIMIT: usize = 64;

/// Realms in the path, but of one route in the body.
fn layer() -> RealmBodyLockLayer {
    let publish = RealmPointers::new(["/realm"]).unwrap();
    let realms = RealmBodyResolver::from(realms())
        .route(Method::POST, "/_publish", publish)
        .unwrap();
    let rules = LockRules::new()
        .scope(
            Method::POST,
            "/{owner}/{realm}/_atomic",
            Scope::atomic_hrefs(),
        )
        .unwrap();
    RealmBodyLockLayer::new(RealmLocks::in_process(), realms, LIMIT).rules(rules)
}

/// What a handler gets of a body, frame by frame, and what it was told of it before.
#[derive(Debug, PartialEq)]
struct Seen {
    hint: SizeHintOf,
    ended_before: bool,
    data: Bytes,
    trailers: Option<HeaderMap>,
    ended_after: bool,
}

type SizeHintOf = (u64, Option<u64>);

async fn seen(body: RequestBody<Body>) -> Seen {
    seen_by_axum(Body::new(body)).await
}

async fn seen_by_axum(mut body: Body) -> Seen {
    let hint = body.size_hint();
    let ended_before = body.is_end_stream();
    let mut data = Vec::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.expect("no error").into_data() {
            Ok(chunk) => data.extend_from_slice(&chunk),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Seen {
        hint: (hint.lower(), hint.upper()),
        ended_before,
        data: data.into(),
        trailers,
        ended_after: body.is_end_stream(),
    }
}

type Answer = (StatusCode, Option<Seen>, Option<Rejection>);

/// Sends a body through the layer; what the handler saw, and why not.
async fn send(layer: &RealmBodyLockLayer, path: &str, body: Body) -> Answer {
    let handler = service_fn(async |request: Request<RequestBody<Body>>| {
        assert!(request.extensions().get::<HeldLock>().is_some());
        let mut response = Response::new(String::new());
        let read = request.body().bytes().cloned();
        let seen = seen(request.into_body()).await;
        assert_eq!(read.as_ref(), Some(&seen.data));
        response.extensions_mut().insert(std::sync::Arc::new(seen));
        Ok::<_, Infallible>(response)
    });
    let request = Request::post(path).body(body).unwrap();
    let mut response = layer.layer(handler).oneshot(request).await.unwrap();
    let seen = response.extensions_mut().remove::<std::sync::Arc<Seen>>();
    let rejection = response.extensions_mut().remove::<Rejection>();
    let seen = seen.map(|seen| std::sync::Arc::into_inner(seen).expect("the only one"));
    (response.status(), seen, rejection)
}

fn chunked(frames: Vec<Frame<Bytes>>) -> Body {
    let frames = frames.into_iter().map(Ok::<_, Infallible>);
    Body::new(StreamBody::new(stream::iter(frames)))
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

const DOCUMENT: &str = r#"{"realm":"http://realms.test/luke/a/"}"#;

#[tokio::test]
async fn a_body_that_was_read_is_handed_on_byte_for_byte_with_its_trailers_and_length() {
    let mut trailers = HeaderMap::new();
    trailers.append("digest", HeaderValue::from_static("x"));
    trailers.append("digest", HeaderValue::from_static("y"));
    let (head, tail) = DOCUMENT.split_at(7);
    let frames = vec![
        data(head),
        data(""),
        data(tail),
        Frame::trailers(trailers.clone()),
    ];
    let (status, got, _) = send(&layer(), "/_publish", chunked(frames)).await;
    assert_eq!(status, 200);
    let length = DOCUMENT.len() as u64;
    assert_eq!(
        got.unwrap(),
        Seen {
            hint: (length, Some(length)),
            ended_before: false,
            data: DOCUMENT.into(),
            trailers: Some(trailers),
            ended_after: true
        }
    );
}

#[tokio::test]
async fn an_empty_body_stays_one() {
    let (status, got, _) = send(&layer(), "/luke/a/_atomic", Body::empty()).await;
    assert_eq!(status, 200);
    let got = got.unwrap();
    assert_eq!((got.hint, got.ended_before), ((0, Some(0)), true));
}

#[tokio::test]
async fn the_limit_is_kept_to_the_byte() {
    let exact = format!("{DOCUMENT}{}", " ".repeat(LIMIT - DOCUMENT.len()));
    for (body, status) in [
        (Body::from(exact.clone()), 200),
        (chunked(vec![Frame::data(exact.clone().into())]), 200),
        (Body::from(exact.clone() + " "), 413),
        (
            chunked(vec![Frame::data(exact.clone().into()), data(" ")]),
            413,
        ),
        (chunked(vec![Frame::data(Bytes::from(exact + " "))]), 413),
    ] {
        let (answered, _, rejection) = send(&layer(), "/_publish", body).await;
        assert_eq!(answered, status);
        let code = rejection.map(|rejection| rejection.code());
        assert_eq!(code, (status == 413).then_some("body-too-large"));
    }
}

/// A body that claims a length, and fails the test when it is read.
struct Untouched(u64);

impl http_body::Body for Untouched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("nobody may read this body");
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn a_body_that_says_it_is_too_long_is_not_read_at_all() {
    let body = Body::new(Untouched(LIMIT as u64 + 1));
    let (status, ..) = send(&layer(), "/_publish", body).await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn a_request_that_does_not_need_its_body_keeps_the_very_same() {
    let rules = LockRules::new()
        .scope(
            Method::PATCH,
            "/{owner}/{realm}/_atomic",
            Scope::atomic_hrefs(),
        )
        .and_then(|rules| rules.scope(Method::POST, "/{*card}", Scope::resource()))
        .unwrap();
    let reading = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let reading = reading.read_bodies(LIMIT).rules(rules);
    for (method, path) in [
        (Method::GET, "/luke/a/_atomic"),
        (Method::POST, "/luke/a/_atomic"),
        (Method::PATCH, "/luke/a/card"),
        (Method::PATCH, "/luke/a/%5Fatomic"),
    ] {
        let handler = service_fn(async |request: Request<RequestBody<Untouched>>| {
            let body = request.into_body();
            assert!(body.bytes().is_none());
            assert_eq!(body.size_hint().exact(), Some(1 << 40));
            assert_eq!(body.get_ref().map(|own| own.0), Some(1 << 40));
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let request = Request::builder().method(&method).uri(path);
        let request = request.body(Untouched(1 << 40)).unwrap();
        let response = reading.layer(handler).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200, "{method} {path}");
    }
}

#[tokio::test]
async fn a_layer_can_read_the_body_of_every_locked_request() {
    let closure = RealmResolver::from_fn(async |_| RealmUrl::parse("http://realms.test/luke/a/"));
    let realms = RealmBodyResolver::from(realms())
        .route(Method::POST, "/_lookup", closure)
        .unwrap();
    let rules = LockRules::new()
        .scope(Method::POST, "/luke/a/{*card}", Scope::resource())
        .unwrap();
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, LIMIT).rules(rules);
    for (method, path, is_locked) in [
        (Method::PATCH, "/luke/a/card", true),
        (Method::POST, "/luke/a/card", true),
        (Method::POST, "/_lookup", true),
        (Method::GET, "/luke/a/card", false),
    ] {
        for all in [true, false] {
            let handler = service_fn(async |request: Request<RequestBody<Body>>| {
                let is_read = request.body().bytes().is_some();
                Ok::<_, Infallible>(Response::new(is_read.to_string()))
            });
            let request = |body: Body| {
                let request = Request::builder().method(&method).uri(path).body(body);
                request.unwrap()
            };
            let service = layer.clone().read_all(all).layer(handler);
            let response = service.clone().oneshot(request(DOCUMENT.into())).await;
            let body = response.unwrap().into_body().collect().await.unwrap();
            let expected = (all && is_locked).to_string();
            assert_eq!(body.to_bytes(), expected, "{method} {path}");
            let long = Body::from(" ".repeat(LIMIT + 1));
            let response = service.oneshot(request(long)).await.unwrap();
            let is_rejected = response.status() == 413;
            assert_eq!(is_rejected, all && is_locked, "{method} {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_given_up() {
    let endless = stream::pending::<Result<Frame<Bytes>, Infallible>>();
    let layer = layer().body_timeout(Duration::from_secs(5));
    let started = tokio::time::Instant::now();
    let body = Body::new(StreamBody::new(endless));
    let (status, _, rejection) = send(&layer, "/_publish", body).await;
    assert_eq!(status, 408);
    assert_eq!(rejection.unwrap().code(), "body-timeout");
    assert_eq!(started.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_bad_request() {
    let broken = [Ok(data("{")), Err("reset\nby \u{1b}[31mpeer")];
    let body = Body::new(StreamBody::new(stream::iter(broken)));
    let (status, _, rejection) = send(&layer(), "/_publish", body).await;
    assert_eq!(status, 400);
    let rejection = rejection.unwrap();
    assert_eq!(rejection.code(), "body-broken");
    assert!(!rejection.detail().contains(char::is_control));
}

#[test]
fn a_layer_that_reads_no_bodies_refuses_what_needs_one_when_it_is_built() {
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    for scope in [
        Scope::atomic_hrefs(),
        Scope::from_body_fn(async |_, _, _| Ok(Some(Vec::new()))),
    ] {
        let rules = LockRules::new()
            .scope(Method::PATCH, "/{*card}", Scope::resource())
            .and_then(|rules| rules.scope(Method::POST, "/{owner}/{realm}/_atomic", scope))
            .unwrap();
        let error = layer.clone().rules(rules.clone()).unwrap_err().to_string();
        assert!(error.contains("POST /{owner}/{realm}/_atomic"), "{error}");
        assert!(error.contains("`read_bodies`"), "{error}");
        let _ = layer.clone().read_bodies(LIMIT).rules(rules);
    }
    let rules = LockRules::new()
        .scope(
            Method::PATCH,
            "/{*card}",
            Scope::from_fn(async |_, _| Ok(None)),
        )
        .unwrap();
    assert!(layer.rules(rules).is_ok());
}

#[tokio::test]
async fn any_type_of_body_can_be_read() {
    let realms = RealmPointers::new(["/realm"]).unwrap();
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, LIMIT);
    let handler = service_fn(async |request: Request<RequestBody<String>>| {
        assert_eq!(request.body().bytes().unwrap(), DOCUMENT);
        assert!(request.body().get_ref().is_none());
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let request = Request::post("/").body(DOCUMENT.to_owned()).unwrap();
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, DOCUMENT);
}

/// A body of two frames, whose data are not `Bytes`.
fn chained() -> impl http_body::Body<Data: Send, Error = Infallible> + Send + Unpin {
    let data = || Bytes::from_static(b"{").chain(Bytes::from_static(b"}"));
    let frames = (0..2).map(move |_| Ok::<_, Infallible>(Frame::data(data())));
    StreamBody::new(stream::iter(frames))
}

async fn sees_two_frames<B>(request: Request<B>) -> Result<Response<String>, Infallible>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut body = request.into_body();
    let mut frames = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        frames.push(frame.into_data().expect("data"));
    }
    assert_eq!(frames, ["{}", "{}"]);
    Ok(Response::new(String::new()))
}

#[tokio::test]
async fn a_body_that_was_not_read_passes_frame_by_frame() {
    for method in [Method::GET, Method::PATCH] {
        let request = Request::builder().method(method).uri("/luke/a/x");
        let request = request.body(chained()).unwrap();
        let handler = service_fn(sees_two_frames::<RequestBody<_>>);
        let response = layer().layer(handler).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

/// A server over HTTP whose handler answers with the length of the body, and the trailer `sum`.
async fn serve() -> std::net::SocketAddr {
    let handler = async |request: Request<Body>| {
        let seen = seen_by_axum(request.into_body()).await;
        let sum = seen
            .trailers
            .and_then(|trailers| trailers.get("sum").cloned());
        format!("{} {:?}", seen.data.len(), sum)
    };
    let app = axum::Router::new().fallback(handler).layer(layer());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// A connection on which this was sent.
async fn connected(request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(serve().await).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// What is answered until the end of a head, or of the stream.
async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte.into()),
            Err(_) => break,
        }
    }
    answer
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_asked_or_refused() {
    let head = "POST /_publish HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n";
    let length = DOCUMENT.len();
    let mut stream = connected(&format!("{head}content-length: {length}\r\n\r\n")).await;
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 100"));
    stream.write_all(DOCUMENT.as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));

    let mut stream = connected(&format!("{head}content-length: 1000000\r\n\r\n")).await;
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn over_http_chunks_and_trailers_arrive() {
    let (one, two) = DOCUMENT.split_at(9);
    let mut stream = connected(&format!(
        "POST /_publish HTTP/1.1\r\nhost: h\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: sum\r\n\r\n{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\nsum: 1\r\n\r\n",
        one.len(),
        two.len()
    ))
    .await;
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    let expected = format!("{} Some(\"1\")", DOCUMENT.len());
    assert!(all.ends_with(&expected), "{all}");
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_is_not_called() {
    let mut stream =
        connected("POST /_publish HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n{").await;
    stream.shutdown().await.unwrap();
    let answer = answer(&mut stream).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
}
