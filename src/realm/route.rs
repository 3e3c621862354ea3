//! The route that axum's router has matched.

#[cfg(feature = "axum")]
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
#[cfg(feature = "axum")]
use futures_util::FutureExt;
use http::Request;

use super::error::{RealmError, shown};
use super::path::ParsedPath;
use super::template::PathTemplate;

/// The route that axum's router has matched, and the parameters that its handler can extract.
///
/// What a layer outside of the router has rewritten is in neither: both are of the path that the
/// router has seen.
#[derive(Debug)]
pub(crate) enum MatchedRoute {
    #[cfg(feature = "axum")]
    Router {
        path: MatchedPath,
        /// `None` if a parameter is not UTF-8.
        parameters: Option<RawPathParams>,
    },
    /// No router: a route that is explained.
    Explained {
        path: Box<str>,
        parameters: Vec<(String, String)>,
    },
}

/// A segment of a route, as axum writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::realm) enum RouteSegment<'a> {
    Literal(&'a str),
    Parameter(&'a str),
    Rest(&'a str),
}

impl MatchedRoute {
    /// The route of a request; `None` if it is not inside one.
    #[cfg(feature = "axum")]
    pub(crate) fn of<A>(request: &mut Request<A>) -> Option<Self> {
        let path = request.extensions().get::<MatchedPath>()?.clone();
        // axum gives the parameters only to an extractor, and that reads nothing but extensions.
        let (mut parts, ()) = Request::new(()).into_parts();
        std::mem::swap(&mut parts.extensions, request.extensions_mut());
        let parameters = RawPathParams::from_request_parts(&mut parts, &()).now_or_never();
        std::mem::swap(&mut parts.extensions, request.extensions_mut());
        let parameters = parameters.and_then(Result::ok);
        Some(Self::Router { path, parameters })
    }

    #[cfg(not(feature = "axum"))]
    pub(crate) fn of<A>(_: &mut Request<A>) -> Option<Self> {
        None
    }

    /// The route as if a router had matched it for a path.
    ///
    /// # Errors
    ///
    /// [`RealmError::Unresolved`] if the route cannot be read, or the path is not one of it.
    pub(in crate::realm) fn explained(
        route: &str,
        path: &ParsedPath<'_>,
    ) -> Result<Self, RealmError> {
        let template = PathTemplate::parse(route).map_err(RealmError::unresolved)?;
        let parameters = template.captures(path).ok_or_else(|| {
            RealmError::unresolved(format_args!(
                "the router does not send `{}` to `{route}`",
                path.raw()
            ))
        })?;
        let path = route.into();
        Ok(Self::Explained { path, parameters })
    }

    /// The route as the router has it, with all that it is nested in.
    pub(crate) fn path(&self) -> &str {
        match self {
            #[cfg(feature = "axum")]
            Self::Router { path, .. } => path.as_str(),
            Self::Explained { path, .. } => path,
        }
    }

    /// A parameter of one segment, its name and its value, decoded; `None` if the route has none of
    /// this name, or takes the rest of the path as it.
    ///
    /// # Errors
    ///
    /// [`RealmError::Unresolved`] if the route has it and a value of the route is not UTF-8, or if
    /// nested routes give it two values.
    pub(in crate::realm) fn parameter(
        &self,
        name: &str,
    ) -> Result<Option<(&str, &str)>, RealmError> {
        let has = |segment| self.segments().any(|it| it == segment);
        let is_missing = self.is_unreadable() && !has(RouteSegment::Parameter(name));
        if has(RouteSegment::Rest(name)) || is_missing {
            return Ok(None);
        }
        self.named(name)
    }

    /// The value of any parameter, decoded; `None` if the route has none of this name.
    ///
    /// # Errors
    ///
    /// [`RealmError::Unresolved`] if a value of the route is not UTF-8, or if nested routes give
    /// this one two values.
    #[cfg(feature = "axum")]
    pub(in crate::realm) fn value(&self, name: &str) -> Result<Option<&str>, RealmError> {
        Ok(self.named(name)?.map(|(_, value)| value))
    }

    fn named(&self, name: &str) -> Result<Option<(&str, &str)>, RealmError> {
        match self {
            #[cfg(feature = "axum")]
            Self::Router { parameters, .. } => {
                let parameters = parameters.as_ref().ok_or_else(|| {
                    RealmError::unresolved(
                        "a part of its path is not UTF-8; percent-encode it as UTF-8",
                    )
                })?;
                only(parameters.iter(), name)
            }
            Self::Explained { parameters, .. } => {
                let parameters = parameters.iter();
                only(parameters.map(|(key, value)| (&**key, &**value)), name)
            }
        }
    }

    /// Whether a value of the route is not UTF-8, so that none can be read.
    fn is_unreadable(&self) -> bool {
        match self {
            #[cfg(feature = "axum")]
            Self::Router { parameters, .. } => parameters.is_none(),
            Self::Explained { .. } => false,
        }
    }

    pub(in crate::realm) fn segments(&self) -> impl Iterator<Item = RouteSegment<'_>> {
        segments(self.path())
    }
}

/// The parameter of this name, unless nested routes give it two values.
fn only<'a>(
    mut parameters: impl Iterator<Item = (&'a str, &'a str)>,
    name: &str,
) -> Result<Option<(&'a str, &'a str)>, RealmError> {
    let Some((key, value)) = parameters.find(|(key, _)| *key == name) else {
        return Ok(None);
    };
    if let Some((_, other)) = parameters.find(|(key, other)| *key == name && *other != value) {
        let (value, other) = (shown(value), shown(other));
        let problem = format!(
            "two nested routes have a parameter `{name}`, one is `{value}` and the other \
             `{other}`; give them different names"
        );
        return Err(RealmError::Unresolved { problem });
    }
    Ok(Some((key, value)))
}

fn segments(route: &str) -> impl Iterator<Item = RouteSegment<'_>> {
    let route = route.strip_prefix('/').unwrap_or(route);
    route.split('/').map(|text| {
        let name = text.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
        match name {
            // A doubled brace is a brace.
            Some(name) if !name.starts_with('{') => match name.strip_prefix('*') {
                Some(name) => RouteSegment::Rest(name),
                None => RouteSegment::Parameter(name),
            },
            _ => RouteSegment::Literal(text),
        }
    })
}
