//! *What* is locked: pure functions from a request to the canonical URLs of its realms.
//!
//! # How a request becomes a decision
//!
//! `Realms::classify` reads the head of a request once and returns one `Decision`. A `Head` has the
//! whole path, also inside axum's `nest`, and the route that axum's router has matched, if any. The
//! first step that decides is the last:
//!
//! 1. `Readings` lists every method that the request can be read with: its own, and what a
//!    configured header overrides it with.
//! 2. `Rules::judge` asks whether it is locked as any of them, and by which route. If not, it
//!    passes: nothing was allocated, and nothing decoded unless a route was compared with the path.
//! 3. `Routes::source` chooses the one way to find realms. A request for which two readers would
//!    choose two ways is rejected.
//! 4. The source finds the claim: in the head at once, otherwise by a closure or in the body. The
//!    `Destination` of a MOVE or COPY is read as the path of the request is. In a matched route
//!    `RealmPaths` takes the parameters that the handler gets; a route without them passes.
//! 5. The `RouteScope` narrows the claim to resources, if it is on one whole realm and nothing else,
//!    or shares its realms.
//!
//! `NeedsLookup` and `NeedsBody` own all that they need, so the layer can wait without the head.
//! Every variant that needs a body holds a `ReadsBodies`. A layer that reads none has no value of
//! that type. `explain` shows a decision to people, and `review` what no request can.
//!
//! # Reading a path
//!
//! A `ParsedPath` is split and decoded when it is first asked, and shared by everything that reads
//! one request's path. A pattern can be compared with it in three ways:
//!
//! - **To the letter**: raw segments, as axum's router compares them. What loosens the lock (an
//!   exempt route, a narrower scope) counts only to the letter, and only on an unambiguous path.
//! - **In any spelling**: decoded, with one slash more or less at the end, with empty segments as
//!   parameters. What tightens the lock (a locked route) counts in any spelling, because some
//!   router may take it for the route.
//! - **Resolved**: what the most lenient server makes of an ambiguous path, with dot segments,
//!   empty segments and backslashes resolved. It is a part of *any spelling*.
//!
//! A route of a resolver, and one of several patterns of a `RealmPaths`, neither loosens nor
//! tightens: it names other realms. So all readings must choose the same one, or the request is
//! rejected.
//!
//! # Invariants
//!
//! - Two replicas compute the same realm URL for the same request. Nothing depends on state except
//!   the list of a `RealmMounts` and closures.
//! - A realm has one URL. A path that two servers could read as two paths is refused, not repaired:
//!   empty and dot segments, control characters, bytes that are not UTF-8, malformed escapes, and
//!   a slash or backslash inside a segment that names the realm. A repair would be a guess.
//! - Where resources are in doubt, the realm is locked as a whole. Where the realm is in doubt, the
//!   request is rejected.

pub(crate) mod body;
pub(crate) mod claim;
pub(crate) mod classify;
pub(crate) mod error;
pub(crate) mod explain;
#[cfg(feature = "serde")]
mod file;
pub(crate) mod head;
pub(crate) mod key;
mod origin;
mod path;
pub(crate) mod request_head;
pub(crate) mod resolve;
pub(crate) mod review;
pub(crate) mod route;
pub(crate) mod rules;
mod template;
pub(crate) mod unresolved;
pub(crate) mod url;

pub use self::claim::Claim;
pub use self::error::RealmError;
pub use self::explain::Explanation;
pub use self::key::LockKey;
pub use self::origin::proxies::{PeerAddr, TrustedProxies, UnixPeer};
pub use self::origin::request::RequestOrigin;
pub use self::path::PathProblem;
pub use self::request_head::RequestHead;
pub use self::resolve::mounts::RealmMounts;
pub use self::resolve::paths::RealmPaths;
pub use self::resolve::pointers::RealmPointers;
pub use self::resolve::resolver::{RealmBodyResolver, RealmResolver};
pub use self::rules::limits::RouteLimits;
pub use self::rules::lock_rules::LockRules;
pub use self::rules::methods::MethodSet;
pub use self::rules::scope::Scope;
pub use self::unresolved::Unresolved;
pub use self::url::RealmUrl;
