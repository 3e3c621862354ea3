//! The options that all layers have in common, and the response of a rejection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;

use super::body::LockBody;
use super::notices::Notices;
use super::rejected::{Asked, Rejected, RejectionFn};
use super::rejection::Rejection;
use super::success::Success;
use crate::lock::locks::RealmLocks;
use crate::realm::classify::{RULES, Realms};
use crate::realm::error::RealmError;
use crate::realm::rules::limits::{MaxHold, RouteLimits};

/// How long a client may take to send a body that is read before its lock, unless the layer says
/// otherwise.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a request keeps its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HoldUntil {
    /// Until the inner service has made its response: status, headers, and a body that may still be
    /// streamed.
    #[default]
    Response,
    /// Until the body of a success has ended or is dropped, for handlers that write while they
    /// stream.
    ///
    /// The head of the response leaves before the lock is confirmed; the last frame of the body
    /// waits for that, and a lock that was lost ends it with an error. A client that reads slowly
    /// keeps the lock, up to [`max_hold`](crate::RealmLocks::max_hold): then, or when the
    /// lock is lost, the body is dropped, and the next writer gets in after its destructor.
    ///
    /// Some responses have a body that no server asks for: a response to HEAD, one with the status
    /// 204 or 304, one of length 0 over HTTP/1, and one that turns the connection into a tunnel,
    /// that is a 101 or a 2xx to CONNECT. Such a response ends its hold when it is made, as with
    /// [`Response`](Self::Response). Data that then flows through a tunnel, such as the messages of
    /// a `WebSocket`, is not under the lock.
    BodyEnd,
}

/// What happens to a granted call whose client has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDisconnect {
    /// It runs to its end, and holds the lock until then: a write is not cut in half.
    ///
    /// A call runs in the task of its caller, with the caller's task-locals and contexts. When the
    /// caller is dropped, a task adopts the call. From then on only the caller's tracing span is
    /// left of these.
    #[default]
    Finish,
    /// It is dropped, and the lock is released as soon as work that it has started with
    /// [`HeldLock::spawn_blocking`](crate::HeldLock::spawn_blocking) or
    /// [`HeldLock::spawn`](crate::HeldLock::spawn) has ended. Blocking work that was started in
    /// another way, such as all of `tokio::fs`, runs on without the lock.
    Cancel,
}

/// How requests are locked. What decides which ones are locked is apart from this.
#[derive(Clone)]
pub(super) struct Settings {
    /// Whether anything is locked at all.
    pub(super) enabled: bool,
    /// The warnings that were logged; the same for all clones.
    pub(super) notices: Arc<Notices>,
    pub(super) locks: RealmLocks,
    pub(super) confirm: bool,
    pub(super) server_timing: bool,
    pub(super) success: Success,
    pub(super) hold_until: HoldUntil,
    pub(super) on_disconnect: OnDisconnect,
    pub(super) body_timeout: Duration,
    /// The name of the fleet that the layer belongs to.
    pub(super) fleet: Option<Arc<str>>,
    /// Makes the responses of rejections in place of [`Rejection::to_response_for`].
    pub(super) rejection: Option<Arc<RejectionFn>>,
    /// The limits of the request's route, if it has any.
    route: Option<RouteLimits>,
}

impl Settings {
    pub(super) fn new(locks: RealmLocks) -> Self {
        Self {
            enabled: true,
            notices: Arc::default(),
            locks,
            confirm: true,
            server_timing: false,
            success: Success::default(),
            hold_until: HoldUntil::default(),
            on_disconnect: OnDisconnect::default(),
            body_timeout: BODY_TIMEOUT,
            fleet: None,
            rejection: None,
            route: None,
        }
    }

    /// Publishes the layer's fingerprint, if it belongs to a fleet, so that replicas which disagree
    /// find out.
    pub(super) fn join_fleet<B>(&self, realms: &Realms<B>) {
        let Some(fleet) = &self.fleet else {
            return;
        };
        let mut fingerprint = realms.fingerprint();
        if !self.enabled {
            let rules = fingerprint.iter_mut().filter(|(name, _)| *name == RULES);
            rules.for_each(|(_, text)| *text = "enabled(false): nothing is locked".into());
        }
        self.locks.join_fleet(fleet, fingerprint);
    }

    /// Whether a hold may last longer than the inner call.
    pub(super) fn may_outlive_response(&self) -> bool {
        self.hold_until == HoldUntil::BodyEnd || self.success.reads_trailers()
    }

    /// These settings with the limits of a route in place of the layer's.
    pub(super) fn on_route(&self, limits: &RouteLimits) -> Self {
        let mut settings = self.clone();
        if let Some(timeout) = limits.acquire_timeout {
            settings.locks = settings.locks.acquire_timeout(timeout);
        }
        if let Some(MaxHold(max_hold)) = limits.max_hold {
            settings.locks = settings.locks.max_hold(max_hold);
        }
        settings.route = Some(limits.clone());
        settings
    }

    /// What the response of a later rejection needs of this request, which the inner service gets.
    pub(super) fn asked<A>(&self, request: &Request<A>) -> Asked {
        Asked::of(request, self.rejection.is_some())
    }

    /// The response of a rejected request: logged, and counted. The rest of its body is drained in
    /// the background.
    pub(super) fn reject<B: Body>(&self, rejected: Rejected) -> Response<LockBody<B>> {
        let Rejected {
            rejection,
            asked,
            drain,
        } = rejected;
        let rejection = match &self.route {
            Some(limits) => rejection.on_route(limits),
            None => rejection,
        };
        let code = rejection.code();
        crate::metrics::rejected(code);
        match &rejection {
            Rejection::Realm(error @ RealmError::Unavailable { .. }) => {
                tracing::warn!(code, %error, "a write was rejected");
            }
            Rejection::Realm(error) => self.notices.rejected(code, error),
            Rejection::Body(error) => tracing::debug!(code, %error, "a request was rejected"),
            Rejection::Lock(error) | Rejection::Busy { error, .. } => {
                tracing::warn!(code, %error, "a write was rejected");
            }
        }
        let mut response = asked.response(&rejection, self.rejection.as_deref());
        response.extensions_mut().insert(rejection);
        if let Some(drain) = drain {
            drain.start();
        }
        response.map(LockBody::rejected)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("enabled", &self.enabled)
            .field("locks", &self.locks)
            .field("confirm", &self.confirm)
            .field("server_timing", &self.server_timing)
            .field("success", &self.success)
            .field("hold_until", &self.hold_until)
            .field("on_disconnect", &self.on_disconnect)
            .field("body_timeout", &self.body_timeout)
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
}
