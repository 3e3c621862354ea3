//! A name that goes wrong is in the log, with its remedy: once a minute for each cause, however
//! often clients send it. And so is what is locked, when a layer starts.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    LockRules, RealmError, RealmLocks, RealmMounts, RealmPaths, RealmResolver, RealmUrl,
    RealmWriteLockLayer, Scope, Unresolved,
};

use crate::support::gate::{at_once, realms};
use crate::support::log::Log;

const MINUTE: Duration = Duration::from_secs(60);

fn layer(realms: impl Into<RealmResolver>) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms)
}

async fn send(layer: &RealmWriteLockLayer, path: &str) -> StatusCode {
    let service = layer.layer(service_fn(at_once));
    let request = Request::post(path).body(String::new()).unwrap();
    service.oneshot(request).await.unwrap().status()
}

/// The only line.
#[track_caller]
fn one(lines: &[String]) -> &str {
    let [line] = lines else {
        panic!("{} lines: {lines:#?}", lines.len());
    };
    line
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_realm_is_warned_of_once_a_minute_and_counted() {
    let log = Log::collect();
    let layer = layer(realms());
    assert_eq!(send(&layer, "/login").await, 400);
    let lines = log.take_at("WARN");
    let line = one(&lines);
    for part in [
        "a request was rejected",
        "code=\"realm-unresolved\"",
        "error=the path `/login` names no realm; a realm's paths begin with `/{owner}/{realm}`",
        "suppressed=0",
        "LockRules::exempt",
        "unresolved(Unresolved::Pass)",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // Where the feature is on, it is not what is missing.
    let advises = line.contains("turn on the feature `axum`");
    assert_eq!(advises, cfg!(not(feature = "axum")), "{line}");
    // Of the same cause, through a clone too.
    for number in 0..5 {
        assert_eq!(send(&layer.clone(), &format!("/{number}")).await, 400);
    }
    let lines = log.take();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert!(
        lines.iter().all(|line| line.starts_with("DEBUG")),
        "{lines:#?}"
    );
    // Another cause.
    assert_eq!(send(&layer, "/luke/../a").await, 400);
    let lines = log.take_at("WARN");
    assert!(one(&lines).contains("is ambiguous"), "{lines:#?}");
    advance(MINUTE).await;
    assert_eq!(send(&layer, "/login").await, 400);
    let lines = log.take_at("WARN");
    assert!(one(&lines).contains("suppressed=5"), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn each_cause_comes_with_its_remedy() {
    let closure = |error: RealmError| {
        RealmResolver::from_fn(move |_| {
            let error = error.clone();
            async move { Err::<tower_realm_lock::RealmUrl, _>(error) }
        })
    };
    let origin = || RealmError::Origin {
        problem: "it has no `Host`".to_owned(),
    };
    for (resolver, path, remedy) in [
        (RealmMounts::default().into(), "/a", "RealmMounts::insert"),
        (realms().into(), "/a/%2e/b", "its plain spelling"),
        (closure(origin()), "/a", "RequestOrigin::only"),
        (
            closure(RealmError::AmbiguousMethod),
            "/a",
            "LockRules::method_override",
        ),
        (
            closure(RealmError::unresolved("no tenant")),
            "/a",
            "LockRules::exempt",
        ),
    ] {
        let log = Log::collect();
        assert_eq!(send(&layer(resolver), path).await, 400);
        let lines = log.take_at("WARN");
        let line = one(&lines);
        assert!(
            line.contains("remedy=") && line.contains(remedy),
            "{remedy}: {line}"
        );
    }
    // A look-up that fails is the server's fault, and each of these is warned of.
    let log = Log::collect();
    let lost = layer(closure(RealmError::unavailable("gone")));
    for _ in 0..2 {
        assert_eq!(send(&lost, "/a").await, 503);
    }
    assert_eq!(log.take_at("WARN").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_realm_below_the_base_path_twice_is_warned_of() {
    let log = Log::collect();
    let realms = RealmPaths::new("https://api.example.com/api/v1", "/{tenant}/{project}");
    let realms = realms.unwrap();
    // A client that adds the base path twice, and a proxy that does not remove it.
    for (realms, base) in [
        (realms.clone(), "/api/v1"),
        (realms.base_path_stripped(), ""),
    ] {
        let layer = layer(realms);
        assert_eq!(send(&layer, &format!("{base}/acme/api/docs")).await, 200);
        assert!(log.take_at("WARN").is_empty());
        for path in ["/api/v1/acme/site", "/api/v1/emca/site"] {
            assert_eq!(send(&layer, &format!("{base}{path}")).await, 200);
        }
        let lines = log.take_at("WARN");
        let line = one(&lines);
        assert!(line.contains("that of the base URL twice"), "{line}");
        let realm = "https://api.example.com/api/v1/api/v1/";
        assert!(line.contains(realm), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_locked_request_that_is_answered_with_an_upgrade_is_warned_of() {
    for (method, status, warned) in [
        (Method::POST, 101, true),
        (Method::CONNECT, 200, true),
        (Method::POST, 200, false),
        (Method::CONNECT, 404, false),
        // Not locked, so nothing ends.
        (Method::GET, 101, false),
    ] {
        let log = Log::collect();
        let layer = layer(realms());
        let service = layer.layer(service_fn(move |_: Request<String>| {
            let mut response = Response::new(String::new());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            ready(Ok::<_, Infallible>(response))
        }));
        for _ in 0..2 {
            let request = Request::builder().method(&method).uri("/luke/a/_events");
            let request = request.body(String::new()).unwrap();
            assert_eq!(
                service.clone().oneshot(request).await.unwrap().status(),
                status
            );
        }
        let lines = log.take_at("WARN");
        if warned {
            let line = one(&lines);
            assert!(
                line.contains("answered with an upgrade, which ends its hold"),
                "{line}"
            );
            assert!(line.contains("RealmLocks::with_write_lock"), "{line}");
        } else {
            assert!(lines.is_empty(), "{method} {status}: {lines:#?}");
        }
    }
}

#[test]
fn a_layer_that_starts_logs_once_what_it_locks() {
    let log = Log::collect();
    let rules = LockRules::new()
        .exempt(Method::POST, "/{owner}/{realm}/_search")
        .and_then(|rules| rules.lock(Method::GET, "/{owner}/{realm}/_reindex"))
        .and_then(|rules| rules.scope(Method::PUT, "/{owner}/{realm}/{*x}", Scope::resource()));
    let layer = layer(realms()).rules(rules.unwrap()).unwrap();
    assert!(log.take().is_empty(), "nothing is locked yet");
    // axum puts it around each route.
    for _ in 0..3 {
        let _ = layer.clone().layer(service_fn(at_once));
    }
    let lines = log.take();
    let line = one(&lines);
    assert!(line.starts_with("INFO"), "{line}");
    for part in [
        "every request whose method is not safe is locked, subject to the rules",
        "realms=\"RealmPaths http://realms.test/{owner}/{realm}\"",
        "exempt POST /{owner}/{realm}/_search; lock GET /{owner}/{realm}/_reindex; scope PUT /",
        "unresolved=\"refused\"",
        "locks=\"this process\"",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // It has other options now.
    let _ = layer
        .unresolved(Unresolved::Pass)
        .layer(service_fn(at_once));
    let lines = log.take();
    assert!(
        one(&lines).contains("unresolved=\"pass without a lock\""),
        "{lines:#?}"
    );
}

#[test]
fn a_layer_that_is_switched_off_warns_when_it_starts() {
    let log = Log::collect();
    let layer = layer(realms()).enabled(false);
    for _ in 0..2 {
        let _ = layer.layer(service_fn(at_once));
    }
    let lines = log.take();
    let line = one(&lines);
    assert!(line.starts_with("WARN"), "{line}");
    assert!(line.contains("nothing is locked"), "{line}");
}

#[test]
fn rules_that_no_realm_fits_are_warned_of_when_a_layer_starts() {
    let log = Log::collect();
    let realms = RealmPaths::new("https://api.example.com", "/api/{tenant}/{project}").unwrap();
    let rules = LockRules::new()
        .exempt(Method::POST, "/auth/login")
        .and_then(|rules| rules.exempt(Method::POST, "/{tenant}/{project}/_search"))
        .and_then(|rules| rules.lock(Method::GET, "/_reindex"));
    let layer = layer(realms).rules(rules.unwrap()).unwrap();
    for _ in 0..2 {
        let _ = layer.layer(service_fn(at_once));
    }
    let lines = log.take_at("WARN");
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let part = "rules match the whole path; write `/api/{tenant}/{project}/_search`";
    assert!(lines[0].contains(part), "{lines:#?}");
    let part = "the rule `lock GET /_reindex` never takes effect";
    assert!(lines[1].contains(part), "{lines:#?}");
}

#[test]
fn a_method_that_no_registry_has_is_warned_of_with_the_nearest_one() {
    let named = |method: &str| Method::from_bytes(method.as_bytes()).unwrap();
    for (method, remedy) in [
        ("PATHC", "did you mean `PATCH`?"),
        ("FROBNICATE", "only if your clients send it"),
    ] {
        let log = Log::collect();
        let rules = LockRules::new().exempt([Method::PUT, named(method)], "/{*all}");
        assert!(rules.is_ok());
        let lines = log.take_at("WARN");
        let line = one(&lines);
        assert!(line.contains(&format!("method={method}")), "{line}");
        assert!(
            line.contains(&format!("exempt PUT, {method} /{{*all}}")),
            "{line}"
        );
        assert!(line.contains(remedy), "{line}");
    }
    let log = Log::collect();
    let resolver = RealmResolver::from(realms());
    assert!(resolver.route(named("PSOT"), "/{a}/{b}", realms()).is_ok());
    assert!(one(&log.take_at("WARN")).contains("did you mean `POST`?"));
}

#[cfg(not(feature = "axum"))]
#[tokio::test]
async fn a_layer_inside_a_nest_names_the_missing_feature() {
    use axum::Router;
    use axum::routing::patch;

    let log = Log::collect();
    let card = Router::new().route("/{card}", patch("written"));
    let app = Router::new().nest("/{owner}/{realm}", card.layer(layer(realms())));
    let request = Request::patch("/luke/a/x").body(axum::body::Body::empty());
    let response = app.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 400);
    let lines = log.take_at("WARN");
    let line = one(&lines);
    for part in [
        "the path `/x` names no realm",
        "inside axum's `nest`, turn on the feature `axum`",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_route_without_a_realm_is_logged_once_and_warned_of_if_it_looks_like_one() {
    use axum::Router;
    use axum::routing::post;

    let log = Log::collect();
    let layer = layer(realms());
    let app = Router::new()
        .route("/{owner}/{realm}", post("written"))
        .route("/auth/login", post("in"))
        .route("/health", post("well"))
        .route("/anna/{realm}", post("written"))
        .route("/v2/{user}/{project}", post("written"))
        .layer(layer.clone());
    let post = async |path: &str| {
        let request = Request::post(path).body(axum::body::Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap().status()
    };
    log.take();
    for (path, status, level) in [
        ("/luke/a", 200, ""),
        ("/health", 200, "INFO"),
        ("/health", 200, ""),
        ("/auth/login", 200, "INFO"),
        ("/auth/login", 200, ""),
        // One of the parameters, and as many as the name has.
        ("/anna/x", 200, "WARN"),
        ("/v2/anna/x", 200, "WARN"),
    ] {
        assert_eq!(post(path).await, status, "{path}");
        let mut lines = log.take();
        lines.retain(|line| line.contains("pass without a lock"));
        assert_eq!(
            lines.len(),
            usize::from(!level.is_empty()),
            "{path}: {lines:#?}"
        );
        assert!(
            lines.iter().all(|line| line.starts_with(level)),
            "{lines:#?}"
        );
    }
    // Around the router no route has matched, and a login is locked by its path.
    let around = layer.layer(Router::new().route("/auth/login", axum::routing::post("in")));
    for expected in [1, 0] {
        let request = Request::post("/auth/login").body(axum::body::Body::empty());
        let response = around.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut lines = log.take_at("INFO");
        lines.retain(|line| line.contains("no route of axum's router has matched"));
        assert_eq!(lines.len(), expected, "{lines:#?}");
    }
    // A rule that locks the route implies that it has a realm.
    let rules = LockRules::new().lock(Method::POST, "/auth/login").unwrap();
    let app = Router::new().route("/auth/login", axum::routing::post("in"));
    let app = app.layer(layer.rules(rules).unwrap());
    let request = Request::post("/auth/login").body(axum::body::Body::empty());
    let response = app.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn a_request_that_passes_without_a_realm_is_logged_at_debug() {
    let absent =
        RealmResolver::from_fn(async |_| Err::<RealmUrl, _>(RealmError::missing("no tenant")));
    for (resolver, part) in [
        (
            RealmResolver::from(realms()),
            "the path `/login` names no realm",
        ),
        (absent, "no tenant"),
    ] {
        let log = Log::collect();
        let layer = layer(resolver).unresolved(Unresolved::Pass);
        assert_eq!(send(&layer, "/login").await, 200);
        let lines = log.take_at("DEBUG");
        let line = one(&lines);
        assert!(
            line.contains("passes without a lock") && line.contains(part),
            "{line}"
        );
    }
}
