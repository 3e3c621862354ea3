//! Rejections for gRPC clients: the protocols that a request can have, and the *Trailers-Only*
//! response of both (`doc/PROTOCOL-HTTP2.md` and `doc/PROTOCOL-WEB.md` of gRPC).

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What is encoded in a `grpc-message`, besides everything that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The statuses that rejections have, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrpcStatus {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    ResourceExhausted = 8,
    Aborted = 10,
    Unavailable = 14,
}

/// The protocol of a gRPC request: the media type of its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layer) struct GrpcType(&'static str);

impl GrpcType {
    /// The protocol of a request with these headers; `None` if it is not a gRPC request.
    pub(in crate::layer) fn of(headers: &HeaderMap) -> Option<Self> {
        const GRPC: &str = "application/grpc";
        let sent = headers.get(CONTENT_TYPE)?.as_bytes();
        let kind = sent.get(GRPC.len()..)?;
        if !sent[..GRPC.len()].eq_ignore_ascii_case(GRPC.as_bytes()) {
            return None;
        }
        // A message format may follow, such as `+proto`, and parameters.
        let end = kind.iter().position(|byte| b"+; ".contains(byte));
        let kind = &kind[..end.unwrap_or(kind.len())];
        let of_kind = |known: &str| kind.eq_ignore_ascii_case(known.as_bytes());
        let found = [
            ("", GRPC),
            ("-web", "application/grpc-web"),
            ("-web-text", "application/grpc-web-text"),
        ];
        let found = found.into_iter().find(|(known, _)| of_kind(known));
        found.map(|(_, media_type)| Self(media_type))
    }

    /// A call that failed with this status.
    pub(super) fn response(self, status: GrpcStatus, message: &str) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.0));
        headers.insert(GRPC_STATUS, HeaderValue::from(status as u16));
        let message = utf8_percent_encode(message, ENCODED).to_string();
        // It is printable ASCII, so it is always a valid header value.
        if let Ok(message) = HeaderValue::try_from(message) {
            headers.insert(GRPC_MESSAGE, message);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_header_whatever_it_says() {
        let grpc = GrpcType("application/grpc");
        let response = grpc.response(GrpcStatus::Aborted, "50% of \u{fc}\r\n~ \u{1f512}");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "10");
        assert_eq!(
            response.headers()["grpc-message"],
            "50%25 of %C3%BC%0D%0A~ %F0%9F%94%92"
        );
        assert!(response.body().is_empty());
    }
}
