use std::error::Error;
use std::future::{Future, ready};
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::Either;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body;
use tower::ServiceExt;
use tower_service::Service;
use tracing::Instrument;

use super::body::LockBody;
use super::future::{Outcome, ResponseFuture};
use super::prepare::{Bodies, BodiesOf, Needs, Prepared, Unread, claim, prepare};
use super::request_body::{Reading, RequestBody};
use super::settings::{HoldUntil, OnDisconnect, Settings};
use super::timing::{Timing, tell};
use crate::lock::{Claim, HeldLock, Hold, Released};
use crate::realm::classify::{Decision, Realms};
use crate::realm::head::Head;

/// A service whose mutating calls hold their realm's lock. Made by
/// [`RealmWriteLockLayer`](super::RealmWriteLockLayer).
///
/// Its readiness is the inner service's. A call that must wait for a lock gives that readiness back
/// first, and asks again once it has the lock: waiting takes no concurrency permit away from
/// others.
#[derive(Debug, Clone)]
pub struct RealmWriteLock<S>(Locking<S, Unread>);

/// A [`RealmWriteLock`] that reads bodies. Made by
/// [`RealmBodyLockLayer`](super::RealmBodyLockLayer).
///
/// The inner service gets a [`RequestBody`]. A call that reads its body gives the inner service's
/// readiness back before it does.
#[derive(Debug, Clone)]
pub struct RealmBodyLock<S>(Locking<S, Reading>);

#[derive(Debug, Clone)]
struct Locking<S, R: Bodies> {
    inner: S,
    realms: Arc<Realms<R::Reads>>,
    settings: Arc<Settings>,
    bodies: R,
}

impl<S> RealmWriteLock<S> {
    pub(super) fn new(
        inner: S,
        realms: Arc<Realms<<Unread as Bodies>::Reads>>,
        settings: Arc<Settings>,
    ) -> Self {
        Self(Locking {
            inner,
            realms,
            settings,
            bodies: Unread,
        })
    }
}

impl<S> RealmBodyLock<S> {
    pub(super) fn new(
        inner: S,
        realms: Arc<Realms<<Reading as Bodies>::Reads>>,
        settings: Arc<Settings>,
        limit: usize,
    ) -> Self {
        let timeout = settings.body_timeout;
        Self(Locking {
            inner,
            realms,
            settings,
            bodies: Reading { limit, timeout },
        })
    }
}

impl<S, A, B> Service<Request<A>> for RealmWriteLock<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    A: Send + 'static,
    B: Body + Send + 'static,
    B::Data: From<Bytes> + Send,
{
    type Response = Response<LockBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        self.0.call(request)
    }
}

impl<S, A, B> Service<Request<A>> for RealmBodyLock<S>
where
    S: Service<Request<RequestBody<A>>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    A: Body + Send + 'static,
    A::Data: Send,
    A::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: From<Bytes> + Send,
{
    type Response = Response<LockBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        self.0.call(request)
    }
}

impl<S: Clone, R: Bodies> Locking<S, R> {
    fn call<A, B>(&mut self, request: Request<A>) -> ResponseFuture<S::Future, B, S::Error>
    where
        S: Service<Request<R::Body>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Send + 'static,
        R: BodiesOf<A>,
        A: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
    {
        let prepared = match self.realms.classify(&Head::of(&request)) {
            Decision::Pass => {
                return ResponseFuture::passed(self.inner.call(request.map(R::unread)));
            }
            Decision::Claim(locked) => Ok((claim(&locked), request.map(R::unread))),
            Decision::Reject(error) => Err(error.into()),
            Decision::NeedsBody(needs, reads) => {
                return self.prepared(Needs::Body(needs, reads), request);
            }
            Decision::NeedsLookup(lookup) => {
                return self.prepared(Needs::Lookup(lookup), request);
            }
        };
        let inner = self.give_back();
        ResponseFuture::locked(locked_or_rejected(&self.settings, inner, prepared))
    }

    /// A call that is prepared before it asks for its lock.
    fn prepared<A, B>(
        &mut self,
        needs: Needs<R::Reads>,
        request: Request<A>,
    ) -> ResponseFuture<S::Future, B, S::Error>
    where
        S: Service<Request<R::Body>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Send + 'static,
        R: BodiesOf<A>,
        A: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
    {
        let inner = self.give_back();
        let settings = Arc::clone(&self.settings);
        // Boxed so that waiters do not carry its space.
        let prepared = Box::pin(prepare(self.bodies, needs, request));
        ResponseFuture::locked(async move {
            let prepared = prepared.await;
            locked_or_rejected(&settings, inner, prepared).await
        })
    }

    /// The inner service for a call that may wait, after its readiness was given back.
    fn give_back(&mut self) -> S {
        let inner = self.inner.clone();
        // The service that was polled ready holds what that gave it, such as a permit, until it is
        // dropped.
        drop(mem::replace(&mut self.inner, inner.clone()));
        inner
    }
}

/// The locked call of a prepared request, or the response of its rejection.
fn locked_or_rejected<S, A, B>(
    settings: &Arc<Settings>,
    inner: S,
    prepared: Prepared<A>,
) -> impl Future<Output = Outcome<B, S::Error>> + Send + use<S, A, B>
where
    S: Service<Request<A>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    A: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
{
    match prepared {
        Ok((claim, request)) => {
            let span = tracing::debug_span!("realm_write_lock", %claim);
            let call = locked_call(Arc::clone(settings), claim, inner, request);
            Either::Left(call.instrument(span))
        }
        Err(rejection) => Either::Right(ready(Ok(settings.reject(&rejection)))),
    }
}

/// One locked call: wait, then call under the lock. Within a call that has the lock already, just the call.
async fn locked_call<S, A, B>(
    layer: Arc<Settings>,
    claim: Claim,
    inner: S,
    mut request: Request<A>,
) -> Outcome<B, S::Error>
where
    S: Service<Request<A>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    A: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
{
    match layer.locks.held_by_task(&claim) {
        Ok(None) => {}
        Ok(Some(held)) => {
            insert(&mut request, &held);
            let response = Box::pin(inner.oneshot(request)).await?;
            return Ok(response.map(LockBody::passed));
        }
        Err(error) => return Ok(layer.reject(&error.into())),
    }
    let mut timing = Timing::begin();
    let hold = match layer.locks.acquire(&claim).await {
        Ok(hold) => hold,
        Err(error) => {
            let mut response = layer.reject(&error.into());
            if layer.server_timing {
                tell(&mut response, timing.header());
            }
            return Ok(response);
        }
    };
    timing.granted();
    insert(&mut request, hold.held());
    let is_head = request.method() == Method::HEAD;
    // Boxed, as is the nested call: whoever waits for the lock would have room for it.
    let call = Box::pin(inner.oneshot(request));
    let work = held_call(Arc::clone(&layer), hold, is_head, call);
    let ended = match layer.on_disconnect {
        OnDisconnect::Finish => layer.locks.run_to_completion(work).await,
        OnDisconnect::Cancel => Ok(work.await),
    };
    // Before the confirmation: by then the next writer is inside.
    let timing = layer.server_timing.then(|| timing.header());
    let mut outcome = match ended {
        Ok((outcome, None)) => outcome,
        Ok((outcome, Some(released))) => match released.confirmed().await {
            Ok(()) => outcome,
            Err(error) => Ok(layer.reject(&error.into())),
        },
        Err(error) => Ok(layer.reject(&error.into())),
    };
    if let (Ok(response), Some(timing)) = (&mut outcome, timing) {
        tell(response, timing);
    }
    outcome
}

/// The inner call under its hold, and the release of a success that is to be confirmed.
///
/// However else it ends, by an error, a panic or by being dropped, the hold is released by its own drop.
async fn held_call<B: Body, E>(
    layer: Arc<Settings>,
    hold: Hold,
    is_head: bool,
    call: impl Future<Output = Result<Response<B>, E>>,
) -> (Outcome<B, E>, Option<Released>) {
    let response = match hold.guard(call).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return (Err(error), None),
        Err(error) => return (Ok(layer.reject(&error.into())), None),
    };
    if !is_success(response.status()) {
        return (Ok(response.map(LockBody::passed)), None);
    }
    if layer.hold_until == HoldUntil::BodyEnd && !is_head {
        let length = length(&response);
        if is_streamed(&response, length) {
            let holding = response.map(|body| LockBody::holding(body, length, hold, &layer.locks));
            return (Ok(holding), None);
        }
    }
    if !layer.confirm && !layer.locks.shares_transaction() {
        if let Err(error) = hold.release_unconfirmed() {
            return (Ok(layer.reject(&error.into())), None);
        }
        return (Ok(response.map(LockBody::passed)), None);
    }
    match hold.release().await {
        Ok(released) => (Ok(response.map(LockBody::passed)), Some(released)),
        Err(error) => (Ok(layer.reject(&error.into())), None),
    }
}

/// Gives the handler what it may ask of the hold.
fn insert<A>(request: &mut Request<A>, held: &HeldLock) {
    let extensions = request.extensions_mut();
    extensions.insert(held.clone());
    if let Some(transaction) = held.transaction() {
        extensions.insert(transaction.clone());
    }
}

/// How many bytes a server sends of the response's body, and then asks for no more.
fn length<B: Body>(response: &Response<B>) -> Option<u64> {
    let said = response.headers().get(header::CONTENT_LENGTH);
    let said = said.and_then(|length| length.to_str().ok()?.parse().ok());
    said.or_else(|| response.body().size_hint().exact())
}

/// Whether a server asks for the response's body at all.
fn is_streamed<B: Body>(response: &Response<B>, length: Option<u64>) -> bool {
    let has_none = matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    !has_none && length != Some(0) && !response.body().is_end_stream()
}

/// Whether the response tells its client that a write happened.
fn is_success(status: StatusCode) -> bool {
    !status.is_client_error() && !status.is_server_error()
}
