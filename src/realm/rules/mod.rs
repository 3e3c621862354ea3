//! Judging a request: whether it is locked, and how much of its realm.

pub(crate) mod limits;
pub(crate) mod lock_rules;
pub(crate) mod methods;
pub(super) mod readings;
pub(crate) mod scope;
pub(super) mod selector;
