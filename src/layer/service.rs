use std::future::{Future, ready};
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body;
use tower::ServiceExt;
use tower_service::Service;
use tracing::Instrument;

use super::asking::Verdict;
use super::future::Outcome;
use super::timing::{Timing, tell};
use super::{
    BodyError, HoldUntil, LockBody, OnDisconnect, RealmWriteLockLayer, Rejection, ResponseFuture,
};
use crate::lock::{Claim, HeldLock, Hold, Released};
use crate::realm::RealmError;

/// A service whose mutating calls hold their realm's lock. Made by [`RealmWriteLockLayer`].
///
/// Its readiness is the inner service's. A call that must wait for a lock gives that readiness back first, and asks again
/// once it has the lock: waiting takes no concurrency permit away from others.
#[derive(Debug, Clone)]
pub struct RealmWriteLock<S> {
    inner: S,
    layer: Arc<RealmWriteLockLayer>,
}

impl<S> RealmWriteLock<S> {
    pub(super) fn new(inner: S, layer: RealmWriteLockLayer) -> Self {
        Self {
            inner,
            layer: Arc::new(layer),
        }
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
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        match self.layer.judge(&request) {
            Verdict::Pass => ResponseFuture::passed(self.inner.call(request)),
            Verdict::Lock(claim) => {
                let (layer, inner) = self.given_back();
                let span = span(&claim);
                ResponseFuture::locked(locked_call(layer, claim, inner, request).instrument(span))
            }
            Verdict::Ask => {
                let (layer, inner) = self.given_back();
                ResponseFuture::locked(async move {
                    // Boxed: whoever waits for the lock would have room for it.
                    let (claim, request) = match Box::pin(layer.ask(request)).await {
                        Ok(asked) => asked,
                        Err(rejection) => return Ok(layer.reject(&rejection)),
                    };
                    let span = span(&claim);
                    let call = locked_call(layer, claim, inner, request);
                    call.instrument(span).await
                })
            }
            Verdict::Reject(rejection) => {
                let (layer, _) = self.given_back();
                ResponseFuture::locked(ready(Ok(layer.reject(&rejection))))
            }
        }
    }
}

impl<S: Clone> RealmWriteLock<S> {
    /// What a call that may wait goes on with, after it has given back the inner service's readiness.
    fn given_back(&mut self) -> (Arc<RealmWriteLockLayer>, S) {
        let inner = self.inner.clone();
        // The service that was polled ready holds what that gave it, such as a permit, until it is dropped.
        drop(mem::replace(&mut self.inner, inner.clone()));
        (Arc::clone(&self.layer), inner)
    }
}

fn span(claim: &Claim) -> tracing::Span {
    tracing::debug_span!("realm_write_lock", %claim)
}

/// One locked call: wait, then call under the lock. Within a call that has the lock already, just the call.
async fn locked_call<S, A, B>(
    layer: Arc<RealmWriteLockLayer>,
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
    layer: Arc<RealmWriteLockLayer>,
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

impl RealmWriteLockLayer {
    fn reject<B: Body>(&self, rejection: &Rejection) -> Response<LockBody<B>> {
        let code = rejection.code();
        crate::metrics::rejected(code);
        match rejection {
            Rejection::Realm(error @ RealmError::Unavailable { .. }) => {
                tracing::warn!(code, %error, "a write was rejected");
            }
            Rejection::Realm(error) => tracing::debug!(code, %error, "a request was rejected"),
            Rejection::Body(error @ BodyError::Unread { .. }) => {
                tracing::error!(code, %error, "a write was rejected");
            }
            Rejection::Body(error) => tracing::debug!(code, %error, "a request was rejected"),
            Rejection::Lock(error) => tracing::warn!(code, %error, "a write was rejected"),
        }
        let mut response = (self.rejection)(rejection);
        response.extensions_mut().insert(rejection.clone());
        response.map(LockBody::rejected)
    }
}
