/// What becomes of a request that is to be locked and names no realm.
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
    /// realm is a beginning of it, it lacks the header or the extension that would name one, or
    /// a closure answers [`RealmError::missing`](crate::RealmError::missing). These are rejected as
    /// ever:
    ///
    /// - a header that is there, but is empty, repeated or malformed, and what a closure rejects
    ///   with [`RealmError::unresolved`](crate::RealmError::unresolved);
    /// - a path that two servers could read differently, an origin that is not allowed, a body that
    ///   cannot be read;
    /// - a request whose method is overridden in a way that cannot be relied on;
    /// - a MOVE or COPY, whose `Destination` may be in a realm;
    /// - what a rule locks explicitly, with [`LockRules::lock`](crate::LockRules::lock).
    ///
    /// With it, a wrong pattern is a write without a lock. The line that the layer logs when it
    /// starts says that it is set, and [`explain`](crate::RealmWriteLockLayer::explain) shows for
    /// which requests.
    Pass,
}
