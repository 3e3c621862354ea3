//! The route that axum's router has matched.

#[cfg(feature = "axum")]
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
#[cfg(feature = "axum")]
use futures_util::FutureExt;
use http::Request;

use super::error::RealmError;
#[cfg(feature = "axum")]
use super::error::shown;
use super::path::ParsedPath;
#[cfg(feature = "axum")]
use super::template::PathTemplate;

/// The route that axum's router has matched, and the parameters that its handler can extract.
///
/// What a layer outside of the router has rewritten is in neither: both are of the path that the
/// router has seen. Without the feature `axum` there is no value of this type.
#[derive(Debug)]
pub(crate) struct MatchedRoute {
    #[cfg(feature = "axum")]
    by: MatchedBy,
    #[cfg(not(feature = "axum"))]
    never: std::convert::Infallible,
}

#[cfg(feature = "axum")]
#[derive(Debug)]
enum MatchedBy {
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

#[cfg(feature = "axum")]
impl MatchedRoute {
    /// The route of a request; `None` if it is not inside one.
    pub(crate) fn of<A>(request: &mut Request<A>) -> Option<Self> {
        let path = request.extensions().get::<MatchedPath>()?.clone();
        // axum gives the parameters only to an extractor, and that reads nothing but extensions.
        let (mut parts, ()) = Request::new(()).into_parts();
        std::mem::swap(&mut parts.extensions, request.extensions_mut());
        let parameters = RawPathParams::from_request_parts(&mut parts, &()).now_or_never();
        std::mem::swap(&mut parts.extensions, request.extensions_mut());
        let parameters = parameters.and_then(Result::ok);
        let by = MatchedBy::Router { path, parameters };
        Some(Self { by })
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
        Ok(Self {
            by: MatchedBy::Explained {
                path: route.into(),
                parameters,
            },
        })
    }

    /// The route as the router has it, with all that it is nested in.
    pub(crate) fn path(&self) -> &str {
        match &self.by {
            MatchedBy::Router { path, .. } => path.as_str(),
            MatchedBy::Explained { path, .. } => path,
        }
    }

    /// All parameters, decoded; `None` if a value is not UTF-8.
    fn parameters(&self) -> Option<impl Iterator<Item = (&str, &str)>> {
        let (matched, explained) = match &self.by {
            MatchedBy::Router { parameters, .. } => (Some(parameters.as_ref()?.iter()), &[][..]),
            MatchedBy::Explained { parameters, .. } => (None, &parameters[..]),
        };
        let explained = explained.iter().map(|(name, value)| (&**name, &**value));
        Some(matched.into_iter().flatten().chain(explained))
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
        if has(RouteSegment::Rest(name)) {
            return Ok(None);
        }
        if self.parameters().is_none() && !has(RouteSegment::Parameter(name)) {
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
    pub(in crate::realm) fn value(&self, name: &str) -> Result<Option<&str>, RealmError> {
        Ok(self.named(name)?.map(|(_, value)| value))
    }

    fn named(&self, name: &str) -> Result<Option<(&str, &str)>, RealmError> {
        let Some(parameters) = self.parameters() else {
            return Err(RealmError::unresolved(
                "a part of its path is not UTF-8; percent-encode it as UTF-8",
            ));
        };
        let mut values = parameters.filter(|(key, _)| *key == name);
        let Some((key, value)) = values.next() else {
            return Ok(None);
        };
        if let Some((_, other)) = values.find(|(_, other)| *other != value) {
            let (value, other) = (shown(value), shown(other));
            let problem = format!(
                "two nested routes have a parameter `{name}`, one is `{value}` and the other \
                 `{other}`; give them different names"
            );
            return Err(RealmError::Unresolved { problem });
        }
        Ok(Some((key, value)))
    }
}

#[cfg(not(feature = "axum"))]
impl MatchedRoute {
    pub(crate) fn of<A>(_: &mut Request<A>) -> Option<Self> {
        None
    }

    pub(in crate::realm) fn explained(route: &str, _: &ParsedPath<'_>) -> Result<Self, RealmError> {
        Err(RealmError::unresolved(format_args!(
            "the route `{route}` needs the feature `axum`"
        )))
    }

    pub(crate) fn path(&self) -> &str {
        match self.never {}
    }

    pub(in crate::realm) fn parameter(&self, _: &str) -> Result<Option<(&str, &str)>, RealmError> {
        match self.never {}
    }
}

impl MatchedRoute {
    pub(in crate::realm) fn segments(&self) -> impl Iterator<Item = RouteSegment<'_>> {
        segments(self.path())
    }
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
