use std::net::SocketAddr;

use http::header::{HeaderName, HeaderValue};
use tower_realm_lock::{PeerAddr, RealmBodyLockLayer, RequestOrigin, TrustedProxies};
use url::Url;

use super::answer::{claim, layer, post, realms};

const PROXY: &str = "10.0.0.1:80";
const STRANGER: &str = "192.0.2.1:80";

/// What a client can write into the headers that proxies write.
const HEADERS: [&str; 4] = [
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-prefix",
];

fn origin() -> RequestOrigin {
    RequestOrigin::new(TrustedProxies::new(["10.0.0.0/8"]).expect("a network"))
}

fn by_origin(origin: RequestOrigin) -> RealmBodyLockLayer {
    layer(realms().origin_from_request(origin))
}

/// The realm of a request with these headers, from a peer; none if it is refused, or if no server takes such headers.
fn realm(
    layer: &RealmBodyLockLayer,
    peer: &str,
    headers: &[(&'static str, &str)],
) -> Option<String> {
    let mut request = post("/luke/a/x").expect("a target");
    for (name, value) in headers {
        let value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
        let name = HeaderName::from_static(name);
        request.headers_mut().append(name, value);
    }
    let peer: SocketAddr = peer.parse().expect("an address");
    request.extensions_mut().insert(PeerAddr(peer));
    Some(claim(layer, request)?.realms()[0].to_string())
}

/// A host is refused, or read as a browser reads it.
pub fn a_host_is_that_of_a_url(host: &str) -> bool {
    let layer = by_origin(origin());
    let Some(realm) = realm(&layer, STRANGER, &[("host", host)]) else {
        return false;
    };
    let url = Url::parse(&format!("https://{host}/luke/a/")).expect("a URL");
    assert_eq!(realm, url.as_str());
    assert!(!url.host_str().expect("a host").ends_with('.'));
    // A second `Host`, even of the same value, or another one in the target leaves nothing certain.
    for second in [host, "realms.test"] {
        let twice = [("host", host), ("host", second)];
        assert_eq!(self::realm(&layer, STRANGER, &twice), None);
    }
    true
}

/// What a client writes into a proxy's headers counts for nothing, if no proxy of ours has passed them on.
pub fn a_stranger_says_nothing(headers: &[(u8, String)]) -> bool {
    let layer = by_origin(origin());
    let mut all = vec![("host", "realms.test")];
    for (header, value) in headers {
        if HeaderValue::from_bytes(value.as_bytes()).is_err() {
            return false;
        }
        all.push((HEADERS[usize::from(*header) % HEADERS.len()], value));
    }
    let said = realm(&layer, STRANGER, &all);
    assert_eq!(said.as_deref(), Some("https://realms.test/luke/a/"));
    // Nor can a request that a proxy passes on be for another origin than the server's.
    let only = origin().only(["https://realms.test"]).expect("an origin");
    let said = realm(&by_origin(only), PROXY, &all);
    if let Some(said) = &said {
        assert_eq!(said, "https://realms.test/luke/a/");
    }
    said.is_some()
}

/// What stands before the words of the proxy, in one list with them or in a line of its own, changes nothing, or the request is
/// refused.
pub fn what_stands_to_the_left_says_nothing(left: &str) -> bool {
    let layer = by_origin(origin());
    let expected = "http://out.test:8080/luke/a/";
    let own = "for=\"[2001:db8::1]:99\";host=\"out.test:8080\";proto=http";
    let joined = |right: &str| format!("{left}, {right}");
    let (element, host, proto) = (joined(own), joined("out.test:8080"), joined("http"));
    let mut let_in = 0;
    let rewritten = ("x-forwarded-proto", "http");
    for headers in [
        &[("forwarded", &*element)][..],
        &[("forwarded", left), ("forwarded", own)],
        &[("x-forwarded-host", &*host), rewritten],
        &[
            ("x-forwarded-host", left),
            ("x-forwarded-host", "out.test:8080"),
            rewritten,
        ],
        &[
            ("x-forwarded-host", "out.test:8080"),
            ("x-forwarded-proto", &*proto),
        ],
    ] {
        let headers = [&[("host", "inner.test")], headers].concat();
        if let Some(said) = realm(&layer, PROXY, &headers) {
            assert_eq!(said, expected, "{headers:?}");
            let_in += 1;
        }
    }
    // All five but where the standard's header cannot be read.
    let_in > 3
}
