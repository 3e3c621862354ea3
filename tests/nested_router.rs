//! With the feature `axum` the layer sees the path that the client sent, wherever it is among nested routers.
#![cfg(feature = "axum")]

mod support;

use axum::body::Body;
use axum::routing::patch;
use axum::{Extension, Router};
use http::{Method, Request};
use http_body_util::BodyExt;
use support::gate::realms;
use tower::ServiceExt;
use tower_realm_lock::{HeldLock, LockRules, RealmLocks, RealmWriteLockLayer, Scope};

fn layer() -> RealmWriteLockLayer {
    let rules = LockRules::new()
        .exempt(Method::PATCH, "/{owner}/{realm}/open")
        .and_then(|rules| rules.scope(Method::PATCH, "/luke/{realm}/{*card}", Scope::resource()))
        .unwrap();
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms())
        .rules(rules)
        .unwrap()
}

/// A handler at the end, whatever is left of the path.
fn cards() -> Router {
    let handler = async |held: Option<Extension<HeldLock>>| {
        held.map_or("none".to_owned(), |held| held.claim().to_string())
    };
    Router::new().route("/{*card}", patch(handler))
}

/// The layer outside of all nesting, between, and inside of all.
fn apps() -> [(&'static str, Router); 5] {
    let nested = |cards: Router, between: Option<RealmWriteLockLayer>| {
        let mut realm = Router::new().nest("/{realm}", cards);
        if let Some(layer) = between {
            realm = realm.layer(layer);
        }
        Router::new().nest("/luke", realm)
    };
    [
        ("outside", nested(cards(), None).layer(layer())),
        ("between", nested(cards(), Some(layer()))),
        ("inside", nested(cards().layer(layer()), None)),
        ("route", nested(cards().route_layer(layer()), None)),
        (
            "service",
            Router::new().nest_service("/luke/{realm}", cards().layer(layer())),
        ),
    ]
}

async fn claim(app: Router, path: &str) -> String {
    let request = Request::patch(path).body(Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn a_nested_layer_locks_what_one_outside_does() {
    for (place, app) in apps() {
        for (path, expected) in [
            ("/luke/a/x/y", "http://realms.test/luke/a/ (x/y)"),
            ("/luke/%61/%78/y", "http://realms.test/luke/a/ (x/y)"),
            ("/luke/b/x", "http://realms.test/luke/b/ (x)"),
            ("/luke/a/open", "none"),
        ] {
            assert_eq!(claim(app.clone(), path).await, expected, "{place} {path}");
        }
    }
}

#[tokio::test]
async fn what_is_left_of_a_path_is_not_taken_for_a_realm() {
    // Below `/luke/a` the rest `/b/c/d` looks like the realm `b/c`.
    for (place, app) in apps() {
        let claim = claim(app, "/luke/a/b/c/d").await;
        assert_eq!(claim, "http://realms.test/luke/a/ (b/c/d)", "{place}");
    }
}

#[tokio::test]
async fn what_a_layer_outside_has_rewritten_is_what_counts() {
    let rewrite = tower::util::MapRequestLayer::new(|mut request: Request<Body>| {
        *request.uri_mut() = "/luke/notes/x".parse().unwrap();
        request
    });
    // The outer router keeps the path that the client sent.
    let inner = Router::new().nest("/luke/{realm}", cards());
    let service = tower::ServiceBuilder::new()
        .layer(rewrite)
        .layer(layer())
        .service(inner);
    let app = Router::new().fallback_service(service);
    let expected = "http://realms.test/luke/notes/ (x)";
    for path in ["/me/notes/x", "/luke/notes/x"] {
        assert_eq!(claim(app.clone(), path).await, expected, "{path}");
    }
}
