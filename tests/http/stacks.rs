//! The layer works in the stacks that people have: axum, bare hyper, tower services with limits, bodies of any kind.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::routing::patch;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::stream::{self, Pending};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_realm_lock::{HeldLock, LockRules, RealmLocks, RealmWriteLockLayer, Rejection};

use crate::support::gate::{at_once, gate, realms, send};

fn layer() -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms())
}

fn request(method: Method, path: &str) -> Request<String> {
    let request = Request::builder().method(method).uri(path);
    request.body(String::new()).expect("a plain request")
}

fn told(held: Option<&HeldLock>) -> String {
    held.map_or("none".to_owned(), |held| held.claim().to_string())
}

/// Asks a server over HTTP for a read, a write, and a write that names no realm.
async fn assert_locks(address: SocketAddr) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (method, path, status, text) in [
        (Method::GET, "/luke/a/card", 200, "none"),
        (
            Method::PATCH,
            "/luke/a/card",
            200,
            "http://realms.test/luke/a/",
        ),
        (Method::PATCH, "/luke", 400, "#realm-unresolved"),
    ] {
        let url = format!("http://{address}{path}");
        let answer = client.request(method.clone(), &url).send().await.unwrap();
        assert_eq!(answer.status(), status, "{method} {path}");
        let body = answer.text().await.unwrap();
        assert!(body.contains(text), "{method} {path}: {body}");
    }
}

#[tokio::test]
async fn axum() {
    let handler = async |held: Option<Extension<HeldLock>>| told(held.as_deref());
    let app = Router::new()
        .route("/{owner}/{realm}/{*path}", patch(handler).get(handler))
        .layer(layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    assert_locks(address).await;
}

#[tokio::test]
async fn bare_hyper() {
    async fn handler(
        request: Request<hyper::body::Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let text = told(request.extensions().get());
        Ok(Response::new(text.into()))
    }
    let service = layer().layer(service_fn(handler));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let connection = Builder::new(TokioExecutor::new());
                let stream = TokioIo::new(stream);
                connection.serve_connection(stream, service).await
            });
        }
    });
    assert_locks(address).await;
}

#[tokio::test]
async fn a_request_may_have_any_body() {
    type Anything = StreamBody<Pending<Result<Frame<std::io::Cursor<&'static str>>, Infallible>>>;
    let service = layer().layer(service_fn(async |request: Request<Anything>| {
        let _: Anything = request.into_body();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("done")))
    }));
    let request = Request::patch("/luke/a/card").body(StreamBody::new(stream::pending()));
    let body = service.oneshot(request.unwrap()).await.unwrap().into_body();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "done");
}

#[tokio::test]
async fn a_waiting_call_takes_no_permit_of_the_inner_service() {
    let (handler, mut gate) = gate();
    let limited = ServiceBuilder::new()
        .layer(layer())
        .layer(GlobalConcurrencyLimitLayer::new(2))
        .service(handler);
    let (_one, first) = called(&limited, Method::PATCH, "/luke/a/0").await;
    let first = tokio::spawn(first);
    let inside = gate.entered().await;
    let mut services = Vec::new();
    let mut waiting = Vec::new();
    for n in 1..10 {
        let (service, write) = called(&limited, Method::PATCH, &format!("/luke/a/{n}")).await;
        waiting.push(tokio::spawn(write));
        services.push(service);
    }
    let (_two, read) = called(&limited, Method::GET, "/luke/a/0").await;
    let read = tokio::spawn(read);
    gate.entered().await.answer(200);
    assert_eq!(read.await.unwrap().unwrap().status(), 200);

    inside.answer(200);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    for write in waiting {
        gate.entered().await.answer(200);
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
}

/// A call as a server makes it: ready first, which takes a permit. The service lives on, as it does in a connection.
async fn called<S>(service: &S, method: Method, path: &str) -> (S, S::Future)
where
    S: Service<Request<String>, Error: std::fmt::Debug> + Clone,
{
    let mut service = service.clone();
    let call = service.ready().await.unwrap().call(request(method, path));
    (service, call)
}

#[tokio::test]
async fn rules_say_what_is_locked() {
    let rules = LockRules::new()
        .exempt(Method::POST, "/{owner}/{realm}/_search")
        .and_then(|rules| rules.lock(Method::GET, "/{owner}/{realm}/_reindex"))
        .unwrap();
    let layer = layer().rules(rules).unwrap();
    let (handler, mut gate) = gate();
    for (method, path, locked) in [
        (Method::POST, "/luke/a/_search", false),
        (Method::POST, "/luke/a/%5Fsearch", true),
        (Method::POST, "/luke/a/", true),
        (Method::GET, "/luke/a/_reindex", true),
        (Method::HEAD, "/luke/a/_reindex", true),
        (Method::GET, "/luke/a/_reindex/", true),
        (Method::HEAD, "/luke/a/card", false),
        (Method::GET, "/luke/a/card", false),
        (Method::from_bytes(b"QUERY").unwrap(), "/luke/a/", false),
        (Method::from_bytes(b"FROB").unwrap(), "/luke/a/card", true),
    ] {
        let sent = send(&layer, &handler, method.clone(), path);
        let call = gate.entered().await;
        assert_eq!(call.held.is_some(), locked, "{method} {path}");
        call.answer(200);
        sent.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_closure_replaces_rejections() {
    let layer = layer().rejection(|rejection, head| {
        let body = format!("{}, sorry: {}", head.method, rejection.code());
        let mut response = Response::new(body.into());
        *response.status_mut() = rejection.status();
        response
    });
    let service = layer.layer(service_fn(at_once));
    let response = service
        .oneshot(request(Method::PUT, "/luke"))
        .await
        .unwrap();
    assert_eq!(response.status(), 400);
    let seen = response.extensions().get::<Rejection>();
    assert!(matches!(seen, Some(Rejection::Realm(_))), "{seen:?}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "PUT, sorry: realm-unresolved");
}
