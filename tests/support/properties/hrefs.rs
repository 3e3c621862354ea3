use http::{Method, Request};
use serde_json::json;
use tower_realm_lock::{Claim, LockRules, RealmUrl, Scope};
use url::Url;

use super::answer::{REALM, body, claim, decoded, layer, realms};

/// An `href` locks the realm whole, or the one resource that a browser takes it for.
pub fn an_href_is_the_resource_of_a_url(href: &str) -> bool {
    let rules = LockRules::new()
        .scope(
            Method::POST,
            "/{owner}/{realm}/_atomic",
            Scope::atomic_hrefs(),
        )
        .expect("a pattern");
    let document = json!({"atomic:operations": [{"op": "remove", "href": href}]});
    let request = Request::post("/luke/a/_atomic").body(body(document.to_string()));
    let claim = claim(&layer(realms()).rules(rules), request.expect("a request"));
    let claim = claim.expect("the realm is in the path");
    let realm: RealmUrl = REALM.parse().expect("a realm URL");
    let Some(names) = claim.resources_of(&realm) else {
        assert_eq!(claim, Claim::realm(&realm), "{href}");
        return false;
    };
    let [name] = *names else {
        panic!("{href} is {names:?}");
    };
    let base = Url::parse(REALM).expect("a URL");
    let url = base.join(href).expect("a URL");
    assert_eq!(url.origin(), base.origin(), "{href}");
    assert_eq!((url.query(), url.fragment()), (None, None), "{href}");
    let mut segments = decoded(url.path()).expect("UTF-8");
    let rest = segments.split_off(2);
    assert_eq!(segments, ["luke", "a"], "{href}");
    assert_eq!(Some(rest), decoded(name), "{href}");
    true
}
