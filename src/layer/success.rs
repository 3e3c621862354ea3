use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode, header};
use tower_http::classify::{
    ClassifiedResponse, ClassifyEos, ClassifyResponse, GrpcErrorsAsFailures,
};

/// Which responses are successes. Default: those with a status below 400.
///
/// A success commits its shared transaction, is published, and is confirmed before its response
/// leaves. Any other response is a failure: its transaction is rolled back, nothing is published,
/// and its client gets it as the handler made it.
///
/// A rule that reads trailers decides when the body has ended, so the lock is held until then, as
/// with [`HoldUntil::BodyEnd`](crate::HoldUntil). A body that is dropped or fails before its end
/// commits nothing; as with any body that breaks off, its write is published, because what it wrote
/// outside of the transaction may stand.
///
/// Cheap to clone. Set with [`RealmWriteLockLayer::success`](crate::RealmWriteLockLayer::success).
#[derive(Clone, Default)]
pub struct Success(Rule);

#[derive(Clone, Default)]
enum Rule {
    /// A status below 400.
    #[default]
    Status,
    Grpc,
    Head(Arc<HeadFn>),
    Trailers(Arc<TrailersFn>),
}

type HeadFn = dyn Fn(&Response<()>) -> bool + Send + Sync;
type TrailersFn = dyn Fn(&Response<()>, Option<&HeaderMap>) -> bool + Send + Sync;

impl Success {
    /// gRPC responses whose `grpc-status` is 0.
    ///
    /// A response is a gRPC response if its `content-type` begins with `application/grpc`; any
    /// other is judged by its HTTP status. The `grpc-status` is read from the headers if it is
    /// there, as in a *Trailers-Only* response, and otherwise from the trailers, when the body has
    /// ended. A gRPC response without a valid `grpc-status` is a failure, as it is for its client.
    ///
    /// A layer that moves the trailers into the body, for gRPC-Web, goes outside of this one.
    #[must_use]
    pub fn grpc() -> Self {
        Self(Rule::Grpc)
    }

    /// Responses for whose head the closure returns `true`. The head has the status, the headers
    /// and the extensions.
    ///
    /// It is called once for each locked call that has a response, and must not block.
    ///
    /// A GraphQL handler answers errors with 200, and marks them in an extension:
    ///
    /// ```
    /// use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer, Success};
    ///
    /// #[derive(Clone)]
    /// struct HasErrors;
    ///
    /// let success = Success::from_fn(|head| {
    ///     head.status().is_success() && head.extensions().get::<HasErrors>().is_none()
    /// });
    /// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    /// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms).success(success);
    /// # let _ = layer;
    /// # Ok::<(), tower_realm_lock::ConfigError>(())
    /// ```
    #[must_use]
    pub fn from_fn<F>(judge: F) -> Self
    where
        F: Fn(&Response<()>) -> bool + Send + Sync + 'static,
    {
        Self(Rule::Head(Arc::new(judge)))
    }

    /// Responses for whose head and trailers the closure returns `true`.
    ///
    /// It is called once for each response, when its body has ended: with the trailers, or with
    /// `None` if there are none. It must not block. The head is a clone of the one that has left.
    /// Failures, too, keep their lock until their body has ended. A response whose body no server
    /// asks for is judged at once: see [`HoldUntil::BodyEnd`](crate::HoldUntil).
    #[must_use]
    pub fn from_trailers_fn<F>(judge: F) -> Self
    where
        F: Fn(&Response<()>, Option<&HeaderMap>) -> bool + Send + Sync + 'static,
    {
        Self(Rule::Trailers(Arc::new(judge)))
    }

    /// Whether a body may have to end before its response is judged.
    pub(super) fn reads_trailers(&self) -> bool {
        matches!(self.0, Rule::Grpc | Rule::Trailers(_))
    }

    /// Judges a response by its head, as far as that is possible.
    pub(super) fn judge(&self, head: &Response<()>) -> Verdict {
        match &self.0 {
            Rule::Status => Verdict::of(is_below_400(head.status())),
            Rule::Grpc => grpc(head),
            Rule::Head(judge) => Verdict::of(judge(head)),
            Rule::Trailers(judge) => {
                let (judge, head) = (Arc::clone(judge), head.clone());
                Verdict::AtEnd(Box::new(move |trailers| judge(&head, trailers)))
            }
        }
    }
}

impl fmt::Debug for Success {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = match self.0 {
            Rule::Status => "status",
            Rule::Grpc => "grpc",
            Rule::Head(_) => "from_fn",
            Rule::Trailers(_) => "from_trailers_fn",
        };
        f.debug_tuple("Success").field(&rule).finish()
    }
}

type Judge = dyn FnOnce(Option<&HeaderMap>) -> bool + Send + Sync;

/// What is known of a response's success before its body has ended.
pub(super) enum Verdict {
    Success,
    Failure,
    /// The trailers decide.
    AtEnd(Box<Judge>),
}

impl Verdict {
    fn of(is_success: bool) -> Self {
        if is_success {
            Self::Success
        } else {
            Self::Failure
        }
    }

    /// Whether it is a success, now that these are the trailers.
    pub(super) fn at_end(self, trailers: Option<&HeaderMap>) -> bool {
        match self {
            Self::Success => true,
            Self::Failure => false,
            Self::AtEnd(judge) => judge(trailers),
        }
    }
}

fn is_below_400(status: StatusCode) -> bool {
    !status.is_client_error() && !status.is_server_error()
}

fn grpc(head: &Response<()>) -> Verdict {
    let content_type = head.headers().get(header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc || !is_below_400(head.status()) {
        return Verdict::of(is_below_400(head.status()));
    }
    match GrpcErrorsAsFailures::new().classify_response(head) {
        ClassifiedResponse::Ready(classified) => {
            Verdict::of(classified.is_ok() && has_grpc_status(head.headers()))
        }
        ClassifiedResponse::RequiresEos(at_end) => Verdict::AtEnd(Box::new(|trailers| {
            trailers.is_some_and(has_grpc_status) && at_end.classify_eos(trailers).is_ok()
        })),
    }
}

/// Whether there is a number for the classifier, which takes everything else for a success.
fn has_grpc_status(headers: &HeaderMap) -> bool {
    let status = headers.get("grpc-status");
    let status = status.and_then(|status| status.to_str().ok()?.parse::<i32>().ok());
    status.is_some()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn status(value: Option<&'static str>) -> HeaderMap {
        let value = value.map(HeaderValue::from_static);
        let header = value.map(|value| (header::HeaderName::from_static("grpc-status"), value));
        header.into_iter().collect()
    }

    fn head(http: u16, content_type: &str, headers: HeaderMap) -> Response<()> {
        let mut head = Response::builder()
            .status(http)
            .header("content-type", content_type)
            .body(())
            .unwrap();
        head.headers_mut().extend(headers);
        head
    }

    #[test]
    fn a_grpc_status_counts_wherever_it_is_and_must_be_there() {
        let cases = [
            (Some("0"), true),
            (Some("9"), false),
            (Some("17"), false),
            (Some("ok"), false),
            (Some(""), false),
            (None, false),
        ];
        for content_type in ["application/grpc", "application/grpc+proto"] {
            for (value, succeeds) in cases {
                let in_headers = head(200, content_type, status(value));
                let verdict = Success::grpc().judge(&in_headers);
                assert_eq!(verdict.at_end(None), succeeds, "{value:?} in the headers");

                let verdict = Success::grpc().judge(&head(200, content_type, status(None)));
                assert!(matches!(verdict, Verdict::AtEnd(_)));
                let trailers = status(value);
                assert_eq!(verdict.at_end(Some(&trailers)), succeeds, "{value:?}");
            }
        }
        let verdict = Success::grpc().judge(&head(503, "application/grpc", status(Some("0"))));
        assert!(matches!(verdict, Verdict::Failure));
    }

    #[test]
    fn what_is_not_grpc_is_judged_by_its_status() {
        for (http, succeeds) in [(200, true), (302, true), (404, false), (500, false)] {
            for success in [Success::grpc(), Success::default()] {
                let verdict = success.judge(&head(http, "application/json", status(None)));
                assert!(!matches!(verdict, Verdict::AtEnd(_)));
                assert_eq!(verdict.at_end(None), succeeds, "{http}");
            }
        }
    }
}
