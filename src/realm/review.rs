//! Checks and a summary of a configuration, before any request comes.

use std::fmt;

use super::classify::Realms;
use super::head::Head;
use super::resolve::paths::RealmPaths;
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
        let pattern = &rule.pattern;
        if let Some(base) = self
            .routes
            .find_template(|paths| paths.removed_from(pattern))
        {
            return Some(format!(
                "the rule `{rule}` begins with the path of the base URL `{base}`, which a proxy \
                 removes: rules match the path that arrives; leave its beginning out"
            ));
        }
        // An exempt route need not be in a realm.
        let needs_realm = rule.kind != RuleKind::Exempt
            // Not where a router names the realm.
            && !self.any_template(|paths| paths.are_named_in(pattern));
        (needs_realm && !is_in_one_of(rule, &patterns)).then(|| nowhere(rule, &patterns))
    }

    fn any_template(&self, is: impl Fn(&RealmPaths) -> bool) -> bool {
        let found = self.routes.find_template(|paths| is(paths).then_some(()));
        found.is_some()
    }

    /// Whether a route that passes may be meant to be one of a realm.
    pub(crate) fn resemble(&self, route: &MatchedRoute) -> bool {
        self.any_template(|paths| paths.resembles(route))
    }

    /// Whether a router decides which requests are for a realm, if there is one.
    pub(crate) fn read_routes(&self) -> bool {
        self.any_template(RealmPaths::read_routes)
    }

    /// The base URL with whose path the path of a request begins twice.
    pub(crate) fn repeated_base(&self, head: &Head<'_>) -> Option<String> {
        self.routes
            .find_template(|paths| paths.repeated_base(head.path()))
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
