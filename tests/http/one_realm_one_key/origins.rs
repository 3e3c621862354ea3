//! Spellings of a host, and of what proxies say of it, where a request's own origin counts.

use tower_realm_lock::{RealmPaths, RequestOrigin, TrustedProxies};

use super::{PROXY, STRANGER, outcome, serve};

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
