//! Which requests a rule is for, and what can be seen of that before any request comes.

use std::fmt;

use http::Method;

use super::methods::MethodSet;
use crate::config::ConfigError;
use crate::realm::error::shown;
use crate::realm::template::{PathTemplate, Segment};

/// The effect of a rule on its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::realm) enum RuleKind {
    Exempt,
    Lock,
    Scope,
    Limits,
    /// A resolver's route.
    Route,
}

/// The requests that a rule is for: those with one of its methods and a path that fits its pattern.
#[derive(Debug, Clone)]
pub(in crate::realm) struct Selector {
    pub(in crate::realm) kind: RuleKind,
    pub(in crate::realm) methods: MethodSet,
    pub(in crate::realm) pattern: PathTemplate,
}

impl Selector {
    /// # Errors
    ///
    /// [`ConfigError::InvalidTemplate`] for a bad pattern, [`ConfigError::InvalidRule`] for no method
    /// or one in another letter case.
    pub(in crate::realm) fn parse(
        kind: RuleKind,
        methods: MethodSet,
        pattern: &str,
    ) -> Result<Self, ConfigError> {
        let pattern = PathTemplate::parse(pattern)?;
        let selector = Self {
            kind,
            methods,
            pattern,
        };
        match selector.methods.check() {
            Ok(()) => Ok(selector),
            Err(problem) => Err(selector.refused(problem)),
        }
    }

    /// The same text for the same methods in another order.
    pub(in crate::realm) fn fingerprint(&self) -> String {
        let methods = match self.methods.listed() {
            Some(methods) => sorted(methods).join(", "),
            None => self.methods.to_string(),
        };
        format!("{} {methods} {}", self.kind, self.pattern.source())
    }

    /// Whether it is for requests with this method.
    pub(in crate::realm) fn is_for(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }

    /// The same, where GET stands for HEAD too: routers answer both by the same handler.
    pub(in crate::realm) fn is_for_or_as_get(&self, method: &Method) -> bool {
        self.is_for(method) || (method == Method::HEAD && self.is_for(&Method::GET))
    }

    /// Checks it against the rules that come before it and are tried before it. Logs methods that
    /// no registry has.
    ///
    /// # Errors
    ///
    /// [`ConfigError::InvalidRule`] if it can never decide anything that the earlier ones do not.
    pub(in crate::realm) fn admitted<'a>(
        &self,
        earlier: impl Iterator<Item = &'a Self>,
    ) -> Result<(), ConfigError> {
        let earlier: Vec<&Self> = earlier.collect();
        let mut taking: Vec<&Self> = Vec::new();
        for method in self.each_method() {
            let takes = |other: &&Self| {
                let for_all = match method {
                    Some(method) => other.is_for(method),
                    None => other.methods.listed().is_none(),
                };
                for_all && other.takes_paths_of(self)
            };
            match earlier.iter().copied().find(takes) {
                Some(other) if taking.iter().any(|known| std::ptr::eq(*known, other)) => {}
                Some(other) => taking.push(other),
                None => {
                    self.warn_of_methods();
                    return Ok(());
                }
            }
        }
        let taking: Vec<String> = taking.iter().map(|other| format!("`{other}`")).collect();
        let (rules, takes, those) = match taking.len() {
            1 => ("rule", "takes", "that one"),
            _ => ("rules", "take", "those"),
        };
        Err(self.refused(format!(
            "it is never reached, because the earlier {rules} {} {takes} every request that it is \
             for; add it before {those}, or remove it",
            taking.join(" and ")
        )))
    }

    /// Its methods by name, or `None` once for all that are not safe.
    fn each_method(&self) -> impl Iterator<Item = Option<&Method>> {
        let listed = self.methods.listed();
        let all = listed.is_none().then_some(None);
        listed.into_iter().flatten().map(Some).chain(all)
    }

    /// Whether this one, being earlier, decides about every path for which the later one is meant.
    ///
    /// Between exempt routes a slash at the end makes another path. All other rules take any
    /// spelling of a path, or refuse the other spellings.
    fn takes_paths_of(&self, later: &Self) -> bool {
        let (own, other) = (self.pattern.segments(), later.pattern.segments());
        match self.kind {
            RuleKind::Exempt => covers(own, other),
            _ => covers(without_slash(own), without_slash(other)),
        }
    }

    fn warn_of_methods(&self) {
        for (method, nearest) in self.methods.unregistered() {
            let method = shown(method.as_str());
            let remedy = match nearest {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => "it is right only if your clients send it".to_owned(),
            };
            tracing::warn!(
                %method, rule = %self, remedy,
                "a rule is for a method that the HTTP method registry does not have"
            );
        }
    }

    fn refused(&self, problem: String) -> ConfigError {
        ConfigError::InvalidRule {
            rule: shown(&self.to_string()),
            problem,
        }
    }

    /// Whether a path that fits it can begin with a path that fits `realm`.
    pub(in crate::realm) fn can_be_in(&self, realm: &PathTemplate) -> bool {
        let (own, realm) = (self.pattern.segments(), without_slash(realm.segments()));
        meets(own, realm)
    }

    /// The pattern that was meant, where this one is written for paths from which the beginning of
    /// `realm`, its literal segments, is taken away.
    pub(in crate::realm) fn meant_below(&self, realm: &PathTemplate) -> Option<String> {
        let (own, realm) = (self.pattern.segments(), without_slash(realm.segments()));
        let is_literal = |segment: &&Segment| matches!(segment, Segment::Literal(_));
        let literals = realm.iter().take_while(is_literal).count();
        let (base, rest) = realm.split_at(literals);
        let is_base_missing = !base.is_empty() && !own.starts_with(base);
        let is_named_so = own.starts_with(rest) || !meets(own, realm);
        let is_meant = is_base_missing && is_named_so && has_shape_of(own, rest);
        is_meant.then(|| {
            let base = base.iter().filter_map(|segment| match segment {
                Segment::Literal(text) => Some(format!("/{text}")),
                _ => None,
            });
            base.collect::<String>() + self.pattern.source()
        })
    }

    /// Whether some path fits both.
    pub(in crate::realm) fn overlaps(&self, other: &Self) -> bool {
        let own = without_slash(self.pattern.segments());
        let other = without_slash(other.pattern.segments());
        let is_as_long = own.len() == other.len() || ends_in_rest(own) || ends_in_rest(other);
        is_as_long && (meets(own, other) || meets(other, own))
    }
}

fn without_slash(segments: &[Segment]) -> &[Segment] {
    match segments.split_last() {
        Some((Segment::TrailingSlash, before)) => before,
        _ => segments,
    }
}

fn ends_in_rest(segments: &[Segment]) -> bool {
    matches!(segments.last(), Some(Segment::Rest(_)))
}

/// Whether every path that fits `narrow` fits `wide`.
fn covers(wide: &[Segment], narrow: &[Segment]) -> bool {
    for (at, wanted) in wide.iter().enumerate() {
        let fits = match (wanted, narrow.get(at)) {
            // One segment at least, and a slash at the end is none.
            (Segment::Rest(_), Some(given)) => return *given != Segment::TrailingSlash,
            (Segment::Literal(wanted), Some(Segment::Literal(given))) => wanted == given,
            (Segment::Parameter(_), Some(Segment::Literal(_) | Segment::Parameter(_)))
            | (Segment::TrailingSlash, Some(Segment::TrailingSlash)) => true,
            _ => false,
        };
        if !fits {
            return false;
        }
    }
    wide.len() == narrow.len()
}

/// Whether a path that fits `long` can begin with one that fits `short`.
fn meets(long: &[Segment], short: &[Segment]) -> bool {
    for (at, wanted) in short.iter().enumerate() {
        let fits = match (wanted, long.get(at)) {
            (_, Some(Segment::Rest(_))) | (Segment::Rest(_), Some(_)) => return true,
            (Segment::Literal(wanted), Some(Segment::Literal(given))) => wanted == given,
            (_, Some(Segment::TrailingSlash) | None) => false,
            (_, Some(_)) => true,
        };
        if !fits {
            return false;
        }
    }
    true
}

/// Whether it begins with the parameters and literals of the pattern of a realm, which has some.
fn has_shape_of(own: &[Segment], realm: &[Segment]) -> bool {
    let is_same = |(own, realm): (&Segment, &Segment)| match (own, realm) {
        (Segment::Parameter(_), Segment::Parameter(_)) => true,
        (own, realm) => own == realm,
    };
    !realm.is_empty() && own.len() >= realm.len() && own.iter().zip(realm).all(is_same)
}

/// The methods of a set, in one order.
pub(super) fn sorted(methods: &[Method]) -> Vec<&str> {
    let mut methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
    methods.sort_unstable();
    methods.dedup();
    methods
}

/// `exempt POST /{owner}/{realm}/_search`
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, methods) = (self.kind, &self.methods);
        write!(f, "{kind} {methods} {}", self.pattern.source())
    }
}

/// The name of the method that makes such a rule.
impl fmt::Display for RuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exempt => "exempt",
            Self::Lock => "lock",
            Self::Scope => "scope",
            Self::Limits => "limits",
            Self::Route => "route",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: RuleKind, methods: impl Into<MethodSet>, pattern: &str) -> Selector {
        Selector::parse(kind, methods.into(), pattern).unwrap()
    }

    /// Whether the later rule is refused.
    fn is_dead(earlier: &[Selector], later: &Selector) -> bool {
        later.admitted(earlier.iter()).is_err()
    }

    #[test]
    fn a_rule_that_an_earlier_one_hides_is_refused() {
        use RuleKind::{Exempt, Lock, Route, Scope};
        for (earlier, pattern, later, hidden, is_hidden) in [
            (Exempt, "/{o}/{*rest}", Lock, "/{o}/x", true),
            (Exempt, "/{o}/{r}", Exempt, "/{a}/x", true),
            (
                Lock,
                "/{o}/{r}/{*rest}",
                Exempt,
                "/{o}/{r}/{x}/_search",
                true,
            ),
            (Lock, "/{o}/{r}/_search", Exempt, "/{o}/{r}/{*rest}", false),
            (Exempt, "/{o}/{r}", Exempt, "/{o}/{r}/x", false),
            (Exempt, "/a/{r}", Exempt, "/{o}/{r}", false),
            // A slash at the end is another path for exempt routes, and for no others.
            (Exempt, "/{o}/{r}", Exempt, "/{o}/{r}/", false),
            (Lock, "/{o}/{r}", Exempt, "/{o}/{r}/", true),
            (Scope, "/{o}/{r}/", Scope, "/{o}/{r}", true),
            (Route, "/{o}/{r}", Route, "/{o}/{r}/", true),
            // The rest of a path is one segment at least.
            (Scope, "/{o}/{*rest}", Scope, "/{o}", false),
            (Scope, "/{o}/{*rest}", Scope, "/{o}/", false),
            (Exempt, "/{o}/{*rest}", Exempt, "/{o}/", false),
            (Scope, "/{*rest}", Scope, "/", false),
            (Scope, "/{o}/{*rest}", Scope, "/{o}/{r}/{*rest}", true),
            (Scope, "/{o}/{r}/{*rest}", Scope, "/{o}/{*rest}", false),
            (Scope, "/{o}/{r}/{x}", Scope, "/{o}/{r}/{*rest}", false),
            (Scope, "/", Scope, "/", true),
        ] {
            let earlier = [rule(earlier, Method::POST, pattern)];
            let later = rule(later, Method::POST, hidden);
            assert_eq!(
                is_dead(&earlier, &later),
                is_hidden,
                "{} {later}",
                earlier[0]
            );
        }
    }

    #[test]
    fn a_rule_is_hidden_only_if_each_of_its_methods_is() {
        let earlier = [
            rule(RuleKind::Scope, Method::PUT, "/{o}/{*rest}"),
            rule(RuleKind::Scope, [Method::PATCH, Method::POST], "/{o}/{*r}"),
        ];
        for (methods, is_hidden) in [
            (MethodSet::from([Method::PUT, Method::PATCH]), true),
            ([Method::PUT, Method::DELETE].into(), false),
            (MethodSet::unsafe_methods(), false),
        ] {
            let later = rule(RuleKind::Scope, methods, "/{o}/x");
            assert_eq!(is_dead(&earlier, &later), is_hidden, "{later}");
        }
        let all = [rule(
            RuleKind::Scope,
            MethodSet::unsafe_methods(),
            "/{o}/{*r}",
        )];
        for (methods, is_hidden) in [
            (MethodSet::from(Method::PUT), true),
            (MethodSet::unsafe_methods(), true),
            (Method::GET.into(), false),
        ] {
            let later = rule(RuleKind::Scope, methods, "/{o}/x");
            assert_eq!(is_dead(&all, &later), is_hidden, "{later}");
        }
        let both = rule(RuleKind::Scope, [Method::PUT, Method::PATCH], "/{o}/x");
        assert_eq!(
            both.admitted(earlier.iter()).unwrap_err().to_string(),
            "the rule `scope PUT, PATCH /{o}/x` cannot be used: it is never reached, because the \
             earlier rules `scope PUT /{o}/{*rest}` and `scope PATCH, POST /{o}/{*r}` take every \
             request that it is for; add it before those, or remove it"
        );
    }

    #[test]
    fn a_rule_can_be_for_paths_of_realms_or_for_none() {
        let realm = PathTemplate::parse("/api/v1/{tenant}/{project}/").unwrap();
        for (pattern, can, meant) in [
            ("/api/v1/{t}/{p}/_search", true, None),
            ("/{*rest}", true, None),
            ("/api/{*rest}", true, None),
            ("/{a}/{b}/{c}/{d}", true, None),
            ("/api/v1/{t}", false, None),
            ("/api/v1/{t}/", false, None),
            ("/auth/login", false, None),
            ("/{x}/login", false, None),
            ("/health", false, None),
            ("/{t}/{p}/_search", false, Some("/api/v1/{t}/{p}/_search")),
            // It may be in a realm, and yet it is named as the realms are below the base path.
            (
                "/{tenant}/{project}/docs/{id}",
                true,
                Some("/api/v1/{tenant}/{project}/docs/{id}"),
            ),
        ] {
            let rule = rule(RuleKind::Exempt, Method::POST, pattern);
            assert_eq!(rule.can_be_in(&realm), can, "{pattern}");
            assert_eq!(rule.meant_below(&realm).as_deref(), meant, "{pattern}");
        }
        let realm = PathTemplate::parse("/{tenant}/{project}").unwrap();
        let rule = rule(RuleKind::Exempt, Method::POST, "/{project}/x");
        assert!(rule.meant_below(&realm).is_none());
    }
}
