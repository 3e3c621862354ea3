use std::error::Error;
use std::future::Future;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::Either;
use http::{Method, Request, Response, Version};
use http_body::Body;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_service::Service;
use tracing::Instrument;

use super::body::LockBody;
use super::future::{CallResult, ResponseFuture};
use super::holding::{is_streamed, is_tunnel, length};
use super::prepare::{Bodies, BodiesOf, Needs, Target, Unread, prepare};
use super::rejected::Rejected;
use super::rejection::Rejection;
use super::request_body::{Reading, RequestBody};
use super::settings::{HoldUntil, OnDisconnect, Settings};
use super::success::Verdict;
use super::timing::{Timing, tell};
use crate::lock::error::LockError;
use crate::lock::grant::Outcome;
use crate::lock::held::HeldLock;
use crate::lock::hold::{Ending, Hold};
use crate::realm::claim::Claim;
use crate::realm::classify::{Decision, Realms};
use crate::realm::head::Head;
use crate::realm::route::MatchedRoute;

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

/// What both services give of the inner one.
macro_rules! accessors {
    () => {
        /// The inner service.
        #[must_use]
        pub fn get_ref(&self) -> &S {
            &self.0.inner
        }

        /// The inner service, to change it. Calls that already wait for their lock go to it as it
        /// was.
        pub fn get_mut(&mut self) -> &mut S {
            &mut self.0.inner
        }

        /// The inner service, without its lock.
        #[must_use]
        pub fn into_inner(self) -> S {
            self.0.inner
        }
    };
}

impl<S> RealmWriteLock<S> {
    accessors!();

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
    accessors!();

    pub(super) fn new(
        inner: S,
        realms: Arc<Realms<<Reading as Bodies>::Reads>>,
        settings: Arc<Settings>,
        bodies: Reading,
    ) -> Self {
        Self(Locking {
            inner,
            realms,
            settings,
            bodies,
        })
    }
}

impl<S, A, B> Service<Request<A>> for RealmWriteLock<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    A: Body + Send + 'static,
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
    fn call<A, B>(&mut self, mut request: Request<A>) -> ResponseFuture<S::Future, B, S::Error>
    where
        S: Service<Request<R::Body>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Send + 'static,
        R: BodiesOf<A>,
        A: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
    {
        let is_enabled = self.settings.enabled;
        let judged = is_enabled.then(|| self.realms.judge(&Head::of(&request)));
        let Some(judged) = judged.flatten() else {
            return ResponseFuture::passed(self.inner.call(request.map(R::unread)));
        };
        let route = MatchedRoute::of(&mut request);
        let head = Head::of(&request).on_route(route.as_ref());
        let decision = self.realms.decide(&head, &judged);
        let settings = self.settings_of(&head, &decision);
        // What it needs before it can ask for its lock.
        let needs = match decision {
            Decision::Pass => {
                return ResponseFuture::passed(self.inner.call(request.map(R::unread)));
            }
            Decision::OtherRoute => {
                self.notice_other_route(route.as_ref());
                return ResponseFuture::passed(self.inner.call(request.map(R::unread)));
            }
            Decision::Claim(claim) => {
                self.notice_repeated_base(&head, &claim);
                if route.is_none() {
                    let reads_routes = || self.realms.read_routes();
                    self.settings.notices.locked_by_path(reads_routes);
                }
                let Some(reads) = self.bodies.reads_all() else {
                    let (inner, request) = (self.give_back(), request.map(R::unread));
                    return ResponseFuture::locked(locked_call(settings, inner, claim, request));
                };
                Needs::Body(Target::Known(claim), reads)
            }
            Decision::Reject(error) => {
                drop(self.give_back());
                let rejected = Rejected::unread(error, request.map(R::unread));
                return ResponseFuture::locked(async move { Ok(settings.reject(rejected)) });
            }
            Decision::NeedsBody(needs, reads) => Needs::Body(Target::InBody(needs), reads),
            Decision::NeedsLookup(lookup) => Needs::Lookup(lookup),
        };
        let inner = self.give_back();
        // Boxed so that waiters do not carry its space.
        let prepared = Box::pin(prepare(self.bodies, needs, request));
        ResponseFuture::locked(async move {
            match prepared.await {
                // Neither a closure nor the body named a realm.
                Ok((None, request)) => {
                    let response = inner.oneshot(request).await?;
                    Ok(response.map(LockBody::passed))
                }
                Ok((Some(claim), request)) => locked_call(settings, inner, claim, request).await,
                Err(rejected) => Ok(settings.reject(rejected)),
            }
        })
    }

    fn notice_other_route(&self, route: Option<&MatchedRoute>) {
        if let Some(route) = route {
            let resembles = || self.realms.resemble(route);
            self.settings.notices.passed(route.path(), resembles);
        }
    }

    fn notice_repeated_base(&self, head: &Head<'_>, claim: &Claim) {
        if let Some(base) = self.realms.repeated_base(head) {
            self.settings.notices.repeated_base(&base, claim);
        }
    }

    /// The settings of one request: the layer's, with the limits of its route.
    fn settings_of(&self, head: &Head<'_>, decision: &Decision<R::Reads>) -> Arc<Settings> {
        let passes = matches!(decision, Decision::Pass | Decision::OtherRoute);
        match self.realms.limits(head).filter(|_| !passes) {
            Some(limits) => Arc::new(self.settings.on_route(limits)),
            None => Arc::clone(&self.settings),
        }
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

/// Why a call has no response of the inner service.
enum Failed<E> {
    Inner(E),
    Rejected(Rejection),
}

impl<E> From<LockError> for Failed<E> {
    fn from(error: LockError) -> Self {
        Self::Rejected(error.into())
    }
}

/// The response of a call whose hold has ended, and the ending that is still to be confirmed.
type HeldResult<B, E> = Result<(Response<LockBody<B>>, Option<Ending>), Failed<E>>;

/// One locked call: waits for its hold, calls under it, and waits for the proof of a success.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` has the space for its arguments twice"
)]
fn locked_call<S, A, B>(
    settings: Arc<Settings>,
    inner: S,
    claim: Claim,
    mut request: Request<A>,
) -> impl Future<Output = CallResult<B, S::Error>> + Send
where
    S: Service<Request<A>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    A: Body + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
{
    async move {
        let span = tracing::debug_span!("realm_write_lock", %claim);
        let asked_at = settings.server_timing.then(Instant::now);
        let outlives_response = settings.may_outlive_response();
        let hold = settings.locks.hold(&claim, outlives_response);
        let hold = match hold.instrument(span.clone()).await {
            Ok(hold) => hold,
            Err(error) => {
                let timing = asked_at.map(|asked| Timing::since(asked).wait());
                let mut response = settings.reject(Rejected::unread(error, request));
                tell(&mut response, timing);
                return Ok(response);
            }
        };
        let clock = asked_at.filter(|_| !hold.is_nested()).map(Timing::since);
        let asked = settings.asked(&request);
        let handle = HeldLock::of(&hold);
        insert(&mut request, &handle);
        let (method, version) = (request.method().clone(), request.version());
        // Boxed so that waiters do not carry space for the inner future.
        let call = Box::pin(inner.oneshot(request));
        let work = held_call(Arc::clone(&settings), hold, method, version, call);
        let work = match settings.on_disconnect {
            OnDisconnect::Finish => Either::Left(settings.locks.run_in_place(work)),
            OnDisconnect::Cancel => Either::Right(Box::pin(work)),
        };
        let called = work.instrument(span.clone()).await;
        // Before the confirmation: by then the next writer is inside.
        let timing = clock.map(|clock| clock.wait_and_hold(handle.released_at()));
        let failed = match called {
            Ok((mut response, None)) => {
                tell(&mut response, timing);
                return Ok(response);
            }
            // Boxed so that waiters do not carry its space.
            Ok((mut response, Some(ending))) => {
                match Box::pin(ending.confirmed()).instrument(span).await {
                    Ok(()) => {
                        tell(&mut response, timing);
                        return Ok(response);
                    }
                    Err(error) => Failed::from(error),
                }
            }
            Err(failed) => failed,
        };
        match failed {
            Failed::Inner(error) => Err(error),
            Failed::Rejected(rejection) => {
                let mut response = settings.reject(asked.rejected(rejection));
                tell(&mut response, timing);
                Ok(response)
            }
        }
    }
}

/// The inner call under its hold, and the end of the hold of a success; the ending is there if it is
/// to be confirmed.
///
/// Whatever else happens, an error, a panic or a drop, ends the hold as a failure.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` has the space for its arguments twice"
)]
fn held_call<B, E>(
    settings: Arc<Settings>,
    hold: Hold,
    method: Method,
    version: Version,
    call: impl Future<Output = Result<Response<B>, E>>,
) -> impl Future<Output = HeldResult<B, E>>
where
    B: Body + Send + 'static,
{
    async move {
        // Taken first, so that it is dropped before the hold even if it was never polled.
        let call = call;
        let response = hold.guard(call).await?.map_err(Failed::Inner)?;
        let length = length(&response);
        let is_streamed = is_streamed(&method, version, &response, length);
        let (head, body) = response.into_parts();
        let head = Response::from_parts(head, ());
        if is_tunnel(&method, head.status()) {
            settings.notices.upgraded(head.status(), hold.claim());
        }
        let verdict = settings.success.judge(&head);
        // A hold that its handler has released is a success already, whatever the body does.
        let is_released = hold.is_released();
        let waits = match verdict {
            Verdict::Success => settings.hold_until == HoldUntil::BodyEnd,
            Verdict::Failure => false,
            Verdict::AtEnd(_) => true,
        };
        if waits && is_streamed && !is_released {
            let body = LockBody::holding(body, length, verdict, hold, &settings.locks);
            return Ok((head.map(|()| body), None));
        }
        let response = head.map(|()| LockBody::passed(body));
        let is_success = match verdict {
            Verdict::AtEnd(_) if is_released => true,
            verdict => verdict.at_end(None),
        };
        if !is_success {
            // Whether the lock was lost makes no difference to a failure.
            let _ = hold.end(Outcome::Failure);
            return Ok((response, None));
        }
        let confirm = settings.confirm || settings.locks.shares_transaction();
        let ending = hold.end(if confirm {
            Outcome::Success
        } else {
            Outcome::Unconfirmed
        })?;
        let waits = confirm && ending.has_proofs();
        Ok((response, waits.then_some(ending)))
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
