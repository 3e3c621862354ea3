//! The public items have the traits that an application expects of them, handlers take their hold as an
//! argument, and what is written to a file or a message is read back.

use std::collections::HashSet;
use std::fmt::{Debug, Display};
use std::hash::Hash;

use axum::Router;
use axum::body::Body;
use axum::routing::patch;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    BodyError, Claim, ClaimStatus, ConfigError, Explanation, FencingToken, HeldLock, HeldTask,
    HoldUntil, Limits, LockBody, LockError, LockKey, LockRules, LockTransaction, MethodSet,
    OnDisconnect, PathProblem, PeerAddr, PostgresBuilder, RealmBodyLock, RealmBodyLockLayer,
    RealmBodyResolver, RealmError, RealmEvent, RealmLocks, RealmMounts, RealmPaths, RealmPointers,
    RealmResolver, RealmUrl, RealmWrite, RealmWriteLock, RealmWriteLockLayer, RealmWrites,
    Rejection, RequestBody, RequestHead, RequestOrigin, ResponseFuture, RouteLimits, Scope,
    Success, TransactionClient, TrustedProxies, UnixPeer, Unresolved,
};

use crate::support::gate::realms;

fn shared<T: Send + Sync + Unpin + Debug + 'static>() {}
fn value<T: Clone + Send + Sync + Unpin + Debug + 'static>() {}
fn key<T: Copy + Ord + Hash + Display>() {}
fn error<T: std::error::Error + Clone + Send + Sync + 'static>() {}

#[test]
fn public_types_have_the_traits_that_applications_expect() {
    value::<RealmWriteLockLayer>();
    value::<RealmBodyLockLayer>();
    value::<RealmWriteLock<()>>();
    value::<RealmBodyLock<()>>();
    value::<RealmLocks>();
    value::<PostgresBuilder>();
    value::<HeldLock>();
    value::<LockTransaction>();
    value::<Claim>();
    value::<ClaimStatus>();
    value::<RealmUrl>();
    value::<RealmPaths>();
    value::<RealmMounts>();
    value::<RealmPointers>();
    value::<RealmResolver>();
    value::<RealmBodyResolver>();
    value::<RequestHead>();
    value::<RequestOrigin>();
    value::<TrustedProxies>();
    value::<PeerAddr>();
    value::<UnixPeer>();
    value::<LockRules>();
    value::<RouteLimits>();
    value::<MethodSet>();
    value::<Scope>();
    value::<Explanation>();
    value::<Unresolved>();
    value::<HoldUntil>();
    value::<OnDisconnect>();
    value::<Success>();
    value::<Limits>();
    value::<Rejection>();
    value::<RealmEvent>();
    value::<RealmWrite>();
    shared::<RealmWrites>();
    shared::<TransactionClient>();
    shared::<HeldTask<()>>();
    shared::<LockBody<Full<bytes::Bytes>>>();
    shared::<RequestBody<Full<bytes::Bytes>>>();
    key::<LockKey>();
    key::<FencingToken>();
    error::<ConfigError>();
    error::<RealmError>();
    error::<LockError>();
    error::<BodyError>();
    value::<PathProblem>();
}

#[test]
fn equal_claims_are_one_in_a_set() {
    let realm = RealmUrl::try_from("https://h/a").unwrap();
    let other: RealmUrl = "https://h/b/".parse().unwrap();
    let one = Claim::realm(&realm).and(&Claim::realm(&other));
    let same = Claim::realm(&other).and(&Claim::from(realm.clone()));
    let cards = Claim::resources(&realm, ["cards/1"]);
    let claims: HashSet<Claim> = [one, same, cards].into();
    assert_eq!(claims.len(), 2);
}

#[test]
fn a_realm_url_becomes_what_other_libraries_take() {
    let realm = RealmUrl::try_from("HTTPS://H/a").unwrap();
    assert_eq!(realm.as_ref(), "https://h/a/");
    assert_eq!(String::from(realm), "https://h/a/");
    assert!(RealmUrl::try_from("/a/").is_err());
}

fn written_and_read<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).unwrap(), json);
    assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
}

#[test]
fn what_serde_writes_it_reads_back_and_checks() {
    let realm = RealmUrl::parse("http://localhost:4201/luke/my-realm/").unwrap();
    written_and_read(&realm, r#""http://localhost:4201/luke/my-realm/""#);
    written_and_read(&LockKey::of(&realm), "77324559412694263");
    let token: FencingToken = "1f".parse().unwrap();
    written_and_read(&token, &format!("\"{token}\""));

    let spelled: RealmUrl = serde_json::from_str(r#""HTTP://h:80/%61""#).unwrap();
    assert_eq!(spelled.as_str(), "http://h/a/");
    let refused = serde_json::from_str::<RealmUrl>(r#""http://h/a/../b/""#).unwrap_err();
    assert!(refused.to_string().contains("dot segment"), "{refused}");
    let refused = serde_json::from_str::<FencingToken>(r#""x""#).unwrap_err();
    assert!(refused.to_string().contains("fencing token"), "{refused}");
    assert!(serde_json::from_str::<LockKey>(r#""1""#).is_err());
}

#[tokio::test]
async fn the_inner_service_can_be_reached_and_taken_out() {
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let mut service = layer.layer(1);
    *service.get_mut() += 1;
    assert_eq!((*service.get_ref(), service.into_inner()), (2, 2));
    let mut service = layer.clone().read_bodies(10).layer(1);
    *service.get_mut() += 1;
    assert_eq!((*service.get_ref(), service.into_inner()), (2, 2));

    let inner = service_fn(async |_: Request<String>| {
        Ok::<_, std::convert::Infallible>(Response::new(Full::<bytes::Bytes>::default()))
    });
    for (method, shown) in [(Method::GET, "passed"), (Method::PATCH, "locked")] {
        let request = Request::builder().method(method).uri("/luke/a/card");
        let request = request.body(String::new()).unwrap();
        let called: ResponseFuture<_, _, _> =
            tower::Service::call(&mut layer.layer(inner), request);
        assert!(format!("{called:?}").contains(shown), "{called:?}");
        assert_eq!(called.await.unwrap().status(), 200);
    }
}

/// The status and the text that a router answers to a PATCH of a card.
async fn answer(app: Router) -> (u16, String) {
    let request = Request::patch("/luke/a/card").body(Body::empty()).unwrap();
    let (head, body) = app.oneshot(request).await.unwrap().into_parts();
    let text = body.collect().await.unwrap().to_bytes();
    (
        head.status.as_u16(),
        String::from_utf8(text.to_vec()).unwrap(),
    )
}

async fn held(held: HeldLock) -> String {
    held.claim().to_string()
}

async fn held_if_locked(held: Option<HeldLock>) -> String {
    held.map_or("passed".to_owned(), |held| held.claim().to_string())
}

async fn transaction(_: LockTransaction) {}

async fn transaction_if_shared(transaction: Option<LockTransaction>) -> String {
    format!("shared: {}", transaction.is_some())
}

#[tokio::test]
async fn a_handler_takes_its_hold_as_an_argument() {
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let realm = "http://realms.test/luke/a/";
    let no_hold = "takes a HeldLock, and this request is not locked";
    let no_transaction = "takes a LockTransaction, and this request has none";
    let route = |handler| Router::new().route("/{owner}/{realm}/card", handler);
    for (handler, locked, unlocked) in [
        (patch(held), (200, realm), (500, no_hold)),
        (patch(held_if_locked), (200, realm), (200, "passed")),
        (
            patch(transaction),
            (500, no_transaction),
            (500, no_transaction),
        ),
        (
            patch(transaction_if_shared),
            (200, "shared: false"),
            (200, "shared: false"),
        ),
    ] {
        for (enabled, (status, text)) in [(true, locked), (false, unlocked)] {
            let app = route(handler.clone()).layer(layer.clone().enabled(enabled));
            let answered = answer(app).await;
            assert!(
                answered.0 == status && answered.1.contains(text),
                "{answered:?}"
            );
        }
    }
}
