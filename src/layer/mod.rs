//! *Where* it applies: the tower layer around a handler.
//!
//! [`RealmWriteLockLayer`] asks the realm room for a request's realm, the lock room for a hold, calls the inner service,
//! and releases.

mod asking;
mod body;
mod future;
mod holding;
#[cfg(feature = "serde")]
mod limits;
mod read_body;
mod rejection;
mod service;
mod timing;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Body;
use tower_layer::Layer;

pub use self::body::LockBody;
pub use self::future::ResponseFuture;
#[cfg(feature = "serde")]
pub use self::limits::Limits;
use self::read_body::BodyReading;
pub use self::read_body::{BodyError, ReadBody};
pub use self::rejection::Rejection;
pub use self::service::RealmWriteLock;
use crate::lock::RealmLocks;
use crate::realm::{LockRules, RealmResolver};

/// Holds the write lock of a request's realm for the whole inner call.
///
/// For every service over `http` requests and responses, with any request body, and any response body whose data can be
/// made of [`Bytes`]. The error type stays the inner service's own. Cheap to clone.
///
/// Put it outside of what reads the request body and inside of what should see rejections, such as tracing. Every route
/// that writes to a realm must be inside it. Axum's `nest` takes away the beginning of the path: with the feature `axum` the layer
/// sees the whole of it wherever it is, without it the layer goes outside of `nest`.
///
/// A call that it runs within another one's lock of the same realm, in the same task, runs straight through.
#[derive(Clone)]
pub struct RealmWriteLockLayer {
    locks: RealmLocks,
    realms: RealmResolver,
    rules: LockRules,
    bodies: BodyReading,
    confirm: bool,
    server_timing: bool,
    hold_until: HoldUntil,
    on_disconnect: OnDisconnect,
    rejection: Arc<RejectionFn>,
}

type RejectionFn = dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync;

/// How long a request keeps its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HoldUntil {
    /// Until the inner service has made its response: status, headers, and a body that may still be streamed.
    #[default]
    Response,
    /// Until the body of a success has ended or is dropped, for handlers that write while they stream.
    ///
    /// The head of the response leaves before the lock is confirmed; the last frame of the body waits for that, and a lock that
    /// was lost ends it with an error. A client that reads slowly keeps the lock, up to
    /// [`max_hold`](RealmWriteLockLayer::max_hold). A body for which no server asks, of a response to HEAD or with the status 204 or
    /// 304, does not keep it.
    BodyEnd,
}

/// What becomes of a granted call whose client has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDisconnect {
    /// It runs to its end, and holds the lock until then: a write is not cut in half.
    ///
    /// For that it runs on a task of its own, which has the caller's tracing span but not its task-locals.
    #[default]
    Finish,
    /// It is dropped, and the lock is released. Blocking work that it has started runs on without the lock.
    Cancel,
}

impl RealmWriteLockLayer {
    /// A layer that locks with `locks` the realms that `realms` finds, for every method that is not safe.
    ///
    /// `realms` is a [`RealmPaths`](crate::RealmPaths), a [`RealmMounts`](crate::RealmMounts), a
    /// [`RealmPointers`](crate::RealmPointers) or a [`RealmResolver`] that combines them.
    #[must_use]
    pub fn new(locks: RealmLocks, realms: impl Into<RealmResolver>) -> Self {
        Self {
            locks,
            realms: realms.into(),
            rules: LockRules::default(),
            bodies: BodyReading::default(),
            confirm: true,
            server_timing: false,
            hold_until: HoldUntil::default(),
            on_disconnect: OnDisconnect::default(),
            rejection: Arc::new(Rejection::to_response),
        }
    }

    /// Sets the limits that a configuration file has; those that it leaves out stay as they are.
    #[cfg(feature = "serde")]
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        limits.applied_to(self)
    }

    /// Which requests are locked, and how much of their realm. Default: all but the safe methods, and the realm as a whole.
    #[must_use]
    pub fn rules(mut self, rules: LockRules) -> Self {
        self.rules = rules;
        self
    }

    /// Reads the bodies of requests whose realms or resources stand in them, up to `limit` bytes. Default: none is read.
    ///
    /// `make` gives the inner service what was read, in the type of body that it takes: the same bytes and trailers. In axum that is
    /// `axum::body::Body::new`. A body is read before its request waits for a lock, and only where a [`RealmPointers`], a
    /// [`Scope`] or a closure needs it; every other request keeps the very body that it came with.
    ///
    /// A longer body is answered with 413 `body-too-large`, one that breaks off with 400 `body-broken`, and one that takes longer than the
    /// [`body_timeout`](Self::body_timeout) with 408 `body-timeout`. What was read stays in memory while its request waits: at
    /// most `limit` bytes for each. A request whose body must be read, and has another type than the one that `make` makes, is answered
    /// with 500 `body-unread`.
    ///
    /// ```
    /// use http::Method;
    /// use tower_realm_lock::{LockRules, RealmLocks, RealmPaths, RealmWriteLockLayer, Scope};
    ///
    /// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    /// let rules = LockRules::new()
    ///     .scope(Method::POST, "/{owner}/{realm}/_atomic", Scope::atomic_hrefs())?;
    /// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms)
    ///     .rules(rules)
    ///     .read_bodies(1024 * 1024, axum::body::Body::new);
    /// # let _ = layer;
    /// # Ok::<(), tower_realm_lock::RealmError>(())
    /// ```
    ///
    /// [`RealmPointers`]: crate::RealmPointers
    /// [`Scope`]: crate::Scope
    #[must_use]
    pub fn read_bodies<A, F>(mut self, limit: usize, make: F) -> Self
    where
        A: Body + Send + 'static,
        A::Data: Send,
        A::Error: Into<Box<dyn Error + Send + Sync>>,
        F: Fn(ReadBody) -> A + Send + Sync + 'static,
    {
        self.bodies.set(limit, make);
        self
    }

    /// How long a client may take to send a body that is read before its lock. Default 30 seconds.
    #[must_use]
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.bodies.timeout = timeout;
        self
    }

    /// How long a request waits for its lock, in the queue and in PostgreSQL together. Default: what `locks` says, 10
    /// seconds unless changed there.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.locks = self.locks.acquire_timeout(timeout);
        self
    }

    /// How long an inner call may hold its lock before it is dropped and answered with 504; `None` for no bound. Default:
    /// what `locks` says, 5 minutes unless changed there.
    #[must_use]
    pub fn max_hold(mut self, max_hold: impl Into<Option<Duration>>) -> Self {
        self.locks = self.locks.max_hold(max_hold);
        self
    }

    /// How many requests may wait for one realm in this process; the next is rejected at once. Default: what `locks` says,
    /// 1024 unless changed there.
    #[must_use]
    pub fn max_waiters_per_realm(mut self, waiters: usize) -> Self {
        self.locks = self.locks.max_waiters_per_realm(waiters);
        self
    }

    /// Whether handlers may run their own SQL in the transaction that holds the lock: `Extension<LockTransaction>`. Default
    /// `false`.
    ///
    /// A success then commits before its response leaves, or is answered with 503 `commit-failed`; everything else rolls
    /// back. Under [`HoldUntil::BodyEnd`] the body's end commits, and a body that breaks off rolls back. See
    /// [`LockTransaction`](crate::LockTransaction).
    #[must_use]
    pub fn share_transaction(mut self, share: bool) -> Self {
        self.locks = self.locks.share_transaction(share);
        self
    }

    /// Whether a success waits for PostgreSQL's word that the lock was held to the end. Default `true`.
    ///
    /// `false` saves its client a round trip. A lock that was lost unnoticed in the last moments of a call is then answered
    /// with a success.
    #[must_use]
    pub fn confirm(mut self, confirm: bool) -> Self {
        self.confirm = confirm;
        self
    }

    /// Whether a client is told how long its request waited for the lock and held it, in milliseconds:
    /// `Server-Timing: lock-wait;dur=1.250, lock-hold;dur=20.125`. Default `false`: it tells how busy a realm is.
    ///
    /// It is added to what the handler says there. A request that was refused its lock has `lock-wait` only; one that was
    /// not to be locked, whose realm could not be told, or that runs within another one's lock, has none. Browsers show it in their
    /// tools and to scripts of the same origin (Server Timing, W3C).
    #[must_use]
    pub fn server_timing(mut self, tell: bool) -> Self {
        self.server_timing = tell;
        self
    }

    /// How long a request keeps its lock. Default [`HoldUntil::Response`].
    #[must_use]
    pub fn hold_until(mut self, hold_until: HoldUntil) -> Self {
        self.hold_until = hold_until;
        self
    }

    /// What becomes of a granted call whose client has gone. Default [`OnDisconnect::Finish`].
    #[must_use]
    pub fn on_disconnect(mut self, on_disconnect: OnDisconnect) -> Self {
        self.on_disconnect = on_disconnect;
        self
    }

    /// Makes the responses of rejections. Default [`Rejection::to_response`].
    ///
    /// It is called for each rejected request, and must not block. Whatever it makes, the [`Rejection`] is added to the response's
    /// extensions.
    ///
    /// ```
    /// use http::Response;
    /// use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};
    ///
    /// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    /// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms).rejection(|rejection| {
    ///     let mut response = Response::new(rejection.detail().into());
    ///     *response.status_mut() = rejection.status();
    ///     response
    /// });
    /// # let _ = layer;
    /// # Ok::<(), tower_realm_lock::RealmError>(())
    /// ```
    #[must_use]
    pub fn rejection<F>(mut self, response: F) -> Self
    where
        F: Fn(&Rejection) -> Response<Bytes> + Send + Sync + 'static,
    {
        self.rejection = Arc::new(response);
        self
    }
}

impl<S> Layer<S> for RealmWriteLockLayer {
    type Service = RealmWriteLock<S>;

    fn layer(&self, inner: S) -> RealmWriteLock<S> {
        RealmWriteLock::new(inner, self.clone())
    }
}

impl fmt::Debug for RealmWriteLockLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealmWriteLockLayer")
            .field("locks", &self.locks)
            .field("realms", &self.realms)
            .field("rules", &self.rules)
            .field("bodies", &self.bodies)
            .field("confirm", &self.confirm)
            .field("server_timing", &self.server_timing)
            .field("hold_until", &self.hold_until)
            .field("on_disconnect", &self.on_disconnect)
            .finish_non_exhaustive()
    }
}
