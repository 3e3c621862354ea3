//! The layer treats a request as `explain` describes it, down to the keys in PostgreSQL.

use std::convert::Infallible;

use http::{HeaderName, Method, Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    Claim, HeldLock, LockKey, LockRules, MethodSet, RealmBodyLockLayer, RealmBodyResolver,
    RealmError, RealmLocks, RealmMounts, RealmPaths, RealmPointers, RealmResolver, RealmUrl,
    RealmWriteLockLayer, RequestBody, RequestOrigin, RouteLimits, Scope, TrustedProxies,
    Unresolved,
};

use crate::support::database::{database, rows};
use crate::support::gate::{ORIGIN, gate, patch, postgres_layer, realms};

const CARD: &str = "/{owner}/{realm}/{*card}";

fn rules() -> LockRules {
    let busy = RouteLimits::new().acquire_timeout(std::time::Duration::ZERO);
    let busy = busy.busy_status(StatusCode::LOCKED).unwrap();
    LockRules::new()
        .exempt(Method::POST, "/{owner}/{realm}/_search")
        .and_then(|rules| rules.lock(Method::GET, "/{owner}/{realm}/_reindex"))
        .and_then(|rules| rules.lock(Method::POST, "/webhook"))
        .and_then(|rules| rules.scope([Method::PUT, Method::PATCH], CARD, Scope::resource()))
        .and_then(|rules| rules.scope(MethodSet::unsafe_methods(), CARD, Scope::shared()))
        .and_then(|rules| rules.limits(Method::POST, "/{owner}/{realm}/_export", busy))
        .unwrap()
}

fn layer() -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms())
        .rules(rules())
        .unwrap()
}

/// Sends a request: its claim if it reaches the handler, or the error.
async fn sent(
    layer: &RealmWriteLockLayer,
    method: &Method,
    path: &str,
) -> Result<Option<Claim>, String> {
    let handler = service_fn(async |request: Request<String>| {
        let held: Option<&HeldLock> = request.extensions().get();
        let mut response = Response::new(String::new());
        response
            .extensions_mut()
            .insert(held.map(|held| held.claim().clone()));
        Ok::<_, Infallible>(response)
    });
    let request = Request::builder().method(method).uri(path);
    let request = request.body(String::new()).unwrap();
    let mut response = layer.layer(handler).oneshot(request).await.unwrap();
    let reached = response.extensions_mut().remove::<Option<Claim>>();
    reached.ok_or_else(|| {
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let rejection = response.extensions().get::<tower_realm_lock::Rejection>();
        rejection.unwrap().to_string()
    })
}

#[tokio::test]
async fn a_request_is_treated_as_it_is_explained() {
    let methods = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "MOVE", "QUERY", "FROB",
    ];
    let paths = [
        "/",
        "/luke",
        "/luke/a",
        "/luke/a/",
        "/luke/a/x",
        "/luke/a/x%2Fy",
        "/luke/a/%78/y",
        "/luke/a/_search",
        "/luke/a/%5Fsearch",
        "/luke/a/_reindex",
        "/luke/a/_reindex/",
        "/luke/../a/x",
        "//luke/a",
        "/webhook",
        "/luke%2Fa",
        "/%zz/a/x",
    ];
    for layer in [
        layer(),
        layer().unresolved(Unresolved::Pass),
        layer().enabled(false),
    ] {
        for method in methods {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            for path in paths {
                let explained = layer.explain(&method, path);
                let sent = sent(&layer, &method, path).await;
                let shown = format!("{method} {path}: {sent:?}\n{explained}");
                match sent {
                    Ok(claim) => {
                        assert_eq!(explained.claim(), claim.as_ref(), "{shown}");
                        assert_eq!(explained.passes(), claim.is_none(), "{shown}");
                        assert!(explained.refusal().is_none(), "{shown}");
                    }
                    Err(error) => {
                        let refusal = explained.refusal().expect(&shown).to_string();
                        assert_eq!(refusal, error, "{shown}");
                        assert!(
                            !explained.passes() && explained.claim().is_none(),
                            "{shown}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn an_explanation_names_the_rule_the_realm_and_the_keys() {
    let layer = layer();
    for (method, path, lines) in [
        (
            Method::GET,
            "/luke/a/x",
            &[
                "GET /luke/a/x passes without a lock",
                "rule: none; GET is a safe method",
            ][..],
        ),
        (
            Method::POST,
            "/luke/a/_search",
            &[
                "passes without a lock",
                "rule: `exempt POST /{owner}/{realm}/_search`",
            ],
        ),
        (
            Method::HEAD,
            "/luke/a/_reindex",
            &[
                "is locked",
                "rule: `lock GET /{owner}/{realm}/_reindex`",
                "scope: none",
            ],
        ),
        (
            Method::PATCH,
            "/luke/a/x",
            &[
                "PATCH /luke/a/x is locked",
                "rule: none; PATCH is not a safe method",
                "realm found by: RealmPaths http://realms.test/{owner}/{realm}",
                "locks: http://realms.test/luke/a/ (x)",
                ", shared (in pg_locks: classid ",
                ", exclusive (in pg_locks: classid ",
                "scope: `scope PUT, PATCH /{owner}/{realm}/{*card}`",
                "limits: the layer's",
            ],
        ),
        (
            Method::POST,
            "/luke/a/_export",
            &[
                "locks: http://realms.test/luke/a/ (shared)",
                "scope: `scope unsafe /{owner}/{realm}/{*card}`",
                "limits: `limits POST /{owner}/{realm}/_export`, acquire_timeout 0ns, busy_status 423",
            ],
        ),
        (
            Method::POST,
            "/health",
            &[
                "is rejected with 400",
                "why: the path `/health` names no realm; a realm's paths begin with `/{owner}/{realm}`",
            ],
        ),
        (
            Method::PATCH,
            "luke/a",
            &["is rejected with 400", "is neither a path nor a URL"],
        ),
        (
            Method::PATCH,
            "luke",
            &["is rejected with 400", "it does not start with `/`"],
        ),
        (Method::OPTIONS, "*", &["OPTIONS * passes without a lock"]),
        (
            Method::PATCH,
            "/luke/a b",
            &["is rejected with 400", "is neither a path nor a URL"],
        ),
    ] {
        let explanation = layer.explain(&method, path);
        let text = explanation.to_string();
        for line in lines {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}

#[test]
fn an_explanation_lists_what_only_a_request_can_show() {
    let tenant =
        RealmResolver::from_fn(async |_| Err::<RealmUrl, _>(RealmError::unresolved("no tenant")));
    let published = RealmPointers::new(["/realm"]).unwrap();
    let layer = RealmBodyResolver::from(realms())
        .route(Method::POST, "/_publish", published)
        .and_then(|realms| realms.route(Method::POST, "/_tenant", tenant))
        .unwrap();
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), layer, 1024);
    let rules = LockRules::new()
        .scope(
            Method::POST,
            "/{owner}/{realm}/_atomic",
            Scope::atomic_hrefs(),
        )
        .unwrap()
        .method_override(http::HeaderName::from_static("x-method"), [Method::PUT]);
    let layer = layer.rules(rules);
    let [publish, tenant, atomic] =
        ["/_publish", "/_tenant", "/luke/a/_atomic"].map(|path| layer.explain(&Method::POST, path));
    assert!(publish.needs_body() && !publish.needs_lookup(), "{publish}");
    assert!(
        publish.to_string().contains("found by: RealmPointers"),
        "{publish}"
    );
    assert!(tenant.needs_lookup() && !tenant.needs_body(), "{tenant}");
    assert!(atomic.needs_body(), "{atomic}");
    for explanation in [&publish, &tenant, &atomic] {
        assert!(
            !explanation.passes() && explanation.claim().is_none(),
            "{explanation}"
        );
        assert!(explanation.refusal().is_none(), "{explanation}");
        let part = "at run time: the header `x-method` may override the method";
        assert!(explanation.to_string().contains(part), "{explanation}");
    }
    // A request may have what is missing here, whatever becomes of one that has not.
    let header = HeaderName::from_static("x-tenant");
    let by_header = RealmResolver::from_header(header, |id| LockKey::in_space("tenant", id));
    let by_header = RealmWriteLockLayer::new(RealmLocks::in_process(), by_header);
    for unresolved in [Unresolved::Refuse, Unresolved::Pass] {
        let layer = by_header.clone().unresolved(unresolved);
        let explanation = layer.explain(&Method::POST, "/orders");
        assert!(explanation.needs_lookup(), "{unresolved:?}: {explanation}");
    }
    let moved = layer.explain(&Method::from_bytes(b"MOVE").unwrap(), "/luke/a/x");
    let part = "at run time: the header `Destination` names what is locked as well";
    assert!(moved.to_string().contains(part), "{moved}");
    let part = "at run time: in axum's router only routes with `{owner}` and `{realm}` are locked";
    assert_eq!(
        atomic.to_string().contains(part),
        cfg!(feature = "axum"),
        "{atomic}"
    );
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_route_is_explained_as_its_router_treats_requests() {
    use axum::body::Body;
    use axum::routing::any;
    use axum::{Extension, Router};
    use http_body_util::BodyExt;

    async fn claimed(held: Option<Extension<HeldLock>>) -> String {
        held.map_or("none".to_owned(), |held| held.claim().to_string())
    }

    let realms = RealmPaths::new("https://h/api", "/{owner}/{realm}").unwrap();
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms);
    for (route, path) in [
        ("/api/{owner}/{realm}/{*card}", "/api/luke/s%C3%BC/x/y"),
        ("/admin/{realm}/of/{owner}/purge", "/admin/a/of/luke/purge"),
        ("/auth/login", "/auth/login"),
        ("/{owner}/profile", "/luke/profile"),
        ("/api/{tenant}/{project}", "/api/luke/a"),
        ("/api/{owner}/{*rest}", "/api/luke/a/x"),
        ("/{owner}/{realm}", "/luke/a%2Fb"),
        ("/{owner}/{realm}", "/luke/%FF"),
    ] {
        let router = Router::new()
            .route(route, any(claimed))
            .layer(layer.clone());
        let request = Request::post(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let explanation = layer.explain_route(&Method::POST, route, path);
        match explanation.claim() {
            Some(claim) => assert_eq!(claim.to_string(), body, "{explanation}"),
            None if status == 200 => {
                assert!(explanation.passes() && body == "none", "{explanation}");
            }
            None => assert!(explanation.refusal().is_some(), "{explanation}"),
        }
        assert!(
            !explanation.to_string().contains("in axum's router"),
            "{explanation}"
        );
    }
    let elsewhere = layer.explain_route(&Method::POST, "/auth/login", "/luke/a");
    let refusal = elsewhere.refusal().unwrap().to_string();
    assert!(
        refusal.contains("does not send `/luke/a` to `/auth/login`"),
        "{refusal}"
    );
}

#[test]
fn a_path_that_begins_twice_as_the_base_url_is_explained_as_the_log_warns() {
    let realms = RealmPaths::new("https://h/api", "/{owner}/{realm}").unwrap();
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms.base_path_stripped());
    let explanation = layer.explain(&Method::PUT, "/api/luke/a").to_string();
    let part = "the path begins with that of `https://h/api/` twice";
    assert!(explanation.contains(part), "{explanation}");
    let explanation = layer.explain(&Method::PUT, "/luke/a/x").to_string();
    assert!(!explanation.contains("twice"), "{explanation}");
}

#[test]
fn a_url_with_a_host_is_explained_where_the_host_counts() {
    let origin = RequestOrigin::new(TrustedProxies::default());
    let origin = origin
        .only(["https://a.example", "https://b.example"])
        .unwrap();
    let realms = RealmPaths::new("https://a.example", "/{realm}").unwrap();
    let layer =
        RealmWriteLockLayer::new(RealmLocks::in_process(), realms.origin_from_request(origin));
    let at = |uri: &str| layer.explain(&Method::PUT, uri);
    assert_eq!(
        at("https://b.example/x/y").realms()[0].as_str(),
        "https://b.example/x/"
    );
    let other = at("https://c.example/x/y");
    assert!(
        matches!(other.refusal(), Some(RealmError::Origin { .. })),
        "{other}"
    );
    let without = at("/x/y");
    let part = "explain a URL with its host";
    assert!(without.to_string().contains(part), "{without}");
}

#[tokio::test]
async fn its_keys_are_those_in_postgresql() {
    let database = database().await;
    let rules = LockRules::new().scope(Method::PATCH, CARD, Scope::resource());
    let layer = postgres_layer(database.url())
        .await
        .rules(rules.unwrap())
        .unwrap();
    let explanation = layer.explain(&Method::PATCH, "/luke/a/x");
    let realm = realms().resolve("/luke/a").unwrap();
    assert!(explanation.lock_keys().contains(&LockKey::of(&realm)));
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, "/luke/a/x");
    let inside = gate.entered().await;
    let sql = "SELECT classid, objid, mode FROM pg_locks \
        WHERE locktype = 'advisory' AND objsubid = 1 \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let held = rows(&database.connect().await, sql).await;
    assert_eq!(held.len(), 2);
    let text = explanation.to_string();
    for row in held {
        let column = |name: &str| row.get(name).unwrap();
        let key = format!(
            "in pg_locks: classid {}, objid {})",
            column("classid"),
            column("objid")
        );
        let mode = match column("mode") {
            "ShareLock" => "shared",
            _ => "exclusive",
        };
        let part = format!(", {mode} ({key}");
        assert!(text.contains(&part), "{part} is missing in\n{text}");
    }
    inside.answer(200);
    write.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_names_no_realm_passes_if_that_is_asked_for_and_nothing_else_does() {
    let mounted = RealmMounts::new([format!("{ORIGIN}/luke/a/").parse().unwrap()]).unwrap();
    let absent =
        RealmResolver::from_fn(async |_| Err::<RealmUrl, _>(RealmError::missing("no header")));
    let lost =
        RealmResolver::from_fn(async |_| Err::<RealmUrl, _>(RealmError::unavailable("gone")));
    let header = HeaderName::from_static("x-tenant");
    let header = RealmResolver::from_header(header, |id| LockKey::in_space("tenant", id));
    let extension = RealmResolver::from_extension(|url: &RealmUrl| Ok(url.clone()));
    #[cfg(feature = "axum")]
    let by_params = RealmResolver::from_params(["id"], |[id]| LockKey::in_space("tenant", id));
    let malformed =
        RealmResolver::from_fn(async |_| Err::<RealmUrl, _>(RealmError::unresolved("no text")));
    let empty = RealmResolver::from_fn(async |_| Claim::of_realms::<RealmUrl>([]));
    let foreign = RealmResolver::from_fn(async |_| {
        let problem = "`x` is no tenant".to_owned();
        Err::<RealmUrl, _>(RealmError::Origin { problem })
    });
    for (resolver, path, passes) in [
        (RealmResolver::from(realms()), "/login", true),
        (mounted.clone().into(), "/login", true),
        (absent.clone(), "/login", true),
        (header, "/login", true),
        (extension, "/login", true),
        #[cfg(feature = "axum")]
        (by_params, "/login", true),
        (malformed, "/login", false),
        (empty, "/login", false),
        (lost, "/login", false),
        (foreign, "/login", false),
        // Some router may find a realm in it.
        (realms().into(), "/luke%2Fa", false),
        (realms().into(), "//login", false),
        (mounted.clone().into(), "/luke/../login", false),
        (mounted.into(), "/luke%2fb", false),
        (absent.clone(), "//login", false),
        (absent, "/luke%2Fa", false),
    ] {
        for unresolved in [Unresolved::Refuse, Unresolved::Pass] {
            let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), resolver.clone());
            let status = status(&layer.unresolved(unresolved), Method::POST, path).await;
            let passed = passes && unresolved == Unresolved::Pass;
            assert_eq!(
                status.is_success(),
                passed,
                "{unresolved:?} {path} {status}"
            );
        }
    }
    // What a rule locks names a realm, or is refused; a MOVE may lead into one.
    let layer = layer().unresolved(Unresolved::Pass);
    assert_eq!(status(&layer, Method::POST, "/webhook").await, 400);
    assert_eq!(status(&layer, Method::PUT, "/webhook").await, 200);
    let moves = Method::from_bytes(b"MOVE").unwrap();
    assert_eq!(status(&layer, moves, "/x").await, 400);
    // A realm is found, whatever its scope says.
    let no_card = Scope::from_fn(async |_, _| Err(RealmError::missing("no card")));
    let rules = LockRules::new().scope(Method::PUT, CARD, no_card).unwrap();
    let scoped = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let scoped = scoped.rules(rules).unwrap().unresolved(Unresolved::Pass);
    assert_eq!(status(&scoped, Method::PUT, "/luke/a/x").await, 400);
    // Nobody knows which method it has.
    let header = HeaderName::from_static("x-http-method-override");
    let rules = LockRules::new().method_override(header.clone(), [Method::PATCH]);
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let layer = layer.rules(rules).unwrap().unresolved(Unresolved::Pass);
    for (value, expected) in [("PATCH", 200), ("not a method", 400)] {
        let request = Request::post("/login").header(&header, value);
        let request = request.body(String::new()).unwrap();
        let service = layer.layer(service_fn(crate::support::gate::at_once));
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status(), expected, "{value}");
    }
}

async fn status(layer: &RealmWriteLockLayer, method: Method, path: &str) -> StatusCode {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(String::new()).unwrap();
    let service = layer.layer(service_fn(crate::support::gate::at_once));
    service.oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn a_body_that_names_no_realm_reaches_a_handler_that_may_pass() {
    let absent = RealmBodyResolver::from_body_fn(async |_, _| {
        Err::<RealmUrl, _>(RealmError::missing("none"))
    });
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), absent, 1024);
    let handler = service_fn(async |request: Request<RequestBody<String>>| {
        assert!(request.extensions().get::<HeldLock>().is_none());
        let bytes = request.body().bytes().unwrap().clone();
        Ok::<_, Infallible>(Response::new(String::from_utf8(bytes.to_vec()).unwrap()))
    });
    for (unresolved, path, status) in [
        (Unresolved::Pass, "/", 200),
        (Unresolved::Pass, "//", 400),
        (Unresolved::Refuse, "/", 400),
    ] {
        let service = layer.clone().unresolved(unresolved).layer(handler);
        let request = Request::post(path).body("text".to_owned()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{unresolved:?} {path}");
    }
}

#[tokio::test]
async fn a_layer_that_is_switched_off_passes_everything() {
    let rules = LockRules::new().lock(Method::GET, "/{*all}").unwrap();
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let layer = layer.rules(rules).unwrap();
    let off = layer.clone().enabled(false);
    for path in ["/luke/a/x", "/luke", "/luke/../a/x"] {
        for method in [Method::GET, Method::PATCH] {
            let sent = sent(&off, &method, path).await;
            assert_eq!(sent, Ok(None), "{method} {path}");
            assert!(off.explain(&method, path).passes());
        }
    }
    assert!(
        sent(&layer, &Method::PATCH, "/luke/a/x")
            .await
            .unwrap()
            .is_some()
    );
    // The handler's body is the same type as with the layer switched on.
    let bodies = layer.read_bodies(4).read_all(true).enabled(false);
    let service = bodies.layer(service_fn(async |request: Request<RequestBody<String>>| {
        assert!(request.body().bytes().is_none(), "it is not read");
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let request = Request::patch("/luke/a/x").body("longer than the limit".to_owned());
    let response = service.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
}
