use super::*;

#[test]
fn safe_methods_pass_and_all_others_are_locked() {
    let rules = LockRules::new();
    for (method, locked) in [
        ("GET", false),
        ("HEAD", false),
        ("OPTIONS", false),
        ("TRACE", false),
        ("QUERY", false),
        ("POST", true),
        ("PUT", true),
        ("PATCH", true),
        ("DELETE", true),
        ("CONNECT", true),
        ("PROPPATCH", true),
        ("get", true),
    ] {
        let parsed = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(rules.locks(&parsed, "/a/b/c"), locked, "{method}");
    }
}

#[test]
fn only_the_plain_spelling_is_exempt() {
    let rules = LockRules::new()
        .exempt(Method::POST, "/{owner}/{realm}/_search")
        .unwrap();
    assert!(!rules.locks(&Method::POST, "/a/b/_search"));
    for path in [
        "/a/b/%5Fsearch",
        "/a/b/c/_search",
        "/a/../_search",
        "/a/%2e%2e/_search",
        "/a/b/_search/",
        "/a/b/_SEARCH",
        "/a%2Fb/c/_search",
        "/a\\b/c/_search",
    ] {
        assert!(rules.locks(&Method::POST, path), "{path}");
    }
    assert!(rules.locks(&Method::PUT, "/a/b/_search"));
}

#[test]
fn every_spelling_of_a_locked_route_is_locked() {
    let rules = LockRules::new()
        .lock(Method::GET, "/{owner}/{realm}/_reindex")
        .unwrap();
    assert!(rules.locks(&Method::GET, "/a/b/_reindex"));
    assert!(rules.locks(&Method::GET, "/a/b/%5Freindex"));
    assert!(rules.locks(&Method::GET, "/a/b/_reindex/"));
    // What the most lenient reader takes for it.
    for path in [
        "/a/b%2F_reindex",
        "/a/./b/_reindex",
        "//a/b/_reindex",
        "/a//_reindex",
        "///_reindex",
        "/a/b/_reindex//",
        "/a/b/x/../_reindex",
        "/a\\b\\_reindex",
    ] {
        assert!(rules.locks(&Method::GET, path), "{path}");
    }
    let with_slash = LockRules::new().lock(Method::GET, "/{owner}/{realm}/");
    let with_slash = with_slash.unwrap();
    for path in ["/a/b/", "/a/b", "/a/./b/", "/a%2Fb", "/a/b//"] {
        assert!(with_slash.locks(&Method::GET, path), "{path}");
    }
    assert!(!with_slash.locks(&Method::GET, "/a"));
    assert!(rules.locks(&Method::HEAD, "/a/b/_reindex"));
    assert!(!rules.locks(&Method::HEAD, "/a/b/c"));
    assert!(!rules.locks(&Method::OPTIONS, "/a/b/_reindex"));
    assert!(!rules.locks(&Method::GET, "/a/b/c"));
}

#[test]
fn the_first_route_that_fits_decides() {
    let rules = LockRules::new()
        .lock(Method::POST, "/{owner}/{realm}/_search")
        .unwrap()
        .exempt(Method::POST, "/{owner}/{realm}/{*rest}")
        .unwrap();
    assert!(rules.locks(&Method::POST, "/a/b/_search"));
    assert!(!rules.locks(&Method::POST, "/a/b/other"));
}
