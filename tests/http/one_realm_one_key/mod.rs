//! However a client spells a request, it is refused, or it locks what its handler writes: seen by a real server, over bytes that no HTTP
//! library has tidied up.

mod bodies;
mod origins;
mod paths;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::{Path, State};
use axum::routing::{get, patch, post};
use axum::{Extension, Json, Router};
use http::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_realm_lock::{
    HeldLock, LockRules, PeerAddr, RealmBodyLockLayer, RealmBodyResolver, RealmLocks, RealmPaths,
    RealmPointers, Scope,
};

use crate::support::raw::raw;

/// How often a handler was reached.
type Calls = Arc<AtomicUsize>;

/// What a handler writes, and what is locked meanwhile.
fn told(calls: &Calls, held: Option<&HeldLock>, writes: &Value) -> Json<Value> {
    calls.fetch_add(1, Ordering::SeqCst);
    let locked = held.map(|held| held.claim().to_string());
    Json(json!({"writes": writes, "locked": locked}))
}

type Held = Option<Extension<HeldLock>>;

async fn card(
    State(calls): State<Calls>,
    Path((owner, realm, card)): Path<(String, String, String)>,
    held: Held,
) -> Json<Value> {
    told(&calls, held.as_deref(), &json!([owner, realm, card]))
}

async fn realm(
    State(calls): State<Calls>,
    Path((owner, realm)): Path<(String, String)>,
    held: Held,
) -> Json<Value> {
    told(&calls, held.as_deref(), &json!([owner, realm]))
}

/// Writes the realm that its body names.
async fn publish(State(calls): State<Calls>, held: Held, body: String) -> Json<Value> {
    let body: Value = serde_json::from_str(&body).expect("JSON");
    told(&calls, held.as_deref(), &body["realm"])
}

/// A server whose cards are locked by themselves, with a route in each realm that names another one in its body.
async fn serve(paths: RealmPaths, peer: &str) -> (SocketAddr, Calls) {
    let named = RealmPointers::new(["/realm"]).unwrap();
    let resolver = RealmBodyResolver::from(paths)
        .route(Method::POST, "/{owner}/{realm}/_publish", named)
        .unwrap();
    let rules = LockRules::new()
        .lock(Method::GET, "/{owner}/{realm}/_reindex")
        .and_then(|rules| rules.scope(Method::PATCH, "/{owner}/{realm}/{*card}", Scope::resource()))
        .unwrap();
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), resolver, 4096).rules(rules);
    let calls = Calls::default();
    let app = Router::new()
        .route("/{owner}/{realm}", post(realm))
        .route("/{owner}/{realm}/", post(realm))
        .route("/{owner}/{realm}/_publish", post(publish))
        .route("/{owner}/{realm}/_reindex", get(realm))
        .route("/{owner}/{realm}/{*card}", patch(card).post(card))
        .layer(layer)
        .layer(Extension(PeerAddr(peer.parse().unwrap())))
        .with_state(Arc::clone(&calls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, calls)
}

const STRANGER: &str = "192.0.2.1:80";
const PROXY: &str = "10.0.0.1:80";

/// What a handler was called for and what was locked; none if the request was refused, and no handler was called.
async fn outcome(
    (server, calls): &(SocketAddr, Calls),
    head: &[u8],
    body: &str,
) -> Option<(Value, String)> {
    let before = calls.load(Ordering::SeqCst);
    let (status, answer) = raw(*server, head, body).await;
    let called = calls.load(Ordering::SeqCst) - before;
    let shown = head.escape_ascii();
    if status != 200 {
        assert_eq!((status, called), (400, 0), "{shown}: {answer}");
        return None;
    }
    assert_eq!(called, 1, "{shown}");
    let told: Value = serde_json::from_str(&answer).unwrap();
    let locked = told["locked"].as_str();
    let locked = locked.unwrap_or_else(|| panic!("{shown} reached its handler unlocked"));
    Some((told["writes"].clone(), locked.to_owned()))
}
