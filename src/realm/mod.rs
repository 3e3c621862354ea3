//! *What* is locked: pure functions from a request to the canonical URLs of its realms.

pub(crate) mod body;
pub(crate) mod classify;
pub(crate) mod error;
pub(crate) mod head;
mod origin;
mod path;
pub(crate) mod resolve;
pub(crate) mod rules;
mod template;
pub(crate) mod url;

pub use self::error::RealmError;
pub use self::origin::proxies::{PeerAddr, TrustedProxies};
pub use self::origin::request::RequestOrigin;
pub use self::path::PathProblem;
pub use self::resolve::mounts::RealmMounts;
pub use self::resolve::paths::RealmPaths;
pub use self::resolve::pointers::RealmPointers;
pub use self::resolve::resolver::{RealmBodyResolver, RealmResolver};
pub use self::rules::lock_rules::LockRules;
pub use self::rules::scope::Scope;
pub use self::url::RealmUrl;
