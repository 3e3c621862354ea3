use crate::lock::token::FencingToken;
use crate::realm::url::RealmUrl;

/// What [`RealmWrites`](crate::RealmWrites) yields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RealmEvent {
    /// A write has succeeded, here or on another replica.
    Write(RealmWrite),
    /// The connection is lost, or events came faster than they were taken: from here on some may be missed. A cache does not
    /// answer until [`Resumed`](Self::Resumed).
    Interrupted,
    /// Writes are told again. What was written since the interruption was not: a cache begins empty.
    Resumed,
}

/// A successful write of a realm, whose lock is free again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealmWrite {
    pub(super) realm: RealmUrl,
    pub(super) path: Option<Box<str>>,
    pub(super) token: Option<FencingToken>,
    pub(super) sender: Box<str>,
}

impl RealmWrite {
    /// The realm that was written.
    #[must_use]
    pub fn realm(&self) -> &RealmUrl {
        &self.realm
    }

    /// The resource that was written; `None` if it may be any of the realm.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// The fencing token of the hold under which it was written, if there are tokens.
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        self.token
    }

    /// Who wrote it: [`RealmLocks::sender`](crate::RealmLocks::sender) of that replica.
    #[must_use]
    pub fn sender(&self) -> &str {
        &self.sender
    }
}
