use std::convert::Infallible;

use http::Method;
use http::header::HeaderName;

use super::methods::Methods;
use super::scope::{RouteScope, Scope};
use crate::realm::body::ReadsBodies;
use crate::realm::error::{RealmError, shown};
use crate::realm::head::Head;
use crate::realm::path::ParsedPath;
use crate::realm::template::PathTemplate;

/// Above so many resources of one request its realm is taken whole, unless the rules say otherwise.
const MAX_RESOURCES: usize = 16;

/// Which requests are locked, by method and path, and how much of their realm.
///
/// By default the safe methods (GET, HEAD, OPTIONS, TRACE, QUERY; RFC 9110 section 9.2.1) pass, and
/// every other method, known or not, is locked. Routes are exceptions to that; they are tried in
/// the order they were added, and the first that fits decides.
///
/// Route patterns are written as in axum: `{name}` is one segment, `{*name}` at the end one or
/// more.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::LockRules;
///
/// let rules = LockRules::new()
///     .exempt(Method::POST, "/{owner}/{realm}/_search")?
///     .lock(Method::GET, "/{owner}/{realm}/_reindex")?;
/// assert!(!rules.locks(&Method::POST, "/luke/my-realm/_search"));
/// assert!(rules.locks(&Method::GET, "/luke/my-realm/_reindex"));
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
///
/// A locked request takes its realm whole, unless its route has a narrower [`Scope`]: then writers
/// of two cards of one realm run side by side, and whoever takes the realm whole excludes them all.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::{LockRules, Scope};
///
/// let rules = LockRules::new()
///     .scope(Method::POST, "/{owner}/{realm}/_atomic", Scope::atomic_hrefs())?
///     .scope(Method::PATCH, "/{owner}/{realm}/{*card}", Scope::resource())?
///     .max_resources(32);
/// # let _ = rules;
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct LockRules(pub(super) Rules<ReadsBodies>);

/// The [`LockRules`] of a layer. With `B = Infallible` no scope needs the body.
#[derive(Debug, Clone)]
pub(in crate::realm) struct Rules<B> {
    pub(super) routes: Vec<Route>,
    pub(super) scopes: Vec<ScopeRoute<B>>,
    pub(super) max_resources: usize,
    /// The header, and the methods that it may name.
    pub(super) method_override: Option<(HeaderName, Vec<Method>)>,
}

impl<B> Default for Rules<B> {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            scopes: Vec::new(),
            max_resources: MAX_RESOURCES,
            method_override: None,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct ScopeRoute<B> {
    pub(super) method: Method,
    pub(super) pattern: PathTemplate,
    pub(super) scope: RouteScope<B>,
}

#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) pattern: PathTemplate,
    pub(super) locked: bool,
}

impl LockRules {
    /// The default rules: safe methods pass, all others are locked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a route pass although its method is not safe: a search that is a POST.
    ///
    /// The path must fit the pattern to the letter. A spelling that only decodes to it, or a path
    /// that two servers could read differently, stays locked: a router may send it to a handler
    /// that writes.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidTemplate`] for a bad pattern.
    pub fn exempt(self, method: Method, pattern: &str) -> Result<Self, RealmError> {
        self.route(method, pattern, false)
    }

    /// Locks a route although its method is safe: a GET that writes.
    ///
    /// Every spelling that decodes to the pattern is locked, with one slash more or less at its
    /// end. GET stands for HEAD too: routers answer it by the same handler.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidTemplate`] for a bad pattern.
    pub fn lock(self, method: Method, pattern: &str) -> Result<Self, RealmError> {
        self.route(method, pattern, true)
    }

    fn route(mut self, method: Method, pattern: &str, locked: bool) -> Result<Self, RealmError> {
        let pattern = PathTemplate::parse(pattern)?;
        self.0.routes.push(Route {
            method,
            pattern,
            locked,
        });
        Ok(self)
    }

    /// How much of its realm a route locks. Default [`Scope::realm`]. Whether it is locked at all
    /// is not changed by this.
    ///
    /// Scopes are tried in the order they were added, and the first whose pattern fits any spelling
    /// of the path decides. A narrower scope than the realm counts only if method and path fit it
    /// to the letter: of another spelling it is not certain what the handler makes of it, so it
    /// takes the realm whole. A request for several realms takes each of them whole.
    ///
    /// A scope that reads the body needs a layer that does, a
    /// [`RealmBodyLockLayer`](crate::RealmBodyLockLayer).
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidTemplate`] for a bad pattern.
    pub fn scope(
        mut self,
        method: Method,
        pattern: &str,
        scope: Scope,
    ) -> Result<Self, RealmError> {
        let pattern = PathTemplate::parse(pattern)?;
        self.0.scopes.push(ScopeRoute {
            method,
            pattern,
            scope: scope.0,
        });
        Ok(self)
    }

    /// Gives each resource another name, as [`Scope::named_by`] does, in all scopes so far that
    /// have no closure for it: for rules from a file, which holds no closures.
    ///
    /// ```
    /// use tower_realm_lock::LockRules;
    ///
    /// let rules: LockRules = serde_json::from_str(
    ///     r#"{ "scopes": [{ "method": "PATCH", "path": "/{owner}/{realm}/{*card}", "scope": "resource" }] }"#,
    /// )?;
    /// let rules = rules.named_by(|path| path.strip_suffix(".json").unwrap_or(path).to_owned());
    /// # let _ = rules;
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    #[cfg(feature = "serde")]
    #[must_use]
    pub fn named_by<F>(mut self, name: F) -> Self
    where
        F: Fn(&str) -> String + Clone + Send + Sync + 'static,
    {
        for route in &mut self.0.scopes {
            route.scope.name_unnamed(name.clone());
        }
        self
    }

    /// How many resources one request may lock by themselves; one with more takes its realm whole.
    /// Default 16.
    ///
    /// Each of them is a lock in PostgreSQL's shared lock table.
    #[must_use]
    pub fn max_resources(mut self, resources: usize) -> Self {
        self.0.max_resources = resources;
        self
    }

    /// A header that overrides the method, such as `X-HTTP-Method-Override`, as a layer behind this
    /// one reads it. Default none: no header changes what is locked.
    ///
    /// `honoured` are the methods that whoever overrides takes from it, in the letter case that it
    /// takes. A POST with one such header that names one of them is judged as that method: it
    /// passes as a QUERY. As many layers override nothing but POST, every other request is judged
    /// as both, and locked if either is: a GET that says DELETE, a DELETE that says GET, and a POST
    /// that says what is not honoured. As some fold letter case, `delete` is judged as DELETE too.
    /// A request with two such headers, or one that is not a method, is locked, with its realm
    /// whole. Where a [route](crate::RealmResolver::route) may find another realm for another
    /// reading, the request is refused with 400.
    #[must_use]
    pub fn method_override(
        mut self,
        header: HeaderName,
        honoured: impl IntoIterator<Item = Method>,
    ) -> Self {
        self.0.method_override = Some((header, honoured.into_iter().collect()));
        self
    }

    /// Whether a request with this method and raw path is locked, if no header overrides its
    /// method. Allocates nothing for a safe method.
    #[must_use]
    pub fn locks(&self, method: &Method, path: &str) -> bool {
        self.0.locks(method, &ParsedPath::new(path))
    }

    pub(in crate::realm) fn into_rules(self) -> Rules<ReadsBodies> {
        self.0
    }
}

impl Rules<ReadsBodies> {
    /// The same for a layer that reads no bodies.
    ///
    /// # Errors
    ///
    /// [`RealmError::BodyNeeded`] for the first scope that needs the body.
    pub(in crate::realm) fn without_bodies(self) -> Result<Rules<Infallible>, RealmError> {
        let scopes = self.scopes.into_iter().map(|route| {
            let ScopeRoute {
                method,
                pattern,
                scope,
            } = route;
            let scope = scope
                .without_bodies()
                .ok_or_else(|| RealmError::BodyNeeded {
                    route: shown(&format!("{method} {}", pattern.source())),
                })?;
            Ok(ScopeRoute {
                method,
                pattern,
                scope,
            })
        });
        Ok(Rules {
            routes: self.routes,
            scopes: scopes.collect::<Result<_, _>>()?,
            max_resources: self.max_resources,
            method_override: self.method_override,
        })
    }
}

impl Rules<Infallible> {
    /// The same for a layer that reads bodies.
    pub(in crate::realm) fn with_bodies(self) -> Rules<ReadsBodies> {
        let scopes = self.scopes.into_iter().map(|route| ScopeRoute {
            method: route.method,
            pattern: route.pattern,
            scope: route.scope.with_bodies(),
        });
        Rules {
            routes: self.routes,
            scopes: scopes.collect(),
            max_resources: self.max_resources,
            method_override: self.method_override,
        }
    }
}

impl<B> Rules<B> {
    /// The ways to read the request's method.
    pub(in crate::realm) fn methods(&self, head: &Head<'_>) -> Methods {
        Methods::of(head.method, head.headers, self.method_override.as_ref())
    }

    /// Whether a request is locked.
    pub(in crate::realm) fn lock_any(&self, methods: &Methods, path: &ParsedPath<'_>) -> bool {
        methods.unclear || methods.iter().any(|method| self.locks(method, path))
    }

    fn locks(&self, method: &Method, path: &ParsedPath<'_>) -> bool {
        self.routes
            .iter()
            .filter(|route| route.is_for(method))
            .find_map(|route| route.verdict(path))
            .unwrap_or_else(|| !method.is_safe())
    }

    /// The narrower scope than the realm that a request has; `None` if it has none, or if that is
    /// not certain.
    pub(in crate::realm) fn scope_of(
        &self,
        methods: &Methods,
        path: &ParsedPath<'_>,
    ) -> Option<&RouteScope<B>> {
        let mut of_each = methods.iter().map(|method| self.scope_for(method, path));
        let scope = of_each.next()?.filter(|_| !methods.unclear)?;
        let is_same = |other: Option<&_>| other.is_some_and(|other| std::ptr::eq(other, scope));
        of_each.all(is_same).then_some(scope)
    }

    /// The most resources that a request locks by themselves.
    pub(in crate::realm) fn max_resources(&self) -> usize {
        self.max_resources
    }

    fn scope_for(&self, method: &Method, path: &ParsedPath<'_>) -> Option<&RouteScope<B>> {
        let mut fitting = self
            .scopes
            .iter()
            .filter(|route| route.method == *method && route.pattern.matches_any_spelling(path));
        let route = fitting.next()?;
        let is_certain = route.pattern.matches_exactly(path) && path.is_unambiguous();
        is_certain.then_some(&route.scope)
    }
}

impl Route {
    fn is_for(&self, method: &Method) -> bool {
        let head_of_locked_get =
            self.locked && self.method == Method::GET && method == Method::HEAD;
        self.method == *method || head_of_locked_get
    }

    fn verdict(&self, path: &ParsedPath<'_>) -> Option<bool> {
        let fits = if self.locked {
            self.pattern.matches_any_spelling(path)
        } else {
            self.pattern.matches_exactly(path) && path.is_unambiguous()
        };
        fits.then_some(self.locked)
    }
}
