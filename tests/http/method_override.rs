//! A header that overrides the method counts where it is configured, in both directions, and never to lock less than is certain.

use std::convert::Infallible;

use http::header::HeaderName;
use http::{HeaderValue, Method, Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    HeldLock, LockRules, RealmLocks, RealmPaths, RealmResolver, RealmWriteLockLayer, Scope,
};

const HEADER: HeaderName = HeaderName::from_static("x-http-method-override");

/// What the readers in these tests take from it.
const HONOURED: [Method; 5] = [
    Method::GET,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::QUERY,
];

/// The claim of a request, `none` if it passes, or the status with which it is rejected.
async fn claim(
    layer: &RealmWriteLockLayer,
    method: &Method,
    path: &str,
    overrides: &[&[u8]],
) -> String {
    let handler = service_fn(async |request: Request<String>| {
        let held: Option<&HeldLock> = request.extensions().get();
        let mut response = Response::new(String::new());
        response.extensions_mut().insert(held.cloned());
        Ok::<_, Infallible>(response)
    });
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .body(String::new())
        .unwrap();
    for value in overrides {
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append(HEADER, value);
    }
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    match response.extensions().get::<Option<HeldLock>>() {
        Some(Some(held)) => held.claim().to_string(),
        Some(None) => "none".into(),
        None => response.status().as_str().into(),
    }
}

fn layer(rules: LockRules) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(RealmLocks::in_process(), crate::support::gate::realms())
        .rules(rules)
        .unwrap()
}

#[tokio::test]
async fn it_counts_in_both_directions_and_only_where_configured() {
    let configured = layer(LockRules::new().method_override(HEADER, HONOURED));
    let default = layer(LockRules::new());
    for (method, overrides, locked, locked_by_default) in [
        (Method::POST, &[&b"QUERY"[..]][..], false, true),
        (Method::POST, &[b"GET"], false, true),
        (Method::POST, &[b"DELETE"], true, true),
        // Not honoured, so that some reader leaves it a POST.
        (Method::POST, &[b"TRACE"], true, true),
        (Method::GET, &[b"DELETE"], true, false),
        (Method::GET, &[b"QUERY"], false, false),
        (Method::GET, &[], false, false),
        (Method::POST, &[], true, true),
        // Many layers override nothing but POST.
        (Method::DELETE, &[b"GET"], true, true),
        // Some fold letter case.
        (Method::GET, &[b"delete"], true, false),
        (Method::POST, &[b"query"], true, true),
        // Which one counts is not certain.
        (Method::POST, &[b"GET", b"DELETE"], true, true),
        (Method::POST, &[b"GET", b"GET"], true, true),
        (Method::GET, &[b"GET", b"DELETE"], true, false),
        (Method::GET, &[b"GET, DELETE"], true, false),
        (Method::GET, &[b""], true, false),
        (Method::GET, &[b"\xff"], true, false),
    ] {
        for (layer, locked) in [(&configured, locked), (&default, locked_by_default)] {
            let claim = claim(layer, &method, "/luke/a/x", overrides).await;
            let expected = if locked {
                "http://realms.test/luke/a/"
            } else {
                "none"
            };
            assert_eq!(claim, expected, "{method} {overrides:?}");
        }
    }
}

#[tokio::test]
async fn routes_and_scopes_are_those_of_the_method_that_counts() {
    let rules = LockRules::new()
        .exempt(Method::POST, "/{owner}/{realm}/_search")
        .and_then(|rules| rules.lock(Method::GET, "/{owner}/{realm}/_reindex"))
        .and_then(|rules| rules.scope(Method::PATCH, "/{owner}/{realm}/{*card}", Scope::resource()))
        .unwrap();
    let layer = layer(rules.method_override(HEADER, HONOURED));
    let whole = "http://realms.test/luke/a/";
    let part = "http://realms.test/luke/a/ (x)";
    for (method, path, overrides, expected) in [
        (Method::POST, "/luke/a/_search", &[][..], "none"),
        (
            Method::POST,
            "/luke/a/_search",
            &[&b"DELETE"[..]][..],
            whole,
        ),
        (Method::POST, "/luke/a/_search", &[b"POST", b"POST"], whole),
        (Method::POST, "/luke/a/_reindex", &[b"GET"], whole),
        (Method::POST, "/luke/a/x", &[b"PATCH"], part),
        (Method::PATCH, "/luke/a/x", &[b"PATCH"], part),
        // Not certain: whole.
        (Method::POST, "/luke/a/x", &[b"patch"], whole),
        (Method::PATCH, "/luke/a/x", &[b"DELETE"], whole),
        (Method::PATCH, "/luke/a/x", &[b"PATCH", b"PATCH"], whole),
    ] {
        let claim = claim(&layer, &method, path, overrides).await;
        assert_eq!(claim, expected, "{method} {path} {overrides:?}");
    }
}

#[tokio::test]
async fn a_request_that_could_be_for_two_realms_is_refused() {
    let other = RealmPaths::new("http://other.test", "/{owner}/{realm}").unwrap();
    let realms = RealmResolver::from(crate::support::gate::realms())
        .route(Method::DELETE, "/{owner}/{realm}/{*rest}", other)
        .unwrap();
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms)
        .rules(LockRules::new().method_override(HEADER, HONOURED))
        .unwrap();
    let other = "http://other.test/luke/a/";
    assert_eq!(
        claim(&layer, &Method::POST, "/luke/a/x", &[b"DELETE"]).await,
        other
    );
    assert_eq!(
        claim(&layer, &Method::DELETE, "/luke/a/x", &[b"DELETE"]).await,
        other
    );
    assert_eq!(
        claim(&layer, &Method::PATCH, "/luke/a/x", &[b"DELETE"]).await,
        "400"
    );
    assert_eq!(
        claim(&layer, &Method::POST, "/luke/a/x", &[b"delete"]).await,
        "400"
    );
    // Some readers take the first of a list, or what they can read of it.
    for overrides in [&[&b"DELETE, PUT"[..]][..], &[b"\"DELETE\""], &[b"\xff"]] {
        let claim = claim(&layer, &Method::POST, "/luke/a/x", overrides).await;
        assert_eq!(claim, "400", "{overrides:?}");
    }
    // No route fits this one, whatever its method is.
    assert_eq!(
        claim(&layer, &Method::POST, "/luke/a", &[b"DELETE, PUT"]).await,
        "http://realms.test/luke/a/"
    );
}
