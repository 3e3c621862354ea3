//! Finding a request's realms: by its path, in its JSON body, or by a closure.

mod base;
pub(super) mod destination;
pub(super) mod found;
pub(super) mod json;
pub(super) mod mounts;
pub(super) mod paths;
pub(super) mod pointers;
pub(crate) mod resolver;
pub(super) mod source;
