//! Spellings of a path, and of a route that finds its realm elsewhere.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tower_realm_lock::{Claim, RealmUrl};

use super::{STRANGER, outcome, serve};
use crate::support::gate::realms;

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
