//! What a request would lock, and why, for the people who configure it.

use std::fmt;

use http::{Method, Request, Uri};

use super::claim::{Claim, Lock};
use super::classify::{Decision, Realms};
use super::error::{RealmError, shown};
use super::head::Head;
use super::key::LockKey;
use super::resolve::source::{PathSource, Source};
use super::route::MatchedRoute;
use super::rules::limits::{MaxHold, RouteLimits};
use super::url::RealmUrl;

/// How a layer treats a request, and why.
///
/// Made by [`explain`](crate::RealmWriteLockLayer::explain). Its `Display` has several lines, for
/// logs and for a first test; the functions are for assertions.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};
///
/// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
/// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms);
///
/// let write = layer.explain(&Method::PATCH, "/luke/my-realm/cards/1");
/// assert_eq!(write.realms(), ["https://realms.example.com/luke/my-realm/".parse()?]);
/// let login = layer.explain(&Method::POST, "/login");
/// assert!(login.refusal().is_some(), "{login}");
/// assert!(layer.explain(&Method::GET, "/luke/my-realm/cards/1").passes());
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
///
/// It sees a method and a URL, and no other part of a request. Where a header, an extension, the
/// body or a closure names what is locked, [`needs_lookup`](Self::needs_lookup) and
/// [`needs_body`](Self::needs_body) report that. A header that overrides the method, and the
/// `Destination` of a MOVE or COPY, are taken to be missing. So is axum's router:
/// [`RealmPaths`](crate::RealmPaths) are explained by the path, although a router may send the
/// request to a route that has no realm. With the feature `axum`, `explain_route` explains a route.
#[derive(Debug, Clone)]
pub struct Explanation {
    method: Method,
    uri: String,
    outcome: Outcome,
    /// Why it is locked or passes.
    rule: String,
    /// How its realm is found, if it is locked.
    source: Option<String>,
    /// The rule that narrows or shares its realm.
    scope: Option<String>,
    limits: Option<(String, RouteLimits)>,
    /// Whether the keys of realms are the application's own, which only a request is given.
    has_realm_keys: bool,
    /// The facts that the layer knows only when the request comes.
    at_run_time: Vec<String>,
}

#[derive(Debug, Clone)]
enum Outcome {
    Passes,
    Locks(Claim),
    NeedsLookup,
    NeedsBody,
    Refused(RealmError),
}

impl<B: Copy> Realms<B> {
    /// The decision of [`classify`](Self::classify) on a request, and its reasons. `uri` is a path,
    /// or a URL with a host; `route` the route that axum's router sends the request to, if it is
    /// explained for one.
    pub(crate) fn explain(&self, method: &Method, uri: &str, route: Option<&str>) -> Explanation {
        let mut explanation = Explanation {
            method: method.clone(),
            uri: shown(uri),
            outcome: Outcome::Passes,
            rule: "none, since it is no request".to_owned(),
            source: None,
            scope: None,
            limits: None,
            has_realm_keys: false,
            at_run_time: Vec::new(),
        };
        let request = match request(method, uri) {
            Ok(request) => request,
            Err(error) => {
                explanation.outcome = Outcome::Refused(error);
                return explanation;
            }
        };
        let head = Head::of(&request);
        let route = route.map(|route| MatchedRoute::explained(route, head.path()));
        let route = match route.transpose() {
            Ok(route) => route,
            Err(error) => {
                explanation.outcome = Outcome::Refused(error);
                return explanation;
            }
        };
        let head = head.on_route(route.as_ref());
        let decision = self.classify(&head);
        let readings = self.rules.readings(&head);
        let judged = self.rules.judge(&readings, head.path());
        explanation.rule = match judged.route {
            Some(route) => format!("`{route}`"),
            None if judged.locked => format!("none; {method} is not a safe method"),
            None => format!("none; {method} is a safe method"),
        };
        if let Some(header) = self.rules.override_header() {
            let line = format!("the header `{header}` may override the method");
            explanation.at_run_time.push(line);
        }
        if !judged.locked {
            return explanation;
        }
        let source = self
            .routes
            .source(readings.iter(), readings.unclear, head.path());
        explanation.source = source.as_ref().ok().map(ToString::to_string);
        let is_of_path = matches!(source, Ok(Source::Path(_)) | Err(_));
        let scope = self.rules.scope_of(&readings, head.path());
        explanation.scope = scope.map(|rule| rule.selector.to_string());
        let limits = self.rules.limits_of(&head);
        explanation.limits = limits.map(|rule| (rule.selector.to_string(), rule.given.clone()));
        if readings.have_destination() {
            let line = "the header `Destination` names what is locked as well";
            explanation.at_run_time.push(line.to_owned());
        }
        explanation.outcome = match decision {
            Decision::Claim(claim) => Outcome::Locks(claim),
            Decision::NeedsBody(..) => Outcome::NeedsBody,
            Decision::NeedsLookup(_) => Outcome::NeedsLookup,
            // A real request may have what is missing here.
            Decision::Pass if !is_of_path => Outcome::NeedsLookup,
            Decision::Reject(error) if !is_of_path && error.is_absent() => Outcome::NeedsLookup,
            Decision::OtherRoute => {
                explanation.rule += ", but its route lacks parameters that name a realm, and such \
                                     routes pass";
                Outcome::Passes
            }
            Decision::Pass => {
                explanation.rule += ", but it names no realm, and such requests pass";
                Outcome::Passes
            }
            Decision::Reject(error) => {
                if matches!(error, RealmError::Origin { .. }) && uri.starts_with('/') {
                    let line = "the host counts; explain a URL with its host";
                    explanation.at_run_time.push(line.to_owned());
                }
                Outcome::Refused(error)
            }
        };
        if let (None, Ok(source)) = (&route, &source) {
            explanation.at_run_time.extend(by_route(source));
        }
        if let Some(base) = self.repeated_base(&head) {
            let line = format!("the log warns: the path begins with that of `{base}` twice");
            explanation.at_run_time.push(line);
        }
        explanation
    }
}

/// What axum's router changes for a source, if it does.
fn by_route<B>(source: &Source<B>) -> Option<String> {
    let Source::Path(PathSource::Template(paths)) = source else {
        return None;
    };
    let names = paths.names_in_routes()?;
    Some(format!(
        "in axum's router only routes with {names} are locked, and all others pass; see \
         `explain_route`"
    ))
}

fn request(method: &Method, uri: &str) -> Result<Request<()>, RealmError> {
    let parsed: Uri = uri.parse().map_err(|error| {
        RealmError::unresolved(format_args!(
            "`{uri}` is neither a path nor a URL ({error}); write `/owner/realm/card` or \
             `https://realms.example.com/owner/realm/card`"
        ))
    })?;
    let mut request = Request::new(());
    *request.method_mut() = method.clone();
    *request.uri_mut() = parsed;
    Ok(request)
}

impl Explanation {
    /// The same for a layer that is switched off: the request passes.
    pub(crate) fn switched_off(self) -> Self {
        Self {
            outcome: Outcome::Passes,
            rule: "none; the layer is switched off with `enabled(false)`".to_owned(),
            at_run_time: Vec::new(),
            ..self
        }
    }

    /// The same where realms have other keys than those of their URLs.
    pub(crate) fn with_realm_keys(self) -> Self {
        Self {
            has_realm_keys: true,
            ..self
        }
    }

    /// Whether the request passes without a lock.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self.outcome, Outcome::Passes)
    }

    /// The claim of the request; `None` if it passes or is refused, or if more than its method and
    /// URL is needed to know.
    #[must_use]
    pub fn claim(&self) -> Option<&Claim> {
        match &self.outcome {
            Outcome::Locks(claim) => Some(claim),
            _ => None,
        }
    }

    /// The realms that the request locks, whole or in part, as far as [`claim`](Self::claim) knows
    /// them.
    #[must_use]
    pub fn realms(&self) -> &[RealmUrl] {
        self.claim().map_or(&[], Claim::realms)
    }

    /// The keys that the request locks, in the order in which they are taken, as far as
    /// [`claim`](Self::claim) knows them; without those that
    /// [`realm_keys`](crate::PostgresBuilder::realm_keys) gives.
    #[must_use]
    pub fn lock_keys(&self) -> Vec<LockKey> {
        self.locks().map(|lock| lock.key).collect()
    }

    fn locks(&self) -> impl Iterator<Item = &Lock> {
        let claims = self.claim().into_iter();
        claims.flat_map(move |claim| {
            let of_realm = |lock: &Lock| claim.keyed_realms().any(|(_, key)| key == lock.key);
            let locks = claim.locks().iter();
            locks.filter(move |lock| !self.has_realm_keys || !of_realm(lock))
        })
    }

    /// Why the request is rejected with 400 `realm-unresolved`, if it is.
    #[must_use]
    pub fn refusal(&self) -> Option<&RealmError> {
        match &self.outcome {
            Outcome::Refused(error) => Some(error),
            _ => None,
        }
    }

    /// Whether a closure, a header, an extension or the route that axum's router has matched has to
    /// be asked what is locked.
    #[must_use]
    pub fn needs_lookup(&self) -> bool {
        matches!(self.outcome, Outcome::NeedsLookup)
    }

    /// Whether the body names what is locked.
    #[must_use]
    pub fn needs_body(&self) -> bool {
        matches!(self.outcome, Outcome::NeedsBody)
    }

    /// Which rule decides whether the request is locked: its text in backticks, such as
    /// `` `exempt POST /{owner}/{realm}/_search` ``, or a sentence if there is none.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

/// The number or pair that PostgreSQL gets, and how `pg_locks` shows it.
fn write_key(f: &mut fmt::Formatter<'_>, lock: &Lock) -> fmt::Result {
    let mode = if lock.is_shared() {
        "shared"
    } else {
        "exclusive"
    };
    let bits = lock.key.bits().cast_unsigned();
    let (class, object) = (bits >> 32, bits & 0xffff_ffff);
    let key = lock.key;
    let of_pair = lock.key.pair().map_or("", |_| ", objsubid 2");
    write!(
        f,
        "\n  lock key: {key}, {mode} (in pg_locks: classid {class}, objid {object}{of_pair})"
    )
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match &self.outcome {
            Outcome::Passes => "passes without a lock",
            Outcome::Locks(_) => "is locked",
            Outcome::NeedsLookup => "is locked; what it locks is looked up when it comes",
            Outcome::NeedsBody => "is locked; what it locks is named in its body",
            Outcome::Refused(_) => "is rejected with 400",
        };
        write!(
            f,
            "{} {} {outcome}\n  rule: {}",
            self.method, self.uri, self.rule
        )?;
        if let Outcome::Refused(error) = &self.outcome {
            write!(f, "\n  why: {error}")?;
        }
        if let Some(source) = self.source.as_ref().filter(|_| !self.passes()) {
            write!(f, "\n  realm found by: {source}")?;
        }
        if let Some(claim) = self.claim().filter(|it| !it.realms().is_empty()) {
            write!(f, "\n  locks: {claim}")?;
            if self.has_realm_keys {
                f.write_str("\n  lock key of a realm: what `realm_keys` gives then")?;
            }
        }
        for lock in self.locks() {
            write_key(f, lock)?;
        }
        if self.refusal().is_none() && !self.passes() {
            match &self.scope {
                Some(scope) => write!(f, "\n  scope: `{scope}`")?,
                None => f.write_str("\n  scope: none; the realm as a whole")?,
            }
            f.write_str("\n  limits: ")?;
            match &self.limits {
                Some((rule, limits)) => write!(f, "`{rule}`{}", Limited(limits))?,
                None => f.write_str("the layer's")?,
            }
        }
        for line in &self.at_run_time {
            write!(f, "\n  at run time: {line}")?;
        }
        Ok(())
    }
}

/// The limits that a route sets.
struct Limited<'a>(&'a RouteLimits);

impl fmt::Display for Limited<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteLimits {
            acquire_timeout,
            max_hold,
            busy_status,
            busy_detail,
        } = self.0;
        if let Some(timeout) = acquire_timeout {
            write!(f, ", acquire_timeout {timeout:?}")?;
        }
        match max_hold {
            Some(MaxHold(Some(max_hold))) => write!(f, ", max_hold {max_hold:?}")?,
            Some(MaxHold(None)) => f.write_str(", no max_hold")?,
            None => {}
        }
        if let Some(status) = busy_status {
            write!(f, ", busy_status {}", status.as_u16())?;
        }
        if let Some(detail) = busy_detail {
            write!(f, ", busy_detail {detail:?}")?;
        }
        Ok(())
    }
}
