//! What a request costs in memory: passing through nothing, waiting little, and a realm that nobody writes nothing.

use std::convert::Infallible;
use std::time::Duration;

use dhat::HeapStats;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_realm_lock::{LockRules, RealmLocks, RealmWriteLockLayer};

use crate::support::alone::is_alone;
use crate::support::database::database;
use crate::support::gate::{key, postgres_locks_with, realms};
use crate::support::load::{PATH, REALM};

type Handler = BoxCloneSyncService<Request<String>, Response<String>, Infallible>;

/// A handler that stays inside for as long as the gate is closed. Its future is boxed, as axum's are.
fn handler(open: &watch::Receiver<bool>) -> Handler {
    let open = open.clone();
    BoxCloneSyncService::new(service_fn(move |request: Request<String>| {
        let mut open = open.clone();
        async move {
            open.wait_for(|open| *open).await.expect("a gate");
            Ok(Response::new(request.into_body()))
        }
    }))
}

fn request(method: Method, path: &str) -> Request<String> {
    let request = Request::builder().method(method).uri(path);
    request.body("{}".into()).expect("a plain request")
}

fn blocks() -> u64 {
    HeapStats::get().total_blocks
}

fn bytes() -> usize {
    HeapStats::get().curr_bytes
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// One test, one profile, one process: what other tests allocate beside it would be counted too.
#[test]
fn memory() {
    if !is_alone(module_path!(), "memory") {
        return;
    }
    // Nobody reads where it was allocated.
    let _profile = dhat::Profiler::builder()
        .testing()
        .trim_backtraces(Some(4))
        .build();
    let runtime = runtime();
    passing_allocates_nothing();
    #[cfg(feature = "axum")]
    other_routes_allocate_nothing_of_their_own();
    {
        let _runtime = runtime.enter();
        a_locked_call_allocates_little();
    }
    runtime.block_on(async {
        let database = database().await;
        let postgres = postgres_locks_with(database.url(), |builder| builder).await;
        for (locks, realms) in [(RealmLocks::in_process(), 1000), (postgres, 300)] {
            let locks = locks
                .max_waiters_per_realm(usize::MAX)
                .acquire_timeout(Duration::from_secs(600));
            a_waiter_costs_at_most_4_kib(&locks).await;
            idle_realms_cost_nothing(&locks, realms).await;
        }
        assert_eq!(database.advisory_locks(key(REALM)).await, (0, 0));
    });
}

/// How many blocks a call that ends at once allocates, its request not counted.
fn blocks_of_call<S>(service: &mut S, method: &Method, path: &str) -> u64
where
    S: Service<Request<String>, Error = Infallible>,
{
    let request = request(method.clone(), path);
    let before = blocks();
    let response = service.call(request).now_or_never();
    let allocated = blocks() - before;
    assert!(matches!(response, Some(Ok(_))));
    allocated
}

fn passing_allocates_nothing() {
    let (_open, gate) = watch::channel(true);
    let mut bare = handler(&gate);
    let rules = LockRules::default().exempt(Method::POST, "/{owner}/{realm}/_search");
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let layer = layer.rules(rules.expect("the pattern is right"));
    let layer = layer.expect("no scope needs the body");
    let mut layered = layer.layer(bare.clone());
    for (method, path) in [
        (Method::GET, PATH),
        (Method::HEAD, PATH),
        (Method::OPTIONS, "/"),
        (Method::POST, "/luke/a/_search"),
    ] {
        // A warm service, as after the first request of a process.
        blocks_of_call(&mut layered, &method, path);
        let bare = blocks_of_call(&mut bare, &method, path);
        let layered = blocks_of_call(&mut layered, &method, path);
        assert!(bare > 0, "the profile sees nothing");
        assert_eq!(layered, bare, "{method} {path}");
    }
}

/// Such as the claim and its URL, the place in the queue, the hold, what the handler finds in the
/// request's extensions, the futures, and two clones of the boxed handler.
fn a_locked_call_allocates_little() {
    const MEASURED: u64 = 15;
    let (_open, gate) = watch::channel(true);
    let mut bare = handler(&gate);
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let mut layered = layer.layer(bare.clone());
    // A warm queue, as after the first request of a process.
    blocks_of_call(&mut layered, &Method::PATCH, PATH);
    let bare = blocks_of_call(&mut bare, &Method::PATCH, PATH);
    let own = blocks_of_call(&mut layered, &Method::PATCH, PATH) - bare;
    println!("{own} blocks for a locked call");
    assert!(bare > 0, "the profile sees nothing");
    assert!(own <= MEASURED + 1, "{own} blocks");
}

/// Inside axum's router, requests of routes that have no realm: axum copies their parameters, if they
/// have any.
#[cfg(feature = "axum")]
fn other_routes_allocate_nothing_of_their_own() {
    use axum::Router;
    use axum::routing::any;
    use tower_realm_lock::{MethodSet, RouteLimits};

    let rules = LockRules::default()
        .exempt([Method::PUT, Method::PATCH], "/open/{*rest}")
        .and_then(|rules| {
            let limits = RouteLimits::new().acquire_timeout(Duration::ZERO);
            rules.limits(MethodSet::unsafe_methods(), "/{*rest}", limits)
        });
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let layer = layer.rules(rules.expect("the patterns are right"));
    let layer = layer.expect("no scope needs the body");
    let routes = Router::new()
        .route("/auth/login", any("in"))
        .route("/hooks/{source}", any("in"))
        .route("/{owner}/profile", any("in"))
        .route("/open/{*rest}", any("in"));
    let mut app: Router = routes.layer(layer);
    let mut blocks = |method: &Method, path: &str| {
        let mut allocated = 0;
        // The last one counts: the first is logged.
        for _ in 0..3 {
            let request = Request::builder().method(method).uri(path);
            let request = request.body(axum::body::Body::empty());
            let request = request.expect("a plain request");
            let before = self::blocks();
            let response = Service::call(&mut app, request).now_or_never();
            allocated = self::blocks() - before;
            assert!(matches!(response, Some(Ok(_))));
        }
        allocated
    };
    for (method, path, parameters) in [
        (Method::POST, "/auth/login", 0),
        (Method::POST, "/hooks/stripe", 1),
        (Method::POST, "/luke/profile", 1),
        (Method::PATCH, "/open/a/b", 0),
    ] {
        let safe = blocks(&Method::GET, path);
        assert!(safe > 0, "the profile sees nothing");
        assert_eq!(blocks(&method, path), safe + parameters, "{method} {path}");
    }
}

type Waiting = BoxFuture<'static, ()>;

/// Calls as many as given, each polled once and still to be answered, and what they keep allocated.
fn waiting<S>(count: usize, service: &S) -> (Vec<Waiting>, usize)
where
    S: Service<Request<String>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let before = bytes();
    let mut calls: Vec<Waiting> = Vec::with_capacity(count);
    for n in 0..count {
        let request = request(Method::PATCH, &format!("{REALM}/{n}"));
        let service = service.clone();
        let mut call = Box::pin(async move { drop(service.oneshot(request).await) });
        assert!((&mut call).now_or_never().is_none());
        calls.push(call);
    }
    (calls, bytes() - before)
}

async fn a_waiter_costs_at_most_4_kib(locks: &RealmLocks) {
    const WAITERS: usize = 5000;
    const BARE: usize = 500;
    let (open, gate) = watch::channel(false);
    let bare = handler(&gate);
    let layered = RealmWriteLockLayer::new(locks.clone(), realms()).layer(bare.clone());
    let (alone, own) = waiting(BARE, &bare);
    let own = own / BARE;
    drop(alone);

    let (holder, _) = waiting(1, &layered);
    let (waiters, all) = waiting(WAITERS, &layered);
    let each = (all / WAITERS).saturating_sub(own);
    println!("{each} bytes for a waiter, {own} for its request");
    assert!(own > 0, "the profile sees nothing");
    assert!(each <= 4096, "{each} bytes for each waiter");

    open.send_replace(true);
    for call in holder.into_iter().chain(waiters) {
        call.await;
    }
}

async fn idle_realms_cost_nothing(locks: &RealmLocks, realms: usize) {
    let (_open, gate) = watch::channel(true);
    let service = RealmWriteLockLayer::new(locks.clone(), crate::support::gate::realms());
    let service = service.layer(handler(&gate));
    let write = async |realm: usize| {
        let request = request(Method::PATCH, &format!("/luke/{realm}/card"));
        let Ok(response) = service.clone().oneshot(request).await;
        assert_eq!(response.status(), 200);
    };
    // What is allocated once in each part of the queue, and buffers that reach their size.
    for realm in 0..realms {
        write(realm).await;
    }
    let before = bytes();
    for realm in realms..2 * realms {
        write(realm).await;
    }
    let grown = bytes().saturating_sub(before);
    println!("{grown} bytes more after {realms} realms");
    assert!(grown < realms, "{grown} bytes");
}
