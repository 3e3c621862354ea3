use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderValue, Method, Request, StatusCode};

use super::limits::RouteLimits;
use super::lock_rules::LockRules;
use super::scope::Scope;
use crate::config::ConfigError;
use crate::realm::head::Head;

#[test]
fn safe_methods_pass_and_all_others_are_locked() {
    let rules = LockRules::new();
    for (method, locked) in [
        ("GET", false),
        ("HEAD", false),
        ("OPTIONS", false),
        ("TRACE", false),
        ("QUERY", false),
        ("PROPFIND", false),
        ("REPORT", false),
        ("SEARCH", false),
        ("POST", true),
        ("PUT", true),
        ("PATCH", true),
        ("DELETE", true),
        ("CONNECT", true),
        ("PROPPATCH", true),
        ("MKCOL", true),
        ("MOVE", true),
        ("COPY", true),
        ("LOCK", true),
        ("UNLOCK", true),
        ("ACL", true),
        ("CHECKIN", true),
        ("UPDATE", true),
        // The registry calls it safe, and no request has it.
        ("PRI", true),
        ("BREW", true),
        ("get", true),
        ("propfind", true),
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

#[test]
fn the_first_limits_whose_route_fits_count_for_the_plain_spelling_alone() {
    let limits = |seconds| RouteLimits::new().acquire_timeout(Duration::from_secs(seconds));
    let rules = LockRules::new()
        .limits(Method::POST, "/{owner}/{realm}/_batch", limits(1))
        .and_then(|rules| rules.limits(Method::POST, "/{owner}/{realm}/{*rest}", limits(2)))
        .unwrap()
        .method_override(HeaderName::from_static("x-method"), [Method::POST])
        .into_rules();
    for (method, path, over, expected) in [
        ("POST", "/a/b/_batch", "", Some(1)),
        ("POST", "/%61/b/_batch", "", Some(1)),
        ("POST", "/a/b/c/d", "", Some(2)),
        // The handler may be that of another route.
        ("POST", "/a/b/%5Fbatch", "", None),
        ("POST", "/a/b/_batch/", "", None),
        ("POST", "/a/b/x/../_batch", "", None),
        ("POST", "/a/b", "", None),
        ("PUT", "/a/b/_batch", "", None),
        ("POST", "/a/b/_batch", "POST", Some(1)),
        ("POST", "/a/b/_batch", "PUT", None),
        ("PUT", "/a/b/_batch", "POST", None),
        ("POST", "/a/b/_batch", "A B", None),
    ] {
        let mut request = Request::builder().method(method).uri(path);
        if !over.is_empty() {
            request = request.header("x-method", HeaderValue::from_static(over));
        }
        let request = request.body(()).unwrap();
        let limits = rules.limits_of(&Head::of(&request));
        let timeout = limits.and_then(|limits| limits.given.acquire_timeout);
        let expected = expected.map(Duration::from_secs);
        assert_eq!(timeout, expected, "{method} {path} {over}");
    }
}

#[test]
fn only_a_status_of_an_error_answers_for_a_busy_realm() {
    for status in [400, 409, 423, 429, 503, 599] {
        let status = StatusCode::from_u16(status).unwrap();
        let limits = RouteLimits::new().busy_status(status).unwrap();
        assert_eq!(limits.busy_status, Some(status));
    }
    for status in [100, 200, 302, 399, 600, 999] {
        let status = StatusCode::from_u16(status).unwrap();
        let error = RouteLimits::new().busy_status(status).unwrap_err();
        let says = format!("`{}` cannot answer", status.as_str());
        assert!(error.to_string().starts_with(&says), "{error}");
    }
}

#[test]
fn a_layer_that_reads_no_bodies_refuses_a_scope_that_needs_one() {
    let scoped = |scope| LockRules::new().scope(Method::POST, "/{owner}/{realm}/_atomic", scope);
    for scope in [
        Scope::realm(),
        Scope::shared(),
        Scope::resource().named_by(str::to_owned),
        Scope::from_fn(async |_, _| Ok(None)),
    ] {
        let rules = scoped(scope).unwrap().into_rules();
        let shown = format!("{rules:?}");
        let without = rules.without_bodies().unwrap();
        assert_eq!(format!("{without:?}"), shown);
        assert_eq!(format!("{:?}", without.with_bodies()), shown);
    }
    for scope in [
        Scope::atomic_hrefs(),
        Scope::from_body_fn(async |_, _, _| Ok(None)),
    ] {
        let error = scoped(scope).unwrap().into_rules().without_bodies();
        let route = "POST /{owner}/{realm}/_atomic".to_owned();
        assert_eq!(error.unwrap_err(), ConfigError::BodyNeeded { route });
    }
}
