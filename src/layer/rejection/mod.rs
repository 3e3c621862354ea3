pub(super) mod grpc;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use self::grpc::{GrpcStatus, GrpcType};
use super::request_body::BodyError;
use crate::lock::error::{LockError, LockErrorKind};
use crate::realm::claim::Claim;
use crate::realm::error::RealmError;
use crate::realm::rules::limits::RouteLimits;
use crate::realm::url::RealmUrl;

/// Why a request got a response of the layer's instead of the inner service's.
///
/// It is also in the extensions of that response, for the layers around this one. The
/// [front page](crate#rejections) lists all situations.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Rejection {
    /// The request's realm could not be determined.
    Realm(RealmError),
    /// The request's body, which the layer reads before the lock, could not be read.
    Body(BodyError),
    /// The lock was not granted, or did not hold.
    Lock(LockError),
    /// The lock was not granted within its timeout, or too many waited for it, on a route whose
    /// [limits](RouteLimits) set their own answer for that.
    #[non_exhaustive]
    Busy {
        /// Why the lock was not granted: its code is `lock-timeout` or `queue-full`.
        error: LockError,
        /// The route's [status](RouteLimits::busy_status).
        status: StatusCode,
        /// The route's [text](RouteLimits::busy_detail), if it has one.
        detail: Option<Arc<str>>,
    },
}

/// The part of a rejection that does not depend on the request.
struct Problem {
    status: StatusCode,
    grpc: GrpcStatus,
    code: &'static str,
    title: &'static str,
    retry: bool,
}

impl Rejection {
    /// The rejection of a request whose route has these limits.
    pub(super) fn on_route(self, limits: &RouteLimits) -> Self {
        let (status, detail) = (limits.busy_status, limits.busy_detail.clone());
        let has_answer = status.is_some() || detail.is_some();
        match self {
            Self::Lock(error) if has_answer && is_busy(&error) => Self::Busy {
                error,
                status: status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                detail,
            },
            other => other,
        }
    }

    fn kind(&self) -> Problem {
        let once = |status, grpc, code, title| Problem {
            status,
            grpc,
            code,
            title,
            retry: false,
        };
        let busy = |grpc, code, title| Problem {
            retry: true,
            ..once(StatusCode::SERVICE_UNAVAILABLE, grpc, code, title)
        };
        let error = match self {
            Self::Lock(error) | Self::Busy { error, .. } => error,
            Self::Realm(RealmError::Unavailable { .. }) => {
                let title = "The realm cannot be looked up";
                return busy(GrpcStatus::Unavailable, "realm-unavailable", title);
            }
            Self::Realm(_) => {
                return once(
                    StatusCode::BAD_REQUEST,
                    GrpcStatus::InvalidArgument,
                    "realm-unresolved",
                    "No realm in the request",
                );
            }
            Self::Body(BodyError::TooLarge { .. }) => {
                return once(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    GrpcStatus::ResourceExhausted,
                    "body-too-large",
                    "The body is too large",
                );
            }
            Self::Body(BodyError::TimedOut { .. }) => {
                return once(
                    StatusCode::REQUEST_TIMEOUT,
                    GrpcStatus::DeadlineExceeded,
                    "body-timeout",
                    "The body came too slowly",
                );
            }
            Self::Body(BodyError::Broken { .. }) => {
                return once(
                    StatusCode::BAD_REQUEST,
                    GrpcStatus::InvalidArgument,
                    "body-broken",
                    "The body broke off",
                );
            }
        };
        match error.kind() {
            LockErrorKind::Timeout | LockErrorKind::Taken => {
                busy(GrpcStatus::Unavailable, "lock-timeout", "The realm is busy")
            }
            LockErrorKind::QueueFull => busy(
                GrpcStatus::ResourceExhausted,
                "queue-full",
                "Too many writes wait",
            ),
            LockErrorKind::Lost => once(
                StatusCode::SERVICE_UNAVAILABLE,
                GrpcStatus::Aborted,
                "lock-lost",
                "The lock was lost",
            ),
            LockErrorKind::CommitFailed => once(
                StatusCode::SERVICE_UNAVAILABLE,
                GrpcStatus::Aborted,
                "commit-failed",
                "The write did not commit",
            ),
            LockErrorKind::Expired => once(
                StatusCode::GATEWAY_TIMEOUT,
                GrpcStatus::DeadlineExceeded,
                "hold-expired",
                "The call took too long",
            ),
            // Whatever keeps the locks from being reached; nothing was written.
            _ => busy(
                GrpcStatus::Unavailable,
                "lock-unavailable",
                "Locks are not available",
            ),
        }
    }

    /// The status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Busy { status, .. } => *status,
            _ => self.kind().status,
        }
    }

    /// What happened, in one stable word: `lock-timeout`, `queue-full`, `lock-unavailable`,
    /// `lock-lost`, `hold-expired`, `commit-failed`, `realm-unresolved`, `realm-unavailable`,
    /// `body-too-large`, `body-timeout` or `body-broken`. The suffix of
    /// [`problem_type`](Self::problem_type).
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.kind().code
    }

    /// A short title, the same for every rejection with this code.
    #[must_use]
    pub fn title(&self) -> &'static str {
        self.kind().title
    }

    /// What happened to this request, for its client. Says nothing of the database.
    #[must_use]
    pub fn detail(&self) -> String {
        match (self, self.code()) {
            (Self::Lock(_), "lock-unavailable") => {
                "the lock could not be taken and nothing was written; try again later".into()
            }
            (Self::Lock(_), "commit-failed") => {
                "the write could not be committed and does not stand; read before you try again"
                    .into()
            }
            (_, "realm-unavailable") => {
                "the realm of the request could not be looked up and nothing was written; try again later".into()
            }
            (
                Self::Busy {
                    detail: Some(detail),
                    ..
                },
                _,
            ) => (**detail).to_owned(),
            (Self::Lock(error) | Self::Busy { error, .. }, _) => error.to_string(),
            (Self::Realm(error), _) => error.to_string(),
            (Self::Body(error), _) => error.to_string(),
        }
    }

    /// The `type` member of the problem body (RFC 9457): a URI that ends in `#` and the [`code`](Self::code).
    #[must_use]
    pub fn problem_type(&self) -> String {
        let code = self.code();
        format!("https://docs.rs/tower-realm-lock/latest/tower_realm_lock/#{code}")
    }

    /// One second where trying again may help, else none; the value of `Retry-After`.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.kind().retry.then_some(Duration::from_secs(1))
    }

    /// The realm that the request was for, where it could be told; the first one if there are several.
    #[must_use]
    pub fn realm(&self) -> Option<&RealmUrl> {
        self.realms().first()
    }

    /// All realms that the request was for, where they could be told.
    #[must_use]
    pub fn realms(&self) -> &[RealmUrl] {
        match self {
            Self::Lock(error) | Self::Busy { error, .. } => {
                error.claim().map_or(&[], Claim::realms)
            }
            Self::Realm(_) | Self::Body(_) => &[],
        }
    }

    /// The response as `application/problem+json` (RFC 9457), with `Retry-After` where trying again
    /// helps.
    ///
    /// It names the request's realm in the member `realm`, or several of them in `realms`.
    #[must_use]
    pub fn to_response(&self) -> Response<Bytes> {
        self.to_response_with_status(self.status())
    }

    /// [`to_response`](Self::to_response) with another status, in its head and in the member
    /// `status` of its body.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_realm_lock::{RealmUrl, Rejection};
    ///
    /// let rejection = Rejection::from(RealmUrl::parse("no URL").unwrap_err());
    /// let response = rejection.to_response_with_status(StatusCode::UNPROCESSABLE_ENTITY);
    /// assert_eq!(response.status(), 422);
    /// let problem: serde_json::Value = serde_json::from_slice(response.body())?;
    /// assert_eq!(problem["status"], 422);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    #[must_use]
    pub fn to_response_with_status(&self, status: StatusCode) -> Response<Bytes> {
        let mut problem = json!({
            "type": self.problem_type(),
            "title": self.title(),
            "status": status.as_u16(),
            "detail": self.detail(),
        });
        match self.realms() {
            [] => {}
            [realm] => problem["realm"] = realm.as_str().into(),
            realms => problem["realms"] = realms.iter().map(RealmUrl::as_str).collect(),
        }
        let mut response = Response::new(Bytes::from(problem.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        response
    }

    /// The response to a request with this head: what the layer answers without a
    /// [`rejection`](crate::RealmWriteLockLayer::rejection) closure.
    ///
    /// A gRPC or gRPC-Web request (`content-type: application/grpc…`) gets status 200, no body, and
    /// `grpc-status` and `grpc-message` among the headers: a *Trailers-Only* response, which
    /// clients of both protocols read as the status of the call. A script of another origin can
    /// read the two headers only if a CORS layer exposes them. Every other request gets
    /// [`to_response`](Self::to_response).
    #[must_use]
    pub fn to_response_for(&self, head: &Parts) -> Response<Bytes> {
        self.to_response_of(GrpcType::of(&head.headers))
    }

    /// The response to a request of this gRPC type, or of none.
    pub(super) fn to_response_of(&self, grpc: Option<GrpcType>) -> Response<Bytes> {
        match grpc {
            Some(grpc) => grpc.response(self.kind().grpc, &self.detail()),
            None => self.to_response(),
        }
    }
}

/// Whether a request that comes a little later may get the lock.
fn is_busy(error: &LockError) -> bool {
    use LockErrorKind::{QueueFull, Taken, Timeout};
    matches!(error.kind(), Timeout | Taken | QueueFull)
}

/// What a client may read: the [`detail`](Rejection::detail).
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail())
    }
}

impl From<RealmError> for Rejection {
    fn from(error: RealmError) -> Self {
        Self::Realm(error)
    }
}

impl From<BodyError> for Rejection {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

impl From<LockError> for Rejection {
    fn from(error: LockError) -> Self {
        Self::Lock(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_answers_for_a_busy_realm_and_for_nothing_else() {
        let claim = Claim::realm(&"https://r.example/luke/a/".parse().unwrap());
        let after = Duration::from_secs(1);
        let timeout = LockError::Timeout {
            claim: claim.clone(),
            after,
        };
        let full = LockError::QueueFull {
            claim: claim.clone(),
            waiters: 3,
        };
        let nested = LockError::Nested {
            held: claim.clone(),
            source: Box::new(timeout.clone()),
        };
        let conflict = RouteLimits::new().busy_status(StatusCode::CONFLICT);
        let conflict = conflict.unwrap();
        for plain in [timeout, full, nested].map(Rejection::from) {
            for (limits, status, detail) in [
                (conflict.clone(), 409, None),
                (RouteLimits::new().busy_detail("later"), 503, Some("later")),
                (conflict.clone().busy_detail("later"), 409, Some("later")),
            ] {
                let rejection = plain.clone().on_route(&limits);
                assert_eq!(rejection.code(), plain.code());
                assert_eq!(rejection.realms(), plain.realms());
                assert_eq!(rejection.status(), status);
                assert!(rejection.retry_after().is_some());
                let detail = detail.map_or(plain.detail(), ToOwned::to_owned);
                assert_eq!(rejection.detail(), detail);
            }
            let routed = plain.on_route(&RouteLimits::new());
            assert!(matches!(routed, Rejection::Lock(_)));
        }
        for rejection in [
            LockError::Lost { claim }.into(),
            LockError::ShuttingDown.into(),
            RealmError::AmbiguousMethod.into(),
            Rejection::from(BodyError::TooLarge { limit: 9 }),
        ] {
            let status = rejection.status();
            let routed = rejection.on_route(&conflict);
            assert_eq!(routed.status(), status);
            assert!(!matches!(routed, Rejection::Busy { .. }));
        }
    }
}
