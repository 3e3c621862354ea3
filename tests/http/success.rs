//! A layer's `Success` decides what commits, is published and is confirmed. The response of a
//! failure reaches its client as the handler made it.

use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::stream::{Stream, iter};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::handshake as http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    HeldLock, HoldUntil, LockRules, RealmWriteLockLayer, RealmWrites, Rejection, Success,
};

use crate::support::broadcast::next_write;
use crate::support::claims::realm;
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{key, postgres_layer, postgres_layer_with};
use crate::support::proxy::Proxy;
use crate::support::raw::raw;
use crate::support::writes::{database_with_writes, insert, written};

const PATH: &str = "/luke/a/card";

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// How a handler of these tests marks a failure in its head.
#[derive(Clone, Copy, Debug, PartialEq)]
struct HasErrors(bool);

/// Judges by the mark, and nothing else.
fn by_mark() -> Success {
    Success::from_fn(|head| head.extensions().get() == Some(&HasErrors(false)))
}

/// Judges by the trailer `failed`, and nothing else.
fn by_trailer() -> Success {
    Success::from_trailers_fn(|_, trailers| {
        trailers.is_some_and(|trailers| trailers.get("failed") == Some(&"no".parse().unwrap()))
    })
}

/// Both rules, which say the same of an [`answer`].
fn rules() -> [Success; 2] {
    [by_mark(), by_trailer()]
}

/// A response of two frames that both rules judge.
fn answer(fails: bool) -> Response<StreamBody<impl Stream<Item = Step> + Send + 'static + use<>>> {
    let mut trailers = HeaderMap::new();
    let failed = if fails { "yes" } else { "no" };
    trailers.insert("failed", HeaderValue::from_static(failed));
    let frames = [Frame::data(Bytes::from("made")), Frame::trailers(trailers)];
    let mut response = Response::new(StreamBody::new(iter(frames.map(Ok))));
    response.extensions_mut().insert(HasErrors(fails));
    response
}

type Step = Result<Frame<Bytes>, Infallible>;

async fn set_up() -> (TestDatabase, RealmWriteLockLayer) {
    let database = database_with_writes().await;
    let layer = postgres_layer(database.url()).await;
    (
        database,
        layer.map_locks(|locks| locks.share_transaction(true)),
    )
}

/// A locked call that writes in the shared transaction, if there is one, and gives this answer.
async fn call(layer: &RealmWriteLockLayer, path: &str, fails: bool) -> Answer {
    let service = layer.layer(service_fn(move |request: Request<String>| async move {
        let held: &HeldLock = request.extensions().get().unwrap();
        if held.transaction().is_some() {
            insert(held).await;
        }
        Ok::<_, Infallible>(answer(fails))
    }));
    let request = Request::patch(path).body(String::new()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    response.map(BodyExt::boxed_unsync)
}

/// Fails unless the answer is the one that its handler made.
async fn assert_made(answer: Answer, fails: bool) {
    assert_eq!(answer.status(), 200);
    assert!(answer.extensions().get::<Rejection>().is_none());
    let body = answer.into_body().collect().await.unwrap();
    let failed = body.trailers().unwrap().get("failed").unwrap();
    assert_eq!(failed, if fails { "yes" } else { "no" });
    assert_eq!(body.to_bytes(), "made");
}

#[tokio::test]
async fn what_fails_does_not_commit() {
    for rule in rules() {
        let (database, layer) = set_up().await;
        let layer = layer.success(rule);
        for (fails, stands) in [(true, 0), (false, 1), (true, 1)] {
            assert_made(call(&layer, PATH, fails).await, fails).await;
            database.wait_for_granted(key(PATH), 0).await;
            assert_eq!(written(&database).await, stands);
        }
    }
}

#[tokio::test]
async fn what_fails_is_not_published() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for sessions in [0, 1] {
        for rule in rules() {
            let layer = postgres_layer_with(database.url(), |builder| {
                builder.broadcast(true).sessions(sessions)
            })
            .await
            .success(rule);
            for (name, fails) in [("fails", true), ("succeeds", false)] {
                let path = format!("/luke/{name}/card");
                assert_made(call(&layer, &path, fails).await, fails).await;
            }
            let write = next_write(&mut writes).await;
            assert_eq!(write.realm(), &realm("succeeds"));
        }
    }
}

#[tokio::test]
async fn what_fails_is_not_confirmed() {
    let database = database().await;
    let proxy = Arc::new(Proxy::to(database.url()).await);
    for rule in rules() {
        let lease = Duration::from_secs(2);
        let url = proxy.url(database.url());
        let layer = postgres_layer_with(&url, |builder| builder.lease(lease)).await;
        for fails in [true, false] {
            // When the work is done the network falls silent: a success is lost then.
            let silent = Arc::clone(&proxy);
            let handler = service_fn(move |_: Request<String>| {
                silent.freeze();
                ready(Ok::<_, Infallible>(answer(fails)))
            });
            let request = Request::patch(PATH).body(String::new()).unwrap();
            let service = layer.clone().success(rule.clone()).layer(handler);
            let response = service.oneshot(request).await.unwrap();
            let response = response.map(BodyExt::boxed_unsync);
            if fails {
                assert_made(response, true).await;
            } else if response.status() == 200 {
                assert!(response.into_body().collect().await.is_err());
            } else {
                assert_eq!(response.status(), 503);
            }
            proxy.thaw();
        }
    }
}

#[tokio::test]
async fn a_rule_alone_decides_whatever_the_status_is() {
    for (rule, stands) in [(Success::default(), 0), (Success::from_fn(|_| true), 1)] {
        let (database, layer) = set_up().await;
        let service =
            layer
                .success(rule)
                .layer(service_fn(move |request: Request<String>| async move {
                    insert(request.extensions().get().unwrap()).await;
                    let mut response = Response::new(String::from("missing"));
                    *response.status_mut() = StatusCode::NOT_FOUND;
                    Ok::<_, Infallible>(response)
                }));
        let request = Request::patch(PATH).body(String::new()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 404);
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "missing");
        assert_eq!(written(&database).await, stands);
    }
}

#[tokio::test]
async fn a_rule_that_reads_trailers_holds_the_lock_until_they_have_come() {
    let (database, layer) = set_up().await;
    let layer = layer.hold_until(HoldUntil::Response).success(by_trailer());
    let mut answer = call(&layer, PATH, false).await;
    assert_eq!(database.advisory_locks(key(PATH)).await, (1, 0));
    assert_eq!(written(&database).await, 0);
    let frame = answer.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "made");
    assert_eq!(database.advisory_locks(key(PATH)).await, (1, 0));
    let frame = answer.body_mut().frame().await.unwrap().unwrap();
    assert!(frame.is_trailers());
    assert_eq!(written(&database).await, 1);
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_before_its_trailers_does_not_commit() {
    let (database, layer) = set_up().await;
    let layer = layer.success(by_trailer());
    let mut answer = call(&layer, PATH, false).await;
    answer.body_mut().frame().await.unwrap().unwrap();
    drop(answer);
    database.wait_for_granted(key(PATH), 0).await;
    assert_eq!(written(&database).await, 0);
}

#[tokio::test]
async fn a_response_whose_body_no_server_asks_for_is_judged_without_trailers() {
    for succeeds in [true, false] {
        let (database, layer) = set_up().await;
        let rule = Success::from_trailers_fn(move |head, trailers| {
            assert_eq!(trailers, None);
            head.extensions().get() == Some(&HasErrors(!succeeds)) && succeeds
        });
        let rules = LockRules::new().lock(Method::HEAD, "/{*path}").unwrap();
        let layer = layer.success(rule).rules(rules).unwrap();
        for (method, status) in [(Method::HEAD, 200), (Method::PATCH, 204)] {
            let service = layer.layer(service_fn(move |request: Request<String>| async move {
                insert(request.extensions().get().unwrap()).await;
                let mut response = answer(!succeeds);
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok::<_, Infallible>(response)
            }));
            let request = Request::builder().method(method).uri(PATH);
            let request = request.body(String::new()).unwrap();
            let response = service.oneshot(request).await.unwrap();
            assert_eq!(response.status(), status);
        }
        assert_eq!(written(&database).await, if succeeds { 2 } else { 0 });
    }
}

/// An empty server stream: no message, and the status in the trailers. Its length is known to be 0,
/// and it is told in a header as well if that is `announced`.
fn empty_stream(grpc_status: &'static str, announced: bool) -> Answer {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(grpc_status));
    let body = Empty::new().with_trailers(ready(Some(Ok(trailers))));
    let body = body.map_err(|never: Infallible| match never {});
    assert!(!body.is_end_stream() && body.size_hint().exact() == Some(0));
    let mut response = Response::new(body.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if announced {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    response
}

/// A hyper server for HTTP/1.1 and HTTP/2. Its handler writes, and answers with the stream whose
/// status the last segment of the path is.
async fn serve_empty_streams(layer: &RealmWriteLockLayer, announced: bool) -> SocketAddr {
    let service = layer.layer(service_fn(move |request: Request<Incoming>| async move {
        insert(request.extensions().get().unwrap()).await;
        let failed = request.uri().path().ends_with("/9");
        Ok::<_, Infallible>(empty_stream(if failed { "9" } else { "0" }, announced))
    }));
    let service = TowerToHyperService::new(service);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = auto::Builder::new(TokioExecutor::new());
            let connection = server.serve_connection(TokioIo::new(stream), service.clone());
            tokio::spawn(connection.into_owned());
        }
    });
    address
}

#[tokio::test]
async fn an_empty_stream_is_judged_by_the_trailers_that_its_client_gets() {
    for (hold_until, announced) in [
        (HoldUntil::Response, false),
        (HoldUntil::Response, true),
        (HoldUntil::BodyEnd, false),
    ] {
        let (database, layer) = set_up().await;
        let layer = layer.hold_until(hold_until).success(Success::grpc());
        let address = serve_empty_streams(&layer, announced).await;
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut client, connection) = http2(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        for (grpc_status, stands) in [("9", 0), ("0", 1), ("9", 1)] {
            let request = Request::post(format!("http://realms.test/luke/a/{grpc_status}"));
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap();
            let told = body.trailers().unwrap().get("grpc-status").unwrap();
            assert_eq!(told, grpc_status);
            database.wait_for_granted(key(PATH), 0).await;
            assert_eq!(written(&database).await, stands, "{grpc_status}");
        }
    }
}

#[tokio::test]
async fn an_empty_stream_over_http1_has_no_trailers_and_is_judged_without() {
    let without = Success::from_trailers_fn(|_, trailers| trailers.is_none());
    for (rule, announced, stands) in [
        (Success::grpc(), false, 0),
        (without.clone(), false, 1),
        (without, true, 1),
    ] {
        let (database, layer) = set_up().await;
        let address = serve_empty_streams(&layer.success(rule), announced).await;
        let head = b"POST /luke/a/0 HTTP/1.1\r\nhost: realms.test\r\nte: trailers";
        assert_eq!(raw(address, head, "").await, (200, String::new()));
        database.wait_for_granted(key(PATH), 0).await;
        assert_eq!(written(&database).await, stands);
    }
}

#[tokio::test]
async fn errors_of_graphql_in_a_200_roll_back_and_reach_their_client() {
    /// Answers as a GraphQL server does, and marks its errors.
    async fn mutate(
        Extension(held): Extension<HeldLock>,
        query: String,
    ) -> axum::response::Response {
        insert(&held).await;
        let fails = query.contains("fails");
        let document = if fails {
            r#"{"errors":[]}"#
        } else {
            r#"{"data":{}}"#
        };
        (Extension(HasErrors(fails)), document).into_response()
    }

    let (database, layer) = set_up().await;
    let app = axum::Router::new()
        .route("/{owner}/{realm}/graphql", axum::routing::post(mutate))
        .layer(layer.success(by_mark()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/luke/a/graphql", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, app).into_future());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (query, document, stands) in [
        ("mutation { fails }", r#"{"errors":[]}"#, 0),
        ("mutation { succeeds }", r#"{"data":{}}"#, 1),
    ] {
        let response = client.post(&url).body(query).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.unwrap(), document);
        assert_eq!(written(&database).await, stands);
    }
}
