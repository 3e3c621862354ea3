use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http::request::Parts;

use super::mounts::RealmMounts;
use super::paths::RealmPaths;
use super::pointers::RealmPointers;
use super::source::{PathSource, Source};
use crate::realm::body::ReadsBodies;
use crate::realm::error::{RealmError, shown};
use crate::realm::path::{ParsedPath, PathProblem};
use crate::realm::template::PathTemplate;
use crate::realm::url::RealmUrl;

/// Finds the realms that a request writes, by its path or a closure, each for its routes.
///
/// [`RealmPaths`] and [`RealmMounts`] become one by `into()`; a closure by
/// [`from_fn`](Self::from_fn). Realms that are named in the body are found by a
/// [`RealmBodyResolver`]. Where several realms are found, all of them are locked, in one claim: all
/// or nothing. Cheap to clone.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::{RealmMounts, RealmPaths, RealmResolver};
///
/// // Realms are named by paths, except that one route writes the realm at the root.
/// let root = RealmMounts::new(["https://realms.example.com/".parse()?])?;
/// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
/// let realms = RealmResolver::from(realms).route(Method::POST, "/_create-realm", root)?;
/// # let _ = realms;
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Clone)]
pub struct RealmResolver(Routes<Infallible>);

/// Finds the realms that a request writes as a [`RealmResolver`] does, or in the request's body.
///
/// [`RealmPointers`] and everything that finds realms without a body become one by `into()`; a
/// closure by [`from_body_fn`](Self::from_body_fn). It needs a layer that reads bodies, a
/// [`RealmBodyLockLayer`](crate::RealmBodyLockLayer). Cheap to clone.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::{RealmBodyResolver, RealmPaths, RealmPointers};
///
/// // Realms are named by paths, except where realms themselves are deleted and published.
/// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
/// let deleted = RealmPointers::new(["/realmURL"])?;
/// let published = RealmPointers::new(["/sourceRealmURL", "/publishedRealmURL"])?;
/// let realms = RealmBodyResolver::from(realms)
///     .route(Method::DELETE, "/_delete-realm", deleted)?
///     .route(Method::POST, "/_publish-realm", published)?;
/// # let _ = realms;
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Clone)]
pub struct RealmBodyResolver(Routes<ReadsBodies>);

impl RealmResolver {
    /// A closure that finds the realms of a request: in a header, in a registry.
    ///
    /// It gets the request's head, and is asked before anything is locked. An error is answered
    /// with 400, or with 503 if it is [`RealmError::unavailable`]; an empty list with 400. There is
    /// no time limit: give it your own. All replicas must find the same realms.
    ///
    /// For a MOVE or COPY the closure must name the realm of the header `Destination` as well: the
    /// layer does not read that header then.
    ///
    /// ```
    /// use tower_realm_lock::{RealmError, RealmResolver, RealmUrl};
    ///
    /// let realms = RealmResolver::from_fn(|request| async move {
    ///     let tenant = request.headers.get("tenant");
    ///     let tenant = tenant.ok_or(RealmError::unresolved("the header `tenant` is missing"))?;
    ///     let tenant = tenant.to_str().map_err(RealmError::unresolved)?;
    ///     Ok(vec![RealmUrl::parse(&format!("https://realms.example.com/{tenant}/"))?])
    /// });
    /// # let _ = realms;
    /// ```
    #[must_use]
    pub fn from_fn<F, R>(find: F) -> Self
    where
        F: Fn(Arc<Parts>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<RealmUrl>, RealmError>> + Send + 'static,
    {
        let find = Source::Closure(Arc::new(move |parts| Box::pin(find(parts))));
        Self(Routes::all(find))
    }

    /// Finds the realms of one route in another way. Routes are tried in the order they were added;
    /// the first that fits decides, and where none does, what this was made from.
    ///
    /// GET stands for HEAD too. Patterns are written as in [`LockRules`](crate::LockRules).
    ///
    /// The path must fit to the letter. A path that fits only in another spelling (a literal
    /// segment that is percent-encoded, one slash more or less at its end, dot segments) is refused
    /// with 400: a router may send it to the handler of another route, which writes another realm.
    /// So is one that fits an earlier route in another spelling.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidTemplate`] for a bad pattern.
    pub fn route(
        self,
        method: Method,
        pattern: &str,
        resolver: impl Into<Self>,
    ) -> Result<Self, RealmError> {
        let routes = self.0.route(method, pattern, resolver.into().0)?;
        Ok(Self(routes))
    }

    pub(in crate::realm) fn into_routes(self) -> Routes<Infallible> {
        self.0
    }
}

impl RealmBodyResolver {
    /// A closure that finds the realms of a request with its body, as that of
    /// [`RealmResolver::from_fn`] does without it.
    ///
    /// The bytes are those of the request, still in its `Content-Encoding` if it has one.
    #[must_use]
    pub fn from_body_fn<F, R>(find: F) -> Self
    where
        F: Fn(Arc<Parts>, Bytes) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<RealmUrl>, RealmError>> + Send + 'static,
    {
        let find = Arc::new(move |parts, body| -> super::source::Resolving {
            Box::pin(find(parts, body))
        });
        Self(Routes::all(Source::BodyClosure(find, ReadsBodies)))
    }

    /// Finds the realms of one route in another way, as [`RealmResolver::route`] does.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidTemplate`] for a bad pattern.
    pub fn route(
        self,
        method: Method,
        pattern: &str,
        resolver: impl Into<Self>,
    ) -> Result<Self, RealmError> {
        let routes = self.0.route(method, pattern, resolver.into().0)?;
        Ok(Self(routes))
    }

    pub(in crate::realm) fn into_routes(self) -> Routes<ReadsBodies> {
        self.0
    }
}

/// The ways to find realms: one for each route, and one for all other requests.
#[derive(Clone)]
pub(in crate::realm) struct Routes<B> {
    base: Source<B>,
    routes: Vec<Route<B>>,
}

#[derive(Clone)]
struct Route<B> {
    method: Method,
    pattern: PathTemplate,
    resolver: Routes<B>,
}

impl<B> Routes<B> {
    fn all(base: Source<B>) -> Self {
        let routes = Vec::new();
        Self { base, routes }
    }

    fn route(mut self, method: Method, pattern: &str, resolver: Self) -> Result<Self, RealmError> {
        self.routes.push(Route {
            method,
            pattern: PathTemplate::parse(pattern)?,
            resolver,
        });
        Ok(self)
    }

    /// The way to find the realms of a request that can be read with each of `methods`, and may
    /// be read with still another one if they are `unclear`. It must be the same for each of them,
    /// and for every way to read the path.
    pub(in crate::realm) fn source<'m>(
        &self,
        mut methods: impl Iterator<Item = &'m Method> + Clone,
        unclear: bool,
        path: &ParsedPath<'_>,
    ) -> Result<&Source<B>, RealmError> {
        let mut of_each = methods
            .clone()
            .map(|method| self.source_for(method, path, PathTemplate::matches_exactly));
        let first = of_each.next().unwrap_or(&self.base);
        let differs = of_each.any(|source| !std::ptr::eq(source, first));
        // What is unclear to us may be clear to another reader, as the method of any route.
        let may_differ = || {
            let mut patterns = self.routes.iter().map(|route| &route.pattern);
            unclear && patterns.any(|pattern| pattern.matches_any_spelling(path))
        };
        if differs || may_differ() {
            return Err(RealmError::AmbiguousMethod);
        }
        let is_first =
            |method, fits: Fits| std::ptr::eq(self.source_for(method, path, fits), first);
        let is_one = methods.all(|method| {
            is_first(method, PathTemplate::matches_any_spelling)
                && (path.is_unambiguous() || is_first(method, PathTemplate::matches_resolved))
        });
        if !is_one {
            return Err(RealmError::AmbiguousPath {
                path: shown(path.raw()),
                problem: PathProblem::Spelling,
            });
        }
        Ok(first)
    }

    fn source_for(&self, method: &Method, path: &ParsedPath<'_>, fits: Fits) -> &Source<B> {
        self.routes
            .iter()
            .find(|route| {
                let head_of_get = route.method == Method::GET && method == Method::HEAD;
                (route.method == *method || head_of_get) && fits(&route.pattern, path)
            })
            .map_or(&self.base, |route| {
                route.resolver.source_for(method, path, fits)
            })
    }
}

type Fits = fn(&PathTemplate, &ParsedPath<'_>) -> bool;

impl Routes<Infallible> {
    /// The same for a layer that reads bodies.
    pub(in crate::realm) fn with_bodies(self) -> Routes<ReadsBodies> {
        let routes = self.routes.into_iter().map(|route| Route {
            method: route.method,
            pattern: route.pattern,
            resolver: route.resolver.with_bodies(),
        });
        Routes {
            base: self.base.with_bodies(),
            routes: routes.collect(),
        }
    }
}

impl From<RealmPaths> for RealmResolver {
    fn from(paths: RealmPaths) -> Self {
        Self(Routes::all(Source::Path(PathSource::Template(paths))))
    }
}

impl From<RealmMounts> for RealmResolver {
    fn from(mounts: RealmMounts) -> Self {
        Self(Routes::all(Source::Path(PathSource::Mounts(mounts))))
    }
}

impl From<RealmResolver> for RealmBodyResolver {
    fn from(resolver: RealmResolver) -> Self {
        Self(resolver.0.with_bodies())
    }
}

impl From<RealmPaths> for RealmBodyResolver {
    fn from(paths: RealmPaths) -> Self {
        RealmResolver::from(paths).into()
    }
}

impl From<RealmMounts> for RealmBodyResolver {
    fn from(mounts: RealmMounts) -> Self {
        RealmResolver::from(mounts).into()
    }
}

impl From<RealmPointers> for RealmBodyResolver {
    fn from(pointers: RealmPointers) -> Self {
        Self(Routes::all(Source::Pointers(pointers, ReadsBodies)))
    }
}

impl fmt::Debug for RealmResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RealmBodyResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<B> fmt::Debug for Routes<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for route in &self.routes {
            list.entry(&(&route.method, route.pattern.source(), &route.resolver));
        }
        list.entry(&self.base).finish()
    }
}
