//! Requests that write different resources of a realm run side by side, however their resources are spelled; where it is not certain
//! which they write, they take the realm whole.

use std::convert::Infallible;

use axum::body::Body;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    Claim, HeldLock, LockRules, RealmBodyLockLayer, RealmBodyResolver, RealmError, RealmLocks,
    RealmPointers, RealmResolver, RealmUrl, RealmWriteLockLayer, RequestBody, Scope,
};

use crate::support::database::database;
use crate::support::gate::{gate, patch, realms, send};

const REALM: &str = "http://realms.test/luke/a/";

fn rules() -> LockRules {
    let by_header = Scope::from_fn(async |head, _| {
        let Some(cards) = head.headers().get("cards") else {
            return Ok(None);
        };
        let cards = cards.to_str().map_err(RealmError::unresolved)?;
        let cards = cards.split_whitespace().map(ToOwned::to_owned);
        Ok(Some(cards.collect()))
    });
    let by_body = Scope::from_body_fn(async |_, realm, body| {
        let body = std::str::from_utf8(&body).map_err(RealmError::unresolved)?;
        Ok(Some(vec![format!("{realm}{body}")]))
    });
    let without_json = |path: &str| path.strip_suffix(".json").unwrap_or(path).to_owned();
    LockRules::new()
        .scope(
            Method::POST,
            "/{owner}/{realm}/_atomic",
            Scope::atomic_hrefs(),
        )
        .and_then(|rules| rules.scope(Method::POST, "/{owner}/{realm}/_header", by_header))
        .and_then(|rules| rules.scope(Method::POST, "/{owner}/{realm}/_body", by_body))
        .and_then(|rules| rules.scope(Method::POST, "/{owner}/{realm}/_whole", Scope::realm()))
        .and_then(|rules| rules.scope(Method::POST, "/{owner}/{realm}/", Scope::resource()))
        .and_then(|rules| {
            let named = Scope::resource().named_by(without_json);
            rules.scope(Method::PUT, "/{owner}/{realm}/{*card}", named)
        })
        .and_then(|rules| rules.scope(Method::POST, "/{*card}", Scope::resource()))
        .and_then(|rules| rules.scope(Method::PATCH, "/{*card}", Scope::resource()))
        .unwrap()
        .max_resources(3)
}

fn layer() -> RealmBodyLockLayer {
    RealmWriteLockLayer::new(RealmLocks::in_process(), realms())
        .read_bodies(4096)
        .rules(rules())
}

fn request(method: &Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    request.body(body.into()).unwrap()
}

async fn claim(layer: &RealmBodyLockLayer, request: Request<Body>) -> Option<Claim> {
    let handler = service_fn(async |request: Request<RequestBody<Body>>| {
        let held: &HeldLock = request.extensions().get().unwrap();
        let mut response = Response::new(String::new());
        response.extensions_mut().insert(held.claim().clone());
        Ok::<_, Infallible>(response)
    });
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    response.extensions().get().cloned()
}

/// What a claim takes of the realm: `whole`, or the names of its resources.
fn part(claim: &Claim) -> String {
    let text = claim.to_string();
    match text.strip_prefix(REALM).expect("it is of this realm") {
        "" => "whole".into(),
        " (shared)" => String::new(),
        part => part.trim_matches([' ', '(', ')']).into(),
    }
}

fn atomic(hrefs: &[&str]) -> String {
    let operation = |href: &&str| json!({"op": "remove", "href": href});
    json!({"atomic:operations": hrefs.iter().map(operation).collect::<Vec<_>>()}).to_string()
}

#[tokio::test]
async fn a_path_names_one_resource_however_it_is_spelled() {
    for (method, path, expected) in [
        ("PATCH", "/luke/a/x", "x"),
        ("PATCH", "/luke/a/%78", "x"),
        ("PATCH", "/l%75ke/%61/x/", "x"),
        ("PATCH", "/luke/a/b%20c/%c3%bc", "b%20c/%C3%BC"),
        ("PATCH", "/luke/a/x.json", "x.json"),
        ("PUT", "/luke/a/x%2Ejson", "x"),
        ("PUT", "/luke/a/x", "x"),
        // It would be the name of nothing.
        ("PUT", "/luke/a/.json", "whole"),
        // A server may take it for `b/c`.
        ("PATCH", "/luke/a/b%2Fc", "whole"),
        ("PATCH", "/luke/a/b%5cc", "whole"),
        // It names no resource: the realm is shared.
        ("POST", "/luke/a/", ""),
        // No scope is configured.
        ("DELETE", "/luke/a/x", "whole"),
        // It is not certain that the handler takes these for their plain spelling.
        ("POST", "/luke/a/%5Fwhole", "whole"),
        ("POST", "/luke/a/_whole/", "whole"),
        ("POST", "/luke/a/%5Fatomic", "whole"),
        ("POST", "/luke/a/_atomic/", "whole"),
        ("POST", "/luke/a/_other", "_other"),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let claim = claim(&layer(), request(&method, path, Body::empty())).await;
        assert_eq!(part(&claim.unwrap()), expected, "{method} {path}");
    }
}

#[tokio::test]
async fn the_hrefs_of_an_atomic_document_are_its_resources() {
    let document = |operation: &str| format!(r#"{{"atomic:operations":[{operation}]}}"#);
    for (body, expected) in [
        (atomic(&["x"]), "x"),
        (atomic(&["x", "y/z.json", "%78"]), "x, y/z.json"),
        (atomic(&["x/"]), "x"),
        (atomic(&["a/b:c"]), "a/b:c"),
        (atomic(&["/luke/a/x"]), "x"),
        (atomic(&["http://Realms.test:80/l%75ke/a/x"]), "x"),
        (atomic(&[]), ""),
        // The ceiling is three, folded.
        (atomic(&["x", "y", "z", "x", "%78"]), "x, y, z"),
        (atomic(&["w", "x", "y", "z"]), "whole"),
        // Out of the realm, or the realm itself.
        (atomic(&["x", "../b/x"]), "whole"),
        (atomic(&["%2e%2e/b"]), "whole"),
        (atomic(&["./x"]), "whole"),
        (atomic(&["/luke/b/x"]), "whole"),
        (atomic(&["/luke/ab"]), "whole"),
        (atomic(&["http://realms.test/luke/b/x"]), "whole"),
        (atomic(&["http://evil.test/luke/a/x"]), "whole"),
        (atomic(&["https://realms.test/luke/a/x"]), "whole"),
        (atomic(&["//realms.test/luke/a/x"]), "whole"),
        (atomic(&["mailto:x"]), "whole"),
        (atomic(&[""]), "whole"),
        (atomic(&["/luke/a/"]), "whole"),
        (atomic(&[REALM]), "whole"),
        // Too long to be kept.
        (atomic(&[&"x".repeat(2049)]), "whole"),
        // Not certain.
        (atomic(&["x?y"]), "whole"),
        (atomic(&["x#y"]), "whole"),
        (atomic(&["x\ny"]), "whole"),
        (atomic(&["x y"]), "whole"),
        (atomic(&["x//y"]), "whole"),
        (atomic(&["x%2Fy"]), "whole"),
        (atomic(&["x\\y"]), "whole"),
        (document(r#"{"op":"add"}"#), "whole"),
        (document(r#"{"op":"add","href":1}"#), "whole"),
        (document(r#"{"href":"x","href":"y"}"#), "whole"),
        (
            document(r#"{"href":"x","ref":{"type":"card","id":"y"}}"#),
            "whole",
        ),
        (document(r#"{"href":"x","ref":null}"#), "whole"),
        (document(r#"{"href":"x"},null"#), "whole"),
        (document(r#"{"href":"x"},"#), "whole"),
        (r#"{"atomic:operations":{"href":"x"}}"#.into(), "whole"),
        (
            r#"{"atomic:operations":[{"href":"x"}],"atomic:operations":[]}"#.into(),
            "whole",
        ),
        ("{}".into(), "whole"),
        ("[]".into(), "whole"),
        (String::new(), "whole"),
    ] {
        let request = request(&Method::POST, "/luke/a/_atomic", body.clone());
        let claim = claim(&layer(), request).await;
        assert_eq!(part(&claim.unwrap()), expected, "{body}");
    }
}

#[tokio::test]
async fn a_scope_counts_for_the_plain_spelling_of_its_route_alone() {
    for (path, expected) in [
        ("/luke/a/_atomic", "x"),
        ("/%6cuke/a/_atomic", "x"),
        ("/luke/a/%5Fatomic", "whole"),
        ("/luke/a/_atomic/", "whole"),
    ] {
        let request = request(&Method::POST, path, atomic(&["x"]));
        let claim = claim(&layer(), request).await;
        assert_eq!(part(&claim.unwrap()), expected, "{path}");
    }
}

#[tokio::test]
async fn a_body_that_nobody_can_read_takes_the_realm_whole() {
    // In the second one the resolver has read the body already.
    let realm = RealmBodyResolver::from_body_fn(async |_, _| RealmUrl::parse(REALM));
    let reading = RealmBodyLockLayer::new(RealmLocks::in_process(), realm, 4096).rules(rules());
    for layer in [layer(), reading] {
        for (coding, expected) in [("identity", "x"), ("gzip", "whole")] {
            let mut encoded = request(&Method::POST, "/luke/a/_atomic", atomic(&["x"]));
            let coding = http::HeaderValue::from_static(coding);
            encoded.headers_mut().insert("content-encoding", coding);
            assert_eq!(part(&claim(&layer, encoded).await.unwrap()), expected);
        }
    }
    let not_text = request(&Method::POST, "/luke/a/_atomic", vec![b'"', 0xff, b'"']);
    assert_eq!(part(&claim(&layer(), not_text).await.unwrap()), "whole");
}

#[tokio::test]
async fn closures_name_resources_too() {
    for (cards, expected) in [
        (Some("x %79/z"), "x, y/z"),
        (Some(""), ""),
        (None, "whole"),
        (Some("x ../y"), "whole"),
        (Some("x http://realms.test/luke/a/%78"), "x"),
    ] {
        let mut request = request(&Method::POST, "/luke/a/_header", Body::empty());
        if let Some(cards) = cards {
            let cards = cards.parse().unwrap();
            request.headers_mut().insert("cards", cards);
        }
        let claim = claim(&layer(), request).await;
        assert_eq!(part(&claim.unwrap()), expected, "{cards:?}");
    }
    let request = request(&Method::POST, "/luke/a/_body", "%78");
    assert_eq!(part(&claim(&layer(), request).await.unwrap()), "x");
}

#[tokio::test]
async fn a_request_for_several_realms_takes_each_whole_and_one_found_elsewhere_is_looked_for_in_the_path()
 {
    let pointers = RealmPointers::new(["/a", "/b"]).unwrap();
    let closure = RealmResolver::from_fn(async |_| RealmUrl::parse(REALM));
    let realms = RealmBodyResolver::from(closure)
        .route(Method::PATCH, "/_both", pointers)
        .unwrap();
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 4096).rules(rules());
    let both = json!({"a": REALM, "b": "http://realms.test/luke/b/"}).to_string();
    let both = claim(&layer, request(&Method::PATCH, "/_both", both))
        .await
        .unwrap();
    assert_eq!(
        both.to_string(),
        "http://realms.test/luke/a/ and http://realms.test/luke/b/"
    );
    for (path, expected) in [
        ("/luke/%61/x", "x"),
        ("/luke/b/x", "whole"),
        ("/x", "whole"),
    ] {
        let claim = claim(&layer, request(&Method::PATCH, path, Body::empty())).await;
        assert_eq!(part(&claim.unwrap()), expected, "{path}");
    }
}

/// The same resource as a path and as an href, each in a spelling of its own.
fn spellings() -> impl Strategy<Value = (String, String)> {
    const SPELLINGS: &[&[&str]] = &[
        &["a", "%61"],
        &["B", "%42"],
        &["-", "%2D", "%2d"],
        &["~", "%7E"],
        &["ü", "%C3%BC", "%c3%bc"],
        &["%20"],
        &["+", "%2B"],
        &["@", "%40"],
        &["=", "%3D"],
        &["%3F", "%3f"],
        &["%25"],
        &["%2561"],
        &["'", "%27"],
        &["|", "%7C", "%7c"],
    ];
    let piece = (0..SPELLINGS.len(), 0..6_usize, 0..6_usize);
    let segment = prop::collection::vec(piece, 1..4);
    let segments = prop::collection::vec(segment, 1..4);
    (segments, 0..3_usize, any::<[bool; 2]>()).prop_map(|(segments, form, slashes)| {
        let spelled = |pick: fn(usize, usize) -> usize, slash: bool| {
            let segments = segments.iter().map(|pieces| {
                let pieces = pieces.iter().map(|(kind, one, other)| {
                    let spellings = SPELLINGS[*kind];
                    spellings[pick(*one, *other) % spellings.len()]
                });
                pieces.collect::<String>()
            });
            let segments: Vec<String> = segments.collect();
            format!("{}{}", segments.join("/"), if slash { "/" } else { "" })
        };
        let path = spelled(|one, _| one, slashes[0]);
        let href = spelled(|_, other| other, slashes[1]);
        let form = ["", "/luke/%61/", "HTTP://realms.test:80/luke/a/"][form];
        (format!("/luke/a/{path}"), format!("{form}{href}"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_resource_is_one_whether_a_path_or_an_href_names_it((path, href) in spellings()) {
        // What no HTTP server lets in is nobody's concern.
        prop_assume!(path.parse::<http::Uri>().is_ok());
        let claims = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let by_path = claim(&layer(), request(&Method::PATCH, &path, Body::empty())).await;
            let by_href = claim(&layer(), request(&Method::POST, "/luke/a/_atomic", atomic(&[&href]))).await;
            (by_path.unwrap(), by_href.unwrap())
        });
        prop_assert_eq!(&claims.0, &claims.1);
        prop_assert_ne!(part(&claims.0), "whole");
    }
}

#[tokio::test]
async fn two_resources_are_written_side_by_side_and_the_realm_excludes_both() {
    let database = database().await;
    let postgres = async || {
        let locks = RealmLocks::postgres(database.url()).await.unwrap();
        RealmBodyLockLayer::new(locks, realms(), 4096).rules(rules())
    };
    let in_process = layer();
    for (name, one, two) in [
        ("in process", in_process.clone(), in_process),
        ("two replicas", postgres().await, postgres().await),
    ] {
        let (handler, mut gate) = gate();
        let x = patch(&one, &handler, "/luke/a/x");
        let in_x = gate.entered().await;
        let y = patch(&two, &handler, "/luke/a/y");
        let in_y = gate.entered().await;
        let other_x = patch(&two, &handler, "/luke/a/%78");
        let whole = send(&one, &handler, Method::DELETE, "/luke/a/x");
        // Another realm's write comes in and ends meanwhile.
        let other = patch(&two, &handler, "/luke/b/x");
        let call = gate.entered().await;
        assert_eq!(call.path, "/luke/b/x", "{name}");
        call.answer(200);
        other.await.unwrap().unwrap();
        assert!(gate.is_empty(), "{name}");

        in_y.answer(200);
        y.await.unwrap().unwrap();
        assert!(gate.is_empty(), "{name}");
        in_x.answer(200);
        x.await.unwrap().unwrap();
        let last = gate.entered().await;
        assert!(gate.is_empty(), "{name}: both at once");
        last.answer(200);
        gate.entered().await.answer(200);
        for write in [other_x, whole] {
            assert_eq!(write.await.unwrap().unwrap().status(), 200, "{name}");
        }
    }
}

#[tokio::test]
async fn a_scope_changes_nothing_of_what_is_locked() {
    let rules = LockRules::new()
        .exempt(Method::POST, "/{owner}/{realm}/_search")
        .and_then(|rules| rules.scope(Method::POST, "/{*rest}", Scope::resource()))
        .and_then(|rules| rules.scope(Method::GET, "/{*rest}", Scope::resource()))
        .unwrap();
    assert!(!rules.locks(&Method::POST, "/luke/a/_search"));
    assert!(!rules.locks(&Method::GET, "/luke/a/x"));
    let layer = layer().rules(rules);
    let handler = service_fn(async |request: Request<RequestBody<Body>>| {
        assert!(request.extensions().get::<HeldLock>().is_none());
        Ok::<_, Infallible>(Response::new(Body::empty()))
    });
    for (method, path) in [
        (Method::POST, "/luke/a/_search"),
        (Method::GET, "/luke/a/x"),
    ] {
        let request = request(&method, path, Body::empty());
        let response = layer.layer(handler).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
}
