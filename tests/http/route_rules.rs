//! What the rules give to a route: writers that share their realm, limits, and an answer for a
//! realm that is busy.

use std::time::Duration;

use http::{HeaderName, Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    ConfigError, LockError, LockRules, MethodSet, RealmBodyLockLayer, RealmBodyResolver,
    RealmLocks, RealmPointers, RealmResolver, RealmWriteLockLayer, Rejection, RouteLimits, Scope,
};

use crate::support::claims::strategies;
use crate::support::database::database;
use crate::support::gate::{
    Call, Gate, Gated, Outcome, answered, assert_lost, code, gate, key, patch, postgres_layer,
    queue, realms, send,
};
use crate::support::wait::PATIENCE;

const CARD: &str = "/{owner}/{realm}/{*card}";
const SHORT: Duration = Duration::from_millis(50);
const BUSY: &str = "an export runs; come back later";

fn layer(rules: LockRules) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms())
        .rules(rules)
        .unwrap()
}

/// Rules with these limits for PUT, and none for PATCH.
fn limited(limits: RouteLimits) -> LockRules {
    LockRules::new().limits(Method::PUT, CARD, limits).unwrap()
}

fn put(layer: &RealmWriteLockLayer, handler: &Gated, path: &str) -> JoinHandle<Outcome> {
    send(layer, handler, Method::PUT, path)
}

/// Limits of a route that does not wait, and answers 423 in words of its own.
fn fail_fast() -> RouteLimits {
    RouteLimits::new()
        .acquire_timeout(Duration::ZERO)
        .busy_status(StatusCode::LOCKED)
        .unwrap()
        .busy_detail(BUSY)
}

/// Lets a write of another realm go in and out, and fails if another call comes in meanwhile.
async fn assert_nobody_enters(layer: &RealmWriteLockLayer, handler: &Gated, gate: &mut Gate) {
    let other = patch(layer, handler, "/luke/other/x");
    let call = gate.entered().await;
    assert_eq!(call.path, "/luke/other/x");
    call.answer(200);
    assert_eq!(answered(other).await.status(), 200);
    assert!(gate.is_empty());
}

#[tokio::test]
async fn writers_share_their_realm_and_a_purge_has_it_alone() {
    let database = database().await;
    for (strategy, [one, other]) in strategies(&database).await {
        let rules = LockRules::new()
            .scope(Method::POST, "/{owner}/{realm}/_purge", Scope::realm())
            .and_then(|rules| rules.scope(Method::PATCH, CARD, Scope::shared()))
            .unwrap();
        let layer = |locks| {
            let layer = RealmWriteLockLayer::new(locks, realms());
            layer.rules(rules.clone()).unwrap()
        };
        let (one, other) = (layer(one), layer(other));
        let (handler, mut gate) = gate();
        let mut writes = Vec::new();
        let mut inside: Vec<Call> = Vec::new();
        for layer in [&one, &one, &other] {
            writes.push(patch(layer, &handler, "/luke/a/x"));
            inside.push(gate.entered().await);
        }
        let held = inside[0].held.as_ref().unwrap();
        assert_eq!(
            held.claim().to_string(),
            "http://realms.test/luke/a/ (shared)"
        );
        let purge = send(&other, &handler, Method::POST, "/luke/a/_purge");
        assert_nobody_enters(&other, &handler, &mut gate).await;
        // A later writer does not overtake it.
        writes.push(patch(&other, &handler, "/luke/a/y"));
        for call in inside {
            assert_nobody_enters(&one, &handler, &mut gate).await;
            call.answer(200);
        }
        let call = gate.entered().await;
        assert_eq!(call.path, "/luke/a/_purge", "{strategy}");
        let held = call.held.as_ref().unwrap();
        assert_eq!(held.claim().to_string(), "http://realms.test/luke/a/");
        // The spelling is not that of the route, so this one takes the realm whole too.
        writes.push(patch(&one, &handler, "/luke/a/x%2Fy"));
        assert_nobody_enters(&one, &handler, &mut gate).await;
        call.answer(200);
        assert_eq!(answered(purge).await.status(), 200);
        for _ in 0..2 {
            gate.entered().await.answer(200);
        }
        for write in writes {
            assert_eq!(answered(write).await.status(), 200, "{strategy}");
        }
    }
}

#[tokio::test]
async fn several_realms_are_shared_together() {
    let both = RealmPointers::new(["/a", "/b"]).unwrap();
    let both = RealmBodyResolver::from(both);
    for (scope, expected) in [
        (
            Scope::shared(),
            "http://realms.test/luke/a/ (shared) and http://realms.test/luke/b/ (shared)",
        ),
        (
            Scope::resource(),
            "http://realms.test/luke/a/ and http://realms.test/luke/b/",
        ),
    ] {
        let rules = LockRules::new()
            .scope(Method::POST, "/{*rest}", scope)
            .unwrap();
        let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), both.clone(), 4096);
        let (handler, mut gate) = gate();
        let service = layer.rules(rules).layer(handler);
        let body = r#"{"a":"http://realms.test/luke/a/","b":"http://realms.test/luke/b/"}"#;
        let request = Request::post("/publish").body(body.to_owned()).unwrap();
        let call = tokio::spawn(service.oneshot(request));
        let inside = gate.entered().await;
        let claim = inside.held.as_ref().unwrap().claim().to_string();
        assert_eq!(claim, expected);
        inside.answer(200);
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_route_waits_for_as_long_as_it_says() {
    let long = RouteLimits::new().acquire_timeout(PATIENCE);
    let layer = layer(limited(long)).map_locks(|locks| locks.acquire_timeout(SHORT));
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, "/luke/a/x");
    let inside = gate.entered().await;
    let batch = put(&layer, &handler, "/luke/a/batch");
    let response = answered(patch(&layer, &handler, "/luke/a/y")).await;
    assert_eq!(
        (response.status().as_u16(), &*code(&response)),
        (503, "lock-timeout")
    );
    inside.answer(200);
    assert_eq!(answered(first).await.status(), 200);
    gate.entered().await.answer(200);
    assert_eq!(answered(batch).await.status(), 200);
}

#[tokio::test]
async fn a_route_holds_for_as_long_as_it_says() {
    let database = database().await;
    for locks in [
        RealmLocks::in_process(),
        RealmLocks::postgres(database.url()).await.unwrap(),
    ] {
        let layer = RealmWriteLockLayer::new(locks, realms());
        let unbounded = limited(RouteLimits::new().max_hold(None));
        let unbounded = layer
            .clone()
            .rules(unbounded)
            .unwrap()
            .map_locks(|locks| locks.max_hold(SHORT));
        let (handler, mut gate) = gate();
        let batch = put(&unbounded, &handler, "/luke/a/batch");
        let inside = gate.entered().await;
        let other = patch(&unbounded, &handler, "/luke/b/x");
        let mut stopped = gate.entered().await;
        stopped.dropped().await;
        let response = answered(other).await;
        assert_eq!(
            (response.status().as_u16(), &*code(&response)),
            (504, "hold-expired")
        );
        inside.answer(200);
        assert_eq!(answered(batch).await.status(), 200);

        let bounded = limited(fail_fast().acquire_timeout(PATIENCE).max_hold(SHORT));
        let bounded = layer.rules(bounded).unwrap();
        let batch = put(&bounded, &handler, "/luke/a/batch");
        let mut stopped = gate.entered().await;
        stopped.dropped().await;
        // The realm was not busy: the status is not the route's.
        let response = answered(batch).await;
        assert_eq!(
            (response.status().as_u16(), &*code(&response)),
            (504, "hold-expired")
        );
    }
}

/// Fails unless a response says in the route's words, by its status, that the realm is busy.
fn assert_busy(response: &Response<String>, expected: &str) {
    assert_eq!(response.status(), StatusCode::LOCKED);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    assert_eq!(code(response), expected);
    let problem: Value = serde_json::from_str(response.body()).unwrap();
    assert_eq!(problem["status"], 423);
    assert_eq!(problem["detail"], BUSY);
    assert_eq!(problem["realm"], "http://realms.test/luke/a/");
    let rejection: &Rejection = response.extensions().get().unwrap();
    assert_eq!(rejection.status(), StatusCode::LOCKED);
    assert!(matches!(rejection, Rejection::Busy { .. }));
}

#[tokio::test]
async fn a_route_that_does_not_wait_answers_at_once_if_the_realm_is_taken() {
    let database = database().await;
    let rules = limited(fail_fast());
    let in_process = layer(rules.clone());
    let layer = async || {
        let layer = postgres_layer(database.url()).await;
        layer.rules(rules.clone()).unwrap()
    };
    let one = layer().await;
    for (holder, asking) in [
        (in_process.clone(), in_process.clone()),
        (one.clone(), one.clone()),
        (one, layer().await),
    ] {
        let (handler, mut gate) = gate();
        let first = patch(&holder, &handler, "/luke/a/x");
        let inside = gate.entered().await;
        // Nobody else is in the queue, and nothing has been given back.
        let response = answered(put(&asking, &handler, "/luke/a/y")).await;
        assert_busy(&response, "lock-timeout");
        assert!(gate.is_empty());
        inside.answer(200);
        assert_eq!(answered(first).await.status(), 200);
    }
    // A realm that is free is had.
    let (handler, mut gate) = gate();
    let free = put(&in_process, &handler, "/luke/a/y");
    gate.entered().await.answer(200);
    assert_eq!(answered(free).await.status(), 200);
}

#[tokio::test]
async fn a_full_queue_is_answered_as_the_route_says_and_other_routes_keep_their_answer() {
    let layer = layer(limited(fail_fast().acquire_timeout(PATIENCE)))
        .map_locks(|locks| locks.max_waiters_per_realm(1));
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, "/luke/a/x");
    let inside = gate.entered().await;
    let waiter = queue(&layer, &handler, "/luke/a/x");
    let response = answered(put(&layer, &handler, "/luke/a/y")).await;
    assert_busy(&response, "queue-full");
    let response = answered(patch(&layer, &handler, "/luke/a/y")).await;
    assert_eq!(
        (response.status().as_u16(), &*code(&response)),
        (503, "queue-full")
    );
    inside.answer(200);
    gate.entered().await.answer(200);
    for write in [first, waiter] {
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[tokio::test]
async fn what_is_not_about_a_busy_realm_keeps_its_status() {
    let database = database().await;
    let layer = postgres_layer(database.url()).await;
    let layer = layer
        .rules(limited(fail_fast().acquire_timeout(PATIENCE)))
        .unwrap();
    let (handler, mut gate) = gate();
    let lost = put(&layer, &handler, "/luke/a/x");
    let inside = gate.entered().await;
    let holder = database.holder_pid(key("/luke/a")).await.unwrap();
    database.terminate(holder).await;
    let response = answered(lost).await;
    assert_lost(&response);
    drop(inside);

    let locks = RealmLocks::in_process();
    locks.shutdown(PATIENCE).await.unwrap();
    let layer = RealmWriteLockLayer::new(locks, realms());
    let layer = layer.rules(limited(fail_fast())).unwrap();
    let response = answered(put(&layer, &handler, "/luke/a/x")).await;
    assert_eq!(
        (response.status().as_u16(), &*code(&response)),
        (503, "lock-unavailable")
    );
    let response = answered(put(&layer, &handler, "/luke//x")).await;
    assert_eq!(
        (response.status().as_u16(), &*code(&response)),
        (400, "realm-unresolved")
    );
}

#[tokio::test]
async fn the_layers_own_closure_sees_the_routes_answer() {
    let layer = layer(limited(fail_fast())).rejection(|rejection, _| {
        let text = format!("{}: {}", rejection.code(), rejection.detail());
        let mut response = Response::new(text.into());
        *response.status_mut() = rejection.status();
        response
    });
    let (handler, mut gate) = gate();
    let first = patch(&layer, &handler, "/luke/a/x");
    let inside = gate.entered().await;
    let response = answered(put(&layer, &handler, "/luke/a/y")).await;
    assert_eq!(response.status(), StatusCode::LOCKED);
    assert_eq!(*response.body(), format!("lock-timeout: {BUSY}"));
    inside.answer(200);
    assert_eq!(answered(first).await.status(), 200);
}

/// The status and the problem of a PUT to a layer whose realm is held, with this body.
async fn refused(layer: RealmBodyLockLayer, body: &str) -> (StatusCode, Value) {
    let handler = service_fn(async |_| -> Result<Response<String>, LockError> {
        panic!("the realm is held")
    });
    let request = Request::put("/luke/a/x").body(body.to_owned()).unwrap();
    let called = timeout(PATIENCE, layer.layer(handler).oneshot(request)).await;
    let response = called.expect("an answer in time").unwrap();
    let status = response.status();
    let body = http_body_util::BodyExt::collect(response.into_body()).await;
    let body = body.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn limits_count_however_the_realm_is_found() {
    let locks = RealmLocks::in_process();
    let held = crate::support::claims::work(&locks, &crate::support::claims::whole(["a"]));
    let held = held.inside().await;
    let by_closure = RealmResolver::from_fn(async |_| Ok(crate::support::claims::realm("a")));
    let by_body = RealmBodyResolver::from(RealmPointers::new(["/a"]).unwrap());
    let named = r#"{"a":"http://realms.test/luke/a/"}"#;
    for realms in [realms().into(), by_closure.into(), by_body] {
        let layer = RealmBodyLockLayer::new(locks.clone(), realms, 4096);
        let layer = layer.rules(limited(fail_fast()));
        let (status, problem) = refused(layer, named).await;
        assert_eq!(
            (status, &problem["detail"]),
            (StatusCode::LOCKED, &BUSY.into())
        );
    }
    held.end().await;
}

#[tokio::test]
async fn a_file_says_the_same() {
    let rules: LockRules = toml::from_str(
        "
        scopes = [{ method = 'PATCH', path = '/{owner}/{realm}/{*card}', scope = 'shared' }]

        [[limits]]
        method = 'PUT'
        path = '/{owner}/{realm}/{*card}'
        acquire_timeout = '0s'
        max_hold = '10m'
        busy_status = 423
        busy_detail = 'an export runs; come back later'
        ",
    )
    .unwrap();
    let layer = layer(rules);
    let (handler, mut gate) = gate();
    let one = patch(&layer, &handler, "/luke/a/x");
    let in_one = gate.entered().await;
    let other = patch(&layer, &handler, "/luke/a/x");
    let in_other = gate.entered().await;
    let response = answered(put(&layer, &handler, "/luke/a/x")).await;
    assert_busy(&response, "lock-timeout");
    in_one.answer(200);
    in_other.answer(200);
    for write in [one, other] {
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[test]
fn a_rule_that_can_never_decide_anything_is_an_error_that_names_the_remedy() {
    let rules = || {
        LockRules::new()
            .exempt(Method::POST, "/{owner}/{realm}/{*rest}")
            .and_then(|rules| rules.scope(Method::PATCH, CARD, Scope::shared()))
            .and_then(|rules| rules.limits(Method::PATCH, CARD, fail_fast()))
            .unwrap()
    };
    let search = "/{owner}/{realm}/_search";
    let routes = RealmResolver::from(realms())
        .route(Method::GET, CARD, realms())
        .unwrap();
    let lower = Method::from_bytes(b"post").unwrap();
    for (error, rule, remedy) in [
        (
            rules().lock(Method::POST, search).unwrap_err(),
            "lock POST /{owner}/{realm}/_search",
            "the earlier rule `exempt POST /{owner}/{realm}/{*rest}` takes every request",
        ),
        (
            rules()
                .scope(Method::PATCH, search, Scope::realm())
                .unwrap_err(),
            "scope PATCH /{owner}/{realm}/_search",
            "add it before that one, or remove it",
        ),
        (
            rules()
                .limits(Method::PATCH, search, fail_fast())
                .unwrap_err(),
            "limits PATCH /{owner}/{realm}/_search",
            "the earlier rule `limits PATCH",
        ),
        (
            routes.route(Method::GET, search, realms()).unwrap_err(),
            "route GET /{owner}/{realm}/_search",
            "the earlier rule `route GET",
        ),
        (
            rules().lock(lower, "/x").unwrap_err(),
            "lock post /x",
            "write `POST`",
        ),
        (
            rules().exempt(Vec::new(), "/x").unwrap_err(),
            "exempt (no method) /x",
            "name at least one",
        ),
    ] {
        let ConfigError::InvalidRule { rule: named, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(named, rule);
        assert!(error.to_string().contains(remedy), "{error}");
        // What `main` prints.
        assert_eq!(format!("{error:?}"), error.to_string());
    }
}

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
        "/../../a/b/_reindex",
        "/%FF/%zz/_reindex",
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

/// `exempt` compares a path with its pattern to the letter, `lock` in any spelling.
#[test]
fn a_pattern_fits_as_a_route_of_axum_does() {
    for (pattern, path, to_the_letter, in_any_spelling) in [
        ("/", "/", true, true),
        ("/", "//", false, true),
        ("/", "/a", false, false),
        ("/a", "*", false, false),
        ("/a/", "/", false, false),
        ("/{o}/{r}/_search", "/a/b/_search", true, true),
        ("/{o}/{r}/_search", "/a/b/%5Fsearch", false, true),
        ("/{o}/{r}/_search", "/a/b/_search/", false, true),
        ("/{o}/{r}/_search", "/a/b/c/_search", false, false),
        ("/{o}/{r}/_search", "/a//_search", false, true),
        ("/{o}/{r}/_search", "///_search", false, true),
        ("/{o}/{r}/", "///", false, true),
        ("/{o}/{r}/", "/a/b/", true, true),
        ("/{o}/{r}/", "/a/b", false, true),
        ("/{o}/{r}/", "/a/./b/", false, true),
        ("/{o}/{r}/", "/a%2Fb", false, true),
        ("/{o}/{r}/", "/a", false, false),
        ("/{o}/{r}/", "/a/b/c", false, false),
        ("/{o}/{r}", "/a/", false, false),
        ("/{o}/{r}", "/a/b/", false, true),
        ("/{o}/{r}", "/a/./b/", false, true),
        ("/{o}/{*rest}", "/a/b/c/", true, true),
        ("/{o}/{*rest}", "/a/", false, false),
        ("/{o}/{*rest}", "/a", false, false),
    ] {
        let exempt = LockRules::new().exempt(Method::POST, pattern).unwrap();
        let is_exempt = !exempt.locks(&Method::POST, path);
        assert_eq!(is_exempt, to_the_letter, "{pattern} {path}");
        let locked = LockRules::new().lock(Method::GET, pattern).unwrap();
        let is_locked = locked.locks(&Method::GET, path);
        assert_eq!(is_locked, in_any_spelling, "{pattern} {path}");
    }
}

#[test]
fn a_bad_pattern_is_refused_with_its_reason() {
    for (pattern, reason) in [
        ("", "must start with `/`"),
        ("{owner}/{realm}", "must start with `/`"),
        ("//{realm}", "empty segment"),
        ("/{owner}//{realm}", "empty segment"),
        ("/{}", "plain name"),
        ("/{*}", "plain name"),
        ("/{{a}}", "plain name"),
        ("/a{b}", "only a part"),
        ("/{a", "only a part"),
        ("/b:a}", "only a part"),
        ("/:owner/{realm}", "write a parameter as `{owner}`"),
        ("/{owner}/*rest", "the rest of a path as `{*rest}`"),
        ("/{a}/{a}", "twice"),
        ("/{*a}/b", "last segment"),
        ("/../{a}", "dot segment"),
        ("/a%20b/{c}", "without `%`"),
        ("/a?b", "without `%`"),
        ("/a*", "has a star"),
        ("/a\nb", "control character"),
    ] {
        let error = LockRules::new().exempt(Method::POST, pattern);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(reason), "{pattern}: {error}");
    }
}

/// Adds a rule of one kind.
type Add = fn(LockRules, MethodSet, &str) -> Result<LockRules, ConfigError>;

#[test]
fn a_rule_that_an_earlier_one_hides_is_refused() {
    let exempt: Add = |rules, methods, pattern| rules.exempt(methods, pattern);
    let lock: Add = |rules, methods, pattern| rules.lock(methods, pattern);
    let scope: Add = |rules, methods, pattern| rules.scope(methods, pattern, Scope::shared());
    for (earlier, pattern, later, hidden, is_hidden) in [
        (exempt, "/{o}/{*rest}", lock, "/{o}/x", true),
        (exempt, "/{o}/{r}", exempt, "/{a}/x", true),
        (lock, "/{o}/{r}/{*a}", exempt, "/{o}/{r}/{x}/_find", true),
        (lock, "/{o}/{r}/_find", exempt, "/{o}/{r}/{*a}", false),
        (exempt, "/{o}/{r}", exempt, "/{o}/{r}/x", false),
        (exempt, "/a/{r}", exempt, "/{o}/{r}", false),
        // A slash at the end is another path for exempt routes, and for no others.
        (exempt, "/{o}/{r}", exempt, "/{o}/{r}/", false),
        (lock, "/{o}/{r}", exempt, "/{o}/{r}/", true),
        (scope, "/{o}/{r}/", scope, "/{o}/{r}", true),
        // The rest of a path is one segment at least.
        (scope, "/{o}/{*rest}", scope, "/{o}", false),
        (scope, "/{o}/{*rest}", scope, "/{o}/", false),
        (exempt, "/{o}/{*rest}", exempt, "/{o}/", false),
        (scope, "/{*rest}", scope, "/", false),
        (scope, "/{o}/{*rest}", scope, "/{o}/{r}/{*rest}", true),
        (scope, "/{o}/{r}/{*rest}", scope, "/{o}/{*rest}", false),
        (scope, "/{o}/{r}/{x}", scope, "/{o}/{r}/{*rest}", false),
        (scope, "/", scope, "/", true),
    ] {
        let rules = earlier(LockRules::new(), Method::POST.into(), pattern).unwrap();
        let refused = later(rules, Method::POST.into(), hidden).is_err();
        assert_eq!(refused, is_hidden, "{hidden} behind {pattern}");
    }
    let routes = RealmResolver::from(realms()).route(Method::POST, "/{o}/{r}", realms());
    let hidden = routes.and_then(|routes| routes.route(Method::POST, "/{o}/{r}/", realms()));
    assert!(hidden.is_err());
}

#[test]
fn a_rule_is_hidden_only_if_each_of_its_methods_is() {
    let two = LockRules::new()
        .scope(Method::PUT, "/{o}/{*rest}", Scope::shared())
        .and_then(|rules| {
            let methods = [Method::PATCH, Method::POST];
            rules.scope(methods, "/{o}/{*r}", Scope::shared())
        })
        .unwrap();
    let all = MethodSet::unsafe_methods;
    let of_all = LockRules::new().scope(all(), "/{o}/{*r}", Scope::shared());
    let of_all = of_all.unwrap();
    for (earlier, methods, is_hidden) in [
        (&two, MethodSet::from([Method::PUT, Method::PATCH]), true),
        (&two, [Method::PUT, Method::DELETE].into(), false),
        (&two, all(), false),
        (&of_all, Method::PUT.into(), true),
        (&of_all, all(), true),
        (&of_all, Method::GET.into(), false),
    ] {
        let later = earlier
            .clone()
            .scope(methods.clone(), "/{o}/x", Scope::realm());
        assert_eq!(later.is_err(), is_hidden, "{methods}");
    }
    let both = two.scope([Method::PUT, Method::PATCH], "/{o}/x", Scope::realm());
    assert_eq!(
        both.unwrap_err().to_string(),
        "the rule `scope PUT, PATCH /{o}/x` cannot be used: it is never reached, because the \
         earlier rules `scope PUT /{o}/{*rest}` and `scope PATCH, POST /{o}/{*r}` take every \
         request that it is for; add it before those, or remove it"
    );
}

#[tokio::test]
async fn limits_count_only_for_the_plain_spelling_and_a_certain_method() {
    let header = HeaderName::from_static("x-method");
    let limits = |status| RouteLimits::new().busy_status(status).unwrap();
    let rules = LockRules::new()
        .limits(
            Method::POST,
            "/{owner}/{realm}/_batch",
            limits(StatusCode::LOCKED),
        )
        .and_then(|rules| {
            let limits = limits(StatusCode::CONFLICT);
            rules.limits(Method::POST, "/{owner}/{realm}/{*rest}", limits)
        })
        .unwrap()
        .method_override(header.clone(), [Method::POST]);
    let layer = layer(rules).map_locks(|locks| locks.acquire_timeout(Duration::ZERO));
    let (handler, mut gate) = gate();
    let held = patch(&layer, &handler, "/luke/a/x");
    let inside = gate.entered().await;
    for (method, path, overriding, expected) in [
        ("POST", "/luke/a/_batch", "", 423),
        ("POST", "/l%75ke/a/_batch", "", 423),
        ("POST", "/luke/a/c/d", "", 409),
        // The handler may be that of another route.
        ("POST", "/luke/a/%5Fbatch", "", 503),
        ("POST", "/luke/a/_batch/", "", 503),
        ("POST", "/luke/a", "", 503),
        ("PUT", "/luke/a/_batch", "", 503),
        ("POST", "/luke/a/_batch", "POST", 423),
        ("POST", "/luke/a/_batch", "PUT", 503),
        ("PUT", "/luke/a/_batch", "POST", 503),
        ("POST", "/luke/a/_batch", "A B", 503),
    ] {
        let mut request = Request::builder().method(method).uri(path);
        if !overriding.is_empty() {
            request = request.header(&header, overriding);
        }
        let request = request.body(String::new()).unwrap();
        let response = layer.layer(handler.clone()).oneshot(request).await.unwrap();
        assert_eq!(response.status(), expected, "{method} {path} {overriding}");
    }
    inside.answer(200);
    assert_eq!(answered(held).await.status(), 200);
}

#[test]
fn only_a_status_of_an_error_answers_for_a_busy_realm() {
    for status in [400, 409, 423, 429, 503, 599] {
        let status = StatusCode::from_u16(status).unwrap();
        assert!(RouteLimits::new().busy_status(status).is_ok(), "{status}");
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
    let with = |scope| {
        let rules = LockRules::new().scope(Method::POST, "/{owner}/{realm}/_atomic", scope);
        let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
        layer.rules(rules.unwrap())
    };
    for scope in [
        Scope::realm(),
        Scope::shared(),
        Scope::resource().named_by(str::to_owned),
        Scope::from_fn(async |_, _| Ok(None)),
    ] {
        assert!(with(scope.clone()).is_ok(), "{scope:?}");
    }
    for scope in [
        Scope::atomic_hrefs(),
        Scope::from_body_fn(async |_, _, _| Ok(None)),
    ] {
        let error = with(scope).unwrap_err().to_string();
        let part = "the scope of `POST /{owner}/{realm}/_atomic` needs the body of a request";
        assert!(error.starts_with(part), "{error}");
    }
}

#[tokio::test]
async fn a_rule_is_for_several_methods_or_for_all_that_are_not_safe() {
    let rules = LockRules::new()
        .scope(
            MethodSet::unsafe_methods(),
            "/{owner}/{realm}/log",
            Scope::shared(),
        )
        .and_then(|rules| rules.scope([Method::PUT, Method::PATCH], CARD, Scope::resource()))
        .unwrap();
    let layer = layer(rules);
    let (handler, mut gate) = gate();
    let frob = Method::from_bytes(b"FROB").unwrap();
    for (method, path, claim) in [
        (Method::PUT, "/luke/a/x", "http://realms.test/luke/a/ (x)"),
        (Method::PATCH, "/luke/a/x", "http://realms.test/luke/a/ (x)"),
        (Method::DELETE, "/luke/a/x", "http://realms.test/luke/a/"),
        (
            Method::DELETE,
            "/luke/a/log",
            "http://realms.test/luke/a/ (shared)",
        ),
        (frob, "/luke/a/log", "http://realms.test/luke/a/ (shared)"),
    ] {
        let write = send(&layer, &handler, method.clone(), path);
        let call = gate.entered().await;
        let held = call.held.as_ref().unwrap();
        assert_eq!(held.claim().to_string(), claim, "{method}");
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
}
