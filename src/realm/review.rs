//! Checks and a summary of a configuration, before any request comes.

use std::fmt;

use super::classify::Realms;
use super::head::Head;
use super::resolve::source::{PathSource, Source};
use super::route::MatchedRoute;
use super::rules::selector::{RuleKind, Selector};
use super::template::PathTemplate;

/// What a layer locks, for the line that it logs when it starts.
pub(crate) struct Summary {
    /// How realms are found, for each route.
    pub(crate) realms: String,
    /// All rules, in their order.
    pub(crate) rules: String,
    /// How a request that names no realm is treated.
    pub(crate) unresolved: String,
}

impl<B> Realms<B> {
    /// A summary of what it locks.
    pub(crate) fn summary(&self) -> Summary {
        let realms = self.routes.each().map(|(route, source)| match route {
            Some(route) => format!("{route}: {source}"),
            None => source.to_string(),
        });
        let rules: Vec<String> = self.rules.selectors().map(ToString::to_string).collect();
        Summary {
            realms: realms.collect::<Vec<_>>().join("; "),
            rules: if rules.is_empty() {
                "none".to_owned()
            } else {
                rules.join("; ")
            },
            unresolved: self.unresolved.to_string(),
        }
    }

    /// Rules and routes that cannot take effect, which no request can show: each a sentence with
    /// its remedy.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let of_rules = self.rules.selectors().filter_map(|rule| self.warning(rule));
        let of_routes = self.routes.each().filter_map(|(route, source)| {
            let (route, patterns) = (route?, source.realm_patterns()?);
            (!is_in_one_of(route, &patterns)).then(|| nowhere(route, &patterns))
        });
        of_rules.chain(of_routes).collect()
    }

    fn warning(&self, rule: &Selector) -> Option<String> {
        let mut patterns = Vec::new();
        for (route, source) in self.routes.each() {
            if route.is_none_or(|route| route.overlaps(rule)) {
                // Realms that are not found by patterns can be anywhere.
                patterns.extend(source.realm_patterns()?);
            }
        }
        if let Some(meant) = patterns.iter().find_map(|realm| rule.meant_below(realm)) {
            return Some(format!(
                "the rule `{rule}` leaves out the beginning that the paths of realms have: rules \
                 match the whole path; write `{meant}`"
            ));
        }
        if let Some(base) = self.removed_from(rule) {
            return Some(format!(
                "the rule `{rule}` begins with the path of the base URL `{base}`, which a proxy \
                 removes: rules match the path that arrives; leave its beginning out"
            ));
        }
        // An exempt route need not be in a realm.
        let needs_realm = rule.kind != RuleKind::Exempt && !self.can_be_of_route(rule);
        (needs_realm && !is_in_one_of(rule, &patterns)).then(|| nowhere(rule, &patterns))
    }

    /// The base URL whose path a proxy removes, and a rule begins with.
    fn removed_from(&self, rule: &Selector) -> Option<String> {
        self.routes.each().find_map(|(_, source)| match source {
            Source::Path(PathSource::Template(paths)) => paths.removed_from(&rule.pattern),
            _ => None,
        })
    }

    /// Whether a rule can be for a route that a router matches and that names realms.
    fn can_be_of_route(&self, rule: &Selector) -> bool {
        self.routes.each().any(|(_, source)| match source {
            Source::Path(PathSource::Template(paths)) => paths.are_named_in(&rule.pattern),
            _ => false,
        })
    }

    /// Whether a route that passes may be meant to be one of a realm.
    pub(crate) fn resemble(&self, route: &MatchedRoute) -> bool {
        self.routes.each().any(|(_, source)| match source {
            Source::Path(PathSource::Template(paths)) => paths.resembles(route),
            _ => false,
        })
    }

    /// Whether a router decides which requests are for a realm, if there is one.
    pub(crate) fn read_routes(&self) -> bool {
        self.routes.each().any(|(_, source)| match source {
            Source::Path(PathSource::Template(paths)) => paths.names_in_routes().is_some(),
            _ => false,
        })
    }

    /// The base URL with whose path the path of a request begins twice.
    pub(crate) fn repeated_base(&self, head: &Head<'_>) -> Option<String> {
        self.routes.each().find_map(|(_, source)| match source {
            Source::Path(PathSource::Template(paths)) => paths.repeated_base(head.path()),
            _ => None,
        })
    }
}

fn is_in_one_of(rule: &Selector, patterns: &[PathTemplate]) -> bool {
    patterns.iter().any(|realm| rule.can_be_in(realm))
}

fn nowhere(rule: &Selector, patterns: &[PathTemplate]) -> String {
    let patterns: Vec<String> = patterns
        .iter()
        .map(|it| format!("`{}`", it.source()))
        .collect();
    format!(
        "the rule `{rule}` never takes effect: no path that it fits is in a realm, whose paths \
         begin with {}; correct its pattern, or remove it",
        patterns.join(" or ")
    )
}

impl<B> Source<B> {
    /// The patterns that the whole paths of its realms begin with; `None` if they can be any.
    fn realm_patterns(&self) -> Option<Vec<PathTemplate>> {
        match self {
            Self::Path(PathSource::Template(paths)) => Some(paths.patterns()),
            _ => None,
        }
    }
}

/// How it finds realms, for people.
impl<B> fmt::Display for Source<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(PathSource::Template(paths)) => write!(f, "RealmPaths {}", paths.text()),
            Self::Path(PathSource::Mounts(_)) => f.write_str("RealmMounts"),
            Self::Head { place, .. } => f.write_str(place),
            Self::Closure(_) => f.write_str("a closure"),
            Self::Pointers(..) => f.write_str("RealmPointers into the body"),
            Self::BodyClosure(..) => f.write_str("a closure that reads the body"),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::realm::error::RealmError;
    use crate::realm::resolve::mounts::RealmMounts;
    use crate::realm::resolve::paths::RealmPaths;
    use crate::realm::resolve::resolver::RealmResolver;
    use crate::realm::rules::limits::RouteLimits;
    use crate::realm::rules::lock_rules::LockRules;
    use crate::realm::rules::methods::MethodSet;
    use crate::realm::rules::scope::Scope;
    use crate::realm::unresolved::Unresolved;
    use crate::realm::url::RealmUrl;

    fn paths() -> RealmPaths {
        RealmPaths::new("https://r.example", "/realms/{owner}/{realm}").unwrap()
    }

    fn warnings(resolver: impl Into<RealmResolver>, rules: LockRules) -> Vec<String> {
        let realms = Realms::of_heads(resolver.into()).with_head_rules(rules);
        realms.unwrap().warnings()
    }

    #[test]
    fn rules_for_no_path_of_a_realm_are_warned_of() {
        let rules = LockRules::new()
            .exempt(Method::POST, "/auth/login")
            .and_then(|rules| rules.exempt(Method::POST, "/{owner}/{realm}/_search"))
            .and_then(|rules| rules.exempt(Method::POST, "/realms/{owner}/{realm}/_find"))
            .and_then(|rules| rules.lock(Method::GET, "/_reindex"))
            .and_then(|rules| rules.scope(Method::PATCH, "/realm/{o}/{r}/x", Scope::shared()))
            .and_then(|rules| rules.scope(Method::PUT, "/{*rest}", Scope::shared()))
            .and_then(|rules| rules.limits(Method::PUT, "/realms/{o}", RouteLimits::new()))
            .unwrap();
        let found = warnings(paths(), rules.clone());
        let beginnings = [
            "the rule `exempt POST /{owner}/{realm}/_search` leaves out the beginning",
            "the rule `lock GET /_reindex` never takes effect",
            "the rule `scope PATCH /realm/{o}/{r}/x` never takes effect",
            "the rule `limits PUT /realms/{o}` never takes effect",
        ];
        assert_eq!(found.len(), beginnings.len(), "{found:#?}");
        for (warning, beginning) in found.iter().zip(beginnings) {
            assert!(warning.starts_with(beginning), "{warning}");
        }
        assert!(
            found[0].ends_with("write `/realms/{owner}/{realm}/_search`"),
            "{}",
            found[0]
        );
        assert!(
            found[1].contains("begin with `/realms/{owner}/{realm}`"),
            "{}",
            found[1]
        );
        // Mounted realms can be anywhere, and so can those of a closure.
        assert!(warnings(RealmMounts::default(), rules.clone()).is_empty());
        let anywhere =
            RealmResolver::from_fn(async |_| Err::<RealmUrl, _>(RealmError::missing("nothing")));
        let resolver = RealmResolver::from(paths()).route(Method::GET, "/_reindex", anywhere);
        assert_eq!(warnings(resolver.unwrap(), rules).len(), 3);
    }

    #[test]
    fn a_rule_with_the_path_that_a_proxy_removes_is_warned_of() {
        let rules = LockRules::new()
            .exempt(Method::POST, "/api/v1/{tenant}/{project}/_search")
            .and_then(|rules| rules.exempt(Method::POST, "/{tenant}/{project}/_find"))
            .unwrap();
        let paths = RealmPaths::new("https://r.example/api/v1", "/{tenant}/{project}").unwrap();
        let found = warnings(paths.clone().base_path_stripped(), rules.clone());
        assert_eq!(found.len(), 1, "{found:#?}");
        let part = "_search` begins with the path of the base URL `https://r.example/api/v1/`";
        assert!(found[0].contains(part), "{found:#?}");
        let found = warnings(paths, rules);
        assert_eq!(found.len(), 1, "{found:#?}");
        let part = "write `/api/v1/{tenant}/{project}/_find`";
        assert!(found[0].contains(part), "{found:#?}");
    }

    #[test]
    fn a_route_whose_resolver_finds_no_realm_there_is_warned_of() {
        let resolver = RealmResolver::from(RealmMounts::default());
        let resolver = resolver
            .route(Method::POST, "/_create", paths())
            .and_then(|resolver| resolver.route(Method::POST, "/realms/{a}/{b}/x", paths()))
            .unwrap();
        let found = warnings(resolver, LockRules::new());
        assert_eq!(found.len(), 1, "{found:#?}");
        let beginning = "the rule `route POST /_create` never takes effect";
        assert!(found[0].starts_with(beginning), "{}", found[0]);
    }

    #[test]
    fn routes_of_a_routes_resolver_are_seen() {
        let inner = RealmResolver::from(paths()).route(
            Method::POST,
            "/jobs/{job}/run",
            RealmMounts::default(),
        );
        let resolver =
            RealmResolver::from(paths()).route(Method::POST, "/jobs/{*rest}", inner.unwrap());
        let resolver = resolver.unwrap();
        let rules = LockRules::new().scope(Method::POST, "/jobs/{job}/run", Scope::shared());
        let found = warnings(resolver.clone(), rules.unwrap());
        // That of the rule would be wrong: a mounted realm may be there.
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with("the rule `route POST /jobs/{*rest}` never"));
        let summary = Realms::of_heads(resolver).summary().realms;
        assert!(
            summary
                .starts_with("route POST /jobs/{job}/run: RealmMounts; route POST /jobs/{*rest}"),
            "{summary}"
        );
    }

    #[test]
    fn a_summary_names_how_realms_are_found_and_every_rule() {
        let resolver = RealmResolver::from(paths());
        let resolver = resolver.route(Method::POST, "/_create", RealmMounts::default());
        let rules = LockRules::new()
            .exempt(Method::POST, "/realms/{owner}/{realm}/_search")
            .and_then(|rules| rules.scope(MethodSet::unsafe_methods(), "/{*x}", Scope::shared()));
        let realms = Realms::of_heads(resolver.unwrap());
        assert_eq!(realms.summary().rules, "none");
        let realms = realms.with_head_rules(rules.unwrap()).unwrap();
        let summary = realms.with_unresolved(Unresolved::Pass).summary();
        assert_eq!(
            summary.realms,
            "route POST /_create: RealmMounts; \
             RealmPaths https://r.example/realms/{owner}/{realm}"
        );
        assert_eq!(
            summary.rules,
            "exempt POST /realms/{owner}/{realm}/_search; scope unsafe /{*x}"
        );
        assert_eq!(summary.unresolved, "pass without a lock");
    }
}
