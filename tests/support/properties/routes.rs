use std::future::ready;

use http::{Method, Uri};
use matchit::Router;
use tower_realm_lock::{Claim, LockRules, RealmResolver, RealmUrl, Scope};

use super::answer::{ORIGIN, claim, decoded, layer, post, realms};
use super::paths::routed;

/// A pattern fits where axum's router takes a path for its route, and what is said of the route counts nowhere else.
pub fn a_route_is_what_a_router_takes_for_it(template: &str, path: &str) -> bool {
    let (Ok(exempt), Ok(uri)) = (
        LockRules::new().exempt(Method::POST, template),
        path.parse::<Uri>(),
    ) else {
        return false;
    };
    let path = uri.path();
    if post(path).is_none() {
        return false;
    }
    let mut router = Router::new();
    // What both can read; axum has patterns of its own for parts of segments.
    if router.insert(template, ()).is_err() {
        return false;
    }
    let fits = router.at(path).is_ok();
    if !exempt.locks(&Method::POST, path) {
        assert!(fits, "{template} exempts {path}");
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-".contains(&byte);
    let has_plain_segments = !path.contains("//") && path.bytes().all(is_plain);
    if fits && has_plain_segments {
        assert!(
            !exempt.locks(&Method::POST, path),
            "{template} does not exempt {path}"
        );
    }
    if fits {
        let locked = LockRules::new()
            .lock(Method::GET, template)
            .expect("a pattern");
        assert!(
            locked.locks(&Method::GET, path),
            "{template} does not lock {path}"
        );
    }
    a_route_has_its_own_realms_and_no_other(template, path, fits);
    fits
}

fn a_route_has_its_own_realms_and_no_other(template: &str, path: &str, fits: bool) {
    let own = RealmUrl::parse("https://route.test/").expect("a URL");
    let found = own.clone();
    let by_route = RealmResolver::from_fn(move |_| ready(Ok(found.clone())));
    let resolver = RealmResolver::from(realms())
        .route(Method::POST, template, by_route)
        .expect("a pattern");
    let request = || post(path).expect("it is a target");
    match claim(&layer(resolver), request()) {
        Some(claim) if fits => assert_eq!(claim, Claim::realm(&own), "{template} {path}"),
        Some(claim) => names_what_a_router_sees(&claim, path),
        None => {}
    }
    let rules = LockRules::new()
        .scope(Method::POST, template, Scope::resource())
        .expect("a pattern");
    if let Some(claim) = claim(&layer(realms()).rules(rules), request()) {
        names_what_a_router_sees(&claim, path);
        if !fits {
            let whole = Claim::realm(&claim.realms()[0]);
            assert_eq!(claim, whole, "{template} narrows {path}");
        }
    }
}

/// Fails if a router gives the path to the handler of a realm that is not claimed.
fn names_what_a_router_sees(claim: &Claim, path: &str) {
    let [realm] = claim.realms() else {
        panic!("{claim} is not of one realm");
    };
    if let Some(seen) = routed(path) {
        let rest = realm.as_str().strip_prefix(ORIGIN);
        let rest = rest.unwrap_or_else(|| panic!("{path} of {seen:?} is locked as {realm}"));
        assert_eq!(decoded(rest), Some(seen), "{path}");
    }
}
