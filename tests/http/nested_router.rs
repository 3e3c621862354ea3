//! With the feature `axum` the layer sees the whole path, wherever it is among nested routers, and
//! takes what another layer has rewritten for what it is.
#![cfg(feature = "axum")]

use std::future::ready;

use axum::body::Body;
use axum::routing::{get, patch, post};
use axum::{Extension, Router};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::{mpsc, watch};
use tower::util::MapRequestLayer;
use tower::{Layer, ServiceExt};
use tower_realm_lock::{
    HeldLock, LockRules, RealmLocks, RealmPaths, RealmResolver, RealmUrl, RealmWriteLockLayer,
    Scope,
};

use crate::support::gate::ORIGIN;

fn layer() -> RealmWriteLockLayer {
    let rules = LockRules::new()
        .exempt(Method::PATCH, "/{owner}/{realm}/open")
        .and_then(|rules| rules.scope(Method::PATCH, "/luke/{realm}/{*card}", Scope::resource()))
        .unwrap();
    let realms = RealmPaths::new(ORIGIN, "/luke/{realm}").unwrap();
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms)
        .rules(rules)
        .unwrap()
}

async fn claimed(held: Option<Extension<HeldLock>>) -> String {
    held.map_or("none".to_owned(), |held| held.claim().to_string())
}

/// A handler at the end, whatever is left of the path.
fn cards() -> Router {
    Router::new().route("/{*card}", patch(claimed))
}

/// The same without a route: the router knows no parameters.
fn fallback() -> Router {
    Router::new().fallback(patch(claimed))
}

/// The layer outside of all nesting, between, and inside of all.
fn apps() -> [(&'static str, Router); 8] {
    let nested = |cards: Router, between: Option<RealmWriteLockLayer>| {
        let mut realm = Router::new().nest("/{realm}", cards);
        if let Some(layer) = between {
            realm = realm.layer(layer);
        }
        Router::new().nest("/luke", realm)
    };
    let once = |cards: Router| Router::new().nest("/luke/{realm}", cards);
    [
        ("outside", nested(cards(), None).layer(layer())),
        ("between", nested(cards(), Some(layer()))),
        ("inside", nested(cards().layer(layer()), None)),
        ("route", nested(cards().route_layer(layer()), None)),
        (
            "service",
            Router::new().nest_service("/luke/{realm}", cards().layer(layer())),
        ),
        ("fallback", once(fallback().layer(layer()))),
        ("fallback outside", once(fallback()).layer(layer())),
        (
            "fallback of a service",
            Router::new().nest_service("/luke/{realm}", fallback().layer(layer())),
        ),
    ]
}

async fn answer(app: Router, path: &str) -> (StatusCode, String) {
    answer_of(app, "PATCH", path).await
}

async fn answer_of(app: Router, method: &str, path: &str) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn claim(app: Router, path: &str) -> String {
    let (status, body) = answer(app, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
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

/// Takes `/v1` off the beginning of a path, where it is.
fn without_v1(mut request: Request<Body>) -> Request<Body> {
    if let Some(rest) = request.uri().path().strip_prefix("/v1") {
        *request.uri_mut() = rest.parse().unwrap();
    }
    request
}

fn strip() -> MapRequestLayer<fn(Request<Body>) -> Request<Body>> {
    MapRequestLayer::new(without_v1)
}

#[tokio::test]
async fn what_a_layer_outside_has_rewritten_is_one_realm() {
    let inside = |cards: Router| Router::new().nest("/luke/{realm}", cards.layer(layer()));
    let outside = |cards: Router| Router::new().nest("/luke/{realm}", cards).layer(layer());
    let in_route = Router::new().route("/luke/{realm}/{*card}", patch(claimed));
    let x = "http://realms.test/luke/notes/ (x)";
    // Of a path that was rewritten nobody knows what a `nest` with parameters took: the whole realm
    // is locked then.
    let whole = "http://realms.test/luke/notes/";
    // Each of them is inside of a router, so that there is an `OriginalUri` that begins with `/v1`.
    for (place, inner, rewritten) in [
        ("inside of a nest", inside(cards()), whole),
        ("outside of a nest", outside(cards()), x),
        ("in a route", in_route.layer(layer()), x),
        ("a fallback", fallback().layer(layer()), x),
    ] {
        for (how, app) in [
            (
                "fallback",
                Router::new().fallback_service(strip().layer(inner.clone())),
            ),
            (
                "route",
                Router::new().route_service("/{*all}", strip().layer(inner)),
            ),
        ] {
            for (path, expected) in [("/luke/notes/x", x), ("/v1/luke/notes/x", rewritten)] {
                let claim = claim(app.clone(), path).await;
                assert_eq!(claim, expected, "{place}, {how}: {path}");
            }
        }
    }
}

#[tokio::test]
async fn writers_of_one_realm_by_two_paths_are_inside_one_after_the_other() {
    let locks = RealmLocks::in_process();
    let realms = RealmPaths::new(ORIGIN, "/{owner}/{realm}").unwrap();
    let (enter, mut entered) = mpsc::unbounded_channel();
    let (open, gate) = watch::channel(false);
    let handler = async move || {
        enter.send(()).unwrap();
        gate.clone().wait_for(|open| *open).await.unwrap();
    };
    let routes = Router::new().route("/{owner}/{realm}/{*card}", patch(handler));
    let routes = routes.layer(RealmWriteLockLayer::new(locks.clone(), realms));
    let app = Router::new().fallback_service(strip().layer(routes));
    let write = |path| tokio::spawn(answer(app.clone(), path));
    let first = write("/luke/site/c");
    entered.recv().await.unwrap();
    let second = write("/v1/luke/site/c");
    let waits = || locks.status().iter().any(|claim| !claim.is_held());
    while !waits() {
        assert!(
            !second.is_finished() && entered.try_recv().is_err(),
            "two are inside"
        );
        tokio::task::yield_now().await;
    }
    open.send(true).unwrap();
    for write in [first, second] {
        assert_eq!(write.await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn what_nobody_can_tell_is_refused() {
    // Without a route that names the realm, a rewritten path inside of a `nest` with parameters
    // leaves open which realm it is for.
    let nested = Router::new().nest_service("/luke/{realm}", fallback().layer(layer()));
    let app = Router::new().fallback_service(strip().layer(nested));
    assert_eq!(
        claim(app.clone(), "/luke/a/x").await,
        "http://realms.test/luke/a/ (x)"
    );
    let (status, problem) = answer(app, "/v1/luke/a/x").await;
    assert_eq!(status, 400);
    assert!(problem.contains("a layer has rewritten it"), "{problem}");
}

#[tokio::test]
async fn parameters_count_although_the_path_is_another_one() {
    let app = |to: &'static str| {
        let rewrite = MapRequestLayer::new(move |mut request: Request<Body>| {
            *request.uri_mut() = to.parse().unwrap();
            request
        });
        // Between the router and the lock: the handler gets the parameters of the first path.
        let routes = Router::new().route("/luke/{realm}/{*card}", patch(claimed));
        routes.layer(layer()).layer(rewrite)
    };
    // Which resource the path names is not certain then.
    let claim_of = |to| claim(app(to), "/luke/notes/x");
    assert_eq!(
        claim_of("/luke/notes/y").await,
        "http://realms.test/luke/notes/ (y)"
    );
    assert_eq!(
        claim_of("/luke/other/x").await,
        "http://realms.test/luke/notes/"
    );
    assert_eq!(claim_of("/other").await, "http://realms.test/luke/notes/");
    // Nor does a parameter count that is no segment.
    for path in ["/luke/%2e%2e/x", "/luke/a%2Fb/x", "/luke/%00/x"] {
        let (status, _) = answer(app("/luke/notes/x"), path).await;
        assert_eq!(status, 400, "{path}");
    }
}

#[tokio::test]
async fn rules_count_although_the_beginning_of_the_path_is_not_known() {
    let app = |layer: RealmWriteLockLayer| {
        let realm = Router::new()
            .route("/", get(claimed))
            .route("/_reindex", get(claimed))
            .route("/{card}", get(claimed).patch(claimed))
            .route("/luke/a/_publish", post(claimed))
            .route("/_publish", post(claimed));
        let app = Router::new().nest("/luke/{realm}", realm.layer(layer));
        Router::new().fallback_service(strip().layer(app))
    };
    let realms = || RealmPaths::new(ORIGIN, "/luke/{realm}").unwrap();
    let in_process = |realms| RealmWriteLockLayer::new(RealmLocks::in_process(), realms);
    let answer_to = async |app: &Router, method: &str, path: &str| {
        let (status, body) = answer_of(app.clone(), method, path).await;
        format!("{} {body}", status.as_u16())
    };

    let rules = LockRules::new().lock(Method::GET, "/luke/{realm}/_reindex");
    let locked = app(in_process(realms().into()).rules(rules.unwrap()).unwrap());
    let realm = "200 http://realms.test/luke/a/";
    for prefix in ["", "/v1"] {
        for (path, expected) in [
            ("_reindex", realm),
            ("%5Freindex", realm),
            ("x", "200 none"),
        ] {
            let path = format!("{prefix}/luke/a/{path}");
            assert_eq!(answer_to(&locked, "GET", &path).await, expected, "{path}");
        }
    }

    // Nothing is left of this one.
    let rules = LockRules::new().lock(Method::GET, "/{*all}").unwrap();
    let all = app(in_process(realms().into()).rules(rules).unwrap());
    assert_eq!(answer_to(&all, "GET", "/v1/luke/a").await, realm);

    // Which of two ways names the realm is not known either.
    let other = RealmUrl::parse("http://realms.test/published/").unwrap();
    let other = RealmResolver::from_fn(move |_| ready(Ok(other.clone())));
    let realms = RealmResolver::from(realms()).route(Method::POST, "/luke/{realm}/_publish", other);
    let routed = app(in_process(realms.unwrap()));
    let published = answer_to(&routed, "POST", "/luke/a/_publish").await;
    assert_eq!(published, "200 http://realms.test/published/");
    for path in ["/v1/luke/a/_publish", "/v1/luke/b/luke/a/_publish"] {
        let refused = answer_to(&routed, "POST", path).await;
        assert!(refused.starts_with("400"), "{path}: {refused}");
    }
    assert_eq!(answer_to(&routed, "PATCH", "/v1/luke/a/x").await, realm);
}

#[tokio::test]
async fn a_route_that_the_path_no_longer_fits_does_not_hide_a_realm() {
    let realms = || RealmPaths::new(ORIGIN, "/{owner}/{realm}").unwrap();
    let locked = || RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let inner = Router::new().fallback(patch(claimed).post(claimed));
    let app = Router::new()
        .route_service("/v1/{*rest}", strip().layer(inner.layer(locked())))
        .merge(
            Router::new()
                .route("/auth/login", patch(claimed))
                .route("/assets/{*file}", patch(claimed))
                .route("/", patch(claimed))
                .layer(locked()),
        );
    for (path, expected) in [
        ("/v1/luke/site/x", "http://realms.test/luke/site/"),
        ("/v1/login", "none"),
        ("/auth/login", "none"),
        ("/assets/a/b", "none"),
        ("/", "none"),
    ] {
        assert_eq!(claim(app.clone(), path).await, expected, "{path}");
    }
    let (status, _) = answer(app, "/v1/luke//site/x").await;
    assert_eq!(status, 400);
}
