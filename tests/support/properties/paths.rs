use http::Uri;
use matchit::Router;
use tower_realm_lock::{RealmMounts, RealmPaths, RealmUrl};

use super::answer::{ORIGIN, decoded, realms};
use super::problems::is_plain;

/// The owner and the realm that axum's router gives a handler for a raw path; none if none is called.
pub fn routed(path: &str) -> Option<Vec<String>> {
    routed_by(&["/{owner}/{realm}"], path)
}

/// The same for a router with a handler for each of several patterns, and for all that goes on
/// behind it.
fn routed_by(patterns: &[&str], path: &str) -> Option<Vec<String>> {
    let mut router = Router::new();
    for pattern in patterns {
        for end in ["", "/", "/{*path}"] {
            let route = format!("{pattern}{end}");
            router.insert(route, ()).expect("routes that differ");
        }
    }
    let matched = router.at(path).ok()?;
    // Each of them is one segment, and decoded by itself.
    let [owner, realm] = ["owner", "realm"].map(|name| matched.params.get(name));
    let owner = percent_encoding::percent_decode_str(owner?)
        .decode_utf8()
        .ok()?;
    let realm = percent_encoding::percent_decode_str(realm?)
        .decode_utf8()
        .ok()?;
    Some(vec![owner.into_owned(), realm.into_owned()])
}

/// Of several patterns for one realm, the one counts that a router prefers, or the path is refused.
pub fn the_pattern_counts_that_a_router_prefers(path: &str) -> bool {
    const ALSO: [&str; 3] = [
        "/api/{version}/{owner}/{realm}",
        "/api/v1/by-realm/{realm}/{owner}",
        "/{owner}/at/{realm}",
    ];
    let Ok(uri) = path.parse::<Uri>() else {
        return false;
    };
    let also = |all: RealmPaths, pattern| all.also(pattern).expect("it has both parameters");
    let resolved = ALSO.into_iter().fold(realms(), also).resolve(uri.path());
    match &resolved {
        Ok(realm) => {
            let rest = realm.as_str().strip_prefix(ORIGIN).expect("of this origin");
            let patterns = [&["/{owner}/{realm}"], &ALSO[..]].concat();
            assert_eq!(decoded(rest), routed_by(&patterns, uri.path()), "{path}");
        }
        Err(error) => is_plain(&error.to_string()),
    }
    resolved.is_ok()
}

/// A path is refused, or its key is that of the very realm that a router takes it for. Two realms never have one key, then, nor
/// one realm two.
pub fn a_key_is_that_of_the_realm_that_a_router_sees(path: &str) -> bool {
    let Ok(uri) = path.parse::<Uri>() else {
        return false;
    };
    let resolved = realms().resolve(uri.path());
    match &resolved {
        Ok(realm) => {
            let rest = realm.as_str().strip_prefix(ORIGIN).expect("of this origin");
            assert_eq!(decoded(rest), routed(uri.path()), "{path}");
        }
        Err(error) => is_plain(&error.to_string()),
    }
    a_mount_is_the_longest_beginning(uri.path());
    resolved.is_ok()
}

fn a_mount_is_the_longest_beginning(path: &str) {
    let mounted = ["", "a/", "a/b/", "%C3%BC/"];
    let urls = mounted.map(|path| RealmUrl::parse(&format!("{ORIGIN}/{path}")).expect("a URL"));
    let mounts = RealmMounts::new(urls.clone()).expect("they differ");
    let Ok(found) = mounts.resolve(path) else {
        return;
    };
    let segments = decoded(path).expect("it was read");
    let begins =
        |mount: &&str| mount.is_empty() || segments.starts_with(&decoded(mount).expect("UTF-8"));
    let longest = mounted.iter().rposition(begins).expect("the root");
    assert_eq!(found, urls[longest], "{path}");
}
