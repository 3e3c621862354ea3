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
use tower_realm_lock::{HeldLock, LockRules, RealmLocks, RealmWriteLockLayer, Scope};

use crate::support::database::database;
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
