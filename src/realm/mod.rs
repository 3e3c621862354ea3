//! *What* is locked: from a request to the canonical URL of its realm.
//!
//! [`LockRules`] says whether a request is locked, [`RealmPaths`] which realm it writes, and a [`RealmUrl`] is that realm's
//! one canonical name. Nothing here knows of locks being held.

mod error;
mod path;
mod resolve;
mod rules;
mod template;
mod url;

pub use self::error::{PathProblem, RealmError};
pub use self::resolve::RealmPaths;
pub use self::rules::LockRules;
pub use self::url::RealmUrl;
