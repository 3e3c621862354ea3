//! The order of layers that `docs/layers.md` recommends, through real connections, and what another
//! order costs.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::error_handling::HandleErrorLayer;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{OriginalUri, Request, State};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, routing};
use flate2::read::GzDecoder;
use futures_util::stream;
use http::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, CONTENT_ENCODING, ETAG, IF_MATCH, ORIGIN, RETRY_AFTER,
};
use http::{HeaderValue, Method, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::compression::CompressionLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::timeout::TimeoutLayer;
use tower_realm_lock::{
    ClaimStatus, HeldLock, HoldUntil, LockError, LockTransaction, RealmLocks, RealmPaths, RealmUrl,
    RealmWriteLockLayer,
};

use crate::support::database::{TestDatabase, database, rows};
use crate::support::gate::{gate, key, postgres_layer, realms};
use crate::support::page::block;
use crate::support::raw::Connection;
use crate::support::wait::{PATIENCE, wait_until};

const PATH: &str = "/luke/a/card";

/// One card, whose writers wait inside for the test.
struct Card {
    version: Mutex<u64>,
    inside: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

impl Card {
    fn tag(&self) -> HeaderValue {
        let version = *self.version.lock().unwrap();
        HeaderValue::from_str(&format!("\"{version}\"")).unwrap()
    }
}

/// The routes, without layers, and who is inside a write.
fn card() -> (
    Router,
    Arc<Card>,
    mpsc::UnboundedReceiver<oneshot::Sender<()>>,
) {
    let (inside, entered) = mpsc::unbounded_channel();
    let card = Arc::new(Card {
        version: Mutex::new(1),
        inside,
    });
    let routes = Router::new()
        .route("/{owner}/{realm}/card", routing::get(read).patch(write))
        .with_state(Arc::clone(&card));
    (routes, card, entered)
}

async fn read(State(card): State<Arc<Card>>) -> Response {
    ([(ETAG, card.tag())], "x".repeat(1000)).into_response()
}

async fn write(State(card): State<Arc<Card>>) -> Response {
    let (go_on, told) = oneshot::channel();
    card.inside.send(go_on).unwrap();
    told.await.unwrap();
    *card.version.lock().unwrap() += 1;
    ([(ETAG, card.tag())], "written").into_response()
}

/// Answers 412 unless `If-Match` names the card's version: a strong comparison (RFC 9110, 13.1.1).
async fn conditional(State(card): State<Arc<Card>>, request: Request, next: Next) -> Response {
    match request.headers().get(IF_MATCH) {
        Some(tag) if *tag != card.tag() => StatusCode::PRECONDITION_FAILED.into_response(),
        _ => next.run(request).await,
    }
}

/// Makes the tag of a compressed response weak, as nginx does.
async fn weaken(mut response: Response) -> Response {
    if response.headers().contains_key(CONTENT_ENCODING)
        && let Some(tag) = response.headers_mut().get_mut(ETAG)
        && !tag.as_bytes().starts_with(b"W/")
    {
        let weak = [b"W/", tag.as_bytes()].concat();
        *tag = HeaderValue::from_bytes(&weak).unwrap();
    }
    response
}

fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::PATCH])
        .allow_headers([IF_MATCH])
        .expose_headers([ETAG, RETRY_AFTER])
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{PATH}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

async fn answer(request: reqwest::RequestBuilder) -> reqwest::Response {
    let answer = timeout(PATIENCE, request.send()).await;
    answer.expect("an answer in time").unwrap()
}

fn patch(url: &str) -> reqwest::RequestBuilder {
    reqwest::Client::new().patch(url)
}

/// The same card of another realm.
fn of_another_realm(url: &str) -> String {
    url.replace("/a/", "/b/")
}

/// Waits until so many requests hold a lock, and so many wait for one.
async fn wait_for_locks(locks: &RealmLocks, held: usize, waiting: usize) {
    wait_until("the locks are held and waited for", async || {
        let status = locks.status();
        let are_held = status.iter().filter(|claim| claim.is_held()).count();
        (are_held, status.len() - are_held) == (held, waiting)
    })
    .await;
}

#[tokio::test]
async fn a_script_reads_the_rejection_and_when_to_try_again_if_cors_is_outside() {
    for cors_is_outside in [true, false] {
        let (routes, _card, mut entered) = card();
        let lock = RealmWriteLockLayer::new(RealmLocks::in_process(), realms())
            .map_locks(|locks| locks.acquire_timeout(Duration::from_millis(50)));
        let app = if cors_is_outside {
            routes.layer(ServiceBuilder::new().layer(cors()).layer(lock))
        } else {
            routes.layer(cors()).layer(lock)
        };
        let url = serve(app).await;
        let first = tokio::spawn(answer(patch(&url)));
        let go_on = entered.recv().await.unwrap();

        // A preflight request is not a write: it waits for nobody.
        let preflight = reqwest::Client::new()
            .request(Method::OPTIONS, &url)
            .header(ORIGIN, "https://app.example")
            .header(ACCESS_CONTROL_REQUEST_METHOD, "PATCH");
        assert_eq!(answer(preflight).await.status(), 200);

        let busy = answer(patch(&url).header(ORIGIN, "https://app.example")).await;
        assert_eq!(busy.status(), 503);
        assert!(busy.headers().contains_key(RETRY_AFTER));
        let allowed = busy.headers().get(ACCESS_CONTROL_ALLOW_ORIGIN);
        let exposed = busy.headers().get(ACCESS_CONTROL_EXPOSE_HEADERS);
        if cors_is_outside {
            assert_eq!(allowed.unwrap(), "*");
            assert_eq!(exposed.unwrap(), "etag,retry-after");
        } else {
            // A browser reports only a network error to the script.
            assert_eq!((allowed, exposed), (None, None));
        }
        go_on.send(()).unwrap();
        assert_eq!(first.await.unwrap().status(), 200);
    }
}

/// Answers 408 when a request has taken too long, whatever it waited for.
fn impatient() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(500))
}

#[tokio::test]
async fn a_timeout_outside_answers_408_and_the_write_lands_under_its_lock() {
    let (routes, card, mut entered) = card();
    let locks = RealmLocks::in_process();
    let stack = ServiceBuilder::new()
        .layer(cors())
        .layer(impatient())
        .layer(RealmWriteLockLayer::new(locks.clone(), realms()));
    let url = serve(routes.layer(stack)).await;
    let write = patch(&url).header(ORIGIN, "https://app.example");
    let write = tokio::spawn(answer(write));
    let go_on = entered.recv().await.unwrap();
    let late = write.await.unwrap();
    assert_eq!(late.status(), 408);
    assert_eq!(late.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    assert!(locks.status().iter().any(ClaimStatus::is_held));
    assert_eq!(card.tag(), "\"1\"");
    // One that waits for the first is never inside.
    assert_eq!(answer(patch(&url)).await.status(), 408);
    go_on.send(()).unwrap();
    wait_for_locks(&locks, 0, 0).await;
    assert_eq!(card.tag(), "\"2\"");
    assert!(entered.try_recv().is_err());
}

#[tokio::test]
async fn timeout_and_cors_fit_around_a_plain_service_too() {
    let locks = RealmLocks::in_process();
    let (handler, mut gate) = gate();
    let service = ServiceBuilder::new()
        .layer(cors())
        .layer(impatient())
        .layer(RealmWriteLockLayer::new(locks.clone(), realms()))
        .service(handler);
    let request = |method| {
        let request = http::Request::builder().method(method).uri(PATH);
        request.header(ORIGIN, "https://app.example")
    };
    let preflight = request(Method::OPTIONS).header(ACCESS_CONTROL_REQUEST_METHOD, "PATCH");
    let preflight = preflight.body(String::new()).unwrap();
    let answer = service.clone().oneshot(preflight).await.unwrap();
    assert_eq!(answer.status(), 200);
    let write = request(Method::PATCH).body(String::new()).unwrap();
    let write = tokio::spawn(service.oneshot(write));
    let inside = gate.entered().await;
    let late = write.await.unwrap().unwrap();
    assert_eq!(late.status(), 408);
    assert_eq!(late.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    inside.held.as_ref().unwrap().ensure_held().unwrap();
    inside.answer(200);
    wait_for_locks(&locks, 0, 0).await;
}

#[tokio::test]
async fn a_precondition_is_one_only_under_the_lock() {
    for (is_under_the_lock, second_status) in [(true, 412), (false, 200)] {
        let (routes, card, mut entered) = card();
        let locks = RealmLocks::in_process();
        let lock = RealmWriteLockLayer::new(locks.clone(), realms());
        let conditional = from_fn_with_state(Arc::clone(&card), conditional);
        let app = if is_under_the_lock {
            routes.layer(conditional).layer(lock)
        } else {
            routes.layer(lock).layer(conditional)
        };
        let url = serve(app).await;
        let write = || tokio::spawn(answer(patch(&url).header(IF_MATCH, "\"1\"")));
        let first = write();
        let go_on = entered.recv().await.unwrap();
        let second = write();
        wait_for_locks(&locks, 1, 1).await;
        go_on.send(()).unwrap();
        assert_eq!(first.await.unwrap().status(), 200);
        if !is_under_the_lock {
            // It was checked against what the first has overwritten since.
            entered.recv().await.unwrap().send(()).unwrap();
        }
        assert_eq!(second.await.unwrap().status(), second_status);
    }
}

#[tokio::test]
async fn a_timeout_inside_cuts_the_handler_and_gives_the_lock_back() {
    let (routes, card, mut entered) = card();
    let locks = RealmLocks::in_process();
    let app = routes
        .layer(impatient())
        .layer(RealmWriteLockLayer::new(locks.clone(), realms()));
    let url = serve(app).await;
    let first = tokio::spawn(answer(patch(&url)));
    let go_on = entered.recv().await.unwrap();
    assert_eq!(first.await.unwrap().status(), 408);
    // Its future was dropped, and writes nothing any more.
    go_on.send(()).unwrap_err();
    wait_for_locks(&locks, 0, 0).await;
    assert_eq!(*card.version.lock().unwrap(), 1);
}

#[tokio::test]
async fn writers_that_wait_use_up_a_concurrency_limit_only_if_it_is_outside() {
    for limit_is_outside in [true, false] {
        let (routes, _card, mut entered) = card();
        let locks = RealmLocks::in_process();
        let lock = RealmWriteLockLayer::new(locks.clone(), realms());
        let limit = GlobalConcurrencyLimitLayer::new(2);
        let overloaded = async |_| StatusCode::TOO_MANY_REQUESTS;
        let shed = ServiceBuilder::new()
            .layer(HandleErrorLayer::new(overloaded))
            .load_shed()
            .layer(limit);
        let app = if limit_is_outside {
            routes.layer(lock).layer(shed)
        } else {
            routes.layer(shed).layer(lock)
        };
        let url = serve(app).await;
        let first = tokio::spawn(answer(patch(&url)));
        let go_on = entered.recv().await.unwrap();
        let second = tokio::spawn(answer(patch(&url)));
        wait_for_locks(&locks, 1, 1).await;

        let other = tokio::spawn(answer(patch(&of_another_realm(&url))));
        if limit_is_outside {
            assert_eq!(other.await.unwrap().status(), 429);
            let read = reqwest::Client::new().get(&url);
            assert_eq!(answer(read).await.status(), 429);
        } else {
            entered.recv().await.unwrap().send(()).unwrap();
            assert_eq!(other.await.unwrap().status(), 200);
        }
        go_on.send(()).unwrap();
        entered.recv().await.unwrap().send(()).unwrap();
        for write in [first, second] {
            assert_eq!(write.await.unwrap().status(), 200);
        }
    }
}

#[tokio::test]
async fn under_a_limit_inside_a_request_waits_with_its_lock() {
    let (routes, _card, mut entered) = card();
    let locks = RealmLocks::in_process();
    let app = routes
        .layer(GlobalConcurrencyLimitLayer::new(1))
        .layer(RealmWriteLockLayer::new(locks.clone(), realms()));
    let url = serve(app).await;
    let first = tokio::spawn(answer(patch(&url)));
    let go_on = entered.recv().await.unwrap();
    let other = tokio::spawn(answer(patch(&of_another_realm(&url))));
    wait_for_locks(&locks, 2, 0).await;
    assert!(entered.is_empty());
    go_on.send(()).unwrap();
    entered.recv().await.unwrap().send(()).unwrap();
    for write in [first, other] {
        assert_eq!(write.await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_weak_tag_of_a_compressed_response_matches_nothing() {
    let (routes, card, mut entered) = card();
    let app = routes
        .layer(from_fn_with_state(card, conditional))
        .layer(RealmWriteLockLayer::new(RealmLocks::in_process(), realms()))
        .layer(CompressionLayer::new())
        .layer(map_response(weaken));
    let url = serve(app).await;
    let get = |encoding| {
        reqwest::Client::new()
            .get(&url)
            .header(ACCEPT_ENCODING, encoding)
    };
    let compressed = answer(get("gzip")).await;
    assert_eq!(compressed.headers()[CONTENT_ENCODING], "gzip");
    assert_eq!(compressed.headers()[ETAG], "W/\"1\"");
    let refused = answer(patch(&url).header(IF_MATCH, &compressed.headers()[ETAG])).await;
    assert_eq!(refused.status(), 412);

    let plain = answer(get("identity")).await;
    assert_eq!(plain.headers()[ETAG], "\"1\"");
    let request = patch(&url).header(IF_MATCH, &plain.headers()[ETAG]);
    let written = tokio::spawn(answer(request));
    entered.recv().await.unwrap().send(()).unwrap();
    assert_eq!(written.await.unwrap().status(), 200);
}

/// A table of writes, and a layer that shares its transaction with handlers.
async fn shared(hold_until: HoldUntil) -> (TestDatabase, RealmWriteLockLayer) {
    let database = database().await;
    let client = database.connect().await;
    let table = "CREATE TABLE writes (n int)";
    client.batch_execute(table).await.unwrap();
    let layer = postgres_layer(database.url()).await;
    (
        database,
        layer
            .map_locks(|locks| locks.share_transaction(true))
            .hold_until(hold_until),
    )
}

async fn written(database: &TestDatabase) -> String {
    let client = database.connect().await;
    let counted = rows(&client, "SELECT count(*) FROM writes").await;
    counted[0].get(0).unwrap().to_owned()
}

#[tokio::test]
async fn a_compressed_body_ends_well_only_if_the_hold_does() {
    let (database, lock) = shared(HoldUntil::BodyEnd).await;
    for (statement, commits) in [
        ("INSERT INTO writes VALUES (1)", true),
        ("INSERT INTO writes VALUES (2); ROLLBACK", false),
    ] {
        let handler = move |Extension(transaction): Extension<LockTransaction>| async move {
            let client = transaction.client().unwrap();
            client.batch_execute(statement).await.unwrap();
            let parts = ["a".repeat(1000), "b".repeat(1000)];
            let parts = parts.map(|part| Ok::<_, std::convert::Infallible>(Bytes::from(part)));
            Body::from_stream(stream::iter(parts)).into_response()
        };
        let app = Router::new()
            .route("/{owner}/{realm}/card", routing::patch(handler))
            .layer(lock.clone())
            .layer(CompressionLayer::new());
        let url = serve(app).await;
        let response = answer(patch(&url).header(ACCEPT_ENCODING, "gzip")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        let body = timeout(PATIENCE, response.bytes()).await.unwrap();
        assert_eq!(body.is_ok(), commits, "{statement}");
        if let Ok(body) = body {
            let mut text = String::new();
            GzDecoder::new(&*body).read_to_string(&mut text).unwrap();
            assert_eq!(text, "a".repeat(1000) + &"b".repeat(1000));
        }
        database.wait_for_granted(key(PATH), 0).await;
        assert_eq!(written(&database).await, "1");
    }
}

#[tokio::test]
async fn a_status_that_compression_changes_decides_the_write_if_it_is_inside() {
    let (database, lock) = shared(HoldUntil::Response).await;
    for (compression_is_outside, count) in [(false, "0"), (true, "1")] {
        let handler = async |Extension(transaction): Extension<LockTransaction>| {
            let client = transaction.client().unwrap();
            let insert = "INSERT INTO writes VALUES (1)";
            client.batch_execute(insert).await.unwrap();
            "written"
        };
        let routes = Router::new().route("/{owner}/{realm}/card", routing::patch(handler));
        let app = if compression_is_outside {
            routes.layer(lock.clone()).layer(CompressionLayer::new())
        } else {
            routes.layer(CompressionLayer::new()).layer(lock.clone())
        };
        let url = serve(app).await;
        // A client that takes neither gzip nor the bytes as they are.
        let request = patch(&url).header(ACCEPT_ENCODING, "br, identity;q=0");
        assert_eq!(answer(request).await.status(), 406);
        database.wait_for_granted(key(PATH), 0).await;
        assert_eq!(written(&database).await, count);
    }
}

// From here on as on the page.
async fn edit(
    State(service): State<Service>,
    OriginalUri(uri): OriginalUri,
    upgrade: WebSocketUpgrade,
) -> Result<Response, StatusCode> {
    let realm = service.realms.resolve(uri.path());
    let realm = realm.map_err(|_| StatusCode::NOT_FOUND)?;
    Ok(upgrade.on_upgrade(|socket| messages(service, realm, socket)))
}

async fn messages(service: Service, realm: RealmUrl, mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Text(change) = message else {
            continue;
        };
        // Waited for, held, confirmed and given back, once for each message.
        let work = |held| save(held, change);
        let answer = match service.locks.with_write_lock(&realm, work).await {
            Ok(()) => "saved".to_owned(),
            Err(error) => error.to_string(),
        };
        if socket.send(Message::text(answer)).await.is_err() {
            break;
        }
    }
}
// To here.

#[derive(Clone)]
struct Service {
    locks: RealmLocks,
    realms: RealmPaths,
}

/// Which messages are inside their lock, in the order in which they came in.
static INSIDE: Mutex<Vec<String>> = Mutex::new(Vec::new());
static MAY_END: Semaphore = Semaphore::const_new(0);

async fn save(held: HeldLock, change: Utf8Bytes) -> Result<(), LockError> {
    INSIDE.lock().unwrap().push(change.to_string());
    MAY_END.acquire().await.unwrap().forget();
    held.ensure_held()
}

#[test]
fn the_web_socket_is_the_pages() {
    let this = include_str!("layers.rs");
    let (_, code) = this
        .rsplit_once("// From here on as on the page.\n")
        .unwrap();
    let (code, _) = code.split_once("// To here.\n").unwrap();
    let page = include_str!("../../docs/layers.md");
    assert!(block(page, "rust,no_run", "WebSocketUpgrade").contains(code));
}

/// A WebSocket of a realm.
async fn socket(server: SocketAddr, realm: &str) -> Connection {
    let request = format!(
        "GET /luke/{realm}/_edit HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut connection = Connection::with(server, &request).await;
    assert_eq!(connection.status().await, 101);
    connection
}

/// Sends a short text, in a frame whose mask changes nothing (RFC 6455, section 5.2).
async fn say(socket: &mut Connection, text: &str) {
    let length = 0x80 | u8::try_from(text.len()).unwrap();
    let frame = [&[0x81, length, 0, 0, 0, 0], text.as_bytes()].concat();
    socket.send(&frame).await;
}

async fn wait_for_inside(messages: &[&str]) {
    wait_until("the messages are inside", async || {
        *INSIDE.lock().unwrap() == messages
    })
    .await;
}

#[tokio::test]
async fn each_message_of_a_web_socket_has_a_lock_of_its_own() {
    let (locks, realms) = (RealmLocks::in_process(), realms());
    let app = Router::new()
        .route("/{owner}/{realm}/_edit", routing::any(edit))
        .layer(RealmWriteLockLayer::new(locks.clone(), realms.clone()))
        .with_state(Service {
            locks: locks.clone(),
            realms,
        });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());

    let mut one = socket(server, "a").await;
    let mut two = socket(server, "a").await;
    let mut other = socket(server, "b").await;
    // The open sockets hold nothing.
    assert!(locks.status().is_empty());
    say(&mut one, "1").await;
    wait_for_inside(&["1"]).await;
    say(&mut two, "2").await;
    wait_for_locks(&locks, 1, 1).await;
    say(&mut other, "3").await;
    wait_for_inside(&["1", "3"]).await;
    MAY_END.add_permits(3);
    for mut socket in [one, two, other] {
        assert_eq!(&socket.receive::<7>().await, b"\x81\x05saved");
    }
    wait_for_inside(&["1", "3", "2"]).await;
    assert!(locks.status().is_empty());
}
