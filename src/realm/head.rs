//! What realms are found by, without a request's body.

use http::uri::Authority;
use http::{Extensions, HeaderMap, Method, Request, Uri};

use super::path::ParsedPath;

/// What of a request says which realm it is for, without its body.
///
/// There is one for each request: it has the one [`ParsedPath`] that everything reads which needs
/// the path.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) extensions: &'a Extensions,
    authority: Option<&'a Authority>,
    path: ParsedPath<'a>,
}

impl<'a> Head<'a> {
    pub(crate) fn of<A>(request: &'a Request<A>) -> Self {
        let uri = original(request.uri(), request.extensions());
        Self {
            method: request.method(),
            headers: request.headers(),
            extensions: request.extensions(),
            authority: uri.authority(),
            path: ParsedPath::new(uri.path()),
        }
    }

    pub(super) fn path(&self) -> &ParsedPath<'a> {
        &self.path
    }

    /// The host and port of the URI, if it has them.
    pub(super) fn authority(&self) -> Option<&'a Authority> {
        self.authority
    }
}

/// The URI as the client sent it. Below axum's `nest`, which takes away the beginning of the path,
/// that is in an extension. A rewrite by another layer counts: what it has made is no end of the
/// original.
fn original<'a>(uri: &'a Uri, extensions: &'a Extensions) -> &'a Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(original)) = extensions.get()
        && (uri.path() == "/" || original.path().ends_with(uri.path()))
    {
        return original;
    }
    #[cfg(not(feature = "axum"))]
    let _ = extensions;
    uri
}
