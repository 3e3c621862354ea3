//! Errors as a client gets them: JSON:API error objects.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::json;
use tower_realm_lock::{LockError, Rejection};
use tracing::error;

use crate::atomic::BadOperations;
use crate::card::BadDocument;
use crate::path::{BadPath, RealmPath};
use crate::precondition::BadPrecondition;
use crate::realms::RowsError;
use crate::store::StoreError;

pub const JSON_API: HeaderValue = HeaderValue::from_static("application/vnd.api+json");

/// One error object and its status.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    pointer: Option<String>,
    problem_type: Option<Box<str>>,
    retry_after: Option<Duration>,
}

/// An error with its causes.
pub fn chain(error: &dyn Error) -> String {
    let mut causes = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        causes = format!("{causes}: {cause}");
        source = cause.source();
    }
    causes
}

impl ApiError {
    pub fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            title,
            detail: detail.into(),
            pointer: None,
            problem_type: None,
            retry_after: None,
        }
    }

    /// Names the place in the request's document that is at fault.
    pub fn at(self, pointer: impl Into<Option<String>>) -> Self {
        Self {
            pointer: pointer.into(),
            ..self
        }
    }

    pub fn card_not_found(detail: String) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "card-not-found",
            "No such card",
            detail,
        )
    }

    pub fn realm_exists(realm: &RealmPath) -> Self {
        let detail = format!(
            "There is a realm '{realm}' that was not published; delete it first, or choose another name."
        );
        Self::new(
            StatusCode::CONFLICT,
            "realm-exists",
            "The realm exists",
            detail,
        )
    }

    pub fn bad_realm_url(detail: impl Into<String>) -> Self {
        let title = "Not the URL of a realm";
        Self::new(StatusCode::BAD_REQUEST, "bad-realm-url", title, detail)
    }

    pub fn precondition_failed(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition-failed",
            "A precondition failed",
            detail,
        )
    }

    /// For what is no client's fault: the cause goes to the log, never into the response.
    pub fn internal(code: &'static str, title: &'static str, cause: &dyn Error) -> Self {
        let causes = chain(cause);
        error!(code, %causes, "a request failed");
        let detail = "The fault is the server's, not the request's; its log has the cause.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, title, detail)
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong with this request, in words.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    pub fn into_http(self) -> http::Response<Bytes> {
        let mut object = json!({
            "status": self.status.as_str(),
            "code": self.code,
            "title": self.title,
            "detail": self.detail,
        });
        if let Some(pointer) = self.pointer {
            object["source"] = json!({ "pointer": pointer });
        }
        if let Some(problem_type) = self.problem_type {
            object["links"] = json!({ "type": problem_type });
        }
        let body = json!({ "errors": [object] }).to_string();

        let mut response = http::Response::new(body.into());
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, JSON_API);
        if let Some(retry_after) = self.retry_after {
            // Whole seconds, and never sooner than asked for.
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.into_http().map(Body::from)
    }
}

impl From<&Rejection> for ApiError {
    fn from(rejection: &Rejection) -> Self {
        Self {
            problem_type: Some(rejection.problem_type().into()),
            retry_after: rejection.retry_after(),
            ..Self::new(
                rejection.status(),
                rejection.code(),
                rejection.title(),
                rejection.detail(),
            )
        }
    }
}

impl From<LockError> for ApiError {
    fn from(error: LockError) -> Self {
        Self::from(&Rejection::Lock(error))
    }
}

impl From<RowsError> for ApiError {
    fn from(error: RowsError) -> Self {
        match error {
            RowsError::Lock(error) => error.into(),
            error => Self::internal("realm-change-failed", "The realm was not changed", &error),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl From<BadPath> for ApiError {
    fn from(error: BadPath) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-path",
            "Not the path of a card",
            error.to_string(),
        )
    }
}

impl From<BadPrecondition> for ApiError {
    fn from(error: BadPrecondition) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-precondition",
            "Not a precondition",
            error.to_string(),
        )
    }
}

impl From<BadDocument> for ApiError {
    fn from(error: BadDocument) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-document",
            "Not a document of this API",
            error.detail,
        )
        .at(error.pointer)
    }
}

impl From<BadOperations> for ApiError {
    fn from(error: BadOperations) -> Self {
        match error {
            BadOperations::Document(error) => error.into(),
            BadOperations::Href { pointer, problem } => Self::from(problem).at(pointer),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Missing { card, .. } => {
                Self::card_not_found(format!("The realm has no card '{card}'; add it first."))
            }
            StoreError::Exists { card, .. } => Self::new(
                StatusCode::CONFLICT,
                "card-exists",
                "The card exists",
                format!("The realm has a card '{card}'; update it, or add another."),
            ),
            StoreError::Overlooked { .. } => Self::new(
                StatusCode::CONFLICT,
                "card-exists",
                "The card exists",
                "The realm has this card already; read it, and update it, or add another.",
            ),
            StoreError::Precondition { card, .. } => Self::precondition_failed(format!(
                "The card '{card}' is not the one that If-Match or If-None-Match allows: it has changed, or there is none. \
                 Nothing was written; read the card, and send the request with its ETag."
            )),
            StoreError::Lock(error) => error.clone().into(),
            StoreError::StaleFencingToken { offered, stored } => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "stale-fencing-token",
                    "The write came too late",
                    format!(
                        "The lock of this write (fencing token {offered}) was lost, and a later one ({stored}) has \
                         written the card; nothing was written. Send the request again."
                    ),
                )
            },
            StoreError::Unusable { .. } => Self::new(
                StatusCode::BAD_REQUEST,
                "bad-path",
                "Not the path of a card",
                "The file system has no place for a card at this path; choose a shorter one, or another.",
            ),
            StoreError::RealmExists(realm) => Self::realm_exists(realm),
            StoreError::RealmMissing(realm) => Self::new(
                StatusCode::NOT_FOUND,
                "realm-not-found",
                "No such realm",
                format!("There is no realm '{realm}'; create or publish it first."),
            ),
            StoreError::NotPublished(realm) => Self::new(
                StatusCode::CONFLICT,
                "realm-not-published",
                "The realm was not published",
                format!(
                    "The realm '{realm}' was created, not published; delete it if it shall go."
                ),
            ),
            StoreError::Unsettled(realm) => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "realm-unsettled",
                    "A change to the realm is half done",
                    format!(
                        "A change to the realm '{realm}' is being settled. Nothing was written; send the request again."
                    ),
                )
            },
            StoreError::RowsNeeded(_)
            | StoreError::DamagedJournal { .. }
            | StoreError::Injected { .. } => {
                Self::internal("realm-change-failed", "The realm was not changed", &error)
            }
            StoreError::NoFencingToken => {
                Self::internal("fencing-token-missing", "No fencing token", &error)
            }
            StoreError::DamagedFence { .. }
            | StoreError::Damaged { .. }
            | StoreError::Io { .. } => Self::internal("storage-failed", "Storage failed", &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn object(error: ApiError) -> Value {
        let response = error.into_http();
        assert_eq!(response.headers()[CONTENT_TYPE], JSON_API);
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        body["errors"][0].clone()
    }

    #[test]
    fn an_error_object_names_status_code_and_place() {
        let error = BadDocument::new("/data/type", "The type is 1.");
        assert_eq!(
            object(error.into()),
            json!({
                "status": "400", "code": "bad-document", "title": "Not a document of this API",
                "detail": "The type is 1.", "source": { "pointer": "/data/type" },
            })
        );
    }

    #[test]
    fn a_retry_is_never_too_soon() {
        let error = |retry_after| ApiError {
            retry_after: Some(retry_after),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "lock-timeout", "", "")
        };
        for (retry_after, header) in [
            (Duration::from_millis(1), "1"),
            (Duration::from_secs(2), "2"),
            (Duration::from_millis(2001), "3"),
        ] {
            let response = error(retry_after).into_http();
            assert_eq!(response.headers()[RETRY_AFTER], header);
        }
    }

    #[test]
    fn a_failure_of_the_storage_keeps_its_paths_to_itself() {
        let error = StoreError::io(
            Path::new("/secret/x.json"),
            io::Error::other("/secret/disk"),
        );
        let response = ApiError::from(error).into_http();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!String::from_utf8_lossy(response.body()).contains("secret"));
    }
}
