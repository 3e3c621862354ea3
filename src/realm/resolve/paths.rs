use std::borrow::Cow;
use std::sync::Arc;

use super::base::{BaseUrl, Captures, captured, split_url};
use super::found::{Depth, Found};
use crate::config::ConfigError;
use crate::realm::error::{RealmError, shown};
use crate::realm::head::Head;
use crate::realm::origin::proxies::TrustedProxies;
use crate::realm::origin::request::RequestOrigin;
use crate::realm::path::{ParsedPath, PathProblem, check_segment, refuse_separators};
use crate::realm::route::{MatchedRoute, RouteSegment};
use crate::realm::template::{PathTemplate, Segment};
use crate::realm::url::RealmUrl;

/// Finds a request's realm by patterns.
///
/// A pattern continues where the path of the base URL ends, and a request is for a realm if its
/// path begins with both. The values of the pattern's parameters become the name of the realm: by
/// default the segments of the pattern, below the base URL. Cheap to clone.
///
/// ```
/// use tower_realm_lock::RealmPaths;
///
/// let realms = RealmPaths::new("https://api.example.com/v1", "/{tenant}/{project}")?;
/// let realm = realms.resolve("/v1/acme/site/docs/1")?;
/// assert_eq!(realm.as_str(), "https://api.example.com/v1/acme/site/");
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
///
/// # Several paths, one realm
///
/// [`also`](Self::also) adds patterns for the same realms, and [`named`](Self::named) gives the
/// realms a name that leaves literal segments and other parameters out:
///
/// ```
/// use tower_realm_lock::RealmPaths;
///
/// let realms = RealmPaths::new("https://api.example.com", "/api/{version}/{tenant}/{project}")?
///     .named("/{tenant}/{project}")?
///     .also("/admin/{tenant}/{project}")?;
/// for path in ["/api/v1/acme/site/docs/1", "/api/v2/acme/site", "/admin/acme/site/purge"] {
///     assert_eq!(realms.resolve(path)?.as_str(), "https://api.example.com/acme/site/");
/// }
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
///
/// Where a path fits several patterns, the one that a router would choose counts: segment by
/// segment, a literal goes before a parameter.
///
/// # Tenants in host names
///
/// Labels of the base URL's host can be parameters, too: `https://{tenant}.example.com`. The host is
/// then that of the request, as [`RequestOrigin`] describes, and only hosts that fit are accepted.
/// The page on [tenancy](crate::guide::tenancy#subdomains) has an example.
///
/// # Which path counts
///
/// The path that the layer sees counts. So a layer outside of it may rewrite paths, and one inside
/// of it must not. Any other path can be resolved by name, such as one that an outer layer keeps in
/// an extension:
///
/// ```
/// use tower_realm_lock::{RealmPaths, RealmResolver};
///
/// #[derive(Clone)]
/// struct ReceivedPath(String);
///
/// let paths = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
/// let realms = RealmResolver::from_extension(move |path: &ReceivedPath| paths.resolve(&path.0));
/// # let _ = realms;
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
///
/// With the feature `axum`, the path that axum's router has matched counts:
///
/// - Inside `nest` it is the whole path, with what `nest` took off its beginning.
/// - In a route, the realm is named by the parameters that the handler extracts. **A request is for
///   a realm only if its route has all parameters of the name**, wherever they are in the route.
///   Requests of other routes, such as `/auth/login` under the pattern `/{owner}/{realm}`, are not
///   locked. The layer logs the first one of each route.
/// - A route that fits the pattern with other names for its parameters is refused, since it may be
///   a mistake: name them as the pattern does, or [exempt](crate::LockRules::exempt) the route.
/// - A route whose parameters cannot be read, because a value is not UTF-8 or two nested routes
///   give one parameter two values, is refused.
/// - A fallback, the inside of a `nest_service`, and a route that takes the rest of a path where the
///   pattern still has parameters, such as `/{owner}/{*rest}` or `/{*path}`, are judged by the path.
///   A route with a literal where the pattern has a parameter, such as `/assets/{*file}`, is not for
///   a realm.
#[derive(Debug, Clone)]
pub struct RealmPaths(Arc<Paths>);

#[derive(Debug, Clone)]
struct Paths {
    base: BaseUrl,
    /// Below the path of the base URL, the most specific one first.
    patterns: Vec<PathTemplate>,
    name: Name,
    /// Where the origin is not the base URL's.
    origin: Option<RequestOrigin>,
    /// Whether requests arrive without the path of the base URL.
    is_stripped: bool,
}

/// The name of the realms.
#[derive(Debug, Clone)]
struct Name {
    /// The URL that the name is below, unless that is the base URL of the request.
    base: Option<BaseUrl>,
    path: PathTemplate,
}

/// Where the realms of one request begin.
struct Origin<'a> {
    url: Cow<'a, RealmUrl>,
    /// Whether the path of the URL is no part of the request's path.
    is_stripped: bool,
}

/// The beginning of a path that fits a pattern.
struct Beginning<'a> {
    captures: Captures<'a>,
    /// How many segments it has.
    depth: usize,
}

/// How a route relates to the patterns.
enum Standing<'a> {
    /// It has the parameters of the name.
    Named(Captures<'a>),
    /// Its handler reads the path itself.
    ByPath,
    /// It fits a pattern with other names for its parameters.
    Renamed,
    /// No path of it is one of a realm.
    Unrelated,
}

/// The target of a request.
pub(in crate::realm) enum Sought {
    Realm(Found),
    /// A router sends it to a route that has no realm.
    OtherRoute,
}

impl RealmPaths {
    /// Finds realms below `base_url` whose paths continue with `pattern`, such as
    /// `/{owner}/{realm}`.
    ///
    /// `base_url` is the public URL of the service: its origin, with a path if all of its realms
    /// are below one. Requests have that path as well, unless a proxy
    /// [removes it](Self::base_path_stripped). In the pattern `{name}` stands for one path segment.
    ///
    /// # Errors
    ///
    /// [`ConfigError::InvalidUrl`] and [`ConfigError::InvalidTemplate`], which name the value and
    /// what would be right.
    pub fn new(base_url: &str, pattern: &str) -> Result<Self, ConfigError> {
        let base = BaseUrl::parse(base_url)?;
        let pattern = Paths::pattern(&base, pattern)?;
        let is_of_host = base.fixed().is_none();
        Ok(Self(Arc::new(Paths {
            base,
            name: Name {
                base: None,
                path: pattern.clone(),
            },
            patterns: vec![pattern],
            origin: is_of_host.then(|| RequestOrigin::new(TrustedProxies::default())),
            is_stripped: false,
        })))
    }

    /// Gives the realms another name than the pattern's segments: below the base URL, such as
    /// `/{tenant}/{project}`, or a whole URL, such as `https://realms.example.com/{tenant}`, whose
    /// host may have parameters as that of a base URL may.
    ///
    /// With a whole URL, paths below several base URLs name one realm. Replicas that share a realm
    /// must give it one name: the lock key is made of the name.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`ConfigError::InvalidTemplate`] for a parameter that a pattern
    /// and the host of the base URL both lack.
    pub fn named(self, name: &str) -> Result<Self, ConfigError> {
        let mut paths = Arc::unwrap_or_clone(self.0);
        let (base, path) = if name.contains("://") && !name.starts_with('/') {
            let (base, path) = split_url(name);
            let path = if path.is_empty() { "/" } else { path };
            (Some(BaseUrl::parse(base)?), path)
        } else {
            (None, name)
        };
        let path = PathTemplate::parse(path)?;
        refuse_rest(&path)?;
        paths.name = Name { base, path };
        for pattern in &paths.patterns {
            paths.check_names(pattern)?;
        }
        Ok(Self(Arc::new(paths)))
    }

    /// Adds a pattern for the same realms, below the base URL as the first one.
    ///
    /// It must have every parameter that the name has. If it lacks one, first give the realms a
    /// [name](Self::named) without that parameter.
    ///
    /// # Errors
    ///
    /// [`ConfigError::InvalidTemplate`] for a bad pattern, and for one that lacks a parameter.
    pub fn also(self, pattern: &str) -> Result<Self, ConfigError> {
        let mut paths = Arc::unwrap_or_clone(self.0);
        let pattern = Paths::pattern(&paths.base, pattern)?;
        paths.check_names(&pattern)?;
        paths.patterns.push(pattern);
        // A stable order by what a router prefers.
        paths.patterns.sort_by_key(specificity);
        Ok(Self(Arc::new(paths)))
    }

    /// Declares that a proxy removes the path of the base URL before requests arrive.
    ///
    /// By default requests arrive with it. A request that has the prefix in
    /// [`X-Forwarded-Prefix`](RequestOrigin) of a trusted proxy arrives without it in any case.
    #[must_use]
    pub fn base_path_stripped(self) -> Self {
        let mut paths = Arc::unwrap_or_clone(self.0);
        paths.is_stripped = true;
        Self(Arc::new(paths))
    }

    /// Takes the origin of realm URLs from each request instead of the base URL, as
    /// [`RequestOrigin`] describes.
    #[must_use]
    pub fn origin_from_request(self, origin: RequestOrigin) -> Self {
        let mut paths = Arc::unwrap_or_clone(self.0);
        paths.origin = Some(origin);
        Self(Arc::new(paths))
    }

    /// The realm of a request for `path`: the raw path of a request, still percent-encoded, or a
    /// URL where the host names the realm. Headers and routers are not considered.
    ///
    /// # Errors
    ///
    /// [`RealmError::NoRealm`] if the path does not begin as a pattern does,
    /// [`RealmError::AmbiguousPath`] if it could be read as another path: with dot segments, empty
    /// segments, control characters, invalid UTF-8 or malformed escapes anywhere, or an encoded
    /// slash or a backslash in a segment that names the realm. [`RealmError::Origin`] if the host
    /// is not one of the base URL.
    pub fn resolve(&self, path: &str) -> Result<RealmUrl, RealmError> {
        let paths = &*self.0;
        let (host, path) = split_url(path);
        let url = match paths.base.fixed() {
            Some(url) if host.is_empty() => url.clone(),
            _ => {
                let url = RealmUrl::parse(&format!("{host}{}", paths.base.path()))?;
                paths.check_host(&url)?;
                url
            }
        };
        let origin = Origin {
            url: Cow::Owned(url),
            is_stripped: paths.is_stripped,
        };
        let path = ParsedPath::new(if path.is_empty() { "/" } else { path });
        paths.find_in_path(&origin, &path).map(|found| found.realm)
    }

    /// The target of a request.
    pub(in crate::realm) fn find(&self, head: &Head<'_>) -> Result<Sought, RealmError> {
        let paths = &*self.0;
        let by_path = || {
            let origin = paths.origin(head)?;
            paths.find_in_path(&origin, head.path()).map(Sought::Realm)
        };
        let Some((route, standing)) = paths.standing(head)? else {
            return by_path();
        };
        match standing {
            Standing::Unrelated => Ok(Sought::OtherRoute),
            Standing::Renamed => Err(RealmError::RouteParameters {
                route: shown(route.path()),
                template: shown(&paths.texts()),
            }),
            Standing::ByPath => by_path(),
            Standing::Named(captures) => {
                // Refused as without a router, although this one has read it.
                match head.path().segments() {
                    Ok(_) | Err(PathProblem::Rewritten) => {}
                    Err(problem) => return Err(ambiguous(head.path(), problem)),
                }
                let origin = paths.origin(head)?;
                let found = paths.find_by_route(&origin, route, &captures, head.path())?;
                Ok(Sought::Realm(found))
            }
        }
    }

    /// The realm that the path of a request's `Destination` names, as if the request were for that
    /// path and of the same route; and a URL of the origin that it is at.
    pub(in crate::realm) fn find_at(
        &self,
        head: &Head<'_>,
        path: &ParsedPath<'_>,
    ) -> Result<(Found, RealmUrl), RealmError> {
        let paths = &*self.0;
        let origin = paths.origin(head)?;
        let Some((route, Standing::Named(_))) = paths.standing(head)? else {
            let found = paths.find_in_path(&origin, path)?;
            return Ok((found, origin.url.into_owned()));
        };
        let segments = path
            .segments()
            .map_err(|problem| ambiguous(path, problem))?;
        let begins = begins_as_route(route, segments, |name| paths.needs(name));
        let (captures, _) = begins.ok_or_else(|| RealmError::NoRealm {
            path: shown(path.raw()),
            template: shown(route.path()),
        })?;
        let found = paths.find_by_route(&origin, route, &captures, path)?;
        Ok((found, origin.url.into_owned()))
    }

    /// The URL whose path is missing at the beginning of a request's path: the base URL, if a proxy
    /// removes its path.
    pub(in crate::realm) fn stripped(
        &self,
        head: &Head<'_>,
    ) -> Result<Option<RealmUrl>, RealmError> {
        let origin = self.0.origin(head)?;
        Ok(origin.is_stripped.then(|| origin.url.into_owned()))
    }

    /// The patterns of whole paths, as requests have them.
    pub(in crate::realm) fn patterns(&self) -> Vec<PathTemplate> {
        self.0.whole_patterns().collect()
    }

    /// The base URL, if a proxy removes its path and a pattern begins with it.
    pub(in crate::realm) fn removed_from(&self, pattern: &PathTemplate) -> Option<String> {
        let Paths {
            base, is_stripped, ..
        } = &*self.0;
        let begins = pattern.segments().starts_with(base.segments());
        (*is_stripped && begins && !base.segments().is_empty()).then(|| base.text())
    }

    /// Whether a route with this pattern has the parameters that name a realm, in a build that
    /// reads routes.
    pub(in crate::realm) fn are_named_in(&self, pattern: &PathTemplate) -> bool {
        let mut needed = self.needed_in_routes().peekable();
        needed.peek().is_some() && needed.all(|name| pattern.names().any(|it| it == name))
    }

    /// The base URL, if a path, together with what a proxy has removed, begins with its path twice.
    pub(in crate::realm) fn repeated_base(&self, path: &ParsedPath<'_>) -> Option<String> {
        let Paths { base, .. } = &*self.0;
        let once = base.segments();
        let times = if self.0.is_stripped { 1 } else { 2 };
        let mut expected = once.iter().cycle().take(once.len() * times).peekable();
        // Most base URLs have no path.
        expected.peek()?;
        let mut segments = path.segments().ok()?;
        let repeats = expected.all(|it| fits(it, segments.next()));
        repeats.then(|| base.text())
    }

    /// The settings that replicas which share realms must have in common.
    pub(super) fn fingerprint(&self) -> String {
        let found_by = if cfg!(feature = "axum") {
            "routes"
        } else {
            "paths"
        };
        let origin = match &self.0.origin {
            Some(origin) => origin.fingerprint(),
            None => "of the base URL".to_owned(),
        };
        format!("{}, origin {origin}, by {found_by}", self.text())
    }

    /// The public URLs of the patterns, and the name, for messages.
    pub(in crate::realm) fn text(&self) -> String {
        let paths = &*self.0;
        let below = |base: &BaseUrl, path: &PathTemplate| base.text() + &path.source()[1..];
        let urls = paths.patterns.iter().map(|it| below(&paths.base, it));
        let urls = urls.collect::<Vec<_>>().join(" or ");
        let name = below(
            paths.name.base.as_ref().unwrap_or(&paths.base),
            &paths.name.path,
        );
        let named = if name == urls {
            String::new()
        } else {
            format!(", named {name}")
        };
        let stripped = if paths.is_stripped {
            ", whose base path a proxy removes"
        } else {
            ""
        };
        format!("{urls}{stripped}{named}")
    }

    /// The parameters that a route must have to be one of a realm, in a build that reads routes;
    /// none if the path decides in any case.
    pub(in crate::realm) fn names_in_routes(&self) -> Option<String> {
        let names = self.needed_in_routes().map(|name| format!("`{{{name}}}`"));
        let names: Vec<String> = names.collect();
        (!names.is_empty()).then(|| names.join(" and "))
    }

    /// Whether routes decide which requests are for a realm, in a build that reads them.
    pub(in crate::realm) fn read_routes(&self) -> bool {
        self.needed_in_routes().next().is_some()
    }

    /// Whether a route that lacks a parameter may be meant to be one of a realm: it has another one
    /// of the name, or as many as the name.
    pub(in crate::realm) fn resembles(&self, route: &MatchedRoute) -> bool {
        let parameters = || {
            route.segments().filter_map(|segment| match segment {
                RouteSegment::Parameter(name) => Some(name),
                _ => None,
            })
        };
        let needed = self.needed_in_routes().count();
        needed > 0
            && (parameters().count() >= needed
                || self
                    .needed_in_routes()
                    .any(|name| parameters().any(|it| it == name)))
    }

    fn needed_in_routes(&self) -> impl Iterator<Item = &str> {
        let needed = self.0.needed().filter(|_| cfg!(feature = "axum"));
        needed.filter(|name| self.0.needs(name))
    }
}

impl Paths {
    fn pattern(base: &BaseUrl, pattern: &str) -> Result<PathTemplate, ConfigError> {
        let template = PathTemplate::parse(pattern)?;
        refuse_rest(&template)?;
        let invalid = |problem| ConfigError::InvalidTemplate {
            template: shown(pattern),
            problem,
        };
        let path = base.segments();
        if !path.is_empty() && template.segments().starts_with(path) {
            return Err(invalid(format!(
                "it begins with the path of the base URL `{url}`, which would be in requests twice; \
                 leave `{path}` out of one of the two",
                url = shown(&base.text()),
                path = shown(base.path().trim_end_matches('/')),
            )));
        }
        if let Some(name) = template
            .names()
            .find(|name| base.names().any(|it| it == *name))
        {
            return Err(invalid(format!(
                "the host of the base URL has a parameter `{{{name}}}` as well",
                name = shown(name)
            )));
        }
        Ok(template)
    }

    /// Refuses a pattern that lacks a parameter of the name.
    fn check_names(&self, pattern: &PathTemplate) -> Result<(), ConfigError> {
        let has = |name: &str| {
            self.base
                .names()
                .chain(pattern.names())
                .any(|it| it == name)
        };
        let Some(missing) = self.needed().find(|name| !has(name)) else {
            return Ok(());
        };
        Err(ConfigError::InvalidTemplate {
            template: shown(pattern.source()),
            problem: format!(
                "it has no `{{{missing}}}`, which the name `{name}` has; give a name of other \
                 parameters with `named`, before patterns that lack this one",
                missing = shown(missing),
                name = shown(self.name.path.source()),
            ),
        })
    }

    /// The part of the base URL's path that requests have.
    fn base_path(&self, is_stripped: bool) -> &[Segment] {
        if is_stripped {
            &[]
        } else {
            self.base.segments()
        }
    }

    /// The patterns of whole paths.
    fn whole_patterns(&self) -> impl Iterator<Item = PathTemplate> {
        let base = self.base_path(self.is_stripped);
        self.patterns.iter().map(|pattern| pattern.below(base))
    }

    /// Whether some reader may find a realm in a path whose beginning is known.
    fn may_have_realm(&self, path: &ParsedPath<'_>) -> bool {
        let has_realm = |segments| self.first_fit(self.is_stripped, &segments).is_some();
        path.is_whole() && (!path.is_unambiguous() || path.segments().is_ok_and(has_realm))
    }

    /// The parameters of the name.
    fn needed(&self) -> impl Iterator<Item = &str> {
        let of_base = self.name.base.iter().flat_map(BaseUrl::names);
        of_base.chain(self.name.path.names())
    }

    /// Whether the name has this parameter, and has it from the path.
    fn needs(&self, name: &str) -> bool {
        self.needed().any(|it| it == name) && !self.base.names().any(|it| it == name)
    }

    /// The patterns, for messages.
    fn texts(&self) -> String {
        let texts = self.whole_patterns().map(|it| it.source().to_owned());
        texts.collect::<Vec<_>>().join("` or `")
    }

    fn no_realm(&self, path: &ParsedPath<'_>) -> RealmError {
        RealmError::NoRealm {
            path: shown(path.raw()),
            template: shown(&self.texts()),
        }
    }

    /// Where the realms of a request begin.
    fn origin(&self, head: &Head<'_>) -> Result<Origin<'_>, RealmError> {
        let Some(origin) = &self.origin else {
            let url = self.base.fixed().map_or_else(
                || Err(RealmError::unresolved("its host names the realm")),
                |url| Ok(Cow::Borrowed(url)),
            )?;
            return Ok(Origin {
                url,
                is_stripped: self.is_stripped,
            });
        };
        let (url, is_prefixed) = origin.base_of(head, self.base.scheme(), self.base.path())?;
        self.check_host(&url)?;
        Ok(Origin {
            url: Cow::Owned(url),
            is_stripped: self.is_stripped || is_prefixed,
        })
    }

    /// Refuses a host that does not fit the base URL, unless requests may choose it.
    fn check_host(&self, url: &RealmUrl) -> Result<(), RealmError> {
        let is_free = self.origin.is_some() && self.base.fixed().is_some();
        if is_free || self.base.captures(url).is_some() {
            return Ok(());
        }
        let remedy = self.base.remedy(url);
        Err(RealmError::Origin {
            problem: format!(
                "`{}` is not a host of `{}`; {remedy}",
                shown(url.origin()),
                shown(&self.base.text())
            ),
        })
    }

    /// The realm that a path names.
    fn find_in_path(
        &self,
        origin: &Origin<'_>,
        path: &ParsedPath<'_>,
    ) -> Result<Found, RealmError> {
        let segments = path
            .segments()
            .map_err(|problem| ambiguous(path, problem))?;
        let is_stripped = origin.is_stripped;
        let Some((pattern, beginning)) = self.first_fit(is_stripped, &segments) else {
            return Err(self.no_realm(path));
        };
        if self.patterns.len() > 1 {
            // A router that compares literals to the letter, or one that splits a segment, may
            // choose another pattern.
            let is_same = |other: Option<(&PathTemplate, Beginning<'_>)>| {
                other.is_some_and(|(other, _)| std::ptr::eq(other, pattern))
            };
            let raw = path.raw().trim_matches('/').split('/');
            if !is_same(self.first_fit(is_stripped, &raw)) {
                return Err(ambiguous(path, PathProblem::Spelling));
            }
            if path.has_separators()
                && !is_same(self.first_fit(is_stripped, &path.split_segments()))
            {
                return Err(ambiguous(path, PathProblem::Separator));
            }
        }
        let realm = self.realm(origin, &beginning.captures, path)?;
        let names = beginning.captures.iter().map(|(name, _)| *name);
        let depth = self.depth_at(beginning.depth, path, names);
        Ok(Found::within(realm, depth))
    }

    /// The first pattern that these segments begin with.
    fn first_fit<'a>(
        &'a self,
        is_stripped: bool,
        segments: &(impl Iterator<Item = &'a str> + Clone),
    ) -> Option<(&'a PathTemplate, Beginning<'a>)> {
        let base = self.base_path(is_stripped);
        self.patterns.iter().find_map(|pattern| {
            let mut segments = segments.clone();
            let mut beginning = Beginning {
                captures: Captures::with_capacity(pattern.segments().len()),
                depth: 0,
            };
            for expected in base.iter().chain(pattern.segments()) {
                if *expected == Segment::TrailingSlash {
                    break;
                }
                let segment = segments.next()?;
                match expected {
                    Segment::Parameter(name) => {
                        beginning.captures.push((name, segment));
                    }
                    expected if fits(expected, Some(segment)) => {}
                    _ => return None,
                }
                beginning.depth += 1;
            }
            Some((pattern, beginning))
        })
    }

    /// How the route of a request relates to the patterns; none without a router, and where a path
    /// without parameters names the realm.
    fn standing<'a>(
        &self,
        head: &Head<'a>,
    ) -> Result<Option<(&'a MatchedRoute, Standing<'a>)>, RealmError> {
        let Some(route) = head.route() else {
            return Ok(None);
        };
        let needed = || self.needed().filter(|name| self.needs(name));
        if needed().next().is_none() {
            return Ok(None);
        }
        let mut is_named = true;
        for name in needed() {
            is_named &= route.parameter(name)?.is_some();
        }
        // Collected only then: a request of another route passes, and allocates nothing here.
        if is_named {
            let captures = needed().filter_map(|name| route.parameter(name).ok().flatten());
            return Ok(Some((route, Standing::Named(captures.collect()))));
        }
        // A proxy that is trusted may say that it has removed the path of the base URL.
        let of_request = (!self.is_stripped).then(|| self.base.segments());
        let without = (self.is_stripped || self.origin.is_some()).then_some(&[][..]);
        let mut all = Standing::Unrelated;
        for base in of_request.into_iter().chain(without) {
            for pattern in &self.patterns {
                match standing_of(route, base.iter().chain(pattern.segments())) {
                    Standing::Renamed => return Ok(Some((route, Standing::Renamed))),
                    Standing::ByPath => all = Standing::ByPath,
                    _ => {}
                }
            }
        }
        // It may be the route of an outer router, from which a layer has taken the path further.
        let is_elsewhere = matches!(all, Standing::Unrelated)
            && !begins_with(head.path(), route)
            && self.may_have_realm(head.path());
        Ok(Some((
            route,
            if is_elsewhere { Standing::ByPath } else { all },
        )))
    }

    /// The realm that these captures name.
    fn realm(
        &self,
        origin: &Origin<'_>,
        captures: &Captures<'_>,
        path: &ParsedPath<'_>,
    ) -> Result<RealmUrl, RealmError> {
        for (_, value) in captures {
            check_segment(value)
                .and_then(|()| refuse_separators(value))
                .map_err(|problem| ambiguous(path, problem))?;
        }
        let of_host = self.base.captures(&origin.url).unwrap_or_default();
        let value = |name: &str| captured(&of_host, name).or_else(|| captured(captures, name));
        let no_realm = || self.no_realm(path);
        let base = match &self.name.base {
            Some(base) => Cow::Owned(base.with(value).ok_or_else(no_realm)?),
            None => Cow::Borrowed(&*origin.url),
        };
        let segments = self.name.path.segments().iter();
        let segments = segments.filter_map(|segment| match segment {
            Segment::Literal(text) => Some(Some(&**text)),
            Segment::Parameter(name) => Some(value(name)),
            Segment::Rest(_) | Segment::TrailingSlash => None,
        });
        base.below(segments).ok_or_else(no_realm)
    }

    /// The realm that the parameters of a route name. As much of the path names it as a pattern
    /// takes of it, otherwise what comes up to the last parameter of the name.
    fn find_by_route(
        &self,
        origin: &Origin<'_>,
        route: &MatchedRoute,
        captures: &Captures<'_>,
        path: &ParsedPath<'_>,
    ) -> Result<Found, RealmError> {
        let realm = self.realm(origin, captures, path)?;
        match self.find_in_path(origin, path) {
            Ok(found) if found.realm == realm => return Ok(found),
            _ => {}
        }
        let is_needed = |name: &str| captured(captures, name).is_some();
        let segments = path.segments().ok();
        let begins = segments.and_then(|segments| begins_as_route(route, segments, is_needed));
        let depth = match begins {
            Some((of_path, depth)) if is_same(&of_path, captures) => {
                let names = route.segments().take(depth).filter_map(|it| match it {
                    RouteSegment::Parameter(name) => Some(name),
                    _ => None,
                });
                self.depth_at(depth, path, names)
            }
            _ => Depth::Unknown,
        };
        Ok(Found::within(realm, depth))
    }

    /// That so many segments name the realm, which have these parameters.
    ///
    /// Where they are the whole path, a parameter that is not in the name may be that of a resource:
    /// `/cards/{card}/of/{realm}`.
    fn depth_at<'n>(
        &self,
        depth: usize,
        path: &ParsedPath<'_>,
        mut names: impl Iterator<Item = &'n str>,
    ) -> Depth {
        // So many there are at least.
        let is_whole = path
            .segments()
            .is_ok_and(|mut all| all.nth(depth).is_none());
        if is_whole && names.any(|name| !self.needs(name)) {
            return Depth::Unknown;
        }
        Depth::Segments(depth)
    }
}

/// Whether a segment of a pattern fits one of a path, decoded.
fn fits(expected: &Segment, segment: Option<&str>) -> bool {
    match (expected, segment) {
        (Segment::Literal(literal), Some(segment)) => **literal == *segment,
        (Segment::Parameter(_), Some(_)) => true,
        _ => false,
    }
}

/// Orders patterns as a router tries them: a literal before a parameter, and a longer pattern
/// before a shorter one.
fn specificity(pattern: &PathTemplate) -> Vec<u8> {
    let segments = pattern.segments().iter().filter_map(|it| match it {
        Segment::Literal(_) => Some(0),
        Segment::Parameter(_) | Segment::Rest(_) => Some(1),
        Segment::TrailingSlash => None,
    });
    segments.chain([2]).collect()
}

/// How a route that lacks a parameter relates to one pattern.
fn standing_of<'p>(
    route: &MatchedRoute,
    pattern: impl Iterator<Item = &'p Segment>,
) -> Standing<'static> {
    let mut route = route.segments();
    let mut standing = Standing::Renamed;
    for expected in pattern {
        match (expected, route.next()) {
            (Segment::TrailingSlash, _) => break,
            (_, Some(RouteSegment::Rest(_))) => return Standing::ByPath,
            (Segment::Parameter(_), Some(RouteSegment::Parameter(_))) => {}
            // It may have the literal in its place.
            (Segment::Literal(_), Some(RouteSegment::Parameter(_))) => standing = Standing::ByPath,
            (Segment::Literal(text), Some(RouteSegment::Literal(other))) if **text == *other => {}
            _ => return Standing::Unrelated,
        }
    }
    standing
}

/// Whether a path is one that a router sends to this route.
fn begins_with(path: &ParsedPath<'_>, route: &MatchedRoute) -> bool {
    let mut path = path.raw().trim_matches('/').split('/');
    for segment in route.segments() {
        match (segment, path.next()) {
            (RouteSegment::Rest(_), _) => return true,
            (RouteSegment::Literal(""), None) | (RouteSegment::Parameter(_), Some(_)) => {}
            // A doubled brace is a brace.
            (RouteSegment::Literal(text), Some(segment))
                if text == segment || text.contains(['{', '}']) => {}
            _ => return false,
        }
    }
    path.next().is_none()
}

/// The parameters of a route that a path begins with, of those that are needed, and how many
/// segments they take; none if the path does not begin as the route does.
fn begins_as_route<'a>(
    route: &'a MatchedRoute,
    mut path: impl Iterator<Item = &'a str>,
    is_needed: impl Fn(&str) -> bool,
) -> Option<(Captures<'a>, usize)> {
    let segments: Vec<RouteSegment<'_>> = route.segments().collect();
    let last = segments
        .iter()
        .rposition(|segment| matches!(segment, RouteSegment::Parameter(name) if is_needed(name)))?;
    let mut captures = Captures::new();
    for segment in &segments[..=last] {
        match (*segment, path.next()?) {
            (RouteSegment::Literal(literal), text) if literal == text => {}
            (RouteSegment::Parameter(name), text) if is_needed(name) => {
                captures.push((name, text));
            }
            (RouteSegment::Parameter(_), _) => {}
            _ => return None,
        }
    }
    Some((captures, last + 1))
}

fn is_same(one: &Captures<'_>, other: &Captures<'_>) -> bool {
    let has = |(name, value): &(&str, &str)| captured(one, name) == Some(value);
    one.len() == other.len() && other.iter().all(has)
}

fn ambiguous(path: &ParsedPath<'_>, problem: PathProblem) -> RealmError {
    RealmError::AmbiguousPath {
        path: shown(path.raw()),
        problem,
    }
}

fn refuse_rest(template: &PathTemplate) -> Result<(), ConfigError> {
    let Some(Segment::Rest(name)) = template.segments().last() else {
        return Ok(());
    };
    Err(ConfigError::InvalidTemplate {
        template: shown(template.source()),
        problem: format!(
            "`{{*{name}}}` would make every path a realm of its own; name the realm's segments \
             only",
            name = shown(name)
        ),
    })
}
