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
