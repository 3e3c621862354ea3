//! Who reads the body of a request, and when nobody can.

use http::{HeaderMap, header};

/// Stands in the values that only a layer may have that reads bodies. In a layer that reads none,
/// [`Infallible`](std::convert::Infallible) stands there instead, so that no such value exists.
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
