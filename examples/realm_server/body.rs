//! Request bodies, read whole before the lock is asked for: a client that sends slowly must not hold up its realm.

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;

use crate::error::ApiError;

/// The most bytes that a body may have.
pub const LIMIT: usize = 1024 * 1024;

/// How much of a body over the limit is read and dropped. A client that is cut off while it sends may never see why.
const DRAIN: usize = 16 * LIMIT;

const MEDIA_TYPES: [&str; 3] = [
    "application/json",
    "application/vnd.api+json",
    "application/vnd.card+json",
];

/// Lets a request through with its body in memory, if it is of a known media type and within the limit.
pub async fn admit(request: Request, next: Next) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = read(body).await?;
    if matches!(parts.method, Method::POST | Method::PATCH) {
        check_media_type(&parts.headers)?;
    }
    Ok(next
        .run(Request::from_parts(parts, Body::from(bytes)))
        .await)
}

async fn read(mut body: Body) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::new();
    let mut length = 0;
    while length <= DRAIN
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| {
            let detail = format!("The body broke off: {error}. Send the request again.");
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "bad-document",
                "The body broke off",
                detail,
            )
        })?;
        // Trailers are of no use here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length <= LIMIT {
            bytes.extend_from_slice(&data);
        }
    }
    if length <= LIMIT {
        return Ok(bytes.freeze());
    }
    Err(ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body-too-large",
        "The body is too large",
        format!("The body has more than {LIMIT} bytes; send less, or in several requests."),
    ))
}

fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers
        .get(CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    let found = match &given {
        None => "no media type".to_owned(),
        Some(value) => {
            let essence = value.split(';').next().unwrap_or_default().trim();
            if MEDIA_TYPES
                .iter()
                .any(|known| essence.eq_ignore_ascii_case(known))
            {
                return Ok(());
            }
            format!("the media type '{}'", essence.escape_debug())
        }
    };
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported-media-type",
        "Unsupported media type",
        format!(
            "The request has {found}; send one of: {}.",
            MEDIA_TYPES.join(", ")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body::Frame;

    use super::*;

    #[test]
    fn three_media_types_are_alike() {
        for value in [
            "application/json",
            "application/vnd.api+json",
            "application/vnd.card+json",
            "Application/JSON; charset=utf-8",
            "application/vnd.api+json;ext=\"https://jsonapi.org/ext/atomic\"",
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]);
            assert!(check_media_type(&headers).is_ok(), "{value}");
        }
    }

    #[test]
    fn other_media_types_are_refused() {
        for value in [
            "text/plain",
            "",
            "application/jsonx",
            "application/merge-patch+json",
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]);
            assert!(check_media_type(&headers).is_err(), "{value}");
        }
        assert!(check_media_type(&HeaderMap::new()).is_err());
    }

    #[tokio::test]
    async fn a_body_may_be_as_long_as_the_limit() {
        let body = |length| Body::from(vec![b'x'; length]);
        assert_eq!(read(body(LIMIT)).await.unwrap().len(), LIMIT);
        assert!(read(body(LIMIT + 1)).await.is_err());
    }

    /// A body of this many pieces of 1 KiB each.
    struct Pieces(usize);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let piece = self.0.checked_sub(1).map(|left| {
                self.0 = left;
                Ok(Frame::data(Bytes::from_static(&[b'x'; 1024])))
            });
            Poll::Ready(piece)
        }
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_counted_whole_and_not_read_for_ever() {
        assert!(read(Body::new(Pieces(1024))).await.is_ok());
        assert!(read(Body::new(Pieces(1025))).await.is_err());
        assert!(read(Body::new(Pieces(usize::MAX))).await.is_err());
    }
}
