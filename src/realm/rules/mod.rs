//! Judging a request: whether it is locked, and how much of its realm.

#[cfg(feature = "serde")]
mod file;
pub(crate) mod limits;
pub(crate) mod lock_rules;
pub(super) mod methods;
pub(crate) mod scope;
#[cfg(test)]
mod tests;
