//! What it takes to read a request's body.

use http::{HeaderMap, header};

/// Proof that a layer reads bodies. Every value that needs a body holds one.
///
/// A layer that reads none has [`Infallible`](std::convert::Infallible) in its place, so no value
/// that needs a body can exist there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadsBodies;

/// The `Content-Encoding` of a body that has one. Such a body is not decoded here, so nothing in
/// it can be read.
pub(crate) fn encoding(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .find(|value| !value.trim().eq_ignore_ascii_case("identity"))
}
