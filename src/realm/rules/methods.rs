use std::fmt;

use http::Method;

/// The methods that the IANA HTTP method registry marks safe, so that requests with them pass.
///
/// PRI is marked safe too, but no request has it: it belongs to the preface of an HTTP/2 connection
/// (RFC 9113, section 3.4).
const SAFE: [&str; 8] = [
    "GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH",
];

/// The other methods of the IANA HTTP method registry.
const UNSAFE: [&str; 32] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPPATCH",
    "PUT",
    "REBIND",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

pub(super) fn is_safe(method: &Method) -> bool {
    SAFE.contains(&method.as_str())
}

/// The methods that a rule is for: one, several, or all that are not safe.
///
/// `Method`, `[Method; N]`, `&[Method]` and `Vec<Method>` become one by `into()`, so the functions
/// that take a set take each of these.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::{LockRules, MethodSet, Scope};
///
/// let card = "/{owner}/{realm}/{*card}";
/// let rules = LockRules::new()
///     .exempt(Method::POST, "/{owner}/{realm}/_search")?
///     .scope([Method::PUT, Method::PATCH], card, Scope::resource())?
///     .scope(MethodSet::unsafe_methods(), card, Scope::shared())?;
/// # let _ = rules;
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
///
/// Methods are case-sensitive (RFC 9110, section 9.1). A rule for `post` is refused. A method that
/// the IANA HTTP method registry does not have is logged at WARN, with the registered one that is
/// nearest: your own methods are right, `PATHC` is not. A rule without any method is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodSet(Set);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Set {
    Listed(Box<[Method]>),
    Unsafe,
}

impl MethodSet {
    /// Every method that is not safe, known or not: those that a layer locks without any rule.
    #[must_use]
    pub const fn unsafe_methods() -> Self {
        Self(Set::Unsafe)
    }

    /// Whether a request with this method is meant.
    pub(in crate::realm) fn contains(&self, method: &Method) -> bool {
        match &self.0 {
            Set::Listed(methods) => methods.contains(method),
            Set::Unsafe => !is_safe(method),
        }
    }

    /// The methods by name; `None` for all that are not safe.
    pub(super) fn listed(&self) -> Option<&[Method]> {
        match &self.0 {
            Set::Listed(methods) => Some(methods),
            Set::Unsafe => None,
        }
    }

    /// Refuses a set that fits no request that its author means.
    ///
    /// # Errors
    ///
    /// What is wrong, and the remedy.
    pub(in crate::realm) fn check(&self) -> Result<(), String> {
        let methods = match &self.0 {
            Set::Unsafe => return Ok(()),
            Set::Listed(methods) => methods,
        };
        if methods.is_empty() {
            return Err(
                "it has no method: name at least one, or all that are not safe \
                 (`MethodSet::unsafe_methods()`, in a file \"unsafe\")"
                    .into(),
            );
        }
        for method in methods {
            let upper = method.as_str().to_ascii_uppercase();
            if *upper != *method.as_str() && registered().any(|known| known == upper) {
                return Err(format!(
                    "methods are case-sensitive, and no client sends `{method}`: write `{upper}`"
                ));
            }
        }
        Ok(())
    }

    /// The methods that no registry has, each with the registered one that may have been meant.
    pub(super) fn unregistered(&self) -> impl Iterator<Item = (&Method, Option<&'static str>)> {
        let listed = self.listed().unwrap_or_default().iter();
        listed
            .filter(|method| registered().all(|known| known != method.as_str()))
            .map(|method| (method, nearest(method.as_str())))
    }
}

fn registered() -> impl Iterator<Item = &'static str> {
    SAFE.into_iter().chain(UNSAFE)
}

/// The registered method that is so near that it must have been meant: one letter in three may be
/// another one.
fn nearest(method: &str) -> Option<&'static str> {
    let method = method.to_ascii_uppercase();
    let known = registered().map(|known| (distance(&method, known), known));
    let (distance, known) = known.min_by_key(|(distance, _)| *distance)?;
    (distance <= known.len().div_ceil(3)).then_some(known)
}

/// How many bytes must be inserted, removed, replaced or swapped with the next to make one text of
/// the other (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (at, byte) in one.iter().enumerate() {
        let mut row = vec![at + 1];
        for (to, wanted) in other.iter().enumerate() {
            let replaced = last[to] + usize::from(byte != wanted);
            let mut best = replaced.min(last[to + 1] + 1).min(row[to] + 1);
            let is_swap = at > 0 && to > 0 && *byte == other[to - 1] && one[at - 1] == *wanted;
            if is_swap {
                best = best.min(before[to - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

impl From<Method> for MethodSet {
    fn from(method: Method) -> Self {
        [method].into()
    }
}

impl<const N: usize> From<[Method; N]> for MethodSet {
    fn from(methods: [Method; N]) -> Self {
        Self(Set::Listed(methods.into()))
    }
}

impl From<Vec<Method>> for MethodSet {
    fn from(methods: Vec<Method>) -> Self {
        Self(Set::Listed(methods.into()))
    }
}

impl From<&[Method]> for MethodSet {
    fn from(methods: &[Method]) -> Self {
        Self(Set::Listed(methods.into()))
    }
}

/// `PUT, PATCH`, or `unsafe`, as a configuration file has it.
impl fmt::Display for MethodSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(methods) = self.listed() else {
            return f.write_str("unsafe");
        };
        if methods.is_empty() {
            return f.write_str("(no method)");
        }
        let mut separator = "";
        for method in methods {
            write!(f, "{separator}{method}")?;
            separator = ", ";
        }
        Ok(())
    }
}
