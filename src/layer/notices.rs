//! Warnings that clients can cause again and again: one a minute for each cause.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::realm::claim::Claim;
use crate::realm::error::RealmError;

/// The pause between two warnings of one cause; in between it is logged at DEBUG.
const QUIET: Duration = Duration::from_secs(60);

/// The most causes that are counted separately. There are fewer, unless an application makes up
/// errors.
const MOST_CAUSES: usize = 64;

/// The warnings that a layer has logged. Shared by all clones of the layer and by its services.
#[derive(Debug, Default)]
pub(super) struct Notices {
    started: AtomicBool,
    by_path: AtomicBool,
    causes: Mutex<HashMap<Cause, Seen>>,
    /// Routes of a router that were seen to have no realm: no more than the router has.
    other_routes: RwLock<HashSet<Box<str>>>,
}

/// Warnings with the same cause are logged together. It never contains a client's text, so there
/// are few.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Cause {
    name: &'static str,
    /// A part of the configuration.
    of: Option<Box<str>>,
}

#[derive(Debug)]
struct Seen {
    warned: Instant,
    /// How often it happened since.
    suppressed: u64,
}

/// Logs at WARN if it is due, else at DEBUG.
macro_rules! notice {
    ($due:expr, $($field:tt)*) => {
        match $due {
            Some(suppressed) => tracing::warn!(suppressed, $($field)*),
            None => tracing::debug!($($field)*),
        }
    };
}

impl Notices {
    /// Whether this is the first call: a layer logs its start only once.
    pub(super) fn is_start(&self) -> bool {
        !self.started.swap(true, Ordering::Relaxed)
    }

    /// A request was rejected, because its realm could not be determined.
    pub(super) fn rejected(&self, code: &'static str, error: &RealmError) {
        let remedy = remedy(error);
        let due = self.due(cause(error));
        notice!(due, code, %error, remedy, "a request was rejected");
    }

    /// A request locks a realm whose path begins with that of the base URL twice.
    pub(super) fn repeated_base(&self, base: &str, claim: &Claim) {
        let due = self.due(Cause::of("repeated base", Some(base)));
        notice!(
            due, base, %claim,
            remedy = "let requests have the base URL's path once: is it in the pattern as well, or \
                      does a proxy keep it although it is taken to be removed? `explain` shows the \
                      realm of a path",
            "the path of a realm begins with that of the base URL twice"
        );
    }

    /// A request was locked by its path. Logged once, in a build that `reads_routes` of axum.
    pub(super) fn locked_by_path(&self, reads_routes: impl FnOnce() -> bool) {
        // Read first: a write would take the cache line away from the other threads each time.
        let is_known = self.by_path.load(Ordering::Relaxed);
        if is_known || !reads_routes() || self.by_path.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::info!(
            remedy = "inside the router, as `Router::layer` puts it, only routes with the parameters \
                      of the pattern are locked",
            "no route of axum's router has matched, so paths decide what is locked: the layer is \
             around the router, or a fallback answers"
        );
    }

    /// A request passed because its route has no realm. Logged once for each route: at WARN if the
    /// route looks like one of a realm.
    pub(super) fn passed(&self, route: &str, resembles: impl FnOnce() -> bool) {
        // A set that is only added to is never half changed.
        let known = self.other_routes.read();
        if known
            .unwrap_or_else(PoisonError::into_inner)
            .contains(route)
        {
            return;
        }
        let routes = self.other_routes.write();
        let mut routes = routes.unwrap_or_else(PoisonError::into_inner);
        if !routes.insert(route.into()) {
            return;
        }
        if resembles() {
            tracing::warn!(
                route,
                remedy = "if its handler writes to a realm, name the segments of the realm in the \
                          route as in the pattern, such as `{owner}`; otherwise exempt the route \
                          with `LockRules::exempt`",
                "writes of this route pass without a lock, although it looks like one of a realm: it \
                 lacks parameters of the pattern"
            );
        } else {
            tracing::info!(
                route,
                "writes of this route pass without a lock: it lacks parameters of the pattern"
            );
        }
    }

    /// A locked request was answered with a tunnel, which is not under its lock.
    pub(super) fn upgraded(&self, status: StatusCode, claim: &Claim) {
        let due = self.due(Cause::of("upgrade", None));
        notice!(
            due, status = status.as_u16(), %claim,
            remedy = "take the lock for each message that writes, with \
                      `RealmLocks::with_write_lock`, and exempt the route",
            "a locked request was answered with an upgrade, which ends its hold"
        );
    }

    /// Counts one occurrence of a cause. Returns how often it happened since it was warned of, if it
    /// is to be warned of again.
    fn due(&self, cause: Cause) -> Option<u64> {
        let now = Instant::now();
        // Nothing panics in between.
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = causes.len() >= MOST_CAUSES && !causes.contains_key(&cause);
        let cause = if is_full {
            Cause::of("other", None)
        } else {
            cause
        };
        let Some(seen) = causes.get_mut(&cause) else {
            let seen = Seen {
                warned: now,
                suppressed: 0,
            };
            causes.insert(cause, seen);
            return Some(0);
        };
        if now.duration_since(seen.warned) < QUIET {
            seen.suppressed = seen.suppressed.saturating_add(1);
            return None;
        }
        seen.warned = now;
        Some(std::mem::take(&mut seen.suppressed))
    }
}

impl Cause {
    fn of(name: &'static str, of: Option<&str>) -> Self {
        let of = of.map(Into::into);
        Self { name, of }
    }
}

fn cause(error: &RealmError) -> Cause {
    match error {
        RealmError::NoRealm { template, .. } => Cause::of("no realm", Some(template)),
        RealmError::AmbiguousPath { problem, .. } => {
            Cause::of("ambiguous path", Some(&problem.to_string()))
        }
        RealmError::RouteParameters { route, .. } => Cause::of("route parameters", Some(route)),
        RealmError::NotMounted { .. } => Cause::of("not mounted", None),
        RealmError::InvalidBody { .. } => Cause::of("invalid body", None),
        RealmError::BodyPointer { pointer, .. } => Cause::of("body pointer", Some(pointer)),
        RealmError::Origin { .. } => Cause::of("origin", None),
        RealmError::Destination { .. } => Cause::of("destination", None),
        RealmError::AmbiguousMethod => Cause::of("ambiguous method", None),
        RealmError::Missing { .. } => Cause::of("missing", None),
        RealmError::Unresolved { .. } => Cause::of("unresolved", None),
        RealmError::InvalidSegment { .. } => Cause::of("invalid segment", None),
        // Errors of a configuration, which a closure may answer with.
        _ => Cause::of("other", None),
    }
}

/// The remedy for the most likely mistake of the server, rather than of one client.
fn remedy(error: &RealmError) -> &'static str {
    match error {
        RealmError::NoRealm { .. } if cfg!(feature = "axum") => {
            "do requests begin with the base URL's path and then the pattern? if a proxy removes \
             that path, declare it with `RealmPaths::base_path_stripped`; exempt the routes of no \
             realm with `LockRules::exempt`, or let them pass with `unresolved(Unresolved::Pass)`; \
             `explain` shows what a request locks"
        }
        RealmError::NoRealm { .. } => {
            "if the layer is inside axum's `nest`, turn on the feature `axum`; do requests begin \
             with the base URL's path and then the pattern? if a proxy removes that path, declare \
             it with `RealmPaths::base_path_stripped`; exempt the routes of no realm with \
             `LockRules::exempt`, or let them pass with `unresolved(Unresolved::Pass)`"
        }
        RealmError::NotMounted { .. } => {
            "mount the realm with `RealmMounts::insert` before it is written; exempt the routes of \
             no realm with `LockRules::exempt`, or let them pass with \
             `unresolved(Unresolved::Pass)`"
        }
        RealmError::RouteParameters { .. } => {
            "name the parameters of the route as those of the realm pattern, or exempt the route \
             with `LockRules::exempt`"
        }
        RealmError::AmbiguousPath { .. } => {
            "routers could read this path in two ways: let clients send its plain spelling"
        }
        RealmError::Origin { .. } => {
            "allow the origin with `RequestOrigin::only`, or trust the proxy that names it; where the base URL's host has parameters, send requests to a host that fits"
        }
        RealmError::Destination { .. } => {
            "a MOVE or COPY must name a path below the base URL in `Destination`"
        }
        RealmError::AmbiguousMethod => {
            "name the methods that the header may carry in `LockRules::method_override`"
        }
        RealmError::InvalidBody { .. } | RealmError::BodyPointer { .. } => {
            "the body must name the realm where the route's `RealmPointers` look for it"
        }
        RealmError::Unresolved { .. } | RealmError::InvalidSegment { .. } => {
            "clients must name their realm as the error describes; exempt the routes of no realm \
             with `LockRules::exempt`"
        }
        _ => {
            "exempt the routes of no realm with `LockRules::exempt`, or let them pass with \
             `unresolved(Unresolved::Pass)`"
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cause_is_due_once_a_minute_with_the_count_of_what_came_between() {
        let notices = Notices::default();
        let due = |name| notices.due(Cause::of(name, None));
        assert_eq!(due("a"), Some(0));
        for _ in 0..3 {
            assert_eq!(due("a"), None);
        }
        assert_eq!(due("b"), Some(0));
        advance(QUIET / 2).await;
        assert_eq!(due("a"), None);
        advance(QUIET / 2).await;
        assert_eq!(due("a"), Some(4));
        assert_eq!(due("a"), None);
        advance(QUIET).await;
        assert_eq!(due("a"), Some(1));
        assert_eq!(due("b"), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_causes_take_no_more_memory() {
        let notices = Notices::default();
        for number in 0..10 * MOST_CAUSES {
            let template = format!("/{number}");
            let error = RealmError::NoRealm {
                path: template.clone(),
                template,
            };
            notices.rejected("realm-unresolved", &error);
        }
        assert_eq!(notices.causes.lock().unwrap().len(), MOST_CAUSES + 1);
    }

    #[test]
    fn a_clients_text_makes_no_cause() {
        let path = |path: &str| RealmError::NoRealm {
            path: path.to_owned(),
            template: "/{realm}".to_owned(),
        };
        assert_eq!(cause(&path("/a")), cause(&path("/b")));
        let [one, other] = ["a", "b"].map(RealmError::unresolved);
        assert_eq!(cause(&one), cause(&other));
    }
}
