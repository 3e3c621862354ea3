//! From a request to what it locks, in at most three steps.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::body::ReadsBodies;
use super::claim::Claim;
use super::error::RealmError;
use super::head::Head;
use super::key::SCHEME;
use super::path::ParsedPath;
use super::request_head::RequestHead;
use super::resolve::destination::Destination;
use super::resolve::found::Found;
use super::resolve::paths::Sought;
use super::resolve::pointers::RealmPointers;
use super::resolve::resolver::{RealmBodyResolver, RealmResolver, Routes};
use super::resolve::source::{BodyClosureFn, ClosureFn, PathSource, Source};
use super::route::MatchedRoute;
use super::rules::limits::RouteLimits;
use super::rules::lock_rules::{Judgement, LockRules, Rules};
use super::rules::readings::Readings;
use super::rules::scope::{RouteScope, rest_of};
use super::rules::selector::Selector;
use super::unresolved::Unresolved;
use crate::config::ConfigError;

/// The component of a [fingerprint](Realms::fingerprint) that decides which requests are locked.
pub(crate) const RULES: &str = "rules";
/// The one that decides by which keys.
pub(crate) const KEYS: &str = "keys";

/// What decides on requests: which are locked, for which realms, and how much of these.
///
/// With `B = Infallible` nothing in it needs a body, so no request is ever found to.
#[derive(Debug, Clone)]
pub(crate) struct Realms<B> {
    pub(super) routes: Routes<B>,
    pub(super) rules: Rules<B>,
    pub(super) unresolved: Unresolved,
}

/// A request that the rules lock.
pub(crate) struct Judged<'r> {
    readings: Readings,
    /// The route of the rules that locks it, if one does.
    route: Option<&'r Selector>,
}

/// The decision on a request, made from its head.
pub(crate) enum Decision<B> {
    /// It is not locked.
    Pass,
    /// It is not locked, since a router sends it to a route that has no realm.
    OtherRoute,
    /// It locks this.
    Claim(Claim),
    /// What it locks is named in its body.
    NeedsBody(NeedsBody<B>, B),
    /// What it locks must be looked up by a closure.
    NeedsLookup(NeedsLookup<B>),
    /// It names no realm, or can be read as naming several.
    Reject(RealmError),
}

/// A request for which closures of the application's own have to be asked.
pub(crate) struct NeedsLookup<B>(Pending<B>);

/// The result of a lookup.
pub(crate) enum LookedUp<B> {
    /// The request names no realm, and is not locked.
    Pass,
    Claim(Claim),
    NeedsBody(NeedsBody<B>, B),
}

/// A request whose body has to be read.
pub(crate) struct NeedsBody<B>(Pending<B>);

/// A request whose head does not name what it locks.
struct Pending<B> {
    place: Place,
    narrowing: Narrowing<B>,
}

/// Where a request names its realms.
enum Place {
    /// They are found. It is the scope that needs more.
    Found(Found),
    Closure(Arc<ClosureFn>),
    Pointers(RealmPointers),
    BodyClosure(Arc<BodyClosureFn>),
}

/// How a realm will be narrowed to resources once that is possible.
struct Narrowing<B> {
    /// Whether the request passes if no realm is found.
    may_pass: bool,
    /// `None` for the realm as a whole.
    scope: Option<RouteScope<B>>,
    /// The decoded segments of the path, where the scope is of the path.
    segments: Vec<String>,
    /// Above so many resources the realm is locked as a whole.
    most: usize,
}

impl Realms<Infallible> {
    /// Those of a layer that reads no bodies.
    pub(crate) fn of_heads(resolver: RealmResolver) -> Self {
        Self {
            routes: resolver.into_routes(),
            rules: Rules::default(),
            unresolved: Unresolved::default(),
        }
    }

    /// These with other rules.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BodyNeeded`] if a scope needs the body.
    pub(crate) fn with_head_rules(self, rules: LockRules) -> Result<Self, ConfigError> {
        let rules = rules.into_rules().without_bodies()?;
        Ok(Self { rules, ..self })
    }

    /// The same for a layer that reads bodies.
    pub(crate) fn with_bodies(self) -> Realms<ReadsBodies> {
        Realms {
            routes: self.routes.with_bodies(),
            rules: self.rules.with_bodies(),
            unresolved: self.unresolved,
        }
    }
}

impl Realms<ReadsBodies> {
    /// Those of a layer that reads bodies.
    pub(crate) fn of_bodies(resolver: RealmBodyResolver) -> Self {
        Self {
            routes: resolver.into_routes(),
            rules: Rules::default(),
            unresolved: Unresolved::default(),
        }
    }

    /// These with other rules.
    pub(crate) fn with_rules(self, rules: LockRules) -> Self {
        let rules = rules.into_rules();
        Self { rules, ..self }
    }
}

impl<B> Realms<B> {
    /// The settings that all replicas must have in common, by component, as texts that are the same
    /// in every process. A closure counts as its kind.
    pub(crate) fn fingerprint(&self) -> Vec<(&'static str, String)> {
        vec![
            ("realms", self.routes.fingerprint()),
            (
                RULES,
                format!(
                    "{}; requests that name no realm: {}",
                    self.rules.fingerprint(),
                    self.unresolved
                ),
            ),
            (KEYS, SCHEME.into()),
        ]
    }

    /// These, where requests that name no realm are treated so.
    pub(crate) fn with_unresolved(self, unresolved: Unresolved) -> Self {
        Self { unresolved, ..self }
    }
}

impl<B: Copy> Realms<B> {
    /// Judges a request by the rules; `None` if they let it pass. Allocates nothing for one that
    /// passes, and decodes its path only if a route has to be compared with it.
    pub(crate) fn judge(&self, head: &Head<'_>) -> Option<Judged<'_>> {
        let readings = self.rules.readings(head);
        let Judgement { locked, route } = self.rules.judge(&readings, head.path());
        locked.then_some(Judged { readings, route })
    }

    /// The decision on a request.
    pub(crate) fn classify(&self, head: &Head<'_>) -> Decision<B> {
        match self.judge(head) {
            Some(judged) => self.decide(head, &judged),
            None => Decision::Pass,
        }
    }

    /// The decision on a request that the rules lock.
    pub(crate) fn decide(&self, head: &Head<'_>, judged: &Judged<'_>) -> Decision<B> {
        let Judged { readings, route } = judged;
        // A MOVE or COPY writes to its destination too, which may be in a realm.
        let may_pass = self.unresolved == Unresolved::Pass
            && route.is_none()
            && !readings.unclear
            && !readings.have_destination()
            // Another server may read another path, in which there is a realm.
            && head.path().is_unambiguous();
        match self.locked(head, readings, may_pass) {
            // A rule that locks the route implies that it has a realm.
            Ok(Decision::OtherRoute) if route.is_some() => {
                let route = head.route().map_or("", MatchedRoute::path);
                Decision::Reject(RealmError::unresolved(format_args!(
                    "a rule locks its route `{route}`, which lacks a parameter that names the realm"
                )))
            }
            Ok(decision) => decision,
            Err(error) if may_pass && error.is_absent() => {
                tracing::debug!(%error, "a request passes without a lock");
                Decision::Pass
            }
            Err(error) => Decision::Reject(error),
        }
    }

    /// The limits of the route of a locked request; `None` if it has the layer's own.
    pub(crate) fn limits(&self, head: &Head<'_>) -> Option<&RouteLimits> {
        self.rules.limits_of(head).map(|rule| &rule.given)
    }

    fn locked(
        &self,
        head: &Head<'_>,
        readings: &Readings,
        may_pass: bool,
    ) -> Result<Decision<B>, RealmError> {
        let path = head.path();
        let most = self.rules.max_resources();
        let scope = self.rules.scope_of(readings, path);
        let mut scope = scope.map(|rule| &rule.given);
        let pending = |place, scope| Pending {
            place,
            narrowing: Narrowing::new(scope, path, most, may_pass),
        };
        let needs_body = |place, scope, reads| {
            let needs = NeedsBody(pending(place, scope));
            Ok(Decision::NeedsBody(needs, reads))
        };
        let needs_lookup =
            |place, scope| Ok(Decision::NeedsLookup(NeedsLookup(pending(place, scope))));
        let has_destination = readings.have_destination();
        // A realm that is found elsewhere may be that of the path or that of the `Destination`,
        // and nobody knows what the rules say there.
        let elsewhere = scope.filter(|_| !has_destination);
        let (mut found, in_path) =
            match self
                .routes
                .source(readings.iter(), readings.unclear, path)?
            {
                Source::Path(source) => match source.find(head)? {
                    Sought::Realm(found) => (found, Some(source)),
                    Sought::OtherRoute => return Ok(Decision::OtherRoute),
                },
                Source::Head { find, .. } => {
                    let Some(claim) = find(head)? else {
                        return Ok(Decision::OtherRoute);
                    };
                    match only(elsewhere, claim) {
                        Only::Realm(found) => (found, None),
                        Only::Claim(claim) => return Ok(Decision::Claim(claim)),
                    }
                }
                Source::Closure(find) => {
                    return needs_lookup(Place::Closure(Arc::clone(find)), elsewhere);
                }
                Source::Pointers(pointers, reads) => {
                    return needs_body(Place::Pointers(pointers.clone()), elsewhere, *reads);
                }
                Source::BodyClosure(find, reads) => {
                    return needs_body(Place::BodyClosure(Arc::clone(find)), elsewhere, *reads);
                }
            };
        if let Some(source) = in_path.filter(|_| has_destination) {
            let (to, scope_there) = self.destination(source, head, readings)?;
            scope = scope.filter(|scope| scope_there.is_some_and(|there| scope.covers(there)));
            if to.realm != found.realm {
                let both = Claim::realm(&found.realm).and(&Claim::realm(&to.realm));
                return Ok(Decision::Claim(shared_by(scope, both)));
            }
            found.destination = to.destination;
            if found.destination.is_none() {
                scope = scope.filter(|scope| scope.is_shared());
            }
        }
        let Some(scope) = scope else {
            return Ok(Decision::Claim(Claim::realm(&found.realm)));
        };
        let segments = path.segments().into_iter().flatten();
        if let Some(claim) = scope.claim_of_path(segments, &found, most) {
            return Ok(Decision::Claim(claim));
        }
        match scope.needs_body(head.headers) {
            Some(reads) => needs_body(Place::Found(found), Some(scope), reads),
            None => needs_lookup(Place::Found(found), Some(scope)),
        }
    }

    /// The realm of a request's `Destination`, found as if the request were for that path, and the
    /// resource there; no resource if it is not certain which one it is. With it the scope that the
    /// request would have.
    fn destination(
        &self,
        source: &PathSource,
        head: &Head<'_>,
        readings: &Readings,
    ) -> Result<(Found, Option<&RouteScope<B>>), RealmError> {
        let destination = Destination::of(head.headers)?;
        let stripped = source.stripped(head)?;
        let path = &destination.path_below(stripped.as_ref())?;
        let source = self.routes.source(readings.iter(), readings.unclear, path);
        let found = source.and_then(|source| match source {
            Source::Path(source) => source.find_at(head, path),
            _ => Err(RealmError::unresolved(
                "its path is not where its realm is named",
            )),
        });
        let (mut found, origin) = found.map_err(|error| destination.refused(error))?;
        destination.check_origin(&origin, &found.realm)?;
        let resource = rest_of(path.segments().into_iter().flatten(), &found);
        // An empty one is the realm itself, which is replaced.
        found.destination = resource.filter(|resource| !resource.is_empty());
        let scope = self.rules.scope_of(readings, path);
        Ok((found, scope.map(|rule| &rule.given)))
    }
}

impl<B: Copy> NeedsLookup<B> {
    /// Asks the closures.
    ///
    /// # Errors
    ///
    /// Those of the closures.
    ///
    /// # Cancel safety
    ///
    /// Nothing is held: dropped, it leaves nothing behind.
    pub(crate) async fn find(self, head: &RequestHead) -> Result<LookedUp<B>, RealmError> {
        let Pending { place, narrowing } = self.0;
        let found = match narrowing.only(place, head, &Bytes::new()).await? {
            Some(Only::Realm(found)) => found,
            Some(Only::Claim(claim)) => return Ok(LookedUp::Claim(claim)),
            None => return Ok(LookedUp::Pass),
        };
        Ok(match narrowing.needs_body(head.headers()) {
            Some(reads) => {
                let place = Place::Found(found);
                LookedUp::NeedsBody(NeedsBody(Pending { place, narrowing }), reads)
            }
            None => LookedUp::Claim(narrowing.claim(head, &Bytes::new(), found).await?),
        })
    }
}

impl<B: Copy> NeedsBody<B> {
    /// Finds in the body what the request locks; `None` if it names no realm and passes.
    ///
    /// # Errors
    ///
    /// What is wrong with the body, or the errors of the closures.
    ///
    /// # Cancel safety
    ///
    /// Nothing is held: dropped, it leaves nothing behind.
    pub(crate) async fn find(
        self,
        head: &RequestHead,
        body: &Bytes,
    ) -> Result<Option<Claim>, RealmError> {
        let Pending { place, narrowing } = self.0;
        Ok(match narrowing.only(place, head, body).await? {
            Some(Only::Realm(found)) => Some(narrowing.claim(head, body, found).await?),
            Some(Only::Claim(claim)) => Some(claim),
            None => None,
        })
    }
}

/// What a closure found, or a body names.
enum Only {
    /// One realm as a whole, which may be narrowed.
    Realm(Found),
    /// A claim that is not narrowed.
    Claim(Claim),
}

impl<B: Copy> Narrowing<B> {
    fn new(
        scope: Option<&RouteScope<B>>,
        path: &ParsedPath<'_>,
        most: usize,
        may_pass: bool,
    ) -> Self {
        let scope = scope.filter(|scope| !scope.is_realm());
        let of_path = scope.is_some_and(RouteScope::is_of_path);
        let segments = path.segments().into_iter().flatten();
        let segments = segments.filter(|_| of_path).map(str::to_owned);
        Self {
            may_pass,
            scope: scope.cloned(),
            segments: segments.collect(),
            most,
        }
    }

    /// What is named in a place; `None` if no realm is, and the request passes.
    async fn only(
        &self,
        place: Place,
        head: &RequestHead,
        body: &Bytes,
    ) -> Result<Option<Only>, RealmError> {
        let claim = match place {
            Place::Found(found) => return Ok(Some(Only::Realm(found))),
            Place::Closure(find) => find(head.clone()).await,
            Place::Pointers(pointers) => {
                let realms = pointers.resolve(head.headers(), body);
                realms.and_then(Claim::of_realms)
            }
            Place::BodyClosure(find) => find(head.clone(), body.clone()).await,
        };
        match claim {
            Ok(claim) => Ok(Some(only(self.scope.as_ref(), claim))),
            Err(error) if self.may_pass && error.is_absent() => {
                tracing::debug!(%error, "a request passes without a lock");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn needs_body(&self, headers: &HeaderMap) -> Option<B> {
        self.scope.as_ref()?.needs_body(headers)
    }

    async fn claim(
        &self,
        head: &RequestHead,
        body: &Bytes,
        found: Found,
    ) -> Result<Claim, RealmError> {
        let Some(scope) = &self.scope else {
            return Ok(Claim::realm(&found.realm));
        };
        let claim = scope.claim(head, &self.segments, body, &found, self.most);
        claim.await
    }
}

/// Whether a claim is on only one realm, to be narrowed. Nothing else is narrowed to resources:
/// it is unclear which part of it the scope means.
fn only<B: Copy>(scope: Option<&RouteScope<B>>, claim: Claim) -> Only {
    match claim.as_realm() {
        Some(realm) if scope.is_some() => Only::Realm(Found::elsewhere(realm.clone())),
        _ => Only::Claim(shared_by(scope, claim)),
    }
}

/// A claim with a share of its realms if its scope is shared.
fn shared_by<B: Copy>(scope: Option<&RouteScope<B>>, claim: Claim) -> Claim {
    if scope.is_some_and(RouteScope::is_shared) {
        return claim.with_shared_realms();
    }
    claim
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header::HeaderName;
    use http::{Method, Request};

    use super::*;
    use crate::realm::origin::proxies::TrustedProxies;
    use crate::realm::origin::request::RequestOrigin;
    use crate::realm::resolve::mounts::RealmMounts;
    use crate::realm::resolve::paths::RealmPaths;
    use crate::realm::rules::methods::MethodSet;
    use crate::realm::rules::scope::Scope;
    use crate::realm::url::RealmUrl;

    const ATOMIC: &str = "/{owner}/{realm}/_atomic";
    const ONE: HeaderName = HeaderName::from_static("x-one");
    const OTHER: HeaderName = HeaderName::from_static("x-other");

    type Fingerprint = Vec<(&'static str, String)>;

    fn paths() -> RealmPaths {
        RealmPaths::new("https://r.example/api", "/{owner}/{realm}").unwrap()
    }

    /// The fingerprint of a layer that finds realms so.
    fn found(resolver: impl Into<RealmBodyResolver>) -> Fingerprint {
        Realms::of_bodies(resolver.into()).fingerprint()
    }

    fn ruled(rules: Result<LockRules, ConfigError>) -> Fingerprint {
        let realms = Realms::of_bodies(paths().into());
        realms.with_rules(rules.unwrap()).fingerprint()
    }

    fn overridden<const N: usize>(header: HeaderName, methods: [Method; N]) -> Fingerprint {
        ruled(Ok(LockRules::new().method_override(header, methods)))
    }

    fn by_header(name: HeaderName) -> RealmResolver {
        RealmResolver::from_header(name, RealmUrl::parse)
    }

    fn routed<const N: usize>(methods: [Method; N], path: &str, header: HeaderName) -> Fingerprint {
        let resolver = RealmResolver::from(paths());
        found(resolver.route(methods, path, by_header(header)).unwrap())
    }

    fn at_origins<const N: usize>(origins: [&str; N], proxies: &[&str]) -> Fingerprint {
        let origin = RequestOrigin::new(TrustedProxies::new(proxies).unwrap());
        let origin = match N {
            0 => origin,
            _ => origin.only(origins).unwrap(),
        };
        found(paths().origin_from_request(origin))
    }

    #[test]
    fn fingerprints_differ_with_all_that_decides_what_is_locked() {
        let of = |base_url: &str, pattern: &str| found(RealmPaths::new(base_url, pattern).unwrap());
        let named = |name: &str| found(paths().named(name).unwrap());
        let pointers = |pointer: &str| found(RealmPointers::new([pointer]).unwrap());
        let scope = |scope| ruled(LockRules::new().scope(Method::POST, ATOMIC, scope));
        let exempt = |methods: MethodSet| ruled(LockRules::new().exempt(methods, ATOMIC));
        let plain = found(paths());
        let of_realms = [
            of("https://s.example/api", "/{owner}/{realm}"),
            of("https://r.example", "/{owner}/{realm}"),
            of("https://r.example/api", "/{owner}/{realm}/x"),
            of("https://{realm}.r.example/api", "/{owner}"),
            of("https://{tenant}.r.example/api", "/{owner}/{realm}"),
            named("/{realm}/{owner}"),
            named("https://n.example/{owner}/{realm}"),
            found(paths().also("/admin/{owner}/{realm}").unwrap()),
            found(paths().base_path_stripped()),
            at_origins([], &["10.0.0.1"]),
            at_origins([], &["10.0.0.2"]),
            at_origins([], &["unix"]),
            at_origins(["https://a.example"], &["10.0.0.1"]),
            found(RealmMounts::default()),
            found(by_header(ONE)),
            found(by_header(OTHER)),
            found(RealmResolver::from_extension(|url: &RealmUrl| {
                Ok(url.clone())
            })),
            found(RealmResolver::from_fn(async |_| {
                RealmUrl::parse("https://h")
            })),
            found(RealmBodyResolver::from_body_fn(async |_, _| {
                RealmUrl::parse("https://h")
            })),
            pointers("/realm"),
            pointers("/other"),
            routed([Method::PUT], "/_a", ONE),
            routed([Method::POST], "/_a", ONE),
            routed([Method::PUT], "/_b", ONE),
            routed([Method::PUT], "/_a", OTHER),
        ];
        let unresolved = Realms::of_bodies(paths().into()).with_unresolved(Unresolved::Pass);
        let of_rules = [
            exempt(Method::POST.into()),
            exempt(Method::PUT.into()),
            exempt(MethodSet::unsafe_methods()),
            ruled(LockRules::new().lock(Method::POST, ATOMIC)),
            scope(Scope::realm()),
            scope(Scope::shared()),
            scope(Scope::resource()),
            scope(Scope::resource().named_by(str::to_lowercase)),
            scope(Scope::atomic_hrefs()),
            scope(Scope::from_fn(async |_, _| Ok(None))),
            scope(Scope::from_body_fn(async |_, _, _| Ok(None))),
            overridden(ONE, [Method::PUT]),
            overridden(ONE, [Method::GET]),
            overridden(OTHER, [Method::PUT]),
            unresolved.fingerprint(),
        ];
        // Each differs in one component from the plain one, and from all others.
        for (component, all) in [(0, &of_realms[..]), (1, &of_rules[..])] {
            for (at, one) in all.iter().enumerate() {
                let same = all[at + 1..].iter().chain([&plain]).find(|it| *it == one);
                assert_eq!(same, None);
                let mut expected = plain.clone();
                expected[component].1.clone_from(&one[component].1);
                assert_eq!(*one, expected);
            }
        }
        let components: Vec<&str> = plain.iter().map(|(component, _)| *component).collect();
        assert_eq!(components, ["realms", RULES, KEYS]);
        assert_eq!(plain[2].1, SCHEME);
    }

    #[test]
    fn fingerprints_are_the_same_whatever_the_order_of_a_set_and_for_what_may_differ() {
        let exempt = |methods: [Method; 2]| ruled(LockRules::new().exempt(methods, ATOMIC));
        let (a, b) = ("https://a.example", "https://b.example");
        let (near, far) = ("10.0.0.1", "fd00::/8");
        let limits = RouteLimits::new().acquire_timeout(Duration::from_secs(1));
        let mounts = RealmMounts::default();
        let empty = found(mounts.clone());
        let realm = RealmUrl::parse("https://r.example/a/").unwrap();
        assert!(mounts.insert(&realm).unwrap());
        let one = || [Method::PUT, Method::DELETE];
        let other = || [Method::DELETE, Method::PUT];
        for (one, other) in [
            (exempt(one()), exempt(other())),
            (overridden(ONE, one()), overridden(ONE, other())),
            (routed(one(), "/_move", ONE), routed(other(), "/_move", ONE)),
            (
                at_origins([a, b], &[near, far]),
                at_origins([b, a], &[far, near]),
            ),
            // Whoever takes a realm whole excludes the others.
            (ruled(Ok(LockRules::new().max_resources(3))), found(paths())),
            (
                ruled(LockRules::new().limits(Method::POST, ATOMIC, limits)),
                found(paths()),
            ),
            (found(mounts), empty),
        ] {
            assert_eq!(one, other);
        }
    }

    /// The `Debug` of a path shows whether it was decoded.
    #[test]
    fn a_passing_request_is_not_decoded() {
        let rules = LockRules::new().lock(Method::GET, "/{owner}/{realm}/_reindex");
        let realms = Realms::of_bodies(paths().into()).with_rules(rules.unwrap());
        for (method, decoded) in [("GET", true), ("OPTIONS", false), ("TRACE", false)] {
            let request = Request::builder().method(method).uri("/luke/%61/x");
            let request = request.body(()).unwrap();
            let head = Head::of(&request);
            assert!(matches!(realms.classify(&head), Decision::Pass));
            let path = format!("{:?}", head.path());
            // A route for GET was compared with it.
            let is_decoded = !path.contains("parsed: OnceCell(<uninit>)");
            assert_eq!(is_decoded, decoded, "{path}");
        }
    }
}
