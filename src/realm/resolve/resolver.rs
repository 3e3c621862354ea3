use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, Method};

use super::mounts::RealmMounts;
use super::paths::RealmPaths;
use super::pointers::RealmPointers;
use super::source::{PathSource, Resolving, Source};
use crate::config::ConfigError;
use crate::realm::body::ReadsBodies;
use crate::realm::claim::Claim;
use crate::realm::error::{RealmError, shown};
use crate::realm::head::Head;
use crate::realm::path::{ParsedPath, PathProblem};
use crate::realm::request_head::RequestHead;
use crate::realm::rules::methods::MethodSet;
use crate::realm::rules::selector::{RuleKind, Selector};
use crate::realm::template::PathTemplate;

/// Finds what a request locks: its realms, or keys of other spaces, each for its routes.
///
/// [`RealmPaths`] and [`RealmMounts`] find realms in the path and become one by `into()`. Other
/// sources are a [header](Self::from_header), a [request extension](Self::from_extension), the
/// parameters that axum's router has matched (`from_params`, feature `axum`), and an
/// [async closure](Self::from_fn) that can look anywhere. Realms that are named in the body are
/// found by a [`RealmBodyResolver`]. Cheap to clone.
///
/// # What a closure returns
///
/// Anything that becomes a [`Claim`]: a [`RealmUrl`](crate::RealmUrl), a
/// [`LockKey`](crate::LockKey) of a space of your own, such as that of tenant ids, or a claim on
/// several of both, which is granted as a whole or not at all. [`RealmUrl::join`] makes a realm URL
/// of plain text. The claim on one realm as a whole is narrowed by the [`Scope`](crate::Scope) of
/// the request's route, every other claim is locked as it is; `Scope::shared()` shares each realm
/// that the claim takes whole.
///
/// A closure's error rejects the request: with 503 if it is [`RealmError::unavailable`], else with
/// 400. All replicas must find the same claim for the same request.
///
/// For a MOVE or COPY the closure must claim the realm of the header `Destination` as well: the
/// layer does not read that header then.
///
/// [`RealmUrl::join`]: crate::RealmUrl::join
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
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct RealmResolver(Routes<Infallible>);

/// Finds what a request locks as a [`RealmResolver`] does, or in the request's body.
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
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct RealmBodyResolver(Routes<ReadsBodies>);

impl RealmResolver {
    /// Finds what is locked by an async closure, which can look anywhere, such as in a registry.
    ///
    /// It runs before anything is locked, and has no time limit: give it your own. Its results are
    /// described [above](Self#what-a-closure-returns).
    ///
    /// ```
    /// use tower_realm_lock::{RealmError, RealmResolver, RealmUrl};
    ///
    /// // Realms by their custom domains.
    /// let realms = RealmResolver::from_fn(|head| async move {
    ///     let missing = || RealmError::missing("the header `host` is missing; send it");
    ///     let host = head.headers().get("host").ok_or_else(missing)?;
    ///     match host.as_bytes() {
    ///         b"notes.acme.test" => RealmUrl::parse("https://api.example.com/acme"),
    ///         _ => Err(RealmError::unresolved("no tenant has this domain")),
    ///     }
    /// });
    /// # let _ = realms;
    /// ```
    ///
    /// The page on [tenancy](crate::guide::tenancy#custom-domains) asks a registry.
    #[must_use]
    pub fn from_fn<F, R, C>(find: F) -> Self
    where
        F: Fn(RequestHead) -> R + Send + Sync + 'static,
        R: Future<Output = Result<C, RealmError>> + Send + 'static,
        C: Into<Claim>,
    {
        let find = move |head| -> Resolving {
            let found = find(head);
            Box::pin(async { Ok(found.await?.into()) })
        };
        Self(Routes::all(Source::Closure(Arc::new(find))))
    }

    /// Finds what is locked by the value of a header.
    ///
    /// The header must be one that a client cannot choose at will, or the handler must take the
    /// tenant from the same header: a lock on another tenant's name protects nothing.
    ///
    /// A request without the header is refused, with [`RealmError::Missing`]. So is one whose
    /// header cannot be read in one way, with [`RealmError::Unresolved`]: it is there more than
    /// once, is empty, is not UTF-8, has a control character, or has white space at an end. A proxy
    /// may join two headers to one with a comma: refuse a comma if no name of yours has one.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tower_realm_lock::{LockKey, RealmLocks, RealmResolver, RealmWriteLockLayer};
    ///
    /// // One lock for each tenant id: no URL is needed.
    /// let header = HeaderName::from_static("x-tenant-id");
    /// let tenants = RealmResolver::from_header(header, |id| LockKey::in_space("tenant", id));
    /// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), tenants);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn from_header<F, C>(name: HeaderName, find: F) -> Self
    where
        F: Fn(&str) -> Result<C, RealmError> + Send + Sync + 'static,
        C: Into<Claim>,
    {
        let place = format!("the header `{name}`");
        Self::in_head(&place, move |head| {
            let value = header(head.headers, &name)?;
            find(value).map(Some)
        })
    }

    /// Finds what is locked by a request extension that a layer outside of this one inserts, such
    /// as the claims of a token.
    ///
    /// A request without the extension is refused, with [`RealmError::Missing`].
    ///
    /// ```
    /// use tower_realm_lock::{RealmResolver, RealmUrl};
    ///
    /// // A layer outside inserts it once it has checked the token.
    /// #[derive(Clone)]
    /// struct Claims {
    ///     tenant: String,
    /// }
    ///
    /// let base = RealmUrl::parse("https://realms.example.com")?;
    /// let realms = RealmResolver::from_extension(move |claims: &Claims| base.join([&claims.tenant]));
    /// # let _ = realms;
    /// # Ok::<(), tower_realm_lock::RealmError>(())
    /// ```
    #[must_use]
    pub fn from_extension<T, F, C>(find: F) -> Self
    where
        T: Send + Sync + 'static,
        F: Fn(&T) -> Result<C, RealmError> + Send + Sync + 'static,
        C: Into<Claim>,
    {
        let name = std::any::type_name::<T>();
        Self::in_head(&format!("the extension `{name}`"), move |head| {
            let extension = head.extensions.get().ok_or_else(|| {
                RealmError::missing(format_args!(
                    "it has no extension `{name}`; put the layer that inserts it outside of the \
                     one that locks"
                ))
            })?;
            find(extension).map(Some)
        })
    }

    /// Finds what is locked by parameters of the route that axum's router has matched.
    ///
    /// They are percent-decoded, as handlers read them with axum's `Path`, in every route and
    /// however deep it is nested. The layer must be inside the router, as `Router::layer` puts it.
    ///
    /// **A request whose route lacks one of the parameters is not locked**: `/auth/login` is for no
    /// tenant. So write the names as the routes have them. A request is refused if no route has
    /// matched, with [`RealmError::Missing`], and with [`RealmError::Unresolved`] if two nested
    /// routes have a parameter with different values, or if a value is not UTF-8.
    ///
    /// ```
    /// use axum::{Router, routing::post};
    /// use tower_realm_lock::{RealmLocks, RealmResolver, RealmUrl, RealmWriteLockLayer};
    /// # async fn create() {}
    ///
    /// let base = RealmUrl::parse("https://realms.example.com")?;
    /// let realms = RealmResolver::from_params(["tenant", "project"], move |names| base.join(names));
    /// let app: Router = Router::new()
    ///     .route("/v1/{tenant}/{project}/cards", post(create))
    ///     .route("/admin/{project}/of/{tenant}/purge", post(create))
    ///     .layer(RealmWriteLockLayer::new(RealmLocks::in_process(), realms));
    /// # let _ = app;
    /// # Ok::<(), tower_realm_lock::RealmError>(())
    /// ```
    #[cfg(feature = "axum")]
    #[must_use]
    pub fn from_params<const N: usize, F, C>(names: [&str; N], find: F) -> Self
    where
        F: Fn([&str; N]) -> Result<C, RealmError> + Send + Sync + 'static,
        C: Into<Claim>,
    {
        let place = format!("the route's parameters `{}`", names.join("`, `"));
        let names = names.map(Box::<str>::from);
        Self::in_head(&place, move |head| {
            let route = head.route().ok_or_else(|| RealmError::Missing {
                problem: "no route has matched that could name it; put the layer inside axum's \
                          router, with `Router::layer`"
                    .into(),
            })?;
            let mut values = [""; N];
            for (value, name) in values.iter_mut().zip(&names) {
                match route.value(name)? {
                    Some(of_route) => *value = of_route,
                    None => return Ok(None),
                }
            }
            find(values).map(Some)
        })
    }

    /// What needs only the head, and does not wait.
    fn in_head<F, C>(place: &str, find: F) -> Self
    where
        F: Fn(&Head<'_>) -> Result<Option<C>, RealmError> + Send + Sync + 'static,
        C: Into<Claim>,
    {
        Self(Routes::all(Source::Head {
            find: Arc::new(move |head| Ok(find(head)?.map(Into::into))),
            place: place.into(),
        }))
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
    /// [`ConfigError::InvalidTemplate`] for a bad pattern, [`ConfigError::InvalidRule`] for a route
    /// that an earlier one hides, without a method, or with one in another letter case.
    pub fn route(
        self,
        methods: impl Into<MethodSet>,
        pattern: &str,
        resolver: impl Into<Self>,
    ) -> Result<Self, ConfigError> {
        let routes = self.0.route(methods.into(), pattern, resolver.into().0)?;
        Ok(Self(routes))
    }

    pub(in crate::realm) fn into_routes(self) -> Routes<Infallible> {
        self.0
    }
}

impl RealmBodyResolver {
    /// Finds what is locked by an async closure that gets the request's body too, and is otherwise
    /// as that of [`RealmResolver::from_fn`].
    ///
    /// The bytes are those of the request, still in its `Content-Encoding` if it has one.
    ///
    /// ```
    /// use tower_realm_lock::{
    ///     Claim, RealmBodyLockLayer, RealmBodyResolver, RealmError, RealmLocks, RealmUrl,
    /// };
    ///
    /// // The body is a list of the realms that a copy reads and writes, one in each line.
    /// let realms = RealmBodyResolver::from_body_fn(|_head, body| async move {
    ///     let lines = std::str::from_utf8(&body).map_err(RealmError::unresolved)?;
    ///     let realms: Result<Vec<_>, _> = lines.lines().map(RealmUrl::parse).collect();
    ///     Claim::of_realms(realms?)
    /// });
    /// let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 64 * 1024);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn from_body_fn<F, R, C>(find: F) -> Self
    where
        F: Fn(RequestHead, Bytes) -> R + Send + Sync + 'static,
        R: Future<Output = Result<C, RealmError>> + Send + 'static,
        C: Into<Claim>,
    {
        let find = move |head, body| -> Resolving {
            let found = find(head, body);
            Box::pin(async { Ok(found.await?.into()) })
        };
        Self(Routes::all(Source::BodyClosure(
            Arc::new(find),
            ReadsBodies,
        )))
    }

    /// Finds the realms of one route in another way, as [`RealmResolver::route`] does.
    ///
    /// # Errors
    ///
    /// As [`RealmResolver::route`].
    pub fn route(
        self,
        methods: impl Into<MethodSet>,
        pattern: &str,
        resolver: impl Into<Self>,
    ) -> Result<Self, ConfigError> {
        let routes = self.0.route(methods.into(), pattern, resolver.into().0)?;
        Ok(Self(routes))
    }

    pub(in crate::realm) fn into_routes(self) -> Routes<ReadsBodies> {
        self.0
    }
}

/// The only value of a header, if it can be read in one way.
fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, RealmError> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or_else(|| {
        RealmError::missing(format_args!(
            "it has no header `{name}`; send it, or put the layer that inserts it outside of the \
             one that locks"
        ))
    })?;
    // Values are not shown: a header may be a secret.
    let refused = |problem: &str| {
        RealmError::unresolved(format_args!(
            "its header `{name}` {problem}; send it once, as readable text"
        ))
    };
    if values.next().is_some() {
        return Err(refused("is there more than once"));
    }
    let Ok(text) = std::str::from_utf8(value.as_bytes()) else {
        return Err(refused("is not UTF-8"));
    };
    if text.is_empty() {
        return Err(refused("is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(refused("has a control character"));
    }
    if text.trim() != text {
        return Err(refused("has white space at an end"));
    }
    Ok(text)
}

/// The ways to find realms: one for each route, and one for all other requests.
#[derive(Clone)]
pub(in crate::realm) struct Routes<B> {
    base: Source<B>,
    routes: Vec<Route<B>>,
}

#[derive(Clone)]
struct Route<B> {
    selector: Selector,
    resolver: Routes<B>,
}

/// Ways to find realms, each with its route.
type Each<'a, B> = Box<dyn Iterator<Item = (Option<&'a Selector>, &'a Source<B>)> + 'a>;

impl<B> Routes<B> {
    fn all(base: Source<B>) -> Self {
        let routes = Vec::new();
        Self { base, routes }
    }

    fn route(
        mut self,
        methods: MethodSet,
        pattern: &str,
        resolver: Self,
    ) -> Result<Self, ConfigError> {
        let selector = Selector::parse(RuleKind::Route, methods, pattern)?;
        selector.admitted(self.routes.iter().map(|earlier| &earlier.selector))?;
        self.routes.push(Route { selector, resolver });
        Ok(self)
    }

    /// All ways to find realms, each with the innermost route that it is for; that for all other
    /// requests has none.
    pub(in crate::realm) fn each(&self) -> Each<'_, B> {
        let of_routes = self.routes.iter().flat_map(|route| {
            let each = route.resolver.each();
            each.map(|(inner, source)| (inner.or(Some(&route.selector)), source))
        });
        Box::new(of_routes.chain([(None, &self.base)]))
    }

    /// The first result for one of the patterns by which realms are found in paths. Allocates
    /// nothing: each locked request comes here.
    pub(in crate::realm) fn find_template<T>(
        &self,
        find: impl Fn(&RealmPaths) -> Option<T>,
    ) -> Option<T> {
        fn seek<B, T>(routes: &Routes<B>, find: &dyn Fn(&RealmPaths) -> Option<T>) -> Option<T> {
            let mut of_routes = routes.routes.iter();
            let found = of_routes.find_map(|route| seek(&route.resolver, find));
            found.or_else(|| match &routes.base {
                Source::Path(PathSource::Template(paths)) => find(paths),
                _ => None,
            })
        }
        seek(self, &find)
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
        if self.routes.is_empty() {
            return Ok(&self.base);
        }
        let mut of_each = methods
            .clone()
            .map(|method| self.source_for(method, path, PathTemplate::matches_exactly));
        let first = of_each.next().unwrap_or(&self.base);
        let differs = of_each.any(|source| !std::ptr::eq(source, first));
        // What is unclear to us may be clear to another reader, as the method of any route.
        let may_differ = || {
            let mut patterns = self.routes.iter().map(|route| &route.selector.pattern);
            unclear && patterns.any(|pattern| pattern.matches_any_spelling(path))
        };
        if differs || may_differ() {
            return Err(RealmError::AmbiguousMethod);
        }
        let is_first =
            |method, fits: Fits| std::ptr::eq(self.source_for(method, path, fits), first);
        let is_one = methods.all(|method| {
            is_first(method, PathTemplate::matches_any_spelling)
                && (path.is_unambiguous()
                    || !path.is_whole()
                    || is_first(method, PathTemplate::matches_resolved))
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
            .find(|Route { selector, .. }| {
                selector.is_for_or_as_get(method) && fits(&selector.pattern, path)
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
            selector: route.selector,
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

impl<B> Routes<B> {
    /// What all replicas must have in common, as text.
    pub(in crate::realm) fn fingerprint(&self) -> String {
        let mut text = self.base.fingerprint();
        for route in &self.routes {
            let (selector, source) = (route.selector.fingerprint(), route.resolver.fingerprint());
            text = format!("{text}; {selector}: {source}");
        }
        text
    }
}

impl<B> fmt::Debug for Routes<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for route in &self.routes {
            let Selector {
                methods, pattern, ..
            } = &route.selector;
            list.entry(&(methods, pattern.source(), &route.resolver));
        }
        list.entry(&self.base).finish()
    }
}
