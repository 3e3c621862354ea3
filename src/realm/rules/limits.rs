use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::config::ConfigError;

/// The limits of one route, and how its requests are answered while the realm is busy.
///
/// The layer's own limits apply where none is set here. Used by
/// [`LockRules::limits`](crate::LockRules::limits).
///
/// ```
/// use std::time::Duration;
///
/// use http::{Method, StatusCode};
/// use tower_realm_lock::{LockRules, RouteLimits};
///
/// // Batches take long. An export does not wait: if the realm is busy, its client gets 423.
/// let batch = RouteLimits::new()
///     .acquire_timeout(Duration::from_secs(60))
///     .max_hold(Duration::from_secs(30 * 60));
/// let export = RouteLimits::new()
///     .acquire_timeout(Duration::ZERO)
///     .busy_status(StatusCode::LOCKED)?
///     .busy_detail("someone is writing to this realm; export it later");
/// let rules = LockRules::new()
///     .limits(Method::POST, "/{owner}/{realm}/_batch", batch)?
///     .limits(Method::POST, "/{owner}/{realm}/_export", export)?;
/// # let _ = rules;
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct RouteLimits {
    pub(crate) acquire_timeout: Option<Duration>,
    pub(crate) max_hold: Option<MaxHold>,
    pub(crate) busy_status: Option<StatusCode>,
    pub(crate) busy_detail: Option<Arc<str>>,
}

/// How long a hold may last; `None` for as long as it takes, which a file calls `none`.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Deserialize),
    serde(try_from = "String")
)]
pub(crate) struct MaxHold(pub(crate) Option<Duration>);

impl RouteLimits {
    /// The layer's own limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a request of the route waits for its lock. Default: the
    /// [`acquire_timeout`](crate::RealmLocks::acquire_timeout) of the layer's locks.
    ///
    /// With [`Duration::ZERO`] it does not wait: it is rejected at once if the lock is taken.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = Some(timeout);
        self
    }

    /// How long a call of the route may hold its lock; `None` for no bound. Default: the
    /// [`max_hold`](crate::RealmLocks::max_hold) of the layer's locks.
    #[must_use]
    pub fn max_hold(mut self, max_hold: impl Into<Option<Duration>>) -> Self {
        self.max_hold = Some(MaxHold(max_hold.into()));
        self
    }

    /// The status of a rejection because the realm is busy: `lock-timeout` or `queue-full`. Default
    /// 503.
    ///
    /// Rejections for any other reason, such as `lock-unavailable` or `lock-lost`, keep theirs. The
    /// response has `Retry-After` and the same body as with 503. A gRPC request gets the
    /// `grpc-status` of the rejection's code in any case.
    ///
    /// # Errors
    ///
    /// [`ConfigError::InvalidStatus`] for a status that is not 4xx or 5xx.
    pub fn busy_status(mut self, status: StatusCode) -> Result<Self, ConfigError> {
        if !(status.is_client_error() || status.is_server_error()) {
            let status = status.as_str().to_owned();
            return Err(ConfigError::InvalidStatus { status });
        }
        self.busy_status = Some(status);
        Ok(self)
    }

    /// What the client reads in such a rejection: the `detail` of the problem body, or what
    /// [`Rejection::detail`](crate::Rejection::detail) gives to the layer's own closure. Default: a
    /// text that names the realm and how long the request has waited.
    #[must_use]
    pub fn busy_detail(mut self, detail: impl Into<String>) -> Self {
        self.busy_detail = Some(detail.into().into());
        self
    }
}
