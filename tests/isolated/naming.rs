//! Which realm a request is for: patterns, names, base paths, hosts, and the routes of axum's
//! router.

use std::convert::Infallible;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    ConfigError, HeldLock, LockKey, RealmError, RealmLocks, RealmPaths, RealmUrl,
    RealmWriteLockLayer, RequestOrigin, TrustedProxies,
};

const API: &str = "https://api.example.com/api/v1";

/// What a request locks, or `none`; the problem, if it is refused.
async fn claimed(realms: RealmPaths, request: Request<String>) -> (StatusCode, String) {
    let handler = service_fn(async |request: Request<String>| {
        let held = request.extensions().get::<HeldLock>();
        let claim = held.map_or("none".to_owned(), |held| held.claim().to_string());
        Ok::<_, Infallible>(Response::new(claim))
    });
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms);
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, String::from_utf8(body.to_vec()).unwrap())
}

async fn claim(realms: &RealmPaths, uri: &str) -> String {
    let request = Request::patch(uri).body(String::new()).unwrap();
    let (status, body) = claimed(realms.clone(), request).await;
    if status == 200 {
        body
    } else {
        format!("{status}: {body}")
    }
}

#[tokio::test]
async fn a_pattern_goes_on_where_the_base_path_ends() {
    let realms = RealmPaths::new(API, "/{tenant}/{project}").unwrap();
    let realm = "https://api.example.com/api/v1/acme/site/";
    for path in [
        "/api/v1/acme/site/docs/a",
        "/api/v1/acme/site",
        "/%61pi/v1/acme/site/",
    ] {
        assert_eq!(claim(&realms, path).await, realm, "{path}");
        assert_eq!(realms.resolve(path).unwrap().as_str(), realm);
    }
    let other = claim(&realms, "/api/v1/globex/site/docs/a").await;
    assert_eq!(other, "https://api.example.com/api/v1/globex/site/");
    for path in [
        "/auth/login",
        "/acme/site/docs/a",
        "/api/v1/acme",
        "/api/v2/acme/site",
        "/API/v1/acme/site",
        "/api",
    ] {
        let refused = claim(&realms, path).await;
        let pattern = "begin with `/api/v1/{tenant}/{project}`";
        assert!(
            refused.starts_with("400") && refused.contains(pattern),
            "{refused}"
        );
    }
    let stripped = realms.base_path_stripped();
    assert_eq!(claim(&stripped, "/acme/site/docs/a").await, realm);
    // A literal segment belongs to the name, and a URL in a path is no host.
    let literal = RealmPaths::new("https://h/api/", "/realms/{realm}/").unwrap();
    let realm = literal.resolve("/api/realms/a/card").unwrap();
    assert_eq!(realm.as_str(), "https://h/api/realms/a/");
    let error = literal.resolve("/api/realms/a/http://h/x").unwrap_err();
    assert!(matches!(error, RealmError::AmbiguousPath { .. }), "{error}");
}

#[tokio::test]
async fn a_prefix_that_a_trusted_proxy_has_removed_is_no_part_of_the_path() {
    let origin = RequestOrigin::new(TrustedProxies::new(["10.0.0.0/8"]).unwrap());
    let realms = RealmPaths::new(API, "/{tenant}")
        .unwrap()
        .origin_from_request(origin);
    let request = |path: &str, prefix: Option<&str>| {
        let mut request = Request::patch(path).header("host", "h");
        if let Some(prefix) = prefix {
            request = request.header("x-forwarded-prefix", prefix);
        }
        let mut request = request.body(String::new()).unwrap();
        let peer = tower_realm_lock::PeerAddr("10.1.1.1:1".parse().unwrap());
        request.extensions_mut().insert(peer);
        request
    };
    for (path, prefix, expected) in [
        ("/api/v1/acme/x", None, "https://h/api/v1/acme/"),
        ("/acme/x", Some("/api/v1"), "https://h/api/v1/acme/"),
        ("/acme/x", Some("/other"), "https://h/other/acme/"),
    ] {
        let (status, claim) = claimed(realms.clone(), request(path, prefix)).await;
        assert_eq!((status, &*claim), (StatusCode::OK, expected), "{path}");
    }
    let (status, _) = claimed(realms, request("/acme/x", None)).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn several_patterns_are_one_realm() {
    let realms = RealmPaths::new(
        "https://api.example.com",
        "/api/{version}/{tenant}/{project}",
    )
    .and_then(|realms| realms.named("/{tenant}/{project}"))
    .and_then(|realms| realms.also("/admin/v1/{tenant}/{project}"))
    .and_then(|realms| realms.also("/by-project/{project}/{tenant}"))
    .unwrap();
    for path in [
        "/api/v1/acme/site/docs/a",
        "/api/v2/acme/site",
        "/admin/v1/acme/site/purge",
        "/by-project/site/acme/x",
    ] {
        let realm = "https://api.example.com/acme/site/";
        assert_eq!(claim(&realms, path).await, realm, "{path}");
    }
    // A router that compares to the letter has sent these to another handler, if to any.
    for path in ["/%61dmin/v1/acme/site/x", "/by%2Dproject/site/acme/x"] {
        let refused = claim(&realms, path).await;
        assert!(refused.starts_with("400"), "{path}: {refused}");
    }
}

#[tokio::test]
async fn of_patterns_that_fit_the_one_counts_that_a_router_prefers() {
    let realms = RealmPaths::new("https://h", "/{tenant}/{project}")
        .and_then(|realms| realms.also("/admin/v1/{tenant}/{project}"))
        .and_then(|realms| realms.also("/x/y/z/{tenant}/{project}"))
        .unwrap();
    for (path, realm) in [
        ("/acme/site/x", "https://h/acme/site/"),
        ("/admin/v1/acme/site/x", "https://h/acme/site/"),
        ("/admin/v1", "https://h/admin/v1/"),
        ("/admin/v2/acme/site", "https://h/admin/v2/"),
    ] {
        assert_eq!(claim(&realms, path).await, realm, "{path}");
    }
    for (path, problem) in [
        ("/%61dmin/v1/acme/site", "another spelling"),
        ("/admin/v1/acme/site%2Fx", "encoded slash"),
        ("/admin%2Fv1/acme/site/x", "encoded slash"),
        ("/x/y/z%2Facme/site", "encoded slash"),
        ("/x/y/..%2F..%2Fadmin/v1/acme/site", "dot segment"),
    ] {
        let refused = claim(&realms, path).await;
        assert!(
            refused.starts_with("400") && refused.contains(problem),
            "{path}: {refused}"
        );
    }
}

#[tokio::test]
async fn tenants_in_host_names_are_realms_of_their_own() {
    let realms = RealmPaths::new("https://{tenant}.example.com", "/{project}").unwrap();
    let request = |host: &str| {
        let request = Request::patch("/site/docs/a").header("host", host);
        request.body(String::new()).unwrap()
    };
    for (host, expected) in [
        ("acme.example.com", "https://acme.example.com/site/"),
        ("ACME.Example.com:443", "https://acme.example.com/site/"),
        ("globex.example.com", "https://globex.example.com/site/"),
    ] {
        let (status, claim) = claimed(realms.clone(), request(host)).await;
        assert_eq!((status, &*claim), (StatusCode::OK, expected), "{host}");
    }
    for host in [
        "example.com",
        "a.acme.example.com",
        "acme.example.org",
        "acme.example.com:8443",
        ".example.com",
        "acme.example.com.",
        "{tenant}.example.com",
    ] {
        let (status, problem) = claimed(realms.clone(), request(host)).await;
        assert_eq!(status, 400, "{host}: {problem}");
    }
    let other_port = "https://acme.example.com:8443/site/x";
    let remedy = "write the port in the base URL: `https://{tenant}.example.com:8443/`";
    let refused = claim(&realms, other_port).await;
    assert!(refused.contains(remedy), "{refused}");
    // One realm, by whichever way it is reached.
    let name = "https://realms.example.com/{tenant}/{project}";
    let by_host = realms.named(name).unwrap();
    let by_path = RealmPaths::new("https://api.example.com/v1", "/{tenant}/{project}");
    let by_path = by_path.and_then(|realms| realms.named(name)).unwrap();
    let realm = "https://realms.example.com/acme/site/";
    assert_eq!(
        claim(&by_host, "https://acme.example.com/site/docs/a").await,
        realm
    );
    assert_eq!(claim(&by_path, "/v1/acme/site/docs/a").await, realm);
    // And the other way round: no path makes a host of its own.
    let to_host = RealmPaths::new("https://api.example.com", "/{tenant}");
    let to_host = to_host
        .and_then(|it| it.named("https://{tenant}.example.com/"))
        .unwrap();
    assert_eq!(
        claim(&to_host, "/acme/docs").await,
        "https://acme.example.com/"
    );
    assert_eq!(
        claim(&to_host, "/ACME/docs").await,
        "https://acme.example.com/"
    );
    for path in [
        "/a.b/docs",
        "/a%40b/docs",
        "/a%3A1/docs",
        "/a%20b/docs",
        "/a%252e/docs",
        "/*/docs",
    ] {
        let refused = claim(&to_host, path).await;
        assert!(refused.starts_with("400"), "{path}: {refused}");
    }
}

#[test]
fn a_base_url_takes_only_hosts_that_have_its_scheme_its_port_and_its_labels() {
    let realms = |base: &str| RealmPaths::new(base, "/{project}").unwrap();
    let labels = realms("HTTPS://{tenant}.{region}.Example.com:8443/api");
    let idn = realms("https://{tenant}.bücher.example");
    let fixed = realms("http://[::1]:4201/a");
    for (realms, url, expected) in [
        (
            &labels,
            "https://a.eu.example.com:8443/api/x/y",
            Some("https://a.eu.example.com:8443/api/x/"),
        ),
        (&labels, "http://a.eu.example.com:8443/api/x", None),
        (&labels, "https://a.eu.example.com/api/x", None),
        (&labels, "https://a.b.eu.example.com:8443/api/x", None),
        (&labels, "https://eu.example.com:8443/api/x", None),
        (&labels, "https://a.eu.example.org:8443/api/x", None),
        (&labels, "https://.eu.example.com:8443/api/x", None),
        (
            &idn,
            "https://a.xn--bcher-kva.example/x",
            Some("https://a.xn--bcher-kva.example/x/"),
        ),
        (
            &fixed,
            "http://[::1]:4201/a/x",
            Some("http://[::1]:4201/a/x/"),
        ),
        (&fixed, "http://[::1]/a/x", None),
    ] {
        let realm = realms.resolve(url).ok();
        assert_eq!(realm.as_ref().map(RealmUrl::as_str), expected, "{url}");
    }
}

#[test]
fn spellings_of_one_realm_url_are_equal() {
    for (spelling, canonical) in [
        ("https://app.boxel.ai/base/", "https://app.boxel.ai/base/"),
        ("https://app.boxel.ai/base", "https://app.boxel.ai/base/"),
        (
            "HTTPS://APP.Boxel.AI:443/base/",
            "https://app.boxel.ai/base/",
        ),
        ("https://app.boxel.ai", "https://app.boxel.ai/"),
        (
            "http://127.0.0.1:4444/t%65st",
            "http://127.0.0.1:4444/test/",
        ),
        ("http://[::1]:80/a", "http://[::1]/a/"),
        ("http://bücher.example/a", "http://xn--bcher-kva.example/a/"),
        ("http://h/ü/%c3%bc/", "http://h/%C3%BC/%C3%BC/"),
        ("http://h/a%20b/~x%7Ey/", "http://h/a%20b/~x~y/"),
        ("http://h/100%25/", "http://h/100%25/"),
    ] {
        let realm = RealmUrl::parse(spelling).unwrap();
        assert_eq!(realm.as_str(), canonical, "{spelling}");
    }
}

#[test]
fn a_text_that_is_no_realm_url_is_refused_by_name() {
    for url in [
        "",
        "realm",
        "/luke/realm/",
        "ftp://h/a/",
        "file:///a/",
        "http://",
        "http:///a/",
        "http://h:99999/a/",
        "http://user@h/a/",
        "http://h\\evil/a/",
        "http://{tenant}.h/a/",
        "https://*.h/a/",
        "http://h/a/?x",
        "http://h/a/#x",
        "http://h/a b/",
        "http://h/a\tb/",
        "http://h//a/",
        "http://h./a/",
        "http://h/a/../b/",
        "http://h/a%2Fb/",
        "http://h/a%5cb/",
        "http://h/%00/",
        "http://h/%FF/",
        "http://h/%2",
    ] {
        let error = RealmUrl::parse(url).unwrap_err().to_string();
        let shown = url.escape_debug().to_string();
        assert!(error.contains(&format!("`{shown}`")), "{url}: {error}");
    }
}

#[test]
fn a_segment_that_a_server_could_read_as_another_path_is_not_joined() {
    let base = RealmUrl::parse("http://h/a").unwrap();
    for (segment, part) in [
        ("", "it is empty"),
        (".", "a step to another path"),
        ("..", "a step to another path"),
        ("a/b", "a slash or a backslash"),
        ("/", "a slash or a backslash"),
        ("..\\b", "a slash or a backslash"),
        ("a\nb", "a control character"),
        ("\u{0}", "a control character"),
        ("\u{85}", "a control character"),
    ] {
        let error = base.join(["x", segment]).unwrap_err().to_string();
        let shown = format!("`{}` cannot be a segment", segment.escape_debug());
        assert!(error.starts_with(&shown) && error.contains(part), "{error}");
    }
    assert_eq!(base.join::<&str>([]).unwrap(), base);
    for (segment, encoded) in [("%2e%2e", "%252e%252e"), ("ü?#", "%C3%BC%3F%23")] {
        let joined = base.join([segment]).unwrap();
        assert_eq!(joined.as_str(), format!("http://h/a/{encoded}/"));
    }
}

#[test]
fn simple_patterns_keep_their_keys() {
    for (base, pattern, path, url, key) in [
        (
            "http://localhost:4201",
            "/{owner}/{realm}",
            "/luke/my-realm/card",
            "http://localhost:4201/luke/my-realm/",
            77_324_559_412_694_263,
        ),
        (
            "https://app.boxel.ai",
            "/{realm}",
            "/base/card",
            "https://app.boxel.ai/base/",
            7_979_136_420_165_443_927,
        ),
        (
            "http://127.0.0.1:4444",
            "/test/",
            "/test/card",
            "http://127.0.0.1:4444/test/",
            -2_355_824_123_773_129_196,
        ),
    ] {
        let realm = RealmPaths::new(base, pattern)
            .unwrap()
            .resolve(path)
            .unwrap();
        assert_eq!(realm, RealmUrl::parse(url).unwrap());
        assert_eq!(LockKey::of(&realm).value(), Some(key), "{url}");
    }
}

#[test]
fn what_cannot_work_is_refused_with_its_remedy() {
    let host = "https://{tenant}.example.com";
    let new = |base: &str, pattern: &str| RealmPaths::new(base, pattern);
    let plain = || new("https://h", "/{tenant}/{project}").unwrap();
    for (refused, reason) in [
        (new("https://*.example.com", "/"), "whole label"),
        (new("https://a{b}.example.com", "/"), "whole label"),
        (new("https://{}.example.com", "/"), "whole label"),
        (new("https://{*tenant}.example.com", "/"), "whole label"),
        (new("https://{a}.{a}.example.com", "/"), "twice"),
        (new("https://{tenant}..example.com", "/"), "no label"),
        (new("https://{tenant}", "/"), "at least one label"),
        (new("https://{tenant}.example.com:{port}", "/"), "{port}"),
        (new("https://example.com:{port}", "/"), "{port}"),
        (new("{tenant}.example.com", "/"), "scheme"),
        (new("ftp://{tenant}.example.com", "/"), "http or https"),
        (
            new("https://h/{tenant}", "/{project}"),
            "belong in the pattern",
        ),
        (
            new("https://h/api/*", "/{project}"),
            "belong in the pattern",
        ),
        (new("https://h", "/{tenant}/a*"), "star"),
        (new("https://h", "/a{tenant}"), "only a part"),
        (new("https://h", "/{tenant}/{*rest}"), "realm of its own"),
        (
            new(API, "/api/v1/{tenant}"),
            "begins with the path of the base URL",
        ),
        (
            new(host, "/{tenant}"),
            "host of the base URL has a parameter `{tenant}`",
        ),
        (
            plain().named("/{tenant}/{organization}"),
            "no `{organization}`",
        ),
        (plain().named("/{*tenant}"), "realm of its own"),
        (plain().named("https://{tenant}.{x}.h/"), "no `{x}`"),
        (plain().named("ftp://h/{tenant}"), "http or https"),
        (plain().named("{tenant}"), "start with `/`"),
        (plain().also("/admin/{tenant}"), "no `{project}`"),
        (plain().also("/{tenant}/{tenant}"), "twice"),
    ] {
        let error = refused.unwrap_err();
        let is_of_construction = matches!(
            error,
            ConfigError::InvalidUrl { .. } | ConfigError::InvalidTemplate { .. }
        );
        assert!(
            is_of_construction && error.to_string().contains(reason),
            "{reason}: {error}"
        );
    }
    let only = RequestOrigin::new(TrustedProxies::default()).only(["https://*.example.com"]);
    let error = only.unwrap_err().to_string();
    assert!(error.contains("`https://{tenant}.example.com`"), "{error}");
}

#[cfg(feature = "axum")]
mod routed {
    use axum::body::Body;
    use axum::routing::{patch, post, put};
    use axum::{Extension, Router};
    use http::Method;
    use tower_realm_lock::{LockRules, Scope};

    use super::*;

    async fn claimed(held: Option<Extension<HeldLock>>) -> String {
        held.map_or("none".to_owned(), |held| held.claim().to_string())
    }

    fn layer(realms: RealmPaths) -> RealmWriteLockLayer {
        RealmWriteLockLayer::new(RealmLocks::in_process(), realms)
    }

    async fn answer(app: &Router, method: &str, path: &str) -> String {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        if status == 200 {
            body
        } else {
            format!("{status}: {body}")
        }
    }

    #[tokio::test]
    async fn only_routes_with_the_patterns_parameters_are_realms() {
        let realms = RealmPaths::new("https://h", "/{owner}/{realm}").unwrap();
        let app = Router::new()
            .route("/{owner}/{realm}/{*card}", patch(claimed))
            .route("/{owner}/{realm}", post(claimed))
            .route("/auth/login", post(claimed))
            .route("/health", post(claimed))
            .route("/{owner}/profile", post(claimed))
            .route("/webhooks/{source}", post(claimed))
            .layer(layer(realms));
        for (method, path, expected) in [
            ("PATCH", "/luke/site/c", "https://h/luke/site/"),
            ("POST", "/luke/site", "https://h/luke/site/"),
            ("PATCH", "/auth/site/c", "https://h/auth/site/"),
            ("POST", "/auth/login", "none"),
            ("POST", "/health", "none"),
            ("POST", "/luke/profile", "none"),
            ("POST", "/webhooks/stripe", "none"),
        ] {
            assert_eq!(
                answer(&app, method, path).await,
                expected,
                "{method} {path}"
            );
        }
    }

    #[tokio::test]
    async fn every_route_with_the_parameters_is_the_same_realm() {
        let realms = RealmPaths::new(API, "/{tenant}/{project}").unwrap();
        let v1 = Router::new().route("/docs/{*path}", patch(claimed));
        let app = Router::new()
            .nest("/api/v1/{tenant}/{project}", v1.clone())
            .nest("/api/v2/{tenant}/{project}", v1)
            .route("/admin/v1/{tenant}/{project}/purge", post(claimed))
            .route("/projects/{project}/of/{tenant}", post(claimed))
            .layer(layer(realms));
        for (method, path) in [
            ("PATCH", "/api/v1/acme/site/docs/a"),
            ("PATCH", "/api/v2/acme/site/docs/a"),
            ("POST", "/admin/v1/acme/site/purge"),
            ("POST", "/projects/site/of/acme"),
        ] {
            let realm = "https://api.example.com/api/v1/acme/site/";
            assert_eq!(answer(&app, method, path).await, realm, "{path}");
        }
    }

    #[tokio::test]
    async fn parameters_with_other_names_are_refused_by_name() {
        let realms = RealmPaths::new("https://h", "/{owner}/{realm}").unwrap();
        let app = Router::new().route("/{tenant}/{project}/{*path}", patch(claimed));
        let refused = answer(&app.layer(layer(realms)), "PATCH", "/acme/site/x").await;
        assert!(refused.starts_with("400"), "{refused}");
        let route = "`/{tenant}/{project}/{*path}` fits the realm pattern `/{owner}/{realm}`";
        assert!(refused.contains(route), "{refused}");
    }

    #[tokio::test]
    async fn a_parameter_with_two_values_is_refused() {
        let realms = RealmPaths::new("https://h", "/{owner}/{realm}").unwrap();
        let inner = Router::new().route("/{owner}/{realm}/x", patch(claimed));
        let app = Router::new().nest_service("/{owner}", inner.layer(layer(realms)));
        let refused = answer(&app, "PATCH", "/luke/anna/site/x").await;
        assert!(refused.starts_with("400"), "{refused}");
    }

    /// Which realm it is for is not known, although no pattern fits the route.
    #[tokio::test]
    async fn a_route_whose_parameters_cannot_be_read_is_refused() {
        let realms = || RealmPaths::new("https://h", "/{owner}/{realm}").unwrap();
        let app = Router::new()
            .route("/x/{owner}/{realm}/{*path}", patch(claimed))
            .route("/assets/{*file}", patch(claimed))
            .layer(layer(realms()));
        let inner = Router::new().route("/{owner}/{realm}/x", patch(claimed));
        let twice = Router::new().nest_service("/x/{owner}", inner.layer(layer(realms())));
        for (app, path, problem) in [
            (&app, "/x/luke/site/%FF", "is not UTF-8"),
            (&twice, "/x/luke/anna/site/x", "two nested routes"),
        ] {
            let refused = answer(app, "PATCH", path).await;
            assert!(
                refused.starts_with("400") && refused.contains(problem),
                "{path}: {refused}"
            );
        }
        assert_eq!(answer(&app, "PATCH", "/assets/%FF").await, "none");
    }

    #[tokio::test]
    async fn other_names_are_refused_where_a_proxy_has_removed_the_base_path_too() {
        let origin = RequestOrigin::new(TrustedProxies::new(["10.0.0.0/8"]).unwrap());
        let realms = RealmPaths::new("https://h/api", "/{owner}/{realm}").unwrap();
        let app = Router::new().route("/{tenant}/{project}/x", patch(claimed));
        let app = app.layer(layer(realms.origin_from_request(origin)));
        let request = Request::patch("/luke/site/x").header("host", "h");
        let request = request.header("x-forwarded-prefix", "/api");
        let mut request = request.body(Body::empty()).unwrap();
        let peer = tower_realm_lock::PeerAddr("10.1.1.1:1".parse().unwrap());
        request.extensions_mut().insert(peer);
        assert_eq!(app.oneshot(request).await.unwrap().status(), 400);
    }

    #[tokio::test]
    async fn a_parameter_outside_of_the_name_may_be_a_resource_so_the_realm_is_taken_whole() {
        let scoped = |realms, pattern| {
            let rules = LockRules::new().scope(Method::PUT, pattern, Scope::resource());
            layer(realms).rules(rules.unwrap()).unwrap()
        };
        let pattern = "/cards/{card}/of/{owner}/{realm}";
        let realms = RealmPaths::new("https://h", "/{owner}/{realm}").unwrap();
        let app = Router::new().route(pattern, put(claimed));
        let app = app.layer(scoped(realms, pattern));
        let whole = "https://h/luke/site/";
        assert_eq!(
            answer(&app, "PUT", "/cards/c/of/luke/site").await,
            whole,
            "by the route"
        );
        for (pattern, route, path, expected) in [
            (pattern, pattern, "/cards/c/of/luke/site", whole),
            (
                "/{owner}/{realm}/cards/{card}",
                "/{owner}/{realm}/cards/{card}",
                "/luke/site/cards/c",
                whole,
            ),
            (
                "/{version}/{owner}/{realm}",
                "/{version}/{owner}/{realm}/{*card}",
                "/v1/luke/site/c",
                "https://h/luke/site/ (c)",
            ),
        ] {
            let realms = RealmPaths::new("https://h", pattern)
                .and_then(|realms| realms.named("/{owner}/{realm}"));
            let explanation = scoped(realms.unwrap(), route).explain(&Method::PUT, path);
            let claim = explanation.claim().map(ToString::to_string);
            assert_eq!(claim.as_deref(), Some(expected), "{explanation}");
        }
    }

    #[tokio::test]
    async fn a_handler_that_takes_the_rest_of_a_path_is_judged_by_the_path() {
        let realms = || RealmPaths::new("https://h", "/{owner}/{realm}").unwrap();
        let rest = Router::new().route("/{owner}/{*rest}", patch(claimed));
        let same = Router::new().route("/{owner}/{*realm}", patch(claimed));
        let all = Router::new().route("/{*all}", patch(claimed));
        let fallback = Router::new().fallback(patch(claimed));
        for app in [rest, same, all, fallback] {
            let app = app.layer(layer(realms()));
            let realm = "https://h/luke/site/";
            assert_eq!(answer(&app, "PATCH", "/luke/site/x").await, realm);
            let refused = answer(&app, "PATCH", "/luke%2Fsite/x").await;
            assert!(refused.starts_with("400"), "{refused}");
        }
        // What only begins as a realm's path does is none.
        let assets = Router::new().route("/assets/{*file}", patch(claimed));
        let assets = assets.layer(layer(realms()));
        assert_eq!(answer(&assets, "PATCH", "/assets/a/b").await, "none");
    }

    #[tokio::test]
    async fn what_the_router_decodes_is_the_realm_or_is_refused() {
        let realms = RealmPaths::new("https://h", "/{owner}/{realm}").unwrap();
        let app = Router::new()
            .route("/{owner}/{realm}/{*path}", patch(claimed))
            .layer(layer(realms));
        for (path, expected) in [
            ("/l%75ke/s%C3%BC/x", "https://h/luke/s%C3%BC/"),
            ("/luke/site/x%2Fy", "https://h/luke/site/"),
        ] {
            assert_eq!(answer(&app, "PATCH", path).await, expected, "{path}");
        }
        for path in [
            "/luke/a%2Fb/x",
            "/luke/a%5Cb/x",
            "/luke/%2e%2e/x",
            "/luke/../x",
            "/luke/site/../x",
            "/luke/site//x",
            "/luke/%00/x",
            "/luke/%FF/x",
            "/luke/%zz/x",
        ] {
            let refused = answer(&app, "PATCH", path).await;
            assert!(refused.starts_with("400"), "{path}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_destination_is_read_as_the_route_is() {
        let realms = RealmPaths::new("https://h", "/{owner}/{realm}").unwrap();
        let app = Router::new()
            .route(
                "/files/{owner}/{realm}/{*path}",
                axum::routing::any(claimed),
            )
            .layer(layer(realms));
        let moved = async |destination: &str| {
            let request = Request::builder().method("MOVE").uri("/files/luke/a/x");
            let request = request.header("destination", destination);
            let request = request.body(Body::empty()).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            format!("{status} {}", String::from_utf8(body.to_vec()).unwrap())
        };
        let both = "200 OK https://h/luke/a/ and https://h/luke/b/";
        assert_eq!(moved("/files/luke/b/y").await, both);
        assert_eq!(moved("https://h/files/luke/b/y").await, both);
        assert_eq!(moved("/files/luke/a/y").await, "200 OK https://h/luke/a/");
        for destination in ["/luke/b/y", "/files/luke", "https://other/files/luke/b/y"] {
            let refused = moved(destination).await;
            assert!(refused.starts_with("400"), "{destination}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_host_and_a_route_name_a_realm_together() {
        let realms = RealmPaths::new("https://{tenant}.example.com", "/{project}")
            .and_then(|realms| realms.named("https://realms.example.com/{tenant}/{project}"))
            .unwrap();
        let app = Router::new()
            .route("/v1/projects/{project}/{*path}", patch(claimed))
            .route("/login", post(claimed))
            .layer(layer(realms));
        let uri = "https://acme.example.com/v1/projects/site/x";
        let realm = "https://realms.example.com/acme/site/";
        assert_eq!(answer(&app, "PATCH", uri).await, realm);
        let login = answer(&app, "POST", "https://other.org/login").await;
        assert_eq!(login, "none");
        let refused = answer(&app, "PATCH", "https://other.org/v1/projects/site/x").await;
        assert!(refused.starts_with("400"), "{refused}");
    }
}
