use crate::realm::url::RealmUrl;

/// A realm that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::realm) struct Found {
    pub(in crate::realm) realm: RealmUrl,
    /// How many segments of the request's path name it.
    pub(in crate::realm) depth: Depth,
    /// The resource of the realm that the `Destination` of a MOVE or COPY names.
    pub(in crate::realm) destination: Option<String>,
}

/// How many segments at the beginning of a request's path name its realm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::realm) enum Depth {
    /// This many.
    Segments(usize),
    /// As many as the URL of the realm has: the realm was found elsewhere.
    OfUrl,
    /// Nobody knows, so nobody knows which resource the path names.
    Unknown,
}

impl Found {
    /// A realm that the first `depth` segments of the path name.
    pub(in crate::realm) fn at(realm: RealmUrl, depth: usize) -> Self {
        Self::within(realm, Depth::Segments(depth))
    }

    /// A realm that a part of the path names.
    pub(in crate::realm) fn within(realm: RealmUrl, depth: Depth) -> Self {
        Self {
            depth,
            ..Self::elsewhere(realm)
        }
    }

    /// A realm that was found elsewhere than in the path.
    pub(in crate::realm) fn elsewhere(realm: RealmUrl) -> Self {
        Self {
            realm,
            depth: Depth::OfUrl,
            destination: None,
        }
    }
}
