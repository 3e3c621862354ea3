//! However a client spells a request, it is refused, or it locks what its handler writes: seen by a real server, over bytes that no HTTP
//! library has tidied up.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::routing::{get, patch, post};
use axum::{Extension, Json, Router};
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use support::gate::realms;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_realm_lock::{
    Claim, HeldLock, LockRules, PeerAddr, RealmLocks, RealmPaths, RealmPointers, RealmResolver,
    RealmUrl, RealmWriteLockLayer, RequestOrigin, Scope, TrustedProxies,
};

/// How often a handler was reached.
type Calls = Arc<AtomicUsize>;

/// What a handler writes, and what is locked meanwhile.
fn told(calls: &Calls, held: Option<&HeldLock>, writes: &Value) -> Json<Value> {
    calls.fetch_add(1, Ordering::SeqCst);
    let locked = held.map(|held| held.claim().to_string());
    Json(json!({"writes": writes, "locked": locked}))
}

type Held = Option<Extension<HeldLock>>;

async fn card(
    State(calls): State<Calls>,
    Path((owner, realm, card)): Path<(String, String, String)>,
    held: Held,
) -> Json<Value> {
    told(&calls, held.as_deref(), &json!([owner, realm, card]))
}

async fn realm(
    State(calls): State<Calls>,
    Path((owner, realm)): Path<(String, String)>,
    held: Held,
) -> Json<Value> {
    told(&calls, held.as_deref(), &json!([owner, realm]))
}

/// Writes the realm that its body names.
async fn publish(State(calls): State<Calls>, held: Held, body: String) -> Json<Value> {
    let body: Value = serde_json::from_str(&body).expect("JSON");
    told(&calls, held.as_deref(), &body["realm"])
}

/// A server whose cards are locked by themselves, with a route in each realm that names another one in its body.
async fn serve(paths: RealmPaths, peer: &str) -> (SocketAddr, Calls) {
    let named = RealmPointers::new(["/realm"]).unwrap();
    let resolver = RealmResolver::from(paths)
        .route(Method::POST, "/{owner}/{realm}/_publish", named)
        .unwrap();
    let rules = LockRules::new()
        .lock(Method::GET, "/{owner}/{realm}/_reindex")
        .and_then(|rules| rules.scope(Method::PATCH, "/{owner}/{realm}/{*card}", Scope::resource()))
        .unwrap();
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), resolver)
        .rules(rules)
        .read_bodies(4096, Body::new);
    let calls = Calls::default();
    let app = Router::new()
        .route("/{owner}/{realm}", post(realm))
        .route("/{owner}/{realm}/", post(realm))
        .route("/{owner}/{realm}/_publish", post(publish))
        .route("/{owner}/{realm}/_reindex", get(realm))
        .route("/{owner}/{realm}/{*card}", patch(card).post(card))
        .layer(layer)
        .layer(Extension(PeerAddr(peer.parse().unwrap())))
        .with_state(Arc::clone(&calls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, calls)
}

const STRANGER: &str = "192.0.2.1:80";
const PROXY: &str = "10.0.0.1:80";

/// What a server answers to these bytes: its status, and the body.
async fn raw(server: SocketAddr, head: &[u8], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let length = body.len();
    let rest = format!("\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    let request = [head, rest.as_bytes()].concat();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// What a handler was called for and what was locked; none if the request was refused, and no handler was called.
async fn outcome(
    (server, calls): &(SocketAddr, Calls),
    head: &[u8],
    body: &str,
) -> Option<(Value, String)> {
    let before = calls.load(Ordering::SeqCst);
    let (status, answer) = raw(*server, head, body).await;
    let called = calls.load(Ordering::SeqCst) - before;
    let shown = head.escape_ascii();
    if status != 200 {
        assert_eq!((status, called), (400, 0), "{shown}: {answer}");
        return None;
    }
    assert_eq!(called, 1, "{shown}");
    let told: Value = serde_json::from_str(&answer).unwrap();
    let locked = told["locked"].as_str();
    let locked = locked.unwrap_or_else(|| panic!("{shown} reached its handler unlocked"));
    Some((told["writes"].clone(), locked.to_owned()))
}

/// What must be locked for a handler to write this.
fn needed(origin: &str, writes: &Value) -> [String; 2] {
    let encoded =
        |text: &Value| utf8_percent_encode(text.as_str().unwrap(), NON_ALPHANUMERIC).to_string();
    let url = format!("{origin}/{}/{}/", encoded(&writes[0]), encoded(&writes[1]));
    let realm = RealmUrl::parse(&url).expect("a handler is reached for a realm");
    let whole = Claim::realm(&realm);
    let part = writes[2].as_str().map(|card| {
        let segments = card.trim_matches('/').split('/');
        let below: Vec<String> = segments
            .map(|segment| utf8_percent_encode(segment, NON_ALPHANUMERIC).to_string())
            .collect();
        let resource = RealmUrl::parse(&format!("{realm}{}/", below.join("/"))).unwrap();
        let name = resource.as_str().strip_prefix(realm.as_str()).unwrap();
        Claim::resources(&realm, [name.trim_end_matches('/')])
    });
    [whole.clone(), part.unwrap_or(whole)].map(|claim| claim.to_string())
}

/// Sends each target; whoever is let in must be let in for these two segments, and lock what its handler writes.
async fn check_targets(targets: &[(&[u8], Option<[&str; 2]>)]) {
    let server = serve(realms(), STRANGER).await;
    for (target, expected) in targets {
        let head = [b"PATCH ", *target, b" HTTP/1.1\r\nhost: anything"].concat();
        let outcome = outcome(&server, &head, "").await;
        let target = target.escape_ascii();
        let writes = outcome.as_ref().map(|(writes, locked)| {
            let needed = needed("http://realms.test", writes);
            assert!(needed.contains(locked), "{target}: {writes} under {locked}");
            [&writes[0], &writes[1]].map(|segment| segment.as_str().unwrap())
        });
        assert_eq!(writes, *expected, "{target}");
    }
}

const LUKE: Option<[&str; 2]> = Some(["luke", "a"]);

#[tokio::test]
async fn spellings_of_a_path_have_the_key_of_what_is_written() {
    check_targets(&[
        (b"/luke/a/x", LUKE),
        (b"/luke/a/x/", LUKE),
        (b"/luke/a/x/y%2fz", LUKE),
        (b"/%6c%75ke/%61/x", LUKE),
        (b"/%6C%75ke/%61/%78", LUKE),
        (b"/luke/a/x?/../../b", LUKE),
        (b"/luke/a/x?%2e%2e/b", LUKE),
        // Realms of their own, for the handler as well.
        (b"/Luke/a/x", Some(["Luke", "a"])),
        (b"/luke/a%20/x", Some(["luke", "a "])),
        (b"/luke/a+/x", Some(["luke", "a+"])),
        (b"/luke/\xc3\xbc/x", Some(["luke", "ü"])),
        (b"/luke/%C3%bc/x", Some(["luke", "ü"])),
        (b"/luke/u%CC%88/x", Some(["luke", "u\u{308}"])),
        (b"/luke/%EF%BC%8E/x", Some(["luke", "\u{ff0e}"])),
        (b"/luke/.../x", Some(["luke", "..."])),
        // Matrix parameters.
        (b"/luke;v=1/a/x", Some(["luke;v=1", "a"])),
        (b"/luke/a;v=1/x", Some(["luke", "a;v=1"])),
        (b"/luke/a%3bv=1/x", Some(["luke", "a;v=1"])),
        // Encoded twice.
        (b"/luke/%252f/x", Some(["luke", "%2f"])),
        (b"/luke/%25%32%66/x", Some(["luke", "%2f"])),
        (b"/luke/%252e%252e/x", Some(["luke", "%2e%2e"])),
    ])
    .await;
}

#[tokio::test]
async fn what_another_reader_takes_for_another_path_is_refused() {
    let refused: [&[u8]; 42] = [
        // Dots.
        b"/luke/./a/x",
        b"/luke/../a/x",
        b"/luke/%2e/a/x",
        b"/luke/%2E%2e/x",
        b"/luke/.%2e/x",
        b"/luke/a/x/../../b",
        b"/luke/a/..%2f..%2fb",
        b"/luke/a/..%5c..%5cb",
        b"/luke/a/..;/b/x/..",
        b"/luke/a/..\\..\\b",
        // Separators.
        b"//luke/a/x",
        b"/luke//a/x",
        b"/luke/a//x",
        b"/luke/a/x//",
        b"///x",
        b"/luke%2fa/b/x",
        b"/luke%2Fa/b/x",
        b"/luke/a%5cb/x",
        b"/luke\\a/b/x",
        b"\\luke\\a\\x",
        // Bytes that are no text.
        b"/luke/%FF/x",
        b"/luke/%C0%AF/x",
        b"/luke/%c0%ae%c0%ae/x",
        b"/luke/%E0%80%AF/x",
        b"/luke/%F0%80%80%AF/x",
        b"/luke/%ED%A0%80/x",
        b"/luke/\xff/x",
        b"/luke/\xc0\xaf/x",
        // Control characters.
        b"/luke/a%00/x",
        b"/luke/a%09/x",
        b"/luke/a%0d%0ax-y:z/x",
        b"/luke/a%7f/x",
        b"/luke/a%C2%85/x",
        b"/luke/a\t/x",
        b"/luke/a\0/x",
        b"/luke/a\x0b/x",
        // Escapes that are none.
        b"/luke/%/x",
        b"/luke/%6/x",
        b"/luke/%g1/x",
        b"/luke/%u002f/x",
        b"luke/a/x",
        b"*",
    ];
    check_targets(&refused.map(|target| (target, None))).await;
}

#[tokio::test]
async fn an_absolute_target_has_the_key_of_its_path() {
    check_targets(&[
        (b"http://realms.test/luke/a/x", LUKE),
        (b"http://evil.test/luke/a/x", LUKE),
        (b"HTTPS://evil.test:8443/luke/a/x", LUKE),
        (b"http://user:secret@evil.test/luke/a/x", LUKE),
        (b"ftp://evil.test/luke/a/x", LUKE),
        (b"http://evil.test/%6cuke/a/x?y", LUKE),
        (b"http://evil.test//luke/a/x", None),
        (b"http://evil.test/luke/../a/x", None),
        (b"http://evil.test", None),
        (b"http://evil.test?/luke/a/x", None),
        (b"http:/luke/a/x", None),
        (b"//evil.test/luke/a/x", None),
        (b"evil.test:80", None),
    ])
    .await;
}

#[tokio::test]
async fn a_route_that_names_its_realm_elsewhere_is_no_way_to_lock_another_one() {
    let server = serve(realms(), STRANGER).await;
    let body = r#"{"realm":"http://realms.test/luke/b/"}"#;
    let send = async |method: &str, target: &str| {
        let head = format!("{method} {target} HTTP/1.1\r\nhost: h");
        outcome(&server, head.as_bytes(), body).await
    };
    let (writes, locked) = send("POST", "/luke/a/_publish").await.unwrap();
    assert_eq!(writes, "http://realms.test/luke/b/");
    assert_eq!(locked, "http://realms.test/luke/b/");
    // To the router these are cards, or realms, and not that route.
    for target in [
        "/luke/a/%5Fpublish",
        "/luke/a/_publish/",
        "/luke/a/%5fpublish/",
        "/luke/a/_publish//",
        "/luke/a/x/..%2f_publish",
        "/luke/a/.%2f_publish",
        "/luke/a%2f_publish",
        "/luke%2fa/_publish",
        "/luke/a%5c_publish",
        "/luke//_publish",
        "///_publish",
    ] {
        assert_eq!(send("POST", target).await, None, "{target}");
    }
    for target in [
        "/luke/a/_Publish",
        "/luke/a/_publish;v=1",
        "/luke/a/%255Fpublish",
        "/luke/a/_publish/x",
    ] {
        let (writes, locked) = send("POST", target).await.unwrap();
        let [whole, _] = needed("http://realms.test", &writes);
        assert_eq!(locked, whole, "{target}");
    }
    // A read that is to be locked is locked wherever the router takes a path for it.
    assert!(send("GET", "/luke/a/_reindex").await.is_some());
    for target in ["/luke//_reindex", "///_reindex", "//a/_reindex"] {
        assert_eq!(send("GET", target).await, None, "{target}");
    }
}

#[tokio::test]
async fn spellings_of_a_url_in_a_body_have_one_key_or_are_refused() {
    let server = serve(realms(), STRANGER).await;
    let a = Some("https://a.example/luke/a/");
    let idn = Some("https://xn--bcher-kva.example/luke/a/");
    for (url, expected) in [
        ("https://a.example/luke/a", a),
        ("HTTPS://A.Example:443/l%75ke/%61/", a),
        ("https://a.example:0443/luke/a", a),
        ("https://a.example:/luke/a", a),
        ("https://%61%2eexample/luke/a", a),
        ("https://a\u{ff0e}example/luke/a", a),
        ("https://a\u{3002}example/luke/a", a),
        ("https://\u{ff41}.\u{ff45}xample/luke/a", a),
        ("https://a\u{ad}.example/luke/a", a),
        ("https://b\u{fc}cher.example/luke/a", idn),
        ("https://bu\u{308}cher.example/luke/a", idn),
        ("https://B\u{dc}CHER.example/luke/a", idn),
        ("https://b%C3%BCcher.example/luke/a", idn),
        ("https://XN--BCHER-KVA.example/luke/a", idn),
        ("https://a.example./luke/a", None),
        ("https://a.example\u{ff0e}/luke/a", None),
        ("https://a.example%2e/luke/a", None),
        ("https://xn--.example/luke/a", None),
        ("https://u@a.example/luke/a", None),
        ("https://a.example\\luke/a", None),
        ("https:\\\\a.example/luke/a", None),
        ("https:/a.example/luke/a", None),
        ("https:a.example/luke/a", None),
        ("https:///a.example/luke/a", None),
        ("//a.example/luke/a", None),
        ("\thttps://a.example/luke/a", None),
        ("https://a.example/luke/a\n", None),
        ("ht\ttps://a.example/luke/a", None),
        ("https://a.exa\tmple/luke/a", None),
        ("https://a.example/luke/b/../a", None),
        ("https://a.example/luke/b/%2e%2e/a", None),
        ("https://a.example//luke/a", None),
        ("https://a.example/luke%2fa", None),
        ("https://a.example/luke/a?x", None),
        ("https://a.example/luke/a#x", None),
    ] {
        let body = json!({ "realm": url }).to_string();
        let head = b"POST /luke/a/_publish HTTP/1.1\r\nhost: h";
        let locked = outcome(&server, head, &body)
            .await
            .map(|(_, locked)| locked);
        assert_eq!(locked.as_deref(), expected, "{url:?}");
    }
}

/// Sends requests whose own origin counts; each is refused, or locks the realm at this origin.
async fn check_origins(peer: &str, heads: &[(&str, &[u8], Option<&str>)]) {
    let proxies = TrustedProxies::new(["10.0.0.0/8"]).unwrap();
    let paths = RealmPaths::new("https://base.example", "/{owner}/{realm}").unwrap();
    let server = serve(paths.origin_from_request(RequestOrigin::new(proxies)), peer).await;
    for (target, headers, expected) in heads {
        let head = [b"POST ", target.as_bytes(), b" HTTP/1.1\r\n", headers].concat();
        let outcome = outcome(&server, &head, "").await;
        let locked = outcome.map(|(_, locked)| locked);
        let expected = expected.map(|origin| format!("{origin}/luke/a/"));
        assert_eq!(locked, expected, "{}", head.escape_ascii());
    }
}

const PLAIN: &str = "/luke/a/x";
const A: Option<&str> = Some("https://a.example");

#[tokio::test]
async fn spellings_of_a_host_have_one_key_or_are_refused() {
    let hosts: &[(&[u8], Option<&str>)] = &[
        (b"a.example", A),
        (b"A.EXAMPLE", A),
        (b"\ta.example \t", A),
        // Ports.
        (b"a.example:443", A),
        (b"a.example:0443", A),
        (b"a.example:", A),
        (b"a.example:80", Some("https://a.example:80")),
        (b"a.example:080", Some("https://a.example:80")),
        (b"a.example:65536", None),
        (b"a.example:+443", None),
        (b"a.example:443:443", None),
        // What would have to be decoded first, or is not ASCII.
        (b"a%2Eexample", None),
        (b"%61.example", None),
        (b"a%EF%BC%8Eexample", None),
        (b"b%C3%BCcher.example", None),
        (b"b\xc3\xbccher.example", None),
        (b"b\xfccher.example", None),
        (b"a\xef\xbc\x8eexample", None),
        (b"a.example%00", None),
        (b"a%2fexample", None),
        // Punycode.
        (
            b"xn--bcher-kva.example",
            Some("https://xn--bcher-kva.example"),
        ),
        (
            b"XN--BCHER-KVA.Example",
            Some("https://xn--bcher-kva.example"),
        ),
        // It decodes to nothing, or to what is not written so.
        (b"xn--.example", None),
        (b"xn--a-.example", None),
        (b"xn--bcher-KVA-.example", None),
        // Dots at the end.
        (b"a.example.", None),
        (b"a.example.:443", None),
        (b"a.example..", None),
        // Addresses.
        (b"127.0.0.1", Some("https://127.0.0.1")),
        (b"127.1", Some("https://127.0.0.1")),
        (b"0x7f.0.0.1", Some("https://127.0.0.1")),
        (b"2130706433", Some("https://127.0.0.1")),
        (b"[::1]", Some("https://[::1]")),
        (b"[0:0::0:1]:443", Some("https://[::1]")),
        (b"::1", None),
        // More than a host.
        (b"", None),
        (b"user@a.example", None),
        (b"a.example/x", None),
        (b"a.example\\x", None),
        (b"a.example?x", None),
        (b"a.example#x", None),
        (b"a.example, a.example", None),
        (b"a .example", None),
        (b"a\t.example", None),
    ];
    let heads: Vec<(Vec<u8>, Option<&str>)> = hosts
        .iter()
        .map(|(host, expected)| ([b"host: ", *host].concat(), *expected))
        .collect();
    let heads: Vec<(&str, &[u8], Option<&str>)> = heads
        .iter()
        .map(|(head, expected)| (PLAIN, &**head, *expected))
        .collect();
    check_origins(STRANGER, &heads).await;
}

#[tokio::test]
async fn two_hosts_in_one_request_are_refused() {
    check_origins(
        STRANGER,
        &[
            (PLAIN, b"host: a.example\r\nhost: b.example", None),
            (PLAIN, b"host: a.example\r\nHOST: a.example", None),
            (PLAIN, b"host: a.example\r\nhost:", None),
            (PLAIN, b"host: a.example\r\n b.example", None),
            (PLAIN, b"host : a.example", None),
            (PLAIN, b"x: y", None),
            ("http://a.example/luke/a/x", b"host: a.example", A),
            ("http://A.Example/luke/a/x", b"host: a.eXAMPLE", A),
            ("https://a.example/luke/a/x", b"host: a.example", A),
            ("http://a.example/luke/a/x", b"x: y", A),
            ("http://a.example/luke/a/x", b"host: b.example", None),
            ("http://a.example/luke/a/x", b"host:", None),
            ("http://a.example:80/luke/a/x", b"host: a.example", None),
            ("http://a%2eexample/luke/a/x", b"host: a.example", None),
            ("http://user@a.example/luke/a/x", b"host: a.example", None),
            ("http://a.example./luke/a/x", b"host: a.example.", None),
            ("http://a.example", b"host: a.example", None),
            (
                "http://a.example/luke/a/x",
                b"host: a.example\r\nhost: b.example",
                None,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_proxys_word_has_one_reading_or_is_refused() {
    let own = "for=192.0.2.9;host=a.example";
    let from_proxy: &[(&str, Option<&str>)] = &[
        (&format!("forwarded: {own}"), A),
        ("Forwarded: FOR=192.0.2.9;HOST=A.Example;PROTO=HTTPS", A),
        ("forwarded: host=\"a\\.exam\\ple\"", A),
        ("forwarded: host=\"a.example:443\" ;proto=\"https\"", A),
        (&format!("forwarded: host=evil.test, {own}"), A),
        (&format!("forwarded: host=evil.test\r\nforwarded: {own}"), A),
        (&format!("forwarded: for=\"x, host=evil.test\", {own}"), A),
        // A quote that would swallow what the proxy says.
        (&format!("forwarded: x\"=y\r\nforwarded: {own}"), None),
        (&format!("forwarded: for=\"x, {own}"), None),
        (&format!("forwarded: for=\"x\r\nforwarded: {own}"), None),
        (&format!("forwarded: for=\"x\\\", {own}"), None),
        (
            "forwarded: host=\"x\r\nforwarded: for=\"[::1]:9\";host=a.example",
            None,
        ),
        ("forwarded: host=\"a.example\\\"", None),
        ("forwarded: host=a.example;host=a.example", None),
        ("forwarded: host = a.example", None),
        ("forwarded: host=\"a.example\";proto=\"ht\ttp\"", None),
        ("x-forwarded-host: evil.test, a.example", A),
        (
            "x-forwarded-host: evil.test\r\nX-FORWARDED-HOST: a.example",
            A,
        ),
        ("x-forwarded-host: evil.test,\ta.example", A),
        ("x-forwarded-host: a.example,", None),
        ("x-forwarded-host: a.example\r\nx-forwarded-host:", None),
        ("x-forwarded-host: \"a.example\"", None),
        (
            "x-forwarded-host: a.example\r\nx-forwarded-proto: http, https",
            A,
        ),
        (
            "x-forwarded-host: a.example\r\nx-forwarded-proto: https://x",
            None,
        ),
        (
            "x-forwarded-host: a.example\r\nx-forwarded-prefix: /x/..",
            None,
        ),
        (
            "x-forwarded-host: a.example\r\nx-forwarded-prefix: //evil.test",
            None,
        ),
    ];
    let heads: Vec<(String, Option<&str>)> = from_proxy
        .iter()
        .map(|(headers, expected)| (format!("host: inner.test\r\n{headers}"), *expected))
        .collect();
    let by_proxy: Vec<(&str, &[u8], Option<&str>)> = heads
        .iter()
        .map(|(head, expected)| (PLAIN, head.as_bytes(), *expected))
        .collect();
    check_origins(PROXY, &by_proxy).await;
    // From anybody else none of them counts.
    let inner = Some("https://inner.test");
    let by_stranger: Vec<(&str, &[u8], Option<&str>)> = heads
        .iter()
        .filter(|(head, _)| !head.contains("ht\ttp"))
        .map(|(head, _)| (PLAIN, head.as_bytes(), inner))
        .collect();
    check_origins(STRANGER, &by_stranger).await;
}
