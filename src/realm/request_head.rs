use std::fmt;
use std::sync::Arc;

use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, Method, Request, Uri, Version};

use super::head::Head;
use super::route::MatchedRoute;

/// The head of a request, for closures that find its realm or narrow it to resources.
///
/// It has what a handler in the place of the layer would see, and the whole path. Cheap to clone.
/// Its `Debug` shows no values of headers and no query: they may be secrets.
///
/// A test of a closure makes one `from` the [`Parts`] of a request:
///
/// ```
/// use http::Request;
/// use tower_realm_lock::RequestHead;
///
/// let (parts, ()) = Request::patch("/luke/site/card?draft=1").body(())?.into_parts();
/// let head = RequestHead::from(parts);
/// assert_eq!((head.method().as_str(), head.path()), ("PATCH", "/luke/site/card"));
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone)]
pub struct RequestHead(Arc<Inner>);

struct Inner {
    request: Request<()>,
    path: Box<str>,
    #[cfg_attr(
        not(feature = "axum"),
        expect(dead_code, reason = "only axum has parameters")
    )]
    route: Option<MatchedRoute>,
}

impl RequestHead {
    /// The method, as the client sent it: a header that overrides it changes nothing here.
    #[must_use]
    pub fn method(&self) -> &Method {
        self.0.request.method()
    }

    /// The URI as the layer sees it. Inside axum's `nest` its path lacks the beginning: use
    /// [`path`](Self::path).
    #[must_use]
    pub fn uri(&self) -> &Uri {
        self.0.request.uri()
    }

    /// The whole path, still percent-encoded and without the query.
    ///
    /// It is the path that all rules and resolvers of the layer read. With the feature `axum` it is
    /// whole inside `nest` too; without it, it is the path that the layer sees. So it is where
    /// another layer has rewritten the path inside a `nest` with parameters, which leaves the whole
    /// path unknown: use `parameter` there.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.0.request.headers()
    }

    /// The extensions that layers outside of this one have inserted, such as the claims of a token.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        self.0.request.extensions()
    }

    /// The version of HTTP.
    #[must_use]
    pub fn version(&self) -> Version {
        self.0.request.version()
    }

    /// The value of a parameter of the route that axum's router has matched, percent-decoded.
    ///
    /// It is there inside a router, whose layers run after it has matched. `None` if no route has
    /// matched yet, if the route has no such parameter, if a value of the route is not UTF-8, or if
    /// two nested routers have parameters of this name with different values: then it is unclear
    /// which of them the handler reads.
    #[cfg(feature = "axum")]
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.0.route.as_ref()?.value(name).ok().flatten()
    }

    /// The head that the inner service gets.
    pub(crate) fn into_parts(self) -> Parts {
        // A closure may have kept a clone.
        let request = Arc::try_unwrap(self.0)
            .map_or_else(|inner| inner.request.clone(), |inner| inner.request);
        request.into_parts().0
    }
}

impl From<Parts> for RequestHead {
    fn from(parts: Parts) -> Self {
        let mut request = Request::from_parts(parts, ());
        Self(Arc::new(Inner {
            route: MatchedRoute::of(&mut request),
            path: Head::of(&request).path().raw().into(),
            request,
        }))
    }
}

impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers().keys().map(HeaderName::as_str).collect();
        f.debug_struct("RequestHead")
            .field("method", self.method())
            .field("path", &self.path())
            .field("version", &self.version())
            .field("headers", &names)
            .finish_non_exhaustive()
    }
}
