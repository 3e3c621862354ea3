use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};
use tower_layer::Layer;

#[cfg(feature = "serde")]
use super::limits::Limits;
use super::prepare::{Bodies, Unread};
use super::rejection::Rejection;
use super::request_body::Reading;
use super::service::{RealmBodyLock, RealmWriteLock};
use super::settings::{HoldUntil, OnDisconnect, Settings};
use super::success::Success;
use crate::config::ConfigError;
use crate::lock::locks::RealmLocks;
use crate::realm::classify::Realms;
use crate::realm::explain::Explanation;
use crate::realm::resolve::resolver::{RealmBodyResolver, RealmResolver};
use crate::realm::review::Summary;
use crate::realm::rules::lock_rules::LockRules;
use crate::realm::unresolved::Unresolved;

/// Holds the write lock of a request's realm for the whole inner call.
///
/// For every service over `http` requests and responses, with any request body, and any response
/// body whose data can be made of [`Bytes`]. Both are [`http_body::Body`]s. The error type stays
/// the inner service's own. Cheap to clone.
///
/// Put it outside of what reads the request body and inside of what should see rejections, such as
/// tracing. Every route that writes to a realm must be inside it. Axum's `nest` takes away the
/// beginning of the path: with the feature `axum` the layer sees the whole of it wherever it is,
/// without it the layer goes outside of `nest`.
///
/// A call within another call of the same task that holds the lock of the same realm gets a nested
/// hold: see [`RealmLocks::with_write_lock`].
///
/// It reads no request bodies. [`read_bodies`](Self::read_bodies) makes a layer that does.
#[derive(Debug, Clone)]
pub struct RealmWriteLockLayer {
    realms: Arc<Realms<<Unread as Bodies>::Reads>>,
    settings: Settings,
}

/// A [`RealmWriteLockLayer`] that also finds realms and resources in the bodies of requests.
///
/// The inner service gets a [`RequestBody`](crate::RequestBody): the bytes and trailers that were
/// read, or the client's own body where it was not read. axum's routes take it as it is. A body is
/// read before its request waits for a lock, and only if a [`RealmPointers`], a [`Scope`] or a
/// closure needs it, unless [`read_all`](Self::read_all) is set.
///
/// A body that is longer than the limit is answered with 413 `body-too-large`, one that breaks off
/// with 400 `body-broken`, and one that takes longer than the [`body_timeout`](Self::body_timeout)
/// with 408 `body-timeout`. What was read stays in memory while its request waits: at most the
/// limit for each request.
///
/// The [front page](crate#what-is-locked) has an example.
///
/// A service over other bodies names the [`RequestBody`](crate::RequestBody) in its type:
/// `Request<RequestBody<B>>`.
///
/// [`RealmPointers`]: crate::RealmPointers
/// [`Scope`]: crate::Scope
#[derive(Debug, Clone)]
pub struct RealmBodyLockLayer {
    realms: Arc<Realms<<Reading as Bodies>::Reads>>,
    settings: Settings,
    limit: usize,
    read_all: bool,
}

/// The options that both layers have.
macro_rules! options {
    () => {
        /// Sets the limits that a configuration file has. Limits that it leaves out stay as they
        /// are.
        #[cfg(feature = "serde")]
        #[must_use]
        pub fn limits(self, limits: Limits) -> Self {
            let settings = limits.applied_to(self.settings);
            Self { settings, ..self }
        }

        /// Whether the layer locks anything. Default `true`.
        ///
        /// `false` passes every request without a lock, and logs that at WARN when the layer
        /// starts: a switch for an emergency, and for tests of a service without its locks. Nothing
        /// is refused, no body is read, and handlers get no [`HeldLock`](crate::HeldLock), so one
        /// that requires it fails. Every replica of a service must have it the same way.
        #[must_use]
        pub fn enabled(mut self, enabled: bool) -> Self {
            self.settings.enabled = enabled;
            self.reviewed_anew()
        }

        /// How the layer treats a request that must be locked but names no realm. Default
        /// [`Unresolved::Refuse`].
        #[must_use]
        pub fn unresolved(self, unresolved: Unresolved) -> Self {
            let realms = Arc::unwrap_or_clone(self.realms).with_unresolved(unresolved);
            let realms = Arc::new(realms);
            Self { realms, ..self }.reviewed_anew()
        }

        /// Explains how the layer treats a request: whether it is locked, by which rule, for which
        /// realm and resources, and with which keys in PostgreSQL.
        ///
        /// `uri` is a path, or a URL where the host counts. The code that decides on requests makes
        /// the decision, as for a request without headers, extensions and body.
        ///
        /// ```
        /// use http::Method;
        /// use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};
        ///
        /// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
        /// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms);
        /// let explanation = layer.explain(&Method::PATCH, "/luke/my-realm/cards/1");
        /// println!("{explanation}");
        /// assert_eq!(explanation.realms()[0].as_str(), "https://realms.example.com/luke/my-realm/");
        /// # Ok::<(), tower_realm_lock::ConfigError>(())
        /// ```
        #[must_use]
        pub fn explain(&self, method: &Method, uri: &str) -> Explanation {
            self.explained(method, uri, None)
        }

        /// Explains how the layer treats a request that axum's router sends to `route`, such as
        /// `/{owner}/{realm}/{*card}`, as [`explain`](Self::explain) does without a router.
        ///
        /// The route is the whole one, with all that it is nested in.
        #[cfg(feature = "axum")]
        #[must_use]
        pub fn explain_route(&self, method: &Method, route: &str, uri: &str) -> Explanation {
            self.explained(method, uri, Some(route))
        }

        fn explained(&self, method: &Method, uri: &str, route: Option<&str>) -> Explanation {
            let mut explanation = self.realms.explain(method, uri, route);
            if self.settings.locks.has_realm_keys() {
                explanation = explanation.with_realm_keys();
            }
            if self.settings.enabled {
                explanation
            } else {
                explanation.switched_off()
            }
        }

        /// Makes the layer start again, although it has done so before: it has other options now.
        fn reviewed_anew(mut self) -> Self {
            self.settings.notices = Arc::default();
            self
        }

        /// Changes the bounds of this layer's locks: how long a request waits and holds, how many
        /// wait, and whether handlers share the transaction. They are options of [`RealmLocks`],
        /// and what else has a clone of the same locks keeps its own.
        ///
        /// ```
        /// use std::time::Duration;
        ///
        /// use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};
        ///
        /// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
        /// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms);
        /// // For the routes of batches.
        /// let patient = layer
        ///     .clone()
        ///     .map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)));
        /// # let _ = patient;
        /// # Ok::<(), tower_realm_lock::ConfigError>(())
        /// ```
        #[must_use]
        pub fn map_locks(mut self, change: impl FnOnce(RealmLocks) -> RealmLocks) -> Self {
            let before = self.settings.locks.clone();
            self.settings.locks = change(self.settings.locks);
            if self.settings.locks.is_of(&before) {
                return self;
            }
            self.reviewed_anew()
        }

        /// Whether a success waits until PostgreSQL has confirmed that the lock was held to the
        /// end. Default `true`.
        ///
        /// `false` saves its client a round trip. A client may then see a success although its lock
        /// was lost in the last moments of the call.
        #[must_use]
        pub fn confirm(mut self, confirm: bool) -> Self {
            self.settings.confirm = confirm;
            self
        }

        /// Whether a client is told how long its request waited for the lock and held it, in
        /// milliseconds: `Server-Timing: lock-wait;dur=1.250, lock-hold;dur=20.125`. Default
        /// `false`: it tells how busy a realm is.
        ///
        /// It is added to the header that the handler sets. A request that did not get its lock has
        /// only `lock-wait`. A request that is not locked, whose realm could not be found, or that
        /// runs under the lock of an outer call, has neither. Browsers show it in their tools and
        /// to scripts of the same origin (Server Timing, W3C).
        #[must_use]
        pub fn server_timing(mut self, tell: bool) -> Self {
            self.settings.server_timing = tell;
            self
        }

        /// Which responses are successes: they commit, are published and are confirmed. Default: a
        /// status below 400.
        ///
        /// A [`Success`] that reads trailers holds the lock until the body has ended, whatever
        /// [`hold_until`](Self::hold_until) is.
        #[must_use]
        pub fn success(mut self, success: Success) -> Self {
            self.settings.success = success;
            self
        }

        /// How long a request keeps its lock. Default [`HoldUntil::Response`].
        #[must_use]
        pub fn hold_until(mut self, hold_until: HoldUntil) -> Self {
            self.settings.hold_until = hold_until;
            self
        }

        /// What happens to a granted call whose client has gone. Default [`OnDisconnect::Finish`].
        #[must_use]
        pub fn on_disconnect(mut self, on_disconnect: OnDisconnect) -> Self {
            self.settings.on_disconnect = on_disconnect;
            self
        }

        /// Makes replicas that are configured differently find out: they would lock one realm by
        /// two keys, or not at all, and write it at once. Default: none.
        ///
        /// From the first service that is made of the layer, this process publishes a fingerprint
        /// through PostgreSQL: of the resolver with its base URL and patterns; of the rules, of how
        /// [`unresolved`](Self::unresolved) requests are treated, and of whether the layer is
        /// [`enabled`](Self::enabled); and of the scheme of the keys. About every 10 seconds it looks
        /// at the other replicas of the fleet with this `name`. Each difference is logged as an error
        /// once, and an INFO follows when it is gone; the feature `metrics` counts them. Nothing is
        /// refused: the replicas of a rolling update may differ for a while.
        ///
        /// Layers with the same name and clones of one [`RealmLocks`] count together. A closure
        /// counts only as a closure, and [`RealmMounts`](crate::RealmMounts) without its realms. Two
        /// versions of this crate may write the same configuration as different texts.
        ///
        /// It takes one connection beside the pool for each [`RealmLocks`], with a transaction that
        /// stays open and writes nothing. With locks in process there is only a warning. See
        /// `docs/operations.md`, *Fleets*.
        #[must_use]
        pub fn fleet(mut self, name: &str) -> Self {
            self.settings.fleet = Some(name.into());
            self.reviewed_anew()
        }

        /// Makes the responses of rejections, from the rejection and the head of its request.
        /// Default [`Rejection::to_response_for`], which the closure can call for rejections that
        /// it does not change.
        ///
        /// It is called for each rejected request, including gRPC requests, and must not block. The
        /// head is the one that the layer received. With a closure, the head of each granted
        /// request is copied, extensions included. Whatever the closure makes, the [`Rejection`] is
        /// added to the response's extensions.
        ///
        /// ```
        /// use http::StatusCode;
        /// use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};
        ///
        /// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
        /// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms).rejection(
        ///     |rejection, head| match rejection.code() {
        ///         "lock-timeout" if head.uri.path().ends_with("/_publish") => {
        ///             rejection.to_response_with_status(StatusCode::CONFLICT)
        ///         }
        ///         _ => rejection.to_response_for(head),
        ///     },
        /// );
        /// # let _ = layer;
        /// # Ok::<(), tower_realm_lock::ConfigError>(())
        /// ```
        #[must_use]
        pub fn rejection<F>(mut self, response: F) -> Self
        where
            F: Fn(&Rejection, &Parts) -> Response<Bytes> + Send + Sync + 'static,
        {
            self.settings.rejection = Some(Arc::new(response));
            self
        }
    };
}

impl RealmWriteLockLayer {
    /// A layer that locks with `locks` the realms that `realms` finds, for every method that is not
    /// safe.
    ///
    /// `realms` is a [`RealmPaths`](crate::RealmPaths), a [`RealmMounts`](crate::RealmMounts), or a
    /// [`RealmResolver`] that combines them. A resolver that needs the body of a request needs a
    /// [`RealmBodyLockLayer`]. This does not compile:
    ///
    /// ```compile_fail,E0277
    /// use tower_realm_lock::{RealmLocks, RealmPointers, RealmWriteLockLayer};
    ///
    /// let realms = RealmPointers::new(["/realmURL"])?;
    /// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms);
    /// # Ok::<(), tower_realm_lock::ConfigError>(())
    /// ```
    #[must_use]
    pub fn new(locks: RealmLocks, realms: impl Into<RealmResolver>) -> Self {
        Self {
            realms: Arc::new(Realms::of_heads(realms.into())),
            settings: Settings::new(locks),
        }
    }

    /// Which requests are locked, and how much of their realm. Default: all but the safe methods,
    /// and the realm as a whole.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BodyNeeded`] if a [`Scope`](crate::Scope) needs the body of a request, such as
    /// [`Scope::atomic_hrefs`](crate::Scope::atomic_hrefs): call [`read_bodies`](Self::read_bodies)
    /// before.
    pub fn rules(self, rules: LockRules) -> Result<Self, ConfigError> {
        let realms = Arc::unwrap_or_clone(self.realms).with_head_rules(rules)?;
        let realms = Arc::new(realms);
        Ok(Self { realms, ..self }.reviewed_anew())
    }

    /// The same layer, with the same options, that also reads bodies of up to `limit` bytes: for
    /// [`rules`](RealmBodyLockLayer::rules) with scopes that need them, or to
    /// [read all bodies](RealmBodyLockLayer::read_all).
    ///
    /// A [`RealmBodyResolver`] goes to [`RealmBodyLockLayer::new`].
    #[must_use]
    pub fn read_bodies(self, limit: usize) -> RealmBodyLockLayer {
        RealmBodyLockLayer {
            realms: Arc::new(Arc::unwrap_or_clone(self.realms).with_bodies()),
            settings: self.settings,
            limit,
            read_all: false,
        }
    }

    options!();
}

impl RealmBodyLockLayer {
    /// A layer that locks with `locks` the realms that `realms` finds, for every method that is not
    /// safe, and reads bodies of up to `limit` bytes where it needs them.
    ///
    /// `realms` is a [`RealmPointers`](crate::RealmPointers), a [`RealmBodyResolver`], or anything
    /// that a [`RealmWriteLockLayer`] takes.
    #[must_use]
    pub fn new(locks: RealmLocks, realms: impl Into<RealmBodyResolver>, limit: usize) -> Self {
        Self {
            realms: Arc::new(Realms::of_bodies(realms.into())),
            settings: Settings::new(locks),
            limit,
            read_all: false,
        }
    }

    /// Which requests are locked, and how much of their realm. Default: all but the safe methods,
    /// and the realm as a whole.
    #[must_use]
    pub fn rules(self, rules: LockRules) -> Self {
        let realms = Arc::unwrap_or_clone(self.realms).with_rules(rules);
        let realms = Arc::new(realms);
        Self { realms, ..self }.reviewed_anew()
    }

    /// Whether the body of each locked request is read before the request waits for its lock, even
    /// if nothing has to be found in it. Default `false`.
    ///
    /// Without it, the handler reads such a body under the lock. A client that sends slowly, or
    /// stops, then holds its realm and a lock connection, up to
    /// [`max_hold`](RealmLocks::max_hold). One that vanishes while it waits may be noticed only at
    /// [`acquire_timeout`](RealmLocks::acquire_timeout), because an HTTP/1.1 server misses the
    /// disconnect until somebody reads the body.
    ///
    /// With it, neither happens. The price is memory: each waiting request keeps its body, up to the
    /// layer's limit, and a longer one is answered with 413 `body-too-large`. Large uploads are best
    /// stored elsewhere first, and published by a request that only names them: see
    /// `docs/operations.md`.
    #[must_use]
    pub fn read_all(mut self, all: bool) -> Self {
        self.read_all = all;
        self
    }

    /// How long a client may take to send a body that is read before its lock. Default 30 seconds.
    #[must_use]
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.settings.body_timeout = timeout;
        self
    }

    options!();
}

impl<S> Layer<S> for RealmWriteLockLayer {
    type Service = RealmWriteLock<S>;

    fn layer(&self, inner: S) -> RealmWriteLock<S> {
        start(&self.realms, &self.settings);
        let settings = Arc::new(self.settings.clone());
        RealmWriteLock::new(inner, Arc::clone(&self.realms), settings)
    }
}

impl<S> Layer<S> for RealmBodyLockLayer {
    type Service = RealmBodyLock<S>;

    fn layer(&self, inner: S) -> RealmBodyLock<S> {
        start(&self.realms, &self.settings);
        let settings = Arc::new(self.settings.clone());
        let bodies = Reading {
            limit: self.limit,
            timeout: settings.body_timeout,
            all: self.read_all,
        };
        RealmBodyLock::new(inner, Arc::clone(&self.realms), settings, bodies)
    }
}

/// Joins the fleet, and logs what a layer locks and what is wrong with its rules, when it is first
/// put around a service. axum puts it around each route.
fn start<B>(realms: &Realms<B>, settings: &Settings) {
    if !settings.notices.is_start() {
        return;
    }
    settings.join_fleet(realms);
    let Summary {
        realms: found,
        rules,
        unresolved,
    } = realms.summary();
    let locks = settings.locks.backend();
    if settings.enabled {
        tracing::info!(
            realms = found,
            rules,
            unresolved,
            locks,
            "every request whose method is not safe is locked, subject to the rules"
        );
    } else {
        tracing::warn!(
            realms = found,
            rules,
            "nothing is locked: the realm lock layer is switched off with `enabled(false)`"
        );
    }
    for warning in realms.warnings() {
        tracing::warn!("{warning}");
    }
}
