//! Realms are found in the path, in a list that changes, in the body and by closures, each for its routes; several are locked
//! together.

use std::convert::Infallible;
use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::poll_fn;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_realm_lock::{
    Claim, LockKey, RealmBodyLockLayer, RealmBodyResolver, RealmError, RealmLocks, RealmMounts,
    RealmPointers, RealmResolver, RealmUrl, RequestBody, RequestHead,
};

use crate::support::decided::decided;
use crate::support::gate::{Gate, Gated, Outcome, answered, code, gate, patch, queue, realms};

fn url(url: &str) -> RealmUrl {
    RealmUrl::parse(url).unwrap()
}

fn layer(realms: impl Into<RealmBodyResolver>) -> RealmBodyLockLayer {
    RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 4096)
}

/// Sends a request with a body on a task.
fn post(
    layer: &RealmBodyLockLayer,
    handler: &Gated,
    path: &str,
    body: impl Into<String>,
) -> JoinHandle<Outcome> {
    let request = Request::post(path).body(body.into()).unwrap();
    let service = layer.layer(handler.clone());
    tokio::spawn(async move {
        let (head, body) = service.oneshot(request).await?.into_parts();
        let body = body.collect().await.expect("it ends well").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        Ok(Response::from_parts(head, body))
    })
}

/// The claim of the next call, which is let go.
async fn claim_of_next(gate: &mut Gate) -> String {
    let call = gate.entered().await;
    let held = call.held.clone().expect("it is locked");
    call.answer(200);
    held.claim().to_string()
}

fn by_route() -> RealmBodyResolver {
    let publish = RealmPointers::new(["/sourceRealmURL", "/publishedRealmURL"]).unwrap();
    let tenant = RealmResolver::from_fn(|head| async move {
        tokio::task::yield_now().await;
        let tenant = head.headers().get("tenant");
        let tenant = tenant.ok_or(RealmError::unresolved("no\ntenant"))?;
        let tenant = tenant.to_str().map_err(RealmError::unresolved)?;
        url("http://tenants.test").join([tenant])
    });
    RealmBodyResolver::from(realms())
        .route(Method::POST, "/_publish-realm", publish)
        .and_then(|realms| realms.route(Method::POST, "/_tenant/{*rest}", tenant.clone()))
        .and_then(|realms| realms.route(Method::POST, "/{owner}/{realm}/", tenant))
        .unwrap()
}

const PUBLISH: &str = r#"{"sourceRealmURL":"http://realms.test/luke/a/","publishedRealmURL":"http://realms.test/luke/b/"}"#;

#[tokio::test]
async fn the_first_route_that_fits_decides_and_else_the_base() {
    let (handler, mut gate) = gate();
    let layer = layer(by_route());
    for (path, body, claim) in [
        ("/luke/a/x", "{}", "http://realms.test/luke/a/"),
        (
            "/_publish-realm",
            PUBLISH,
            "http://realms.test/luke/a/ and http://realms.test/luke/b/",
        ),
    ] {
        let sent = post(&layer, &handler, path, body);
        assert_eq!(claim_of_next(&mut gate).await, claim, "{path}");
        sent.await.unwrap().unwrap();
    }
    let request = Request::post("/_tenant/x").header("tenant", "acme");
    let request = request.body(String::new()).unwrap();
    let sent = tokio::spawn(layer.layer(handler).oneshot(request));
    assert_eq!(claim_of_next(&mut gate).await, "http://tenants.test/acme/");
    sent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_path_that_other_readers_take_for_another_route_is_refused() {
    let (handler, mut gate) = gate();
    let layer = layer(by_route());
    for path in [
        // Only decoded, resolved, or without its last slash it is the route.
        "/%5Fpublish-realm",
        "/_publish-realm/",
        "/./_publish-realm",
        "/luke/a/..%2F..%2F_publish-realm",
        // Only to the letter it is the route.
        "/_tenant/..%2Fluke%2Fa",
        "/_tenant/x/../../luke/a",
        // So it is with a slash at its end.
        "/luke/a",
        "/luke/./a/",
    ] {
        let response = answered(post(&layer, &handler, path, PUBLISH)).await;
        assert_eq!(code(&response), "realm-unresolved", "{path}");
        let reason = "in another spelling it is a route";
        assert!(response.body().contains(reason), "{}", response.body());
    }
    // However it is read, it is the same route.
    let request = Request::post("/_tenant/x%2Fy").header("tenant", "acme");
    let request = request.body(String::new()).unwrap();
    let sent = tokio::spawn(layer.layer(handler).oneshot(request));
    assert_eq!(claim_of_next(&mut gate).await, "http://tenants.test/acme/");
    sent.await.unwrap().unwrap();
}

#[tokio::test]
async fn several_realms_are_locked_as_a_whole_and_together() {
    let (handler, mut gate) = gate();
    let layer = layer(by_route());
    let publish = post(&layer, &handler, "/_publish-realm", PUBLISH);
    let inside = gate.entered().await;
    assert_eq!(inside.held.as_ref().unwrap().realms().len(), 2);
    let waiting = ["/luke/a/x", "/luke/b/x"].map(|path| queue(&layer, &handler, path));
    let other = patch(&layer, &handler, "/luke/c/x");
    let call = gate.entered().await;
    assert_eq!(call.path, "/luke/c/x");
    call.answer(200);
    other.await.unwrap().unwrap();
    assert!(gate.is_empty());
    inside.answer(200);
    publish.await.unwrap().unwrap();
    for _ in &waiting {
        gate.entered().await.answer(200);
    }
    for write in waiting {
        write.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_realm_that_cannot_be_told_is_refused_with_a_reason_that_is_escaped() {
    let (handler, _gate) = gate();
    let layer = layer(by_route());
    let hostile = "x\"\n\u{1b}[31m</script>";
    let body = json!({"sourceRealmURL": hostile, "publishedRealmURL": hostile}).to_string();
    for (path, body, reason) in [
        ("/_publish-realm", "", "not JSON"),
        ("/_publish-realm", "{}", "/sourceRealmURL"),
        ("/_publish-realm", &body, r"</script>"),
        (
            "/_publish-realm",
            r#"{"sourceRealmURL":"http://h/a/","sourceRealmURL":"http://h/b/","publishedRealmURL":"http://h/c/"}"#,
            "twice",
        ),
        ("/_tenant/x", "", r"no\ntenant"),
        ("/luke", "", "/{owner}/{realm}"),
    ] {
        let response = answered(post(&layer, &handler, path, body)).await;
        assert_eq!(response.status(), 400, "{path}");
        assert_eq!(code(&response), "realm-unresolved");
        let problem: Value = serde_json::from_str(response.body()).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(reason), "{path}: {detail}");
        assert!(!detail.contains(char::is_control), "{detail:?}");
    }
}

#[tokio::test]
async fn a_list_can_change_under_a_running_layer() {
    let mounts = RealmMounts::new([url("http://realms.test/base/")]).unwrap();
    let layer = layer(mounts.clone());
    let (handler, mut gate) = gate();
    let old = patch(&layer, &handler, "/base/skills/1");
    let inside = gate.entered().await;
    assert_eq!(
        inside.held.as_ref().unwrap().realms(),
        [url("http://realms.test/base/")]
    );
    mounts
        .insert(&url("http://realms.test/base/skills/"))
        .unwrap();
    // The old call keeps the lock that it has; the next one takes the new realm's.
    let new = patch(&layer, &handler, "/base/skills/1");
    assert_eq!(
        claim_of_next(&mut gate).await,
        "http://realms.test/base/skills/"
    );
    new.await.unwrap().unwrap();
    inside.answer(200);
    old.await.unwrap().unwrap();
    mounts.set([]).unwrap();
    let response = answered(patch(&layer, &handler, "/base/x")).await;
    assert_eq!(code(&response), "realm-unresolved");
}

#[tokio::test]
async fn a_realm_in_the_path_is_found_when_the_call_is_made() {
    let mounts = RealmMounts::new([url("http://realms.test/base/")]).unwrap();
    let (handler, mut gate) = gate();
    let mut service = layer(mounts.clone()).layer(handler);
    let request = Request::patch("/base/skills/1")
        .body(String::new())
        .unwrap();
    // Its handler is ready at once.
    let call = service.call(request);
    mounts
        .insert(&url("http://realms.test/base/skills/"))
        .unwrap();
    let sent = tokio::spawn(call);
    assert_eq!(claim_of_next(&mut gate).await, "http://realms.test/base/");
    sent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_closure_may_find_none_or_fail() {
    let (handler, _gate) = gate();
    let none = layer(RealmResolver::from_fn(async |_| {
        Claim::of_realms::<RealmUrl>([])
    }));
    let response = answered(patch(&none, &handler, "/x")).await;
    assert_eq!(
        (response.status().as_u16(), &*code(&response)),
        (400, "realm-unresolved")
    );
    let down = layer(RealmBodyResolver::from_body_fn(async |_, _| {
        Err::<Claim, _>(RealmError::unavailable("db.internal is down"))
    }));
    let response = answered(patch(&down, &handler, "/x")).await;
    assert_eq!(
        (response.status().as_u16(), &*code(&response)),
        (503, "realm-unavailable")
    );
    assert!(response.headers().contains_key("retry-after"));
    assert!(
        !response.body().contains("db.internal"),
        "{}",
        response.body()
    );
}

#[tokio::test]
async fn a_closure_reads_the_body_that_the_handler_gets() {
    let realms = RealmBodyResolver::from_body_fn(async |head, body| {
        RealmUrl::parse(&format!("http://realms.test{}/{}", head.path(), body.len()))
    });
    let handler = service_fn(async |request: Request<RequestBody<String>>| {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let request = Request::post("/x").body("four".to_owned()).unwrap();
    let response = layer(realms).layer(handler).oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "four");
}

#[tokio::test]
async fn a_closure_that_panics_leaves_nothing_held() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let panicking = RealmResolver::from_fn(move |_| {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        assert!(call > 0, "as the test asked, before its future");
        async move {
            assert!(call > 1, "as the test asked, in its future");
            Ok(url("http://realms.test/luke/a/"))
        }
    });
    let layer = layer(panicking);
    let (handler, mut gate) = gate();
    for _ in 0..2 {
        let request = Request::patch("/x").body(String::new()).unwrap();
        let call = layer.layer(handler.clone()).oneshot(request);
        assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    }
    let next = patch(&layer, &handler, "/x");
    assert_eq!(claim_of_next(&mut gate).await, "http://realms.test/luke/a/");
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn looking_up_takes_no_permit_of_the_inner_service() {
    let asked = Arc::new(Semaphore::new(0));
    let told = Arc::clone(&asked);
    let endless = RealmResolver::from_fn(move |_| {
        told.add_permits(1);
        pending::<Result<Claim, _>>()
    });
    let limited = ServiceBuilder::new()
        .layer(layer(endless))
        .layer(GlobalConcurrencyLimitLayer::new(1))
        .service(service_fn(async |_: Request<RequestBody<String>>| {
            Ok::<_, Infallible>(Response::new(String::new()))
        }));
    let mut first = limited.clone();
    let request = |method| {
        Request::builder()
            .method(method)
            .uri("/x")
            .body(String::new())
    };
    let call = first.ready().await.unwrap().call(request("PATCH").unwrap());
    let call = tokio::spawn(call);
    let _ = asked.acquire().await.unwrap();
    let mut second = limited.clone();
    poll_fn(|cx: &mut Context<'_>| match second.poll_ready(cx) {
        Poll::Ready(ready) => Poll::Ready(ready),
        Poll::Pending => panic!("the permit is taken"),
    })
    .await
    .unwrap();
    let response = second.call(request("GET").unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    call.abort();
}

fn mounts<const N: usize>(urls: [&str; N]) -> RealmMounts {
    RealmMounts::new(urls.map(url)).unwrap()
}

#[test]
fn of_mounted_realms_the_longest_beginning_counts_segment_by_segment() {
    let below = mounts(["http://h/a/", "http://h/a/b/c/", "http://h/%C3%BC/"]);
    let root = mounts(["http://h/", "http://h/a/", "http://h/a/b/"]);
    for (mounts, path, realm) in [
        (&below, "/a", "http://h/a/"),
        (&below, "/a/", "http://h/a/"),
        (&below, "/a/b", "http://h/a/"),
        (&below, "/a/b/cc", "http://h/a/"),
        (&below, "/a/b/c", "http://h/a/b/c/"),
        (&below, "/%61/b/%63/d/", "http://h/a/b/c/"),
        (&below, "/%c3%bc/x", "http://h/%C3%BC/"),
        (&below, "/ü/x", "http://h/%C3%BC/"),
        (&root, "/", "http://h/"),
        (&root, "/b/c", "http://h/"),
        (&root, "/a/c", "http://h/a/"),
        // However it is split, it is in the same realm.
        (&root, "/a/b/x%2Fy", "http://h/a/b/"),
    ] {
        assert_eq!(mounts.resolve(path).unwrap().as_str(), realm, "{path}");
    }
    for path in ["/", "/aa", "/b", "/A/x"] {
        let error = below.resolve(path).unwrap_err();
        assert!(matches!(error, RealmError::NotMounted { .. }), "{path}");
    }
    for path in [
        "/a//b/x",
        "/a/../b",
        "/a/%2e%2e/b",
        "/a%2Fb/x",
        "/a/b%5Cx",
        "/a/b%2F",
    ] {
        let error = root.resolve(path).unwrap_err();
        let is_ambiguous = matches!(error, RealmError::AmbiguousPath { .. });
        assert!(is_ambiguous, "{path}: {error}");
    }
}

#[test]
fn every_clone_sees_a_change_and_two_realms_at_one_path_change_nothing() {
    let mounts = mounts(["http://h/a/"]);
    let clone = mounts.clone();
    let below = url("http://h/a/b/");
    assert!(clone.insert(&below).unwrap());
    assert!(!clone.insert(&below).unwrap());
    assert_eq!(mounts.resolve("/a/b/x").unwrap(), below);
    assert!(!clone.remove(&url("http://other/a/b/")));
    assert!(clone.remove(&below));
    assert_eq!(mounts.resolve("/a/b/x").unwrap(), url("http://h/a/"));
    let other = url("http://other/a/");
    let error = mounts.insert(&other).unwrap_err().to_string();
    assert!(error.contains("http://h/a/"), "{error}");
    let taken = [url("http://h/b/"), other, url("http://h/a/")];
    assert!(mounts.set(taken).is_err());
    assert_eq!(mounts.list(), [url("http://h/a/")]);
    mounts.set([url("http://h/c/")]).unwrap();
    assert_eq!(clone.list(), [url("http://h/c/")]);
}

/// What a request with this body locks.
async fn named_in_body(pointers: &[&str], body: &str) -> String {
    let layer = layer(RealmPointers::new(pointers).unwrap());
    let request = Request::post("/").body(body.to_owned()).unwrap();
    decided(&layer, request).await
}

#[tokio::test]
async fn each_pointer_into_a_body_leads_to_a_realm_or_says_why_not() {
    let both = "http://h/a/ and http://h/b/";
    for (pointers, body, expected) in [
        (
            &["/s", "/data/t~0~1/1"][..],
            r#"{"s":"http://H/a","data":{"t~/":["x","http://h/%62/"]}}"#,
            both,
        ),
        (&[""], r#""http://h/a""#, "http://h/a/"),
        (
            &["/~01"],
            r#"{"~1":"http://h/a","/":"http://h/b"}"#,
            "http://h/a/",
        ),
        (&["/"], r#"{"":"http://h/a"}"#, "http://h/a/"),
        (&["/1"], r#"{"1":"http://h/a"}"#, "http://h/a/"),
        // What stands twice beside the way does not count.
        (&["/s"], r#"{"c":1,"s":"http://h/a","c":2}"#, "http://h/a/"),
    ] {
        assert_eq!(named_in_body(pointers, body).await, expected, "{body}");
    }
    let long = format!(r#"{{"s":"http://h/{}"}}"#, "a".repeat(3000));
    for (pointer, body, reason) in [
        ("/s", r#"{"t":"http://h/a"}"#, "`/s`"),
        ("/s", r#"{"s":1}"#, "must be a string"),
        ("/s", r#"{"s":null}"#, "must be a string"),
        ("/s", r#"{"s":["http://h/a"]}"#, "must be a string"),
        ("/s", r#"{"s":{"s":"http://h/a"}}"#, "must be a string"),
        ("/s/t", r#"{"s":"http://h/a"}"#, "is missing"),
        ("/01", r#"["http://h/a","http://h/b"]"#, "is missing"),
        ("/-", r#"["http://h/a"]"#, "is missing"),
        ("/s", r#"{"s":"a","s":"b"}"#, "twice"),
        ("/s/t", r#"{"s":{"t":"http://h/a"},"s":{}}"#, "twice"),
        ("/s/t", r#"{"s":{"t":"a","\u0074":"a"}}"#, "twice"),
        ("/s/t", r#"{"s":{"t":"a"},"s":1,"s":{"t":"a"}}"#, "twice"),
        ("/s", r#"{"s":"/luke/a/"}"#, "`/luke/a/` is not a realm URL"),
        ("/s", r#"{"s":"x\u001b[31m\n`</script>"}"#, r"x\u{1b}[31m\n"),
        ("/s", r#"{"s":"http://h/a/../b/"}"#, "dot segment"),
        ("/s", "{", "not JSON"),
        ("/s", "", "not JSON"),
        ("/s", "\u{feff}{}", "not JSON"),
        ("/s", r#"{"s":"http://h/a"} x"#, "not JSON"),
        ("/s", "{\"s\":'secret'}", "not JSON"),
        ("/s", &long, "too many"),
    ] {
        let refused = named_in_body(&[pointer], body).await;
        let is_refused = refused.starts_with("refused: ") && refused.contains(reason);
        assert!(is_refused, "{body}: {refused}");
        assert!(!refused.contains(char::is_control), "{refused:?}");
        assert!(refused.len() < 500 && !refused.contains("secret"));
    }
    for pointer in ["s", "s/t", "/~", "/a~2b", "#/s"] {
        let error = RealmPointers::new([pointer]).unwrap_err().to_string();
        assert!(error.contains(&format!("`{pointer}`")), "{error}");
    }
    assert!(RealmPointers::new::<&str>([]).is_err());
}

#[tokio::test]
async fn a_body_with_an_encoding_is_not_looked_into() {
    let layer = layer(RealmPointers::new(["/s"]).unwrap());
    for (encodings, expected) in [
        (&["Identity"][..], "http://h/a/"),
        (&["Identity", "gzip"], "the Content-Encoding `gzip`"),
    ] {
        let mut request = Request::post("/");
        for encoding in encodings {
            request = request.header("content-encoding", *encoding);
        }
        let request = request.body(r#"{"s":"http://h/a"}"#.to_owned()).unwrap();
        let decision = decided(&layer, request).await;
        assert!(decision.contains(expected), "{decision}");
    }
    let body = Full::from(&b"{\"x\":\"\xff\",\"s\":\"http://h/a\"}"[..]);
    let refused = decided(&layer, Request::post("/").body(body).unwrap()).await;
    assert!(refused.contains("it is not UTF-8"), "{refused}");
}

#[tokio::test]
async fn an_extension_that_is_missing_is_named() {
    let by_id = RealmResolver::from_extension(|id: &u8| LockKey::in_space("tenant", id));
    let layer = layer(by_id);
    let mut request = Request::post("/").body(String::new()).unwrap();
    let refused = decided(&layer, request.clone()).await;
    assert!(refused.contains("no extension `u8`"), "{refused}");
    request.extensions_mut().insert(7_u8);
    let key = LockKey::in_space("tenant", 7).unwrap();
    assert_eq!(decided(&layer, request).await, format!("lock key {key}"));
}

#[tokio::test]
async fn a_header_is_read_as_it_is_and_white_space_is_no_part_of_a_name() {
    let name = HeaderName::from_static("x-tenant");
    let tenant = |id: &str| LockKey::in_space("tenant", id);
    let layer = layer(RealmResolver::from_header(name.clone(), tenant));
    let read = async |value: &str| {
        let mut request = Request::post("/").body(String::new()).unwrap();
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        request.headers_mut().insert(&name, value);
        decided(&layer, request).await
    };
    let key = LockKey::in_space("tenant", "büro 1").unwrap();
    assert_eq!(read("büro 1").await, format!("lock key {key}"));
    for value in [" ", " a", "a "] {
        let refused = read(value).await;
        assert!(refused.contains("white space"), "{value:?}: {refused}");
    }
}

#[test]
fn what_is_shown_of_a_resolver_and_of_a_request_is_no_secret() {
    let tenant = |id: &str| LockKey::in_space("tenant", id);
    let realms = RealmResolver::from_header(HeaderName::from_static("x-tenant"), tenant)
        .route(
            Method::PUT,
            "/x",
            RealmResolver::from_extension(move |id: &String| tenant(id)),
        )
        .unwrap();
    let shown = format!("{realms:?}");
    for place in [
        "the header `x-tenant`",
        "the extension `alloc::string::String`",
    ] {
        assert!(shown.contains(place), "{shown}");
    }
    let request = Request::put("https://h.example/luke/a?token=hunter2")
        .header("authorization", "Bearer hunter2")
        .header("cookie", "session=hunter2")
        .extension("hunter2");
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let shown = format!("{:?}", RequestHead::from(parts));
    assert!(!shown.contains("hunter2"), "{shown}");
    for part in ["PUT", "/luke/a", "authorization", "cookie", "HTTP/1.1"] {
        assert!(shown.contains(part), "{shown}");
    }
}
