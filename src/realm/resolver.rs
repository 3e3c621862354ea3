use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http::request::Parts;

use super::error::shown;
use super::head::Head;
use super::methods::Methods;
use super::path::{is_unambiguous, resolved};
use super::template::PathTemplate;
use super::{PathProblem, RealmError, RealmMounts, RealmPaths, RealmPointers, RealmUrl};

/// Finds the realms that a request writes: by its path, its body, or a closure, each for its routes.
///
/// [`RealmPaths`], [`RealmMounts`] and [`RealmPointers`] become one by `into()`; a closure by [`from_fn`](Self::from_fn).
/// Where several realms are found, all of them are locked, in one claim: all or nothing. Cheap to clone.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::{RealmPaths, RealmPointers, RealmResolver};
///
/// // The realm is in the path, but where realms themselves are created and published.
/// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
/// let realms = RealmResolver::from(realms)
///     .route(Method::DELETE, "/_delete-realm", RealmPointers::new(["/realmURL"])?)?
///     .route(Method::POST, "/_publish-realm", RealmPointers::new(["/sourceRealmURL", "/publishedRealmURL"])?)?;
/// # let _ = realms;
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Clone)]
pub struct RealmResolver {
    base: Source,
    routes: Vec<Route>,
}

#[derive(Clone)]
struct Route {
    method: Method,
    pattern: PathTemplate,
    resolver: RealmResolver,
}

/// One way to find realms.
#[derive(Clone)]
pub(crate) enum Source {
    Paths(RealmPaths),
    Mounts(RealmMounts),
    Pointers(RealmPointers),
    Closure(Arc<ClosureFn>),
    BodyClosure(Arc<BodyClosureFn>),
}

type Resolving = Pin<Box<dyn Future<Output = Result<Vec<RealmUrl>, RealmError>> + Send>>;
type ClosureFn = dyn Fn(Arc<Parts>) -> Resolving + Send + Sync;
type BodyClosureFn = dyn Fn(Arc<Parts>, Bytes) -> Resolving + Send + Sync;

/// A realm that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) realm: RealmUrl,
    /// How many segments of the request's path name it, where it was found in the path.
    pub(super) depth: Option<usize>,
}

impl Found {
    pub(super) fn at(realm: RealmUrl, depth: usize) -> Self {
        let depth = Some(depth);
        Self { realm, depth }
    }
}

impl RealmResolver {
    /// A closure that finds the realms of a request: in a header, in a registry.
    ///
    /// It gets the request's head, and is asked before anything is locked. An error is answered with 400, or with 503 if it is
    /// [`RealmError::unavailable`]; an empty list with 400. There is no time limit: give it your own. All replicas must find
    /// the same realms.
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
        Source::Closure(Arc::new(move |parts| Box::pin(find(parts)))).into()
    }

    /// The same of a closure that reads the request's body too.
    ///
    /// The layer must be told how to [read bodies](crate::RealmWriteLockLayer::read_bodies). The bytes are those of the
    /// request, still in its `Content-Encoding` if it has one.
    #[must_use]
    pub fn from_body_fn<F, R>(find: F) -> Self
    where
        F: Fn(Arc<Parts>, Bytes) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<RealmUrl>, RealmError>> + Send + 'static,
    {
        Source::BodyClosure(Arc::new(move |parts, body| Box::pin(find(parts, body)))).into()
    }

    /// Finds the realms of one route in another way. Routes are tried in the order they were added; the first that fits
    /// decides, and where none does, what this was made from.
    ///
    /// GET stands for HEAD too. Patterns are written as in [`LockRules`](crate::LockRules).
    ///
    /// The path must fit to the letter. One that fits in another spelling alone (a literal segment that is percent-encoded, one slash
    /// more or less at its end, dot segments) is refused with 400: a router may send it to the handler of another route, which
    /// writes another realm. So is one that fits an earlier route in another spelling.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidTemplate`] for a bad pattern.
    pub fn route(
        mut self,
        method: Method,
        pattern: &str,
        resolver: impl Into<Self>,
    ) -> Result<Self, RealmError> {
        self.routes.push(Route {
            method,
            pattern: PathTemplate::parse(pattern)?,
            resolver: resolver.into(),
        });
        Ok(self)
    }

    /// The way to find this request's realms. It must be the same for every method that the request can be read with, and for
    /// every way to read its path.
    pub(crate) fn source(&self, methods: &Methods, path: &str) -> Result<&Source, RealmError> {
        let mut of_each = methods
            .iter()
            .map(|method| self.source_for(method, path, PathTemplate::matches_exactly));
        let first = of_each.next().unwrap_or(&self.base);
        let differs = of_each.any(|source| !std::ptr::eq(source, first));
        // What is unclear to us may be clear to another reader, as the method of any route.
        let may_differ = || {
            let mut patterns = self.routes.iter().map(|route| &route.pattern);
            methods.unclear && patterns.any(|pattern| pattern.matches_any_spelling(path))
        };
        if differs || may_differ() {
            return Err(RealmError::AmbiguousMethod);
        }
        let resolved = (!is_unambiguous(path)).then(|| resolved(path));
        let is_one = methods.iter().all(|method| {
            let any = self.source_for(method, path, PathTemplate::matches_any_spelling);
            let lenient = resolved
                .as_deref()
                .map(|path| self.source_for(method, path, PathTemplate::matches_exactly));
            std::ptr::eq(any, first) && lenient.is_none_or(|source| std::ptr::eq(source, first))
        });
        if !is_one {
            return Err(RealmError::AmbiguousPath {
                path: shown(path),
                problem: PathProblem::Spelling,
            });
        }
        Ok(first)
    }

    fn source_for(
        &self,
        method: &Method,
        path: &str,
        fits: fn(&PathTemplate, &str) -> bool,
    ) -> &Source {
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

impl Source {
    pub(crate) fn needs_body(&self) -> bool {
        matches!(self, Self::Pointers(_) | Self::BodyClosure(_))
    }

    /// What it finds in the head of the request alone, and at once; none if that is not enough.
    pub(crate) fn find_now(&self, head: Head<'_>) -> Option<Result<Found, RealmError>> {
        match self {
            Self::Paths(paths) => Some(paths.find(head)),
            Self::Mounts(mounts) => Some(mounts.find(head)),
            _ => None,
        }
    }

    /// What it finds in a request, with its body where it needs that. A closure may find none.
    pub(crate) async fn find(
        &self,
        parts: &Arc<Parts>,
        body: &Bytes,
    ) -> Result<Vec<Found>, RealmError> {
        let realms = match self {
            Self::Paths(paths) => return Ok(vec![paths.find(Head::of_parts(parts))?]),
            Self::Mounts(mounts) => return Ok(vec![mounts.find(Head::of_parts(parts))?]),
            Self::Pointers(pointers) => pointers.resolve(&parts.headers, body)?,
            Self::Closure(find) => find(Arc::clone(parts)).await?,
            Self::BodyClosure(find) => find(Arc::clone(parts), body.clone()).await?,
        };
        let found = |realm| Found { realm, depth: None };
        Ok(realms.into_iter().map(found).collect())
    }
}

impl From<Source> for RealmResolver {
    fn from(base: Source) -> Self {
        let routes = Vec::new();
        Self { base, routes }
    }
}

impl From<RealmPaths> for RealmResolver {
    fn from(paths: RealmPaths) -> Self {
        Source::Paths(paths).into()
    }
}

impl From<RealmMounts> for RealmResolver {
    fn from(mounts: RealmMounts) -> Self {
        Source::Mounts(mounts).into()
    }
}

impl From<RealmPointers> for RealmResolver {
    fn from(pointers: RealmPointers) -> Self {
        Source::Pointers(pointers).into()
    }
}

impl fmt::Debug for RealmResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for route in &self.routes {
            list.entry(&(&route.method, route.pattern.source(), &route.resolver));
        }
        list.entry(&self.base).finish()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paths(paths) => paths.fmt(f),
            Self::Mounts(mounts) => mounts.fmt(f),
            Self::Pointers(pointers) => pointers.fmt(f),
            Self::Closure(_) => f.write_str("from_fn"),
            Self::BodyClosure(_) => f.write_str("from_body_fn"),
        }
    }
}
