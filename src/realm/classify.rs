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
pub(crate) struct NeedsLookup<B> {
    realms: Lookup,
    narrowing: Narrowing<B>,
}

enum Lookup {
    Found(Found),
    Closure(Arc<ClosureFn>),
}

/// The result of a lookup.
pub(crate) enum LookedUp<B> {
    /// The request names no realm, and is not locked.
    Pass,
    Claim(Claim),
    NeedsBody(NeedsBody<B>, B),
}

/// A request whose body has to be read.
pub(crate) struct NeedsBody<B> {
    realms: BodyLookup,
    narrowing: Narrowing<B>,
}

enum BodyLookup {
    Found(Found),
    Pointers(RealmPointers),
    Closure(Arc<BodyClosureFn>),
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
            ("keys", SCHEME.into()),
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
        let needs_body = |realms, scope, reads| {
            let narrowing = Narrowing::new(scope, path, most, may_pass);
            Ok(Decision::NeedsBody(NeedsBody { realms, narrowing }, reads))
        };
        let needs_lookup = |realms, scope| {
            let narrowing = Narrowing::new(scope, path, most, may_pass);
            Ok(Decision::NeedsLookup(NeedsLookup { realms, narrowing }))
        };
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
                    return needs_lookup(Lookup::Closure(Arc::clone(find)), elsewhere);
                }
                Source::Pointers(pointers, reads) => {
                    return needs_body(BodyLookup::Pointers(pointers.clone()), elsewhere, *reads);
                }
                Source::BodyClosure(find, reads) => {
                    return needs_body(BodyLookup::Closure(Arc::clone(find)), elsewhere, *reads);
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
            Some(reads) => needs_body(BodyLookup::Found(found), Some(scope), reads),
            None => needs_lookup(Lookup::Found(found), Some(scope)),
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
        let narrowing = self.narrowing;
        let found = match self.realms {
            Lookup::Found(found) => found,
            Lookup::Closure(find) => {
                let claim = find(head.clone()).await;
                match claim.map(|claim| only(narrowing.scope.as_ref(), claim)) {
                    Ok(Only::Claim(claim)) => return Ok(LookedUp::Claim(claim)),
                    Ok(Only::Realm(found)) => found,
                    Err(error) if narrowing.passes(&error) => return Ok(LookedUp::Pass),
                    Err(error) => return Err(error),
                }
            }
        };
        Ok(match narrowing.needs_body(head.headers()) {
            Some(reads) => {
                let realms = BodyLookup::Found(found);
                LookedUp::NeedsBody(NeedsBody { realms, narrowing }, reads)
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
        let narrowing = self.narrowing;
        let claim = match self.realms {
            BodyLookup::Found(found) => return narrowing.claim(head, body, found).await.map(Some),
            BodyLookup::Pointers(pointers) => {
                let realms = pointers.resolve(head.headers(), body);
                realms.and_then(Claim::of_realms)
            }
            BodyLookup::Closure(find) => find(head.clone(), body.clone()).await,
        };
        match claim.map(|claim| only(narrowing.scope.as_ref(), claim)) {
            Ok(Only::Claim(claim)) => Ok(Some(claim)),
            Ok(Only::Realm(found)) => narrowing.claim(head, body, found).await.map(Some),
            Err(error) if narrowing.passes(&error) => Ok(None),
            Err(error) => Err(error),
        }
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

    /// Whether a request for which this was found passes. Logs it if it does.
    fn passes(&self, error: &RealmError) -> bool {
        let passes = self.may_pass && error.is_absent();
        if passes {
            tracing::debug!(%error, "a request passes without a lock");
        }
        passes
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
    use http::{HeaderValue, Method, Request};

    use super::*;
    use crate::realm::key::LockKey;
    use crate::realm::origin::proxies::TrustedProxies;
    use crate::realm::origin::request::RequestOrigin;
    use crate::realm::resolve::mounts::RealmMounts;
    use crate::realm::resolve::paths::RealmPaths;
    use crate::realm::rules::methods::MethodSet;
    use crate::realm::rules::scope::Scope;
    use crate::realm::url::RealmUrl;

    const ATOMIC: &str = "/{owner}/{realm}/_atomic";

    /// The fingerprint of a layer that finds realms so.
    fn fingerprint(resolver: impl Into<RealmBodyResolver>) -> Vec<(&'static str, String)> {
        Realms::of_bodies(resolver.into()).fingerprint()
    }

    fn ruled(rules: Result<LockRules, ConfigError>) -> Vec<(&'static str, String)> {
        let realms = Realms::of_bodies(paths().into());
        realms.with_rules(rules.unwrap()).fingerprint()
    }

    #[test]
    fn fingerprints_differ_with_all_that_decides_what_is_locked() {
        let origin = |proxy: &str| RequestOrigin::new(TrustedProxies::new([proxy]).unwrap());
        let of = |base_url: &str, pattern: &str| RealmPaths::new(base_url, pattern).unwrap();
        let paths = || of("https://r.example/api", "/{owner}/{realm}");
        let header = |name| RealmResolver::from_header(name, |id: &str| RealmUrl::parse(id));
        let routed = |methods: &[Method], pattern: &str, header: RealmResolver| {
            let resolver = RealmResolver::from(paths());
            fingerprint(resolver.route(methods, pattern, header).unwrap())
        };
        let [one, other] = ["x-one", "x-other"].map(HeaderName::from_static);
        let pointers = |pointer: &str| RealmPointers::new([pointer]).unwrap();
        let extension = RealmResolver::from_extension(|url: &RealmUrl| Ok(url.clone()));
        let scope = |scope| LockRules::new().scope(Method::POST, ATOMIC, scope);
        let overridden = |header: &HeaderName, method| {
            ruled(Ok(
                LockRules::new().method_override(header.clone(), [method])
            ))
        };
        let fingerprints = [
            fingerprint(paths()),
            fingerprint(of("https://s.example/api", "/{owner}/{realm}")),
            fingerprint(of("https://r.example", "/{owner}/{realm}")),
            fingerprint(of("https://r.example/api", "/{owner}/{realm}/x")),
            fingerprint(of("https://{realm}.r.example/api", "/{owner}")),
            fingerprint(of("https://{tenant}.r.example/api", "/{owner}/{realm}")),
            fingerprint(paths().named("/{realm}/{owner}").unwrap()),
            fingerprint(paths().named("https://n.example/{owner}/{realm}").unwrap()),
            fingerprint(paths().also("/admin/{owner}/{realm}").unwrap()),
            fingerprint(paths().base_path_stripped()),
            fingerprint(paths().origin_from_request(origin("10.0.0.1"))),
            fingerprint(paths().origin_from_request(origin("10.0.0.2"))),
            fingerprint(paths().origin_from_request(origin("unix"))),
            fingerprint(
                paths()
                    .origin_from_request(origin("10.0.0.1").only(["https://a.example"]).unwrap()),
            ),
            fingerprint(RealmMounts::new([]).unwrap()),
            fingerprint(header(one.clone())),
            fingerprint(header(other.clone())),
            fingerprint(extension),
            fingerprint(RealmResolver::from_fn(async |_| {
                RealmUrl::parse("https://r.example/")
            })),
            fingerprint(RealmBodyResolver::from_body_fn(async |_, _| {
                RealmUrl::parse("https://r.example/")
            })),
            fingerprint(pointers("/realm")),
            fingerprint(pointers("/other")),
            routed(&[Method::PUT], "/_a", header(one.clone())),
            routed(&[Method::POST], "/_a", header(one.clone())),
            routed(&[Method::PUT], "/_b", header(one.clone())),
            routed(&[Method::PUT], "/_a", header(other.clone())),
            ruled(LockRules::new().exempt(Method::POST, ATOMIC)),
            ruled(LockRules::new().exempt(Method::PUT, ATOMIC)),
            ruled(LockRules::new().exempt(MethodSet::unsafe_methods(), ATOMIC)),
            ruled(LockRules::new().lock(Method::POST, ATOMIC)),
            ruled(scope(Scope::realm())),
            ruled(scope(Scope::shared())),
            ruled(scope(Scope::resource())),
            ruled(scope(Scope::resource().named_by(str::to_lowercase))),
            ruled(scope(Scope::atomic_hrefs())),
            ruled(scope(Scope::from_fn(async |_, _| Ok(None)))),
            ruled(scope(Scope::from_body_fn(async |_, _, _| Ok(None)))),
            overridden(&one, Method::PUT),
            overridden(&one, Method::GET),
            overridden(&other, Method::PUT),
            Realms::of_bodies(paths().into())
                .with_unresolved(Unresolved::Pass)
                .fingerprint(),
        ];
        for (at, fingerprint) in fingerprints.iter().enumerate() {
            let same = fingerprints
                .iter()
                .skip(at + 1)
                .find(|it| *it == fingerprint);
            assert!(same.is_none(), "{fingerprint:?}");
        }
    }

    #[test]
    fn fingerprints_are_the_same_whatever_the_order_of_a_set_and_for_what_may_differ() {
        let exempt = |methods: [Method; 2]| ruled(LockRules::new().exempt(methods, ATOMIC));
        assert_eq!(
            exempt([Method::PUT, Method::DELETE]),
            exempt([Method::DELETE, Method::PUT])
        );
        let overriding = |methods: [Method; 2]| {
            let header = HeaderName::from_static("x-http-method-override");
            ruled(Ok(LockRules::new().method_override(header, methods)))
        };
        assert_eq!(
            overriding([Method::PUT, Method::DELETE]),
            overriding([Method::DELETE, Method::PUT])
        );
        let routed = |methods: [Method; 2]| {
            let resolver = RealmResolver::from(paths());
            let of_route = RealmMounts::new([]).unwrap();
            fingerprint(resolver.route(methods, "/_move", of_route).unwrap())
        };
        assert_eq!(
            routed([Method::PUT, Method::DELETE]),
            routed([Method::DELETE, Method::PUT])
        );
        let only = |origins: [&str; 2], proxies: [&str; 2]| {
            let origin = RequestOrigin::new(TrustedProxies::new(proxies).unwrap());
            fingerprint(paths().origin_from_request(origin.only(origins).unwrap()))
        };
        let (a, b) = ("https://a.example", "https://b.example");
        let (near, far) = ("10.0.0.1", "fd00::/8");
        assert_eq!(only([a, b], [near, far]), only([b, a], [far, near]));
        // Whoever takes a realm whole excludes the others.
        assert_eq!(
            ruled(Ok(LockRules::new().max_resources(3))),
            ruled(Ok(LockRules::new()))
        );
        let limits = RouteLimits::new().acquire_timeout(Duration::from_secs(1));
        assert_eq!(
            ruled(LockRules::new().limits(Method::POST, ATOMIC, limits)),
            ruled(Ok(LockRules::new()))
        );
        let mounts = RealmMounts::new([]).unwrap();
        let empty = fingerprint(mounts.clone());
        let realm = RealmUrl::parse("https://r.example/a/").unwrap();
        assert!(mounts.insert(&realm).unwrap());
        assert_eq!(fingerprint(mounts), empty);
    }

    fn paths() -> RealmPaths {
        RealmPaths::new("https://r.example", "/{owner}/{realm}").unwrap()
    }

    #[test]
    fn replicas_that_lock_differently_have_other_fingerprints() {
        let paths = || RealmPaths::new("https://r.example/api", "/{owner}/{realm}").unwrap();
        let of = |paths: RealmPaths| Realms::of_heads(paths.into());
        let plain = of(paths()).fingerprint();
        let components = plain.iter().map(|(component, _)| *component);
        assert_eq!(components.collect::<Vec<_>>(), ["realms", RULES, "keys"]);
        assert_eq!(plain[2].1, SCHEME);
        let origin = RequestOrigin::new(TrustedProxies::default());
        for other in [
            RealmPaths::new("https://other.example/api", "/{owner}/{realm}").unwrap(),
            paths().base_path_stripped(),
            paths().named("/{realm}/{owner}").unwrap(),
            paths().also("/x/{owner}/{realm}").unwrap(),
            paths().origin_from_request(origin),
        ] {
            let other = of(other).fingerprint();
            assert_ne!(other[0], plain[0]);
            assert_eq!(other[1..], plain[1..]);
        }
        let rules = LockRules::new().exempt(Method::POST, "/x").unwrap();
        let other = of(paths()).with_head_rules(rules).unwrap().fingerprint();
        assert_eq!((&other[0], &other[2]), (&plain[0], &plain[2]));
        assert_ne!(other[1], plain[1]);
    }

    fn rules() -> LockRules {
        LockRules::new()
            .exempt(Method::POST, "/{owner}/{realm}/_search")
            .and_then(|rules| rules.lock(Method::GET, "/{owner}/{realm}/_reindex"))
            .and_then(|rules| rules.scope(Method::POST, ATOMIC, Scope::atomic_hrefs()))
            .and_then(|rules| {
                let by_head = Scope::from_fn(async |_, _| Ok(Some(vec!["x".into()])));
                rules.scope(Method::PUT, "/{owner}/{realm}/{*card}", by_head)
            })
            .and_then(|rules| {
                rules.scope(Method::PATCH, "/{owner}/{realm}/{*card}", Scope::resource())
            })
            .unwrap()
    }

    /// Realms in the path, except of two routes: one names them in its body, one has a closure.
    fn realms() -> Realms<ReadsBodies> {
        let tenant: RealmUrl = "https://r.example/luke/a/".parse().unwrap();
        let tenant = RealmResolver::from_fn(move |_| {
            let tenant = tenant.clone();
            async { Ok(tenant) }
        });
        let named = RealmPointers::new(["/realm"]).unwrap();
        let resolver = RealmBodyResolver::from(paths())
            .route(Method::POST, "/_publish", named)
            .and_then(|realms| {
                realms.route(Method::PATCH, "/luke/a/_tenant/{*rest}", tenant.clone())
            })
            .and_then(|realms| realms.route(Method::PUT, "/luke/a/_tenant/{*rest}", tenant))
            .unwrap();
        Realms::of_bodies(resolver).with_rules(rules())
    }

    fn request(method: &Method, path: &str) -> Request<()> {
        let request = Request::builder().method(method).uri(path).body(());
        request.unwrap()
    }

    fn head(request: Request<()>) -> RequestHead {
        request.into_parts().0.into()
    }

    fn shown<B>(decision: &Decision<B>) -> String {
        match decision {
            Decision::Pass => "pass".into(),
            Decision::OtherRoute => "another route".into(),
            Decision::Claim(claim) => claim.to_string(),
            Decision::NeedsBody(..) => "body".into(),
            Decision::NeedsLookup(_) => "lookup".into(),
            Decision::Reject(error) => format!("reject: {error}"),
        }
    }

    #[test]
    fn each_request_has_one_decision() {
        let realms = realms();
        for (method, path, expected) in [
            ("GET", "/luke/a/x", "pass"),
            ("POST", "/luke/a/_search", "pass"),
            ("POST", "/luke/a/%5Fsearch", "https://r.example/luke/a/"),
            ("GET", "/luke/a/%5Freindex", "https://r.example/luke/a/"),
            ("DELETE", "/luke/a/x", "https://r.example/luke/a/"),
            ("PATCH", "/l%75ke/a/%78", "https://r.example/luke/a/ (x)"),
            ("PUT", "/luke/a/x", "lookup"),
            ("PATCH", "/luke/a/_tenant/x", "lookup"),
            ("POST", "/luke/a/_atomic", "body"),
            ("POST", "/_publish", "body"),
            (
                "POST",
                "/%5Fpublish",
                "reject: the path `/%5Fpublish` is ambiguous",
            ),
            (
                "PATCH",
                "/luke/../a",
                "reject: the path `/luke/../a` is ambiguous",
            ),
            ("PATCH", "/luke", "reject: the path `/luke` names no realm"),
        ] {
            let request = Request::builder().method(method).uri(path).body(());
            let request = request.unwrap();
            let decision = shown(&realms.classify(&Head::of(&request)));
            assert!(
                decision.starts_with(expected),
                "{method} {path}: {decision}"
            );
        }
    }

    /// The decision on a MOVE with these headers `Destination`.
    fn moved(realms: &Realms<ReadsBodies>, path: &str, destinations: &[&str]) -> String {
        let mut request = Request::builder().method("MOVE").uri(path);
        for destination in destinations {
            let value = HeaderValue::from_bytes(destination.as_bytes()).unwrap();
            request = request.header("destination", value);
        }
        shown(&realms.classify(&Head::of(&request.body(()).unwrap())))
    }

    #[test]
    fn a_move_locks_its_destination_too() {
        let card = "/{owner}/{realm}/{*card}";
        let moves = || Method::from_bytes(b"MOVE").unwrap();
        let scoped = |scope| {
            let rules = LockRules::new().scope(moves(), card, scope);
            realms().with_rules(rules.unwrap())
        };
        let (a, b) = ("https://r.example/luke/a/", "https://r.example/luke/b/");
        let both = format!("{a} and {b}");
        let whole = realms();
        let stem = |path: &str| path.trim_end_matches(".json").to_owned();
        let resource = scoped(Scope::resource().named_by(stem));
        let shared = scoped(Scope::shared());
        let closure = scoped(Scope::from_fn(async |_, _| Ok(Some(vec!["z".into()]))));
        for (realms, destination, expected) in [
            (&whole, "/luke/a/y", a),
            (&whole, "/luke/b/y", &both),
            (&whole, "/luke/b", &both),
            (&whole, "https://r.example/luke/b/y", &both),
            (&whole, "HTTPS://R.example:443/l%75ke/%62", &both),
            (&resource, "/luke/a/y", &format!("{a} (x, y)")),
            (&resource, "/luke/a/%79.json", &format!("{a} (x, y)")),
            (&resource, "/luke/a/x/", &format!("{a} (x)")),
            // It replaces the realm, or it is not certain what it replaces.
            (&resource, "/luke/a/", a),
            (&resource, "/luke/a/y%2Fz", a),
            (&resource, "/luke/b/y", &both),
            (&shared, "/luke/a/y", &format!("{a} (shared)")),
            (
                &shared,
                "/luke/b/y",
                &format!("{a} (shared) and {b} (shared)"),
            ),
            // There the rules say nothing.
            (&shared, "/luke/a/", a),
            (&shared, "/luke/b", &both),
            (&closure, "/luke/a/y", "lookup"),
            (&closure, "/luke/b/y", &both),
        ] {
            let decision = moved(realms, "/luke/a/x", &[destination]);
            assert_eq!(decision, expected, "{destination}");
        }
        // The scope does not fit this spelling.
        assert_eq!(moved(&resource, "/luke/a/x%2Fz", &["/luke/a/y"]), a);
    }

    #[test]
    fn a_move_is_narrowed_only_as_the_rules_for_both_its_paths_say() {
        let shared = Scope::shared;
        let resource = Scope::resource;
        let closure = || Scope::from_fn(async |_, _| Ok(Some(vec!["z".into()])));
        let (a, b) = ("https://r.example/luke/a/", "https://r.example/luke/b/");
        let (both, all_shared) = (format!("{a} and {b}"), format!("{a} (shared)"));
        let both_shared = format!("{a} (shared) and {b} (shared)");
        let resources = format!("{a} (drafts/x, site/y)");
        for (from, to, within, across) in [
            (Some(shared()), None, a, &both),
            (None, Some(shared()), a, &both),
            (Some(shared()), Some(Scope::realm()), a, &both),
            (Some(shared()), Some(shared()), &all_shared, &both_shared),
            (Some(shared()), Some(resource()), a, &both),
            (Some(resource()), None, a, &both),
            (None, Some(resource()), a, &both),
            (Some(resource()), Some(Scope::realm()), a, &both),
            (Some(resource()), Some(shared()), a, &both),
            (Some(resource()), Some(resource()), &resources, &both),
            (Some(resource()), Some(closure()), a, &both),
            (Some(closure()), None, a, &both),
            (Some(closure()), Some(shared()), a, &both),
            (Some(closure()), Some(closure()), a, &both),
            // It names the resources of the path, and the destination is one.
            (Some(closure()), Some(resource()), "lookup", &both),
        ] {
            let case = format!("{from:?} to {to:?}");
            let moves = Method::from_bytes(b"MOVE").unwrap();
            let mut rules = LockRules::new();
            let drafts = from.map(|scope| ("/{owner}/{realm}/drafts/{*rest}", scope));
            let site = to.map(|scope| ("/{owner}/{realm}/site/{*rest}", scope));
            for (pattern, scope) in drafts.into_iter().chain(site) {
                rules = rules.scope(moves.clone(), pattern, scope).unwrap();
            }
            let realms = realms().with_rules(rules);
            let decide = |to| moved(&realms, "/luke/a/drafts/x", &[to]);
            assert_eq!(decide("/luke/a/site/y"), within, "{case}");
            assert_eq!(decide("/luke/b/site/y"), *across, "{case}");
            // Of another spelling it is not certain which rule the handler's route has.
            assert_eq!(decide("/luke/a/%73ite/y"), a, "{case}");
        }
    }

    #[test]
    fn a_destination_that_cannot_be_told_is_refused_by_name_and_with_the_remedy() {
        for (destinations, says) in [
            (&[][..], "it has no header `Destination`; send one"),
            (
                &["/luke/a/y", "/luke/a/z"],
                "`Destination` more than once, as `/luke/a/y` and as `/luke/a/z`",
            ),
            (&[""], "neither a URL nor an absolute path"),
            (&["y"], "`Destination: y` cannot be used"),
            (&["luke/a/y"], "neither a URL nor an absolute path"),
            (&["/luke/a/ü"], "`Destination: /luke/a/ü` has characters"),
            (&["/luke/a/y?z"], "white space, a query or a fragment"),
            (&["/luke/a/y#z"], "white space, a query or a fragment"),
            (&["/luke/a/y z"], "white space, a query or a fragment"),
            (&["//r.example/luke/a/y"], "empty segment"),
            (&["/luke/a/../b/y"], "dot segment"),
            (&["/luke/a%2Fb/y"], "encoded slash"),
            (&["/luke"], "the path `/luke` names no realm"),
            (&["https://r.example"], "the path `/` names no realm"),
            (
                &["https://e.example/luke/b/y"],
                "one of the realm `https://r.example/luke/b/`",
            ),
            (
                &["http://r.example/luke/b/y"],
                "one of the realm `https://r.example/luke/b/`",
            ),
            (&["https://r.example:8443/luke/b/y"], "one of the realm"),
            (&["https://u@r.example/luke/b/y"], "user information"),
            (&["https://r.example.evil/luke/b/y"], "one of the realm"),
            (&["https://r.example./luke/b/y"], "ends with a dot"),
            (&["ftp://r.example/luke/b/y"], "must be http or https"),
            (&["://r.example/luke/b/y"], "must be http or https"),
            // Below it a closure names realms.
            (
                &["/luke/a/_tenant/x"],
                "`Destination: /luke/a/_tenant/x` cannot be used",
            ),
            (
                &["/luke/a/%5Ftenant/x"],
                "is ambiguous: in another spelling",
            ),
        ] {
            let tenant = RealmResolver::from_fn(async |_| Ok(LockKey::in_space("tenant", 1)));
            let resolver = RealmBodyResolver::from(paths())
                .route(
                    Method::from_bytes(b"MOVE").unwrap(),
                    "/luke/a/_tenant/{*rest}",
                    tenant,
                )
                .unwrap();
            let decision = moved(&Realms::of_bodies(resolver), "/luke/a/x", destinations);
            let refused = "reject: the destination of the request cannot be told: ";
            assert!(
                decision.starts_with(refused),
                "{destinations:?}: {decision}"
            );
            assert!(decision.contains(says), "{destinations:?}: {decision}");
        }
    }

    #[test]
    fn a_destination_is_below_the_path_of_the_base_url() {
        let paths = RealmPaths::new("https://r.example/api", "/{owner}/{realm}").unwrap();
        let realms = |paths| Realms::of_bodies(RealmBodyResolver::from(paths));
        let whole = realms(paths.clone());
        let stripped = realms(paths.base_path_stripped());
        let both = "https://r.example/api/luke/a/ and https://r.example/api/luke/b/";
        for destination in ["/api/luke/b/y", "https://r.example/api/luke/b/y"] {
            assert_eq!(moved(&whole, "/api/luke/a/x", &[destination]), both);
            assert_eq!(moved(&stripped, "/luke/a/x", &[destination]), both);
        }
        for destination in ["/luke/b/y", "/apis/luke/b/y", "https://r.example/luke/b/y"] {
            let decision = moved(&whole, "/api/luke/a/x", &[destination]);
            assert!(decision.contains("names no realm"), "{decision}");
            let decision = moved(&stripped, "/luke/a/x", &[destination]);
            let says = "is not below the base URL `https://r.example/api/`";
            assert!(decision.contains(says), "{decision}");
        }
    }

    #[test]
    fn a_destination_is_at_the_origin_of_the_request_whatever_realms_are_called() {
        let paths = RealmPaths::new("https://{tenant}.r.example", "/{project}").unwrap();
        let paths = paths.named("https://realms.example/{tenant}/{project}");
        let realms = Realms::of_bodies(RealmBodyResolver::from(paths.unwrap()));
        let both = "https://realms.example/acme/a/ and https://realms.example/acme/b/";
        for destination in ["/b/y", "https://acme.r.example/b/y"] {
            let path = "https://acme.r.example/a/x";
            assert_eq!(moved(&realms, path, &[destination]), both);
        }
        for destination in [
            "https://other.r.example/b/y",
            "https://realms.example/acme/b/",
        ] {
            let decision = moved(&realms, "https://acme.r.example/a/x", &[destination]);
            assert!(decision.contains("cannot be used"), "{decision}");
        }
    }

    #[test]
    fn a_destination_is_looked_up_among_mounts_as_the_path_is() {
        let urls = [
            "https://r.example/a/",
            "https://r.example/a/b/",
            "http://other.example/c/",
        ];
        let mounts = RealmMounts::new(urls.map(|url| url.parse().unwrap())).unwrap();
        let realms = Realms::of_bodies(RealmBodyResolver::from(mounts));
        for (destination, expected) in [
            ("/a/y", "https://r.example/a/"),
            ("/a/b/y", "https://r.example/a/ and https://r.example/a/b/"),
            ("/c/y", "https://r.example/a/ and http://other.example/c/"),
            (
                "http://other.example/c/y",
                "https://r.example/a/ and http://other.example/c/",
            ),
        ] {
            assert_eq!(moved(&realms, "/a/x", &[destination]), expected);
        }
        for (destination, says) in [
            ("/d/y", "the path `/d/y` is in no mounted realm"),
            (
                "https://r.example/c/y",
                "one of the realm `http://other.example/c/` here",
            ),
        ] {
            let decision = moved(&realms, "/a/x", &[destination]);
            assert!(decision.contains(says), "{decision}");
        }
    }

    #[test]
    fn a_destination_has_the_origin_of_the_request_where_that_counts() {
        let origin = RequestOrigin::new(TrustedProxies::default());
        let realms =
            Realms::of_bodies(RealmBodyResolver::from(paths().origin_from_request(origin)));
        let moved = |destination: &str| {
            let request = Request::builder().method("COPY").uri("/luke/a/x");
            let request = request.header("host", "h.example:8443");
            let request = request.header("destination", destination).body(()).unwrap();
            match realms.classify(&Head::of(&request)) {
                Decision::Claim(claim) => claim.realms()[1].to_string(),
                decision => shown(&decision),
            }
        };
        let realm = "https://h.example:8443/luke/b/";
        assert_eq!(moved("/luke/b/y"), realm);
        assert_eq!(moved("https://h.example:8443/luke/b/y"), realm);
        assert!(moved("https://r.example/luke/b/y").starts_with("reject"));
    }

    #[tokio::test]
    async fn a_closure_names_the_realm_of_the_destination_and_they_are_not_narrowed() {
        let moves = Method::from_bytes(b"MOVE").unwrap();
        for scope in [Scope::resource(), Scope::shared()] {
            let rules = LockRules::new().scope(moves.clone(), "/{*card}", scope);
            let tenant = RealmResolver::from_fn(async |_| RealmUrl::parse("https://r.example/"));
            let realms = Realms::of_bodies(tenant.into()).with_rules(rules.unwrap());
            // It need not even have one.
            let request = request(&moves, "/x");
            let Decision::NeedsLookup(lookup) = realms.classify(&Head::of(&request)) else {
                panic!("it needs a lookup");
            };
            let Ok(LookedUp::Claim(claim)) = lookup.find(&head(request)).await else {
                panic!("it is found");
            };
            assert_eq!(claim.to_string(), "https://r.example/");
        }
    }

    #[test]
    fn a_move_is_not_narrowed_where_a_header_names_the_realm() {
        let name = HeaderName::from_static("x-realm");
        let whole = "https://r.example/";
        for (scope, narrowed) in [
            (Scope::resource(), "https://r.example/ (x)"),
            (Scope::shared(), "https://r.example/ (shared)"),
        ] {
            for (method, expected) in [("MOVE", whole), ("PUT", narrowed)] {
                let rules = LockRules::new();
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let rules = rules.scope(method.clone(), "/{*card}", scope.clone());
                let realms = RealmResolver::from_header(name.clone(), RealmUrl::parse);
                let realms = Realms::of_bodies(realms.into()).with_rules(rules.unwrap());
                let mut request = request(&method, "/x");
                let url = HeaderValue::from_static("https://r.example");
                request.headers_mut().insert(&name, url);
                assert_eq!(shown(&realms.classify(&Head::of(&request))), expected);
            }
        }
    }

    #[test]
    fn an_encoded_body_is_not_asked_for() {
        let request = Request::post("/luke/a/_atomic").header("content-encoding", "gzip");
        let request = request.body(()).unwrap();
        assert_eq!(shown(&realms().classify(&Head::of(&request))), "lookup");
    }

    /// The `Debug` of a path shows whether it was decoded.
    #[test]
    fn a_passing_request_is_not_decoded() {
        let realms = realms();
        for (method, decoded) in [("GET", true), ("OPTIONS", false), ("TRACE", false)] {
            let request = Request::builder()
                .method(method)
                .uri("/luke/%61/x")
                .body(());
            let request = request.unwrap();
            let head = Head::of(&request);
            assert!(matches!(realms.classify(&head), Decision::Pass));
            let path = format!("{:?}", head.path());
            // A route for GET was compared with it.
            assert_eq!(
                !path.contains("parsed: OnceCell(<uninit>)"),
                decoded,
                "{path}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_looked_up_is_narrowed_as_what_the_path_names() {
        let realms = realms();
        for (method, path, expected) in [
            (Method::PUT, "/luke/a/y", "https://r.example/luke/a/ (x)"),
            (
                Method::PATCH,
                "/luke/a/_tenant/%78",
                "https://r.example/luke/a/ (_tenant/x)",
            ),
            // It is not certain that the handler takes this for the route of the scope.
            (
                Method::PUT,
                "/luke/a/_tenant/b%2Fc",
                "https://r.example/luke/a/",
            ),
        ] {
            let request = request(&method, path);
            let Decision::NeedsLookup(lookup) = realms.classify(&Head::of(&request)) else {
                panic!("{path} needs a lookup");
            };
            let Ok(LookedUp::Claim(claim)) = lookup.find(&head(request)).await else {
                panic!("{path} is found");
            };
            assert_eq!(claim.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn a_request_with_a_realm_is_never_absent_whatever_its_scope_says() {
        for error in [
            RealmError::missing("no card"),
            paths().resolve("/").unwrap_err(),
        ] {
            assert!(error.is_absent());
            let text = error.to_string();
            let scope = Scope::from_fn(move |_, _| std::future::ready(Err(error.clone())));
            let rules = LockRules::new().scope(Method::PUT, "/{*card}", scope);
            let realms = Realms::of_bodies(paths().into()).with_rules(rules.unwrap());
            let request = request(&Method::PUT, "/luke/a/x");
            let Decision::NeedsLookup(lookup) = realms.classify(&Head::of(&request)) else {
                panic!("it needs a lookup");
            };
            let Err(error) = lookup.find(&head(request)).await else {
                panic!("{text}");
            };
            assert!(!error.is_absent(), "{error:?}");
            assert!(error.to_string().contains(&text), "{error}");
        }
    }

    #[tokio::test]
    async fn what_the_body_names_is_locked() {
        let realms = realms();
        for (path, body, expected) in [
            (
                "/_publish",
                r#"{"realm":"https://r.example/b"}"#,
                "https://r.example/b/",
            ),
            (
                "/luke/a/_atomic",
                r#"{"atomic:operations":[{"href":"%78"}]}"#,
                "https://r.example/luke/a/ (x)",
            ),
        ] {
            let request = request(&Method::POST, path);
            let Decision::NeedsBody(needs, _) = realms.classify(&Head::of(&request)) else {
                panic!("{path} needs the body");
            };
            let body = Bytes::from_static(body.as_bytes());
            let claim = needs.find(&head(request), &body).await.unwrap();
            assert_eq!(claim.unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_method_that_is_not_certain_chooses_no_route() {
        let header = HeaderName::from_static("x-method");
        let rules = LockRules::new().method_override(header.clone(), [Method::GET]);
        let realms = realms().with_rules(rules);
        for (method, path, overriding) in [
            // Another method has another route.
            (Method::PUT, "/_publish", "POST"),
            // Nobody knows which method it has.
            (Method::DELETE, "/luke/a/_tenant/x", "A B"),
        ] {
            let request = Request::builder().method(method).uri(path);
            let request = request.header(&header, overriding).body(());
            let decision = realms.classify(&Head::of(&request.unwrap()));
            let Decision::Reject(RealmError::AmbiguousMethod) = decision else {
                panic!("{path}: {}", shown(&decision));
            };
        }
    }
}
