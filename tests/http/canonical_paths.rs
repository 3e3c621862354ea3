//! Every spelling of a realm that a router takes for the same realm has one key; what could be another path is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::Path;
use axum::routing::{patch, post};
use axum::{Json, Router};
use http::{Request, StatusCode};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tower::ServiceExt;
use tower_realm_lock::{LockKey, RealmLocks, RealmWriteLockLayer};

use crate::support::gate::realms;

/// A router that answers with the realm parameters as axum reads them, and counts its calls.
fn router(calls: &Arc<AtomicUsize>) -> Router {
    let count = || {
        let calls = Arc::clone(calls);
        move || calls.fetch_add(1, Ordering::SeqCst)
    };
    let (in_card, in_realm) = (count(), count());
    let card = async move |Path((owner, realm, _)): Path<(String, String, String)>| {
        in_card();
        Json((owner, realm))
    };
    let create = async move |Path((owner, realm)): Path<(String, String)>| {
        in_realm();
        Json((owner, realm))
    };
    Router::new()
        .route("/{owner}/{realm}/{*path}", patch(card))
        .route("/{owner}/{realm}/", post(create))
}

async fn send(router: Router, method: &str, path: &str) -> (StatusCode, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(axum::body::Body::empty())
        .expect("a request");
    let response = router.oneshot(request).await.expect("infallible");
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 64 * 1024).await;
    let body = body.expect("a small body").to_vec();
    (status, String::from_utf8(body).expect("text"))
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// Pieces of a path segment; each line spells one piece in its ways.
const SPELLINGS: &[&[&str]] = &[
    &["a", "%61"],
    &["A", "%41"],
    &["-", "%2D", "%2d"],
    &["~", "%7E", "%7e"],
    &["ü", "%C3%BC", "%c3%bc"],
    &["u%CC%88"],
    &["%20"],
    &["+", "%2B"],
    &["&", "%26"],
    &[";v=1", "%3Bv=1"],
    &["|", "%7C"],
    &["%25"],
    &["%2561", "%25%36%31"],
    &[".", "%2e", "%2E"],
    &["..", ".%2e"],
    &["%2F", "%2f"],
    &["\\", "%5C"],
    &["%00"],
    &["%FF"],
    &["%"],
    &["%zz"],
    &[""],
];

/// One segment in two spellings, now and then with other pieces in the second. Most pieces are harmless.
fn segments() -> impl Strategy<Value = [String; 2]> {
    let kind = || prop_oneof![12 => 0..12_usize, 1 => 0..SPELLINGS.len()];
    let piece = (
        kind(),
        prop::option::weighted(0.1, kind()),
        0..6_usize,
        0..6_usize,
    );
    prop::collection::vec(piece, 1..4).prop_map(|pieces| {
        let mut texts = [String::new(), String::new()];
        for (kind, other, one, two) in pieces {
            for (text, kind, spelling) in [(0, kind, one), (1, other.unwrap_or(kind), two)] {
                let spellings = SPELLINGS[kind];
                texts[text].push_str(spellings[spelling % spellings.len()]);
            }
        }
        texts
    })
}

/// Two paths of cards, often of one realm.
fn paths() -> impl Strategy<Value = [String; 2]> {
    (segments(), segments(), segments()).prop_map(|(owners, realms, cards)| {
        [0, 1].map(|n| format!("/{}/{}/{}", owners[n], realms[n], cards[n]))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn two_paths_have_one_key_just_where_axum_routes_them_to_one_realm(paths in paths()) {
        // Paths that no HTTP server lets in are nobody's concern.
        prop_assume!(paths.iter().all(|path| path.parse::<http::Uri>().is_ok()));
        let routed = paths.each_ref().map(|path| run(send(router(&Arc::default()), "PATCH", path)));
        let keys = paths.each_ref().map(|path| realms().resolve(path).map(|realm| LockKey::of(&realm)));
        if let ([(StatusCode::OK, one), (StatusCode::OK, two)], [Ok(first), Ok(second)]) = (&routed, &keys) {
            prop_assert_eq!(one == two, first == second, "{:?} {:?}", routed, keys);
        }
    }

    #[test]
    fn a_refused_path_is_400_and_never_reaches_the_handler([path, _] in paths()) {
        prop_assume!(path.parse::<http::Uri>().is_ok());
        let refused = realms().resolve(&path).is_err();
        let calls = Arc::default();
        let app = router(&calls).layer(RealmWriteLockLayer::new(RealmLocks::in_process(), realms()));
        let (status, body) = run(send(app, "PATCH", &path));
        if refused {
            prop_assert_eq!(status, StatusCode::BAD_REQUEST);
            prop_assert!(body.contains("#realm-unresolved"), "{}", body);
            prop_assert_eq!(calls.load(Ordering::SeqCst), 0);
        } else {
            prop_assert!(!body.contains("#realm-unresolved"), "{}", body);
        }
    }
}

/// The properties above say nothing unless paths meet, differ and are refused often enough.
#[test]
fn the_paths_of_the_properties_are_of_every_kind() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut met, mut apart, mut refused) = (0, 0, 0);
    for _ in 0..2000 {
        let [one, two] = paths().new_tree(&mut runner).unwrap().current();
        match [&one, &two].map(|path| realms().resolve(path)) {
            [Ok(first), Ok(second)] if first == second => met += usize::from(one != two),
            [Ok(_), Ok(_)] => apart += 1,
            _ => refused += 1,
        }
    }
    assert!(
        met > 200 && apart > 200 && refused > 200,
        "{met} {apart} {refused}"
    );
}

#[tokio::test]
async fn ambiguous_paths_are_refused_and_plain_ones_are_not() {
    let calls: Arc<AtomicUsize> = Arc::default();
    let app = router(&calls).layer(RealmWriteLockLayer::new(RealmLocks::in_process(), realms()));
    for path in [
        "/",
        "/luke",
        "//luke/a/card",
        "/luke//a/card",
        "/luke/a//card",
        "/luke/../a/card",
        "/luke/%2e%2e/card",
        "/luke/a/../../x/b/card",
        "/luke/a/..%2f..%2fb",
        "/luke/a%2Fb/card",
        "/luke/a%5cb/card",
        "/luke/a%00/card",
        "/luke/%FF/card",
        "/luke/%C0%AE%C0%AE/card",
        "/luke/a%0d%0a/card",
        "/luke/%zz/card",
    ] {
        let (status, _) = send(app.clone(), "PATCH", path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);

    for path in [
        "/luke/a/card",
        "/l%75ke/%61/card",
        "/luke/a/x/y.json",
        "/luke/a/...",
        "/luke/a/b%2Fc",
    ] {
        let (status, realm) = send(app.clone(), "PATCH", path).await;
        assert_eq!(
            (status, &*realm),
            (StatusCode::OK, r#"["luke","a"]"#),
            "{path}"
        );
    }
    assert_eq!(calls.load(Ordering::SeqCst), 5);
}
