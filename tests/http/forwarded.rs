//! Where a request's own origin counts, it is the one that its client used: over HTTP/1.1 and HTTP/2, and through proxies that are
//! trusted, and those only.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, Service, service_fn};
use tower_realm_lock::{
    HeldLock, PeerAddr, RealmLocks, RealmPaths, RealmWriteLockLayer, RequestOrigin, TrustedProxies,
};

use crate::support::gate::realms;
use crate::support::raw::raw;

/// Realms at the origin that a request is for; one proxy in front, at this address.
fn by_request(proxy: &str) -> RealmPaths {
    let proxies = TrustedProxies::new([proxy]).unwrap();
    let origin = RequestOrigin::new(proxies);
    let realms = RealmPaths::new("https://base.example", "/{owner}/{realm}").unwrap();
    realms.origin_from_request(origin)
}

async fn told<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let held: Option<&HeldLock> = request.extensions().get();
    let realm = held.map_or("none".into(), |held| held.claim().to_string());
    Ok(Response::new(realm.into()))
}

/// A bare hyper server for HTTP/1.1 and HTTP/2 that says who its peers are.
async fn serve(realms: RealmPaths) -> SocketAddr {
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms);
    let service = layer.layer(service_fn(told::<Incoming>));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let mut service = service.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                service.call(request)
            });
            let service = TowerToHyperService::new(service);
            tokio::spawn(async move {
                let connection = Builder::new(TokioExecutor::new());
                let stream = TokioIo::new(stream);
                connection.serve_connection(stream, service).await
            });
        }
    });
    address
}

async fn http2(address: SocketAddr, uri: &str, host: Option<&str>) -> (u16, String) {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
    let (mut client, connection) = connected.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::patch(uri).version(Version::HTTP_2);
    if let Some(host) = host {
        request = request.header("host", host);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = client.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    drop(client);
    connection.await.unwrap().unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn absolute_form_and_authority_change_nothing_unless_asked_for() {
    let address = serve(realms()).await;
    for head in [
        "PATCH /luke/a/x HTTP/1.1\r\nhost: evil",
        "PATCH http://evil/luke/a/x HTTP/1.1\r\nhost: evil",
        "PATCH http://evil/luke/a/x HTTP/1.1\r\nhost: other\r\nx-forwarded-host: evil",
    ] {
        let realm = "http://realms.test/luke/a/".to_owned();
        assert_eq!(
            raw(address, head.as_bytes(), "").await,
            (200, realm),
            "{head}"
        );
    }
    let answer = http2(address, "http://evil/luke/a/x", None).await;
    assert_eq!(answer, (200, "http://realms.test/luke/a/".to_owned()));
}

#[tokio::test]
async fn every_way_to_say_the_host_names_one_realm() {
    let address = serve(by_request("192.0.2.1")).await;
    let realm = || (200, "https://a.example/luke/a/".to_owned());
    for head in [
        "PATCH /luke/a/x HTTP/1.1\r\nhost: a.example",
        "PATCH /luke/a/x HTTP/1.1\r\nhost: A.Example:443",
        "PATCH http://a.example/luke/a/x HTTP/1.1\r\nhost: a.example",
        // The peer is no proxy of ours.
        "PATCH /luke/a/x HTTP/1.1\r\nhost: a.example\r\nforwarded: host=evil",
        "PATCH /luke/a/x HTTP/1.1\r\nhost: a.example\r\nx-forwarded-host: evil",
        "PATCH /luke/a/x HTTP/1.1\r\nhost: a.example\r\nx-forwarded-proto: http",
        "PATCH /luke/a/x HTTP/1.1\r\nhost: a.example\r\nx-forwarded-prefix: /evil",
    ] {
        assert_eq!(raw(address, head.as_bytes(), "").await, realm(), "{head}");
    }
    assert_eq!(
        http2(address, "http://a.example/luke/a/x", None).await,
        realm()
    );
    let both = http2(address, "https://a.example/luke/a/x", Some("a.example")).await;
    assert_eq!(both, realm());
}

#[tokio::test]
async fn two_hosts_are_refused() {
    let address = serve(by_request("192.0.2.1")).await;
    for head in [
        "PATCH /luke/a/x HTTP/1.1\r\nhost: a\r\nhost: b",
        "PATCH http://a/luke/a/x HTTP/1.1\r\nhost: b",
        "PATCH /luke/a/x HTTP/1.1\r\nx: y",
    ] {
        let (status, problem) = raw(address, head.as_bytes(), "").await;
        assert_eq!(status, 400, "{head}");
        assert!(
            problem.is_empty() || problem.contains("#realm-unresolved"),
            "{problem}"
        );
    }
    let (status, _) = http2(address, "http://a/luke/a/x", Some("b")).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn a_trusted_proxy_says_what_its_client_used() {
    let address = serve(by_request("127.0.0.0/8")).await;
    for (headers, realm) in [
        (
            "forwarded: for=192.0.2.9;host=out.example",
            "https://out.example/luke/a/",
        ),
        (
            "forwarded: host=evil, for=192.0.2.9;host=\"out.example:8080\";proto=http",
            "http://out.example:8080/luke/a/",
        ),
        (
            "x-forwarded-host: evil, out.example\r\nx-forwarded-proto: http\r\nx-forwarded-prefix: /api",
            "http://out.example/api/luke/a/",
        ),
        ("x: y", "https://inner/luke/a/"),
    ] {
        let head = format!("PATCH /luke/a/x HTTP/1.1\r\nhost: inner\r\n{headers}");
        assert_eq!(
            raw(address, head.as_bytes(), "").await,
            (200, realm.to_owned()),
            "{headers}"
        );
    }
    for headers in [
        "forwarded: host=a\r\nx-forwarded-host: b",
        "forwarded: host=\"a",
        "x-forwarded-host: a/b",
    ] {
        let head = format!("PATCH /luke/a/x HTTP/1.1\r\nhost: inner\r\n{headers}");
        let (status, problem) = raw(address, head.as_bytes(), "").await;
        assert_eq!(status, 400, "{headers}");
        assert!(problem.contains("#realm-unresolved"), "{problem}");
    }
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn axums_word_on_the_peer_counts() {
    use axum::body::Body;
    use axum::extract::ConnectInfo;
    use tower::ServiceExt;

    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), by_request("10.0.0.0/8"));
    let app = axum::Router::new()
        .fallback_service(service_fn(told::<Body>))
        .layer(layer);
    for (peer, realm) in [
        ("10.0.0.1:1", "https://outer/luke/a/"),
        ("192.0.2.1:1", "https://inner/luke/a/"),
    ] {
        let mut request = Request::patch("/luke/a/x")
            .header("host", "inner")
            .header("x-forwarded-host", "outer")
            .body(Body::empty())
            .unwrap();
        let peer: SocketAddr = peer.parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = app.clone().oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, realm);
    }
}

/// The socket of an axum server. `how` is the way in which it learns who its peers are, if it does.
#[cfg(all(feature = "axum", unix))]
fn serve_unix(dir: &std::path::Path, proxies: &[&str], how: &str) -> std::path::PathBuf {
    use axum::body::Body;
    use tower_realm_lock::UnixPeer;

    let socket = dir.join(format!("{}-{how}", proxies.join("-").replace('/', "-")));
    let origin = RequestOrigin::new(TrustedProxies::new(proxies).unwrap());
    let realms = RealmPaths::new("https://base.example", "/{owner}/{realm}").unwrap();
    let realms = realms.origin_from_request(origin);
    let app = axum::Router::new()
        .fallback_service(service_fn(told::<Body>))
        .layer(RealmWriteLockLayer::new(RealmLocks::in_process(), realms));
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    match how {
        "told" => {
            let app = app.into_make_service_with_connect_info::<UnixPeer>();
            tokio::spawn(axum::serve(listener, app).into_future());
        }
        "extension" => {
            let app = app.layer(axum::Extension(UnixPeer));
            tokio::spawn(axum::serve(listener, app).into_future());
        }
        _ => drop(tokio::spawn(axum::serve(listener, app).into_future())),
    }
    socket
}

#[cfg(all(feature = "axum", unix))]
#[tokio::test]
async fn a_proxy_on_a_unix_socket_is_trusted_by_name() {
    use crate::support::raw::raw_on;
    use tokio::net::UnixStream;

    let dir = tempfile::tempdir().unwrap();
    let head = "PATCH /luke/a/x HTTP/1.1\r\nhost: inner\r\n";
    let forwarded = "forwarded: host=evil, for=192.0.2.9;host=outer;proto=http";
    let x_forwarded = "x-forwarded-host: outer\r\nx-forwarded-proto: http";
    for (proxies, how, realm) in [
        (&["unix"][..], "told", "http://outer/luke/a/"),
        (&["unix"], "extension", "http://outer/luke/a/"),
        (&["10.0.0.0/8", "unix"], "told", "http://outer/luke/a/"),
        (&["unix"], "untold", "https://inner/luke/a/"),
        (&["0.0.0.0/0", "::/0"], "told", "https://inner/luke/a/"),
        (&[], "told", "https://inner/luke/a/"),
    ] {
        let socket = serve_unix(dir.path(), proxies, how);
        for headers in [forwarded, x_forwarded] {
            let stream = UnixStream::connect(&socket).await.unwrap();
            let head = format!("{head}{headers}");
            let answer = raw_on(stream, head.as_bytes(), "").await;
            assert_eq!(
                answer,
                (200, realm.to_owned()),
                "{proxies:?} {how}: {headers}"
            );
        }
    }
}

#[tokio::test]
async fn a_peer_of_a_network_does_not_count_as_one_on_a_unix_socket() {
    let address = serve(by_request("unix")).await;
    let head = "PATCH /luke/a/x HTTP/1.1\r\nhost: inner\r\nx-forwarded-host: evil";
    let realm = "https://inner/luke/a/".to_owned();
    assert_eq!(raw(address, head.as_bytes(), "").await, (200, realm));
}

#[cfg(feature = "serde")]
#[test]
fn trusted_proxies_are_read_from_a_configuration_file() {
    #[derive(Debug, serde::Deserialize)]
    struct Config {
        trusted_proxies: TrustedProxies,
    }
    let read = |text: &str| toml::from_str::<Config>(text);
    let config = read(r#"trusted_proxies = ["unix", "10.0.0.0/8"]"#).unwrap();
    let named = TrustedProxies::new(["unix", "10.0.0.0/8"]).unwrap();
    assert_eq!(
        format!("{:?}", config.trusted_proxies),
        format!("{named:?}")
    );
    let refused = read(r#"trusted_proxies = ["unix:/run/proxy.sock"]"#).unwrap_err();
    assert!(
        refused.message().contains("10.0.0.0/8"),
        "{}",
        refused.message()
    );
}
