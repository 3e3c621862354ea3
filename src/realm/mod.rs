//! *What* is locked: from a request to the canonical URL of its realm.
//!
//! [`LockRules`] says whether a request is locked and how much of its realm, a [`RealmResolver`] which realms it writes, and a
//! [`RealmUrl`] is a realm's one canonical name. Nothing here knows of locks being held.

mod error;
mod forwarded;
mod head;
mod json;
mod methods;
mod mounts;
mod origin;
mod path;
mod paths;
mod pointers;
mod proxies;
mod resolver;
mod rules;
mod scope;
mod template;
mod url;

pub(crate) use self::error::shown;
pub use self::error::{PathProblem, RealmError};
pub(crate) use self::head::Head;
pub use self::mounts::RealmMounts;
pub use self::origin::RequestOrigin;
pub use self::paths::RealmPaths;
pub use self::pointers::RealmPointers;
pub use self::proxies::{PeerAddr, TrustedProxies};
pub(crate) use self::resolver::Found;
pub use self::resolver::RealmResolver;
pub use self::rules::LockRules;
pub(crate) use self::scope::Extent;
pub use self::scope::Scope;
pub use self::url::RealmUrl;
