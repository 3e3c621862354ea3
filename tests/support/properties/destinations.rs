use http::{HeaderValue, Request};
use tower_realm_lock::{Claim, RealmUrl};

use super::answer::{ORIGIN, REALM, body, claim, layer, realms};

/// A `Destination` is refused, or names the realm that a request for the same path has.
pub fn a_destination_is_read_as_a_path_is(path: &str) -> bool {
    if !path.starts_with('/') {
        return false;
    }
    let here = Claim::realm(&RealmUrl::parse(REALM).expect("a URL"));
    let expected = realms().resolve(path).ok();
    let expected = expected.map(|realm| here.and(&Claim::realm(&realm)));
    let layer = layer(realms());
    let destinations = [path.to_owned(), format!("{ORIGIN}{path}")];
    let claims = destinations.map(|destination| {
        let destination = HeaderValue::from_bytes(destination.as_bytes()).ok()?;
        let request = Request::builder().method("MOVE").uri("/luke/a/x");
        let request = request.header("destination", destination).body(body(""));
        let claim = claim(&layer, request.expect("it is a target"))?;
        assert_eq!(Some(&claim), expected.as_ref(), "{path}");
        Some(claim)
    });
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
    if path.bytes().all(is_plain) {
        assert_eq!(claims, [expected.clone(), expected], "{path}");
    }
    claims[0].is_some()
}
