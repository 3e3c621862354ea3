//! The parts of a request that name its realm, without its body.

use http::uri::Authority;
use http::{Extensions, HeaderMap, Method, Request, Uri};

use super::path::ParsedPath;
use super::route::MatchedRoute;

/// The parts of a request that name its realm, without its body.
///
/// There is one for each request: it has the one [`ParsedPath`] that all readers of the path share.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) extensions: &'a Extensions,
    authority: Option<&'a Authority>,
    path: ParsedPath<'a>,
    route: Option<&'a MatchedRoute>,
}

impl<'a> Head<'a> {
    pub(crate) fn of<A>(request: &'a Request<A>) -> Self {
        let (uri, extensions) = (request.uri(), request.extensions());
        Self {
            method: request.method(),
            headers: request.headers(),
            extensions,
            authority: uri
                .authority()
                .or_else(|| original(extensions)?.authority()),
            path: whole_path(uri, extensions),
            route: None,
        }
    }

    /// The same with the route that a router has matched.
    pub(crate) fn on_route(self, route: Option<&'a MatchedRoute>) -> Self {
        Self { route, ..self }
    }

    /// The whole path: as the layer sees it, with what axum's `nest` took off its beginning.
    pub(super) fn path(&self) -> &ParsedPath<'a> {
        &self.path
    }

    /// The host and port of the URI, if it has them.
    pub(super) fn authority(&self) -> Option<&'a Authority> {
        self.authority
    }

    /// The route that a router has matched, if there is a router outside of the layer.
    pub(super) fn route(&self) -> Option<&'a MatchedRoute> {
        self.route
    }
}

/// The URI that the outermost router has seen.
#[cfg(feature = "axum")]
fn original(extensions: &Extensions) -> Option<&Uri> {
    let axum::extract::OriginalUri(uri) = extensions.get()?;
    Some(uri)
}

#[cfg(not(feature = "axum"))]
fn original(_: &Extensions) -> Option<&Uri> {
    None
}

/// The path that a layer sees, with what axum's `nest` took off its beginning.
///
/// `NestedPath` holds that beginning. `OriginalUri` counts only where it agrees: a layer may have
/// rewritten the path since.
#[cfg(feature = "axum")]
fn whole_path<'a>(uri: &'a Uri, extensions: &'a Extensions) -> ParsedPath<'a> {
    let rest = uri.path();
    let Some(nested) = extensions.get::<axum::extract::NestedPath>() else {
        return ParsedPath::new(rest);
    };
    let nested = nested.as_str().trim_end_matches('/');
    if let Some(original) = original(extensions).map(Uri::path)
        && is_nested(original, nested, rest)
    {
        return ParsedPath::new(original);
    }
    if nested.contains('{') {
        return ParsedPath::rewritten(rest);
    }
    ParsedPath::new(format!("{nested}{rest}"))
}

#[cfg(not(feature = "axum"))]
fn whole_path<'a>(uri: &'a Uri, _: &'a Extensions) -> ParsedPath<'a> {
    ParsedPath::new(uri.path())
}

/// Whether `nest` leaves `rest` of a path that it has matched.
#[cfg(feature = "axum")]
fn is_nested(path: &str, nested: &str, rest: &str) -> bool {
    let taken = match path.strip_suffix(rest) {
        Some(taken) => taken,
        // If it takes the whole path, a slash is left.
        None if rest == "/" => path,
        None => return false,
    };
    let mut taken = taken.split('/');
    let fits = nested.split('/').all(|expected| {
        let segment = taken.next();
        segment.is_some_and(|it| it == expected || (expected.starts_with('{') && !it.is_empty()))
    });
    fits && taken.next().is_none()
}

#[cfg(all(test, feature = "axum"))]
mod tests {
    use super::*;

    #[test]
    fn what_nest_took_is_put_back_only_if_it_is_what_the_original_begins_with() {
        for (path, nested, rest, expected) in [
            ("/api/luke/a", "/api", "/luke/a", true),
            ("/api", "/api", "/", true),
            ("/api/", "/api", "/", true),
            ("/luke/a/x", "/luke/{realm}", "/x", true),
            ("/luke/a", "/luke/{realm}", "/", true),
            // Rewritten before the `nest`, or after it.
            ("/v1/api/luke/a", "/api", "/luke/a", false),
            ("/v1/luke/a/x", "/luke/{realm}", "/x", false),
            ("/luke/a/x", "/luke/{realm}", "/y", false),
            ("/luke//x", "/luke/{realm}", "/x", false),
        ] {
            assert_eq!(
                is_nested(path, nested, rest),
                expected,
                "{path} {nested} {rest}"
            );
        }
    }
}
