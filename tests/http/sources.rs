//! What a request locks comes from any source: a header, a request extension, the parameters of
//! axum's router, a closure; and it is any claim, of realms or of other spaces.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::extract::Request as AxumRequest;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response as AxumResponse};
use axum::routing::post;
use axum::{Extension, Router};
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::{Layer, Service, service_fn};
use tower_realm_lock::{
    Claim, HeldLock, LockKey, LockRules, RealmBodyLockLayer, RealmBodyResolver, RealmError,
    RealmLocks, RealmResolver, RealmUrl, RealmWriteLockLayer, RealmWrites, Scope,
};

use crate::support::broadcast::next_write;
use crate::support::claims::{cards, realm, work};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{gate, postgres_locks_with};
use crate::support::raw::raw;

const TENANT: HeaderName = HeaderName::from_static("x-tenant");

fn tenant(id: &str) -> LockKey {
    LockKey::in_space("tenant", id).expect("a space")
}

/// A lock for each tenant id in a header, which is no realm.
fn by_header() -> RealmResolver {
    RealmResolver::from_header(TENANT, |id| Ok(tenant(id)))
}

/// The realm of this path below `http://realms.test/luke/`.
fn named(name: &str) -> Result<RealmUrl, RealmError> {
    RealmUrl::parse("http://realms.test/luke")?.join([name])
}

/// A bare hyper server in front of a tower service.
async fn serve<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
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
    address
}

/// axum's own server.
async fn serve_axum(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// The claim that a plain tower handler behind this layer finds, and its own body otherwise.
async fn serve_claims<L>(layer: L) -> SocketAddr
where
    L: Layer<Claims>,
    L::Service: Service<Request<Incoming>, Response = Response<tower_realm_lock::LockBody<String>>>
        + Clone
        + Send
        + Sync
        + 'static,
    <L::Service as Service<Request<Incoming>>>::Future: Send,
    <L::Service as Service<Request<Incoming>>>::Error:
        Into<Box<dyn std::error::Error + Send + Sync>>,
{
    serve(layer.layer(Claims)).await
}

/// A handler that answers with the claim of its hold. It takes any body, and reads none.
#[derive(Clone)]
struct Claims;

impl<A> Service<Request<A>> for Claims {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let held: Option<&HeldLock> = request.extensions().get();
        let claim = held.map_or("none".into(), |held| held.claim().to_string());
        std::future::ready(Ok(Response::new(claim)))
    }
}

/// The same for axum.
async fn claim(held: Option<Extension<HeldLock>>) -> String {
    held.map_or("none".into(), |held| held.claim().to_string())
}

/// Sends a POST with these lines of a head.
async fn post_to(server: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let head = format!("POST {path} HTTP/1.1\r\nhost: realms.test{headers}");
    raw(server, head.as_bytes(), "").await
}

/// Fails unless this is a rejection for naming, and gives its text.
fn refused((status, body): (u16, String)) -> String {
    assert_eq!(status, 400, "{body}");
    let problem: Value = serde_json::from_str(&body).unwrap();
    let kind = problem["type"].as_str().unwrap();
    assert!(kind.ends_with("#realm-unresolved"), "{kind}");
    problem["detail"].as_str().unwrap().to_owned()
}

fn in_process(realms: impl Into<RealmResolver>) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms)
}

#[tokio::test]
async fn writers_of_one_tenant_take_turns_and_tenants_run_side_by_side_on_two_replicas() {
    let database = database().await;
    let (handler, mut gate) = gate();
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let locks = postgres_locks_with(database.url(), |builder| builder).await;
        let layer = RealmWriteLockLayer::new(locks, by_header());
        replicas.push(serve(layer.layer(handler.clone())).await);
    }
    let write = |replica: usize, path: &'static str, id: &'static str| {
        let server = replicas[replica];
        tokio::spawn(async move { post_to(server, path, &format!("\r\nx-tenant: {id}")).await })
    };
    let first = write(0, "/first", "acme");
    let in_first = gate.entered().await;
    assert_eq!(in_first.held.as_ref().unwrap().realms(), []);
    let acme = tenant("acme");
    assert_eq!(
        *in_first.held.as_ref().unwrap().claim(),
        Claim::from(acme),
        "the id is the lock"
    );
    let second = write(1, "/second", "acme");
    database.wait_for_waiting(acme.value().unwrap(), 1).await;
    let other = write(1, "/other", "zeta");
    let in_other = gate.entered().await;
    assert_eq!(in_other.path, "/other");
    assert!(gate.is_empty());
    in_first.answer(200);
    let in_second = gate.entered().await;
    assert_eq!(in_second.path, "/second");
    in_second.answer(200);
    in_other.answer(200);
    for write in [first, second, other] {
        assert_eq!(write.await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn a_header_that_can_be_read_in_two_ways_is_refused() {
    let server = serve_claims(in_process(by_header())).await;
    let expected = Claim::from(tenant("acme")).to_string();
    for headers in ["\r\nx-tenant: acme", "\r\nX-TENANT:  acme  "] {
        let answer = post_to(server, "/x", headers).await;
        assert_eq!(answer, (200, expected.clone()), "{headers}");
    }
    for (headers, part) in [
        ("", "it has no header `x-tenant`; send it"),
        ("\r\nx-tenant: acme\r\nx-tenant: zeta", "more than once"),
        ("\r\nx-tenant: acme\r\nX-Tenant: acme", "more than once"),
        ("\r\nx-tenant:", "is empty"),
        ("\r\nx-tenant:   ", "is empty"),
        ("\r\nx-tenant: a\tb", "a control character"),
        ("\r\nx-tenant: a\u{85}b", "a control character"),
    ] {
        let detail = refused(post_to(server, "/x", headers).await);
        assert!(detail.contains(part), "{headers:?}: {detail}");
    }
    let head = b"POST /x HTTP/1.1\r\nhost: realms.test\r\nx-tenant: \xff\xfe";
    let detail = refused(raw(server, head, "").await);
    assert!(detail.contains("is not UTF-8"), "{detail}");
    // Reads pass without it.
    let head = b"GET /x HTTP/1.1\r\nhost: realms.test";
    assert_eq!(raw(server, head, "").await, (200, "none".into()));
}

#[tokio::test]
async fn a_text_that_is_no_segment_makes_no_realm() {
    let server = serve_claims(in_process(RealmResolver::from_header(TENANT, named))).await;
    let answer = post_to(server, "/x", "\r\nx-tenant: my realm").await;
    assert_eq!(answer, (200, "http://realms.test/luke/my%20realm/".into()));
    for (name, part) in [
        ("..", "a step to another path"),
        ("a/b", "a slash or a backslash"),
        ("..\\b", "a slash or a backslash"),
    ] {
        let detail = refused(post_to(server, "/x", &format!("\r\nx-tenant: {name}")).await);
        let name = name.escape_debug().to_string();
        assert!(detail.contains(part) && detail.contains(&name), "{detail}");
    }
}

#[derive(Clone)]
struct Token {
    tenant: String,
}

/// An auth layer: the token is the tenant's name.
async fn authenticate(mut request: AxumRequest, next: Next) -> AxumResponse {
    let token = request.headers().get("authorization");
    let Some(token) = token.and_then(|token| token.to_str().ok()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let tenant = token.trim_start_matches("Bearer ").to_owned();
    request.extensions_mut().insert(Token { tenant });
    next.run(request).await
}

#[tokio::test]
async fn an_auth_layer_outside_sets_the_tenant() {
    let layer = in_process(RealmResolver::from_extension(|token: &Token| {
        Ok(tenant(&token.tenant))
    }));
    let locked = Router::new().route("/x", post(claim)).layer(layer);
    let server = serve_axum(locked.clone().layer(from_fn(authenticate))).await;
    for id in ["acme", "zeta"] {
        let headers = format!("\r\nauthorization: Bearer {id}");
        let answer = post_to(server, "/x", &headers).await;
        assert_eq!(answer, (200, Claim::from(tenant(id)).to_string()));
    }
    assert_eq!(post_to(server, "/x", "").await.0, 401);
    // Without the auth layer, or with it inside.
    let server = serve_axum(locked).await;
    let detail = refused(post_to(server, "/x", "\r\nauthorization: Bearer acme").await);
    for part in ["Token`", "put the layer that inserts it outside"] {
        assert!(detail.contains(part), "{detail}");
    }
    // The same on a plain tower service.
    let layer = in_process(RealmResolver::from_extension(|id: &u32| {
        LockKey::in_space("tenant", id)
    }));
    let insert = tower::util::MapRequestLayer::new(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(7_u32);
        request
    });
    let service = tower::ServiceBuilder::new()
        .layer(insert)
        .layer(layer)
        .service(Claims);
    let expected = Claim::from(tenant("7")).to_string();
    assert_eq!(
        post_to(serve(service).await, "/x", "").await,
        (200, expected)
    );
}

#[tokio::test]
async fn a_closure_claims_two_spaces_and_a_realm_at_once() {
    let database = database().await;
    let (budget, acme) = (LockKey::in_space("user-cost", 42).unwrap(), tenant("acme"));
    let realms = RealmResolver::from_fn(move |head| async move {
        let path = head.path().trim_start_matches('/').to_owned();
        tokio::task::yield_now().await;
        Ok(Claim::from(budget)
            .and(&acme.into())
            .and(&named(&path)?.into()))
    });
    let locks = postgres_locks_with(database.url(), |builder| builder.broadcast(true)).await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let layer = RealmWriteLockLayer::new(locks.clone(), realms).server_timing(true);
    let (handler, mut gate) = gate();
    let server = serve(layer.layer(handler)).await;
    let write: JoinHandle<_> = tokio::spawn(async move { post_to(server, "/a", "").await });
    let inside = gate.entered().await;
    let keys = [budget, acme, LockKey::of(&realm("a"))];
    for key in keys {
        assert_eq!(
            database.advisory_locks(key.value().unwrap()).await,
            (1, 0),
            "{key}"
        );
    }
    // An operator reads all of it.
    let mut spaces = [budget, acme];
    spaces.sort();
    let [one, other] = spaces;
    let name = format!("{} and lock key {one}, {other}", realm("a"));
    assert_eq!(inside.held.as_ref().unwrap().claim().to_string(), name);
    assert_eq!(inside.held.as_ref().unwrap().realms(), [realm("a")]);
    assert!(shown(&database, budget).await.contains(&name));
    // Jobs that need one of them wait.
    let own = postgres_locks_with(database.url(), |builder| builder).await;
    let jobs = [Claim::from(budget), acme.into(), realm("a").into()];
    let mut waiting = jobs.map(|claim| work(&own, &claim));
    for key in keys {
        database.wait_for_waiting(key.value().unwrap(), 1).await;
    }
    assert!(waiting.iter_mut().all(crate::support::claims::Work::waits));
    inside.answer(200);
    assert_eq!(write.await.unwrap().0, 200);
    for job in waiting {
        job.inside().await.end().await;
    }
    let write = next_write(&mut writes).await;
    assert_eq!((write.realm(), write.path()), (&realm("a"), None));
}

/// What PostgreSQL shows of the holder of a key.
async fn shown(database: &TestDatabase, key: LockKey) -> String {
    let pid = database.holder_pid(key.value().unwrap()).await.unwrap();
    let client = database.connect().await;
    let query = "SELECT query FROM pg_stat_activity WHERE pid = $1";
    client.query_one(query, &[&pid]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_busy_claim_without_a_realm_is_named_by_its_key() {
    let locks = RealmLocks::in_process();
    let held = work(&locks, &tenant("acme").into()).inside().await;
    let layer = RealmWriteLockLayer::new(locks, by_header());
    let server =
        serve_claims(layer.map_locks(|locks| locks.acquire_timeout(std::time::Duration::ZERO)))
            .await;
    let (status, body) = post_to(server, "/x", "\r\nx-tenant: acme").await;
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 503, "{body}");
    let detail = problem["detail"].as_str().unwrap();
    let name = format!("lock key {}", tenant("acme"));
    assert!(detail.contains(&name), "{detail}");
    assert_eq!(problem.get("realm"), None);
    assert_eq!(post_to(server, "/x", "\r\nx-tenant: zeta").await.0, 200);
    held.end().await;
}

#[tokio::test]
async fn only_the_claim_on_one_whole_realm_is_narrowed_and_only_realms_are_shared() {
    let key = tenant("acme");
    let with_key = format!("http://realms.test/luke/a/ and lock key {key}");
    let both = "http://realms.test/luke/a/ and http://realms.test/luke/b/";
    let both_shared = "http://realms.test/luke/a/ (shared) and http://realms.test/luke/b/ (shared)";
    let shared_with_key = format!("http://realms.test/luke/a/ (shared) and lock key {key}");
    let name = format!("lock key {key}");
    let unnamed = format!("lock key {}", LockKey::of(&realm("a")));
    for (claim, narrowed, shared) in [
        (
            Claim::from(realm("a")),
            "http://realms.test/luke/a/ (card)",
            "http://realms.test/luke/a/ (shared)",
        ),
        (
            Claim::of_realms([realm("a"), realm("b")]).unwrap(),
            both,
            both_shared,
        ),
        (Claim::from(key), &name, &name),
        (
            Claim::from(realm("a")).and(&key.into()),
            &with_key,
            &shared_with_key,
        ),
        (
            cards("a", ["x"]),
            "http://realms.test/luke/a/ (x)",
            "http://realms.test/luke/a/ (x)",
        ),
        (
            cards::<0>("a", []),
            "http://realms.test/luke/a/ (shared)",
            "http://realms.test/luke/a/ (shared)",
        ),
        // The realm's key, without its name.
        (Claim::from(LockKey::of(&realm("a"))), &unnamed, &unnamed),
        (
            Claim::from(realm("a")).and(&cards("b", ["x"])),
            "http://realms.test/luke/a/ and http://realms.test/luke/b/ (x)",
            "http://realms.test/luke/a/ (shared) and http://realms.test/luke/b/ (x)",
        ),
    ] {
        for (scope, expected) in [
            (Scope::resource(), narrowed),
            (
                Scope::from_fn(async |_, _| Ok(Some(vec!["card".into()]))),
                narrowed,
            ),
            (Scope::shared(), shared),
        ] {
            let case = format!("{claim} with {scope:?}");
            let found = claim.clone();
            let realms = RealmResolver::from_fn(move |_| std::future::ready(Ok(found.clone())));
            let rules = LockRules::new()
                .scope(Method::POST, "/{*rest}", scope)
                .unwrap();
            let server = serve_claims(in_process(realms).rules(rules).unwrap()).await;
            let answer = post_to(server, "/luke/a/card", "").await;
            assert_eq!(answer, (200, expected.into()), "{case}");
        }
    }
}

#[tokio::test]
async fn closures_over_bodies_get_the_head_first_and_answer_for_their_errors() {
    let realms =
        RealmBodyResolver::from_body_fn(async |head, body| match (head.method(), &*body) {
            (&Method::POST, b"down") => Err(RealmError::unavailable("db.internal is down")),
            (_, body) => named(std::str::from_utf8(body).map_err(RealmError::unresolved)?),
        });
    let scope = Scope::from_body_fn(async |head, realm, body| {
        assert!(
            realm
                .as_str()
                .ends_with(&format!("{}/", std::str::from_utf8(&body).unwrap()))
        );
        match head.path() {
            "/down" => Err(RealmError::unavailable("db.internal is down")),
            "/missing" => Err(RealmError::missing("no card in it")),
            path => Ok(Some(vec![path.trim_start_matches('/').to_owned()])),
        }
    });
    let rules = LockRules::new()
        .scope(Method::POST, "/{card}", scope)
        .unwrap();
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 64).rules(rules);
    let server = serve_claims(layer).await;
    let send = async |path: &str, body: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nhost: realms.test");
        raw(server, head.as_bytes(), body).await
    };
    let locked = (200, "http://realms.test/luke/a/ (x)".into());
    assert_eq!(send("/x", "a").await, locked);
    for (path, body) in [("/x", "down"), ("/down", "a")] {
        let (status, body) = send(path, body).await;
        assert_eq!(status, 503);
        assert!(
            body.contains("#realm-unavailable") && !body.contains("db.internal"),
            "{body}"
        );
    }
    assert!(refused(send("/missing", "a").await).contains("no card in it"));
    assert!(refused(send("/x", "a/b").await).contains("`a/b`"));
}

#[tokio::test]
async fn a_route_may_have_a_source_of_its_own() {
    let realms = RealmResolver::from(crate::support::gate::realms())
        .route(Method::POST, "/billing", by_header())
        .unwrap();
    let server = serve_claims(in_process(realms)).await;
    let key = Claim::from(tenant("acme")).to_string();
    for (path, expected) in [
        ("/billing", &*key),
        ("/luke/a/x", "http://realms.test/luke/a/"),
    ] {
        let answer = post_to(server, path, "\r\nx-tenant: acme").await;
        assert_eq!(answer, (200, expected.into()), "{path}");
    }
}

#[tokio::test]
async fn what_a_closure_keeps_of_the_head_takes_nothing_from_the_handler() {
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let keeper = std::sync::Arc::clone(&kept);
    let realms = RealmResolver::from_fn(move |head| {
        keeper.lock().unwrap().push(head);
        std::future::ready(Ok(realm("a")))
    });
    let handler = service_fn(async |request: Request<Incoming>| {
        let tenant = request.headers()[TENANT].to_str().unwrap().to_owned();
        Ok::<_, Infallible>(Response::new(format!("{tenant} {}", request.uri())))
    });
    let server = serve(in_process(realms).layer(handler)).await;
    let answer = post_to(server, "/x?y=1", "\r\nx-tenant: acme").await;
    assert_eq!(answer, (200, "acme /x?y=1".into()));
    let kept = kept.lock().unwrap();
    let [head] = &kept[..] else {
        panic!("one request")
    };
    assert_eq!(
        (head.path(), head.headers()[TENANT].as_bytes()),
        ("/x", &b"acme"[..])
    );
    assert_eq!(head.uri().query(), Some("y=1"));
    assert_eq!(head.version(), http::Version::HTTP_11);
}

#[cfg(feature = "axum")]
mod axum_routes {
    use axum::routing::any;

    use super::*;

    fn by_params() -> RealmWriteLockLayer {
        in_process(RealmResolver::from_params(["tenant", "project"], |names| {
            RealmUrl::parse("http://realms.test")?.join(names)
        }))
    }

    #[tokio::test]
    async fn the_parameters_of_every_route_name_one_realm() {
        let projects = Router::new().route("/{project}/{*rest}", any(claim));
        let app = Router::new()
            .nest("/v1/{tenant}", projects.clone())
            .nest("/v2/{tenant}", projects)
            .route("/admin/{project}/of/{tenant}", any(claim))
            .layer(by_params());
        let server = serve_axum(app).await;
        for path in [
            "/v1/acme/my%20site/x",
            "/v2/acme/my%20site/x/y",
            "/v2/%61cme/my%20%73ite/x",
            "/admin/my%20site/of/acme",
        ] {
            let realm = "http://realms.test/acme/my%20site/".to_owned();
            assert_eq!(post_to(server, path, "").await, (200, realm), "{path}");
        }
        for (path, part) in [
            ("/v1/acme/a%2Fb/x", "a slash or a backslash"),
            ("/v1/acme/a%5Cb/x", "a slash or a backslash"),
            ("/v1/%2e%2e/a/x", "a step to another path"),
            ("/v1/acme/a%00/x", "a control character"),
            ("/v1/acme/%FF/x", "UTF-8"),
        ] {
            let detail = refused(post_to(server, path, "").await);
            assert!(detail.contains(part), "{path}: {detail}");
        }
    }

    #[tokio::test]
    async fn a_route_without_the_parameters_passes_and_one_with_two_values_is_refused() {
        let inner = Router::new().route("/{tenant}", any(claim));
        let app = Router::new()
            .nest("/twice/{tenant}/{project}", inner)
            .route("/auth/login", any(claim))
            .route("/tenant/{tenant}", any(claim))
            .layer(by_params());
        let server = serve_axum(app.clone()).await;
        for path in ["/auth/login", "/tenant/acme"] {
            let answer = post_to(server, path, "").await;
            assert_eq!(answer, (200, "none".into()), "{path}");
        }
        let detail = refused(post_to(server, "/twice/acme/site/zeta", "").await);
        assert!(
            detail.contains("one is `acme` and the other `zeta`"),
            "{detail}"
        );
        // The same value twice is no question.
        let realm = "http://realms.test/acme/site/".to_owned();
        assert_eq!(
            post_to(server, "/twice/acme/site/acme", "").await,
            (200, realm)
        );
        // Outside of the router no route has matched yet.
        let outside = Router::new().fallback_service(by_params().layer(Claims));
        let detail = refused(post_to(serve_axum(outside).await, "/v1/acme/site/x", "").await);
        assert!(
            detail.contains("put the layer inside axum's router"),
            "{detail}"
        );
    }

    #[tokio::test]
    async fn closures_see_the_whole_path_inside_nest() {
        let realms = RealmBodyResolver::from_body_fn(async |head, _| {
            assert_eq!(head.uri().path(), "/x");
            assert_eq!(head.parameter("tenant"), Some("acme"));
            assert_eq!(head.parameter("other"), None);
            named(&head.path().replace('/', "|"))
        });
        let scope = Scope::from_fn(async |head, _| {
            assert_eq!(head.uri().path(), "/x");
            Ok(Some(vec![format!("{}-", head.path().replace('/', "|"))]))
        });
        let rules = LockRules::new()
            .scope(Method::POST, "/v1/{*rest}", scope)
            .unwrap();
        let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 64).rules(rules);
        let inner = Router::new().route("/x", any(claim)).layer(layer);
        let app = Router::new().nest("/v1/{tenant}", inner);
        let server = serve_axum(app).await;
        let (status, body) = post_to(server, "/v1/acme/x", "").await;
        let expected = "http://realms.test/luke/|v1|acme|x/ (|v1|acme|x-)";
        assert_eq!((status, &*body), (200, expected));
    }
}
