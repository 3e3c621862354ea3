//! A handler that tells the test when a call is inside it, and waits there for the test's word.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use http::{Method, Request, Response, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_realm_lock::{
    ConnectError, HeldLock, LockBody, LockTransaction, PostgresBuilder, RealmLocks, RealmPaths,
    RealmWriteLockLayer, Rejection,
};

use super::database::{has_sessions, try_connect};
use super::wait::{PATIENCE, within_polls};

/// The origin of every realm in these tests.
pub const ORIGIN: &str = "http://realms.test";

/// Realms of the template `/{owner}/{realm}` at [`ORIGIN`].
pub fn realms() -> RealmPaths {
    RealmPaths::new(ORIGIN, "/{owner}/{realm}").expect("the template is right")
}

/// The number that PostgreSQL locks for a realm of these tests, given its path.
pub fn key(path: &str) -> i64 {
    let realm = realms().resolve(path).expect("the path names a realm");
    tower_realm_lock::LockKey::of(&realm)
        .value()
        .expect("one number")
}

/// A layer over locks in PostgreSQL, with the defaults of both.
pub async fn postgres_layer(url: &str) -> RealmWriteLockLayer {
    postgres_layer_with(url, |builder| builder).await
}

/// The same over locks with options of their own.
pub async fn postgres_layer_with(
    url: &str,
    options: impl FnOnce(PostgresBuilder) -> PostgresBuilder,
) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(postgres_locks_with(url, options).await, realms())
}

/// Such locks without a layer, for jobs. On PostgreSQL 13, which [has no sessions](has_sessions), transactions replace them.
pub async fn postgres_locks_with(
    url: &str,
    options: impl FnOnce(PostgresBuilder) -> PostgresBuilder,
) -> RealmLocks {
    let builder = options(RealmLocks::postgres_builder(url));
    let built = match builder.clone().build().await {
        Err(ConnectError::NoSessionTimeout { .. }) => {
            let found = try_connect(url).await.expect("the database answers");
            assert!(!has_sessions(&found).await, "sessions are refused");
            builder.sessions(0).build().await
        }
        built => built,
    };
    built.expect("the database can be used")
}

/// A handler whose calls stop at the test's [`Gate`].
#[derive(Clone)]
pub struct Gated(mpsc::UnboundedSender<Call>);

/// The test's end: the calls that are inside the handler, in the order they came.
pub struct Gate(mpsc::UnboundedReceiver<Call>);

/// A handler and its gate.
pub fn gate() -> (Gated, Gate) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Gated(sender), Gate(receiver))
}

/// One call that is inside the handler. It stays there until it is told how to end.
#[derive(Debug)]
pub struct Call {
    pub path: String,
    /// The hold's handle, if the call is locked.
    pub held: Option<HeldLock>,
    end: oneshot::Sender<End>,
    dropped: Arc<AtomicBool>,
}

#[derive(Debug)]
enum End {
    Answer(StatusCode),
    Fail,
    Panic,
}

/// What the handler fails with.
#[derive(Debug, thiserror::Error)]
#[error("the handler failed")]
pub struct Failed;

impl Call {
    /// Lets the call answer.
    pub fn answer(self, status: u16) {
        let status = StatusCode::from_u16(status).expect("a status");
        self.end(End::Answer(status));
    }

    /// Lets the call fail with the service's own error.
    pub fn fail(self) {
        self.end(End::Fail);
    }

    /// Lets the call panic.
    pub fn panic(self) {
        self.end(End::Panic);
    }

    /// The transaction that the call shares with its lock.
    pub fn transaction(&self) -> &LockTransaction {
        let held = self.held.as_ref().expect("the call is locked");
        held.transaction().expect("the transaction is shared")
    }

    /// Whether the handler's future was dropped before its end.
    pub fn was_dropped(&self) -> bool {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Waits until the handler's future is dropped.
    pub async fn dropped(&mut self) {
        tokio::time::timeout(PATIENCE, self.end.closed())
            .await
            .expect("the call is dropped");
        assert!(self.was_dropped());
    }

    fn end(self, end: End) {
        self.end.send(end).expect("the call still waits");
    }
}

impl Gate {
    /// The next call that has come in.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn entered(&mut self) -> Call {
        tokio::time::timeout(PATIENCE, self.0.recv())
            .await
            .expect("a call comes in")
            .expect("the handler is there")
    }

    /// Whether no call is waiting to be received.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// It takes any body, and reads none.
impl<A: Send + 'static> Service<Request<A>> for Gated {
    type Response = Response<String>;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, Failed>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move {
            let (end, told) = oneshot::channel();
            let watch = DropWatch(Arc::default());
            let call = Call {
                path: request.uri().path().to_owned(),
                held: request.extensions().get().cloned(),
                end,
                dropped: Arc::clone(&watch.0),
            };
            calls.send(call).expect("the test is there");
            let end = told.await.expect("the test tells how to end");
            std::mem::forget(watch);
            match end {
                End::Answer(status) => Ok(Response::builder()
                    .status(status)
                    .body(String::new())
                    .expect("a plain response")),
                End::Fail => Err(Failed),
                End::Panic => panic!("as the test asked"),
            }
        })
    }
}

struct DropWatch(Arc<AtomicBool>);

impl Drop for DropWatch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What a request through a layer came to.
pub type Outcome = Result<Response<String>, Failed>;

/// The service that either layer makes of the handler.
pub trait Locked:
    Service<Request<String>, Response = Response<LockBody<String>>, Error = Failed, Future: Send>
    + Send
    + 'static
{
}

impl<S> Locked for S where
    S: Service<
            Request<String>,
            Response = Response<LockBody<String>>,
            Error = Failed,
            Future: Send,
        > + Send
        + 'static
{
}

/// Sends a request through `layer` to `handler`, on a task: aborting it is a client that goes away.
pub fn send<L>(layer: &L, handler: &Gated, method: Method, path: &str) -> JoinHandle<Outcome>
where
    L: Layer<Gated, Service: Locked>,
{
    tokio::spawn(call(layer, handler, method, path))
}

/// The same, of a request that cannot have its lock at once: it stands in the queue when this returns.
pub fn queue<L>(layer: &L, handler: &Gated, path: &str) -> JoinHandle<Outcome>
where
    L: Layer<Gated, Service: Locked>,
{
    let mut call = Box::pin(call(layer, handler, Method::PATCH, path));
    assert!((&mut call).now_or_never().is_none());
    tokio::spawn(call)
}

fn call<L>(
    layer: &L,
    handler: &Gated,
    method: Method,
    path: &str,
) -> impl Future<Output = Outcome> + Send + 'static + use<L>
where
    L: Layer<Gated, Service: Locked>,
{
    let service = layer.layer(handler.clone());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(String::new())
        .expect("a plain request");
    async move {
        let response = service.oneshot(request).await?;
        let (head, body) = response.into_parts();
        let body = http_body_util::BodyExt::collect(body)
            .await
            .expect("the body ends well")
            .to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        Ok(Response::from_parts(head, body))
    }
}

/// Sends a PATCH.
pub fn patch<L>(layer: &L, handler: &Gated, path: &str) -> JoinHandle<Outcome>
where
    L: Layer<Gated, Service: Locked>,
{
    send(layer, handler, Method::PATCH, path)
}

/// A handler that answers 200 at once.
pub fn at_once(_: Request<String>) -> Ready<Result<Response<String>, Infallible>> {
    ready(Ok(Response::new(String::new())))
}

/// The problem code of a rejected response: the part of its `type` after `#`.
pub fn code(response: &Response<String>) -> String {
    let problem: serde_json::Value =
        serde_json::from_str(response.body()).expect("a problem document");
    let kind = problem["type"].as_str().expect("a type");
    kind.split_once('#').expect("a code").1.to_owned()
}

/// The response, which must come in time.
pub async fn answered(request: JoinHandle<Outcome>) -> Response<String> {
    let outcome = timeout(PATIENCE, request).await.expect("an answer in time");
    outcome.expect("no panic").expect("a response")
}

/// Fails unless the client is told that its lock was lost.
pub fn assert_lost(response: &Response<String>) {
    assert_eq!(response.status(), 503);
    assert_eq!(code(response), "lock-lost");
    assert!(!response.headers().contains_key("retry-after"));
}

/// A way of a handler to end.
pub type Ending = fn(Call);

/// All of them, by the status of their response where they have one.
pub fn endings() -> [(&'static str, Ending); 6] {
    [
        ("200", |call| call.answer(200)),
        ("302", |call| call.answer(302)),
        ("404", |call| call.answer(404)),
        ("500", |call| call.answer(500)),
        ("error", Call::fail),
        ("panic", Call::panic),
    ]
}

/// One write with an empty handler, dropped after some polls; whether it was answered before.
pub async fn write_within(layer: &RealmWriteLockLayer, path: &str, polls: usize) -> bool {
    let request = Request::patch(path).body(String::new()).expect("plain");
    let call = layer.layer(service_fn(at_once)).oneshot(request);
    let Some(Ok(response)) = within_polls(polls, call).await else {
        return false;
    };
    let rejection = response.extensions().get::<Rejection>();
    assert!(rejection.is_none(), "{rejection:?}");
    response.status() == 200
}
