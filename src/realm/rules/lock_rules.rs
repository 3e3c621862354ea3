use std::convert::Infallible;

use http::Method;
use http::header::HeaderName;

use super::limits::RouteLimits;
use super::methods::{MethodSet, is_safe};
use super::readings::Readings;
use super::scope::{RouteScope, Scope};
use super::selector::{RuleKind, Selector, sorted};
use crate::config::ConfigError;
use crate::realm::body::ReadsBodies;
use crate::realm::claim::MAX_RESOURCES;
use crate::realm::error::shown;
use crate::realm::head::Head;
use crate::realm::path::ParsedPath;

/// Which requests are locked, by method and path, and how much of their realm.
///
/// By default the methods that the IANA HTTP method registry marks safe pass (GET, HEAD, OPTIONS,
/// TRACE, QUERY, PROPFIND, REPORT and SEARCH), and every other method, known or not, is locked.
/// Routes are exceptions to that; they are tried in the order they were added, and the first that
/// fits decides. A rule that an earlier one of its kind hides is an error.
///
/// A rule is for one method, for several (`[Method::PUT, Method::PATCH]`), or for all that are not
/// safe: see [`MethodSet`].
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
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
///
/// A locked request takes its realm whole, unless its route has a narrower [`Scope`]: then writers
/// of two cards of one realm run side by side, and a writer of the whole realm excludes them all.
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
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
///
/// # MOVE and COPY
///
/// A MOVE or COPY (RFC 4918) locks the realm of its header `Destination` as well: both realms in
/// one claim, or, where its scope is by resource, both resources of one realm. The scope of its
/// method counts at both ends: the realms are shared or narrowed only if a MOVE of the
/// destination's path would be as well. The [options](crate::guide::options#webdav) page says how
/// the header is read, and when the request is rejected with 400 `realm-unresolved`.
///
/// A layer that rewrites paths must rewrite the header as well: nothing shows what it would have
/// made of it. [`RealmPaths::base_path_stripped`](crate::RealmPaths::base_path_stripped) is for a
/// proxy that removes the path of the base URL from paths, and leaves it in the header.
///
/// # CONNECT and WebSockets
///
/// Over HTTP/1.1 a WebSocket begins as a GET and passes. Over HTTP/2 and HTTP/3 it begins as an
/// extended CONNECT (RFC 8441), which is locked until its response is made, unless its route is
/// exempt: see [options](crate::guide::options#websockets-and-connect). The layer does not see what
/// is written through the WebSocket. Its handler takes the lock for each message that writes, with
/// [`RealmLocks::with_write_lock`](crate::RealmLocks::with_write_lock).
#[derive(Debug, Clone, Default)]
pub struct LockRules(pub(super) Rules<ReadsBodies>);

/// The [`LockRules`] of a layer. With `B = Infallible` no scope needs the body.
#[derive(Debug, Clone)]
pub(in crate::realm) struct Rules<B> {
    /// Exempt and locked routes.
    pub(super) routes: Vec<Selector>,
    pub(super) scopes: Vec<Ruled<RouteScope<B>>>,
    pub(super) limits: Vec<Ruled<RouteLimits>>,
    pub(super) max_resources: usize,
    /// The header, and the methods that it may name.
    pub(super) method_override: Option<(HeaderName, Vec<Method>)>,
}

impl<B> Default for Rules<B> {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            scopes: Vec::new(),
            limits: Vec::new(),
            max_resources: MAX_RESOURCES,
            method_override: None,
        }
    }
}

/// What the rules assign to the requests of a route.
#[derive(Debug, Clone)]
pub(in crate::realm) struct Ruled<T> {
    pub(in crate::realm) selector: Selector,
    pub(in crate::realm) given: T,
}

/// Whether a request is locked, and the route of the rules that decides it, if one does.
#[derive(Debug, Clone, Copy)]
pub(in crate::realm) struct Judgement<'r> {
    pub(in crate::realm) locked: bool,
    pub(in crate::realm) route: Option<&'r Selector>,
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
    /// [`ConfigError::InvalidTemplate`] for a bad pattern, [`ConfigError::InvalidRule`] for a rule
    /// that can never decide anything: without a method, with one in another letter case, or
    /// hidden by an earlier `exempt` or `lock`.
    pub fn exempt(self, methods: impl Into<MethodSet>, pattern: &str) -> Result<Self, ConfigError> {
        self.route(RuleKind::Exempt, methods.into(), pattern)
    }

    /// Locks a route although its method is safe: a GET that writes.
    ///
    /// Every spelling that decodes to the pattern is locked, with one slash more or less at its
    /// end. GET stands for HEAD too: routers answer it by the same handler.
    ///
    /// # Errors
    ///
    /// As [`exempt`](Self::exempt).
    pub fn lock(self, methods: impl Into<MethodSet>, pattern: &str) -> Result<Self, ConfigError> {
        self.route(RuleKind::Lock, methods.into(), pattern)
    }

    fn route(
        mut self,
        kind: RuleKind,
        methods: MethodSet,
        pattern: &str,
    ) -> Result<Self, ConfigError> {
        let route = Selector::parse(kind, methods, pattern)?;
        route.admitted(self.0.routes.iter())?;
        self.0.routes.push(route);
        Ok(self)
    }

    /// How much of its realm a route locks. Default [`Scope::realm`]. Whether it is locked at all
    /// is not changed by this.
    ///
    /// Scopes are tried in the order they were added, and the first whose pattern fits any spelling
    /// of the path decides. A narrower scope than the realm counts only if method and path fit it
    /// to the letter: another spelling may mean another resource to the handler, so it takes the
    /// realm whole. A request for several realms takes each of them whole.
    ///
    /// A scope that reads the body needs a layer that does, a
    /// [`RealmBodyLockLayer`](crate::RealmBodyLockLayer).
    ///
    /// # Errors
    ///
    /// As [`exempt`](Self::exempt), where an earlier scope hides it.
    pub fn scope(
        mut self,
        methods: impl Into<MethodSet>,
        pattern: &str,
        scope: Scope,
    ) -> Result<Self, ConfigError> {
        let selector = Selector::parse(RuleKind::Scope, methods.into(), pattern)?;
        selector.admitted(self.0.scopes.iter().map(|earlier| &earlier.selector))?;
        let given = scope.0;
        self.0.scopes.push(Ruled { selector, given });
        Ok(self)
    }

    /// Limits of a route, instead of the layer's: how long its requests wait and hold, and how they
    /// are answered when the lock is taken. They change neither whether the route is locked nor how
    /// much of its realm.
    ///
    /// Limits are tried in the order they were added, and the first whose pattern fits any spelling
    /// of the path decides. They apply only if method and path fit to the letter; a request in
    /// another spelling has the layer's limits.
    ///
    /// # Errors
    ///
    /// As [`exempt`](Self::exempt), where earlier limits hide it.
    pub fn limits(
        mut self,
        methods: impl Into<MethodSet>,
        pattern: &str,
        limits: RouteLimits,
    ) -> Result<Self, ConfigError> {
        let selector = Selector::parse(RuleKind::Limits, methods.into(), pattern)?;
        selector.admitted(self.0.limits.iter().map(|earlier| &earlier.selector))?;
        let given = limits;
        self.0.limits.push(Ruled { selector, given });
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
            route.given.name_unnamed(name.clone());
        }
        self
    }

    /// How many resources one request may lock by themselves; one with more takes its realm whole.
    /// Default 256, as cardstack/boxel's realm servers have it; more than that always take it whole.
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
    /// `honoured` are the methods that the overriding layer takes from it, in the letter case that
    /// it takes. A POST with one such header that names one of them is judged as that method: it
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
        self.0.judge_as(method, &ParsedPath::new(path)).locked
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
    /// [`ConfigError::BodyNeeded`] for the first scope that needs the body.
    pub(in crate::realm) fn without_bodies(self) -> Result<Rules<Infallible>, ConfigError> {
        self.convert(
            |Selector {
                 methods, pattern, ..
             },
             _| {
                let route = shown(&format!("{methods} {}", pattern.source()));
                Err(ConfigError::BodyNeeded { route })
            },
        )
    }
}

impl Rules<Infallible> {
    /// The same for a layer that reads bodies.
    pub(in crate::realm) fn with_bodies(self) -> Rules<ReadsBodies> {
        let Ok(rules) = self.convert(|_, never| Err(never));
        rules
    }
}

impl<B> Rules<B> {
    /// The same with another proof that bodies are read, for each scope that needs one.
    fn convert<C, E>(self, proof: impl Fn(&Selector, B) -> Result<C, E>) -> Result<Rules<C>, E> {
        let scopes = self.scopes.into_iter().map(|Ruled { selector, given }| {
            let given = given.convert(|reads| proof(&selector, reads))?;
            Ok(Ruled { selector, given })
        });
        Ok(Rules {
            routes: self.routes,
            scopes: scopes.collect::<Result<_, E>>()?,
            limits: self.limits,
            max_resources: self.max_resources,
            method_override: self.method_override,
        })
    }

    /// The settings that all replicas must have in common, as text. Limits may differ, and so may
    /// `max_resources`: a writer of the whole realm excludes the others.
    pub(in crate::realm) fn fingerprint(&self) -> String {
        let routes = self.routes.iter().map(Selector::fingerprint);
        let scopes = self.scopes.iter();
        let scopes = scopes.map(|it| format!("{}: {:?}", it.selector.fingerprint(), it.given));
        let overrides = self.method_override.iter().map(|(header, methods)| {
            let methods = sorted(methods).join(", ");
            format!("method_override {header}: {methods}")
        });
        let defaults = std::iter::once("default rules".to_owned());
        let all: Vec<String> = defaults
            .chain(routes)
            .chain(scopes)
            .chain(overrides)
            .collect();
        all.join("; ")
    }

    /// The ways to read the request's method.
    pub(in crate::realm) fn readings(&self, head: &Head<'_>) -> Readings {
        Readings::of(head.method, head.headers, self.method_override.as_ref())
    }

    /// Whether a request is locked, in any of these readings. If it is, a route that locks it
    /// counts before the bare method.
    pub(in crate::realm) fn judge(
        &self,
        readings: &Readings,
        path: &ParsedPath<'_>,
    ) -> Judgement<'_> {
        let of_each = readings.iter().map(|method| self.judge_as(method, path));
        let rank = |it: &Judgement<'_>| (it.locked, it.locked && it.route.is_some());
        let judged = of_each.reduce(|best, next| {
            if rank(&next) > rank(&best) {
                next
            } else {
                best
            }
        });
        match judged {
            Some(judged) if judged.locked || !readings.unclear => judged,
            _ => Judgement {
                locked: true,
                route: None,
            },
        }
    }

    fn judge_as(&self, method: &Method, path: &ParsedPath<'_>) -> Judgement<'_> {
        let route = self.routes.iter().find(|route| match route.kind {
            RuleKind::Lock => {
                route.is_for_or_as_get(method) && route.pattern.matches_any_spelling(path)
            }
            _ => {
                route.is_for(method) && route.pattern.matches_exactly(path) && path.is_unambiguous()
            }
        });
        Judgement {
            locked: route.map_or(!is_safe(method), |route| route.kind == RuleKind::Lock),
            route,
        }
    }

    /// The rule that gives a request a narrower scope than the realm; `None` if none does, or if
    /// that is not certain.
    pub(in crate::realm) fn scope_of(
        &self,
        readings: &Readings,
        path: &ParsedPath<'_>,
    ) -> Option<&Ruled<RouteScope<B>>> {
        ruled(&self.scopes, readings, path)
    }

    /// The rule that gives a request limits of its own; `None` if none does, or if that is not
    /// certain.
    pub(in crate::realm) fn limits_of(&self, head: &Head<'_>) -> Option<&Ruled<RouteLimits>> {
        if self.limits.is_empty() {
            return None;
        }
        ruled(&self.limits, &self.readings(head), head.path())
    }

    /// The most resources that a request locks by themselves.
    pub(in crate::realm) fn max_resources(&self) -> usize {
        self.max_resources
    }

    /// The header that may override the method.
    pub(in crate::realm) fn override_header(&self) -> Option<&HeaderName> {
        self.method_override.as_ref().map(|(header, _)| header)
    }

    /// All that the rules are for, in the order of their kinds.
    pub(in crate::realm) fn selectors(&self) -> impl Iterator<Item = &Selector> {
        let scopes = self.scopes.iter().map(|ruled| &ruled.selector);
        let limits = self.limits.iter().map(|ruled| &ruled.selector);
        self.routes.iter().chain(scopes).chain(limits)
    }
}

/// The first rule that fits a request; `None` if none does, if another one does for another reading
/// of the method, or if the request fits only in another spelling.
fn ruled<'r, T>(
    rules: &'r [Ruled<T>],
    readings: &Readings,
    path: &ParsedPath<'_>,
) -> Option<&'r Ruled<T>> {
    let rule_for = |method: &Method| {
        let mut of_method = rules.iter().filter(|rule| rule.selector.is_for(method));
        let rule = of_method.find(|rule| rule.selector.pattern.matches_any_spelling(path))?;
        let is_exact = rule.selector.pattern.matches_exactly(path);
        (is_exact && path.is_unambiguous()).then_some(rule)
    };
    let mut of_each = readings.iter().map(rule_for);
    let first = of_each.next()?.filter(|_| !readings.unclear)?;
    let is_same = |other: Option<&Ruled<T>>| other.is_some_and(|it| std::ptr::eq(it, first));
    of_each.all(is_same).then_some(first)
}
