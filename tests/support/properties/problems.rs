use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tower_realm_lock::{
    Claim, LockError, RealmError, RealmPaths, RealmPointers, RealmUrl, Rejection, RequestOrigin,
    TrustedProxies,
};

use super::answer::{self, REALM, claim, layer, realms};

/// Longer than any message has to be.
const LONGEST: usize = 16 * 1024;

/// Whether a character does more than be read: ends a line, moves a cursor, turns the direction of text.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Fails unless a message can be shown to anybody, and is not long.
pub fn is_plain(text: &str) {
    assert!(!text.contains(acts), "{text:?}");
    assert!(text.len() <= LONGEST, "{} bytes", text.len());
}

/// Fails unless a response is one of `application/problem+json` (RFC 9457) that says the same in all of its parts.
pub fn check(response: &Response<Bytes>) {
    let status = response.status();
    assert!(status.is_client_error() || status.is_server_error());
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    for value in response.headers().values() {
        is_plain(value.to_str().expect("it is ASCII"));
    }
    let text = std::str::from_utf8(response.body()).expect("it is UTF-8");
    assert!(!text.contains(acts), "{text:?}");
    let problem: Value = serde_json::from_str(text).expect("it is JSON");
    let member = |name: &str| problem[name].as_str().expect("it is a text");
    assert_eq!(problem["status"], status.as_u16());
    assert!(member("type").starts_with("https://docs.rs/tower-realm-lock/"));
    for text in [member("title"), member("detail")] {
        assert!(!text.is_empty());
        is_plain(text);
    }
}

/// Every problem that a client's text can get into is a plain one.
pub fn a_problem_body_is_plain(text: &str) {
    let realm: RealmUrl = REALM.parse().expect("a realm URL");
    let named = utf8_percent_encode(text, NON_ALPHANUMERIC);
    let named = RealmUrl::parse(&format!("{REALM}{named}/")).unwrap_or(realm);
    let claim_of = || Claim::resources(&named, [text, "x"]);
    let after = Duration::from_secs(1);
    let mut rejections: Vec<Rejection> = vec![
        RealmError::unresolved(text).into(),
        RealmError::unavailable(text).into(),
        LockError::Timeout {
            claim: claim_of(),
            after,
        }
        .into(),
        LockError::QueueFull {
            claim: claim_of(),
            waiters: 1,
        }
        .into(),
        LockError::Lost { claim: claim_of() }.into(),
    ];
    let errors = [RealmUrl::parse(text).err(), realms().resolve(text).err()];
    rejections.extend(errors.into_iter().flatten().map(Rejection::from));
    let of_configuration = [
        RealmPaths::new(text, "/{realm}").err(),
        RealmPaths::new(REALM, text).err(),
        RealmPointers::new([text]).err(),
        TrustedProxies::new([text]).err(),
        RequestOrigin::new(TrustedProxies::default())
            .only([text])
            .err(),
    ];
    for error in of_configuration.into_iter().flatten() {
        is_plain(&error.to_string());
    }
    for rejection in rejections {
        check(&rejection.to_response());
    }
}

/// What a server says of a body that broke off is shown plainly.
pub fn a_broken_body_is_told_plainly(text: &str) {
    let broken = stream::iter([
        Ok(Frame::data(Bytes::from_static(b"{"))),
        Err(text.to_owned()),
    ]);
    let request = http::Request::post("/").body(BodyExt::boxed(StreamBody::new(broken)));
    let pointers = RealmPointers::new(["/realm"]).expect("a pointer");
    let request: http::Request<answer::Body> = request.expect("a request");
    assert!(claim(&layer(pointers), request).is_none());
}
