use http::Method;

use super::RealmError;
use super::path::is_unambiguous;
use super::template::PathTemplate;

/// Which requests are locked, by method and path.
///
/// By default the safe methods (GET, HEAD, OPTIONS, TRACE, QUERY; RFC 9110 section 9.2.1) pass, and every other method,
/// known or not, is locked. Routes are exceptions to that; they are tried in the order they were added, and the first that
/// fits decides.
///
/// Route patterns are written as in axum: `{name}` is one segment, `{*name}` at the end one or more.
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
#[derive(Debug, Clone, Default)]
pub struct LockRules {
    routes: Vec<Route>,
}

#[derive(Debug, Clone)]
struct Route {
    method: Method,
    pattern: PathTemplate,
    locked: bool,
}

impl LockRules {
    /// The default rules: safe methods pass, all others are locked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a route pass although its method is not safe: a search that is a POST.
    ///
    /// The path must fit the pattern to the letter. A spelling that only decodes to it, or a path that two servers could
    /// read differently, stays locked: a router may send it to a handler that writes.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidTemplate`] for a bad pattern.
    pub fn exempt(self, method: Method, pattern: &str) -> Result<Self, RealmError> {
        self.route(method, pattern, false)
    }

    /// Locks a route although its method is safe: a GET that writes.
    ///
    /// Every spelling that decodes to the pattern is locked, with or without a slash at its end. GET stands for HEAD too:
    /// routers answer it by the same handler.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidTemplate`] for a bad pattern.
    pub fn lock(self, method: Method, pattern: &str) -> Result<Self, RealmError> {
        self.route(method, pattern, true)
    }

    fn route(mut self, method: Method, pattern: &str, locked: bool) -> Result<Self, RealmError> {
        let pattern = PathTemplate::parse(pattern)?;
        self.routes.push(Route {
            method,
            pattern,
            locked,
        });
        Ok(self)
    }

    /// Whether a request with this method and raw path is locked. Allocates nothing for a safe method.
    #[must_use]
    pub fn locks(&self, method: &Method, path: &str) -> bool {
        self.routes
            .iter()
            .filter(|route| route.is_for(method))
            .find_map(|route| route.verdict(path))
            .unwrap_or_else(|| !method.is_safe())
    }
}

impl Route {
    fn is_for(&self, method: &Method) -> bool {
        let head_of_locked_get =
            self.locked && self.method == Method::GET && method == Method::HEAD;
        self.method == *method || head_of_locked_get
    }

    fn verdict(&self, path: &str) -> Option<bool> {
        let fits = if self.locked {
            let without_slash = path.strip_suffix('/').unwrap_or(path);
            self.pattern.matches_decoded(path) || self.pattern.matches_decoded(without_slash)
        } else {
            self.pattern.matches_exactly(path) && is_unambiguous(path)
        };
        fits.then_some(self.locked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_methods_pass_and_all_others_are_locked() {
        let rules = LockRules::new();
        for (method, locked) in [
            ("GET", false),
            ("HEAD", false),
            ("OPTIONS", false),
            ("TRACE", false),
            ("QUERY", false),
            ("POST", true),
            ("PUT", true),
            ("PATCH", true),
            ("DELETE", true),
            ("CONNECT", true),
            ("PROPPATCH", true),
            ("get", true),
        ] {
            let parsed = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(rules.locks(&parsed, "/a/b/c"), locked, "{method}");
        }
    }

    #[test]
    fn only_the_plain_spelling_is_exempt() {
        let rules = LockRules::new()
            .exempt(Method::POST, "/{owner}/{realm}/_search")
            .unwrap();
        assert!(!rules.locks(&Method::POST, "/a/b/_search"));
        for path in [
            "/a/b/%5Fsearch",
            "/a/b/c/_search",
            "/a/../_search",
            "/a/%2e%2e/_search",
            "/a/b/_search/",
            "/a/b/_SEARCH",
        ] {
            assert!(rules.locks(&Method::POST, path), "{path}");
        }
        assert!(rules.locks(&Method::PUT, "/a/b/_search"));
    }

    #[test]
    fn every_spelling_of_a_locked_route_is_locked() {
        let rules = LockRules::new()
            .lock(Method::GET, "/{owner}/{realm}/_reindex")
            .unwrap();
        assert!(rules.locks(&Method::GET, "/a/b/_reindex"));
        assert!(rules.locks(&Method::GET, "/a/b/%5Freindex"));
        assert!(rules.locks(&Method::GET, "/a/b/_reindex/"));
        assert!(rules.locks(&Method::HEAD, "/a/b/_reindex"));
        assert!(!rules.locks(&Method::HEAD, "/a/b/c"));
        assert!(!rules.locks(&Method::OPTIONS, "/a/b/_reindex"));
        assert!(!rules.locks(&Method::GET, "/a/b/c"));
    }

    #[test]
    fn the_first_route_that_fits_decides() {
        let rules = LockRules::new()
            .lock(Method::POST, "/{owner}/{realm}/_search")
            .unwrap()
            .exempt(Method::POST, "/{owner}/{realm}/{*rest}")
            .unwrap();
        assert!(rules.locks(&Method::POST, "/a/b/_search"));
        assert!(!rules.locks(&Method::POST, "/a/b/other"));
    }
}
