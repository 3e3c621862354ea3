use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Request, Uri};

/// What of a request says which realm it is for, without its body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(super) method: &'a Method,
    uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) extensions: &'a Extensions,
}

impl<'a> Head<'a> {
    pub(crate) fn of<A>(request: &'a Request<A>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }

    pub(crate) fn of_parts(parts: &'a Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            extensions: &parts.extensions,
        }
    }

    /// The URI as the client sent it. Below axum's `nest`, which takes away the beginning of the path, that is in an extension. A
    /// rewrite by another layer counts: what it has made is no end of the original.
    pub(super) fn uri(&self) -> &'a Uri {
        #[cfg(feature = "axum")]
        if let Some(axum::extract::OriginalUri(original)) = self.extensions.get()
            && (self.uri.path() == "/" || original.path().ends_with(self.uri.path()))
        {
            return original;
        }
        self.uri
    }

    /// The raw path, still percent-encoded.
    pub(crate) fn path(&self) -> &'a str {
        self.uri().path()
    }
}
