use std::fmt;

/// How a layer treats a request that must be locked but names no realm.
///
/// Used by [`unresolved`](crate::RealmWriteLockLayer::unresolved) of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Unresolved {
    /// It is rejected with 400 `realm-unresolved`. No write gets past the lock because of a
    /// mistake in a pattern.
    #[default]
    Refuse,
    /// It passes without a lock: for a layer around a router that also has routes of no realm, such
    /// as `POST /auth/login`.
    ///
    /// A request passes only if nothing in it names a realm: no pattern fits its path, no mounted
    /// realm is a beginning of it, the header, the extension or the route that would name it is
    /// missing, or a closure answers [`RealmError::missing`](crate::RealmError::missing). Where a
    /// client can leave out what names the realm, such as a header, the handler must refuse that
    /// request: it has no lock. These are rejected as ever:
    ///
    /// - a header that is there, but is empty, repeated or malformed, and what a closure rejects
    ///   with [`RealmError::unresolved`](crate::RealmError::unresolved);
    /// - a path that two servers could read differently, wherever the realm is named, an origin
    ///   that is not allowed, a body that cannot be read;
    /// - a request whose method is overridden in a way that cannot be relied on;
    /// - a MOVE or COPY, whose `Destination` may be in a realm;
    /// - what a rule locks explicitly, with [`LockRules::lock`](crate::LockRules::lock).
    ///
    /// With it, a wrong pattern is a write without a lock. The line that the layer logs when it
    /// starts shows that it is set, and [`explain`](crate::RealmWriteLockLayer::explain) shows the
    /// requests that it lets pass.
    Pass,
}

/// What happens to such requests.
impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refused",
            Self::Pass => "pass without a lock",
        })
    }
}
