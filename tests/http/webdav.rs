//! WebDAV clients and WebSockets over real connections: reads pass a held realm, a MOVE or COPY
//! holds the realm of its `Destination` too, and a WebSocket can pass over HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::{Layer, service_fn};
use tower_realm_lock::{
    HeldLock, LockKey, LockRules, RealmBodyLockLayer, RealmBodyResolver, RealmLocks, RealmMounts,
    RealmPaths, RealmResolver, RealmUrl, RealmWriteLockLayer, RequestOrigin, Scope, TrustedProxies,
};

use crate::support::database::database;
use crate::support::decided::decided;
use crate::support::gate::{key, postgres_layer, postgres_layer_with, realms};
use crate::support::raw::raw;
use crate::support::wait::PATIENCE;

const DESTINATION: HeaderName = HeaderName::from_static("destination");
const CARD: &str = "/{owner}/{realm}/{*card}";

/// Answers with what is locked. A request that wants a WebSocket gets an echo instead.
async fn handle(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let held: Option<&HeldLock> = request.extensions().get();
    let claim = held.map_or("none".into(), |held| held.claim().to_string());
    let mut response = Response::new(claim);
    if request.headers().contains_key(UPGRADE) {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, "upgrade".parse().unwrap());
        headers.insert(UPGRADE, "websocket".parse().unwrap());
    } else if request.method() == Method::HEAD {
        return Ok(Response::default());
    } else if request.method() != Method::CONNECT {
        return Ok(response);
    }
    response.body_mut().clear();
    tokio::spawn(async move {
        let stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let (mut read, mut write) = tokio::io::split(stream);
        tokio::io::copy(&mut read, &mut write).await
    });
    Ok(response)
}

/// A bare hyper server for HTTP/1.1 and HTTP/2 that lets protocols change.
async fn serve(layer: &RealmWriteLockLayer) -> SocketAddr {
    let service = layer.layer(service_fn(handle));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let mut connection = Builder::new(TokioExecutor::new());
                connection.http2().enable_connect_protocol();
                let stream = TokioIo::new(stream);
                let serving = connection.serve_connection_with_upgrades(stream, service);
                serving.await
            });
        }
    });
    address
}

async fn http2(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (client, connection) = handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    client
}

fn request(method: &Method, path: &str) -> Request<Empty<Bytes>> {
    let request = Request::builder().method(method).version(Version::HTTP_2);
    let request = request.uri(format!("http://realms.test{path}"));
    request.body(Empty::new()).unwrap()
}

async fn answer(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn send(
    client: &mut SendRequest<Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
) -> (u16, String) {
    let sent = timeout(PATIENCE, client.send_request(request)).await;
    answer(sent.expect("an answer in time").unwrap()).await
}

fn method(name: &str) -> Method {
    Method::from_bytes(name.as_bytes()).unwrap()
}

#[tokio::test]
async fn methods_that_only_read_pass_a_realm_that_another_replica_holds() {
    let database = database().await;
    let layer = postgres_layer(database.url()).await;
    let address =
        serve(&layer.map_locks(|locks| locks.acquire_timeout(Duration::from_millis(50)))).await;
    let mut client = http2(address).await;
    let _held = database.hold(key("/luke/a")).await;
    for name in [
        "GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH",
    ] {
        let head = format!("{name} /luke/a/x HTTP/1.1\r\nhost: realms.test");
        let body = if name == "HEAD" { "" } else { "none" };
        let passed = (200, body.to_owned());
        assert_eq!(raw(address, head.as_bytes(), "").await, passed, "{name}");
        let over_http2 = send(&mut client, request(&method(name), "/luke/a/x")).await;
        assert_eq!(over_http2, passed, "{name}");
    }
    for name in ["PROPPATCH", "MKCOL", "LOCK", "UNLOCK", "ACL", "BREW"] {
        let head = format!("{name} /luke/a/x HTTP/1.1\r\nhost: realms.test");
        let (status, problem) = raw(address, head.as_bytes(), "").await;
        assert!(status == 503 && problem.contains("#lock-timeout"), "{name}");
        let (status, _) = send(&mut client, request(&method(name), "/luke/a/x")).await;
        assert_eq!(status, 503, "{name}");
    }
}

#[tokio::test]
async fn a_move_waits_for_the_realm_that_it_moves_to_and_holds_both() {
    let database = database().await;
    for (name, destination) in [
        ("MOVE", "/luke/b/y"),
        ("COPY", "http://realms.test/l%75ke/%62/y"),
    ] {
        let address = serve(&postgres_layer(database.url()).await).await;
        let held = database.hold(key("/luke/b")).await;
        let mut moved = request(&method(name), "/luke/a/x");
        moved
            .headers_mut()
            .insert(DESTINATION, destination.parse().unwrap());
        let mut client = http2(address).await;
        let moved = tokio::spawn(async move { send(&mut client, moved).await });
        database.wait_for_waiting(key("/luke/b"), 1).await;
        held.batch_execute("ROLLBACK").await.unwrap();
        let both = "http://realms.test/luke/a/ and http://realms.test/luke/b/";
        assert_eq!(moved.await.unwrap(), (200, both.into()), "{name}");
    }
}

#[tokio::test]
async fn a_move_locks_the_resource_of_its_destination_beside_the_rest_of_the_realm() {
    let by_closure = Scope::from_fn(async |_, _| Ok(Some(vec!["z".into()])));
    let rules = LockRules::new()
        .scope(method("MOVE"), CARD, Scope::resource())
        .and_then(|rules| rules.scope(method("COPY"), CARD, by_closure))
        .and_then(|rules| rules.scope(Method::PATCH, CARD, Scope::resource()))
        .unwrap();
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let address = serve(&layer.rules(rules).unwrap()).await;
    for (name, destination, claim) in [
        ("MOVE", "/luke/a/y", "http://realms.test/luke/a/ (x, y)"),
        ("COPY", "/luke/a/%79", "http://realms.test/luke/a/ (y, z)"),
        ("MOVE", "/luke/a", "http://realms.test/luke/a/"),
        (
            "COPY",
            "/luke/b/y",
            "http://realms.test/luke/a/ and http://realms.test/luke/b/",
        ),
    ] {
        let head =
            format!("{name} /luke/a/x HTTP/1.1\r\nhost: realms.test\r\ndestination: {destination}");
        let answer = raw(address, head.as_bytes(), "").await;
        assert_eq!(answer, (200, claim.to_owned()), "{name} {destination}");
    }
}

#[tokio::test]
async fn a_move_out_of_a_shared_route_excludes_those_that_write_where_it_moves_to() {
    let database = database().await;
    let rules = LockRules::new()
        .scope(method("MOVE"), "/{owner}/drafts/{*rest}", Scope::shared())
        .and_then(|rules| rules.scope(method("MOVE"), "/{owner}/a/drafts/{*rest}", Scope::shared()))
        .and_then(|rules| rules.scope(Method::PATCH, CARD, Scope::resource()))
        .unwrap();
    for (from, to, claim) in [
        (
            "/luke/drafts/x",
            "/luke/site/y",
            "http://realms.test/luke/drafts/ and http://realms.test/luke/site/",
        ),
        (
            "/luke/a/drafts/x",
            "/luke/a/y",
            "http://realms.test/luke/a/",
        ),
        (
            "/luke/drafts/x",
            "/luke/drafts/y",
            "http://realms.test/luke/drafts/ (shared)",
        ),
    ] {
        let layer = postgres_layer(database.url()).await;
        let address = serve(&layer.rules(rules.clone()).unwrap()).await;
        // As the writer of a resource does, or another such MOVE would.
        let writer = database.connect().await;
        let share = format!("BEGIN; SELECT pg_advisory_xact_lock_shared({})", key(to));
        writer.batch_execute(&share).await.unwrap();
        let mut moved = request(&method("MOVE"), from);
        let destination = to.parse().unwrap();
        moved.headers_mut().insert(DESTINATION, destination);
        let mut client = http2(address).await;
        let moved = tokio::spawn(async move { send(&mut client, moved).await });
        if !claim.ends_with("(shared)") {
            database.wait_for_waiting(key(to), 1).await;
            writer.batch_execute("ROLLBACK").await.unwrap();
        }
        assert_eq!(moved.await.unwrap(), (200, claim.into()), "{from} {to}");
    }
}

#[tokio::test]
async fn a_move_without_a_certain_destination_is_rejected_with_the_header_and_the_remedy() {
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let address = serve(&layer).await;
    let mut client = http2(address).await;
    for (destinations, says) in [
        (&[][..], "it has no header `Destination`"),
        (&["/luke/b/y", "/luke/b/y"], "more than once"),
        (&["b/y"], "`Destination: b/y` cannot be used"),
        (
            &["http://evil.test/luke/b/y"],
            "`http://realms.test/luke/b/`",
        ),
        (&["/luke/b/../c/y"], "`Destination: /luke/b/../c/y`"),
        (&["/luke/%62%00/y"], "control character"),
        (&["/luke/b/\u{e9}"], "percent-encoded"),
    ] {
        let lines = destinations.iter();
        let lines: Vec<_> = lines.map(|it| format!("\r\ndestination: {it}")).collect();
        let lines = lines.concat();
        let head = format!("MOVE /luke/a/x HTTP/1.1\r\nhost: realms.test{lines}");
        let (status, problem) = raw(address, head.as_bytes(), "").await;
        assert_refused(status, &problem, says);
        let mut moved = request(&method("MOVE"), "/luke/a/x");
        for destination in destinations {
            let destination = HeaderValue::from_bytes(destination.as_bytes()).unwrap();
            moved.headers_mut().append(DESTINATION, destination);
        }
        let (status, problem) = send(&mut client, moved).await;
        assert_refused(status, &problem, says);
    }
}

fn assert_refused(status: u16, problem: &str, says: &str) {
    let problem: serde_json::Value = serde_json::from_str(problem).expect("a problem document");
    assert_eq!(status, 400, "{problem}");
    let kind = problem["type"].as_str().unwrap();
    assert!(kind.ends_with("#realm-unresolved"), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(says), "{says}: {detail}");
    assert!(
        detail.contains("send one that is an absolute path"),
        "{detail}"
    );
}

/// The layer, without a server around it.
fn layer(realms: impl Into<RealmBodyResolver>) -> RealmBodyLockLayer {
    RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 64)
}

fn scoped(realms: impl Into<RealmBodyResolver>, pattern: &str, scope: Scope) -> RealmBodyLockLayer {
    let rules = LockRules::new().scope(method("MOVE"), pattern, scope);
    layer(realms).rules(rules.unwrap())
}

/// What a MOVE with these headers `Destination` locks.
async fn moved(layer: &RealmBodyLockLayer, path: &str, destinations: &[&str]) -> String {
    let mut request = Request::builder().method("MOVE").uri(path);
    for destination in destinations {
        let value = HeaderValue::from_bytes(destination.as_bytes()).unwrap();
        request = request.header(DESTINATION, value);
    }
    decided(layer, request.body(String::new()).unwrap()).await
}

#[tokio::test]
async fn a_move_locks_its_destination_too() {
    let (a, b) = ("http://realms.test/luke/a/", "http://realms.test/luke/b/");
    let both = format!("{a} and {b}");
    let whole = layer(realms());
    let stem = |path: &str| path.trim_end_matches(".json").to_owned();
    let resource = scoped(realms(), CARD, Scope::resource().named_by(stem));
    let shared = scoped(realms(), CARD, Scope::shared());
    let closure = scoped(
        realms(),
        CARD,
        Scope::from_fn(async |_, _| Ok(Some(vec!["z".into()]))),
    );
    for (layer, destination, expected) in [
        (&whole, "/luke/a/y", a),
        (&whole, "/luke/b/y", &both),
        (&whole, "/luke/b", &both),
        (&whole, "http://realms.test/luke/b/y", &both),
        (&whole, "HTTP://Realms.test:80/l%75ke/%62", &both),
        (&resource, "/luke/a/y", &format!("{a} (x, y)")),
        (&resource, "/luke/a/%79.json", &format!("{a} (x, y)")),
        (&resource, "/luke/a/x/", &format!("{a} (x)")),
        // It replaces the realm, or it is not certain what it replaces.
        (&resource, "/luke/a/", a),
        (&resource, "/luke/a/y%2Fz", a),
        (&resource, "/luke/b/y", &both),
        (&shared, "/luke/a/y", &format!("{a} (shared)")),
        (
            &shared,
            "/luke/b/y",
            &format!("{a} (shared) and {b} (shared)"),
        ),
        // There the rules say nothing.
        (&shared, "/luke/a/", a),
        (&shared, "/luke/b", &both),
        (&closure, "/luke/a/y", &format!("{a} (y, z)")),
        (&closure, "/luke/b/y", &both),
    ] {
        let decision = moved(layer, "/luke/a/x", &[destination]).await;
        assert_eq!(decision, expected, "{destination}");
    }
    // The scope does not fit this spelling.
    let ambiguous = moved(&resource, "/luke/a/x%2Fz", &["/luke/a/y"]).await;
    assert_eq!(ambiguous, a);
}

#[tokio::test]
async fn a_move_is_narrowed_only_as_the_rules_for_both_its_paths_say() {
    let shared = Scope::shared;
    let resource = Scope::resource;
    let closure = || Scope::from_fn(async |_, _| Ok(Some(vec!["z".into()])));
    let (a, b) = ("http://realms.test/luke/a/", "http://realms.test/luke/b/");
    let (both, all_shared) = (format!("{a} and {b}"), format!("{a} (shared)"));
    let both_shared = format!("{a} (shared) and {b} (shared)");
    let resources = format!("{a} (drafts/x, site/y)");
    let named = format!("{a} (site/y, z)");
    for (from, to, within, across) in [
        (Some(shared()), None, a, &both),
        (None, Some(shared()), a, &both),
        (Some(shared()), Some(Scope::realm()), a, &both),
        (Some(shared()), Some(shared()), &all_shared, &both_shared),
        (Some(shared()), Some(resource()), a, &both),
        (Some(resource()), None, a, &both),
        (None, Some(resource()), a, &both),
        (Some(resource()), Some(Scope::realm()), a, &both),
        (Some(resource()), Some(shared()), a, &both),
        (Some(resource()), Some(resource()), &resources, &both),
        (Some(resource()), Some(closure()), a, &both),
        (Some(closure()), None, a, &both),
        (Some(closure()), Some(shared()), a, &both),
        (Some(closure()), Some(closure()), a, &both),
        // It names the resources of the path, and the destination is one.
        (Some(closure()), Some(resource()), &named, &both),
    ] {
        let case = format!("{from:?} to {to:?}");
        let mut rules = LockRules::new();
        let drafts = from.map(|scope| ("/{owner}/{realm}/drafts/{*rest}", scope));
        let site = to.map(|scope| ("/{owner}/{realm}/site/{*rest}", scope));
        for (pattern, scope) in drafts.into_iter().chain(site) {
            rules = rules.scope(method("MOVE"), pattern, scope).unwrap();
        }
        let layer = layer(realms()).rules(rules);
        let decide = async |to| moved(&layer, "/luke/a/drafts/x", &[to]).await;
        assert_eq!(decide("/luke/a/site/y").await, within, "{case}");
        assert_eq!(decide("/luke/b/site/y").await, *across, "{case}");
        // Of another spelling it is not certain which rule the handler's route has.
        assert_eq!(decide("/luke/a/%73ite/y").await, a, "{case}");
    }
}

#[tokio::test]
async fn a_destination_that_cannot_be_told_is_refused_by_name_and_with_the_remedy() {
    for (destinations, says) in [
        (&[][..], "it has no header `Destination`; send one"),
        (
            &["/luke/a/y", "/luke/a/z"],
            "`Destination` more than once, as `/luke/a/y` and as `/luke/a/z`",
        ),
        (&[""], "neither a URL nor an absolute path"),
        (&["y"], "`Destination: y` cannot be used"),
        (&["luke/a/y"], "neither a URL nor an absolute path"),
        (&["/luke/a/ü"], "`Destination: /luke/a/ü` has characters"),
        (&["/luke/a/y?z"], "white space, a query or a fragment"),
        (&["/luke/a/y#z"], "white space, a query or a fragment"),
        (&["/luke/a/y z"], "white space, a query or a fragment"),
        (&["//realms.test/luke/a/y"], "empty segment"),
        (&["/luke/a/../b/y"], "dot segment"),
        (&["/luke/a%2Fb/y"], "encoded slash"),
        (&["/luke"], "the path `/luke` names no realm"),
        (&["http://realms.test"], "the path `/` names no realm"),
        (
            &["https://e.example/luke/b/y"],
            "one of the realm `http://realms.test/luke/b/`",
        ),
        (
            &["https://realms.test/luke/b/y"],
            "one of the realm `http://realms.test/luke/b/`",
        ),
        (&["http://realms.test:8443/luke/b/y"], "one of the realm"),
        (&["http://u@realms.test/luke/b/y"], "user information"),
        (&["http://realms.test.evil/luke/b/y"], "one of the realm"),
        (&["http://realms.test./luke/b/y"], "ends with a dot"),
        (&["ftp://realms.test/luke/b/y"], "must be http or https"),
        (&["://realms.test/luke/b/y"], "must be http or https"),
        // Below it a closure names realms.
        (
            &["/luke/a/_tenant/x"],
            "`Destination: /luke/a/_tenant/x` cannot be used",
        ),
        (
            &["/luke/a/%5Ftenant/x"],
            "is ambiguous: in another spelling",
        ),
    ] {
        let tenant = RealmResolver::from_fn(async |_| LockKey::in_space("tenant", 1));
        let resolver = RealmBodyResolver::from(realms())
            .route(method("MOVE"), "/luke/a/_tenant/{*rest}", tenant)
            .unwrap();
        let decision = moved(&layer(resolver), "/luke/a/x", destinations).await;
        let refused = "refused: the destination of the request cannot be told: ";
        assert!(
            decision.starts_with(refused),
            "{destinations:?}: {decision}"
        );
        assert!(decision.contains(says), "{destinations:?}: {decision}");
    }
}

#[tokio::test]
async fn a_destination_is_below_the_path_of_the_base_url() {
    let paths = RealmPaths::new("http://realms.test/api", "/{owner}/{realm}").unwrap();
    let whole = layer(paths.clone());
    let stripped = layer(paths.base_path_stripped());
    let both = "http://realms.test/api/luke/a/ and http://realms.test/api/luke/b/";
    for destination in ["/api/luke/b/y", "http://realms.test/api/luke/b/y"] {
        let claim = moved(&whole, "/api/luke/a/x", &[destination]).await;
        assert_eq!(claim, both);
        let claim = moved(&stripped, "/luke/a/x", &[destination]).await;
        assert_eq!(claim, both);
    }
    for destination in ["/luke/b/y", "/apis/luke/b/y", "http://realms.test/luke/b/y"] {
        let decision = moved(&whole, "/api/luke/a/x", &[destination]).await;
        assert!(decision.contains("names no realm"), "{decision}");
        let decision = moved(&stripped, "/luke/a/x", &[destination]).await;
        let says = "is not below the base URL `http://realms.test/api/`";
        assert!(decision.contains(says), "{decision}");
    }
}

#[tokio::test]
async fn a_destination_is_at_the_origin_of_the_request_whatever_realms_are_called() {
    let paths = RealmPaths::new("https://{tenant}.r.example", "/{project}").unwrap();
    let paths = paths.named("https://realms.example/{tenant}/{project}");
    let layer = layer(paths.unwrap());
    let both = "https://realms.example/acme/a/ and https://realms.example/acme/b/";
    for destination in ["/b/y", "https://acme.r.example/b/y"] {
        let path = "https://acme.r.example/a/x";
        assert_eq!(moved(&layer, path, &[destination]).await, both);
    }
    for destination in [
        "https://other.r.example/b/y",
        "https://realms.example/acme/b/",
    ] {
        let decision = moved(&layer, "https://acme.r.example/a/x", &[destination]).await;
        assert!(decision.contains("cannot be used"), "{decision}");
    }
}

#[tokio::test]
async fn a_destination_is_looked_up_among_mounts_as_the_path_is() {
    let urls = [
        "http://realms.test/a/",
        "http://realms.test/a/b/",
        "https://other.test/c/",
    ];
    let mounts = RealmMounts::new(urls.map(|url| url.parse().unwrap())).unwrap();
    let layer = layer(mounts);
    for (destination, expected) in [
        ("/a/y", "http://realms.test/a/"),
        (
            "/a/b/y",
            "http://realms.test/a/ and http://realms.test/a/b/",
        ),
        ("/c/y", "http://realms.test/a/ and https://other.test/c/"),
        (
            "https://other.test/c/y",
            "http://realms.test/a/ and https://other.test/c/",
        ),
    ] {
        let claim = moved(&layer, "/a/x", &[destination]).await;
        assert_eq!(claim, expected);
    }
    for (destination, says) in [
        ("/d/y", "the path `/d/y` is in no mounted realm"),
        (
            "http://realms.test/c/y",
            "one of the realm `https://other.test/c/` here",
        ),
    ] {
        let decision = moved(&layer, "/a/x", &[destination]).await;
        assert!(decision.contains(says), "{decision}");
    }
}

#[tokio::test]
async fn a_destination_has_the_origin_of_the_request_where_that_counts() {
    let origin = RequestOrigin::new(TrustedProxies::default());
    let layer = layer(realms().origin_from_request(origin));
    let both = "http://h.example:8443/luke/a/ and http://h.example:8443/luke/b/";
    for (destination, expected) in [
        ("/luke/b/y", both),
        ("http://h.example:8443/luke/b/y", both),
        (
            "http://realms.test/luke/b/y",
            "refused: the destination of the request cannot be told",
        ),
    ] {
        let request = Request::builder().method("COPY").uri("/luke/a/x");
        let request = request.header("host", "h.example:8443");
        let request = request.header(DESTINATION, destination);
        let decision = decided(&layer, request.body(String::new()).unwrap()).await;
        assert!(decision.starts_with(expected), "{destination}: {decision}");
    }
}

#[tokio::test]
async fn a_move_is_not_narrowed_where_its_realm_is_not_found_in_the_path() {
    let name = HeaderName::from_static("x-realm");
    for (scope, narrowed) in [
        (Scope::resource(), "http://realms.test/ (x)"),
        (Scope::shared(), "http://realms.test/ (shared)"),
    ] {
        for (name_of_method, by_closure, expected) in [
            ("MOVE", false, "http://realms.test/"),
            ("MOVE", true, "http://realms.test/"),
            ("PUT", false, narrowed),
            ("PUT", true, narrowed),
        ] {
            let rules = LockRules::new();
            let rules = rules.scope(method(name_of_method), "/{*card}", scope.clone());
            let realms = if by_closure {
                RealmResolver::from_fn(async |_| RealmUrl::parse("http://realms.test"))
            } else {
                RealmResolver::from_header(name.clone(), RealmUrl::parse)
            };
            let layer = layer(realms).rules(rules.unwrap());
            // It need not even have a `Destination`.
            let request = Request::builder().method(name_of_method).uri("/x");
            let request = request.header(&name, "http://realms.test");
            let claim = decided(&layer, request.body(String::new()).unwrap()).await;
            assert_eq!(claim, expected, "{name_of_method} {by_closure} {scope:?}");
        }
    }
}

/// What is sent comes back.
async fn assert_echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    let read = timeout(PATIENCE, stream.read_exact(&mut back)).await;
    read.expect("an echo in time").unwrap();
    assert_eq!(&back, b"hello");
}

#[tokio::test]
async fn a_websocket_that_begins_as_a_get_passes_a_held_realm() {
    let database = database().await;
    let address = serve(&postgres_layer(database.url()).await).await;
    let _held = database.hold(key("/luke/a")).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "GET /luke/a/_events HTTP/1.1\r\nhost: realms.test\r\nconnection: upgrade\r\n\
                upgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let read = timeout(PATIENCE, stream.read_u8()).await;
        answer.push(read.expect("an answer in time").unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert_echoes(&mut stream).await;
}

#[tokio::test]
async fn a_websocket_over_http2_is_locked_unless_its_route_is_exempt() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| builder).await;
    let layer = layer.map_locks(|locks| locks.acquire_timeout(Duration::from_millis(50)));
    let exempt = LockRules::new()
        .exempt(Method::CONNECT, "/{owner}/{realm}/_events")
        .unwrap();
    let exempt = layer.clone().rules(exempt).unwrap();
    let _held = database.hold(key("/luke/a")).await;
    for (layer, path, passes) in [
        (&layer, "/luke/a/_events", false),
        (&exempt, "/luke/a/_other", false),
        (&exempt, "/luke/a/_events", true),
    ] {
        let mut client = http2(serve(layer).await).await;
        // Before its answer to this the server says that it extends CONNECT.
        let read = request(&Method::GET, path);
        assert_eq!(send(&mut client, read).await.0, 200);
        let mut connect = request(&Method::CONNECT, path);
        let protocol = Protocol::from_static("websocket");
        connect.extensions_mut().insert(protocol);
        let sent = timeout(PATIENCE, client.send_request(connect)).await;
        let response = sent.expect("an answer in time").unwrap();
        if passes {
            assert_eq!(response.status(), 200);
            let upgraded = hyper::upgrade::on(response).await.unwrap();
            assert_echoes(&mut TokioIo::new(upgraded)).await;
        } else {
            let (status, problem) = answer(response).await;
            assert_eq!(status, 503, "{path}");
            assert!(problem.contains("#lock-timeout"), "{problem}");
        }
    }
}

#[tokio::test]
async fn a_connect_to_a_host_has_no_path_and_is_refused_whatever_the_rules_say() {
    let rules = LockRules::new()
        .exempt(Method::CONNECT, "/{*rest}")
        .and_then(|rules| rules.exempt(Method::CONNECT, "/"))
        .unwrap();
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let address = serve(&layer.rules(rules).unwrap()).await;
    let head = b"CONNECT realms.test:443 HTTP/1.1\r\nhost: realms.test:443";
    let refused = timeout(PATIENCE, raw(address, head, "")).await;
    let (status, problem) = refused.expect("no tunnel");
    assert!(
        status == 400 && problem.contains("#realm-unresolved"),
        "{problem}"
    );
    let mut connect = Request::new(Empty::new());
    *connect.method_mut() = Method::CONNECT;
    *connect.uri_mut() = "realms.test:443".parse().unwrap();
    let (status, problem) = send(&mut http2(address).await, connect).await;
    assert!(
        status == 400 && problem.contains("#realm-unresolved"),
        "{problem}"
    );
}
